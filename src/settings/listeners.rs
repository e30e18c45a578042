//! `receivers`, `metrics`, `api`, `health`: everything that listens.

use std::path::PathBuf;
use std::time::Duration;

use super::exporters::size;
use crate::api::query::{ApiToken, QueryOptions, RowsShown};
use crate::config::yaml::Value;
use crate::config::{Mistakes, Node, Section};
use crate::listen::{Auth, Limits, ListenOptions, TlsOptions};
use crate::receive::{CorsOptions, GrpcOptions, HttpOptions, ReceiveOptions};
use crate::rules::{Catalogue, RuleFile};

/// What `endpoint` of a listener means.
const ENDPOINT: &str = "host:port; port 0 picks a free one; unix:///path.";

/// `metrics`.
#[derive(Clone)]
pub struct MetricsSettings {
    /// Where the scrape is served.
    pub listen: ListenOptions,
    /// Series of one metric before further ones fold into the overflow series.
    pub max_series_per_metric: usize,
    /// Resource attributes that become labels of every derived metric.
    pub resource_labels: Vec<String>,
    /// Labels with fixed values on every derived metric.
    pub const_labels: Vec<(String, String)>,
    /// Files of further rules.
    pub rules: Vec<PathBuf>,
    /// How often the derived metrics are sent by OTLP as well.
    pub push_interval: Option<Duration>,
}

