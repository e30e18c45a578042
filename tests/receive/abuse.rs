//! Peers that misbehave: what they get, and that others are served meanwhile.

use crate::fixture::*;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Reads frames until GOAWAY and gives its error code; `None` if the connection ends without one.
async fn goaway(stream: &mut TcpStream) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.ok()?;
        if head[3] == 7 {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

#[tokio::test]
async fn a_peer_that_opens_and_resets_streams_in_a_row_is_sent_away_and_others_are_served() {
    let fixture = Fixture::start();
    let mut stream = TcpStream::connect(fixture.grpc).await.unwrap();
    let mut attack = HTTP2_PREFACE.to_vec();
    attack.extend(frame(4, 0, 0, b""));
    for id in (1..2001).step_by(2) {
        // :method POST, :scheme http, :path /, all from the static table.
        attack.extend(frame(1, 4, id, &[0x83, 0x86, 0x84]));
        attack.extend(frame(3, 0, id, &8u32.to_be_bytes()));
    }
    stream.write_all(&attack).await.unwrap();
    const ENHANCE_YOUR_CALM: u32 = 11;
    assert_eq!(goaway(&mut stream).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(
        fixture.call(GRPC_TRACES, &[], 0, &traces_bytes(1)).await.grpc_status(),
        "0"
    );
}

#[tokio::test]
async fn a_peer_with_too_many_unanswered_streams_does_not_get_more_of_them() {
    let fixture = Fixture::with(|options, _| options.grpc.as_mut().unwrap().limits.max_streams = 4);
    let mut stream = TcpStream::connect(fixture.grpc).await.unwrap();
    let mut attack = HTTP2_PREFACE.to_vec();
    attack.extend(frame(4, 0, 0, b""));
    for id in (1..21).step_by(2) {
        attack.extend(frame(1, 4, id, &[0x83, 0x86, 0x84]));
    }
    stream.write_all(&attack).await.unwrap();
    // Streams beyond the limit are refused one by one: RST_STREAM with REFUSED_STREAM.
    const REFUSED_STREAM: [u8; 4] = 7u32.to_be_bytes();
    let mut received = Vec::new();
    let refusal = frame(3, 0, 9, &REFUSED_STREAM);
    while !received.windows(refusal.len()).any(|bytes| bytes == refusal) {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
    }
    assert_eq!(
        fixture.call(GRPC_TRACES, &[], 0, &traces_bytes(1)).await.grpc_status(),
        "0"
    );
}

#[tokio::test]
async fn heads_with_too_many_or_too_long_fields_are_refused() {
    let fixture = Fixture::start();
    let many: String = (0..200).map(|number| format!("x-{number}: a\r\n")).collect();
    let long = format!("x: {}\r\n", "a".repeat(1 << 20));
    for fields in [many, long] {
        let mut stream = TcpStream::connect(fixture.http).await.unwrap();
        let head = format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        // The receiver may close before all of it is written.
        let _written = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        match stream.read_exact(&mut answer).await {
            Ok(_) => assert_eq!(&answer, b"HTTP/1.1 431"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

#[tokio::test]
async fn what_is_not_http_is_not_answered_and_harms_nobody() {
    let fixture = Fixture::start();
    let mut random = fastrand::Rng::with_seed(11);
    for length in [1, 24, 100, 5000] {
        let noise: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        for beginning in [
            &b""[..],
            HTTP2_PREFACE,
            b"POST /v1/traces HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(fixture.http).await.unwrap();
            let _written = stream.write_all(&[beginning, &noise].concat()).await;
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            let _end = stream.read_to_end(&mut answer).await;
            assert!(
                !answer.starts_with(b"HTTP/1.1 2"),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
    let answer = fixture.post("/v1/traces", &[("content-type", JSON)], JSON_TRACES).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn contradictory_lengths_cannot_smuggle_a_second_request() {
    let mut fixture = Fixture::start();
    let json = JSON_TRACES;
    let smuggled = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: -1\r\n",
        "transfer-encoding: chunked, identity\r\n",
    ] {
        let mut stream = TcpStream::connect(fixture.http).await.unwrap();
        let request =
            format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\n{lengths}\r\n0\r\n\r\n{smuggled}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        let _end = stream.read_to_end(&mut answers).await;
        let answered = String::from_utf8_lossy(&answers).matches("HTTP/1.1 ").count();
        assert!(answered <= 1, "{lengths}: {}", String::from_utf8_lossy(&answers));
    }
    assert!(fixture.journalled().is_empty());
}

#[tokio::test]
async fn a_sender_that_goes_away_before_the_answer_does_not_undo_its_request() {
    let mut fixture = Fixture::start();
    let body = traces_bytes(1);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    drop(stream);
    let records = loop {
        let records = fixture.journalled();
        if !records.is_empty() {
            break records;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(records[0].body, body);
}

#[tokio::test]
async fn a_sender_that_goes_away_in_the_middle_of_its_body_leaves_nothing() {
    let (recorder, handle) = crate::observed::recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut fixture = Fixture::start();
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    let head = format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-length: 50000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b' '; 40_000]).await.unwrap();
    let in_flight = || crate::observed::sample(&handle, "spanledger_receiver_in_flight_bytes");
    // What is to come has its room already.
    while in_flight() != Some(50_000.0) {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while in_flight() != Some(0.0) {
        tokio::task::yield_now().await;
    }
    assert!(fixture.journalled().is_empty());
}
