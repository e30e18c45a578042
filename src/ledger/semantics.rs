//! What one execution span says of itself, by the rules that the metrics use too, and on what part of the span each
//! answer stands.

use super::row::Source;
use super::seen::Seen;
use crate::otlp::trace::Span;
use crate::otlp::value::AnyValue;
use crate::rules::quantity;
use crate::rules::semantics::{Outcome, Run, SpanStatus, duration_ms, says_timed_out};

/// What one span says of itself.
pub(super) struct Verdict<'a> {
    pub(super) success: (bool, Source),
    pub(super) error: Option<(&'a str, Source)>,
    pub(super) timed_out: bool,
}

pub(super) fn verdict<'a>(span: &Span<'a>, seen: &Seen<'a>) -> Verdict<'a> {
    let exceptions = exceptions(span);
    let boolean = |value: Option<AnyValue<'_>>| value.and_then(|value| value.as_bool());
    let number = |value: Option<AnyValue<'_>>| value.and_then(|value| value.as_f64()).and_then(quantity);
    let text = |value: Option<AnyValue<'a>>| value.and_then(|value| value.as_str()).filter(|text| !text.is_empty());
    let status = SpanStatus::from_code(span.status_code());
    let run = Run {
        success: boolean(seen.success),
        has_error: boolean(seen.has_error),
        exit_code: seen.exit_code.and_then(|code| code.as_i64()),
        duration_ms: number(seen.duration_ms).or_else(|| duration_ms(span.start_unix_nano(), span.end_unix_nano())),
        timeout_ms: number(seen.timeout_ms),
        error_type: text(seen.error_type),
        error_kind: text(seen.error_kind),
        status,
        status_message: span.status_message().as_str(),
        has_exception: exceptions.any,
        exception_timed_out: exceptions.timed_out,
    };
    let source = if run.success.is_some() {
        Source::Execution
    } else if run.has_error.is_some() {
        Source::HasError
    } else if status != SpanStatus::Unset {
        Source::Status
    } else if run.has_exception {
        Source::Exception
    } else if run.exit_code.is_some() {
        Source::Execution
    } else {
        Source::Default
    };
    // A message beside OK is a remark, not an error.
    let status_message = if status == SpanStatus::Ok {
        ""
    } else {
        run.status_message
    };
    let error = match (status_message, exceptions.last) {
        ("", "") => None,
        ("", exception) => Some((exception, Source::Exception)),
        (message, _) => Some((message, Source::Status)),
    };
    Verdict {
        success: (run.success(), source),
        error,
        timed_out: run.outcome() == Outcome::Timeout,
    }
}

#[derive(Default)]
struct Exceptions<'a> {
    any: bool,
    timed_out: bool,
    /// The message of the last one, or its type if it has no message.
    last: &'a str,
}

fn exceptions<'a>(span: &Span<'a>) -> Exceptions<'a> {
    let mut exceptions = Exceptions::default();
    for event in span.events() {
        if event.name().as_bytes() != b"exception" {
            continue;
        }
        let (mut message, mut kind) = ("", "");
        for (key, value) in event.attributes() {
            match key.as_bytes() {
                b"exception.message" => message = value.as_str().unwrap_or_default(),
                b"exception.type" => kind = value.as_str().unwrap_or_default(),
                _ => {}
            }
        }
        exceptions.any = true;
        exceptions.timed_out |= says_timed_out(message);
        exceptions.last = if message.is_empty() { kind } else { message };
    }
    exceptions
}
