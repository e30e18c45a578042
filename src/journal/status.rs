//! What the journal holds and how far each reader is.

use super::budget;
use super::core::{Condition, Core, State};
use super::identity::{JournalId, first_of_start};
use super::segment::{DATA_START, Segment, Summary, lock};

/// What the journal holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Its id.
    pub journal: JournalId,
    /// Length of all segment files.
    pub bytes: u64,
    /// Of them, what some reader still wants: the rest can be written over.
    pub pinned_bytes: u64,
    /// What `journal.max_size` leaves for segment files.
    pub max_bytes: u64,
    /// Records, those included that every reader has passed and that are kept for replay.
    pub records: u64,
    /// Segment files.
    pub segments: usize,
    /// Sequence of the oldest record.
    pub oldest: u64,
    /// Behind the last durable record.
    pub next: u64,
    /// Requests remembered for `journal.dedup`.
    pub remembered: usize,
    /// Seconds until requests are refused, at the present rate, with readers where they are and what the disk has left.
    /// `None`: nothing comes in.
    pub seconds_until_full: Option<f64>,
    /// Why nothing can be appended.
    pub not_writable: Option<String>,
    /// Readers in the order of the options.
    pub readers: Vec<ReaderStatus>,
}

/// How far a reader is.
#[derive(Debug, Clone, PartialEq)]
pub struct ReaderStatus {
    /// Its name.
    pub name: String,
    /// The first record it still needs; `None` when it has not resumed, and pins everything.
    pub next: Option<u64>,
    /// Records it has not passed.
    pub lag_records: u64,
    /// Bytes of them, exact to a mebibyte.
    pub lag_bytes: u64,
    /// Age of the oldest of them; zero when there is none.
    pub lag_seconds: f64,
}

/// Extent of what a reader has not passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lag {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Time of receipt of the first record, about.
    pub(super) since: Option<u64>,
}

impl State {
    fn summaries(&self) -> impl Iterator<Item = (&Segment, &Summary)> {
        let sealed = self.sealed.iter().map(|sealed| (&*sealed.segment, &sealed.summary));
        let active = self.active.iter().map(|active| (&*active.segment, &active.durable));
        sealed.chain(active).filter(|(_, summary)| summary.records > 0)
    }

    /// What lies between a position and the end.
    pub(super) fn lag(&self, next: u64) -> Lag {
        let mut lag = Lag::default();
        for (segment, summary) in self.summaries().filter(|(_, summary)| summary.last >= next) {
            if summary.first >= next {
                lag.records += summary.records;
                lag.bytes += summary.end - DATA_START;
                lag.since = lag.since.or(Some(segment.header.created_at));
            } else {
                let mark = segment.mark_before(next);
                lag.records += (summary.last + 1 - next).min(summary.records);
                lag.bytes += summary.end - mark.map_or(DATA_START, |mark| mark.offset.min(summary.end));
                lag.since = Some(mark.map_or(segment.header.created_at, |mark| mark.received_at));
            }
        }
        lag
    }

    /// Records from one position to another.
    pub(super) fn records_between(&self, from: u64, to: u64) -> u64 {
        self.lag(from).records.saturating_sub(self.lag(to).records)
    }

    /// Whether a saved position can be from this journal's past: `Some(missing)` says how many records behind it are
    /// gone.
    pub(super) fn locate(&self, next: u64) -> Option<u64> {
        if next > self.durable + 1 {
            return None;
        }
        let mut behind_last = None;
        let sealed = self
            .sealed
            .iter()
            .map(|sealed| (&sealed.segment.header, &sealed.summary));
        let active = self
            .active
            .iter()
            .map(|active| (&active.segment.header, &active.durable));
        for (header, summary) in sealed.chain(active) {
            if next < header.first {
                // Before this segment, and not in one that we have. Behind the last valid record there was nothing to
                // read, so a position there is one the journal never gave out.
                return if next <= header.valid_before + 1 {
                    let from = behind_last.map_or(next, |behind: u64| behind.max(next));
                    // Each start of the program begins a range of its own: how far those before it went is not known.
                    let from = from.max(first_of_start(header.valid_before));
                    Some((header.valid_before + 1).saturating_sub(from))
                } else {
                    None
                };
            }
            if next <= summary.last + 1 {
                return Some(0);
            }
            behind_last = Some(summary.last + 1);
        }
        Some(0)
    }

