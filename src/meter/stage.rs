//! The meter as a stage: reads the journal, counts, saves.
//!
//! # Operations
//!
//! * *Counting*: records in order, each under a short lock of its own, so that a scrape waits for one record at most.
//! * *Reset*: a metric that is asked for (see [`mod@super::reset`]) starts anew, and the request is taken away once that is
//!   saved.
//! * *Checkpoint*: at the latest [`BUSY`], or [`BUSY_BYTES`], after a record was counted; while nothing comes in, [`IDLE`] after; and at the
//!   end. Only then has the reader passed the records. A checkpoint that fails is tried again; meanwhile the journal
//!   keeps the records.
//!
//! # Recovery
//!
//! * The checkpoint says up to which record each metric has counted; the journal hands out the rest again.
//! * A checkpoint that cannot be read is set aside and counted. All metrics start anew, with a new created time, and
//!   count what the journal holds.
//! * A metric whose rule has changed starts anew from where the old one had come to. A metric that is new counts what
//!   the journal holds.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::clock::unix_nanos;
use crate::journal::{Entry, Position, ReadError, Reader, Record};
use crate::otlp::{Encoding, Signal, TraceRequest};
use crate::rules::Catalogue;
use crate::rules::matcher::{Matcher, Workspace};
use crate::telemetry::Heartbeat;

use super::checkpoint::{self, Damage};
use super::exposition::{ExpositionFormat, Rendering};
use super::meters::Meters;
use super::push;
use super::reset;
use super::resume::{Restored, restore};
use super::shared::SharedStore;
use super::store::{RecordTime, Store};

/// How long counted records wait for a checkpoint while more come in.
const BUSY: Duration = Duration::from_secs(5);

/// How long they wait while nothing comes in.
const IDLE: Duration = Duration::from_millis(250);

/// Bytes of records that wait for a checkpoint at most: the journal keeps them until then, and would come to write all over
/// the disk, or be full, when much comes in.
const BUSY_BYTES: usize = 64 << 20;

/// Checkpoints are at least this far apart, lest single requests cost a sync each.
const APART: Duration = Duration::from_secs(1);

/// A batch of this size is counted in a few milliseconds.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_RECORDS: usize = 256;

/// How long records are counted before others get the thread.
const TURN: Duration = Duration::from_millis(1);

/// Requests were decompressed once at the door, within the limit there; a lower one here would not count them.
const UNLIMITED: usize = usize::MAX / 2;

/// After the journal could not be read.
const PAUSE: Duration = Duration::from_millis(500);

/// What a meter is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterOptions {
    /// Where the checkpoint lies.
    pub directory: PathBuf,
    /// `metrics.max_series_per_metric`.
    pub max_series_per_metric: usize,
}

/// Why a meter cannot be opened, or not be reset.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The directory cannot be used.
    #[error("cannot use {} for the derived metrics (it lies in journal.directory): {source}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The checkpoint cannot be read.
    #[error("the checkpoint of the derived metrics, {} (in journal.directory), {reason}; they start anew when it is removed", checkpoint::path(directory).display())]
    Checkpoint {
        /// The directory.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no such metric.
    #[error("there is no metric {name}{}", nearest.as_ref().map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default())]
    UnknownMetric {
        /// What was asked for.
        name: String,
        /// The most similar name.
        nearest: Option<String>,
    },
}

impl MeterError {
    pub(super) fn checkpoint(directory: &Path, damage: &Damage) -> Self {
        Self::Checkpoint {
            directory: directory.to_owned(),
            reason: damage.to_string(),
        }
    }
}

/// The stage that derives metrics; see the module.
pub struct Meter {
    options: MeterOptions,
    matcher: Matcher,
    workspace: Workspace,
    reader: Reader,
    shared: Arc<Shared>,
    meters: Meters,
    /// Position of the last durable checkpoint; `None` before the first.
    saved: Option<Position>,
    saved_at: Instant,
    /// Bytes of the records since.
    unsaved_bytes: usize,
    inbox: reset::Inbox,
    /// When it was last looked whether metrics are to be reset.
    obeyed_at: Instant,
    /// Names of metrics that count from the oldest record, until it was read and can be told.
    backfilled: Vec<String>,
}

