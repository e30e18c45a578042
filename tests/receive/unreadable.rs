//! Requests whose head cannot be read: what the HTTP library answers by itself has a status message as well.

use crate::fixture::*;

use http::StatusCode;
use spanledger::listen::Auth;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Heads that are not requests of HTTP/1.1, with the status of the answer. `{type}` is the content type.
fn unreadable() -> Vec<(String, u16)> {
    let rest = "host: a\r\nconnection: close\r\ncontent-type: {type}\r\n";
    let post = "POST /v1/traces HTTP/1.1\r\n";
    let many: String = (0..200).map(|number| format!("x-{number}: a\r\n")).collect();
    vec![
        (format!("PO ST /v1/traces HTTP/1.1\r\n{rest}\r\n"), 400),
        (format!("P\x00ST /v1/traces HTTP/1.1\r\n{rest}\r\n"), 400),
        (format!("POST /v1/tra\x01ces HTTP/1.1\r\n{rest}\r\n"), 400),
        (format!("POST /v1/traces HTTP/7.3\r\n{rest}\r\n"), 400),
        (format!("POST /v1/traces\r\n{rest}\r\n"), 400),
        (format!("POST http://[/v1/traces HTTP/1.1\r\n{rest}\r\n"), 400),
        (format!("{post}{rest}no colon\r\n\r\n"), 400),
        (format!("{post}{rest}na me: a\r\n\r\n"), 400),
        (format!("{post}{rest}x: a\x00b\r\n\r\n"), 400),
        (format!("{post}{rest}content-length: -1\r\n\r\n"), 400),
        (format!("{post}{rest}content-length: 99999999999999999999\r\n\r\n"), 400),
        (
            format!("{post}{rest}content-length: 1\r\ncontent-length: 2\r\n\r\n"),
            400,
        ),
        (format!("{post}{rest}transfer-encoding: identity\r\n\r\n"), 400),
        (
            format!("POST /v1/traces HTTP/1.0\r\n{rest}transfer-encoding: chunked\r\n\r\n"),
            400,
        ),
        (format!("POST /{} HTTP/1.1\r\n{rest}\r\n", "a".repeat(70_000)), 414),
        (format!("{post}{rest}{many}\r\n"), 431),
        (format!("{post}{rest}x: {}\r\n\r\n", "a".repeat(40_000)), 431),
        (format!("{post}{rest}x: {}\r\n\r\n", "a".repeat(1 << 20)), 431),
    ]
}

#[tokio::test]
async fn every_refusal_of_an_unreadable_head_has_a_status_in_the_content_type_of_the_request() {
    let fixture = Fixture::start();
    for address in [fixture.http, fixture.grpc] {
        for (head, expected) in unreadable() {
            let what = head.chars().take(200).collect::<String>();
            let json = send_raw(address, head.replace("{type}", "application/json").as_bytes()).await;
            assert_eq!(json.status, expected, "{what:?}");
            assert_eq!(json.content_type(), JSON, "{what:?}");
            assert!(
                json.json()["message"].as_str().is_some_and(|it| !it.is_empty()),
                "{what:?}"
            );
            let protobuf = send_raw(address, head.replace("{type}", PROTOBUF).as_bytes()).await;
            assert_eq!(protobuf.status, expected, "{what:?}");
            assert_ne!(protobuf.protobuf_status().message, "", "{what:?}");
            assert_eq!(protobuf.headers["connection"], "close", "{what:?}");
        }
    }
}

#[tokio::test]
async fn a_head_that_is_cut_up_or_follows_good_requests_is_answered_in_its_own_content_type() {
    let fixture = Fixture::start();
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    let mut received = Vec::new();
    let good = format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 0\r\n\r\n");
    for _ in 0..3 {
        stream.write_all(good.as_bytes()).await.unwrap();
        while !received.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
        }
        assert!(received.starts_with(b"HTTP/1.1 200 "));
        received.clear();
    }
    for part in [
        "POST /v1/tra",
        "ces HTTP/1.1\r\nContent-Ty",
        "pe: application/json\r\ncontent-length: x\r\n\r\n",
    ] {
        stream.write_all(part.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    stream.read_to_end(&mut received).await.unwrap();
    let answer = Answer::parse(&received);
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.json()["code"], 3);
}

#[tokio::test]
async fn garbage_behind_a_request_is_refused_after_the_answer_to_the_request() {
    let fixture = Fixture::start();
    let both = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-length: 2\r\n\r\n{{}}\0\0\0\0\r\n\r\n"
    );
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    let second = received.windows(12).rposition(|it| it == b"HTTP/1.1 400").unwrap();
    assert!(received[..second].starts_with(b"HTTP/1.1 200 ") && received[..second].ends_with(b"{}"));
    assert_ne!(Answer::parse(&received[second..]).json()["message"], "");
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_read_why_its_head_was_too_large() {
    let fixture = Fixture::with(|options, _| {
        let cors = &mut options.http.as_mut().unwrap().cors;
        cors.allowed_origins = vec!["https://app.example".to_owned()];
        options.auth = Auth::bearer(["secret"]);
    });
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\norigin: https://app.example\r\ncontent-type: {JSON}\r\nx: {}\r\n\r\n",
        "a".repeat(200_000)
    );
    let answer = send_raw(fixture.http, head.as_bytes()).await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
}

#[tokio::test]
async fn refusals_of_unreadable_heads_are_counted() {
    let (recorder, handle) = crate::observed::recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let fixture = Fixture::start();
    for (head, _) in unreadable() {
        send_raw(fixture.http, head.as_bytes()).await;
    }
    let text = handle.render();
    let count = |reason: &str| {
        let lines = text
            .lines()
            .filter(|it| it.contains("requests_refused_total{") && it.contains(reason));
        lines
            .map(|it| it.rsplit(' ').next().unwrap().parse::<u32>().unwrap())
            .sum::<u32>()
    };
    assert_eq!((count("malformed"), count("head_too_large")), (14, 4), "{text}");
}
