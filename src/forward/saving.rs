//! The position of one exporter on disk.
//!
//! It is saved beside the loop, at most every [`SAVE_EVERY`], and never in two tasks at once.

use std::path::PathBuf;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::SAVE_EVERY;
use crate::failpoint::{self, Point};
use crate::journal::{Position, save_position};
use crate::telemetry::StageStatus;

/// How a task that saves ends.
pub(super) type Saved = Result<std::io::Result<Position>, JoinError>;

/// Saves the position.
pub(super) struct Saver {
    directory: PathBuf,
    name: String,
    /// Whose health it is that saving ends.
    stage: StageStatus,
    saving: Option<JoinHandle<std::io::Result<Position>>>,
    /// What is on disk.
    saved: u64,
    save_at: Instant,
}

impl Saver {
    /// `saved` is on disk.
    pub(super) fn new(directory: PathBuf, name: String, saved: u64, stage: StageStatus, now: Instant) -> Saver {
        Saver {
            directory,
            name,
            stage,
            saving: None,
            saved,
            save_at: now,
        }
    }

    /// The position on disk.
    pub(super) fn saved(&self) -> u64 {
        self.saved
    }

    /// A task is under way.
    pub(super) fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// When [`Saver::start`] has something to do for a position before `next`.
    pub(super) fn wake_at(&self, next: u64) -> Option<Instant> {
        (!self.is_saving() && next > self.saved).then_some(self.save_at)
    }

    /// Starts to save, if there is something to be saved and it is time.
    pub(super) fn start(&mut self, now: Instant, position: Position) {
        if self.wake_at(position.next).is_none_or(|due| now < due) {
            return;
        }
        self.save_at = now + SAVE_EVERY;
        let (directory, name) = (self.directory.clone(), self.name.clone());
        let working = self.stage.working();
        let saving = move || {
            let _working = working;
            failpoint::hit(Point::BeforePositionSave);
            save_position(&directory, &name, position)?;
            failpoint::hit(Point::AfterPositionSave);
            Ok(position)
        };
        self.saving = Some(tokio::task::spawn_blocking(saving));
    }

    /// The end of the task under way; `None` if there is none. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Saved> {
        let saved = self.saving.as_mut()?.await;
        self.saving = None;
        if let Ok(Ok(position)) = &saved {
            self.saved = position.next;
        }
        Some(saved)
    }

    /// The next one is not started before this.
    pub(super) fn not_before(&mut self, moment: Instant) {
        self.save_at = moment;
    }
}
