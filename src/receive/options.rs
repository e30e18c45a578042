//! The settings of the OTLP receivers, section `receivers.otlp` of the configuration.

use std::time::Duration;

use crate::listen::{Auth, Limits, TlsOptions};

const MEBIBYTE: usize = 1024 * 1024;

/// `receivers.otlp`. Edge values are named at each field.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// `protocols.grpc`; `None` does not listen for gRPC.
    pub grpc: Option<GrpcOptions>,
    /// `protocols.http`; `None` does not listen for HTTP.
    pub http: Option<HttpOptions>,
    /// `auth`, for both.
    pub auth: Auth,
    /// What one peer may cost a listener, for both.
    pub limits: Limits,
    /// `max_in_flight_size`: bytes of requests that may be in memory at once, as received and decompressed. Beyond it
    /// senders are told to try again. One peer gets three quarters of it, and so does one request: less than about three
    /// times the size limits makes the largest compressed requests impossible.
    pub max_in_flight_bytes: usize,
    /// How long the body of one request may take to arrive.
    pub read_timeout: Duration,
}

/// `receivers.otlp.protocols.grpc`.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// `endpoint`: `host:port` or `unix:///path`.
    pub endpoint: String,
    /// `max_recv_msg_size_mib`, in bytes: the largest message, before and after decompression.
    pub max_recv_msg_size: usize,
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

impl Default for ReceiveOptions {
    fn default() -> ReceiveOptions {
        ReceiveOptions {
            grpc: Some(GrpcOptions::default()),
            http: Some(HttpOptions::default()),
            auth: Auth::default(),
            limits: Limits::default(),
            max_in_flight_bytes: 256 * MEBIBYTE,
            read_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for GrpcOptions {
    fn default() -> GrpcOptions {
        GrpcOptions {
            endpoint: "127.0.0.1:4317".to_owned(),
            max_recv_msg_size: 64 * MEBIBYTE,
            tls: None,
        }
    }
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            endpoint: "127.0.0.1:4318".to_owned(),
            max_request_body_size: 64 * MEBIBYTE,
            cors: CorsOptions::default(),
            tls: None,
        }
    }
}
