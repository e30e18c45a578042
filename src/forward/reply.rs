//! What is written in the body of an answer: `google.rpc.Status` and partial success, in protobuf or JSON.
//!
//! Everything here is lenient: an answer that cannot be read is an answer without details, never an error. What
//! counts is decided by the status code, in [`super::answer`].

use std::time::Duration;

use base64::Engine;
use prost::Message;

/// How much of a backend's message is shown in logs and health reports.
const SHOWN: usize = 240;

/// What a backend says about a failure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Explanation {
    /// For humans; one line without control characters; may be empty.
    pub(super) message: String,
    /// `RetryInfo.retry_delay`.
    pub(super) retry_delay: Option<Duration>,
    /// The gRPC code in a `google.rpc.Status`; 0 if there is none.
    pub(super) code: i64,
}

/// What a backend says about a success.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Partial {
    /// Spans, data points or log records that the backend did not take.
    pub(super) rejected: u64,
    /// Why, or a warning although nothing was rejected.
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<ProtoDuration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The responses of all signals have this shape: the names differ, the field numbers do not.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    message: String,
}

const RETRY_INFO: &str = "google.rpc.RetryInfo";

/// Reads the body of a failed HTTP answer by its content type.
pub(super) fn explanation_http(content_type: &str, body: &[u8]) -> Explanation {
    if content_type.starts_with("application/json") {
        explanation_json(body).unwrap_or_else(|| explanation_text(body))
    } else if content_type.starts_with("application/x-protobuf") || content_type.starts_with("application/octet") {
        explanation_protobuf(body).unwrap_or_default()
    } else {
        explanation_text(body)
    }
}

/// Reads a `google.rpc.Status` in protobuf. `None` if it is not one.
pub(super) fn explanation_protobuf(body: &[u8]) -> Option<Explanation> {
    let status = RpcStatus::decode(body).ok()?;
    let retry_delay = status
        .details
        .iter()
        .filter(|detail| detail.type_url.ends_with(RETRY_INFO))
        .find_map(|detail| RetryInfo::decode(detail.value.as_slice()).ok()?.retry_delay)
        .and_then(|delay| {
            let whole = Duration::from_secs(u64::try_from(delay.seconds).ok()?);
            whole.checked_add(Duration::from_nanos(u64::try_from(delay.nanos).ok()?))
        });
    Some(Explanation {
        message: one_line(&status.message),
        retry_delay,
        code: status.code.into(),
    })
}

/// Reads `grpc-status-details-bin`: base64, with or without padding, of a `google.rpc.Status`.
pub(super) fn explanation_grpc_details(header: &str) -> Option<Explanation> {
    let unpadded = header.trim().trim_end_matches('=');
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(unpadded).ok()?;
    explanation_protobuf(&bytes)
}

fn explanation_json(body: &[u8]) -> Option<Explanation> {
    let status: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = status.get("message").or_else(|| status.get("error"))?.as_str()?;
    let retry_delay = status
        .get("details")
        .and_then(|details| details.as_array())
        .into_iter()
        .flatten()
        .filter(|detail| {
            detail
                .get("@type")
                .and_then(|kind| kind.as_str())
                .is_some_and(|k| k.ends_with(RETRY_INFO))
        })
        .find_map(|detail| {
            detail
                .get("retryDelay")?
                .as_str()?
                .strip_suffix('s')?
                .parse::<f64>()
                .ok()
        })
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let code = status.get("code").and_then(serde_json::Value::as_i64).unwrap_or(0);
    Some(Explanation {
        message: one_line(message),
        retry_delay,
        code,
    })
}

fn explanation_text(body: &[u8]) -> Explanation {
    let shown = &body[..body.len().min(4 * SHOWN)];
    Explanation {
        message: one_line(&String::from_utf8_lossy(shown)),
        ..Explanation::default()
    }
}

/// Reads an `Export…ServiceResponse`. A body that cannot be read is a full success: the data has arrived.
pub(super) fn partial_success(content_type: &str, body: &[u8]) -> Partial {
    if content_type.starts_with("application/json") {
        return partial_json(body).unwrap_or_default();
    }
    let partial = ExportResponse::decode(body)
        .ok()
        .and_then(|response| response.partial_success);
    let Some(partial) = partial else {
        return Partial::default();
    };
    Partial {
        rejected: u64::try_from(partial.rejected).unwrap_or(0),
        message: one_line(&partial.message),
    }
}

fn partial_json(body: &[u8]) -> Option<Partial> {
    let response: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = response.get("partialSuccess")?.as_object()?;
    let rejected = partial
        .iter()
        .filter(|(key, _)| key.starts_with("rejected"))
        .find_map(|(_, count)| count.as_u64().or_else(|| count.as_str()?.parse().ok()))
        .unwrap_or(0);
    let message = partial
        .get("errorMessage")
        .and_then(|message| message.as_str())
        .unwrap_or_default();
    Some(Partial {
        rejected,
        message: one_line(message),
    })
}

