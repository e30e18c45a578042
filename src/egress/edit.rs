//! Splices: finds what is to be changed in one walk over a request, and copies the rest around it.
//!
//! # Invariants
//!
//! * Nothing is allocated per span, and nothing is copied if there is no edit.
//! * What a table of OTLP's messages ([`crate::otlp::schema`]) names is looked into, whatever the signal; what it does
//!   not name is copied.

mod attribute;

use std::ops::Range;

use bytes::Bytes;

use super::attributes::Action;
use super::policy::{Outcome, Policy, Workspace};
use super::sampling::{Sampled, decide, stamp};
use super::spans::Slots;
use super::splice::Edits;
use crate::otlp::entry::Entry;
use crate::otlp::schema::{self, Kind, Message, Role};
use crate::otlp::value::Attributes;
use crate::otlp::wire::{self, Broken, Cursor, Fault, MAX_DEPTH, WireType, delimited, put_bytes, put_varint};
use crate::otlp::{AnyValue, Signal, Span};
use crate::redact::Sweep;

/// The resources in a request; the resource itself, and the scopes, in a resource; the items in a scope; the attributes of a
/// resource. The same in all signals.
const RESOURCES: u32 = 1;
const RESOURCE: u8 = 1;
const SCOPES: u32 = 2;
const ITEMS: u32 = 2;
const ATTRIBUTES: u8 = 1;

/// `tracestate` of a span.
pub(super) const TRACE_STATE: u32 = 3;

/// See [`Policy::apply`].
pub(super) fn apply(
    policy: &Policy,
    signal: Signal,
    body: &Bytes,
    workspace: &mut Workspace,
) -> Result<Outcome, Broken> {
    workspace.edits.begin();
    let message = match signal {
        Signal::Traces => &schema::TRACE_REQUEST,
        Signal::Metrics => &schema::METRICS_REQUEST,
        Signal::Logs => &schema::LOGS_REQUEST,
    };
    let mut walk = Walk {
        policy,
        edits: &mut workspace.edits,
        tally: &mut workspace.tally,
        cleaned: Vec::new(),
        body,
        sweep: policy.patterns.sweep(body),
        chooses_spans: signal == Signal::Traces && policy.chooses_spans(),
        edits_texts: policy.edits_texts(),
        of_resource: Slots::new(),
        slots: Slots::new(),
        dropped: 0,
    };
    let left = walk.request(message)?;
    let dropped = walk.dropped;
    if dropped > 0 && left == 0 {
        return Ok(Outcome::Nothing);
    }
    Ok(match workspace.edits.is_empty() {
        true => Outcome::Unchanged,
        false => Outcome::Changed {
            body: workspace.edits.write(body),
            dropped,
        },
    })
}

/// One pass over a request.
struct Walk<'w, 'a> {
    policy: &'w Policy,
    edits: &'w mut Edits,
    tally: &'w mut Vec<u64>,
    /// A text without its secrets.
    cleaned: Vec<u8>,
    body: &'a [u8],
    sweep: Sweep<'w>,
    chooses_spans: bool,
    edits_texts: bool,
    of_resource: Slots<'a>,
    slots: Slots<'a>,
    dropped: u32,
}

/// A nested message: its contents, and where it and they lie.
struct Nested<'a> {
    inner: Cursor<'a>,
    /// With its key and its length.
    whole: Range<usize>,
    length_at: Range<usize>,
    contents: Range<usize>,
}

/// Reads a nested message whose key began at `begin`.
fn nested<'a>(begin: usize, cursor: &mut Cursor<'a>) -> Result<Nested<'a>, Broken> {
    let length_at = cursor.position();
    let inner = cursor.message()?;
    let end = cursor.position();
    let start = end - inner.rest().len();
    Ok(Nested {
        inner,
        whole: begin..end,
        length_at: length_at..start,
        contents: start..end,
    })
}

/// How often a message has a length-delimited field.
fn occurrences(mut cursor: Cursor<'_>, number: u32) -> Result<usize, Broken> {
    let mut found = 0;
    while !cursor.is_done() {
        let key = cursor.key()?;
        cursor.skip(key, MAX_DEPTH)?;
        found += usize::from(key.raw() == delimited(number));
    }
    Ok(found)
}

