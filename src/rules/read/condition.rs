//! `when`: which spans a rule counts.

use crate::config::yaml::Entry;
use crate::config::{Node, Value};

use super::super::model::{Condition, Source, Test};
use super::super::named::{Kind, Named};
use super::{RuleReader, at, words};

const CONDITION_KEYS: [&str; 4] = ["any_of", "and", "not", "attribute"];
const TEST_KEYS: [&str; 6] = ["exists", "equals", "one_of", "starts_with", "at_least", "below"];

impl RuleReader<'_> {
    pub(super) fn condition(&mut self, node: &Node, path: &str) -> Option<Condition> {
        match &node.value {
            Value::Scalar { text, .. } => match self.source(node, text, path)? {
                Source::Named(named) if named.kind() != Kind::Predicate => {
                    let message = format!("`{text}` is a value; compare it: `{{{text}: ...}}`");
                    self.mistake(node, path, message)
                }
                source => Some(Condition::Test(source, Test::Exists)),
            },
            Value::Mapping(entries) => {
                let mut parts = Vec::new();
                let mut complete = true;
                if node.get("attribute").is_some() {
                    match self.test(node, path) {
                        Some(condition) => parts.push(condition),
                        None => complete = false,
                    }
                }
                for entry in entries {
                    let key = entry.key.as_str();
                    let here = at(path, key);
                    let part = match key {
                        "any_of" => self.conditions(&entry.value, &here).map(any),
                        "and" => self.conditions(&entry.value, &here).map(all),
                        "not" => self
                            .condition(&entry.value, &here)
                            .map(|inner| Condition::Not(Box::new(inner))),
                        "attribute" => continue,
                        _ if node.get("attribute").is_some() && TEST_KEYS.contains(&key) => continue,
                        _ => self.comparison(entry, &here),
                    };
                    match part {
                        Some(part) => parts.push(part),
                        None => complete = false,
                    }
                }
                complete.then(|| all(parts))
            }
            _ => self.mistake(node, path, format!("expected a condition, got {}", node.kind())),
        }
    }

    pub(super) fn conditions(&mut self, node: &Node, path: &str) -> Option<Vec<Condition>> {
        let items = self.items(node, path);
        if items.is_empty() {
            return self.mistake(node, path, "expected a list with at least one condition");
        }
        let read: Vec<Option<Condition>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.condition(item, &format!("{path}[{index}]")))
            .collect();
        read.into_iter().collect()
    }

    /// `{span_name: llm.generate}`, `{span.kind: [a, b]}`.
    pub(super) fn comparison(&mut self, entry: &Entry, path: &str) -> Option<Condition> {
        let key_node = Node {
            value: Value::Null,
            at: entry.key_at.clone(),
        };
        if !entry.key.contains('.') && Named::from_word(&entry.key).is_none() {
            let known = CONDITION_KEYS
                .iter()
                .copied()
                .chain(words())
                .map(str::to_owned)
                .collect();
            return self.unknown_key(&entry.key, &entry.key_at, path, known);
        }
        let source = self.source(&key_node, &entry.key, path)?;
        if let Source::Named(named) = &source
            && named.kind() != Kind::Text
        {
            let message = match named.kind() {
                Kind::Predicate => format!("`{named}` is true or false; write it alone", named = named.word()),
                _ => format!(
                    "`{0}` is a number; write `{{attribute: {0}, at_least: ...}}`",
                    named.word()
                ),
            };
            return self.mistake(&key_node, path, message);
        }
        let values = self.texts(&entry.value, path)?;
        Some(Condition::Test(source, Test::OneOf(values)))
    }

    /// `{attribute: span.error_kind, exists: true}` and its kin.
    pub(super) fn test(&mut self, node: &Node, path: &str) -> Option<Condition> {
        let attribute = node.get("attribute")?;
        let text = self.text(attribute, &at(path, "attribute"), "a source")?;
        let source = self.source(attribute, &text, &at(path, "attribute"))?;
        let mut tests = Vec::new();
        for key in TEST_KEYS {
            let Some(value) = node.get(key) else { continue };
            let here = at(path, key);
            if let Source::Named(named) = &source
                && key != "exists"
            {
                let wanted = if matches!(key, "at_least" | "below") {
                    Kind::Number
                } else {
                    Kind::Text
                };
                let wanted_word = if wanted == Kind::Number { "a number" } else { "a text" };
                if named.kind() != wanted {
                    return self.mistake(value, &here, format!("`{}` is not {wanted_word}", named.word()));
                }
            }
            let test = match key {
                "exists" if !self.boolean(value, &here)? => {
                    tests.push(Condition::Not(Box::new(Condition::Test(source.clone(), Test::Exists))));
                    continue;
                }
                "exists" => Test::Exists,
                "equals" | "one_of" => Test::OneOf(self.texts(value, &here)?),
                "starts_with" => Test::StartsWith(self.text(value, &here, "a text")?),
                "at_least" => Test::AtLeast(self.number(value, &here)?),
                _ => Test::Below(self.number(value, &here)?),
            };
            tests.push(Condition::Test(source.clone(), test));
        }
        if tests.is_empty() {
            return self.mistake(
                node,
                path,
                format!("expected one of {} beside `attribute`", TEST_KEYS.join(", ")),
            );
        }
        Some(all(tests))
    }
}

/// The simplest condition that holds when all of these do.
fn all(parts: Vec<Condition>) -> Condition {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Condition::All(inner) => flat.extend(inner),
            part => flat.push(part),
        }
    }
    match flat.len() {
        1 => flat.remove(0),
        _ => Condition::All(flat),
    }
}

/// The simplest condition that holds when one of these does.
fn any(mut parts: Vec<Condition>) -> Condition {
    match parts.len() {
        1 => parts.remove(0),
        _ => Condition::Any(parts),
    }
}
