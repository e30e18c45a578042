//! Packed hours ([`crate::columns`]) in a database: what both have in common.

use std::ops::Range;

use super::{Names, StoreError};
use crate::columns;
use crate::ledger::table::{EXECUTIONS, nanos};

/// The packed hours ([`crate::columns`]): how [`crate::ledger::packing`] reads rows and keeps what it made of them. In a
/// transaction, all of it.
#[allow(async_fn_in_trait, reason = "used within this room, with two implementations")]
pub(in crate::ledger) trait Hours {
    /// The hour of the oldest row of this program.
    async fn first_hour(&mut self) -> Result<Option<i64>, StoreError>;
    /// The hour of the latest row of this program in these hours.
    async fn last_hour(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError>;
    /// Which of these hours are not packed, those that follow each other together, latest first.
    async fn unpacked(&mut self, hours: Range<i64>) -> Result<Vec<Range<i64>>, StoreError>;
    /// The first of these hours that is packed.
    async fn first_packed(&mut self, hours: Range<i64>) -> Result<Option<i64>, StoreError>;
    /// Keeps rows of the hour from being committed until the end of the transaction; false if somebody else has it.
    async fn lock_hour(&mut self, hour: i64) -> Result<bool, StoreError>;
    /// The rows of this program of an hour, in the order of time and id, behind `after`; at most `limit`.
    async fn rows_of_hour(
        &mut self,
        hour: i64,
        after: Option<&HourRow>,
        limit: i64,
    ) -> Result<Vec<HourRow>, StoreError>;
    /// The packed parts of an hour, in order.
    async fn hour(&mut self, hour: i64) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Puts these parts in the place of those that are there.
    async fn put_hour(&mut self, hour: i64, packed_at: i64, parts: Vec<Vec<u8>>) -> Result<(), StoreError>;
    /// Takes away what was packed of these hours, which are sorted, because their rows change in this transaction.
    async fn unpack(&mut self, hours: &[i64]) -> Result<(), StoreError>;
}

/// A row as it is packed, and its id.
#[derive(Debug, Clone)]
pub(in crate::ledger) struct HourRow {
    pub(in crate::ledger) id: String,
    pub(in crate::ledger) row: columns::Row<Option<String>>,
}

/// Selects what [`Hours::rows_of_hour`] gives, the id and the time first, then in the order of [`columns::Text`] and
/// [`columns::Row`]. Asked with [`bounds`] and the limit, in this order, as the values number 1 to 4 behind `mark`.
/// `is_beside` says when what is beside a row, `e`, is of the row `t`; `whole` makes a number wide.
pub(super) fn rows_of_hour_sql(names: &Names, mark: char, is_beside: &str, whole: impl Fn(&str) -> String) -> String {
    let (rows, beside) = (names.rows(), names.of(EXECUTIONS.beside.name));
    let numbers = ["duration_ms", "memory_mb", "exit_code", "tokens_used"].map(|column| whole(&format!("t.{column}")));
    // The first bound is said again by itself for the index.
    format!(
        "SELECT t.id, t.created_at, t.runtime, t.language, t.code_agent_id, t.organization_id, t.workspace_id, t.user_id, \
         t.node_id, {numbers}, t.success, t.validation_passed, coalesce(e.reported_outcome = 'timeout', false), e.cost_usd \
         FROM {rows} t LEFT JOIN {beside} e ON {is_beside} \
         WHERE {is_own} AND t.created_at >= {mark}1 AND (t.created_at, t.id) > ({mark}1, {mark}2) AND t.created_at < {mark}3 \
         ORDER BY t.created_at, t.id LIMIT {mark}4",
        numbers = numbers.join(", "),
        is_own = columns::IS_OWN,
    )
}

/// Selects what [`Hours::unpacked`] gives, first and end of each. Asked with the first of the hours and their end, as the
/// values number 1 and 2 behind `mark`; `whole` makes a number wide. Not all that are packed are fetched for it: they may be
/// hundreds of thousands.
pub(super) fn unpacked_sql(names: &Names, mark: char, whole: impl Fn(&str) -> String) -> String {
    let (first, end) = (whole(&format!("{mark}1")), whole(&format!("{mark}2")));
    format!(
        "SELECT hour + 1, next FROM (SELECT hour, lead(hour) OVER (ORDER BY hour) AS next FROM \
         (SELECT hour FROM {packed} WHERE part = 0 AND hour >= {first} AND hour < {end} \
         UNION ALL SELECT {first} - 1 UNION ALL SELECT {end}) AS known) AS pairs WHERE next > hour + 1 ORDER BY hour DESC",
        packed = names.own("hours"),
    )
}

/// The time and the id behind which the rows of an hour lie that come `after` one of them, and the time before which; Unix
/// nanoseconds. Every id is behind the empty one.
pub(super) fn bounds(hour: i64, after: Option<&HourRow>) -> (u64, &str, u64) {
    let end = begin_of(hour + 1);
    match after {
        Some(last) => (last.row.at.saturating_mul(1_000).cast_unsigned(), &last.id, end),
        None => (begin_of(hour), "", end),
    }
}

/// When an hour since 1970 begins, Unix nanoseconds.
pub(in crate::ledger) fn begin_of(hour: i64) -> u64 {
    (hour.saturating_mul(columns::HOUR_MICROS).saturating_mul(1_000)).cast_unsigned()
}

/// The hour since 1970 that a time in Unix nanoseconds belongs to.
pub(in crate::ledger) fn hour_at(unix_nanos: u64) -> i64 {
    columns::hour_of(nanos(unix_nanos) / 1_000)
}
