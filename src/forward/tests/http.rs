//! What arrives at an OTLP/HTTP backend that works.

use super::rig::{Reply, Rig, Sink, names, request};
use crate::forward::{Compression, HOP_HEADER, Headers};
use crate::otlp::{Encoding, Signal, decompress};

fn ok(_: usize, _: &super::rig::Received) -> Reply {
    Reply::status(200)
}

#[tokio::test]
async fn requests_arrive_whole_in_order_and_joined_requests_are_their_plain_concatenation() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    let mut sent = Vec::new();
    for index in 0..50 {
        let body = request([format!("span {index}").as_str()]);
        sent.extend_from_slice(&body);
        rig.append(Signal::Traces, Encoding::Identity, body).await;
    }
    let running = rig.start();
    let mut arrived = Vec::new();
    let mut requests = 0;
    while arrived.len() < sent.len() {
        let received = sink.next().await;
        assert_eq!(received.path, "/v1/traces");
        arrived.extend_from_slice(&received.body);
        requests += 1;
    }
    running.stop().await;
    assert_eq!(arrived, sent);
    assert_eq!(
        names(&arrived),
        (0..50).map(|index| format!("span {index}")).collect::<Vec<_>>()
    );
    assert!(requests < 50, "small requests were joined");
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn a_gzip_body_passes_through_with_equal_bytes_and_the_headers_say_so() {
    let mut sink = Sink::start(ok).await;
    let mut rig = Rig::new(&format!("{}/base/", sink.url()));
    rig.options.headers = Headers::parse("signoz-ingestion-key=s%3Dt").unwrap();
    let body = rig.append(Signal::Traces, Encoding::Gzip, request(["a"])).await;
    let running = rig.start();
    let received = sink.next().await;
    running.stop().await;
    assert_eq!(received.body, body);
    assert_eq!(received.path, "/base/v1/traces");
    for (name, value) in [
        ("content-encoding", "gzip"),
        ("content-type", "application/x-protobuf"),
        ("signoz-ingestion-key", "s=t"),
        ("user-agent", concat!("spanledger/", env!("CARGO_PKG_VERSION"))),
        ("content-length", body.len().to_string().as_str()),
        (HOP_HEADER, rig.journal.id().to_string().as_str()),
    ] {
        assert_eq!(received.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn other_encodings_pass_only_if_accepted_and_are_sent_as_gzip_otherwise() {
    for (accepts, expected) in [(vec![], "gzip"), (vec![Encoding::Zstd], "zstd")] {
        let mut sink = Sink::start(ok).await;
        let mut rig = Rig::new(&sink.url());
        rig.options.accepts = accepts;
        rig.append(Signal::Traces, Encoding::Zstd, request(["a"])).await;
        let running = rig.start();
        let received = sink.next().await;
        running.stop().await;
        assert_eq!(received.header("content-encoding"), expected);
        assert_eq!(received.names(), ["a"]);
    }
}

#[tokio::test]
async fn a_fixed_compression_applies_to_every_body() {
    for (compression, expected) in [("none", ""), ("gzip", "gzip"), ("zstd", "zstd")] {
        let mut sink = Sink::start(ok).await;
        let mut rig = Rig::new(&sink.url());
        rig.options.compression = Compression::parse(compression).unwrap();
        for encoding in Encoding::ALL {
            rig.append(Signal::Traces, encoding, request([encoding.token()])).await;
        }
        let running = rig.start();
        let mut arrived = Vec::new();
        while arrived.len() < Encoding::ALL.len() {
            let received = sink.next().await;
            assert_eq!(received.header("content-encoding"), expected);
            arrived.extend(received.names());
        }
        running.stop().await;
        arrived.sort();
        assert_eq!(arrived, ["deflate", "gzip", "identity", "lz4", "snappy", "zstd"]);
    }
}

#[tokio::test]
async fn requests_are_joined_only_within_a_signal_and_each_goes_to_its_path() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    // Field 1, empty: a request of any signal.
    let opaque = bytes::Bytes::from_static(&[0x0a, 0x00]);
    rig.append(Signal::Metrics, Encoding::Identity, opaque.clone()).await;
    rig.append(Signal::Logs, Encoding::Identity, opaque.clone()).await;
    rig.append(Signal::Metrics, Encoding::Identity, opaque).await;
    rig.spans(["a"]).await;
    let running = rig.start();
    let mut arrived = Vec::new();
    for _ in 0..3 {
        let received = sink.next().await;
        arrived.push((received.path.clone(), received.body.len()));
    }
    running.stop().await;
    arrived.sort();
    let traces = request(["a"]).len();
    let expected = [("/v1/logs", 2), ("/v1/metrics", 4), ("/v1/traces", traces)];
    assert_eq!(arrived, expected.map(|(path, length)| (path.to_owned(), length)));
}

#[tokio::test]
async fn signals_that_the_exporter_does_not_send_are_passed_over() {
    let mut sink = Sink::start(ok).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.signals = vec![Signal::Traces];
    rig.append(
        Signal::Metrics,
        Encoding::Identity,
        bytes::Bytes::from_static(&[0x0a, 0x00]),
    )
    .await;
    rig.spans(["a"]).await;
    let running = rig.start();
    assert_eq!(sink.next().await.path, "/v1/traces");
    running.stop().await;
    assert_eq!(sink.rest().len(), 0);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn without_merge_every_request_goes_alone() {
    let mut sink = Sink::start(ok).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.merge = false;
    for index in 0..10 {
        rig.spans([format!("{index}").as_str()]).await;
    }
    let running = rig.start();
    for _ in 0..10 {
        assert_eq!(sink.next().await.names().len(), 1);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_request_over_the_limit_is_split_between_spans_and_nothing_sent_is_over_it() {
    for encoding in [Encoding::Identity, Encoding::Gzip] {
        let mut sink = Sink::start(ok).await;
        let mut rig = Rig::new(&sink.url());
        rig.options.max_request_size = 1000;
        let names: Vec<String> = (0..100).map(|index| format!("span {index:03}")).collect();
        rig.append(Signal::Traces, encoding, request(names.iter().map(String::as_str)))
            .await;
        let running = rig.start();
        let mut arrived = Vec::new();
        while arrived.len() < 100 {
            let received = sink.next().await;
            assert!(received.decoded().len() <= 1000);
            assert_eq!(
                received.header("content-encoding"),
                if encoding == Encoding::Gzip { "gzip" } else { "" }
            );
            arrived.extend(received.names());
        }
        running.stop().await;
        arrived.sort();
        assert_eq!(arrived, names);
        assert_eq!(rig.saved(), Some(rig.end()));
    }
}

#[tokio::test]
async fn an_empty_request_says_nothing_and_is_passed_over() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    rig.append(Signal::Traces, Encoding::Identity, bytes::Bytes::new())
        .await;
    rig.append(Signal::Traces, Encoding::Gzip, bytes::Bytes::new()).await;
    rig.spans(["a"]).await;
    let running = rig.start();
    assert_eq!(sink.next().await.names(), ["a"]);
    running.stop().await;
    assert_eq!(sink.rest().len(), 0);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn a_calm_run_with_restarts_sends_nothing_twice() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    let mut arrived = Vec::new();
    for round in 0..4 {
        let running = rig.start();
        for index in 0..20 {
            rig.spans([format!("{round}.{index}").as_str()]).await;
        }
        running.stop().await;
        arrived.extend(sink.rest().iter().flat_map(super::rig::Received::names));
    }
    let sent: Vec<String> = (0..80).map(|index| format!("{}.{}", index / 20, index % 20)).collect();
    assert_eq!(arrived, sent);
}

#[tokio::test]
async fn after_a_kill_everything_that_was_not_saved_as_delivered_is_sent_again() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    let mut arrived = Vec::new();
    for round in 0..10 {
        let running = rig.start();
        for index in 0..10 {
            rig.spans([format!("{round}.{index}").as_str()]).await;
        }
        arrived.extend(sink.next().await.names());
        running.kill().await;
    }
    rig.start().stop().await;
    arrived.extend(sink.rest().iter().flat_map(super::rig::Received::names));
    arrived.sort();
    arrived.dedup();
    assert_eq!(
        arrived,
        (0..100)
            .map(|index| format!("{}.{}", index / 10, index % 10))
            .collect::<Vec<_>>()
    );
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn shutdown_delivers_what_the_journal_still_holds() {
    let mut sink = Sink::start(ok).await;
    let rig = Rig::new(&sink.url());
    let names: Vec<String> = (0..2000).map(|index| format!("span {index}")).collect();
    for chunk in names.chunks(20) {
        let body = request(chunk.iter().map(String::as_str));
        assert_eq!(decompress(Encoding::Identity, &body, 1 << 20).unwrap(), body);
        rig.append(Signal::Traces, Encoding::Gzip, body).await;
    }
    rig.start().stop().await;
    let mut arrived: Vec<String> = sink.rest().iter().flat_map(super::rig::Received::names).collect();
    arrived.sort();
    let mut names = names;
    names.sort();
    assert_eq!(arrived, names);
    assert_eq!(rig.saved(), Some(rig.end()));
}
