//! SQLite: one file, one connection that writes.
//!
//! Rows go in by statements of many rows each: binding is cheap, but each statement is a trip to the thread that owns
//! the connection. The number of rows of a statement is a power of two, so that a handful of prepared statements serves
//! any batch. WAL, so that the query API reads while this writes; `synchronous=FULL`, so that what the journal gives
//! up is on disk here.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use chrono::DateTime;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection, Row as _, Sqlite};

use super::{
    ForeignKey, Keys, LOAD_LIMIT, Migration, Names, Settings, Store, StoreError, fill_in, migrations, quote,
    stored_facts,
};
use crate::ledger::facts::Facts;
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{Destination, Quarantined, Table, TableName, Value, nanos};

/// Rows in one statement, at most. More brought nothing when measured.
const CHUNK: usize = 64;

/// A transaction touches pages all over the indexes, because ids are random. What does not fit is written and read again
/// and again before it is committed. Negative: KiB.
const CACHE_SIZE: &str = "-24576";

/// A page that many transactions change is copied back once for all of them: 32 MiB.
const CHECKPOINT_PAGES: &str = "8192";

/// How long to wait for another process that writes to the file.
const BUSY: Duration = Duration::from_secs(5);

migrations!("../../../migrations/sqlite");

/// See the module documentation.
pub(in crate::ledger) struct SqliteStore {
    connection: SqliteConnection,
    names: Names,
    foreign_keys: Vec<(TableName, Vec<ForeignKey>)>,
}

impl Store for SqliteStore {
    const HAS_LOCKS: bool = false;

    async fn connect(settings: &Settings) -> Result<SqliteStore, StoreError> {
        let configuration = |error: sqlx::Error| StoreError::Configuration(format!("database.url: {error}"));
        let options = SqliteConnectOptions::from_str(&settings.url).map_err(configuration)?;
        if settings.migrate
            && let Some(directory) = options.get_filename().parent()
        {
            // The directory of a fresh database; if it cannot be made, opening the file says why.
            drop(std::fs::create_dir_all(directory));
        }
        let options = options
            .create_if_missing(settings.migrate)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .pragma("cache_size", CACHE_SIZE)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("temp_store", "MEMORY");
        let connection = SqliteConnection::connect_with(&options).await.map_err(error)?;
        let names = Names {
            schema: None,
            ..settings.names.clone()
        };
        let mut store = SqliteStore {
            connection,
            names,
            foreign_keys: Vec::new(),
        };
        if settings.migrate {
            store.migrate(&settings.destinations).await?;
        }
        store.check(&settings.destinations).await?;
        for destination in &settings.destinations {
            let keys = store.read_foreign_keys(destination.rows.name).await?;
            store.foreign_keys.push((destination.rows.name, keys));
        }
        Ok(store)
    }

    fn foreign_keys(&self, of: &'static Destination) -> Vec<ForeignKey> {
        let known = self.foreign_keys.iter().find(|(table, _)| *table == of.rows.name);
        known.map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    async fn position(&mut self, reader: &str, journal: &str) -> Result<Option<u64>, StoreError> {
        let positions = self.names.own("positions");
        let sql = format!("SELECT next_sequence FROM {positions} WHERE journal_id = ? AND reader = ?");
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(journal.to_owned())
            .bind(reader.to_owned());
        let row = query.fetch_optional(&mut self.connection).await.map_err(error)?;
        row.map(|row| row.try_get::<i64, _>(0))
            .transpose()
            .map(|next| next.map(i64::cast_unsigned))
            .map_err(error)
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        // The write lock at once: two writers that both read first could otherwise only fail.
        self.execute("BEGIN IMMEDIATE").await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.execute("COMMIT").await
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.execute("ROLLBACK").await
    }

    async fn savepoint(&mut self) -> Result<(), StoreError> {
        self.execute("SAVEPOINT row").await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.execute("RELEASE row").await
    }

    async fn back_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.execute("ROLLBACK TO row").await?;
        self.execute("RELEASE row").await
    }

    async fn lock(&mut self, _locks: &[i32]) -> Result<(), StoreError> {
        // The transaction has the only write lock there is.
        Ok(())
    }

