//! What statistics make of packed rows, and of the rows that are not packed.

use std::collections::{BTreeMap, HashMap};

use chrono::DateTime;
use serde_json::{Value, json};

use super::aggregate::{Aggregate, Gathering};
use super::database::Cell;
use super::packed::{Key, PackedRow, Values, Visitor};
use crate::columns::Text;

/// Values, each with how many rows have it.
pub(super) type Counts = Vec<(Option<String>, u64)>;

/// All rows as one.
impl Visitor for Gathering {
    fn row(&mut self, row: &PackedRow) {
        self.add_row(row);
    }

    fn clear(&mut self) {
        Gathering::clear(self);
    }

    fn held(&self) -> usize {
        Gathering::held(self)
    }
}

/// How many rows there are.
impl Visitor for u64 {
    fn row(&mut self, _: &PackedRow) {
        *self += 1;
    }

    fn clear(&mut self) {
        *self = 0;
    }

    fn held(&self) -> usize {
        0
    }
}

/// Rows by the number of their value, and by time.
pub(super) struct Groups {
    values: Values,
    /// In seconds.
    step: Option<i64>,
    parts: HashMap<(usize, i64), Gathering>,
    /// Bytes that the parts hold beside themselves.
    held: usize,
}

/// Bytes for a group: its place in a map that may be half empty, and once more when all are put in order.
const GROUP: usize = 3 * size_of::<((usize, i64), Gathering)>();

/// Groups as [`Groups`] found them: the names of their values by number, and what is known of each.
pub(super) struct Grouped {
    pub(super) names: Vec<Option<String>>,
    pub(super) parts: Vec<((usize, i64), Aggregate)>,
}

impl Groups {
    /// Without a key packed rows are not told apart by any value; without a step not by time.
    pub(super) fn of(key: Option<Key>, step: Option<i64>) -> Groups {
        Groups {
            values: Values::of(key),
            step,
            parts: HashMap::new(),
            held: 0,
        }
    }

    /// Adds what [`super::aggregate::columns`] selected of rows with this value, at this time.
    pub(super) fn add(&mut self, value: Option<String>, at: i64, cells: &[Cell]) {
        let number = self.values.named(value);
        self.change((number, at), |part| part.add(cells));
    }

    fn change(&mut self, group: (usize, i64), add: impl FnOnce(&mut Gathering)) {
        let part = self.parts.entry(group).or_default();
        let before = part.held();
        add(part);
        self.held += part.held() - before;
    }

    pub(super) fn finish(self) -> Grouped {
        let parts = self.parts.into_iter();
        Grouped {
            names: self.values.into_names(),
            parts: parts.map(|(group, part)| (group, part.finish())).collect(),
        }
    }
}

impl Visitor for Groups {
    fn texts(&mut self, texts: &[&str]) {
        self.values.texts(texts);
    }

    fn row(&mut self, row: &PackedRow) {
        let number = self.values.number(row);
        let at = self.step.map_or(0, |step| row.at.div_euclid(step * 1_000_000) * step);
        self.change((number, at), |part| part.add_row(row));
    }

    fn clear(&mut self) {
        self.values.clear();
        self.parts = HashMap::new();
        self.held = 0;
    }

    fn held(&self) -> usize {
        self.held + self.parts.len() * GROUP + self.values.held()
    }
}

/// Rows counted by one of their values.
struct Tally {
    values: Values,
    /// By the number of the value.
    counts: Vec<u64>,
}

impl Tally {
    fn of(key: Option<Key>) -> Tally {
        Tally {
            values: Values::of(key),
            counts: Vec::new(),
        }
    }

    fn add(&mut self, value: Option<String>, rows: u64) {
        let number = self.values.named(value);
        self.count(number, rows);
    }

    fn count(&mut self, number: usize, rows: u64) {
        if self.counts.len() <= number {
            self.counts.resize(number + 1, 0);
        }
        self.counts[number] += rows;
    }

    fn held(&self) -> usize {
        self.values.held() + 2 * self.counts.capacity() * size_of::<u64>()
    }

    /// The values that there are, each with its rows.
    fn finish(self) -> impl Iterator<Item = (Option<String>, u64)> {
        // A value that no row has is none: outcomes are numbered before they are met.
        let counted = self.values.into_names().into_iter().zip(self.counts);
        counted.filter(|(_, rows)| *rows > 0)
    }
}

impl Visitor for Tally {
    fn texts(&mut self, texts: &[&str]) {
        self.values.texts(texts);
    }

    fn row(&mut self, row: &PackedRow) {
        let number = self.values.number(row);
        self.count(number, 1);
    }

    fn clear(&mut self) {
        self.values.clear();
        self.counts.clear();
    }

    fn held(&self) -> usize {
        Tally::held(self)
    }
}

/// Rows counted by each of several values.
pub(super) struct Facets(Vec<Tally>);

