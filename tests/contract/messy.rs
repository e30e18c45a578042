//! Spans that nobody has thought of: whatever they are, the rows they become do not depend on the order in which they come.

use crate::common::random;
use crate::common::rows::Row;
use crate::executors::*;
use crate::orders::{Arrival, arrival, deliver, shuffled};
use crate::story::{Draft, Story};
use crate::world::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How many stories are made up; `SPANLEDGER_CONTRACT_STORIES` says more.
const STORIES: usize = 80;

/// In how many ways each is told.
const WAYS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn rows_do_not_depend_on_the_order_in_which_spans_come() {
    let mut random = random("rows_do_not_depend_on_the_order_in_which_spans_come");
    let world = World::start(&mut random).await;
    check(world, random, STORIES, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_do_not_depend_on_which_of_two_sidecars_gets_which_span() {
    if crate::common::postgres::skipped() {
        return;
    }
    let mut random = random("rows_do_not_depend_on_which_of_two_sidecars_gets_which_span");
    let world = World::sharing_a_database(&mut random).await;
    check(world, random, STORIES / 2, true).await;
}

async fn check(mut world: World, mut random: fastrand::Rng, stories: usize, either: bool) {
    let stories = std::env::var("SPANLEDGER_CONTRACT_STORIES").map_or(stories, |stories| stories.parse().unwrap());
    let mut arrivals: Vec<Arrival> = Vec::new();
    for number in 0..stories {
        let seed = random.u64(..);
        for _ in 0..WAYS {
            let mut story = Story::new(&mut random);
            make_up(&mut story, &mut fastrand::Rng::with_seed(seed));
            let order = shuffled(story.sent.len(), &mut random);
            let size = random.usize(1..=order.len());
            arrivals.push(arrival(&format!("{number}"), story, &order, size));
        }
    }
    deliver(&mut world, &arrivals, &mut random, either).await;
    for (side, rows) in world.settle().await.iter().enumerate() {
        let mut count = 0;
        for told in arrivals.chunks(WAYS) {
            let first = as_told(&told[0].story, rows);
            count += first.len() * WAYS;
            for other in &told[1..] {
                let found = as_told(&other.story, rows);
                let names = [&other.name, &told[0].name];
                assert_eq!(found, first, "side {side}: {names:?}:\n{:#?}", spans(&other.story));
            }
        }
        assert_eq!(count, rows.len(), "side {side}: no row is of no story");
    }
}

/// The rows of a story by the number of their span, with nothing in them that is this telling's own.
fn as_told(story: &Story, rows: &BTreeMap<String, Row>) -> Vec<(usize, Row)> {
    let plain = |text: &Option<String>| text.as_ref().map(|text| text.replace(&story.tag, "*"));
    let ids = story.sent.iter().map(|sent| crate::common::spans::id(&sent.span));
    let found = ids
        .enumerate()
        .filter_map(|(number, id)| Some((number, rows.get(&id)?)));
    found
        .map(|(number, row)| {
            let row = Row {
                id: String::new(),
                code_agent_id: plain(&row.code_agent_id),
                workflow_execution_id: plain(&row.workflow_execution_id),
                node_id: plain(&row.node_id),
                organization_id: plain(&row.organization_id),
                workspace_id: plain(&row.workspace_id),
                user_id: plain(&row.user_id),
                created_at: row.created_at - story.base_unix_ms * 1_000,
                ..row.clone()
            };
            (number, row)
        })
        .collect()
}

/// What a failure shows of a story.
fn spans(story: &Story) -> Vec<String> {
    let ms = |nanos: u64| (nanos / 1_000_000) as i64 - story.base_unix_ms;
    story
        .sent
        .iter()
        .map(|sent| {
            let span = &sent.span;
            let attributes: Vec<String> = span
                .attributes
                .iter()
                .filter(|attribute| !attribute.key.starts_with("code.has") && !attribute.key.starts_with("security.r"))
                .map(|attribute| {
                    format!(
                        "{}={:?}",
                        attribute.key,
                        attribute.value.as_ref().and_then(|v| v.value.as_ref())
                    )
                })
                .collect();
            format!(
                "{} {}..{} trace {} {:?} {}",
                span.name,
                ms(span.start_time_unix_nano),
                ms(span.end_time_unix_nano),
                span.trace_id[0],
                span.status,
                attributes.join(" ")
            )
        })
        .collect()
}

/// A few spans that overlap, share ids and traces or not, and say this or that.
fn make_up(s: &mut Story, random: &mut fastrand::Rng) {
    let count = random.usize(2..=8);
    for number in 0..count {
        let start = 25 * random.i64(0..10);
        let end = start + pick(random, &[0, 10, 40, 100, 300]);
        let kind = if number == 0 { 0 } else { random.u8(0..10) };
        let draft = match kind {
            0..=2 => made_up_execution(s, random, start, end),
            3..=5 => made_up_node(s, random, start, end),
            6 => route(
                "python",
                "auto",
                pick(random, &["", "vm2", "e2b", "subprocess"]),
                true,
                start,
                end,
            ),
            7 => inner("python", pick(random, &["vm2", "subprocess"]), true, start, end),
            8 => e2b_ended("python", pick(random, &[0, 1, 2]), start, end)
                .with(json!({"e2b.memory_mb": pick(random, &[Value::Null, json!(1), json!(2.5)])})),
            _ => {
                let around = hook(s, "pre-ingest", start, end)
                    .with(json!({"hook.agent_id": pick(random, &["", "agent-one", "agent-two"])}));
                if random.bool() {
                    around.ok()
                } else {
                    around.failed("of the hook")
                }
            }
        };
        let draft = match random.u8(0..6) {
            0 => draft.alone(),
            1 => draft.in_trace(1),
            _ => draft.in_trace(0),
        };
        let resource = pick(random, &["", "", "", "resource"]);
        s.send(draft.resource(json!({"user.id": resource, "organization.id": resource})));
    }
}

fn pick<T: Clone>(random: &mut fastrand::Rng, from: &[T]) -> T {
    from[random.usize(..from.len())].clone()
}

fn made_up_caller(s: &Story, random: &mut fastrand::Rng) -> Caller {
    match random.u8(0..8) {
        0..=3 => Caller::anonymous_node(s),
        4 => Caller {
            node_id: s.id("other"),
            ..Caller::node(s)
        },
        5 => Caller {
            node_id: String::new(),
            ..Caller::node(s)
        },
        6 => Caller::hook(s, "pre-ingest"),
        _ => Caller::nobody(),
    }
}

fn made_up_execution(s: &Story, random: &mut fastrand::Rng, start: i64, end: i64) -> Draft {
    let caller = made_up_caller(s, random);
    let run = code(&caller, "python", pick(random, &["vm2", "vm2", "e2b", ""]), start, end);
    let run = match random.u8(0..5) {
        0 => run.failed("of the span"),
        1 => run.exception("Error", "thrown"),
        2 => run,
        3 => run.finished(true, end - start),
        _ => run.finished(false, end - start),
    };
    let run = run.with(json!({
        "user.id": pick(random, &["", "", "", "span"]), "code.exit_code": pick(random, &[Value::Null, json!(0), json!(3)]),
        "code.memory_mb": pick(random, &[Value::Null, Value::Null, json!(7.5)]),
    }));
    // One of the ids may be missing altogether.
    if random.u8(0..8) == 0 {
        run.without(&["node.id"])
    } else {
        run
    }
}

fn made_up_node(s: &Story, random: &mut fastrand::Rng, start: i64, end: i64) -> Draft {
    let around = node(s, &made_up_caller(s, random), start, end).with(json!({
        "user.id": pick(random, &["", "one", "two"]), "organization.id": pick(random, &["", "one", "two"]),
        "workspace.id": pick(random, &["", "one", "two"]),
    }));
    match random.u8(0..4) {
        0 => around.completed(1),
        1 => around.gave_up("of the node", 1),
        2 => around.gave_up("of the node, at last", 2),
        // A second kind of span of the same node, which says neither status nor attempts.
        _ => around.ok(),
    }
}
