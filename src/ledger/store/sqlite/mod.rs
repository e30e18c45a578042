//! SQLite: one file, one connection that writes, on a thread of its own ([`session`]).
//!
//! A prepared statement runs once for each row. WAL, so that the query API reads while this writes; `synchronous=FULL`, so
//! that what the journal gives up is on disk here.

mod block;
mod deferred;
mod hours;
mod index;
mod session;
mod tables;
mod values;
mod waiting;

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, Row};

use self::deferred::Deferred;
use self::index::WaitingIndex;
use self::session::{Place, Session};
use self::values::{Values, timestamp};
use super::{ForeignKey, Names, New, RowKey, Settings, Store, StoreError, fill_in};
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{CONTEXT, Destination, NewRow, Quarantined, Table, TableName};

/// Waiting for another process that writes to the file: 5 s.
///
/// A transaction touches pages all over the indexes, because ids are random. What does not fit into the cache (16 MiB) is
/// written and read again and again before it is committed. A page that many transactions change is copied back once for
/// all of them (4,096 pages, 32 MiB). Where one transaction needed more than 128 MiB of log, the file is cut to that. To read or write a page costs more than to copy it: hence pages of 8 KiB, in files
/// that are made here.
const SET_UP: &str = "PRAGMA page_size = 8192; PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
                      PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -16384; \
                      PRAGMA wal_autocheckpoint = 4096; PRAGMA journal_size_limit = 134217728; \
                      PRAGMA temp_store = MEMORY";

/// Rows whose values are in memory at a time.
const CHUNK: usize = 1024;

/// Bytes of memory for each span that may wait: two keys of three eighths more spans, in a table of which a third is empty, and
/// that may grow.
pub(in crate::ledger) const BYTES_OF_WAITING: usize = 84;

/// As `migrations/sqlite/0008_executions.sql` has it in an index.
const TOLD_APART_BY_ID: &str = "end_ns = start_ns OR end_ns < 946684800000000000 \
                                OR end_ns > received_at_ns + 86400000000000 OR row_id IS NOT NULL";

/// See the module documentation.
pub(in crate::ledger) struct SqliteStore {
    session: Session,
    names: Names,
    foreign_keys: Vec<(TableName, Vec<ForeignKey>)>,
    waiting: WaitingIndex,
    /// Whether more spans waited than were loaded in this transaction.
    is_load_cut: bool,
    /// What this transaction keeps until its end, if it does.
    deferred: Option<Deferred>,
    /// Memory for the values of [`CHUNK`] rows.
    spare: Values,
}

impl Store for SqliteStore {
    const HAS_LOCKS: bool = false;
    const DECODED_BYTES: usize = 20 << 20;
    const DEFERRING_BYTES: Option<usize> = Some(5 << 20);

    async fn connect(settings: &Settings) -> Result<SqliteStore, StoreError> {
        let (place, options) = Place::of(&settings.url, settings.migrate)?;
        if settings.migrate
            && let Some(directory) = options.get_filename().parent()
        {
            // The directory of a fresh database; if it cannot be made, opening the file says why.
            drop(std::fs::create_dir_all(directory));
        }
        let names = Names {
            schema: None,
            ..settings.names.clone()
        };
        let mut store = SqliteStore {
            session: Session::open(place, SET_UP.to_owned()).await?,
            names,
            foreign_keys: Vec::new(),
            waiting: WaitingIndex::default(),
            is_load_cut: false,
            deferred: None,
            spare: Values::default(),
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
        let found = self.fetch(sql, texts(&[journal, reader]), |row| row.get(0)).await?;
        Ok(found.first().copied().map(i64::cast_unsigned))
    }

    fn give_back_memory(&mut self) {
        self.spare = Values::default();
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        // The write lock at once: two writers that both read first could otherwise only fail.
        self.execute("BEGIN IMMEDIATE").await?;
        self.hear_of_waiting().await
    }

    fn defer(&mut self) {
        self.deferred = Some(Deferred::default());
    }

    fn is_full(&self) -> bool {
        self.deferred.as_ref().is_none_or(Deferred::is_full)
    }

    async fn write_deferred(&mut self) -> Result<(), StoreError> {
        self.write_kept().await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.write_kept().await?;
        self.deferred = None;
        self.execute("COMMIT").await
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.deferred = None;
        self.waiting.rolled_back();
        let rollback = |connection: &mut Connection| {
            if connection.is_autocommit() {
                return Ok(());
            }
            connection.execute_batch("ROLLBACK")
        };
        self.session.run(rollback).await
    }

    async fn savepoint(&mut self) -> Result<(), StoreError> {
        debug_assert!(self.deferred.is_none(), "what is kept would not return to it");
        self.execute("SAVEPOINT row").await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.execute("RELEASE row").await
    }

    async fn back_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.waiting.rolled_back();
        self.execute("ROLLBACK TO row; RELEASE row").await
    }

