//! Every path an execution can take and every caller that can start one, in every order: spans in, all columns out.

use super::support::{S, V, execution, failure, node, permutations, row, rows, span, success};
use crate::ledger::row::Row;

/// The row that most cases share: an execution of trace 1, span 1, from 100 ms to 150 ms.
fn base() -> Row {
    Row {
        id: execution(1, 1, 100, 150).row_id(),
        runtime: "vm2".into(),
        language: "javascript".into(),
        duration_ms: Some(50),
        success: true,
        created_at: super::support::EPOCH + 150 * super::support::MS,
        ..Row::default()
    }
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Spans of one run, and the one row that they give.
pub(super) struct Case {
    pub(super) path: String,
    pub(super) spans: Vec<S>,
    pub(super) expected: Row,
}

/// All cases, which the databases are tested with too.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    ways_an_execution_ends(&mut cases);
    zeros_and_fractions(&mut cases);
    callers(&mut cases);
    routed_runs(&mut cases);
    runtimes_of_their_own(&mut cases);
    cases
}

/// In every order of the spans the one row is what is expected.
fn check_all(cases: fn(&mut Vec<Case>)) {
    let mut all = Vec::new();
    cases(&mut all);
    for case in all {
        for order in permutations(&case.spans) {
            assert_eq!(row(&order), case.expected, "{}", case.path);
        }
    }
}

fn check(cases: &mut Vec<Case>, path: &str, spans: &[S], expected: &Row) {
    cases.push(Case {
        path: path.to_owned(),
        spans: spans.to_vec(),
        expected: expected.clone(),
    });
}

#[test]
fn every_way_an_execution_ends_gives_its_row() {
    check_all(ways_an_execution_ends);
}

fn ways_an_execution_ends(cases: &mut Vec<Case>) {
    let started = || execution(1, 1, 100, 150);
    let by_times = |expected: Row| Row {
        success: false,
        duration_ms: Some(50),
        ..expected
    };
    check(cases, "success", &[success(1, 1, 100, 150)], &base());
    let expected = Row {
        success: false,
        ..base()
    };
    check(
        cases,
        "the runtime returned success: false",
        &[failure(1, 1, 100, 150)],
        &expected,
    );
    for message in ["Code is required", "Unsupported language: cobol"] {
        let expected = by_times(Row {
            error_message: text(message),
            ..base()
        });
        check(cases, message, &[started().status(2, message)], &expected);
    }
    let expected = by_times(Row {
        error_message: text("Input validation failed"),
        validation_passed: Some(false),
        ..base()
    });
    let refused = started()
        .all([
            ("code.validation_passed", V::B(false)),
            ("code.validation_errors", V::I(2)),
        ])
        .status(2, "Input validation failed");
    check(cases, "input schema failed", &[refused], &expected);
    let expected = by_times(Row {
        error_message: text("Output validation failed"),
        validation_passed: Some(false),
        ..base()
    });
    let refused = started()
        .all([
            ("code.validation_passed", V::B(true)),
            ("code.output_validation_passed", V::B(false)),
        ])
        .status(2, "Output validation failed");
    check(cases, "output schema failed", &[refused], &expected);
    let expected = by_times(Row {
        error_message: text("fetch failed"),
        ..base()
    });
    check(
        cases,
        "exception, status unset",
        &[started().exception("TypeError", "fetch failed")],
        &expected,
    );
    // What the backend reports when its own error handling failed: the node says something else than the exception.
    let expected = by_times(Row {
        workflow_execution_id: text("we-1"),
        node_id: text("n-1"),
        organization_id: text("org-1"),
        workspace_id: text("ws-1"),
        user_id: text("user-1"),
        error_message: text("spawn python3 ENOENT"),
        ..base()
    });
    let thrown = started()
        .ids("wf-1", "we-1", "n-1")
        .exception("Error", "spawn python3 ENOENT");
    let around = node(2, 2, 90, 160).ids("wf-1", "we-1", "n-1").all([
        ("node.status", V::S("failed")),
        ("node.error", V::S("actualRuntime is not defined")),
    ]);
    check(cases, "exception inside a node", &[thrown, around], &expected);
    check(cases, "nothing is said at all", &[started()], &base());
}

