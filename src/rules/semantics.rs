//! What spans mean: executions, tool calls, success, outcome. Pure functions, the one place where these notions are
//! defined; metrics and rows both come from here, so that they cannot disagree.
//!
//! Values that an executor does not know are written as an empty text as often as they are left out; a caller passes
//! `None` for both.

/// The vocabulary in which a span speaks of what it executed: `code.success`, `e2b.success`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Executor {
    /// `code.*`: the executor itself.
    Code,
    /// `e2b.*`: the E2B runtime.
    E2b,
    /// `wasmedge.*`: the WasmEdge runtime.
    Wasmedge,
    /// `bacalhau.*`: the Bacalhau runtime.
    Bacalhau,
}

/// The attribute keys of one [`Executor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutorKeys {
    /// Boolean: whether the run succeeded.
    pub success: &'static str,
    /// Boolean: whether the run failed.
    pub has_error: &'static str,
    /// Exit code of the process.
    pub exit_code: &'static str,
    /// How long the run took, in milliseconds.
    pub duration_ms: &'static str,
    /// How long the run was allowed to take, in milliseconds.
    pub timeout_ms: &'static str,
}

impl Executor {
    /// All vocabularies.
    pub const ALL: [Executor; 4] = [Executor::Code, Executor::E2b, Executor::Wasmedge, Executor::Bacalhau];

    /// The attribute keys of this vocabulary.
    pub fn keys(self) -> &'static ExecutorKeys {
        match self {
            Executor::Code => &ExecutorKeys {
                success: "code.success",
                has_error: "code.has_error",
                exit_code: "code.exit_code",
                duration_ms: "code.duration_ms",
                timeout_ms: "code.timeout_ms",
            },
            Executor::E2b => &ExecutorKeys {
                success: "e2b.success",
                has_error: "e2b.has_error",
                exit_code: "e2b.exit_code",
                duration_ms: "e2b.duration_ms",
                timeout_ms: "e2b.timeout",
            },
            Executor::Wasmedge => &ExecutorKeys {
                success: "wasmedge.success",
                has_error: "wasmedge.has_error",
                exit_code: "wasmedge.exit_code",
                duration_ms: "wasmedge.execution_time_ms",
                timeout_ms: "wasmedge.timeout",
            },
            Executor::Bacalhau => &ExecutorKeys {
                success: "bacalhau.success",
                has_error: "bacalhau.has_error",
                exit_code: "bacalhau.exit_code",
                duration_ms: "bacalhau.duration_ms",
                timeout_ms: "bacalhau.timeout",
            },
        }
    }
}

/// A span with at least one of these attributes is an execution. Never just any `code.*`: `code.function.name` and its
/// kin are standard attributes of ordinary spans.
pub const EXECUTION_MARKS: [&str; 4] = [CODE_RUNTIME, "code.success", "code.exit_code", "code.duration_ms"];

/// The runtime that an execution's own span names.
pub const CODE_RUNTIME: &str = "code.runtime";

/// What an execution's own span says that it cost, in US dollars.
pub const CODE_COST: &str = "code.cost_usd";

/// What the span of a model call says that it cost, in US dollars, best first.
pub const LLM_COSTS: [&str; 3] = ["llm.cost_usd", "gen_ai.usage.cost", "_signoz.gen_ai.total_cost"];

/// The model that was called.
pub const LLM_MODELS: [&str; 3] = ["llm.model", "gen_ai.request.model", "gen_ai.response.model"];

/// Tokens of the prompt.
pub const LLM_INPUT_TOKENS: [&str; 3] = [
    "llm.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
];

/// Tokens of the answer.
pub const LLM_OUTPUT_TOKENS: [&str; 3] = [
    "llm.output_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
];

/// Tokens of the prompt that came from a cache.
pub const LLM_CACHE_READ_TOKENS: [&str; 2] = [
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
];

/// Tokens of the prompt that went into a cache.
pub const LLM_CACHE_WRITE_TOKENS: [&str; 2] = [
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
];

/// The attributes that tell the second span of a run.
pub const WORKFLOW_ID: &str = "workflow.id";
/// See [`WORKFLOW_ID`].
pub const NODE_ID: &str = "node.id";

/// Where the kind of an error is found, on executions and tool calls alike.
pub const ERROR_TYPE: &str = "error.type";
/// See [`ERROR_TYPE`].
pub const ERROR_KIND: &str = "error_kind";

/// A span with one of these attributes, even an empty one, is a tool call; the first that is given names the tool.
pub const TOOL_IDS: [&str; 3] = ["tool_id", "tool.id", "runtime.tool_id"];

