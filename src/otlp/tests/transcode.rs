//! OTLP/JSON becomes the protobuf it stands for.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::{Generator, for_seeds};
use crate::otlp::json::transcode;
use crate::otlp::opaque::{check_logs, check_metrics};
use crate::otlp::wire::MAX_DEPTH;
use crate::otlp::{Signal, TraceRequest};

fn generator(seed: u64) -> Generator {
    Generator {
        special_doubles: false,
        ..Generator::new(seed)
    }
}

fn transcoded<M: Message + Default>(signal: Signal, json: impl AsRef<[u8]>) -> M {
    let protobuf = transcode(signal, json.as_ref()).unwrap_or_else(|error| panic!("{error}"));
    match signal {
        Signal::Traces => drop(TraceRequest::parse(protobuf.clone()).unwrap()),
        Signal::Metrics => drop(check_metrics(&protobuf).unwrap()),
        Signal::Logs => drop(check_logs(&protobuf).unwrap()),
    }
    M::decode(protobuf).unwrap()
}

#[test]
fn requests_of_all_signals_come_through_as_they_were() {
    for_seeds(120, |seed| {
        let mut generator = generator(seed);
        let (traces, metrics, logs) = (generator.traces(), generator.metrics(), generator.logs());
        let json = serde_json::to_vec(&traces).unwrap();
        assert_eq!(transcoded::<ExportTraceServiceRequest>(Signal::Traces, json), traces);
        let json = serde_json::to_vec_pretty(&metrics).unwrap();
        assert_eq!(
            transcoded::<ExportMetricsServiceRequest>(Signal::Metrics, json),
            metrics
        );
        let json = serde_json::to_vec(&logs).unwrap();
        assert_eq!(transcoded::<ExportLogsServiceRequest>(Signal::Logs, json), logs);
    });
}

#[test]
fn white_space_makes_no_difference() {
    for_seeds(100, |seed| {
        let traces = generator(seed).traces();
        // Attributes without white space take a short cut.
        let (short, long) = (
            serde_json::to_vec(&traces).unwrap(),
            serde_json::to_vec_pretty(&traces).unwrap(),
        );
        assert!(transcode(Signal::Traces, &short) == transcode(Signal::Traces, &long));
    });
}

#[test]
fn damaged_json_never_causes_a_panic_and_what_passes_is_json() {
    for_seeds(1500, |seed| {
        let mut generator = generator(seed / 20);
        let mut json = serde_json::to_vec(&generator.traces()).unwrap();
        let rng = &mut fastrand::Rng::with_seed(seed);
        for _ in 0..rng.usize(1..4) {
            let place = rng.usize(0..json.len());
            match rng.u8(0..4) {
                0 => json[place] = b"{}[]\",:\\0e-.tn \n\xff\x00"[rng.usize(0..18)],
                1 if json.len() > 1 => drop(json.remove(place)),
                2 => json.insert(place, b"{}[]\",:\\0e-.tn \n\xff\x00"[rng.usize(0..18)]),
                _ => json.truncate(place.max(1)),
            }
        }
        match transcode(Signal::Traces, &json) {
            Err(error) => assert!(error.offset() <= json.len()),
            Ok(protobuf) => {
                TraceRequest::parse(protobuf).unwrap();
                serde_json::from_slice::<serde_json::Value>(&json).unwrap();
            }
        }
    });
}

/// The span whose fields are written as `fields`.
fn span(fields: &str) -> Span {
    let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#);
    let mut request: ExportTraceServiceRequest = transcoded(Signal::Traces, json);
    request.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0)
}

/// What is said about a span whose fields are written as `fields`.
fn refusal(fields: &str) -> String {
    let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#);
    let text = transcode(Signal::Traces, json.as_bytes()).unwrap_err().to_string();
    text.replace("malformed JSON in resourceSpans[0].scopeSpans[0].spans[0]", "")
}

/// The attribute value that is written as `json`.
fn value(json: &str) -> Option<Value> {
    let mut span = span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#));
    span.attributes.remove(0).value.and_then(|value| value.value)
}

