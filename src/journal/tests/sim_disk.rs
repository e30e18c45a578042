//! A disk that forgets: after a power failure there is what was synced, and of the rest whatever chance leaves:
//! writes that are missing, out of order, or torn in the middle. It can refuse to write or sync, run full, and lose
//! power at any single operation. It has no page cache of its own: direct writes and others go to the same bytes, and only
//! a real disk can show what a system does that mixes them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::journal::disk::{BLOCK, Disk, DiskFile};

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Length(u64),
}

#[derive(Default, Clone)]
struct Content {
    /// What reads see.
    current: Vec<u8>,
    /// What is on the platter.
    synced: Vec<u8>,
    /// What leads from one to the other.
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum DirectoryChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

fn apply_to_directory(directory: &mut BTreeMap<String, usize>, change: &DirectoryChange) {
    match change {
        DirectoryChange::Link(name, file) => drop(directory.insert(name.clone(), *file)),
        DirectoryChange::Unlink(name) => drop(directory.remove(name)),
        DirectoryChange::Rename(from, to) => {
            if let Some(file) = directory.remove(from) {
                directory.insert(to.clone(), file);
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length as usize, 0),
        Change::Write { offset, data } => {
            let end = *offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(data);
        }
    }
}

/// What the file system does about direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direct {
    /// It has none.
    None,
    /// It only says so when something is written.
    Refuses,
    Works,
}

struct Inner {
    random: fastrand::Rng,
    direct: Direct,
    direct_writes: u64,
    bytes_read: u64,
    /// Where in memory the parts of the last write were.
    written_from: Vec<usize>,
    directory: BTreeMap<String, usize>,
    synced_directory: BTreeMap<String, usize>,
    unsynced_directory: Vec<DirectoryChange>,
    contents: Vec<Content>,
    capacity: u64,
    /// One in so many writes and syncs fails; 0: none.
    faults: u32,
    read_faults: u32,
    /// What cannot be read in any file, by offset.
    unreadable: Range<u64>,
    is_read_only: bool,
    /// Operations until every further one fails.
    until_broken: Option<u64>,
    /// Operations until the power goes.
    power: Option<u64>,
    is_off: bool,
}

impl Inner {
    fn used(&self) -> u64 {
        self.directory
            .values()
            .map(|file| self.contents[*file].current.len() as u64)
            .sum()
    }

    /// Every change of the disk comes by here.
    fn operation(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.power {
            *left = left.saturating_sub(1);
            self.is_off |= *left == 0;
        }
        if self.is_off {
            Err(io::Error::other("the power is off"))
        } else {
            Ok(())
        }
    }

    fn is_unlucky(&mut self) -> bool {
        if let Some(left) = &mut self.until_broken {
            if *left == 0 {
                return true;
            }
            *left -= 1;
        }
        self.faults > 0 && self.random.u32(0..self.faults) == 0
    }

