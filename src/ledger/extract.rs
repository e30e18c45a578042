//! Takes the [`Facts`] out of requests. Spans that tell nothing are set aside while their attributes are walked, once,
//! without allocating.
//!
//! # Invariants
//!
//! * Extraction is a function of the span, its resource, and the time of receipt; it reads no clock.
//! * Every value is already as a column can hold it (see [`super::row`]), error text is redacted, and what had to be
//!   bent was counted, once, here. Nothing downstream sees the text as it was received.
//! * A request may be taken in parts: what its facts take in memory is bounded by what is asked for, not by its size.

use std::sync::Arc;

use super::facts::{Execution, Facts, Node, Role, Runtime, SpanId, Tenant, Told, agent_of_hook};
use super::row::{Oddities, Source};
use super::seen::{Kind, Seen};
use super::semantics;
use super::table::Destination;
use crate::otlp::NotedSpans;
use crate::otlp::trace::{ResourceSpans, Span, TraceRequest};
use crate::otlp::value::{AnyValue, Attributes};
use crate::redact::Patterns;
use crate::rules::semantics::SpanStatus;
use crate::rules::telling::Telling;

/// What the spans of one resource have in common.
struct Resource<'a> {
    spans: ResourceSpans<'a>,
    /// Most resources name no tenant: read only when the first execution asks.
    tenant: Option<Arc<Tenant>>,
    /// None of its spans was looked at in an earlier part.
    is_new: bool,
    received_at: u64,
}

impl<'a> Resource<'a> {
    fn of(spans: ResourceSpans<'a>, is_new: bool, received_at: u64) -> Resource<'a> {
        Resource {
            spans,
            tenant: None,
            is_new,
            received_at,
        }
    }

    /// What had to be bent is counted with the first part.
    fn tenant(&mut self, oddities: &mut Oddities) -> &Arc<Tenant> {
        let mut counted_before = Oddities::default();
        let oddities = if self.is_new { oddities } else { &mut counted_before };
        self.tenant
            .get_or_insert_with(|| Arc::new(tenant_of(self.spans.resource(), oddities)))
    }

    /// How many bytes the rows of its spans have from the resource.
    fn tenant_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.tenant.as_ref().map_or(0, |tenant| {
            text(&tenant.organization_id) + text(&tenant.workspace_id) + text(&tenant.user_id)
        })
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

/// How much is taken out of requests at once, by a part of one or by a batch of many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// Facts.
    pub(super) facts: usize,
    /// Bytes of the spans or requests that they are from.
    pub(super) bytes: usize,
}

impl Limit {
    const NONE: Limit = Limit {
        facts: usize::MAX,
        bytes: usize::MAX,
    };
}

/// A request whose facts are taken out, in as many parts as it needs.
pub(super) struct Taking<'a> {
    pub(super) request: &'a TraceRequest,
    /// The spans that may tell something, by [`Telling`], where they were noted. Only if [`Extractor::goes_by_notes`].
    pub(super) noted: Option<&'a NotedSpans>,
    pub(super) received_at: u64,
    /// So many of its spans, or of the noted ones, were looked at before.
    pub(super) done: usize,
}

