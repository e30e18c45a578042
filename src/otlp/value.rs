//! Attributes and their values, read where they lie.
//!
//! Protobuf lets a sender split any message field into several occurrences, which readers merge: repeated fields are
//! appended, of scalars the last one wins, of a `oneof` the last member wins (and messages of the same member merge).
//! Nobody sends that on purpose; but a sidecar that counts and bills must read what every other reader behind it reads.
//! Merging needs no allocation here: [`Fields`] walks over all occurrences, up to two messages deep, lazily.
//!
//! Iteration never fails and never panics: bytes were checked at the door ([`crate::otlp::TraceRequest::parse`]) and
//! are protected by a checksum from then on. If they are damaged all the same, iteration ends early.

use std::fmt;

use super::entry::Entry;
use super::wire::{self, Broken, Cursor, MAX_DEPTH};

/// Text on the wire: UTF-8, as was checked at the door. Compare and look up by [`Text::as_bytes`], which is free.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Text<'a> {
        Text(bytes)
    }

    /// The bytes of the text.
    #[inline(always)]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The text. (Looked at once more, since `unsafe` is forbidden here; damaged text is empty.)
    #[inline]
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }

    /// No characters.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Length in bytes.
    #[inline(always)]
    pub const fn len(self) -> usize {
        self.0.len()
    }
}

impl PartialEq<str> for Text<'_> {
    #[inline(always)]
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Text<'_> {
    #[inline(always)]
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

/// The value of an attribute: `opentelemetry.proto.common.v1.AnyValue`.
#[derive(Clone, Copy, Debug)]
pub enum AnyValue<'a> {
    /// No value: allowed, and distinct from an empty text. Also what a member of the `oneof` that is not meant for
    /// spans (an index into a string table of profiles) reads as.
    Empty,
    /// A text.
    Text(Text<'a>),
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating point number, possibly infinite or not a number.
    Double(f64),
    /// Values in order, of any kinds.
    Array(Values<'a>),
    /// Values by key.
    Map(Attributes<'a>),
    /// Bytes that are not text.
    Bytes(&'a [u8]),
}

impl<'a> AnyValue<'a> {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            AnyValue::Text(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The truth value; also of the texts `true` and `false`, which some SDKs send.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            AnyValue::Bool(value) => Some(*value),
            AnyValue::Text(text) if *text == "true" => Some(true),
            AnyValue::Text(text) if *text == "false" => Some(false),
            _ => None,
        }
    }

    /// The number: an integer, a double or a numeric text. May be infinite or not a number if the sender said so.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            AnyValue::Int(value) => Some(*value as f64),
            AnyValue::Double(value) => Some(*value),
            AnyValue::Text(text) => numeric(*text)?.parse().ok(),
            _ => None,
        }
    }

    /// The integer: an integer, a double without fraction that fits, or such a number as text.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            AnyValue::Int(value) => Some(*value),
            AnyValue::Double(value) => integral(*value),
            AnyValue::Text(text) => {
                let digits = numeric(*text)?;
                digits.parse().ok().or_else(|| integral(digits.parse().ok()?))
            }
            _ => None,
        }
    }

    /// Nothing was given.
    pub const fn is_empty(&self) -> bool {
        matches!(self, AnyValue::Empty)
    }

    /// Decodes the message `bytes`.
    #[inline(always)]
    pub(super) fn decode(bytes: &'a [u8]) -> AnyValue<'a> {
        quick_value(bytes).unwrap_or_else(|| {
            let mut merge = Merge::new(bytes, 0);
            merge.any_value(Cursor::new(bytes), 0, 0);
            merge.value
        })
    }
}

/// The number in a text without the blanks around it. `f64::from_str` would take words like `nan` and `inf` as well.
fn numeric(text: Text<'_>) -> Option<&str> {
    let digits = text.as_str().trim();
    digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
        .then_some(digits)
}

fn integral(value: f64) -> Option<i64> {
    // Both bounds are powers of two and exact as doubles; the upper one is the first that does not fit.
    const FITS: std::ops::Range<f64> = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;
    (FITS.contains(&value) && value.fract() == 0.0).then_some(value as i64)
}

const STRING: u32 = wire::delimited(1);
const BOOL: u32 = wire::varint(2);
const INT: u32 = wire::varint(3);
const DOUBLE: u32 = wire::fixed64(4);
const ARRAY: u32 = wire::delimited(5);
const KVLIST: u32 = wire::delimited(6);
const BYTES: u32 = wire::delimited(7);
const STRING_INDEX: u32 = wire::varint(8);
pub(super) const KEY: u32 = wire::delimited(1);
pub(super) const VALUE: u32 = wire::delimited(2);

