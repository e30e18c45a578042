//! Which spans a rule speaks of.
//!
//! Of a span all attributes are looked at once, whatever the number of rules; nothing is allocated.

use super::glob::{Glob, KeySet};
use super::options::{SpanCondition, SpanRule};
use crate::otlp::{AnyValue, Attributes, Span};
use crate::rules::semantics::{self, Executor, Outcome, Run, SpanStatus, ToolCall, span_kind};

/// Compiled rules.
#[derive(Debug, Clone, Default)]
pub(super) struct SpanRules {
    rules: Vec<Vec<Condition>>,
    /// Attribute keys to slots.
    span_keys: KeySet,
    resource_keys: KeySet,
    slots: usize,
    /// The slots for [`SpanRules::is_failed`], in the order of [`failure_keys`]; none if it is not asked.
    failure: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Condition {
    names: Vec<Glob>,
    kinds: Vec<String>,
    values: Vec<(usize, Vec<Glob>)>,
}

/// The values that the rules ask for, of one resource and one span.
pub(super) type Slots<'a> = Vec<Option<AnyValue<'a>>>;

impl SpanRules {
    pub(super) fn compile<'r>(rules: impl IntoIterator<Item = &'r SpanRule>, with_failures: bool) -> SpanRules {
        let mut compiled = SpanRules::default();
        let mut known: Vec<(bool, String)> = Vec::new();
        for rule in rules {
            let alternatives = rule
                .any_of
                .iter()
                .map(|condition| compiled.condition(condition, &mut known));
            let alternatives = alternatives.collect();
            compiled.rules.push(alternatives);
        }
        if with_failures {
            compiled.failure = failure_keys()
                .map(|key| compiled.slot(false, key, &mut known))
                .collect();
        }
        compiled
    }

    fn condition(&mut self, condition: &SpanCondition, known: &mut Vec<(bool, String)>) -> Condition {
        let mut values = Vec::new();
        for (key, globs) in &condition.attributes {
            values.push((self.slot(false, key, known), globs.clone()));
        }
        for (key, globs) in &condition.resource {
            values.push((self.slot(true, key, known), globs.clone()));
        }
        Condition {
            names: condition.names.clone(),
            kinds: condition.kinds.clone(),
            values,
        }
    }

    fn slot(&mut self, is_resource: bool, key: &str, known: &mut Vec<(bool, String)>) -> usize {
        let wanted = (is_resource, key.to_owned());
        if let Some(slot) = known.iter().position(|other| *other == wanted) {
            return slot;
        }
        let slot = self.slots;
        self.slots += 1;
        known.push(wanted);
        let keys = if is_resource {
            &mut self.resource_keys
        } else {
            &mut self.span_keys
        };
        keys.insert(key, slot);
        slot
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.failure.is_empty()
    }

