//! Rules as YAML that reads back as the same rules.
//!
//! The text is canonical: equal rules print alike. What decides about the identity of a metric's counts
//! ([`super::Catalogue::digests`]) is computed from it.

use std::fmt::Write as _;

use super::model::{Condition, Conversion, Expression, Instrument, Label, Measure, Reading, Rule, Source, Test};
use super::named::Kind;

/// A rule as an item of the list `metrics`.
pub(crate) fn rule(rule: &Rule) -> String {
    let mut out = format!("  - name: {}\n", scalar(&rule.name));
    line(&mut out, "help", &scalar(&rule.help));
    out.push_str(&definition(rule));
    out
}

/// A metric that is switched off.
pub(crate) fn disabled(name: &str) -> String {
    format!("  - name: {}\n    enabled: false\n", scalar(name))
}

/// All of a rule that its counts depend on: everything but its name and help text.
pub(crate) fn definition(rule: &Rule) -> String {
    let mut out = String::new();
    line(&mut out, "type", rule.instrument.word());
    line(&mut out, "when", &condition(&rule.when));
    line(&mut out, "value", &measure(&rule.value));
    if let Instrument::Histogram { buckets } = &rule.instrument {
        line(&mut out, "buckets", &list(buckets.iter().map(f64::to_string)));
    }
    if !rule.labels.is_empty() {
        out.push_str("    labels:\n");
        for (name, source) in &rule.labels {
            // Writing to a String cannot fail.
            writeln!(out, "      {}: {}", scalar(name), label(source)).unwrap_or_default();
        }
    }
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    writeln!(out, "    {key}: {value}").unwrap_or_default();
}

pub(super) fn condition(condition: &Condition) -> String {
    match condition {
        Condition::All(parts) if parts.is_empty() => "{}".to_owned(),
        Condition::All(parts) => format!("{{and: {}}}", list(parts.iter().map(self::condition))),
        Condition::Any(parts) => format!("{{any_of: {}}}", list(parts.iter().map(self::condition))),
        Condition::Not(inner) => format!("{{not: {}}}", self::condition(inner)),
        Condition::Test(source, test) => self::test(source, test),
    }
}

fn test(source: &Source, test: &Test) -> String {
    let name = scalar(&source.to_string());
    match test {
        Test::Exists => match source {
            Source::Named(named) if named.kind() != Kind::Predicate => format!("{{attribute: {name}, exists: true}}"),
            _ => name,
        },
        Test::OneOf(values) => format!("{{{name}: {}}}", one_or_list(values)),
        Test::StartsWith(prefix) => format!("{{attribute: {name}, starts_with: {}}}", scalar(prefix)),
        Test::AtLeast(number) => format!("{{attribute: {name}, at_least: {number}}}"),
        Test::Below(number) => format!("{{attribute: {name}, below: {number}}}"),
    }
}

pub(super) fn measure(measure: &Measure) -> String {
    match measure {
        Measure::One(value) => expression(value),
        Measure::Split { label, parts } => {
            let parts = parts
                .iter()
                .map(|(name, value)| format!("{}: {}", scalar(name), expression(value)));
            let parts = parts.collect::<Vec<_>>().join(", ");
            format!("{{split_by: {}, parts: {{{parts}}}}}", scalar(label))
        }
    }
}

fn expression(value: &Expression) -> String {
    match value {
        Expression::Constant(number) => number.to_string(),
        Expression::Source(source) => scalar(&source.to_string()),
        Expression::FirstOf(values) => format!("{{first_of: {}}}", list(values.iter().map(expression))),
        Expression::SumOf(values) => format!("{{sum_of: {}}}", list(values.iter().map(expression))),
        Expression::Scaled(inner, factor) => match inner.as_ref() {
            Expression::FirstOf(values) => {
                format!("{{first_of: {}, scale: {factor}}}", list(values.iter().map(expression)))
            }
            Expression::SumOf(values) => {
                format!("{{sum_of: {}, scale: {factor}}}", list(values.iter().map(expression)))
            }
            inner => format!("{{first_of: [{}], scale: {factor}}}", expression(inner)),
        },
    }
}

fn label(label: &Label) -> String {
    let reading = match label {
        Label::Constant(text) => return format!("{{constant: {}}}", scalar(text)),
        Label::Read(reading) => reading,
    };
    let sources: Vec<String> = reading.first_of.iter().map(Source::to_string).collect();
    if let [only] = sources.as_slice()
        && is_plain(reading)
    {
        return scalar(only);
    }
    let mut parts = vec![format!("first_of: {}", one_or_list(&sources))];
    if reading.conversion != Conversion::Text {
        let word = Conversion::WORDS
            .iter()
            .find(|(_, conversion)| *conversion == reading.conversion);
        parts.push(format!("as: {}", word.map_or("text", |(word, _)| *word)));
    }
    if !reading.map.is_empty() {
        let pairs = reading
            .map
            .iter()
            .map(|(from, to)| format!("{}: {}", scalar(from), scalar(to)));
        parts.push(format!("map: {{{}}}", pairs.collect::<Vec<_>>().join(", ")));
    }
    if !reading.one_of.is_empty() {
        parts.push(format!("one_of: {}", one_or_list(&reading.one_of)));
    }
    if let Some(otherwise) = &reading.otherwise {
        parts.push(format!("else: {}", scalar(otherwise)));
    }
    if reading.optional {
        parts.push("optional: true".to_owned());
    }
    format!("{{{}}}", parts.join(", "))
}

/// Whether the source says all.
fn is_plain(reading: &Reading) -> bool {
    let bare = Reading {
        first_of: reading.first_of.clone(),
        ..Reading::default()
    };
    *reading == bare
}

fn one_or_list(texts: &[String]) -> String {
    match texts {
        [only] => scalar(only),
        texts => list(texts.iter().map(|text| scalar(text))),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// A text as a YAML scalar that reads back as this text. A JSON string is a YAML double-quoted scalar.
fn scalar(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let plain = text.chars().all(word)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && !text.eq_ignore_ascii_case("null");
    if plain {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}
