//! Whether the backend is asked at all, and what is told about it.
//!
//! A backend that fails is not asked by every waiting request: the gate closes, and after the delay of the retry
//! policy **one** request goes as a probe. Only a probe opens the gate again, so that an answer that was still on its
//! way when the backend asked for a pause does not end the pause.

use std::time::{Duration, Instant};

/// A backend that goes on failing is told about this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What belongs into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The first failure.
    Began,
    /// Failing since so long.
    Still(Duration),
    /// It works again, after so long.
    Recovered(Duration),
}

#[derive(Debug)]
struct Closed {
    until: Instant,
    since: Instant,
    told: Instant,
    failures: u32,
    probing: bool,
}

/// Open, or closed since a failure.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Option<Closed>,
}

/// What the gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// Everything.
    Open,
    /// One request, which has to be announced by [`Gate::probing`].
    Probe,
    /// Nothing before this moment.
    Until(Instant),
    /// Nothing before the probe is answered.
    Probing,
}

impl Gate {
    pub(super) fn passage(&self, now: Instant) -> Passage {
        match &self.closed {
            None => Passage::Open,
            Some(closed) if closed.probing => Passage::Probing,
            Some(closed) if now < closed.until => Passage::Until(closed.until),
            Some(_) => Passage::Probe,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// A probe was sent.
    pub(super) fn probing(&mut self) {
        if let Some(closed) = &mut self.closed {
            closed.probing = true;
        }
    }

    /// The probe came back without saying anything about the backend; another may go.
    pub(super) fn inconclusive(&mut self) {
        if let Some(closed) = &mut self.closed {
            closed.probing = false;
        }
    }

    /// The next probe may go at once (shutdown does not wait for the end of a pause).
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(closed) = &mut self.closed {
            closed.until = closed.until.min(now);
        }
    }

    /// A pause, if there is one, lasts until this moment at least.
    pub(super) fn not_before(&mut self, moment: Instant) {
        if let Some(closed) = &mut self.closed {
            closed.until = closed.until.max(moment);
        }
    }

    /// The backend failed. `delay` knows how long to wait after so many failures in a row.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        was_probe: bool,
        delay: impl FnOnce(u32) -> Duration,
    ) -> Option<Notice> {
        let Some(closed) = &mut self.closed else {
            let until = now + delay(1);
            self.closed = Some(Closed {
                until,
                since: now,
                told: now,
                failures: 1,
                probing: false,
            });
            return Some(Notice::Began);
        };
        if !was_probe {
            // Sent before the gate closed: it fails for the same reason and counts once.
            return None;
        }
        closed.failures = closed.failures.saturating_add(1);
        closed.until = now + delay(closed.failures);
        closed.probing = false;
        let is_due = now.duration_since(closed.told) >= TELL_EVERY;
        is_due.then(|| {
            closed.told = now;
            Notice::Still(now.duration_since(closed.since))
        })
    }

    /// The backend answered in a way that shows that it works. Returns whether this opened the gate.
    pub(super) fn works(&mut self, now: Instant, was_probe: bool) -> Option<Notice> {
        if !was_probe {
            return None;
        }
        self.closed
            .take()
            .map(|closed| Notice::Recovered(now.duration_since(closed.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u32) -> Duration {
        Duration::from_secs(count.into())
    }

    #[test]
    fn after_a_failure_one_probe_at_a_time_asks_until_it_is_answered_well() {
        let start = Instant::now();
        let mut gate = Gate::default();
        assert_eq!(gate.passage(start), Passage::Open);
        assert_eq!(gate.failed(start, false, seconds), Some(Notice::Began));
        // Others that were under way fail too: that changes nothing.
        assert_eq!(gate.failed(start, false, seconds), None);
        assert_eq!(gate.passage(start), Passage::Until(start + seconds(1)));
        assert_eq!(gate.passage(start + seconds(1)), Passage::Probe);
        gate.probing();
        assert_eq!(gate.passage(start + seconds(1)), Passage::Probing);
        // An answer from before the failure does not open it.
        assert_eq!(gate.works(start + seconds(1), false), None);
        assert_eq!(gate.failed(start + seconds(1), true, seconds), None);
        assert_eq!(gate.passage(start + seconds(2)), Passage::Until(start + seconds(3)));
        gate.probing();
        assert_eq!(
            gate.works(start + seconds(4), true),
            Some(Notice::Recovered(seconds(4)))
        );
        assert_eq!(gate.passage(start + seconds(4)), Passage::Open);
    }

    #[test]
    fn a_failing_backend_is_told_at_first_and_then_once_a_minute() {
        let start = Instant::now();
        let mut gate = Gate::default();
        let mut told = Vec::new();
        for second in (0..=200).step_by(10) {
            told.extend(gate.failed(start + seconds(second), second > 0, |_| Duration::ZERO));
        }
        let expected = [60, 120, 180].map(|second| Notice::Still(seconds(second)));
        assert_eq!(told, [&[Notice::Began][..], &expected].concat());
    }
}
