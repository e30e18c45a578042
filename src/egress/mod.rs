//! What leaves the house: which spans an exporter forwards, and what is cut out of what it forwards.
//!
//! A [`Policy`] is compiled from one exporter's configuration. It takes the bytes of a checked request and says that they
//! may go as they are, or gives the bytes that go instead. [`Tail`] decides over whole traces.
//!
//! Sans-io: no runtime, no clock, no socket, no journal. Metrics and rows know nothing of it: they are made of
//! everything that was received.
//!
//! # Invariants
//!
//! * What no rule speaks of stays byte for byte, fields unknown to us included: `edit` splices, nothing is decoded into
//!   structures and encoded again.
//! * What a rule says must not leave is in no byte of the result, in all three signals, wherever OTLP has a text: keys,
//!   values at any depth, names, bodies, messages, exemplars. Only fields that this version of OTLP does not define are
//!   not looked into.
//! * Bytes that cannot be read are an error: they do not leave.
//! * The same trace gets the same decision in every process that has the same `sample.ratio`.
//!
//! # Order
//!
//! 1. `drop_spans` and 2. `sample` see spans as they were received. Then, for what is left: 3. `remove_attributes` and
//!    `keep_attributes`, 4. `hash_attributes`, 5. `redact`, 6. `truncate` (a secret cut in half would not be found),
//! 7. `set_resource`.

mod attributes;
mod edit;
mod glob;
mod hash;
mod options;
mod policy;
mod sampling;
mod spans;
mod splice;
mod tail;
#[cfg(test)]
mod tests;

pub use glob::Glob;
pub use options::{EgressOptions, Fingerprint, KeepRule, Secret, SpanCondition, SpanRule};
pub use policy::{EgressError, Outcome, Policy, RuleInfo, Workspace};
pub use sampling::Threshold;
pub use tail::{Decided, Tail, Unreadable};
