//! Every metric of the built-in catalogue: name, type, labels, buckets, and values for given spans.

use crate::rules::Catalogue;
use crate::rules::matcher::{Matcher, Workspace};
use crate::rules::prices::{ModelPrice, Prices, RuntimePrice};
use crate::rules::testing::{TestSpan, key_value, request, request_from, span};

use super::ExpositionFormat;
use super::exposition::Rendering;
use super::store::{RecordTime, Store};

/// The samples of `metric` (with `_bucket`, `_sum`, `_count` for a histogram) after these spans, as the text format
/// has them; `# TYPE` first.
fn samples(metric: &str, spans: Vec<TestSpan>) -> Vec<String> {
    counted(metric, spans, &Catalogue::built_in())
}

fn counted(metric: &str, spans: Vec<TestSpan>, catalogue: &Catalogue) -> Vec<String> {
    let mut store = Store::new(catalogue, 2000);
    let record = RecordTime {
        sequence: 0,
        received_at: 1,
    };
    store.count(
        &Matcher::new(catalogue, 1),
        &mut Workspace::default(),
        &request(spans),
        record,
    );
    samples_of(metric, &rendered(&store))
}

fn rendered(store: &Store) -> String {
    Rendering::new(store.snapshot(false), None, ExpositionFormat::Text).rest()
}

fn samples_of(metric: &str, text: &str) -> Vec<String> {
    let belongs = |line: &&str| {
        let name = line.trim_start_matches("# TYPE ").split(['{', ' ']).next().unwrap();
        let suffix = name.strip_prefix(metric);
        matches!(suffix, Some("" | "_bucket" | "_sum" | "_count")) && !line.starts_with("# HELP")
    };
    text.lines().filter(belongs).map(str::to_owned).collect()
}

fn assert_counter(metric: &str, spans: Vec<TestSpan>, expected: &[&str]) {
    let mut lines = vec![format!("# TYPE {metric} counter")];
    lines.extend(expected.iter().map(|series| format!("{metric}{series}")));
    assert_eq!(samples(metric, spans), lines);
}

/// `values` are what the spans must have been observed with, in the one series of `labels`.
fn assert_histogram(metric: &str, spans: Vec<TestSpan>, labels: &str, buckets: &str, values: &[f64]) {
    let mut lines = vec![format!("# TYPE {metric} histogram")];
    for bound in buckets.split(' ') {
        let count = values.iter().filter(|value| **value <= bound.parse().unwrap()).count();
        lines.push(format!("{metric}_bucket{{{labels},le=\"{bound}\"}} {count}"));
    }
    lines.push(format!("{metric}_bucket{{{labels},le=\"+Inf\"}} {}", values.len()));
    lines.push(format!("{metric}_sum{{{labels}}} {}", values.iter().sum::<f64>()));
    lines.push(format!("{metric}_count{{{labels}}} {}", values.len()));
    assert_eq!(samples(metric, spans), lines);
}

const EXECUTION_MS: &str = "1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 300000";
const MEMORY_MB: &str = "1 4 16 32 64 128 256 512 1024 2048 4096 8192";
const LATENCY_MS: &str = "5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 120000";

fn execution() -> TestSpan {
    span("code.execute")
        .with("code.runtime", "vm2")
        .with("code.language", "python")
}

fn second_span() -> TestSpan {
    execution()
        .with("workflow.id", "runtime-router")
        .with("node.id", "code-execution")
}

#[test]
fn code_executions_are_counted_by_outcome_and_the_second_span_of_a_run_is_not() {
    let spans = vec![
        execution().with("code.success", true),
        execution().with("code.success", false),
        execution().status(2, "Unsupported language: x"),
        execution().status(1, ""),
        execution().exception("Execution timed out after 5ms"),
        execution().with("code.has_error", true).with("code.timeout_ms", "50"),
        second_span().with("code.success", true),
        span("GET /").with("code.function.name", "handle"),
        span("x").with("code.duration_ms", 3i64),
    ];
    let expected = [
        "{runtime=\"unknown\",language=\"unknown\",outcome=\"success\"} 1",
        "{runtime=\"vm2\",language=\"python\",outcome=\"error\"} 2",
        "{runtime=\"vm2\",language=\"python\",outcome=\"success\"} 2",
        "{runtime=\"vm2\",language=\"python\",outcome=\"timeout\"} 2",
    ];
    assert_counter("code_executions_total", spans, &expected);
}

