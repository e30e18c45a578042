//! Consistent probability sampling, as OpenTelemetry specifies it (Trace: TraceState, Probability Sampling).
//!
//! A trace has 56 random bits: `rv` in its `tracestate`, else the last seven bytes of its id. A share of traces is a
//! threshold: what is below it is rejected. Whoever knows both decides the same, so that traces stay whole across
//! processes, and a smaller share is a part of a larger one. The threshold that was applied goes along as `th` in
//! `tracestate`, so that backends can count what was left out.

use std::fmt;

use crate::otlp::Span;

/// 2^56: more than any randomness.
const END: u64 = 1 << 56;

/// The number of hexadecimal digits of 56 bits.
const DIGITS: i32 = 14;

/// Significant digits of a threshold: as many as SDKs and the Collector have by default, so that all decide alike.
const PRECISION: i32 = 4;

/// The most members of a `tracestate`.
const MEMBERS: usize = 32;

/// The longest value of a member.
const LONGEST: usize = 256;

/// A rejection threshold: traces whose randomness is below it are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold(u64);

impl Default for Threshold {
    fn default() -> Threshold {
        Threshold::ALWAYS
    }
}

impl Threshold {
    /// Every trace is kept.
    pub const ALWAYS: Threshold = Threshold(0);

    /// No trace is kept.
    pub const NEVER: Threshold = Threshold(END);

    /// The threshold for a share between 0 and 1; `None` for what is no share.
    pub fn from_ratio(ratio: f64) -> Option<Threshold> {
        if !(0.0..=1.0).contains(&ratio) {
            return None;
        }
        let rejected = END - (ratio * END as f64).round() as u64;
        if rejected == 0 || rejected == END {
            return Some(Threshold(rejected));
        }
        // Near 0 and near 1 a threshold begins with digits that are all f or all 0; those do not count.
        let leading = |share: f64| (exponent(share) / -4).max(0);
        let precision = (PRECISION + leading(ratio).max(leading(1.0 - ratio))).min(DIGITS);
        let shift = 4 * (DIGITS - precision);
        if shift == 0 {
            return Some(Threshold(rejected));
        }
        let half = 1_u64 << (shift - 1);
        Some(Threshold(((rejected + half) >> shift) << shift))
    }

    /// Whether a trace with this randomness is kept.
    pub const fn keeps(self, randomness: u64) -> bool {
        randomness >= self.0
    }

    /// Appends it as `th` has it: hexadecimal without zeros at its end, `0` for none.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_string().as_bytes());
    }
}

/// As `th` has it.
impl fmt::Display for Threshold {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:014x}", self.0);
        match digits.trim_end_matches('0') {
            "" => out.write_str("0"),
            digits => out.write_str(digits),
        }
    }
}

/// The exponent of a number written as 0.5 to 1 times a power of two.
fn exponent(number: f64) -> i32 {
    match number > 0.0 {
        true => number.log2().floor() as i32 + 1,
        false => 0,
    }
}

/// What is done with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampled {
    /// It stays here.
    Out,
    /// It goes as it is: an earlier stage kept a smaller share already.
    In,
    /// It goes with this threshold.
    InAt(Threshold),
}

/// Decides over a span, as an equalizing downstream sampler. A threshold of an earlier stage that contradicts the
/// randomness of its trace means nothing.
pub(super) fn decide(span: &Span<'_>, threshold: Threshold) -> Sampled {
    let told = Told::of(span.trace_state().as_bytes());
    let randomness = told.randomness.unwrap_or_else(|| randomness_of(span.trace_id()));
    let earlier = told.threshold.filter(|earlier| earlier.keeps(randomness));
    match earlier {
        Some(earlier) if earlier >= threshold => Sampled::In,
        _ if !threshold.keeps(randomness) => Sampled::Out,
        _ if threshold == Threshold::ALWAYS => Sampled::In,
        _ => Sampled::InAt(threshold),
    }
}

/// The last seven bytes of a trace id.
fn randomness_of(trace_id: &[u8]) -> u64 {
    let last = trace_id.iter().rev().take(7).rev();
    last.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a `tracestate` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    threshold: Option<Threshold>,
    randomness: Option<u64>,
}

