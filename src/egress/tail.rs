//! Tail sampling: decides over whole traces, from what arrived within [`EgressOptions::wait`](super::EgressOptions).
//!
//! Nothing is kept on disk here. The caller reads a journal, holds its position before the first record with an undecided
//! trace, and after a crash feeds the same records again.
//!
//! # Invariants
//!
//! * Traces that were first seen in one record are decided together, and what is kept of them stands for that record:
//!   whoever has not passed it yet gets all of these traces again, whole. Later records with spans of them hold
//!   nothing up.
//! * A trace is decided when every record that was received within the wait after its first one has been seen; how late
//!   they are read does not matter. Time is the time of receipt.
//! * Memory is bounded, see [`EgressOptions::memory_bound`](super::EgressOptions::memory_bound). Over the bound the oldest
//!   traces are decided early, on what is known, and counted.
//! * A trace that was kept by a rule is remembered for a while: what comes late goes too. All others are decided anew, by
//!   the same trace id, so that they are decided alike; unless a late span is itself one to be kept.

mod envelope;
mod parts;
mod rules;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::envelope::{Envelope, Envelopes};
use self::parts::{Gathered, SPANS, outline, take_apart};
pub(super) use self::rules::TailRules;
use super::edit::TRACE_STATE;
use super::policy::{Policy, Workspace};
use super::sampling::{Sampled, decide, stamp};
use super::spans::Slots;
use crate::otlp::Span;
use crate::otlp::value::Attributes;
use crate::otlp::wire::{Broken, Cursor, put_bytes};

/// How long a record that was received in time may take until it can be read: it is on disk first.
const GRACE: Duration = Duration::from_secs(1);

/// Traces that were kept by a rule and are remembered, for spans that come late.
const MOST_REMEMBERED: usize = 65_536;

/// What they take: a table and a queue, both of which double when they are full.
pub(super) const REMEMBERED: usize = 2 * MOST_REMEMBERED * (size_of::<(TraceId, usize)>() + 1 + size_of::<TraceId>());

/// About so many bytes longer is a span that is told the threshold of its share.
const THRESHOLD: usize = 24;

/// What a trace, and a piece of one, takes besides the bytes of its spans.
const TRACE_OVERHEAD: usize = 192;
const PIECE_OVERHEAD: usize = 96;

type TraceId = [u8; 16];

/// Spans of one trace in one scope of one record.
#[derive(Debug)]
struct Piece {
    envelope: Arc<Envelope>,
    /// With their keys and lengths.
    spans: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Piece {
    fn push(&mut self, span: &[u8]) {
        self.spans.extend_from_slice(span);
        self.ends.push(self.spans.len());
    }

    fn size(&self) -> usize {
        self.spans.capacity() + self.ends.capacity() * size_of::<usize>()
    }

    fn count(&self) -> u32 {
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.spans[begin..*end])
    }
}

#[derive(Debug)]
struct Trace {
    pieces: Vec<Piece>,
    start: u64,
    end: u64,
    /// The rule that keeps it.
    kept_by: Option<usize>,
    /// It was decided before, and this came late.
    is_late: bool,
    bytes: usize,
}

/// The traces that were first seen in one record.
#[derive(Debug)]
struct Cohort {
    sequence: u64,
    received_at: u64,
    due: u64,
    traces: Vec<TraceId>,
}

/// What became of the traces that were first seen in one record.
#[derive(Debug)]
pub struct Decided {
    /// The record.
    pub sequence: u64,
    /// When it was received.
    pub received_at: u64,
    /// What is forwarded of them: a trace request, empty if nothing is. The rules for what is cut out are not applied yet.
    pub body: Bytes,
    /// The number of spans in it.
    pub spans: u32,
    /// What cannot be forwarded of them.
    pub unreadable: Option<Unreadable>,
}

/// Spans that belong to the share that is forwarded, but cannot be told so: they are not what was checked.
#[derive(Debug)]
pub struct Unreadable {
    /// A trace request with them, as they were received.
    pub body: Bytes,
    /// The number of spans in it.
    pub spans: u32,
    /// What is wrong with the first of them.
    pub broken: Broken,
}

/// The undecided traces of one exporter.
#[derive(Debug)]
pub struct Tail {
    policy: Arc<Policy>,
    rules: TailRules,
    traces: HashMap<TraceId, Trace>,
    cohorts: VecDeque<Cohort>,
    envelopes: Envelopes,
    /// Memory that they take, without the envelopes.
    bytes: usize,
    /// Traces kept by a rule: the newest, in their order.
    remembered: HashMap<TraceId, usize>,
    remembered_order: VecDeque<TraceId>,
    /// The latest time of receipt that was seen.
    seen: u64,
}