    async fn lock(&mut self, _locks: &[i32]) -> Result<(), StoreError> {
        // The transaction has the only write lock there is.
        Ok(())
    }

    async fn missing(&mut self, key: &ForeignKey, values: &[&str]) -> Result<HashSet<String>, StoreError> {
        self.write_if_kept_for(&key.table).await?;
        let (table, column) = (&key.table, &key.referenced);
        let sql = format!("SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1)");
        let missing = self.fetch(sql, texts(values), |row| row.get(0)).await?;
        Ok(missing.into_iter().collect())
    }

    async fn insert<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<u64, StoreError> {
        let inserted = self.insert_each(table, rows).await?;
        Ok(inserted.into_iter().sum::<usize>() as u64)
    }

    async fn insert_beside(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let inserted = self.insert_beside_each(of, rows).await?;
        Ok(new_of(rows.len(), &inserted))
    }

    async fn insert_rows(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let mut new = self.insert_beside_each(of, rows).await?;
        // One that took over another is looked for by what it says.
        if self.deferred.is_some() && new.iter().all(|row| row.alias_of.is_none()) {
            self.defer_rows(of, &new).await?;
            return Ok(new_of(rows.len(), &new));
        }
        // Ids are random; in their order, neighbours in the index are written together.
        new.sort_unstable_by(|a, b| a.row.id.cmp(&b.row.id));
        let inserted = self.insert_each(&of.rows, &new).await?;
        let is_inserted = |row: &(&NewRow, usize)| row.1 > 0;
        let (inserted, there): (Vec<_>, Vec<_>) = new.into_iter().zip(inserted).partition(is_inserted);
        // A row with this id and another time is there: it stays the only one, and has something beside it already.
        let sql = format!(
            "DELETE FROM {} WHERE created_at = ? AND id = ?",
            self.names.of(of.beside.name)
        );
        self.run(sql, keys(there.iter().map(|(row, _)| RowKey::from(&row.row))))
            .await?;
        let inserted: Vec<&NewRow> = inserted.into_iter().map(|(row, _)| row).collect();
        Ok(new_of(rows.len(), &inserted))
    }

    async fn stored(
        &mut self,
        of: &'static Destination,
        rows: &[RowKey<'_>],
    ) -> Result<HashMap<String, Stored>, StoreError> {
        let same = "r.created_at = e.created_at AND r.id = e.row_id";
        // The row of a runtime has the time of the execution that took it over.
        let is = format!(
            "e.id = ?2 AND e.created_at IN (?1, (SELECT created_at FROM {} WHERE id = ?2))",
            self.names.of(of.rows.name)
        );
        let sql = super::stored_sql(&self.names, of, same, &is);
        let read = |row: &Row<'_>| {
            let sources = Sources::from_json(row.get_ref(1)?.as_str()?);
            let row_id = row.get(2)?;
            Ok((row.get(0)?, Stored { sources, row_id }))
        };
        Ok(self
            .fetch(sql, keys(rows.iter().copied()), read)
            .await?
            .into_iter()
            .collect())
    }

