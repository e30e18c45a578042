//! Changing segments: seal the active one, find room for the next, write its header, and let in what waited
//! meanwhile.
//!
//! Nothing is appended to the new segment before everything in the old one is durable or refused, and before its own
//! header is durable. The header names the last valid sequence, so that refused records which reached the disk anyway
//! are never read.
//!
//! The newest header on the disk is also the only place that surely says how far this journal has come: which start
//! it was, and behind which sequence. (`journal.id` may not have been written, on a full disk.) It is written over by
//! the next one, but never removed before the next one is durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::budget::{self, Room};
use super::core::{Active, Condition, Core, Phase, Reservation, Sealed, Spoiled, State};
use super::dedup::SNAPSHOT_FILE;
use super::disk::{BLOCK, is_no_room, replace_file};
use super::error::AppendError;
use super::options::nanos;
use super::record::span_of;
use super::segment::{DATA_START, Segment, SegmentHeader, Summary, file_name, lock};

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// Segments that nobody wants are kept for reuse; more than these are removed.
const SPARE_SEGMENTS: usize = 2;

enum Outcome {
    Ready(Arc<Segment>),
    Full,
}

impl Core {
    /// Tries to install a new active segment. Only the sync thread calls this.
    pub(super) fn rotate(&self, now: u64) {
        let (header, size) = {
            let mut state = lock(&self.state);
            self.seal(&mut state);
            state.incarnation += 1;
            let first = state.parked.front().map_or(state.next, |parked| parked.sequence);
            let largest = state
                .parked
                .front()
                .map_or(0, |parked| span_of(parked.entry.body.len()));
            let header = SegmentHeader {
                id: self.identity.id,
                key: self.identity.key,
                incarnation: state.incarnation,
                epoch: self.identity.starts,
                first,
                created_at: now,
                valid_before: state.durable,
                previous: state.last_summary,
                released: state.released,
            };
            (
                header,
                self.settings
                    .segment_size
                    // With room for the body to begin on a block.
                    .max((DATA_START + largest).next_multiple_of(BLOCK as u64) + BLOCK as u64),
            )
        };
        match self.find_room(header, size, now) {
            Ok(Outcome::Ready(segment)) => {
                self.install(segment);
                if let Err(error) = self.sweep(true) {
                    tracing::warn!(%error, "a segment file that is of no use could not be removed");
                }
            }
            Ok(Outcome::Full) => self.stall(now, None),
            Err(error) if is_no_room(&error) => {
                tracing::warn!(%error, "no room for another journal segment");
                self.stall(now, None);
            }
            Err(error) => {
                tracing::error!(%error, "cannot begin another journal segment");
                self.stall(now, Some(error.to_string().into()));
            }
        }
    }

    fn seal(&self, state: &mut State) {
        if let Some(active) = state.active.take() {
            active.segment.seal();
            state.sealed.push_back(Sealed {
                segment: active.segment,
                summary: active.durable,
            });
        }
    }

