//! Spans that become rows of further tables (`database.tables`): calls of language models, runs of agents, nodes and
//! connectors.
//!
//! These spans name their own values alike (`<family>.status`, `<family>.latency_ms`, ...), so that one walk reads
//! them all. Tenants that a span does not name are completed from the node around it, as those of executions are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::extract::{Extractor, number};
use super::facts::{Role, Tenant, Told};
use super::row::Oddities;
use crate::otlp::trace::Span;
use crate::otlp::value::AnyValue;
use crate::rules::semantics::{SpanStatus, duration_ms};

/// The most that a column `numeric(10, 6)` holds.
const MOST_USD: f64 = 9_999.999_999;

/// What kind of span it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `llm.generate`
    Llm,
    /// `agent.execute`
    Agent,
    /// `connector.execute`
    Connector,
    /// `node.execute.*` with `node.status`. Executors of browser nodes send a second span of the same run without it.
    Node,
}

impl Family {
    fn of(span_name: &[u8]) -> Option<Family> {
        match span_name {
            b"llm.generate" => Some(Family::Llm),
            b"agent.execute" => Some(Family::Agent),
            b"connector.execute" => Some(Family::Connector),
            _ if span_name.starts_with(b"node.execute.") => Some(Family::Node),
            _ => None,
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Family::Llm => b"llm.",
            Family::Agent => b"agent.",
            Family::Connector => b"connector.",
            Family::Node => b"node.",
        }
    }

    /// `event_logs.event_type`; the backend's pages read `agent_execution`.
    pub(super) fn event(self) -> &'static str {
        match self {
            Family::Llm => "llm_generation",
            Family::Agent => "agent_execution",
            Family::Connector => "connector_execution",
            Family::Node => "node_execution",
        }
    }
}

/// What such a span tells of its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
pub struct Record {
    pub family: Family,
    #[serde(default)]
    pub span_tenant: Tenant,
    #[serde(default)]
    pub resource_tenant: Arc<Tenant>,
    /// The end of the span as the rows hold it.
    pub created_at: u64,
    pub success: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_cents: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// JSON: what an agent was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// JSON: what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// JSON: what an event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
}

/// A record with the ids that place it in a workflow.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) record: Record,
    pub(super) execution_id: Option<String>,
    pub(super) node_id: Option<String>,
}

impl Placed {
    /// With what the span tells of executions.
    pub(super) fn told(self, told: Option<Told>, resource: &Arc<Tenant>) -> Told {
        let record = Record {
            resource_tenant: Arc::clone(resource),
            ..self.record
        };
        let alone = || Told {
            execution_id: self.execution_id,
            node_id: self.node_id,
            record: None,
            role: Role::Other,
        };
        Told {
            record: Some(Box::new(record)),
            ..told.unwrap_or_else(alone)
        }
    }
}

/// The attributes that matter, still borrowed from the request.
#[derive(Debug, Default)]
struct Seen<'a> {
    workflow_id: Option<AnyValue<'a>>,
    execution_id: Option<AnyValue<'a>>,
    node_id: Option<AnyValue<'a>>,
    organization_id: Option<AnyValue<'a>>,
    workspace_id: Option<AnyValue<'a>>,
    user_id: Option<AnyValue<'a>>,
    // Of the family.
    id: Option<AnyValue<'a>>,
    kind: Option<AnyValue<'a>>,
    action: Option<AnyValue<'a>>,
    framework: Option<AnyValue<'a>>,
    provider: Option<AnyValue<'a>>,
    routing_provider: Option<AnyValue<'a>>,
    model: Option<AnyValue<'a>>,
    status: Option<AnyValue<'a>>,
    latency_ms: Option<AnyValue<'a>>,
    error: Option<AnyValue<'a>>,
    error_code: Option<AnyValue<'a>>,
    attempts: Option<AnyValue<'a>>,
    iterations: Option<AnyValue<'a>>,
    input_tokens: Option<AnyValue<'a>>,
    output_tokens: Option<AnyValue<'a>>,
    tokens: Option<AnyValue<'a>>,
    cost_usd: Option<AnyValue<'a>>,
    cost_cents: Option<AnyValue<'a>>,
}

