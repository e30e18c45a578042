//! The surprises of the executors that rows must survive, one test each, named after it.

use super::support::{
    EPOCH, MS, S, V, execution, facts_of, failure, node, request, request_of, row, rows, rows_of, span, success,
};
use crate::ledger::extract::Extractor;
use crate::ledger::facts::Role;
use crate::ledger::row::{ERROR_LIMIT, Oddities, TEXT_LIMIT};
use crate::meter::{ExpositionFormat, Tally};
use crate::rules::Catalogue;

#[test]
fn there_are_no_parents_each_span_may_be_a_trace_of_its_own_and_the_workflow_span_never_comes() {
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let around = node(2, 2, 90, 160).ids("wf-1", "we-1", "n-1");
    let row = row(&[run, around]);
    assert_eq!(row.user_id.as_deref(), Some("user-1"));
    assert_eq!(row.workflow_execution_id.as_deref(), Some("we-1"));
}

#[test]
fn one_run_sends_two_execution_spans() {
    let outer = success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let inner = success(1, 2, 110, 140).ids("runtime-router", "", "code-execution");
    assert_eq!(rows(&[outer, inner]).len(), 1);
}

#[test]
fn the_runtime_says_vm2_when_it_was_another() {
    let outer = success(1, 1, 100, 150).with("code.routing_reason", V::S("auto"));
    let router = span("runtimeRouter.route", 1, 2, 110, 140).with("runtime.selected", V::S("bacalhau"));
    assert_eq!(row(&[outer, router]).runtime, "bacalhau");
}

#[test]
fn an_exit_code_of_zero_and_tokens_are_never_sent() {
    let row = row(&[success(1, 1, 100, 150)]);
    assert_eq!((row.exit_code, row.tokens_used, row.memory_mb), (None, None, None));
}

#[test]
fn memory_is_a_fraction_or_an_integer_or_missing() {
    let memory = |value: Option<V>| {
        let run = success(1, 1, 100, 150);
        row(&[match value {
            Some(value) => run.with("code.memory_mb", value),
            None => run,
        }])
        .memory_mb
    };
    assert_eq!(memory(Some(V::D(0.5))), Some(1));
    assert_eq!(memory(Some(V::D(0.2143))), Some(0));
    assert_eq!(memory(Some(V::I(12))), Some(12));
    assert_eq!(memory(None), None);
}

#[test]
fn early_returns_and_exceptions_say_neither_success_nor_duration_and_exceptions_leave_the_status_unset() {
    let refused = row(&[execution(1, 1, 100, 150).status(2, "Code is required")]);
    assert_eq!((refused.success, refused.duration_ms), (false, Some(50)));
    let thrown = row(&[execution(1, 1, 100, 150).exception("ReferenceError", "actualRuntime is not defined")]);
    assert_eq!((thrown.success, thrown.duration_ms), (false, Some(50)));
    assert_eq!(thrown.error_message.as_deref(), Some("actualRuntime is not defined"));
}

#[test]
fn the_true_cause_is_in_the_exception_when_the_node_says_something_else() {
    let run = execution(1, 1, 100, 150)
        .ids("wf-1", "we-1", "n-1")
        .exception("Error", "the true cause");
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("node.error", V::S("actualRuntime is not defined"));
    assert_eq!(row(&[run, around]).error_message.as_deref(), Some("the true cause"));
}

#[test]
fn failed_runs_have_an_error_status_without_a_message_and_the_text_is_on_the_node() {
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("node.error", V::S("Traceback (most recent call last): ..."));
    assert!(row(&[run, around]).error_message.unwrap().starts_with("Traceback"));
}

#[test]
fn a_status_of_ok_is_no_sign_of_success_and_its_message_no_error() {
    let told = success(1, 1, 100, 150)
        .with("code.success", V::B(false))
        .status(1, "No escape attempts detected");
    let row = row(&[told]);
    assert_eq!((row.success, row.error_message), (false, None));
}

#[test]
fn an_absent_validation_means_not_validated_and_a_failed_output_is_another_attribute() {
    assert_eq!(row(&[success(1, 1, 0, 1)]).validation_passed, None);
    let output = |passed| success(1, 1, 0, 1).with("code.output_validation_passed", V::B(passed));
    assert_eq!(row(&[output(false)]).validation_passed, Some(false));
    assert_eq!(
        row(&[output(false).with("code.validation_passed", V::B(true))]).validation_passed,
        Some(false)
    );
    assert_eq!(row(&[output(true)]).validation_passed, None);
}