#[test]
fn what_is_zero_or_false_stays_and_fractions_are_rounded() {
    check_all(zeros_and_fractions);
}

fn zeros_and_fractions(cases: &mut Vec<Case>) {
    let spoken = success(1, 1, 100, 150).all([
        ("code.duration_ms", V::I(0)),
        ("code.memory_mb", V::D(0.37)),
        ("code.exit_code", V::I(0)),
        ("code.tokens_used", V::I(0)),
        ("code.validation_passed", V::B(false)),
    ]);
    let expected = Row {
        duration_ms: Some(0),
        memory_mb: Some(0),
        exit_code: Some(0),
        tokens_used: Some(0),
        validation_passed: Some(false),
        ..base()
    };
    check(cases, "zeros", &[spoken], &expected);
    let numbers_as_text = success(1, 1, 100, 150).all([
        ("code.duration_ms", V::S("12.5")),
        ("code.memory_mb", V::D(2.5)),
        ("code.exit_code", V::S("3")),
    ]);
    let expected = Row {
        duration_ms: Some(13),
        memory_mb: Some(3),
        exit_code: Some(3),
        ..base()
    };
    check(cases, "numbers as text", &[numbers_as_text], &expected);
}

#[test]
fn every_caller_gives_its_ids_and_tenant() {
    check_all(callers);
}

