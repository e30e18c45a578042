//! Why a request is refused, and how each protocol says so.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use super::admission::NoRoom;
use crate::journal::AppendError;
use crate::listen::NotAdmitted;
use crate::otlp::status::{Code, Rejection};

/// When a sender that was refused for want of memory is told to try again.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(1);

/// The kinds of refusals: the label `reason` of `spanledger_receiver_requests_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Too many bytes of requests are in memory.
    Overloaded,
    /// The journal has no room.
    JournalFull,
    /// The disk did not take it.
    JournalFailed,
    /// The program is ending.
    ShuttingDown,
    /// Larger than configured, before or after decompression.
    TooLarge,
    /// Not the protobuf, JSON or compressed stream that it says it is.
    Malformed,
    /// A content encoding that is not known.
    UnknownEncoding,
    /// A content type that is not OTLP.
    UnknownType,
    /// A path or method of gRPC that is not served.
    UnknownPath,
    /// A service that the gRPC health check does not know.
    UnknownService,
    /// Not POST.
    Method,
    /// Forwarded by ourselves.
    Loop,
    /// The body did not arrive in time.
    SlowBody,
    /// The peer went away before the body was whole.
    Aborted,
    /// The peer's own deadline passed.
    Deadline,
    /// No valid credentials.
    Unauthorized,
    /// Path and header fields are too long.
    HeadTooLarge,
    /// gRPC over HTTP/1.1.
    HttpVersion,
    /// A web page whose origin is not allowed asks whether it may send.
    Origin,
    /// A defect of ours.
    Internal,
}

impl Reason {
    /// How many there are; [`Reason::Internal`] is the last.
    pub(super) const COUNT: usize = Reason::Internal as usize + 1;

    /// The value of the label `reason`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Reason::Overloaded => "overloaded",
            Reason::JournalFull => "journal_full",
            Reason::JournalFailed => "journal_failed",
            Reason::ShuttingDown => "shutting_down",
            Reason::TooLarge => "too_large",
            Reason::Malformed => "malformed",
            Reason::UnknownEncoding => "unknown_encoding",
            Reason::UnknownType => "unknown_type",
            Reason::UnknownPath => "unknown_path",
            Reason::UnknownService => "unknown_service",
            Reason::Method => "method",
            Reason::Loop => "loop",
            Reason::SlowBody => "slow_body",
            Reason::Aborted => "aborted",
            Reason::Deadline => "deadline",
            Reason::Unauthorized => "unauthorized",
            Reason::HeadTooLarge => "head_too_large",
            Reason::HttpVersion => "http_version",
            Reason::Origin => "origin",
            Reason::Internal => "internal",
        }
    }

    /// The gRPC code. Senders repeat UNAVAILABLE and DEADLINE_EXCEEDED, and drop the request at the others.
    fn code(self) -> Code {
        match self {
            Reason::Overloaded | Reason::JournalFull | Reason::JournalFailed | Reason::ShuttingDown => {
                Code::Unavailable
            }
            Reason::TooLarge | Reason::HeadTooLarge => Code::ResourceExhausted,
            Reason::Malformed | Reason::UnknownType | Reason::Method | Reason::HttpVersion => Code::InvalidArgument,
            Reason::UnknownEncoding | Reason::UnknownPath => Code::Unimplemented,
            Reason::UnknownService => Code::NotFound,
            Reason::Loop => Code::FailedPrecondition,
            Reason::SlowBody | Reason::Deadline => Code::DeadlineExceeded,
            Reason::Aborted => Code::Cancelled,
            Reason::Unauthorized => Code::Unauthenticated,
            Reason::Origin => Code::PermissionDenied,
            Reason::Internal => Code::Internal,
        }
    }

    /// The HTTP status. Senders repeat 429, 502, 503 and 504, and drop the request at the others.
    pub(super) fn http_status(self) -> StatusCode {
        match self {
            // 408 would be the word for a slow body, but then senders drop it.
            Reason::Overloaded
            | Reason::JournalFull
            | Reason::JournalFailed
            | Reason::ShuttingDown
            | Reason::SlowBody => StatusCode::SERVICE_UNAVAILABLE,
            Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::Malformed | Reason::Loop | Reason::Aborted => StatusCode::BAD_REQUEST,
            Reason::UnknownEncoding | Reason::UnknownType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Reason::UnknownPath | Reason::UnknownService => StatusCode::NOT_FOUND,
            Reason::Method => StatusCode::METHOD_NOT_ALLOWED,
            Reason::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Reason::Unauthorized => StatusCode::UNAUTHORIZED,
            Reason::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::HttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Reason::Origin => StatusCode::FORBIDDEN,
            Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A refusal: its kind, and what the sender is told.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) message: Cow<'static, str>,
    pub(super) retry_after: Option<Duration>,
    /// The size of the body, where it had arrived whole.
    pub(super) bytes: usize,
}

impl Refusal {
    pub(super) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal {
            reason,
            message: message.into(),
            retry_after: None,
            bytes: 0,
        }
    }

    fn retryable(reason: Reason, message: impl Into<Cow<'static, str>>, pause: Duration) -> Refusal {
        Refusal {
            retry_after: Some(pause),
            ..Refusal::new(reason, message)
        }
    }

    /// The same refusal, of a body of this size.
    pub(super) fn of_body(self, bytes: usize) -> Refusal {
        Refusal { bytes, ..self }
    }

    pub(super) fn malformed(what: impl std::fmt::Display) -> Refusal {
        Refusal::new(Reason::Malformed, what.to_string())
    }

    pub(super) fn too_large(limit: usize, key: &str) -> Refusal {
        Refusal::new(
            Reason::TooLarge,
            format!("the request is larger than {limit} bytes ({key})"),
        )
    }

    /// The sender, the network or we were too slow this time.
    pub(super) fn slow_body(message: &'static str) -> Refusal {
        Refusal::retryable(Reason::SlowBody, message, OVERLOAD_PAUSE)
    }

    /// What the sender is told, for the answer's body.
    pub(super) fn rejection(&self) -> Rejection {
        let field_violation = (self.reason == Reason::Malformed).then(|| self.message.to_string());
        Rejection {
            code: self.reason.code(),
            message: self.message.to_string(),
            retry_after: self.retry_after,
            field_violation,
        }
    }
}

impl From<NoRoom> for Refusal {
    fn from(NoRoom: NoRoom) -> Refusal {
        let message = "too many bytes of requests are being received (receivers.otlp.max_in_flight_size); try again";
        Refusal::retryable(Reason::Overloaded, message, OVERLOAD_PAUSE)
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Refusal {
        let message = error.to_string();
        match error {
            AppendError::Full { retry_after } => Refusal::retryable(Reason::JournalFull, message, retry_after),
            AppendError::Failed(_) => Refusal::retryable(Reason::JournalFailed, message, OVERLOAD_PAUSE),
            AppendError::Closed => Refusal::retryable(Reason::ShuttingDown, message, OVERLOAD_PAUSE),
            AppendError::TooLarge => Refusal::new(Reason::TooLarge, message),
        }
    }
}

impl From<&NotAdmitted> for Refusal {
    fn from(refused: &NotAdmitted) -> Refusal {
        let reason = match refused {
            NotAdmitted::Unauthorized(_) => Reason::Unauthorized,
            NotAdmitted::HeadTooLarge { .. } => Reason::HeadTooLarge,
            NotAdmitted::Unreadable { status } if *status == StatusCode::BAD_REQUEST => Reason::Malformed,
            NotAdmitted::Unreadable { .. } => Reason::HeadTooLarge,
        };
        Refusal::new(reason, refused.to_string())
    }
}
