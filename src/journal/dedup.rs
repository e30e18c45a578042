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

/// Bodies from this length on are hashed in [`LANES`]: a hash waits most of the time for its own multiplications, and several
/// beside each other use what it leaves. 27 instead of 45 ns for the bytes of a span. To put the lanes together takes 5,000
/// instructions more, which at a few kilobytes is no gain.
const IN_LANES: usize = 16 << 10;
const LANES: usize = 3;
/// Bytes that a lane takes in turn.
const TURN: usize = 128;

impl Digest {
    pub(super) fn of(identity: &Identity, signal: Signal, encoding: Encoding, body: &[u8]) -> Self {
        let key = highway_key(&identity.key);
        let mut hasher = HighwayHasher::new(key);
        hasher.append(&[signal as u8, encoding as u8]);
        let mut rest = body;
        if body.len() >= IN_LANES {
            let mut lanes: [HighwayHasher; LANES] = std::array::from_fn(|_| HighwayHasher::new(key));
            let mut rounds = body.chunks_exact(LANES * TURN);
            for round in &mut rounds {
                for (lane, bytes) in lanes.iter_mut().zip(round.chunks_exact(TURN)) {
                    lane.append(bytes);
                }
            }
            rest = rounds.remainder();
            for word in lanes.into_iter().flat_map(HighwayHash::finalize256) {
                hasher.append(&word.to_le_bytes());
            }
        }
        hasher.append(rest);
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_digest_depends_on_every_part_of_the_request_and_on_the_key() {
        let identity = |byte| Identity {
            id: JournalId([0; 16]),
            key: [byte; 32],
            starts: 1,
            created_at: 1,
        };
        let of = |body: &[u8]| Digest::of(&identity(1), Signal::Traces, Encoding::Identity, body);
        let mut random = fastrand::Rng::with_seed(3);
        let mut seen = HashSet::new();
        let round = LANES * TURN;
        for length in [
            0,
            1,
            700,
            IN_LANES - 1,
            IN_LANES,
            IN_LANES + 1,
            3 * IN_LANES + round / 2,
        ] {
            let body: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            assert_eq!(of(&body), of(&body.clone()));
            assert!(seen.insert(of(&body)), "{length}");
            assert!(seen.insert(Digest::of(&identity(2), Signal::Traces, Encoding::Identity, &body)));
            assert!(seen.insert(Digest::of(&identity(1), Signal::Logs, Encoding::Identity, &body)));
            assert!(seen.insert(Digest::of(&identity(1), Signal::Traces, Encoding::Gzip, &body)));
            // One bit at places of the first rounds, the last ones, and anywhere.
            let places = (0..2 * round).chain(length.saturating_sub(2 * round)..length);
            let places = places.step_by(61).chain((0..50).map(|_| random.usize(..)));
            for place in places.filter(|_| length > 0).map(|place| place % length) {
                let mut other = body.clone();
                other[place] ^= 1 << (place % 8);
                assert_ne!(of(&other), of(&body), "{length} bytes, changed at {place}");
            }
            // What two lanes take, exchanged.
            if length >= IN_LANES {
                let mut other = body.clone();
                other[..2 * TURN].rotate_left(TURN);
                assert!(seen.insert(of(&other)));
            }
        }
    }
}
