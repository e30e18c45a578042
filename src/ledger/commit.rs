//! One batch, one transaction: what the batch makes new or better, and the position behind it.
//!
//! # Order of operations
//!
//! 1. Lock the keys of the batch, in order. From here on nobody else completes the same executions.
//! 2. Load what waits under these keys, and plan.
//! 3. Insert what is new. The side table says what that is: an execution it has is never written again.
//! 4. Insert context, update rows that got better, save the position, commit.
//!
//! # When a row is refused
//!
//! Foreign keys that can be asked are asked before, for the whole batch at once, and a value that does not exist
//! becomes NULL. Whatever is refused all the same makes the batch be done again with a savepoint around each insert: a
//! foreign key loses its one column, anything else is isolated by halving and set aside in quarantine; the rest is
//! written.

use std::collections::{BTreeSet, HashSet};

use super::facts::{Facts, Role, SpanId};
use super::plan::{Plan, Update, plan};
use super::row::{Column, Row, Source};
use super::standalone::take_over;
use super::store::{Keys, LOAD_LIMIT, Store, StoreError};
use super::table::{CONTEXT, EXECUTIONS, NewRow, QUARANTINE, Quarantined, ROWS};
use crate::failpoint::{self, Point};
use crate::rules::prices::Prices;

/// What to write, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) facts: &'a [Facts],
    /// The reader, the journal, and the sequence to go on from; nothing when the facts are not from a journal.
    pub(super) position: Option<(&'a str, &'a str, u64)>,
    /// Rows to take out of quarantine, because their facts are tried again.
    pub(super) release: &'a [&'a str],
    /// Whether rows that are there are to be written anew.
    pub(super) anew: bool,
    /// How long spans wait for each other, in nanoseconds.
    pub(super) window: u64,
    /// Executions that ended before are not written; Unix nanoseconds.
    pub(super) oldest: u64,
    /// Unix nanoseconds, for the quarantine.
    pub(super) now: u64,
    /// What executions are estimated to cost.
    pub(super) prices: &'a Prices,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) written: u64,
    pub(super) duplicates: u64,
    /// Rows from before that got better.
    pub(super) merged: u64,
    /// Rows that stood for a runtime and are those of an execution now.
    pub(super) taken_over: u64,
    pub(super) quarantined: u64,
    /// Values that a foreign key refused.
    pub(super) nulled: u64,
    pub(super) expired: u64,
    pub(super) context: u64,
}

/// Applies the batch. On an error nothing is known of the transaction, and the store is to be given up.
pub(super) async fn apply<S: Store>(store: &mut S, batch: &Batch<'_>) -> Result<Applied, StoreError> {
    match attempt(store, batch, false).await {
        Err(StoreError::Refused { reason, .. }) => {
            tracing::debug!(reason, "the database refused a row: looking for it");
            store.rollback().await?;
            attempt(store, batch, true).await
        }
        other => other,
    }
}

async fn attempt<S: Store>(store: &mut S, batch: &Batch<'_>, careful: bool) -> Result<Applied, StoreError> {
    let mut known = begin_with_known(store, batch.facts).await?;
    if batch.anew {
        known = forget_executions(store, batch.facts, known).await?;
    }
    if !batch.release.is_empty() {
        store.release_quarantined(batch.release).await?;
    }
    let plan = plan(&known, batch.facts, batch.window, batch.oldest, batch.prices);
    let mut applied = write(store, plan, batch.now, careful).await?;
    let executions = batch
        .facts
        .iter()
        .filter(|facts| matches!(facts.told.role, Role::Execution(_)))
        .count();
    applied.duplicates =
        executions as u64 - applied.written - applied.taken_over - applied.quarantined - applied.expired;
    if let Some((reader, journal, next)) = batch.position {
        store.save_position(reader, journal, next).await?;
    }
    failpoint::hit(Point::BeforeCommit);
    store.commit().await?;
    failpoint::hit(Point::AfterCommit);
    Ok(applied)
}

/// Begins a transaction that has the locks of all that the facts can reach, and the waiting spans among it.
///
/// A node span reaches an execution by their key, and that execution reaches spans of its trace, which nobody can know
/// before it was loaded. Whoever finds keys of which it has not the locks begins again with them too: to take them
/// late would be out of order.
pub(super) async fn begin_with_known<S: Store>(store: &mut S, facts: &[Facts]) -> Result<Vec<Facts>, StoreError> {
    let mut locks = Keys::of(facts).locks();
    loop {
        store.begin().await?;
        if !locks.is_empty() {
            store.lock(&locks).await?;
        }
        let mut known = Vec::new();
        let mut keys = Keys::default();
        let mut new = keys.grow(facts);
        while !new.is_empty() && known.len() < LOAD_LIMIT {
            let found = store.load(&new).await?;
            new = keys.grow(&found);
            known.extend(found);
        }
        let needed = keys.locks();
        if !S::HAS_LOCKS || needed.iter().all(|lock| locks.binary_search(lock).is_ok()) {
            return Ok(known);
        }
        store.rollback().await?;
        locks.extend(needed);
        locks.sort_unstable();
        locks.dedup();
    }
}

