//! Splicing gives what decoding, editing and encoding would give, but for fields unknown to us, which survive.
//!
//! The reference edits the JSON form of what prost decodes, and knows nothing of wire bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::{Map, Value, json};

use super::{applied, compiled, texts};
use crate::egress::{EgressOptions, Glob, Policy, SpanCondition, SpanRule, Threshold};
use crate::otlp::Signal;
use crate::otlp::schema;
use crate::otlp::tests::generate::Generator;
use crate::redact::Patterns;

const KEYS: [&str; 4] = ["a.removed", "a.hashed", "kept", "service.name"];

fn options(random: &mut fastrand::Rng) -> EgressOptions {
    let mut options = EgressOptions::default();
    if random.bool() {
        options.remove_attributes = texts(&["a.rem*"]);
    }
    if random.bool() {
        options.hash_attributes = texts(&["a.hashed"]);
    }
    if random.u8(0..4) == 0 {
        options.keep_attributes = texts(&["kept", "a.*", "*7*"]);
    }
    if random.bool() {
        options.redact = texts(&["[.]7", "(?i)z_", r"\bab\b"][random.usize(0..3)..]);
    }
    if random.bool() {
        options.truncate = random.usize(1..30);
    }
    if random.bool() {
        options.set_resource = vec![("service.name".into(), "mine".into()), ("env".into(), "test".into())];
    }
    if random.bool() {
        options.drop_spans = vec![SpanRule {
            any_of: vec![SpanCondition {
                names: vec![Glob::new("a*"), Glob::new("*7*")],
                ..SpanCondition::default()
            }],
            says: String::new(),
        }];
    }
    if random.bool() {
        options.ratio = Threshold::from_ratio(0.5).unwrap();
    }
    options
}

/// The reference.
struct Reference<'o> {
    options: &'o EgressOptions,
    patterns: Patterns,
}

