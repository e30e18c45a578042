//! Memory for bodies that is used again.
//!
//! A body that is allocated anew costs a page fault for each 4 KiB of it, as the allocator gives such memory back to
//! the system as soon as it is free. A buffer from here is already there, and often still in the processor's cache. Large
//! ones lie in [pages of 2 MiB](huge).
//!
//! # Invariants
//!
//! * What lies here unused is at most what was agreed on, or, where that was agreed on, as much as is in use; what was
//!   unused longest goes first. Of large buffers, which go 2 MiB at a time, as many may stay as share those with others
//!   that are in use.
//! * A buffer has at most a quarter more room than was asked for, so that bodies hold what they are counted with.
//! * A buffer comes back when the last one who holds it, or a body in it, lets go of it. Nothing that was in it becomes a
//!   part of the next body: that has what was written, and no more.

mod buffer;
mod huge;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use buffer::Buffer;
use buffer::Memory;
use huge::{CHUNK, Chunks};

/// Smaller ones the allocator has at hand itself.
const SMALLEST: usize = 4 << 10;

/// Larger ones are rare, and few of them would drive out all others.
const LARGEST: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Bytes that may lie here unused.
    kept: usize,
    /// Whether as many may as are held.
    as_many_as_held: bool,
    /// Bytes of buffers that somebody holds.
    held: AtomicUsize,
    unused: Mutex<Unused>,
}

#[derive(Debug, Default)]
struct Unused {
    chunks: Chunks,
    /// Other ones, by their capacity, of which there are a few dozen (see [`rounded_up`]); the one that was unused longest
    /// first, with its number.
    others: BTreeMap<usize, VecDeque<(u64, Vec<u8>)>>,
    /// Bytes of the others.
    bytes: usize,
    /// How many of them came back so far.
    returned: u64,
}

impl Unused {
    /// One of this capacity, as far as there is one or may be another chunk with `kept` bytes unused.
    fn take(&mut self, capacity: usize, kept: usize) -> Option<Memory> {
        if let Some(piece) = self.chunks.take(capacity) {
            return Some(Memory::Piece(piece));
        }
        if let Some(other) = self.take_other(capacity) {
            return Some(Memory::Heap(other));
        }
        let may_grow = Chunks::have(capacity) && self.bytes() + CHUNK - capacity <= kept;
        may_grow
            .then(|| self.chunks.grow(capacity))
            .flatten()
            .map(Memory::Piece)
    }

    /// The one of this capacity that was used last: it is the most likely to be in the processor's cache.
    fn take_other(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let (_, buffer) = self.others.get_mut(&capacity)?.pop_back()?;
        self.bytes -= capacity;
        Some(buffer)
    }

    fn put(&mut self, memory: Memory) {
        match memory {
            Memory::Piece(piece) => self.chunks.put(piece),
            Memory::Heap(buffer) => {
                self.returned += 1;
                self.bytes += buffer.len();
                let alike = self.others.entry(buffer.len()).or_default();
                alike.push_back((self.returned, buffer));
            }
        }
    }

    fn bytes(&self) -> usize {
        self.bytes + self.chunks.unused()
    }

    /// What goes first of what is too much, if anything can go.
    fn take_surplus(&mut self) -> Option<Vec<Memory>> {
        let chunk = self.chunks.take_whole();
        let chunk = chunk.map(|pieces| pieces.into_iter().map(Memory::Piece).collect());
        chunk.or_else(|| self.take_oldest().map(|oldest| vec![Memory::Heap(oldest)]))
    }

    /// The one that was unused longest.
    fn take_oldest(&mut self) -> Option<Vec<u8>> {
        let fronts = self.others.iter();
        let (capacity, _) = fronts
            .filter_map(|(capacity, alike)| Some((*capacity, alike.front()?.0)))
            .min_by_key(|(_, number)| *number)?;
        let (_, buffer) = self.others.get_mut(&capacity)?.pop_front()?;
        self.bytes -= capacity;
        Some(buffer)
    }
}