/// Names the tool on spans whose [`GEN_AI_OPERATION`] is [`GEN_AI_EXECUTE_TOOL`].
pub const GEN_AI_TOOL_NAME: &str = "gen_ai.tool.name";
/// See [`GEN_AI_TOOL_NAME`].
pub const GEN_AI_OPERATION: &str = "gen_ai.operation.name";
/// See [`GEN_AI_TOOL_NAME`].
pub const GEN_AI_EXECUTE_TOOL: &str = "execute_tool";

/// How a tool call ended, in the words of the sender.
pub const TOOL_OUTCOME: &str = "outcome";

/// The signal that ended the process of a tool.
pub const TOOL_SIGNAL: &str = "signal";

/// The name of an exception event, and the attribute of its message.
pub const EXCEPTION_EVENT: &str = "exception";
/// See [`EXCEPTION_EVENT`].
pub const EXCEPTION_MESSAGE: &str = "exception.message";

/// Whether these ids are those of the second span of a run: the router executing what another span already stands for.
pub fn is_second_span<T: AsRef<[u8]>>(workflow_id: Option<T>, node_id: Option<T>) -> bool {
    workflow_id.is_some_and(|id| id.as_ref() == b"runtime-router")
        && node_id.is_some_and(|id| id.as_ref() == b"code-execution")
}

/// Whether a span is an execution: it has one of [`EXECUTION_MARKS`] and is not the second span of a run.
pub fn is_execution_span<T: AsRef<[u8]>>(has_mark: bool, workflow_id: Option<T>, node_id: Option<T>) -> bool {
    has_mark && !is_second_span(workflow_id, node_id)
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It did what it should.
    Success,
    /// It failed.
    Error,
    /// It was not done in time.
    Timeout,
}

impl Outcome {
    /// `success`, `error`, `timeout`.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Error => "error",
            Outcome::Timeout => "timeout",
        }
    }

    /// Reads an outcome that a sender wrote, in whichever of the usual words.
    pub fn from_text(text: &str) -> Option<Outcome> {
        const WORDS: [(Outcome, &[&str]); 3] = [
            (
                Outcome::Success,
                &["success", "ok", "succeeded", "successful", "completed"],
            ),
            (Outcome::Error, &["error", "failed", "failure", "fail"]),
            (Outcome::Timeout, &["timeout", "timed_out", "timedout", "timed out"]),
        ];
        let means = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        WORDS
            .iter()
            .find(|(_, words)| means(words))
            .map(|(outcome, _)| *outcome)
    }
}

/// The status of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SpanStatus {
    /// The instrumentation said nothing.
    #[default]
    Unset,
    /// The instrumentation said that it went well.
    Ok,
    /// The instrumentation said that it failed.
    Error,
}

impl SpanStatus {
    /// From the number on the wire; numbers that are not defined mean nothing.
    pub fn from_code(code: i32) -> SpanStatus {
        match code {
            1 => SpanStatus::Ok,
            2 => SpanStatus::Error,
            _ => SpanStatus::Unset,
        }
    }

    /// `unset`, `ok`, `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            SpanStatus::Unset => "unset",
            SpanStatus::Ok => "ok",
            SpanStatus::Error => "error",
        }
    }
}

/// The kind of a span in lower case, from the number on the wire.
pub fn span_kind(kind: i32) -> &'static str {
    match kind {
        1 => "internal",
        2 => "server",
        3 => "client",
        4 => "producer",
        5 => "consumer",
        _ => "unspecified",
    }
}

/// What a span says about the run of a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run<'a> {
    /// [`ExecutorKeys::success`].
    pub success: Option<bool>,
    /// [`ExecutorKeys::has_error`].
    pub has_error: Option<bool>,
    /// [`ExecutorKeys::exit_code`].
    pub exit_code: Option<i64>,
    /// [`ExecutorKeys::duration_ms`], else end minus start.
    pub duration_ms: Option<f64>,
    /// [`ExecutorKeys::timeout_ms`].
    pub timeout_ms: Option<f64>,
    /// [`ERROR_TYPE`].
    pub error_type: Option<&'a str>,
    /// [`ERROR_KIND`].
    pub error_kind: Option<&'a str>,
    /// Status of the span.
    pub status: SpanStatus,
    /// Message of the status.
    pub status_message: &'a str,
    /// Whether the span has an exception event.
    pub has_exception: bool,
    /// Whether the message of one of its exception events [says](says_timed_out) that the run timed out.
    pub exception_timed_out: bool,
}

