//! How tables are written: one declarative list of columns per table, from which both databases make their statements.
//!
//! [`DESTINATIONS`] is the mapping from spans to the tables that users read: which spans become rows, the columns, and
//! which of them other spans may complete. `code_exec_logs` is its first entry; the others are written by the same code
//! where `database.tables` names them.

use std::borrow::Cow;

use super::facts::{Facts, Role, SpanId};
use super::records::{Family, Record};
use super::row::{self, Row, Sources};
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
    /// JSON; the value is its text.
    Json,
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
    Json(Option<&'a str>),
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
    /// One of `database.tables`, by its own name.
    Further(&'static str),
    /// `spanledger_<name>`
    Own(&'static str),
}

/// A table that spans become rows of: one entry of the mapping.
pub(super) struct Destination {
    /// As `database.tables` names it.
    pub(super) name: &'static str,
    /// The table.
    pub(super) rows: Table<NewRow>,
    /// The table that says which of the rows are of this program, and where their values came from.
    pub(super) beside: Table<NewRow>,
    /// The columns of [`Row`] in it that other spans may complete later.
    pub(super) completed: &'static [row::Column],
    /// Which spans become rows; of the table of executions, the executions.
    pub(super) families: &'static [Family],
}

impl Destination {
    /// Whether it is the table of executions, whose rows can take over those of their runtimes.
    pub(super) fn is_of_executions(&self) -> bool {
        self.rows.name == TableName::Rows
    }

    /// Whether the span becomes a row of this table.
    pub(super) fn takes(&self, facts: &Facts) -> bool {
        if self.is_of_executions() {
            return matches!(facts.told.role, Role::Execution(_));
        }
        let record = facts.told.record.as_ref();
        record.is_some_and(|record| self.families.contains(&record.family))
    }

    /// The `created_at` of the row that the span becomes, Unix nanoseconds; `None` if it becomes none.
    pub(super) fn created_at(&self, facts: &Facts) -> Option<u64> {
        match (&facts.told.role, &facts.told.record) {
            (Role::Execution(execution), _) if self.is_of_executions() => Some(execution.created_at),
            (_, Some(record)) if !self.is_of_executions() => Some(record.created_at),
            _ => None,
        }
    }

    /// The mask of the columns that may be completed.
    pub(super) fn mask(&self) -> i32 {
        self.completed.iter().map(|column| column.bit()).sum()
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Destination) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

/// A new row with what is written beside it.
#[derive(Debug, Clone)]
pub(super) struct NewRow {
    pub(super) destination: &'static Destination,
    pub(super) id: SpanId,
    pub(super) row: Row,
    pub(super) sources: Sources,
    pub(super) details: Details,
    /// The rows that stood for its runtimes, if there are such rows, by id and `created_at`: see [`super::standalone`].
    pub(super) replaces: Vec<(String, u64)>,
    /// The row that it took over: noted beside that row and beside the execution.
    pub(super) alias_of: Option<String>,
}

/// What a row holds besides what all tables share.
#[derive(Debug, Clone)]
pub(super) enum Details {
    /// Of `code_exec_logs`: what is held beside the row.
    Execution(Beside),
    /// Of a further table.
    Record(Box<Record>),
}

/// What the side table holds of an execution: what the columns have no place for.
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

fn beside<'a, T>(new: &'a NewRow, part: impl FnOnce(&'a Beside) -> T) -> Option<T> {
    match &new.details {
        Details::Execution(beside) => Some(part(beside)),
        Details::Record(_) => None,
    }
}

fn record<'a, T>(new: &'a NewRow, part: impl FnOnce(&'a Record) -> Option<T>) -> Option<T> {
    match &new.details {
        Details::Execution(_) => None,
        Details::Record(record) => part(record),
    }
}

fn nanos_beside(new: &NewRow, part: fn(&Beside) -> u64) -> Value<'static> {
    Value::BigInt(beside(new, part).map(nanos))
}

fn text_of(new: &NewRow, part: fn(&Record) -> &Option<String>) -> Value<'_> {
    Value::Text(record(new, |record| part(record).as_deref()).map(Cow::Borrowed))
}

/// For what may not be NULL.
fn text_or_unknown(new: &NewRow, part: fn(&Record) -> &Option<String>) -> Value<'_> {
    known(record(new, |record| part(record).as_deref()).unwrap_or(row::UNKNOWN))
}

fn integer_of(new: &NewRow, part: fn(&Record) -> Option<i32>) -> Value<'static> {
    Value::Integer(record(new, part))
}

fn json_of(new: &NewRow, part: fn(&Record) -> &Option<String>) -> Value<'_> {
    Value::Json(record(new, |record| part(record).as_deref()))
}

/// Side table of a further table.
macro_rules! own_rows {
    ($name:literal) => {
        Table {
            name: TableName::Own($name),
            columns: columns! {
                "id" Text |new| known(&new.row.id);
                "created_at" Timestamp |new| Value::Timestamp(new.row.created_at);
                "sources" Text |new| made(new.sources.to_json());
            },
        }
    };
}

