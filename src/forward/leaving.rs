//! From a record to what is sent of it: the rules for what leaves ([`crate::egress`]) between the journal and the lanes.
//!
//! # Invariants
//!
//! * Without a rule that concerns a record, its bytes pass untouched.
//! * Traces that wait to be decided stand for the record in which they were first seen. The position does not pass it
//!   before they are decided and delivered, so that after a crash all of their spans are read again.

use std::sync::Arc;

use super::ExporterOptions;
use super::parcel::{Load, LoadError, Parcel, decoded};
use crate::egress::{Decided, Policy, Tail, Workspace};
use crate::journal::Record;
use crate::otlp::{Encoding, Signal};

/// The rules of one exporter, with the traces that wait.
pub(super) struct Leaving {
    policy: Arc<Policy>,
    workspace: Workspace,
    tail: Option<Tail>,
    /// How the last trace request came: traces that waited are sent as it would be.
    received: Encoding,
}

/// What becomes of a record.
pub(super) enum Loaded {
    /// It is sent, as far as it leaves.
    Now(Load),
    /// Its traces wait to be decided; true if one of them begins in it.
    Later(bool),
}

impl Leaving {
    pub(super) fn new(policy: &Arc<Policy>) -> Leaving {
        Leaving {
            policy: Arc::clone(policy),
            workspace: Workspace::default(),
            tail: Tail::new(policy),
            received: Encoding::Identity,
        }
    }

    /// Itself, for another thread; it has to be put back.
    pub(super) fn lend(&mut self) -> Leaving {
        Leaving {
            policy: Arc::clone(&self.policy),
            workspace: std::mem::take(&mut self.workspace),
            tail: self.tail.take(),
            received: self.received,
        }
    }

    pub(super) fn workspace(&mut self) -> &mut Workspace {
        &mut self.workspace
    }

    /// Takes a record in.
    pub(super) fn load(
        &mut self,
        record: &Record,
        options: &ExporterOptions,
        limit: usize,
    ) -> Result<Loaded, LoadError> {
        match &mut self.tail {
            Some(tail) if record.signal == Signal::Traces && options.signals.contains(&Signal::Traces) => {
                let body = decoded(record)?;
                self.received = record.encoding;
                tail.add(record.sequence, record.received_at, &body, &mut self.workspace)
                    .map(Loaded::Later)
                    .map_err(LoadError::Unreadable)
            }
            _ => Load::of(record, options, &self.policy, &mut self.workspace, limit).map(Loaded::Now),
        }
    }

    /// Traces wait to be decided.
    pub(super) fn waits(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| !tail.is_empty())
    }

    /// When the next of them are due, in nanoseconds since 1970.
    pub(super) fn due(&self) -> Option<u64> {
        self.tail.as_ref().and_then(Tail::due)
    }

    /// Whether [`Leaving::decide`] has something to decide.
    pub(super) fn is_due(&self, now: Option<u64>, is_urgent: bool) -> bool {
        self.tail
            .as_ref()
            .is_some_and(|tail| tail.is_due(now) || tail.is_early(is_urgent))
    }

    /// Decides over traces, as far as about so many bytes are sent because of it. See [`Tail::next_due`].
    #[allow(
        clippy::type_complexity,
        reason = "a record with what is sent, or why it is set aside"
    )]
    pub(super) fn decide(
        &mut self,
        now: Option<u64>,
        is_urgent: bool,
        bytes: usize,
        options: &ExporterOptions,
    ) -> Vec<(u64, Result<Load, (Parcel, String)>)> {
        let mut loads = Vec::new();
        let mut size = 0;
        while size < bytes
            && let Some(decided) = self.next(now, is_urgent && loads.is_empty())
        {
            size += decided.body.len();
            let sequence = decided.sequence;
            let encoding = options.encoding_for(self.received);
            let load = Load::decided(&decided, encoding, &self.policy, &mut self.workspace);
            let set_aside = |error: LoadError| (Parcel::decided(&decided), error.to_string());
            loads.push((sequence, load.map_err(set_aside)));
        }
        loads
    }

    fn next(&mut self, now: Option<u64>, is_urgent: bool) -> Option<Decided> {
        let tail = self.tail.as_mut()?;
        let due = tail.next_due(now, &mut self.workspace);
        due.or_else(|| tail.next_early(is_urgent, &mut self.workspace))
    }
}
