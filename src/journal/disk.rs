//! The disk as the journal sees it: a flat directory of files. [`OsDisk`] is the real one; the tests have a simulated
//! one that forgets what was not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failpoint::{self, Point};

/// A flat directory.
pub(super) trait Disk: Send + Sync {
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for writing past the page cache: memory, offsets and lengths of all writes are multiples
    /// of [`BLOCK`]. `None`: the system has no such thing. Where the file system has not, this or the first write
    /// says [`is_not_direct`].
    fn open_direct(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>>;
    /// Creates a file, or empties the one that is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `to` atomically. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that may still be written to the file system.
    fn free_space(&self) -> io::Result<u64>;
    /// Takes the directory for this process alone. `None`: another one has it.
    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn Send + Sync>>>;
    /// For messages.
    fn directory(&self) -> &Path;
}

/// One file, read and written by offset from any thread.
pub(super) trait DiskFile: Send + Sync {
    /// Reads until `buffer` is full or the file ends; returns how much was read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all parts one behind the other, in one call where the system allows.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Waits until everything written is on the disk.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the file `length` long and reserves the blocks.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
}

/// What direct writes begin and end on, in memory and in the file. A disk with larger sectors refuses them.
pub(super) const BLOCK: usize = 4096;

/// Whether the file system cannot write past the page cache, or not in pieces of [`BLOCK`].
pub(super) fn is_not_direct(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Whether that is all that is wrong.
pub(super) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Creates a directory when it is missing, readable by nobody else; it survives a power failure, and so do those above
/// it that were missing.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for parent in missing.iter().filter_map(|created| created.parent()) {
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        // One that may be written to and not read cannot be synced.
        if let Ok(parent) = File::open(parent) {
            parent.sync_all()?;
        }
    }
    Ok(())
}

/// A directory of the operating system.
pub(super) struct OsDisk {
    directory: PathBuf,
    writable: bool,
}

impl OsDisk {
    /// See [`create_directory`].
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        create_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            writable: true,
        })
    }

    /// For looking only: no call changes anything.
    pub(super) fn read_only(directory: &Path) -> io::Result<Self> {
        fs::metadata(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            writable: false,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Disk for OsDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(
            OpenOptions::new()
                .read(true)
                .write(self.writable)
                .open(self.path(name))?,
        ))
    }

    #[cfg(target_os = "linux")]
    fn open_direct(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(flags);
        Ok(Some(Arc::new(options.open(self.path(name))?)))
    }

    #[cfg(not(target_os = "linux"))]
    fn open_direct(&self, _name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        Ok(None)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Arc::new(options.open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn free_space(&self) -> io::Result<u64> {
        let statistics = rustix::fs::statvfs(&self.directory)?;
        Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
    }

    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(self.writable)
            .create(self.writable)
            .truncate(false)
            .mode(0o600);
        let file = options.open(self.path(name))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&self) -> &Path {
        &self.directory
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut done = match rustix::io::pwritev(self, &slices, offset) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if done == total {
            return Ok(());
        }
        // A short write is rare (a signal, a limit, a full disk): finish part by part, so that the reason is
        // reported. From the begin of a block, as direct writes must.
        done -= done % BLOCK;
        let mut start = 0;
        for part in parts {
            let skip = done.saturating_sub(start).min(part.len());
            if skip < part.len() {
                self.write_all_at(&part[skip..], offset + (start + skip) as u64)?;
                done = start + part.len();
            }
            start += part.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, length) {
            Ok(()) => return Ok(()),
            // Some file systems cannot reserve. A full disk is then met by the write, which ends the segment.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        self.set_len(length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Writes a small file so that after a crash either the old or the new content is there, whole.
pub(super) fn replace_file(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let file = disk.create(&temporary)?;
    file.write_at(&[content], 0)?;
    file.sync_data()?;
    failpoint::hit(Point::BeforeReplace);
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

/// Reads a whole small file, or as much of it as `limit` allows.
pub(super) fn read_file(disk: &dyn Disk, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let mut content = vec![0; file.length()?.min(limit) as usize];
    let count = file.read_at(&mut content, 0)?;
    content.truncate(count);
    Ok(content)
}
