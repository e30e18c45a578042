//! A row of `code_exec_logs`, the columns that have more than one possible source, and where each value came from.
//!
//! # Rules for values
//!
//! * `""` is NULL, and `unknown` for `runtime` and `language`, which may not be NULL; `0` and `false` are values.
//! * A cost that is negative or without end is as good as not given, as for the metrics: it would spoil every sum it is in.
//! * Fractions are rounded half away from zero; what does not fit 32 bits is clamped, and counted in [`Oddities`].
//! * NUL characters are removed: PostgreSQL cannot hold them.
//! * Error text is cut at [`ERROR_LIMIT`] bytes, other text at [`TEXT_LIMIT`], on a character boundary.
//! * An end time nobody can mean is replaced by the time of receipt, and counted.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::rules::quantity;

/// Error text over this many bytes is cut.
pub const ERROR_LIMIT: usize = 8 * 1024;

/// Other text over this many bytes is cut: no id is so long, PostgreSQL's indexes hold 2,704 bytes, and a resource's
/// text is repeated in the row of each of its executions.
pub const TEXT_LIMIT: usize = 1024;

/// What a NOT NULL text column holds when nobody knows better.
pub const UNKNOWN: &str = "unknown";

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const YEAR_2000: u64 = 946_684_800 * NANOS_PER_SECOND;
const ONE_DAY: u64 = 86_400 * NANOS_PER_SECOND;

/// One execution, as the table holds it. The fields are the table's columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "the columns' meaning is documented with the table")]
pub struct Row {
    pub id: String,
    pub code_agent_id: Option<String>,
    pub workflow_execution_id: Option<String>,
    pub node_id: Option<String>,
    pub runtime: String,
    pub language: String,
    pub duration_ms: Option<i32>,
    pub memory_mb: Option<i32>,
    pub exit_code: Option<i32>,
    pub success: bool,
    pub error_message: Option<String>,
    pub tokens_used: Option<i32>,
    pub validation_passed: Option<bool>,
    pub organization_id: Option<String>,
    pub workspace_id: Option<String>,
    pub user_id: Option<String>,
    /// Unix time in nanoseconds, UTC.
    pub created_at: u64,
}

/// A column of the row that more than the execution's own span can fill. The order is the bit in a mask of columns,
/// which the UPDATE statements use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named as the columns are")]
pub enum Column {
    CodeAgentId,
    Runtime,
    MemoryMb,
    ExitCode,
    Success,
    ErrorMessage,
    OrganizationId,
    WorkspaceId,
    UserId,
}

impl Column {
    /// All of them, in the order of their bits.
    pub const ALL: [Column; 9] = [
        Column::CodeAgentId,
        Column::Runtime,
        Column::MemoryMb,
        Column::ExitCode,
        Column::Success,
        Column::ErrorMessage,
        Column::OrganizationId,
        Column::WorkspaceId,
        Column::UserId,
    ];

    /// The column's name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Column::CodeAgentId => "code_agent_id",
            Column::Runtime => "runtime",
            Column::MemoryMb => "memory_mb",
            Column::ExitCode => "exit_code",
            Column::Success => "success",
            Column::ErrorMessage => "error_message",
            Column::OrganizationId => "organization_id",
            Column::WorkspaceId => "workspace_id",
            Column::UserId => "user_id",
        }
    }

    /// The bit of this column in a mask of columns.
    pub fn bit(self) -> i32 {
        1 << self as i32
    }
}

/// Where the value of a column came from. Which source beats which depends on the column: see
/// [`super::assemble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody knows; the column is NULL, or `unknown`.
    #[default]
    None,
    /// An attribute of the execution's own span.
    Execution,
    /// The status of the execution's own span.
    Status,
    /// An exception event of the execution's own span.
    Exception,
    /// `code.has_error` of the execution's own span.
    HasError,
    /// `agent-<id>` in `workflow.id`, or the hook's prefix in `node.id`.
    DerivedId,
    /// The `runtimeRouter.route` span that the execution encloses.
    Router,
    /// The second `code.execute` that the router made, enclosed by the execution.
    Inner,
    /// The runtime's own span (`e2b.execute`, ...), enclosed by the execution.
    RuntimeSpan,
    /// The node span that encloses the execution.
    Node,
    /// The ETL hook span that encloses the execution.
    Hook,
    /// The resource.
    Resource,
    /// `security.namespace` of the execution's own span.
    Namespace,
    /// Nothing says otherwise.
    Default,
    /// A value was known, but a foreign key refused it.
    Refused,
}