    fn find_room(&self, mut header: SegmentHeader, size: u64, now: u64) -> io::Result<Outcome> {
        let free = self.disk.free_space()?;
        loop {
            let (room, victim, number, is_newest) = {
                let mut state = lock(&self.state);
                let positions: Vec<Option<u64>> = state.readers.iter().map(|reader| reader.passed).collect();
                let room = budget::room(&mut state, &self.settings, size, free, now);
                self.count_skipped(&state, &positions);
                let (victim, is_newest) = match room {
                    Room::Recycle(index) | Room::Resize(index) | Room::Remove(index) => {
                        let is_newest = index + 1 == state.sealed.len();
                        (state.sealed.remove(index), is_newest)
                    }
                    Room::Create | Room::Full => (None, false),
                };
                header.released = state.released;
                let number = state.next_number;
                if room == Room::Create {
                    state.next_number += 1;
                }
                (room, victim, number, is_newest)
            };
            match (room, victim) {
                (Room::Full, _) => return Ok(Outcome::Full),
                (Room::Create, _) => {
                    let file = self.create_segment(number, &header, size)?;
                    lock(&self.state).file_bytes += size;
                    return Ok(Outcome::Ready(self.segment(number, file, size, &header)));
                }
                (Room::Recycle(index), Some(victim)) => {
                    if let Err(error) = self.cover_digests(&victim, now) {
                        lock(&self.state).sealed.insert(index, victim);
                        return Err(error);
                    }
                    self.write_over(&victim, victim.segment.size, &mut header, is_newest)?;
                    self.meters.recycled.increment(1);
                    let Segment {
                        number, size, ref file, ..
                    } = *victim.segment;
                    return Ok(Outcome::Ready(self.segment(number, Arc::clone(file), size, &header)));
                }
                (Room::Resize(index), Some(victim)) => {
                    if let Err(error) = self.cover_digests(&victim, now) {
                        lock(&self.state).sealed.insert(index, victim);
                        return Err(error);
                    }
                    let segment = self.resize(victim, &mut header, size)?;
                    self.meters.recycled.increment(1);
                    return Ok(Outcome::Ready(segment));
                }
                (Room::Remove(index), Some(victim)) => {
                    if let Err(error) = self.sweep(false).and_then(|()| self.cover_digests(&victim, now)) {
                        lock(&self.state).sealed.insert(index, victim);
                        return Err(error);
                    }
                    self.release(&victim);
                    self.discard(&victim)?;
                }
                (Room::Recycle(_) | Room::Resize(_) | Room::Remove(_), None) => return Ok(Outcome::Full),
            }
        }
    }

    /// Begins the file's next life. What was in it is gone afterwards.
    fn write_over(&self, victim: &Sealed, size: u64, header: &mut SegmentHeader, is_newest: bool) -> io::Result<()> {
        header.released = self.release(victim);
        victim.segment.retired.store(true, Ordering::Release);
        let Segment { number, ref file, .. } = *victim.segment;
        header.write(&**file).inspect_err(|_| {
            // The file cannot be trusted any more; nobody wanted what was in it. But its old header, if that is what
            // is on the disk, may be the only one to say what was refused before it, or how far the journal has come.
            lock(&self.state).spoiled.push_back(Spoiled {
                number,
                size,
                is_needed: is_newest || victim.is_empty(),
            });
        })
    }

    /// Writes over the newest segment, which has another size: it cannot be removed, because its header must stay until
    /// the next one is durable.
    fn resize(&self, victim: Sealed, header: &mut SegmentHeader, size: u64) -> io::Result<Arc<Segment>> {
        let Segment {
            number,
            size: old,
            ref file,
            ..
        } = *victim.segment;
        // A larger file before its next life, a smaller one after: at no moment may old records seem to be missing.
        if old < size
            && let Err(error) = file.allocate(size)
        {
            if let Err(error) = file.truncate(old) {
                tracing::warn!(%error, "a segment file may be larger than it was");
            }
            lock(&self.state).sealed.push_back(victim);
            return Err(error);
        }
        if old < size {
            lock(&self.state).file_bytes += size - old;
        }
        self.write_over(&victim, old.max(size), header, true)?;
        let is_cut = old > size && file.truncate(size).is_ok();
        if is_cut {
            lock(&self.state).file_bytes -= old - size;
        }
        let size = if is_cut { size } else { old.max(size) };
        Ok(self.segment(number, Arc::clone(file), size, header))
    }

    fn segment(
        &self,
        number: u32,
        file: Arc<dyn super::disk::DiskFile>,
        size: u64,
        header: &SegmentHeader,
    ) -> Arc<Segment> {
        let seed = self.identity.seed(header.incarnation, header.epoch);
        let direct = self.direct_io.as_ref();
        let direct = direct.and_then(|direct| direct.writer(&*self.disk, &file_name(number), size));
        Arc::new(Segment::new(number, file, size, header.clone(), seed).with_direct(direct))
    }

