//! What can be configured of one exporter (`exporters.otlp` or `exporters.otlp/<name>`).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{EndpointUrl, ForwardError, RetryOptions, reply};
use crate::egress::{EgressOptions, Policy};
use crate::otlp::{Encoding, Signal};

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// OTLP/HTTP with protobuf bodies, over HTTP/1.1: `http/protobuf`.
    #[default]
    HttpProtobuf,
    /// OTLP/gRPC over HTTP/2: `grpc`.
    Grpc,
}

impl Protocol {
    /// The value of `protocol`, as `OTEL_EXPORTER_OTLP_PROTOCOL` spells it.
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "http/protobuf" => Some(Protocol::HttpProtobuf),
            "grpc" => Some(Protocol::Grpc),
            _ => None,
        }
    }

    /// The spelling in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::HttpProtobuf => "http/protobuf",
            Protocol::Grpc => "grpc",
        }
    }
}

/// How bodies are compressed on the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they came in, if the backend understands that: identity and gzip always, other encodings if
    /// [`ExporterOptions::accepts`] lists them; the rest as gzip. Costs nothing.
    #[default]
    AsReceived,
    /// Every body in this encoding. One that came in it passes through; others are encoded anew.
    Always(Encoding),
}

impl Compression {
    /// The value of `compression`: `as_received`, `none`, `gzip` or `zstd`.
    pub fn parse(text: &str) -> Option<Compression> {
        match text {
            "as_received" => Some(Compression::AsReceived),
            "none" => Some(Compression::Always(Encoding::Identity)),
            "gzip" => Some(Compression::Always(Encoding::Gzip)),
            "zstd" => Some(Compression::Always(Encoding::Zstd)),
            _ => None,
        }
    }
}

/// Headers (gRPC: metadata) added to every request. Their values are secrets: `Debug` does not show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(HeaderMap);

impl Headers {
    /// From pairs, as a YAML map gives them.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Headers, ForwardError> {
        let mut headers = Headers::default();
        for (name, value) in pairs {
            headers.insert(name, value)?;
        }
        Ok(headers)
    }

    /// From one string: `k=v,k2=v2` with percent-encoded values, as `OTEL_EXPORTER_OTLP_HEADERS` has it, or a JSON
    /// object of strings. Spaces around names and values do not count; an empty string has no headers.
    pub fn parse(text: &str) -> Result<Headers, ForwardError> {
        let text = text.trim();
        if text.starts_with('{') {
            let mistake = || ForwardError::Headers("not a JSON object whose values are strings".to_owned());
            let object: std::collections::BTreeMap<String, String> =
                serde_json::from_str(text).map_err(|_| mistake())?;
            return Headers::from_pairs(object.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        }
        let mut headers = Headers::default();
        for (index, pair) in text
            .split(',')
            .map(str::trim)
            .enumerate()
            .filter(|(_, pair)| !pair.is_empty())
        {
            // The text itself may be a secret: the message tells the place only.
            let mistake = |what: &str| ForwardError::Headers(format!("entry {} {what}", index + 1));
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| mistake("is not of the form name=value"))?;
            let value = String::from_utf8(reply::percent_decode(value.trim().as_bytes()))
                .map_err(|_| mistake("is not UTF-8 after percent-decoding"))?;
            headers.insert(name, &value)?;
        }
        Ok(headers)
    }

    fn insert(&mut self, name: &str, value: &str) -> Result<(), ForwardError> {
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| ForwardError::Headers(format!("{:?} is not the name of a header", name.trim())))?;
        if RESERVED.contains(&name.as_str()) {
            return Err(ForwardError::Headers(format!("{name} is set by spanledger itself")));
        }
        let mut value = HeaderValue::from_str(value.trim())
            .map_err(|_| ForwardError::Headers(format!("the value of {name} has characters no header may have")))?;
        value.set_sensitive(true);
        self.0.insert(name, value);
        Ok(())
    }

    /// As the HTTP client takes them.
    pub fn as_map(&self) -> &HeaderMap {
        &self.0
    }
}

/// A configured value of these would contradict what is sent.
const RESERVED: [&str; 9] = [
    "content-type",
    "content-encoding",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "grpc-encoding",
    "grpc-timeout",
    super::HOP_HEADER,
];

impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// `tls` of an exporter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// An endpoint without a scheme is spoken to in plain text. Default false: by TLS. `http://` and `https://` override
    /// it. It never switches off the check of a certificate.
    pub insecure: bool,
    /// PEM file with the authorities that may have signed the backend's certificate, instead of the public ones. Set by
    /// who runs an authority of their own.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate (and its chain) that we show to the backend. Needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the private key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// How much of what a backend refused is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedLimits {
    /// Bytes on disk for one exporter. Default 64 MiB.
    pub max_size: u64,
    /// Requests. Default 10,000.
    pub max_count: usize,
}

