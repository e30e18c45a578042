//! Starting a metric anew because somebody asks for it.
//!
//! While no meter runs, its series are taken out of the checkpoint. A running meter finds the request as an empty file
//! named like the metric, in a directory beside its checkpoint: who may write there may reset, and a request survives a
//! crash. The meter removes the file when the reset is saved.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Damage};
use super::stage::{MeterError, unix_nano};
use crate::rules::Catalogue;

/// Lets a metric start anew while the program does not run: takes its series out of the checkpoint in `directory`. The
/// caller makes sure that no meter is running, by the lock of the journal.
///
/// # Errors
///
/// The checkpoint cannot be read or written, or does not have the metric.
pub fn reset(directory: &Path, name: &str) -> Result<(), MeterError> {
    let failed = |damage: Damage| MeterError::Checkpoint {
        directory: directory.to_owned(),
        reason: damage.to_string(),
    };
    let mut checkpoint = match checkpoint::load(directory).map_err(failed)? {
        Some(checkpoint) => checkpoint,
        None => return Err(unknown_metric(name, std::iter::empty())),
    };
    let Some(family) = checkpoint.families.iter_mut().find(|family| family.name == name) else {
        return Err(unknown_metric(
            name,
            checkpoint.families.iter().map(|family| &family.name),
        ));
    };
    family.forget(unix_nano());
    checkpoint::save(directory, &checkpoint.encode()).map_err(|error| failed(error.into()))
}

/// A reset that a running meter was asked for.
#[derive(Debug)]
pub struct ResetRequest {
    file: PathBuf,
}

/// Asks the meter that is running on `directory` to let a metric of `catalogue` start anew.
///
/// # Errors
///
/// There is no such metric, or the file cannot be written.
pub fn request_reset(directory: &Path, catalogue: &Catalogue, name: &str) -> Result<ResetRequest, MeterError> {
    if !catalogue.names().any(|known| known == name) {
        let known: Vec<String> = catalogue.names().map(str::to_owned).collect();
        return Err(unknown_metric(name, known.iter()));
    }
    let file = requests(directory).join(name);
    let make = || {
        std::fs::create_dir_all(requests(directory))?;
        std::fs::write(&file, "")
    };
    make().map_err(|source| MeterError::Directory {
        directory: directory.to_owned(),
        source,
    })?;
    Ok(ResetRequest { file })
}

impl ResetRequest {
    /// Whether the meter has done it.
    pub fn is_done(&self) -> bool {
        matches!(self.file.try_exists(), Ok(false))
    }

    /// Takes the request back, if it is still there.
    pub fn withdraw(self) {
        // Gone is what it shall be.
        let _gone = std::fs::remove_file(self.file);
    }
}

fn requests(directory: &Path) -> PathBuf {
    directory.join("reset")
}

/// The metrics for which a reset was asked. Without the directory, which is the usual case, there are none.
pub(super) fn requested(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(requests(directory)).into_iter().flatten().flatten();
    files.filter_map(|file| file.file_name().into_string().ok()).collect()
}

/// Takes requests away that were fulfilled.
pub(super) fn done(directory: &Path, names: &[String]) {
    for name in names {
        if let Err(error) = std::fs::remove_file(requests(directory).join(name)) {
            tracing::warn!(metric = name, %error, "a request to reset a metric cannot be removed; it will be done again");
        }
    }
}

pub(super) fn unknown_metric<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> MeterError {
    let known: Vec<String> = known.cloned().collect();
    MeterError::UnknownMetric {
        name: name.to_owned(),
        nearest: crate::config::section::nearest(name, &known).map(str::to_owned),
    }
}