impl Source {
    /// As it is stored.
    fn name(self) -> &'static str {
        match self {
            Source::None => "none",
            Source::Execution => "execution",
            Source::Status => "status",
            Source::Exception => "exception",
            Source::HasError => "has_error",
            Source::DerivedId => "derived_id",
            Source::Router => "router",
            Source::Inner => "inner",
            Source::RuntimeSpan => "runtime_span",
            Source::Node => "node",
            Source::Hook => "hook",
            Source::Resource => "resource",
            Source::Namespace => "namespace",
            Source::Default => "default",
            Source::Refused => "refused",
        }
    }
}

/// Where the value of each of [`Column::ALL`] came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources([Source; Column::ALL.len()]);

impl Sources {
    /// The source of `column`.
    pub fn get(&self, column: Column) -> Source {
        self.0[column as usize]
    }

    /// Notes the source of `column`.
    pub fn set(&mut self, column: Column, source: Source) {
        self.0[column as usize] = source;
    }

    /// As a JSON object of the columns that have a source.
    pub fn to_json(self) -> String {
        let mut json = String::with_capacity(256);
        json.push('{');
        for column in Column::ALL {
            let source = self.get(column);
            if source == Source::None {
                continue;
            }
            if json.len() > 1 {
                json.push(',');
            }
            // None of the names needs escaping.
            for part in ["\"", column.name(), "\":\"", source.name(), "\""] {
                json.push_str(part);
            }
        }
        json.push('}');
        json
    }

    /// From what [`Sources::to_json`] made. What cannot be read counts as having no source.
    pub fn from_json(json: &str) -> Sources {
        let mut sources = Sources::default();
        if let Ok(serde_json::Value::Object(object)) = serde_json::from_str(json) {
            for column in Column::ALL {
                let source = object
                    .get(column.name())
                    .and_then(|value| Source::deserialize(value).ok());
                sources.set(column, source.unwrap_or_default());
            }
        }
        sources
    }
}

/// What had to be bent to fit, counted so that it can be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Numbers that did not fit 32 bits.
    pub clamped: u64,
    /// Texts that were cut.
    pub cut: u64,
    /// End times replaced by the time of receipt.
    pub end_times: u64,
    /// Texts from which NUL characters were removed.
    pub nul: u64,
    /// Costs that cannot be: negative, infinite, or over 2^53.
    pub impossible: u64,
}

impl std::ops::AddAssign for Oddities {
    fn add_assign(&mut self, other: Oddities) {
        let Oddities {
            clamped,
            cut,
            end_times,
            nul,
            impossible,
        } = other;
        self.clamped += clamped;
        self.cut += cut;
        self.end_times += end_times;
        self.nul += nul;
        self.impossible += impossible;
    }
}

impl Oddities {
    /// `text` as a column can hold it: without NUL, not too long, and nothing at all when empty.
    pub fn text(&mut self, text: &str) -> Option<String> {
        self.fitting(text, TEXT_LIMIT)
    }

    /// Error text as the column can hold it. The caller has redacted it already: a secret cut in half is not found.
    pub fn error_text(&mut self, text: &str) -> Option<String> {
        self.fitting(text, ERROR_LIMIT)
    }

    fn fitting(&mut self, text: &str, limit: usize) -> Option<String> {
        let text = self.without_nul(text);
        if text.len() > limit {
            self.cut += 1;
        }
        let kept = &text[..text.floor_char_boundary(limit)];
        (!kept.is_empty()).then(|| kept.to_owned())
    }

    /// `number` if it can be how much there was of something; see [`quantity`].
    pub fn quantity(&mut self, number: f64) -> Option<f64> {
        let possible = quantity(number);
        if possible.is_none() && !number.is_nan() {
            self.impossible += 1;
        }
        possible
    }

