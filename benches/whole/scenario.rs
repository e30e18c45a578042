//! The scenarios, and one run of one of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{self, Load, Protocol, Sent, Until};
use super::process::{Floor, Process, Settings, Spanledger};
use super::report::{self, Figures};
use super::sink::Sink;
use super::traffic::{Content, Form, Shape, Traffic};
use super::{Options, Peer, postgres};

/// Traffic, and what is done with it.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub protocol: Protocol,
    pub shape: Shape,
    pub connections: usize,
    pub in_flight: usize,
    /// The largest frame that is sent; none: as large as the receiver allows.
    pub frame: Option<usize>,
    /// How it is forwarded.
    pub exporter: &'static str,
    pub database: Database,
    pub course: Course,
    /// Whether it runs when no scenario is named.
    pub usual: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// What happens in a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Course {
    /// As fast as it is answered.
    Saturated,
    /// This part of what was reached saturated, to see the latency.
    Part(f64),
    /// The backend comes up only when so many spans wait; only what follows is measured.
    Backlog(u64),
}

const PLAIN: Shape = Shape {
    spans: 512,
    form: Form::Protobuf,
    content: Content::NoRows,
    tools: 20,
};

const GRPC: Scenario = Scenario {
    name: "grpc",
    what: "gRPC in, derive, forward over gRPC",
    protocol: Protocol::Grpc,
    shape: PLAIN,
    connections: 4,
    in_flight: 16,
    frame: None,
    exporter: "grpc",
    database: Database::Sqlite,
    course: Course::Saturated,
    usual: true,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let shape = |spans, form, content, tools| Shape {
        spans,
        form,
        content,
        tools,
    };
    let grpc = |name, what, shape| Scenario {
        name,
        what,
        shape,
        ..GRPC
    };
    let http = |name, what, shape| Scenario {
        protocol: Protocol::Http,
        exporter: "http/protobuf",
        ..grpc(name, what, shape)
    };
    let rare = |scenario| Scenario {
        usual: false,
        ..scenario
    };
    let with = |connections, in_flight, scenario| Scenario {
        connections,
        in_flight,
        ..scenario
    };
    let rows = |content| shape(512, Form::Protobuf, content, 20);
    vec![
        GRPC,
        http("http", "HTTP/protobuf in, derive, forward over HTTP", PLAIN),
        grpc(
            "grpc-16",
            "the first with 16 spans per request",
            shape(16, Form::Protobuf, Content::NoRows, 20),
        ),
        grpc(
            "grpc-gzip",
            "gRPC with gzip in, forwarded unchanged",
            shape(512, Form::Gzip, Content::NoRows, 20),
        ),
        http(
            "json",
            "OTLP/HTTP JSON in, forwarded as protobuf",
            shape(512, Form::Json, Content::NoRows, 20),
        ),
        grpc("sqlite", "25 % executions as rows in SQLite", rows(Content::Executions)),
        grpc(
            "sqlite-nodes",
            "the same, each inside a node that waits for it too",
            rows(Content::WithNodes),
        ),
        Scenario {
            database: Database::Postgres,
            ..grpc(
                "postgres",
                "25 % executions as rows in PostgreSQL",
                rows(Content::Executions),
            )
        },
        Scenario {
            database: Database::Postgres,
            ..grpc(
                "postgres-nodes",
                "the same, each inside a node that waits for it too",
                rows(Content::WithNodes),
            )
        },
        Scenario {
            course: Course::Backlog(2_000_000),
            ..grpc("drain", "a backlog of 2 million spans is forwarded", PLAIN)
        },
        rare(Scenario {
            course: Course::Backlog(9_500_000),
            ..grpc("drain-5gb", "a backlog of 5 GB is forwarded", PLAIN)
        }),
        Scenario {
            course: Course::Part(0.5),
            ..grpc("half", "the first at half its load", PLAIN)
        },
        Scenario {
            frame: Some(16 << 10),
            ..grpc(
                "grpc-frames",
                "the first in frames of 16 KiB, as gRPC for Go and Node.js sends",
                PLAIN,
            )
        },
        rare(with(1, 16, grpc("connections-1", "the first with 1 connection", PLAIN))),
        rare(with(
            16,
            16,
            grpc("connections-16", "the first with 16 connections", PLAIN),
        )),
        rare(with(
            64,
            64,
            grpc("connections-64", "the first with 64 connections", PLAIN),
        )),
        rare(grpc(
            "spans-100",
            "the first with 100 spans per request",
            shape(100, Form::Protobuf, Content::NoRows, 20),
        )),
        rare(grpc(
            "spans-2000",
            "the first with 2,000 spans per request",
            shape(2_000, Form::Protobuf, Content::NoRows, 20),
        )),
        rare(grpc(
            "series-10",
            "the first with the fewest series",
            shape(512, Form::Protobuf, Content::NoRows, 1),
        )),
        rare(grpc(
            "series-20000",
            "the first with 20,000 series",
            shape(512, Form::Protobuf, Content::NoRows, 1_000),
        )),
    ]
}

