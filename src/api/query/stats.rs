//! Statistics: the backend's own two, and by any group, over time, by value.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::aggregate::{self, Aggregate};
use super::database::{Cell, Kind, Sql};
use super::filter::{FILTERS, Filter, outcome_sql, time};
use super::row::TextColumn;
use super::{Answer, Asked, QueryApi, QueryError};

/// Groups in one answer, at most: the largest ones.
const LARGEST_GROUPS: i64 = 1000;

/// Buckets in one answer, at most.
const BUCKETS: i64 = 1000;

/// Lengths of buckets that people read easily, in seconds.
const STEPS: [i64; 18] = [
    1, 5, 10, 15, 30, 60, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 604_800, 2_592_000,
];

/// What to group by.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Group {
    Text(TextColumn),
    Outcome,
    ExitCode,
}

impl Group {
    fn parse(text: &str) -> Result<Group, QueryError> {
        let column = TextColumn::ALL
            .into_iter()
            .find(|column| column.group() == text || column.parameter() == text);
        match (column, text) {
            (Some(column), _) => Ok(Group::Text(column)),
            (None, "outcome") => Ok(Group::Outcome),
            (None, "exitCode") => Ok(Group::ExitCode),
            (None, _) => {
                let known: Vec<_> = TextColumn::ALL.iter().map(|column| column.group()).collect();
                let message = format!("is not one of {}, outcome, exitCode", known.join(", "));
                Err(QueryError::invalid("groupBy", &message))
            }
        }
    }

    fn sql(self, sql: &Sql) -> String {
        match self {
            Group::Text(column) => format!("t.{}", column.name()),
            Group::Outcome => outcome_sql(sql.dialect),
            Group::ExitCode => "CAST(t.exit_code AS text)".to_owned(),
        }
    }
}

