//! All rules of a catalogue as one program over a span.
//!
//! Every attribute that any rule mentions becomes a *slot*; every span name that a rule asks for becomes a *bit*.
//! A span fills slots and sets bits in one pass; a set bit means a filled slot or the span's name. Rules of the same
//! condition form a *group*, which is looked at only if a bit is on that wakes it: a span that no rule is interested in
//! costs the pass and a few AND instructions. Labels that several rules share form a *label set*, whose text is made once
//! per span.

use super::keys::KeyTable;
use super::model::{Condition, Conversion, Expression, Label, Level, Measure, Reading, Source, Test};
use super::named::Named;
use super::prices::Prices;
use super::semantics::{self, Executor};
use super::series_key::encode_label;
use super::{Catalogue, model};

/// The text of a rule, to be compared with the bytes of spans.
type Text = Box<[u8]>;

/// Where something is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// An attribute.
    Slot(u32),
    /// A derived notion.
    Named(Named),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cond {
    All(Vec<Cond>),
    Any(Vec<Cond>),
    Not(Box<Cond>),
    /// The bit of a span name.
    NameIs(u32),
    Exists(Operand),
    OneOf(Operand, Vec<Expected>),
    StartsWith(Operand, Box<[u8]>),
    AtLeast(Operand, f64),
    Below(Operand, f64),
}

/// A value to compare with, in each form that an attribute may have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    pub(super) text: Box<[u8]>,
    pub(super) int: Option<i64>,
    pub(super) double: Option<f64>,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Constant(f64),
    Operand(Operand),
    FirstOf(Vec<Value>),
    SumOf(Vec<Value>),
    Scaled(Box<Value>, f64),
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) condition: Cond,
    pub(super) rules: Vec<CompiledRule>,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Index in the catalogue.
    pub(super) rule: usize,
    pub(super) label_set: usize,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) value: Value,
    /// The encoded value of the label that tells parts apart; empty if there is one part.
    pub(super) suffix: Box<[u8]>,
}

/// The labels of a rule, without the one that tells parts apart.
#[derive(Debug, PartialEq)]
pub(super) struct LabelSet {
    pub(super) labels: Vec<CompiledLabel>,
}

#[derive(Debug, PartialEq)]
pub(super) enum CompiledLabel {
    /// Encoded.
    Constant(Box<[u8]>),
    Read(LabelProgram),
}

#[derive(Debug, PartialEq)]
pub(super) struct LabelProgram {
    pub(super) operands: Vec<Operand>,
    pub(super) conversion: Conversion,
    /// What is replaced, and by what.
    pub(super) map: Vec<(Text, Text)>,
    pub(super) one_of: Vec<Text>,
    pub(super) missing: Text,
    pub(super) disallowed: Text,
}

/// Slots of the attributes of one [`Executor`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RunSlots {
    pub(super) success: u32,
    pub(super) has_error: u32,
    pub(super) exit_code: u32,
    pub(super) duration_ms: u32,
    pub(super) timeout_ms: u32,
}

/// Slots that derived notions read; those of notions that no rule uses are never read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NamedSlots {
    pub(super) runs: [RunSlots; Executor::ALL.len()],
    pub(super) execution_marks: [u32; semantics::EXECUTION_MARKS.len()],
    pub(super) workflow_id: u32,
    pub(super) node_id: u32,
    pub(super) error_type: u32,
    pub(super) error_kind: u32,
    pub(super) tool_ids: [u32; semantics::TOOL_IDS.len()],
    pub(super) gen_ai_tool: u32,
    pub(super) gen_ai_operation: u32,
    pub(super) outcome: u32,
    pub(super) signal: u32,
    pub(super) runtime: u32,
    pub(super) execution_cost: u32,
    pub(super) llm: LlmSlots,
}

/// Slots of what a call of a model says of its tokens and cost; of each, the first that is given counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LlmSlots {
    pub(super) costs: [u32; semantics::LLM_COSTS.len()],
    pub(super) models: [u32; semantics::LLM_MODELS.len()],
    pub(super) input: [u32; semantics::LLM_INPUT_TOKENS.len()],
    pub(super) output: [u32; semantics::LLM_OUTPUT_TOKENS.len()],
    pub(super) cache_read: [u32; semantics::LLM_CACHE_READ_TOKENS.len()],
    pub(super) cache_write: [u32; semantics::LLM_CACHE_WRITE_TOKENS.len()],
}

