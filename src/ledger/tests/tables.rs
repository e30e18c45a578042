//! Further tables: spans of language models, agents, nodes and connectors in, rows out, by the same mechanism.

use std::time::Duration;

use super::databases::{Database, Session, batch, on_both, with};
use super::following::{append, journal};
use super::support::{EPOCH, MS, S, V, node, permutations, request, span, success};
use crate::ledger::commit::Batch;
use crate::ledger::extract::Extractor;
use crate::ledger::facts::Facts;
use crate::ledger::meters::Meters;
use crate::ledger::quarantine::retry_quarantined;
use crate::ledger::table::{DESTINATIONS, Destination};
use crate::ledger::upkeep::{Upkeep, Work};
use crate::ledger::{Ledger, LedgerOptions, Limits};

on_both! {
    each_span_becomes_the_row_of_its_table_in_its_units
    what_a_call_does_not_say_is_unknown_zero_or_nothing
    the_tenant_of_a_call_comes_from_its_node_in_every_order_of_arrival
    nothing_is_written_and_no_table_is_made_unless_it_is_wanted
    the_backends_tables_are_used_as_they_are_and_foreign_keys_null_one_column
    a_row_that_one_table_refuses_is_set_aside_and_the_other_tables_have_theirs
    a_restart_and_rows_made_anew_leave_each_row_there_once
    old_rows_of_ours_are_deleted_from_every_table
}

const ALL: [&str; 3] = ["model_cost_logs", "agent_trace_history", "event_logs"];

fn call() -> S {
    span("llm.generate", 1, 1, 100, 350)
        .ids("wf-1", "we-1", "n-1")
        .all([
            ("llm.provider", V::S("openai")),
            ("llm.model", V::S("gpt-4o")),
            ("llm.input_tokens", V::I(1_000)),
            ("llm.output_tokens", V::I(200)),
            ("llm.total_tokens", V::I(1_200)),
            ("llm.cost_usd", V::D(0.0456789)),
            ("llm.latency_ms", V::I(249)),
            ("llm.status", V::S("success")),
        ])
        .status(1, "")
}

fn agent() -> S {
    span("agent.execute", 2, 2, 100, 400)
        .ids("wf-1", "we-1", "n-1")
        .all([
            ("agent.id", V::S("wf-1-n-1")),
            ("agent.framework", V::S("crewai")),
            ("agent.model", V::S("gpt-4o")),
            ("agent.status", V::S("error")),
            ("agent.latency_ms", V::I(300)),
            ("agent.tokens_used", V::I(900)),
            ("agent.cost", V::D(0.25)),
            ("agent.iterations", V::I(3)),
            ("agent.error", V::S("gave up")),
            ("user.id", V::S("user-1")),
            ("organization.id", V::S("org-1")),
        ])
        .status(2, "gave up")
}

fn connector() -> S {
    span("connector.execute", 3, 3, 110, 130)
        .ids("wf-1", "we-1", "n-1")
        .all([
            ("connector.id", V::S("slack")),
            ("connector.action", V::S("send_message")),
            ("connector.status", V::S("error")),
            ("connector.latency_ms", V::D(19.5)),
            ("connector.error", V::S("channel_not_found")),
            ("connector.error_code", V::I(404)),
        ])
        .status(2, "channel_not_found")
}

fn around() -> S {
    node(4, 4, 90, 450)
        .ids("wf-1", "we-1", "n-1")
        .all([("node.latency_ms", V::I(360))])
        .status(1, "")
}

fn every() -> Vec<S> {
    vec![call(), agent(), connector(), around()]
}

fn wanted() -> Vec<&'static Destination> {
    DESTINATIONS.iter().collect()
}

fn facts(spans: &[S]) -> Vec<Facts> {
    let mut extractor = Extractor {
        tables: wanted()[1..].to_vec(),
        ..Extractor::default()
    };
    let mut facts = Vec::new();
    extractor.extract(&request(spans), EPOCH + 10_000 * MS, &mut facts);
    facts
}

/// The columns, joined, of each row of the table.
async fn table(database: &Database, table: &str, columns: &[&str]) -> Vec<String> {
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("coalesce(CAST({column} AS text), '-')"))
        .collect();
    let sql = format!("SELECT {} FROM {table} ORDER BY id", columns.join(" || '|' || "));
    database.texts(&sql).await
}

