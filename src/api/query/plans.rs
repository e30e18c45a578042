//! How the databases carry out what is asked of them: never by reading a whole table where an index can serve.

use std::cell::RefCell;
use std::future::Future;
use std::ops::RangeInclusive;

use http::{Request, StatusCode};
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use super::database::{Cell, Dialect, Kind, Sql};
use super::{PipelineReport, QueryApi, QueryOptions, RowsShown};
use crate::ledger::tests::postgres;
use crate::ledger::{Ledger, LedgerOptions, migrate};

tokio::task_local! {
    static STATEMENTS: RefCell<Vec<Sql>>;
}

/// Notes a statement, where [`statements_of`] listens.
pub(super) fn record(sql: &Sql) {
    // Outside of it nobody listens.
    STATEMENTS
        .try_with(|statements| statements.borrow_mut().push(sql.clone()))
        .ok();
}

/// What is asked of the database meanwhile.
async fn statements_of(work: impl Future<Output = ()>) -> Vec<Sql> {
    STATEMENTS
        .scope(RefCell::default(), async {
            work.await;
            STATEMENTS.with(RefCell::take)
        })
        .await
}

/// SQL that begins a statement over the numbers `n` of so many rows.
pub(super) fn numbers(dialect: Dialect, rows: RangeInclusive<usize>) -> String {
    let (first, last) = rows.into_inner();
    match dialect {
        Dialect::Sqlite => {
            format!("WITH RECURSIVE n(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {last})")
        }
        Dialect::Postgres => format!("WITH n AS (SELECT generate_series({first}, {last}) AS n)"),
    }
}

/// SQL of the id of a row, whose trace and span are these numbers.
pub(super) fn id(dialect: Dialect, trace: &str, span: &str) -> String {
    match dialect {
        Dialect::Sqlite => format!("printf('%032x-%016x', {trace}, {span})"),
        Dialect::Postgres => format!("lpad(to_hex({trace}), 32, '0') || '-' || lpad(to_hex({span}), 16, '0')"),
    }
}

/// SQL of the time `n` times so many seconds ago.
pub(super) fn seconds_ago(dialect: Dialect, times: usize) -> String {
    match dialect {
        Dialect::Sqlite => format!("strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || (n * {times}) || ' seconds')"),
        Dialect::Postgres => format!("(now() AT TIME ZONE 'UTC') - n * interval '{times} seconds'"),
    }
}

/// Twenty thousand rows over forty days, each beside what is known of it.
fn rows_sql(dialect: Dialect) -> String {
    let numbers = numbers(dialect, 1..=20_000);
    let hex = id(dialect, "n * 7919", "n");
    let at = seconds_ago(dialect, 172);
    format!(
        "INSERT INTO code_exec_logs (id, code_agent_id, workflow_execution_id, runtime, language, duration_ms, success, \
         error_message, created_at) {numbers} SELECT {hex}, 'agent-' || (n % 500), 'wf-' || (n % 900), \
         'r' || (n % 4), 'l' || (n % 5), n % 997, n % 10 <> 0, 'e' || (n % 50), {at} FROM n; \
         INSERT INTO spanledger_executions (id, trace_id, span_id, start_ns, end_ns, received_at_ns, created_at, \
         reported_outcome, cost_usd, sources) SELECT id, substr(id, 1, 32), substr(id, 34), 0, 0, 0, created_at, \
         CASE WHEN success THEN 'success' ELSE 'error' END, 0.5, '{{}}' FROM code_exec_logs; ANALYZE;"
    )
}

/// A database with the tables of the ledger, in which this was done.
pub(super) async fn database(dialect: Dialect, sql: String) -> Option<(String, Option<tempfile::TempDir>)> {
    let (url, directory) = match dialect {
        Dialect::Postgres if postgres::skipped() => return None,
        Dialect::Postgres => {
            let made = tokio::task::spawn_blocking(|| postgres::shared().database());
            (made.await.unwrap(), None)
        }
        Dialect::Sqlite => {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", directory.path().join("rows.db").display());
            (url, Some(directory))
        }
    };
    let options = LedgerOptions {
        url: url.clone(),
        ..LedgerOptions::default()
    };
    migrate(options).await.unwrap();
    execute(&url, sql).await;
    Some((url, directory))
}

