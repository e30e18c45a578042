//! OTLP on the wire: a borrowing walk over protobuf bytes, JSON, encodings, answers.
//!
//! This room is sans-io: it knows no runtime, no clock and no socket, and depends on nothing else in the crate.
//!
//! * A request is checked **once**, at the door: [`TraceRequest::parse`], [`opaque::check_metrics`],
//!   [`opaque::check_logs`]. Whatever passed is kept as the bytes that arrived; nothing is ever decoded into owned
//!   structures or encoded again, so unknown fields, field order and future versions of OTLP survive.
//! * Behind the door, [`TraceRequest::trusted`] iterates over the same bytes without allocating and without failing.
//! * OTLP/JSON becomes protobuf at the door ([`json::transcode`]), so that one form exists behind it.
//! * [`encoding`] undoes and applies content encodings, [`status`] writes every answer a sender can get.
//!
//! What the messages look like stands once, in `schema`; the check, the field paths in error messages and the JSON
//! transcoder all read that table. Only the walk over spans ([`trace`], [`entry`], [`value`]) is written out by hand, for speed.

pub mod encoding;
pub mod entry;
pub mod json;
pub mod noted;
pub mod opaque;
pub mod status;
pub mod trace;
pub mod value;
pub mod wire;

mod check;
mod cut;
pub(crate) mod schema;
mod signal;
#[cfg(test)]
pub(crate) mod tests;

pub use check::Malformed;
pub use encoding::{DecodeError, compress, decompress};
pub(crate) use encoding::{decompress_into, room_for};
pub use json::JsonError;
pub use noted::NotedSpans;
pub use signal::{Encoding, Signal};
pub use trace::{Checked, Event, Events, ResourceSpans, Scope, ScopeSpans, Span, TraceRequest};
pub use value::{AnyValue, Attributes, Text, Values};
