//! SQLite: one file, one connection that writes, on a thread of its own ([`session`]).
//!
//! A prepared statement runs once for each row. WAL, so that the query API reads while this writes; `synchronous=FULL`, so
//! that what the journal gives up is on disk here.

mod hours;
mod session;

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, Row};

use self::session::{Place, Session, Values, timestamp};
use super::{
    ForeignKey, Keys, LOAD_LIMIT, Migration, Names, New, RowKey, Settings, Store, StoreError, fill_in, migrations,
    quote, stored_facts,
};
use crate::ledger::facts::Facts;
use crate::ledger::plan::{Stored, Update};
use crate::ledger::row::{Column, Sources};
use crate::ledger::table::{Destination, NewRow, Quarantined, Table, TableName, Value};

/// Waiting for another process that writes to the file: 5 s.
///
/// A transaction touches pages all over the indexes, because ids are random. What does not fit into the cache (24 MiB) is
/// written and read again and again before it is committed. A page that many transactions change is copied back once for
/// all of them (8,192 pages, 32 MiB).
const SET_UP: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                      PRAGMA foreign_keys = ON; PRAGMA cache_size = -24576; PRAGMA wal_autocheckpoint = 8192; \
                      PRAGMA temp_store = MEMORY";

/// Rows whose values are in memory at a time.
const CHUNK: usize = 1024;

migrations!("../../../../migrations/sqlite");

/// See the module documentation.
pub(in crate::ledger) struct SqliteStore {
    session: Session,
    names: Names,
    foreign_keys: Vec<(TableName, Vec<ForeignKey>)>,
}