impl Reference<'_> {
    fn matches(keys: &[String], key: &str) -> bool {
        keys.iter().any(|glob| Glob::new(glob.as_str()).matches(key.as_bytes()))
    }

    fn request(&self, request: &mut Value, resources: &str, scopes: &str, items: &str) {
        let each =
            |value: &mut Value, list: &str| value.get_mut(list).and_then(Value::as_array_mut).map(std::mem::take);
        let mut kept_resources = Vec::new();
        for mut resource in each(request, resources).unwrap_or_default() {
            let mut kept_scopes = Vec::new();
            let before = each(&mut resource, scopes).unwrap_or_default();
            let had_scopes = !before.is_empty();
            for mut scope in before {
                let spans = each(&mut scope, items).unwrap_or_default();
                let had_items = !spans.is_empty();
                let left: Vec<Value> = spans.into_iter().filter_map(|item| self.item(items, item)).collect();
                if !had_items || !left.is_empty() {
                    scope[items] = left.into();
                    kept_scopes.push(scope);
                }
            }
            if had_scopes && kept_scopes.is_empty() && items == "spans" && self.chooses() {
                continue;
            }
            resource[scopes] = kept_scopes.into();
            self.texts(&mut resource, "");
            self.defaults(&mut resource);
            kept_resources.push(resource);
        }
        request[resources] = kept_resources.into();
    }

    fn chooses(&self) -> bool {
        !self.options.drop_spans.is_empty() || self.options.ratio != Threshold::ALWAYS
    }

    fn item(&self, items: &str, mut item: Value) -> Option<Value> {
        if items != "spans" {
            return Some(item);
        }
        let name = item["name"].as_str().unwrap_or_default();
        let dropped = self
            .options
            .drop_spans
            .iter()
            .flat_map(|rule| &rule.any_of)
            .flat_map(|rule| &rule.names);
        if dropped.into_iter().any(|glob| glob.matches(name.as_bytes())) {
            return None;
        }
        if self.options.ratio != Threshold::ALWAYS {
            // The generator's trace states say nothing.
            let id = item["traceId"].as_str().unwrap_or_default();
            let tail: String = id
                .chars()
                .rev()
                .take(14)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            if u64::from_str_radix(&tail, 16).unwrap_or(0) < 1 << 55 {
                return None;
            }
            let state = item["traceState"].as_str().unwrap_or_default();
            let cleaned = self.patterns.clean(state).into_owned();
            let others = cleaned
                .split(',')
                .map(|member| member.trim_matches(|c: char| c.is_ascii_whitespace()));
            let others = others.filter(|member| !member.is_empty());
            item["traceState"] = ["ot=th:8"]
                .into_iter()
                .chain(others)
                .collect::<Vec<_>>()
                .join(",")
                .into();
        }
        Some(item)
    }

    /// Everything in a message, `name` being the field that it is in.
    fn texts(&self, value: &mut Value, name: &str) {
        const NO_TEXTS: [&str; 20] = [
            "traceId",
            "spanId",
            "parentSpanId",
            "startTimeUnixNano",
            "endTimeUnixNano",
            "timeUnixNano",
            "observedTimeUnixNano",
            "intValue",
            "asInt",
            "count",
            "zeroCount",
            "bucketCounts",
            "asDouble",
            "doubleValue",
            "sum",
            "min",
            "max",
            "quantile",
            "zeroThreshold",
            "explicitBounds",
        ];
        match value {
            Value::Object(fields) => self.fields(fields, name),
            Value::Array(items) => {
                let is_in_value = name == "kvlistValue.values";
                items.retain(|item| match item.get("key").and_then(Value::as_str) {
                    Some(key) if item.get("value").is_some() => {
                        let is_kept = self.options.keep_attributes.is_empty()
                            || is_in_value
                            || Self::matches(&self.options.keep_attributes, key);
                        is_kept && !Self::matches(&self.options.remove_attributes, key)
                    }
                    _ => true,
                });
                items.iter_mut().for_each(|item| self.texts(item, name));
            }
            Value::String(text) if !NO_TEXTS.contains(&name) => {
                let mut bytes = match name {
                    "bytesValue" => STANDARD.decode(&text).unwrap(),
                    _ => text.clone().into_bytes(),
                };
                let mut cleaned = Vec::new();
                if self.patterns.cut(&bytes, &mut cleaned, |_| {}) {
                    bytes = cleaned;
                }
                let is_value = matches!(name, "stringValue" | "bytesValue" | "message");
                if is_value && self.options.truncate > 0 {
                    let end = match name {
                        "bytesValue" => self.options.truncate.min(bytes.len()),
                        _ => str::from_utf8(&bytes)
                            .unwrap()
                            .floor_char_boundary(self.options.truncate),
                    };
                    bytes.truncate(end);
                }
                *text = match name {
                    "bytesValue" => STANDARD.encode(bytes),
                    _ => String::from_utf8(bytes).unwrap(),
                };
            }
            _ => {}
        }
    }

    fn fields(&self, fields: &mut Map<String, Value>, name: &str) {
        if let Some(Value::String(key)) = fields.get("key")
            && Self::matches(&self.options.hash_attributes, key)
            && let Some(digest) = fields.get("value").and_then(digest)
        {
            fields.insert("value".into(), json!({"stringValue": digest}));
            if let Some(key) = fields.get_mut("key") {
                self.texts(key, "key");
            }
            return;
        }
        for (field, value) in fields.iter_mut() {
            let name = if name == "kvlistValue" {
                "kvlistValue.values"
            } else {
                field
            };
            self.texts(value, name);
        }
    }

    fn defaults(&self, resource: &mut Value) {
        for (key, value) in &self.options.set_resource {
            if resource["resource"].is_null() {
                resource["resource"] = json!({"attributes": [], "droppedAttributesCount": 0, "entityRefs": []});
            }
            let attributes = resource["resource"]["attributes"].as_array_mut().unwrap();
            let of_key = |entry: &Value| entry["key"] == key.as_str();
            let last = attributes.iter().rev().find(|entry| of_key(entry));
            let is_missing = last.is_none_or(|entry| {
                let value = &entry["value"];
                let is_empty = value.as_object().is_none_or(|members| members.is_empty());
                is_empty || value.get("stringValueStrindex").is_some() || value["stringValue"] == ""
            });
            if is_missing {
                attributes.retain(|entry| !of_key(entry));
                attributes.push(json!({"key": key, "value": {"stringValue": value}}));
            }
        }
    }
}

