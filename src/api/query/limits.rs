//! What answers may take: memory, seats, time in the database.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use super::answer::{ANSWER, AT_ONCE};
use super::database::{CONNECTIONS, Cell, Database, Dialect, Kind, Sql};
use super::plans::{database, execute, id, numbers, seconds_ago};
use super::{PipelineReport, QueryApi, QueryError, QueryOptions, RowsShown};
use crate::ledger::{Ledger, LedgerOptions};
use crate::listen::Body;

const BOTH: [Dialect; 2] = [Dialect::Sqlite, Dialect::Postgres];

/// So many failures of one workflow or of as many as there are rows, a second apart, each with `message`: SQL of `n`, the
/// number of the row.
fn failures(dialect: Dialect, rows: usize, workflow: &str, message: &str) -> String {
    let numbers = numbers(dialect, 1..=rows);
    let hex = id(dialect, "n", "n");
    let at = seconds_ago(dialect, 1);
    format!(
        "INSERT INTO code_exec_logs (id, workflow_execution_id, runtime, language, duration_ms, success, error_message, \
         created_at) {numbers} SELECT {hex}, {workflow}, 'r', 'l', n, false, {message}, {at} FROM n;"
    )
}

/// A text of 8 KiB that differs from row to row in its last line.
fn long_text(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => {
            "'Traceback (most recent call last):' || char(10) || hex(zeroblob(4000)) || char(10) || 'E' || n"
        }
        Dialect::Postgres => {
            "'Traceback (most recent call last):' || chr(10) || repeat('0', 8000) || chr(10) || 'E' || n"
        }
    }
}

/// What is beside each row.
const BESIDE: &str = "INSERT INTO spanledger_executions (id, trace_id, span_id, start_ns, end_ns, received_at_ns, \
                      created_at, reported_outcome, sources) SELECT id, substr(id, 1, 32), substr(id, 34), 0, 0, 0, \
                      created_at, 'error', '{}' FROM code_exec_logs;";

async fn api(dialect: Dialect, sql: String) -> Option<(QueryApi, String, Option<tempfile::TempDir>)> {
    let (url, directory) = database(dialect, sql).await?;
    let options = QueryOptions {
        url: url.clone(),
        table: "code_exec_logs".to_owned(),
        rows: RowsShown::Own,
        ..QueryOptions::default()
    };
    let api = QueryApi::new(options, PipelineReport::default, CancellationToken::new()).unwrap();
    Some((api, url, directory))
}

async fn respond(api: &QueryApi, path: &str) -> Response<Body> {
    let request = Request::get(format!("/api/v1{path}")).header("host", "localhost");
    api.answer(&request.body(()).unwrap()).await
}

