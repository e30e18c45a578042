//! What waits does so within bounds, and what falls out costs columns, never rows.

use crate::common::program::sum;
use crate::common::random;
use crate::executors::*;
use crate::story::{Story, request};
use crate::world::World;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_the_assembly_window_completes_nothing() {
    let mut random = random("what_comes_after_the_assembly_window_completes_nothing");
    let settings = |setup: crate::common::program::Setup| setup.set("database.assembly_window", "1s");
    let mut world = World::start_with(&mut random, settings, "").await;
    // An execution whose node comes late, and a node whose execution comes late.
    let mut early = Story::new(&mut random);
    let mut late = Story::new(&mut random);
    early.one_trace = false;
    let late_node = Caller::node(&early);
    let run = early.send(code(&late_node, "python", "vm2", 10, 20).finished(false, 10));
    let row = json!({"runtime": "vm2", "language": "python", "duration_ms": 10, "success": false});
    early.expect(&run, [late_node.columns(), row.clone()]);
    late.send(node(&early, &late_node, 0, 30).gave_up("late", 1));
    let other = Caller {
        node_id: early.id("other"),
        ..Caller::node(&early)
    };
    early.send(node(&early, &other, 0, 30).gave_up("early", 1));
    late.base_unix_ms = early.base_unix_ms;
    let run = late.send(code(&other, "python", "vm2", 10, 20).finished(false, 10));
    late.expect(&run, [other.columns(), row]);
    world.send(&request(&early.sent)).await;
    world.settle().await;
    for side in 0..world.sides.len() {
        world
            .program(side)
            .scrape_until("nothing waits any more", |scrape| {
                let waiting = sum(scrape, "spanledger_context_waiting", &[]);
                let fallen_out = sum(scrape, "spanledger_context_fallen_out_total", &[]);
                if waiting == 0.0 && fallen_out > 0.0 {
                    Ok(())
                } else {
                    Err(format!("{waiting} wait, {fallen_out} fell out"))
                }
            })
            .await;
    }
    world.send(&request(&late.sent)).await;
    let wrong = crate::world::compare(&world.settle().await, [("early", &early), ("late", &late)]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_context_than_may_wait_costs_no_row() {
    let mut random = random("more_context_than_may_wait_costs_no_row");
    let settings = |setup: crate::common::program::Setup| setup.set("database.max_pending", 50);
    let mut world = World::start_with(&mut random, settings, "").await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let mut story = Story::new(&mut random);
        for number in 0..50 {
            let caller = Caller {
                node_id: format!("n{number}"),
                ..Caller::node(&story)
            };
            story.send(node(&story, &caller, 0, 30).completed(1));
            ids.push(story.send(code(&caller, "python", "vm2", 10, 20).finished(true, 10)));
        }
        world.send(&request(&story.sent)).await;
    }
    for rows in world.settle().await {
        let missing: Vec<&String> = ids.iter().filter(|id| !rows.contains_key(*id)).collect();
        assert!(missing.is_empty(), "{} rows are missing", missing.len());
        assert_eq!(rows.len(), ids.len());
    }
    for side in 0..world.sides.len() {
        world
            .program(side)
            .scrape_until("no more wait than may", |scrape| {
                let waiting = sum(scrape, "spanledger_context_waiting", &[]);
                let fallen_out = sum(scrape, "spanledger_context_fallen_out_total", &[]);
                if waiting <= 50.0 && fallen_out > 0.0 {
                    Ok(())
                } else {
                    Err(format!("{waiting} wait, {fallen_out} fell out"))
                }
            })
            .await;
    }
}
