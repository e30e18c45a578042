//! What is refused, how, and whether senders are to come again.

use bytes::Bytes;
use http::Method;
use prost::Message;
use spanledger::otlp::{Encoding, compress};

use crate::fixture::*;
use crate::requirements;
use crate::target::*;

/// The limit that the specification recommends.
const LIMIT: usize = 64 << 20;

requirements! {
    sizes_are_limited: "Request Size Limit", "MUST",
        "more than 64 MiB is refused: RESOURCE_EXHAUSTED without RetryInfo, or 413" => sizes;
    sizes_are_limited_after_decompression: "Request Size Limit", "MUST",
        "so is what grows beyond 64 MiB by decompression" => bombs;
    undecodable_is_a_bad_request: "Bad Data", "MUST",
        "data that cannot be decoded is INVALID_ARGUMENT, or 400" => undecodable;
    undecodable_says_what: "Bad Data", "SHOULD",
        "the refusal of such data carries `BadRequest`" => bad_request;
    broken_compression_is_a_bad_request: "Bad Data", "MUST",
        "a broken compressed stream is INVALID_ARGUMENT, or 400" => broken_gzip;
    every_error_has_a_status: "Failures", "MUST",
        "the body of every 4xx and 5xx is a `Status` in the content type of the request" => statuses;
    what_is_not_http_has_a_status: "Failures", "MUST",
        "so is that of a request that is no valid HTTP/1.1: its line, a field, or its length" => unreadable;
    unknown_content_types: "OTLP/HTTP Response", "MUST",
        "an unknown content type is refused by a 4xx" => unknown_type;
    unknown_content_encodings: "–", "MUST",
        "an unknown compression is UNIMPLEMENTED, or a 4xx" => unknown_encoding;
    repeated_content_encodings: "–", "MUST",
        "a body compressed twice over is refused by a 4xx" => repeated_encoding;
    only_post_is_taken: "OTLP/HTTP Response", "MUST",
        "methods other than POST are refused by 405" => methods;
    unknown_methods: "gRPC", "MUST",
        "an unknown method is UNIMPLEMENTED" => unknown_method;
    pages_are_not_let_in_by_default: "–", "SHOULD",
        "a preflight of a web page that is not allowed gets no permission" => preflight;
}

async fn sizes(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        refused_for_size(
            protocol,
            &target.send(protocol, Encoding::Identity, &vec![b' '; LIMIT + 1]).await,
        )
    })
    .await
}

async fn bombs(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        refused_for_size(
            protocol,
            &target.send(protocol, Encoding::Gzip, &vec![b' '; LIMIT + 1]).await,
        )
    })
    .await
}

fn refused_for_size(protocol: Protocol, answer: &Answer) -> Outcome {
    let expected = if protocol == Protocol::Grpc { 8 } else { 413 };
    match meaning(protocol, answer) {
        Meaning::Refused { code, status } => all([
            expect("the code", code, expected),
            expect(
                "the retry",
                status.is_ok_and(|it| it.detail_types().contains(&"RetryInfo")),
                false,
            ),
        ]),
        other => Outcome::Deviates(format!("it is {other:?}")),
    }
}

/// Something that is neither protobuf nor JSON.
const NONSENSE: &[u8] = b"\xff\xff\xff";

async fn undecodable(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        refused_as_bad(protocol, target.ask(protocol, NONSENSE).await)
    })
    .await
}

async fn broken_gzip(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let gzip = compress(Encoding::Gzip, &protocol.encode(&traces(1)));
        let broken = gzip.slice(..gzip.len() / 2);
        let answer = match protocol {
            Protocol::Grpc => {
                let headers = [("grpc-encoding", "gzip")];
                target
                    .call(target.grpc_address(), GRPC_TRACES, &headers, framed(1, &broken))
                    .await
            }
            _ => {
                let headers = [("content-encoding", "gzip")];
                target
                    .http(protocol, Method::POST, "/v1/traces", &headers, broken)
                    .await
            }
        };
        refused_as_bad(protocol, meaning(protocol, &answer))
    })
    .await
}

fn refused_as_bad(protocol: Protocol, found: Meaning) -> Outcome {
    let expected = if protocol == Protocol::Grpc { 3 } else { 400 };
    match found {
        Meaning::Refused { code, .. } => expect("the code", code, expected),
        other => Outcome::Deviates(format!("it is {other:?}")),
    }
}

async fn bad_request(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        match target.ask(protocol, NONSENSE).await {
            Meaning::Refused { status: Ok(status), .. } => {
                expect("the details", status.detail_types().contains(&"BadRequest"), true)
            }
            other => Outcome::Deviates(format!("it is {other:?}")),
        }
    })
    .await
}

