//! When there is more than fits: what is refused, what gives way, and that the bounds hold.

use crate::common::http::{Http, whole};
use crate::common::load::{Load, Planned};
use crate::common::program::{Program, Setup};
use crate::common::prometheus::Expected;
use crate::common::send::{Outcome, Prepared, ROUTES, Route, Sender};
use crate::common::sink::Sink;
use crate::common::{eventually, random, rows};
use crate::end_to_end::delivered_spans;
use http::Request;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::Path;

/// The request of a number, made about 100 KiB large by text that does not compress.
fn large(load: &Load, number: u64, random: &mut fastrand::Rng) -> Planned {
    let mut planned = load.request(number);
    let text: String = std::iter::repeat_with(|| random.alphanumeric())
        .take(100 << 10)
        .collect();
    let span = &mut planned.request.resource_spans[0].scope_spans[0].spans[0];
    span.attributes
        .push(crate::common::spans::attribute("stdout", Value::StringValue(text)));
    planned
}

/// Bytes of all files below a directory.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Checks rows and derived metrics against exactly these requests.
pub(crate) async fn counted_exactly(database: &Path, program: &Program, planned: &[Planned]) {
    let mut expected = Expected::default();
    planned.iter().for_each(|each| expected.merge(&each.series));
    let expected = expected.series();
    program
        .scrape_until("exactly these requests counted", |scrape| {
            let wrong = scrape.derived().difference(&expected);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    let expected: Vec<rows::Row> = planned.iter().flat_map(|each| each.rows.clone()).collect();
    let found = rows::wait(database, expected.len()).await;
    let wrong = rows::difference(&found, &expected);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_refuses_with_a_delay_until_there_is_room_and_loses_nothing() {
    let mut random = random("a_full_journal_refuses_with_a_delay_until_there_is_room_and_loses_nothing");
    let load = Load::new(&mut random);
    let mut sink = Sink::away();
    let setup = Setup::forwarding_to(sink.url()).set("journal.max_size", "16MiB");
    let program = setup.start().await;
    let sender = Sender::to(&program).await;

    let mut acknowledged = Vec::new();
    for number in 0.. {
        assert!(number < 400, "40 MiB were accepted into a journal of 16 MiB");
        let planned = large(&load, number, &mut random);
        match sender
            .send(ROUTES[number as usize % ROUTES.len()], &planned.request)
            .await
        {
            Outcome::Accepted(0, _) => acknowledged.push(planned),
            Outcome::Refused(reason, true) => {
                assert!(reason.contains("journal"), "the reason says what is full: {reason}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        acknowledged.len() > 40,
        "only {} requests fitted into 16 MiB",
        acknowledged.len()
    );
    assert!(
        size(&setup.path("journal")) <= 16 << 20,
        "the journal takes {} bytes",
        size(&setup.path("journal"))
    );

    // Each protocol says when to come back, in its own way.
    let prepared = Prepared::new(Route::Grpc, &large(&load, 1_000, &mut random).request);
    let Outcome::Refused(reason, true) = sender.deliver(&prepared).await else {
        panic!("accepted while full")
    };
    assert!(reason.starts_with("grpc-status 14"), "{reason}");
    let url = program.url("otlp_http", "/v1/traces").await;
    let body = crate::common::spans::json(&large(&load, 1_001, &mut random).request);
    let request = Request::post(url)
        .header("content-type", "application/json")
        .body(whole(body))
        .unwrap();
    let answer = Http::new().send(request).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(
        answer
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds >= 1),
        "{:?}",
        answer.headers
    );
    let ready = program.get("health", "/readyz").await;
    assert_eq!(ready.status, 503, "/readyz while the journal is full: {}", ready.text());
    assert_eq!(program.get("health", "/healthz").await.status, 200, "full is not dead");

    // The backend comes back, the same request is accepted, and everything acknowledged arrives once.
    sink.come_back().await;
    let again = large(&load, 2_000, &mut random);
    eventually("there is room again", || async {
        match sender.send(Route::HttpJson, &again.request).await {
            Outcome::Accepted(0, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    acknowledged.push(again);
    let expected: BTreeSet<String> = acknowledged.iter().flat_map(|each| each.spans.clone()).collect();
    let delivered = sink
        .wait("everything acknowledged", |all| {
            Some(delivered_spans(all)).filter(|delivered| delivered.len() >= expected.len())
        })
        .await;
    assert_eq!(delivered, expected.into_iter().collect::<Vec<_>>());
    counted_exactly(&setup.database(), &program, &acknowledged).await;
    assert_eq!(program.get("health", "/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_skip_forwarding_only_forwarding_gives_way() {
    let mut random = random("with_skip_forwarding_only_forwarding_gives_way");
    let load = Load::new(&mut random);
    let mut sink = Sink::away();
    let setup = Setup::forwarding_to(sink.url())
        .set("journal.max_size", "16MiB")
        .set("journal.when_full", "skip_forwarding");
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let mut sent = Vec::new();
    for number in 0..400 {
        let planned = large(&load, number, &mut random);
        // Rows and metrics may lag for a moment and be what holds the journal: then it refuses, and takes it later.
        eventually("it is accepted", || async {
            match sender
                .send(ROUTES[number as usize % ROUTES.len()], &planned.request)
                .await
            {
                Outcome::Accepted(0, _) => Ok(()),
                Outcome::Refused(reason, true) => Err(reason),
                other => panic!("{other:?}"),
            }
        })
        .await;
        sent.push(planned);
    }
    counted_exactly(&setup.database(), &program, &sent).await;
    assert!(
        size(&setup.path("journal")) <= 16 << 20,
        "the journal takes {} bytes",
        size(&setup.path("journal"))
    );

    sink.come_back().await;
    let newest = sent.last().unwrap().spans.clone();
    let delivered = sink
        .wait("the newest request", |all| {
            let delivered = delivered_spans(all);
            newest.iter().all(|id| delivered.contains(id)).then_some(delivered)
        })
        .await;
    let unique: BTreeSet<&String> = delivered.iter().collect();
    assert_eq!(unique.len(), delivered.len(), "something was sent twice");
    let all: usize = sent.iter().map(|each| each.spans.len()).sum();
    let skipped = all - delivered.len();
    assert!(skipped > 0, "40 MiB cannot have waited in 16 MiB");
    program
        .scrape_until("what was given up is counted", |scrape| {
            let counters = scrape.0.iter().filter(|(series, value)| {
                series.name.starts_with("spanledger_") && series.name.contains("skipped") && **value > 0.0
            });
            if counters.count() > 0 {
                Ok(())
            } else {
                Err(format!("{skipped} spans were not forwarded"))
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_under_traffic_refuses_nothing() {
    let mut random = random("sighup_under_traffic_refuses_nothing");
    let load = Load::new(&mut random);
    let setup = Setup::new();
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let mut sent = Vec::new();
    for number in 0..60 {
        if number % 20 == 10 {
            program.signal(Signal::HUP);
        }
        let planned = load.request(number);
        sender
            .accepted(ROUTES[number as usize % ROUTES.len()], &planned.request)
            .await;
        sent.push(planned);
    }
    counted_exactly(&setup.database(), &program, &sent).await;
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
}