impl Run<'_> {
    /// The rule for `success`: what the executor says itself, else the status, else the absence of signs of failure.
    pub fn success(&self) -> bool {
        if let Some(success) = self.success {
            return success;
        }
        if let Some(has_error) = self.has_error {
            return !has_error;
        }
        match self.status {
            SpanStatus::Ok => true,
            SpanStatus::Error => false,
            SpanStatus::Unset => !self.has_exception && self.exit_code.unwrap_or(0) == 0,
        }
    }

    /// How the run ended.
    pub fn outcome(&self) -> Outcome {
        let named_so = self.error_type.is_some_and(is_timeout_kind) || self.error_kind.is_some_and(is_timeout_kind);
        if named_so || self.exception_timed_out || says_timed_out(self.status_message) {
            return Outcome::Timeout;
        }
        if self.success() {
            return Outcome::Success;
        }
        match (self.duration_ms, self.timeout_ms) {
            // A time-out of 0 means none.
            (Some(ran), Some(allowed)) if allowed > 0.0 && ran >= allowed => Outcome::Timeout,
            _ => Outcome::Error,
        }
    }
}

/// What a span says about a tool call.
#[derive(Debug, Clone, Copy, Default)]
pub struct ToolCall<'a> {
    /// The attribute `outcome`.
    pub outcome: Option<&'a str>,
    /// [`ERROR_KIND`].
    pub error_kind: Option<&'a str>,
    /// [`ERROR_TYPE`].
    pub error_type: Option<&'a str>,
    /// Status of the span.
    pub status: SpanStatus,
}

impl ToolCall<'_> {
    /// How the call ended. An `outcome` in no known word is as good as none.
    pub fn outcome(&self) -> Outcome {
        if let Some(outcome) = self.outcome.and_then(Outcome::from_text) {
            return outcome;
        }
        if self.error_kind.is_some_and(is_timeout_kind) || self.error_type.is_some_and(is_timeout_kind) {
            return Outcome::Timeout;
        }
        if self.status == SpanStatus::Error || self.error_kind.is_some() {
            return Outcome::Error;
        }
        Outcome::Success
    }
}

/// Whether the kind of an error means a time-out, in the spellings of the usual runtimes: `timeout`, `TimeoutError`,
/// `ETIMEDOUT`, `DEADLINE_EXCEEDED`, `context deadline exceeded`.
pub fn is_timeout_kind(kind: &str) -> bool {
    const SPELLINGS: [&str; 6] = [
        "timeout",
        "timedout",
        "timed_out",
        "deadline_exceeded",
        "deadlineexceeded",
        "deadline exceeded",
    ];
    says_timed_out(kind) || SPELLINGS.iter().any(|spelling| contains_ignoring_case(kind, spelling))
}

/// Whether a message says that something timed out.
pub fn says_timed_out(message: &str) -> bool {
    contains_ignoring_case(message, "timed out")
}

/// `needle` is ASCII in lower case.
fn contains_ignoring_case(text: &str, needle: &str) -> bool {
    let (text, needle) = (text.as_bytes(), needle.as_bytes());
    text.windows(needle.len())
        .any(|window| window.eq_ignore_ascii_case(needle))
}

/// Milliseconds between two times of a span, or nothing if either is missing. A clock that went backwards gives 0.
pub fn duration_ms(start_unix_nano: u64, end_unix_nano: u64) -> Option<f64> {
    duration_nanos(start_unix_nano, end_unix_nano).map(|nanos| nanos / 1e6)
}

/// The same in seconds.
pub fn duration_seconds(start_unix_nano: u64, end_unix_nano: u64) -> Option<f64> {
    duration_nanos(start_unix_nano, end_unix_nano).map(|nanos| nanos / 1e9)
}

