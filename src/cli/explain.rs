//! `spanledger explain`: what would happen to a span, and why. Nothing is written or sent.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use serde_json::{Value, json};

use crate::clock::unix_nanos;
use crate::egress::{Outcome, Policy, Tail, Workspace};
use crate::ledger::extract::Extractor;
use crate::ledger::facts::{Facts, Role};
use crate::otlp::json::transcode;
use crate::otlp::{Signal, TraceRequest};
use crate::redact::Patterns;
use crate::rules::Catalogue;
use crate::rules::matcher::{self, Matcher};
use crate::rules::model::Instrument;
use crate::rules::series_key::label_values;
use crate::settings::Settings;

/// Explains every span of a file with OTLP/JSON: a whole request, or a single span.
pub(super) fn explain(settings: &Settings, file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut out = String::new();
    for request in read(&text).with_context(|| file.display().to_string())? {
        explain_one(settings, &request, &mut out)?;
    }
    Ok(out)
}

/// One request for each span.
fn read(text: &str) -> anyhow::Result<Vec<ExportTraceServiceRequest>> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let request = match value.get("resourceSpans") {
        Some(_) => value,
        None => json!({"resourceSpans": [{"scopeSpans": [{"spans": [value]}]}]}),
    };
    let body = transcode(Signal::Traces, request.to_string().as_bytes()).context("not OTLP/JSON")?;
    let checked = TraceRequest::parse(body)?;
    anyhow::ensure!(
        checked.rejected == 0,
        "traceId needs 32 hexadecimal digits and spanId 16, not all of them 0: such spans are rejected"
    );
    let whole = ExportTraceServiceRequest::decode(checked.request.bytes().clone())?;
    let mut single = Vec::new();
    for resource in &whole.resource_spans {
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                let mut scope = scope.clone();
                scope.spans = vec![span.clone()];
                let mut resource = resource.clone();
                resource.scope_spans = vec![scope];
                single.push(ExportTraceServiceRequest {
                    resource_spans: vec![resource],
                });
            }
        }
    }
    anyhow::ensure!(!single.is_empty(), "there is no span in it");
    Ok(single)
}

fn explain_one(settings: &Settings, request: &ExportTraceServiceRequest, out: &mut String) -> anyhow::Result<()> {
    let body = Bytes::from(request.encode_to_vec());
    let trusted = TraceRequest::trusted(body.clone());
    let spans = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    for span in spans.flat_map(|scope| &scope.spans) {
        writeln!(out, "span {}", span.name)?;
    }
    metrics(&settings.metrics.catalogue()?, &trusted, out)?;
    rows(settings, &trusted, out)?;
    if settings.exporters.is_empty() {
        writeln!(out, "  forwarding: no exporter is configured")?;
    }
    for (name, options) in &settings.exporters {
        if !options.signals.contains(&Signal::Traces) {
            writeln!(out, "  exporter {name}: takes no traces (exporters.{name}.signals)")?;
            continue;
        }
        writeln!(out, "  exporter {name}:")?;
        forwarding(&Arc::new(Policy::compile(&options.egress)?), &body, out)?;
    }
    Ok(())
}

