//! Seeded simulation: appends, syncs, changes of segments, readers, faults and crashes in every order that chance
//! finds, against a model.
//!
//! `SPANLEDGER_SEEDS=100000 cargo test --lib journal::tests::simulation` runs more seeds, `SPANLEDGER_SEED=4711`
//! replays one and prints each step.
//!
//! What is checked, after every step and across every crash:
//! * an acknowledged request reaches every reader exactly once, in order of sequence; nothing reaches a reader that
//!   was not sent, or that was refused before a segment that says so was begun;
//! * a sequence stands for one request for ever;
//! * a repeated request is recognised as long as it must be, and what was answered as a repetition is there;
//! * a crash is never reported as a loss, a saved position never turns out to be unknown;
//! * the files stay within `max_size`.

mod readers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::on_page;
use super::sim_disk::{Direct, SimDisk};
use crate::journal::core::{Begun, Condition, Core, Reservation};
use crate::journal::options::Settings;
use crate::journal::segment::lock;
use crate::journal::sync::{Next, SyncJob};
use crate::journal::*;

const KIB: u64 = 1 << 10;
const SECOND: u64 = 1_000_000_000;
const STEPS: usize = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pending,
    Acknowledged,
    /// Refused, but no later segment says so yet: may turn up after a crash.
    RefusedForNow,
    Refused,
    /// On its way when the process died: may be there or not.
    Unknown,
}

struct Request {
    fate: Fate,
    body: Bytes,
    received_at: u64,
    digest: Option<Digest>,
    rejected: u32,
    durable: Option<Durable>,
    /// Was sent again later and not recognised, although it had to be if it is there.
    must_be_absent: bool,
}

#[derive(Default)]
struct Follower {
    /// What the reader keeps outside of the journal, in one transaction: where it is and what it has seen.
    saved: Option<Position>,
    processed: Vec<(u64, usize)>,
    /// Handed out since.
    unsaved: Vec<(u64, usize)>,
    is_skippable: bool,
}

struct Simulation {
    random: fastrand::Rng,
    is_talking: bool,
    disk: SimDisk,
    options: Options,
    core: Option<Arc<Core>>,
    readers: Vec<Option<Reader>>,
    followers: Vec<Follower>,
    requests: Vec<Request>,
    writing: Vec<(Reservation, Entry)>,
    syncing: Option<(SyncJob, Option<std::io::Result<()>>)>,
    sequences: BTreeSet<u64>,
    request_of: BTreeMap<u64, usize>,
    now: u64,
}

impl Simulation {
    fn new(seed: u64, is_talking: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_interval = random.u32(0..4) == 0;
        let skips = random.u32(0..4) == 0;
        let options = Options {
            max_size: random.u64(150..500) * KIB,
            segment_size: Some(random.u64(4..10) * 4 * KIB),
            retain: Duration::from_secs(*random.choice(&[0, 5, 100]).unwrap()),
            fsync: if is_interval {
                Fsync::Interval(Duration::from_secs(1))
            } else {
                Fsync::Always
            },
            when_full: if skips {
                WhenFull::SkipForwarding
            } else {
                WhenFull::Refuse
            },
            dedup_max_age: Duration::from_secs(*random.choice(&[3, 60, 1_000_000]).unwrap()),
            dedup_max_entries: *random.choice(&[4, 10_000]).unwrap(),
            readers: vec!["meter".to_owned(), "forward".to_owned()],
            may_skip: vec!["forward".to_owned()],
            tail_bytes: *random.choice(&[0, 3000, 1 << 20]).unwrap(),
            free_disk_floor: 0,
            ..Options::new("/simulated")
        };
        let disk = SimDisk::new(random.u64(..), 1 << 30);
        let kinds = [
            Direct::None,
            Direct::Refuses,
            Direct::Works,
            Direct::Works,
            Direct::Works,
        ];
        disk.set_direct(*random.choice(&kinds).unwrap());
        let followers = vec![
            Follower::default(),
            Follower {
                is_skippable: skips,
                ..Follower::default()
            },
        ];
        let mut simulation = Self {
            random,
            is_talking,
            disk,
            options,
            core: None,
            readers: vec![None, None],
            followers,
            requests: Vec::new(),
            writing: Vec::new(),
            syncing: None,
            sequences: BTreeSet::new(),
            request_of: BTreeMap::new(),
            now: 1_800_000_000 * SECOND,
        };
        simulation.open(true);
        simulation
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.is_talking {
            println!("{}", text());
        }
    }