impl QueryApi {
    /// `/code-exec-logs/agent/:agentId/stats`
    pub(super) async fn agent_stats(&self, asked: Asked, agent: String) -> Result<Answer, QueryError> {
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Agent, vec![agent]));
        let total = self.total(&filter).await?;
        Ok(Answer::one(json!({
            "totalExecutions": total.count,
            "successRate": total.success_rate(),
            "avgDurationMs": total.average_over_all_rows(),
            "totalErrors": total.errors(),
        })))
    }

    /// `/code-agents/analytics`
    pub(super) async fn analytics(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let agent = parameters.one("agentId")?;
        let range = parameters.one("timeRange")?;
        let mut filter = Filter::everything(self.shown(), asked.scope);
        // The backend takes every other range for all time, and its pages rely on it.
        if let Some(range @ ("7d" | "30d" | "90d")) = range.as_deref() {
            filter.from = Some(time("timeRange", &format!("now-{range}"), asked.now)?);
        }
        let everyone = filter.clone();
        if let Some(agent) = &agent {
            filter.texts.push((TextColumn::Agent, vec![agent.clone()]));
        }
        let (groups, days, validation) = tokio::try_join!(
            self.by_runtime_and_language(&filter),
            self.by_day(&filter),
            self.validation(&filter)
        )?;
        let mut total = Aggregate::default();
        let mut runtimes: BTreeMap<String, u64> = BTreeMap::new();
        let mut languages: BTreeMap<String, u64> = BTreeMap::new();
        for ((runtime, language), part) in &groups {
            *runtimes.entry(runtime.clone()).or_default() += part.count;
            *languages.entry(language.clone()).or_default() += part.count;
            total.merge(part);
        }
        let (attempts, failures) = validation;
        let mut stats = json!({
            "totalExecutions": total.count,
            "successRate": total.success_rate(),
            "avgDurationMs": total.average_over_all_rows(),
            "totalErrors": total.errors(),
            "totalTokensUsed": total.tokens,
            "avgMemoryMb": total.average_memory().unwrap_or_default(),
            "executionsByLanguage": languages,
            "executionsByRuntime": runtimes,
            "executionsOverTime": days,
            "latencyP50": total.backend_percentile(0.5),
            "latencyP95": total.backend_percentile(0.95),
            "latencyP99": total.backend_percentile(0.99),
            "validationFailureRate": if attempts == 0 { 0.0 } else { failures as f64 / attempts as f64 },
            "validationAttempts": attempts,
            "validationFailures": failures,
        });
        if agent.is_some() {
            // The share of the organization's executions that reused this registered agent.
            let mut sql = self.select(&self.dialect().integer("count(*)"));
            everyone.to_sql(&mut sql, self.beside());
            let all = self.database().fetch(sql, &[Kind::Integer]).await?;
            let all = all.first().and_then(|row| row[0].integer()).unwrap_or_default();
            let reuse = if all == 0 { 0.0 } else { total.count as f64 / all as f64 };
            stats["registryReuseRate"] = reuse.into();
        }
        // The backend's pages read `stats`; the envelope has `data`.
        Ok(Answer::one(json!({"stats": stats})).with("stats", stats))
    }

    async fn total(&self, filter: &Filter) -> Result<Aggregate, QueryError> {
        let mut sql = self.select(&aggregate::columns(self.dialect()));
        filter.to_sql(&mut sql, self.beside());
        sql.push(" GROUP BY t.duration_ms");
        let mut total = Aggregate::default();
        for row in self.database().fetch(sql, &aggregate::KINDS).await? {
            total.add(&row)?;
        }
        Ok(total)
    }

    async fn by_runtime_and_language(
        &self,
        filter: &Filter,
    ) -> Result<HashMap<(String, String), Aggregate>, QueryError> {
        let columns = aggregate::columns(self.dialect());
        let mut sql = self.select(&format!("t.runtime, t.language, {columns}"));
        filter.to_sql(&mut sql, self.beside());
        sql.push(" GROUP BY t.runtime, t.language, t.duration_ms");
        let kinds: Vec<Kind> = [Kind::Text, Kind::Text].into_iter().chain(aggregate::KINDS).collect();
        let mut groups: HashMap<(String, String), Aggregate> = HashMap::new();
        for row in self.database().fetch(sql, &kinds).await? {
            let text = |cell: &Cell| cell.clone().into_text().unwrap_or_default();
            groups
                .entry((text(&row[0]), text(&row[1])))
                .or_default()
                .add(&row[2..])?;
        }
        Ok(groups)
    }

    /// As the backend lists days: only those with executions, oldest first.
    async fn by_day(&self, filter: &Filter) -> Result<Vec<Value>, QueryError> {
        let day = format!("substr({}, 1, 10)", self.dialect().time_text("t.created_at"));
        let integer = |expression: &str| self.dialect().integer(expression);
        let mut sql = self.select(&format!(
            "{day}, {}, {}",
            integer("count(*)"),
            integer("count(*) FILTER (WHERE t.success)")
        ));
        filter.to_sql(&mut sql, self.beside());
        sql.push(&format!(" GROUP BY {day} ORDER BY {day}"));
        let rows = self
            .database()
            .fetch(sql, &[Kind::Text, Kind::Integer, Kind::Integer])
            .await?;
        let entry = |row: Vec<Cell>| {
            let (count, successes) = (row[1].integer()?, row[2].integer()?);
            Some(json!({
                "date": row.into_iter().next()?.into_text()?,
                "count": count,
                "successCount": successes,
                "errorCount": count - successes,
            }))
        };
        Ok(rows.into_iter().filter_map(entry).collect())
    }

    async fn validation(&self, filter: &Filter) -> Result<(i64, i64), QueryError> {
        let integer = |expression: &str| self.dialect().integer(expression);
        let failures = "count(*) FILTER (WHERE NOT t.validation_passed)";
        let columns = format!("{}, {}", integer("count(t.validation_passed)"), integer(failures));
        let mut sql = self.select(&columns);
        filter.to_sql(&mut sql, self.beside());
        let rows = self.database().fetch(sql, &[Kind::Integer, Kind::Integer]).await?;
        let cell = |index: usize| rows.first().and_then(|row| row[index].integer()).unwrap_or_default();
        Ok((cell(0), cell(1)))
    }

    /// `/code-exec-logs/stats`
    pub(super) async fn stats(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let group = parameters.one("groupBy")?.map(|text| Group::parse(&text)).transpose()?;
        let limit = parameters.number("limit", 1, LARGEST_GROUPS)?.unwrap_or(100);
        parameters.finish(&format!("{FILTERS}, groupBy, limit"))?;
        let Some(group) = group else {
            return Ok(Answer::one(self.total(&filter).await?.to_json()));
        };
        let mut sql = Sql::new(self.dialect(), "");
        let key = group.sql(&sql);
        sql = self.select(&format!("{key}, {}", aggregate::columns(self.dialect())));
        filter.to_sql(&mut sql, self.beside());
        sql.push(&format!(" GROUP BY {key}, t.duration_ms"));
        let kinds: Vec<Kind> = [Kind::Text].into_iter().chain(aggregate::KINDS).collect();
        let mut groups: HashMap<Option<String>, Aggregate> = HashMap::new();
        let mut total = Aggregate::default();
        for mut row in self.database().fetch(sql, &kinds).await? {
            let key = std::mem::take(&mut row[0]).into_text();
            total.add(&row[1..])?;
            groups.entry(key).or_default().add(&row[1..])?;
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by(|(a, x), (b, y)| y.count.cmp(&x.count).then_with(|| a.cmp(b)));
        let known = groups.len();
        groups.truncate(limit as usize);
        let data: Vec<Value> = groups
            .into_iter()
            .map(|(key, aggregate)| {
                let mut value = aggregate.to_json();
                value["key"] = key.into();
                value
            })
            .collect();
        Ok(Answer::list(data)
            .with("total", total.to_json())
            .with("groups", known.into()))
    }

    /// `/code-exec-logs/timeseries`
    pub(super) async fn timeseries(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let mut filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let group = parameters.one("groupBy")?.map(|text| Group::parse(&text)).transpose()?;
        let step = parameters.number("step", 1, 366 * 86_400)?;
        parameters.finish(&format!("{FILTERS}, groupBy, step (seconds)"))?;
        if filter.from.is_none() {
            filter.from = Some(time("from", "now-24h", asked.now)?);
        }
        let from = seconds(filter.from.as_deref()).unwrap_or_default();
        let to = seconds(filter.to.as_deref())
            .unwrap_or(asked.now.timestamp() + 1)
            .max(from + 1);
        let step = step.unwrap_or_else(|| {
            let wanted = (to - from) / 120;
            STEPS
                .into_iter()
                .find(|step| *step >= wanted)
                .unwrap_or(STEPS[STEPS.len() - 1])
        });
        let first = from.div_euclid(step) * step;
        let buckets = (to - first + step - 1) / step;
        if buckets > BUCKETS {
            let message = format!("makes {buckets} buckets; at most {BUCKETS} are answered");
            return Err(QueryError::invalid("step", &message));
        }
        let dialect = self.dialect();
        let epoch = dialect.epoch("t.created_at");
        let bucket = format!("({epoch} / {step}) * {step}");
        let mut sql = Sql::new(dialect, "");
        let key = group.map_or("''".to_owned(), |group| group.sql(&sql));
        sql = self.select(&format!(
            "{key}, {}, {}",
            dialect.integer(&bucket),
            aggregate::columns(dialect)
        ));
        filter.to_sql(&mut sql, self.beside());
        let grouped = if group.is_some() {
            format!("{key}, ")
        } else {
            String::new()
        };
        sql.push(&format!(" GROUP BY {grouped}{bucket}, t.duration_ms"));
        let kinds: Vec<Kind> = [Kind::Text, Kind::Integer]
            .into_iter()
            .chain(aggregate::KINDS)
            .collect();
        let mut series: BTreeMap<Option<String>, BTreeMap<i64, Aggregate>> = BTreeMap::new();
        for mut row in self.database().fetch(sql, &kinds).await? {
            let key = std::mem::take(&mut row[0]).into_text();
            let Some(at) = row[1].integer() else { continue };
            series.entry(key).or_default().entry(at).or_default().add(&row[2..])?;
        }
        let point = |at: i64, aggregate: &Aggregate, key: Option<&Option<String>>| {
            let mut value = aggregate.to_json();
            value["time"] = DateTime::from_timestamp(at, 0)
                .map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
                .into();
            if let Some(key) = key {
                value["key"] = key.clone().into();
            }
            value
        };
        let data: Vec<Value> = if group.is_some() {
            let each = |(key, buckets)| {
                let points = |(at, aggregate): (&i64, &Aggregate)| point(*at, aggregate, Some(key));
                BTreeMap::iter(buckets).map(points).collect::<Vec<_>>()
            };
            series.iter().flat_map(each).collect()
        } else {
            // Without groups every bucket is there, so that a chart needs no filling in.
            let known = series.into_values().next().unwrap_or_default();
            let empty = Aggregate::default();
            let starts = (0..buckets).map(|index| first + index * step);
            starts
                .map(|at| point(at, known.get(&at).unwrap_or(&empty), None))
                .collect()
        };
        Ok(Answer::list(data).with("stepSeconds", step.into()))
    }

    /// `/code-exec-logs/facets`
    pub(super) async fn facets(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let limit = parameters.number("limit", 1, 100)?.unwrap_or(10);
        parameters.finish(&format!("{FILTERS}, limit"))?;
        let mut facets = Map::new();
        let text = TextColumn::ALL.map(|column| (column.parameter(), Group::Text(column)));
        let others = [("outcome", Group::Outcome), ("exitCode", Group::ExitCode)];
        let values = text.into_iter().chain(others).map(|(name, group)| {
            let filter = match group {
                Group::Text(column) => filter.without(column),
                Group::Outcome => Filter {
                    outcomes: Vec::new(),
                    ..filter.clone()
                },
                Group::ExitCode => Filter {
                    exit_codes: Vec::new(),
                    ..filter.clone()
                },
            };
            async move { Ok::<_, QueryError>((name, self.values(group, &filter, limit).await?)) }
        });
        for facet in values {
            let (name, values) = facet.await?;
            facets.insert(name.to_owned(), values);
        }
        Ok(Answer::one(Value::Object(facets)))
    }

    /// The commonest values with their counts.
    async fn values(&self, group: Group, filter: &Filter, limit: i64) -> Result<Value, QueryError> {
        let mut sql = Sql::new(self.dialect(), "");
        let key = group.sql(&sql);
        sql = self.select(&format!("{key}, {}", self.dialect().integer("count(*)")));
        filter.to_sql(&mut sql, self.beside());
        sql.push(&format!(" GROUP BY {key} ORDER BY count(*) DESC, {key} LIMIT "))
            .integer(limit);
        let rows = self.database().fetch(sql, &[Kind::Text, Kind::Integer]).await?;
        let value = |mut row: Vec<Cell>| {
            let count = row[1].integer();
            json!({"value": std::mem::take(&mut row[0]).into_text(), "count": count})
        };
        Ok(rows.into_iter().map(value).collect())
    }
}

/// `YYYY-MM-DD HH:MM:SS.ffffff` as Unix seconds.
fn seconds(text: Option<&str>) -> Option<i64> {
    let moment = chrono::NaiveDateTime::parse_from_str(text?, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(DateTime::<Utc>::from_naive_utc_and_offset(moment, Utc).timestamp())
}
