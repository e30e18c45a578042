//! Waiting spans in SQLite: a table in the order of arrival, and in memory where in it to look for a trace or a node.
//!
//! Traces and nodes are random keys. An index of them in the file is written to all over, for spans that are forgotten
//! soon: both indexes cost more than everything else that is written for an execution. In memory ([`super::index`]) a key
//! costs eight bytes and a third, and there are two for each span at most (`database.max_pending`).
//!
//! # Invariants
//!
//! * Within a transaction, the index has every waiting span. [`SqliteStore::hear_of_waiting`] sees to it when the
//!   transaction begins: positions are never used twice (`AUTOINCREMENT`), so that what another process has written is
//!   what is behind the newest position that the index has. What a transaction wrote that was rolled back is heard of
//!   again, since the next ones have the same positions.
//! * It may have more: spans that are forgotten, or were rolled back. Nothing is taken from it but positions to look at;
//!   each span that is found there is compared with the keys.
//! * It is made from the table when the database is opened, and when it has far more than the table.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row};

use super::index::WaitingIndex;
use super::session::error;
use super::{SqliteStore, Values, integers};
use crate::ledger::facts::{Facts, SpanId};
use crate::ledger::store::waiting::{STORED_COLUMNS, stored_facts};
use crate::ledger::store::{Keys, LOAD_LIMIT, StoreError, Waiting, span_id};
use crate::ledger::table::CONTEXT;

impl Waiting for SqliteStore {
    async fn wait(&mut self, facts: &[&Facts]) -> Result<u64, StoreError> {
        if facts.is_empty() {
            return Ok(0);
        }
        let sql = self.insert_sql(&CONTEXT);
        // What was not loaded may be among them.
        let facts = if self.is_load_cut {
            self.without_waiting(facts).await?
        } else {
            facts.to_vec()
        };
        for facts in facts.chunks(super::CHUNK) {
            let values = Values::of_rows(&CONTEXT, facts);
            let keys: Vec<_> = facts.iter().map(|facts| (facts.id.trace, facts.node_hash())).collect();
            let sql = sql.clone();
            self.with_index(move |connection, index| {
                let mut keys = keys.into_iter();
                values.each(connection, &sql, |statement| {
                    statement.raw_execute()?;
                    if let Some((trace, node)) = keys.next() {
                        index.add(connection.last_insert_rowid(), &trace, node);
                    }
                    Ok(())
                })
            })
            .await?;
        }
        Ok(facts.len() as u64)
    }

    async fn load(&mut self, keys: &Keys) -> Result<Vec<Facts>, StoreError> {
        let positions = self.waiting.find(keys);
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {STORED_COLUMNS} FROM {} WHERE position = ?",
            self.names.own("context")
        );
        let keys = keys.clone();
        let has_key = move |facts: &Facts| {
            keys.traces.binary_search(&facts.id.trace).is_ok()
                || facts
                    .node_hash()
                    .is_some_and(|node| keys.nodes.binary_search(&node).is_ok())
        };
        let load = move |connection: &mut Connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = Vec::new();
            for position in positions {
                let facts = statement.query_row([position], |row| Ok(facts_of(row))).optional()?;
                found.extend(facts.flatten().filter(&has_key));
                if found.len() == LOAD_LIMIT {
                    break;
                }
            }
            Ok(found)
        };
        let found = self.session.run(load).await?;
        self.is_load_cut |= found.len() == LOAD_LIMIT;
        Ok(found)
    }

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT {STORED_COLUMNS} FROM {} \
             WHERE due_ns <= ? ORDER BY due_ns LIMIT ?",
            self.names.own("context")
        );
        let due = self
            .fetch(sql, integers(&[now, limit]), |row| Ok(facts_of(row)))
            .await?;
        Ok(due.into_iter().flatten().collect())
    }

    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        let ids: HashSet<SpanId> = facts.iter().map(|facts| facts.id).collect();
        let waiting = self.waiting_in(&Keys::of_traces(facts)).await?;
        let positions = waiting.into_iter().filter(|(_, id)| ids.contains(id));
        let positions: Vec<i64> = positions.map(|(position, _)| position).collect();
        let sql = format!("DELETE FROM {} WHERE position = ?", self.names.own("context"));
        self.run(sql, integers(&positions)).await?;
        Ok(())
    }

    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        let context = self.names.own("context");
        let look = format!(
            "SELECT position, trace_id, span_id FROM {context} WHERE due_ns IS NOT NULL ORDER BY due_ns, position"
        );
        let change = format!("UPDATE {context} SET due_ns = NULL WHERE position = ?");
        let mut ids: HashSet<SpanId> = facts.iter().map(|facts| facts.id).collect();
        let look = move |connection: &mut Connection| {
            // They are the first that are due.
            let mut positions: Vec<i64> = Vec::with_capacity(ids.len());
            let mut look = connection.prepare_cached(&look)?;
            let mut rows = look.query([])?;
            while !ids.is_empty()
                && let Some(row) = rows.next()?
            {
                if ids.remove(&id_of(row, 1)?) {
                    positions.push(row.get(0)?);
                }
            }
            Ok(positions)
        };
        let positions = self.session.run(look).await?;
        self.run(change, integers(&positions)).await?;
        Ok(())
    }

    async fn hurry(&mut self, received_before: i64, now: i64) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE {} SET due_ns = ?2 WHERE received_at_ns < ?1 AND due_ns > ?2",
            self.names.own("context")
        );
        self.run(sql, integers(&[received_before, now])).await?;
        Ok(())
    }

    async fn forget_before(&mut self, received_before: i64, keep_due: bool, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        let due = if keep_due { "AND due_ns IS NULL" } else { "" };
        let sql = format!(
            "DELETE FROM {context} WHERE position IN (SELECT position FROM {context} \
             WHERE received_at_ns < ? {due} ORDER BY received_at_ns LIMIT ?)"
        );
        self.run(sql, integers(&[received_before, limit])).await
    }

    async fn count_waiting(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let sql = format!("SELECT count(*) FROM {context}");
        let count = move |connection: &mut Connection| connection.query_row(&sql, [], |row| row.get(0));
        let count: i64 = self.session.run(count).await?;
        let over = count.saturating_sub(max_pending);
        let mut last_over = Vec::new();
        if over > 0 {
            let sql = format!("SELECT received_at_ns FROM {context} ORDER BY received_at_ns LIMIT 1 OFFSET ?");
            last_over = self.fetch(sql, integers(&[over - 1]), |row| row.get(0)).await?;
        }
        // What others forgot is still in the index where something older waits.
        if self.waiting.is_stale(usize::try_from(count).unwrap_or_default()) {
            self.waiting = WaitingIndex::default();
            self.hear_of_waiting().await?;
        }
        Ok((count, last_over.first().copied()))
    }
}

