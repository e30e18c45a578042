//! Rows of hours that are over, as the ledger packed them ([`crate::columns`]): statistics read these instead of the rows
//! where they can. What is not packed is left to be asked of the tables, and so are hours of which any part is damaged.

use std::collections::HashMap;
use std::ops::Range;

use super::answer::Allowance;
use super::database::{Cell, Kind, Sql};
use super::filter::{Filter, RowsShown};
use super::row::{Outcome, TextColumn};
use super::timestamp::{micros_of, text_of};
use super::{QueryApi, QueryError};
use crate::columns::{HOUR_MICROS, Packed, Row, Text, TextId, hour_of};

/// Parts in one answer of the database, at most, unless one hour has more.
const PARTS: i64 = 16;

/// Times between packed hours that are asked of the tables; when there are more, the shortest packed ones are too.
const GAPS: usize = 8;

/// A packed row.
pub(super) type PackedRow = Row<TextId>;

/// Takes packed rows.
pub(super) trait Visitor: Send {
    /// The texts of the rows that follow.
    fn texts(&mut self, _: &[&str]) {}
    /// A row that passes the filter.
    fn row(&mut self, row: &PackedRow);
    /// Forgets everything that was shown.
    fn clear(&mut self);
    /// Bytes that are held for what was shown so far.
    fn held(&self) -> usize;
}

impl TextColumn {
    /// Where packed rows have it, if they do.
    pub(super) fn packed(self) -> Option<Text> {
        match self {
            TextColumn::Runtime => Some(Text::Runtime),
            TextColumn::Language => Some(Text::Language),
            TextColumn::Agent => Some(Text::Agent),
            TextColumn::Organization => Some(Text::Organization),
            TextColumn::Workspace => Some(Text::Workspace),
            TextColumn::User => Some(Text::User),
            TextColumn::Node => Some(Text::Node),
            TextColumn::Workflow => None,
        }
    }
}

/// The outcome of a packed row.
pub(super) fn outcome(row: &PackedRow) -> Outcome {
    match (row.success, row.is_timeout) {
        (true, _) => Outcome::Success,
        (false, true) => Outcome::Timeout,
        (false, false) => Outcome::Error,
    }
}

impl QueryApi {
    /// Shows `visitor` the packed rows that pass the filter; what is left to be asked of the tables.
    pub(super) async fn visit(
        &self,
        filter: &Filter,
        visitor: &mut dyn Visitor,
        allowance: Allowance,
    ) -> Result<Vec<Filter>, QueryError> {
        let Some(wanted) = Wanted::of(filter) else {
            return Ok(vec![filter.clone()]);
        };
        let mut known = match self.packed_hours(&wanted.times, allowance).await {
            Ok(known) => known,
            // A table that is not there yet has no packed hours. Whatever else is wrong would be asked of the rows for
            // nothing, and at great cost.
            Err(QueryError::TableMissing(_)) => return Ok(vec![filter.clone()]),
            Err(error) => return Err(error),
        };
        let read = loop {
            let mut visit = Visit {
                wanted: &wanted,
                visitor: &mut *visitor,
                allowance,
                read: Vec::new(),
                damaged: Vec::new(),
                is_spoilt: false,
            };
            for run in longest(runs_of(&known)) {
                self.visit_run(run, &known, &mut visit).await?;
            }
            let Visit {
                read,
                damaged,
                is_spoilt,
                ..
            } = visit;
            if !is_spoilt {
                break read;
            }
            // What was shown of one hour cannot be taken back alone. Each time there are fewer hours.
            visitor.clear();
            known.retain(|(hour, _)| !damaged.contains(hour));
        };
        Ok(left(&wanted.times, &read)
            .into_iter()
            .map(|times| Filter {
                from: times.start.map(text_of).or_else(|| filter.from.clone()),
                to: times.end.map(text_of).or_else(|| filter.to.clone()),
                ..filter.clone()
            })
            .collect())
    }

