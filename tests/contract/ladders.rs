//! Where each column comes from: the best source that is known, whenever it comes. A better one replaces a worse one,
//! never the reverse; where more than one matches nobody guesses.

use crate::executors::*;
use crate::orders::{self, Case, scattered, traced};
use crate::story::{Draft, Story};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn each_column_takes_the_best_source_in_every_order() {
    orders::check("each_column_takes_the_best_source_in_every_order", &sources()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ambiguous_is_null_in_every_order() {
    orders::check("what_is_ambiguous_is_null_in_every_order", &ambiguous()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_loops_and_parallel_nodes_are_told_apart_in_every_order() {
    orders::check(
        "retries_loops_and_parallel_nodes_are_told_apart_in_every_order",
        &repeated(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_belong_together_by_ids_or_trace_and_time_in_every_order() {
    orders::check(
        "spans_belong_together_by_ids_or_trace_and_time_in_every_order",
        &matching(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_on_one_database_complete_what_the_other_has_half_of() {
    orders::check_through_two_sidecars(
        "two_sidecars_on_one_database_complete_what_the_other_has_half_of",
        &[
            scattered("retries", retries),
            scattered("loop", loop_of_two),
            traced("two nodes around", two_nodes_around),
            traced("one route inside two executions", one_route_in_two_executions),
            traced("memory and exit code: e2b", memory_and_exit_code_of_e2b),
            traced("runtime: route and inner span", route_beats_inner_span),
            traced("organization: all sources", organization_of_the_span),
            traced("error: hook", error_of_the_hook),
            traced("no ids, same trace", no_ids_same_trace),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_judged_from_the_best_that_the_span_says() {
    orders::check("success_is_judged_from_the_best_that_the_span_says", &verdicts()).await;
}

/// Stories of this kind.
pub fn sources() -> Vec<Case> {
    vec![
        traced("organization: all sources", organization_of_the_span),
        traced("organization: node, resource, namespace", organization_of_the_node),
        traced("organization: resource, namespace", organization_of_the_resource),
        traced("organization: namespace", organization_of_the_namespace),
        traced("organization: namespace default", organization_unknown),
        traced("workspace and user: all sources", people_of_the_span),
        traced("workspace and user: node and resource", people_of_the_node),
        traced("workspace and user: resource", people_of_the_resource),
        traced("memory and exit code: own and e2b", own_memory_and_exit_code),
        traced("memory and exit code: e2b", memory_and_exit_code_of_e2b),
        traced("memory and exit code: own zero", own_zero_beats_the_runtime),
        traced("runtime: route and inner span", route_beats_inner_span),
        traced("runtime: none of its own", no_runtime_of_its_own),
        traced("runtime: explicit", explicit_runtime_stays),
        traced("error: all sources", status_beats_everything),
        traced("error: exception and node", exception_beats_node),
        traced("error: node", error_of_the_node),
        traced("error: hook", error_of_the_hook),
        traced("error: exception and hook", exception_beats_hook),
        traced("success keeps no error of a node", success_has_no_error),
        traced("a status of OK has no error", ok_with_a_message),
        traced("agent: all sources", agent_of_the_span),
        traced("agent: workflow", agent_of_the_workflow),
        traced("agent: hook alone", agent_of_the_hook),
        traced("agent: not every workflow that begins so", no_agent),
    ]
}

/// Stories of this kind.
pub fn ambiguous() -> Vec<Case> {
    vec![
        traced("two nodes around", two_nodes_around),
        scattered("two nodes around, scattered", two_nodes_around),
        traced("two routes inside", two_routes_inside),
        traced("two sandboxes inside", two_sandboxes_inside),
        traced("one route inside two executions", one_route_in_two_executions),
        traced("one sandbox inside two executions", one_sandbox_in_two_executions),
        traced("two hooks around", two_hooks_around),
    ]
}

/// Stories of this kind.
pub fn repeated() -> Vec<Case> {
    vec![
        traced("retries", retries),
        scattered("retries, scattered", retries),
        scattered("retries, at last well", retries_that_end_well),
        scattered(
            "retries, at last well, and the node fails",
            retries_that_end_well_in_vain,
        ),
        scattered("retries, the last one is lost", retries_without_the_last),
        scattered("twenty attempts", twenty_attempts),
        traced("runs of a tool one after the other", runs_of_a_tool),
        scattered("retries with exceptions", retries_that_throw),
        traced("loop", loop_of_two),
        scattered("loop, scattered", loop_of_two),
        scattered("loop of retries", loop_of_retries),
        traced("parallel nodes", parallel_nodes),
        scattered("parallel nodes, scattered", parallel_nodes),
        traced("parallel nodes with routes apart", parallel_nodes_with_routes),
    ]
}

/// Stories of this kind.
pub fn matching() -> Vec<Case> {
    vec![
        scattered("begins 49 ms early", |s| tolerance(s, (-49, 20), true)),
        scattered("ends 49 ms late", |s| tolerance(s, (10, 149), true)),
        scattered("begins 50 ms early, ends 50 ms late", |s| {
            tolerance(s, (-50, 150), true)
        }),
        scattered("begins 51 ms early", |s| tolerance(s, (-51, 20), false)),
        scattered("ends 51 ms late", |s| tolerance(s, (10, 151), false)),
        scattered("long after", |s| tolerance(s, (5_000, 5_010), false)),
        traced("tolerance of what is inside", |s| tolerance_inside(s, 50, true)),
        traced("too early to be inside", |s| tolerance_inside(s, 51, false)),
        traced("ids differ, trace is the same", ids_differ),
        traced("no ids, same trace", no_ids_same_trace),
        scattered("no ids, other trace", no_ids_other_trace),
        traced("same node of another workflow execution", other_workflow_execution),
        scattered("no execution id, no common trace", half_an_id),
        traced("no node id, common trace", no_node_id),
    ]
}

/// Stories of this kind.
pub fn verdicts() -> Vec<Case> {
    vec![
        traced("each rung of success", success),
        traced("validation", validation),
        traced("what is an execution", what_is_an_execution),
    ]
}

/// A node around one execution; the row apart from what a test is about.
fn run_in_node(s: &mut Story, change_run: impl Fn(Draft) -> Draft, change_node: impl Fn(Draft) -> Draft, row: Value) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(change_run(
        code(&caller, "python", "subprocess", 10, 100).finished(true, 90),
    ));
    let around = json!({"user.id": "", "organization.id": "", "workspace.id": ""});
    s.send(change_node(node(s, &caller, 0, 110).completed(1).with(around)));
    let plain = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [caller.columns(), plain, row]);
}

fn organization_of_the_span(s: &mut Story) {
    run_in_node(
        s,
        |run| {
            run.with(json!({"organization.id": "org-span", "security.namespace": "org-namespace"}))
                .resource(json!({"organization.id": "org-resource"}))
        },
        |node| node.with(json!({"organization.id": "org-node"})),
        json!({"organization_id": "org-span"}),
    );
}

fn organization_of_the_node(s: &mut Story) {
    run_in_node(
        s,
        |run| {
            run.with(json!({"organization.id": "", "security.namespace": "org-namespace"}))
                .resource(json!({"organization.id": "org-resource"}))
        },
        |node| node.with(json!({"organization.id": "org-node"})),
        json!({"organization_id": "org-node"}),
    );
}

fn organization_of_the_resource(s: &mut Story) {
    run_in_node(
        s,
        |run| {
            run.with(json!({"security.namespace": "org-namespace"}))
                .resource(json!({"organization.id": "org-resource"}))
        },
        |node| node,
        json!({"organization_id": "org-resource"}),
    );
}

fn organization_of_the_namespace(s: &mut Story) {
    run_in_node(
        s,
        |run| {
            run.with(json!({"security.namespace": "org-namespace"}))
                .resource(json!({"organization.id": ""}))
        },
        |node| node,
        json!({"organization_id": "org-namespace"}),
    );
}

fn organization_unknown(s: &mut Story) {
    run_in_node(s, |run| run, |node| node, json!({}));
}

fn people(of: &str) -> Value {
    json!({"workspace.id": format!("ws-{of}"), "user.id": format!("user-{of}")})
}

fn people_of_the_span(s: &mut Story) {
    run_in_node(
        s,
        |run| run.with(people("span")).resource(people("resource")),
        |node| node.with(people("node")),
        json!({"workspace_id": "ws-span", "user_id": "user-span"}),
    );
}

fn people_of_the_node(s: &mut Story) {
    run_in_node(
        s,
        |run| {
            run.with(json!({"workspace.id": "", "user.id": ""}))
                .resource(people("resource"))
        },
        |node| node.with(people("node")),
        json!({"workspace_id": "ws-node", "user_id": "user-node"}),
    );
}

fn people_of_the_resource(s: &mut Story) {
    run_in_node(
        s,
        |run| run.resource(people("resource")),
        |node| node.with(json!({"user.id": "user-node"})),
        json!({"workspace_id": "ws-resource", "user_id": "user-node"}),
    );
}

/// An execution on E2B with its sandbox.
fn run_on_e2b(s: &mut Story, change_run: impl Fn(Draft) -> Draft, change_e2b: impl Fn(Draft) -> Draft, row: Value) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(change_run(code(&caller, "python", "e2b", 10, 100).finished(true, 90)));
    s.send(change_e2b(e2b_ended("python", 0, 20, 90)));
    let plain = json!({"runtime": "e2b", "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [caller.columns(), plain, row]);
}

fn own_memory_and_exit_code(s: &mut Story) {
    run_on_e2b(
        s,
        |run| run.with(json!({"code.memory_mb": 12.5, "code.exit_code": 3})),
        |e2b| e2b.with(json!({"e2b.memory_mb": 77, "e2b.exit_code": 4})),
        json!({"memory_mb": 13, "exit_code": 3}),
    );
}

fn memory_and_exit_code_of_e2b(s: &mut Story) {
    run_on_e2b(
        s,
        |run| run,
        |e2b| e2b.with(json!({"e2b.memory_mb": 76.5, "e2b.exit_code": 4})),
        json!({"memory_mb": 77, "exit_code": 4}),
    );
}

fn own_zero_beats_the_runtime(s: &mut Story) {
    run_on_e2b(
        s,
        |run| run.with(json!({"code.memory_mb": 0, "code.exit_code": 0})),
        |e2b| e2b.with(json!({"e2b.memory_mb": 77, "e2b.exit_code": 4})),
        json!({"memory_mb": 0, "exit_code": 0}),
    );
}

/// An execution with what the router did inside.
fn run_routed(s: &mut Story, runtime: Option<&str>, inside: &[Draft], expected: &str) {
    let caller = Caller::anonymous_node(s);
    let mut run = code(&caller, "python", runtime.unwrap_or("vm2"), 10, 100).finished(true, 90);
    if runtime.is_none() {
        run = run.without(&["code.runtime"]);
    }
    let run = s.send(run);
    for inside in inside {
        s.send(inside.clone());
    }
    let row = json!({"runtime": expected, "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [caller.columns(), row]);
}

/// Listed first, "or": either says it where the other is not there.
fn route_beats_inner_span(s: &mut Story) {
    let inside = [
        route("python", "auto", "subprocess", true, 12, 95),
        inner("python", "subprocess", true, 15, 90),
    ];
    run_routed(s, Some("vm2"), &inside, "subprocess");
}

fn no_runtime_of_its_own(s: &mut Story) {
    run_routed(s, None, &[], "unknown");
}

fn explicit_runtime_stays(s: &mut Story) {
    let inside = [
        route("python", "wasmedge", "subprocess", true, 12, 95),
        inner("python", "subprocess", true, 15, 90),
    ];
    run_routed(s, Some("wasmedge"), &inside, "wasmedge");
}

/// A failed execution in a node that failed.
fn failed_in_node(s: &mut Story, change_run: impl Fn(Draft) -> Draft, error: &str) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(change_run(
        code(&caller, "python", "subprocess", 10, 100).finished(false, 90),
    ));
    let around = json!({"user.id": "", "organization.id": "", "workspace.id": ""});
    s.send(node(s, &caller, 0, 110).gave_up("error of the node", 1).with(around));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false, "error_message": error,
    });
    s.expect(&run, [caller.columns(), row]);
}

fn status_beats_everything(s: &mut Story) {
    failed_in_node(s, |run| run.failed("status").exception("Error", "exception"), "status");
}

fn exception_beats_node(s: &mut Story) {
    failed_in_node(s, |run| run.exception("Error", "exception"), "exception");
}

fn error_of_the_node(s: &mut Story) {
    failed_in_node(s, |run| run, "error of the node");
}

/// A failed execution in a hook that failed.
fn failed_in_hook(s: &mut Story, change_run: impl Fn(Draft) -> Draft, error: &str) {
    let caller = Caller::hook(s, "pre-ingest");
    let run = s.send(change_run(
        code(&caller, "python", "subprocess", 10, 100).finished(false, 90),
    ));
    s.send(hook(s, "pre-ingest", 0, 110).failed("status of the hook"));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false, "error_message": error,
        "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

fn error_of_the_hook(s: &mut Story) {
    failed_in_hook(s, |run| run, "status of the hook");
}

fn exception_beats_hook(s: &mut Story) {
    failed_in_hook(s, |run| run.exception("Error", "exception"), "exception");
}

/// The node failed for something that came after the code.
fn success_has_no_error(s: &mut Story) {
    run_in_node(
        s,
        |run| run,
        |node| node.gave_up("could not store the output", 1),
        json!({}),
    );
}

/// As `sandbox_escape.analyze` does it. OTLP knows messages of errors only.
fn ok_with_a_message(s: &mut Story) {
    let run = s.send(execution("python", 10, 100).alone());
    s.span(&run).status.as_mut().unwrap().message = "No escape attempts detected".to_owned();
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 90, "success": true}),
    );
}

/// An execution whose ids name an agent in more than one way, in a hook that names one too.
fn run_of_agent(s: &mut Story, attributes: Value, agent: Option<&str>) {
    let caller = Caller::nobody();
    let run = s.send(
        code(&caller, "python", "subprocess", 10, 100)
            .finished(true, 90)
            .with(attributes.clone()),
    );
    s.send(
        hook(s, "pre-ingest", 0, 110)
            .with(json!({"hook.agent_id": "cag-hook"}))
            .ok(),
    );
    let node_id = attributes["node.id"].as_str().map_or(Value::Null, Value::from);
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": true, "code_agent_id": agent,
        "node_id": node_id,
    });
    s.expect(&run, row);
}

fn agent_of_the_span(s: &mut Story) {
    let ids = json!({"code.agent_id": "cag-span", "workflow.id": "agent-cag-workflow", "node.id": "code-agent"});
    run_of_agent(s, ids, Some("cag-span"));
}

fn agent_of_the_workflow(s: &mut Story) {
    run_of_agent(
        s,
        json!({"workflow.id": "agent-cag-workflow", "node.id": "code-agent"}),
        Some("cag-workflow"),
    );
}

fn agent_of_the_hook(s: &mut Story) {
    run_of_agent(s, json!({}), Some("cag-hook"));
}

fn no_agent(s: &mut Story) {
    let mut caller = Caller::node(s);
    caller.workflow_id = "agent-cag-workflow".to_owned();
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(true, 90));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [caller.columns(), row]);
}

fn two_nodes_around(s: &mut Story) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    s.send(
        node(s, &caller, 0, 110)
            .gave_up("one", 1)
            .with(people("one"))
            .with(json!({"organization.id": "org-one"})),
    );
    s.send(
        node(s, &caller, 5, 120)
            .gave_up("two", 1)
            .with(people("two"))
            .with(json!({"organization.id": "org-two"})),
    );
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false});
    s.expect(&run, [caller.columns(), row]);
}

fn two_routes_inside(s: &mut Story) {
    let inside = [
        route("python", "auto", "subprocess", true, 12, 50),
        route("python", "auto", "e2b", true, 52, 95),
    ];
    run_routed(s, Some("vm2"), &inside, "vm2");
}

fn two_sandboxes_inside(s: &mut Story) {
    let caller = Caller::anonymous_node(s);
    let run = s.send(code(&caller, "python", "e2b", 10, 200).finished(true, 190));
    s.send(e2b_ended("python", 0, 20, 90).with(json!({"e2b.memory_mb": 10})));
    s.send(e2b_ended("python", 0, 100, 190).with(json!({"e2b.memory_mb": 20})));
    let row = json!({"runtime": "e2b", "language": "python", "duration_ms": 190, "success": true});
    s.expect(&run, [caller.columns(), row]);
}

/// Two nodes at the same time in one trace: the route lies inside both executions, and says of neither where it ran.
fn one_route_in_two_executions(s: &mut Story) {
    for node in ["a", "b"] {
        let caller = Caller {
            node_id: s.id(node),
            ..Caller::anonymous_node(s)
        };
        let run = s.send(code(&caller, "python", "vm2", 10, 100).finished(true, 90));
        let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 90, "success": true});
        s.expect(&run, [caller.columns(), row]);
    }
    s.send(route("python", "auto", "subprocess", true, 20, 90));
}

