//! Who may send: tokens, loops, web pages; and what happens at the end.

use crate::fixture::*;

use std::time::Duration;

use http::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use spanledger::listen::Auth;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn requests_without_a_valid_token_are_refused_in_the_form_of_their_protocol() {
    let mut fixture = Fixture::with(|options, _| options.auth = Auth::bearer(["secret"]));
    let refused = fixture.post("/v1/traces", &[("content-type", JSON)], JSON_TRACES).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers["www-authenticate"], "Bearer realm=\"spanledger\"");
    assert_eq!(refused.json()["code"], 16);
    let wrong = [("content-type", PROTOBUF), ("authorization", "Bearer wrong")];
    let refused = fixture.post("/v1/traces", &wrong, vec![0; 500_000]).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.protobuf_status().code, 16);
    let refused = fixture.call(GRPC_TRACES, &[], 0, &traces_bytes(1)).await;
    assert_eq!(refused.grpc_status(), "16");
    assert!(fixture.journalled().is_empty());

    let right = ("authorization", "Bearer secret");
    let answer = fixture
        .post("/v1/traces", &[("content-type", JSON), right], JSON_TRACES)
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        fixture
            .call(GRPC_TRACES, &[right], 0, &traces_bytes(1))
            .await
            .grpc_status(),
        "0"
    );
    assert_eq!(fixture.journalled().len(), 2);
}

#[tokio::test]
async fn a_call_that_pretends_to_be_the_preflight_of_a_browser_gets_nothing_without_a_token() {
    let fixture = Fixture::with(|options, _| options.auth = Auth::bearer(["secret"]));
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for path in [
        GRPC_TRACES,
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        let mut headers = PREFLIGHT.to_vec();
        headers.push(("content-type", "application/grpc"));
        let question = request(Method::OPTIONS, fixture.grpc, path, &headers, framed(0, &[]));
        let answer = send(client.clone(), question).await;
        assert_eq!(answer.grpc_status(), "3", "{path}");
        assert_eq!(answer.body, "", "{path}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_the_form_of_its_protocol() {
    let mut fixture = Fixture::start();
    let fits = "x".repeat(30 << 10);
    let too_large = "x".repeat(40 << 10);
    for (value, is_taken) in [(&fits, true), (&too_large, false)] {
        let headers = |content_type| [("content-type", content_type), ("x-long", value.as_str())];
        let json = fixture.post("/v1/traces", &headers(JSON), JSON_TRACES).await;
        let protobuf = fixture.post("/v1/traces", &headers(PROTOBUF), traces_bytes(2)).await;
        let grpc = fixture
            .call(GRPC_TRACES, &[("x-long", value)], 0, &traces_bytes(3))
            .await;
        if is_taken {
            assert_eq!((json.status, protobuf.status), (StatusCode::OK, StatusCode::OK));
            assert_eq!(grpc.grpc_status(), "0");
            continue;
        }
        let expected = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!((json.status, protobuf.status), (expected, expected));
        assert_eq!((json.content_type(), &json.json()["code"]), (JSON, &8.into()));
        assert_eq!(
            (protobuf.content_type(), protobuf.protobuf_status().code),
            (PROTOBUF, 8)
        );
        assert!(protobuf.protobuf_status().message.contains("32768"));
        assert_eq!(grpc.grpc_status(), "8");
        assert!(!grpc.grpc_details().detail_types().contains(&"RetryInfo"));
    }
    assert_eq!(fixture.journalled().len(), 3);
}

#[tokio::test]
async fn users_with_passwords_are_let_in_over_every_protocol() {
    let mut fixture = Fixture::with(|options, _| options.auth = Auth::default().and_users([("ann", "secret")]));
    let right = ("authorization", "Basic YW5uOnNlY3JldA==");
    let refused = fixture.post("/v1/traces", &[("content-type", JSON)], JSON_TRACES).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        refused.headers["www-authenticate"],
        "Basic realm=\"spanledger\", charset=\"UTF-8\""
    );
    assert_eq!(refused.json()["code"], 16);
    let refused = fixture
        .call(GRPC_TRACES, &[("authorization", "Basic YW5uOg==")], 0, &traces_bytes(1))
        .await;
    assert_eq!(refused.grpc_status(), "16");
    assert!(fixture.journalled().is_empty());
    let headers = [("content-type", JSON), right];
    assert_eq!(
        fixture.post("/v1/traces", &headers, JSON_TRACES).await.status,
        StatusCode::OK
    );
    let answer = fixture.call(GRPC_TRACES, &[right], 0, &traces_bytes(1)).await;
    assert_eq!(answer.grpc_status(), "0");
}

#[tokio::test]
async fn requests_that_this_process_has_forwarded_are_refused_for_good_and_others_hops_are_not() {
    let mut fixture = Fixture::start();
    let ours = format!("00112233445566778899aabbccddeeff, {}", fixture.journal.id());
    let refused = fixture
        .post(
            "/v1/traces",
            &[("content-type", JSON), ("spanledger-hop", &ours)],
            JSON_TRACES,
        )
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.json()["code"], 9);
    assert!(refused.json()["message"].as_str().unwrap().contains("exporter"));
    let refused = fixture
        .call(GRPC_TRACES, &[("spanledger-hop", &ours)], 0, &traces_bytes(1))
        .await;
    assert_eq!(refused.grpc_status(), "9");
    assert!(fixture.journalled().is_empty());

    let other = [
        ("content-type", JSON),
        ("spanledger-hop", "00112233445566778899aabbccddeeff"),
    ];
    assert_eq!(
        fixture.post("/v1/traces", &other, JSON_TRACES).await.status,
        StatusCode::OK
    );
}

