//! The facts that are known, indexed so that the partners of a span are found without looking at all of them.
//!
//! Two spans *belong together* when `workflow.execution_id` and `node.id` are equal; where one of them has not both,
//! when they are of the same trace and do not name two different workflow executions. They must also have been
//! received within the assembly window of each other, whatever the order. Both are symmetric and depend on the two spans
//! alone, so what is found does not depend on the order of arrival.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;

use foldhash::fast::RandomState;

use super::facts::{Facts, Role, SpanId, agent_of_hook};

/// Clocks and rounding differ this much between a span and the one that encloses it: the JavaScript SDK takes the
/// start from the millisecond clock and the end from a finer one.
pub const TOLERANCE: u64 = 50_000_000;

/// The key of a span that names both its workflow execution and its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeKey<'a> {
    /// `workflow.execution_id`.
    pub execution_id: &'a str,
    /// `node.id`.
    pub node_id: &'a str,
}

impl Facts {
    /// The key of this span, if it names both.
    pub fn node_key(&self) -> Option<NodeKey<'_>> {
        let (execution_id, node_id) = (self.told.execution_id.as_deref()?, self.told.node_id.as_deref()?);
        Some(NodeKey { execution_id, node_id })
    }

    /// The key as a number that is the same in every process and version: it is stored, and it names a lock.
    /// Two keys with one number cost a little work; they are never taken for one.
    pub fn node_hash(&self) -> Option<i64> {
        let key = self.node_key()?;
        Some(stable_hash(&[key.execution_id.as_bytes(), key.node_id.as_bytes()]))
    }

    /// Whether this span lies inside the time of `outer`.
    pub fn lies_inside(&self, outer: &Facts) -> bool {
        self.start.saturating_add(TOLERANCE) >= outer.start && self.end <= outer.end.saturating_add(TOLERANCE)
    }

    /// Whether this execution may be of `hook`. A hook names no node and no execution of a workflow, so that of its trace
    /// everything belongs to it that lies inside, and with the tolerance that is also what comes right after it.
    fn may_be_of_hook(&self, hook: &Facts) -> bool {
        // Nothing takes no time.
        let end = |facts: &Facts| facts.end.max(facts.start.saturating_add(1));
        if self.start >= end(hook) || end(self) <= hook.start {
            return false;
        }
        let Some(node_id) = &self.told.node_id else {
            return true;
        };
        // The execution of a hook is named after the hook's agent; any other name is that of another node.
        match (agent_of_hook(node_id), &hook.told.role) {
            (Some(agent), Role::Hook { agent_id, .. }) => agent_id.as_ref().is_none_or(|id| id == agent),
            _ => false,
        }
    }

    /// Whether both name the same node, as far as they name one.
    pub(super) fn names_no_other_node(&self, node: &Facts) -> bool {
        match (&self.told.node_id, &node.told.node_id) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        }
    }

    fn belongs_to(&self, other: &Facts, window: u64) -> bool {
        if self.received_at.abs_diff(other.received_at) > window {
            return false;
        }
        if let (Some(one), Some(two)) = (self.node_key(), other.node_key()) {
            return one == two;
        }
        let contradicts = match (&self.told.execution_id, &other.told.execution_id) {
            (Some(one), Some(two)) => one != two,
            _ => false,
        };
        self.id.trace == other.id.trace && !contradicts
    }
}

/// FNV-1a over the parts, each closed by a byte that no UTF-8 text contains.
pub(super) fn stable_hash(parts: &[&[u8]]) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash.cast_signed()
}

/// Which spans to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// [`Role::Execution`]
    Execution,
    /// [`Role::Inner`]
    Inner,
    /// [`Role::Node`]
    Node,
    /// [`Role::Router`]
    Router,
    /// [`Role::Runtime`]
    Runtime,
    /// [`Role::Tool`]
    Tool,
    /// [`Role::Hook`]
    Hook,
    /// [`Role::Other`]
    Other,
}

impl Kind {
    /// In a mask of kinds.
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Role {
    /// Which of the roles it is.
    pub fn kind(&self) -> Kind {
        match self {
            Role::Execution(_) => Kind::Execution,
            Role::Inner { .. } => Kind::Inner,
            Role::Node(_) => Kind::Node,
            Role::Router { .. } => Kind::Router,
            Role::Runtime(_) => Kind::Runtime,
            Role::Tool { .. } => Kind::Tool,
            Role::Hook { .. } => Kind::Hook,
            Role::Other => Kind::Other,
        }
    }
}

/// How many spans match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match<T> {
    /// None is known.
    None,
    /// Exactly this one.
    One(T),
    /// More than one: nobody can know which, so none is taken.
    Many,
}

