//! Who follows: what one client is sent, and how.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{broadcast, mpsc};

use super::following::{Next, Order, Place};
use super::mark::Mark;
use super::reading::Found;
use super::{CHUNK, Counted, News, PING};
use crate::api::query::answer::TAKEN_WITHIN;
use crate::api::query::filter::Filter;
use crate::api::query::{QueryApi, QueryError};
use crate::listen::BoxError;

/// The newest rows that a client gets that was away.
pub(super) const CATCH_UP: usize = 1_000;

/// Rows of them that are read at once: about as many as there are in a text.
const CATCH_UP_AT_ONCE: usize = 32;

/// When it is not known how many rows are not shown, or not to be told.
const SKIPPED: &str = "event: skipped\ndata: {}\n\n";

pub(super) struct Client {
    pub(super) api: QueryApi,
    pub(super) filter: Filter,
    pub(super) sender: mpsc::Sender<Bytes>,
    pub(super) _counted: Counted,
}

impl Client {
    pub(super) async fn run(self, mut news: broadcast::Receiver<News>, after: Option<Mark>) {
        let shutdown = self.api.inner.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.sender.closed() => {}
            _ = self.follow(&mut news, after) => {}
        }
    }

    /// `None` when the client is gone.
    async fn follow(&self, news: &mut broadcast::Receiver<News>, after: Option<Mark>) -> Option<()> {
        // What is written after this line is shown. Without a database, the stream begins all the same, and late.
        let mut following = self.api.inner.live.following.subscribe();
        let begun = tokio::time::timeout(PING, following.wait_for(Option::is_some)).await;
        let is_late = !matches!(begun, Ok(Ok(_)));
        drop(begun);
        self.send("retry: 2000\n: rows as they are written\n\n").await?;
        // What was sent for `Last-Event-ID` may come as news as well.
        let mut sent = Sent::default();
        if let Some(after) = after {
            self.catch_up(after, &mut sent).await?;
            if is_late {
                // Between what was caught up with and what is followed there may be others.
                self.send_soon(SKIPPED).await?;
            }
        }
        loop {
            let next = tokio::time::timeout(PING, news.recv()).await;
            let mut chunk = Vec::new();
            match next {
                Err(_) => chunk.extend_from_slice(b": still here\n\n"),
                Ok(next) => {
                    self.take(next, &mut sent, &mut chunk)?;
                    // What is there already goes in one piece.
                    while chunk.len() < CHUNK {
                        match news.try_recv() {
                            Ok(next) => self.take(Ok(next), &mut sent, &mut chunk)?,
                            Err(broadcast::error::TryRecvError::Lagged(lost)) => {
                                self.take(Err(broadcast::error::RecvError::Lagged(lost)), &mut sent, &mut chunk)?;
                            }
                            Err(_) => break,
                        }
                    }
                }
            }
            if !chunk.is_empty() {
                self.send(chunk).await?;
            }
        }
    }

    fn take(
        &self,
        next: Result<News, broadcast::error::RecvError>,
        sent: &mut Sent,
        chunk: &mut Vec<u8>,
    ) -> Option<()> {
        match next {
            Ok(News::Row(row)) => match &*row.read().unwrap_or_else(PoisonError::into_inner) {
                Some(row) => {
                    if !sent.was(&row.row.id) && self.filter.matches(&row.row) {
                        chunk.extend_from_slice(&row.event);
                    }
                }
                None if chunk.ends_with(SKIPPED.as_bytes()) => {}
                None => chunk.extend_from_slice(SKIPPED.as_bytes()),
            },
            Ok(News::MaybeSkipped) => chunk.extend_from_slice(SKIPPED.as_bytes()),
            Ok(News::Skipped(rows)) => chunk.extend_from_slice(self.skipped(rows as u64).as_bytes()),
            Err(broadcast::error::RecvError::Lagged(rows)) => chunk.extend_from_slice(self.skipped(rows).as_bytes()),
            Err(broadcast::error::RecvError::Closed) => return None,
        }
        Some(())
    }

    /// The event. How many rows others have is not told to who sees one organization only.
    fn skipped(&self, rows: u64) -> String {
        match self.filter.scope {
            Some(_) => SKIPPED.to_owned(),
            None => format!("event: skipped\ndata: {{\"rows\":{rows}}}\n\n"),
        }
    }

    /// Sends what was written since, and notes it in `sent`.
    async fn catch_up(&self, after: Mark, sent: &mut Sent) -> Option<()> {
        // Up to here nothing more comes: who goes on after a later row goes on from here, lest what comes late be missed.
        let done = self.api.inner.live.following.borrow().unwrap_or_default();
        let mut behind = match self.behind(after).await {
            Ok(behind) => behind,
            Err(error) => return self.cannot_resume(&error).await,
        };
        if behind.maybe_more {
            self.send_soon(SKIPPED).await?;
        }
        while behind.after < behind.last {
            let chunk = match self.catch_up_by(&mut behind, done.max(after.place), sent).await {
                Ok(chunk) => chunk,
                Err(error) => return self.cannot_resume(&error).await,
            };
            if !chunk.is_empty() {
                self.send_soon(chunk).await?;
            }
        }
        Some(())
    }

    /// Which rows were written since.
    async fn behind(&self, after: Mark) -> Result<Behind, QueryError> {
        let _seat = self.api.inner.seats.take().await?;
        let mut behind = Behind {
            after: after.place,
            last: after.place,
            maybe_more: false,
        };
        // Where the row is no longer, its place may have been used again, and those before it.
        if self.api.order() == Order::Committed && after.place > Place(0) {
            let before = Place(after.place.0.saturating_sub(1));
            let there = self.api.keys_between(before, after.place, 1).await?;
            behind.maybe_more = !there.iter().any(|key| after.is_of(&key.id));
        }
        let newest = self.api.keys_after(after.place, CATCH_UP + 1).await?;
        behind.last = newest.first().map_or(after.place, |key| key.place);
        // A place that there is not yet is of another table, or of other places.
        behind.maybe_more |= newest.is_empty() && after.place > self.api.last_place().await?;
        // To count the others might mean to read the whole table.
        if let Some(others) = newest.get(CATCH_UP) {
            behind.after = others.place;
            behind.maybe_more = true;
        }
        Ok(behind)
    }

    /// The next text, made of rows that nobody else reads: under a seat, until it is sent.
    async fn catch_up_by(&self, behind: &mut Behind, done: Place, sent: &mut Sent) -> Result<Vec<u8>, QueryError> {
        let _seat = self.api.inner.seats.take().await?;
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK && behind.after < behind.last {
            let keys = self
                .api
                .keys_between(behind.after, behind.last, CATCH_UP_AT_ONCE)
                .await?;
            let Some(last) = keys.last().map(|key| key.place) else {
                behind.after = behind.last;
                break;
            };
            let rows = keys.into_iter().filter(|key| key.is_row);
            let next: Vec<Next> = rows.map(|key| Next::of(self.api.order(), key, done)).collect();
            let Found { rows, left_out } = self.api.rows_of(&next).await?;
            let mut places = next.iter();
            behind.after = last;
            for row in rows {
                let place = places.find(|next| next.id == row.row.id).map(|next| next.place);
                // What no longer has room is read again.
                if chunk.len() >= CHUNK {
                    behind.after = place.map_or(last, |place| Place(place.0.saturating_sub(1)));
                    break;
                }
                if self.filter.matches(&row.row) {
                    chunk.extend_from_slice(&row.event);
                }
                sent.note(&row.row.id);
            }
            if left_out > 0 {
                chunk.extend_from_slice(SKIPPED.as_bytes());
            }
        }
        Ok(chunk)
    }

    async fn cannot_resume(&self, error: &QueryError) -> Option<()> {
        tracing::debug!(reason = %error, "cannot resume a live stream");
        self.send_soon(SKIPPED).await
    }

    /// Sends to a client that holds up others until it has taken it.
    async fn send_soon(&self, chunk: impl Into<Vec<u8>>) -> Option<()> {
        self.sender
            .send_timeout(Bytes::from(chunk.into()), TAKEN_WITHIN)
            .await
            .ok()
    }

    async fn send(&self, chunk: impl Into<Vec<u8>>) -> Option<()> {
        self.sender.send(Bytes::from(chunk.into())).await.ok()
    }
}

/// What a client that was away has yet to be sent: after a place, up to another.
struct Behind {
    after: Place,
    last: Place,
    /// Whether there may be rows that are not among these.
    maybe_more: bool,
}

/// Rows that were sent before their turn, by digests of their ids.
#[derive(Default)]
pub(super) struct Sent {
    rows: HashSet<u64>,
    digest: RandomState,
}

impl Sent {
    pub(super) fn note(&mut self, id: &str) {
        self.rows.insert(self.digest.hash_one(id));
    }

    /// Whether the row was sent; asked once.
    pub(super) fn was(&mut self, id: &str) -> bool {
        !self.rows.is_empty() && self.rows.remove(&self.digest.hash_one(id))
    }
}

/// The body of a stream.
pub(super) struct Events(pub(super) mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
