//! A moment of fuzzing with every test: the targets of `fuzz/`, fed with valid inputs and damaged ones.
//!
//! The inputs come from seeds, so that each run tests the same; `FUZZ_SECONDS=60` goes on with further seeds for that long
//! for each target. `FUZZ_CORPUS=fuzz/corpus` writes the valid inputs there, for libFuzzer to begin with. A finding names
//! its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

#[path = "receive/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fixture::{JSON_TRACES, framed, logs, metrics, traces, traces_bytes};
use prost::Message;
use spanledger::otlp::{Encoding, compress};

/// Whether anything panicked, also on a thread of the server.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Runs a target over the seeds, and `damaged` times over damaged ones.
fn smoke(name: &str, seeds: Vec<Vec<u8>>, damaged: u64, run: fn(&[u8])) {
    if let Some(corpus) = std::env::var_os("FUZZ_CORPUS") {
        let directory = Path::new(&corpus).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
        }
    }
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::SeqCst);
        previous(panic);
    }));
    for seed in &seeds {
        check(run, seed, || format!("{name}: a valid input"));
    }
    let more: u64 = std::env::var("FUZZ_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(more);
    let mut number = 0;
    while number < damaged || Instant::now() < until {
        let mut random = fastrand::Rng::with_seed(number);
        let mut input = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(1..6) {
            damage(&mut input, &seeds, &mut random);
        }
        check(run, &input, || format!("{name}: seed {number}"));
        number += 1;
    }
    println!("{name}: {number} damaged inputs");
}

fn check(run: fn(&[u8]), input: &[u8], which: impl Fn() -> String) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(input)));
    assert!(outcome.is_ok() && !PANICKED.load(Ordering::SeqCst), "{}", which());
}

/// What libFuzzer does to an input, too.
fn damage(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut fastrand::Rng) {
    const INTERESTING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\n'];
    let place = random.usize(..=input.len());
    match random.u8(..7) {
        0 if place < input.len() => input[place] ^= 1 << random.u8(..8),
        1 if place < input.len() => input[place] = INTERESTING[random.usize(..8)],
        2 => input.truncate(place),
        3 => input.insert(place, random.u8(..)),
        4 => {
            let end = random.usize(place..=input.len());
            input.drain(place..end);
        }
        5 => {
            let end = random.usize(place..=input.len()).min(place + 64);
            let copy = input[place..end].to_vec();
            input.splice(place..place, copy);
        }
        _ => {
            let other = &seeds[random.usize(..seeds.len())];
            let from = random.usize(..=other.len());
            input.truncate(place);
            input.extend(&other[from..]);
        }
    }
}

fn requests() -> Vec<Vec<u8>> {
    vec![
        traces_bytes(1),
        traces(2).encode_to_vec().repeat(3),
        metrics().encode_to_vec(),
        logs().encode_to_vec(),
    ]
}

fn json() -> Vec<Vec<u8>> {
    vec![
        JSON_TRACES.into(),
        serde_json::to_vec(&traces(1)).unwrap(),
        serde_json::to_vec_pretty(&metrics()).unwrap(),
        serde_json::to_vec(&logs()).unwrap(),
        br#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","startTimeUnixNano":1.5e9,"attributes":[{"key":"a","value":{"kvlistValue":{"values":[{"key":"k","value":{"bytesValue":"_-8"}}]}}},{"key":"b","value":{"doubleValue":"NaN"}}],"kind":"SPAN_KIND_SERVER","later":[{"x":null}]}]}]}]}"#.to_vec(),
    ]
}

fn with_prefix(prefixes: &[&[u8]], bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let joined = |prefix: &&[u8]| bodies.iter().map(|body| [*prefix, body].concat()).collect::<Vec<_>>();
    prefixes.iter().flat_map(joined).collect()
}

fn compressed() -> Vec<Vec<u8>> {
    let plain = traces_bytes(1).repeat(20);
    Encoding::ALL.map(|encoding| compress(encoding, &plain).to_vec()).into()
}

#[test]
fn the_walk() {
    smoke("walk", requests(), 4000, targets::walk::run);
}

#[test]
fn the_transcoder() {
    smoke("json", json(), 4000, targets::json::run);
}

#[test]
fn the_encodings() {
    let mut seeds = compressed();
    seeds.push(
        snap::raw::Encoder::new()
            .compress_vec(&traces_bytes(1).repeat(9))
            .unwrap(),
    );
    smoke("encoding", seeds, 600, targets::encoding::run);
}

#[test]
fn http_bodies() {
    let mut seeds = with_prefix(&[&[1, 0], &[2, 7]], &requests());
    seeds.extend(with_prefix(&[&[1, 4], &[2, 0x84]], &json()));
    for (number, body) in (0..).zip(compressed()) {
        seeds.extend(with_prefix(&[&[1, number << 4]], &[body]));
    }
    seeds.push(
        b"\0\0POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
            .to_vec(),
    );
    smoke("http", seeds, 300, targets::http::run);
}

#[test]
fn grpc_messages() {
    let mut seeds = with_prefix(&[&[1, 0, 255], &[1, 1, 3], &[1, 2, 60]], &requests());
    for (number, body) in (0..).zip(compressed()) {
        seeds.extend(with_prefix(&[&[1, number << 3, 100]], &[body]));
    }
    let questions = [&framed(0, b"\x3a\0")[..], &framed(0, b"\x22\x01a")].concat();
    seeds.extend(with_prefix(&[&[2, 5, 10], &[2, 6, 0]], &[questions]));
    seeds.push([&[2, 0, 255][..], &framed(0, &traces_bytes(1))].concat());
    // HEADERS and RST_STREAM of one stream.
    seeds.push(b"\0\0\0\0\0\x03\x01\x05\0\0\0\x01\x83\x86\x84\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08".to_vec());
    smoke("grpc", seeds, 300, targets::grpc::run);
}

#[test]
fn configurations() {
    let example = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.yaml")).unwrap();
    let seeds = vec![
        example,
        b"exporters:\n  otlp:\n    endpoint: http://signoz:4318\n    headers: {k: '${env:A:-b}'}\n".to_vec(),
        b"receivers: {otlp: {auth: {bearer_tokens: [a], basic_users: {u: p}}}}\n".to_vec(),
        b"journal.max_size=1GiB".to_vec(),
        b"a: &x [1, *x]\nb: !!str 1\n? c\n: |\n  text\n--- \n".to_vec(),
    ];
    smoke("configuration", seeds, 300, targets::configuration::run);
}

#[test]
fn damaged_journals() {
    let seeds = (0..8u8)
        .map(|file| [&[file, 0, file * 30, 4][..], &[file; 4], &[file + 1, 60, 0, 2, 0, 0]].concat())
        .collect();
    smoke("journal", seeds, 100, targets::journal::run);
}

#[test]
fn scrapes() {
    let seeds = vec![
        b"vm2\0python\x001\x0012.5\x003\0calc\0timeout\x009".to_vec(),
        "é\"\\\n\0\u{2028}\0NaN\0-1\x001e300\0{}=\",\0# HELP\0SIGKILL".into(),
        b"application/openmetrics-text; version=1.0.0;q=0.5,text/plain;q=0.1\0a\0b".to_vec(),
    ];
    smoke("exposition", seeds, 400, targets::exposition::run);
}
