//! OTLP/HTTP.

use crate::fixture::*;

use bytes::Bytes;
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use spanledger::otlp::{Encoding, Signal, compress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn protobuf_of_every_signal_is_answered_in_full_and_journalled_as_received() {
    let mut fixture = Fixture::start();
    for (path, body) in [
        ("/v1/traces", traces_bytes(1)),
        ("/v1/metrics", metrics().encode_to_vec()),
        ("/v1/logs", logs().encode_to_vec()),
    ] {
        let answer = fixture.post(path, &[("content-type", PROTOBUF)], body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.content_type(), PROTOBUF);
        assert_eq!(answer.body, "", "full success leaves partial_success unset");
        let records = fixture.journalled();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].signal.path(), path);
        assert_eq!(records[0].encoding, Encoding::Identity);
        assert_eq!(records[0].body, body);
        let items = match records[0].signal {
            Signal::Traces => 1,
            Signal::Metrics => 2,
            Signal::Logs => 3,
        };
        assert_eq!(records[0].items, items);
    }
}

#[tokio::test]
async fn json_is_answered_in_json_and_journalled_as_the_equal_protobuf() {
    let mut fixture = Fixture::start();
    let answer = fixture.post("/v1/traces", &[("content-type", JSON)], JSON_TRACES).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), serde_json::json!({}));
    let records = fixture.journalled();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].encoding, Encoding::Identity);
    let request = ExportTraceServiceRequest::decode(records[0].body.clone()).unwrap();
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.span_id, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(span.end_time_unix_nano, 1_700_000_000_007_000_000);
}

