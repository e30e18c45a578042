//! Bytes that are no request: refused as prost refuses them, without a panic, and named.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::{Generator, for_seeds};
use crate::otlp::entry::Entry;
use crate::otlp::opaque::{check_logs, check_metrics};
use crate::otlp::trace::{Span, Visitor};
use crate::otlp::wire::{Fault, put_bytes};
use crate::otlp::{AnyValue, Attributes, TraceRequest};

/// Reads everything there is to read.
fn visit(request: &TraceRequest) -> usize {
    fn attributes(of: Attributes<'_>) -> usize {
        of.map(|(key, inner)| key.len() + value(inner)).sum()
    }
    fn value(of: AnyValue<'_>) -> usize {
        match of {
            AnyValue::Array(values) => values.map(value).sum(),
            AnyValue::Map(map) => attributes(map),
            _ => 1,
        }
    }
    let mut seen = request.span_count();
    for resource in request.resource_spans() {
        seen += attributes(resource.resource()) + resource.schema_url().len();
        for scope in resource.scope_spans() {
            seen += scope.scope_name().len() + attributes(scope.scope_attributes()) + scope.schema_url().len();
            let mut spans = scope.spans();
            while let Some(span) = spans.next_raw() {
                let mut visited = Visited::default();
                let span = Span::visit(span, &mut visited);
                assert_eq!(visited.0, span.attributes().entries().map(said).collect::<Vec<_>>());
                seen += attributes(span.attributes()) + span.attributes().get("a").map_or(0, value);
                seen += span
                    .events()
                    .map(|event| event.name().len() + attributes(event.attributes()))
                    .sum::<usize>();
            }
        }
    }
    seen
}

/// The attributes that a visitor is shown.
#[derive(Default)]
struct Visited(Vec<String>);

impl<'a> Visitor<'a> for Visited {
    fn attribute(&mut self, entry: Entry<'a>) {
        self.0.push(said(entry));
    }
}

fn said(entry: Entry<'_>) -> String {
    format!("{:?}: {:?}", entry.key().as_bytes(), entry.value())
}

fn damage(generator: &mut Generator, body: &mut Vec<u8>) {
    let rng = &mut generator.rng;
    for _ in 0..rng.usize(1..4) {
        if body.is_empty() {
            return;
        }
        let place = rng.usize(0..body.len());
        match rng.u8(0..5) {
            0 => body[place] = rng.u8(..),
            1 => body[place] ^= 1 << rng.u8(0..8),
            2 => body.truncate(place),
            3 => body.insert(place, rng.u8(..)),
            _ => drop(body.remove(place)),
        }
    }
}

#[test]
fn damaged_requests_are_judged_as_prost_judges_them() {
    let refused = std::sync::atomic::AtomicU32::new(0);
    for_seeds(1500, |seed| {
        let mut generator = Generator::new(seed / 20);
        let mut body = generator.traces().encode_to_vec();
        generator.rng = fastrand::Rng::with_seed(seed);
        damage(&mut generator, &mut body);
        let verdict = TraceRequest::parse(Bytes::from(body.clone()));
        let expected = ExportTraceServiceRequest::decode(&body[..]);
        assert_eq!(verdict.is_ok(), expected.is_ok(), "{verdict:?} {expected:?}");
        if let Err(malformed) = verdict {
            refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(malformed.offset() <= body.len(), "{malformed}");
        }
        visit(&TraceRequest::trusted(body.into()));
    });
    assert!(refused.into_inner() > 300, "the damage has to be felt");
}

#[test]
fn an_attribute_of_any_kind_and_size_with_any_bit_flipped_is_judged_as_prost_judges_it() {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    let request = |key: &str, value: Value| {
        let attribute = |key: &str, value| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        };
        let other = || attribute("other", Value::IntValue(300));
        let span = Span {
            attributes: vec![other(), attribute(key, value), other()],
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
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    };
    let integers = (0..63)
        .flat_map(|bit| [1_i64 << bit, (1 << bit) - 1, -(1 << bit)])
        .chain([i64::MIN, i64::MAX]);
    let mut values: Vec<Value> = integers.map(Value::IntValue).collect();
    values.extend([
        Value::BoolValue(true),
        Value::DoubleValue(-1.5),
        Value::DoubleValue(f64::NAN),
    ]);
    values.extend([0, 1, 7, 8, 15, 16, 17, 40, 127, 128].map(|length| Value::StringValue("x".repeat(length))));
    values.push(Value::StringValue("vierzehn: ü".into()));
    let (mut taken, mut refused) = (0, 0);
    for value in values {
        for key in ["", "k", "http.status", "eine.lange.schlüsselkette"] {
            let body = request(key, value.clone());
            assert!(
                TraceRequest::parse(Bytes::from(body.clone())).is_ok(),
                "{key} {value:?}"
            );
            for bit in 0..body.len() * 8 {
                let mut body = body.clone();
                body[bit / 8] ^= 1 << (bit % 8);
                let expected = ExportTraceServiceRequest::decode(&body[..]).is_ok();
                assert_eq!(
                    TraceRequest::parse(Bytes::from(body)).is_ok(),
                    expected,
                    "{key} {value:?} bit {bit}"
                );
                *(if expected { &mut taken } else { &mut refused }) += 1;
            }
        }
    }
    assert!(taken > 10_000 && refused > 10_000, "{taken} taken, {refused} refused");
}

