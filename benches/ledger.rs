//! Rows per second from the journal into SQL, against the obvious ways to write the same rows.
//!
//! `cargo bench --bench ledger [-- sqlite|postgres]`. What is measured is the whole room: requests are read from a real
//! journal, walked, assembled, written with the side table and the waiting context, and the position is saved in the same
//! transactions. The obvious ways write ready-made rows into the same table with the same six indexes, and nothing else.
//! PostgreSQL runs on the same machine, with fsync.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use spanledger::journal::{Entry, Journal, Options};
use spanledger::ledger::{Ledger, LedgerOptions, migrate};
use spanledger::otlp::{Encoding, Signal};
use spanledger::telemetry::Health;
use sqlx::{AssertSqlSafe, Connection, PgConnection, QueryBuilder, SqliteConnection};
use tokio_util::sync::CancellationToken;

#[path = "../tests/common/postgres.rs"]
mod postgres;

// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: u64 = 60_000;
const SPANS_PER_REQUEST: usize = 512;
const START: u64 = 1_767_225_600_000_000_000;

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

fn span(name: &str, trace: u64, id: u64, from: u64, to: u64, attributes: Vec<KeyValue>) -> Span {
    Span {
        trace_id: (u128::from(trace) << 64 | 0x1234_5678).to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        name: name.to_owned(),
        start_time_unix_nano: START + from,
        end_time_unix_nano: START + to,
        attributes,
        status: Some(Status {
            code: 1,
            ..Status::default()
        }),
        ..Span::default()
    }
}

/// An execution as executors send it, and the node around it, in traces of their own.
fn pair(n: u64) -> (Span, Span) {
    let ids = [
        attribute("workflow.id", text("wf-1")),
        attribute("workflow.execution_id", text(&format!("we-{}", n / 4))),
        attribute("node.id", text(&format!("n-{}", n % 4))),
    ];
    let from = n * 1_000_000;
    let mut execution = vec![
        attribute("code.language", text("javascript")),
        attribute("code.runtime", text("vm2")),
        attribute("code.timeout_ms", Value::IntValue(30_000)),
        attribute("security.namespace", text("org-1")),
        attribute("code.success", Value::BoolValue(true)),
        attribute("code.duration_ms", Value::IntValue(7)),
        attribute("code.memory_mb", Value::DoubleValue(0.2143)),
    ];
    execution.extend(ids.clone());
    let mut node = vec![
        attribute("node.status", text("completed")),
        attribute("node.attempts", Value::IntValue(1)),
        attribute("user.id", text("user-1")),
        attribute("organization.id", text("org-1")),
        attribute("workspace.id", text("ws-1")),
    ];
    node.extend(ids);
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (
        span(
            "code.execute",
            mixed | 1,
            n * 2 + 1,
            from + 1_000,
            from + 7_000_000,
            execution,
        ),
        span(
            "node.execute.action.code",
            mixed & !1,
            n * 2 + 2,
            from,
            from + 8_000_000,
            node,
        ),
    )
}

/// What is in the journal.
#[derive(Clone, Copy, PartialEq)]
enum Traffic {
    Executions,
    WithNodes,
    NodesLater,
}

async fn fill(journal: &Journal, traffic: Traffic) {
    let pairs = (0..ROWS).map(pair);
    let mut spans = Vec::new();
    let mut nodes = Vec::new();
    let mut pending = Vec::new();
    let mut send = |batch: Vec<Span>| {
        let items = batch.len() as u32;
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: batch,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let body = Bytes::from(request.encode_to_vec());
        let entry = Entry {
            signal: Signal::Traces,
            encoding: Encoding::Identity,
            received_at: START + 60_000_000_000,
            items,
            rejected: 0,
            digest: None,
            decoded: body.clone(),
            noted: None,
            body,
        };
        pending.push(journal.append(entry).unwrap().durable);
    };
    for (execution, node) in pairs {
        spans.push(execution);
        match traffic {
            Traffic::Executions => {}
            Traffic::WithNodes => spans.push(node),
            Traffic::NodesLater => nodes.push(node),
        }
        if spans.len() >= SPANS_PER_REQUEST {
            send(std::mem::take(&mut spans));
            // The nodes come some requests behind their executions.
            if nodes.len() >= SPANS_PER_REQUEST * 8 {
                send(nodes.drain(..SPANS_PER_REQUEST).collect());
            }
        }
    }
    spans.append(&mut nodes);
    for rest in spans.chunks(SPANS_PER_REQUEST) {
        send(rest.to_vec());
    }
    for durable in pending {
        durable.await.unwrap();
    }
}

/// Rows per second of the whole room.
async fn measure(url: &str, traffic: Traffic) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        readers: vec!["ledger".into()],
        ..Options::new(directory.path())
    };
    let journal = Journal::open(options).unwrap().0;
    fill(&journal, traffic).await;
    let options = LedgerOptions {
        url: url.to_owned(),
        retention: Some(Duration::ZERO),
        max_pending: 10_000_000,
        ..LedgerOptions::default()
    };
    migrate(options.clone()).await.unwrap();
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let heartbeat = Health::default().stage("ledger");
    let status = heartbeat.status();
    let reader = journal.reader("ledger").unwrap();
    let began = Instant::now();
    Ledger::new(options)
        .unwrap()
        .run(reader, shutdown, heartbeat, status)
        .await;
    ROWS as f64 / began.elapsed().as_secs_f64()
}

