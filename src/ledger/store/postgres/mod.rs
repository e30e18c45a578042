//! PostgreSQL, directly or through a pooler in transaction mode.
//!
//! # Invariants
//!
//! * Nothing outlives a transaction on the server: statements are unnamed, settings are `SET LOCAL`, locks are advisory
//!   *transaction* locks. Every statement is inside a transaction, so that a pooler sends all of it to one server process.
//! * Rows go in as one array per column (`unnest`), up to [`CHUNK`] rows in a statement.

mod tables;

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgDatabaseError, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Postgres, Row as _};

use super::{ForeignKey, Keys, LOAD_LIMIT, Names, Settings, Store, StoreError, stored_facts};
use crate::ledger::facts::Facts;
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{self, Kind, Quarantined, Table, Value, nanos};

/// Rows in one statement, at most. More only makes the wait longer.
const CHUNK: usize = 2048;

/// Begins a transaction in one round trip. The time-outs are a server's last word on a statement that hangs; a batch
/// takes milliseconds. Read committed: what was committed before a lock was granted is seen by the next statement.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '60s'; \
                     SET LOCAL lock_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// See the module documentation.
pub(in crate::ledger) struct PostgresStore {
    connection: PgConnection,
    names: Names,
    /// Names the locks of this table among those of other tables and other programs.
    lock_class: i32,
    foreign_keys: Vec<ForeignKey>,
}

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// A statement that leaves nothing behind on the server.
fn query<'q>(sql: String) -> PgQuery<'q> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

impl Store for PostgresStore {
    const HAS_LOCKS: bool = true;

    async fn connect(settings: &Settings) -> Result<PostgresStore, StoreError> {
        let options = PgConnectOptions::from_str(&settings.url)
            .map_err(|error| StoreError::Configuration(format!("database.url: {error}")))?;
        // Poolers refuse start-up parameters that they do not know.
        let options = options
            .extra_float_digits(None)
            .application_name("spanledger")
            .statement_cache_capacity(0);
        let connection = PgConnection::connect_with(&options).await.map_err(error)?;
        let names = settings.names.clone();
        let lock_class = table::lock_class(&names.rows());
        let mut store = PostgresStore {
            connection,
            names,
            lock_class,
            foreign_keys: Vec::new(),
        };
        store.begin().await?;
        if settings.migrate {
            store.migrate().await?;
        }
        store.check().await?;
        store.foreign_keys = store.read_foreign_keys().await?;
        store.commit().await?;
        Ok(store)
    }

    fn foreign_keys(&self) -> &[ForeignKey] {
        &self.foreign_keys
    }

    async fn position(&mut self, reader: &str, journal: &str) -> Result<Option<u64>, StoreError> {
        let positions = self.names.own("positions");
        let sql = format!("SELECT next_sequence FROM {positions} WHERE journal_id = $1 AND reader = $2");
        let query = query(sql).bind(journal).bind(reader);
        let row = query.fetch_optional(&mut self.connection).await.map_err(error)?;
        row.map(|row| row.try_get::<i64, _>(0))
            .transpose()
            .map(|next| next.map(i64::cast_unsigned))
            .map_err(error)
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        self.execute(BEGIN).await
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
        self.execute("RELEASE SAVEPOINT row").await
    }