impl Default for RefusedLimits {
    fn default() -> Self {
        RefusedLimits {
            max_size: 64 << 20,
            max_count: 10_000,
        }
    }
}

/// One exporter. [`Default`] is what the contract of the configuration says, but for the endpoint, which has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterOptions {
    /// Where to send; see [`super::Endpoint::parse`]. Required.
    pub endpoint: EndpointUrl,
    /// Default [`Protocol::HttpProtobuf`].
    pub protocol: Protocol,
    /// Headers for every request, such as `signoz-ingestion-key`. Default none.
    pub headers: Headers,
    /// Default [`Compression::AsReceived`].
    pub compression: Compression,
    /// Encodings besides identity and gzip that the backend understands. Default none. `[zstd]` lets bodies of senders
    /// that compress with zstd pass through; the Collector and SigNoz understand it.
    pub accepts: Vec<Encoding>,
    /// The signals that are sent here. Default all. A backend for traces alone answers 404 to metrics, which would hold
    /// them in the journal.
    pub signals: Vec<Signal>,
    /// Small requests of one signal are joined. Default true. Compressed requests that pass through are not joined.
    pub merge: bool,
    /// Requests larger than this before compression are split between spans, and joined ones do not exceed it. Default
    /// 3.5 MiB, because gRPC servers refuse more than 4 MiB unless told otherwise. A single span is sent whatever its size.
    pub max_request_size: usize,
    /// Requests under way at the same time, if they are no more than [`super::MAX_BYTES_IN_FLIGHT`] together. Default 8.
    /// More help when the backend is far away and senders compress (compressed requests are not joined).
    pub max_concurrent_requests: usize,
    /// For one attempt, from connecting to the last byte of the answer. Default 10 s.
    pub timeout: Duration,
    /// When to try again, and for how long.
    pub retry_on_failure: RetryOptions,
    /// Certificates.
    pub tls: TlsOptions,
    /// How much of what the backend refused is kept.
    pub refused: RefusedLimits,
    /// Which spans are forwarded, and what is cut out of what is forwarded. Default: everything goes as it was received.
    pub egress: EgressOptions,
}

impl Default for ExporterOptions {
    fn default() -> Self {
        ExporterOptions {
            endpoint: EndpointUrl::default(),
            protocol: Protocol::default(),
            headers: Headers::default(),
            compression: Compression::default(),
            accepts: Vec::new(),
            signals: Signal::ALL.to_vec(),
            merge: true,
            max_request_size: (7 << 20) / 2,
            max_concurrent_requests: 8,
            timeout: Duration::from_secs(10),
            retry_on_failure: RetryOptions::default(),
            tls: TlsOptions::default(),
            refused: RefusedLimits::default(),
            egress: EgressOptions::default(),
        }
    }
}

