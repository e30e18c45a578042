//! A request that is sent again counts once, everywhere.

use crate::common::load::{Load, Planned};
use crate::common::program::Setup;
use crate::common::prometheus::Expected;
use crate::common::send::{Prepared, ROUTES, Route, Sender};
use crate::common::sink::Sink;
use crate::common::{random, rows};
use crate::end_to_end::delivered_spans;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_up_to_three_times_over_several_connections_count_as_one_clean_send() {
    let mut random = random("requests_sent_up_to_three_times_over_several_connections_count_as_one_clean_send");
    let load = Load::new(&mut random);
    let planned: Vec<(Route, Planned)> = (0..200)
        .map(|number| (ROUTES[random.usize(..ROUTES.len())], load.request(number)))
        .collect();

    // One clean send, and one in which every request is sent one to three times, in random order.
    let clean: Vec<Prepared> = planned
        .iter()
        .map(|(route, each)| Prepared::new(*route, &each.request))
        .collect();
    let mut repeated: Vec<Prepared> = clean
        .iter()
        .flat_map(|each| std::iter::repeat_n(each.clone(), random.usize(1..=3)))
        .collect();
    random.shuffle(&mut repeated);
    assert!(repeated.len() > clean.len());

    let (clean, repeated) = tokio::join!(outcome(clean, 1, &planned), outcome(repeated, 6, &planned));
    assert_eq!(repeated.0, clean.0, "rows");
    assert_eq!(repeated.1, clean.1, "forwarded spans");
}

/// Sends everything over so many connections, checks rows and metrics against the plan, and returns the rows and the
/// forwarded spans.
async fn outcome(
    all: Vec<Prepared>,
    connections: usize,
    planned: &[(Route, Planned)],
) -> (Vec<rows::Row>, Vec<String>) {
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let all = Arc::new(all);
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..connections {
        let sender = Sender::to(&program).await;
        let all = all.clone();
        tasks.spawn(async move {
            for prepared in all.iter().skip(connection).step_by(connections) {
                let outcome = sender.deliver(prepared).await;
                assert!(outcome.is_acknowledged(), "{outcome:?}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }

    let mut expected = Expected::default();
    planned.iter().for_each(|(_, each)| expected.merge(&each.series));
    let expected = expected.series();
    program
        .scrape_until("every request counted once", |scrape| {
            let wrong = scrape.derived().difference(&expected);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    let mut expected: Vec<rows::Row> = planned.iter().flat_map(|(_, each)| each.rows.clone()).collect();
    expected.sort();
    let found = rows::wait(&setup.database(), expected.len()).await;
    let wrong = rows::difference(&found, &expected);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let spans: usize = planned.iter().map(|(_, each)| each.spans.len()).sum();
    let delivered = sink
        .wait("every span", |all| {
            Some(delivered_spans(all)).filter(|delivered| delivered.len() >= spans)
        })
        .await;
    // Stopping drains what would still be sent: nothing may come on top.
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(
        delivered_spans(&sink.deliveries()).len(),
        delivered.len(),
        "something was forwarded twice"
    );
    (found, delivered)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_again_after_a_kill_counts_once_and_is_answered_as_before() {
    let mut random = random("a_request_sent_again_after_a_kill_counts_once_and_is_answered_as_before");
    let load = Load::new(&mut random);
    let setup = Setup::new();
    let planned: Vec<Planned> = (0..ROUTES.len() as u64).map(|number| load.request(number)).collect();
    let prepared: Vec<Prepared> = planned
        .iter()
        .zip(ROUTES)
        .map(|(each, route)| Prepared::new(route, &each.request))
        .collect();
    for _ in 0..3 {
        let program = setup.start().await;
        let sender = Sender::to(&program).await;
        for each in &prepared {
            let outcome = sender.deliver(each).await;
            assert!(outcome.is_acknowledged(), "{outcome:?}");
        }
        program.kill();
    }
    let program = setup.start().await;
    let mut expected = Expected::default();
    planned.iter().for_each(|each| expected.merge(&each.series));
    let wrong = program.scrape().await.derived().difference(&expected.series());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let expected: Vec<rows::Row> = planned.iter().flat_map(|each| each.rows.clone()).collect();
    let found = rows::wait(&setup.database(), expected.len()).await;
    let wrong = rows::difference(&found, &expected);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