impl<'a> Seen<'a> {
    fn of(span: &Span<'a>, family: Family) -> Seen<'a> {
        let mut seen = Seen::default();
        for (key, value) in span.attributes() {
            let key = key.as_bytes();
            let place = match key {
                b"workflow.id" => &mut seen.workflow_id,
                b"workflow.execution_id" => &mut seen.execution_id,
                b"node.id" => &mut seen.node_id,
                b"organization.id" => &mut seen.organization_id,
                b"workspace.id" => &mut seen.workspace_id,
                b"user.id" => &mut seen.user_id,
                _ => match key.strip_prefix(family.prefix()) {
                    Some(b"id") => &mut seen.id,
                    Some(b"type") => &mut seen.kind,
                    Some(b"action") => &mut seen.action,
                    Some(b"framework") => &mut seen.framework,
                    Some(b"provider") => &mut seen.provider,
                    Some(b"routing_provider") => &mut seen.routing_provider,
                    Some(b"model") => &mut seen.model,
                    Some(b"status") => &mut seen.status,
                    Some(b"latency_ms") => &mut seen.latency_ms,
                    Some(b"error") => &mut seen.error,
                    Some(b"error_code") => &mut seen.error_code,
                    Some(b"attempts") => &mut seen.attempts,
                    Some(b"iterations") => &mut seen.iterations,
                    Some(b"input_tokens") => &mut seen.input_tokens,
                    Some(b"output_tokens") => &mut seen.output_tokens,
                    Some(b"total_tokens" | b"tokens_used") => &mut seen.tokens,
                    Some(b"cost_usd" | b"cost") => &mut seen.cost_usd,
                    Some(b"cost_usd_cents") => &mut seen.cost_cents,
                    _ => continue,
                },
            };
            // One without a value is as good as none, but takes back an earlier one.
            *place = (!value.is_empty()).then_some(value);
        }
        seen
    }
}

impl Extractor {
    /// The record that `span` is, if one of the wanted tables takes it.
    pub(super) fn record(&mut self, span: &Span<'_>, received_at: u64) -> Option<Placed> {
        if self.tables.is_empty() {
            return None;
        }
        let family = Family::of(span.name().as_bytes())?;
        if !self.tables.iter().any(|table| table.families.contains(&family)) {
            return None;
        }
        let seen = Seen::of(span, family);
        if family == Family::Node && seen.status.is_none() {
            return None;
        }
        let record = self.record_of(span, family, &seen, received_at);
        let placed = Placed {
            record,
            execution_id: self.text(seen.execution_id),
            node_id: self.text(seen.node_id),
        };
        Some(placed)
    }

