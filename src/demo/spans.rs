//! Small builders for OTLP spans, as an SDK would make them.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status};

/// Nanoseconds in a millisecond.
pub(super) const MILLISECOND: u64 = 1_000_000;

/// An attribute value.
pub(super) enum Attribute {
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Attribute {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Attribute {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Attribute {
    /// A JavaScript number without a fraction goes over the wire as an integer.
    fn from(value: f64) -> Self {
        if value.fract() == 0.0 {
            Self::Int(value as i64)
        } else {
            Self::Double(value)
        }
    }
}

/// One attribute.
pub(super) fn attribute(key: &str, value: impl Into<Attribute>) -> KeyValue {
    let value = match value.into() {
        Attribute::Text(text) => any_value::Value::StringValue(text),
        Attribute::Bool(value) => any_value::Value::BoolValue(value),
        Attribute::Int(value) => any_value::Value::IntValue(value),
        Attribute::Double(value) => any_value::Value::DoubleValue(value),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

/// A span under construction.
pub(super) struct Draft {
    span: Span,
    scope: &'static str,
}

impl Draft {
    /// A span of `scope` that ran from `start` to `end` (Unix nanoseconds).
    pub(super) fn new(scope: &'static str, name: impl Into<String>, ids: Ids, start: u64, end: u64) -> Self {
        let span = Span {
            trace_id: ids.trace.to_vec(),
            span_id: ids.span.to_vec(),
            name: name.into(),
            kind: span::SpanKind::Internal as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            flags: 0x101,
            ..Default::default()
        };
        Self { span, scope }
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<Attribute>) -> Self {
        self.span.attributes.push(attribute(key, value));
        self
    }

    pub(super) fn with_some(self, key: &str, value: Option<impl Into<Attribute>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    pub(super) fn ok(mut self) -> Self {
        self.span.status = Some(Status {
            code: status::StatusCode::Ok as i32,
            message: String::new(),
        });
        self
    }

    pub(super) fn error(mut self, message: &str) -> Self {
        self.span.status = Some(Status {
            code: status::StatusCode::Error as i32,
            message: message.to_owned(),
        });
        self
    }

    pub(super) fn exception(mut self, kind: &str, message: &str) -> Self {
        self.span.events.push(span::Event {
            time_unix_nano: self.span.end_time_unix_nano,
            name: "exception".into(),
            attributes: vec![
                attribute("exception.type", kind),
                attribute("exception.message", message),
            ],
            dropped_attributes_count: 0,
        });
        self
    }
}

/// The ids of a span.
#[derive(Clone, Copy)]
pub(super) struct Ids {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
}

/// One request of one process, its spans grouped by scope as SDKs group them.
pub(super) fn request(service: &str, drafts: Vec<Draft>) -> ExportTraceServiceRequest {
    let mut scope_spans: Vec<ScopeSpans> = Vec::new();
    for Draft { span, scope } in drafts {
        let of_scope = |group: &ScopeSpans| group.scope.as_ref().is_some_and(|known| known.name == scope);
        match scope_spans.iter().position(of_scope) {
            Some(index) => scope_spans[index].spans.push(span),
            None => scope_spans.push(ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: scope.to_owned(),
                    ..Default::default()
                }),
                spans: vec![span],
                schema_url: String::new(),
            }),
        }
    }
    let arguments = ["node", "dist/index.js"].map(|text| AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    });
    let command = KeyValue {
        key: "process.command_args".into(),
        value: Some(AnyValue {
            value: Some(any_value::Value::ArrayValue(ArrayValue {
                values: arguments.to_vec(),
            })),
        }),
        ..Default::default()
    };
    let resource = Resource {
        attributes: vec![
            attribute("service.name", service),
            attribute("service.version", "1.0.0"),
            attribute("deployment.environment", "demo"),
            command,
        ],
        ..Default::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans,
            schema_url: String::new(),
        }],
    }
}
