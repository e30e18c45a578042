//! The text of a scrape: Prometheus text 0.0.4 and OpenMetrics 1.0.
//!
//! Families come in the order of the catalogue, series in the order of their labels, so that two scrapes of the same
//! values are the same text. A family without series still has its `# HELP` and `# TYPE`: both formats allow that, and
//! it shows what there is to ask for.

mod negotiate;
mod number;
mod own;
mod rendering;

use std::fmt::Write as _;

use crate::hex;
use crate::rules::check::OVERFLOW_LABEL;
use crate::rules::series_key::label_values;

pub use negotiate::ExpositionFormat;
pub use rendering::Rendering;

use super::store::{Description, Exemplar, OVERFLOW_KEY};
use number::{write_bound, write_float, write_integer, write_seconds};
use own::append_own;

/// In OpenMetrics, `_total` belongs to the sample of a counter and not to the family.
fn family_name(name: &str, is_counter: bool) -> &str {
    match name.strip_suffix("_total") {
        Some(family) if is_counter => family,
        _ => name,
    }
}

/// `# HELP`, `# TYPE` and, where it is valid, `# UNIT`, in the order that each format recommends.
fn write_header(name: &str, kind: &str, help: &str, format: ExpositionFormat, out: &mut String) {
    // Writing to a String cannot fail.
    match format {
        ExpositionFormat::Text => {
            write!(out, "# HELP {name} ").unwrap_or_default();
            escape(help, false, out);
            write!(out, "\n# TYPE {name} {kind}\n").unwrap_or_default();
        }
        ExpositionFormat::OpenMetrics => {
            writeln!(out, "# TYPE {name} {kind}").unwrap_or_default();
            if let Some(unit) = unit(name) {
                writeln!(out, "# UNIT {name} {unit}").unwrap_or_default();
            }
            write!(out, "# HELP {name} ").unwrap_or_default();
            escape(help, true, out);
            out.push('\n');
        }
    }
}

/// The unit that a name ends in, if it is one of the base units.
fn unit(name: &str) -> Option<&'static str> {
    ["seconds", "bytes"]
        .into_iter()
        .find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
}

/// The end of the labels of all buckets, and the space before the value: `le="0.5"} `.
fn bounds(description: &Description, format: ExpositionFormat) -> Vec<String> {
    if description.is_counter {
        return Vec::new();
    }
    let bound = |bound: &f64| {
        let mut text = "le=\"".to_owned();
        match format {
            ExpositionFormat::Text => write_float(*bound, &mut text),
            ExpositionFormat::OpenMetrics => write_bound(*bound, &mut text),
        }
        text + "\"} "
    };
    description
        .buckets
        .iter()
        .map(bound)
        .chain(["le=\"+Inf\"} ".to_owned()])
        .collect()
}

/// `a="x",b="y"`, without braces.
fn write_labels(description: &Description, key: &[u8], out: &mut String) {
    if key == OVERFLOW_KEY {
        write!(out, "{OVERFLOW_LABEL}=\"true\"").unwrap_or_default();
        return;
    }
    let own = description.labels.iter().map(String::as_str).zip(label_values(key));
    let constant = description
        .const_labels
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(constant) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape(value, true, out);
        out.push('"');
    }
}

/// Escapes a label value, or a help text; quotes are left alone in the help texts of the Prometheus format.
fn escape(text: &str, quotes: bool, out: &mut String) {
    if !text.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        out.push_str(text);
        return;
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// One series, about to be rendered.
struct Series<'a> {
    name: &'a str,
    labels: &'a str,
    sum: f64,
    created: u64,
    format: ExpositionFormat,
}

impl Series<'_> {
    fn counter(&self, exemplars: &[Exemplar], out: &mut String) {
        let suffix = match self.format {
            ExpositionFormat::Text => "",
            ExpositionFormat::OpenMetrics => "_total",
        };
        self.sample(suffix, out);
        write_float(self.sum, out);
        self.exemplar(exemplars.first(), out);
        out.push('\n');
        self.created(out);
    }

    /// `bucket` is memory that is used again: what the lines of all buckets begin with.
    fn histogram(
        &self,
        bounds: &[String],
        counts: &[u64],
        exemplars: &[Exemplar],
        bucket: &mut String,
        out: &mut String,
    ) {
        bucket.clear();
        bucket.push_str(self.name);
        bucket.push_str("_bucket{");
        bucket.push_str(self.labels);
        if !self.labels.is_empty() {
            bucket.push(',');
        }
        let mut count = 0;
        for (index, (bound, in_bucket)) in bounds.iter().zip(counts).enumerate() {
            count += in_bucket;
            out.push_str(bucket);
            out.push_str(bound);
            write_integer(count, out);
            self.exemplar(exemplars.get(index), out);
            out.push('\n');
        }
        self.sample("_sum", out);
        write_float(self.sum, out);
        out.push('\n');
        self.sample("_count", out);
        write_integer(count, out);
        out.push('\n');
        self.created(out);
    }

    /// Name and labels, up to the value.
    fn sample(&self, suffix: &str, out: &mut String) {
        out.push_str(self.name);
        out.push_str(suffix);
        if !self.labels.is_empty() {
            out.push('{');
            out.push_str(self.labels);
            out.push('}');
        }
        out.push(' ');
    }

    fn created(&self, out: &mut String) {
        if self.format == ExpositionFormat::OpenMetrics {
            self.sample("_created", out);
            write_seconds(self.created, out);
            out.push('\n');
        }
    }

    fn exemplar(&self, exemplar: Option<&Exemplar>, out: &mut String) {
        let Some(exemplar) = exemplar.filter(|exemplar| exemplar.time_unix_nano > 0) else {
            return;
        };
        if self.format == ExpositionFormat::Text {
            return;
        }
        out.push_str(" # {trace_id=\"");
        write_hex(&exemplar.trace_id, out);
        out.push_str("\",span_id=\"");
        write_hex(&exemplar.span_id, out);
        out.push_str("\"} ");
        write_float(exemplar.value, out);
        out.push(' ');
        write_seconds(exemplar.time_unix_nano, out);
    }
}

fn write_hex(bytes: &[u8], out: &mut String) {
    bytes
        .iter()
        .for_each(|byte| out.extend(hex::digits(*byte).map(char::from)));
}

#[cfg(test)]
mod tests;
