//! Every way in which an execution ends, on every runtime, for every caller: the spans, and the row.

use crate::executors::*;
use crate::orders::{self, Case, scattered, traced};
use crate::story::{Draft, Story};
use serde_json::json;

const UNTHROWN: &str = "actualRuntime is not defined";

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_an_execution_of_a_node_becomes_its_row_in_every_order() {
    orders::check(
        "every_end_of_an_execution_of_a_node_becomes_its_row_in_every_order",
        &ends(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_runtime_becomes_its_row_in_every_order() {
    orders::check("every_runtime_becomes_its_row_in_every_order", &runtimes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_becomes_its_row_in_every_order() {
    orders::check("every_caller_becomes_its_row_in_every_order", &callers()).await;
}

/// Stories of this kind.
pub fn ends() -> Vec<Case> {
    vec![
        traced("success, explicit vm2", success_on_vm2),
        scattered("success, explicit vm2, scattered", success_on_vm2),
        traced("success, explicit subprocess", success_in_subprocess),
        traced("runtime said success: false", runtime_said_no),
        scattered("runtime said success: false, scattered", runtime_said_no),
        traced("no code", no_code),
        scattered("no code, scattered", no_code),
        traced("input schema failed", input_schema_failed),
        traced("output schema failed", output_schema_failed),
        traced(
            "output schema failed, input passed",
            output_schema_failed_after_input_passed,
        ),
        traced("bad language", bad_language),
        traced("exception", exception),
        scattered("exception, scattered", exception),
        traced("validated", validated),
    ]
}

/// Stories of this kind.
pub fn runtimes() -> Vec<Case> {
    vec![
        traced("auto, vm2", auto_vm2),
        scattered("auto, vm2, scattered", auto_vm2),
        traced("auto, subprocess", auto_subprocess),
        traced("auto, inner span alone knows", auto_known_by_inner_span),
        scattered("auto, subprocess, scattered", auto_subprocess_scattered),
        traced("auto, e2b", auto_e2b),
        traced("explicit e2b, success", e2b_success),
        scattered("explicit e2b, scattered", e2b_scattered),
        traced("explicit e2b, exit 1", e2b_exit_1),
        traced("explicit e2b, exception", e2b_exception),
        traced("explicit e2b, timed out", e2b_timeout),
        traced("explicit e2b, not available, falls back", e2b_not_available),
        traced("wasmedge, success", wasmedge_success),
        traced("wasmedge, compilation failed", wasmedge_failure),
        traced("bacalhau, success", bacalhau_success),
        traced("bacalhau, failed", bacalhau_failure),
        traced("bacalhau, timed out", bacalhau_timeout),
    ]
}

/// Stories of this kind.
pub fn callers() -> Vec<Case> {
    vec![
        traced("node of a webhook", anonymous_node),
        traced("code agent", code_agent),
        scattered("code agent, scattered", code_agent),
        traced("code agent, failed", code_agent_failed),
        traced("pre-ingest hook", pre_ingest_hook),
        scattered("pre-ingest hook, scattered", pre_ingest_hook),
        traced("post-answer hook, failed", post_answer_hook_failed),
        scattered("post-answer hook, failed, scattered", post_answer_hook_failed_scattered),
        traced("agent's tool", agent_tool),
        scattered("agent's tool, scattered", agent_tool),
        traced("router alone", router_alone),
    ]
}

fn success_on_vm2(s: &mut Story) {
    let caller = Caller::node(s);
    let run = code(&caller, "javascript", "vm2", 10, 17)
        .finished(true, 7)
        .with(json!({"code.memory_mb": 0.2143}));
    let run = s.send(run);
    s.send(node(s, &caller, 5, 30).completed(1));
    let row = json!({"runtime": "vm2", "language": "javascript", "duration_ms": 7, "memory_mb": 0, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn success_in_subprocess(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "bash", "subprocess", 10, 110)
            .finished(true, 99)
            .with(json!({"code.memory_mb": 3})),
    );
    s.send(node(s, &caller, 9, 130).completed(1));
    let row = json!({"runtime": "subprocess", "language": "bash", "duration_ms": 99, "memory_mb": 3, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn runtime_said_no(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(code(&caller, "javascript", "vm2", 10, 17).finished(false, 6));
    s.send(node(s, &caller, 5, 30).gave_up("ReferenceError: x is not defined", 1));
    let row = json!({
        "runtime": "vm2", "language": "javascript", "duration_ms": 6, "success": false,
        "error_message": "ReferenceError: x is not defined",
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// A return before the run: a status with a message, and neither `code.success` nor a duration.
fn returned_early(s: &mut Story, runtime: &str, change: impl Fn(Draft) -> Draft, columns: serde_json::Value) {
    let caller = Caller::node(s);
    let message = columns["error_message"].as_str().unwrap().to_owned();
    let language = columns["language"].as_str().unwrap().to_owned();
    let run = s.send(change(code(&caller, &language, runtime, 10, 12).failed(&message)));
    s.send(node(s, &caller, 5, 30).gave_up("Node failed", 1));
    let row = json!({"runtime": runtime, "duration_ms": 2, "success": false});
    s.expect(&run, [caller.columns(), tenant(s), row, columns]);
}

fn no_code(s: &mut Story) {
    let columns = json!({"language": "javascript", "error_message": "Code is required"});
    returned_early(s, "vm2", |run| run, columns);
}

fn input_schema_failed(s: &mut Story) {
    let columns = json!({
        "language": "python", "error_message": "Input validation failed", "validation_passed": false,
    });
    let attributes = json!({
        "code.has_input_schema": true, "code.validation_type": "pydantic", "code.validation_passed": false,
        "code.validation_errors": 2,
    });
    returned_early(s, "vm2", |run| run.with(attributes.clone()), columns);
}

fn output_schema_failed(s: &mut Story) {
    let columns = json!({
        "language": "python", "error_message": "Output validation failed", "validation_passed": false,
    });
    let attributes = json!({
        "code.has_output_schema": true, "code.output_validation_passed": false, "code.output_validation_errors": 1,
    });
    returned_early(s, "e2b", |run| run.with(attributes.clone()), columns);
}

fn output_schema_failed_after_input_passed(s: &mut Story) {
    let columns = json!({
        "language": "python", "error_message": "Output validation failed", "validation_passed": false,
    });
    let attributes = json!({"code.validation_passed": true, "code.output_validation_passed": false});
    returned_early(s, "vm2", |run| run.with(attributes.clone()), columns);
}

fn bad_language(s: &mut Story) {
    let columns = json!({"language": "ruby", "error_message": "Unsupported language: ruby"});
    returned_early(s, "vm2", |run| run, columns);
}

fn exception(s: &mut Story) {
    let caller = Caller::node(s);
    let run = code(&caller, "javascript", "vm2", 10, 13).exception("TypeError", "Cannot read properties of undefined");
    let run = s.send(run);
    s.send(node(s, &caller, 5, 30).gave_up(UNTHROWN, 1));
    let row = json!({
        "runtime": "vm2", "language": "javascript", "duration_ms": 3, "success": false,
        "error_message": "Cannot read properties of undefined",
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn validated(s: &mut Story) {
    let caller = Caller::node(s);
    let run = code(&caller, "typescript", "vm2", 10, 20)
        .finished(true, 10)
        .with(json!({
            "code.has_input_schema": true, "code.has_output_schema": true, "code.validation_passed": true,
            "code.output_validation_passed": true,
        }));
    let run = s.send(run);
    s.send(node(s, &caller, 5, 30).completed(1));
    // A span of its own, which says nothing about the row.
    let validation = Draft::new("sos-code-validation-service", "codeValidation.validateWithZod", 11, 12);
    s.send(
        validation
            .with(json!({"validation.type": "zod", "validation.valid": false}))
            .ok(),
    );
    let row = json!({
        "runtime": "vm2", "language": "typescript", "duration_ms": 10, "success": true, "validation_passed": true,
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn auto_vm2(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "javascript", "vm2", 10, 40)
            .finished(true, 29)
            .routed("vm2", "auto"),
    );
    s.send(route("javascript", "auto", "vm2", true, 12, 38));
    s.send(inner("javascript", "vm2", true, 15, 35));
    s.send(node(s, &caller, 5, 50).completed(1));
    let row = json!({"runtime": "vm2", "language": "javascript", "duration_ms": 29, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn auto_subprocess(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 400)
            .finished(true, 390)
            .routed("vm2", "auto"),
    );
    s.send(route("python", "auto", "subprocess", true, 12, 380));
    s.send(inner("python", "subprocess", true, 15, 370));
    s.send(node(s, &caller, 5, 450).completed(1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 390, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn auto_known_by_inner_span(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 400)
            .finished(true, 390)
            .routed("vm2", "auto"),
    );
    s.send(inner("python", "subprocess", true, 15, 370));
    s.send(node(s, &caller, 5, 450).completed(1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 390, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// Nobody can know which route was this run's.
fn auto_subprocess_scattered(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 400)
            .finished(true, 390)
            .routed("vm2", "auto"),
    );
    s.send(route("python", "auto", "subprocess", true, 12, 380));
    s.send(inner("python", "subprocess", true, 15, 370));
    s.send(node(s, &caller, 5, 450).completed(1));
    let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 390, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn auto_e2b(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 2_400)
            .finished(true, 2_390)
            .routed("vm2", "auto"),
    );
    s.send(route("python", "auto", "e2b", true, 12, 2_380));
    s.send(e2b_ended("python", 0, 20, 2_370));
    s.send(node(s, &caller, 5, 2_450).completed(1));
    let row = json!({
        "runtime": "e2b", "language": "python", "duration_ms": 2_390, "exit_code": 0, "success": true,
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn e2b_success(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "bash", "e2b", 10, 2_400)
            .finished(true, 2_390)
            .routed("e2b", "explicit"),
    );
    s.send(route("bash", "e2b", "e2b", true, 12, 2_380));
    s.send(e2b_ended("bash", 0, 20, 2_370));
    s.send(node(s, &caller, 5, 2_450).completed(1));
    let row = json!({"runtime": "e2b", "language": "bash", "duration_ms": 2_390, "exit_code": 0, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// Nobody can know which sandbox was this run's.
fn e2b_scattered(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "bash", "e2b", 10, 2_400)
            .finished(true, 2_390)
            .routed("e2b", "explicit"),
    );
    s.send(e2b_ended("bash", 0, 20, 2_370));
    s.send(node(s, &caller, 5, 2_450).completed(1));
    let row = json!({"runtime": "e2b", "language": "bash", "duration_ms": 2_390, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn e2b_exit_1(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "e2b", 10, 900)
            .finished(false, 880)
            .routed("e2b", "explicit"),
    );
    s.send(route("python", "e2b", "e2b", false, 12, 880));
    s.send(e2b_ended("python", 1, 20, 870));
    s.send(node(s, &caller, 5, 950).gave_up("Traceback (most recent call last):\nNameError", 1));
    let row = json!({
        "runtime": "e2b", "language": "python", "duration_ms": 880, "exit_code": 1, "success": false,
        "error_message": "Traceback (most recent call last):\nNameError",
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn e2b_exception(s: &mut Story) {
    let caller = Caller::node(s);
    let message = "CodeRuntime.create is not a function";
    let run = s.send(
        code(&caller, "python", "e2b", 10, 40)
            .finished(false, 29)
            .routed("e2b", "explicit"),
    );
    s.send(e2b("python", 20, 30).failed(message).exception("TypeError", message));
    s.send(node(s, &caller, 5, 50).gave_up(message, 1));
    let row = json!({
        "runtime": "e2b", "language": "python", "duration_ms": 29, "success": false, "error_message": message,
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn e2b_timeout(s: &mut Story) {
    let caller = Caller::node(s);
    let message = "E2B execution timed out after 30000ms";
    let run = s.send(
        code(&caller, "python", "e2b", 10, 30_040)
            .finished(false, 30_025)
            .routed("e2b", "explicit"),
    );
    s.send(e2b("python", 20, 30_030).failed(message).exception("Error", message));
    s.send(node(s, &caller, 5, 30_050).gave_up(message, 1));
    let row = json!({
        "runtime": "e2b", "language": "python", "duration_ms": 30_025, "success": false, "error_message": message,
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// Runs elsewhere, and still says what was asked for: only `vm2` is corrected, since it is what is said by default.
fn e2b_not_available(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "javascript", "e2b", 10, 40)
            .finished(true, 29)
            .routed("e2b", "explicit"),
    );
    s.send(inner("javascript", "vm2", true, 15, 35));
    s.send(node(s, &caller, 5, 50).completed(1));
    let row = json!({"runtime": "e2b", "language": "javascript", "duration_ms": 29, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn wasmedge_success(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "javascript", "wasmedge", 10, 300)
            .finished(true, 290)
            .routed("wasmedge", "explicit"),
    );
    let compile = Draft::new("sos-wasm-compiler", "wasm.compile", 21, 100).with(json!({
        "wasm.language": "javascript", "wasm.code_length": 120, "wasm.cache_hit": false,
        "wasm.compilation_time_ms": 79, "wasm.binary_size": 2_048,
    }));
    s.send(compile.ok());
    let wasmedge = wasmedge("javascript", 20, 290).with(json!({
        "wasmedge.compilation_time_ms": 79, "wasmedge.wasm_size": 2_048, "wasmedge.success": true,
        "wasmedge.execution_time_ms": 180,
    }));
    s.send(wasmedge.ok());
    s.send(node(s, &caller, 5, 310).completed(1));
    let row = json!({"runtime": "wasmedge", "language": "javascript", "duration_ms": 290, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn wasmedge_failure(s: &mut Story) {
    let caller = Caller::node(s);
    let message = "WASM compilation failed: javy: unexpected token";
    let run = s.send(
        code(&caller, "javascript", "wasmedge", 10, 60)
            .finished(false, 50)
            .routed("wasmedge", "explicit"),
    );
    s.send(wasmedge("javascript", 20, 55).failed(message).exception("127", message));
    s.send(node(s, &caller, 5, 70).gave_up(message, 1));
    let row = json!({
        "runtime": "wasmedge", "language": "javascript", "duration_ms": 50, "success": false,
        "error_message": message,
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// The spans of a job; what ends it comes from outside.
fn bacalhau_job(s: &mut Story, end: Draft, states: &[&str]) {
    s.send(end.with(json!({"bacalhau.job_id": "job-1"})));
    let job = |name: &str, at: i64| Draft::new("sos-bacalhau-runtime", name, at, at + 10).ok();
    let submit = json!({
        "bacalhau.language": "python", "bacalhau.code_length": 120, "bacalhau.gpu_enabled": false,
        "bacalhau.gpu_count": 0, "bacalhau.job_id": "job-1",
    });
    s.send(job("bacalhau.submit_job", 25).with(submit));
    for (turn, state) in states.iter().enumerate() {
        let poll = json!({"bacalhau.job_id": "job-1", "bacalhau.job_status": state});
        s.send(job("bacalhau.get_job_status", 5_030 + 5_000 * turn as i64).with(poll));
    }
}

fn bacalhau_success(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 15_100)
            .finished(true, 15_080)
            .routed("vm2", "auto"),
    );
    s.send(route("python", "auto", "bacalhau", true, 15, 15_090));
    let end = bacalhau("python", 20, 15_080).with(json!({"bacalhau.success": true, "bacalhau.duration_ms": 15_060}));
    bacalhau_job(s, end.ok(), &["pending", "running", "completed"]);
    s.send(node(s, &caller, 5, 15_200).completed(1));
    let row = json!({"runtime": "bacalhau", "language": "python", "duration_ms": 15_080, "success": true});
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn bacalhau_failure(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "bacalhau", 10, 10_100)
            .finished(false, 10_080)
            .routed("bacalhau", "explicit"),
    );
    let end = bacalhau("python", 20, 10_080)
        .with(json!({"bacalhau.success": false}))
        .failed("Job failed");
    bacalhau_job(s, end, &["pending", "failed"]);
    s.send(node(s, &caller, 5, 10_200).gave_up("Job failed", 1));
    let row = json!({
        "runtime": "bacalhau", "language": "python", "duration_ms": 10_080, "success": false,
        "error_message": "Job failed",
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

fn bacalhau_timeout(s: &mut Story) {
    let caller = Caller::node(s);
    let run = code(&caller, "python", "bacalhau", 10, 600_100)
        .finished(false, 600_080)
        .routed("bacalhau", "explicit");
    let run = s.send(run.with(json!({"code.timeout_ms": 600_000})));
    bacalhau_job(
        s,
        bacalhau("python", 20, 600_080).failed("Job execution timed out"),
        &["running"],
    );
    s.send(node(s, &caller, 5, 600_200).gave_up("Job execution timed out", 1));
    let row = json!({
        "runtime": "bacalhau", "language": "python", "duration_ms": 600_080, "success": false,
        "error_message": "Job execution timed out",
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
}

/// Nobody is logged in: the workspace is known from the workflow, the rest is not.
fn anonymous_node(s: &mut Story) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(code(&caller, "javascript", "vm2", 10, 17).finished(true, 7));
    s.send(
        node(s, &caller, 5, 30)
            .with(json!({"user.id": "", "organization.id": ""}))
            .completed(1),
    );
    let row = json!({
        "runtime": "vm2", "language": "javascript", "duration_ms": 7, "success": true, "workspace_id": s.id("ws"),
    });
    s.expect(&run, [caller.columns(), row]);
}

fn registry(s: &Story, at: i64) -> Draft {
    Draft::new("sos-code-agent-registry", "codeAgentRegistry.getAgent", at, at + 2)
        .with(json!({"agent.id": s.id("cag"), "agent.version": "latest", "agent.tenant_check": "passed"}))
        .ok()
}

fn code_agent(s: &mut Story) {
    let caller = Caller::code_agent(s);
    s.send(registry(s, 5));
    let run = s.send(
        code(&caller, "python", "subprocess", 10, 60)
            .finished(true, 50)
            .with(json!({"code.memory_mb": 1.5})),
    );
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 50, "memory_mb": 2, "success": true,
        "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

/// No span knows why.
fn code_agent_failed(s: &mut Story) {
    let caller = Caller::code_agent(s);
    s.send(registry(s, 5));
    let run = s.send(
        code(&caller, "python", "vm2", 10, 60)
            .finished(false, 50)
            .routed("vm2", "auto"),
    );
    s.send(route("python", "auto", "subprocess", false, 12, 58));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 50, "success": false,
        "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

fn pre_ingest_hook(s: &mut Story) {
    let caller = Caller::hook(s, "pre-ingest");
    let run = s.send(code(&caller, "javascript", "vm2", 10, 17).finished(true, 7));
    let around = hook(s, "pre-ingest", 5, 20)
        .with(json!({"hook.success": true, "hook.output_length": 10}))
        .ok();
    s.send(around);
    let row = json!({
        "runtime": "vm2", "language": "javascript", "duration_ms": 7, "success": true, "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

fn post_answer_hook_failed(s: &mut Story) {
    let caller = Caller::hook(s, "post-answer");
    let run = s.send(code(&caller, "python", "subprocess", 10, 17).finished(false, 7));
    s.send(hook(s, "post-answer", 5, 20).failed("division by zero"));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 7, "success": false,
        "code_agent_id": s.id("cag"), "error_message": "division by zero",
    });
    s.expect(&run, [caller.columns(), row]);
}

/// Nothing says that the two belong together, but for the id in the name of the node.
fn post_answer_hook_failed_scattered(s: &mut Story) {
    let caller = Caller::hook(s, "post-answer");
    let run = s.send(code(&caller, "python", "subprocess", 10, 17).finished(false, 7));
    s.send(hook(s, "post-answer", 5, 20).failed("division by zero"));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 7, "success": false,
        "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

fn agent_tool(s: &mut Story) {
    let caller = Caller::tool();
    let run = s.send(code(&caller, "javascript", "vm2", 10, 17).finished(true, 7));
    let row = json!({"runtime": "vm2", "language": "javascript", "duration_ms": 7, "success": true});
    s.expect(&run, [caller.columns(), row]);
}

/// The second span of a run is no execution, also when the first one was lost.
fn router_alone(s: &mut Story) {
    s.send(route("python", "auto", "subprocess", true, 12, 380));
    s.send(inner("python", "subprocess", true, 15, 370));
}
