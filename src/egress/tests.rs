//! The rules on whole requests.

mod differential;
mod rules;
mod secrets;
mod share;
mod tail;

use bytes::Bytes;

use super::{EgressOptions, Outcome, Policy, Workspace};
use crate::otlp::Signal;

/// What leaves of a request: the same bytes, others, or nothing.
fn applied(policy: &Policy, signal: Signal, body: &Bytes) -> Option<Bytes> {
    let outcome = policy.apply(signal, body, &mut Workspace::default()).unwrap();
    match outcome {
        Outcome::Unchanged => Some(body.clone()),
        Outcome::Changed { body, .. } => Some(body),
        Outcome::Nothing => None,
    }
}

fn compiled(change: impl FnOnce(&mut EgressOptions)) -> Policy {
    let mut options = EgressOptions::default();
    change(&mut options);
    Policy::compile(&options).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
