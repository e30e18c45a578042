//! One segment file: two copies of a header, then records without gaps.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `SPANLSEG` |
//! | 8 | 4 | format version |
//! | 12 | 4 | zero |
//! | 16 | 16 | journal id |
//! | 32 | 32 | hash key |
//! | 64 | 8 | incarnation: 1 for the first segment of a journal, one more for each that follows, whatever file it is in |
//! | 72 | 8 | epoch: the start (of the program) that wrote it |
//! | 80 | 8 | first sequence that can be in it |
//! | 88 | 8 | created at, nanoseconds since 1970 |
//! | 96 | 8 | last valid sequence before it: whatever lies between this one and its first was refused and is never read |
//! | 104 | 8 | the segment before it: incarnation (0: none that holds a record) |
//! | 112 | 8 | … first sequence |
//! | 120 | 8 | … last sequence |
//! | 128 | 8 | … offset behind its last record |
//! | 136 | 8 | … number of records |
//! | 144 | 8 | … newest time of receipt |
//! | 152 | 8 | … newest time of receipt among records with a digest (0: none) |
//! | 160 | 8 | newest sequence in any segment that was given up because every reader had passed it |
//! | 168 | 84 | zero |
//! | 252 | 4 | CRC32C of bytes 0..252 |
//!
//! The copies lie at 0 and at 4096; records begin at 8192. The copy that is not in force (in a new file, the first) is
//! written and synced before the other, and both before the first record: a crash in between leaves a valid header, old
//! or new, and the old one means that the old records are still untouched. The header describes the segment before it because a segment is entirely
//! durable before the next one begins: opening a journal needs no scan but of the last segment.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::direct::DirectWriter;
use super::disk::DiskFile;
use super::identity::{FORMAT_VERSION, JournalId, Unreadable};
use super::record::{self, HEADER, Header, Placement, u32_at, u64_at};
use crate::checksum;
use crate::failpoint::{self, Point};

/// Where records begin.
pub(super) const DATA_START: u64 = 8192;
const SECOND_COPY: u64 = 4096;
const COPY_LENGTH: usize = 256;
const MAGIC: &[u8; 8] = b"SPANLSEG";
const SUFFIX: &str = ".seg";
/// How far apart marks are kept, in bytes.
const MARK_DISTANCE: u64 = 1 << 20;

/// Name of the file with this number. The number says nothing about the order of segments.
pub(super) fn file_name(number: u32) -> String {
    format!("{number:08x}{SUFFIX}")
}

/// The number in the name of a segment file.
pub(super) fn file_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 8)
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

/// What is known of a segment once nothing more will be written to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) incarnation: u64,
    pub(super) first: u64,
    /// Less than `first` when the segment holds no valid record.
    pub(super) last: u64,
    pub(super) end: u64,
    pub(super) records: u64,
    pub(super) newest: u64,
    pub(super) newest_digest: u64,
}

/// What a segment file says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) id: JournalId,
    pub(super) key: [u8; 32],
    pub(super) incarnation: u64,
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) created_at: u64,
    pub(super) valid_before: u64,
    pub(super) previous: Summary,
    /// Tells a file that was to be gone, and is not, from one that is missing.
    pub(super) released: u64,
}

impl SegmentHeader {
    fn encode(&self) -> [u8; COPY_LENGTH] {
        let mut bytes = [0; COPY_LENGTH];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..64].copy_from_slice(&self.key);
        let previous = &self.previous;
        let numbers = [
            self.incarnation,
            self.epoch,
            self.first,
            self.created_at,
            self.valid_before,
            previous.incarnation,
            previous.first,
            previous.last,
            previous.end,
            previous.records,
            previous.newest,
            previous.newest_digest,
            self.released,
        ];
        for (index, number) in numbers.iter().enumerate() {
            bytes[64 + 8 * index..72 + 8 * index].copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum::crc32c(&bytes[..252]);
        bytes[252..256].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() < COPY_LENGTH || &bytes[0..8] != MAGIC || checksum::crc32c(&bytes[..252]) != u32_at(bytes, 252) {
            return Err(Unreadable::Damaged);
        }
        if u32_at(bytes, 8) != FORMAT_VERSION {
            return Err(Unreadable::Version(u32_at(bytes, 8)));
        }
        let (mut id, mut key) = ([0; 16], [0; 32]);
        id.copy_from_slice(&bytes[16..32]);
        key.copy_from_slice(&bytes[32..64]);
        let number = |index: usize| u64_at(bytes, 64 + 8 * index);
        Ok(Self {
            id: JournalId(id),
            key,
            incarnation: number(0),
            epoch: number(1),
            first: number(2),
            created_at: number(3),
            valid_before: number(4),
            previous: Summary {
                incarnation: number(5),
                first: number(6),
                last: number(7),
                end: number(8),
                records: number(9),
                newest: number(10),
                newest_digest: number(11),
            },
            released: number(12),
        })
    }

