//! Packed hours in SQLite.

use std::ops::Range;

use chrono::NaiveDateTime;
use rusqlite::{Connection, Row};

use super::{SqliteStore, Values, integers, texts, timestamp};
use crate::columns::{IS_BESIDE_BY_TIME, Row as Packable, TEXTS, hour_of};
use crate::ledger::store::StoreError;
use crate::ledger::store::hours::{HourRow, Hours, begin_of, bounds, rows_of_hour_sql, unpacked_sql};
use crate::ledger::table::EXECUTIONS;

impl Hours for SqliteStore {
    async fn first_hour(&mut self) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT min(created_at) FROM {}", self.names.of(EXECUTIONS.beside.name));
        let first = move |connection: &mut Connection| connection.query_row(&sql, [], |row| row.get(0));
        let first: Option<String> = self.session.run(first).await?;
        Ok(first.as_deref().and_then(micros).map(hour_of))
    }

    async fn last_hour(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError> {
        let beside = self.names.of(EXECUTIONS.beside.name);
        let sql = format!("SELECT max(created_at) FROM {beside} WHERE created_at >= ? AND created_at < ?");
        let [from, to] = [hours.start, hours.end].map(|hour| timestamp(begin_of(hour)));
        let last: Vec<Option<String>> = self.fetch(sql, texts(&[&from, &to]), |row| row.get(0)).await?;
        Ok(last
            .into_iter()
            .flatten()
            .next()
            .as_deref()
            .and_then(micros)
            .map(hour_of))
    }

    async fn unpacked(&mut self, hours: Range<i64>) -> Result<Vec<Range<i64>>, StoreError> {
        let sql = unpacked_sql(&self.names, '?', str::to_owned);
        let read = |row: &Row<'_>| Ok(row.get(0)?..row.get(1)?);
        self.fetch(sql, integers(&[hours.start, hours.end]), read).await
    }

    async fn first_packed(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError> {
        let packed = self.names.own("hours");
        let sql = format!("SELECT min(hour) FROM {packed} WHERE hour >= ? AND hour < ?");
        let first: Vec<Option<i64>> = self
            .fetch(sql, integers(&[hours.start, hours.end]), |row| row.get(0))
            .await?;
        Ok(first.into_iter().flatten().next())
    }

    async fn lock_hour(&mut self, _hour: i64) -> Result<bool, StoreError> {
        // The transaction has the only write lock there is.
        Ok(true)
    }

    async fn rows_of_hour(
        &mut self,
        hour: i64,
        after: Option<&HourRow>,
        limit: i64,
    ) -> Result<Vec<HourRow>, StoreError> {
        let sql = rows_of_hour_sql(&self.names, '?', IS_BESIDE_BY_TIME, str::to_owned);
        let (from, id, to) = bounds(hour, after);
        let mut values = texts(&[&timestamp(from), id, &timestamp(to)]);
        values.integer(Some(limit));
        // Whoever is to put it right has to know which row it is.
        let table = self.names.rows();
        let read = move |row: &Row<'_>| {
            let id: String = row.get(0)?;
            Ok(read(row).map_err(|error| StoreError::Unreadable(format!("{table}, id {id}: {error}"))))
        };
        let rows = self.fetch(sql, values, read).await?;
        rows.into_iter().collect()
    }

    async fn hour(&mut self, hour: i64) -> Result<Vec<Vec<u8>>, StoreError> {
        let sql = format!(
            "SELECT data FROM {} WHERE hour = ? ORDER BY part",
            self.names.own("hours")
        );
        self.fetch(sql, integers(&[hour]), |row| row.get(0)).await
    }

    async fn put_hour(&mut self, hour: i64, packed_at: i64, parts: Vec<Vec<u8>>) -> Result<(), StoreError> {
        self.unpack(&[hour]).await?;
        let sql = format!(
            "INSERT INTO {} (hour, part, packed_at_ns, data) VALUES (?, ?, ?, ?)",
            self.names.own("hours")
        );
        let mut values = Values::default();
        for (part, data) in (0..).zip(parts) {
            values.integer(Some(hour));
            values.integer(Some(part));
            values.integer(Some(packed_at));
            values.blob(&data);
        }
        self.run(sql, values).await?;
        Ok(())
    }

    async fn unpack(&mut self, hours: &[i64]) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM {} WHERE hour = ?", self.names.own("hours"));
        self.run(sql, integers(hours)).await?;
        Ok(())
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<HourRow> {
    let at = row.get_ref(1)?.as_str()?;
    let wrong = || rusqlite::Error::InvalidColumnType(1, "created_at".to_owned(), rusqlite::types::Type::Text);
    let at = micros(at).ok_or_else(wrong)?;
    let mut texts: [Option<String>; TEXTS] = Default::default();
    for (index, text) in texts.iter_mut().enumerate() {
        *text = row.get(index + 2)?;
    }
    Ok(HourRow {
        id: row.get(0)?,
        row: Packable {
            at,
            texts,
            duration_ms: row.get(9)?,
            memory_mb: row.get(10)?,
            exit_code: row.get(11)?,
            tokens: row.get(12)?,
            success: row.get(13)?,
            validation: row.get(14)?,
            is_timeout: row.get(15)?,
            cost_usd: row.get(16)?,
        },
    })
}

fn micros(created_at: &str) -> Option<i64> {
    let at = NaiveDateTime::parse_from_str(created_at, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(at.and_utc().timestamp_micros())
}
