//! What becomes of values that do not fit: rounded, clamped, cut, replaced; and what is kept although it is nothing.

use crate::common::program::sum;
use crate::common::send::Route;
use crate::common::{random, spans, unix_ms_ago};
use crate::executors::*;
use crate::orders::{self, traced};
use crate::story::{Draft, Story, request};
use crate::world::World;
use opentelemetry_proto::tonic::common::v1::any_value;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn values_are_made_to_fit_their_columns_in_every_order() {
    orders::check(
        "values_are_made_to_fit_their_columns_in_every_order",
        &[
            traced("fractions", fractions),
            traced("too large", too_large),
            traced("no number", no_number),
            traced("numbers as text", numbers_as_text),
            traced("nothing is NULL", nothing_is_null),
            traced("zero and false are kept", zero_and_false_are_kept),
            traced("NUL bytes", nul_bytes),
            traced("long errors", long_errors),
            traced("long errors from elsewhere", long_errors_from_elsewhere),
            traced("what other spans say must fit too", values_from_elsewhere),
            traced("nothing from other spans is nothing", nothing_from_elsewhere),
            traced("free text", free_text),
            traced("ends before it begins", ends_before_it_begins),
        ],
    )
    .await;
}

/// An execution of its own with these attributes, in a row that is plain but for these columns.
fn with(s: &mut Story, attributes: Value, columns: Value) -> String {
    let run = s.send(execution("python", 10, 20).with(attributes).alone());
    let plain = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
    s.expect(&run, [plain, columns]);
    run
}

fn fractions(s: &mut Story) {
    for (value, rounded) in [
        (0.5, 1),
        (1.5, 2),
        (2.5, 3),
        (0.49, 0),
        // The largest number below one half: adding a half to it gives 1.
        (0.499_999_999_999_999_94, 0),
        (-0.5, -1),
        (-1.5, -2),
        (-2.5, -3),
        (-0.49, 0),
        (-2.49, -2),
        (1e-300, 0),
        (65_535.5, 65_536),
        (2_147_483_646.5, 2_147_483_647),
    ] {
        with(s, json!({"code.duration_ms": value}), json!({"duration_ms": rounded}));
        with(s, json!({"code.memory_mb": value}), json!({"memory_mb": rounded}));
        with(s, json!({"code.tokens_used": value}), json!({"tokens_used": rounded}));
    }
    // The same number once as an integer, once as a double.
    with(s, json!({"code.exit_code": 3}), json!({"exit_code": 3}));
    with(s, json!({"code.exit_code": 3.0}), json!({"exit_code": 3}));
}

fn too_large(s: &mut Story) {
    let (most, least) = (2_147_483_647_i64, -2_147_483_648_i64);
    for (value, clamped) in [
        (json!(most), most),
        (json!(most + 1), most),
        (json!(i64::MAX), most),
        (json!(1e300), most),
        (json!(2_147_483_647.5), most),
        (json!(least), least),
        (json!(least - 1), least),
        (json!(i64::MIN), least),
        (json!(-1e300), least),
        (json!(-2_147_483_648.5), least),
    ] {
        with(s, json!({"code.duration_ms": value}), json!({"duration_ms": clamped}));
        with(s, json!({"code.memory_mb": value}), json!({"memory_mb": clamped}));
        with(s, json!({"code.exit_code": value}), json!({"exit_code": clamped}));
        with(s, json!({"code.tokens_used": value}), json!({"tokens_used": clamped}));
    }
    // From the times of the span: 30 days are more milliseconds than 32 bits hold.
    let days_30 = 30 * 24 * 3_600_000;
    let run = execution("python", -days_30, 20).without(&["code.duration_ms"]);
    let run = s.send(run);
    let row = json!({"runtime": "vm2", "language": "python", "duration_ms": most, "success": true});
    s.expect(&run, row);
}

/// What is not a number is as good as not there.
fn no_number(s: &mut Story) {
    // In JSON it is `{"doubleValue":null}`, as the SDK for JavaScript writes it.
    let run = with(s, json!({}), json!({}));
    let nan = || any_value::Value::DoubleValue(f64::NAN);
    for key in ["code.duration_ms", "code.memory_mb"] {
        let attributes = &mut s.span(&run).attributes;
        attributes.retain(|attribute| attribute.key != key);
        attributes.push(spans::attribute(key, nan()));
    }
    // `{}`: undefined.
    let run = with(s, json!({}), json!({}));
    for attribute in &mut s.span(&run).attributes {
        if attribute.key == "code.duration_ms" {
            attribute.value = None;
        }
    }
    with(
        s,
        json!({"code.duration_ms": "soon", "code.memory_mb": "much"}),
        json!({}),
    );
    with(s, json!({"code.duration_ms": true, "code.memory_mb": ["1"]}), json!({}));
    with(s, json!({"code.duration_ms": "", "code.exit_code": ""}), json!({}));
}

