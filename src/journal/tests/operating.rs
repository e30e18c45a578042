//! What operators see and rely on: memory, the time that is left, clocks that are set back, readers that come back.

use std::sync::Arc;
use std::time::Duration;

use super::super::core::Core;
use super::super::options::Settings;
use super::super::sync::Next;
use super::super::*;
use super::entry;
use super::sim_disk::SimDisk;

const SEGMENT: u64 = 64 << 10;
const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const PLENTY: u64 = 1 << 30;

struct Bench {
    disk: SimDisk,
    core: Arc<Core>,
    now: u64,
    segment: u64,
}

impl Bench {
    fn new(capacity: u64) -> Self {
        Self::with_segments(capacity, SEGMENT)
    }

    fn with_segments(capacity: u64, segment: u64) -> Self {
        let disk = SimDisk::new(1, capacity);
        let now = 1_800_000_000 * SECOND;
        let core = open(&disk, now, &["meter"], segment);
        let mut bench = Self {
            disk,
            core,
            now,
            segment,
        };
        bench.settle();
        bench
    }

    fn restart(&mut self, readers: &[&str]) {
        self.disk.kill();
        self.core = open(&self.disk, self.now, readers, self.segment);
        self.settle();
    }

    fn settle(&mut self) {
        while self.core.step(&|| self.now) == Next::Again {}
    }

    fn append(&mut self, length: usize) -> Result<(), AppendError> {
        let request = Entry {
            received_at: self.now,
            ..entry(vec![7; length])
        };
        let appended = self.core.append(request)?;
        while appended.durable.outcome().is_none() {
            // A sync waits for others for a moment.
            self.now += SECOND / 1000;
            self.settle();
        }
        appended.durable.outcome().unwrap()
    }

    fn reader(&self, index: usize) -> Reader {
        Reader::new(Arc::clone(&self.core), index)
    }

    fn seconds_until_full(&self) -> f64 {
        self.core.status(self.now).seconds_until_full.unwrap()
    }
}

fn open(disk: &SimDisk, now: u64, readers: &[&str], segment: u64) -> Arc<Core> {
    let options = Options {
        max_size: 16 * segment,
        segment_size: Some(segment),
        retain: Duration::ZERO,
        readers: readers.iter().map(|name| (*name).to_owned()).collect(),
        free_disk_floor: 0,
        ..Options::new("/simulated")
    };
    let settings = Settings::new(&options).unwrap();
    let (core, _) = Core::open(Arc::new(disk.clone()), Box::new(()), settings, now, &[42; 48]).unwrap();
    Arc::new(core)
}

#[test]
fn few_small_records_that_a_reader_keeps_do_not_keep_the_piece_of_the_file_around_them() {
    let mut bench = Bench::new(PLENTY);
    for _ in 0..400 {
        bench.append(1000).unwrap();
    }
    bench.restart(&["meter"]);
    let mut reader = bench.reader(0);
    reader.resume(None);
    let mut kept = Vec::new();
    while let records = reader.try_next_batch(usize::MAX, 4).unwrap()
        && !records.is_empty()
    {
        kept.extend(records);
    }
    assert_eq!(kept.len(), 400);
    let (bodies, held) = (400 * 1000, bench.core.buffers.held());
    assert!(held < bodies, "{held} bytes are held for bodies of {bodies}");
    // Of a reader that takes all, nothing is copied.
    let mut reader = bench.reader(0);
    reader.resume(None);
    let all = reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
    assert!(bench.core.buffers.held() > held, "{} records", all.len());
}

#[test]
fn a_reader_that_lags_reads_large_bodies_once() {
    let mut bench = Bench::with_segments(PLENTY, 4 << 20);
    for _ in 0..60 {
        bench.append(150_000).unwrap();
    }
    bench.restart(&["meter"]);
    let mut reader = bench.reader(0);
    reader.resume(None);
    let (before, mut bodies) = (bench.disk.bytes_read(), 0);
    while let records = reader.try_next_batch(1 << 20, 1024).unwrap()
        && !records.is_empty()
    {
        assert!(records.iter().all(|record| record.body == vec![7; 150_000]));
        bodies += records.len() as u64 * 150_000;
    }
    let read = bench.disk.bytes_read() - before;
    assert_eq!(bodies, 60 * 150_000);
    assert!(
        read < bodies * 103 / 100,
        "{read} bytes were read for bodies of {bodies}"
    );
}

#[test]
fn the_time_until_the_journal_is_full_counts_what_the_disk_has_left() {
    let (mut plenty, mut little) = (Bench::new(PLENTY), Bench::new(PLENTY));
    for bench in [&mut plenty, &mut little] {
        for _ in 0..40 {
            bench.append(10_000).unwrap();
            bench.now += SECOND;
        }
    }
    let used = little.disk.used();
    little.disk.set_capacity(used + SEGMENT + SEGMENT / 2);
    let (of_settings, of_disk) = (plenty.seconds_until_full(), little.seconds_until_full());
    assert!(of_disk < of_settings / 2.0, "{of_disk} {of_settings}");
    let mut appended = 0;
    while little.append(10_000).is_ok() {
        little.now += SECOND;
        appended += 1;
    }
    assert!((of_disk - f64::from(appended)).abs() < 7.0, "{of_disk} for {appended}");
    assert_eq!(little.seconds_until_full(), 0.0);
}

#[test]
fn a_clock_that_is_set_back_does_not_put_off_the_next_attempt_on_a_disk_that_was_full() {
    let mut bench = Bench::new(PLENTY);
    bench.append(1000).unwrap();
    bench.disk.set_capacity(bench.disk.used());
    while bench.append(10_000).is_ok() {}
    bench.disk.set_capacity(PLENTY);
    bench.now -= HOUR;
    bench.settle();
    assert_eq!(bench.core.writable(), Ok(()));
    bench.append(1000).unwrap();
}

#[test]
fn a_reader_that_comes_back_after_several_starts_is_not_said_to_miss_what_was_never_there() {
    let mut bench = Bench::new(PLENTY);
    bench.append(1000).unwrap();
    let mut reader = bench.reader(0);
    reader.resume(None);
    reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
    let saved = reader.position();
    for _ in 0..4 {
        bench.restart(&["meter"]);
        let mut reader = bench.reader(0);
        reader.resume(None);
        for _ in 0..200 {
            bench.append(10_000).unwrap();
            reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
            reader.passed(reader.position());
        }
    }
    bench.restart(&["meter", "otlp/b"]);
    let mut reader = bench.reader(1);
    let Resume::Continued { missing } = reader.resume(Some(saved)) else {
        panic!()
    };
    assert!((1..200).contains(&missing), "{missing}");
}