impl Store for SqliteStore {
    const HAS_LOCKS: bool = false;

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
        self.execute("ROLLBACK TO row; RELEASE row").await
    }

    async fn lock(&mut self, _locks: &[i32]) -> Result<(), StoreError> {
        // The transaction has the only write lock there is.
        Ok(())
    }

    async fn load(&mut self, keys: &Keys) -> Result<Vec<Facts>, StoreError> {
        let (by_trace, by_node) = (self.load_sql("trace_id"), self.load_sql("node_hash"));
        let (mut traces, mut nodes) = (Values::default(), Values::default());
        keys.traces.iter().for_each(|trace| traces.blob(trace));
        keys.nodes.iter().for_each(|node| nodes.integer(Some(*node)));
        let load = move |connection: &mut Connection| {
            let mut latest = Latest::default();
            for (sql, keys) in [(by_trace, traces), (by_node, nodes)] {
                keys.query(connection, &sql, |row| {
                    latest.extend(facts_of(row));
                    Ok(())
                })?;
            }
            Ok(latest.finish())
        };
        self.session.run(load).await
    }

    async fn missing(&mut self, key: &ForeignKey, values: &[&str]) -> Result<HashSet<String>, StoreError> {
        let (table, column) = (&key.table, &key.referenced);
        let sql = format!("SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1)");
        let missing = self.fetch(sql, texts(values), |row| row.get(0)).await?;
        Ok(missing.into_iter().collect())
    }

    async fn insert<T: Sync>(&mut self, table: &'static Table<T>, rows: &[&T]) -> Result<u64, StoreError> {
        let inserted = self.insert_in_order(table, &in_order(table, rows)).await?;
        Ok(inserted.into_iter().sum::<usize>() as u64)
    }

    async fn insert_beside(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let mut rows = rows.to_vec();
        rows.sort_unstable_by(|a, b| (a.row.created_at, &a.row.id).cmp(&(b.row.created_at, &b.row.id)));
        let inserted = self.insert_in_order(&of.beside, &rows).await?;
        Ok(new_of(&rows, &inserted))
    }

    async fn insert_rows(&mut self, of: &'static Destination, rows: &[&NewRow]) -> Result<New, StoreError> {
        let new = self.insert_beside(of, rows).await?;
        let mut rows: Vec<&NewRow> = rows.iter().filter(|row| new.contains(&row.row.id)).copied().collect();
        rows.sort_unstable_by(|a, b| a.row.id.cmp(&b.row.id));
        let inserted = self.insert_in_order(&of.rows, &rows).await?;
        // A row with this id and another time is there: it stays the only one, and has something beside it already.
        let there = rows.iter().zip(&inserted).filter(|(_, inserted)| **inserted == 0);
        let there: Vec<&NewRow> = there.map(|(row, _)| *row).collect();
        if there.is_empty() {
            return Ok(new);
        }
        let sql = format!(
            "DELETE FROM {} WHERE created_at = ? AND id = ?",
            self.names.of(of.beside.name)
        );
        self.run(sql, keys(there.iter().map(|row| RowKey::from(&row.row))))
            .await?;
        Ok(new_of(&rows, &inserted))
    }

    async fn stored(
        &mut self,
        of: &'static Destination,
        rows: &[RowKey<'_>],
    ) -> Result<HashMap<String, Stored>, StoreError> {
        let same = "r.created_at = e.created_at AND r.id = e.row_id";
        let sql = super::stored_sql(&self.names, of, same, "e.created_at = ? AND e.id = ?");
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

    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError> {
        let sql = format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} \
             WHERE due_ns <= ? ORDER BY due_ns LIMIT ?",
            self.names.own("context")
        );
        let due = self
            .fetch(sql, integers(&[now, limit]), |row| Ok(facts_of(row)))
            .await?;
        Ok(due.into_iter().flatten().collect())
    }

    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("DELETE FROM", "", facts).await
    }

    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError> {
        self.each_waiting("UPDATE", "SET due_ns = NULL", facts).await
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
            self.run(format!("UPDATE {rows} SET {} WHERE id = ?", changes.join(", ")), values)
                .await?;
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

    async fn hurry(&mut self, received_before: i64, now: i64) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE {} SET due_ns = ?2 WHERE received_at_ns < ?1 AND due_ns > ?2",
            self.names.own("context")
        );
        self.run(sql, integers(&[received_before, now])).await?;
        Ok(())
    }

    async fn forget_context(&mut self, received_before: i64, keep_due: bool, limit: i64) -> Result<u64, StoreError> {
        let context = self.names.own("context");
        let due = if keep_due { "AND due_ns IS NULL" } else { "" };
        let sql = format!(
            "DELETE FROM {context} WHERE (trace_id, span_id) IN (SELECT trace_id, span_id FROM {context} \
             WHERE received_at_ns < ? {due} ORDER BY received_at_ns LIMIT ?)"
        );
        self.run(sql, integers(&[received_before, limit])).await
    }

    async fn context_size(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError> {
        let context = self.names.own("context");
        let sql = format!(
            "SELECT (SELECT count(*) FROM {context}), \
             (SELECT received_at_ns FROM {context} ORDER BY received_at_ns DESC LIMIT 1 OFFSET ?)"
        );
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let found = self.fetch(sql, integers(&[max_pending]), read).await?;
        Ok(found.first().copied().unwrap_or_default())
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

    /// For each of the rows whether it was inserted: 0 or 1.
    async fn insert_in_order<T: Sync>(
        &mut self,
        table: &'static Table<T>,
        rows: &[&T],
    ) -> Result<Vec<usize>, StoreError> {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let sql = format!(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
            self.names.of(table.name),
            columns.join(", "),
            vec!["?"; columns.len()].join(", ")
        );
        // The values of all rows at once would take several megabytes.
        let mut inserted = Vec::with_capacity(rows.len());
        for rows in rows.chunks(CHUNK) {
            inserted.extend(self.run_each(sql.clone(), Values::of_rows(table, rows)).await?);
        }
        Ok(inserted)
    }

    /// Does something with each of these waiting spans.
    async fn each_waiting(&mut self, verb: &str, change: &str, facts: &[Facts]) -> Result<(), StoreError> {
        let sql = format!(
            "{verb} {} {change} WHERE trace_id = ? AND span_id = ?",
            self.names.own("context")
        );
        let mut values = Values::default();
        for facts in facts {
            values.blob(&facts.id.trace);
            values.blob(&facts.id.span);
        }
        self.run(sql, values).await?;
        Ok(())
    }

    fn load_sql(&self, column: &str) -> String {
        format!(
            "SELECT trace_id, span_id, start_ns, end_ns, received_at_ns, facts FROM {} WHERE {column} = ? \
             ORDER BY received_at_ns DESC LIMIT {LOAD_LIMIT}",
            self.names.own("context")
        )
    }

    async fn migrate(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        self.begin().await?;
        for Migration { table, sql } in migrations(destinations) {
            if self.table_columns(table).await?.is_empty() {
                let sql = fill_in(sql, &self.names, table);
                self.session
                    .run(move |connection| connection.execute_batch(&sql))
                    .await?;
            }
        }
        self.commit().await
    }

    /// Name, whether NULL is refused, and whether there is a default, of each column; nothing if there is no table.
    async fn table_columns(&mut self, table: TableName) -> Result<Vec<(String, bool, bool)>, StoreError> {
        let sql = "SELECT name, \"notnull\", dflt_value IS NOT NULL FROM pragma_table_info(?)".to_owned();
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.fetch(sql, texts(&[&self.names.bare(table)]), read).await
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
        let read = |row: &Row<'_>| {
            Ok(ForeignKey {
                column: row.get(0)?,
                table: quote(row.get_ref(1)?.as_str()?),
                referenced: quote(row.get_ref(2)?.as_str()?),
            })
        };
        self.fetch(sql.to_owned(), texts(&[&self.names.bare(of)]), read).await
    }
}

/// The waiting spans that were received last, each once.
#[derive(Default)]
struct Latest {
    found: Vec<Facts>,
    seen: HashSet<crate::ledger::facts::SpanId>,
}

impl Latest {
    fn extend(&mut self, facts: Option<Facts>) {
        self.found.extend(facts.filter(|facts| self.seen.insert(facts.id)));
        if self.found.len() >= 2 * LOAD_LIMIT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.found.sort_by_key(|facts| std::cmp::Reverse(facts.received_at));
        self.found.truncate(LOAD_LIMIT);
    }

    fn finish(mut self) -> Vec<Facts> {
        self.cut();
        self.found
    }
}

fn facts_of(row: &Row<'_>) -> Option<Facts> {
    let times = [row.get(2).ok()?, row.get(3).ok()?, row.get(4).ok()?];
    let bytes = |index: usize| row.get_ref(index).ok()?.as_blob().ok();
    stored_facts(bytes(0)?, bytes(1)?, times, row.get_ref(5).ok()?.as_str().ok()?)
}

/// Which of the rows are new, by how many rows the statement of each changed.
fn new_of(rows: &[&NewRow], inserted: &[usize]) -> New {
    if inserted.iter().all(|inserted| *inserted > 0) {
        return New::all(rows.len());
    }
    let new = rows.iter().zip(inserted).filter(|(_, inserted)| **inserted > 0);
    New::only(new.map(|(row, _)| row.row.id.clone()).collect())
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