pub(super) async fn execute(url: &str, sql: String) {
    let sql = sqlx::AssertSqlSafe(sql);
    if url.starts_with("postgres") {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
}

/// The steps that read a whole table.
async fn whole_tables(api: &QueryApi, sql: Sql) -> Vec<String> {
    let kinds: &[Kind] = match api.dialect() {
        Dialect::Sqlite => &[Kind::Integer, Kind::Integer, Kind::Integer, Kind::Text],
        Dialect::Postgres => &[Kind::Text],
    };
    let mut steps = Vec::new();
    let step = |mut row: Vec<Cell>| {
        steps.extend(row.pop().and_then(Cell::into_text));
        Ok(())
    };
    api.database().each(sql.explained(), kinds, step).await.unwrap();
    let is_whole = |step: &String| match api.dialect() {
        // In the order of an index it ends with the page.
        Dialect::Sqlite => {
            (step.contains("SCAN t") || step.contains("SCAN code_exec_logs")) && !step.contains("USING INDEX")
        }
        Dialect::Postgres => step.contains("Seq Scan on code_exec_logs") || step.contains("Seq Scan on spanledger_"),
    };
    steps.into_iter().filter(is_whole).collect()
}

async fn nothing_reads_a_whole_table(dialect: Dialect) {
    let Some((url, _directory)) = database(dialect, rows_sql(dialect)).await else {
        return;
    };
    // Small tables are read whole because that is quicker; this asks whether it has to be.
    let asked = match dialect {
        Dialect::Postgres => format!(
            "{url}{}options=-c%20enable_seqscan%3Doff",
            if url.contains('?') { '&' } else { '?' }
        ),
        Dialect::Sqlite => url.clone(),
    };
    let options = QueryOptions {
        url: asked,
        table: "code_exec_logs".to_owned(),
        rows: RowsShown::Own,
        ..QueryOptions::default()
    };
    let api = QueryApi::new(options, PipelineReport::default, CancellationToken::new()).unwrap();
    let id = format!("{:032x}-{:016x}", 7919, 1);
    let of_rows = [
        "/code-exec-logs/agent/agent-7".to_owned(),
        "/code-exec-logs/agent/agent-7/stats".to_owned(),
        "/code-exec-logs/workflow/wf-3".to_owned(),
        "/code-exec-logs".to_owned(),
        "/code-exec-logs?from=now-7d&runtime=r1&outcome=error".to_owned(),
        "/code-exec-logs?from=now-7d&q=nowhere".to_owned(),
        "/code-exec-logs?agentId=agent-7".to_owned(),
        format!("/code-exec-logs?traceId={}", &id[..32]),
        format!("/code-exec-logs?from=now-7d&traceId={}", &id[..32]),
        format!("/code-exec-logs/{id}"),
        format!("/traces/{}", &id[..32]),
    ];
    let numbers = [
        "/code-agents/analytics?timeRange=7d",
        "/code-exec-logs/stats?from=now-7d",
        "/code-exec-logs/stats?from=now-7d&groupBy=agent",
        "/code-exec-logs/timeseries?from=now-7d",
        "/code-exec-logs/facets?from=now-7d",
        "/code-exec-logs/errors?from=now-7d",
    ];
    let ask = async |path: &str| {
        let request = Request::get(format!("/api/v1{path}"))
            .header("host", "localhost")
            .body(());
        let statements = statements_of(async {
            assert_eq!(api.answer(&request.unwrap()).await.status(), StatusCode::OK, "{path}");
        })
        .await;
        assert!(!statements.is_empty(), "{path} asks for nothing");
        statements
    };
    let mut asked_before_packing = 0;
    for path in of_rows.iter().map(String::as_str).chain(numbers) {
        for sql in ask(path).await {
            asked_before_packing += 1;
            let whole = whole_tables(&api, sql.clone()).await;
            assert!(whole.is_empty(), "{path}: {whole:?} in {sql:?}");
        }
    }
    assert!(asked_before_packing >= of_rows.len() + numbers.len());
    let of_live = statements_of(api.ask_all_of_live()).await;
    assert!(of_live.len() >= 6);
    for sql in of_live {
        let whole = whole_tables(&api, sql.clone()).await;
        assert!(whole.is_empty(), "{whole:?} in {sql:?}");
    }
    // With packed hours, statistics ask the tables for no more than the rest.
    let options = LedgerOptions {
        url,
        ..LedgerOptions::default()
    };
    Ledger::new(options).unwrap().pack().await.unwrap();
    for path in &numbers[..5] {
        let statements = ask(path).await;
        let of_tables = statements.iter().filter(|sql| sql.says("code_exec_logs")).count();
        assert!(statements.iter().any(|sql| sql.says("spanledger_hours")), "{path}");
        // Before the first whole hour and after the last one; facets are counted in up to three looks.
        assert!(
            (1..=6).contains(&of_tables),
            "{path}: {of_tables} of {}",
            statements.len()
        );
        for sql in statements {
            let whole = whole_tables(&api, sql.clone()).await;
            assert!(whole.is_empty(), "{path}: {whole:?} in {sql:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_reads_no_whole_table() {
    nothing_reads_a_whole_table(Dialect::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_reads_no_whole_table() {
    nothing_reads_a_whole_table(Dialect::Postgres).await;
}