#[test]
fn damaged_metrics_and_logs_are_judged_as_prost_judges_them() {
    for_seeds(800, |seed| {
        let mut generator = Generator::new(seed / 20);
        let (mut metrics, mut logs) = (generator.metrics().encode_to_vec(), generator.logs().encode_to_vec());
        generator.rng = fastrand::Rng::with_seed(seed);
        damage(&mut generator, &mut metrics);
        damage(&mut generator, &mut logs);
        let expected = ExportMetricsServiceRequest::decode(&metrics[..]);
        assert_eq!(
            check_metrics(&metrics).is_ok(),
            expected.is_ok(),
            "{:?} {expected:?}",
            check_metrics(&metrics)
        );
        let expected = ExportLogsServiceRequest::decode(&logs[..]);
        assert_eq!(
            check_logs(&logs).is_ok(),
            expected.is_ok(),
            "{:?} {expected:?}",
            check_logs(&logs)
        );
    });
}

#[test]
fn data_points_and_log_records_are_counted() {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    for_seeds(300, |seed| {
        let mut generator = Generator::new(seed);
        let (metrics, logs) = (generator.metrics(), generator.logs());
        let scopes = metrics
            .resource_metrics
            .iter()
            .flat_map(|resource| &resource.scope_metrics);
        let points = scopes
            .flat_map(|scope| &scope.metrics)
            .map(|metric| match &metric.data {
                None => 0,
                Some(Data::Gauge(data)) => data.data_points.len(),
                Some(Data::Sum(data)) => data.data_points.len(),
                Some(Data::Histogram(data)) => data.data_points.len(),
                Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
                Some(Data::Summary(data)) => data.data_points.len(),
            });
        assert_eq!(
            check_metrics(&metrics.encode_to_vec()).unwrap() as usize,
            points.sum::<usize>()
        );
        let scopes = logs.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
        let records: usize = scopes.map(|scope| scope.log_records.len()).sum();
        assert_eq!(check_logs(&logs.encode_to_vec()).unwrap() as usize, records);
    });
}

#[test]
fn random_bytes_never_cause_a_panic() {
    for_seeds(3000, |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Few different bytes, so that keys and lengths often make sense.
        let bytes: Bytes = (0..rng.usize(0..200))
            .map(|_| [rng.u8(..), rng.u8(0..24), 0x0a, 0x12][rng.usize(0..4)])
            .collect();
        let verdict = TraceRequest::parse(bytes.clone()).is_ok();
        assert_eq!(verdict, ExportTraceServiceRequest::decode(&bytes[..]).is_ok());
        visit(&TraceRequest::trusted(bytes));
    });
}

/// `innermost` inside of messages, each of which is the field of its number in the one around it.
fn nested(path: &[u32], innermost: &[u8]) -> Bytes {
    let contents = path.iter().rev().fold(innermost.to_vec(), |contents, number| {
        let mut message = Vec::new();
        put_bytes(&mut message, *number, &contents);
        message
    });
    contents.into()
}

#[test]
fn values_may_nest_as_deep_as_prost_reads_and_no_deeper() {
    let mut accepted = 0;
    for depth in 20..70 {
        let path: Vec<u32> = [1, 2, 2, 9, 2].into_iter().chain([5, 1].repeat(depth)).collect();
        let body = nested(&path, b"");
        let verdict = TraceRequest::parse(body.clone());
        assert_eq!(
            verdict.is_ok(),
            ExportTraceServiceRequest::decode(&body[..]).is_ok(),
            "{depth}"
        );
        match verdict {
            Ok(_) => accepted = depth,
            Err(malformed) => assert_eq!(malformed.fault(), Fault::TooDeep),
        }
    }
    assert!((40..60).contains(&accepted), "{accepted}");
}

#[test]
fn a_refusal_names_the_field_and_the_byte() {
    let refusal = |body: Bytes| TraceRequest::parse(body).unwrap_err().to_string();
    assert_eq!(
        refusal(nested(&[1, 2, 2, 9], b"\x0a\x01k\x12\x03\x0a\x01\xff")),
        "malformed protobuf in resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.stringValue at byte 13: \
         string is not valid UTF-8"
    );
    let second = [&nested(&[1, 2], b"")[..], &nested(&[1, 1, 1], b"\x0a\x09short")].concat();
    assert_eq!(
        refusal(second.into()),
        "malformed protobuf in resourceSpans[1].resource.attributes[0].key at byte 11: \
         field reaches beyond the end of its message"
    );
    assert_eq!(
        refusal(nested(&[1, 2, 2], &[0x39, 1])),
        "malformed protobuf in resourceSpans[0].scopeSpans[0].spans[0].startTimeUnixNano at byte 7: \
         field reaches beyond the end of its message"
    );
    assert_eq!(
        refusal(nested(&[1], &[0x10, 1])),
        "malformed protobuf in resourceSpans[0].scopeSpans[0] at byte 2: wrong wire type for this field"
    );
    assert_eq!(
        refusal(Bytes::from_static(b"{}")),
        "malformed protobuf in the request at byte 2: field reaches beyond the end of its message"
    );
}
