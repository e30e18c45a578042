//! Connections that are cut at the worst moments, and rows written anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::databases::{Database, on_both};
use super::following::{append, drain, executions, journal, until};
use super::support::{V, failure, node};
use crate::ledger::{Ledger, LedgerOptions};
use crate::telemetry::Health;

on_both! {
    rows_are_written_anew_from_what_is_still_in_the_journal
}

/// What happens to a COMMIT on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Passes,
    /// The connection is cut, and the server never hears of it.
    IsLost,
    /// The server does it, and the connection is cut before the answer.
    AnswerIsLost,
}

/// Stands between the ledger and the server, and lets one COMMIT after another meet its fate; then all pass.
async fn proxy(server: u16, fates: Arc<Mutex<VecDeque<Fate>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            tokio::spawn(relay(client, server, Arc::clone(&fates)));
        }
    });
    port
}

async fn relay(client: TcpStream, server: TcpStream, fates: Arc<Mutex<VecDeque<Fate>>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut buffer = vec![0; 1 << 20];
    // Only those of batches: they save the position.
    let mut is_batch = false;
    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
        let said = &buffer[..length];
        let says = |text: &[u8]| said.windows(text.len()).any(|window| window == text);
        is_batch |= says(b"INSERT INTO \"spanledger_positions\"");
        let is_commit = is_batch && says(b"COMMIT\0");
        let fate = if is_commit {
            is_batch = false;
            fates.lock().unwrap().pop_front().unwrap_or(Fate::Passes)
        } else {
            Fate::Passes
        };
        if fate != Fate::Passes {
            back.abort();
        }
        if fate == Fate::IsLost {
            return;
        }
        if to_server.write_all(said).await.is_err() || fate == Fate::AnswerIsLost {
            return;
        }
    }
    back.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_there_once_whatever_becomes_of_a_commit() {
    let Some(database) = Database::postgres() else { return };
    let server = super::postgres::shared().port();
    let mut random = fastrand::Rng::with_seed(7);
    let fates = (0..40)
        .map(|_| [Fate::Passes, Fate::IsLost, Fate::AnswerIsLost][random.usize(0..3)])
        .collect();
    let fates = Arc::new(Mutex::new(fates));
    let port = proxy(server, Arc::clone(&fates)).await;
    let url = database.settings.url.replace(&server.to_string(), &port.to_string());

    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let shutdown = CancellationToken::new();
    let heartbeat = Health::default().stage("ledger");
    let status = heartbeat.status();
    let retention = Some(std::time::Duration::ZERO);
    let ledger = Ledger::new(LedgerOptions {
        url,
        retention,
        ..LedgerOptions::default()
    })
    .unwrap();
    let running = tokio::spawn(ledger.run(journal.reader("ledger").unwrap(), shutdown.clone(), heartbeat, status));
    let mut sent = 0;
    while !fates.lock().unwrap().is_empty() {
        let before = fates.lock().unwrap().len();
        append(&journal, &executions(sent, sent + 5)).await;
        sent += 5;
        until(async || fates.lock().unwrap().len() < before).await;
    }
    until(async || database.number("SELECT count(*) FROM code_exec_logs").await == i64::from(sent)).await;
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(
        database.number("SELECT count(*) FROM spanledger_executions").await,
        i64::from(sent)
    );
    let position = database.number("SELECT next_sequence FROM spanledger_positions").await;
    assert_eq!(position.cast_unsigned(), journal.end().next);
}

async fn rows_are_written_anew_from_what_is_still_in_the_journal(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(&journal, &executions(0, 10)).await;
    append(&journal, &[failure(1, 11, 100, 150).ids("wf-1", "we-1", "n-1")]).await;
    append(
        &journal,
        &[node(2, 12, 90, 160)
            .ids("wf-1", "we-1", "n-1")
            .with("node.error", V::S("boom"))],
    )
    .await;
    drain(&journal, &database).await;
    let before = database.rows().await;
    database
        .execute("UPDATE code_exec_logs SET runtime = 'spoilt', error_message = NULL")
        .await;
    database.execute("DELETE FROM code_exec_logs WHERE id LIKE '%2'").await;
    let options = LedgerOptions {
        url: database.settings.url.clone(),
        retention: Some(std::time::Duration::ZERO),
        ..Default::default()
    };
    let rebuilt = Ledger::new(options)
        .unwrap()
        .rebuild(journal.reader("ledger").unwrap())
        .await
        .unwrap();
    assert_eq!(rebuilt.rows, 11);
    assert_eq!(rebuilt.since, Some(super::support::EPOCH + 1_000_000_000));
    assert_eq!(database.rows().await, before);
}
