//! What was read and is in no transaction yet: records, and the facts of as many of their spans as one transaction may have.
//!
//! A request may be larger than that, or tell more: a megabyte holds 20,000 executions that say nothing else. Its facts are
//! taken out in parts, and the position stays before it until the last one. What is done again after a failure between two
//! parts changes nothing, as with whole requests.

use std::collections::VecDeque;

use super::extract::{Extractor, Limit, Taking};
use super::facts::Facts;
use super::row::Oddities;
use super::store::Store;
use crate::journal::{Position, Reader, Record};
use crate::otlp::{NotedSpans, Signal, TraceRequest};

/// What one batch that has its own transaction takes beside [`Store::DECODED_BYTES`], which are some 22,000 spans as executors
/// send them in PostgreSQL and two thirds more in SQLite.
const FACTS: usize = 14_000;

/// A request was decoded within the receiver's limits before it was accepted; this only bounds a damaged one.
const DECODED_LIMIT: usize = 1 << 30;

/// Records that wait, and the facts that were taken out of those before them.
pub(super) struct Ahead {
    pub(super) limit: Limit,
    pub(super) waiting: VecDeque<Record>,
    /// Before all that wait.
    begun: Option<Begun>,
    facts: Vec<Facts>,
    /// Empty, with the memory of facts that were written.
    spare: Vec<Facts>,
    /// Bytes of the decoded requests that the facts are from.
    decoded: usize,
    noticed: Noticed,
}

/// What was noticed while facts were taken out of records. It is counted when they are committed: what is given up is read
/// again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Noticed {
    /// What had to be bent.
    pub(super) oddities: Oddities,
    /// Records that could not be decoded.
    pub(super) unreadable: u64,
}

impl std::ops::AddAssign for Noticed {
    fn add_assign(&mut self, other: Noticed) {
        self.oddities += other.oddities;
        self.unreadable += other.unreadable;
    }
}

impl Limit {
    /// Of a batch that has a transaction of its own.
    pub(super) fn of<S: Store>() -> Limit {
        Limit {
            bytes: S::DECODED_BYTES,
            facts: FACTS,
        }
    }

    /// Of one that shares a transaction.
    pub(super) fn of_many(bytes: usize) -> Limit {
        Limit {
            bytes,
            facts: FACTS / 4,
        }
    }

    /// Enough to go on with when the transaction before is over: to take in the rest is soon done, and its memory is not
    /// needed meanwhile.
    fn to_begin_with(self) -> Limit {
        Limit {
            bytes: self.bytes / 4,
            facts: self.facts / 4,
        }
    }
}

/// A decoded request of which not all facts were taken out.
struct Begun {
    sequence: u64,
    received_at: u64,
    request: TraceRequest,
    noted: Option<NotedSpans>,
    /// How many of its spans were looked at.
    done: usize,
}

impl Begun {
    /// Decodes a record; `None` if it tells nothing.
    fn of(mut record: Record, extractor: &Extractor, noticed: &mut Noticed) -> Option<Begun> {
        if record.signal != Signal::Traces {
            return None;
        }
        let noted = record.noted.take().filter(|_| extractor.goes_by_notes());
        if noted.as_ref().is_some_and(NotedSpans::is_empty) {
            return None;
        }
        let body = match record.decode(DECODED_LIMIT) {
            Ok(body) => body,
            Err(error) => {
                noticed.unreadable += 1;
                tracing::error!(sequence = record.sequence, %error, "a record cannot be decoded");
                return None;
            }
        };
        Some(Begun {
            sequence: record.sequence,
            received_at: record.received_at,
            request: TraceRequest::trusted(body),
            noted,
            done: 0,
        })
    }
}

impl Ahead {
    pub(super) fn new(limit: Limit) -> Ahead {
        Ahead {
            limit,
            waiting: VecDeque::new(),
            begun: None,
            facts: Vec::new(),
            spare: Vec::new(),
            decoded: 0,
            noticed: Noticed::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_none() && self.facts.is_empty()
    }

    pub(super) fn has_no_facts(&self) -> bool {
        self.facts.is_empty()
    }

    /// There is enough for a transaction.
    pub(super) fn is_full(&self) -> bool {
        self.has(self.limit)
    }

    /// There is as much as [`Ahead::begin`] takes.
    pub(super) fn is_under_way(&self) -> bool {
        self.has(self.limit.to_begin_with())
    }

    fn has(&self, limit: Limit) -> bool {
        self.decoded >= limit.bytes || self.facts.len() >= limit.facts
    }

    /// Takes the facts out of one more record, or of a part of it, if there is one and room for it.
    pub(super) fn take_in(&mut self, extractor: &mut Extractor) -> bool {
        self.take_in_within(self.limit, extractor)
    }

    /// The same while the batch before is being written.
    pub(super) fn begin(&mut self, extractor: &mut Extractor) -> bool {
        self.take_in_within(self.limit.to_begin_with(), extractor)
    }

    fn take_in_within(&mut self, limit: Limit, extractor: &mut Extractor) -> bool {
        if self.has(limit) {
            return false;
        }
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => {
                let Some(record) = self.waiting.pop_front() else {
                    return false;
                };
                match Begun::of(record, extractor, &mut self.noticed) {
                    Some(begun) => begun,
                    None => return true,
                }
            }
        };
        let before = self.facts.len();
        let taking = Taking {
            request: &begun.request,
            noted: begun.noted.as_ref(),
            received_at: begun.received_at,
            done: begun.done,
        };
        let left = Limit {
            facts: limit.facts - before,
            bytes: limit.bytes - self.decoded,
        };
        let taken = extractor.take(&taking, left, &mut self.facts);
        self.noticed += Noticed {
            oddities: std::mem::take(&mut extractor.oddities),
            unreadable: 0,
        };
        // Of a request that tells nothing there is nothing in memory. Counted, such requests would make a batch full that has no
        // facts, which is not written and so would stay full.
        if self.facts.len() > before {
            let is_whole = begun.done == 0 && taken.rest.is_none();
            let body = if is_whole { begun.request.bytes().len() } else { 0 };
            self.decoded += taken.bytes.max(body);
        }
        if let Some(done) = taken.rest {
            begun.done = done;
            self.begun = Some(begun);
        }
        true
    }

    /// Behind the records whose facts are here, or were taken: what is still waiting comes after it.
    pub(super) fn position(&self, reader: &Reader) -> Position {
        let mut position = reader.position();
        let begun = self.begun.as_ref().map(|begun| begun.sequence);
        if let Some(next) = begun.or_else(|| self.waiting.front().map(|record| record.sequence)) {
            position.next = next;
        }
        position
    }

    /// The facts for a transaction, and what was noticed of them.
    pub(super) fn take_facts(&mut self) -> (Vec<Facts>, Noticed) {
        self.decoded = 0;
        let facts = std::mem::replace(&mut self.facts, std::mem::take(&mut self.spare));
        (facts, std::mem::take(&mut self.noticed))
    }

    /// Facts that are written. While there is more to do their memory is used again.
    pub(super) fn reuse(&mut self, mut facts: Vec<Facts>) {
        if self.is_empty() {
            self.facts = Vec::new();
            return;
        }
        facts.clear();
        self.spare = facts;
    }
}