    /// How many parts each packed hour has.
    async fn packed_hours(
        &self,
        times: &Range<Option<i64>>,
        allowance: Allowance,
    ) -> Result<Vec<(i64, i64)>, QueryError> {
        let dialect = self.dialect();
        let parts = dialect.integer("count(*)");
        let mut sql = Sql::new(
            dialect,
            format!("SELECT hour, {parts} FROM {} WHERE hour >= ", self.hours()),
        );
        sql.integer(times.start.map_or(i64::MIN, hour_of))
            .push(" AND hour <= ")
            .integer(times.end.map_or(i64::MAX, hour_of))
            .push(" GROUP BY hour ORDER BY hour");
        let mut known = Vec::new();
        self.database()
            .each(sql, &[Kind::Integer, Kind::Integer], |row| {
                let whole = |cell: &Cell| cell.integer().unwrap_or_default();
                known.push((whole(&row[0]), whole(&row[1])));
                allowance.check(2 * known.len() * size_of::<(i64, i64)>())
            })
            .await?;
        Ok(known)
    }

    /// Reads packed hours that follow each other; adds them to those that were `read`, or to the damaged ones. What is in
    /// neither was taken away meanwhile.
    async fn visit_run(&self, run: Range<i64>, known: &[(i64, i64)], visit: &mut Visit<'_>) -> Result<(), QueryError> {
        let parts_of: HashMap<i64, i64> = known.iter().copied().collect();
        let parts_of = |hour: i64| parts_of.get(&hour).copied().unwrap_or_default();
        let mut begin = run.start;
        while begin < run.end {
            let mut end = begin + 1;
            let mut parts = parts_of(begin);
            while end < run.end && parts + parts_of(end) <= PARTS {
                parts += parts_of(end);
                end += 1;
            }
            let mut sql = Sql::new(
                self.dialect(),
                format!("SELECT hour, data FROM {} WHERE hour >= ", self.hours()),
            );
            sql.integer(begin)
                .push(" AND hour < ")
                .integer(end)
                .push(" ORDER BY hour, part");
            self.database()
                .each(sql, &[Kind::Integer, Kind::Bytes], |cells| {
                    cells[0]
                        .integer()
                        .map_or(Ok(()), |hour| visit.part(hour, cells[1].bytes().unwrap_or_default()))
                })
                .await?;
            begin = end;
        }
        Ok(())
    }
}

/// Packed hours on their way to a visitor.
struct Visit<'a> {
    wanted: &'a Wanted<'a>,
    visitor: &'a mut dyn Visitor,
    allowance: Allowance,
    /// Hours that were shown, one after the other.
    read: Vec<Range<i64>>,
    /// Hours of which a part cannot be read, so that they are asked of the tables.
    damaged: Vec<i64>,
    /// Parts of such an hour were shown before.
    is_spoilt: bool,
}

impl Visit<'_> {
    /// Shows a part of an hour. All parts of an hour follow each other.
    fn part(&mut self, hour: i64, data: &[u8]) -> Result<(), QueryError> {
        if self.damaged.last() == Some(&hour) {
            return Ok(());
        }
        let is_first = self.read.last().is_none_or(|last| last.start != hour);
        let Some(packed) = Packed::read(data) else {
            tracing::warn!(hour, "a packed hour cannot be read; its rows are read instead");
            self.damaged.push(hour);
            self.is_spoilt |= !is_first;
            return Ok(());
        };
        self.wanted.show(packed, self.visitor);
        if is_first {
            self.read.push(hour..hour + 1);
        }
        self.allowance.check(self.visitor.held())
    }
}

/// The filter as packed rows are asked.
struct Wanted<'f> {
    filter: &'f Filter,
    /// Unix microseconds.
    times: Range<Option<i64>>,
    texts: Vec<(Text, &'f [String])>,
}