#[tokio::test]
async fn content_types_are_known_in_any_case_and_with_parameters() {
    let fixture = Fixture::start();
    for content_type in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json ;a=b",
    ] {
        let answer = fixture
            .post("/v1/traces", &[("content-type", content_type)], JSON_TRACES)
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{content_type}");
        assert_eq!(answer.content_type(), JSON);
    }
    let answer = fixture
        .post(
            "/v1/traces",
            &[("content-type", "APPLICATION/X-PROTOBUF;a=b")],
            traces_bytes(1),
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn chunked_bodies_over_a_kept_connection_are_taken_as_the_javascript_exporter_sends_them() {
    let mut fixture = Fixture::start();
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    for id in 1..=3 {
        let json = JSON_TRACES.replace("0102030405060708\"", &format!("010203040506070{id}\""));
        let (first, second) = json.split_at(700);
        let request = format!(
            "POST /v1/traces HTTP/1.1\r\nhost: localhost:4318\r\ncontent-type: application/json\r\n\
             user-agent: OTel-OTLP-Exporter-JavaScript/0.208.0\r\nconnection: keep-alive\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"{}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(fixture.journalled().len(), 3);
}

#[tokio::test]
async fn every_content_encoding_is_taken_and_compressed_bodies_are_journalled_as_received() {
    let mut fixture = Fixture::start();
    for (id, (token, encoding)) in (1..).zip([
        ("identity", Encoding::Identity),
        ("GZIP", Encoding::Gzip),
        ("zstd", Encoding::Zstd),
        ("deflate", Encoding::Deflate),
        ("zlib", Encoding::Deflate),
        ("snappy", Encoding::Snappy),
        ("x-snappy-framed", Encoding::Snappy),
        ("lz4", Encoding::Lz4),
    ]) {
        let plain = traces_bytes(id);
        let body = compress(encoding, &plain);
        let headers = [("content-type", PROTOBUF), ("content-encoding", token)];
        let answer = fixture.post("/v1/traces", &headers, body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{token}");
        let records = fixture.journalled();
        assert_eq!(
            (records.len(), records[0].encoding, &records[0].body),
            (1, encoding, &body)
        );
        assert_eq!(records[0].decoded(), Some(&Bytes::from(plain.clone())));
    }
    let json = compress(Encoding::Gzip, JSON_TRACES.as_bytes());
    let headers = [("content-type", JSON), ("content-encoding", "gzip")];
    assert_eq!(fixture.post("/v1/traces", &headers, json).await.status, StatusCode::OK);
    assert_eq!(fixture.journalled()[0].encoding, Encoding::Identity);
}

#[tokio::test]
async fn empty_requests_succeed_and_are_not_journalled() {
    let mut fixture = Fixture::start();
    let empty_envelope = traces_of(Vec::new()).encode_to_vec();
    for (content_type, body) in [
        (PROTOBUF, Vec::new()),
        (PROTOBUF, empty_envelope),
        (JSON, Vec::new()),
        (JSON, b"{}".to_vec()),
        (JSON, br#"{"resourceSpans":[]}"#.to_vec()),
    ] {
        let answer = fixture
            .post("/v1/traces", &[("content-type", content_type)], body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{body:?}");
        assert_eq!(answer.content_type(), content_type);
    }
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn wrong_paths_methods_and_types_are_refused_with_a_status_in_the_right_form() {
    let mut fixture = Fixture::start();
    let refused = fixture
        .post("/v1/spans", &[("content-type", PROTOBUF)], traces_bytes(1))
        .await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(refused.protobuf_status().message.contains("/v1/traces"));

    let refused = fixture
        .request(Method::GET, "/v1/traces", &[("accept", "application/json")], "")
        .await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(refused.headers["allow"].to_str().unwrap().contains("POST"));
    assert_eq!(refused.json()["message"], "OTLP requests are sent with POST");

    for content_type in ["text/plain", "application/jsonl", "application/x-protobuf2"] {
        let refused = fixture.post("/v1/traces", &[("content-type", content_type)], "x").await;
        assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert!(String::from_utf8_lossy(&refused.body).contains("application/x-protobuf"));
    }
    assert_eq!(
        fixture.post("/v1/traces", &[], "x").await.status,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn unknown_and_repeated_content_encodings_are_refused() {
    let fixture = Fixture::start();
    let refused = fixture
        .post("/v1/traces", &[("content-type", JSON), ("content-encoding", "br")], "x")
        .await;
    assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(
        refused.headers["accept-encoding"],
        "gzip, zstd, deflate, zlib, snappy, x-snappy-framed, lz4"
    );
    assert!(refused.json()["message"].as_str().unwrap().contains("gzip"));
    for repeated in [
        &[("content-encoding", "gzip, gzip")][..],
        &[("content-encoding", "gzip"); 2],
    ] {
        let headers: Vec<_> = [("content-type", PROTOBUF)].iter().chain(repeated).copied().collect();
        let refused = fixture.post("/v1/traces", &headers, "x").await;
        assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
}

#[tokio::test]
async fn undecodable_bodies_are_bad_requests_that_say_where_and_senders_do_not_repeat_them() {
    let mut fixture = Fixture::start();
    let mut broken_gzip = compress(Encoding::Gzip, &traces_bytes(1)).to_vec();
    broken_gzip.truncate(broken_gzip.len() / 2);
    for (encoding, body) in [
        ("identity", b"\xff\xff\xff\xff".to_vec()),
        ("gzip", broken_gzip),
        ("zstd", traces_bytes(1)),
    ] {
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let refused = fixture.post("/v1/traces", &headers, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let status = refused.protobuf_status();
        assert_eq!(status.code, 3);
        assert_eq!(status.detail_types(), ["BadRequest"]);
        assert!(!refused.headers.contains_key("retry-after"));
    }
    for body in ["{", "[]", r#"{"resourceSpans":{}}"#, "not json"] {
        let refused = fixture.post("/v1/traces", &[("content-type", JSON)], body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        let status = refused.json();
        assert_eq!(status["code"], 3);
        assert!(!status["message"].as_str().unwrap().is_empty());
    }
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn spans_with_invalid_ids_are_rejected_singly_and_cut_out_of_what_is_journalled() {
    let mut fixture = Fixture::start();
    let mut bad = span("bad", 2);
    bad.trace_id = vec![0; 16];
    let mut short = span("short", 3);
    short.span_id = vec![3; 7];
    let request = traces_of(vec![span("good", 1), bad, short, span("good too", 4)]);
    let headers = [("content-type", PROTOBUF)];
    let answer = fixture.post("/v1/traces", &headers, request.encode_to_vec()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let partial = ExportTraceServiceResponse::decode(answer.body.clone())
        .unwrap()
        .partial_success
        .unwrap();
    assert_eq!(partial.rejected_spans, 2);
    assert!(partial.error_message.contains("trace id"), "{}", partial.error_message);

    let records = fixture.journalled();
    assert_eq!((records.len(), records[0].items), (1, 2));
    let kept = ExportTraceServiceRequest::decode(records[0].body.clone()).unwrap();
    assert_eq!(kept, traces_of(vec![span("good", 1), span("good too", 4)]));

    let repeated = fixture.post("/v1/traces", &headers, request.encode_to_vec()).await;
    assert_eq!(
        repeated.body, answer.body,
        "a repeated request is answered as the first one was"
    );
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn a_request_of_which_nothing_is_left_is_answered_with_partial_success_in_json_too() {
    let mut fixture = Fixture::start();
    let json = JSON_TRACES.replace("0102030405060708\"", "0000000000000000\"");
    let answer = fixture.post("/v1/traces", &[("content-type", JSON)], json).await;
    assert_eq!(answer.status, StatusCode::OK);
    let partial = &answer.json()["partialSuccess"];
    assert_eq!(partial["rejectedSpans"], "1");
    assert!(partial["errorMessage"].as_str().unwrap().contains("span id"));
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn a_trace_request_sent_again_is_answered_alike_and_journalled_once_and_other_signals_each_time() {
    let mut fixture = Fixture::start();
    for _ in 0..3 {
        for (content_type, path, body) in [
            (PROTOBUF, "/v1/traces", traces_bytes(1)),
            (JSON, "/v1/traces", JSON_TRACES.into()),
            (PROTOBUF, "/v1/metrics", metrics().encode_to_vec()),
        ] {
            let answer = fixture.post(path, &[("content-type", content_type)], body).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
    }
    let signals: Vec<Signal> = fixture.journalled().iter().map(|record| record.signal).collect();
    assert_eq!(signals.iter().filter(|&&signal| signal == Signal::Traces).count(), 2);
    assert_eq!(signals.iter().filter(|&&signal| signal == Signal::Metrics).count(), 3);
}

#[tokio::test]
async fn http2_is_served_on_the_same_port() {
    let mut fixture = Fixture::start();
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let headers = [("content-type", PROTOBUF)];
    let request = request(
        Method::POST,
        fixture.http,
        "/v1/traces",
        &headers,
        Bytes::from(traces_bytes(1)),
    );
    assert_eq!(send(client, request).await.status, StatusCode::OK);
    assert_eq!(fixture.journalled().len(), 1);
}
