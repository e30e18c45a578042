//! A database that an earlier version wrote.

use super::databases::{Database, with};
use super::support::{HOUR, MS, V, at, node, span, success};
use crate::ledger::store::{StoreError, Waiting};

/// SQLite: a row for each waiting span. Who waits is written there by the test.
const TO_SPANS_IN_ROWS: &str = "
    DROP TABLE spanledger_context;
    CREATE TABLE spanledger_context (
        position integer PRIMARY KEY AUTOINCREMENT, trace_id blob NOT NULL, span_id blob NOT NULL, node_hash bigint,
        start_ns bigint NOT NULL, end_ns bigint NOT NULL, received_at_ns bigint NOT NULL, facts text NOT NULL, due_ns bigint
    );
    CREATE INDEX spanledger_context_received_at_ns_idx ON spanledger_context (received_at_ns);
    CREATE INDEX spanledger_context_due_ns_idx ON spanledger_context (due_ns) WHERE due_ns IS NOT NULL;";

/// The one before it: what is beside the rows by id, waiting spans by trace and span.
const TO_THE_ORDER_OF_IDS: &str = "
    ALTER TABLE spanledger_executions RENAME TO executions_now;
    DROP INDEX spanledger_executions_odd_idx;
    DROP INDEX spanledger_executions_noteworthy_idx;
    DROP TABLE spanledger_context;
    CREATE TABLE spanledger_executions (
        id text PRIMARY KEY NOT NULL, trace_id text NOT NULL, span_id text NOT NULL, start_ns bigint NOT NULL,
        end_ns bigint NOT NULL, received_at_ns bigint NOT NULL, created_at timestamp NOT NULL, reported_runtime text,
        reported_exit_code integer, reported_outcome text NOT NULL, cost_usd double, sources text NOT NULL, row_id text
    );
    CREATE INDEX spanledger_executions_created_at_idx ON spanledger_executions (created_at);
    CREATE INDEX spanledger_executions_noteworthy_idx ON spanledger_executions (created_at, reported_outcome, cost_usd)
        WHERE reported_outcome = 'timeout' OR cost_usd IS NOT NULL;
    CREATE TABLE spanledger_context (
        trace_id blob NOT NULL, span_id blob NOT NULL, node_hash bigint, start_ns bigint NOT NULL, end_ns bigint NOT NULL,
        received_at_ns bigint NOT NULL, facts text NOT NULL, due_ns bigint, PRIMARY KEY (trace_id, span_id)
    );
    CREATE INDEX spanledger_context_node_hash_idx ON spanledger_context (node_hash) WHERE node_hash IS NOT NULL;
    CREATE INDEX spanledger_context_received_at_ns_idx ON spanledger_context (received_at_ns);
    CREATE INDEX spanledger_context_due_ns_idx ON spanledger_context (due_ns) WHERE due_ns IS NOT NULL;
    INSERT INTO spanledger_executions SELECT * FROM executions_now ORDER BY id;
    DROP TABLE executions_now;";

