//! PostgreSQL, directly or through a pooler in transaction mode.
//!
//! # Invariants
//!
//! * Nothing outlives a transaction on the server: statements are unnamed, settings are `SET LOCAL`, locks are advisory
//!   *transaction* locks. Every statement is inside a transaction, so that a pooler sends all of it to one server process.
//! * Rows go in as one array per column (`unnest`), up to [`CHUNK`] rows in a statement.

mod arrays;
mod hours;
mod tables;
mod waiting;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgDatabaseError, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Postgres, Row as _};

use super::{ForeignKey, Names, New, RowKey, Settings, Store, StoreError};
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{self, Destination, Kind, NewRow, Quarantined, Table, TableName, nanos};

/// Rows in one statement, at most. To prepare a statement, and to wait for it twice, costs as much as thirty rows; all
/// rows of a transaction at once would take several megabytes more.
const CHUNK: usize = 8192;

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

/// How much longer than `database.statement_timeout` an answer is waited for: the server's own time-out comes first, and
/// this one is for a server, or a network, that does not answer at all.
const GRACE: Duration = Duration::from_secs(5);

/// See the module documentation.
pub(in crate::ledger) struct PostgresStore {
    connection: PgConnection,
    names: Names,
    /// Names the locks of this table among those of other tables and other programs.
    lock_class: i32,
    foreign_keys: Vec<(TableName, Vec<ForeignKey>)>,
    /// Begins a transaction in one round trip.
    begin: String,
    /// How long an answer is waited for.
    patience: Duration,
}

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// A statement that leaves nothing behind on the server.
fn query<'q>(sql: String) -> PgQuery<'q> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

fn ids<'r>(rows: &[RowKey<'r>]) -> Vec<&'r str> {
    rows.iter().map(|row| row.id).collect()
}

/// The same with arguments that are there already.
fn query_with<'q>(sql: String, arguments: PgArguments) -> PgQuery<'q> {
    sqlx::query_with(AssertSqlSafe(sql), arguments).persistent(false)
}

impl Store for PostgresStore {
    const HAS_LOCKS: bool = true;
    const DECODED_BYTES: usize = 12 << 20;

