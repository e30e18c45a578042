//! Which records are done, and how far the position may therefore move.
//!
//! Requests are answered in any order; a position can only say "everything before this". Invariants:
//! * The position never passes a record of which any piece is still outstanding.
//! * It never goes back, and with nothing outstanding it stands behind the last record that was handed out.

use std::collections::VecDeque;

#[derive(Debug)]
struct Slot {
    sequence: u64,
    /// Pieces that are neither delivered, nor kept as refused, nor given up.
    outstanding: usize,
}

/// The records between the position and the last one that was read.
#[derive(Debug)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
    /// The sequence behind the last record that was read.
    end: u64,
}

impl Window {
    pub(super) fn new(next: u64) -> Window {
        Window {
            slots: VecDeque::new(),
            end: next,
        }
    }

    /// A record that was read and travels in so many pieces. Records come in ascending order.
    pub(super) fn add(&mut self, sequence: u64, pieces: usize) {
        debug_assert!(sequence >= self.end, "records are read in order");
        self.end = sequence + 1;
        if pieces > 0 {
            self.slots.push_back(Slot {
                sequence,
                outstanding: pieces,
            });
        }
    }

    /// Everything before `next` was read (sequences have gaps).
    pub(super) fn read_up_to(&mut self, next: u64) {
        self.end = self.end.max(next);
    }

    /// A piece of `sequence` was cut into `pieces`.
    pub(super) fn divided(&mut self, sequence: u64, pieces: usize) {
        if let Some(slot) = self.slot(sequence) {
            slot.outstanding += pieces.saturating_sub(1);
        }
    }

    /// A piece of `sequence` is done.
    pub(super) fn done(&mut self, sequence: u64) {
        if let Some(slot) = self.slot(sequence) {
            debug_assert!(slot.outstanding > 0, "a piece is done once");
            slot.outstanding = slot.outstanding.saturating_sub(1);
        }
        while self.slots.front().is_some_and(|slot| slot.outstanding == 0) {
            self.slots.pop_front();
        }
    }

    fn slot(&mut self, sequence: u64) -> Option<&mut Slot> {
        let index = self.slots.binary_search_by_key(&sequence, |slot| slot.sequence).ok()?;
        self.slots.get_mut(index)
    }

    /// The first record that is not done.
    pub(super) fn position(&self) -> u64 {
        self.slots.front().map_or(self.end, |slot| slot.sequence)
    }

    /// How many records the window spans, done ones between outstanding ones included.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_stops_at_the_first_record_that_is_not_done() {
        let mut window = Window::new(10);
        for sequence in [10, 11, 14] {
            window.add(sequence, 1);
        }
        window.read_up_to(17);
        window.done(11);
        assert_eq!(window.position(), 10);
        window.done(10);
        assert_eq!(window.position(), 14);
        window.done(14);
        assert_eq!((window.position(), window.len()), (17, 0));
    }

    #[test]
    fn a_record_in_pieces_is_done_with_its_last_piece() {
        let mut window = Window::new(0);
        window.add(0, 2);
        window.add(1, 0);
        window.divided(0, 3);
        for _ in 0..3 {
            window.done(0);
            assert_eq!(window.position(), 0);
        }
        window.done(0);
        assert_eq!(window.position(), 2);
    }

    #[test]
    fn whatever_the_order_of_answers_the_position_never_passes_what_is_outstanding() {
        for seed in 0..100 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut window = Window::new(0);
            let mut outstanding = Vec::new();
            let mut next = 0;
            let mut last = 0;
            for _ in 0..200 {
                if random.bool() || outstanding.is_empty() {
                    next += random.u64(0..3);
                    let pieces = random.usize(1..4);
                    window.add(next, pieces);
                    outstanding.extend(std::iter::repeat_n(next, pieces));
                    next += 1;
                } else {
                    let sequence = outstanding.swap_remove(random.usize(..outstanding.len()));
                    window.done(sequence);
                }
                let expected = outstanding.iter().min().copied().unwrap_or(next);
                assert_eq!(window.position(), expected, "seed {seed}");
                assert!(window.position() >= last, "seed {seed}");
                last = window.position();
            }
        }
    }
}