impl Tail {
    /// If the policy decides over whole traces.
    pub fn new(policy: &Arc<Policy>) -> Option<Tail> {
        let rules = policy.tail.clone()?;
        Some(Tail {
            policy: Arc::clone(policy),
            rules,
            traces: HashMap::new(),
            cohorts: VecDeque::new(),
            envelopes: Envelopes::default(),
            bytes: 0,
            remembered: HashMap::new(),
            remembered_order: VecDeque::new(),
            seen: 0,
        })
    }

    /// Takes in a record, without its content encoding. True if a trace begins in it: then [`Decided`] will come for it.
    ///
    /// # Errors
    ///
    /// The bytes are not what was checked. Nothing was taken in.
    pub fn add(
        &mut self,
        sequence: u64,
        received_at: u64,
        body: &Bytes,
        workspace: &mut Workspace,
    ) -> Result<bool, Broken> {
        let outline = outline(body)?;
        self.seen = self.seen.max(received_at);
        let policy = Arc::clone(&self.policy);
        workspace.grow(policy.rules().len());
        let (mut of_resource, mut slots) = (Slots::new(), Slots::new());
        let (mut of_resource_drop, mut slots_drop) = (Slots::new(), Slots::new());
        let mut cohort = Cohort {
            sequence,
            received_at,
            due: self.seen.saturating_add(nanos(self.rules.wait + GRACE)),
            traces: Vec::new(),
        };
        for resource in outline {
            let attributes = Attributes::nested(resource.contents, 1, 1);
            self.rules.spans.enter_resource(attributes, &mut of_resource);
            policy.drop.enter_resource(attributes, &mut of_resource_drop);
            let shared = self.envelopes.resource(resource.others);
            let spans = resource.scopes.into_iter().flat_map(|(scope, spans)| {
                let envelope = self.envelopes.scope(&shared, scope);
                spans.into_iter().map(move |span| (Arc::clone(&envelope), span))
            });
            for (envelope, (whole, contents)) in spans.collect::<Vec<_>>() {
                let span = Span::decode(contents);
                if !policy.drop.is_empty() {
                    policy.drop.enter_span(&span, &mut slots_drop, &of_resource_drop);
                    if let Some(rule) = policy.drop.first_match(&span, &slots_drop) {
                        workspace.add(rule, 1);
                        continue;
                    }
                }
                let kept_by = match self.rules.spans.is_empty() {
                    true => None,
                    false => {
                        self.rules.spans.enter_span(&span, &mut slots, &of_resource);
                        self.rules.keeps(&span, &slots)
                    }
                };
                self.take(&span, whole, &envelope, kept_by, &mut cohort);
            }
        }
        let begins = !cohort.traces.is_empty();
        if begins {
            self.cohorts.push_back(cohort);
        }
        self.purge();
        Ok(begins)
    }

    fn take(
        &mut self,
        span: &Span<'_>,
        whole: &[u8],
        envelope: &Arc<Envelope>,
        kept_by: Option<usize>,
        cohort: &mut Cohort,
    ) {
        let mut id = [0; 16];
        id.iter_mut().zip(span.trace_id()).for_each(|(to, from)| *to = *from);
        let remembered = &self.remembered;
        let mut grown = 0;
        let trace = self.traces.entry(id).or_insert_with(|| {
            cohort.traces.push(id);
            grown += TRACE_OVERHEAD;
            let remembered = remembered.get(&id).copied();
            Trace {
                pieces: Vec::new(),
                start: u64::MAX,
                end: 0,
                kept_by: remembered,
                is_late: remembered.is_some(),
                bytes: TRACE_OVERHEAD,
            }
        });
        if trace
            .pieces
            .last()
            .is_none_or(|piece| !Arc::ptr_eq(&piece.envelope, envelope))
        {
            trace.pieces.push(Piece {
                envelope: Arc::clone(envelope),
                spans: Vec::new(),
                ends: Vec::new(),
            });
            trace.bytes += PIECE_OVERHEAD;
            grown += PIECE_OVERHEAD;
        }
        if let Some(piece) = trace.pieces.last_mut() {
            let before = piece.size();
            piece.push(whole);
            let more = piece.size() - before;
            trace.bytes += more;
            grown += more;
        }
        self.bytes += grown;
        if span.start_unix_nano() > 0 {
            trace.start = trace.start.min(span.start_unix_nano());
        }
        trace.end = trace.end.max(span.end_unix_nano());
        trace.kept_by = trace.kept_by.or(kept_by).or_else(|| {
            let (limit, rule) = self.rules.slower_than?;
            (trace.end.saturating_sub(trace.start) > limit).then_some(rule)
        });
    }

    /// No trace waits.
    pub fn is_empty(&self) -> bool {
        self.cohorts.is_empty()
    }

    /// Memory that waiting traces take.
    pub fn held(&self) -> usize {
        self.bytes + self.envelopes.bytes()
    }

