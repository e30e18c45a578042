//! OTLP/gRPC.

use crate::fixture::*;

use bytes::Bytes;
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use spanledger::otlp::{Encoding, Signal, compress};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[tokio::test]
async fn the_generated_clients_of_all_three_services_are_served() {
    let mut fixture = Fixture::start();
    let url = format!("http://{}", fixture.grpc);
    let mut client = TraceServiceClient::connect(url.clone()).await.unwrap();
    assert_eq!(
        client.export(traces(1)).await.unwrap().into_inner().partial_success,
        None
    );
    let mut client = MetricsServiceClient::connect(url.clone()).await.unwrap();
    assert_eq!(
        client.export(metrics()).await.unwrap().into_inner().partial_success,
        None
    );
    let mut client = LogsServiceClient::connect(url).await.unwrap();
    assert_eq!(client.export(logs()).await.unwrap().into_inner().partial_success, None);
    let records = fixture.journalled();
    let kept: Vec<_> = records
        .iter()
        .map(|record| (record.signal, record.items, record.body.clone()))
        .collect();
    assert_eq!(
        kept,
        [
            (Signal::Traces, 1, Bytes::from(traces_bytes(1))),
            (Signal::Metrics, 2, Bytes::from(metrics().encode_to_vec())),
            (Signal::Logs, 3, Bytes::from(logs().encode_to_vec())),
        ]
    );
}

#[tokio::test]
async fn compressed_messages_are_journalled_as_received_without_the_prefix() {
    let mut fixture = Fixture::start();
    for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate] {
        let message = compress(encoding, &traces_bytes(1));
        let answer = fixture
            .call(GRPC_TRACES, &[("grpc-encoding", encoding.token())], 1, &message)
            .await;
        assert_eq!(answer.grpc_status(), "0");
        assert_eq!(answer.body, framed(0, b""));
        let records = fixture.journalled();
        assert_eq!(
            (records.len(), records[0].encoding, &records[0].body),
            (1, encoding, &message)
        );
    }
    let answer = fixture
        .call(GRPC_TRACES, &[("grpc-encoding", "gzip")], 0, &traces_bytes(2))
        .await;
    assert_eq!(
        answer.grpc_status(),
        "0",
        "the flag says whether this message is compressed"
    );
    assert_eq!(fixture.journalled()[0].encoding, Encoding::Identity);
}

#[tokio::test]
async fn unknown_encodings_and_methods_are_unimplemented() {
    let fixture = Fixture::start();
    let refused = fixture
        .call(GRPC_TRACES, &[("grpc-encoding", "snappy2")], 1, b"x")
        .await;
    assert_eq!(refused.grpc_status(), "12");
    assert_eq!(
        refused.headers["grpc-accept-encoding"],
        "gzip, zstd, deflate, zlib, snappy, x-snappy-framed, lz4"
    );
    let refused = fixture.call("/a.Service/Method", &[], 0, b"").await;
    assert_eq!(refused.grpc_status(), "12");
    assert!(refused.grpc_message().contains("/a.Service/Method"));
}

