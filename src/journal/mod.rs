//! The durable journal between the receiver and the readers.
//!
//! A request that was appended and answered is on the disk, and stays there until every reader has durably passed it.
//! Each reader follows at its own pace, from a position of its own.
//!
//! # Invariants
//!
//! 1. An append is answered with success only when its record, and every record before it, is on the disk (with
//!    [`Fsync::Interval`]: is written). Readers never see a record that is not on the disk, in either mode.
//! 2. A record that was refused is never read, even if it reached the disk: the next segment says what was valid
//!    before it.
//! 3. Sequences increase and are never used twice, not even after a crash: each start of the program begins beyond
//!    every sequence that an earlier start can have used.
//! 4. A file that is written over cannot bring old records back: checksums start from a value that depends on the
//!    life of the segment, the start of the program and a secret key.
//! 5. A failed sync is not tried again, and a segment in which a write or a sync failed is not appended to again.
//! 6. A segment is entirely durable before the next one begins. Only the last segment can be torn.
//! 7. A segment is written over or removed only when every reader has passed it; one that has not resumed yet has
//!    passed nothing.
//! 8. All files together stay below `journal.max_size`, and leave the last bytes of the disk alone.
//! 9. A request that is sent again within `journal.dedup.max_age` is answered as the first one was, and not before
//!    it.
//!
//! # Format
//!
//! A directory with `journal.id` (`identity.rs`), `lock`, segment files `00000000.seg` (`segment.rs`) that hold
//! records (`record.rs`), and at times `dedup.snapshot` (`dedup.rs`). Byte by byte: `docs/journal-format.md`.
//!
//! # Operations
//!
//! * *Append* (`core.rs`): a sequence and a place are reserved under a short lock; the calling thread computes the
//!   checksums and leaves the record to the sync thread. When the segment is full the request waits in memory while
//!   that changes segments; the caller never waits for either.
//! * *Group commit* (`sync.rs`): one thread writes whatever there is, past the page cache (`direct.rs`), syncs, moves the
//!   watermark, then answers. With [`Fsync::Interval`], and where the file system knows no direct I/O, the calling
//!   threads have written it through the page cache, as a rule.
//!   What arrives during one sync is answered by the next, which waits up to two milliseconds for as many as came last.
//! * *Changing segments* (`rotate.rs`, `budget.rs`): write over a segment that nobody wants (twice as fast as growing
//!   a file), else create one, else refuse new requests until a reader moves on.
//! * *Reading* (`reader.rs`): from memory while a reader keeps up (`tail.rs`), else from files (`cursor.rs`).
//!
//! # Recovery
//!
//! See `recovery.rs`. Opening never fails for damage: what is damaged is renamed aside or stepped over, and counted.

mod budget;
mod completion;
mod core;
mod cursor;
mod dedup;
mod direct;
mod disk;
mod error;
mod identity;
mod meters;
mod open;
mod options;
mod positions;
mod reader;
mod record;
mod recovery;
mod rotate;
mod scan;
mod segment;
mod status;
mod sync;
mod tail;
mod verify;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::completion::Durable;
pub use self::dedup::Digest;
pub use self::disk::create_directory;
pub use self::error::{AppendError, JournalError, ReadError};
pub use self::identity::JournalId;
pub use self::options::{Fsync, Options, WhenFull};
pub use self::positions::{load_position, save_position};
pub use self::reader::{Position, Reader, Resume};
pub use self::record::Record;
pub use self::recovery::Recovery;
pub use self::status::{ReaderStatus, Status};
pub use self::verify::{Inspection, SegmentCheck, Verification, inspect, verify};

use self::core::{Condition, Core};
use self::disk::{Disk, OsDisk};
use self::options::Settings;
use self::segment::lock;
use self::sync::Next;
use crate::clock::unix_nanos;
use crate::otlp::{Encoding, NotedSpans, Signal};
use crate::telemetry::Heartbeat;

/// Name of the file whose lock says that a process uses the directory.
const LOCK_FILE: &str = "lock";
/// How often gauges are set and spare segments looked at.
const UPKEEP: Duration = Duration::from_secs(1);

