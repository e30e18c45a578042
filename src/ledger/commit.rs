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
//! written. What is only checked when the transaction ends is checked with each insert then.

use std::collections::{BTreeSet, HashSet};

use super::ahead::Noticed;
use super::facts::{Facts, Role, SpanId};
use super::packing;
use super::plan::{Candidate, Part, Update, plan};
use super::quarantine::set_aside;
use super::row::{Column, Row, Source};
use super::standalone::take_over;
use super::store::{Keys, New, Room, RowKey, Store, StoreError, row_keys};
use super::table::{Destination, NewRow};
use crate::failpoint::{self, Point};
use crate::rules::prices::Prices;

/// What to write, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    /// The tables that are written.
    pub(super) destinations: &'a [&'static Destination],
    pub(super) facts: &'a [Facts],
    /// The reader, the journal, and the sequence to go on from; nothing when the facts are not from a journal.
    pub(super) position: Option<(&'a str, &'a str, u64)>,
    /// Rows to take out of quarantine, by table and id, because their facts are tried again.
    pub(super) release: &'a [(&'a str, &'a str)],
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
    /// Executions that have a row now.
    pub(super) written: u64,
    /// Executions that had one.
    pub(super) duplicates: u64,
    /// Rows written to further tables.
    pub(super) records: u64,
    /// Rows from before that got better.
    pub(super) merged: u64,
    /// Rows that stood for a runtime and are those of an execution now.
    pub(super) taken_over: u64,
    pub(super) quarantined: u64,
    /// Values that a foreign key refused.
    pub(super) nulled: u64,
    /// Values that came later, and that the database refused for another reason.
    pub(super) refused: u64,
    pub(super) expired: u64,
    pub(super) context: u64,
    /// What was noticed of the records behind it.
    pub(super) noticed: Noticed,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Applied) {
        let Applied {
            written,
            duplicates,
            records,
            merged,
            taken_over,
            quarantined,
            nulled,
            refused,
            expired,
            context,
            noticed,
        } = other;
        self.written += written;
        self.duplicates += duplicates;
        self.records += records;
        self.merged += merged;
        self.taken_over += taken_over;
        self.quarantined += quarantined;
        self.nulled += nulled;
        self.refused += refused;
        self.expired += expired;
        self.context += context;
        self.noticed += noticed;
    }
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
    if careful {
        store.check_at_once().await?;
    }
    let mut waiting: Vec<Facts> = Vec::new();
    if batch.anew {
        known = forget_rows(store, batch, known).await?;
    }
    if !batch.release.is_empty() {
        store.release_quarantined(batch.release).await?;
        // What waits for others of its execution is known, but its own row is yet to be written.
        let again: HashSet<SpanId> = batch.facts.iter().map(|facts| facts.id).collect();
        (waiting, known) = known.into_iter().partition(|facts| again.contains(&facts.id));
    }
    let waiting: HashSet<SpanId> = waiting.iter().map(|facts| facts.id).collect();
    let applied = write(store, batch, &known, &waiting, careful).await?;
    end(store, batch.position).await?;
    Ok(applied)
}

/// Applies the batch in a transaction that has begun, has the locks, and goes on. Refused is all of it.
pub(super) async fn apply_among_others<S: Store>(store: &mut S, batch: &Batch<'_>) -> Result<Applied, StoreError> {
    let known = load(store, &mut Keys::of(batch.facts)).await?;
    write(store, batch, &known, &HashSet::new(), false).await
}

/// Ends the transaction, at a position: see [`Batch::position`].
pub(super) async fn end<S: Store>(store: &mut S, position: Option<(&str, &str, u64)>) -> Result<(), StoreError> {
    if let Some((reader, journal, next)) = position {
        store.save_position(reader, journal, next).await?;
    }
    store.write_deferred().await?;
    failpoint::hit(Point::BeforeCommit);
    store.commit().await?;
    failpoint::hit(Point::AfterCommit);
    Ok(())
}

/// Begins a transaction that has the locks of all that the facts can reach, and the waiting spans among it.
///
/// A node span reaches an execution by their key, and that execution reaches spans of its trace, which nobody can know
/// before it was loaded. Whoever finds keys of which it has not the locks begins again with them too: to take them
/// late would be out of order.
pub(super) async fn begin_with_known<S: Store>(store: &mut S, facts: &[Facts]) -> Result<Vec<Facts>, StoreError> {
    let first = Keys::of(facts);
    let mut locks = if S::HAS_LOCKS { first.locks() } else { Vec::new() };
    loop {
        store.begin().await?;
        if !locks.is_empty() {
            store.lock(&locks).await?;
        }
        let mut keys = first.clone();
        let known = load(store, &mut keys).await?;
        if !S::HAS_LOCKS || known.is_empty() {
            return Ok(known);
        }
        let needed = keys.locks();
        if needed.iter().all(|lock| locks.binary_search(lock).is_ok()) {
            return Ok(known);
        }
        store.rollback().await?;
        locks.extend(needed);
        locks.sort_unstable();
        locks.dedup();
    }
}