    fn create_segment(
        &self,
        number: u32,
        header: &SegmentHeader,
        size: u64,
    ) -> io::Result<Arc<dyn super::disk::DiskFile>> {
        let name = file_name(number);
        let file = self.disk.create(&name)?;
        let prepared = file
            .allocate(size)
            .and_then(|()| header.write(&*file))
            .and_then(|()| self.disk.sync_dir());
        if let Err(error) = prepared {
            lock(&self.state).file_bytes += size;
            // What cannot be removed now counts until it can be; recovery would recognise it.
            if let Err(error) = self.remove_file(Spoiled {
                number,
                size,
                is_needed: false,
            }) {
                tracing::warn!(%error, "an unfinished segment file could not be removed");
            }
            return Err(error);
        }
        Ok(file)
    }

    /// Digests that are still young must outlive their segment.
    fn cover_digests(&self, victim: &Sealed, now: u64) -> io::Result<()> {
        let content = {
            let state = lock(&self.state);
            if state
                .dedup
                .is_covered(victim.summary.last, victim.summary.newest_digest, now)
            {
                return Ok(());
            }
            state.dedup.snapshot(self.identity.id, state.durable, now)
        };
        let through = super::record::u64_at(&content, 32);
        replace_file(&*self.disk, SNAPSHOT_FILE, &content)?;
        lock(&self.state).dedup.snapshot_through = through;
        Ok(())
    }

    /// Removes the file of a segment that is no longer listed.
    fn discard(&self, victim: &Sealed) -> io::Result<()> {
        victim.segment.retired.store(true, Ordering::Release);
        let Segment { number, size, .. } = *victim.segment;
        self.remove_file(Spoiled {
            number,
            size,
            is_needed: victim.is_empty(),
        })
    }

    fn remove_file(&self, file: Spoiled) -> io::Result<()> {
        match self.disk.remove(&file_name(file.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                lock(&self.state).spoiled.push_front(file);
                return Err(error);
            }
            _ => {}
        }
        self.meters.removed.increment(1);
        lock(&self.state).file_bytes -= file.size;
        // In order: should the power fail, a later segment must not be gone while an earlier one is still there.
        self.disk.sync_dir()
    }

    /// Removes what could not be removed or written over earlier. Once a new segment has begun, no header is needed
    /// any more but those of segments with records.
    fn sweep(&self, a_segment_has_begun: bool) -> io::Result<()> {
        loop {
            let spoiled = {
                let mut state = lock(&self.state);
                let index = state
                    .spoiled
                    .iter()
                    .position(|spoiled| a_segment_has_begun || !spoiled.is_needed);
                index.and_then(|index| state.spoiled.remove(index))
            };
            match spoiled {
                Some(spoiled) => self.remove_file(spoiled)?,
                None => break,
            }
        }
        if !a_segment_has_begun {
            return Ok(());
        }
        loop {
            let empty = {
                let mut state = lock(&self.state);
                let size = self.settings.segment_size;
                let is_left_over =
                    |sealed: &Sealed| sealed.is_empty() && sealed.is_quiet() && sealed.segment.size != size;
                let index = state.sealed.iter().position(is_left_over);
                index.and_then(|index| state.sealed.remove(index))
            };
            match empty {
                Some(empty) => self.discard(&empty)?,
                None => return Ok(()),
            }
        }
    }

    fn install(&self, segment: Arc<Segment>) {
        let (refused, parked) = {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            if state.condition != Condition::Writable {
                tracing::info!("the journal takes requests again");
            }
            state.condition = Condition::Writable;
            let durable = Summary {
                incarnation: segment.header.incarnation,
                first: segment.header.first,
                last: segment.header.first - 1,
                end: DATA_START,
                ..Summary::default()
            };
            state.active = Some(Active {
                segment,
                offset: DATA_START,
                durable,
                cut: None,
            });
            (std::mem::take(&mut state.refused), self.admit_parked(state))
        };
        for (completion, reason) in refused {
            completion.complete(Err(reason));
        }
        for (reservation, entry) in parked {
            let outcome = self.write(&reservation, &entry);
            // The future is the sender's; it holds the same completion.
            drop(self.finish(reservation, outcome));
        }
    }

