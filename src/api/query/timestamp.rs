//! Times as the databases have them: `YYYY-MM-DD HH:MM:SS.ffffff`, UTC.

use chrono::{DateTime, NaiveDateTime};

/// Unix microseconds; nothing, where it is no time.
pub(super) fn micros_of(text: &str) -> Option<i64> {
    let at = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(at.and_utc().timestamp_micros())
}

/// Of Unix microseconds.
pub(super) fn text_of(micros: i64) -> String {
    let at = DateTime::from_timestamp_micros(micros).unwrap_or_default();
    at.format("%Y-%m-%d %H:%M:%S%.6f").to_string()
}

/// `YYYY-MM-DD HH:MM:SS.ffffff` as JavaScript writes a date. What others wrote into SQLite may be shorter.
pub(super) fn iso(created_at: &str) -> String {
    let mut text: String = created_at.replacen(' ', "T", 1).chars().take(23).collect();
    match text.len() {
        10 => text.push_str("T00:00:00.000"),
        19 => text.push_str(".000"),
        20..23 => text.extend(std::iter::repeat_n('0', 23 - text.len())),
        _ => {}
    }
    text.push('Z');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_javascript_does() {
        for (text, expected) in [
            ("2026-01-31 12:00:00.123456", "2026-01-31T12:00:00.123Z"),
            ("2026-01-31 12:00:00", "2026-01-31T12:00:00.000Z"),
            ("2026-01-31 12:00:00.5", "2026-01-31T12:00:00.500Z"),
            ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ] {
            assert_eq!(iso(text), expected);
        }
    }
}
