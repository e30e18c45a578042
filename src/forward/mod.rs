//! Forwards the journal to OTLP backends.
//!
//! Each exporter is a [`Forwarder`] with a journal reader and a position of its own, so that a backend that is slow or
//! away keeps nobody else waiting.
//!
//! # Invariants
//!
//! * Every record reaches the backend at least once, or is kept under `refused/`, or was given up after the configured
//!   `max_elapsed_time` and counted. The position passes a record only then, and the journal may recycle it only once
//!   that position is durable.
//! * The bytes of a message arrive whole and in order: alone, joined with others (`parcel`), or cut between spans
//!   (`split`). Nothing is decoded into structures and encoded again. If the exporter has rules for what leaves
//!   ([`crate::egress`]), this holds for what they leave of a message.
//! * Memory is bounded: what is under way ([`MAX_BYTES_IN_FLIGHT`], and as much again for copies that are joined and for such
//!   that are encoded), and what waits for it. See [`ExporterOptions::memory_bound`].
//! * A calm run sends nothing twice. After a crash what was delivered in the last [`SAVE_EVERY`] is sent again.
//!
//! # How it is built
//!
//! `intake` takes records from the journal, and `leaving` applies the rules for what leaves. The decisions are sans-io and
//! tested as such: `retry` (when), `answer` (what an answer means), `load`, `parcel` and `split` (what goes into a request), `gate`
//! and `lane` (what is sent next), `window` (how far the position may move). `client` sends one request, on a connection
//! that may `gather` what is written to it; `sending` several beside each other, `saving` saves the position; `run` connects
//! all of them in one loop, which `forwarder` starts.

mod answer;
mod client;
mod counters;
mod endpoint;
mod forwarder;
mod gate;
mod gather;
mod intake;
mod lane;
mod leaving;
mod load;
mod options;
mod parcel;
mod per_signal;
mod refused;
mod reply;
mod report;
mod resend;
mod retry;
mod run;
mod saving;
mod sending;
mod split;
#[cfg(test)]
mod tests;
mod tls;
mod window;

pub use answer::{Answer, Verdict};
pub use endpoint::{Endpoint, EndpointUrl};
pub use forwarder::{Forwarder, Setup};
pub use options::{Compression, ExporterOptions, Headers, Protocol, RefusedLimits, TlsOptions};
pub use refused::{Kept, Refusal, list_refused, read_refused, refused_directory, remove_refused};
pub use resend::{Resender, Resent};
pub use retry::{RetryOptions, parse_retry_after};

use std::time::Duration;

use crate::egress::EgressError;

/// Names the journal that a forwarded request comes from. Who receives a request with the id of its own journal is
/// talking to itself.
pub const HOP_HEADER: &str = "spanledger-hop";

/// The bodies under way to one backend are together no larger than this, unless a single one is.
pub const MAX_BYTES_IN_FLIGHT: usize = 8 << 20;

/// Reading pauses while so many requests of `max_request_size` wait.
const READ_AHEAD: usize = 2;

/// The pause after the exporter's own files or the journal could not be read or written.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// The position is saved at most this often.
pub const SAVE_EVERY: Duration = Duration::from_millis(100);

/// Why an exporter cannot be started. Each names the key, below the exporter's, that is to be changed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The endpoint is not a URL we can send to.
    #[error("endpoint {endpoint:?}: {what}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// A header cannot be sent.
    #[error("headers: {0}")]
    Headers(String),
    /// A value that cannot work.
    #[error("{key}: {what}")]
    Setting {
        /// The key below the exporter's.
        key: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The rules for what leaves.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// Certificate files cannot be used.
    #[error("{0}")]
    Tls(String),
}

impl ForwardError {
    /// The key below the exporter's that is to be changed.
    pub fn key(&self) -> &'static str {
        match self {
            ForwardError::Endpoint { .. } => "endpoint",
            ForwardError::Headers(_) => "headers",
            ForwardError::Setting { key, .. } => key,
            ForwardError::Egress(error) => error.key(),
            ForwardError::Tls(_) => "tls",
        }
    }
}

/// A panic in a task is a panic of the stage: it must not die silently.
fn rethrow(error: tokio::task::JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => panic!("a task of the exporter was cancelled: {cancelled}"),
    }
}
