//! What an exporter says of itself: in the log, in its metrics, and in the status of its stage.
//!
//! Nothing is logged for each request. A trouble is told when it begins, once a minute while it lasts, and when it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::{Answer, Verdict};
use super::counters::Counters;
use super::gate::Notice;
use super::lane::Lane;
use super::parcel::Parcel;
use super::per_signal::PerSignal;
use super::refused::Keeping;
use crate::egress::{Policy, Workspace};
use crate::journal::ReadError;
use crate::otlp::Signal;
use crate::telemetry::StageStatus;

/// A trouble that does not end is told about this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Troubles besides those of the backend, which the gates time.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Rejected,
    Stuck,
    Reading,
    Saving,
    Keeping,
}

/// Speaks for one exporter.
pub(super) struct Report {
    exporter: String,
    endpoint: String,
    counters: Arc<Counters>,
    status: StageStatus,
    /// In the order of the rules for what leaves.
    rules: Vec<metrics::Counter>,
    is_degraded: bool,
    /// When each [`Trouble`] was last told.
    told: [Option<Instant>; 5],
}

impl Report {
    pub(super) fn new(exporter: String, endpoint: String, status: StageStatus) -> Report {
        let counters = Arc::new(Counters::new(&exporter));
        Report {
            exporter,
            endpoint,
            counters,
            status,
            rules: Vec::new(),
            is_degraded: false,
            told: [None; 5],
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The stage for which this speaks.
    pub(super) fn stage(&self) -> &StageStatus {
        &self.status
    }

    fn is_due(&mut self, trouble: Trouble) -> bool {
        let now = Instant::now();
        let told = &mut self.told[trouble as usize];
        let is_due = told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
        if is_due {
            *told = Some(now);
        }
        is_due
    }

    /// The exporter begins to work, at the record with this sequence.
    pub(super) fn started(&mut self, next: u64) {
        self.status.clear();
        tracing::info!(exporter = self.exporter, endpoint = self.endpoint, next, "forwarding");
    }

    /// The exporter's own files cannot be read.
    pub(super) fn cannot_start(&mut self, error: &std::io::Error) {
        self.status
            .set_degraded(format!("cannot read the exporter's own files: {error}"));
        if self.is_due(Trouble::Reading) {
            let exporter = &self.exporter;
            tracing::error!(exporter, %error, "cannot read the exporter's position or its refused requests");
        }
    }

    /// A saved position is of no use. Sent twice is better than not at all.
    pub(super) fn position_damaged(&self, error: &std::io::Error) {
        tracing::warn!(exporter = self.exporter, %error, "everything in the journal is sent again");
    }

    /// So much is under way.
    pub(super) fn under_way(&self, requests: usize, bytes: usize) {
        self.counters.in_flight_requests.set(requests as f64);
        self.counters.in_flight_bytes.set(bytes as f64);
    }

    /// There are rules for what leaves.
    pub(super) fn has_rules(&mut self, policy: &Policy) {
        let names = policy.rules().iter().map(|rule| rule.name.as_str());
        self.rules = self.counters.of_rules(&self.exporter, names);
        if !policy.is_empty() {
            tracing::info!(
                exporter = self.exporter,
                rules = policy.rules().len(),
                "rules for what leaves are in force"
            );
        }
    }

    /// The rules were applied.
    pub(super) fn applied(&self, policy: &Policy, workspace: &mut Workspace) {
        policy.count(workspace, |rule, counted| {
            if let Some(counter) = self.rules.get(rule) {
                counter.increment(counted);
            }
        });
    }

    /// A record is not sent because its signal is not.
    pub(super) fn skipped(&self) {
        self.counters.skipped.increment(1);
    }

    /// The gate of a signal has closed, stays closed, or has opened.
    pub(super) fn gate(&self, signal: Signal, answer: &Answer, notice: &Notice) {
        let (exporter, endpoint, reason) = (&self.exporter, &self.endpoint, &answer.reason);
        let check = check(exporter, signal, answer);
        match notice {
            Notice::Began => tracing::warn!(
                exporter, endpoint, %signal, reason, check, "the backend does not take data: it waits in the journal"
            ),
            Notice::Still(since) => tracing::warn!(
                exporter, endpoint, %signal, reason, check, seconds = since.as_secs(),
                "the backend still does not take data: it waits in the journal"
            ),
            Notice::Recovered(after) => tracing::info!(
                exporter, endpoint, %signal, seconds = after.as_secs_f64(), "the backend takes data again"
            ),
        }
    }

    /// A request was delivered in so many bytes.
    pub(super) fn delivered(&mut self, parcel: &Parcel, answer: &Answer, bytes: usize) {
        let (signal, items) = (parcel.signal, parcel.items());
        let rejected = answer.rejected.min(items);
        self.counters
            .delivered(signal, items - rejected, bytes as u64, rejected);
        let says_something = rejected > 0 || !answer.reason.is_empty();
        if says_something && self.is_due(Trouble::Rejected) {
            let (exporter, reason) = (&self.exporter, &answer.reason);
            tracing::warn!(exporter, %signal, rejected, reason, "the backend took a request, but not without a word");
        }
    }

    /// A request was given up.
    pub(super) fn gave_up(&self, parcel: &Parcel, answer: &Answer) {
        let (exporter, signal, items, reason) = (&self.exporter, parcel.signal, parcel.items(), &answer.reason);
        self.counters.given_up(signal, items);
        tracing::error!(exporter, %signal, items, reason, "given up after retry_on_failure.max_elapsed_time");
    }

    /// A request fails while others are taken.
    pub(super) fn stuck(&mut self, signal: Signal, answer: &Answer) {
        if self.is_due(Trouble::Stuck) {
            let (exporter, reason) = (&self.exporter, &answer.reason);
            tracing::warn!(exporter, %signal, reason, "a request fails while others are taken");
        }
    }

    /// A refused request was set aside.
    pub(super) fn kept(&self, parcel: &Parcel, keeping: Keeping) {
        let (exporter, signal, items) = (&self.exporter, parcel.signal, parcel.items());
        let reason = parcel.history.refused.as_deref().unwrap_or_default();
        let sequence = parcel.parts.first().map(|part| part.sequence);
        match keeping {
            Keeping::Kept { evicted } => {
                self.counters.refused(signal, items, evicted);
                tracing::warn!(
                    exporter, %signal, items, sequence, evicted, reason,
                    "the backend does not take a request; it is kept under refused/ (`spanledger refused list`)"
                );
            }
            Keeping::NoRoom => {
                self.counters.refused(signal, items, 1);
                let bytes = parcel.held();
                tracing::error!(
                    exporter, %signal, items, sequence, bytes, reason,
                    "the backend does not take a request, and it is lost: exporters.{exporter}.refused has no room for it"
                );
            }
        }
    }

    /// A refused request could not be kept.
    pub(super) fn cannot_keep(&mut self, error: &std::io::Error) {
        if self.is_due(Trouble::Keeping) {
            tracing::error!(exporter = self.exporter, %error, "cannot keep a refused request");
        }
    }

    /// The journal could not be read.
    pub(super) fn cannot_read(&mut self, error: &ReadError) {
        if error.is_retryable() && self.is_due(Trouble::Reading) {
            tracing::error!(exporter = self.exporter, %error, "cannot read the journal");
        }
    }

    /// The position could not be saved.
    pub(super) fn cannot_save(&mut self, error: &std::io::Error) {
        if self.is_due(Trouble::Saving) {
            tracing::error!(exporter = self.exporter, %error, "cannot save the exporter's position");
        }
    }

    /// Certificate files could not be read again.
    pub(super) fn cannot_reload(&self, error: &super::ForwardError) {
        tracing::warn!(exporter = self.exporter, %error, "cannot read the certificates again");
    }

    /// Brings the stage's status and the gauges up to date.
    pub(super) fn lanes(&mut self, lanes: &PerSignal<Lane>) {
        let mut first = None;
        for (signal, lane) in lanes.iter() {
            let trouble = lane.trouble();
            self.counters
                .holding(signal, trouble.is_some_and(|answer| answer.verdict == Verdict::Curable));
            first = first.or(trouble.map(|answer| (signal, answer)));
        }
        match first {
            Some((signal, answer)) => {
                let check = check(&self.exporter, signal, answer);
                let check = if check.is_empty() {
                    check
                } else {
                    format!("; check {check}")
                };
                self.status
                    .set_degraded(format!("{} ({signal}): {}{check}", self.endpoint, answer.reason));
            }
            None if self.is_degraded => self.status.clear(),
            None => {}
        }
        self.is_degraded = first.is_some();
    }

    /// The exporter ends; its position is saved before this sequence.
    pub(super) fn stopped(&self, next: u64, is_complete: bool) {
        let exporter = &self.exporter;
        if is_complete {
            tracing::info!(exporter, next, "everything is forwarded");
        } else {
            tracing::info!(exporter, next, "stopped; the rest stays in the journal");
        }
    }
}

/// The full name of the key that may cure an answer; empty if none would.
fn check(exporter: &str, signal: Signal, answer: &Answer) -> String {
    match answer.cure {
        "" => String::new(),
        // Some backends take traces only, and say 404 to the rest.
        "endpoint" if answer.verdict == Verdict::Curable && signal != Signal::Traces => {
            format!("exporters.{exporter}.endpoint, or leave {signal} out of exporters.{exporter}.signals")
        }
        key => format!("exporters.{exporter}.{key}"),
    }
}
