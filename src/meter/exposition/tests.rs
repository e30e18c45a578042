use std::sync::Arc;

use super::*;
use crate::meter::store::{Family, RecordTime, Store};
use crate::rules::matcher::{Matcher, Workspace};
use crate::rules::testing::{START, request, span};
use crate::rules::{Catalogue, RuleFile};

fn store_of(text: &str, spans: Vec<crate::rules::testing::TestSpan>) -> Store {
    let names: Vec<String> = Catalogue::built_in()
        .names()
        .map(|name| format!("  - {{name: {name}, enabled: false}}\n"))
        .collect();
    let file = RuleFile {
        name: "t".to_owned(),
        text: format!("metrics:\n{}{text}", names.concat()),
    };
    let catalogue = Catalogue::load(&[file], &[], &[]).unwrap();
    let mut store = Store::new(&catalogue, 2000);
    let record = RecordTime {
        sequence: 0,
        received_at: START + 5_000_000_000,
    };
    store.count(
        &Matcher::new(&catalogue, 1),
        &mut Workspace::default(),
        &request(spans),
        record,
    );
    store
}

fn text_of(store: &Store, format: ExpositionFormat) -> String {
    Rendering::new(store.snapshot(true), None, format).rest()
}

const RULES: &str = r#"
  - {name: a_total, type: counter, help: "A \"quoted\" \\ help.", when: {}, labels: {x: span.x}}
  - {name: b_seconds, type: histogram, help: B., when: {}, value: duration_seconds, buckets: [0.1, 1, 1000000]}
  - {name: c_total, type: counter, help: C., when: span.never}
"#;

#[test]
fn the_prometheus_format_has_help_type_and_samples_of_every_family() {
    let store = store_of(RULES, vec![span("s").with("x", "1"), span("s").with("x", "é\"\\\n")]);
    let expected = r#"# HELP a_total A "quoted" \\ help.
# TYPE a_total counter
a_total{x="1"} 1
a_total{x="é\"\\\n"} 1
# HELP b_seconds B.
# TYPE b_seconds histogram
b_seconds_bucket{le="0.1"} 2
b_seconds_bucket{le="1"} 2
b_seconds_bucket{le="1000000"} 2
b_seconds_bucket{le="+Inf"} 2
b_seconds_sum 0.2
b_seconds_count 2
# HELP c_total C.
# TYPE c_total counter
"#;
    assert_eq!(text_of(&store, ExpositionFormat::Text), expected);
}

#[test]
fn open_metrics_has_units_created_times_exemplars_and_canonical_bounds() {
    let store = store_of(RULES, vec![span("s").with("x", "1").lasting(250_000_000)]);
    let id = format!("trace_id=\"{}\",span_id=\"{}\"", "ab".repeat(16), "cd".repeat(8));
    let expected = format!(
        r#"# TYPE a counter
# HELP a A \"quoted\" \\ help.
a_total{{x="1"}} 1 # {{{id}}} 1 1700000000.250
a_created{{x="1"}} 1700000005.000
# TYPE b_seconds histogram
# UNIT b_seconds seconds
# HELP b_seconds B.
b_seconds_bucket{{le="0.1"}} 0
b_seconds_bucket{{le="1.0"}} 1 # {{{id}}} 0.25 1700000000.250
b_seconds_bucket{{le="1e+06"}} 1
b_seconds_bucket{{le="+Inf"}} 1
b_seconds_sum 0.25
b_seconds_count 1
b_seconds_created 1700000005.000
# TYPE c counter
# HELP c C.
"#
    );
    assert_eq!(text_of(&store, ExpositionFormat::OpenMetrics), expected);
}

#[test]
fn series_come_in_the_order_of_their_labels_whatever_the_order_of_the_spans() {
    let names = ["delta", "alpha", "charlie", "bravo"];
    let one = store_of(RULES, names.iter().map(|name| span("s").with("x", *name)).collect());
    let other = store_of(
        RULES,
        names.iter().rev().map(|name| span("s").with("x", *name)).collect(),
    );
    assert_eq!(
        text_of(&one, ExpositionFormat::Text),
        text_of(&other, ExpositionFormat::Text)
    );
}

#[test]
fn a_snapshot_stays_as_it_is_while_series_are_added() {
    let mut store = store_of(RULES, vec![span("s").with("x", "1")]);
    let before = store.snapshot(true);
    let text = text_of(&store, ExpositionFormat::Text);
    store.families.iter_mut().for_each(|family: &mut Family| {
        family.insert(b"\x01\x00z", 1, 1);
    });
    assert_eq!(Arc::strong_count(&before[0].directory), 1);
    let again = Rendering::new(before, None, ExpositionFormat::Text).rest();
    assert_eq!(again, text);
}

#[test]
fn the_pieces_of_a_scrape_are_its_text_and_none_is_much_longer_than_was_asked_for() {
    let spans = (0..500).map(|number| span("s").with("x", format!("{number}-{}", "x".repeat(200))));
    let store = store_of(RULES, spans.collect::<Vec<_>>());
    for format in [ExpositionFormat::Text, ExpositionFormat::OpenMetrics] {
        let rendering = || Rendering::new(store.snapshot(true), Some("own 1\n".to_owned()), format);
        let text = rendering().rest();
        for length in [1, 1_000, 64 << 10, 1 << 30] {
            let mut rendering = rendering();
            let pieces: Vec<String> = std::iter::from_fn(|| rendering.next_piece(length)).collect();
            assert_eq!(pieces.concat(), text);
            // A series is not divided.
            assert!(pieces.iter().all(|piece| piece.len() < length + 4_000));
        }
    }
}
