//! What the program costs beside spans: its start, its rest, its scrape, and when the ledger begins to lag.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{self, Load, Protocol, Until};
use super::process::{Settings, Spanledger};
use super::report::middle;
use super::traffic::{Content, Form, Shape, Traffic};
use super::{Options, postgres};

const NAMES: [(&str, &str); 5] = [
    ("start", "from the start of the process to ready, with an empty journal"),
    (
        "start-backlog",
        "the same with 5 GiB that the exporter has not passed, and until the scrape answers",
    ),
    (
        "idle",
        "memory and CPU time of the program after some traffic, with nothing to do; size of the binary",
    ),
    (
        "scrape",
        "a scrape of 20,000 series, and what it does to answers under load",
    ),
    (
        "lag",
        "rows per second at which the ledger begins to lag, for each database; receiver and ledger on one core",
    ),
];

pub fn list() {
    NAMES.iter().for_each(|(name, what)| println!("{name:<14} {what}"));
}

pub fn measure(options: &Options) {
    let wants = |name: &str| options.wants(name, true);
    let program = &options.programs[0];
    let directory = options.directory.join("footprint");
    if wants("start") {
        start(options, program, &directory);
    }
    if wants("start-backlog") {
        start_backlog(program, &directory);
    }
    if wants("idle") {
        idle(program, &directory);
    }
    if wants("scrape") {
        scrape(options, program, &directory);
    }
    if wants("lag") {
        lag(program, &directory, None);
        if !postgres::skipped() {
            let cluster = postgres::Cluster::start_with("-c fsync=on");
            lag(program, &directory, Some(cluster.database()));
        }
    }
    drop(std::fs::remove_dir_all(&directory));
    drop(std::fs::remove_dir(&options.directory));
}

fn fresh(directory: &Path) {
    drop(std::fs::remove_dir_all(directory));
}

fn start(options: &Options, program: &Path, directory: &Path) {
    let times = (0..options.runs.max(1)).map(|_| {
        fresh(directory);
        let program = Spanledger::start(program, directory, &Settings::default());
        let took = program.ready_after.as_secs_f64() * 1e3;
        program.stop();
        took
    });
    println!(
        "start with an empty journal: ready after {:.0} ms",
        middle(times.collect())
    );
}

fn traffic(content: Content, tools: usize) -> Arc<Traffic> {
    Arc::new(Traffic::new(Shape {
        spans: 512,
        form: Form::Protobuf,
        content,
        tools,
    }))
}

fn load(program: &Spanledger, traffic: Arc<Traffic>, until: Until) -> Load {
    Load {
        protocol: Protocol::Grpc,
        address: program.grpc,
        connections: 4,
        in_flight: 16,
        frame: None,
        form: Form::Protobuf,
        traffic,
        rate: None,
        until,
    }
}

fn start_backlog(binary: &Path, directory: &Path) {
    fresh(directory);
    let settings = Settings {
        // Nobody listens there.
        exporter: Some(("127.0.0.1:9".parse().unwrap(), "grpc")),
        journal_max_size: Some("8GiB"),
        ..Settings::default()
    };
    let program = Spanledger::start(binary, directory, &settings);
    load::run(&load(&program, traffic(Content::NoRows, 20), Until::Spans(9_700_000)));
    // Killed, so that the scrape has to wait for what came after the meter's last checkpoint.
    drop(program);
    let program = Spanledger::start(binary, directory, &settings);
    let ready = program.ready_after.as_secs_f64() * 1e3;
    let began = Instant::now();
    while program.scrape().len() < 1_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "start with a backlog of 5 GiB after a crash: ready after {ready:.0} ms, scrape after {:.0} ms more",
        began.elapsed().as_secs_f64() * 1e3
    );
    program.stop();
}

