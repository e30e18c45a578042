//! Tests of the room: spans in, rows out, on both databases.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod assembly;
mod backend;
mod backlog;
mod completion;
mod counting;
mod databases;
mod faults;
mod following;
mod keeping;
mod measure;
mod noted;
mod operating;
mod packing;
mod paths;
#[path = "../../../tests/common/postgres.rs"]
pub(crate) mod postgres;
mod refusals;
mod repeats;
pub(in crate::ledger) mod support;
mod surprises;
mod tables;
mod upgrade;
mod upkeep;
mod waiting;