impl Told {
    fn of(trace_state: &[u8]) -> Told {
        let mut told = Told::default();
        for (key, value) in members(trace_state).filter_map(own).flat_map(pairs) {
            match key {
                b"th" => {
                    told.threshold = hexadecimal(value).map(|number| Threshold(number << (4 * (14 - value.len()))))
                }
                b"rv" if value.len() == 14 => told.randomness = hexadecimal(value),
                _ => {}
            }
        }
        told
    }
}

fn members(trace_state: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = trace_state.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    members.filter(|member| !member.is_empty())
}

/// The value of OpenTelemetry's own member.
fn own(member: &[u8]) -> Option<&[u8]> {
    member.strip_prefix(b"ot=")
}

fn pairs(value: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    value.split(|byte| *byte == b';').filter_map(|pair| {
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some((&pair[..colon], &pair[colon + 1..]))
    })
}

/// One to fourteen lower-case hexadecimal digits.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let is_hexadecimal = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_sound = (1..=14).contains(&digits.len()) && digits.iter().all(is_hexadecimal);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_sound)?;
    u64::from_str_radix(text, 16).ok()
}

/// Appends a `tracestate` with another threshold. The member that changes comes first (W3C Trace Context, 3.5); all
/// other members, and all other parts of this one, stay.
pub(super) fn stamp(trace_state: &[u8], threshold: Threshold, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(b"ot=th:");
    threshold.write(out);
    for (key, value) in members(trace_state).filter_map(own).flat_map(pairs) {
        let is_room = out.len() - begin - 3 + 2 + key.len() + value.len() <= LONGEST;
        if key != b"th" && is_room {
            out.push(b';');
            out.extend_from_slice(key);
            out.push(b':');
            out.extend_from_slice(value);
        }
    }
    for member in members(trace_state)
        .filter(|member| own(member).is_none())
        .take(MEMBERS - 1)
    {
        out.push(b',');
        out.extend_from_slice(member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_those_of_the_specification() {
        // Specification, table of 1-in-N probabilities at precision 4.
        for (ratio, expected) in [
            (1.0, "0"),
            (0.5, "8"),
            (1.0 / 3.0, "aaab"),
            (0.25, "c"),
            (0.2, "cccd"),
            (0.125, "e"),
            (0.1, "e666"),
            (0.0625, "f"),
            (0.01, "fd70a"),
            (0.001, "ffbe77"),
            (0.0001, "fff9724"),
            (0.0, "100000000000000"),
        ] {
            let threshold = Threshold::from_ratio(ratio).unwrap();
            if ratio > 0.0 {
                assert_eq!(threshold.to_string(), expected, "{ratio}");
            } else {
                assert_eq!(threshold, Threshold::NEVER);
            }
            let share = 1.0 - threshold.0 as f64 / END as f64;
            assert!((share - ratio).abs() <= ratio * 1e-3, "{ratio}: {share}");
        }
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Threshold::from_ratio(wrong), None);
        }
    }

    #[test]
    fn what_a_tracestate_says_is_read_whatever_stands_around_it() {
        let told = |threshold: Option<u64>, randomness| Told {
            threshold: threshold.map(Threshold),
            randomness,
        };
        for (text, expected) in [
            ("", told(None, None)),
            ("ot=th:8", told(Some(8 << 52), None)),
            (
                "a=b, ot=rv:0123456789abcd;th:c;x:y ,c=d",
                told(Some(0xc << 52), Some(0x0001_2345_6789_abcd)),
            ),
            ("ot=th:xyz;rv:12", told(None, None)),
            ("ot=th:0", told(Some(0), None)),
            ("not=th:8", told(None, None)),
            ("ot=th:123456789abcdef", told(None, None)),
        ] {
            assert_eq!(Told::of(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_new_threshold_comes_first_and_everything_else_stays() {
        let stamped = |text: &str| {
            let mut out = Vec::new();
            stamp(text.as_bytes(), Threshold(8 << 52), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(stamped(""), "ot=th:8");
        assert_eq!(stamped("a=b,c=d"), "ot=th:8,a=b,c=d");
        assert_eq!(
            stamped("a=b, ot=rv:0123456789abcd;th:4;x:y"),
            "ot=th:8;rv:0123456789abcd;x:y,a=b"
        );
        let many: Vec<String> = (0..32).map(|index| format!("k{index}=v")).collect();
        assert_eq!(stamped(&many.join(",")).split(',').count(), 32);
        let long = format!("ot=rv:0123456789abcd;x:{}", "y".repeat(234));
        assert_eq!(stamped(&long), "ot=th:8;rv:0123456789abcd");
    }
}
