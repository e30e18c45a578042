//! What waits too long is forgotten, and old rows are deleted: in small batches, between the batches of the journal.

use std::time::{Duration, Instant};

use super::Limits;
use super::meters::Meters;
use super::packing::Packing;
use super::standalone::stand_alone;
use super::store::{Store, StoreError};
use super::table::{Destination, nanos};
use crate::rules::prices::Prices;

/// How often.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Rows in one transaction.
const PIECE: i64 = 2_000;

/// Waiting spans in one transaction.
const FORGET_PIECE: i64 = 10_000;

/// Transactions in one turn, so that a long backlog does not keep new rows waiting.
const PIECES: usize = 20;

/// The longest time until what failed is tried again.
const LATEST: Duration = Duration::from_secs(300);

/// What there is to do, and when it is time for a turn: now and then, and whenever an eighth more wait than may. It outlives
/// connections: what fails is not due again at once because there is a new one.
#[derive(Debug)]
pub(super) struct Upkeep {
    due: Instant,
    /// So many wait, or did and were not counted since.
    waiting: u64,
    /// Spans that were forgotten before their time, and since when nobody was told of them.
    untold: u64,
    told: Option<Instant>,
    packing: Packing,
    packing_due: Instant,
    chores: [Chore; 4],
}

/// The place of each in [`Upkeep::chores`].
const STANDING_ALONE: usize = 0;
const FORGETTING: usize = 1;
const DELETING: usize = 2;
const PACKING: usize = 3;

impl Upkeep {
    pub(super) fn new() -> Upkeep {
        let now = Instant::now();
        Upkeep {
            due: now,
            waiting: 0,
            untold: 0,
            told: None,
            packing: Packing::default(),
            packing_due: now,
            chores: [
                "runtimes that nobody executed do not become rows for now (database.standalone)",
                "spans that waited too long are not forgotten for now",
                "old rows are not deleted for now (database.retention): what points to them has to go with them (ON DELETE CASCADE)",
                "hours that are over are not packed for statistics for now",
            ]
            .map(Chore::new),
        }
    }

    /// When the next turn is, at the latest.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// So many more wait.
    pub(super) fn add(&mut self, waiting: u64, limits: &Limits) {
        self.waiting += waiting;
        if self.waiting > limits.max_pending.saturating_add(limits.max_pending / 8) {
            self.due = self.due.min(Instant::now().max(self.chores[FORGETTING].not_before));
        }
    }

    /// What does not work, if anything does not.
    pub(super) fn trouble(&self) -> Option<&str> {
        let of_chores = self.chores.iter().find_map(|chore| chore.trouble.as_deref());
        of_chores.or_else(|| self.packing.trouble())
    }

    /// Does what is due. What fails keeps nothing else from being done, and is tried later; an error only where the
    /// connection is of no more use.
    pub(super) async fn turn<S: Store>(
        &mut self,
        store: &mut S,
        work: &Work<'_>,
        now: u64,
        meters: &Meters,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        self.due = began + EVERY;
        store.give_back_memory();
        if let Some(prices) = work.standalone
            && self.chores[STANDING_ALONE].is_due(began)
        {
            let done = let_stand_alone(store, work.limits, now, prices, meters).await;
            self.chores[STANDING_ALONE].end(store, done, meters).await?;
        }
        if self.chores[FORGETTING].is_due(began) {
            let done = forget_some(store, work, now, meters).await;
            if let Some(done) = self.chores[FORGETTING].end(store, done, meters).await? {
                self.forgot(&done);
            }
        }
        if work.limits.retention.is_some() && self.chores[DELETING].is_due(began) {
            let done = delete_old(store, work, now, meters).await;
            self.chores[DELETING].end(store, done, meters).await?;
        }
        // Not with each turn when many spans wait.
        if began >= self.packing_due && self.chores[PACKING].is_due(began) {
            self.packing_due = began + EVERY;
            let done = self.packing.turn(store, work.limits.oldest(now), now, meters).await;
            self.chores[PACKING].end(store, done, meters).await?;
        }
        Ok(())
    }