    async fn back_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.execute("ROLLBACK TO SAVEPOINT row; RELEASE SAVEPOINT row").await
    }

    async fn lock(&mut self, locks: &[i32]) -> Result<(), StoreError> {
        // `unnest` gives them in the order of the array, and so they are taken.
        let sql = "SELECT count(pg_advisory_xact_lock($1, lock)) FROM unnest($2::int4[]) AS lock".to_owned();
        query(sql)
            .bind(self.lock_class)
            .bind(locks)
            .execute(&mut self.connection)
            .await
            .map_err(error)?;
        Ok(())
    }

    async fn load(&mut self, keys: &Keys) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} \
             WHERE trace_id = ANY ($1) OR node_hash = ANY ($2) ORDER BY received_at_ns DESC LIMIT {LOAD_LIMIT}",
            self.names.own("context")
        );
        let traces: Vec<&[u8]> = keys.traces.iter().map(|trace| trace.as_slice()).collect();
        let rows = self.fetch(query(sql).bind(traces).bind(&keys.nodes)).await?;
        Ok(rows.iter().filter_map(facts_of).collect())
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
        let mut inserted = 0;
        for rows in rows.chunks(CHUNK) {
            let query = bind_rows(query(self.insert_sql(table, "")), table, rows);
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
        for rows in rows.chunks(CHUNK) {
            let query = bind_rows(query(self.insert_sql(table, " RETURNING id")), table, rows);
            for row in self.fetch(query).await? {
                new.insert(row.try_get(0).map_err(error)?);
            }
        }
        Ok(new)
    }

    async fn stored(&mut self, ids: &[&str]) -> Result<HashMap<String, Stored>, StoreError> {
        let rows = self
            .fetch(query(super::stored_sql(&self.names, "= ANY ($1)")).bind(ids))
            .await?;
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

    async fn remove(&mut self, ids: &[&str]) -> Result<(), StoreError> {
        for table in [self.names.rows(), self.names.own("executions")] {
            let sql = format!("DELETE FROM {table} WHERE id = ANY ($1)");
            query(sql)
                .bind(ids)
                .execute(&mut self.connection)
                .await
                .map_err(error)?;
        }
        Ok(())
    }

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} \
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

    async fn update(&mut self, updates: &[&Update]) -> Result<(), StoreError> {
        let changes: Vec<String> = Column::ALL
            .iter()
            .map(|column| {
                let (name, bit) = (column.name(), column.bit());
                format!("{name} = CASE WHEN u.columns & {bit} <> 0 THEN u.{name} ELSE t.{name} END")
            })
            .collect();
        let names: Vec<_> = Column::ALL.iter().map(|column| column.name()).collect();
        let sql = format!(
            "WITH u AS (SELECT * FROM unnest($1::text[], $2::int4[], $3::text[], $4::text[], $5::text[], $6::int4[], \
             $7::int4[], $8::bool[], $9::text[], $10::text[], $11::text[], $12::text[], $13::float8[]) \
             AS u (id, columns, sources, {}, cost_usd)), \
             beside AS (UPDATE {} t SET sources = u.sources, \
             cost_usd = CASE WHEN u.columns & {} <> 0 THEN u.cost_usd ELSE t.cost_usd END FROM u WHERE t.id = u.id) \
             UPDATE {} t SET {} FROM u WHERE t.id = u.id",
            names.join(", "),
            self.names.own("executions"),
            Column::Runtime.bit(),
            self.names.rows(),
            changes.join(", ")
        );
        for updates in updates.chunks(CHUNK) {
            fn each<'u, T>(updates: &'u [&Update], part: impl Fn(&'u Update) -> T) -> Vec<T> {
                updates.iter().map(|update| part(update)).collect()
            }
            query(sql.clone())
                .bind(each(updates, |update| update.row.id.as_str()))
                .bind(each(updates, |update| update.columns))
                .bind(each(updates, |update| update.sources.to_json()))
                .bind(each(updates, |update| update.row.code_agent_id.as_deref()))
                .bind(each(updates, |update| update.row.runtime.as_str()))
                .bind(each(updates, |update| update.row.memory_mb))
                .bind(each(updates, |update| update.row.exit_code))
                .bind(each(updates, |update| update.row.success))
                .bind(each(updates, |update| update.row.error_message.as_deref()))
                .bind(each(updates, |update| update.row.organization_id.as_deref()))
                .bind(each(updates, |update| update.row.workspace_id.as_deref()))
                .bind(each(updates, |update| update.row.user_id.as_deref()))
                .bind(each(updates, |update| update.cost_usd))
                .execute(&mut self.connection)
                .await
                .map_err(error)?;
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
        query.execute(&mut self.connection).await.map_err(error)?;
        Ok(())
    }

    async fn forget_context(&mut self, received_before: i64, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        // SKIP LOCKED: another sidecar may be forgetting the same ones.
        let sql = format!(
            "DELETE FROM {context} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {context} WHERE received_at_ns < $1 \
             LIMIT $2 FOR UPDATE SKIP LOCKED))"
        );
        let query = query(sql).bind(received_before).bind(limit);
        Ok(query
            .execute(&mut self.connection)
            .await
            .map_err(error)?
            .rows_affected())
    }

    async fn context_size(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let count = format!("SELECT count(*) FROM {context}");
        let row = query(count).fetch_one(&mut self.connection).await.map_err(error)?;
        let size: i64 = row.try_get(0).map_err(error)?;
        if size <= max_pending {
            return Ok((size, None));
        }
        let oldest = format!("SELECT received_at_ns FROM {context} ORDER BY received_at_ns DESC OFFSET $1 LIMIT 1");
        let row = query(oldest)
            .bind(max_pending)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(error)?;
        Ok((size, row.map(|row| row.try_get(0)).transpose().map_err(error)?))
    }

    async fn delete_rows(&mut self, created_before: u64, limit: i64) -> Result<u64, StoreError> {
        let (rows, executions) = (self.names.rows(), self.names.own("executions"));
        let sql = format!(
            "WITH old AS (SELECT id FROM {executions} WHERE created_at < $1 ORDER BY created_at LIMIT $2 \
             FOR UPDATE SKIP LOCKED), \
             gone AS (DELETE FROM {rows} WHERE id IN (SELECT id FROM old)) \
             DELETE FROM {executions} WHERE id IN (SELECT id FROM old)"
        );
        self.begin().await?;
        let query = query(sql).bind(timestamp(created_before)).bind(limit);
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
            "SELECT id, reason, row_json, facts, trace_id, span_id, start_ns, end_ns, received_at_ns, quarantined_at \
             FROM {} ORDER BY quarantined_at, id LIMIT $1",
            self.names.own("quarantine")
        );
        let rows = self.fetch(query(sql).bind(limit)).await?;
        let read = |row: &PgRow| -> Result<Quarantined, sqlx::Error> {
            let number = |index: usize| row.try_get::<i64, _>(index).map(i64::cast_unsigned);
            let at: NaiveDateTime = row.try_get(9)?;
            Ok(Quarantined {
                id: row.try_get(0)?,
                reason: row.try_get(1)?,
                row: row.try_get(2)?,
                facts: row.try_get(3)?,
                span: super::span_id(row.try_get(4)?, row.try_get(5)?),
                start: number(6)?,
                end: number(7)?,
                received_at: number(8)?,
                at: at.and_utc().timestamp_nanos_opt().unwrap_or_default().cast_unsigned(),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }

    async fn release_quarantined(&mut self, ids: &[&str]) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM {} WHERE id = ANY ($1)", self.names.own("quarantine"));
        query(sql)
            .bind(ids)
            .execute(&mut self.connection)
            .await
            .map_err(error)?;
        Ok(())
    }
}

impl PostgresStore {
    /// By the simple protocol: one round trip, also for several statements.
    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        sqlx::raw_sql(sql).execute(&mut self.connection).await.map_err(error)?;
        Ok(())
    }

    async fn fetch(&mut self, query: PgQuery<'_>) -> Result<Vec<PgRow>, StoreError> {
        query.fetch_all(&mut self.connection).await.map_err(error)
    }

    /// Does something with each of these waiting spans.
    async fn each_waiting(&mut self, verb: &str, change: &str, facts: &[Facts]) -> Result<(), StoreError> {
        let sql = format!(
            "{verb} {} {change} WHERE (trace_id, span_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))",
            self.names.own("context")
        );
        let traces: Vec<&[u8]> = facts.iter().map(|facts| facts.id.trace.as_slice()).collect();
        let spans: Vec<&[u8]> = facts.iter().map(|facts| facts.id.span.as_slice()).collect();
        query(sql)
            .bind(traces)
            .bind(spans)
            .execute(&mut self.connection)
            .await
            .map_err(error)?;
        Ok(())
    }

    fn insert_sql<T>(&self, table: &'static Table<T>, returning: &str) -> String {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let array =
            |(index, column): (usize, &table::Column<T>)| format!("${}::{}[]", index + 1, type_name(column.kind));
        let arrays: Vec<_> = table.columns.iter().enumerate().map(array).collect();
        format!(
            "INSERT INTO {} ({}) SELECT * FROM unnest({}) ON CONFLICT DO NOTHING{returning}",
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
    }
}

fn facts_of(row: &PgRow) -> Option<Facts> {
    let times = [row.try_get(2).ok()?, row.try_get(3).ok()?, row.try_get(4).ok()?];
    stored_facts(row.try_get(0).ok()?, row.try_get(1).ok()?, times, row.try_get(5).ok()?)
}

fn bind_rows<'q, T>(mut query: PgQuery<'q>, table: &'static Table<T>, rows: &[&T]) -> PgQuery<'q> {
    for column in table.columns {
        let cells = rows.iter().map(|row| (column.value)(row));
        // A column yields values of its own kind only; anything else would be NULL.
        macro_rules! array {
            ($kind:ident) => {
                query.bind(
                    cells
                        .map(|cell| {
                            if let Value::$kind(value) = cell {
                                value
                            } else {
                                None
                            }
                        })
                        .collect::<Vec<_>>(),
                )
            };
        }
        query = match column.kind {
            Kind::Text => array!(Text),
            Kind::Integer => array!(Integer),
            Kind::BigInt => array!(BigInt),
            Kind::Double => array!(Double),
            Kind::Boolean => array!(Boolean),
            Kind::Timestamp => {
                let time = |cell| {
                    if let Value::Timestamp(at) = cell {
                        Some(timestamp(at))
                    } else {
                        None
                    }
                };
                query.bind(cells.map(time).collect::<Vec<_>>())
            }
            Kind::Bytes => {
                let bytes = |cell| {
                    if let Value::Bytes(bytes) = cell {
                        Some(bytes)
                    } else {
                        None
                    }
                };
                query.bind(cells.map(bytes).collect::<Vec<_>>())
            }
        };
    }
    query
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
    match code {
        // Foreign key violation.
        "23503" => StoreError::Refused {
            column: refused_column(database),
            reason,
        },
        // What a row cannot be, by its data (22), by a constraint (23), by a trigger (P0001), by its size (54).
        _ if code.starts_with("22") || code.starts_with("23") || code.starts_with("54") || code == "P0001" => {
            StoreError::Refused { reason, column: None }
        }
        // Syntax error or access rule violation, invalid schema or catalog name.
        _ if code.starts_with("42") || code == "3F000" || code == "3D000" => StoreError::Misfit(reason),
        _ => StoreError::Unavailable(reason),
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