#[test]
fn code_durations_are_what_the_executor_says_else_the_length_of_the_span() {
    let spans = vec![
        execution().with("code.duration_ms", 7i64),
        execution().with("code.duration_ms", 0.5),
        execution().with("code.duration_ms", "1000"),
        execution().with("code.duration_ms", -3i64).lasting(2_500_000),
        execution().with("code.duration_ms", "soon"),
        execution().with("code.duration_ms", f64::NAN),
        second_span().with("code.duration_ms", 7i64),
    ];
    let labels = "runtime=\"vm2\",language=\"python\",outcome=\"success\"";
    assert_histogram(
        "code_duration_ms",
        spans,
        labels,
        EXECUTION_MS,
        &[7.0, 0.5, 1000.0, 2.5, 100.0, 100.0],
    );
}

#[test]
fn code_memory_is_observed_where_it_is_known() {
    let spans = vec![
        execution().with("code.memory_mb", 0.37),
        execution().with("code.memory_mb", 16i64),
        execution(),
        span("x").with("code.memory_mb", 3i64),
    ];
    assert_histogram(
        "code_memory_mb",
        spans,
        "runtime=\"vm2\",language=\"python\"",
        MEMORY_MB,
        &[0.37, 16.0],
    );
}

#[test]
fn code_tokens_are_summed() {
    let spans = vec![
        execution().with("code.tokens_used", 100i64),
        execution().with("code.tokens_used", "23"),
        execution().with("code.tokens_used", f64::INFINITY),
        execution(),
    ];
    assert_counter(
        "code_tokens_used_total",
        spans,
        &["{runtime=\"vm2\",language=\"python\"} 123"],
    );
}

/// The samples of a counter under prices: e2b costs 0.5 a second, models a dollar per million prompt tokens.
fn priced(metric: &str, spans: Vec<TestSpan>) -> Vec<String> {
    let runtime = RuntimePrice {
        vcpu_second: 0.25,
        vcpus: 2.0,
        ..RuntimePrice::default()
    };
    let model = ModelPrice {
        input: 1.0,
        output: 4.0,
        ..ModelPrice::default()
    };
    let catalogue = Catalogue::built_in().with_prices(Prices {
        runtimes: vec![("e2b".to_owned(), runtime)],
        models: vec![("gpt-*".to_owned(), model)],
    });
    counted(metric, spans, &catalogue).split_off(1)
}

#[test]
fn the_cost_of_code_is_what_spans_say_or_else_what_prices_say() {
    let spans = || {
        vec![
            execution().with("code.cost_usd", 0.5),
            execution()
                .with("code.runtime", "e2b")
                .with("code.duration_ms", 1500i64),
            execution()
                .with("code.runtime", "e2b")
                .with("code.duration_ms", 1500i64)
                .with("code.cost_usd", "0.25"),
            execution().with("code.duration_ms", 1500i64),
        ]
    };
    assert_eq!(
        priced("code_cost_usd_total", spans()),
        [
            "code_cost_usd_total{runtime=\"e2b\"} 1",
            "code_cost_usd_total{runtime=\"vm2\"} 0.5"
        ]
    );
    assert_counter(
        "code_cost_usd_total",
        spans(),
        &["{runtime=\"e2b\"} 0.25", "{runtime=\"vm2\"} 0.5"],
    );
}

#[test]
fn the_cost_of_a_model_is_what_the_span_says_or_else_what_prices_say() {
    let call = |tokens: i64| {
        span("llm.generate")
            .with("llm.provider", "openai")
            .with("llm.model", "gpt-4o")
            .with("llm.status", "success")
            .with("llm.input_tokens", tokens)
    };
    let spans = vec![
        call(1_000_000),
        call(500_000).with("llm.output_tokens", 125_000i64),
        call(5).with("llm.cost_usd", 0.5),
        call(5).with("_signoz.gen_ai.total_cost", 0.25),
    ];
    let labels = "provider=\"openai\",model=\"gpt-4o\",status=\"success\"";
    assert_eq!(
        priced("llm_cost_usd_total", spans),
        [format!("llm_cost_usd_total{{{labels}}} 2.75")]
    );
}

