//! `/code-exec-logs/live`: rows as they are written, as server-sent events.
//!
//! One task asks the database what is new, however many clients there are, and none without clients. Each client has a
//! task that filters and writes. A client that does not keep up loses rows and is told so; it holds up nobody.
//!
//! # Order
//!
//! In SQLite a row's place is its rowid: the order in which rows were written. PostgreSQL has no such order; there it is
//! the time of receipt, and because several sidecars write side by side, the last few seconds are read again each time
//! and what was seen is left out. A row that comes later than that (a sidecar that catches up after hours without its
//! database) does not appear here.
//!
//! # Bounds
//!
//! [`CLIENTS`] clients; per client [`CHUNKS`] texts waiting to be sent; [`BACKLOG`] rows shared by all; [`AT_ONCE`] rows
//! read at once, of which the oldest are left out when more were written.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use tokio::sync::{broadcast, mpsc, watch};

use super::database::{Dialect, Kind};
use super::filter::{FILTERS, Filter, RowsShown};
use super::row::{Execution, KINDS};
use super::{Asked, QueryApi, QueryError};
use crate::listen::{Body, BoxError};

const CLIENTS: usize = 256;
const CHUNKS: usize = 4;
const BACKLOG: usize = 4096;
const AT_ONCE: i64 = 1000;

/// How often is asked for new rows.
const POLL: Duration = Duration::from_millis(500);

/// How often a silent stream shows that it is alive.
const PING: Duration = Duration::from_secs(15);

/// How much of the past is read again in PostgreSQL, in nanoseconds.
const OVERLAP: i64 = 3_000_000_000;

/// A row's place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Place(i64);

/// A row with its event, made once for all clients.
struct LiveRow {
    place: Place,
    row: Execution,
    event: Bytes,
}

/// What the poller tells the clients.
#[derive(Clone)]
enum News {
    Row(Arc<LiveRow>),
    /// More was written than is shown.
    Skipped,
}

/// What the clients share.
pub(super) struct Live {
    news: broadcast::Sender<News>,
    clients: Arc<AtomicUsize>,
    polling: Mutex<bool>,
    /// Whether the poller knows where it is: from then on it misses nothing.
    following: watch::Sender<bool>,
}

impl Default for Live {
    fn default() -> Live {
        Live {
            news: broadcast::Sender::new(BACKLOG),
            clients: Arc::default(),
            polling: Mutex::default(),
            following: watch::Sender::new(false),
        }
    }
}

/// Counts a client for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl QueryApi {
    pub(super) fn live(&self, asked: Asked, headers: &HeaderMap) -> Result<Response<Body>, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        // Scripts that cannot set the header may say it in the URL.
        let parameter = parameters.number("lastEventId", 0, i64::MAX)?;
        parameters.finish(&format!("{FILTERS}, lastEventId"))?;
        let header = headers
            .get("last-event-id")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let after = header.or(parameter).map(Place);
        let live = &self.inner.live;
        let counted = Counted(Arc::clone(&live.clients));
        if live.clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS || self.inner.shutdown.is_cancelled() {
            return Err(QueryError::Busy);
        }
        let news = live.news.subscribe();
        self.start_polling();
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let client = Client {
            api: self.clone(),
            filter,
            sender,
            _counted: counted,
        };
        tokio::spawn(client.run(news, after));
        let mut response = Response::new(Body::stream(Events(receiver)));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }

    fn start_polling(&self) {
        let mut polling = self.inner.live.polling.lock().unwrap_or_else(PoisonError::into_inner);
        if !*polling {
            *polling = true;
            tokio::spawn(self.clone().poll());
        }
    }

    /// Whether the poller may end: nobody listens. Decided under the lock that a new client takes.
    fn stop_polling(&self) -> bool {
        let live = &self.inner.live;
        let mut polling = live.polling.lock().unwrap_or_else(PoisonError::into_inner);
        if live.news.receiver_count() == 0 || self.inner.shutdown.is_cancelled() {
            *polling = false;
            live.following.send_replace(false);
            return true;
        }
        false
    }

    async fn poll(self) {
        let mut seen = Seen::default();
        let mut place: Option<Place> = None;
        loop {
            let rows = match place {
                None => self.start_place().await.map(|(last, past)| {
                    // From now on: what will be read again was there before.
                    past.iter()
                        .filter(|row| row.place <= last)
                        .for_each(|row| _ = seen.is_new(row));
                    place = Some(last);
                    self.inner.live.following.send_replace(true);
                    Vec::new()
                }),
                Some(after) => self.rows_after(after, AT_ONCE).await,
            };
            match rows {
                Ok(rows) => {
                    let full = rows.len() as i64 == AT_ONCE;
                    let mut fresh = false;
                    for row in rows {
                        place = place.max(Some(row.place));
                        if seen.is_new(&row) {
                            fresh = true;
                            drop(self.inner.live.news.send(News::Row(Arc::new(row))));
                        }
                    }
                    if full && fresh {
                        drop(self.inner.live.news.send(News::Skipped));
                    }
                    if let Some(place) = place {
                        seen.forget_before(Place(place.0 - OVERLAP));
                    }
                }
                // The next attempt may do; requests meanwhile say why.
                Err(error) => tracing::debug!(reason = %error, "cannot look for new rows"),
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.inner.shutdown.cancelled() => {}
            }
            if self.stop_polling() {
                return;
            }
        }
    }

    async fn last_place(&self) -> Result<Place, QueryError> {
        let sql = match self.dialect() {
            Dialect::Sqlite => format!("SELECT coalesce(max(rowid), 0) FROM {}", self.table()),
            Dialect::Postgres => format!("SELECT coalesce(max(received_at_ns), 0) FROM {}", self.beside()),
        };
        let rows = self
            .database()
            .fetch(super::database::Sql::new(self.dialect(), sql), &[Kind::Integer])
            .await?;
        Ok(Place(rows.first().and_then(|row| row[0].integer()).unwrap_or_default()))
    }

    /// The last place, and the rows about it that will be read again.
    async fn start_place(&self) -> Result<(Place, Vec<LiveRow>), QueryError> {
        let last = self.last_place().await?;
        Ok((last, self.rows_after(last, AT_ONCE).await?))
    }

    /// The latest `limit` rows after a place, oldest first; in PostgreSQL also those a little before it.
    async fn rows_after(&self, after: Place, limit: i64) -> Result<Vec<LiveRow>, QueryError> {
        let (place, from) = match self.dialect() {
            Dialect::Sqlite => ("t.rowid", after.0),
            Dialect::Postgres => ("e.received_at_ns", after.0.saturating_sub(OVERLAP)),
        };
        let everything = Filter::everything(RowsShown::All, None);
        let mut sql = self.select(&format!("{}, {place}", Execution::columns(self.dialect())), &everything);
        sql.push(&format!(" AND {place} > ")).integer(from);
        sql.push(&format!(" ORDER BY {place} DESC, t.id DESC LIMIT "))
            .integer(limit);
        let kinds: Vec<Kind> = KINDS.into_iter().chain([Kind::Integer]).collect();
        let mut rows: Vec<LiveRow> = self
            .database()
            .fetch(sql, &kinds)
            .await?
            .into_iter()
            .filter_map(|mut cells| {
                let place = Place(cells.pop()?.integer()?);
                let row = Execution::read(cells)?;
                let event = event(place, &row, self.signoz_url());
                Some(LiveRow { place, row, event })
            })
            .collect();
        rows.reverse();
        Ok(rows)
    }
}