struct Shared {
    store: SharedStore,
    /// Everything before this was in the journal at the start.
    end_at_open: u64,
    caught_up: AtomicBool,
    /// Something other than a record changed the store.
    is_changed: AtomicBool,
}

/// What the scrape asks of a meter; cheap to clone. It outlives the meter: another one may take its place.
#[derive(Clone)]
pub struct MeterHandle {
    shared: Arc<RwLock<Arc<Shared>>>,
}

impl Meter {
    /// Restores what was counted and resumes the reader. `end_at_open` is where the journal ended when it was opened.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, or there is a checkpoint that is whole but cannot be read. One that is damaged is no error.
    pub fn open(
        options: MeterOptions,
        catalogue: Catalogue,
        mut reader: Reader,
        end_at_open: Position,
    ) -> Result<(Self, MeterHandle), MeterError> {
        make_directory(&options.directory)?;
        let inbox = reset::Inbox::open(&options.directory);
        let matcher = Matcher::new(&catalogue, random());
        let mut store = Store::new(&catalogue, options.max_series_per_metric);
        let meters = Meters::new(&store);
        let now = unix_nanos();
        let restored = match checkpoint::load(&options.directory) {
            Ok(Some(checkpoint)) => restore(checkpoint, &mut store, &matcher, end_at_open, now),
            Ok(None) => Restored::default(),
            Err(damage) if damage.is_curable() => return Err(MeterError::checkpoint(&options.directory, &damage)),
            Err(damage) => {
                start_anew(&options.directory, &damage, &mut store, now);
                meters.unreadable_checkpoints.increment(1);
                Restored::default()
            }
        };
        tell(&restored);
        reader.resume(restored.from);
        let shared = Arc::new(Shared {
            caught_up: AtomicBool::new(false),
            is_changed: AtomicBool::new(!restored.changed.is_empty()),
            store: SharedStore::new(store),
            end_at_open: end_at_open.next,
        });
        let meter = Self {
            options,
            matcher,
            workspace: Workspace::default(),
            reader,
            shared: Arc::clone(&shared),
            meters,
            saved: None,
            saved_at: Instant::now(),
            unsaved_bytes: 0,
            inbox,
            obeyed_at: Instant::now(),
            backfilled: restored.added,
        };
        meter.notice_progress();
        let handle = MeterHandle {
            shared: Arc::new(RwLock::new(shared)),
        };
        Ok((meter, handle))
    }

