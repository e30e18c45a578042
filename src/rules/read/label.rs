//! `labels`: where the values of labels come from.

use crate::config::{Node, Value};

use super::super::check::{identifies_someone, is_label_name, reserved_label};
use super::super::model::{Conversion, Label, Measure, Reading, Source};
use super::super::named::Kind;
use super::{RuleReader, at};

const LABEL_KEYS: [&str; 7] = ["first_of", "as", "map", "one_of", "else", "optional", "constant"];

impl RuleReader<'_> {
    pub(super) fn labels(&mut self, node: Option<&Node>, value: Option<&Measure>, path: &str) -> Vec<(String, Label)> {
        let mut labels: Vec<(String, Label)> = Vec::new();
        let split = match value {
            Some(Measure::Split { label, .. }) => Some(label.as_str()),
            _ => None,
        };
        if let (Some(split), Some(node)) = (split, node) {
            self.check_label_name(node, split, path);
        }
        let entries = match node.map(|node| (&node.value, node)) {
            None | Some((Value::Null, _)) => return labels,
            Some((Value::Mapping(entries), _)) => entries,
            Some((_, node)) => {
                self.mistake::<()>(node, path, format!("expected a map of labels, got {}", node.kind()));
                return labels;
            }
        };
        for entry in entries {
            let here = at(path, &entry.key);
            let key_node = Node {
                value: Value::Null,
                at: entry.key_at.clone(),
            };
            self.check_label_name(&key_node, &entry.key, &here);
            if split == Some(entry.key.as_str()) {
                self.mistake::<()>(&key_node, &here, "this label is also given by `split_by`");
            }
            if let Some(label) = self.label(&entry.value, &here) {
                labels.push((entry.key.clone(), label));
            }
        }
        labels
    }

    pub(super) fn check_label_name(&mut self, node: &Node, name: &str, path: &str) {
        if !is_label_name(name) {
            self.mistake::<()>(
                node,
                path,
                "expected letters, digits and `_`, not beginning with a digit",
            );
        } else if reserved_label(name) {
            self.mistake::<()>(node, path, format!("the label name `{name}` is reserved"));
        }
    }

    pub(super) fn label(&mut self, node: &Node, path: &str) -> Option<Label> {
        if let Value::Scalar { text, .. } = &node.value {
            let source = self.label_source(node, text, path)?;
            return Some(Label::Read(Reading {
                first_of: vec![source],
                ..Reading::default()
            }));
        }
        let fields = self.fields(node, path, &LABEL_KEYS)?;
        if let Some(constant) = fields.get("constant") {
            return self
                .text(constant, &at(path, "constant"), "a text")
                .map(Label::Constant);
        }
        let Some(first_of) = fields.get("first_of") else {
            return self.mistake(
                node,
                path,
                "expected `first_of`: where the value comes from, or `constant`",
            );
        };
        let mut reading = Reading::default();
        let first_of_path = at(path, "first_of");
        for text in self.texts(first_of, &first_of_path)? {
            reading
                .first_of
                .push(self.label_source(first_of, &text, &first_of_path)?);
        }
        if let Some(conversion) = fields.get("as") {
            reading.conversion = self.conversion(conversion, &at(path, "as"))?;
        }
        if let Some(map) = fields.get("map") {
            reading.map = self.map(map, &at(path, "map"))?;
        }
        if let Some(one_of) = fields.get("one_of") {
            reading.one_of = self.texts(one_of, &at(path, "one_of"))?;
        }
        if let Some(otherwise) = fields.get("else") {
            if reading.one_of.is_empty() {
                let message = "`else` stands for a value that is not in `one_of`; give `one_of` too";
                return self.mistake(otherwise, &at(path, "else"), message);
            }
            reading.otherwise = Some(self.text(otherwise, &at(path, "else"), "a text")?);
        }
        if let Some(optional) = fields.get("optional") {
            reading.optional = self.boolean(optional, &at(path, "optional"))?;
        }
        Some(Label::Read(reading))
    }

    pub(super) fn label_source(&mut self, node: &Node, text: &str, path: &str) -> Option<Source> {
        let source = self.source(node, text, path)?;
        match &source {
            Source::Named(named) if named.kind() == Kind::Number => self.mistake(
                node,
                path,
                format!("`{text}` is a number: every value would be a series of its own"),
            ),
            Source::Attribute(_, key) if identifies_someone(key) => {
                let message = "ids of users, organizations, traces and executions are never labels";
                self.mistake(node, path, message)
            }
            _ => Some(source),
        }
    }

    pub(super) fn conversion(&mut self, node: &Node, path: &str) -> Option<Conversion> {
        let text = self.text(node, path, "a conversion")?;
        let found = Conversion::WORDS.iter().find(|(word, _)| *word == text);
        match found {
            Some((_, conversion)) => Some(*conversion),
            None => {
                let words = Conversion::WORDS.map(|(word, _)| word).join(", ");
                self.mistake(node, path, format!("expected one of {words}, got `{text}`"))
            }
        }
    }

    pub(super) fn map(&mut self, node: &Node, path: &str) -> Option<Vec<(String, String)>> {
        let Value::Mapping(entries) = &node.value else {
            return self.mistake(
                node,
                path,
                format!("expected a map of replacements, got {}", node.kind()),
            );
        };
        let mut map = Vec::new();
        for entry in entries {
            map.push((
                entry.key.clone(),
                self.text(&entry.value, &at(path, &entry.key), "a text")?,
            ));
        }
        Some(map)
    }
}
