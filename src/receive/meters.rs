//! The receiver's own metrics: handles looked up once, except those of refusals, which are rare and have many labels.

use std::time::Instant;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::refusal::Refusal;
use crate::otlp::Signal;

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
        }
    }

    pub(super) fn of(&self, protocol: Protocol, signal: Signal) -> &SignalMeters {
        // Signals count from 1.
        &self.handles[protocol as usize * Signal::ALL.len() + signal as usize - 1]
    }

    /// A refused request.
    pub(super) fn refused(&self, protocol: Protocol, signal: Option<Signal>, refusal: &Refusal) {
        let labels = [
            ("protocol", protocol.label()),
            ("signal", signal.map_or("unknown", Signal::name)),
            ("reason", refusal.reason.label()),
        ];
        counter!("spanledger_receiver_requests_refused_total", &labels).increment(1);
        counter!("spanledger_receiver_bytes_refused_total", &labels).increment(refusal.bytes as u64);
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
    pub(super) fn unanswered(&self) -> Unanswered<'_> {
        Unanswered(Some(&self.unanswered))
    }
}

/// See [`SignalMeters::unanswered`].
pub(super) struct Unanswered<'a>(Option<&'a Counter>);

impl Unanswered<'_> {
    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(counter) = self.0 {
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
            "Requests in the journal whose sender went away before the answer.",
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