    /// Counts until `shutdown`, or until the journal is closed and counted; then saves.
    pub async fn run(mut self, shutdown: CancellationToken, heartbeat: Heartbeat) {
        self.reader.watch(heartbeat.status());
        loop {
            self.obey(&heartbeat).await;
            let patience = self.patience();
            let waiting = tokio::time::timeout(patience, self.reader.next_batch(BATCH_BYTES, BATCH_RECORDS));
            let batch = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                batch = heartbeat.while_waiting(waiting) => batch,
            };
            match batch {
                Ok(Ok(records)) => {
                    // Others want this thread too. To give way after each record would be too polite: under load the
                    // receivers have more to do in between than was counted, and the meter would fall back to reading
                    // files, which costs more than counting.
                    let mut turn = Instant::now();
                    for record in &records {
                        self.count(record);
                        if turn.elapsed() >= TURN {
                            tokio::task::yield_now().await;
                            turn = Instant::now();
                        }
                    }
                    self.notice_progress();
                }
                Ok(Err(ReadError::Closed)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the meter waits for the journal");
                    heartbeat.while_waiting(tokio::time::sleep(PAUSE)).await;
                }
                // Nothing came in: time for a checkpoint.
                Err(_) => self.save(&heartbeat).await,
            }
            if self.saved_at.elapsed() >= BUSY || self.unsaved_bytes >= BUSY_BYTES {
                self.save(&heartbeat).await;
            }
        }
        self.save(&heartbeat).await;
        heartbeat.finish();
    }

    /// How long to wait for records before saving those that were counted.
    fn patience(&self) -> Duration {
        if self.is_saved() {
            BUSY
        } else {
            IDLE.max(APART.saturating_sub(self.saved_at.elapsed()))
        }
    }

    fn is_saved(&self) -> bool {
        self.saved == Some(self.reader.position()) && !self.shared.is_changed.load(Ordering::Acquire)
    }

    fn count(&mut self, record: &Record) {
        self.tell_backfill(record);
        self.unsaved_bytes += record.body.len();
        let request = self.request(record);
        let at = RecordTime {
            sequence: record.sequence,
            received_at: record.received_at,
        };
        let mut store = self.shared.store.lock();
        match request {
            Some(request) => store.count(&self.matcher, &mut self.workspace, &request, at),
            None => store.advance(record.sequence.saturating_add(1)),
        }
    }

    /// Counts what is there, without waiting.
    #[cfg(test)]
    pub(super) fn count_available(&mut self) {
        loop {
            let records = self.reader.try_next_batch(BATCH_BYTES, 3).unwrap();
            if records.is_empty() {
                return;
            }
            records.iter().for_each(|record| self.count(record));
            self.notice_progress();
        }
    }

    /// The trace request in a record, if there is one.
    fn request(&self, record: &Record) -> Option<TraceRequest> {
        if record.signal != Signal::Traces {
            return None;
        }
        match record.decode(UNLIMITED) {
            Ok(decoded) => Some(TraceRequest::trusted(decoded)),
            Err(error) => {
                self.meters.unreadable_records.increment(1);
                tracing::error!(sequence = record.sequence, %error, "a record cannot be counted");
                None
            }
        }
    }

    /// To be called when a whole batch is counted: what lies before the reader counts as done from then on.
    fn notice_progress(&self) {
        let next = self.reader.position().next;
        let mut store = self.shared.store.lock();
        // What lies between the last record and here is gone, or was damaged and stepped over.
        store.advance(next);
        self.meters.publish(&store);
        if next >= self.shared.end_at_open {
            self.shared.caught_up.store(true, Ordering::Release);
        }
    }

    /// Says how far back the first record of a metric that is new lies.
    fn tell_backfill(&mut self, record: &Record) {
        if !self.backfilled.is_empty() {
            let metrics = std::mem::take(&mut self.backfilled).join(", ");
            let seconds = unix_nanos().saturating_sub(record.received_at) / 1_000_000_000;
            tracing::info!(
                metrics,
                seconds,
                "new metrics count what the journal holds, so many seconds back"
            );
        }
    }

    /// Lets the metrics start anew for which that was asked.
    async fn obey(&mut self, heartbeat: &Heartbeat) {
        if self.obeyed_at.elapsed() < APART {
            return;
        }
        self.obeyed_at = Instant::now();
        let names = self.inbox.requested();
        if names.is_empty() {
            return;
        }
        for name in &names {
            match self.reset(name) {
                Ok(()) => tracing::info!(metric = name, "the metric starts anew, as it was asked for"),
                Err(error) => tracing::warn!(%error, "cannot reset a metric"),
            }
        }
        self.save(heartbeat).await;
        if self.is_saved() {
            self.inbox.done(names);
        }
    }

    /// Lets a metric start anew.
    pub(super) fn reset(&self, name: &str) -> Result<(), MeterError> {
        let mut store = self.shared.store.lock();
        match store.families.iter_mut().find(|family| family.description.name == name) {
            Some(family) => family.reset(unix_nanos()),
            None => {
                let known = store.families.iter().map(|family| family.description.name.as_str());
                return Err(reset::unknown_metric(name, known));
            }
        }
        self.shared.is_changed.store(true, Ordering::Release);
        Ok(())
    }

    /// Saves what was counted, if anything was; then the reader has passed it.
    pub(super) async fn save(&mut self, heartbeat: &Heartbeat) {
        if self.is_saved() {
            return;
        }
        let position = self.reader.position();
        self.shared.is_changed.store(false, Ordering::Release);
        let families = self.shared.store.lock().snapshot(true);
        let directory = self.options.directory.clone();
        let started = Instant::now();
        let saving = tokio::task::spawn_blocking(move || {
            let bytes = checkpoint::encode(position.journal, unix_nanos(), &families);
            checkpoint::save(&directory, &bytes)
        });
        // No beat meanwhile: a disk that does not answer is no progress.
        heartbeat.beat();
        let outcome = saving.await;
        heartbeat.beat();
        self.saved_at = Instant::now();
        self.unsaved_bytes = 0;
        // A checkpoint that panics would do so again: the stage must not go on as if it made progress.
        let outcome = outcome.unwrap_or_else(|panic| match panic.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(std::io::Error::other(cancelled)),
        });
        match outcome {
            Ok(()) => {
                self.reader.passed(position);
                self.saved = Some(position);
                self.meters.checkpoints.increment(1);
                self.meters.checkpoint_seconds.record(started.elapsed());
            }
            Err(error) => {
                self.shared.is_changed.store(true, Ordering::Release);
                self.meters.checkpoint_failures.increment(1);
                let directory = self.options.directory.display();
                tracing::warn!(%error, %directory, "the derived metrics cannot be saved; the journal keeps what they need");
            }
        }
    }
}

