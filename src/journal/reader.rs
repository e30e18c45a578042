//! Readers: each follows the journal at its own pace, and pins what it has not durably passed.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::core::Core;
use super::cursor::{self, ColdRead, Place};
use super::error::ReadError;
use super::identity::JournalId;
use super::record::Record;
use super::segment::lock;
use crate::telemetry::StageStatus;

/// A place between two records of one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// A position means nothing in another journal.
    pub journal: JournalId,
    /// Sequence of the first record that is not processed.
    pub next: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.next, self.journal)
    }
}

/// What became of a saved position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// The next record is the one after it. `missing` records in between are gone: they were given up
    /// ([`WhenFull::SkipForwarding`](super::WhenFull)), or their segment was damaged.
    Continued {
        /// About how many; where several starts of the program lie in between, those of the last one.
        missing: u64,
    },
    /// There was none: reading begins at the oldest record.
    FromOldest,
    /// It lies where this journal has never been (it was restored from a copy, or the disk lied): reading begins at
    /// the oldest record.
    BeyondEnd,
    /// It belongs to another journal: reading begins at the oldest record.
    OtherJournal(JournalId),
}

/// Refusals by the disk at one place before it counts as damaged.
const PATIENCE: u32 = 5;

/// See [`Journal::reader`](super::Journal::reader).
pub struct Reader {
    core: Arc<Core>,
    index: usize,
    next: u64,
    is_resumed: bool,
    place: Option<Place>,
    watermark: watch::Receiver<u64>,
    refusals: u32,
    stage: Option<StageStatus>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("index", &self.index)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(core: Arc<Core>, index: usize) -> Self {
        let watermark = core.watermark.subscribe();
        let next = lock(&core.state).oldest();
        Self {
            core,
            index,
            next,
            is_resumed: false,
            place: None,
            watermark,
            refusals: 0,
            stage: None,
        }
    }

    /// Reading from the disk counts as work of this stage from now on: one that hangs there is not alive.
    pub fn watch(&mut self, stage: StageStatus) {
        self.stage = Some(stage);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.settings.readers[self.index]
    }

    /// Says where this reader had come to. Until then it pins everything.
    pub fn resume(&mut self, saved: Option<Position>) -> Resume {
        let (next, resume) = {
            let mut state = lock(&self.core.state);
            let oldest = state.oldest();
            let (next, resume) = match saved {
                None => (oldest, Resume::FromOldest),
                Some(saved) if saved.journal != self.core.identity.id => (oldest, Resume::OtherJournal(saved.journal)),
                Some(saved) => match state.locate(saved.next) {
                    Some(missing) => (saved.next.max(oldest), Resume::Continued { missing }),
                    None => (oldest, Resume::BeyondEnd),
                },
            };
            let reader = &mut state.readers[self.index];
            reader.passed = Some(next);
            reader.cursor = next;
            reader.skip_to = 0;
            self.core.wake_for_room(&mut state);
            (next, resume)
        };
        self.next = next;
        self.place = None;
        self.is_resumed = true;
        let name = self.name();
        match resume {
            Resume::Continued { missing } if missing > 0 => {
                self.core.meters.readers[self.index].damaged.increment(missing);
                tracing::warn!(reader = name, missing, "records behind the reader's position are gone");
            }
            Resume::Continued { .. } | Resume::FromOldest => {}
            Resume::BeyondEnd | Resume::OtherJournal(_) => {
                self.core.meters.readers[self.index].position_lost.increment(1);
                let saved = saved.map(|saved| saved.to_string());
                tracing::warn!(
                    reader = name,
                    saved,
                    ?resume,
                    "the reader's position is of no use: it begins at the oldest record"
                );
            }
        }
        resume
    }

