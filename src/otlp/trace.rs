//! The walk over an `ExportTraceServiceRequest` (opentelemetry-proto `collector/trace/v1`, `trace/v1`).
//!
//! [`TraceRequest::parse`] checks everything once; after that the request is bytes, and iterating costs no allocation
//! and cannot fail. [`ResourceSpans`] and [`ScopeSpans`] are views whose getters look through the message each time, as
//! their fields may come before or after the (large) repeated ones: ask once per message, not once per span.
//! [`Span`] is decoded in a single pass that steps over events and links, and over attributes unless they are wanted.

use bytes::Bytes;

use super::check::{self, Malformed};
use super::cut::without_rejected;
use super::entry::{Entry, Short};
use super::noted::{NoNotice, NotedSpans, Notice};
use super::value::{Attributes, Fields, Text};
use super::wire::{self, Broken, Cursor, MAX_DEPTH};

/// A checked trace request: the bytes as they were received.
#[derive(Clone, Debug)]
pub struct TraceRequest(Bytes);

/// What [`TraceRequest::parse`] found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The request, without the rejected spans. The very bytes that were received if none was rejected.
    pub request: TraceRequest,
    /// How many spans it has.
    pub spans: u32,
    /// How many spans were cut out, because their trace id or span id is all zero or has the wrong length.
    pub rejected: u32,
    /// The spans that were to be noted; not known if some were cut out.
    pub noted: Option<NotedSpans>,
}

impl TraceRequest {
    /// Checks everything once: structure, nesting, UTF-8 of every string. Spans with an invalid trace id or span id are
    /// cut out; all other bytes stay as they are, fields unknown to us included.
    pub fn parse(body: Bytes) -> Result<Checked, Malformed> {
        let checked = TraceRequest::parse_noting(body, &mut NoNotice)?;
        Ok(Checked { noted: None, ..checked })
    }

    /// The same, and notes the spans that `notice` wants.
    pub fn parse_noting(body: Bytes, notice: &mut impl Notice) -> Result<Checked, Malformed> {
        let found = check::trace_request(&body, notice)?;
        let (request, noted) = match found.rejected {
            0 => (TraceRequest(body), Some(NotedSpans::new(&found.noted))),
            _ => (TraceRequest(without_rejected(&body)), None),
        };
        Ok(Checked {
            request,
            spans: found.items - found.rejected,
            rejected: found.rejected,
            noted,
        })
    }

    /// Bytes that were checked before, and protected since.
    pub const fn trusted(body: Bytes) -> TraceRequest {
        TraceRequest(body)
    }

    /// The protobuf bytes.
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The resources of the request.
    pub fn resource_spans(&self) -> ResourceSpansIter<'_> {
        ResourceSpansIter(Fields::direct(&self.0, 1))
    }

    /// Counts the spans, without decoding them.
    pub fn span_count(&self) -> usize {
        self.resource_spans()
            .flat_map(|resource| resource.scope_spans())
            .map(|scope| scope.span_count())
            .sum()
    }
}

macro_rules! message_iterator {
    ($(#[$doc:meta])* $name:ident yields $item:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name<'a>(Fields<'a>);

        impl<'a> Iterator for $name<'a> {
            type Item = $item<'a>;

            #[inline(always)]
            fn next(&mut self) -> Option<$item<'a>> {
                self.0.next().map($item::decode)
            }
        }
    };
}

message_iterator! {
    /// The resources of a request.
    ResourceSpansIter yields ResourceSpans
}
message_iterator! {
    /// The instrumentation scopes of a resource.
    ScopeSpansIter yields ScopeSpans
}
message_iterator! {
    /// The spans of a scope.
    Spans yields Span
}
message_iterator! {
    /// The events of a span.
    Events yields Event
}

/// Takes the attributes of a span while its fields are read. A trait and not a closure, because the compiler would not
/// inline that where it is used for each attribute of each span.
pub(crate) trait Visitor<'a> {
    /// Whether there is a use in showing it anything.
    const LOOKS: bool = true;

    /// An attribute, in the order of the wire.
    fn attribute(&mut self, entry: Entry<'a>);
}

/// Looks at no attribute.
struct Nobody;

impl Visitor<'_> for Nobody {
    const LOOKS: bool = false;

    #[inline(always)]
    fn attribute(&mut self, _: Entry<'_>) {}
}

impl<'a> Spans<'a> {
    /// The bytes of the next span, for [`Span::visit`].
    #[inline(always)]
    pub(crate) fn next_raw(&mut self) -> Option<&'a [u8]> {
        self.0.next()
    }
}

/// The spans of one resource.
#[derive(Clone, Copy)]
pub struct ResourceSpans<'a>(&'a [u8]);

