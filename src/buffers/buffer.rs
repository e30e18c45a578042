//! One buffer.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::Buffers;
use super::huge::Piece;

/// Memory that is filled from its beginning. It comes back to where it is from when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    /// So much of it is filled.
    length: usize,
    buffers: Arc<Buffers>,
}

#[derive(Debug)]
pub(super) enum Memory {
    /// Its capacity counts. What it holds is whatever was there before; beyond that nothing was touched yet.
    Heap(Vec<u8>),
    Piece(Piece),
}

impl Memory {
    pub(super) fn capacity(&self) -> usize {
        match self {
            Memory::Heap(bytes) => bytes.capacity(),
            Memory::Piece(piece) => piece.bytes().len(),
        }
    }
}

impl Buffer {
    pub(super) fn new(memory: Memory, buffers: Arc<Buffers>) -> Buffer {
        Buffer {
            memory,
            length: 0,
            buffers,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// What is not filled yet, to be written over and then [filled](Buffer::fill).
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let bytes = match &mut self.memory {
            Memory::Heap(bytes) => {
                bytes.resize(bytes.capacity(), 0);
                bytes.as_mut_slice()
            }
            Memory::Piece(piece) => piece.bytes_mut(),
        };
        &mut bytes[self.length..]
    }

    /// So many bytes of the room were written.
    pub(crate) fn fill(&mut self, count: usize) {
        debug_assert!(count <= self.capacity() - self.length, "more than there was room for");
        self.length = self.capacity().min(self.length + count);
    }

    /// Copies bytes behind what is there, with more memory if they need it.
    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        if bytes.len() > self.capacity() - self.length {
            self.grow(self.length + bytes.len());
        }
        let from = self.length;
        self.length += bytes.len();
        match &mut self.memory {
            Memory::Heap(memory) => {
                // What was there before is written over; what follows is touched as far as it is needed.
                let (over, behind) = bytes.split_at(bytes.len().min(memory.len() - from));
                memory[from..from + over.len()].copy_from_slice(over);
                memory.extend_from_slice(behind);
            }
            Memory::Piece(piece) => piece.bytes_mut()[from..self.length].copy_from_slice(bytes),
        }
    }

    /// Goes on in memory of at least so many bytes.
    pub(crate) fn grow(&mut self, capacity: usize) {
        let mut larger = self.buffers.take(capacity.max(self.length));
        larger.extend_from_slice(self);
        *self = larger;
    }

    /// What was filled, in memory of about its size: it is kept for a while.
    pub(crate) fn freeze(mut self) -> Bytes {
        if self.capacity() - self.length > self.length / 4 + 1 {
            self.grow(self.length);
        }
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Heap(bytes) => bytes.as_slice(),
            Memory::Piece(piece) => piece.bytes(),
        };
        &bytes[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Heap(Vec::new()));
        self.buffers.give_back(memory);
    }
}