fn idle(binary: &Path, directory: &Path) {
    fresh(directory);
    let program = Spanledger::start(binary, directory, &Settings::default());
    let process = program.process();
    std::thread::sleep(Duration::from_secs(2));
    let fresh_kib = process.resident_kib();
    let mut gentle = load(
        &program,
        traffic(Content::WithNodes, 20),
        Until::After(Duration::from_secs(3)),
    );
    gentle.rate = Some(20.0);
    load::run(&gentle);
    assert!(program.settle(Duration::from_secs(60)));
    std::thread::sleep(Duration::from_secs(12));
    let cpu = process.cpu();
    std::thread::sleep(Duration::from_secs(15));
    let share = (process.cpu() - cpu).as_secs_f64() / 15.0;
    let size = std::fs::metadata(binary).unwrap().len() as f64 / 1e6;
    println!(
        "idle: {:.1} MiB resident after the start, {:.1} MiB after traffic; {:.3} % of a core; binary {size:.1} MB",
        fresh_kib as f64 / 1024.0,
        process.resident_kib() as f64 / 1024.0,
        share * 100.0
    );
    program.stop();
}

fn scrape(options: &Options, binary: &Path, directory: &Path) {
    fresh(directory);
    let settings = Settings {
        max_series: Some(20_000),
        journal_max_size: Some("1GiB"),
        ..Settings::default()
    };
    let program = Spanledger::start(binary, directory, &settings);
    let traffic = traffic(Content::NoRows, 1_000);
    let mut load = load(&program, traffic, Until::After(options.warm));
    let warm = load::run(&load);
    assert!(program.settle(Duration::from_secs(60)));
    let series = program.scrape().lines().filter(|line| !line.starts_with('#')).count();
    let timed = || {
        let began = Instant::now();
        program.scrape();
        began.elapsed().as_secs_f64() * 1e3
    };
    let quiet = middle((0..9).map(|_| timed()).collect());
    load.until = Until::After(options.load);
    load.rate = Some(warm.requests as f64 / warm.seconds / 2.0);
    let without = load::run(&load);
    let (with, busy) = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load::run(&load));
        let mut times = Vec::new();
        while !loading.is_finished() {
            times.push(timed());
            std::thread::sleep(Duration::from_millis(250));
        }
        (loading.join().unwrap(), middle(times))
    });
    println!(
        "scrape of {series} series: {quiet:.1} ms; at half load {busy:.1} ms, answers p99 {:.1} ms with a scrape every 250 ms, {:.1} ms without",
        with.latency(0.99),
        without.latency(0.99)
    );
    program.stop();
}

/// Offers more and less until it is known from which rate on the ledger falls behind: the longer, the further.
fn lag(binary: &Path, directory: &Path, database: Option<String>) {
    let name = if database.is_some() { "PostgreSQL" } else { "SQLite" };
    let traffic = traffic(Content::Executions, 20);
    let mut held = 0.0;
    let (mut low, mut high) = (0.0, 200_000.0);
    while high - low > 2_000.0 {
        let rows = (low + high) / 2.0;
        fresh(directory);
        let settings = Settings {
            database: database.clone(),
            journal_max_size: Some("4GiB"),
            ..Settings::default()
        };
        let program = Spanledger::start(binary, directory, &settings);
        let mut load = load(&program, traffic.clone(), Until::After(Duration::from_secs(3)));
        load.rate = Some(rows / 128.0);
        let behind = || program.lag(&["ledger"]) as f64 * 128.0;
        // What connecting takes is caught up with meanwhile.
        load::run(&load);
        let before = behind();
        let sent = load::run(&load);
        let reached = sent.executions as f64 / sent.seconds;
        // A transaction more or less is no lag.
        let more = behind() - before;
        if more < sent.executions as f64 * 0.15 && reached > rows * 0.95 {
            held = reached;
            low = rows;
        } else {
            high = rows;
        }
        program.stop();
    }
    println!("the ledger keeps up with {held:.0} rows per second in {name}, and lags from {high:.0}");
}
