//! The walk sees what prost sees.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1 as proto;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;

use super::{Generator, for_seeds};
use crate::otlp::schema::TRACE_REQUEST;
use crate::otlp::{AnyValue, Attributes, ResourceSpans, ScopeSpans, Span, TraceRequest};

/// An attribute value that can be compared; doubles by their bits, as NaN is unequal to itself.
#[derive(Debug, PartialEq)]
enum Owned {
    Empty,
    Text(String),
    Bool(bool),
    Int(i64),
    Double(u64),
    Array(Vec<Owned>),
    Map(Vec<(String, Owned)>),
    Bytes(Vec<u8>),
}

fn ours(value: AnyValue<'_>) -> Owned {
    match value {
        AnyValue::Empty => Owned::Empty,
        AnyValue::Text(text) => Owned::Text(text.as_str().to_owned()),
        AnyValue::Bool(value) => Owned::Bool(value),
        AnyValue::Int(value) => Owned::Int(value),
        AnyValue::Double(value) => Owned::Double(value.to_bits()),
        AnyValue::Array(values) => Owned::Array(values.map(ours).collect()),
        AnyValue::Map(map) => Owned::Map(our_attributes(map)),
        AnyValue::Bytes(bytes) => Owned::Bytes(bytes.to_vec()),
    }
}

fn our_attributes(attributes: Attributes<'_>) -> Vec<(String, Owned)> {
    attributes
        .map(|(key, value)| (key.as_str().to_owned(), ours(value)))
        .collect()
}

fn theirs(value: Option<&proto::AnyValue>) -> Owned {
    use proto::any_value::Value;
    match value.and_then(|value| value.value.as_ref()) {
        None | Some(Value::StringValueStrindex(_)) => Owned::Empty,
        Some(Value::StringValue(text)) => Owned::Text(text.clone()),
        Some(Value::BoolValue(value)) => Owned::Bool(*value),
        Some(Value::IntValue(value)) => Owned::Int(*value),
        Some(Value::DoubleValue(value)) => Owned::Double(value.to_bits()),
        Some(Value::ArrayValue(array)) => Owned::Array(array.values.iter().map(|value| theirs(Some(value))).collect()),
        Some(Value::KvlistValue(list)) => Owned::Map(their_attributes(&list.values)),
        Some(Value::BytesValue(bytes)) => Owned::Bytes(bytes.clone()),
    }
}

fn their_attributes(attributes: &[proto::KeyValue]) -> Vec<(String, Owned)> {
    attributes
        .iter()
        .map(|entry| (entry.key.clone(), theirs(entry.value.as_ref())))
        .collect()
}

fn compare_span(span: Span<'_>, expected: &trace::Span) {
    assert_eq!(span.trace_id(), expected.trace_id);
    assert_eq!(span.span_id(), expected.span_id);
    assert_eq!(span.parent_span_id(), expected.parent_span_id);
    assert_eq!(span.trace_state(), expected.trace_state.as_str());
    assert_eq!(span.name(), expected.name.as_str());
    assert_eq!(span.kind(), expected.kind);
    assert_eq!(span.start_unix_nano(), expected.start_time_unix_nano);
    assert_eq!(span.end_unix_nano(), expected.end_time_unix_nano);
    assert_eq!(
        our_attributes(span.attributes()),
        their_attributes(&expected.attributes)
    );
    let status = expected.status.clone().unwrap_or_default();
    assert_eq!(span.status_code(), status.code);
    assert_eq!(span.status_message(), status.message.as_str());
    let events: Vec<_> = span.events().collect();
    assert_eq!(events.len(), expected.events.len());
    for (event, expected) in events.iter().zip(&expected.events) {
        assert_eq!(event.name(), expected.name.as_str());
        assert_eq!(event.time_unix_nano(), expected.time_unix_nano);
        assert_eq!(
            our_attributes(event.attributes()),
            their_attributes(&expected.attributes)
        );
    }
    for (key, _) in span.attributes() {
        let last = expected
            .attributes
            .iter()
            .rfind(|entry| entry.key == key.as_str())
            .unwrap();
        assert_eq!(
            ours(span.attributes().get(key.as_str()).unwrap()),
            theirs(last.value.as_ref())
        );
    }
}

