//! A catalogue of damage. In each case the journal opens, loses only what was damaged, and says so.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::disk::{Disk, OsDisk};
use super::super::identity::Identity;
use super::super::record::{HEADER, Header};
use super::super::segment::{DATA_START, Frame, SegmentHeader, Walk};
use super::super::*;
use super::{bodies, entry, options};
use crate::checksum;

const COUNT: usize = 200;
/// A record of the catalogue, in its segment.
const LENGTH: usize = 1000;

fn small(directory: &Path) -> Options {
    Options {
        segment_size: Some(64 << 10),
        readers: vec!["meter".to_owned()],
        ..options(directory)
    }
}

fn body(number: usize) -> Bytes {
    let mut body = vec![number as u8; LENGTH];
    body[..8].copy_from_slice(&(number as u64).to_le_bytes());
    body.into()
}

/// A journal with records in several segments, closed.
async fn filled(directory: &Path) {
    let (journal, _) = Journal::open(small(directory)).unwrap();
    let appended: Vec<Appended> = (0..COUNT)
        .map(|number| journal.append(entry(body(number))).unwrap())
        .collect();
    for appended in appended {
        appended.durable.await.unwrap();
    }
    journal.close();
}

/// Segment files in order of their lives, with where their records are.
fn segments(directory: &Path) -> Vec<(PathBuf, Vec<(u64, Header)>)> {
    let disk = OsDisk::read_only(directory).unwrap();
    let identity = Identity::decode(&fs::read(directory.join("journal.id")).unwrap());
    let Ok(identity) = identity else { panic!("journal.id") };
    let mut segments = Vec::new();
    for name in disk.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")) {
        let file = disk.open(&name).unwrap();
        let Ok(Ok(header)) = SegmentHeader::read(&*file) else {
            continue;
        };
        let seed = identity.seed(header.incarnation, header.epoch);
        let mut walk = Walk::over(&*file, seed, DATA_START, file.length().unwrap());
        let mut records = Vec::new();
        while let Frame::Record { offset, header } = walk.next().unwrap() {
            records.push((offset, header));
        }
        segments.push((header.incarnation, directory.join(name), records));
    }
    segments.sort_by_key(|(incarnation, ..)| *incarnation);
    segments.into_iter().map(|(_, path, records)| (path, records)).collect()
}

fn with_records(directory: &Path) -> Vec<(PathBuf, Vec<(u64, Header)>)> {
    segments(directory)
        .into_iter()
        .filter(|(_, records)| !records.is_empty())
        .collect()
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, offset)
        .unwrap();
}

fn cut(path: &Path, length: u64) {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(length)
        .unwrap();
}

/// Opens, reads everything from the oldest record, appends one more and reads it.
fn survivors(directory: &Path) -> (Vec<usize>, Recovery) {
    let (journal, recovery) = Journal::open(small(directory)).unwrap();
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    let mut read = Vec::new();
    while !reader.is_caught_up() {
        read.extend(bodies(&reader.try_next_batch(usize::MAX, usize::MAX).unwrap()));
    }
    let numbers = read.iter().filter(|body| !body.is_empty()).map(|found| {
        let number = u64::from_le_bytes(found[..8].try_into().unwrap()) as usize;
        assert_eq!(*found, body(number));
        number
    });
    let numbers = numbers.collect();
    let appended = journal.append(entry(&b"one more"[..])).unwrap();
    journal.close();
    assert_eq!(appended.durable.outcome(), Some(Ok(())));
    assert_eq!(
        bodies(&reader.try_next_batch(usize::MAX, usize::MAX).unwrap()),
        [Bytes::from_static(b"one more")]
    );
    (numbers, recovery)
}

fn all_but(missing: &[usize]) -> Vec<usize> {
    (0..COUNT).filter(|number| !missing.contains(number)).collect()
}

fn number_of(path: &Path, header: &(u64, Header)) -> usize {
    let mut number = [0; 8];
    fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut number, header.0 + HEADER as u64)
        .unwrap();
    u64::from_le_bytes(number) as usize
}

#[tokio::test]
async fn an_undamaged_journal_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    assert!(with_records(directory.path()).len() > 3);
    assert!(verify(&small(directory.path())).unwrap().is_sound());
    let (read, recovery) = survivors(directory.path());
    assert_eq!((read, recovery.notes), (all_but(&[]), vec![]));
}

#[tokio::test]
async fn a_record_of_length_zero_is_a_record() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(small(directory.path())).unwrap();
    journal.append(entry(Bytes::new())).unwrap().durable.await.unwrap();
    journal.append(entry(body(1))).unwrap().durable.await.unwrap();
    journal.close();
    drop(journal);
    assert_eq!(survivors(directory.path()).0, [1]);
}

