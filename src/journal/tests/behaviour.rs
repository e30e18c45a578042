//! The journal as its users see it, on a real disk.

use std::time::Duration;

use bytes::Bytes;

use super::super::*;
use super::{bodies, entry, on_page, options};
use crate::clock::unix_nanos;

fn with_reader(directory: &std::path::Path) -> Options {
    Options {
        readers: vec!["meter".to_owned()],
        ..options(directory)
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_read_in_order_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let sent: Vec<Bytes> = (0..100_u32)
        .map(|number| Bytes::from(number.to_le_bytes().repeat(50)))
        .collect();
    let position = {
        let (journal, recovery) = Journal::open(with_reader(directory.path())).unwrap();
        assert!(recovery.is_new);
        let mut reader = journal.reader("meter").unwrap();
        assert_eq!(reader.resume(None), Resume::FromOldest);
        for body in &sent[..50] {
            journal.append(entry(body.clone())).unwrap().durable.await.unwrap();
        }
        let read = reader.next_batch(usize::MAX, 20).await.unwrap();
        assert_eq!(bodies(&read), sent[..20]);
        reader.position()
    };
    let (journal, recovery) = Journal::open(with_reader(directory.path())).unwrap();
    assert_eq!(
        (recovery.records, recovery.lost_records, recovery.notes.len()),
        (50, 0, 0),
        "{recovery:?}"
    );
    let mut reader = journal.reader("meter").unwrap();
    assert_eq!(reader.resume(Some(position)), Resume::Continued { missing: 0 });
    for body in &sent[50..] {
        journal.append(entry(body.clone())).unwrap().durable.await.unwrap();
    }
    let mut read = Vec::new();
    while read.len() < 80 {
        read.extend(bodies(&reader.next_batch(usize::MAX, 1000).await.unwrap()));
    }
    assert_eq!(read, sent[20..]);
    assert!(reader.is_caught_up());
}

#[tokio::test]
async fn bodies_that_were_written_from_where_they_are_are_read_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    // As requests come: some on a page of memory and some not, large and small.
    let lengths = [100_000, 300, 65_536, 65_535, 1_000_000, 70_001, 0, 200_000];
    let sent: Vec<Bytes> = lengths
        .into_iter()
        .zip(1..)
        .map(|(length, byte)| on_page(&vec![byte; length]))
        .collect();
    {
        let (journal, _) = Journal::open(with_reader(directory.path())).unwrap();
        let answers: Vec<_> = sent
            .iter()
            .map(|body| journal.append(entry(body.clone())).unwrap().durable)
            .collect();
        for durable in answers {
            durable.await.unwrap();
        }
    }
    let (journal, recovery) = Journal::open(with_reader(directory.path())).unwrap();
    assert_eq!((recovery.records, recovery.lost_records), (8, 0), "{recovery:?}");
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    let mut read = Vec::new();
    while read.len() < sent.len() {
        read.extend(bodies(&reader.next_batch(150_000, 3).await.unwrap()));
    }
    assert_eq!(read, sent);
}

#[tokio::test]
async fn a_second_process_is_told_which_setting_to_change() {
    let directory = tempfile::tempdir().unwrap();
    let (_journal, _) = Journal::open(options(directory.path())).unwrap();
    let error = Journal::open(options(directory.path())).unwrap_err();
    assert!(matches!(error, JournalError::Locked { .. }));
    assert!(error.to_string().contains("journal.directory"), "{error}");
}

#[tokio::test]
async fn a_repeated_request_waits_for_the_first_and_is_answered_like_it() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(with_reader(directory.path())).unwrap();
    let digest = journal.digest(Signal::Traces, Encoding::Identity, b"request");
    assert!(journal.duplicate_of(&digest, unix_nanos()).is_none());
    let request = Entry {
        digest: Some(digest),
        rejected: 3,
        ..entry(&b"request"[..])
    };
    let first = journal.append(request.clone()).unwrap();
    let second = journal.append(request).unwrap();
    assert!(!first.duplicate && second.duplicate);
    assert_eq!(second.rejected, 3);
    second.durable.await.unwrap();
    assert_eq!(first.durable.outcome(), Some(Ok(())));
    journal.close();
    drop(journal);
    let (journal, recovery) = Journal::open(with_reader(directory.path())).unwrap();
    assert_eq!(recovery.remembered, 1);
    let third = journal.duplicate_of(&digest, unix_nanos()).unwrap();
    assert_eq!((third.duplicate, third.rejected), (true, 3));
    third.durable.await.unwrap();
    assert_eq!(journal.status().records, 1);
    let later = unix_nanos() + Duration::from_secs(601).as_nanos() as u64;
    assert!(journal.duplicate_of(&digest, later).is_none());
}

#[tokio::test]
async fn a_full_journal_refuses_until_the_reader_has_passed() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(with_reader(directory.path())).unwrap();
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    let body = Bytes::from(vec![7; 300 << 10]);
    let mut stored = 0;
    loop {
        let appended = journal.append(entry(body.clone()));
        match match appended {
            Ok(appended) => appended.durable.await,
            Err(error) => Err(error),
        } {
            Ok(()) => stored += 1,
            Err(AppendError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored >= 15, "{stored}");
    assert!(journal.is_writable().is_err());
    let used: u64 = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(used <= 8 << 20, "{used}");
    let mut read = 0;
    while read < stored {
        let batch = reader.next_batch(1 << 20, 100).await.unwrap();
        assert!(batch.iter().all(|record| record.body == body));
        read += batch.len();
    }
    reader.passed(reader.position());
    while journal.is_writable().is_err() {
        tokio::task::yield_now().await;
    }
    journal.append(entry(body.clone())).unwrap().durable.await.unwrap();
    assert_eq!(reader.next_batch(1 << 20, 100).await.unwrap().len(), 1);
}

#[tokio::test]
async fn with_an_interval_the_answer_comes_at_once_and_the_record_after_the_sync() {
    let directory = tempfile::tempdir().unwrap();
    let interval = Fsync::Interval(Duration::from_millis(20));
    let (journal, _) = Journal::open(Options {
        fsync: interval,
        ..with_reader(directory.path())
    })
    .unwrap();
    let mut reader = journal.reader("meter").unwrap();
    reader.resume(None);
    let appended = journal.append(entry(&b"one"[..])).unwrap();
    assert_eq!(appended.durable.outcome(), Some(Ok(())));
    assert_eq!(reader.next_batch(100, 100).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_everybody_has_passed_is_kept_for_replay_as_long_as_retain_says_and_there_is_room() {
    let body = Bytes::from(vec![7; 100 << 10]);
    for (retain, is_kept) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(Options {
            retain,
            segment_size: Some(256 << 10),
            ..with_reader(directory.path())
        })
        .unwrap();
        let mut reader = journal.reader("meter").unwrap();
        reader.resume(None);
        for _ in 0..20 {
            journal.append(entry(body.clone())).unwrap().durable.await.unwrap();
            reader.next_batch(usize::MAX, 1).await.unwrap();
            reader.passed(reader.position());
        }
        if is_kept {
            assert_eq!(journal.status().records, 20);
            // Room comes before replay.
            for _ in 0..100 {
                journal.append(entry(body.clone())).unwrap().durable.await.unwrap();
                reader.next_batch(usize::MAX, 1).await.unwrap();
                reader.passed(reader.position());
            }
            let status = journal.status();
            assert!(status.records < 120 && status.bytes <= status.max_bytes, "{status:?}");
        } else {
            while journal.status().records > 8 {
                tokio::task::yield_now().await;
            }
        }
    }
}