fn compare_scope(scope_spans: ScopeSpans<'_>, expected: &trace::ScopeSpans) {
    let scope = expected.scope.clone().unwrap_or_default();
    assert_eq!(scope_spans.scope_name(), scope.name.as_str());
    assert_eq!(scope_spans.scope_version(), scope.version.as_str());
    assert_eq!(
        our_attributes(scope_spans.scope_attributes()),
        their_attributes(&scope.attributes)
    );
    assert_eq!(scope_spans.schema_url(), expected.schema_url.as_str());
    assert_eq!(scope_spans.span_count(), expected.spans.len());
    assert_eq!(scope_spans.spans().count(), expected.spans.len());
    scope_spans
        .spans()
        .zip(&expected.spans)
        .for_each(|(span, expected)| compare_span(span, expected));
}

fn compare_resource(resource_spans: ResourceSpans<'_>, expected: &trace::ResourceSpans) {
    let resource = expected.resource.clone().unwrap_or_default();
    assert_eq!(
        our_attributes(resource_spans.resource()),
        their_attributes(&resource.attributes)
    );
    assert_eq!(resource_spans.schema_url(), expected.schema_url.as_str());
    assert_eq!(resource_spans.scope_spans().count(), expected.scope_spans.len());
    resource_spans
        .scope_spans()
        .zip(&expected.scope_spans)
        .for_each(|(ours, expected)| compare_scope(ours, expected));
}

fn compare(body: &Bytes) {
    let expected = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    let request = TraceRequest::trusted(body.clone());
    assert_eq!(request.resource_spans().count(), expected.resource_spans.len());
    request
        .resource_spans()
        .zip(&expected.resource_spans)
        .for_each(|(ours, expected)| compare_resource(ours, expected));
}

#[test]
fn a_request_as_sdks_write_it_reads_as_prost_reads_it() {
    for_seeds(300, |seed| {
        compare(&Generator::new(seed).traces().encode_to_vec().into())
    });
}

#[test]
fn a_request_in_any_legal_form_reads_as_prost_reads_it() {
    for_seeds(500, |seed| {
        let mut generator = Generator::new(seed);
        let body = generator.traces().encode_to_vec();
        compare(&generator.scrambled(&body, &TRACE_REQUEST).into());
    });
}

/// Reads `bytes` as the value of an attribute, here and with prost, which must agree.
fn value(bytes: &[&[u8]]) -> Owned {
    let bytes = bytes.concat();
    let mut list = Vec::new();
    crate::otlp::wire::put_bytes(&mut list, 1, &bytes);
    let values: Vec<_> = crate::otlp::Values::of(&list).map(ours).collect();
    let expected = proto::AnyValue::decode(&bytes[..]).unwrap();
    assert_eq!(values, [theirs(Some(&expected))]);
    values.into_iter().next().unwrap()
}

const HELLO: &[u8] = b"\x0a\x05hello";
const SEVEN: &[u8] = &[0x18, 7];
const ARRAY_OF_1: &[u8] = &[0x2a, 4, 0x0a, 2, 0x18, 1];
const ARRAY_OF_2: &[u8] = &[0x2a, 4, 0x0a, 2, 0x18, 2];
const EMPTY_ARRAY: &[u8] = &[0x2a, 0];
const UNKNOWN: &[u8] = &[0x78, 1];
const MAP_A: &[u8] = &[0x32, 5, 0x0a, 3, 0x0a, 1, b'a'];

fn ints(values: &[i64]) -> Owned {
    Owned::Array(values.iter().copied().map(Owned::Int).collect())
}

#[test]
fn of_several_kinds_in_one_value_the_last_one_wins() {
    assert_eq!(value(&[HELLO, SEVEN]), Owned::Int(7));
    assert_eq!(value(&[SEVEN, HELLO]), Owned::Text("hello".into()));
    assert_eq!(
        value(&[HELLO, &[0x40, 3]]),
        Owned::Empty,
        "an index into a string table is no value here"
    );
    assert_eq!(value(&[ARRAY_OF_1, SEVEN]), Owned::Int(7));
    assert_eq!(value(&[]), Owned::Empty);
    assert_eq!(value(&[UNKNOWN]), Owned::Empty);
    assert_eq!(value(&[UNKNOWN, HELLO, UNKNOWN]), Owned::Text("hello".into()));
}