impl Facets {
    /// Without a key, values are told apart that packed rows do not have.
    pub(super) fn of(keys: impl IntoIterator<Item = Option<Key>>) -> Facets {
        Facets(keys.into_iter().map(Tally::of).collect())
    }

    /// Adds so many rows with these values, in the order of the keys.
    pub(super) fn add(&mut self, values: impl IntoIterator<Item = Option<String>>, rows: u64) {
        let tallies = self.0.iter_mut().zip(values);
        tallies.for_each(|(tally, value)| tally.add(value, rows));
    }

    /// In the order of the keys.
    pub(super) fn finish(self) -> Vec<Counts> {
        self.0.into_iter().map(|tally| tally.finish().collect()).collect()
    }
}

impl Visitor for Facets {
    fn texts(&mut self, texts: &[&str]) {
        self.0.iter_mut().for_each(|tally| tally.texts(texts));
    }

    fn row(&mut self, row: &PackedRow) {
        self.0.iter_mut().for_each(|tally| tally.row(row));
    }

    fn clear(&mut self) {
        self.0.iter_mut().for_each(Tally::clear);
    }

    fn held(&self) -> usize {
        self.0.iter().map(Tally::held).sum()
    }
}

/// What `/code-agents/analytics` tells.
pub(super) struct Analytics {
    pub(super) total: Aggregate,
    pub(super) runtimes: BTreeMap<String, u64>,
    pub(super) languages: BTreeMap<String, u64>,
    /// As the backend lists days: only those with executions, oldest first.
    pub(super) days: Vec<Value>,
    /// Inputs that were validated, and how many of these failed.
    pub(super) attempts: u64,
    pub(super) failures: u64,
}

/// [`Analytics`] in the making.
pub(super) struct Analysis {
    total: Gathering,
    runtimes: Tally,
    languages: Tally,
    /// Executions and successes, by the number of days since 1970.
    days: BTreeMap<i64, [u64; 2]>,
    validations: [u64; 2],
}

/// Bytes for a day, in a tree that may be half empty.
const DAY: usize = 2 * size_of::<(i64, [u64; 2])>();

impl Default for Analysis {
    fn default() -> Analysis {
        let tally = |text| Tally::of(Some(Key::Text(text)));
        Analysis {
            total: Gathering::default(),
            runtimes: tally(Text::Runtime),
            languages: tally(Text::Language),
            days: BTreeMap::new(),
            validations: [0; 2],
        }
    }
}

impl Analysis {
    fn count_day(&mut self, day: i64, rows: u64, successes: u64) {
        let [all, good] = self.days.entry(day).or_default();
        *all += rows;
        *good += successes;
    }

    /// Adds runtime, language, day, validations, failed ones, and what [`super::aggregate::columns`] selects.
    pub(super) fn add(&mut self, row: &[Cell]) {
        let whole = |index: usize| row[index].integer().unwrap_or_default().cast_unsigned();
        let (rows, successes) = (whole(6), whole(7));
        self.runtimes.add(row[0].clone().into_text(), rows);
        self.languages.add(row[1].clone().into_text(), rows);
        let day = row[2].clone().into_text().unwrap_or_default();
        if let Ok(day) = chrono::NaiveDate::parse_from_str(&day, "%Y-%m-%d") {
            let day = day.signed_duration_since(chrono::NaiveDate::default()).num_days();
            self.count_day(day, rows, successes);
        }
        self.validations[0] += whole(3);
        self.validations[1] += whole(4);
        self.total.add(&row[5..]);
    }

    pub(super) fn finish(self) -> Analytics {
        let named = |tally: Tally| {
            let counts = tally.finish();
            counts.map(|(name, rows)| (name.unwrap_or_default(), rows)).collect()
        };
        let day = |(day, [all, good]): (i64, [u64; 2])| {
            let date = DateTime::from_timestamp(day * 86_400, 0).map(|at| at.format("%Y-%m-%d").to_string());
            json!({"date": date, "count": all, "successCount": good, "errorCount": all - good})
        };
        Analytics {
            total: self.total.finish(),
            runtimes: named(self.runtimes),
            languages: named(self.languages),
            days: self.days.into_iter().map(day).collect(),
            attempts: self.validations[0],
            failures: self.validations[1],
        }
    }
}

impl Visitor for Analysis {
    fn texts(&mut self, texts: &[&str]) {
        self.runtimes.texts(texts);
        self.languages.texts(texts);
    }

    fn row(&mut self, row: &PackedRow) {
        self.total.add_row(row);
        self.runtimes.row(row);
        self.languages.row(row);
        self.count_day(row.at.div_euclid(86_400_000_000), 1, u64::from(row.success));
        self.validations[0] += u64::from(row.validation.is_some());
        self.validations[1] += u64::from(row.validation == Some(false));
    }

    fn clear(&mut self) {
        *self = Analysis::default();
    }

    fn held(&self) -> usize {
        let days = self.days.len() * DAY;
        self.total.held() + self.runtimes.held() + self.languages.held() + days
    }
}
