//! Numbers as JSON writes them: integers exactly, doubles rounded once.

/// The double that `text`, a number in the grammar of JSON, stands for; `None` if it is beyond the largest.
pub(super) fn double(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// The integer that `text`, a number in the grammar of JSON, stands for; also in the forms `5.0` and `1.5e3`. `None`: it
/// has a fraction, or is so large that no 64-bit type holds it.
#[inline]
pub(super) fn integer(text: &[u8]) -> Option<i128> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let magnitude = match plain_digits(digits) {
        Some(magnitude) => u128::from(magnitude),
        None => decimal(digits)?,
    };
    let magnitude = i128::try_from(magnitude).ok()?;
    Some(if is_negative { -magnitude } else { magnitude })
}

/// Up to 19 digits and nothing else, which always fit.
#[inline(always)]
fn plain_digits(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => Some(value * 10 + u64::from(byte - b'0')),
        _ => None,
    })
}

/// Digits with fraction and exponent.
fn decimal(text: &[u8]) -> Option<u128> {
    let exponent_at = text
        .iter()
        .position(|byte| matches!(byte, b'e' | b'E'))
        .unwrap_or(text.len());
    let (mantissa, exponent) = text.split_at_checked(exponent_at)?;
    let point_at = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
    let (whole, fraction) = mantissa.split_at_checked(point_at)?;
    let fraction = fraction.get(1..).unwrap_or_default();

    let digits = || whole.iter().chain(fraction);
    if digits().all(|digit| *digit == b'0') {
        return Some(0);
    }
    let trailing_zeros = digits().rev().take_while(|digit| **digit == b'0').count();
    let mut significant = digits().take(whole.len() + fraction.len() - trailing_zeros);
    // Of the power of ten: what the exponent says, less the places behind the point, plus the zeros left out above.
    let scale = power(exponent.get(1..).unwrap_or_default()) - fraction.len() as i64 + trailing_zeros as i64;
    let factor = 10u128.checked_pow(u32::try_from(scale).ok()?)?;
    significant
        .try_fold(0u128, |value, digit| {
            value.checked_mul(10)?.checked_add(u128::from(digit - b'0'))
        })?
        .checked_mul(factor)
}

/// The exponent, held within bounds beyond which it makes no difference.
fn power(text: &[u8]) -> i64 {
    let (sign, digits) = match text {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] | digits => (1, digits),
    };
    sign * digits.iter().fold(0, |value, digit| {
        let value: i64 = value * 10 + i64::from(digit - b'0');
        value.min(i64::from(u32::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn integers_are_exact_in_every_form() {
        let cases: [(&str, Option<i128>); 22] = [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("5.0", Some(5)),
            ("-5.000", Some(-5)),
            ("1e3", Some(1000)),
            ("1E+3", Some(1000)),
            ("1.5e3", Some(1500)),
            ("1.50e1", Some(15)),
            ("1500e-2", Some(15)),
            ("0e999999999999999999999", Some(0)),
            ("0.000", Some(0)),
            ("18446744073709551615", Some(u64::MAX as i128)),
            ("18446744073709551615.0", Some(u64::MAX as i128)),
            ("1.8446744073709551615e19", Some(u64::MAX as i128)),
            ("-9223372036854775808", Some(i64::MIN as i128)),
            ("100000000000000000000", Some(100_000_000_000_000_000_000)),
            ("0.5", None),
            ("15e-1", None),
            ("1e-999999999999", None),
            ("1e999999999999", None),
            ("1e40", None),
            ("123456789012345678901234567890123456789012345", None),
        ];
        for (text, expected) in cases {
            assert_eq!(integer(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_number_with_very_many_zeros_is_read_exactly() {
        let zeros = "0".repeat(1000);
        assert_eq!(integer(format!("7{zeros}e-1000").as_bytes()), Some(7));
        assert_eq!(integer(format!("0.{zeros}7e1001").as_bytes()), Some(7));
    }
}