/// The usual form: exactly one field. `None` if the bytes have any other.
#[inline(always)]
fn quick_value(bytes: &[u8]) -> Option<AnyValue<'_>> {
    const SHORT_STRING: u8 = STRING as u8;
    const SHORT_INT: u8 = INT as u8;
    match *bytes {
        [] => return Some(AnyValue::Empty),
        [SHORT_STRING, length @ ..0x80, ref text @ ..] if text.len() == usize::from(length) => {
            return Some(AnyValue::Text(Text(text)));
        }
        [SHORT_INT, value @ ..0x80] => return Some(AnyValue::Int(i64::from(value))),
        _ => {}
    }
    let mut cursor = Cursor::new(bytes);
    let value = match cursor.key().ok()?.raw() {
        STRING => AnyValue::Text(Text(cursor.slice().ok()?)),
        INT => AnyValue::Int(cursor.varint().ok()? as i64),
        BOOL => AnyValue::Bool(cursor.varint().ok()? != 0),
        DOUBLE => AnyValue::Double(f64::from_bits(cursor.fixed64().ok()?)),
        ARRAY => AnyValue::Array(Values(Fields::direct(cursor.slice().ok()?, 1))),
        KVLIST => AnyValue::Map(Attributes(Fields::direct(cursor.slice().ok()?, 1))),
        BYTES => AnyValue::Bytes(cursor.slice().ok()?),
        _ => return None,
    };
    cursor.is_done().then_some(value)
}

/// Merges the occurrences of an `AnyValue`, in the order of the wire.
struct Merge<'a> {
    /// The message in which the occurrences lie: the `AnyValue` itself, or the `KeyValue` that has it several times.
    outer: &'a [u8],
    /// The number of the field of `outer` that holds an occurrence; 0 if `outer` is the only one.
    outer_field: u32,
    value: AnyValue<'a>,
}

impl<'a> Merge<'a> {
    fn new(outer: &'a [u8], outer_field: u32) -> Merge<'a> {
        Merge {
            outer,
            outer_field,
            value: AnyValue::Empty,
        }
    }

    /// `begin` and `end`: where this occurrence's contents lie in `outer`, if there is an outer field.
    #[cold]
    fn any_value(&mut self, cursor: Cursor<'a>, begin: usize, end: usize) {
        let mut at = cursor.position();
        cursor.for_each_field(|key, cursor| {
            let field = begin + at;
            match key.raw() {
                STRING => self.value = AnyValue::Text(Text(cursor.slice()?)),
                BOOL => self.value = AnyValue::Bool(cursor.varint()? != 0),
                INT => self.value = AnyValue::Int(cursor.varint()? as i64),
                DOUBLE => self.value = AnyValue::Double(f64::from_bits(cursor.fixed64()?)),
                BYTES => self.value = AnyValue::Bytes(cursor.slice()?),
                STRING_INDEX => {
                    cursor.varint()?;
                    self.value = AnyValue::Empty;
                }
                ARRAY => {
                    cursor.slice()?;
                    // If a run of arrays goes on, its iterator will come here by itself.
                    if !matches!(self.value, AnyValue::Array(_)) {
                        self.value = AnyValue::Array(Values(self.run(5, field, end)));
                    }
                }
                KVLIST => {
                    cursor.slice()?;
                    if !matches!(self.value, AnyValue::Map(_)) {
                        self.value = AnyValue::Map(Attributes(self.run(6, field, end)));
                    }
                }
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
            at = cursor.position();
            Ok(())
        });
    }

    /// The elements of all messages `member` from offset `from` on. If a member of another kind follows, this run is
    /// given up; so whatever follows belongs to it.
    fn run(&self, member: u32, from: usize, end: usize) -> Fields<'a> {
        let rest = self.outer.get(from..).unwrap_or_default();
        let middle = if self.outer_field == 0 {
            rest.len()
        } else {
            end.saturating_sub(from)
        };
        Fields {
            leaf: &[],
            rest,
            middle,
            path: [self.outer_field as u8, member as u8, 1],
        }
    }
}

/// The occurrences of a length-delimited field in a message that may itself be split: lazily, in order.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// What is left of the innermost message, the one that has the field.
    leaf: &'a [u8],
    /// What is left behind it of the outermost message.
    rest: &'a [u8],
    /// How much of `rest` still belongs to the middle message.
    middle: usize,
    /// Field numbers, from the outside: of the middle message, of the leaf, of the field itself. 0: no such level.
    path: [u8; 3],
}

