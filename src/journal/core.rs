//! The journal without threads and clocks: its state, and the way of a request into it.
//!
//! Operations of one append: [`Core::begin`] reserves a sequence and a place under the lock, [`Core::write`] writes
//! outside of it on the calling thread, or leaves that to the next sync, [`Core::finish`] notes the outcome. Syncing is
//! in `sync.rs`, changing segments in `rotate.rs`.
//!
//! Invariants (checked by `State::check` in tests):
//! * `durable <= written < next`; readers see nothing beyond `durable`.
//! * `pending` is ordered by sequence: first what was reserved in the active segment, then what is parked.
//! * Everything reserved is in the active segment, and a segment is entirely durable (or cut) before the next one
//!   begins.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::completion::{Completion, Durable};
use super::dedup::{Dedup, Digest, Remembered};
use super::direct::DirectIo;
use super::disk::Disk;
use super::error::AppendError;
use super::identity::Identity;
use super::meters::Meters;
use super::options::Settings;
use super::record::{self, Header, Placement, Record, span_of};
use super::segment::{Mark, Segment, Summary, lock};
use super::tail::Tail;
use super::{Appended, Entry};
use crate::buffers::Buffers;
use crate::failpoint::{self, Point};

/// The segment that is written to.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    /// Where the next record goes.
    pub(super) offset: u64,
    /// Of what is durable in it: grows with each sync.
    pub(super) durable: Summary,
    /// The first sequence that was refused here. Nothing is appended any more; what is before it is still synced.
    pub(super) cut: Option<u64>,
}

/// A segment that nothing is written to any more.
#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) segment: Arc<Segment>,
    pub(super) summary: Summary,
}

impl Sealed {
    pub(super) fn is_empty(&self) -> bool {
        self.summary.records == 0
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.segment.writers.load(Ordering::Acquire) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits in memory for the next segment.
    Parked,
    Writing,
    Written,
}

/// A request on its way to the disk.
pub(super) struct Slot {
    pub(super) sequence: u64,
    pub(super) end: u64,
    pub(super) phase: Phase,
    pub(super) received_at: u64,
    pub(super) digest: Option<Digest>,
    pub(super) completion: Arc<Completion>,
}

/// A request that came while there was no segment to write it to.
pub(super) struct Parked {
    pub(super) sequence: u64,
    pub(super) entry: Entry,
}

/// A segment file that could not be written over or removed, and still takes up room.
pub(super) struct Spoiled {
    pub(super) number: u32,
    pub(super) size: u64,
    /// It held no record, but perhaps it alone says what was refused before it: it stays until a new segment has
    /// begun.
    pub(super) is_needed: bool,
}

/// What one reader has told.
pub(super) struct ReaderState {
    pub(super) name: String,
    pub(super) may_skip: bool,
    pub(super) taken: bool,
    /// The first sequence it still needs. `None`: it has not resumed, so everything.
    pub(super) passed: Option<u64>,
    /// The next sequence that it is going to be handed.
    pub(super) cursor: u64,
    /// It was moved on to here, because there was no room.
    pub(super) skip_to: u64,
}

/// Whether there is a segment to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Writable,
    Full {
        retry_at: u64,
        backoff: u64,
    },
    Failing {
        retry_at: u64,
        backoff: u64,
        reason: Arc<str>,
    },
}

/// How long the next sync waits for those who are likely to come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gathering {
    /// How many requests the last sync answered: as many senders are about to come again.
    pub(super) expected: u64,
    /// At most so long.
    pub(super) until: u64,
    /// The sync thread sleeps for them, and is not to be woken for fewer.
    pub(super) is_waiting: bool,
}

impl Condition {
    /// When it is worth trying again, if anything is wrong.
    pub(super) fn retry_at(&self, now: u64) -> Option<u64> {
        match self {
            Self::Writable => None,
            Self::Full { retry_at, backoff } | Self::Failing { retry_at, backoff, .. } => {
                let was_set_back = *retry_at > now.saturating_add(*backoff);
                Some(if was_set_back { now } else { *retry_at })
            }
        }
    }