fn event(place: Place, row: &Execution, signoz_url: Option<&str>) -> Bytes {
    Bytes::from(format!(
        "id: {}\nevent: row\ndata: {}\n\n",
        place.0,
        row.to_full_json(signoz_url)
    ))
}

/// What was shown of the time that is read again.
#[derive(Default)]
struct Seen(HashMap<String, Place>);

impl Seen {
    fn is_new(&mut self, row: &LiveRow) -> bool {
        self.0.insert(row.row.id.clone(), row.place).is_none()
    }

    fn forget_before(&mut self, place: Place) {
        // Rowids are far smaller than the overlap, so that in SQLite nothing would ever be forgotten.
        if self.0.len() as i64 > 4 * AT_ONCE {
            self.0.retain(|_, seen| *seen > place);
            if self.0.len() as i64 > 16 * AT_ONCE {
                self.0.clear();
            }
        }
    }
}

struct Client {
    api: QueryApi,
    filter: Filter,
    sender: mpsc::Sender<Bytes>,
    _counted: Counted,
}

impl Client {
    async fn run(self, mut news: broadcast::Receiver<News>, after: Option<Place>) {
        let shutdown = self.api.inner.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.sender.closed() => {}
            _ = self.follow(&mut news, after) => {}
        }
    }

    /// `None` when the client is gone.
    async fn follow(&self, news: &mut broadcast::Receiver<News>, after: Option<Place>) -> Option<()> {
        // What is written after this line is shown. Without a database, the stream begins all the same, and late.
        let mut following = self.api.inner.live.following.subscribe();
        drop(tokio::time::timeout(PING, following.wait_for(|following| *following)).await);
        self.send("retry: 2000\n: rows as they are written\n\n").await?;
        // What was sent for `Last-Event-ID` may come as news as well.
        let mut sent = match after {
            Some(after) => self.catch_up(after).await?,
            None => HashSet::new(),
        };
        loop {
            let next = tokio::time::timeout(PING, news.recv()).await;
            let mut chunk = Vec::new();
            match next {
                Err(_) => chunk.extend_from_slice(b": still here\n\n"),
                Ok(next) => {
                    self.take(next, &mut sent, &mut chunk)?;
                    // What is there already goes in one piece.
                    while chunk.len() < 64 * 1024 {
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
        sent: &mut HashSet<String>,
        chunk: &mut Vec<u8>,
    ) -> Option<()> {
        match next {
            Ok(News::Row(row)) => {
                if !sent.remove(&row.row.id) && self.filter.matches(&row.row) {
                    chunk.extend_from_slice(&row.event);
                }
            }
            Ok(News::Skipped) => chunk.extend_from_slice(b"event: skipped\ndata: {}\n\n"),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                chunk.extend_from_slice(format!("event: skipped\ndata: {{\"rows\":{lost}}}\n\n").as_bytes());
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
        Some(())
    }

    /// Sends what was written since; the ids of what was sent.
    async fn catch_up(&self, after: Place) -> Option<HashSet<String>> {
        let rows = match self.api.rows_after(after, AT_ONCE).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::debug!(reason = %error, "cannot resume a live stream");
                Vec::new()
            }
        };
        if rows.len() as i64 == AT_ONCE {
            self.send("event: skipped\ndata: {}\n\n").await?;
        }
        let mut sent = HashSet::new();
        let mut chunk = Vec::new();
        for row in rows.into_iter().filter(|row| row.place > after) {
            if self.filter.matches(&row.row) {
                chunk.extend_from_slice(&row.event);
            }
            sent.insert(row.row.id);
        }
        if !chunk.is_empty() {
            self.send(chunk).await?;
        }
        Some(sent)
    }

    async fn send(&self, chunk: impl Into<Vec<u8>>) -> Option<()> {
        self.sender.send(Bytes::from(chunk.into())).await.ok()
    }
}

/// The body of a stream.
struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
