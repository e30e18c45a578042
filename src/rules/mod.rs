//! The metric catalogue and users' rules, compiled to a matcher.
//!
//! A metric is one rule: which spans, which instrument, which value, which labels. The built-in catalogue is a rules
//! file inside the binary, `catalogue.yaml`; the language is described in `docs/metric-rules.md`.
//!
//! * [`model`]: what a rule says, as plain data; [`named`]: the notions that the program derives itself.
//! * [`semantics`] and [`signal`]: what spans mean; shared with the rows, so that rows and metrics cannot disagree.
//! * [`telling`]: which spans may tell something of an execution, by their keys and names alone.
//! * [`prices`]: what runs and model calls are estimated to cost.
//! * `read` and `print`: rules from and to YAML; [`check`]: names.
//! * `compile` and [`matcher`]: all rules as one program over a span, which reads its attributes once and allocates
//!   nothing; [`series_key`]: the values of labels as one string of bytes.
//! * [`table`]: the catalogue as documentation.
//!
//! This room knows no clock, no files but rules files, and no sockets.

pub mod check;
mod compile;
mod datum;
pub(crate) mod keys;
pub mod matcher;
pub mod model;
pub mod named;
pub mod prices;
mod print;
mod read;
pub mod semantics;
pub mod series_key;
pub mod signal;
pub mod table;
pub mod telling;

use std::path::Path;

use highway::{HighwayHash, HighwayHasher, Key};

use crate::config::{Location, Mistake, Mistakes, yaml};

pub(crate) use datum::quantity;
use model::Rule;
use prices::Prices;
use read::Entry;

const BUILT_IN: &str = include_str!("catalogue.yaml");

/// A file of rules, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// Its name in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl RuleFile {
    /// Reads a file named in `metrics.rules`.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn read(path: &Path) -> Result<Self, Mistake> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => Err(Mistake {
                at: None,
                path: "metrics.rules".to_owned(),
                message: format!("cannot read {name}: {error}"),
            }),
        }
    }
}

/// The identity of what a metric counts: a metric whose digest changes starts anew.
pub type RuleDigest = [u8; 16];

/// The metrics in force: the built-in ones, as overridden and joined by the user's rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    rules: Vec<Rule>,
    disabled: Vec<String>,
    /// Label name and attribute key.
    resource_labels: Vec<(String, String)>,
    /// Label name and value.
    const_labels: Vec<(String, String)>,
    prices: Prices,
}

impl Catalogue {
    /// The built-in metrics alone.
    pub fn built_in() -> Self {
        match Self::load(&[], &[], &[]) {
            Ok(catalogue) => catalogue,
            // The text is part of the program, and a test loads it.
            Err(mistakes) => unreachable!("{mistakes}"),
        }
    }

    /// The built-in metrics and the rules of `files`, later ones overriding earlier ones by name. Every series also
    /// gets `resource_labels` (attribute keys of the resource) and `const_labels` (name and value).
    ///
    /// # Errors
    ///
    /// All mistakes in all files and labels.
    pub fn load(
        files: &[RuleFile],
        resource_labels: &[String],
        const_labels: &[(String, String)],
    ) -> Result<Self, Mistakes> {
        let built_in = RuleFile {
            name: "built-in metrics".to_owned(),
            text: BUILT_IN.to_owned(),
        };
        let mut mistakes = Vec::new();
        let mut placed = Vec::new();
        for file in std::iter::once(&built_in).chain(files) {
            let root = match yaml::parse(&file.name, &file.text) {
                Ok(root) => root,
                Err(Mistakes(more)) => {
                    mistakes.extend(more);
                    continue;
                }
            };
            let before = mistakes.len();
            let entries = read::read(&root, &mut mistakes);
            mistakes[before..].sort_by_key(|mistake| mistake.at.as_ref().map(|at| (at.line, at.column)));
            for (index, entry) in entries.iter().enumerate() {
                let earlier = entries[..index]
                    .iter()
                    .find(|earlier| earlier.entry.name() == entry.entry.name());
                if let Some(earlier) = earlier {
                    let message = format!("the metric is given twice; the first is in line {}", earlier.at.line);
                    mistakes.push(mistake(Some(&entry.at), &entry.path, message));
                }
            }
            for entry in entries {
                override_by_name(&mut placed, entry);
            }
        }
        let resource_labels = named_labels(resource_labels);
        check_families(&placed, &mut mistakes);
        check_common_labels(&placed, &resource_labels, const_labels, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let mut catalogue = Self {
            rules: Vec::new(),
            disabled: Vec::new(),
            resource_labels,
            const_labels: const_labels.to_vec(),
            prices: Prices::default(),
        };
        for read::Placed { entry, .. } in placed {
            match entry {
                Entry::Rule(rule) => catalogue.rules.push(*rule),
                Entry::Disabled(name) => catalogue.disabled.push(name),
            }
        }
        Ok(catalogue)
    }

    /// With prices for the notions that estimate costs. They have no part in the identity of a metric: as in life, what
    /// is counted from now on costs what it costs now, and what was counted stays.
    pub fn with_prices(self, prices: Prices) -> Self {
        Self { prices, ..self }
    }

    /// The rules in force, in the order in which they are exposed.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The names of the metrics in force.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.name.as_str())
    }

