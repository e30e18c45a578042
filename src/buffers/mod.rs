//! Memory for bodies that is used again.
//!
//! A body that is allocated anew costs a page fault for each 4 KiB of it, as the allocator gives such memory back to
//! the system as soon as it is free. A buffer from here is already there, and often still in the processor's cache. Large
//! ones lie in [pages of 2 MiB](huge).
//!
//! # Invariants
//!
//! * What lies here unused is at most what was agreed on, or, where that was agreed on, as much as is in use; and a quarter more
//!   where most of it is in large pages. Those stay as long as any part of them is in use, but there are never more of
//!   them than were needed at once, and what was agreed on. Of others, those go first that were unused longest.
//! * What was not needed between two calls of [`give_up_unneeded`](Buffers::give_up_unneeded) goes at the second one.
//! * A buffer has at most an eighth more room than was asked for, so that bodies hold what they are counted with: in large
//!   pages all of it is there. A body whose length was not known, as of one that is decompressed, has at most a quarter.
//! * A buffer comes back when the last one who holds it, or a body in it, lets go of it. Nothing that was in it becomes a
//!   part of the next body: that has what was written, and no more.

mod buffer;
mod huge;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use buffer::Buffer;
use buffer::Memory;
use huge::Chunks;

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
    /// Whether any lie in large pages.
    in_large_pages: bool,
    /// Bytes of buffers that somebody holds, of those that may be kept afterwards.
    held: AtomicUsize,
    unused: Mutex<Unused>,
}

#[derive(Debug, Default)]
struct Unused {
    chunks: Chunks,
    /// Other ones, by their capacity, of which there are some eighty (see [`rounded_up`]); the one that was unused longest
    /// first, with its number.
    others: BTreeMap<usize, VecDeque<(u64, Vec<u8>)>>,
    /// Bytes of the others.
    bytes: usize,
    /// How many of them came back so far.
    returned: u64,
    /// How many had come back when it was last looked at what is not needed.
    looked_at: u64,
}

impl Unused {
    /// One of this capacity that is there.
    fn take(&mut self, capacity: usize) -> Option<Memory> {
        let piece = self.chunks.take(capacity).map(Memory::Piece);
        piece.or_else(|| self.take_other(capacity).map(Memory::Heap))
    }

    /// Moves chunks of which nothing was taken since the last time, and others that lay here all the time.
    fn move_unneeded(&mut self, to: &mut Vec<Memory>) {
        to.extend(self.chunks.take_untaken().into_iter().map(Memory::Piece));
        while self.oldest().is_some_and(|(number, _)| number <= self.looked_at)
            && let Some(oldest) = self.take_oldest()
        {
            to.push(Memory::Heap(oldest));
        }
        self.looked_at = self.returned;
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
                self.bytes += buffer.capacity();
                let alike = self.others.entry(buffer.capacity()).or_default();
                alike.push_back((self.returned, buffer));
            }
        }
    }

    /// Moves what goes first, if there is more than `kept` and anything can go.
    fn move_surplus(&mut self, kept: usize, to: &mut Vec<Memory>) -> bool {
        // What is in chunks may be shared with what is held, and cannot go: a part is left for others all the same.
        let kept_of_others = kept.saturating_sub(self.chunks.unused()).max(most_unused(kept) - kept);
        if self.bytes > kept_of_others
            && let Some(oldest) = self.take_oldest()
        {
            to.push(Memory::Heap(oldest));
            return true;
        }
        if self.chunks.unused() > kept
            && let Some(chunk) = self.chunks.take_whole()
        {
            to.extend(chunk.into_iter().map(Memory::Piece));
            return true;
        }
        false
    }

    /// The number and the capacity of the one that was unused longest.
    fn oldest(&self) -> Option<(u64, usize)> {
        let fronts = self.others.iter();
        fronts
            .filter_map(|(capacity, alike)| Some((alike.front()?.0, *capacity)))
            .min()
    }

    fn take_oldest(&mut self) -> Option<Vec<u8>> {
        let (_, capacity) = self.oldest()?;
        let (_, buffer) = self.others.get_mut(&capacity)?.pop_front()?;
        self.bytes -= capacity;
        Some(buffer)
    }
}

