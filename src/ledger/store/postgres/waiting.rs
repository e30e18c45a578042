//! Waiting spans in PostgreSQL, where other sidecars may write the same table: two indexes find them.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{PostgresStore, error, query, within};
use crate::ledger::facts::Facts;
use crate::ledger::store::waiting::{STORED_COLUMNS, stored_facts};
use crate::ledger::store::{Keys, Room, Store, StoreError, Waiting};
use crate::ledger::table::CONTEXT;

impl Waiting for PostgresStore {
    async fn wait(&mut self, facts: &[&Facts]) -> Result<u64, StoreError> {
        self.insert(&CONTEXT, facts).await
    }

    async fn load(&mut self, keys: &Keys, room: &mut Room) -> Result<Vec<Facts>, StoreError> {
        // Those before which there is still room for a byte.
        let sql = format!(
            "SELECT {STORED_COLUMNS} FROM (SELECT {STORED_COLUMNS}, sum(octet_length(facts)) \
             OVER (ORDER BY received_at_ns DESC ROWS UNBOUNDED PRECEDING) - octet_length(facts) AS before FROM {} \
             WHERE trace_id = ANY ($1) OR node_hash = ANY ($2) ORDER BY received_at_ns DESC LIMIT {}) AS latest \
             WHERE before < {}",
            self.names.own("context"),
            room.spans,
            room.bytes
        );
        let traces: Vec<&[u8]> = keys.traces.iter().map(|trace| trace.as_slice()).collect();
        let rows = self.fetch(query(sql).bind(traces).bind(&keys.nodes)).await?;
        let told = |row: &PgRow| row.try_get::<&str, _>(5).map_or(0, str::len);
        rows.iter().for_each(|row| room.take(told(row)));
        Ok(rows.iter().filter_map(facts_of).collect())
    }

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT {STORED_COLUMNS} FROM {} \
             WHERE due_ns <= $1 ORDER BY due_ns LIMIT $2",
            self.names.own("context")
        );
        let rows = self.fetch(query(sql).bind(now).bind(limit)).await?;
        Ok(rows.iter().filter_map(facts_of).collect())
    }

    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("DELETE FROM", "", facts).await
    }

    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("UPDATE", "SET due_ns = NULL", facts).await
    }

    async fn hurry(&mut self, received_before: i64, now: i64) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE {} SET due_ns = $2 WHERE received_at_ns < $1 AND due_ns > $2",
            self.names.own("context")
        );
        self.run(query(sql).bind(received_before).bind(now)).await?;
        Ok(())
    }

    async fn forget_before(&mut self, received_before: i64, keep_due: bool, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        let due = if keep_due { "AND due_ns IS NULL" } else { "" };
        // SKIP LOCKED: another sidecar may be forgetting the same ones.
        let sql = format!(
            "DELETE FROM {context} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {context} WHERE received_at_ns < $1 {due} \
             LIMIT $2 FOR UPDATE SKIP LOCKED))"
        );
        self.run(query(sql).bind(received_before).bind(limit)).await
    }

    async fn count_waiting(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let count = format!("SELECT count(*) FROM {context}");
        let row = within(self.patience, query(count).fetch_one(&mut self.connection)).await?;
        let size: i64 = row.try_get(0).map_err(error)?;
        if size <= max_pending {
            return Ok((size, None));
        }
        let oldest = format!("SELECT received_at_ns FROM {context} ORDER BY received_at_ns DESC OFFSET $1 LIMIT 1");
        let query = query(oldest).bind(max_pending);
        let row = within(self.patience, query.fetch_optional(&mut self.connection)).await?;
        Ok((size, row.map(|row| row.try_get(0)).transpose().map_err(error)?))
    }
}

impl PostgresStore {
    /// Does something with each of these waiting spans.
    async fn each_waiting(&mut self, verb: &str, change: &str, facts: &[Facts]) -> Result<(), StoreError> {
        let sql = format!(
            "{verb} {} {change} WHERE (trace_id, span_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))",
            self.names.own("context")
        );
        let traces: Vec<&[u8]> = facts.iter().map(|facts| facts.id.trace.as_slice()).collect();
        let spans: Vec<&[u8]> = facts.iter().map(|facts| facts.id.span.as_slice()).collect();
        self.run(query(sql).bind(traces).bind(spans)).await?;
        Ok(())
    }
}

fn facts_of(row: &PgRow) -> Option<Facts> {
    let times = [row.try_get(2).ok()?, row.try_get(3).ok()?, row.try_get(4).ok()?];
    stored_facts(row.try_get(0).ok()?, row.try_get(1).ok()?, times, row.try_get(5).ok()?)
}
