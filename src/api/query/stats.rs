//! Statistics: the backend's own two, and by any group, over time, by value.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::aggregate::{self, Aggregate, Gathering};
use super::database::{Cell, Dialect, Kind};
use super::filter::{FILTERS, Filter, outcome_sql, time};
use super::packed::{Key, PackedRow, Values, Visitor};
use super::row::TextColumn;
use super::{Answer, Asked, QueryApi, QueryError};
use crate::columns::Text;

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

    async fn total(&self, filter: &Filter) -> Result<Aggregate, QueryError> {
        let mut total = Total::default();
        for filter in self.visit(filter, &mut total).await? {
            let mut sql = self.select(&aggregate::columns(self.dialect()), &filter);
            sql.push(" GROUP BY t.duration_ms");
            for row in self.database().fetch(sql, &aggregate::KINDS).await? {
                total.0.add(&row)?;
            }
        }
        Ok(total.0.finish())
    }

    async fn count(&self, filter: &Filter) -> Result<u64, QueryError> {
        let mut count = Count::default();
        for filter in self.visit(filter, &mut count).await? {
            let sql = self.select(&self.dialect().integer("count(*)"), &filter);
            let rows = self.database().fetch(sql, &[Kind::Integer]).await?;
            let rows = rows.first().and_then(|row| row[0].integer()).unwrap_or_default();
            count.0 += rows.cast_unsigned();
        }
        Ok(count.0)
    }

    /// What `/code-agents/analytics` tells of the rows.
    async fn analyse(&self, filter: &Filter) -> Result<Analytics, QueryError> {
        let mut seen = Analysis::default();
        for filter in self.visit(filter, &mut seen).await? {
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
            for row in self.database().fetch(sql, &kinds).await? {
                seen.add(&row)?;
            }
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
            return Ok(Answer::one(self.total(&filter).await?.to_json()));
        };
        let mut groups = self.by_group_and_time(Some(group), None, &filter).await?;
        let mut total = Aggregate::default();
        let mut groups: Vec<(Option<String>, Aggregate)> = groups
            .drain()
            .map(|((key, _), aggregate)| {
                total.merge(&aggregate);
                (key, aggregate)
            })
            .collect();
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
        let group = parameters
            .one("groupBy")?
            .map(|text| Group::parse("groupBy", &text))
            .transpose()?;
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
        let mut series: BTreeMap<Option<String>, BTreeMap<i64, Aggregate>> = BTreeMap::new();
        for ((key, at), aggregate) in self.by_group_and_time(group, Some(step), &filter).await? {
            series.entry(key).or_default().insert(at, aggregate);
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

    /// Numbers of each value of `group` and each `step` of time, in seconds.
    async fn by_group_and_time(
        &self,
        group: Option<Group>,
        step: Option<i64>,
        filter: &Filter,
    ) -> Result<HashMap<(Option<String>, i64), Aggregate>, QueryError> {
        let dialect = self.dialect();
        let mut groups = Groups {
            values: group.map(|group| group.packed().map(Values::of)),
            step,
            parts: HashMap::new(),
        };
        let left = match &groups.values {
            // Packed rows do not have it.
            Some(None) => vec![filter.clone()],
            _ => self.visit(filter, &mut groups).await?,
        };
        let mut parts = groups.finish();
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
            for mut row in self.database().fetch(sql, &kinds).await? {
                let key = std::mem::take(&mut row[0]).into_text().filter(|_| group.is_some());
                let Some(at) = row[1].integer() else { continue };
                parts.entry((key, at)).or_default().add(&row[2..])?;
            }
        }
        Ok(parts.into_iter().map(|(key, part)| (key, part.finish())).collect())
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
        let mut facets = Facets(Vec::new());
        let packed: Option<Vec<Key>> = fields.iter().map(|(_, group)| group.packed()).collect();
        let left = match packed {
            Some(keys) => {
                facets
                    .0
                    .extend(keys.into_iter().map(|key| (Values::of(key), Vec::new())));
                self.visit(filter, &mut facets).await?
            }
            None => vec![filter.clone()],
        };
        let mut counts: Vec<Counts> = facets.finish();
        counts.resize_with(fields.len(), Counts::new);
        let keys: Vec<String> = fields.iter().map(|(_, group)| group.sql(self.dialect())).collect();
        let keys = keys.join(", ");
        let mut kinds = vec![Kind::Text; fields.len()];
        kinds.push(Kind::Integer);
        for filter in left {
            let mut sql = self.select(&format!("{keys}, {}", self.dialect().integer("count(*)")), &filter);
            sql.push(&format!(" GROUP BY {keys}"));
            for mut row in self.database().fetch(sql, &kinds).await? {
                let count = row.pop().and_then(|cell| cell.integer()).unwrap_or_default();
                for (counts, value) in counts.iter_mut().zip(row) {
                    *counts.entry(value.into_text()).or_default() += count;
                }
            }
        }
        Ok(fields.iter().map(|(field, _)| *field).zip(counts).collect())
    }
}

