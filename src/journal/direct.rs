//! Records written past the page cache, with direct I/O.
//!
//! Through the page cache each page of a record is found, filled, marked, written back and marked again by itself, which
//! costs as much as all else that the journal does, and the memory that a container is charged for. Here records wait
//! where they are until the next sync. That lays them one behind the other into one piece of memory, from which the
//! disk fetches them; but a large body that lies on a page is placed on a block of the file, and fetched from where it is.
//!
//! # Invariants
//!
//! 1. A sync that has succeeded has brought everything to the disk up to the place it was asked for.
//! 2. Each write begins and ends on a multiple of [`BLOCK`]. The block in which the last one ended is written again with
//!    what follows: what is durable in it is the same bytes at the same place, so that neither a torn write nor who
//!    reads it meanwhile meets anything else.
//! 3. After a failure nothing more is written, and what waited is dropped: it was not answered, and is refused.
//! 4. Beside the memory for one write and the bodies, which are bounded by
//!    [`max_unsynced`](super::options::Options::max_unsynced), nothing is held. After [`close`](DirectWriter::close) a
//!    writer holds nothing at all, no open file either; the memory waits for the next one.
//!
//! Readers use the page cache as ever: the system drops the pages that a direct write goes by, before the sync returns
//! and thus before any reader may look for what is new there. While one of them is so far behind that it reads from files,
//! the same blocks are written through the page cache, or the disk would have to read all of them again. An exporter whose
//! backend is away is such a reader.
//!
//! What waits here is lost when the process dies, which is why an interval between syncs
//! ([`Fsync::Interval`](super::options::Fsync)) does without.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::disk::{BLOCK, Disk, DiskFile, is_not_direct};
use super::record::{HEADER, Placement};
use super::segment::{DATA_START, lock};
use crate::failpoint::{self, Point};

/// Bytes that are copied for one write at most, and after which no further body is taken into it. Two large requests fit,
/// which is what shares a sync under load.
pub(super) const MEMORY: usize = 1 << 20;

/// Shorter bodies are copied: the block that their header would take for itself costs as much.
pub(super) const LEAST: usize = 48 << 10;

/// Whether the file system can do it, as far as is known.
#[derive(Debug)]
pub(super) struct DirectIo {
    memory: usize,
    least: usize,
    /// That of the last writer, whose pages are there already. Empty: there is none.
    spare: Mutex<Vec<u8>>,
    is_refused: AtomicBool,
}

impl DirectIo {
    /// `memory` is how many bytes are written at once, a multiple of [`BLOCK`]; `least` how long a body is that is
    /// written from where it is.
    pub(super) fn new(memory: usize, least: usize) -> Self {
        Self {
            memory,
            least,
            spare: Mutex::default(),
            is_refused: AtomicBool::new(false),
        }
    }

    /// For the next life of a segment file. `None`: it goes through the page cache.
    pub(super) fn writer(self: &Arc<Self>, disk: &dyn Disk, name: &str, size: u64) -> Option<DirectWriter> {
        // The last block must not reach beyond the file.
        if self.is_refused() || !size.is_multiple_of(BLOCK as u64) {
            return None;
        }
        match disk.open_direct(name) {
            Ok(file) => file.map(|file| DirectWriter::new(file, Arc::clone(self))),
            Err(error) if is_not_direct(&error) => {
                self.refuse(&error);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a journal segment is written through the page cache");
                None
            }
        }
    }

    /// Empty memory with room for one write that begins on a page.
    fn take_memory(&self) -> Vec<u8> {
        let mut memory = std::mem::take(&mut *lock(&self.spare));
        memory.clear();
        memory.reserve_exact(self.memory + BLOCK);
        memory
    }

    fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, error: &io::Error) {
        if !self.is_refused.swap(true, Ordering::Relaxed) {
            tracing::info!(%error, "the journal's file system cannot write past the page cache: the journal goes through it");
        }
    }
}

/// The way into one life of a segment file.
pub(super) struct DirectWriter {
    direct_io: Arc<DirectIo>,
    waiting: Mutex<Waiting>,
    /// Locked by the one who syncs. `None`: closed.
    output: Mutex<Option<Output>>,
}

struct Output {
    file: Arc<dyn DiskFile>,
    blocks: Blocks,
}

