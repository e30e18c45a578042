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
//! * Memory is bounded. Over the bound the oldest traces are decided early, on what is known, and counted.
//! * A trace that was kept by a rule is remembered for a while: what comes late goes too. All others are decided anew, by
//!   the same trace id, so that they are decided alike; unless a late span is itself one to be kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::options::KeepRule;
use super::policy::{Policy, Workspace};
use super::sampling::{Sampled, decide, stamp};
use super::spans::{Slots, SpanRules};
use crate::otlp::Span;
use crate::otlp::value::Attributes;
use crate::otlp::wire::{Broken, Cursor, MAX_DEPTH, delimited, put_bytes, put_header};

/// How long a record that was received in time may take until it can be read: it is on disk first.
const GRACE: Duration = Duration::from_secs(1);

/// Traces that were kept by a rule and are remembered, for spans that come late.
const MOST_REMEMBERED: usize = 65_536;

/// What a trace, and a piece of one, takes besides the bytes of its spans.
const TRACE_OVERHEAD: usize = 192;
const PIECE_OVERHEAD: usize = 96;

const RESOURCES: u32 = 1;
const SCOPES: u32 = 2;
const SPANS: u32 = 2;
const TRACE_STATE: u32 = 3;

type TraceId = [u8; 16];

/// What is compiled of the options.
#[derive(Debug, Clone)]
pub(super) struct TailRules {
    /// The conditions of [`KeepRule::Spans`], in their order.
    pub(super) spans: SpanRules,
    /// Of each of them, the rule that counts.
    pub(super) of_spans: Vec<usize>,
    /// The rule that counts errors.
    pub(super) errors: Option<usize>,
    /// The shortest duration that is kept, in nanoseconds, and the rule that counts.
    pub(super) slower_than: Option<(u64, usize)>,
    pub(super) wait: Duration,
    pub(super) memory: usize,
    /// The rule that counts traces that were decided early.
    pub(super) early: usize,
}

impl TailRules {
    /// `counts` are the rules of `keep`, in their order.
    pub(super) fn compile(
        keep: &[KeepRule],
        first_rule: usize,
        wait: Duration,
        memory: usize,
        early: usize,
    ) -> TailRules {
        let mut rules = TailRules {
            spans: SpanRules::default(),
            of_spans: Vec::new(),
            errors: None,
            slower_than: None,
            wait,
            memory,
            early,
        };
        let mut conditions = Vec::new();
        for (index, rule) in keep.iter().enumerate() {
            let counts = first_rule + index;
            match rule {
                KeepRule::Errors => rules.errors = rules.errors.or(Some(counts)),
                KeepRule::SlowerThan(limit) => {
                    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
                    if rules.slower_than.is_none_or(|(other, _)| nanos < other) {
                        rules.slower_than = Some((nanos, counts));
                    }
                }
                KeepRule::Spans(rule) => {
                    conditions.push(rule);
                    rules.of_spans.push(counts);
                }
            }
        }
        rules.spans = SpanRules::compile(conditions, rules.errors.is_some());
        rules
    }

    /// The rule that keeps the trace of this span, whatever its other spans are.
    fn keeps(&self, span: &Span<'_>, slots: &Slots<'_>) -> Option<usize> {
        if let Some(rule) = self.errors
            && self.spans.is_failed(span, slots)
        {
            return Some(rule);
        }
        self.of_spans.get(self.spans.first_match(span, slots)?).copied()
    }
}

/// What stands around spans: all of a resource but its scopes, all of a scope but its spans.
#[derive(Debug)]
struct Envelope {
    /// One of [`Tail::resources`]: those of the same bytes are one.
    resource: Arc<[u8]>,
    scope: Box<[u8]>,
}

impl PartialEq for Envelope {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.resource, &other.resource) && self.scope == other.scope
    }
}

impl Eq for Envelope {}

impl Hash for Envelope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not the bytes of the resource: many scopes may share a large one.
        Arc::as_ptr(&self.resource).cast::<u8>().hash(state);
        self.scope.hash(state);
    }
}

/// Spans of one trace in one scope of one record.
#[derive(Debug)]
struct Piece {
    envelope: Arc<Envelope>,
    /// With their keys and lengths.
    spans: Vec<u8>,
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
}

