//! The table that is already there: the backend's own, with its five foreign keys and its old rows.

use super::databases::{Database, batch, on_both};
use super::support::{EPOCH, S, V, facts, failure, node, success};
use crate::ledger::commit::Batch;
use crate::ledger::quarantine::retry_quarantined;
use crate::ledger::store::postgres::PostgresStore;
use crate::ledger::store::{Settings, Store, StoreError};
use crate::ledger::table::EXECUTIONS;
use crate::ledger::tests::databases::Session;

pub(super) const SCHEMA: &str = include_str!("backend_schema.sql");

/// As the backend's own logger writes: a partial row, and one of the router with no language.
const OLD_ROWS: &str = "INSERT INTO code_exec_logs (id, runtime, language, success, created_at) VALUES \
                        ('cuid-1', 'vm2', 'javascript', true, '2025-12-01 10:00:00'), \
                        ('cuid-2', 'vm2', 'unknown', false, '2025-12-01 10:00:01')";

on_both! {
    the_backends_table_is_used_as_it_is
    a_foreign_key_that_refuses_nulls_its_one_column
    no_row_is_lost_when_every_row_of_a_batch_breaks_a_foreign_key
    what_completes_a_row_later_is_asked_of_the_foreign_keys_too
    a_row_the_database_refuses_is_set_aside_and_those_beside_it_are_written
    old_rows_of_ours_are_deleted_and_those_of_others_stay
    a_missing_table_or_column_is_named
}

async fn with_schema(database: &Database) {
    database.execute(SCHEMA).await;
    database.execute(OLD_ROWS).await;
}

/// A run of a node whose ids all exist, or of one whose ids are of nobody.
fn known() -> Vec<S> {
    vec![
        success(1, 1, 100, 150).ids("wf-1", "we-1", "n-1"),
        node(1, 2, 90, 160).ids("wf-1", "we-1", "n-1"),
        success(2, 3, 100, 150).ids("agent-ca-7", "agent-exec-1", "code-agent"),
        success(3, 4, 100, 150)
            .ids("agent-ca-8", "we-1", "code-agent")
            .with("security.namespace", V::S("org-9")),
    ]
}

async fn the_backends_table_is_used_as_it_is(database: Database) {
    with_schema(&database).await;
    let shape = if database.is_postgres() {
        "SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = 'code_exec_logs'::regclass AND attnum > 0) * 10000 \
         + (SELECT count(*) FROM pg_indexes WHERE tablename = 'code_exec_logs') * 100 \
         + (SELECT count(*) FROM pg_constraint WHERE conrelid = 'code_exec_logs'::regclass)"
    } else {
        "SELECT (SELECT count(*) FROM pragma_table_info('code_exec_logs')) * 10000 \
         + (SELECT count(*) FROM pragma_index_list('code_exec_logs')) * 100 \
         + (SELECT count(*) FROM pragma_foreign_key_list('code_exec_logs'))"
    };
    let before = database.number(shape).await;
    database.write(&facts(&known())).await;
    assert_eq!(database.number(shape).await, before);
    assert_eq!(database.rows().await.len(), 3 + 2);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_executions").await, 3);
}

async fn a_foreign_key_that_refuses_nulls_its_one_column(database: Database) {
    with_schema(&database).await;
    let applied = database.write(&facts(&known())).await;
    assert_eq!((applied.written, applied.nulled, applied.quarantined), (3, 3, 0));
    let rows = database.rows().await;
    let told = |id: u8| {
        let row = rows
            .iter()
            .find(|row| row.id.starts_with(&format!("{id:02x}").repeat(16)))
            .unwrap();
        let columns = [
            &row.code_agent_id,
            &row.workflow_execution_id,
            &row.organization_id,
            &row.workspace_id,
            &row.user_id,
        ];
        columns.map(|column| column.as_deref().unwrap_or("-").to_owned())
    };
    assert_eq!(told(1), ["-", "we-1", "org-1", "ws-1", "user-1"]);
    assert_eq!(told(2), ["ca-7", "-", "-", "-", "-"]);
    assert_eq!(told(3), ["-", "we-1", "-", "-", "-"]);
}

