//! Rows that the database refuses are set aside, and tried again when somebody asks for it.

use super::commit::{Applied, Batch, apply};
use super::facts::{Facts, ascii_json};
use super::store::{Store, StoreError};
use super::table::{Destination, NewRow, QUARANTINE, Quarantined};
use crate::rules::prices::Prices;

/// Puts a row that the database refuses into quarantine.
pub(super) async fn set_aside<S: Store>(
    store: &mut S,
    row: &NewRow,
    facts: &[&Facts],
    reason: String,
    now: u64,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    tracing::warn!(
        table = row.destination.name,
        id = row.row.id,
        reason,
        "the database refuses this row: it is set aside in quarantine"
    );
    if let Some(facts) = facts.iter().find(|facts| facts.id == row.id) {
        let set_aside = quarantined(row, facts, reason, now);
        applied.quarantined += store.insert(&QUARANTINE, &[&set_aside]).await?;
    }
    Ok(())
}

fn quarantined(row: &NewRow, facts: &Facts, reason: String, now: u64) -> Quarantined {
    Quarantined {
        table: row.destination.name.to_owned(),
        id: row.row.id.clone(),
        reason,
        row: ascii_json(&row.row),
        facts: facts.told.to_json(),
        span: facts.id,
        start: facts.start,
        end: facts.end,
        received_at: facts.received_at,
        at: now,
    }
}

/// Tries the quarantined rows again, at most `limit`; how many are rows now, and how many are still refused.
pub(super) async fn retry_quarantined<S: Store>(
    store: &mut S,
    destinations: &[&'static Destination],
    window: u64,
    limit: i64,
    now: u64,
    prices: &Prices,
) -> Result<(u64, u64), StoreError> {
    store.begin().await?;
    let set_aside = store.quarantined(limit).await?;
    store.commit().await?;
    // One for a table that is no longer wanted stays, and so does one that another version wrote.
    let wanted = |row: &Quarantined| {
        let is_wanted = destinations.iter().any(|wanted| wanted.name == row.table);
        let told = serde_json::from_str(&row.facts).ok().filter(|_| is_wanted)?;
        Some(Facts {
            id: row.span,
            start: row.start,
            end: row.end,
            received_at: row.received_at,
            told,
        })
    };
    let wanted = set_aside.iter().filter_map(|row| Some((row, wanted(row)?)));
    let (set_aside, facts): (Vec<&Quarantined>, Vec<Facts>) = wanted.unzip();
    let release: Vec<_> = set_aside
        .iter()
        .map(|row| (row.table.as_str(), row.id.as_str()))
        .collect();
    let batch = Batch {
        destinations,
        facts: &facts,
        position: None,
        release: &release,
        anew: false,
        window,
        oldest: 0,
        now,
        prices,
    };
    let applied = apply(store, &batch).await?;
    Ok((release.len() as u64 - applied.quarantined, applied.quarantined))
}