/// All packed rows as one.
#[derive(Default)]
struct Total(Gathering);

impl Visitor for Total {
    fn texts(&mut self, _: &[&str]) {}

    fn row(&mut self, row: &PackedRow) {
        self.0.add_row(row);
    }
}

/// How many packed rows there are.
#[derive(Default)]
struct Count(u64);

impl Visitor for Count {
    fn texts(&mut self, _: &[&str]) {}

    fn row(&mut self, _: &PackedRow) {
        self.0 += 1;
    }
}

/// Packed rows by the number of their value, and by time.
struct Groups {
    /// `Some(None)`: by something that packed rows do not have.
    values: Option<Option<Values>>,
    step: Option<i64>,
    parts: HashMap<(usize, i64), Gathering>,
}

impl Groups {
    fn finish(self) -> HashMap<(Option<String>, i64), Gathering> {
        let names = self.values.flatten().map(Values::into_names).unwrap_or_default();
        let name = |number: usize| names.get(number).cloned().flatten();
        let parts = self.parts.into_iter();
        parts.map(|((number, at), part)| ((name(number), at), part)).collect()
    }
}

impl Visitor for Groups {
    fn texts(&mut self, texts: &[&str]) {
        if let Some(Some(values)) = &mut self.values {
            values.texts(texts);
        }
    }

    fn row(&mut self, row: &PackedRow) {
        let number = match &mut self.values {
            Some(Some(values)) => values.number(row),
            _ => 0,
        };
        let at = self.step.map_or(0, |step| row.at.div_euclid(step * 1_000_000) * step);
        self.parts.entry((number, at)).or_default().add_row(row);
    }
}

/// The values of packed rows, with their counts by number.
struct Facets(Vec<(Values, Vec<i64>)>);

impl Facets {
    fn finish(self) -> Vec<Counts> {
        let counts = |(values, counts): (Values, Vec<i64>)| {
            // A value that no row has is none: outcomes are numbered before they are met.
            let counted = values.into_names().into_iter().zip(counts);
            counted.filter(|(_, count)| *count > 0).collect()
        };
        self.0.into_iter().map(counts).collect()
    }
}

impl Visitor for Facets {
    fn texts(&mut self, texts: &[&str]) {
        self.0.iter_mut().for_each(|(values, _)| values.texts(texts));
    }

    fn row(&mut self, row: &PackedRow) {
        for (values, counts) in &mut self.0 {
            let number = values.number(row);
            if counts.len() <= number {
                counts.resize(number + 1, 0);
            }
            counts[number] += 1;
        }
    }
}

/// What `/code-agents/analytics` tells.
struct Analytics {
    total: Aggregate,
    runtimes: BTreeMap<String, u64>,
    languages: BTreeMap<String, u64>,
    /// As the backend lists days: only those with executions, oldest first.
    days: Vec<Value>,
    /// Inputs that were validated, and how many of these failed.
    attempts: u64,
    failures: u64,
}

