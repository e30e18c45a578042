//! `journal`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{ByteSize, Section};
use crate::journal::{Fsync, Options, WhenFull};

/// Below this a journal has no room for two segments and a request of a usual size.
const SMALLEST: u64 = 16 << 20;

pub(super) fn bind(section: &Section<'_>) -> Options {
    let directory: PathBuf = section.get(
        "directory",
        "${env:SPANLEDGER_DATA:-./spanledger-data}/journal",
        "Where the journal lies; a local disk, not a network file system.",
    );
    let ByteSize(max_size) = section.get("max_size", "2GiB", "The journal never takes more than this.");
    if max_size < SMALLEST {
        section.mistake("max_size", "expected 16MiB or more");
    }
    let retain = section.get(
        "retain",
        "1h",
        "What every reader has passed is kept this long for replay.",
    );
    let always = section.choice(
        "fsync",
        "always",
        "Answer after the disk has the request, or (interval) once it is written.",
        &[("always", Always(true)), ("interval", Always(false))],
    );
    let interval: Duration = section.get(
        "fsync_interval",
        "200ms",
        "With fsync: interval, what a power failure may cost.",
    );
    let when_full = section.choice(
        "when_full",
        "refuse",
        "Refuse new requests, or give up the oldest unforwarded ones (counted).",
        &[
            ("refuse", SkipForwarding(false)),
            ("skip_forwarding", SkipForwarding(true)),
        ],
    );
    let (dedup_max_age, dedup_max_entries) = section.section("dedup", "Recognition of re-sent requests.", |dedup| {
        let age = dedup.get("max_age", "10m", "For how long a request is remembered.");
        (
            age,
            dedup.get("max_entries", "262144", "At most so many are remembered."),
        )
    });
    Options {
        max_size,
        retain,
        fsync: if always.0 {
            Fsync::Always
        } else {
            Fsync::Interval(interval)
        },
        when_full: if when_full.0 {
            WhenFull::SkipForwarding
        } else {
            WhenFull::Refuse
        },
        dedup_max_age,
        dedup_max_entries,
        ..Options::new(directory)
    }
}

#[derive(Clone, Copy, Default)]
struct Always(bool);

#[derive(Clone, Copy, Default)]
struct SkipForwarding(bool);
