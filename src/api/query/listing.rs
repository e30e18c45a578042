//! Rows: of an agent, of a workflow execution, by any filter; one row; one trace.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Datelike as _;
use serde_json::{Value, json};

use super::answer::{ANSWER, Allowance};
use super::database::{Cell, Dialect, Kind, Sql};
use super::filter::{FILTERS, Filter};
use super::parameters::Parameters;
use super::row::{Execution, KINDS, TextColumn};
use super::timestamp::{iso, micros_of, text_of};
use super::{Answer, Asked, QueryApi, QueryError};

/// Rows on one page, unless `limit` says otherwise, and at most.
const PAGE: i64 = 100;
const LARGEST_PAGE: i64 = 1000;

/// The backend's own paths have no pages, so that one answer may hold more.
const LARGEST_LIST: i64 = 10_000;

/// Executions of a trace that are shown, the first ones; what is said of all is said of these.
const LARGEST_TRACE: i64 = 1000;

/// Rows that are looked for together at first. How long they are is not known yet, and what is found beyond a [`PART`] is found
/// for nothing.
const AT_FIRST: i64 = 500;

/// Text of rows that is made before any of it is sent. More than that is asked for when this was taken, so that no query
/// waits for whoever reads the answer.
const PART: usize = ANSWER / 2;

/// What to ask for instead of a trace that is too large.
const PAGES_OF_TRACE: Allowance = Allowance {
    narrow: "ask for the executions of the trace in pages, with /api/v1/code-exec-logs?traceId=",
};

