//! The store and the matcher against a naive reference, for random spans.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{ExpositionFormat, Tally};
use crate::rules::testing::{TestSpan, request, span};
use crate::rules::{Catalogue, RuleFile};

const RULES: &str = "
metrics:
  - {name: calls_total, type: counter, help: C., when: {any_of: [{span_name: call}, span.called]}, labels: {who: span.who, how: {first_of: span.how, optional: true}}}
  - {name: size_bytes, type: histogram, help: S., when: span.size, value: span.size, buckets: [1, 10, 100], labels: {who: span.who}}
  - {name: moved_total, type: counter, help: M., when: {span_name: [call, move]}, value: {split_by: way, parts: {in: span.in, out: span.out}}, labels: {who: span.who}}
";

/// What a span of the test may carry.
#[derive(Debug, Clone)]
struct Fields {
    name: &'static str,
    called: bool,
    who: Option<String>,
    how: Option<i64>,
    size: Option<f64>,
    moved: (Option<u16>, Option<u16>),
}

fn fields() -> impl Strategy<Value = Fields> {
    let who = prop_oneof![Just(None), "[ab\"\\\\\n]{0,2}".prop_map(Some)];
    let size = prop_oneof![
        Just(None),
        (0u32..2000).prop_map(|tenths| Some(f64::from(tenths) / 10.0))
    ];
    let name = prop_oneof![Just("call"), Just("move"), Just("other")];
    let moved = (any::<Option<u16>>(), any::<Option<u16>>());
    let all = (name, any::<bool>(), who, proptest::option::of(-1i64..2), size, moved);
    all.prop_map(|(name, called, who, how, size, moved)| Fields {
        name,
        called,
        who,
        how,
        size,
        moved,
    })
}

impl Fields {
    fn span(&self) -> TestSpan {
        let mut span = span(self.name);
        if self.called {
            span = span.with("called", "yes");
        }
        if let Some(who) = &self.who {
            span = span.with("who", who.clone());
        }
        if let Some(how) = self.how {
            span = span.with("how", how);
        }
        if let Some(size) = self.size {
            span = span.with("size", size);
        }
        if let Some(input) = self.moved.0 {
            span = span.with("in", i64::from(input));
        }
        if let Some(output) = self.moved.1 {
            span = span.with("out", output.to_string());
        }
        span
    }
}

/// Series by metric and label values, with all that was observed. Over the cap, the label values are empty.
#[derive(Default)]
struct Reference {
    series: HashMap<(&'static str, Vec<String>), Vec<f64>>,
    cap: usize,
}

impl Reference {
    fn add(&mut self, metric: &'static str, labels: Vec<String>, value: f64) {
        let held = self
            .series
            .keys()
            .filter(|(name, labels)| *name == metric && !labels.is_empty())
            .count();
        let is_known = self.series.contains_key(&(metric, labels.clone()));
        let labels = if is_known || held < self.cap {
            labels
        } else {
            Vec::new()
        };
        self.series.entry((metric, labels)).or_default().push(value);
    }

    fn count(&mut self, fields: &Fields) {
        let who = fields
            .who
            .clone()
            .filter(|who| !who.is_empty())
            .unwrap_or_else(|| "unknown".to_owned());
        if fields.name == "call" || fields.called {
            let how = fields.how.map(|how| how.to_string()).unwrap_or_default();
            self.add("calls_total", vec![who.clone(), how], 1.0);
        }
        if let Some(size) = fields.size {
            self.add("size_bytes", vec![who.clone()], size);
        }
        if fields.name != "other" {
            for (way, moved) in [("in", fields.moved.0), ("out", fields.moved.1)] {
                if let Some(moved) = moved {
                    self.add("moved_total", vec![who.clone(), way.to_owned()], f64::from(moved));
                }
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((metric, values), observed) in &self.series {
            let names: &[&str] = match *metric {
                "calls_total" => &["who", "how"],
                "size_bytes" => &["who"],
                _ => &["who", "way"],
            };
            let escaped = |value: &String| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let pairs = names
                .iter()
                .zip(values)
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
            let mut labels = pairs.collect::<Vec<_>>().join(",");
            if values.is_empty() {
                labels = "otel_metric_overflow=\"true\"".to_owned();
            }
            let sum: f64 = observed.iter().fold(0.0, |sum, value| sum + value);
            if *metric != "size_bytes" {
                lines.push(format!("{metric}{{{labels}}} {sum}"));
                continue;
            }
            for bound in [1.0, 10.0, 100.0, f64::INFINITY] {
                let count = observed.iter().filter(|value| **value <= bound).count();
                let bound = if bound.is_finite() {
                    bound.to_string()
                } else {
                    "+Inf".to_owned()
                };
                lines.push(format!("{metric}_bucket{{{labels},le=\"{bound}\"}} {count}"));
            }
            lines.push(format!("{metric}_sum{{{labels}}} {sum}"));
            lines.push(format!("{metric}_count{{{labels}}} {}", observed.len()));
        }
        lines.sort();
        lines
    }
}

fn catalogue() -> Catalogue {
    let disabled = |name: &str| format!("  - {{name: {name}, enabled: false}}\n");
    let built_in: String = Catalogue::built_in().names().map(disabled).collect();
    let files = [format!("metrics:\n{built_in}"), RULES.to_owned()];
    let files = files.map(|text| RuleFile {
        name: "t.yaml".to_owned(),
        text,
    });
    Catalogue::load(&files, &[], &[]).unwrap()
}

proptest! {
    #[test]
    fn the_series_are_those_of_a_naive_count(
        requests in prop::collection::vec(prop::collection::vec(fields(), 0..8), 0..12),
        cap in 0usize..12,
    ) {
        let mut tally = Tally::new(&catalogue(), cap);
        let mut reference = Reference { cap, ..Reference::default() };
        for spans in &requests {
            tally.count(&request(spans.iter().map(Fields::span)), 1);
            spans.iter().for_each(|fields| reference.count(fields));
        }
        let text = tally.exposition(ExpositionFormat::Text);
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        lines.sort();
        prop_assert_eq!(lines, reference.lines());
    }
}