    /// Begins a life of the file; durable when it returns.
    pub(super) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        let bytes = self.encode();
        // Not the copy in force first: the other one may be torn, or older, because an earlier beginning was interrupted.
        let incarnation_at = |offset| -> io::Result<u64> {
            let mut copy = [0; COPY_LENGTH];
            let count = file.read_at(&mut copy, offset)?;
            Ok(Self::decode(&copy[..count]).map_or(0, |header| header.incarnation))
        };
        let is_first_in_force = incarnation_at(0)? > incarnation_at(SECOND_COPY)?;
        let order = if is_first_in_force {
            [SECOND_COPY, 0]
        } else {
            [0, SECOND_COPY]
        };
        file.write_at(&[&bytes], order[0])?;
        file.sync_data()?;
        failpoint::hit(Point::BetweenHeaders);
        file.write_at(&[&bytes], order[1])?;
        file.sync_data()?;
        failpoint::hit(Point::AfterHeaders);
        Ok(())
    }

    /// The header in force: of two different valid copies the later life.
    pub(super) fn read(file: &dyn DiskFile) -> io::Result<Result<Self, Unreadable>> {
        let mut bytes = vec![0; DATA_START as usize];
        let count = file.read_at(&mut bytes, 0)?;
        bytes[count..].fill(0);
        let first = Self::decode(&bytes);
        let second = Self::decode(&bytes[SECOND_COPY as usize..]);
        Ok(match (first, second) {
            (Ok(first), Ok(second)) => Ok(if second.incarnation > first.incarnation {
                second
            } else {
                first
            }),
            (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok(header),
            (Err(Unreadable::Version(version)), _) | (_, Err(Unreadable::Version(version))) => {
                Err(Unreadable::Version(version))
            }
            (Err(error), Err(_)) => Err(error),
        })
    }
}

/// A place in a segment that readers can start from without scanning everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) sequence: u64,
    pub(super) offset: u64,
    pub(super) received_at: u64,
}

/// One life of a segment file. Recycling the file makes a new one of these.
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) file: Arc<dyn DiskFile>,
    /// How records get into it, if not through the page cache.
    direct: Option<DirectWriter>,
    pub(super) size: u64,
    pub(super) header: SegmentHeader,
    pub(super) seed: u32,
    /// Set before the file is written over or removed: what a reader read afterwards means nothing.
    pub(super) retired: AtomicBool,
    /// Appends that may still be writing, also after they were refused. The file is not reused before they have
    /// ended.
    pub(super) writers: AtomicU32,
    marks: Mutex<Vec<Mark>>,
}

impl Segment {
    pub(super) fn new(number: u32, file: Arc<dyn DiskFile>, size: u64, header: SegmentHeader, seed: u32) -> Self {
        Self {
            number,
            file,
            direct: None,
            size,
            header,
            seed,
            retired: AtomicBool::new(false),
            writers: AtomicU32::new(0),
            marks: Mutex::new(Vec::new()),
        }
    }

    /// The same, written past the page cache.
    pub(super) fn with_direct(self, direct: Option<DirectWriter>) -> Self {
        Self { direct, ..self }
    }

    /// Whether records wait in memory for the next sync.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Where a record goes that is to be appended at `offset`.
    pub(super) fn place(&self, offset: u64, body: &Bytes) -> Placement {
        let at = |on_block| Placement {
            offset,
            length: body.len() as u32,
            on_block,
        };
        let takes_as_it_is = self.direct.as_ref().is_some_and(|direct| direct.takes_as_it_is(body));
        // The gap in front of the body may be what the segment has no room for.
        at(takes_as_it_is && at(true).next() <= self.size)
    }

    /// Writes a record where it was [placed](Self::place), or takes it for the next [`sync`](Self::sync).
    pub(super) fn append(&self, header: [u8; HEADER], body: &Bytes, at: Placement) -> io::Result<()> {
        match &self.direct {
            Some(direct) => {
                direct.append(header, body.clone(), at);
                Ok(())
            }
            None => {
                self.file.write_at(&[&header, body], at.offset)?;
                failpoint::hit(Point::AfterWrite);
                Ok(())
            }
        }
    }

    /// Brings to the disk what was appended, all up to `end`, and also into the page cache if it `is_read_back` soon.
    pub(super) fn sync(&self, end: u64, is_read_back: bool) -> io::Result<()> {
        match &self.direct {
            Some(direct) => direct.sync(&*self.file, end, is_read_back),
            None => self.file.sync_data(),
        }
    }

    /// Nothing is appended any more.
    pub(super) fn seal(&self) {
        if let Some(direct) = &self.direct {
            direct.close();
        }
    }