    /// Whether nothing is wrong, or it is worth trying again.
    pub(super) fn may_try(&self, now: u64) -> bool {
        self.retry_at(now).is_none_or(|at| now >= at)
    }

    /// It is now.
    pub(super) fn retry_now(&mut self) {
        if let Self::Full { retry_at, .. } | Self::Failing { retry_at, .. } = self {
            *retry_at = 0;
        }
    }
}

/// Everything under the lock.
pub(super) struct State {
    pub(super) active: Option<Active>,
    /// Oldest first.
    pub(super) sealed: VecDeque<Sealed>,
    /// Oldest first.
    pub(super) spoiled: VecDeque<Spoiled>,
    pub(super) pending: VecDeque<Slot>,
    pub(super) parked: VecDeque<Parked>,
    pub(super) parked_bytes: u64,
    /// The next sequence to give out.
    pub(super) next: u64,
    /// Everything up to here is written, or left to the next sync to write.
    pub(super) written: u64,
    /// Everything valid up to here is on the disk.
    pub(super) durable: u64,
    /// Newest sequence of any segment that was written over or removed.
    pub(super) released: u64,
    /// Of the newest segment that holds a record, for the header of the next one.
    pub(super) last_summary: Summary,
    pub(super) dedup: Dedup,
    pub(super) readers: Vec<ReaderState>,
    pub(super) condition: Condition,
    /// With an interval: what was answered could not be synced, and is tried again until then.
    pub(super) salvage_until: Option<u64>,
    /// To be answered once the next segment says that they are not valid, or cannot say so.
    pub(super) refused: Vec<(Arc<Completion>, AppendError)>,
    pub(super) incarnation: u64,
    pub(super) next_number: u32,
    /// Length of all segment files.
    pub(super) file_bytes: u64,
    /// For the estimate of when the journal is full: bytes appended since it was opened.
    pub(super) appended_bytes: u64,
    pub(super) inflow: super::budget::Inflow,
    pub(super) last_sync: u64,
    pub(super) gathering: Gathering,
    pub(super) closing: bool,
    pub(super) closed: bool,
    /// The sync thread sleeps and wants to be woken.
    pub(super) is_idle: bool,
}

/// See the module.
pub(super) struct Core {
    pub(super) disk: Arc<dyn Disk>,
    /// `None`: all writing goes through the page cache.
    pub(super) direct_io: Option<Arc<DirectIo>>,
    pub(super) identity: Identity,
    pub(super) settings: Settings,
    pub(super) state: Mutex<State>,
    pub(super) work: Condvar,
    /// Taken while `state` is held, never the other way round.
    pub(super) tail: Mutex<Tail>,
    pub(super) watermark: watch::Sender<u64>,
    pub(super) meters: Meters,
    /// For readers that lag behind the tail.
    pub(super) buffers: Arc<Buffers>,
    /// Holds the lock on the directory.
    pub(super) _lock: Box<dyn Send + Sync>,
}

/// A place in the active segment, to be written and finished by the caller.
pub(super) struct Reservation {
    pub(super) segment: Arc<Segment>,
    pub(super) at: Placement,
    pub(super) sequence: u64,
    pub(super) completion: Arc<Completion>,
    durable: u64,
}

/// What [`Core::begin`] decided.
pub(super) enum Begun {
    /// Answered, or waiting for somebody else.
    Done(Appended),
    Write(Reservation),
}