async fn no_row_is_lost_when_every_row_of_a_batch_breaks_a_foreign_key(database: Database) {
    with_schema(&database).await;
    let spans: Vec<S> = (0..500)
        .map(|id| {
            success(5, id, 100, 150)
                .ids("agent-nobody", "agent-exec-1", "code-agent")
                .all([
                    ("organization.id", V::S("nobody")),
                    ("workspace.id", V::S("nobody")),
                    ("user.id", V::S("nobody")),
                ])
        })
        .collect();
    let applied = database.write(&facts(&spans)).await;
    assert_eq!((applied.written, applied.nulled, applied.quarantined), (500, 2_500, 0));
}

async fn what_completes_a_row_later_is_asked_of_the_foreign_keys_too(database: Database) {
    with_schema(&database).await;
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("user.id", V::S("nobody"));
    database.write(&facts(&[run])).await;
    let applied = database.write(&facts(&[around])).await;
    assert_eq!((applied.merged, applied.nulled), (1, 1));
    let rows = database.rows().await;
    let row = rows.iter().find(|row| row.id.starts_with("0101")).unwrap();
    assert_eq!(
        (row.user_id.as_deref(), row.workspace_id.as_deref()),
        (None, Some("ws-1"))
    );
}

async fn a_row_the_database_refuses_is_set_aside_and_those_beside_it_are_written(database: Database) {
    let fussy = SCHEMA.replace(
        "runtime text NOT NULL",
        "runtime text NOT NULL CHECK (runtime <> 'wasmedge')",
    );
    database.execute(&fussy).await;
    let spans: Vec<S> = (0..100)
        .map(|id| success(5, id, 100, 150).with("code.runtime", V::S(if id % 33 == 0 { "wasmedge" } else { "e2b" })))
        .collect();
    let position = Some(("ledger", "0123", 7));
    let mut session = database.connect().await.unwrap();
    let all = facts(&spans);
    let applied = session
        .apply(&Batch {
            position,
            ..batch(&all)
        })
        .await
        .unwrap();
    assert_eq!((applied.written, applied.quarantined), (96, 4));
    assert_eq!(database.rows().await.len(), 96);
    assert_eq!(
        database.number("SELECT next_sequence FROM spanledger_positions").await,
        7
    );
    // The same again: they are refused again, and still there once.
    let again = session.write(&all).await.unwrap();
    assert_eq!((again.written, again.duplicates), (0, 96 + 4));
    let reasons = "SELECT count(*) FROM spanledger_quarantine WHERE reason LIKE '%check%' OR reason LIKE '%CHECK%'";
    assert_eq!(database.number(reasons).await, 4);

    // Nobody has cured it: they stay. Then somebody has.
    assert_eq!(retry(&mut session).await, (0, 4));
    drop(session);
    cure(&database).await;
    let mut session = database.connect().await.unwrap();
    assert_eq!(retry(&mut session).await, (4, 0));
    assert_eq!(database.rows().await.len(), 100);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_quarantine").await, 0);
}

async fn retry(session: &mut Session) -> (u64, u64) {
    match session {
        Session::Sqlite(store) => retry_quarantined(
            store,
            &[EXECUTIONS],
            super::support::HOUR,
            1_000,
            EPOCH,
            &super::databases::PRICES,
        )
        .await
        .unwrap(),
        Session::Postgres(store) => retry_quarantined(
            store,
            &[EXECUTIONS],
            super::support::HOUR,
            1_000,
            EPOCH,
            &super::databases::PRICES,
        )
        .await
        .unwrap(),
    }
}

/// Takes the CHECK away; SQLite can only make the table anew.
async fn cure(database: &Database) {
    if database.is_postgres() {
        database
            .execute("ALTER TABLE code_exec_logs DROP CONSTRAINT code_exec_logs_runtime_check")
            .await;
        return;
    }
    let table = SCHEMA[SCHEMA.find("CREATE TABLE code_exec_logs").unwrap()..]
        .split(';')
        .next()
        .unwrap();
    let indexes = "DROP INDEX code_exec_logs_runtime_idx";
    database
        .execute(&format!(
            "{indexes}; ALTER TABLE code_exec_logs RENAME TO old; {table}; \
             INSERT INTO code_exec_logs SELECT * FROM old; DROP TABLE old"
        ))
        .await;
}

