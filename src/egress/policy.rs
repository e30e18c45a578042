//! One exporter's rules, compiled.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::attributes::AttributeRules;
use super::edit::{self, TRACE_STATE};
use super::glob::KeySet;
use super::hash::Hasher;
use super::options::EgressOptions;
use super::sampling::{Threshold, stamp};
use super::spans::SpanRules;
use super::splice::Edits;
use super::tail::TailRules;
use crate::otlp::Signal;
use crate::otlp::wire::{Broken, put_bytes};
use crate::redact::{PatternError, Patterns};

/// Why rules cannot be used. Each names the key below the exporter's that is to be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// A pattern.
    #[error("redact: {0}")]
    Redact(#[from] PatternError),
    /// A value that cannot work.
    #[error("{key}: {what}")]
    Setting {
        /// The key below the exporter's.
        key: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl EgressError {
    /// The key below the exporter's that is to be changed.
    pub fn key(&self) -> &'static str {
        match self {
            EgressError::Redact(_) => "redact",
            EgressError::Setting { key, .. } => key,
        }
    }
}

/// A rule by the name under which it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its place in the configuration: `drop_spans[0]`.
    pub name: String,
    /// What it says, on one line.
    pub says: String,
    /// What is counted.
    pub counts: Counts,
}

/// What the count of a rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Spans that were not forwarded.
    SpansDropped,
    /// Traces that were kept because of it.
    TracesKept,
    /// Traces that were decided before their time was over.
    TracesEarly,
    /// Attributes and texts that were changed or removed.
    Values,
    /// Resources that got the attribute.
    Resources,
}

impl Counts {
    /// A word for the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Counts::SpansDropped => "spans dropped",
            Counts::TracesKept => "traces kept",
            Counts::TracesEarly => "traces decided early",
            Counts::Values => "values",
            Counts::Resources => "resources",
        }
    }
}

/// An attribute that a resource gets if it has none.
#[derive(Debug, Clone)]
pub(super) struct Fallback {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) rule: usize,
}

/// The rules of one exporter, ready to be applied.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<RuleInfo>,
    counts: Vec<AtomicU64>,
    /// `drop_spans`, which are the first rules.
    pub(super) drop: SpanRules,
    pub(super) threshold: Threshold,
    /// `tracestate` with the threshold, as a field of a span that had none.
    pub(super) state: Vec<u8>,
    /// The rule that counts what `threshold` leaves out.
    pub(super) ratio_rule: usize,
    /// If `sample.keep` decides over whole traces.
    pub(super) tail: Option<TailRules>,
    pub(super) attributes: AttributeRules,
    pub(super) hasher: Hasher,
    pub(super) patterns: Patterns,
    /// The rules of the items of `patterns` begin here.
    pub(super) redact_rule: usize,
    /// `usize::MAX` for none.
    pub(super) truncate: usize,
    pub(super) truncate_rule: usize,
    pub(super) set_resource: Vec<Fallback>,
}

/// What may leave of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it, as it is.
    Unchanged,
    /// This instead, and so many of its spans do not.
    Changed {
        /// The bytes that go instead.
        body: Bytes,
        /// Spans that are not in them.
        dropped: u32,
    },
    /// Nothing of it.
    Nothing,
}

/// Memory that is used again from request to request, and what the rules counted.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(super) edits: Edits,
    /// By rule.
    pub(super) tally: Vec<u64>,
}

impl Workspace {
    /// Makes room for the counts of so many rules.
    pub(super) fn grow(&mut self, rules: usize) {
        self.tally.resize(rules, 0);
    }

    /// A rule did something so many times.
    pub(super) fn add(&mut self, rule: usize, many: u64) {
        if let Some(count) = self.tally.get_mut(rule) {
            *count += many;
        }
    }
}

