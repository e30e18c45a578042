//! Any bytes as a trace request: the verdict is prost's, the walk sees what prost sees, and nothing panics.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue as ProtoValue, KeyValue, any_value::Value};
use prost::Message;
use spanledger::otlp::opaque::{check_logs, check_metrics};
use spanledger::otlp::{AnyValue, Attributes, TraceRequest};

/// One input.
pub fn run(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let expected = ExportTraceServiceRequest::decode(data);
    let checked = TraceRequest::parse(body.clone());
    // Both know a limit of 100 levels, but count an unknown field at the deepest one differently.
    if checked.is_ok() != expected.is_ok() {
        let message = expected.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(message.contains("recursion limit"), "{checked:?} {expected:?}");
    }
    let walked = walk(&TraceRequest::trusted(body));
    if let (Ok(checked), Ok(expected)) = (checked, expected) {
        assert_eq!(walked, expected_spans(&expected));
        let left = expected_spans(&ExportTraceServiceRequest::decode(&checked.request.bytes()[..]).unwrap());
        assert_eq!(walk(&checked.request), left);
        assert_eq!(left.len(), checked.spans as usize);
        assert_eq!(walked.len(), (checked.spans + checked.rejected) as usize);
    }
    if ExportMetricsServiceRequest::decode(data).is_ok() {
        check_metrics(data).unwrap();
    }
    if ExportLogsServiceRequest::decode(data).is_ok() {
        check_logs(data).unwrap();
    }
}

type Read = (Vec<u8>, Vec<u8>, String, i32, u64, String, Vec<String>, Vec<String>);

fn walk(request: &TraceRequest) -> Vec<Read> {
    let mut read = Vec::new();
    for resource in request.resource_spans() {
        let resource_attributes = attributes(resource.resource());
        for scope in resource.scope_spans() {
            for span in scope.spans() {
                let mut all = resource_attributes.clone();
                all.extend(attributes(scope.scope_attributes()));
                all.extend(attributes(span.attributes()));
                read.push((
                    span.trace_id().to_vec(),
                    span.span_id().to_vec(),
                    span.name().as_str().to_owned(),
                    span.status_code(),
                    span.end_unix_nano(),
                    span.status_message().as_str().to_owned(),
                    all,
                    span.events()
                        .map(|event| format!("{} {:?}", event.name(), attributes(event.attributes())))
                        .collect(),
                ));
            }
        }
    }
    read
}

fn attributes(of: Attributes<'_>) -> Vec<String> {
    of.map(|(key, value)| format!("{key} {}", show(value))).collect()
}

fn show(value: AnyValue<'_>) -> String {
    match value {
        AnyValue::Array(values) => format!("{:?}", values.map(show).collect::<Vec<_>>()),
        AnyValue::Map(map) => format!("{:?}", attributes(map)),
        AnyValue::Double(value) => format!("double {:x}", value.to_bits()),
        AnyValue::Text(text) => format!("text {text}"),
        AnyValue::Bytes(bytes) => format!("bytes {bytes:?}"),
        AnyValue::Bool(value) => format!("bool {value}"),
        AnyValue::Int(value) => format!("int {value}"),
        AnyValue::Empty => "empty".to_owned(),
    }
}

fn expected_spans(request: &ExportTraceServiceRequest) -> Vec<Read> {
    let mut read = Vec::new();
    for resource in &request.resource_spans {
        let of_resource = resource
            .resource
            .as_ref()
            .map(|resource| expected_attributes(&resource.attributes));
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                let mut all = of_resource.clone().unwrap_or_default();
                all.extend(
                    scope
                        .scope
                        .iter()
                        .flat_map(|scope| expected_attributes(&scope.attributes)),
                );
                all.extend(expected_attributes(&span.attributes));
                let status = span.status.clone().unwrap_or_default();
                let events = span.events.iter();
                read.push((
                    span.trace_id.clone(),
                    span.span_id.clone(),
                    span.name.clone(),
                    status.code,
                    span.end_time_unix_nano,
                    status.message,
                    all,
                    events
                        .map(|event| format!("{} {:?}", event.name, expected_attributes(&event.attributes)))
                        .collect(),
                ));
            }
        }
    }
    read
}

fn expected_attributes(of: &[KeyValue]) -> Vec<String> {
    of.iter()
        .map(|entry| format!("{} {}", entry.key, expected_value(entry.value.as_ref())))
        .collect()
}

fn expected_value(value: Option<&ProtoValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None | Some(Value::StringValueStrindex(_)) => "empty".to_owned(),
        Some(Value::ArrayValue(array)) => {
            format!(
                "{:?}",
                array
                    .values
                    .iter()
                    .map(|value| expected_value(Some(value)))
                    .collect::<Vec<_>>()
            )
        }
        Some(Value::KvlistValue(list)) => format!("{:?}", expected_attributes(&list.values)),
        Some(Value::DoubleValue(value)) => format!("double {:x}", value.to_bits()),
        Some(Value::StringValue(text)) => format!("text {text}"),
        Some(Value::BytesValue(bytes)) => format!("bytes {bytes:?}"),
        Some(Value::BoolValue(value)) => format!("bool {value}"),
        Some(Value::IntValue(value)) => format!("int {value}"),
    }
}
