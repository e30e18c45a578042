//! Starting a metric anew because somebody asks for it.
//!
//! While no meter runs, its series are taken out of the checkpoint. A running meter finds the request as an empty file
//! named like the metric, in a directory beside its checkpoint: who may write there may reset, and a request survives a
//! crash. The meter removes the file when the reset is saved.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::checkpoint::{self, Damage};
use super::stage::MeterError;
use crate::clock::unix_nanos;
use crate::rules::Catalogue;

/// Lets a metric start anew while the program does not run: takes its series out of the checkpoint in `directory`. The
/// caller makes sure that no meter is running, by the lock of the journal.
///
/// # Errors
///
/// The checkpoint cannot be read or written, or neither it nor `catalogue` has the metric.
pub fn reset(directory: &Path, catalogue: &Catalogue, name: &str) -> Result<(), MeterError> {
    let failed = |damage: Damage| MeterError::checkpoint(directory, &damage);
    let mut checkpoint = checkpoint::load(directory).map_err(failed)?;
    let mut saved = checkpoint.iter_mut().flat_map(|checkpoint| &mut checkpoint.families);
    match saved.find(|family| family.name == name) {
        Some(family) => family.forget(unix_nanos()),
        // Nothing of it was saved yet, so that it starts anew by itself.
        None if catalogue.names().any(|known| known == name) => return Ok(()),
        None => return Err(unknown_metric(name, catalogue.names())),
    }
    match checkpoint {
        Some(checkpoint) => checkpoint::save(directory, &checkpoint.encode()).map_err(|error| failed(error.into())),
        None => Ok(()),
    }
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
        return Err(unknown_metric(name, catalogue.names()));
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

/// The requests that a running meter finds, and those it has fulfilled.
pub(super) struct Inbox {
    directory: PathBuf,
    /// Fulfilled, and still there: the file is another user's and cannot be removed. Done once, all the same; a request
    /// that is made anew has another time.
    fulfilled: HashMap<String, Option<SystemTime>>,
}

impl Inbox {
    /// Makes the directory, so that it belongs to the user who has to remove files from it.
    pub(super) fn open(directory: &Path) -> Self {
        let directory = requests(directory);
        if let Err(error) = std::fs::create_dir_all(&directory) {
            // On a full disk for instance; who makes a request makes it then.
            tracing::warn!(directory = %directory.display(), %error, "cannot make the directory for requests to reset a metric");
        }
        Self {
            directory,
            fulfilled: HashMap::new(),
        }
    }

    /// The metrics for which a reset is asked.
    pub(super) fn requested(&mut self) -> Vec<String> {
        let files = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names: Vec<String> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
        self.fulfilled.retain(|name, _| names.contains(name));
        let is_new = |name: &String| self.fulfilled.get(name) != Some(&self.asked_at(name));
        names.into_iter().filter(is_new).collect()
    }

    /// Takes requests away that were fulfilled.
    pub(super) fn done(&mut self, names: Vec<String>) {
        for name in names {
            let asked_at = self.asked_at(&name);
            if let Err(error) = std::fs::remove_file(self.directory.join(&name)) {
                let file = self.directory.join(&name);
                tracing::warn!(file = %file.display(), %error, "the request to reset a metric is fulfilled and cannot be removed; it will be done again after a restart");
                self.fulfilled.insert(name, asked_at);
            }
        }
    }

    fn asked_at(&self, name: &str) -> Option<SystemTime> {
        std::fs::metadata(self.directory.join(name))
            .and_then(|file| file.modified())
            .ok()
    }
}

pub(super) fn unknown_metric<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> MeterError {
    let known: Vec<String> = known.map(str::to_owned).collect();
    MeterError::UnknownMetric {
        name: name.to_owned(),
        nearest: crate::config::section::nearest(name, &known).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_metric_of_which_nothing_was_saved_yet_needs_no_reset_and_one_that_does_not_exist_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::built_in();
        reset(directory.path(), &catalogue, "code_executions_total").unwrap();
        let error = reset(directory.path(), &catalogue, "code_execution_total").unwrap_err();
        let told = "there is no metric code_execution_total; did you mean code_executions_total?";
        assert_eq!(error.to_string(), told);
    }

    #[test]
    fn a_request_that_cannot_be_removed_is_fulfilled_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut inbox = Inbox::open(directory.path());
        let requests = directory.path().join("reset");
        fs::write(requests.join("a_total"), "").unwrap();
        // What is no file cannot be removed as one, whoever the user is.
        fs::create_dir(requests.join("b_total")).unwrap();
        let mut names = inbox.requested();
        names.sort();
        assert_eq!(names, ["a_total", "b_total"]);
        inbox.done(names);
        assert!(!requests.join("a_total").exists());
        assert!(inbox.requested().is_empty());

        let later = SystemTime::now() + Duration::from_secs(1);
        fs::File::open(requests.join("b_total"))
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(inbox.requested(), ["b_total"], "asked for anew");
    }
}
