//! PostgreSQL and SQLite: the same rows for the same spans, column by column; and several programs that start together
//! on one empty database, through a pooler.

use crate::common::pgbouncer::PgBouncer;
use crate::common::program::{Program, Setup};
use crate::common::rows::{self, Row};
use crate::common::scenario::Scenario;
use crate::common::send::{ROUTES, Route, Sender};
use crate::common::{eventually, postgres, random, spans, unix_ms_ago};
use crate::context::Story;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::json;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Row as _};
use std::time::Duration;

/// All rows of a PostgreSQL database by id.
async fn read(url: &str) -> Result<Vec<Row>, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let query = format!(
        "SELECT {} FROM code_exec_logs ORDER BY id COLLATE \"C\"",
        rows::COLUMNS.join(", ")
    );
    let found = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut connection).await?;
    connection.close().await?;
    found.iter().map(row).collect()
}

fn row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let integer = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i32>, _>(column)?.map(i64::from));
    Ok(Row {
        id: row.try_get("id")?,
        code_agent_id: row.try_get("code_agent_id")?,
        workflow_execution_id: row.try_get("workflow_execution_id")?,
        node_id: row.try_get("node_id")?,
        runtime: row.try_get("runtime")?,
        language: row.try_get("language")?,
        duration_ms: integer("duration_ms")?,
        memory_mb: integer("memory_mb")?,
        exit_code: integer("exit_code")?,
        success: row.try_get("success")?,
        error_message: row.try_get("error_message")?,
        tokens_used: integer("tokens_used")?,
        validation_passed: row.try_get("validation_passed")?,
        organization_id: row.try_get("organization_id")?,
        workspace_id: row.try_get("workspace_id")?,
        user_id: row.try_get("user_id")?,
        created_at: row
            .try_get::<chrono::NaiveDateTime, _>("created_at")?
            .and_utc()
            .timestamp_micros(),
    })
}

