//! Measured with `cargo test --release --lib ledger::tests::measure -- --ignored --nocapture`.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use super::databases::batch;
use super::support::{S, V, at, facts, failure, node, span, success};
use crate::ledger::plan::plan;

/// As many as one batch may know and bring, all inside one node that failed.
#[test]
#[ignore = "a measurement"]
fn how_long_a_batch_takes_whose_executions_are_all_attempts_of_one_node() {
    let around = node(1, 65_000, 0, 100_000).with("node.error", V::S("boom"));
    let runs = |ids: std::ops::Range<u16>| ids.map(|id| failure(1, id, 100 + u64::from(id), 101 + u64::from(id)));
    let known: Vec<S> = runs(0..20_000).chain([around]).collect();
    let (known, fresh) = (facts(&known), facts(&runs(20_000..34_000).collect::<Vec<_>>()));
    let began = Instant::now();
    let plan = plan(&batch(&fresh), &known);
    println!(
        "{} rows and {} candidates in {:?}",
        plan.parts[0].rows.len(),
        plan.parts[0].candidates.len(),
        began.elapsed()
    );
}

/// Tools that each execution encloses, and that may all have rows of their own.
#[test]
#[ignore = "a measurement"]
fn how_long_a_batch_takes_whose_executions_all_enclose_all_of_its_tools() {
    let runs = (0..7_000).map(|id| success(1, id, 0, 100_000));
    let tools = (7_000..14_000).map(|id| span("tool", 1, id, 100, 200).with("tool_id", V::S("t")));
    let fresh = at(&runs.chain(tools).collect::<Vec<_>>(), 0);
    let began = Instant::now();
    let plan = plan(&batch(&fresh), &[]);
    println!("{} rows in {:?}", plan.parts[0].rows.len(), began.elapsed());
}

/// Nodes of other workflow executions around every execution of a trace.
#[test]
#[ignore = "a measurement"]
fn how_long_a_batch_takes_whose_nodes_are_all_of_other_workflow_executions() {
    let runs = (0..7_000).map(|id| failure(1, id, 100, 200).ids("wf", "we-1", ""));
    let nodes = (7_000..14_000).map(|id| node(1, id, 0, 100_000).ids("wf", "we-2", ""));
    let fresh = at(&runs.chain(nodes).collect::<Vec<_>>(), 0);
    let began = Instant::now();
    let plan = plan(&batch(&fresh), &[]);
    println!("{} rows in {:?}", plan.parts[0].rows.len(), began.elapsed());
}