fn one_sandbox_in_two_executions(s: &mut Story) {
    for node in ["a", "b"] {
        let caller = Caller {
            node_id: s.id(node),
            ..Caller::anonymous_node(s)
        };
        let run = s.send(code(&caller, "python", "e2b", 10, 100).finished(true, 90));
        let row = json!({"runtime": "e2b", "language": "python", "duration_ms": 90, "success": true});
        s.expect(&run, [caller.columns(), row]);
    }
    s.send(e2b_ended("python", 0, 20, 90));
}

fn two_hooks_around(s: &mut Story) {
    let run = s.send(code(&Caller::nobody(), "python", "subprocess", 10, 100).finished(false, 90));
    for agent in ["cag-one", "cag-two"] {
        s.send(
            hook(s, "pre-ingest", 0, 110)
                .with(json!({"hook.agent_id": agent}))
                .failed(agent),
        );
    }
    s.expect(
        &run,
        json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false}),
    );
}

/// One attempt of a node, from `start_ms` on for 100 ms; what its row says if nothing is known of why it failed.
fn attempt(s: &mut Story, caller: &Caller, start_ms: i64, success: bool, row: Value) {
    let run = s.send(code(caller, "python", "subprocess", start_ms, start_ms + 100).finished(success, 100));
    let plain = json!({"runtime": "subprocess", "language": "python", "duration_ms": 100, "success": success});
    s.expect(&run, [caller.columns(), tenant(s), plain, row]);
}