/// Values at the edges of what columns hold: one execution each.
fn odd_spans(random: &mut fastrand::Rng) -> ExportTraceServiceRequest {
    let end = unix_ms_ago(Duration::from_secs(60)) * 1_000_000;
    let long = "€".repeat(4000);
    let cases = [
        json!({"code.duration_ms": 1.5, "code.memory_mb": 0.49, "code.exit_code": "137", "code.tokens_used": 2.5}),
        json!({"code.duration_ms": 9e15, "code.memory_mb": 1e300, "code.exit_code": -9e18 as i64, "code.tokens_used": 0}),
        json!({"code.runtime": "", "code.language": "", "node.id": "", "organization.id": "", "code.success": false}),
        json!({"code.runtime": "vm2\u{0}", "code.language": "p\u{0}ython", "user.id": "'; DROP TABLE code_exec_logs; --"}),
        json!({"code.success": "true", "code.validation_passed": "false", "workspace.id": "ваш\\отдел\t\"1\"\n"}),
        json!({"code.success": false, "code.exit_code": 0, "code.agent_id": "🤖", "workflow.execution_id": "NULL"}),
    ];
    let all = cases.into_iter().enumerate().map(|(index, mut attributes)| {
        let map = attributes.as_object_mut().unwrap();
        for (key, default) in [("code.runtime", "vm2"), ("code.language", "python")] {
            map.entry(key).or_insert(default.into());
        }
        let span = Span {
            trace_id: random.u128(1..).to_be_bytes().to_vec(),
            span_id: random.u64(1..).to_be_bytes().to_vec(),
            name: "code.execute".to_owned(),
            start_time_unix_nano: end - 1_499_999,
            // Between two microseconds, which is what the columns hold.
            end_time_unix_nano: end + 999 + index as u64 * 1000,
            attributes: spans::attributes(&attributes),
            status: Some(Status {
                code: 2,
                message: format!("{long}{index}\u{0}"),
            }),
            ..Default::default()
        };
        ("sos".to_owned(), span)
    });
    spans::request(Vec::new(), all.collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_and_sqlite_hold_the_same_rows_column_by_column() {
    if postgres::skipped() {
        return;
    }
    let mut random = random("postgresql_and_sqlite_hold_the_same_rows_column_by_column");
    let scenario = Scenario::read();
    let (mut requests, ids) = scenario.requests(&mut random);
    let story = Story::tell(random.fork());
    let mut told = [story.executions.clone(), story.context.clone()].concat();
    random.shuffle(&mut told);
    requests.push(spans::request(
        Vec::new(),
        told.into_iter().map(|span| ("sos".to_owned(), span)),
    ));
    requests.push(odd_spans(&mut random));
    let executions: usize = scenario.rows(&ids).len() + story.rows.len() + 6;

    let url = postgres::shared().database();
    let (on_sqlite, on_postgres) = (Setup::new(), Setup::new().set("database.url", url.clone()));
    let (one, other) = (on_sqlite.start().await, on_postgres.start().await);
    for request in &requests {
        let route = ROUTES[random.usize(..ROUTES.len())];
        for program in [&one, &other] {
            Sender::to(program).await.accepted(route, request).await;
        }
    }
    // A stopped program has written everything.
    for program in [one, other] {
        let (status, log) = program.terminate().await;
        assert_eq!(status.code(), Some(0), "{log}");
    }
    let sqlite = rows::read(&on_sqlite.database()).await.unwrap();
    let postgres = read(&url).await.unwrap();
    assert_eq!(sqlite.len(), executions);
    let wrong = rows::difference(&postgres, &sqlite);
    assert!(wrong.is_empty(), "PostgreSQL is not as SQLite:\n{}", wrong.join("\n"));
    let mut expected = [scenario.rows(&ids), story.rows.clone()].concat();
    expected.sort();
    let known: Vec<Row> = sqlite
        .into_iter()
        .filter(|row| expected.iter().any(|each| each.id == row.id))
        .collect();
    assert_eq!(rows::difference(&known, &expected), Vec::<String>::new());

    // What stands beside the rows is the same too, but for the moments of receipt.
    let columns = "id, trace_id, span_id, start_ns, end_ns, reported_runtime, reported_exit_code, reported_outcome, cost_usd, \
                   sources, row_id";
    let as_text: Vec<String> = columns
        .split(", ")
        .map(|column| format!("CAST({column} AS text)"))
        .collect();
    let query = format!("SELECT {} FROM spanledger_executions", as_text.join(", "));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let found = sqlx::query(AssertSqlSafe(query.clone()))
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let read_postgres = |row: &PgRow| {
        (0..11)
            .map(|index| row.get::<Option<String>, _>(index))
            .collect::<Vec<_>>()
    };
    let mut beside_postgres: Vec<_> = found.iter().map(read_postgres).collect();
    let mut connection = rows::open(&on_sqlite.database()).await.unwrap();
    let found = sqlx::query(AssertSqlSafe(query))
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut beside_sqlite: Vec<Vec<Option<String>>> = found
        .iter()
        .map(|row| (0..11).map(|index| row.get(index)).collect())
        .collect();
    beside_postgres.sort();
    beside_sqlite.sort();
    assert_eq!(beside_postgres.len(), executions);
    assert_eq!(beside_postgres, beside_sqlite);
}

/// The columns of a table as the catalogue has them: name, type, whether it may be NULL.
fn columns(database: &str, table: &str) -> String {
    postgres::shared().psql(
        database,
        &format!(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns \
             WHERE table_name = '{table}' ORDER BY ordinal_position"
        ),
    )
}

/// As documented in docs/rows.md.
const TABLE: &str = "id|text|NO\ncode_agent_id|text|YES\nworkflow_execution_id|text|YES\nnode_id|text|YES\n\
    runtime|text|NO\nlanguage|text|NO\nduration_ms|integer|YES\nmemory_mb|integer|YES\nexit_code|integer|YES\n\
    success|boolean|NO\nerror_message|text|YES\ntokens_used|integer|YES\nvalidation_passed|boolean|YES\n\
    organization_id|text|YES\nworkspace_id|text|YES\nuser_id|text|YES\n\
    created_at|timestamp without time zone|NO\n";

#[tokio::test(flavor = "multi_thread")]
async fn four_programs_start_together_through_a_pooler_on_an_empty_database_and_none_fails() {
    if postgres::skipped() {
        return;
    }
    let mut random = random("four_programs_start_together_through_a_pooler_on_an_empty_database_and_none_fails");
    let cluster = postgres::shared();
    let pooler = PgBouncer::before(cluster.port()).await;
    let url = cluster.database();
    let database = url.rsplit('/').next().unwrap();
    let pooled = pooler.url(database);
    let setups: Vec<Setup> = (0..4)
        .map(|_| Setup::new().set("database.url", pooled.clone()))
        .collect();
    // Twice: the second time the tables are there.
    let scenario = Scenario::read();
    let mut expected = Vec::new();
    for round in 0..2 {
        let programs: Vec<Program> = setups.iter().map(Setup::spawn).collect();
        for program in &programs {
            program.ready().await;
            let (requests, ids) = scenario.requests(&mut random);
            let sender = Sender::to(program).await;
            for request in &requests {
                sender.accepted(Route::Grpc, request).await;
            }
            expected.extend(scenario.rows(&ids));
        }
        eventually("the rows of all four", || async {
            let found = read(&url).await.map_err(|error| error.to_string())?;
            let wrong = rows::difference(&found, &expected);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
        for program in programs {
            let answer = program.get("health", "/readyz").await;
            assert_eq!(answer.status, 200);
            assert!(answer.text().contains("\"degraded\":[]"), "{}", answer.text());
            // The page's own connections go through the pooler too.
            let answer = program.get("api", "/api/v1/code-exec-logs?limit=1").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let (status, log) = program.terminate().await;
            assert_eq!(status.code(), Some(0), "{log}");
            for level in ["\"WARN\"", "\"ERROR\""] {
                assert!(!log.contains(level), "round {round}: not a calm start:\n{log}");
            }
        }
    }
    assert_eq!(columns(database, "code_exec_logs"), TABLE);
    let key = "SELECT string_agg(a.attname, ',') FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
               AND a.attnum = ANY (i.indkey) WHERE i.indrelid = 'code_exec_logs'::regclass";
    assert_eq!(
        cluster.psql(database, &format!("{key} AND i.indisprimary")).trim(),
        "id"
    );
    let indexed = cluster.psql(
        database,
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = 'code_exec_logs'::regclass AND NOT i.indisprimary ORDER BY 1",
    );
    assert_eq!(
        indexed,
        "code_agent_id\ncreated_at\nlanguage\nruntime\nsuccess\nworkflow_execution_id\n"
    );
    let foreign = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'code_exec_logs'::regclass AND contype = 'f'";
    assert_eq!(cluster.psql(database, foreign).trim(), "0");
    assert_eq!(
        cluster
            .psql(database, "SELECT count(*) FROM spanledger_positions")
            .trim(),
        "4"
    );
    // With `migrate: false` the tables are used as they are.
    let setup = Setup::new().set("database.url", pooled).set("database.migrate", false);
    let program = setup.start().await;
    let (requests, ids) = scenario.requests(&mut random);
    for request in &requests {
        Sender::to(&program).await.accepted(Route::Http, request).await;
    }
    expected.extend(scenario.rows(&ids));
    program.terminate().await;
    assert_eq!(
        rows::difference(&read(&url).await.unwrap(), &expected),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tables_and_without_leave_to_make_them_the_start_says_so() {
    if postgres::skipped() {
        return;
    }
    let url = postgres::shared().database();
    let setup = Setup::new().set("database.url", url).set("database.migrate", false);
    let (status, log) = setup.spawn().ended().await;
    assert!(!status.success(), "{log}");
    assert!(
        log.contains("code_exec_logs") && log.contains("database.migrate"),
        "{log}"
    );
}
