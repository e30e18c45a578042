//! How tables are written: one declarative list of columns per table, from which both databases make their statements.

use std::borrow::Cow;

use super::facts::{Facts, SpanId};
use super::row::{Row, Sources};
use crate::rules::semantics::Outcome;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    BigInt,
    Double,
    Boolean,
    /// UTC without a time zone; the value is in Unix nanoseconds.
    Timestamp,
    Bytes,
}

/// The value of a column of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Integer(Option<i32>),
    BigInt(Option<i64>),
    Double(Option<f64>),
    Boolean(Option<bool>),
    Timestamp(u64),
    Bytes(&'a [u8]),
}

/// A column, and how its value is found in what one row is made of.
pub(super) struct Column<T: 'static> {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) value: for<'a> fn(&'a T) -> Value<'a>,
}

/// A table that rows are inserted into; a row that is already there stays as it is.
pub(super) struct Table<T: 'static> {
    pub(super) name: TableName,
    pub(super) columns: &'static [Column<T>],
}

/// Which table: the names are configurable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableName {
    /// `database.table`
    Rows,
    /// `spanledger_<name>`
    Own(&'static str),
}

/// A new row with what is written beside it.
#[derive(Debug, Clone)]
pub(super) struct NewRow {
    pub(super) id: SpanId,
    pub(super) row: Row,
    pub(super) sources: Sources,
    pub(super) beside: Beside,
    /// Ids of rows that stood for its runtimes, if there are such rows: see [`super::standalone`].
    pub(super) replaces: Vec<String>,
    /// The row that it took over; then this is only noted beside.
    pub(super) alias_of: Option<String>,
}

/// What the side table holds of a row: what the columns have no place for.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) received_at: u64,
    /// As the execution's own span reported it: the row may know better.
    pub(super) runtime: Option<String>,
    /// As the execution's own span reported it.
    pub(super) exit_code: Option<i32>,
    pub(super) outcome: Outcome,
    pub(super) cost_usd: Option<f64>,
}

/// Nanoseconds as the columns hold them, which are signed.
pub(super) fn nanos(unix_nanos: u64) -> i64 {
    i64::try_from(unix_nanos).unwrap_or(i64::MAX)
}

fn text(value: &Option<String>) -> Value<'_> {
    Value::Text(value.as_deref().map(Cow::Borrowed))
}

fn known(value: &str) -> Value<'_> {
    Value::Text(Some(Cow::Borrowed(value)))
}

fn made(value: String) -> Value<'static> {
    Value::Text(Some(Cow::Owned(value)))
}

fn big(unix_nanos: u64) -> Value<'static> {
    Value::BigInt(Some(nanos(unix_nanos)))
}

macro_rules! columns {
    ($($name:literal $kind:ident |$row:ident| $value:expr;)*) => {
        &[$(Column { name: $name, kind: Kind::$kind, value: |$row| $value },)*]
    };
}

/// `code_exec_logs`, exactly as the backend that reads it has it.
pub(super) static ROWS: Table<NewRow> = Table {
    name: TableName::Rows,
    columns: columns! {
        "id" Text |new| known(&new.row.id);
        "code_agent_id" Text |new| text(&new.row.code_agent_id);
        "workflow_execution_id" Text |new| text(&new.row.workflow_execution_id);
        "node_id" Text |new| text(&new.row.node_id);
        "runtime" Text |new| known(&new.row.runtime);
        "language" Text |new| known(&new.row.language);
        "duration_ms" Integer |new| Value::Integer(new.row.duration_ms);
        "memory_mb" Integer |new| Value::Integer(new.row.memory_mb);
        "exit_code" Integer |new| Value::Integer(new.row.exit_code);
        "success" Boolean |new| Value::Boolean(Some(new.row.success));
        "error_message" Text |new| text(&new.row.error_message);
        "tokens_used" Integer |new| Value::Integer(new.row.tokens_used);
        "validation_passed" Boolean |new| Value::Boolean(new.row.validation_passed);
        "organization_id" Text |new| text(&new.row.organization_id);
        "workspace_id" Text |new| text(&new.row.workspace_id);
        "user_id" Text |new| text(&new.row.user_id);
        "created_at" Timestamp |new| Value::Timestamp(new.row.created_at);
    },
};

/// `spanledger_executions`: one beside each row.
pub(super) static EXECUTIONS: Table<NewRow> = Table {
    name: TableName::Own("executions"),
    columns: columns! {
        "id" Text |new| known(&new.row.id);
        "trace_id" Text |new| made(new.id.trace_hex());
        "span_id" Text |new| made(new.id.span_hex());
        "start_ns" BigInt |new| big(new.beside.start);
        "end_ns" BigInt |new| big(new.beside.end);
        "received_at_ns" BigInt |new| big(new.beside.received_at);
        "created_at" Timestamp |new| Value::Timestamp(new.row.created_at);
        "reported_runtime" Text |new| text(&new.beside.runtime);
        "reported_exit_code" Integer |new| Value::Integer(new.beside.exit_code);
        "reported_outcome" Text |new| known(new.beside.outcome.as_str());
        "cost_usd" Double |new| Value::Double(new.beside.cost_usd);
        "sources" Text |new| made(new.sources.to_json());
        "row_id" Text |new| text(&new.alias_of);
    },
};

/// `spanledger_context`: spans whose partners may still come.
pub(super) static CONTEXT: Table<Facts> = Table {
    name: TableName::Own("context"),
    columns: columns! {
        "trace_id" Bytes |facts| Value::Bytes(&facts.id.trace);
        "span_id" Bytes |facts| Value::Bytes(&facts.id.span);
        "node_hash" BigInt |facts| Value::BigInt(facts.node_hash());
        "start_ns" BigInt |facts| big(facts.start);
        "end_ns" BigInt |facts| big(facts.end);
        "received_at_ns" BigInt |facts| big(facts.received_at);
        "facts" Text |facts| Value::Text(serde_json::to_string(&facts.told).ok().map(Cow::Owned));
        "due_ns" BigInt |facts| Value::BigInt(super::standalone::due(facts));
    },
};

/// A row that the database refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Quarantined {
    /// The id the row would have.
    pub id: String,
    /// What the database said.
    pub reason: String,
    /// The row as JSON, to look at.
    pub row: String,
    /// The execution's facts as JSON, to try again from.
    pub(super) facts: String,
    pub(super) span: SpanId,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) received_at: u64,
    /// When it was set aside, Unix nanoseconds.
    pub at: u64,
}

/// `spanledger_quarantine`: rows that the database refused.
pub(super) static QUARANTINE: Table<Quarantined> = Table {
    name: TableName::Own("quarantine"),
    columns: columns! {
        "id" Text |set_aside| known(&set_aside.id);
        "reason" Text |set_aside| known(&set_aside.reason);
        "row_json" Text |set_aside| known(&set_aside.row);
        "facts" Text |set_aside| known(&set_aside.facts);
        "trace_id" Bytes |set_aside| Value::Bytes(&set_aside.span.trace);
        "span_id" Bytes |set_aside| Value::Bytes(&set_aside.span.span);
        "start_ns" BigInt |set_aside| big(set_aside.start);
        "end_ns" BigInt |set_aside| big(set_aside.end);
        "received_at_ns" BigInt |set_aside| big(set_aside.received_at);
        "quarantined_at" Timestamp |set_aside| Value::Timestamp(set_aside.at);
    },
};

/// The class of the advisory locks for a table of rows.
pub(super) fn lock_class(table: &str) -> i32 {
    super::world::stable_hash(&[b"spanledger", table.as_bytes()]) as i32
}