fn metrics(catalogue: &Catalogue, request: &TraceRequest, out: &mut String) -> anyhow::Result<()> {
    let matcher = Matcher::new(catalogue, 0);
    let mut lines = Vec::new();
    matcher.observe(request, &mut matcher::Workspace::default(), &mut |seen| {
        let Some(rule) = catalogue.rules().get(seen.rule) else {
            return;
        };
        let names = catalogue.series_labels(rule);
        let labels: Vec<String> = names
            .zip(label_values(seen.key))
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        let verb = match rule.instrument {
            Instrument::Counter => "grows by",
            Instrument::Histogram { .. } => "observes",
        };
        lines.push(format!("{}{{{}}} {verb} {}", rule.name, labels.join(","), seen.value));
    });
    writeln!(out, "  metrics:{}", if lines.is_empty() { " none" } else { "" })?;
    for line in lines {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

fn rows(settings: &Settings, request: &TraceRequest, out: &mut String) -> anyhow::Result<()> {
    let redact = Patterns::compile(&settings.database.redact)?;
    let mut extractor = Extractor::new(redact, settings.database.standalone);
    let mut facts: Vec<Facts> = Vec::new();
    extractor.extract(request, unix_nanos(), &mut facts);
    let table = &settings.database.table;
    if facts.is_empty() {
        writeln!(out, "  rows: nothing in it concerns {table}")?;
    }
    for fact in &facts {
        match &fact.told.role {
            Role::Execution(_) => writeln!(out, "  rows: an execution, the row {} of {table}", fact.id.row_id())?,
            Role::Inner { .. } => writeln!(
                out,
                "  rows: the second span of a run: no row, it completes the first one's"
            )?,
            role if role.alone().is_some() => {
                writeln!(
                    out,
                    "  rows: a row of {table} if no execution is found around it (database.standalone)"
                )?;
            }
            _ => writeln!(out, "  rows: no row, but it completes those of its workflow execution")?,
        }
        for (column, value) in columns(&serde_json::to_value(&fact.told)?) {
            writeln!(out, "    {column} = {value}")?;
        }
    }
    Ok(())
}

/// What a span tells, flat.
fn columns(told: &Value) -> Vec<(String, Value)> {
    let mut columns = Vec::new();
    let entries = told.as_object().into_iter().flatten();
    for (name, value) in entries.filter(|(name, _)| *name != "role") {
        match (name.as_str(), value) {
            ("x", value) => columns.push(("execution_id".to_owned(), value.clone())),
            ("n", value) => columns.push(("node_id".to_owned(), value.clone())),
            ("o", value) => columns.push(("organization_id".to_owned(), value.clone())),
            ("w", value) => columns.push(("workspace_id".to_owned(), value.clone())),
            ("u", value) => columns.push(("user_id".to_owned(), value.clone())),
            (_, Value::Object(_)) => columns.extend(self::columns(value)),
            // A value with the place where it was found.
            (name, Value::Array(sourced)) => {
                columns.extend(sourced.first().map(|value| (name.to_owned(), value.clone())));
            }
            (_, Value::Null) => {}
            (name, value) => columns.push((name.to_owned(), value.clone())),
        }
    }
    columns
}

fn forwarding(policy: &Arc<Policy>, body: &Bytes, out: &mut String) -> anyhow::Result<()> {
    let mut workspace = Workspace::default();
    let broken = |broken| anyhow::anyhow!("cannot be read: {broken:?}");
    let mut chosen = body.clone();
    if let Some(mut tail) = Tail::new(policy) {
        tail.add(0, 0, body, &mut workspace).map_err(broken)?;
        chosen = Bytes::new();
        while let Some(decided) = tail.next_due(Some(u64::MAX), &mut workspace) {
            chosen = decided.body;
        }
        writeln!(
            out,
            "    decided with its whole trace, after sample.wait; as if it had no other spans:"
        )?;
    }
    let left = match policy.apply(Signal::Traces, &chosen, &mut workspace).map_err(broken)? {
        _ if chosen.is_empty() => None,
        Outcome::Unchanged => Some(chosen),
        Outcome::Changed { body, .. } => Some(body),
        Outcome::Nothing => None,
    };
    let verdict = match &left {
        None => "not forwarded",
        Some(left) if left == body => "forwarded as it was received",
        Some(_) => "forwarded, changed",
    };
    writeln!(out, "    {verdict}")?;
    policy.count(&mut workspace, |_, _| {});
    for (rule, count) in policy.counted().filter(|(_, count)| *count > 0) {
        writeln!(
            out,
            "    because of {} ({}): {count} {}",
            rule.name,
            rule.says,
            rule.counts.as_str()
        )?;
    }
    if let Some(left) = left.filter(|left| left != body) {
        let shown = serde_json::to_string_pretty(&ExportTraceServiceRequest::decode(left)?)?;
        for line in shown.lines() {
            writeln!(out, "      {line}")?;
        }
    }
    Ok(())
}
