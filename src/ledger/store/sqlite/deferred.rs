//! Rows that are written at the end of their transaction, all in the order of their ids.
//!
//! The ids are random, so each row goes to another page of their index. A page that changes is written twice, to the log
//! and to the file, for however many of its rows came in one transaction: the more rows in one, the less is written for
//! each. So a transaction of many batches keeps the values of its rows until it ends, in a fraction of the memory that their
//! facts take. What is beside the rows and what waits is in the order of time, and written with each batch.
//!
//! # Invariants
//!
//! * A row is kept only if there was nothing beside it, and is written before it is removed, or asked for by a foreign key. An
//!   update of it is kept as well, behind it.
//! * What is kept is written when there is as much as memory may hold, and at the end of the transaction at the latest.
//! * If a row is there already (somebody else wrote it, or it has another time than the one beside it) the transaction is
//!   refused: what is kept knows too little to do as `insert_rows` does where nothing is kept.

use rusqlite::Connection;

use super::values::Values;
use super::{CHUNK, SqliteStore};
use crate::ledger::facts::SpanId;
use crate::ledger::store::StoreError;
use crate::ledger::table::{Destination, NewRow};

/// Bytes of them in a transaction: some 25,000 executions.
const LIMIT: usize = 10 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    tables: Vec<DeferredTable>,
    /// Statements, in the order in which they are to run.
    updates: Vec<(String, Values)>,
    bytes: usize,
}

#[derive(Debug)]
struct DeferredTable {
    of: &'static Destination,
    /// Those of one batch each: memory that grows would be there twice meanwhile.
    batches: Vec<Values>,
    rows: Vec<DeferredRow>,
}

/// Where the values of a row are.
#[derive(Debug, Clone, Copy)]
struct DeferredRow {
    id: SpanId,
    batch: u32,
    at: u32,
}

impl Deferred {
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= LIMIT
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.updates.is_empty()
    }

    /// Whether a row of the table is among those with these ids.
    fn has_any<'i>(&self, of: &'static Destination, ids: impl Iterator<Item = &'i str>) -> bool {
        let Some(table) = self.tables.iter().find(|table| table.of == of) else {
            return false;
        };
        let ids: Vec<SpanId> = ids.filter_map(span_of).collect();
        table.rows.iter().any(|row| ids.contains(&row.id))
    }

    /// Keeps rows. Their values are put together in memory that is used again.
    fn rows(&mut self, of: &'static Destination, new: &[&NewRow], spare: &mut Values) {
        let known = self.tables.iter().position(|table| table.of == of);
        let index = known.unwrap_or_else(|| {
            self.tables.push(DeferredTable {
                of,
                batches: Vec::new(),
                rows: Vec::new(),
            });
            self.tables.len() - 1
        });
        let table = &mut self.tables[index];
        let batch = table.batches.len() as u32;
        let mut values = std::mem::take(spare).cleared();
        for row in new {
            let at = values.len() as u32;
            table.rows.push(DeferredRow { id: row.id, batch, at });
            values.row(&of.rows, row);
        }
        self.bytes += values.len() + new.len() * size_of::<DeferredRow>();
        table.batches.push(values.compact());
        *spare = values;
    }

    /// Keeps what the statement is to do once more, behind what is kept already.
    pub(super) fn update(&mut self, sql: String, values: &Values) {
        self.bytes += values.len();
        self.updates.push((sql, values.compact()));
    }
}

impl DeferredTable {
    /// Inserts some of the rows; whether none of them was there.
    fn insert(&self, rows: std::ops::Range<usize>, connection: &Connection, sql: &str) -> rusqlite::Result<bool> {
        let mut statement = connection.prepare_cached(sql)?;
        let mut inserted = 0;
        for row in &self.rows[rows.clone()] {
            self.batches[row.batch as usize].bind(row.at as usize, &mut statement)?;
            inserted += statement.raw_execute()?;
        }
        Ok(inserted == rows.len())
    }
}

/// The span whose row has this id; `None` if it is not of this program.
fn span_of(row_id: &str) -> Option<SpanId> {
    let (trace, span) = row_id.split_once('-')?;
    Some(SpanId {
        trace: u128::from_str_radix(trace, 16).ok()?.to_be_bytes(),
        span: u64::from_str_radix(span, 16).ok()?.to_be_bytes(),
    })
}

impl SqliteStore {
    /// Keeps rows, and writes those that are kept when there are enough.
    pub(super) async fn defer_rows(&mut self, of: &'static Destination, new: &[&NewRow]) -> Result<(), StoreError> {
        for rows in new.chunks(CHUNK) {
            if self.deferred.as_ref().is_some_and(Deferred::is_full) {
                self.write_kept().await?;
            }
            if let Some(deferred) = &mut self.deferred {
                deferred.rows(of, rows, &mut self.spare);
            }
        }
        Ok(())
    }

    /// Writes what is kept if one of these rows is.
    pub(super) async fn write_if_kept(
        &mut self,
        of: &'static Destination,
        mut ids: impl Iterator<Item = &str>,
    ) -> Result<(), StoreError> {
        match &self.deferred {
            // An update may be of one of them, too.
            Some(deferred) if !deferred.updates.is_empty() || deferred.has_any(of, &mut ids) => self.write_kept().await,
            _ => Ok(()),
        }
    }

    /// Writes what is kept if it is of the table of this quoted name.
    pub(super) async fn write_if_kept_for(&mut self, table: &str) -> Result<(), StoreError> {
        let tables = self.deferred.iter().flat_map(|deferred| &deferred.tables);
        let is_one = tables
            .map(|kept| self.names.of(kept.of.rows.name))
            .any(|name| name.eq_ignore_ascii_case(table));
        if is_one { self.write_kept().await } else { Ok(()) }
    }

    /// Writes what is kept.
    pub(super) async fn write_kept(&mut self) -> Result<(), StoreError> {
        let Some(deferred) = self.deferred.as_mut().filter(|deferred| !deferred.is_empty()) else {
            return Ok(());
        };
        let Deferred { tables, updates, .. } = std::mem::take(deferred);
        for mut table in tables {
            let sql = self.insert_sql(&table.of.rows);
            table.rows.sort_unstable_by_key(|row| row.id);
            // In pieces: a slow disk has as long for each as for any statement.
            for from in (0..table.rows.len()).step_by(CHUNK) {
                let piece = from..table.rows.len().min(from + CHUNK);
                let sql = sql.clone();
                let insert = move |connection: &mut Connection| Ok((table.insert(piece, connection, &sql)?, table));
                let (were_new, back) = self.session.run(insert).await?;
                table = back;
                if !were_new {
                    return Err(StoreError::Refused {
                        reason: format!("a row of {} is there, but nothing beside it", table.of.name),
                        column: None,
                    });
                }
            }
        }
        for (sql, values) in updates {
            self.run(sql, values).await?;
        }
        Ok(())
    }
}
