//! The meter's memory across restarts: one file with all series and the position up to which they count the journal.
//!
//! # Invariants
//!
//! * The file is replaced as a whole: after a crash the old one or the new one is there. Position and series are in the
//!   same file, so that a record is counted in both or in neither.
//! * The reader passes records only after the file that counts them is durable.
//!
//! # Format
//!
//! `checkpoint` in the meter's directory, integers little endian:
//!
//! | field | bytes |
//! |---|---|
//! | magic `SPANLMTR` | 8 |
//! | format version | u32 |
//! | journal id | 16 |
//! | time of saving, nanoseconds since 1970 | u64 |
//! | number of families | u32 |
//! | families | |
//! | CRC32C of everything before | u32 |
//!
//! A family is: length of the name (u32) and name; digest of its rule (16); `next`, `epoch`, `overflowed` (u64 each);
//! counts per series (u32; 0 for a counter); number of series (u32); the series.
//!
//! A series is: length of the key (u32) and key; created (u64); sum (f64); its counts (u64 each); number of exemplars
//! (u32); per exemplar its place (u32), trace id (16), span id (8), value (f64), time (u64).
//!
//! # Recovery
//!
//! A file that is damaged is set aside as `checkpoint.damaged`, and the meter starts anew: see [`super::stage`]. One that is
//! only not to be read now, or by this version, keeps the program from starting: the metrics in it are whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::checksum;
use crate::failpoint::{self, Point};
use crate::journal::JournalId;
use crate::rules::RuleDigest;

use super::store::{Cells, Directory, Exemplar, Family, FamilySnapshot};

const MAGIC: &[u8; 8] = b"SPANLMTR";
const VERSION: u32 = 1;
const FILE: &str = "checkpoint";

/// What the file holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) journal: JournalId,
    pub(super) saved_at: u64,
    pub(super) families: Vec<SavedFamily>,
}

/// One metric as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SavedFamily {
    pub(super) name: String,
    pub(super) digest: RuleDigest,
    pub(super) next: u64,
    pub(super) epoch: u64,
    pub(super) overflowed: u64,
    /// Counts per series; 0 for a counter.
    pub(super) stride: usize,
    /// Without an order: that is made when the series are inserted.
    pub(super) directory: Directory,
    pub(super) cells: Cells,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// The disk refused.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Not the bytes that were written.
    #[error("is damaged")]
    Damaged,
    /// Written by a newer version of the program.
    #[error("has format version {0}, this program knows {VERSION}")]
    Version(u32),
}

impl Damage {
    /// Whether somebody can mend it: by a version of the program, a permission, a limit. What the disk has lost comes back for
    /// nobody.
    pub(super) fn is_curable(&self) -> bool {
        match self {
            Damage::Io(error) => {
                let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
                error.raw_os_error().is_none_or(|code| !lost.contains(&code))
            }
            Damage::Damaged => false,
            Damage::Version(_) => true,
        }
    }
}

/// A family to be written, whoever owns it.
struct FamilyRef<'a> {
    name: &'a str,
    digest: &'a RuleDigest,
    next: u64,
    epoch: u64,
    overflowed: u64,
    stride: usize,
    directory: &'a Directory,
    cells: &'a Cells,
}

impl SavedFamily {
    /// Gives a family its series back. They must fit: the digests are the same.
    pub(super) fn restore(self, family: &mut Family, hash: impl Fn(&[u8]) -> u64) {
        for (key, created) in self.directory.keys.iter().zip(&self.directory.created) {
            family.insert(key, hash(key), *created);
        }
        family.cells = self.cells;
        family.next = self.next;
        family.epoch = self.epoch;
        family.overflowed = self.overflowed;
    }

    /// Forgets all series; new ones begin at `now` at the earliest.
    pub(super) fn forget(&mut self, now: u64) {
        self.directory = Directory::default();
        self.cells = Cells::default();
        self.overflowed = 0;
        self.epoch = now;
    }

    fn as_ref(&self) -> FamilyRef<'_> {
        FamilyRef {
            name: &self.name,
            digest: &self.digest,
            next: self.next,
            epoch: self.epoch,
            overflowed: self.overflowed,
            stride: self.stride,
            directory: &self.directory,
            cells: &self.cells,
        }
    }
}

impl<'a> From<&'a FamilySnapshot> for FamilyRef<'a> {
    fn from(snapshot: &'a FamilySnapshot) -> Self {
        FamilyRef {
            name: &snapshot.description.name,
            digest: &snapshot.description.digest,
            next: snapshot.next,
            epoch: snapshot.epoch,
            overflowed: snapshot.overflowed,
            stride: snapshot.description.stride(),
            directory: &snapshot.directory,
            cells: &snapshot.cells,
        }
    }
}