/// A digest, where its input can be told from JSON.
fn digest(value: &Value) -> Option<String> {
    let (kind, value) = value.as_object()?.iter().next()?;
    let bytes = match (kind.as_str(), value) {
        ("stringValue" | "intValue", Value::String(text)) => text.clone().into_bytes(),
        ("bytesValue", Value::String(text)) => STANDARD.decode(text).unwrap(),
        ("boolValue" | "intValue", other) => other.to_string().into_bytes(),
        ("doubleValue", other) => other.as_f64()?.to_string().into_bytes(),
        ("arrayValue" | "kvlistValue", _) => return Some("a digest".into()),
        _ => return None,
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The JSON form, with the fields that the reference leaves out made alike.
fn form(signal: Signal, body: &Bytes) -> Value {
    match signal {
        Signal::Traces => serde_json::to_value(ExportTraceServiceRequest::decode(body.clone()).unwrap()),
        Signal::Metrics => serde_json::to_value(ExportMetricsServiceRequest::decode(body.clone()).unwrap()),
        Signal::Logs => serde_json::to_value(ExportLogsServiceRequest::decode(body.clone()).unwrap()),
    }
    .unwrap()
}

/// Digests of lists and maps depend on how they were written.
fn without_digests_of_lists(spliced: &mut Value, expected: &Value) {
    match (spliced, expected) {
        (Value::Object(fields), Value::Object(others)) => {
            for (name, value) in fields {
                without_digests_of_lists(value, others.get(name).unwrap_or(&Value::Null));
            }
        }
        (Value::Array(items), Value::Array(others)) => {
            for (item, other) in items.iter_mut().zip(others) {
                without_digests_of_lists(item, other);
            }
        }
        (Value::String(text), Value::String(other)) if other == "a digest" => {
            assert!(
                text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{text}"
            );
            *text = "a digest".into();
        }
        _ => {}
    }
}

/// Where two values differ, and how.
fn first_difference(spliced: &Value, expected: &Value) -> Option<String> {
    let within = |place: String, a: &Value, b: &Value| first_difference(a, b).map(|rest| format!("{place}.{rest}"));
    match (spliced, expected) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            let differs =
                |(name, value): (&String, &Value)| within(name.clone(), value, b.get(name).unwrap_or(&Value::Null));
            a.iter().find_map(differs)
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs
                .into_iter()
                .find_map(|(index, (a, b))| within(index.to_string(), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("spliced {a}, expected {b}")),
    }
}

fn unknown_fields(body: &[u8]) -> usize {
    body.windows(8).filter(|window| *window == b"\xffunknown").count()
}

#[test]
fn splicing_gives_what_decoding_editing_and_encoding_would_give() {
    let mut changed = 0;
    for seed in 0..600 {
        let mut random = fastrand::Rng::with_seed(seed);
        let options = options(&mut random);
        let policy = Policy::compile(&options).unwrap();
        let mut generator = Generator::new(seed);
        generator.special_doubles = false;
        generator.keys = texts(&KEYS);
        let (signal, table, body, names) = match seed % 3 {
            0 => (
                Signal::Traces,
                &schema::TRACE_REQUEST,
                generator.traces().encode_to_vec(),
                ["resourceSpans", "scopeSpans", "spans"],
            ),
            1 => (
                Signal::Metrics,
                &schema::METRICS_REQUEST,
                generator.metrics().encode_to_vec(),
                ["resourceMetrics", "scopeMetrics", "metrics"],
            ),
            _ => (
                Signal::Logs,
                &schema::LOGS_REQUEST,
                generator.logs().encode_to_vec(),
                ["resourceLogs", "scopeLogs", "logRecords"],
            ),
        };
        let body = Bytes::from(body);
        let reference = Reference {
            options: &options,
            patterns: Patterns::compile(&options.redact).unwrap(),
        };
        let mut expected = form(signal, &body);
        reference.request(&mut expected, names[0], names[1], names[2]);
        let scrambled = Bytes::from(generator.scrambled(&body, table));
        for body in [body, scrambled] {
            let Some(left) = applied(&policy, signal, &body) else {
                assert_eq!(expected[names[0]], json!([]), "seed {seed}");
                continue;
            };
            changed += usize::from(left != body);
            let mut spliced = form(signal, &left);
            without_digests_of_lists(&mut spliced, &expected);
            if let Some(place) = first_difference(&spliced, &expected) {
                panic!("seed {seed}: {place}\n{options:?}");
            }
        }
    }
    assert!(changed > 500, "only {changed} requests were changed");
}

#[test]
fn fields_unknown_to_us_survive_every_edit_that_does_not_remove_what_they_stand_in() {
    let policy = compiled(|options| {
        options.redact = texts(&["[a-zA-Z]+"]);
        options.set_resource = vec![("env".into(), "test".into())];
    });
    let mut found = 0;
    for seed in 0..200 {
        let mut generator = Generator::new(seed);
        let body = generator.traces().encode_to_vec();
        let body = Bytes::from(generator.scrambled(&body, &schema::TRACE_REQUEST));
        let left = applied(&policy, Signal::Traces, &body).unwrap();
        assert_eq!(unknown_fields(&left), unknown_fields(&body), "seed {seed}");
        found += unknown_fields(&body);
    }
    assert!(found > 1000);
}

#[test]
fn where_nothing_is_to_be_done_the_request_is_unchanged() {
    let policy = compiled(|options| {
        options.remove_attributes = texts(&["no.such.key"]);
        options.redact = texts(&["no such text"]);
        options.truncate = 1 << 20;
    });
    for seed in 0..200 {
        let mut generator = Generator::new(seed);
        let body = generator.traces().encode_to_vec();
        let body = Bytes::from(generator.scrambled(&body, &schema::TRACE_REQUEST));
        let left = policy.apply(Signal::Traces, &body, &mut crate::egress::Workspace::default());
        assert_eq!(left.unwrap(), crate::egress::Outcome::Unchanged);
    }
}

#[test]
fn broken_bytes_are_an_error_and_never_a_panic() {
    let policy = compiled(|options| {
        options.redact = texts(&["a"]);
        options.remove_attributes = texts(&["b"]);
        options.ratio = Threshold::from_ratio(0.5).unwrap();
    });
    let mut refused = 0;
    for seed in 0..300 {
        let mut generator = Generator::new(seed);
        let mut body = generator.traces().encode_to_vec();
        for _ in 0..generator.rng.usize(1..4) {
            if !body.is_empty() {
                let place = generator.rng.usize(..body.len());
                body[place] = generator.rng.u8(..);
            }
        }
        let outcome = policy.apply(
            Signal::Traces,
            &Bytes::from(body),
            &mut crate::egress::Workspace::default(),
        );
        refused += usize::from(outcome.is_err());
    }
    assert!(refused > 30);
}