    /// Lets chance decide which unsynced changes reached the platter.
    fn settle(&mut self, file: usize) {
        let mut changes = std::mem::take(&mut self.contents[file].unsynced);
        self.random.shuffle(&mut changes);
        let mut synced = std::mem::take(&mut self.contents[file].synced);
        for change in changes {
            match (self.random.u32(0..4), change) {
                (0, _) => {}
                (1, Change::Write { offset, data }) if !data.is_empty() => {
                    let from = self.random.usize(0..data.len());
                    let to = self.random.usize(from..=data.len());
                    apply(
                        &mut synced,
                        &Change::Write {
                            offset: offset + from as u64,
                            data: data[from..to].to_vec(),
                        },
                    );
                }
                (_, change) => apply(&mut synced, &change),
            }
        }
        self.contents[file].synced = synced;
    }
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<Inner>>);

struct SimFile {
    disk: SimDisk,
    file: usize,
    is_direct: bool,
}

impl SimDisk {
    pub(super) fn new(seed: u64, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random: fastrand::Rng::with_seed(seed),
            direct: Direct::Works,
            direct_writes: 0,
            bytes_read: 0,
            written_from: Vec::new(),
            directory: BTreeMap::new(),
            synced_directory: BTreeMap::new(),
            unsynced_directory: Vec::new(),
            contents: Vec::new(),
            capacity,
            faults: 0,
            read_faults: 0,
            unreadable: 0..0,
            is_read_only: false,
            until_broken: None,
            power: None,
            is_off: false,
        })))
    }

    fn handle(&self, file: usize, is_direct: bool) -> Arc<dyn DiskFile> {
        let disk = self.clone();
        Arc::new(SimFile { disk, file, is_direct })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Whether the last write took these bytes from where they are.
    pub(super) fn wrote_from(&self, bytes: &[u8]) -> bool {
        self.inner().written_from.contains(&bytes.as_ptr().addr())
    }

    /// Writes past the page cache that succeeded.
    pub(super) fn direct_writes(&self) -> u64 {
        self.inner().direct_writes
    }

    /// Bytes that reads have returned.
    pub(super) fn bytes_read(&self) -> u64 {
        self.inner().bytes_read
    }

    pub(super) fn set_direct(&self, direct: Direct) {
        self.inner().direct = direct;
    }

    pub(super) fn set_faults(&self, one_in: u32, reads_one_in: u32) {
        let mut inner = self.inner();
        inner.faults = one_in;
        inner.read_faults = reads_one_in;
    }

    /// The disk cannot read these offsets of any file; an empty range heals it.
    pub(super) fn set_unreadable(&self, offsets: Range<u64>) {
        self.inner().unreadable = offsets;
    }

    /// Every write fails, and every sync says that it did not.
    pub(super) fn set_read_only(&self, is_read_only: bool) {
        self.inner().is_read_only = is_read_only;
    }

    /// After so many operations none succeeds any more. `None`: the disk is whole.
    pub(super) fn break_after(&self, operations: Option<u64>) {
        self.inner().until_broken = operations;
    }

    /// Whether that has come.
    pub(super) fn is_broken(&self) -> bool {
        self.inner().until_broken == Some(0)
    }

    pub(super) fn set_capacity(&self, bytes: u64) {
        self.inner().capacity = bytes;
    }

    /// The power goes off at the so-manieth operation from now.
    pub(super) fn fail_power_after(&self, operations: u64) {
        self.inner().power = Some(operations);
    }

    pub(super) fn is_off(&self) -> bool {
        self.inner().is_off
    }

    pub(super) fn used(&self) -> u64 {
        self.inner().used()
    }

    /// Power failure and return of the power.
    pub(super) fn lose_power(&self) {
        let mut inner = self.inner();
        for file in 0..inner.contents.len() {
            inner.settle(file);
            let synced = inner.contents[file].synced.clone();
            inner.contents[file].current = synced;
        }
        let count = inner.unsynced_directory.len();
        let kept = inner.random.usize(0..=count);
        let changes = std::mem::take(&mut inner.unsynced_directory);
        for change in &changes[..kept] {
            apply_to_directory(&mut inner.synced_directory, change);
        }
        inner.directory = inner.synced_directory.clone();
        inner.power = None;
        inner.is_off = false;
    }

    /// The process died, and the system did not.
    pub(super) fn kill(&self) {
        let mut inner = self.inner();
        inner.power = None;
        inner.is_off = false;
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner();
        let file = *inner.directory.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(file, false))
    }

    fn open_direct(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let inner = self.inner();
        if inner.direct == Direct::None {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        let file = *inner.directory.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Some(self.handle(file, true)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.operation()?;
        if inner.is_unlucky() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let file = inner.contents.len();
        inner.contents.push(Content::default());
        let change = DirectoryChange::Link(name.to_owned(), file);
        apply_to_directory(&mut inner.directory, &change);
        inner.unsynced_directory.push(change);
        Ok(self.handle(file, false))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operation()?;
        if inner.is_unlucky() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let change = DirectoryChange::Rename(from.to_owned(), to.to_owned());
        apply_to_directory(&mut inner.directory, &change);
        inner.unsynced_directory.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operation()?;
        if inner.is_unlucky() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let change = DirectoryChange::Unlink(name.to_owned());
        apply_to_directory(&mut inner.directory, &change);
        inner.unsynced_directory.push(change);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().directory.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operation()?;
        if inner.is_unlucky() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        inner.synced_directory = inner.directory.clone();
        inner.unsynced_directory.clear();
        Ok(())
    }

    fn free_space(&self) -> io::Result<u64> {
        let inner = self.inner();
        Ok(inner.capacity.saturating_sub(inner.used()))
    }

    fn lock(&self, _name: &str) -> io::Result<Option<Box<dyn Send + Sync>>> {
        Ok(Some(Box::new(())))
    }

    fn directory(&self) -> &Path {
        Path::new("/simulated")
    }
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.operation()?;
        if inner.is_read_only {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if inner.is_unlucky() {
            // Part of it may be done.
            if let Change::Write { offset, data } = &change {
                let length = inner.random.usize(0..=data.len());
                let part = Change::Write {
                    offset: *offset,
                    data: data[..length].to_vec(),
                };
                let content = &mut inner.contents[self.file];
                apply(&mut content.current, &part);
                content.unsynced.push(part);
            }
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let length = inner.contents[self.file].current.len() as u64;
        let after = match &change {
            Change::Length(length) => *length,
            Change::Write { offset, data } => length.max(offset + data.len() as u64),
        };
        if after > length && inner.used() + after - length > inner.capacity {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let content = &mut inner.contents[self.file];
        apply(&mut content.current, &change);
        content.unsynced.push(change);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = &mut *self.disk.inner();
        if inner.read_faults > 0 {
            let one_in = inner.read_faults;
            if inner.random.u32(0..one_in) == 0 {
                return Err(io::Error::from_raw_os_error(EIO));
            }
        }
        let content = &inner.contents[self.file].current;
        let from = (offset as usize).min(content.len());
        let count = buffer.len().min(content.len() - from);
        if offset < inner.unreadable.end && offset + count as u64 > inner.unreadable.start {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        buffer[..count].copy_from_slice(&content[from..from + count]);
        inner.bytes_read += count as u64;
        Ok(count)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let is_whole = |part: &&[u8]| part.as_ptr().align_offset(BLOCK) == 0 && part.len().is_multiple_of(BLOCK);
        let is_aligned = offset.is_multiple_of(BLOCK as u64) && parts.iter().all(is_whole);
        if self.is_direct {
            assert!(is_aligned, "a direct write at {offset} does not consist of blocks");
            if self.disk.inner().direct != Direct::Works {
                return Err(io::Error::from_raw_os_error(EINVAL));
            }
        }
        self.change(Change::Write {
            offset,
            data: parts.concat(),
        })?;
        let mut inner = self.disk.inner();
        inner.direct_writes += u64::from(self.is_direct);
        inner.written_from = parts.iter().map(|part| part.as_ptr().addr()).collect();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.operation()?;
        if inner.is_unlucky() {
            // As Linux does: the pages count as clean afterwards, whether they were written or not.
            inner.settle(self.file);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let content = &mut inner.contents[self.file];
        for change in std::mem::take(&mut content.unsynced) {
            apply(&mut content.synced, &change);
        }
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(length))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(length))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.inner().contents[self.file].current.len() as u64)
    }
}
