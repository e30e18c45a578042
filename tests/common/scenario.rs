//! The scenario file that all senders share: spans, and the rows and metrics they must become.

use super::prometheus::{Expected, Scrape};
use super::rows::Row;
use super::spans;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where the file is.
pub const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/scenario.json");

/// The file, with a base for its times.
pub struct Scenario {
    file: Value,
    /// What the times in the file are counted from.
    pub base_unix_ms: u64,
}

/// `<trace id>-<span id>` of each span, by its key in the file.
pub type Ids = BTreeMap<String, String>;

impl Scenario {
    /// Reads the file. Its times end shortly before now.
    pub fn read() -> Scenario {
        let text = std::fs::read_to_string(FILE).unwrap();
        let base_unix_ms = super::unix_ms_ago(Duration::from_secs(300));
        Scenario {
            file: serde_json::from_str(&text).unwrap(),
            base_unix_ms,
        }
    }

    fn spans(&self) -> impl Iterator<Item = &Value> {
        self.file["spans"].as_array().unwrap().iter()
    }

    fn unix_nanos(&self, offset_ms: &Value) -> u64 {
        let offset = (offset_ms.as_f64().expect("a time") * 1e6).round();
        self.base_unix_ms * 1_000_000 + offset as u64
    }

    /// The spans as requests of at most ten, with random ids.
    pub fn requests(&self, random: &mut fastrand::Rng) -> (Vec<ExportTraceServiceRequest>, Ids) {
        let mut ids = Ids::new();
        let all: Vec<(String, Span)> = self
            .spans()
            .map(|wanted| {
                let span = self.span(wanted, random);
                ids.insert(wanted["key"].as_str().unwrap().to_owned(), spans::id(&span));
                (wanted["tracer"].as_str().unwrap().to_owned(), span)
            })
            .collect();
        let resource = spans::attributes(&self.file["resource"]);
        (
            all.chunks(10)
                .map(|batch| spans::request(resource.clone(), batch.to_vec()))
                .collect(),
            ids,
        )
    }

    fn span(&self, wanted: &Value, random: &mut fastrand::Rng) -> Span {
        let set = wanted["with"]
            .as_str()
            .map(|name| self.file["attribute_sets"][name].as_object().unwrap());
        let mut attributes = set.cloned().unwrap_or_default();
        attributes.extend(wanted["attributes"].as_object().unwrap().clone());
        let mut span = Span {
            trace_id: random.u128(1..).to_be_bytes().to_vec(),
            span_id: random.u64(1..).to_be_bytes().to_vec(),
            flags: 0x101,
            name: wanted["name"].as_str().unwrap().to_owned(),
            kind: if wanted["kind"] == "SERVER" {
                SpanKind::Server
            } else {
                SpanKind::Internal
            } as i32,
            start_time_unix_nano: self.unix_nanos(&wanted["start_ms"]),
            end_time_unix_nano: self.unix_nanos(&wanted["end_ms"]),
            attributes: spans::attributes(&Value::Object(attributes)),
            ..Default::default()
        };
        if let Some(exception) = wanted["exception"].as_object() {
            let named = exception
                .iter()
                .map(|(name, text)| (format!("exception.{name}"), text.clone()))
                .collect();
            span.events = vec![Event {
                time_unix_nano: span.end_time_unix_nano,
                name: "exception".to_owned(),
                attributes: spans::attributes(&Value::Object(named)),
                ..Default::default()
            }];
        }
        let code = match wanted["status"]["code"].as_str() {
            Some("OK") => 1,
            Some("ERROR") => 2,
            _ => 0,
        };
        let message = wanted["status"]["message"].as_str().unwrap_or_default().to_owned();
        span.status = Some(Status { code, message });
        span
    }

    /// The rows there must be when the spans were sent with these ids, in the order of the ids.
    pub fn rows(&self, ids: &Ids) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .spans()
            .filter(|wanted| wanted["row"].is_object())
            .map(|wanted| {
                let row = &wanted["row"];
                let known: Vec<&str> = super::rows::COLUMNS.into();
                let misspelt = row
                    .as_object()
                    .unwrap()
                    .keys()
                    .find(|key| !known.contains(&key.as_str()));
                assert_eq!(misspelt, None, "no column of that name");
                let text = |column: &str| row[column].as_str().map(str::to_owned);
                Row {
                    id: ids[wanted["key"].as_str().unwrap()].clone(),
                    code_agent_id: text("code_agent_id"),
                    workflow_execution_id: text("workflow_execution_id"),
                    node_id: text("node_id"),
                    runtime: text("runtime").unwrap(),
                    language: text("language").unwrap(),
                    duration_ms: row["duration_ms"].as_i64(),
                    memory_mb: row["memory_mb"].as_i64(),
                    exit_code: row["exit_code"].as_i64(),
                    success: row["success"].as_bool().unwrap(),
                    error_message: text("error_message"),
                    tokens_used: row["tokens_used"].as_i64(),
                    validation_passed: row["validation_passed"].as_bool(),
                    organization_id: text("organization_id"),
                    workspace_id: text("workspace_id"),
                    user_id: text("user_id"),
                    created_at: i64::try_from(self.unix_nanos(&wanted["end_ms"]) / 1_000).unwrap(),
                }
            })
            .collect();
        rows.sort();
        rows
    }

    /// The derived metrics there must be when every span was counted `times` times.
    pub fn series(&self, times: usize) -> Scrape {
        let mut expected = Expected::default();
        let samples = self.spans().filter_map(|wanted| wanted["series"].as_array()).flatten();
        for sample in samples.flat_map(|sample| std::iter::repeat_n(sample, times)) {
            let labels = sample[1].as_object().unwrap().iter();
            let labels = labels.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()));
            expected.add(sample[0].as_str().unwrap(), labels, sample[2].as_f64().unwrap());
        }
        expected.series()
    }

    /// How many spans there are.
    pub fn span_count(&self) -> usize {
        self.spans().count()
    }
}
