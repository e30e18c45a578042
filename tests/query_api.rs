//! The query API against SQLite and PostgreSQL: what it answers equals what plain code finds in the same rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "common/postgres.rs"]
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use spanledger::api::query::{ApiToken, PipelineReport, QueryApi, QueryOptions, RowsShown};
use spanledger::ledger::{Ledger, LedgerOptions, migrate};
use spanledger::listen::Body;
use sqlx::{AssertSqlSafe, Connection as _};
use tokio_util::sync::CancellationToken;

const SEED: u64 = 20_260_131;
const ROWS: usize = 1500;

/// A row as the test knows it.
#[derive(Debug, Clone)]
struct Row {
    id: String,
    agent: Option<String>,
    workflow: Option<String>,
    node: Option<String>,
    runtime: String,
    language: String,
    duration: Option<i64>,
    memory: Option<i64>,
    exit_code: Option<i64>,
    success: bool,
    error: Option<String>,
    tokens: Option<i64>,
    validation: Option<bool>,
    organization: Option<String>,
    workspace: Option<String>,
    user: Option<String>,
    /// Microseconds.
    at: i64,
    /// Of rows that this program wrote.
    reported: Option<&'static str>,
    cost: Option<f64>,
}

impl Row {
    fn outcome(&self) -> &'static str {
        let said = self.error.as_deref().unwrap_or_default().to_lowercase();
        if self.success {
            "success"
        } else if self.reported == Some("timeout") || (self.reported.is_none() && said.contains("timed out")) {
            "timeout"
        } else {
            "error"
        }
    }

    fn is_own(&self) -> bool {
        self.reported.is_some()
    }

    fn text(at: i64, format: &str) -> String {
        DateTime::from_timestamp_micros(at).unwrap().format(format).to_string()
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id, "codeAgentId": self.agent, "workflowExecutionId": self.workflow, "nodeId": self.node,
            "runtime": self.runtime, "language": self.language, "durationMs": self.duration, "memoryMb": self.memory,
            "exitCode": self.exit_code, "success": self.success, "errorMessage": self.error,
            "tokensUsed": self.tokens, "validationPassed": self.validation, "organizationId": self.organization,
            "workspaceId": self.workspace, "userId": self.user,
            "createdAt": Row::text(self.at, "%Y-%m-%dT%H:%M:%S%.3fZ"),
        })
    }

    fn field(&self, parameter: &str) -> Option<String> {
        match parameter {
            "runtime" => Some(self.runtime.clone()),
            "language" => Some(self.language.clone()),
            "outcome" => Some(self.outcome().to_owned()),
            "agentId" => self.agent.clone(),
            "organizationId" => self.organization.clone(),
            "workspaceId" => self.workspace.clone(),
            "userId" => self.user.clone(),
            "workflowExecutionId" => self.workflow.clone(),
            "nodeId" => self.node.clone(),
            "exitCode" => self.exit_code.map(|code| code.to_string()),
            "traceId" if self.is_own() => Some(self.id[..32].to_owned()),
            "traceId" => None,
            other => panic!("{other}"),
        }
    }
}

/// Rows of all shapes; several end in the same microsecond, some are not of this program.
fn make_rows(seed: u64, count: usize) -> Vec<Row> {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let now = Utc::now().timestamp_micros() / 1000 * 1000;
    let messages = [
        "E2B execution timed out after 30000ms",
        "E2B execution Timed Out after 5ms",
        "ReferenceError: total is not defined",
        "100% of O'Brien's \\ quota_used",
        "Zeile eins\nZeile zwei — ü",
    ];
    let maybe = |rng: &mut fastrand::Rng, prefix: &str, many: u32| {
        (rng.u32(0..5) > 0).then(|| format!("{prefix}{}", rng.u32(0..many)))
    };
    let trace = rng.u128(..);
    (0..count)
        .map(|index| {
            let own = !index.is_multiple_of(7);
            // Every fifth row of this program is of one trace.
            let of_trace = if index.is_multiple_of(5) { trace } else { rng.u128(..) };
            let id = if own {
                format!("{of_trace:032x}-{:016x}", rng.u64(..))
            } else {
                format!("cm{:022x}", rng.u64(..))
            };
            let success = rng.u32(0..4) > 0;
            let number = |rng: &mut fastrand::Rng, most| (rng.u32(0..8) > 0).then(|| rng.i64(0..most));
            Row {
                id,
                agent: maybe(&mut rng, "agent-", 4),
                workflow: maybe(&mut rng, "wf/", 40),
                node: maybe(&mut rng, "node_", 9),
                runtime: (*rng.choice(&["vm2", "e2b", "subprocess"]).unwrap()).to_owned(),
                language: (*rng.choice(&["python", "javascript", "unknown"]).unwrap()).to_owned(),
                duration: number(&mut rng, 400),
                memory: number(&mut rng, 64),
                exit_code: number(&mut rng, 3),
                success,
                error: (!success && rng.u32(0..9) > 0).then(|| (*rng.choice(&messages).unwrap()).to_owned()),
                tokens: number(&mut rng, 5000),
                validation: (rng.bool()).then(|| rng.bool()),
                organization: maybe(&mut rng, "org-", 3),
                workspace: maybe(&mut rng, "ws-", 3),
                user: maybe(&mut rng, "user_", 20),
                at: now - rng.i64(0..40 * 86_400) * 1_000_000 - if rng.bool() { 0 } else { rng.i64(0..1_000_000) },
                reported: own.then(|| {
                    if success {
                        "success"
                    } else {
                        rng.choice(["error", "timeout"]).unwrap()
                    }
                }),
                cost: (own && rng.u32(0..3) == 0).then(|| f64::from(rng.u32(1..1000)) / 1024.0),
            }
        })
        .collect()
}

fn literal(value: &Option<impl std::fmt::Display>) -> String {
    value.as_ref().map_or("NULL".to_owned(), |value| {
        format!("'{}'", value.to_string().replace('\'', "''"))
    })
}

fn number(value: Option<impl std::fmt::Display>) -> String {
    value.map_or("NULL".to_owned(), |value| value.to_string())
}