async fn of_an_earlier_version(layout: &str) -> Database {
    let database = Database::sqlite();
    let execution = success(1, 1, 10, 20).ids("wf", "we", "n");
    let alone = |id| span("e2b.execute", 5, id, 10, 20).with("e2b.runtime", V::S("e2b"));
    let facts = at(&[execution, success(2, 1, 10, 20), alone(1), alone(2)], 0);
    database.write(&facts).await;
    database.execute(layout).await;
    // One of those that can stand alone was found an execution, or a row, before.
    for (facts, due) in facts.iter().zip(["NULL", "NULL", "NULL", "7"]) {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let node = facts.node_hash().map_or("NULL".to_owned(), |hash| hash.to_string());
        let waiting = format!(
            "INSERT INTO spanledger_context (trace_id, span_id, node_hash, start_ns, end_ns, received_at_ns, facts, due_ns) \
             VALUES (x'{}', x'{}', {node}, {}, {}, {}, '{}', {due})",
            hex(&facts.id.trace),
            hex(&facts.id.span),
            facts.start,
            facts.end,
            facts.received_at,
            facts.told.to_json()
        );
        database.execute(&waiting).await;
    }
    // What users made of these tables.
    database
        .execute(
            "CREATE VIEW costs AS SELECT t.id, e.cost_usd FROM code_exec_logs t JOIN spanledger_executions e ON e.id = t.id; \
             CREATE VIEW broken AS SELECT * FROM nowhere; CREATE TABLE told (id text); \
             CREATE TRIGGER tell AFTER INSERT ON code_exec_logs BEGIN INSERT INTO told SELECT id \
             FROM spanledger_executions WHERE id = new.id; END",
        )
        .await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_wrote_is_known_and_completed() {
    for layout in [TO_SPANS_IN_ROWS, TO_THE_ORDER_OF_IDS] {
        is_known_and_completed(of_an_earlier_version(layout).await).await;
    }
}

async fn is_known_and_completed(database: Database) {
    let mut session = database.connect().await.unwrap();
    assert_eq!(database.waiting().await, 4);
    let due = with!(session, store => store.due(i64::MAX, 100).await).unwrap();
    let due: Vec<[u8; 8]> = due.iter().map(|facts| facts.id.span).collect();
    assert_eq!(due, [[0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0, 2]]);
    drop(session);
    let rows = database.rows().await;
    let node = node(3, 1, 5, 25).ids("wf", "we", "n");
    let applied = database.write(&at(&[node, success(2, 1, 10, 20)], MS)).await;
    assert_eq!((applied.merged, applied.duplicates, applied.written), (1, 1, 0));
    let completed = database.rows().await;
    assert_eq!(completed.len(), 2);
    assert_eq!(completed[0].user_id.as_deref(), Some("user-1"));
    assert_eq!(completed[1], rows[1]);
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%before'";
    assert!(database.texts(tables).await.is_empty());
    database.write(&at(&[success(7, 1, 10, 20)], MS)).await;
    assert_eq!(database.number("SELECT count(*) FROM costs").await, 3);
    assert_eq!(database.number("SELECT count(*) FROM told").await, 1);
    // Nor is a row written again that nobody waits for any more.
    database.execute("DELETE FROM spanledger_context").await;
    let applied = database.write(&at(&[success(2, 1, 10, 20)], HOUR)).await;
    assert_eq!((applied.duplicates, applied.written), (1, 0));
    assert_eq!(database.number("SELECT count(*) FROM spanledger_executions").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_earlier_version_are_a_misfit_where_they_may_not_be_changed() {
    for (layout, missing) in [
        (TO_SPANS_IN_ROWS, vec!["spans", "data"]),
        (TO_THE_ORDER_OF_IDS, vec!["position", "spans", "data"]),
    ] {
        let mut database = of_an_earlier_version(layout).await;
        database.settings.migrate = false;
        let Err(StoreError::Misfit(misfit)) = database.connect().await.map(|_| ()) else {
            panic!("the tables are taken as they are");
        };
        for column in missing {
            let said = format!("table \"spanledger_context\" has no column {column}");
            assert!(misfit.contains(&said), "{misfit}");
        }
    }
}

/// PostgreSQL: the order of writing was that of receipt.
const TO_THE_ORDER_OF_RECEIPT: &str = "
    ALTER TABLE spanledger_executions DROP COLUMN written;
    CREATE INDEX spanledger_executions_received_at_ns_idx ON spanledger_executions USING brin (received_at_ns);";

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_earlier_version_in_postgresql_come_before_all_that_are_numbered_as_they_are_written() {
    let Some(mut database) = Database::postgres() else {
        return;
    };
    database
        .write(&at(&[success(1, 1, 10, 20), success(2, 1, 10, 20)], 0))
        .await;
    database.execute(TO_THE_ORDER_OF_RECEIPT).await;
    database.settings.migrate = false;
    let Err(StoreError::Misfit(misfit)) = database.connect().await.map(|_| ()) else {
        panic!("the table is taken as it is");
    };
    assert!(
        misfit.contains("table \"spanledger_executions\" has no column written"),
        "{misfit}"
    );
    database.settings.migrate = true;
    database.write(&at(&[success(3, 1, 10, 20)], MS)).await;
    database.write(&at(&[success(4, 1, 10, 20)], MS)).await;
    let places = "SELECT written::text FROM spanledger_executions ORDER BY trace_id";
    assert_eq!(database.texts(places).await, ["0", "0", "1", "2"]);
    let indexes = "SELECT indexname::text FROM pg_indexes WHERE tablename = 'spanledger_executions' ORDER BY 1";
    let indexes = database.texts(indexes).await;
    assert!(
        indexes.contains(&"spanledger_executions_written_idx".to_owned()),
        "{indexes:?}"
    );
    assert!(
        !indexes.iter().any(|name| name.contains("received_at_ns")),
        "{indexes:?}"
    );
    database
        .execute("ALTER TABLE spanledger_executions ALTER written DROP IDENTITY")
        .await;
    let Err(StoreError::Misfit(misfit)) = database.connect().await.map(|_| ()) else {
        panic!("rows would have no place");
    };
    assert!(
        misfit.contains("column written of table \"spanledger_executions\" has no default"),
        "{misfit}"
    );
}
