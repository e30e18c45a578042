//! OTLP/JSON to protobuf, for all three signals (OTLP 1.11, "JSON Protobuf Encoding").
//!
//! The text is read once and the protobuf written as it is read: no tree, no owned spans. What a message may contain
//! stands in `otlp::schema`; this is only about how JSON spells it:
//!
//! * Trace and span ids are hexadecimal in either case. An id of the wrong length passes here, so that the check behind
//!   ([`super::TraceRequest::parse`]) rejects that one span and not the request.
//! * 64-bit integers are strings or numbers, `1e3` and `5.0` included; what does not fit its field is an error.
//! * Enums are integers; their names are accepted too, as by the Collector.
//! * Unknown keys are ignored wherever they stand, `snake_case` spellings of known ones too. `null` is absent, and
//!   `{"doubleValue": null}`, what JavaScript makes of NaN, is a value without a value. `null` in a list of messages is an
//!   empty message.
//! * A key that is given twice is written twice: of scalars the last one wins, as always in protobuf.
//! * Bytes are base64, standard or URL-safe, padded or not.
//!
//! Invariants: never panics; nests at most [`MAX_DEPTH`] messages; the output is valid for the check behind, and no larger
//! than the text plus a few bytes for each value.

mod attribute;
mod error;
mod number;
mod reader;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use self::error::{Mistake, What};
use self::reader::{Reader, Str};
use super::Signal;
use super::schema::{self, Field, Kind, Message, Presence, Role};
use super::wire::{self, MAX_DEPTH, Pending, put_bytes, put_fixed64, put_header, put_varint};

pub use self::error::JsonError;

/// Writes the JSON form of an export request as protobuf.
pub fn transcode(signal: Signal, json: &[u8]) -> Result<Bytes, JsonError> {
    let request = match signal {
        Signal::Traces => &schema::TRACE_REQUEST,
        Signal::Metrics => &schema::METRICS_REQUEST,
        Signal::Logs => &schema::LOGS_REQUEST,
    };
    let mut path = Vec::new();
    match request_to_protobuf(request, json, &mut path) {
        Ok(mut protobuf) => {
            // The journal's ring keeps this for a while: give back what was guessed too much.
            protobuf.shrink_to(protobuf.len() + protobuf.len() / 8);
            Ok(Bytes::from(protobuf))
        }
        Err(Mistake { what, at }) => Err(JsonError {
            what,
            offset: at,
            path: join(path),
        }),
    }
}

fn request_to_protobuf(request: &'static Message, json: &[u8], path: &mut Vec<Segment>) -> Result<Vec<u8>, Mistake> {
    let out = Vec::with_capacity(json.len() / 2);
    let mut transcoder = Transcoder {
        reader: Reader::new(json)?,
        out,
        path,
        scratch: Vec::new(),
    };
    transcoder.message(request, MAX_DEPTH)?;
    transcoder.reader.end()?;
    Ok(transcoder.out)
}

/// One step of the path to a mistake.
enum Segment {
    Field(&'static str),
    Index(usize),
}

/// `path` was collected from the inside out.
fn join(path: Vec<Segment>) -> String {
    let mut joined = String::new();
    for segment in path.into_iter().rev() {
        match segment {
            Segment::Field(name) if joined.is_empty() => joined.push_str(name),
            Segment::Field(name) => joined.extend([".", name]),
            Segment::Index(index) => joined.push_str(&format!("[{index}]")),
        }
    }
    joined
}

/// `doubleValue` of an `AnyValue`.
const DOUBLE_VALUE: u32 = 4;

struct Transcoder<'a> {
    reader: Reader<'a>,
    out: Vec<u8>,
    /// Filled on the way out of a mistake, from the inside out.
    path: &'a mut Vec<Segment>,
    /// For strings that cannot be used as they stand in the text.
    scratch: Vec<u8>,
}