/// What the runs of one scenario need together.
struct Prepared {
    scenario: Scenario,
    traffic: Arc<Traffic>,
    /// Requests per second that were reached saturated.
    reached: HashMap<PathBuf, f64>,
}

/// Runs every scenario that is wanted, round by round, and tells what came of it.
pub fn measure(options: &Options) {
    let wanted = all()
        .into_iter()
        .filter(|scenario| options.wants(scenario.name, scenario.usual));
    let mut traffics: HashMap<Shape, Arc<Traffic>> = HashMap::new();
    let mut scenarios: Vec<Prepared> = wanted
        .map(|scenario| Prepared {
            traffic: (traffics.entry(scenario.shape))
                .or_insert_with(|| Arc::new(Traffic::new(scenario.shape)))
                .clone(),
            scenario,
            reached: HashMap::new(),
        })
        .collect();
    if scenarios.is_empty() {
        return;
    }
    let needs_postgres = scenarios.iter().any(|it| it.scenario.database == Database::Postgres);
    let cluster = (needs_postgres && !postgres::skipped()).then(|| postgres::Cluster::start_with("-c fsync=on"));
    let plain = Arc::new(Traffic::new(PLAIN));
    println!("{:.0} bytes per span of the first scenario", plain.bytes_per_span());
    let sink = Sink::start(options.sink);
    let mut report = report::Report::default();
    for round in 0..options.runs {
        let floor = run_floor(options, plain.clone());
        report.add("floor", "", floor.clone(), None);
        for prepared in &mut scenarios {
            for (index, program) in options.programs.iter().enumerate() {
                let name = prepared.scenario.name;
                if prepared.scenario.database == Database::Postgres && cluster.is_none() {
                    continue;
                }
                let directory = options.directory.join(format!("{name}-{round}-{index}"));
                let database =
                    (prepared.scenario.database == Database::Postgres).then(|| cluster.as_ref().unwrap().database());
                let figures = run(options, prepared, program, &directory, &sink, database);
                drop(std::fs::remove_dir_all(&directory));
                let variant = if options.programs.len() > 1 {
                    format!("{}", index + 1)
                } else {
                    String::new()
                };
                report.add(name, &variant, figures, Some(&floor));
            }
            for peer in &options.peers {
                if let Some(figures) = run_peer(options, prepared, peer, &sink) {
                    report.add(prepared.scenario.name, &peer.name, figures, Some(&floor));
                }
            }
        }
    }
    drop(std::fs::remove_dir(&options.directory));
    report.print();
}

fn load(scenario: &Scenario, traffic: &Arc<Traffic>, address: SocketAddr, until: Until) -> Load {
    Load {
        protocol: scenario.protocol,
        address,
        connections: scenario.connections,
        in_flight: scenario.in_flight,
        frame: scenario.frame,
        form: scenario.shape.form,
        traffic: traffic.clone(),
        rate: None,
        until,
    }
}

fn run_floor(options: &Options, traffic: Arc<Traffic>) -> Figures {
    let floor = Floor::start();
    let scenario = Scenario {
        protocol: Protocol::Http,
        ..GRPC
    };
    load::run(&load(
        &scenario,
        &traffic,
        floor.address,
        Until::After(options.warm / 4),
    ));
    let gauge = Gauge::start(floor.process());
    let sent = load::run(&load(
        &scenario,
        &traffic,
        floor.address,
        Until::After(options.load / 2),
    ));
    gauge.figures(&sent)
}

/// What a process had used when a measurement began.
struct Gauge {
    process: Process,
    cpu: Duration,
    written: u64,
}

impl Gauge {
    fn start(process: Process) -> Gauge {
        Gauge {
            process,
            cpu: process.cpu(),
            written: process.written(),
        }
    }

    fn figures(&self, sent: &Sent) -> Figures {
        let spans = sent.spans as f64;
        Figures {
            spans_per_cpu_second: spans / (self.process.cpu() - self.cpu).as_secs_f64(),
            spans_per_second: spans / sent.seconds,
            p50: sent.latency(0.5),
            p99: sent.latency(0.99),
            peak_mib: self.process.peak_kib() as f64 / 1024.0,
            written_per_span: (self.process.written() - self.written) as f64 / spans,
            refused: sent.refused,
            lost: 0,
        }
    }
}

/// How long readers may take to catch up.
const PATIENCE: Duration = Duration::from_secs(120);

/// When the journal's files have been written once. Only then is the state steady: the pages of files that grow have to be
/// found first, which on a virtual machine may cost ten times the writing.
const WRITTEN_OVER: u64 = 600 << 20;

/// How much longer than asked for the warming up takes at most, to get there.
const LONGEST_WARM: Duration = Duration::from_secs(5);

