//! What rules are made of: sources, texts, numbers, lists, maps; and how mistakes are reported.

use crate::config::section::nearest;
use crate::config::{Location, Mistake, Node, Value};

use super::super::model::{Level, Source};
use super::super::named::Named;
use super::{Fields, RuleReader, at, words};

impl RuleReader<'_> {
    pub(super) fn source(&mut self, node: &Node, text: &str, path: &str) -> Option<Source> {
        if let Some((word, key)) = text.split_once('.')
            && let Some(level) = Level::ALL.into_iter().find(|level| level.word() == word)
        {
            if key.is_empty() {
                return self.mistake(node, path, format!("expected the key of an attribute after `{text}`"));
            }
            return Some(Source::Attribute(level, key.to_owned()));
        }
        if let Some(named) = Named::from_word(text) {
            return Some(Source::Named(named));
        }
        let words: Vec<String> = words().map(str::to_owned).collect();
        let hint = match nearest(text, &words) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None if text.contains('.') => format!("; did you mean `span.{text}`?"),
            None => format!(" or one of {}", words.join(", ")),
        };
        let message = format!("expected `span.<key>`, `resource.<key>`, `scope.<key>`, got `{text}`{hint}");
        self.mistake(node, path, message)
    }

    pub(super) fn fields<'n>(&mut self, node: &'n Node, path: &str, known: &[&str]) -> Option<Fields<'n>> {
        let Value::Mapping(entries) = &node.value else {
            return self.mistake(
                node,
                path,
                format!("expected a map with {}, got {}", known.join(", "), node.kind()),
            );
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let known = known.iter().map(|key| (*key).to_owned()).collect();
            self.unknown_key::<()>(&entry.key, &entry.key_at, &at(path, &entry.key), known);
        }
        Some(Fields { node })
    }

    pub(super) fn items<'n>(&mut self, node: &'n Node, path: &str) -> &'n [Node] {
        match &node.value {
            Value::Sequence(items) => items,
            _ => {
                self.mistake::<()>(node, path, format!("expected a list, got {}", node.kind()));
                &[]
            }
        }
    }

    /// One text or a list of texts.
    pub(super) fn texts(&mut self, node: &Node, path: &str) -> Option<Vec<String>> {
        match &node.value {
            Value::Scalar { text, .. } => Some(vec![text.clone()]),
            Value::Sequence(items) if !items.is_empty() => items
                .iter()
                .enumerate()
                .map(|(index, item)| self.text(item, &format!("{path}[{index}]"), "a text"))
                .collect(),
            _ => self.mistake(
                node,
                path,
                format!("expected a text or a list of texts, got {}", node.kind()),
            ),
        }
    }

    pub(super) fn text(&mut self, node: &Node, path: &str, expected: &str) -> Option<String> {
        match &node.value {
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => self.mistake(node, path, format!("expected {expected}, got {}", node.kind())),
        }
    }

    pub(super) fn number(&mut self, node: &Node, path: &str) -> Option<f64> {
        let text = self.text(node, path, "a number")?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Some(number),
            _ => self.mistake(node, path, format!("expected a number, got `{text}`")),
        }
    }

    pub(super) fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        match self.text(node, path, "true or false")?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            other => self.mistake(node, path, format!("expected true or false, got `{other}`")),
        }
    }

    pub(super) fn unknown_key<T>(&mut self, key: &str, place: &Location, path: &str, known: Vec<String>) -> Option<T> {
        let message = match nearest(key, &known) {
            Some(nearest) => format!("unknown key; did you mean `{nearest}`?"),
            None => format!("unknown key; expected one of {}", known.join(", ")),
        };
        self.report(place.clone(), path, message)
    }

    pub(super) fn mistake<T>(&mut self, node: &Node, path: &str, message: impl Into<String>) -> Option<T> {
        self.report(node.at.clone(), path, message)
    }

    pub(super) fn report<T>(&mut self, place: Location, path: &str, message: impl Into<String>) -> Option<T> {
        self.mistakes.push(Mistake {
            at: Some(place),
            path: path.to_owned(),
            message: message.into(),
        });
        None
    }
}
