//! Rows of values for the placeholders of a statement, in one piece of memory however many there are.
//!
//! # Format
//!
//! Value after value, row after row, without anything between: a byte that says what it is ([`NULL`] and those after it),
//! and behind it nothing, eight bytes of a number, or the length in four bytes and so many bytes. Numbers are
//! little-endian. How many values a row has, the statement says.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, Statement};

use crate::ledger::store::RowKey;
use crate::ledger::table::{Table, Value, nanos};

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<u8>);

impl Values {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that they take: where the next one will be.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// None, with the memory of these.
    pub(super) fn cleared(mut self) -> Values {
        self.0.clear();
        self
    }

    /// The same, in no more memory than they need.
    pub(super) fn compact(&self) -> Values {
        Values(self.0.as_slice().to_vec())
    }

    /// The values of all columns of these rows, in memory that is used again.
    pub(super) fn of_rows<T>(table: &'static Table<T>, rows: &[&T], spare: &mut Values) -> Values {
        let mut values = std::mem::take(spare).cleared();
        rows.iter().for_each(|row| values.row(table, row));
        values
    }

    /// The values of all columns of the row.
    pub(super) fn row<T>(&mut self, table: &'static Table<T>, row: &T) {
        for column in table.columns {
            match (column.value)(row) {
                Value::Text(text) => self.text(text.as_deref()),
                Value::Json(json) => self.text(json),
                Value::Integer(number) => self.integer(number.map(i64::from)),
                Value::BigInt(number) => self.integer(number),
                Value::Double(number) => self.real(number),
                Value::Boolean(truth) => self.integer(truth.map(i64::from)),
                Value::Timestamp(at) => self.text(Some(&timestamp(at))),
                Value::Bytes(bytes) => self.blob(bytes),
            }
        }
    }

    pub(super) fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.bytes(TEXT, text.as_bytes()),
            None => self.0.push(NULL),
        }
    }

    /// `created_at`, and `id`.
    pub(super) fn key(&mut self, row: RowKey<'_>) {
        self.text(Some(&timestamp(row.created_at)));
        self.text(Some(row.id));
    }

    pub(super) fn blob(&mut self, bytes: &[u8]) {
        self.bytes(BLOB, bytes);
    }

    pub(super) fn integer(&mut self, number: Option<i64>) {
        self.number(INTEGER, number.map(i64::to_le_bytes));
    }

    pub(super) fn real(&mut self, number: Option<f64>) {
        self.number(REAL, number.map(f64::to_le_bytes));
    }

    fn number(&mut self, tag: u8, number: Option<[u8; 8]>) {
        match number {
            Some(number) => {
                self.0.push(tag);
                self.0.extend_from_slice(&number);
            }
            None => self.0.push(NULL),
        }
    }

    /// One of more than 4 GiB, which no column holds, is cut.
    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let bytes = bytes.get(..length as usize).unwrap_or(bytes);
        self.0.reserve(5 + bytes.len());
        self.0.push(tag);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    /// Binds one value after the other to the statement, from the row at `at` on; where the next row is.
    pub(super) fn bind(&self, at: usize, statement: &mut Statement<'_>) -> rusqlite::Result<usize> {
        let mut rest = self.0.get(at..).unwrap_or_default();
        for index in 1..=statement.parameter_count().max(1) {
            let value = take(&mut rest).ok_or(rusqlite::Error::InvalidParameterCount(
                index - 1,
                statement.parameter_count(),
            ))?;
            statement.raw_bind_parameter(index, ToSqlOutput::Borrowed(value))?;
        }
        Ok(self.0.len() - rest.len())
    }

    /// Runs the statement for each row, and hands `each` what it finds.
    pub(super) fn query(
        &self,
        connection: &Connection,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        self.each(connection, sql, |statement| {
            let mut rows = statement.raw_query();
            while let Some(row) = rows.next()? {
                each(row)?;
            }
            Ok(())
        })
    }

    /// Hands `each` the statement with the values of one row after the other.
    pub(super) fn each(
        &self,
        connection: &Connection,
        sql: &str,
        mut each: impl FnMut(&mut Statement<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(sql)?;
        let mut at = 0;
        while at < self.len() {
            at = self.bind(at, &mut statement)?;
            each(&mut statement)?;
        }
        Ok(())
    }

    /// Runs the statement for each row; how many rows of the table each of them changed.
    pub(super) fn execute(&self, connection: &Connection, sql: &str) -> rusqlite::Result<Vec<usize>> {
        let mut changed = Vec::new();
        self.each(connection, sql, |statement| {
            changed.push(statement.raw_execute()?);
            Ok(())
        })?;
        Ok(changed)
    }
}