impl QueryApi {
    /// `/code-exec-logs/agent/:agentId`
    pub(super) async fn agent_rows(&self, asked: Asked, agent: String) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let limit = parameters.number("limit", 1, LARGEST_LIST)?.unwrap_or(PAGE);
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Agent, vec![agent]));
        self.list(Rest::of(self, filter, limit)).await
    }

    /// `/code-exec-logs/workflow/:executionId`
    pub(super) async fn workflow_rows(&self, asked: Asked, execution: String) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let limit = parameters.number("limit", 1, LARGEST_LIST)?.unwrap_or(LARGEST_LIST);
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Workflow, vec![execution]));
        self.list(Rest::of(self, filter, limit)).await
    }

    /// `/code-exec-logs`
    pub(super) async fn page(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let limit = parameters.number("limit", 1, LARGEST_PAGE)?.unwrap_or(PAGE);
        let after = parameters
            .one("cursor")?
            .map(|cursor| Cursor::parse(&cursor))
            .transpose()?;
        parameters.finish(&format!("{FILTERS}, limit, cursor"))?;
        self.list(Rest {
            after,
            is_page: true,
            ..Rest::of(self, filter, limit)
        })
        .await
    }

    /// The rows, of which the first part is there when this returns.
    async fn list(&self, mut rows: Rest) -> Result<Answer, QueryError> {
        let mut answer = Answer::list();
        if rows.next_part(&mut answer).await? {
            answer = answer.followed_by(rows);
        }
        Ok(answer)
    }

    /// `SELECT … FROM` the rows as `t` with what is beside them as `e`, `WHERE` they pass the filter. Of `e` only
    /// [`Execution::columns`] are there.
    ///
    /// In SQLite, looking up each of a week's rows in a table of millions takes longer than everything else. So when
    /// the time is bounded, the few rows that have anything to say beside time-outs and costs are taken out first; the
    /// index that the ledger keeps of them holds nothing else.
    pub(super) fn select(&self, columns: &str, filter: &Filter) -> Sql {
        let (rows, beside) = (self.table(), self.beside());
        let mut sql = Sql::new(self.dialect(), "");
        if let (Dialect::Sqlite, Some(from)) = (self.dialect(), &filter.from) {
            sql.push(&format!(
                "WITH e AS MATERIALIZED (SELECT id, reported_outcome, cost_usd FROM {beside} \
                 WHERE (reported_outcome = 'timeout' OR cost_usd IS NOT NULL) AND created_at >= "
            ));
            sql.time(from);
            if let Some(to) = &filter.to {
                sql.push(" AND created_at < ").time(to);
            }
            sql.push(&format!(") SELECT {columns} FROM {rows} t LEFT JOIN e ON e.id = t.id"));
        } else {
            sql.push(&format!(
                "SELECT {columns} FROM {rows} t LEFT JOIN {beside} e ON {}",
                self.dialect().is_beside()
            ));
        }
        filter.to_sql(&mut sql, beside);
        sql
    }

    /// `/code-exec-logs/:id`
    pub(super) async fn one(&self, asked: Asked, id: &str) -> Result<Answer, QueryError> {
        asked.parameters.finish("none")?;
        let filter = Filter::everything(self.shown(), asked.scope);
        let mut found = None;
        self.detailed(
            &filter,
            |sql| _ = sql.push(" AND t.id = ").text(id),
            |row| {
                found = Some(row);
                Ok(())
            },
        )
        .await?;
        found
            .map(Answer::one)
            .ok_or(QueryError::NotFound("there is no such execution"))
    }

    /// `/traces/:traceId`
    pub(super) async fn trace(&self, asked: Asked, trace: &str) -> Result<Answer, QueryError> {
        asked.parameters.finish("none")?;
        let mut filter = Filter::everything(self.shown(), asked.scope);
        let mut wanted = Parameters::parse(Some(&format!("traceId={trace}")))?;
        filter = filter.take(&mut wanted, asked.now)?;
        let mut answer = Answer::list_within("executions");
        let (mut workflows, mut organizations) = (BTreeSet::new(), BTreeSet::new());
        let (mut known, mut failed, mut are_more) = (0, 0, false);
        let mut cost: Option<f64> = None;
        self.detailed(
            &filter,
            // One more than is shown tells whether there are more.
            |sql| _ = sql.push(" ORDER BY e.start_ns, t.id LIMIT ").integer(LARGEST_TRACE + 1),
            |row| {
                if known == LARGEST_TRACE {
                    are_more = true;
                    return Ok(());
                }
                known += 1;
                let text = |key: &str| row[key].as_str().map(str::to_owned);
                workflows.extend(text("workflowExecutionId"));
                organizations.extend(text("organizationId"));
                failed += usize::from(row["success"] == false);
                if let Some(more) = row["costUsd"].as_f64() {
                    cost = Some(cost.unwrap_or_default() + more);
                }
                answer.push_within(row, PAGES_OF_TRACE)
            },
        )
        .await?;
        if known == 0 {
            return Err(QueryError::NotFound("no execution of this trace is known"));
        }
        let trace = trace.to_ascii_lowercase();
        let link = self
            .signoz_url()
            .map(|base| format!("{}/trace/{trace}", base.trim_end_matches('/')));
        let mut beside = vec![
            ("traceId", trace.into()),
            ("signozUrl", link.into()),
            ("workflowExecutionIds", workflows.into_iter().collect()),
            ("organizationIds", organizations.into_iter().collect()),
            ("failed", failed.into()),
            ("costUsd", cost.into()),
        ];
        if are_more {
            beside.push(("truncated", true.into()));
        }
        Ok(answer.listed_beside(&beside))
    }

    /// Shows `take` rows with everything that is known of them.
    async fn detailed(
        &self,
        filter: &Filter,
        rest: impl FnOnce(&mut Sql),
        mut take: impl FnMut(Value) -> Result<(), QueryError> + Send,
    ) -> Result<(), QueryError> {
        let columns = Execution::columns(self.dialect());
        let (rows, beside) = (self.table(), self.beside());
        let mut sql = Sql::new(
            self.dialect(),
            format!(
                "SELECT {columns}, e.start_ns, e.end_ns, e.received_at_ns, e.reported_runtime, {}, e.reported_outcome, \
                 e.sources FROM {rows} t LEFT JOIN {beside} e ON {}",
                self.dialect().integer("e.reported_exit_code"),
                self.dialect().is_beside()
            ),
        );
        filter.to_sql(&mut sql, beside);
        rest(&mut sql);
        let more = [
            Kind::Integer,
            Kind::Integer,
            Kind::Integer,
            Kind::Text,
            Kind::Integer,
            Kind::Text,
            Kind::Text,
        ];
        let kinds: Vec<Kind> = KINDS.into_iter().chain(more).collect();
        let read = |mut cells: Vec<Cell>| {
            let mut beside = cells.split_off(KINDS.len()).into_iter();
            let row = Execution::read(cells)?;
            let mut next = || beside.next().unwrap_or_default();
            let (start, end, received) = (next().integer(), next().integer(), next().integer());
            let (runtime, exit_code) = (next().into_text(), next().integer());
            let (outcome, sources) = (next().into_text(), next().into_text());
            let sources: Option<Value> = sources.and_then(|json| serde_json::from_str(&json).ok());
            let mut value = row.to_full_json(self.signoz_url());
            if let Value::Object(object) = &mut value {
                let span = start.zip(end).map(|(start, end)| {
                    json!({
                        "startTime": nanos_iso(start),
                        "endTime": nanos_iso(end),
                        // Too large for a JavaScript number, so as text.
                        "startTimeUnixNano": start.to_string(),
                        "endTimeUnixNano": end.to_string(),
                        "durationMs": (end - start) as f64 / 1e6,
                    })
                });
                object.insert("span".to_owned(), span.into());
                object.insert("receivedAt".to_owned(), received.map(nanos_iso).into());
                object.insert(
                    "reported".to_owned(),
                    json!({"runtime": runtime, "exitCode": exit_code, "outcome": outcome}),
                );
                object.insert("sources".to_owned(), camel_keys(sources));
            }
            Some(value)
        };
        self.database()
            .each(sql, &kinds, |cells| read(cells).map_or(Ok(()), &mut take))
            .await
    }
}

