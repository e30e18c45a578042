//! Which rows the live stream has not shown yet, by their keys alone.
//!
//! # Invariants
//!
//! * Of the keys after [`Following::done`] each is shown once, known to have been shown, or counted as left out once,
//!   whatever was read again. Up to there nothing more comes, or it was said that something may have been left out.
//! * Of the rows up to where a client goes on after a row ([`Next::resume`]), none is shown later than this row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

mod shown;
#[cfg(test)]
mod tests;

use shown::Shown;
pub(super) use shown::{REMEMBERED, REMEMBERED_BYTES};

/// The newest keys that are read in a turn.
pub(super) const KEYS: usize = 32_768;

/// The newest keys that are taken for what was there before: a transaction that goes on may have earlier places than so many
/// rows have that were committed.
pub(super) const KEYS_BEFORE: usize = 8_192;

/// Bytes that a key takes, read and remembered.
pub(super) const KEY_BYTES: usize = 256;

/// Rows that are shown in a turn. A client that has read all of the turn before has room for them.
pub(super) const AT_ONCE: usize = 4_000;

/// How long a transaction that took a place is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A row's place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place(pub(super) i64);

/// How rows come to their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// One after the other, each behind the last one that is there: when that is deleted, its place is used again.
    Committed,
    /// By numbers that are used once, if at all, and committed in any order.
    Taken,
}

/// A row as it is found again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) id: String,
    /// Whether it is a row. What is none takes a place all the same.
    pub(super) is_row: bool,
}

/// A row that is to be shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Next {
    pub(super) id: String,
    pub(super) place: Place,
    /// Who goes on after this place misses no row that is shown after this one.
    pub(super) resume: Place,
}

impl Next {
    /// `done` is the place up to which nothing more comes.
    pub(super) fn of(order: Order, key: Key, done: Place) -> Next {
        Next {
            resume: match order {
                Order::Committed => key.place,
                Order::Taken => key.place.min(done),
            },
            id: key.id,
            place: key.place,
        }
    }
}

/// Transactions that may have taken places and have not ended, at a moment. One is among them before it takes its first
/// place, and no longer once everybody sees what it wrote.
pub(super) type Writers = BTreeSet<String>;

/// A turn after which places were missing.
struct Turn {
    at: Instant,
    newest: Place,
    /// Those of the next turn who still have not ended: whoever has a place up to `newest` is one of them.
    writers: Option<Writers>,
}

/// What is left out in a turn.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LeftOut {
    pub(super) rows: usize,
    /// There may be more of them.
    pub(super) maybe_more: bool,
}

/// How far the rows were read.
pub(super) struct Following {
    order: Order,
    newest: Place,
    /// The row there.
    newest_id: Option<String>,
    /// Nothing is read again up to here.
    pub(super) done: Place,
    /// What was read after that, and whether it was a row.
    seen: BTreeMap<Place, bool>,
    /// Oldest first.
    turns: VecDeque<Turn>,
    /// Nothing more is written up to here that will not be read in the next turn.
    settled: Place,
    /// Whether it is not known that nothing is.
    gave_up: bool,
    shown: Shown,
    /// Whether the first row was there to be remembered.
    from_the_first: bool,
    /// What is to be shown, in this order.
    pub(super) waiting: VecDeque<Next>,
}

impl Following {
    /// From now on: of the newest keys, newest first, each was there before. If they are as many as `limit`, there may be
    /// others.
    pub(super) fn new(order: Order, keys: &[Key], limit: usize, remembered: usize) -> Following {
        let is_whole = keys.len() < limit;
        let newest = keys.first().map_or(Place::default(), |key| key.place);
        let mut shown = Shown::new(remembered);
        keys.iter().rev().filter(|key| key.is_row).for_each(|key| {
            shown.note(key);
        });
        let mut following = Following {
            order,
            newest,
            newest_id: keys.first().map(|key| key.id.clone()),
            done: newest,
            seen: BTreeMap::new(),
            turns: VecDeque::new(),
            settled: Place(0),
            gave_up: false,
            shown,
            from_the_first: is_whole,
            waiting: VecDeque::new(),
        };
        if order == Order::Taken {
            let oldest = keys.last().filter(|_| !is_whole);
            following.done = oldest.map_or(Place(0), |oldest| Place(oldest.place.0.saturating_sub(1)));
            following.seen = keys.iter().map(|key| (key.place, key.is_row)).collect();
            following.move_on();
        }
        following
    }

    /// The place after which keys are to be read. Where places are used again, the newest one is read again.
    pub(super) fn read_after(&self) -> Place {
        match self.order {
            Order::Committed => Place(self.done.0.saturating_sub(1)),
            Order::Taken => self.done,
        }
    }

