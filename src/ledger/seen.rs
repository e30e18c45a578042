//! One walk over the attributes of a span: whether it matters at all, and what of it.

use crate::otlp::entry::Entry;
use crate::otlp::trace::Span;
use crate::otlp::value::AnyValue;
use crate::rules::semantics::is_second_span;
use crate::rules::telling::runtime_of;

/// What a span is, before anything is copied out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Execution,
    Inner,
    Node,
    Router,
    Runtime,
    Tool,
    Hook,
}

/// The attributes that matter, still borrowed from the request. Of a key that is there twice the last counts.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen<'a> {
    pub(super) runtime: Option<AnyValue<'a>>,
    pub(super) language: Option<AnyValue<'a>>,
    pub(super) success: Option<AnyValue<'a>>,
    pub(super) has_error: Option<AnyValue<'a>>,
    pub(super) exit_code: Option<AnyValue<'a>>,
    pub(super) duration_ms: Option<AnyValue<'a>>,
    pub(super) timeout_ms: Option<AnyValue<'a>>,
    pub(super) memory_mb: Option<AnyValue<'a>>,
    pub(super) tokens_used: Option<AnyValue<'a>>,
    pub(super) cost_usd: Option<AnyValue<'a>>,
    pub(super) validation_passed: Option<AnyValue<'a>>,
    pub(super) output_validation_passed: Option<AnyValue<'a>>,
    pub(super) code_agent_id: Option<AnyValue<'a>>,
    pub(super) error_type: Option<AnyValue<'a>>,
    pub(super) error_kind: Option<AnyValue<'a>>,
    pub(super) execution_id: Option<AnyValue<'a>>,
    pub(super) workflow_id: Option<AnyValue<'a>>,
    pub(super) node_id: Option<AnyValue<'a>>,
    pub(super) node_error: Option<AnyValue<'a>>,
    pub(super) node_attempts: Option<AnyValue<'a>>,
    pub(super) node_attempt: Option<AnyValue<'a>>,
    pub(super) organization_id: Option<AnyValue<'a>>,
    pub(super) workspace_id: Option<AnyValue<'a>>,
    pub(super) user_id: Option<AnyValue<'a>>,
    pub(super) namespace: Option<AnyValue<'a>>,
    pub(super) selected: Option<AnyValue<'a>>,
    pub(super) hook_agent_id: Option<AnyValue<'a>>,
    pub(super) family: Family<'a>,
    operation: Option<AnyValue<'a>>,
    has_node_status: bool,
    has_runtime_name: bool,
    has_tool_id: bool,
}

/// What the attributes of a runtime (`e2b.*`, ...) or of a tool say, which name the same things as `code.*` does.
#[derive(Debug, Default, Clone)]
pub(super) struct Family<'a> {
    /// `e2b`, `wasmedge`, `bacalhau`, or what runs tools.
    pub(super) name: &'static str,
    pub(super) exit_code: Option<AnyValue<'a>>,
    pub(super) memory_mb: Option<AnyValue<'a>>,
    language: Option<AnyValue<'a>>,
    success: Option<AnyValue<'a>>,
    has_error: Option<AnyValue<'a>>,
    duration_ms: Option<AnyValue<'a>>,
    timeout_ms: Option<AnyValue<'a>>,
}

impl<'a> Seen<'a> {
    /// What `span` is to an execution; `None` for the many that are nothing to one. The attributes that say so replace
    /// what was seen before: all of this is too large to be handed around.
    pub(super) fn look(&mut self, span: &Span<'a>) -> Option<Kind> {
        *self = Seen::default();
        let seen = self;
        for entry in span.attributes().entries() {
            seen.note(entry.key().as_bytes(), entry);
        }
        let name = span.name();
        let name = name.as_bytes();
        let told =
            seen.runtime.is_some() || seen.success.is_some() || seen.exit_code.is_some() || seen.duration_ms.is_some();
        let kind = if told {
            let id = |value: Option<AnyValue<'a>>| value.and_then(|value| value.as_str());
            if is_second_span(id(seen.workflow_id), id(seen.node_id)) {
                Kind::Inner
            } else {
                Kind::Execution
            }
        } else if name == b"runtimeRouter.route" {
            Kind::Router
        } else if let Some(runtime) = runtime_of(name).or(seen.has_runtime_name.then_some(seen.family.name)) {
            seen.family.name = runtime;
            Kind::Runtime
        } else if name.starts_with(b"etlHook.") {
            Kind::Hook
        } else if name.starts_with(b"node.execute.") || seen.has_node_status || seen.node_attempts.is_some() {
            Kind::Node
        } else if seen.has_tool_id {
            seen.family.name = "bun";
            Kind::Tool
        } else if seen.family.exit_code.is_some() && seen.operation.and_then(|o| o.as_str()) == Some("execute_tool") {
            seen.family.name = "tool";
            Kind::Tool
        } else {
            return None;
        };
        Some(kind)
    }