impl<T> Match<T> {
    fn of(mut found: impl Iterator<Item = T>) -> Match<T> {
        match (found.next(), found.next()) {
            (None, _) => Match::None,
            (Some(one), None) => Match::One(one),
            (Some(_), Some(_)) => Match::Many,
        }
    }
}

/// A span as the world knows it.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What the span told.
    pub facts: &'a Facts,
    /// Whether it is of the batch at hand; the others were known before.
    pub fresh: bool,
}

/// All facts that are known at one moment.
#[derive(Debug)]
pub struct World<'a> {
    window: u64,
    spans: Vec<Known<'a>>,
    /// The kinds that there are, as bits: most batches have few.
    kinds: u32,
    by_trace: Index<[u8; 16]>,
    by_node: Index<i64>,
    /// What was found out of nodes, with and without the batch at hand: each attempt asks for all of them.
    attempts: RefCell<HashMap<(SpanId, bool), Attempts, RandomState>>,
}

/// The executions that are known inside one node, each of which was an attempt.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    /// How many.
    pub count: i64,
    /// When the last one started.
    last_start: u64,
    /// How many started then, and one of them.
    last: (usize, Option<SpanId>),
}

impl Attempts {
    fn add(mut self, attempt: &Facts) -> Attempts {
        self.count += 1;
        if self.last.0 == 0 || attempt.start > self.last_start {
            (self.last_start, self.last) = (attempt.start, (1, Some(attempt.id)));
        } else if attempt.start == self.last_start {
            self.last.0 += 1;
        }
        self
    }

    /// Whether no other started when `attempt` did, or later. Of two that started together nobody can know which was the
    /// last.
    pub fn is_last(&self, attempt: &Facts) -> bool {
        let (count, id) = self.last;
        let is_alone = count == 1 && id == Some(attempt.id);
        count == 0 || self.last_start < attempt.start || self.last_start == attempt.start && is_alone
    }
}

/// Spans by a key that they may share.
#[derive(Debug)]
struct Index<K> {
    /// Those of one kind and key stand together, in the order of their starts.
    spans: Vec<Placed>,
    groups: HashMap<(Kind, K), Range<usize>, RandomState>,
}

/// A span in its group.
#[derive(Debug, Clone, Copy)]
struct Placed {
    /// Where it is in [`World::spans`].
    index: usize,
    start: u64,
    /// The latest end in the group, up to and with this one.
    latest_end: u64,
}

