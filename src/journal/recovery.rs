//! Opening a journal: who it is, which segments there are, where the last one really ends, what was lost.
//!
//! Steps, in order:
//! 1. Take the lock. Make durable which files there are: what is found must still be there after a power failure. Read `journal.id`; when it is gone or damaged, take id and key from the newest segment; when
//!    there is none, begin a new journal.
//! 2. Read the header of every segment. A file whose creation was not finished is removed. One without a valid
//!    header, one of another journal, and the second of two that claim the same life are renamed aside, never
//!    deleted.
//! 3. Every segment but the last is described by the header of the one after it. The last one is scanned, bodies
//!    included: its end is behind its last whole record. What is valid behind damage is kept. The rest of the file is
//!    cut off and the file is synced, because what is handed to a reader must be on the disk.
//! 4. Rebuild the table of digests from record headers and the snapshot.
//! 5. Count the start durably and begin sequences where no earlier start can have used them. The recovered segments
//!    are never written to again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::core::Spoiled;
use super::dedup::{Dedup, Digest, Remembered, SNAPSHOT_FILE};
use super::disk::{Disk, DiskFile, read_file, replace_file};
use super::error::JournalError;
use super::identity::{FORMAT_VERSION, IDENTITY_FILE, Identity, JournalId, Unreadable};
use super::options::Settings;
use super::record::Header;
use super::scan::{Scan, empty, scan, settle};
use super::segment::{DATA_START, Frame, Mark, Segment, SegmentHeader, Summary, Walk, file_number};

/// What was found when the journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was none before.
    pub is_new: bool,
    /// Segments that hold records.
    pub segments: usize,
    /// Records in them.
    pub records: u64,
    /// Records that had been acknowledged and are damaged or missing, as far as is known before they are read.
    pub lost_records: u64,
    /// Records that were on their way to the disk when the program or the machine stopped. Nobody was told that they
    /// are safe (with `journal.fsync: interval`: unless the machine stopped).
    pub unfinished_records: u64,
    /// Files that were renamed because they cannot be used.
    pub set_aside: Vec<String>,
    /// Requests that are remembered.
    pub remembered: usize,
    /// Everything unusual, in words.
    pub notes: Vec<String>,
}

/// The parts of which the core is made.
pub(super) struct Recovered {
    pub(super) identity: Identity,
    /// The first sequence of this start.
    pub(super) first: u64,
    pub(super) sealed: Vec<(Segment, Summary)>,
    /// Files that are to be removed.
    pub(super) leftovers: Vec<Spoiled>,
    pub(super) released: u64,
    pub(super) dedup: Dedup,
    pub(super) incarnation: u64,
    pub(super) next_number: u32,
    pub(super) report: Recovery,
}

struct Found {
    name: String,
    number: u32,
    file: Arc<dyn DiskFile>,
    size: u64,
    header: SegmentHeader,
}

struct Recoverer<'a> {
    disk: &'a dyn Disk,
    /// Offline readers look without changing anything.
    may_write: bool,
    leftovers: Vec<Spoiled>,
    report: Recovery,
}

/// See the module. `random` becomes id and key of a new journal.
pub(super) fn recover(
    disk: &dyn Disk,
    settings: &Settings,
    now: u64,
    random: &[u8; 48],
    may_write: bool,
) -> Result<Recovered, JournalError> {
    let mut recoverer = Recoverer {
        disk,
        may_write,
        leftovers: Vec::new(),
        report: Recovery::default(),
    };
    recoverer.run(settings, now, random).map_err(|error| match error {
        Failure::Io(action, source) => JournalError::Io {
            action: action.to_owned(),
            directory: disk.directory().to_owned(),
            source,
        },
        Failure::Version(found) => JournalError::Version {
            directory: disk.directory().to_owned(),
            found,
            known: FORMAT_VERSION,
        },
    })
}

