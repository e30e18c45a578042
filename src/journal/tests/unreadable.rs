//! A real journal on a disk that refuses to read a part of each file.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::journal::disk::{Disk, DiskFile, OsDisk};
use crate::journal::options::Settings;
use crate::journal::segment::lock;
use crate::journal::{Journal, Options};

/// Which part of each file cannot be read; at first none.
#[derive(Clone)]
pub(crate) struct Unreadable(Arc<Mutex<Range<u64>>>);

impl Unreadable {
    /// From now on.
    pub(crate) fn set(&self, offsets: Range<u64>) {
        *lock(&self.0) = offsets;
    }
}

/// Opens the journal on such a disk.
pub(crate) fn open(options: Options) -> (Journal, Unreadable) {
    let unreadable = Unreadable(Arc::new(Mutex::new(0..0)));
    let disk = Refusing {
        disk: OsDisk::create(&options.directory).unwrap(),
        unreadable: unreadable.clone(),
    };
    (
        Journal::open_on(Arc::new(disk), Settings::new(&options).unwrap())
            .unwrap()
            .0,
        unreadable,
    )
}

struct Refusing {
    disk: OsDisk,
    unreadable: Unreadable,
}

impl Refusing {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let unreadable = self.unreadable.clone();
        Arc::new(RefusingFile { file, unreadable })
    }
}

impl Disk for Refusing {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.open(name)?))
    }
    fn open_direct(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        Ok(self.disk.open_direct(name)?.map(|file| self.file(file)))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.create(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn free_space(&self) -> io::Result<u64> {
        self.disk.free_space()
    }
    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.disk.lock(name)
    }
    fn directory(&self) -> &Path {
        self.disk.directory()
    }
}

struct RefusingFile {
    file: Arc<dyn DiskFile>,
    unreadable: Unreadable,
}

impl DiskFile for RefusingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let unreadable = lock(&self.unreadable.0).clone();
        let end = offset + buffer.len() as u64;
        if !unreadable.is_empty() && offset < unreadable.end && unreadable.start < end {
            return Err(io::Error::other("this cannot be read"));
        }
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.file.allocate(length)
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}
