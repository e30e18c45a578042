//! Where rows are kept: what a database has to be able to do, and the names and errors both databases share.
//!
//! # Invariants
//!
//! * A store is one connection. Everything of a batch, the reader's position included, is one transaction.
//! * After an error of the connection it is given up: nothing is assumed of a session that failed. After any other the
//!   transaction is given up.
//! * Every answer is waited for in bounded time: a machine that has vanished does not even refuse. What a batch takes in
//!   all is bounded by nothing, so that a slow database is slow and not cut off again and again.
//! * No session state: with PostgreSQL everything holds for one transaction only, so that a pooler between the two may
//!   hand each transaction to another server process.

mod hours;
pub(super) mod postgres;
pub(super) mod schema;
pub(super) mod sqlite;
mod waiting;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::facts::SpanId;
use super::plan::{Stored, Update};
use super::row::Row;
use super::table::{Destination, NewRow, Quarantined, Table, TableName};
pub(super) use hours::{HourRow, Hours, begin_of, hour_at};
pub(super) use waiting::{Keys, Room, Waiting};
#[cfg(test)]
pub(super) use waiting::{LOAD_BYTES, LOAD_LIMIT};

/// Why the database did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing is wrong with what was asked: another time, or on another connection, it will do.
    #[error("the database is not available (database.url): {0}")]
    Unavailable(String),
    /// What was to be written is what it refuses.
    #[error("the database refused a row: {reason}")]
    Refused {
        /// What it said.
        reason: String,
        /// The column whose foreign key refused, where it is known.
        column: Option<String>,
    },
    /// The tables are not what is needed, or may not be used.
    #[error("the database does not fit (database.table, database.schema, database.migrate): {0}")]
    Misfit(String),
    /// What is stored is not what belongs there: somebody else wrote it.
    #[error("the database holds what cannot be read: {0}")]
    Unreadable(String),
    /// The configuration cannot be used.
    #[error("{0}")]
    Configuration(String),
}

impl StoreError {
    /// Whether doing the same again can succeed without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }

    /// What a row was refused for, and the column whose foreign key it was; the error itself if it is no refusal.
    pub(super) fn refusal(self) -> Result<(String, Option<String>), StoreError> {
        match self {
            StoreError::Refused { reason, column } => Ok((reason, column)),
            error => Err(error),
        }
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_of_connection(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }
}

/// A foreign key of the rows' table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub(super) column: String,
    /// Quoted, with its schema.
    pub(super) table: String,
    /// Quoted.
    pub(super) referenced: String,
}

