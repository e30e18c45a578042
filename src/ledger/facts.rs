//! What the ledger needs to know of a span, and nothing else: a compact, owned [`Facts`] for the few spans that are an
//! execution or can tell something about one. [`Extractor`](super::extract::Extractor) takes them out of requests.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::records::Record;
use super::row::Source;
use crate::hex;
use crate::rules::semantics::Outcome;

/// A trace and a span in it: the identity of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanId {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
}

impl SpanId {
    /// The id of the row: `<trace>-<span>` in lower-case hex.
    pub fn row_id(&self) -> String {
        let mut id = [b'-'; 49];
        put_hex(&mut id[..32], &self.trace);
        put_hex(&mut id[33..], &self.span);
        ascii(&id)
    }

    /// The trace in lower-case hex.
    pub fn trace_hex(&self) -> String {
        let mut hex = [0; 32];
        put_hex(&mut hex, &self.trace);
        ascii(&hex)
    }

    /// The span in lower-case hex.
    pub fn span_hex(&self) -> String {
        let mut hex = [0; 16];
        put_hex(&mut hex, &self.span);
        ascii(&hex)
    }
}

/// Two digits for each byte.
fn put_hex(digits: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = hex::digits(*byte);
    }
}

fn ascii(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

impl Role {
    /// The execution that this span is when nobody else stands for it.
    pub fn alone(&self) -> Option<&Execution> {
        match self {
            Role::Runtime(runtime) => runtime.alone.as_ref(),
            Role::Tool { alone } => Some(alone),
            _ => None,
        }
    }
}

/// What is known of one span.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Which span.
    pub id: SpanId,
    /// When it began, Unix nanoseconds, as sent.
    pub start: u64,
    /// When it ended, as sent, but never before it began.
    pub end: u64,
    /// When the request it came in was received.
    pub received_at: u64,
    /// The rest, which is kept as one value in the context table.
    pub told: Told,
}

/// The part of [`Facts`] that is kept as JSON while a span waits for its partners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// `workflow.execution_id`, unless empty.
    #[serde(default, rename = "x", skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<String>,
    /// `node.id`, unless empty.
    #[serde(default, rename = "n", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The row of a further table that it is.
    #[serde(default, rename = "r", skip_serializing_if = "Option::is_none")]
    pub record: Option<Box<Record>>,
    /// What the span is to an execution.
    #[serde(flatten)]
    pub role: Role,
}

impl Told {
    /// As the context table and the quarantine hold it.
    pub(super) fn to_json(&self) -> String {
        ascii_json(self)
    }
}

/// JSON of nothing but ASCII, which a database of any encoding takes. Rows may be refused for their characters; what waits,
/// and what was set aside, must never be.
pub(super) fn ascii_json<T: Serialize>(value: &T) -> String {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Ascii);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(json).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// Writes what is not ASCII as `\uXXXX`.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// What a span is to an execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// It is one: this span becomes a row.
    Execution(Box<Execution>),
    /// The second `code.execute` that the router makes of an execution: no row, but it knows the runtime.
    Inner {
        /// `code.runtime`.
        #[serde(default)]
        runtime: Option<String>,
    },
    /// A workflow node, which knows the tenant, and the error of its last attempt.
    Node(Box<Node>),
    /// `runtimeRouter.route`, which knows the runtime that was chosen.
    Router {
        /// `runtime.selected`.
        #[serde(default)]
        selected: Option<String>,
    },
    /// A runtime's own span.
    Runtime(Box<Runtime>),
    /// A tool's own span: nothing to an execution, but one itself when nobody else stands for it.
    Tool {
        /// That execution.
        alone: Box<Execution>,
    },
    /// An ETL hook, which knows the code agent, and the error.
    Hook {
        /// `hook.agent_id`.
        #[serde(default)]
        agent_id: Option<String>,
        /// The message of a status that is ERROR.
        #[serde(default)]
        error: Option<String>,
    },
    /// Nothing to an execution: only a row of a further table.
    Other,
}

/// A value and where on the span it was found.
pub type Sourced<T> = (T, Source);

/// What an execution's own span tells of its row.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Execution {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_agent_id: Option<Sourced<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub success: Sourced<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Sourced<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_used: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_passed: Option<bool>,
    #[serde(skip_serializing_if = "Tenant::is_empty")]
    pub span_tenant: Tenant,
    #[serde(skip_serializing_if = "Tenant::is_empty")]
    /// Shared by all spans of the resource: its text may be a thousand times as long as one of them.
    pub resource_tenant: Arc<Tenant>,
    /// `security.namespace`, unless it is `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The end of the span as the row holds it.
    pub created_at: u64,
    /// Whether the metrics count this span as timed out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// What it cost, if it says so, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

impl Execution {
    /// How the span itself says it ended: what the metrics count.
    pub fn reported_outcome(&self) -> Outcome {
        match (self.timed_out, self.success.0) {
            (true, _) => Outcome::Timeout,
            (false, true) => Outcome::Success,
            (false, false) => Outcome::Error,
        }
    }
}

/// Whom a span belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Tenant {
    #[serde(rename = "o", skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    #[serde(rename = "w", skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(rename = "u", skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

impl Tenant {
    pub(super) fn is_empty(&self) -> bool {
        *self == Tenant::default()
    }
}

/// What a node span tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Whom the workflow ran for.
    pub tenant: Tenant,
    /// `node.error`: of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many attempts there were, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i64>,
}

/// What a runtime's own span tells.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the columns are")]
#[serde(default)]
pub struct Runtime {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i32>,
    /// The execution it is when nobody else stands for it, if that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alone: Option<Execution>,
}

/// The agent in the `node.id` of an execution that a hook runs.
pub(super) fn agent_of_hook(node_id: &str) -> Option<&str> {
    let id = node_id.strip_prefix("pre-ingest-hook-");
    id.or_else(|| node_id.strip_prefix("post-answer-hook-"))
}