    fn forgot(&mut self, done: &Forgot) {
        let now = Instant::now();
        self.waiting = done.waiting;
        self.untold += done.over_limit;
        if self.untold > 0 && self.told.is_none_or(|told| now >= told + EVERY) {
            tracing::warn!(
                forgotten = self.untold,
                "more spans wait for others of their execution than database.max_pending"
            );
            (self.untold, self.told) = (0, Some(now));
        }
    }
}

/// One thing to do. After it failed it is left alone, longer each time.
#[derive(Debug)]
struct Chore {
    /// What it means that it failed, and what to change.
    meaning: &'static str,
    not_before: Instant,
    failures: u32,
    trouble: Option<String>,
}

impl Chore {
    fn new(meaning: &'static str) -> Chore {
        Chore {
            meaning,
            not_before: Instant::now(),
            failures: 0,
            trouble: None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.not_before
    }

    /// What came of it; nothing if it failed and the connection is still of use.
    async fn end<S: Store, T>(
        &mut self,
        store: &mut S,
        done: Result<T, StoreError>,
        meters: &Meters,
    ) -> Result<Option<T>, StoreError> {
        let error = match done {
            Ok(done) => {
                (self.failures, self.trouble) = (0, None);
                return Ok(Some(done));
            }
            Err(error) => error,
        };
        self.failed(&error, Instant::now());
        if error.is_of_connection() {
            // Counted by who gives the connection up.
            return Err(error);
        }
        meters.failed();
        store.rollback().await?;
        Ok(None)
    }

    fn failed(&mut self, error: &StoreError, now: Instant) {
        let wait = EVERY.saturating_mul(2 << self.failures.min(8)).min(LATEST);
        self.failures += 1;
        self.not_before = now + wait;
        // A connection that breaks once says nothing of what was done on it.
        if error.is_of_connection() && self.failures == 1 {
            return;
        }
        tracing::warn!(%error, again_in = ?wait, "{}", self.meaning);
        self.trouble = Some(format!("{}: {error}", self.meaning));
    }
}

/// What upkeep needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) limits: &'a Limits,
    pub(super) destinations: &'a [&'static Destination],
    /// The prices, if runtimes become rows that nobody executed.
    pub(super) standalone: Option<&'a Prices>,
}

/// What forgetting did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Forgot {
    /// Spans that wait now.
    waiting: u64,
    /// Spans that were forgotten before their time, because more waited than may.
    over_limit: u64,
}

/// Forgets what waited long enough, and what is more than may wait.
async fn forget_some<S: Store>(
    store: &mut S,
    work: &Work<'_>,
    now: u64,
    meters: &Meters,
) -> Result<Forgot, StoreError> {
    let Work { limits, standalone, .. } = *work;
    // Two spans find each other when they are received within the window. One that came a window before an execution
    // is needed for as long as that execution can change: for one more window.
    let horizon = now.saturating_sub(limits.window_nanos().saturating_mul(2));
    meters.fell_out_of_window(forget(store, nanos(horizon), standalone.is_some()).await?);

    store.begin().await?;
    let (size, oldest_kept) = store
        .count_waiting(i64::try_from(limits.max_pending).unwrap_or(i64::MAX))
        .await?;
    store.commit().await?;
    meters.waiting(size);
    let mut done = Forgot {
        waiting: size.cast_unsigned(),
        over_limit: 0,
    };
    if let Some(oldest_kept) = oldest_kept {
        // What came in the same request as the oldest that is kept goes with it: to be within the limit is a promise.
        let received_before = oldest_kept.saturating_add(1);
        if let Some(prices) = standalone {
            // A row must not be lost because it waited too long for its execution: it is written now. What cannot be written now
            // stays, as its own chore tells, and keeps nothing else.
            store.begin().await?;
            store.hurry(received_before, nanos(now)).await?;
            store.commit().await?;
            match let_stand_alone(store, limits, now, prices, meters).await {
                Err(error) if !error.is_of_connection() => store.rollback().await?,
                other => other?,
            }
        }
        done.over_limit = forget(store, received_before, standalone.is_some()).await?;
        done.waiting = done.waiting.saturating_sub(done.over_limit);
        meters.fell_over_limit(done.over_limit);
    }
    Ok(done)
}