/// The undecided traces of one exporter.
#[derive(Debug)]
pub struct Tail {
    policy: Arc<Policy>,
    rules: TailRules,
    traces: HashMap<TraceId, Trace>,
    cohorts: VecDeque<Cohort>,
    envelopes: HashSet<Arc<Envelope>>,
    resources: HashSet<Arc<[u8]>>,
    /// When so many envelopes are known, those that nothing uses are looked for.
    purge_at: usize,
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
            envelopes: HashSet::new(),
            resources: HashSet::new(),
            purge_at: 64,
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
            let shared = self.intern_resource(resource.others);
            let spans = resource.scopes.into_iter().flat_map(|(scope, spans)| {
                let envelope = self.intern(&shared, scope);
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
        if self.has_unused() {
            self.purge();
        }
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
            });
            trace.bytes += PIECE_OVERHEAD;
            grown += PIECE_OVERHEAD;
        }
        if let Some(piece) = trace.pieces.last_mut() {
            let before = piece.spans.capacity();
            piece.spans.extend_from_slice(whole);
            let more = piece.spans.capacity() - before;
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

    fn intern_resource(&mut self, resource: Vec<u8>) -> Arc<[u8]> {
        if let Some(known) = self.resources.get(resource.as_slice()) {
            return Arc::clone(known);
        }
        let resource: Arc<[u8]> = resource.into();
        self.bytes += resource.len() + PIECE_OVERHEAD;
        self.resources.insert(Arc::clone(&resource));
        resource
    }

    fn intern(&mut self, resource: &Arc<[u8]>, scope: Vec<u8>) -> Arc<Envelope> {
        let envelope = Envelope {
            resource: Arc::clone(resource),
            scope: scope.into(),
        };
        if let Some(known) = self.envelopes.get(&envelope) {
            return Arc::clone(known);
        }
        let envelope = Arc::new(envelope);
        self.bytes += envelope.size();
        self.envelopes.insert(Arc::clone(&envelope));
        envelope
    }

    /// Whether there may be envelopes that nothing uses, and it is time to look for them.
    fn has_unused(&self) -> bool {
        self.envelopes.len() > self.purge_at || self.bytes > self.rules.memory || self.cohorts.is_empty()
    }

    /// Forgets envelopes that no trace uses.
    fn purge(&mut self) {
        let mut freed = 0;
        self.envelopes.retain(|envelope| {
            let is_used = Arc::strong_count(envelope) > 1;
            freed += if is_used { 0 } else { envelope.size() };
            is_used
        });
        self.resources.retain(|resource| {
            let is_used = Arc::strong_count(resource) > 1;
            freed += if is_used { 0 } else { resource.len() + PIECE_OVERHEAD };
            is_used
        });
        self.bytes -= freed;
        self.purge_at = 64 + 2 * self.envelopes.len();
    }

    /// No trace waits.
    pub fn is_empty(&self) -> bool {
        self.cohorts.is_empty()
    }

    /// Memory that waiting traces take.
    pub fn held(&self) -> usize {
        self.bytes
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
        (is_urgent || self.bytes > self.rules.memory) && !self.is_empty()
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
        let mut kept: Vec<(Arc<Envelope>, Vec<u8>)> = Vec::new();
        let mut places: HashMap<*const Envelope, usize> = HashMap::new();
        let mut spans = 0;
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
                let place = *places.entry(Arc::as_ptr(&piece.envelope)).or_insert_with(|| {
                    kept.push((Arc::clone(&piece.envelope), Vec::new()));
                    kept.len() - 1
                });
                let out = &mut kept[place].1;
                spans += match trace.kept_by {
                    Some(_) => {
                        out.extend_from_slice(&piece.spans);
                        count(&piece.spans)
                    }
                    None => self.policy.sampled(&piece.spans, out, workspace),
                };
            }
        }
        kept.retain(|(_, spans)| !spans.is_empty());
        let body = write(&kept);
        drop(kept);
        if self.has_unused() {
            self.purge();
        }
        Some(Decided {
            sequence: cohort.sequence,
            received_at: cohort.received_at,
            body,
            spans,
        })
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