#[tokio::test]
async fn a_damaged_body_costs_one_record_wherever_it_is() {
    for which in ["head", "middle", "tail"] {
        for is_last_segment in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            filled(directory.path()).await;
            let segments = with_records(directory.path());
            let (path, records) = if is_last_segment {
                segments.last().unwrap()
            } else {
                &segments[1]
            };
            let index = match which {
                "head" => 0,
                "middle" => records.len() / 2,
                _ => records.len() - 1,
            };
            let number = number_of(path, &records[index]);
            overwrite(path, records[index].0 + HEADER as u64 + 500, &[0xff]);
            let verification = verify(&small(directory.path())).unwrap();
            let found: u64 = verification.segments.iter().map(|segment| segment.damaged).sum();
            let reported = found + verification.recovery.lost_records + verification.recovery.unfinished_records;
            assert_eq!(reported, 1, "{which} {is_last_segment}: {verification:?}");
            // In the last segment, what was acknowledged is only known from later records.
            assert!(is_last_segment || !verification.is_sound(), "{which}");
            assert_eq!(
                survivors(directory.path()).0,
                all_but(&[number]),
                "{which} {is_last_segment}"
            );
        }
    }
}

#[tokio::test]
async fn a_damaged_header_costs_one_record_wherever_it_is() {
    for which in ["head", "middle", "tail"] {
        for is_last_segment in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            filled(directory.path()).await;
            let segments = with_records(directory.path());
            let (path, records) = if is_last_segment {
                segments.last().unwrap()
            } else {
                &segments[1]
            };
            let index = match which {
                "head" => 0,
                "middle" => records.len() / 2,
                _ => records.len() - 1,
            };
            let number = number_of(path, &records[index]);
            // The length, so that the next record cannot be found by it.
            overwrite(path, records[index].0 + 8, &[0xff; 4]);
            assert_eq!(
                survivors(directory.path()).0,
                all_but(&[number]),
                "{which} {is_last_segment}"
            );
        }
    }
}

#[tokio::test]
async fn a_torn_last_record_was_never_acknowledged_and_is_no_loss() {
    for kept in [0, 8, HEADER as u64, HEADER as u64 + 1, HEADER as u64 + 999] {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path()).await;
        let segments = with_records(directory.path());
        let (path, records) = segments.last().unwrap();
        cut(path, records.last().unwrap().0 + kept);
        let (read, recovery) = survivors(directory.path());
        assert_eq!(read, all_but(&[COUNT - 1]));
        assert_eq!(recovery.lost_records, 0, "{recovery:?}");
    }
}

#[tokio::test]
async fn a_tail_of_zeros_ends_the_last_segment() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    let (path, records) = segments.last().unwrap();
    let from = records.len() - 3;
    let length = fs::metadata(path).unwrap().len();
    overwrite(
        path,
        records[from].0 + 20,
        &vec![0; (length - records[from].0) as usize - 20],
    );
    assert_eq!(
        survivors(directory.path()).0,
        all_but(&[COUNT - 3, COUNT - 2, COUNT - 1])
    );
}

#[tokio::test]
async fn a_finished_segment_that_was_cut_loses_its_tail_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    let (path, records) = &segments[1];
    let missing: Vec<usize> = records[records.len() - 4..]
        .iter()
        .map(|record| number_of(path, record))
        .collect();
    cut(path, records[records.len() - 4].0 + 100);
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&missing));
    assert_eq!(recovery.lost_records, 4, "{recovery:?}");
}

#[tokio::test]
async fn old_records_behind_the_end_of_a_recycled_segment_stay_dead() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        retain: Duration::ZERO,
        ..small(directory.path())
    };
    let (journal, _) = Journal::open(options).unwrap();
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    for number in 0..COUNT {
        journal.append(entry(body(number))).unwrap().durable.await.unwrap();
        while !reader.is_caught_up() {
            reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
        }
        reader.passed(reader.position());
    }
    let kept = journal.status().records as usize;
    assert!(kept < COUNT, "nothing was recycled");
    drop(reader);
    drop(journal);
    // The last record is torn, and where it ends there is one from an earlier life.
    let segments = with_records(directory.path());
    let (path, records) = segments.last().unwrap();
    overwrite(path, records.last().unwrap().0 + HEADER as u64, &[0xff; 16]);
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, (COUNT - kept..COUNT - 1).collect::<Vec<_>>());
    assert_eq!(
        (recovery.lost_records, recovery.unfinished_records),
        (0, 1),
        "{recovery:?}"
    );
}