    async fn connect(settings: &Settings) -> Result<PostgresStore, StoreError> {
        let options = PgConnectOptions::from_str(&settings.url)
            .map_err(|error| StoreError::Configuration(format!("database.url: {error}")))?;
        // Poolers refuse start-up parameters that they do not know.
        let options = options
            .extra_float_digits(None)
            .application_name("spanledger")
            .statement_cache_capacity(0);
        let patience = settings.statement_timeout + GRACE;
        let connection = within(patience.min(CONNECT_PATIENCE), PgConnection::connect_with(&options)).await?;
        let names = settings.names.clone();
        let lock_class = table::lock_class(&names.rows());
        // Read committed: what was committed before a lock was granted is seen by the next statement.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {0}; \
             SET LOCAL idle_in_transaction_session_timeout = {0}",
            settings.statement_timeout.as_millis()
        );
        let mut store = PostgresStore {
            connection,
            names,
            lock_class,
            foreign_keys: Vec::new(),
            begin,
            patience,
        };
        store.begin().await?;
        if settings.migrate {
            store.migrate(&settings.destinations).await?;
        }
        store.check(&settings.destinations).await?;
        for destination in &settings.destinations {
            let keys = store.read_foreign_keys(destination.rows.name).await?;
            store.foreign_keys.push((destination.rows.name, keys));
        }
        store.commit().await?;
        Ok(store)
    }

    fn foreign_keys(&self, of: &'static Destination) -> Vec<ForeignKey> {
        let known = self.foreign_keys.iter().find(|(table, _)| *table == of.rows.name);
        known.map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    async fn position(&mut self, reader: &str, journal: &str) -> Result<Option<u64>, StoreError> {
        let positions = self.names.own("positions");
        let sql = format!("SELECT next_sequence FROM {positions} WHERE journal_id = $1 AND reader = $2");
        let query = query(sql).bind(journal).bind(reader);
        let row = within(self.patience, query.fetch_optional(&mut self.connection)).await?;
        row.map(|row| row.try_get::<i64, _>(0))
            .transpose()
            .map(|next| next.map(i64::cast_unsigned))
            .map_err(error)
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        within(
            self.patience,
            sqlx::raw_sql(AssertSqlSafe(self.begin.clone())).execute(&mut self.connection),
        )
        .await?;
        Ok(())
    }

    fn give_back_memory(&mut self) {
        // As large as the largest statement.
        self.connection.shrink_buffers();
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.execute("COMMIT").await
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.execute("ROLLBACK").await
    }

    async fn check_at_once(&mut self) -> Result<(), StoreError> {
        self.execute("SET CONSTRAINTS ALL IMMEDIATE").await
    }

    async fn savepoint(&mut self) -> Result<(), StoreError> {
        self.execute("SAVEPOINT row").await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.execute("RELEASE SAVEPOINT row").await
    }

    async fn back_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.execute("ROLLBACK TO SAVEPOINT row; RELEASE SAVEPOINT row").await
    }

    async fn lock(&mut self, locks: &[i32]) -> Result<(), StoreError> {
        // `unnest` gives them in the order of the array, and so they are taken.
        let sql = "SELECT count(pg_advisory_xact_lock($1, lock)) FROM unnest($2::int4[]) AS lock".to_owned();
        self.run(query(sql).bind(self.lock_class).bind(locks)).await?;
        Ok(())
    }

    async fn missing(&mut self, key: &ForeignKey, values: &[&str]) -> Result<HashSet<String>, StoreError> {
        let (table, column) = (&key.table, &key.referenced);
        let sql = format!(
            "SELECT value FROM unnest($1::text[]) AS value \
             WHERE NOT EXISTS (SELECT FROM {table} r WHERE r.{column} = value)"
        );
        let rows = self.fetch(query(sql).bind(values)).await?;
        rows.iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(error)
    }

    async fn insert<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<u64, StoreError> {
        let sql = self.insert_sql(table);
        let mut inserted = 0;
        for rows in rows.chunks(CHUNK) {
            let arguments = arrays::arguments(table, rows)?;
            inserted += self.run(query_with(sql.clone(), arguments)).await?;
        }
        Ok(inserted)
    }

    async fn insert_beside(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let table = &of.beside;
        let length = table.columns.len() + 1;
        let sql = format!(
            "WITH new AS ({} RETURNING id) \
             SELECT CASE WHEN count(*) < ${length} THEN coalesce(array_agg(id), '{{}}') END FROM new",
            self.insert_sql(table)
        );
        // The ids of those that were new, of each statement of which not all rows were.
        let mut listed: Vec<Option<Vec<String>>> = Vec::new();
        for rows in rows.chunks(CHUNK) {
            let query = query_with(sql.clone(), arrays::arguments(table, rows)?).bind(rows.len() as i64);
            let answer = within(self.patience, query.fetch_one(&mut self.connection)).await?;
            listed.push(answer.try_get(0).map_err(error)?);
        }
        if listed.iter().all(Option::is_none) {
            return Ok(New::all(rows.len()));
        }
        let ids = rows
            .chunks(CHUNK)
            .zip(listed)
            .flat_map(|(rows, listed)| listed.unwrap_or_else(|| rows.iter().map(|row| row.row.id.clone()).collect()));
        Ok(New::only(ids.collect()))
    }

    async fn insert_rows(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let new = self.insert_beside(of, rows).await?;
        let rows: Vec<&NewRow> = rows.iter().filter(|row| new.contains(&row.row.id)).copied().collect();
        self.insert(&of.rows, &rows).await?;
        Ok(new)
    }

    async fn stored(
        &mut self,
        of: &'static Destination,
        rows: &[RowKey<'_>],
    ) -> Result<HashMap<String, Stored>, StoreError> {
        let sql = super::stored_sql(&self.names, of, "r.id = e.row_id", "e.id = ANY ($1)");
        let rows = self.fetch(query(sql).bind(ids(rows))).await?;
        let read = |row: &PgRow| {
            let sources = Sources::from_json(row.try_get(1)?);
            Ok((
                row.try_get(0)?,
                Stored {
                    sources,
                    row_id: row.try_get(2)?,
                },
            ))
        };
        rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(error)
    }

    async fn remove(&mut self, of: &'static Destination, rows: &[RowKey<'_>]) -> Result<(), StoreError> {
        let ids = ids(rows);
        for table in [of.rows.name, of.beside.name] {
            let sql = format!("DELETE FROM {} WHERE id = ANY ($1)", self.names.of(table));
            self.run(query(sql).bind(&ids)).await?;
        }
        Ok(())
    }

    async fn update(&mut self, of: &'static Destination, updates: &[&Update]) -> Result<(), StoreError> {
        let names: Vec<_> = of.completed.iter().map(|column| column.name()).collect();
        let change = |column: &Column| {
            let (name, bit) = (column.name(), column.bit());
            format!("{name} = CASE WHEN u.columns & {bit} <> 0 THEN u.{name} ELSE t.{name} END")
        };
        let changes: Vec<String> = of.completed.iter().map(change).collect();
        let array = |(index, column): (usize, &Column)| format!("${}::{}[]", index + 5, completed_type(*column));
        let arrays: Vec<String> = of.completed.iter().enumerate().map(array).collect();
        // Only the table of executions has a cost beside.
        let cost = if of.is_of_executions() {
            let bit = Column::Runtime.bit();
            format!(", cost_usd = CASE WHEN u.columns & {bit} <> 0 THEN u.cost_usd ELSE t.cost_usd END")
        } else {
            String::new()
        };
        let sql = format!(
            "WITH u AS (SELECT * FROM unnest($1::text[], $2::int4[], $3::text[], $4::float8[], {}) \
             AS u (id, columns, sources, cost_usd, {})), \
             beside AS (UPDATE {} t SET sources = u.sources{cost} FROM u WHERE t.id = u.id) \
             UPDATE {} t SET {} FROM u WHERE t.id = u.id",
            arrays.join(", "),
            names.join(", "),
            self.names.of(of.beside.name),
            self.names.of(of.rows.name),
            changes.join(", ")
        );
        for updates in updates.chunks(CHUNK) {
            fn each<'u, T>(updates: &'u [&Update], part: impl Fn(&'u Update) -> T) -> Vec<T> {
                updates.iter().map(|update| part(update)).collect()
            }
            let query = query(sql.clone())
                .bind(each(updates, |update| update.row.id.as_str()))
                .bind(each(updates, |update| update.columns))
                .bind(each(updates, |update| update.sources().to_json()))
                .bind(each(updates, |update| update.cost_usd));
            let query = of.completed.iter().fold(query, |query, column| match column {
                Column::CodeAgentId => query.bind(each(updates, |update| update.row.code_agent_id.as_deref())),
                Column::Runtime => query.bind(each(updates, |update| update.row.runtime.as_str())),
                Column::MemoryMb => query.bind(each(updates, |update| update.row.memory_mb)),
                Column::ExitCode => query.bind(each(updates, |update| update.row.exit_code)),
                Column::Success => query.bind(each(updates, |update| update.row.success)),
                Column::ErrorMessage => query.bind(each(updates, |update| update.row.error_message.as_deref())),
                Column::OrganizationId => query.bind(each(updates, |update| update.row.organization_id.as_deref())),
                Column::WorkspaceId => query.bind(each(updates, |update| update.row.workspace_id.as_deref())),
                Column::UserId => query.bind(each(updates, |update| update.row.user_id.as_deref())),
            });
            self.run(query).await?;
        }
        Ok(())
    }

    async fn save_position(&mut self, reader: &str, journal: &str, next: u64) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {} (journal_id, reader, next_sequence) VALUES ($1, $2, $3) \
             ON CONFLICT (journal_id, reader) DO UPDATE SET next_sequence = excluded.next_sequence, \
             updated_at = now() AT TIME ZONE 'UTC'",
            self.names.own("positions")
        );
        let query = query(sql).bind(journal).bind(reader).bind(next.cast_signed());
        self.run(query).await?;
        Ok(())
    }

    async fn delete_rows(
        &mut self,
        of: &'static Destination,
        created_before: u64,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let (rows, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        let sql = format!(
            "WITH old AS (SELECT id FROM {beside} WHERE created_at < $1 ORDER BY created_at LIMIT $2 \
             FOR UPDATE SKIP LOCKED), \
             gone AS (DELETE FROM {rows} WHERE id IN (SELECT id FROM old)) \
             DELETE FROM {beside} WHERE id IN (SELECT id FROM old)"
        );
        self.begin().await?;
        if of.is_of_executions() {
            let sql = format!("DELETE FROM {} WHERE hour <= $1", self.names.own("hours"));
            let last = super::hour_at(created_before);
            self.run(query(sql).bind(last)).await?;
        }
        let query = query(sql).bind(timestamp(created_before)).bind(limit);
        let deleted = self.run(query).await?;
        self.commit().await?;
        Ok(deleted)
    }

    async fn quarantined(&mut self, limit: i64) -> Result<Vec<Quarantined>, StoreError> {
        let sql = format!(
            "SELECT table_name, id, reason, row_json, facts, trace_id, span_id, start_ns, end_ns, received_at_ns, quarantined_at \
             FROM {} ORDER BY quarantined_at, id LIMIT $1",
            self.names.own("quarantine")
        );
        let rows = self.fetch(query(sql).bind(limit)).await?;
        let read = |row: &PgRow| -> Result<Quarantined, sqlx::Error> {
            let number = |index: usize| row.try_get::<i64, _>(index).map(i64::cast_unsigned);
            let at: NaiveDateTime = row.try_get(10)?;
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
                at: at.and_utc().timestamp_nanos_opt().unwrap_or_default().cast_unsigned(),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }

    async fn delete_quarantined(&mut self, before: u64, limit: i64) -> Result<u64, StoreError> {
        let quarantine = self.names.own("quarantine");
        let sql = format!(
            "DELETE FROM {quarantine} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {quarantine} WHERE quarantined_at < $1 \
             LIMIT $2 FOR UPDATE SKIP LOCKED))"
        );
        self.run(query(sql).bind(timestamp(before)).bind(limit)).await
    }

    async fn release_quarantined(&mut self, rows: &[(&str, &str)]) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM {} WHERE (table_name, id) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
            self.names.own("quarantine")
        );
        let (tables, ids): (Vec<&str>, Vec<&str>) = rows.iter().copied().unzip();
        self.run(query(sql).bind(tables).bind(ids)).await?;
        Ok(())
    }
}

