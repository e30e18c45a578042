//! Health means progress: a process is alive while the loop of every stage has turned within [`STALLED_AFTER`].
//!
//! # Invariants
//!
//! * A stage that panics drops its [`Heartbeat`]; a heartbeat dropped before [`Heartbeat::finish`] makes the process
//!   not alive at once. No stage dies silently.
//! * Waiting for work and waiting in backoff are turning: a stage beats at least every [`BEAT_EVERY`] while it waits.
//! * Work beside the loop that has to end, a write to the disk for instance, is held to the same time, however lively
//!   the loop is meanwhile: see [`StageStatus::working`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A stage whose loop has not turned for this long makes the process not alive.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);

/// How often a waiting stage beats.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
struct Stage {
    name: String,
    last_beat: Instant,
    ended: Ended,
    degraded: Option<String>,
    /// What has begun beside the loop and not ended: by number, and since when.
    works: Vec<(u64, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Running,
    Finished,
    Died,
}

/// The registry of stages, shared by the stages and the health listener.
#[derive(Debug, Clone, Default)]
pub struct Health {
    stages: Arc<Mutex<Vec<Stage>>>,
}

/// What the health listener says of one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageReport {
    /// The stage's name: `journal`, `meter`, `ledger`, `otlp`, ...
    pub name: String,
    /// Time since the loop last turned, or since work that has not ended yet began.
    pub age: Duration,
    /// Whether the stage counts as alive.
    pub alive: bool,
    /// Why the stage's destination is degraded, if it is.
    pub degraded: Option<String>,
}

impl Health {
    /// Registers a stage that is alive as of now. It takes the place of a finished one of the same name.
    pub fn stage(&self, name: impl Into<String>) -> Heartbeat {
        let stage = Stage {
            name: name.into(),
            last_beat: Instant::now(),
            ended: Ended::Running,
            degraded: None,
            works: Vec::new(),
        };
        let mut stages = self.lock();
        let before = stages
            .iter()
            .position(|before| before.name == stage.name && before.ended == Ended::Finished);
        let index = before.unwrap_or(stages.len());
        match stages.get_mut(index) {
            Some(before) => *before = stage,
            None => stages.push(stage),
        }
        Heartbeat {
            health: self.clone(),
            index,
        }
    }

    /// The state of every stage as of `now`.
    pub fn report(&self, now: Instant) -> Vec<StageReport> {
        let report = |stage: &Stage| {
            let oldest = stage.works.iter().map(|(_, since)| *since).min();
            let progress = oldest.map_or(stage.last_beat, |since| since.min(stage.last_beat));
            let age = now.saturating_duration_since(progress);
            StageReport {
                name: stage.name.clone(),
                age,
                alive: match stage.ended {
                    Ended::Running => age < STALLED_AFTER,
                    Ended::Finished => true,
                    Ended::Died => false,
                },
                degraded: stage.degraded.clone(),
            }
        };
        self.lock().iter().map(report).collect()
    }

    /// Whether every stage is alive as of `now`.
    pub fn is_alive(&self, now: Instant) -> bool {
        self.report(now).iter().all(|stage| stage.alive)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stage>> {
        // The data stays consistent whatever a panicking holder did: every update is a single assignment.
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Stage)) {
        if let Some(stage) = self.lock().get_mut(index) {
            change(stage);
        }
    }
}

/// Held by a stage; see the module documentation.
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    index: usize,
}

impl Heartbeat {
    /// The stage's loop has turned.
    pub fn beat(&self) {
        self.health.update(self.index, |stage| stage.last_beat = Instant::now());
    }

    /// The stage ends as planned (shutdown).
    pub fn finish(self) {
        self.health.update(self.index, |stage| stage.ended = Ended::Finished);
    }

    /// A handle to say that the stage's destination is degraded.
    pub fn status(&self) -> StageStatus {
        StageStatus {
            health: self.health.clone(),
            index: self.index,
        }
    }

