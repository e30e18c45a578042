//! `exporters`.

use super::egress;
use crate::config::yaml::Value;
use crate::config::{ByteSize, Node, Section};
use crate::forward::{Compression, ExporterOptions, Headers, Protocol, RefusedLimits, RetryOptions, TlsOptions};
use crate::otlp::{Encoding, Signal};

pub(super) fn bind(root: &Section<'_>) -> Vec<(String, ExporterOptions)> {
    let meaning = "OTLP backends, as `otlp` or `otlp/<name>`. None: nothing is forwarded.";
    root.named_sections("exporters", "otlp", meaning, |name, section| {
        if name != "otlp" && !name.starts_with("otlp/") {
            section.mistake_of_section("an exporter is called otlp or otlp/<name>");
        }
        (name.to_owned(), exporter(section))
    })
}

fn exporter(section: &Section<'_>) -> ExporterOptions {
    let protocols = [("http/protobuf", Protocol::HttpProtobuf), ("grpc", Protocol::Grpc)];
    let endpoint = section.url("endpoint", "Address, such as http://signoz:4318. Required.");
    let protocol = section.choice("protocol", "http/protobuf", "How requests are sent.", &protocols);
    let options = ExporterOptions {
        protocol,
        headers: section.parsed_secret(
            "headers",
            "{}",
            "Headers of every request: a map, `k=v,k2=v2`, or a JSON object. SigNoz Cloud: signoz-ingestion-key.",
            "map",
            headers,
        ),
        compression: section.choice(
            "compression",
            "as_received",
            "Bodies go out as they came in, or always in this encoding.",
            &[
                ("as_received", Compression::AsReceived),
                ("none", Compression::Always(Encoding::Identity)),
                ("gzip", Compression::Always(Encoding::Gzip)),
                ("zstd", Compression::Always(Encoding::Zstd)),
            ],
        ),
        accepts: section.parsed(
            "accepts",
            "[]",
            "Encodings besides none and gzip that the backend understands, such as [zstd].",
            "list",
            |node| {
                list_of(node, |text| {
                    // By `snappy` backends mean two different formats, so it is never passed on.
                    let passes = |encoding: &Encoding| !matches!(encoding, Encoding::Snappy | Encoding::Lz4);
                    Encoding::from_token(text)
                        .filter(passes)
                        .ok_or("an encoding: zstd, deflate")
                })
            },
        ),
        signals: section.parsed(
            "signals",
            "[traces, metrics, logs]",
            "The signals that are sent here.",
            "list",
            |node| list_of(node, |text| signal(text).ok_or("traces, metrics or logs")),
        ),
        merge: section.get("merge", "true", "Small requests of one signal are joined."),
        max_request_size: size(
            section,
            "max_request_size",
            "3.5MiB",
            "Before compression; larger requests are split.",
        ),
        max_concurrent_requests: section.get("max_concurrent_requests", "8", "Requests under way at the same time."),
        timeout: section.get("timeout", "10s", "For one attempt."),
        retry_on_failure: section.section("retry_on_failure", "When to try again.", |retry| RetryOptions {
            initial_interval: retry.get("initial_interval", "1s", "The first delay."),
            max_interval: retry.get("max_interval", "30s", "The longest delay."),
            max_elapsed_time: retry.get("max_elapsed_time", "0", "Give up after this time; 0: never."),
        }),
        refused: section.section(
            "refused",
            "What the backend refused for its content, kept to be looked at.",
            |refused| {
                let ByteSize(max_size) =
                    refused.get("max_size", "64MiB", "At most so many bytes; the oldest go first.");
                RefusedLimits {
                    max_size,
                    max_count: refused.get("max_count", "10000", "At most so many requests."),
                }
            },
        ),
        tls: section.section("tls", "TLS to the backend.", |tls| TlsOptions {
            insecure: tls.get(
                "insecure",
                "false",
                "An endpoint without a scheme is spoken to in plain text.",
            ),
            ca_file: tls.get("ca_file", "", "Authorities (PEM) to trust instead of the public ones."),
            cert_file: tls.get("cert_file", "", "Client certificate (PEM)."),
            key_file: tls.get("key_file", "", "Key of the client certificate (PEM)."),
        }),
        egress: egress::bind(section),
        endpoint: endpoint.into(),
    };
    if let Err(error) = options.check() {
        section.mistake(error.key(), error.to_string());
    }
    options
}

/// A size in bytes as the rooms take it.
pub(super) fn size(section: &Section<'_>, key: &'static str, default: &'static str, meaning: &'static str) -> usize {
    let ByteSize(bytes) = section.get(key, default, meaning);
    if bytes == 0 {
        section.mistake(key, "expected a size above 0");
    }
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn signal(text: &str) -> Option<Signal> {
    Signal::ALL.into_iter().find(|signal| signal.to_string() == text)
}

fn list_of<T>(node: &Node, parse: impl Fn(&str) -> Result<T, &'static str>) -> Result<Vec<T>, String> {
    let texts = <Vec<String> as crate::config::Setting>::from_node(node)?;
    texts
        .iter()
        .map(|text| parse(text).map_err(|expected| format!("`{text}` is not {expected}")))
        .collect()
}

fn headers(node: &Node) -> Result<Headers, String> {
    let parsed = match &node.value {
        Value::Scalar { text, .. } => Headers::parse(text),
        _ => {
            let pairs = <Vec<(String, String)> as crate::config::Setting>::from_node(node)?;
            // A key from a variable that is not set would be sent as an empty header; it is left out instead.
            let given = pairs.iter().filter(|(_, value)| !value.is_empty());
            Headers::from_pairs(given.map(|(name, value)| (name.as_str(), value.as_str())))
        }
    };
    parsed.map_err(|error| error.to_string())
}