/// The bytes of a checkpoint of a running meter.
pub(super) fn encode(journal: JournalId, saved_at: u64, families: &[FamilySnapshot]) -> Vec<u8> {
    encode_families(journal, saved_at, families.iter().map(FamilyRef::from))
}

impl Checkpoint {
    /// The bytes of this checkpoint.
    pub(super) fn encode(&self) -> Vec<u8> {
        encode_families(
            self.journal,
            self.saved_at,
            self.families.iter().map(SavedFamily::as_ref),
        )
    }

    /// Reads what [`encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut input = Input(bytes);
        if input.take(MAGIC.len())? != MAGIC {
            return Err(Damage::Damaged);
        }
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or(Damage::Damaged)?;
        if checksum::crc32c(content) != u32::from_le_bytes(*crc) {
            return Err(Damage::Damaged);
        }
        let version = input.u32()?;
        if version > VERSION {
            return Err(Damage::Version(version));
        }
        let journal = JournalId(input.array()?);
        let saved_at = input.u64()?;
        let families = (0..input.u32()?)
            .map(|_| decode_family(&mut input))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            journal,
            saved_at,
            families,
        })
    }
}

fn encode_families<'a>(
    journal: JournalId,
    saved_at: u64,
    families: impl ExactSizeIterator<Item = FamilyRef<'a>>,
) -> Vec<u8> {
    let mut out = Output(Vec::with_capacity(64 << 10));
    out.bytes(MAGIC);
    out.u32(VERSION);
    out.bytes(&journal.0);
    out.u64(saved_at);
    out.u32(families.len() as u32);
    families.for_each(|family| encode_family(&family, &mut out));
    let crc = checksum::crc32c(&out.0);
    out.u32(crc);
    out.0
}

fn encode_family(family: &FamilyRef<'_>, out: &mut Output) {
    out.counted(family.name.as_bytes());
    out.bytes(family.digest);
    out.u64(family.next);
    out.u64(family.epoch);
    out.u64(family.overflowed);
    out.u32(family.stride as u32);
    out.u32(family.directory.keys.len() as u32);
    let cells = family.stride.max(1);
    for (series, (key, created)) in family.directory.keys.iter().zip(&family.directory.created).enumerate() {
        out.counted(key);
        out.u64(*created);
        out.u64(family.cells.sums[series].to_bits());
        for count in &family.cells.counts[series * family.stride..][..family.stride] {
            out.u64(*count);
        }
        let exemplars = family.cells.exemplars[series * cells..][..cells].iter().enumerate();
        let given = exemplars.filter(|(_, exemplar)| exemplar.time_unix_nano > 0);
        out.u32(given.clone().count() as u32);
        for (place, exemplar) in given {
            out.u32(place as u32);
            out.bytes(&exemplar.trace_id);
            out.bytes(&exemplar.span_id);
            out.u64(exemplar.value.to_bits());
            out.u64(exemplar.time_unix_nano);
        }
    }
}

fn decode_family(input: &mut Input<'_>) -> Result<SavedFamily, Damage> {
    let name = std::str::from_utf8(input.counted()?)
        .map_err(|_| Damage::Damaged)?
        .to_owned();
    let digest = input.array()?;
    let (next, epoch, overflowed) = (input.u64()?, input.u64()?, input.u64()?);
    let stride = input.u32()? as usize;
    let mut directory = Directory::default();
    let mut cells = Cells::default();
    for _ in 0..input.u32()? {
        directory.keys.push(input.counted()?.into());
        directory.created.push(input.u64()?);
        cells.sums.push(f64::from_bits(input.u64()?));
        for _ in 0..stride {
            cells.counts.push(input.u64()?);
        }
        let first = cells.exemplars.len();
        cells.exemplars.resize(first + stride.max(1), Exemplar::default());
        for _ in 0..input.u32()? {
            let place = first + input.u32()? as usize;
            *cells.exemplars.get_mut(place).ok_or(Damage::Damaged)? = Exemplar {
                trace_id: input.array()?,
                span_id: input.array()?,
                value: f64::from_bits(input.u64()?),
                time_unix_nano: input.u64()?,
            };
        }
    }
    Ok(SavedFamily {
        name,
        digest,
        next,
        epoch,
        overflowed,
        stride,
        directory,
        cells,
    })
}