fn retries(s: &mut Story) {
    let caller = Caller::node(s);
    attempt(s, &caller, 10, false, json!({}));
    attempt(s, &caller, 1_120, false, json!({}));
    attempt(s, &caller, 3_230, false, json!({"error_message": "third"}));
    s.send(node(s, &caller, 0, 3_335).gave_up("third", 3));
}

fn retries_that_end_well(s: &mut Story) {
    let caller = Caller::node(s);
    attempt(s, &caller, 10, false, json!({}));
    attempt(s, &caller, 1_120, false, json!({}));
    attempt(s, &caller, 3_230, true, json!({}));
    s.send(node(s, &caller, 0, 3_335).completed(3));
}

/// The node fails for what came after the code; the first attempt failed for something else.
fn retries_that_end_well_in_vain(s: &mut Story) {
    let caller = Caller::node(s);
    attempt(s, &caller, 10, false, json!({}));
    attempt(s, &caller, 1_120, true, json!({}));
    s.send(node(s, &caller, 0, 1_500).gave_up("could not store the output", 2));
}

fn twenty_attempts(s: &mut Story) {
    let caller = Caller::node(s);
    for number in 0..19 {
        attempt(s, &caller, 10 + 1_000 * number, false, json!({}));
    }
    attempt(s, &caller, 19_010, false, json!({"error_message": "the last"}));
    s.send(node(s, &caller, 0, 19_115).gave_up("the last", 20));
}