impl<'f> Wanted<'f> {
    /// Nothing, when packed rows do not hold what the filter asks for.
    fn of(filter: &'f Filter) -> Option<Wanted<'f>> {
        if filter.shown != RowsShown::Own || filter.text.is_some() || !filter.traces.is_empty() {
            return None;
        }
        let texts = filter.texts.iter();
        let texts = texts.map(|(column, values)| Some((column.packed()?, values.as_slice())));
        let mut texts: Vec<_> = texts.collect::<Option<_>>()?;
        texts.extend(
            filter
                .scope
                .iter()
                .map(|scope| (Text::Organization, std::slice::from_ref(scope))),
        );
        // Nothing, where the text is no time.
        let micros = |text: &Option<String>| match text {
            Some(text) => micros_of(text).map(Some),
            None => Some(None),
        };
        Some(Wanted {
            filter,
            times: micros(&filter.from)?..micros(&filter.to)?,
            texts,
        })
    }

    fn show(&self, packed: Packed<'_>, visitor: &mut dyn Visitor) {
        // Which of the distinct texts pass, so that no row has to compare any. The first is no text.
        let passing: Vec<(usize, Vec<bool>)> = self
            .texts
            .iter()
            .map(|(text, values)| {
                let passes = packed.texts.iter().map(|text| values.iter().any(|value| value == text));
                (*text as usize, std::iter::once(false).chain(passes).collect())
            })
            .collect();
        visitor.texts(&packed.texts);
        let filter = self.filter;
        for row in packed {
            let passes = self.times.start.is_none_or(|from| row.at >= from)
                && self.times.end.is_none_or(|to| row.at < to)
                && passing.iter().all(|(text, passes)| passes[row.texts[*text] as usize])
                && (filter.outcomes.is_empty() || filter.outcomes.contains(&outcome(&row)))
                && (filter.exit_codes.is_empty()
                    || row.exit_code.is_some_and(|code| filter.exit_codes.contains(&code)))
                && filter
                    .min_duration
                    .is_none_or(|least| row.duration_ms.is_some_and(|took| took >= least))
                && filter
                    .max_duration
                    .is_none_or(|most| row.duration_ms.is_some_and(|took| took <= most));
            if passes {
                visitor.row(&row);
            }
        }
    }
}

/// Hours that follow each other, together.
fn runs_of(known: &[(i64, i64)]) -> Vec<Range<i64>> {
    let mut runs: Vec<Range<i64>> = Vec::new();
    for (hour, _) in known {
        match runs.last_mut() {
            Some(run) if run.end == *hour => run.end += 1,
            _ => runs.push(*hour..hour + 1),
        }
    }
    runs
}

/// So many that there are at most [`GAPS`] between them.
fn longest(mut runs: Vec<Range<i64>>) -> Vec<Range<i64>> {
    runs.sort_by_key(|run| run.start - run.end);
    runs.truncate(GAPS + 1);
    runs.sort_by_key(|run| run.start);
    runs
}

/// The times that are in none of the hours, in microseconds.
fn left(times: &Range<Option<i64>>, hours: &[Range<i64>]) -> Vec<Range<Option<i64>>> {
    let mut left = Vec::new();
    let mut from = times.start;
    for hours in hours {
        let (begin, end) = (hours.start * HOUR_MICROS, hours.end * HOUR_MICROS);
        if from.is_none_or(|from| from < begin) {
            left.push(from..Some(begin));
        }
        from = Some(from.map_or(end, |from| from.max(end)));
    }
    if from.is_none() || times.end.is_none() || from < times.end {
        left.push(from..times.end);
    }
    left
}

/// What rows are told apart by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    Text(Text),
    Outcome,
    ExitCode,
}

/// The values of a key, each with a number.
#[derive(Debug)]
pub(super) struct Values {
    /// Without one, packed rows are not told apart.
    key: Option<Key>,
    /// The number of each of the current texts, once it is known.
    of_texts: Vec<Option<usize>>,
    texts: Vec<String>,
    numbers: HashMap<Option<String>, usize>,
    /// Numbers of exit codes, so that they need not become text for each row.
    of_codes: HashMap<Option<i64>, usize>,
    names: Vec<Option<String>>,
    /// Of all names together.
    length: usize,
}