    /// Gives places to what waited, as far as there is room.
    fn admit_parked(&self, state: &mut State) -> Vec<(Reservation, super::Entry)> {
        let mut admitted = Vec::new();
        while let Some(parked) = state.parked.front() {
            let span = span_of(parked.entry.body.len());
            let fits = state
                .active
                .as_ref()
                .is_some_and(|active| active.offset + span <= active.segment.size);
            if !fits {
                break;
            }
            let Some(parked) = state.parked.pop_front() else { break };
            state.parked_bytes -= span;
            if let Some(reservation) = self.reserve(state, parked.sequence, &parked.entry) {
                admitted.push((reservation, parked.entry));
            }
        }
        admitted
    }

    /// No segment to write to: everything that waits is refused, and so is what comes, until a later attempt
    /// succeeds.
    pub(super) fn stall(&self, now: u64, failure: Option<Arc<str>>) {
        let refused = {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            let backoff = match &state.condition {
                Condition::Writable => nanos(FIRST_BACKOFF),
                Condition::Full { backoff, .. } | Condition::Failing { backoff, .. } => {
                    (*backoff * 2).min(nanos(LONGEST_BACKOFF))
                }
            };
            let retry_at = now.saturating_add(backoff);
            if state.condition == Condition::Writable && failure.is_none() {
                tracing::warn!(
                    "the journal is full: requests are refused until a reader has moved on (journal.max_size)"
                );
            }
            state.condition = match failure {
                None => Condition::Full { retry_at, backoff },
                Some(reason) => Condition::Failing {
                    retry_at,
                    backoff,
                    reason,
                },
            };
            let reason = state.refusal(now).unwrap_or(AppendError::Closed);
            let mut refused = std::mem::take(&mut state.refused);
            let parked_from = state.pending.partition_point(|slot| slot.phase != Phase::Parked);
            for slot in state.pending.drain(parked_from..) {
                if let Some(digest) = &slot.digest {
                    state.dedup.forget(digest, slot.sequence);
                }
                self.meters.refused.increment(1);
                refused.push((slot.completion, reason.clone()));
            }
            state.parked.clear();
            state.parked_bytes = 0;
            refused
        };
        for (completion, reason) in refused {
            completion.complete(Err(reason));
        }
    }

    /// Counts what forwarding was made to give up.
    fn count_skipped(&self, state: &State, before: &[Option<u64>]) {
        for ((reader, before), meters) in state.readers.iter().zip(before).zip(&self.meters.readers) {
            if let (Some(to), Some(from)) = (reader.passed.filter(|_| reader.passed != *before), *before) {
                let records = state.records_between(from, to);
                meters.skipped.increment(records);
                tracing::warn!(
                    reader = reader.name,
                    records,
                    "the journal is full: forwarding gives up the oldest records"
                );
            }
        }
    }

    /// Removes segments that nobody wants beyond a few spare ones. Called now and then.
    pub(super) fn trim(&self, now: u64) -> io::Result<()> {
        loop {
            let victim = {
                let mut state = lock(&self.state);
                let is_over = |sealed: &Sealed| {
                    sealed.is_quiet()
                        && budget::is_passed(&state.readers, sealed)
                        && sealed.summary.newest.saturating_add(self.settings.retain) <= now
                };
                if state.sealed.iter().take_while(|sealed| is_over(sealed)).count() <= SPARE_SEGMENTS {
                    return Ok(());
                }
                state.sealed.pop_front()
            };
            let Some(victim) = victim else { return Ok(()) };
            if let Err(error) = self.sweep(false).and_then(|()| self.cover_digests(&victim, now)) {
                lock(&self.state).sealed.push_front(victim);
                return Err(error);
            }
            self.release(&victim);
            self.discard(&victim)?;
        }
    }

    /// Every reader has passed this segment, and its file is about to go.
    fn release(&self, victim: &Sealed) -> u64 {
        let mut state = lock(&self.state);
        if !victim.is_empty() {
            state.released = state.released.max(victim.summary.last);
        }
        state.released
    }
}