/// An agent's node around runs of its tool: all of one trace, and each run with what is inside it.
fn runs_of_a_tool(s: &mut Story) {
    let caller = Caller::tool();
    let agent = Caller {
        node_id: s.id("agent"),
        ..Caller::node(s)
    };
    for (at, selected) in [(100, "subprocess"), (1_000, "e2b")] {
        let run = s.send(
            code(&caller, "python", "vm2", at, at + 300)
                .finished(true, 300)
                .routed("vm2", "auto"),
        );
        s.send(route("python", "auto", selected, true, at + 10, at + 290));
        let row = json!({"runtime": selected, "language": "python", "duration_ms": 300, "success": true});
        s.expect(&run, [caller.columns(), tenant(s), row]);
    }
    s.send(
        node(s, &agent, 0, 2_000)
            .named("node.execute.ai.agent")
            .with(json!({"node.type": "ai.agent"}))
            .completed(1),
    );
}

/// What the node says is true of the third attempt alone, of which nobody hears.
fn retries_without_the_last(s: &mut Story) {
    let caller = Caller::node(s);
    attempt(s, &caller, 10, false, json!({}));
    attempt(s, &caller, 1_120, false, json!({}));
    s.send(node(s, &caller, 0, 3_335).gave_up("third", 3));
}

