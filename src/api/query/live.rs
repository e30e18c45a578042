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
//! What is read again are keys alone, so that it costs little however many rows a few seconds have; rows are read once, by
//! their keys.
//!
//! # Bounds
//!
//! [`CLIENTS`] clients; per client [`CHUNKS`] texts waiting to be sent; [`BACKLOG`] rows shared by all, of
//! [`BACKLOG_BYTES`]; [`KEYS`] keys; of the rows [`following::AT_ONCE`] in a turn, [`ROWS`] of [`ROWS_BYTES`] of them at
//! once. When more were written, the oldest are left out and counted. What a client asks for that comes back is read from a
//! seat among the answers ([`super::answer::Seats`]).

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
use tokio::time::Instant;

use super::answer::TAKEN_WITHIN;
use super::database::{Cell, Dialect, Kind, Sql};
use super::filter::{FILTERS, Filter, RowsShown};
use super::row::{Execution, KINDS};
use super::{Asked, QueryApi, QueryError};
use crate::listen::{Body, BoxError};

mod following;
#[cfg(test)]
mod tests;

use following::{Following, KEY_BYTES, KEYS, Key, Place};

const CLIENTS: usize = 256;
const CHUNKS: usize = 2;
const BACKLOG: usize = 4096;
const BACKLOG_BYTES: usize = 8 << 20;

/// Rows that are read by one statement, and bytes of them.
const ROWS: usize = 500;
const ROWS_BYTES: usize = 4 << 20;

/// The newest rows that a client gets that was away.
const CATCH_UP: usize = 1_000;

/// Bytes of a text, beside one more row.
const CHUNK: usize = 16 << 10;

/// The most memory that live streams take, in bytes: of each client also a text in the making, one on its way, and what it
/// remembers of rows that it was sent before their turn.
pub(super) const MEMORY: usize =
    BACKLOG_BYTES + ROWS_BYTES + KEYS * KEY_BYTES + CLIENTS * ((CHUNKS + 2) * CHUNK + CATCH_UP * 32);

/// How often is asked for new rows.
const POLL: Duration = Duration::from_millis(500);

/// How long the database is left alone between two turns, however long one takes.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a silent stream shows that it is alive.
const PING: Duration = Duration::from_secs(15);

/// How much of the past is read again in PostgreSQL, in nanoseconds.
const OVERLAP: i64 = 3_000_000_000;

/// When it is not known how many rows are not shown, or not to be told.
const SKIPPED: &str = "event: skipped\ndata: {}\n\n";

