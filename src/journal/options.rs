//! What the journal is opened with.

use std::path::PathBuf;
use std::time::Duration;

use super::dedup::Dedup;
use super::direct::{LEAST, MEMORY};
use super::disk::BLOCK;
use super::error::JournalError;
use super::record::span_of;
use super::segment::DATA_START;
use crate::buffers::most_unused;

const MIB: u64 = 1 << 20;

/// Requests that arrive while a segment is being changed wait in memory, at most this much, or one that is larger.
const PARKED_BYTES: u64 = 16 * MIB;
/// Bytes of buffers that wait for the next read of a file, when readers hold less than that.
pub(super) const BUFFERS: usize = 4 << 20;

/// Of a remembered request: its entry in a table that may be half empty, and in the order of arrival.
const REMEMBERED_BYTES: usize = 128;
/// Below this a journal could not hold a few segments.
const SMALLEST: u64 = 4 * MIB;

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// When it is on the disk.
    Always,
    /// When it is written; the disk is synced this often. A power failure may lose as much.
    Interval(Duration),
}

/// What gives way when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// New requests are refused until a reader has moved on.
    Refuse,
    /// The readers named in [`Options::may_skip`] are moved over the oldest records, which is counted.
    SkipForwarding,
}

/// What the journal is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// One directory per process (`journal.directory`).
    pub directory: PathBuf,
    /// All files together stay below this (`journal.max_size`).
    pub max_size: u64,
    /// What every reader has passed is kept this long, while there is room (`journal.retain`).
    pub retain: Duration,
    /// `journal.fsync`.
    pub fsync: Fsync,
    /// `journal.when_full`.
    pub when_full: WhenFull,
    /// How long a request is remembered (`journal.dedup.max_age`). Zero: not at all.
    pub dedup_max_age: Duration,
    /// How many requests are remembered (`journal.dedup.max_entries`). Zero: none. A small journal remembers fewer:
    /// the table, when it has to be written to disk, takes at most a sixteenth of `max_size`.
    pub dedup_max_entries: usize,
    /// Names of the readers. A reader pins what it has not passed, and everything until it has resumed; a name that
    /// is not here pins nothing.
    pub readers: Vec<String>,
    /// Those of [`Options::readers`] that [`WhenFull::SkipForwarding`] may move on.
    pub may_skip: Vec<String>,
    /// Bytes of the newest records that are kept in memory for readers that keep up.
    pub tail_bytes: usize,
    /// Bytes that may wait in memory for the disk, also if their senders do not: as many as are admitted at once. Beyond
    /// that, requests are refused.
    pub max_unsynced: usize,
    /// The journal never takes the last bytes of the file system.
    pub free_disk_floor: u64,
    /// Bytes per segment file; `None`: a thirty-second of `max_size`, between 1 and 64 MiB.
    pub segment_size: Option<u64>,
}

impl Options {
    /// The defaults of `config.yaml`, for a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_size: 2048 * MIB,
            retain: Duration::from_secs(3600),
            fsync: Fsync::Always,
            when_full: WhenFull::Refuse,
            dedup_max_age: Duration::from_secs(600),
            dedup_max_entries: 262_144,
            readers: Vec::new(),
            may_skip: Vec::new(),
            tail_bytes: 16 << 20,
            max_unsynced: 32 << 20,
            free_disk_floor: 64 * MIB,
            segment_size: None,
        }
    }
}

/// Options in the units of the core.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// For segment files; what `max_size` leaves beside the dedup snapshot and its successor while it is replaced.
    pub(super) segment_bytes: u64,
    pub(super) segment_size: u64,
    /// Largest record, header included.
    pub(super) largest_record: u64,
    /// Requests that arrive while a segment is being changed wait in memory, at most this much.
    pub(super) parked_bytes: u64,
    pub(super) retain: u64,
    pub(super) interval: Option<u64>,
    pub(super) skip_forwarding: bool,
    pub(super) dedup_max_age: u64,
    pub(super) dedup_max_entries: usize,
    pub(super) readers: Vec<String>,
    pub(super) may_skip: Vec<String>,
    pub(super) tail_bytes: usize,
    pub(super) max_unsynced: u64,
    /// Bytes that are written at once past the page cache; a multiple of [`BLOCK`].
    pub(super) direct_memory: usize,
    /// How long a body is that is written from where it is.
    pub(super) direct_least: usize,
    pub(super) free_disk_floor: u64,
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Options {
    /// The most memory that the journal takes: the newest records, requests that wait for a segment, what is written at
    /// once, what is remembered of other requests, and buffers for readers that lag. (A segment's index is a few
    /// kilobytes.) What waits for the disk belongs to requests being received; only while the disk hangs and senders do
    /// not wait for it is there more, up to [`max_unsynced`](Self::max_unsynced).
    pub fn memory_bound(&self) -> usize {
        self.tail_bytes
            + PARKED_BYTES as usize
            + most_unused(BUFFERS)
            + MEMORY
            + self.dedup_max_entries * REMEMBERED_BYTES
    }
}

impl Settings {
    pub(super) fn new(options: &Options) -> Result<Self, JournalError> {
        if options.segment_size.is_none() && options.max_size < SMALLEST {
            return Err(JournalError::Setting(
                "journal.max_size must be at least 4MiB".to_owned(),
            ));
        }
        if let Some(name) = options.may_skip.iter().find(|name| !options.readers.contains(name)) {
            return Err(JournalError::UnknownReader(name.clone()));
        }
        let segment_size = options
            .segment_size
            .unwrap_or((options.max_size / 32).clamp(MIB, 64 * MIB) & !(BLOCK as u64 - 1));
        let entry = 36;
        let dedup_max_entries = options.dedup_max_entries.min((options.max_size / 16 / entry) as usize);
        let dedup_max_age = nanos(options.dedup_max_age);
        let snapshot = Dedup::new(dedup_max_age, dedup_max_entries).snapshot_limit();
        let segment_bytes = options
            .max_size
            .saturating_sub(2 * snapshot)
            .max(2 * (segment_size + DATA_START));
        Ok(Self {
            segment_bytes,
            segment_size,
            largest_record: (options.max_size / 4)
                .min(u64::from(u32::MAX))
                .max(segment_size / 2)
                .max(span_of(0)),
            parked_bytes: PARKED_BYTES,
            retain: nanos(options.retain),
            interval: match options.fsync {
                Fsync::Always => None,
                Fsync::Interval(interval) => Some(nanos(interval)),
            },
            skip_forwarding: options.when_full == WhenFull::SkipForwarding,
            dedup_max_age,
            dedup_max_entries,
            readers: options.readers.clone(),
            may_skip: options.may_skip.clone(),
            tail_bytes: options.tail_bytes,
            // In the file there is up to a block in front of each body that is written from where it is.
            max_unsynced: (options.max_unsynced + options.max_unsynced / (LEAST / BLOCK)) as u64,
            direct_memory: MEMORY,
            direct_least: LEAST,
            free_disk_floor: options.free_disk_floor,
        })
    }
}