#[tokio::test]
async fn a_missing_segment_is_counted_and_the_others_are_read() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    let (path, records) = &segments[1];
    let missing: Vec<usize> = records.iter().map(|record| number_of(path, record)).collect();
    fs::remove_file(path).unwrap();
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&missing));
    assert_eq!(recovery.lost_records as usize, missing.len(), "{recovery:?}");
}

#[tokio::test]
async fn a_segment_without_a_valid_header_is_set_aside_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    let (path, records) = &segments[1];
    let missing: Vec<usize> = records.iter().map(|record| number_of(path, record)).collect();
    overwrite(path, 64, &[0xee]);
    assert_eq!(
        survivors(directory.path()).0.len(),
        COUNT,
        "one copy of the header is enough"
    );
    overwrite(path, 64, &[0xee]);
    overwrite(path, 4096 + 64, &[0xee]);
    let (journal, recovery) = Journal::open(small(directory.path())).unwrap();
    assert_eq!(recovery.set_aside.len(), 1, "{recovery:?}");
    assert_eq!(recovery.lost_records as usize, missing.len(), "{recovery:?}");
    assert!(
        directory.path().join(&recovery.set_aside[0]).exists(),
        "evidence is kept"
    );
    drop(journal);
}

/// The first copy was lost with a sync that failed, and the power went while the second was written.
#[tokio::test]
async fn a_segment_whose_header_was_never_completely_written_is_removed_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let unfinished = directory.path().join("00000063.seg");
    fs::write(&unfinished, vec![0; 4 * DATA_START as usize]).unwrap();
    overwrite(&unfinished, 4096 + 120, &[1, 0, 0, 0, 3, 0, 0, 0, 72]);
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&[]));
    assert!(recovery.set_aside.is_empty(), "{recovery:?}");
    assert!(!unfinished.exists());

    // Something far behind it was written once: that may be records.
    fs::write(&unfinished, vec![0; 4 << 20]).unwrap();
    overwrite(&unfinished, (3 << 20) + 5, &[1]);
    let (_, recovery) = Journal::open(small(directory.path())).unwrap();
    assert_eq!(recovery.set_aside, ["00000063.seg.corrupt"]);
}

#[tokio::test]
async fn a_copied_segment_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    fs::copy(&segments[1].0, directory.path().join("000000f0.seg")).unwrap();
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&[]));
    assert_eq!(recovery.set_aside, ["000000f0.seg.duplicate"]);
}

#[tokio::test]
async fn a_segment_of_another_journal_is_set_aside() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(directory.path()).await;
    filled(other.path()).await;
    fs::copy(&with_records(other.path())[0].0, directory.path().join("000000f0.seg")).unwrap();
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&[]));
    assert_eq!(recovery.set_aside, ["000000f0.seg.foreign"]);
}