/// The rows as SQL that both databases take.
fn insert_sql(rows: &[Row]) -> String {
    let mut sql = String::new();
    for rows in rows.chunks(400) {
        let values: Vec<String> = rows
            .iter()
            .map(|row| {
                format!(
                    "({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, '{}')",
                    literal(&Some(&row.id)),
                    literal(&row.agent),
                    literal(&row.workflow),
                    literal(&row.node),
                    literal(&Some(&row.runtime)),
                    literal(&Some(&row.language)),
                    number(row.duration),
                    number(row.memory),
                    number(row.exit_code),
                    row.success,
                    literal(&row.error),
                    number(row.tokens),
                    number(row.validation),
                    literal(&row.organization),
                    literal(&row.workspace),
                    literal(&row.user),
                    Row::text(row.at, "%Y-%m-%d %H:%M:%S%.6f"),
                )
            })
            .collect();
        writeln!(
            sql,
            "INSERT INTO code_exec_logs (id, code_agent_id, workflow_execution_id, node_id, runtime, language, \
             duration_ms, memory_mb, exit_code, success, error_message, tokens_used, validation_passed, \
             organization_id, workspace_id, user_id, created_at) VALUES {};",
            values.join(",\n")
        )
        .unwrap();
        let beside: Vec<String> = rows
            .iter()
            .filter_map(|row| {
                let (trace, span) = row.id.split_once('-')?;
                let end = row.at * 1000;
                let start = end - row.duration.unwrap_or_default() * 1_000_000;
                Some(format!(
                    "('{}', '{trace}', '{span}', {start}, {end}, {}, '{}', 'vm2', NULL, '{}', {}, \
                     '{{\"user_id\":\"node\"}}')",
                    row.id,
                    end + 2_000_000_000,
                    Row::text(row.at, "%Y-%m-%d %H:%M:%S%.6f"),
                    row.reported?,
                    number(row.cost),
                ))
            })
            .collect();
        if !beside.is_empty() {
            writeln!(
                sql,
                "INSERT INTO spanledger_executions (id, trace_id, span_id, start_ns, end_ns, received_at_ns, \
                 created_at, reported_runtime, reported_exit_code, reported_outcome, cost_usd, sources) VALUES {};",
                beside.join(",\n")
            )
            .unwrap();
        }
    }
    sql
}

/// A database with rows.
struct Fixture {
    url: String,
    rows: Vec<Row>,
    _directory: tempfile::TempDir,
    shutdown: CancellationToken,
}

async fn execute(url: &str, sql: String) {
    if url.starts_with("sqlite:") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {sql} COMMIT;")))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }
}

/// Packs hours that are over, as the ledger does between its batches.
async fn pack(url: &str) {
    let options = LedgerOptions {
        url: url.to_owned(),
        ..LedgerOptions::default()
    };
    Ledger::new(options).unwrap().pack().await.unwrap();
}

/// The same rows in each database.
async fn fixtures(count: usize) -> Vec<Fixture> {
    let rows = make_rows(SEED, count);
    let mut fixtures = Vec::new();
    for postgres in [false, true] {
        if postgres && postgres::skipped() {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let url = if postgres {
            tokio::task::spawn_blocking(|| postgres::shared().database())
                .await
                .unwrap()
        } else {
            format!("sqlite:{}", directory.path().join("executions.db").display())
        };
        migrate(LedgerOptions {
            url: url.clone(),
            ..LedgerOptions::default()
        })
        .await
        .unwrap();
        if !rows.is_empty() {
            execute(&url, insert_sql(&rows)).await;
        }
        let shutdown = CancellationToken::new();
        fixtures.push(Fixture {
            url,
            rows: rows.clone(),
            _directory: directory,
            shutdown,
        });
    }
    fixtures
}

/// The same, with hours packed.
async fn packed_fixtures() -> Vec<Fixture> {
    let fixtures = fixtures(ROWS).await;
    for fixture in &fixtures {
        pack(&fixture.url).await;
        // As if rows had come late to some hours: more of them than are asked of the tables one by one.
        let late = "DELETE FROM spanledger_hours WHERE hour % 89 = 7;";
        execute(&fixture.url, late.to_owned()).await;
    }
    fixtures
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fixture {
    fn options(&self) -> QueryOptions {
        QueryOptions {
            url: self.url.clone(),
            table: "code_exec_logs".to_owned(),
            rows: RowsShown::All,
            signoz_url: Some("https://signoz.example/".to_owned()),
            ..QueryOptions::default()
        }
    }

    fn api_with(&self, change: impl FnOnce(&mut QueryOptions)) -> QueryApi {
        let mut options = self.options();
        change(&mut options);
        QueryApi::new(options, PipelineReport::default, self.shutdown.clone()).unwrap()
    }

    fn api(&self) -> QueryApi {
        self.api_with(|_| ())
    }

    /// Rows that pass, as the API lists them.
    fn expected(&self, pass: impl Fn(&Row) -> bool) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| pass(row)).collect();
        rows.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        rows
    }
}

/// Statistics over the rows of this program read packed hours, those over all rows the tables.
fn each_shown(fixtures: &[Fixture]) -> impl Iterator<Item = (&Fixture, RowsShown)> {
    let both = [RowsShown::All, RowsShown::Own];
    fixtures
        .iter()
        .flat_map(move |fixture| both.map(|shown| (fixture, shown)))
}

fn is_shown(row: &Row, shown: RowsShown) -> bool {
    shown == RowsShown::All || row.is_own()
}

async fn ask(api: &QueryApi, path: &str) -> (StatusCode, Value) {
    ask_as(api, path, None).await
}

async fn ask_as(api: &QueryApi, path: &str, token: Option<&str>) -> (StatusCode, Value) {
    let response = respond(api, path, token).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{path}: {body:?}")),
    )
}

async fn respond(api: &QueryApi, path: &str, token: Option<&str>) -> http::Response<Body> {
    let mut request = Request::builder()
        .uri(format!("/api/v1{path}"))
        .header("host", "localhost:8890");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    api.answer(&request.body(()).unwrap()).await
}

