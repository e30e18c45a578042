//! Runtimes and tools that run without an executor around them (`database.standalone`).
//!
//! A span of a runtime (`e2b.execute`, ...) or of a tool waits two minutes for the execution that encloses it. If none
//! comes, it becomes a row itself. If one comes later all the same, it takes over that row: the row keeps its id and
//! becomes the row of the execution; beside it is noted which execution that is, so that it is not written again.

use std::collections::HashSet;

use super::assemble::assemble;
use super::commit::{Applied, begin_with_known, insert, insert_carefully};
use super::facts::{Facts, Role, Told};
use super::plan::new_row;
use super::store::{Store, StoreError};
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

/// The ids of the rows, if there are any, that stand for what `execution` encloses and no other execution does.
pub(super) fn replaced_by(world: &World<'_>, execution: &Facts) -> Vec<String> {
    let spans = [Kind::Runtime, Kind::Tool]
        .into_iter()
        .flat_map(|kind| world.all_enclosed(execution, kind, true));
    let can_stand = spans.filter(|span| span.told.role.alone().is_some());
    let only_here = |span: &&Facts| matches!(world.enclosing(span, Kind::Execution, true), Match::One(_));
    can_stand.filter(only_here).map(|span| span.id.row_id()).collect()
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
        if let (Role::Execution(execution), Some(assembled)) = (&facts.told.role, assemble(&world, facts, true)) {
            rows.push(new_row(facts, execution, assembled, Vec::new(), prices));
        }
    }
    let facts: Vec<&Facts> = executions.iter().collect();
    applied.written = insert_carefully(store, rows, &facts, now, &mut applied).await?.len() as u64;
    store.settle(&due).await?;
    store.commit().await?;
    Ok((due.len() as u64, applied))
}

/// Takes out of `rows` those that take over a row that is there, and writes them; the ids of those that were new. When
/// `careful`, one that is refused stays in `rows`.
pub(super) async fn take_over<S: Store>(
    store: &mut S,
    rows: &mut Vec<NewRow>,
    careful: bool,
) -> Result<HashSet<String>, StoreError> {
    let candidates: Vec<&str> = rows.iter().flat_map(|row| &row.replaces).map(String::as_str).collect();
    if candidates.is_empty() {
        return Ok(HashSet::new());
    }
    let standing = store.stored(&candidates).await?;
    let mut taken = HashSet::new();
    let mut rest = Vec::with_capacity(rows.len());
    for mut row in rows.drain(..) {
        row.replaces.retain(|id| standing.contains_key(id));
        let Some(id) = row.replaces.first() else {
            rest.push(row);
            continue;
        };
        if !careful {
            if take(store, &row, id).await? {
                taken.insert(row.row.id);
            }
            continue;
        }
        store.savepoint().await?;
        match take(store, &row, id).await {
            Ok(is_new) => {
                store.release().await?;
                if is_new {
                    taken.insert(row.row.id);
                }
            }
            Err(StoreError::Refused { .. }) => {
                store.back_to_savepoint().await?;
                rest.push(row);
            }
            Err(error) => return Err(error),
        }
    }
    *rows = rest;
    Ok(taken)
}

/// Makes `row` the row with this id, and takes away the others that it replaces; false if the execution had one.
async fn take<S: Store>(store: &mut S, row: &NewRow, id: &str) -> Result<bool, StoreError> {
    let alias = NewRow {
        alias_of: Some(id.to_owned()),
        ..row.clone()
    };
    if store.insert_new(&EXECUTIONS, &[&alias]).await?.is_empty() {
        return Ok(false);
    }
    let gone: Vec<&str> = row.replaces.iter().map(String::as_str).collect();
    store.remove(&gone).await?;
    let mut taken = row.clone();
    taken.row.id = id.to_owned();
    insert(store, &[&taken]).await?;
    Ok(true)
}