    /// Forgets the values of the resource before, and takes those of this one.
    pub(super) fn enter_resource<'a>(&self, attributes: Attributes<'a>, slots: &mut Slots<'a>) {
        slots.clear();
        slots.resize(self.slots, None);
        fill(&self.resource_keys, attributes, slots);
    }

    /// Takes the values of a span; those of its resource stay.
    #[inline]
    pub(super) fn enter_span<'a>(&self, span: &Span<'a>, slots: &mut Slots<'a>, of_resource: &Slots<'a>) {
        slots.clone_from(of_resource);
        fill(&self.span_keys, span.attributes(), slots);
    }

    /// The first rule that speaks of this span.
    pub(super) fn first_match(&self, span: &Span<'_>, slots: &Slots<'_>) -> Option<usize> {
        let speaks = |alternatives: &Vec<Condition>| alternatives.iter().any(|condition| condition.holds(span, slots));
        self.rules.iter().position(speaks)
    }

    /// Whether the span failed: by its status or `error.type`, or as an execution or tool call.
    pub(super) fn is_failed(&self, span: &Span<'_>, slots: &Slots<'_>) -> bool {
        let status = SpanStatus::from_code(span.status_code());
        if status == SpanStatus::Error {
            return true;
        }
        let given = |slot: &usize| slots.get(*slot).copied().flatten().filter(is_given);
        let mut given = self.failure.iter().map(given);
        let mut next = || given.next().flatten();
        let error_type = next().and_then(|value| value.as_str());
        let error_kind = next().and_then(|value| value.as_str());
        let outcome = next().and_then(|value| value.as_str());
        let is_tool = [next(), next(), next()].iter().any(Option::is_some);
        if error_type.is_some() {
            return true;
        }
        let call = ToolCall {
            outcome,
            error_kind,
            error_type,
            status,
        };
        if is_tool && call.outcome() != Outcome::Success {
            return true;
        }
        for _ in Executor::ALL {
            let (success, has_error, exit_code, duration, timeout) = (next(), next(), next(), next(), next());
            let is_run = success.is_some() || has_error.is_some() || exit_code.is_some() || duration.is_some();
            if !is_run {
                continue;
            }
            let mut run = Run {
                success: success.and_then(|value| value.as_bool()),
                has_error: has_error.and_then(|value| value.as_bool()),
                exit_code: exit_code.and_then(|value| value.as_i64()),
                duration_ms: duration
                    .and_then(|value| value.as_f64())
                    .or_else(|| semantics::duration_ms(span.start_unix_nano(), span.end_unix_nano())),
                timeout_ms: timeout.and_then(|value| value.as_f64()),
                error_type,
                error_kind,
                status,
                status_message: span.status_message().as_str(),
                ..Run::default()
            };
            for event in span.events().filter(|event| event.name() == semantics::EXCEPTION_EVENT) {
                run.has_exception = true;
                let message = event.attributes().get(semantics::EXCEPTION_MESSAGE);
                let message = message.and_then(|value| value.as_str());
                run.exception_timed_out |= message.is_some_and(semantics::says_timed_out);
            }
            if run.outcome() != Outcome::Success {
                return true;
            }
        }
        false
    }
}

/// What [`SpanRules::is_failed`] asks for, in this order.
fn failure_keys() -> impl Iterator<Item = &'static str> {
    let of_calls = [semantics::ERROR_TYPE, semantics::ERROR_KIND, semantics::TOOL_OUTCOME];
    let of_runs = Executor::ALL.into_iter().flat_map(|executor| {
        let keys = executor.keys();
        [
            keys.success,
            keys.has_error,
            keys.exit_code,
            keys.duration_ms,
            keys.timeout_ms,
        ]
    });
    of_calls.into_iter().chain(semantics::TOOL_IDS).chain(of_runs)
}

/// An empty text is how some executors say that they do not know.
fn is_given(value: &AnyValue<'_>) -> bool {
    match value {
        AnyValue::Empty => false,
        AnyValue::Text(text) => !text.is_empty(),
        _ => true,
    }
}

#[inline]
fn fill<'a>(keys: &KeySet, attributes: Attributes<'a>, slots: &mut Slots<'a>) {
    if keys.is_empty() {
        return;
    }
    for entry in attributes.entries() {
        if let Some(slot) = keys.find(entry.key().as_bytes())
            && let Some(slot) = slots.get_mut(slot)
        {
            *slot = Some(entry.value());
        }
    }
}

impl Condition {
    fn holds(&self, span: &Span<'_>, slots: &Slots<'_>) -> bool {
        let name = span.name().as_bytes();
        (self.names.is_empty() || self.names.iter().any(|glob| glob.matches(name)))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == span_kind(span.kind())))
            && self.values.iter().all(|(slot, globs)| {
                let value = slots.get(*slot).copied().flatten();
                value.is_some_and(|value| globs.iter().any(|glob| is_like(&value, glob)))
            })
    }
}

/// Whether a value, as text, matches; of a list one element is enough.
fn is_like(value: &AnyValue<'_>, glob: &Glob) -> bool {
    match value {
        AnyValue::Empty => false,
        AnyValue::Text(text) => glob.matches(text.as_bytes()),
        AnyValue::Bool(true) => glob.matches(b"true"),
        AnyValue::Bool(false) => glob.matches(b"false"),
        AnyValue::Int(value) => glob.matches(value.to_string().as_bytes()),
        AnyValue::Double(value) => glob.matches(value.to_string().as_bytes()),
        AnyValue::Array(values) => glob.as_str() == "*" || (*values).into_iter().any(|value| is_like(&value, glob)),
        AnyValue::Map(_) => glob.as_str() == "*",
        AnyValue::Bytes(bytes) => glob.matches(bytes),
    }
}