fn callers(cases: &mut Vec<Case>) {
    let expected = Row {
        workflow_execution_id: text("we-1"),
        node_id: text("n-1"),
        organization_id: text("org-1"),
        workspace_id: text("ws-1"),
        user_id: text("user-1"),
        ..base()
    };
    let run = success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let mut around = node(1, 2, 90, 160).ids("wf-1", "we-1", "n-1");
    check(
        cases,
        "a workflow node, one trace",
        &[run.clone(), around.clone()],
        &expected,
    );
    around.0.trace_id = vec![9; 16];
    check(
        cases,
        "a workflow node, a trace each",
        &[run.clone(), around.clone()],
        &expected,
    );

    let by_webhook = node(2, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .all([("user.id", V::S("")), ("organization.id", V::S(""))]);
    let webhook = Row {
        organization_id: None,
        user_id: None,
        ..expected.clone()
    };
    check(
        cases,
        "a workflow node started by a webhook",
        &[run, by_webhook],
        &webhook,
    );

    let route = success(1, 1, 100, 150)
        .ids("agent-ca-7", "agent-exec-1767225600000", "code-agent")
        .with("security.namespace", V::S("org-1"));
    let expected = Row {
        code_agent_id: text("ca-7"),
        workflow_execution_id: text("agent-exec-1767225600000"),
        node_id: text("code-agent"),
        organization_id: text("org-1"),
        ..base()
    };
    check(cases, "the code agent's own route", &[route], &expected);

    for (prefix, hook) in [
        ("pre-ingest-hook-ca-7", "etlHook.preIngest"),
        ("post-answer-hook-ca-7", "etlHook.postAnswer"),
    ] {
        let run = failure(1, 1, 100, 150).ids("wf-1", "", prefix);
        let around = span(hook, 1, 2, 95, 155)
            .all([("hook.agent_id", V::S("ca-7")), ("workflow.id", V::S("wf-1"))])
            .status(2, "x is not defined");
        let expected = Row {
            code_agent_id: text("ca-7"),
            node_id: text(prefix),
            success: false,
            error_message: text("x is not defined"),
            ..base()
        };
        check(cases, hook, &[run, around], &expected);
    }
    // Within the tolerance of a hook that failed, or at the same time, but not of it.
    for (path, node_id, from, to) in [
        ("the node after a hook", "n-2", 40, 100),
        ("a node during a hook", "n-2", 90, 160),
        ("what has no ids after a hook", "", 40, 100),
        ("what has no ids before a hook", "", 150, 200),
        ("what another hook runs", "pre-ingest-hook-ca-8", 90, 160),
    ] {
        let run = failure(1, 1, 100, 150).ids("wf-1", "", node_id);
        let hook = span("etlHook.preIngest", 1, 2, from, to)
            .with("hook.agent_id", V::S("ca-7"))
            .status(2, "x is not defined");
        let expected = Row {
            code_agent_id: node_id.strip_prefix("pre-ingest-hook-").and_then(text),
            node_id: text(node_id).filter(|id| !id.is_empty()),
            success: false,
            ..base()
        };
        check(cases, path, &[run, hook], &expected);
    }
    let hooked = success(1, 1, 100, 150).ids("wf-1", "", "");
    let around = span("etlHook.preIngest", 1, 2, 95, 155).with("hook.agent_id", V::S("ca-8"));
    check(
        cases,
        "a hook's agent by enclosure",
        &[hooked, around],
        &Row {
            code_agent_id: text("ca-8"),
            ..base()
        },
    );

    let tool = success(1, 1, 100, 150).ids("agent-execution", "", "code-tool");
    check(
        cases,
        "an agent's tool",
        std::slice::from_ref(&tool),
        &Row {
            node_id: text("code-tool"),
            ..base()
        },
    );
    let of_agent = node(1, 2, 50, 400).ids("wf-1", "we-1", "n-2").all([
        ("node.status", V::S("failed")),
        ("node.error", V::S("the agent gave up")),
    ]);
    let expected = Row {
        node_id: text("code-tool"),
        organization_id: text("org-1"),
        workspace_id: text("ws-1"),
        user_id: text("user-1"),
        success: false,
        ..base()
    };
    let tool = failure(1, 1, 100, 150).ids("agent-execution", "", "code-tool");
    check(
        cases,
        "an agent's tool inside the agent's node: its tenant, not its error",
        &[tool, of_agent],
        &expected,
    );
}

/// Two `code.execute`, the router between them, and the node around: what one run with default settings sends.
fn routed(selected: &'static str) -> Vec<S> {
    let outer = success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1").all([
        ("code.runtime_selected", V::S("vm2")),
        ("code.routing_reason", V::S("auto")),
    ]);
    let router = span("runtimeRouter.route", 1, 2, 105, 145)
        .all([("runtime.selected", V::S(selected)), ("runtime.success", V::B(true))])
        .status(1, "");
    let inner = success(1, 3, 107, 143)
        .ids("runtime-router", "", "code-execution")
        .with("code.runtime", V::S(selected));
    vec![outer, router, inner, node(7, 4, 95, 155).ids("wf-1", "we-1", "n-1")]
}

#[test]
fn the_runtime_is_the_one_the_router_chose() {
    check_all(routed_runs);
}

fn routed_runs(cases: &mut Vec<Case>) {
    let expected = Row {
        workflow_execution_id: text("we-1"),
        node_id: text("n-1"),
        runtime: "subprocess".into(),
        organization_id: text("org-1"),
        workspace_id: text("ws-1"),
        user_id: text("user-1"),
        ..base()
    };
    let all = routed("subprocess");
    check(cases, "router and inner span", &all, &expected);
    check(
        cases,
        "inner span alone",
        &[all[0].clone(), all[2].clone(), all[3].clone()],
        &expected,
    );
    check(
        cases,
        "router alone",
        &[all[0].clone(), all[1].clone(), all[3].clone()],
        &expected,
    );

    let mut asked_for = routed("vm2");
    asked_for[0] = asked_for[0].clone().with("code.runtime", V::S("e2b"));
    check(
        cases,
        "what was asked for by name stays",
        &asked_for,
        &Row {
            runtime: "e2b".into(),
            ..expected
        },
    );
}

#[test]
fn the_runtimes_own_span_tells_exit_code_and_memory() {
    check_all(runtimes_of_their_own);
}