impl SqliteStore {
    /// See the module: makes the index have every waiting span, at the begin of a transaction.
    pub(super) async fn hear_of_waiting(&mut self) -> Result<(), StoreError> {
        let context = self.names.own("context");
        self.with_index(move |connection, index| {
            let sql = format!("SELECT (SELECT min(position) FROM {context}), (SELECT max(position) FROM {context})");
            let mut ends = connection.prepare_cached(&sql)?;
            let ends: (Option<i64>, Option<i64>) = ends.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if ends.1.is_some_and(|newest| newest > index.newest()) {
                let sql =
                    format!("SELECT position, trace_id, node_hash FROM {context} WHERE position > ? ORDER BY position");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([index.newest()])?;
                while let Some(row) = rows.next()? {
                    let trace = row.get_ref(1)?.as_blob()?.try_into().unwrap_or_default();
                    index.add(row.get(0)?, &trace, row.get(2)?);
                }
            }
            index.forget_before(ends.0.unwrap_or(index.newest() + 1));
            index.commit();
            Ok(())
        })
        .await?;
        self.is_load_cut = false;
        Ok(())
    }

    /// Where spans wait that may have one of the keys, and which they are.
    async fn waiting_in(&mut self, keys: &Keys) -> Result<Vec<(i64, SpanId)>, StoreError> {
        let positions = self.waiting.find(keys);
        let sql = format!(
            "SELECT position, trace_id, span_id FROM {} WHERE position = ?",
            self.names.own("context")
        );
        let read = |row: &Row<'_>| Ok((row.get(0)?, id_of(row, 1)?));
        self.fetch(sql, integers(&positions), read).await
    }

    /// Those of the spans that do not wait.
    async fn without_waiting<'f>(&mut self, facts: &[&'f Facts]) -> Result<Vec<&'f Facts>, StoreError> {
        let waiting = self.waiting_in(&Keys::of_traces(facts.iter().copied())).await?;
        let waiting: HashSet<SpanId> = waiting.into_iter().map(|(_, id)| id).collect();
        Ok(facts
            .iter()
            .filter(|facts| !waiting.contains(&facts.id))
            .copied()
            .collect())
    }

    /// Does `work` with the index on the session's thread. A session that does not answer keeps it, and is given up.
    async fn with_index(
        &mut self,
        work: impl FnOnce(&mut Connection, &mut WaitingIndex) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mut index = std::mem::take(&mut self.waiting);
        let work = move |connection: &mut Connection| {
            let done = work(connection, &mut index);
            Ok((index, done))
        };
        let (index, done) = self.session.run(work).await?;
        self.waiting = index;
        done.map_err(error)
    }
}

/// Of the columns from this one on.
fn id_of(row: &Row<'_>, column: usize) -> rusqlite::Result<SpanId> {
    let (trace, span) = (row.get_ref(column)?, row.get_ref(column + 1)?);
    Ok(span_id(trace.as_blob()?, span.as_blob()?))
}

fn facts_of(row: &Row<'_>) -> Option<Facts> {
    let times = [row.get(2).ok()?, row.get(3).ok()?, row.get(4).ok()?];
    let bytes = |index: usize| row.get_ref(index).ok()?.as_blob().ok();
    stored_facts(bytes(0)?, bytes(1)?, times, row.get_ref(5).ok()?.as_str().ok()?)
}
