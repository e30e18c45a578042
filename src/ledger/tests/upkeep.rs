//! What is done beside the rows, and fails: rows are written all the same.

use std::time::Duration;

use super::databases::{Database, on_both, with};
use super::following::{append, journal, until};
use super::operating::{options, run};
use super::support::{EPOCH, HOUR, MS, S, at, success};
use crate::clock::unix_nanos;
use crate::ledger::LedgerOptions;
use crate::ledger::meters::Meters;
use crate::ledger::packing::Packing;

on_both! {
    rows_that_cannot_be_deleted_keep_no_other_from_being_written
}

const IN_HOUR: u64 = HOUR / MS;

async fn rows_that_cannot_be_deleted_keep_no_other_from_being_written(database: Database) {
    database.write(&at(&[success(1, 1, 0, 10)], 0)).await;
    database
        .execute("CREATE TABLE notes (log_id text REFERENCES code_exec_logs (id)); INSERT INTO notes SELECT id FROM code_exec_logs")
        .await;
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let running = run(
        LedgerOptions {
            // All from before the first hour's end.
            retention: Some(Duration::from_nanos(unix_nanos() - EPOCH - HOUR)),
            ..options(database.settings.url.clone())
        },
        &journal,
    );
    for id in 2..5 {
        append(&journal, &[success(1, id, IN_HOUR * 20, IN_HOUR * 20 + 10)]).await;
        until(async || database.number("SELECT count(*) FROM code_exec_logs").await == i64::from(id)).await;
    }
    let reason = running.degraded().unwrap();
    assert!(reason.contains("database.retention"), "{reason}");
    running.stop().await;
}

/// SQLite keeps any value in any column.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_keeps_no_other_from_being_written() {
    for spoilt in ["created_at = replace(created_at, ' ', 'T') || 'Z'", "duration_ms = 1.5"] {
        let database = Database::sqlite();
        // Yesterday, so that its hour is among the first to be packed.
        let then = unix_nanos() - EPOCH - 30 * HOUR;
        database
            .write(&at(&[success(1, 1, then / MS, then / MS + 10)], then))
            .await;
        database.execute(&format!("UPDATE code_exec_logs SET {spoilt}")).await;
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let running = run(options(database.settings.url.clone()), &journal);
        until(async || running.degraded().is_some_and(|reason| reason.contains("not packed"))).await;
        append(&journal, &[success(1, 2, 0, 10)]).await;
        until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 2).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_that_cannot_be_packed_keeps_no_other_from_it_and_is_packed_when_its_row_is_put_right() {
    let database = Database::sqlite();
    let spans: Vec<S> = (0..4)
        .map(|id| success(1, id, IN_HOUR * u64::from(id), IN_HOUR * u64::from(id) + 10))
        .collect();
    database.write(&at(&spans, 4 * HOUR)).await;
    let second = &spans[1].row_id();
    let set = async |value: &str| {
        let sql = format!("UPDATE code_exec_logs SET duration_ms = {value} WHERE id = '{second}'");
        database.execute(&sql).await;
    };
    set("1.5").await;
    let mut session = database.connect().await.unwrap();
    let (mut packing, meters) = (Packing::default(), Meters::new());
    let mut turn = async || {
        with!(session, store => packing.turn(store, 0, EPOCH + 6 * HOUR, &meters).await).unwrap();
        (database.hours().await.len(), packing.trouble().map(str::to_owned))
    };
    let (packed, trouble) = turn().await;
    assert_eq!(packed, 3);
    let trouble = trouble.unwrap();
    assert!(
        trouble.contains(second.as_str()) && trouble.contains("2026-01-01 01:00 UTC"),
        "{trouble}"
    );
    set("10").await;
    let mut turns = 1;
    while turn().await.0 < 4 {
        turns += 1;
    }
    assert_eq!(turns, 90, "a quarter of an hour");
    assert_eq!(turn().await, (4, None));
}
