//! Which rows are asked for: read from parameters, said in SQL, and asked of a row at hand (for live rows).

use chrono::{DateTime, NaiveDate, Utc};

use super::QueryError;
use super::database::{Dialect, Sql};
use super::parameters::Parameters;
use super::row::{Execution, Outcome, TextColumn};
use super::timestamp::text_of;
use crate::columns::IS_OWN;

/// The parameters that every path with filters knows.
pub(super) const FILTERS: &str = "from, to, runtime, language, outcome, agentId, organizationId, workspaceId, userId, \
                                  workflowExecutionId, nodeId, traceId, exitCode, minDurationMs, maxDurationMs, q";

/// Rows are those this program wrote, or all of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowsShown {
    /// Rows of this program. It knows them by their ids: 32 hexadecimal digits of the trace, `-`, 16 of the span.
    #[default]
    Own,
    /// Every row of the table.
    All,
}

/// Which rows are asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Filter {
    /// From this time on, as `YYYY-MM-DD HH:MM:SS.ffffff`.
    pub(super) from: Option<String>,
    /// Before this time.
    pub(super) to: Option<String>,
    /// One of these values, of each column named.
    pub(super) texts: Vec<(TextColumn, Vec<String>)>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) traces: Vec<String>,
    pub(super) exit_codes: Vec<i64>,
    pub(super) min_duration: Option<i64>,
    pub(super) max_duration: Option<i64>,
    /// Found in the error message or one of the ids, whatever its case.
    pub(super) text: Option<String>,
    /// The only organization that the caller may see.
    pub(super) scope: Option<String>,
    pub(super) shown: RowsShown,
}

impl Filter {
    /// Everything that a caller of `scope` may see.
    pub(super) fn everything(shown: RowsShown, scope: Option<String>) -> Filter {
        Filter {
            shown,
            scope,
            ..Filter::default()
        }
    }