impl Buffers {
    /// Buffers of which at most so many bytes lie unused.
    pub(crate) fn new(kept: usize) -> Arc<Buffers> {
        // What is not kept would begin a chunk for itself.
        Buffers::with(kept, false, kept > 0 && huge::are_given())
    }

    /// The same, but as long as more than that is held, so much may lie unused: for buffers that come back many at
    /// a time. Both together are about what was held at most.
    pub(crate) fn as_needed(kept: usize) -> Arc<Buffers> {
        Buffers::with(kept, true, huge::are_given())
    }

    fn with(kept: usize, as_many_as_held: bool, in_large_pages: bool) -> Arc<Buffers> {
        Arc::new(Buffers {
            kept,
            as_many_as_held,
            in_large_pages,
            held: AtomicUsize::new(0),
            unused: Mutex::default(),
        })
    }

    /// An empty buffer with room for at least so many bytes.
    pub(crate) fn take(self: &Arc<Buffers>, capacity: usize) -> Buffer {
        let capacity = rounded_up(capacity);
        let kept = is_kept(capacity).then(|| self.take_kept(capacity)).flatten();
        let memory = kept.unwrap_or_else(|| Memory::Heap(Vec::with_capacity(capacity)));
        Buffer::new(memory, self.clone())
    }

    /// One that is there, or of another chunk.
    fn take_kept(&self, capacity: usize) -> Option<Memory> {
        self.held.fetch_add(capacity, Ordering::Relaxed);
        let mut unused = self.lock();
        if let Some(memory) = unused.take(capacity) {
            return Some(memory);
        }
        let size = Chunks::size_of(capacity).filter(|_| self.in_large_pages)?;
        let would_be_unused = unused.chunks.unused() + size - capacity;
        if would_be_unused > self.may_keep() {
            return None;
        }
        let begun = unused.chunks.begin(size, capacity);
        drop(unused);
        // Made without the lock.
        let pieces = begun.make();
        self.lock().chunks.add(&begun, pieces).map(Memory::Piece)
    }

    fn may_keep(&self) -> usize {
        match self.as_many_as_held {
            true => self.kept.max(self.held.load(Ordering::Relaxed)),
            false => self.kept,
        }
    }

    /// Bytes of all that are in use.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Gives back to the system what was not needed since the last call. To be called every few seconds.
    pub(crate) fn give_up_unneeded(&self) {
        let mut surplus = Vec::new();
        let mut unused = self.lock();
        unused.move_unneeded(&mut surplus);
        drop(unused);
        // Given back without the lock.
        drop(surplus);
    }

    /// Takes back what nobody holds any more.
    fn give_back(&self, memory: Memory) {
        let capacity = memory.capacity();
        if !is_kept(capacity) {
            return;
        }
        self.held.fetch_sub(capacity, Ordering::Relaxed);
        let kept = self.may_keep();
        let mut surplus = Vec::new();
        let mut unused = self.lock();
        unused.put(memory);
        while unused.move_surplus(kept, &mut surplus) {}
        drop(unused);
        // Given back without the lock.
        drop(surplus);
    }

    fn lock(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most bytes that lie unused where so many may be kept: a quarter more, for those outside of large pages.
pub(crate) const fn most_unused(kept: usize) -> usize {
    kept + kept / 4
}

fn is_kept(capacity: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&capacity)
}

/// The next of eight sizes between each two powers of two, for what is kept.
fn rounded_up(capacity: usize) -> usize {
    if capacity < SMALLEST {
        return capacity;
    }
    let step = 1 << (capacity.ilog2() - 3);
    capacity.next_multiple_of(step)
}

#[cfg(test)]
mod tests;
