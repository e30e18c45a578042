//! What is sent next, and what an answer changes: the decisions of one exporter for one signal.
//!
//! Sans-io: time and randomness are passed in, effects are returned. Each signal has a lane of its own, so that a
//! backend that does not take metrics does not keep traces waiting.
//!
//! # Whose fault is a failure?
//!
//! As long as nothing else is known, the backend's: the [`Gate`] closes and one request at a time asks whether it
//! works again. But a request that fails *again although the backend took others since its last failure* becomes
//! suspect. It then waits by itself and holds up nobody; joined requests are taken apart to find the culprit; and if
//! the answers are of the unclear kind (500, INTERNAL …) that some backends give to what they cannot digest, the culprit
//! is finally set aside as refused. So it is when it failed otherwise (resets, time-outs: a backend may crash over it), but
//! only after [`SUSPECT_FOR`]. A backend that is simply broken takes nothing, so nothing becomes suspect, and
//! everything waits. So does what was suspect before, while nothing else is taken: then the backend is named again.
//!
//! Two failures say nothing of the content, whoever is served meanwhile: a backend that cannot be reached, and an answer
//! that asks for a pause. More and smaller requests would only use up a quota faster.
//!
//! # Small requests
//!
//! While a request that others could have been joined to is under way, the next such request waits and grows (as
//! Nagle's algorithm does with small packets). An idle exporter thus sends at once and a busy one in large pieces.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::answer::{Answer, Verdict};
use super::gate::{Gate, Notice, Passage};
use super::load::Load;
use super::parcel::{Loader, Parcel};
use super::{ExporterOptions, RetryOptions};

/// After so many suspicious failures with an unclear answer the content is taken to be refused.
const SUSPICIONS_TO_REFUSE: u32 = 5;

/// After so many suspicious failures with any other answer, and so long after the first of them, it is, too. A backend that
/// fails every second time does not come to so many in a row.
const SUSPICIONS_TO_GIVE_UP: u32 = 20;
const SUSPECT_FOR: Duration = Duration::from_secs(600);

/// After so many suspicious failures a joined request is taken apart.
const SUSPICIONS_TO_UNGROUP: u32 = 2;

/// After so many failures to answer in time a request is made smaller.
const FAILURES_TO_DIVIDE: u32 = 2;

/// Smaller requests are not divided for being slow or suspect: a backend that hangs for hours must not grind
/// everything to single spans.
const SMALLEST_TO_DIVIDE: usize = 64 << 10;

/// One in so many probes is a request that was not tried before.
const FRESH_PROBE: u32 = 2;

/// Given out with a parcel, handed back with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    is_probe: bool,
    is_partial: bool,
}

/// What came of an answer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The backend has it.
    Delivered(Parcel),
    /// It will be tried again.
    Waits,
    /// The records in it travel in more pieces now: the sequence and the number of pieces for each.
    Divided(Vec<(u64, usize)>),
    /// It was tried for `max_elapsed_time`.
    GaveUp(Parcel),
}

/// Where a parcel waits.
enum Place {
    Waiting(usize),
    /// It was not tried yet.
    Loader {
        may_be_partial: bool,
    },
}

/// The parcels of one signal.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) loader: Loader,
    retry: RetryOptions,
    gate: Gate,
    /// Failed, or divided, or to be set aside.
    waiting: VecDeque<Parcel>,
    partials_under_way: usize,
    /// Probes sent so far.
    probes: u32,
    /// Requests that the backend took.
    delivered: u64,
    failed_since_delivery: bool,
    /// Why the gate is closed.
    trouble: Option<Answer>,
}

impl Lane {
    pub(super) fn new(options: &ExporterOptions) -> Lane {
        Lane {
            loader: Loader::new(options),
            retry: options.retry_on_failure,
            gate: Gate::default(),
            waiting: VecDeque::new(),
            partials_under_way: 0,
            probes: 0,
            delivered: 0,
            failed_since_delivery: false,
            trouble: None,
        }
    }

    /// See [`Loader::push`].
    pub(super) fn push(&mut self, load: Load) -> usize {
        self.loader.push(load)
    }

