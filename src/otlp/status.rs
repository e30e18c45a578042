//! The bodies of answers: `google.rpc.Status` for refusals, `Export*ServiceResponse` for the rest, in protobuf and JSON.
//!
//! OTLP 1.11, "Failures" of OTLP/gRPC and OTLP/HTTP: every 4xx and 5xx carries a `Status`; a request to come again later
//! carries `RetryInfo`; data that cannot be decoded is answered with `BadRequest`. A success without partial success is
//! the empty message. Senders limit what they read of an answer, so texts are cut to [`LONGEST_TEXT`].

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Signal;
use super::wire::{self, Pending, put_bytes, put_varint};

/// Longer texts are cut, so that an answer is always small.
pub const LONGEST_TEXT: usize = 4096;

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// The status codes of gRPC (`google.rpc.Code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Success.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// No better code is known.
    Unknown = 2,
    /// The request is wrong, and will be when it is sent again.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// It exists already.
    AlreadyExists = 6,
    /// The caller is known and may not do that.
    PermissionDenied = 7,
    /// Too much: for good if no retry is offered (too large), for now if one is (quota).
    ResourceExhausted = 8,
    /// The state of the system forbids it.
    FailedPrecondition = 9,
    /// Given up for a concurrent operation.
    Aborted = 10,
    /// Beyond the valid range.
    OutOfRange = 11,
    /// There is no such method, or no such encoding.
    Unimplemented = 12,
    /// A bug or a broken invariant.
    Internal = 13,
    /// Cannot be served now; come again.
    Unavailable = 14,
    /// Data was lost.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// The code with a number; numbers without one are `Unknown`, as gRPC prescribes.
    pub const fn from_number(number: i32) -> Code {
        match number {
            0 => Code::Ok,
            1 => Code::Cancelled,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            6 => Code::AlreadyExists,
            7 => Code::PermissionDenied,
            8 => Code::ResourceExhausted,
            9 => Code::FailedPrecondition,
            10 => Code::Aborted,
            11 => Code::OutOfRange,
            12 => Code::Unimplemented,
            13 => Code::Internal,
            14 => Code::Unavailable,
            15 => Code::DataLoss,
            16 => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }

    /// The name in `SCREAMING_SNAKE_CASE`, as people search for it.
    pub const fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What kind of refusal it is; decides whether senders come again.
    pub code: Code,
    /// For people, in English.
    pub message: String,
    /// When to come again.
    pub retry_after: Option<Duration>,
    /// Which field of the request is wrong.
    pub field_violation: Option<String>,
}

impl Rejection {
    /// A refusal without details.
    pub fn new(code: Code, message: impl Into<String>) -> Rejection {
        Rejection {
            code,
            message: message.into(),
            retry_after: None,
            field_violation: None,
        }
    }

    /// With the time after which the sender should come again.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Rejection {
        Rejection {
            retry_after: Some(delay),
            ..self
        }
    }

    /// With the field that is wrong.
    #[must_use]
    pub fn field_violation(self, field: impl Into<String>) -> Rejection {
        Rejection {
            field_violation: Some(field.into()),
            ..self
        }
    }

    /// The status of an HTTP answer. Only 429, 502, 503 and 504 make OTLP/HTTP senders come again, so the retryable codes
    /// of gRPC become 503 and `RESOURCE_EXHAUSTED` is 429 only with a time to come again, else 413.
    pub const fn http_status(&self) -> u16 {
        match self.code {
            Code::Ok => 200,
            Code::InvalidArgument | Code::FailedPrecondition => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound | Code::Unimplemented => 404,
            Code::AlreadyExists => 409,
            Code::ResourceExhausted if self.retry_after.is_some() => 429,
            Code::ResourceExhausted => 413,
            Code::Unknown | Code::Internal => 500,
            Code::Unavailable | Code::Cancelled | Code::Aborted | Code::OutOfRange | Code::DataLoss => 503,
            Code::DeadlineExceeded => 504,
        }
    }

    /// The value of a `retry-after` header: whole seconds, never 0, which would invite senders to come at once.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let delay = self.retry_after?;
        Some((delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1))
    }

    /// `google.rpc.Status` in protobuf: the body for `application/x-protobuf`, and the `grpc-status-details-bin` trailer.
    pub fn to_protobuf(&self) -> Bytes {
        let mut out = Vec::with_capacity(128 + self.message.len().min(LONGEST_TEXT));
        put_number(&mut out, 1, self.code as u64);
        put_text(&mut out, 2, &self.message);
        if let Some(delay) = self.retry_after {
            put_detail(&mut out, RETRY_INFO, |out| {
                let duration = Pending::begin(out, 1, 1);
                put_number(out, 1, delay.as_secs());
                put_number(out, 2, u64::from(delay.subsec_nanos()));
                duration.finish(out);
            });
        }
        if let Some(field) = &self.field_violation {
            put_detail(&mut out, BAD_REQUEST, |out| {
                let violation = Pending::begin(out, 1, 2);
                put_text(out, 1, field);
                put_text(out, 2, &self.message);
                violation.finish(out);
            });
        }
        Bytes::from(out)
    }

    /// `google.rpc.Status` in the JSON mapping of protobuf: the body for `application/json`.
    pub fn to_json(&self) -> Bytes {
        let mut status = json!({"code": self.code as u8, "message": cut(&self.message)});
        let mut details: Vec<Value> = Vec::new();
        if let Some(delay) = self.retry_after {
            details.push(json!({"@type": RETRY_INFO, "retryDelay": duration_in_json(delay)}));
        }
        if let Some(field) = &self.field_violation {
            let violation = json!({"field": cut(field), "description": cut(&self.message)});
            details.push(json!({"@type": BAD_REQUEST, "fieldViolations": [violation]}));
        }
        if !details.is_empty() {
            status["details"] = Value::Array(details);
        }
        Bytes::from(status.to_string())
    }
}

