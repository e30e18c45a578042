//! Memory for bodies that is used again.
//!
//! A body that is allocated anew costs a page fault for each 4 KiB of it, as the allocator gives such memory back to
//! the system as soon as it is free. A buffer from here is already there, and often still in the processor's cache.
//!
//! # Invariants
//!
//! * What lies here unused is at most what was agreed on, or, where that was agreed on, as much as is in use; what was
//!   unused longest goes first.
//! * A buffer has at most a quarter more room than was asked for, so that bodies hold what they are counted with.
//! * A buffer comes back when the last one who holds the body lets go of it. Nothing that was in it becomes a part of the
//!   next body: that has what was written, and no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Smaller ones the allocator has at hand itself.
const SMALLEST: usize = 4 << 10;

/// Larger ones are rare, and few of them would drive out all others.
const LARGEST: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Bytes that may lie here unused.
    kept: usize,
    /// Whether as many may as bodies hold.
    as_many_as_held: bool,
    /// Bytes of buffers that bodies hold.
    held: AtomicUsize,
    unused: Mutex<Unused>,
}

#[derive(Debug, Default)]
struct Unused {
    /// By their capacity, of which there are a few dozen (see [`rounded_up`]); the one that was unused longest first,
    /// with its number.
    buffers: BTreeMap<usize, VecDeque<(u64, Vec<u8>)>>,
    bytes: usize,
    /// How many came back so far.
    returned: u64,
}

impl Unused {
    /// The one of this capacity that was used last: it is the most likely to be in the processor's cache.
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let (_, buffer) = self.buffers.get_mut(&capacity)?.pop_back()?;
        self.bytes -= capacity;
        Some(buffer)
    }

    fn put(&mut self, buffer: Vec<u8>) {
        self.returned += 1;
        self.bytes += buffer.capacity();
        let alike = self.buffers.entry(buffer.capacity()).or_default();
        alike.push_back((self.returned, buffer));
    }

    /// The one that was unused longest.
    fn take_oldest(&mut self) -> Option<Vec<u8>> {
        let fronts = self.buffers.iter();
        let (capacity, _) = fronts
            .filter_map(|(capacity, alike)| Some((*capacity, alike.front()?.0)))
            .min_by_key(|(_, number)| *number)?;
        let (_, buffer) = self.buffers.get_mut(&capacity)?.pop_front()?;
        self.bytes -= capacity;
        Some(buffer)
    }
}

/// The body of a request, which gives its buffer back.
struct Body {
    buffer: Vec<u8>,
    /// So much of it is the body.
    length: usize,
    buffers: Arc<Buffers>,
}

impl Buffers {
    /// Buffers of which at most so many bytes lie unused.
    pub(crate) fn new(kept: usize) -> Arc<Buffers> {
        Buffers::with(kept, false)
    }

