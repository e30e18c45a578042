use super::*;

fn load(text: &str) -> Result<Catalogue, Mistakes> {
    let file = RuleFile {
        name: "my.yaml".to_owned(),
        text: text.to_owned(),
    };
    Catalogue::load(&[file], &[], &[])
}

fn mistakes(text: &str) -> Vec<String> {
    load(text).unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_built_in_catalogue_loads_and_has_every_metric_of_the_contract() {
    let catalogue = Catalogue::built_in();
    let names: Vec<&str> = catalogue.names().collect();
    let expected = "code_executions_total code_duration_ms code_memory_mb code_tokens_used_total code_cost_usd_total code_exit_code_total \
        code_validation_total e2b_executions_total e2b_duration_ms e2b_memory_mb e2b_exit_code_total \
        wasmedge_executions_total wasmedge_execution_time_ms bacalhau_executions_total bacalhau_duration_ms \
        runtime_tool_execute_seconds runtime_tool_errors_total runtime_tool_timeouts_total \
        runtime_bun_process_exits_total runtime_tool_output_bytes workflow_executions_total workflow_duration_seconds \
        node_executions_total node_latency_ms llm_requests_total llm_latency_ms llm_tokens_total llm_cost_usd_total \
        agent_executions_total agent_latency_ms agent_tokens_used_total agent_cost_usd_total agent_iterations \
        connector_requests_total connector_latency_ms rag_requests_total rag_latency_ms rag_sources_found";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn printed_rules_load_again_as_the_same_rules() {
    let text = r#"
metrics:
  - name: everything_total
    type: counter
    help: "Every: \"thing\"\nin two lines."
    when: {}
    labels: {plan: {constant: "a b"}}
  - name: odd_seconds
    type: histogram
    help: Odd.
    when:
      any_of:
        - {not: {and: [execution_span, {span.a: "null"}]}}
        - {attribute: duration_ms, at_least: 2.5, below: 1000}
        - {attribute: span_name, starts_with: "x y"}
        - {attribute: resource.service.name, exists: false}
        - {attribute: tool_id, exists: true}
        - {span.b: [1, "", two]}
    value: {split_by: part, parts: {one: {sum_of: [span.a, 2, {first_of: [span.b], scale: 0.001}]}, two: duration_seconds}}
    buckets: [0, 0.5, 1e6]
    labels:
      a: {first_of: [span.a, scope.b, tool_outcome], as: boolean, map: {"true": "yes"}, one_of: ["yes"], else: "no", optional: true}
      b: resource.b
  - {name: rag_requests_total, enabled: false}
"#;
    let catalogue = load(text).unwrap();
    let printed = catalogue.to_yaml();
    let again = load(&printed).unwrap_or_else(|mistakes| panic!("{mistakes}\n{printed}"));
    assert_eq!(again.to_yaml(), printed);
    assert_eq!(again, catalogue);
    assert!(!catalogue.names().any(|name| name == "rag_requests_total"));
}

#[test]
fn a_later_rule_takes_the_place_of_an_earlier_one_of_its_name() {
    let text = "metrics: [{name: code_executions_total, type: counter, help: Mine., when: span.x}]";
    let catalogue = load(text).unwrap();
    assert_eq!(catalogue.rules()[0].help, "Mine.");
    assert_eq!(catalogue.rules().len(), Catalogue::built_in().rules().len());
}

#[test]
fn what_a_metric_counts_decides_about_its_digest_and_its_help_text_does_not() {
    let digest = |text: &str| *load(text).unwrap().digests().last().unwrap();
    let first = digest("metrics: [{name: a_total, type: counter, help: A., when: span.x}]");
    assert_eq!(
        first,
        digest("metrics: [{name: a_total, type: counter, help: Other., when: {any_of: [span.x]}}]")
    );
    assert_ne!(
        first,
        digest("metrics: [{name: a_total, type: counter, help: A., when: span.y}]")
    );
    let labelled = Catalogue::load(&[], &["service.name".to_owned()], &[]).unwrap();
    assert_ne!(labelled.digests()[0], Catalogue::built_in().digests()[0]);
    let constant = Catalogue::load(&[], &[], &[("zone".to_owned(), "a".to_owned())]).unwrap();
    assert_eq!(constant.digests(), Catalogue::built_in().digests());
}

#[test]
fn all_mistakes_are_named_with_place_path_expectation_and_nearest_key() {
    let text = r#"
metrics:
  - name: bad-name
    type: gauge
    help: Bad.
    when: executon_span
  - name: no_totals
    typ: counter
    type: counter
    help: Bad.
    when: {any_off: [span.x]}
  - name: slow_seconds
    type: histogram
    help: Bad.
    when: tool_id
    value: span_name
    buckets: [1, 3, 2]
    labels:
      user: span.user.id
      le: span.x
      ms: duration_ms
      x: {first_off: span.x, as: number}
      y: {first_of: span.x, else: z}
"#;
    let expected = [
        "my.yaml:3:11: metrics[0].name: expected letters, digits and `_`, not beginning with a digit",
        "my.yaml:4:11: metrics[0].type: expected counter or histogram, got `gauge`",
        "my.yaml:6:11: metrics[0].when: expected `span.<key>`, `resource.<key>`, `scope.<key>`, got `executon_span`; did \
         you mean `execution_span`?",
        "my.yaml:7:11: metrics[1].name: the name of a counter ends in `_total`",
        "my.yaml:8:5: metrics[1].typ: unknown key; did you mean `type`?",
        "my.yaml:11:12: metrics[1].when.any_off: unknown key; did you mean `any_of`?",
        "my.yaml:15:11: metrics[2].when: `tool_id` is a value; compare it: `{tool_id: ...}`",
        "my.yaml:16:12: metrics[2].value: `span_name` is not a number",
        "my.yaml:17:21: metrics[2].buckets[2]: expected upper bounds in ascending order",
        "my.yaml:19:13: metrics[2].labels.user: ids of users, organizations, traces and executions are never labels",
        "my.yaml:20:7: metrics[2].labels.le: the label name `le` is reserved",
        "my.yaml:21:11: metrics[2].labels.ms: `duration_ms` is a number: every value would be a series of its own",
        "my.yaml:22:10: metrics[2].labels.x: expected `first_of`: where the value comes from, or `constant`",
        "my.yaml:22:11: metrics[2].labels.x.first_off: unknown key; did you mean `first_of`?",
        "my.yaml:23:35: metrics[2].labels.y.else: `else` stands for a value that is not in `one_of`; give `one_of` too",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn names_that_would_clash_in_the_exposition_are_mistakes() {
    let twice = "metrics:\n  - {name: a_total, type: counter, help: A., when: {}}\n  - {name: a_total, type: counter, help: A., when: {}}";
    assert_eq!(
        mistakes(twice),
        ["my.yaml:3:12: metrics[1].name: the metric is given twice; the first is in line 2"]
    );
    let family = "metrics:\n  - {name: agent_iterations_total, type: counter, help: A., when: {}}";
    assert_eq!(
        mistakes(family),
        [
            "my.yaml:2:12: metrics[0].name: `agent_iterations` and `agent_iterations_total` are one family in OpenMetrics; \
          one of them needs another name"
        ]
    );
    let own = "metrics:\n  - {name: spanledger_x_total, type: counter, help: A., when: {}}";
    assert_eq!(
        mistakes(own),
        ["my.yaml:2:12: metrics[0].name: names that begin with `spanledger_` or `process_` are the program's own"]
    );
}

#[test]
fn common_labels_that_clash_or_identify_someone_are_mistakes() {
    let keys = [
        "deployment.environment".to_owned(),
        "deployment_environment".to_owned(),
        "organization.id".to_owned(),
    ];
    let constants = [
        ("language".to_owned(), "x".to_owned()),
        ("a.b".to_owned(), "x".to_owned()),
    ];
    let found = Catalogue::load(&[], &keys, &constants).unwrap_err().to_string();
    let expected = "metrics.resource_labels: `organization.id`: ids of users, organizations, traces and executions are never labels\n\
        metrics.const_labels: `a.b`: expected letters, digits and `_`, not beginning with a digit\n\
        metrics.resource_labels: the label `deployment_environment` is also given by `metrics.resource_labels`\n\
        metrics.const_labels: the metric `code_executions_total` has a label `language` of its own";
    assert_eq!(found, expected);
}

#[test]
fn the_documentation_shows_the_catalogue_as_it_is() {
    let catalogue = Catalogue::built_in();
    let generated = [
        ("docs/metrics.md", "metrics", table::metrics(&catalogue)),
        ("docs/metrics.md", "sources", table::sources(&catalogue)),
        ("docs/metric-rules.md", "notions", table::notions()),
    ];
    for (file, section, table) in generated {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = with_table(&text, section, &table);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, expected).unwrap();
        } else {
            assert!(
                text == expected,
                "{file} is out of date; run this test with UPDATE_DOCS=1"
            );
        }
    }
}

/// The text with the table behind the marker `<!-- section -->` replaced.
fn with_table(text: &str, section: &str, table: &str) -> String {
    let marker = format!("<!-- {section} -->\n");
    let (before, after) = text.split_once(&marker).unwrap();
    let rest = after.trim_start_matches('\n');
    let old_table = rest
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.len() + 1)
        .sum();
    let rest = rest[old_table..].trim_start_matches('\n');
    let gap = if rest.is_empty() { "" } else { "\n" };
    format!("{before}{marker}\n{table}{gap}{rest}")
}

/// The names of the rules that add something, once for each time.
fn observed(catalogue: &Catalogue, spans: Vec<testing::TestSpan>) -> Vec<String> {
    let mut names = Vec::new();
    let matcher = matcher::Matcher::new(catalogue, 0);
    let mut workspace = matcher::Workspace::default();
    matcher.observe(&testing::request(spans), &mut workspace, &mut |observation| {
        names.push(catalogue.rules()[observation.rule].name.clone());
    });
    names
}

#[test]
fn of_hundreds_of_rules_each_counts_its_own_spans_in_the_order_of_the_rules() {
    const RULES: usize = 200;
    // Every seventh must always be asked, as nothing that it names has to be there.
    let rules: Vec<String> = (0..RULES)
        .map(|rule| match rule % 7 {
            0 => format!("{{name: n{rule}_total, type: counter, help: H., when: {{not: {{span.k{rule}: x}}}}}}"),
            _ => format!("{{name: n{rule}_total, type: counter, help: H., when: {{span.k{rule}: x}}}}"),
        })
        .collect();
    let catalogue = load(&format!("metrics: [{}]", rules.join(", "))).unwrap();
    for chosen in [
        vec![],
        vec![1],
        vec![0, 63, 64, 65],
        vec![199, 128, 7, 2],
        (0..RULES).collect(),
    ] {
        let span = chosen
            .iter()
            .fold(testing::span("s"), |span, rule| span.with(&format!("k{rule}"), "x"));
        let expected: Vec<String> = (0..RULES)
            .filter(|rule| chosen.contains(rule) != (rule % 7 == 0))
            .map(|rule| format!("n{rule}_total"))
            .collect();
        let mut found = observed(&catalogue, vec![span]);
        found.retain(|name| name.starts_with('n'));
        assert_eq!(found, expected, "{chosen:?}");
    }
}

#[test]
fn where_only_names_decide_the_attributes_of_spans_of_those_names_are_read() {
    let built_in = Catalogue::built_in();
    let disabled: Vec<String> = built_in
        .names()
        .map(|name| format!("{{name: {name}, enabled: false}}"))
        .collect();
    let rule = "{name: mine_total, type: counter, help: H., when: {and: [{span_name: a}, {span.x: [1]}]}}";
    let catalogue = load(&format!("metrics: [{rule}, {}]", disabled.join(", "))).unwrap();
    let spans = vec![
        testing::span("a").with("x", 1),
        // Nothing of the span before is left.
        testing::span("a"),
        testing::span("b").with("x", 1),
        testing::span("a").with("x", 2),
        testing::span("a").with("x", 2).with("x", 1),
    ];
    assert_eq!(observed(&catalogue, spans), ["mine_total"; 2]);
}
