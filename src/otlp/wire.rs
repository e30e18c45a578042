//! The protobuf wire format: a borrowing cursor, and a writer for nested messages.
//!
//! Invariants:
//! * Nothing here panics, whatever the bytes are, and reading allocates nothing.
//! * Strictness is that of prost: a varint has at most ten bytes and fits 64 bits, a key fits 32 bits, field number 0
//!   and the wire types 6 and 7 are errors, groups are skipped if they are properly nested. So whatever passes here
//!   is accepted by the common decoders behind us, and what they would refuse is refused at our door.
//! * A [`Cursor`] over a nested message keeps the offsets of the outermost bytes. An error therefore knows its place in
//!   the whole body, and the path that leads there needs no book-keeping while all is well.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

/// How deep messages (and groups) may nest below the outermost one. The same limit as prost's, so that both agree on
/// what is acceptable; an `AnyValue` needs two or three levels for each level of nesting.
pub const MAX_DEPTH: u32 = 100;

/// What is wrong with some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A value or a length reaches beyond the end of the message it stands in.
    #[error("field reaches beyond the end of its message")]
    Truncated,
    /// A varint does not fit 64 bits.
    #[error("varint is longer than ten bytes or exceeds 64 bits")]
    Varint,
    /// Field number 0.
    #[error("field number is 0")]
    FieldNumber,
    /// Wire types 6 and 7 do not exist, nor do keys of more than 32 bits.
    #[error("key of a field that cannot exist")]
    WireType,
    /// A group ends that did not begin, or with the number of another.
    #[error("end of a group that was not begun")]
    EndGroup,
    /// A known field has another wire type than its definition says.
    #[error("wrong wire type for this field")]
    Mismatch,
    /// More than [`MAX_DEPTH`] levels.
    #[error("messages nest deeper than 100 levels")]
    TooDeep,
    /// A string field that is not UTF-8.
    #[error("string is not valid UTF-8")]
    Utf8,
    /// More than 2 GiB, the limit of protobuf itself.
    #[error("message is larger than 2 GiB")]
    TooLarge,
}

/// A fault and its offset from the beginning of the outermost bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What is wrong.
    pub fault: Fault,
    /// Where.
    pub at: usize,
}

/// How the value behind a key is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// One to ten bytes.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// A varint length and as many bytes.
    Delimited,
    /// Fields up to the matching end.
    StartGroup,
    /// The end of a group.
    EndGroup,
    /// Four bytes.
    Fixed32,
}

/// Field number and wire type as they stand on the wire: `number << 3 | type`. Compared with [`varint`], [`fixed64`],
/// [`delimited`] and [`fixed32`]; one that equals none of the known keys is judged by [`Cursor::skip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

impl Key {
    /// The number of the field.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 >> 3
    }

    /// The number on the wire.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The layout of the value that follows; `None` if there is no such layout.
    #[inline(always)]
    pub const fn wire_type(self) -> Option<WireType> {
        match self.0 & 7 {
            0 => Some(WireType::Varint),
            1 => Some(WireType::Fixed64),
            2 => Some(WireType::Delimited),
            3 => Some(WireType::StartGroup),
            4 => Some(WireType::EndGroup),
            5 => Some(WireType::Fixed32),
            _ => None,
        }
    }
}

/// The key of a varint field.
pub const fn varint(number: u32) -> u32 {
    number << 3
}

/// The key of a field of eight bytes.
pub const fn fixed64(number: u32) -> u32 {
    number << 3 | 1
}

/// The key of a length-delimited field.
pub const fn delimited(number: u32) -> u32 {
    number << 3 | 2
}

/// The key of a field of four bytes.
pub const fn fixed32(number: u32) -> u32 {
    number << 3 | 5
}

