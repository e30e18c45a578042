//! The catalogue as documentation: `docs/metrics.md`.

use std::fmt::Write as _;

use super::Catalogue;
use super::model::{Instrument, Rule};
use super::named::Named;
use super::print;

/// One table of all metrics, as Markdown.
pub fn metrics(catalogue: &Catalogue) -> String {
    let mut out = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for rule in catalogue.rules() {
        let labels = rule
            .label_names()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        row(
            &mut out,
            &[&format!("`{}`", rule.name), rule.instrument.word(), &labels, &rule.help],
        );
    }
    out
}

/// For every metric: which spans count, with what value, and in which buckets, in the language of the rules.
pub fn sources(catalogue: &Catalogue) -> String {
    let mut out = String::from("| metric | spans | value | buckets |\n|---|---|---|---|\n");
    for rule in catalogue.rules() {
        let [when, value] = [print::condition(&rule.when), print::measure(&rule.value)].map(|text| format!("`{text}`"));
        row(&mut out, &[&format!("`{}`", rule.name), &when, &value, &buckets(rule)]);
    }
    out
}

/// The notions that the program derives itself.
pub fn notions() -> String {
    let mut out = String::from("| name | is | meaning |\n|---|---|---|\n");
    for (_, word, kind, meaning) in Named::ALL {
        row(&mut out, &[&format!("`{word}`"), kind.word(), meaning]);
    }
    out
}

fn buckets(rule: &Rule) -> String {
    match &rule.instrument {
        Instrument::Counter => String::new(),
        Instrument::Histogram { buckets } => buckets.iter().map(f64::to_string).collect::<Vec<_>>().join(" "),
    }
}

fn row(out: &mut String, cells: &[&str]) {
    for cell in cells {
        // Writing to a String cannot fail.
        write!(out, "| {} ", cell.replace('|', "\\|")).unwrap_or_default();
    }
    out.push_str("|\n");
}