/// A request to be kept.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What the body carries.
    pub signal: Signal,
    /// How the body is compressed.
    pub encoding: Encoding,
    /// Nanoseconds since 1970. Also what the journal takes for the present time.
    pub received_at: u64,
    /// Accepted items in the body.
    pub items: u32,
    /// Items that were cut out; repeated to a sender that sends the request again.
    pub rejected: u32,
    /// Of the request as it came; `None`: a repetition is not recognised.
    pub digest: Option<Digest>,
    /// What is written. Neither copied nor looked into.
    pub body: Bytes,
    /// The body without compression, for readers that keep up. The same as `body` for [`Encoding::Identity`].
    pub decoded: Bytes,
    /// What was noted of its spans, for readers that keep up. Not written.
    pub noted: Option<NotedSpans>,
}

/// A request that was taken.
#[derive(Debug)]
pub struct Appended {
    /// It had been received before: nothing was written.
    pub duplicate: bool,
    /// Items that were cut out when it was received first.
    pub rejected: u32,
    /// Resolves when it may be acknowledged.
    pub durable: Durable,
}

/// A handle; clones are the same journal. It is closed when the last one goes.
#[derive(Clone)]
pub struct Journal(Arc<Handle>);

struct Handle {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
    watched: Watched,
    end_at_open: u64,
}

/// How the sync thread shows that it lives, once somebody has asked.
type Watched = Arc<Mutex<Option<Heartbeat>>>;

impl fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Journal")
            .field(&self.0.core.identity.id)
            .finish()
    }
}

fn failed(action: &str, directory: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        action: action.to_owned(),
        directory: directory.to_owned(),
        source,
    }
}

impl Journal {
    /// Opens the journal in a directory, or begins one, and starts the sync thread. Damage is reported, not an error.
    pub fn open(options: Options) -> Result<(Self, Recovery), JournalError> {
        let settings = Settings::new(&options)?;
        let disk = OsDisk::create(&options.directory)
            .map_err(|error| failed("create the directory", &options.directory, error))?;
        Journal::open_on(Arc::new(disk), settings)
    }

    fn open_on(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Self, Recovery), JournalError> {
        let directory = disk.directory().to_owned();
        let failed = |action: &str, source| failed(action, &directory, source);
        let locked = disk
            .lock(LOCK_FILE)
            .map_err(|error| failed("lock the directory", error))?;
        let locked = locked.ok_or_else(|| JournalError::Locked {
            directory: directory.clone(),
        })?;
        let mut random = [0; 48];
        getrandom::fill(&mut random).map_err(|error| failed("get random bytes for a new journal", error.into()))?;
        let (core, recovery) = Core::open(disk, locked, settings, unix_nanos(), &random)?;
        for note in &recovery.notes {
            tracing::warn!(directory = %directory.display(), "journal: {note}");
        }
        let end_at_open = lock(&core.state).durable + 1;
        let core = Arc::new(core);
        core.publish(unix_nanos());
        let watched = Watched::default();
        let thread = {
            let (core, watched) = (Arc::clone(&core), Arc::clone(&watched));
            let spawned = thread::Builder::new()
                .name("spanledger-sync".to_owned())
                .spawn(move || run(&core, &watched));
            spawned.map_err(|error| failed("start the sync thread", error))?
        };
        Ok((
            Self(Arc::new(Handle {
                core,
                thread: Mutex::new(Some(thread)),
                watched,
                end_at_open,
            })),
            recovery,
        ))
    }

    /// The journal's id.
    pub fn id(&self) -> JournalId {
        self.0.core.identity.id
    }

    /// Behind the last record that was there when the journal was opened.
    pub fn end_at_open(&self) -> Position {
        Position {
            journal: self.id(),
            next: self.0.end_at_open,
        }
    }

    /// Behind the last record that is durable now.
    pub fn end(&self) -> Position {
        Position {
            journal: self.id(),
            next: *self.0.core.watermark.borrow() + 1,
        }
    }

    /// Digest of a request as it came, for [`Entry::digest`]. Worth asking for traces.
    pub fn digest(&self, signal: Signal, encoding: Encoding, body: &[u8]) -> Digest {
        Digest::of(&self.0.core.identity, signal, encoding, body)
    }

