//! Reading settings from the tree, and the record of what was read.
//!
//! # Invariants
//!
//! * Every key is named by exactly one call, with its default and meaning. What no call named is unknown, and a mistake.
//! * Reading never stops at a mistake: the default stands in, so that all mistakes are found in one run.

use std::cell::RefCell;

use super::expand::{Environment, Notes, expand};
use super::setting::Setting;
use super::yaml::{Entry, Location, Node, Value, parse};
use super::{Mistake, Mistakes};

/// One key that was read.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// Path, such as `journal.max_size`; a section's record has the section's path.
    pub path: Vec<String>,
    /// What it is for, in one line.
    pub meaning: &'static str,
    /// What the record is of.
    pub of: RecordOf,
}

/// What a [`KeyRecord`] is of.
#[derive(Debug, Clone)]
pub enum RecordOf {
    /// A group of settings.
    Section,
    /// A setting.
    Setting {
        /// The kind of value.
        kind: String,
        /// The default, as YAML before substitution; empty: none.
        default: &'static str,
        /// The value in force.
        value: Node,
        /// What of the value must not be printed.
        secret: Secret,
    },
}

/// What of a value must not be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// All of it may be.
    Nothing,
    /// The query of a URL, in which some services want a key.
    Query,
    /// All of it; of the URL of a database the password.
    Everything,
}

/// Collects mistakes and records while settings are read.
pub struct Reader<'a> {
    environment: &'a dyn Environment,
    describing: bool,
    mistakes: RefCell<Vec<Mistake>>,
    records: RefCell<Vec<KeyRecord>>,
}

impl<'a> Reader<'a> {
    /// A reader of a user's configuration.
    pub fn new(environment: &'a dyn Environment) -> Self {
        Self {
            environment,
            describing: false,
            mistakes: RefCell::default(),
            records: RefCell::default(),
        }
    }

    /// A reader for the example and the reference: optional sections are shown as if they were given.
    pub fn describing(environment: &'a dyn Environment) -> Self {
        Self {
            describing: true,
            ..Self::new(environment)
        }
    }

    /// Reads `root` through `read` and checks that no key is left over.
    pub fn read<T>(&self, root: &Node, read: impl FnOnce(&Section<'_>) -> T) -> T {
        let section = Section {
            reader: self,
            node: Some(root),
            at: Some(root.at.clone()),
            path: Vec::new(),
            known: RefCell::default(),
        };
        section.expect_map();
        let value = read(&section);
        section.report_unknown_keys();
        value
    }

    /// What was read, in order, whatever the mistakes.
    pub fn records(self) -> Vec<KeyRecord> {
        self.records.into_inner()
    }

    /// What was read, in order, or all mistakes.
    ///
    /// # Errors
    ///
    /// All mistakes that were found.
    pub fn finish(self) -> Result<Vec<KeyRecord>, Mistakes> {
        let mistakes = self.mistakes.into_inner();
        if mistakes.is_empty() {
            Ok(self.records.into_inner())
        } else {
            Err(Mistakes(mistakes))
        }
    }
}

/// A map of the configuration whose keys are being read.
pub struct Section<'r> {
    reader: &'r Reader<'r>,
    node: Option<&'r Node>,
    /// Where its key stands.
    at: Option<Location>,
    path: Vec<String>,
    known: RefCell<Vec<String>>,
}

