//! The loop of one exporter: from the journal through the [`Lane`]s to the backend, and the position behind it.
//!
//! * Everything is decided in one task. Sending, setting aside and saving the position run beside it and report back;
//!   nothing is shared between them.
//! * **Shutdown**: what the journal still holds is sent for at most the shutdown time-out, as long as the backend takes
//!   it; a backend that is away is asked once more and not waited for. Then the position is saved a last time.
//! * **Failure of a task**: a panic in any of them ends the loop, the stage's heartbeat and so the process's health.
//!   Everything undelivered is still in the journal.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Verdict};
use super::forwarder::Forwarder;
use super::intake::{Intake, Taken};
use super::lane::{Lane, Outcome, Ticket};
use super::leaving::{Loaded, Sent};
use super::parcel::Parcel;
use super::per_signal::PerSignal;
use super::refused::RefusedStore;
use super::report::Report;
use super::saving::{Saved, Saver};
use super::sending::{Event, Returned, Sending};
use super::window::Window;
use super::{AFTER_ERROR, ExporterOptions, READ_AHEAD, rethrow};
use crate::egress::Policy;
use crate::journal::{Position, ReadError};
use crate::otlp::Signal;
use crate::telemetry::Heartbeat;

/// Records between the position and the last one read. While one request cannot be delivered, so many others may
/// overtake it (and would be sent again after a crash).
const MOST_AHEAD: usize = 65_536;

/// The same while traces wait to be decided: their records, and all that came since, lie in between.
const MOST_AHEAD_WAITING: usize = 262_144;

/// See [`Run::step`].
enum Turn {
    Shutdown,
    Returned(Result<Returned, JoinError>),
    Read(Result<(), ReadError>),
    Saved(Saved),
    Woken,
}

pub(super) struct Run {
    options: Arc<ExporterOptions>,
    policy: Arc<Policy>,
    shutdown_timeout: Duration,
    intake: Intake,
    lanes: PerSignal<Lane>,
    sending: Sending,
    window: Window,
    saver: Saver,
    report: Report,
    /// The end of the shutdown, once it has begun.
    deadline: Option<Instant>,
    /// After an error, the journal is not read before this.
    read_at: Instant,
}

impl Run {
    pub(super) fn resume(
        forwarder: Forwarder,
        position: Option<Position>,
        refused: RefusedStore,
        mut report: Report,
    ) -> Run {
        let Forwarder {
            setup,
            mut reader,
            client,
            policy,
        } = forwarder;
        reader.resume(position);
        let next = reader.position().next;
        report.started(next);
        report.has_rules(&policy);
        let now = Instant::now();
        let options = Arc::new(setup.options);
        Run {
            lanes: PerSignal::new(|_| Lane::new(&options)),
            window: Window::new(next),
            sending: Sending::new(
                client,
                Arc::clone(report.counters()),
                refused,
                options.egress.fingerprint(),
                report.stage().clone(),
            ),
            saver: Saver::new(setup.positions, setup.name, next, report.stage().clone(), now),
            intake: Intake::new(Arc::clone(&options), Arc::clone(&policy), reader),
            shutdown_timeout: setup.shutdown_timeout,
            options,
            policy,
            report,
            deadline: None,
            read_at: now,
        }
    }