#[test]
fn code_exit_codes_are_counted_where_there_is_one() {
    let spans = vec![
        execution().with("code.exit_code", 0i64),
        execution().with("code.exit_code", 137.0),
        execution().with("code.exit_code", "137"),
        execution().with("code.exit_code", "core"),
        execution().with("code.exit_code", ""),
        execution().with_nothing("code.exit_code"),
        execution(),
    ];
    let expected = [
        "{runtime=\"vm2\",language=\"python\",exit_code=\"0\"} 1",
        "{runtime=\"vm2\",language=\"python\",exit_code=\"137\"} 2",
        "{runtime=\"vm2\",language=\"python\",exit_code=\"unknown\"} 1",
    ];
    assert_counter("code_exit_code_total", spans, &expected);
}

#[test]
fn code_validations_are_counted_where_there_was_one() {
    let spans = vec![
        execution().with("code.validation_passed", true),
        execution().with("code.validation_passed", false),
        execution().with("code.validation_passed", "false"),
        execution(),
    ];
    let expected = [
        "{runtime=\"vm2\",language=\"python\",passed=\"false\"} 2",
        "{runtime=\"vm2\",language=\"python\",passed=\"true\"} 1",
    ];
    assert_counter("code_validation_total", spans, &expected);
}

#[test]
fn e2b_executions_are_spans_of_that_name_or_runtime() {
    let spans = || {
        vec![
            span("e2b.execute")
                .with("e2b.language", "python")
                .with("e2b.success", true)
                .with("e2b.duration_ms", 42i64),
            span("other")
                .with("e2b.runtime", "e2b")
                .with("e2b.language", "python")
                .lasting(3_000_000),
            span("e2b.execute").status(2, "E2B execution timed out after 30000ms"),
            span("other").with("e2b.language", "python"),
        ]
    };
    let expected = [
        "{language=\"python\",outcome=\"success\"} 2",
        "{language=\"unknown\",outcome=\"timeout\"} 1",
    ];
    assert_counter("e2b_executions_total", spans(), &expected);
    let labels = "language=\"python\",outcome=\"success\"";
    assert_histogram(
        "e2b_duration_ms",
        spans()[..2].to_vec(),
        labels,
        EXECUTION_MS,
        &[42.0, 3.0],
    );
}

#[test]
fn e2b_memory_and_exit_codes_are_counted_where_they_are_known() {
    let run = || span("e2b.execute").with("e2b.language", "bash");
    let spans = vec![run().with("e2b.memory_mb", 12.5), run()];
    assert_histogram("e2b_memory_mb", spans, "language=\"bash\"", MEMORY_MB, &[12.5]);
    let spans = vec![
        run().with("e2b.exit_code", 0i64),
        run().with("e2b.exit_code", 1i64),
        run(),
    ];
    let expected = [
        "{language=\"bash\",exit_code=\"0\"} 1",
        "{language=\"bash\",exit_code=\"1\"} 1",
    ];
    assert_counter("e2b_exit_code_total", spans, &expected);
}

#[test]
fn an_e2b_run_with_an_exit_code_and_no_status_failed() {
    let spans = vec![span("e2b.execute").with("e2b.exit_code", 1i64)];
    assert_counter(
        "e2b_executions_total",
        spans,
        &["{language=\"unknown\",outcome=\"error\"} 1"],
    );
}

#[test]
fn wasmedge_and_bacalhau_executions_are_spans_of_that_name() {
    let wasmedge = || span("wasmedge.execute").with("wasmedge.language", "javascript");
    let spans = || {
        vec![
            wasmedge()
                .with("wasmedge.success", true)
                .with("wasmedge.execution_time_ms", 12i64),
            wasmedge(),
        ]
    };
    let labels = "language=\"javascript\",outcome=\"success\"";
    assert_counter("wasmedge_executions_total", spans(), &[&format!("{{{labels}}} 2")]);
    assert_histogram(
        "wasmedge_execution_time_ms",
        spans(),
        labels,
        EXECUTION_MS,
        &[12.0, 100.0],
    );

    let bacalhau = |name| {
        span(name)
            .with("bacalhau.language", "python")
            .status(2, "Job execution timed out")
    };
    let spans = || {
        vec![
            bacalhau("bacalhau.execute"),
            bacalhau("bacalhau.submit_job"),
            bacalhau("bacalhau.get_job_status"),
        ]
    };
    let labels = "language=\"python\",outcome=\"timeout\"";
    assert_counter("bacalhau_executions_total", spans(), &[&format!("{{{labels}}} 1")]);
    assert_histogram("bacalhau_duration_ms", spans(), labels, EXECUTION_MS, &[100.0]);
}

