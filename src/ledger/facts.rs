//! What the ledger needs to know of a span, and nothing else: a compact, owned [`Facts`] for the few spans that are an
//! execution or can tell something about one. All others are set aside while their attributes are walked, once, without
//! allocating.
//!
//! # Invariants
//!
//! * Extraction is a function of the span, its resource, and the time of receipt; it reads no clock.
//! * Every value is already as a column can hold it (see [`super::row`]), error text is redacted, and what had to be
//!   bent was counted, once, here. Nothing downstream sees the text as it was received.

use serde::{Deserialize, Serialize};

use super::records::Record;
use super::row::{Oddities, Source};
use super::seen::{Kind, Seen};
use super::semantics;
use super::table::Destination;
use crate::hex;
use crate::otlp::NotedSpans;
use crate::otlp::trace::{ResourceSpans, Span, TraceRequest};
use crate::otlp::value::{AnyValue, Attributes};
use crate::redact::Patterns;
use crate::rules::semantics::{Outcome, SpanStatus};
use crate::rules::telling::Telling;

/// A trace and a span in it: the identity of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanId {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
}

impl SpanId {
    /// The id of the row: `<trace>-<span>` in lower-case hex.
    pub fn row_id(&self) -> String {
        let mut id = [b'-'; 49];
        put_hex(&mut id[..32], &self.trace);
        put_hex(&mut id[33..], &self.span);
        ascii(&id)
    }

    /// The trace in lower-case hex.
    pub fn trace_hex(&self) -> String {
        let mut hex = [0; 32];
        put_hex(&mut hex, &self.trace);
        ascii(&hex)
    }

    /// The span in lower-case hex.
    pub fn span_hex(&self) -> String {
        let mut hex = [0; 16];
        put_hex(&mut hex, &self.span);
        ascii(&hex)
    }
}

/// Two digits for each byte.
fn put_hex(digits: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = hex::digits(*byte);
    }
}

fn ascii(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

impl Role {
    /// The execution that this span is when nobody else stands for it.
    pub fn alone(&self) -> Option<&Execution> {
        match self {
            Role::Runtime(runtime) => runtime.alone.as_ref(),
            Role::Tool { alone } => Some(alone),
            _ => None,
        }
    }
}

/// What is known of one span.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Which span.
    pub id: SpanId,
    /// When it began, Unix nanoseconds, as sent.
    pub start: u64,
    /// When it ended, as sent, but never before it began.
    pub end: u64,
    /// When the request it came in was received.
    pub received_at: u64,
    /// The rest, which is kept as one value in the context table.
    pub told: Told,
}

/// The part of [`Facts`] that is kept as JSON while a span waits for its partners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// `workflow.execution_id`, unless empty.
    #[serde(default, rename = "x", skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<String>,
    /// `node.id`, unless empty.
    #[serde(default, rename = "n", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The row of a further table that it is.
    #[serde(default, rename = "r", skip_serializing_if = "Option::is_none")]
    pub record: Option<Box<Record>>,
    /// What the span is to an execution.
    #[serde(flatten)]
    pub role: Role,
}

impl Told {
    /// As the context table and the quarantine hold it.
    pub(super) fn to_json(&self) -> String {
        ascii_json(self)
    }
}

/// JSON of nothing but ASCII, which a database of any encoding takes. Rows may be refused for their characters; what waits,
/// and what was set aside, must never be.
pub(super) fn ascii_json<T: Serialize>(value: &T) -> String {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Ascii);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(json).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// Writes what is not ASCII as `\uXXXX`.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// What a span is to an execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// It is one: this span becomes a row.
    Execution(Box<Execution>),
    /// The second `code.execute` that the router makes of an execution: no row, but it knows the runtime.
    Inner {
        /// `code.runtime`.
        #[serde(default)]
        runtime: Option<String>,
    },
    /// A workflow node, which knows the tenant, and the error of its last attempt.
    Node(Box<Node>),
    /// `runtimeRouter.route`, which knows the runtime that was chosen.
    Router {
        /// `runtime.selected`.
        #[serde(default)]
        selected: Option<String>,
    },
    /// A runtime's own span.
    Runtime(Box<Runtime>),
    /// A tool's own span: nothing to an execution, but one itself when nobody else stands for it.
    Tool {
        /// That execution.
        alone: Box<Execution>,
    },
    /// An ETL hook, which knows the code agent, and the error.
    Hook {
        /// `hook.agent_id`.
        #[serde(default)]
        agent_id: Option<String>,
        /// The message of a status that is ERROR.
        #[serde(default)]
        error: Option<String>,
    },
    /// Nothing to an execution: only a row of a further table.
    Other,
}

