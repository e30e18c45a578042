//! Rows: of an agent, of a workflow execution, by any filter; one row; one trace.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::database::{Dialect, Kind, Sql};
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

impl QueryApi {
    /// `/code-exec-logs/agent/:agentId`
    pub(super) async fn agent_rows(&self, asked: Asked, agent: String) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let limit = parameters.number("limit", 1, LARGEST_LIST)?.unwrap_or(PAGE);
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Agent, vec![agent]));
        self.plain_rows(&filter, limit).await
    }

    /// `/code-exec-logs/workflow/:executionId`
    pub(super) async fn workflow_rows(&self, asked: Asked, execution: String) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let limit = parameters.number("limit", 1, LARGEST_LIST)?.unwrap_or(LARGEST_LIST);
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Workflow, vec![execution]));
        self.plain_rows(&filter, limit).await
    }

    async fn plain_rows(&self, filter: &Filter, limit: i64) -> Result<Answer, QueryError> {
        let rows = self.rows(filter, None, limit).await?;
        Ok(Answer::list(rows.iter().map(Execution::to_json).collect()))
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
        let mut rows = self.rows(&filter, after.as_ref(), limit + 1).await?;
        // One more than asked for tells whether there is another page.
        let more = rows.len() as i64 > limit;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|last| Cursor::after(last).to_string());
        let data: Vec<Value> = rows.iter().map(|row| row.to_full_json(self.signoz_url())).collect();
        Ok(Answer::list(data).with("nextCursor", next.into()))
    }

    /// Rows, newest first.
    pub(super) async fn rows(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        limit: i64,
    ) -> Result<Vec<Execution>, QueryError> {
        let mut sql = self.select(&Execution::columns(self.dialect()), filter);
        if let Some(cursor) = after {
            // The first condition says nothing new, but an index on the time alone can serve it.
            sql.push(" AND t.created_at <= ").time(&cursor.created_at);
            sql.push(" AND (t.created_at, t.id) < (")
                .time(&cursor.created_at)
                .push(", ")
                .text(&cursor.id)
                .push(")");
        }
        sql.push(" ORDER BY t.created_at DESC, t.id DESC LIMIT ").integer(limit);
        let rows = self.database().fetch(sql, &KINDS).await?;
        Ok(rows.into_iter().filter_map(Execution::read).collect())
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
        let mut rows = self
            .detailed(&filter, |sql| _ = sql.push(" AND t.id = ").text(id))
            .await?;
        rows.pop()
            .map(Answer::one)
            .ok_or(QueryError::NotFound("there is no such execution"))
    }

    /// `/traces/:traceId`
    pub(super) async fn trace(&self, asked: Asked, trace: &str) -> Result<Answer, QueryError> {
        asked.parameters.finish("none")?;
        let mut filter = Filter::everything(self.shown(), asked.scope);
        let mut wanted = Parameters::parse(Some(&format!("traceId={trace}")))?;
        filter = filter.take(&mut wanted, asked.now)?;
        let rows = self
            .detailed(&filter, |sql| _ = sql.push(" ORDER BY e.start_ns, t.id LIMIT 1000"))
            .await?;
        if rows.is_empty() {
            return Err(QueryError::NotFound("no execution of this trace is known"));
        }
        let trace = trace.to_ascii_lowercase();
        let link = self
            .signoz_url()
            .map(|base| format!("{}/trace/{trace}", base.trim_end_matches('/')));
        let texts = |key: &str| -> Vec<Value> {
            let mut values: Vec<_> = rows.iter().filter_map(|row| row.get(key)?.as_str()).collect();
            values.sort_unstable();
            values.dedup();
            values.into_iter().map(Value::from).collect()
        };
        Ok(Answer::one(json!({
            "traceId": trace,
            "signozUrl": link,
            "workflowExecutionIds": texts("workflowExecutionId"),
            "organizationIds": texts("organizationId"),
            "failed": rows.iter().filter(|row| row["success"] == false).count(),
            "costUsd": rows.iter().filter_map(|row| row["costUsd"].as_f64()).reduce(|a, b| a + b),
            "executions": rows,
        })))
    }

    /// Rows with everything that is known of them.
    async fn detailed(&self, filter: &Filter, rest: impl FnOnce(&mut Sql)) -> Result<Vec<Value>, QueryError> {
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
        let rows = self.database().fetch(sql, &kinds).await?;
        let read = |mut cells: Vec<super::database::Cell>| {
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
        Ok(rows.into_iter().filter_map(read).collect())
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
    fn after(row: &Execution) -> Cursor {
        Cursor {
            created_at: row.created_at.clone(),
            id: row.id.clone(),
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
            && chrono::NaiveDate::parse_from_str(created_at.get(..10).unwrap_or_default(), "%Y-%m-%d").is_ok()
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

impl std::fmt::Display for Cursor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