/// Where it lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// The checkpoint in `directory`; `None` if there is none.
pub(super) fn load(directory: &Path) -> Result<Option<Checkpoint>, Damage> {
    match fs::read(path(directory)) {
        Ok(bytes) => Checkpoint::decode(&bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Damage::Io(error)),
    }
}

/// Writes a checkpoint; when this returns it survives a power failure.
pub(super) fn save(directory: &Path, bytes: &[u8]) -> io::Result<()> {
    failpoint::hit(Point::BeforeCheckpoint);
    fs::create_dir_all(directory)?;
    let temporary = directory.join(format!("{FILE}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    failpoint::hit(Point::BeforeCheckpointRename);
    fs::rename(&temporary, path(directory))?;
    File::open(directory)?.sync_all()?;
    failpoint::hit(Point::AfterCheckpoint);
    Ok(())
}

/// Sets a checkpoint that is of no use aside, for whoever wants to know what happened. Returns where it is.
pub(super) fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    let aside = directory.join(format!("{FILE}.damaged"));
    fs::rename(path(directory), &aside)?;
    Ok(aside)
}

struct Output(Vec<u8>);

impl Output {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn counted(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes(bytes);
    }
}

/// Bytes whose checksum was right may still be of another making: nothing here trusts a length.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Damage::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Damage::Damaged)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_le_bytes)
    }

    fn counted(&mut self) -> Result<&'a [u8], Damage> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::store::{RecordTime, Store};
    use crate::rules::Catalogue;
    use crate::rules::matcher::{Matcher, Workspace};
    use crate::rules::testing::{request, span};

    fn counted() -> (Catalogue, Matcher, Store) {
        let catalogue = Catalogue::built_in();
        let matcher = Matcher::new(&catalogue, 7);
        let mut store = Store::new(&catalogue, 3);
        for (sequence, tool) in ["a", "b", "c", "d", "e", "a"].iter().enumerate() {
            let spans = vec![
                span("t").with("tool_id", *tool),
                span("code.execute").with("code.memory_mb", 0.1),
            ];
            let record = RecordTime {
                sequence: sequence as u64,
                received_at: 1_000 + sequence as u64,
            };
            store.count(&matcher, &mut Workspace::default(), &request(spans), record);
        }
        (catalogue, matcher, store)
    }

    #[test]
    fn a_store_is_restored_as_it_was() {
        let (catalogue, matcher, store) = counted();
        let families = store.snapshot(true);
        let checkpoint = Checkpoint::decode(&encode(JournalId([5; 16]), 9, &families)).unwrap();
        assert_eq!((checkpoint.journal, checkpoint.saved_at), (JournalId([5; 16]), 9));
        assert_eq!(checkpoint.encode(), encode(JournalId([5; 16]), 9, &families));
        let mut restored = Store::new(&catalogue, 3);
        for (saved, family) in checkpoint.families.into_iter().zip(&mut restored.families) {
            saved.restore(family, |key| matcher.hash(key));
        }
        assert_eq!(restored.snapshot(true), families);
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let (_, _, store) = counted();
        let bytes = encode(JournalId([5; 16]), 9, &store.snapshot(true));
        for length in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..length]).is_err(), "{length}");
        }
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(Checkpoint::decode(&damaged).is_err(), "{index}");
        }
    }

    #[test]
    fn nonsense_with_a_right_checksum_is_an_error_and_takes_no_memory() {
        let mut seed = 1u64;
        for length in 0..2000 {
            let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat();
            for _ in 0..length {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes.push((seed >> 56) as u8);
            }
            bytes.extend(checksum::crc32c(&bytes).to_le_bytes());
            // Some of it may be a valid checkpoint by chance; it must only not panic.
            drop(Checkpoint::decode(&bytes));
        }
    }

    #[test]
    fn the_file_is_only_for_its_owner_and_replaced_as_a_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("meter");
        assert!(load(&inner).unwrap().is_none());
        let (_, _, store) = counted();
        let bytes = encode(JournalId([5; 16]), 9, &store.snapshot(true));
        save(&inner, b"older").unwrap();
        assert!(matches!(load(&inner), Err(Damage::Damaged)));
        save(&inner, &bytes).unwrap();
        assert_eq!(load(&inner).unwrap().unwrap().encode(), bytes);
        let mode = fs::metadata(inner.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        set_aside(&inner).unwrap();
        assert!(load(&inner).unwrap().is_none());
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut bytes = [MAGIC.as_slice(), &2u32.to_le_bytes()].concat();
        bytes.extend(checksum::crc32c(&bytes).to_le_bytes());
        let message = Checkpoint::decode(&bytes).unwrap_err().to_string();
        assert_eq!(message, "has format version 2, this program knows 1");
    }
}
