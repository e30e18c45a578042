//! What an answer of a backend means for the request that was sent.
//!
//! | verdict | from | then |
//! |---|---|---|
//! | delivered | any 2xx but a web page, even with a body that cannot be read; gRPC OK | done; what a partial success rejects is counted, never retried |
//! | transient | 408 425 499 502 503 504, no answer, a reset; CANCELLED ABORTED OUT_OF_RANGE UNAVAILABLE DATA_LOSS | retried; set aside when it fails for long while others are taken |
//! | timed out | no answer in time, DEADLINE_EXCEEDED | the same; a joined request in smaller parts |
//! | over quota | 429, RESOURCE_EXHAUSTED | waits, and all others with it |
//! | curable | 3xx 401 402 403 404 405 406 407 410 411 415 421 426 431 501 505 508 511, a web page; UNAUTHENTICATED PERMISSION_DENIED UNIMPLEMENTED | holds the queue, tried at `max_interval`, named |
//! | too large | 413; RESOURCE_EXHAUSTED that speaks of the message's size | split; a single span is refused |
//! | refused | 400 422; INVALID_ARGUMENT | split into what was joined; a single request is set aside |
//! | unclear | everything else: 500, INTERNAL, UNKNOWN, FAILED_PRECONDITION, NOT_FOUND … | retried; refused once the backend takes other requests but not this one |
//!
//! A web page is what the port of a user interface answers to everything, also to what it does not know.
//!
//! OTLP forbids to retry on the codes called unclear here, and the Collector drops the data. Backends send them for
//! faults of their own as well; a program that promises to deliver may not drop on such a word. Who else is served
//! decides: see [`super::lane`].

use std::time::{Duration, SystemTime};

use super::reply;
use super::retry::parse_retry_after;

/// What an answer means for the request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The backend has it.
    Delivered,
    /// It fails now and may succeed later.
    Transient,
    /// No answer came in time.
    TimedOut,
    /// The backend has enough for now.
    OverQuota,
    /// The backend refuses for a reason that its operator, or ours, has to remove.
    Curable,
    /// Too many bytes in one request.
    TooLarge,
    /// The content is not acceptable.
    Refused,
    /// The backend failed and does not say whether the content is the reason.
    Unclear,
}

impl Verdict {
    /// All verdicts, in the order in which they are declared.
    pub const ALL: [Verdict; 8] = [
        Verdict::Delivered,
        Verdict::Transient,
        Verdict::TimedOut,
        Verdict::OverQuota,
        Verdict::Curable,
        Verdict::TooLarge,
        Verdict::Refused,
        Verdict::Unclear,
    ];

    /// The value of the label `result`.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Delivered => "delivered",
            Verdict::Transient => "transient",
            Verdict::TimedOut => "timed_out",
            Verdict::OverQuota => "over_quota",
            Verdict::Curable => "curable",
            Verdict::TooLarge => "too_large",
            Verdict::Refused => "refused",
            Verdict::Unclear => "unclear",
        }
    }
}

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it means.
    pub verdict: Verdict,
    /// What the backend or the network said, in one line.
    pub reason: String,
    /// When the backend wants to be asked again.
    pub retry_after: Option<Duration>,
    /// The key below the exporter whose change may cure it; empty if no key would.
    pub cure: &'static str,
    /// Items that a partial success did not take.
    pub rejected: u64,
}

impl Answer {
    /// An answer without advice, cure or rejected items.
    pub(super) fn new(verdict: Verdict, reason: impl Into<String>) -> Answer {
        Answer {
            verdict,
            reason: reason.into(),
            retry_after: None,
            cure: "",
            rejected: 0,
        }
    }

    /// The backend has enough for now, or says when it wants to be asked again.
    pub(super) fn asks_for_pause(&self) -> bool {
        self.verdict == Verdict::OverQuota || self.retry_after.is_some_and(|wait| !wait.is_zero())
    }

