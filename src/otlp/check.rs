//! The one thorough look at a request: is it valid protobuf of the right shape?
//!
//! What passes has been seen to the last byte: every field lies inside its message, known fields have their wire type,
//! strings are UTF-8, nothing nests deeper than [`MAX_DEPTH`]. The work is linear in the size of the body, nothing is
//! allocated, and the verdict is prost's (tested against it). Only when something is wrong is the path to it looked up.

use std::fmt;

use super::schema::{self, Field, Kind, Message, Role};
use super::value::short_key_value;
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
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Spans, data points or log records.
    pub(super) items: u32,
    /// Spans among them whose ids are invalid.
    pub(super) rejected: u32,
}

pub(super) fn trace_request(body: &[u8]) -> Result<Found, Malformed> {
    request(body, &schema::TRACE_REQUEST)
}

pub(super) fn request(body: &[u8], message: &'static Message) -> Result<Found, Malformed> {
    let mut check = Check {
        found: Found::default(),
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

struct Check {
    found: Found,
}

impl Check {
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
                match is_utf8(cursor.slice()?) {
                    true => Ok(()),
                    false => Err(Broken { fault: Fault::Utf8, at }),
                }
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
        if message.role == Role::KeyValue && depth > 1 && is_usual_key_value(nested.rest()) {
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

    /// As [`Check::message`], and looks at the ids. Of an id that is given twice the last one counts.
    fn span(&mut self, mut cursor: Cursor<'_>, message: &'static Message, depth: u32) -> Result<(), Broken> {
        const TRACE_ID: u32 = wire::delimited(1);
        const SPAN_ID: u32 = wire::delimited(2);
        let (mut trace_id, mut span_id) = (&[][..], &[][..]);
        while !cursor.is_done() {
            let at = cursor.position();
            let key = cursor.key()?;
            match key.raw() {
                TRACE_ID => trace_id = cursor.slice()?,
                SPAN_ID => span_id = cursor.slice()?,
                ATTRIBUTE => {
                    let attribute = cursor.message()?;
                    self.nested(attribute, &schema::KEY_VALUE, at, depth)?;
                    // They come in runs.
                    skip_usual_attributes(&mut cursor, depth);
                }
                _ => match message.field(key.number()) {
                    Some(field) => self.field(&mut cursor, at, key, field, depth)?,
                    None => cursor.skip(key, depth)?,
                },
            }
        }
        self.found.items += 1;
        self.found.rejected += u32::from(!is_valid_trace_id(trace_id) || !is_valid_span_id(span_id));
        Ok(())
    }
}

/// `Span.attributes`.
const ATTRIBUTE: u32 = wire::delimited(9);

/// Steps over attributes up to the first in another form than the usual one.
#[inline(always)]
fn skip_usual_attributes(cursor: &mut Cursor<'_>, depth: u32) {
    let mut next = *cursor;
    while depth > 1 && next.short_slice(ATTRIBUTE).is_some_and(is_usual_key_value) {
        *cursor = next;
    }
}

fn packed<'a>(mut values: Cursor<'a>, read: impl Fn(&mut Cursor<'a>) -> Result<u64, Broken>) -> Result<(), Broken> {
    while !values.is_done() {
        read(&mut values)?;
    }
    Ok(())
}

/// Recognises the form nearly every attribute has: a key and then one value, both ASCII, both short. Saying no is no
/// verdict. All bytes of such an attribute but those of a number are below 0x80, tags and lengths included, so one look
/// covers keys, texts and lengths together.
#[inline(always)]
fn is_usual_key_value(bytes: &[u8]) -> bool {
    const STRING: u8 = wire::delimited(1) as u8;
    const BOOL: u8 = wire::varint(2) as u8;
    const INT: u8 = wire::varint(3) as u8;
    const DOUBLE: u8 = wire::fixed64(4) as u8;
    let Some((key, value)) = short_key_value(bytes) else {
        return false;
    };
    match *value {
        [STRING, length, ref text @ ..] => usize::from(length) == text.len() && is_ascii(bytes),
        [BOOL | INT, _] => is_ascii(bytes),
        // A varint of 9 bytes has 63 bits: it fits.
        [INT, ref bits @ .., last] => {
            bits.len() < 9 && last < 0x80 && bits.iter().all(|bits| *bits >= 0x80) && is_ascii(key)
        }
        [DOUBLE, _, _, _, _, _, _, _, _] => is_ascii(key),
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
