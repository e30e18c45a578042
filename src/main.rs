//! The `spanledger` command: parse, load the configuration, build, run, drain.

use std::process::ExitCode;

use clap::Parser as _;
use spanledger::cli::{Cli, commands};

// Request bodies are some hundred kilobytes: the C library maps and unmaps memory for each of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// It keeps freed memory for some milliseconds: giving it back at once costs 5 to 10 % in page faults, keeping it for a second
/// takes twice the memory under overload.
#[cfg(unix)]
const PURGE_DELAY: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "1");

/// Pages of 2 MiB are for bodies alone, which ask for them. Where the system gives them to all memory that is large enough, it
/// is to give them to none: one such page for some bytes here and some bytes there is twice the memory too.
#[cfg(unix)]
const ALLOW_THP: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");

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
/// process, as far as the user has said nothing else. Where that is not possible it works as well, in more memory.
#[cfg(unix)]
fn set_allocator_options() {
    use std::os::unix::process::CommandExt as _;

    let is_open = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    let mut options = vec![PURGE_DELAY];
    if huge_pages_come_unasked() {
        options.push(ALLOW_THP);
    }
    options.retain(is_open);
    if options.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else {
        return;
    };
    let mut again = std::process::Command::new(program);
    let _not_possible = again.arg0(name).args(arguments).envs(options).exec();
}

/// Whether the system gives pages of 2 MiB to whoever has not asked for them.
#[cfg(unix)]
fn huge_pages_come_unasked() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|modes| modes.contains("[always]"))
}