impl<'a> ResourceSpans<'a> {
    const RESOURCE: u8 = 1;
    pub(super) const SCOPE_SPANS: u8 = 2;
    const SCHEMA_URL: u32 = wire::delimited(3);

    const fn decode(bytes: &'a [u8]) -> ResourceSpans<'a> {
        ResourceSpans(bytes)
    }

    /// The attributes of the resource.
    pub const fn resource(&self) -> Attributes<'a> {
        Attributes(Fields::nested(self.0, Self::RESOURCE, 1))
    }

    /// The scopes with their spans.
    pub const fn scope_spans(&self) -> ScopeSpansIter<'a> {
        ScopeSpansIter(Fields::direct(self.0, Self::SCOPE_SPANS))
    }

    /// The schema URL of the resource.
    pub fn schema_url(&self) -> Text<'a> {
        last_text(self.0, Self::SCHEMA_URL)
    }

    /// The protobuf bytes of this message.
    pub const fn raw(&self) -> &'a [u8] {
        self.0
    }
}

/// The spans of one instrumentation scope.
#[derive(Clone, Copy)]
pub struct ScopeSpans<'a>(&'a [u8]);

/// An instrumentation scope.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// Name of the instrumenting library.
    pub name: Text<'a>,
    /// Its version.
    pub version: Text<'a>,
    /// Its attributes.
    pub attributes: Attributes<'a>,
}

impl<'a> ScopeSpans<'a> {
    const SCOPE: u8 = 1;
    pub(super) const SPANS: u8 = 2;
    const SCHEMA_URL: u32 = wire::delimited(3);

    const fn decode(bytes: &'a [u8]) -> ScopeSpans<'a> {
        ScopeSpans(bytes)
    }

    /// Name, version and attributes of the scope, in one look through the message.
    pub fn scope(&self) -> Scope<'a> {
        const NAME: u32 = wire::delimited(1);
        const VERSION: u32 = wire::delimited(2);
        let mut scope = Scope {
            name: Text::default(),
            version: Text::default(),
            attributes: self.scope_attributes(),
        };
        let mut pieces = Fields::direct(self.0, Self::SCOPE);
        while let Some(piece) = pieces.next() {
            Cursor::new(piece).for_each_field(|key, cursor| {
                match key.raw() {
                    NAME => scope.name = Text::new(cursor.slice()?),
                    VERSION => scope.version = Text::new(cursor.slice()?),
                    _ => cursor.skip(key, MAX_DEPTH)?,
                }
                Ok(())
            });
        }
        scope
    }

    /// Name of the instrumenting library.
    pub fn scope_name(&self) -> Text<'a> {
        self.scope().name
    }

    /// Version of the instrumenting library.
    pub fn scope_version(&self) -> Text<'a> {
        self.scope().version
    }

    /// Attributes of the scope.
    pub const fn scope_attributes(&self) -> Attributes<'a> {
        Attributes(Fields::nested(self.0, Self::SCOPE, 3))
    }

    /// The schema URL of the spans.
    pub fn schema_url(&self) -> Text<'a> {
        last_text(self.0, Self::SCHEMA_URL)
    }

    /// The spans.
    pub const fn spans(&self) -> Spans<'a> {
        Spans(Fields::direct(self.0, Self::SPANS))
    }

    /// Counts the spans, without decoding them.
    pub fn span_count(&self) -> usize {
        let mut spans = Fields::direct(self.0, Self::SPANS);
        std::iter::from_fn(|| spans.next()).count()
    }

    /// The protobuf bytes of this message.
    pub const fn raw(&self) -> &'a [u8] {
        self.0
    }
}

/// The last occurrence of a string field.
fn last_text(message: &[u8], wanted: u32) -> Text<'_> {
    let mut text = Text::default();
    Cursor::new(message).for_each_field(|key, cursor| {
        match key.raw() == wanted {
            true => text = Text::new(cursor.slice()?),
            false => cursor.skip(key, MAX_DEPTH)?,
        }
        Ok(())
    });
    text
}

/// `Span.attributes`.
pub(super) const ATTRIBUTE: u32 = 9;

/// One span, decoded as far as a single pass over its own fields goes.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    raw: &'a [u8],
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a [u8],
    name: &'a [u8],
    status_message: &'a [u8],
    /// From the first attribute to the end of the last one: usually nothing else is in between.
    attributes: &'a [u8],
    /// From the first event to the end of the last one.
    events: &'a [u8],
    start_unix_nano: u64,
    end_unix_nano: u64,
    kind: i32,
    status_code: i32,
}

