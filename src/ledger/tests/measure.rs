//! Measured with `cargo test --release --lib ledger::tests::measure -- --ignored --nocapture`.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use super::databases::batch;
use super::support::{S, V, facts, failure, node};
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
