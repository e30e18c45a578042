//! What an exporter's rules say, as plain data.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::glob::Glob;
use super::hash::Hasher;
use super::policy::EgressError;
use super::sampling::Threshold;
use crate::otlp::AnyValue;

/// The rules of one exporter. The default has none: everything is forwarded as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressOptions {
    /// Spans that are not forwarded. Default none.
    pub drop_spans: Vec<SpanRule>,
    /// The share of traces that is forwarded. Default all.
    pub ratio: Threshold,
    /// Traces that are forwarded whatever `ratio` says. Default none: then each span is decided by itself, at once.
    pub keep: Vec<KeepRule>,
    /// How long a trace is waited for before `keep` decides. Default 30 s, as the Collector's tail sampling.
    pub wait: Duration,
    /// Memory for traces that wait; over it the oldest are decided early, and counted. Default 64 MiB.
    pub memory: usize,
    /// Keys that are removed wherever they stand, in maps within values too. `*` stands for any characters.
    pub remove_attributes: Vec<String>,
    /// If any: all other attributes are removed. What is within the value of a kept attribute is kept with it.
    pub keep_attributes: Vec<String>,
    /// Keys whose values are replaced by a digest, wherever they stand.
    pub hash_attributes: Vec<String>,
    /// With a key: HMAC-SHA-256. Without: SHA-256, from which values that can be guessed can be found out.
    pub hash_key: Secret,
    /// See [`crate::redact::Patterns::compile`].
    pub redact: Vec<String>,
    /// Longest text of a value, in bytes; 0: any.
    pub truncate: usize,
    /// Attributes that a resource gets if it has no value for them.
    pub set_resource: Vec<(String, String)>,
}

impl Default for EgressOptions {
    fn default() -> EgressOptions {
        EgressOptions {
            drop_spans: Vec::new(),
            ratio: Threshold::ALWAYS,
            keep: Vec::new(),
            wait: Duration::from_secs(30),
            memory: 64 << 20,
            remove_attributes: Vec::new(),
            keep_attributes: Vec::new(),
            hash_attributes: Vec::new(),
            hash_key: Secret::default(),
            redact: Vec::new(),
            truncate: 0,
            set_resource: Vec::new(),
        }
    }
}

/// Spans that something is done with: those for which one of these holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanRule {
    /// The alternatives.
    pub any_of: Vec<SpanCondition>,
    /// The rule as it was written, on one line.
    pub says: String,
}

/// What holds for a span: all that is given, each in one of its alternatives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpanCondition {
    /// Names. None: any.
    pub names: Vec<Glob>,
    /// Kinds, as [`crate::rules::semantics::span_kind`] writes them. None: any.
    pub kinds: Vec<String>,
    /// Attributes of the span with their values.
    pub attributes: Vec<(String, Vec<Glob>)>,
    /// Attributes of its resource with their values.
    pub resource: Vec<(String, Vec<Glob>)>,
}

impl SpanCondition {
    /// The spans of health checks: requests for the paths that are usual for them, and gRPC's own health service.
    pub fn health_checks() -> Vec<SpanCondition> {
        const PATHS: [&str; 14] = [
            "/health",
            "/health/*",
            "/healthz",
            "/healthcheck",
            "/_health",
            "/-/healthy",
            "/-/ready",
            "/livez",
            "/live",
            "/liveness",
            "/readyz",
            "/ready",
            "/readiness",
            "/actuator/health*",
        ];
        let globs = |patterns: Vec<String>| patterns.into_iter().map(Glob::new).collect::<Vec<_>>();
        let attribute = |key: &str, values: Vec<Glob>| SpanCondition {
            attributes: vec![(key.to_owned(), values)],
            ..SpanCondition::default()
        };
        let paths = || globs(PATHS.map(str::to_owned).to_vec());
        let with_query = PATHS
            .iter()
            .flat_map(|path| [(*path).to_owned(), format!("{path}?*")])
            .collect();
        let names = PATHS
            .iter()
            .flat_map(|path| ["GET", "HEAD"].map(|method| format!("{method} {path}")))
            .chain([
                "grpc.health.v1.Health/*".to_owned(),
                "/grpc.health.v1.Health/*".to_owned(),
            ]);
        vec![
            attribute("url.path", paths()),
            attribute("http.route", paths()),
            attribute("http.target", globs(with_query)),
            attribute("rpc.service", vec![Glob::new("grpc.health.v1.Health")]),
            SpanCondition {
                names: globs(names.collect()),
                ..SpanCondition::default()
            },
        ]
    }
}