/// The protobuf answer to an accepted request. `rejected` items were cut out of it; a `message` without rejected items is
/// a warning. Neither: the empty message, which is how full success is said.
pub fn success_protobuf(_signal: Signal, rejected: u32, message: &str) -> Bytes {
    if rejected == 0 && message.is_empty() {
        return Bytes::new();
    }
    // The three responses differ in their names only: partial_success = 1 { rejected_* = 1, error_message = 2 }.
    let mut out = Vec::with_capacity(16 + message.len());
    let partial_success = Pending::begin(&mut out, 1, 1);
    put_number(&mut out, 1, u64::from(rejected));
    put_text(&mut out, 2, message);
    partial_success.finish(&mut out);
    Bytes::from(out)
}

/// The JSON answer to an accepted request; see [`success_protobuf`].
pub fn success_json(signal: Signal, rejected: u32, message: &str) -> Bytes {
    if rejected == 0 && message.is_empty() {
        return Bytes::from_static(b"{}");
    }
    let name = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Metrics => "rejectedDataPoints",
        Signal::Logs => "rejectedLogRecords",
    };
    // 64-bit integers are strings in the JSON mapping of protobuf.
    let partial_success = json!({name: rejected.to_string(), "errorMessage": cut(message)});
    Bytes::from(json!({"partialSuccess": partial_success}).to_string())
}

/// proto3 leaves zeros out.
fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(wire::varint(number)));
        put_varint(out, value);
    }
}

fn put_text(out: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(out, number, cut(text).as_bytes());
    }
}

/// `Status.details`: a `google.protobuf.Any` whose value is written by `contents`.
fn put_detail(out: &mut Vec<u8>, type_url: &str, contents: impl FnOnce(&mut Vec<u8>)) {
    let detail = Pending::begin(out, 3, 2);
    put_bytes(out, 1, type_url.as_bytes());
    let value = Pending::begin(out, 2, 1);
    contents(out);
    value.finish(out);
    detail.finish(out);
}