#[tokio::test]
async fn a_lost_or_damaged_identity_is_restored_from_the_segments() {
    for is_lost in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path()).await;
        let path = directory.path().join("journal.id");
        let id = Identity::decode(&fs::read(&path).unwrap()).map(|identity| identity.id);
        if is_lost {
            fs::remove_file(&path).unwrap();
        } else {
            overwrite(&path, 20, &[0xff; 30]);
        }
        let (read, recovery) = survivors(directory.path());
        assert_eq!(read, all_but(&[]), "{recovery:?}");
        assert!(Identity::decode(&fs::read(&path).unwrap()).map(|identity| identity.id) == id);
    }
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let path = directory.path().join("journal.id");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 9;
    let crc = checksum::crc32c(&bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = Journal::open(small(directory.path())).unwrap_err();
    assert!(matches!(error, JournalError::Version { found: 9, .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_snapshot_of_digests_does_not_stop_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    fs::write(directory.path().join("dedup.snapshot"), b"nonsense").unwrap();
    fs::write(directory.path().join("README.txt"), b"files of others are not touched").unwrap();
    let (read, recovery) = survivors(directory.path());
    assert_eq!(read, all_but(&[]));
    assert!(recovery.notes[0].contains("dedup.snapshot"), "{recovery:?}");
    assert!(directory.path().join("README.txt").exists());
}

#[tokio::test]
async fn positions_that_cannot_be_are_recognised() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let (journal, _) = Journal::open(small(directory.path())).unwrap();
    let mut reader = journal.reader("meter").unwrap();
    let at = |next| {
        Some(Position {
            journal: journal.id(),
            next,
        })
    };
    let end = journal.end_at_open().next;
    let oldest = journal.status().oldest;
    assert_eq!(reader.resume(at(end)), Resume::Continued { missing: 0 });
    assert_eq!(reader.resume(at(oldest)), Resume::Continued { missing: 0 });
    assert_eq!(reader.resume(at(oldest + 70)), Resume::Continued { missing: 0 });
    assert_eq!(reader.position().next, oldest + 70);
    assert_eq!(reader.resume(at(end + 1)), Resume::BeyondEnd);
    assert_eq!(reader.position().next, oldest);
    assert_eq!(reader.resume(at(u64::MAX)), Resume::BeyondEnd);
    // Between the end of one start and the beginning of the next, once there are records behind it.
    journal.append(entry(body(0))).unwrap().durable.await.unwrap();
    assert_eq!(reader.resume(at(end)), Resume::Continued { missing: 0 });
    assert_eq!(reader.resume(at(end + 1)), Resume::BeyondEnd);
    let stranger = Position {
        journal: JournalId([1; 16]),
        next: oldest,
    };
    assert_eq!(reader.resume(Some(stranger)), Resume::OtherJournal(stranger.journal));
    assert_eq!(reader.position().next, oldest);
}

#[tokio::test]
async fn a_journal_that_was_wiped_does_not_know_the_old_position() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let old = inspect(&small(directory.path()), &[]).unwrap().status;
    fs::remove_dir_all(directory.path()).unwrap();
    filled(directory.path()).await;
    let (journal, recovery) = Journal::open(small(directory.path())).unwrap();
    assert!(!recovery.is_new);
    let mut reader = journal.reader("meter").unwrap();
    let saved = Position {
        journal: old.journal,
        next: old.next,
    };
    assert_eq!(reader.resume(Some(saved)), Resume::OtherJournal(old.journal));
}

#[tokio::test]
async fn positions_behind_lost_segments_continue_and_count_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let segments = with_records(directory.path());
    let first = segments[0].1[0].1.sequence;
    let lost = segments[0].1.len() as u64;
    fs::remove_file(&segments[0].0).unwrap();
    let (journal, _) = Journal::open(small(directory.path())).unwrap();
    let mut reader = journal.reader("meter").unwrap();
    let saved = Position {
        journal: journal.id(),
        next: first + 10,
    };
    assert_eq!(reader.resume(Some(saved)), Resume::Continued { missing: lost - 10 });
    assert_eq!(reader.position().next, first + lost);
}

#[tokio::test]
async fn a_journal_in_use_can_be_looked_at_by_anybody_and_checked_only_by_its_process() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let (journal, _) = Journal::open(small(directory.path())).unwrap();
    assert!(matches!(
        verify(&small(directory.path())),
        Err(JournalError::Locked { .. })
    ));
    let verification = journal.verify();
    assert_eq!((verification.records(), verification.is_sound()), (COUNT as u64, true));
    let looked = inspect(&small(directory.path()), &[]).unwrap();
    assert_eq!((looked.is_in_use, looked.status.records), (true, COUNT as u64));
    assert_eq!(looked.recovery.notes, [""; 0]);
    drop(journal);
    let before: Vec<_> = segments(directory.path())
        .iter()
        .map(|(path, _)| fs::read(path).unwrap())
        .collect();
    let inspection = inspect(&small(directory.path()), &[]).unwrap();
    assert_eq!(
        (inspection.status.records, inspection.status.readers[0].lag_records),
        (COUNT as u64, COUNT as u64)
    );
    let after: Vec<_> = segments(directory.path())
        .iter()
        .map(|(path, _)| fs::read(path).unwrap())
        .collect();
    assert!(before == after, "looking changed something");
}

#[tokio::test]
async fn readers_pass_a_lost_segment_behind_which_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    // Each start begins a segment, which says what was valid before it.
    drop(Journal::open(small(directory.path())).unwrap());
    let segments = with_records(directory.path());
    let (path, records) = segments.last().unwrap();
    fs::remove_file(path).unwrap();
    let (journal, recovery) = Journal::open(small(directory.path())).unwrap();
    assert_eq!(recovery.lost_records as usize, records.len(), "{recovery:?}");
    let mut reader = journal.reader("meter").unwrap();
    let saved = Position {
        journal: journal.id(),
        next: records[1].1.sequence,
    };
    assert!(matches!(reader.resume(Some(saved)), Resume::Continued { .. }));
    assert!(reader.try_next_batch(1 << 20, 100).unwrap().is_empty());
    assert!(reader.is_caught_up());
    journal.append(entry(body(7))).unwrap().durable.await.unwrap();
    assert_eq!(reader.next_batch(1 << 20, 100).await.unwrap().len(), 1);
}