    /// Remembers a record when the last mark is far enough behind.
    pub(super) fn note(&self, mark: Mark) {
        let mut marks = lock(&self.marks);
        match marks.last() {
            Some(last) if mark.offset < last.offset + MARK_DISTANCE => {}
            _ => marks.push(mark),
        }
    }

    /// The last mark at or before `sequence`.
    pub(super) fn mark_before(&self, sequence: u64) -> Option<Mark> {
        let marks = lock(&self.marks);
        let behind = marks.partition_point(|mark| mark.sequence <= sequence);
        behind.checked_sub(1).map(|index| marks[index])
    }
}

/// What lies at an offset of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A record whose header is whole. The body was not looked at.
    Record { offset: u64, header: Header },
    /// No header here; the next one that is whole lies further on, at the given offset.
    Gap { resume: u64 },
    /// Nothing more up to the limit.
    End,
}

/// Walks over the headers of a segment. It reads little where records are large, and much at a time where they are
/// small.
pub(super) struct Walk<'a> {
    file: &'a dyn DiskFile,
    seed: u32,
    offset: u64,
    limit: u64,
    chunk: Vec<u8>,
    chunk_start: u64,
}

const WALK_CHUNK: usize = 64 << 10;
const SEARCH_CHUNK: usize = 1 << 20;

impl<'a> Walk<'a> {
    pub(super) fn new(segment: &'a Segment, offset: u64, limit: u64) -> Self {
        Self::over(&*segment.file, segment.seed, offset, limit.min(segment.size))
    }

    pub(super) fn over(file: &'a dyn DiskFile, seed: u32, offset: u64, limit: u64) -> Self {
        Self {
            file,
            seed,
            offset,
            limit,
            chunk: Vec::new(),
            chunk_start: 0,
        }
    }

    /// Where the walk stands.
    pub(super) fn position(&self) -> u64 {
        self.offset
    }

    /// Goes on behind what the disk could not read.
    pub(super) fn skip_page(&mut self) {
        self.offset = (self.offset + 1).next_multiple_of(4096).min(self.limit);
        self.chunk.clear();
    }

    /// The next frame; the walk stands behind it afterwards.
    pub(super) fn next(&mut self) -> io::Result<Frame> {
        let offset = self.offset;
        if let Some(header) = self.header_at(offset)? {
            self.offset = header.at(offset).next();
            return Ok(Frame::Record { offset, header });
        }
        match self.search(offset + 8)? {
            Some(resume) => {
                self.offset = resume;
                Ok(Frame::Gap { resume })
            }
            None => {
                self.offset = self.limit;
                Ok(Frame::End)
            }
        }
    }

    /// Reads the body of a record that [`Walk::next`] returned; `None` when it is damaged.
    pub(super) fn body(&self, offset: u64, header: &Header) -> io::Result<Option<Vec<u8>>> {
        let mut body = vec![0; header.length as usize];
        let count = self.file.read_at(&mut body, header.at(offset).body())?;
        let whole = count == body.len() && record::body_crc(self.seed, &body) == header.body_crc;
        Ok(whole.then_some(body))
    }

    fn header_at(&mut self, offset: u64) -> io::Result<Option<Header>> {
        if offset + HEADER as u64 > self.limit {
            return Ok(None);
        }
        let inside = offset >= self.chunk_start && offset + HEADER as u64 <= self.chunk_start + self.chunk.len() as u64;
        if !inside {
            let length = WALK_CHUNK.min((self.limit - offset) as usize);
            self.chunk.resize(length, 0);
            let count = self.file.read_at(&mut self.chunk, offset)?;
            self.chunk.truncate(count);
            self.chunk_start = offset;
        }
        let from = (offset - self.chunk_start) as usize;
        let header = self
            .chunk
            .get(from..from + HEADER)
            .and_then(|bytes| Header::decode(bytes, self.seed));
        Ok(header.filter(|header| header.at(offset).end() <= self.limit))
    }

    /// Looks for the next whole header, on every multiple of eight. Costs a read of the rest of the segment at worst,
    /// and only happens behind the end of the last segment or behind damage.
    fn search(&self, from: u64) -> io::Result<Option<u64>> {
        let mut chunk = vec![0; SEARCH_CHUNK];
        let mut start = from;
        while start + HEADER as u64 <= self.limit {
            let length = SEARCH_CHUNK.min((self.limit - start) as usize);
            let count = self.file.read_at(&mut chunk[..length], start)?;
            let mut at = 0;
            while at + HEADER <= count {
                if let Some(header) = Header::decode(&chunk[at..count], self.seed)
                    && header.at(start + at as u64).end() <= self.limit
                {
                    return Ok(Some(start + at as u64));
                }
                at += 8;
            }
            if count < length || at == 0 {
                break;
            }
            start += at as u64;
        }
        Ok(None)
    }
}

/// A lock whose holder panicked is still a lock: nothing under these locks is left half done by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
