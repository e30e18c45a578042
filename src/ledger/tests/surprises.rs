//! The surprises of the executors that rows must survive, one test each, named after it.

use super::support::{
    EPOCH, MS, S, V, execution, facts_of, failure, node, request, request_of, row, rows, rows_of, span, success,
};
use crate::ledger::facts::Extractor;
use crate::ledger::row::{ERROR_LIMIT, Oddities};

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
