//! The hot tail: the newest records as they came in, bounded in bytes, so that readers that keep up never touch
//! files.
//!
//! Invariant: every record with a sequence of at least `start` that was appended and not refused is here.

use std::collections::VecDeque;

use super::record::Record;
use crate::otlp::NotedSpans;

pub(super) struct Tail {
    records: VecDeque<Record>,
    bytes: usize,
    limit: usize,
    start: u64,
}

fn weight(record: &Record) -> usize {
    // `Identity` bodies are one buffer, not two.
    let decoded = record.decoded().map_or(0, |decoded| {
        if decoded.as_ptr() == record.body.as_ptr() {
            0
        } else {
            decoded.len()
        }
    });
    let noted = record.noted.as_ref().map_or(0, NotedSpans::size);
    size_of::<Record>() + record.body.len() + decoded + noted
}

impl Tail {
    /// Empty: everything from `start` on is going to be in it.
    pub(super) fn new(limit: usize, start: u64) -> Self {
        Self {
            records: VecDeque::new(),
            bytes: 0,
            limit,
            start,
        }
    }

    /// Everything from here on is in it.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn push(&mut self, record: Record) {
        self.bytes += weight(&record);
        self.records.push_back(record);
        while self.bytes > self.limit {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= weight(&oldest);
            self.start = oldest.sequence + 1;
        }
    }

    /// Lets go of what every reader has seen.
    pub(super) fn release(&mut self, before: u64) {
        while self.records.front().is_some_and(|record| record.sequence < before) {
            if let Some(oldest) = self.records.pop_front() {
                self.bytes -= weight(&oldest);
                self.start = oldest.sequence + 1;
            }
        }
    }

    /// Takes refused records out again.
    pub(super) fn refuse_from(&mut self, sequence: u64) {
        while self.records.back().is_some_and(|record| record.sequence >= sequence) {
            if let Some(refused) = self.records.pop_back() {
                self.bytes -= weight(&refused);
            }
        }
    }

    /// Records from `next` up to `through`; `None` when the tail does not reach back to `next`. At least one record
    /// is handed out when there is one, however large.
    pub(super) fn read(&self, next: u64, through: u64, max_bytes: usize, max_records: usize) -> Option<Vec<Record>> {
        if next < self.start {
            return None;
        }
        let from = self.records.partition_point(|record| record.sequence < next);
        let mut bytes = 0_usize;
        let mut batch = Vec::new();
        for record in self
            .records
            .iter()
            .skip(from)
            .take_while(|record| record.sequence <= through)
        {
            bytes = bytes.saturating_add(record.body.len());
            if batch.len() >= max_records.max(1) || (bytes > max_bytes && !batch.is_empty()) {
                break;
            }
            batch.push(record.clone());
        }
        Some(batch)
    }

    /// When the first record at or after `next` was received, if it is here.
    pub(super) fn received_at(&self, next: u64) -> Option<u64> {
        if next < self.start {
            return None;
        }
        let from = self.records.partition_point(|record| record.sequence < next);
        self.records.get(from).map(|record| record.received_at)
    }
}