    /// One turn of the loop: sends what may be sent, then waits for the next thing to happen. False at the end.
    pub(super) async fn step(&mut self, shutdown: &CancellationToken, heartbeat: &Heartbeat) -> bool {
        self.decide().await;
        let now = Instant::now();
        if let Some(deadline) = self.deadline {
            self.read_the_rest().await;
            self.launch(now);
            // With nothing under way there is nothing more to be had from the backend now.
            if self.sending.is_empty() || now >= deadline {
                return false;
            }
        } else {
            self.take().await;
            self.launch(now);
        }
        self.save(now);
        let wake_at = self.wake_at(now);
        let has_room = self.has_room();
        let may_take = self.deadline.is_none() && has_room && self.intake.has_waiting();
        let may_read = self.deadline.is_none() && has_room && !self.intake.has_waiting() && self.read_at <= now;
        let is_saving = self.saver.is_saving();
        let turn = heartbeat.while_waiting(async {
            tokio::select! {
                () = shutdown.cancelled(), if self.deadline.is_none() => Turn::Shutdown,
                Some(returned) = self.sending.next() => Turn::Returned(returned),
                Some(saved) = self.saver.next(), if is_saving => Turn::Saved(saved),
                read = self.intake.read(), if may_read => Turn::Read(read),
                () = std::future::ready(()), if may_take => Turn::Woken,
                () = sleep_until(wake_at) => Turn::Woken,
            }
        });
        match turn.await {
            Turn::Woken | Turn::Read(Ok(())) => {}
            Turn::Shutdown => self.begin_shutdown(),
            Turn::Returned(Ok(returned)) => self.returned(returned),
            Turn::Saved(saved) => self.after_saving(saved),
            Turn::Read(Err(error)) => self.unreadable(&error),
            Turn::Returned(Err(panic)) => rethrow(panic),
        }
        true
    }

    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let lanes = self
            .lanes
            .iter()
            .filter_map(|(_, lane)| lane.wake_at(now.into_std()))
            .map(Instant::from_std);
        let saving = self.saver.wake_at(self.window.position());
        // What is due already waits for something else: for room among what is under way, or for what is being saved.
        let decision = self.intake.due_in().filter(|_| self.has_room()).map(|nanos| {
            // At least a moment, so that a clock that is set back is not asked in a circle.
            now + Duration::from_nanos(nanos).max(Duration::from_millis(1))
        });
        let mine = [saving, self.deadline, Some(self.read_at), decision]
            .into_iter()
            .flatten();
        lanes.chain(mine).filter(|moment| *moment > now).min()
    }

    /// Whether more may be taken in: enough to fill the next request while one is under way. A signal that is stuck lets
    /// the others go on until what it holds takes all the room.
    fn has_room(&self) -> bool {
        let held: usize = self.lanes.iter().map(|(_, lane)| lane.held()).sum();
        self.window.len() < self.most_ahead() && held < READ_AHEAD * self.options.max_request_size
    }

    fn most_ahead(&self) -> usize {
        match self.policy.decides_over_traces() {
            true => MOST_AHEAD_WAITING,
            false => MOST_AHEAD,
        }
    }

    // ----- from the journal

    async fn read_the_rest(&mut self) {
        // What is to be decided first makes room for the traces that are read next.
        while self.has_room() && !self.intake.is_overdue() {
            if !self.intake.has_waiting() {
                match self.intake.try_read() {
                    Ok(()) if !self.intake.has_waiting() => return,
                    Ok(()) => {}
                    Err(error) => return self.unreadable(&error),
                }
            }
            self.take().await;
        }
    }

    fn unreadable(&mut self, error: &ReadError) {
        self.read_at = Instant::now() + AFTER_ERROR;
        self.report.cannot_read(error);
    }

    /// Takes in some of what was read, if there is room.
    async fn take(&mut self) {
        if !self.intake.has_waiting() {
            return;
        }
        if self.has_room() {
            let limits = self.lanes.iter().map(|(_, lane)| lane.loader.limit());
            let limit = limits.min().unwrap_or(usize::MAX);
            for Taken { record, loaded } in self.intake.take(limit).await {
                let lane = self.lane(record.signal);
                let pieces = match loaded {
                    Ok(Loaded::NotSent) => {
                        self.report.skipped();
                        0
                    }
                    Ok(Loaded::Now(load)) => lane.push(load),
                    Ok(Loaded::Later { begins, .. }) => usize::from(begins),
                    Err(error) => {
                        lane.set_aside(Parcel::as_received(&record), error.to_string());
                        1
                    }
                };
                self.window.add(record.sequence, pieces);
            }
            self.window.read_up_to(self.intake.position().next);
            self.report.applied(&self.policy, self.intake.workspace());
        }
        if !self.has_room() {
            self.intake.wait_compressed();
        }
    }

    // ----- traces that wait to be decided

    /// Sends on what is decided now: the traces whose time is over, and those for which there is no more room.
    async fn decide(&mut self) {
        if !self.intake.has_undecided() {
            return;
        }
        let is_urgent = self.window.len() >= self.most_ahead();
        while self.intake.is_due(is_urgent) && (is_urgent || self.has_room()) {
            for Sent { sequence, load, aside } in self.intake.decide(is_urgent).await {
                let lane = self.lane(Signal::Traces);
                let mut pieces = load.map_or(0, |load| lane.push(load));
                for (parcel, error) in aside {
                    lane.set_aside(parcel, error.to_string());
                    pieces += 1;
                }
                match pieces {
                    0 => self.window.done(sequence),
                    pieces => self.window.divided(sequence, pieces),
                }
            }
            self.report.applied(&self.policy, self.intake.workspace());
            if is_urgent {
                break;
            }
        }
    }

    fn lane(&mut self, signal: Signal) -> &mut Lane {
        &mut self.lanes[signal]
    }

    // ----- to the backend

    /// Starts everything that may start, oldest record first.
    fn launch(&mut self, now: Instant) {
        let (now, most) = (now.into_std(), self.options.max_concurrent_requests);
        loop {
            let mut order = Signal::ALL;
            order.sort_by_key(|signal| self.lanes[*signal].first_sequence().unwrap_or(u64::MAX));
            let next = order
                .into_iter()
                .find_map(|signal| Some((signal, self.lanes[signal].peek(now)?.held())));
            // Where it has no room, smaller ones do not overtake it: there would never be room.
            let Some((signal, _)) = next.filter(|(_, bytes)| self.sending.has_room(*bytes, most)) else {
                break;
            };
            let Some((parcel, ticket)) = self.lanes[signal].next(now) else {
                break;
            };
            self.sending.start(parcel, ticket);
        }
        let (requests, bytes) = self.sending.under_way();
        self.report.under_way(requests, bytes);
    }

    fn returned(&mut self, returned: Returned) {
        let Returned { parcel, ticket, event } = returned;
        let now = Instant::now();
        match event {
            Event::Answered(answer, length) => self.answered(now, parcel, ticket, &answer, length),
            Event::Kept(Ok(keeping)) => {
                self.report.kept(&parcel, keeping);
                self.done(&parcel);
            }
            Event::Kept(Err(error)) => {
                self.report.cannot_keep(&error);
                let signal = parcel.signal;
                self.lane(signal).not_kept(now.into_std(), parcel, fastrand::f64());
            }
        }
        self.report.lanes(&self.lanes);
    }

    fn answered(&mut self, now: Instant, parcel: Parcel, ticket: Ticket, answer: &Answer, length: usize) {
        let signal = parcel.signal;
        if answer.cure == "tls"
            && let Err(error) = self.sending.reload_certificates()
        {
            self.report.cannot_reload(&error);
        }
        let (outcome, notice) = self
            .lane(signal)
            .answered(now.into_std(), parcel, ticket, answer, fastrand::f64());
        match outcome {
            Outcome::Delivered(parcel) => {
                self.report.delivered(&parcel, answer, length);
                self.done(&parcel);
            }
            Outcome::Divided(pieces) => {
                pieces
                    .into_iter()
                    .for_each(|(sequence, pieces)| self.window.divided(sequence, pieces));
            }
            Outcome::GaveUp(parcel) => {
                self.report.gave_up(&parcel, answer);
                self.done(&parcel);
            }
            Outcome::Waits => {
                let is_of_request = matches!(answer.verdict, Verdict::Refused | Verdict::TooLarge);
                if !is_of_request && self.lane(signal).trouble().is_none() {
                    self.report.stuck(signal, answer);
                }
            }
        }
        if let Some(notice) = notice {
            self.report.gate(signal, answer, &notice);
        }
    }

    fn done(&mut self, parcel: &Parcel) {
        parcel.parts.iter().for_each(|part| self.window.done(part.sequence));
    }

    // ----- the position

    fn save(&mut self, now: Instant) {
        let position = Position {
            next: self.window.position(),
            ..self.intake.position()
        };
        self.saver.start(now, position);
    }

    fn after_saving(&mut self, saved: Saved) {
        match saved {
            Ok(Ok(position)) => self.intake.passed(position),
            Ok(Err(error)) => {
                self.saver.not_before(Instant::now() + AFTER_ERROR);
                self.report.cannot_save(&error);
            }
            Err(panic) => rethrow(panic),
        }
    }

    // ----- the end

    fn begin_shutdown(&mut self) {
        let now = Instant::now();
        self.deadline = Some(now + self.shutdown_timeout);
        self.lanes.values_mut().for_each(|lane| lane.hurry(now.into_std()));
    }

    /// Saves the position a last time. What is still under way is left: the journal has it.
    pub(super) async fn finish(mut self) {
        self.sending.abort();
        if let Some(saved) = self.saver.next().await {
            self.after_saving(saved);
        }
        let now = Instant::now();
        self.saver.not_before(now);
        self.save(now);
        if let Some(saved) = self.saver.next().await {
            self.after_saving(saved);
        }
        let is_complete =
            self.lanes.iter().all(|(_, lane)| lane.is_empty()) && self.window.len() == 0 && self.intake.is_caught_up();
        self.report.stopped(self.saver.saved(), is_complete);
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