/// A place in protobuf bytes.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    /// What is left of the current message.
    rest: &'a [u8],
    /// Where the current message ends, counted from the beginning of the outermost bytes.
    end: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of an outermost message.
    #[inline(always)]
    pub const fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor {
            rest: bytes,
            end: bytes.len(),
        }
    }

    /// Offset of the next unread byte from the beginning of the outermost bytes.
    #[inline(always)]
    pub const fn position(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Nothing is left in the current message.
    #[inline(always)]
    pub const fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left of the current message.
    #[inline(always)]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What was read since `earlier`, a copy of this cursor.
    #[inline(always)]
    pub fn since(&self, earlier: &Cursor<'a>) -> &'a [u8] {
        let length = earlier.rest.len().saturating_sub(self.rest.len());
        earlier.rest.get(..length).unwrap_or_default()
    }

    #[cold]
    fn broken<T>(&self, fault: Fault) -> Result<T, Broken> {
        Err(Broken {
            fault,
            at: self.position(),
        })
    }

    /// Reads a varint. Nearly all of them have one or two bytes: those are read in line.
    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, Broken> {
        match *self.rest {
            [first, ref rest @ ..] if first < 0x80 => {
                self.rest = rest;
                Ok(u64::from(first))
            }
            [first, second, ref rest @ ..] if second < 0x80 => {
                self.rest = rest;
                Ok(u64::from(first & 0x7f) | u64::from(second) << 7)
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    return self.broken(Fault::Varint);
                }
                self.rest = self.rest.get(index + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        self.broken(if self.rest.len() < 10 {
            Fault::Truncated
        } else {
            Fault::Varint
        })
    }

    /// Reads the key of the next field.
    #[inline(always)]
    pub fn key(&mut self) -> Result<Key, Broken> {
        match *self.rest {
            [first, ref rest @ ..] if first < 0x80 => {
                self.rest = rest;
                Ok(Key(u32::from(first)))
            }
            // A key of more than 32 bits becomes one with a wire type that does not exist.
            _ => self.varint().map(|key| Key(u32::try_from(key).unwrap_or(u32::MAX))),
        }
    }

    /// Reads a length-delimited value as bytes.
    #[inline(always)]
    pub fn slice(&mut self) -> Result<&'a [u8], Broken> {
        let begin = *self;
        let length = self.varint()?;
        // A length beyond the address space is beyond the end of the message as well.
        let split = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        match split {
            Some((value, rest)) => {
                self.rest = rest;
                Ok(value)
            }
            None => begin.broken(Fault::Truncated),
        }
    }

    /// Reads a length-delimited value as a nested message: a cursor that stands at its beginning.
    #[inline(always)]
    pub fn message(&mut self) -> Result<Cursor<'a>, Broken> {
        let contents = self.slice()?;
        Ok(Cursor {
            rest: contents,
            end: self.position(),
        })
    }

    /// Reads eight bytes.
    #[inline(always)]
    pub fn fixed64(&mut self) -> Result<u64, Broken> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(u64::from_le_bytes(*bytes))
            }
            None => self.broken(Fault::Truncated),
        }
    }

    /// Reads four bytes.
    #[inline(always)]
    pub fn fixed32(&mut self) -> Result<u32, Broken> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(u32::from_le_bytes(*bytes))
            }
            None => self.broken(Fault::Truncated),
        }
    }

    /// Reads a value whose key and length have one byte each, if the field of the one-byte key `key` comes next in this
    /// form. Attributes and all that is in them mostly do.
    #[inline(always)]
    pub fn short_slice(&mut self, key: u32) -> Option<&'a [u8]> {
        let [next, length @ ..0x80, rest @ ..] = self.rest else {
            return None;
        };
        if u32::from(*next) != key {
            return None;
        }
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        self.rest = rest;
        Some(value)
    }

    /// Goes on at `rest`, which a caller has found by itself: what is left behind some of the fields that come next.
    #[inline(always)]
    pub(super) fn continue_at(&mut self, rest: &'a [u8]) {
        debug_assert_eq!(self.rest.as_ptr_range().end, rest.as_ptr_range().end);
        self.rest = rest;
    }

    /// The next `N` bytes, if there are so many and they are as expected: for fields that mostly come in one order.
    #[inline(always)]
    pub fn chunk_if<const N: usize>(&mut self, is_expected: impl FnOnce(&[u8; N]) -> bool) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.rest.split_first_chunk()?;
        if !is_expected(chunk) {
            return None;
        }
        self.rest = rest;
        Some(chunk)
    }

    /// Hands each field to `read`, which reads or skips its value. For bytes that were checked before: should they be
    /// damaged all the same, the message ends there, and what came before counts.
    #[inline(always)]
    pub fn for_each_field(mut self, mut read: impl FnMut(Key, &mut Cursor<'a>) -> Result<(), Broken>) {
        while !self.is_done() {
            let read = self.key().and_then(|key| read(key, &mut self));
            if read.is_err() {
                return;
            }
        }
    }

    /// Judges `key` and skips its value; `depth` is how many levels a group may still nest.
    #[inline(always)]
    pub fn skip(&mut self, key: Key, depth: u32) -> Result<(), Broken> {
        if key.number() == 0 {
            return self.broken(Fault::FieldNumber);
        }
        match key.wire_type() {
            Some(WireType::Delimited) => self.slice().map(drop),
            Some(WireType::Varint) => self.varint().map(drop),
            Some(WireType::Fixed64) => self.fixed64().map(drop),
            Some(WireType::Fixed32) => self.fixed32().map(drop),
            Some(WireType::StartGroup) => self.skip_group(key.number(), depth),
            Some(WireType::EndGroup) => self.broken(Fault::EndGroup),
            None => self.broken(Fault::WireType),
        }
    }

    /// Groups are long out of use, and not part of OTLP; a decoder has to step over them all the same.
    #[cold]
    fn skip_group(&mut self, number: u32, depth: u32) -> Result<(), Broken> {
        let Some(depth) = depth.checked_sub(1) else {
            return self.broken(Fault::TooDeep);
        };
        loop {
            let key = self.key()?;
            match key.wire_type() {
                Some(WireType::EndGroup) if key.number() == number => return Ok(()),
                _ => self.skip(key, depth)?,
            }
        }
    }
}