    /// Waits for records and hands out a batch: at least one, then as many as fit. Dropping the future loses nothing.
    pub async fn next_batch(&mut self, max_bytes: usize, max_records: usize) -> Result<Vec<Record>, ReadError> {
        loop {
            self.watermark.mark_unchanged();
            let is_closed = lock(&self.core.state).closed;
            if let Some(batch) = self.read_hot(max_bytes, max_records)? {
                if !batch.is_empty() {
                    return Ok(batch);
                }
            } else {
                let (core, index, next, place) = (Arc::clone(&self.core), self.index, self.next, self.place.clone());
                let insist = self.refusals >= PATIENCE;
                let working = self.stage.as_ref().map(StageStatus::working);
                let reading = move || {
                    let _working = working;
                    cursor::read(&core, index, next, place, max_bytes, max_records, insist)
                };
                let outcome = tokio::task::spawn_blocking(reading).await;
                let outcome = outcome.map_err(|error| ReadError::Io(error.to_string().into()))?;
                let batch = self.take_cold(outcome)?;
                if !batch.is_empty() {
                    return Ok(batch);
                }
                continue;
            }
            if is_closed || self.watermark.changed().await.is_err() {
                return Err(ReadError::Closed);
            }
        }
    }

    /// Like [`Reader::next_batch`], but does not wait: empty when there is nothing. May read files, and so block.
    pub fn try_next_batch(&mut self, max_bytes: usize, max_records: usize) -> Result<Vec<Record>, ReadError> {
        loop {
            if let Some(batch) = self.read_hot(max_bytes, max_records)? {
                return Ok(batch);
            }
            let insist = self.refusals >= PATIENCE;
            let place = self.place.clone();
            let outcome = cursor::read(&self.core, self.index, self.next, place, max_bytes, max_records, insist);
            let batch = self.take_cold(outcome)?;
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// Behind the last record handed out.
    pub fn position(&self) -> Position {
        Position {
            journal: self.core.identity.id,
            next: self.next,
        }
    }

    /// Whether everything that is durable now was handed out.
    pub fn is_caught_up(&self) -> bool {
        self.is_resumed && self.next > *self.core.watermark.borrow()
    }

    /// Hands out again from here. What the reader has passed stays passed.
    pub fn rewind(&mut self, to: Position) {
        if to.journal != self.core.identity.id {
            return;
        }
        let mut state = lock(&self.core.state);
        let reader = &mut state.readers[self.index];
        self.next = to.next.min(self.next).max(reader.passed.unwrap_or(0));
        reader.cursor = self.next;
        self.place = None;
    }

    /// Everything before `to` is durably processed: as far as this reader is concerned it may go.
    pub fn passed(&self, to: Position) {
        if to.journal != self.core.identity.id || !self.is_resumed {
            return;
        }
        let mut state = lock(&self.core.state);
        let reader = &mut state.readers[self.index];
        if reader.passed.is_some_and(|passed| passed < to.next) {
            reader.passed = Some(to.next.min(self.next.max(reader.skip_to)));
            self.core.wake_for_room(&mut state);
        }
    }

    /// From memory; `None` when the files must be read.
    fn read_hot(&mut self, max_bytes: usize, max_records: usize) -> Result<Option<Vec<Record>>, ReadError> {
        if !self.is_resumed {
            return Err(ReadError::NotResumed);
        }
        let through = *self.core.watermark.borrow();
        let seen_by_all = {
            let mut state = lock(&self.core.state);
            let reader = &mut state.readers[self.index];
            self.next = self.next.max(reader.skip_to);
            reader.cursor = self.next;
            state.readers.iter().map(|reader| reader.cursor).min().unwrap_or(0)
        };
        let batch = {
            let mut tail = lock(&self.core.tail);
            tail.release(seen_by_all);
            tail.read(self.next, through, max_bytes, max_records)
        };
        let Some(batch) = batch else {
            // Behind the tail, but is there anything in the files?
            return Ok((self.next > through).then(Vec::new));
        };
        if let Some(last) = batch.last() {
            self.next = last.sequence + 1;
            self.refusals = 0;
        }
        Ok(Some(batch))
    }

    fn take_cold(&mut self, outcome: std::io::Result<ColdRead>) -> Result<Vec<Record>, ReadError> {
        match outcome {
            Ok(read) => {
                self.refusals = 0;
                self.next = read.next;
                self.place = read.place;
                if read.damaged > 0 {
                    self.core.meters.readers[self.index].damaged.increment(read.damaged);
                    tracing::error!(
                        reader = self.name(),
                        records = read.damaged,
                        "damaged records were stepped over"
                    );
                }
                Ok(read.records)
            }
            Err(error) => {
                self.refusals += 1;
                Err(ReadError::Io(error.to_string().into()))
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.core.state).readers[self.index].taken = false;
    }
}
