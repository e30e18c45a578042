//! Which requests were received lately, so that one that is sent again is answered like the first and counts once.
//!
//! Invariants: at most `max_entries`; an entry older than `max_age` is never found; the entry of a refused record is
//! removed before the refusal is answered; after a crash the table is rebuilt from the headers of the records, and
//! from the file `dedup.snapshot` for records whose segment is gone.
//!
//! Snapshot: magic `SPANLDUP`, version u32, count u32, journal id (16 bytes), newest sequence covered u64; then per
//! entry digest (16 bytes), sequence u64, time of receipt u64, rejected u32; then CRC32C of everything before it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use highway::{HighwayHash, HighwayHasher};

use super::identity::{FORMAT_VERSION, Identity, JournalId, highway_key};
use super::record::{u32_at, u64_at};
use crate::checksum;
use crate::otlp::{Encoding, Signal};

pub(super) const SNAPSHOT_FILE: &str = "dedup.snapshot";
const MAGIC: &[u8; 8] = b"SPANLDUP";
const HEAD: usize = 40;
const ENTRY: usize = 36;

/// Keyed 128-bit hash of a request as received.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub(super) [u8; 16]);

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::hash::Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64_at(&self.0, 0));
    }
}

impl Digest {
    pub(super) fn of(identity: &Identity, signal: Signal, encoding: Encoding, body: &[u8]) -> Self {
        let mut hasher = HighwayHasher::new(highway_key(&identity.key));
        hasher.append(&[signal as u8, encoding as u8]);
        hasher.append(body);
        let [low, high] = hasher.finalize128();
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&low.to_le_bytes());
        digest[8..].copy_from_slice(&high.to_le_bytes());
        Self(digest)
    }
}

/// Digests are keyed hashes already: eight bytes of one are as good a hash as any.
#[derive(Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// What is remembered of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) sequence: u64,
    pub(super) received_at: u64,
    pub(super) rejected: u32,
}

/// The table.
pub(super) struct Dedup {
    max_age: u64,
    max_entries: usize,
    entries: HashMap<Digest, Remembered, BuildHasherDefault<Taken>>,
    /// In order of arrival; may name entries that are gone or were replaced, told by their sequence.
    order: VecDeque<(u64, Digest)>,
    /// Entries that fell out while they were young.
    pub(super) evicted_early: u64,
    /// The snapshot on disk covers every sequence up to this one.
    pub(super) snapshot_through: u64,
}

impl Dedup {
    pub(super) fn new(max_age: u64, max_entries: usize) -> Self {
        Self {
            max_age,
            max_entries,
            entries: HashMap::default(),
            order: VecDeque::new(),
            evicted_early: 0,
            snapshot_through: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Oldest time of receipt that is still young.
    pub(super) fn horizon(&self, now: u64) -> u64 {
        now.saturating_sub(self.max_age)
    }

    pub(super) fn find(&self, digest: &Digest, now: u64) -> Option<Remembered> {
        self.entries
            .get(digest)
            .copied()
            .filter(|entry| entry.received_at >= self.horizon(now))
    }

    pub(super) fn insert(&mut self, digest: Digest, entry: Remembered, now: u64) {
        if self.max_entries == 0 || self.max_age == 0 {
            return;
        }
        self.expire(now);
        // Not `entries.len()`: refused requests leave a name behind in `order`, which must be bounded too.
        while self.order.len() >= self.max_entries {
            let Some((sequence, oldest)) = self.order.pop_front() else {
                break;
            };
            if self.forget(&oldest, sequence) {
                self.evicted_early += 1;
            }
        }
        self.entries.insert(digest, entry);
        self.order.push_back((entry.sequence, digest));
    }

    /// Removes the entry, unless a later record has taken its place.
    pub(super) fn forget(&mut self, digest: &Digest, sequence: u64) -> bool {
        let is_that_one = self.entries.get(digest).is_some_and(|entry| entry.sequence == sequence);
        if is_that_one {
            self.entries.remove(digest);
        }
        is_that_one
    }

    fn expire(&mut self, now: u64) {
        let horizon = self.horizon(now);
        while let Some((sequence, digest)) = self.order.front().copied() {
            match self.entries.get(&digest) {
                Some(entry) if entry.sequence == sequence && entry.received_at >= horizon => break,
                _ => {
                    self.order.pop_front();
                    self.forget(&digest, sequence);
                }
            }
        }
    }

    /// Whether a segment with these digests may go without writing a snapshot first.
    pub(super) fn is_covered(&self, last: u64, newest_digest: u64, now: u64) -> bool {
        newest_digest == 0
            || newest_digest < self.horizon(now)
            || last <= self.snapshot_through
            || self.max_entries == 0
    }

    /// Every young entry up to `through`, as file content.
    pub(super) fn snapshot(&self, id: JournalId, through: u64, now: u64) -> Vec<u8> {
        let horizon = self.horizon(now);
        let mut bytes = Vec::with_capacity(HEAD + ENTRY * self.entries.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&through.to_le_bytes());
        let mut count = 0_u32;
        for (sequence, digest) in &self.order {
            let entry = self.entries.get(digest).filter(|entry| entry.sequence == *sequence);
            if let Some(entry) = entry.filter(|entry| entry.sequence <= through && entry.received_at >= horizon) {
                bytes.extend_from_slice(&digest.0);
                bytes.extend_from_slice(&entry.sequence.to_le_bytes());
                bytes.extend_from_slice(&entry.received_at.to_le_bytes());
                bytes.extend_from_slice(&entry.rejected.to_le_bytes());
                count += 1;
            }
        }
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        let crc = checksum::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Largest snapshot that this table can write.
    pub(super) fn snapshot_limit(&self) -> u64 {
        (HEAD + 4) as u64 + ENTRY as u64 * self.max_entries as u64
    }

    /// Entries of a snapshot of this journal, and the sequence through which it is complete; `None` when it is
    /// damaged or foreign.
    pub(super) fn read_snapshot(id: JournalId, bytes: &[u8]) -> Option<(Vec<(Digest, Remembered)>, u64)> {
        let end = bytes.len().checked_sub(4)?;
        let sound = end >= HEAD
            && &bytes[..8] == MAGIC
            && u32_at(bytes, 8) == FORMAT_VERSION
            && bytes[16..32] == id.0
            && (end - HEAD) == ENTRY * u32_at(bytes, 12) as usize
            && checksum::crc32c(&bytes[..end]) == u32_at(bytes, end);
        if !sound {
            return None;
        }
        let entries = bytes[HEAD..end].chunks_exact(ENTRY).map(|entry| {
            let mut digest = [0; 16];
            digest.copy_from_slice(&entry[..16]);
            let remembered = Remembered {
                sequence: u64_at(entry, 16),
                received_at: u64_at(entry, 24),
                rejected: u32_at(entry, 32),
            };
            (Digest(digest), remembered)
        });
        Some((entries.collect(), u64_at(bytes, 32)))
    }
}