    /// Nothing waits here (something may be under way).
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.loader.is_empty()
    }

    /// Bytes that wait here.
    pub(super) fn held(&self) -> usize {
        self.loader.held() + self.waiting.iter().map(Parcel::held).sum::<usize>()
    }

    /// The first record that waits here.
    pub(super) fn first_sequence(&self) -> Option<u64> {
        let failed = self
            .waiting
            .iter()
            .filter_map(|parcel| Some(parcel.parts.first()?.sequence))
            .min();
        failed.into_iter().chain(self.loader.first_sequence()).min()
    }

    /// The answer that closed the gate, while it is closed.
    pub(super) fn trouble(&self) -> Option<&Answer> {
        self.trouble.as_ref()
    }

    /// See [`Gate::hurry`].
    pub(super) fn hurry(&mut self, now: Instant) {
        self.gate.hurry(now);
        self.waiting
            .iter_mut()
            .for_each(|parcel| parcel.history.not_before = None);
    }

    /// The parcel that [`Lane::next`] would give out.
    pub(super) fn peek(&self, now: Instant) -> Option<&Parcel> {
        match self.choose(now)?.0 {
            Place::Waiting(index) => self.waiting.get(index),
            Place::Loader { may_be_partial } => self.loader.peek(may_be_partial),
        }
    }

    /// The next parcel that may be sent, or set aside, now.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Parcel, Ticket)> {
        let (place, is_probe) = self.choose(now)?;
        let parcel = match place {
            Place::Waiting(index) => self.waiting.remove(index)?,
            Place::Loader { may_be_partial } => self.loader.take(may_be_partial)?,
        };
        if is_probe {
            self.gate.probing();
            self.probes = self.probes.wrapping_add(1);
        }
        let is_partial = parcel.is_partial && parcel.history.refused.is_none();
        self.partials_under_way += usize::from(is_partial);
        Some((parcel, Ticket { is_probe, is_partial }))
    }

    /// Where the next parcel is, and whether it goes as a probe.
    fn choose(&self, now: Instant) -> Option<(Place, bool)> {
        let refused = self.waiting(|parcel| parcel.history.refused.is_some() && is_due(parcel, now));
        if let Some(refused) = refused {
            return Some((refused, false));
        }
        match self.gate.passage(now) {
            Passage::Until(_) | Passage::Probing => None,
            Passage::Open => {
                let fresh = || self.fresh(self.partials_under_way == 0);
                let next = self.waiting(|parcel| is_due(parcel, now)).or_else(fresh);
                next.map(|place| (place, false))
            }
            Passage::Probe => self.choose_probe(now).map(|place| (place, true)),
        }
    }

    /// Probes take turns, and every so often one goes that was never tried: requests which fail by their own fault must
    /// not keep the gate closed for ever. Suspect ones go when there is no other.
    fn choose_probe(&self, now: Instant) -> Option<Place> {
        let is_turn_of_fresh = self.probes.wrapping_add(1).is_multiple_of(FRESH_PROBE);
        let may_be_sent = |parcel: &Parcel| parcel.history.refused.is_none();
        let fresh = || self.fresh(true);
        fresh()
            .filter(|_| is_turn_of_fresh)
            .or_else(|| self.waiting(|parcel| may_be_sent(parcel) && parcel.history.suspicion == 0))
            .or_else(fresh)
            .or_else(|| self.waiting(|parcel| may_be_sent(parcel) && is_due(parcel, now)))
    }

    fn waiting(&self, wanted: impl Fn(&Parcel) -> bool) -> Option<Place> {
        self.waiting.iter().position(wanted).map(Place::Waiting)
    }

    fn fresh(&self, may_be_partial: bool) -> Option<Place> {
        self.loader.peek(may_be_partial)?;
        Some(Place::Loader { may_be_partial })
    }

    /// When [`Lane::next`] may have something that it has not now. `None`: not without an answer or a new record.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let due = |wanted: fn(&Parcel) -> bool| {
            let moments = self.waiting.iter().filter(|parcel| wanted(parcel));
            moments.map(|parcel| parcel.history.not_before.unwrap_or(now)).min()
        };
        let refused = due(|parcel| parcel.history.refused.is_some());
        let others = match self.gate.passage(now) {
            Passage::Open | Passage::Probe => due(|parcel| parcel.history.refused.is_none()),
            Passage::Until(until) if !self.is_empty() => Some(until),
            Passage::Until(_) | Passage::Probing => None,
        };
        refused.into_iter().chain(others).min()
    }

    /// Takes an answer in. `random` is in `0.0..1.0`.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        parcel: Parcel,
        ticket: Ticket,
        answer: &Answer,
        random: f64,
    ) -> (Outcome, Option<Notice>) {
        self.partials_under_way -= usize::from(ticket.is_partial);
        match answer.verdict {
            Verdict::Delivered => {
                self.delivered += 1;
                self.failed_since_delivery = false;
                self.loader.went_well();
                (Outcome::Delivered(parcel), self.works(now, ticket))
            }
            Verdict::TooLarge => {
                self.loader.lower_limit(parcel.size);
                let notice = self.works(now, ticket);
                (self.refused(parcel, Parcel::divide, answer.reason.clone()), notice)
            }
            Verdict::Refused => {
                let notice = self.works(now, ticket);
                (self.refused(parcel, Parcel::ungroup, answer.reason.clone()), notice)
            }
            Verdict::Transient | Verdict::TimedOut | Verdict::OverQuota | Verdict::Curable | Verdict::Unclear => {
                self.failed(now, parcel, ticket, answer, random)
            }
        }
    }

    /// A parcel that is not even sent, but set aside for this reason.
    pub(super) fn set_aside(&mut self, mut parcel: Parcel, reason: String) {
        parcel.history.refused = Some(reason);
        self.waiting.push_back(parcel);
    }

    /// Setting a parcel aside failed; it is tried again.
    pub(super) fn not_kept(&mut self, now: Instant, mut parcel: Parcel, random: f64) {
        parcel.history.failures = parcel.history.failures.saturating_add(1);
        parcel.history.not_before = Some(now + self.retry.delay(parcel.history.failures, None, random));
        self.waiting.push_back(parcel);
    }

    fn works(&mut self, now: Instant, ticket: Ticket) -> Option<Notice> {
        let notice = self.gate.works(now, ticket.is_probe)?;
        self.trouble = None;
        // They waited for the backend, not for themselves.
        for parcel in self.waiting.iter_mut().filter(|parcel| parcel.history.suspicion == 0) {
            parcel.history.not_before = None;
        }
        Some(notice)
    }

    /// The backend refused the content: what was joined is taken apart, what was not is to be set aside.
    fn refused(&mut self, parcel: Parcel, divide: fn(Parcel) -> Vec<Parcel>, reason: String) -> Outcome {
        self.take_apart(parcel, divide).unwrap_or_else(|mut whole| {
            whole.history.not_before = None;
            self.set_aside(whole, reason);
            Outcome::Waits
        })
    }

    /// Puts the pieces of a parcel first in line; gives back one that cannot be divided.
    #[allow(clippy::result_large_err, reason = "the parcel is given back, not an error")]
    fn take_apart(&mut self, parcel: Parcel, divide: fn(Parcel) -> Vec<Parcel>) -> Result<Outcome, Parcel> {
        let mut pieces = divide(parcel);
        if pieces.len() <= 1
            && let Some(whole) = pieces.pop()
        {
            return Err(whole);
        }
        let mut counted: Vec<(u64, usize)> = Vec::new();
        for part in pieces.iter().flat_map(|piece| &piece.parts) {
            match counted.last_mut() {
                Some((sequence, count)) if *sequence == part.sequence => *count += 1,
                _ => counted.push((part.sequence, 1)),
            }
        }
        counted.retain(|(_, count)| *count > 1);
        for piece in pieces.into_iter().rev() {
            self.waiting.push_front(piece);
        }
        Ok(Outcome::Divided(counted))
    }

    /// A backend that works may fail once in a while (one of several behind a balancer restarts): the request waits,
    /// the others go on. The second failure without a success between is the backend's.
    fn is_hiccup(&self, ticket: Ticket, answer: &Answer) -> bool {
        let is_passing = matches!(
            answer.verdict,
            Verdict::Transient | Verdict::TimedOut | Verdict::Unclear
        );
        let works_otherwise = self.delivered > 0 && !self.failed_since_delivery;
        let says_nothing = !answer.blames_no_content() && !answer.asks_for_pause();
        is_passing && says_nothing && works_otherwise && !ticket.is_probe && self.gate.is_open()
    }

    /// The backend is in trouble, or wants to be left alone.
    fn close(&mut self, now: Instant, ticket: Ticket, answer: &Answer, random: f64) -> Option<Notice> {
        let retry = self.retry;
        let notice = self.gate.failed(now, ticket.is_probe, |in_a_row| match answer.verdict {
            Verdict::Curable => retry.curable_delay(answer.retry_after, random),
            _ => retry.delay(in_a_row, answer.retry_after, random),
        });
        if answer.retry_after.is_some() {
            self.gate.not_before(now + retry.delay(1, answer.retry_after, random));
        }
        self.trouble = Some(answer.clone());
        notice
    }

    fn failed(
        &mut self,
        now: Instant,
        mut parcel: Parcel,
        ticket: Ticket,
        answer: &Answer,
        random: f64,
    ) -> (Outcome, Option<Notice>) {
        let history = &mut parcel.history;
        let first_failure = *history.first_failure.get_or_insert(now);
        let others_were_taken = history.failures > 0 && self.delivered > history.others_delivered;
        let is_suspicious = others_were_taken && !answer.blames_no_content();
        history.failures = history.failures.saturating_add(1);
        history.suspicion += u32::from(is_suspicious);
        history.others_delivered = self.delivered;
        if is_suspicious {
            history.suspect_since.get_or_insert(now);
        }
        let was_suspect_for_long = history.suspicion >= SUSPICIONS_TO_GIVE_UP
            && history
                .suspect_since
                .is_some_and(|since| now.duration_since(since) >= SUSPECT_FOR);
        let (failures, suspicion) = (history.failures, history.suspicion);

        let retry = self.retry;
        let is_hiccup = self.is_hiccup(ticket, answer);
        if suspicion > 0 || is_hiccup {
            history.not_before = Some(now + retry.delay(failures, answer.retry_after, random));
        }
        self.failed_since_delivery = true;
        let notice = if is_suspicious && !answer.asks_for_pause() {
            if ticket.is_probe {
                self.gate.inconclusive();
            }
            None
        } else if is_hiccup {
            None
        } else {
            self.close(now, ticket, answer, random)
        };

        if retry.is_over(now.duration_since(first_failure)) {
            return (Outcome::GaveUp(parcel), notice);
        }
        let is_large = parcel.size > SMALLEST_TO_DIVIDE;
        let divided = match answer.verdict {
            Verdict::Unclear if suspicion >= SUSPICIONS_TO_REFUSE && !answer.asks_for_pause() => {
                return (self.refused(parcel, Parcel::ungroup, answer.reason.clone()), notice);
            }
            Verdict::Transient | Verdict::TimedOut | Verdict::Unclear if is_suspicious && was_suspect_for_long => {
                let reason = format!(
                    "{}; it failed {failures} times, {suspicion} of them although others were taken meanwhile",
                    answer.reason
                );
                return (self.refused(parcel, Parcel::divide, reason), notice);
            }
            // More and smaller requests are no pause.
            _ if answer.asks_for_pause() => Err(parcel),
            Verdict::TimedOut if failures >= FAILURES_TO_DIVIDE && is_large => {
                self.loader.too_slow(parcel.size);
                self.take_apart(parcel, Parcel::divide)
            }
            // A server that answers "too large" and closes without reading is seen as a reset connection.
            Verdict::Transient if suspicion >= SUSPICIONS_TO_UNGROUP && is_large => {
                self.take_apart(parcel, Parcel::divide)
            }
            _ if suspicion >= SUSPICIONS_TO_UNGROUP => self.take_apart(parcel, Parcel::ungroup),
            _ => Err(parcel),
        };
        let outcome = divided.unwrap_or_else(|whole| {
            self.waiting.push_back(whole);
            Outcome::Waits
        });
        (outcome, notice)
    }
}

fn is_due(parcel: &Parcel, now: Instant) -> bool {
    parcel.history.not_before.is_none_or(|moment| moment <= now)
}
