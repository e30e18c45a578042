//! From a record to what is sent of it: the rules for what leaves ([`crate::egress`]) between the journal and the lanes.
//!
//! # Invariants
//!
//! * Without a rule that concerns a record, its bytes pass untouched.
//! * Traces that wait to be decided stand for the record in which they were first seen. The position does not pass it
//!   before they are decided and delivered, so that after a crash all of their spans are read again.

use std::sync::Arc;

use super::ExporterOptions;
use super::load::{Load, LoadError, decoded};
use super::parcel::Parcel;
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
    /// Nothing: the exporter does not send its signal.
    NotSent,
    /// It is sent, as far as it leaves.
    Now(Load),
    /// Its traces wait to be decided.
    Later {
        /// One of them begins in it.
        begins: bool,
        /// What it decoded to.
        bytes: usize,
    },
}

/// What becomes of the traces that were first seen in one record.
pub(super) struct Sent {
    pub(super) sequence: u64,
    /// It is sent, as far as it leaves.
    pub(super) load: Option<Load>,
    /// It is set aside, and why.
    pub(super) aside: Vec<(Parcel, LoadError)>,
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
        if !options.signals.contains(&record.signal) {
            return Ok(Loaded::NotSent);
        }
        match &mut self.tail {
            Some(tail) if record.signal == Signal::Traces => {
                let body = decoded(record)?;
                self.received = record.encoding;
                tail.add(record.sequence, record.received_at, &body, &mut self.workspace)
                    .map(|begins| Loaded::Later {
                        begins,
                        bytes: body.len(),
                    })
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
    pub(super) fn decide(
        &mut self,
        now: Option<u64>,
        is_urgent: bool,
        bytes: usize,
        options: &ExporterOptions,
    ) -> Vec<Sent> {
        let mut all = Vec::new();
        let mut size = 0;
        while size < bytes
            && let Some(decided) = self.next(now, is_urgent && all.is_empty())
        {
            size += decided.body.len();
            let encoding = options.encoding_for(self.received);
            let mut sent = Sent {
                sequence: decided.sequence,
                load: None,
                aside: Vec::new(),
            };
            match Load::decided(&decided, encoding, &self.policy, &mut self.workspace) {
                Ok(load) => sent.load = Some(load),
                Err(error) => sent
                    .aside
                    .push((Parcel::decided(&decided, decided.body.clone(), decided.spans), error)),
            }
            if let Some(unreadable) = &decided.unreadable {
                let parcel = Parcel::decided(&decided, unreadable.body.clone(), unreadable.spans);
                sent.aside.push((parcel, LoadError::Unreadable(unreadable.broken)));
            }
            all.push(sent);
        }
        all
    }

    fn next(&mut self, now: Option<u64>, is_urgent: bool) -> Option<Decided> {
        let tail = self.tail.as_mut()?;
        let due = tail.next_due(now, &mut self.workspace);
        due.or_else(|| tail.next_early(is_urgent, &mut self.workspace))
    }
}