    /// Takes the filters of `parameters`.
    pub(super) fn take(mut self, parameters: &mut Parameters, now: DateTime<Utc>) -> Result<Filter, QueryError> {
        self.from = parameters
            .one("from")?
            .map(|text| time("from", &text, now))
            .transpose()?;
        self.to = parameters.one("to")?.map(|text| time("to", &text, now)).transpose()?;
        for column in TextColumn::ALL {
            let values = parameters.all(column.parameter());
            if !values.is_empty() {
                self.texts.push((column, values));
            }
        }
        for value in parameters.all("outcome") {
            let outcome = Outcome::parse(&value)
                .ok_or_else(|| QueryError::invalid("outcome", "is not success, error or timeout"))?;
            self.outcomes.push(outcome);
        }
        for value in parameters.all("traceId") {
            let value = value.to_ascii_lowercase();
            if value.len() != 32 || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(QueryError::invalid("traceId", "is not 32 hexadecimal digits"));
            }
            self.traces.push(value);
        }
        for value in parameters.all("exitCode") {
            let code = value
                .parse()
                .map_err(|_| QueryError::invalid("exitCode", "is not a whole number"))?;
            self.exit_codes.push(code);
        }
        self.min_duration = parameters.number("minDurationMs", 0, i64::MAX)?;
        self.max_duration = parameters.number("maxDurationMs", 0, i64::MAX)?;
        self.text = parameters.one("q")?;
        Ok(self)
    }

    /// Without the values of `column`: to count what else could be chosen there.
    pub(super) fn without(&self, column: TextColumn) -> Filter {
        let mut other = self.clone();
        other.texts.retain(|(filtered, _)| *filtered != column);
        other
    }

    /// ` WHERE …` over the rows as `t` and what is beside them as `e`. `beside` is the table of the latter.
    pub(super) fn to_sql(&self, sql: &mut Sql, beside: &str) {
        let dialect = sql.dialect;
        let mut sql = Conditions { sql, first: true };
        if self.shown == RowsShown::Own {
            sql.next().push(IS_OWN);
        }
        if let Some(organization) = &self.scope {
            sql.next().push("t.organization_id = ").text(organization);
        }
        // The ids of a trace lead to fewer rows than any time does.
        let created_at = dialect.unindexed(!self.traces.is_empty(), "t.created_at");
        if let Some(from) = &self.from {
            sql.next().push(&created_at).push(" >= ").time(from);
        }
        if let Some(to) = &self.to {
            sql.next().push(&created_at).push(" < ").time(to);
        }
        for (column, values) in &self.texts {
            let column = dialect.unindexed(column.has_few_values(), &format!("t.{}", column.name()));
            sql.next().push(&column).push(" IN ").texts(values);
        }
        if !self.outcomes.is_empty() {
            let wanted: Vec<_> = self
                .outcomes
                .iter()
                .map(|outcome| outcome.as_str().to_owned())
                .collect();
            // The plain column first: it is cheaper, and all there is to ask when successes are wanted alone.
            match self.outcomes[..] {
                [Outcome::Success] => _ = sql.next().push(&dialect.unindexed(true, "t.success")),
                _ if !self.outcomes.contains(&Outcome::Success) => {
                    sql.next()
                        .push("NOT t.success AND ")
                        .push(&outcome_sql(dialect))
                        .push(" IN ")
                        .texts(&wanted);
                }
                _ => _ = sql.next().push(&outcome_sql(dialect)).push(" IN ").texts(&wanted),
            }
        }
        if !self.traces.is_empty() {
            // The ids of one trace are a range. In PostgreSQL the side table compares ids byte by byte, the rows' table
            // may not. Its index serves only if they are compared as it does.
            let (begin, id) = match dialect {
                Dialect::Sqlite => ("(".to_owned(), "t.id"),
                Dialect::Postgres => (
                    format!("t.id IN (SELECT id COLLATE \"default\" FROM {beside} WHERE "),
                    "id",
                ),
            };
            sql.next().push(&begin);
            for (index, trace) in self.traces.iter().enumerate() {
                sql.sql.push(if index > 0 { " OR (" } else { "(" });
                sql.sql.push(id).push(" > ").text(format!("{trace}-"));
                sql.sql.push(" AND ").push(id).push(" < ").text(format!("{trace}."));
                sql.sql.push(")");
            }
            sql.sql.push(")");
        }
        if !self.exit_codes.is_empty() {
            sql.next().push("t.exit_code IN (");
            for (index, code) in self.exit_codes.iter().enumerate() {
                if index > 0 {
                    sql.sql.push(", ");
                }
                sql.sql.integer(*code);
            }
            sql.sql.push(")");
        }
        if let Some(least) = self.min_duration {
            sql.next().push("t.duration_ms >= ").integer(least);
        }
        if let Some(most) = self.max_duration {
            sql.next().push("t.duration_ms <= ").integer(most);
        }
        if let Some(text) = &self.text {
            let pattern = format!(
                "%{}%",
                text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
            );
            sql.next().push("(");
            for (index, column) in SEARCHED.iter().enumerate() {
                let or = if index > 0 { " OR t." } else { "t." };
                sql.sql
                    .push(or)
                    .push(column)
                    .push(" ")
                    .push(dialect.like())
                    .push(" ")
                    .text(pattern.as_str());
                sql.sql.push(" ESCAPE '\\'");
            }
            sql.sql.push(")");
        }
        sql.finish();
    }

    /// Whether the row is one of those asked for.
    pub(super) fn matches(&self, row: &Execution) -> bool {
        let among = |value: Option<&str>, values: &[String]| {
            value.is_some_and(|value| values.iter().any(|wanted| wanted == value))
        };
        let found = |text: &str| {
            let text = text.to_ascii_lowercase();
            SEARCHED.iter().any(|column| {
                let value = row.text_by_name(column);
                value.is_some_and(|value| value.to_ascii_lowercase().contains(&text))
            })
        };
        (self.shown == RowsShown::All || row.is_own())
            && self
                .scope
                .as_deref()
                .is_none_or(|scope| row.organization_id.as_deref() == Some(scope))
            && self.from.as_ref().is_none_or(|from| row.created_at >= *from)
            && self.to.as_ref().is_none_or(|to| row.created_at < *to)
            && self
                .texts
                .iter()
                .all(|(column, values)| among(row.text_by_name(column.name()), values))
            && (self.outcomes.is_empty() || self.outcomes.contains(&row.outcome))
            && (self.traces.is_empty() || among(row.trace_id(), &self.traces))
            && (self.exit_codes.is_empty() || row.exit_code.is_some_and(|code| self.exit_codes.contains(&code)))
            && self
                .min_duration
                .is_none_or(|least| row.duration_ms.is_some_and(|took| took >= least))
            && self
                .max_duration
                .is_none_or(|most| row.duration_ms.is_some_and(|took| took <= most))
            && self.text.as_deref().is_none_or(found)
    }
}

