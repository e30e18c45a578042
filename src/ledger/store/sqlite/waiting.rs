//! Waiting spans in SQLite: a table in the order of arrival, and in memory where in it to look for a trace or a node.
//!
//! Traces and nodes are random keys. An index of them in the file is written to all over, for spans that are forgotten
//! soon: both indexes cost more than everything else that is written for an execution. In memory ([`super::index`]) a key
//! costs eight bytes and a third, and there are two for each span at most (`database.max_pending`). For the same reason many
//! spans are one row of the table ([`super::block`]).
//!
//! # Invariants
//!
//! * Each span has a position, which no other span ever has. The row of a block has that of its last span, so that the
//!   greatest one that was ever used is known to the database (`AUTOINCREMENT`).
//! * Within a transaction, the index has every waiting span. [`SqliteStore::hear_of_waiting`] sees to it when the
//!   transaction begins: what another process has written is what is behind the newest position that the index has. What a
//!   transaction wrote that was rolled back is heard of again, since the next ones have the same positions.
//! * It may have more: spans that are forgotten, or were rolled back. Nothing is taken from it but positions to look at;
//!   each span that is found there is compared with the keys.
//! * It is made from the table when the database is opened, and when it has far more than the table.
//! * A span that is due to become a row is alone in its block.

use std::collections::HashSet;

use rusqlite::{Connection, Row};

use super::block::{self, Block, Slot};
use super::index::WaitingIndex;
use super::session::error;
use super::{SqliteStore, Values, integers};
use crate::ledger::facts::{Facts, SpanId};
use crate::ledger::standalone;
use crate::ledger::store::waiting::{STORED_COLUMNS, stored_facts};
use crate::ledger::store::{Keys, Room, StoreError, Waiting};
use crate::ledger::table::{CONTEXT, nanos};

impl Waiting for SqliteStore {
    async fn wait(&mut self, facts: &[&Facts]) -> Result<u64, StoreError> {
        // What was not loaded may be among them.
        let new;
        let facts = if self.is_load_cut {
            new = self.without_waiting(facts).await?;
            &new
        } else {
            facts
        };
        let due: Vec<_> = facts.iter().map(|facts| (*facts, standalone::due(facts))).collect();
        self.wait_until_due(&due).await?;
        Ok(due.len() as u64)
    }

    async fn load(&mut self, keys: &Keys, room: &mut Room) -> Result<Vec<Facts>, StoreError> {
        let positions = self.waiting.find(keys);
        let keys = keys.clone();
        let has_key = move |slot: &Slot<'_>| {
            keys.traces.binary_search(&slot.id.trace).is_ok()
                || slot.node.is_some_and(|node| keys.nodes.binary_search(&node).is_ok())
        };
        let read = move |_, slot: &Slot<'_>| has_key(slot).then(|| slot.facts()).flatten();
        let found = self.look_at(positions, room, read).await?;
        self.is_load_cut |= room.is_used_up();
        Ok(found)
    }

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT data FROM {} WHERE due_ns <= ? ORDER BY due_ns LIMIT ?",
            self.names.own("context")
        );
        let read = |row: &Row<'_>| {
            let slots = block::slots(row.get_ref(0)?.as_blob()?);
            Ok(slots.flatten().filter_map(|slot| slot.facts()).collect())
        };
        let due: Vec<Vec<Facts>> = self.fetch(sql, integers(&[now, limit]), read).await?;
        Ok(due.into_iter().flatten().collect())
    }

    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        let ids: HashSet<SpanId> = facts.iter().map(|facts| facts.id).collect();
        let positions = self.waiting.find(&Keys::of_traces(facts));
        let of_ids = ids.clone();
        let is_one = move |row, slot: &Slot<'_>| of_ids.contains(&slot.id).then_some(row);
        let rows = self.look_at(positions, &mut Room::unbounded(), is_one).await?;
        let rows: HashSet<i64> = rows.into_iter().collect();
        let context = self.names.own("context");
        let rewrite = move |connection: &mut Connection| {
            let mut look = connection.prepare_cached(&format!("SELECT data FROM {context} WHERE position = ?"))?;
            let change = format!("UPDATE {context} SET spans = ?, data = ? WHERE position = ?");
            let mut change = connection.prepare_cached(&change)?;
            let mut delete = connection.prepare_cached(&format!("DELETE FROM {context} WHERE position = ?"))?;
            for row in rows {
                let block: Vec<u8> = look.query_row([row], |row| row.get(0))?;
                let (data, kept) = block::without(&block, |id| ids.contains(id));
                if kept > 0 {
                    change.execute((kept as i64, data, row))?;
                } else {
                    delete.execute([row])?;
                }
            }
            Ok(())
        };
        self.session.run(rewrite).await
    }

    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        let context = self.names.own("context");
        let look = format!("SELECT position, data FROM {context} WHERE due_ns IS NOT NULL ORDER BY due_ns, position");
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
                let mut slots = block::slots(row.get_ref(1)?.as_blob()?).flatten();
                if slots.any(|slot| ids.remove(&slot.id)) {
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
             WHERE received_at_ns < ? {due} ORDER BY received_at_ns LIMIT ?) RETURNING spans"
        );
        // Blocks of the most spans, until there are enough.
        let piece = (limit / block::SPANS as i64).max(1);
        let (mut forgotten, mut more) = (0, true);
        while more && forgotten < limit {
            let values = integers(&[received_before, piece]);
            let blocks: Vec<i64> = self.fetch(sql.clone(), values, |row| row.get(0)).await?;
            forgotten += blocks.iter().sum::<i64>();
            more = blocks.len() as i64 == piece;
        }
        Ok(forgotten.cast_unsigned())
    }

    async fn count_waiting(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let sql = format!("SELECT received_at_ns, spans FROM {context} ORDER BY received_at_ns");
        let count = format!("SELECT coalesce(sum(spans), 0) FROM {context}");
        let count = move |connection: &mut Connection| {
            let count: i64 = connection.query_row(&count, [], |row| row.get(0))?;
            let mut over = count.saturating_sub(max_pending);
            let mut last_over = None;
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([])?;
            while over > 0
                && let Some(row) = rows.next()?
            {
                last_over = row.get(0)?;
                over -= row.get::<_, i64>(1)?;
            }
            Ok((count, last_over))
        };
        let (count, last_over) = self.session.run(count).await?;
        // What others forgot is still in the index where something older waits.
        if self.waiting.is_stale(usize::try_from(count).unwrap_or_default()) {
            self.waiting = WaitingIndex::default();
            self.hear_of_waiting().await?;
        }
        Ok((count, last_over))
    }
}

