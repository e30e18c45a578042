//! `/code-exec-logs/live`: rows as they are written, as server-sent events.
//!
//! One task asks the database what is new, however many clients there are, and none without clients. Each client has a
//! task that filters and writes. A client that does not keep up loses rows and is told so; it holds up nobody.
//!
//! # Order
//!
//! In SQLite a row's place is its rowid: the order in which rows were written. When the last rows are deleted their places
//! are used again, so each time the newest row is looked for where it was, and the rows behind it are looked through anew
//! where it is not. In PostgreSQL a place is the number that the row took when it was written (`written`): transactions take
//! them side by side, and some never commit. Where numbers are missing, what follows them is read again each time until they
//! come, or until every transaction has ended that may have taken one, which their locks on the table tell; of one that takes
//! more than a minute it is said that rows may be left out. See [`following`].
//!
//! Rows that were shown are remembered by their ids, so that those that are taken away and written again come once.
//!
//! What is read again are keys alone, so that it costs little however many rows there are; rows are read once, by their keys.
//!
//! # Bounds
//!
//! [`CLIENTS`] clients, each with a filter of [`FILTER`] bytes; per client [`CHUNKS`] texts waiting to be sent; [`BACKLOG`]
//! rows shared by all, of [`BACKLOG_BYTES`]; [`KEYS`] keys; [`REMEMBERED`] rows that were shown; of the rows
//! [`following::AT_ONCE`] in a turn, [`ROWS`] of [`ROWS_BYTES`] of them at once. When more were written, the oldest are left
//! out and counted. What a client asks for that comes back is read from a seat among the answers
//! ([`super::answer::Seats`]), which it leaves while a text is sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::filter::{FILTERS, Filter};
use super::{Asked, QueryApi, QueryError};
use crate::listen::Body;

mod backlog;
mod client;
mod following;
mod mark;
mod reading;
#[cfg(test)]
pub(super) mod tests;

use backlog::{BACKLOG_BYTES, Backlog, Kept};
use client::{CATCH_UP, Client, Events};
use following::{Following, KEY_BYTES, KEYS, KEYS_BEFORE, LeftOut, Next, Order, Place, REMEMBERED, REMEMBERED_BYTES};
use mark::Mark;
use reading::{Found, ROWS, ROWS_BYTES};

const CLIENTS: usize = 256;
const CHUNKS: usize = 2;
const BACKLOG: usize = 4096;

/// Bytes of a text, beside one more row.
const CHUNK: usize = 16 << 10;

/// Bytes of a filter.
const FILTER: usize = 16 << 10;

/// The most memory that live streams take, in bytes: of each client also a text in the making, one on its way, and what it
/// remembers of rows that it was sent before their turn.
pub(super) const MEMORY: usize = BACKLOG_BYTES
    + ROWS_BYTES
    + KEYS * KEY_BYTES
    + REMEMBERED * REMEMBERED_BYTES
    + CLIENTS * ((CHUNKS + 2) * CHUNK + CATCH_UP * 32 + FILTER);

/// How often is asked for new rows.
const POLL: Duration = Duration::from_millis(500);

/// How long the database is left alone between two turns, however long one takes.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a silent stream shows that it is alive.
const PING: Duration = Duration::from_secs(15);

/// How long nothing can be read before the log says so.
const TROUBLE: Duration = Duration::from_secs(10);

/// What the poller tells the clients.
#[derive(Clone)]
enum News {
    Row(Arc<Kept>),
    /// So many rows were written and are not shown.
    Skipped(usize),
    /// It is not known whether some were.
    MaybeSkipped,
}

/// What the clients share.
pub(super) struct Live {
    news: broadcast::Sender<News>,
    clients: Arc<AtomicUsize>,
    polling: Mutex<bool>,
    /// Up to where the poller has looked through the rows, once it knows where it is: from then on it misses nothing.
    following: watch::Sender<Option<Place>>,
}

impl Default for Live {
    fn default() -> Live {
        Live {
            news: broadcast::Sender::new(BACKLOG),
            clients: Arc::default(),
            polling: Mutex::default(),
            following: watch::Sender::new(None),
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
        let parameter = parameters
            .one("lastEventId")?
            .map(|id| Mark::parse(&id).ok_or_else(|| QueryError::invalid("lastEventId", "is not the id of an event")))
            .transpose()?;
        parameters.finish(&format!("{FILTERS}, lastEventId"))?;
        let header = headers
            .get("last-event-id")
            .and_then(|value| Mark::parse(value.to_str().ok()?));
        let after = header.or(parameter);
        if held(&filter) > FILTER {
            return Err(QueryError::Invalid(format!(
                "a live stream takes filters of {} KiB at most, as they are in memory: ask for fewer values",
                FILTER >> 10
            )));
        }
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
            live.following.send_replace(None);
            return true;
        }
        false
    }

