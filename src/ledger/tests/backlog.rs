//! A backlog, of which SQLite writes many batches in one transaction, and their rows at its end.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::backend::SCHEMA;
use super::databases::{Database, Session, batch, on_both};
use super::following::{append, append_request, drain, journal};
use super::support::{EPOCH, S, V, facts, facts_of, failure, node, request, request_of, span, success};
use crate::journal::Journal;
use crate::ledger::ahead::Ahead;
use crate::ledger::commit::{apply_among_others, end};
use crate::ledger::extract::{Extractor, Limit};
use crate::ledger::row::TEXT_LIMIT;
use crate::ledger::store::sqlite::SqliteStore;
use crate::ledger::store::{RowKey, Store};
use crate::ledger::table::EXECUTIONS;

on_both! {
    a_backlog_that_is_broken_off_again_and_again_is_there_once
    a_backlog_makes_the_rows_that_its_requests_make_one_by_one
    what_a_database_refuses_of_a_backlog_is_set_aside_alone
    a_row_that_was_there_before_its_execution_stays_the_only_one
    a_request_that_tells_more_than_a_batch_takes_is_written_in_parts
}

/// Makes a request of few spans as large as many.
static FILLER: LazyLock<&'static str> = LazyLock::new(|| "x".repeat(64 << 10).leak());

/// Requests of half a megabyte: ten of them are a batch.
const REQUESTS: u16 = 40;
const EACH: u16 = 8;

/// In another order than the executions come.
fn span_id(number: u16) -> u16 {
    number.reverse_bits()
}

fn row_id(number: u16) -> String {
    success(1, span_id(number), 100, 150).row_id()
}

fn large(execution: S) -> S {
    execution.with("note", V::S(*FILLER))
}

/// Executions; nodes that come later and complete some of them, in this batch, the next one, or another transaction; and
/// some that are sent again.
fn requests(random: &mut fastrand::Rng) -> Vec<Vec<S>> {
    let mut requests: Vec<Vec<S>> = vec![Vec::new(); usize::from(REQUESTS)];
    for number in 0..REQUESTS * EACH {
        let at = usize::from(number / EACH);
        let later = |random: &mut fastrand::Rng| random.usize(at..requests.len());
        let key: &str = format!("we-{number}").leak();
        let execution = if random.bool() { success } else { failure };
        let execution = large(execution(1, span_id(number), 100, 150).ids("wf", key, "n-1"));
        let (again, node_at) = (later(random), later(random));
        if random.u8(..4) == 0 {
            requests[again].push(execution.clone());
        }
        if random.bool() {
            let node = node(2, number, 90, 160).ids("wf", key, "n-1");
            requests[node_at].push(node.with("node.error", V::S("boom")));
        }
        requests[at].push(execution);
    }
    requests
}

async fn append_all(requests: &[Vec<S>], directory: &std::path::Path) -> Journal {
    let journal = journal(directory);
    for spans in requests {
        append(&journal, spans).await;
    }
    journal
}

/// What the requests make where each has a transaction of its own.
async fn written_one_by_one(requests: &[Vec<S>]) -> Database {
    let database = Database::sqlite();
    for spans in requests {
        database.write(&facts_of(&request(spans), EPOCH)).await;
    }
    database
}

