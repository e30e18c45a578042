//! A row as it is read and shown.

use serde_json::{Map, Value, json};

use super::database::{Cell, Dialect, Kind};
use super::filter::outcome_sql;
use super::timestamp::iso;

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Success,
    Error,
    Timeout,
}

impl Outcome {
    pub(super) const ALL: [Outcome; 3] = [Outcome::Success, Outcome::Error, Outcome::Timeout];

    pub(super) fn parse(text: &str) -> Option<Outcome> {
        match text {
            "success" => Some(Outcome::Success),
            "error" => Some(Outcome::Error),
            "timeout" => Some(Outcome::Timeout),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Error => "error",
            Outcome::Timeout => "timeout",
        }
    }
}

/// A text column that rows can be filtered and grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextColumn {
    Runtime,
    Language,
    Agent,
    Organization,
    Workspace,
    User,
    Workflow,
    Node,
}

impl TextColumn {
    pub(super) const ALL: [TextColumn; 8] = [
        TextColumn::Runtime,
        TextColumn::Language,
        TextColumn::Agent,
        TextColumn::Organization,
        TextColumn::Workspace,
        TextColumn::User,
        TextColumn::Workflow,
        TextColumn::Node,
    ];

    /// In the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            TextColumn::Runtime => "runtime",
            TextColumn::Language => "language",
            TextColumn::Agent => "code_agent_id",
            TextColumn::Organization => "organization_id",
            TextColumn::Workspace => "workspace_id",
            TextColumn::User => "user_id",
            TextColumn::Workflow => "workflow_execution_id",
            TextColumn::Node => "node_id",
        }
    }

    /// In a query string.
    pub(super) fn parameter(self) -> &'static str {
        match self {
            TextColumn::Runtime => "runtime",
            TextColumn::Language => "language",
            TextColumn::Agent => "agentId",
            TextColumn::Organization => "organizationId",
            TextColumn::Workspace => "workspaceId",
            TextColumn::User => "userId",
            TextColumn::Workflow => "workflowExecutionId",
            TextColumn::Node => "nodeId",
        }
    }

    /// Whether a row of the table is found faster by its time than by this.
    pub(super) fn has_few_values(self) -> bool {
        matches!(self, TextColumn::Runtime | TextColumn::Language)
    }

    /// As the value of `groupBy`.
    pub(super) fn group(self) -> &'static str {
        match self {
            TextColumn::Runtime => "runtime",
            TextColumn::Language => "language",
            TextColumn::Agent => "agent",
            TextColumn::Organization => "organization",
            TextColumn::Workspace => "workspace",
            TextColumn::User => "user",
            TextColumn::Workflow => "workflow",
            TextColumn::Node => "node",
        }
    }
}

/// One row, with what is always read beside it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Execution {
    pub(super) id: String,
    pub(super) code_agent_id: Option<String>,
    pub(super) workflow_execution_id: Option<String>,
    pub(super) node_id: Option<String>,
    pub(super) runtime: String,
    pub(super) language: String,
    pub(super) duration_ms: Option<i64>,
    pub(super) memory_mb: Option<i64>,
    pub(super) exit_code: Option<i64>,
    pub(super) success: bool,
    pub(super) error_message: Option<String>,
    pub(super) tokens_used: Option<i64>,
    pub(super) validation_passed: Option<bool>,
    pub(super) organization_id: Option<String>,
    pub(super) workspace_id: Option<String>,
    pub(super) user_id: Option<String>,
    /// `YYYY-MM-DD HH:MM:SS.ffffff`, UTC.
    pub(super) created_at: String,
    pub(super) outcome: Outcome,
    pub(super) cost_usd: Option<f64>,
}

/// The kinds of what [`Execution::columns`] selects.
pub(super) const KINDS: [Kind; 19] = [
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Boolean,
    Kind::Text,
    Kind::Integer,
    Kind::Boolean,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Real,
];

impl Execution {
    /// What to select of the rows as `t` and what is beside them as `e`.
    pub(super) fn columns(dialect: Dialect) -> String {
        let integer = |column: &str| dialect.integer(column);
        [
            "t.id, t.code_agent_id, t.workflow_execution_id, t.node_id, t.runtime, t.language".to_owned(),
            integer("t.duration_ms"),
            integer("t.memory_mb"),
            integer("t.exit_code"),
            "t.success, t.error_message".to_owned(),
            integer("t.tokens_used"),
            "t.validation_passed, t.organization_id, t.workspace_id, t.user_id".to_owned(),
            dialect.time_text("t.created_at"),
            outcome_sql(dialect),
            "e.cost_usd".to_owned(),
        ]
        .join(", ")
    }