async fn ask(api: &QueryApi, path: &str) -> (StatusCode, Value) {
    let response = respond(api, path).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn strings(answer: &Value, key: &str) -> Vec<String> {
    let data = answer["data"].as_array().unwrap();
    data.iter().map(|row| row[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_take_too_much_memory_is_refused_with_words_about_what_to_narrow() {
    for dialect in BOTH {
        let sql = failures(dialect, 60_000, "'wf-' || n", "'e'");
        let Some((api, _, _directory)) = api(dialect, sql).await else {
            continue;
        };
        for path in [
            "/code-exec-logs/stats?groupBy=workflow",
            "/code-exec-logs/timeseries?groupBy=workflow&from=now-2d",
            "/code-exec-logs/facets?field=workflowExecutionId",
        ] {
            let (status, answer) = ask(&api, path).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {dialect:?}");
            assert_eq!(answer["error"]["code"], "ANSWER_TOO_LARGE", "{path}");
            let message = answer["error"]["message"].as_str().unwrap();
            for word in ["8 MiB", "from", "groupBy"] {
                assert!(message.contains(word), "{path}: {message}");
            }
            let join = if path.contains("from=") {
                path.replace("from=now-2d", "from=now-10m")
            } else {
                format!("{path}&from=now-10m")
            };
            assert_eq!(ask(&api, &join).await.0, StatusCode::OK, "{join} {dialect:?}");
        }
        // These look at as many rows, and hold less of them.
        for path in ["/code-exec-logs/stats?groupBy=runtime", "/code-exec-logs/errors"] {
            assert_eq!(ask(&api, path).await.0, StatusCode::OK, "{path} {dialect:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_longer_than_an_answer_may_be_come_whole_and_in_order() {
    const ROWS: usize = 2500;
    for dialect in BOTH {
        let sql = failures(dialect, ROWS, "'wf'", long_text(dialect));
        let Some((api, _, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let expected: Vec<String> = (1..=ROWS).map(|n| format!("{n:032x}-{n:016x}")).collect();
        let response = respond(&api, "/code-exec-logs/workflow/wf").await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.len() > 2 * ANSWER, "{}", body.len());
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(strings(&answer, "id"), expected, "{dialect:?}");
        assert_eq!(answer["count"], ROWS);
        assert_eq!(answer["success"], true);
        assert_eq!(answer.get("nextCursor"), None);

        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/code-exec-logs?limit=1000{cursor}");
            let (status, answer) = ask(&api, &path).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            let page = strings(&answer, "id");
            assert_eq!(answer["count"], page.len());
            found.extend(page);
            let Some(next) = answer["nextCursor"].as_str() else {
                break;
            };
            assert_eq!(found.len() % 1000, 0, "a page is as long as was asked for");
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found, expected, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_shown_is_left_out_of_a_list_and_ends_it_for_no_other() {
    let mut sql = failures(Dialect::Postgres, 1200, "'wf'", "'m'");
    // A time that is none, and comes first.
    sql.push_str(" UPDATE code_exec_logs SET created_at = 'infinity' WHERE duration_ms % 3 = 0;");
    let Some((api, _, _directory)) = api(Dialect::Postgres, sql).await else {
        return;
    };
    let shown = (1..=1200).filter(|n| n % 3 > 0);
    let expected: Vec<String> = shown.map(|n| format!("{n:032x}-{n:016x}")).collect();
    let (_, answer) = ask(&api, "/code-exec-logs/workflow/wf").await;
    assert_eq!(strings(&answer, "id"), expected);
    let (_, answer) = ask(&api, "/code-exec-logs?limit=500").await;
    assert_eq!(strings(&answer, "id"), expected[..500]);
    let (_, answer) = ask(
        &api,
        &format!(
            "/code-exec-logs?limit=500&cursor={}",
            answer["nextCursor"].as_str().unwrap()
        ),
    )
    .await;
    assert_eq!(strings(&answer, "id"), expected[500..]);
    assert_eq!(answer["nextCursor"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_which_a_part_cannot_be_had_ends_in_an_error_and_not_in_a_shorter_list() {
    for dialect in BOTH {
        let sql = failures(dialect, 2000, "'wf'", long_text(dialect));
        let Some((api, url, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let response = respond(&api, "/code-exec-logs/workflow/wf").await;
        assert_eq!(response.status(), StatusCode::OK);
        execute(&url, "DROP TABLE code_exec_logs".to_owned()).await;
        assert!(response.into_body().collect().await.is_err(), "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_grouped_by_beginning_and_end_of_long_messages_and_shown_with_a_whole_one() {
    for dialect in BOTH {
        let sql = failures(dialect, 300, "'wf'", long_text(dialect));
        let Some((api, _, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let (status, answer) = ask(&api, "/code-exec-logs/errors").await;
        assert_eq!(status, StatusCode::OK);
        // The last lines are told apart by their numbers, which are left out where a word may be an id.
        let groups = answer["data"].as_array().unwrap();
        let of = |message: &str| groups.iter().find(|group| group["message"] == message).unwrap();
        assert_eq!(of("E1")["count"], 1, "{dialect:?}");
        assert_eq!(of("E1")["distinctMessages"], 1);
        let sample = of("E1")["sampleMessage"].as_str().unwrap();
        assert!(sample.len() > 8000 && sample.starts_with("Traceback") && sample.ends_with("\nE1"));
        assert_eq!(of("E1")["sampleId"], format!("{:032x}-{:016x}", 1, 1));
        let hexadecimal = of("#");
        assert_eq!(
            hexadecimal["count"], 201,
            "those of three digits are like ids: {dialect:?}"
        );
        assert_eq!(hexadecimal["distinctMessages"], 201);
        assert_eq!(answer["truncated"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_hours_that_cannot_be_asked_for_are_an_error_and_missing_ones_are_none() {
    for dialect in BOTH {
        let sql = failures(dialect, 3, "'wf'", "'e'");
        let Some((api, url, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let path = "/code-exec-logs/stats";
        execute(
            &url,
            "ALTER TABLE spanledger_hours RENAME COLUMN hour TO other".to_owned(),
        )
        .await;
        let (status, answer) = ask(&api, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{dialect:?}: {answer}");
        assert_eq!(answer["error"]["code"], "DATABASE_UNAVAILABLE");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains("hour"),
            "{answer}"
        );
        execute(&url, "DROP TABLE spanledger_hours".to_owned()).await;
        let (status, answer) = ask(&api, path).await;
        assert_eq!(
            (status, &answer["data"]["count"]),
            (StatusCode::OK, &3.into()),
            "{dialect:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_leave_room_for_as_many_as_there_is_memory_for() {
    let sql = failures(Dialect::Sqlite, 2000, "'wf'", long_text(Dialect::Sqlite));
    let (mut api, _, _directory) = api(Dialect::Sqlite, sql).await.unwrap();
    Arc::get_mut(&mut api.inner).unwrap().seats.patience = Duration::from_millis(100);
    // Small ones take next to nothing.
    let mut untaken = Vec::new();
    for _ in 0..10 * AT_ONCE {
        untaken.push(respond(&api, "/code-exec-logs/stats").await);
    }
    for response in untaken.drain(..) {
        assert_eq!(response.status(), StatusCode::OK);
    }
    // Of a long list, as much as is made before any of it is taken, and a row more.
    for _ in 0..AT_ONCE {
        untaken.push(respond(&api, "/code-exec-logs/workflow/wf").await);
    }
    assert_eq!(ask(&api, "/code-exec-logs/stats").await.0, StatusCode::OK);
    for _ in AT_ONCE..2 * AT_ONCE - 2 {
        untaken.push(respond(&api, "/code-exec-logs/workflow/wf").await);
    }
    let refused = respond(&api, "/code-exec-logs/stats").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["error"]["code"], "TOO_MANY_QUESTIONS");
    // How the stages are is told all the same.
    assert_eq!(ask(&api, "/pipeline").await.0, StatusCode::OK);
    let taken = untaken.pop().unwrap();
    assert_eq!(taken.status(), StatusCode::OK);
    taken.into_body().collect().await.unwrap();
    assert_eq!(ask(&api, "/code-exec-logs/stats").await.0, StatusCode::OK);
}

/// Looks for a number for ever and never finds a row.
fn endless(dialect: Dialect) -> Sql {
    let numbers = "WITH RECURSIVE n(n) AS (SELECT 1::bigint UNION ALL SELECT n + 1 FROM n) SELECT n FROM n WHERE n < 0";
    match dialect {
        Dialect::Sqlite => Sql::new(dialect, numbers.replace("::bigint", "")),
        Dialect::Postgres => Sql::new(dialect, numbers),
    }
}

fn one(dialect: Dialect) -> Sql {
    Sql::new(dialect, format!("SELECT {}", dialect.integer("1")))
}

async fn run(database: &Database, sql: Sql) -> Result<(), QueryError> {
    database.each(sql, &[Kind::Integer], |_| Ok(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_takes_too_long_is_ended_by_the_database_itself() {
    for dialect in BOTH {
        let Some((url, _directory)) = database(dialect, String::new()).await else {
            continue;
        };
        let mut database = Database::open(&url).unwrap();
        database.query_timeout = Duration::from_millis(100);
        let began = Instant::now();
        // More than there are connections.
        for _ in 0..6 {
            let error = run(&database, endless(dialect)).await.unwrap_err();
            assert!(error.to_string().contains("took too long"), "{dialect:?}: {error}");
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{dialect:?}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_nobody_waits_for_any_more_is_ended_and_keeps_no_connection_from_the_next_one() {
    for dialect in BOTH {
        let Some((url, _directory)) = database(dialect, String::new()).await else {
            continue;
        };
        let database = Database::open(&url).unwrap();
        // More than there are connections.
        for _ in 0..6 {
            let given_up = tokio::time::timeout(Duration::from_millis(100), run(&database, endless(dialect))).await;
            assert!(given_up.is_err());
        }
        run(&database, one(dialect)).await.unwrap();
        if dialect == Dialect::Postgres {
            let running = Sql::new(
                dialect,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE 'WITH RECURSIVE%'",
            );
            let began = Instant::now();
            // By itself a query would end after twenty seconds.
            while database.number(running.clone()).await.unwrap() > 0 {
                assert!(began.elapsed() < Duration::from_secs(10), "they go on in the server");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_lock_is_ended_when_nobody_waits_for_it_any_more() {
    let sql = failures(Dialect::Postgres, 3, "'wf'", "'e'");
    let Some((api, url, _directory)) = api(Dialect::Postgres, sql).await else {
        return;
    };
    let mut owner = sqlx::PgConnection::connect(&url).await.unwrap();
    // Within one transaction they would always look the same.
    let mut observer = sqlx::PgConnection::connect(&url).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'spanledger-api' AND wait_event_type = 'Lock'";
    let count = async |observer: &mut sqlx::PgConnection| -> i64 {
        sqlx::query_scalar(waiting).fetch_one(observer).await.unwrap()
    };
    let lock = "BEGIN; LOCK TABLE code_exec_logs IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut owner).await.unwrap();
    let questions: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { respond(&api, "/code-exec-logs").await.status() })
        })
        .collect();
    let began = Instant::now();
    while count(&mut observer).await < AT_ONCE as i64 {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    for question in questions {
        question.abort();
        assert!(question.await.unwrap_err().is_cancelled());
    }
    // The connections are free at once, although the lock is there still.
    let began = Instant::now();
    assert_eq!(api.database().number(one(Dialect::Postgres)).await.unwrap(), 1);
    while count(&mut observer).await > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "they go on in the server");
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut owner).await.unwrap();
    assert_eq!(ask(&api, "/code-exec-logs").await.1["count"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_rows_were_all_taken_or_whose_query_was_refused_serves_the_next_query() {
    let Some((url, _directory)) = database(Dialect::Postgres, String::new()).await else {
        return;
    };
    let database = Database::open(&url).unwrap();
    let connection = async || {
        let process = Sql::new(Dialect::Postgres, "SELECT pg_backend_pid()::bigint");
        database.number(process).await.unwrap()
    };
    // What is given back may not be there yet when the next one is asked for.
    let mut processes = HashSet::new();
    for _ in 0..5 * CONNECTIONS {
        processes.insert(connection().await);
        let refused = Sql::new(Dialect::Postgres, "SELECT n FROM nowhere");
        run(&database, refused).await.unwrap_err();
    }
    assert!(processes.len() <= CONNECTIONS as usize, "{processes:?}");
    // One that was left in the middle of its rows is not read to its end.
    let many = Sql::new(
        Dialect::Postgres,
        "SELECT pg_backend_pid()::bigint FROM generate_series(1, 1000000)",
    );
    let mut left = 0;
    let take = |row: Vec<Cell>| {
        left = row[0].integer().unwrap();
        Ok(ControlFlow::Break(()))
    };
    database.each_until(many, &[Kind::Integer], take).await.unwrap();
    for _ in 0..5 * CONNECTIONS {
        assert_ne!(connection().await, left);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_question_finds_all_connections_in_use_is_told_so_and_not_that_the_database_is_away() {
    for dialect in BOTH {
        let Some((url, _directory)) = database(dialect, String::new()).await else {
            continue;
        };
        let database = Database::open_with(&url, Duration::from_secs(1)).unwrap();
        let others = futures_util::future::join_all((0..AT_ONCE).map(|_| run(&database, endless(dialect))));
        let refused = async {
            // The others begin first.
            tokio::task::yield_now().await;
            run(&database, one(dialect)).await
        };
        tokio::select! {
            _ = others => panic!("they have no end"),
            refused = refused => assert!(matches!(refused, Err(QueryError::Crowded)), "{dialect:?}: {refused:?}"),
        }
    }
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("postgres://nobody@127.0.0.1:{port}/nothing");
    let database = Database::open_with(&url, Duration::from_millis(200)).unwrap();
    let away = run(&database, one(Dialect::Postgres)).await;
    assert!(matches!(away, Err(QueryError::Unavailable(_))), "{away:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_is_kept_however_many_different_ones_there_were() {
    for dialect in BOTH {
        let Some((api, _, _directory)) = api(dialect, String::new()).await else {
            continue;
        };
        for values in 1..=50 {
            let path = format!("/code-exec-logs?{}", "runtime=r&".repeat(values));
            assert_eq!(ask(&api, path.trim_end_matches('&')).await.0, StatusCode::OK);
        }
        assert_eq!(api.database().kept_statements().await, 0, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_trace_with_more_executions_than_are_shown_is_said_that_there_are_more() {
    for dialect in BOTH {
        let ids = |trace: &str| id(dialect, trace, "n");
        let rows = |trace: &str, rows: usize| {
            let (numbers, id, at) = (numbers(dialect, 1..=rows), ids(trace), seconds_ago(dialect, 1));
            format!(
                "INSERT INTO code_exec_logs (id, runtime, language, duration_ms, success, created_at) {numbers} \
                 SELECT {id}, 'r', 'l', n, false, {at} FROM n;"
            )
        };
        let sql = format!("{}{}{BESIDE}", rows("1", 1001), rows("2", 1000));
        let Some((api, _, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let more = ask(&api, &format!("/traces/{:032x}", 1)).await.1["data"].take();
        assert_eq!(more["executions"].as_array().unwrap().len(), 1000, "{dialect:?}");
        assert_eq!((&more["failed"], &more["truncated"]), (&1000.into(), &true.into()));
        let all = ask(&api, &format!("/traces/{:032x}", 2)).await.1["data"].take();
        assert_eq!(all["executions"].as_array().unwrap().len(), 1000, "{dialect:?}");
        assert_eq!((&all["failed"], all.get("truncated")), (&1000.into(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_messages_whose_last_line_is_long_too_are_one_group_when_they_have_one_cause() {
    for dialect in BOTH {
        let line = match dialect {
            Dialect::Sqlite => "char(10)",
            Dialect::Postgres => "chr(10)",
        };
        let text = |text: &str, times: &str| match dialect {
            Dialect::Sqlite => format!("replace(hex(zeroblob({times})), '00', '{text}')"),
            Dialect::Postgres => format!("repeat('{text}', {times})"),
        };
        // Where the last 1,000 characters begin in that line is another place in each.
        let message = format!(
            "'Traceback (most recent call last):' || {line} || {} || {line} || 'ValueError: bad input ' || {} || {} || {line}",
            text("frame ", "400"),
            text("some words of it ", "100"),
            text("z", "n"),
        );
        let Some((api, _, _directory)) = api(dialect, failures(dialect, 40, "'wf'", &message)).await else {
            continue;
        };
        let (_, answer) = ask(&api, "/code-exec-logs/errors").await;
        assert_eq!(answer["groups"], 1, "{dialect:?}: {answer}");
        assert_eq!(answer["data"][0]["count"], 40);
        let message = answer["data"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("ValueError: bad input some words"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_of_which_a_packed_part_is_damaged_are_read_from_the_rows_and_no_row_counts_twice() {
    for dialect in BOTH {
        let sql = failures(dialect, 20_000, "'wf'", "'e'") + BESIDE;
        let Some((api, url, _directory)) = api(dialect, sql).await else {
            continue;
        };
        let options = LedgerOptions {
            url: url.clone(),
            ..LedgerOptions::default()
        };
        Ledger::new(options).unwrap().pack().await.unwrap();
        let numbers = async || {
            let mut answers = Vec::new();
            for path in [
                "/code-exec-logs/stats?to=now",
                "/code-exec-logs/stats?groupBy=runtime&to=now",
                "/code-exec-logs/timeseries?from=now-1d&step=86400&groupBy=runtime",
                "/code-exec-logs/facets?field=runtime&field=outcome",
                "/code-agents/analytics",
            ] {
                let (status, answer) = ask(&api, path).await;
                assert_eq!(status, StatusCode::OK, "{path} {dialect:?}: {answer}");
                answers.push(answer);
            }
            answers
        };
        let hours = format!("SELECT {} FROM spanledger_hours", dialect.integer("count(*)"));
        let hours = Sql::new(dialect, hours);
        assert!(api.database().number(hours).await.unwrap() > 2, "{dialect:?}");
        let before = numbers().await;
        assert_eq!(before[0]["data"]["count"], 20_000);
        let bytes = match dialect {
            Dialect::Sqlite => "x'00'",
            Dialect::Postgres => "'\\x00'::bytea",
        };
        // The first part of each can be read.
        let damage = format!(
            "INSERT INTO spanledger_hours (hour, part, data, packed_at_ns) SELECT hour, 1, {bytes}, 0 FROM spanledger_hours \
             WHERE hour <= (SELECT min(hour) + 1 FROM spanledger_hours)"
        );
        execute(&url, damage).await;
        assert_eq!(numbers().await, before, "{dialect:?}");
    }
}
