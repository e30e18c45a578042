//! Work that can be counted exactly, such as under `valgrind --tool=cachegrind`: instructions and
//! allocations, which do not depend on how busy or fast a machine is.
//!
//! `counts NAME UNITS` does one kind of work so many times; run with two numbers, the difference is free of what
//! starting costs. `counts --allocations` prints the allocations of each. `counts --list` prints the names.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, dead_code, unreachable_pub)]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use spanledger::journal::{Entry, Fsync, Journal, Options};
use spanledger::ledger::extract::Extractor;
use spanledger::meter::{ExpositionFormat, Tally};
use spanledger::otlp::{Encoding, Signal, TraceRequest};
use spanledger::rules::Catalogue;
use spanledger::rules::telling::Telling;

#[path = "whole/traffic.rs"]
mod traffic;

use traffic::{Content, Form, Shape, Traffic};

/// Spans in the request that the work is done with.
const SPANS: usize = 512;

/// Units of work in one run, at most.
const MOST: usize = 600;

/// What is counted, and how many spans (or series, or requests) one unit of work is divided by.
const WORK: [(&str, &str, usize); 9] = [
    ("check", "span", SPANS),
    ("walk", "span", SPANS),
    ("match and meter", "span", SPANS),
    ("match and meter executions", "span", SPANS),
    ("facts of the ledger", "span", SPANS),
    ("facts of executions", "span", SPANS),
    ("json to protobuf", "span", SPANS),
    ("journal append", "request of 16 spans", 1),
    ("exposition", "series", 1_000),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => WORK
            .iter()
            .for_each(|(name, unit, divisor)| println!("{name};{unit};{divisor}")),
        ["--allocations"] => {
            for (name, _, divisor) in WORK {
                let mut work = prepare(name);
                // What is allocated once and kept.
                (0..4).for_each(|_| work());
                let counted = allocation_counter::measure(|| (0..16).for_each(|_| work()));
                println!("{name};{:.3}", counted.count_total as f64 / (16 * divisor) as f64);
            }
        }
        // `cargo bench` and `cargo test --all-targets` pass other arguments; there it only has to compile.
        [name, units] if WORK.iter().any(|(known, ..)| *known == name) => {
            let units: usize = units.parse().unwrap();
            let mut work = prepare(name);
            (0..units).for_each(|_| work());
        }
        _ => {}
    }
}

fn body(spans: usize, form: Form, content: Content, tools: usize) -> Bytes {
    let shape = Shape {
        spans,
        form,
        content,
        tools,
    };
    Traffic::of_templates(shape, 1).body(1, false).bytes
}

fn prepare(name: &str) -> Box<dyn FnMut()> {
    let plain = |content| body(SPANS, Form::Protobuf, content, 20);
    match name {
        "check" => {
            let body = plain(Content::WithNodes);
            Box::new(move || {
                black_box(TraceRequest::parse_noting(body.clone(), &mut Telling::default()).unwrap());
            })
        }
        "walk" => {
            let request = TraceRequest::trusted(plain(Content::WithNodes));
            Box::new(move || {
                let mut sum = 0;
                for resource in request.resource_spans() {
                    for scope in resource.scope_spans() {
                        for span in scope.spans() {
                            let attributes = span.attributes();
                            sum += attributes
                                .entries()
                                .map(|entry| entry.key().as_bytes().len())
                                .sum::<usize>();
                        }
                    }
                }
                black_box(sum);
            })
        }
        "match and meter" => meter(plain(Content::NoRows)),
        "match and meter executions" => meter(plain(Content::Executions)),
        "facts of the ledger" => facts(plain(Content::NoRows)),
        "facts of executions" => facts(plain(Content::WithNodes)),
        "json to protobuf" => {
            let body = body(SPANS, Form::Json, Content::WithNodes, 20);
            Box::new(move || {
                black_box(spanledger::otlp::json::transcode(Signal::Traces, &body).unwrap());
            })
        }
        "journal append" => append(),
        "exposition" => {
            let mut tally = Tally::new(&Catalogue::built_in(), 2_000);
            let mut number = 0;
            let shape = Shape {
                spans: SPANS,
                form: Form::Protobuf,
                content: Content::Executions,
                tools: 1_000,
            };
            let traffic = Traffic::of_templates(shape, 16);
            // As many series as the divisor says, or a few more.
            while tally.series() < 1_000 && number < 200 {
                number += 1;
                tally.count(&TraceRequest::trusted(traffic.body(number, false).bytes), 1);
            }
            assert!(tally.series() >= 1_000, "{} series are too few", tally.series());
            Box::new(move || {
                black_box(tally.exposition(ExpositionFormat::Text).len());
            })
        }
        _ => Box::new(|| ()),
    }
}

fn meter(body: Bytes) -> Box<dyn FnMut()> {
    let request = TraceRequest::trusted(body);
    let mut tally = Tally::new(&Catalogue::built_in(), 2_000);
    Box::new(move || tally.count(&request, 1))
}

fn facts(body: Bytes) -> Box<dyn FnMut()> {
    let request = TraceRequest::trusted(body);
    let mut extractor = Extractor::default();
    let mut facts = Vec::new();
    Box::new(move || {
        facts.clear();
        extractor.extract(&request, 1, &mut facts);
    })
}

/// One request after the other, each with a digest of its own. The disk is not synced meanwhile: how often the sync
/// thread runs is not the same from run to run.
fn append() -> Box<dyn FnMut()> {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        fsync: Fsync::Interval(Duration::from_secs(3_600)),
        ..Options::new(directory.path())
    };
    let journal = Journal::open(options).unwrap().0;
    while journal.is_writable().is_err() {
        std::thread::yield_now();
    }
    let shape = Shape {
        spans: 16,
        form: Form::Protobuf,
        content: Content::WithNodes,
        tools: 20,
    };
    let traffic = Traffic::of_templates(shape, 1);
    let bodies: Vec<Bytes> = (0..MOST)
        .map(|number| traffic.body(number as u64, false).bytes)
        .collect();
    let mut number = 0;
    Box::new(move || {
        let _kept = &directory;
        let body = bodies[number].clone();
        number += 1;
        let digest = journal.digest(Signal::Traces, Encoding::Identity, &body);
        assert!(journal.duplicate_of(&digest, 1).is_none());
        let entry = Entry {
            signal: Signal::Traces,
            encoding: Encoding::Identity,
            received_at: 1,
            items: 16,
            rejected: 0,
            digest: Some(digest),
            decoded: body.clone(),
            noted: None,
            body,
        };
        black_box(journal.append(entry).unwrap());
        // The sync thread sleeps again before the next one comes: else it would depend on how busy the machine is how
        // many requests wake it.
        std::thread::sleep(Duration::from_micros(500));
    })
}