fn runtimes_of_their_own(cases: &mut Vec<Case>) {
    let outer = failure(1, 1, 100, 150).with("code.runtime", V::S("e2b"));
    let e2b = span("e2b.execute", 1, 2, 110, 140)
        .all([
            ("e2b.runtime", V::S("e2b")),
            ("e2b.exit_code", V::I(137)),
            ("e2b.memory_mb", V::D(12.6)),
        ])
        .status(2, "");
    let expected = Row {
        runtime: "e2b".into(),
        exit_code: Some(137),
        memory_mb: Some(13),
        success: false,
        ..base()
    };
    check(cases, "e2b", &[outer.clone(), e2b.clone()], &expected);
    let own = outer.all([("code.exit_code", V::I(0)), ("code.memory_mb", V::I(1))]);
    check(
        cases,
        "its own are better",
        &[own, e2b.clone()],
        &Row {
            exit_code: Some(0),
            memory_mb: Some(1),
            ..expected
        },
    );

    let silent = execution(1, 1, 100, 150).with("code.runtime", V::S("e2b"));
    let expected = Row {
        runtime: "e2b".into(),
        exit_code: Some(137),
        memory_mb: Some(13),
        success: false,
        ..base()
    };
    check(
        cases,
        "an execution that says nothing failed if its runtime did",
        &[silent, e2b],
        &expected,
    );
}

#[test]
fn the_error_of_a_node_is_the_error_of_its_last_attempt() {
    let attempt = |id, from, to| failure(1, id, from, to).ids("wf-1", "we-1", "n-1");
    let around = node(2, 9, 0, 5_000).ids("wf-1", "we-1", "n-1").all([
        ("node.status", V::S("failed")),
        ("node.attempts", V::I(3)),
        ("node.error", V::S("boom")),
    ]);
    let spans = [
        attempt(1, 100, 200),
        attempt(2, 1_300, 1_400),
        attempt(3, 3_500, 4_900),
        around,
    ];
    for order in permutations(&spans) {
        let mut rows = rows(&order);
        rows.sort_by_key(|row| row.created_at);
        let errors: Vec<_> = rows.iter().map(|row| row.error_message.as_deref()).collect();
        assert_eq!(errors, [None, None, Some("boom")]);
        assert!(rows.iter().all(|row| row.user_id.as_deref() == Some("user-1")));
    }
    // Of three attempts only the first is known: the error is not its own.
    let rows = rows(&[spans[0].clone(), spans[3].clone()]);
    assert_eq!(rows[0].error_message, None);
}

#[test]
fn of_attempts_that_started_together_none_is_the_last() {
    let node = node(2, 9, 0, 300)
        .ids("wf-1", "we-1", "n-1")
        .all([("node.status", V::S("failed")), ("node.error", V::S("boom"))]);
    let attempt = |id, to| failure(1, id, 100, to).ids("wf-1", "we-1", "n-1");
    for order in permutations(&[attempt(1, 200), attempt(2, 250), node]) {
        let errors: Vec<_> = rows(&order).into_iter().map(|row| row.error_message).collect();
        assert_eq!(errors, [None, None]);
    }
}

#[test]
fn the_error_of_a_node_is_not_put_on_a_run_that_succeeded() {
    let run = success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("node.error", V::S("could not store the result"));
    assert_eq!(row(&[run, around]).error_message, None);
}

#[test]
fn turns_of_a_loop_are_told_apart_by_time() {
    let mut spans = Vec::new();
    for turn in 0..3_u16 {
        let from = u64::from(turn) * 1_000;
        let user = ["user-a", "user-b", "user-c"][usize::from(turn)];
        let error = ["first", "second", "third"][usize::from(turn)];
        spans.push(failure(1, turn, from + 100, from + 200).ids("wf-1", "we-1", "n-1"));
        spans.push(
            node(2, 100 + turn, from + 90, from + 210)
                .ids("wf-1", "we-1", "n-1")
                .all([("user.id", V::S(user)), ("node.error", V::S(error))]),
        );
    }
    for order in permutations(&spans) {
        let mut rows = rows(&order);
        rows.sort_by_key(|row| row.created_at);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.user_id.as_deref().unwrap(), row.error_message.as_deref().unwrap()))
            .collect();
        assert_eq!(told, [("user-a", "first"), ("user-b", "second"), ("user-c", "third")]);
    }
}

