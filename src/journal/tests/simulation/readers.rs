//! What readers and repeated requests do in the simulation, and what they may see.

use super::{Fate, Simulation};
use crate::journal::segment::lock;
use crate::journal::*;

impl Simulation {
    pub(super) fn resume(&mut self, index: usize) {
        let mut reader = Reader::new(self.core(), index);
        let saved = self.followers[index].saved;
        let resume = reader.resume(saved);
        self.say(|| format!("reader {index} resumes at {saved:?}: {resume:?}"));
        match resume {
            Resume::Continued { missing } => {
                assert!(
                    missing == 0 || self.followers[index].is_skippable,
                    "{missing} records are gone"
                );
            }
            Resume::FromOldest => assert!(saved.is_none()),
            other => panic!("{other:?}"),
        }
        self.readers[index] = Some(reader);
        self.followers[index].unsaved.clear();
    }

    pub(super) fn repeat(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let number = self.random.usize(0..self.requests.len());
        let Some(digest) = self.requests[number].digest else {
            return;
        };
        let core = self.core();
        let age = Duration::from_nanos(self.now - self.requests[number].received_at);
        let is_remembered = age <= self.options.dedup_max_age && self.options.dedup_max_entries > 4;
        let known = core.duplicate_of(&digest, self.now);
        self.say(|| format!("repeat {number} ({:?}): {known:?}", self.requests[number].fate));
        match known {
            Some(appended) => {
                let fate = self.requests[number].fate;
                assert!(!matches!(fate, Fate::Refused), "a refused request is taken for known");
                assert_eq!(appended.rejected, self.requests[number].rejected);
                assert!(!self.requests[number].must_be_absent);
                match appended.durable.outcome() {
                    Some(Ok(())) => self.requests[number].fate = Fate::Acknowledged,
                    Some(Err(error)) => panic!("{error}"),
                    None => assert_eq!(fate, Fate::Pending, "it waits for nothing"),
                }
            }
            None if is_remembered => match self.requests[number].fate {
                Fate::Acknowledged => panic!("request {number} is forgotten, though acknowledged"),
                // It is about to be refused.
                Fate::Pending => {
                    let waiting: Vec<u64> = lock(&core.state).pending.iter().map(|slot| slot.sequence).collect();
                    let is_waiting = waiting.iter().any(|sequence| self.request_of[sequence] == number);
                    assert!(!is_waiting, "request {number} is forgotten");
                }
                Fate::Unknown => self.requests[number].must_be_absent = true,
                Fate::RefusedForNow | Fate::Refused => {}
            },
            None => {}
        }
    }

    pub(super) fn read(&mut self, index: usize) {
        let Some(mut reader) = self.readers[index].take() else {
            return self.resume(index);
        };
        let max_bytes = self.random.usize(0..8000);
        let batch = reader.try_next_batch(max_bytes, self.random.usize(1..20));
        self.say(|| {
            let sequences = batch
                .as_ref()
                .map(|batch| batch.iter().map(|record| record.sequence).collect::<Vec<_>>());
            format!("reader {index} reads {sequences:?}")
        });
        let position = reader.position();
        self.readers[index] = Some(reader);
        let Ok(batch) = batch else { return };
        for record in batch {
            assert!(record.sequence < position.next);
            let number = u64::from_le_bytes(record.body[..8].try_into().unwrap()) as usize;
            let request = &mut self.requests[number];
            assert_eq!(record.body, request.body, "request {number}");
            assert_eq!(record.items as usize, number);
            assert_eq!(
                self.request_of.get(&record.sequence),
                Some(&number),
                "sequence {}",
                record.sequence
            );
            match request.fate {
                Fate::Refused | Fate::RefusedForNow => panic!("request {number} was refused"),
                // It turned out to be there.
                Fate::Unknown => request.fate = Fate::Acknowledged,
                Fate::Pending | Fate::Acknowledged => {}
            }
            assert!(
                !request.must_be_absent,
                "request {number} is there and was not recognised"
            );
            let follower = &mut self.followers[index];
            let last = follower.unsaved.last().or(follower.processed.last());
            assert!(
                last.is_none_or(|(sequence, _)| *sequence < record.sequence),
                "out of order"
            );
            follower.unsaved.push((record.sequence, number));
        }
    }

    pub(super) fn pass(&mut self, index: usize) {
        let Some(reader) = &self.readers[index] else { return };
        let follower = &mut self.followers[index];
        let position = reader.position();
        follower.processed.append(&mut follower.unsaved);
        follower.saved = Some(position);
        reader.passed(position);
        self.say(|| format!("reader {index} has passed {}", position.next));
    }

    pub(super) fn rewind(&mut self, index: usize) {
        let Some(reader) = &mut self.readers[index] else { return };
        let follower = &mut self.followers[index];
        if let Some(saved) = follower.saved {
            reader.rewind(saved);
            follower.unsaved.clear();
        }
    }
}