/// The message type of a field, if it is one.
fn message_of(message: &'static Message, number: u32) -> Option<&'static Message> {
    match message.field(number)?.kind {
        Kind::Message(message) | Kind::Messages(message) => Some(message),
        _ => None,
    }
}

impl<'a> Walk<'_, 'a> {
    fn count(&mut self, rule: usize) {
        if let Some(count) = self.tally.get_mut(rule) {
            *count += 1;
        }
    }

    /// Walks over everything. Returns how many resources are left.
    fn request(&mut self, message: &'static Message) -> Result<usize, Broken> {
        let mut cursor = Cursor::new(self.body);
        let mut left = 0;
        while !cursor.is_done() {
            let begin = cursor.position();
            let key = cursor.key()?;
            match message_of(message, key.number()) {
                Some(resource) if key.raw() == delimited(RESOURCES) => {
                    let nested = nested(begin, &mut cursor)?;
                    left += usize::from(self.resource(nested, resource)?);
                }
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
        }
        Ok(left)
    }

    /// A resource with its scopes. False if nothing is left of it.
    fn resource(&mut self, nested_resource: Nested<'a>, message: &'static Message) -> Result<bool, Broken> {
        let Nested {
            mut inner,
            whole,
            length_at,
            contents,
        } = nested_resource;
        let attributes = Attributes::nested(inner.rest(), RESOURCE, ATTRIBUTES);
        if self.chooses_spans {
            self.policy.drop.enter_resource(attributes, &mut self.of_resource);
        }
        let defaults = &self.policy.set_resource;
        let lacks_a_default = defaults.iter().any(|default| self.lacks(attributes, &default.key));
        let resources = match lacks_a_default {
            true => occurrences(inner, u32::from(RESOURCE))?,
            false => 0,
        };
        let mut resources_left = resources;
        let open = self.edits.enter(length_at, contents.len());
        let (mut scopes, mut left) = (0, 0);
        while !inner.is_done() {
            let begin = inner.position();
            let key = inner.key()?;
            match message_of(message, key.number()) {
                Some(scope) if key.raw() == delimited(SCOPES) => {
                    let nested = nested(begin, &mut inner)?;
                    scopes += 1;
                    left += usize::from(self.scope(nested, scope)?);
                }
                Some(resource) if key.raw() == delimited(u32::from(RESOURCE)) && lacks_a_default => {
                    let nested = nested(begin, &mut inner)?;
                    resources_left -= 1;
                    self.resource_with_defaults(nested, resource, attributes, resources_left == 0)?;
                }
                _ => self.field(&mut inner, begin, key, message, MAX_DEPTH)?,
            }
        }
        if scopes > 0 && left == 0 && self.chooses_spans {
            self.edits.collapse(&open, whole);
            return Ok(false);
        }
        if lacks_a_default && resources == 0 {
            let policy = self.policy;
            let mut resource = Vec::new();
            for default in &policy.set_resource {
                self.count(default.rule);
                put_default(&mut resource, &default.key, &default.value);
            }
            let end = contents.end..contents.end;
            self.edits
                .replace(end, |out| put_bytes(out, u32::from(RESOURCE), &resource));
        }
        self.edits.leave(open);
        Ok(true)
    }

    /// Whether a resource has no value for `key`, or will have none. What SDKs write for a service that was not named is
    /// no value.
    fn lacks(&self, attributes: Attributes<'_>, key: &str) -> bool {
        if matches!(self.policy.attributes.action(key.as_bytes(), false), Action::Remove(_)) {
            return true;
        }
        match attributes.get(key) {
            None | Some(AnyValue::Empty) => true,
            Some(AnyValue::Text(text)) => {
                text.is_empty() || (key == "service.name" && text.as_bytes().starts_with(b"unknown_service"))
            }
            Some(_) => false,
        }
    }

    /// A resource that lacks a default: what stands in its place goes, and the default comes last. `attributes` are those
    /// of all occurrences of the resource.
    fn resource_with_defaults(
        &mut self,
        nested_resource: Nested<'a>,
        message: &'static Message,
        attributes: Attributes<'a>,
        is_last: bool,
    ) -> Result<(), Broken> {
        let Nested {
            mut inner,
            length_at,
            contents,
            ..
        } = nested_resource;
        let policy = self.policy;
        let lacking = |walk: &Self, key: &str| {
            let is_removed = matches!(policy.attributes.action(key.as_bytes(), false), Action::Remove(_));
            !is_removed && walk.lacks(attributes, key)
        };
        let open = self.edits.enter(length_at, contents.len());
        while !inner.is_done() {
            let begin = inner.position();
            let key = inner.key()?;
            if key.raw() == delimited(u32::from(ATTRIBUTES)) {
                let mut ahead = inner;
                let entry = Entry::decode(ahead.slice()?);
                let mut defaults = policy.set_resource.iter();
                if defaults.any(|default| entry.key() == default.key.as_str() && lacking(self, &default.key)) {
                    self.edits.remove(begin..ahead.position());
                    inner = ahead;
                    continue;
                }
            }
            self.field(&mut inner, begin, key, message, MAX_DEPTH)?;
        }
        for default in policy.set_resource.iter().filter(|_| is_last) {
            if self.lacks(attributes, &default.key) {
                self.count(default.rule);
                let end = contents.end..contents.end;
                self.edits
                    .replace(end, |out| put_default(out, &default.key, &default.value));
            }
        }
        self.edits.leave(open);
        Ok(())
    }

    /// A scope with its items. False if nothing is left of it.
    fn scope(&mut self, nested_scope: Nested<'a>, message: &'static Message) -> Result<bool, Broken> {
        let Nested {
            mut inner,
            whole,
            length_at,
            contents,
        } = nested_scope;
        if !self.chooses_spans && !self.is_concerned(&contents) {
            return Ok(true);
        }
        let open = self.edits.enter(length_at, contents.len());
        let (mut items, mut left) = (0, 0);
        while !inner.is_done() {
            let begin = inner.position();
            let key = inner.key()?;
            if self.chooses_spans && key.raw() == delimited(ITEMS) {
                let nested = nested(begin, &mut inner)?;
                items += 1;
                left += usize::from(self.span(nested)?);
            } else {
                self.field(&mut inner, begin, key, message, MAX_DEPTH)?;
            }
        }
        if items > 0 && left == 0 {
            self.edits.collapse(&open, whole);
            return Ok(false);
        }
        self.edits.leave(open);
        Ok(true)
    }

    /// A span that may be left out. False if it is.
    fn span(&mut self, nested: Nested<'a>) -> Result<bool, Broken> {
        let Nested {
            mut inner,
            whole,
            length_at,
            contents,
        } = nested;
        let span = Span::decode(inner.rest());
        let policy = self.policy;
        if !policy.drop.is_empty() {
            policy.drop.enter_span(&span, &mut self.slots, &self.of_resource);
            if let Some(rule) = policy.drop.first_match(&span, &self.slots) {
                self.count(rule);
                self.dropped += 1;
                self.edits.remove(whole);
                return Ok(false);
            }
        }
        let threshold = match decide(&span, policy.threshold) {
            Sampled::Out => {
                self.count(policy.ratio_rule);
                self.dropped += 1;
                self.edits.remove(whole);
                return Ok(false);
            }
            Sampled::In => None,
            Sampled::InAt(threshold) => Some(threshold),
        };
        let open = self.edits.enter(length_at, contents.len());
        let has_state = !span.trace_state().is_empty();
        if self.edits_texts || (threshold.is_some() && has_state) {
            while !inner.is_done() {
                let begin = inner.position();
                let key = inner.key()?;
                if let Some(threshold) = threshold
                    && key.raw() == delimited(TRACE_STATE)
                {
                    // Of an occurrence too many the last one counts.
                    inner.slice()?;
                    self.put_state(begin..inner.position(), &span, threshold);
                } else {
                    self.field(&mut inner, begin, key, &schema::SPAN, MAX_DEPTH)?;
                }
            }
        }
        if threshold.is_some() && !has_state {
            let end = contents.end..contents.end;
            self.edits.replace(end, |out| out.extend_from_slice(&policy.state));
        }
        self.edits.leave(open);
        Ok(true)
    }

    /// Writes a `tracestate` with a threshold. What it says besides may be a secret too.
    fn put_state(&mut self, at: Range<usize>, span: &Span<'a>, threshold: super::Threshold) {
        let patterns = &self.policy.patterns;
        let mut state = Vec::new();
        let mut items = Vec::new();
        let before = span.trace_state().as_bytes();
        match patterns.cut(before, &mut state, |item| items.push(item)) {
            true => {
                let cleaned = std::mem::take(&mut state);
                stamp(&cleaned, threshold, &mut state);
            }
            false => stamp(before, threshold, &mut state),
        }
        for item in items {
            self.count(self.policy.redact_rule + item);
        }
        self.edits.replace(at, |out| put_bytes(out, TRACE_STATE, &state));
    }

    /// Whether anything may change in these bytes.
    #[inline]
    fn is_concerned(&mut self, at: &Range<usize>) -> bool {
        !self.policy.attributes.is_empty() || at.len() > self.policy.truncate || self.sweep.may_match(at.clone())
    }

    /// All fields of a message.
    fn fields(&mut self, mut cursor: Cursor<'a>, message: &'static Message, depth: u32) -> Result<(), Broken> {
        while !cursor.is_done() {
            let begin = cursor.position();
            let key = cursor.key()?;
            self.field(&mut cursor, begin, key, message, depth)?;
        }
        Ok(())
    }

    /// One field of a message, whose key was read and began at `begin`.
    fn field(
        &mut self,
        cursor: &mut Cursor<'a>,
        begin: usize,
        key: wire::Key,
        message: &'static Message,
        depth: u32,
    ) -> Result<(), Broken> {
        let field = match message.field(key.number()) {
            Some(field) if key.wire_type() == Some(WireType::Delimited) => field,
            _ => return cursor.skip(key, depth),
        };
        match field.kind {
            Kind::Message(inner) | Kind::Messages(inner) => {
                let nested = nested(begin, cursor)?;
                if !self.is_concerned(&nested.contents) {
                    return Ok(());
                }
                let Some(depth) = depth.checked_sub(1) else {
                    return Err(Broken {
                        fault: Fault::TooDeep,
                        at: begin,
                    });
                };
                if inner.role == Role::KeyValue {
                    let is_in_value = std::ptr::eq(message, &schema::KEY_VALUE_LIST);
                    return self.key_value(nested, is_in_value, depth);
                }
                let open = self.edits.enter(nested.length_at, nested.contents.len());
                self.fields(nested.inner, inner, depth)?;
                self.edits.leave(open);
            }
            Kind::String | Kind::Strings | Kind::Bytes => {
                let nested = nested(begin, cursor)?;
                let is_value = std::ptr::eq(message, &schema::ANY_VALUE) || std::ptr::eq(message, &schema::STATUS);
                self.text(&nested, is_value, matches!(field.kind, Kind::Bytes));
            }
            // Ids and numbers.
            _ => cursor.skip(key, depth)?,
        }
        Ok(())
    }

    /// A text, or bytes: without its secrets, and not too long if it is a value.
    fn text(&mut self, nested: &Nested<'a>, is_value: bool, is_bytes: bool) {
        let limit = if is_value { self.policy.truncate } else { usize::MAX };
        let original = nested.inner.rest();
        let mut cleaned = std::mem::take(&mut self.cleaned);
        cleaned.clear();
        let (tally, first) = (&mut *self.tally, self.policy.redact_rule);
        let has_secrets = self.sweep.may_match(nested.contents.clone())
            && self.policy.patterns.cut(original, &mut cleaned, |item| {
                if let Some(count) = tally.get_mut(first + item) {
                    *count += 1;
                }
            });
        let text = if has_secrets { &cleaned } else { original };
        let end = match is_bytes {
            true => text.len().min(limit),
            false => whole_characters(text, limit),
        };
        if end < text.len() {
            self.count(self.policy.truncate_rule);
        }
        if has_secrets || end < text.len() {
            self.edits.replace(nested.length_at.start..nested.contents.end, |out| {
                put_varint(out, end as u64);
                out.extend_from_slice(&text[..end]);
            });
        }
        self.cleaned = cleaned;
    }
}

/// At most `limit` bytes of a text, and no half character.
fn whole_characters(text: &[u8], limit: usize) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    let is_inside = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    (0..=limit).rev().take(4).find(|at| !is_inside(at)).unwrap_or(limit)
}

fn put_default(out: &mut Vec<u8>, key: &str, value: &str) {
    let mut text = Vec::new();
    put_bytes(&mut text, 1, value.as_bytes());
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, &text);
    put_bytes(out, u32::from(ATTRIBUTES), &entry);
}
