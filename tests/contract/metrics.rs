//! Every derived metric of the documentation, worked out by hand, against complete scrapes.

use crate::common::http::Http;
use crate::common::program::{Program, Setup};
use crate::common::prometheus::{Expected, Scrape, Series};
use crate::common::send::{ROUTES, Route, Sender};
use crate::common::{random, spans};
use crate::executors::*;
use crate::story::{Draft, Sent, Story, request};
use http::Request;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What one span adds to a metric: the name, the labels as `a=b,c=d`, and how much.
type Adds = (&'static str, String, f64);

/// Spans, and what each adds.
struct Table {
    story: Story,
    adds: Vec<(String, Vec<Adds>)>,
}

impl Table {
    fn new(random: &mut fastrand::Rng) -> Table {
        let mut story = Story::new(random);
        story.one_trace = false;
        Table {
            story,
            adds: Vec::new(),
        }
    }

    fn span(&mut self, draft: Draft, adds: &[(&'static str, &str, f64)]) {
        let id = self.story.send(draft);
        let adds = adds
            .iter()
            .map(|(name, labels, value)| (*name, (*labels).to_owned(), *value))
            .collect();
        self.adds.push((id, adds));
    }

    /// An execution that adds one to its counter and its duration to its histogram.
    fn execution(&mut self, draft: Draft, labels: &str, duration_ms: f64) {
        self.execution_with(draft, labels, duration_ms, &[]);
    }

    fn execution_with(&mut self, draft: Draft, labels: &str, ms: f64, more: &[(&'static str, &str, f64)]) {
        let mut adds = vec![("code_executions_total", labels, 1.0), ("code_duration_ms", labels, ms)];
        adds.extend(more);
        self.span(draft, &adds);
    }

    /// The series that there must be.
    fn expected(&self) -> Scrape {
        let mut expected = Expected::default();
        for (name, labels, value) in self.adds.iter().flat_map(|(_, adds)| adds) {
            expected.add(name, pairs(labels), *value);
        }
        expected.series()
    }
}

fn pairs(labels: &str) -> Vec<(String, String)> {
    labels
        .split(',')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A bare execution span: no ids, these attributes.
fn run(attributes: Value, ms: i64) -> Draft {
    Draft::new("sos-code-executor", "code.execute", 0, ms).with(attributes)
}

fn executions(t: &mut Table) {
    // Ordinary ends, with durations on, below and above the bounds of buckets.
    let success = "runtime=vm2,language=javascript,outcome=success";
    let of = "runtime=vm2,language=javascript";
    let full = execution("javascript", 0, 1).with(json!({
        "code.memory_mb": 0.2143, "code.tokens_used": 150, "code.exit_code": 0, "code.validation_passed": true,
    }));
    t.execution_with(
        full,
        success,
        1.0,
        &[
            ("code_memory_mb", of, 0.2143),
            ("code_tokens_used_total", of, 150.0),
            (
                "code_exit_code_total",
                "runtime=vm2,language=javascript,exit_code=0",
                1.0,
            ),
            (
                "code_validation_total",
                "runtime=vm2,language=javascript,passed=true",
                1.0,
            ),
        ],
    );
    let again = execution("javascript", 0, 1).with(json!({
        "code.duration_ms": 1.5, "code.memory_mb": 8_192, "code.tokens_used": 50, "code.exit_code": 0.0,
        "code.validation_passed": true,
    }));
    t.execution_with(
        again,
        success,
        1.5,
        &[
            ("code_memory_mb", of, 8_192.0),
            ("code_tokens_used_total", of, 50.0),
            (
                "code_exit_code_total",
                "runtime=vm2,language=javascript,exit_code=0",
                1.0,
            ),
            (
                "code_validation_total",
                "runtime=vm2,language=javascript,passed=true",
                1.0,
            ),
        ],
    );
    for ms in [0, 5, 300_000, 300_001] {
        t.execution(
            execution("javascript", 0, 1).with(json!({"code.duration_ms": ms})),
            success,
            ms as f64,
        );
    }
    t.execution_with(
        execution("javascript", 0, 7).with(json!({"code.memory_mb": 8_193, "code.tokens_used": 0})),
        success,
        7.0,
        &[("code_memory_mb", of, 8_193.0), ("code_tokens_used_total", of, 0.0)],
    );
    // A number is a number in whatever form; the duration is that of the span when it is not said.
    let text = json!({
        "code.duration_ms": "12.5", "code.memory_mb": "4", "code.tokens_used": "10", "code.exit_code": "3",
        "code.validation_passed": false,
    });
    t.execution_with(
        execution("javascript", 0, 1).with(text),
        success,
        12.5,
        &[
            ("code_memory_mb", of, 4.0),
            ("code_tokens_used_total", of, 10.0),
            (
                "code_exit_code_total",
                "runtime=vm2,language=javascript,exit_code=3",
                1.0,
            ),
            (
                "code_validation_total",
                "runtime=vm2,language=javascript,passed=false",
                1.0,
            ),
        ],
    );
    t.execution(
        execution("javascript", 0, 42).with(json!({"code.duration_ms": "soon"})),
        success,
        42.0,
    );
    t.execution(
        run(json!({"code.runtime": "vm2", "code.language": "javascript"}), 43),
        success,
        43.0,
    );

    // Labels that are missing, empty, or anything at all.
    let unknown = "runtime=unknown,language=unknown,outcome=success";
    t.execution(run(json!({"code.success": true}), 2), unknown, 2.0);
    t.execution(
        run(
            json!({"code.runtime": "", "code.language": "", "code.success": true}),
            2,
        ),
        unknown,
        2.0,
    );
    let odd = json!({"code.runtime": "node \"18\"\\", "code.language": "日本"});
    t.execution(run(odd, 2), "runtime=node \"18\"\\,language=日本,outcome=success", 2.0);
    t.execution_with(
        run(json!({"code.exit_code": -1}), 2),
        "runtime=unknown,language=unknown,outcome=error",
        2.0,
        &[(
            "code_exit_code_total",
            "runtime=unknown,language=unknown,exit_code=-1",
            1.0,
        )],
    );

    // The label is what the span says, although the row learns better.
    let auto = "runtime=vm2,language=python,outcome=success";
    t.execution(
        code(&Caller::tool(), "python", "vm2", 0, 400)
            .finished(true, 390)
            .routed("vm2", "auto"),
        auto,
        390.0,
    );
    t.span(route("python", "auto", "subprocess", true, 2, 380), &[]);
    t.span(inner("python", "subprocess", true, 5, 370), &[]);
    // Ordinary spans of any code.
    let ordinary = json!({
        "code.function.name": "handler", "code.file.path": "/app/index.js", "code.line.number": 3,
        "code.language": "python", "code.memory_mb": 5, "code.tokens_used": 6, "code.validation_passed": true,
    });
    t.span(Draft::new("http", "GET /", 0, 10).with(ordinary).ok(), &[]);
    t.span(
        Draft::new("sos-security-config", "securityConfig.getSecurityConfig", 0, 1).ok(),
        &[],
    );
}

fn outcomes(t: &mut Table) {
    let mut case = |draft: Draft, outcome: &str, ms: f64| {
        t.execution(draft, &format!("runtime=r,language=l,outcome={outcome}"), ms);
    };
    let of = |more: Value| run(json!({"code.runtime": "r", "code.language": "l"}), 20).with(more);
    let limit = json!({"code.timeout_ms": 30_000});
    // By the rule for `success` of the rows.
    case(of(json!({"code.success": true})).failed(""), "success", 20.0);
    case(of(json!({"code.has_error": false})).failed(""), "success", 20.0);
    case(of(json!({})).ok(), "success", 20.0);
    case(of(json!({})), "success", 20.0);
    case(of(json!({"code.success": false})).ok(), "error", 20.0);
    case(of(json!({"code.has_error": true})).ok(), "error", 20.0);
    case(of(limit.clone()).failed("Code is required"), "error", 20.0);
    case(
        of(limit.clone()).exception("TypeError", "x is undefined"),
        "error",
        20.0,
    );
    // Time-outs.
    case(of(json!({"error.type": "timeout"})).failed("aborted"), "timeout", 20.0);
    case(of(json!({"error_kind": "timeout"})).failed("aborted"), "timeout", 20.0);
    case(
        of(json!({"error.type": "timeout", "code.success": true})),
        "timeout",
        20.0,
    );
    case(of(json!({"error.type": "TypeError"})).failed("aborted"), "error", 20.0);
    case(of(json!({})).failed("Job execution timed out"), "timeout", 20.0);
    case(
        of(json!({})).failed("E2B execution timed out after 30000ms"),
        "timeout",
        20.0,
    );
    case(
        of(json!({})).exception("Error", "WasmEdge execution timed out after 5ms"),
        "timeout",
        20.0,
    );
    case(of(json!({})).failed("Timeout of the connection"), "error", 20.0);
    // Failed, and ran as long as it might.
    case(
        of(limit.clone()).with(json!({"code.duration_ms": 30_000})).failed(""),
        "timeout",
        30_000.0,
    );
    case(
        of(limit.clone()).with(json!({"code.duration_ms": 29_999})).failed(""),
        "error",
        29_999.0,
    );
    case(
        of(limit.clone()).with(json!({"code.duration_ms": 30_000, "code.success": false})),
        "timeout",
        30_000.0,
    );
    case(
        of(json!({"code.timeout_ms": "50", "code.duration_ms": 50.5})).failed(""),
        "timeout",
        50.5,
    );
    case(of(json!({"code.timeout_ms": 20.0})).failed(""), "timeout", 20.0);
    case(of(json!({"code.timeout_ms": 21})).failed(""), "error", 20.0);
    case(
        of(json!({"code.timeout_ms": 20})).exception("Error", "killed"),
        "timeout",
        20.0,
    );
    // Slow is not late.
    case(
        of(limit).with(json!({"code.duration_ms": 30_001})).ok(),
        "success",
        30_001.0,
    );
}

fn runtimes(t: &mut Table) {
    let e2b_of = |t: &mut Table, draft: Draft, labels: &str, ms: f64, more: &[(&'static str, &str, f64)]| {
        let mut adds = vec![("e2b_executions_total", labels, 1.0), ("e2b_duration_ms", labels, ms)];
        adds.extend(more);
        t.span(draft, &adds);
    };
    let success = "language=python,outcome=success";
    let memory = json!({"e2b.memory_mb": 76.5, "e2b.duration_ms": 890});
    let zero = ("e2b_exit_code_total", "language=python,exit_code=0", 1.0);
    e2b_of(
        t,
        e2b_ended("python", 0, 0, 900).with(memory),
        success,
        890.0,
        &[zero, ("e2b_memory_mb", "language=python", 76.5)],
    );
    e2b_of(t, e2b_ended("python", 0, 0, 100), success, 100.0, &[zero]);
    let one = ("e2b_exit_code_total", "language=bash,exit_code=1", 1.0);
    e2b_of(
        t,
        e2b_ended("bash", 1, 0, 100),
        "language=bash,outcome=error",
        100.0,
        &[one],
    );
    let message = "CodeRuntime.create is not a function";
    let thrown = e2b("python", 0, 10).failed(message).exception("TypeError", message);
    e2b_of(t, thrown, "language=python,outcome=error", 10.0, &[]);
    let message = "E2B execution timed out after 30000ms";
    let late = e2b("python", 0, 30_010).failed(message).exception("Error", message);
    e2b_of(t, late, "language=python,outcome=timeout", 30_010.0, &[]);
    e2b_of(
        t,
        e2b("python", 0, 1).failed("E2B not available"),
        "language=python,outcome=error",
        1.0,
        &[],
    );
    // By its attribute, whatever its name; by its name, without any attribute.
    e2b_of(
        t,
        e2b_ended("python", 0, 0, 100).named("sandbox.run"),
        success,
        100.0,
        &[zero],
    );
    let nameless = Draft::new("sos-e2b-runtime", "e2b.execute", 0, 10).ok();
    e2b_of(t, nameless, "language=unknown,outcome=success", 10.0, &[]);

    let mut wasmedge_of = |draft: Draft, labels: &str, ms: f64| {
        t.span(
            draft,
            &[
                ("wasmedge_executions_total", labels, 1.0),
                ("wasmedge_execution_time_ms", labels, ms),
            ],
        );
    };
    let done = wasmedge("javascript", 0, 290).with(json!({
        "wasmedge.success": true, "wasmedge.execution_time_ms": 180, "wasmedge.compilation_time_ms": 79,
    }));
    wasmedge_of(done.ok(), "language=javascript,outcome=success", 180.0);
    let message = "WASM compilation failed: javy: unexpected token";
    let failed = wasmedge("javascript", 0, 90).failed(message).exception("127", message);
    wasmedge_of(failed, "language=javascript,outcome=error", 90.0);
    let message = "WasmEdge execution timed out after 30000ms";
    let late = wasmedge("rust", 0, 30_100).failed(message).exception("Error", message);
    wasmedge_of(late, "language=rust,outcome=timeout", 30_100.0);
    let compile = Draft::new("sos-wasm-compiler", "wasm.compile", 0, 79).with(json!({"wasm.language": "javascript"}));
    t.span(compile.ok(), &[]);

    let mut bacalhau_of = |draft: Draft, labels: &str, ms: f64| {
        t.span(
            draft,
            &[
                ("bacalhau_executions_total", labels, 1.0),
                ("bacalhau_duration_ms", labels, ms),
            ],
        );
    };
    let done = bacalhau("python", 0, 15_080).with(json!({"bacalhau.success": true, "bacalhau.duration_ms": 15_060}));
    bacalhau_of(done.ok(), "language=python,outcome=success", 15_060.0);
    let failed = bacalhau("python", 0, 10_080)
        .with(json!({"bacalhau.success": false}))
        .failed("Job failed");
    bacalhau_of(failed, "language=python,outcome=error", 10_080.0);
    let late = bacalhau("python", 0, 600_080).failed("Job execution timed out");
    bacalhau_of(late, "language=python,outcome=timeout", 600_080.0);
    for name in [
        "bacalhau.submit_job",
        "bacalhau.get_job_status",
        "bacalhau.get_job_results",
    ] {
        let job = json!({"bacalhau.language": "python", "bacalhau.runtime": "bacalhau", "bacalhau.job_id": "j"});
        t.span(Draft::new("sos-bacalhau-runtime", name, 0, 10).with(job).ok(), &[]);
    }
}

fn tools(t: &mut Table) {
    const SECONDS: &str = "runtime_tool_execute_seconds";
    const ERRORS: &str = "runtime_tool_errors_total";
    const TIMEOUTS: &str = "runtime_tool_timeouts_total";
    const EXITS: &str = "runtime_bun_process_exits_total";
    const BYTES: &str = "runtime_tool_output_bytes";
    let tool = |attributes: Value, ms: i64| {
        Draft::new("compozy.runtime", "runtime.execute_tool", 0, ms)
            .with(json!({"timeout_ms": 60_000, "bun_version": "1.2.3", "permissions": ["--allow-read"]}))
            .with(attributes)
    };
    let id = json!({"tool_id": "fetch"});
    let fetch = |more: Value, ms: i64| tool(id.clone(), ms).with(more);
    let (good, bad, late) = (
        "tool_id=fetch,outcome=success",
        "tool_id=fetch,outcome=error",
        "tool_id=fetch,outcome=timeout",
    );
    t.span(
        fetch(json!({"exit_code": 0, "output_bytes": 1_500}), 250),
        &[
            (SECONDS, good, 0.25),
            (EXITS, "status=exit,code=0,signal=", 1.0),
            (BYTES, "tool_id=fetch", 1_500.0),
        ],
    );
    t.span(
        fetch(json!({"exit_code": 0, "output_bytes": 0}), 5).ok(),
        &[
            (SECONDS, good, 0.005),
            (EXITS, "status=exit,code=0,signal=", 1.0),
            (BYTES, "tool_id=fetch", 0.0),
        ],
    );
    t.span(
        fetch(json!({"output_bytes": "10000001"}), 31_000),
        &[(SECONDS, good, 31.0), (BYTES, "tool_id=fetch", 10_000_001.0)],
    );
    // Failure points, each as it is named; what is not named so is unknown.
    for kind in ["start", "stdin", "stdout", "stderr", "wait", "parse"] {
        let errors = format!("tool_id=fetch,error_kind={kind}");
        t.span(
            fetch(json!({"error_kind": kind}), 10).failed("no"),
            &[(SECONDS, bad, 0.01), (ERRORS, &errors, 1.0)],
        );
    }
    let (unknown, timeout) = ("tool_id=fetch,error_kind=unknown", "tool_id=fetch,error_kind=timeout");
    t.span(
        fetch(json!({"error_kind": "cosmic"}), 10),
        &[(SECONDS, bad, 0.01), (ERRORS, unknown, 1.0)],
    );
    t.span(
        fetch(json!({}), 10).failed("no"),
        &[(SECONDS, bad, 0.01), (ERRORS, unknown, 1.0)],
    );
    t.span(
        fetch(json!({"outcome": "error"}), 10).ok(),
        &[(SECONDS, bad, 0.01), (ERRORS, unknown, 1.0)],
    );
    // The scanner of stderr fails, and the tool does not.
    let scanner = json!({"outcome": "success", "error_kind": "stderr"});
    t.span(
        fetch(scanner, 10),
        &[(SECONDS, good, 0.01), (ERRORS, "tool_id=fetch,error_kind=stderr", 1.0)],
    );
    // Time-outs.
    let timeouts = [
        (SECONDS, late, 60.0),
        (ERRORS, timeout, 1.0),
        (TIMEOUTS, "tool_id=fetch", 1.0),
    ];
    t.span(
        fetch(json!({"error_kind": "timeout"}), 60_000).failed("deadline exceeded"),
        &timeouts,
    );
    t.span(
        fetch(json!({"error.type": "timeout"}), 60_000).failed("deadline exceeded"),
        &timeouts,
    );
    t.span(fetch(json!({"outcome": "timeout"}), 60_000), &timeouts);
    // Cancelled: an error of the kind `timeout`, and no time-out.
    let cancelled = json!({"outcome": "error", "error_kind": "timeout"});
    t.span(
        fetch(cancelled, 10).failed("context canceled"),
        &[(SECONDS, bad, 0.01), (ERRORS, timeout, 1.0)],
    );

    // Names of a tool, best first.
    t.span(
        tool(json!({"tool.id": "dotted"}), 10),
        &[(SECONDS, "tool_id=dotted,outcome=success", 0.01)],
    );
    t.span(
        tool(json!({"runtime.tool_id": "prefixed"}), 10),
        &[(SECONDS, "tool_id=prefixed,outcome=success", 0.01)],
    );
    let both = json!({"tool_id": "plain", "tool.id": "dotted"});
    t.span(tool(both, 10), &[(SECONDS, "tool_id=plain,outcome=success", 0.01)]);
    let gen_ai = json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"});
    t.span(
        Draft::new("agent", "execute_tool search", 0, 10).with(gen_ai.clone()),
        &[(SECONDS, "tool_id=search,outcome=success", 0.01)],
    );
    t.span(
        Draft::new("agent", "execute_tool search", 0, 10)
            .with(gen_ai)
            .with(json!({"error.type": "timeout"}))
            .failed(""),
        &[
            (SECONDS, "tool_id=search,outcome=timeout", 0.01),
            (ERRORS, "tool_id=search,error_kind=timeout", 1.0),
            (TIMEOUTS, "tool_id=search", 1.0),
        ],
    );
    // Neither alone is a tool.
    t.span(
        Draft::new("agent", "x", 0, 10).with(json!({"gen_ai.tool.name": "search"})),
        &[],
    );
    t.span(
        Draft::new("agent", "x", 0, 10).with(json!({"gen_ai.operation.name": "execute_tool"})),
        &[],
    );
    let no_tool = json!({"exit_code": 1, "signal": "killed", "output_bytes": 5, "error_kind": "start"});
    t.span(Draft::new("agent", "x", 0, 10).with(no_tool), &[]);

    // Exits of the process.
    for (attributes, labels) in [
        (json!({"exit_code": 1}), "status=exit,code=1,signal="),
        (json!({"exit_code": 1, "signal": ""}), "status=exit,code=1,signal="),
        (json!({"exit_code": "1"}), "status=exit,code=1,signal="),
        (json!({"exit_code": 1.0}), "status=exit,code=1,signal="),
        (json!({"process.exit.code": 2}), "status=exit,code=2,signal="),
        (
            json!({"exit_code": -1, "signal": "killed"}),
            "status=signal,code=-1,signal=SIGKILL",
        ),
        (
            json!({"exit_code": 137, "signal": "SIGKILL"}),
            "status=signal,code=137,signal=SIGKILL",
        ),
        (json!({"signal": "terminated"}), "status=signal,code=,signal=SIGTERM"),
        (json!({"signal": "SIGTERM"}), "status=signal,code=,signal=SIGTERM"),
        (
            json!({"exit_code": -1, "signal": "segmentation fault"}),
            "status=signal,code=-1,signal=SIGSEGV",
        ),
        (
            json!({"exit_code": -1, "signal": "interrupt"}),
            "status=signal,code=-1,signal=SIGINT",
        ),
        (
            json!({"exit_code": -1, "signal": "aborted"}),
            "status=signal,code=-1,signal=SIGABRT",
        ),
    ] {
        t.span(
            fetch(attributes, 10).ok(),
            &[(SECONDS, good, 0.01), (EXITS, labels, 1.0)],
        );
    }
}

fn workflows_and_nodes(t: &mut Table) {
    let workflow = |ms| Draft::new("sos-workflow-executor", "workflow.execute", 0, ms);
    let mut workflow_of = |draft: Draft, status: &str, seconds: f64| {
        let labels = format!("status={status}");
        t.span(
            draft,
            &[
                ("workflow_executions_total", &labels, 1.0),
                ("workflow_duration_seconds", &labels, seconds),
            ],
        );
    };
    workflow_of(workflow(1_500).ok(), "completed", 1.5);
    workflow_of(workflow(3_600_000).failed("no"), "failed", 3_600.0);
    workflow_of(workflow(3_600_001), "completed", 3_600.001);

    let mut node_of = |draft: Draft, labels: &str, ms: f64| {
        t.span(
            draft,
            &[("node_executions_total", labels, 1.0), ("node_latency_ms", labels, ms)],
        );
    };
    let around = |status: &str, ms| {
        Draft::new("sos-node-executor", "node.execute.action.code.python", 0, ms)
            .with(json!({"node.id": "n", "node.type": "action.code.python", "node.status": status}))
    };
    let latency = json!({"node.latency_ms": 1_234});
    node_of(
        around("completed", 1_300).with(latency).ok(),
        "node_type=action.code.python,status=completed",
        1_234.0,
    );
    node_of(
        around("failed", 60).failed("no"),
        "node_type=action.code.python,status=failed",
        60.0,
    );
    node_of(
        around("completed", 120_001).without(&["node.type"]).ok(),
        "node_type=unknown,status=completed",
        120_001.0,
    );
    // The second span of a node has no status of its own.
    let second = json!({"node.id": "n", "node.type": "browser.scrape", "node.execution_time_ms": 50});
    t.span(
        Draft::new("sos-node-executor", "node.execute.web_scrape", 0, 50)
            .with(second)
            .ok(),
        &[],
    );
}

fn models(t: &mut Table) {
    let mut request_of = |draft: Draft, labels: &str, ms: f64, tokens: Option<(f64, f64)>, cost: Option<f64>| {
        let (input, output) = (
            format!("{labels},direction=input"),
            format!("{labels},direction=output"),
        );
        let mut adds = vec![("llm_requests_total", labels, 1.0), ("llm_latency_ms", labels, ms)];
        if let Some((sent, received)) = tokens {
            adds.extend([
                ("llm_tokens_total", input.as_str(), sent),
                ("llm_tokens_total", output.as_str(), received),
            ]);
        }
        adds.extend(cost.map(|cost| ("llm_cost_usd_total", labels, cost)));
        t.span(draft, &adds);
    };
    let own = |more: Value| {
        Draft::new("sos-llm-executor", "llm.generate", 0, 900)
            .with(json!({"llm.provider": "openai", "llm.model": "gpt-4o", "node.id": "n", "workflow.id": "w"}))
            .with(more)
    };
    let good = "provider=openai,model=gpt-4o,status=success";
    let full = json!({
        "llm.input_tokens": 120, "llm.output_tokens": 30, "llm.total_tokens": 150, "llm.cost_usd": 0.0045,
        "llm.latency_ms": 850, "llm.status": "success", "llm.tokens_per_second": 35.3,
    });
    request_of(own(full).ok(), good, 850.0, Some((120.0, 30.0)), Some(0.0045));
    let free = json!({"llm.input_tokens": 7, "llm.output_tokens": 0, "llm.cost_usd": 0, "llm.status": "success"});
    request_of(own(free).ok(), good, 900.0, Some((7.0, 0.0)), Some(0.0));
    let bad = "provider=openai,model=gpt-4o,status=error";
    let limited = own(json!({"llm.status": "error", "llm.error": "Rate limit exceeded", "llm.error_code": 429}));
    request_of(limited.failed("Rate limit exceeded"), bad, 900.0, None, None);
    request_of(
        own(json!({})).failed("Policy validation failed"),
        bad,
        900.0,
        None,
        None,
    );
    let bare = Draft::new("sos-llm-executor", "llm.generate", 0, 5).ok();
    request_of(bare, "provider=unknown,model=unknown,status=success", 5.0, None, None);

    let gen_ai = |operation: &str, more: Value| {
        Draft::new("openai", &format!("{operation} gpt-4o"), 0, 640)
            .with(json!({"gen_ai.operation.name": operation, "gen_ai.request.model": "gpt-4o"}))
            .with(more)
    };
    let used = json!({
        "gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 22,
        "gen_ai.response.model": "gpt-4o-2024",
    });
    for operation in ["chat", "generate_content", "text_completion", "embeddings"] {
        request_of(gen_ai(operation, used.clone()), good, 640.0, Some((11.0, 22.0)), None);
    }
    let before = json!({"gen_ai.system": "openai"});
    request_of(gen_ai("chat", before).failed("429"), bad, 640.0, None, None);
    for operation in ["create_agent", "execute_tool", "retrieval", ""] {
        t.span(gen_ai(operation, used.clone()), &[]);
    }
}

fn agents_connectors_retrieval(t: &mut Table) {
    let agent = |more: Value| {
        Draft::new("sos-agent-executor", "agent.execute", 0, 4_000)
            .with(json!({
                "agent.id": "wf-1-node-1", "agent.framework": "langgraph", "agent.type": "react",
                "agent.provider": "openai", "agent.model": "gpt-4o", "user.id": "user-1", "organization.id": "org-1",
            }))
            .with(more)
    };
    let good = "framework=langgraph,status=success";
    t.span(
        agent(json!({
            "agent.status": "success", "agent.latency_ms": 3_900, "agent.tokens_used": 1_200, "agent.cost": 0.25,
            "agent.iterations": 4, "agent.cost_per_iteration": 0.0625,
        }))
        .ok(),
        &[
            ("agent_executions_total", good, 1.0),
            ("agent_latency_ms", good, 3_900.0),
            ("agent_tokens_used_total", good, 1_200.0),
            ("agent_cost_usd_total", good, 0.25),
            ("agent_iterations", good, 4.0),
        ],
    );
    let bad = "framework=langgraph,status=error";
    t.span(
        agent(json!({"agent.status": "error", "agent.error": "no"}))
            .failed("no")
            .exception("Error", "no"),
        &[("agent_executions_total", bad, 1.0), ("agent_latency_ms", bad, 4_000.0)],
    );
    let unknown = "framework=unknown,status=success";
    t.span(
        Draft::new("agents", "invoke_agent helper", 0, 70)
            .with(json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"})),
        &[
            ("agent_executions_total", unknown, 1.0),
            ("agent_latency_ms", unknown, 70.0),
        ],
    );

    let connector = |more: Value| {
        Draft::new("sos-connector-executor", "connector.execute", 0, 200)
            .with(json!({
                "connector.id": "slack", "connector.action": "send_message", "connector.provider": "nango",
                "user.id": "user-1",
            }))
            .with(more)
    };
    let good = "connector=slack,action=send_message,status=success";
    t.span(
        connector(json!({"connector.status": "success", "connector.latency_ms": 180})).ok(),
        &[
            ("connector_requests_total", good, 1.0),
            ("connector_latency_ms", good, 180.0),
        ],
    );
    let bad = "connector=slack,action=unknown,status=error";
    t.span(
        connector(json!({"connector.status": "error", "connector.error_code": "403"}))
            .without(&["connector.action"])
            .failed("no"),
        &[
            ("connector_requests_total", bad, 1.0),
            ("connector_latency_ms", bad, 200.0),
        ],
    );

    let rag = |more: Value| {
        Draft::new("sos-rag-executor", "rag.execute", 0, 300)
            .with(json!({"rag.vector_store_provider": "pinecone", "rag.index_name": "i", "rag.top_k": 5}))
            .with(more)
    };
    let good = "provider=pinecone,status=success";
    t.span(
        rag(json!({"rag.status": "success", "rag.latency_ms": 280, "rag.sources_found": 5})).ok(),
        &[
            ("rag_requests_total", good, 1.0),
            ("rag_latency_ms", good, 280.0),
            ("rag_sources_found", good, 5.0),
        ],
    );
    t.span(
        rag(json!({"rag.status": "success", "rag.sources_found": 0})).ok(),
        &[
            ("rag_requests_total", good, 1.0),
            ("rag_latency_ms", good, 300.0),
            ("rag_sources_found", good, 0.0),
        ],
    );
    let bad = "provider=pinecone,status=error";
    t.span(
        rag(json!({"rag.status": "error", "rag.error": "no"})).failed("no"),
        &[("rag_requests_total", bad, 1.0), ("rag_latency_ms", bad, 300.0)],
    );
}

fn everything(random: &mut fastrand::Rng) -> Table {
    let mut table = Table::new(random);
    executions(&mut table);
    outcomes(&mut table);
    runtimes(&mut table);
    tools(&mut table);
    workflows_and_nodes(&mut table);
    models(&mut table);
    agents_connectors_retrieval(&mut table);
    table
}

/// The names and types that the documentation promises.
const FAMILIES: [(&str, &str); 37] = [
    ("code_executions_total", "counter"),
    ("code_duration_ms", "histogram"),
    ("code_memory_mb", "histogram"),
    ("code_tokens_used_total", "counter"),
    ("code_exit_code_total", "counter"),
    ("code_validation_total", "counter"),
    ("e2b_executions_total", "counter"),
    ("e2b_duration_ms", "histogram"),
    ("e2b_memory_mb", "histogram"),
    ("e2b_exit_code_total", "counter"),
    ("wasmedge_executions_total", "counter"),
    ("wasmedge_execution_time_ms", "histogram"),
    ("bacalhau_executions_total", "counter"),
    ("bacalhau_duration_ms", "histogram"),
    ("runtime_tool_execute_seconds", "histogram"),
    ("runtime_tool_errors_total", "counter"),
    ("runtime_tool_timeouts_total", "counter"),
    ("runtime_bun_process_exits_total", "counter"),
    ("runtime_tool_output_bytes", "histogram"),
    ("workflow_executions_total", "counter"),
    ("workflow_duration_seconds", "histogram"),
    ("node_executions_total", "counter"),
    ("node_latency_ms", "histogram"),
    ("llm_requests_total", "counter"),
    ("llm_latency_ms", "histogram"),
    ("llm_tokens_total", "counter"),
    ("llm_cost_usd_total", "counter"),
    ("agent_executions_total", "counter"),
    ("agent_latency_ms", "histogram"),
    ("agent_tokens_used_total", "counter"),
    ("agent_cost_usd_total", "counter"),
    ("agent_iterations", "histogram"),
    ("connector_requests_total", "counter"),
    ("connector_latency_ms", "histogram"),
    ("rag_requests_total", "counter"),
    ("rag_latency_ms", "histogram"),
    ("rag_sources_found", "histogram"),
];

fn is_own(name: &str) -> bool {
    name.starts_with("spanledger_") || name.starts_with("process_")
}

/// `/metrics` as a scraper asks for it that prefers OpenMetrics, or that does not know it.
async fn exposition(program: &Program, accept: &str) -> (String, String) {
    let url = program.url("metrics", "/metrics").await;
    let ask = Request::get(url)
        .header("accept", accept)
        .body(crate::common::http::whole(""))
        .unwrap();
    let answer = Http::new().send(ask).await.unwrap();
    assert_eq!(answer.status, 200);
    (answer.header("content-type").to_owned(), answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_derived_metric_counts_what_it_says_and_nothing_else() {
    let mut random = random("every_derived_metric_counts_what_it_says_and_nothing_else");
    let table = everything(&mut random);
    let setup = Setup::new();
    let mut program = setup.start().await;
    let mut sent: Vec<&Sent> = table.story.sent.iter().collect();
    random.shuffle(&mut sent);
    for (turn, part) in sent.chunks(sent.len() / 4 + 1).enumerate() {
        if turn == 2 {
            program.kill();
            program = setup.start().await;
        }
        let sender = Sender::to(&program).await;
        sender
            .accepted(ROUTES[random.usize(..ROUTES.len())], &request(part.iter().copied()))
            .await;
    }
    let expected = table.expected();
    program
        .scrape_until("every derived metric is as worked out", |scrape| {
            let wrong = scrape.derived().difference(&expected);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    let (content_type, text) = exposition(&program, "text/plain").await;
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    text_is_well_formed(&text);
    let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.7,*/*;q=0.1";
    let (content_type, text) = exposition(&program, accept).await;
    assert_eq!(
        content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    openmetrics_is_right(&text, &table, &expected);
}

fn text_is_well_formed(text: &str) {
    let types: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    // Others may stand beside them; what they show is compared with what is expected.
    for (family, kind) in FAMILIES {
        assert_eq!(
            types.get(family),
            Some(&kind),
            "{family} is there, as what it is promised to be"
        );
    }
    for (family, _) in FAMILIES {
        assert!(
            text.lines().any(|line| line.starts_with(&format!("# HELP {family} "))),
            "{family} has a help text"
        );
    }
    // The samples of a family stand together, behind its TYPE.
    let mut family = "";
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(begins) = line.strip_prefix("# TYPE ") {
            family = begins.split(' ').next().unwrap();
            assert!(seen.insert(family), "{family} begins twice");
        } else if !line.starts_with('#') && !line.is_empty() {
            assert!(
                line.starts_with(family),
                "a sample of another family under {family}: {line}"
            );
        }
    }
    assert!(
        !text.contains("# EOF") && !text.contains("_created"),
        "the old format knows neither"
    );
    // Buckets never decrease, and the last holds everything.
    let scrape = Scrape::parse(text);
    let mut histograms: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in &scrape.0 {
        if let Some(le) = series.labels.get("le") {
            let mut of = series.clone();
            of.labels.remove("le");
            let le = if le == "+Inf" {
                f64::INFINITY
            } else {
                le.parse().unwrap()
            };
            histograms.entry(of).or_default().push((le, *value));
        }
    }
    for (series, mut buckets) in histograms {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{series}: {buckets:?}");
        let count = Series {
            name: series.name.replace("_bucket", "_count"),
            labels: series.labels.clone(),
        };
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, scrape.0[&count])), "{series}");
    }
}

fn openmetrics_is_right(text: &str, table: &Table, expected: &Scrape) {
    assert!(text.ends_with("\n# EOF\n"), "the last line says that it is the last");
    assert_eq!(text.matches("# EOF").count(), 1);
    assert!(!text.contains("\n\n"), "OpenMetrics knows no empty lines");
    // The same series with the same values, and `_created` beside them.
    let scrape = Scrape::parse(text).derived();
    let (created, rest): (BTreeMap<_, _>, _) = scrape
        .0
        .into_iter()
        .partition(|(series, _)| series.name.ends_with("_created"));
    assert_eq!(Scrape(rest).difference(expected), Vec::<String>::new());
    let now = crate::common::unix_ms_ago(std::time::Duration::ZERO) as f64 / 1_000.0;
    let mut of = BTreeSet::new();
    for (series, value) in &created {
        assert!(
            (now - 120.0..=now).contains(value),
            "{series} {value} is when the series began"
        );
        of.insert((
            series.name.trim_end_matches("_created").to_owned(),
            series.labels.clone(),
        ));
    }
    let mut wanted = BTreeSet::new();
    for (family, kind) in FAMILIES {
        let (name, sample) = match kind {
            "counter" => (family.trim_end_matches("_total"), family.to_owned()),
            _ => (family, format!("{family}_count")),
        };
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        let series = expected.0.keys().filter(|series| series.name == sample);
        wanted.extend(series.map(|series| (name.to_owned(), series.labels.clone())));
    }
    assert_eq!(of, wanted, "every series says when it began, and no other");

    // Exemplars name a span that was counted there, with what it added.
    let mut adds: BTreeMap<Series, Vec<(String, f64)>> = BTreeMap::new();
    for (id, (name, labels, value)) in table
        .adds
        .iter()
        .flat_map(|(id, adds)| adds.iter().map(move |add| (id, add)))
    {
        let series = Series {
            name: (*name).to_owned(),
            labels: pairs(labels).into_iter().collect(),
        };
        adds.entry(series).or_default().push((id.clone(), *value));
    }
    let mut without: BTreeSet<Series> = adds.keys().cloned().collect();
    for line in text.lines().filter(|line| !line.starts_with('#') && !is_own(line)) {
        let Some((sample, exemplar)) = line.split_once(" # ") else {
            continue;
        };
        let (mut series, _) = Scrape::parse(sample).0.pop_first().unwrap();
        let le = series.labels.remove("le");
        if le.is_some() {
            series.name = series.name.trim_end_matches("_bucket").to_owned();
        }
        let (exemplar, value) = Scrape::parse(&format!("x{exemplar}")).0.pop_first().unwrap();
        assert_eq!(exemplar.labels.len(), 2, "{line}");
        let id = format!("{}-{}", exemplar.labels["trace_id"], exemplar.labels["span_id"]);
        let known = adds.get(&series).is_some_and(|added| added.contains(&(id, value)));
        assert!(known, "no span that was counted there: {line}");
        if let Some(le) = le.filter(|le| le != "+Inf") {
            assert!(value <= le.parse().unwrap(), "an exemplar lies in its bucket: {line}");
        }
        without.remove(&series);
    }
    assert_eq!(without, BTreeSet::new(), "every series has an exemplar");
}

#[tokio::test(flavor = "multi_thread")]
async fn further_series_fold_into_one_with_the_single_label_of_overflow() {
    let setup = Setup::new().set("metrics.max_series_per_metric", 3);
    let mut program = setup.start().await;
    let mut random = random("further_series_fold_into_one_with_the_single_label_of_overflow");
    let mut expected = Expected::default();
    let languages = ["a", "b", "c", "d", "a", "e", "f", "d", "c"];
    for (turn, language) in languages.into_iter().enumerate() {
        if turn == 6 {
            program.kill();
            program = setup.start().await;
        }
        let mut story = Story::new(&mut random);
        story.send(execution(language, 0, 7));
        Sender::to(&program)
            .await
            .accepted(Route::Http, &request(&story.sent))
            .await;
        let labels = if ["a", "b", "c"].contains(&language) {
            format!("runtime=vm2,language={language},outcome=success")
        } else {
            "otel_metric_overflow=true".to_owned()
        };
        expected.add("code_executions_total", pairs(&labels), 1.0);
        expected.add("code_duration_ms", pairs(&labels), 7.0);
    }
    let expected = expected.series();
    program
        .scrape_until("four series of each", |scrape| {
            let wrong = scrape.derived().difference(&expected);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    let folded = crate::common::program::sum(&program.scrape().await, "spanledger_meter_overflowed_total", &[]);
    // Own counters begin anew with the program: three spans came after the restart, two of them folded.
    assert!(folded >= 4.0, "what was folded is counted: {folded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_began_when_it_began_also_after_a_kill() {
    let setup = Setup::new();
    let mut program = setup.start().await;
    let mut random = random("a_series_began_when_it_began_also_after_a_kill");
    let table = everything(&mut random);
    Sender::to(&program)
        .await
        .accepted(Route::Grpc, &request(&table.story.sent))
        .await;
    let expected = table.expected();
    let counted = |scrape: &Scrape| {
        let wrong = scrape.derived().difference(&expected);
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("\n"))
        }
    };
    program.scrape_until("everything is counted", counted).await;
    let created = |text: &str| -> BTreeMap<Series, f64> {
        let all = Scrape::parse(text).derived().0;
        all.into_iter()
            .filter(|(series, _)| series.name.ends_with("_created"))
            .collect()
    };
    let accept = "application/openmetrics-text; version=1.0.0";
    let before = created(&exposition(&program, accept).await.1);
    assert!(!before.is_empty());
    program.kill();
    program = setup.start().await;
    let (_, text) = exposition(&program, accept).await;
    assert_eq!(created(&text), before);
    openmetrics_is_right(&text, &table, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_the_resource_and_fixed_ones_stand_beside_the_others() {
    let labels = json!(["service.name", "deployment.environment", "k8s.namespace.name"]);
    let setup = Setup::new()
        .set("metrics.resource_labels", labels)
        .set("metrics.const_labels", json!({"region": "eu"}));
    let program = setup.start().await;
    let mut story = Story::new(&mut random(
        "labels_of_the_resource_and_fixed_ones_stand_beside_the_others",
    ));
    story.send(execution("python", 0, 7));
    Sender::to(&program)
        .await
        .accepted(Route::HttpJson, &request(&story.sent))
        .await;
    let labels = [
        ("runtime", "vm2"),
        ("language", "python"),
        ("outcome", "success"),
        ("service_name", "sos-backend"),
        ("deployment_environment", "production"),
        ("k8s_namespace_name", ""),
        ("region", "eu"),
    ];
    program
        .scrape_until("one execution with all labels", |scrape| {
            let found = scrape.get("code_executions_total", &labels);
            if found == Some(1.0) {
                Ok(())
            } else {
                Err(format!("{:?}", scrape.derived().0.keys()))
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_id_is_ever_a_label() {
    let mut random = random("no_id_is_ever_a_label");
    let table = everything(&mut random);
    let program = Setup::new().start().await;
    Sender::to(&program)
        .await
        .accepted(Route::Grpc, &request(&table.story.sent))
        .await;
    let allowed = BTreeSet::from([
        "runtime",
        "language",
        "outcome",
        "exit_code",
        "passed",
        "tool_id",
        "error_kind",
        "status",
        "code",
        "signal",
        "node_type",
        "provider",
        "model",
        "direction",
        "framework",
        "connector",
        "action",
        "le",
    ]);
    let total = table.story.sent.len() as f64;
    program
        .scrape_until("every span is counted", |scrape| {
            let accepted = crate::common::program::sum(scrape, "spanledger_receiver_items_accepted_total", &[]);
            let wrong = scrape.derived().difference(&table.expected());
            if accepted == total && wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    for series in program.scrape().await.derived().0.keys() {
        let unknown = series.labels.keys().find(|name| !allowed.contains(name.as_str()));
        assert_eq!(unknown, None, "{series}");
    }
    let ids: Vec<String> = table
        .story
        .sent
        .iter()
        .map(|sent| spans::hex(&sent.span.trace_id))
        .collect();
    let (_, text) = exposition(&program, "text/plain").await;
    assert!(!ids.iter().any(|id| text.contains(id)), "no trace id in the text");
}
