//! The newest rows that were shown, with where they were.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use super::{Key, Place};

/// So many are remembered.
pub(in crate::api::query::live) const REMEMBERED: usize = 16_384;

/// Bytes that each of them takes, in a queue and a map, twice while they are looked for.
pub(in crate::api::query::live) const REMEMBERED_BYTES: usize = 192;

/// Where a row is no longer. What comes after it are none.
const NOWHERE: Place = Place(i64::MAX);

/// Rows by digests of their ids.
///
/// Invariant: of the rows after the place of one of these each is one of these, too, since they were shown in this order.
pub(super) struct Shown {
    /// Oldest first. One that is shown again is there again.
    order: VecDeque<(u64, Place)>,
    /// How often each is among them.
    times: HashMap<u64, u32>,
    limit: usize,
    has_forgotten: bool,
    digest: RandomState,
}

impl Shown {
    pub(super) fn new(limit: usize) -> Shown {
        Shown {
            order: VecDeque::new(),
            times: HashMap::new(),
            limit,
            has_forgotten: false,
            digest: RandomState::new(),
        }
    }

    /// Notes a row; whether it is not known to have been shown.
    pub(super) fn note(&mut self, key: &Key) -> bool {
        let row = self.digest.hash_one(&key.id);
        let times = self.times.entry(row).or_default();
        *times += 1;
        let is_new = *times == 1;
        if self.order.len() >= self.limit
            && let Some((oldest, _)) = self.order.pop_front()
        {
            self.has_forgotten = true;
            if let Some(times) = self.times.get_mut(&oldest) {
                *times -= 1;
                if *times == 0 {
                    self.times.remove(&oldest);
                }
            }
        }
        self.order.push_back((row, key.place));
        is_new
    }

    /// The place after which every row was one of these, as they were when they were noted. `from_the_first` says that the
    /// first row was noted.
    pub(super) fn all_after(&self, from_the_first: bool) -> Place {
        if from_the_first && !self.has_forgotten {
            return Place(i64::MIN);
        }
        let oldest = self.order.iter().map(|(_, place)| *place).min().unwrap_or(NOWHERE);
        Place(oldest.0.saturating_sub(1))
    }

    /// Of the rows after [`Shown::all_after`] as they are now, newest first: those that are none of these, and whether one
    /// is where it was, so that no row before it is new.
    pub(super) fn find(&mut self, mut keys: Vec<Key>) -> (Vec<Key>, bool) {
        let mut now: HashMap<u64, Place> = HashMap::new();
        keys.retain(|key| {
            let row = self.digest.hash_one(&key.id);
            let is_known = self.times.contains_key(&row);
            if is_known {
                now.insert(row, key.place);
            }
            !is_known
        });
        let is_anchored = self.order.iter().any(|(row, place)| now.get(row) == Some(place));
        let mut there: Vec<(u64, Place)> = now.iter().map(|(row, place)| (*row, *place)).collect();
        there.sort_unstable_by_key(|(_, place)| *place);
        let mut gone: Vec<(u64, Place)> = Vec::new();
        for row in self.order.iter().map(|(row, _)| *row) {
            // Once, like those that are there.
            now.entry(row).or_insert_with(|| {
                gone.push((row, NOWHERE));
                NOWHERE
            });
        }
        self.order = gone.into_iter().chain(there).collect();
        self.times = self.order.iter().map(|(row, _)| (*row, 1)).collect();
        (keys, is_anchored)
    }
}
