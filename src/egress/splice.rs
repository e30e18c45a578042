//! Changes to some bytes of protobuf, and the bytes with all of them.
//!
//! # Invariants
//!
//! * Edits are in the order of the body and do not overlap. A message with an edit in it has one for its own length,
//!   which stands before it.

use std::ops::Range;

use bytes::Bytes;

use crate::otlp::wire::{put_varint, varint_len};

/// What stands instead of some bytes.
#[derive(Debug, Clone)]
enum New {
    /// So much of the scratch buffer.
    Scratch(Range<usize>),
    /// This length, as a varint.
    Length(usize),
}

#[derive(Debug)]
struct Edit {
    /// Which bytes of the body.
    at: Range<usize>,
    new: New,
}

/// The changes to one request.
#[derive(Debug, Default)]
pub(super) struct Edits {
    edits: Vec<Edit>,
    scratch: Vec<u8>,
    /// By how much the result is longer than the body.
    growth: isize,
}

/// A message that is being walked through.
pub(super) struct Open {
    /// The edit of its length.
    slot: usize,
    /// What [`Edits::growth`] was before it.
    growth: isize,
    length: usize,
    length_at: Range<usize>,
}

impl Edits {
    pub(super) fn begin(&mut self) {
        self.edits.clear();
        self.scratch.clear();
        self.growth = 0;
    }

    pub(super) fn enter(&mut self, length_at: Range<usize>, length: usize) -> Open {
        let open = Open {
            slot: self.edits.len(),
            growth: self.growth,
            length,
            length_at: length_at.clone(),
        };
        self.edits.push(Edit {
            at: length_at,
            new: New::Length(length),
        });
        open
    }

    pub(super) fn leave(&mut self, open: Open) {
        if self.edits.len() == open.slot + 1 {
            self.edits.pop();
            return;
        }
        let length = open.length.saturating_add_signed(self.growth - open.growth);
        self.growth += varint_len(length as u64) as isize - open.length_at.len() as isize;
        if let Some(edit) = self.edits.get_mut(open.slot) {
            edit.new = New::Length(length);
        }
    }

    /// The message goes as a whole, and with it all edits in it.
    pub(super) fn collapse(&mut self, open: &Open, whole: Range<usize>) {
        self.edits.truncate(open.slot);
        self.growth = open.growth;
        self.remove(whole);
    }

    pub(super) fn remove(&mut self, at: Range<usize>) {
        self.growth -= at.len() as isize;
        // Spans that go are often neighbours.
        if let Some(last) = self.edits.last_mut()
            && let New::Scratch(nothing) = &last.new
            && nothing.is_empty()
            && last.at.end == at.start
        {
            last.at.end = at.end;
            return;
        }
        let new = New::Scratch(0..0);
        self.edits.push(Edit { at, new });
    }

    pub(super) fn replace(&mut self, at: Range<usize>, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.scratch.len();
        write(&mut self.scratch);
        let new = begin..self.scratch.len();
        self.growth += new.len() as isize - at.len() as isize;
        let new = New::Scratch(new);
        self.edits.push(Edit { at, new });
    }

    /// There is nothing to change.
    pub(super) fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The body with all changes.
    pub(super) fn write(&self, body: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(body.len().saturating_add_signed(self.growth));
        let mut copied = 0;
        for edit in &self.edits {
            out.extend_from_slice(body.get(copied..edit.at.start).unwrap_or_default());
            match &edit.new {
                New::Scratch(new) => out.extend_from_slice(self.scratch.get(new.clone()).unwrap_or_default()),
                New::Length(length) => put_varint(&mut out, *length as u64),
            }
            copied = edit.at.end;
        }
        out.extend_from_slice(body.get(copied..).unwrap_or_default());
        Bytes::from(out)
    }
}