impl<'a> Span<'a> {
    pub(super) const TRACE_ID: u32 = wire::delimited(1);
    pub(super) const SPAN_ID: u32 = wire::delimited(2);
    pub(super) const TRACE_STATE: u32 = wire::delimited(3);
    pub(super) const PARENT_SPAN_ID: u32 = wire::delimited(4);
    pub(super) const NAME: u32 = wire::delimited(5);
    const KIND: u32 = wire::varint(6);
    const START: u32 = wire::fixed64(7);
    const END: u32 = wire::fixed64(8);
    pub(super) const ATTRIBUTES: u32 = wire::delimited(ATTRIBUTE);
    const EVENTS: u32 = wire::delimited(11);
    const STATUS: u32 = wire::delimited(15);

    #[inline(always)]
    pub(crate) fn decode(raw: &'a [u8]) -> Span<'a> {
        Span::visit(raw, &mut Nobody)
    }

    /// Decodes the span and shows `visitor` its attributes on the way: cheaper than to walk over [`Span::attributes`]
    /// afterwards.
    #[inline(always)]
    pub(crate) fn visit(raw: &'a [u8], visitor: &mut impl Visitor<'a>) -> Span<'a> {
        let mut span = Span {
            raw,
            trace_id: &[],
            span_id: &[],
            parent_span_id: &[],
            trace_state: &[],
            name: &[],
            status_message: &[],
            attributes: &[],
            events: &[],
            start_unix_nano: 0,
            end_unix_nano: 0,
            kind: 0,
            status_code: 0,
        };
        let mut attributes = Extent::default();
        let mut events = Extent::default();
        // As with `Cursor::for_each_field`, damage ends the message, and what came before counts.
        let _ended_early = span.read_fields(&mut attributes, &mut events, visitor);
        span.attributes = attributes.bytes();
        span.events = events.bytes();
        span
    }

    #[inline(always)]
    fn read_fields(
        &mut self,
        attributes: &mut Extent<'a>,
        events: &mut Extent<'a>,
        visitor: &mut impl Visitor<'a>,
    ) -> Result<(), Broken> {
        let mut cursor = Cursor::new(self.raw);
        if let Some((trace_id, span_id)) = usual_ids(&mut cursor) {
            (self.trace_id, self.span_id) = (trace_id, span_id);
        }
        while !cursor.is_done() {
            let begin = cursor;
            let key = cursor.key()?;
            match key.raw() {
                Self::ATTRIBUTES => {
                    visitor.attribute(Entry::decode(cursor.slice()?));
                    read_run(&mut cursor, visitor);
                    attributes.include(&begin, &cursor);
                }
                Self::TRACE_ID => self.trace_id = cursor.slice()?,
                Self::SPAN_ID => self.span_id = cursor.slice()?,
                Self::TRACE_STATE => self.trace_state = cursor.slice()?,
                Self::PARENT_SPAN_ID => self.parent_span_id = cursor.slice()?,
                Self::NAME => {
                    self.name = cursor.slice()?;
                    if let Some(next) = UsualTimes::read(&mut cursor) {
                        (self.kind, self.start_unix_nano, self.end_unix_nano) = (next.kind, next.start, next.end);
                    }
                }
                Self::KIND => self.kind = cursor.varint()? as i32,
                Self::START => self.start_unix_nano = cursor.fixed64()?,
                Self::END => self.end_unix_nano = cursor.fixed64()?,
                Self::EVENTS => {
                    cursor.slice()?;
                    events.include(&begin, &cursor);
                }
                Self::STATUS => self.read_status(cursor.message()?),
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn read_status(&mut self, cursor: Cursor<'a>) {
        const MESSAGE: u32 = wire::delimited(2);
        const CODE: u32 = wire::varint(3);
        cursor.for_each_field(|key, cursor| {
            match key.raw() {
                MESSAGE => self.status_message = cursor.slice()?,
                CODE => self.status_code = cursor.varint()? as i32,
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
            Ok(())
        });
    }

    /// 16 bytes, not all zero, in a request that was checked.
    pub const fn trace_id(&self) -> &'a [u8] {
        self.trace_id
    }

    /// 8 bytes, not all zero, in a request that was checked.
    pub const fn span_id(&self) -> &'a [u8] {
        self.span_id
    }

    /// Empty for a root span; not checked.
    pub const fn parent_span_id(&self) -> &'a [u8] {
        self.parent_span_id
    }

    /// The `tracestate` header of W3C trace context.
    pub const fn trace_state(&self) -> Text<'a> {
        Text::new(self.trace_state)
    }

