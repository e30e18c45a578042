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
//! [`CLIENTS`] clients; per client [`CHUNKS`] texts waiting to be sent; [`BACKLOG`] rows shared by all, of
//! [`BACKLOG_BYTES`]; [`AT_ONCE`] rows of [`AT_ONCE_BYTES`] read at once, of which the oldest are left out when more were
//! written. What a client asks for that comes back is read from a seat among the answers ([`super::answer::Seats`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use tokio::sync::{broadcast, mpsc, watch};

use super::answer::TAKEN_WITHIN;
use super::database::{Dialect, Kind};
use super::filter::{FILTERS, Filter, RowsShown};
use super::row::{Execution, KINDS};
use super::{Asked, QueryApi, QueryError};
use crate::listen::{Body, BoxError};

const CLIENTS: usize = 256;
const CHUNKS: usize = 2;
const BACKLOG: usize = 4096;
const BACKLOG_BYTES: usize = 8 << 20;
const AT_ONCE: i64 = 1000;
const AT_ONCE_BYTES: usize = 4 << 20;

/// Bytes of a text, beside one more row.
const CHUNK: usize = 16 << 10;

/// The most memory that live streams take, in bytes: of each client also a text in the making, one on its way, and what it
/// remembers of rows that it was sent before their turn.
pub(super) const MEMORY: usize =
    BACKLOG_BYTES + AT_ONCE_BYTES + CLIENTS * ((CHUNKS + 2) * CHUNK + AT_ONCE as usize * 32);

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

impl LiveRow {
    /// Bytes of memory: the event says what the row holds once more.
    fn held(&self) -> usize {
        size_of::<LiveRow>() + 2 * self.event.len()
    }
}

/// A row until it is given up, because there is too much that some client did not take.
type Kept = RwLock<Option<LiveRow>>;