#[test]
fn empty_text_means_unknown() {
    let run = execution(1, 1, 100, 150).ids("", "", "").all([
        ("code.runtime", V::S("")),
        ("code.language", V::S("")),
        ("organization.id", V::S("")),
        ("user.id", V::S("")),
    ]);
    let row = row(&[run]);
    assert_eq!((row.runtime.as_str(), row.language.as_str()), ("unknown", "unknown"));
    assert_eq!(
        (row.workflow_execution_id, row.node_id, row.organization_id, row.user_id),
        (None, None, None, None)
    );
}

#[test]
fn the_organization_is_the_namespace_of_the_execution_and_an_id_of_the_node() {
    let run = success(1, 1, 100, 150)
        .ids("wf", "we-1", "n-1")
        .with("security.namespace", V::S("org-n"));
    assert_eq!(
        row(std::slice::from_ref(&run)).organization_id.as_deref(),
        Some("org-n")
    );
    let around = node(1, 2, 90, 160).ids("wf", "we-1", "n-1");
    assert_eq!(row(&[run, around]).organization_id.as_deref(), Some("org-1"));
    assert_eq!(row(&[success(1, 1, 0, 1)]).organization_id, None, "default is nobody");
}

#[test]
fn types_are_whatever_the_configuration_of_the_node_had() {
    let run = execution(1, 1, 0, 40_000).all([
        ("code.timeout_ms", V::S("30000")),
        ("code.success", V::S("false")),
        ("code.duration_ms", V::S("40000")),
        ("node.id", V::I(7)),
    ]);
    let row = row(&[run]);
    assert_eq!(
        (row.success, row.duration_ms, row.node_id.as_deref()),
        (false, Some(40_000), Some("7"))
    );
}

#[test]
fn names_of_node_spans_hold_whatever_a_user_called_the_node() {
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let mut around = node(1, 2, 90, 160).ids("wf-1", "we-1", "n-1");
    around.0.name = "node.execute.my.node.\u{1f600}".into();
    assert_eq!(row(&[run, around]).user_id.as_deref(), Some("user-1"));
}

#[test]
fn an_end_time_of_zero_is_the_time_of_receipt_and_gives_no_duration() {
    let mut run = execution(1, 1, 100, 150);
    run.0.end_time_unix_nano = 0;
    let received_at = EPOCH + 5_000 * MS;
    let mut extractor = Extractor::default();
    let mut facts = Vec::new();
    extractor.extract(&request(&[run]), received_at, &mut facts);
    let row = rows_of(&facts).remove(0);
    assert_eq!((row.created_at, row.duration_ms), (received_at, None));
    assert_eq!(
        extractor.oddities,
        Oddities {
            end_times: 1,
            ..Oddities::default()
        }
    );
}

#[test]
fn stack_traces_and_attributes_have_any_length_and_any_character() {
    let mut run = failure(1, 1, 100, 150);
    run.0.status.as_mut().unwrap().message = format!("a\0b{}", "\u{1f600}".repeat(ERROR_LIMIT));
    run.0.name = "code.execute".into();
    let message = row(&[run]).error_message.unwrap();
    assert!(message.starts_with("ab\u{1f600}") && message.len() <= ERROR_LIMIT && message.len() > ERROR_LIMIT - 4);
}

#[test]
fn text_of_any_length_is_cut_to_what_an_index_of_postgresql_holds() {
    let long: &str = "\u{1f600}".repeat(TEXT_LIMIT).leak();
    let run = execution(1, 1, 100, 150)
        .ids(long, long, long)
        .with("user.id", V::S(long));
    let mut extractor = Extractor::default();
    let mut facts = Vec::new();
    extractor.extract(&request_of(&[("organization.id", long)], &[run]), EPOCH, &mut facts);
    let row = rows_of(&facts).remove(0);
    for text in [row.workflow_execution_id, row.node_id, row.user_id, row.organization_id] {
        assert_eq!(text.as_deref(), Some(&long[..TEXT_LIMIT]));
    }
    assert_eq!(extractor.oddities.cut, 4);
}

