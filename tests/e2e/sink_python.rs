//! A backend written with the official protobuf package gets every trace request unchanged, whatever happens between.

use crate::common::load::{Load, Planned};
use crate::common::program::{Program, Setup};
use crate::common::random;
use crate::common::script::{PythonSink, Seen};
use crate::common::send::{ROUTES, Route, Sender};
use bytes::Bytes;
use prost::Message;

/// Sends the requests of these numbers, each over another route.
async fn send(program: &Program, load: &Load, numbers: std::ops::Range<u64>) -> Vec<(Route, Planned)> {
    let sender = Sender::to(program).await;
    let mut sent = Vec::new();
    for number in numbers {
        let route = ROUTES[number as usize % ROUTES.len()];
        let planned = load.request(number);
        sender.accepted(route, &planned.request).await;
        sent.push((route, planned));
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_arrives_unchanged_although_the_sink_was_away_and_the_program_was_killed() {
    let mut random = random("every_request_arrives_unchanged_although_the_sink_was_away_and_the_program_was_killed");
    let load = Load::new(&mut random);
    let directory = tempfile::tempdir().unwrap();
    let mut sink = PythonSink::away(directory.path().join("record.jsonl"));
    let setup = Setup::forwarding_to(sink.url());

    // All is well; then the sink goes away with traffic going on; then the program is killed, twice, the second time
    // with the sink still away; then the sink comes back.
    sink.come_back().await;
    let program = setup.start().await;
    let mut sent = send(&program, &load, 0..24).await;
    sink.wait_for_spans(&ids(&sent)).await;
    sink.go_away();
    sent.extend(send(&program, &load, 24..48).await);
    program.kill();
    let program = setup.start().await;
    sent.extend(send(&program, &load, 48..72).await);
    program.kill();
    let program = setup.start().await;
    sink.come_back().await;
    sent.extend(send(&program, &load, 72..96).await);
    sink.wait_for_spans(&ids(&sent)).await;
    program.terminate().await;

    let seen = sink.seen();
    for (route, planned) in &sent {
        unchanged(&seen, *route, planned);
    }
    let expected: std::collections::BTreeSet<String> = ids(&sent).into_iter().collect();
    let invented: Vec<String> = seen
        .iter()
        .flat_map(|each| each.spans.clone())
        .filter(|id| !expected.contains(id))
        .collect();
    assert_eq!(invented, Vec::<String>::new(), "nothing arrives that was not sent");
    for each in &seen {
        assert_ne!(each.headers["spanledger-hop"], serde_json::Value::Null);
    }
}

fn ids(sent: &[(Route, Planned)]) -> Vec<String> {
    sent.iter().flat_map(|(_, planned)| planned.spans.clone()).collect()
}

/// The bytes of a request appear whole inside one delivered request, and the official package reads from them what went
/// in. JSON has no bytes to keep: there the message must be equal.
fn unchanged(seen: &[Seen], route: Route, planned: &Planned) {
    let message = Bytes::from(planned.request.encode_to_vec());
    let whole = seen
        .iter()
        .find(|each| each.body.windows(message.len()).any(|window| window == message));
    let is_json = matches!(route, Route::HttpJson | Route::HttpJsonGzip | Route::HttpJsonChunked);
    assert!(
        is_json || whole.is_some(),
        "{route:?}: the bytes of a request did not arrive: {:?}",
        planned.spans
    );
    for expected in &planned.request.resource_spans {
        let same = seen.iter().flat_map(|each| &each.resource_spans).any(|bytes| {
            let found = opentelemetry_proto::tonic::trace::v1::ResourceSpans::decode(bytes.clone()).unwrap();
            found == *expected
        });
        assert!(
            same,
            "{route:?}: a ResourceSpans did not arrive as it was: {:?}",
            planned.spans
        );
    }
}