#[test]
fn arrays_in_a_row_are_one_array_unless_another_kind_is_between() {
    assert_eq!(value(&[ARRAY_OF_1, ARRAY_OF_2]), ints(&[1, 2]));
    assert_eq!(
        value(&[ARRAY_OF_1, UNKNOWN, EMPTY_ARRAY, ARRAY_OF_2, EMPTY_ARRAY]),
        ints(&[1, 2])
    );
    assert_eq!(value(&[ARRAY_OF_1, HELLO, ARRAY_OF_2]), ints(&[2]));
    assert_eq!(value(&[ARRAY_OF_1, MAP_A, ARRAY_OF_2, ARRAY_OF_2]), ints(&[2, 2]));
    assert_eq!(
        value(&[MAP_A, MAP_A]),
        Owned::Map(vec![("a".into(), Owned::Empty), ("a".into(), Owned::Empty)])
    );
}

#[test]
fn an_attribute_whose_value_is_in_pieces_reads_as_one_value() {
    let entry = |values: &[&[&[u8]]]| {
        let mut bytes = b"\x0a\x01k".to_vec();
        values
            .iter()
            .for_each(|value| crate::otlp::wire::put_bytes(&mut bytes, 2, &value.concat()));
        let expected = proto::KeyValue::decode(&bytes[..]).unwrap();
        let mut list = Vec::new();
        crate::otlp::wire::put_bytes(&mut list, 1, &bytes);
        let read: Vec<_> = Attributes::of(&list)
            .map(|(key, value)| (key.as_str().to_owned(), ours(value)))
            .collect();
        assert_eq!(read, [(expected.key, theirs(expected.value.as_ref()))]);
        read.into_iter().next().unwrap().1
    };
    assert_eq!(entry(&[&[ARRAY_OF_1], &[ARRAY_OF_2]]), ints(&[1, 2]));
    assert_eq!(
        entry(&[&[ARRAY_OF_1, HELLO, ARRAY_OF_2], &[ARRAY_OF_1, ARRAY_OF_1]]),
        ints(&[2, 1, 1])
    );
    assert_eq!(entry(&[&[ARRAY_OF_1], &[], &[UNKNOWN]]), ints(&[1]));
    assert_eq!(entry(&[&[ARRAY_OF_1], &[HELLO]]), Owned::Text("hello".into()));
    assert_eq!(entry(&[&[HELLO], &[]]), Owned::Text("hello".into()));
}

#[test]
fn numbers_are_read_from_every_kind_that_holds_one() {
    fn text(text: &str) -> AnyValue<'_> {
        AnyValue::Text(crate::otlp::Text::new(text.as_bytes()))
    }
    assert_eq!(AnyValue::Int(3).as_f64(), Some(3.0));
    assert_eq!(text(" 2.5 ").as_f64(), Some(2.5));
    assert_eq!(text("1e3").as_i64(), Some(1000));
    assert_eq!(text("-12").as_i64(), Some(-12));
    assert_eq!(text("12.5").as_i64(), None);
    assert_eq!(AnyValue::Double(4.0).as_i64(), Some(4));
    assert_eq!(AnyValue::Double(9.3e18).as_i64(), None);
    assert_eq!(AnyValue::Double(-9_223_372_036_854_775_808.0).as_i64(), Some(i64::MIN));
    assert_eq!(AnyValue::Double(f64::NAN).as_i64(), None);
    for word in ["nan", "inf", "infinity", "", " ", "0x10", "seven", "1_000"] {
        assert_eq!(text(word).as_f64(), None, "{word}");
    }
    assert_eq!(text("true").as_bool(), Some(true));
    assert_eq!(text("True").as_bool(), None);
    assert_eq!(AnyValue::Int(1).as_bool(), None);
}
