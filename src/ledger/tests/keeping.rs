//! What is kept, for how long, and rows of runtimes that nobody executed.

use super::databases::{Database, on_both, with};
use super::support::{EPOCH, HOUR, MS, S, V, at, execution, facts, failure, node, span, success};
use crate::ledger::Limits;
use crate::ledger::commit::Applied;
use crate::ledger::meters::Meters;
use crate::ledger::standalone::stand_alone;
use crate::ledger::table::EXECUTIONS;
use crate::ledger::upkeep::{Upkeep, Work};

on_both! {
    context_is_forgotten_when_nothing_can_need_it_any_more
    no_more_than_max_pending_wait_and_the_latest_stay
    rows_are_deleted_when_their_time_is_over
    a_runtime_that_nobody_executed_becomes_a_row_after_two_minutes
    an_execution_that_comes_late_takes_over_the_row_of_its_runtime
    a_runtime_inside_an_execution_never_becomes_a_row
    tools_become_rows_too
    a_runtime_becomes_a_row_however_short_the_window_and_however_few_may_wait
    an_execution_whose_foreign_key_is_refused_late_takes_over_the_row_all_the_same
    what_is_in_quarantine_is_deleted_when_its_time_is_over
}

async fn turn(database: &Database, limits: Limits, now: u64) {
    turn_with(database, limits, false, now).await;
}

async fn turn_with(database: &Database, limits: Limits, standalone: bool, now: u64) {
    let standalone = standalone.then_some(&*super::databases::PRICES);
    let (mut session, meters) = (database.connect().await.unwrap(), Meters::new());
    let work = Work {
        limits: &limits,
        destinations: &[EXECUTIONS],
        standalone,
    };
    let mut upkeep = Upkeep::new();
    with!(session, store => upkeep.turn(store, &work, EPOCH + now, &meters).await).unwrap();
}

const LIMITS: Limits = Limits {
    retention: None,
    window: std::time::Duration::from_secs(3_600),
    max_pending: 200_000,
};

async fn context_is_forgotten_when_nothing_can_need_it_any_more(database: Database) {
    database.write(&at(&[failure(1, 1, 0, 1)], 0)).await;
    database.write(&at(&[failure(1, 2, 0, 1)], HOUR)).await;
    turn(&database, LIMITS, 2 * HOUR).await;
    assert_eq!(database.waiting().await, 2);
    turn(&database, LIMITS, 2 * HOUR + 1).await;
    assert_eq!(database.waiting().await, 1);
    turn(&database, LIMITS, 3 * HOUR + 1).await;
    assert_eq!(database.waiting().await, 0);
    assert_eq!(database.rows().await.len(), 2);
}

async fn no_more_than_max_pending_wait_and_the_latest_stay(database: Database) {
    for id in 0..20_u16 {
        database.write(&at(&[success(1, id, 0, 1)], u64::from(id) * MS)).await;
    }
    turn(
        &database,
        Limits {
            max_pending: 7,
            ..LIMITS
        },
        0,
    )
    .await;
    assert_eq!(database.waiting().await, 7);
    let oldest = database
        .number("SELECT min(received_at_ns) FROM spanledger_context")
        .await;
    assert_eq!(oldest.cast_unsigned(), EPOCH + 13 * MS);
}

async fn rows_are_deleted_when_their_time_is_over(database: Database) {
    let day = 24 * HOUR;
    database
        .write(&at(&[success(1, 1, 0, 1_000), success(1, 2, 0, 2_000)], 0))
        .await;
    let retention = Some(std::time::Duration::from_secs(86_400));
    turn(&database, Limits { retention, ..LIMITS }, day + 1_500 * MS).await;
    let rows = database.rows().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].created_at, EPOCH + 2_000 * MS);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_executions").await, 1);
}

fn e2b() -> S {
    span("e2b.execute", 1, 2, 110, 140)
        .all([
            ("e2b.runtime", V::S("e2b")),
            ("e2b.language", V::S("python")),
            ("e2b.success", V::B(false)),
            ("e2b.exit_code", V::I(3)),
            ("e2b.duration_ms", V::I(29)),
        ])
        .status(2, "E2B execution timed out after 29ms")
}