/// The whole catalogue, ready to run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) span_keys: KeyTable,
    pub(super) resource_keys: KeyTable,
    pub(super) scope_keys: KeyTable,
    /// Span names to bits.
    pub(super) names: KeyTable,
    /// Bits of slots come first, then those of names.
    pub(super) slots: usize,
    /// 64-bit words that hold all bits.
    pub(super) words: usize,
    groups: Vec<Group>,
    pub(super) label_sets: Vec<LabelSet>,
    pub(super) named: NamedSlots,
    pub(super) prices: Prices,
    alarm: Alarm,
    /// Whether an attribute of the span can wake a group. If not, attributes of spans of other names are not read.
    pub(super) attributes_wake: bool,
}

/// Which groups can hold, by the bits that are on. A set of groups is one word; where there are more than 64 groups,
/// each of its bits stands for several in a row. A group that is asked without need says no, as its condition needs one
/// of the bits that wake it.
#[derive(Debug)]
struct Alarm {
    /// How many groups one bit stands for.
    row: usize,
    /// The groups that must be asked whatever is on.
    always: u64,
    /// The bits that wake any group.
    wake: Vec<u64>,
    /// Of each bit, the set of groups that it wakes.
    woken: Vec<u64>,
}

impl Alarm {
    /// `wakes`: of each group the bits that wake it; `None`: it must always be asked.
    fn new(wakes: &[Option<Vec<u32>>], words: usize) -> Alarm {
        let mut alarm = Alarm {
            row: wakes.len().div_ceil(64).max(1),
            always: 0,
            wake: vec![0; words],
            woken: vec![0; words * 64],
        };
        for (group, wake) in wakes.iter().enumerate() {
            let mask = 1 << (group / alarm.row);
            match wake {
                None => alarm.always |= mask,
                Some(bits) => {
                    for bit in bits.iter().map(|bit| *bit as usize) {
                        alarm.wake[bit / 64] |= 1 << (bit % 64);
                        alarm.woken[bit] |= mask;
                    }
                }
            }
        }
        alarm
    }

    /// The groups that can hold when these bits are on.
    #[inline(always)]
    fn groups(&self, on: &[u64]) -> u64 {
        let mut groups = self.always;
        for ((on, wake), woken) in on.iter().zip(&self.wake).zip(self.woken.as_chunks::<64>().0) {
            for bit in ones(on & wake) {
                groups |= woken[bit % 64];
            }
        }
        groups
    }

    fn is_woken_by(&self, bit: usize) -> bool {
        self.wake[bit / 64] >> (bit % 64) & 1 == 1
    }
}

impl Program {
    /// The groups that can hold when these bits are on, in their order; nothing if there are none.
    #[inline(always)]
    pub(super) fn groups<'p>(&'p self, on: &[u64]) -> Option<impl Iterator<Item = &'p Group> + use<'p>> {
        let set = self.alarm.groups(on);
        let row = self.alarm.row;
        (set != 0).then(|| {
            ones(set)
                .filter_map(move |bit| self.groups.chunks(row).nth(bit))
                .flatten()
        })
    }
}

/// The bits that are on, from the lowest.
#[inline(always)]
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            bit as usize
        })
    })
}

pub(super) fn compile(catalogue: &Catalogue) -> Program {
    let mut compiler = Compiler::default();
    compiler.slots_of_named();
    let mut label_sets: Vec<LabelSet> = Vec::new();
    let mut groups: Vec<(Cond, Vec<CompiledRule>)> = Vec::new();
    for (index, rule) in catalogue.rules().iter().enumerate() {
        let condition = compiler.condition(&rule.when);
        let labels = LabelSet {
            labels: compiler.labels(rule, catalogue.resource_labels()),
        };
        let label_set = label_sets
            .iter()
            .position(|earlier| *earlier == labels)
            .unwrap_or_else(|| {
                label_sets.push(labels);
                label_sets.len() - 1
            });
        let compiled = CompiledRule {
            rule: index,
            label_set,
            parts: compiler.parts(&rule.value),
        };
        match groups.iter_mut().find(|(earlier, _)| *earlier == condition) {
            Some((_, rules)) => rules.push(compiled),
            None => groups.push((condition, vec![compiled])),
        }
    }
    compiler.finish(groups, label_sets, catalogue.prices.clone())
}

#[derive(Default)]
struct Compiler {
    attributes: Vec<(Level, String)>,
    names: Vec<String>,
    named: NamedSlots,
}

impl Compiler {
    fn slot(&mut self, level: Level, key: &str) -> u32 {
        let found = self.attributes.iter().position(|(l, k)| *l == level && k == key);
        let index = found.unwrap_or_else(|| {
            self.attributes.push((level, key.to_owned()));
            self.attributes.len() - 1
        });
        index as u32
    }

    fn span_slot(&mut self, key: &str) -> u32 {
        self.slot(Level::Span, key)
    }

