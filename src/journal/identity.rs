//! Who this journal is: a random id, the key of its hashes, and how often it was started. File `journal.id`, 96
//! bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `SPANLJID` |
//! | 8 | 4 | format version |
//! | 12 | 4 | zero |
//! | 16 | 16 | journal id |
//! | 32 | 32 | hash key |
//! | 64 | 8 | number of starts, increased durably before anything is appended |
//! | 72 | 8 | created at, nanoseconds since 1970 |
//! | 80 | 12 | zero |
//! | 92 | 4 | CRC32C of bytes 0..92 |
//!
//! Id and key are repeated in every segment header, so that losing this file loses nothing.

use std::fmt;
use std::str::FromStr;

use highway::{HighwayHash, HighwayHasher, Key};

use super::record::{u32_at, u64_at};
use crate::checksum;

/// Version of every file of the journal.
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const IDENTITY_FILE: &str = "journal.id";
const MAGIC: &[u8; 8] = b"SPANLJID";
const LENGTH: usize = 96;
/// Sequences of one start begin at a multiple of this, so that those of two starts never meet.
const SEQUENCES_PER_START: u64 = 1 << 32;

/// Where the start of the program began that `sequence` is of.
pub(super) const fn first_of_start(sequence: u64) -> u64 {
    sequence - sequence % SEQUENCES_PER_START
}

/// Names a journal for ever: positions are worth nothing in another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct JournalId(pub [u8; 16]);

impl fmt::Display for JournalId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for JournalId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for JournalId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a journal id: 32 hexadecimal digits are expected");
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

/// What `journal.id` holds.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: JournalId,
    pub(super) key: [u8; 32],
    pub(super) starts: u64,
    pub(super) created_at: u64,
}

/// Why an identity file cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Damaged,
    Version(u32),
}

impl Identity {
    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..64].copy_from_slice(&self.key);
        bytes[64..72].copy_from_slice(&self.starts.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.created_at.to_le_bytes());
        let crc = checksum::crc32c(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() != LENGTH || &bytes[0..8] != MAGIC || checksum::crc32c(&bytes[..92]) != u32_at(bytes, 92) {
            return Err(Unreadable::Damaged);
        }
        if u32_at(bytes, 8) != FORMAT_VERSION {
            return Err(Unreadable::Version(u32_at(bytes, 8)));
        }
        let (mut id, mut key) = ([0; 16], [0; 32]);
        id.copy_from_slice(&bytes[16..32]);
        key.copy_from_slice(&bytes[32..64]);
        Ok(Self {
            id: JournalId(id),
            key,
            starts: u64_at(bytes, 64),
            created_at: u64_at(bytes, 72),
        })
    }

    /// The first sequence of this start: beyond every sequence that an earlier start can have used.
    pub(super) fn first_sequence(&self, last_known: u64) -> u64 {
        let behind_known = (last_known / SEQUENCES_PER_START + 1) * SEQUENCES_PER_START;
        behind_known.max(self.starts * SEQUENCES_PER_START)
    }

    /// The value with which the checksums of one life of one segment start. It depends on the secret key, so nobody
    /// can send a body that looks like a record, and on the life, so that what was there before it never looks valid.
    pub(super) fn seed(&self, incarnation: u64, epoch: u64) -> u32 {
        let mut hasher = HighwayHasher::new(highway_key(&self.key));
        hasher.append(b"segment");
        hasher.append(&self.id.0);
        hasher.append(&incarnation.to_le_bytes());
        hasher.append(&epoch.to_le_bytes());
        hasher.finalize64() as u32
    }
}

pub(super) fn highway_key(bytes: &[u8; 32]) -> Key {
    Key([u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            id: JournalId([7; 16]),
            key: [9; 32],
            starts: 3,
            created_at: 5,
        }
    }

    #[test]
    fn an_identity_survives_its_file() {
        assert!(Identity::decode(&identity().encode()) == Ok(identity()));
    }

    #[test]
    fn every_flipped_bit_of_an_identity_is_noticed() {
        let bytes = identity().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&damaged) == Err(Unreadable::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn sequences_of_two_starts_never_meet() {
        let identity = identity();
        assert_eq!(identity.first_sequence(0), 3 << 32);
        assert_eq!(identity.first_sequence((3 << 32) + 17), 4 << 32);
        assert_eq!(identity.first_sequence((9 << 32) - 1), 9 << 32);
        assert_eq!(identity.first_sequence(9 << 32), 10 << 32);
    }

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        let id = JournalId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("00ff".parse::<JournalId>().is_err());
        assert!("zz0102030405060708090a0b0c0d0eff".parse::<JournalId>().is_err());
    }
}