    fn writable(&self) -> Result<(), String> {
        match &self.condition {
            _ if self.closing => Err("the journal is closed".to_owned()),
            Condition::Writable => Ok(()),
            Condition::Full { .. } => Err("the journal is full (journal.max_size, or the disk)".to_owned()),
            Condition::Failing { reason, .. } => {
                Err(format!("the journal cannot be written (journal.directory): {reason}"))
            }
        }
    }

    fn pinned_bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |active| active.segment.size);
        budget::pinned(&self.sealed, &self.readers, active)
    }

    /// `on_disk`: what the file system has left, if that is known.
    fn seconds_until_full(&self, core: &Core, on_disk: Option<u64>) -> Option<f64> {
        if matches!(self.condition, Condition::Full { .. }) {
            return Some(0.0);
        }
        let pinned = self.pinned_bytes();
        let left = self
            .active
            .as_ref()
            .map_or(0, |active| active.segment.size - active.offset);
        let allowed = core.settings.segment_bytes.saturating_sub(pinned);
        // Files that nobody wants any more are written over, and take no more of the disk.
        let reusable = self.file_bytes.saturating_sub(pinned);
        let possible = on_disk.map_or(u64::MAX, |free| {
            reusable.saturating_add(free.saturating_sub(core.settings.free_disk_floor))
        });
        self.inflow.seconds_for(allowed.min(possible) + left)
    }
}

impl Core {
    pub(super) fn writable(&self) -> Result<(), String> {
        lock(&self.state).writable()
    }

    pub(super) fn status(&self, now: u64) -> Status {
        let on_disk = self.disk.free_space().ok();
        let state = lock(&self.state);
        let readers = state.readers.iter().map(|reader| {
            let next = reader.passed.unwrap_or(0);
            let lag = state.lag(next);
            let since = lag
                .since
                .map(|since| lock(&self.tail).received_at(next).unwrap_or(since));
            ReaderStatus {
                name: reader.name.clone(),
                next: reader.passed,
                lag_records: lag.records,
                lag_bytes: lag.bytes,
                lag_seconds: since.map_or(0.0, |since| now.saturating_sub(since) as f64 / 1e9),
            }
        });
        Status {
            journal: self.identity.id,
            bytes: state.file_bytes,
            pinned_bytes: state.pinned_bytes(),
            max_bytes: self.settings.segment_bytes,
            records: state.summaries().map(|(_, summary)| summary.records).sum(),
            segments: state.sealed.len() + usize::from(state.active.is_some()),
            oldest: state.oldest(),
            next: state.durable + 1,
            remembered: state.dedup.len(),
            seconds_until_full: state.seconds_until_full(self, on_disk),
            not_writable: state.writable().err(),
            readers: readers.collect(),
        }
    }

    /// Sets the gauges. Called about once a second.
    pub(super) fn publish(&self, now: u64) {
        {
            let mut state = lock(&self.state);
            let appended = state.appended_bytes;
            state.inflow.observe(appended, now);
        }
        let status = self.status(now);
        self.meters.bytes.set(status.bytes as f64);
        self.meters.records.set(status.records as f64);
        self.meters
            .seconds_until_full
            .set(status.seconds_until_full.unwrap_or(f64::INFINITY));
        self.meters
            .writable
            .set(if status.not_writable.is_none() { 1.0 } else { 0.0 });
        for (reader, meters) in status.readers.iter().zip(&self.meters.readers) {
            meters.lag_records.set(reader.lag_records as f64);
            meters.lag_bytes.set(reader.lag_bytes as f64);
            meters.lag_seconds.set(reader.lag_seconds);
        }
    }

    /// A reader has moved on: perhaps there is room again.
    pub(super) fn wake_for_room(&self, state: &mut State) {
        let is_released = state
            .sealed
            .front()
            .is_some_and(|front| budget::is_passed(&state.readers, front));
        if let Condition::Full { retry_at, .. } = &mut state.condition
            && is_released
        {
            *retry_at = 0;
            self.wake(state);
        }
    }
}