async fn a_backlog_makes_the_rows_that_its_requests_make_one_by_one(database: Database) {
    let requests = requests(&mut fastrand::Rng::with_seed(11));
    let one_by_one = written_one_by_one(&requests).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = append_all(&requests, directory.path()).await;
    drain(&journal, &database).await;
    assert_eq!(database.rows().await, one_by_one.rows().await);
    assert_eq!(database.waiting().await, one_by_one.waiting().await);
    let beside = "SELECT count(*) FROM spanledger_executions";
    assert_eq!(database.number(beside).await, one_by_one.number(beside).await);
    let position = database.number("SELECT next_sequence FROM spanledger_positions").await;
    assert_eq!(position.cast_unsigned(), journal.end().next);
    if !database.is_postgres() {
        let sources = "SELECT sources FROM spanledger_executions ORDER BY id";
        assert_eq!(database.texts(sources).await, one_by_one.texts(sources).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_writes_the_rows_of_full_batches_together_in_the_order_of_their_ids() {
    let database = Database::sqlite();
    let directory = tempfile::tempdir().unwrap();
    let requests = requests(&mut fastrand::Rng::with_seed(12));
    let journal = append_all(&requests, directory.path()).await;
    drain(&journal, &database).await;
    let written = database.texts("SELECT id FROM code_exec_logs ORDER BY rowid").await;
    assert_eq!(written.len(), usize::from(REQUESTS * EACH));
    let place = |number: u16| written.iter().position(|id| *id == row_id(number)).unwrap();
    let last_of_first_request = (0..EACH).map(place).max().unwrap();
    let first_of_second_batch = (15 * EACH..20 * EACH).map(place).min().unwrap();
    assert!(first_of_second_batch < last_of_first_request);
}

async fn a_backlog_that_is_broken_off_again_and_again_is_there_once(database: Database) {
    let mut random = fastrand::Rng::with_seed(15);
    let requests = requests(&mut random);
    let one_by_one = written_one_by_one(&requests).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = append_all(&requests, directory.path()).await;
    for _ in 0..20 {
        let yields = random.usize(..1_000_000);
        let broken_off = async {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = drain(&journal, &database) => {}
            () = broken_off => {}
        }
    }
    drain(&journal, &database).await;
    assert_eq!(database.rows().await, one_by_one.rows().await);
    assert_eq!(database.waiting().await, one_by_one.waiting().await);
}

async fn what_a_database_refuses_of_a_backlog_is_set_aside_alone(database: Database) {
    let fussy = "runtime text NOT NULL CHECK (runtime <> 'wasmedge')";
    database.execute(&SCHEMA.replace("runtime text NOT NULL", fussy)).await;
    let mut requests = requests(&mut fastrand::Rng::with_seed(13));
    for spans in requests.iter_mut().step_by(9) {
        spans.push(success(3, spans.len() as u16, 100, 150).with("code.runtime", V::S("wasmedge")));
    }
    let directory = tempfile::tempdir().unwrap();
    let journal = append_all(&requests, directory.path()).await;
    drain(&journal, &database).await;
    assert_eq!(database.rows().await.len(), usize::from(REQUESTS * EACH));
    let refused: BTreeSet<String> = requests
        .iter()
        .flatten()
        .filter(|span| span.0.trace_id[0] == 3)
        .map(S::row_id)
        .collect();
    let set_aside = database.texts("SELECT id FROM spanledger_quarantine ORDER BY id").await;
    assert_eq!(set_aside, Vec::from_iter(refused));
    let position = database.number("SELECT next_sequence FROM spanledger_positions").await;
    assert_eq!(position.cast_unsigned(), journal.end().next);
}

async fn a_row_that_was_there_before_its_execution_stays_the_only_one(database: Database) {
    drop(database.connect().await.unwrap());
    let requests = requests(&mut fastrand::Rng::with_seed(14));
    let there = row_id(100);
    let row = format!(
        "INSERT INTO code_exec_logs (id, runtime, language, success, created_at) \
         VALUES ('{there}', 'other', 'none', true, '2020-01-01 00:00:00.000000')"
    );
    database.execute(&row).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = append_all(&requests, directory.path()).await;
    drain(&journal, &database).await;
    let rows = database.rows().await;
    assert_eq!(rows.len(), usize::from(REQUESTS * EACH));
    let row = rows.iter().find(|row| row.id == there).unwrap();
    assert_eq!((row.runtime.as_str(), row.language.as_str()), ("other", "none"));
    if !database.is_postgres() {
        let beside = database.number("SELECT count(*) FROM spanledger_executions").await;
        assert_eq!(beside, rows.len() as i64 - 1);
    }
}

/// A megabyte of executions that say nothing else, for one organization.
const SHORT: u16 = 20_000;

async fn append_short_executions(journal: &Journal, organization: &'static str) {
    let spans: Vec<S> = (0..SHORT)
        .map(|id| span("", 1, id, 100, 150).with("code.runtime", V::S("")))
        .collect();
    append_request(journal, &request_of(&[("organization.id", organization)], &spans)).await;
}

async fn a_request_that_tells_more_than_a_batch_takes_is_written_in_parts(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append_short_executions(&journal, "o".repeat(4 * TEXT_LIMIT).leak()).await;
    append(&journal, &[success(2, 1, 100, 150)]).await;
    drain(&journal, &database).await;
    let rows = database.number("SELECT count(*) FROM code_exec_logs").await;
    assert_eq!(rows, i64::from(SHORT) + 1);
    let of_organization = format!("SELECT count(*) FROM code_exec_logs WHERE length(organization_id) = {TEXT_LIMIT}");
    assert_eq!(database.number(&of_organization).await, i64::from(SHORT));
    let position = database.number("SELECT next_sequence FROM spanledger_positions").await;
    assert_eq!(position.cast_unsigned(), journal.end().next);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_takes_of_a_request_does_not_depend_on_how_much_it_tells() {
    // The longer what all rows have from the resource, the fewer in a batch.
    for (organization, parts) in [("o", 2), ("o".repeat(4 * TEXT_LIMIT).leak(), 4)] {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        append_short_executions(&journal, organization).await;
        let mut reader = journal.reader("ledger").unwrap();
        reader.resume(None);
        let mut ahead = Ahead::new(Limit {
            bytes: 6 << 20,
            facts: 14_000,
        });
        ahead.waiting.extend(reader.try_next_batch(1 << 20, 256).unwrap());
        let mut extractor = Extractor::default();
        let mut taken = Vec::new();
        while !ahead.is_empty() {
            while ahead.take_in(&mut extractor) {}
            let is_last = ahead.position(&reader) == reader.position();
            taken.push((ahead.take_facts().0.len(), is_last));
        }
        assert_eq!(taken.len(), parts, "{taken:?}");
        assert_eq!(taken.iter().map(|(facts, _)| facts).sum::<usize>(), usize::from(SHORT));
        assert!(taken.iter().rev().skip(1).all(|(_, is_last)| !is_last), "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_tell_nothing_do_not_make_a_batch_full() {
    let directory = tempfile::tempdir().unwrap();
    let tells_nothing = large(span("GET /", 1, 1, 0, 1));
    let journal = append_all(&vec![vec![tells_nothing; 16]; 30], directory.path()).await;
    let mut reader = journal.reader("ledger").unwrap();
    reader.resume(None);
    let mut ahead = Ahead::new(Limit::of::<SqliteStore>());
    // As one of an earlier version: nobody has noted that there is nothing.
    while let records = reader.try_next_batch(1 << 20, 256).unwrap()
        && !records.is_empty()
    {
        let unnoted = records.into_iter().map(|mut record| {
            record.noted = None;
            record
        });
        ahead.waiting.extend(unnoted);
    }
    let requests = ahead.waiting.len();
    let mut taken = 0;
    while ahead.take_in(&mut Extractor::default()) {
        taken += 1;
    }
    assert_eq!((taken, requests), (30, 30));
    assert!(!ahead.is_full());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_removed_before_it_was_written_is_gone() {
    let database = Database::sqlite();
    let Session::Sqlite(mut store) = database.connect().await.unwrap() else {
        panic!()
    };
    let all = facts(&[success(1, 1, 100, 150), success(1, 2, 100, 150)]);
    store.begin().await.unwrap();
    store.defer();
    assert!(!store.is_full());
    let applied = apply_among_others(&mut store, &batch(&all)).await.unwrap();
    assert_eq!(applied.written, 2);
    let created_at = EXECUTIONS.created_at(&all[0]).unwrap();
    let (id, other) = (all[0].id.row_id(), all[1].id.row_id());
    store
        .remove(EXECUTIONS, &[RowKey { id: &id, created_at }])
        .await
        .unwrap();
    end(&mut store, None).await.unwrap();
    for table in ["code_exec_logs", "spanledger_executions"] {
        let ids = database.texts(&format!("SELECT id FROM {table}")).await;
        assert_eq!(ids, std::slice::from_ref(&other), "{table}");
    }
}