    /// The derived notions read a few dozen attributes; giving each a slot costs next to nothing.
    fn slots_of_named(&mut self) {
        for executor in Executor::ALL {
            let keys = executor.keys();
            self.named.runs[executor as usize] = RunSlots {
                success: self.span_slot(keys.success),
                has_error: self.span_slot(keys.has_error),
                exit_code: self.span_slot(keys.exit_code),
                duration_ms: self.span_slot(keys.duration_ms),
                timeout_ms: self.span_slot(keys.timeout_ms),
            };
        }
        self.named.execution_marks = semantics::EXECUTION_MARKS.map(|key| self.span_slot(key));
        self.named.tool_ids = semantics::TOOL_IDS.map(|key| self.span_slot(key));
        self.named.workflow_id = self.span_slot(semantics::WORKFLOW_ID);
        self.named.node_id = self.span_slot(semantics::NODE_ID);
        self.named.error_type = self.span_slot(semantics::ERROR_TYPE);
        self.named.error_kind = self.span_slot(semantics::ERROR_KIND);
        self.named.gen_ai_tool = self.span_slot(semantics::GEN_AI_TOOL_NAME);
        self.named.gen_ai_operation = self.span_slot(semantics::GEN_AI_OPERATION);
        self.named.outcome = self.span_slot(semantics::TOOL_OUTCOME);
        self.named.signal = self.span_slot(semantics::TOOL_SIGNAL);
        self.named.runtime = self.span_slot(semantics::CODE_RUNTIME);
        self.named.execution_cost = self.span_slot(semantics::CODE_COST);
        self.named.llm = LlmSlots {
            costs: semantics::LLM_COSTS.map(|key| self.span_slot(key)),
            models: semantics::LLM_MODELS.map(|key| self.span_slot(key)),
            input: semantics::LLM_INPUT_TOKENS.map(|key| self.span_slot(key)),
            output: semantics::LLM_OUTPUT_TOKENS.map(|key| self.span_slot(key)),
            cache_read: semantics::LLM_CACHE_READ_TOKENS.map(|key| self.span_slot(key)),
            cache_write: semantics::LLM_CACHE_WRITE_TOKENS.map(|key| self.span_slot(key)),
        };
    }

    fn operand(&mut self, source: &Source) -> Operand {
        match source {
            Source::Attribute(level, key) => Operand::Slot(self.slot(*level, key)),
            Source::Named(named) => Operand::Named(*named),
        }
    }

    /// Names get their final bit in [`Self::finish`], when the number of slots is known.
    fn name(&mut self, name: &str) -> Cond {
        let found = self.names.iter().position(|earlier| earlier == name);
        let index = found.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        Cond::NameIs(index as u32)
    }

    fn condition(&mut self, condition: &Condition) -> Cond {
        let (source, test) = match condition {
            Condition::All(parts) => return Cond::All(parts.iter().map(|part| self.condition(part)).collect()),
            Condition::Any(parts) => return Cond::Any(parts.iter().map(|part| self.condition(part)).collect()),
            Condition::Not(inner) => return Cond::Not(Box::new(self.condition(inner))),
            Condition::Test(source, test) => (source, test),
        };
        if let (Source::Named(Named::SpanName), Test::OneOf(names)) = (source, test) {
            return match names.as_slice() {
                [name] => self.name(name),
                names => Cond::Any(names.iter().map(|name| self.name(name)).collect()),
            };
        }
        let operand = self.operand(source);
        match test {
            Test::Exists => Cond::Exists(operand),
            Test::OneOf(values) => Cond::OneOf(operand, values.iter().map(|value| expected(value)).collect()),
            Test::StartsWith(prefix) => Cond::StartsWith(operand, prefix.as_bytes().into()),
            Test::AtLeast(number) => Cond::AtLeast(operand, *number),
            Test::Below(number) => Cond::Below(operand, *number),
        }
    }

    fn parts(&mut self, measure: &Measure) -> Vec<Part> {
        match measure {
            Measure::One(value) => vec![Part {
                value: self.value(value),
                suffix: Box::default(),
            }],
            Measure::Split { parts, .. } => {
                let part = |(name, value): &(String, Expression)| Part {
                    value: self.value(value),
                    suffix: encode_label(name),
                };
                parts.iter().map(part).collect()
            }
        }
    }

    fn value(&mut self, value: &Expression) -> Value {
        match value {
            Expression::Constant(number) => Value::Constant(*number),
            Expression::Source(source) => Value::Operand(self.operand(source)),
            Expression::FirstOf(values) => Value::FirstOf(values.iter().map(|value| self.value(value)).collect()),
            Expression::SumOf(values) => Value::SumOf(values.iter().map(|value| self.value(value)).collect()),
            Expression::Scaled(inner, factor) => Value::Scaled(Box::new(self.value(inner)), *factor),
        }
    }