impl ExporterOptions {
    /// What can be told to be wrong without reading a file or asking a server.
    pub fn check(&self) -> Result<(), ForwardError> {
        super::Endpoint::parse(&self.endpoint, self.protocol, self.tls.insecure)?;
        Policy::compile(&self.egress)?;
        let retry = &self.retry_on_failure;
        let mistakes = [
            (self.timeout.is_zero(), "timeout", "it must not be 0"),
            (self.max_request_size == 0, "max_request_size", "it must not be 0"),
            (
                self.max_concurrent_requests == 0,
                "max_concurrent_requests",
                "it must be 1 or more",
            ),
            (
                self.signals.is_empty(),
                "signals",
                "name at least one of traces, metrics, logs",
            ),
            (
                retry.initial_interval.is_zero(),
                "retry_on_failure.initial_interval",
                "it must not be 0",
            ),
            (
                retry.max_interval < retry.initial_interval,
                "retry_on_failure.max_interval",
                "it must not be shorter than initial_interval",
            ),
            (
                self.tls.cert_file.is_some() != self.tls.key_file.is_some(),
                "tls",
                "cert_file and key_file go together",
            ),
        ];
        match mistakes.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            Some((_, key, what)) => Err(ForwardError::Setting { key, what }),
            None => Ok(()),
        }
    }

    /// The most memory the exporter takes for bodies, while no single request is larger than all of it.
    pub fn memory_bound(&self) -> usize {
        // As it waited, joined, and encoded.
        let under_way = 3 * super::MAX_BYTES_IN_FLIGHT.max(self.max_request_size);
        // What waits to be sent, and what was taken in when there was still room; with what lies beside it in memory.
        let ready = super::intake::LITTLE * (super::READ_AHEAD + 1) * self.max_request_size;
        // The rest of the batch it was of, as received and decoded.
        let batch = (1 + super::READ_AHEAD) * self.max_request_size;
        let written = match self.protocol {
            Protocol::Grpc => super::gather::LIMIT,
            Protocol::HttpProtobuf => 0,
        };
        under_way + ready + batch + self.egress.memory_bound() + written
    }

    /// What to do with a body that came in `received`: the encoding it is sent in.
    pub(super) fn encoding_for(&self, received: Encoding) -> Encoding {
        match self.compression {
            Compression::Always(encoding) => encoding,
            Compression::AsReceived => match received {
                Encoding::Identity | Encoding::Gzip => received,
                other if self.accepts.contains(&other) => other,
                _ => Encoding::Gzip,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &Headers) -> Vec<(&str, &str)> {
        let pairs = headers
            .as_map()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn headers_are_read_from_a_map_a_list_and_a_json_object() {
        let expected = vec![("signoz-ingestion-key", "a b"), ("x-tenant", "t=1")];
        let pairs = [("signoz-ingestion-key", "a b"), ("x-tenant", "t=1")];
        for headers in [
            Headers::from_pairs(pairs).unwrap(),
            Headers::parse("signoz-ingestion-key=a%20b, x-tenant = t=1 ,").unwrap(),
            Headers::parse(r#" {"signoz-ingestion-key": "a b", "X-Tenant": "t=1"}"#).unwrap(),
        ] {
            assert_eq!(shown(&headers), expected);
        }
        assert_eq!(shown(&Headers::parse("").unwrap()), []);
    }

    #[test]
    fn mistakes_in_headers_are_told_without_telling_their_values() {
        for (text, place) in [
            ("secret", "entry 1"),
            ("a=1,secret", "entry 2"),
            ("bad name=secret", "\"bad name\""),
            ("a=sec%0aret", "value of a"),
            ("{\"a\": 1}", "JSON"),
            ("Content-Type=secret", "content-type is set by spanledger"),
            ("spanledger-hop=secret", "spanledger-hop"),
        ] {
            let error = Headers::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(place) && error.contains("headers") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn header_values_are_not_shown_by_debug() {
        let headers = Headers::parse("signoz-ingestion-key=secret").unwrap();
        assert_eq!(format!("{headers:?}"), "{\"signoz-ingestion-key\"}");
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let sound = || ExporterOptions {
            endpoint: "http://signoz:4318".into(),
            ..ExporterOptions::default()
        };
        assert!(sound().check().is_ok());
        let retry = RetryOptions {
            max_interval: Duration::from_millis(1),
            ..RetryOptions::default()
        };
        let tls = TlsOptions {
            key_file: Some("key.pem".into()),
            ..TlsOptions::default()
        };
        for (options, key) in [
            (ExporterOptions::default(), "endpoint"),
            (
                ExporterOptions {
                    timeout: Duration::ZERO,
                    ..sound()
                },
                "timeout",
            ),
            (
                ExporterOptions {
                    max_request_size: 0,
                    ..sound()
                },
                "max_request_size",
            ),
            (
                ExporterOptions {
                    max_concurrent_requests: 0,
                    ..sound()
                },
                "max_concurrent_requests",
            ),
            (
                ExporterOptions {
                    signals: vec![],
                    ..sound()
                },
                "signals",
            ),
            (
                ExporterOptions {
                    retry_on_failure: retry,
                    ..sound()
                },
                "retry_on_failure.max_interval",
            ),
            (ExporterOptions { tls, ..sound() }, "tls"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn bodies_pass_as_received_unless_the_backend_may_not_understand_them() {
        let mut options = ExporterOptions::default();
        assert_eq!(Encoding::ALL.map(|encoding| options.encoding_for(encoding)), {
            [
                Encoding::Identity,
                Encoding::Gzip,
                Encoding::Gzip,
                Encoding::Gzip,
                Encoding::Gzip,
                Encoding::Gzip,
            ]
        });
        options.accepts = vec![Encoding::Zstd];
        assert_eq!(options.encoding_for(Encoding::Zstd), Encoding::Zstd);
        assert_eq!(options.encoding_for(Encoding::Deflate), Encoding::Gzip);
        options.compression = Compression::Always(Encoding::Zstd);
        assert_eq!(options.encoding_for(Encoding::Identity), Encoding::Zstd);
    }
}
