//! Finds secrets and personal data in text and cuts them out: a user's regular expressions, and built-in ones.
//!
//! Sans-io. Used for what leaves the house ([`crate::egress`]) and for `error_message` of rows.
//!
//! # Invariants
//!
//! * Every match of every pattern in the original text is cut, in whatever order the patterns stand: matches are looked
//!   for in the original, joined where they overlap, and then replaced.
//! * UTF-8 stays UTF-8.
//! * [`Sweep`] may say "perhaps" too often, and never "no" where there is a match.
//!
//! # Why it is fast
//!
//! Most text has no secret in it. Of each pattern `required` finds short literals of which every match has at least
//! one (`@` of an e-mail address). One search for all of them runs over a whole request; only a text that contains one
//! is looked at with the patterns. A pattern without such a literal (`\d{16}`) is searched for over the whole request
//! with its assertions taken out, which can only find more.

mod builtin;
mod required;

use std::ops::Range;

use aho_corasick::AhoCorasick;
use regex::bytes::Regex;

/// Stands where something was cut.
pub const REPLACEMENT: &str = "[redacted]";

/// What a built-in set is written as: `builtin:email`; `builtin` alone is all of them.
const BUILTIN: &str = "builtin";

/// Why patterns cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression.
    #[error("`{pattern}` is no regular expression: {reason}")]
    Syntax {
        /// As configured.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It would cut nothing, everywhere.
    #[error("`{0}` matches the empty text; write what is to be cut")]
    Empty(String),
    /// No such built-in set.
    #[error("`{0}` is no built-in set; there are {names}", names = builtin::NAMES.join(", "))]
    Unknown(String),
    /// Too large together.
    #[error("too much to search for: {0}")]
    TooLarge(String),
}

/// Patterns, ready to be searched for. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    /// With the index of the configured item that each belongs to.
    patterns: Vec<(usize, Regex)>,
    /// Literals of which a match has at least one, of the patterns that have such.
    literals: Option<AhoCorasick>,
    /// All others, without their assertions.
    relaxed: Option<Regex>,
    /// A pattern for which there is neither.
    is_blind: bool,
}

impl Patterns {
    /// Compiles what was configured: regular expressions, `builtin:tokens`, `builtin:keys`, `builtin:email`, and
    /// `builtin` for all three.
    pub fn compile<T: AsRef<str>>(items: &[T]) -> Result<Patterns, PatternError> {
        let mut compiled = Patterns::default();
        let mut literals = Vec::new();
        let mut relaxed = Vec::new();
        for (index, item) in items.iter().enumerate() {
            for pattern in expand(item.as_ref())? {
                let syntax = |reason: String| PatternError::Syntax {
                    pattern: pattern.to_owned(),
                    reason,
                };
                // The regular expressions for texts refuse what could match half a character.
                let checked = regex::Regex::new(pattern).map_err(|error| syntax(error.to_string()))?;
                if checked.is_match("") {
                    return Err(PatternError::Empty(pattern.to_owned()));
                }
                compiled
                    .patterns
                    .push((index, Regex::new(pattern).map_err(|error| syntax(error.to_string()))?));
                match required::of(pattern) {
                    Some(required::Required::Literals(found)) => literals.extend(found),
                    Some(required::Required::Relaxed(pattern)) => relaxed.push(format!("(?:{pattern})")),
                    None => compiled.is_blind = true,
                }
            }
        }
        let too_large = |error: &dyn std::fmt::Display| PatternError::TooLarge(error.to_string());
        if !literals.is_empty() {
            literals.sort();
            literals.dedup();
            compiled.literals = Some(AhoCorasick::new(&literals).map_err(|error| too_large(&error))?);
        }
        if !relaxed.is_empty() {
            compiled.relaxed = Some(Regex::new(&relaxed.join("|")).map_err(|error| too_large(&error))?);
        }
        Ok(compiled)
    }