/// True if the bytes are UTF-8. Most strings are short and ASCII, which is decided eight bytes at a time.
#[inline(always)]
pub fn is_utf8(bytes: &[u8]) -> bool {
    is_ascii(bytes) || std::str::from_utf8(bytes).is_ok()
}

/// True if all bytes are ASCII. The standard function is made for long texts and costs more on short ones.
#[inline(always)]
pub fn is_ascii(bytes: &[u8]) -> bool {
    // Words that overlap are cheaper than single bytes.
    if let Some(last) = bytes.last_chunk() {
        let mut seen = u128::from_le_bytes(*last);
        for word in bytes.as_chunks().0 {
            seen |= u128::from_le_bytes(*word);
        }
        return seen & (u128::MAX / 0xff * 0x80) == 0;
    }
    let seen = match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), Some(last)) => u64::from_le_bytes(*first) | u64::from_le_bytes(*last),
        _ => bytes.iter().fold(0, |seen, byte| seen | u64::from(*byte)),
    };
    seen & (u64::MAX / 0xff * 0x80) == 0
}

/// Appends a varint.
#[inline(always)]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field.
#[inline(always)]
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_header(out, number, value.len());
    out.extend_from_slice(value);
}

/// Appends the key and the length of a length-delimited field.
#[inline(always)]
pub fn put_header(out: &mut Vec<u8>, number: u32, length: usize) {
    if number < 16 && length < 0x80 {
        out.extend_from_slice(&[delimited(number) as u8, length as u8]);
    } else {
        put_varint(out, u64::from(delimited(number)));
        put_varint(out, length as u64);
    }
}

/// Appends a field of eight bytes.
#[inline(always)]
pub fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(fixed64(number)));
    out.extend_from_slice(&value.to_le_bytes());
}

/// How many bytes a varint takes.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A nested message whose length is not known yet: [`Pending::begin`] leaves room for it, [`Pending::finish`] fills it.
/// If the guess of the length's size was wrong the contents are moved, so guess well for large messages.
#[derive(Debug)]
#[must_use = "the length is written by `finish`"]
pub struct Pending {
    /// Where the contents begin.
    contents: usize,
    /// How many bytes were left for the length.
    room: usize,
}

impl Pending {
    /// Appends the key and room for a length of `room` bytes (1 to 10).
    #[inline(always)]
    pub fn begin(out: &mut Vec<u8>, number: u32, room: usize) -> Pending {
        put_varint(out, u64::from(delimited(number)));
        let room = room.clamp(1, 10);
        out.resize(out.len() + room, 0);
        Pending {
            contents: out.len(),
            room,
        }
    }

    /// Writes the length of what was appended since.
    #[inline(always)]
    pub fn finish(self, out: &mut Vec<u8>) {
        let length = out.len().saturating_sub(self.contents);
        if self.room == 1 && length < 0x80 {
            if let Some(room) = out.get_mut(self.contents - 1) {
                *room = length as u8;
            }
            return;
        }
        let needed = varint_len(length as u64);
        if needed != self.room {
            self.make_room(out, needed, length);
        }
        let mut value = length as u64;
        let from = self.contents - self.room;
        if let Some(room) = out.get_mut(from..from + needed) {
            for byte in room {
                *byte = value as u8 | 0x80;
                value >>= 7;
            }
        }
        if let Some(last) = out.get_mut(from + needed - 1) {
            *last &= 0x7f;
        }
    }