pub(super) async fn due(database: &Database, now: u64) -> Applied {
    let mut session = database.connect().await.unwrap();
    let done = with!(session, store => stand_alone(store, HOUR, 0, EPOCH + now, &super::databases::PRICES).await);
    done.unwrap().1
}

const TWO_MINUTES: u64 = 120_000 * MS;

async fn a_runtime_that_nobody_executed_becomes_a_row_after_two_minutes(database: Database) {
    database.write(&at(&[e2b(), node(1, 3, 100, 150)], 0)).await;
    assert_eq!(due(&database, TWO_MINUTES - 1).await.written, 0);
    assert_eq!(due(&database, TWO_MINUTES).await.written, 1);
    assert_eq!(due(&database, TWO_MINUTES).await.written, 0);
    let rows = database.rows().await;
    let row = &rows[0];
    assert_eq!(
        (row.id.as_str(), row.runtime.as_str(), row.language.as_str()),
        (&*e2b().row_id(), "e2b", "python")
    );
    assert_eq!(
        (row.duration_ms, row.exit_code, row.success),
        (Some(29), Some(3), false)
    );
    assert_eq!(row.error_message.as_deref(), Some("E2B execution timed out after 29ms"));
    assert_eq!(row.user_id.as_deref(), Some("user-1"));
    // The same span again is the same row.
    database.write(&at(&[e2b()], HOUR / 2)).await;
    assert_eq!(due(&database, HOUR).await.written, 0);
    assert_eq!(database.rows().await, rows);
}

async fn an_execution_that_comes_late_takes_over_the_row_of_its_runtime(database: Database) {
    database.write(&at(&[e2b()], 0)).await;
    assert_eq!(due(&database, TWO_MINUTES).await.written, 1);
    let late = failure(1, 1, 100, 150)
        .ids("wf-1", "we-1", "n-1")
        .with("code.runtime", V::S("e2b"));
    for turn in 0..2 {
        let applied = database.write(&at(std::slice::from_ref(&late), TWO_MINUTES + 1)).await;
        assert_eq!(
            (applied.written, applied.taken_over),
            (0, 1 - turn),
            "sent again it is the same"
        );
    }
    let rows = database.rows().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].id, e2b().row_id());
    assert_eq!(
        (rows[0].node_id.as_deref(), rows[0].duration_ms, rows[0].exit_code),
        (Some("n-1"), Some(50), Some(3))
    );
    // And what comes still later completes that row.
    let around = node(2, 3, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("node.error", V::S("boom"));
    assert_eq!(database.write(&at(&[around], TWO_MINUTES + 2)).await.merged, 1);
    let rows = database.rows().await;
    assert_eq!((rows.len(), rows[0].error_message.as_deref()), (1, Some("boom")));
    assert_eq!(rows[0].user_id.as_deref(), Some("user-1"));
}

async fn a_runtime_inside_an_execution_never_becomes_a_row(database: Database) {
    database.write(&at(&[e2b()], 0)).await;
    database.write(&at(&[execution(1, 1, 100, 150)], 1)).await;
    assert_eq!(due(&database, TWO_MINUTES).await.written, 0);
    assert_eq!(database.rows().await.len(), 1);
    // Without the option no runtime span is ever due.
    let other = span("e2b.execute", 7, 2, 110, 140);
    database.write(&facts(&[other])).await;
    assert_eq!(due(&database, 10 * HOUR).await.written, 0);
}

async fn tools_become_rows_too(database: Database) {
    let command = span("execute_tool ls", 1, 1, 0, 5)
        .all([
            ("gen_ai.operation.name", V::S("execute_tool")),
            ("process.exit.code", V::I(2)),
        ])
        .status(2, "");
    let bun = span("runtime.execute_tool", 2, 2, 0, 7).all([("tool_id", V::S("weather")), ("exit_code", V::I(0))]);
    let neither = span("execute_tool search", 3, 3, 0, 5).with("gen_ai.operation.name", V::S("execute_tool"));
    database.write(&at(&[command, bun, neither], 0)).await;
    assert_eq!(due(&database, TWO_MINUTES).await.written, 2);
    let rows = database.rows().await;
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.runtime.as_str(), row.exit_code, row.success))
        .collect();
    assert_eq!(told, [("tool", Some(2), false), ("bun", Some(0), true)]);
}