/// The waiting spans that can be reached from the keys, which become those of all of them.
async fn load<S: Store>(store: &mut S, keys: &mut Keys) -> Result<Vec<Facts>, StoreError> {
    let mut known = Vec::new();
    let mut new = keys.clone();
    let mut room = Room::of_batch();
    while !new.is_empty() && !room.is_used_up() {
        let found = store.load(&new, &mut room).await?;
        new = keys.grow(&found);
        known.extend(found);
    }
    if room.is_used_up() {
        let spans = known.len();
        tracing::warn!(
            spans,
            "more spans wait for these executions than fit into memory: some rows may stay without what the oldest of them tell"
        );
    }
    Ok(known)
}

/// Writes what changes when these are `known`, and these spans are `waiting` already, though nothing is to be known of them.
async fn write<S: Store>(
    store: &mut S,
    batch: &Batch<'_>,
    known: &[Facts],
    waiting: &HashSet<SpanId>,
    careful: bool,
) -> Result<Applied, StoreError> {
    let plan = plan(batch, known);
    let touched = packing::touched(&plan, batch.now);
    let mut applied = Applied::default();
    let mut context = plan.context;
    for part in plan.parts {
        let (is_of_executions, expired) = (part.destination.is_of_executions(), part.expired);
        let facts = part.facts.clone();
        let (new, taken) = write_part(store, part, batch.now, careful, &mut applied).await?;
        if is_of_executions {
            (applied.written, applied.taken_over) = (new.count as u64, taken.len() as u64);
            let had_none = applied.written + applied.taken_over + applied.quarantined + expired;
            let is_execution = |facts: &&Facts| matches!(facts.told.role, Role::Execution(_));
            applied.duplicates = batch.facts.iter().filter(is_execution).count() as u64 - had_none;
            // An execution that was there already is waiting already, or no longer.
            let is_new = |facts: &&Facts| {
                let id = facts.id.row_id();
                new.contains(&id) || taken.contains(&id)
            };
            let all_are = new.count == facts.len();
            context.extend(facts.into_iter().filter(|facts| all_are || is_new(facts)));
        } else {
            applied.records += new.count as u64;
        }
        applied.expired += expired;
    }
    context.retain(|facts| !waiting.contains(&facts.id));
    applied.context = store.wait(&context).await?;
    if !touched.is_empty() {
        store.unpack(&touched).await?;
    }
    Ok(applied)
}

/// Writes what changes in one table: the rows that are new, and the ids of executions that took over a row.
async fn write_part<S: Store>(
    store: &mut S,
    part: Part<'_>,
    now: u64,
    careful: bool,
    applied: &mut Applied,
) -> Result<(New, HashSet<String>), StoreError> {
    let Part {
        destination,
        mut rows,
        facts,
        candidates,
        expired: _,
    } = part;
    let keys: Vec<RowKey<'_>> = candidates.iter().map(Candidate::key).collect();
    let stored = if keys.is_empty() {
        Default::default()
    } else {
        store.stored(destination, &keys).await?
    };
    let update = |candidate: Candidate| {
        let stored = stored.get(candidate.key().id)?;
        candidate.update(stored, destination.mask())
    };
    let mut updates: Vec<Update> = candidates.into_iter().filter_map(update).collect();
    applied.nulled += null_missing(store, destination, &mut rows, &mut updates, careful).await?;

    let taken = if careful {
        let (taken, refused) = take_over(store, &mut rows, true, applied).await?;
        for (row, reason) in refused {
            set_aside(store, &row, &facts, reason, now, applied).await?;
        }
        taken
    } else {
        take_over(store, &mut rows, false, applied).await?.0
    };
    let new = if careful {
        insert_carefully(store, destination, rows, &facts, now, applied).await?
    } else {
        let new = insert(store, destination, &rows.iter().collect::<Vec<_>>()).await?;
        // Executions that took over a row, or had done so before, are not among the rows, and are asked about.
        if rows.len() < facts.len() {
            new.listed(rows.iter().map(|row| &row.row.id))
        } else {
            new
        }
    };
    if careful {
        merge_carefully(store, destination, updates, applied).await?;
    } else if !updates.is_empty() {
        store.update(destination, &updates.iter().collect::<Vec<_>>()).await?;
        applied.merged += updates.len() as u64;
    }
    Ok((new, taken))
}

/// Takes the rows of these spans away, as if they had never been received; what else is known.
async fn forget_rows<S: Store>(store: &mut S, batch: &Batch<'_>, known: Vec<Facts>) -> Result<Vec<Facts>, StoreError> {
    let mut forgotten: HashSet<SpanId> = HashSet::new();
    for destination in batch.destinations {
        let spans = batch.facts.iter().filter(|facts| destination.takes(facts));
        let rows: Vec<(String, u64)> = spans
            .clone()
            .filter_map(|facts| Some((facts.id.row_id(), destination.created_at(facts)?)))
            .collect();
        store.remove(destination, &row_keys(&rows)).await?;
        forgotten.extend(spans.map(|facts| facts.id));
    }
    let (gone, kept): (Vec<_>, Vec<_>) = known.into_iter().partition(|facts| forgotten.contains(&facts.id));
    store.forget(&gone).await?;
    Ok(kept)
}