fn numbers_as_text(s: &mut Story) {
    let attributes = json!({
        "code.duration_ms": "12", "code.memory_mb": "3.5", "code.exit_code": "0", "code.tokens_used": "1e3",
    });
    let columns = json!({"duration_ms": 12, "memory_mb": 4, "exit_code": 0, "tokens_used": 1_000});
    with(s, attributes, columns);
}

fn nothing_is_null(s: &mut Story) {
    let attributes = json!({
        "code.runtime": "", "code.language": "", "workflow.execution_id": "", "node.id": "", "workflow.id": "",
        "organization.id": "", "workspace.id": "", "user.id": "", "security.namespace": "", "code.agent_id": "",
    });
    with(s, attributes, json!({"runtime": "unknown", "language": "unknown"}));
    let run = s.send(
        execution("python", 10, 20)
            .without(&["code.runtime", "code.language"])
            .alone(),
    );
    s.expect(
        &run,
        json!({"runtime": "unknown", "language": "unknown", "duration_ms": 10, "success": true}),
    );
}

fn zero_and_false_are_kept(s: &mut Story) {
    let attributes = json!({
        "code.duration_ms": 0, "code.memory_mb": 0, "code.exit_code": 0, "code.tokens_used": 0,
        "code.validation_passed": false,
    });
    let columns =
        json!({"duration_ms": 0, "memory_mb": 0, "exit_code": 0, "tokens_used": 0, "validation_passed": false});
    with(s, attributes, columns);
}

fn nul_bytes(s: &mut Story) {
    let attributes = json!({
        "code.runtime": "v\0m2", "code.language": "py\0\0thon", "workflow.execution_id": "exec\0", "node.id": "\0node",
        "organization.id": "o\0rg", "workspace.id": "w\0s", "user.id": "\0user\0", "code.agent_id": "c\0ag",
    });
    let columns = json!({
        "workflow_execution_id": "exec", "node_id": "node", "organization_id": "org", "workspace_id": "ws",
        "user_id": "user", "code_agent_id": "cag",
    });
    with(s, attributes, columns);
    let run = s.send(
        execution("python", 10, 20)
            .with(json!({"code.success": false}))
            .failed("a\0b\0")
            .alone(),
    );
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false, "error_message": "ab",
    });
    s.expect(&run, row);
    // Nothing else in it: nothing is left.
    let attributes = json!({"code.runtime": "\0", "code.language": "\0\0", "node.id": "\0", "user.id": "\0"});
    with(s, attributes, json!({"runtime": "unknown", "language": "unknown"}));
}

const LIMIT: usize = 8 * 1_024;

/// An error message and what is kept of it.
fn error(s: &mut Story, message: &str, kept: &str) {
    let run = s.send(
        execution("python", 10, 20)
            .with(json!({"code.success": false}))
            .failed(message)
            .alone(),
    );
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 10, "success": false, "error_message": kept,
    });
    s.expect(&run, row);
}

fn long_errors(s: &mut Story) {
    let full = "e".repeat(LIMIT);
    error(s, &full, &full);
    error(s, &format!("{full}e"), &full);
    error(s, &"e".repeat(10 * LIMIT), &full);
    // A character is whole or not there.
    let most = "e".repeat(LIMIT - 1);
    error(s, &format!("{most}é"), &most);
    error(s, &format!("{most}é and more"), &most);
    let rest = "e".repeat(LIMIT - 3);
    error(s, &format!("{rest}🦀"), &rest);
    error(
        s,
        &format!("{}🦀", "e".repeat(LIMIT - 4)),
        &format!("{}🦀", "e".repeat(LIMIT - 4)),
    );
    error(s, &"é".repeat(LIMIT), &"é".repeat(LIMIT / 2));
}

fn long_errors_from_elsewhere(s: &mut Story) {
    let long = "n".repeat(3 * LIMIT);
    let caller = Caller::node(s);
    let run = s.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    s.send(node(s, &caller, 0, 110).gave_up(&long, 1));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false,
        "error_message": long[..LIMIT],
    });
    s.expect(&run, [caller.columns(), tenant(s), row]);
    let thrown = code(&Caller::nobody(), "python", "subprocess", 10, 100)
        .exception("Error", &long)
        .alone();
    let run = s.send(thrown);
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false,
        "error_message": long[..LIMIT],
    });
    s.expect(&run, row);
}