impl Buffers {
    /// Buffers of which at most so many bytes lie unused.
    pub(crate) fn new(kept: usize) -> Arc<Buffers> {
        Buffers::with(kept, false)
    }

    /// The same, but as long as more than that is held, so much may lie unused: for buffers that come back many at
    /// a time. Both together are about what was held at most.
    pub(crate) fn as_needed(kept: usize) -> Arc<Buffers> {
        Buffers::with(kept, true)
    }

    fn with(kept: usize, as_many_as_held: bool) -> Arc<Buffers> {
        Arc::new(Buffers {
            kept,
            as_many_as_held,
            held: AtomicUsize::new(0),
            unused: Mutex::default(),
        })
    }

    /// An empty buffer with room for at least so many bytes.
    pub(crate) fn take(self: &Arc<Buffers>, capacity: usize) -> Buffer {
        let capacity = rounded_up(capacity);
        self.held.fetch_add(capacity, Ordering::Relaxed);
        let memory = is_kept(capacity)
            .then(|| self.lock().take(capacity, self.may_keep()))
            .flatten()
            .unwrap_or_else(|| Memory::Heap(vec![0; capacity]));
        Buffer::new(memory, self.clone())
    }

    fn may_keep(&self) -> usize {
        match self.as_many_as_held {
            true => self.kept.max(self.held.load(Ordering::Relaxed)),
            false => self.kept,
        }
    }

    /// Takes back what nobody holds any more.
    fn give_back(&self, memory: Memory) {
        let capacity = memory.bytes().len();
        self.held.fetch_sub(capacity, Ordering::Relaxed);
        if !is_kept(capacity) {
            return;
        }
        let kept = self.may_keep();
        let mut surplus = Vec::new();
        let mut unused = self.lock();
        unused.put(memory);
        while unused.bytes() > kept
            && let Some(more) = unused.take_surplus()
        {
            surplus.push(more);
        }
        drop(unused);
        // Given back without the lock.
        drop(surplus);
    }

