//! Whom a sync waits for.

use std::sync::Arc;

use super::super::core::Core;
use super::super::disk::OsDisk;
use super::super::options::Settings;
use super::super::sync::{GATHER, Next};
use super::{entry, options};
use crate::clock::unix_nanos;

/// A journal whose sync thread is this test, at a time of its own.
struct Journal {
    core: Core,
    now: u64,
    _directory: tempfile::TempDir,
}

const MICROSECOND: u64 = 1_000;

impl Journal {
    fn open() -> Journal {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(&options(directory.path())).unwrap();
        let disk = OsDisk::create(directory.path()).unwrap();
        let now = unix_nanos();
        let (core, _) = Core::open(Arc::new(disk), Box::new(()), settings, now, &[7; 48]).unwrap();
        let mut journal = Journal {
            core,
            now,
            _directory: directory,
        };
        while journal.step() == Next::Again {}
        journal
    }

    fn step(&mut self) -> Next {
        self.core.step(&|| self.now)
    }

    fn append(&self, requests: usize) {
        for _ in 0..requests {
            drop(self.core.append(entry("body")).unwrap());
        }
    }

    fn durable(&self) -> u64 {
        *self.core.watermark.borrow()
    }

    /// Appends so many, and syncs them at once.
    fn answer(&mut self, requests: usize) {
        self.append(requests);
        self.now += 1_000_000 * MICROSECOND;
        assert_eq!(self.step(), Next::Again);
    }
}

#[test]
fn a_single_sender_waits_for_nobody() {
    let mut journal = Journal::open();
    journal.answer(1);
    journal.append(1);
    let before = journal.durable();
    assert_eq!(journal.step(), Next::Again);
    assert_eq!(journal.durable(), before + 1);
}

#[test]
fn a_sync_waits_for_as_many_as_were_answered_last_and_no_longer() {
    let mut journal = Journal::open();
    journal.answer(3);
    let answered_at = journal.now;
    journal.append(1);
    let before = journal.durable();
    assert_eq!(journal.step(), Next::Sleep(Some(answered_at + GATHER)));
    journal.append(1);
    assert!(matches!(journal.step(), Next::Sleep(Some(_))));
    assert_eq!(journal.durable(), before);
    journal.append(1);
    assert_eq!(journal.step(), Next::Again);
    assert_eq!(journal.durable(), before + 3);
}

#[test]
fn a_sync_waits_a_moment_only_and_after_a_pause_not_at_all() {
    let mut journal = Journal::open();
    journal.answer(3);
    journal.append(1);
    let before = journal.durable();
    assert!(matches!(journal.step(), Next::Sleep(Some(_))));
    journal.now += GATHER;
    assert_eq!(journal.step(), Next::Again);
    assert_eq!(journal.durable(), before + 1);
    journal.answer(3);
    journal.now += 5 * GATHER;
    journal.append(1);
    assert_eq!(journal.step(), Next::Again);
}

#[test]
fn a_clock_that_is_set_back_makes_nobody_wait() {
    let mut journal = Journal::open();
    journal.answer(3);
    journal.append(1);
    journal.now -= 3_600_000_000 * MICROSECOND;
    assert_eq!(journal.step(), Next::Again);
}

#[test]
fn at_the_end_nobody_waits() {
    let mut journal = Journal::open();
    journal.answer(3);
    journal.append(1);
    super::super::segment::lock(&journal.core.state).closing = true;
    assert_eq!(journal.step(), Next::Again);
    assert_eq!(journal.step(), Next::Stop);
}
