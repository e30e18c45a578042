//! Measurements, to be run by hand: `cargo test --release --lib journal::tests::measure -- --ignored --nocapture
//! --test-threads 1`.

use std::time::Instant;

use bytes::Bytes;

use super::super::*;
use super::{entry, options};

fn large(directory: &std::path::Path) -> Options {
    Options {
        max_size: 8 << 30,
        segment_size: Some(64 << 20),
        readers: vec!["meter".to_owned()],
        ..options(directory)
    }
}

/// Nanoseconds per record of the calling thread, with and without the digest; syncs happen beside it and are not
/// waited for.
#[tokio::test]
#[ignore = "a measurement"]
async fn cost_of_an_append() {
    for length in [200, 9_000, 200_000] {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(large(directory.path())).unwrap();
        let mut reader = journal.reader("meter").unwrap();
        reader.resume(None);
        let body = Bytes::from(vec![7; length]);
        let count = (400 << 20) / (length + 5000);
        let (mut append, mut digest) = (0, 0);
        let mut waiting = Vec::new();
        for number in 0..count {
            let started = Instant::now();
            let found = journal.digest(Signal::Traces, Encoding::Identity, &body);
            digest += started.elapsed().as_nanos();
            let started = Instant::now();
            std::hint::black_box(found);
            waiting.push(journal.append(entry(body.clone())).unwrap().durable);
            append += started.elapsed().as_nanos();
            if number % 64 == 63 {
                for durable in waiting.drain(..) {
                    durable.await.unwrap();
                }
                while !reader.is_caught_up() {
                    reader.try_next_batch(1 << 22, 1000).unwrap();
                }
                reader.passed(reader.position());
            }
        }
        println!(
            "{length:>7} bytes: append {} ns, digest {} ns",
            append / count as u128,
            digest / count as u128
        );
    }
}

/// How long it takes to open a journal with five gibibytes in it, and how fast a reader drains it.
#[tokio::test]
#[ignore = "a measurement"]
async fn opening_and_draining_a_large_backlog() {
    let directory =
        tempfile::tempdir_in(std::env::var("SPANLEDGER_MEASURE_DIR").unwrap_or_else(|_| ".".to_owned())).unwrap();
    let gibibytes: usize = std::env::var("SPANLEDGER_MEASURE_GIB").map_or(5, |count| count.parse().unwrap());
    {
        let (journal, _) = Journal::open(large(directory.path())).unwrap();
        let body = Bytes::from(vec![7; 9_000]);
        let started = Instant::now();
        let mut waiting = Vec::new();
        for number in 0..(gibibytes << 30) / 9_080_usize {
            let digest = Digest::of(
                &journal.0.core.identity,
                Signal::Traces,
                Encoding::Identity,
                &number.to_le_bytes(),
            );
            let request = Entry {
                digest: Some(digest),
                ..entry(body.clone())
            };
            waiting.push(journal.append(request).unwrap().durable);
            if waiting.len() == 256 {
                for durable in waiting.drain(..) {
                    durable.await.unwrap();
                }
            }
        }
        println!("wrote {gibibytes} GiB in {:?}", started.elapsed());
    }
    let started = Instant::now();
    let (journal, recovery) = Journal::open(large(directory.path())).unwrap();
    println!(
        "opened {} records, {} remembered, in {:?}",
        recovery.records,
        recovery.remembered,
        started.elapsed()
    );
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    let started = Instant::now();
    let mut read = 0;
    while !reader.is_caught_up() {
        read += reader.try_next_batch(1 << 22, 1000).unwrap().len();
    }
    println!("read {read} records in {:?}", started.elapsed());
}
