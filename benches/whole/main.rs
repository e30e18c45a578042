//! The whole program under load: what a span costs, end to end.
//!
//! `cargo bench --bench whole` measures every scenario of `docs/performance.md`; `-- NAME...` those that are named,
//! `-- --list` tells them. The program is a process of its own on core 0, with its journal synced before each answer and
//! every feature on; the load, the backend and the database are on core 1. Options:
//!
//! * `--runs N` rounds (5): in each round every scenario runs once, so that they see the same machine.
//! * `--seconds S` of load in each run (2), after `--warm S` seconds of warming up (1).
//! * `--program PATH`: another build. May be given twice or more, to compare them run by run.
//! * `--peer NAME,pid=PID,grpc=ADDRESS,http=ADDRESS` with `--sink ADDRESS`: any other OTLP collector that runs already,
//!   forwards to that address, and is pinned by whoever started it (`taskset -c 0`).
//! * `--directory PATH` for the data (the temporary directory): on the disk that is to be measured.
//!
//! What is told: spans per second of the process's own CPU time (all threads, user and kernel, from the first byte
//! until every reader has caught up), beside the bare cost of receiving the same bytes over HTTP/1.1 in the same round.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

mod floor;
mod footprint;
mod load;
mod process;
mod report;
mod scenario;
mod sink;
mod traffic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[path = "../../tests/common/postgres.rs"]
mod postgres;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes this program the floor.
pub const FLOOR: &str = "--serve-the-floor";

/// What was asked for on the command line.
pub struct Options {
    pub runs: usize,
    pub load: Duration,
    pub warm: Duration,
    pub programs: Vec<PathBuf>,
    pub peers: Vec<Peer>,
    pub sink: SocketAddr,
    pub directory: PathBuf,
    pub named: Vec<String>,
}

/// Another collector.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: String,
    pub pid: u32,
    pub grpc: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == FLOOR) {
        return floor::serve();
    }
    // `cargo test --all-targets` runs benchmarks too, without this argument; there they only have to compile.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        scenario::all()
            .iter()
            .for_each(|scenario| println!("{:<14} {}", scenario.name, scenario.what));
        return footprint::list();
    }
    let options = Options::read(arguments);
    process::stay_on_the_other_core();
    scenario::measure(&options);
    footprint::measure(&options);
}

impl Options {
    fn read(arguments: Vec<String>) -> Options {
        let mut options = Options {
            runs: 5,
            load: Duration::from_secs(2),
            warm: Duration::from_secs(1),
            programs: Vec::new(),
            peers: Vec::new(),
            sink: "127.0.0.1:0".parse().unwrap(),
            directory: std::env::temp_dir().join(format!("spanledger-bench-{}", std::process::id())),
            named: Vec::new(),
        };
        let mut arguments = arguments.into_iter();
        let seconds = |text: String| Duration::from_secs_f64(text.parse().expect("seconds"));
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().expect("a value behind the option");
            match argument.as_str() {
                "--bench" => {}
                "--runs" => options.runs = value().parse().expect("a number of runs"),
                "--seconds" => options.load = seconds(value()),
                "--warm" => options.warm = seconds(value()),
                "--program" => options.programs.push(value().into()),
                "--peer" => options.peers.push(Peer::read(&value())),
                "--sink" => options.sink = value().parse().expect("an address"),
                "--directory" => options.directory = value().into(),
                name => options.named.push(name.to_owned()),
            }
        }
        if options.programs.is_empty() {
            options.programs.push(env!("CARGO_BIN_EXE_spanledger").into());
        }
        options
    }

    /// Whether something of this name is to be measured. What is not `usual` runs only if it is named.
    pub fn wants(&self, name: &str, usual: bool) -> bool {
        if self.named.is_empty() {
            usual
        } else {
            self.named.iter().any(|named| named == name)
        }
    }
}

impl Peer {
    fn read(text: &str) -> Peer {
        let mut parts = text.split(',');
        let mut peer = Peer {
            name: parts.next().expect("a name").to_owned(),
            pid: 0,
            grpc: None,
            http: None,
        };
        for part in parts {
            let (key, value) = part.split_once('=').expect("key=value");
            match key {
                "pid" => peer.pid = value.parse().expect("a process id"),
                "grpc" => peer.grpc = Some(value.parse().expect("an address")),
                "http" => peer.http = Some(value.parse().expect("an address")),
                other => panic!("unknown: {other}"),
            }
        }
        peer
    }
}