    fn labels(&mut self, rule: &model::Rule, resource_labels: &[(String, String)]) -> Vec<CompiledLabel> {
        let own = rule.labels.iter().map(|(_, label)| label.clone());
        let common = resource_labels.iter().map(|(_, key)| {
            Label::Read(Reading {
                first_of: vec![Source::Attribute(Level::Resource, key.clone())],
                optional: true,
                ..Reading::default()
            })
        });
        own.chain(common).map(|label| self.label(&label)).collect()
    }

    fn label(&mut self, label: &Label) -> CompiledLabel {
        let bytes = |text: &String| text.as_bytes().into();
        match label {
            Label::Constant(text) => CompiledLabel::Constant(encode_label(text)),
            Label::Read(reading) => CompiledLabel::Read(LabelProgram {
                operands: reading.first_of.iter().map(|source| self.operand(source)).collect(),
                conversion: reading.conversion,
                map: reading.map.iter().map(|(from, to)| (bytes(from), bytes(to))).collect(),
                one_of: reading.one_of.iter().map(bytes).collect(),
                missing: reading.missing().as_bytes().into(),
                disallowed: reading.disallowed().as_bytes().into(),
            }),
        }
    }

    fn finish(self, groups: Vec<(Cond, Vec<CompiledRule>)>, label_sets: Vec<LabelSet>, prices: Prices) -> Program {
        let slots = self.attributes.len();
        let words = (slots + self.names.len()).div_ceil(64).max(1);
        let keys = |wanted: Level| {
            let numbered = self.attributes.iter().zip(0..);
            KeyTable::new(
                numbered
                    .filter(|((level, _), _)| *level == wanted)
                    .map(|((_, key), slot)| (key.clone(), slot)),
            )
        };
        let first_name = slots as u32;
        let mut wakes = Vec::new();
        let groups: Vec<Group> = groups
            .into_iter()
            .map(|(mut condition, rules)| {
                number_names(&mut condition, first_name);
                wakes.push(self.wake(&condition));
                Group { condition, rules }
            })
            .collect();
        let alarm = Alarm::new(&wakes, words);
        let attributes_wake = wakes.contains(&None) || {
            let span_level =
                |(bit, (level, _)): (usize, &(Level, String))| *level == Level::Span && alarm.is_woken_by(bit);
            self.attributes.iter().enumerate().any(span_level)
        };
        Program {
            span_keys: keys(Level::Span),
            resource_keys: keys(Level::Resource),
            scope_keys: keys(Level::Scope),
            names: KeyTable::new(self.names.iter().cloned().zip(first_name..)),
            slots,
            words,
            attributes_wake,
            groups,
            label_sets,
            named: self.named,
            prices,
            alarm,
        }
    }

    /// Bits of which at least one is on when the condition holds, or `None` if there is no such set.
    fn wake(&self, condition: &Cond) -> Option<Vec<u32>> {
        match condition {
            Cond::NameIs(bit) => Some(vec![*bit]),
            Cond::Any(parts) => {
                let sets: Option<Vec<Vec<u32>>> = parts.iter().map(|part| self.wake(part)).collect();
                Some(sets?.concat())
            }
            Cond::All(parts) => parts.iter().filter_map(|part| self.wake(part)).min_by_key(Vec::len),
            Cond::Not(_) => None,
            Cond::Exists(operand)
            | Cond::OneOf(operand, _)
            | Cond::StartsWith(operand, _)
            | Cond::AtLeast(operand, _)
            | Cond::Below(operand, _) => self.wake_of(*operand),
        }
    }

    fn wake_of(&self, operand: Operand) -> Option<Vec<u32>> {
        match operand {
            Operand::Slot(slot) => Some(vec![slot]),
            Operand::Named(Named::ExecutionSpan) => Some(self.named.execution_marks.to_vec()),
            Operand::Named(Named::ToolSpan | Named::ToolId) => {
                let mut bits = self.named.tool_ids.to_vec();
                bits.push(self.named.gen_ai_tool);
                Some(bits)
            }
            Operand::Named(_) => None,
        }
    }
}

fn number_names(condition: &mut Cond, first: u32) {
    match condition {
        Cond::NameIs(bit) => *bit += first,
        Cond::All(parts) | Cond::Any(parts) => parts.iter_mut().for_each(|part| number_names(part, first)),
        Cond::Not(inner) => number_names(inner, first),
        _ => {}
    }
}

fn expected(text: &str) -> Expected {
    Expected {
        text: text.as_bytes().into(),
        int: text.parse().ok(),
        double: text.parse().ok(),
    }
}