impl<'a> World<'a> {
    /// Of `known` spans from before and the `fresh` ones of the batch. A span that is there twice counts once, the
    /// first time. `window` is in nanoseconds.
    pub fn new(
        known: impl IntoIterator<Item = &'a Facts>,
        fresh: impl IntoIterator<Item = &'a Facts>,
        window: u64,
    ) -> World<'a> {
        let known = known.into_iter().map(|facts| Known { facts, fresh: false });
        let fresh = fresh.into_iter().map(|facts| Known { facts, fresh: true });
        let all = known.chain(fresh);
        let mut seen: HashSet<SpanId, RandomState> = HashSet::default();
        seen.reserve(all.size_hint().0);
        let spans: Vec<_> = all.filter(|span| seen.insert(span.facts.id)).collect();
        let kinds = spans
            .iter()
            .fold(0, |kinds, span| kinds | span.facts.told.role.kind().bit());
        let by_trace = Index::new(&spans, |facts| Some(facts.id.trace));
        let by_node = Index::new(&spans, Facts::node_hash);
        World {
            window,
            spans,
            kinds,
            by_trace,
            by_node,
            attempts: RefCell::default(),
        }
    }

    /// The spans that were known before the batch.
    pub fn known(&self) -> impl Iterator<Item = &'a Facts> {
        self.spans.iter().filter(|span| !span.fresh).map(|span| span.facts)
    }

    /// The spans of the batch, each once, without those that were known before.
    pub fn fresh(&self) -> impl Iterator<Item = &'a Facts> {
        self.spans.iter().filter(|span| span.fresh).map(|span| span.facts)
    }

    /// All spans of `kind`.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Facts> {
        let there = if self.kinds & kind.bit() == 0 {
            &[]
        } else {
            &self.spans[..]
        };
        let facts = there.iter().map(|span| span.facts);
        facts.filter(move |facts| facts.told.role.kind() == kind)
    }

    /// The span of `kind` that encloses `inner`.
    pub fn enclosing(&self, inner: &Facts, kind: Kind, with_fresh: bool) -> Match<&'a Facts> {
        let encloses = |outer: &&'a Facts| inner.lies_inside(outer);
        Match::of(self.partners(inner, kind, with_fresh, Look::Around).filter(encloses))
    }

    /// The hook that `execution` is of.
    pub fn hook_of(&self, execution: &Facts, with_fresh: bool) -> Match<&'a Facts> {
        let around = self.partners(execution, Kind::Hook, with_fresh, Look::Around);
        Match::of(around.filter(|hook| execution.lies_inside(hook) && execution.may_be_of_hook(hook)))
    }

    /// All spans of `kind` inside `outer`.
    pub fn all_enclosed(&self, outer: &Facts, kind: Kind, with_fresh: bool) -> impl Iterator<Item = &'a Facts> {
        self.partners(outer, kind, with_fresh, Look::Inside)
            .filter(move |inner| inner.lies_inside(outer))
    }

    /// The executions inside `node` that do not name another node: a tool or a hook that runs inside a node is no attempt.
    pub fn attempts(&self, node: &Facts, with_fresh: bool) -> Attempts {
        let find = || {
            self.all_enclosed(node, Kind::Execution, with_fresh)
                .filter(|execution| execution.names_no_other_node(node))
                .fold(Attempts::default(), Attempts::add)
        };
        *self
            .attempts
            .borrow_mut()
            .entry((node.id, with_fresh))
            .or_insert_with(find)
    }

    /// The span of `kind` that `execution` encloses and that no other execution encloses.
    pub fn enclosed(&self, execution: &Facts, kind: Kind, with_fresh: bool) -> Match<&'a Facts> {
        match Match::of(self.all_enclosed(execution, kind, with_fresh)) {
            Match::One(one) => match self.enclosing(one, Kind::Execution, with_fresh) {
                Match::One(_) => Match::One(one),
                Match::None => Match::None,
                Match::Many => Match::Many,
            },
            other => other,
        }
    }

    fn partners(&self, of: &Facts, kind: Kind, with_fresh: bool, look: Look) -> impl Iterator<Item = &'a Facts> {
        let (by_node, by_trace) = if self.kinds & kind.bit() == 0 {
            (&[][..], &[][..])
        } else {
            let by_node = of.node_hash().map_or(&[][..], |hash| self.by_node.group(kind, hash));
            (by_node, self.by_trace.group(kind, of.id.trace))
        };
        // Of one trace and with one key: found by the key already.
        let found_before = move |facts: &Facts| of.node_key().is_some() && facts.node_key() == of.node_key();
        let by_trace = look.choose(by_trace, of).iter().map(|placed| placed.index);
        let by_trace = by_trace.filter(move |index| !found_before(self.spans[*index].facts));
        let by_node = look.choose(by_node, of).iter().map(|placed| placed.index);
        by_node
            .chain(by_trace)
            .map(|index| self.spans[index])
            .filter(move |span| with_fresh || !span.fresh)
            .map(|span| span.facts)
            .filter(|facts| facts.id != of.id && facts.belongs_to(of, self.window))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// For spans that may enclose this one.
    Around,
    /// For spans that this one may enclose.
    Inside,
}

impl Look {
    /// What of the group may be found, and little else.
    fn choose<'g>(self, group: &'g [Placed], of: &Facts) -> &'g [Placed] {
        match self {
            Look::Around => {
                let latest = of.start.saturating_add(TOLERANCE);
                let to = group.partition_point(|placed| placed.start <= latest);
                let from = group[..to].partition_point(|placed| placed.latest_end.saturating_add(TOLERANCE) < of.end);
                &group[from..to]
            }
            Look::Inside => {
                let latest = of.end.saturating_add(TOLERANCE);
                let from = group.partition_point(|placed| placed.start.saturating_add(TOLERANCE) < of.start);
                let to = group.partition_point(|placed| placed.start <= latest);
                &group[from..to.max(from)]
            }
        }
    }
}

impl<K: Copy + Ord + Hash> Index<K> {
    fn new(spans: &[Known<'_>], key: impl Fn(&Facts) -> Option<K>) -> Index<K> {
        let keyed = spans.iter().enumerate().filter_map(|(index, span)| {
            let facts = span.facts;
            Some(((facts.told.role.kind(), key(facts)?), facts.start, index))
        });
        let mut keyed: Vec<_> = keyed.collect();
        keyed.sort_unstable_by_key(|(key, start, index)| (*key, *start, spans[*index].facts.id));
        let mut groups = HashMap::with_capacity_and_hasher(keyed.len(), RandomState::default());
        let mut placed: Vec<Placed> = Vec::with_capacity(keyed.len());
        for group in keyed.chunk_by(|(one, ..), (other, ..)| one == other) {
            let begin = placed.len();
            let mut latest_end = 0;
            for (_, start, index) in group {
                latest_end = spans[*index].facts.end.max(latest_end);
                placed.push(Placed {
                    index: *index,
                    start: *start,
                    latest_end,
                });
            }
            let (key, ..) = group[0];
            groups.insert(key, begin..placed.len());
        }
        Index { spans: placed, groups }
    }

    fn group(&self, kind: Kind, key: K) -> &[Placed] {
        let group = self.groups.get(&(kind, key));
        group.map_or(&[], |range| &self.spans[range.clone()])
    }
}
