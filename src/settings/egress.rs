//! The keys of an exporter that say what leaves: `drop_spans`, `sample`, `redact`, ...

use std::time::Duration;

use super::exporters::size;
use crate::config::yaml::Value;
use crate::config::{ByteSize, Node, Section, Setting};
use crate::egress::{EgressOptions, Glob, KeepRule, Secret, SpanCondition, SpanRule, Threshold};
use crate::redact::Patterns;
use crate::rules::semantics::span_kind;

pub(super) fn bind(section: &Section<'_>) -> EgressOptions {
    let keys = |key: &'static str, meaning: &'static str| section.get(key, "[]", meaning);
    let drop_spans = section.parsed(
        "drop_spans",
        "[]",
        "Spans that are not forwarded: health_checks, or {name:, kind:, attributes: {}, resource: {}}; * in values.",
        "list",
        |node| each(node, span_rule),
    );
    let (ratio, keep, wait, memory) = section.section(
        "sample",
        "Which traces are forwarded. Metrics and rows are made of all of them.",
        |sample| {
            let ratio = sample.parsed(
                "ratio",
                "1",
                "The share of traces, by trace id.",
                "number 0 to 1",
                ratio,
            );
            let keep = sample.parsed(
                "keep",
                "[]",
                "Traces that are forwarded in any case: errors, slower_than: 5s, or as drop_spans.",
                "list",
                |node| each(node, keep_rule),
            );
            let wait = sample.get("wait", "30s", "How long a trace is waited for; only with keep.");
            (
                ratio,
                keep,
                wait,
                size(
                    sample,
                    "memory",
                    "64MiB",
                    "For traces that wait; over it they are decided early.",
                ),
            )
        },
    );
    let ByteSize(truncate) = section.get("truncate", "0", "Longest text of a value, in bytes; 0: any.");
    EgressOptions {
        drop_spans,
        ratio,
        keep,
        wait,
        memory,
        remove_attributes: keys(
            "remove_attributes",
            "Keys that are removed everywhere; * stands for any characters.",
        ),
        keep_attributes: keys(
            "keep_attributes",
            "If any: all other attributes are removed, of resources too.",
        ),
        hash_attributes: keys("hash_attributes", "Keys whose values are replaced by a digest."),
        hash_key: section.parsed_secret(
            "hash_key",
            "",
            "With a key: HMAC-SHA-256; without: SHA-256.",
            "text",
            |node| Option::<String>::from_node(node).map(|key| Secret::new(key.unwrap_or_default())),
        ),
        redact: patterns(
            section,
            "redact",
            "Cut from every text: regular expressions, builtin, builtin:tokens, builtin:keys, builtin:email.",
        ),
        truncate: usize::try_from(truncate).unwrap_or(usize::MAX),
        set_resource: section.get(
            "set_resource",
            "{}",
            "Attributes of resources that have no value for them.",
        ),
    }
}

/// A list of patterns.
pub(super) fn patterns(section: &Section<'_>, key: &'static str, meaning: &'static str) -> Vec<String> {
    section.parsed(key, "[]", meaning, "list", |node| {
        let patterns = Vec::<String>::from_node(node)?;
        match Patterns::compile(&patterns) {
            Ok(_) => Ok(patterns),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn each<T>(node: &Node, read: impl Fn(&Node) -> Result<T, String>) -> Result<Vec<T>, String> {
    match &node.value {
        Value::Sequence(items) => {
            let numbered = |(index, item)| read(item).map_err(|message| format!("item {}: {message}", index + 1));
            items.iter().enumerate().map(numbered).collect()
        }
        Value::Null => Ok(Vec::new()),
        Value::Scalar { .. } => Ok(vec![read(node)?]),
        Value::Mapping(_) => Err("expected a list, got a map".to_owned()),
    }
}

fn ratio(node: &Node) -> Result<Threshold, String> {
    let expected = || "expected a number from 0 to 1, such as 0.1".to_owned();
    let text = String::from_node(node)?;
    let ratio = text.parse().map_err(|_| expected())?;
    Threshold::from_ratio(ratio).ok_or_else(expected)
}

fn keep_rule(node: &Node) -> Result<KeepRule, String> {
    match &node.value {
        Value::Scalar { text, .. } if text == "errors" => Ok(KeepRule::Errors),
        Value::Scalar { text, .. } => Err(format!(
            "expected errors, slower_than: DURATION, or a condition on spans, got `{text}`"
        )),
        Value::Mapping(entries) => match entries.as_slice() {
            [only] if only.key == "slower_than" => Duration::from_node(&only.value).map(KeepRule::SlowerThan),
            _ => span_rule(node).map(KeepRule::Spans),
        },
        _ => span_rule(node).map(KeepRule::Spans),
    }
}

fn span_rule(node: &Node) -> Result<SpanRule, String> {
    const KEYS: &str = "name, kind, attributes, attribute, resource";
    let entries = match &node.value {
        Value::Scalar { text, .. } if text == "health_checks" => {
            return Ok(SpanRule {
                any_of: SpanCondition::health_checks(),
                says: text.clone(),
            });
        }
        Value::Mapping(entries) if !entries.is_empty() => entries,
        _ => {
            return Err(format!(
                "expected health_checks or a map with some of {KEYS}, got {}",
                node.kind()
            ));
        }
    };
    let mut condition = SpanCondition::default();
    let mut says = Vec::new();
    for entry in entries {
        let value = &entry.value;
        match entry.key.as_str() {
            "name" => condition.names = globs(value)?,
            "kind" => condition.kinds = kinds(value)?,
            "attribute" => {
                let keys = Vec::<String>::from_node(value)?;
                let exists = |key: String| (key, vec![Glob::new("*")]);
                condition.attributes.extend(keys.into_iter().map(exists));
            }
            "attributes" => condition.attributes.extend(by_key(value)?),
            "resource" => condition.resource = by_key(value)?,
            other => return Err(format!("`{other}` is not one of {KEYS}")),
        }
        says.push(format!("{}: {}", entry.key, shown(value)));
    }
    Ok(SpanRule {
        any_of: vec![condition],
        says: says.join(", "),
    })
}

fn globs(node: &Node) -> Result<Vec<Glob>, String> {
    Ok(Vec::<String>::from_node(node)?.into_iter().map(Glob::new).collect())
}

fn kinds(node: &Node) -> Result<Vec<String>, String> {
    let known = [0, 1, 2, 3, 4, 5].map(span_kind);
    let kinds = Vec::<String>::from_node(node)?;
    match kinds.iter().find(|kind| !known.contains(&kind.as_str())) {
        Some(unknown) => Err(format!(
            "`{unknown}` is no kind of span; expected one of {}",
            known.join(", ")
        )),
        None => Ok(kinds),
    }
}

fn by_key(node: &Node) -> Result<Vec<(String, Vec<Glob>)>, String> {
    let Value::Mapping(entries) = &node.value else {
        return Err(format!("expected a map of keys and values, got {}", node.kind()));
    };
    entries
        .iter()
        .map(|entry| Ok((entry.key.clone(), globs(&entry.value)?)))
        .collect()
}

/// A value on one line.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Scalar { text, .. } => text.clone(),
        Value::Sequence(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Mapping(entries) => {
            let pairs = entries
                .iter()
                .map(|entry| format!("{}: {}", entry.key, shown(&entry.value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}
