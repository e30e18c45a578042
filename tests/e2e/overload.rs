//! Far more than the program can take: what it does not take it refuses so that it is sent again, its memory stays as it
//! is, and what it took is there.
//!
//! `SPANLEDGER_OVERLOAD_SECONDS=60` goes on for a minute instead of a few seconds.

use crate::common::program::Setup;
use crate::common::send::{Outcome, Prepared, Route, Sender};
use crate::common::sink::Sink;
use crate::common::{eventually, random, rows, spans};
use bytes::{Bytes, BytesMut};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections that send without a pause.
const SENDERS: u64 = 96;
/// Executions in each request.
const EXECUTIONS: u64 = 8;
/// Bytes of a request: all senders together have far more than may be in flight.
const BYTES: usize = 1 << 20;
/// What of the process's memory may be its own, with default settings. The goal is 96 MiB; SQLite's page cache comes on
/// top of it within the first 45 seconds, and then it stays as it is.
const RESIDENT: u64 = 120 << 20;

/// A request of which every copy can be made another one by eight bytes of its trace ids.
struct Template {
    body: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(random: &mut fastrand::Rng) -> Template {
        let mark = [0xA7; 8];
        let base = crate::common::unix_ms_ago(Duration::from_secs(60)) * 1_000_000;
        let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(BYTES).collect();
        let all = (0..EXECUTIONS).map(|index| {
            let mut span = Span {
                trace_id: [mark, (random.u64(..) >> 8).to_be_bytes()].concat(),
                span_id: random.u64(1..).to_be_bytes().to_vec(),
                name: "code.execute".to_owned(),
                start_time_unix_nano: base,
                end_time_unix_nano: base + 1_000_000,
                attributes: spans::attributes(&json!({
                    "code.runtime": "vm2", "code.language": "python", "code.success": true, "code.duration_ms": 1,
                })),
                ..Span::default()
            };
            if index == 0 {
                let value = Value::StringValue(text.clone());
                span.attributes.push(spans::attribute("stdout", value));
            }
            ("sos-code-executor".to_owned(), span)
        });
        let request = spans::request(
            spans::attributes(&json!({"service.name": "overload"})),
            all.collect::<Vec<_>>(),
        );
        let body = request.encode_to_vec();
        let places = body.windows(8).enumerate().filter(|(_, window)| *window == mark);
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        assert_eq!(places.len() as u64, EXECUTIONS);
        Template { body, places }
    }

    fn request(&self, number: u64) -> Bytes {
        let mut body = BytesMut::from(&self.body[..]);
        for place in &self.places {
            body[*place..place + 8].copy_from_slice(&(number + 1).to_be_bytes());
        }
        body.freeze()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_overload_memory_stays_flat_refusals_are_retryable_and_nothing_acknowledged_is_lost() {
    let seconds = std::env::var("SPANLEDGER_OVERLOAD_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    let mut random = random("under_overload_memory_stays_flat");
    let template = Arc::new(Template::new(&mut random));
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let (number, accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let counts = Arc::new((number, accepted, refused));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let route = if sender % 2 == 0 { Route::Grpc } else { Route::Http };
        let (connection, template, counts) = (Sender::to(&program).await, template.clone(), counts.clone());
        senders.spawn(async move {
            while Instant::now() < end {
                let number = counts.0.fetch_add(1, Ordering::Relaxed);
                let prepared = Prepared::encoded(route, template.request(number));
                match connection.deliver(&prepared).await {
                    Outcome::Accepted(0, _) => counts.1.fetch_add(1, Ordering::Relaxed),
                    Outcome::Refused(_, true) => counts.2.fetch_add(1, Ordering::Relaxed),
                    // A refusal before the body was read may break the connection under a sender that goes on writing.
                    Outcome::Unknown(_) => counts.2.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other:?}"),
                };
            }
        });
    }
    let (mut most, mut samples) = (0, Vec::new());
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (_, own) = program.resident();
        most = most.max(own);
        samples.push(own);
    }
    while let Some(done) = senders.join_next().await {
        done.unwrap();
    }
    let (accepted, refused) = (counts.1.load(Ordering::Relaxed), counts.2.load(Ordering::Relaxed));
    let most_of = |samples: &[u64]| samples.iter().max().copied().unwrap_or_default() >> 20;
    let quarters: Vec<u64> = samples.chunks(samples.len().div_ceil(4)).map(most_of).collect();
    println!(
        "{seconds} s: {accepted} requests of 1 MiB accepted, {refused} refused; memory of its own at most {quarters:?} MiB \
         in each quarter"
    );
    assert!(accepted > 0 && refused > 0);
    assert!(most <= RESIDENT, "{} MiB", most >> 20);

    // Everything acknowledged is there; of what got no answer because the connection broke, all or nothing.
    let executions = eventually("the rows", || async {
        let rows = rows::read(&setup.database()).await.map_err(|error| error.to_string())?;
        let count = rows.len() as u64;
        if count >= accepted * EXECUTIONS {
            Ok(count)
        } else {
            Err(format!("{count} rows"))
        }
    })
    .await;
    assert_eq!(executions % EXECUTIONS, 0);
    let expected = executions as f64;
    program
        .scrape_until("rows and metrics agree", |scrape| {
            let labels = [("runtime", "vm2"), ("language", "python"), ("outcome", "success")];
            match scrape.get("code_executions_total", &labels) {
                Some(counted) if counted == expected => Ok(()),
                other => Err(format!("{other:?} counted, {expected} rows")),
            }
        })
        .await;
}