    /// Whether the request is known: answers like the first time, when that is durable. Saves checking a request that
    /// came before; [`Journal::append`] looks again.
    pub fn duplicate_of(&self, digest: &Digest, now: u64) -> Option<Appended> {
        self.0.core.duplicate_of(digest, now)
    }

    /// Takes a request. The disk is not waited for; only with [`Fsync::Interval`] does the calling thread write, which may
    /// block as long as the system takes to copy the body.
    pub fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        self.0.core.append(entry)
    }

    /// The reader of this name, which must be among [`Options::readers`] and not taken.
    pub fn reader(&self, name: &str) -> Result<Reader, JournalError> {
        let index = {
            let mut state = lock(&self.0.core.state);
            let index = state.readers.iter().position(|reader| reader.name == name);
            let index = index.ok_or_else(|| JournalError::UnknownReader(name.to_owned()))?;
            if std::mem::replace(&mut state.readers[index].taken, true) {
                return Err(JournalError::ReaderTaken(name.to_owned()));
            }
            index
        };
        Ok(Reader::new(Arc::clone(&self.0.core), index))
    }

    /// What the journal holds and how far its readers are.
    pub fn status(&self) -> Status {
        self.0.core.status(unix_nanos())
    }

    /// Checks every record that is durable now. Reads the whole journal, so it belongs on a blocking thread.
    pub fn verify(&self) -> Verification {
        self.0.core.verify()
    }

    /// Whether requests can be appended now, and if not, why.
    pub fn is_writable(&self) -> Result<(), String> {
        self.0.core.writable()
    }

    /// Gives memory for reading files that is not needed any more back to the system. To be called every few seconds.
    pub fn give_up_unneeded(&self) {
        self.0.core.buffers.give_up_unneeded();
    }

    /// From now on the sync thread beats about every second. One that dies drops the heartbeat; one that hangs in a
    /// disk that does not answer stops beating.
    pub fn watch(&self, heartbeat: Heartbeat) {
        *lock(&self.0.watched) = Some(heartbeat);
    }

    /// Syncs and answers what was appended, refuses what comes, and stops the sync thread. Blocks as long as a sync
    /// takes.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Handle {
    fn close(&self) {
        {
            let mut state = lock(&self.core.state);
            state.closing = true;
            self.core.wake(&mut state);
        }
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's sync thread had died");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// The sync thread.
fn run(core: &Core, watched: &Watched) {
    let _mourning = RefuseOnPanic(core, watched);
    let mut upkeep_at = Instant::now();
    loop {
        match core.step(&unix_nanos) {
            Next::Again => {}
            Next::Stop => {
                if let Some(heartbeat) = lock(watched).take() {
                    heartbeat.finish();
                }
                return;
            }
            Next::Sleep(until) => {
                let wait = until.map_or(UPKEEP, |until| {
                    Duration::from_nanos(until.saturating_sub(unix_nanos())).min(UPKEEP)
                });
                let state = lock(&core.state);
                let waited = core.work.wait_timeout_while(state, wait, |state| state.is_idle);
                waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.is_idle = false;
            }
        }
        if upkeep_at.elapsed() >= UPKEEP {
            upkeep_at = Instant::now();
            if let Some(heartbeat) = &*lock(watched) {
                heartbeat.beat();
            }
            core.publish(unix_nanos());
            if let Err(error) = core.trim(unix_nanos()) {
                tracing::warn!(%error, "spare segments could not be removed");
            }
        }
    }
}

/// Nobody may wait for ever for an answer, should the sync thread die of a mistake.
struct RefuseOnPanic<'a>(&'a Core, &'a Watched);

impl Drop for RefuseOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(lock(self.1).take());
            let pending = {
                let mut state = lock(&self.0.state);
                state.closing = true;
                state.closed = true;
                state.condition = Condition::Failing {
                    retry_at: u64::MAX,
                    backoff: 0,
                    reason: "the sync thread has died; restart the program".into(),
                };
                state.parked.clear();
                std::mem::take(&mut state.pending)
            };
            for slot in pending {
                slot.completion
                    .complete(Err(AppendError::Failed("the sync thread has died".into())));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