    /// Whether it is worth asking which transactions go on.
    pub(super) fn has_gaps(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Takes note of the transactions that go on, before keys are read.
    pub(super) fn settle(&mut self, now: Instant, writers: &Writers) {
        for turn in &mut self.turns {
            let of_turn = turn.writers.get_or_insert_with(|| writers.clone());
            of_turn.retain(|writer| writers.contains(writer));
        }
        while let Some(turn) = self.turns.front() {
            let have_ended = turn.writers.as_ref().is_some_and(Writers::is_empty);
            if !have_ended && now.duration_since(turn.at) < PATIENCE {
                break;
            }
            self.gave_up |= !have_ended;
            self.settled = turn.newest;
            self.turns.pop_front();
        }
    }

    /// Where places are used again: takes away from the keys after [`Following::read_after`], newest first, the one that was
    /// the newest. If it is no longer there, returns after which place all keys are to be read, for [`Following::go_back`].
    pub(super) fn has_moved(&mut self, keys: &mut Vec<Key>) -> Option<Place> {
        if self.order == Order::Taken {
            return None;
        }
        match (keys.last(), &self.newest_id) {
            (Some(oldest), id) if oldest.place == self.newest && id.as_ref().is_none_or(|id| *id == oldest.id) => {
                self.newest_id = keys.pop().map(|key| key.id);
                None
            }
            (_, None) => None,
            // The newest one is beyond those that were read.
            _ if keys.len() >= KEYS => None,
            _ => Some(self.shown.all_after(self.from_the_first)),
        }
    }

    /// Takes the keys after the place that [`Following::has_moved`] said, newest first, and the last place that is used now.
    /// Returns those that were not shown, and whether others may have been written where nobody looks.
    pub(super) fn go_back(&mut self, keys: Vec<Key>, last: Place) -> (Vec<Key>, bool) {
        self.newest = keys.first().map_or(last, |key| key.place);
        self.newest_id = keys.first().map(|key| key.id.clone());
        self.done = self.newest;
        let knows_all = self.shown.all_after(self.from_the_first) == Place(i64::MIN);
        let (unknown, is_anchored) = self.shown.find(keys);
        // An empty table is known, too.
        (unknown, !(knows_all || is_anchored || last == Place(0)))
    }

    /// Takes the newest keys to be read, newest first, and shows those that are new. If there are more keys, `there` says how
    /// many rows there are up to the oldest of these.
    pub(super) fn take(&mut self, now: Instant, keys: Vec<Key>, there: Option<usize>) -> LeftOut {
        let mut left_out = LeftOut::default();
        if let Some(oldest) = keys.last().map(|key| key.place)
            && let Some(there) = there
        {
            let known = self.seen.range(..=oldest).filter(|(_, is_row)| **is_row).count();
            let is_new = keys.last().is_some_and(|key| key.is_row) && !self.seen.contains_key(&oldest);
            left_out.rows = there.saturating_sub(known + usize::from(is_new));
            self.settled = self.settled.max(oldest);
            // What others have yet to commit among them is in no count. There is none where each place has its row.
            self.gave_up |= self.order == Order::Taken && there as i64 != oldest.0.saturating_sub(self.done.0);
        }
        if let Some(newest) = keys.first()
            && newest.place >= self.newest
        {
            self.newest = newest.place;
            self.newest_id = Some(newest.id.clone());
        }
        let mut fresh = VecDeque::new();
        for key in keys.into_iter().rev() {
            let is_fresh = match self.order {
                Order::Committed => true,
                Order::Taken => self.seen.insert(key.place, key.is_row).is_none(),
            };
            if is_fresh && key.is_row && self.shown.note(&key) {
                fresh.push_back(key);
                if fresh.len() > AT_ONCE {
                    fresh.pop_front();
                    left_out.rows += 1;
                }
            }
        }
        self.move_on();
        if std::mem::take(&mut self.gave_up) {
            left_out.maybe_more = true;
        }
        if self.done < self.newest && self.turns.back().is_none_or(|turn| turn.newest < self.newest) {
            self.turns.push_back(Turn {
                at: now,
                newest: self.newest,
                writers: None,
            });
        }
        let (order, done) = (self.order, self.done);
        self.waiting
            .extend(fresh.into_iter().map(|key| Next::of(order, key, done)));
        let excess = self.waiting.len().saturating_sub(AT_ONCE);
        self.waiting.drain(..excess);
        left_out.rows += excess;
        left_out
    }

    /// Over all places that were read, or that nobody writes to any more.
    fn move_on(&mut self) {
        if self.order == Order::Committed {
            self.done = self.newest;
            return;
        }
        let mut was_missing = false;
        while let Some(next) = self.seen.first_entry() {
            let place = *next.key();
            if place.0 > self.done.0.saturating_add(1) {
                if place > self.settled {
                    break;
                }
                was_missing = true;
            }
            self.done = self.done.max(place);
            next.remove();
        }
        if self.settled > self.done {
            self.done = self.settled;
            was_missing = true;
        }
        self.gave_up &= was_missing;
        let done = self.done;
        self.turns.retain(|turn| turn.newest > done);
    }
}
