//! Statistics: the backend's own two, and by any group, over time, by value.

use chrono::DateTime;
use serde_json::{Map, Value, json};

use super::aggregate::{self, Aggregate, Gathering};
use super::answer::Allowance;
use super::database::{Cell, Dialect, Kind};
use super::filter::{FILTERS, Filter, outcome_sql, time};
use super::packed::{Key, Visitor as _};
use super::row::TextColumn;
use super::timestamp::micros_of;
use super::visitors::{Analysis, Analytics, Counts, Facets, Grouped, Groups};
use super::{Answer, Asked, QueryApi, QueryError};

/// What to narrow where there are filters.
const FEWER_ROWS: Allowance = Allowance {
    narrow: "ask for a shorter time (from, to), for fewer rows by further filters, or with another groupBy",
};

/// The same, where there are only those of the backend.
const SHORTER_RANGE: Allowance = Allowance {
    narrow: "ask for a shorter timeRange, or for one agent (agentId)",
};

/// Groups in one answer, at most: the largest ones.
const LARGEST_GROUPS: i64 = 1000;

/// The fields whose values are counted when none are named.
const FACETS: [&str; 6] = [
    "runtime",
    "language",
    "outcome",
    "exitCode",
    "organizationId",
    "agentId",
];

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
    fn parse(parameter: &str, text: &str) -> Result<Group, QueryError> {
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
                Err(QueryError::invalid(parameter, &message))
            }
        }
    }

    /// Whether the filter names values of it.
    fn is_filtered(self, filter: &Filter) -> bool {
        match self {
            Group::Text(column) => filter.texts.iter().any(|(filtered, _)| *filtered == column),
            Group::Outcome => !filter.outcomes.is_empty(),
            Group::ExitCode => !filter.exit_codes.is_empty(),
        }
    }

    /// The filter without those: to count what else could be chosen.
    fn without(self, filter: &Filter) -> Filter {
        match self {
            Group::Text(column) => filter.without(column),
            Group::Outcome => Filter {
                outcomes: Vec::new(),
                ..filter.clone()
            },
            Group::ExitCode => Filter {
                exit_codes: Vec::new(),
                ..filter.clone()
            },
        }
    }

    /// Where packed rows have it, if they do.
    fn packed(self) -> Option<Key> {
        match self {
            Group::Text(column) => column.packed().map(Key::Text),
            Group::Outcome => Some(Key::Outcome),
            Group::ExitCode => Some(Key::ExitCode),
        }
    }

    fn sql(self, dialect: Dialect) -> String {
        match self {
            // Not in the order of an index, which would lead through the whole table instead of the time asked for.
            Group::Text(column) => dialect.unindexed(true, &format!("t.{}", column.name())),
            Group::Outcome => outcome_sql(dialect),
            Group::ExitCode => "CAST(t.exit_code AS text)".to_owned(),
        }
    }
}

