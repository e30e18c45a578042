//! The whole loop on a real journal: restarts, a database that is away, one that was put back, a journal that was wiped.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::databases::{Database, on_both};
use super::postgres;
use super::support::{EPOCH, S, facts, failure, node, request, success};
use crate::journal::tests::unreadable;
use crate::journal::{Entry, Journal, Options};
use crate::ledger::{Ledger, LedgerOptions};
use crate::otlp::{Encoding, Signal, TraceRequest, compress};
use crate::rules::telling::Telling;
use crate::telemetry::Health;

on_both! {
    a_restart_goes_on_behind_the_last_row_and_writes_nothing_twice
    an_older_position_is_written_again_and_changes_nothing
    a_wiped_journal_with_an_old_database_begins_anew
    what_is_too_much_for_one_transaction_is_several_and_every_row_is_there_once
    a_position_beyond_the_end_of_the_journal_is_no_reason_to_lose_a_row
    of_thousands_of_executions_in_one_transaction_exactly_those_that_had_no_row_are_new
    where_the_disk_cannot_be_read_is_passed_and_all_rows_before_and_behind_it_are_there
    damage_at_the_end_of_the_journal_keeps_no_row_before_it_waiting
}

fn options(database: &Database) -> LedgerOptions {
    LedgerOptions {
        url: database.settings.url.clone(),
        ..LedgerOptions::default()
    }
}

pub(super) fn journal(directory: &Path) -> Journal {
    Journal::open(journal_options(directory)).unwrap().0
}

fn journal_options(directory: &Path) -> Options {
    Options {
        readers: vec!["ledger".into()],
        free_disk_floor: 0,
        segment_size: Some(1 << 20),
        ..Options::new(directory)
    }
}

pub(super) async fn append(journal: &Journal, spans: &[S]) {
    append_as(journal, spans, Encoding::Identity).await;
}

async fn append_compressed(journal: &Journal, spans: &[S]) {
    append_as(journal, spans, Encoding::Zstd).await;
}

pub(super) async fn append_request(journal: &Journal, request: &TraceRequest) {
    append_encoded(journal, request, Encoding::Identity).await;
}

async fn append_as(journal: &Journal, spans: &[S], encoding: Encoding) {
    append_encoded(journal, &request(spans), encoding).await;
}

async fn append_encoded(journal: &Journal, request: &TraceRequest, encoding: Encoding) {
    let decoded = request.bytes().clone();
    let checked = TraceRequest::parse_noting(decoded.clone(), &mut Telling::default()).unwrap();
    let entry = Entry {
        signal: Signal::Traces,
        encoding,
        received_at: EPOCH + 1_000_000_000,
        items: checked.spans,
        rejected: 0,
        digest: None,
        body: compress(encoding, &decoded),
        decoded,
        noted: checked.noted,
    };
    journal.append(entry).unwrap().durable.await.unwrap();
}

/// Runs the ledger until everything in the journal is written.
pub(super) async fn drain(journal: &Journal, database: &Database) {
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    run(journal, database, shutdown).await;
}

/// Runs the ledger until `shutdown`.
fn run(journal: &Journal, database: &Database, shutdown: CancellationToken) -> impl Future<Output = ()> + use<> {
    let heartbeat = Health::default().stage("ledger");
    let status = heartbeat.status();
    let reader = journal.reader("ledger").unwrap();
    // Retention would delete the rows of the tests' own time, and what waits since then would be forgotten.
    let options = LedgerOptions {
        retention: Some(Duration::ZERO),
        assembly_window: Duration::from_secs(50 * 365 * 86_400),
        ..options(database)
    };
    let ledger = Ledger::new(options).unwrap();
    async move { ledger.run(reader, shutdown, heartbeat, status).await }
}

/// A ledger at work.
struct Running {
    shutdown: CancellationToken,
    work: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(journal: &Journal, database: &Database) -> Running {
        // With the tables there, they can be looked at.
        drop(database.connect().await.unwrap());
        let shutdown = CancellationToken::new();
        let work = tokio::spawn(run(journal, database, shutdown.clone()));
        Running { shutdown, work }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.work.await.unwrap();
    }
}

pub(super) fn executions(from: u16, to: u16) -> Vec<S> {
    (from..to).map(|id| success(1, id, 100, 150)).collect()
}