const PREFLIGHT: [(&str, &str); 3] = [
    ("origin", "https://app.example.com"),
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "content-type,x-tenant"),
];

#[tokio::test]
async fn web_pages_may_not_send_by_default() {
    let fixture = Fixture::start();
    let refused = fixture.request(Method::OPTIONS, "/v1/traces", &PREFLIGHT, "").await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(!refused.headers.contains_key("access-control-allow-origin"));
    assert!(refused.protobuf_status().message.contains("cors.allowed_origins"));
    let headers = [("content-type", JSON), ("origin", "https://app.example.com")];
    let answer = fixture.post("/v1/traces", &headers, JSON_TRACES).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn pages_of_allowed_origins_get_their_preflight_without_a_token_and_may_read_answers_and_refusals() {
    let fixture = Fixture::with(|options, _| {
        options.auth = Auth::bearer(["secret"]);
        let cors = &mut options.http.as_mut().unwrap().cors;
        cors.allowed_origins = vec!["https://*.example.com".to_owned()];
        cors.allowed_headers = vec!["X-Tenant".to_owned()];
        cors.max_age = Duration::from_secs(600);
    });
    let answer = fixture.request(Method::OPTIONS, "/v1/traces", &PREFLIGHT, "").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.com");
    assert_eq!(answer.headers["access-control-allow-methods"], "POST");
    assert_eq!(answer.headers["access-control-max-age"], "600");
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap();
    for header in ["content-type", "content-encoding", "authorization", "x-tenant"] {
        assert!(allowed.contains(header), "{header} in {allowed}");
    }

    let origin = ("origin", "https://app.example.com");
    let refused = fixture
        .post("/v1/traces", &[("content-type", JSON), origin], JSON_TRACES)
        .await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        refused.headers["access-control-allow-origin"],
        "https://app.example.com"
    );
    let token = ("authorization", "Bearer secret");
    let answer = fixture
        .post("/v1/traces", &[("content-type", JSON), origin, token], JSON_TRACES)
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.com");
    let foreign = [("content-type", JSON), ("origin", "https://evil.example"), token];
    let answer = fixture.post("/v1/traces", &foreign, JSON_TRACES).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_shutdown_takes_and_answers_requests_that_were_begun() {
    let mut fixture = Fixture::start();
    let body = traces_bytes(1);
    let mut stream = TcpStream::connect(fixture.http).await.unwrap();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-type: {PROTOBUF}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut proceed = [0; 25];
    stream.read_exact(&mut proceed).await.unwrap();
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n", "the request has begun");

    let mut kept = TraceServiceClient::connect(format!("http://{}", fixture.grpc))
        .await
        .unwrap();
    kept.export(traces(2)).await.unwrap();
    fixture.shutdown.cancel();
    while TcpStream::connect(fixture.http).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 200 OK"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    (&mut fixture.serving).await.unwrap();
    assert_eq!(fixture.journalled().len(), 2);
}

#[tokio::test]
async fn a_closed_journal_is_unavailable_and_senders_come_again() {
    let fixture = Fixture::start();
    fixture.journal.close();
    let refused = fixture
        .post("/v1/traces", &[("content-type", PROTOBUF)], traces_bytes(1))
        .await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers.contains_key("retry-after"));
}