    async fn load(&mut self, keys: &Keys) -> Result<Vec<Facts>, StoreError> {
        let mut found: Vec<Facts> = Vec::new();
        for traces in keys.traces.chunks(CHUNK) {
            let sql = self.load_sql("trace_id", traces.len());
            let query = traces
                .iter()
                .fold(sqlx::query(AssertSqlSafe(sql)), |query, key| query.bind(key.to_vec()));
            found.extend(self.fetch(query).await?.iter().filter_map(facts_of));
        }
        let by_trace: HashSet<_> = found.iter().map(|facts| facts.id).collect();
        for nodes in keys.nodes.chunks(CHUNK) {
            let sql = self.load_sql("node_hash", nodes.len());
            let query = nodes
                .iter()
                .fold(sqlx::query(AssertSqlSafe(sql)), |query, key| query.bind(*key));
            let rows = self.fetch(query).await?;
            found.extend(
                rows.iter()
                    .filter_map(facts_of)
                    .filter(|facts| !by_trace.contains(&facts.id)),
            );
        }
        found.sort_by_key(|facts| std::cmp::Reverse(facts.received_at));
        found.truncate(LOAD_LIMIT);
        Ok(found)
    }

    async fn missing(&mut self, key: &ForeignKey, values: &[&str]) -> Result<HashSet<String>, StoreError> {
        let mut missing: HashSet<String> = values.iter().map(|value| (*value).to_owned()).collect();
        for values in values.chunks(CHUNK) {
            let (table, column) = (&key.table, &key.referenced);
            let sql = format!(
                "SELECT {column} FROM {table} WHERE {column} IN ({})",
                marks(values.len())
            );
            let query = values
                .iter()
                .fold(sqlx::query(AssertSqlSafe(sql)), |query, v| query.bind((*v).to_owned()));
            for row in self.fetch(query).await? {
                missing.remove(row.try_get::<&str, _>(0).map_err(error)?);
            }
        }
        Ok(missing)
    }

    async fn insert<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<u64, StoreError> {
        let mut inserted = 0;
        for rows in powers_of_two(&in_order(table, rows)) {
            let query = sqlx::query(AssertSqlSafe(self.insert_sql(table, rows.len(), "")));
            let query = bind_rows(query, table, rows);
            inserted += query
                .execute(&mut self.connection)
                .await
                .map_err(error)?
                .rows_affected();
        }
        Ok(inserted)
    }

    async fn insert_new<T: Sync>(
        &mut self,
        table: &'static Table<T>,
        rows: &[&T],
    ) -> Result<HashSet<String>, StoreError> {
        let mut new = HashSet::with_capacity(rows.len());
        for rows in powers_of_two(&in_order(table, rows)) {
            let query = sqlx::query(AssertSqlSafe(self.insert_sql(table, rows.len(), " RETURNING id")));
            for row in self.fetch(bind_rows(query, table, rows)).await? {
                new.insert(row.try_get(0).map_err(error)?);
            }
        }
        Ok(new)
    }