/// A record on its way.
struct Placed {
    at: Placement,
    header: [u8; HEADER],
    body: Bytes,
}

/// Records that no sync has taken yet, by offset. They come nearly in that order.
struct Waiting {
    records: VecDeque<Placed>,
    /// Where the next one to be taken begins.
    next: u64,
    is_closed: bool,
}

impl Waiting {
    fn put(&mut self, record: Placed) {
        let behind = self.records.partition_point(|other| other.at.offset < record.at.offset);
        self.records.insert(behind, record);
    }

    /// Takes the first one before `end`, unless something in front of it is still missing.
    fn take(&mut self, end: u64) -> Option<Placed> {
        let is_next = |record: &mut Placed| record.at.offset == self.next && record.at.offset < end;
        let record = self.records.pop_front_if(is_next)?;
        self.next = record.at.next();
        Some(record)
    }
}

impl DirectWriter {
    fn new(file: Arc<dyn DiskFile>, direct_io: Arc<DirectIo>) -> Self {
        let waiting = Waiting {
            records: VecDeque::new(),
            next: DATA_START,
            is_closed: false,
        };
        let blocks = Blocks::new(direct_io.take_memory(), direct_io.memory, DATA_START);
        Self {
            direct_io,
            waiting: Mutex::new(waiting),
            output: Mutex::new(Some(Output { file, blocks })),
        }
    }

    /// Whether a body can be written from where it is, if it is placed on a block.
    pub(super) fn takes_as_it_is(&self, body: &Bytes) -> bool {
        body.len() >= self.direct_io.least && body.as_ptr().addr().is_multiple_of(BLOCK)
    }

    /// Takes a record for the next sync. One that comes after [`close`](Self::close) is refused.
    pub(super) fn append(&self, header: [u8; HEADER], body: Bytes, at: Placement) {
        let mut waiting = lock(&self.waiting);
        if !waiting.is_closed {
            waiting.put(Placed { at, header, body });
        }
    }

    /// Brings to the disk what was appended up to `end`, which must be all without a gap. `cached` is the same file
    /// through the page cache, in which it is afterwards if it `is_read_back`.
    pub(super) fn sync(&self, cached: &dyn DiskFile, end: u64, is_read_back: bool) -> io::Result<()> {
        let outcome = self.write(cached, end, is_read_back).and_then(|written| {
            failpoint::hit(Point::AfterWrite);
            if written < end {
                return Err(io::Error::other("a record that was to be synced was never written"));
            }
            cached.sync_data()
        });
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    /// Nothing is going to be written any more.
    pub(super) fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.is_closed = true;
        waiting.records = VecDeque::new();
        drop(waiting);
        if let Some(Output { blocks, .. }) = lock(&self.output).take() {
            *lock(&self.direct_io.spare) = blocks.memory;
        }
    }

    /// Writes what lies before `end`; what comes meanwhile would keep those waiting who came before. Returns where what is
    /// written ends.
    fn write(&self, cached: &dyn DiskFile, end: u64, is_read_back: bool) -> io::Result<u64> {
        let mut guard = lock(&self.output);
        let Some(Output { file, blocks }) = &mut *guard else {
            return Err(io::Error::other("the segment was given up"));
        };
        let mut out = |parts: &[&[u8]], offset| {
            if !is_read_back && !self.direct_io.is_refused() {
                match file.write_at(parts, offset) {
                    Err(error) if is_not_direct(&error) => self.direct_io.refuse(&error),
                    outcome => return outcome,
                }
            }
            cached.write_at(parts, offset)
        };
        loop {
            // One at a time: whoever appends does not wait for the disk.
            let Some(record) = lock(&self.waiting).take(end) else {
                break;
            };
            let Placed { at, header, body } = record;
            blocks.push(&header, &mut out)?;
            blocks.push(zeros(blocks.end(), at.body()), &mut out)?;
            if at.on_block {
                blocks.push_body(body, &mut out)?;
            } else {
                blocks.push(&body, &mut out)?;
            }
            blocks.push(zeros(blocks.end(), at.next()), &mut out)?;
        }
        blocks.flush(&mut out)?;
        Ok(blocks.end())
    }
}

/// What lies between two parts of a record.
fn zeros(from: u64, to: u64) -> &'static [u8] {
    &[0; BLOCK][..(to - from) as usize]
}

