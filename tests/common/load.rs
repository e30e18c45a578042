//! Deterministic traffic: every request follows from a seed and its number, and so do its rows and metrics.

use super::prometheus::Expected;
use super::rows::Row;
use super::spans;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::json;

/// What lies between the ids of two requests; more than a request has spans.
const SPANS: u64 = 64;

/// The traffic of one test.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    seed: u64,
    base_unix_ms: u64,
}

/// One request and everything that must follow from it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The request: one to eight executions, and as many tool runs at most.
    pub request: ExportTraceServiceRequest,
    /// Rows, by id.
    pub rows: Vec<Row>,
    /// Derived metrics.
    pub series: Expected,
    /// `<trace id>-<span id>` of every span.
    pub spans: Vec<String>,
}

impl Load {
    /// Traffic from a seed. All its spans lie in the last hour.
    pub fn new(random: &mut fastrand::Rng) -> Load {
        Load {
            seed: random.u64(..),
            base_unix_ms: super::unix_ms_ago(std::time::Duration::from_secs(1800)),
        }
    }

    /// The number of the request that a span or row of this traffic belongs to.
    pub fn number(&self, id: &str) -> Option<u64> {
        let rest = id.strip_prefix(&format!("{:016x}", self.seed))?;
        Some(u64::from_str_radix(rest.get(..16)?, 16).ok()? / SPANS)
    }

    /// The request of a number.
    pub fn request(&self, number: u64) -> Planned {
        let mut random = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut planned = Planned {
            request: ExportTraceServiceRequest::default(),
            rows: Vec::new(),
            series: Expected::default(),
            spans: Vec::new(),
        };
        let executions = random.u64(1..=8);
        let tools = random.u64(0..=2);
        let mut all = Vec::new();
        for index in 0..executions + tools {
            // Unlike each other and unlike those of every other test, in trace and span id both.
            let mut span = Span {
                trace_id: [self.seed.to_be_bytes(), (number * SPANS + index).to_be_bytes()].concat(),
                span_id: (self.seed.rotate_left(32) ^ (number * SPANS + index))
                    .max(1)
                    .to_be_bytes()
                    .to_vec(),
                flags: 0x101,
                kind: 1,
                start_time_unix_nano: (self.base_unix_ms + number % 600_000) * 1_000_000,
                ..Default::default()
            };
            if index < executions {
                planned.execution(&mut random, &mut span, number);
                all.push(("sos-code-executor".to_owned(), span.clone()));
            } else {
                planned.tool(&mut random, &mut span);
                all.push(("compozy.runtime".to_owned(), span.clone()));
            }
            planned.spans.push(spans::id(&span));
        }
        let resource =
            spans::attributes(&json!({"service.name": "load", "process.command_args": ["node", "index.js"]}));
        planned.request = spans::request(resource, all);
        planned.rows.sort();
        planned
    }
}