impl Policy {
    /// Compiles rules.
    pub fn compile(options: &EgressOptions) -> Result<Policy, EgressError> {
        options.check()?;
        let mut rules = Rules(Vec::new());
        for (index, rule) in options.drop_spans.iter().enumerate() {
            rules.add(format!("drop_spans[{index}]"), &rule.says, Counts::SpansDropped);
        }
        let says = options.ratio.to_string();
        let ratio_rule = match options.samples() {
            true => rules.add(
                "sample.ratio".into(),
                &format!("threshold {says}"),
                Counts::SpansDropped,
            ),
            false => usize::MAX,
        };
        let first_keep = rules.0.len();
        for (index, rule) in options.keep.iter().enumerate() {
            rules.add(format!("sample.keep[{index}]"), &rule.says(), Counts::TracesKept);
        }
        let tail = (!options.keep.is_empty()).then(|| {
            let says = format!("{} bytes", options.memory);
            let early = rules.add("sample.memory".into(), &says, Counts::TracesEarly);
            TailRules::compile(&options.keep, first_keep, options.wait, options.memory, early)
        });
        let mut attributes = AttributeRules::default();
        for (index, key) in options.remove_attributes.iter().enumerate() {
            let rule = rules.add(format!("remove_attributes[{index}]"), key, Counts::Values);
            attributes.removed.insert(key, rule);
        }
        if !options.keep_attributes.is_empty() {
            let says = options.keep_attributes.join(", ");
            let rule = rules.add("keep_attributes".into(), &says, Counts::Values);
            let (kept, _) = attributes.kept.get_or_insert_with(|| (KeySet::default(), rule));
            options.keep_attributes.iter().for_each(|key| kept.insert(key, rule));
        }
        for (index, key) in options.hash_attributes.iter().enumerate() {
            let rule = rules.add(format!("hash_attributes[{index}]"), key, Counts::Values);
            attributes.hashed.insert(key, rule);
        }
        let redact_rule = rules.0.len();
        for (index, item) in options.redact.iter().enumerate() {
            rules.add(format!("redact[{index}]"), item, Counts::Values);
        }
        let truncate_rule = match options.truncate {
            0 => usize::MAX,
            limit => rules.add("truncate".into(), &format!("{limit} bytes"), Counts::Values),
        };
        let mut set_resource = Vec::new();
        for (key, value) in &options.set_resource {
            set_resource.push(Fallback {
                key: key.clone(),
                value: value.clone(),
                rule: rules.add(format!("set_resource.{key}"), value, Counts::Resources),
            });
        }
        let (mut text, mut state) = (Vec::new(), Vec::new());
        stamp(b"", options.ratio, &mut text);
        put_bytes(&mut state, TRACE_STATE, &text);
        Ok(Policy {
            counts: rules.0.iter().map(|_| AtomicU64::new(0)).collect(),
            drop: SpanRules::compile(&options.drop_spans, false),
            threshold: options.ratio,
            state,
            ratio_rule,
            tail,
            attributes,
            hasher: Hasher::new(&options.hash_key),
            patterns: Patterns::compile(&options.redact)?,
            redact_rule,
            truncate: match options.truncate {
                0 => usize::MAX,
                limit => limit,
            },
            truncate_rule,
            set_resource,
            rules: rules.0,
        })
    }

    /// The rules, in the order in which they are counted.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.rules
    }

    /// Adds what a [`Workspace`] counted; `tell` hears of each rule that counted something.
    pub fn count(&self, workspace: &mut Workspace, mut tell: impl FnMut(usize, u64)) {
        for (index, counted) in workspace
            .tally
            .iter_mut()
            .enumerate()
            .filter(|(_, counted)| **counted > 0)
        {
            if let Some(count) = self.counts.get(index) {
                count.fetch_add(*counted, Ordering::Relaxed);
            }
            tell(index, std::mem::take(counted));
        }
    }

    /// Every rule with what it counted since the start.
    pub fn counted(&self) -> impl Iterator<Item = (&RuleInfo, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        self.rules.iter().zip(counts)
    }

    /// No rule at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a request of this signal may be changed. If not, its bytes need not even be decompressed.
    pub fn is_for(&self, signal: Signal) -> bool {
        self.edits_texts() || !self.set_resource.is_empty() || (signal == Signal::Traces && self.chooses_spans())
    }

    /// Whether spans are chosen by [`Tail`](super::Tail), which sees them before this policy is applied.
    pub fn decides_over_traces(&self) -> bool {
        self.tail.is_some()
    }

    /// Whether spans may be left out, each by itself.
    pub(super) fn chooses_spans(&self) -> bool {
        self.tail.is_none() && (!self.drop.is_empty() || self.threshold != Threshold::ALWAYS)
    }

    /// Whether anything within an item may change.
    pub(super) fn edits_texts(&self) -> bool {
        !self.attributes.is_empty() || !self.patterns.is_empty() || self.truncate != usize::MAX
    }

    /// What may leave of a request: `body` without its content encoding, as it was checked at the door.
    ///
    /// # Errors
    ///
    /// The bytes are not what was checked. They must not leave.
    pub fn apply(&self, signal: Signal, body: &Bytes, workspace: &mut Workspace) -> Result<Outcome, Broken> {
        workspace.grow(self.rules.len());
        edit::apply(self, signal, body, workspace)
    }
}

struct Rules(Vec<RuleInfo>);

impl Rules {
    fn add(&mut self, name: String, says: &str, counts: Counts) -> usize {
        self.0.push(RuleInfo {
            name,
            says: says.to_owned(),
            counts,
        });
        self.0.len() - 1
    }
}
