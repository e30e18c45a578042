//! A short cut for attributes.
//!
//! Most of the text of a trace request is attributes, and every SDK writes them in the same form, without white space:
//! `{"key":"code.language","value":{"stringValue":"javascript"}}`. Read as a whole, they take half the time. What has any
//! other form, or a mistake in it, is left to the general way, which gives the same answer.

use super::number;
use super::reader::{Reader, number_length, plain_length};
use crate::otlp::wire::{self, put_bytes, put_fixed64, put_header, put_varint, varint_len};

enum Value<'a> {
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
}

/// Reads an attribute in the usual form and writes it as field `number` of the message in `out`. If false is returned
/// nothing was read and nothing written.
#[inline(always)]
pub(super) fn usual(reader: &mut Reader<'_>, out: &mut Vec<u8>, number: u32, depth: u32) -> bool {
    let Some((key, value, rest)) = read(reader.rest()).filter(|_| depth > 1) else {
        return false;
    };
    reader.go_on_at(rest);
    write(out, number, key, value);
    true
}

#[inline(always)]
fn read(text: &[u8]) -> Option<(&[u8], Value<'_>, &[u8])> {
    let (key, rest) = plain_string(text.strip_prefix(br#"{"key":""#)?)?;
    if key.is_empty() {
        // An empty string is left out, as everywhere in proto3.
        return None;
    }
    let rest = rest.strip_prefix(br#","value":{""#)?;
    let (value, rest) = if let Some(rest) = rest.strip_prefix(br#"stringValue":""#) {
        let (text, rest) = plain_string(rest)?;
        (Value::Text(text), rest)
    } else if let Some(rest) = rest.strip_prefix(br#"intValue":"#) {
        let (digits, rest) = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let (digits, rest) = number(quoted)?;
                (digits, rest.strip_prefix(b"\"")?)
            }
            None => number(rest)?,
        };
        (Value::Int(number::integer(digits)?.try_into().ok()?), rest)
    } else if let Some(rest) = rest.strip_prefix(br#"boolValue":"#) {
        match rest.strip_prefix(b"true") {
            Some(rest) => (Value::Bool(true), rest),
            None => (Value::Bool(false), rest.strip_prefix(b"false")?),
        }
    } else {
        let (digits, rest) = number(rest.strip_prefix(br#"doubleValue":"#)?)?;
        (Value::Double(number::double(digits)?), rest)
    };
    Some((key, value, rest.strip_prefix(b"}}")?))
}

/// The characters up to a closing quotation mark, if none is escaped, and what follows the mark.
#[inline(always)]
fn plain_string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    match text.split_at_checked(plain_length(text))? {
        (string, [b'"', rest @ ..]) => Some((string, rest)),
        _ => None,
    }
}

#[inline(always)]
fn number(text: &[u8]) -> Option<(&[u8], &[u8])> {
    match number_length(text) {
        0 => None,
        length => text.split_at_checked(length),
    }
}

#[inline(always)]
fn write(out: &mut Vec<u8>, number: u32, key: &[u8], value: Value<'_>) {
    let delimited = |length: usize| 1 + varint_len(length as u64) + length;
    let value_length = match value {
        Value::Text(text) => delimited(text.len()),
        Value::Bool(_) => 2,
        Value::Int(value) => 1 + varint_len(value as u64),
        Value::Double(_) => 9,
    };
    put_header(out, number, delimited(key.len()) + delimited(value_length));
    put_bytes(out, 1, key);
    put_header(out, 2, value_length);
    match value {
        Value::Text(text) => put_bytes(out, 1, text),
        Value::Bool(value) => out.extend_from_slice(&[wire::varint(2) as u8, u8::from(value)]),
        Value::Int(value) => {
            put_varint(out, u64::from(wire::varint(3)));
            put_varint(out, value as u64);
        }
        Value::Double(value) => put_fixed64(out, 4, value.to_bits()),
    }
}
