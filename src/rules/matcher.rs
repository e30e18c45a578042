//! Runs the rules over spans: what each span adds to which series.
//!
//! # Invariants
//!
//! * The attributes of a span, a scope and a resource are read once, whatever the number of rules.
//! * Nothing is allocated per span once the [`Workspace`] has grown to the size of the catalogue.
//! * What is yielded depends on the spans and the catalogue alone, and comes in the order of the spans: counting the
//!   same requests again gives the same sums to the last bit.

use std::cell::Cell;

use crate::otlp::entry::Entry;
use crate::otlp::trace::{ResourceSpans, ScopeSpans, Span, TraceRequest, Visitor};
use crate::otlp::{AnyValue, Attributes, Text};

use super::Catalogue;
use super::compile::{CompiledRule, Cond, Operand, Program, Value, compile};
use super::datum::{Datum, quantity};
use super::keys::{KeyTable, hash};
use super::named::Named;
use super::prices::Usage;
use super::semantics::{self, Executor, Outcome, Run, SpanStatus, ToolCall};
use super::series_key::KeyBuffer;

/// What one span adds to one series.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// Index of the rule in [`Catalogue::rules`].
    pub rule: usize,
    /// The values of the labels in the order of [`Catalogue::series_labels`]; see [`super::series_key::label_values`].
    pub key: &'a [u8],
    /// Hash of `key`, by the seed of the matcher.
    pub hash: u64,
    /// What is added or observed: finite, not negative.
    pub value: f64,
    /// The span.
    pub trace_id: &'a [u8],
    /// The span.
    pub span_id: &'a [u8],
    /// When the span ended.
    pub end_unix_nano: u64,
}

/// A compiled catalogue.
#[derive(Debug)]
pub struct Matcher {
    program: Program,
    seed: u64,
}

/// Memory that a matcher uses again from request to request.
#[derive(Debug, Default)]
pub struct Workspace {
    slots: Vec<AnyValue<'static>>,
    bits: Bits,
    keys: KeyBuffer,
}

/// Which slots are filled, and which name the span has.
#[derive(Debug, Default)]
struct Bits {
    resource: Vec<u64>,
    scope: Vec<u64>,
    span: Vec<u64>,
}

impl Bits {
    fn clear(&mut self, words: usize) {
        for level in [&mut self.resource, &mut self.scope, &mut self.span] {
            level.clear();
            level.resize(words, 0);
        }
    }
}

impl Matcher {
    /// Compiles a catalogue. `seed` is for the hashes of keys, and should be random.
    pub fn new(catalogue: &Catalogue, seed: u64) -> Self {
        Self {
            program: compile(catalogue),
            seed,
        }
    }

    /// The hash of a key, as observations carry it.
    pub fn hash(&self, key: &[u8]) -> u64 {
        hash(self.seed, key)
    }

    /// Tells `sink` what the spans of `request` add, in their order.
    pub fn observe(&self, request: &TraceRequest, workspace: &mut Workspace, sink: &mut impl FnMut(Observation<'_>)) {
        let mut slots: Vec<AnyValue<'_>> = std::mem::take(&mut workspace.slots);
        slots.resize(self.program.slots, AnyValue::Empty);
        let mut pass = Pass {
            matcher: self,
            slots,
            bits: &mut workspace.bits,
            keys: &mut workspace.keys,
        };
        for resource in request.resource_spans() {
            pass.resource(&resource, sink);
        }
        workspace.slots = recycle(pass.slots);
    }
}

/// Gives a vector back the lifetime it had, without its contents. Collecting in place keeps the allocation.
fn recycle(mut slots: Vec<AnyValue<'_>>) -> Vec<AnyValue<'static>> {
    slots.clear();
    slots.into_iter().map(|_| AnyValue::Empty).collect()
}

/// One pass over a request.
struct Pass<'p, 'a> {
    matcher: &'p Matcher,
    slots: Vec<AnyValue<'a>>,
    bits: &'p mut Bits,
    keys: &'p mut KeyBuffer,
}

impl<'a> Pass<'_, 'a> {
    fn resource(&mut self, resource: &ResourceSpans<'a>, sink: &mut impl FnMut(Observation<'_>)) {
        let program = &self.matcher.program;
        self.bits.clear(program.words);
        if !program.resource_keys.is_empty() {
            let mut slots = Slots {
                keys: &program.resource_keys,
                slots: &mut self.slots,
                bits: &mut self.bits.resource,
            };
            slots.fill(resource.resource());
        }
        for scope in resource.scope_spans() {
            self.scope(&scope, sink);
        }
    }