    async fn stored(&mut self, of: &'static Destination, ids: &[&str]) -> Result<HashMap<String, Stored>, StoreError> {
        let mut stored = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let sql = super::stored_sql(&self.names, of, &format!("IN ({})", marks(ids.len())));
            for row in self.fetch(bind_texts(sql, ids)).await? {
                let sources = Sources::from_json(row.try_get(1).map_err(error)?);
                let row_id = row.try_get(2).map_err(error)?;
                stored.insert(row.try_get(0).map_err(error)?, Stored { sources, row_id });
            }
        }
        Ok(stored)
    }

    async fn remove(&mut self, of: &'static Destination, ids: &[&str]) -> Result<(), StoreError> {
        for table in [self.names.of(of.rows.name), self.names.of(of.beside.name)] {
            for ids in ids.chunks(CHUNK) {
                let sql = format!("DELETE FROM {table} WHERE id IN ({})", marks(ids.len()));
                bind_texts(sql, ids)
                    .execute(&mut self.connection)
                    .await
                    .map_err(error)?;
            }
        }
        Ok(())
    }

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} \
             WHERE due_ns <= ? ORDER BY due_ns LIMIT ?",
            self.names.own("context")
        );
        let rows = self
            .fetch(sqlx::query(AssertSqlSafe(sql)).bind(now).bind(limit))
            .await?;
        Ok(rows.iter().filter_map(facts_of).collect())
    }

    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("DELETE FROM", "", facts).await
    }

    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("UPDATE", "SET due_ns = NULL", facts).await
    }

    async fn update(&mut self, of: &'static Destination, updates: &[&Update]) -> Result<(), StoreError> {
        let change = |(index, column): (usize, &Column)| {
            let (name, bit, value) = (column.name(), column.bit(), index + 3);
            format!("{name} = CASE WHEN ?2 & {bit} THEN ?{value} ELSE {name} END")
        };
        let changes: Vec<String> = of.completed.iter().enumerate().map(change).collect();
        let (rows, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        let rows = format!("UPDATE {rows} SET {} WHERE id = ?1", changes.join(", "));
        // Only the table of executions has a cost beside.
        let cost = if of.is_of_executions() {
            ", cost_usd = CASE WHEN ?3 THEN ?4 ELSE cost_usd END"
        } else {
            ""
        };
        let beside = format!("UPDATE {beside} SET sources = ?2{cost} WHERE id = ?1");
        for update in updates {
            let row = &update.row;
            let query = sqlx::query(AssertSqlSafe(rows.clone()))
                .bind(row.id.clone())
                .bind(update.columns);
            let query = of.completed.iter().fold(query, |query, column| match column {
                Column::CodeAgentId => query.bind(row.code_agent_id.clone()),
                Column::Runtime => query.bind(row.runtime.clone()),
                Column::MemoryMb => query.bind(row.memory_mb),
                Column::ExitCode => query.bind(row.exit_code),
                Column::Success => query.bind(row.success),
                Column::ErrorMessage => query.bind(row.error_message.clone()),
                Column::OrganizationId => query.bind(row.organization_id.clone()),
                Column::WorkspaceId => query.bind(row.workspace_id.clone()),
                Column::UserId => query.bind(row.user_id.clone()),
            });
            self.run(query).await?;
            let query = sqlx::query(AssertSqlSafe(beside.clone()))
                .bind(row.id.clone())
                .bind(update.sources().to_json());
            let query = if of.is_of_executions() {
                query
                    .bind(update.columns & Column::Runtime.bit() != 0)
                    .bind(update.cost_usd)
            } else {
                query
            };
            self.run(query).await?;
        }
        Ok(())
    }

    async fn save_position(&mut self, reader: &str, journal: &str, next: u64) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {} (journal_id, reader, next_sequence) VALUES (?, ?, ?) ON CONFLICT (journal_id, reader) \
             DO UPDATE SET next_sequence = excluded.next_sequence, \
             updated_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')",
            self.names.own("positions")
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(journal.to_owned())
            .bind(reader.to_owned())
            .bind(next.cast_signed())
            .execute(&mut self.connection)
            .await
            .map_err(error)?;
        Ok(())
    }

    async fn hurry(&mut self, received_before: i64, now: i64) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE {} SET due_ns = ?2 WHERE received_at_ns < ?1 AND due_ns > ?2",
            self.names.own("context")
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(received_before).bind(now);
        self.run(query).await?;
        Ok(())
    }

    async fn forget_context(&mut self, received_before: i64, keep_due: bool, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        let due = if keep_due { "AND due_ns IS NULL" } else { "" };
        let sql = format!(
            "DELETE FROM {context} WHERE (trace_id, span_id) IN (SELECT trace_id, span_id FROM {context} \
             WHERE received_at_ns < ? {due} ORDER BY received_at_ns LIMIT ?)"
        );
        self.run(sqlx::query(AssertSqlSafe(sql)).bind(received_before).bind(limit))
            .await
    }

    async fn context_size(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let sql = format!(
            "SELECT (SELECT count(*) FROM {context}), \
             (SELECT received_at_ns FROM {context} ORDER BY received_at_ns DESC LIMIT 1 OFFSET ?)"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(max_pending);
        let row = query.fetch_one(&mut self.connection).await.map_err(error)?;
        Ok((row.try_get(0).map_err(error)?, row.try_get(1).map_err(error)?))
    }

    async fn delete_rows(
        &mut self,
        of: &'static Destination,
        created_before: u64,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let (rows, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        let old = format!("SELECT id FROM {beside} WHERE created_at < ? ORDER BY created_at LIMIT ?");
        let before = timestamp(created_before);
        self.begin().await?;
        let sql = format!("DELETE FROM {rows} WHERE id IN ({old})");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before.clone()).bind(limit);
        query.execute(&mut self.connection).await.map_err(error)?;
        let sql = format!("DELETE FROM {beside} WHERE id IN ({old})");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before).bind(limit);
        let deleted = self.run(query).await?;
        self.commit().await?;
        Ok(deleted)
    }

    async fn quarantined(&mut self, limit: i64) -> Result<Vec<Quarantined>, StoreError> {
        let sql = format!(
            "SELECT table_name, id, reason, row_json, facts, trace_id, span_id, start_ns, end_ns, received_at_ns, \
             CAST(round((julianday(quarantined_at) - 2440587.5) * 86400000) AS INTEGER) \
             FROM {} ORDER BY quarantined_at, id LIMIT ?",
            self.names.own("quarantine")
        );
        let rows = self.fetch(sqlx::query(AssertSqlSafe(sql)).bind(limit)).await?;
        let read = |row: &SqliteRow| -> Result<Quarantined, sqlx::Error> {
            let number = |index: usize| row.try_get::<i64, _>(index).map(i64::cast_unsigned);
            Ok(Quarantined {
                table: row.try_get(0)?,
                id: row.try_get(1)?,
                reason: row.try_get(2)?,
                row: row.try_get(3)?,
                facts: row.try_get(4)?,
                span: super::span_id(row.try_get(5)?, row.try_get(6)?),
                start: number(7)?,
                end: number(8)?,
                received_at: number(9)?,
                at: number(10)? * 1_000_000,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }

    async fn delete_quarantined(&mut self, before: u64, limit: i64) -> Result<u64, StoreError> {
        let quarantine = self.names.own("quarantine");
        let sql = format!(
            "DELETE FROM {quarantine} WHERE (table_name, id) IN \
             (SELECT table_name, id FROM {quarantine} WHERE quarantined_at < ? LIMIT ?)"
        );
        self.run(sqlx::query(AssertSqlSafe(sql)).bind(timestamp(before)).bind(limit))
            .await
    }

    async fn release_quarantined(&mut self, rows: &[(&str, &str)]) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM {} WHERE table_name = ? AND id = ?",
            self.names.own("quarantine")
        );
        for (table, id) in rows {
            bind_texts(sql.clone(), &[table, id])
                .execute(&mut self.connection)
                .await
                .map_err(error)?;
        }
        Ok(())
    }
}

