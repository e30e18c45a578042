//! Many people look at the live page at once, some over lines that nobody reads from: the rows are written all the same.

use crate::common::program::{Program, Setup};
use crate::common::send::{Route, Sender};
use crate::common::{DEADLINE, eventually, random, rows, spans, unix_ms_ago};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Clients that read everything, and those that read only the rare rows they asked for.
const READING: usize = 50;
const PICKING: usize = 100;
/// Clients that never read anything after the first event.
const DEAF: usize = 50;
/// Requests of [`SPANS`] executions each: several times what the buffers of a connection hold.
const REQUESTS: usize = 40;
const SPANS: usize = 100;

fn failures(random: &mut fastrand::Rng, count: usize, error: &str) -> ExportTraceServiceRequest {
    let end = unix_ms_ago(Duration::from_secs(1)) * 1_000_000;
    let span = |random: &mut fastrand::Rng| Span {
        trace_id: random.u128(1..).to_be_bytes().to_vec(),
        span_id: random.u64(1..).to_be_bytes().to_vec(),
        name: "code.execute".to_owned(),
        start_time_unix_nano: end - 5_000_000,
        end_time_unix_nano: end,
        attributes: spans::attributes(&json!({"code.runtime": "vm2", "code.success": false})),
        status: Some(Status {
            code: 2,
            message: error.to_owned(),
        }),
        ..Default::default()
    };
    let all: Vec<_> = (0..count).map(|_| ("sos".to_owned(), span(random))).collect();
    spans::request(Vec::new(), all)
}

/// A connection on which the live rows come, from the first event on.
async fn client(program: &Program, filter: &str) -> TcpStream {
    let address = program.address("api").await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /api/v1/code-exec-logs/live{filter} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, "retry:").await;
    stream
}

async fn read_until(stream: &mut TcpStream, words: &str) {
    let read = async {
        let mut text = String::new();
        let mut piece = vec![0; 64 << 10];
        while !text.contains(words) {
            // Words may be cut in two.
            text.drain(..text.len().saturating_sub(words.len()));
            let length = stream.read(&mut piece).await.unwrap();
            assert!(length > 0, "the stream ended before {words:?}");
            text.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .unwrap_or_else(|_| panic!("{words:?} never came"));
}

/// How many rows there are.
async fn written(database: &Path) -> Result<i64, sqlx::Error> {
    let mut connection = rows::open(database).await?;
    sqlx::query_scalar("SELECT count(*) FROM code_exec_logs")
        .fetch_one(&mut connection)
        .await
}

/// Sends a flood and waits until its rows are written; how long that took.
async fn flood(random: &mut fastrand::Rng, sender: &Sender, database: &Path, rows_before: usize) -> Duration {
    let error = "x".repeat(2_000);
    let began = Instant::now();
    for _ in 0..REQUESTS {
        sender.accepted(Route::Grpc, &failures(random, SPANS, &error)).await;
    }
    eventually("every row is written", || async {
        let written = written(database).await.map_err(|error| error.to_string())?;
        if written == (rows_before + REQUESTS * SPANS) as i64 {
            Ok(())
        } else {
            Err(format!("{written} are"))
        }
    })
    .await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_live_clients_of_whom_fifty_never_read_do_not_delay_the_rows() {
    let mut random = random("two_hundred_live_clients_of_whom_fifty_never_read_do_not_delay_the_rows");
    let setup = Setup::new();
    let program = setup.start().await;
    let (sender, database) = (Sender::to(&program).await, setup.database());
    let alone = flood(&mut random, &sender, &database, 0).await;

    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        deaf.push(client(&program, "").await);
    }
    let mut reading = Vec::new();
    for number in 0..READING + PICKING {
        let filter = if number < READING { "" } else { "?q=the-last" };
        let mut stream = client(&program, filter).await;
        // What is too much at once is left out, and said; the marker comes at the end, by itself.
        reading.push(tokio::spawn(
            async move { read_until(&mut stream, "the-last-one").await },
        ));
    }
    let watched = flood(&mut random, &sender, &database, REQUESTS * SPANS).await;
    println!(
        "{} rows alone in {alone:?}, with clients in {watched:?}",
        REQUESTS * SPANS
    );
    // The clients share the processors with the program here, so some longer is no fault; waiting for a client would
    // be for ever.
    assert!(
        watched < alone * 4 + Duration::from_secs(5),
        "{alone:?} alone, {watched:?} with clients"
    );

    sender
        .accepted(Route::Grpc, &failures(&mut random, 1, "the-last-one"))
        .await;
    for one in reading {
        one.await.unwrap();
    }
    drop(deaf);
    let (status, log) = program.terminate().await;
    assert!(status.success(), "{log}");
}