async fn old_rows_of_ours_are_deleted_and_those_of_others_stay(database: Database) {
    with_schema(&database).await;
    database
        .write(&facts(&[
            success(1, 1, 0, 1_000),
            success(1, 2, 0, 2_000),
            success(1, 3, 0, 3_000),
        ]))
        .await;
    let before = EPOCH + 2_000 * super::support::MS;
    let deleted = match database.connect().await.unwrap() {
        Session::Sqlite(mut store) => store.delete_rows(EXECUTIONS, before, 10).await.unwrap(),
        Session::Postgres(mut store) => store.delete_rows(EXECUTIONS, before, 10).await.unwrap(),
    };
    assert_eq!(deleted, 1);
    assert_eq!(database.rows().await.len(), 2 + 2);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_executions").await, 2);
    // What is older than that is not written again either.
    let old = facts(&[success(1, 4, 0, 1_000)]);
    let mut session = database.connect().await.unwrap();
    let applied = session
        .apply(&Batch {
            oldest: before,
            ..batch(&old)
        })
        .await
        .unwrap();
    assert_eq!((applied.written, applied.expired), (0, 1));
}

async fn misfit(settings: &Settings, is_postgres: bool) -> String {
    let refused = if is_postgres {
        PostgresStore::connect(settings).await.map(drop)
    } else {
        crate::ledger::store::sqlite::SqliteStore::connect(settings)
            .await
            .map(drop)
    };
    match refused {
        Err(StoreError::Misfit(misfits)) => misfits,
        other => panic!("{other:?}"),
    }
}

async fn a_missing_table_or_column_is_named(database: Database) {
    database.execute(SCHEMA).await;
    let unmigrated = Settings {
        migrate: false,
        ..database.settings.clone()
    };
    let misfits = misfit(&unmigrated, database.is_postgres()).await;
    assert!(
        misfits.contains("there is no table \"spanledger_executions\""),
        "{misfits}"
    );
    database.write(&[]).await;
    database
        .execute("ALTER TABLE code_exec_logs DROP COLUMN tokens_used")
        .await;
    database
        .execute("ALTER TABLE code_exec_logs ADD COLUMN hint text NOT NULL DEFAULT ''")
        .await;
    if database.is_postgres() {
        database
            .execute("ALTER TABLE code_exec_logs ALTER hint DROP DEFAULT")
            .await;
        database
            .execute("ALTER TABLE code_exec_logs ALTER memory_mb TYPE text")
            .await;
    }
    let misfits = misfit(&database.settings, database.is_postgres()).await;
    assert!(
        misfits.contains("table \"code_exec_logs\" has no column tokens_used"),
        "{misfits}"
    );
    if database.is_postgres() {
        assert!(
            misfits.contains("column hint of table \"code_exec_logs\" is NOT NULL"),
            "{misfits}"
        );
        assert!(
            misfits.contains("column memory_mb of table \"code_exec_logs\" is text, needed is integer"),
            "{misfits}"
        );
    }
}

/// A user who may write rows, but not look into the tables they point to: foreign keys are found out the hard way.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_may_not_be_asked_still_null_one_column_each() {
    let Some(database) = Database::postgres() else { return };
    with_schema(&database).await;
    database.write(&[]).await;
    let name = database.settings.url.rsplit('/').next().unwrap().to_owned();
    let role = format!("writer_{name}");
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON code_exec_logs, spanledger_positions, \
             spanledger_executions, spanledger_context, spanledger_quarantine, spanledger_hours TO {role}"
        ))
        .await;
    let url = database.settings.url.replace("test@", &format!("{role}@"));
    let settings = Settings {
        url,
        migrate: false,
        ..database.settings.clone()
    };
    let mut session = Session::Postgres(PostgresStore::connect(&settings).await.unwrap());
    let applied = session.write(&facts(&known())).await.unwrap();
    assert_eq!((applied.written, applied.nulled, applied.quarantined), (3, 3, 0));

    database
        .execute(&format!("REVOKE UPDATE ON code_exec_logs FROM {role}"))
        .await;
    let misfits = misfit(&settings, true).await;
    assert!(misfits.contains("may not UPDATE on \"code_exec_logs\""), "{misfits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_and_table_can_have_any_name() {
    let Some(mut database) = Database::postgres() else {
        return;
    };
    database.settings.names.schema = Some("Odd \"schema\"; x".into());
    database.settings.names.table = "Rows of 'ours'".into();
    database.write(&facts(&known())).await;
    let sql = r#"SELECT count(*) FROM "Odd ""schema""; x"."Rows of 'ours'""#;
    assert_eq!(database.number(sql).await, 3);
    let sql = r#"SELECT count(*) FROM "Odd ""schema""; x".spanledger_executions"#;
    assert_eq!(database.number(sql).await, 3);
}