impl QueryApi {
    /// `/code-exec-logs/agent/:agentId/stats`
    pub(super) async fn agent_stats(&self, asked: Asked, agent: String) -> Result<Answer, QueryError> {
        let mut filter = Filter::everything(self.shown(), asked.scope);
        filter.texts.push((TextColumn::Agent, vec![agent]));
        let total = self.total(&filter, Gathering::without_percentiles()).await?;
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
        let Analytics {
            total,
            runtimes,
            languages,
            days,
            attempts,
            failures,
        } = self.analyse(&filter).await?;
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
            let all = self.count(&everyone).await?;
            let reuse = if all == 0 { 0.0 } else { total.count as f64 / all as f64 };
            stats["registryReuseRate"] = reuse.into();
        }
        // The backend's pages read `stats`; the envelope has `data`.
        Ok(Answer::one(json!({"stats": stats})).with("stats", stats))
    }

    async fn total(&self, filter: &Filter, mut total: Gathering) -> Result<Aggregate, QueryError> {
        for filter in self.visit(filter, &mut total, FEWER_ROWS).await? {
            let mut sql = self.select(&aggregate::columns(self.dialect()), &filter);
            sql.push(" GROUP BY t.duration_ms");
            self.database()
                .each(sql, &aggregate::KINDS, |row| {
                    total.add(&row);
                    FEWER_ROWS.check(total.held())
                })
                .await?;
        }
        Ok(total.finish())
    }

    async fn count(&self, filter: &Filter) -> Result<u64, QueryError> {
        let mut count = 0;
        for filter in self.visit(filter, &mut count, SHORTER_RANGE).await? {
            let sql = self.select(&self.dialect().integer("count(*)"), &filter);
            count += self.database().number(sql).await?.cast_unsigned();
        }
        Ok(count)
    }

    /// What `/code-agents/analytics` tells of the rows.
    async fn analyse(&self, filter: &Filter) -> Result<Analytics, QueryError> {
        let mut seen = Analysis::default();
        for filter in self.visit(filter, &mut seen, SHORTER_RANGE).await? {
            let day = format!("substr({}, 1, 10)", self.dialect().time_text("t.created_at"));
            let columns = aggregate::columns(self.dialect());
            let keys = ["t.runtime", "t.language"].map(|column| self.dialect().unindexed(true, column));
            let validation = [
                self.dialect().integer("count(t.validation_passed)"),
                self.dialect()
                    .integer("count(*) FILTER (WHERE NOT t.validation_passed)"),
            ];
            let (keys, validation) = (keys.join(", "), validation.join(", "));
            let mut sql = self.select(&format!("{keys}, {day}, {validation}, {columns}"), &filter);
            sql.push(&format!(" GROUP BY {keys}, {day}, t.duration_ms"));
            let kinds = [Kind::Text, Kind::Text, Kind::Text, Kind::Integer, Kind::Integer];
            let kinds: Vec<Kind> = kinds.into_iter().chain(aggregate::KINDS).collect();
            self.database()
                .each(sql, &kinds, |row| {
                    seen.add(&row);
                    SHORTER_RANGE.check(seen.held())
                })
                .await?;
        }
        Ok(seen.finish())
    }

    /// `/code-exec-logs/stats`
    pub(super) async fn stats(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let group = parameters
            .one("groupBy")?
            .map(|text| Group::parse("groupBy", &text))
            .transpose()?;
        let limit = parameters.number("limit", 1, LARGEST_GROUPS)?.unwrap_or(100);
        parameters.finish(&format!("{FILTERS}, groupBy, limit"))?;
        let Some(group) = group else {
            let total = self.total(&filter, Gathering::default()).await?;
            return Ok(Answer::one(total.to_json()));
        };
        let Grouped { names, mut parts } = self.by_group_and_time(Some(group), None, &filter).await?;
        let name = |group: &((usize, i64), Aggregate)| &names[group.0.0];
        parts.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| name(a).cmp(name(b))));
        let known = parts.len();
        let mut total = Gathering::default();
        let mut answer = Answer::list();
        for (index, part) in parts.into_iter().enumerate() {
            if index < limit as usize {
                let mut value = part.1.to_json();
                value["key"] = name(&part).clone().into();
                answer.push(value);
            }
            total.absorb(part.1);
        }
        Ok(answer
            .listed()
            .with("total", total.finish().to_json())
            .with("groups", known.into()))
    }

    /// `/code-exec-logs/timeseries`
    pub(super) async fn timeseries(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let mut filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let group = parameters
            .one("groupBy")?
            .map(|text| Group::parse("groupBy", &text))
            .transpose()?;
        let step = parameters.number("step", 1, 366 * 86_400)?;
        parameters.finish(&format!("{FILTERS}, groupBy, step (seconds)"))?;
        if filter.from.is_none() {
            filter.from = Some(time("from", "now-24h", asked.now)?);
        }
        let seconds = |text: &Option<String>| {
            text.as_deref()
                .and_then(micros_of)
                .map(|micros| micros.div_euclid(1_000_000))
        };
        let from = seconds(&filter.from).unwrap_or_default();
        let to = seconds(&filter.to).unwrap_or(asked.now.timestamp() + 1).max(from + 1);
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
        let Grouped { names, mut parts } = self.by_group_and_time(group, Some(step), &filter).await?;
        parts.sort_by(|((a, earlier), _), ((b, later), _)| names[*a].cmp(&names[*b]).then(earlier.cmp(later)));
        let point = |at: i64, aggregate: &Aggregate| {
            let mut value = aggregate.to_json();
            value["time"] = DateTime::from_timestamp(at, 0)
                .map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
                .into();
            value
        };
        let mut answer = Answer::list();
        if group.is_some() {
            for ((number, at), aggregate) in parts {
                let mut value = point(at, &aggregate);
                value["key"] = names[number].clone().into();
                answer.push_within(value, FEWER_ROWS)?;
            }
        } else {
            // Without groups every bucket is there, so that a chart needs no filling in.
            let empty = Aggregate::default();
            for at in (0..buckets).map(|index| first + index * step) {
                let known = parts.binary_search_by_key(&at, |((_, at), _)| *at);
                answer.push(point(at, known.map_or(&empty, |index| &parts[index].1)));
            }
        }
        Ok(answer.listed().with("stepSeconds", step.into()))
    }

    /// Numbers of each value of `group` and each `step` of time, in seconds.
    async fn by_group_and_time(
        &self,
        group: Option<Group>,
        step: Option<i64>,
        filter: &Filter,
    ) -> Result<Grouped, QueryError> {
        let dialect = self.dialect();
        let packed = group.map(Group::packed);
        let mut groups = Groups::of(packed.flatten(), step);
        let left = match packed {
            // Packed rows do not have it.
            Some(None) => vec![filter.clone()],
            _ => self.visit(filter, &mut groups, FEWER_ROWS).await?,
        };
        let epoch = dialect.epoch("t.created_at");
        let bucket = step.map_or("0".to_owned(), |step| format!("({epoch} / {step}) * {step}"));
        let key = group.map_or("''".to_owned(), |group| group.sql(dialect));
        // Constants are nothing to group by.
        let keys = [
            group.map(|_| key.as_str()),
            step.map(|_| bucket.as_str()),
            Some("t.duration_ms"),
        ];
        let keys: Vec<&str> = keys.into_iter().flatten().collect();
        let columns = format!("{key}, {}, {}", dialect.integer(&bucket), aggregate::columns(dialect));
        let kinds = [Kind::Text, Kind::Integer].into_iter().chain(aggregate::KINDS);
        let kinds: Vec<Kind> = kinds.collect();
        for filter in left {
            let mut sql = self.select(&columns, &filter);
            sql.push(&format!(" GROUP BY {}", keys.join(", ")));
            self.database()
                .each(sql, &kinds, |mut row| {
                    let key = std::mem::take(&mut row[0]).into_text().filter(|_| group.is_some());
                    if let Some(at) = row[1].integer() {
                        groups.add(key, at, &row[2..]);
                    }
                    FEWER_ROWS.check(groups.held())
                })
                .await?;
        }
        Ok(groups.finish())
    }

    /// `/code-exec-logs/facets`
    pub(super) async fn facets(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let filter = Filter::everything(self.shown(), asked.scope).take(&mut parameters, asked.now)?;
        let limit = parameters.number("limit", 1, 100)?.unwrap_or(10) as usize;
        let mut fields = parameters.all("field");
        parameters.finish(&format!("{FILTERS}, field, limit"))?;
        if fields.is_empty() {
            fields = FACETS.map(str::to_owned).to_vec();
        }
        fields.sort_unstable();
        fields.dedup();
        // One look at the rows for all fields of few values that are not filtered; their combinations are few as well.
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        for field in &fields {
            let group = Group::parse("field", field)?;
            match group {
                _ if group.is_filtered(&filter) => alone.push((field, group)),
                Group::Text(column) if !column.has_few_values() && column != TextColumn::Organization => {
                    alone.push((field, group));
                }
                _ => together.push((field, group)),
            }
        }
        let mut facets = Map::new();
        for (field, counts) in self.values(&together, &filter).await? {
            facets.insert(field.clone(), commonest(counts, limit));
        }
        for (field, group) in alone {
            let others = group.without(&filter);
            for (field, counts) in self.values(&[(field, group)], &others).await? {
                facets.insert(field.clone(), commonest(counts, limit));
            }
        }
        Ok(Answer::one(Value::Object(facets)))
    }

    /// Each value of each field, with its count.
    async fn values<'a>(
        &self,
        fields: &[(&'a String, Group)],
        filter: &Filter,
    ) -> Result<Vec<(&'a String, Counts)>, QueryError> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let packed: Vec<Option<Key>> = fields.iter().map(|(_, group)| group.packed()).collect();
        let are_packed = packed.iter().all(Option::is_some);
        let mut facets = Facets::of(packed);
        let left = if are_packed {
            self.visit(filter, &mut facets, FEWER_ROWS).await?
        } else {
            vec![filter.clone()]
        };
        let keys: Vec<String> = fields.iter().map(|(_, group)| group.sql(self.dialect())).collect();
        let keys = keys.join(", ");
        let mut kinds = vec![Kind::Text; fields.len()];
        kinds.push(Kind::Integer);
        for filter in left {
            let mut sql = self.select(&format!("{keys}, {}", self.dialect().integer("count(*)")), &filter);
            sql.push(&format!(" GROUP BY {keys}"));
            self.database()
                .each(sql, &kinds, |mut row| {
                    let count = row.pop().and_then(|cell| cell.integer()).unwrap_or_default();
                    facets.add(row.into_iter().map(Cell::into_text), count.cast_unsigned());
                    FEWER_ROWS.check(facets.held())
                })
                .await?;
        }
        Ok(fields.iter().map(|(field, _)| *field).zip(facets.finish()).collect())
    }
}

fn commonest(mut counts: Counts, limit: usize) -> Value {
    counts.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    counts
        .into_iter()
        .take(limit)
        .map(|(value, count)| json!({"value": value, "count": count}))
        .collect()
}