/// Everything that is written for users to read.
pub(super) static DESTINATIONS: [Destination; 4] = [
    Destination {
        name: "code_exec_logs",
        // Exactly as the backend that reads it has it.
        rows: Table {
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
        },
        beside: Table {
            name: TableName::Own("executions"),
            columns: columns! {
                "id" Text |new| known(&new.row.id);
                "trace_id" Text |new| made(new.id.trace_hex());
                "span_id" Text |new| made(new.id.span_hex());
                "start_ns" BigInt |new| nanos_beside(new, |beside| beside.start);
                "end_ns" BigInt |new| nanos_beside(new, |beside| beside.end);
                "received_at_ns" BigInt |new| nanos_beside(new, |beside| beside.received_at);
                "created_at" Timestamp |new| Value::Timestamp(new.row.created_at);
                "reported_runtime" Text |new|
                    Value::Text(beside(new, |beside| beside.runtime.as_deref()).flatten().map(Cow::Borrowed));
                "reported_exit_code" Integer |new| Value::Integer(beside(new, |beside| beside.exit_code).flatten());
                "reported_outcome" Text |new|
                    Value::Text(beside(new, |beside| beside.outcome.as_str()).map(Cow::Borrowed));
                "cost_usd" Double |new| Value::Double(beside(new, |beside| beside.cost_usd).flatten());
                "sources" Text |new| made(new.sources.to_json());
                "row_id" Text |new| text(&new.alias_of);
            },
        },
        completed: &row::Column::ALL,
        families: &[],
    },
    // The calls of language models. `rate_per_1k`, `prompt` and `response` are on no span; no span names a code agent.
    Destination {
        name: "model_cost_logs",
        rows: Table {
            name: TableName::Further("model_cost_logs"),
            columns: columns! {
                "id" Text |new| known(&new.row.id);
                "user_id" Text |new| text(&new.row.user_id);
                "workflow_execution_id" Text |new| text(&new.row.workflow_execution_id);
                "node_id" Text |new| text(&new.row.node_id);
                "model_name" Text |new| text_or_unknown(new, |call| &call.model);
                "provider" Text |new| text_or_unknown(new, |call| &call.provider);
                "input_tokens" Integer |new| integer_of(new, |call| Some(call.input_tokens.unwrap_or(0)));
                "output_tokens" Integer |new| integer_of(new, |call| Some(call.output_tokens.unwrap_or(0)));
                "tokens_total" Integer |new| integer_of(new, |call| call.total_tokens);
                "cost_usd" Integer |new| integer_of(new, |call| Some(call.cost_cents.unwrap_or(0)));
                "usd_cost" Double |new| Value::Double(record(new, |call| call.cost_usd));
                "trace_id" Text |new| made(new.id.trace_hex());
                "organization_id" Text |new| text(&new.row.organization_id);
                "workspace_id" Text |new| text(&new.row.workspace_id);
                "timestamp" Timestamp |new| Value::Timestamp(new.row.created_at);
                "created_at" Timestamp |new| Value::Timestamp(new.row.created_at);
            },
        },
        beside: own_rows!("model_cost_logs"),
        completed: &[
            row::Column::OrganizationId,
            row::Column::WorkspaceId,
            row::Column::UserId,
        ],
        families: &[Family::Llm],
    },
    Destination {
        name: "agent_trace_history",
        rows: Table {
            name: TableName::Further("agent_trace_history"),
            columns: columns! {
                "id" Text |new| known(&new.row.id);
                "agent_id" Text |new| text_or_unknown(new, |run| &run.agent_id);
                "flow_id" Text |new| text_of(new, |run| &run.workflow_id);
                "trace_id" Text |new| made(new.id.trace_hex());
                "input_context" Json |new| json_of(new, |run| &run.input);
                "output_summary" Json |new| json_of(new, |run| &run.output);
                "error" Text |new| text(&new.row.error_message);
                "timestamp" Timestamp |new| Value::Timestamp(new.row.created_at);
            },
        },
        beside: own_rows!("agent_trace_history"),
        completed: &[],
        families: &[Family::Agent],
    },
    Destination {
        name: "event_logs",
        rows: Table {
            name: TableName::Further("event_logs"),
            columns: columns! {
                "id" Text |new| known(&new.row.id);
                "user_id" Text |new| text(&new.row.user_id);
                "workspace_id" Text |new| text(&new.row.workspace_id);
                "event_type" Text |new| Value::Text(record(new, |event| Some(event.family.event())).map(Cow::Borrowed));
                "context" Json |new| json_of(new, |event| &event.context);
                "status" Text |new| known(if new.row.success { "success" } else { "error" });
                "latency_ms" Integer |new| Value::Integer(new.row.duration_ms);
                "trace_id" Text |new| made(new.id.trace_hex());
                "timestamp" Timestamp |new| Value::Timestamp(new.row.created_at);
            },
        },
        beside: own_rows!("event_logs"),
        completed: &[row::Column::WorkspaceId, row::Column::UserId],
        families: &[Family::Node, Family::Connector, Family::Agent],
    },
];

/// `code_exec_logs`: the first entry, which is always written.
pub(super) static EXECUTIONS: &Destination = &DESTINATIONS[0];

/// The further tables by the names that `database.tables` may hold.
pub(super) fn further(name: &str) -> Option<&'static Destination> {
    DESTINATIONS[1..].iter().find(|destination| destination.name == name)
}

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
        "facts" Text |facts| made(facts.told.to_json());
        "due_ns" BigInt |facts| Value::BigInt(super::standalone::due(facts));
    },
};

/// A row that the database refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Quarantined {
    /// The table that the row was for: `code_exec_logs`, whatever `database.table` calls it, or one of
    /// `database.tables`.
    pub table: String,
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
        "table_name" Text |set_aside| known(&set_aside.table);
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
