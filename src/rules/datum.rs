//! A value as labels and comparisons see it.

use crate::otlp::AnyValue;

use super::compile::Expected;

/// Numbers above this are not taken: adding one to a sum would swallow later ones.
pub(super) const MAX_VALUE: f64 = 9_007_199_254_740_992.0;

/// `number` if it can be how much there was of something: of time, memory, tokens or money. Executors send negative
/// durations when their clock was set back, and infinities where they divided by nothing.
pub(crate) fn quantity(number: f64) -> Option<f64> {
    // Adding 0 turns the negative zero into the positive one.
    (0.0..=MAX_VALUE).contains(&number).then_some(number + 0.0)
}

/// A value as labels and comparisons see it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Datum<'a> {
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// A list, a map or bytes: there, but neither text nor number.
    Other,
}

impl<'a> Datum<'a> {
    pub(super) fn from_value(value: AnyValue<'a>) -> Option<Self> {
        match value {
            AnyValue::Empty => None,
            AnyValue::Text(text) => Some(Datum::Text(text.as_bytes())),
            AnyValue::Bool(value) => Some(Datum::Bool(value)),
            AnyValue::Int(value) => Some(Datum::Int(value)),
            AnyValue::Double(value) => Some(Datum::Double(value)),
            AnyValue::Array(_) | AnyValue::Map(_) | AnyValue::Bytes(_) => Some(Datum::Other),
        }
    }

    pub(super) fn is(&self, expected: &Expected) -> bool {
        match self {
            Datum::Text(text) => **text == *expected.text,
            Datum::Bool(true) => *expected.text == *b"true",
            Datum::Bool(false) => *expected.text == *b"false",
            Datum::Int(value) => expected.int == Some(*value),
            Datum::Double(value) => expected.double == Some(*value),
            Datum::Other => false,
        }
    }

    /// The whole number, also in a double or a text.
    pub(super) fn integer(&self) -> Option<i64> {
        let whole = |value: f64| (value.fract() == 0.0 && value.abs() <= MAX_VALUE).then_some(value as i64);
        match self {
            Datum::Int(value) => Some(*value),
            Datum::Double(value) => whole(*value),
            Datum::Text(text) => {
                let text = std::str::from_utf8(text).ok()?.trim();
                text.parse().ok().or_else(|| whole(text.parse().ok()?))
            }
            Datum::Bool(_) | Datum::Other => None,
        }
    }
}