impl MeterHandle {
    /// Shows what `other` does from now on, in every clone: its meter takes the place of the present one.
    pub fn replace(&self, other: &MeterHandle) {
        let shared = other.shared();
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = shared;
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether everything that was in the journal at the start has been counted. Before that, a scrape would show series
    /// that are behind what was scraped earlier.
    pub fn is_caught_up(&self) -> bool {
        self.shared().caught_up.load(Ordering::Acquire)
    }

    /// The answer to a scrape, with the values of now: the derived metrics, then `own`, which is the program's own metrics in the
    /// Prometheus format 0.0.4.
    pub fn rendering(&self, format: ExpositionFormat, own: String) -> Rendering {
        let families = self
            .shared()
            .store
            .lock()
            .snapshot(format == ExpositionFormat::OpenMetrics);
        Rendering::new(families, Some(own), format)
    }

    /// The derived metrics as OTLP requests for the journal; see [`super::push`]. `instance` tells this program from
    /// others that send to the same backend.
    pub fn otlp(&self, instance: &str) -> Vec<Entry> {
        let now = unix_nanos();
        let families = self.shared().store.lock().snapshot(true);
        let requests = push::encode(&families, instance, now).into_iter();
        requests
            .map(|request| {
                let body = Bytes::from(request.body);
                Entry {
                    signal: Signal::Metrics,
                    encoding: Encoding::Identity,
                    received_at: now,
                    items: request.points,
                    rejected: 0,
                    digest: None,
                    decoded: body.clone(),
                    noted: None,
                    body,
                }
            })
            .collect()
    }
}

/// A new directory must survive a power failure too, or the first checkpoint would not.
fn make_directory(directory: &Path) -> Result<(), MeterError> {
    let make = || {
        std::fs::create_dir_all(directory)?;
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    make().map_err(|source| MeterError::Directory {
        directory: directory.to_owned(),
        source,
    })
}

fn start_anew(directory: &Path, damage: &Damage, store: &mut Store, now: u64) {
    store.families.iter_mut().for_each(|family| family.reset(now));
    let aside = checkpoint::set_aside(directory);
    let aside = aside.map_or_else(|error| error.to_string(), |path| path.display().to_string());
    let directory = directory.display();
    tracing::error!(%directory, aside, "the checkpoint of the derived metrics {damage}: all of them start anew");
}

fn tell(restored: &Restored) {
    if restored.other_journal {
        tracing::warn!("the derived metrics were saved beside another journal: all records of this one are counted");
    }
    if restored.beyond_end {
        tracing::warn!("the derived metrics count more than the journal holds: they go on with new records");
    }
    if !restored.changed.is_empty() {
        let metrics = restored.changed.join(", ");
        tracing::warn!(metrics, "metrics whose rules have changed start anew");
    }
}

/// A seed for hashes. Without randomness the hashes are still right, only predictable.
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}