    fn lock(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_kept(capacity: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&capacity)
}

/// The next of four sizes between each two powers of two, for what is kept.
fn rounded_up(capacity: usize) -> usize {
    if capacity < SMALLEST {
        return capacity;
    }
    let step = 1 << (capacity.ilog2() - 2);
    capacity.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytes::Bytes;

    const KEPT: usize = 8 << 20;

    fn filled(buffers: &Arc<Buffers>, bytes: &[u8]) -> Bytes {
        let mut buffer = buffers.take(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer.freeze()
    }

    /// Capacities of what lies unused outside of chunks.
    fn others(buffers: &Buffers) -> Vec<usize> {
        let unused = buffers.lock();
        let others = unused.others.values().flatten();
        others.map(|(_, buffer)| buffer.len()).collect()
    }

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_its_body_any_more() {
        for length in [300_000, 20_000] {
            let buffers = Buffers::new(KEPT);
            let mut first = buffers.take(length);
            first.extend_from_slice(&vec![b'-'; length - 20]);
            first.extend_from_slice(b"of the first request");
            let place = first.as_ptr();
            let body = first.freeze();
            let part = body.slice(length - 13..length - 8);
            drop(body);
            let other = buffers.take(length);
            assert_ne!(other.as_ptr(), place, "a part of it is still held");
            assert_eq!(part, "first");
            drop(part);
            let second = buffers.take(length - 100);
            assert_eq!((second.as_ptr(), second.len()), (place, 0));
        }
    }

    #[test]
    fn only_what_was_written_becomes_a_body() {
        let buffers = Buffers::new(KEPT);
        drop(filled(&buffers, &[1; 100_000]));
        let mut buffer = buffers.take(99_000);
        assert_eq!(buffer.room()[50_000], 1, "it is the same one");
        buffer.room()[..3].copy_from_slice(b"new");
        buffer.fill(3);
        assert_eq!(buffer.freeze(), "new");
    }

    #[test]
    fn a_buffer_grows_with_what_it_has_and_a_body_keeps_no_more_than_it_needs() {
        let buffers = Buffers::new(KEPT);
        let mut buffer = buffers.take(10);
        let whole: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        whole.chunks(7_000).for_each(|part| buffer.extend_from_slice(part));
        buffer.grow(1_000_000);
        assert_eq!(buffers.held.load(Ordering::Relaxed), buffer.capacity());
        let body = buffer.freeze();
        assert_eq!(body, whole);
        assert_eq!(buffers.held.load(Ordering::Relaxed), rounded_up(200_000));
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_the_oldest_goes_first() {
        for size in [200_000, 20_000] {
            let buffers = Buffers::new(KEPT);
            let all: Vec<Buffer> = (0..2 * KEPT / size).map(|_| buffers.take(size)).collect();
            drop(all);
            let unused = buffers.lock().bytes();
            assert!(unused <= KEPT && unused > KEPT - (3 << 20), "{unused}");
            assert_eq!(buffers.held.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn chunks_that_are_shared_with_what_is_held_stay_and_the_others_go() {
        let buffers = Buffers::new(KEPT);
        let mut held: Vec<Buffer> = (0..60).map(|_| buffers.take(320 << 10)).collect();
        assert_eq!(buffers.lock().bytes(), 60 * (CHUNK - 6 * (320 << 10)) / 6);
        // One of each chunk is left.
        let mut number = 0;
        held.retain(|_| {
            number += 1;
            number % 6 == 1
        });
        assert_eq!(buffers.lock().bytes(), 10 * (CHUNK - (320 << 10)));
        // Nothing else begins a chunk meanwhile.
        let other = buffers.take(512 << 10);
        assert_eq!(buffers.lock().bytes(), 10 * (CHUNK - (320 << 10)));
        drop(other);
        held.extend((0..50).map(|_| buffers.take(320 << 10)));
        assert_eq!(
            buffers.lock().bytes(),
            10 * (CHUNK - 6 * (320 << 10)),
            "all of them are used again"
        );
        drop(held);
        assert!(buffers.lock().bytes() <= KEPT);
    }

    #[test]
    fn as_much_as_is_held_is_kept_for_the_next_ones_and_given_up_when_that_is_gone() {
        let buffers = Buffers::as_needed(2 << 20);
        let bodies = |count: usize| -> Vec<Buffer> { (0..count).map(|_| buffers.take(1 << 20)).collect() };
        let mut held = bodies(16);
        held.truncate(8);
        assert_eq!(buffers.lock().bytes(), 8 << 20, "as much as is held");
        held.extend(bodies(8));
        assert_eq!(buffers.lock().bytes(), 0, "all of them are used again");
        drop(held);
        assert_eq!(buffers.lock().bytes(), 2 << 20);
        assert_eq!(buffers.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_unused_longest_makes_room_whatever_its_size() {
        let buffers = Buffers::new(60 << 10);
        let all = [24 << 10, 5 << 10, 24 << 10, 6 << 10].map(|size| buffers.take(size));
        all.into_iter().for_each(drop);
        drop(buffers.take(28 << 10));
        assert_eq!(others(&buffers), [6 << 10, 24 << 10, 28 << 10]);
        drop(buffers.take(8 << 10));
        assert_eq!(others(&buffers), [6 << 10, 8 << 10, 28 << 10]);
    }

    #[test]
    fn buffers_have_at_most_a_quarter_too_much_and_what_is_very_small_or_very_large_is_not_kept() {
        let buffers = Buffers::new(KEPT);
        for capacity in [
            0,
            1,
            3_000,
            4 << 10,
            5_000,
            27_000,
            300_001,
            2 << 20,
            (2 << 20) + 1,
            9 << 20,
        ] {
            let buffer = buffers.take(capacity);
            assert!(
                (capacity..=capacity + capacity / 4).contains(&buffer.capacity()),
                "{capacity}"
            );
            assert_eq!(rounded_up(buffer.capacity()), buffer.capacity());
        }
        assert_eq!(others(&buffers), [4 << 10, 5 << 10, 28 << 10]);
        assert_eq!(buffers.lock().chunks.unused(), 2 * CHUNK);
    }
}