    /// Waits for `work`, beating meanwhile, so that waiting counts as turning.
    pub async fn while_waiting<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.beat();
            if let Ok(output) = tokio::time::timeout(BEAT_EVERY, &mut work).await {
                self.beat();
                return output;
            }
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.update(self.index, |stage| {
            if stage.ended == Ended::Running {
                stage.ended = Ended::Died;
            }
        });
    }
}

/// Says whether the destination of a stage (a backend, the database) works. A degraded destination does not make the
/// process unready: its data waits in the journal.
#[derive(Debug, Clone)]
pub struct StageStatus {
    health: Health,
    index: usize,
}

impl StageStatus {
    /// The destination does not work; `reason` names it and what to do.
    pub fn set_degraded(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.health.update(self.index, |stage| stage.degraded = Some(reason));
    }

    /// The destination works.
    pub fn clear(&self) {
        self.health.update(self.index, |stage| stage.degraded = None);
    }

    /// Something begins beside the stage's loop that has to end within [`STALLED_AFTER`]; it has ended when the answer
    /// is dropped. What cannot hang but in a disk belongs here, not a destination that may be away.
    pub fn working(&self) -> Working {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.health
            .update(self.index, |stage| stage.works.push((number, Instant::now())));
        Working {
            status: self.clone(),
            number,
        }
    }
}

/// See [`StageStatus::working`].
#[derive(Debug)]
#[must_use = "dropping it says that the work has ended"]
pub struct Working {
    status: StageStatus,
    number: u64,
}

impl Drop for Working {
    fn drop(&mut self) {
        let Self { status, number } = self;
        status
            .health
            .update(status.index, |stage| stage.works.retain(|(other, _)| other != number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_stops_turning_makes_the_process_not_alive_after_thirty_seconds() {
        let health = Health::default();
        let heartbeat = health.stage("ledger");
        let start = Instant::now();
        assert!(health.is_alive(start + STALLED_AFTER - Duration::from_secs(1)));
        assert!(!health.is_alive(start + STALLED_AFTER + Duration::from_secs(1)));
        heartbeat.finish();
        assert!(health.is_alive(start + STALLED_AFTER * 2));
    }

    #[test]
    fn work_that_does_not_end_makes_the_process_not_alive_however_often_the_loop_turns() {
        let health = Health::default();
        let heartbeat = health.stage("exporter otlp");
        let start = Instant::now();
        let long = heartbeat.status().working();
        drop(heartbeat.status().working());
        let later = start + STALLED_AFTER + Duration::from_secs(1);
        health.update(0, |stage| stage.last_beat = later);
        assert!(!health.is_alive(later));
        drop(long);
        assert!(health.is_alive(later));
    }

    #[test]
    fn a_stage_that_panics_makes_the_process_not_alive_at_once() {
        let health = Health::default();
        let heartbeat = health.stage("meter");
        let outcome = std::thread::spawn(move || {
            heartbeat.beat();
            panic!("a stage that dies");
        })
        .join();
        assert!(outcome.is_err());
        assert!(!health.is_alive(Instant::now()));
    }

    #[test]
    fn a_stage_that_is_made_anew_takes_the_place_of_the_one_before_and_its_troubles() {
        let health = Health::default();
        let heartbeat = health.stage("exporter otlp");
        heartbeat.status().set_degraded("401");
        heartbeat.finish();
        let _again = health.stage("exporter otlp");
        let report = health.report(Instant::now());
        assert_eq!(report.len(), 1);
        assert_eq!(report[0].degraded, None);
    }

    #[test]
    fn a_degraded_destination_is_named_and_does_not_make_the_process_not_alive() {
        let health = Health::default();
        let heartbeat = health.stage("exporter otlp");
        let status = heartbeat.status();
        status.set_degraded("connection refused");
        assert!(health.is_alive(Instant::now()));
        assert_eq!(
            health.report(Instant::now())[0].degraded.as_deref(),
            Some("connection refused")
        );
        status.clear();
        assert_eq!(health.report(Instant::now())[0].degraded, None);
    }
}