/// What of a list of rows is still to be asked for, newest first.
pub(super) struct Rest {
    api: QueryApi,
    filter: Filter,
    after: Option<Cursor>,
    /// Rows that may still come.
    left: i64,
    /// Rows that are looked for together, so that none are put in order for nothing.
    at_once: i64,
    /// Rows of pages have everything beside them, and there may be a next page; the others are as the backend lists them.
    is_page: bool,
}

impl fmt::Debug for Rest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("Rest");
        shown.field("filter", &self.filter).field("left", &self.left);
        shown.finish_non_exhaustive()
    }
}

impl Rest {
    /// All of the first `limit` rows, as the backend lists them.
    fn of(api: &QueryApi, filter: Filter, limit: i64) -> Rest {
        Rest {
            api: api.clone(),
            filter,
            after: None,
            left: limit,
            at_once: AT_FIRST,
            is_page: false,
        }
    }

    /// Adds rows to `answer`, and its end when these were the last. Whether there is another part.
    pub(super) async fn next_part(&mut self, answer: &mut Answer) -> Result<bool, QueryError> {
        let mut are_more = true;
        while are_more && self.left > 0 {
            if answer.len() >= PART {
                return Ok(true);
            }
            are_more = self.look(answer).await?;
        }
        answer.end_list();
        if self.is_page {
            let next = self.after.as_ref().filter(|_| are_more).map(Cursor::to_string);
            answer.add("nextCursor", &next.into());
        }
        Ok(false)
    }

