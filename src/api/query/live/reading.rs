//! What the live stream asks of the database.

use std::collections::HashMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::backlog::LiveRow;
use super::following::{Key, Next, Order, Place, Writers};
use super::mark::Mark;
use crate::api::query::database::{Cell, Dialect, Kind, Sql};
use crate::api::query::filter::{Filter, RowsShown};
use crate::api::query::row::{Execution, KINDS};
use crate::api::query::{QueryApi, QueryError};

/// Rows that are read by one statement, and bytes of them.
pub(super) const ROWS: usize = 500;
pub(super) const ROWS_BYTES: usize = 4 << 20;

/// Rows that were looked for by their keys.
pub(super) struct Found {
    pub(super) rows: Vec<LiveRow>,
    /// How many were not read, because those that were are large.
    pub(super) left_out: usize,
}

/// Where places are, and what takes one without being a row.
struct Places {
    column: &'static str,
    from: String,
    is_row: &'static str,
}

impl QueryApi {
    pub(super) fn order(&self) -> Order {
        match self.dialect() {
            Dialect::Sqlite => Order::Committed,
            Dialect::Postgres => Order::Taken,
        }
    }

    fn places(&self) -> Places {
        match self.dialect() {
            Dialect::Sqlite => Places {
                column: "rowid",
                from: self.table().to_owned(),
                is_row: "true",
            },
            // An execution that took over the row of its runtime has none of its own.
            Dialect::Postgres => Places {
                column: "written",
                from: self.beside().to_owned(),
                is_row: "(row_id IS NULL OR row_id = id)",
            },
        }
    }

    pub(super) async fn last_place(&self) -> Result<Place, QueryError> {
        let Places { column, from, .. } = self.places();
        let sql = format!("SELECT coalesce(max({column}), 0) FROM {from}");
        self.database().number(Sql::new(self.dialect(), sql)).await.map(Place)
    }

    /// The newest keys after a place, newest first.
    pub(super) async fn keys_after(&self, after: Place, limit: usize) -> Result<Vec<Key>, QueryError> {
        self.keys(after, Place(i64::MAX), limit, "DESC").await
    }

    /// The first keys after a place, up to and with another, oldest first.
    pub(super) async fn keys_between(&self, after: Place, last: Place, limit: usize) -> Result<Vec<Key>, QueryError> {
        self.keys(after, last, limit, "ASC").await
    }

    async fn keys(&self, after: Place, last: Place, limit: usize, order: &str) -> Result<Vec<Key>, QueryError> {
        let Places { column, from, is_row } = self.places();
        let select = format!("SELECT id, {column}, {is_row} FROM {from} WHERE {column} > ");
        let mut sql = Sql::new(self.dialect(), select);
        sql.integer(after.0);
        sql.push(&format!(" AND {column} <= ")).integer(last.0);
        sql.push(&format!(" ORDER BY {column} {order} LIMIT "))
            .integer(limit as i64);
        let key = |mut cells: Vec<Cell>| {
            let is_row = cells.pop()?.boolean()?;
            let place = Place(cells.pop()?.integer()?);
            let id = cells.pop()?.into_text()?;
            Some(Key { place, id, is_row })
        };
        let mut keys = Vec::new();
        let take = |cells| {
            keys.extend(key(cells));
            Ok(())
        };
        let kinds = [Kind::Text, Kind::Integer, Kind::Boolean];
        self.database().each(sql, &kinds, take).await?;
        Ok(keys)
    }

    /// How many rows there are after a place, up to and with another.
    pub(super) async fn count_keys(&self, after: Place, last: Place) -> Result<usize, QueryError> {
        let Places { column, from, is_row } = self.places();
        let select = format!("SELECT count(*) FROM {from} WHERE {is_row} AND {column} > ");
        let mut sql = Sql::new(self.dialect(), select);
        sql.integer(after.0);
        sql.push(&format!(" AND {column} <= ")).integer(last.0);
        let count = self.database().number(sql).await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// The transactions that may be writing rows, in PostgreSQL: each has this lock from before it takes its first number, and
    /// gives it back when what it wrote can be seen.
    pub(super) async fn writers(&self) -> Result<Writers, QueryError> {
        let mut sql = Sql::new(
            self.dialect(),
            "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE mode = 'RowExclusiveLock' AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = to_regclass(",
        );
        sql.text(self.beside()).push(")");
        let mut writers = Writers::new();
        let take = |mut cells: Vec<Cell>| {
            writers.extend(cells.pop().and_then(Cell::into_text));
            Ok(())
        };
        self.database().each(sql, &[Kind::Text], take).await?;
        Ok(writers)
    }

    /// The rows that have these keys, in their order; those that are gone are not among them.
    pub(super) async fn rows_of(&self, keys: &[Next]) -> Result<Found, QueryError> {
        let everything = Filter::everything(RowsShown::All, None);
        let mut sql = self.select(&Execution::columns(self.dialect()), &everything);
        let ids: Vec<String> = keys.iter().map(|key| key.id.clone()).collect();
        sql.push(" AND t.id IN ").texts(&ids);
        let marks: HashMap<&str, Mark> = keys
            .iter()
            .map(|key| (&key.id[..], Mark::of(self.order(), key)))
            .collect();
        let mut rows: HashMap<String, LiveRow> = HashMap::new();
        let (mut held, signoz_url) = (0, self.signoz_url());
        let take = |cells| {
            if let Some(row) = Execution::read(cells)
                && let Some(mark) = marks.get(&row.id[..])
            {
                let event = event(*mark, &row, signoz_url);
                let row = LiveRow { row, event };
                held += row.held();
                rows.insert(row.row.id.clone(), row);
            }
            Ok(match held < ROWS_BYTES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        };
        self.database().each_until(sql, &KINDS, take).await?;
        let left_out = match held < ROWS_BYTES {
            true => 0,
            false => keys.len() - rows.len(),
        };
        let rows = keys.iter().filter_map(|key| rows.remove(&key.id)).collect();
        Ok(Found { rows, left_out })
    }
}

pub(super) fn event(mark: Mark, row: &Execution, signoz_url: Option<&str>) -> Bytes {
    Bytes::from(format!(
        "id: {mark}\nevent: row\ndata: {}\n\n",
        row.to_full_json(signoz_url)
    ))
}