    fn core(&self) -> Arc<Core> {
        Arc::clone(self.core.as_ref().unwrap())
    }

    fn open(&mut self, power_may_fail: bool) {
        let random = [42; 48];
        loop {
            if power_may_fail && self.random.u32(0..4) == 0 {
                self.disk.fail_power_after(self.random.u64(1..12));
            }
            // So little that many a record takes several writes.
            let settings = Settings {
                direct_memory: 8 << 10,
                direct_least: 2000,
                ..Settings::new(&self.options).unwrap()
            };
            let opened = Core::open(Arc::new(self.disk.clone()), Box::new(()), settings, self.now, &random);
            match opened {
                Ok((core, recovery)) if !self.disk.is_off() => {
                    self.say(|| format!("open: {recovery:?}"));
                    for sealed in &lock(&core.state).sealed {
                        self.say(|| {
                            format!(
                                "  {} size {} {:?} after {}",
                                sealed.segment.number,
                                sealed.segment.size,
                                sealed.summary,
                                sealed.segment.header.valid_before
                            )
                        });
                    }
                    assert_eq!(recovery.lost_records, 0, "{recovery:?}");
                    assert!(recovery.set_aside.is_empty(), "{recovery:?}");
                    self.disk.kill();
                    self.core = Some(Arc::new(core));
                    break;
                }
                Ok((_, recovery)) => {
                    self.say(|| format!("open without power: {recovery:?}"));
                    self.disk.lose_power();
                }
                Err(error) => {
                    self.say(|| format!("open fails: {error}"));
                    assert!(self.disk.is_off(), "{error}");
                    self.disk.lose_power();
                }
            }
        }
        for index in 0..self.readers.len() {
            if self.random.u32(0..3) > 0 {
                self.resume(index);
            }
        }
    }

    fn crash(&mut self, is_power_failure: bool) {
        self.say(|| format!("crash, power failure: {is_power_failure}"));
        for sealed in &lock(&self.core().state).sealed {
            self.say(|| {
                format!(
                    "  had {} size {} {:?} after {}",
                    sealed.segment.number, sealed.segment.size, sealed.summary, sealed.segment.header.valid_before
                )
            });
        }
        self.settle_answers();
        if is_power_failure && matches!(self.options.fsync, Fsync::Interval(_)) {
            self.lose_unsynced(Fate::Unknown);
        }
        for request in &mut self.requests {
            request.durable = None;
            if matches!(request.fate, Fate::Pending | Fate::RefusedForNow) {
                request.fate = Fate::Unknown;
            }
        }
        self.readers = vec![None, None];
        self.writing.clear();
        self.syncing = None;
        self.core = None;
        if is_power_failure {
            self.disk.lose_power();
        } else {
            self.disk.kill();
        }
        // With an interval this would be a power failure too.
        self.open(is_power_failure || self.options.fsync == Fsync::Always);
    }

    /// With an interval: what was answered when it was written, and is not synced, may be there or not.
    fn lose_unsynced(&mut self, fate: Fate) {
        self.settle_answers();
        let durable = lock(&self.core().state).durable;
        for (sequence, request) in &self.request_of {
            let request = &mut self.requests[*request];
            if *sequence > durable && request.fate == Fate::Acknowledged {
                request.fate = fate;
            }
        }
    }

    /// Takes note of every answer that was given.
    fn settle_answers(&mut self) {
        let core = self.core();
        let is_writable = lock(&core.state).condition == Condition::Writable;
        for request in &mut self.requests {
            let Some(outcome) = request.durable.as_ref().and_then(Durable::outcome) else {
                continue;
            };
            request.durable = None;
            request.fate = match outcome {
                Ok(()) => Fate::Acknowledged,
                Err(_) if is_writable => Fate::Refused,
                Err(_) => Fate::RefusedForNow,
            };
        }
    }

