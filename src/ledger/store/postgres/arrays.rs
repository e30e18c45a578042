//! Rows as PostgreSQL takes them: one array for each column, in the binary format of `array_recv`, written from the rows
//! into the buffer of the statement without anything between.

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo};
use sqlx::{Arguments as _, Postgres, Type};

use super::StoreError;
use crate::ledger::table::{Column, Kind, Table, Value, nanos};

/// Room for so many bytes of each row to begin with: most rows are smaller. What is not used was never touched.
const ROW_BYTES: usize = 1024;

/// From 1970 to 2000, where PostgreSQL begins, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;

/// The arguments `$1` to `$n` for the n columns of the table.
pub(super) fn arguments<T>(table: &'static Table<T>, rows: &[&T]) -> Result<PgArguments, StoreError> {
    let mut arguments = PgArguments::default();
    arguments.reserve(table.columns.len(), rows.len() * ROW_BYTES);
    for column in table.columns {
        let added = arguments.add(Array { column, rows });
        // More than 2 GiB in one column.
        added.map_err(|error| StoreError::Refused {
            reason: error.to_string(),
            column: None,
        })?;
    }
    Ok(arguments)
}

/// The values of one column.
struct Array<'r, T: 'static> {
    column: &'static Column<T>,
    rows: &'r [&'r T],
}

impl<T> Type<Postgres> for Array<'_, T> {
    fn type_info() -> PgTypeInfo {
        <Vec<String> as Type<Postgres>>::type_info()
    }
}

impl<T> Encode<'_, Postgres> for Array<'_, T> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let length = i32::try_from(self.rows.len())?;
        // One dimension, no word about NULLs, the type of the elements, how many, and that they count from 1.
        for number in [1, 0, element_type(self.column.kind), length, 1] {
            buffer.extend_from_slice(&number.to_be_bytes());
        }
        for row in self.rows {
            match (self.column.value)(row) {
                Value::Text(Some(text)) => put(buffer, text.as_bytes())?,
                Value::Json(Some(text)) => put(buffer, text.as_bytes())?,
                Value::Bytes(bytes) => put(buffer, bytes)?,
                Value::Integer(Some(number)) => put(buffer, &number.to_be_bytes())?,
                Value::BigInt(Some(number)) => put(buffer, &number.to_be_bytes())?,
                Value::Double(Some(number)) => put(buffer, &number.to_be_bytes())?,
                Value::Boolean(Some(value)) => put(buffer, &[value.into()])?,
                Value::Timestamp(at) => put(buffer, &(nanos(at) / 1_000 - EPOCH).to_be_bytes())?,
                Value::Text(None)
                | Value::Json(None)
                | Value::Integer(None)
                | Value::BigInt(None)
                | Value::Double(None)
                | Value::Boolean(None) => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(match self.column.kind {
            // JSON goes as text.
            Kind::Text | Kind::Json => <Vec<String> as Type<Postgres>>::type_info(),
            Kind::Integer => <Vec<i32> as Type<Postgres>>::type_info(),
            Kind::BigInt => <Vec<i64> as Type<Postgres>>::type_info(),
            Kind::Double => <Vec<f64> as Type<Postgres>>::type_info(),
            Kind::Boolean => <Vec<bool> as Type<Postgres>>::type_info(),
            Kind::Timestamp => <Vec<chrono::NaiveDateTime> as Type<Postgres>>::type_info(),
            Kind::Bytes => <Vec<Vec<u8>> as Type<Postgres>>::type_info(),
        })
    }
}

fn put(buffer: &mut Vec<u8>, value: &[u8]) -> Result<(), BoxDynError> {
    buffer.extend_from_slice(&i32::try_from(value.len())?.to_be_bytes());
    buffer.extend_from_slice(value);
    Ok(())
}

/// The OID, which is the same in every server: `pg_type.dat`.
fn element_type(kind: Kind) -> i32 {
    match kind {
        Kind::Text | Kind::Json => 25,
        Kind::Integer => 23,
        Kind::BigInt => 20,
        Kind::Double => 701,
        Kind::Boolean => 16,
        Kind::Timestamp => 1114,
        Kind::Bytes => 17,
    }
}