    /// Nothing is searched for.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Begins to look through `haystack`.
    pub fn sweep<'a>(&'a self, haystack: &'a [u8]) -> Sweep<'a> {
        Sweep {
            patterns: self,
            haystack,
            literal: None,
            relaxed: None,
        }
    }

    /// Appends `text` without its secrets to `out`, if it has any; `hit` is told the index of the configured item for
    /// each. False, and nothing appended, if it has none.
    pub fn cut(&self, text: &[u8], out: &mut Vec<u8>, mut hit: impl FnMut(usize)) -> bool {
        let mut cuts: Vec<Range<usize>> = Vec::new();
        for (item, pattern) in &self.patterns {
            for found in pattern.find_iter(text).filter(|found| !found.is_empty()) {
                hit(*item);
                cuts.push(found.range());
            }
        }
        if cuts.is_empty() {
            return false;
        }
        cuts.sort_by_key(|cut| cut.start);
        let mut copied = 0;
        let mut cuts = cuts.into_iter().peekable();
        while let Some(mut cut) = cuts.next() {
            while let Some(next) = cuts.next_if(|next| next.start <= cut.end) {
                cut.end = cut.end.max(next.end);
            }
            out.extend_from_slice(&text[copied..cut.start]);
            out.extend_from_slice(REPLACEMENT.as_bytes());
            copied = cut.end;
        }
        out.extend_from_slice(&text[copied..]);
        true
    }

    /// The text without its secrets.
    pub fn clean<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        let mut cleaned = Vec::new();
        if !self.is_empty() && self.cut(text.as_bytes(), &mut cleaned, |_| {}) {
            // Patterns match whole characters: there is nothing to be replaced here.
            return String::from_utf8_lossy(&cleaned).into_owned().into();
        }
        text.into()
    }
}

/// What one configured item stands for.
fn expand(item: &str) -> Result<Vec<&str>, PatternError> {
    if item == BUILTIN {
        return Ok(builtin::NAMES
            .iter()
            .filter_map(|name| builtin::set(name))
            .flatten()
            .copied()
            .collect());
    }
    match item.strip_prefix(BUILTIN).and_then(|rest| rest.strip_prefix(':')) {
        Some(name) => match builtin::set(name) {
            Some(set) => Ok(set.to_vec()),
            None => Err(PatternError::Unknown(item.to_owned())),
        },
        None => Ok(vec![item]),
    }
}

/// A look through a larger text, from its beginning to its end, for the places where a match may be.
#[derive(Debug)]
pub struct Sweep<'a> {
    patterns: &'a Patterns,
    haystack: &'a [u8],
    /// The next places, once looked for: none lies between what was asked for last and here.
    literal: Option<usize>,
    relaxed: Option<usize>,
}

impl Sweep<'_> {
    /// Whether there may be a match within `range`. Ranges are asked for in ascending order of their starts.
    #[inline]
    pub fn may_match(&mut self, range: Range<usize>) -> bool {
        if self.patterns.is_blind {
            return true;
        }
        if self.literal.is_none_or(|at| at < range.start) {
            self.literal = Some(self.next_literal(range.start));
        }
        if self.relaxed.is_none_or(|at| at < range.start) {
            self.relaxed = Some(self.next_relaxed(range.start));
        }
        self.literal.min(self.relaxed).is_some_and(|at| at < range.end)
    }

    #[inline(never)]
    fn next_literal(&self, from: usize) -> usize {
        let Some(literals) = &self.patterns.literals else {
            return usize::MAX;
        };
        let rest = aho_corasick::Input::new(self.haystack).range(from.min(self.haystack.len())..);
        literals.find(rest).map_or(usize::MAX, |found| found.start())
    }

    #[inline(never)]
    fn next_relaxed(&self, from: usize) -> usize {
        let Some(relaxed) = &self.patterns.relaxed else {
            return usize::MAX;
        };
        let found = relaxed.find_at(self.haystack, from.min(self.haystack.len()));
        found.map_or(usize::MAX, |found| found.start())
    }
}

#[cfg(test)]
mod tests;