const COLUMNS: &str = "id, workflow_execution_id, node_id, runtime, language, duration_ms, memory_mb, success, \
                       organization_id, workspace_id, user_id, created_at";

/// The obvious ways: one INSERT per row in transactions of 512, or 512 rows in one INSERT.
macro_rules! obvious {
    ($name:ident, $connection:ty, $database:ty, $time:expr) => {
        async fn $name(url: &str, many: bool, rows: u64) -> f64 {
            let mut connection = <$connection>::connect(url).await.unwrap();
            let began = Instant::now();
            for batch in 0..rows / 512 {
                let mut transaction = connection.begin().await.unwrap();
                let rows: Vec<u64> = (batch * 512..batch * 512 + 512).collect();
                for rows in rows.chunks(if many { 512 } else { 1 }) {
                    let mut sql: QueryBuilder<$database> =
                        QueryBuilder::new(format!("INSERT INTO code_exec_logs ({COLUMNS}) "));
                    sql.push_values(rows, |mut row, n| {
                        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        row.push_bind(format!("{mixed:016x}0000000012345678-{n:016x}"))
                            .push_bind(format!("we-{}", n / 4))
                            .push_bind(format!("n-{}", n % 4))
                            .push_bind("vm2")
                            .push_bind("javascript")
                            .push_bind(7_i32)
                            .push_bind(0_i32)
                            .push_bind(true)
                            .push_bind("org-1")
                            .push_bind("ws-1")
                            .push_bind("user-1")
                            .push_bind($time(*n));
                    });
                    sql.push(" ON CONFLICT DO NOTHING");
                    sql.build().execute(&mut *transaction).await.unwrap();
                }
                transaction.commit().await.unwrap();
            }
            rows as f64 / began.elapsed().as_secs_f64()
        }
    };
}

fn time(n: u64) -> chrono::NaiveDateTime {
    chrono::DateTime::from_timestamp_nanos((START + n * 1_000_000) as i64).naive_utc()
}

obvious!(obvious_postgres, PgConnection, sqlx::Postgres, time);
obvious!(obvious_sqlite, SqliteConnection, sqlx::Sqlite, |n| time(n).to_string());

fn report(what: &str, rows_per_second: f64) {
    println!("{what:<64} {:>8.1} thousand rows/s", rows_per_second / 1_000.0);
}

async fn sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let mut next = 0;
    let mut url = || {
        next += 1;
        format!("sqlite:{}/{next}.db", directory.path().display())
    };
    for (what, traffic) in [
        ("SQLite: executions alone", Traffic::Executions),
        ("SQLite: executions with their nodes in one request", Traffic::WithNodes),
        ("SQLite: nodes come later and complete the rows", Traffic::NodesLater),
    ] {
        report(what, measure(&url(), traffic).await);
    }
    for (what, many, rows) in [
        ("SQLite: 512 rows in one INSERT", true, ROWS),
        ("SQLite: one INSERT per row", false, ROWS / 4),
    ] {
        let url = url();
        migrate(LedgerOptions {
            url: url.clone(),
            ..LedgerOptions::default()
        })
        .await
        .unwrap();
        report(what, obvious_sqlite(&url, many, rows).await);
    }
}

async fn postgres() {
    let cluster = postgres::Cluster::start_with("-c fsync=on");
    for (what, traffic) in [
        ("PostgreSQL: executions alone", Traffic::Executions),
        (
            "PostgreSQL: executions with their nodes in one request",
            Traffic::WithNodes,
        ),
        (
            "PostgreSQL: nodes come later and complete the rows",
            Traffic::NodesLater,
        ),
    ] {
        report(what, measure(&cluster.database(), traffic).await);
    }
    let url = cluster.database();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(include_str!("../src/ledger/tests/backend_schema.sql"))
        .execute(&mut connection)
        .await
        .unwrap();
    let executions = "INSERT INTO workflow_executions (id) SELECT 'we-' || n FROM generate_series(0, 20000) n \
                      ON CONFLICT DO NOTHING";
    sqlx::raw_sql(AssertSqlSafe(executions))
        .execute(&mut connection)
        .await
        .unwrap();
    report(
        "PostgreSQL: with five foreign keys, nodes in one request",
        measure(&url, Traffic::WithNodes).await,
    );
    for (what, many, rows) in [
        ("PostgreSQL: 512 rows in one INSERT", true, ROWS),
        ("PostgreSQL: one INSERT per row", false, ROWS / 4),
    ] {
        let url = cluster.database();
        migrate(LedgerOptions {
            url: url.clone(),
            ..LedgerOptions::default()
        })
        .await
        .unwrap();
        report(what, obvious_postgres(&url, many, rows).await);
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benchmarks too, without this argument; there they only have to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if wants("sqlite") {
        sqlite().await;
    }
    if wants("postgres") && !postgres::skipped() {
        postgres().await;
    }
}