impl Transcoder<'_> {
    /// Writes the fields of an object. `depth`: how many levels of messages may follow.
    fn message(&mut self, message: &'static Message, depth: u32) -> Result<(), Mistake> {
        self.reader.begin_object()?;
        let mut first = true;
        let mut expected = 0;
        // Bit by field number: what was written before, so that a later zero has to be written to overrule it.
        let mut written = 0u32;
        while let Some(key) = self.reader.next_key(&mut first)? {
            let Some((place, field)) = self.find(message, key, expected) else {
                self.reader.skip_value()?;
                continue;
            };
            expected = place + 1;
            if self.reader.take_null()? {
                continue;
            }
            let bit = 1 << field.number;
            let writes_zero = field.presence == Presence::Explicit || written & bit != 0;
            written |= bit;
            if let Err(mistake) = self.field(field, writes_zero, depth) {
                if std::ptr::eq(message, &schema::ANY_VALUE) && self.rescued(field, &mistake) {
                    continue;
                }
                return self.within(Segment::Field(field.name), mistake);
            }
        }
        Ok(())
    }

    #[cold]
    fn within<T>(&mut self, segment: Segment, mistake: Mistake) -> Result<T, Mistake> {
        self.path.push(segment);
        Err(mistake)
    }

    /// Writes an `intValue` that no 64-bit integer holds as the `doubleValue` nearest to it. JavaScript has one kind of
    /// number, and its SDKs write every one without a fraction as `intValue`, however large; one such attribute shall not cost
    /// the spans beside it.
    #[cold]
    fn rescued(&mut self, field: &Field, mistake: &Mistake) -> bool {
        if !matches!(field.kind, Kind::Int64) || !matches!(mistake.what, What::OutOfRange(_)) {
            return false;
        }
        let text = self.reader.between(mistake.at, self.reader.position()).trim_ascii();
        let text = text
            .strip_prefix(b"\"")
            .and_then(|text| text.strip_suffix(b"\""))
            .unwrap_or(text);
        // Less than that is one with a fraction.
        const BEYOND: f64 = i64::MAX as f64;
        match number::double(text).filter(|value| value.abs() >= BEYOND) {
            Some(value) => {
                put_fixed64(&mut self.out, DOUBLE_VALUE, value.to_bits());
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn find(&mut self, message: &'static Message, key: Str<'_>, expected: usize) -> Option<(usize, &'static Field)> {
        match key.plain() {
            Some(name) => message.named(name, expected),
            None => message.named(self.unescaped(key), expected),
        }
    }

    #[cold]
    fn unescaped(&mut self, text: Str<'_>) -> &[u8] {
        self.scratch.clear();
        text.append_to(&mut self.scratch);
        &self.scratch
    }

    #[inline(always)]
    fn field(&mut self, field: &'static Field, writes_zero: bool, depth: u32) -> Result<(), Mistake> {
        let number = u32::from(field.number);
        match field.kind {
            Kind::Message(message) => self.nested(number, message, depth),
            Kind::Messages(message) => self.list(|this| {
                if message.role == Role::KeyValue && attribute::usual(&mut this.reader, &mut this.out, number, depth) {
                    return Ok(());
                }
                if this.reader.take_null()? {
                    put_bytes(&mut this.out, number, &[]);
                    return Ok(());
                }
                this.nested(number, message, depth)
            }),
            Kind::String => self.string(number, writes_zero),
            Kind::Strings => self.list(|this| this.string(number, true)),
            Kind::Bytes => self.base64(number),
            Kind::Id => self.hexadecimal(number, writes_zero),
            Kind::Bool => {
                let value = self.reader.boolean()?;
                self.put_varint_field(number, u64::from(value), writes_zero)
            }
            Kind::Int32 => {
                let value: i32 = self.integer("a signed 32-bit integer")?;
                self.put_varint_field(number, i64::from(value) as u64, writes_zero)
            }
            Kind::Int64 => {
                let value: i64 = self.integer("a signed 64-bit integer")?;
                self.put_varint_field(number, value as u64, writes_zero)
            }
            Kind::Uint32 => {
                let value: u32 = self.integer("an unsigned 32-bit integer")?;
                self.put_varint_field(number, u64::from(value), writes_zero)
            }
            Kind::Sint32 => {
                let value: i32 = self.integer("a signed 32-bit integer")?;
                let zigzag = (value << 1 ^ value >> 31) as u32;
                self.put_varint_field(number, u64::from(zigzag), writes_zero)
            }
            Kind::Enum(names) => {
                let value = self.enumeration(names)?;
                self.put_varint_field(number, i64::from(value) as u64, writes_zero)
            }
            Kind::Double => {
                let value = self.double()?;
                self.put_fixed64_field(number, value.to_bits(), writes_zero)
            }
            Kind::Fixed64 => {
                let value: u64 = self.integer("an unsigned 64-bit integer")?;
                self.put_fixed64_field(number, value, writes_zero)
            }
            Kind::Sfixed64 => {
                let value: i64 = self.integer("a signed 64-bit integer")?;
                self.put_fixed64_field(number, value as u64, writes_zero)
            }
            Kind::Fixed32 => {
                let value: u32 = self.integer("an unsigned 32-bit integer")?;
                if value != 0 || writes_zero {
                    put_varint(&mut self.out, u64::from(wire::fixed32(number)));
                    self.out.extend_from_slice(&value.to_le_bytes());
                }
                Ok(())
            }
            Kind::Doubles => self.packed(number, |this| {
                let value = this.double()?;
                this.out.extend_from_slice(&value.to_bits().to_le_bytes());
                Ok(())
            }),
            Kind::Fixed64s => self.packed(number, |this| {
                let value: u64 = this.integer("an unsigned 64-bit integer")?;
                this.out.extend_from_slice(&value.to_le_bytes());
                Ok(())
            }),
            Kind::Uint64s => self.packed(number, |this| {
                let value: u64 = this.integer("an unsigned 64-bit integer")?;
                put_varint(&mut this.out, value);
                Ok(())
            }),
        }
    }

    fn nested(&mut self, number: u32, message: &'static Message, depth: u32) -> Result<(), Mistake> {
        let Some(inner) = depth.checked_sub(1) else {
            return self.reader.mistake(What::TooDeep);
        };
        // Resources and scopes contain nearly all that is left, which is about a third as long in protobuf; spans and
        // their kin have some hundred bytes, what is in them less than that.
        let room = match MAX_DEPTH - depth {
            0 | 1 => wire::varint_len(self.reader.remaining() as u64 / 3),
            2 => 2,
            _ => 1,
        };
        let pending = Pending::begin(&mut self.out, number, room);
        self.message(message, inner)?;
        pending.finish(&mut self.out);
        Ok(())
    }

    #[inline(always)]
    fn list(&mut self, mut element: impl FnMut(&mut Self) -> Result<(), Mistake>) -> Result<(), Mistake> {
        self.reader.begin_array()?;
        let mut first = true;
        let mut index = 0;
        while self.reader.next_element(&mut first)? {
            if let Err(mistake) = element(self) {
                return self.within(Segment::Index(index), mistake);
            }
            index += 1;
        }
        Ok(())
    }

    /// A list of numbers, one behind the other without keys.
    fn packed(&mut self, number: u32, element: impl FnMut(&mut Self) -> Result<(), Mistake>) -> Result<(), Mistake> {
        let pending = Pending::begin(&mut self.out, number, 1);
        self.list(element)?;
        pending.finish(&mut self.out);
        Ok(())
    }

    #[inline(always)]
    fn string(&mut self, number: u32, writes_empty: bool) -> Result<(), Mistake> {
        let text = self.reader.string()?;
        match text.plain() {
            Some(plain) if !plain.is_empty() || writes_empty => put_bytes(&mut self.out, number, plain),
            Some(_) => {}
            None => {
                let pending = Pending::begin(&mut self.out, number, wire::varint_len(text.longest() as u64));
                text.append_to(&mut self.out);
                pending.finish(&mut self.out);
            }
        }
        Ok(())
    }

    /// Trace and span ids.
    #[inline(always)]
    fn hexadecimal(&mut self, number: u32, writes_empty: bool) -> Result<(), Mistake> {
        let begin = self.reader.position();
        let text = self.reader.string()?;
        let mistake = Err(Mistake {
            what: What::NotHex,
            at: begin,
        });
        let Some(digits) = text.plain() else { return mistake };
        if digits.is_empty() && !writes_empty {
            return Ok(());
        }
        let (pairs, odd) = digits.as_chunks::<2>();
        // Half a byte too much or too little is a wrong length, which must not become right by rounding.
        let length = match (odd, pairs.len()) {
            ([], length) => length,
            (_, length @ (8 | 16)) => length - 1,
            (_, length) => length,
        };
        put_header(&mut self.out, number, length);
        let mut invalid = odd.iter().any(|digit| hex_digit(*digit) > 15);
        for (index, [high, low]) in pairs.iter().enumerate() {
            let (high, low) = (hex_digit(*high), hex_digit(*low));
            invalid |= (high | low) > 15;
            if index < length {
                self.out.push(high << 4 | low);
            }
        }
        if invalid { mistake } else { Ok(()) }
    }

    fn base64(&mut self, number: u32) -> Result<(), Mistake> {
        let begin = self.reader.position();
        let text = self.reader.string()?;
        let mut encoded = std::mem::take(&mut self.scratch);
        encoded.clear();
        // PHP escapes slashes in JSON, so the text is not necessarily plain.
        text.append_to(&mut encoded);
        for byte in &mut encoded {
            match byte {
                b'-' => *byte = b'+',
                b'_' => *byte = b'/',
                _ => {}
            }
        }
        let pending = Pending::begin(&mut self.out, number, wire::varint_len(encoded.len() as u64 / 4 * 3));
        let decoded = BASE64.decode_vec(&encoded, &mut self.out);
        pending.finish(&mut self.out);
        self.scratch = encoded;
        decoded.map_err(|_| Mistake {
            what: What::NotBase64,
            at: begin,
        })
    }

    /// A number, or a string that holds one.
    #[inline(always)]
    fn number_text(&mut self) -> Result<NumberText<'_>, Mistake> {
        if self.reader.peek() != b'"' {
            return self.reader.number().map(NumberText::Number);
        }
        let text = self.reader.string()?;
        match text.plain() {
            Some(plain) => Ok(NumberText::String(plain)),
            None => Ok(NumberText::String(self.unescaped(text))),
        }
    }

    #[inline(always)]
    fn integer<T: TryFrom<i128>>(&mut self, kind: &'static str) -> Result<T, Mistake> {
        self.reader.peek();
        let at = self.reader.position();
        let text = match self.number_text()? {
            NumberText::Number(text) => text,
            NumberText::String(text) if is_number(text) => text,
            NumberText::String(_) => {
                return Err(Mistake {
                    what: What::Expected(kind),
                    at,
                });
            }
        };
        let value = number::integer(text).and_then(|value| T::try_from(value).ok());
        value.ok_or(Mistake {
            what: What::OutOfRange(kind),
            at,
        })
    }

    fn double(&mut self) -> Result<f64, Mistake> {
        self.reader.peek();
        let at = self.reader.position();
        let text = match self.number_text()? {
            NumberText::Number(text) => text,
            NumberText::String(b"NaN") => return Ok(f64::NAN),
            NumberText::String(b"Infinity") => return Ok(f64::INFINITY),
            NumberText::String(b"-Infinity") => return Ok(f64::NEG_INFINITY),
            NumberText::String(text) if is_number(text) => text,
            NumberText::String(_) => {
                return Err(Mistake {
                    what: What::Expected("a number"),
                    at,
                });
            }
        };
        let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        value.filter(|value: &f64| value.is_finite()).ok_or(Mistake {
            what: What::OutOfRange("a double"),
            at,
        })
    }

    fn enumeration(&mut self, names: &[(&str, i32)]) -> Result<i32, Mistake> {
        const KIND: &str = "a signed 32-bit integer";
        self.reader.peek();
        let at = self.reader.position();
        let text = match self.number_text()? {
            NumberText::Number(text) => text,
            NumberText::String(text) if is_number(text) => text,
            NumberText::String(text) => {
                let found = names.iter().find(|(name, _)| name.as_bytes() == text);
                return found.map(|(_, value)| *value).ok_or(Mistake {
                    what: What::UnknownName,
                    at,
                });
            }
        };
        let value = number::integer(text).and_then(|value| i32::try_from(value).ok());
        value.ok_or(Mistake {
            what: What::OutOfRange(KIND),
            at,
        })
    }

    #[inline(always)]
    fn put_varint_field(&mut self, number: u32, value: u64, writes_zero: bool) -> Result<(), Mistake> {
        if value != 0 || writes_zero {
            put_varint(&mut self.out, u64::from(wire::varint(number)));
            put_varint(&mut self.out, value);
        }
        Ok(())
    }

    #[inline(always)]
    fn put_fixed64_field(&mut self, number: u32, value: u64, writes_zero: bool) -> Result<(), Mistake> {
        if value != 0 || writes_zero {
            put_fixed64(&mut self.out, number, value);
        }
        Ok(())
    }
}

enum NumberText<'a> {
    Number(&'a [u8]),
    String(&'a [u8]),
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && reader::number_length(text) == text.len()
}

/// The value of a hexadecimal digit; above 15 if it is none.
#[inline(always)]
fn hex_digit(digit: u8) -> u8 {
    const VALUES: [u8; 256] = {
        let mut values = [0xff; 256];
        let mut value = 0;
        while value < 16 {
            values[b"0123456789abcdef"[value] as usize] = value as u8;
            values[b"0123456789ABCDEF"[value] as usize] = value as u8;
            value += 1;
        }
        values
    };
    VALUES[usize::from(digit)]
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
