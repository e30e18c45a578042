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
    Heap(Vec<u8>),
    Piece(Piece),
}

impl Memory {
    /// All of it: whatever it is that was there before.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Piece(piece) => piece.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Piece(piece) => piece.bytes_mut(),
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
        self.memory.bytes().len()
    }

    /// What is not filled yet, to be written over and then [filled](Buffer::fill).
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[self.length..]
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
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
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
        &self.memory.bytes()[..self.length]
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