    #[cold]
    fn make_room(&self, out: &mut Vec<u8>, needed: usize, length: usize) {
        let to = self.contents - self.room + needed;
        if needed > self.room {
            out.resize(to + length, 0);
        }
        out.copy_within(self.contents..self.contents + length, to);
        out.truncate(to + length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        out
    }

    #[test]
    fn varints_of_every_length_read_back_and_know_their_size() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let bytes = encoded(value);
                assert_eq!(bytes.len(), varint_len(value));
                let mut cursor = Cursor::new(&bytes);
                assert_eq!(cursor.varint(), Ok(value));
                assert!(cursor.is_done());
            }
        }
    }

    #[test]
    fn a_varint_of_eleven_bytes_or_more_than_64_bits_is_an_error() {
        let faults = |bytes: &[u8]| Cursor::new(bytes).varint().map_err(|broken| broken.fault);
        assert_eq!(faults(&[0x80; 11]), Err(Fault::Varint));
        assert_eq!(
            faults(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            Err(Fault::Varint)
        );
        assert_eq!(faults(&[0x80, 0x80]), Err(Fault::Truncated));
        assert_eq!(faults(&[]), Err(Fault::Truncated));
        assert_eq!(faults(&[0x80, 0]), Ok(0), "a longer form than needed is legal");
    }

    #[test]
    fn keys_with_number_zero_or_an_unknown_wire_type_are_errors() {
        let fault = |bytes: &[u8]| {
            let mut cursor = Cursor::new(bytes);
            let key = cursor.key().unwrap();
            cursor.skip(key, MAX_DEPTH).unwrap_err().fault
        };
        assert_eq!(fault(&[0x02]), Fault::FieldNumber);
        assert_eq!(fault(&[0x0e]), Fault::WireType);
        assert_eq!(fault(&[0x0f]), Fault::WireType);
        assert_eq!(fault(&encoded(1 << 32)), Fault::WireType);
    }

    #[test]
    fn groups_are_skipped_when_nested_properly_and_refused_otherwise() {
        let skip = |bytes: &[u8], depth| {
            let mut cursor = Cursor::new(bytes);
            let key = cursor.key()?;
            cursor.skip(key, depth).map(|()| cursor.is_done())
        };
        let start = |number: u8| number << 3 | 3;
        let end = |number: u8| number << 3 | 4;
        assert_eq!(skip(&[start(1), start(2), 0x08, 1, end(2), end(1)], 2), Ok(true));
        assert_eq!(
            skip(&[start(1), start(2), end(2), end(1)], 1).unwrap_err().fault,
            Fault::TooDeep
        );
        assert_eq!(skip(&[start(1), end(2)], 9).unwrap_err().fault, Fault::EndGroup);
        assert_eq!(skip(&[start(1), 0x08, 1], 9).unwrap_err().fault, Fault::Truncated);
        assert_eq!(skip(&[end(1)], 9).unwrap_err().fault, Fault::EndGroup);
    }

    #[test]
    fn offsets_in_a_nested_message_are_those_of_the_whole() {
        let bytes = [0x0a, 3, 0x12, 5, 0];
        let mut outer = Cursor::new(&bytes);
        outer.key().unwrap();
        let mut inner = outer.message().unwrap();
        assert_eq!((inner.position(), inner.rest()), (2, &bytes[2..]));
        inner.key().unwrap();
        assert_eq!(
            inner.slice(),
            Err(Broken {
                fault: Fault::Truncated,
                at: 3
            })
        );
    }

    #[test]
    fn a_nested_message_is_written_right_whatever_room_was_guessed() {
        for length in [0usize, 1, 127, 128, 16_383, 16_384, 3_000_000] {
            for room in 1..=4 {
                let mut out = b"before".to_vec();
                let pending = Pending::begin(&mut out, 7, room);
                out.extend(std::iter::repeat_n(b'x', length));
                pending.finish(&mut out);
                let mut expected = b"before".to_vec();
                put_bytes(&mut expected, 7, &vec![b'x'; length]);
                assert!(out == expected, "length {length}, room {room}");
            }
        }
    }

    #[test]
    fn the_quick_look_at_utf8_agrees_with_the_standard_library() {
        for length in 0..40 {
            for place in 0..=length {
                let mut bytes = vec![b'a'; length];
                assert!(is_utf8(&bytes));
                bytes.splice(place..place, "é".bytes());
                assert!(is_utf8(&bytes) && !is_ascii(&bytes));
                bytes.remove(place);
                assert!(!is_utf8(&bytes));
            }
        }
    }
}
