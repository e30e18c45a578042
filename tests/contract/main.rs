//! The contract, checked from outside: the real program, spans as the executors send them, and what must come of them.
//!
//! Written from what the program promises (docs/rows.md, docs/metrics.md) and from what the executors are known to send,
//! without a look at how the program does it; nothing here may use the library. Spans go in over every protocol; rows are
//! read from SQLite and PostgreSQL, metrics from `/metrics`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    unreachable_pub,
    dead_code
)]

#[path = "../common/mod.rs"]
mod common;

mod executors;
mod foreign_keys;
mod ladders;
mod limits;
mod messy;
mod metrics;
mod orders;
mod paths;
mod property;
mod story;
mod surprises;
mod values;
mod world;