    /// Forgets envelopes that nothing uses, if there may be any and it is time to look for them.
    fn purge(&mut self) {
        if self.envelopes.are_many() || self.held() > self.rules.memory || self.cohorts.is_empty() {
            self.envelopes.purge();
        }
    }

    /// When the next traces are due, in nanoseconds since 1970.
    pub fn due(&self) -> Option<u64> {
        self.cohorts.front().map(|cohort| cohort.due)
    }

    /// Whether [`Tail::next_due`] has some.
    pub fn is_due(&self, now: Option<u64>) -> bool {
        self.due().is_some_and(|due| due <= now.unwrap_or(0).max(self.seen))
    }

    /// Whether [`Tail::next_early`] has some.
    pub fn is_early(&self, is_urgent: bool) -> bool {
        (is_urgent || self.held() > self.rules.memory) && !self.is_empty()
    }

    /// The next traces whose time is over. `now` is the time if everything that was received can have been seen, else
    /// `None`: then only what was seen tells how late it is.
    pub fn next_due(&mut self, now: Option<u64>, workspace: &mut Workspace) -> Option<Decided> {
        match self.is_due(now) {
            true => self.decide(workspace),
            false => None,
        }
    }

    /// The oldest traces before their time, if they take too much memory or `is_urgent`.
    pub fn next_early(&mut self, is_urgent: bool, workspace: &mut Workspace) -> Option<Decided> {
        if !self.is_early(is_urgent) {
            return None;
        }
        let traces = self.cohorts.front()?.traces.len();
        workspace.grow(self.policy.rules().len());
        workspace.add(self.rules.early, traces as u64);
        self.decide(workspace)
    }

    fn decide(&mut self, workspace: &mut Workspace) -> Option<Decided> {
        let cohort = self.cohorts.pop_front()?;
        workspace.grow(self.policy.rules().len());
        let (mut kept, mut unreadable, mut broken) = (Gathered::default(), Gathered::default(), None);
        for id in &cohort.traces {
            let Some(trace) = self.traces.remove(id) else { continue };
            self.bytes -= trace.bytes;
            match trace.kept_by {
                Some(rule) if !trace.is_late => {
                    workspace.add(rule, 1);
                    self.remember(*id, rule);
                }
                _ => {}
            }
            for piece in trace.pieces {
                if trace.kept_by.is_some() {
                    let count = piece.count();
                    kept.add(&piece.envelope, piece.spans, count);
                    continue;
                }
                let (mut going, mut count) = (Vec::new(), 0);
                for span in piece.each() {
                    match self.policy.sampled(span, workspace) {
                        Ok(None) => {}
                        Ok(Some(span)) => {
                            if count == 0 {
                                going.reserve(piece.spans.len() + piece.ends.len() * THRESHOLD);
                            }
                            going.extend_from_slice(&span);
                            count += 1;
                        }
                        Err(error) => {
                            broken = broken.or(Some(error));
                            unreadable.add(&piece.envelope, span.to_vec(), 1);
                        }
                    }
                }
                kept.add(&piece.envelope, going, count);
            }
        }
        let decided = Decided {
            sequence: cohort.sequence,
            received_at: cohort.received_at,
            spans: kept.spans(),
            body: kept.write(),
            unreadable: broken.map(|broken| Unreadable {
                spans: unreadable.spans(),
                body: unreadable.write(),
                broken,
            }),
        };
        self.purge();
        Some(decided)
    }

    fn remember(&mut self, id: TraceId, rule: usize) {
        if self.remembered.insert(id, rule).is_none() {
            self.remembered_order.push_back(id);
        }
        while self.remembered_order.len() > MOST_REMEMBERED {
            if let Some(oldest) = self.remembered_order.pop_front() {
                self.remembered.remove(&oldest);
            }
        }
    }
}

impl Policy {
    /// What goes of a span (with its key and length) by the share that is kept: nothing, or it, with the threshold if
    /// there is one.
    fn sampled<'s>(&self, whole: &'s [u8], workspace: &mut Workspace) -> Result<Option<Cow<'s, [u8]>>, Broken> {
        let mut cursor = Cursor::new(whole);
        cursor.key()?;
        let contents = cursor.slice()?;
        let span = Span::decode(contents);
        match decide(&span, self.threshold) {
            Sampled::Out => {
                workspace.add(self.ratio_rule, 1);
                Ok(None)
            }
            Sampled::In => Ok(Some(Cow::Borrowed(whole))),
            Sampled::InAt(threshold) => {
                let mut state = Vec::new();
                stamp(span.trace_state().as_bytes(), threshold, &mut state);
                let (mut stamped, _) = take_apart(contents, TRACE_STATE)?;
                put_bytes(&mut stamped, TRACE_STATE, &state);
                let mut whole = Vec::with_capacity(stamped.len() + 8);
                put_bytes(&mut whole, SPANS, &stamped);
                Ok(Some(Cow::Owned(whole)))
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
