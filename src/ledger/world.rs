//! The facts that are known, indexed so that the partners of a span are found without looking at all of them.
//!
//! Two spans *belong together* when `workflow.execution_id` and `node.id` are equal; where one of them has not both,
//! when they are of the same trace and do not name two different workflow executions. They must also have been
//! received within the assembly window of each other, whatever the order. Both are symmetric and depend on the two spans
//! alone, so what is found does not depend on the order of arrival.

use std::collections::HashMap;

use super::facts::{Facts, Role, SpanId};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    by_trace: HashMap<(Kind, [u8; 16]), Timeline>,
    by_node: HashMap<(Kind, i64), Timeline>,
}

/// Spans in the order of their starts.
#[derive(Debug, Default)]
struct Timeline {
    /// Index of the span, its start, and the latest end up to and with it.
    spans: Vec<(usize, u64, u64)>,
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
        let mut seen: HashMap<SpanId, ()> = HashMap::new();
        let spans: Vec<_> = known
            .chain(fresh)
            .filter(|span| seen.insert(span.facts.id, ()).is_none())
            .collect();
        let mut world = World {
            window,
            spans,
            by_trace: HashMap::new(),
            by_node: HashMap::new(),
        };
        let mut order: Vec<usize> = (0..world.spans.len()).collect();
        order.sort_by_key(|index| (world.spans[*index].facts.start, world.spans[*index].facts.id));
        for index in order {
            let facts = world.spans[index].facts;
            let kind = facts.told.role.kind();
            world
                .by_trace
                .entry((kind, facts.id.trace))
                .or_default()
                .push(index, facts);
            if let Some(hash) = facts.node_hash() {
                world.by_node.entry((kind, hash)).or_default().push(index, facts);
            }
        }
        world
    }

    /// The spans that were known before the batch.
    pub fn known(&self) -> impl Iterator<Item = &'a Facts> {
        self.spans.iter().filter(|span| !span.fresh).map(|span| span.facts)
    }

    /// The spans of the batch, each once, without those that were known before.
    pub fn fresh(&self) -> impl Iterator<Item = &'a Facts> {
        self.spans.iter().filter(|span| span.fresh).map(|span| span.facts)
    }

    /// The span of `kind` that encloses `inner`.
    pub fn enclosing(&self, inner: &Facts, kind: Kind, with_fresh: bool) -> Match<&'a Facts> {
        let encloses = |outer: &&'a Facts| inner.lies_inside(outer);
        Match::of(self.partners(inner, kind, with_fresh, Look::Around).filter(encloses))
    }

    /// All spans of `kind` inside `outer`.
    pub fn all_enclosed(&self, outer: &Facts, kind: Kind, with_fresh: bool) -> impl Iterator<Item = &'a Facts> {
        self.partners(outer, kind, with_fresh, Look::Inside)
            .filter(move |inner| inner.lies_inside(outer))
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
        let by_node = of.node_hash().and_then(|hash| self.by_node.get(&(kind, hash)));
        let by_trace = self.by_trace.get(&(kind, of.id.trace));
        // Of one trace and with one key: found by the key already.
        let found_before = move |facts: &Facts| of.node_key().is_some() && facts.node_key() == of.node_key();
        let by_node = by_node.into_iter().flat_map(move |line| line.look(of, look));
        let by_trace = by_trace.into_iter().flat_map(move |line| line.look(of, look));
        let by_trace = by_trace.filter(move |index| !found_before(self.spans[*index].facts));
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

impl Timeline {
    fn push(&mut self, index: usize, facts: &Facts) {
        let latest = self.spans.last().map_or(0, |(_, _, latest)| *latest);
        self.spans.push((index, facts.start, facts.end.max(latest)));
    }

    /// The indexes of what may be found, and little else.
    fn look(&self, of: &Facts, look: Look) -> impl Iterator<Item = usize> {
        let range = match look {
            Look::Around => {
                let to = self
                    .spans
                    .partition_point(|(_, start, _)| *start <= of.start.saturating_add(TOLERANCE));
                let from = self.spans[..to].partition_point(|(_, _, end)| end.saturating_add(TOLERANCE) < of.end);
                from..to
            }
            Look::Inside => {
                let from = self
                    .spans
                    .partition_point(|(_, start, _)| start.saturating_add(TOLERANCE) < of.start);
                let to = self
                    .spans
                    .partition_point(|(_, start, _)| *start <= of.end.saturating_add(TOLERANCE));
                from..to.max(from)
            }
        };
        self.spans[range].iter().map(|(index, _, _)| *index)
    }
}