enum Failure {
    Io(&'static str, io::Error),
    Version(u32),
}

fn trying<T>(action: &'static str, outcome: io::Result<T>) -> Result<T, Failure> {
    outcome.map_err(|error| Failure::Io(action, error))
}

impl Recoverer<'_> {
    fn run(&mut self, settings: &Settings, now: u64, random: &[u8; 48]) -> Result<Recovered, Failure> {
        if self.may_write {
            // A file is here because the system remembers it, which need not mean that the disk does: the last
            // program may have created it and been unable to make that durable.
            trying("sync the directory", self.disk.sync_dir())?;
        }
        let names = trying("list the files", self.disk.list())?;
        let mut next_number = 0;
        let mut found = Vec::new();
        for name in &names {
            // Files that were set aside keep their number, so that no later one is set aside under the same name.
            let number = name
                .split_once(".seg")
                .and_then(|(digits, _)| file_number(&format!("{digits}.seg")));
            next_number = next_number.max(number.map_or(0, |number| number + 1));
            if let Some(number) = file_number(name)
                && let Some(segment) = self.inspect(name, number)?
            {
                found.push(segment);
            }
        }
        let mut identity = self.identity(&names, &found, now, random)?;
        let found = self.sort_out(found, identity.id)?;
        let incarnation = found.last().map_or(0, |segment| segment.header.incarnation);
        let released = found.iter().map(|segment| segment.header.released).max().unwrap_or(0);
        let sealed = self.describe(found, &identity, released)?;

        let dedup = self.remember(&sealed, settings, &identity, &names, now)?;
        let last_known = sealed
            .iter()
            .map(|(segment, summary)| summary.last.max(segment.header.first))
            .max()
            .unwrap_or(0);
        let epoch = sealed
            .iter()
            .map(|(segment, _)| segment.header.epoch)
            .max()
            .unwrap_or(0);
        identity.starts = identity.starts.max(epoch) + 1;
        let first = identity.first_sequence(last_known);
        identity.starts = first >> 32;
        if self.may_write
            && let Err(error) = replace_file(self.disk, IDENTITY_FILE, &identity.encode())
        {
            // On a full disk the journal must still come up, so that its readers can make room. Nothing is appended
            // before a segment's header tells of this start, and the newest header is never removed.
            if self.report.is_new {
                return Err(Failure::Io("create the journal", error));
            }
            self.note(format!("journal.id could not be written: {error}"));
        }
        self.report.segments = sealed.iter().filter(|(_, summary)| summary.records > 0).count();
        self.report.records = sealed.iter().map(|(_, summary)| summary.records).sum();
        self.report.remembered = dedup.len();
        let report = std::mem::take(&mut self.report);
        Ok(Recovered {
            identity,
            first,
            sealed,
            leftovers: std::mem::take(&mut self.leftovers),
            released,
            dedup,
            incarnation,
            next_number,
            report,
        })
    }

    fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    fn set_aside(&mut self, name: &str, why: &str, suffix: &str) -> Result<(), Failure> {
        let mut target = format!("{name}.{suffix}");
        let taken = trying("list the files", self.disk.list())?;
        for attempt in 2.. {
            if !taken.contains(&target) {
                break;
            }
            target = format!("{name}.{suffix}.{attempt}");
        }
        self.note(format!("{name} {why}; set aside as {target}"));
        if self.may_write {
            trying(
                "rename a damaged segment",
                self.disk.rename(name, &target).and_then(|()| self.disk.sync_dir()),
            )?;
        }
        self.report.set_aside.push(target);
        Ok(())
    }

    /// Reads one header; sorts out what is not a segment.
    fn inspect(&mut self, name: &str, number: u32) -> Result<Option<Found>, Failure> {
        let file = trying("open a segment", self.disk.open(name))?;
        let size = trying("look at a segment", file.length())?;
        let header = match SegmentHeader::read(&*file) {
            Ok(Ok(header)) => header,
            Ok(Err(Unreadable::Version(version))) => return Err(Failure::Version(version)),
            Ok(Err(Unreadable::Damaged)) => {
                if is_unfinished(&*file).unwrap_or(false) {
                    if self.may_write {
                        trying("remove an unfinished segment", self.disk.remove(name))?;
                    }
                } else {
                    self.set_aside(name, "has no valid header", "corrupt")?;
                }
                return Ok(None);
            }
            Err(error) => {
                self.set_aside(name, &format!("cannot be read ({error})"), "corrupt")?;
                return Ok(None);
            }
        };
        Ok(Some(Found {
            name: name.to_owned(),
            number,
            file,
            size,
            header,
        }))
    }