/// A row with its event, made once for all clients.
struct LiveRow {
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
    /// So many rows were written and are not shown.
    Skipped(usize),
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
        let mut following: Option<Following> = None;
        let mut backlog = Backlog::default();
        loop {
            let due = Instant::now() + POLL;
            let turn = match &mut following {
                Some(following) => self.tell_news(following, &mut backlog).await,
                None => self.begin().await.map(|from_now_on| {
                    following = Some(from_now_on);
                    self.inner.live.following.send_replace(true);
                }),
            };
            // The next attempt may do; requests meanwhile say why.
            if let Err(error) = turn {
                tracing::debug!(reason = %error, "cannot look for new rows");
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.max(Instant::now() + PAUSE)) => {}
                () = self.inner.shutdown.cancelled() => {}
            }
            if self.stop_polling() {
                return;
            }
        }
    }

    /// From now on: what will be read again was there before.
    async fn begin(&self) -> Result<Following, QueryError> {
        let overlap = match self.dialect() {
            Dialect::Sqlite => 0,
            Dialect::Postgres => OVERLAP,
        };
        let mut following = Following::new(self.last_place().await?, overlap);
        let keys = self.keys_after(following.done, KEYS).await?;
        following.has_seen(keys);
        Ok(following)
    }

    /// Tells the clients which rows are new.
    async fn tell_news(&self, following: &mut Following, backlog: &mut Backlog) -> Result<(), QueryError> {
        let tell = |news| drop(self.inner.live.news.send(news));
        let keys = self.keys_after(following.done, KEYS).await?;
        let there = match keys.last() {
            Some(oldest) if keys.len() == KEYS => Some(self.count_keys(following.done, oldest.place).await?),
            _ => None,
        };
        let left_out = following.take(keys, there);
        if left_out > 0 {
            tell(News::Skipped(left_out));
        }
        while !following.waiting.is_empty() {
            let next: Vec<Key> = following.waiting.iter().take(ROWS).cloned().collect();
            let Found { rows, left_out } = self.rows_of(&next).await?;
            following.waiting.drain(..next.len());
            rows.into_iter().for_each(|row| tell(News::Row(backlog.keep(row))));
            if left_out > 0 {
                tell(News::Skipped(left_out));
            }
        }
        Ok(())
    }

    async fn last_place(&self) -> Result<Place, QueryError> {
        let sql = match self.dialect() {
            Dialect::Sqlite => format!("SELECT coalesce(max(rowid), 0) FROM {}", self.table()),
            Dialect::Postgres => format!("SELECT coalesce(max(received_at_ns), 0) FROM {}", self.beside()),
        };
        self.database().number(Sql::new(self.dialect(), sql)).await.map(Place)
    }

    /// Where the places of the rows are: the columns of id and place, and the rest of a query up to a condition on them.
    fn places(&self) -> (&'static str, String) {
        match self.dialect() {
            Dialect::Sqlite => ("rowid", format!("FROM {} WHERE", self.table())),
            // An execution that took over the row of its runtime has none of its own.
            Dialect::Postgres => (
                "received_at_ns",
                format!("FROM {} WHERE (row_id IS NULL OR row_id = id) AND", self.beside()),
            ),
        }
    }

    /// The newest keys after a place, newest first.
    async fn keys_after(&self, after: Place, limit: usize) -> Result<Vec<Key>, QueryError> {
        let (place, from) = self.places();
        let mut sql = Sql::new(self.dialect(), format!("SELECT id, {place} {from} {place} > "));
        sql.integer(after.0);
        sql.push(&format!(" ORDER BY {place} DESC, id DESC LIMIT "))
            .integer(limit as i64);
        let key = |mut cells: Vec<Cell>| {
            let place = Place(cells.pop()?.integer()?);
            let id = cells.pop()?.into_text()?;
            Some(Key { place, id })
        };
        let mut keys = Vec::new();
        let take = |cells| {
            keys.extend(key(cells));
            Ok(())
        };
        self.database().each(sql, &[Kind::Text, Kind::Integer], take).await?;
        Ok(keys)
    }

    /// How many rows there are after a place, up to and with another.
    async fn count_keys(&self, after: Place, last: Place) -> Result<usize, QueryError> {
        let (place, from) = self.places();
        let mut sql = Sql::new(self.dialect(), format!("SELECT count(*) {from} {place} > "));
        sql.integer(after.0);
        sql.push(&format!(" AND {place} <= ")).integer(last.0);
        let count = self.database().number(sql).await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// The rows that have these keys, in their order; those that are gone are not among them.
    async fn rows_of(&self, keys: &[Key]) -> Result<Found, QueryError> {
        let everything = Filter::everything(RowsShown::All, None);
        let mut sql = self.select(&Execution::columns(self.dialect()), &everything);
        let ids: Vec<String> = keys.iter().map(|key| key.id.clone()).collect();
        sql.push(" AND t.id IN ").texts(&ids);
        let places: HashMap<&str, Place> = keys.iter().map(|key| (&key.id[..], key.place)).collect();
        let mut rows: HashMap<String, LiveRow> = HashMap::new();
        let (mut held, signoz_url) = (0, self.signoz_url());
        let take = |cells| {
            if let Some(row) = Execution::read(cells)
                && let Some(place) = places.get(&row.id[..])
            {
                let event = event(*place, &row, signoz_url);
                let row = LiveRow { row, event };
                held += row.held();
                rows.insert(row.row.id.clone(), row);
            }
            Ok(match held < ROWS_BYTES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        };
        self.database().each_until(sql, &KINDS, take).await?;
        let left_out = match held < ROWS_BYTES {
            true => 0,
            false => keys.len() - rows.len(),
        };
        let rows = keys.iter().filter_map(|key| rows.remove(&key.id)).collect();
        Ok(Found { rows, left_out })
    }
}

/// Rows that were looked for by their keys.
struct Found {
    rows: Vec<LiveRow>,
    /// How many were not read, because those that were are large.
    left_out: usize,
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

fn event(place: Place, row: &Execution, signoz_url: Option<&str>) -> Bytes {
    Bytes::from(format!(
        "id: {}\nevent: row\ndata: {}\n\n",
        place.0,
        row.to_full_json(signoz_url)
    ))
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
                None if chunk.ends_with(SKIPPED.as_bytes()) => {}
                None => chunk.extend_from_slice(SKIPPED.as_bytes()),
            },
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
    async fn catch_up(&self, after: Place, sent: &mut Sent) -> Option<()> {
        // Held until the rows are taken: they are not among those that all clients share.
        let _seat = match self.api.inner.seats.take().await {
            Ok(seat) => seat,
            Err(error) => return self.cannot_resume(&error).await,
        };
        let mut keys = match self.api.keys_after(after, CATCH_UP + 1).await {
            Ok(keys) => keys,
            Err(error) => return self.cannot_resume(&error).await,
        };
        if keys.len() > CATCH_UP {
            keys.truncate(CATCH_UP);
            // To count the others might mean to read the whole table.
            self.send_soon(SKIPPED).await?;
        }
        keys.reverse();
        for keys in keys.chunks(ROWS) {
            let Found { rows, left_out } = match self.api.rows_of(keys).await {
                Ok(found) => found,
                Err(error) => return self.cannot_resume(&error).await,
            };
            let mut chunk = Vec::new();
            for row in rows {
                if self.filter.matches(&row.row) {
                    chunk.extend_from_slice(&row.event);
                }
                sent.note(&row.row.id);
                if chunk.len() >= CHUNK {
                    self.send_soon(std::mem::take(&mut chunk)).await?;
                }
            }
            if left_out > 0 {
                chunk.extend_from_slice(SKIPPED.as_bytes());
            }
            if !chunk.is_empty() {
                self.send_soon(chunk).await?;
            }
        }
        Some(())
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
