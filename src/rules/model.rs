//! What a rule says, as plain data: read by [`super::read`], printed by [`super::print`], compiled by
//! [`super::compile`].

use super::named::Named;

/// One metric: which spans, which instrument, which value, which labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name of the metric as it is exposed; of a counter it ends in `_total`.
    pub name: String,
    /// The `# HELP` text.
    pub help: String,
    /// Counter or histogram.
    pub instrument: Instrument,
    /// Which spans count.
    pub when: Condition,
    /// What is added or observed for each of them.
    pub value: Measure,
    /// Label names and where their values come from, in the order they are exposed.
    pub labels: Vec<(String, Label)>,
}

/// The kind of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Instrument {
    /// A sum that only grows.
    Counter,
    /// A histogram with fixed upper bounds, ascending, without `+Inf`.
    Histogram {
        /// The upper bounds.
        buckets: Vec<f64>,
    },
}

/// Where a value is read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// An attribute: `span.tool_id`, `resource.service.name`, `scope.x`.
    Attribute(Level, String),
    /// A notion that the program derives itself: `duration_ms`, `tool_outcome`, ...
    Named(Named),
}

/// What carries an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The span itself.
    Span,
    /// The resource that the span belongs to.
    Resource,
    /// The instrumentation scope that the span belongs to.
    Scope,
}

impl Level {
    /// All levels.
    pub const ALL: [Level; 3] = [Level::Span, Level::Resource, Level::Scope];

    /// The word before the first dot of a source.
    pub fn word(self) -> &'static str {
        match self {
            Level::Span => "span",
            Level::Resource => "resource",
            Level::Scope => "scope",
        }
    }
}

/// Which spans a rule counts.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// At least one holds.
    Any(Vec<Condition>),
    /// All hold; of none, every span.
    All(Vec<Condition>),
    /// The inner one does not hold.
    Not(Box<Condition>),
    /// A test of one source.
    Test(Source, Test),
}

/// A test of one source. A missing value passes none.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// There is a value other than the empty text; of a predicate, it holds.
    Exists,
    /// The value is one of these, compared as text.
    OneOf(Vec<String>),
    /// The text begins with this.
    StartsWith(String),
    /// The number is at least this.
    AtLeast(f64),
    /// The number is below this.
    Below(f64),
}

/// What a rule measures per span.
#[derive(Debug, Clone, PartialEq)]
pub enum Measure {
    /// One value.
    One(Expression),
    /// Several values, told apart by one more label.
    Split {
        /// Name of that label.
        label: String,
        /// The label's value, and what is measured under it.
        parts: Vec<(String, Expression)>,
    },
}

/// A number computed from a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// The same for every span.
    Constant(f64),
    /// Read from a source; usable when finite and not negative.
    Source(Source),
    /// The first that gives a number.
    FirstOf(Vec<Expression>),
    /// The sum of those that give a number; missing when none does.
    SumOf(Vec<Expression>),
    /// The inner number times a factor.
    Scaled(Box<Expression>, f64),
}

/// Where the value of a label comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// The same on every series.
    Constant(String),
    /// Read from the span.
    Read(Reading),
}

/// How a label is read from a span: sources, conversion, map, allowed values; in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// The first that gives a value is taken.
    pub first_of: Vec<Source>,
    /// How the value becomes text.
    pub conversion: Conversion,
    /// Replacements of whole values.
    pub map: Vec<(String, String)>,
    /// Allowed values; empty: all.
    pub one_of: Vec<String>,
    /// Stands for a value that is not allowed.
    pub otherwise: Option<String>,
    /// Whether a missing value is `""`; else it is `unknown`.
    pub optional: bool,
}

/// How a value becomes the text of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conversion {
    /// As it is: numbers in decimal, booleans as `true` and `false`; whole doubles like integers.
    #[default]
    Text,
    /// A whole number, also from text; anything else is missing.
    Integer,
    /// `true` or `false`, also from text; anything else is missing.
    Boolean,
    /// The name of a signal: `killed`, `9` and `sigkill` are all `SIGKILL`.
    Signal,
}

impl Conversion {
    /// All conversions and their words.
    pub const WORDS: [(&'static str, Conversion); 4] = [
        ("text", Conversion::Text),
        ("integer", Conversion::Integer),
        ("boolean", Conversion::Boolean),
        ("signal", Conversion::Signal),
    ];
}

/// Stands for a value that is missing and not optional, or not among the allowed ones.
pub const UNKNOWN: &str = "unknown";

impl Reading {
    /// The label's value when no source gives one.
    pub fn missing(&self) -> &str {
        if self.optional { "" } else { UNKNOWN }
    }

    /// The label's value when the value is not allowed.
    pub fn disallowed(&self) -> &str {
        self.otherwise.as_deref().unwrap_or(UNKNOWN)
    }
}

impl Instrument {
    /// The word of the rule language, and of `# TYPE`.
    pub fn word(&self) -> &'static str {
        match self {
            Instrument::Counter => "counter",
            Instrument::Histogram { .. } => "histogram",
        }
    }
}

impl Rule {
    /// Names of the labels that the rule itself gives its series, in order.
    pub fn label_names(&self) -> impl Iterator<Item = &str> {
        let split = match &self.value {
            Measure::Split { label, .. } => Some(label.as_str()),
            Measure::One(_) => None,
        };
        self.labels.iter().map(|(name, _)| name.as_str()).chain(split)
    }

    /// Name of the metric family in OpenMetrics, where the `_total` of a counter belongs to its samples.
    pub fn family(&self) -> &str {
        match self.instrument {
            Instrument::Counter => self.name.strip_suffix("_total").unwrap_or(&self.name),
            Instrument::Histogram { .. } => &self.name,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Attribute(level, key) => write!(out, "{}.{key}", level.word()),
            Source::Named(named) => out.write_str(named.word()),
        }
    }
}