fn run(
    options: &Options,
    prepared: &mut Prepared,
    program: &Path,
    directory: &Path,
    sink: &Sink,
    database: Option<String>,
) -> Figures {
    let scenario = &prepared.scenario;
    if let Course::Backlog(spans) = scenario.course {
        return drain(prepared, program, directory, spans);
    }
    let settings = Settings {
        exporter: Some((sink.address, scenario.exporter)),
        database,
        journal_max_size: Some("512MiB"),
        max_series: (scenario.shape.tools >= 1_000).then_some(20_000),
    };
    let program_path = program.to_owned();
    let program = Spanledger::start(program, directory, &settings);
    let address = match scenario.protocol {
        Protocol::Grpc => program.grpc,
        Protocol::Http => program.http,
    };
    let mut warm = load::run(&load(scenario, &prepared.traffic, address, Until::After(options.warm)));
    let began = Instant::now();
    while scenario.shape.content == Content::NoRows
        && program.process().written() < WRITTEN_OVER
        && began.elapsed() < LONGEST_WARM
    {
        warm = load::run(&load(scenario, &prepared.traffic, address, Until::After(options.warm)));
    }
    assert!(program.settle(PATIENCE), "the readers do not catch up");
    let mut load = load(scenario, &prepared.traffic, address, Until::After(options.load));
    if let Course::Part(part) = scenario.course {
        let reached = *prepared
            .reached
            .entry(program_path)
            .or_insert(warm.requests as f64 / warm.seconds);
        load.rate = Some(reached * part);
    }
    let (before, sunk) = (Counted::of(&program), sink.received());
    let gauge = Gauge::start(program.process());
    let sent = load::run(&load);
    assert!(program.settle(PATIENCE), "the readers do not catch up");
    let mut figures = gauge.figures(&sent);
    let after = Counted::of(&program);
    let arrived = match scenario.shape.form {
        // Not decompressed there: it arrived if all its bytes did.
        Form::Gzip => {
            let bytes = sink.received().bytes - sunk.bytes;
            sent.spans * bytes / (sent.bytes - sent.requests * 5)
        }
        _ => sink.received().spans - sunk.spans,
    };
    let counted = after.spans - before.spans;
    let executions = after.executions - before.executions;
    figures.lost = sent.spans.abs_diff(arrived) + sent.spans.abs_diff(counted) + sent.executions.abs_diff(executions);
    if scenario.shape.content != Content::NoRows {
        figures.lost += sent.executions.abs_diff(after.rows - before.rows);
    }
    program.stop();
    figures
}

/// What the program says that it has counted.
struct Counted {
    spans: u64,
    executions: u64,
    rows: u64,
}

impl Counted {
    fn of(program: &Spanledger) -> Counted {
        let scrape = program.scrape();
        let sum = |name, labels| Spanledger::metric(&scrape, name, labels) as u64;
        Counted {
            spans: sum("spanledger_receiver_items_accepted_total", "traces"),
            executions: sum("code_executions_total", ""),
            rows: sum("spanledger_rows_written_total", ""),
        }
    }
}

fn drain(prepared: &Prepared, program: &Path, directory: &Path, spans: u64) -> Figures {
    let scenario = &prepared.scenario;
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    drop(held);
    let settings = Settings {
        exporter: Some((address, scenario.exporter)),
        journal_max_size: Some("8GiB"),
        ..Settings::default()
    };
    let program = Spanledger::start(program, directory, &settings);
    let sent = load::run(&load(scenario, &prepared.traffic, program.grpc, Until::Spans(spans)));
    let began = Instant::now();
    while program.lag(&["meter", "ledger"]) > 0 {
        assert!(began.elapsed() < PATIENCE, "the readers do not catch up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sink = Sink::start(address);
    // The exporter waits between its attempts; that costs nothing but time.
    while sink.received().requests == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (gauge, began) = (Gauge::start(program.process()), Instant::now());
    assert!(program.settle(PATIENCE), "the readers do not catch up");
    let drained = Sent {
        seconds: began.elapsed().as_secs_f64(),
        ..sent.clone()
    };
    let mut figures = gauge.figures(&drained);
    figures.lost = sent.spans.abs_diff(sink.received().spans);
    program.stop();
    figures
}

fn run_peer(options: &Options, prepared: &Prepared, peer: &Peer, sink: &Sink) -> Option<Figures> {
    let scenario = &prepared.scenario;
    let is_comparable = scenario.course == Course::Saturated && scenario.shape.content == Content::NoRows;
    let address = match scenario.protocol {
        Protocol::Grpc => peer.grpc?,
        Protocol::Http => peer.http?,
    };
    if !is_comparable {
        return None;
    }
    load::run(&load(scenario, &prepared.traffic, address, Until::After(options.warm)));
    settle_sink(sink);
    let before = sink.received();
    let gauge = Gauge::start(Process(peer.pid));
    let sent = load::run(&load(scenario, &prepared.traffic, address, Until::After(options.load)));
    settle_sink(sink);
    let mut figures = gauge.figures(&sent);
    let arrived = sink.received().spans - before.spans;
    // A peer that compresses anew cannot be counted.
    figures.lost = if arrived == 0 { 0 } else { sent.spans.abs_diff(arrived) };
    Some(figures)
}

/// Waits until nothing arrives any more.
fn settle_sink(sink: &Sink) {
    let mut last = sink.received();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
        if sink.received() != last {
            last = sink.received();
            since = Instant::now();
        }
    }
}