#[test]
fn more_than_one_match_is_never_a_guess() {
    let run = failure(1, 1, 100, 150).with("user.id", V::S(""));
    let one = node(1, 2, 90, 160).ids("wf-1", "we-1", "n-1");
    let two = node(1, 3, 80, 170)
        .ids("wf-1", "we-1", "n-2")
        .with("user.id", V::S("user-2"));
    let spans = [run, one, two];
    for order in permutations(&spans) {
        let row = row(&order);
        assert_eq!((row.user_id, row.organization_id, row.workspace_id), (None, None, None));
    }
    // Two executions side by side, one router inside both.
    let a = success(1, 1, 100, 150);
    let b = success(1, 2, 101, 151);
    let router = span("runtimeRouter.route", 1, 3, 110, 140).with("runtime.selected", V::S("e2b"));
    for order in permutations(&[a.clone(), b, router.clone()]) {
        assert!(rows(&order).iter().all(|row| row.runtime == "vm2"));
    }
    // Two routers inside one execution.
    let second = span("runtimeRouter.route", 1, 4, 141, 145).with("runtime.selected", V::S("wasmedge"));
    for order in permutations(&[a, router, second]) {
        assert_eq!(row(&order).runtime, "vm2");
    }
}

#[test]
fn spans_that_contradict_each_other_or_lie_apart_do_not_belong_together() {
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let other_node = node(1, 2, 90, 160).ids("wf-1", "we-1", "n-2");
    let other_execution = node(1, 3, 90, 160).ids("wf-1", "we-2", "n-1");
    let another_time = node(1, 4, 160 + 51, 300).ids("wf-1", "we-1", "n-1");
    for stranger in [other_node, other_execution, another_time] {
        assert_eq!(row(&[run.clone(), stranger.clone()]).user_id, None, "{stranger:?}");
    }
    let halfway = node(1, 5, 150, 300).ids("wf-1", "we-1", "n-1");
    assert_eq!(
        row(&[run.clone(), halfway]).user_id.as_deref(),
        Some("user-1"),
        "50 ms are tolerated"
    );
}

#[test]
fn the_tenant_comes_from_the_best_source_that_has_it() {
    let resource = [
        ("organization.id", "org-r"),
        ("workspace.id", "ws-r"),
        ("user.id", "user-r"),
    ];
    let run = || execution(1, 1, 100, 150).with("security.namespace", V::S("org-n"));
    let tenant = |spans: &[S]| {
        let facts = super::support::facts_of(&super::support::request_of(&resource, spans), 1 << 62);
        let mut rows = super::support::rows_of(&facts);
        let row = rows.remove(0);
        [row.organization_id, row.workspace_id, row.user_id].map(Option::unwrap_or_default)
    };
    assert_eq!(tenant(&[run()]), ["org-r", "ws-r", "user-r"]);
    assert_eq!(row(&[run()]).organization_id.as_deref(), Some("org-n"));
    assert_eq!(tenant(&[run(), node(1, 2, 90, 160)]), ["org-1", "ws-1", "user-1"]);
    let own = run().all([("organization.id", V::S("org-0")), ("user.id", V::S("user-0"))]);
    assert_eq!(tenant(&[own, node(1, 2, 90, 160)]), ["org-0", "ws-1", "user-0"]);
}

#[test]
fn second_spans_and_other_spans_give_no_row() {
    let inner = success(1, 3, 107, 143).ids("runtime-router", "", "code-execution");
    let function = span("handler", 1, 4, 0, 9).with("code.function.name", V::S("main"));
    let escape = span("sandbox_escape.analyze", 1, 5, 0, 9).status(1, "No escape attempts detected");
    assert!(rows(&[inner, function, escape, node(1, 6, 0, 9)]).is_empty());
}
