//! Where the waiting spans of a trace, or of a node, are in their table: an open-addressed hash table of eight bytes an entry.
//!
//! An entry holds no key, but 32 bits of its hash and the low 32 bits of a position. Whoever finds it looks there, and
//! compares. That is also how spans are forgotten: an entry of a position that nothing waits at any more costs a look in
//! vain. Entries before the oldest position are dropped when the table is full, all at once, in place.
//!
//! Linear probing, from a slot that grows with the hash, at a load of at most three quarters (Knuth, The Art of Computer
//! Programming, volume 3, 6.4, algorithm L). A general hash table would take twice the memory: with as many removed entries
//! as these it grows, and while it grows it is there twice.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::ledger::store::Keys;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WaitingIndex {
    /// [`EMPTY`], or an [`Entry`].
    slots: Vec<u64>,
    /// How many are not empty.
    used: usize,
    /// Seeded: traces come from outside.
    hasher: RandomState,
    /// All positions up to this one were added.
    newest: i64,
    /// The same when the transaction began.
    committed: i64,
    /// Nothing before this position is asked for.
    oldest: i64,
}

const EMPTY: u64 = 0;

/// Slots of the smallest table.
const FEWEST: usize = 1 << 10;

/// The hash, which is never 0, above the low half of the position.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u32,
    position: u32,
}

impl Entry {
    fn of(slot: u64) -> Entry {
        Entry {
            hash: (slot >> 32) as u32,
            position: slot as u32,
        }
    }

    fn slot(self) -> u64 {
        u64::from(self.hash) << 32 | u64::from(self.position)
    }
}

impl WaitingIndex {
    /// A span at `position`, which is behind all others. Fewer than 2³² may wait at once.
    pub(super) fn add(&mut self, position: i64, trace: &[u8; 16], node: Option<i64>) {
        let keys = [Some(self.hash(trace)), node.map(|node| self.hash(node))];
        self.newest = position;
        for hash in keys.into_iter().flatten() {
            if (self.used + 1) * 4 > self.slots.len() * 3 {
                self.make_room();
            }
            let position = position as u32;
            self.put(Entry { hash, position });
            self.used += 1;
        }
    }

    /// Where spans with one of the keys may be, the latest first.
    pub(super) fn find(&self, keys: &Keys) -> Vec<i64> {
        let mut positions = Vec::new();
        if self.slots.is_empty() {
            return positions;
        }
        let traces = keys.traces.iter().map(|trace| self.hash(trace));
        let nodes = keys.nodes.iter().map(|node| self.hash(*node));
        for hash in traces.chain(nodes) {
            let entries = self.probe(hash).take_while(|slot| self.slots[*slot] != EMPTY);
            let found = entries
                .map(|slot| Entry::of(self.slots[slot]))
                .filter(|entry| entry.hash == hash);
            let found = found.map(|entry| self.newest - self.age(entry));
            positions.extend(found.filter(|position| *position >= self.oldest));
        }
        positions.sort_unstable_by(|one, other| other.cmp(one));
        positions.dedup();
        positions
    }

    /// Nothing else will be at any position up to this one.
    pub(super) fn pass(&mut self, position: i64) {
        self.newest = self.newest.max(position);
    }

    /// The last position that it has.
    pub(super) fn newest(&self) -> i64 {
        self.newest
    }

    /// A transaction begins: it has what is committed.
    pub(super) fn commit(&mut self) {
        self.committed = self.newest;
    }

    /// What was added since is to be added again. That it is here all the same does no harm.
    pub(super) fn rolled_back(&mut self) {
        self.newest = self.committed;
    }

    /// Nothing waits before this position.
    pub(super) fn forget_before(&mut self, oldest: i64) {
        self.oldest = oldest;
    }

    /// Whether it has far more than the keys of so many spans, which it drops only when it is made anew.
    pub(super) fn is_stale(&self, waiting: usize) -> bool {
        let span = usize::try_from(self.newest.saturating_sub(self.oldest)).unwrap_or_default();
        span > waiting.saturating_mul(2).saturating_add(FEWEST * 64) && self.used > waiting.saturating_mul(4)
    }

    fn hash(&self, key: impl std::hash::Hash) -> u32 {
        (self.hasher.hash_one(key) as u32).max(1)
    }