/// A connection to a database. All but [`Store::connect`] work on it, those with "in a transaction" only between
/// [`Store::begin`] and [`Store::commit`] or [`Store::rollback`].
#[allow(async_fn_in_trait, reason = "used within this room, with two implementations")]
pub(super) trait Store: Sized + Hours + Waiting {
    /// Whether [`Store::lock`] does anything.
    const HAS_LOCKS: bool;
    /// Bytes of decoded requests in a transaction. A larger one writes each page of an index for more rows, and takes more
    /// memory.
    const DECODED_BYTES: usize;
    /// The same of each batch of a transaction of many ([`Store::defer`]). `None` where each batch has its own.
    const DEFERRING_BYTES: Option<usize> = None;
    /// Connects, makes the tables if `migrate` is set, and checks that they fit.
    async fn connect(settings: &Settings) -> Result<Self, StoreError>;
    /// The foreign keys that can be asked before a row is written there.
    fn foreign_keys(&self, of: &'static Destination) -> Vec<ForeignKey>;
    /// The saved position, in or outside of a transaction.
    async fn position(&mut self, reader: &str, journal: &str) -> Result<Option<u64>, StoreError>;
    /// Gives back memory that only large batches need.
    fn give_back_memory(&mut self) {}
    /// Begins a transaction that sees what others committed before it took its locks.
    async fn begin(&mut self) -> Result<(), StoreError>;
    /// Until this transaction ends, rows that are inserted or updated may be kept, and written together: then
    /// [`Store::insert_rows`] takes each row for new that has nothing beside it, and where that was wrong whatever is asked
    /// next may be refused, up to [`Store::commit`].
    fn defer(&mut self) {}
    /// Writes what is kept.
    async fn write_deferred(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    /// Whether such a transaction has as much as memory may hold.
    fn is_full(&self) -> bool {
        true
    }
    /// Makes it lasting, with what is kept. After an error, unless it is a refusal, nobody knows whether it is.
    async fn commit(&mut self) -> Result<(), StoreError>;
    /// Forgets the transaction, if there is one.
    async fn rollback(&mut self) -> Result<(), StoreError>;
    /// From here on to the end of the transaction what is only checked at its end is checked at once, where that is possible.
    async fn check_at_once(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    /// A point to return to, in a transaction.
    async fn savepoint(&mut self) -> Result<(), StoreError>;
    /// Forgets the point, keeping what was done since.
    async fn release(&mut self) -> Result<(), StoreError>;
    /// Returns to the point.
    async fn back_to_savepoint(&mut self) -> Result<(), StoreError>;
    /// Takes locks until the end of the transaction, in this order.
    async fn lock(&mut self, locks: &[i32]) -> Result<(), StoreError>;
    /// Which of the values do not exist where the foreign key points to.
    async fn missing(&mut self, key: &ForeignKey, values: &[&str]) -> Result<HashSet<String>, StoreError>;
    /// Inserts; what is there already stays. The number that was not there.
    async fn insert<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<u64, StoreError>;
    /// As [`Store::insert`] into the table beside the rows alone; which were not there.
    async fn insert_beside(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError>;
    /// Inserts rows with what is beside them, but for those of which something is beside them already; which were not
    /// there.
    async fn insert_rows(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError>;
    /// What is stored beside these rows; of executions, by the execution's id.
    async fn stored(
        &mut self,
        of: &'static Destination,
        rows: &[RowKey<'_>],
    ) -> Result<HashMap<String, Stored>, StoreError>;
    /// Deletes these rows, with what is beside them.
    async fn remove(&mut self, of: &'static Destination, rows: &[RowKey<'_>]) -> Result<(), StoreError>;
    /// Changes the columns of each update, and the sources beside it.
    async fn update(&mut self, of: &'static Destination, updates: &[&Update]) -> Result<(), StoreError>;
    /// Saves the position of the reader.
    async fn save_position(&mut self, reader: &str, journal: &str, next: u64) -> Result<(), StoreError>;
    /// Deletes rows of this program created before, with what is beside them; how many.
    async fn delete_rows(
        &mut self,
        of: &'static Destination,
        created_before: u64,
        limit: i64,
    ) -> Result<u64, StoreError>;
    /// The rows in quarantine, oldest first.
    async fn quarantined(&mut self, limit: i64) -> Result<Vec<Quarantined>, StoreError>;
    /// Deletes rows set aside before; how many.
    async fn delete_quarantined(&mut self, before: u64, limit: i64) -> Result<u64, StoreError>;
    /// Takes rows, by table and id, out of quarantine.
    async fn release_quarantined(&mut self, rows: &[(&str, &str)]) -> Result<(), StoreError>;
}

/// Names a row. The id does; but where to look for what is beside it, SQLite knows by the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKey<'a> {
    pub(super) id: &'a str,
    /// Unix nanoseconds.
    pub(super) created_at: u64,
}

impl<'r> From<&'r Row> for RowKey<'r> {
    fn from(row: &'r Row) -> RowKey<'r> {
        RowKey {
            id: &row.id,
            created_at: row.created_at,
        }
    }
}

/// The keys of rows by their ids and times.
pub(super) fn row_keys(rows: &[(String, u64)]) -> Vec<RowKey<'_>> {
    let rows = rows.iter();
    rows.map(|(id, created_at)| RowKey {
        id,
        created_at: *created_at,
    })
    .collect()
}

/// Which of the rows of an insert were not there before.
#[derive(Debug)]
pub(super) struct New {
    /// How many.
    pub(super) count: usize,
    /// Their ids; nothing if it was all of them, as it nearly always is.
    ids: Option<HashSet<String>>,
}

impl New {
    /// All of so many rows.
    pub(super) fn all(count: usize) -> New {
        New { count, ids: None }
    }

    /// Those with these ids.
    pub(super) fn only(ids: HashSet<String>) -> New {
        New {
            count: ids.len(),
            ids: Some(ids),
        }
    }

    /// Of an insert of rows with these ids: the same with the ids, so that it can also be asked about others.
    pub(super) fn listed<'i>(self, ids: impl Iterator<Item = &'i String>) -> New {
        match self.ids {
            Some(_) => self,
            None => New::only(ids.cloned().collect()),
        }
    }

    /// Whether the row of the insert with this id is new.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(id))
    }
}

/// What a store needs of the configuration.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) names: Names,
    pub(super) migrate: bool,
    /// How long PostgreSQL may work on one statement.
    pub(super) statement_timeout: Duration,
    /// The tables that are written.
    pub(super) destinations: Vec<&'static Destination>,
}

/// The names of the tables, quoted.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) schema: Option<String>,
    pub(super) table: String,
}