    fn entry(&mut self) -> (usize, Entry) {
        let number = self.requests.len();
        let length = match self.random.u32(0..10) {
            0 => 8,
            1 => self.random.usize(8..30_000),
            _ => self.random.usize(8..3000),
        };
        let mut body = vec![number as u8; length];
        body[..8].copy_from_slice(&(number as u64).to_le_bytes());
        // Half of them can be written from where they are.
        let body = if self.random.bool() {
            on_page(&body)
        } else {
            Bytes::from(body)
        };
        let core = self.core();
        let digest =
            (self.random.u32(0..3) > 0).then(|| Digest::of(&core.identity, Signal::Traces, Encoding::Identity, &body));
        let rejected = self.random.u32(0..3);
        let entry = Entry {
            signal: Signal::Traces,
            encoding: Encoding::Identity,
            received_at: self.now,
            items: number as u32,
            rejected,
            digest,
            decoded: body.clone(),
            noted: None,
            body: body.clone(),
        };
        self.requests.push(Request {
            fate: Fate::Refused,
            body,
            received_at: self.now,
            digest,
            rejected,
            durable: None,
            must_be_absent: false,
        });
        (number, entry)
    }

    fn begin(&mut self) {
        let (number, entry) = self.entry();
        let core = self.core();
        let begun = core.begin(&entry);
        if matches!(begun, Ok(Begun::Write(_)) | Ok(Begun::Done(_))) {
            let sequence = lock(&core.state).next - 1;
            self.say(|| format!("append {number} ({} bytes) as {sequence}", entry.body.len()));
            assert!(self.sequences.insert(sequence), "sequence {sequence} was used before");
            self.request_of.insert(sequence, number);
        }
        match begun {
            Ok(Begun::Done(appended)) => {
                assert!(!appended.duplicate, "request {number} was never sent before");
                self.requests[number].fate = Fate::Pending;
                self.requests[number].durable = Some(appended.durable);
            }
            Ok(Begun::Write(reservation)) => {
                self.requests[number].fate = Fate::Pending;
                self.requests[number].durable = Some(Durable::later(Arc::clone(&reservation.completion)));
                self.writing.push((reservation, entry));
            }
            Err(error) => self.say(|| format!("append {number} refused: {error}")),
        }
    }

    fn write(&mut self) {
        if self.writing.is_empty() {
            return;
        }
        let index = self.random.usize(0..self.writing.len());
        let (reservation, entry) = self.writing.swap_remove(index);
        let core = self.core();
        let sequence = reservation.sequence;
        let outcome = core.write(&reservation, &entry);
        self.say(|| format!("write {sequence}: {outcome:?}"));
        if !self.disk.is_off() {
            drop(core.finish(reservation, outcome));
        }
    }

    /// One stroke of the sync thread: it takes a job, syncs, and notes the outcome in three steps, between which
    /// anything may happen.
    fn sync_thread(&mut self) {
        let core = self.core();
        match self.syncing.take() {
            None => {
                let mut state = lock(&core.state);
                if let Some(job) = core.sync_job(&mut state, self.now) {
                    self.syncing = Some((job, None));
                    return;
                }
                let wants = core.wants_rotation(&state, self.now);
                drop(state);
                if wants {
                    core.rotate(self.now);
                    let condition = lock(&core.state).condition.clone();
                    self.say(|| format!("rotate: {condition:?}"));
                    if self.disk.is_off() {
                        return;
                    }
                    self.settle_answers();
                    if condition == Condition::Writable {
                        for request in &mut self.requests {
                            if request.fate == Fate::RefusedForNow {
                                request.fate = Fate::Refused;
                            }
                        }
                    }
                }
            }
            Some((job, None)) => {
                let outcome = job.run();
                self.syncing = Some((job, Some(outcome)));
            }
            Some((job, Some(outcome))) => {
                self.say(|| format!("sync: {outcome:?}"));
                if core.finish_sync(job, outcome, self.now) > 0 {
                    // What the interval may lose.
                    self.lose_unsynced(Fate::RefusedForNow);
                }
            }
        }
    }