fn tool() -> TestSpan {
    span("runtime.execute_tool").with("tool_id", "calc")
}

#[test]
fn tool_executions_are_measured_by_outcome() {
    let buckets = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 30";
    let spans = vec![
        tool().lasting(5_000_000),
        tool().lasting(40_000_000_000),
        tool().lasting(0),
    ];
    let labels = "tool_id=\"calc\",outcome=\"success\"";
    assert_histogram(
        "runtime_tool_execute_seconds",
        spans,
        labels,
        buckets,
        &[0.005, 40.0, 0.0],
    );
}

#[test]
fn tools_are_known_by_any_of_their_ids_and_an_empty_one_is_unknown() {
    let spans = vec![
        span("a").with("tool_id", "one"),
        span("b").with("tool.id", "two"),
        span("c").with("runtime.tool_id", "three"),
        span("d")
            .with("gen_ai.tool.name", "four")
            .with("gen_ai.operation.name", "execute_tool"),
        span("e")
            .with("gen_ai.tool.name", "five")
            .with("gen_ai.operation.name", "chat"),
        span("f").with("tool_id", "").with("tool.id", "six"),
        span("g").with("tool_id", ""),
    ];
    let spans = spans.into_iter().map(|span| span.with("outcome", "timeout")).collect();
    let expected: Vec<String> = ["four", "one", "six", "three", "two", "unknown"]
        .iter()
        .map(|tool| format!("{{tool_id=\"{tool}\"}} 1"))
        .collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_counter("runtime_tool_timeouts_total", spans, &expected);
}

#[test]
fn tool_errors_are_counted_by_failure_point() {
    let spans = vec![
        tool(),
        tool().with("error_kind", "stderr").with("outcome", "success"),
        tool().with("error_kind", "parse"),
        tool().with("error_kind", "gremlins"),
        tool().with("error_kind", ""),
        tool().with("outcome", "timeout"),
        tool().with("error.type", "timeout"),
        tool().with("error_kind", "timeout"),
        tool().status(2, ""),
        span("no tool").with("error_kind", "parse"),
    ];
    let expected = [
        "{tool_id=\"calc\",error_kind=\"parse\"} 1",
        "{tool_id=\"calc\",error_kind=\"stderr\"} 1",
        "{tool_id=\"calc\",error_kind=\"timeout\"} 3",
        "{tool_id=\"calc\",error_kind=\"unknown\"} 2",
    ];
    assert_counter("runtime_tool_errors_total", spans, &expected);
}

#[test]
fn process_exits_are_counted_once_per_tool_span_that_has_one() {
    let spans = vec![
        tool().with("exit_code", 0i64).with("signal", ""),
        tool().with("process.exit.code", "3"),
        tool().with("exit_code", -1i64).with("signal", "killed"),
        tool().with("signal", "terminated"),
        tool().with("signal", 11i64),
        tool(),
        span("no tool").with("exit_code", 0i64),
    ];
    let expected = [
        "{status=\"exit\",code=\"0\",signal=\"\"} 1",
        "{status=\"exit\",code=\"3\",signal=\"\"} 1",
        "{status=\"signal\",code=\"\",signal=\"SIGSEGV\"} 1",
        "{status=\"signal\",code=\"\",signal=\"SIGTERM\"} 1",
        "{status=\"signal\",code=\"-1\",signal=\"SIGKILL\"} 1",
    ];
    assert_counter("runtime_bun_process_exits_total", spans, &expected);
}

#[test]
fn the_output_of_tools_is_measured_in_bytes() {
    let spans = vec![
        tool().with("output_bytes", 100i64),
        tool().with("output_bytes", 5e6),
        tool(),
    ];
    let buckets = "100 1000 10000 100000 1000000 10000000";
    assert_histogram(
        "runtime_tool_output_bytes",
        spans,
        "tool_id=\"calc\"",
        buckets,
        &[100.0, 5e6],
    );
}

