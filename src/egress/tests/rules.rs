//! Each rule by itself.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

use super::{applied, compiled, texts};
use crate::egress::{EgressOptions, Glob, Policy, Secret, SpanCondition, SpanRule, Workspace};
use crate::otlp::Signal;

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..KeyValue::default()
    }
}

fn span(name: &str, attributes: Vec<KeyValue>) -> Span {
    Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: name.into(),
        attributes,
        ..Span::default()
    }
}

fn request(resource: Vec<KeyValue>, spans: Vec<Span>) -> Bytes {
    let resource = Resource {
        attributes: resource,
        ..Resource::default()
    };
    let scopes = spans.into_iter().map(|span| ScopeSpans {
        spans: vec![span],
        ..ScopeSpans::default()
    });
    let resource_spans = vec![ResourceSpans {
        resource: Some(resource),
        scope_spans: scopes.collect(),
        ..ResourceSpans::default()
    }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn left(policy: &Policy, body: &Bytes) -> ExportTraceServiceRequest {
    let left = applied(policy, Signal::Traces, body).unwrap_or_default();
    ExportTraceServiceRequest::decode(left).unwrap()
}

fn names(request: &ExportTraceServiceRequest) -> Vec<&str> {
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes
        .flat_map(|scope| &scope.spans)
        .map(|span| span.name.as_str())
        .collect()
}

fn shown(attributes: &[KeyValue]) -> Vec<String> {
    let show = |entry: &KeyValue| match entry.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => format!("{}={text}", entry.key),
        other => format!("{}={other:?}", entry.key),
    };
    attributes.iter().map(show).collect()
}

fn resource_of(policy: &Policy, attributes: Vec<KeyValue>) -> Vec<String> {
    let left = left(policy, &request(attributes, vec![span("s", vec![])]));
    shown(&left.resource_spans[0].resource.as_ref().unwrap().attributes)
}

fn attributes_of(policy: &Policy, attributes: Vec<KeyValue>) -> Vec<String> {
    let left = left(policy, &request(vec![], vec![span("s", attributes)]));
    shown(&left.resource_spans[0].scope_spans[0].spans[0].attributes)
}

fn drop_where(condition: SpanCondition) -> Policy {
    compiled(|options| {
        options.drop_spans = vec![SpanRule {
            any_of: vec![condition],
            says: "test".into(),
        }];
    })
}

#[test]
fn spans_are_dropped_when_all_of_a_condition_holds() {
    let policy = drop_where(SpanCondition {
        names: vec![Glob::new("GET *"), Glob::new("HEAD *")],
        kinds: vec!["server".into()],
        attributes: vec![("http.status".into(), vec![Glob::new("2*")])],
        resource: vec![("service.name".into(), vec![Glob::new("noisy")])],
    });
    let of_kind = |name: &str, kind, status| {
        let status = KeyValue {
            key: "http.status".into(),
            value: Some(AnyValue {
                value: Some(Value::IntValue(status)),
            }),
            ..KeyValue::default()
        };
        Span {
            kind,
            ..span(name, vec![status])
        }
    };
    let spans = vec![
        of_kind("GET /", 2, 200),
        of_kind("GET /2", 2, 500),
        of_kind("GET /3", 3, 200),
        of_kind("HEAD /", 2, 204),
        of_kind("POST /", 2, 200),
    ];
    let noisy = left(&policy, &request(vec![text("service.name", "noisy")], spans.clone()));
    assert_eq!(names(&noisy), ["GET /2", "GET /3", "POST /"]);
    assert_eq!(
        noisy.resource_spans[0].scope_spans.len(),
        3,
        "empty scopes go with their spans"
    );
    let quiet = left(&policy, &request(vec![text("service.name", "quiet")], spans));
    assert_eq!(names(&quiet).len(), 5);
}

#[test]
fn of_a_request_without_spans_left_nothing_goes() {
    let policy = drop_where(SpanCondition::default());
    assert_eq!(
        applied(&policy, Signal::Traces, &request(vec![], vec![span("s", vec![])])),
        None
    );
    let empty = request(vec![], vec![]);
    assert_eq!(
        applied(&policy, Signal::Traces, &empty),
        Some(empty),
        "what had none before is no matter of ours"
    );
}

#[test]
fn health_checks_are_known_by_their_paths_and_their_grpc_service() {
    let policy = compiled(|options| {
        options.drop_spans = vec![SpanRule {
            any_of: SpanCondition::health_checks(),
            says: "health_checks".into(),
        }];
    });
    for (name, key, value, is_dropped) in [
        ("GET", "url.path", "/healthz", true),
        ("GET", "http.target", "/ready?verbose", true),
        ("GET", "http.route", "/actuator/health/live", true),
        ("Check", "rpc.service", "grpc.health.v1.Health", true),
        ("GET /livez", "x", "y", true),
        ("GET /users", "url.path", "/users", false),
        ("GET", "url.path", "/healthy-food", false),
        ("health report", "x", "/healthz", false),
    ] {
        let body = request(vec![], vec![span(name, vec![text(key, value)])]);
        assert_eq!(
            applied(&policy, Signal::Traces, &body).is_none(),
            is_dropped,
            "{name} {key}={value}"
        );
    }
}

#[test]
fn attributes_are_removed_kept_and_hashed_by_their_keys() {
    let attributes = || vec![text("a", "1"), text("b.x", "2"), text("b.y", "3"), text("c", "4")];
    let removed = compiled(|options| options.remove_attributes = texts(&["b.*", "c"]));
    assert_eq!(attributes_of(&removed, attributes()), ["a=1"]);
    assert_eq!(resource_of(&removed, attributes()), ["a=1"]);
    let kept = compiled(|options| {
        options.keep_attributes = texts(&["b.*", "c"]);
        options.remove_attributes = texts(&["b.y"]);
    });
    assert_eq!(attributes_of(&kept, attributes()), ["b.x=2", "c=4"]);
    let hashed = |key: &str| {
        compiled(|options| {
            options.hash_attributes = texts(&["a"]);
            options.hash_key = Secret::new(key);
        })
    };
    let plain = attributes_of(&hashed(""), attributes());
    // printf 1 | sha256sum
    assert_eq!(
        plain[0],
        "a=6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    );
    assert_eq!(plain[1..], ["b.x=2", "b.y=3", "c=4"]);
    let keyed = attributes_of(&hashed("k"), attributes());
    assert_ne!(keyed[0], plain[0]);
    assert_eq!(keyed, attributes_of(&hashed("k"), attributes()));
    assert_ne!(keyed[0], attributes_of(&hashed("l"), attributes())[0]);
}

#[test]
fn texts_are_cut_at_whole_characters_after_their_secrets_are_gone() {
    let policy = compiled(|options| {
        options.redact = texts(&["SECRET"]);
        options.truncate = 7;
    });
    let attributes = vec![
        text("a", "ääää"),
        text("b", "12345SECRET"),
        text("c", "1234567"),
        text("long key", "x"),
    ];
    let expected = ["a=äää", "b=12345[r", "c=1234567", "long key=x"];
    assert_eq!(attributes_of(&policy, attributes), expected);
    let mut with_status = span("a name that is long", vec![]);
    with_status.status = Some(Status {
        message: "a message that is long".into(),
        code: 2,
    });
    let left = left(&policy, &request(vec![], vec![with_status]));
    let span = &left.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.status.as_ref().unwrap().message, "a messa");
    assert_eq!(span.name, "a name that is long", "names are no values");
}

#[test]
fn a_resource_gets_what_it_has_no_value_for() {
    let policy = compiled(|options| {
        options.set_resource = vec![("service.name".into(), "mine".into()), ("env".into(), "test".into())];
    });
    let both = ["service.name=mine", "env=test"];
    assert_eq!(resource_of(&policy, vec![]), both);
    assert_eq!(resource_of(&policy, vec![text("service.name", "")]), both);
    assert_eq!(
        resource_of(&policy, vec![text("service.name", "unknown_service:node")]),
        both
    );
    let given = vec![text("env", "prod"), text("service.name", "theirs")];
    assert_eq!(resource_of(&policy, given), ["env=prod", "service.name=theirs"]);
    let mut without = ExportTraceServiceRequest::decode(request(vec![], vec![span("s", vec![])])).unwrap();
    without.resource_spans[0].resource = None;
    let left = left(&policy, &without.encode_to_vec().into());
    assert_eq!(
        shown(&left.resource_spans[0].resource.as_ref().unwrap().attributes),
        both
    );
}

#[test]
fn a_default_replaces_what_another_rule_removes() {
    let policy = compiled(|options| {
        options.remove_attributes = texts(&["service.*"]);
        options.set_resource = vec![("service.name".into(), "mine".into())];
    });
    assert_eq!(
        resource_of(&policy, vec![text("service.name", "theirs")]),
        ["service.name=mine"]
    );
}

#[test]
fn every_rule_counts_what_it_did() {
    let policy = compiled(|options| {
        options.drop_spans = vec![SpanRule {
            any_of: vec![SpanCondition {
                names: vec![Glob::new("drop")],
                ..SpanCondition::default()
            }],
            says: "name: drop".into(),
        }];
        options.remove_attributes = texts(&["a", "b"]);
        options.redact = texts(&["x+", "SECRET"]);
        options.set_resource = vec![("env".into(), "test".into())];
    });
    let attributes = || vec![text("a", "1"), text("c", "SECRET SECRET")];
    let body = request(
        vec![],
        vec![
            span("drop", attributes()),
            span("s", attributes()),
            span("s", attributes()),
        ],
    );
    let mut workspace = Workspace::default();
    for _ in 0..2 {
        policy.apply(Signal::Traces, &body, &mut workspace).unwrap();
        policy.count(&mut workspace, |_, _| {});
    }
    let counted: Vec<String> = policy
        .counted()
        .map(|(rule, count)| format!("{}: {count}", rule.name))
        .collect();
    assert_eq!(
        counted,
        [
            "drop_spans[0]: 2",
            "remove_attributes[0]: 4",
            "remove_attributes[1]: 0",
            "redact[0]: 0",
            "redact[1]: 8",
            "set_resource.env: 2"
        ]
    );
}

#[test]
fn mistakes_name_the_key_to_change() {
    let key = |change: fn(&mut EgressOptions)| {
        let mut options = EgressOptions::default();
        change(&mut options);
        Policy::compile(&options).unwrap_err().key()
    };
    assert_eq!(key(|options| options.redact = texts(&["("])), "redact");
    assert_eq!(
        key(|options| options.keep = vec![crate::egress::KeepRule::Errors]),
        "sample.keep"
    );
}
