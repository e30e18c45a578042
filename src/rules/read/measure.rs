//! `value`: what a rule measures.

use crate::config::{Node, Value};

use super::super::model::{Expression, Measure, Source};
use super::super::named::Kind;
use super::{RuleReader, at};

impl RuleReader<'_> {
    pub(super) fn measure(&mut self, node: &Node, path: &str) -> Option<Measure> {
        if node.get("split_by").is_none() {
            return self.expression(node, path).map(Measure::One);
        }
        let fields = self.fields(node, path, &["split_by", "parts"])?;
        let label = self.text(fields.get("split_by")?, &at(path, "split_by"), "a label name")?;
        let Some(parts_node) = fields.get("parts") else {
            return self.mistake(node, path, "expected `parts`: a value for each value of the label");
        };
        let Value::Mapping(entries) = &parts_node.value else {
            return self.mistake(
                parts_node,
                &at(path, "parts"),
                format!("expected a map, got {}", parts_node.kind()),
            );
        };
        let mut parts = Vec::new();
        for entry in entries {
            let here = at(&at(path, "parts"), &entry.key);
            parts.push((entry.key.clone(), self.expression(&entry.value, &here)?));
        }
        if parts.is_empty() {
            return self.mistake(parts_node, &at(path, "parts"), "expected at least one part");
        }
        Some(Measure::Split { label, parts })
    }

    pub(super) fn expression(&mut self, node: &Node, path: &str) -> Option<Expression> {
        match &node.value {
            Value::Scalar { text, .. } => {
                if let Ok(number) = text.parse::<f64>() {
                    if !number.is_finite() || number < 0.0 {
                        return self.mistake(node, path, "expected a number of 0 or more");
                    }
                    return Some(Expression::Constant(number));
                }
                match self.source(node, text, path)? {
                    Source::Named(named) if named.kind() != Kind::Number => {
                        self.mistake(node, path, format!("`{text}` is not a number"))
                    }
                    source => Some(Expression::Source(source)),
                }
            }
            Value::Mapping(_) => {
                let fields = self.fields(node, path, &["first_of", "sum_of", "scale"])?;
                let inner = match (fields.get("first_of"), fields.get("sum_of")) {
                    (Some(list), None) => Expression::FirstOf(self.expressions(list, &at(path, "first_of"))?),
                    (None, Some(list)) => Expression::SumOf(self.expressions(list, &at(path, "sum_of"))?),
                    _ => return self.mistake(node, path, "expected either `first_of` or `sum_of`"),
                };
                let Some(scale) = fields.get("scale") else {
                    return Some(inner);
                };
                let factor = self.number(scale, &at(path, "scale"))?;
                if factor <= 0.0 {
                    return self.mistake(scale, &at(path, "scale"), "expected a factor above 0");
                }
                Some(Expression::Scaled(Box::new(inner), factor))
            }
            _ => self.mistake(
                node,
                path,
                format!("expected a number, a source or a map, got {}", node.kind()),
            ),
        }
    }

    pub(super) fn expressions(&mut self, node: &Node, path: &str) -> Option<Vec<Expression>> {
        let items = self.items(node, path);
        if items.is_empty() {
            return self.mistake(node, path, "expected a list with at least one value");
        }
        let read: Vec<Option<Expression>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.expression(item, &format!("{path}[{index}]")))
            .collect();
        read.into_iter().collect()
    }
}
