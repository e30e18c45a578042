//! Sizes: limits before and after decompression, bombs, admission, a full journal, slow bodies.

use crate::fixture::*;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use spanledger::otlp::{Encoding, compress, decompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const LIMIT: usize = 1 << 20;

/// Both protocols take at most a mebibyte.
fn limited() -> Fixture {
    Fixture::with(|options, _| {
        options.http.as_mut().unwrap().max_request_body_size = LIMIT;
        options.grpc.as_mut().unwrap().max_recv_msg_size = LIMIT;
    })
}

/// A trace request of about this many bytes, that hardly compresses.
fn large_traces(bytes: usize) -> ExportTraceServiceRequest {
    let mut random = fastrand::Rng::with_seed(7);
    let mut spans = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let mut span = span("code.execute", 1);
        span.span_id = random.u64(1..).to_be_bytes().to_vec();
        span.name = (0..400).map(|_| random.alphanumeric()).collect();
        left = left.saturating_sub(span.encoded_len() + 3);
        spans.push(span);
    }
    traces_of(spans)
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_before_and_after_decompression_and_the_limit_itself_is_taken() {
    let mut fixture = limited();
    let too_large = large_traces(LIMIT + 1000).encode_to_vec();
    let bomb = compress(Encoding::Gzip, &vec![0; 64 * LIMIT]);
    assert!(bomb.len() < LIMIT, "{}", bomb.len());
    for (encoding, body) in [("identity", Bytes::from(too_large.clone())), ("gzip", bomb.clone())] {
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let refused = fixture.post("/v1/traces", &headers, body).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{encoding}");
        let status = refused.protobuf_status();
        assert_eq!(status.code, 8);
        assert!(status.message.contains("max_request_body_size"), "{}", status.message);
        assert!(
            status.details.is_empty(),
            "RetryInfo would invite the sender to repeat it"
        );
    }
    for (flag, message) in [(0, &too_large[..]), (1, &bomb[..])] {
        let refused = fixture
            .call(GRPC_TRACES, &[("grpc-encoding", "gzip")], flag, message)
            .await;
        assert_eq!(refused.grpc_status(), "8");
        assert!(
            refused.grpc_message().contains("max_recv_msg_size_mib"),
            "{}",
            refused.grpc_message()
        );
        assert!(refused.grpc_details().details.is_empty());
    }
    assert!(fixture.journalled().is_empty());

    let mut most = large_traces(LIMIT - 10_000);
    let missing = LIMIT - most.encoded_len() - 8;
    let mut last = span("", 9);
    last.name = "x".repeat(missing - span("", 9).encoded_len() - 8);
    most.resource_spans[0].scope_spans[0].spans.push(last);
    assert!(
        (LIMIT - 64..=LIMIT).contains(&most.encoded_len()),
        "{}",
        most.encoded_len()
    );
    let answer = fixture
        .post("/v1/traces", &[("content-type", PROTOBUF)], most.encode_to_vec())
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_while_it_arrives_and_its_sender_gets_the_answer() {
    let fixture = limited();
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    let head =
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 100_000, " ".repeat(100_000));
    for _ in 0..15 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn large_requests_of_every_form_are_taken_whole() {
    let mut fixture = Fixture::start();
    let request = large_traces(6 << 20);
    let plain = Bytes::from(request.encode_to_vec());
    let headers = [("content-type", PROTOBUF)];
    assert_eq!(
        fixture.post("/v1/traces", &headers, plain.clone()).await.status,
        StatusCode::OK
    );
    let kept = fixture.journalled();
    assert_eq!((kept.len(), kept[0].body.len()), (1, plain.len()));
    assert_eq!(kept[0].body, plain);

    let gzip = compress(Encoding::Gzip, &plain);
    assert_eq!(
        fixture
            .call(GRPC_TRACES, &[("grpc-encoding", "gzip")], 1, &gzip)
            .await
            .grpc_status(),
        "0"
    );
    assert_eq!(fixture.journalled()[0].body, gzip);

    // Small when compressed, too large to be inflated where it was received.
    let uniform = traces_of(vec![span(&"x".repeat(1000), 1); 6000]).encode_to_vec();
    let disguised = compress(Encoding::Gzip, &uniform);
    assert!(disguised.len() < 100_000 && uniform.len() > 4 << 20);
    assert_eq!(
        fixture
            .call(GRPC_TRACES, &[("grpc-encoding", "gzip")], 1, &disguised)
            .await
            .grpc_status(),
        "0"
    );
    let kept = fixture.journalled();
    let decoded = decompress(kept[0].encoding, &kept[0].body, usize::MAX / 2).unwrap();
    assert!(decoded == uniform, "what is kept is not what was sent");

    let one_span = JSON_TRACES.find("{\"traceId\"").unwrap()..JSON_TRACES.find("]}]}]}").unwrap();
    let spans = vec![&JSON_TRACES[one_span.clone()]; 2000].join(",");
    let json = format!(
        "{}{spans}{}",
        &JSON_TRACES[..one_span.start],
        &JSON_TRACES[one_span.end..]
    );
    let answer = fixture.post("/v1/traces", &[("content-type", JSON)], json).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(fixture.journalled()[0].items, 2000);
}

#[tokio::test]
async fn beyond_the_bytes_in_flight_senders_are_told_to_try_again_and_then_succeed() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 120_000);
    // Three peers hold 29,000 each; 30,000 is a request's share.
    let large = large_traces(28_000).encode_to_vec();
    assert!(large.len() < 30_000);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {}\r\n\r\n",
        large.len()
    );
    let mut held = Vec::new();
    for peer in 2..6 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("127.0.0.{peer}:0").parse().unwrap()).unwrap();
        let mut slow = socket.connect(fixture.http).await.unwrap();
        slow.write_all(head.as_bytes()).await.unwrap();
        slow.write_all(&large[..28_000]).await.unwrap();
        held.push(slow);
    }

    let other = large_traces(20_000).encode_to_vec();
    // Until the slow ones' bytes have arrived there is room; each repetition is a duplicate then.
    let refused = loop {
        let answer = fixture
            .post("/v1/traces", &[("content-type", JSON)], " ".repeat(20_000))
            .await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            break answer;
        }
    };
    assert_eq!(refused.headers["retry-after"], "1");
    let status = refused.json();
    assert_eq!(status["code"], 14);
    assert_eq!(status["details"][0]["retryDelay"], "1s");
    let refused = fixture.call(GRPC_TRACES, &[], 0, &other).await;
    assert_eq!(refused.grpc_status(), "14");
    assert_eq!(refused.grpc_details().detail_types(), ["RetryInfo"]);

    for mut slow in held {
        slow.write_all(&large[28_000..]).await.unwrap();
        let mut answer = [0; 12];
        slow.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(fixture.call(GRPC_TRACES, &[], 0, &other).await.grpc_status(), "0");
}

