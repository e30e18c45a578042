//! The ids of events.

use std::fmt;

use super::following::{Next, Order, Place};

/// Where a client goes on. Where places are used again, it says which row was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) place: Place,
    row: Option<u32>,
}

impl Mark {
    pub(super) fn of(order: Order, next: &Next) -> Mark {
        Mark {
            place: next.resume,
            row: (order == Order::Committed).then(|| digest(&next.id)),
        }
    }

    /// As it is sent, or the place alone.
    pub(super) fn parse(text: &str) -> Option<Mark> {
        let (place, row) = match text.split_once('-') {
            Some((place, row)) => (place, Some(u32::from_str_radix(row, 16).ok()?)),
            None => (text, None),
        };
        let place = Place(place.parse().ok().filter(|place| *place >= 0)?);
        Some(Mark { place, row })
    }

    /// Whether the row of this id may be the one.
    pub(super) fn is_of(self, id: &str) -> bool {
        self.row.is_none_or(|row| row == digest(id))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.place.0)?;
        self.row.map_or(Ok(()), |row| write!(out, "-{row:08x}"))
    }
}

/// FNV-1a: the same in every process, for whoever comes back to another one.
fn digest(id: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    id.bytes().fold(0x811c_9dc5, step)
}