    /// How many positions ago.
    fn age(&self, entry: Entry) -> i64 {
        i64::from((self.newest as u32).wrapping_sub(entry.position))
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    /// All slots, from the one where the hash belongs.
    fn probe(&self, hash: u32) -> impl Iterator<Item = usize> + use<> {
        let (home, all) = (self.home(hash), self.slots.len());
        (home..all).chain(0..home)
    }

    /// Into the first empty slot; there is one.
    fn put(&mut self, entry: Entry) {
        let slot = self.probe(entry.hash).find(|slot| self.slots[*slot] == EMPTY);
        if let Some(slot) = slot {
            self.slots[slot] = entry.slot();
        }
    }

    /// Drops the entries of what no longer waits; if these are few, there are half as many slots more.
    fn make_room(&mut self) {
        self.drop_old();
        if self.used * 3 < self.slots.len() * 2 {
            return;
        }
        let more = FEWEST.max(self.slots.len() / 2 * 3);
        let slots = std::mem::replace(&mut self.slots, vec![EMPTY; more]);
        for slot in slots.into_iter().filter(|slot| *slot != EMPTY) {
            self.put(Entry::of(slot));
        }
    }

    /// In the order of the slots, from behind an empty one, each entry goes to the first empty slot from its home: no
    /// entry before it is moved again, so that none is passed over by who looks for it.
    fn drop_old(&mut self) {
        let Some(empty) = self.slots.iter().position(|slot| *slot == EMPTY) else {
            return;
        };
        let all = self.slots.len();
        for slot in (empty..all).chain(0..empty) {
            let old = std::mem::replace(&mut self.slots[slot], EMPTY);
            if old == EMPTY {
                continue;
            }
            let entry = Entry::of(old);
            if self.newest - self.age(entry) >= self.oldest {
                self.put(entry);
            } else {
                self.used -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn trace(number: u64) -> [u8; 16] {
        u128::from(number).to_be_bytes()
    }

    /// What is added, rolled back and forgotten by chance, beside a map that does the same.
    #[test]
    fn every_span_that_waits_is_found_by_each_of_its_keys() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut index = WaitingIndex::default();
            let mut model: BTreeMap<i64, (u64, Option<i64>)> = BTreeMap::new();
            // Positions go over the end of 32 bits.
            let mut next = (1_i64 << 32) - random.i64(1..6_000);
            let (mut committed, mut most) = (next - 1, 0);
            for _ in 0..200 {
                for _ in 0..random.usize(..200) {
                    let (key, node) = (random.u64(..500), random.bool().then(|| random.i64(..500)));
                    index.add(next, &trace(key), node);
                    model.insert(next, (key, node));
                    next += 1;
                }
                if random.u8(..8) == 0 {
                    index.rolled_back();
                    model.retain(|position, _| *position <= committed);
                    next = committed + 1;
                } else {
                    index.commit();
                    committed = next - 1;
                }
                most = most.max(model.len());
                if random.bool() {
                    let oldest = next - random.i64(..3_000);
                    model.retain(|position, _| *position >= oldest);
                    index.forget_before(model.keys().next().copied().unwrap_or(next));
                }
                let (key, node) = (random.u64(..500), random.i64(..500));
                let found = index.find(&Keys {
                    traces: vec![trace(key)],
                    nodes: vec![node],
                });
                assert!(found.is_sorted_by(|one, other| one > other), "seed {seed}");
                let has_key = |(_, keys): &(&i64, &(u64, Option<i64>))| keys.0 == key || keys.1 == Some(node);
                for (position, _) in model.iter().filter(has_key) {
                    assert!(found.contains(position), "seed {seed}: {position}");
                }
            }
            assert!(index.slots.len() <= FEWEST.max(most * 2 * 3), "seed {seed}");
        }
    }

    #[test]
    fn what_others_forgot_behind_something_that_stays_makes_it_stale() {
        let mut index = WaitingIndex::default();
        for position in 0..200_000 {
            index.add(position, &trace(position.cast_unsigned()), None);
        }
        index.forget_before(0);
        assert!(!index.is_stale(200_000));
        assert!(index.is_stale(10));
        assert!(!WaitingIndex::default().is_stale(0));
    }
}