#[tokio::test]
async fn an_announced_length_takes_nothing_from_others_until_it_arrives() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 400_000);
    let mut promising = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(fixture.http).await.unwrap();
        let head =
            "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        promising.push(stream);
    }
    let answer = fixture
        .post(
            "/v1/traces",
            &[("content-type", PROTOBUF)],
            large_traces(90_000).encode_to_vec(),
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn one_peer_that_takes_all_the_room_it_gets_over_both_listeners_leaves_others_theirs() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 400_000);
    let mut held = Vec::new();
    for address in [fixture.http, fixture.grpc, fixture.http, fixture.grpc] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let head =
            format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-length: 75000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b' '; 74_999]).await.unwrap();
        held.push(stream);
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut greedy = socket.connect(fixture.http).await.unwrap();
    let body = " ".repeat(100);
    let request =
        format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-length: 100\r\n\r\n{body}");
    loop {
        // Until all that is held has arrived, this is merely not JSON.
        greedy.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(greedy.read_buf(&mut answer).await.unwrap(), 0);
        }
        if answer.starts_with(b"HTTP/1.1 503") {
            break;
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 400"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    let modest = large_traces(40_000).encode_to_vec();
    let answer = fixture.post("/v1/traces", &[("content-type", PROTOBUF)], modest).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_beyond_its_share_of_the_bytes_in_flight_goes_alone() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 40_000);
    let head = |length: usize| {
        format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {length}\r\n\r\n")
    };
    let large = large_traces(90_000).encode_to_vec();
    let mut first = TcpStream::connect(fixture.http).await.unwrap();
    first.write_all(head(large.len()).as_bytes()).await.unwrap();
    first.write_all(&large[..80_000]).await.unwrap();

    // As soon as that has arrived, a second large one is asked to come again; a small one is taken beside it.
    let second = large_traces(60_000).encode_to_vec();
    let small = large_traces(5_000).encode_to_vec();
    loop {
        let answer = fixture
            .post("/v1/traces", &[("content-type", PROTOBUF)], second.clone())
            .await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(answer.protobuf_status().message.contains("max_in_flight_size"));
            break;
        }
    }
    let answer = fixture.post("/v1/traces", &[("content-type", PROTOBUF)], small).await;
    assert_eq!(answer.status, StatusCode::OK);

    first.write_all(&large[80_000..]).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let answer = fixture.post("/v1/traces", &[("content-type", PROTOBUF)], second).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn large_requests_on_one_connection_of_http2_do_not_take_its_window_from_the_one_whose_turn_it_is() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 4 << 20);
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let call = |spans: ExportTraceServiceRequest| {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let message = framed(0, &spans.encode_to_vec());
        send(
            client.clone(),
            request(Method::POST, fixture.grpc, GRPC_TRACES, &headers, message),
        )
    };
    assert_eq!(
        call(traces(1)).await.grpc_status(),
        "0",
        "now there is the one connection"
    );
    let large = |megabytes: usize| call(large_traces(megabytes << 20));
    let answers = tokio::join!(large(6), large(7), large(8), large(9));
    let mut statuses = [answers.0, answers.1, answers.2, answers.3].map(|answer| answer.grpc_status().to_owned());
    statuses.sort();
    // One has its turn and one waits; the others are to come again, unless one was done before they came.
    assert_eq!(&statuses[..2], ["0", "0"], "{statuses:?}");
    assert!(
        statuses[2..]
            .iter()
            .all(|status| ["0", "14"].contains(&status.as_str())),
        "{statuses:?}"
    );
}