    async fn remove(&mut self, of: &'static Destination, rows: &[RowKey<'_>]) -> Result<(), StoreError> {
        self.write_if_kept(of, rows.iter().map(|row| row.id)).await?;
        let (table, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        // The row may have another time, if the span that it was made of had none that could be believed.
        let sql = format!(
            "DELETE FROM {beside} WHERE id = ?2 AND created_at IN (?1, (SELECT created_at FROM {table} WHERE id = ?2))"
        );
        self.run(sql, keys(rows.iter().copied())).await?;
        let ids: Vec<&str> = rows.iter().map(|row| row.id).collect();
        self.run(format!("DELETE FROM {table} WHERE id = ?"), texts(&ids))
            .await?;
        Ok(())
    }

    async fn update(&mut self, of: &'static Destination, updates: &[&Update]) -> Result<(), StoreError> {
        let (rows, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        // Rows that get better in the same columns, which are nearly all of a batch, have one statement: a column that
        // is not assigned leaves its index alone.
        let mut of_columns: HashMap<i32, Values> = HashMap::new();
        let (mut plain, mut with_cost) = (Values::default(), Values::default());
        for update in updates {
            let values = of_columns.entry(update.columns).or_default();
            for column in completed(of, update.columns) {
                bind_column(values, column, update);
            }
            values.text(Some(&update.row.id));
            // Only the table of executions has a cost beside, which depends on the runtime.
            let has_cost = of.is_of_executions() && update.columns & Column::Runtime.bit() != 0;
            let values = if has_cost { &mut with_cost } else { &mut plain };
            values.text(Some(&update.sources().to_json()));
            if has_cost {
                values.real(update.cost_usd);
            }
            values.key(RowKey::from(&update.row));
        }
        for (columns, values) in of_columns {
            let changes: Vec<_> = completed(of, columns)
                .map(|column| format!("{} = ?", column.name()))
                .collect();
            let sql = format!("UPDATE {rows} SET {} WHERE id = ?", changes.join(", "));
            match &mut self.deferred {
                Some(deferred) => deferred.update(sql, &values),
                None => drop(self.run(sql, values).await?),
            }
        }
        self.run(
            format!("UPDATE {beside} SET sources = ? WHERE created_at = ? AND id = ?"),
            plain,
        )
        .await?;
        let sql = format!("UPDATE {beside} SET sources = ?, cost_usd = ? WHERE created_at = ? AND id = ?");
        self.run(sql, with_cost).await?;
        Ok(())
    }

    async fn save_position(&mut self, reader: &str, journal: &str, next: u64) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {} (journal_id, reader, next_sequence) VALUES (?, ?, ?) ON CONFLICT (journal_id, reader) \
             DO UPDATE SET next_sequence = excluded.next_sequence, \
             updated_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')",
            self.names.own("positions")
        );
        let mut values = texts(&[journal, reader]);
        values.integer(Some(next.cast_signed()));
        self.run(sql, values).await?;
        Ok(())
    }

    async fn delete_rows(
        &mut self,
        of: &'static Destination,
        created_before: u64,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let (rows, beside) = (self.names.of(of.rows.name), self.names.of(of.beside.name));
        let old = |columns: &str| {
            format!("SELECT {columns} FROM {beside} WHERE created_at < ? ORDER BY created_at, id LIMIT ?")
        };
        let values = || {
            let mut values = texts(&[&timestamp(created_before)]);
            values.integer(Some(limit));
            values
        };
        self.begin().await?;
        if of.is_of_executions() {
            let last = integers(&[super::hour_at(created_before)]);
            self.run(format!("DELETE FROM {} WHERE hour <= ?", self.names.own("hours")), last)
                .await?;
        }
        self.run(format!("DELETE FROM {rows} WHERE id IN ({})", old("id")), values())
            .await?;
        let sql = format!(
            "DELETE FROM {beside} WHERE (created_at, id) IN ({})",
            old("created_at, id")
        );
        let deleted = self.run(sql, values()).await?;
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
        let read = |row: &Row<'_>| {
            let number = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned);
            Ok(Quarantined {
                table: row.get(0)?,
                id: row.get(1)?,
                reason: row.get(2)?,
                row: row.get(3)?,
                facts: row.get(4)?,
                span: super::span_id(row.get_ref(5)?.as_blob()?, row.get_ref(6)?.as_blob()?),
                start: number(7)?,
                end: number(8)?,
                received_at: number(9)?,
                at: number(10)? * 1_000_000,
            })
        };
        self.fetch(sql, integers(&[limit]), read).await
    }

    async fn delete_quarantined(&mut self, before: u64, limit: i64) -> Result<u64, StoreError> {
        let quarantine = self.names.own("quarantine");
        let sql = format!(
            "DELETE FROM {quarantine} WHERE (table_name, id) IN \
             (SELECT table_name, id FROM {quarantine} WHERE quarantined_at < ? LIMIT ?)"
        );
        let mut values = texts(&[&timestamp(before)]);
        values.integer(Some(limit));
        self.run(sql, values).await
    }

    async fn release_quarantined(&mut self, rows: &[(&str, &str)]) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM {} WHERE table_name = ? AND id = ?",
            self.names.own("quarantine")
        );
        let mut values = Values::default();
        for (table, id) in rows {
            values.text(Some(table));
            values.text(Some(id));
        }
        self.run(sql, values).await?;
        Ok(())
    }
}

