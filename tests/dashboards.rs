//! The files under `dashboards/` mention only what exists, and pass their own checks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, process::Command};

use serde_json::{Map, Value, json};
use spanledger::rules::{Catalogue, model::Instrument};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards"))
}

#[test]
fn dashboards_may_mention_exactly_the_metrics_labels_and_buckets_of_the_built_in_rules() {
    let names: Value = serde_json::from_slice(&std::fs::read(folder().join("names.json")).unwrap()).unwrap();
    let catalogue = Catalogue::built_in();
    let built_in: Map<String, Value> = catalogue
        .rules()
        .iter()
        .map(|rule| {
            let mut labels: Vec<&str> = rule.label_names().collect();
            labels.sort_unstable();
            let metric = match &rule.instrument {
                Instrument::Counter => json!({"type": "counter", "labels": labels}),
                Instrument::Histogram { buckets } => {
                    json!({"type": "histogram", "labels": labels, "buckets": buckets})
                }
            };
            (rule.name.clone(), metric)
        })
        .collect();
    let mut mentioned = names["metrics"].as_object().unwrap().clone();
    for metric in mentioned.values_mut() {
        let labels = metric["labels"].as_array_mut().unwrap();
        labels.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        if let Some(buckets) = metric.get_mut("buckets").and_then(Value::as_array_mut) {
            for bound in buckets {
                *bound = json!(bound.as_f64().unwrap());
            }
        }
    }
    for (name, metric) in &built_in {
        assert_eq!(
            mentioned.get(name),
            Some(metric),
            "{name} in dashboards/names.json and in the built-in rules"
        );
    }
    assert_eq!(
        mentioned.len(),
        built_in.len(),
        "dashboards/names.json has a metric that no rule makes"
    );
}

fn python(script: &str) {
    let done = Command::new("python3")
        .arg(folder().join(script))
        .current_dir(folder())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 runs; scripts/test.sh installs it");
    assert!(
        done.status.success(),
        "{script} found mistakes:\n{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn every_dashboard_and_alert_file_passes_its_checks() {
    python("check.py");
}

#[test]
fn the_checks_notice_what_they_are_for() {
    python("test_check.py");
}