impl Values {
    pub(super) fn of(key: Option<Key>) -> Values {
        Values {
            key,
            of_texts: Vec::new(),
            texts: Vec::new(),
            numbers: HashMap::new(),
            of_codes: HashMap::new(),
            names: Vec::new(),
            length: 0,
        }
    }

    /// Bytes of the values: each is there twice, in a map that may be half empty.
    pub(super) fn held(&self) -> usize {
        2 * self.length + self.names.len() * 4 * size_of::<(Option<String>, usize)>()
    }

    /// Forgets all values.
    pub(super) fn clear(&mut self) {
        *self = Values::of(self.key);
    }

    pub(super) fn texts(&mut self, texts: &[&str]) {
        if let Some(Key::Text(_)) = self.key {
            self.of_texts = vec![None; texts.len() + 1];
            self.texts = texts.iter().map(|text| (*text).to_owned()).collect();
        }
    }

    /// The number of the row's value.
    pub(super) fn number(&mut self, row: &PackedRow) -> usize {
        match self.key {
            None if self.names.is_empty() => self.named(None),
            None => 0,
            Some(Key::Text(text)) => {
                let id = row.texts[text as usize] as usize;
                if let Some(number) = self.of_texts[id] {
                    return number;
                }
                let value = id.checked_sub(1).map(|index| self.texts[index].clone());
                let number = self.named(value);
                self.of_texts[id] = Some(number);
                number
            }
            Some(Key::Outcome) => self.fixed(outcome(row)),
            Some(Key::ExitCode) => match self.of_codes.get(&row.exit_code) {
                Some(number) => *number,
                None => {
                    let number = self.named(row.exit_code.map(|code| code.to_string()));
                    self.of_codes.insert(row.exit_code, number);
                    number
                }
            },
        }
    }

    fn fixed(&mut self, outcome: Outcome) -> usize {
        // There are three of them, in this order.
        while self.names.len() < Outcome::ALL.len() {
            let next = Outcome::ALL[self.names.len()];
            self.named(Some(next.as_str().to_owned()));
        }
        outcome as usize
    }

    /// The number of a value.
    pub(super) fn named(&mut self, value: Option<String>) -> usize {
        if let Some(number) = self.numbers.get(&value) {
            return *number;
        }
        let number = self.names.len();
        self.length += value.as_ref().map_or(0, String::len);
        self.numbers.insert(value.clone(), number);
        self.names.push(value);
        number
    }

    /// The values by their numbers.
    pub(super) fn into_names(self) -> Vec<Option<String>> {
        self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_packed_is_left() {
        let hour = |hour: i64| hour * HOUR_MICROS;
        let packed = [5..8, 9..10];
        let cases = [
            (
                None..None,
                vec![None..Some(hour(5)), Some(hour(8))..Some(hour(9)), Some(hour(10))..None],
            ),
            (
                Some(hour(6) + 1)..Some(hour(12)),
                vec![Some(hour(8))..Some(hour(9)), Some(hour(10))..Some(hour(12))],
            ),
            (Some(hour(5))..Some(hour(8)), vec![]),
            (Some(hour(9))..Some(hour(10)), vec![]),
        ];
        for (times, expected) in cases {
            let within: Vec<_> = packed
                .iter()
                .filter(|hours| times.start.is_none_or(|from| from < hour(hours.end)))
                .filter(|hours| times.end.is_none_or(|to| to > hour(hours.start)))
                .cloned()
                .collect();
            assert_eq!(left(&times, &within), expected, "{times:?}");
        }
        assert_eq!(left(&(None..None), &[]), [None..None]);
    }

    #[test]
    fn the_shortest_packed_times_are_given_up_when_there_are_too_many_gaps() {
        let known: Vec<(i64, i64)> = (0..100).filter(|hour| hour % 7 != 0).map(|hour| (hour, 1)).collect();
        let runs = runs_of(&known);
        assert_eq!(runs[0], 1..7);
        let kept = longest(runs);
        assert_eq!(kept.len(), GAPS + 1);
        assert!(kept.is_sorted_by_key(|run| run.start));
        assert!(kept.iter().all(|run| run.end - run.start == 6));
    }
}
