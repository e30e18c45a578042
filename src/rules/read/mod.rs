//! Rules files to [`Rule`]s: strict, all mistakes at once, each with its place and what was expected there.

mod condition;
mod label;
mod measure;
mod primitive;

use crate::config::{Location, Mistake, Node};

use super::check::{is_metric_name, reserved_metric};
use super::model::{Expression, Instrument, Measure, Rule};
use super::named::Named;

/// One entry of a rules file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    /// A metric.
    Rule(Box<Rule>),
    /// A metric of this name that is switched off.
    Disabled(String),
}

/// An entry and where its name stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) entry: Entry,
    pub(crate) at: Location,
    pub(crate) path: String,
}

impl Entry {
    pub(crate) fn name(&self) -> &str {
        match self {
            Entry::Rule(rule) => &rule.name,
            Entry::Disabled(name) => name,
        }
    }
}

/// Reads the rules of one file; what cannot be read is left out and reported in `mistakes`.
pub(crate) fn read(root: &Node, mistakes: &mut Vec<Mistake>) -> Vec<Placed> {
    let mut reader = RuleReader { mistakes };
    if root.is_null() {
        return Vec::new();
    }
    let Some(fields) = reader.fields(root, "", &["metrics"]) else {
        return Vec::new();
    };
    let Some(metrics) = fields.get("metrics").filter(|node| !node.is_null()) else {
        return Vec::new();
    };
    let entries = reader.items(metrics, "metrics").iter().enumerate();
    entries
        .filter_map(|(index, node)| reader.entry(node, &format!("metrics[{index}]")))
        .collect()
}

/// A map whose keys have been checked.
struct Fields<'n> {
    node: &'n Node,
}

impl<'n> Fields<'n> {
    fn get(&self, key: &str) -> Option<&'n Node> {
        self.node.get(key)
    }
}

struct RuleReader<'m> {
    mistakes: &'m mut Vec<Mistake>,
}

const RULE_KEYS: [&str; 8] = ["name", "type", "help", "when", "value", "labels", "buckets", "enabled"];

impl RuleReader<'_> {
    fn entry(&mut self, node: &Node, path: &str) -> Option<Placed> {
        let before = self.mistakes.len();
        let fields = self.fields(node, path, &RULE_KEYS)?;
        let Some(name_node) = fields.get("name") else {
            return self.mistake(node, path, "a metric needs a `name`");
        };
        let name = self.text(name_node, &at(path, "name"), "a metric name")?;
        let placed = |entry| {
            Some(Placed {
                entry,
                at: name_node.at.clone(),
                path: at(path, "name"),
            })
        };
        if let Some(enabled) = fields.get("enabled")
            && !self.boolean(enabled, &at(path, "enabled"))?
        {
            return placed(Entry::Disabled(name));
        }
        let instrument = self.instrument(&fields, path);
        self.check_name(name_node, &name, instrument.as_ref(), path);
        let help = match fields.get("help") {
            Some(help) => self.text(help, &at(path, "help"), "one sentence for `# HELP`"),
            None => self.mistake(node, path, "a metric needs a `help` text"),
        };
        let when = match fields.get("when") {
            Some(when) => self.condition(when, &at(path, "when")),
            None => self.mistake(
                node,
                path,
                "a metric needs `when`: which spans count; `{}` for all of them",
            ),
        };
        let value = match fields.get("value") {
            Some(value) => self.measure(value, &at(path, "value")),
            None => Some(Measure::One(Expression::Constant(1.0))),
        };
        let labels = self.labels(fields.get("labels"), value.as_ref(), &at(path, "labels"));
        if self.mistakes.len() > before {
            return None;
        }
        placed(Entry::Rule(Box::new(Rule {
            name,
            help: help?,
            instrument: instrument?,
            when: when?,
            value: value?,
            labels,
        })))
    }

    fn instrument(&mut self, fields: &Fields<'_>, path: &str) -> Option<Instrument> {
        let Some(kind) = fields.get("type") else {
            return self.mistake(fields.node, path, "a metric needs a `type`: counter or histogram");
        };
        let buckets = fields.get("buckets");
        let kind_path = at(path, "type");
        match self.text(kind, &kind_path, "counter or histogram")?.as_str() {
            "counter" => match buckets {
                Some(buckets) => self.mistake(buckets, &at(path, "buckets"), "a counter has no buckets"),
                None => Some(Instrument::Counter),
            },
            "histogram" => match buckets {
                Some(buckets) => self.buckets(buckets, &at(path, "buckets")),
                None => self.mistake(
                    fields.node,
                    path,
                    "a histogram needs `buckets`: its upper bounds, ascending",
                ),
            },
            other => self.mistake(
                kind,
                &kind_path,
                format!("expected counter or histogram, got `{other}`"),
            ),
        }
    }

    fn buckets(&mut self, node: &Node, path: &str) -> Option<Instrument> {
        let mut buckets: Vec<f64> = Vec::new();
        for (index, item) in self.items(node, path).iter().enumerate() {
            let item_path = format!("{path}[{index}]");
            let bound = self.number(item, &item_path)?;
            if buckets.last().is_some_and(|last| bound <= *last) {
                return self.mistake(item, &item_path, "expected upper bounds in ascending order");
            }
            buckets.push(bound);
        }
        match buckets.len() {
            0 => self.mistake(node, path, "expected at least one upper bound"),
            1..=100 => Some(Instrument::Histogram { buckets }),
            _ => self.mistake(node, path, "expected at most 100 upper bounds"),
        }
    }

    fn check_name(&mut self, node: &Node, name: &str, instrument: Option<&Instrument>, path: &str) {
        let path = at(path, "name");
        let message = match instrument {
            _ if !is_metric_name(name) => "expected letters, digits and `_`, not beginning with a digit",
            _ if reserved_metric(name) => "names that begin with `spanledger_` or `process_` are the program's own",
            Some(Instrument::Counter) if !name.ends_with("_total") => "the name of a counter ends in `_total`",
            Some(Instrument::Histogram { .. })
                if ["_total", "_count", "_sum", "_bucket", "_created"]
                    .iter()
                    .any(|end| name.ends_with(end)) =>
            {
                "the name of a histogram does not end in `_total`, `_count`, `_sum`, `_bucket` or `_created`"
            }
            _ => return,
        };
        self.mistake::<()>(node, &path, message);
    }
}

fn at(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn words() -> impl Iterator<Item = &'static str> {
    Named::ALL.iter().map(|entry| entry.1)
}