impl Core {
    /// The whole append, as the receiver calls it.
    pub(super) fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        let reservation = match self.begin(&entry)? {
            Begun::Done(appended) => return Ok(appended),
            Begun::Write(reservation) => reservation,
        };
        let rejected = entry.rejected;
        let outcome = self.write(&reservation, &entry);
        Ok(Appended {
            duplicate: false,
            rejected,
            durable: self.finish(reservation, outcome),
        })
    }

    pub(super) fn duplicate_of(&self, digest: &Digest, now: u64) -> Option<Appended> {
        let state = lock(&self.state);
        let known = state.dedup.find(digest, now)?;
        self.meters.dedup_hits.increment(1);
        Some(state.repeat(known, self.settings.interval.is_some()))
    }

    /// Reserves a place, or finds that the request is known, or that there is none.
    pub(super) fn begin(&self, entry: &Entry) -> Result<Begun, AppendError> {
        let span = span_of(entry.body.len());
        if span > self.settings.largest_record {
            return Err(AppendError::TooLarge);
        }
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if let Some(known) = entry
            .digest
            .and_then(|digest| state.dedup.find(&digest, entry.received_at))
        {
            self.meters.dedup_hits.increment(1);
            return Ok(Begun::Done(state.repeat(known, self.settings.interval.is_some())));
        }
        if state.closing {
            return Err(AppendError::Closed);
        }
        state.refusal(entry.received_at).map_or(Ok(()), Err)?;
        if state.bytes_in_memory() > self.settings.max_unsynced {
            let reason = "what came before waits for the disk still";
            return Err(AppendError::Failed(reason.into()));
        }

        let completion = Arc::new(Completion::default());
        let fits = state.parked.is_empty()
            && state
                .active
                .as_ref()
                .is_some_and(|active| active.cut.is_none() && active.offset + span <= active.segment.size);
        if !fits && state.parked_bytes + span > self.settings.parked_bytes && !state.parked.is_empty() {
            return Err(AppendError::Full {
                retry_after: Duration::from_secs(1),
            });
        }
        let sequence = state.next;
        state.next += 1;
        state.appended_bytes += span;
        if let Some(digest) = entry.digest {
            let known = Remembered {
                sequence,
                received_at: entry.received_at,
                rejected: entry.rejected,
            };
            let evicted = state.dedup.evicted_early;
            state.dedup.insert(digest, known, entry.received_at);
            self.meters.dedup_evicted.increment(state.dedup.evicted_early - evicted);
        }
        state.pending.push_back(Slot {
            sequence,
            end: 0,
            phase: Phase::Parked,
            received_at: entry.received_at,
            digest: entry.digest,
            completion: Arc::clone(&completion),
        });
        if fits && let Some(reservation) = self.reserve(state, sequence, entry) {
            return Ok(Begun::Write(reservation));
        }
        // What it was decompressed to would not be within any bound here; readers decompress it again.
        let entry = Entry {
            decoded: entry.body.clone(),
            noted: None,
            ..entry.clone()
        };
        let rejected = entry.rejected;
        state.parked.push_back(Parked { sequence, entry });
        state.parked_bytes += span;
        self.wake(state);
        let durable = Durable::later(completion);
        Ok(Begun::Done(Appended {
            duplicate: false,
            rejected,
            durable,
        }))
    }

    /// Gives a pending request its place in the active segment. Parked requests are reserved before any newer one.
    pub(super) fn reserve(&self, state: &mut State, sequence: u64, entry: &Entry) -> Option<Reservation> {
        let durable = state.durable;
        let index = state.slot(sequence)?;
        let active = state.active.as_mut()?;
        let slot = &mut state.pending[index];
        let at = active.segment.place(active.offset, &entry.body);
        active.offset = at.next();
        slot.phase = Phase::Writing;
        slot.end = active.offset;
        active.segment.writers.fetch_add(1, Ordering::AcqRel);
        active.segment.note(Mark {
            sequence,
            offset: at.offset,
            received_at: entry.received_at,
        });
        let decoded = (entry.decoded.as_ptr() != entry.body.as_ptr()).then(|| entry.decoded.clone());
        let header = Header::of(entry, sequence, durable, at, 0);
        lock(&self.tail).push(Record {
            decoded,
            noted: entry.noted.clone(),
            ..header.into_record(entry.body.clone())
        });
        let segment = Arc::clone(&active.segment);
        Some(Reservation {
            segment,
            at,
            sequence,
            completion: Arc::clone(&slot.completion),
            durable,
        })
    }

    /// Puts the checksums in and hands the record to its segment. No lock is held.
    pub(super) fn write(&self, reservation: &Reservation, entry: &Entry) -> io::Result<()> {
        failpoint::hit(Point::BeforeWrite);
        let (segment, at) = (&reservation.segment, reservation.at);
        let body_crc = record::body_crc(segment.seed, &entry.body);
        let header = Header::of(entry, reservation.sequence, reservation.durable, at, body_crc);
        segment.append(header.encode(segment.seed), &entry.body, at)
    }

    /// Notes what became of the write. A failed one ends the segment in front of it.
    pub(super) fn finish(&self, reservation: Reservation, outcome: io::Result<()>) -> Durable {
        let mut answered = Vec::new();
        let mut is_asleep = false;
        {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            reservation.segment.writers.fetch_sub(1, Ordering::AcqRel);
            match outcome {
                Ok(()) => {
                    if let Some(index) = state.slot(reservation.sequence) {
                        state.pending[index].phase = Phase::Written;
                    }
                    let before = state.written;
                    state.advance_written();
                    if self.settings.interval.is_some() {
                        let written = state.written;
                        let from = state.pending.partition_point(|slot| slot.sequence <= before);
                        let newly = state
                            .pending
                            .iter()
                            .skip(from)
                            .take_while(|slot| slot.sequence <= written);
                        answered.extend(newly.map(|slot| Arc::clone(&slot.completion)));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "writing to the journal failed: the segment is given up from here on");
                    self.meters.failed_writes.increment(1);
                    self.cut(state, reservation.sequence, &error);
                }
            }
            let is_cut = state.active.as_ref().is_some_and(|active| active.cut.is_some());
            if is_cut || !state.gathering.is_waiting || state.has_gathered() {
                is_asleep = state.rouse();
            }
        }
        // With the lock given back: on a core of its own or not, the sync thread wants it at once.
        if is_asleep {
            self.work.notify_all();
        }
        for completion in answered {
            completion.complete(Ok(()));
        }
        Durable::later(reservation.completion)
    }

    /// Gives the active segment up from `first` on: later requests in it are refused, once the next segment is there
    /// to say so.
    pub(super) fn cut(&self, state: &mut State, first: u64, error: &io::Error) {
        let Some(active) = state.active.as_mut() else { return };
        if active.cut.is_some_and(|cut| cut <= first) || first < active.segment.header.first {
            return;
        }
        active.cut = Some(first);
        let reason = AppendError::Failed(error.to_string().into());
        let parked_from = state.pending.partition_point(|slot| slot.phase != Phase::Parked);
        let from = state
            .pending
            .partition_point(|slot| slot.sequence < first)
            .min(parked_from);
        for slot in state.pending.drain(from..parked_from) {
            if let Some(digest) = &slot.digest {
                state.dedup.forget(digest, slot.sequence);
            }
            self.meters.refused.increment(1);
            state.refused.push((slot.completion, reason.clone()));
        }
        lock(&self.tail).refuse_from(first);
        // Not `first - 1`: between two starts there are sequences that nobody has.
        let last_left = from
            .checked_sub(1)
            .map_or(state.durable, |index| state.pending[index].sequence);
        state.written = state.written.min(last_left);
    }

    /// Wakes the sync thread, if it sleeps.
    pub(super) fn wake(&self, state: &mut State) {
        if state.rouse() {
            self.work.notify_all();
        }
    }
}

