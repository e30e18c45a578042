//! Spans for tests, built with the generated types: the other way of reading OTLP.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use crate::otlp::TraceRequest;

/// When the spans of tests begin: 2023-11-14T22:13:20Z.
pub(crate) const START: u64 = 1_700_000_000_000_000_000;

/// A value of an attribute.
pub(crate) trait IntoValue {
    fn into_value(self) -> any_value::Value;
}

impl IntoValue for &str {
    fn into_value(self) -> any_value::Value {
        any_value::Value::StringValue(self.to_owned())
    }
}

impl IntoValue for String {
    fn into_value(self) -> any_value::Value {
        any_value::Value::StringValue(self)
    }
}

impl IntoValue for bool {
    fn into_value(self) -> any_value::Value {
        any_value::Value::BoolValue(self)
    }
}

impl IntoValue for i64 {
    fn into_value(self) -> any_value::Value {
        any_value::Value::IntValue(self)
    }
}

impl IntoValue for f64 {
    fn into_value(self) -> any_value::Value {
        any_value::Value::DoubleValue(self)
    }
}

impl IntoValue for any_value::Value {
    fn into_value(self) -> any_value::Value {
        self
    }
}

/// A span under construction: 100 ms long, without attributes or status.
#[derive(Debug, Clone)]
pub(crate) struct TestSpan(Span);

pub(crate) fn span(name: &str) -> TestSpan {
    TestSpan(Span {
        trace_id: vec![0xAB; 16],
        span_id: vec![0xCD; 8],
        name: name.to_owned(),
        kind: 1,
        start_time_unix_nano: START,
        end_time_unix_nano: START + 100_000_000,
        ..Span::default()
    })
}

pub(crate) fn key_value(key: &str, value: impl IntoValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(value.into_value()),
        }),
        ..KeyValue::default()
    }
}

impl TestSpan {
    pub(crate) fn with(mut self, key: &str, value: impl IntoValue) -> Self {
        self.0.attributes.push(key_value(key, value));
        self
    }

    /// An attribute whose value is missing.
    pub(crate) fn with_nothing(mut self, key: &str) -> Self {
        self.0.attributes.push(KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: None }),
            ..KeyValue::default()
        });
        self
    }

    pub(crate) fn status(mut self, code: i32, message: &str) -> Self {
        self.0.status = Some(Status {
            code,
            message: message.to_owned(),
        });
        self
    }

    pub(crate) fn exception(mut self, message: &str) -> Self {
        self.0.events.push(Event {
            name: "exception".to_owned(),
            time_unix_nano: START,
            attributes: vec![key_value("exception.message", message)],
            ..Event::default()
        });
        self
    }

    pub(crate) fn lasting(mut self, nanos: u64) -> Self {
        self.0.end_time_unix_nano = self.0.start_time_unix_nano + nanos;
        self
    }

    pub(crate) fn ending_at(mut self, unix_nano: u64) -> Self {
        self.0.end_time_unix_nano = unix_nano;
        self
    }
}

/// A request with one resource and one scope.
pub(crate) fn request(spans: impl IntoIterator<Item = TestSpan>) -> TraceRequest {
    request_from(vec![], vec![], spans)
}

pub(crate) fn request_from(
    resource: Vec<KeyValue>,
    scope: Vec<KeyValue>,
    spans: impl IntoIterator<Item = TestSpan>,
) -> TraceRequest {
    let scope_spans = ScopeSpans {
        scope: Some(InstrumentationScope {
            name: "tests".to_owned(),
            attributes: scope,
            ..InstrumentationScope::default()
        }),
        spans: spans.into_iter().map(|span| span.0).collect(),
        ..ScopeSpans::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource,
                ..Resource::default()
            }),
            scope_spans: vec![scope_spans],
            ..ResourceSpans::default()
        }],
    };
    TraceRequest::parse(Bytes::from(request.encode_to_vec()))
        .unwrap()
        .request
}
