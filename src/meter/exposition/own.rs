//! The program's own metrics, which another library renders in the Prometheus format, appended to a scrape.

use std::fmt::Write as _;

use super::number::write_bound;
use super::{ExpositionFormat, unit};

/// Appends `own`, a text in the Prometheus format 0.0.4, in the given format. In OpenMetrics the families of counters
/// lose their `_total` and their samples have it, help texts are escaped further, and `le` and `quantile` become
/// canonical numbers.
pub(in crate::meter) fn append_own(own: &str, format: ExpositionFormat, out: &mut String) {
    match format {
        ExpositionFormat::Text => {
            out.push_str(own);
            if !own.is_empty() && !own.ends_with('\n') {
                out.push('\n');
            }
        }
        ExpositionFormat::OpenMetrics => Converter {
            out,
            counter: None,
            help: None,
        }
        .convert(own),
    }
}

struct Converter<'o, 't> {
    out: &'o mut String,
    /// Name of the counter whose samples are being read.
    counter: Option<&'t str>,
    /// Name and text of a help line whose type is not known yet: it decides about the name.
    help: Option<(&'t str, &'t str)>,
}

impl<'t> Converter<'_, 't> {
    fn convert(mut self, text: &'t str) {
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                self.flush_help();
                self.help = Some(help.split_once(' ').unwrap_or((help, "")));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                self.family(kind);
            } else if !line.starts_with('#') {
                self.flush_help();
                self.sample(line);
            }
        }
        self.flush_help();
    }

    /// A help text without a type belongs to a family of unknown type.
    fn flush_help(&mut self) {
        if let Some((name, _)) = self.help {
            self.header(name, "unknown");
        }
    }

    fn family(&mut self, kind: &'t str) {
        let (name, kind) = kind.split_once(' ').unwrap_or((kind, "untyped"));
        if self.help.is_some_and(|(helped, _)| helped != name) {
            self.flush_help();
        }
        self.counter = (kind == "counter").then_some(name);
        match kind {
            "counter" => self.header(name.strip_suffix("_total").unwrap_or(name), kind),
            "untyped" => self.header(name, "unknown"),
            _ => self.header(name, kind),
        }
    }

    fn header(&mut self, family: &str, kind: &str) {
        // Writing to a String cannot fail.
        writeln!(self.out, "# TYPE {family} {kind}").unwrap_or_default();
        if let Some(unit) = unit(family) {
            writeln!(self.out, "# UNIT {family} {unit}").unwrap_or_default();
        }
        if let Some((_, help)) = self.help.take() {
            write!(self.out, "# HELP {family} ").unwrap_or_default();
            // Backslashes and line ends are escaped already.
            self.out.push_str(&help.replace('"', "\\\""));
            self.out.push('\n');
        }
    }

    fn sample(&mut self, line: &str) {
        let name_end = line.find(['{', ' ']).unwrap_or(line.len());
        let (name, rest) = line.split_at(name_end);
        self.out.push_str(name);
        if self.counter == Some(name) && !name.ends_with("_total") {
            self.out.push_str("_total");
        }
        self.out.push_str(&canonical(rest));
        self.out.push('\n');
    }
}

/// The labels and value of a sample, with `le` and `quantile` as canonical numbers.
fn canonical(rest: &str) -> String {
    for label in ["le=\"", "quantile=\""] {
        let starts_label = |index: &usize| rest[..*index].ends_with(['{', ',']);
        let Some(index) = rest.match_indices(label).map(|(index, _)| index).find(starts_label) else {
            continue;
        };
        let begin = index + label.len();
        let Some(end) = rest[begin..].find('"').map(|length| begin + length) else {
            continue;
        };
        if let Ok(bound) = rest[begin..end].parse::<f64>()
            && bound.is_finite()
        {
            let mut text = rest[..begin].to_owned();
            write_bound(bound, &mut text);
            text.push_str(&rest[end..]);
            return text;
        }
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# HELP spanledger_spans_total Spans \"seen\" \\\\ by protocol.\n\
        # TYPE spanledger_spans_total counter\n\
        spanledger_spans_total{protocol=\"grpc\"} 5\n\
        spanledger_spans_total 1\n\
        \n\
        # TYPE spanledger_requests counter\n\
        spanledger_requests{x=\"a,le=\\\"b\"} 2\n\
        \n\
        # TYPE process_open_fds gauge\n\
        process_open_fds 7\n\
        \n\
        # HELP spanledger_fsync_seconds How long.\n\
        # TYPE spanledger_fsync_seconds histogram\n\
        spanledger_fsync_seconds_bucket{disk=\"a\",le=\"1\"} 1\n\
        spanledger_fsync_seconds_bucket{disk=\"a\",le=\"+Inf\"} 1\n\
        spanledger_fsync_seconds_sum{disk=\"a\"} 0.5\n\
        spanledger_fsync_seconds_count{disk=\"a\"} 1\n\
        \n\
        # TYPE odd untyped\n\
        odd 1\n\
        # TYPE s summary\n\
        s{quantile=\"1\"} 3\n";

    #[test]
    fn own_metrics_become_valid_open_metrics() {
        let mut out = String::new();
        append_own(OWN, ExpositionFormat::OpenMetrics, &mut out);
        let expected = "# TYPE spanledger_spans counter\n\
            # HELP spanledger_spans Spans \\\"seen\\\" \\\\ by protocol.\n\
            spanledger_spans_total{protocol=\"grpc\"} 5\n\
            spanledger_spans_total 1\n\
            # TYPE spanledger_requests counter\n\
            spanledger_requests_total{x=\"a,le=\\\"b\"} 2\n\
            # TYPE process_open_fds gauge\n\
            process_open_fds 7\n\
            # TYPE spanledger_fsync_seconds histogram\n\
            # UNIT spanledger_fsync_seconds seconds\n\
            # HELP spanledger_fsync_seconds How long.\n\
            spanledger_fsync_seconds_bucket{disk=\"a\",le=\"1.0\"} 1\n\
            spanledger_fsync_seconds_bucket{disk=\"a\",le=\"+Inf\"} 1\n\
            spanledger_fsync_seconds_sum{disk=\"a\"} 0.5\n\
            spanledger_fsync_seconds_count{disk=\"a\"} 1\n\
            # TYPE odd unknown\n\
            odd 1\n\
            # TYPE s summary\n\
            s{quantile=\"1.0\"} 3\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn own_metrics_stay_as_they_are_in_the_prometheus_format() {
        let mut out = String::new();
        append_own(OWN, ExpositionFormat::Text, &mut out);
        assert_eq!(out, OWN);
        append_own("a 1", ExpositionFormat::Text, &mut out);
        assert!(out.ends_with("a 1\n"));
    }
}
