#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod behaviour;
mod corruption;
mod direct;
mod gathering;
mod interval;
mod measure;
mod operating;
mod sim_disk;
mod simulation;
mod starts;
pub(crate) mod unreadable;

use bytes::Bytes;

use super::disk::BLOCK;
use super::*;
use crate::clock::unix_nanos;

/// Options for small journals in tests.
pub(super) fn options(directory: &std::path::Path) -> Options {
    Options {
        free_disk_floor: 0,
        max_size: 8 << 20,
        ..Options::new(directory)
    }
}

pub(super) fn entry(body: impl Into<Bytes>) -> Entry {
    let body = body.into();
    Entry {
        signal: Signal::Traces,
        encoding: Encoding::Identity,
        received_at: unix_nanos(),
        items: 1,
        rejected: 0,
        digest: None,
        decoded: body.clone(),
        noted: None,
        body,
    }
}

/// The same bytes at the beginning of a page of memory.
pub(super) fn on_page(bytes: &[u8]) -> Bytes {
    let mut memory = vec![0; bytes.len() + BLOCK];
    let origin = memory.as_ptr().align_offset(BLOCK);
    memory[origin..origin + bytes.len()].copy_from_slice(bytes);
    Bytes::from(memory).slice(origin..origin + bytes.len())
}

pub(super) fn bodies(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|record| record.body.clone()).collect()
}