impl Names {
    pub(super) fn of(&self, table: TableName) -> String {
        match table {
            TableName::Rows => self.rows(),
            TableName::Further(name) => self.in_schema(name),
            TableName::Own(name) => self.own(name),
        }
    }

    pub(super) fn rows(&self) -> String {
        self.in_schema(&self.table)
    }

    pub(super) fn own(&self, name: &str) -> String {
        self.in_schema(&format!("spanledger_{name}"))
    }

    /// The name alone, unquoted.
    pub(super) fn bare(&self, table: TableName) -> String {
        match table {
            TableName::Rows => self.table.clone(),
            TableName::Further(name) => name.to_owned(),
            TableName::Own(name) => format!("spanledger_{name}"),
        }
    }

    fn in_schema(&self, table: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(table)),
            None => quote(table),
        }
    }
}

/// An identifier as SQL takes it whatever is in it.
pub(super) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The placeholders of the migrations, filled in: `{table}` and `{index:COLUMN}` are of `table`.
pub(super) fn fill_in(sql: &str, names: &Names, table: TableName) -> String {
    let mut filled = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((placeholder, after)) = after.split_once('}') else {
            break;
        };
        filled.push_str(before);
        let name = match placeholder.split(':').collect::<Vec<_>>()[..] {
            ["table"] => names.of(table),
            ["own", table] => names.own(table),
            // An index is named after its table and lives beside it: its name has no schema.
            ["index", column] => quote(&format!("{}_{column}_idx", names.bare(table))),
            ["index", "own", table, column] => quote(&format!("spanledger_{table}_{column}_idx")),
            _ => format!("{{{placeholder}}}"),
        };
        filled.push_str(&name);
        rest = after;
    }
    filled + rest
}

/// The statements that make a table of `migrations/DATABASE`.
pub(super) struct Migration {
    /// Made only where this is missing.
    pub(super) table: TableName,
    pub(super) sql: &'static str,
}

/// The migrations of the wanted tables, from the directory of a database.
macro_rules! migrations {
    ($directory:literal) => {
        fn migrations(
            destinations: &[&'static crate::ledger::table::Destination],
        ) -> Vec<crate::ledger::store::Migration> {
            use crate::ledger::store::Migration;
            use crate::ledger::table::TableName;
            let mut wanted = vec![
                Migration {
                    table: TableName::Rows,
                    sql: include_str!(concat!($directory, "/0001_rows.sql")),
                },
                Migration {
                    table: TableName::Own("positions"),
                    sql: include_str!(concat!($directory, "/0002_own.sql")),
                },
                Migration {
                    table: TableName::Own("hours"),
                    sql: include_str!(concat!($directory, "/0007_hours.sql")),
                },
                Migration {
                    table: TableName::Own("executions"),
                    sql: include_str!(concat!($directory, "/0008_executions.sql")),
                },
                Migration {
                    table: TableName::Own("context"),
                    sql: include_str!(concat!($directory, "/0009_context.sql")),
                },
            ];
            for destination in destinations {
                let sql = match destination.name {
                    "model_cost_logs" => include_str!(concat!($directory, "/0003_model_cost_logs.sql")),
                    "agent_trace_history" => include_str!(concat!($directory, "/0004_agent_trace_history.sql")),
                    "event_logs" => include_str!(concat!($directory, "/0005_event_logs.sql")),
                    _ => continue,
                };
                wanted.extend([
                    Migration {
                        table: destination.rows.name,
                        sql,
                    },
                    Migration {
                        table: destination.beside.name,
                        sql: include_str!(concat!($directory, "/0006_beside.sql")),
                    },
                ]);
            }
            wanted
        }
    };
}
pub(super) use migrations;

/// From what the quarantine stored.
pub(super) fn span_id(trace: &[u8], span: &[u8]) -> SpanId {
    SpanId {
        trace: trace.try_into().unwrap_or_default(),
        span: span.try_into().unwrap_or_default(),
    }
}

/// What is stored beside the rows for which `is` holds of `e`. Of an execution that took over a row, what is beside that
/// row counts, which `joins` it as `r`.
pub(super) fn stored_sql(names: &Names, of: &'static Destination, joins: &str, is: &str) -> String {
    let beside = names.of(of.beside.name);
    if of.is_of_executions() {
        format!(
            "SELECT e.id, coalesce(r.sources, e.sources), e.row_id FROM {beside} e LEFT JOIN {beside} r ON {joins} \
             WHERE {is}"
        )
    } else {
        format!("SELECT e.id, e.sources, NULL FROM {beside} e WHERE {is}")
    }
}
