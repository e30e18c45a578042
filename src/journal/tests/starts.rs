//! Starts on a disk that is full or broke in the last run: with the first failing operation at every place in turn, and
//! a power failure behind it.

use std::sync::Arc;
use std::time::Duration;

use super::super::core::Core;
use super::super::options::Settings;
use super::super::segment::lock;
use super::super::sync::Next;
use super::super::*;
use super::entry;
use super::sim_disk::SimDisk;

const SEGMENT: usize = 64 << 10;
const SECOND: u64 = 1_000_000_000;
const PLENTY: u64 = 1 << 30;

/// One journal, through several starts.
struct Story {
    disk: SimDisk,
    core: Arc<Core>,
    reader: Reader,
    saved: Option<Position>,
    now: u64,
    /// Sequences that were acknowledged and not passed.
    acknowledged: Vec<u64>,
    /// The highest sequence given out.
    highest: u64,
}

fn open(disk: &SimDisk, now: u64) -> Arc<Core> {
    let options = Options {
        max_size: 16 * SEGMENT as u64,
        segment_size: Some(SEGMENT as u64),
        retain: Duration::ZERO,
        readers: vec!["meter".to_owned()],
        free_disk_floor: 0,
        ..Options::new("/simulated")
    };
    let settings = Settings::new(&options).unwrap();
    let (core, recovery) = Core::open(Arc::new(disk.clone()), Box::new(()), settings, now, &[42; 48]).unwrap();
    assert_eq!(
        (recovery.lost_records, recovery.set_aside.len()),
        (0, 0),
        "{recovery:?}"
    );
    Arc::new(core)
}

impl Story {
    fn begin(seed: u64) -> Self {
        let disk = SimDisk::new(seed, PLENTY);
        let now = 1_800_000_000 * SECOND;
        let core = open(&disk, now);
        let mut reader = Reader::new(Arc::clone(&core), 0);
        reader.resume(None);
        Self {
            disk,
            core,
            reader,
            saved: None,
            now,
            acknowledged: Vec::new(),
            highest: 0,
        }
    }

    /// The sync thread works until it has nothing to do.
    fn settle(&mut self) {
        self.now += 30 * SECOND;
        while self.core.step(&|| self.now) == Next::Again {}
    }

    /// Appends one record; says whether it was acknowledged.
    fn append(&mut self, length: usize) -> bool {
        self.settle();
        let request = Entry {
            received_at: self.now,
            ..entry(vec![7; length])
        };
        let Ok(appended) = self.core.append(request) else {
            return false;
        };
        let sequence = lock(&self.core.state).next - 1;
        assert!(sequence > self.highest, "sequence {sequence} was used before");
        self.highest = sequence;
        self.settle();
        let is_acknowledged = appended.durable.outcome() == Some(Ok(()));
        self.acknowledged.extend(is_acknowledged.then_some(sequence));
        is_acknowledged
    }

    /// Reads what there is; every acknowledged record must be among it.
    fn read(&mut self) {
        let batch = self.reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
        let mut read: Vec<u64> = batch.iter().map(|record| record.sequence).collect();
        while let Some(last) = read.last().copied() {
            let more = self.reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
            read.extend(more.iter().map(|record| record.sequence));
            if read.last() == Some(&last) {
                break;
            }
        }
        self.acknowledged.retain(|sequence| !read.contains(sequence));
        assert!(
            self.acknowledged.is_empty(),
            "{:?} are lost, read were {read:?}",
            self.acknowledged
        );
    }

    fn pass(&mut self) {
        let position = self.reader.position();
        self.saved = Some(position);
        self.reader.passed(position);
    }

    fn start(&mut self) {
        self.now += SECOND;
        self.core = open(&self.disk, self.now);
        let mut reader = Reader::new(Arc::clone(&self.core), 0);
        let resumed = reader.resume(self.saved);
        let is_known = match self.saved {
            None => resumed == Resume::FromOldest,
            Some(_) => resumed == Resume::Continued { missing: 0 },
        };
        assert!(is_known, "{resumed:?} at {:?}", self.saved);
        self.reader = reader;
    }

    /// The disk is mended, the machine starts again, and everything is as it was acknowledged.
    fn end(mut self) {
        self.disk.break_after(None);
        self.disk.set_capacity(PLENTY);
        self.disk.lose_power();
        self.start();
        self.read();
        assert!(self.append(100));
        self.read();
    }
}

/// Tells the story with the disk breaking at each operation in turn, until it does not matter any more, and with
/// several fates of what was not synced. Returns how often `tell` said yes.
fn at_every_operation(mut tell: impl FnMut(&mut Story, u64) -> bool) -> usize {
    let mut count = 0;
    for operations in 0.. {
        let mut is_over = false;
        for seed in 0..8 {
            let mut story = Story::begin(seed);
            count += usize::from(tell(&mut story, operations));
            is_over |= !story.disk.is_broken();
            story.end();
        }
        if is_over {
            return count;
        }
        assert!(operations < 1000, "it never ends");
    }
    count
}

#[test]
fn a_file_that_a_broken_disk_left_behind_is_made_durable_before_anything_is_appended_to_it() {
    let taken = at_every_operation(|story, operations| {
        assert!(story.append(SEGMENT / 2));
        story.disk.break_after(Some(operations));
        story.append(SEGMENT / 2);
        let is_broken = story.disk.is_broken();
        // The program is started again. The disk has healed and is full: not even journal.id can be written.
        story.disk.kill();
        story.disk.break_after(is_broken.then_some(u64::MAX));
        story.disk.set_capacity(story.disk.used());
        story.start();
        let is_taken = story.append(100);
        story.disk.break_after(is_broken.then_some(0));
        is_taken
    });
    assert!(taken > 0, "no start found a segment to write over");
}

#[test]
fn while_room_is_made_a_journal_never_forgets_how_far_it_has_come() {
    let taken = at_every_operation(|story, operations| {
        assert!(story.append(SEGMENT / 2));
        story.disk.kill();
        story.disk.set_capacity(story.disk.used());
        story.start();
        // Nothing but what is passed now can make room.
        story.read();
        story.pass();
        story.disk.break_after(Some(operations));
        let mut is_taken = false;
        for length in [SEGMENT / 2, 2 * SEGMENT, SEGMENT / 2, 3 * SEGMENT] {
            is_taken |= story.append(length);
            if !story.disk.is_broken() {
                story.read();
                story.pass();
            }
        }
        is_taken
    });
    assert!(taken > 0, "nothing was ever taken");
}