    fn record_of(&mut self, span: &Span<'_>, family: Family, seen: &Seen<'_>, received_at: u64) -> Record {
        let (start, end) = (span.start_unix_nano(), span.end_unix_nano());
        let created_at = self.oddities.end_time(end, received_at);
        let by_times = (created_at == end).then(|| duration_ms(start, end)).flatten();
        let latency = number(seen.latency_ms).or(by_times);
        let status = SpanStatus::from_code(span.status_code());
        let said = seen.status.and_then(|status| status.as_str()).unwrap_or_default();
        let success = match said {
            "success" | "completed" => true,
            "error" | "failed" => false,
            _ => status != SpanStatus::Error,
        };
        let message = if status == SpanStatus::Error {
            span.status_message().as_str()
        } else {
            ""
        };
        let error = seen
            .error
            .and_then(|error| error.as_str())
            .filter(|error| !error.is_empty());
        let error = self.error_text(error.unwrap_or(message));
        let input_tokens = self.integer(seen.input_tokens);
        let output_tokens = self.integer(seen.output_tokens);
        let sum = input_tokens
            .zip(output_tokens)
            .map(|(input, output)| input.saturating_add(output));
        let cost_usd = self.quantity(seen.cost_usd);
        let cost_cents = self.quantity(seen.cost_cents).or(cost_usd.map(|usd| usd * 100.0));
        let mut record = Record {
            family,
            span_tenant: Tenant {
                organization_id: self.text(seen.organization_id),
                workspace_id: self.text(seen.workspace_id),
                user_id: self.text(seen.user_id),
            },
            resource_tenant: Arc::default(),
            created_at,
            success,
            latency_ms: latency.and_then(|latency| self.oddities.integer(latency)),
            error,
            workflow_id: self.text(seen.workflow_id),
            agent_id: (family == Family::Agent).then(|| self.text(seen.id)).flatten(),
            provider: self.text(seen.provider),
            model: self.text(seen.model),
            input_tokens,
            output_tokens,
            total_tokens: self.integer(seen.tokens).or(sum),
            cost_cents: cost_cents.and_then(|cents| self.oddities.integer(cents)),
            cost_usd: cost_usd.map(|usd| usd_of(&mut self.oddities, usd)),
            input: None,
            output: None,
            context: None,
        };
        self.tell(&mut record, seen);
        record
    }

    /// The columns that hold JSON.
    fn tell(&mut self, record: &mut Record, seen: &Seen<'_>) {
        if record.family == Family::Agent {
            record.input = object([
                ("framework", self.json(seen.framework)),
                ("type", self.json(seen.kind)),
                ("provider", self.json(seen.provider)),
                ("model", self.json(seen.model)),
            ]);
            record.output = object([
                ("status", Json::from(if record.success { "success" } else { "error" })),
                ("latencyMs", Json::from(record.latency_ms)),
                ("tokensUsed", Json::from(record.total_tokens)),
                ("costUsd", Json::from(record.cost_usd)),
                ("iterations", self.json(seen.iterations)),
            ]);
        }
        if record.family != Family::Llm {
            record.context = object([
                ("workflowId", Json::from(record.workflow_id.clone())),
                ("workflowExecutionId", self.json(seen.execution_id)),
                ("nodeId", self.json(seen.node_id)),
                (
                    match record.family {
                        Family::Connector => "connectorId",
                        // `node.id` is there already.
                        Family::Node => "",
                        Family::Llm | Family::Agent => "agentId",
                    },
                    self.json(seen.id),
                ),
                ("type", self.json(seen.kind)),
                ("action", self.json(seen.action)),
                ("framework", self.json(seen.framework)),
                ("provider", self.json(seen.provider)),
                ("routingProvider", self.json(seen.routing_provider)),
                ("model", self.json(seen.model)),
                ("attempts", self.json(seen.attempts)),
                ("error", Json::from(record.error.clone())),
                ("errorCode", self.json(seen.error_code)),
            ]);
        }
    }

    fn json(&mut self, value: Option<AnyValue<'_>>) -> Json {
        match value {
            Some(AnyValue::Int(number)) => Json::from(number),
            Some(AnyValue::Double(number)) => Json::from(number),
            Some(AnyValue::Bool(truth)) => Json::from(truth),
            other => Json::from(self.text(other)),
        }
    }
}

/// The parts that are known; nothing at all when none is.
fn object<const N: usize>(parts: [(&str, Json); N]) -> Option<String> {
    let known = parts
        .into_iter()
        .filter(|(name, value)| !name.is_empty() && !value.is_null());
    let object: Map<String, Json> = known.map(|(name, value)| (name.to_owned(), value)).collect();
    (!object.is_empty()).then(|| Json::Object(object).to_string())
}

/// As `numeric(10, 6)` holds it.
fn usd_of(oddities: &mut Oddities, usd: f64) -> f64 {
    if usd.abs() > MOST_USD {
        oddities.clamped += 1;
    }
    ((usd * 1e6).round() / 1e6).clamp(-MOST_USD, MOST_USD)
}
