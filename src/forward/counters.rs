//! The exporter's own metrics. The handles are kept, because the macros hash their labels at every call.

use std::sync::Once;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::answer::Verdict;
use super::per_signal::PerSignal;
use crate::otlp::Signal;

/// The metrics of one exporter for one signal.
pub(super) struct SignalCounters {
    requests: Counter,
    items: Counter,
    bytes: Counter,
    rejected: Counter,
    refused_requests: Counter,
    refused_items: Counter,
    given_up_requests: Counter,
    given_up_items: Counter,
    holding: Gauge,
}

/// The metrics of one exporter.
pub(super) struct Counters {
    /// In the order of [`Verdict::ALL`].
    attempts: [Counter; Verdict::ALL.len()],
    attempt_seconds: Histogram,
    pub(super) in_flight_requests: Gauge,
    pub(super) in_flight_bytes: Gauge,
    pub(super) skipped: Counter,
    evicted: Counter,
    signals: PerSignal<SignalCounters>,
}

impl Counters {
    pub(super) fn new(exporter: &str) -> Counters {
        describe();
        let exporter = exporter.to_owned();
        let attempts = Verdict::ALL.map(|verdict| {
            metrics::counter!("spanledger_exporter_attempts_total",
                "exporter" => exporter.clone(), "result" => verdict.label())
        });
        let of_signal = |name: &'static str, signal: Signal| metrics::counter!(name, "exporter" => exporter.clone(), "signal" => signal.name());
        let signals = PerSignal::new(|signal| SignalCounters {
            requests: of_signal("spanledger_exporter_sent_requests_total", signal),
            items: of_signal("spanledger_exporter_sent_items_total", signal),
            bytes: of_signal("spanledger_exporter_sent_bytes_total", signal),
            rejected: of_signal("spanledger_exporter_rejected_items_total", signal),
            refused_requests: of_signal("spanledger_exporter_refused_requests_total", signal),
            refused_items: of_signal("spanledger_exporter_refused_items_total", signal),
            given_up_requests: of_signal("spanledger_exporter_given_up_requests_total", signal),
            given_up_items: of_signal("spanledger_exporter_given_up_items_total", signal),
            holding: metrics::gauge!("spanledger_exporter_holding",
                "exporter" => exporter.clone(), "signal" => signal.name()),
        });
        Counters {
            attempts,
            attempt_seconds: metrics::histogram!("spanledger_exporter_attempt_seconds", "exporter" => exporter.clone()),
            in_flight_requests: metrics::gauge!("spanledger_exporter_in_flight_requests", "exporter" => exporter.clone()),
            in_flight_bytes: metrics::gauge!("spanledger_exporter_in_flight_bytes", "exporter" => exporter.clone()),
            skipped: metrics::counter!("spanledger_exporter_skipped_records_total", "exporter" => exporter.clone()),
            evicted: metrics::counter!("spanledger_exporter_refused_evicted_total", "exporter" => exporter.clone()),
            signals,
        }
    }

    /// A counter for each of the rules with these names.
    pub(super) fn of_rules<'r>(&self, exporter: &str, names: impl Iterator<Item = &'r str>) -> Vec<Counter> {
        let counter = |name: &str| {
            metrics::counter!("spanledger_exporter_rule_total",
                "exporter" => exporter.to_owned(), "rule" => name.to_owned())
        };
        names.map(counter).collect()
    }

    fn of(&self, signal: Signal) -> &SignalCounters {
        &self.signals[signal]
    }

    pub(super) fn attempted(&self, verdict: Verdict, took: Duration) {
        self.attempts[verdict as usize].increment(1);
        self.attempt_seconds.record(took);
    }

    pub(super) fn delivered(&self, signal: Signal, items: u64, bytes: u64, rejected: u64) {
        let counters = self.of(signal);
        counters.requests.increment(1);
        counters.items.increment(items);
        counters.bytes.increment(bytes);
        counters.rejected.increment(rejected);
    }

    pub(super) fn refused(&self, signal: Signal, items: u64, evicted: u64) {
        self.of(signal).refused_requests.increment(1);
        self.of(signal).refused_items.increment(items);
        self.evicted.increment(evicted);
    }

    pub(super) fn given_up(&self, signal: Signal, items: u64) {
        self.of(signal).given_up_requests.increment(1);
        self.of(signal).given_up_items.increment(items);
    }

    /// Whether an answer that the operator has to cure holds the queue.
    pub(super) fn holding(&self, signal: Signal, holds: bool) {
        self.of(signal).holding.set(f64::from(u8::from(holds)));
    }
}

fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        metrics::describe_counter!(
            "spanledger_exporter_attempts_total",
            "Requests sent to a backend, by what came of it."
        );
        metrics::describe_histogram!(
            "spanledger_exporter_attempt_seconds",
            metrics::Unit::Seconds,
            "Time until a backend's answer."
        );
        metrics::describe_gauge!("spanledger_exporter_in_flight_requests", "Requests under way.");
        metrics::describe_gauge!(
            "spanledger_exporter_in_flight_bytes",
            "Bytes of the requests under way."
        );
        metrics::describe_counter!(
            "spanledger_exporter_sent_requests_total",
            "Requests that a backend took."
        );
        metrics::describe_counter!(
            "spanledger_exporter_sent_items_total",
            "Spans, data points and log records that a backend took, less those it rejected."
        );
        metrics::describe_counter!(
            "spanledger_exporter_sent_bytes_total",
            "Bytes of request bodies that a backend took."
        );
        metrics::describe_counter!(
            "spanledger_exporter_rejected_items_total",
            "Items that a backend rejected by partial success."
        );
        metrics::describe_counter!(
            "spanledger_exporter_refused_requests_total",
            "Requests whose content a backend refused; kept under refused/."
        );
        metrics::describe_counter!(
            "spanledger_exporter_refused_items_total",
            "Items whose content a backend refused; kept under refused/."
        );
        metrics::describe_counter!(
            "spanledger_exporter_refused_evicted_total",
            "Refused requests that were deleted, or not kept at all, so that refused/ stays within its limits."
        );
        metrics::describe_counter!(
            "spanledger_exporter_given_up_requests_total",
            "Requests given up after retry_on_failure.max_elapsed_time."
        );
        metrics::describe_counter!(
            "spanledger_exporter_given_up_items_total",
            "Items given up after retry_on_failure.max_elapsed_time."
        );
        metrics::describe_counter!(
            "spanledger_exporter_rule_total",
            "What a rule for what leaves did: spans dropped, traces kept, values removed or changed."
        );
        metrics::describe_counter!(
            "spanledger_exporter_skipped_records_total",
            "Journal records of signals this exporter does not send."
        );
        metrics::describe_gauge!(
            "spanledger_exporter_holding",
            "1 while an answer that only the operator can cure (401, 404, ...) holds the queue."
        );
    });
}