async fn a_runtime_becomes_a_row_however_short_the_window_and_however_few_may_wait(database: Database) {
    let second = std::time::Duration::from_secs(1);
    database.write(&at(&[e2b(), node(1, 3, 0, 1)], 0)).await;
    let short = Limits {
        window: second,
        ..LIMITS
    };
    // Its window is long over, but it is not due: the node is forgotten, the runtime is not.
    turn_with(&database, short, true, 10_000 * MS).await;
    assert_eq!(database.waiting().await, 1);
    assert_eq!(database.rows().await.len(), 0);
    // More wait than may: what could become a row becomes one before it is forgotten.
    let others: Vec<S> = (10..30).map(|id| node(9, id, 0, 1)).collect();
    database.write(&at(&others, 11_000 * MS)).await;
    let few = Limits {
        max_pending: 10,
        ..LIMITS
    };
    turn_with(&database, few, true, 12_000 * MS).await;
    let rows = database.rows().await;
    assert_eq!((rows.len(), &*rows[0].id), (1, &*e2b().row_id()));
    assert!(database.waiting().await <= 10);
}

/// The value exists when it is asked for, and no longer when the row is written: the row is written in a careful way,
/// which must not make a second one.
async fn an_execution_whose_foreign_key_is_refused_late_takes_over_the_row_all_the_same(database: Database) {
    database.execute(include_str!("backend_schema.sql")).await;
    database.write(&at(&[e2b()], 0)).await;
    assert_eq!(due(&database, TWO_MINUTES).await.written, 1);
    let refuse = if database.is_postgres() {
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         DELETE FROM users WHERE id = NEW.user_id; RETURN NEW; END $$; \
         CREATE TRIGGER gone BEFORE INSERT ON code_exec_logs FOR EACH ROW EXECUTE FUNCTION gone()"
    } else {
        "CREATE TRIGGER gone BEFORE INSERT ON code_exec_logs WHEN NEW.user_id = 'user-1' \
         BEGIN SELECT RAISE(ABORT, 'gone'); END"
    };
    database.execute(refuse).await;
    let late = failure(1, 1, 100, 150).with("user.id", V::S("user-1"));
    let applied = database.write(&at(&[late], TWO_MINUTES + 1)).await;
    let rows = database.rows().await;
    assert_eq!((rows.len(), &*rows[0].id), (1, &*e2b().row_id()), "never a second row");
    if database.is_postgres() {
        assert_eq!((applied.taken_over, applied.nulled), (1, 1));
        assert_eq!((rows[0].duration_ms, rows[0].user_id.as_deref()), (Some(50), None));
    } else {
        // SQLite does not say which column it was.
        assert_eq!((applied.taken_over, applied.quarantined), (0, 1));
        assert_eq!(rows[0].duration_ms, Some(29));
    }
}

async fn what_is_in_quarantine_is_deleted_when_its_time_is_over(database: Database) {
    database.write(&[]).await;
    let refuse = if database.is_postgres() {
        "ALTER TABLE code_exec_logs ADD CHECK (runtime <> 'vm2')"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON code_exec_logs BEGIN SELECT RAISE(ABORT, 'no'); END"
    };
    database.execute(refuse).await;
    assert_eq!(database.write(&at(&[success(1, 1, 0, 1)], 0)).await.quarantined, 1);
    let retention = Some(std::time::Duration::from_secs(3_600));
    let limits = Limits { retention, ..LIMITS };
    turn(&database, limits, HOUR).await;
    assert_eq!(database.number("SELECT count(*) FROM spanledger_quarantine").await, 1);
    turn(&database, limits, HOUR + MS).await;
    assert_eq!(database.number("SELECT count(*) FROM spanledger_quarantine").await, 0);
}