/// What was taken out of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of the spans that told something, or of what their rows have from the resource where that is more.
    pub(super) bytes: usize,
    /// How many of its spans were looked at by now, if there is more to take.
    pub(super) rest: Option<usize>,
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
        let taking = Taking {
            request,
            noted: None,
            received_at,
            done: 0,
        };
        self.take(&taking, Limit::NONE, facts);
    }

    /// Appends what spans tell, until there is no more or `limit` is reached.
    pub(super) fn take(&mut self, taking: &Taking<'_>, limit: Limit, facts: &mut Vec<Facts>) -> Taken {
        let mut part = Part {
            extractor: self,
            seen: Seen::default(),
            limit: Limit {
                facts: facts.len().saturating_add(limit.facts),
                ..limit
            },
            facts,
            skip: taking.done,
            looked_at: 0,
            bytes: 0,
        };
        let is_whole = part.resources(taking);
        Taken {
            bytes: part.bytes,
            rest: (!is_whole).then_some(part.looked_at),
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
        let tenant = resource.tenant(&mut self.oddities);
        let role = kind.and_then(|kind| self.role(span, kind, seen, tenant, received_at));
        let told = match (role, record) {
            (Some(told), None) => told,
            (told, Some(placed)) => placed.told(told, tenant),
            (None, None) => return None,
        };
        self::facts(span, told, received_at)
    }

    /// What the span tells of executions, if anything.
    fn role(&mut self, span: &Span<'_>, kind: Kind, seen: &Seen<'_>, resource: &Arc<Tenant>, at: u64) -> Option<Told> {
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
    fn alone(&mut self, span: &Span<'_>, seen: &Seen<'_>, resource: &Arc<Tenant>, received_at: u64) -> Execution {
        let runtime = seen.family.name.to_owned();
        Execution {
            runtime: Some(runtime),
            ..self.execution(span, &seen.as_execution(), resource, received_at)
        }
    }

    fn execution(&mut self, span: &Span<'_>, seen: &Seen<'_>, resource: &Arc<Tenant>, received_at: u64) -> Execution {
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
            resource_tenant: Arc::clone(resource),
            namespace: self.text(seen.namespace).filter(|namespace| namespace != "default"),
            created_at,
            timed_out: verdict.timed_out,
            cost_usd: self.quantity(seen.cost_usd),
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

    pub(super) fn quantity(&mut self, value: Option<AnyValue<'_>>) -> Option<f64> {
        self.oddities.quantity(value?.as_f64()?)
    }

    /// Redacted before it is cut: a secret cut in half would no longer be recognised.
    pub(super) fn error_text(&mut self, text: &str) -> Option<String> {
        self.oddities.error_text(&self.redact.clean(text))
    }
}

/// One pass over a request, up to a limit.
struct Part<'p, 'a> {
    extractor: &'p mut Extractor,
    seen: Seen<'a>,
    facts: &'p mut Vec<Facts>,
    limit: Limit,
    /// Spans that were looked at in an earlier part.
    skip: usize,
    looked_at: usize,
    bytes: usize,
}

impl<'a> Part<'_, 'a> {
    /// False if there is more.
    fn resources(&mut self, taking: &Taking<'a>) -> bool {
        for resource_spans in taking.request.resource_spans() {
            let mut resource = Resource::of(resource_spans, self.skip == 0, taking.received_at);
            let is_whole = match taking.noted {
                Some(noted) => noted
                    .within(taking.request.bytes(), resource_spans.raw())
                    .all(|span| self.span(span, &mut resource, |span| (Span::decode(span), true))),
                None => resource_spans.scope_spans().all(|scope_spans| {
                    let mut spans = scope_spans.spans();
                    std::iter::from_fn(|| spans.next_raw()).all(|span| self.span(span, &mut resource, Telling::look))
                }),
            };
            if !is_whole {
                return false;
            }
        }
        true
    }

    /// False if the limit is reached.
    #[inline(always)]
    fn span(
        &mut self,
        raw: &'a [u8],
        resource: &mut Resource<'a>,
        look: impl FnOnce(&'a [u8]) -> (Span<'a>, bool),
    ) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            self.looked_at += 1;
            return true;
        }
        if self.facts.len() >= self.limit.facts || self.bytes >= self.limit.bytes {
            return false;
        }
        self.looked_at += 1;
        let (span, may_tell) = look(raw);
        if let Some(facts) = self.extractor.span(&span, may_tell, resource, &mut self.seen) {
            self.facts.push(facts);
            self.bytes += raw.len().max(resource.tenant_bytes());
        }
        true
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

pub(super) fn number(value: Option<AnyValue<'_>>) -> Option<f64> {
    value?.as_f64().filter(|number| !number.is_nan())
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

fn tenant_of(mut resource: Attributes<'_>, oddities: &mut Oddities) -> Tenant {
    let mut tenant = Tenant::default();
    for (key, value) in resource.by_ref() {
        let place = match key.as_bytes() {
            b"organization.id" => &mut tenant.organization_id,
            b"workspace.id" => &mut tenant.workspace_id,
            b"user.id" => &mut tenant.user_id,
            _ => continue,
        };
        *place = text(oddities, value);
    }
    tenant
}

/// The code agent's id, where only the other ids tell it.
fn agent_in_ids<'a>(node_id: &'a str, workflow_id: &'a str) -> Option<&'a str> {
    if node_id == "code-agent" {
        return workflow_id.strip_prefix("agent-");
    }
    agent_of_hook(node_id)
}
