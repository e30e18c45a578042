//! The values of a series' labels as one string of bytes: per label its length (u16, little endian) and its text.

use std::io::Write as _;

use super::compile::{CompiledLabel, LabelProgram, LabelSet, Operand};
use super::datum::Datum;
use super::keys::hash;
use super::model::Conversion;
use super::signal::{known_signal, signal_name};

/// Values of labels are cut to this many bytes, at the end of a character.
pub const MAX_LABEL_BYTES: usize = 256;

/// The values of the labels that a key holds.
pub fn label_values(key: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = key;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        let (value, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        rest = tail;
        Some(std::str::from_utf8(value).unwrap_or_default())
    })
}

/// Encodes one value. Texts of rules are cut like those of spans.
pub(super) fn encode_label(value: &str) -> Box<[u8]> {
    let value = &value[..value.floor_char_boundary(MAX_LABEL_BYTES)];
    let mut bytes = Vec::with_capacity(value.len() + 2);
    bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes.into_boxed_slice()
}

/// The keys made for one span: one per label set, shared by all rules that have it.
#[derive(Debug, Default)]
pub(super) struct KeyBuffer {
    bytes: Vec<u8>,
    made: Vec<Made>,
    /// Tells keys of this span from those of earlier ones.
    span: u64,
}

/// A key in [`KeyBuffer::bytes`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Made {
    span: u64,
    begin: usize,
    end: usize,
    hash: u64,
}

impl KeyBuffer {
    pub(super) fn next_span(&mut self) {
        self.span += 1;
        self.bytes.clear();
    }

    /// The key of a label set. `read` reads the span.
    pub(super) fn labels<'a>(
        &mut self,
        label_set: usize,
        label_sets: &[LabelSet],
        seed: u64,
        read: impl Fn(Operand) -> Option<Datum<'a>>,
    ) -> Made {
        if self.made.len() < label_sets.len() {
            self.made.resize(label_sets.len(), Made::default());
        }
        if self.made[label_set].span != self.span {
            let begin = self.bytes.len();
            write_labels(&label_sets[label_set], read, &mut self.bytes);
            self.made[label_set] = Made {
                span: self.span,
                begin,
                end: self.bytes.len(),
                hash: hash(seed, &self.bytes[begin..]),
            };
        }
        self.made[label_set]
    }

    /// The key with the label behind it that tells parts apart, if there is one.
    pub(super) fn with_suffix(&mut self, labels: Made, suffix: &[u8], seed: u64) -> (&[u8], u64) {
        if suffix.is_empty() {
            return (&self.bytes[labels.begin..labels.end], labels.hash);
        }
        let begin = self.bytes.len();
        self.bytes.extend_from_within(labels.begin..labels.end);
        self.bytes.extend_from_slice(suffix);
        let key = &self.bytes[begin..];
        (key, hash(seed, key))
    }
}

fn write_labels<'a>(set: &LabelSet, read: impl Fn(Operand) -> Option<Datum<'a>>, bytes: &mut Vec<u8>) {
    for label in &set.labels {
        match label {
            CompiledLabel::Constant(encoded) => bytes.extend_from_slice(encoded),
            CompiledLabel::Read(program) => {
                let begin = bytes.len();
                bytes.extend_from_slice(&[0; 2]);
                write_label(program, &read, bytes);
                cut(bytes, begin + 2);
                let length = (bytes.len() - begin - 2) as u16;
                bytes[begin..begin + 2].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

fn write_label<'a>(program: &LabelProgram, read: impl Fn(Operand) -> Option<Datum<'a>>, bytes: &mut Vec<u8>) {
    let begin = bytes.len();
    let given = program
        .operands
        .iter()
        .any(|operand| read(*operand).is_some_and(|datum| write_datum(datum, program.conversion, bytes)));
    if !given {
        bytes.extend_from_slice(&program.missing);
        return;
    }
    if let Some((_, to)) = program.map.iter().find(|(from, _)| **from == bytes[begin..]) {
        bytes.truncate(begin);
        bytes.extend_from_slice(to);
    }
    if !program.one_of.is_empty() && !program.one_of.iter().any(|allowed| **allowed == bytes[begin..]) {
        bytes.truncate(begin);
        bytes.extend_from_slice(&program.disallowed);
    }
}

/// Writes a value as the text of a label. Says whether there was one; if not, nothing is written.
fn write_datum(datum: Datum<'_>, conversion: Conversion, bytes: &mut Vec<u8>) -> bool {
    let begin = bytes.len();
    match (conversion, datum) {
        (Conversion::Boolean, Datum::Bool(value)) => put(bytes, format_args!("{value}")),
        (Conversion::Boolean, Datum::Text(text @ (b"true" | b"false"))) => bytes.extend_from_slice(text),
        (Conversion::Boolean, _) => {}
        (Conversion::Integer, datum) => {
            if let Some(value) = datum.integer() {
                put(bytes, format_args!("{value}"));
            }
        }
        (Conversion::Signal, Datum::Text(text)) => {
            let name = signal_name(std::str::from_utf8(text).unwrap_or_default());
            bytes.extend_from_slice(name.as_bytes());
        }
        (Conversion::Signal, datum) => {
            if let Some(value) = datum.integer() {
                write_signal_number(value, bytes);
            }
        }
        (Conversion::Text, Datum::Text(text)) => bytes.extend_from_slice(text),
        (Conversion::Text, Datum::Bool(value)) => put(bytes, format_args!("{value}")),
        (Conversion::Text, Datum::Int(value)) => put(bytes, format_args!("{value}")),
        // A whole double prints like an integer: the same attribute is an int on one span and a double on the next.
        (Conversion::Text, Datum::Double(value)) => put(bytes, format_args!("{}", value + 0.0)),
        (Conversion::Text, Datum::Other) => {}
    }
    bytes.len() > begin
}

fn put(bytes: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    bytes.write_fmt(text).unwrap_or_default();
}

fn write_signal_number(number: i64, bytes: &mut Vec<u8>) {
    let begin = bytes.len();
    put(bytes, format_args!("{number}"));
    if let Some(name) = known_signal(std::str::from_utf8(&bytes[begin..]).unwrap_or_default()) {
        bytes.truncate(begin);
        bytes.extend_from_slice(name.as_bytes());
    }
}

/// Cuts what begins at `begin` to [`MAX_LABEL_BYTES`], at the end of a character.
fn cut(bytes: &mut Vec<u8>, begin: usize) {
    if bytes.len() - begin > MAX_LABEL_BYTES {
        let mut end = begin + MAX_LABEL_BYTES;
        // Bytes 10xxxxxx continue a character.
        while end > begin && bytes[end] & 0b1100_0000 == 0b1000_0000 {
            end -= 1;
        }
        bytes.truncate(end);
    }
}