impl State {
    /// Notes that the sync thread has something to do. Whether it sleeps and is to be woken: waking it again and again
    /// would cost a system call each time.
    fn rouse(&mut self) -> bool {
        self.gathering.is_waiting = false;
        std::mem::take(&mut self.is_idle)
    }

    /// Index of a pending request.
    pub(super) fn slot(&self, sequence: u64) -> Option<usize> {
        self.pending.binary_search_by_key(&sequence, |slot| slot.sequence).ok()
    }

    /// Whether as many requests wait for a sync as came for the last one.
    pub(super) fn has_gathered(&self) -> bool {
        self.written - self.durable >= self.gathering.expected
    }

    /// Bytes that the active segment holds in memory until they are on the disk.
    fn bytes_in_memory(&self) -> u64 {
        let active = self.active.as_ref();
        let holding = active.filter(|active| active.cut.is_none() && active.segment.is_direct());
        holding.map_or(0, |active| active.offset - active.durable.end)
    }

    /// Whether a reader needs something in front of this sequence.
    pub(super) fn is_anybody_before(&self, sequence: u64) -> bool {
        self.readers.iter().any(|reader| reader.cursor < sequence)
    }

    fn advance_written(&mut self) {
        let from = self.pending.partition_point(|slot| slot.sequence <= self.written);
        for slot in self
            .pending
            .iter()
            .skip(from)
            .take_while(|slot| slot.phase == Phase::Written)
        {
            self.written = slot.sequence;
        }
    }