/// The trace of a span, and the hash of its node's key.
type Key = ([u8; 16], Option<i64>);

/// The rows for spans that wait from now on, behind `position`, with when they are due, and the keys of the spans. What is due
/// has a row to itself.
fn blocks(facts: &[(&Facts, Option<i64>)], mut position: i64, spare: &mut Values) -> (Values, Vec<Key>) {
    let mut keys = Vec::with_capacity(facts.len());
    let mut values = std::mem::take(spare).cleared();
    let mut block = Block::new();
    let mut end = |block: &mut Block, due: Option<i64>| {
        if block.spans() == 0 {
            return;
        }
        position += i64::from(block.spans());
        values.integer(Some(position));
        values.integer(Some(i64::from(block.spans())));
        values.integer(Some(nanos(block.received_at())));
        values.integer(due);
        values.blob(block.data());
        *block = Block::new();
    };
    for (facts, due) in facts {
        if due.is_some() {
            end(&mut block, None);
        }
        keys.push((facts.id.trace, block.push(facts)));
        if due.is_some() || block.is_full() {
            end(&mut block, *due);
        }
    }
    end(&mut block, None);
    (values, keys)
}

impl SqliteStore {
    /// See the module: makes the index have every waiting span, at the begin of a transaction.
    pub(super) async fn hear_of_waiting(&mut self) -> Result<(), StoreError> {
        let names = (self.names.own("context"), self.names.bare(CONTEXT.name));
        self.with_index(move |connection, index| {
            let (context, name) = names;
            // Somebody may have emptied the table of what was used.
            let sql = format!(
                "SELECT (SELECT min(position) FROM {context}), max(coalesce((SELECT max(position) FROM {context}), 0), \
                 coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0))"
            );
            let mut ends = connection.prepare_cached(&sql)?;
            let (oldest, newest): (Option<i64>, i64) = ends.query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if newest > index.newest() {
                let sql = format!("SELECT position, data FROM {context} WHERE position > ? ORDER BY position");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([index.newest()])?;
                while let Some(row) = rows.next()? {
                    let data = row.get_ref(1)?.as_blob()?;
                    for (position, slot) in (block::first(data, row.get(0)?)..).zip(block::slots(data)) {
                        if let Some(slot) = slot {
                            index.add(position, &slot.id.trace, slot.node);
                        }
                    }
                }
                index.pass(newest);
            }
            // The oldest block has spans before its own position.
            let oldest = oldest.map(|oldest| oldest - block::SPANS as i64 + 1);
            index.forget_before(oldest.unwrap_or(index.newest() + 1));
            index.commit();
            Ok(())
        })
        .await?;
        self.is_load_cut = false;
        Ok(())
    }