const CALLS: [&str; 16] = [
    "id",
    "user_id",
    "agent_id",
    "workflow_execution_id",
    "node_id",
    "model_name",
    "provider",
    "input_tokens",
    "output_tokens",
    "tokens_total",
    "rate_per_1k",
    "cost_usd",
    "usd_cost",
    "trace_id",
    "organization_id",
    "workspace_id",
];
const RUNS: [&str; 6] = ["id", "agent_id", "flow_id", "trace_id", "error", "execution_nodes"];
const EVENTS: [&str; 7] = [
    "id",
    "user_id",
    "workspace_id",
    "event_type",
    "status",
    "latency_ms",
    "trace_id",
];

async fn each_span_becomes_the_row_of_its_table_in_its_units(database: Database) {
    let database = database.with_tables(&ALL);
    let applied = database.write(&facts(&every())).await;
    assert_eq!((applied.written, applied.records, applied.quarantined), (0, 5, 0));
    let (trace, id) = (|n: u8| format!("{n:02x}").repeat(16), |span: S| span.row_id());
    assert_eq!(
        table(&database, "model_cost_logs", &CALLS).await,
        [format!(
            "{}|user-1|-|we-1|n-1|gpt-4o|openai|1000|200|1200|-|5|0.045679|{}|org-1|ws-1",
            id(call()),
            trace(1)
        )]
    );
    assert_eq!(
        table(&database, "agent_trace_history", &RUNS).await,
        [format!("{}|wf-1-n-1|wf-1|{}|gave up|-", id(agent()), trace(2))]
    );
    assert_eq!(
        table(&database, "event_logs", &EVENTS).await,
        [
            format!("{}|user-1|ws-1|agent_execution|error|300|{}", id(agent()), trace(2)),
            format!(
                "{}|user-1|ws-1|connector_execution|error|20|{}",
                id(connector()),
                trace(3)
            ),
            format!("{}|user-1|ws-1|node_execution|success|360|{}", id(around()), trace(4)),
        ]
    );
    // 2026-01-01 and so many milliseconds, UTC.
    for (name, at) in [
        ("model_cost_logs", "00:00:00.35"),
        ("agent_trace_history", "00:00:00.4"),
    ] {
        let sql = format!("SELECT CAST(timestamp AS text) FROM {name}");
        let said = database.texts(&sql).await.remove(0);
        assert!(said.starts_with(&format!("2026-01-01 {at}")), "{said}");
    }
    let json = |sql: &'static str| {
        let database = &database;
        async move { serde_json::from_str::<serde_json::Value>(&database.texts(sql).await[0]).unwrap() }
    };
    assert_eq!(
        json("SELECT CAST(output_summary AS text) FROM agent_trace_history").await,
        serde_json::json!({"status": "error", "latencyMs": 300, "tokensUsed": 900, "costUsd": 0.25, "iterations": 3})
    );
    assert_eq!(
        json("SELECT CAST(input_context AS text) FROM agent_trace_history").await,
        serde_json::json!({"framework": "crewai", "model": "gpt-4o"})
    );
    assert_eq!(
        json("SELECT CAST(context AS text) FROM event_logs WHERE event_type = 'connector_execution'").await,
        serde_json::json!({
            "workflowId": "wf-1", "workflowExecutionId": "we-1", "nodeId": "n-1", "connectorId": "slack",
            "action": "send_message", "error": "channel_not_found", "errorCode": 404
        })
    );
}

async fn what_a_call_does_not_say_is_unknown_zero_or_nothing(database: Database) {
    let database = database.with_tables(&ALL);
    let silent = span("llm.generate", 1, 1, 100, 350).status(2, "Rate limit exceeded");
    let dear = span("llm.generate", 1, 2, 100, 350).all([
        ("llm.cost_usd", V::D(1e9)),
        ("llm.input_tokens", V::I(7)),
        ("llm.output_tokens", V::S("5")),
    ]);
    // A second span of one run of a browser node has no status: it is no event of its own.
    let second = span("node.execute.web_scrape", 1, 3, 100, 350).ids("wf-1", "we-1", "n-1");
    let agent = span("agent.execute", 1, 4, 100, 350);
    database.write(&facts(&[silent, dear, second, agent])).await;
    let calls = table(&database, "model_cost_logs", &CALLS[5..13]).await;
    assert_eq!(
        calls,
        [
            "unknown|unknown|0|0|-|-|0|-",
            "unknown|unknown|7|5|12|-|2147483647|9999.999999"
        ]
    );
    let runs = table(&database, "agent_trace_history", &RUNS[1..3]).await;
    assert_eq!(runs, ["unknown|-"]);
    assert_eq!(
        table(&database, "event_logs", &EVENTS[3..6]).await,
        ["agent_execution|success|250"]
    );
}

