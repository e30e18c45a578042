//! A database that an earlier version wrote.

use super::databases::Database;
use super::support::{HOUR, MS, at, node, success};
use crate::ledger::store::StoreError;

/// SQLite: what is beside the rows by id, waiting spans by trace and span. What this version wrote is put there.
const TO_EARLIER_TABLES: &str = "
    ALTER TABLE spanledger_executions RENAME TO executions_now;
    ALTER TABLE spanledger_context RENAME TO context_now;
    DROP INDEX spanledger_executions_odd_idx;
    DROP INDEX spanledger_executions_noteworthy_idx;
    DROP INDEX spanledger_context_received_at_ns_idx;
    DROP INDEX spanledger_context_due_ns_idx;
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
    INSERT INTO spanledger_context SELECT trace_id, span_id, node_hash, start_ns, end_ns, received_at_ns, facts, due_ns
        FROM context_now ORDER BY trace_id DESC;
    DROP TABLE executions_now;
    DROP TABLE context_now;";

async fn of_an_earlier_version() -> Database {
    let database = Database::sqlite();
    let execution = success(1, 1, 10, 20).ids("wf", "we", "n");
    database.write(&at(&[execution, success(2, 1, 10, 20)], 0)).await;
    database.execute(TO_EARLIER_TABLES).await;
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
    let database = of_an_earlier_version().await;
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
    let mut database = of_an_earlier_version().await;
    database.settings.migrate = false;
    let Err(StoreError::Misfit(misfit)) = database.connect().await.map(|_| ()) else {
        panic!("the tables are taken as they are");
    };
    assert_eq!(misfit, "table \"spanledger_context\" has no column position");
}
