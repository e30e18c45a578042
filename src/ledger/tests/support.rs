//! Spans by name, and a table to look at.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;

use crate::ledger::assemble::assemble;
use crate::ledger::extract::Extractor;
use crate::ledger::facts::Facts;
use crate::ledger::row::Row;
use crate::ledger::world::World;
use crate::otlp::TraceRequest;

/// 2026-01-01T00:00:00Z, when the tests' time begins.
pub(super) const EPOCH: u64 = 1_767_225_600_000_000_000;
pub(super) const MS: u64 = 1_000_000;
pub(super) const HOUR: u64 = 3_600_000 * MS;

/// An attribute's value.
pub(super) enum V {
    S(&'static str),
    I(i64),
    D(f64),
    B(bool),
}

impl From<V> for AnyValue {
    fn from(value: V) -> AnyValue {
        let value = match value {
            V::S(text) => any_value::Value::StringValue(text.to_owned()),
            V::I(number) => any_value::Value::IntValue(number),
            V::D(number) => any_value::Value::DoubleValue(number),
            V::B(truth) => any_value::Value::BoolValue(truth),
        };
        AnyValue { value: Some(value) }
    }
}

/// A span being written down.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct S(pub(super) Span);

/// A span of trace `trace` with id `id`, from and to so many milliseconds after [`EPOCH`].
pub(super) fn span(name: &str, trace: u8, id: u16, from: u64, to: u64) -> S {
    let mut span_id = vec![0x5a; 8];
    span_id[6..].copy_from_slice(&id.to_be_bytes());
    S(Span {
        trace_id: vec![trace; 16],
        span_id,
        name: name.to_owned(),
        kind: span::SpanKind::Internal as i32,
        start_time_unix_nano: EPOCH + from * MS,
        end_time_unix_nano: EPOCH + to * MS,
        ..Span::default()
    })
}

impl S {
    pub(super) fn with(mut self, key: &str, value: V) -> S {
        self.0.attributes.push(attribute(key, value));
        self
    }

    pub(super) fn all<const N: usize>(self, attributes: [(&str, V); N]) -> S {
        attributes
            .into_iter()
            .fold(self, |span, (key, value)| span.with(key, value))
    }

    pub(super) fn status(mut self, code: i32, message: &str) -> S {
        self.0.status = Some(Status {
            code,
            message: message.to_owned(),
        });
        self
    }

    pub(super) fn exception(mut self, kind: &'static str, message: &'static str) -> S {
        let attributes = vec![
            attribute("exception.type", V::S(kind)),
            attribute("exception.message", V::S(message)),
        ];
        self.0.events.push(span::Event {
            name: "exception".to_owned(),
            time_unix_nano: self.0.end_time_unix_nano,
            attributes,
            ..Default::default()
        });
        self
    }

    /// The ids of the workflow that both the execution and its node carry.
    pub(in crate::ledger) fn ids(self, workflow: &'static str, execution: &'static str, node: &'static str) -> S {
        self.all([
            ("workflow.id", V::S(workflow)),
            ("workflow.execution_id", V::S(execution)),
            ("node.id", V::S(node)),
        ])
    }

    pub(super) fn row_id(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{}-{}", hex(&self.0.trace_id), hex(&self.0.span_id))
    }
}

fn attribute(key: &str, value: V) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value.into()),
        ..KeyValue::default()
    }
}

/// An execution as the backend's executor starts every one of them.
pub(super) fn execution(trace: u8, id: u16, from: u64, to: u64) -> S {
    span("code.execute", trace, id, from, to).all([
        ("code.language", V::S("javascript")),
        ("code.runtime", V::S("vm2")),
        ("code.timeout_ms", V::I(30_000)),
        ("security.namespace", V::S("default")),
    ])
}

/// The same, ended as a success ends.
pub(in crate::ledger) fn success(trace: u8, id: u16, from: u64, to: u64) -> S {
    let duration = (to - from) as i64;
    execution(trace, id, from, to)
        .all([
            ("code.success", V::B(true)),
            ("code.has_error", V::B(false)),
            ("code.duration_ms", V::I(duration)),
            ("code.ai_generated", V::B(false)),
        ])
        .status(1, "")
}

/// The same, ended as a run ends that returned `success: false`: an error without a message.
pub(super) fn failure(trace: u8, id: u16, from: u64, to: u64) -> S {
    let duration = (to - from) as i64;
    execution(trace, id, from, to)
        .all([
            ("code.success", V::B(false)),
            ("code.has_error", V::B(true)),
            ("code.duration_ms", V::I(duration)),
        ])
        .status(2, "")
}

/// A node as the backend's workflow executor ends it.
pub(in crate::ledger) fn node(trace: u8, id: u16, from: u64, to: u64) -> S {
    span("node.execute.action.code", trace, id, from, to).all([
        ("node.type", V::S("action.code")),
        ("user.id", V::S("user-1")),
        ("organization.id", V::S("org-1")),
        ("workspace.id", V::S("ws-1")),
        ("node.status", V::S("completed")),
        ("node.attempts", V::I(1)),
    ])
}

/// The request that holds the spans.
pub(super) fn request(spans: &[S]) -> TraceRequest {
    request_of(&[], spans)
}

/// The same, of a resource with attributes.
pub(super) fn request_of(resource: &[(&str, &'static str)], spans: &[S]) -> TraceRequest {
    let attributes = resource
        .iter()
        .map(|(key, value)| attribute(key, V::S(value)))
        .collect();
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes,
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: spans.iter().map(|span| span.0.clone()).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    TraceRequest::trusted(Bytes::from(request.encode_to_vec()))
}

/// What the spans tell, received ten seconds after [`EPOCH`].
pub(super) fn facts(spans: &[S]) -> Vec<Facts> {
    facts_of(&request(spans), EPOCH + 10_000 * MS)
}

pub(super) fn facts_of(request: &TraceRequest, received_at: u64) -> Vec<Facts> {
    let mut facts = Vec::new();
    Extractor::default().extract(request, received_at, &mut facts);
    facts
}

/// The same, received so long after [`EPOCH`]; runtimes may stand alone.
pub(in crate::ledger) fn at(spans: &[S], received_at: u64) -> Vec<Facts> {
    let mut facts = Vec::new();
    let mut extractor = Extractor {
        standalone: true,
        ..Extractor::default()
    };
    extractor.extract(&request(spans), EPOCH + received_at, &mut facts);
    facts
}

/// The rows of the spans, in the order of the spans, by the pure core alone.
pub(super) fn rows(spans: &[S]) -> Vec<Row> {
    rows_of(&facts(spans))
}

pub(super) fn rows_of(facts: &[Facts]) -> Vec<Row> {
    let world = World::new([], facts, HOUR);
    facts
        .iter()
        .filter_map(|facts| assemble(&world, facts, true))
        .map(|assembled| assembled.row)
        .collect()
}

/// The one row of the spans.
pub(super) fn row(spans: &[S]) -> Row {
    let mut rows = rows(spans);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

/// All orders of `items`.
pub(super) fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let Some((last, rest)) = items.split_last() else {
        return vec![Vec::new()];
    };
    let mut all = Vec::new();
    for shorter in permutations(rest) {
        for at in 0..=shorter.len() {
            let mut longer = shorter.clone();
            longer.insert(at, last.clone());
            all.push(longer);
        }
    }
    all
}