    fn scope(&mut self, scope: &ScopeSpans<'a>, sink: &mut impl FnMut(Observation<'_>)) {
        let program = &self.matcher.program;
        self.bits.scope.clone_from(&self.bits.resource);
        if !program.scope_keys.is_empty() {
            let mut slots = Slots {
                keys: &program.scope_keys,
                slots: &mut self.slots,
                bits: &mut self.bits.scope,
            };
            slots.fill(scope.scope_attributes());
        }
        let mut spans = scope.spans();
        let scope = ScopeName::of(*scope);
        while let Some(span) = spans.next_raw() {
            self.span(span, &scope, sink);
        }
    }

    #[inline(always)]
    fn span(&mut self, span: &'a [u8], scope: &ScopeName<'a>, sink: &mut impl FnMut(Observation<'_>)) {
        let program = &self.matcher.program;
        let bits = &mut *self.bits.span;
        bits.iter_mut().zip(&self.bits.scope).for_each(|(to, from)| *to = *from);
        let mut slots = Slots {
            keys: &program.span_keys,
            slots: &mut self.slots,
            bits,
        };
        // If no attribute can wake a group, those of a span that wakes none are not read.
        let span = if program.attributes_wake {
            Span::visit(span, &mut slots)
        } else {
            Span::decode(span)
        };
        if let Some(bit) = program.names.get(span.name().as_bytes()) {
            set(slots.bits, bit);
        }
        let Some(groups) = program.groups(slots.bits) else {
            return;
        };
        if !program.attributes_wake {
            slots.fill(span.attributes());
        }
        self.keys.next_span();
        let view = View {
            program,
            slots: &self.slots,
            bits,
            span: &span,
            scope,
            outcomes: Default::default(),
            tool_outcome: Cell::new(None),
        };
        for group in groups {
            if view.holds(&group.condition) {
                for rule in &group.rules {
                    view.apply(rule, self.matcher.seed, self.keys, sink);
                }
            }
        }
    }
}

/// Puts the attributes that rules ask for into their slots.
struct Slots<'s, 'a> {
    keys: &'s KeyTable,
    slots: &'s mut [AnyValue<'a>],
    bits: &'s mut [u64],
}

impl<'a> Slots<'_, 'a> {
    fn fill(&mut self, attributes: Attributes<'a>) {
        attributes.entries().for_each(|entry| self.put(&entry));
    }

    #[inline(always)]
    fn put(&mut self, entry: &Entry<'a>) {
        let Some(slot) = self.keys.get(entry.key().as_bytes()) else {
            return;
        };
        let value = entry.value();
        // An attribute without a value is as good as none; but it takes back an earlier one of the same key.
        if value.is_empty() {
            unset(self.bits, slot);
        } else {
            set(self.bits, slot);
        }
        self.slots[slot as usize] = value;
    }
}

impl<'a> Visitor<'a> for Slots<'_, 'a> {
    #[inline(always)]
    fn attribute(&mut self, entry: Entry<'a>) {
        self.put(&entry);
    }
}

fn set(bits: &mut [u64], bit: u32) {
    bits[bit as usize / 64] |= 1 << (bit % 64);
}

fn unset(bits: &mut [u64], bit: u32) {
    bits[bit as usize / 64] &= !(1 << (bit % 64));
}

fn is_set(bits: &[u64], bit: u32) -> bool {
    bits[bit as usize / 64] >> (bit % 64) & 1 == 1
}

/// The name of a scope, looked for when a rule asks: it may stand behind all of the spans.
struct ScopeName<'a> {
    spans: ScopeSpans<'a>,
    found: Cell<Option<Text<'a>>>,
}

impl<'a> ScopeName<'a> {
    fn of(spans: ScopeSpans<'a>) -> Self {
        Self {
            spans,
            found: Cell::new(None),
        }
    }

    fn get(&self) -> Text<'a> {
        let name = self.found.get().unwrap_or_else(|| self.spans.scope_name());
        self.found.set(Some(name));
        name
    }
}

/// A span with its attributes in slots.
struct View<'v, 'a> {
    program: &'v Program,
    slots: &'v [AnyValue<'a>],
    bits: &'v [u64],
    span: &'v Span<'a>,
    scope: &'v ScopeName<'a>,
    outcomes: [Cell<Option<Outcome>>; Executor::ALL.len()],
    tool_outcome: Cell<Option<Outcome>>,
}

