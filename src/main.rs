//! The `spanledger` command: parse, load the configuration, build, run, drain.

use std::process::ExitCode;

use clap::Parser as _;
use spanledger::cli::{Cli, commands};

// Request bodies are some hundred kilobytes: the C library maps and unmaps memory for each of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Otherwise it keeps freed memory for a second and asks for pages of 2 MiB: under overload, twice the memory.
#[cfg(unix)]
const ALLOCATOR_OPTIONS: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "0"), ("MIMALLOC_ALLOW_THP", "0")];

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(unix)]
    if cli.runs() {
        set_allocator_options();
    }
    match commands::execute(cli) {
        Ok(code) => code,
        Err(error) => {
            // The program may not have come to logging yet, and a command's user looks at the terminal.
            eprintln!("spanledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The allocator reads its options from the environment before `main`: the process begins again with them, as the same
/// process, unless the user has said something else. Where that is not possible it works as well, in more memory.
#[cfg(unix)]
fn set_allocator_options() {
    use std::os::unix::process::CommandExt as _;

    if ALLOCATOR_OPTIONS
        .iter()
        .any(|(name, _)| std::env::var_os(name).is_some())
    {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else {
        return;
    };
    let mut again = std::process::Command::new(program);
    let _not_possible = again.arg0(name).args(arguments).envs(ALLOCATOR_OPTIONS).exec();
}