async fn the_tenant_of_a_call_comes_from_its_node_in_every_order_of_arrival(database: Database) {
    let database = database.with_tables(&ALL);
    let mut spans = every();
    spans.push(success(5, 5, 120, 140).ids("wf-1", "we-1", "n-1"));
    let look = async || {
        let mut all = table(&database, "model_cost_logs", &CALLS).await;
        all.extend(table(&database, "agent_trace_history", &RUNS).await);
        all.extend(table(&database, "event_logs", &EVENTS).await);
        all.extend(table(&database, "code_exec_logs", &["id", "user_id", "workspace_id"]).await);
        all
    };
    database.write(&facts(&spans)).await;
    let expected = look().await;
    assert_eq!(expected.len(), 6);
    let orders = permutations(&spans);
    // Every order is what the pure core is tested with; each database gets every fourth.
    for order in orders.iter().step_by(4) {
        for name in DESTINATIONS.iter().flat_map(|to| [to.rows.name, to.beside.name]) {
            database
                .execute(&format!("DELETE FROM {}", database.settings.names.of(name)))
                .await;
        }
        database.execute("DELETE FROM spanledger_context").await;
        let mut session = database.connect().await.unwrap();
        for span in order {
            let facts = facts(std::slice::from_ref(span));
            let batch = Batch {
                destinations: &database.settings.destinations,
                ..batch(&facts)
            };
            session.apply(&batch).await.unwrap();
            // Sent again it changes nothing.
            assert_eq!(session.apply(&batch).await.unwrap().records, 0);
        }
        assert_eq!(look().await, expected, "{order:?}");
    }
}

async fn nothing_is_written_and_no_table_is_made_unless_it_is_wanted(database: Database) {
    let all = facts(&every());
    database.write(&all).await;
    let there = if database.is_postgres() {
        "SELECT count(*) FROM pg_tables WHERE tablename LIKE '%event_logs' OR tablename LIKE '%model_cost%'"
    } else {
        "SELECT count(*) FROM sqlite_master WHERE name LIKE '%event_logs' OR name LIKE '%model_cost%'"
    };
    assert_eq!(database.number(there).await, 0);
    let mut untold = Vec::new();
    Extractor::default().extract(&request(&every()), EPOCH, &mut untold);
    assert!(untold.iter().all(|facts| facts.told.record.is_none()));
}

async fn backend(database: Database) -> Database {
    database.execute(include_str!("backend_schema.sql")).await;
    database.execute(include_str!("backend_tables.sql")).await;
    database.with_tables(&ALL)
}

async fn the_backends_tables_are_used_as_they_are_and_foreign_keys_null_one_column(database: Database) {
    let database = backend(database).await;
    let stranger = call().all([("user.id", V::S("nobody")), ("workspace.id", V::S("nowhere"))]);
    let elsewhere = agent().all([("user.id", V::S("nobody"))]);
    let applied = database.write(&facts(&[stranger, elsewhere, around()])).await;
    assert_eq!((applied.records, applied.quarantined), (4, 0));
    let calls = table(&database, "model_cost_logs", &CALLS[1..]).await;
    assert!(
        calls[0].starts_with("-|-|we-1|n-1|gpt-4o") && calls[0].ends_with("org-1|-"),
        "{calls:?}"
    );
    let events = table(&database, "event_logs", &EVENTS[1..4]).await;
    assert_eq!(
        events,
        [
            "-|ws-1|agent_execution",
            "user-1|ws-1|node_execution",
            "-|-|agent_execution"
        ]
    );
}

async fn retry(database: &Database) -> (u64, u64) {
    let prices = &super::databases::PRICES;
    let wanted = &database.settings.destinations;
    match database.connect().await.unwrap() {
        Session::Sqlite(mut store) => {
            retry_quarantined(&mut store, wanted, super::support::HOUR, 100, EPOCH, prices).await
        }
        Session::Postgres(mut store) => {
            retry_quarantined(&mut store, wanted, super::support::HOUR, 100, EPOCH, prices).await
        }
    }
    .unwrap()
}

