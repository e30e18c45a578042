//! `/code-exec-logs/errors`: failures grouped by what their messages have in common.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::answer::Allowance;
use super::database::{Cell, Kind};
use super::filter::{FILTERS, Filter};
use super::row::Outcome;
use super::timestamp::iso;
use super::{Answer, Asked, QueryApi, QueryError};

/// Distinct messages that are read, the commonest first.
const MESSAGES: i64 = 20_000;

/// Characters of a message that are read for [`normalise`], from its beginning and, where that is not all of it, from its
/// end: the last line is what a Python traceback has to say. A last line that is longer is looked for in as many as messages
/// of this program's rows have.
const BEGINNING: usize = 2000;
const ENDING: usize = 1000;
const LONG_ENDING: usize = 8192;

/// Groups whose samples are read at once: messages of 8 KiB, half a megabyte.
const SAMPLES: usize = 64;

/// What to narrow.
const FEWER_ROWS: Allowance = Allowance {
    narrow: "ask for a shorter time (from, to), for fewer rows by further filters, or with a smaller limit",
};

/// Characters of a normalised message.
const LENGTH: usize = 200;

#[derive(Default)]
struct Group {
    count: i64,
    messages: i64,
    first: String,
    /// Time and id of the latest, in this order.
    last: String,
    runtimes: HashMap<String, i64>,
}

impl QueryApi {
    pub(super) async fn errors(&self, asked: Asked) -> Result<Answer, QueryError> {
        let mut parameters = asked.parameters;
        let seen = Filter::everything(self.shown(), asked.scope);
        let mut filter = seen.clone().take(&mut parameters, asked.now)?;
        let limit = parameters.number("limit", 1, 1000)?.unwrap_or(50);
        parameters.finish(&format!("{FILTERS}, limit"))?;
        if filter.outcomes.is_empty() {
            filter.outcomes = vec![Outcome::Error, Outcome::Timeout];
        }
        let dialect = self.dialect();
        let at = dialect.time_text("t.created_at");
        let ending = |characters| dialect.ending("t.error_message", characters);
        // Time and id in one text: its greatest value names the latest row.
        let latest = dialect.bytewise(&format!("{at} || ' ' || t.id"));
        let mut sql = self.select(
            &format!(
                "substr(t.error_message, 1, {BEGINNING}), CASE WHEN length(t.error_message) <= {BEGINNING} THEN NULL \
                 WHEN {} THEN {} ELSE {} END, t.runtime, {}, min({at}), max({latest})",
                dialect.has_lines(&ending(ENDING)),
                ending(ENDING),
                ending(LONG_ENDING),
                dialect.integer("count(*)")
            ),
            &filter,
        );
        sql.push(" GROUP BY t.error_message, t.runtime ORDER BY count(*) DESC LIMIT ")
            .integer(MESSAGES);
        let kinds = [
            Kind::Text,
            Kind::Text,
            Kind::Text,
            Kind::Integer,
            Kind::Text,
            Kind::Text,
        ];
        let mut groups = Groups::default();
        let mut messages = 0;
        self.database()
            .each(sql, &kinds, |row| {
                messages += 1;
                groups.add(row);
                FEWER_ROWS.check(groups.held)
            })
            .await?;
        let mut groups: Vec<_> = groups.by_message.into_iter().collect();
        groups.sort_by(|(a, x), (b, y)| y.count.cmp(&x.count).then_with(|| a.cmp(b)));
        let known = groups.len();
        groups.truncate(limit as usize);
        let mut answer = Answer::list();
        for groups in groups.chunks(SAMPLES) {
            let latest = groups.iter().map(|(_, group)| group.latest().1.to_owned()).collect();
            let mut samples = self.messages_of(latest, &seen).await?;
            for (message, group) in groups {
                let sample = samples.remove(group.latest().1);
                answer.push_within(group.to_json(message.as_deref(), sample), FEWER_ROWS)?;
            }
        }
        Ok(answer
            .listed()
            .with("groups", known.into())
            .with("truncated", (messages == MESSAGES).into()))
    }

    /// The whole messages of those rows with these ids that are `seen`.
    async fn messages_of(&self, ids: Vec<String>, seen: &Filter) -> Result<HashMap<String, String>, QueryError> {
        let mut sql = self.select("t.id, t.error_message", seen);
        sql.push(" AND t.id IN ").texts(&ids);
        let mut messages = HashMap::new();
        let mut held = 0;
        self.database()
            .each(sql, &[Kind::Text, Kind::Text], |row| {
                let mut cells = row.into_iter().map(Cell::into_text);
                if let (Some(Some(id)), Some(Some(message))) = (cells.next(), cells.next()) {
                    held += message.len();
                    messages.insert(id, message);
                }
                FEWER_ROWS.check(held)
            })
            .await?;
        Ok(messages)
    }
}

/// Failures by what their messages have in common.
#[derive(Default)]
struct Groups {
    by_message: HashMap<Option<String>, Group>,
    /// Bytes of memory.
    held: usize,
}

/// Bytes for a group or a runtime of one: its place in a map that may be half empty, and once more when all are put in order.
const GROUP: usize = 3 * size_of::<(Option<String>, Group)>();
const RUNTIME: usize = 3 * size_of::<(String, i64)>();

