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
    /// Field number 0, or one that does not fit.
    #[error("field number is 0 or too large")]
    FieldNumber,
    /// Wire types 6 and 7 do not exist.
    #[error("wire type 6 or 7")]
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

/// Field number and wire type as they stand on the wire: `number << 3 | type`. Never invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

impl Key {
    /// The number of the field.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 >> 3
    }

    /// The layout of the value that follows.
    #[inline(always)]
    pub const fn wire_type(self) -> WireType {
        match self.0 & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Delimited,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            _ => WireType::Fixed32,
        }
    }

    /// The key as the number on the wire, to be matched against [`varint`], [`fixed64`], [`delimited`], [`fixed32`].
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
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
    /// From the beginning of the outermost bytes to the end of the current message.
    bytes: &'a [u8],
    /// Offset of the next unread byte; never beyond `bytes`.
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of an outermost message.
    #[inline(always)]
    pub const fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Offset of the next unread byte in the outermost bytes.
    #[inline(always)]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Offset behind the last byte of the current message.
    #[inline(always)]
    pub const fn end(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing is left in the current message.
    #[inline(always)]
    pub const fn is_done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// What is left of the current message.
    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The bytes between two offsets of the current message; empty if there are none.
    #[inline(always)]
    pub fn between(&self, from: usize, to: usize) -> &'a [u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    #[inline(always)]
    fn broken<T>(&self, fault: Fault) -> Result<T, Broken> {
        Err(Broken { fault, at: self.at })
    }

    /// Reads a varint. Nearly all of them have one or two bytes: those are read in line.
    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, Broken> {
        match *self.rest() {
            [first, ..] if first < 0x80 => {
                self.at += 1;
                Ok(u64::from(first))
            }
            [first, second, ..] if second < 0x80 => {
                self.at += 2;
                Ok(u64::from(first & 0x7f) | u64::from(second) << 7)
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for (index, &byte) in self.rest().iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    return self.broken(Fault::Varint);
                }
                self.at += index + 1;
                return Ok(value);
            }
        }
        self.broken(if self.rest().len() < 10 {
            Fault::Truncated
        } else {
            Fault::Varint
        })
    }

    /// Reads the key of the next field.
    #[inline(always)]
    pub fn key(&mut self) -> Result<Key, Broken> {
        let begin = self.at;
        let raw = self.varint()?;
        if (8..=u64::from(u32::MAX)).contains(&raw) && raw & 7 < 6 {
            return Ok(Key(raw as u32));
        }
        let fault = if raw & 7 > 5 {
            Fault::WireType
        } else {
            Fault::FieldNumber
        };
        Err(Broken { fault, at: begin })
    }

    /// Reads a length and checks that as many bytes are there.
    #[inline(always)]
    fn length(&mut self) -> Result<usize, Broken> {
        let begin = self.at;
        let length = self.varint()?;
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(Broken {
                fault: Fault::Truncated,
                at: begin,
            });
        }
        Ok(length as usize)
    }

    /// Reads a length-delimited value as bytes.
    #[inline(always)]
    pub fn slice(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.length()?;
        let value = self.between(self.at, self.at + length);
        self.at += length;
        Ok(value)
    }

    /// Reads a length-delimited value as a nested message: a cursor that stands at its beginning.
    #[inline(always)]
    pub fn message(&mut self) -> Result<Cursor<'a>, Broken> {
        let length = self.length()?;
        let nested = Cursor {
            bytes: self.between(0, self.at + length),
            at: self.at,
        };
        self.at += length;
        Ok(nested)
    }

    /// Reads eight bytes.
    #[inline(always)]
    pub fn fixed64(&mut self) -> Result<u64, Broken> {
        match self.rest().first_chunk() {
            Some(bytes) => {
                self.at += 8;
                Ok(u64::from_le_bytes(*bytes))
            }
            None => self.broken(Fault::Truncated),
        }
    }

    /// Reads four bytes.
    #[inline(always)]
    pub fn fixed32(&mut self) -> Result<u32, Broken> {
        match self.rest().first_chunk() {
            Some(bytes) => {
                self.at += 4;
                Ok(u32::from_le_bytes(*bytes))
            }
            None => self.broken(Fault::Truncated),
        }
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

    /// Skips the value of `key`; `depth` is how many levels a group may still nest.
    #[inline(always)]
    pub fn skip(&mut self, key: Key, depth: u32) -> Result<(), Broken> {
        match key.wire_type() {
            WireType::Delimited => self.slice().map(drop),
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.fixed64().map(drop),
            WireType::Fixed32 => self.fixed32().map(drop),
            WireType::StartGroup => self.skip_group(key.number(), depth),
            WireType::EndGroup => self.broken(Fault::EndGroup),
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
                WireType::EndGroup if key.number() == number => return Ok(()),
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
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = bytes.as_chunks::<8>();
    let mut seen = 0;
    for word in words {
        seen |= u64::from_le_bytes(*word);
    }
    for byte in tail {
        seen |= u64::from(*byte);
    }
    seen & HIGH_BITS == 0
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
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(delimited(number)));
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
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
        let fault = |bytes: &[u8]| Cursor::new(bytes).key().unwrap_err().fault;
        assert_eq!(fault(&[0x02]), Fault::FieldNumber);
        assert_eq!(fault(&[0x0e]), Fault::WireType);
        assert_eq!(fault(&[0x0f]), Fault::WireType);
        assert_eq!(fault(&encoded(1 << 32)), Fault::FieldNumber);
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
        assert_eq!((inner.position(), inner.end()), (2, 5));
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