/// A value and where on the span it was found.
pub type Sourced<T> = (T, Source);

/// What an execution's own span tells of its row.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Execution {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_agent_id: Option<Sourced<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub success: Sourced<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Sourced<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_used: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_passed: Option<bool>,
    #[serde(skip_serializing_if = "Tenant::is_empty")]
    pub span_tenant: Tenant,
    #[serde(skip_serializing_if = "Tenant::is_empty")]
    pub resource_tenant: Tenant,
    /// `security.namespace`, unless it is `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The end of the span as the row holds it.
    pub created_at: u64,
    /// Whether the metrics count this span as timed out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// What it cost, if it says so, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

impl Execution {
    /// How the span itself says it ended: what the metrics count.
    pub fn reported_outcome(&self) -> Outcome {
        match (self.timed_out, self.success.0) {
            (true, _) => Outcome::Timeout,
            (false, true) => Outcome::Success,
            (false, false) => Outcome::Error,
        }
    }
}

/// Whom a span belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Tenant {
    #[serde(rename = "o", skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    #[serde(rename = "w", skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(rename = "u", skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

impl Tenant {
    fn is_empty(&self) -> bool {
        *self == Tenant::default()
    }
}

/// What a node span tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Whom the workflow ran for.
    pub tenant: Tenant,
    /// `node.error`: of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many attempts there were, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i64>,
}

/// What a runtime's own span tells.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Runtime {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i32>,
    /// The execution it is when nobody else stands for it, if that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alone: Option<Execution>,
}

/// What the spans of one resource have in common.
struct Resource<'a> {
    spans: ResourceSpans<'a>,
    /// Most resources name no tenant: read only when the first execution asks.
    tenant: Option<Tenant>,
    received_at: u64,
}

impl<'a> Resource<'a> {
    fn of(spans: ResourceSpans<'a>, received_at: u64) -> Resource<'a> {
        Resource {
            spans,
            tenant: None,
            received_at,
        }
    }

    fn tenant(&mut self) -> &Tenant {
        self.tenant.get_or_insert_with(|| tenant_of(self.spans.resource()))
    }
}

/// Takes the facts out of requests, and counts what had to be bent.
#[derive(Debug, Default)]
pub struct Extractor {
    /// Cut from error text.
    pub redact: Patterns,
    /// Whether runtime and tool spans become rows when no execution is found around them.
    pub standalone: bool,
    /// The further tables that are wanted.
    pub(super) tables: Vec<&'static Destination>,
    /// What was bent since the caller last took it.
    pub oddities: Oddities,
}

impl Extractor {
    /// One that looks for executions and what belongs to them, not for rows of further tables.
    pub fn new(redact: Patterns, standalone: bool) -> Extractor {
        Extractor {
            redact,
            standalone,
            ..Extractor::default()
        }
    }

    /// Appends what `request`, received at `received_at`, tells.
    pub fn extract(&mut self, request: &TraceRequest, received_at: u64, facts: &mut Vec<Facts>) {
        let mut seen = Seen::default();
        for resource_spans in request.resource_spans() {
            let mut resource = Resource::of(resource_spans, received_at);
            for scope_spans in resource_spans.scope_spans() {
                let mut spans = scope_spans.spans();
                while let Some(span) = spans.next_raw() {
                    let (span, may_tell) = Telling::look(span);
                    facts.extend(self.span(&span, may_tell, &mut resource, &mut seen));
                }
            }
        }
    }

    /// The same, where it was noted which spans may tell something, by [`Telling`]. Only if [`Extractor::goes_by_notes`].
    pub fn extract_noted(
        &mut self,
        request: &TraceRequest,
        noted: &NotedSpans,
        received_at: u64,
        facts: &mut Vec<Facts>,
    ) {
        let mut seen = Seen::default();
        for resource_spans in request.resource_spans() {
            let mut resource = Resource::of(resource_spans, received_at);
            for span in noted.within(request.bytes(), resource_spans.raw()) {
                facts.extend(self.span(&Span::decode(span), true, &mut resource, &mut seen));
            }
        }
    }

