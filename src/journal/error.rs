//! What can go wrong in the journal. Messages name the configuration key that cures them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The journal cannot be opened or used as asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds the lock on the directory.
    #[error(
        "another process is using {}; give each process a directory of its own (journal.directory)",
        directory.display()
    )]
    Locked {
        /// The directory that is in use.
        directory: PathBuf,
    },
    /// The disk refused.
    #[error("cannot {action} in {} (journal.directory): {source}", directory.display())]
    Io {
        /// What was tried, as an infinitive.
        action: String,
        /// The journal's directory.
        directory: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory was written by a newer version of the program.
    #[error(
        "{} holds a journal of format version {found}, this program knows {known}: run the newer program, or choose \
         another journal.directory", directory.display()
    )]
    Version {
        /// The journal's directory.
        directory: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
    /// A reader that was not named in the options when the journal was opened.
    #[error("no reader is called {0:?}: name it in the options when the journal is opened")]
    UnknownReader(String),
    /// A reader can be taken once at a time, because it has one position.
    #[error("reader {0:?} is taken already")]
    ReaderTaken(String),
}

/// A request was not made durable. Nothing of it will be seen by any reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room is left: every byte that `journal.max_size` allows is still wanted by a reader, or the disk is full.
    #[error("the journal is full (journal.max_size, or the disk); try again in {} s", retry_after.as_secs().max(1))]
    Full {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The disk refused to write or to sync. The request may be sent again at once.
    #[error("the journal could not store the request: {0}")]
    Failed(Arc<str>),
    /// The journal is shutting down.
    #[error("the journal is closed")]
    Closed,
    /// Larger than a journal of this size can ever take.
    #[error("the request is larger than a quarter of journal.max_size")]
    TooLarge,
}

impl AppendError {
    /// Whether the same request can succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::TooLarge)
    }
}

/// A reader could not read. It has not moved and may try again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The disk refused to read. After several refusals at one place the reader steps over it and counts the loss.
    #[error("cannot read the journal (journal.directory): {0}")]
    Io(Arc<str>),
    /// The journal is closed and everything in it was handed out.
    #[error("the journal is closed")]
    Closed,
    /// [`Reader::resume`](super::Reader::resume) was not called yet.
    #[error("the reader has not resumed yet")]
    NotResumed,
}

impl ReadError {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}
