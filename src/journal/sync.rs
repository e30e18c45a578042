//! Group commit: one sync for everything that is completely written, then the answers. The thread that runs this
//! sleeps until there is work. See [`Core::step`].
//!
//! A sync that began with the first request after the last one would find few others: those who were just answered are
//! still on their way. So it waits for as many as were answered last, but only for a moment ([`GATHER`]) after the last
//! sync. A single sender, and a request that comes after a pause, wait for nothing.

use std::io;
use std::sync::Arc;

use super::core::{Condition, Core, Phase, State};
use super::segment::{Segment, lock};
use crate::failpoint::{self, Point};

/// How long after a sync the next one waits for as many requests. Many small requests then share a sync, which costs as
/// much as hundreds of spans.
const GATHER: u64 = 1_000_000;

/// One sync to be done, outside of the lock.
pub(super) struct SyncJob {
    pub(super) segment: Arc<Segment>,
    through: u64,
}

/// What the sync thread should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// There may be more to do.
    Again,
    /// Sleep until woken, at most to this time.
    Sleep(Option<u64>),
    /// The journal is closed.
    Stop,
}

impl Core {
    /// Does one piece of work: a sync, or a change of segments.
    pub(super) fn step(&self, clock: &dyn Fn() -> u64) -> Next {
        let now = clock();
        let mut state = lock(&self.state);
        state.gathering.is_waiting = self.gathers(&state, now);
        if state.gathering.is_waiting {
            state.is_idle = true;
            return Next::Sleep(Some(state.gathering.until));
        }
        if let Some(job) = self.sync_job(&mut state, now) {
            drop(state);
            failpoint::hit(Point::BeforeSync);
            let outcome = job.segment.file.sync_data();
            failpoint::hit(Point::AfterSync);
            let later = clock();
            self.meters.sync_seconds.record(later.saturating_sub(now) as f64 / 1e9);
            self.finish_sync(job, outcome, later);
            return Next::Again;
        }
        if self.wants_rotation(&state, now) {
            drop(state);
            self.rotate(now);
            return Next::Again;
        }
        if state.closing && state.pending.is_empty() {
            state.closed = true;
            drop(state);
            self.watermark.send_modify(|_| ());
            return Next::Stop;
        }
        state.is_idle = true;
        Next::Sleep(self.next_time(&state))
    }

    /// Whether what is written waits for more.
    fn gathers(&self, state: &State, now: u64) -> bool {
        let is_cut = state.active.as_ref().is_none_or(|active| active.cut.is_some());
        let is_urgent = state.closing || is_cut || !state.parked.is_empty();
        // The clock may have been set back.
        let is_time = now < state.gathering.until && state.gathering.until - now <= GATHER;
        self.settings.interval.is_none()
            && state.written > state.durable
            && !is_urgent
            && is_time
            && !state.has_gathered()
    }

    /// A sync for the contiguous prefix that is written, if one is due.
    pub(super) fn sync_job(&self, state: &mut State, now: u64) -> Option<SyncJob> {
        let active = state.active.as_ref().filter(|_| state.written > state.durable)?;
        let is_due = match self.settings.interval {
            None => true,
            Some(interval) => {
                let is_wanted = state.closing || active.cut.is_some() || !state.parked.is_empty();
                is_wanted || now >= state.last_sync.saturating_add(interval) || now < state.last_sync
            }
        };
        if !is_due {
            return None;
        }
        state.last_sync = now;
        Some(SyncJob {
            segment: Arc::clone(&active.segment),
            through: state.written,
        })
    }

    /// Publishes what became durable and answers it; or, when the sync failed, gives the rest of the segment up. A
    /// failed sync is never tried again: the system has already forgotten which pages it could not write.
    pub(super) fn finish_sync(&self, job: SyncJob, outcome: io::Result<()>, now: u64) {
        let mut answered = Vec::new();
        {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            match outcome {
                Ok(()) => {
                    let mut bytes = 0;
                    if let Some(active) = state.active.as_mut() {
                        let count = state.pending.partition_point(|slot| slot.sequence <= job.through);
                        for slot in state.pending.drain(..count) {
                            debug_assert_eq!(slot.phase, Phase::Written);
                            bytes += slot.end - active.durable.end;
                            active.durable.last = slot.sequence;
                            active.durable.end = slot.end;
                            active.durable.records += 1;
                            active.durable.newest = active.durable.newest.max(slot.received_at);
                            if slot.digest.is_some() {
                                active.durable.newest_digest = active.durable.newest_digest.max(slot.received_at);
                            }
                            state.durable = slot.sequence;
                            answered.push(slot.completion);
                        }
                        if active.durable.records > 0 {
                            state.last_summary = active.durable;
                        }
                    }
                    state.gathering.expected = answered.len() as u64;
                    state.gathering.until = now.saturating_add(GATHER);
                    self.meters.appended.increment(answered.len() as u64);
                    self.meters.appended_bytes.increment(bytes);
                    self.meters.batch_records.record(answered.len() as f64);
                    state.inflow.observe(state.appended_bytes, now);
                }
                Err(error) => {
                    tracing::error!(%error, "syncing the journal failed: what was not on the disk yet is refused");
                    self.meters.failed_syncs.increment(1);
                    let first = state.active.as_ref().map_or(0, |active| active.segment.header.first);
                    let cut = first.max(state.durable + 1);
                    self.cut(state, cut, &error);
                }
            }
        }
        if !answered.is_empty() {
            self.watermark.send_replace(job.through);
        }
        failpoint::hit(Point::BeforeAnswer);
        for completion in answered {
            completion.complete(Ok(()));
        }
        failpoint::hit(Point::AfterAnswer);
    }

    /// Whether a new segment is needed and the old one has settled.
    pub(super) fn wants_rotation(&self, state: &State, now: u64) -> bool {
        let retry_at = match &state.condition {
            Condition::Writable => 0,
            Condition::Full { retry_at, .. } | Condition::Failing { retry_at, .. } => *retry_at,
        };
        let is_needed = match &state.active {
            None => !state.closing || !state.parked.is_empty() || !state.refused.is_empty(),
            Some(active) => active.cut.is_some() || !state.parked.is_empty(),
        };
        let is_settled = state.pending.front().is_none_or(|slot| slot.phase == Phase::Parked);
        // While closing nothing is waited for: one attempt, and what cannot be written is refused.
        is_needed && is_settled && (now >= retry_at || state.closing)
    }

    /// When to wake up by oneself.
    fn next_time(&self, state: &State) -> Option<u64> {
        let retry = match &state.condition {
            Condition::Writable => None,
            Condition::Full { retry_at, .. } | Condition::Failing { retry_at, .. } => Some(*retry_at),
        };
        let sync = self.settings.interval.filter(|_| state.written > state.durable);
        let sync = sync.map(|interval| state.last_sync.saturating_add(interval));
        [retry, sync].into_iter().flatten().min()
    }
}