    async fn wait_until_due(&mut self, facts: &[(&Facts, Option<i64>)]) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {} (position, spans, received_at_ns, due_ns, data) VALUES (?, ?, ?, ?, ?)",
            self.names.own("context")
        );
        for facts in facts.chunks(super::CHUNK) {
            let (values, keys) = blocks(facts, self.waiting.newest(), &mut self.spare);
            let sql = sql.clone();
            self.spare = self
                .with_index(move |connection, index| {
                    values.execute(connection, &sql)?;
                    for (trace, node) in keys {
                        index.add(index.newest() + 1, &trace, node);
                    }
                    Ok(values)
                })
                .await?;
        }
        Ok(())
    }

    /// Takes the spans of a table of an earlier version, which had a row for each, and drops it.
    pub(super) async fn take_spans_over(&mut self) -> Result<(), StoreError> {
        let before = self.names.own("context_before");
        let mut last = 0;
        loop {
            let sql =
                format!("SELECT rowid, {STORED_COLUMNS}, due_ns FROM {before} WHERE rowid > ? ORDER BY rowid LIMIT ?");
            let read = |row: &Row<'_>| {
                let bytes = |index: usize| row.get_ref(index)?.as_blob().map_err(rusqlite::Error::from);
                let times = [row.get(3)?, row.get(4)?, row.get(5)?];
                let facts = stored_facts(bytes(1)?, bytes(2)?, times, row.get_ref(6)?.as_str()?);
                // One without a time is no longer due.
                Ok((row.get(0)?, facts, row.get(7)?))
            };
            let values = integers(&[last, super::CHUNK as i64]);
            let rows: Vec<(i64, Option<Facts>, Option<i64>)> = self.fetch(sql, values, read).await?;
            let Some((rowid, ..)) = rows.last() else { break };
            last = *rowid;
            let facts = rows.iter().filter_map(|(_, facts, due)| Some((facts.as_ref()?, *due)));
            self.wait_until_due(&facts.collect::<Vec<_>>()).await?;
        }
        self.execute_filled("DROP TABLE {own:context_before}").await
    }

    /// What `read` makes of the position of the row, and a span in it, for the spans that wait at these positions, which are
    /// sorted, the latest first, until there is no more room.
    async fn look_at<T: Send + 'static>(
        &mut self,
        positions: Vec<i64>,
        room: &mut Room,
        read: impl Fn(i64, &Slot<'_>) -> Option<T> + Send + 'static,
    ) -> Result<Vec<T>, StoreError> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT position, data FROM {} WHERE position >= ? ORDER BY position LIMIT 1",
            self.names.own("context")
        );
        let mut left = *room;
        let look = move |connection: &mut Connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = Vec::new();
            let mut positions = positions.into_iter().peekable();
            while !left.is_used_up()
                && let Some(position) = positions.next()
            {
                let mut rows = statement.query([position])?;
                let Some(row) = rows.next()? else { continue };
                let (last, data): (i64, _) = (row.get(0)?, row.get_ref(1)?.as_blob()?);
                let first = block::first(data, last);
                let slots: Vec<Option<Slot<'_>>> = block::slots(data).collect();
                // All that are asked for of this block are next to each other.
                let mut next = Some(position);
                while let Some(position) = next.filter(|_| !left.is_used_up()) {
                    let place = usize::try_from(position - first).ok();
                    let slot = place.and_then(|place| slots.get(place)?.as_ref());
                    if let Some(slot) = slot
                        && let Some(one) = read(last, slot)
                    {
                        left.take(slot.told_bytes());
                        found.push(one);
                    }
                    next = positions.next_if(|next| *next >= first);
                }
            }
            Ok((found, left))
        };
        let found;
        (found, *room) = self.session.run(look).await?;
        Ok(found)
    }

    /// Those of the spans that do not wait.
    async fn without_waiting<'f>(&mut self, facts: &[&'f Facts]) -> Result<Vec<&'f Facts>, StoreError> {
        let positions = self.waiting.find(&Keys::of_traces(facts.iter().copied()));
        let waiting = self
            .look_at(positions, &mut Room::unbounded(), |_, slot| Some(slot.id))
            .await?;
        let waiting: HashSet<SpanId> = waiting.into_iter().collect();
        Ok(facts
            .iter()
            .filter(|facts| !waiting.contains(&facts.id))
            .copied()
            .collect())
    }

    /// Does `work` with the index on the session's thread. A session that does not answer keeps it, and is given up.
    async fn with_index<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Connection, &mut WaitingIndex) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
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
