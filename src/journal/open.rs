//! Making a core from what recovery found.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::watch;

use super::budget::Inflow;
use super::core::{Condition, Core, ReaderState, Sealed, State};
use super::direct::DirectIo;
use super::disk::Disk;
use super::error::JournalError;
use super::meters::Meters;
use super::options::{BUFFERS, Settings};
use super::recovery::{Recovered, Recovery, recover};
use super::segment::Summary;
use super::tail::Tail;
use crate::buffers::Buffers;

impl Core {
    /// Opens the journal and begins a segment, if there is room for one.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        locked: Box<dyn Send + Sync>,
        settings: Settings,
        now: u64,
        random: &[u8; 48],
    ) -> Result<(Self, Recovery), JournalError> {
        let recovered = recover(&*disk, &settings, now, random, true)?;
        let (core, report) = Self::assemble(disk, locked, settings, recovered);
        core.meters.lost.increment(report.lost_records);
        core.rotate(now);
        Ok((core, report))
    }

    /// Without beginning anything: for looking.
    pub(super) fn assemble(
        disk: Arc<dyn Disk>,
        locked: Box<dyn Send + Sync>,
        settings: Settings,
        recovered: Recovered,
    ) -> (Self, Recovery) {
        let Recovered {
            identity,
            first,
            sealed,
            leftovers,
            released,
            dedup,
            incarnation,
            next_number,
            report,
        } = recovered;
        let sealed: VecDeque<Sealed> = sealed
            .into_iter()
            .map(|(segment, summary)| Sealed {
                segment: Arc::new(segment),
                summary,
            })
            .collect();
        let last_summary = sealed
            .iter()
            .rev()
            .find(|sealed| !sealed.is_empty())
            .map(|sealed| sealed.summary);
        // What the newest segment says was valid before it counts even when nothing of that is left.
        let valid_before = sealed.back().map_or(0, |sealed| sealed.segment.header.valid_before);
        let durable = last_summary.map_or(0, |summary| summary.last).max(valid_before);
        let readers = settings.readers.iter().map(|name| ReaderState {
            name: name.clone(),
            may_skip: settings.may_skip.contains(name),
            taken: false,
            passed: None,
            cursor: 0,
            skip_to: 0,
        });
        let state = State {
            active: None,
            file_bytes: sealed.iter().map(|sealed| sealed.segment.size).sum::<u64>()
                + leftovers.iter().map(|leftover| leftover.size).sum::<u64>(),
            sealed,
            spoiled: leftovers.into(),
            released,
            pending: VecDeque::new(),
            parked: VecDeque::new(),
            parked_bytes: 0,
            next: first,
            written: durable,
            durable,
            last_summary: last_summary.unwrap_or(Summary::default()),
            dedup,
            readers: readers.collect(),
            condition: Condition::Writable,
            salvage_until: None,
            refused: Vec::new(),
            incarnation,
            next_number,
            appended_bytes: 0,
            inflow: Inflow::default(),
            last_sync: 0,
            closing: false,
            closed: false,
            gathering: Default::default(),
            is_idle: false,
        };
        // What is answered before it is synced must survive the process, so it goes through the page cache.
        let direct_io = settings
            .interval
            .is_none()
            .then(|| Arc::new(DirectIo::new(settings.direct_memory, settings.direct_least)));
        let core = Self {
            disk,
            direct_io,
            identity,
            state: Mutex::new(state),
            work: Condvar::new(),
            tail: Mutex::new(Tail::new(settings.tail_bytes, durable + 1)),
            watermark: watch::Sender::new(durable),
            meters: Meters::new(&settings.readers),
            settings,
            buffers: Buffers::as_needed(BUFFERS),
            _lock: locked,
        };
        (core, report)
    }
}
