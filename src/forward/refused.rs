//! What a backend refused for its content, kept until an operator looks at it.
//!
//! # Format
//!
//! One file for each refused request, `<unix nanoseconds>-<counter>.refused`, so that names sort by time. The first
//! line is a JSON object ([`Refusal`]; `head -1` shows it), the rest is the body in the encoding it names, which can be
//! sent as it is. Files are written aside, synced and renamed: a file with that name is complete. Mode 0600.
//!
//! # Invariants
//!
//! * The directory stays within [`RefusedLimits`]; the oldest go first and are counted.
//! * A request is kept durably before the exporter's position passes it.
//! * The command line may list, send again and remove files while the exporter runs: a file that has gone is no error, and
//!   nothing is deleted to make room that is there already.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::RefusedLimits;
use crate::checksum;
use crate::egress::Fingerprint;
use crate::journal::create_directory;
use crate::otlp::{Encoding, Signal};

const SUFFIX: &str = ".refused";
const UNFINISHED: &str = ".unfinished";

/// What is known of a refused request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The exporter, `otlp` or `otlp/<name>`.
    pub exporter: String,
    /// `traces`, `metrics` or `logs`.
    pub signal: String,
    /// The encoding of the body: `identity`, `gzip`, ...
    pub encoding: String,
    /// Spans, data points or log records in it.
    pub items: u64,
    /// What the backend said.
    pub reason: String,
    /// When it was refused, in unix nanoseconds.
    pub refused_at: u64,
    /// When it was received, in unix nanoseconds.
    pub received_at: u64,
    /// Its sequence in the journal.
    pub sequence: u64,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// CRC32C of the body.
    pub body_crc32c: u32,
    /// The rules for what leaves that the body went through; none if it went through none because it could not be read, or
    /// was kept by a version that did not tell.
    #[serde(default)]
    pub went_through: Option<Fingerprint>,
}

impl Refusal {
    /// The signal, if the file was not tampered with.
    pub fn signal(&self) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| signal.name() == self.signal)
    }

    /// The encoding of the body, if the file was not tampered with.
    pub fn encoding(&self) -> Option<Encoding> {
        Encoding::from_token(&self.encoding)
    }
}

/// A request to be kept.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) signal: Signal,
    pub(super) encoding: Encoding,
    pub(super) items: u64,
    pub(super) reason: &'a str,
    pub(super) refused_at: u64,
    pub(super) received_at: u64,
    pub(super) sequence: u64,
    pub(super) went_through: Option<Fingerprint>,
    pub(super) body: &'a [u8],
}

/// A request that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// What is known of it.
    pub refusal: Refusal,
}

/// What came of keeping a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// It is on disk. So many others were deleted to make room.
    Kept {
        /// Also those of attempts that failed.
        evicted: u64,
    },
    /// It would take more room than there may be for all. It is not on disk.
    NoRoom,
}

/// The refused requests of one exporter, for the exporter itself.
#[derive(Debug)]
pub(super) struct RefusedStore {
    directory: PathBuf,
    exporter: String,
    limits: RefusedLimits,
    /// Oldest first, with sizes.
    files: VecDeque<(PathBuf, u64)>,
    size: u64,
    counter: u64,
    /// Deleted to make room and not told yet.
    evicted: u64,
}

impl RefusedStore {
    /// Opens the directory, which is made when the first request is kept.
    pub(super) fn open(directory: PathBuf, exporter: &str, limits: RefusedLimits) -> io::Result<RefusedStore> {
        remove_unfinished(&directory)?;
        let mut store = RefusedStore {
            directory,
            exporter: exporter.to_owned(),
            limits,
            files: VecDeque::new(),
            size: 0,
            counter: 0,
            evicted: 0,
        };
        store.look()?;
        Ok(store)
    }

