//! Memory in pages of 2 MiB, in pieces.
//!
//! With pages of 4 KiB, a request of 512 spans lies on seventy of them: the processor looks each up again in every walk over
//! the body, and the system once more for the socket and for the disk. Within a page of 2 MiB it is one.
//!
//! # Invariants
//!
//! * A chunk is such pages, as many as pieces of one size nearly fill, and is cut into them once. It is given back when
//!   nobody holds any of its pieces, never in part: the rest would no longer be such pages.
//! * Of the pieces of a size, those of the oldest chunk are used first, so that the newest ones become free when less is
//!   needed.
//! * There are only chunks where the system gives such pages to this process on request: elsewhere they would be 2 MiB for
//!   nothing. See [`are_given`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use mmap_rs::{MmapFlags, MmapMut, MmapOptions};

/// A page of this size, which is what x86-64 and aarch64 have beside those of 4 KiB.
pub(super) const PAGE: usize = 2 << 20;

/// Pages of a chunk at most, which is what pieces of 1.5 MiB need.
const MOST_PAGES: usize = 3;

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
    /// Chunks of which a piece was taken since [`take_untaken`](Self::take_untaken).
    taken: BTreeSet<u64>,
}

/// A chunk that is about to be there.
#[derive(Debug)]
pub(super) struct Begun {
    size: usize,
    capacity: usize,
    chunk: u64,
}

/// A part of a chunk. To be [put](Chunks::put) back, not dropped.
#[derive(Debug)]
pub(super) struct Piece {
    /// The last piece of a chunk has what is left over too: without it, the chunk would not be whole.
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
    /// How large a chunk of pieces of this size is: as small as can be if an eighth of it is wasted at most.
    pub(super) fn size_of(capacity: usize) -> Option<usize> {
        let sizes = (1..=MOST_PAGES).map(|pages| pages * PAGE);
        let suits = |size: &usize| capacity <= *size && size % capacity <= size / 8;
        sizes.filter(|_| capacity >= SMALLEST_PIECE).find(suits)
    }

    pub(super) const fn unused(&self) -> usize {
        self.unused
    }

    /// A piece that is there; of the oldest chunk, the one that was held last.
    pub(super) fn take(&mut self, capacity: usize) -> Option<Piece> {
        let mut alike = self.free.range_mut((capacity, 0)..=(capacity, u64::MAX));
        let (place, pieces) = alike.next()?;
        let (place, piece) = (*place, pieces.pop()?);
        if pieces.is_empty() {
            self.free.remove(&place);
        }
        self.unused -= capacity;
        self.taken.insert(piece.chunk);
        Some(piece)
    }

    /// Begins another chunk, of the [size](Self::size_of) for such pieces, one of which is going to be held. It has to be
    /// [added](Self::add).
    pub(super) fn begin(&mut self, size: usize, capacity: usize) -> Begun {
        self.begun += 1;
        self.unused += size - capacity;
        self.taken.insert(self.begun);
        Begun {
            size,
            capacity,
            chunk: self.begun,
        }
    }

    /// The pieces of a chunk that was begun. `None`: the system has no such memory.
    pub(super) fn add(&mut self, begun: &Begun, pieces: Option<Vec<Piece>>) -> Option<Piece> {
        let mut pieces = pieces.unwrap_or_default();
        let piece = pieces.pop();
        if piece.is_none() {
            self.unused -= begun.size - begun.capacity;
        } else if !pieces.is_empty() {
            self.free.insert((begun.capacity, begun.chunk), pieces);
        }
        piece
    }

    pub(super) fn put(&mut self, piece: Piece) {
        self.unused += piece.capacity;
        let alike = self.free.entry((piece.capacity, piece.chunk)).or_default();
        alike.push(piece);
    }

    /// Takes the newest chunk of those that nobody holds a part of, to be dropped.
    pub(super) fn take_whole(&mut self) -> Option<Vec<Piece>> {
        let newest = self.whole().max_by_key(|(_, chunk)| *chunk)?;
        self.remove(newest)
    }

