//! The command line: what can be said, and what each command does.

pub mod args;
pub mod commands;
mod dashboards;
mod demo_guard;
mod explain;
mod healthcheck;
mod journal_report;
mod refused;

pub use args::{Cli, Command};