/// JavaScript makes a negative duration of a clock that was set back, and infinity of a division by zero.
#[test]
fn numbers_that_cannot_be_end_in_no_sum_and_change_no_outcome_in_rows_and_metrics() {
    for impossible in [-5.0, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
        let run = execution(1, 1, 100, 150).all([
            ("code.success", V::B(false)),
            ("code.duration_ms", V::D(impossible)),
            ("code.memory_mb", V::D(impossible)),
            ("code.tokens_used", V::D(impossible)),
            ("code.cost_usd", V::D(impossible)),
        ]);
        let mut extractor = Extractor::default();
        let mut facts = Vec::new();
        let request = request(&[run]);
        extractor.extract(&request, EPOCH, &mut facts);
        let Role::Execution(execution) = &facts[0].told.role else {
            panic!()
        };
        assert_eq!((execution.cost_usd, execution.timed_out), (None, false));
        let row = rows_of(&facts).remove(0);
        // A column holds what was said, as far as it can.
        let clamped = Some(impossible.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32);
        assert_eq!(
            (row.duration_ms, row.memory_mb, row.tokens_used),
            (clamped, clamped, clamped)
        );
        assert_eq!(extractor.oddities.impossible, 1);
        let mut tally = Tally::new(&Catalogue::built_in(), 10);
        tally.count(&request, 1);
        let metrics = tally.exposition(ExpositionFormat::Text);
        for line in [
            "code_executions_total{runtime=\"vm2\",language=\"javascript\",outcome=\"error\"} 1",
            "code_duration_ms_sum{runtime=\"vm2\",language=\"javascript\",outcome=\"error\"} 50",
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
        assert!(!metrics.contains("code_memory_mb_sum{") && !metrics.contains("code_tokens_used_total{"));
    }
}

/// What JavaScript's exporters make of NaN and undefined.
#[test]
fn an_attribute_without_a_value_makes_no_execution_and_takes_back_an_earlier_one() {
    let mut nothing = span("GET /", 1, 1, 0, 9).all([("code.duration_ms", V::I(1)), ("tool_id", V::I(1))]);
    for attribute in &mut nothing.0.attributes {
        attribute.value = None;
    }
    assert!(rows(std::slice::from_ref(&nothing)).is_empty());
    let mut run = execution(1, 2, 100, 150).with("code.memory_mb", V::I(7));
    run.0.attributes.extend(nothing.0.attributes);
    run = run.with("code.memory_mb", V::I(0));
    run.0.attributes.last_mut().unwrap().value = None;
    let row = row(&[run]);
    assert_eq!((row.memory_mb, row.duration_ms), (None, Some(50)));
}

#[test]
fn resources_change_between_batches_and_hold_arrays() {
    let run = |id| execution(1, id, 100, 150);
    let first = facts_of(&request(&[run(1)]), EPOCH);
    let later = facts_of(
        &request_of(&[("host.id", "abc"), ("user.id", "user-r")], &[run(2)]),
        EPOCH,
    );
    let rows = rows_of(&[first, later].concat());
    assert_eq!(
        (rows[0].user_id.as_deref(), rows[1].user_id.as_deref()),
        (None, Some("user-r"))
    );
}

#[test]
fn attributes_of_code_that_is_not_executed_are_no_execution() {
    let handler = span("GET /", 1, 1, 0, 9).all([
        ("code.function.name", V::S("main")),
        ("code.file.path", V::S("/a.js")),
        ("code.line.number", V::I(3)),
        ("code.language", V::S("javascript")),
    ]);
    assert!(rows(&[handler]).is_empty());
}

#[test]
fn what_an_agent_or_a_model_used_is_not_what_the_execution_used() {
    let run = success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let agent = span("agent.execute", 1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .all([("agent.tokens_used", V::I(900)), ("agent.id", V::S("wf-1-n-1"))]);
    let row = row(&[run, agent]);
    assert_eq!((row.tokens_used, row.code_agent_id), (None, None));
}

#[test]
fn later_values_of_one_key_count_as_the_executor_sets_it_again_at_the_end() {
    let run: S = execution(1, 1, 100, 150).with("code.runtime", V::S("subprocess"));
    assert_eq!(row(&[run]).runtime, "subprocess");
}

#[test]
fn an_execution_id_of_no_workflow_is_kept_here_and_left_to_the_foreign_key() {
    let run = success(1, 1, 100, 150).ids("agent-ca-7", "agent-exec-1767225600000", "code-agent");
    let row = row(&[run]);
    assert_eq!(row.workflow_execution_id.as_deref(), Some("agent-exec-1767225600000"));
    assert_eq!(row.code_agent_id.as_deref(), Some("ca-7"));
}

#[test]
fn the_same_has_other_names_on_other_spans() {
    let alone = |span: S| {
        let mut extractor = Extractor {
            standalone: true,
            ..Extractor::default()
        };
        let mut facts = Vec::new();
        extractor.extract(&request(&[span]), EPOCH + 10_000 * MS, &mut facts);
        let execution = facts.remove(0).told.role.alone().cloned().unwrap();
        (
            execution.runtime,
            execution.duration_ms,
            execution.success.0,
            execution.timed_out,
        )
    };
    let e2b = span("e2b.execute", 1, 1, 0, 90).all([("e2b.duration_ms", V::I(70)), ("e2b.success", V::B(true))]);
    assert_eq!(alone(e2b), (Some("e2b".into()), Some(70), true, false));
    let wasmedge = span("wasmedge.execute", 1, 1, 0, 90).all([("wasmedge.execution_time_ms", V::I(71))]);
    assert_eq!(alone(wasmedge), (Some("wasmedge".into()), Some(71), true, false));
    // A time-out under the runtime's own name for it.
    let bacalhau =
        span("bacalhau.execute", 1, 1, 0, 90).all([("bacalhau.success", V::B(false)), ("bacalhau.timeout", V::I(80))]);
    assert_eq!(alone(bacalhau), (Some("bacalhau".into()), Some(90), false, true));
}

#[test]
fn retries_are_several_executions_under_one_node_that_ends_long_after_them() {
    let attempt = |id, from| failure(1, id, from, from + 50).ids("wf-1", "we-1", "n-1");
    let around = node(2, 9, 90, 7_200)
        .ids("wf-1", "we-1", "n-1")
        .all([("node.attempts", V::I(3)), ("node.error", V::S("the third"))]);
    let told: Vec<_> = rows(&[attempt(1, 100), attempt(2, 1_200), attempt(3, 3_300), around])
        .into_iter()
        .map(|row| (row.user_id.unwrap(), row.error_message))
        .collect();
    let user = || "user-1".to_owned();
    assert_eq!(
        told,
        [(user(), None), (user(), None), (user(), Some("the third".into()))]
    );
}

#[test]
fn an_id_has_no_default_and_is_made_of_trace_and_span() {
    let row = row(&[success(0xab, 0x0102, 0, 1_500)]);
    assert_eq!(row.id, format!("{}-5a5a5a5a5a5a0102", "ab".repeat(16)));
    assert_eq!(row.created_at, EPOCH + 1_500 * MS, "the end of the span, UTC");
}

#[test]
fn runtimes_and_languages_are_free_text() {
    for name in ["node", "auto", "unknown", "langtools", "Руби"] {
        let run = success(1, 1, 0, 1).all([("code.runtime", V::S(name)), ("code.language", V::S(name))]);
        let row = row(&[run]);
        assert_eq!((&*row.runtime, &*row.language), (name, name));
    }
}

#[test]
fn a_signal_is_an_exit_code_of_minus_one_and_user_errors_exit_with_zero() {
    let tool = |exit: i64, kind: &'static str| {
        let mut extractor = Extractor {
            standalone: true,
            ..Extractor::default()
        };
        let mut facts = Vec::new();
        let span = span("runtime.execute_tool", 1, 1, 0, 9)
            .all([
                ("tool_id", V::S("weather")),
                ("exit_code", V::I(exit)),
                ("error_kind", V::S(kind)),
            ])
            .status(2, "boom");
        extractor.extract(&request(&[span]), EPOCH + 10_000 * MS, &mut facts);
        let alone = facts.remove(0).told.role.alone().cloned().unwrap();
        (alone.exit_code, alone.success.0, alone.timed_out)
    };
    assert_eq!(tool(-1, "wait"), (Some(-1), false, false));
    assert_eq!(tool(0, "parse"), (Some(0), false, false));
    assert_eq!(tool(-1, "timeout"), (Some(-1), false, true));
}

#[test]
fn compozy_and_the_successor_send_no_executions_today() {
    let spans = [
        span("stream.openai", 1, 1, 0, 9),
        span("GET /api/v0/tools", 1, 2, 0, 9),
        span("chat gpt-4o", 1, 3, 0, 9).with("gen_ai.operation.name", V::S("chat")),
    ];
    assert!(rows(&spans).is_empty());
}