fn values_from_elsewhere(s: &mut Story) {
    let caller = Caller::node(s);
    let run = s.send(
        code(&caller, "python", "vm2", 10, 100)
            .finished(false, 90)
            .routed("e2b", "auto"),
    );
    s.send(route("python", "auto", "e\0 2b", false, 12, 98));
    let sandbox =
        e2b_ended("python", 1, 15, 95).with(json!({"e2b.exit_code": 5_000_000_000_i64, "e2b.memory_mb": 1e300}));
    s.send(sandbox);
    let around = json!({"user.id": "us\0er", "organization.id": "\0", "workspace.id": "ws\0"});
    s.send(node(s, &caller, 0, 110).gave_up("a\0b", 1).with(around));
    let row = json!({
        "runtime": "e 2b", "language": "python", "duration_ms": 90, "success": false, "exit_code": i32::MAX,
        "memory_mb": i32::MAX, "user_id": "user", "workspace_id": "ws", "error_message": "ab",
    });
    s.expect(&run, [caller.columns(), row]);
}

fn nothing_from_elsewhere(s: &mut Story) {
    let caller = Caller::hook(s, "pre-ingest");
    let run = s.send(code(&caller, "python", "vm2", 10, 100).finished(false, 90));
    s.send(route("python", "auto", "", false, 12, 98));
    s.send(
        e2b("python", 15, 95)
            .with(json!({"e2b.exit_code": "", "e2b.memory_mb": "none"}))
            .failed(""),
    );
    s.send(
        hook(s, "pre-ingest", 0, 110)
            .with(json!({"hook.agent_id": ""}))
            .failed(""),
    );
    let row = json!({
        "runtime": "vm2", "language": "python", "duration_ms": 90, "success": false, "code_agent_id": s.id("cag"),
    });
    s.expect(&run, [caller.columns(), row]);
}

/// Runtimes and languages are whatever executors call them.
fn free_text(s: &mut Story) {
    for (runtime, language) in [
        ("node", "javascript"),
        ("auto", "unknown"),
        ("unknown", "C++"),
        ("VM2", "Python"),
        (" vm2 ", "日本語 \"'\\%_\n"),
    ] {
        let attributes = json!({"code.runtime": runtime, "code.language": language});
        with(s, attributes, json!({"runtime": runtime, "language": language}));
    }
}