#[tokio::test]
async fn malformed_messages_are_invalid_arguments_with_a_bad_request_detail() {
    let mut fixture = Fixture::start();
    let mut two = framed(0, &traces_bytes(1)).to_vec();
    two.extend(framed(0, &traces_bytes(2)));
    let refusals = [
        fixture.call(GRPC_TRACES, &[], 0, b"\xff\xff").await,
        fixture
            .call(GRPC_TRACES, &[("grpc-encoding", "gzip")], 1, b"not gzip")
            .await,
        fixture.call(GRPC_TRACES, &[], 1, &traces_bytes(1)).await,
        fixture.call_raw(GRPC_TRACES, &[], Bytes::new()).await,
        fixture
            .call_raw(GRPC_TRACES, &[], framed(0, &traces_bytes(1)).slice(..20))
            .await,
        fixture.call_raw(GRPC_TRACES, &[], Bytes::from(two)).await,
    ];
    for refused in refusals {
        assert_eq!(refused.grpc_status(), "3");
        let details = refused.grpc_details();
        assert_eq!(details.code, 3);
        assert_eq!(details.detail_types(), ["BadRequest"]);
        assert!(!details.message.is_empty());
    }
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn invalid_ids_and_repeated_requests_are_treated_as_over_http() {
    let mut fixture = Fixture::start();
    let mut bad = span("bad", 2);
    bad.span_id = Vec::new();
    let request = traces_of(vec![span("good", 1), bad]).encode_to_vec();
    let answer = fixture.call(GRPC_TRACES, &[], 0, &request).await;
    assert_eq!(answer.grpc_status(), "0");
    let partial = ExportTraceServiceResponse::decode(answer.body.slice(5..))
        .unwrap()
        .partial_success
        .unwrap();
    assert_eq!(partial.rejected_spans, 1);
    let repeated = fixture.call(GRPC_TRACES, &[], 0, &request).await;
    assert_eq!(repeated.body, answer.body);
    let over_http = fixture.post("/v1/traces", &[("content-type", PROTOBUF)], request).await;
    assert_eq!(over_http.body, answer.body.slice(5..));
    let records = fixture.journalled();
    assert_eq!(records.len(), 1);
    let kept = ExportTraceServiceRequest::decode(records[0].body.clone()).unwrap();
    assert_eq!(kept, traces_of(vec![span("good", 1)]));
}

#[tokio::test]
async fn each_protocol_is_served_on_the_others_port_and_grpc_over_http1_is_told_what_it_needs() {
    let mut fixture = Fixture::start();
    let mut client = TraceServiceClient::connect(format!("http://{}", fixture.http))
        .await
        .unwrap();
    client.export(traces(1)).await.unwrap();
    let http1 = || hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let json = request(
        Method::POST,
        fixture.grpc,
        "/v1/traces",
        &[("content-type", JSON)],
        Bytes::from(JSON_TRACES),
    );
    assert_eq!(send(http1(), json).await.status, StatusCode::OK);
    assert_eq!(fixture.journalled().len(), 2);

    let grpc_headers = [("content-type", "application/grpc")];
    let over_http1 = request(Method::POST, fixture.grpc, GRPC_TRACES, &grpc_headers, Bytes::new());
    let refused = send(http1(), over_http1).await;
    assert_eq!(refused.status, StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    assert_eq!(refused.protobuf_status().message, "gRPC needs HTTP/2");
}

#[tokio::test]
async fn the_health_service_says_serving_while_the_journal_takes_requests() {
    let fixture = Fixture::start();
    let service = |name: &str| {
        let mut message = vec![0x0a, name.len() as u8];
        message.extend(name.bytes());
        message
    };
    for request in [
        Vec::new(),
        service("opentelemetry.proto.collector.trace.v1.TraceService"),
    ] {
        let answer = fixture.call(HEALTH, &[], 0, &request).await;
        assert_eq!(
            (answer.grpc_status(), &answer.body[..]),
            ("0", &[0, 0, 0, 0, 2, 0x08, 1][..])
        );
    }
    assert_eq!(fixture.call(HEALTH, &[], 0, &service("other")).await.grpc_status(), "5");
    fixture.journal.close();
    let answer = fixture.call(HEALTH, &[], 0, b"").await;
    assert_eq!(&answer.body[..], [0, 0, 0, 0, 2, 0x08, 2]);
}

#[tokio::test]
async fn a_message_that_does_not_arrive_before_the_senders_deadline_is_deadline_exceeded() {
    let fixture = Fixture::start();
    let stream = tokio::net::TcpStream::connect(fixture.grpc).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let call = http::Request::post(format!("http://{}{GRPC_TRACES}", fixture.grpc))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "5m")
        .body(NeverEnding)
        .unwrap();
    let answer = Answer::from(sender.send_request(call).await.unwrap()).await;
    assert_eq!(answer.grpc_status(), "4");
}

/// A body that sends nothing and does not end.
struct NeverEnding;

impl http_body::Body for NeverEnding {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}