impl SqliteStore {
    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        sqlx::query(sql).execute(&mut self.connection).await.map_err(error)?;
        Ok(())
    }

    /// How many rows it touched.
    async fn run(&mut self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<u64, StoreError> {
        let done = query.execute(&mut self.connection).await.map_err(error)?;
        Ok(done.rows_affected())
    }

    async fn fetch(&mut self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(&mut self.connection).await.map_err(error)
    }

    /// Does something with each of these waiting spans.
    async fn each_waiting(&mut self, verb: &str, change: &str, facts: &[Facts]) -> Result<(), StoreError> {
        let sql = format!(
            "{verb} {} {change} WHERE trace_id = ? AND span_id = ?",
            self.names.own("context")
        );
        for facts in facts {
            let query = sqlx::query(AssertSqlSafe(sql.clone()));
            let query = query.bind(facts.id.trace.to_vec()).bind(facts.id.span.to_vec());
            self.run(query).await?;
        }
        Ok(())
    }

    fn load_sql(&self, column: &str, keys: usize) -> String {
        format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} WHERE {column} IN ({}) \
             ORDER BY received_at_ns DESC LIMIT {LOAD_LIMIT}",
            self.names.own("context"),
            marks(keys)
        )
    }

    fn insert_sql<T>(&self, table: &'static Table<T>, rows: usize, returning: &str) -> String {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let row = format!("({})", marks(columns.len()));
        format!(
            "INSERT INTO {} ({}) VALUES {} ON CONFLICT DO NOTHING{returning}",
            self.names.of(table.name),
            columns.join(", "),
            vec![row.as_str(); rows].join(", ")
        )
    }

    async fn migrate(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        self.begin().await?;
        for Migration { table, sql } in migrations(destinations) {
            if self.table_columns(table).await?.is_empty() {
                let sql = fill_in(sql, &self.names, table);
                sqlx::raw_sql(AssertSqlSafe(sql))
                    .execute(&mut self.connection)
                    .await
                    .map_err(error)?;
            }
        }
        self.commit().await
    }

    /// Name, whether NULL is refused, and whether there is a default, of each column; nothing if there is no table.
    async fn table_columns(&mut self, table: TableName) -> Result<Vec<(String, bool, bool)>, StoreError> {
        let name = self.names.bare(table);
        let query =
            sqlx::query("SELECT name, \"notnull\", dflt_value IS NOT NULL FROM pragma_table_info(?)").bind(name);
        let rows = self.fetch(query).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(error)
    }

    async fn check(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        let mut misfits = Vec::new();
        for (table, columns) in super::schema::needed(destinations) {
            let there = self.table_columns(table).await?;
            super::schema::compare_names(&self.names.of(table), &columns, &there, &mut misfits);
        }
        super::schema::verdict(misfits)
    }

    async fn read_foreign_keys(&mut self, of: TableName) -> Result<Vec<ForeignKey>, StoreError> {
        let sql = "SELECT \"from\", \"table\", coalesce(\"to\", (SELECT name FROM pragma_table_info(k.\"table\") \
                   WHERE pk = 1)) FROM pragma_foreign_key_list(?) k";
        let rows = self.fetch(sqlx::query(sql).bind(self.names.bare(of))).await?;
        let read = |row: &SqliteRow| -> Result<ForeignKey, sqlx::Error> {
            Ok(ForeignKey {
                column: row.try_get(0)?,
                table: quote(row.try_get(1)?),
                referenced: quote(row.try_get(2)?),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }
}

fn facts_of(row: &SqliteRow) -> Option<Facts> {
    let times = [row.try_get(2).ok()?, row.try_get(3).ok()?, row.try_get(4).ok()?];
    stored_facts(row.try_get(0).ok()?, row.try_get(1).ok()?, times, row.try_get(5).ok()?)
}

fn bind_texts(sql: String, texts: &[&str]) -> SqliteQuery<'static> {
    texts.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, text| {
        query.bind((*text).to_owned())
    })
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

/// `rows` by the key of the table. Keys are random; in their order, neighbours in an index are written together.
fn in_order<'a, T>(table: &'static Table<T>, rows: &[&'a T]) -> Vec<&'a T> {
    let mut rows = rows.to_vec();
    if let Some(key) = table.columns.first() {
        rows.sort_by_cached_key(|row| match (key.value)(row) {
            Value::Text(Some(text)) => text.into_owned().into_bytes(),
            Value::Bytes(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        });
    }
    rows
}

/// `rows` in pieces of 64, then of ever smaller powers of two.
fn powers_of_two<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = rows.len().checked_ilog2()?;
        let (piece, rest) = rows.split_at((1 << size).min(CHUNK));
        rows = rest;
        Some(piece)
    })
}