    /// Whether spans that tell nothing of an execution become no rows of their own or of further tables.
    pub fn goes_by_notes(&self) -> bool {
        !self.standalone && self.tables.is_empty()
    }

    #[inline(always)]
    fn span<'a>(
        &mut self,
        span: &Span<'a>,
        may_tell: bool,
        resource: &mut Resource<'a>,
        seen: &mut Seen<'a>,
    ) -> Option<Facts> {
        let kind = if self.standalone || may_tell {
            seen.look(span).filter(|kind| *kind != Kind::Tool || self.standalone)
        } else {
            None
        };
        let received_at = resource.received_at;
        let record = self.record(span, received_at);
        if kind.is_none() && record.is_none() {
            return None;
        }
        let tenant = resource.tenant();
        let role = kind.and_then(|kind| self.role(span, kind, seen, tenant, received_at));
        let told = match (role, record) {
            (Some(told), None) => told,
            (told, Some(placed)) => placed.told(told, tenant),
            (None, None) => return None,
        };
        self::facts(span, told, received_at)
    }

    /// What the span tells of executions, if anything.
    fn role(&mut self, span: &Span<'_>, kind: Kind, seen: &Seen<'_>, resource: &Tenant, at: u64) -> Option<Told> {
        let role = match kind {
            Kind::Execution => Role::Execution(Box::new(self.execution(span, seen, resource, at))),
            Kind::Inner => Role::Inner {
                runtime: self.text(seen.runtime),
            },
            Kind::Router => Role::Router {
                selected: Some(self.text(seen.selected)?),
            },
            Kind::Runtime => Role::Runtime(Box::new(Runtime {
                exit_code: self.integer(seen.family.exit_code),
                memory_mb: self.integer(seen.family.memory_mb),
                alone: self.standalone.then(|| self.alone(span, seen, resource, at)),
            })),
            Kind::Tool => Role::Tool {
                alone: Box::new(self.alone(span, seen, resource, at)),
            },
            Kind::Hook => {
                let agent_id = self.text(seen.hook_agent_id);
                let failed = SpanStatus::from_code(span.status_code()) == SpanStatus::Error;
                let error = if failed {
                    self.error_text(span.status_message().as_str())
                } else {
                    None
                };
                if agent_id.is_none() && error.is_none() {
                    return None;
                }
                Role::Hook { agent_id, error }
            }
            Kind::Node => {
                let node = Node {
                    tenant: self.tenant(seen),
                    error: seen
                        .node_error
                        .and_then(|error| error.as_str())
                        .and_then(|error| self.error_text(error)),
                    attempts: seen
                        .node_attempts
                        .or(seen.node_attempt)
                        .and_then(|attempts| attempts.as_i64()),
                };
                // Nothing an execution could use.
                if node.tenant.is_empty() && node.error.is_none() {
                    return None;
                }
                Role::Node(Box::new(node))
            }
        };
        // The router's own ids (`runtime-router`, `code-execution`) name no node of any workflow.
        let ids_mean_something = kind != Kind::Inner;
        Some(Told {
            execution_id: if ids_mean_something {
                self.text(seen.execution_id)
            } else {
                None
            },
            node_id: if ids_mean_something {
                self.text(seen.node_id)
            } else {
                None
            },
            record: None,
            role,
        })
    }

    /// The execution that a runtime's or a tool's span is when nobody else stands for it.
    fn alone(&mut self, span: &Span<'_>, seen: &Seen<'_>, resource: &Tenant, received_at: u64) -> Execution {
        let runtime = seen.family.name.to_owned();
        Execution {
            runtime: Some(runtime),
            ..self.execution(span, &seen.as_execution(), resource, received_at)
        }
    }

