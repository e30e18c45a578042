//! Numbers as both formats write them.

use std::fmt::Write as _;

/// A whole number in decimal.
pub(super) fn write_integer(mut number: u64, out: &mut String) {
    // Several times faster than formatting, and a scrape is mostly numbers.
    let mut digits = [0; 20];
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    // They are ASCII.
    out.push_str(std::str::from_utf8(&digits[begin..]).unwrap_or_default());
}

/// The shortest text that reads back as the same number.
pub(super) fn write_float(number: f64, out: &mut String) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number {
        _ if number.is_nan() => out.push_str("NaN"),
        _ if number.is_infinite() => out.push_str(if number > 0.0 { "+Inf" } else { "-Inf" }),
        _ if number.fract() == 0.0 && (0.0..=EXACT).contains(&number) => write_integer(number as u64, out),
        // Writing to a String cannot fail; so below.
        _ if (1e-5..1e17).contains(&number.abs()) => write!(out, "{number}").unwrap_or_default(),
        _ => write!(out, "{number:e}").unwrap_or_default(),
    }
}

/// The canonical number of OpenMetrics for `le`: always with a fraction, from a million on with an exponent.
pub(super) fn write_bound(bound: f64, out: &mut String) {
    let magnitude = bound.abs();
    if bound == 0.0 || (1e-4..1e6).contains(&magnitude) {
        write!(out, "{bound:?}").unwrap_or_default();
        return;
    }
    let text = format!("{bound:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent
        .strip_prefix('-')
        .map_or(("+", exponent), |digits| ("-", digits));
    write!(out, "{mantissa}e{sign}{digits:0>2}").unwrap_or_default();
}

/// Nanoseconds since 1970 as seconds, to the millisecond.
pub(super) fn write_seconds(unix_nano: u64, out: &mut String) {
    let millis = unix_nano / 1_000_000;
    write_integer(millis / 1000, out);
    write!(out, ".{:03}", millis % 1000).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn floats_read_back_as_the_same_number() {
        let numbers = [
            0.0,
            1.0,
            0.1,
            123456.789,
            1e-9,
            1e15,
            1e16,
            1.5e300,
            9007199254740993.0,
            0.30000000000000004,
        ];
        for number in numbers {
            let text = written(|out| write_float(number, out));
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits(), "{text}");
        }
        assert_eq!(written(|out| write_float(10_000_000.0, out)), "10000000");
        assert_eq!(written(|out| write_float(f64::INFINITY, out)), "+Inf");
    }

    #[test]
    fn integers_are_written_in_full() {
        for number in [0, 7, 10, 12345, u64::MAX] {
            assert_eq!(written(|out| write_integer(number, out)), number.to_string());
        }
    }

    #[test]
    fn bounds_are_canonical_numbers() {
        let pairs = [
            (0.0, "0.0"),
            (0.005, "0.005"),
            (1.0, "1.0"),
            (2.5, "2.5"),
            (300_000.0, "300000.0"),
            (1e6, "1e+06"),
            (1.5e6, "1.5e+06"),
            (1e12, "1e+12"),
            (1e-5, "1e-05"),
        ];
        for (bound, text) in pairs {
            assert_eq!(written(|out| write_bound(bound, out)), text);
        }
    }

    #[test]
    fn times_are_seconds_to_the_millisecond() {
        assert_eq!(
            written(|out| write_seconds(1_700_000_000_012_345_678, out)),
            "1700000000.012"
        );
    }
}