    /// Takes the chunks of which nobody holds a part, nor has taken one since the last call, to be dropped.
    pub(super) fn take_untaken(&mut self) -> Vec<Piece> {
        let taken = std::mem::take(&mut self.taken);
        let untaken: Vec<_> = self.whole().filter(|(_, chunk)| !taken.contains(chunk)).collect();
        let chunks = untaken.into_iter().filter_map(|place| self.remove(place));
        chunks.flatten().collect()
    }

    /// Places of the chunks that nobody holds a part of.
    fn whole(&self) -> impl Iterator<Item = (usize, u64)> {
        let is_whole = |&(&(capacity, _), pieces): &(&(usize, u64), &Vec<Piece>)| {
            Self::size_of(capacity).is_some_and(|size| pieces.len() == size / capacity)
        };
        self.free.iter().filter(is_whole).map(|(place, _)| *place)
    }

    fn remove(&mut self, place: (usize, u64)) -> Option<Vec<Piece>> {
        let mut pieces = self.free.remove(&place)?;
        self.unused -= Self::size_of(place.0)?;
        // One end after the other, so that no hole is in between.
        pieces.sort_unstable_by_key(|piece| piece.memory.start());
        Some(pieces)
    }
}

impl Begun {
    /// Makes the chunk, without anybody's lock.
    pub(super) fn make(&self) -> Option<Vec<Piece>> {
        let mut rest = map(self.size)?;
        let mut pieces = Vec::with_capacity(self.size / self.capacity);
        while rest.size() >= 2 * self.capacity {
            pieces.push(rest.split_to(self.capacity).ok()?);
        }
        pieces.push(rest);
        let piece = |memory| Piece {
            memory,
            capacity: self.capacity,
            chunk: self.chunk,
        };
        Some(pieces.into_iter().map(piece).collect())
    }
}

/// So much memory, a multiple of [`PAGE`], on such pages if there are any.
fn map(size: usize) -> Option<MmapMut> {
    let mut flags = MmapFlags::empty();
    // Without such pages in the system the request would fail, and mmap-rs not give back what it has mapped.
    flags.set(MmapFlags::TRANSPARENT_HUGE_PAGES, are_given());
    // One more, so that it can begin on a page.
    let more = MmapOptions::new(size + PAGE).ok()?;
    let mut memory = more.with_flags(flags).map_mut().ok()?;
    let before = memory.start().next_multiple_of(PAGE) - memory.start();
    if before > 0 {
        drop(memory.split_to(before).ok()?);
    }
    drop(memory.split_off(size).ok()?);
    Some(memory)
}

/// Whether the system gives pages of 2 MiB to this process if it asks for them: not where they are off, or of another size,
/// nor where they are kept from the process because the system would give them to all of its memory.
pub(super) fn are_given() -> bool {
    static ARE_GIVEN: LazyLock<bool> = LazyLock::new(|| {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        say_so(
            &read("/sys/kernel/mm/transparent_hugepage/enabled"),
            &read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"),
            &read("/proc/self/status"),
        )
    });
    *ARE_GIVEN
}

