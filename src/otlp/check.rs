//! The one thorough look at a request: is it valid protobuf of the right shape?
//!
//! What passes has been seen to the last byte: every field lies inside its message, known fields have their wire type,
//! strings are UTF-8, nothing nests deeper than [`MAX_DEPTH`]. The work is linear in the size of the body, nothing is
//! allocated, and the verdict is prost's (tested against it). Only when something is wrong is the path to it looked up.

use std::fmt;

use super::entry::{Entry, Short};
use super::noted::{NoNotice, Notice, Place};
use super::schema::{self, Field, Kind, Message, Role};
use super::trace::{ATTRIBUTE, Span, UsualTimes, usual_ids};
use super::wire::{self, Broken, Cursor, Fault, Key, MAX_DEPTH, WireType, is_ascii, is_utf8};

/// Why a request was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    fault: Fault,
    offset: usize,
    path: String,
}

impl Malformed {
    /// What is wrong.
    pub const fn fault(&self) -> Fault {
        self.fault
    }

    /// Where, in bytes from the beginning of the (decompressed) body.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The field in which it was found, such as `resourceSpans[0].scopeSpans[1].spans[7].name`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.path.is_empty() {
            "the request"
        } else {
            &self.path
        };
        write!(
            formatter,
            "malformed protobuf in {place} at byte {}: {}",
            self.offset, self.fault
        )
    }
}

impl std::error::Error for Malformed {}

/// What the check counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Spans, data points or log records.
    pub(super) items: u32,
    /// Spans among them whose ids are invalid.
    pub(super) rejected: u32,
    /// Spans that were to be noted.
    pub(super) noted: Vec<Place>,
}

pub(super) fn trace_request(body: &[u8], notice: &mut impl Notice) -> Result<Found, Malformed> {
    check(body, &schema::TRACE_REQUEST, notice)
}

/// For requests without spans.
pub(super) fn request(body: &[u8], message: &'static Message) -> Result<Found, Malformed> {
    check(body, message, &mut NoNotice)
}

fn check(body: &[u8], message: &'static Message, notice: &mut impl Notice) -> Result<Found, Malformed> {
    let mut check = Check {
        found: Found::default(),
        notice,
    };
    let checked = match i32::try_from(body.len()) {
        Ok(_) => check.message(Cursor::new(body), message, MAX_DEPTH),
        Err(_) => Err(Broken {
            fault: Fault::TooLarge,
            at: 0,
        }),
    };
    match checked {
        Ok(()) => Ok(check.found),
        Err(Broken { fault, at }) => Err(Malformed {
            fault,
            offset: at,
            path: path_to(body, message, at),
        }),
    }
}

#[inline(always)]
pub(super) fn is_valid_trace_id(id: &[u8]) -> bool {
    <[u8; 16]>::try_from(id).is_ok_and(|id| u128::from_ne_bytes(id) != 0)
}

#[inline(always)]
pub(super) fn is_valid_span_id(id: &[u8]) -> bool {
    <[u8; 8]>::try_from(id).is_ok_and(|id| u64::from_ne_bytes(id) != 0)
}

struct Check<'n, N> {
    found: Found,
    notice: &'n mut N,
}

