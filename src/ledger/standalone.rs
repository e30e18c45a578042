//! Runtimes and tools that run without an executor around them (`database.standalone`).
//!
//! A span of a runtime (`e2b.execute`, ...) or of a tool waits two minutes for the execution that encloses it. If none
//! comes, it becomes a row itself. If one comes later all the same, it takes over that row: the row keeps its id and
//! becomes the row of the execution; beside it is noted which execution that is, so that it is not written again.

use std::collections::{HashMap, HashSet};

use super::assemble::assemble;
use super::commit::{Applied, begin_with_known, insert, insert_carefully, null};
use super::facts::{Facts, Role, SpanId, Told};
use super::packing;
use super::plan::new_row;
use super::store::{RowKey, Store, StoreError, row_keys};
use super::table::{EXECUTIONS, NewRow, nanos};
use super::world::{Kind, Match, World};
use crate::rules::prices::Prices;

/// How long a span waits for its execution, in nanoseconds: longer than any batch of any SDK.
const PATIENCE: u64 = 120_000_000_000;

/// Rows in one transaction.
const PIECE: i64 = 500;

/// When the span becomes a row, if it is one that can.
pub(super) fn due(facts: &Facts) -> Option<i64> {
    facts
        .told
        .role
        .alone()
        .map(|_| nanos(facts.received_at.saturating_add(PATIENCE)))
}

/// By execution, the rows, if there are any, that stand for what it encloses and no other execution does, by id and
/// `created_at`.
pub(super) fn replaced(world: &World<'_>) -> HashMap<SpanId, Vec<(String, u64)>> {
    let spans = [Kind::Runtime, Kind::Tool].into_iter().flat_map(|kind| world.all(kind));
    // Whatever the order of arrival, it is the same row that is taken over.
    let mut can_stand: Vec<_> = spans
        .filter_map(|span| Some((span, span.told.role.alone()?.created_at)))
        .collect();
    can_stand.sort_unstable_by_key(|(span, _)| (span.told.role.kind(), span.start, span.id));
    let mut replaced: HashMap<SpanId, Vec<(String, u64)>> = HashMap::new();
    for (span, created_at) in can_stand {
        if let Match::One(execution) = world.enclosing(span, Kind::Execution, true) {
            replaced
                .entry(execution.id)
                .or_default()
                .push((span.id.row_id(), created_at));
        }
    }
    replaced
}

/// Lets the spans that have waited long enough become rows; how many were looked at, and what was done.
pub(super) async fn stand_alone<S: Store>(
    store: &mut S,
    window: u64,
    oldest: u64,
    now: u64,
    prices: &Prices,
) -> Result<(u64, Applied), StoreError> {
    store.begin().await?;
    let due = store.due(nanos(now), PIECE).await?;
    store.commit().await?;
    if due.is_empty() {
        return Ok((0, Applied::default()));
    }
    let known = begin_with_known(store, &due).await?;
    store.check_at_once().await?;
    // In a trace of more spans than are loaded, one may wait twice.
    let mut seen = HashSet::new();
    let due: Vec<Facts> = due.into_iter().filter(|span| seen.insert(span.id)).collect();
    let world = World::new(&known, &due, window);
    let mut applied = Applied::default();
    let mut rows = Vec::new();
    let mut executions = Vec::new();
    for span in &due {
        let Some(alone) = span.told.role.alone() else { continue };
        if world.enclosing(span, Kind::Execution, true) != Match::None {
            continue;
        }
        if alone.created_at < oldest {
            applied.expired += 1;
            continue;
        }
        let told = Told {
            role: Role::Execution(Box::new(alone.clone())),
            ..span.told.clone()
        };
        executions.push(Facts { told, ..span.clone() });
    }
    for facts in &executions {
        if let Some(assembled) = assemble(&world, facts, true) {
            rows.extend(new_row(EXECUTIONS, facts, assembled, Vec::new(), prices));
        }
    }
    let facts: Vec<&Facts> = executions.iter().collect();
    let touched = packing::touched_by(&rows, now);
    let written = insert_carefully(store, EXECUTIONS, rows, &facts, now, &mut applied).await?;
    applied.written = written.count as u64;
    store.settle(&due).await?;
    if !touched.is_empty() {
        store.unpack(&touched).await?;
    }
    store.commit().await?;
    Ok((due.len() as u64, applied))
}

/// Takes out of `rows` those that take over a row that is there, and writes them: the ids of those that were new, and,
/// when `careful`, the rows that the database refuses, with its reason.
pub(super) async fn take_over<S: Store>(
    store: &mut S,
    rows: &mut Vec<NewRow>,
    careful: bool,
    applied: &mut Applied,
) -> Result<(HashSet<String>, Vec<(NewRow, String)>), StoreError> {
    let candidates: Vec<RowKey<'_>> = rows.iter().flat_map(|row| row_keys(&row.replaces)).collect();
    let (mut taken, mut refused) = (HashSet::new(), Vec::new());
    if candidates.is_empty() {
        return Ok((taken, refused));
    }
    let standing = store.stored(EXECUTIONS, &candidates).await?;
    let mut rest = Vec::with_capacity(rows.len());
    for mut row in rows.drain(..) {
        row.replaces.retain(|(id, _)| standing.contains_key(id));
        let Some((id, _)) = row.replaces.first().cloned() else {
            rest.push(row);
            continue;
        };
        if !careful {
            if take(store, &row, &id).await? {
                taken.insert(row.row.id);
            }
            continue;
        }
        loop {
            store.savepoint().await?;
            match take(store, &row, &id).await {
                Ok(is_new) => {
                    store.release().await?;
                    if is_new {
                        taken.insert(row.row.id);
                    }
                    break;
                }
                Err(error) => {
                    let (reason, column) = error.refusal()?;
                    store.back_to_savepoint().await?;
                    if column.is_some_and(|column| null(&mut row, &column)) {
                        applied.nulled += 1;
                        continue;
                    }
                    // The row that it would replace stays: a second one beside it would count the run twice.
                    refused.push((row, reason));
                    break;
                }
            }
        }
    }
    *rows = rest;
    Ok((taken, refused))
}

/// Makes `row` the row with this id, and takes away the others that it replaces; false if the execution had one.
async fn take<S: Store>(store: &mut S, row: &NewRow, id: &str) -> Result<bool, StoreError> {
    let alias = NewRow {
        alias_of: Some(id.to_owned()),
        ..row.clone()
    };
    if store.insert_beside(EXECUTIONS, &[&alias]).await?.count == 0 {
        return Ok(false);
    }
    store.remove(EXECUTIONS, &row_keys(&row.replaces)).await?;
    let mut taken = alias;
    taken.row.id = id.to_owned();
    insert(store, EXECUTIONS, &[&taken]).await?;
    Ok(true)
}
