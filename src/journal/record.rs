//! One record: a header of 72 bytes, the body as received, zero to seven bytes of padding. The body may begin on the first
//! [`BLOCK`] of the file behind the header instead of right behind it. See `docs/journal-format.md`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SLR1` |
//! | 4 | 4 | CRC32C of bytes 8..72, started from the segment's seed |
//! | 8 | 4 | body length |
//! | 12 | 4 | CRC32C of the body, started from the segment's seed |
//! | 16 | 8 | sequence |
//! | 24 | 8 | received at, nanoseconds since 1970 |
//! | 32 | 8 | newest sequence known to be durable when this record was written |
//! | 40 | 4 | items accepted (spans, data points, log records) |
//! | 44 | 4 | items rejected |
//! | 48 | 1 | signal (1 traces, 2 metrics, 3 logs) |
//! | 49 | 1 | encoding of the body (0 identity, 1 gzip, 2 zstd, 3 deflate, 4 Snappy, 5 LZ4) |
//! | 50 | 1 | flags: 1 = the digest is set, 2 = the body begins on a block |
//! | 51 | 5 | zero |
//! | 56 | 16 | digest of the request as received |
//!
//! Numbers are little-endian. The header has a checksum of its own so that a journal can be opened by reading headers
//! alone, and a body that was damaged can be stepped over exactly.

use bytes::Bytes;

use super::Entry;
use super::dedup::Digest;
use super::disk::BLOCK;
use crate::checksum;
use crate::otlp::{DecodeError, Encoding, NotedSpans, Signal, decompress};

/// Length of the header.
pub(super) const HEADER: usize = 72;
const MAGIC: &[u8; 4] = b"SLR1";
const HAS_DIGEST: u8 = 1;
const ON_BLOCK: u8 = 2;

/// Where a record lies in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    /// Where its header begins.
    pub(super) offset: u64,
    /// Length of the body.
    pub(super) length: u32,
    /// The body begins on a multiple of [`BLOCK`], so that it can be written from where it is in memory.
    pub(super) on_block: bool,
}

impl Placement {
    /// Where the body begins.
    pub(super) fn body(&self) -> u64 {
        let behind_header = self.offset + HEADER as u64;
        if self.on_block {
            behind_header.next_multiple_of(BLOCK as u64)
        } else {
            behind_header
        }
    }

    /// Where the body ends. The padding behind it may be missing where a file ends.
    pub(super) fn end(&self) -> u64 {
        self.body() + u64::from(self.length)
    }

    /// Where the next record begins: on a multiple of eight.
    pub(super) fn next(&self) -> u64 {
        self.end().next_multiple_of(8)
    }
}

/// The part of a record in front of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) body_crc: u32,
    pub(super) sequence: u64,
    pub(super) received_at: u64,
    /// Tells, when this record survives and an earlier one does not, whether the earlier one had been acknowledged.
    pub(super) durable: u64,
    pub(super) items: u32,
    pub(super) rejected: u32,
    pub(super) signal: Signal,
    pub(super) encoding: Encoding,
    pub(super) digest: Option<Digest>,
    /// See [`Placement::on_block`].
    pub(super) on_block: bool,
}

impl Header {
    /// That of an entry which lies `at` a place. `durable`: the newest sequence known to be durable.
    pub(super) fn of(entry: &Entry, sequence: u64, durable: u64, at: Placement, body_crc: u32) -> Self {
        Self {
            length: at.length,
            body_crc,
            sequence,
            received_at: entry.received_at,
            durable,
            items: entry.items,
            rejected: entry.rejected,
            signal: entry.signal,
            encoding: entry.encoding,
            digest: entry.digest,
            on_block: at.on_block,
        }
    }

    pub(super) fn encode(&self, seed: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.received_at.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.items.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.rejected.to_le_bytes());
        bytes[48] = self.signal as u8;
        bytes[49] = self.encoding as u8;
        if let Some(digest) = &self.digest {
            bytes[50] = HAS_DIGEST;
            bytes[56..72].copy_from_slice(&digest.0);
        }
        if self.on_block {
            bytes[50] |= ON_BLOCK;
        }
        let crc = checksum::crc32c_append(seed, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` when the bytes are not a header of this segment's present life.
    pub(super) fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        if &bytes[0..4] != MAGIC || checksum::crc32c_append(seed, &bytes[8..]) != u32_at(bytes, 4) {
            return None;
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&bytes[56..72]);
        Some(Self {
            length: u32_at(bytes, 8),
            body_crc: u32_at(bytes, 12),
            sequence: u64_at(bytes, 16),
            received_at: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            items: u32_at(bytes, 40),
            rejected: u32_at(bytes, 44),
            signal: Signal::try_from(bytes[48]).ok()?,
            encoding: Encoding::try_from(bytes[49]).ok()?,
            digest: (bytes[50] & HAS_DIGEST != 0).then_some(Digest(digest)),
            on_block: bytes[50] & ON_BLOCK != 0,
        })
    }

    /// Where the record lies whose header was found at `offset`.
    pub(super) fn at(&self, offset: u64) -> Placement {
        Placement {
            offset,
            length: self.length,
            on_block: self.on_block,
        }
    }

    pub(super) fn into_record(self, body: Bytes) -> Record {
        Record {
            sequence: self.sequence,
            received_at: self.received_at,
            signal: self.signal,
            encoding: self.encoding,
            items: self.items,
            rejected: self.rejected,
            body,
            decoded: None,
            noted: None,
        }
    }
}

/// Bytes that a record with a body of `length` takes up if the body is right behind the header.
pub(super) fn span_of(length: usize) -> u64 {
    (HEADER + length).next_multiple_of(8) as u64
}

/// Checksum of a body in a segment with this seed.
pub(super) fn body_crc(seed: u32, body: &[u8]) -> u32 {
    checksum::crc32c_append(seed, body)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

/// A request, as a reader gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Increases from record to record, with gaps; never used twice.
    pub sequence: u64,
    /// Nanoseconds since 1970.
    pub received_at: u64,
    /// What the body carries.
    pub signal: Signal,
    /// How the body is compressed.
    pub encoding: Encoding,
    /// Accepted spans, data points or log records in the body.
    pub items: u32,
    /// Items that were cut out because they were not valid.
    pub rejected: u32,
    /// As received.
    pub body: Bytes,
    pub(super) decoded: Option<Bytes>,
    /// Spans that the receiver has noted, while that is at hand.
    pub noted: Option<NotedSpans>,
}

impl Record {
    /// The body without compression, when the receiver's copy is still at hand.
    pub fn decoded(&self) -> Option<&Bytes> {
        match self.encoding {
            Encoding::Identity => Some(&self.body),
            _ => self.decoded.as_ref(),
        }
    }

    /// The body without compression, decompressed up to `limit` bytes where the receiver's copy is no longer at hand.
    ///
    /// # Errors
    ///
    /// It is longer, or damaged: its receiver had decompressed it.
    pub fn decode(&self, limit: usize) -> Result<Bytes, DecodeError> {
        match self.decoded() {
            Some(decoded) => Ok(decoded.clone()),
            None => decompress(self.encoding, &self.body, limit),
        }
    }

    /// Does without the receiver's copy from now on.
    pub fn forget_decoded(&mut self) {
        self.decoded = None;
    }
}