async fn what_is_too_much_for_one_transaction_is_several_and_every_row_is_there_once(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    // Compressed they are one batch; decoded they are more than one transaction takes.
    for request in 0..3 {
        append_compressed(&journal, &executions(request * 10_000, (request + 1) * 10_000)).await;
    }
    append(&journal, &executions(29_990, 30_010)).await;
    drain(&journal, &database).await;
    assert_eq!(database.rows().await.len(), 30_010);
    let position = database
        .number("SELECT max(next_sequence) FROM spanledger_positions")
        .await;
    assert_eq!(position.cast_unsigned(), journal.end().next);
}

async fn a_restart_goes_on_behind_the_last_row_and_writes_nothing_twice(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    for turn in 0..3 {
        let journal = journal(directory.path());
        append(&journal, &executions(turn * 10, turn * 10 + 10)).await;
        append(&journal, &[node(9, turn, 0, 1)]).await;
        drain(&journal, &database).await;
        assert_eq!(database.rows().await.len(), usize::from(turn) * 10 + 10);
        let position = database
            .number("SELECT max(next_sequence) FROM spanledger_positions")
            .await;
        assert_eq!(position.cast_unsigned(), journal.end().next);
        let lag = &journal.status().readers[0];
        assert_eq!(lag.name, "ledger");
    }
    assert_eq!(database.number("SELECT count(*) FROM spanledger_positions").await, 1);
}

async fn an_older_position_is_written_again_and_changes_nothing(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(&journal, &executions(0, 10)).await;
    append(&journal, &executions(10, 20)).await;
    drain(&journal, &database).await;
    let before = database.rows().await;
    // As a standby has it that was promoted before it had everything.
    let lost = before[15].id.clone();
    database
        .execute("UPDATE spanledger_positions SET next_sequence = next_sequence - 1")
        .await;
    for table in ["code_exec_logs", "spanledger_executions"] {
        database
            .execute(&format!("DELETE FROM {table} WHERE id = '{lost}'"))
            .await;
    }
    database.execute("DELETE FROM spanledger_context").await;
    drain(&journal, &database).await;
    assert_eq!(database.rows().await, before);
}

async fn a_wiped_journal_with_an_old_database_begins_anew(database: Database) {
    for turn in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        append(&journal, &executions(0, 10 + turn)).await;
        drain(&journal, &database).await;
    }
    assert_eq!(database.rows().await.len(), 11);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_positions").await, 2);
}

async fn a_position_beyond_the_end_of_the_journal_is_no_reason_to_lose_a_row(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(&journal, &executions(0, 10)).await;
    drain(&journal, &database).await;
    database
        .execute("UPDATE spanledger_positions SET next_sequence = 1000000")
        .await;
    append(&journal, &executions(10, 12)).await;
    drain(&journal, &database).await;
    assert_eq!(database.rows().await.len(), 12);
}

/// Looks again and again until `condition` holds: for what happens in its own time.
pub(super) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(tokio::time::Instant::now() < patience, "it never came true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_waited_for_and_pins_the_journal() {
    if postgres::skipped() {
        return;
    }
    let cluster = postgres::Cluster::start();
    let url = cluster.database();
    let name = url.rsplit('/').next().unwrap().to_owned();
    cluster.stop();

    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(&journal, &executions(0, 10)).await;
    let health = Health::default();
    let heartbeat = health.stage("ledger");
    let status = heartbeat.status();
    let shutdown = CancellationToken::new();
    let options = LedgerOptions {
        url,
        retention: Some(Duration::ZERO),
        ..LedgerOptions::default()
    };
    let ledger = Ledger::new(options).unwrap();
    assert!(ledger.check().await.unwrap_err().is_retryable());
    let running = tokio::spawn(ledger.run(journal.reader("ledger").unwrap(), shutdown.clone(), heartbeat, status));

    let degraded = || health.report(std::time::Instant::now())[0].degraded.clone();
    until(async || degraded().is_some_and(|reason| reason.contains("database.url"))).await;
    cluster.resume();
    let count = || {
        cluster
            .psql(&name, "SELECT count(*) FROM code_exec_logs")
            .trim()
            .to_owned()
    };
    until(async || degraded().is_none() && count() == "10").await;

    // Again, in the middle of work.
    cluster.stop();
    append(&journal, &executions(10, 20)).await;
    until(async || degraded().is_some()).await;
    assert!(health.is_alive(std::time::Instant::now()));
    cluster.resume();
    until(async || count() == "20").await;
    shutdown.cancel();
    running.await.unwrap();
    assert!(health.is_alive(std::time::Instant::now()));
}

