//! What every match of a pattern contains: found in its syntax, so that most text need not be looked at closely.

use regex_syntax::hir::literal::{ExtractKind, Extractor};
use regex_syntax::hir::{Hir, HirKind, Repetition};

/// More alternatives than this make the common search slow.
const MOST: usize = 64;

/// Single characters that stand in every second text do not narrow anything down.
const USUAL: &[u8] = b" .,:;=-_/'\"aeiounrtlsdcmp0123456789";

/// A condition that every text with a match fulfils.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Required {
    /// It contains one of these.
    Literals(Vec<Vec<u8>>),
    /// It contains a match of this pattern, which has no assertions: it may be searched for in a larger text.
    Relaxed(String),
}

/// The condition for a pattern; `None` if there is none that narrows anything down.
pub(super) fn of(pattern: &str) -> Option<Required> {
    let hir = regex_syntax::ParserBuilder::new()
        .utf8(true)
        .build()
        .parse(pattern)
        .ok()?;
    if let Some(literals) = literals(&hir) {
        return Some(Required::Literals(literals));
    }
    let relaxed = relax(&hir);
    (relaxed.properties().minimum_len() > Some(0)).then(|| Required::Relaxed(relaxed.to_string()))
}

/// Literals of which every match has at least one.
fn literals(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Capture(capture) => literals(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => literals(&repetition.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(literals(branch)?);
            }
            (all.len() <= MOST).then_some(all)
        }
        // Whatever a match of the whole is, it has a match of each of its tails; and what all matches of a tail begin
        // with is known.
        HirKind::Concat(parts) => {
            let of_tail = |from: usize| beginnings(&Hir::concat(parts[from..].to_vec()));
            let of_part = |from: usize| literals_within(&parts[from]);
            let candidates = (0..parts.len()).flat_map(|from| [of_tail(from), of_part(from)]);
            candidates.flatten().max_by_key(|literals| worth(literals))
        }
        _ => beginnings(hir),
    }
}

/// Literals of a part that is not a plain literal itself.
fn literals_within(part: &Hir) -> Option<Vec<Vec<u8>>> {
    match part.kind() {
        HirKind::Capture(_) | HirKind::Repetition(_) | HirKind::Alternation(_) => literals(part),
        _ => None,
    }
}

/// What every match begins with.
fn beginnings(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    let mut extractor = Extractor::new();
    // Classes of up to four characters are upper and lower case mostly; larger ones only multiply.
    extractor
        .kind(ExtractKind::Prefix)
        .limit_class(4)
        .limit_total(MOST)
        .limit_literal_len(6);
    let mut sequence = extractor.extract(hir);
    // Shorter ones, if the longer ones are too many: upper and lower case multiply.
    if sequence.len().is_none_or(|length| length > 16) {
        extractor.limit_literal_len(4);
        sequence = extractor.extract(hir);
    }
    let literals = sequence.literals()?;
    let literals: Vec<Vec<u8>> = literals.iter().map(|literal| literal.as_bytes().to_vec()).collect();
    let narrows = |literal: &Vec<u8>| match literal.as_slice() {
        [] => false,
        [one] => !USUAL.contains(one),
        _ => true,
    };
    (!literals.is_empty() && literals.len() <= MOST && literals.iter().all(narrows)).then_some(literals)
}

/// Longer is better, fewer is better.
fn worth(literals: &[Vec<u8>]) -> (usize, std::cmp::Reverse<usize>) {
    let shortest = literals.iter().map(Vec::len).min().unwrap_or(0);
    (shortest.min(4), std::cmp::Reverse(literals.len()))
}

/// The pattern without its assertions (`^`, `\b`): it matches wherever the pattern does, and elsewhere.
fn relax(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Look(_) => Hir::empty(),
        HirKind::Capture(capture) => relax(&capture.sub),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            sub: Box::new(relax(&repetition.sub)),
            ..repetition.clone()
        }),
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(relax).collect()),
        HirKind::Alternation(branches) => Hir::alternation(branches.iter().map(relax).collect()),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literals_of(pattern: &str) -> Vec<String> {
        match of(pattern) {
            Some(Required::Literals(mut literals)) => {
                literals.sort();
                literals
                    .into_iter()
                    .map(|literal| String::from_utf8(literal).unwrap())
                    .collect()
            }
            other => panic!("{pattern}: {other:?}"),
        }
    }

    #[test]
    fn the_rarest_part_of_a_pattern_is_what_is_searched_for() {
        assert_eq!(literals_of(r"[a-z]+@[a-z]+\.[a-z]{2,}"), ["@"]);
        assert_eq!(literals_of(r"[a-z]+(?:@|%40)[a-z]+"), ["%40", "@"]);
        assert_eq!(literals_of(r"\bsk-[0-9]+"), ["sk-"]);
        assert_eq!(literals_of(r"(user_\d+)|(org_\d+)"), ["org_", "user_"]);
        assert_eq!(literals_of(r"\d+(?i:ab)\d+"), ["AB", "Ab", "aB", "ab"]);
    }

    #[test]
    fn a_pattern_without_literals_is_searched_for_without_its_assertions() {
        let Some(Required::Relaxed(relaxed)) = of(r"\b\d{13,16}\b") else {
            panic!()
        };
        let relaxed = regex::Regex::new(&relaxed).unwrap();
        assert!(relaxed.is_match("x4111111111111111x") && !relaxed.is_match("411111"));
        assert_eq!(of(r"^$|x*"), None);
    }
}
