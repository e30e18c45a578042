//! Counting a span allocates nothing once its series are there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use spanledger::meter::{ExpositionFormat, Tally};
use spanledger::otlp::TraceRequest;
use spanledger::rules::Catalogue;

fn attributes(pairs: &[(&str, Value)]) -> Vec<KeyValue> {
    let attribute = |(key, value): &(&str, Value)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue {
            value: Some(value.clone()),
        }),
        ..KeyValue::default()
    };
    pairs.iter().map(attribute).collect()
}

fn text(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

/// One span for every part of the catalogue, in every form that a value can have.
fn request() -> TraceRequest {
    let spans = [
        (
            "code.execute",
            vec![
                ("code.runtime", text("vm2")),
                ("code.language", text("python")),
                ("code.duration_ms", text("12.5")),
                ("code.memory_mb", Value::DoubleValue(0.37)),
                ("code.exit_code", Value::IntValue(1)),
                ("code.tokens_used", Value::IntValue(100)),
                ("code.validation_passed", Value::BoolValue(false)),
                ("code.timeout_ms", Value::IntValue(10)),
            ],
        ),
        (
            "e2b.execute",
            vec![
                ("e2b.language", text("bash")),
                ("e2b.exit_code", Value::DoubleValue(137.0)),
            ],
        ),
        (
            "runtime.execute_tool",
            vec![
                ("tool_id", text("calc")),
                ("exit_code", text("-1")),
                ("signal", Value::IntValue(9)),
                ("error_kind", text("gremlins")),
                ("output_bytes", Value::IntValue(1 << 20)),
            ],
        ),
        (
            "chat",
            vec![
                ("gen_ai.operation.name", text("chat")),
                ("gen_ai.request.model", text(&"long".repeat(200))),
                ("gen_ai.usage.input_tokens", Value::IntValue(7)),
                ("gen_ai.usage.output_tokens", Value::IntValue(7)),
            ],
        ),
        (
            "node.execute.x",
            vec![
                ("node.type", Value::DoubleValue(2.0)),
                ("node.status", text("completed")),
            ],
        ),
        ("rag.execute", vec![("rag.sources_found", Value::IntValue(3))]),
        ("GET /", vec![("http.route", text("/"))]),
    ];
    let span = |(name, pairs): &(&str, Vec<(&str, Value)>)| Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: (*name).to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 5_000_000,
        attributes: attributes(pairs),
        events: vec![Event {
            name: "exception".to_owned(),
            attributes: attributes(&[("exception.message", text("it Timed Out"))]),
            ..Event::default()
        }],
        status: Some(Status {
            code: 2,
            message: "no".to_owned(),
        }),
        ..Span::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: spans.iter().map(span).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    TraceRequest::parse(Bytes::from(request.encode_to_vec()))
        .unwrap()
        .request
}

#[test]
fn a_request_whose_series_are_there_is_counted_without_an_allocation() {
    let request = request();
    let mut tally = Tally::new(&Catalogue::built_in(), 2000);
    tally.count(&request, 1);
    let series = tally.series();
    let allocations = allocation_counter::measure(|| {
        for _ in 0..100 {
            tally.count(&request, 2);
        }
    });
    assert_eq!(allocations.count_total, 0);
    assert_eq!(tally.series(), series);
    let text = tally.exposition(ExpositionFormat::Text);
    assert!(text.contains("code_executions_total{runtime=\"vm2\",language=\"python\",outcome=\"timeout\"} 101\n"));
}

#[test]
fn what_overflows_is_counted_without_an_allocation() {
    let request = request();
    let mut tally = Tally::new(&Catalogue::built_in(), 0);
    tally.count(&request, 1);
    let allocations = allocation_counter::measure(|| tally.count(&request, 2));
    assert_eq!(allocations.count_total, 0);
    assert!(
        tally
            .exposition(ExpositionFormat::Text)
            .contains("{otel_metric_overflow=\"true\"} 2\n")
    );
}
