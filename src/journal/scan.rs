//! Where a segment that may have been interrupted really ends, and making that durable.

use std::io;

use super::disk::{DiskFile, is_no_room};
use super::segment::{DATA_START, Frame, Mark, Segment, Summary, Walk};

/// What was found in a segment.
pub(super) struct Scan {
    pub(super) summary: Summary,
    /// Newest sequence that a record here knows to be on the disk.
    pub(super) known_durable: u64,
    /// Records missing that had been acknowledged.
    pub(super) lost: u64,
    /// Records missing of which that is not known.
    pub(super) unfinished: u64,
    /// What the disk said about places that it could not read. They were passed over.
    pub(super) unreadable: Option<String>,
}

/// A segment in which nothing was found.
pub(super) fn empty(segment: &Segment) -> Summary {
    let header = &segment.header;
    Summary {
        incarnation: header.incarnation,
        first: header.first,
        last: header.first.saturating_sub(1),
        end: DATA_START,
        ..Summary::default()
    }
}

/// Walks over a segment. `check_bodies` where it may have been interrupted.
pub(super) fn scan(segment: &Segment, valid_through: u64, check_bodies: bool) -> Scan {
    let mut walk = Walk::new(segment, DATA_START, segment.size);
    let mut summary = empty(segment);
    let mut holes: Vec<(u64, u64)> = Vec::new();
    let mut expected = segment.header.first;
    let mut known_durable = 0;
    let mut unreadable = None;
    loop {
        let frame = match walk.next() {
            Ok(frame) => frame,
            Err(error) => {
                unreadable = Some(error.to_string());
                walk.skip_page();
                continue;
            }
        };
        match frame {
            Frame::End => break,
            Frame::Gap { .. } => {}
            Frame::Record { offset, header } => {
                if header.sequence > valid_through {
                    break;
                }
                if header.sequence < expected {
                    continue;
                }
                known_durable = known_durable.max(header.durable);
                if header.sequence > expected {
                    holes.push((expected, header.sequence));
                }
                expected = header.sequence + 1;
                let is_whole = !check_bodies
                    || walk
                        .body(offset, &header)
                        .unwrap_or_else(|error| {
                            unreadable = Some(error.to_string());
                            None
                        })
                        .is_some();
                if !is_whole {
                    holes.push((header.sequence, header.sequence + 1));
                    continue;
                }
                segment.note(Mark {
                    sequence: header.sequence,
                    offset,
                    received_at: header.received_at,
                });
                summary.last = header.sequence;
                summary.end = header.at(offset).next();
                summary.records += 1;
                summary.newest = summary.newest.max(header.received_at);
                if header.digest.is_some() {
                    summary.newest_digest = summary.newest_digest.max(header.received_at);
                }
            }
        }
    }
    let (mut lost, mut unfinished) = (0, 0);
    for (from, to) in holes {
        let acknowledged = to.min(known_durable.saturating_add(1)).saturating_sub(from);
        lost += acknowledged;
        unfinished += to - from - acknowledged;
    }
    Scan {
        summary,
        known_durable,
        lost,
        unfinished,
        unreadable,
    }
}

/// Cuts off what is behind the last record and makes the rest durable. Returns the new size.
///
/// Syncing is not enough: when a sync had failed just before the program died, the pages count as clean although they
/// are not on the disk. So what is not known to be durable is written again, as it is. When that fails the journal must
/// not be opened: readers and senders would be told that it is safe. Only where there is no room to write over what is
/// there (a file system that copies on write) it is opened nevertheless, because the readers may make some.
pub(super) fn settle(segment: &Segment, scan: &Scan) -> io::Result<u64> {
    let end = scan.summary.end;
    match rewrite_records(segment, scan) {
        Err(error) if is_no_room(&error) => {
            tracing::warn!(%error, "no room to write the newest records of the journal again");
        }
        outcome => outcome?,
    }
    let size = end.next_multiple_of(4096);
    // Only to give room back: nothing is ever appended here, so a file that cannot be cut is just larger.
    // One without records keeps its size, to be written over.
    let is_worth_it = scan.summary.records > 0 && scan.unreadable.is_none() && size < segment.size;
    let is_cut = is_worth_it && segment.file.truncate(size).is_ok();
    segment.file.sync_data()?;
    Ok(if is_cut { size } else { segment.size })
}

/// Writes again each record that is not known to be durable. What the scan could not read it has passed over, and so
/// does this.
fn rewrite_records(segment: &Segment, scan: &Scan) -> io::Result<()> {
    let mut walk = Walk::new(segment, DATA_START, scan.summary.end);
    loop {
        match walk.next() {
            Ok(Frame::End) => return Ok(()),
            Ok(Frame::Record { offset, header }) if header.sequence > scan.known_durable => {
                match walk.body(offset, &header) {
                    Ok(Some(_)) => rewrite(&*segment.file, offset, header.at(offset).end())?,
                    Err(error) if scan.unreadable.is_none() => return Err(error),
                    Ok(None) | Err(_) => {}
                }
            }
            Ok(Frame::Record { .. } | Frame::Gap { .. }) => {}
            Err(error) if scan.unreadable.is_none() => return Err(error),
            Err(_) => walk.skip_page(),
        }
    }
}

/// Writes again what is there, as it is, so that the system takes it for new.
pub(super) fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; (1 << 20).min((to - from) as usize)];
    let mut at = from;
    while at < to {
        let length = buffer.len().min((to - at) as usize);
        let count = file.read_at(&mut buffer[..length], at)?;
        if count == 0 {
            break;
        }
        file.write_at(&[&buffer[..count]], at)?;
        at += count as u64;
    }
    Ok(())
}
