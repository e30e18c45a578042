//! Where the next segment comes from, and when there will be none.
//!
//! The order of preference: a segment that nobody wants any more; a new file, while `max_size` and the disk allow; a
//! segment that is only kept for replay; one that forwarding gives up, where the configuration says so; nothing.

use std::collections::VecDeque;

use super::core::{ReaderState, Sealed, State};
use super::options::Settings;

/// Where the next segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Write over this one of the sealed segments. Its file has the right size.
    Recycle(usize),
    /// Write over this one, and give its file the right size.
    Resize(usize),
    /// Remove this one, which has another size, then ask again.
    Remove(usize),
    /// A new file.
    Create,
    /// Every byte is wanted.
    Full,
}

/// Decides, and moves readers that may skip when nothing else helps. `free` is what the file system has left.
pub(super) fn room(state: &mut State, settings: &Settings, size: u64, free: u64, now: u64) -> Room {
    let usable = |state: &State, sealed: &Sealed| {
        let old = sealed.segment.size;
        let may_grow = || {
            state.file_bytes - old + size <= settings.segment_bytes
                && free >= (size - old).saturating_add(settings.free_disk_floor)
        };
        if old == size {
            Room::Recycle(0)
        } else if state.sealed.len() > 1 {
            Room::Remove(0)
        } else if old > size || may_grow() {
            // The newest one: its header must stay until the next one is durable.
            Room::Resize(0)
        } else {
            Room::Full
        }
    };
    // An empty one, from a start after which nothing came or a segment of which everything was refused. One of
    // another size stays for now: its header may be the only one to say what was refused in the segment before it.
    let is_free = |sealed: &Sealed| sealed.is_empty() && sealed.is_quiet() && sealed.segment.size == size;
    if let Some(index) = state.sealed.iter().position(is_free) {
        return Room::Recycle(index);
    }
    let front = state.sealed.front().filter(|front| front.is_quiet());
    let released = front.filter(|front| is_passed(&state.readers, front));
    if let Some(front) = released.filter(|front| front.summary.newest.saturating_add(settings.retain) <= now) {
        return usable(state, front);
    }
    if state.file_bytes + size <= settings.segment_bytes && free >= size.saturating_add(settings.free_disk_floor) {
        return Room::Create;
    }
    if let Some(front) = released {
        return usable(state, front);
    }
    if settings.skip_forwarding
        && let Some(front) = front
        && let Some(skipped) = skippable(&state.readers, front)
    {
        let to = front.summary.last + 1;
        let room = usable(state, front);
        if room == Room::Full {
            return room;
        }
        for index in skipped {
            let reader = &mut state.readers[index];
            reader.passed = Some(to);
            reader.skip_to = to;
        }
        return room;
    }
    Room::Full
}

/// Whether every reader is durably behind this segment.
pub(super) fn is_passed(readers: &[ReaderState], sealed: &Sealed) -> bool {
    readers
        .iter()
        .all(|reader| reader.passed.is_some_and(|passed| passed > sealed.summary.last))
}

/// The readers that hold this segment, if all of them may be moved on.
fn skippable(readers: &[ReaderState], sealed: &Sealed) -> Option<Vec<usize>> {
    let mut holders = Vec::new();
    for (index, reader) in readers.iter().enumerate() {
        let passed = reader.passed.filter(|_| reader.may_skip);
        match reader.passed {
            Some(position) if position > sealed.summary.last => {}
            _ if passed.is_some() => holders.push(index),
            _ => return None,
        }
    }
    Some(holders)
}

/// Bytes of segment files that readers still want, or that cannot be reused yet.
pub(super) fn pinned(sealed: &VecDeque<Sealed>, readers: &[ReaderState], active: u64) -> u64 {
    let held: u64 = sealed
        .iter()
        .filter(|sealed| !is_passed(readers, sealed))
        .map(|sealed| sealed.segment.size)
        .sum();
    held + active
}

/// How fast requests come in: a moving average over about a minute.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inflow {
    at: u64,
    bytes: u64,
    rate: f64,
}

impl Inflow {
    const HORIZON_SECONDS: f64 = 60.0;

    pub(super) fn observe(&mut self, bytes: u64, now: u64) {
        if self.at == 0 || now <= self.at {
            *self = Self {
                at: now,
                bytes,
                rate: self.rate,
            };
            return;
        }
        let seconds = (now - self.at) as f64 / 1e9;
        if seconds < 0.5 {
            return;
        }
        let rate = bytes.saturating_sub(self.bytes) as f64 / seconds;
        let weight = 1.0 - (-seconds / Self::HORIZON_SECONDS).exp();
        // The first observation counts in full: an estimate that starts at zero would promise too much for a minute.
        let weight = if self.rate == 0.0 { 1.0 } else { weight };
        *self = Self {
            at: now,
            bytes,
            rate: self.rate + weight * (rate - self.rate),
        };
    }

    /// Seconds in which `bytes` are used up; `None` when nothing comes in.
    pub(super) fn seconds_for(&self, bytes: u64) -> Option<f64> {
        (self.rate >= 1.0).then(|| bytes as f64 / self.rate)
    }
}
