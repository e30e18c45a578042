//! Reading records from segment files, for readers that lag behind the hot tail. Blocking.
//!
//! Every body is checked. A damaged one is stepped over exactly; behind a damaged header the next whole one is looked
//! for. Both are counted. What a recycled segment says is not believed: its life may have ended while it was being
//! read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::core::{Core, State};
use super::record::{self, HEADER, Header, Record};
use super::segment::{DATA_START, Frame, Mark, Segment, Walk, lock};
use crate::buffers::Buffers;

/// A reader's place in a file, so that the next read does not look for it again.
#[derive(Clone)]
pub(super) struct Place {
    segment: Arc<Segment>,
    offset: u64,
    next: u64,
}

/// What may be read of one segment now.
struct View {
    segment: Arc<Segment>,
    first: u64,
    last: u64,
    end: u64,
    /// Records between first and last that recovery knew to be missing, and counted.
    known_missing: u64,
}

/// What one call read.
pub(super) struct ColdRead {
    pub(super) records: Vec<Record>,
    pub(super) next: u64,
    pub(super) place: Option<Place>,
    pub(super) damaged: u64,
}

/// How much is read at a time where bodies are small.
const CHUNK: usize = 1 << 20;

/// From here on a body is read by itself, with the header behind it: at the end of a chunk most of one would be read in
/// vain, and be read again with the next.
const LARGE: usize = 64 << 10;

const PAGE: u64 = 4096;

impl State {
    /// The segment with the first durable record at or after `next`.
    fn view(&self, next: u64) -> Option<View> {
        let sealed = self.sealed.iter().map(|sealed| (&sealed.segment, &sealed.summary));
        let active = self.active.iter().map(|active| (&active.segment, &active.durable));
        let (segment, summary) = sealed
            .chain(active)
            .find(|(_, summary)| summary.records > 0 && summary.last >= next)?;
        Some(View {
            segment: Arc::clone(segment),
            first: summary.first,
            last: summary.last,
            end: summary.end,
            known_missing: (summary.last - summary.first + 1).saturating_sub(summary.records),
        })
    }
}

/// Reads durable records from `next` on. With `insist`, what the disk refuses to read is treated as damaged.
pub(super) fn read(
    core: &Core,
    index: usize,
    next: u64,
    place: Option<Place>,
    max_bytes: usize,
    max_records: usize,
    insist: bool,
) -> io::Result<ColdRead> {
    let mut read = ColdRead {
        records: Vec::new(),
        next,
        place,
        damaged: 0,
    };
    while read.records.is_empty() {
        let view = {
            let state = lock(&core.state);
            read.next = read.next.max(state.readers[index].skip_to);
            let view = state.view(read.next);
            if view.is_none() {
                // Nothing is left up to the end: what was there was lost with its segment, and was told at recovery.
                read.next = read.next.max(state.durable + 1);
            }
            view
        };
        let Some(view) = view else { break };
        read_segment(&core.buffers, &view, &mut read, max_bytes, max_records.max(1), insist)?;
    }
    Ok(read)
}