impl Planned {
    fn execution(&mut self, random: &mut fastrand::Rng, span: &mut Span, number: u64) {
        let runtime = ["vm2", "subprocess", "e2b", "wasmedge"][random.usize(..4)];
        let language = ["javascript", "python", "typescript", "bash"][random.usize(..4)];
        let duration_ms = random.u32(1..20_000);
        let memory_mb = random.u32(0..512);
        let outcome = ["success", "success", "success", "error", "timeout"][random.usize(..5)];
        let (workflow_execution_id, node_id) = (format!("clx{number:020}"), format!("node-{}", random.u8(..)));
        let mut attributes = json!({
            "code.language": language, "code.runtime": runtime, "code.timeout_ms": 30000, "code.duration_ms": duration_ms,
            "code.memory_mb": memory_mb, "code.success": outcome == "success", "code.has_error": outcome != "success",
            "workflow.id": "wf-load", "workflow.execution_id": workflow_execution_id, "node.id": node_id,
            "organization.id": "org-load", "workspace.id": "ws-load", "user.id": "user-load",
        });
        let exit_code = (outcome == "error").then(|| random.i64(1..=127));
        if let Some(code) = exit_code {
            attributes["code.exit_code"] = code.into();
        }
        span.name = "code.execute".to_owned();
        span.end_time_unix_nano = span.start_time_unix_nano + u64::from(duration_ms) * 1_000_000 + 250_000;
        span.attributes = spans::attributes(&attributes);
        let message = match outcome {
            "success" => String::new(),
            "timeout" => format!("Execution timed out after {duration_ms}ms"),
            _ => format!("exit status {}", exit_code.unwrap()),
        };
        span.status = Some(Status {
            code: if outcome == "success" { 1 } else { 2 },
            message: message.clone(),
        });

        let labels = |more: &[(&str, &str)]| {
            let all = [("runtime", runtime), ("language", language)]
                .into_iter()
                .chain(more.iter().copied());
            all.map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect::<Vec<_>>()
        };
        self.series
            .add("code_executions_total", labels(&[("outcome", outcome)]), 1.0);
        self.series
            .add("code_duration_ms", labels(&[("outcome", outcome)]), duration_ms.into());
        self.series.add("code_memory_mb", labels(&[]), memory_mb.into());
        if let Some(code) = exit_code {
            self.series
                .add("code_exit_code_total", labels(&[("exit_code", &code.to_string())]), 1.0);
        }
        self.rows.push(Row {
            id: spans::id(span),
            workflow_execution_id: Some(workflow_execution_id),
            node_id: Some(node_id),
            runtime: runtime.to_owned(),
            language: language.to_owned(),
            duration_ms: Some(duration_ms.into()),
            memory_mb: Some(memory_mb.into()),
            exit_code,
            success: outcome == "success",
            error_message: (outcome != "success").then_some(message),
            organization_id: Some("org-load".to_owned()),
            workspace_id: Some("ws-load".to_owned()),
            user_id: Some("user-load".to_owned()),
            created_at: i64::try_from(span.end_time_unix_nano / 1_000).unwrap(),
            ..Row::default()
        });
    }

    fn tool(&mut self, random: &mut fastrand::Rng, span: &mut Span) {
        let tool_id = ["weather", "search", "report"][random.usize(..3)];
        let milliseconds = random.u32(1..40_000);
        let output_bytes = random.u32(..20_000_000);
        let killed = random.u8(..4) == 0;
        let mut attributes = json!({"tool_id": tool_id, "output_bytes": output_bytes});
        if killed {
            attributes["error_kind"] = "wait".into();
            attributes["exit_code"] = (-1).into();
            attributes["signal"] = "terminated".into();
        } else {
            attributes["exit_code"] = 0.into();
        }
        span.name = "runtime.execute_tool".to_owned();
        span.end_time_unix_nano = span.start_time_unix_nano + u64::from(milliseconds) * 1_000_000;
        span.attributes = spans::attributes(&attributes);
        span.status = Some(Status {
            code: if killed { 2 } else { 1 },
            ..Default::default()
        });

        let mut add = |name: &str, labels: &[(&str, &str)], value: f64| {
            let labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            self.series.add(name, labels, value);
        };
        let outcome = if killed { "error" } else { "success" };
        add(
            "runtime_tool_execute_seconds",
            &[("tool_id", tool_id), ("outcome", outcome)],
            f64::from(milliseconds) / 1_000.0,
        );
        add(
            "runtime_tool_output_bytes",
            &[("tool_id", tool_id)],
            output_bytes.into(),
        );
        let (status, code, signal) = if killed {
            ("signal", "-1", "SIGTERM")
        } else {
            ("exit", "0", "")
        };
        add(
            "runtime_bun_process_exits_total",
            &[("status", status), ("code", code), ("signal", signal)],
            1.0,
        );
        if killed {
            add(
                "runtime_tool_errors_total",
                &[("tool_id", tool_id), ("error_kind", "wait")],
                1.0,
            );
        }
    }
}