/// `modes`, of which the one in force is in brackets, and `size` are of the system; `status` of the process
/// (proc_pid_status(5)).
fn say_so(modes: &str, size: &str, status: &str) -> bool {
    let is_kept_from_us = status.lines().any(|line| line.replace('\t', " ") == "THP_enabled: 0");
    let is_on = modes.contains("[madvise]") || modes.contains("[always]");
    is_on && size.trim() == "2097152" && !is_kept_from_us
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grow(chunks: &mut Chunks, capacity: usize) -> Piece {
        let begun = chunks.begin(Chunks::size_of(capacity).unwrap(), capacity);
        let pieces = begun.make();
        chunks.add(&begun, pieces).unwrap()
    }

    #[test]
    fn pieces_of_a_chunk_are_apart_and_on_pages_and_hold_what_is_written() {
        for (capacity, size) in [
            (320 << 10, PAGE),
            (448 << 10, PAGE),
            (512 << 10, PAGE),
            (768 << 10, 2 * PAGE),
            (1 << 20, PAGE),
            (1280 << 10, 2 * PAGE),
            (1152 << 10, 3 * PAGE),
            (1536 << 10, 3 * PAGE),
            (PAGE, PAGE),
        ] {
            let mut chunks = Chunks::default();
            let mut pieces = vec![grow(&mut chunks, capacity)];
            pieces.extend(std::iter::from_fn(|| chunks.take(capacity)));
            assert_eq!(pieces.len(), size / capacity);
            assert_eq!(chunks.unused(), size % capacity);
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
            assert_eq!(begin % PAGE, 0);
        }
    }

    #[test]
    fn a_chunk_is_given_back_when_nobody_holds_a_part_of_it_and_the_newest_first() {
        const HALF: usize = PAGE / 2;
        let mut chunks = Chunks::default();
        let first = grow(&mut chunks, HALF);
        let second = chunks.take(HALF).unwrap();
        assert_eq!(chunks.unused(), 0);
        assert!(chunks.take(HALF).is_none());
        let third = grow(&mut chunks, HALF);
        assert_eq!(chunks.unused(), HALF);
        let oldest = first.chunk;
        chunks.put(first);
        assert!(chunks.take_whole().is_none(), "of both chunks a part is held");
        chunks.put(third);
        assert_eq!(chunks.unused(), 3 * HALF);
        let again = chunks.take(HALF).unwrap();
        assert_eq!(again.chunk, oldest, "the oldest chunk first");
        let dropped = chunks.take_whole().unwrap();
        assert!(dropped.iter().all(|piece| piece.chunk != oldest));
        assert_eq!((dropped.len(), chunks.unused()), (2, 0));
        chunks.put(again);
        assert!(chunks.take_whole().is_none());
        chunks.put(second);
        assert_eq!(chunks.take_whole().unwrap().len(), 2);
        assert_eq!(chunks.unused(), 0);
        assert!(chunks.take(HALF).is_none());
    }

    #[test]
    fn a_chunk_that_could_not_be_made_is_as_if_it_had_not_been_begun() {
        let mut chunks = Chunks::default();
        let begun = chunks.begin(PAGE, PAGE / 4);
        assert_eq!(chunks.unused(), 3 * PAGE / 4);
        assert!(chunks.add(&begun, None).is_none());
        assert_eq!(chunks.unused(), 0);
        assert!(chunks.take(PAGE / 4).is_none() && chunks.take_whole().is_none());
    }

    #[test]
    fn all_sizes_of_bodies_but_one_have_a_chunk_of_which_most_can_be_used() {
        let sizes = (SMALLEST_PIECE..=PAGE).step_by(4 << 10).map(super::super::rounded_up);
        let mut without: Vec<usize> = sizes.filter(|capacity| Chunks::size_of(*capacity).is_none()).collect();
        without.dedup();
        assert_eq!(without, [1664 << 10], "of which a chunk would have ten mebibytes");
        assert_eq!(Chunks::size_of(28 << 10), None);
    }

    #[test]
    fn large_pages_are_asked_for_where_the_system_gives_them_on_request() {
        let process = "Name:\tspanledger\nTHP_enabled:\t1\nThreads:\t1\n";
        assert!(say_so("always [madvise] never\n", "2097152\n", process));
        assert!(say_so("[always] madvise never\n", "2097152\n", process));
        assert!(say_so(
            "always [madvise] never\n",
            "2097152\n",
            "of a kernel before 5.0"
        ));
        assert!(!say_so("always madvise [never]\n", "2097152\n", process));
        assert!(!say_so(
            "[always] madvise never\n",
            "2097152\n",
            &process.replace("enabled:\t1", "enabled:\t0")
        ));
        // Pages of 64 KiB have large ones of 512 MiB.
        assert!(!say_so("always [madvise] never\n", "536870912\n", process));
        assert!(!say_so("", "", process), "a system without");
    }
}
