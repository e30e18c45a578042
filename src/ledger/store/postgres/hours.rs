//! Packed hours in PostgreSQL.
//!
//! # Who waits for whom
//!
//! Who packs an hour holds its lock alone; whoever changes rows of an hour that is over shares that lock with others of
//! its kind, from the end of its transaction to the commit. So a packed hour has either been made after the change was
//! committed, or is taken away by it. Who packs holds no other lock and does not wait, so nobody waits in a circle.

use std::ops::Range;

use chrono::NaiveDateTime;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{PgQuery, PostgresStore, error, query, timestamp};
use crate::columns::{IS_BESIDE, Row, TEXTS, hour_of};
use crate::ledger::store::StoreError;
use crate::ledger::store::hours::{HourRow, Hours, begin_of, bounds, rows_of_hour_sql, unpacked_sql};
use crate::ledger::table::EXECUTIONS;

impl Hours for PostgresStore {
    async fn first_hour(&mut self) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT min(created_at) FROM {}", self.names.of(EXECUTIONS.beside.name));
        self.hour_of(query(sql)).await
    }

    async fn last_hour(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError> {
        let beside = self.names.of(EXECUTIONS.beside.name);
        let sql = format!("SELECT max(created_at) FROM {beside} WHERE created_at >= $1 AND created_at < $2");
        let [from, to] = [hours.start, hours.end].map(|hour| timestamp(begin_of(hour)));
        self.hour_of(query(sql).bind(from).bind(to)).await
    }

    async fn unpacked(&mut self, hours: Range<i64>) -> Result<Vec<Range<i64>>, StoreError> {
        let sql = unpacked_sql(&self.names, '$', |number| format!("{number}::bigint"));
        let rows = self.fetch(query(sql).bind(hours.start).bind(hours.end)).await?;
        rows.iter()
            .map(|row| Ok(row.try_get(0)?..row.try_get(1)?))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(error)
    }

    async fn first_packed(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError> {
        let packed = self.names.own("hours");
        let sql = format!("SELECT min(hour) FROM {packed} WHERE hour >= $1 AND hour < $2");
        let rows = self.fetch(query(sql).bind(hours.start).bind(hours.end)).await?;
        Ok(rows.first().and_then(|row| row.try_get(0).ok()))
    }

    async fn lock_hour(&mut self, hour: i64) -> Result<bool, StoreError> {
        let sql = "SELECT pg_try_advisory_xact_lock($1, $2)".to_owned();
        let rows = self
            .fetch(query(sql).bind(self.hours_class()).bind(hour as i32))
            .await?;
        Ok(rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false)))
    }

    async fn rows_of_hour(
        &mut self,
        hour: i64,
        after: Option<&HourRow>,
        limit: i64,
    ) -> Result<Vec<HourRow>, StoreError> {
        let sql = rows_of_hour_sql(&self.names, '$', IS_BESIDE, |column| format!("{column}::bigint"));
        let (from, id, to) = bounds(hour, after);
        let query = query(sql)
            .bind(timestamp(from))
            .bind(id)
            .bind(timestamp(to))
            .bind(limit);
        let rows = self.fetch(query).await?;
        // Whoever is to put it right has to know which row it is.
        let table = self.names.rows();
        let unreadable = |row: &PgRow, error: sqlx::Error| {
            let id: String = row.try_get(0).unwrap_or_default();
            StoreError::Unreadable(format!("{table}, id {id}: {error}"))
        };
        let rows = rows.iter();
        rows.map(|row| read(row).map_err(|error| unreadable(row, error)))
            .collect()
    }

    async fn hour(&mut self, hour: i64) -> Result<Vec<Vec<u8>>, StoreError> {
        let sql = format!(
            "SELECT data FROM {} WHERE hour = $1 ORDER BY part",
            self.names.own("hours")
        );
        let rows = self.fetch(query(sql).bind(hour)).await?;
        rows.iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(error)
    }

    async fn put_hour(&mut self, hour: i64, packed_at: i64, parts: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let hours = self.names.own("hours");
        self.run(query(format!("DELETE FROM {hours} WHERE hour = $1")).bind(hour))
            .await?;
        for (part, data) in (0_i32..).zip(parts) {
            let sql = format!("INSERT INTO {hours} (hour, part, packed_at_ns, data) VALUES ($1, $2, $3, $4)");
            self.run(query(sql).bind(hour).bind(part).bind(packed_at).bind(data))
                .await?;
        }
        Ok(())
    }

    async fn unpack(&mut self, hours: &[i64]) -> Result<(), StoreError> {
        let keys: Vec<i32> = hours.iter().map(|hour| *hour as i32).collect();
        let sql = "SELECT count(pg_advisory_xact_lock_shared($1, hour)) FROM unnest($2::int4[]) AS hour".to_owned();
        self.run(query(sql).bind(self.hours_class()).bind(keys)).await?;
        let sql = format!("DELETE FROM {} WHERE hour = ANY ($1)", self.names.own("hours"));
        self.run(query(sql).bind(hours)).await?;
        Ok(())
    }
}

impl PostgresStore {
    /// The hour of the one time that is asked for.
    async fn hour_of(&mut self, query: PgQuery<'_>) -> Result<Option<i64>, StoreError> {
        let rows = self.fetch(query).await?;
        let at: Option<NaiveDateTime> = rows.first().and_then(|row| row.try_get(0).ok());
        Ok(at.map(|at| hour_of(at.and_utc().timestamp_micros())))
    }

    /// The locks of hours are others than those of keys.
    fn hours_class(&self) -> i32 {
        self.lock_class.wrapping_add(1)
    }
}

fn read(row: &PgRow) -> Result<HourRow, sqlx::Error> {
    // The backend's column may have a time zone.
    let at = match row.try_get::<NaiveDateTime, _>(1) {
        Ok(at) => at.and_utc(),
        Err(_) => row.try_get(1)?,
    };
    let mut texts: [Option<String>; TEXTS] = Default::default();
    for (index, text) in texts.iter_mut().enumerate() {
        *text = row.try_get(index + 2)?;
    }
    Ok(HourRow {
        id: row.try_get(0)?,
        row: Row {
            at: at.timestamp_micros(),
            texts,
            duration_ms: row.try_get(9)?,
            memory_mb: row.try_get(10)?,
            exit_code: row.try_get(11)?,
            tokens: row.try_get(12)?,
            success: row.try_get(13)?,
            validation: row.try_get(14)?,
            is_timeout: row.try_get(15)?,
            cost_usd: row.try_get(16)?,
        },
    })
}