    fn execution(&mut self, span: &Span<'_>, seen: &Seen<'_>, resource: &Tenant, received_at: u64) -> Execution {
        let verdict = semantics::verdict(span, seen);
        let (start, end) = (span.start_unix_nano(), span.end_unix_nano());
        let created_at = self.oddities.end_time(end, received_at);
        // A span whose times make no sense has no duration either.
        let by_times = (created_at == end && start > 0 && end >= start).then(|| (end - start) as f64 / 1e6);
        let duration = number(seen.duration_ms).or(by_times);
        let error = match verdict.error {
            Some((text, source)) => self.error_text(text).map(|text| (text, source)),
            None => None,
        };
        let node_id = seen.node_id.and_then(|id| id.as_str()).unwrap_or_default();
        let code_agent_id = match self.text(seen.code_agent_id) {
            Some(own) => Some((own, Source::Execution)),
            None => agent_in_ids(node_id, seen.workflow_id.and_then(|id| id.as_str()).unwrap_or_default())
                .and_then(|agent| self.oddities.text(agent))
                .map(|agent| (agent, Source::DerivedId)),
        };
        let passed = seen.validation_passed.and_then(|passed| passed.as_bool());
        let output_passed = seen.output_validation_passed.and_then(|passed| passed.as_bool());
        Execution {
            code_agent_id,
            runtime: self.text(seen.runtime),
            language: self.text(seen.language),
            duration_ms: duration.and_then(|duration| self.oddities.integer(duration)),
            memory_mb: self.integer(seen.memory_mb),
            exit_code: self.integer(seen.exit_code),
            success: verdict.success,
            error,
            tokens_used: self.integer(seen.tokens_used),
            validation_passed: if output_passed == Some(false) {
                Some(false)
            } else {
                passed
            },
            span_tenant: self.tenant(seen),
            resource_tenant: resource.clone(),
            namespace: self.text(seen.namespace).filter(|namespace| namespace != "default"),
            created_at,
            timed_out: verdict.timed_out,
            cost_usd: number(seen.cost_usd),
        }
    }

    fn tenant(&mut self, seen: &Seen<'_>) -> Tenant {
        Tenant {
            organization_id: self.text(seen.organization_id),
            workspace_id: self.text(seen.workspace_id),
            user_id: self.text(seen.user_id),
        }
    }

    pub(super) fn text(&mut self, value: Option<AnyValue<'_>>) -> Option<String> {
        text(&mut self.oddities, value?)
    }

    pub(super) fn integer(&mut self, value: Option<AnyValue<'_>>) -> Option<i32> {
        self.oddities.integer(number(value)?)
    }

    /// Redacted before it is cut: a secret cut in half would no longer be recognised.
    pub(super) fn error_text(&mut self, text: &str) -> Option<String> {
        self.oddities.error_text(&self.redact.clean(text))
    }
}

fn facts(span: &Span<'_>, told: Told, received_at: u64) -> Option<Facts> {
    let id = SpanId {
        trace: span.trace_id().try_into().ok()?,
        span: span.span_id().try_into().ok()?,
    };
    let start = span.start_unix_nano();
    Some(Facts {
        id,
        start,
        end: span.end_unix_nano().max(start),
        received_at,
        told,
    })
}

/// Ids are text, but some executors send numbers.
fn text(oddities: &mut Oddities, value: AnyValue<'_>) -> Option<String> {
    match value {
        AnyValue::Text(text) => oddities.text(text.as_str()),
        AnyValue::Int(number) => Some(number.to_string()),
        AnyValue::Double(number) if number.is_finite() => Some(number.to_string()),
        _ => None,
    }
}

fn number(value: Option<AnyValue<'_>>) -> Option<f64> {
    value?.as_f64().filter(|number| !number.is_nan())
}

fn tenant_of(mut resource: Attributes<'_>) -> Tenant {
    let mut tenant = Tenant::default();
    let mut oddities = Oddities::default();
    for (key, value) in resource.by_ref() {
        let place = match key.as_bytes() {
            b"organization.id" => &mut tenant.organization_id,
            b"workspace.id" => &mut tenant.workspace_id,
            b"user.id" => &mut tenant.user_id,
            _ => continue,
        };
        *place = text(&mut oddities, value);
    }
    tenant
}

/// The code agent's id, where only the other ids tell it.
fn agent_in_ids<'a>(node_id: &'a str, workflow_id: &'a str) -> Option<&'a str> {
    if node_id == "code-agent" {
        return workflow_id.strip_prefix("agent-");
    }
    node_id
        .strip_prefix("pre-ingest-hook-")
        .or_else(|| node_id.strip_prefix("post-answer-hook-"))
}
