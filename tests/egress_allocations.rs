//! Rules for what leaves allocate nothing per span.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

use spanledger::egress::{EgressOptions, Glob, Outcome, Policy, SpanCondition, SpanRule, Threshold, Workspace};
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
    let scope_spans = vec![ScopeSpans {
        spans: (0..spans).map(span).collect(),
        ..ScopeSpans::default()
    }];
    let resource_spans = vec![ResourceSpans {
        scope_spans,
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
