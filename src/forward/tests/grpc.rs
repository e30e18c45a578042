//! OTLP/gRPC backends.

use std::time::{Duration, Instant};

use prost::Message;

use super::rig::{Received, Reply, Rig, Sink, request};
use crate::forward::{Protocol, list_refused};
use crate::otlp::{Encoding, Signal};

fn rig(sink: &Sink) -> Rig {
    let mut rig = Rig::new(&sink.url());
    rig.options.protocol = Protocol::Grpc;
    rig
}

fn first(count: usize, reply: Reply) -> impl Fn(usize, &Received) -> Reply + Send + Sync + 'static {
    move |index, _| {
        if index < count {
            reply.clone()
        } else {
            Reply::grpc(0, "")
        }
    }
}

#[tokio::test]
async fn bodies_pass_through_with_equal_bytes_in_gzip_and_identity() {
    let mut sink = Sink::start(|_, _| Reply::grpc(0, "")).await;
    let rig = rig(&sink);
    for (encoding, token) in [(Encoding::Gzip, "gzip"), (Encoding::Identity, "")] {
        let body = rig.append(Signal::Traces, encoding, request(["a"])).await;
        let running = rig.start();
        let received = sink.next().await;
        running.stop().await;
        assert_eq!(received.body, body);
        assert_eq!(received.is_compressed_message, encoding == Encoding::Gzip);
        assert_eq!(
            received.path,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        );
        for (name, value) in [
            ("grpc-encoding", token),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "10000m"),
        ] {
            assert_eq!(received.header(name), value, "{name}");
        }
    }
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn joined_requests_are_their_plain_concatenation() {
    let mut sink = Sink::start(|_, _| Reply::grpc(0, "")).await;
    let rig = rig(&sink);
    let mut sent = Vec::new();
    for index in 0..20 {
        let body = request([format!("span {index}").as_str()]);
        sent.extend_from_slice(&body);
        rig.append(Signal::Traces, Encoding::Identity, body).await;
    }
    rig.start().stop().await;
    assert_eq!(
        sink.rest()
            .iter()
            .map(|received| &received.body[..])
            .collect::<Vec<_>>()
            .concat(),
        sent
    );
}

#[tokio::test]
async fn failures_are_read_from_trailers_and_from_headers_and_retried() {
    for reply in [
        Reply::grpc(14, "connection%20is%20draining"),
        Reply::GrpcHeaders {
            code: 14,
            message: "overloaded",
        },
        Reply::GrpcHeaders {
            code: 16,
            message: "key expired",
        },
        Reply::grpc(8, "quota"),
        Reply::status(503),
        Reply::status(404),
        Reply::status(202),
        Reply::status(204),
        Reply::status(400),
        Reply::Http {
            status: 200,
            headers: vec![("content-type", "text/html")],
            body: "<!doctype html>".into(),
        },
        Reply::Reset,
    ] {
        let mut sink = Sink::start(first(2, reply)).await;
        let rig = rig(&sink);
        rig.spans(["a"]).await;
        let running = rig.start();
        for _ in 0..3 {
            assert_eq!(sink.next().await.names(), ["a"]);
        }
        running.stop().await;
        assert_eq!(rig.saved(), Some(rig.end()));
        assert_eq!(list_refused(&rig.refused()).unwrap(), []);
    }
}

#[tokio::test]
async fn the_delay_of_retry_info_is_honoured() {
    #[derive(Clone, PartialEq, Message)]
    struct Any {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }
    // RetryInfo { retry_delay: Duration { nanos: 500_000_000 } }
    let value = vec![0x0a, 0x06, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01];
    let any = Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
        value,
    };
    let details = Status { details: vec![any] }.encode_to_vec();
    let mut sink = Sink::start(first(
        1,
        Reply::Grpc {
            code: 14,
            message: "later",
            details,
        },
    ))
    .await;
    let rig = rig(&sink);
    rig.spans(["a"]).await;
    let running = rig.start();
    sink.next().await;
    let refused = Instant::now();
    sink.next().await;
    assert!(
        refused.elapsed() >= Duration::from_millis(480),
        "{:?}",
        refused.elapsed()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_message_over_the_servers_limit_is_split_although_the_code_is_that_of_a_quota() {
    let answers = |_: usize, received: &Received| match received.decoded().len() > 400 {
        true => Reply::grpc(8, "grpc: received message larger than max (1234 vs. 400)"),
        false => Reply::grpc(0, ""),
    };
    let mut sink = Sink::start(answers).await;
    let rig = rig(&sink);
    let names: Vec<String> = (0..40).map(|index| format!("span {index:02}")).collect();
    rig.spans(names.iter().map(String::as_str)).await;
    rig.start().stop().await;
    let taken = sink
        .rest()
        .into_iter()
        .filter(|received| received.decoded().len() <= 400);
    let mut taken: Vec<String> = taken.flat_map(|received| received.names()).collect();
    taken.sort();
    assert_eq!(taken, names);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn an_invalid_argument_is_set_aside() {
    let sink = Sink::start(|_, _| Reply::grpc(3, "no%20such%20field")).await;
    let rig = rig(&sink);
    rig.spans(["a"]).await;
    rig.start().stop().await;
    let kept = list_refused(&rig.refused()).unwrap();
    assert_eq!(kept[0].refusal.reason, "INVALID_ARGUMENT: no such field");
    assert_eq!(rig.saved(), Some(rig.end()));
}
