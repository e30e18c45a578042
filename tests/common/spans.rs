//! Builds OTLP requests from spans, and writes them as executors do.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use serde_json::{Value, json};

/// Attributes from a JSON object: integers are `intValue`, other numbers `doubleValue`, as the SDKs do it.
pub fn attributes(from: &Value) -> Vec<KeyValue> {
    let attributes = from.as_object().expect("attributes are an object");
    attributes
        .iter()
        .map(|(key, value)| attribute(key, any_value(value)))
        .collect()
}

/// One attribute.
pub fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn any_value(value: &Value) -> any_value::Value {
    match value {
        Value::Bool(value) => any_value::Value::BoolValue(*value),
        Value::String(value) => any_value::Value::StringValue(value.clone()),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => any_value::Value::IntValue(integer),
            None => any_value::Value::DoubleValue(number.as_f64().unwrap()),
        },
        Value::Array(values) => any_value::Value::ArrayValue(ArrayValue {
            values: values
                .iter()
                .map(|value| AnyValue {
                    value: Some(any_value(value)),
                })
                .collect(),
        }),
        other => panic!("no attribute value: {other}"),
    }
}

/// One request with the spans of each tracer together, in the order in which the tracers first appear.
pub fn request(resource: Vec<KeyValue>, spans: impl IntoIterator<Item = (String, Span)>) -> ExportTraceServiceRequest {
    let mut scope_spans: Vec<ScopeSpans> = Vec::new();
    for (tracer, span) in spans {
        let same = scope_spans
            .iter()
            .position(|each| each.scope.as_ref().is_some_and(|scope| scope.name == tracer));
        let at = same.unwrap_or_else(|| {
            let scope = InstrumentationScope {
                name: tracer,
                ..Default::default()
            };
            scope_spans.push(ScopeSpans {
                scope: Some(scope),
                ..Default::default()
            });
            scope_spans.len() - 1
        });
        scope_spans[at].spans.push(span);
    }
    let resource = Resource {
        attributes: resource,
        ..Default::default()
    };
    let resource_spans = vec![ResourceSpans {
        resource: Some(resource),
        scope_spans,
        ..Default::default()
    }];
    ExportTraceServiceRequest { resource_spans }
}

/// All spans of a request.
pub fn spans(request: &ExportTraceServiceRequest) -> impl Iterator<Item = &Span> {
    request
        .resource_spans
        .iter()
        .flat_map(|each| &each.scope_spans)
        .flat_map(|each| &each.spans)
}

/// `<trace id>-<span id>`, as a row is called.
pub fn id(span: &Span) -> String {
    format!("{}-{}", hex(&span.trace_id), hex(&span.span_id))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request as the exporter for JavaScript writes it: ids in hexadecimal digits, times as text, integers as numbers,
/// nothing written that is not there.
pub fn json(request: &ExportTraceServiceRequest) -> String {
    let resource_spans: Vec<Value> = request.resource_spans.iter().map(resource_spans_json).collect();
    json!({ "resourceSpans": resource_spans }).to_string()
}

fn resource_spans_json(from: &ResourceSpans) -> Value {
    let scope_spans: Vec<Value> = from
        .scope_spans
        .iter()
        .map(|each| {
            let spans: Vec<Value> = each.spans.iter().map(span_json).collect();
            json!({ "scope": { "name": each.scope.as_ref().map(|scope| &scope.name) }, "spans": spans })
        })
        .collect();
    let attributes = from
        .resource
        .as_ref()
        .map(|resource| attributes_json(&resource.attributes));
    json!({ "resource": { "attributes": attributes, "droppedAttributesCount": 0 }, "scopeSpans": scope_spans })
}

fn span_json(span: &Span) -> Value {
    let events: Vec<Value> = span
        .events
        .iter()
        .map(|event| {
            json!({
                "attributes": attributes_json(&event.attributes), "name": event.name,
                "timeUnixNano": event.time_unix_nano.to_string(), "droppedAttributesCount": 0,
            })
        })
        .collect();
    let mut status = json!({ "code": span.status.as_ref().map_or(0, |status| status.code) });
    if let Some(given) = span.status.as_ref().filter(|status| !status.message.is_empty()) {
        status["message"] = given.message.clone().into();
    }
    let mut out = json!({
        "traceId": hex(&span.trace_id), "spanId": hex(&span.span_id), "name": span.name, "kind": span.kind,
        "startTimeUnixNano": span.start_time_unix_nano.to_string(), "endTimeUnixNano": span.end_time_unix_nano.to_string(),
        "attributes": attributes_json(&span.attributes), "droppedAttributesCount": 0, "events": events,
        "droppedEventsCount": 0, "status": status, "links": [], "droppedLinksCount": 0, "flags": span.flags,
    });
    if !span.parent_span_id.is_empty() {
        out["parentSpanId"] = hex(&span.parent_span_id).into();
    }
    out
}

fn attributes_json(attributes: &[KeyValue]) -> Value {
    let value = |attribute: &KeyValue| attribute.value.as_ref().map_or(json!({}), value_json);
    attributes
        .iter()
        .map(|attribute| json!({ "key": attribute.key, "value": value(attribute) }))
        .collect()
}

fn value_json(value: &AnyValue) -> Value {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => json!({ "stringValue": text }),
        Some(any_value::Value::BoolValue(yes)) => json!({ "boolValue": yes }),
        Some(any_value::Value::IntValue(integer)) => json!({ "intValue": integer }),
        Some(any_value::Value::DoubleValue(double)) => json!({ "doubleValue": double }),
        Some(any_value::Value::ArrayValue(array)) => {
            json!({ "arrayValue": { "values": array.values.iter().map(value_json).collect::<Vec<_>>() } })
        }
        None => json!({}),
        Some(other) => panic!("the executors send no {other:?}"),
    }
}