async fn write<S: Store>(store: &mut S, plan: Plan<'_>, now: u64, careful: bool) -> Result<Applied, StoreError> {
    let Plan {
        mut rows,
        executions,
        context,
        candidates,
        expired,
    } = plan;
    let mut applied = Applied {
        expired,
        ..Applied::default()
    };
    let ids: Vec<&str> = candidates.iter().map(super::plan::Candidate::id).collect();
    let stored = if ids.is_empty() {
        Default::default()
    } else {
        store.stored(&ids).await?
    };
    let update = |candidate: super::plan::Candidate| {
        let stored = stored.get(candidate.id())?;
        candidate.update(stored)
    };
    let mut updates: Vec<Update> = candidates.into_iter().filter_map(update).collect();
    applied.nulled += null_missing(store, &mut rows, &mut updates).await?;

    let taken = take_over(store, &mut rows, careful).await?;
    let mut new = if careful {
        insert_carefully(store, rows, &executions, now, &mut applied).await?
    } else {
        insert(store, &rows.iter().collect::<Vec<_>>()).await?
    };
    applied.written = new.len() as u64;
    applied.taken_over = taken.len() as u64;
    new.extend(taken);

    // An execution that was there already is waiting already, or no longer.
    let waits = |facts: &&&Facts| new.contains(facts.id.row_id().as_str());
    let waiting: Vec<&Facts> = executions.iter().filter(waits).copied().chain(context).collect();
    applied.context = store.insert(&CONTEXT, &waiting).await?;
    applied.merged = merge(store, &updates, careful).await?;
    Ok(applied)
}

/// Takes the rows of these executions away, as if they had never been received; what else is known.
async fn forget_executions<S: Store>(
    store: &mut S,
    facts: &[Facts],
    known: Vec<Facts>,
) -> Result<Vec<Facts>, StoreError> {
    let executions = facts
        .iter()
        .filter(|facts| matches!(facts.told.role, Role::Execution(_)));
    let ids: HashSet<SpanId> = executions.map(|facts| facts.id).collect();
    let row_ids: Vec<String> = ids.iter().map(SpanId::row_id).collect();
    store
        .remove(&row_ids.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
    let (gone, kept): (Vec<_>, Vec<_>) = known.into_iter().partition(|facts| ids.contains(&facts.id));
    store.forget(&gone).await?;
    Ok(kept)
}

/// Inserts what is not there; the ids of what was not.
pub(super) async fn insert<S: Store>(store: &mut S, rows: &[&NewRow]) -> Result<HashSet<String>, StoreError> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    let new = store.insert_new(&EXECUTIONS, rows).await?;
    let rows: Vec<&NewRow> = rows.iter().filter(|row| new.contains(&row.row.id)).copied().collect();
    store.insert(&ROWS, &rows).await?;
    Ok(new)
}

/// As [`insert`], but what is refused is found and set aside.
pub(super) async fn insert_carefully<S: Store>(
    store: &mut S,
    mut rows: Vec<NewRow>,
    facts: &[&Facts],
    now: u64,
    applied: &mut Applied,
) -> Result<HashSet<String>, StoreError> {
    let mut inserted = HashSet::new();
    let whole = 0..rows.len();
    let mut parts = vec![whole];
    while let Some(part) = parts.pop() {
        store.savepoint().await?;
        let refusal = match insert(store, &rows[part.clone()].iter().collect::<Vec<_>>()).await {
            Ok(new) => {
                store.release().await?;
                inserted.extend(new);
                continue;
            }
            Err(StoreError::Refused { reason, column }) => (reason, column),
            Err(error) => return Err(error),
        };
        store.back_to_savepoint().await?;
        let (reason, column) = refusal;
        if part.len() > 1 {
            let middle = part.start + part.len() / 2;
            parts.extend([middle..part.end, part.start..middle]);
            continue;
        }
        let row = &mut rows[part.start];
        if column.is_some_and(|column| null(row, &column)) {
            applied.nulled += 1;
            parts.push(part);
            continue;
        }
        tracing::warn!(
            id = row.row.id,
            reason,
            "the database refuses this row: it is set aside in quarantine"
        );
        let Some(facts) = facts.iter().find(|facts| facts.id == row.id) else {
            continue;
        };
        let set_aside = quarantined(row, facts, reason, now);
        applied.quarantined += store.insert(&QUARANTINE, &[&set_aside]).await?;
    }
    Ok(inserted)
}