fn retries_that_throw(s: &mut Story) {
    let caller = Caller::node(s);
    for (at, message) in [(10, "first"), (1_120, "second")] {
        let run = code(&caller, "python", "subprocess", at, at + 100).exception("Error", message);
        let run = s.send(run);
        let row = json!({
            "runtime": "subprocess", "language": "python", "duration_ms": 100, "success": false,
            "error_message": message,
        });
        s.expect(&run, [caller.columns(), tenant(s), row]);
    }
    s.send(node(s, &caller, 0, 1_225).gave_up("actualRuntime is not defined", 2));
}

fn loop_of_two(s: &mut Story) {
    let caller = Caller::node(s);
    for (at, error) in [(0, "first turn"), (1_000, "second turn")] {
        attempt(
            s,
            &caller,
            at + 10,
            false,
            json!({"error_message": error, "user_id": error}),
        );
        s.send(
            node(s, &caller, at, at + 120)
                .gave_up(error, 1)
                .with(json!({"user.id": error})),
        );
    }
}

fn loop_of_retries(s: &mut Story) {
    let caller = Caller::node(s);
    for (at, error) in [(0, "first turn"), (5_000, "second turn")] {
        attempt(s, &caller, at + 10, false, json!({}));
        attempt(s, &caller, at + 1_120, false, json!({"error_message": error}));
        s.send(node(s, &caller, at, at + 1_230).gave_up(error, 2));
    }
}