/// The first value; `None` if it is not whole.
fn take<'v>(values: &mut &'v [u8]) -> Option<ValueRef<'v>> {
    fn bytes<'v>(rest: &mut &'v [u8]) -> Option<&'v [u8]> {
        let (length, after) = rest.split_first_chunk()?;
        let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *rest = after;
        Some(bytes)
    }
    fn number(rest: &mut &[u8]) -> Option<[u8; 8]> {
        let (number, after) = rest.split_first_chunk()?;
        *rest = after;
        Some(*number)
    }
    let (tag, rest) = values.split_first()?;
    *values = rest;
    match *tag {
        NULL => Some(ValueRef::Null),
        INTEGER => number(values).map(|number| ValueRef::Integer(i64::from_le_bytes(number))),
        REAL => number(values).map(|number| ValueRef::Real(f64::from_le_bytes(number))),
        TEXT => bytes(values).map(ValueRef::Text),
        BLOB => bytes(values).map(ValueRef::Blob),
        _ => None,
    }
}

/// UTC, to the microsecond, always of one length: as text it sorts as the times do.
pub(super) fn timestamp(unix_nanos: u64) -> String {
    use chrono::{DateTime, Datelike, Timelike};

    let time = DateTime::from_timestamp_nanos(nanos(unix_nanos)).naive_utc();
    let mut text = *b"0000-00-00 00:00:00.000000";
    let mut put = |at: std::ops::Range<usize>, mut number: u32| {
        for digit in text[at].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0..4, time.year().unsigned_abs());
    put(5..7, time.month());
    put(8..10, time.day());
    put(11..13, time.hour());
    put(14..16, time.minute());
    put(17..19, time.second());
    put(20..26, time.nanosecond() / 1_000);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_of_a_statement_as_they_went_in() {
        let connection = Connection::open_in_memory().unwrap();
        let mut values = Values::default();
        for number in [0, 1, -1, i64::MIN, i64::MAX] {
            values.integer(Some(number));
            values.real(Some(number as f64 / 3.0));
            values.text(Some(&format!("text {number}")));
            values.blob(&number.to_be_bytes());
            values.integer(None);
        }
        let mut found = Vec::new();
        values
            .query(&connection, "SELECT ?, ?, ?, ?, ?", |row| {
                let row = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                found.push(row);
                Ok(())
            })
            .unwrap();
        let expected = [0, 1, -1, i64::MIN, i64::MAX].map(|number| {
            let blob = number.to_be_bytes().to_vec();
            (number, number as f64 / 3.0, format!("text {number}"), blob, None::<i64>)
        });
        assert_eq!(found, expected);
        // A statement with more placeholders than there are values for.
        let error = values.query(&connection, "SELECT ?, ?", |_| Ok(())).unwrap_err();
        assert!(matches!(error, rusqlite::Error::InvalidParameterCount(1, 2)), "{error}");
    }

    #[test]
    fn times_are_written_as_chrono_writes_them() {
        let mut random = fastrand::Rng::with_seed(1);
        let samples = [0, 951_782_400_000_000_000, i64::MAX as u64, u64::MAX];
        for at in samples
            .into_iter()
            .chain((0..10_000).map(|_| random.u64(..i64::MAX as u64)))
        {
            let expected = chrono::DateTime::from_timestamp_nanos(nanos(at)).format("%Y-%m-%d %H:%M:%S%.6f");
            assert_eq!(timestamp(at), expected.to_string(), "{at}");
        }
    }
}
