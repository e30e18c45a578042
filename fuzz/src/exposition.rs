//! Any texts in spans, and any `Accept`: what is scraped is one well-formed sample per line, and each series stands there
//! once.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use spanledger::meter::{ExpositionFormat, Tally};
use spanledger::otlp::TraceRequest;
use spanledger::rules::Catalogue;

/// Attributes that become labels or values, of spans that are counted.
const KEYS: [&str; 8] = [
    "code.runtime",
    "code.language",
    "code.exit_code",
    "code.duration_ms",
    "code.memory_mb",
    "tool_id",
    "error_kind",
    "signal",
];

/// One input: texts with a zero byte between them become the attributes, one span for every eight of them.
pub fn run(data: &[u8]) {
    let header = String::from_utf8_lossy(data.get(..64).unwrap_or(data));
    let negotiated = ExpositionFormat::negotiate(Some(&header));
    let catalogue = Catalogue::built_in();
    let mut tally = Tally::new(&catalogue, 50);
    let texts: Vec<String> = data
        .split(|&byte| byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect();
    let spans = texts.chunks(KEYS.len()).zip(1u64..).map(|(texts, id)| Span {
        trace_id: vec![1; 16],
        span_id: id.to_be_bytes().to_vec(),
        name: texts[0].clone(),
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_000_000_000 + texts.len() as u64 * 1_000_000,
        attributes: KEYS.iter().zip(texts).map(|(key, text)| attribute(key, text)).collect(),
        ..Span::default()
    });
    let scope = ScopeSpans {
        spans: spans.collect(),
        ..ScopeSpans::default()
    };
    let resource = ResourceSpans {
        scope_spans: vec![scope],
        ..ResourceSpans::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![resource],
    };
    let checked = TraceRequest::parse(request.encode_to_vec().into()).unwrap();
    tally.count(&checked.request, 1_700_000_001_000_000_000);
    for format in [negotiated, ExpositionFormat::Text, ExpositionFormat::OpenMetrics] {
        check(&tally.exposition(format), format);
    }
}

fn attribute(key: &str, text: &str) -> KeyValue {
    let value = match text.parse::<f64>() {
        Ok(number) if text.len().is_multiple_of(2) => Value::DoubleValue(number),
        _ => Value::StringValue(text.to_owned()),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn check(text: &str, format: ExpositionFormat) {
    let mut seen = BTreeSet::new();
    // Only a line feed ends a line.
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            let known = ["# HELP ", "# TYPE ", "# UNIT ", "# EOF"];
            assert!(known.iter().any(|it| line.starts_with(it)), "{line:?}");
            continue;
        }
        let (series, rest) = series(line).unwrap_or_else(|| panic!("not a sample: {line:?}"));
        let value = rest.split(' ').next().unwrap_or_default();
        assert!(
            value == "+Inf" || value == "NaN" || value.parse::<f64>().is_ok(),
            "{line:?}"
        );
        assert!(seen.insert(series), "twice: {line:?}");
        assert!(format == ExpositionFormat::OpenMetrics || rest == value, "{line:?}");
    }
}

/// Name and labels, and what comes after the blank behind them.
fn series(line: &str) -> Option<(&str, &str)> {
    let name = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')?;
    let mut at = name;
    if line[at..].starts_with('{') {
        at += 1;
        while !line[at..].starts_with('}') {
            let key = line[at..].find("=\"")?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            (key > 0 && line[at..at + key].chars().all(is_name)).then_some(())?;
            at += key + 2;
            let mut characters = line[at..].char_indices();
            let end = loop {
                match characters.next()? {
                    (end, '"') => break end,
                    (_, '\\') => matches!(characters.next()?.1, '\\' | '"' | 'n').then_some(())?,
                    _ => {}
                }
            };
            at += end + 1;
            if line[at..].starts_with(',') {
                at += 1;
            }
        }
        at += 1;
    }
    Some((&line[..at], line[at..].strip_prefix(' ')?))
}