fn parallel_nodes(s: &mut Story) {
    for name in ["a", "b"] {
        let caller = Caller {
            node_id: s.id(name),
            ..Caller::node(s)
        };
        attempt(s, &caller, 10, false, json!({"error_message": name, "user_id": name}));
        s.send(node(s, &caller, 5, 120).gave_up(name, 1).with(json!({"user.id": name})));
    }
}

/// Two executions that overlap, each with a route that only it encloses.
fn parallel_nodes_with_routes(s: &mut Story) {
    let runs = [
        ("a", (0, 400), (10, 150), "subprocess"),
        ("b", (300, 800), (500, 790), "e2b"),
    ];
    for (name, (start, end), (from, to), selected) in runs {
        let caller = Caller {
            node_id: s.id(name),
            ..Caller::node(s)
        };
        let run = s.send(code(&caller, "python", "vm2", start, end).finished(true, end - start));
        s.send(route("python", "auto", selected, true, from, to));
        let row = json!({"runtime": selected, "language": "python", "duration_ms": end - start, "success": true});
        s.expect(&run, [caller.columns(), row]);
    }
}

/// A node from 0 to 100, and an execution of it.
fn tolerance(s: &mut Story, (start, end): (i64, i64), matches: bool) {
    let caller = Caller::node(s);
    let run = s.send(code(&caller, "python", "subprocess", start, end).finished(true, end - start));
    s.send(node(s, &caller, 0, 100).completed(1));
    let who = if matches { tenant(s) } else { json!({}) };
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": end - start, "success": true});
    s.expect(&run, [caller.columns(), who, row]);
}

