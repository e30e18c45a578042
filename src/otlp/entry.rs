//! One attribute: a key with its value, mostly in one short form.

use super::value::{AnyValue, KEY, Text, VALUE, merged_value};
use super::wire::{self, Cursor, MAX_DEPTH};

/// A key with its value: `opentelemetry.proto.common.v1.KeyValue`.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    key: Text<'a>,
    /// The bytes of the `AnyValue`, or the whole `KeyValue` if it has the value in pieces.
    value: &'a [u8],
    split: bool,
}

impl<'a> Entry<'a> {
    #[inline(always)]
    pub(crate) fn decode(bytes: &'a [u8]) -> Entry<'a> {
        Entry::quick(bytes).unwrap_or_else(|| Entry::thorough(bytes))
    }

    #[inline(always)]
    const fn of(key: &'a [u8], value: &'a [u8]) -> Entry<'a> {
        Entry {
            key: Text::new(key),
            value,
            split: false,
        }
    }

    #[inline(always)]
    pub(super) const fn short(short: Short<'a>) -> Entry<'a> {
        Entry::of(short.key, short.value)
    }

    /// The usual form: the key and then the value.
    #[inline(always)]
    fn quick(bytes: &'a [u8]) -> Option<Entry<'a>> {
        if let Some(short) = Short::of(bytes) {
            return Some(Entry::short(short));
        }
        let mut cursor = Cursor::new(bytes);
        if cursor.key().ok()?.raw() != KEY {
            return None;
        }
        let key = cursor.slice().ok()?;
        if cursor.key().ok()?.raw() != VALUE {
            return None;
        }
        let value = cursor.slice().ok()?;
        cursor.is_done().then_some(Entry::of(key, value))
    }

    #[cold]
    fn thorough(bytes: &'a [u8]) -> Entry<'a> {
        let mut entry = Entry::of(&[], &[]);
        let mut values = 0;
        Cursor::new(bytes).for_each_field(|key, cursor| {
            match key.raw() {
                KEY => entry.key = Text::new(cursor.slice()?),
                VALUE => {
                    entry.value = cursor.slice()?;
                    values += 1;
                }
                _ => cursor.skip(key, MAX_DEPTH)?,
            }
            Ok(())
        });
        if values > 1 {
            (entry.value, entry.split) = (bytes, true);
        }
        entry
    }

    /// The key.
    #[inline(always)]
    pub const fn key(&self) -> Text<'a> {
        self.key
    }

    /// The value.
    #[inline(always)]
    pub fn value(&self) -> AnyValue<'a> {
        if self.split {
            merged_value(self.value)
        } else {
            AnyValue::decode(self.value)
        }
    }
}

/// A `KeyValue` of one key and one value, in this order, with lengths of one byte, as nearly all are.
#[derive(Clone, Copy)]
pub(super) struct Short<'a> {
    /// The whole message.
    pub(super) message: &'a [u8],
    pub(super) key: &'a [u8],
    /// The bytes of the `AnyValue`.
    pub(super) value: &'a [u8],
}

impl<'a> Short<'a> {
    /// Reads the next field, if it is number `FIELD` and an attribute in this form. Tags and lengths are looked at
    /// together: this is done for each attribute of each span, several times.
    #[inline(always)]
    pub(super) fn next<const FIELD: u32>(cursor: &mut Cursor<'a>) -> Option<Short<'a>> {
        const {
            assert!(FIELD < 16, "a key of one byte");
        }
        let fields = cursor.rest();
        let head = fields.first_chunk()?;
        let [_, length, _, key_length] = *head;
        let tags = wire::delimited(FIELD) | KEY << 16;
        if u32::from_le_bytes(*head) & 0x80ff_80ff != tags {
            return None;
        }
        let (message, rest) = fields.get(2..)?.split_at_checked(usize::from(length))?;
        let (key, behind) = message.get(2..)?.split_at_checked(usize::from(key_length))?;
        let (head, value) = behind.split_first_chunk()?;
        let usual = VALUE as usize | value.len() << 8;
        if usize::from(u16::from_le_bytes(*head)) != usual {
            return None;
        }
        cursor.continue_at(rest);
        Some(Short { message, key, value })
    }

    /// `message`, if it is in this form.
    #[inline(always)]
    pub(super) fn of(message: &'a [u8]) -> Option<Short<'a>> {
        const SHORT_KEY: u8 = KEY as u8;
        const SHORT_VALUE: u8 = VALUE as u8;
        let &[SHORT_KEY, length @ ..0x80, ref rest @ ..] = message else {
            return None;
        };
        let (key, rest) = rest.split_at_checked(usize::from(length))?;
        match *rest {
            [SHORT_VALUE, length @ ..0x80, ref value @ ..] if value.len() == usize::from(length) => {
                Some(Short { message, key, value })
            }
            _ => None,
        }
    }
}