/// Clocks go back. How long it took is not known.
fn ends_before_it_begins(s: &mut Story) {
    let run = s.send(execution("python", 20, 10).with(json!({"code.duration_ms": 4})).alone());
    s.expect(
        &run,
        json!({"runtime": "vm2", "language": "python", "duration_ms": 4, "success": true}),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_is_replaced_by_the_time_of_receipt_and_counted() {
    let mut random = random("an_end_that_cannot_be_is_replaced_by_the_time_of_receipt_and_counted");
    // Rows of old executions are kept.
    let mut world = World::start_with(&mut random, |setup| setup.set("database.retention", "0"), "").await;
    let year_2000 = 946_684_800_000_000_000_u64;
    let hour = 3_600_000_000_000_u64;
    let sent_at = unix_ms_ago(Duration::ZERO) * 1_000_000;
    // (end, whether it is taken as it is)
    let ends = [
        (0, false),
        (1, false),
        (year_2000 - 1_000, false),
        (year_2000, true),
        (sent_at - 20 * 365 * 24 * hour, true),
        (sent_at + 23 * hour, true),
        (sent_at + 25 * hour, false),
        (9_000_000_000_000_000_000, false),
        (u64::MAX, false),
    ];
    let mut story = Story::new(&mut random);
    let mut cases = Vec::new();
    for (end, taken) in ends {
        let run = story.send(execution("python", 10, 20).alone());
        let span = story.span(&run);
        span.end_time_unix_nano = end;
        span.start_time_unix_nano = end.saturating_sub(10_000_000);
        cases.push((run, end, taken));
    }
    let request = request(&story.sent);
    let before = unix_ms_ago(Duration::ZERO) as i64 * 1_000;
    world.send_over(Route::HttpJson, &request).await;
    let after = unix_ms_ago(Duration::ZERO) as i64 * 1_000 + 1_000;
    let first = world.settle().await;
    for rows in &first {
        for (run, end, taken) in &cases {
            let created_at = rows[run].created_at;
            if *taken {
                assert_eq!(created_at, (end / 1_000) as i64, "end {end} is taken as it is");
            } else {
                assert!((before..=after).contains(&created_at), "end {end} became {created_at}");
            }
            assert_eq!(
                rows[run].duration_ms,
                Some(10),
                "what the span says of its duration stands, end {end}"
            );
        }
    }
    for side in 0..world.sides.len() {
        let counted = sum(
            &world.program(side).scrape().await,
            "spanledger_row_values_bent_total",
            &[],
        );
        assert!(counted >= 6.0, "{counted} replaced times were counted");
    }
    // A second delivery changes nothing, nor does a restart.
    world.kill_and_restart().await;
    world.send_over(Route::Grpc, &request).await;
    assert_eq!(world.settle().await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_clamped_is_counted() {
    let mut random = random("what_was_clamped_is_counted");
    let mut world = World::start(&mut random).await;
    let mut story = Story::new(&mut random);
    with(
        &mut story,
        json!({"code.memory_mb": 3e9, "code.tokens_used": -3e9}),
        json!({
            "memory_mb": i32::MAX, "tokens_used": i32::MIN,
        }),
    );
    with(&mut story, json!({"code.memory_mb": 0.5}), json!({"memory_mb": 1}));
    world.tell(&story).await;
    for side in 0..world.sides.len() {
        let scrape = world.program(side).scrape().await;
        let clamped = sum(&scrape, "spanledger_row_values_bent_total", &[("what", "clamped")]);
        assert_eq!(clamped, 2.0, "rounding is no bending");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_any_name_and_kind_become_rows_if_they_are_executions() {
    let mut random = random("spans_of_any_name_and_kind_become_rows_if_they_are_executions");
    let mut world = World::start(&mut random).await;
    let mut story = Story::new(&mut random);
    for (kind, name) in ["", "code.execute", "tool", "node.execute.action.code"]
        .into_iter()
        .enumerate()
    {
        let run = story.send(Draft::new("t", name, 0, 5).with(json!({"code.runtime": "vm2"})).alone());
        story.span(&run).kind = kind as i32;
        story.expect(
            &run,
            json!({"runtime": "vm2", "language": "unknown", "duration_ms": 5, "success": true}),
        );
    }
    world.tell(&story).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_any_length_harm_no_row_beside_them() {
    let mut random = random("ids_of_any_length_harm_no_row_beside_them");
    let mut world = World::start(&mut random).await;
    let mut story = Story::new(&mut random);
    let mut long = Vec::new();
    for number in 0..30 {
        if number % 10 == 5 {
            // More than PostgreSQL takes into an index, and nothing that it could compress.
            let id: String = std::iter::repeat_with(|| random.alphanumeric()).take(20_000).collect();
            let caller = Caller {
                execution_id: id,
                ..Caller::node(&story)
            };
            long.push(story.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10).alone()));
            story.send(node(&story, &caller, 0, 30).completed(1).alone());
        } else {
            let caller = Caller {
                node_id: format!("n{number}"),
                ..Caller::node(&story)
            };
            let run = story.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10).alone());
            story.send(node(&story, &caller, 0, 30).completed(1).alone());
            let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": true});
            story.expect(&run, [caller.columns(), tenant(&story), row]);
        }
    }
    world.send(&request(&story.sent)).await;
    let mut found = world.settle().await;
    for (side, rows) in found.iter_mut().enumerate() {
        for run in &long {
            let aside = format!("SELECT CAST(count(*) AS bigint) FROM spanledger_quarantine WHERE id = '{run}'");
            let aside = world.sides[side].database.count(&aside).await == 1;
            assert_ne!(rows.remove(run).is_some(), aside, "a row, or set aside with the reason");
        }
    }
    let wrong = crate::world::compare(&found, [("beside", &story)]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_of_a_thousand_executions_is_completed_by_one_span() {
    let mut random = random("a_trace_of_a_thousand_executions_is_completed_by_one_span");
    let mut world = World::start(&mut random).await;
    let mut story = Story::new(&mut random);
    for number in 0..1_000 {
        let run = story.send(code(&Caller::tool(), "python", "subprocess", number, number + 5).finished(true, 5));
        let row = json!({"runtime": "subprocess", "language": "python", "duration_ms": 5, "success": true});
        story.expect(&run, [Caller::tool().columns(), tenant(&story), row]);
    }
    world.send(&request(&story.sent)).await;
    let agent = node(&story, &Caller::node(&story), 0, 2_000).completed(1);
    story.send(agent);
    world.kill_and_restart().await;
    world.send(&request(&story.sent[1_000..])).await;
    let wrong = crate::world::compare(&world.settle().await, [("one of a thousand", &story)]);
    assert!(
        wrong.is_empty(),
        "{} rows are wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(3)]
    );
}