    /// Label names and attribute keys that every series takes from its resource.
    pub fn resource_labels(&self) -> &[(String, String)] {
        &self.resource_labels
    }

    /// Labels and values that every series carries.
    pub fn const_labels(&self) -> &[(String, String)] {
        &self.const_labels
    }

    /// The names of all labels of the series of `rule` but the constant ones, in the order of their values.
    pub fn series_labels<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a str> {
        let common = self.resource_labels.iter().map(|(name, _)| name.as_str());
        rule.label_names().chain(common)
    }

    /// Per rule, the identity of what it counts. Name, help text and constant labels have no part in it.
    pub fn digests(&self) -> Vec<RuleDigest> {
        let resource_labels = format!("{:?}", self.resource_labels);
        let digest = |rule: &Rule| digest(&[&print::definition(rule), &resource_labels]);
        self.rules.iter().map(digest).collect()
    }

    /// The identity of the whole catalogue.
    pub fn digest(&self) -> RuleDigest {
        digest(&[
            &self.to_yaml(),
            &format!("{:?}{:?}", self.resource_labels, self.const_labels),
        ])
    }

    /// The rules in force as a rules file that loads again.
    pub fn to_yaml(&self) -> String {
        let rules = self.rules.iter().map(print::rule);
        let disabled = self.disabled.iter().map(|name| print::disabled(name));
        let blocks: Vec<String> = rules.chain(disabled).collect();
        format!("metrics:\n{}", blocks.join("\n"))
    }
}

fn override_by_name(placed: &mut Vec<read::Placed>, entry: read::Placed) {
    match placed
        .iter_mut()
        .find(|earlier| earlier.entry.name() == entry.entry.name())
    {
        Some(earlier) => *earlier = entry,
        None => placed.push(entry),
    }
}

fn named_labels(keys: &[String]) -> Vec<(String, String)> {
    // `resource.service.name` is accepted for `service.name`, since that is how rules write it.
    let bare = |key: &String| key.strip_prefix("resource.").unwrap_or(key).to_owned();
    keys.iter()
        .map(bare)
        .map(|key| (check::label_name_of(&key), key))
        .collect()
}

/// Two metrics may not have the same family in OpenMetrics: `x_total` the counter and `x` the histogram.
fn check_families(placed: &[read::Placed], mistakes: &mut Vec<Mistake>) {
    for (index, entry) in placed.iter().enumerate() {
        let Entry::Rule(rule) = &entry.entry else { continue };
        let clashes = |earlier: &&read::Placed| match &earlier.entry {
            Entry::Rule(other) => other.family() == rule.family(),
            Entry::Disabled(_) => false,
        };
        if let Some(earlier) = placed[..index].iter().find(clashes) {
            let message = format!(
                "`{}` and `{}` are one family in OpenMetrics; one of them needs another name",
                earlier.entry.name(),
                rule.name
            );
            mistakes.push(mistake(Some(&entry.at), &entry.path, message));
        }
    }
}

fn check_common_labels(
    placed: &[read::Placed],
    resource_labels: &[(String, String)],
    const_labels: &[(String, String)],
    mistakes: &mut Vec<Mistake>,
) {
    const RESOURCE: &str = "metrics.resource_labels";
    const CONSTANT: &str = "metrics.const_labels";
    for (_, key) in resource_labels.iter().filter(|(_, key)| check::identifies_someone(key)) {
        let message = format!("`{key}`: ids of users, organizations, traces and executions are never labels");
        mistakes.push(mistake(None, RESOURCE, message));
    }
    for (name, _) in const_labels.iter().filter(|(name, _)| !check::is_label_name(name)) {
        let message = format!("`{name}`: expected letters, digits and `_`, not beginning with a digit");
        mistakes.push(mistake(None, CONSTANT, message));
    }
    let common: Vec<(&str, &str)> = resource_labels
        .iter()
        .map(|(name, _)| (RESOURCE, name.as_str()))
        .chain(const_labels.iter().map(|(name, _)| (CONSTANT, name.as_str())))
        .collect();
    for (index, (key, name)) in common.iter().enumerate() {
        if check::reserved_label(name) {
            mistakes.push(mistake(None, key, format!("the label name `{name}` is reserved")));
        }
        if let Some((other, _)) = common[..index].iter().find(|(_, earlier)| earlier == name) {
            mistakes.push(mistake(
                None,
                key,
                format!("the label `{name}` is also given by `{other}`"),
            ));
        }
        let has_label = |entry: &&read::Placed| match &entry.entry {
            Entry::Rule(rule) => rule.label_names().any(|label| label == *name),
            Entry::Disabled(_) => false,
        };
        if let Some(entry) = placed.iter().find(has_label) {
            let message = format!("the metric `{}` has a label `{name}` of its own", entry.entry.name());
            mistakes.push(mistake(None, key, message));
        }
    }
}

fn mistake(at: Option<&Location>, path: &str, message: impl Into<String>) -> Mistake {
    Mistake {
        at: at.cloned(),
        path: path.to_owned(),
        message: message.into(),
    }
}

/// A digest that is the same in every process and release.
fn digest(parts: &[&str]) -> RuleDigest {
    let mut hasher = HighwayHasher::new(Key::default());
    for part in parts {
        hasher.append(&(part.len() as u64).to_le_bytes());
        hasher.append(part.as_bytes());
    }
    let [low, high] = hasher.finalize128();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
