//! With `fsync: interval`, requests are answered before they are synced: what becomes of them when the sync fails.

use std::sync::Arc;
use std::time::Duration;

use super::super::core::Core;
use super::super::options::Settings;
use super::super::segment::lock;
use super::super::sync::Next;
use super::super::*;
use super::entry;
use super::sim_disk::SimDisk;

const SECOND: u64 = 1_000_000_000;

struct Bench {
    disk: SimDisk,
    core: Arc<Core>,
    now: u64,
}

fn open(disk: &SimDisk, now: u64) -> (Arc<Core>, Recovery) {
    try_open(disk, now).unwrap()
}

fn try_open(disk: &SimDisk, now: u64) -> Result<(Arc<Core>, Recovery), JournalError> {
    let options = Options {
        max_size: 1 << 20,
        segment_size: Some(64 << 10),
        fsync: Fsync::Interval(Duration::from_secs(1)),
        readers: vec!["meter".to_owned()],
        free_disk_floor: 0,
        ..Options::new("/simulated")
    };
    let settings = Settings::new(&options).unwrap();
    let (core, recovery) = Core::open(Arc::new(disk.clone()), Box::new(()), settings, now, &[42; 48])?;
    Ok((Arc::new(core), recovery))
}

impl Bench {
    /// Ten requests were answered, and the disk breaks before they are synced.
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed, 1 << 30);
        let now = 1_800_000_000 * SECOND;
        let (core, _) = open(&disk, now);
        let mut bench = Self { disk, core, now };
        bench.settle();
        for _ in 0..10 {
            assert_eq!(bench.append(), Some(Ok(())));
        }
        bench.disk.break_after(Some(0));
        bench.pass(2);
        bench
    }

    /// The process dies, and the next one finds a disk that works.
    fn dies_and_the_disk_heals(&self) {
        self.disk.kill();
        self.disk.break_after(None);
    }

    fn settle(&mut self) {
        while self.core.step(&|| self.now) == Next::Again {}
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += SECOND;
            self.settle();
        }
    }

    fn append(&self) -> Option<Result<(), AppendError>> {
        let request = Entry {
            received_at: self.now,
            ..entry(vec![7; 1000])
        };
        match self.core.append(request) {
            Ok(appended) => appended.durable.outcome(),
            Err(error) => Some(Err(error)),
        }
    }

    fn records(&self) -> usize {
        let mut reader = Reader::new(Arc::clone(&self.core), 0);
        reader.resume(None);
        let batches = std::iter::from_fn(|| Some(reader.try_next_batch(usize::MAX, usize::MAX).unwrap().len()));
        batches.take_while(|count| *count > 0).sum()
    }
}

#[test]
fn what_was_answered_and_could_not_be_synced_is_written_again_when_the_disk_takes_it() {
    for seed in 0..32 {
        let mut bench = Bench::new(seed);
        let refused = bench.append().unwrap().unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
        assert!(bench.core.writable().is_err());
        bench.pass(5);
        bench.disk.break_after(None);
        bench.pass(12);
        assert_eq!(bench.append(), Some(Ok(())), "it takes requests again");
        bench.pass(2);
        assert_eq!(bench.records(), 11);
        bench.disk.lose_power();
        (bench.core, _) = open(&bench.disk, bench.now);
        assert_eq!(bench.records(), 11, "on the disk");
    }
}

#[test]
fn a_process_that_dies_while_the_disk_fails_loses_nothing() {
    let mut bench = Bench::new(7);
    bench.dies_and_the_disk_heals();
    let (core, recovery) = open(&bench.disk, bench.now);
    bench.core = core;
    assert_eq!((bench.records(), recovery.lost_records), (10, 0));
}

#[test]
fn a_process_that_is_told_to_stop_while_the_disk_fails_loses_nothing_although_the_disk_heals_in_that_moment() {
    for failures in 0..4 {
        let mut bench = Bench::new(7);
        lock(&bench.core.state).closing = true;
        let mut steps = 0;
        while bench.core.step(&|| bench.now) != Next::Stop {
            steps += 1;
            if steps >= failures {
                bench.disk.break_after(None);
            }
            assert!(steps < 100, "it does not stop");
        }
        bench.disk.break_after(None);
        (bench.core, _) = open(&bench.disk, bench.now);
        assert_eq!(bench.records(), 10, "after {failures} failures");
    }
}

#[test]
fn at_the_next_start_a_place_that_cannot_be_read_does_not_keep_the_rest_from_being_written_again() {
    for seed in 0..32 {
        let mut bench = Bench::new(seed);
        bench.dies_and_the_disk_heals();
        // In it are five of the ten, the fourth and the eighth in part.
        bench.disk.set_unreadable(12 << 10..16 << 10);
        (bench.core, _) = open(&bench.disk, bench.now);
        bench.disk.set_unreadable(0..0);
        bench.disk.lose_power();
        (bench.core, _) = open(&bench.disk, bench.now);
        assert!(bench.records() >= 5, "seed {seed}: {}", bench.records());
    }
}

#[test]
fn a_journal_whose_last_records_cannot_be_written_again_is_not_opened_before_they_can() {
    for seed in 0..32 {
        let mut bench = Bench::new(seed);
        bench.dies_and_the_disk_heals();
        bench.disk.set_read_only(true);
        assert!(try_open(&bench.disk, bench.now).is_err());
        bench.disk.set_read_only(false);
        (bench.core, _) = open(&bench.disk, bench.now);
        assert_eq!(bench.records(), 10);
        bench.disk.lose_power();
        (bench.core, _) = open(&bench.disk, bench.now);
        assert_eq!(bench.records(), 10, "on the disk");
    }
}

#[test]
fn a_disk_that_does_not_heal_costs_what_was_not_synced_and_the_journal_goes_on_elsewhere() {
    let mut bench = Bench::new(7);
    bench.pass(60);
    bench.disk.break_after(None);
    bench.pass(12);
    assert_eq!(bench.append(), Some(Ok(())));
    bench.pass(2);
    assert_eq!(bench.records(), 1, "the ten are given up and never read");
}