/// Which traces are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepRule {
    /// Those with a failed span: status ERROR, an `error.type`, or an execution or tool call that failed by the rules of
    /// metrics and rows.
    Errors,
    /// Those that take longer, from the first start to the last end.
    SlowerThan(Duration),
    /// Those with such a span.
    Spans(SpanRule),
}

impl KeepRule {
    /// On one line.
    pub fn says(&self) -> String {
        match self {
            KeepRule::Errors => "errors".to_owned(),
            KeepRule::SlowerThan(limit) => format!("slower_than: {limit:?}"),
            KeepRule::Spans(rule) => rule.says.clone(),
        }
    }
}

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_empty() { "none" } else { "[redacted]" })
    }
}

/// Tells whether a body went through the same rules. Between versions of the program the same rules may have another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of all rules.
    pub rules: String,
    /// Of those that hash values: a digest that is hashed again would be equal to no other.
    pub hashing: String,
}

impl EgressOptions {
    /// The most memory that waiting for traces takes: those that wait, one more copy of those that are decided, until they are
    /// sent, and those that are remembered.
    pub fn memory_bound(&self) -> usize {
        match self.keep.is_empty() {
            true => 0,
            false => 2 * self.memory + super::tail::REMEMBERED,
        }
    }

    /// What stands for these rules beside a body that went through them.
    pub fn fingerprint(&self) -> Fingerprint {
        // With the key, where there is one, so that it changes with the key and tells no more of it than a hashed value.
        let hasher = Hasher::new(&self.hash_key);
        let digest = |text: String| {
            let mut digest = Vec::new();
            hasher.digest(&AnyValue::Bytes(text.as_bytes()), b"", &mut digest);
            digest.truncate(32);
            digest.into_iter().map(char::from).collect()
        };
        Fingerprint {
            rules: digest(format!("{self:?}")),
            hashing: digest(format!("{:?}", self.hash_attributes)),
        }
    }

    /// The rules for a body that was kept because it could not be delivered, and is sent by itself. What went through is
    /// told by `before`; `None` if they did not change since.
    ///
    /// `sample.keep` is left out: a trace is not judged by what happens to be left of it, and what was kept was chosen
    /// already.
    pub fn for_kept(&self, before: Option<&Fingerprint>) -> Option<EgressOptions> {
        let now = self.fingerprint();
        if before.is_some_and(|before| before.rules == now.rules) {
            return None;
        }
        let mut options = self.clone();
        if !options.keep.is_empty() {
            options.keep.clear();
            options.ratio = Threshold::ALWAYS;
        }
        if before.is_some_and(|before| before.hashing == now.hashing) {
            options.hash_attributes.clear();
        }
        Some(options)
    }

    /// Whether some traces may be left out.
    pub(super) fn samples(&self) -> bool {
        self.ratio != Threshold::ALWAYS
    }

    /// What can be told to be wrong without compiling anything.
    pub(super) fn check(&self) -> Result<(), EgressError> {
        let has_open_key = |rule: &SpanRule| {
            let keys = rule
                .any_of
                .iter()
                .flat_map(|condition| condition.attributes.iter().chain(&condition.resource));
            keys.map(|(key, _)| key).any(|key| key.contains('*'))
        };
        let keep_rules = self.keep.iter().filter_map(|rule| match rule {
            KeepRule::Spans(rule) => Some(rule),
            _ => None,
        });
        let mistakes = [
            (
                self.drop_spans.iter().any(has_open_key),
                "drop_spans",
                "`*` may stand in values and names, not in the keys of attributes",
            ),
            (
                keep_rules.into_iter().any(has_open_key),
                "sample.keep",
                "`*` may stand in values and names, not in the keys of attributes",
            ),
            (
                !self.keep.is_empty() && self.wait.is_zero(),
                "sample.wait",
                "`keep` decides over whole traces and has to wait for them",
            ),
            (
                !self.keep.is_empty() && !self.samples(),
                "sample.keep",
                "a `ratio` of 1 keeps everything already",
            ),
            (
                !self.keep.is_empty() && self.memory < 1 << 20,
                "sample.memory",
                "it must be at least 1MiB",
            ),
        ];
        match mistakes.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            Some((_, key, what)) => Err(EgressError::Setting { key, what }),
            None => Ok(()),
        }
    }
}
