//! What waits too long is forgotten, and old rows are deleted: in small batches, between the batches of the journal.

use std::time::{Duration, Instant};

use super::Limits;
use super::meters::Meters;
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

/// When it is time for a turn: now and then, and whenever an eighth more wait than may.
#[derive(Debug)]
pub(super) struct Schedule {
    due: Instant,
    /// So many wait, or did and were not counted since.
    waiting: u64,
    /// Spans that were forgotten before their time, and since when nobody was told of them.
    untold: u64,
    told: Option<Instant>,
}

impl Schedule {
    pub(super) fn new() -> Schedule {
        Schedule {
            due: Instant::now(),
            waiting: 0,
            untold: 0,
            told: None,
        }
    }

    /// At the latest.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// So many more wait.
    pub(super) fn add(&mut self, waiting: u64, limits: &Limits) {
        self.waiting += waiting;
        if self.waiting > limits.max_pending.saturating_add(limits.max_pending / 8) {
            self.due = Instant::now();
        }
    }

    /// A turn is over.
    pub(super) fn done(&mut self, done: &Done) {
        let now = Instant::now();
        self.due = now + EVERY;
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

/// What a turn did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Spans that wait now.
    pub(super) waiting: u64,
    /// Spans that were forgotten before their time, because more waited than may.
    pub(super) over_limit: u64,
}

pub(super) async fn turn<S: Store>(
    store: &mut S,
    limits: &Limits,
    destinations: &[&'static Destination],
    standalone: Option<&Prices>,
    now: u64,
    meters: &Meters,
) -> Result<Done, StoreError> {
    store.give_back_memory();
    if let Some(prices) = standalone {
        let_stand_alone(store, limits, now, prices, meters).await?;
    }

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
    let mut done = Done {
        waiting: size.cast_unsigned(),
        over_limit: 0,
    };
    if let Some(oldest_kept) = oldest_kept {
        // What came in the same request as the oldest that is kept goes with it: to be within the limit is a promise.
        let received_before = oldest_kept.saturating_add(1);
        if let Some(prices) = standalone {
            // A row must not be lost because it waited too long for its execution: it is written now.
            store.begin().await?;
            store.hurry(received_before, nanos(now)).await?;
            store.commit().await?;
            let_stand_alone(store, limits, now, prices, meters).await?;
        }
        done.over_limit = forget(store, received_before, standalone.is_some()).await?;
        done.waiting = done.waiting.saturating_sub(done.over_limit);
        meters.fell_over_limit(done.over_limit);
    }

    if limits.retention.is_some() {
        for destination in destinations {
            for _ in 0..PIECES {
                let deleted = store.delete_rows(destination, limits.oldest(now), PIECE).await?;
                meters.deleted(deleted);
                if deleted < PIECE.cast_unsigned() {
                    break;
                }
            }
        }
        // What would be deleted as a row is not kept in quarantine either.
        store.begin().await?;
        let deleted = store.delete_quarantined(limits.oldest(now), PIECE).await?;
        store.commit().await?;
        meters.deleted(deleted);
    }
    Ok(done)
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
        let mut schedule = Schedule::new();
        assert!(schedule.due() <= Instant::now());
        schedule.done(&Done {
            waiting: 80,
            over_limit: 5,
        });
        schedule.add(10, &limits);
        assert!(schedule.due() > Instant::now());
        schedule.add(1, &limits);
        assert!(schedule.due() <= Instant::now());
        // Those whom nobody was told of are told of later, not with each turn.
        assert_eq!(schedule.untold, 0);
        schedule.done(&Done {
            waiting: 80,
            over_limit: 11,
        });
        assert_eq!(schedule.untold, 11);
    }
}