    /// It cannot be the fault of what was sent: the backend has enough for now, or was not reached. A failure with the advice
    /// to come again may well be: there are proxies that give it with every failure.
    pub(super) fn blames_no_content(&self) -> bool {
        let was_reached = self.verdict != Verdict::Transient || self.cure != "endpoint";
        self.verdict == Verdict::OverQuota || !was_reached
    }

    fn with_cure(self, cure: &'static str) -> Answer {
        Answer { cure, ..self }
    }

    /// No answer came in time.
    pub(super) fn timed_out(timeout: Duration) -> Answer {
        Answer::new(Verdict::TimedOut, format!("no answer within {timeout:?}")).with_cure("timeout")
    }

    /// The connection could not be made.
    pub(super) fn unreachable(reason: impl Into<String>) -> Answer {
        Answer::new(Verdict::Transient, reason).with_cure("endpoint")
    }

    /// The connection ended before an answer came.
    pub(super) fn disconnected(reason: impl Into<String>) -> Answer {
        Answer::new(Verdict::Transient, reason)
    }

    /// The TLS handshake failed: only the operator can cure that, here or at the backend.
    pub(super) fn untrusted(reason: impl Into<String>) -> Answer {
        Answer::new(Verdict::Curable, reason).with_cure("tls")
    }
}

/// A complete HTTP answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct HttpAnswer<'a> {
    pub(super) status: u16,
    pub(super) content_type: &'a str,
    pub(super) retry_after: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl HttpAnswer<'_> {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A success with a page for people: it comes from a web server that took nothing. The content type alone says little: it
    /// is what some frameworks give to an `ok`. Pages begin in many ways, but with a tag.
    fn is_web_page(&self) -> bool {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        const HTML: &[u8] = b"text/html";
        let content_type = self.content_type.as_bytes().get(..HTML.len());
        let body = self.body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(self.body);
        self.is_success()
            && content_type.is_some_and(|content_type| content_type.eq_ignore_ascii_case(HTML))
            && body.trim_ascii_start().starts_with(b"<")
    }
}

fn web_page(status: u16) -> Answer {
    let reason = format!("{status}, but with a web page: is `endpoint` that of an OTLP receiver?");
    Answer::new(Verdict::Curable, reason).with_cure("endpoint")
}

/// What an HTTP answer means.
pub(super) fn classify_http(answer: HttpAnswer<'_>, now: SystemTime) -> Answer {
    if answer.is_web_page() {
        return web_page(answer.status);
    }
    if answer.is_success() {
        let partial = reply::partial_success(answer.content_type, answer.body);
        return Answer {
            rejected: partial.rejected,
            ..Answer::new(Verdict::Delivered, partial.message)
        };
    }
    failure(answer, now, http_verdict)
}

/// What an HTTP answer means that came to a gRPC request and has no status of gRPC: who sent it does not speak gRPC.
///
/// As gRPC's table of HTTP statuses has it: 400 is INTERNAL and no word about the content, and what the table does not
/// know, any success too, is UNKNOWN. Where HTTP says more than the table (a quota, a body too large, a redirection) it
/// is heard.
pub(super) fn classify_http_for_grpc(answer: HttpAnswer<'_>, now: SystemTime) -> Answer {
    if answer.is_web_page() {
        return web_page(answer.status);
    }
    failure(answer, now, |status, told| match status {
        200..300 => (Verdict::Unclear, "endpoint"),
        400 | 422 => (Verdict::Unclear, ""),
        _ => http_verdict(status, told),
    })
}