    /// The same, but as long as bodies hold more than that, so much may lie unused: for bodies that come back many at
    /// a time. Both together are about what bodies held at most.
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
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.any(capacity);
        buffer.clear();
        buffer
    }

    /// A buffer of at least so many bytes, whatever they are: to be written over.
    pub(crate) fn take_filled(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.any(length);
        if buffer.len() < length {
            let capacity = buffer.capacity();
            buffer.resize(capacity, 0);
        }
        buffer
    }

    fn any(&self, capacity: usize) -> Vec<u8> {
        let capacity = rounded_up(capacity);
        if is_kept(capacity)
            && let Some(buffer) = self.lock().take(capacity)
        {
            return buffer;
        }
        Vec::with_capacity(capacity)
    }

    /// A body of the first so many bytes, whose buffer comes back when nobody holds it any more.
    pub(crate) fn freeze(self: &Arc<Buffers>, mut buffer: Vec<u8>, length: usize) -> Bytes {
        if is_kept(buffer.capacity()) {
            self.held.fetch_add(buffer.capacity(), Ordering::Relaxed);
            Bytes::from_owner(Body {
                length: length.min(buffer.len()),
                buffer,
                buffers: self.clone(),
            })
        } else {
            buffer.truncate(length);
            Bytes::from(buffer)
        }
    }

    /// Takes a buffer back.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        // One that grew by itself is of no size that is asked for.
        if !is_kept(capacity) || rounded_up(capacity) != capacity {
            return;
        }
        let held = if self.as_many_as_held {
            self.held.load(Ordering::Relaxed)
        } else {
            0
        };
        let kept = self.kept.max(held);
        let mut surplus = Vec::new();
        let mut unused = self.lock();
        unused.put(buffer);
        while unused.bytes > kept
            && let Some(oldest) = unused.take_oldest()
        {
            surplus.push(oldest);
        }
        drop(unused);
        // Freed without the lock.
        drop(surplus);
    }

    fn lock(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.buffers.held.fetch_sub(self.buffer.capacity(), Ordering::Relaxed);
        self.buffers.give_back(std::mem::take(&mut self.buffer));
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

    const KEPT: usize = 8 << 20;

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_its_body_any_more() {
        let buffers = Buffers::new(KEPT);
        let mut first = buffers.take(300_000);
        first.extend_from_slice(b"of the first request");
        let place = first.as_ptr();
        let length = first.len();
        let body = buffers.freeze(first, length);
        let part = body.slice(7..12);
        drop(body);
        let other = buffers.take(300_000);
        assert_ne!(other.as_ptr(), place, "a part of it is still held");
        assert_eq!(part, "first");
        drop(part);
        let second = buffers.take(290_000);
        assert_eq!((second.as_ptr(), second.len()), (place, 0));
    }

    #[test]
    fn of_a_buffer_that_is_written_over_only_what_was_written_becomes_a_body() {
        let buffers = Buffers::new(KEPT);
        let mut buffer = buffers.take_filled(100_000);
        assert!(buffer.len() >= 100_000);
        buffer[..100_000].fill(1);
        drop(buffers.freeze(buffer, 100_000));
        let mut buffer = buffers.take_filled(99_000);
        assert_eq!(buffer[50_000], 1, "it is the same one");
        buffer[..3].copy_from_slice(b"new");
        assert_eq!(buffers.freeze(buffer, 3), "new");
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_the_oldest_goes_first() {
        let buffers = Buffers::new(KEPT);
        let all: Vec<Vec<u8>> = (0..100).map(|_| buffers.take(200_000)).collect();
        let last = all.last().unwrap().as_ptr();
        all.into_iter().for_each(|buffer| buffers.give_back(buffer));
        let unused = buffers.lock();
        assert!(
            unused.bytes <= KEPT && unused.bytes > KEPT - 250_000,
            "{}",
            unused.bytes
        );
        assert_eq!(unused.bytes, unused.capacities().iter().sum::<usize>());
        drop(unused);
        let again = buffers.take(200_000);
        assert_eq!(again.as_ptr(), last);
    }

    #[test]
    fn as_much_as_bodies_hold_is_kept_for_the_next_ones_and_given_up_when_they_are_gone() {
        let buffers = Buffers::as_needed(1 << 20);
        let bodies = |count: usize| -> Vec<Bytes> {
            let body = |_| buffers.freeze(buffers.take(1 << 20), 0);
            (0..count).map(body).collect()
        };
        let mut held = bodies(16);
        held.truncate(8);
        assert_eq!(buffers.lock().bytes, 8 << 20, "as much as is held");
        held.extend(bodies(8));
        assert_eq!(buffers.lock().bytes, 0, "all of them are used again");
        drop(held);
        assert_eq!(buffers.lock().bytes, 1 << 20);
        assert_eq!(buffers.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_unused_longest_makes_room_whatever_its_size() {
        let buffers = Buffers::new(100 << 10);
        let sizes = [40 << 10, 5 << 10, 40 << 10, 6 << 10];
        let all: Vec<Vec<u8>> = sizes.iter().map(|size| buffers.take(*size)).collect();
        all.into_iter().for_each(|buffer| buffers.give_back(buffer));
        buffers.give_back(buffers.take(48 << 10));
        assert_eq!(buffers.lock().capacities(), [5 << 10, 6 << 10, 40 << 10, 48 << 10]);
        buffers.give_back(buffers.take(8 << 10));
        assert_eq!(buffers.lock().capacities(), [6 << 10, 8 << 10, 48 << 10]);
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
            33_000,
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
            drop(buffers.freeze(buffer, 0));
        }
        assert_eq!(
            buffers.lock().capacities(),
            [4 << 10, 5 << 10, 40 << 10, 320 << 10, 2 << 20]
        );
    }

    impl Unused {
        fn capacities(&self) -> Vec<usize> {
            let buffers = self.buffers.values().flatten();
            buffers.map(|(_, buffer)| buffer.capacity()).collect()
        }
    }
}
