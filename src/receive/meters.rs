//! The receiver's own metrics: handles looked up once, except those of refusals, which are rare and have many labels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::refusal::{Reason, Refusal};
use crate::otlp::Signal;

/// How often a reason for refusals is logged.
const LOG_REFUSALS_EVERY: Duration = Duration::from_secs(60);

/// How a request came in: the label `protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

impl Protocol {
    const ALL: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];

    pub(super) fn label(self) -> &'static str {
        match self {
            Protocol::Grpc => "grpc",
            Protocol::HttpProtobuf => "http/protobuf",
            Protocol::HttpJson => "http/json",
        }
    }
}

/// The handles of one protocol and signal.
pub(super) struct SignalMeters {
    requests_accepted: Counter,
    items_accepted: Counter,
    bytes_accepted: Counter,
    items_rejected: Counter,
    requests_duplicate: Counter,
    bytes_duplicate: Counter,
    unanswered: Counter,
    seconds: Histogram,
}

pub(super) struct Meters {
    pub(super) in_flight_bytes: Gauge,
    handles: Vec<SignalMeters>,
    log: RefusalLog,
}

impl Meters {
    pub(super) fn new() -> Meters {
        describe();
        let handles = Protocol::ALL.into_iter().flat_map(|protocol| {
            Signal::ALL
                .into_iter()
                .map(move |signal| SignalMeters::new(protocol, signal))
        });
        Meters {
            in_flight_bytes: gauge!("spanledger_receiver_in_flight_bytes"),
            handles: handles.collect(),
            log: RefusalLog::new(),
        }
    }

    pub(super) fn of(&self, protocol: Protocol, signal: Signal) -> &SignalMeters {
        // Signals count from 1.
        &self.handles[protocol as usize * Signal::ALL.len() + signal as usize - 1]
    }

    /// Counts a refused request; once a minute and reason the log says so, because senders hardly ever do.
    pub(super) fn refused(&self, protocol: Protocol, signal: Option<Signal>, refusal: &Refusal) {
        let (protocol, reason) = (protocol.label(), refusal.reason.label());
        let signal = signal.map_or("unknown", Signal::name);
        let labels = [("protocol", protocol), ("signal", signal), ("reason", reason)];
        counter!("spanledger_receiver_requests_refused_total", &labels).increment(1);
        counter!("spanledger_receiver_bytes_refused_total", &labels).increment(refusal.bytes as u64);
        if self.log.is_due(refusal.reason) {
            tracing::warn!(protocol, signal, reason, message = %refusal.message, "requests are refused");
        } else {
            tracing::debug!(protocol, signal, reason, message = %refusal.message, "request refused");
        }
    }
}

/// When each reason was last logged.
struct RefusalLog {
    began: Instant,
    /// Seconds since the beginning, plus one; 0 means never.
    logged_at: [AtomicU64; Reason::COUNT],
}

impl RefusalLog {
    fn new() -> RefusalLog {
        RefusalLog {
            began: Instant::now(),
            logged_at: Default::default(),
        }
    }

    fn is_due(&self, reason: Reason) -> bool {
        self.is_due_at(reason, self.began.elapsed().as_secs() + 1)
    }

    fn is_due_at(&self, reason: Reason, now: u64) -> bool {
        let logged_at = &self.logged_at[reason as usize];
        let last = logged_at.load(Ordering::Relaxed);
        let due = last == 0 || now >= last + LOG_REFUSALS_EVERY.as_secs();
        due && logged_at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

impl SignalMeters {
    fn new(protocol: Protocol, signal: Signal) -> SignalMeters {
        let labels = [("protocol", protocol.label()), ("signal", signal.name())];
        SignalMeters {
            requests_accepted: counter!("spanledger_receiver_requests_accepted_total", &labels),
            items_accepted: counter!("spanledger_receiver_items_accepted_total", &labels),
            bytes_accepted: counter!("spanledger_receiver_bytes_accepted_total", &labels),
            items_rejected: counter!("spanledger_receiver_items_rejected_total", &labels),
            requests_duplicate: counter!("spanledger_receiver_requests_duplicate_total", &labels),
            bytes_duplicate: counter!("spanledger_receiver_bytes_duplicate_total", &labels),
            unanswered: counter!("spanledger_receiver_requests_unanswered_total", &labels),
            seconds: histogram!("spanledger_receiver_request_duration_seconds", &labels),
        }
    }

    pub(super) fn accepted(&self, items: u32, rejected: u32, bytes: usize) {
        self.requests_accepted.increment(1);
        self.items_accepted.increment(u64::from(items));
        self.bytes_accepted.increment(bytes as u64);
        if rejected > 0 {
            self.items_rejected.increment(u64::from(rejected));
        }
    }

    pub(super) fn duplicate(&self, bytes: usize) {
        self.requests_duplicate.increment(1);
        self.bytes_duplicate.increment(bytes as u64);
    }

    /// Notes the time since `began`, when the answer is ready.
    pub(super) fn answered(&self, began: Instant) {
        self.seconds.record(began.elapsed());
    }

    /// Counts the request as unanswered, unless the guard is told that it was answered.
    pub(super) fn unanswered(&self) -> Unanswered {
        Unanswered(Some(self.unanswered.clone()))
    }
}

/// See [`SignalMeters::unanswered`].
pub(super) struct Unanswered(Option<Counter>);

impl Unanswered {
    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(counter) = &self.0 {
            counter.increment(1);
        }
    }
}

fn describe() {
    describe_gauge!(
        "spanledger_receiver_in_flight_bytes",
        "Bytes of requests in memory, before they are in the journal."
    );
    let counters = [
        ("requests_accepted_total", "Requests that are in the journal."),
        (
            "items_accepted_total",
            "Spans, data points and log records that are in the journal.",
        ),
        (
            "bytes_accepted_total",
            "Bytes of accepted requests as received, compressed or not.",
        ),
        (
            "items_rejected_total",
            "Spans with invalid ids, cut out of otherwise accepted requests.",
        ),
        (
            "requests_duplicate_total",
            "Requests sent again and answered as the first time.",
        ),
        ("bytes_duplicate_total", "Bytes of requests sent again."),
        (
            "requests_unanswered_total",
            "Requests in the journal whose sender went away, or whose deadline passed, before the answer.",
        ),
        ("requests_refused_total", "Requests refused, by reason."),
        (
            "bytes_refused_total",
            "Bytes of refused requests whose body had arrived whole.",
        ),
    ];
    for (name, help) in counters {
        describe_counter!(format!("spanledger_receiver_{name}"), help);
    }
    describe_histogram!(
        "spanledger_receiver_request_duration_seconds",
        "Time from the head of a request to its answer."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_logged_once_a_minute() {
        let log = RefusalLog::new();
        assert!(log.is_due_at(Reason::Malformed, 1));
        assert!(!log.is_due_at(Reason::Malformed, 60));
        assert!(
            log.is_due_at(Reason::Internal, 60),
            "the last reason has a place of its own"
        );
        assert!(log.is_due_at(Reason::Malformed, 61));
    }
}
