//! Looking at a journal from outside: what it holds, and whether every record in it is whole. Changes nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LOCK_FILE;
use super::core::{Core, Sealed};
use super::disk::{Disk, OsDisk};
use super::error::JournalError;
use super::options::{Options, Settings};
use super::reader::Position;
use super::recovery::{Recovery, recover};
use super::segment::{DATA_START, Frame, Walk, file_name, lock};
use super::status::Status;
use crate::clock::unix_nanos;

/// What a journal that no process uses holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// As a running journal would say.
    pub status: Status,
    /// What opening it would find.
    pub recovery: Recovery,
    /// A program is using it.
    pub is_in_use: bool,
}

/// The state of every record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// In order.
    pub segments: Vec<SegmentCheck>,
    /// What opening the journal would find; nothing when it is open.
    pub recovery: Recovery,
}

/// The state of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentCheck {
    /// Name of its file.
    pub file: String,
    /// Sequence of its first and last record.
    pub sequences: (u64, u64),
    /// Whole records.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Records that should be there and are damaged or missing.
    pub damaged: u64,
    /// Why it could not be read to its end.
    pub error: Option<String>,
}

impl Verification {
    /// Whether everything is whole.
    pub fn is_sound(&self) -> bool {
        let is_whole = |segment: &SegmentCheck| segment.damaged == 0 && segment.error.is_none();
        self.segments.iter().all(is_whole) && self.recovery.lost_records == 0 && self.recovery.set_aside.is_empty()
    }

    /// Whole records.
    pub fn records(&self) -> u64 {
        self.segments.iter().map(|segment| segment.records).sum()
    }
}

/// Looks at a journal, also at one that a program is using: then it is seen as its files were at some moment, and
/// nothing is said of damage. `positions` are those of its readers, as far as the caller knows them.
pub fn inspect(options: &Options, positions: &[(String, Position)]) -> Result<Inspection, JournalError> {
    let (core, mut recovery, is_in_use) = look(options)?;
    if is_in_use {
        // What is being written just now looks like damage.
        recovery.notes.clear();
    }
    {
        let mut state = lock(&core.state);
        for (name, position) in positions
            .iter()
            .filter(|(_, position)| position.journal == core.identity.id)
        {
            if let Some(reader) = state.readers.iter_mut().find(|reader| reader.name == *name) {
                reader.passed = Some(position.next);
            }
        }
    }
    Ok(Inspection {
        status: core.status(unix_nanos()),
        recovery,
        is_in_use,
    })
}

/// Checks every record of a journal that no process uses.
pub fn verify(options: &Options) -> Result<Verification, JournalError> {
    let (core, recovery, is_in_use) = look(options)?;
    if is_in_use {
        return Err(JournalError::Locked {
            directory: options.directory.clone(),
        });
    }
    Ok(Verification {
        recovery,
        ..core.verify()
    })
}

/// And whether a program is using it.
fn look(options: &Options) -> Result<(Core, Recovery, bool), JournalError> {
    let settings = Settings::new(options)?;
    let directory: &Path = &options.directory;
    let failed = |action: &str, source| super::failed(action, directory, source);
    let disk = OsDisk::read_only(directory).map_err(|error| failed("look into the directory", error))?;
    let mut is_in_use = false;
    let locked: Box<dyn Send + Sync> = match disk.lock(LOCK_FILE) {
        Ok(Some(locked)) => locked,
        Ok(None) => {
            is_in_use = true;
            Box::new(())
        }
        // It was never opened, or only copied here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(()),
        Err(error) => return Err(failed("lock the directory", error)),
    };
    let recovered = recover(&disk, &settings, unix_nanos(), &[0; 48], false)?;
    let (core, recovery) = Core::assemble(Arc::new(disk), locked, settings, recovered);
    Ok((core, recovery, is_in_use))
}

impl Core {
    /// Reads everything that is durable now and checks it. Takes as long as the disk needs.
    pub(super) fn verify(&self) -> Verification {
        let segments: Vec<Sealed> = {
            let state = lock(&self.state);
            let active = state.active.iter().map(|active| Sealed {
                segment: Arc::clone(&active.segment),
                summary: active.durable,
            });
            state
                .sealed
                .iter()
                .cloned()
                .chain(active)
                .filter(|sealed| !sealed.is_empty())
                .collect()
        };
        let checks = segments.iter().map(|sealed| (sealed, check(sealed)));
        // One that was recycled meanwhile was read in vain.
        let checks = checks.filter(|(sealed, _)| !sealed.segment.retired.load(Ordering::Acquire));
        Verification {
            segments: checks.map(|(_, check)| check).collect(),
            recovery: Recovery::default(),
        }
    }
}

fn check(sealed: &Sealed) -> SegmentCheck {
    let Sealed { segment, summary } = sealed;
    let mut check = SegmentCheck {
        file: file_name(segment.number),
        sequences: (summary.first, summary.last),
        records: 0,
        bytes: 0,
        damaged: 0,
        error: None,
    };
    let mut walk = Walk::new(segment, DATA_START, summary.end);
    loop {
        let whole = match walk.next() {
            Ok(Frame::End) => break,
            Ok(Frame::Gap { .. }) => continue,
            Ok(Frame::Record { header, .. }) if header.sequence > summary.last => break,
            Ok(Frame::Record { offset, header }) => {
                let at = header.at(offset);
                walk.body(offset, &header).map(|body| (at, body.is_some()))
            }
            Err(error) => Err(error),
        };
        match whole {
            Ok((at, true)) => {
                check.records += 1;
                check.bytes += at.next() - at.offset;
            }
            Ok((_, false)) => {}
            Err(error) => {
                check.error = Some(error.to_string());
                break;
            }
        }
    }
    check.damaged = summary.records.saturating_sub(check.records);
    check
}
