//! Streaming gRPC: health that is watched, and reflection.

use crate::fixture::*;

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const LIST: &str = "/grpc.health.v1.Health/List";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// A field of bytes or text with a number below 16.
fn field(number: u8, text: &str) -> Vec<u8> {
    let mut message = vec![number << 3 | 2, text.len() as u8];
    message.extend(text.bytes());
    message
}

async fn begin(fixture: &Fixture, path: &str, body: Bytes) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    client
        .request(request(Method::POST, fixture.grpc, path, &headers, body))
        .await
        .unwrap()
}

/// The next message without its prefix, or the status at the end.
async fn next(body: &mut Incoming) -> Result<Bytes, String> {
    let frame = body.frame().await.unwrap().unwrap();
    match frame.into_data() {
        Ok(data) => Ok(data.slice(5..)),
        Err(frame) => Err(frame.trailers_ref().unwrap()["grpc-status"]
            .to_str()
            .unwrap()
            .to_owned()),
    }
}

#[tokio::test]
async fn who_watches_is_told_at_once_at_every_change_and_at_the_end() {
    let mut fixture = Fixture::start();
    let mut watched = begin(&fixture, WATCH, framed(0, b"")).await.into_body();
    assert_eq!(next(&mut watched).await.unwrap(), [0x08, 1].as_slice());
    let mut unknown = begin(&fixture, WATCH, framed(0, &field(1, "no.such.Service")))
        .await
        .into_body();
    assert_eq!(next(&mut unknown).await.unwrap(), [0x08, 3].as_slice());
    fixture.journal.close();
    assert_eq!(next(&mut watched).await.unwrap(), [0x08, 2].as_slice());
    fixture.shutdown.cancel();
    assert_eq!(next(&mut watched).await.unwrap_err(), "0");
    assert_eq!(next(&mut unknown).await.unwrap(), [0x08, 2].as_slice());
    assert_eq!(next(&mut unknown).await.unwrap_err(), "0");
    // A stream does not hold up the end.
    (&mut fixture.serving).await.unwrap();
}

#[tokio::test]
async fn one_peer_takes_three_quarters_of_the_streams_at_most_and_unary_calls_need_none() {
    let fixture = Fixture::start();
    let client_of = |address: [u8; 4]| {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(address.into()));
        Client::builder(TokioExecutor::new()).http2_only(true).build(connector)
    };
    let watch = || {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        request(Method::POST, fixture.grpc, WATCH, &headers, framed(0, b""))
    };
    let (greedy, modest) = (client_of([127, 0, 0, 2]), client_of([127, 0, 0, 1]));
    let mut open = Vec::new();
    for place in 0..97 {
        let answer = greedy.request(watch()).await.unwrap();
        assert_eq!(answer.headers().contains_key("grpc-status"), place == 96, "{place}");
        open.push(answer);
    }
    assert_eq!(open[96].headers()["grpc-status"], "14");
    for place in 0..33 {
        let answer = modest.request(watch()).await.unwrap();
        assert_eq!(answer.headers().contains_key("grpc-status"), place == 32, "{place}");
        open.push(answer);
    }
    assert_eq!(fixture.call(LIST, &[], 0, b"").await.grpc_status(), "0");
    drop(open);
    // Streams end some time after their connection does.
    while greedy
        .request(watch())
        .await
        .unwrap()
        .headers()
        .contains_key("grpc-status")
    {}
}

#[tokio::test]
async fn the_health_of_every_service_is_listed() {
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    #[derive(Clone, PartialEq, Message)]
    struct List {
        #[prost(map = "string, message", tag = "1")]
        statuses: std::collections::HashMap<String, Status>,
    }
    let fixture = Fixture::start();
    let answer = fixture.call(LIST, &[], 0, b"").await;
    assert_eq!(answer.grpc_status(), "0");
    let list = List::decode(answer.body.slice(5..)).unwrap();
    assert!(list.statuses.values().all(|it| it.status == 1));
    let mut names: Vec<&str> = list.statuses.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "",
            "opentelemetry.proto.collector.logs.v1.LogsService",
            "opentelemetry.proto.collector.metrics.v1.MetricsService",
            "opentelemetry.proto.collector.trace.v1.TraceService",
        ]
    );
}

#[tokio::test]
async fn reflection_answers_one_question_after_the_other() {
    let fixture = Fixture::start();
    let trace_service = "opentelemetry.proto.collector.trace.v1.TraceService";
    for path in [REFLECTION, REFLECTION_ALPHA] {
        let questions = [
            framed(0, &field(7, "")),
            framed(0, &field(4, trace_service)),
            framed(0, &field(3, "no/such.proto")),
        ];
        let mut answers = begin(&fixture, path, Bytes::from(questions.concat())).await.into_body();
        let contains = |message: &[u8], text: &str| message.windows(text.len()).any(|it| it == text.as_bytes());
        let services = next(&mut answers).await.unwrap();
        assert!(contains(&services, trace_service) && contains(&services, "grpc.health.v1.Health"));
        let files = next(&mut answers).await.unwrap();
        for file in ["trace_service.proto", "trace.proto", "resource.proto", "common.proto"] {
            assert!(contains(&files, file), "{file}");
        }
        assert!(contains(&next(&mut answers).await.unwrap(), "no/such.proto"));
        assert_eq!(next(&mut answers).await.unwrap_err(), "0");
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_stream_with_an_error() {
    let fixture = Fixture::start();
    for (body, code) in [
        (Bytes::from_static(&[1, 0, 0, 0, 0]), "12"),
        (Bytes::from_static(&[0, 255, 255, 255, 255]), "8"),
        (Bytes::from_static(&[0, 0, 0, 0, 9, 1]), "3"),
    ] {
        let mut answers = begin(&fixture, REFLECTION, body).await.into_body();
        assert_eq!(next(&mut answers).await.unwrap_err(), code);
    }
}