impl Section<'_> {
    /// A setting. `default` is YAML, substituted like a user's text.
    pub fn get<T: Setting + Default>(&self, key: &'static str, default: &'static str, meaning: &'static str) -> T {
        self.setting(key, default, meaning, T::KIND.to_owned(), Secret::Nothing, T::from_node)
    }

    /// A setting that is never printed.
    pub fn secret<T: Setting + Default>(&self, key: &'static str, default: &'static str, meaning: &'static str) -> T {
        self.setting(
            key,
            default,
            meaning,
            T::KIND.to_owned(),
            Secret::Everything,
            T::from_node,
        )
    }

    /// The URL of a service, of which the query is never printed.
    pub fn url(&self, key: &'static str, meaning: &'static str) -> String {
        self.setting(
            key,
            "",
            meaning,
            String::KIND.to_owned(),
            Secret::Query,
            String::from_node,
        )
    }

    /// A setting with a parser of its own.
    pub fn parsed<T: Default>(
        &self,
        key: &'static str,
        default: &'static str,
        meaning: &'static str,
        kind: &'static str,
        parse: impl Fn(&Node) -> Result<T, String>,
    ) -> T {
        self.setting(key, default, meaning, kind.to_owned(), Secret::Nothing, parse)
    }

    /// Like [`Section::parsed`], never printed.
    pub fn parsed_secret<T: Default>(
        &self,
        key: &'static str,
        default: &'static str,
        meaning: &'static str,
        kind: &'static str,
        parse: impl Fn(&Node) -> Result<T, String>,
    ) -> T {
        self.setting(key, default, meaning, kind.to_owned(), Secret::Everything, parse)
    }

    /// A setting with a fixed set of values.
    pub fn choice<T: Copy + Default>(
        &self,
        key: &'static str,
        default: &'static str,
        meaning: &'static str,
        choices: &[(&'static str, T)],
    ) -> T {
        let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        self.setting(key, default, meaning, names.join(" \\| "), Secret::Nothing, |node| {
            let written = String::from_node(node)?;
            let found = choices
                .iter()
                .find(|(name, _)| *name == written)
                .map(|(_, value)| *value);
            found.ok_or_else(|| format!("expected one of {}, got `{written}`", names.join(", ")))
        })
    }

    /// A group of settings.
    pub fn section<T>(&self, key: &'static str, meaning: &'static str, read: impl FnOnce(&Section<'_>) -> T) -> T {
        self.known.borrow_mut().push(key.to_owned());
        self.nested(key, self.node.and_then(|node| node.entry(key)), meaning, read)
    }

    /// A group of groups under names that the user chooses, such as `exporters`. `example` is the name under which the
    /// reference describes it.
    pub fn named_sections<T>(
        &self,
        key: &'static str,
        example: &'static str,
        meaning: &'static str,
        mut read: impl FnMut(&str, &Section<'_>) -> T,
    ) -> Vec<T> {
        self.section(key, meaning, |group| {
            let Some(Value::Mapping(entries)) = group.node.map(|node| &node.value) else {
                if group.reader.describing {
                    group.nested(example, None, "", |section| read(example, section));
                }
                return Vec::new();
            };
            let names = entries.iter().map(|entry| entry.key.clone());
            group.known.borrow_mut().extend(names);
            entries
                .iter()
                .map(|entry| group.nested(&entry.key, Some(entry), "", |section| read(&entry.key, section)))
                .collect()
        })
    }

    /// Whether the user gave `key` a value.
    pub fn has(&self, key: &str) -> bool {
        self.node
            .and_then(|node| node.get(key))
            .is_some_and(|node| !node.is_null())
    }

    /// Adds a mistake about `key`, found by a check across settings. Where the key is not given, the section is named.
    pub fn mistake(&self, key: &str, message: impl Into<String>) {
        let given = self.node.and_then(|node| node.get(key)).map(|node| node.at.clone());
        self.report(given.or_else(|| self.at.clone()), Some(key), message.into());
    }

    /// Adds a mistake about the section itself, such as its name.
    pub fn mistake_of_section(&self, message: impl Into<String>) {
        self.report(self.at.clone(), None, message.into());
    }

    fn setting<T: Default>(
        &self,
        key: &'static str,
        default: &'static str,
        meaning: &'static str,
        kind: String,
        secret: Secret,
        parse: impl Fn(&Node) -> Result<T, String>,
    ) -> T {
        self.known.borrow_mut().push(key.to_owned());
        let given = self.node.and_then(|node| node.get(key)).filter(|node| !node.is_null());
        let default_node = self.default_node(key, default);
        let node = given.unwrap_or(&default_node);
        let value = parse(node).unwrap_or_else(|message| {
            self.report(Some(node.at.clone()), Some(key), message);
            parse(&default_node).unwrap_or_default()
        });
        let of = RecordOf::Setting {
            kind,
            default,
            value: node.clone(),
            secret,
        };
        self.reader.records.borrow_mut().push(KeyRecord {
            path: self.path_of(key),
            meaning,
            of,
        });
        value
    }

    fn default_node(&self, key: &str, default: &'static str) -> Node {
        let parsed = parse("built-in default", default)
            .and_then(|node| expand(node, self.reader.environment, &mut Notes::default()));
        parsed.unwrap_or_else(|mistakes| {
            self.report(None, Some(key), format!("built-in default: {mistakes}"));
            Node::null(Location {
                file: "built-in default".into(),
                line: 0,
                column: 0,
            })
        })
    }

    fn nested<T>(
        &self,
        key: &str,
        entry: Option<&Entry>,
        meaning: &'static str,
        read: impl FnOnce(&Section<'_>) -> T,
    ) -> T {
        let path = self.path_of(key);
        self.reader.records.borrow_mut().push(KeyRecord {
            path: path.clone(),
            meaning,
            of: RecordOf::Section,
        });
        let section = Section {
            reader: self.reader,
            node: entry.map(|entry| &entry.value),
            at: entry.map(|entry| entry.key_at.clone()),
            path,
            known: RefCell::default(),
        };
        section.expect_map();
        let value = read(&section);
        section.report_unknown_keys();
        value
    }

    fn expect_map(&self) {
        if let Some(node) = self.node
            && !matches!(node.value, Value::Null | Value::Mapping(_))
        {
            self.report(
                Some(node.at.clone()),
                None,
                format!("expected a map of settings, got {}", node.kind()),
            );
        }
    }

    fn report_unknown_keys(&self) {
        let Some(Value::Mapping(entries)) = self.node.map(|node| &node.value) else {
            return;
        };
        let known = self.known.borrow();
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key)) {
            let message = match nearest(&entry.key, &known) {
                Some(nearest) => format!("unknown key; did you mean `{nearest}`?"),
                None => format!("unknown key; expected one of {}", known.join(", ")),
            };
            self.report(Some(entry.key_at.clone()), Some(&entry.key), message);
        }
    }

    fn report(&self, at: Option<Location>, key: Option<&str>, message: String) {
        let path = key.map_or_else(|| self.path.clone(), |key| self.path_of(key)).join(".");
        self.reader.mistakes.borrow_mut().push(Mistake { at, path, message });
    }

    fn path_of(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }
}

/// The known key that a mistyped one most likely meant.
pub fn nearest<'k>(key: &str, known: &'k [String]) -> Option<&'k str> {
    let scored = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate));
    let (distance, candidate) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + key.len().min(candidate.len()) / 3).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::expand::tests::Fixed;
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Journal {
        directory: String,
        retain: Duration,
        when_full: u8,
        names: Vec<String>,
    }

    fn read_journal(root: &Section<'_>) -> Journal {
        let names = root.named_sections("exporters", "otlp", "Backends.", |name, section| {
            let endpoint: String = section.get("endpoint", "", "Where to.");
            format!("{name}={endpoint}")
        });
        root.section("journal", "The journal.", |journal| Journal {
            directory: journal.get("directory", "${env:DATA:-./data}/journal", "Where it lies."),
            retain: journal.get("retain", "1h", "How long."),
            when_full: journal.choice("when_full", "refuse", "What then.", &[("refuse", 1), ("skip", 2)]),
            names,
        })
    }

    fn read(text: &str) -> Result<Journal, Mistakes> {
        let environment = Fixed(&[("DATA", "/var/lib/x")]);
        let reader = Reader::new(&environment);
        let journal = reader.read(&parse("c.yaml", text)?, read_journal);
        reader.finish().map(|_| journal)
    }

    #[test]
    fn defaults_stand_in_for_what_is_not_given_and_are_substituted() {
        let journal = read("").unwrap();
        let expected = Journal {
            directory: "/var/lib/x/journal".into(),
            retain: Duration::from_secs(3600),
            when_full: 1,
            names: vec![],
        };
        assert_eq!(journal, expected);
    }

    #[test]
    fn named_sections_keep_their_names_in_order() {
        let journal = read("exporters:\n  otlp/b: {endpoint: x}\n  otlp: {endpoint: y}\n").unwrap();
        assert_eq!(journal.names, ["otlp/b=x", "otlp=y"]);
    }

    #[test]
    fn all_mistakes_are_found_with_line_path_expectation_and_nearest_key() {
        let text = "journal:\n  retian: 2h\n  when_full: explode\n  directory: [a]\nexporters: 5\nmetrics: {}\n";
        let mistakes = read(text).unwrap_err().to_string();
        let expected = "c.yaml:5:12: exporters: expected a map of settings, got a single value\n\
            c.yaml:4:14: journal.directory: expected a text, got a list\n\
            c.yaml:3:14: journal.when_full: expected one of refuse, skip, got `explode`\n\
            c.yaml:2:3: journal.retian: unknown key; did you mean `retain`?\n\
            c.yaml:6:1: metrics: unknown key; expected one of exporters, journal";
        assert_eq!(mistakes, expected);
    }
}