impl<N: Notice> Check<'_, N> {
    fn message(&mut self, mut cursor: Cursor<'_>, message: &'static Message, depth: u32) -> Result<(), Broken> {
        while !cursor.is_done() {
            let at = cursor.position();
            let key = cursor.key()?;
            match message.field(key.number()) {
                Some(field) => self.field(&mut cursor, at, key, field, depth)?,
                None => cursor.skip(key, depth)?,
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn field(
        &mut self,
        cursor: &mut Cursor<'_>,
        at: usize,
        key: Key,
        field: &'static Field,
        depth: u32,
    ) -> Result<(), Broken> {
        let is = |wire_type| match key.wire_type() == Some(wire_type) {
            true => Ok(()),
            false => Err(Broken {
                fault: Fault::Mismatch,
                at,
            }),
        };
        match field.kind {
            Kind::Message(message) | Kind::Messages(message) => {
                is(WireType::Delimited)?;
                self.nested(cursor.message()?, message, at, depth)
            }
            Kind::String | Kind::Strings => {
                is(WireType::Delimited)?;
                text(cursor, at).map(drop)
            }
            Kind::Bytes | Kind::Id => {
                is(WireType::Delimited)?;
                cursor.slice().map(drop)
            }
            Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Sint32 | Kind::Enum(_) => {
                is(WireType::Varint)?;
                cursor.varint().map(drop)
            }
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                is(WireType::Fixed64)?;
                cursor.fixed64().map(drop)
            }
            Kind::Fixed32 => {
                is(WireType::Fixed32)?;
                cursor.fixed32().map(drop)
            }
            Kind::Doubles | Kind::Fixed64s => match key.wire_type() {
                Some(WireType::Delimited) => packed(cursor.message()?, Cursor::fixed64),
                _ => is(WireType::Fixed64).and_then(|()| cursor.fixed64()).map(drop),
            },
            Kind::Uint64s => match key.wire_type() {
                Some(WireType::Delimited) => packed(cursor.message()?, Cursor::varint),
                _ => is(WireType::Varint).and_then(|()| cursor.varint()).map(drop),
            },
        }
    }

    #[inline(always)]
    fn nested(&mut self, nested: Cursor<'_>, message: &'static Message, at: usize, depth: u32) -> Result<(), Broken> {
        if message.role == Role::KeyValue && depth > 1 && Short::of(nested.rest()).is_some_and(|short| is_usual(&short))
        {
            return Ok(());
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Broken {
                fault: Fault::TooDeep,
                at,
            });
        };
        match message.role {
            Role::Span => return self.span(nested, message, depth),
            Role::Item => self.found.items += 1,
            Role::Plain | Role::KeyValue => {}
        }
        self.message(nested, message, depth)
    }

    /// As [`Check::message`], and looks at the ids. Of an id that is given twice the last one counts. The fields that
    /// nearly every span has are read here and not by the table, and those in pieces that mostly stand in one order.
    fn span(&mut self, mut cursor: Cursor<'_>, message: &'static Message, depth: u32) -> Result<(), Broken> {
        let place = Place {
            begin: cursor.position() as u32,
            end: (cursor.position() + cursor.rest().len()) as u32,
        };
        let (mut trace_id, mut span_id, mut name) = (&[][..], &[][..], &[][..]);
        if let Some(ids) = usual_ids(&mut cursor) {
            (trace_id, span_id) = (ids.0, ids.1);
        }
        while !cursor.is_done() {
            let at = cursor.position();
            let key = cursor.key()?;
            match key.raw() {
                Span::TRACE_ID => trace_id = cursor.slice()?,
                Span::SPAN_ID => span_id = cursor.slice()?,
                Span::PARENT_SPAN_ID => drop(cursor.slice()?),
                Span::TRACE_STATE => drop(text(&mut cursor, at)?),
                Span::NAME => {
                    name = text(&mut cursor, at)?;
                    let _usual = UsualTimes::read(&mut cursor);
                }
                Span::ATTRIBUTES => {
                    let attribute = cursor.message()?;
                    self.nested(attribute, &schema::KEY_VALUE, at, depth)?;
                    self.notice.attribute(Entry::decode(attribute.rest()).key().as_bytes());
                    // They come in runs.
                    self.usual_attributes(&mut cursor, depth);
                }
                _ => match message.field(key.number()) {
                    Some(field) => self.field(&mut cursor, at, key, field, depth)?,
                    None => cursor.skip(key, depth)?,
                },
            }
        }
        self.found.items += 1;
        self.found.rejected += u32::from(!is_valid_trace_id(trace_id) || !is_valid_span_id(span_id));
        if self.notice.span(name) {
            self.found.noted.push(place);
        }
        Ok(())
    }

    /// Steps over attributes up to the first in another form than the usual one.
    #[inline(always)]
    fn usual_attributes(&mut self, cursor: &mut Cursor<'_>, depth: u32) {
        let mut ahead = *cursor;
        while depth > 1
            && let Some(next) = Short::next::<ATTRIBUTE>(&mut ahead)
            && is_usual(&next)
        {
            self.notice.attribute(next.key);
            *cursor = ahead;
        }
    }
}

/// Reads a string that stands at `at`.
#[inline(always)]
fn text<'a>(cursor: &mut Cursor<'a>, at: usize) -> Result<&'a [u8], Broken> {
    let text = cursor.slice()?;
    match is_utf8(text) {
        true => Ok(text),
        false => Err(Broken { fault: Fault::Utf8, at }),
    }
}

fn packed<'a>(mut values: Cursor<'a>, read: impl Fn(&mut Cursor<'a>) -> Result<u64, Broken>) -> Result<(), Broken> {
    while !values.is_done() {
        read(&mut values)?;
    }
    Ok(())
}

/// Recognises what nearly every attribute is: a key and one value, both ASCII, both short. Saying no is no verdict. All
/// bytes of such an attribute but those of a number are below 0x80, tags and lengths included, so one look covers keys,
/// texts and lengths together.
#[inline(always)]
fn is_usual(attribute: &Short<'_>) -> bool {
    const STRING: u8 = wire::delimited(1) as u8;
    const BOOL: u8 = wire::varint(2) as u8;
    const INT: u8 = wire::varint(3) as u8;
    const DOUBLE: u8 = wire::fixed64(4) as u8;
    match *attribute.value {
        [STRING, length, ref text @ ..] => usize::from(length) == text.len() && is_ascii(attribute.message),
        [BOOL | INT, _] => is_ascii(attribute.message),
        // A varint of 9 bytes has 63 bits: it fits.
        [INT, ref bits @ .., last] => {
            bits.len() < 9 && last < 0x80 && bits.iter().all(|bits| *bits >= 0x80) && is_ascii(attribute.key)
        }
        [DOUBLE, _, _, _, _, _, _, _, _] => is_ascii(attribute.key),
        _ => false,
    }
}

/// The path of the field that covers a place in the bytes. Walks as far as the bytes allow.
fn path_to(body: &[u8], message: &'static Message, place: usize) -> String {
    let mut path = String::new();
    // The walk ends in the fault that is being explained: the path so far is the answer.
    let _as_far_as_it_goes = extend_path(&mut path, Cursor::new(body), message, place);
    path
}

fn extend_path(path: &mut String, mut cursor: Cursor<'_>, message: &Message, place: usize) -> Result<(), Broken> {
    let mut seen = [0usize; schema::HIGHEST + 1];
    loop {
        let key = cursor.key()?;
        let mut value = cursor;
        let skipped = cursor.skip(key, MAX_DEPTH);
        let index = usize::try_from(key.number())
            .ok()
            .and_then(|number| seen.get_mut(number));
        if skipped.is_ok() && cursor.position() <= place {
            if let Some(index) = index {
                *index += 1;
            }
            continue;
        }
        let Some(field) = message.field(key.number()) else {
            return Ok(());
        };
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(field.name);
        if let (Kind::Messages(_) | Kind::Strings, Some(index)) = (field.kind, index) {
            path.push_str(&format!("[{index}]"));
        }
        return match field.kind {
            Kind::Message(message) | Kind::Messages(message) => extend_path(path, value.message()?, message, place),
            _ => Ok(()),
        };
    }
}