fn duration_nanos(start_unix_nano: u64, end_unix_nano: u64) -> Option<f64> {
    let both = start_unix_nano != 0 && end_unix_nano != 0;
    both.then(|| end_unix_nano.saturating_sub(start_unix_nano) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_what_the_executor_says_before_what_the_status_says() {
        let said = Run {
            success: Some(true),
            has_error: Some(true),
            status: SpanStatus::Error,
            ..Run::default()
        };
        assert!(said.success());
        assert!(!Run { success: None, ..said }.success());
        let has_error = Run {
            has_error: Some(false),
            status: SpanStatus::Error,
            ..Run::default()
        };
        assert!(has_error.success());
        assert!(
            !Run {
                has_error: None,
                ..has_error
            }
            .success()
        );
    }

    #[test]
    fn a_run_without_a_word_succeeded_unless_it_threw_or_exited_with_a_code() {
        assert!(Run::default().success());
        assert!(
            Run {
                exit_code: Some(0),
                ..Run::default()
            }
            .success()
        );
        assert!(
            !Run {
                exit_code: Some(1),
                ..Run::default()
            }
            .success()
        );
        assert!(
            !Run {
                has_exception: true,
                ..Run::default()
            }
            .success()
        );
        let ok = Run {
            status: SpanStatus::Ok,
            has_exception: true,
            exit_code: Some(3),
            ..Run::default()
        };
        assert!(ok.success());
    }

    #[test]
    fn a_run_timed_out_if_anything_says_so_or_if_it_failed_at_its_limit() {
        for kind in [
            "timeout",
            "TimeoutError",
            "ETIMEDOUT",
            "DEADLINE_EXCEEDED",
            "context deadline exceeded",
        ] {
            let run = Run {
                error_type: Some(kind),
                ..Run::default()
            };
            assert_eq!(run.outcome(), Outcome::Timeout, "{kind}");
            let run = Run {
                error_kind: Some(kind),
                ..Run::default()
            };
            assert_eq!(run.outcome(), Outcome::Timeout, "{kind}");
        }
        let message = Run {
            status_message: "E2B execution Timed out after 5ms",
            ..Run::default()
        };
        assert_eq!(message.outcome(), Outcome::Timeout);
        assert_eq!(
            Run {
                exception_timed_out: true,
                ..Run::default()
            }
            .outcome(),
            Outcome::Timeout
        );

        let limit = Run {
            success: Some(false),
            duration_ms: Some(1000.0),
            timeout_ms: Some(1000.0),
            ..Run::default()
        };
        assert_eq!(limit.outcome(), Outcome::Timeout);
        assert_eq!(
            Run {
                duration_ms: Some(999.0),
                ..limit
            }
            .outcome(),
            Outcome::Error
        );
        assert_eq!(
            Run {
                timeout_ms: Some(0.0),
                ..limit
            }
            .outcome(),
            Outcome::Error
        );
        assert_eq!(
            Run {
                timeout_ms: None,
                ..limit
            }
            .outcome(),
            Outcome::Error
        );
        assert_eq!(
            Run {
                success: Some(true),
                ..limit
            }
            .outcome(),
            Outcome::Success
        );
    }

    #[test]
    fn a_tool_call_ended_as_its_outcome_says_else_as_its_error_says() {
        let call = ToolCall::default();
        assert_eq!(call.outcome(), Outcome::Success);
        assert_eq!(
            ToolCall {
                outcome: Some("Timeout"),
                ..call
            }
            .outcome(),
            Outcome::Timeout
        );
        assert_eq!(
            ToolCall {
                outcome: Some("failed"),
                ..call
            }
            .outcome(),
            Outcome::Error
        );
        let stderr = ToolCall {
            error_kind: Some("stderr"),
            ..call
        };
        assert_eq!(stderr.outcome(), Outcome::Error);
        assert_eq!(
            ToolCall {
                outcome: Some("success"),
                ..stderr
            }
            .outcome(),
            Outcome::Success
        );
        assert_eq!(
            ToolCall {
                error_kind: Some("timeout"),
                ..call
            }
            .outcome(),
            Outcome::Timeout
        );
        assert_eq!(
            ToolCall {
                error_type: Some("timeout"),
                ..call
            }
            .outcome(),
            Outcome::Timeout
        );
        assert_eq!(
            ToolCall {
                error_type: Some("ENOENT"),
                ..call
            }
            .outcome(),
            Outcome::Success
        );
        assert_eq!(
            ToolCall {
                status: SpanStatus::Error,
                ..call
            }
            .outcome(),
            Outcome::Error
        );
        assert_eq!(
            ToolCall {
                outcome: Some("purple"),
                status: SpanStatus::Error,
                ..call
            }
            .outcome(),
            Outcome::Error
        );
    }

    #[test]
    fn an_execution_has_a_mark_and_is_not_the_second_span_of_a_run() {
        assert!(is_execution_span(true, None::<&str>, None));
        assert!(is_execution_span(true, Some("runtime-router"), Some("n1")));
        assert!(!is_execution_span(true, Some("runtime-router"), Some("code-execution")));
        assert!(!is_execution_span(false, Some("w"), Some("n")));
    }

    #[test]
    fn a_duration_needs_both_times_and_is_never_negative() {
        assert_eq!(duration_ms(1_000_000, 3_500_000), Some(2.5));
        assert_eq!(duration_ms(3, 2), Some(0.0));
        assert_eq!(duration_ms(0, 2), None);
        assert_eq!(duration_ms(2, 0), None);
    }
}