impl<'a> Fields<'a> {
    /// The field `number` of the one message `leaf`.
    #[inline(always)]
    pub(super) const fn direct(leaf: &'a [u8], number: u8) -> Fields<'a> {
        Fields {
            leaf,
            rest: &[],
            middle: 0,
            path: [0, 0, number],
        }
    }

    /// The field `number` of the message that is field `leaf` of `outer`, all occurrences of it.
    pub(super) const fn nested(outer: &'a [u8], leaf: u8, number: u8) -> Fields<'a> {
        Fields {
            leaf: &[],
            rest: outer,
            middle: outer.len(),
            path: [0, leaf, number],
        }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let wanted = wire::delimited(u32::from(self.path[2]));
            let mut cursor = Cursor::new(self.leaf);
            if let Some(value) = cursor.short_slice(wanted) {
                self.leaf = cursor.rest();
                return Some(value);
            }
            while !cursor.is_done() {
                let Ok(key) = cursor.key() else { return self.give_up() };
                if key.raw() == wanted {
                    let Ok(value) = cursor.slice() else {
                        return self.give_up();
                    };
                    self.leaf = cursor.rest();
                    return Some(value);
                }
                if cursor.skip(key, MAX_DEPTH).is_err() {
                    return self.give_up();
                }
            }
            if self.rest.is_empty() {
                self.leaf = &[];
                return None;
            }
            if self.enter().is_err() {
                return self.give_up();
            }
        }
    }

    /// Goes on to the next leaf, or to the end of `rest`.
    #[cold]
    fn enter(&mut self) -> Result<(), Broken> {
        self.leaf = &[];
        while !self.rest.is_empty() {
            let in_middle = self.middle > 0;
            let level = self.rest.get(..self.middle).filter(|_| in_middle).unwrap_or(self.rest);
            let mut cursor = Cursor::new(level);
            let key = cursor.key()?;
            let wanted = wire::delimited(u32::from(self.path[usize::from(in_middle)]));
            let (contents, mut read) = if key.raw() == wanted {
                let contents = cursor.slice()?;
                (Some(contents), cursor.position())
            } else {
                cursor.skip(key, MAX_DEPTH)?;
                (None, cursor.position())
            };
            match contents {
                Some(leaf) if in_middle => self.leaf = leaf,
                Some(middle) => {
                    read -= middle.len();
                    self.middle = middle.len();
                }
                None => {}
            }
            if in_middle {
                self.middle -= read;
            }
            self.rest = self.rest.get(read..).unwrap_or_default();
            if !self.leaf.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    #[cold]
    fn give_up(&mut self) -> Option<&'a [u8]> {
        (self.leaf, self.rest) = (&[], &[]);
        None
    }
}

/// The values of an array, in order.
#[derive(Clone, Copy)]
pub struct Values<'a>(pub(super) Fields<'a>);

impl<'a> Values<'a> {
    /// The values of an encoded `ArrayValue`.
    pub const fn of(array_value: &'a [u8]) -> Values<'a> {
        Values(Fields::direct(array_value, 1))
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = AnyValue<'a>;

    #[inline]
    fn next(&mut self) -> Option<AnyValue<'a>> {
        self.0.next().map(AnyValue::decode)
    }
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(*self).finish()
    }
}

/// Keys with their values, in the order of the wire. Keys may be empty or repeat: of a repeated key the last one wins.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub(super) Fields<'a>);

impl<'a> Attributes<'a> {
    /// No attributes.
    pub const EMPTY: Attributes<'static> = Attributes::of(&[]);

    /// The entries of an encoded `KeyValueList`.
    pub const fn of(key_value_list: &'a [u8]) -> Attributes<'a> {
        Attributes(Fields::direct(key_value_list, 1))
    }

    /// The entries in field `number` of the message that is field `leaf` of `outer`, in all occurrences of it.
    pub(crate) const fn nested(outer: &'a [u8], leaf: u8, number: u8) -> Attributes<'a> {
        Attributes(Fields::nested(outer, leaf, number))
    }

    /// The value of `key`; the last one if the key repeats. Looks at all of them: to find several keys, iterate once.
    pub fn get(self, key: &str) -> Option<AnyValue<'a>> {
        self.entries()
            .filter(|entry| entry.key() == key)
            .last()
            .map(|entry| entry.value())
    }

    /// The same, with values that are decoded when asked for. Cheaper if most keys are of no interest.
    #[inline(always)]
    pub const fn entries(self) -> Entries<'a> {
        Entries(self.0)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (Text<'a>, AnyValue<'a>);

    #[inline]
    fn next(&mut self) -> Option<(Text<'a>, AnyValue<'a>)> {
        let entry = Entry::decode(self.0.next()?);
        Some((entry.key(), entry.value()))
    }
}

impl fmt::Debug for Attributes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(*self).finish()
    }
}

/// Attributes whose values are not decoded yet.
#[derive(Clone, Copy)]
pub struct Entries<'a>(Fields<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Entry<'a>> {
        self.0.next().map(Entry::decode)
    }
}

/// The value of a `KeyValue` that has it in pieces.
#[cold]
pub(super) fn merged_value(key_value: &[u8]) -> AnyValue<'_> {
    let mut merge = Merge::new(key_value, 2);
    Cursor::new(key_value).for_each_field(|key, cursor| {
        if key.raw() != VALUE {
            return cursor.skip(key, MAX_DEPTH);
        }
        let contents = cursor.slice()?;
        let end = cursor.position();
        merge.any_value(Cursor::new(contents), end - contents.len(), end);
        Ok(())
    });
    merge.value
}