/// [`Analytics`] in the making.
struct Analysis {
    total: Gathering,
    runtimes: (Values, Vec<u64>),
    languages: (Values, Vec<u64>),
    /// Executions and successes, by the number of days since 1970.
    days: BTreeMap<i64, [u64; 2]>,
    validations: [u64; 2],
}

impl Default for Analysis {
    fn default() -> Analysis {
        let values = |text| (Values::of(Key::Text(text)), Vec::new());
        Analysis {
            total: Gathering::default(),
            runtimes: values(Text::Runtime),
            languages: values(Text::Language),
            days: BTreeMap::new(),
            validations: [0; 2],
        }
    }
}

impl Analysis {
    fn count((_, counts): &mut (Values, Vec<u64>), number: usize, rows: u64) {
        if counts.len() <= number {
            counts.resize(number + 1, 0);
        }
        counts[number] += rows;
    }

    fn count_day(&mut self, day: i64, rows: u64, successes: u64) {
        let [all, good] = self.days.entry(day).or_default();
        *all += rows;
        *good += successes;
    }

    /// Adds runtime, language, day, validations, failed ones, and what [`aggregate::columns`] selects.
    fn add(&mut self, row: &[Cell]) -> Result<(), QueryError> {
        let whole = |index: usize| row[index].integer().unwrap_or_default().cast_unsigned();
        let (rows, successes) = (whole(6), whole(7));
        for (counts, cell) in [(&mut self.runtimes, &row[0]), (&mut self.languages, &row[1])] {
            let number = counts.0.named(cell.clone().into_text());
            Analysis::count(counts, number, rows);
        }
        let day = row[2].clone().into_text().unwrap_or_default();
        if let Ok(day) = chrono::NaiveDate::parse_from_str(&day, "%Y-%m-%d") {
            let day = day.signed_duration_since(chrono::NaiveDate::default()).num_days();
            self.count_day(day, rows, successes);
        }
        self.validations[0] += whole(3);
        self.validations[1] += whole(4);
        self.total.add(&row[5..])
    }

    fn finish(self) -> Analytics {
        let named = |(values, counts): (Values, Vec<u64>)| {
            let names = values.into_names().into_iter();
            names.map(Option::unwrap_or_default).zip(counts).collect()
        };
        let day = |(day, [all, good]): (i64, [u64; 2])| {
            let date = DateTime::from_timestamp(day * 86_400, 0).map(|at| at.format("%Y-%m-%d").to_string());
            json!({"date": date, "count": all, "successCount": good, "errorCount": all - good})
        };
        Analytics {
            total: self.total.finish(),
            runtimes: named(self.runtimes),
            languages: named(self.languages),
            days: self.days.into_iter().map(day).collect(),
            attempts: self.validations[0],
            failures: self.validations[1],
        }
    }
}

impl Visitor for Analysis {
    fn texts(&mut self, texts: &[&str]) {
        self.runtimes.0.texts(texts);
        self.languages.0.texts(texts);
    }

    fn row(&mut self, row: &PackedRow) {
        self.total.add_row(row);
        for counts in [&mut self.runtimes, &mut self.languages] {
            let number = counts.0.number(row);
            Analysis::count(counts, number, 1);
        }
        self.count_day(row.at.div_euclid(86_400_000_000), 1, u64::from(row.success));
        self.validations[0] += u64::from(row.validation.is_some());
        self.validations[1] += u64::from(row.validation == Some(false));
    }
}

/// How many rows have each value.
type Counts = HashMap<Option<String>, i64>;

fn commonest(counts: Counts, limit: usize) -> Value {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    counts
        .into_iter()
        .take(limit)
        .map(|(value, count)| json!({"value": value, "count": count}))
        .collect()
}

/// `YYYY-MM-DD HH:MM:SS.ffffff` as Unix seconds.
fn seconds(text: Option<&str>) -> Option<i64> {
    let moment = chrono::NaiveDateTime::parse_from_str(text?, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(DateTime::<Utc>::from_naive_utc_and_offset(moment, Utc).timestamp())
}