    fn identity(
        &mut self,
        names: &[String],
        found: &[Found],
        now: u64,
        random: &[u8; 48],
    ) -> Result<Identity, Failure> {
        let stored = if names.iter().any(|name| name == IDENTITY_FILE) {
            let bytes = trying("read journal.id", read_file(self.disk, IDENTITY_FILE, 4096))?;
            match Identity::decode(&bytes) {
                Ok(identity) => return Ok(identity),
                Err(Unreadable::Version(version)) => return Err(Failure::Version(version)),
                Err(Unreadable::Damaged) => Some(bytes),
            }
        } else {
            None
        };
        if let Some(newest) = found
            .iter()
            .max_by_key(|segment| (segment.header.created_at, segment.header.incarnation))
        {
            self.note("journal.id was missing or damaged; restored from the newest segment".to_owned());
            let header = &newest.header;
            return Ok(Identity {
                id: header.id,
                key: header.key,
                starts: header.epoch,
                created_at: header.created_at,
            });
        }
        if stored.is_some() {
            self.set_aside(
                IDENTITY_FILE,
                "is damaged and there is no segment to restore it from",
                "corrupt",
            )?;
        }
        self.report.is_new = true;
        let (mut id, mut key) = ([0; 16], [0; 32]);
        id.copy_from_slice(&random[..16]);
        key.copy_from_slice(&random[16..]);
        Ok(Identity {
            id: JournalId(id),
            key,
            starts: 0,
            created_at: now,
        })
    }

    /// Segments of this journal in order of their lives.
    fn sort_out(&mut self, mut found: Vec<Found>, id: JournalId) -> Result<Vec<Found>, Failure> {
        found.sort_by_key(|segment| (segment.header.incarnation, segment.number));
        let mut kept: Vec<Found> = Vec::new();
        for segment in found {
            if segment.header.id != id {
                let owner = segment.header.id;
                self.set_aside(&segment.name, &format!("belongs to journal {owner}"), "foreign")?;
            } else if kept
                .last()
                .is_some_and(|last| last.header.incarnation == segment.header.incarnation)
            {
                self.set_aside(&segment.name, "is a copy of another segment", "duplicate")?;
            } else {
                kept.push(segment);
            }
        }
        Ok(kept)
    }

    /// Says of each segment what is in it, and of the gaps between them what was lost.
    fn describe(
        &mut self,
        found: Vec<Found>,
        identity: &Identity,
        released: u64,
    ) -> Result<Vec<(Segment, Summary)>, Failure> {
        let headers: Vec<SegmentHeader> = found.iter().map(|segment| segment.header.clone()).collect();
        let mut sealed: Vec<(Segment, Summary)> = Vec::new();
        for (index, segment) in found.into_iter().enumerate() {
            let later = &headers[index + 1..];
            let valid_through = later.iter().map(|header| header.valid_before).min().unwrap_or(u64::MAX);
            let described = later.iter().map(|header| header.previous).find(|previous| {
                previous.incarnation == segment.header.incarnation && previous.first == segment.header.first
            });
            let Found {
                name,
                number,
                file,
                size,
                header,
            } = segment;
            let seed = identity.seed(header.incarnation, header.epoch);
            let is_last = later.is_empty();
            let mut segment = Segment::new(number, file, size, header, seed);
            let summary = match described {
                Some(summary) if summary.end <= segment.size.next_multiple_of(8) => summary,
                // Refused as a whole, or empty.
                None if !is_last && valid_through < segment.header.first => empty(&segment),
                Some(summary) => {
                    let scanned = scan(&segment, summary.last, false);
                    let lost = summary.records.saturating_sub(scanned.summary.records);
                    self.lose(lost, format!("{name} is too short: {lost} records are missing"));
                    scanned.summary
                }
                None => {
                    let scanned = scan(&segment, valid_through, is_last);
                    self.report_scan(&name, &scanned);
                    if is_last && self.may_write {
                        let size = trying("sync the last segment", settle(&segment, &scanned))?;
                        segment.size = size;
                    }
                    scanned.summary
                }
            };
            if summary.records > 0 && summary.last <= released {
                // Given up by every reader, but the file could not be removed, or its removal did not reach the disk.
                self.leftovers.push(Spoiled {
                    number: segment.number,
                    size: segment.size,
                    is_needed: false,
                });
                continue;
            }
            self.compare_with_neighbour(&sealed, &segment.header);
            sealed.push((segment, summary));
        }
        Ok(sealed)
    }

    fn lose(&mut self, records: u64, note: String) {
        if records > 0 {
            self.report.lost_records += records;
            self.note(note);
        }
    }

    fn report_scan(&mut self, name: &str, scan: &Scan) {
        if let Some(error) = &scan.unreadable {
            self.note(format!("{name} cannot be read everywhere: {error}"));
        }
        self.lose(
            scan.lost,
            format!("{name} is damaged: {} acknowledged records are lost", scan.lost),
        );
        if scan.unfinished > 0 {
            self.report.unfinished_records += scan.unfinished;
            self.note(format!(
                "{name}: {} records had not been written completely",
                scan.unfinished
            ));
        }
    }