async fn a_row_that_one_table_refuses_is_set_aside_and_the_other_tables_have_theirs(database: Database) {
    let database = database.with_tables(&ALL);
    database.write(&[]).await;
    let refuse = if database.is_postgres() {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.status = 'error' THEN RAISE EXCEPTION 'no errors here'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON event_logs FOR EACH ROW EXECUTE FUNCTION refuse()"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON event_logs WHEN NEW.status = 'error' \
         BEGIN SELECT RAISE(ABORT, 'no errors here'); END"
    };
    database.execute(refuse).await;
    let mut failed = around();
    failed.0.attributes.retain(|attribute| attribute.key != "node.status");
    let failed = failed.with("node.status", V::S("failed"));
    let spans = [call(), agent(), connector(), failed];
    let applied = database.write(&facts(&spans)).await;
    assert_eq!((applied.records, applied.quarantined), (2, 3));
    assert_eq!(database.number("SELECT count(*) FROM agent_trace_history").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM event_logs").await, 0);
    let reasons = "SELECT count(*) FROM spanledger_quarantine WHERE table_name = 'event_logs' \
                   AND reason LIKE '%no errors here%'";
    assert_eq!(database.number(reasons).await, 3);
    // It completes the others all the same.
    assert_eq!(table(&database, "model_cost_logs", &["user_id"]).await, ["user-1"]);

    assert_eq!(retry(&database).await, (0, 3));
    let cure = if database.is_postgres() {
        "DROP TRIGGER refuse ON event_logs"
    } else {
        "DROP TRIGGER refuse"
    };
    database.execute(cure).await;
    assert_eq!(retry(&database).await, (3, 0));
    assert_eq!(database.number("SELECT count(*) FROM event_logs").await, 3);
    assert_eq!(database.number("SELECT count(*) FROM agent_trace_history").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_quarantine").await, 0);
}

async fn a_restart_and_rows_made_anew_leave_each_row_there_once(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let options = LedgerOptions {
        url: database.settings.url.clone(),
        tables: ALL.map(str::to_owned).to_vec(),
        retention: Some(Duration::ZERO),
        // The spans are of the tests' own time, long ago.
        assembly_window: Duration::from_secs(20 * 365 * 86_400),
        ..LedgerOptions::default()
    };
    let count = async || {
        let mut counts = Vec::new();
        for name in ALL {
            counts.push(database.number(&format!("SELECT count(*) FROM {name}")).await);
        }
        counts
    };
    for (turn, span) in every().into_iter().enumerate() {
        append(&journal, &[span]).await;
        let ledger = Ledger::new(options.clone()).unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        shutdown.cancel();
        let heartbeat = crate::telemetry::Health::default().stage("ledger");
        let status = heartbeat.status();
        ledger
            .run(journal.reader("ledger").unwrap(), shutdown, heartbeat, status)
            .await;
        let expected = [[1, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]][turn];
        assert_eq!(count().await, expected);
    }
    let calls = table(&database, "model_cost_logs", &CALLS).await;
    assert!(calls[0].contains("user-1"), "{calls:?}");
    database
        .execute("UPDATE model_cost_logs SET user_id = NULL, cost_usd = 99")
        .await;
    database.execute("DELETE FROM event_logs").await;
    let ledger = Ledger::new(options).unwrap();
    let rebuilt = ledger.rebuild(journal.reader("ledger").unwrap()).await.unwrap();
    assert_eq!((rebuilt.rows, rebuilt.quarantined), (5, 0));
    assert_eq!(table(&database, "model_cost_logs", &CALLS).await, calls);
    assert_eq!(count().await, [1, 1, 3]);
}

async fn old_rows_of_ours_are_deleted_from_every_table(database: Database) {
    let database = backend(database).await;
    let mut late = call();
    late.0.span_id[7] = 99;
    late.0.end_time_unix_nano += 60_000 * MS;
    let mut spans = every();
    spans.push(late);
    database.write(&facts(&spans)).await;
    let limits = Limits {
        retention: Some(Duration::from_secs(3_600)),
        window: Duration::from_secs(3_600),
        max_pending: 1_000,
    };
    let (now, wanted, meters) = (EPOCH + 3_630_000 * MS, &database.settings.destinations, Meters::new());
    let work = Work {
        limits: &limits,
        destinations: wanted,
        standalone: None,
    };
    let (mut session, mut upkeep) = (database.connect().await.unwrap(), Upkeep::new());
    with!(session, store => upkeep.turn(store, &work, now, &meters).await).unwrap();
    assert_eq!(database.number("SELECT count(*) FROM model_cost_logs").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM agent_trace_history").await, 0);
    // The one of the backend's own stays.
    assert_eq!(table(&database, "event_logs", &["id"]).await, ["cuid-9"]);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_event_logs").await, 0);
    assert_eq!(
        database.number("SELECT count(*) FROM spanledger_model_cost_logs").await,
        1
    );
}
