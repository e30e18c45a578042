//! The three signals of OTLP and the encodings a body can arrive in.
//!
//! The numbers are written into journal records: they never change meaning.

use std::fmt;

/// One of the three kinds of telemetry that OTLP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Signal {
    /// Spans.
    Traces = 1,
    /// Data points.
    Metrics = 2,
    /// Log records.
    Logs = 3,
}

impl Signal {
    /// Every signal, in the order of their numbers.
    pub const ALL: [Signal; 3] = [Signal::Traces, Signal::Metrics, Signal::Logs];

    /// `traces`, `metrics` or `logs`: the name in metrics, logs and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
            Signal::Logs => "logs",
        }
    }

    /// The path of OTLP/HTTP (OTLP specification, "OTLP/HTTP Request").
    pub const fn path(self) -> &'static str {
        match self {
            Signal::Traces => "/v1/traces",
            Signal::Metrics => "/v1/metrics",
            Signal::Logs => "/v1/logs",
        }
    }

    /// The path of the unary gRPC method `Export`.
    pub const fn grpc_path(self) -> &'static str {
        match self {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// The full name of the gRPC service.
    pub fn grpc_service(self) -> &'static str {
        let path = self.grpc_path().trim_start_matches('/');
        path.split_once('/').map_or(path, |(service, _)| service)
    }

    /// What one request of this signal counts: `spans`, `data points` or `log records`.
    pub const fn items(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Metrics => "data points",
            Signal::Logs => "log records",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A number that stands for no signal or encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is the number of no {1}")]
pub struct UnknownNumber(u8, &'static str);

impl TryFrom<u8> for Signal {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Signal, UnknownNumber> {
        match number {
            1 => Ok(Signal::Traces),
            2 => Ok(Signal::Metrics),
            3 => Ok(Signal::Logs),
            _ => Err(UnknownNumber(number, "signal")),
        }
    }
}

/// The content encoding of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Encoding {
    /// Not compressed.
    #[default]
    Identity = 0,
    /// RFC 1952; several members in a row are one body.
    Gzip = 1,
    /// RFC 8878; several frames in a row are one body.
    Zstd = 2,
    /// What HTTP calls `deflate`: the zlib format of RFC 1950.
    Deflate = 3,
    /// Snappy, as a stream of frames or as one raw block: senders mean either by the same name.
    Snappy = 4,
    /// LZ4 in its frame format.
    Lz4 = 5,
}

impl Encoding {
    /// Every encoding, in the order of their numbers.
    pub const ALL: [Encoding; 6] = [
        Encoding::Identity,
        Encoding::Gzip,
        Encoding::Zstd,
        Encoding::Deflate,
        Encoding::Snappy,
        Encoding::Lz4,
    ];

    /// Every token that a sender may use, for `accept-encoding` and for error messages.
    pub const ACCEPTED: &str = "gzip, zstd, deflate, zlib, snappy, x-snappy-framed, lz4";

    /// The encoding that a `content-encoding` or `grpc-encoding` header names. Letter case and surrounding blanks do
    /// not matter; the empty token is identity. `None`: unknown, or a list of several encodings.
    pub fn from_token(token: &str) -> Option<Encoding> {
        const TOKENS: [(&str, Encoding); 11] = [
            ("", Encoding::Identity),
            ("identity", Encoding::Identity),
            ("none", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("zstd", Encoding::Zstd),
            ("deflate", Encoding::Deflate),
            ("zlib", Encoding::Deflate),
            ("snappy", Encoding::Snappy),
            ("x-snappy-framed", Encoding::Snappy),
            ("lz4", Encoding::Lz4),
        ];
        let token = token.trim();
        TOKENS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(token))
            .map(|(_, encoding)| *encoding)
    }

    /// The token to send in a header.
    pub const fn token(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
            Encoding::Deflate => "deflate",
            Encoding::Snappy => "snappy",
            Encoding::Lz4 => "lz4",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.token())
    }
}

impl TryFrom<u8> for Encoding {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Encoding, UnknownNumber> {
        match number {
            0 => Ok(Encoding::Identity),
            1 => Ok(Encoding::Gzip),
            2 => Ok(Encoding::Zstd),
            3 => Ok(Encoding::Deflate),
            4 => Ok(Encoding::Snappy),
            5 => Ok(Encoding::Lz4),
            _ => Err(UnknownNumber(number, "encoding")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_written_to_the_journal_read_back_as_the_same_signal_and_encoding() {
        for signal in Signal::ALL {
            assert_eq!(Signal::try_from(signal as u8), Ok(signal));
        }
        for encoding in Encoding::ALL {
            assert_eq!(Encoding::try_from(encoding as u8), Ok(encoding));
            assert_eq!(Encoding::from_token(encoding.token()), Some(encoding));
        }
        assert!(Signal::try_from(0).is_err());
        assert_eq!(
            Encoding::try_from(9).unwrap_err().to_string(),
            "9 is the number of no encoding"
        );
    }

    #[test]
    fn tokens_are_read_in_any_case_and_lists_are_refused() {
        assert_eq!(Encoding::from_token(" GZip "), Some(Encoding::Gzip));
        assert_eq!(Encoding::from_token(""), Some(Encoding::Identity));
        assert_eq!(Encoding::from_token("gzip, gzip"), None);
        assert_eq!(Encoding::from_token("br"), None);
    }
}