async fn good(api: &QueryApi, path: &str) -> Value {
    let (status, answer) = ask(api, path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    assert_eq!(answer["success"], true);
    answer
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        write!(out, "%{byte:02X}").unwrap();
        out
    })
}

fn close(a: &Value, b: f64) -> bool {
    (a.as_f64().unwrap() - b).abs() <= 1e-9 * b.abs().max(1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backends_own_paths_answer_as_the_backend_does_over_all_rows() {
    for fixture in fixtures(ROWS).await {
        let api = fixture.api();
        let rows = fixture.expected(|row| row.agent.as_deref() == Some("agent-1"));
        assert!(rows.len() > 150);
        let answer = good(&api, "/code-exec-logs/agent/agent-1").await;
        let data: Vec<Value> = rows.iter().take(100).map(|row| row.json()).collect();
        assert_eq!(answer, json!({"success": true, "data": data, "count": 100}));
        let answer = good(&api, "/code-exec-logs/agent/agent-1?limit=7&_=cachebuster").await;
        assert_eq!(answer["count"], 7);

        let rows = fixture.expected(|row| row.workflow.as_deref() == Some("wf/3"));
        let data: Vec<Value> = rows.iter().map(|row| row.json()).collect();
        let answer = good(&api, "/code-exec-logs/workflow/wf%2F3").await;
        assert_eq!(answer, json!({"success": true, "count": data.len(), "data": data}));

        let rows = fixture.expected(|row| row.agent.as_deref() == Some("agent-1"));
        let stats = &good(&api, "/code-exec-logs/agent/agent-1/stats").await["data"];
        let successes = rows.iter().filter(|row| row.success).count();
        assert_eq!(stats.as_object().unwrap().len(), 4);
        assert_eq!(stats["totalExecutions"], rows.len());
        assert_eq!(stats["totalErrors"], rows.len() - successes);
        assert!(close(&stats["successRate"], successes as f64 / rows.len() as f64));
        let sum: i64 = rows.iter().filter_map(|row| row.duration).sum();
        assert!(close(&stats["avgDurationMs"], sum as f64 / rows.len() as f64));
        let nobody = &good(&api, "/code-exec-logs/agent/nobody/stats").await["data"];
        assert_eq!(
            *nobody,
            json!({"totalExecutions": 0, "successRate": 0.0, "avgDurationMs": 0.0, "totalErrors": 0})
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn analytics_are_those_of_the_backend_for_each_range() {
    for (fixture, shown) in each_shown(&packed_fixtures().await) {
        let api = fixture.api_with(|options| options.rows = shown);
        for (range, days) in [("7d", 7), ("30d", 30), ("90d", 90), ("all", 9999), ("24h", 9999)] {
            let from = Utc::now().timestamp_micros() - days * 86_400_000_000;
            let everyone = fixture.expected(|row| is_shown(row, shown) && row.at >= from);
            let of_agent = |row: &Row| row.agent.as_deref() == Some("agent-2");
            let rows = fixture.expected(|row| is_shown(row, shown) && row.at >= from && of_agent(row));
            let path = format!("/code-agents/analytics?agentId=agent-2&timeRange={range}");
            let answer = good(&api, &path).await;
            let stats = &answer["stats"];
            assert_eq!(answer["data"]["stats"], *stats);
            assert_eq!(stats["totalExecutions"], rows.len(), "{range}");
            assert_eq!(
                stats["totalTokensUsed"],
                rows.iter().filter_map(|row| row.tokens).sum::<i64>()
            );
            let memory: Vec<i64> = rows.iter().filter_map(|row| row.memory).collect();
            assert!(close(
                &stats["avgMemoryMb"],
                memory.iter().sum::<i64>() as f64 / memory.len() as f64
            ));
            let mut positive: Vec<i64> = rows
                .iter()
                .filter_map(|row| row.duration)
                .filter(|took| *took > 0)
                .collect();
            positive.sort_unstable();
            for (key, p) in [("latencyP50", 0.5), ("latencyP95", 0.95), ("latencyP99", 0.99)] {
                assert_eq!(
                    stats[key],
                    positive[(positive.len() as f64 * p).floor() as usize],
                    "{key}"
                );
            }
            let mut languages: BTreeMap<&str, u64> = BTreeMap::new();
            let mut by_day: BTreeMap<String, [u64; 2]> = BTreeMap::new();
            for row in &rows {
                *languages.entry(&row.language).or_default() += 1;
                by_day.entry(Row::text(row.at, "%Y-%m-%d")).or_default()[usize::from(row.success)] += 1;
            }
            assert_eq!(stats["executionsByLanguage"], json!(languages));
            let over_time: Vec<Value> = by_day
                .iter()
                .map(|(date, [errors, successes])| {
                    json!({"date": date, "count": errors + successes, "successCount": successes, "errorCount": errors})
                })
                .collect();
            assert_eq!(stats["executionsOverTime"], json!(over_time));
            let attempts = rows.iter().filter(|row| row.validation.is_some()).count();
            assert_eq!(stats["validationAttempts"], attempts);
            let failures = rows.iter().filter(|row| row.validation == Some(false)).count();
            assert_eq!(stats["validationFailures"], failures);
            assert!(close(
                &stats["registryReuseRate"],
                rows.len() as f64 / everyone.len() as f64
            ));
        }
        assert_eq!(
            good(&api, "/code-agents/analytics").await["stats"].get("registryReuseRate"),
            None
        );
    }
}

/// Which rows a query string means.
type Condition = Box<dyn Fn(&Row) -> bool>;

/// A query string and what it means.
fn random_filter(rng: &mut fastrand::Rng, rows: &[Row]) -> (String, Condition) {
    let mut query = String::new();
    let mut conditions: Vec<Condition> = Vec::new();
    let example = rng.choice(rows).unwrap().clone();
    for parameter in [
        "runtime",
        "language",
        "outcome",
        "agentId",
        "organizationId",
        "workspaceId",
        "userId",
        "workflowExecutionId",
        "nodeId",
        "exitCode",
        "traceId",
    ] {
        if rng.u32(0..6) > 0 {
            continue;
        }
        let another = rng.choice(rows).unwrap();
        let wanted: Vec<String> = [&example, another]
            .into_iter()
            .take(if rng.bool() { 1 } else { 2 })
            .filter_map(|row| row.field(parameter))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        for value in &wanted {
            write!(query, "{parameter}={}&", encode(value)).unwrap();
        }
        conditions.push(Box::new(move |row| {
            row.field(parameter).is_some_and(|value| wanted.contains(&value))
        }));
    }
    if rng.u32(0..3) == 0 {
        let from = example.at;
        let iso = encode(&Row::text(from, "%Y-%m-%dT%H:%M:%S%.6f+00:00"));
        if rng.bool() {
            write!(query, "from={iso}&").unwrap();
            conditions.push(Box::new(move |row| row.at >= from));
        } else {
            write!(query, "to={iso}&").unwrap();
            conditions.push(Box::new(move |row| row.at < from));
        }
    }
    if rng.u32(0..4) == 0 {
        let least = rng.i64(0..300);
        write!(query, "minDurationMs={least}&maxDurationMs={}&", least + 100).unwrap();
        conditions.push(Box::new(move |row| {
            row.duration.is_some_and(|took| (least..=least + 100).contains(&took))
        }));
    }
    if rng.u32(0..4) == 0 {
        let text = *rng
            .choice(&["TIMED out", "100%", "o'brien's \\", "a_u", "node_3", "agent-", "%"])
            .unwrap();
        write!(query, "q={}&", encode(text)).unwrap();
        let text = text.to_lowercase();
        conditions.push(Box::new(move |row| {
            let fields = [
                row.error.as_ref(),
                Some(&row.id),
                row.node.as_ref(),
                row.workflow.as_ref(),
                row.agent.as_ref(),
            ];
            fields
                .into_iter()
                .flatten()
                .any(|field| field.to_lowercase().contains(&text))
        }));
    }
    (
        query,
        Box::new(move |row| conditions.iter().all(|condition| condition(row))),
    )
}

fn check_numbers(numbers: &Value, rows: &[&Row], what: &str) {
    let mut durations: Vec<i64> = rows.iter().filter_map(|row| row.duration).collect();
    durations.sort_unstable();
    assert_eq!(numbers["count"], rows.len(), "{what}");
    assert_eq!(
        numbers["errors"],
        rows.iter().filter(|row| !row.success).count(),
        "{what}"
    );
    assert_eq!(
        numbers["timeouts"],
        rows.iter().filter(|row| row.outcome() == "timeout").count(),
        "{what}"
    );
    assert_eq!(
        numbers["tokensUsed"],
        rows.iter().filter_map(|row| row.tokens).sum::<i64>(),
        "{what}"
    );
    assert_eq!(
        numbers["maxMemoryMb"],
        json!(rows.iter().filter_map(|row| row.memory).max()),
        "{what}"
    );
    for (key, percent) in [("p50DurationMs", 50), ("p95DurationMs", 95), ("p99DurationMs", 99)] {
        let rank = (durations.len() * percent).div_ceil(100).max(1);
        assert_eq!(numbers[key], json!(durations.get(rank - 1)), "{what}: {key}");
    }
    let costs: Vec<f64> = rows.iter().filter_map(|row| row.cost).collect();
    if costs.is_empty() {
        assert_eq!(numbers["costUsd"], Value::Null, "{what}");
    } else {
        assert!(close(&numbers["costUsd"], costs.iter().sum()), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_numbers_of_any_filter_equal_those_of_the_rows() {
    for (fixture, shown) in each_shown(&packed_fixtures().await) {
        let api = fixture.api_with(|options| options.rows = shown);
        let mut rng = fastrand::Rng::with_seed(SEED);
        let mut found = 0;
        for _ in 0..60 {
            let (query, pass) = random_filter(&mut rng, &fixture.rows);
            let expected = fixture.expected(|row| is_shown(row, shown) && pass(row));
            found += expected.len();
            let mut ids: Vec<String> = Vec::new();
            let mut cursor = String::new();
            loop {
                let answer = good(&api, &format!("/code-exec-logs?{query}limit=97{cursor}")).await;
                let page = answer["data"].as_array().unwrap();
                assert_eq!(answer["count"], page.len());
                ids.extend(page.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
                let Some(next) = answer["nextCursor"].as_str() else {
                    break;
                };
                assert_eq!(page.len(), 97);
                cursor = format!("&cursor={next}");
            }
            let wanted: Vec<&String> = expected.iter().map(|row| &row.id).collect();
            assert!(ids.iter().eq(wanted), "{query}");
            check_numbers(
                &good(&api, &format!("/code-exec-logs/stats?{query}")).await["data"],
                &expected,
                &query,
            );
        }
        assert!(found > ROWS, "the filters find too little to mean anything: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_by_group_over_time_and_by_value_equal_those_of_the_rows() {
    for (fixture, shown) in each_shown(&packed_fixtures().await) {
        let api = fixture.api_with(|options| options.rows = shown);
        for (group, parameter) in [
            ("runtime", "runtime"),
            ("language", "language"),
            ("agent", "agentId"),
            ("organization", "organizationId"),
            ("workspace", "workspaceId"),
            ("user", "userId"),
            ("workflow", "workflowExecutionId"),
            ("node", "nodeId"),
            ("outcome", "outcome"),
            ("exitCode", "exitCode"),
        ] {
            let answer = good(&api, &format!("/code-exec-logs/stats?groupBy={group}&limit=1000")).await;
            let shown_rows = fixture.rows.iter().filter(|row| is_shown(row, shown));
            let mut left: BTreeSet<Option<String>> = shown_rows.map(|row| row.field(parameter)).collect();
            let facets = good(
                &api,
                &format!("/code-exec-logs/facets?limit=100&field={parameter}&field=runtime"),
            )
            .await;
            for numbers in answer["data"].as_array().unwrap() {
                let key = numbers["key"].as_str().map(str::to_owned);
                let rows = fixture.expected(|row| is_shown(row, shown) && row.field(parameter) == key);
                check_numbers(numbers, &rows, &format!("{group} {key:?}"));
                let facet = facets["data"][parameter].as_array().unwrap();
                assert!(
                    facet.contains(&json!({"value": key, "count": rows.len()})),
                    "{parameter} {key:?}"
                );
                assert!(left.remove(&key));
            }
            assert!(left.is_empty(), "{group}: {left:?}");
            check_numbers(&answer["total"], &fixture.expected(|row| is_shown(row, shown)), group);
        }
        let from = Utc::now().timestamp() - 30 * 86_400;
        let path = format!("/code-exec-logs/timeseries?from={from}&step=21600");
        let answer = good(&api, &path).await;
        let points = answer["data"].as_array().unwrap();
        assert!((120..=122).contains(&points.len()), "{}", points.len());
        for point in points {
            let at = DateTime::parse_from_rfc3339(point["time"].as_str().unwrap())
                .unwrap()
                .timestamp();
            assert_eq!(at % 21_600, 0);
            let inside = |row: &Row| {
                let seconds = row.at.div_euclid(1_000_000);
                is_shown(row, shown) && row.at >= from * 1_000_000 && (at..at + 21_600).contains(&seconds)
            };
            check_numbers(point, &fixture.expected(inside), "bucket");
        }
        let grouped = good(&api, &format!("{path}&groupBy=outcome")).await;
        let total: u64 = grouped["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|point| point["count"].as_u64().unwrap())
            .sum();
        let since = fixture.expected(|row| is_shown(row, shown) && row.at >= from * 1_000_000);
        assert_eq!(total, since.len() as u64);
        assert_eq!(
            good(&api, "/code-exec-logs/timeseries?from=now-7d").await["stepSeconds"],
            7200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_and_this_program_mean_the_same_by_a_percentile() {
    for fixture in fixtures(ROWS)
        .await
        .into_iter()
        .filter(|fixture| fixture.url.starts_with("postgres"))
    {
        let sql = "SELECT runtime, percentile_disc(ARRAY[0.5, 0.95, 0.99]::float8[]) WITHIN GROUP (ORDER BY duration_ms) \
                   FROM code_exec_logs GROUP BY runtime";
        let mut connection = sqlx::PgConnection::connect(&fixture.url).await.unwrap();
        let rows: Vec<(String, Vec<i32>)> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
        assert_eq!(rows.len(), 3);
        let answer = good(&fixture.api(), "/code-exec-logs/stats?groupBy=runtime").await;
        for (runtime, percentiles) in rows {
            let numbers = answer["data"]
                .as_array()
                .unwrap()
                .iter()
                .find(|numbers| numbers["key"] == *runtime)
                .unwrap();
            let ours =
                ["p50DurationMs", "p95DurationMs", "p99DurationMs"].map(|key| numbers[key].as_i64().unwrap() as i32);
            assert_eq!(ours.to_vec(), percentiles, "{runtime}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_grouped_by_what_their_messages_have_in_common() {
    for fixture in fixtures(ROWS).await {
        let answer = good(&fixture.api(), "/code-exec-logs/errors").await;
        let groups = answer["data"].as_array().unwrap();
        let failures = fixture.expected(|row| !row.success);
        let total: u64 = groups.iter().map(|group| group["count"].as_u64().unwrap()).sum();
        assert_eq!(total, failures.len() as u64);
        let of = |message: Value| groups.iter().find(|group| group["message"] == message).unwrap();
        let plain = of(json!("ReferenceError: total is not defined"));
        let rows = fixture.expected(|row| row.error.as_deref() == Some("ReferenceError: total is not defined"));
        assert_eq!(plain["count"], rows.len());
        assert_eq!(plain["sampleId"], rows[0].id);
        assert_eq!(plain["lastSeen"], rows[0].json()["createdAt"]);
        assert_eq!(plain["firstSeen"], rows[rows.len() - 1].json()["createdAt"]);
        assert_eq!(
            of(json!("Zeile eins"))["distinctMessages"].as_u64().unwrap(),
            3,
            "one for each runtime"
        );
        assert_eq!(
            of(Value::Null)["count"],
            failures.iter().filter(|row| row.error.is_none()).count()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_and_one_trace_tell_everything_that_is_known() {
    for fixture in fixtures(ROWS).await {
        let api = fixture.api();
        let row = fixture
            .rows
            .iter()
            .find(|row| row.is_own() && row.duration.is_some())
            .unwrap();
        let (trace, span) = row.id.split_once('-').unwrap();
        let data = &good(&api, &format!("/code-exec-logs/{}", row.id)).await["data"];
        for (key, value) in row.json().as_object().unwrap() {
            assert_eq!(data[key], *value, "{key}");
        }
        assert_eq!(data["traceId"], trace);
        assert_eq!(data["spanId"], span);
        assert_eq!(
            data["signozUrl"],
            format!("https://signoz.example/trace/{trace}?spanId={span}")
        );
        assert_eq!(data["outcome"], row.outcome());
        assert_eq!(data["span"]["endTimeUnixNano"], (row.at * 1000).to_string());
        assert_eq!(data["span"]["durationMs"], row.duration.unwrap() as f64);
        assert_eq!(data["reported"]["runtime"], "vm2");
        assert_eq!(data["sources"], json!({"userId": "node"}));

        let shared = fixture
            .rows
            .iter()
            .enumerate()
            .filter(|(index, row)| index.is_multiple_of(5) && row.is_own());
        let wanted: BTreeSet<&str> = shared.map(|(_, row)| row.id.as_str()).collect();
        let trace = &wanted.first().unwrap()[..32];
        let data = &good(&api, &format!("/traces/{}", trace.to_uppercase())).await["data"];
        let ids: BTreeSet<&str> = data["executions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, wanted);
        assert_eq!(data["signozUrl"], format!("https://signoz.example/trace/{trace}"));

        for unknown in [
            "/code-exec-logs/nothing",
            "/traces/00000000000000000000000000000000",
            "/nothing",
        ] {
            let (status, answer) = ask(&api, unknown).await;
            assert_eq!(
                (status, &answer["error"]["code"]),
                (StatusCode::NOT_FOUND, &json!("NOT_FOUND")),
                "{unknown}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_others_are_shown_only_when_all_are() {
    for fixture in fixtures(ROWS).await {
        let own = fixture.api_with(|options| options.rows = RowsShown::Own);
        let count = good(&own, "/code-exec-logs/stats").await["data"]["count"]
            .as_u64()
            .unwrap();
        assert_eq!(count, fixture.rows.iter().filter(|row| row.is_own()).count() as u64);
        let other = fixture.rows.iter().find(|row| !row.is_own()).unwrap();
        assert_eq!(
            ask(&own, &format!("/code-exec-logs/{}", other.id)).await.0,
            StatusCode::NOT_FOUND
        );
        let shown = good(&fixture.api(), &format!("/code-exec-logs/{}", other.id)).await;
        assert_eq!(shown["data"]["traceId"], Value::Null);
        assert_eq!(shown["data"]["span"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_organization_sees_nothing_of_another_on_any_path() {
    for (fixture, shown) in each_shown(&packed_fixtures().await) {
        let api = fixture.api_with(|options| {
            options.rows = shown;
            options.tokens = vec![
                ApiToken {
                    token: "all".to_owned(),
                    organization: None,
                },
                ApiToken {
                    token: "one".to_owned(),
                    organization: Some("org-1".to_owned()),
                },
            ];
        });
        let mine = fixture.expected(|row| is_shown(row, shown) && row.organization.as_deref() == Some("org-1"));
        let other = fixture.expected(|row| is_shown(row, shown) && row.organization.as_deref() == Some("org-2"));
        let trace = &fixture.rows[5].id[..32];
        for path in [
            "/code-exec-logs?limit=1000".to_owned(),
            "/code-exec-logs?limit=1000&organizationId=org-2".to_owned(),
            "/code-exec-logs/agent/agent-1".to_owned(),
            "/code-exec-logs/workflow/wf%2F3".to_owned(),
            "/code-exec-logs/stats?groupBy=organization".to_owned(),
            "/code-exec-logs/facets".to_owned(),
            format!("/traces/{trace}"),
        ] {
            let (status, answer) = ask_as(&api, &path, Some("one")).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            let text = answer.to_string();
            assert!(!text.contains("org-0") && !text.contains("org-2"), "{path}: {text}");
        }
        let counted = [
            ("/code-exec-logs/stats", "/data/count"),
            ("/code-agents/analytics", "/stats/totalExecutions"),
        ];
        for (path, pointer) in counted {
            let (_, answer) = ask_as(&api, path, Some("one")).await;
            assert_eq!(*answer.pointer(pointer).unwrap(), mine.len(), "{path}");
        }
        let (_, errors) = ask_as(&api, "/code-exec-logs/errors", Some("one")).await;
        let total: u64 = errors["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["count"].as_u64().unwrap())
            .sum();
        assert_eq!(total, mine.iter().filter(|row| !row.success).count() as u64);
        let (_, series) = ask_as(&api, "/code-exec-logs/timeseries?from=now-60d", Some("one")).await;
        let total: u64 = series["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|point| point["count"].as_u64().unwrap())
            .sum();
        assert_eq!(total, mine.len() as u64);
        let of_other = format!("/code-exec-logs/{}", other[0].id);
        assert_eq!(ask_as(&api, &of_other, Some("one")).await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask_as(&api, &of_other, Some("all")).await.0, StatusCode::OK);
        assert_eq!(ask_as(&api, "/pipeline", Some("one")).await.0, StatusCode::FORBIDDEN);
        assert_eq!(ask_as(&api, "/pipeline", Some("all")).await.0, StatusCode::OK);
        for token in [None, Some("wrong"), Some("")] {
            let response = respond(&api, "/code-exec-logs", token).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert!(response.headers().contains_key("www-authenticate"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_said_with_the_parameter_that_does_not() {
    for fixture in fixtures(0).await {
        let api = fixture.api();
        for (path, parameter) in [
            ("/code-exec-logs?runtim=e2b", "runtim "),
            ("/code-exec-logs?from=yesterday", "from"),
            ("/code-exec-logs?outcome=failed", "outcome"),
            ("/code-exec-logs?traceId=xyz", "traceId"),
            ("/code-exec-logs?limit=many", "limit"),
            ("/code-exec-logs?cursor=abc", "cursor"),
            ("/code-exec-logs?q=%00", "NUL"),
            ("/code-exec-logs/stats?groupBy=password", "groupBy"),
            ("/code-exec-logs/timeseries?from=now-90d&step=1", "step"),
            ("/code-exec-logs/live?limit=3", "limit"),
        ] {
            let (status, answer) = ask(&api, path).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
            assert_eq!(answer["success"], false);
            assert_eq!(answer["error"]["code"], "INVALID_PARAMETER");
            assert!(
                answer["error"]["message"].as_str().unwrap().contains(parameter),
                "{answer}"
            );
        }
        for harmless in ["'; DROP TABLE code_exec_logs; --", "\" OR 1=1", "$1", "?"] {
            let value = encode(harmless);
            let answer = good(&api, &format!("/code-exec-logs?agentId={value}&q={value}")).await;
            assert_eq!(answer["count"], 0);
        }
        let numbers = good(&api, "/code-exec-logs/stats").await;
        assert_eq!(numbers["data"]["count"], 0);
        assert_eq!(numbers["data"]["p95DurationMs"], Value::Null);
        let post = Request::post("/api/v1/code-exec-logs").body(()).unwrap();
        assert_eq!(api.answer(&post).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_an_error_of_its_own_that_may_pass() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("executions.db").display());
    let options = QueryOptions {
        url: url.clone(),
        table: "code_exec_logs".to_owned(),
        ..QueryOptions::default()
    };
    let api = QueryApi::new(options, PipelineReport::default, CancellationToken::new()).unwrap();
    for (path, code) in [
        ("/code-exec-logs/agent/a", "FETCH_LOGS_ERROR"),
        ("/code-exec-logs/workflow/a", "FETCH_LOGS_ERROR"),
        ("/code-exec-logs/agent/a/stats", "FETCH_STATS_ERROR"),
        ("/code-exec-logs", "DATABASE_UNAVAILABLE"),
    ] {
        let (status, answer) = ask(&api, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer["error"]["code"], code, "{path}");
    }
    assert!(
        !directory.path().join("executions.db").exists(),
        "reading made the database"
    );
    migrate(LedgerOptions {
        url,
        ..LedgerOptions::default()
    })
    .await
    .unwrap();
    good(&api, "/code-exec-logs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_every_path_and_exactly_the_parameters_that_are_known() {
    for fixture in fixtures(ROWS).await {
        let api = fixture.api();
        let response = respond(&api, "/openapi.json", None).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let description: Value = serde_json::from_slice(&body).unwrap();
        let row = fixture.rows.iter().find(|row| row.is_own()).unwrap();
        let mut documented = 0;
        for (path, operation) in description["paths"].as_object().unwrap() {
            let path = path
                .replace("{agentId}", "agent-1")
                .replace("{executionId}", "wf%2F3")
                .replace("{traceId}", &row.id[..32])
                .replace("{id}", &row.id);
            let parameters = operation["get"]["parameters"].as_array().unwrap();
            let name = |parameter: &Value| {
                let resolved = match parameter["$ref"].as_str() {
                    Some(reference) => description.pointer(reference.trim_start_matches('#')).unwrap(),
                    None => parameter,
                };
                (resolved["in"] == "query").then(|| resolved["name"].as_str().unwrap().to_owned())
            };
            for name in parameters.iter().filter_map(name) {
                documented += 1;
                // A value that is wrong, or an answer: either way the name is known.
                let (status, answer) = if path.ends_with("/live") {
                    continue;
                } else {
                    ask(&api, &format!("{path}?{name}=1")).await
                };
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                assert!(!message.contains("is not known here"), "{path}: {status} {message}");
            }
            if !path.ends_with("/live") {
                assert_eq!(respond(&api, &path, None).await.status(), StatusCode::OK, "{path}");
            }
        }
        assert!(documented > 80, "{documented}");
        let (_, unknown) = ask(&api, "/code-exec-logs?nothing=1").await;
        let known = unknown["error"]["message"]
            .as_str()
            .unwrap()
            .split("known are ")
            .nth(1)
            .unwrap()
            .to_owned();
        let listed = description["paths"]["/code-exec-logs"]["get"]["parameters"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(known.split(", ").count(), listed, "{known}");
    }
}

/// Reads events until one satisfies `enough`.
async fn events(body: &mut Body, mut enough: impl FnMut(&str) -> bool) -> String {
    let mut text = String::new();
    let read = async {
        while !enough(&text) {
            let frame = body.frame().await.expect("the stream goes on").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap_or_else(|_| panic!("never came"));
    text
}

fn ids(events: &str) -> Vec<String> {
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| {
        serde_json::from_str::<Value>(data).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_appear_live_as_they_are_written_once_each_by_filter_and_from_an_event_on() {
    for mut fixture in fixtures(50).await {
        let api = fixture.api_with(|options| options.rows = RowsShown::Own);
        let mut everything = respond(&api, "/code-exec-logs/live", None).await.into_body();
        let mut failures = respond(&api, "/code-exec-logs/live?outcome=error&outcome=timeout", None)
            .await
            .into_body();
        // From this line on nothing is missed.
        events(&mut everything, |text| text.contains("retry:")).await;
        events(&mut failures, |text| text.contains("retry:")).await;
        let mut more = make_rows(SEED + 1, 200);
        let now = Utc::now().timestamp_micros();
        for (index, row) in more.iter_mut().enumerate() {
            row.at = now + index as i64;
        }
        let (first, rest) = more.split_at(20);
        execute(&fixture.url, insert_sql(first)).await;
        let own = |rows: &[Row]| {
            rows.iter()
                .filter(|row| row.is_own())
                .map(|row| row.id.clone())
                .collect::<Vec<_>>()
        };
        let wanted = own(first);
        let text = events(&mut everything, |text| ids_so_far(text) >= wanted.len()).await;
        assert_eq!(
            ids(&text).into_iter().collect::<BTreeSet<_>>(),
            wanted.iter().cloned().collect()
        );
        let last = text
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .next_back()
            .unwrap()
            .to_owned();

        execute(&fixture.url, insert_sql(rest)).await;
        let wanted_rest = own(rest);
        let text = events(&mut everything, |text| ids_so_far(text) >= wanted_rest.len()).await;
        let got = ids(&text);
        assert_eq!(got.len(), wanted_rest.len(), "once each");
        assert_eq!(
            got.into_iter().collect::<BTreeSet<_>>(),
            wanted_rest.iter().cloned().collect()
        );

        let failed: Vec<String> = more
            .iter()
            .filter(|row| row.is_own() && !row.success)
            .map(|row| row.id.clone())
            .collect();
        let text = events(&mut failures, |text| ids_so_far(text) >= failed.len()).await;
        assert_eq!(
            ids(&text).into_iter().collect::<BTreeSet<_>>(),
            failed.into_iter().collect()
        );

        let mut resumed = respond(&api, &format!("/code-exec-logs/live?lastEventId={last}"), None)
            .await
            .into_body();
        let text = events(&mut resumed, |text| ids_so_far(text) >= wanted_rest.len()).await;
        assert_eq!(
            ids(&text).into_iter().collect::<BTreeSet<_>>(),
            wanted_rest.into_iter().collect()
        );
        fixture.shutdown.cancel();
        let end = tokio::time::timeout(Duration::from_secs(5), everything.frame())
            .await
            .unwrap();
        assert!(end.is_none(), "a shutdown ends the stream");
        fixture.rows.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_organization_sees_live_rows_of_that_organization_only() {
    for mut fixture in fixtures(20).await {
        let token = |token: &str, organization: Option<&str>| ApiToken {
            token: token.to_owned(),
            organization: organization.map(str::to_owned),
        };
        let api = fixture.api_with(|options| {
            options.rows = RowsShown::Own;
            options.tokens = vec![token("all", None), token("one", Some("org-1"))];
        });
        let live = "/code-exec-logs/live";
        assert_eq!(respond(&api, live, None).await.status(), StatusCode::UNAUTHORIZED);
        let mut everything = respond(&api, live, Some("all")).await.into_body();
        let mut mine = respond(&api, live, Some("one")).await.into_body();
        // To ask for the rows of others is to ask for none.
        let other = format!("{live}?organizationId=org-2");
        let mut others = respond(&api, &other, Some("one")).await.into_body();
        for stream in [&mut everything, &mut mine, &mut others] {
            events(stream, |text| text.contains("retry:")).await;
        }
        let mut rows = make_rows(SEED + 2, 100);
        let now = Utc::now().timestamp_micros();
        for (index, row) in rows.iter_mut().enumerate() {
            row.at = now + index as i64;
        }
        execute(&fixture.url, insert_sql(&rows)).await;
        let own = rows.iter().filter(|row| row.is_own());
        let (all, of_one): (BTreeSet<String>, BTreeSet<String>) = (
            own.clone().map(|row| row.id.clone()).collect(),
            own.filter(|row| row.organization.as_deref() == Some("org-1"))
                .map(|row| row.id.clone())
                .collect(),
        );
        assert!(!of_one.is_empty() && of_one.len() < all.len());
        let seen = |text: &str| ids(text).into_iter().collect::<BTreeSet<_>>();
        let text = events(&mut everything, |text| ids_so_far(text) >= all.len()).await;
        assert_eq!(seen(&text), all);
        let text = events(&mut mine, |text| ids_so_far(text) >= of_one.len()).await;
        assert_eq!(seen(&text), of_one);
        // A row that comes later is seen by the one who may; until then the streams had nothing else to show.
        let mut last = rows[1].clone();
        (last.id, last.organization) = (format!("{:032x}-{:016x}", 1, 1), Some("org-1".to_owned()));
        assert!(last.is_own());
        last.at = now + 1_000;
        execute(&fixture.url, insert_sql(std::slice::from_ref(&last))).await;
        let text = events(&mut mine, |text| ids_so_far(text) >= 1).await;
        assert_eq!(seen(&text), BTreeSet::from([last.id]));
        fixture.shutdown.cancel();
        let mut rest = String::new();
        while let Some(Ok(frame)) = others.frame().await {
            rest.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
        assert_eq!(ids_so_far(&rest), 0, "{rest}");
        fixture.rows.clear();
    }
}

fn ids_so_far(text: &str) -> usize {
    text.matches("\nevent: row\n").count()
}

/// Takes minutes: `cargo test --release --test query_api -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes a million rows in each database, and measures"]
async fn with_a_million_rows_a_weeks_answers_are_quick() {
    const MILLION: usize = 1_000_000;
    let limit = Duration::from_millis(100);
    let mut slow = Vec::new();
    for fixture in fixtures(0).await {
        let mut agent = String::new();
        for part in 0..MILLION / 20_000 {
            let mut rows = make_rows(SEED + part as u64, 20_000);
            for row in &mut rows {
                // Ninety days, as they are kept, in the order in which rows are written.
                let day = 86_400_000_000;
                let start =
                    Utc::now().timestamp_micros() - 90 * day + 90 * day / (MILLION / 20_000) as i64 * part as i64;
                row.at = start + (row.at % (90 * day / 50)).abs();
                row.agent = row.agent.as_ref().map(|agent| format!("{agent}-{}", row.at % 500));
                agent = row.agent.clone().unwrap_or(agent);
            }
            rows.sort_by_key(|row| row.at);
            execute(&fixture.url, insert_sql(&rows)).await;
        }
        if fixture.url.starts_with("postgres") {
            execute(&fixture.url, "VACUUM ANALYZE".to_owned()).await;
        }
        let began = std::time::Instant::now();
        pack(&fixture.url).await;
        println!("packed in {:.1?}", began.elapsed());
        let api = fixture.api_with(|options| options.rows = RowsShown::Own);
        let page = good(&api, "/code-exec-logs?from=now-7d").await;
        let (cursor, row) = (
            page["nextCursor"].as_str().unwrap(),
            page["data"][0]["id"].as_str().unwrap(),
        );
        for path in [
            format!("/code-exec-logs/agent/{agent}"),
            format!("/code-exec-logs/agent/{agent}/stats"),
            "/code-agents/analytics?timeRange=7d".to_owned(),
            "/code-exec-logs?from=now-7d".to_owned(),
            format!("/code-exec-logs?from=now-7d&cursor={cursor}"),
            "/code-exec-logs?from=now-7d&runtime=e2b&outcome=timeout".to_owned(),
            "/code-exec-logs?from=now-7d&q=nowhere".to_owned(),
            format!("/code-exec-logs/{row}"),
            format!("/traces/{}", &row[..32]),
            "/code-exec-logs/stats?from=now-7d".to_owned(),
            "/code-exec-logs/stats?from=now-7d&groupBy=runtime".to_owned(),
            "/code-exec-logs/stats?from=now-7d&groupBy=agent".to_owned(),
            "/code-exec-logs/timeseries?from=now-7d".to_owned(),
            "/code-exec-logs/facets?from=now-7d".to_owned(),
            "/code-exec-logs/errors?from=now-7d".to_owned(),
        ] {
            let mut times = Vec::new();
            for _ in 0..20 {
                let start = std::time::Instant::now();
                good(&api, &path).await;
                times.push(start.elapsed());
            }
            times.sort_unstable();
            let database = fixture.url.split(':').next().unwrap();
            println!("{database:8} p50 {:6.1?} p95 {:6.1?}  {path}", times[9], times[18]);
            if times[18] > limit {
                slow.push(path);
            }
        }
    }
    assert!(slow.is_empty(), "over {limit:?}: {slow:#?}");
}
