//! What can be wrong with a JSON request.

use std::fmt;

/// Why a JSON request was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    pub(super) what: What,
    pub(super) offset: usize,
    pub(super) path: String,
}

impl JsonError {
    /// Where, in bytes from the beginning of the (decompressed) body.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The value in which it was found, such as `resourceSpans[0].scopeSpans[1].spans[7].startTimeUnixNano`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.path.is_empty() {
            "the request"
        } else {
            &self.path
        };
        write!(
            formatter,
            "malformed JSON in {place} at byte {}: {}",
            self.offset, self.what
        )
    }
}

impl std::error::Error for JsonError {}

/// A mistake and its offset; the path is added on the way out.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) what: What,
    pub(super) at: usize,
}

/// What is wrong with some text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum What {
    #[error("the text ends too early")]
    UnexpectedEnd,
    #[error("expected {0}")]
    Expected(&'static str),
    #[error("not valid UTF-8")]
    Utf8,
    #[error("control characters in strings must be escaped")]
    ControlCharacter,
    #[error("unknown escape sequence in a string")]
    Escape,
    #[error("something follows the request")]
    Trailing,
    #[error("values nest too deep")]
    TooDeep,
    #[error("number is not {0}")]
    OutOfRange(&'static str),
    #[error("ids are hexadecimal digits")]
    NotHex,
    #[error("bytes are base64")]
    NotBase64,
    #[error("no such enum value")]
    UnknownName,
}