/// Writes parts one behind the other at an offset.
trait Write: FnMut(&[&[u8]], u64) -> io::Result<()> {}

impl<F: FnMut(&[&[u8]], u64) -> io::Result<()>> Write for F {}

/// What is to be written next: a part of the file that begins on a multiple of [`BLOCK`], in pieces that do so in memory
/// and in the file.
struct Blocks {
    /// What was copied, from `origin` on. Has its room from the beginning; what is not used is not touched, as the system
    /// would have to find and clear it.
    memory: Vec<u8>,
    /// The first place that is on a page.
    origin: usize,
    /// How much room there is from there on.
    length: usize,
    /// Where the piece begins that grows still, counted from `origin`; what is before lies in `pieces`.
    open: usize,
    pieces: Vec<Piece>,
    /// Bytes of `pieces`.
    gathered: usize,
    /// Where the first piece lies in the file.
    offset: u64,
    /// Not all of it is in the file.
    is_dirty: bool,
}

/// Whole blocks.
enum Piece {
    /// Of the memory that can be used.
    Memory(Range<usize>),
    Body(Bytes),
}

impl Piece {
    fn length(&self) -> usize {
        match self {
            Piece::Memory(range) => range.len(),
            Piece::Body(body) => body.len(),
        }
    }
}

impl Blocks {
    /// `memory` has room for `length` from its first page on.
    fn new(mut memory: Vec<u8>, length: usize, offset: u64) -> Self {
        let origin = memory.as_ptr().align_offset(BLOCK);
        memory.resize(origin, 0);
        Self {
            memory,
            origin,
            length,
            open: 0,
            pieces: Vec::new(),
            gathered: 0,
            offset,
            is_dirty: false,
        }
    }

    /// How much was copied.
    fn filled(&self) -> usize {
        self.memory.len() - self.origin
    }

    /// Where in the file that ends which was pushed.
    fn end(&self) -> u64 {
        self.offset + (self.gathered + self.filled() - self.open) as u64
    }

    /// Copies a part.
    fn push(&mut self, mut part: &[u8], write: &mut impl Write) -> io::Result<()> {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(self.length - self.filled()));
            self.memory.extend_from_slice(now);
            self.is_dirty = true;
            part = later;
            if self.filled() == self.length {
                self.flush(write)?;
            }
        }
        Ok(())
    }

    /// Takes a body that begins on a block, here as in the file; what it has beyond its last whole block is copied.
    fn push_body(&mut self, mut body: Bytes, write: &mut impl Write) -> io::Result<()> {
        if self.gathered >= self.length {
            self.flush(write)?;
        }
        let rest = body.split_off(body.len() - body.len() % BLOCK);
        if !body.is_empty() {
            self.close_piece();
            self.gather(Piece::Body(body));
        }
        self.push(&rest, write)
    }

    /// What was copied so far, whole blocks, comes before what follows.
    fn close_piece(&mut self) {
        let filled = self.filled();
        if self.open < filled {
            self.gather(Piece::Memory(self.open..filled));
            self.open = filled;
        }
    }

    fn gather(&mut self, piece: Piece) {
        self.gathered += piece.length();
        self.pieces.push(piece);
        self.is_dirty = true;
    }

    /// Writes what was not written, with the block it begins in, and zeros up to the end of the last one. What is in
    /// that block is kept.
    fn flush(&mut self, write: &mut impl Write) -> io::Result<()> {
        if !self.is_dirty {
            return Ok(());
        }
        let (filled, end) = (self.filled(), self.end());
        let padded = filled.next_multiple_of(BLOCK);
        self.memory.resize(self.origin + padded, 0);
        let used = &self.memory[self.origin..];
        let gathered = self.pieces.iter().map(|piece| match piece {
            Piece::Memory(range) => &used[range.clone()],
            Piece::Body(body) => body,
        });
        let parts: Vec<&[u8]> = gathered
            .chain([&used[self.open..]])
            .filter(|part| !part.is_empty())
            .collect();
        write(&parts, self.offset)?;
        let rest = filled % BLOCK;
        let last = self.origin + filled - rest;
        self.memory.copy_within(last..last + rest, self.origin);
        self.memory.truncate(self.origin + rest);
        self.offset = end - rest as u64;
        self.open = 0;
        self.pieces.clear();
        self.gathered = 0;
        self.is_dirty = false;
        Ok(())
    }
}