/// Where `q` looks.
const SEARCHED: [&str; 5] = [
    "error_message",
    "id",
    "node_id",
    "workflow_execution_id",
    "code_agent_id",
];

/// The outcome of a row: whether it succeeded the row knows best; whether a failure was a time-out the span said.
pub(super) fn outcome_sql(dialect: Dialect) -> String {
    let like = dialect.like();
    format!(
        "CASE WHEN t.success THEN 'success' WHEN e.reported_outcome = 'timeout' \
         OR (length(t.id) <> 49 AND t.error_message {like} '%timed out%') THEN 'timeout' ELSE 'error' END"
    )
}

/// Writes `WHERE` and `AND` where they belong.
struct Conditions<'a> {
    sql: &'a mut Sql,
    first: bool,
}

impl Conditions<'_> {
    fn next(&mut self) -> &mut Sql {
        let word = if std::mem::take(&mut self.first) {
            " WHERE "
        } else {
            " AND "
        };
        self.sql.push(word)
    }

    /// So that more conditions can follow with `AND`.
    fn finish(mut self) {
        if self.first {
            self.next().push("1 = 1");
        }
    }
}

/// A moment: RFC 3339, a date, Unix seconds or milliseconds, `now`, or `now-7d` (s, m, h, d, w).
pub(super) fn time(parameter: &'static str, text: &str, now: DateTime<Utc>) -> Result<String, QueryError> {
    let wrong = || {
        QueryError::invalid(
            parameter,
            "is not a time: 2026-01-31T12:00:00Z, 2026-01-31, Unix seconds or milliseconds, now-7d",
        )
    };
    let moment = if let Some(past) = text.strip_prefix("now") {
        let seconds = match past.strip_prefix('-') {
            None if past.is_empty() => 0,
            None => return Err(wrong()),
            Some(past) => {
                let unit = past.chars().last().ok_or_else(wrong)?;
                let number: i64 = past[..past.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
                let unit = match unit {
                    's' => 1,
                    'm' => 60,
                    'h' => 3_600,
                    'd' => 86_400,
                    'w' => 604_800,
                    _ => return Err(wrong()),
                };
                number
                    .checked_mul(unit)
                    .filter(|seconds| (0..=100 * 366 * 86_400).contains(seconds))
                    .ok_or_else(wrong)?
            }
        };
        now - chrono::Duration::seconds(seconds)
    } else if let Ok(number) = text.parse::<i64>() {
        // Seconds until the year 5138, milliseconds since 1973: nobody means the others.
        let moment = if number.unsigned_abs() < 100_000_000_000 {
            DateTime::from_timestamp(number, 0)
        } else {
            DateTime::from_timestamp_millis(number)
        };
        moment.ok_or_else(wrong)?
    } else if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        date.and_time(chrono::NaiveTime::MIN).and_utc()
    } else {
        // A `+` that was not percent-encoded has become a space.
        DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
            .map_err(|_| wrong())?
            .with_timezone(&Utc)
    };
    if !(1..=9999).contains(&chrono::Datelike::year(&moment)) {
        return Err(wrong());
    }
    Ok(text_of(moment.timestamp_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_in_the_forms_that_people_write() {
        let now = DateTime::parse_from_rfc3339("2026-01-31T12:00:00Z")
            .unwrap()
            .with_timezone(&Utc);
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000000"),
            ("2026-01-31T12:00:00.25+02:00", "2026-01-31 10:00:00.250000"),
            ("2026-01-31T12:00:00 02:00", "2026-01-31 10:00:00.000000"),
            ("2026-01-31", "2026-01-31 00:00:00.000000"),
            ("1769860800", "2026-01-31 12:00:00.000000"),
            ("1769860800123", "2026-01-31 12:00:00.123000"),
            ("now", "2026-01-31 12:00:00.000000"),
            ("now-90m", "2026-01-31 10:30:00.000000"),
            ("now-1w", "2026-01-24 12:00:00.000000"),
        ] {
            assert_eq!(time("from", text, now).unwrap(), expected, "{text}");
        }
        for wrong in [
            "yesterday",
            "now+1d",
            "now-",
            "now-7y",
            "now-99999999999999999d",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert!(time("from", wrong, now).is_err(), "{wrong}");
        }
    }
}