    /// What the span would have said as an execution.
    pub(super) fn as_execution(&self) -> Seen<'a> {
        let family = &self.family;
        Seen {
            language: family.language,
            success: family.success,
            has_error: family.has_error,
            exit_code: family.exit_code,
            duration_ms: family.duration_ms,
            timeout_ms: family.timeout_ms,
            memory_mb: family.memory_mb,
            ..self.clone()
        }
    }

    fn note(&mut self, key: &[u8], entry: Entry<'a>) {
        // The prefix first: most keys of most spans are none of ours.
        let place = match key {
            [b'c', b'o', b'd', b'e', b'.', rest @ ..] => match rest {
                b"runtime" => &mut self.runtime,
                b"success" => &mut self.success,
                b"exit_code" => &mut self.exit_code,
                b"duration_ms" => &mut self.duration_ms,
                b"has_error" => &mut self.has_error,
                b"timeout_ms" => &mut self.timeout_ms,
                b"language" => &mut self.language,
                b"memory_mb" => &mut self.memory_mb,
                b"tokens_used" => &mut self.tokens_used,
                b"validation_passed" => &mut self.validation_passed,
                b"output_validation_passed" => &mut self.output_validation_passed,
                b"agent_id" => &mut self.code_agent_id,
                b"cost_usd" => &mut self.cost_usd,
                _ => return,
            },
            [b'n', b'o', b'd', b'e', b'.', rest @ ..] => match rest {
                b"id" => &mut self.node_id,
                b"error" => &mut self.node_error,
                b"attempts" => &mut self.node_attempts,
                b"attempt" => &mut self.node_attempt,
                b"status" => {
                    self.has_node_status |= given(entry).is_some();
                    return;
                }
                _ => return,
            },
            [b'e', b'2', b'b', b'.', rest @ ..] => return self.note_family("e2b", rest, entry),
            [b'w', b'a', b's', b'm', b'e', b'd', b'g', b'e', b'.', rest @ ..] => {
                return self.note_family("wasmedge", rest, entry);
            }
            [b'b', b'a', b'c', b'a', b'l', b'h', b'a', b'u', b'.', rest @ ..] => {
                return self.note_family("bacalhau", rest, entry);
            }
            b"workflow.execution_id" => &mut self.execution_id,
            b"workflow.id" => &mut self.workflow_id,
            b"organization.id" => &mut self.organization_id,
            b"workspace.id" => &mut self.workspace_id,
            b"user.id" => &mut self.user_id,
            b"security.namespace" => &mut self.namespace,
            b"runtime.selected" => &mut self.selected,
            b"hook.agent_id" => &mut self.hook_agent_id,
            b"error.type" => &mut self.error_type,
            b"error_kind" => &mut self.error_kind,
            b"gen_ai.operation.name" => &mut self.operation,
            b"process.exit.code" | b"exit_code" => &mut self.family.exit_code,
            b"timeout_ms" => &mut self.family.timeout_ms,
            b"tool_id" | b"tool.id" | b"runtime.tool_id" => {
                self.has_tool_id |= given(entry).is_some();
                return;
            }
            _ => return,
        };
        *place = given(entry);
    }

    fn note_family(&mut self, name: &'static str, key: &[u8], entry: Entry<'a>) {
        let place = match key {
            b"exit_code" => &mut self.family.exit_code,
            b"memory_mb" => &mut self.family.memory_mb,
            b"language" => &mut self.family.language,
            b"success" => &mut self.family.success,
            b"has_error" => &mut self.family.has_error,
            b"duration_ms" | b"execution_time_ms" => &mut self.family.duration_ms,
            b"timeout" => &mut self.family.timeout_ms,
            b"runtime" => {
                if given(entry).is_some() {
                    self.family.name = name;
                    self.has_runtime_name = true;
                }
                return;
            }
            _ => return,
        };
        *place = given(entry);
    }
}

/// The value of an attribute. One without a value, which is what JavaScript makes of NaN, is as good as none, as for the
/// metrics; but it takes back an earlier one of the same key.
fn given(entry: Entry<'_>) -> Option<AnyValue<'_>> {
    let value = entry.value();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::telling::Telling;
    use crate::rules::testing::{request, span};

    #[test]
    fn the_quick_look_and_the_thorough_one_agree_on_what_matters() {
        let names = [
            "code.execute",
            "runtimeRouter.route",
            "node.execute.action.code",
            "etlHook.preIngest",
            "e2b.execute",
            "wasmedge.execute",
            "bacalhau.execute",
            "GET /",
            "",
        ];
        let keys = [
            "code.runtime",
            "code.success",
            "code.exit_code",
            "code.duration_ms",
            "code.language",
            "code.function.name",
            "node.status",
            "node.attempts",
            "node.attempt",
            "node.id",
            "node.error",
            "organization.id",
            "workspace.id",
            "user.id",
            "e2b.runtime",
            "e2b.exit_code",
            "wasmedge.runtime",
            "bacalhau.runtime",
            "tool_id",
            "exit_code",
            "http.route",
        ];
        for name in names {
            for key in keys {
                for other in keys {
                    let request = request([span(name).with(key, "x").with(other, 1)]);
                    let resource = request.resource_spans().next().unwrap();
                    let span = resource.scope_spans().next().unwrap().spans().next_raw().unwrap();
                    let (span, may_matter) = Telling::look(span);
                    let mut seen = Seen::default();
                    let matters = match seen.look(&span) {
                        None | Some(Kind::Tool) => false,
                        Some(Kind::Node) => {
                            let told = [seen.organization_id, seen.workspace_id, seen.user_id, seen.node_error];
                            told.iter().any(Option::is_some)
                        }
                        Some(_) => true,
                    };
                    assert_eq!(may_matter, matters, "{name} {key} {other}");
                }
            }
        }
    }
}
