//! The same span again: there is one row, and one entry beside it, whatever its times are.

use super::databases::{Database, on_both};
use super::support::{HOUR, MS, S, at, span, success};

on_both! {
    a_span_without_an_end_that_can_be_believed_is_one_row_whenever_it_comes_again
    a_span_that_comes_again_with_another_end_changes_nothing
    a_row_that_somebody_deleted_is_not_written_again
    a_runtime_without_an_end_that_was_taken_over_stays_one_row
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

async fn a_runtime_without_an_end_that_was_taken_over_stays_one_row(database: Database) {
    // Within the tolerance of clocks, whatever the end was replaced by.
    let runtime = span("e2b.execute", 1, 2, 0, 1).with("e2b.runtime", super::support::V::S("e2b"));
    let mut execution = success(1, 1, 0, 1);
    execution.0.end_time_unix_nano += 400 * 24 * HOUR;
    database.write(&at(std::slice::from_ref(&runtime), 0)).await;
    let two_minutes = 120_000 * MS;
    super::keeping::due(&database, two_minutes).await;
    assert_eq!(counts(&database).await, (1, 1));
    database.write(&at(std::slice::from_ref(&execution), two_minutes)).await;
    assert_eq!(counts(&database).await, (1, 2), "taken over");
    write_later(&database, &[execution], 2 * HOUR).await;
    assert_eq!(counts(&database).await, (1, 2));
}