/// Deletes old rows of every table, also where those of another cannot be deleted.
async fn delete_old<S: Store>(store: &mut S, work: &Work<'_>, now: u64, meters: &Meters) -> Result<(), StoreError> {
    let oldest = work.limits.oldest(now);
    let mut outcome = Ok(());
    for destination in work.destinations {
        for _ in 0..PIECES {
            match store.delete_rows(destination, oldest, PIECE).await {
                Ok(deleted) => {
                    meters.deleted(deleted);
                    if deleted < PIECE.cast_unsigned() {
                        break;
                    }
                }
                Err(error) if error.is_of_connection() => return Err(error),
                Err(error) => {
                    store.rollback().await?;
                    outcome = Err(error);
                    break;
                }
            }
        }
    }
    // What would be deleted as a row is not kept in quarantine either.
    store.begin().await?;
    let deleted = store.delete_quarantined(oldest, PIECE).await?;
    store.commit().await?;
    meters.deleted(deleted);
    outcome
}

/// Lets what is due become rows.
async fn let_stand_alone<S: Store>(
    store: &mut S,
    limits: &Limits,
    now: u64,
    prices: &Prices,
    meters: &Meters,
) -> Result<(), StoreError> {
    for _ in 0..PIECES {
        let (due, applied) = stand_alone(store, limits.window_nanos(), limits.oldest(now), now, prices).await?;
        meters.applied(&applied);
        if due == 0 {
            break;
        }
    }
    Ok(())
}

/// Forgets what was received before; what is still to become a row stays if `standalone`.
async fn forget<S: Store>(store: &mut S, received_before: i64, standalone: bool) -> Result<u64, StoreError> {
    let mut forgotten = 0;
    for _ in 0..PIECES {
        store.begin().await?;
        let piece = store.forget_before(received_before, standalone, FORGET_PIECE).await?;
        store.commit().await?;
        forgotten += piece;
        if piece < FORGET_PIECE.cast_unsigned() {
            break;
        }
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_due_when_an_eighth_more_wait_than_may() {
        let limits = Limits {
            retention: None,
            window: Duration::from_secs(3_600),
            max_pending: 80,
        };
        let mut upkeep = Upkeep::new();
        assert!(upkeep.due() <= Instant::now());
        upkeep.due = Instant::now() + EVERY;
        upkeep.forgot(&Forgot {
            waiting: 80,
            over_limit: 5,
        });
        upkeep.add(10, &limits);
        assert!(upkeep.due() > Instant::now());
        upkeep.add(1, &limits);
        assert!(upkeep.due() <= Instant::now());
        // Those whom nobody was told of are told of later, not with each turn.
        assert_eq!(upkeep.untold, 0);
        upkeep.forgot(&Forgot {
            waiting: 80,
            over_limit: 11,
        });
        assert_eq!(upkeep.untold, 11);
    }

    #[test]
    fn what_fails_again_and_again_is_tried_less_and_less_often() {
        let mut chore = Chore::new("it does not work");
        let error = StoreError::Misfit("no such table".to_owned());
        let now = Instant::now();
        let waits = (0..40).map(|_| {
            chore.failed(&error, now);
            (chore.not_before - now).as_secs()
        });
        let waits: Vec<u64> = waits.collect();
        assert_eq!(waits[..6], [20, 40, 80, 160, 300, 300]);
        assert_eq!(waits[39], 300);
        assert!(!chore.is_due(now));
        assert!(
            chore
                .trouble
                .unwrap()
                .starts_with("it does not work: the database does not fit")
        );
    }
}