#[test]
fn ids_are_hexadecimal_in_either_case_and_wrong_lengths_reject_the_span_alone() {
    let read = span(r#""traceId":"5B8EFFF798038103d269b633813fc60c","spanId":"EEE19B7EC3C1B174","parentSpanId":"""#);
    assert_eq!(read.trace_id, 0x5b8efff798038103d269b633813fc60cu128.to_be_bytes());
    assert_eq!(read.span_id, 0xeee19b7ec3c1b174u64.to_be_bytes());
    assert!(read.parent_span_id.is_empty());

    for wrong in [
        "",
        "00",
        "5b8efff798038103d269b633813fc60",
        "5b8efff798038103d269b633813fc60c0",
        "eee19b7ec3c1b1745",
    ] {
        let good = r#"{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"}"#;
        let bad = format!(r#"{{"traceId":"{wrong}","spanId":"eee19b7ec3c1b174"}}"#);
        let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{good},{bad},{good}]}}]}}]}}"#);
        let checked = TraceRequest::parse(transcode(Signal::Traces, json.as_bytes()).unwrap()).unwrap();
        assert_eq!((checked.spans, checked.rejected), (2, 1), "{wrong}");
    }
    assert_eq!(
        refusal(r#""traceId":"W47/95gDgQPSabYzgT/GDA==""#),
        ".traceId at byte 54: ids are hexadecimal digits"
    );
    assert_eq!(
        refusal(r#""spanId":"0f0f0f0f0f0f0f0G""#),
        ".spanId at byte 53: ids are hexadecimal digits"
    );
    assert_eq!(
        refusal(r#""spanId":"fg""#),
        ".spanId at byte 53: ids are hexadecimal digits"
    );
}

#[test]
fn integers_are_read_from_numbers_and_strings_in_every_form() {
    for (json, expected) in [
        ("12", 12),
        (r#""12""#, 12),
        ("-7", -7),
        ("1e3", 1000),
        (r#""1e3""#, 1000),
        ("5.0", 5),
        ("-9223372036854775808", i64::MIN),
        (r#""9223372036854775807""#, i64::MAX),
        ("0", 0),
        ("-0", 0),
        (r#""1\u0032""#, 12),
    ] {
        assert_eq!(
            value(&format!(r#"{{"intValue":{json}}}"#)),
            Some(Value::IntValue(expected)),
            "{json}"
        );
    }
    assert_eq!(
        span(r#""startTimeUnixNano":1700000000000000001"#).start_time_unix_nano,
        1_700_000_000_000_000_001
    );
    assert_eq!(
        span(r#""endTimeUnixNano":"18446744073709551615""#).end_time_unix_nano,
        u64::MAX
    );
    assert_eq!(
        span(r#""startTimeUnixNano":1.7000000000000001E18"#).start_time_unix_nano,
        1_700_000_000_000_000_100
    );
}

#[test]
fn an_attribute_that_no_integer_holds_becomes_the_nearest_double_and_harms_nothing_beside_it() {
    for (json, expected) in [
        ("9223372036854775808", 9.223_372_036_854_776e18),
        (r#""9223372036854775808""#, 9.223_372_036_854_776e18),
        ("-9223372036854775809", -9.223_372_036_854_776e18),
        ("1e20", 1e20),
        ("100000000000000000000", 1e20),
        ("1.7976931348623157e308", f64::MAX),
        // As JavaScript writes it.
        ("3.402823466e+38", 3.402_823_466e38),
        (
            "123456789012345678901234567890123456789012345678901234567890",
            1.234_567_890_123_456_8e59,
        ),
    ] {
        let found = value(&format!(r#"{{"intValue":{json}}}"#));
        assert_eq!(found, Some(Value::DoubleValue(expected)), "{json}");
        let deep = value(&format!(
            r#"{{"arrayValue":{{"values":[{{"intValue": {json} }},{{"intValue":1}}]}}}}"#
        ));
        let Some(Value::ArrayValue(values)) = deep else {
            panic!("{deep:?}");
        };
        assert_eq!(values.values[0].value, Some(Value::DoubleValue(expected)), "{json}");
        assert_eq!(values.values[1].value, Some(Value::IntValue(1)));
    }
    let around =
        span(r#""attributes":[{"key":"a","value":{"intValue":1e30}},{"key":"b","value":{"intValue":7}}],"name":"n""#);
    assert_eq!((around.name.as_str(), around.attributes.len()), ("n", 2));
    for json in ["0.5", "-1.5e0", "1e400", r#""9223372036854775808x""#, r#""""#, "1e18.5"] {
        let refused = refusal(&format!(
            r#""attributes":[{{"key":"a","value":{{"intValue":{json}}}}}]"#
        ));
        assert!(refused.contains("attributes[0].value"), "{json}: {refused}");
    }
}

#[test]
fn integers_that_do_not_fit_and_texts_that_are_none_are_refused() {
    for (fields, expected) in [
        (
            r#""startTimeUnixNano":18446744073709551616"#,
            "number is not an unsigned 64-bit integer",
        ),
        (r#""startTimeUnixNano":-1"#, "number is not an unsigned 64-bit integer"),
        (r#""startTimeUnixNano":0.5"#, "number is not an unsigned 64-bit integer"),
        (r#""startTimeUnixNano":"""#, "expected an unsigned 64-bit integer"),
        (r#""startTimeUnixNano":"12 ""#, "expected an unsigned 64-bit integer"),
        (r#""startTimeUnixNano":"0x12""#, "expected an unsigned 64-bit integer"),
        (r#""startTimeUnixNano":012"#, "expected a number"),
        (r#""startTimeUnixNano":true"#, "expected a number"),
        (
            r#""droppedEventsCount":4294967296"#,
            "number is not an unsigned 32-bit integer",
        ),
        (r#""kind":2147483648"#, "number is not a signed 32-bit integer"),
        (r#""kind":"SPAN_KIND_ROBOT""#, "no such enum value"),
        (r#""name":7"#, "expected a string"),
        (r#""attributes":{}"#, "expected an array"),
        (r#""status":[]"#, "expected an object"),
    ] {
        assert!(refusal(fields).ends_with(expected), "{fields}: {}", refusal(fields));
    }
}

#[test]
fn enums_are_numbers_or_names() {
    assert_eq!(span(r#""kind":3"#).kind, 3);
    assert_eq!(span(r#""kind":"SPAN_KIND_SERVER""#).kind, 2);
    assert_eq!(span(r#""kind":"4""#).kind, 4);
    assert_eq!(span(r#""kind":-1"#).kind, -1);
    assert_eq!(
        span(r#""status":{"code":"STATUS_CODE_ERROR","message":"m"}"#)
            .status
            .unwrap()
            .code,
        2
    );
}

#[test]
fn doubles_are_read_as_javascript_and_protobuf_write_them() {
    let double = |json: &str| match value(&format!(r#"{{"doubleValue":{json}}}"#)) {
        Some(Value::DoubleValue(value)) => value,
        other => panic!("{json}: {other:?}"),
    };
    assert_eq!(double("0.1"), 0.1);
    assert_eq!(double("3"), 3.0);
    assert_eq!(double("-1.5e-7"), -1.5e-7);
    assert_eq!(double(r#""2.5""#), 2.5);
    assert_eq!(double("0"), 0.0);
    assert_eq!(double(r#""Infinity""#), f64::INFINITY);
    assert_eq!(double(r#""-Infinity""#), f64::NEG_INFINITY);
    assert!(double(r#""NaN""#).is_nan());
    assert_eq!(value(r#"{"doubleValue":null}"#), None, "what JavaScript makes of NaN");
    for wrong in ["1e999", r#""nan""#, r#""inf""#, "NaN", ".5", "5.", "+1", "1e"] {
        assert!(
            refusal(&format!(r#""attributes":[{{"value":{{"doubleValue":{wrong}}}}}]"#)).len() > 9,
            "{wrong}"
        );
    }
}

#[test]
fn values_may_be_empty_absent_or_nested() {
    let attribute = |json: &str| span(&format!(r#""attributes":[{json}]"#)).attributes.remove(0);
    assert_eq!(
        attribute(r#"{"key":"k","value":{}}"#).value,
        Some(AnyValue { value: None })
    );
    assert_eq!(attribute(r#"{"key":"k","value":null}"#).value, None);
    assert_eq!(attribute(r#"{"key":"k"}"#).value, None);
    assert_eq!(attribute("null"), KeyValue::default());
    assert_eq!(value(r#"{"stringValue":""}"#), Some(Value::StringValue(String::new())));
    assert_eq!(value(r#"{"boolValue":false}"#), Some(Value::BoolValue(false)));
    let Some(Value::ArrayValue(array)) = value(
        r#"{"arrayValue":{"values":[{"intValue":1},{},null,{"kvlistValue":{"values":[{"key":"a","value":{"stringValue":"b"}}]}}]}}"#,
    ) else {
        panic!()
    };
    assert_eq!(array.values.len(), 4);
    assert_eq!(array.values[1], array.values[2]);
    let Some(Value::KvlistValue(list)) = &array.values[3].value else {
        panic!()
    };
    assert_eq!(list.values[0].key, "a");
    assert_eq!(
        value(r#"{"arrayValue":{}}"#),
        Some(Value::ArrayValue(Default::default()))
    );
}

#[test]
fn bytes_are_base64_of_either_alphabet_with_or_without_padding() {
    let bytes = |json: &str| match value(&format!(r#"{{"bytesValue":"{json}"}}"#)) {
        Some(Value::BytesValue(bytes)) => bytes,
        other => panic!("{json}: {other:?}"),
    };
    for encoded in ["+/+/AQ==", "-_-_AQ", "-_-_AQ==", r"+\/+\u002fAQ", "+/+/AQ"] {
        assert_eq!(bytes(encoded), [0xfb, 0xff, 0xbf, 1], "{encoded}");
    }
    assert!(bytes("").is_empty());
    let long = "A".repeat(4000);
    assert_eq!(bytes(&long), [0; 3000]);
    assert!(refusal(r#""attributes":[{"value":{"bytesValue":"*"}}]"#).ends_with("bytes are base64"));
}

#[test]
fn strings_are_unescaped_and_half_an_emoji_harms_nobody() {
    let name = |json: &str| span(&format!(r#""name":"{json}""#)).name;
    assert_eq!(
        name(r#"a\"b\\c\/d\b\f\n\r\té\u00e9\ud83d\ude00😀"#),
        "a\"b\\c/d\u{8}\u{c}\n\r\té\u{e9}😀😀"
    );
    assert_eq!(name(r"cut \ud83d"), "cut \u{fffd}");
    assert_eq!(name(r"\ude00\ud83dx\ud83d\n"), "\u{fffd}\u{fffd}x\u{fffd}\n");
    assert_eq!(name(r"\ud83d\ud83d\ude00"), "\u{fffd}😀");
    assert_eq!(name(&r"\u0041".repeat(100)), "A".repeat(100));
    assert_eq!(name("x\u{7f}"), "x\u{7f}");
    for wrong in [r"\x", r"\u12g4", r"\u12", "a\nb", "\u{1f}", r"\"] {
        assert!(!refusal(&format!(r#""name":"{wrong}""#)).is_empty());
    }
    for length in 0..40 {
        let text: String = (0..length)
            .map(|index| char::from(b' ' + 40 + index as u8 % 50))
            .collect();
        let expected = text.clone() + "\"" + &text;
        assert_eq!(
            name(&(text.replace('\\', r"\\") + "\\\"" + &text.replace('\\', r"\\"))),
            expected
        );
    }
}

#[test]
fn unknown_keys_are_ignored_at_every_level() {
    let json = r#"{"new":[1,{"a":[null,true,false,-1.5e9,"\u00e9"]}],"resourceSpans":[{"new":{},"resource":{"x":1,
        "attributes":[{"y":{},"key":"k","value":{"newValue":{"deep":[]},"stringValue":"v","z":1}}]},"scopeSpans":[
        {"scope":{"name":"s","w":null},"spans":[{"name":"n","dropped_attributes_count":7,"trace_id":5,"v":"w",
        "n\u0061me":"escaped"}],"schema_url":0}]}]}"#;
    let request: ExportTraceServiceRequest = transcoded(Signal::Traces, json);
    let resource_spans = &request.resource_spans[0];
    assert_eq!(resource_spans.resource.as_ref().unwrap().attributes.len(), 1);
    let span = &resource_spans.scope_spans[0].spans[0];
    assert_eq!((span.name.as_str(), span.dropped_attributes_count), ("escaped", 0));
}

#[test]
fn of_a_key_that_is_given_twice_the_last_scalar_wins() {
    let read = span(r#""name":"a","name":"b","kind":2,"kind":0,"flags":1,"flags":0,"traceId":"aa","traceId":"""#);
    assert_eq!(
        (read.name.as_str(), read.kind, read.flags, read.trace_id.len()),
        ("b", 0, 0, 0)
    );
    assert_eq!(span(r#""name":"a","name":null"#).name, "a");
    assert_eq!(span(r#""name":"a","name":"""#).name, "");
    assert_eq!(
        value(r#"{"intValue":1,"stringValue":"x"}"#),
        Some(Value::StringValue("x".into()))
    );
    assert_eq!(span(r#""events":[{}],"events":[{},{}]"#).events.len(), 3);
}

#[test]
fn metrics_are_read_with_their_oddities() {
    let json = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[
        {"name":"g","gauge":{"dataPoints":[{"asDouble":null},{"asInt":"0"},{"asInt":-5},{"asDouble":"NaN"}]}},
        {"name":"h","histogram":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA","dataPoints":[
            {"count":"3","sum":0,"bucketCounts":["1",2,"3"],"explicitBounds":[1,"2.5"],"min":null}]}},
        {"name":"e","exponentialHistogram":{"dataPoints":[{"scale":-3,"positive":{"offset":-2,"bucketCounts":[300,"0"]}}]}}
    ]}]}]}"#;
    let request: ExportMetricsServiceRequest = transcoded(Signal::Metrics, json);
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let Some(Data::Gauge(gauge)) = &metrics[0].data else {
        panic!()
    };
    assert_eq!(gauge.data_points[0].value, None);
    assert_eq!(gauge.data_points[1].value, Some(number_data_point::Value::AsInt(0)));
    assert_eq!(gauge.data_points[2].value, Some(number_data_point::Value::AsInt(-5)));
    let Some(Data::Histogram(histogram)) = &metrics[1].data else {
        panic!()
    };
    assert_eq!(histogram.aggregation_temporality, 1);
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum, point.min), (3, Some(0.0), None));
    assert_eq!(
        (&point.bucket_counts[..], &point.explicit_bounds[..]),
        (&[1, 2, 3][..], &[1.0, 2.5][..])
    );
    let Some(Data::ExponentialHistogram(exponential)) = &metrics[2].data else {
        panic!()
    };
    let point = &exponential.data_points[0];
    let positive = point.positive.as_ref().unwrap();
    assert_eq!(
        (point.scale, positive.offset, &positive.bucket_counts[..]),
        (-3, -2, &[300, 0][..])
    );
}

#[test]
fn a_refusal_names_the_value_and_the_byte() {
    let refusal = |json: &str| transcode(Signal::Traces, json.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        refusal(""),
        "malformed JSON in the request at byte 0: the text ends too early"
    );
    assert_eq!(
        refusal("null"),
        "malformed JSON in the request at byte 0: expected an object"
    );
    assert_eq!(
        refusal("{} {}"),
        "malformed JSON in the request at byte 3: something follows the request"
    );
    assert_eq!(
        refusal(r#"{"resourceSpans":[{},{"resource":{"attributes":[{"key":1}]}}]}"#),
        "malformed JSON in resourceSpans[1].resource.attributes[0].key at byte 55: expected a string"
    );
    assert_eq!(
        refusal(r#"{"resourceSpans":[{}"#),
        "malformed JSON in resourceSpans[1] at byte 20: the text ends too early".replace("[1]", "")
    );
    let error = transcode(Signal::Traces, b"{\"a\":\"\xff\"}").unwrap_err();
    assert_eq!((error.offset(), error.path()), (6, ""));
    assert_eq!(
        error.to_string(),
        "malformed JSON in the request at byte 6: not valid UTF-8"
    );
}

#[test]
fn nesting_is_bounded_in_what_is_read_and_in_what_is_skipped() {
    let nested = |levels: usize| {
        let (open, close) = (r#"{"arrayValue":{"values":["#.repeat(levels), "]}}".repeat(levels));
        format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"attributes":[{{"value":{open}{{}}{close}}}]}}]}}]}}]}}"#
        )
    };
    let deepest = (1..100)
        .rfind(|levels| transcode(Signal::Traces, nested(*levels).as_bytes()).is_ok())
        .unwrap();
    assert_eq!(deepest as u32, (MAX_DEPTH - 5) / 2);
    TraceRequest::parse(transcode(Signal::Traces, nested(deepest).as_bytes()).unwrap()).unwrap();
    let error = transcode(Signal::Traces, nested(100_000).as_bytes()).unwrap_err();
    assert!(error.to_string().ends_with("values nest too deep"));
    let skipped = format!(r#"{{"x":{}"#, "[".repeat(1_000_000));
    assert!(transcode(Signal::Traces, skipped.as_bytes()).is_err());
}

#[test]
fn an_empty_request_is_no_bytes() {
    for signal in Signal::ALL {
        assert_eq!(transcode(signal, b" {\t} \n").unwrap(), Bytes::new());
    }
    assert_eq!(
        transcode(Signal::Traces, br#"{"resourceSpans":null}"#).unwrap(),
        Bytes::new()
    );
}