impl PostgresStore {
    /// By the simple protocol: one round trip, also for several statements.
    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        within(self.patience, sqlx::raw_sql(sql).execute(&mut self.connection)).await?;
        Ok(())
    }

    /// How many rows it touched.
    async fn run(&mut self, query: PgQuery<'_>) -> Result<u64, StoreError> {
        let done = within(self.patience, query.execute(&mut self.connection)).await?;
        Ok(done.rows_affected())
    }

    async fn fetch(&mut self, query: PgQuery<'_>) -> Result<Vec<PgRow>, StoreError> {
        within(self.patience, query.fetch_all(&mut self.connection)).await
    }

    fn insert_sql<T>(&self, table: &'static Table<T>) -> String {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let array = |(index, column): (usize, &table::Column<T>)| match column.kind {
            // JSON goes as text.
            Kind::Json => format!("${}::text[]::jsonb[]", index + 1),
            kind => format!("${}::{}[]", index + 1, type_name(kind)),
        };
        let arrays: Vec<_> = table.columns.iter().enumerate().map(array).collect();
        format!(
            "INSERT INTO {} ({}) SELECT * FROM unnest({}) ON CONFLICT DO NOTHING",
            self.names.of(table.name),
            columns.join(", "),
            arrays.join(", ")
        )
    }
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Integer => "integer",
        Kind::BigInt => "bigint",
        Kind::Double => "double precision",
        Kind::Boolean => "boolean",
        Kind::Timestamp => "timestamp",
        Kind::Bytes => "bytea",
        Kind::Json => "jsonb",
    }
}