    /// A segment knows the one before it: is that the one we found?
    fn compare_with_neighbour(&mut self, sealed: &[(Segment, Summary)], header: &SegmentHeader) {
        let previous = header.previous;
        let Some((_, neighbour)) = sealed.iter().rev().find(|(_, summary)| summary.records > 0) else {
            return;
        };
        if previous.incarnation > neighbour.incarnation {
            let is_same_start = previous.last >> 32 == neighbour.last >> 32;
            let lost = if is_same_start {
                previous.last.saturating_sub(neighbour.last)
            } else {
                previous.records
            };
            self.lose(
                lost,
                format!(
                    "the segment with records up to {} is missing: about {lost} records",
                    previous.last
                ),
            );
        }
    }

    fn remember(
        &mut self,
        sealed: &[(Segment, Summary)],
        settings: &Settings,
        identity: &Identity,
        names: &[String],
        now: u64,
    ) -> Result<Dedup, Failure> {
        let mut dedup = Dedup::new(settings.dedup_max_age, settings.dedup_max_entries);
        if settings.dedup_max_entries == 0 || settings.dedup_max_age == 0 {
            return Ok(dedup);
        }
        let horizon = dedup.horizon(now);
        let mut young: BTreeMap<u64, (Digest, Remembered)> = BTreeMap::new();
        for (segment, summary) in sealed.iter().rev() {
            if summary.newest_digest == 0
                || summary.newest_digest < horizon
                || young.len() >= settings.dedup_max_entries
            {
                continue;
            }
            // Where a record is known to be missing, it may be one whose header is whole and whose body is not.
            let has_holes = summary.records < summary.last - summary.first + 1;
            let mut walk = Walk::new(segment, DATA_START, summary.end);
            loop {
                let frame = match walk.next() {
                    Ok(frame) => frame,
                    Err(error) => {
                        self.note(format!("digests of a segment could not be read: {error}"));
                        break;
                    }
                };
                match frame {
                    Frame::End => break,
                    Frame::Gap { .. } => {}
                    Frame::Record { header, .. } if header.sequence > summary.last => break,
                    Frame::Record { offset, header } => {
                        segment.note(Mark {
                            sequence: header.sequence,
                            offset,
                            received_at: header.received_at,
                        });
                        let is_whole = !has_holes || walk.body(offset, &header).is_ok_and(|body| body.is_some());
                        if let Some(digest) = header.digest.filter(|_| is_whole && header.received_at >= horizon) {
                            let Header {
                                sequence,
                                received_at,
                                rejected,
                                ..
                            } = header;
                            young.insert(
                                sequence,
                                (
                                    digest,
                                    Remembered {
                                        sequence,
                                        received_at,
                                        rejected,
                                    },
                                ),
                            );
                        }
                    }
                }
            }
        }
        if names.iter().any(|name| name == SNAPSHOT_FILE) {
            let bytes = read_file(self.disk, SNAPSHOT_FILE, dedup.snapshot_limit().max(64 << 20));
            match bytes.as_deref().map(|bytes| Dedup::read_snapshot(identity.id, bytes)) {
                Ok(Some((entries, through))) => {
                    dedup.snapshot_through = through;
                    let entries = entries.into_iter().filter(|(_, entry)| entry.received_at >= horizon);
                    young.extend(entries.map(|(digest, entry)| (entry.sequence, (digest, entry))));
                }
                Ok(None) => self.note(format!("{SNAPSHOT_FILE} is damaged and was not used")),
                Err(error) => self.note(format!("{SNAPSHOT_FILE} could not be read: {error}")),
            }
        }
        for (digest, entry) in young.into_values() {
            dedup.insert(digest, entry, now);
        }
        dedup.evicted_early = 0;
        Ok(dedup)
    }
}

/// A file whose header was never completely written has no records: nothing but zeros behind it. Both copies can be torn:
/// where a sync failed, the first may only have been in memory when the next life of the file began with the second.
fn is_unfinished(file: &dyn DiskFile) -> io::Result<bool> {
    let mut bytes = vec![0; 1 << 20];
    let mut offset = DATA_START;
    loop {
        let count = file.read_at(&mut bytes, offset)?;
        if bytes[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if count < bytes.len() {
            return Ok(true);
        }
        offset += count as u64;
    }
}
