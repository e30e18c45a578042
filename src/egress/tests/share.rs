//! Sampling: the share, the same traces everywhere, whole traces.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use super::{applied, compiled};
use crate::egress::{Outcome, Threshold, Workspace};
use crate::otlp::Signal;

fn request(spans: Vec<Span>) -> Bytes {
    let scope_spans = vec![ScopeSpans {
        spans,
        ..ScopeSpans::default()
    }];
    let resource_spans = vec![ResourceSpans {
        scope_spans,
        ..ResourceSpans::default()
    }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn span(trace: [u8; 16], random: &mut fastrand::Rng) -> Span {
    Span {
        trace_id: trace.to_vec(),
        span_id: random.u64(1..).to_be_bytes().to_vec(),
        name: "work".into(),
        ..Span::default()
    }
}

fn spans(body: &Bytes) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

fn sampled(ratio: f64, body: &Bytes) -> Vec<Span> {
    let policy = compiled(|options| options.ratio = Threshold::from_ratio(ratio).unwrap());
    applied(&policy, Signal::Traces, body)
        .map(|body| spans(&body))
        .unwrap_or_default()
}

/// A trace id, of which the last seven bytes decide.
fn trace(random: &mut fastrand::Rng) -> [u8; 16] {
    random.u128(1..).to_be_bytes()
}

#[test]
fn the_share_of_a_million_traces_is_right_within_binomial_bounds() {
    const TRACES: u32 = 1_000_000;
    const AT_ONCE: u32 = 10_000;
    let ratios = [0.5, 0.1, 0.001];
    let policies = ratios.map(|ratio| compiled(|options| options.ratio = Threshold::from_ratio(ratio).unwrap()));
    let mut dropped_by = ratios.map(|_| 0);
    let mut random = fastrand::Rng::with_seed(9);
    let mut workspace = Workspace::default();
    for _ in 0..TRACES / AT_ONCE {
        let body = request((0..AT_ONCE).map(|_| span(trace(&mut random), &mut random)).collect());
        for (policy, dropped_by) in policies.iter().zip(&mut dropped_by) {
            match policy.apply(Signal::Traces, &body, &mut workspace).unwrap() {
                Outcome::Changed { dropped, .. } => *dropped_by += dropped,
                other => panic!("{other:?}"),
            }
        }
    }
    for (ratio, dropped) in ratios.into_iter().zip(dropped_by) {
        let (kept, traces) = (f64::from(TRACES - dropped), f64::from(TRACES));
        let (mean, deviation) = (traces * ratio, (traces * ratio * (1.0 - ratio)).sqrt());
        assert!((kept - mean).abs() < 4.0 * deviation, "{kept} of {mean} ± {deviation}");
    }
}

#[test]
fn two_processes_keep_the_same_traces_whole_and_a_smaller_share_is_a_part_of_a_larger_one() {
    let mut random = fastrand::Rng::with_seed(10);
    let traces: Vec<[u8; 16]> = (0..2000).map(|_| trace(&mut random)).collect();
    let mut spans: Vec<Span> = traces
        .iter()
        .flat_map(|trace| [*trace; 5])
        .map(|trace| span(trace, &mut random))
        .collect();
    random.shuffle(&mut spans);
    let (here, there) = spans.split_at(spans.len() / 2);
    let (here, there) = (request(here.to_vec()), request(there.to_vec()));
    let mut larger: Option<Vec<Vec<u8>>> = None;
    for ratio in [0.5, 0.3, 0.1] {
        let mut kept: Vec<Vec<u8>> = [&here, &there]
            .into_iter()
            .flat_map(|body| sampled(ratio, body))
            .map(|span| span.trace_id)
            .collect();
        kept.sort();
        for spans in kept.chunk_by(|a, b| a == b) {
            assert_eq!(spans.len(), 5, "a trace is kept as a whole");
        }
        kept.dedup();
        assert!(!kept.is_empty() && kept.len() < traces.len());
        if let Some(larger) = &larger {
            assert!(kept.iter().all(|trace| larger.contains(trace)));
        }
        larger = Some(kept);
    }
}

#[test]
fn the_threshold_goes_along_and_an_earlier_smaller_share_stays() {
    let id = |last: u8| {
        let mut id = [1; 16];
        id[9] = last;
        id
    };
    let with = |last: u8, state: &str| Span {
        trace_id: id(last).to_vec(),
        span_id: vec![1; 8],
        trace_state: state.to_owned(),
        ..Span::default()
    };
    // The randomness of a trace begins with the given byte; the threshold of one half is 80.
    for (last, state, expected) in [
        (0x90, "", Some("ot=th:8")),
        (0x70, "", None),
        (0x70, "ot=rv:90000000000000", Some("ot=th:8;rv:90000000000000")),
        (0x90, "ot=rv:70000000000000", None),
        (0x90, "a=b,ot=th:4", Some("ot=th:8,a=b")),
        (0xd0, "ot=th:c", Some("ot=th:c")),
        // Its own threshold would have rejected it: that says nothing.
        (0x90, "ot=th:c", Some("ot=th:8")),
        (0x90, "ot=th:8", Some("ot=th:8")),
    ] {
        let left = sampled(0.5, &request(vec![with(last, state)]));
        let states: Vec<&str> = left.iter().map(|span| span.trace_state.as_str()).collect();
        assert_eq!(states, expected.into_iter().collect::<Vec<_>>(), "{last:x} {state}");
    }
}

#[test]
fn metrics_and_logs_are_not_sampled() {
    let policy = compiled(|options| options.ratio = Threshold::NEVER);
    assert!(policy.is_for(Signal::Traces) && !policy.is_for(Signal::Metrics) && !policy.is_for(Signal::Logs));
}
