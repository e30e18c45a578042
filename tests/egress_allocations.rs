//! Rules for what leaves allocate nothing per span, and decisions over whole traces take one copy of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

use std::sync::Arc;

use spanledger::egress::{
    EgressOptions, Glob, KeepRule, Outcome, Policy, SpanCondition, SpanRule, Tail, Threshold, Workspace,
};
use spanledger::otlp::Signal;

fn request(spans: u64) -> Bytes {
    let attribute = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    };
    let span = |number: u64| Span {
        trace_id: u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
            .to_be_bytes()
            .to_vec(),
        span_id: vec![1; 8],
        name: "step".into(),
        attributes: vec![
            attribute("removed", "x"),
            attribute("hashed", "y"),
            attribute("kept", "of nobody at example.com"),
            attribute("long", &"z".repeat(100)),
        ],
        ..Span::default()
    };
    encoded(ScopeSpans {
        spans: (0..spans).map(span).collect(),
        ..ScopeSpans::default()
    })
}

/// A request of one scope.
fn encoded(scope: ScopeSpans) -> Bytes {
    let resource_spans = vec![ResourceSpans {
        scope_spans: vec![scope],
        ..ResourceSpans::default()
    }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

#[test]
fn a_request_costs_as_many_allocations_with_many_spans_as_with_few() {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let policy = Policy::compile(&EgressOptions {
        drop_spans: vec![SpanRule {
            any_of: vec![SpanCondition {
                attributes: vec![("kept".into(), vec![Glob::new("no*such")])],
                ..SpanCondition::default()
            }],
            says: "test".into(),
        }],
        ratio: Threshold::from_ratio(0.5).unwrap(),
        remove_attributes: texts(&["removed"]),
        hash_attributes: texts(&["hashed"]),
        redact: texts(&["builtin"]),
        truncate: 50,
        ..EgressOptions::default()
    })
    .unwrap();
    let mut workspace = Workspace::default();
    let mut allocations = |spans| {
        let body = request(spans);
        // Once for what grows, which is kept for the next request.
        policy.apply(Signal::Traces, &body, &mut workspace).unwrap();
        let mut outcome = Ok(Outcome::Nothing);
        let counted = allocation_counter::measure(|| outcome = policy.apply(Signal::Traces, &body, &mut workspace));
        assert!(matches!(outcome, Ok(Outcome::Changed { .. })));
        counted.count_total
    };
    let (few, many) = (allocations(50), allocations(5000));
    assert_eq!(few, many);
    assert!(many < 10, "{many}");
}

/// A part of a trace in a scope of its own.
fn part_of_trace(number: usize, spans: usize) -> Bytes {
    let span = Span {
        trace_id: vec![0xff; 16],
        span_id: vec![1; 8],
        name: "x".repeat(1000),
        ..Span::default()
    };
    encoded(ScopeSpans {
        spans: vec![span; spans],
        schema_url: number.to_string(),
        ..ScopeSpans::default()
    })
}

#[test]
fn to_decide_over_a_large_trace_takes_one_more_copy_of_it() {
    const PARTS: usize = 8;
    const SPANS: usize = 1000;
    let by_rule = KeepRule::Spans(SpanRule {
        any_of: vec![SpanCondition {
            names: vec![Glob::new("x*")],
            ..SpanCondition::default()
        }],
        says: "test".into(),
    });
    for (keep, ratio) in [
        (by_rule, Threshold::NEVER),
        (KeepRule::Errors, Threshold::from_ratio(0.5).unwrap()),
    ] {
        let options = EgressOptions {
            keep: vec![keep],
            ratio,
            memory: 1 << 30,
            ..EgressOptions::default()
        };
        let mut tail = Tail::new(&Arc::new(Policy::compile(&options).unwrap())).unwrap();
        let mut workspace = Workspace::default();
        for number in 0..PARTS {
            let body = part_of_trace(number, SPANS);
            tail.add(number as u64, 1, &body, &mut workspace).unwrap();
        }
        let mut decided = None;
        let most = allocation_counter::measure(|| decided = tail.next_due(Some(u64::MAX), &mut workspace)).bytes_max;
        let decided = decided.unwrap();
        assert_eq!(decided.spans as usize, PARTS * SPANS);
        // Of what is sampled a part is copied at a time.
        let allowed = decided.body.len() + decided.body.len() / PARTS;
        assert!(most as usize <= allowed, "{most} of {allowed}");
    }
}

#[test]
fn traces_that_are_remembered_take_no_more_than_the_bound_of_memory_says() {
    let options = EgressOptions {
        keep: vec![KeepRule::SlowerThan(std::time::Duration::from_nanos(1))],
        ratio: Threshold::NEVER,
        memory: 1 << 20,
        ..EgressOptions::default()
    };
    let mut tail = Tail::new(&Arc::new(Policy::compile(&options).unwrap())).unwrap();
    let mut workspace = Workspace::default();
    let held = allocation_counter::measure(|| {
        for number in 0..70_000_u64 {
            let span = Span {
                trace_id: u128::from(number + 1).to_be_bytes().to_vec(),
                span_id: vec![1; 8],
                start_time_unix_nano: 1,
                end_time_unix_nano: 3,
                ..Span::default()
            };
            let scope_spans = vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }];
            let resource_spans = vec![ResourceSpans {
                scope_spans,
                ..ResourceSpans::default()
            }];
            let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
            tail.add(number, 1, &body, &mut workspace).unwrap();
            assert_eq!(tail.next_due(Some(u64::MAX), &mut workspace).unwrap().spans, 1);
        }
    });
    let bound = options.memory_bound() - 2 * options.memory;
    let held = held.bytes_current as usize;
    assert!(held > bound / 2 && held <= bound + 4096, "{held} of {bound}");
}
