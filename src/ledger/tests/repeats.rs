//! The same span again: there is one row, and one entry beside it, whatever its times are.

use super::databases::{Database, PRICES, batch, on_both, with};
use super::support::{HOUR, MS, S, V, at, span, success};
use crate::ledger::assemble::assemble;
use crate::ledger::commit::Batch;
use crate::ledger::facts::Facts;
use crate::ledger::plan;
use crate::ledger::store::Store;
use crate::ledger::table::{EXECUTIONS, NewRow};
use crate::ledger::world::World;

on_both! {
    a_span_without_an_end_that_can_be_believed_is_one_row_whenever_it_comes_again
    a_span_that_comes_again_with_another_end_changes_nothing
    a_row_that_somebody_deleted_is_not_written_again
    an_execution_that_took_over_a_row_stays_one_whatever_its_end
    a_runtime_whose_row_was_taken_over_and_deleted_does_not_come_back
    rows_that_are_made_anew_are_taken_over_again
    a_row_that_is_inserted_twice_at_once_keeps_what_is_beside_it
}

/// As it comes again when nobody waits for it any more.
async fn write_later(database: &Database, spans: &[S], received_at: u64) {
    database.execute("DELETE FROM spanledger_context").await;
    database.write(&at(spans, received_at)).await;
}

async fn counts(database: &Database) -> (i64, i64) {
    (
        database.number("SELECT count(*) FROM code_exec_logs").await,
        database.number("SELECT count(*) FROM spanledger_executions").await,
    )
}

async fn a_span_without_an_end_that_can_be_believed_is_one_row_whenever_it_comes_again(database: Database) {
    let mut without = success(1, 1, 0, 1);
    without.0.end_time_unix_nano = 0;
    let mut far = success(1, 2, 0, 1);
    far.0.end_time_unix_nano += 400 * 24 * HOUR;
    let spans = [without, far];
    database.write(&at(&spans, 0)).await;
    let rows = database.rows().await;
    for hour in 1..4 {
        write_later(&database, &spans, hour * HOUR).await;
        assert_eq!(counts(&database).await, (2, 2));
    }
    assert_eq!(database.rows().await, rows);
    // Not even when the rows are gone.
    database.execute("DELETE FROM code_exec_logs").await;
    write_later(&database, &spans, 4 * HOUR).await;
    assert_eq!(counts(&database).await, (0, 2));
}

async fn a_span_that_comes_again_with_another_end_changes_nothing(database: Database) {
    database.write(&at(&[success(1, 1, 0, 1)], 0)).await;
    let rows = database.rows().await;
    // Beside a new one, and in a batch of its own.
    write_later(&database, &[success(1, 1, 0, 7), success(1, 2, 0, 7)], HOUR).await;
    assert_eq!(counts(&database).await, (2, 2));
    let applied = {
        database.execute("DELETE FROM spanledger_context").await;
        database.write(&at(&[success(1, 1, 0, 9)], HOUR)).await
    };
    assert_eq!((applied.written, applied.duplicates), (0, 1));
    assert_eq!(counts(&database).await, (2, 2));
    assert!(database.rows().await.contains(&rows[0]));
}

async fn a_row_that_somebody_deleted_is_not_written_again(database: Database) {
    database.write(&at(&[success(1, 1, 0, 1)], 0)).await;
    database.execute("DELETE FROM code_exec_logs").await;
    write_later(&database, &[success(1, 1, 0, 1)], HOUR).await;
    assert_eq!(counts(&database).await, (0, 1));
}

const TWO_MINUTES: u64 = 120_000 * MS;

/// A runtime that stood alone, and the execution around it that came then and took over its row.
async fn taken_over(database: &Database, end: u64) -> (S, S) {
    // Within the tolerance of clocks, whatever the end was replaced by.
    let runtime = span("e2b.execute", 1, 2, 0, 1).with("e2b.runtime", V::S("e2b"));
    let execution = success(1, 1, 0, end / MS);
    database.write(&at(std::slice::from_ref(&runtime), 0)).await;
    super::keeping::due(database, TWO_MINUTES).await;
    assert_eq!(counts(database).await, (1, 1));
    database.write(&at(std::slice::from_ref(&execution), TWO_MINUTES)).await;
    assert_eq!(counts(database).await, (1, 2), "taken over");
    (runtime, execution)
}

async fn an_execution_that_took_over_a_row_stays_one_whatever_its_end(database: Database) {
    // At first it cannot be believed, later it can.
    let (_, mut execution) = taken_over(&database, 25 * HOUR).await;
    write_later(&database, std::slice::from_ref(&execution), 2 * HOUR).await;
    assert_eq!(counts(&database).await, (1, 2));
    for end in [0, 7 * MS, 400 * 24 * HOUR] {
        execution.0.end_time_unix_nano = super::support::EPOCH + end;
        write_later(&database, std::slice::from_ref(&execution), 3 * HOUR).await;
        assert_eq!(counts(&database).await, (1, 2));
    }
}

async fn a_runtime_whose_row_was_taken_over_and_deleted_does_not_come_back(database: Database) {
    let (runtime, _) = taken_over(&database, 7 * MS).await;
    database.execute("DELETE FROM code_exec_logs").await;
    write_later(&database, &[runtime], HOUR).await;
    super::keeping::due(&database, HOUR + TWO_MINUTES).await;
    assert_eq!(counts(&database).await, (0, 2));
}

async fn rows_that_are_made_anew_are_taken_over_again(database: Database) {
    let (runtime, execution) = taken_over(&database, 7 * MS).await;
    let rows = database.rows().await;
    for spans in [vec![runtime.clone(), execution.clone()], vec![execution, runtime]] {
        let facts = at(&spans, TWO_MINUTES);
        let batch = Batch {
            anew: true,
            ..batch(&facts)
        };
        database.connect().await.unwrap().apply(&batch).await.unwrap();
        assert_eq!(database.rows().await, rows);
        assert_eq!(counts(&database).await, (1, 2));
    }
}

async fn a_row_that_is_inserted_twice_at_once_keeps_what_is_beside_it(database: Database) {
    let facts = at(&[success(1, 1, 0, 1)], 0);
    let doubled = [facts.clone(), facts].concat();
    let rows: Vec<NewRow> = doubled.iter().map(new_row).collect();
    let rows: Vec<&NewRow> = rows.iter().collect();
    let mut session = database.connect().await.unwrap();
    with!(session, store => {
        store.begin().await.unwrap();
        let new = store.insert_rows(EXECUTIONS, &rows).await.unwrap();
        assert!(new.contains(&rows[0].row.id));
        store.commit().await.unwrap();
    });
    assert_eq!(counts(&database).await, (1, 1));
}

fn new_row(facts: &Facts) -> NewRow {
    let world = World::new([], [facts], HOUR);
    let assembled = assemble(&world, facts, true).unwrap();
    plan::new_row(EXECUTIONS, facts, assembled, Vec::new(), &PRICES).unwrap()
}
