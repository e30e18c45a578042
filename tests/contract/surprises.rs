//! What surprises whoever only knows the standard: each habit of the executors, as it is seen from outside.

use crate::common::http::Http;
use crate::common::program::{Setup, sum};
use crate::common::send::{Outcome, Route, Sender};
use crate::common::sink::{Delivery, Sink};
use crate::common::{eventually, random, spans, unix_ms_ago};
use crate::executors::*;
use crate::story::{Draft, Story, request};
use crate::world::World;
use serde_json::{Value, json};
use std::time::Duration;

/// A program on SQLite and a story for it.
async fn begin(test: &str) -> (World, Story) {
    let mut random = random(test);
    let world = World::on_sqlite(&mut random, |setup| setup, "").await;
    (world, Story::new(&mut random))
}

const PLAIN: &str = "runtime=vm2,language=python,outcome=success";

/// A sample of the first program's scrape; its labels as `a=b,c=d`.
async fn sample(world: &World, name: &str, labels: &str) -> Option<f64> {
    let labels: Vec<(&str, &str)> = labels.split(',').filter_map(|pair| pair.split_once('=')).collect();
    world.program(0).scrape().await.get(name, &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_1_json_is_the_main_input_with_integers_as_numbers_and_nothing_else_is_refused() {
    let (mut world, _) = begin("surprise_1").await;
    let program = world.program(0);
    let http = Http::new();
    let json = "application/json";
    let traces = program.url("otlp_http", "/v1/traces").await;
    let ms = unix_ms_ago(Duration::from_secs(10));
    // As its exporter writes it: no version of the scope, no message, `{}` and null where JavaScript had nothing to say.
    let body = format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[
            {{"key":"service.name","value":{{"stringValue":"sos-backend"}}}},
            {{"key":"process.pid","value":{{"intValue":42}}}},
            {{"key":"process.command_args","value":{{"arrayValue":{{"values":[{{"stringValue":"node"}},{{}}]}}}}}},
            {{"key":"host.id","value":{{}}}}],"droppedAttributesCount":0}},
          "scopeSpans":[{{"scope":{{"name":"sos-code-executor"}},"spans":[{{
            "traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"code.execute","kind":1,
            "startTimeUnixNano":"{ms}000000","endTimeUnixNano":"{ms}007000","attributes":[
              {{"key":"code.language","value":{{"stringValue":"javascript"}}}},
              {{"key":"code.runtime","value":{{"stringValue":"vm2"}}}},
              {{"key":"code.success","value":{{"boolValue":true}}}},
              {{"key":"code.duration_ms","value":{{"intValue":7}}}},
              {{"key":"code.memory_mb","value":{{"doubleValue":0.7143}}}},
              {{"key":"code.tokens_used","value":{{"doubleValue":null}}}},
              {{"key":"code.exit_code","value":{{}}}}],
            "droppedAttributesCount":0,"events":[],"droppedEventsCount":0,"status":{{"code":1}},"links":[],
            "droppedLinksCount":0,"flags":257}}]}}]}}]}}"#
    );
    let empty = r#"{"resourceSpans":[]}"#;
    for (path, content_type, body) in [
        ("/v1/traces", json, body.as_str()),
        ("/v1/traces", json, empty),
        ("/v1/metrics", json, r#"{"resourceMetrics":[]}"#),
        (
            "/v1/metrics",
            json,
            r#"{"resourceMetrics":[{"resource":{"attributes":[]},"scopeMetrics":[{"scope":{"name":"m"},
            "metrics":[{"name":"n","description":"","unit":"","sum":{"aggregationTemporality":2,"isMonotonic":true,
            "dataPoints":[{"attributes":[],"startTimeUnixNano":"1","timeUnixNano":"2","asDouble":1}]}}]}]}]}"#,
        ),
        ("/v1/logs", "application/x-protobuf", ""),
    ] {
        let url = traces.replace("/v1/traces", path);
        let answer = http.post(&url, content_type, body.to_owned()).await.unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, content_type),
            "{path} {body}"
        );
    }
    let rows = world.rows().await;
    let row = &rows["5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174"];
    assert_eq!(
        (row.duration_ms, row.memory_mb, row.tokens_used, row.exit_code),
        (Some(7), Some(1), None, None)
    );
    assert_eq!(row.created_at, ms as i64 * 1_000 + 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_2_no_span_has_a_parent_and_each_may_have_a_trace_of_its_own() {
    let (mut world, mut s) = begin("surprise_2").await;
    s.one_trace = false;
    let caller = Caller::node(&s);
    let run = s.send(code(&caller, "python", "vm2", 10, 20).finished(false, 10));
    s.send(node(&s, &caller, 0, 30).gave_up("why", 1));
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false, "error_message": "why",
    });
    s.expect(&run, [caller.columns(), tenant(&s), row]);
    world.tell(&s).await;
    // The workflow's own span never comes.
    assert_eq!(
        sum(&world.program(0).scrape().await, "workflow_executions_total", &[]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_3_two_spans_of_one_run_are_one_row_and_one_count() {
    let (mut world, mut s) = begin("surprise_3").await;
    let run = s.send(execution("python", 10, 100));
    s.send(route("python", "auto", "vm2", true, 12, 98));
    s.send(inner("python", "vm2", true, 15, 95));
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 90, "success": true}),
    );
    world.tell(&s).await;
    let scrape = world.program(0).scrape().await;
    assert_eq!(sum(&scrape, "code_executions_total", &[("language", "python")]), 1.0);
    assert_eq!(sum(&scrape, "code_duration_ms_count", &[("language", "python")]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_4_the_runtime_is_wrong_when_the_router_chose_and_the_label_stays_so() {
    let (mut world, mut s) = begin("surprise_4").await;
    let run = s.send(execution("python", 10, 100));
    s.send(route("python", "auto", "e2b", true, 12, 98));
    s.expect(
        &run,
        json!({"runtime": "e2b", "language": "python", "duration_ms": 90, "success": true}),
    );
    world.tell(&s).await;
    assert_eq!(sample(&world, "code_executions_total", PLAIN).await, Some(1.0));
    let beside = world.sides[0].database.beside().await;
    assert_eq!(
        beside[&run].runtime.as_deref(),
        Some("vm2"),
        "what the span said is kept too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_5_exit_codes_and_tokens_are_never_there_and_are_not_made_up() {
    let (mut world, mut s) = begin("surprise_5").await;
    let run = s.send(execution("python", 10, 20));
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true}),
    );
    world.tell(&s).await;
    let scrape = world.program(0).scrape().await;
    for name in [
        "code_exit_code_total",
        "code_tokens_used_total",
        "code_memory_mb_count",
        "code_validation_total",
    ] {
        assert!(
            scrape.0.keys().all(|series| series.name != name),
            "{name} has no series"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_6_memory_is_a_fraction_or_an_integer_or_absent() {
    let (mut world, mut s) = begin("surprise_6").await;
    for (memory, column) in [
        (json!(0.2143), json!(0)),
        (json!(3), json!(3)),
        (json!(2.5), json!(3)),
        (Value::Null, Value::Null),
    ] {
        let run = s.send(
            execution("python", 10, 20)
                .with(json!({"code.memory_mb": memory}))
                .alone(),
        );
        let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
        s.expect(&run, [row, json!({"memory_mb": column})]);
    }
    world.tell(&s).await;
    let memory = "runtime=vm2,language=python";
    assert_eq!(sample(&world, "code_memory_mb_count", memory).await, Some(3.0));
    assert_eq!(
        sample(&world, "code_memory_mb_sum", memory).await,
        Some(0.2143 + 3.0 + 2.5)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_7_an_exception_has_no_status_and_an_early_return_no_verdict_and_both_failed() {
    let (mut world, mut s) = begin("surprise_7").await;
    let start = |s: &Story| code(&Caller::node(s), "python", "vm2", 10, 20);
    for (draft, error) in [
        (start(&s).exception("TypeError", "x is undefined"), "x is undefined"),
        (start(&s).failed("Code is required"), "Code is required"),
    ] {
        let run = s.send(draft);
        let row = json!({
            "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false, "error_message": error,
        });
        s.expect(&run, [Caller::node(&s).columns(), row]);
    }
    world.tell(&s).await;
    assert_eq!(
        sample(
            &world,
            "code_executions_total",
            "runtime=vm2,language=python,outcome=error"
        )
        .await,
        Some(2.0)
    );
    assert_eq!(
        sample(
            &world,
            "code_duration_ms_sum",
            "runtime=vm2,language=python,outcome=error"
        )
        .await,
        Some(20.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_8_a_failed_run_has_no_message_and_the_node_has_a_whole_traceback() {
    let (mut world, mut s) = begin("surprise_8").await;
    let traceback =
        "Traceback (most recent call last):\n  File \"<stdin>\", line 1\nNameError: name 'x' is not defined\n";
    let caller = Caller::node(&s);
    let run = s.send(code(&caller, "python", "vm2", 10, 20).finished(false, 10));
    s.send(node(&s, &caller, 0, 30).gave_up(traceback, 1));
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false, "error_message": traceback,
    });
    s.expect(&run, [caller.columns(), tenant(&s), row]);
    world.tell(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_9_status_alone_is_no_verdict() {
    let (mut world, mut s) = begin("surprise_9").await;
    let run = s.send(
        execution("python", 10, 100)
            .with(json!({"code.success": false, "code.has_error": true}))
            .ok(),
    );
    s.send(route("python", "auto", "vm2", false, 12, 98));
    let analyze = Draft::new("sos-sandbox-escape-detection", "sandbox_escape.analyze", 12, 13)
        .with(json!({"sandbox_escape.language": "python", "sandbox_escape.detected": false}));
    let analyze = s.send(analyze.ok());
    s.span(&analyze).status.as_mut().unwrap().message = "No escape attempts detected".to_owned();
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 90, "success": false}),
    );
    world.tell(&s).await;
    assert_eq!(
        sample(
            &world,
            "code_executions_total",
            "runtime=vm2,language=python,outcome=error"
        )
        .await,
        Some(1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_10_validation_that_is_absent_is_null_and_a_failed_output_is_another_attribute() {
    let (mut world, mut s) = begin("surprise_10").await;
    for (input, output, column) in [
        (Value::Null, Value::Null, Value::Null),
        (json!(true), json!(false), json!(false)),
        (Value::Null, json!(false), json!(false)),
    ] {
        let validation = json!({"code.validation_passed": input, "code.output_validation_passed": output});
        let run = s.send(execution("python", 10, 20).with(validation).alone());
        let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
        s.expect(&run, [row, json!({"validation_passed": column})]);
    }
    world.tell(&s).await;
    // The metric counts what `code.validation_passed` says, and only where it is there.
    assert_eq!(
        sample(
            &world,
            "code_validation_total",
            "runtime=vm2,language=python,passed=true"
        )
        .await,
        Some(1.0)
    );
    assert_eq!(sum(&world.program(0).scrape().await, "code_validation_total", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_11_empty_text_is_unknown() {
    let (mut world, mut s) = begin("surprise_11").await;
    let run = s.send(code(&Caller::nobody(), "python", "vm2", 10, 20).finished(true, 10));
    let around = json!({"user.id": "", "organization.id": "", "workspace.id": ""});
    s.send(node(&s, &Caller::nobody(), 0, 30).completed(1).with(around));
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true}),
    );
    world.tell(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_12_ids_that_no_table_knows_do_not_cost_the_row() {
    let mut random = random("surprise_12");
    let mut world = World::on_sqlite(&mut random, |setup| setup, &crate::foreign_keys::tables("")).await;
    let mut s = Story::new(&mut random);
    let caller = Caller::code_agent(&s);
    let ids = json!({"user.id": "user_2abcDEFclerk", "workspace.id": "ws", "code.agent_id": "cag"});
    let run = s.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10).with(ids));
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 10, "success": true, "node_id": "code-agent",
    });
    s.expect(&run, row);
    world.tell(&s).await;
    let nulled = sum(
        &world.program(0).scrape().await,
        "spanledger_row_values_nulled_total",
        &[],
    );
    assert_eq!(nulled, 5.0, "each value that was refused is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_13_the_organization_has_two_names() {
    let (mut world, mut s) = begin("surprise_13").await;
    let caller = Caller {
        namespace: "org-of-the-code".to_owned(),
        ..Caller::node(&s)
    };
    let run = s.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10));
    let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
    s.expect(&run, [caller.columns(), row.clone()]);
    world.tell(&s).await;
    // The node comes later and knows it better.
    s.send(node(&s, &caller, 0, 30).completed(1));
    s.rows.clear();
    s.expect(&run, [caller.columns(), tenant(&s), row]);
    world.tell(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_14_a_duration_has_a_name_of_its_own_in_each_runtime() {
    let (mut world, mut s) = begin("surprise_14").await;
    s.send(execution("python", 0, 9).with(json!({"code.duration_ms": 1})));
    s.send(e2b_ended("python", 0, 0, 9).with(json!({"e2b.duration_ms": 2})));
    s.send(
        wasmedge("python", 0, 9)
            .with(json!({"wasmedge.execution_time_ms": 3}))
            .ok(),
    );
    s.send(bacalhau("python", 0, 9).with(json!({"bacalhau.duration_ms": 4})).ok());
    s.send(
        node(&s, &Caller::nobody(), 0, 9)
            .completed(1)
            .with(json!({"node.latency_ms": 5})),
    );
    world.send(&request(&s.sent)).await;
    world.settle().await;
    let scrape = world.program(0).scrape().await;
    for (name, ms) in [
        ("code_duration_ms_sum", 1.0),
        ("e2b_duration_ms_sum", 2.0),
        ("wasmedge_execution_time_ms_sum", 3.0),
        ("bacalhau_duration_ms_sum", 4.0),
    ] {
        assert_eq!(sum(&scrape, name, &[("language", "python")]), ms, "{name}");
    }
    assert_eq!(sum(&scrape, "node_latency_ms_sum", &[]), 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_15_attributes_are_of_whatever_type_somebody_configured() {
    let (mut world, mut s) = begin("surprise_15").await;
    let odd = json!({
        "code.timeout_ms": "30000", "code.requires_sandbox": "yes", "code.long_job": 1, "code.packages_count": "3",
        "code.validation_type": 5, "error_code": 429, "security.namespace": 7, "node.id": 12,
    });
    let run = s.send(
        execution("python", 10, 20)
            .with(odd)
            .with(json!({"code.duration_ms": 30_001}))
            .failed("")
            .without(&["code.success", "code.has_error"]),
    );
    world.send(&request(&s.sent)).await;
    let rows = world.rows().await;
    assert_eq!((rows[&run].success, rows[&run].duration_ms), (false, Some(30_001)));
    let timeout = "runtime=vm2,language=python,outcome=timeout";
    assert_eq!(
        sample(&world, "code_executions_total", timeout).await,
        Some(1.0),
        "30000 as text is a number"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_16_senders_choose_labels_and_cannot_flood_the_scrape() {
    let mut random = random("surprise_16");
    let few = |setup: Setup| setup.set("metrics.max_series_per_metric", 20);
    let mut world = World::on_sqlite(&mut random, few, "").await;
    let mut s = Story::new(&mut random);
    for number in 0..200 {
        let language = format!("language-{number}");
        s.send(execution(&language, 0, 1).alone());
        let kind = json!({"node.type": format!("custom.{number}"), "node.id": number.to_string()});
        s.send(
            node(&s, &Caller::nobody(), 0, 1)
                .completed(1)
                .with(kind)
                .named(&format!("node.execute.custom.{number}")),
        );
        let tool = json!({"tool_id": "t".repeat(number + 1)});
        s.send(Draft::new("compozy.runtime", "runtime.execute_tool", 0, 1).with(tool));
    }
    world.send(&request(&s.sent)).await;
    assert_eq!(world.rows().await.len(), 200, "rows are not limited");
    let scrape = world.program(0).scrape().await;
    for name in [
        "code_executions_total",
        "node_executions_total",
        "runtime_tool_execute_seconds_count",
    ] {
        let series = scrape.0.keys().filter(|series| series.name == name);
        assert_eq!(series.count(), 21, "{name}: twenty and the overflow");
        let overflow = scrape.get(name, &[("otel_metric_overflow", "true")]).unwrap();
        // The execution that says when all is written is one more.
        assert!((180.0..=181.0).contains(&overflow), "{name}: {overflow}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_17_a_node_comes_late_and_stands_for_several_attempts_and_turns() {
    let (mut world, mut s) = begin("surprise_17").await;
    let caller = Caller::node(&s);
    for (turn, at) in [("first", 0), ("second", 10_000)] {
        for (attempt, error) in [(10, Value::Null), (1_100, json!(turn))] {
            let run = s.send(code(&caller, "python", "vm2", at + attempt, at + attempt + 50).finished(false, 50));
            let row = json!({
                "runtime": "vm2", "language": "python", "duration_ms": 50, "success": false, "error_message": error,
            });
            s.expect(&run, [caller.columns(), tenant(&s), row]);
        }
    }
    world.send(&request(&s.sent)).await;
    world.kill_and_restart().await;
    let before = s.sent.len();
    s.send(node(&s, &caller, 0, 1_160).gave_up("first", 2));
    s.send(node(&s, &caller, 10_000, 11_160).gave_up("second", 2));
    world.send(&request(&s.sent[before..])).await;
    let wrong = crate::world::compare(&world.settle().await, [("late", &s)]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_18_the_database_gives_no_id_and_times_are_utc_without_a_zone() {
    let mut random = random("surprise_18");
    // Rows of any age are kept.
    let mut world = World::start_with(&mut random, |setup| setup.set("database.retention", "0"), "").await;
    let mut s = Story::new(&mut random);
    let run = s.send(execution("python", 0, 1));
    // 2026-01-02 03:04:05.678 UTC
    s.span(&run).end_time_unix_nano = 1_767_323_045_678_000_000;
    world.send(&request(&s.sent)).await;
    world.settle().await;
    for side in &world.sides {
        let text = match side.database {
            crate::world::Database::Sqlite(_) => "created_at = '2026-01-02 03:04:05.678000'",
            crate::world::Database::Postgres(_) => "created_at::text = '2026-01-02 03:04:05.678'",
        };
        let id = format!(
            "{}-{}",
            spans::hex(&s.sent[0].span.trace_id),
            spans::hex(&s.sent[0].span.span_id)
        );
        let query = format!("SELECT CAST(count(*) AS bigint) FROM code_exec_logs WHERE {text} AND id = '{id}'");
        assert_eq!(side.database.count(&query).await, 1, "{:?}", side.database);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_19_the_backend_writes_rows_of_its_own_which_are_left_alone_and_can_be_told_apart() {
    for (setting, shown) in [("own", 1), ("all", 2)] {
        let mut random = random("surprise_19");
        let configure = |setup: Setup| setup.set("api.rows", setting).set("database.retention", "1d");
        let theirs = "INSERT INTO code_exec_logs (id, runtime, language, success, workflow_execution_id, created_at)
            VALUES ('clx0a1b2c3', 'e2b', 'unknown', true, 'exec-shared', '2020-01-01 00:00:00.000000');";
        let sql = format!(
            "PRAGMA foreign_keys = OFF; {} {theirs}",
            crate::foreign_keys::tables("")
        );
        let mut world = World::on_sqlite(&mut random, configure, &sql).await;
        world.sides[0]
            .database
            .execute("INSERT INTO workflow_executions VALUES ('exec-shared')")
            .await;
        let mut s = Story::new(&mut random);
        let caller = Caller {
            execution_id: "exec-shared".to_owned(),
            ..Caller::anonymous_node(&s)
        };
        let run = s.send(code(&caller, "python", "vm2", 0, 10).finished(true, 10));
        world.send(&request(&s.sent)).await;
        let rows = world.rows().await;
        assert_eq!(rows.len(), 2, "{rows:?}");
        let kept = &rows["clx0a1b2c3"];
        assert_eq!(
            (kept.runtime.as_str(), kept.duration_ms, kept.node_id.as_deref()),
            ("e2b", None, None)
        );
        let url = world
            .program(0)
            .url("api", "/api/v1/code-exec-logs/workflow/exec-shared")
            .await;
        let found = eventually("the row is in the answer", || async {
            let answer = crate::common::http::get(&url).await?;
            let answer: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
            if answer["count"] == shown {
                Ok(answer)
            } else {
                Err(answer.to_string())
            }
        })
        .await;
        assert_eq!(found["data"][0]["id"], json!(run), "newest first");
        assert_eq!(found["data"][0]["nodeId"], json!(caller.node_id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_20_runtimes_and_languages_are_free_text() {
    let (mut world, mut s) = begin("surprise_20").await;
    for (runtime, language) in [("unknown", "python"), ("node", "unknown"), ("auto", "rust")] {
        let run = s.send(
            execution(language, 0, 10)
                .with(json!({"code.runtime": runtime}))
                .alone(),
        );
        s.expect(
            &run,
            json!({"runtime": runtime, "language": language, "duration_ms": 10, "success": true}),
        );
    }
    world.tell(&s).await;
    let labels = "runtime=auto,language=rust,outcome=success";
    assert_eq!(sample(&world, "code_executions_total", labels).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_21_stack_traces_and_attributes_are_of_any_length() {
    let (mut world, mut s) = begin("surprise_21").await;
    let long = "at run (/app/x.js:1:1)\n".repeat(100_000);
    let attributes = json!({"input": &long, "code.language": "python", "code.long": [&long[..1_000], &long[..1_000]]});
    let run = code(&Caller::nobody(), "python", "vm2", 0, 10)
        .exception("Error", &long)
        .with(attributes);
    let run = s.send(run);
    s.expect(
        &run,
        json!({
            "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false,
            "error_message": &long[..8_192],
        }),
    );
    world.tell(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_22_what_cannot_be_taken_now_is_refused_so_that_the_exporter_tries_again() {
    let sink = Sink::away();
    let setup = Setup::forwarding_to(sink.url()).set("journal.max_size", "16MiB");
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let mut random = random("surprise_22");
    let mut refused = None;
    for _ in 0..64 {
        let mut s = Story::new(&mut random);
        let noise: String = std::iter::repeat_with(|| random.alphanumeric()).take(500_000).collect();
        s.send(execution("python", 0, 10).with(json!({"noise": noise})));
        if let Outcome::Refused(why, again) = sender.send(Route::HttpJson, &request(&s.sent)).await {
            refused = Some((why, again));
            break;
        }
    }
    let (why, again) = refused.expect("a journal of 16 MiB is full after 32 MB");
    assert!(
        again && why.starts_with("503"),
        "only 429, 502, 503 and 504 are tried again: {why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_24_headers_are_written_as_json_or_as_pairs_or_as_a_map() {
    let mut random = random("surprise_24");
    for headers in [
        json!(r#"{"signoz-access-token":"secret","x-tenant":"a b"}"#),
        json!("signoz-access-token=secret,x-tenant=a b"),
        json!({"signoz-access-token": "secret", "x-tenant": "a b"}),
    ] {
        let sink = Sink::start().await;
        let setup = Setup::forwarding_to(sink.url()).set("exporters.otlp.headers", headers.clone());
        let program = setup.start().await;
        let mut s = Story::new(&mut random);
        s.send(execution("python", 0, 10));
        Sender::to(&program)
            .await
            .accepted(Route::HttpJson, &request(&s.sent))
            .await;
        let first = |seen: &[Delivery]| seen.first().cloned();
        let delivery = sink.wait("the request is forwarded", first).await;
        for (name, value) in [("signoz-access-token", "secret"), ("x-tenant", "a b")] {
            let found = delivery.headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(found, Some(value), "{name} of {headers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_25_and_26_tools_speak_as_go_does_and_only_spans_of_that_shape_count() {
    let (mut world, mut s) = begin("surprise_25_and_26").await;
    let tool = |more: Value| {
        Draft::new("compozy.runtime", "runtime.execute_tool", 0, 100)
            .with(
                json!({"tool_id": "fetch", "timeout_ms": 60_000, "bun_version": "1.2", "permissions": ["--allow-all"]}),
            )
            .with(more)
    };
    s.send(tool(json!({"exit_code": -1, "signal": "killed", "error_kind": "wait"})).failed("signal: killed"));
    s.send(tool(json!({"error_kind": "timeout"})).failed("context deadline exceeded"));
    s.send(tool(json!({"error_kind": "parse", "exit_code": 0})).failed("TypeError: x is undefined"));
    s.send(tool(json!({"error_kind": "unknown"})).failed("?"));
    s.send(Draft::new("compozy", "stream.tool", 0, 5).with(json!({"exit_code": 1})));
    world.send(&request(&s.sent)).await;
    assert_eq!(
        world.rows().await.len(),
        0,
        "tools are no rows unless they are asked for"
    );
    for (name, labels, value) in [
        (
            "runtime_bun_process_exits_total",
            "status=signal,code=-1,signal=SIGKILL",
            Some(1.0),
        ),
        (
            "runtime_bun_process_exits_total",
            "status=exit,code=0,signal=",
            Some(1.0),
        ),
        ("runtime_bun_process_exits_total", "status=exit,code=1,signal=", None),
        ("runtime_tool_errors_total", "tool_id=fetch,error_kind=wait", Some(1.0)),
        (
            "runtime_tool_errors_total",
            "tool_id=fetch,error_kind=timeout",
            Some(1.0),
        ),
        ("runtime_tool_errors_total", "tool_id=fetch,error_kind=parse", Some(1.0)),
        (
            "runtime_tool_errors_total",
            "tool_id=fetch,error_kind=unknown",
            Some(1.0),
        ),
        ("runtime_tool_timeouts_total", "tool_id=fetch", Some(1.0)),
        (
            "runtime_tool_execute_seconds_count",
            "tool_id=fetch,outcome=timeout",
            Some(1.0),
        ),
        (
            "runtime_tool_execute_seconds_count",
            "tool_id=fetch,outcome=error",
            Some(3.0),
        ),
        (
            "compozy_runtime_tool_errors_total",
            "tool_id=fetch,error_kind=wait",
            None,
        ),
    ] {
        assert_eq!(sample(&world, name, labels).await, value, "{name} {labels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_27_resources_hold_arrays_and_change_from_batch_to_batch() {
    let (mut world, mut s) = begin("surprise_27").await;
    let caller = Caller::node(&s);
    let run = s.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10));
    world.send(&request(&s.sent)).await;
    // The id of the host is known only now.
    let later = node(&s, &caller, 0, 30)
        .completed(1)
        .resource(json!({"host.id": "3f6c", "process.pid": 12.5}));
    s.send(later);
    let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
    s.expect(&run, [caller.columns(), tenant(&s), row]);
    world.tell(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surprise_28_bodies_come_in_chunks_without_a_length() {
    let (mut world, mut s) = begin("surprise_28").await;
    let run = s.send(execution("python", 0, 10));
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true}),
    );
    world.send_over(Route::HttpJsonChunked, &request(&s.sent)).await;
    world.tell(&s).await;
}
