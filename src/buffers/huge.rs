//! Memory in pages of 2 MiB, in pieces.
//!
//! With pages of 4 KiB, a request of 512 spans lies on seventy of them: the processor looks each up again in every walk over
//! the body, and the system once more for the socket and for the disk. Within a page of 2 MiB it is one.
//!
//! # Invariants
//!
//! * A chunk is cut into pieces of one size, once. It is given back whole, when nobody holds any of its pieces: a part of
//!   it would break the page.
//! * Of the pieces of a size, those of the oldest chunk are used first, so that the newest ones become free when less is
//!   needed.
//!
//! Whether there are such pages is for the system to say (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` on most);
//! without them this is memory as any other.

use std::collections::BTreeMap;

use mmap_rs::{MmapFlags, MmapMut, MmapOptions};

/// A page of this size, which is what x86-64 and aarch64 have beside those of 4 KiB.
pub(super) const CHUNK: usize = 2 << 20;

/// Smaller bodies come many at a time in all sizes, and would each begin a chunk.
const SMALLEST_PIECE: usize = 32 << 10;

/// Chunks with the pieces that nobody holds.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// By size and then by the number of their chunk.
    free: BTreeMap<(usize, u64), Vec<Piece>>,
    /// Chunks that were begun so far.
    begun: u64,
    /// Bytes of all chunks, less those of the pieces that somebody holds.
    unused: usize,
}

/// A part of a chunk. To be [put](Chunks::put) back, not dropped.
#[derive(Debug)]
pub(super) struct Piece {
    /// The last piece of a chunk has what is left over too: without it, the page would not be whole.
    memory: MmapMut,
    capacity: usize,
    chunk: u64,
}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.capacity]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.capacity]
    }
}

impl Chunks {
    /// Whether memory of this size is a piece of a chunk of which most can be used.
    pub(super) const fn have(capacity: usize) -> bool {
        capacity >= SMALLEST_PIECE && capacity <= CHUNK && CHUNK % capacity <= CHUNK / 8
    }

    pub(super) const fn unused(&self) -> usize {
        self.unused
    }

    /// A piece that is there. The one that was held last: it is the most likely to be in the processor's cache.
    pub(super) fn take(&mut self, capacity: usize) -> Option<Piece> {
        let mut alike = self.free.range_mut((capacity, 0)..=(capacity, u64::MAX));
        let (place, pieces) = alike.next()?;
        let (place, piece) = (*place, pieces.pop()?);
        if pieces.is_empty() {
            self.free.remove(&place);
        }
        self.unused -= capacity;
        Some(piece)
    }

    /// Begins another chunk. `None`: the system has no such memory.
    pub(super) fn grow(&mut self, capacity: usize) -> Option<Piece> {
        let pieces = cut(capacity, self.begun)?;
        self.free.insert((capacity, self.begun), pieces);
        self.begun += 1;
        self.unused += CHUNK;
        self.take(capacity)
    }

    pub(super) fn put(&mut self, piece: Piece) {
        self.unused += piece.capacity;
        let alike = self.free.entry((piece.capacity, piece.chunk)).or_default();
        alike.push(piece);
    }

    /// Takes the newest chunk of those that nobody holds a part of, to be dropped.
    pub(super) fn take_whole(&mut self) -> Option<Vec<Piece>> {
        let all = self.free.iter();
        let is_whole = |((capacity, _), pieces): &(&(usize, u64), &Vec<Piece>)| pieces.len() == CHUNK / capacity;
        let (&place, _) = all.filter(is_whole).max_by_key(|((_, chunk), _)| *chunk)?;
        self.unused -= CHUNK;
        self.free.remove(&place)
    }
}

fn cut(capacity: usize, chunk: u64) -> Option<Vec<Piece>> {
    let mut rest = map()?;
    let mut pieces = Vec::with_capacity(CHUNK / capacity);
    while rest.size() >= 2 * capacity {
        pieces.push(rest.split_to(capacity).ok()?);
    }
    pieces.push(rest);
    let piece = |memory| Piece {
        memory,
        capacity,
        chunk,
    };
    Some(pieces.into_iter().map(piece).collect())
}

/// Memory of a page of this size, on such a page.
fn map() -> Option<MmapMut> {
    let twice = MmapOptions::new(2 * CHUNK).ok()?;
    let mut memory = twice.with_flags(MmapFlags::TRANSPARENT_HUGE_PAGES).map_mut().ok()?;
    let before = memory.start().next_multiple_of(CHUNK) - memory.start();
    if before > 0 {
        drop(memory.split_to(before).ok()?);
    }
    drop(memory.split_off(CHUNK).ok()?);
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_chunk_are_apart_and_on_pages_and_hold_what_is_written() {
        for capacity in [32 << 10, 40 << 10, 320 << 10, 448 << 10, 1 << 20, CHUNK] {
            assert!(Chunks::have(capacity));
            let mut chunks = Chunks::default();
            let mut pieces = vec![chunks.grow(capacity).unwrap()];
            pieces.extend(std::iter::from_fn(|| chunks.take(capacity)));
            assert_eq!(pieces.len(), CHUNK / capacity);
            for (number, piece) in pieces.iter_mut().enumerate() {
                assert_eq!(piece.bytes().as_ptr().addr() % 4096, 0);
                assert!(piece.bytes().iter().all(|byte| *byte == 0));
                piece.bytes_mut().fill(number as u8 + 1);
            }
            for (number, piece) in pieces.iter().enumerate() {
                assert_eq!(piece.bytes().len(), capacity);
                assert!(piece.bytes().iter().all(|byte| *byte == number as u8 + 1));
            }
            let begin = pieces.iter().map(|piece| piece.bytes().as_ptr().addr()).min().unwrap();
            assert_eq!(begin % CHUNK, 0);
        }
    }

    #[test]
    fn a_chunk_is_given_back_when_nobody_holds_a_part_of_it_and_the_newest_first() {
        const HALF: usize = CHUNK / 2;
        let mut chunks = Chunks::default();
        let first = chunks.grow(HALF).unwrap();
        let second = chunks.take(HALF).unwrap();
        assert_eq!(chunks.unused(), 0);
        assert!(chunks.take(HALF).is_none());
        let third = chunks.grow(HALF).unwrap();
        assert_eq!(chunks.unused(), HALF);
        chunks.put(first);
        assert!(chunks.take_whole().is_none(), "of both chunks a part is held");
        chunks.put(third);
        assert_eq!(chunks.unused(), 3 * HALF);
        let again = chunks.take(HALF).unwrap();
        assert_eq!(again.chunk, 0, "the oldest chunk first");
        let dropped = chunks.take_whole().unwrap();
        assert!(dropped.iter().all(|piece| piece.chunk == 1));
        assert_eq!((dropped.len(), chunks.unused()), (2, 0));
        chunks.put(again);
        chunks.put(second);
        assert_eq!(chunks.take_whole().unwrap().len(), 2);
        assert_eq!(chunks.unused(), 0);
        assert!(chunks.take(HALF).is_none());
    }

    #[test]
    fn sizes_of_which_a_chunk_would_be_wasted_have_none() {
        let have: Vec<usize> = [16, 28, 32, 320, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560]
            .into_iter()
            .filter(|kib| Chunks::have(kib << 10))
            .collect();
        assert_eq!(have, [32, 320, 512, 640, 896, 1024, 1792, 2048]);
    }
}