impl Groups {
    /// Adds a message by beginning and ending, its runtime, how many rows there are, the time of the first, time and id of
    /// the last.
    fn add(&mut self, row: Vec<Cell>) {
        let mut cells = row.into_iter();
        let mut next = || cells.next().unwrap_or_default();
        let (message, ending) = (next().into_text(), next().into_text());
        let runtime = next().into_text().unwrap_or_default();
        let count = next().integer().unwrap_or_default();
        let (first, last) = (
            next().into_text().unwrap_or_default(),
            next().into_text().unwrap_or_default(),
        );
        // Of a line whose beginning is not there nothing can be said that others of its kind have in common.
        let ending = ending.filter(|ending| ending.trim_end().contains('\n'));
        let message = message.map(|beginning| match ending {
            Some(ending) => normalise(&format!("{beginning}\n{ending}")),
            None => normalise(&beginning),
        });
        let length = message.as_ref().map_or(0, String::len);
        let group = self.by_message.entry(message).or_insert_with(|| {
            self.held += GROUP + length + first.len() + last.len();
            Group::default()
        });
        group.count += count;
        group.messages += 1;
        if group.first.is_empty() || first < group.first {
            group.first = first;
        }
        if last > group.last {
            group.last = last;
        }
        *group.runtimes.entry(runtime).or_insert_with_key(|runtime| {
            self.held += RUNTIME + runtime.len();
            0
        }) += count;
    }
}

impl Group {
    /// Time and id of the latest row.
    fn latest(&self) -> (&str, &str) {
        // The time has no space in it but the one between date and time of day.
        self.last.rsplit_once(' ').unwrap_or((&self.last, ""))
    }

    fn to_json(&self, message: Option<&str>, sample: Option<String>) -> Value {
        let (last, id) = self.latest();
        json!({
            "message": message,
            "count": self.count,
            "distinctMessages": self.messages,
            "firstSeen": iso(&self.first),
            "lastSeen": iso(last),
            "sampleId": id,
            "sampleMessage": sample,
            "byRuntime": self.runtimes,
        })
    }
}

/// What messages of one cause have in common: the first line, with what differs from run to run replaced.
pub(super) fn normalise(message: &str) -> String {
    let line = message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    // The first line of a Python traceback says nothing; its last line is the error.
    let line = if line.starts_with("Traceback (most recent call last)") {
        message
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or(line)
    } else {
        line
    };
    let mut normal = String::with_capacity(line.len().min(LENGTH));
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if normal.len() >= LENGTH {
            normal.push('…');
            break;
        }
        if matches!(first, '"' | '\'' | '`')
            && let Some(end) = quoted(rest, first)
        {
            normal.push_str(&format!("{first}…{first}"));
            rest = &rest[end..];
            continue;
        }
        if first.is_alphanumeric() {
            let end = rest
                .find(|other: char| !other.is_alphanumeric() && other != '_')
                .unwrap_or(rest.len());
            normal.push_str(&word(&rest[..end]));
            rest = &rest[end..];
            continue;
        }
        normal.push(first);
        rest = &rest[first.len_utf8()..];
    }
    // A UUID or a decimal fraction is several words.
    while normal.contains("#-#") || normal.contains("#.#") || normal.contains("#:#") {
        normal = normal.replace("#-#", "#").replace("#.#", "#").replace("#:#", "#");
    }
    normal
}

/// Behind the quoted text at the beginning, if it is one: an apostrophe is not.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let end = text[1..].find(quote)? + 1;
    let after = text[end + 1..].chars().next();
    (end <= 200 && !after.is_some_and(char::is_alphanumeric)).then_some(end + 1)
}

/// A word, or `#` in place of a number or a made-up id.
fn word(word: &str) -> String {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let hexadecimal = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A group of a UUID may have letters only; words of eight letters up to f are rare.
    let is_id = hexadecimal && (digits > 0 && word.len() >= 4 || word.len() >= 8);
    if digits == word.len() || is_id || (digits >= 3 && word.len() >= 12) {
        return "#".to_owned();
    }
    // `30000ms`, `0x7f3a`
    let unit = word.trim_start_matches(|other: char| other.is_ascii_digit());
    if unit.len() < word.len() && unit.len() <= 3 && unit.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return format!("#{unit}");
    }
    if word.starts_with("0x") {
        "#".to_owned()
    } else {
        word.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_cause_become_one() {
        for (message, normal) in [
            (
                "E2B execution timed out after 30000ms",
                "E2B execution timed out after #ms",
            ),
            ("E2B execution timed out after 5ms", "E2B execution timed out after #ms"),
            ("Job 3f2a9c1e-8b7d-4c6e-9f00-aabbccddeeff failed", "Job # failed"),
            (
                "ModuleNotFoundError: No module named 'pandas'",
                "ModuleNotFoundError: No module named '…'",
            ),
            (
                "can't open file \"/tmp/a b.py\": no such file",
                "can't open file \"…\": no such file",
            ),
            ("line 12, column 3.5", "line #, column #"),
            ("at 0x7ffde2 in cmr2k3j4h5g6f7d8", "at # in #"),
            ("\n  first line\nsecond line", "first line"),
            (
                "Traceback (most recent call last):\n  File \"x\", line 3\nValueError: bad 7\n",
                "ValueError: bad #",
            ),
            ("", ""),
            ("utf8 and sha256 stay", "utf8 and sha256 stay"),
        ] {
            assert_eq!(normalise(message), normal);
        }
        assert!(normalise(&"é ".repeat(5000)).len() < 2 * LENGTH);
    }
}