/// What the poller tells the clients.
#[derive(Clone)]
enum News {
    Row(Arc<Kept>),
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
        let mut backlog = Backlog::default();
        let mut place: Option<Place> = None;
        loop {
            let news = match place {
                None => self.start_place().await.map(|(last, past)| {
                    // From now on: what will be read again was there before.
                    past.iter()
                        .filter(|row| row.place <= last)
                        .for_each(|row| _ = seen.is_new(row));
                    place = Some(last);
                    self.inner.live.following.send_replace(true);
                    Latest::default()
                }),
                Some(after) => self.rows_after(after).await,
            };
            match news {
                Ok(Latest { rows, are_all }) => {
                    let mut fresh = false;
                    for row in rows {
                        place = place.max(Some(row.place));
                        if seen.is_new(&row) {
                            fresh = true;
                            drop(self.inner.live.news.send(News::Row(backlog.keep(row))));
                        }
                    }
                    if !are_all && fresh {
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
        let mut last = Place::default();
        self.database()
            .each(
                super::database::Sql::new(self.dialect(), sql),
                &[Kind::Integer],
                |row| {
                    last = Place(row[0].integer().unwrap_or_default());
                    Ok(())
                },
            )
            .await?;
        Ok(last)
    }

    /// The last place, and the rows about it that will be read again.
    async fn start_place(&self) -> Result<(Place, Vec<LiveRow>), QueryError> {
        let last = self.last_place().await?;
        Ok((last, self.rows_after(last).await?.rows))
    }

    /// The latest rows after a place; in PostgreSQL also those a little before it.
    async fn rows_after(&self, after: Place) -> Result<Latest, QueryError> {
        let (place, from) = match self.dialect() {
            Dialect::Sqlite => ("t.rowid", after.0),
            Dialect::Postgres => ("e.received_at_ns", after.0.saturating_sub(OVERLAP)),
        };
        let everything = Filter::everything(RowsShown::All, None);
        let mut sql = self.select(&format!("{}, {place}", Execution::columns(self.dialect())), &everything);
        sql.push(&format!(" AND {place} > ")).integer(from);
        sql.push(&format!(" ORDER BY {place} DESC, t.id DESC LIMIT "))
            .integer(AT_ONCE);
        let kinds: Vec<Kind> = KINDS.into_iter().chain([Kind::Integer]).collect();
        let mut rows = Vec::new();
        let mut held = 0;
        let signoz_url = self.signoz_url();
        self.database()
            .each_until(sql, &kinds, |mut cells| {
                let place = cells.pop().and_then(|cell| cell.integer()).map(Place);
                if let (Some(place), Some(row)) = (place, Execution::read(cells)) {
                    let event = event(place, &row, signoz_url);
                    let row = LiveRow { place, row, event };
                    held += row.held();
                    rows.push(row);
                }
                Ok(if held < AT_ONCE_BYTES {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            })
            .await?;
        rows.reverse();
        let are_all = held < AT_ONCE_BYTES && (rows.len() as i64) < AT_ONCE;
        Ok(Latest { rows, are_all })
    }
}

/// The latest rows, oldest first.
#[derive(Default)]
struct Latest {
    rows: Vec<LiveRow>,
    /// There were no more of them.
    are_all: bool,
}

/// Rows that some client has yet to take, oldest first, with what they hold.
#[derive(Default)]
struct Backlog {
    rows: VecDeque<(Weak<Kept>, usize)>,
    held: usize,
}

impl Backlog {
    /// Keeps a row, and gives up the oldest ones where these were too much: they are of clients that do not keep up.
    fn keep(&mut self, row: LiveRow) -> Arc<Kept> {
        let held = row.held();
        let row = Arc::new(RwLock::new(Some(row)));
        self.held += held;
        self.rows.push_back((Arc::downgrade(&row), held));
        while let Some((oldest, held)) = self.rows.front()
            && (self.held > BACKLOG_BYTES || oldest.strong_count() == 0)
        {
            if let Some(oldest) = oldest.upgrade() {
                oldest.write().unwrap_or_else(PoisonError::into_inner).take();
            }
            self.held -= held;
            self.rows.pop_front();
        }
        row
    }
}

/// Tells a client that there were rows which it was not sent.
const SKIPPED: &[u8] = b"event: skipped\ndata: {}\n\n";

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
        let mut sent = Sent::default();
        if let Some(after) = after {
            self.catch_up(after, &mut sent).await?;
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
                None if chunk.ends_with(SKIPPED) => {}
                None => chunk.extend_from_slice(SKIPPED),
            },
            Ok(News::Skipped) => chunk.extend_from_slice(SKIPPED),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                chunk.extend_from_slice(format!("event: skipped\ndata: {{\"rows\":{lost}}}\n\n").as_bytes());
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
        Some(())
    }

    /// Sends what was written since, and notes it in `sent`.
    async fn catch_up(&self, after: Place, sent: &mut Sent) -> Option<()> {
        // Held until the rows are taken: they are not among those that all clients share.
        let seat = self.api.inner.seats.take().await;
        let latest = match &seat {
            Ok(_) => self.api.rows_after(after).await,
            Err(_) => Ok(Latest::default()),
        };
        let Latest { rows, are_all } = latest.unwrap_or_else(|error| {
            tracing::debug!(reason = %error, "cannot resume a live stream");
            Latest {
                are_all: true,
                ..Latest::default()
            }
        });
        let mut chunk = Vec::new();
        if !are_all {
            chunk.extend_from_slice(SKIPPED);
        }
        for row in rows.into_iter().filter(|row| row.place > after) {
            if self.filter.matches(&row.row) {
                chunk.extend_from_slice(&row.event);
            }
            sent.note(&row.row.id);
            if chunk.len() >= CHUNK {
                self.send_soon(std::mem::take(&mut chunk)).await?;
            }
        }
        if !chunk.is_empty() {
            self.send_soon(chunk).await?;
        }
        Some(())
    }

    /// Sends to a client that holds up others until it has taken it.
    async fn send_soon(&self, chunk: Vec<u8>) -> Option<()> {
        self.sender.send_timeout(chunk.into(), TAKEN_WITHIN).await.ok()
    }

    async fn send(&self, chunk: impl Into<Vec<u8>>) -> Option<()> {
        self.sender.send(Bytes::from(chunk.into())).await.ok()
    }
}

/// Rows that were sent before their turn, by digests of their ids.
#[derive(Default)]
struct Sent {
    rows: HashSet<u64>,
    digest: RandomState,
}

impl Sent {
    fn note(&mut self, id: &str) {
        self.rows.insert(self.digest.hash_one(id));
    }

    /// Whether the row was sent; asked once.
    fn was(&mut self, id: &str) -> bool {
        !self.rows.is_empty() && self.rows.remove(&self.digest.hash_one(id))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::row::Outcome;

    fn row(place: i64, message: usize) -> LiveRow {
        let row = Execution {
            id: format!("{place:032x}-{place:016x}"),
            code_agent_id: None,
            workflow_execution_id: None,
            node_id: None,
            runtime: String::new(),
            language: String::new(),
            duration_ms: None,
            memory_mb: None,
            exit_code: None,
            success: false,
            error_message: Some("e".repeat(message)),
            tokens_used: None,
            validation_passed: None,
            organization_id: None,
            workspace_id: None,
            user_id: None,
            created_at: "2026-01-31 12:00:00.000000".to_owned(),
            outcome: Outcome::Error,
            cost_usd: None,
        };
        let place = Place(place);
        let event = event(place, &row, None);
        LiveRow { place, row, event }
    }

    #[test]
    fn of_rows_that_some_client_does_not_take_the_oldest_are_given_up() {
        let mut backlog = Backlog::default();
        let untaken: Vec<Arc<Kept>> = (0..2000).map(|place| backlog.keep(row(place, 8000))).collect();
        let is_kept: Vec<bool> = untaken.iter().map(|row| row.read().unwrap().is_some()).collect();
        let first = is_kept.iter().position(|is_kept| *is_kept).unwrap();
        assert!(first > 0 && is_kept[first..].iter().all(|is_kept| *is_kept));
        let held = |row: &Arc<Kept>| row.read().unwrap().as_ref().map_or(0, LiveRow::held);
        let sum: usize = untaken.iter().map(held).sum();
        assert!(sum <= BACKLOG_BYTES && sum > BACKLOG_BYTES / 2, "{sum}");
        // What was taken counts no longer.
        drop(untaken);
        backlog.keep(row(2000, 10));
        assert_eq!(backlog.rows.len(), 1);
        assert!(backlog.held < 2000);
    }

    #[test]
    fn a_row_that_was_sent_before_its_turn_is_known_once() {
        let mut sent = Sent::default();
        assert!(!sent.was("a"));
        sent.note("a");
        assert!(sent.was("a"));
        assert!(!sent.was("a"));
    }
}