/// An HTTP answer that is no success.
fn failure(
    answer: HttpAnswer<'_>,
    now: SystemTime,
    verdict: impl FnOnce(u16, &reply::Explanation) -> (Verdict, &'static str),
) -> Answer {
    let told = reply::explanation_http(answer.content_type, answer.body);
    let (verdict, cure) = verdict(answer.status, &told);
    let advised = answer
        .retry_after
        .and_then(|value| parse_retry_after(value, now))
        .or(told.retry_delay);
    let name = http::StatusCode::from_u16(answer.status)
        .ok()
        .and_then(|status| status.canonical_reason());
    let reason = describe(
        &format!("{} {}", answer.status, name.unwrap_or_default()),
        &told.message,
    );
    Answer {
        retry_after: advised,
        cure,
        ..Answer::new(verdict, reason)
    }
}

fn http_verdict(status: u16, told: &reply::Explanation) -> (Verdict, &'static str) {
    let message = &told.message;
    match status {
        // A spanledger that is sent its own requests says so. The content is not at fault.
        400 if told.code == FAILED_PRECONDITION => (Verdict::Curable, "endpoint"),
        // A TLS port that is spoken to in plain text answers this to everything.
        400 if message.contains("HTTPS port") || message.contains("HTTP request to an HTTPS server") => {
            (Verdict::Curable, "endpoint")
        }
        408 | 425 | 499 | 502 | 503 | 504 => (Verdict::Transient, ""),
        429 => (Verdict::OverQuota, ""),
        401 | 402 | 403 | 407 | 431 | 511 => (Verdict::Curable, "headers"),
        415 => (Verdict::Curable, "compression"),
        300..400 | 404 | 405 | 406 | 410 | 411 | 421 | 426 | 501 | 505 | 508 => (Verdict::Curable, "endpoint"),
        413 => (Verdict::TooLarge, "max_request_size"),
        400 | 422 => (Verdict::Refused, ""),
        _ => (Verdict::Unclear, ""),
    }
}

/// A gRPC status, from the trailers or, when there is no message, from the headers.
#[derive(Debug, Clone, Copy)]
pub(super) struct GrpcAnswer<'a> {
    pub(super) code: u16,
    /// `grpc-message`, still percent-encoded.
    pub(super) message: &'a str,
    /// `grpc-status-details-bin`.
    pub(super) details: Option<&'a str>,
    /// The response message without its prefix; empty if there is none.
    pub(super) body: &'a [u8],
}

const FAILED_PRECONDITION: i64 = 9;

const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What a gRPC answer means.
pub(super) fn classify_grpc(answer: GrpcAnswer<'_>) -> Answer {
    let code = GRPC_CODES.get(usize::from(answer.code)).copied().unwrap_or("UNKNOWN");
    if code == "OK" {
        let partial = reply::partial_success("", answer.body);
        return Answer {
            rejected: partial.rejected,
            ..Answer::new(Verdict::Delivered, partial.message)
        };
    }
    let advised = answer
        .details
        .and_then(reply::explanation_grpc_details)
        .and_then(|told| told.retry_delay);
    let message = reply::grpc_message(answer.message);
    let (verdict, cure) = grpc_verdict(code, &message, advised.is_some());
    Answer {
        retry_after: advised,
        cure,
        ..Answer::new(verdict, describe(code, &message))
    }
}

fn grpc_verdict(code: &str, message: &str, advised: bool) -> (Verdict, &'static str) {
    match code {
        // "grpc: received message larger than max (… vs. 4194304)" and its kin: waiting would not help. tonic says
        // OUT_OF_RANGE to a message over its limit.
        "RESOURCE_EXHAUSTED" | "OUT_OF_RANGE" if !advised && speaks_of_size(message) => {
            (Verdict::TooLarge, "max_request_size")
        }
        "RESOURCE_EXHAUSTED" => (Verdict::OverQuota, ""),
        "CANCELLED" | "ABORTED" | "OUT_OF_RANGE" | "UNAVAILABLE" | "DATA_LOSS" => (Verdict::Transient, ""),
        "DEADLINE_EXCEEDED" => (Verdict::TimedOut, "timeout"),
        // grpc-go refuses an encoding it does not know with UNIMPLEMENTED.
        "UNIMPLEMENTED" if message.contains("ompress") => (Verdict::Curable, "compression"),
        "UNIMPLEMENTED" => (Verdict::Curable, "endpoint"),
        // A spanledger says so to its own requests, and some backends to what they cannot digest.
        "NOT_FOUND" | "FAILED_PRECONDITION" => (Verdict::Unclear, "endpoint"),
        "UNAUTHENTICATED" | "PERMISSION_DENIED" => (Verdict::Curable, "headers"),
        "INVALID_ARGUMENT" => (Verdict::Refused, ""),
        _ => (Verdict::Unclear, ""),
    }
}

fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "larger than max",
        "too large",
        "too big",
        "exceeds maximum",
        "size limit",
        "message length",
    ]
    .iter()
    .any(|words| message.contains(words))
}

fn describe(status: &str, message: &str) -> String {
    let status = status.trim_end();
    if message.is_empty() {
        status.to_owned()
    } else {
        format!("{status}: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: u16, body: &[u8]) -> Answer {
        let answer = HttpAnswer {
            status,
            content_type: "text/plain",
            retry_after: None,
            body,
        };
        classify_http(answer, SystemTime::UNIX_EPOCH)
    }

    fn grpc(code: u16, message: &str) -> Answer {
        classify_grpc(GrpcAnswer {
            code,
            message,
            details: None,
            body: b"",
        })
    }

    #[test]
    fn every_verdict_stands_where_its_number_says() {
        assert_eq!(Verdict::ALL.map(|verdict| verdict as usize), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn every_2xx_is_delivered_whatever_its_body() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(http(status, b"\xff\x00garbage").verdict, Verdict::Delivered);
        }
    }

    #[test]
    fn a_web_page_is_no_receiver_and_delivers_nothing() {
        for content_type in ["text/html", "text/html; charset=utf-8", "Text/HTML"] {
            let answer = HttpAnswer {
                status: 200,
                content_type,
                retry_after: None,
                body: b"<!doctype html><title>SigNoz</title>",
            };
            for answer in [
                classify_http(answer, SystemTime::UNIX_EPOCH),
                classify_http_for_grpc(answer, SystemTime::UNIX_EPOCH),
            ] {
                assert_eq!((answer.verdict, answer.cure), (Verdict::Curable, "endpoint"));
                assert!(answer.reason.contains("web page"), "{}", answer.reason);
            }
            for body in [b"\n <!-- login --><html>".as_slice(), b"\xef\xbb\xbf<head>"] {
                let page = classify_http(HttpAnswer { body, ..answer }, SystemTime::UNIX_EPOCH);
                assert_eq!(page.verdict, Verdict::Curable);
            }
            let accepted = HttpAnswer { body: b"ok", ..answer };
            let accepted = classify_http(accepted, SystemTime::UNIX_EPOCH);
            assert_eq!(accepted.verdict, Verdict::Delivered, "as some frameworks answer");
        }
    }

    #[test]
    fn every_http_status_that_comes_without_one_of_grpc_has_its_verdict() {
        let expect = |verdict, cure, statuses: &[u16]| {
            for &status in statuses {
                let answer = HttpAnswer {
                    status,
                    content_type: "text/plain",
                    retry_after: None,
                    body: b"",
                };
                let answer = classify_http_for_grpc(answer, SystemTime::UNIX_EPOCH);
                assert_eq!((answer.verdict, answer.cure), (verdict, cure), "{status}");
            }
        };
        expect(Verdict::Unclear, "endpoint", &[200, 201, 202, 204, 299]);
        expect(Verdict::Unclear, "", &[400, 422, 409, 500, 599]);
        expect(Verdict::Curable, "headers", &[401, 403]);
        expect(Verdict::Curable, "endpoint", &[301, 404, 405]);
        expect(Verdict::OverQuota, "", &[429]);
        expect(Verdict::Transient, "", &[502, 503, 504]);
        expect(Verdict::TooLarge, "max_request_size", &[413]);
    }

    #[test]
    fn partial_success_is_delivered_with_the_number_of_rejected_items() {
        let body = [0x0a, 0x08, 0x08, 0x03, 0x12, 0x04, b'l', b'a', b't', b'e'];
        let answer = HttpAnswer {
            status: 200,
            content_type: "application/x-protobuf",
            retry_after: None,
            body: &body,
        };
        let http = classify_http(answer, SystemTime::UNIX_EPOCH);
        let grpc = classify_grpc(GrpcAnswer {
            code: 0,
            message: "",
            details: None,
            body: &body,
        });
        for answer in [http, grpc] {
            assert_eq!(
                (answer.verdict, answer.rejected, answer.reason.as_str()),
                (Verdict::Delivered, 3, "late")
            );
        }
    }

    #[test]
    fn every_http_status_has_its_verdict() {
        let expect = |verdict, statuses: &[u16]| {
            for &status in statuses {
                assert_eq!(http(status, b"").verdict, verdict, "{status}");
            }
        };
        expect(Verdict::Transient, &[408, 425, 499, 502, 503, 504]);
        expect(Verdict::OverQuota, &[429]);
        expect(
            Verdict::Curable,
            &[301, 302, 307, 308, 401, 402, 403, 404, 405, 406, 410, 415, 501, 508],
        );
        expect(Verdict::TooLarge, &[413]);
        expect(Verdict::Refused, &[400, 422]);
        expect(Verdict::Unclear, &[409, 418, 500, 507, 599, 999, 100]);
    }

    #[test]
    fn every_grpc_code_has_its_verdict() {
        let expect = |verdict, codes: &[u16]| {
            for &code in codes {
                assert_eq!(grpc(code, "").verdict, verdict, "{code}");
            }
        };
        expect(Verdict::Delivered, &[0]);
        expect(Verdict::Transient, &[1, 10, 11, 14, 15]);
        expect(Verdict::TimedOut, &[4]);
        expect(Verdict::OverQuota, &[8]);
        expect(Verdict::Curable, &[7, 12, 16]);
        expect(Verdict::Refused, &[3]);
        expect(Verdict::Unclear, &[2, 5, 6, 9, 13, 17, 4711]);
    }

    #[test]
    fn a_message_over_the_limit_of_a_grpc_server_is_too_large_and_not_over_quota() {
        for message in [
            "grpc: received message larger than max (5000000 vs. 4194304)",
            "grpc: received message after decompression larger than max 4194304",
            "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes",
        ] {
            assert_eq!(grpc(8, message).verdict, Verdict::TooLarge, "{message}");
            assert_eq!(grpc(11, message).verdict, Verdict::TooLarge, "{message}");
        }
        assert_eq!(grpc(8, "ingestion quota used up").verdict, Verdict::OverQuota);
    }

    #[test]
    fn the_key_that_may_cure_is_named() {
        assert_eq!(http(401, b"").cure, "headers");
        assert_eq!(http(404, b"").cure, "endpoint");
        assert_eq!(http(415, b"").cure, "compression");
        assert_eq!(
            http(400, b"Client sent an HTTP request to an HTTPS server.\n").cure,
            "endpoint"
        );
        assert_eq!(grpc(16, "").cure, "headers");
        assert_eq!(grpc(9, "").cure, "endpoint");
        assert_eq!(
            grpc(12, "grpc: Decompressor is not installed for grpc-encoding \"zstd\"").cure,
            "compression"
        );
    }

    #[test]
    fn a_request_that_came_back_to_its_sender_is_not_the_fault_of_its_content() {
        let body = br#"{"code":9,"message":"this request was forwarded by this very process"}"#;
        let answer = HttpAnswer {
            status: 400,
            content_type: "application/json",
            retry_after: None,
            body,
        };
        let answer = classify_http(answer, SystemTime::UNIX_EPOCH);
        assert_eq!((answer.verdict, answer.cure), (Verdict::Curable, "endpoint"));
    }

    #[test]
    fn retry_after_comes_before_retry_info_and_the_reason_is_one_line() {
        let answer = HttpAnswer {
            status: 503,
            content_type: "text/plain",
            retry_after: Some("7"),
            body: b"over\nload",
        };
        let answer = classify_http(answer, SystemTime::UNIX_EPOCH);
        assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(answer.reason, "503 Service Unavailable: over load");
    }
}
