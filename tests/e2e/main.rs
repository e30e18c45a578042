//! End-to-end tests: the real program, started as users start it, judged by what it promises in its documentation.
//!
//! `scripts/test.sh` installs what they need and runs them with everything else. They are one binary, so that it is
//! linked once and its tests share both cores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod bad_input;
mod browser;
mod context;
mod cost;
mod dashboards;
mod duplicates;
mod end_to_end;
mod faults;
mod flow;
mod kill_loop;
mod leaving;
mod live;
mod operate;
mod overload;
mod pass_through;
mod push;
mod real_prometheus;
mod real_sdks;
mod reload;
mod sink_python;
mod two_databases;