    fn close_and_open(&mut self) {
        self.say(|| "close".to_owned());
        while !self.writing.is_empty() {
            self.write();
        }
        while self.syncing.is_some() {
            self.sync_thread();
        }
        let core = self.core();
        lock(&core.state).closing = true;
        for round in 0.. {
            assert!(round < 1000, "the journal does not close");
            if self.disk.is_off() || core.step(&|| self.now) == Next::Stop {
                break;
            }
        }
        self.disk.set_faults(0, 0);
        if self.disk.is_off() {
            return self.crash(true);
        }
        self.settle_answers();
        assert!(
            self.requests.iter().all(|request| request.fate != Fate::Pending),
            "an answer is missing"
        );
        self.crash(false);
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..25 => self.begin(),
            25..48 => self.write(),
            48..74 => self.sync_thread(),
            74..82 => {
                let index = self.random.usize(0..2);
                self.read(index);
            }
            82..86 => {
                let index = self.random.usize(0..2);
                self.pass(index);
            }
            86 => {
                let index = self.random.usize(0..2);
                self.rewind(index);
            }
            87..90 => self.repeat(),
            90..93 => self.now += self.random.u64(0..4 * SECOND),
            93 => self.now += self.random.u64(0..40 * SECOND),
            94 => {
                let one_in = *self.random.choice(&[0, 0, 5, 30]).unwrap();
                let reads_one_in = *self.random.choice(&[0, 0, 0, 200]).unwrap();
                self.say(|| format!("faults: one in {one_in}, reads one in {reads_one_in}"));
                self.disk.set_faults(one_in, reads_one_in);
            }
            95 => {
                let capacity = *self.random.choice(&[100 * KIB, 300 * KIB, 1 << 30]).unwrap();
                self.say(|| format!("capacity: {capacity}"));
                self.disk.set_capacity(capacity);
            }
            96 => self.disk.fail_power_after(self.random.u64(1..30)),
            97 => {
                if self.syncing.is_none() {
                    let trimmed = self.core().trim(self.now);
                    self.say(|| format!("trim: {trimmed:?}"));
                }
            }
            98 => {
                self.disk.set_faults(0, 0);
                let is_power_failure = self.random.bool();
                self.crash(is_power_failure);
            }
            _ => {
                // The disk may go on failing until the program has stopped.
                if self.random.bool() {
                    self.disk.set_faults(0, 0);
                }
                if self.random.u32(0..2) == 0 {
                    self.close_and_open();
                }
            }
        }
        if self.disk.is_off() {
            self.disk.set_faults(0, 0);
            self.crash(true);
        }
        self.settle_answers();
        lock(&self.core().state).check();
        assert!(self.disk.used() <= self.options.max_size, "{} bytes", self.disk.used());
    }

    /// Everything heals, and everybody catches up.
    fn finish(&mut self) {
        self.disk.set_faults(0, 0);
        self.disk.set_capacity(1 << 30);
        self.disk.kill();
        for _round in 0..10_000 {
            self.now += SECOND;
            self.write();
            self.sync_thread();
            for index in 0..2 {
                self.read(index);
                self.pass(index);
            }
            self.settle_answers();
            let is_settled = self.writing.is_empty() && self.syncing.is_none();
            let core = self.core();
            let state = lock(&core.state);
            let is_answered = state.pending.is_empty() && state.refused.is_empty();
            if is_settled && is_answered && self.readers.iter().flatten().all(Reader::is_caught_up) {
                break;
            }
        }
        assert!(
            self.requests.iter().all(|request| request.fate != Fate::Pending),
            "an answer is missing"
        );
        assert!(
            self.readers.iter().flatten().all(Reader::is_caught_up),
            "a reader is stuck"
        );
        for (index, follower) in self.followers.iter().enumerate() {
            let seen: BTreeSet<usize> = follower.processed.iter().map(|(_, number)| *number).collect();
            assert_eq!(
                seen.len(),
                follower.processed.len(),
                "reader {index} saw a request twice"
            );
            for (number, request) in self.requests.iter().enumerate() {
                if request.fate == Fate::Acknowledged && !follower.is_skippable {
                    assert!(seen.contains(&number), "reader {index} has not seen request {number}");
                }
            }
        }
        // With all readers through, there is room again.
        lock(&self.core().state).check();
    }
}

fn run_seed(seed: u64, is_talking: bool) {
    let mut simulation = Simulation::new(seed, is_talking);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.finish();
}

#[test]
fn whatever_happens_acknowledged_requests_are_read_exactly_once_in_order() {
    if let Ok(seed) = std::env::var("SPANLEDGER_SEED") {
        return run_seed(seed.parse().unwrap(), true);
    }
    let seeds: u64 = std::env::var("SPANLEDGER_SEEDS").map_or(256, |seeds| seeds.parse().unwrap());
    let first: u64 = std::env::var("SPANLEDGER_FIRST_SEED").map_or(0, |first| first.parse().unwrap());
    let next = AtomicU64::new(first);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.lock().unwrap().len() >= 10 {
                        return;
                    }
                    if std::panic::catch_unwind(|| run_seed(seed, false)).is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "replay with SPANLEDGER_SEED={:?}", failed);
}
