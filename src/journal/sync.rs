//! Group commit: one sync for everything that is completely written, then the answers. The thread that runs this
//! sleeps until there is work. See [`Core::step`].
//!
//! A sync that began with the first request after the last one would find few others: those who were just answered are
//! still on their way. So it waits for as many as were answered last, but only for a moment ([`GATHER`]) after the last
//! sync. A single sender, and a request that comes after a pause, wait for nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Phase, State};
use super::options::nanos;
use super::scan::rewrite;
use super::segment::{Frame, Segment, Walk, lock};
use crate::failpoint::{self, Point};

/// How long after a sync the next one waits for as many requests. Many small requests then share a sync, which costs as
/// much as hundreds of spans.
pub(super) const GATHER: u64 = 2_000_000;

/// With an interval, requests are answered before they are synced. When the sync fails they are written and synced
/// again, for as long as this, and nothing new is taken meanwhile. Then they are given up.
const SALVAGE: Duration = Duration::from_secs(30);

/// One sync to be done, outside of the lock.
pub(super) struct SyncJob {
    pub(super) segment: Arc<Segment>,
    through: u64,
    /// Behind that in the file.
    end: u64,
    /// Somebody is going to read it from the file.
    is_read_back: bool,
    /// What has to be written again first.
    doubtful: Option<(u64, u64)>,
}

impl SyncJob {
    pub(super) fn run(&self) -> io::Result<()> {
        if let Some((from, to)) = self.doubtful {
            // Syncing is not enough: the system may count pages as clean that it could not write. And what it has
            // dropped must not be taken for what it was.
            self.check(from, to)?;
            rewrite(&*self.segment.file, from, to)?;
        }
        self.segment.sync(self.end, self.is_read_back)
    }

    fn check(&self, from: u64, to: u64) -> io::Result<()> {
        let mut walk = Walk::new(&self.segment, from, to);
        while walk.position() < to {
            let is_whole = match walk.next()? {
                Frame::Record { offset, header } => walk.body(offset, &header)?.is_some(),
                Frame::Gap { .. } | Frame::End => false,
            };
            if !is_whole {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "what was not synced is not there any more",
                ));
            }
        }
        Ok(())
    }
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
            let outcome = job.run();
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
        Next::Sleep(self.next_time(&state, now))
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
            Some(_) if state.salvage_until.is_some() => state.closing || state.condition.may_try(now),
            Some(interval) => {
                let is_wanted = state.closing || active.cut.is_some() || !state.parked.is_empty();
                is_wanted || now >= state.last_sync.saturating_add(interval) || now < state.last_sync
            }
        };
        if !is_due {
            return None;
        }
        state.last_sync = now;
        let last = state.slot(state.written).map(|index| state.pending[index].end);
        let end = last.unwrap_or(active.durable.end);
        let doubtful = state.salvage_until.is_some().then_some((active.durable.end, end));
        Some(SyncJob {
            segment: Arc::clone(&active.segment),
            through: state.written,
            end,
            is_read_back: state.is_anybody_before(lock(&self.tail).start()),
            doubtful,
        })
    }

    /// Publishes what became durable and answers it; or, when the sync failed, gives the rest of the segment up. A
    /// failed sync is never tried again as it is: the system has already forgotten which pages it could not write. But
    /// what was answered before the sync is written again before that, and nothing is taken until it is on the disk.
    /// Returns how many requests that were answered are lost.
    pub(super) fn finish_sync(&self, job: SyncJob, outcome: io::Result<()>, now: u64) -> u64 {
        let mut answered = Vec::new();
        let (mut lost, mut stalled) = (0, None);
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
                    if state.salvage_until.take().is_some() {
                        tracing::info!("what could not be synced is on the disk now");
                        state.condition.retry_now();
                    }
                    self.meters.appended.increment(answered.len() as u64);
                    self.meters.appended_bytes.increment(bytes);
                    self.meters.batch_records.record(answered.len() as f64);
                    state.inflow.observe(state.appended_bytes, now);
                }
                Err(error) => {
                    self.meters.failed_syncs.increment(1);
                    let was_tried = state.salvage_until.is_some();
                    // No later than that either where the clock was set back.
                    let at_most = now.saturating_add(nanos(SALVAGE));
                    let until = state.salvage_until.map_or(at_most, |until| until.min(at_most));
                    state.salvage_until = Some(until);
                    if self.settings.interval.is_some() && state.closing && was_tried {
                        // Nobody waits for it any more, and to give it up would be the only way to lose it: the next
                        // start finds it as it would after a kill.
                        tracing::error!(%error, "syncing the journal failed: what was answered and is not on the disk yet is left \
                             to the next start");
                        debug_assert!(state.pending.iter().all(|slot| slot.completion.outcome().is_some()));
                        state.pending.clear();
                        state.written = state.durable;
                        if let Some(active) = state.active.as_mut() {
                            active.cut = None;
                        }
                    } else if self.settings.interval.is_some() && now < until {
                        tracing::error!(%error, "syncing the journal failed: what was answered and is not on the disk yet is \
                             written again, and nothing is taken meanwhile");
                        self.cut(state, state.written + 1, &error);
                        stalled = Some(error.to_string().into());
                    } else {
                        state.salvage_until = None;
                        let first = state.active.as_ref().map_or(0, |active| active.segment.header.first);
                        let cut = first.max(state.durable + 1);
                        if self.settings.interval.is_some() {
                            let of_answered = |slot: &&super::core::Slot| slot.sequence <= state.written;
                            lost = state.pending.iter().take_while(of_answered).count() as u64;
                            self.meters.lost.increment(lost);
                        }
                        tracing::error!(%error, lost, "syncing the journal failed: what was not on the disk yet is refused");
                        self.cut(state, cut, &error);
                        state.condition.retry_now();
                    }
                }
            }
        }
        if let Some(reason) = stalled {
            self.stall(now, Some(reason));
        }
        if !answered.is_empty() {
            self.watermark.send_replace(job.through);
        }
        failpoint::hit(Point::BeforeAnswer);
        for completion in answered {
            completion.complete(Ok(()));
        }
        failpoint::hit(Point::AfterAnswer);
        lost
    }

    /// Whether a new segment is needed and the old one has settled.
    pub(super) fn wants_rotation(&self, state: &State, now: u64) -> bool {
        let is_needed = match &state.active {
            None => !state.closing || !state.parked.is_empty() || !state.refused.is_empty(),
            Some(active) => active.cut.is_some() || !state.parked.is_empty(),
        };
        let is_settled = state.pending.front().is_none_or(|slot| slot.phase == Phase::Parked);
        // While closing nothing is waited for: one attempt, and what cannot be written is refused.
        is_needed && is_settled && (state.condition.may_try(now) || state.closing)
    }

    /// When to wake up by oneself.
    fn next_time(&self, state: &State, now: u64) -> Option<u64> {
        let is_waiting = state.written > state.durable && state.salvage_until.is_none();
        let sync = self.settings.interval.filter(|_| is_waiting);
        let sync = sync.map(|interval| state.last_sync.saturating_add(interval));
        [state.condition.retry_at(now), sync].into_iter().flatten().min()
    }
}