fn read_segment(
    buffers: &Arc<Buffers>,
    view: &View,
    read: &mut ColdRead,
    max_bytes: usize,
    max_records: usize,
    insist: bool,
) -> io::Result<()> {
    let segment = &view.segment;
    let from = read.next;
    let mut expected = read.next.max(view.first);
    let mut offset = match &read.place {
        Some(place) if Arc::ptr_eq(&place.segment, segment) && place.next == read.next => place.offset,
        _ => segment.mark_before(read.next).map_or(DATA_START, |mark| mark.offset),
    };
    let mut records = Vec::new();
    let mut damaged = 0;
    let mut is_at_end = false;
    let mut bytes = 0_usize;
    let mut chunk = Chunk {
        buffers,
        bytes: Bytes::new(),
        start: 0,
        total: 0,
        ahead: PAGE as usize,
    };
    while expected <= view.last && records.len() < max_records {
        let header = match chunk.get(segment, offset, HEADER, view.end) {
            Ok(found) => found.and_then(|bytes| Header::decode(&bytes, segment.seed)),
            Err(error) if !insist => return Err(error),
            Err(_) => None,
        };
        let Some(header) = header.filter(|header| header.at(offset).next() <= view.end) else {
            match find_next(segment, offset, view.end, insist)? {
                Some(found) => offset = found,
                None => {
                    is_at_end = true;
                    break;
                }
            }
            continue;
        };
        let at = header.at(offset);
        offset = at.next();
        if header.sequence < expected {
            segment.note(Mark {
                sequence: header.sequence,
                offset: at.offset,
                received_at: header.received_at,
            });
            continue;
        }
        if header.sequence > view.last {
            is_at_end = true;
            break;
        }
        let length = header.length as usize;
        if !records.is_empty() && bytes + length > max_bytes {
            offset = at.offset;
            break;
        }
        damaged += header.sequence - expected;
        let sequence = header.sequence;
        chunk.ahead = match length < LARGE {
            true => CHUNK.min(max_bytes.saturating_sub(bytes)),
            false => (at.next() - at.body()) as usize + HEADER,
        };
        let body = match chunk.get(segment, at.body(), length, view.end) {
            Ok(found) => found.filter(|body| record::body_crc(segment.seed, body) == header.body_crc),
            Err(error) if !insist => return Err(error),
            Err(_) => None,
        };
        expected = sequence + 1;
        let Some(body) = body else {
            damaged += 1;
            continue;
        };
        segment.note(Mark {
            sequence,
            offset: at.offset,
            received_at: header.received_at,
        });
        bytes += length;
        records.push(header.into_record(body));
    }
    if is_at_end {
        damaged += (view.last + 1).saturating_sub(expected);
        expected = view.last + 1;
    }
    if segment.retired.load(Ordering::Acquire) {
        // The reader was moved on meanwhile, and this was already something else.
        read.place = None;
        return Ok(());
    }
    debug_assert!(expected > from || !records.is_empty());
    // Whoever keeps them would keep much more than they are.
    if bytes < chunk.total / 4 {
        for record in &mut records {
            record.body = Bytes::copy_from_slice(&record.body);
        }
    }
    read.damaged += damaged.saturating_sub(view.known_missing.min(damaged));
    read.records = records;
    read.next = expected;
    read.place = Some(Place {
        segment: Arc::clone(segment),
        offset,
        next: expected,
    });
    Ok(())
}

/// The next whole header behind damage.
fn find_next(segment: &Segment, offset: u64, end: u64, insist: bool) -> io::Result<Option<u64>> {
    let mut from = offset + 8;
    loop {
        let mut walk = Walk::new(segment, from, end);
        match walk.next() {
            Ok(Frame::Record { offset, .. }) => return Ok(Some(offset)),
            Ok(Frame::Gap { resume }) => return Ok(Some(resume)),
            Ok(Frame::End) => return Ok(None),
            Err(error) if !insist => return Err(error),
            // Unreadable pages are passed one by one.
            Err(_) if from < end => from = (from + 1).next_multiple_of(PAGE),
            Err(_) => return Ok(None),
        }
    }
}

/// A piece of the file in memory. Bodies are slices of it.
struct Chunk<'a> {
    buffers: &'a Arc<Buffers>,
    bytes: Bytes,
    start: u64,
    /// Bytes of all pieces so far.
    total: usize,
    /// How much the next piece is to have.
    ahead: usize,
}

impl Chunk<'_> {
    /// `length` bytes at `offset`; `None` when the file is too short.
    fn get(&mut self, segment: &Segment, offset: u64, length: usize, end: u64) -> io::Result<Option<Bytes>> {
        let is_inside = offset >= self.start && offset + length as u64 <= self.start + self.bytes.len() as u64;
        if !is_inside {
            let wanted = self.ahead.min(end.saturating_sub(offset) as usize).max(length);
            let mut buffer = self.buffers.take(wanted);
            let count = match segment.file.read_at(&mut buffer.room()[..wanted], offset) {
                Ok(count) => count,
                // Perhaps only a page further on is unreadable.
                Err(_) if wanted > length => segment.file.read_at(&mut buffer.room()[..length], offset)?,
                Err(error) => return Err(error),
            };
            buffer.fill(count);
            self.total += count;
            self.bytes = buffer.freeze();
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        Ok((from + length <= self.bytes.len()).then(|| self.bytes.slice(from..from + length)))
    }
}