type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

fn bind_rows<'q, T>(query: SqliteQuery<'q>, table: &'static Table<T>, rows: &[&T]) -> SqliteQuery<'q> {
    let cells = rows
        .iter()
        .flat_map(|row| table.columns.iter().map(|column| (column.value)(row)));
    cells.fold(query, |query, value| match value {
        Value::Text(text) => query.bind(text.map(std::borrow::Cow::into_owned)),
        Value::Integer(number) => query.bind(number),
        Value::BigInt(number) => query.bind(number),
        Value::Double(number) => query.bind(number),
        Value::Boolean(truth) => query.bind(truth),
        Value::Timestamp(at) => query.bind(timestamp(at)),
        Value::Bytes(bytes) => query.bind(bytes.to_vec()),
        Value::Json(json) => query.bind(json.map(str::to_owned)),
    })
}

/// UTC, to the microsecond, always of one length: as text it sorts as the times do.
fn timestamp(unix_nanos: u64) -> String {
    DateTime::from_timestamp_nanos(nanos(unix_nanos))
        .format("%Y-%m-%d %H:%M:%S%.6f")
        .to_string()
}

fn error(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = &error else {
        return StoreError::Unavailable(error.to_string());
    };
    let code = database
        .code()
        .and_then(|code| code.parse::<u32>().ok())
        .unwrap_or_default();
    let reason = database.message().to_owned();
    // The primary code is the low byte: https://www.sqlite.org/rescode.html
    match code & 0xff {
        1 | 8 | 23 | 26 => StoreError::Misfit(reason),
        18..=20 => StoreError::Refused { reason, column: None },
        _ => StoreError::Unavailable(reason),
    }
}