    async fn poll(self) {
        let mut following: Option<Following> = None;
        let mut backlog = Backlog::default();
        let mut trouble = Trouble::default();
        loop {
            let due = Instant::now() + POLL;
            let turn = match &mut following {
                Some(following) => self.tell_news(following, &mut backlog).await,
                None => self.begin().await.map(|from_now_on| {
                    let done = following.insert(from_now_on).done;
                    self.inner.live.following.send_replace(Some(done));
                }),
            };
            trouble.note(Instant::now(), turn.err());
            tokio::select! {
                () = tokio::time::sleep_until(due.max(Instant::now() + PAUSE)) => {}
                () = self.inner.shutdown.cancelled() => {}
            }
            if self.stop_polling() {
                return;
            }
        }
    }

    /// From now on: what is there was there before.
    async fn begin(&self) -> Result<Following, QueryError> {
        let first = match self.order() {
            Order::Committed => Place(i64::MIN),
            // What was there before rows were numbered has none.
            Order::Taken => Place(0),
        };
        let keys = self.keys_after(first, KEYS_BEFORE).await?;
        Ok(Following::new(self.order(), &keys, KEYS_BEFORE, REMEMBERED))
    }

    /// Tells the clients which rows are new.
    async fn tell_news(&self, following: &mut Following, backlog: &mut Backlog) -> Result<(), QueryError> {
        let tell = |news| drop(self.inner.live.news.send(news));
        let tell_skipped = |left_out: LeftOut| {
            if left_out.rows > 0 {
                tell(News::Skipped(left_out.rows));
            }
            if left_out.maybe_more {
                tell(News::MaybeSkipped);
            }
        };
        if following.has_gaps() {
            // Before the keys: what has ended now is among them.
            let writers = self.writers().await?;
            following.settle(Instant::now(), &writers);
        }
        let mut keys = self.keys_after(following.read_after(), KEYS).await?;
        if keys.is_empty() && self.order() == Order::Taken {
            // The numbers began anew, with the table perhaps: what is written now is far behind.
            let last = self.last_place().await?;
            if last > Place(0) && last < following.done {
                *following = self.begin().await?;
                tell(News::MaybeSkipped);
            }
        }
        let left_out = match following.has_moved(&mut keys) {
            Some(after) => {
                let keys = self.keys_after(after, KEYS).await?;
                let are_more = keys.len() == KEYS;
                let last = match keys.first() {
                    Some(newest) => newest.place,
                    // None at all: what is written now comes with the next turn.
                    None if after == Place(i64::MIN) => Place(0),
                    None => self.last_place().await?,
                };
                let (unknown, is_lost) = following.go_back(keys, last);
                let mut left_out = following.take(Instant::now(), unknown, None);
                left_out.maybe_more |= is_lost || are_more;
                left_out
            }
            None => {
                let there = match keys.last() {
                    Some(oldest) if keys.len() == KEYS => Some(self.count_keys(following.done, oldest.place).await?),
                    _ => None,
                };
                following.take(Instant::now(), keys, there)
            }
        };
        tell_skipped(left_out);
        self.inner.live.following.send_replace(Some(following.done));
        while !following.waiting.is_empty() {
            let next: Vec<Next> = following.waiting.iter().take(ROWS).cloned().collect();
            let Found { rows, left_out } = self.rows_of(&next).await?;
            following.waiting.drain(..next.len());
            rows.into_iter().for_each(|row| tell(News::Row(backlog.keep(row))));
            if left_out > 0 {
                tell(News::Skipped(left_out));
            }
        }
        Ok(())
    }
}

/// How long nothing could be read. The log says it once: requests meanwhile say why, but who follows hears nothing.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    is_told: bool,
}

impl Trouble {
    /// Takes note of how a turn ended; whether the log said something.
    fn note(&mut self, now: Instant, error: Option<QueryError>) -> bool {
        let Some(error) = error else {
            let was_told = std::mem::take(self).is_told;
            if was_told {
                tracing::info!("the live streams go on");
            }
            return was_told;
        };
        let since = *self.since.get_or_insert(now);
        if self.is_told || now.duration_since(since) < TROUBLE {
            tracing::debug!(reason = %error, "cannot look for new rows");
            return false;
        }
        self.is_told = true;
        tracing::warn!(reason = %error, "the live streams stand still: new rows cannot be read from the database");
        true
    }
}

/// Bytes of memory that a filter holds.
fn held(filter: &Filter) -> usize {
    // A text takes 16 bytes at least.
    let text = |text: &String| size_of::<String>() + text.capacity().max(16);
    let texts = |texts: &Vec<String>| {
        let unused = texts.capacity() - texts.len();
        texts.iter().map(text).sum::<usize>() + unused * size_of::<String>()
    };
    let single = [&filter.from, &filter.to, &filter.text, &filter.scope];
    let of_columns = filter.texts.iter();
    size_of::<Filter>()
        + single.into_iter().flatten().map(text).sum::<usize>()
        + of_columns
            .map(|(column, values)| size_of_val(column) + size_of::<Vec<String>>() + texts(values))
            .sum::<usize>()
        + texts(&filter.traces)
        + filter.exit_codes.capacity() * size_of::<i64>()
        + filter.outcomes.capacity()
}
