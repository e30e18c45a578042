//! The settings of the OTLP receivers, section `receivers.otlp` of the configuration.

use std::time::Duration;

use super::admission::BUFFERS;
use crate::buffers::most_unused;
use crate::listen::{Auth, Limits, TlsOptions};

const MEBIBYTE: usize = 1024 * 1024;

const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// `receivers.otlp`. Edge values are named at each field.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// `protocols.grpc`; `None` does not listen for gRPC.
    pub grpc: Option<GrpcOptions>,
    /// `protocols.http`; `None` does not listen for HTTP.
    pub http: Option<HttpOptions>,
    /// `auth`, for both.
    pub auth: Auth,
    /// `max_in_flight_size`: bytes of requests that may be in memory at once, as received and decompressed. Beyond it
    /// senders are told to try again. One peer gets three quarters of it, one request a quarter; a larger one goes beside
    /// the others, one at a time, up to the size limits of the protocols.
    pub max_in_flight_bytes: usize,
}

/// `receivers.otlp.protocols.grpc`.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// `endpoint`: `host:port` or `unix:///path`.
    pub endpoint: String,
    /// `max_recv_msg_size_mib`, in bytes: the largest message, before and after decompression.
    pub max_recv_msg_size: usize,
    /// `read_timeout`: how long the message of one request may take to arrive.
    pub read_timeout: Duration,
    /// What one peer may cost the listener.
    pub limits: Limits,
    /// `tls`; plain text without it.
    pub tls: Option<TlsOptions>,
}

/// `receivers.otlp.protocols.http`.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `endpoint`: `host:port` or `unix:///path`.
    pub endpoint: String,
    /// `max_request_body_size`: the largest body, before and after decompression.
    pub max_request_body_size: usize,
    /// `read_timeout`: how long the body of one request may take to arrive.
    pub read_timeout: Duration,
    /// What one peer may cost the listener.
    pub limits: Limits,
    /// `cors`: which web pages may send.
    pub cors: CorsOptions,
    /// `tls`; plain text without it.
    pub tls: Option<TlsOptions>,
}

/// `receivers.otlp.protocols.http.cors`.
#[derive(Debug, Clone, Default)]
pub struct CorsOptions {
    /// `allowed_origins`: exact origins, patterns with one `*` (`https://*.example.com`), or `*`. Empty: no web page may
    /// send.
    pub allowed_origins: Vec<String>,
    /// `allowed_headers`: headers that pages may send beside those that OTLP needs; `*` allows all.
    pub allowed_headers: Vec<String>,
    /// `max_age`: how long a browser may remember the answer to its preflight. Zero leaves that to the browser.
    pub max_age: Duration,
}

impl ReceiveOptions {
    /// Bytes of requests that may wait for the disk at once: those in flight, and beside them the largest.
    pub fn most_admitted(&self) -> usize {
        let grpc = self.grpc.as_ref().map_or(0, |grpc| grpc.max_recv_msg_size);
        let http = self.http.as_ref().map_or(0, |http| http.max_request_body_size);
        self.max_in_flight_bytes.saturating_add(grpc.max(http))
    }

    /// The most memory that requests take until they are on the disk: what was admitted, on each core what is being
    /// decompressed before it can be, and buffers for the next ones.
    pub fn memory_bound(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.max_in_flight_bytes + cores * (self.max_in_flight_bytes / 4) + most_unused(BUFFERS)
    }
}

impl Default for ReceiveOptions {
    fn default() -> ReceiveOptions {
        ReceiveOptions {
            grpc: Some(GrpcOptions::default()),
            http: Some(HttpOptions::default()),
            auth: Auth::default(),
            max_in_flight_bytes: 20 * MEBIBYTE,
        }
    }
}

impl Default for GrpcOptions {
    fn default() -> GrpcOptions {
        GrpcOptions {
            endpoint: "127.0.0.1:4317".to_owned(),
            max_recv_msg_size: 64 * MEBIBYTE,
            read_timeout: READ_TIMEOUT,
            limits: Limits::default(),
            tls: None,
        }
    }
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            endpoint: "127.0.0.1:4318".to_owned(),
            max_request_body_size: 64 * MEBIBYTE,
            read_timeout: READ_TIMEOUT,
            limits: Limits::default(),
            cors: CorsOptions::default(),
            tls: None,
        }
    }
}
