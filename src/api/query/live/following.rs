//! Which rows the live stream has not shown yet, by their keys alone.
//!
//! Invariant: of the keys after [`Following::done`] each is shown once or counted as left out once, whatever was read again.

use std::collections::{HashMap, VecDeque};

/// The newest keys that are read in a turn: as many as there can be in the time that is read again, when [`AT_ONCE`] come in
/// each turn.
pub(super) const KEYS: usize = 32_768;

/// Bytes that a key takes, read and remembered beside those of the turn before, in a map that grows meanwhile.
pub(super) const KEY_BYTES: usize = 384;

/// Rows that are shown in a turn. A client that has read all of the turn before has room for them.
pub(super) const AT_ONCE: usize = 4_000;

/// A row's place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place(pub(super) i64);

/// A row as it is found again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) id: String,
}

/// How far the rows were read.
pub(super) struct Following {
    newest: Place,
    overlap: i64,
    /// Nothing is read again up to here.
    pub(super) done: Place,
    /// What was read after that.
    pub(super) seen: HashMap<String, Place>,
    /// What is to be shown, oldest first.
    pub(super) waiting: VecDeque<Key>,
}

impl Following {
    pub(super) fn new(newest: Place, overlap: i64) -> Following {
        Following {
            newest,
            overlap,
            done: Place(newest.0.saturating_sub(overlap)),
            seen: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes the newest keys after [`Following::done`], newest first, for what was there before.
    pub(super) fn has_seen(&mut self, keys: Vec<Key>) {
        if keys.len() == KEYS {
            self.done = keys.last().map_or(self.done, |oldest| oldest.place);
        }
        let (done, newest) = (self.done, self.newest);
        let before = keys.into_iter().filter(|key| key.place > done && key.place <= newest);
        self.seen.extend(before.map(|key| (key.id, key.place)));
    }

    /// Takes the newest keys after [`Following::done`], newest first, and shows those that are new. If there are more keys,
    /// `there` says how many rows there are up to the oldest of these. Returns how many rows are left out.
    pub(super) fn take(&mut self, keys: Vec<Key>, there: Option<usize>) -> usize {
        let mut fresh: Vec<&Key> = (keys.iter()).filter(|key| !self.seen.contains_key(&key.id)).collect();
        let mut left_out = fresh.len().saturating_sub(AT_ONCE);
        fresh.truncate(AT_ONCE);
        self.waiting.extend(fresh.into_iter().rev().cloned());
        let Some((newest, oldest)) = keys.first().zip(keys.last()).map(|(a, b)| (a.place, b.place)) else {
            return 0;
        };
        self.newest = self.newest.max(newest);
        self.seen.extend(keys.into_iter().map(|key| (key.id, key.place)));
        if let Some(there) = there {
            left_out += there.saturating_sub(self.seen.values().filter(|place| **place <= oldest).count());
            self.done = oldest;
        }
        self.done = self.done.max(Place(self.newest.0.saturating_sub(self.overlap)));
        self.seen.retain(|_, place| *place > self.done);
        let excess = self.waiting.len().saturating_sub(AT_ONCE);
        self.waiting.drain(..excess);
        left_out + excess
    }
}