#[tokio::test]
async fn large_requests_of_a_peer_that_dawdles_do_not_keep_those_of_another_one_out() {
    let fixture = Fixture::with(|options, _| options.max_in_flight_bytes = 80_000);
    let mut dawdling = Vec::new();
    for _ in 0..5 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(fixture.http).await.unwrap();
        let head =
            format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 90000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[0x0a; 20_000]).await.unwrap();
        dawdling.push(stream);
    }
    let large = large_traces(60_000).encode_to_vec();
    let announced = fixture.post("/v1/traces", &[("content-type", PROTOBUF)], large.clone());
    assert_eq!(announced.await.status, StatusCode::OK);
    let long = traces_of(vec![span(&"x".repeat(3_000_000), 1)]);
    let compressed = compress(Encoding::Zstd, &Bytes::from(long.encode_to_vec()));
    assert!(compressed.len() < 20_000, "only decompression shows how large it is");
    let headers = [("content-type", PROTOBUF), ("content-encoding", "zstd")];
    let inflated = fixture.post("/v1/traces", &headers, compressed).await;
    assert_eq!(inflated.status, StatusCode::OK);
    let json = serde_json::to_vec(&large_traces(10_000)).unwrap();
    assert!(json.len() < 20_000, "only with what it is decoded to is it so large");
    let decoded = fixture.post("/v1/traces", &[("content-type", JSON)], json).await;
    assert_eq!(decoded.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused_and_may_be_sent_again() {
    let fixture = Fixture::with(|options, _| {
        options.grpc.as_mut().unwrap().read_timeout = Duration::from_millis(20);
        options.http.as_mut().unwrap().read_timeout = Duration::from_millis(20);
    });
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_full_journal_is_unavailable_with_a_time_to_come_again_and_takes_nothing_partly() {
    let mut fixture = Fixture::with(|_, journal| {
        journal.max_size = 4 << 20;
        journal.segment_size = Some(1 << 20);
        journal.free_disk_floor = 0;
    });
    let mut accepted = 0;
    let refused = loop {
        let mut request = large_traces(200_000);
        request.resource_spans[0].schema_url = format!("https://example.com/{accepted}");
        let answer = fixture
            .post("/v1/traces", &[("content-type", PROTOBUF)], request.encode_to_vec())
            .await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1000, "the journal never fills");
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    let status = refused.protobuf_status();
    assert_eq!(status.code, 14);
    assert!(status.message.contains("journal.max_size"), "{}", status.message);
    assert_eq!(status.detail_types(), ["RetryInfo"]);
    let refused = fixture
        .call(GRPC_TRACES, &[], 0, &large_traces(300_000).encode_to_vec())
        .await;
    assert_eq!(refused.grpc_status(), "14");
    assert_eq!(refused.grpc_details().detail_types(), ["RetryInfo"]);

    let mut kept = 0;
    loop {
        let batch = fixture.journalled();
        if batch.is_empty() {
            break;
        }
        kept += batch.len();
    }
    assert_eq!(kept, accepted);
}
