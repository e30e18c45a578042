//! What executors do all day, as spans: every runtime, success and failure, time-outs, retries, tools, LLM calls.
//!
//! The shapes are those of real executors: no span is the parent of another, the tenant and the error text are on the
//! node's span, a run without a chosen runtime has a second, inner `code.execute` span, `0` and `""` occur, memory is
//! fractional, and a thrown exception leaves the status unset.

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::spans::{Draft, Ids, MILLISECOND, request};

const TOOLS: [&str; 5] = ["fetch-page", "resize_image", "sql/query", "send.mail", "summarize"];
const MODELS: [(&str, &str); 3] = [
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-sonnet"),
    ("google", "gemini-flash"),
];
const LANGUAGES: [&str; 4] = ["javascript", "python", "typescript", "bash"];
const ERRORS: [&str; 4] = [
    "ReferenceError: total is not defined",
    "ZeroDivisionError: division by zero",
    "ModuleNotFoundError: No module named 'pandas'",
    "SyntaxError: Unexpected end of input",
];

/// Makes requests for ever; the same seed and times give the same requests.
pub struct Scenarios {
    rng: Rng,
    /// The trace that the spans of the request at hand share, when they were made within a request of their own.
    trace: Option<u128>,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Success,
    /// The runtime said no; the status has no message, the node's span has the text.
    Failure,
    /// The code ran into its time limit.
    Timeout,
    /// Something threw; the status stays unset and an exception event remains.
    Thrown,
}

/// Who runs what.
struct Run {
    execution: String,
    node: String,
    workflow: String,
    organization: String,
    user: String,
    language: &'static str,
    now: u64,
}