#[tokio::test]
async fn a_url_of_no_known_database_and_a_broken_expression_name_their_keys() {
    let url = Ledger::new(LedgerOptions {
        url: "mysql://x".into(),
        ..LedgerOptions::default()
    });
    assert!(url.unwrap_err().to_string().starts_with("database.url"));
    let redact = Ledger::new(LedgerOptions {
        redact: vec!["(".into()],
        ..LedgerOptions::default()
    });
    assert!(redact.unwrap_err().to_string().starts_with("database.redact"));
}

#[tokio::test]
async fn secrets_are_cut_from_error_messages() {
    let database = Database::sqlite();
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(
        &journal,
        &[failure(1, 1, 100, 150).status(2, "401 for key sk-123 of sk-456")],
    )
    .await;
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let heartbeat = Health::default().stage("ledger");
    let status = heartbeat.status();
    let redact = vec!["sk-[0-9]+".to_owned()];
    let options = LedgerOptions {
        redact,
        retention: Some(Duration::ZERO),
        ..options(&database)
    };
    Ledger::new(options)
        .unwrap()
        .run(journal.reader("ledger").unwrap(), shutdown, heartbeat, status)
        .await;
    let message = database.rows().await.remove(0).error_message;
    assert_eq!(message.as_deref(), Some("401 for key [redacted] of [redacted]"));
}

async fn where_the_disk_cannot_be_read_is_passed_and_all_rows_before_and_behind_it_are_there(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    // Some requests in each of several files of a megabyte.
    let journal = journal(directory.path());
    for request in 0..30 {
        append(&journal, &executions(request * 400, (request + 1) * 400)).await;
    }
    drop(journal);
    let (journal, unreadable) = unreadable::open(journal_options(directory.path()));
    unreadable.set(500_000..504_096);
    let end = journal.end_at_open().next as i64;
    let running = Running::start(&journal, &database).await;
    // Both requests at this place of each file at most.
    let position = "SELECT coalesce(max(next_sequence), 0) FROM spanledger_positions";
    until(async || database.number(position).await >= end).await;
    running.stop().await;
    let rows: Vec<String> = database.rows().await.into_iter().map(|row| row.id).collect();
    assert!((8_000..12_000).contains(&rows.len()), "{}", rows.len());
    for id in [0, 399, 11_999] {
        assert!(rows.contains(&success(1, id, 100, 150).row_id()), "{id}");
    }
}

/// Flips a bit in the body of the newest record.
fn damage_last_body(directory: &Path) {
    let mut newest = None;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for (at, header) in bytes
            .windows(24)
            .enumerate()
            .filter(|(_, header)| header.starts_with(b"SLR1"))
        {
            let sequence = u64::from_le_bytes(header[16..].try_into().unwrap());
            newest = newest.max(Some((sequence, path.clone(), at)));
        }
    }
    let (_, path, at) = newest.expect("a record");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at + 80] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

async fn damage_at_the_end_of_the_journal_keeps_no_row_before_it_waiting(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    // One request more than is read at a time.
    for id in 0..257 {
        append(&journal, &executions(id, id + 1)).await;
    }
    drop(journal);
    let journal = self::journal(directory.path());
    damage_last_body(directory.path());
    let running = Running::start(&journal, &database).await;
    until(async || database.rows().await.len() == 256).await;
    running.stop().await;
}

async fn of_thousands_of_executions_in_one_transaction_exactly_those_that_had_no_row_are_new(database: Database) {
    // Those with a row are among the first and the last of several statements; one statement has new ones only.
    let had_one = [executions(0, 50), executions(17_900, 18_000)].concat();
    let before = database.write(&facts(&had_one)).await;
    assert_eq!((before.written, before.duplicates, before.context), (150, 0, 150));
    database.execute("DELETE FROM spanledger_context").await;
    let applied = database.write(&facts(&executions(0, 18_000))).await;
    assert_eq!((applied.written, applied.duplicates), (17_850, 150));
    assert_eq!(applied.context, 17_850, "those that had a row wait no more");
    assert_eq!(database.rows().await.len(), 18_000);
    let again = database.write(&facts(&executions(0, 18_000))).await;
    assert_eq!((again.written, again.duplicates, again.context), (0, 18_000, 0));
}