impl Envelope {
    fn size(&self) -> usize {
        self.scope.len() + PIECE_OVERHEAD
    }
}

impl Policy {
    /// Appends those of some spans whose trace belongs to the share that is kept; returns how many.
    fn sampled(&self, spans: &[u8], out: &mut Vec<u8>, workspace: &mut Workspace) -> u32 {
        let mut kept = 0;
        Cursor::new(spans).for_each_field(|_, cursor| {
            let contents = cursor.slice()?;
            let span = Span::decode(contents);
            match decide(&span, self.threshold) {
                Sampled::Out => {
                    workspace.add(self.ratio_rule, 1);
                    return Ok(());
                }
                Sampled::In => put_bytes(out, SPANS, contents),
                Sampled::InAt(threshold) => {
                    let mut state = Vec::new();
                    stamp(span.trace_state().as_bytes(), threshold, &mut state);
                    let (mut stamped, _) = take_apart(contents, TRACE_STATE)?;
                    put_bytes(&mut stamped, TRACE_STATE, &state);
                    put_bytes(out, SPANS, &stamped);
                }
            }
            kept += 1;
            Ok(())
        });
        kept
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn count(spans: &[u8]) -> u32 {
    let mut count = 0;
    Cursor::new(spans).for_each_field(|key, cursor| {
        count += 1;
        cursor.skip(key, MAX_DEPTH)
    });
    count
}

/// One resource of a request, taken apart.
struct Outline<'a> {
    contents: &'a [u8],
    /// All but the scopes.
    others: Vec<u8>,
    /// Each scope that has spans, without them, and its spans with their key and length, and without.
    scopes: Vec<Parts<'a>>,
}

fn outline(body: &Bytes) -> Result<Vec<Outline<'_>>, Broken> {
    let mut resources = Vec::new();
    let mut cursor = Cursor::new(body);
    while !cursor.is_done() {
        let key = cursor.key()?;
        if key.raw() != delimited(RESOURCES) {
            cursor.skip(key, MAX_DEPTH)?;
            continue;
        }
        let contents = cursor.slice()?;
        let (others, inner) = take_apart(contents, SCOPES)?;
        let mut scopes = Vec::new();
        for (_, scope) in inner {
            let (scope, spans) = take_apart(scope, SPANS)?;
            if !spans.is_empty() {
                scopes.push((scope, spans));
            }
        }
        resources.push(Outline {
            contents,
            others,
            scopes,
        });
    }
    Ok(resources)
}

type Parts<'a> = (Vec<u8>, Vec<(&'a [u8], &'a [u8])>);

/// The fields with this number, each with and without its key and length; and all others.
fn take_apart(message: &[u8], number: u32) -> Result<Parts<'_>, Broken> {
    let (mut others, mut wanted) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::new(message);
    while !cursor.is_done() {
        let begin = cursor;
        let key = cursor.key()?;
        if key.raw() == delimited(number) {
            let contents = cursor.slice()?;
            wanted.push((cursor.since(&begin), contents));
        } else {
            cursor.skip(key, MAX_DEPTH)?;
            others.extend_from_slice(cursor.since(&begin));
        }
    }
    Ok((others, wanted))
}

/// A trace request with these spans: each resource once, with its scopes.
fn write(scopes: &[(Arc<Envelope>, Vec<u8>)]) -> Bytes {
    let mut resources: Vec<(&[u8], Vec<u8>)> = Vec::new();
    let mut places: HashMap<*const u8, usize> = HashMap::new();
    for (envelope, spans) in scopes {
        let place = *places.entry(Arc::as_ptr(&envelope.resource).cast()).or_insert_with(|| {
            resources.push((&*envelope.resource, Vec::new()));
            resources.len() - 1
        });
        let out = &mut resources[place].1;
        put_header(out, SCOPES, envelope.scope.len() + spans.len());
        out.extend_from_slice(&envelope.scope);
        out.extend_from_slice(spans);
    }
    let mut out = Vec::new();
    for (resource, scopes) in resources {
        put_header(&mut out, RESOURCES, resource.len() + scopes.len());
        out.extend_from_slice(resource);
        out.extend_from_slice(&scopes);
    }
    Bytes::from(out)
}