#[test]
fn workflows_are_counted_and_measured_by_status() {
    let spans = || {
        vec![
            span("workflow.execute").lasting(2_000_000_000),
            span("workflow.execute").status(2, "boom"),
            span("workflow.execute").with("workflow.status", "cancelled"),
            span("workflow.executes"),
        ]
    };
    let expected = [
        "{status=\"cancelled\"} 1",
        "{status=\"completed\"} 1",
        "{status=\"failed\"} 1",
    ];
    assert_counter("workflow_executions_total", spans(), &expected);
    let buckets = "0.1 0.5 1 2.5 5 10 30 60 120 300 600 1800 3600";
    let spans = spans()[..1].to_vec();
    assert_histogram(
        "workflow_duration_seconds",
        spans,
        "status=\"completed\"",
        buckets,
        &[2.0],
    );
}

#[test]
fn nodes_are_spans_with_a_node_status() {
    let node = |status: &str| {
        span("node.execute.ai.llm")
            .with("node.type", "ai.llm")
            .with("node.status", status)
    };
    let spans = || {
        vec![
            node("completed").with("node.latency_ms", 12i64),
            node("completed"),
            span("x").with("node.type", "y"),
        ]
    };
    let labels = "node_type=\"ai.llm\",status=\"completed\"";
    assert_counter("node_executions_total", spans(), &[&format!("{{{labels}}} 2")]);
    assert_histogram("node_latency_ms", spans(), labels, LATENCY_MS, &[12.0, 100.0]);
}

#[test]
fn requests_to_language_models_are_counted_by_either_convention() {
    let own = || {
        span("llm.generate")
            .with("llm.provider", "openai")
            .with("llm.model", "gpt-4o")
            .with("llm.status", "success")
            .with("llm.latency_ms", 900i64)
            .with("llm.input_tokens", 10i64)
            .with("llm.output_tokens", 5i64)
            .with("llm.cost_usd", 0.25)
    };
    let gen_ai = || {
        span("chat gpt-4o")
            .with("gen_ai.operation.name", "chat")
            .with("gen_ai.provider.name", "openai")
            .with("gen_ai.request.model", "gpt-4o")
            .with("gen_ai.usage.input_tokens", 7i64)
    };
    let embedding = span("embeddings")
        .with("gen_ai.operation.name", "embeddings")
        .status(2, "no");
    let agent = span("invoke_agent x").with("gen_ai.operation.name", "invoke_agent");
    let spans = || vec![own(), gen_ai(), embedding.clone(), agent.clone()];
    let labels = "provider=\"openai\",model=\"gpt-4o\",status=\"success\"";
    let unknown = "provider=\"unknown\",model=\"unknown\",status=\"error\"";
    let expected = [format!("{{{labels}}} 2"), format!("{{{unknown}}} 1")];
    assert_counter("llm_requests_total", spans(), &expected.each_ref().map(String::as_str));
    assert_histogram(
        "llm_latency_ms",
        vec![own(), gen_ai()],
        labels,
        LATENCY_MS,
        &[900.0, 100.0],
    );
    let expected = [
        format!("{{{labels},direction=\"input\"}} 17"),
        format!("{{{labels},direction=\"output\"}} 5"),
    ];
    assert_counter("llm_tokens_total", spans(), &expected.each_ref().map(String::as_str));
    assert_counter("llm_cost_usd_total", spans(), &[&format!("{{{labels}}} 0.25")]);
}

#[test]
fn agents_are_counted_by_either_convention() {
    let own = || {
        span("agent.execute")
            .with("agent.framework", "langgraph")
            .with("agent.status", "success")
            .with("agent.latency_ms", 60.0)
            .with("agent.tokens_used", 40i64)
            .with("agent.cost", 0.5)
            .with("agent.iterations", 3i64)
    };
    let gen_ai = || {
        span("invoke_agent planner")
            .with("agent.framework", "langgraph")
            .with("gen_ai.operation.name", "invoke_agent")
            .with("gen_ai.usage.input_tokens", 1i64)
            .with("gen_ai.usage.output_tokens", 1i64)
    };
    let spans = || vec![own(), gen_ai()];
    let labels = "framework=\"langgraph\",status=\"success\"";
    assert_counter("agent_executions_total", spans(), &[&format!("{{{labels}}} 2")]);
    assert_histogram("agent_latency_ms", spans(), labels, LATENCY_MS, &[60.0, 100.0]);
    assert_counter("agent_tokens_used_total", spans(), &[&format!("{{{labels}}} 42")]);
    assert_counter("agent_cost_usd_total", spans(), &[&format!("{{{labels}}} 0.5")]);
    assert_histogram("agent_iterations", spans(), labels, "1 2 3 5 8 13 21 34 55", &[3.0]);
}

