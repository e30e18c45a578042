//! Rows that PostgreSQL refuses in ways that are the users' own: row-level security, triggers with codes of their own, and
//! what is only checked at the end of the transaction.

use super::databases::{Database, Session};
use super::support::{S, facts, success};
use crate::ledger::quarantine::retry_quarantined;
use crate::ledger::store::postgres::PostgresStore;
use crate::ledger::store::{Settings, Store, StoreError};
use crate::ledger::table::EXECUTIONS;
use crate::ledger::tests::databases::PRICES;
use crate::ledger::tests::support::{EPOCH, HOUR};

fn run(id: u16, node: &'static str) -> S {
    success(1, id, 100, 150).ids("wf-1", "we-1", node)
}

/// Two rows, between which there is one that is refused.
fn one_of_three() -> [S; 3] {
    [run(1, "good"), run(2, "bad"), run(3, "good")]
}

async fn set_aside(database: &Database) -> i64 {
    database.number("SELECT count(*) FROM spanledger_quarantine").await
}

/// Refuses rows of the node `bad` by `raise`, with `trigger` before its condition.
async fn trigger(database: &Database, raise: &str, trigger: &str) {
    database.write(&[]).await;
    database
        .execute(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raise}; RETURN NEW; END $$; \
             CREATE {trigger} FOR EACH ROW WHEN (NEW.node_id = 'bad') EXECUTE FUNCTION refuse()"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_or_a_view_refuses_is_set_aside_whatever_its_code() {
    for raise in [
        "RAISE EXCEPTION 'not this one' USING ERRCODE = '44000'",
        "RAISE EXCEPTION 'not this one' USING ERRCODE = 'MY001'",
        "ASSERT false, 'not this one'",
    ] {
        let Some(database) = Database::postgres() else { return };
        trigger(&database, raise, "TRIGGER refuse BEFORE INSERT ON code_exec_logs").await;
        let applied = database.write(&facts(&one_of_three())).await;
        assert_eq!((applied.written, applied.quarantined), (2, 1), "{raise}");
        let reasons = database.texts("SELECT reason FROM spanledger_quarantine").await;
        assert!(reasons[0].contains("not this one"), "{reasons:?}");
        // Alone, too.
        let applied = database.write(&facts(&[run(4, "bad")])).await;
        assert_eq!((applied.written, applied.quarantined), (0, 1), "{raise}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_only_refused_when_the_transaction_ends_is_set_aside() {
    let Some(database) = Database::postgres() else { return };
    let deferred = "CONSTRAINT TRIGGER refuse AFTER INSERT ON code_exec_logs DEFERRABLE INITIALLY DEFERRED";
    trigger(&database, "RAISE EXCEPTION 'not this one'", deferred).await;
    let applied = database.write(&facts(&one_of_three())).await;
    assert_eq!((applied.written, applied.quarantined), (2, 1));
}

/// A user whom row-level security keeps from writing rows of the node `bad`.
async fn bounded(database: &Database) -> (String, Settings) {
    database.write(&[]).await;
    let name = database.settings.url.rsplit('/').next().unwrap().to_owned();
    let role = format!("bounded_{name}");
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON code_exec_logs, spanledger_positions, \
             spanledger_executions, spanledger_context, spanledger_quarantine, spanledger_hours TO {role}; \
             ALTER TABLE code_exec_logs ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY all_but_bad ON code_exec_logs TO {role} USING (true) WITH CHECK (node_id <> 'bad')"
        ))
        .await;
    let settings = Settings {
        url: database.settings.url.replace("test@", &format!("{role}@")),
        migrate: false,
        ..database.settings.clone()
    };
    (role, settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_row_level_security_rejects_is_set_aside() {
    let Some(database) = Database::postgres() else { return };
    let (_, settings) = bounded(&database).await;
    let connect = async || Session::Postgres(PostgresStore::connect(&settings).await.unwrap());
    let applied = connect().await.write(&facts(&one_of_three())).await.unwrap();
    assert_eq!((applied.written, applied.quarantined), (2, 1));
    // Alone, too.
    let applied = connect().await.write(&facts(&[run(4, "bad")])).await.unwrap();
    assert_eq!((applied.written, applied.quarantined), (0, 1));
    // Those that are tried again and are still rejected stay.
    let mut store = PostgresStore::connect(&settings).await.unwrap();
    let tried = retry_quarantined(&mut store, &[EXECUTIONS], HOUR, 100, EPOCH, &PRICES).await;
    assert_eq!(tried.unwrap(), (0, 2));
    assert_eq!(set_aside(&database).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_taken_away_sets_no_row_aside() {
    let Some(database) = Database::postgres() else { return };
    let (role, settings) = bounded(&database).await;
    let mut session = Session::Postgres(PostgresStore::connect(&settings).await.unwrap());
    database
        .execute(&format!("REVOKE INSERT ON code_exec_logs FROM {role}"))
        .await;
    let refused = session.write(&facts(&one_of_three())).await;
    let Err(StoreError::Misfit(misfit)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        misfit.contains("permission denied for table code_exec_logs"),
        "{misfit}"
    );
    assert_eq!(set_aside(&database).await, 0);
}

/// What a trigger of theirs may not do, no row may have done: none is set aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_a_trigger_lacks_sets_no_row_aside() {
    let Some(database) = Database::postgres() else { return };
    let (_, settings) = bounded(&database).await;
    database
        .execute(
            "CREATE TABLE audit (id text); \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END $$; \
             CREATE TRIGGER note BEFORE INSERT ON code_exec_logs FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await;
    let mut session = Session::Postgres(PostgresStore::connect(&settings).await.unwrap());
    let refused = session.write(&facts(&one_of_three())).await;
    assert!(matches!(refused, Err(StoreError::Misfit(_))), "{refused:?}");
    assert_eq!(set_aside(&database).await, 0);
}