/// Percent-decodes `grpc-message`.
pub(super) fn grpc_message(header: &str) -> String {
    one_line(&String::from_utf8_lossy(&percent_decode(header.as_bytes())))
}

/// Replaces `%41` by `A`; what is not a valid escape stays as it is.
pub(super) fn percent_decode(text: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(first);
            rest = tail;
        }
    }
    decoded
}

/// A backend's words made fit for one line of a log: no control characters, white space folded, cut at [`SHOWN`].
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > SHOWN {
            line.truncate((0..=SHOWN).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0));
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_with_retry_info() -> Vec<u8> {
        let delay = ProtoDuration {
            seconds: 2,
            nanos: 500_000_000,
        };
        let info = RetryInfo {
            retry_delay: Some(delay),
        }
        .encode_to_vec();
        let any = Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: info,
        };
        RpcStatus {
            code: 14,
            message: "try\nlater".into(),
            details: vec![any],
        }
        .encode_to_vec()
    }

    #[test]
    fn the_delay_of_retry_info_is_read_from_protobuf_and_from_json() {
        let expected = Explanation {
            message: "try later".into(),
            retry_delay: Some(Duration::from_millis(2500)),
            code: 14,
        };
        assert_eq!(
            explanation_http("application/x-protobuf", &status_with_retry_info()),
            expected
        );
        let json = br#"{"code":14,"message":"try later","details":[
            {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"2.5s"}]}"#;
        assert_eq!(explanation_http("application/json; charset=utf-8", json), expected);
        let header = base64::engine::general_purpose::STANDARD.encode(status_with_retry_info());
        assert_eq!(explanation_grpc_details(&header), Some(expected.clone()));
        assert_eq!(explanation_grpc_details(header.trim_end_matches('=')), Some(expected));
    }

    #[test]
    fn negative_and_absurd_delays_are_no_advice() {
        for (seconds, nanos) in [(-1, 0), (1, -1), (i64::MIN, i32::MIN)] {
            let info = RetryInfo {
                retry_delay: Some(ProtoDuration { seconds, nanos }),
            }
            .encode_to_vec();
            let any = Any {
                type_url: RETRY_INFO.into(),
                value: info,
            };
            let body = RpcStatus {
                details: vec![any],
                ..Default::default()
            }
            .encode_to_vec();
            assert_eq!(explanation_protobuf(&body).unwrap().retry_delay, None);
        }
    }

    #[test]
    fn a_text_or_garbage_body_never_harms() {
        let html = explanation_http("text/html", b"<h1>502</h1>\r\n\r\n<p>Bad\x07Gateway</p>");
        assert_eq!(html.message, "<h1>502</h1> <p>Bad Gateway</p>");
        assert_eq!(
            explanation_http("application/x-protobuf", b"\xff\xff\xff"),
            Explanation::default()
        );
        assert_eq!(explanation_http("application/json", b"{oops").message, "{oops");
        let long = explanation_http("text/plain", "ä".repeat(10_000).as_bytes());
        assert!(long.message.len() < SHOWN + 8);
    }

    #[test]
    fn no_answer_makes_it_panic() {
        for seed in 0..5000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut body = status_with_retry_info();
            for _ in 0..random.usize(..8) {
                let at = random.usize(..body.len());
                body[at] = random.u8(..);
            }
            body.truncate(random.usize(..=body.len()));
            for content_type in ["application/json", "application/x-protobuf", "text/plain"] {
                drop(explanation_http(content_type, &body));
                drop(partial_success(content_type, &body));
            }
            let text = String::from_utf8_lossy(&body);
            drop(explanation_grpc_details(&text));
            drop(grpc_message(&text));
            super::super::parse_retry_after(&text, std::time::SystemTime::now());
        }
    }

    #[test]
    fn partial_success_is_read_in_both_encodings_and_garbage_is_a_full_success() {
        let partial = PartialSuccess {
            rejected: 3,
            message: "too old".into(),
        };
        let body = ExportResponse {
            partial_success: Some(partial),
        }
        .encode_to_vec();
        let expected = Partial {
            rejected: 3,
            message: "too old".into(),
        };
        assert_eq!(partial_success("application/x-protobuf", &body), expected);
        let json = br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}"#;
        assert_eq!(partial_success("application/json", json), expected);
        for (content_type, body) in [
            ("application/x-protobuf", &b"\xff\xfe"[..]),
            ("application/json", b"ok"),
            ("", b""),
        ] {
            assert_eq!(partial_success(content_type, body), Partial::default());
        }
    }

    #[test]
    fn grpc_messages_are_percent_decoded() {
        assert_eq!(grpc_message("quota%20exceeded%3A 100%"), "quota exceeded: 100%");
        assert_eq!(percent_decode(b"%e2%82%ac%zz%4"), b"\xe2\x82\xac%zz%4");
    }
}
