//! What waits too long is forgotten, and old rows are deleted: in small batches, between the batches of the journal.

use std::time::Duration;

use super::Limits;
use super::meters::Meters;
use super::standalone::stand_alone;
use super::store::{Store, StoreError};
use super::table::{Destination, nanos};
use crate::rules::prices::Prices;

/// How often.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Rows or spans in one transaction.
const PIECE: i64 = 2_000;

/// Transactions in one turn, so that a long backlog does not keep new rows waiting.
const PIECES: usize = 20;

pub(super) async fn turn<S: Store>(
    store: &mut S,
    limits: &Limits,
    destinations: &[&'static Destination],
    standalone: Option<&Prices>,
    now: u64,
    meters: &Meters,
) -> Result<(), StoreError> {
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
        .context_size(i64::try_from(limits.max_pending).unwrap_or(i64::MAX))
        .await?;
    store.commit().await?;
    meters.waiting(size);
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
        let forgotten = forget(store, received_before, standalone.is_some()).await?;
        meters.fell_over_limit(forgotten);
        tracing::warn!(
            forgotten,
            "more spans wait for others of their execution than database.max_pending"
        );
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
    Ok(())
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
        let piece = store.forget_context(received_before, standalone, PIECE).await?;
        store.commit().await?;
        forgotten += piece;
        if piece < PIECE.cast_unsigned() {
            break;
        }
    }
    Ok(forgotten)
}