    /// `number` as a 32-bit column holds it; not a number is nothing.
    pub fn integer(&mut self, number: f64) -> Option<i32> {
        if number.is_nan() {
            return None;
        }
        let rounded = number.round();
        if rounded < f64::from(i32::MIN) || rounded > f64::from(i32::MAX) {
            self.clamped += 1;
        }
        // `as` saturates, which is the clamping meant here.
        Some(rounded as i32)
    }

    /// The end of a span as a row holds it: `end`, unless it is 0, before the year 2000 or over a day ahead of the
    /// time of receipt, which then stands in.
    pub fn end_time(&mut self, end: u64, received_at: u64) -> u64 {
        if end < YEAR_2000 || end > received_at.saturating_add(ONE_DAY) {
            self.end_times += 1;
            return received_at;
        }
        end
    }

    fn without_nul<'a>(&mut self, text: &'a str) -> Cow<'a, str> {
        if !text.as_bytes().contains(&0) {
            return Cow::Borrowed(text);
        }
        self.nul += 1;
        Cow::Owned(text.replace('\0', ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_rounded_half_away_from_zero() {
        let mut odd = Oddities::default();
        for (number, expected) in [
            (0.37, 0),
            (0.5, 1),
            (1.5, 2),
            (2.5, 3),
            (-0.5, -1),
            (-2.5, -3),
            (0.0, 0),
        ] {
            assert_eq!(odd.integer(number), Some(expected), "{number}");
        }
        assert_eq!(odd, Oddities::default());
        assert_eq!(odd.integer(f64::NAN), None);
    }

    #[test]
    fn what_does_not_fit_32_bits_is_clamped_and_counted() {
        let mut odd = Oddities::default();
        assert_eq!(odd.integer(1e12), Some(i32::MAX));
        assert_eq!(odd.integer(-1e12), Some(i32::MIN));
        assert_eq!(odd.integer(f64::INFINITY), Some(i32::MAX));
        assert_eq!(odd.integer(2_147_483_647.0), Some(i32::MAX));
        assert_eq!(odd.clamped, 3);
    }

    #[test]
    fn error_text_is_cut_on_a_character_boundary_and_counted() {
        let mut odd = Oddities::default();
        let long = "é".repeat(ERROR_LIMIT);
        let kept = odd.error_text(&format!("x{long}")).unwrap();
        assert_eq!(kept.len(), ERROR_LIMIT - 1);
        assert_eq!(odd.cut, 1);
        assert_eq!(odd.error_text(""), None);
    }

    #[test]
    fn nul_characters_are_removed_and_nothing_but_nul_is_nothing() {
        let mut odd = Oddities::default();
        assert_eq!(odd.text("a\0b").as_deref(), Some("ab"));
        assert_eq!(odd.text("\0"), None);
        assert_eq!(odd.nul, 2);
    }

    #[test]
    fn an_end_time_nobody_can_mean_is_replaced_by_the_time_of_receipt() {
        let mut odd = Oddities::default();
        let now = 1_800_000_000 * NANOS_PER_SECOND;
        assert_eq!(odd.end_time(now - 5, now), now - 5);
        assert_eq!(odd.end_time(now + ONE_DAY, now), now + ONE_DAY);
        for end in [0, YEAR_2000 - 1, now + ONE_DAY + 1] {
            assert_eq!(odd.end_time(end, now), now);
        }
        assert_eq!(odd.end_times, 3);
    }

    #[test]
    fn sources_survive_their_json() {
        let mut sources = Sources::default();
        sources.set(Column::UserId, Source::Node);
        sources.set(Column::Runtime, Source::Router);
        let json = sources.to_json();
        assert_eq!(json, r#"{"runtime":"router","user_id":"node"}"#);
        for source in [
            Source::HasError,
            Source::DerivedId,
            Source::RuntimeSpan,
            Source::Refused,
            Source::Namespace,
        ] {
            let written = serde_json::to_string(&source).unwrap();
            assert_eq!(written, format!("\"{}\"", source.name()));
        }
        assert_eq!(Sources::from_json(&json), sources);
        assert_eq!(Sources::from_json("garbage"), Sources::default());
    }
}