impl SqliteStore {
    /// Statements without values.
    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.session.run(|connection| connection.execute_batch(sql)).await
    }

    /// Runs the statement for each row of values; how many rows of the table it changed.
    async fn run(&mut self, sql: String, values: Values) -> Result<u64, StoreError> {
        let changed = self.run_each(sql, values).await?;
        Ok(changed.into_iter().sum::<usize>() as u64)
    }

    /// As [`SqliteStore::run`], of each row. Without any it costs nothing.
    async fn run_each(&mut self, sql: String, values: Values) -> Result<Vec<usize>, StoreError> {
        if values.is_empty() {
            return Ok(Vec::new());
        }
        self.session
            .run(move |connection| values.execute(connection, &sql))
            .await
    }

    /// What the statement finds for each row of values.
    async fn fetch<T: Send + 'static>(
        &mut self,
        sql: String,
        values: Values,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Vec<T>, StoreError> {
        let find = move |connection: &mut Connection| {
            let mut found = Vec::new();
            values.query(connection, &sql, |row| {
                found.push(read(row)?);
                Ok(())
            })?;
            Ok(found)
        };
        self.session.run(find).await
    }

    /// Inserts into the table beside the rows; those that were not there.
    async fn insert_beside_each<'r>(
        &mut self,
        of: &'static Destination,
        rows: &[&'r NewRow],
    ) -> Result<Vec<&'r NewRow>, StoreError> {
        let mut rows = rows.to_vec();
        if of.is_of_executions() {
            let there = self.told_apart_by_id(&rows).await?;
            rows.retain(|row| !there.contains(&row.row.id));
        }
        rows.sort_unstable_by(|a, b| (a.row.created_at, &a.row.id).cmp(&(b.row.created_at, &b.row.id)));
        let inserted = self.insert_each(&of.beside, &rows).await?;
        let new = rows.into_iter().zip(inserted).filter(|(_, inserted)| *inserted > 0);
        Ok(new.map(|(row, _)| row).collect())
    }

    /// Which of the executions are among those that are told apart by their ids alone, since their times may be others
    /// when they come again. Most databases have none.
    async fn told_apart_by_id(&mut self, rows: &[&NewRow]) -> Result<HashSet<String>, StoreError> {
        let (executions, index) = (
            self.names.own("executions"),
            fill_in("{index:own:executions:odd}", &self.names, CONTEXT.name),
        );
        let any = format!("SELECT EXISTS (SELECT 1 FROM {executions} INDEXED BY {index} WHERE {TOLD_APART_BY_ID})");
        let any = move |connection: &mut Connection| connection.query_row(&any, [], |row| row.get(0));
        if !self.session.run(any).await? {
            return Ok(HashSet::new());
        }
        let ids: Vec<&str> = rows.iter().map(|row| row.row.id.as_str()).collect();
        let sql = format!("SELECT id FROM {executions} INDEXED BY {index} WHERE id = ? AND ({TOLD_APART_BY_ID})");
        let there = self.fetch(sql, texts(&ids), |row| row.get(0)).await?;
        Ok(there.into_iter().collect())
    }

    /// For each of the rows whether it was inserted: 0 or 1.
    async fn insert_each<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<Vec<usize>, StoreError> {
        let sql = self.insert_sql(table);
        // The values of all rows at once would take several megabytes.
        let mut inserted = Vec::with_capacity(rows.len());
        for rows in rows.chunks(CHUNK) {
            let values = Values::of_rows(table, rows, &mut self.spare);
            let sql = sql.clone();
            let execute = move |connection: &mut Connection| Ok((values.execute(connection, &sql)?, values));
            let (changed, values) = self.session.run(execute).await?;
            self.spare = values;
            inserted.extend(changed);
        }
        Ok(inserted)
    }

    fn insert_sql<T>(&self, table: &'static Table<T>) -> String {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        format!(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
            self.names.of(table.name),
            columns.join(", "),
            vec!["?"; columns.len()].join(", ")
        )
    }
}

/// Of so many rows these are new.
fn new_of(rows: usize, new: &[&NewRow]) -> New {
    if new.len() == rows {
        return New::all(rows);
    }
    New::only(new.iter().map(|row| row.row.id.clone()).collect())
}

/// `created_at` and `id` of each.
fn keys<'r>(rows: impl IntoIterator<Item = RowKey<'r>>) -> Values {
    let mut values = Values::default();
    rows.into_iter().for_each(|row| values.key(row));
    values
}

fn texts(texts: &[&str]) -> Values {
    let mut values = Values::default();
    texts.iter().for_each(|text| values.text(Some(text)));
    values
}

fn integers(numbers: &[i64]) -> Values {
    let mut values = Values::default();
    numbers.iter().for_each(|number| values.integer(Some(*number)));
    values
}

/// The columns of an update, in the order of the table.
fn completed(of: &'static Destination, columns: i32) -> impl Iterator<Item = Column> {
    of.completed
        .iter()
        .copied()
        .filter(move |column| columns & column.bit() != 0)
}

fn bind_column(values: &mut Values, column: Column, update: &Update) {
    let row = &update.row;
    match column {
        Column::CodeAgentId => values.text(row.code_agent_id.as_deref()),
        Column::Runtime => values.text(Some(&row.runtime)),
        Column::MemoryMb => values.integer(row.memory_mb.map(i64::from)),
        Column::ExitCode => values.integer(row.exit_code.map(i64::from)),
        Column::Success => values.integer(Some(i64::from(row.success))),
        Column::ErrorMessage => values.text(row.error_message.as_deref()),
        Column::OrganizationId => values.text(row.organization_id.as_deref()),
        Column::WorkspaceId => values.text(row.workspace_id.as_deref()),
        Column::UserId => values.text(row.user_id.as_deref()),
    }
}