async fn merge<S: Store>(store: &mut S, updates: &[Update], careful: bool) -> Result<u64, StoreError> {
    if updates.is_empty() {
        return Ok(0);
    }
    if !careful {
        store.update(&updates.iter().collect::<Vec<_>>()).await?;
        return Ok(updates.len() as u64);
    }
    let mut merged = 0;
    for update in updates {
        store.savepoint().await?;
        match store.update(&[update]).await {
            Ok(()) => {
                store.release().await?;
                merged += 1;
            }
            Err(StoreError::Refused { reason, .. }) => {
                store.back_to_savepoint().await?;
                tracing::warn!(
                    id = update.row.id,
                    reason,
                    "the database refuses to complete this row: it stays as it is"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(merged)
}

/// Sets values to NULL that do not exist where their foreign keys point to; how many.
async fn null_missing<S: Store>(store: &mut S, rows: &mut [NewRow], updates: &mut [Update]) -> Result<u64, StoreError> {
    let mut nulled = 0;
    for key in store.foreign_keys().to_vec() {
        let Some(part) = nullable(&key.column) else { continue };
        let column = Column::ALL.into_iter().find(|column| column.name() == key.column);
        let changes = |update: &Update| column.is_some_and(|column| update.columns & column.bit() != 0);
        let of_rows = rows.iter_mut().filter_map(|row| part(&mut row.row).as_deref());
        let of_updates = updates.iter_mut().filter(|update| changes(update));
        let of_updates = of_updates.filter_map(|update| part(&mut update.row).as_deref());
        let values: BTreeSet<&str> = of_rows.chain(of_updates).collect();
        if values.is_empty() {
            continue;
        }
        let missing = store.missing(&key, &values.into_iter().collect::<Vec<_>>()).await?;
        let is_missing = |row: &mut Row| part(row).as_ref().is_some_and(|value| missing.contains(value));
        for row in rows.iter_mut() {
            if is_missing(&mut row.row) && null(row, &key.column) {
                nulled += 1;
            }
        }
        for update in updates.iter_mut().filter(|update| changes(update)) {
            if is_missing(&mut update.row) {
                *part(&mut update.row) = None;
                if let Some(column) = column {
                    update.sources.set(column, Source::Refused);
                }
                nulled += 1;
            }
        }
    }
    Ok(nulled)
}

/// The columns that a foreign key may null.
fn nullable(column: &str) -> Option<fn(&mut Row) -> &mut Option<String>> {
    match column {
        "code_agent_id" => Some(|row| &mut row.code_agent_id),
        "workflow_execution_id" => Some(|row| &mut row.workflow_execution_id),
        "node_id" => Some(|row| &mut row.node_id),
        "organization_id" => Some(|row| &mut row.organization_id),
        "workspace_id" => Some(|row| &mut row.workspace_id),
        "user_id" => Some(|row| &mut row.user_id),
        _ => None,
    }
}

/// Sets the column to NULL, unless it is already.
fn null(row: &mut NewRow, column: &str) -> bool {
    let Some(value) = nullable(column).and_then(|part| part(&mut row.row).take()) else {
        return false;
    };
    tracing::debug!(
        id = row.row.id,
        column,
        value,
        "a foreign key refuses this value: the column becomes NULL"
    );
    if let Some(column) = Column::ALL.into_iter().find(|known| known.name() == column) {
        row.sources.set(column, Source::Refused);
    }
    true
}

fn quarantined(row: &NewRow, facts: &Facts, reason: String, now: u64) -> Quarantined {
    Quarantined {
        id: row.row.id.clone(),
        reason,
        row: serde_json::to_string(&row.row).unwrap_or_default(),
        facts: serde_json::to_string(&facts.told).unwrap_or_default(),
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
    window: u64,
    limit: i64,
    now: u64,
    prices: &Prices,
) -> Result<(u64, u64), StoreError> {
    store.begin().await?;
    let set_aside = store.quarantined(limit).await?;
    store.commit().await?;
    let release: Vec<&str> = set_aside.iter().map(|row| row.id.as_str()).collect();
    let facts = |row: &Quarantined| {
        let told = serde_json::from_str(&row.facts).ok()?;
        Some(Facts {
            id: row.span,
            start: row.start,
            end: row.end,
            received_at: row.received_at,
            told,
        })
    };
    let facts: Vec<Facts> = set_aside.iter().filter_map(facts).collect();
    let is_execution = facts.iter().all(|facts| matches!(facts.told.role, Role::Execution(_)));
    debug_assert!(is_execution, "only executions are quarantined");
    let applied = apply(
        store,
        &Batch {
            facts: &facts,
            position: None,
            release: &release,
            anew: false,
            window,
            oldest: 0,
            now,
            prices,
        },
    )
    .await?;
    Ok((applied.written + applied.duplicates, applied.quarantined))
}
