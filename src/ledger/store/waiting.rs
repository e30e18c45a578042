//! Waiting spans (`spanledger_context`) in a database: what both have in common.

use super::StoreError;
use crate::ledger::facts::{Facts, SpanId, Told};
use crate::ledger::world::stable_hash;

/// What spans to look for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct Keys {
    /// Sorted, each once.
    pub(in crate::ledger) traces: Vec<[u8; 16]>,
    /// Sorted, each once.
    pub(in crate::ledger) nodes: Vec<i64>,
}

/// How many locks there are. Each key has one of them; a batch of many keys then takes a bounded part of the
/// database's lock table, which all its users share.
const LOCKS: u64 = 256;

impl Keys {
    /// The keys of `facts`.
    pub(in crate::ledger) fn of(facts: &[Facts]) -> Keys {
        let mut nodes: Vec<_> = facts.iter().filter_map(Facts::node_hash).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Keys {
            nodes,
            ..Keys::of_traces(facts)
        }
    }

    /// The traces of `facts` alone.
    pub(in crate::ledger) fn of_traces<'f>(facts: impl IntoIterator<Item = &'f Facts>) -> Keys {
        let mut traces: Vec<_> = facts.into_iter().map(|facts| facts.id.trace).collect();
        traces.sort_unstable();
        traces.dedup();
        Keys {
            traces,
            nodes: Vec::new(),
        }
    }

    /// The keys of these that are not among `self`, which has them all afterwards.
    pub(in crate::ledger) fn grow(&mut self, facts: &[Facts]) -> Keys {
        fn grow<T: Ord + Copy>(known: &mut Vec<T>, more: Vec<T>) -> Vec<T> {
            let new: Vec<T> = more
                .into_iter()
                .filter(|key| known.binary_search(key).is_err())
                .collect();
            known.extend(&new);
            known.sort_unstable();
            new
        }
        let more = Keys::of(facts);
        Keys {
            traces: grow(&mut self.traces, more.traces),
            nodes: grow(&mut self.nodes, more.nodes),
        }
    }

    /// Whether there is none.
    pub(in crate::ledger) fn is_empty(&self) -> bool {
        self.traces.is_empty() && self.nodes.is_empty()
    }

    /// The locks of the keys, sorted: two sidecars that take them in this order cannot wait for each other.
    pub(in crate::ledger) fn locks(&self) -> Vec<i32> {
        let traces = self.traces.iter().map(|trace| stable_hash(&[trace]));
        let lock = |hash: i64| (hash.cast_unsigned() % LOCKS) as i32;
        let mut locks: Vec<_> = traces.chain(self.nodes.iter().copied()).map(lock).collect();
        locks.sort_unstable();
        locks.dedup();
        locks
    }
}

/// At most this many spans are read for one batch, the latest first: a trace that never ends must not grow a batch
/// without bounds.
pub(in crate::ledger) const LOAD_LIMIT: usize = 20_000;

/// Nor more than this many bytes of what they tell, as it is stored: an error of 8 KiB on each would be 160 MiB.
pub(in crate::ledger) const LOAD_BYTES: usize = 16 << 20;

/// How much may still be loaded for one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) struct Room {
    pub(in crate::ledger) spans: usize,
    pub(in crate::ledger) bytes: usize,
}

impl Room {
    /// Of a batch.
    pub(in crate::ledger) fn of_batch() -> Room {
        Room {
            spans: LOAD_LIMIT,
            bytes: LOAD_BYTES,
        }
    }

    /// Without bounds.
    pub(super) fn unbounded() -> Room {
        Room {
            spans: usize::MAX,
            bytes: usize::MAX,
        }
    }

    /// One span more, which tells so many bytes.
    pub(super) fn take(&mut self, bytes: usize) {
        self.spans = self.spans.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether there is none left.
    pub(in crate::ledger) fn is_used_up(&self) -> bool {
        self.spans == 0 || self.bytes == 0
    }
}

/// Spans whose partners may still come: executions that may still be completed, and spans that may complete one. In a
/// transaction, all of it.
#[allow(async_fn_in_trait, reason = "used within this room, with two implementations")]
pub(in crate::ledger) trait Waiting {
    /// These wait from now on, which do not wait yet, as far as was loaded in this transaction; how many. No savepoint
    /// before it is returned to.
    async fn wait(&mut self, facts: &[&Facts]) -> Result<u64, StoreError>;
    /// The waiting spans with any of the keys, the latest ones, until there is no more room.
    async fn load(&mut self, keys: &Keys, room: &mut Room) -> Result<Vec<Facts>, StoreError>;
    /// Waiting spans that are due to become rows, at most `limit`.
    async fn due(&mut self, now: i64, limit: i64) -> Result<Vec<Facts>, StoreError>;
    /// These no longer wait.
    async fn forget(&mut self, facts: &[Facts]) -> Result<(), StoreError>;
    /// These are no longer due.
    async fn settle(&mut self, facts: &[Facts]) -> Result<(), StoreError>;
    /// Those received before are due now, if they can become rows at all.
    async fn hurry(&mut self, received_before: i64, now: i64) -> Result<(), StoreError>;
    /// Forgets those received before, but for those that are still to become rows if `keep_due`; how many.
    async fn forget_before(&mut self, received_before: i64, keep_due: bool, limit: i64) -> Result<u64, StoreError>;
    /// How many wait, and when the one was received that has `max_pending` received after it.
    async fn count_waiting(&mut self, max_pending: i64) -> Result<(i64, Option<i64>), StoreError>;
}

/// What [`stored_facts`] takes, in its order.
pub(super) const STORED_COLUMNS: &str = "trace_id, span_id, start_ns, end_ns, received_at_ns, facts";

/// A waiting span as it was stored. One that cannot be read, because a later version wrote it, is as if it were not
/// there.
pub(super) fn stored_facts(trace: &[u8], span: &[u8], times: [i64; 3], told: &str) -> Option<Facts> {
    let told: Told = serde_json::from_str(told).ok()?;
    let id = SpanId {
        trace: trace.try_into().ok()?,
        span: span.try_into().ok()?,
    };
    let [start, end, received_at] = times.map(i64::cast_unsigned);
    Some(Facts {
        id,
        start,
        end,
        received_at,
        told,
    })
}
