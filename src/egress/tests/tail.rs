//! Decisions over whole traces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

use crate::egress::{
    Decided, EgressOptions, Glob, KeepRule, Policy, SpanCondition, SpanRule, Tail, Threshold, Workspace,
};
use crate::otlp::wire::put_bytes;

const SECOND: u64 = 1_000_000_000;

fn policy(change: impl FnOnce(&mut EgressOptions)) -> Arc<Policy> {
    let mut options = EgressOptions {
        ratio: Threshold::NEVER,
        keep: vec![KeepRule::Errors],
        wait: Duration::from_secs(10),
        ..EgressOptions::default()
    };
    change(&mut options);
    Arc::new(Policy::compile(&options).unwrap())
}

fn span(trace: u8, name: &str) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![1; 8],
        name: name.into(),
        start_time_unix_nano: 100 * SECOND,
        end_time_unix_nano: 101 * SECOND,
        ..Span::default()
    }
}

fn failed(trace: u8, name: &str) -> Span {
    Span {
        status: Some(Status {
            code: 2,
            message: String::new(),
        }),
        ..span(trace, name)
    }
}

fn request(spans: Vec<Span>) -> Bytes {
    let resource_spans = vec![ResourceSpans {
        resource: Some(Resource {
            dropped_attributes_count: 3,
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            spans,
            schema_url: "urn:scope".into(),
            ..ScopeSpans::default()
        }],
        schema_url: "urn:resource".into(),
    }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn names(decided: &Decided) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(decided.body.clone()).unwrap();
    for resource in &request.resource_spans {
        assert_eq!(
            (
                resource.schema_url.as_str(),
                resource.scope_spans[0].schema_url.as_str()
            ),
            ("urn:resource", "urn:scope")
        );
        assert_eq!(resource.resource.as_ref().unwrap().dropped_attributes_count, 3);
    }
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let names: Vec<String> = scopes
        .flat_map(|scope| &scope.spans)
        .map(|span| span.name.clone())
        .collect();
    assert_eq!(names.len(), decided.spans as usize);
    names
}

/// A tail with what it counted.
struct Rig {
    policy: Arc<Policy>,
    tail: Tail,
    workspace: Workspace,
}

impl Rig {
    fn new(policy: &Arc<Policy>) -> Rig {
        Rig {
            policy: Arc::clone(policy),
            tail: Tail::new(policy).unwrap(),
            workspace: Workspace::default(),
        }
    }

    fn add(&mut self, sequence: u64, second: u64, spans: Vec<Span>) -> bool {
        self.tail
            .add(sequence, second * SECOND, &request(spans), &mut self.workspace)
            .unwrap()
    }

    /// Everything that is due at this second, if all that was received before was seen: sequences and names.
    fn due(&mut self, second: Option<u64>) -> Vec<(u64, Vec<String>)> {
        let mut all = Vec::new();
        while let Some(decided) = self
            .tail
            .next_due(second.map(|second| second * SECOND), &mut self.workspace)
        {
            all.push((decided.sequence, names(&decided)));
        }
        all
    }

    fn counted(&mut self) -> BTreeMap<String, u64> {
        self.policy.count(&mut self.workspace, |_, _| {});
        self.policy
            .counted()
            .map(|(rule, count)| (rule.name.clone(), count))
            .collect()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_trace_with_an_error_is_kept_whole_whichever_of_its_requests_has_the_error() {
    let mut rig = Rig::new(&policy(|_| {}));
    assert!(rig.add(7, 1000, vec![span(1, "a"), span(2, "x"), span(1, "b")]));
    assert!(
        !rig.add(8, 1004, vec![span(2, "y"), failed(1, "c")]),
        "no trace begins here"
    );
    assert!(rig.add(9, 1009, vec![span(1, "d"), span(3, "z")]));
    assert_eq!(
        rig.due(Some(1010)),
        [],
        "the wait and a second for what is on its way to the disk"
    );
    assert_eq!(rig.due(Some(1011)), [(7, texts(&["a", "b", "c", "d"]))]);
    assert_eq!(rig.due(Some(1020)), [(9, vec![])]);
    assert!(rig.tail.is_empty());
    assert_eq!(rig.tail.held(), 0, "nothing is held for nothing");
    let counted = rig.counted();
    assert_eq!((counted["sample.keep[0]"], counted["sample.ratio"]), (1, 3));
}

#[test]
fn how_late_records_are_read_does_not_matter() {
    let mut rig = Rig::new(&policy(|_| {}));
    // An hour after they were received, one after another.
    rig.add(1, 1000, vec![span(1, "a")]);
    assert_eq!(rig.due(None), []);
    rig.add(2, 1010, vec![failed(1, "b")]);
    assert_eq!(rig.due(None), []);
    rig.add(3, 1012, vec![span(2, "z")]);
    assert_eq!(rig.due(None), [(1, texts(&["a", "b"]))]);
    assert_eq!(rig.due(Some(4600)), [(3, vec![])]);
}

#[test]
fn what_comes_late_goes_with_a_trace_that_was_kept_and_is_decided_anew_otherwise() {
    let mut rig = Rig::new(&policy(|_| {}));
    rig.add(1, 1000, vec![failed(1, "a"), span(2, "x")]);
    assert_eq!(rig.due(Some(1011)), [(1, texts(&["a"]))]);
    rig.add(2, 1012, vec![span(1, "late"), span(2, "late x")]);
    rig.add(3, 1013, vec![failed(2, "late error")]);
    assert_eq!(rig.due(Some(1100)), [(2, texts(&["late", "late x", "late error"]))]);
    assert_eq!(rig.counted()["sample.keep[0]"], 2, "each trace counts once");
}

#[test]
fn slow_traces_are_measured_from_the_first_start_to_the_last_end() {
    let mut rig = Rig::new(&policy(|options| {
        options.keep = vec![KeepRule::SlowerThan(Duration::from_secs(5))]
    }));
    let at = |trace, name: &str, start: u64, end: u64| Span {
        start_time_unix_nano: start * SECOND,
        end_time_unix_nano: end * SECOND,
        ..span(trace, name)
    };
    rig.add(1, 1000, vec![at(1, "a", 10, 12), at(2, "b", 10, 15)]);
    rig.add(2, 1001, vec![at(1, "c", 14, 16)]);
    assert_eq!(rig.due(Some(1011)), [(1, texts(&["a", "c"]))]);
}

#[test]
fn conditions_on_spans_and_failed_executions_keep_traces() {
    let rule = SpanRule {
        any_of: vec![SpanCondition {
            attributes: vec![("tier".into(), vec![Glob::new("gold*")])],
            ..SpanCondition::default()
        }],
        says: "tier".into(),
    };
    let mut rig = Rig::new(&policy(|options| {
        options.keep = vec![KeepRule::Spans(rule), KeepRule::Errors]
    }));
    let with = |trace, name: &str, key: &str, value: &str| {
        let mut span = span(trace, name);
        span.attributes = vec![opentelemetry_proto::tonic::common::v1::KeyValue {
            key: key.into(),
            value: Some(opentelemetry_proto::tonic::common::v1::AnyValue {
                value: Some(opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(
                    value.into(),
                )),
            }),
            ..Default::default()
        }];
        span
    };
    rig.add(
        1,
        1000,
        vec![
            with(1, "gold", "tier", "golden"),
            with(2, "silver", "tier", "silver"),
            with(3, "failed run", "code.success", "false"),
            with(4, "good run", "code.success", "true"),
            with(5, "typed", "error.type", "Timeout"),
            with(6, "tool", "tool_id", "x"),
        ],
    );
    assert_eq!(rig.due(Some(1011)), [(1, texts(&["gold", "failed run", "typed"]))]);
    let counted = rig.counted();
    assert_eq!((counted["sample.keep[0]"], counted["sample.keep[1]"]), (1, 2));
}

#[test]
fn the_others_are_kept_by_the_ratio_with_its_threshold_and_dropped_spans_are_not_asked() {
    let mut rig = Rig::new(&policy(|options| {
        options.ratio = Threshold::from_ratio(0.5).unwrap();
        options.drop_spans = vec![SpanRule {
            any_of: vec![SpanCondition {
                names: vec![Glob::new("noise*")],
                ..SpanCondition::default()
            }],
            says: "noise".into(),
        }];
    }));
    // The randomness of a trace is made of its number.
    rig.add(
        1,
        1000,
        vec![
            span(0x90, "in"),
            span(0x70, "out"),
            failed(0x71, "kept"),
            failed(0x72, "noise"),
        ],
    );
    let decided = rig.tail.next_due(Some(1011 * SECOND), &mut rig.workspace).unwrap();
    assert_eq!(names(&decided), ["in", "kept"]);
    let request = ExportTraceServiceRequest::decode(decided.body).unwrap();
    let states: Vec<&str> = request.resource_spans[0].scope_spans[0]
        .spans
        .iter()
        .map(|span| span.trace_state.as_str())
        .collect();
    assert_eq!(states, ["ot=th:8", ""], "what a rule keeps stands for itself alone");
    let counted = rig.counted();
    assert_eq!((counted["drop_spans[0]"], counted["sample.ratio"]), (1, 1));
}

#[test]
fn memory_is_bounded_and_what_exceeds_it_is_decided_early_and_counted() {
    const MEMORY: usize = 1 << 20;
    let mut rig = Rig::new(&policy(|options| options.memory = MEMORY));
    let mut early = 0;
    for number in 0..4000_u64 {
        let mut spans = vec![failed(1, &"x".repeat(500)), span(2, &"y".repeat(500))];
        for (index, span) in spans.iter_mut().enumerate() {
            span.trace_id[..8].copy_from_slice(&(number * 2 + index as u64).to_be_bytes());
        }
        rig.add(number, 1000, spans);
        while let Some(decided) = rig.tail.next_early(false, &mut rig.workspace) {
            assert_eq!(
                (decided.sequence, decided.spans),
                (early, 1),
                "the oldest first, and the error is kept"
            );
            early += 1;
        }
        assert!(rig.tail.held() <= MEMORY);
    }
    assert!(early > 2000, "{early}");
    assert_eq!(rig.counted()["sample.memory"], early * 2);
    let rest = rig.due(Some(2000));
    assert_eq!(rest.len() as u64 + early, 4000);
}

#[test]
fn what_is_read_again_after_a_crash_loses_no_kept_trace_wherever_the_position_stood() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let policy = policy(|_| {});
        // Traces of several spans over several records, within the wait.
        let mut records: Vec<Vec<Span>> = vec![Vec::new(); 40];
        let mut wanted: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for trace in 1..40_u8 {
            let (begin, error) = (random.usize(0..34), random.usize(0..3));
            for part in 0..3 {
                let name = format!("{trace}.{part}");
                let is_failed = trace.is_multiple_of(2) && part == error;
                let span = if is_failed {
                    failed(trace, &name)
                } else {
                    span(trace, &name)
                };
                records[begin + random.usize(0..5)].push(span);
                if trace.is_multiple_of(2) {
                    wanted.entry(trace).or_default().push(name);
                }
            }
        }
        let mut delivered: Vec<String> = Vec::new();
        let mut position = 0;
        let mut rig = Rig::new(&policy);
        let mut undecided = Vec::new();
        let mut at = 0;
        while at < records.len() || !undecided.is_empty() {
            if at < records.len() {
                if rig.add(at as u64, 1000 + 2 * at as u64, records[at].clone()) {
                    undecided.push(at as u64);
                }
                at += 1;
            }
            let now = (at == records.len()).then_some(5000);
            for (sequence, names) in rig.due(now) {
                delivered.extend(names);
                undecided.retain(|waiting| *waiting != sequence);
            }
            position = undecided.first().map_or(at, |first| *first as usize).max(position);
            if random.u8(..6) == 0 && at < records.len() {
                // Killed: what was delivered is delivered, the rest is read again.
                rig = Rig::new(&policy);
                undecided.clear();
                at = position;
            }
        }
        for name in wanted.values().flatten() {
            assert!(delivered.contains(name), "seed {seed}: {name} is lost");
        }
    }
}

#[test]
fn a_large_resource_with_many_scopes_is_held_and_sent_once() {
    use prost::Message as _;

    const SCOPES: usize = 2_000;
    let mut rig = Rig::new(&policy(|_| ()));
    let mut sent =
        opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(request(vec![failed(
            1, "run",
        )]))
        .unwrap();
    let resource = &mut sent.resource_spans[0];
    let large = opentelemetry_proto::tonic::common::v1::EntityRef {
        r#type: "x".repeat(1 << 20),
        ..Default::default()
    };
    resource.resource.get_or_insert_default().entity_refs.push(large);
    let scope = resource.scope_spans[0].clone();
    resource.scope_spans.clear();
    for number in 0..SCOPES {
        let mut scope = scope.clone();
        scope.schema_url = number.to_string();
        resource.scope_spans.push(scope.clone());
        // One without spans stands for nothing.
        scope.spans.clear();
        resource.scope_spans.push(scope);
    }
    let body = sent.encode_to_vec().into();
    assert!(rig.tail.add(1, 1_000 * SECOND, &body, &mut rig.workspace).unwrap());
    assert!(rig.tail.held() < 4 << 20, "{}", rig.tail.held());
    let decided = rig.tail.next_due(Some(2_000 * SECOND), &mut rig.workspace).unwrap();
    assert_eq!(decided.spans as usize, SCOPES);
    assert!(decided.body.len() < 2 << 20, "{}", decided.body.len());
    assert_eq!(rig.tail.held(), 0);
}

#[test]
fn a_span_that_cannot_be_given_its_threshold_is_handed_out_to_be_set_aside_and_harms_no_other() {
    let policy = policy(|options| options.ratio = Threshold::from_ratio(0.5).unwrap());
    let mut rig = Rig::new(&policy);
    // These ids belong to the kept half. Of the second span a field is longer than the span.
    let before = request(vec![span(0xf0, "before")]);
    let mut damaged = span(0xf0, "").encode_to_vec();
    damaged.extend([0x2a, 0x7f]);
    let mut broken = Vec::new();
    put_bytes(&mut broken, 2, &damaged);
    put_bytes(&mut broken, 2, &span(0xf0, "behind").encode_to_vec());
    let (mut scope, mut resource) = (Vec::new(), Vec::new());
    put_bytes(&mut scope, 2, &broken);
    put_bytes(&mut resource, 1, &scope);
    let body: Bytes = [before, resource.into()].concat().into();
    assert!(rig.tail.add(1, SECOND, &body, &mut rig.workspace).unwrap());
    rig.add(2, 1, vec![failed(0xf1, "another trace")]);

    let decided = rig.tail.next_due(Some(20 * SECOND), &mut rig.workspace).unwrap();
    let request = ExportTraceServiceRequest::decode(decided.body.clone()).unwrap();
    let spans = request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans[0].spans);
    assert_eq!(
        spans.map(|span| span.name.as_str()).collect::<Vec<_>>(),
        ["before", "behind"]
    );
    assert_eq!(decided.spans, 2);
    let unreadable = decided.unreadable.unwrap();
    assert_eq!(unreadable.spans, 1);
    assert!(unreadable.body.ends_with(&damaged), "as it was received");
    assert_eq!(rig.due(Some(20)), [(2, texts(&["another trace"]))]);
}