/// Seconds with as many decimals as are needed out of 0, 3, 6 and 9.
fn duration_in_json(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match nanos {
        0 => format!("{seconds}s"),
        _ if nanos % 1_000_000 == 0 => format!("{seconds}.{:03}s", nanos / 1_000_000),
        _ if nanos % 1_000 == 0 => format!("{seconds}.{:06}s", nanos / 1_000),
        _ => format!("{seconds}.{nanos:09}s"),
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_TEXT)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// `google/rpc/status.proto` and `error_details.proto`, as far as they are used.
    mod google {
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Status {
            #[prost(int32, tag = "1")]
            pub(super) code: i32,
            #[prost(string, tag = "2")]
            pub(super) message: String,
            #[prost(message, repeated, tag = "3")]
            pub(super) details: Vec<Any>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Any {
            #[prost(string, tag = "1")]
            pub(super) type_url: String,
            #[prost(bytes = "vec", tag = "2")]
            pub(super) value: Vec<u8>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct RetryInfo {
            #[prost(message, optional, tag = "1")]
            pub(super) retry_delay: Option<Duration>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Duration {
            #[prost(int64, tag = "1")]
            pub(super) seconds: i64,
            #[prost(int32, tag = "2")]
            pub(super) nanos: i32,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct BadRequest {
            #[prost(message, repeated, tag = "1")]
            pub(super) field_violations: Vec<FieldViolation>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct FieldViolation {
            #[prost(string, tag = "1")]
            pub(super) field: String,
            #[prost(string, tag = "2")]
            pub(super) description: String,
        }
    }

    #[test]
    fn a_refusal_with_all_details_reads_back_from_protobuf() {
        let rejection = Rejection::new(Code::Unavailable, "the journal is full")
            .retry_after(Duration::from_millis(1500))
            .field_violation("resourceSpans[0]");
        let status = google::Status::decode(rejection.to_protobuf()).unwrap();
        assert_eq!((status.code, status.message.as_str()), (14, "the journal is full"));
        let [retry, bad] = &status.details[..] else {
            panic!("{status:?}")
        };
        assert_eq!(retry.type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let delay = google::RetryInfo::decode(&retry.value[..])
            .unwrap()
            .retry_delay
            .unwrap();
        assert_eq!((delay.seconds, delay.nanos), (1, 500_000_000));
        assert_eq!(bad.type_url, "type.googleapis.com/google.rpc.BadRequest");
        let violations = google::BadRequest::decode(&bad.value[..]).unwrap().field_violations;
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, "resourceSpans[0]");
        assert_eq!(violations[0].description, "the journal is full");
    }

    #[test]
    fn a_refusal_in_json_has_the_shape_of_the_protobuf_mapping() {
        let rejection = Rejection::new(Code::InvalidArgument, "bad \"name\"").field_violation("a.b");
        assert_eq!(
            rejection.clone().retry_after(Duration::from_secs(1)).to_json(),
            r#"{"code":3,"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"1s"},{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"description":"bad \"name\"","field":"a.b"}]}],"message":"bad \"name\""}"#
        );
        assert_eq!(
            Rejection::new(Code::Unknown, "").to_json(),
            r#"{"code":2,"message":""}"#
        );
    }

    #[test]
    fn durations_have_no_three_six_or_nine_decimals() {
        let written = |nanos| duration_in_json(Duration::from_nanos(nanos));
        assert_eq!(written(0), "0s");
        assert_eq!(written(250_000_000), "0.250s");
        assert_eq!(written(1_000_001_000), "1.000001s");
        assert_eq!(written(7), "0.000000007s");
    }

    #[test]
    fn only_refusals_that_pass_by_themselves_get_a_status_that_senders_retry() {
        let status = |code| Rejection::new(code, "").http_status();
        assert_eq!(status(Code::ResourceExhausted), 413);
        let quota = Rejection::new(Code::ResourceExhausted, "").retry_after(Duration::from_millis(900));
        assert_eq!((quota.http_status(), quota.retry_after_seconds()), (429, Some(1)));
        assert_eq!(
            Rejection::new(Code::Unavailable, "")
                .retry_after(Duration::ZERO)
                .retry_after_seconds(),
            Some(1)
        );
        for number in 0..20 {
            let code = Code::from_number(number);
            let retried = [1, 4, 10, 11, 14, 15].contains(&number);
            assert_eq!(matches!(status(code), 502..=504), retried, "{}", code.name());
        }
    }

    #[test]
    fn full_success_is_the_empty_message() {
        for signal in Signal::ALL {
            assert!(success_protobuf(signal, 0, "").is_empty());
            assert_eq!(success_json(signal, 0, ""), "{}");
        }
    }

    #[test]
    fn partial_success_reads_back_for_each_signal() {
        use opentelemetry_proto::tonic::collector::{logs, metrics, trace};
        let message = "3 are wrong";
        let body = |signal| success_protobuf(signal, 3, message);
        let traces = trace::v1::ExportTraceServiceResponse::decode(body(Signal::Traces)).unwrap();
        let metrics = metrics::v1::ExportMetricsServiceResponse::decode(body(Signal::Metrics)).unwrap();
        let logs = logs::v1::ExportLogsServiceResponse::decode(body(Signal::Logs)).unwrap();
        assert_eq!(traces.partial_success.as_ref().unwrap().rejected_spans, 3);
        assert_eq!(traces.partial_success.unwrap().error_message, message);
        assert_eq!(metrics.partial_success.unwrap().rejected_data_points, 3);
        assert_eq!(logs.partial_success.unwrap().rejected_log_records, 3);
        assert_eq!(
            success_json(Signal::Metrics, 3, message),
            r#"{"partialSuccess":{"errorMessage":"3 are wrong","rejectedDataPoints":"3"}}"#
        );
        assert_eq!(
            success_json(Signal::Traces, 0, "careful"),
            r#"{"partialSuccess":{"errorMessage":"careful","rejectedSpans":"0"}}"#
        );
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = Rejection::new(Code::Internal, "é".repeat(LONGEST_TEXT) + "x");
        let status = google::Status::decode(long.to_protobuf()).unwrap();
        assert_eq!(status.message.len(), LONGEST_TEXT);
        let odd = Rejection::new(Code::Internal, format!("x{}", "é".repeat(LONGEST_TEXT)));
        assert_eq!(
            google::Status::decode(odd.to_protobuf()).unwrap().message.len(),
            LONGEST_TEXT - 1
        );
    }
}