impl<'a> View<'_, 'a> {
    fn apply(&self, rule: &CompiledRule, seed: u64, keys: &mut KeyBuffer, sink: &mut impl FnMut(Observation<'_>)) {
        for part in &rule.parts {
            let Some(value) = self.number(&part.value) else {
                continue;
            };
            let labels = keys.labels(rule.label_set, &self.program.label_sets, seed, |operand| {
                self.datum(operand)
            });
            let (key, hash) = keys.with_suffix(labels, &part.suffix, seed);
            sink(Observation {
                rule: rule.rule,
                key,
                hash,
                value,
                trace_id: self.span.trace_id(),
                span_id: self.span.span_id(),
                end_unix_nano: self.span.end_unix_nano(),
            });
        }
    }

    fn slot(&self, slot: u32) -> Option<AnyValue<'a>> {
        is_set(self.bits, slot).then(|| self.slots[slot as usize])
    }

    /// The text in a slot; an empty one is missing.
    fn text(&self, slot: u32) -> Option<&'a str> {
        self.slot(slot)?.as_str().filter(|text| !text.is_empty())
    }

    fn text_bytes(&self, slot: u32) -> Option<&'a [u8]> {
        match self.slot(slot)? {
            AnyValue::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    fn datum(&self, operand: Operand) -> Option<Datum<'a>> {
        let named = match operand {
            Operand::Slot(slot) => return Datum::from_value(self.slot(slot)?),
            Operand::Named(named) => named,
        };
        let text = match named {
            Named::SpanName => return Some(Datum::Text(self.span.name().as_bytes())),
            Named::ScopeName => return Some(Datum::Text(self.scope.get().as_bytes())),
            Named::ToolId => return self.tool_id(),
            Named::ExecutionSpan => return Some(Datum::Bool(self.is_execution_span())),
            Named::ToolSpan => return Some(Datum::Bool(self.is_tool_span())),
            Named::DurationMs | Named::DurationSeconds | Named::ExecutionCostUsd | Named::LlmCostUsd => {
                return self.operand_number(operand).map(Datum::Double);
            }
            Named::SpanKind => semantics::span_kind(self.span.kind()),
            Named::SpanStatus => self.status().as_str(),
            Named::Outcome(executor) => self.outcome(executor).as_str(),
            Named::ToolOutcome => self.tool_outcome().as_str(),
            Named::ExitStatus if self.datum_is_given(Operand::Slot(self.program.named.signal)) => "signal",
            Named::ExitStatus => "exit",
        };
        Some(Datum::Text(text.as_bytes()))
    }

    /// Whether there is a value other than the empty text.
    fn datum_is_given(&self, operand: Operand) -> bool {
        match self.datum(operand) {
            None => false,
            Some(Datum::Text(text)) => !text.is_empty(),
            // A predicate exists when it holds; an attribute that says `false` exists.
            Some(Datum::Bool(holds)) => matches!(operand, Operand::Slot(_)) || holds,
            Some(_) => true,
        }
    }

    fn holds(&self, condition: &Cond) -> bool {
        match condition {
            Cond::All(parts) => parts.iter().all(|part| self.holds(part)),
            Cond::Any(parts) => parts.iter().any(|part| self.holds(part)),
            Cond::Not(inner) => !self.holds(inner),
            Cond::NameIs(bit) => is_set(self.bits, *bit),
            Cond::Exists(operand) => self.datum_is_given(*operand),
            Cond::OneOf(operand, values) => {
                let datum = self.datum(*operand);
                datum.is_some_and(|datum| values.iter().any(|value| datum.is(value)))
            }
            Cond::StartsWith(operand, prefix) => {
                matches!(self.datum(*operand), Some(Datum::Text(text)) if text.starts_with(prefix))
            }
            Cond::AtLeast(operand, bound) => self.operand_number(*operand).is_some_and(|number| number >= *bound),
            Cond::Below(operand, bound) => self.operand_number(*operand).is_some_and(|number| number < *bound),
        }
    }

    fn number(&self, value: &Value) -> Option<f64> {
        let number = match value {
            Value::Constant(number) => *number,
            Value::Operand(operand) => self.operand_number(*operand)?,
            Value::FirstOf(values) => values.iter().find_map(|value| self.number(value))?,
            Value::SumOf(values) => {
                let given = values.iter().filter_map(|value| self.number(value));
                given.fold(None, |sum, number| Some(sum.unwrap_or(0.0) + number))?
            }
            Value::Scaled(inner, factor) => self.number(inner)? * factor,
        };
        quantity(number)
    }

    fn operand_number(&self, operand: Operand) -> Option<f64> {
        match operand {
            Operand::Slot(slot) => self.slot(slot)?.as_f64().filter(|number| number.is_finite()),
            Operand::Named(Named::ExecutionCostUsd) => self.execution_cost(),
            Operand::Named(Named::LlmCostUsd) => self.llm_cost(),
            Operand::Named(named) => self.duration(named),
        }
    }

    fn duration(&self, named: Named) -> Option<f64> {
        let (start, end) = (self.span.start_unix_nano(), self.span.end_unix_nano());
        match named {
            Named::DurationMs => semantics::duration_ms(start, end),
            Named::DurationSeconds => semantics::duration_seconds(start, end),
            _ => None,
        }
    }

    fn execution_cost(&self) -> Option<f64> {
        let named = &self.program.named;
        let number = |slot| self.operand_number(Operand::Slot(slot)).and_then(quantity);
        number(named.execution_cost).or_else(|| {
            let took = number(named.runs[Executor::Code as usize].duration_ms);
            let took = took.or_else(|| self.duration(Named::DurationMs));
            self.program.prices.execution_cost(self.text(named.runtime)?, took)
        })
    }

    fn llm_cost(&self) -> Option<f64> {
        let slots = &self.program.named.llm;
        let first = |slots: &[u32]| {
            slots
                .iter()
                .find_map(|slot| self.operand_number(Operand::Slot(*slot)).and_then(quantity))
        };
        first(&slots.costs).or_else(|| {
            let usage = Usage {
                input: first(&slots.input),
                output: first(&slots.output),
                cache_read: first(&slots.cache_read),
                cache_write: first(&slots.cache_write),
            };
            let model = slots.models.iter().find_map(|slot| self.text(*slot))?;
            self.program.prices.model_cost(model, &usage)
        })
    }

    fn status(&self) -> SpanStatus {
        SpanStatus::from_code(self.span.status_code())
    }

    fn is_execution_span(&self) -> bool {
        let named = &self.program.named;
        let has_mark = named.execution_marks.iter().any(|slot| is_set(self.bits, *slot));
        semantics::is_execution_span(
            has_mark,
            self.text_bytes(named.workflow_id),
            self.text_bytes(named.node_id),
        )
    }

    fn is_tool_span(&self) -> bool {
        let named = &self.program.named;
        named.tool_ids.iter().any(|slot| is_set(self.bits, *slot)) || self.gen_ai_tool().is_some()
    }

    fn gen_ai_tool(&self) -> Option<AnyValue<'a>> {
        let named = &self.program.named;
        let tool = self.slot(named.gen_ai_tool)?;
        (self.text(named.gen_ai_operation)? == semantics::GEN_AI_EXECUTE_TOOL).then_some(tool)
    }

    fn tool_id(&self) -> Option<Datum<'a>> {
        let given = |datum: &Datum<'_>| !matches!(datum, Datum::Text(text) if text.is_empty());
        let own = self.program.named.tool_ids.iter().filter_map(|slot| self.slot(*slot));
        let mut all = own.chain(self.gen_ai_tool()).filter_map(Datum::from_value);
        all.find(given)
    }

    fn tool_outcome(&self) -> Outcome {
        cached(&self.tool_outcome, || {
            let named = &self.program.named;
            let call = ToolCall {
                outcome: self.text(named.outcome),
                error_kind: self.text(named.error_kind),
                error_type: self.text(named.error_type),
                status: self.status(),
            };
            call.outcome()
        })
    }

    fn outcome(&self, executor: Executor) -> Outcome {
        cached(&self.outcomes[executor as usize], || {
            let named = &self.program.named;
            let slots = &named.runs[executor as usize];
            let number = |slot| self.operand_number(Operand::Slot(slot)).and_then(quantity);
            let (has_exception, exception_timed_out) = self.exceptions();
            let run = Run {
                success: self.slot(slots.success).and_then(|value| value.as_bool()),
                has_error: self.slot(slots.has_error).and_then(|value| value.as_bool()),
                exit_code: self.slot(slots.exit_code).and_then(|value| value.as_i64()),
                duration_ms: number(slots.duration_ms).or_else(|| self.duration(Named::DurationMs)),
                timeout_ms: number(slots.timeout_ms),
                error_type: self.text(named.error_type),
                error_kind: self.text(named.error_kind),
                status: self.status(),
                status_message: self.span.status_message().as_str(),
                has_exception,
                exception_timed_out,
            };
            run.outcome()
        })
    }

    /// Whether there is an exception event, and whether one says that it timed out.
    fn exceptions(&self) -> (bool, bool) {
        let mut found = (false, false);
        for event in self
            .span
            .events()
            .filter(|event| event.name() == semantics::EXCEPTION_EVENT)
        {
            let message = event.attributes().get(semantics::EXCEPTION_MESSAGE);
            let says_so = message
                .and_then(|message| message.as_str())
                .is_some_and(semantics::says_timed_out);
            found = (true, found.1 || says_so);
        }
        found
    }
}

fn cached(cell: &Cell<Option<Outcome>>, compute: impl FnOnce() -> Outcome) -> Outcome {
    cell.get().unwrap_or_else(|| {
        let outcome = compute();
        cell.set(Some(outcome));
        outcome
    })
}