impl MetricsSettings {
    /// The metrics in force: the built-in ones and those of the rules files.
    ///
    /// # Errors
    ///
    /// All mistakes in the files and labels.
    pub fn catalogue(&self) -> Result<Catalogue, Mistakes> {
        let mut mistakes = Vec::new();
        let mut files = Vec::new();
        for path in &self.rules {
            match RuleFile::read(path) {
                Ok(file) => files.push(file),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() {
            Catalogue::load(&files, &self.resource_labels, &self.const_labels)
        } else {
            Err(Mistakes(mistakes))
        }
    }
}

/// `api`.
#[derive(Clone)]
pub struct ApiSettings {
    /// Where the API is served.
    pub listen: ListenOptions,
    /// What it shows, to whom; the database is filled in by who builds the program.
    pub query: QueryOptions,
}

pub(super) fn receivers(section: &Section<'_>) -> ReceiveOptions {
    section.section("otlp", "OTLP.", |otlp| {
        let (grpc, http) = otlp.section("protocols", "", |protocols| (grpc(protocols), http(protocols)));
        ReceiveOptions {
            grpc: Some(grpc),
            http: Some(http),
            auth: otlp.section("auth", "Who may send.", auth),
            max_in_flight_bytes: size(
                otlp,
                "max_in_flight_size",
                "20MiB",
                "Requests in memory at once; beyond it senders are told to try again. One that is larger than a quarter of it goes beside the others, one at a time.",
            ),
        }
    })
}

fn grpc(protocols: &Section<'_>) -> GrpcOptions {
    protocols.section("grpc", "OTLP/gRPC.", |section| {
        let endpoint = section.get("endpoint", "${env:SPANLEDGER_LISTEN_HOST:-127.0.0.1}:4317", ENDPOINT);
        let mebibytes: usize = section.get(
            "max_recv_msg_size_mib",
            "64",
            "Largest message in MiB, before and after decompression.",
        );
        if mebibytes == 0 || mebibytes > 1024 {
            section.mistake("max_recv_msg_size_mib", "expected 1 to 1024");
        }
        let read_timeout = timeout(section, "read_timeout", "60s", "Time for the message of one request to arrive.");
        let mut limits = limits(section);
        let streams = count(
            section,
            "max_concurrent_streams",
            "256",
            "Requests at once on one connection.",
        );
        limits.max_streams = u32::try_from(streams).unwrap_or(u32::MAX);
        section.section("keepalive", "", |keepalive| {
            keepalive.section("server_parameters", "", |keepalive| {
                limits.idle_timeout = timeout(
                    keepalive,
                    "max_connection_idle",
                    "10m",
                    "A connection without requests is closed after this.",
                );
                limits.max_connection_age = optional_timeout(
                    keepalive,
                    "max_connection_age",
                    "An older connection, give or take a tenth, is told to end, so that senders spread anew over what is behind a balancer; unset: at any age.",
                );
                limits.max_connection_age_grace = optional_timeout(
                    keepalive,
                    "max_connection_age_grace",
                    "Then it is cut off after this; unset: when its requests are answered.",
                );
                limits.ping_interval = optional_timeout(
                    keepalive,
                    "time",
                    "How often the peer is asked whether it is still there; unset: never.",
                );
                limits.ping_timeout = timeout(keepalive, "timeout", "20s", "How long it may take to answer that.");
            });
        });
        GrpcOptions {
            endpoint,
            max_recv_msg_size: mebibytes.clamp(1, 1024) << 20,
            read_timeout,
            limits,
            tls: tls(section),
        }
    })
}

fn http(protocols: &Section<'_>) -> HttpOptions {
    protocols.section("http", "OTLP/HTTP, protobuf and JSON.", |section| {
        let endpoint = section.get("endpoint", "${env:SPANLEDGER_LISTEN_HOST:-127.0.0.1}:4318", ENDPOINT);
        let max_request_body_size = size(
            section,
            "max_request_body_size",
            "64MiB",
            "Largest body, before and after decompression.",
        );
        let cors = section.section("cors", "For browsers that send across origins.", |cors| CorsOptions {
            allowed_origins: cors.get("allowed_origins", "[]", "Origins, such as https://*.example.com, or *."),
            allowed_headers: cors.get("allowed_headers", "[]", "Headers beside the usual ones."),
            max_age: cors.get("max_age", "2h", "How long browsers remember the answer."),
        });
        HttpOptions {
            endpoint,
            max_request_body_size,
            read_timeout: timeout(
                section,
                "read_timeout",
                "60s",
                "Time for the body of one request to arrive.",
            ),
            limits: limits_with_idle(section),
            cors,
            tls: tls(section),
        }
    })
}

pub(super) fn metrics(section: &Section<'_>) -> MetricsSettings {
    let push_interval: Option<Duration> = section.get(
        "push_interval",
        "",
        "Send the derived metrics this often to each exporter that takes metrics; unset: never.",
    );
    if push_interval.is_some_and(|interval| interval < Duration::from_secs(1)) {
        section.mistake("push_interval", "expected 1s or more");
    }
    MetricsSettings {
        push_interval,
        listen: listen(section, "metrics", "${env:SPANLEDGER_LISTEN_HOST:-127.0.0.1}:8889"),
        max_series_per_metric: section.get(
            "max_series_per_metric",
            "2000",
            "Further series of a metric fold into one, labelled otel_metric_overflow.",
        ),
        resource_labels: section.get(
            "resource_labels",
            "[]",
            "Resource attributes that become labels, such as [service.name, k8s.namespace.name].",
        ),
        const_labels: section.get("const_labels", "{}", "Labels with fixed values."),
        rules: section.get(
            "rules",
            "[]",
            "Files of further rules; a built-in metric is overridden by its name.",
        ),
    }
}

pub(super) fn api(section: &Section<'_>) -> ApiSettings {
    let listen = endpoint(section, "api", "${env:SPANLEDGER_LISTEN_HOST:-127.0.0.1}:8890");
    let rows = section.choice(
        "rows",
        "own",
        "Show the rows that this program wrote, or the whole table.",
        &[("own", RowsShown::Own), ("all", RowsShown::All)],
    );
    let meaning = "Base URL of SigNoz, for links from a row to its trace.";
    let signoz_url = section.parsed("signoz_url", "", meaning, "text", |node| match &node.value {
        Value::Null => Ok(None),
        Value::Scalar { text, .. } if text.is_empty() => Ok(None),
        Value::Scalar { text, .. } if text.contains('@') => {
            Err("the address alone: everybody who sees a row sees the link, and so a password in it".to_owned())
        }
        Value::Scalar { text, .. } => Ok(Some(text.clone())),
        Value::Sequence(_) | Value::Mapping(_) => Err("one text".to_owned()),
    });
    let (tokens, users, insecure) = section.section("auth", "Who may ask. Off loopback it is required.", |auth| {
        let meaning = "Tokens, or {token: …, organization: …} to see one organization only.";
        let tokens: Vec<ApiToken> = auth.parsed_secret("bearer_tokens", "[]", meaning, "list", api_tokens);
        (
            tokens,
            basic_users(auth),
            auth.get("insecure", "false", "Listen off loopback without tokens and users."),
        )
    });
    ApiSettings {
        listen,
        query: QueryOptions {
            rows,
            signoz_url,
            tokens,
            users,
            insecure,
            ..QueryOptions::default()
        },
    }
}

pub(super) fn health(section: &Section<'_>) -> ListenOptions {
    listen(section, "health", "${env:SPANLEDGER_LISTEN_HOST:-127.0.0.1}:13133")
}

/// A listener with `endpoint`, `tls` and `auth`.
fn listen(section: &Section<'_>, key: &'static str, default: &'static str) -> ListenOptions {
    let listen = endpoint(section, key, default);
    ListenOptions {
        auth: section.section("auth", "Who may ask.", auth),
        ..listen
    }
}

/// A listener with `endpoint` and `tls`.
fn endpoint(section: &Section<'_>, key: &'static str, default: &'static str) -> ListenOptions {
    let endpoint: String = section.get("endpoint", default, ENDPOINT);
    ListenOptions {
        limits: limits_with_idle(section),
        tls: tls(section),
        ..ListenOptions::new(endpoint, key)
    }
}

/// What one peer, and all together, may cost a listener, by the names that the Collector has for it where it has one.
fn limits(section: &Section<'_>) -> Limits {
    let max_connections = count(
        section,
        "max_connections",
        "1024",
        "Connections at once; one that is idle gives way to a further one.",
    );
    let of_one_peer: Option<usize> = section.get(
        "max_connections_per_peer",
        "",
        "Connections at once of one address; unset: three quarters of max_connections.",
    );
    if of_one_peer == Some(0) {
        section.mistake("max_connections_per_peer", MORE_THAN_NOTHING);
    }
    Limits {
        max_connections,
        max_connections_of_one_peer: of_one_peer.unwrap_or((max_connections - max_connections / 4).max(1)),
        header_timeout: timeout(
            section,
            "read_header_timeout",
            "10s",
            "Time for the head of a request to arrive.",
        ),
        write_timeout: timeout(
            section,
            "write_timeout",
            "30s",
            "How long a peer may leave an answer unread.",
        ),
        ..Limits::default()
    }
}

/// With the idle time-out as the Collector names it for HTTP.
fn limits_with_idle(section: &Section<'_>) -> Limits {
    Limits {
        idle_timeout: timeout(
            section,
            "idle_timeout",
            "10m",
            "A connection without requests is closed after this.",
        ),
        ..limits(section)
    }
}

/// Zero is "no limit" to the Collector. Here every listener has its limits.
const MORE_THAN_NOTHING: &str = "expected more than 0; there is no way to have no limit, but it may be large";

/// A number that cannot be 0.
fn count(section: &Section<'_>, key: &'static str, default: &'static str, meaning: &'static str) -> usize {
    let value: usize = section.get(key, default, meaning);
    if value == 0 {
        section.mistake(key, MORE_THAN_NOTHING);
    }
    value
}

/// A time that cannot be 0.
fn timeout(section: &Section<'_>, key: &'static str, default: &'static str, meaning: &'static str) -> Duration {
    let value: Duration = section.get(key, default, meaning);
    if value.is_zero() {
        section.mistake(key, MORE_THAN_NOTHING);
    }
    value
}

/// A time that cannot be 0, if it is given.
fn optional_timeout(section: &Section<'_>, key: &'static str, meaning: &'static str) -> Option<Duration> {
    let value: Option<Duration> = section.get(key, "", meaning);
    if value.is_some_and(|value| value.is_zero()) {
        section.mistake(key, "expected more than 0; leave it out to have none");
    }
    value
}

fn tls(section: &Section<'_>) -> Option<TlsOptions> {
    section.section("tls", "Serve TLS.", |tls| {
        let certificate: Option<PathBuf> = tls.get("cert_file", "", "Certificate (PEM).");
        let private_key: Option<PathBuf> = tls.get("key_file", "", "Key of the certificate (PEM).");
        let client_ca_file = tls.get(
            "client_ca_file",
            "",
            "Ask clients for a certificate of these authorities (PEM).",
        );
        match (certificate, private_key) {
            (Some(cert_file), Some(key_file)) => Some(TlsOptions {
                cert_file,
                key_file,
                client_ca_file,
            }),
            (None, None) if client_ca_file.is_none() => None,
            _ => {
                tls.mistake(
                    "cert_file",
                    "cert_file and key_file go together, and client_ca_file needs both",
                );
                None
            }
        }
    })
}

fn auth(section: &Section<'_>) -> Auth {
    let tokens: Vec<String> = section.secret(
        "bearer_tokens",
        "[]",
        "Tokens that are let in; without tokens and users everybody is.",
    );
    if tokens.iter().any(String::is_empty) {
        section.mistake("bearer_tokens", "a token is empty; is its variable set?");
    }
    let users = basic_users(section);
    Auth::bearer(tokens.into_iter().filter(|token| !token.is_empty()))
        .and_users(users.iter().map(|(user, password)| (user.as_str(), password.as_str())))
}

/// Names and passwords of basic authentication; those that could not be meant are mistakes.
fn basic_users(section: &Section<'_>) -> Vec<(String, String)> {
    let users: Vec<(String, String)> = section.secret(
        "basic_users",
        "{}",
        "Users of basic authentication and their passwords, such as {prometheus: \"${file:/run/secrets/scrape}\"}.",
    );
    for (user, password) in &users {
        if user.is_empty() || user.contains(':') {
            section.mistake("basic_users", "the name of a user is empty or has a colon");
        }
        if password.is_empty() {
            section.mistake("basic_users", "a password is empty; is its variable set?");
        }
    }
    users
}

fn api_tokens(node: &Node) -> Result<Vec<ApiToken>, String> {
    let items = match &node.value {
        Value::Sequence(items) => items.as_slice(),
        Value::Scalar { .. } => std::slice::from_ref(node),
        _ => return Err(format!("expected a list, got {}", node.kind())),
    };
    items.iter().map(api_token).collect()
}

fn api_token(node: &Node) -> Result<ApiToken, String> {
    let text = |node: &Node| <Option<String> as crate::config::Setting>::from_node(node);
    let token = match &node.value {
        Value::Mapping(entries) => {
            if let Some(entry) = entries
                .iter()
                .find(|entry| !matches!(entry.key.as_str(), "token" | "organization"))
            {
                return Err(format!("unknown key `{}`; expected token and organization", entry.key));
            }
            let organization = node.get("organization").map(text).transpose()?.flatten();
            if organization.is_none() {
                // An empty organization would show all of them, the opposite of what was meant.
                return Err("a token with an empty organization; is its variable set?".into());
            }
            ApiToken {
                token: node.get("token").map(text).transpose()?.flatten().unwrap_or_default(),
                organization,
            }
        }
        _ => ApiToken {
            token: text(node)?.unwrap_or_default(),
            organization: None,
        },
    };
    if token.token.is_empty() {
        Err("a token is empty; is its variable set?".into())
    } else {
        Ok(token)
    }
}