    /// The answer for a request that is known: as the first one's, and not before it.
    fn repeat(&self, known: Remembered, answers_when_written: bool) -> Appended {
        let safe = if answers_when_written {
            self.written
        } else {
            self.durable
        };
        let waiting = (known.sequence > safe).then(|| self.slot(known.sequence)).flatten();
        let durable = waiting.map_or_else(Durable::now, |index| {
            Durable::later(Arc::clone(&self.pending[index].completion))
        });
        Appended {
            duplicate: true,
            rejected: known.rejected,
            durable,
        }
    }

    /// Why nothing can be appended now.
    pub(super) fn refusal(&self, now: u64) -> Option<AppendError> {
        match &self.condition {
            Condition::Writable => None,
            Condition::Full { retry_at, .. } => {
                let wait = Duration::from_nanos(retry_at.saturating_sub(now));
                Some(AppendError::Full {
                    retry_after: wait.clamp(Duration::from_secs(1), Duration::from_secs(30)),
                })
            }
            Condition::Failing { reason, .. } => Some(AppendError::Failed(Arc::clone(reason))),
        }
    }

    /// First sequence that is still kept, or the next one.
    pub(super) fn oldest(&self) -> u64 {
        let sealed = self
            .sealed
            .iter()
            .find(|sealed| !sealed.is_empty())
            .map(|sealed| sealed.summary.first);
        let active = self
            .active
            .as_ref()
            .filter(|active| active.durable.records > 0)
            .map(|active| active.durable.first);
        sealed.or(active).unwrap_or(self.durable + 1)
    }

    /// See the module.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(
            self.durable <= self.written && self.written < self.next,
            "watermarks out of order"
        );
        let sequences: Vec<u64> = self.pending.iter().map(|slot| slot.sequence).collect();
        assert!(sequences.is_sorted_by(|a, b| a < b), "pending out of order");
        assert!(
            sequences.first().is_none_or(|first| *first > self.durable),
            "a durable request is still pending"
        );
        let parked = self
            .pending
            .iter()
            .filter(|slot| slot.phase == Phase::Parked)
            .map(|slot| slot.sequence);
        assert!(
            parked.eq(self.parked.iter().map(|parked| parked.sequence)),
            "parked requests disagree"
        );
        let phases: Vec<bool> = self.pending.iter().map(|slot| slot.phase == Phase::Parked).collect();
        assert!(phases.is_sorted(), "a parked request in front of a reserved one");
        let incarnations: Vec<u64> = self
            .sealed
            .iter()
            .map(|sealed| sealed.segment.header.incarnation)
            .collect();
        assert!(incarnations.is_sorted_by(|a, b| a < b), "segments out of order");
        let mut bytes: u64 = self.sealed.iter().map(|sealed| sealed.segment.size).sum();
        bytes += self.spoiled.iter().map(|spoiled| spoiled.size).sum::<u64>();
        bytes += self.active.as_ref().map_or(0, |active| active.segment.size);
        assert_eq!(bytes, self.file_bytes, "file sizes do not add up");
    }
}
