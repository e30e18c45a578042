//! The command line: what can be said, and what each command does.

pub mod args;

pub use args::{Cli, Command};