/// A route that begins and ends so much outside of its execution.
fn tolerance_inside(s: &mut Story, outside: i64, matches: bool) {
    let selected = if matches { "subprocess" } else { "vm2" };
    let inside = [route("python", "auto", "subprocess", true, 10 - outside, 100)];
    run_routed(s, Some("vm2"), &inside, selected);
    let caller = Caller::anonymous_node(s);
    let run = code(&caller, "python", "vm2", 10_010, 10_100)
        .finished(true, 90)
        .in_trace(1);
    let run = s.send(run);
    s.send(route("python", "auto", "subprocess", true, 10_020, 10_100 + outside).in_trace(1));
    let row = json!({"runtime": selected, "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [caller.columns(), row]);
}

fn ids_differ(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    let other = Caller {
        node_id: s.id("other"),
        ..caller.clone()
    };
    s.send(node(s, &other, 0, 110).gave_up("of the other", 1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false});
    s.expect(&run, [caller.columns(), row]);
}

fn no_ids_same_trace(s: &mut Story) {
    let run = s.send(code(&Caller::nobody(), "python", "subprocess", 10, 100).finished(false, 90));
    s.send(node(s, &Caller::nobody(), 0, 110).gave_up("of the node", 1));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false,
        "error_message": "of the node",
    });
    s.expect(&run, [tenant(s), row]);
}

fn no_ids_other_trace(s: &mut Story) {
    let run = s.send(code(&Caller::nobody(), "python", "subprocess", 10, 100).finished(false, 90));
    s.send(node(s, &Caller::nobody(), 0, 110).gave_up("of the node", 1));
    s.expect(
        &run,
        json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false}),
    );
}

fn other_workflow_execution(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    let other = Caller {
        execution_id: s.id("other"),
        ..caller.clone()
    };
    s.send(node(s, &other, 0, 110).gave_up("of the other", 1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false});
    s.expect(&run, [caller.columns(), row]);
}

/// The trace says what an id does not, as long as no id says otherwise.
fn no_node_id(s: &mut Story) {
    let caller = Caller::node(s);
    let nameless = Caller {
        node_id: String::new(),
        ..caller.clone()
    };
    let run = s.send(code(&nameless, "python", "subprocess", 10, 100).finished(true, 90));
    s.send(node(s, &caller, 0, 110).completed(1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": true});
    s.expect(&run, [nameless.columns(), tenant(s), row]);
}

/// `node.id` alone names no run.
fn half_an_id(s: &mut Story) {
    let caller = Caller {
        execution_id: String::new(),
        ..Caller::node(s)
    };
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    s.send(node(s, &caller, 0, 110).gave_up("of the node", 1));
    let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false});
    s.expect(&run, [caller.columns(), row]);
}

/// An execution that stands for itself, with these attributes only.
fn bare(s: &mut Story, attributes: Value, end: impl Fn(Draft) -> Draft, row: Value) {
    let run = s.send(end(Draft::new("any", "any", 10, 20).with(attributes)).alone());
    s.expect(
        &run,
        [
            json!({"runtime": "unknown", "language": "unknown", "duration_ms": 10}),
            row,
        ],
    );
}