async fn statuses(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let body = Bytes::from_static(NONSENSE);
        let mut outcomes = Vec::new();
        for (method, path, headers) in [
            (Method::POST, "/v1/traces", &[][..]),
            (Method::POST, "/v1/nothing", &[]),
            (Method::PUT, "/v1/traces", &[]),
            (Method::POST, "/v1/traces", &[("content-encoding", "unknown")]),
            (Method::POST, "/v1/traces", &[("content-encoding", "gzip")]),
        ] {
            let answer = target.http(protocol, method.clone(), path, headers, body.clone()).await;
            outcomes.push(has_status(protocol, &answer, &format!("{method} {path} {headers:?}")));
        }
        all(outcomes)
    })
    .await
}

/// Whether the answer to `request` is a status that says something, in the form of the protocol.
fn has_status(protocol: Protocol, answer: &Answer, request: &str) -> Outcome {
    let case = format!("the status of {} for {request}", answer.status);
    match http_status(protocol, answer) {
        Ok(status) => expect(&case, status.message.is_empty(), false),
        Err(problem) => Outcome::Deviates(format!("{case}: {problem}")),
    }
}

async fn unreadable(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let mut outcomes = Vec::new();
        for (line, field) in [
            ("POST /v1/traces HTTP/7.3", "x: y"),
            ("PO ST /v1/traces HTTP/1.1", "x: y"),
            ("POST /v1/traces HTTP/1.1", "no field"),
            ("POST /v1/traces HTTP/1.1", "content-length: -1"),
            ("POST /v1/traces HTTP/1.0", "transfer-encoding: chunked"),
        ] {
            let content_type = protocol.content_type();
            let request =
                format!("{line}\r\nhost: a\r\nconnection: close\r\ncontent-type: {content_type}\r\n{field}\r\n\r\n");
            let answer = send_raw(target.http_address(), request.as_bytes()).await;
            outcomes.push(has_status(protocol, &answer, &format!("{line}, {field}")));
        }
        all(outcomes)
    })
    .await
}

async fn unknown_type(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        use hyper_util::client::legacy::Client;
        use hyper_util::rt::TokioExecutor;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let headers = [("content-type", "text/plain")];
        let body = protocol.encode(&traces(1));
        let answer = send(
            client,
            request(Method::POST, target.http_address(), "/v1/traces", &headers, body),
        )
        .await;
        expect("the status", answer.status.as_u16(), 415)
    })
    .await
}

async fn unknown_encoding(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let body = Bytes::from(traces(1).encode_to_vec());
        if protocol == Protocol::Grpc {
            let headers = [("grpc-encoding", "unknown")];
            let answer = target
                .call(target.grpc_address(), GRPC_TRACES, &headers, framed(1, &body))
                .await;
            return expect("grpc-status", answer.grpc_status().to_owned(), "12".to_owned());
        }
        let headers = [("content-encoding", "unknown")];
        let answer = target.http(protocol, Method::POST, "/v1/traces", &headers, body).await;
        expect("a 4xx", answer.status.is_client_error(), true)
    })
    .await
}

async fn repeated_encoding(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let once = compress(Encoding::Gzip, &protocol.encode(&traces(1)));
        let twice = compress(Encoding::Gzip, &once);
        let mut outcomes = Vec::new();
        for headers in [
            &[("content-encoding", "gzip, gzip")][..],
            &[("content-encoding", "gzip"), ("content-encoding", "gzip")],
        ] {
            let answer = target
                .http(protocol, Method::POST, "/v1/traces", headers, twice.clone())
                .await;
            outcomes.push(expect("a 4xx", answer.status.is_client_error(), true));
        }
        all(outcomes)
    })
    .await
}

async fn methods(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let mut outcomes = Vec::new();
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
            let answer = target
                .http(protocol, method.clone(), "/v1/traces", &[], Bytes::new())
                .await;
            outcomes.push(expect(method.as_str(), answer.status.as_u16(), 405));
        }
        all(outcomes)
    })
    .await
}

async fn unknown_method(target: &Target) -> Outcomes {
    over(&[Protocol::Grpc], |_| async move {
        let answer = target
            .call(target.grpc_address(), "/a.Service/Method", &[], framed(0, b""))
            .await;
        expect("grpc-status", answer.grpc_status().to_owned(), "12".to_owned())
    })
    .await
}

async fn preflight(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let headers = [
            ("origin", "https://other.example"),
            ("access-control-request-method", "POST"),
        ];
        let answer = target
            .http(protocol, Method::OPTIONS, "/v1/traces", &headers, Bytes::new())
            .await;
        expect(
            "a permission",
            answer.headers.contains_key("access-control-allow-origin"),
            false,
        )
    })
    .await
}