    /// The name of the operation.
    pub const fn name(&self) -> Text<'a> {
        Text::new(self.name)
    }

    /// `SpanKind` as its number.
    pub const fn kind(&self) -> i32 {
        self.kind
    }

    /// Start in nanoseconds since 1970; 0 if the sender gave none.
    pub const fn start_unix_nano(&self) -> u64 {
        self.start_unix_nano
    }

    /// End in nanoseconds since 1970; may lie before the start.
    pub const fn end_unix_nano(&self) -> u64 {
        self.end_unix_nano
    }

    /// The attributes.
    #[inline(always)]
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes(Fields::direct(self.attributes, 9))
    }

    /// The events, such as exceptions.
    pub const fn events(&self) -> Events<'a> {
        Events(Fields::direct(self.events, 11))
    }

    /// 0 unset, 1 ok, 2 error.
    pub const fn status_code(&self) -> i32 {
        self.status_code
    }

    /// The text that goes with the status.
    pub const fn status_message(&self) -> Text<'a> {
        Text::new(self.status_message)
    }

    /// The protobuf bytes of this span.
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Both ids have the right length and are not all zero (trace.proto: such ids are invalid).
    #[inline(always)]
    pub fn has_valid_ids(&self) -> bool {
        check::is_valid_trace_id(self.trace_id) && check::is_valid_span_id(self.span_id)
    }
}

/// Attributes come in runs.
#[inline(always)]
fn read_run<'a, V: Visitor<'a>>(cursor: &mut Cursor<'a>, visitor: &mut V) {
    if !V::LOOKS {
        while cursor.short_slice(Span::ATTRIBUTES).is_some() {}
        return;
    }
    while let Some(next) = Short::next::<ATTRIBUTE>(cursor) {
        visitor.attribute(Entry::short(next));
    }
}

/// Both ids of a span in one piece, if they come next in the usual form.
#[inline(always)]
pub(super) fn usual_ids<'a>(cursor: &mut Cursor<'a>) -> Option<(&'a [u8; 16], &'a [u8; 8])> {
    const TRACE_ID: [u8; 2] = [Span::TRACE_ID as u8, 16];
    const SPAN_ID: [u8; 2] = [Span::SPAN_ID as u8, 8];
    let ids: &[u8; 28] = cursor.chunk_if(|ids: &[u8; 28]| ids[..2] == TRACE_ID && ids[18..20] == SPAN_ID)?;
    Some((ids[2..].first_chunk()?, ids.last_chunk()?))
}

/// Kind and times of a span as they are usually written: one after the other, behind the name.
#[derive(Clone, Copy)]
pub(super) struct UsualTimes {
    kind: i32,
    start: u64,
    end: u64,
}

impl UsualTimes {
    /// Reads them in one piece, if they come next.
    #[inline(always)]
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Option<UsualTimes> {
        const KIND: u8 = Span::KIND as u8;
        const START: u8 = Span::START as u8;
        const END: u8 = Span::END as u8;
        let usual = |piece: &[u8; 20]| piece[0] == KIND && piece[1] < 0x80 && piece[2] == START && piece[11] == END;
        let piece = cursor.chunk_if(usual)?;
        Some(UsualTimes {
            kind: i32::from(piece[1]),
            start: u64::from_le_bytes(*piece[3..].first_chunk()?),
            end: u64::from_le_bytes(*piece.last_chunk()?),
        })
    }
}

/// From the first to the last occurrence of a field.
#[derive(Clone, Copy, Default)]
struct Extent<'a> {
    /// From the first occurrence to the end of the message.
    from: &'a [u8],
    /// How much of that comes behind the last occurrence.
    behind: usize,
}

impl<'a> Extent<'a> {
    #[inline(always)]
    fn include(&mut self, begin: &Cursor<'a>, end: &Cursor<'a>) {
        if self.from.is_empty() {
            self.from = begin.rest();
        }
        self.behind = end.rest().len();
    }

    #[inline(always)]
    fn bytes(self) -> &'a [u8] {
        self.from
            .get(..self.from.len().saturating_sub(self.behind))
            .unwrap_or_default()
    }
}

/// Something that happened during a span.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    name: &'a [u8],
    time_unix_nano: u64,
    raw: &'a [u8],
}

impl<'a> Event<'a> {
    fn decode(raw: &'a [u8]) -> Event<'a> {
        const TIME: u32 = wire::fixed64(1);
        const NAME: u32 = wire::delimited(2);
        let mut event = Event {
            name: &[],
            time_unix_nano: 0,
            raw,
        };
        Cursor::new(raw).for_each_field(|key, cursor| {
            match key.raw() {
                TIME => event.time_unix_nano = cursor.fixed64()?,
                NAME => event.name = cursor.slice()?,
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
            Ok(())
        });
        event
    }

    /// The name; `exception` for exceptions.
    pub const fn name(&self) -> Text<'a> {
        Text::new(self.name)
    }

    /// When, in nanoseconds since 1970.
    pub const fn time_unix_nano(&self) -> u64 {
        self.time_unix_nano
    }

    /// The attributes.
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes(Fields::direct(self.raw, 3))
    }
}