    /// Looks for rows once, and adds them to `answer`. Whether there are more.
    async fn look(&mut self, answer: &mut Answer) -> Result<bool, QueryError> {
        let dialect = self.api.dialect();
        let mut sql = self.api.select(&Execution::columns(dialect), &self.filter);
        if let Some(cursor) = &self.after {
            // The first condition says nothing new, but an index on the time alone can serve it.
            sql.push(" AND t.created_at <= ").time(&cursor.created_at);
            sql.push(" AND (t.created_at, t.id) < (")
                .time(&cursor.created_at)
                .push(", ")
                .text(&cursor.id)
                .push(")");
        }
        let wanted = self.left.min(self.at_once);
        // One more than wanted tells whether there are more.
        sql.push(" ORDER BY t.created_at DESC, t.id DESC LIMIT ")
            .integer(wanted + 1);
        let (mut seen, mut taken) = (0, 0);
        let mut are_more = false;
        let database = self.api.database().clone();
        database
            .each_until(sql, &KINDS, |cells| {
                seen += 1;
                if seen > wanted {
                    // It is the last one that was asked for.
                    are_more = true;
                    return Ok(ControlFlow::Continue(()));
                }
                let Some(row) = Execution::read(cells) else {
                    return Ok(ControlFlow::Continue(()));
                };
                if answer.len() >= PART {
                    are_more = true;
                    return Ok(ControlFlow::Break(()));
                }
                answer.push(if self.is_page {
                    row.to_full_json(self.api.signoz_url())
                } else {
                    row.to_json()
                });
                taken += 1;
                self.after = Some(Cursor::after(row));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        // Of so many none could be read: they are looked for once more with those behind them, as long as that may be.
        let are_lost = taken == 0 && wanted == self.left;
        self.at_once = 2 * if taken > 0 { taken } else { wanted };
        self.left -= taken;
        Ok(are_more && !are_lost)
    }
}

/// Columns as clients name them.
fn camel_keys(sources: Option<Value>) -> Value {
    let Some(Value::Object(sources)) = sources else {
        return Value::Null;
    };
    sources
        .into_iter()
        .map(|(column, source)| (camel(&column), source))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let (head, tail) = word.split_at_checked(1).unwrap_or((word, ""));
        name.push_str(&head.to_ascii_uppercase());
        name.push_str(tail);
        name
    })
}

fn nanos_iso(nanos: i64) -> String {
    iso(&text_of(nanos.div_euclid(1_000)))
}

/// After which row a page begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cursor {
    created_at: String,
    id: String,
}

impl Cursor {
    fn after(row: Execution) -> Cursor {
        Cursor {
            created_at: row.created_at,
            id: row.id,
        }
    }

    fn parse(text: &str) -> Result<Cursor, QueryError> {
        let wrong = || QueryError::invalid("cursor", "is not one that an answer gave as nextCursor");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (created_at, id) = text.split_once('|').ok_or_else(wrong)?;
        // What is bound as a time has to be one: PostgreSQL would complain of anything else.
        let looks_right = created_at.len() >= 10
            && created_at
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b"-: .".contains(&byte))
            && chrono::NaiveDate::parse_from_str(created_at.get(..10).unwrap_or_default(), "%Y-%m-%d")
                .is_ok_and(|date| (1..=9999).contains(&date.year()))
            && (created_at.len() == 10 || micros_of(created_at).is_some())
            && !id.contains('\0');
        if !looks_right {
            return Err(wrong());
        }
        Ok(Cursor {
            created_at: created_at.to_owned(),
            id: id.to_owned(),
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64_URL_SAFE_NO_PAD.encode(format!("{}|{}", self.created_at, self.id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_and_nothing_else_is_one() {
        let cursor = Cursor {
            created_at: "2026-01-31 12:00:00.123456".to_owned(),
            id: "a|b".to_owned(),
        };
        assert_eq!(Cursor::parse(&cursor.to_string()).unwrap(), cursor);
        for wrong in [
            "",
            "x",
            "!!",
            &BASE64_URL_SAFE_NO_PAD.encode("2026|a"),
            &BASE64_URL_SAFE_NO_PAD.encode("x; y|a"),
            // PostgreSQL has no such year.
            &BASE64_URL_SAFE_NO_PAD.encode("0000-01-31|a"),
            &BASE64_URL_SAFE_NO_PAD.encode("0000-01-31 12:00:00.123456|a"),
        ] {
            assert!(Cursor::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn columns_are_named_as_clients_name_them() {
        assert_eq!(camel("workflow_execution_id"), "workflowExecutionId");
        assert_eq!(camel("runtime"), "runtime");
    }
}