#[test]
fn connectors_are_counted_and_measured_by_action() {
    let call = |status| {
        span("connector.execute")
            .with("connector.id", "slack")
            .with("connector.action", "send")
            .with("connector.latency_ms", 8i64)
            .status(status, "")
    };
    let labels = "connector=\"slack\",action=\"send\"";
    let expected = [
        format!("{{{labels},status=\"error\"}} 1"),
        format!("{{{labels},status=\"success\"}} 2"),
    ];
    let spans = vec![call(0), call(1), call(2)];
    assert_counter(
        "connector_requests_total",
        spans,
        &expected.each_ref().map(String::as_str),
    );
    let labels = format!("{labels},status=\"success\"");
    assert_histogram("connector_latency_ms", vec![call(0)], &labels, LATENCY_MS, &[8.0]);
}

#[test]
fn retrieval_is_counted_and_measured_with_the_sources_that_it_found() {
    let call = || {
        span("rag.execute")
            .with("rag.vector_store_provider", "pinecone")
            .with("rag.status", "success")
            .with("rag.latency_ms", 30i64)
            .with("rag.sources_found", 0i64)
    };
    let labels = "provider=\"pinecone\",status=\"success\"";
    assert_counter("rag_requests_total", vec![call()], &[&format!("{{{labels}}} 1")]);
    assert_histogram("rag_latency_ms", vec![call()], labels, LATENCY_MS, &[30.0]);
    assert_histogram("rag_sources_found", vec![call()], labels, "0 1 2 3 5 10 20 50", &[0.0]);
}

#[test]
fn a_span_without_an_end_has_no_duration_and_one_that_ends_before_it_starts_has_none_to_speak_of() {
    let spans = vec![tool().ending_at(0), tool().ending_at(5)];
    let lines = samples("runtime_tool_execute_seconds", spans);
    assert!(lines.contains(&"runtime_tool_execute_seconds_count{tool_id=\"calc\",outcome=\"success\"} 1".to_owned()));
    assert!(lines.contains(&"runtime_tool_execute_seconds_sum{tool_id=\"calc\",outcome=\"success\"} 0".to_owned()));
}

#[test]
fn of_a_key_that_is_given_twice_the_last_one_counts() {
    let spans = vec![
        execution().with("code.success", false).with("code.success", true),
        execution()
            .with("code.success", true)
            .with_nothing("code.success")
            .status(2, ""),
    ];
    let labels = "runtime=\"vm2\",language=\"python\"";
    let expected = [
        format!("{{{labels},outcome=\"error\"}} 1"),
        format!("{{{labels},outcome=\"success\"}} 1"),
    ];
    assert_counter("code_executions_total", spans, &expected.each_ref().map(String::as_str));
}

#[test]
fn labels_of_the_resource_and_constant_labels_are_on_every_series_but_the_overflow() {
    let constants = [("zone".to_owned(), "a\"b".to_owned())];
    let catalogue = Catalogue::load(&[], &["service.name".to_owned(), "k8s.pod".to_owned()], &constants).unwrap();
    let mut store = Store::new(&catalogue, 1);
    let record = RecordTime {
        sequence: 0,
        received_at: 1,
    };
    let tool = || tool().with("outcome", "timeout");
    let first = request_from(vec![key_value("service.name", "sos")], vec![], vec![tool()]);
    let second = request_from(vec![key_value("service.name", "other")], vec![], vec![tool(), tool()]);
    let matcher = Matcher::new(&catalogue, 1);
    store.count(&matcher, &mut Workspace::default(), &first, record);
    store.count(
        &matcher,
        &mut Workspace::default(),
        &second,
        RecordTime { sequence: 1, ..record },
    );
    let expected = [
        "# TYPE runtime_tool_timeouts_total counter",
        "runtime_tool_timeouts_total{tool_id=\"calc\",service_name=\"sos\",k8s_pod=\"\",zone=\"a\\\"b\"} 1",
        "runtime_tool_timeouts_total{otel_metric_overflow=\"true\"} 2",
    ];
    assert_eq!(samples_of("runtime_tool_timeouts_total", &rendered(&store)), expected);
}