impl Scenarios {
    /// Scenarios from a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            trace: None,
        }
    }

    /// The next request; its spans have ended just before `now` (Unix nanoseconds).
    pub fn next_request(&mut self, now: u64) -> ExportTraceServiceRequest {
        // In a worker each span is the root of a trace of its own; in a request of a web server all are of one trace.
        self.trace = if self.rng.u32(0..3) == 0 {
            None
        } else {
            Some(self.rng.u128(1..))
        };
        match self.rng.u32(0..100) {
            0..45 => self.workflow_node(now),
            45..55 => self.code_agent(now),
            55..80 => self.tool(now),
            80..92 => self.model_call(now),
            _ => self.connector_and_retrieval(now),
        }
    }

    fn ids(&mut self) -> Ids {
        // Zero would be an invalid id.
        let trace = self.trace.unwrap_or_else(|| self.rng.u128(1..));
        Ids {
            trace: trace.to_be_bytes(),
            span: self.rng.u64(1..).to_be_bytes(),
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())]
    }

    /// Long-tailed: most runs are quick, a few take seconds.
    fn milliseconds(&mut self, typical: f64) -> u64 {
        (typical * (-self.rng.f64().max(1e-9).ln()).powf(1.4)).clamp(1.0, 280_000.0) as u64
    }

    fn ending(&mut self) -> Ending {
        match self.rng.u32(0..100) {
            0..84 => Ending::Success,
            84..93 => Ending::Failure,
            93..96 => Ending::Timeout,
            _ => Ending::Thrown,
        }
    }

    fn run(&mut self, now: u64) -> Run {
        Run {
            execution: format!("cm{:x}", self.rng.u64(..)),
            node: format!("node_{}", self.rng.u32(1..12)),
            workflow: format!("wf_{}", self.rng.u32(1..6)),
            organization: format!("org-{}", self.rng.u32(1..4)),
            user: format!("user_{}", self.rng.u32(1..20)),
            language: self.pick(&LANGUAGES),
            now,
        }
    }

    /// A node of a workflow that runs code: once, or twice when the first attempt fails.
    fn workflow_node(&mut self, now: u64) -> ExportTraceServiceRequest {
        let run = self.run(now);
        let mut drafts = Vec::new();
        let ending = self.ending();
        let attempts = if ending != Ending::Success && self.rng.u32(0..3) == 0 {
            2
        } else {
            1
        };
        let mut end = now;
        let mut error = None;
        for attempt in (1..=attempts).rev() {
            let start = self.code_execution(&run, ending, end, &mut drafts);
            if ending != Ending::Success && attempt == attempts {
                error = Some(self.pick(&ERRORS));
            }
            end = start.saturating_sub(50 * MILLISECOND);
        }
        let node = Draft::new("sos-node-executor", "node.execute.action.code", self.ids(), end, now)
            .with("node.id", run.node.as_str())
            .with("node.type", "action.code")
            .with("workflow.id", run.workflow.as_str())
            .with("workflow.execution_id", run.execution.as_str())
            .with("node.retry.max_attempts", 3)
            .with("user.id", run.user.as_str())
            .with("organization.id", run.organization.as_str())
            .with("workspace.id", "ws-main")
            .with("node.attempts", i64::from(attempts))
            .with("node.latency_ms", ((now - end) / MILLISECOND) as i64)
            .with("node.status", if error.is_some() { "failed" } else { "completed" })
            .with_some("node.error", error);
        drafts.push(match error {
            Some(message) => node.error(message).exception("Error", message),
            None => node.ok(),
        });
        request("sos-backend", drafts)
    }

    /// The spans of one run of code, ended at `end`; gives its start.
    fn code_execution(&mut self, run: &Run, ending: Ending, end: u64, drafts: &mut Vec<Draft>) -> u64 {
        let runtime = match self.rng.u32(0..10) {
            0..4 => "auto",
            4 => "wasmedge",
            5 => "bacalhau",
            6..8 => "e2b",
            _ => "subprocess",
        };
        let limit = 30_000;
        let duration = if ending == Ending::Timeout {
            limit
        } else {
            self.milliseconds(40.0).min(limit - 1)
        };
        let start = end - duration * MILLISECOND;
        let reported = if runtime == "auto" { "vm2" } else { runtime };
        let outer = Draft::new("sos-code-executor", "code.execute", self.ids(), start, end);
        let outer = code_attributes(outer, run, reported, limit)
            .with("node.id", run.node.as_str())
            .with("workflow.id", run.workflow.as_str())
            .with("workflow.execution_id", run.execution.as_str())
            .with("security.namespace", run.organization.as_str());
        drafts.push(self.ended(outer, ending, duration));
        match runtime {
            "auto" => self.routed(run, start, end, duration, drafts),
            "e2b" | "wasmedge" | "bacalhau" => drafts.push(self.runtime_span(runtime, run, ending, start, end)),
            _ => {}
        }
        start
    }

    /// The normal or abnormal end of a `code.execute` span.
    fn ended(&mut self, span: Draft, ending: Ending, duration: u64) -> Draft {
        if ending == Ending::Thrown {
            return span.exception("Error", self.pick(&ERRORS));
        }
        let success = ending == Ending::Success;
        let memory = (success && self.rng.bool()).then(|| self.rng.f64() * 48.0);
        let validated = (self.rng.u32(0..4) == 0).then(|| self.rng.u32(0..8) != 0);
        let span = span
            .with("code.success", success)
            .with("code.has_error", !success)
            .with("code.duration_ms", duration as i64)
            .with_some("code.memory_mb", memory)
            .with_some("code.validation_passed", validated)
            .with("code.ai_generated", false);
        match ending {
            Ending::Timeout => span
                .with("error.type", "timeout")
                .error("Code execution timed out after 30000ms"),
            Ending::Success => span.ok(),
            _ => span.error(""),
        }
    }

    /// The router and the inner run that a run without a chosen runtime has.
    fn routed(&mut self, run: &Run, start: u64, end: u64, duration: u64, drafts: &mut Vec<Draft>) {
        let selected = if run.language == "javascript" || run.language == "typescript" {
            "vm2"
        } else {
            "subprocess"
        };
        let router = Draft::new(
            "sos-runtime-router",
            "runtimeRouter.route",
            self.ids(),
            start + 1,
            end - 1,
        )
        .with("runtime.language", run.language)
        .with("runtime.requested", "auto")
        .with("runtime.selected", selected)
        .with("runtime.reason", "auto_routed")
        .with("runtime.duration_ms", duration as i64)
        .with("runtime.success", true);
        drafts.push(router.ok());
        let inner = Draft::new("sos-code-executor", "code.execute", self.ids(), start + 2, end - 2);
        let inner = code_attributes(inner, run, selected, 30_000)
            .with("node.id", "code-execution")
            .with("workflow.id", "runtime-router")
            .with("workflow.execution_id", "")
            .with("security.namespace", "default")
            .with("code.success", true)
            .with("code.has_error", false)
            .with("code.duration_ms", duration as i64);
        drafts.push(inner.ok());
    }

    /// The span of a remote runtime.
    fn runtime_span(&mut self, runtime: &str, run: &Run, ending: Ending, start: u64, end: u64) -> Draft {
        let (scope, duration_key) = match runtime {
            "e2b" => ("sos-e2b-runtime", "e2b.duration_ms"),
            "wasmedge" => ("sos-wasmedge-runtime", "wasmedge.execution_time_ms"),
            _ => ("sos-bacalhau-runtime", "bacalhau.duration_ms"),
        };
        let key = |name: &str| format!("{runtime}.{name}");
        let span = Draft::new(
            scope,
            key("execute"),
            self.ids(),
            start + MILLISECOND / 2,
            end - MILLISECOND / 2,
        )
        .with(&key("language"), run.language)
        .with(&key("timeout"), 30_000)
        .with(&key("code_length"), self.rng.i64(20..4000))
        .with(&key("runtime"), runtime);
        let success = ending == Ending::Success;
        match ending {
            Ending::Success | Ending::Failure => {
                let exit_code = (runtime == "e2b").then_some(i64::from(!success));
                let span = span
                    .with(&key("success"), success)
                    .with_some("e2b.exit_code", exit_code)
                    .with(duration_key, ((end - start) / MILLISECOND) as i64);
                if success { span.ok() } else { span.error("") }
            }
            Ending::Timeout => span.error(&format!("{runtime} execution timed out after 30000ms")),
            Ending::Thrown => span.error("sandbox is gone").exception("Error", "sandbox is gone"),
        }
    }

    /// An agent that runs its own code.
    fn code_agent(&mut self, now: u64) -> ExportTraceServiceRequest {
        let mut run = self.run(now);
        run.workflow = format!("agent-agt_{}", self.rng.u32(1..8));
        run.node = "code-agent".into();
        run.execution = format!("agent-exec-{}", now / MILLISECOND);
        let ending = self.ending();
        let mut drafts = Vec::new();
        self.code_execution(&run, ending, run.now, &mut drafts);
        request("sos-backend", drafts)
    }

    /// A tool that runs under Bun.
    fn tool(&mut self, now: u64) -> ExportTraceServiceRequest {
        let kind = match self.rng.u32(0..100) {
            0..88 => None,
            88..92 => Some("timeout"),
            92..96 => Some("parse"),
            96..98 => Some("stdout"),
            _ => Some("wait"),
        };
        let duration = if kind == Some("timeout") {
            60_000
        } else {
            self.milliseconds(120.0)
        };
        let (exit_code, signal) = match kind {
            None | Some("parse" | "stdout") => (Some(0), None),
            Some("wait") if self.rng.bool() => (Some(-1), Some("killed")),
            Some("wait") => (Some(1), None),
            Some(_) => (None, None),
        };
        let start = now - duration * MILLISECOND;
        let span = Draft::new("compozy.runtime", "runtime.execute_tool", self.ids(), start, now)
            .with("tool_id", self.pick(&TOOLS))
            .with("timeout_ms", 60_000)
            .with("bun_version", "1.2.2")
            .with_some("error_kind", kind)
            .with_some("exit_code", exit_code)
            .with_some("signal", signal)
            .with("output_bytes", self.milliseconds(900.0) as i64);
        let span = if kind.is_some() {
            span.error("tool failed")
        } else {
            span.ok()
        };
        request("compozy", vec![span])
    }

    /// A call of a language model, and the agent that made it.
    fn model_call(&mut self, now: u64) -> ExportTraceServiceRequest {
        let run = self.run(now);
        let (provider, model) = self.pick(&MODELS);
        let latency = self.milliseconds(1400.0);
        let (input, output) = (self.rng.i64(50..6000), self.rng.i64(10..1500));
        let failed = self.rng.u32(0..25) == 0;
        let start = now - latency * MILLISECOND;
        let call = Draft::new("sos-llm-executor", "llm.generate", self.ids(), start, now)
            .with("llm.provider", provider)
            .with("llm.model", model)
            .with("node.id", run.node.as_str())
            .with("workflow.id", run.workflow.as_str())
            .with("workflow.execution_id", run.execution.as_str())
            .with("llm.latency_ms", latency as i64)
            .with("llm.status", if failed { "error" } else { "success" });
        let call = if failed {
            call.error("Rate limit exceeded")
        } else {
            let cost = (input as f64 * 0.15 + output as f64 * 0.6) / 1e6;
            call.with("llm.input_tokens", input)
                .with("llm.output_tokens", output)
                .with("llm.total_tokens", input + output)
                .with("llm.cost_usd", cost)
                .ok()
        };
        let agent = Draft::new("sos-agent-executor", "agent.execute", self.ids(), start, now)
            .with("agent.id", format!("{}-{}", run.workflow, run.node))
            .with("agent.framework", "langchain")
            .with("agent.status", if failed { "error" } else { "success" })
            .with("agent.latency_ms", latency as i64)
            .with("agent.tokens_used", input + output)
            .with("agent.iterations", self.rng.i64(1..6));
        let agent = if failed {
            agent.error("Rate limit exceeded")
        } else {
            agent.ok()
        };
        request("sos-backend", vec![call, agent])
    }

    /// A connector and a retrieval.
    fn connector_and_retrieval(&mut self, now: u64) -> ExportTraceServiceRequest {
        let latency = self.milliseconds(200.0);
        let start = now - latency * MILLISECOND;
        let connector = Draft::new("sos-connector-executor", "connector.execute", self.ids(), start, now)
            .with("connector.id", self.pick(&["slack", "github", "gmail"]))
            .with("connector.action", self.pick(&["send", "list", "create"]))
            .with("connector.status", "success")
            .with("connector.latency_ms", latency as i64);
        let retrieval = Draft::new("sos-rag-executor", "rag.execute", self.ids(), start, now)
            .with("rag.vector_store_provider", "pinecone")
            .with("rag.status", "success")
            .with("rag.latency_ms", latency as i64)
            .with("rag.sources_found", self.rng.i64(0..12));
        request("sos-backend", vec![connector.ok(), retrieval.ok()])
    }
}

fn code_attributes(span: Draft, run: &Run, runtime: &str, limit: u64) -> Draft {
    span.with("code.language", run.language)
        .with("code.runtime", runtime)
        .with("code.has_input_schema", false)
        .with("code.packages_count", 0)
        .with("code.timeout_ms", limit as i64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_traffic_with_every_kind_of_span() {
        let now = 1_800_000_000_000_000_000;
        let (mut first, mut second) = (Scenarios::new(7), Scenarios::new(7));
        let mut names = HashSet::new();
        for _ in 0..400 {
            let request = first.next_request(now);
            assert_eq!(request, second.next_request(now));
            for group in request.resource_spans.iter().flat_map(|resource| &resource.scope_spans) {
                for span in &group.spans {
                    assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
                    names.insert(span.name.clone());
                }
            }
        }
        for name in [
            "code.execute",
            "e2b.execute",
            "wasmedge.execute",
            "bacalhau.execute",
            "runtimeRouter.route",
            "node.execute.action.code",
            "runtime.execute_tool",
            "llm.generate",
            "agent.execute",
            "connector.execute",
            "rag.execute",
        ] {
            assert!(names.contains(name), "{name} is missing from {names:?}");
        }
    }
}