    /// From what [`Execution::columns`] selected. A row without an id or times is none.
    pub(super) fn read(cells: Vec<Cell>) -> Option<Execution> {
        let mut cells = cells.into_iter();
        let mut next = || cells.next().unwrap_or_default();
        Some(Execution {
            id: next().into_text()?,
            code_agent_id: next().into_text(),
            workflow_execution_id: next().into_text(),
            node_id: next().into_text(),
            runtime: next().into_text()?,
            language: next().into_text()?,
            duration_ms: next().integer(),
            memory_mb: next().integer(),
            exit_code: next().integer(),
            success: next().boolean()?,
            error_message: next().into_text(),
            tokens_used: next().integer(),
            validation_passed: next().boolean(),
            organization_id: next().into_text(),
            workspace_id: next().into_text(),
            user_id: next().into_text(),
            created_at: next().into_text()?,
            outcome: Outcome::parse(&next().into_text()?)?,
            cost_usd: next().real(),
        })
    }

    /// Whether this program wrote the row: its id names a trace and a span.
    pub(super) fn is_own(&self) -> bool {
        self.id.len() == 49 && self.id.as_bytes()[32] == b'-'
    }

    /// The trace of a row of this program.
    pub(super) fn trace_id(&self) -> Option<&str> {
        if self.is_own() {
            self.id.split_once('-').map(|(trace, _)| trace)
        } else {
            None
        }
    }

    fn span_id(&self) -> Option<&str> {
        if self.is_own() {
            self.id.split_once('-').map(|(_, span)| span)
        } else {
            None
        }
    }

    /// A text column by its name in the table.
    pub(super) fn text_by_name(&self, column: &str) -> Option<&str> {
        match column {
            "id" => Some(&self.id),
            "runtime" => Some(&self.runtime),
            "language" => Some(&self.language),
            "code_agent_id" => self.code_agent_id.as_deref(),
            "workflow_execution_id" => self.workflow_execution_id.as_deref(),
            "node_id" => self.node_id.as_deref(),
            "error_message" => self.error_message.as_deref(),
            "organization_id" => self.organization_id.as_deref(),
            "workspace_id" => self.workspace_id.as_deref(),
            "user_id" => self.user_id.as_deref(),
            _ => None,
        }
    }

    /// The columns of the table, named as the backend's clients expect them, and nothing else.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "codeAgentId": self.code_agent_id,
            "workflowExecutionId": self.workflow_execution_id,
            "nodeId": self.node_id,
            "runtime": self.runtime,
            "language": self.language,
            "durationMs": self.duration_ms,
            "memoryMb": self.memory_mb,
            "exitCode": self.exit_code,
            "success": self.success,
            "errorMessage": self.error_message,
            "tokensUsed": self.tokens_used,
            "validationPassed": self.validation_passed,
            "organizationId": self.organization_id,
            "workspaceId": self.workspace_id,
            "userId": self.user_id,
            "createdAt": iso(&self.created_at),
        })
    }

    /// The columns, and beside them outcome, trace, cost and the link to SigNoz.
    pub(super) fn to_full_json(&self, signoz_url: Option<&str>) -> Value {
        let mut value = self.to_json();
        if let Value::Object(object) = &mut value {
            self.add_beside(object, signoz_url);
        }
        value
    }

    fn add_beside(&self, object: &mut Map<String, Value>, signoz_url: Option<&str>) {
        let link = match (signoz_url, self.trace_id(), self.span_id()) {
            (Some(base), Some(trace), Some(span)) => {
                Some(format!("{}/trace/{trace}?spanId={span}", base.trim_end_matches('/')))
            }
            _ => None,
        };
        object.insert("outcome".to_owned(), self.outcome.as_str().into());
        object.insert("traceId".to_owned(), self.trace_id().into());
        object.insert("spanId".to_owned(), self.span_id().into());
        object.insert("costUsd".to_owned(), self.cost_usd.into());
        object.insert("signozUrl".to_owned(), link.into());
    }
}
