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

use super::{ForeignKey, Keys, LOAD_LIMIT, Names, Settings, Store, StoreError, fill_in, quote, stored_facts};
use crate::ledger::facts::Facts;
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{Quarantined, Table, TableName, Value, nanos};

/// Rows in one statement, at most. More brought nothing when measured.
const CHUNK: usize = 64;

/// How long to wait for another process that writes to the file.
const BUSY: Duration = Duration::from_secs(5);

const MIGRATIONS: [(&str, &str); 2] = [
    ("0001_rows", include_str!("../../../migrations/sqlite/0001_rows.sql")),
    ("0002_own", include_str!("../../../migrations/sqlite/0002_own.sql")),
];

/// See the module documentation.
pub(in crate::ledger) struct SqliteStore {
    connection: SqliteConnection,
    names: Names,
    foreign_keys: Vec<ForeignKey>,
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
            .busy_timeout(BUSY);
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
            store.migrate().await?;
        }
        store.check().await?;
        store.foreign_keys = store.read_foreign_keys().await?;
        Ok(store)
    }

    fn foreign_keys(&self) -> &[ForeignKey] {
        &self.foreign_keys
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
        for rows in powers_of_two(rows) {
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
        for rows in powers_of_two(rows) {
            let query = sqlx::query(AssertSqlSafe(self.insert_sql(table, rows.len(), " RETURNING id")));
            for row in self.fetch(bind_rows(query, table, rows)).await? {
                new.insert(row.try_get(0).map_err(error)?);
            }
        }
        Ok(new)
    }

    async fn stored(&mut self, ids: &[&str]) -> Result<HashMap<String, Stored>, StoreError> {
        let mut stored = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let sql = super::stored_sql(&self.names, &format!("IN ({})", marks(ids.len())));
            for row in self.fetch(bind_texts(sql, ids)).await? {
                let sources = Sources::from_json(row.try_get(1).map_err(error)?);
                let row_id = row.try_get(2).map_err(error)?;
                stored.insert(row.try_get(0).map_err(error)?, Stored { sources, row_id });
            }
        }
        Ok(stored)
    }

    async fn remove(&mut self, ids: &[&str]) -> Result<(), StoreError> {
        for table in [self.names.rows(), self.names.own("executions")] {
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

    async fn update(&mut self, updates: &[&Update]) -> Result<(), StoreError> {
        let changes: Vec<String> = Column::ALL
            .iter()
            .map(|column| {
                let (name, bit, value) = (column.name(), column.bit(), *column as usize + 2);
                format!("{name} = CASE WHEN ?1 & {bit} THEN ?{value} ELSE {name} END")
            })
            .collect();
        let rows = format!("UPDATE {} SET {} WHERE id = ?11", self.names.rows(), changes.join(", "));
        let beside = format!(
            "UPDATE {} SET sources = ?, cost_usd = CASE WHEN ? THEN ? ELSE cost_usd END WHERE id = ?",
            self.names.own("executions")
        );
        for update in updates {
            let row = &update.row;
            sqlx::query(AssertSqlSafe(rows.clone()))
                .bind(update.columns)
                .bind(row.code_agent_id.clone())
                .bind(row.runtime.clone())
                .bind(row.memory_mb)
                .bind(row.exit_code)
                .bind(row.success)
                .bind(row.error_message.clone())
                .bind(row.organization_id.clone())
                .bind(row.workspace_id.clone())
                .bind(row.user_id.clone())
                .bind(row.id.clone())
                .execute(&mut self.connection)
                .await
                .map_err(error)?;
            sqlx::query(AssertSqlSafe(beside.clone()))
                .bind(update.sources.to_json())
                .bind(update.columns & Column::Runtime.bit() != 0)
                .bind(update.cost_usd)
                .bind(row.id.clone())
                .execute(&mut self.connection)
                .await
                .map_err(error)?;
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

    async fn forget_context(&mut self, received_before: i64, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        let sql = format!(
            "DELETE FROM {context} WHERE (trace_id, span_id) IN \
             (SELECT trace_id, span_id FROM {context} WHERE received_at_ns < ? ORDER BY received_at_ns LIMIT ?)"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(received_before).bind(limit);
        Ok(query
            .execute(&mut self.connection)
            .await
            .map_err(error)?
            .rows_affected())
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

    async fn delete_rows(&mut self, created_before: u64, limit: i64) -> Result<u64, StoreError> {
        let (rows, executions) = (self.names.rows(), self.names.own("executions"));
        let old = format!("SELECT id FROM {executions} WHERE created_at < ? ORDER BY created_at LIMIT ?");
        let before = timestamp(created_before);
        self.begin().await?;
        let sql = format!("DELETE FROM {rows} WHERE id IN ({old})");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before.clone()).bind(limit);
        query.execute(&mut self.connection).await.map_err(error)?;
        let sql = format!("DELETE FROM {executions} WHERE id IN ({old})");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before).bind(limit);
        let deleted = query
            .execute(&mut self.connection)
            .await
            .map_err(error)?
            .rows_affected();
        self.commit().await?;
        Ok(deleted)
    }

    async fn quarantined(&mut self, limit: i64) -> Result<Vec<Quarantined>, StoreError> {
        let sql = format!(
            "SELECT id, reason, row_json, facts, trace_id, span_id, start_ns, end_ns, received_at_ns, \
             CAST(round((julianday(quarantined_at) - 2440587.5) * 86400000) AS INTEGER) \
             FROM {} ORDER BY quarantined_at, id LIMIT ?",
            self.names.own("quarantine")
        );
        let rows = self.fetch(sqlx::query(AssertSqlSafe(sql)).bind(limit)).await?;
        let read = |row: &SqliteRow| -> Result<Quarantined, sqlx::Error> {
            let number = |index: usize| row.try_get::<i64, _>(index).map(i64::cast_unsigned);
            Ok(Quarantined {
                id: row.try_get(0)?,
                reason: row.try_get(1)?,
                row: row.try_get(2)?,
                facts: row.try_get(3)?,
                span: super::span_id(row.try_get(4)?, row.try_get(5)?),
                start: number(6)?,
                end: number(7)?,
                received_at: number(8)?,
                at: number(9)? * 1_000_000,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }

    async fn release_quarantined(&mut self, ids: &[&str]) -> Result<(), StoreError> {
        for ids in ids.chunks(CHUNK) {
            let sql = format!(
                "DELETE FROM {} WHERE id IN ({})",
                self.names.own("quarantine"),
                marks(ids.len())
            );
            let query = ids.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, id| {
                query.bind((*id).to_owned())
            });
            query.execute(&mut self.connection).await.map_err(error)?;
        }
        Ok(())
    }
}

impl SqliteStore {
    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        sqlx::query(sql).execute(&mut self.connection).await.map_err(error)?;
        Ok(())
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
            query.execute(&mut self.connection).await.map_err(error)?;
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

    async fn migrate(&mut self) -> Result<(), StoreError> {
        self.begin().await?;
        for (name, sql) in MIGRATIONS {
            let creates = if name == "0001_rows" {
                TableName::Rows
            } else {
                TableName::Own("positions")
            };
            if self.table_columns(creates).await?.is_empty() {
                let sql = fill_in(sql, &self.names);
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
        let name = match table {
            TableName::Rows => self.names.table.clone(),
            TableName::Own(name) => format!("spanledger_{name}"),
        };
        let query =
            sqlx::query("SELECT name, \"notnull\", dflt_value IS NOT NULL FROM pragma_table_info(?)").bind(name);
        let rows = self.fetch(query).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(error)
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        let mut misfits = Vec::new();
        for (table, columns) in super::schema::needed() {
            let there = self.table_columns(table).await?;
            super::schema::compare_names(&self.names.of(table), &columns, &there, &mut misfits);
        }
        super::schema::verdict(misfits)
    }

    async fn read_foreign_keys(&mut self) -> Result<Vec<ForeignKey>, StoreError> {
        let sql = "SELECT \"from\", \"table\", coalesce(\"to\", (SELECT name FROM pragma_table_info(k.\"table\") \
                   WHERE pk = 1)) FROM pragma_foreign_key_list(?) k";
        let rows = self.fetch(sqlx::query(sql).bind(self.names.table.clone())).await?;
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