/// Inserts what is not there; what was not.
pub(super) async fn insert<S: Store>(
    store: &mut S,
    destination: &'static Destination,
    rows: &[&NewRow],
) -> Result<New, StoreError> {
    if rows.is_empty() {
        return Ok(New::only(HashSet::new()));
    }
    store.insert_rows(destination, rows).await
}

/// As [`insert`], but what is refused is found and set aside.
pub(super) async fn insert_carefully<S: Store>(
    store: &mut S,
    destination: &'static Destination,
    mut rows: Vec<NewRow>,
    facts: &[&Facts],
    now: u64,
    applied: &mut Applied,
) -> Result<New, StoreError> {
    let mut inserted = HashSet::new();
    let whole = 0..rows.len();
    let mut parts = vec![whole];
    while let Some(part) = parts.pop() {
        store.savepoint().await?;
        let refusal = match insert(store, destination, &rows[part.clone()].iter().collect::<Vec<_>>()).await {
            Ok(new) => {
                store.release().await?;
                let ids = rows[part].iter().map(|row| &row.row.id);
                inserted.extend(ids.filter(|id| new.contains(id)).cloned());
                continue;
            }
            Err(error) => error.refusal()?,
        };
        let (reason, column) = refusal;
        store.back_to_savepoint().await?;
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
        set_aside(store, row, facts, reason, now, applied).await?;
    }
    Ok(New::only(inserted))
}

/// Completes row by row. A foreign key loses its one column; of what is refused for another reason, only those columns
/// stay as they are.
async fn merge_carefully<S: Store>(
    store: &mut S,
    destination: &'static Destination,
    mut updates: Vec<Update>,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    while let Some(mut update) = updates.pop() {
        store.savepoint().await?;
        let (reason, column) = match store.update(destination, &[&update]).await {
            Ok(()) => {
                store.release().await?;
                applied.merged += 1;
                continue;
            }
            Err(error) => error.refusal()?,
        };
        store.back_to_savepoint().await?;
        if column.is_some_and(|column| null_update(&mut update, &column)) {
            applied.nulled += 1;
            updates.push(update);
            continue;
        }
        // A text that the database cannot hold is refused wherever it is sent: each column goes without the others.
        let mut taken = 0;
        for column in update.changed() {
            store.savepoint().await?;
            match store.update(destination, &[&update.only(column.bit())]).await {
                Ok(()) => taken |= column.bit(),
                Err(error) => {
                    error.refusal()?;
                    applied.refused += 1;
                }
            }
            store.back_to_savepoint().await?;
        }
        tracing::warn!(
            table = destination.name,
            id = update.row.id,
            reason,
            "the database refuses to complete this row with all that is known"
        );
        // Fewer columns each time, so that this ends.
        if taken != 0 && taken != update.columns {
            updates.push(update.only(taken));
        }
    }
    Ok(())
}

/// Sets values to NULL that do not exist where their foreign keys point to; how many.
async fn null_missing<S: Store>(
    store: &mut S,
    destination: &'static Destination,
    rows: &mut [NewRow],
    updates: &mut [Update],
    careful: bool,
) -> Result<u64, StoreError> {
    let mut nulled = 0;
    for key in store.foreign_keys(destination) {
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
        let values: Vec<&str> = values.into_iter().collect();
        let missing = if careful {
            // A value may be one that the database cannot even be asked about: then each row finds out for itself.
            store.savepoint().await?;
            match store.missing(&key, &values).await {
                Ok(missing) => {
                    store.release().await?;
                    missing
                }
                Err(error) => {
                    error.refusal()?;
                    store.back_to_savepoint().await?;
                    continue;
                }
            }
        } else {
            store.missing(&key, &values).await?
        };
        let is_missing = |row: &mut Row| part(row).as_ref().is_some_and(|value| missing.contains(value));
        for row in rows.iter_mut() {
            if is_missing(&mut row.row) && null(row, &key.column) {
                nulled += 1;
            }
        }
        for update in updates.iter_mut().filter(|update| changes(update)) {
            if is_missing(&mut update.row) && null_update(update, &key.column) {
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

/// Makes the update write NULL to the column, unless it does already.
fn null_update(update: &mut Update, column: &str) -> bool {
    let known = Column::ALL.into_iter().find(|known| known.name() == column);
    let Some(known) = known.filter(|known| update.columns & known.bit() != 0) else {
        return false;
    };
    let taken = nullable(column).and_then(|part| part(&mut update.row).take());
    if taken.is_some() {
        update.new.set(known, Source::Refused);
    }
    taken.is_some()
}

/// Sets the column to NULL, unless it is already.
pub(super) fn null(row: &mut NewRow, column: &str) -> bool {
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