fn success(s: &mut Story) {
    let good = |s: &mut Story, attributes: Value, end: fn(Draft) -> Draft| {
        let code = attributes["code.exit_code"].clone();
        bare(
            s,
            attributes,
            end,
            json!({"success": true, "runtime": "r", "exit_code": code}),
        );
    };
    good(
        s,
        json!({"code.runtime": "r", "code.success": true, "code.has_error": true}),
        |run| run.failed(""),
    );
    good(s, json!({"code.runtime": "r", "code.has_error": false}), |run| {
        run.failed("")
    });
    good(s, json!({"code.runtime": "r", "code.exit_code": 1}), Draft::ok);
    good(s, json!({"code.runtime": "r", "code.exit_code": 0}), |run| run);
    good(s, json!({"code.runtime": "r"}), |run| run);
    let bad = |s: &mut Story, attributes: Value, end: fn(Draft) -> Draft, error: Value| {
        let code = attributes["code.exit_code"].clone();
        bare(
            s,
            attributes,
            end,
            json!({"success": false, "runtime": "r", "exit_code": code, "error_message": error}),
        );
    };
    bad(
        s,
        json!({"code.runtime": "r", "code.success": false, "code.has_error": false}),
        Draft::ok,
        Value::Null,
    );
    bad(
        s,
        json!({"code.runtime": "r", "code.has_error": true}),
        Draft::ok,
        Value::Null,
    );
    bad(
        s,
        json!({"code.runtime": "r", "code.exit_code": 0}),
        |run| run.failed(""),
        Value::Null,
    );
    bad(
        s,
        json!({"code.runtime": "r", "code.exit_code": 2}),
        |run| run,
        Value::Null,
    );
    bad(
        s,
        json!({"code.runtime": "r", "code.exit_code": -1}),
        |run| run,
        Value::Null,
    );
    bad(
        s,
        json!({"code.runtime": "r"}),
        |run| run.exception("Error", "thrown"),
        "thrown".into(),
    );
    bad(s, json!({"code.runtime": "r"}), |run| run.failed("said"), "said".into());
}

fn validation(s: &mut Story) {
    let given = |s: &mut Story, input: Value, output: Value, expected: Value| {
        let attributes = json!({
            "code.runtime": "r", "code.validation_passed": input, "code.output_validation_passed": output,
        });
        bare(
            s,
            attributes,
            Draft::ok,
            json!({"success": true, "runtime": "r", "validation_passed": expected}),
        );
    };
    let (yes, no, none) = (json!(true), json!(false), Value::Null);
    given(s, yes.clone(), yes.clone(), yes.clone());
    given(s, yes.clone(), no.clone(), no.clone());
    given(s, yes.clone(), none.clone(), yes.clone());
    given(s, no.clone(), yes.clone(), no.clone());
    given(s, no.clone(), none.clone(), no.clone());
    given(s, none.clone(), no.clone(), no.clone());
    given(s, none.clone(), none.clone(), none.clone());
}

/// One of four attributes makes an execution; the rest of `code.*` does not.
fn what_is_an_execution(s: &mut Story) {
    bare(
        s,
        json!({"code.runtime": "node"}),
        Draft::ok,
        json!({"success": true, "runtime": "node"}),
    );
    bare(s, json!({"code.success": false}), Draft::ok, json!({"success": false}));
    bare(
        s,
        json!({"code.exit_code": 0}),
        Draft::ok,
        json!({"success": true, "exit_code": 0}),
    );
    bare(
        s,
        json!({"code.duration_ms": 7}),
        Draft::ok,
        json!({"success": true, "duration_ms": 7}),
    );
    let ordinary = json!({
        "code.function.name": "GET /", "code.file.path": "/app/index.js", "code.line.number": 1, "code.function": "f",
        "code.namespace": "n", "code.language": "python", "code.memory_mb": 5, "code.tokens_used": 6,
        "code.validation_passed": true, "code.timeout_ms": 100,
    });
    s.send(Draft::new("any", "code.execute", 10, 20).with(ordinary).ok().alone());
    // Either id alone is somebody else's.
    for ids in [
        json!({"workflow.id": "runtime-router"}),
        json!({"workflow.id": "runtime-router", "node.id": "n"}),
    ] {
        let node_id = ids["node.id"].clone();
        let attributes = [json!({"code.runtime": "r"}), ids];
        let merged = crate::story::Columns::from(attributes).0;
        bare(
            s,
            Value::Object(merged),
            Draft::ok,
            json!({"success": true, "runtime": "r", "node_id": node_id}),
        );
    }
    let only_node = json!({"code.runtime": "r", "node.id": "code-execution", "workflow.id": "wf"});
    bare(
        s,
        only_node,
        Draft::ok,
        json!({"success": true, "runtime": "r", "node_id": "code-execution"}),
    );
}
