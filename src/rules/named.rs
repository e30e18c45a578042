//! The notions that the program derives itself, by the names under which rules use them.
//!
//! Each is implemented once, in [`super::semantics`], and means the same for metrics and rows.

use super::semantics::Executor;

/// What a named notion yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text: for labels, and for conditions with values.
    Text,
    /// A number: for values, and for conditions that compare.
    Number,
    /// True or false: for conditions.
    Predicate,
}

impl Kind {
    /// `text`, `number`, `predicate`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Number => "number",
            Kind::Predicate => "predicate",
        }
    }
}

/// A notion that the program derives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Named {
    /// The span's name.
    SpanName,
    /// The span's kind in lower case.
    SpanKind,
    /// The span's status: `unset`, `ok`, `error`.
    SpanStatus,
    /// Name of the instrumentation scope.
    ScopeName,
    /// End minus start in milliseconds.
    DurationMs,
    /// End minus start in seconds.
    DurationSeconds,
    /// Whether the span is an execution.
    ExecutionSpan,
    /// Outcome of what the span executed, in the vocabulary of one executor.
    Outcome(Executor),
    /// Whether the span is a tool call.
    ToolSpan,
    /// The tool that was called.
    ToolId,
    /// Outcome of the tool call.
    ToolOutcome,
    /// How the tool's process ended: `exit` or `signal`.
    ExitStatus,
    /// What an execution is estimated to cost.
    ExecutionCostUsd,
    /// What a call of a model is estimated to cost.
    LlmCostUsd,
}

impl Named {
    /// All notions with their word, kind and meaning, in the order of the documentation.
    pub const ALL: [(Named, &'static str, Kind, &'static str); 17] = [
        (
            Named::ExecutionSpan,
            "execution_span",
            Kind::Predicate,
            "the span has one of `code.runtime`, `code.success`, `code.exit_code`, `code.duration_ms`, and is not the \
             second span of a run (`workflow.id` = `runtime-router`, `node.id` = `code-execution`)",
        ),
        (
            Named::Outcome(Executor::Code),
            "execution_outcome",
            Kind::Text,
            "`success`, `error` or `timeout`, from the `code.*` attributes, the status and the exception",
        ),
        (
            Named::Outcome(Executor::E2b),
            "e2b_outcome",
            Kind::Text,
            "the same from the `e2b.*` attributes",
        ),
        (
            Named::Outcome(Executor::Wasmedge),
            "wasmedge_outcome",
            Kind::Text,
            "the same from the `wasmedge.*` attributes",
        ),
        (
            Named::Outcome(Executor::Bacalhau),
            "bacalhau_outcome",
            Kind::Text,
            "the same from the `bacalhau.*` attributes",
        ),
        (
            Named::ToolSpan,
            "tool_span",
            Kind::Predicate,
            "the span has `tool_id`, `tool.id` or `runtime.tool_id`, or `gen_ai.tool.name` on a span whose \
             `gen_ai.operation.name` is `execute_tool`",
        ),
        (Named::ToolId, "tool_id", Kind::Text, "the first of these that is given"),
        (
            Named::ToolOutcome,
            "tool_outcome",
            Kind::Text,
            "the attribute `outcome` if given; else `timeout` if `error_kind` or `error.type` says so; else `error` if \
             the status is ERROR or `error_kind` is set; else `success`",
        ),
        (
            Named::ExitStatus,
            "exit_status",
            Kind::Text,
            "`signal` if the attribute `signal` is set, else `exit`",
        ),
        (Named::SpanName, "span_name", Kind::Text, "the name of the span"),
        (
            Named::SpanKind,
            "span_kind",
            Kind::Text,
            "`internal`, `server`, `client`, `producer`, `consumer` or `unspecified`",
        ),
        (Named::SpanStatus, "span_status", Kind::Text, "`unset`, `ok` or `error`"),
        (
            Named::ScopeName,
            "scope_name",
            Kind::Text,
            "the name of the instrumentation scope",
        ),
        (
            Named::DurationMs,
            "duration_ms",
            Kind::Number,
            "end minus start in milliseconds; 0 if the end lies before the start; missing if either is",
        ),
        (
            Named::DurationSeconds,
            "duration_seconds",
            Kind::Number,
            "the same in seconds",
        ),
        (
            Named::ExecutionCostUsd,
            "execution_cost_usd",
            Kind::Number,
            "`code.cost_usd`; else what `prices.runtimes` says of `code.runtime` and the duration; without a price missing",
        ),
        (
            Named::LlmCostUsd,
            "llm_cost_usd",
            Kind::Number,
            "`llm.cost_usd`, `gen_ai.usage.cost` or `_signoz.gen_ai.total_cost`; else what `prices.models` says of the \
             model and its tokens; without a price missing",
        ),
    ];

    /// The notion of this word.
    pub fn from_word(word: &str) -> Option<Named> {
        Self::ALL.iter().find(|entry| entry.1 == word).map(|entry| entry.0)
    }

    /// The word under which rules use the notion.
    pub fn word(self) -> &'static str {
        self.entry().1
    }

    /// What the notion yields.
    pub fn kind(self) -> Kind {
        self.entry().2
    }

    fn entry(self) -> &'static (Named, &'static str, Kind, &'static str) {
        // Every notion is in the table: the test below holds it to that.
        Self::ALL.iter().find(|entry| entry.0 == self).unwrap_or(&Self::ALL[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notion_has_a_word_of_its_own() {
        for (named, word, kind, _) in Named::ALL {
            assert_eq!(Named::from_word(word), Some(named));
            assert_eq!(named.word(), word);
            assert_eq!(named.kind(), kind);
        }
        let all = [
            Named::SpanName,
            Named::SpanKind,
            Named::SpanStatus,
            Named::ScopeName,
            Named::DurationMs,
            Named::DurationSeconds,
            Named::ExecutionSpan,
            Named::Outcome(Executor::Code),
            Named::Outcome(Executor::E2b),
            Named::Outcome(Executor::Wasmedge),
            Named::Outcome(Executor::Bacalhau),
            Named::ToolSpan,
            Named::ToolId,
            Named::ToolOutcome,
            Named::ExitStatus,
            Named::ExecutionCostUsd,
            Named::LlmCostUsd,
        ];
        assert!(all.iter().all(|named| Named::ALL.iter().any(|entry| entry.0 == *named)));
    }
}
