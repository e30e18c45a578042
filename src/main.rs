//! The `spanledger` command: parse, load the configuration, build, run, drain.

use std::process::ExitCode;

use clap::Parser as _;
use spanledger::cli::{Cli, commands};

// Request bodies are some hundred kilobytes: the C library maps and unmaps memory for each of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match commands::execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The program may not have come to logging yet, and a command's user looks at the terminal.
            eprintln!("spanledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}
