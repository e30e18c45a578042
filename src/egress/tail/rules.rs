//! `sample.keep`, compiled.

use std::time::Duration;

use crate::egress::options::KeepRule;
use crate::egress::spans::{Slots, SpanRules};
use crate::otlp::Span;

/// What is compiled of the options.
#[derive(Debug, Clone)]
pub(in crate::egress) struct TailRules {
    /// The conditions of [`KeepRule::Spans`], in their order.
    pub(in crate::egress) spans: SpanRules,
    /// Of each of them, the rule that counts.
    pub(in crate::egress) of_spans: Vec<usize>,
    /// The rule that counts errors.
    pub(in crate::egress) errors: Option<usize>,
    /// The shortest duration that is kept, in nanoseconds, and the rule that counts.
    pub(in crate::egress) slower_than: Option<(u64, usize)>,
    pub(in crate::egress) wait: Duration,
    pub(in crate::egress) memory: usize,
    /// The rule that counts traces that were decided early.
    pub(in crate::egress) early: usize,
}

impl TailRules {
    /// `counts` are the rules of `keep`, in their order.
    pub(in crate::egress) fn compile(
        keep: &[KeepRule],
        first_rule: usize,
        wait: Duration,
        memory: usize,
        early: usize,
    ) -> TailRules {
        let mut rules = TailRules {
            spans: SpanRules::default(),
            of_spans: Vec::new(),
            errors: None,
            slower_than: None,
            wait,
            memory,
            early,
        };
        let mut conditions = Vec::new();
        for (index, rule) in keep.iter().enumerate() {
            let counts = first_rule + index;
            match rule {
                KeepRule::Errors => rules.errors = rules.errors.or(Some(counts)),
                KeepRule::SlowerThan(limit) => {
                    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
                    if rules.slower_than.is_none_or(|(other, _)| nanos < other) {
                        rules.slower_than = Some((nanos, counts));
                    }
                }
                KeepRule::Spans(rule) => {
                    conditions.push(rule);
                    rules.of_spans.push(counts);
                }
            }
        }
        rules.spans = SpanRules::compile(conditions, rules.errors.is_some());
        rules
    }

    /// The rule that keeps the trace of this span, whatever its other spans are.
    pub(super) fn keeps(&self, span: &Span<'_>, slots: &Slots<'_>) -> Option<usize> {
        if let Some(rule) = self.errors
            && self.spans.is_failed(span, slots)
        {
            return Some(rule);
        }
        self.of_spans.get(self.spans.first_match(span, slots)?).copied()
    }
}