    /// Takes in what is in the directory.
    fn look(&mut self) -> io::Result<()> {
        let mut files = VecDeque::new();
        for path in finished_files(&self.directory)? {
            match fs::metadata(&path) {
                Ok(metadata) => files.push_back((path, metadata.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.size = files.iter().map(|(_, size)| size).sum();
        self.files = files;
        Ok(())
    }

    /// Keeps a request durably, if it has room at all.
    pub(super) fn keep(&mut self, refused: &Refused<'_>) -> io::Result<Keeping> {
        let refusal = Refusal {
            exporter: self.exporter.clone(),
            signal: refused.signal.name().to_owned(),
            encoding: refused.encoding.token().to_owned(),
            items: refused.items,
            reason: refused.reason.to_owned(),
            refused_at: refused.refused_at,
            received_at: refused.received_at,
            sequence: refused.sequence,
            body_bytes: refused.body.len() as u64,
            body_crc32c: checksum::crc32c(refused.body),
            went_through: refused.went_through.clone(),
        };
        let mut line = serde_json::to_vec(&refusal)?;
        line.push(b'\n');
        let size = (line.len() + refused.body.len()) as u64;
        if size > self.limits.max_size || self.limits.max_count == 0 {
            return Ok(Keeping::NoRoom);
        }
        self.make_room(size)?;
        create_directory(&self.directory)?;
        self.counter += 1;
        let name = format!("{:020}-{:06}{SUFFIX}", refused.refused_at, self.counter);
        let path = self.directory.join(&name);
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        if let Err(error) = self.write(&unfinished, &path, [&line, refused.body]) {
            // The next attempt has another name: what is left of this one would be within no limit.
            fs::remove_file(&unfinished).ok();
            fs::remove_file(&path).ok();
            return Err(error);
        }
        self.files.push_back((path, size));
        self.size += size;
        Ok(Keeping::Kept {
            evicted: std::mem::take(&mut self.evicted),
        })
    }

    /// When this returns, the file survives a power failure.
    fn write(&self, unfinished: &Path, path: &Path, parts: [&[u8]; 2]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(unfinished)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(unfinished, path)?;
        File::open(&self.directory)?.sync_all()
    }

    fn has_room(&self, size: u64) -> bool {
        self.size + size <= self.limits.max_size && self.files.len() < self.limits.max_count
    }

    fn make_room(&mut self, size: u64) -> io::Result<()> {
        if !self.has_room(size) {
            // The command line may have made some.
            self.look()?;
        }
        while !self.has_room(size) {
            let Some((path, freed)) = self.files.front() else { break };
            match fs::remove_file(path) {
                Ok(()) => self.evicted += 1,
                // Removed by the command line just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.size = self.size.saturating_sub(*freed);
            self.files.pop_front();
        }
        Ok(())
    }
}

/// The directory of one exporter below `refused/`. A slash in its name becomes a plus sign.
pub fn refused_directory(root: &Path, exporter: &str) -> PathBuf {
    root.join(exporter.replace('/', "+"))
}

/// Everything that is kept in `directory` (of one exporter), oldest first. Unreadable files are left out.
pub fn list_refused(directory: &Path) -> io::Result<Vec<Kept>> {
    let kept = finished_files(directory)?.into_iter().filter_map(|path| {
        let mut line = Vec::new();
        BufReader::new(File::open(&path).ok()?)
            .take(1 << 20)
            .read_until(b'\n', &mut line)
            .ok()?;
        Some(Kept {
            refusal: serde_json::from_slice(&line).ok()?,
            path,
        })
    });
    Ok(kept.collect())
}

/// The body of a kept request. An error if the file is not what was written.
pub fn read_refused(kept: &Kept) -> io::Result<Bytes> {
    let mut file = BufReader::new(File::open(&kept.path)?);
    file.skip_until(b'\n')?;
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    if body.len() as u64 != kept.refusal.body_bytes || checksum::crc32c(&body) != kept.refusal.body_crc32c {
        let message = format!("{}: the body is damaged", kept.path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Bytes::from(body))
}

/// Removes a kept request; one that has gone already is no error.
pub fn remove_refused(kept: &Kept) -> io::Result<()> {
    match fs::remove_file(&kept.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn finished_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Files left by a crash: what they were to hold is still in the journal.
fn remove_unfinished(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(UNFINISHED) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn refused(sequence: u64, body: &'static [u8]) -> Refused<'static> {
        Refused {
            signal: Signal::Traces,
            encoding: Encoding::Gzip,
            items: 3,
            reason: "400 Bad Request: \"too odd\"",
            refused_at: 1_700_000_000_000_000_000 + sequence,
            received_at: 5,
            sequence,
            went_through: None,
            body,
        }
    }

    /// Keeps it; how many had to go.
    fn evicted(store: &mut RefusedStore, refused: &Refused<'_>) -> u64 {
        match store.keep(refused).unwrap() {
            Keeping::Kept { evicted } => evicted,
            Keeping::NoRoom => panic!("not kept"),
        }
    }

    fn sequences(directory: &Path) -> Vec<u64> {
        list_refused(directory)
            .unwrap()
            .iter()
            .map(|kept| kept.refusal.sequence)
            .collect()
    }

    #[test]
    fn what_is_kept_is_listed_read_and_removed_in_order() {
        let root = tempfile::tempdir().unwrap();
        let directory = refused_directory(root.path(), "otlp/eu");
        assert_eq!(list_refused(&directory).unwrap(), []);
        let mut store = RefusedStore::open(directory.clone(), "otlp/eu", RefusedLimits::default()).unwrap();
        for (sequence, body) in [(1, &b"one\ntwo"[..]), (2, b"")] {
            assert_eq!(evicted(&mut store, &refused(sequence, body)), 0);
        }
        let kept = list_refused(&directory).unwrap();
        assert_eq!(read_refused(&kept[0]).unwrap(), &b"one\ntwo"[..]);
        assert_eq!(read_refused(&kept[1]).unwrap(), &b""[..]);
        let first = &kept[0].refusal;
        assert_eq!(
            (first.signal(), first.encoding()),
            (Some(Signal::Traces), Some(Encoding::Gzip))
        );
        assert_eq!((first.exporter.as_str(), first.items), ("otlp/eu", 3));
        assert_eq!(fs::metadata(&kept[0].path).unwrap().permissions().mode() & 0o777, 0o600);
        remove_refused(&kept[0]).unwrap();
        remove_refused(&kept[0]).unwrap();
        assert_eq!(sequences(&directory), [2]);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_much_also_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let open = |limits| RefusedStore::open(root.path().to_owned(), "otlp", limits).unwrap();
        let mut store = open(RefusedLimits {
            max_size: 1 << 20,
            max_count: 2,
        });
        let gone: u64 = (0..3)
            .map(|sequence| evicted(&mut store, &refused(sequence, b"body")))
            .sum();
        assert_eq!((gone, sequences(root.path())), (1, vec![1, 2]));

        let one = fs::metadata(&list_refused(root.path()).unwrap()[0].path).unwrap().len();
        let mut store = open(RefusedLimits {
            max_size: 2 * one,
            max_count: 100,
        });
        assert_eq!(evicted(&mut store, &refused(3, b"body")), 1);
        assert_eq!(sequences(root.path()), [2, 3]);
        // What the command line removed in the meantime is not counted as evicted.
        remove_refused(&list_refused(root.path()).unwrap()[0]).unwrap();
        assert_eq!(evicted(&mut store, &refused(4, b"body")), 0);
        assert_eq!(sequences(root.path()), [3, 4]);
    }

    #[test]
    fn what_the_command_line_removed_makes_room_whichever_it_was() {
        let root = tempfile::tempdir().unwrap();
        let limits = RefusedLimits {
            max_size: 1 << 20,
            max_count: 3,
        };
        let mut store = RefusedStore::open(root.path().to_owned(), "otlp", limits).unwrap();
        for sequence in 1..=3 {
            assert_eq!(evicted(&mut store, &refused(sequence, b"body")), 0);
        }
        remove_refused(&list_refused(root.path()).unwrap()[2]).unwrap();
        assert_eq!(evicted(&mut store, &refused(4, b"body")), 0);
        assert_eq!(sequences(root.path()), [1, 2, 4]);
    }

    #[test]
    fn what_is_larger_than_all_that_may_be_kept_costs_no_other_and_is_not_called_kept() {
        static HUGE: [u8; 4096] = [0; 4096];
        let root = tempfile::tempdir().unwrap();
        let open = |limits| RefusedStore::open(root.path().to_owned(), "otlp", limits).unwrap();
        let mut store = open(RefusedLimits {
            max_size: 4096,
            max_count: 10,
        });
        assert_eq!(evicted(&mut store, &refused(1, b"body")), 0);
        assert_eq!(store.keep(&refused(2, &HUGE)).unwrap(), Keeping::NoRoom);
        let mut store = open(RefusedLimits {
            max_size: 4096,
            max_count: 0,
        });
        assert_eq!(store.keep(&refused(3, b"body")).unwrap(), Keeping::NoRoom);
        assert_eq!(sequences(root.path()), [1]);
    }

    #[test]
    fn an_attempt_that_fails_leaves_nothing_behind_and_what_it_deleted_is_told_later() {
        let root = tempfile::tempdir().unwrap();
        let limits = RefusedLimits {
            max_size: 1 << 20,
            max_count: 1,
        };
        let mut store = RefusedStore::open(root.path().to_owned(), "otlp", limits).unwrap();
        assert_eq!(evicted(&mut store, &refused(1, b"body")), 0);
        // A directory is where the file shall be.
        let second = refused(2, b"body");
        let place = root.path().join(format!("{:020}-{:06}{SUFFIX}", second.refused_at, 2));
        fs::create_dir(&place).unwrap();
        assert!(store.keep(&second).is_err());
        fs::remove_dir(place).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert_eq!(evicted(&mut store, &second), 1);
        assert_eq!(sequences(root.path()), [2]);
    }

    #[test]
    fn damaged_and_unfinished_files_are_recognised() {
        let root = tempfile::tempdir().unwrap();
        let mut store = RefusedStore::open(root.path().to_owned(), "otlp", RefusedLimits::default()).unwrap();
        store.keep(&refused(1, b"body")).unwrap();
        let kept = list_refused(root.path()).unwrap();
        let mut bytes = fs::read(&kept[0].path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&kept[0].path, bytes).unwrap();
        assert_eq!(read_refused(&kept[0]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::write(root.path().join(format!("1-1{SUFFIX}{UNFINISHED}")), b"half").unwrap();
        fs::write(root.path().join(format!("0{SUFFIX}")), b"no json\n").unwrap();
        drop(RefusedStore::open(root.path().to_owned(), "otlp", RefusedLimits::default()).unwrap());
        assert_eq!(sequences(root.path()), [1]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