fn completed_type(column: Column) -> &'static str {
    match column {
        Column::MemoryMb | Column::ExitCode => "int4",
        Column::Success => "bool",
        _ => "text",
    }
}

/// What the server answers within `patience`.
async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(patience, work).await {
        Ok(answer) => answer.map_err(error),
        Err(_) => Err(StoreError::Unavailable(format!(
            "no answer from the server within {patience:?}"
        ))),
    }
}

/// PostgreSQL keeps microseconds.
fn timestamp(unix_nanos: u64) -> NaiveDateTime {
    let micros = nanos(unix_nanos) / 1_000;
    DateTime::from_timestamp_micros(micros).unwrap_or_default().naive_utc()
}

fn error(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = &error else {
        return StoreError::Unavailable(error.to_string());
    };
    let Some(database) = database.try_downcast_ref::<PgDatabaseError>() else {
        return StoreError::Unavailable(error.to_string());
    };
    let code = database.code();
    let reason = match database.detail() {
        Some(detail) => format!("{} ({detail}) [{code}]", database.message()),
        None => format!("{} [{code}]", database.message()),
    };
    // The classes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html
    match code {
        // Foreign key violation.
        "23503" => StoreError::Refused {
            column: refused_column(database),
            reason,
        },
        // Row-level security rejects a row: of the same code as a privilege that is missing, which is no row's fault.
        "42501" if database.routine() == Some("ExecWithCheckOptions") => StoreError::Refused { reason, column: None },
        _ => match code.get(..2).unwrap_or_default() {
            // Syntax error or access rule violation, feature not supported, invalid schema or catalog name.
            "42" | "0A" | "3D" | "3F" => StoreError::Misfit(reason),
            // The connection, the session, the transaction, resources, the operator, the system, what a foreign table is
            // behind: another time it will do.
            "08" | "0B" | "0L" | "0P" | "24" | "25" | "26" | "28" | "2D" | "34" | "3B" | "40" | "53" | "55" | "57"
            | "58" | "72" | "F0" | "HV" | "XX" => StoreError::Unavailable(reason),
            // Data, constraints, views, sizes, and whatever code a trigger chose.
            _ => StoreError::Refused { reason, column: None },
        },
    }
}

/// `Key (workflow_execution_id)=(agent-exec-1) is not present in table ...`; where the detail is kept from this user,
/// the name of the constraint tells: `code_exec_logs_<column>_<table>_id_fk`.
fn refused_column(error: &PgDatabaseError) -> Option<String> {
    let in_detail = error
        .detail()
        .and_then(|detail| detail.strip_prefix("Key (")?.split_once(')'));
    if let Some((column, _)) = in_detail {
        return Some(column.to_owned());
    }
    let constraint = error.constraint()?;
    let columns = [
        "code_agent_id",
        "workflow_execution_id",
        "organization_id",
        "workspace_id",
        "user_id",
    ];
    columns
        .into_iter()
        .find(|column| constraint.contains(*column))
        .map(str::to_owned)
}
