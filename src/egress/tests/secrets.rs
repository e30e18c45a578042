//! What a rule says must not leave is in no byte of what leaves: planted in every place of random requests.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use prost::Message;

use super::{applied, compiled, texts};
use crate::egress::{EgressOptions, Policy, Secret};
use crate::otlp::Signal;
use crate::otlp::schema::{self, Message as Table};
use crate::otlp::tests::generate::{Generator, Planted};
use crate::otlp::wire::put_bytes;

/// Of requests; more by hand.
const SEEDS: u64 = 100;

const KEYS: [&str; 3] = ["card.number", "user.email", "http.request.header.cookie"];

/// A random request of each signal, also in the odd ways of writing that every reader has to understand.
fn requests(generator: &mut Generator) -> Vec<(Signal, Bytes)> {
    let traces: (_, Vec<u8>, &Table) = (
        Signal::Traces,
        generator.traces().encode_to_vec(),
        &schema::TRACE_REQUEST,
    );
    let metrics = (
        Signal::Metrics,
        generator.metrics().encode_to_vec(),
        &schema::METRICS_REQUEST,
    );
    let logs = (Signal::Logs, generator.logs().encode_to_vec(), &schema::LOGS_REQUEST);
    let mut requests = Vec::new();
    for (signal, body, table) in [traces, metrics, logs] {
        requests.push((signal, Bytes::from(generator.scrambled(&body, table))));
        requests.push((signal, Bytes::from(body)));
    }
    requests
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn never_leaves(policy: &Policy, text: &str, only_within_keys: bool) {
    let mut planted = 0;
    for seed in 0..SEEDS {
        let mut generator = Generator::new(seed);
        generator.keys = texts(&KEYS);
        generator.planted = Some(Planted {
            text: text.to_owned(),
            only_within_keys,
        });
        for (signal, body) in requests(&mut generator) {
            planted += usize::from(holds(&body, text));
            let left = applied(policy, signal, &body).unwrap();
            assert!(!holds(&left, text), "seed {seed}, {signal}");
        }
    }
    assert!(planted > 200, "planted in {planted} requests only");
}

#[test]
fn a_redacted_secret_never_leaves_wherever_it_stands() {
    for (item, secret) in [
        (r"\bSECRET-\d+\b", " SECRET-12345 "),
        (r"(?i)geheim\w+", "GeHeimnisvoll"),
        (r"\d{16}", " 4111111111111111 "),
        ("builtin:email", " alice@example.com "),
        ("builtin:keys", " sk-abcdefghij0123456789 "),
        ("builtin:tokens", " ghp_abcdefghijklmnopqrstuvwxyz "),
    ] {
        never_leaves(
            &compiled(|options| options.redact = texts(&["x{500}", item])),
            secret,
            false,
        );
    }
}

#[test]
fn a_removed_or_hashed_attribute_never_leaves_at_any_depth() {
    let secret = "the planted value";
    never_leaves(
        &compiled(|options| options.remove_attributes = texts(&KEYS)),
        secret,
        true,
    );
    let open = texts(&["card.*", "*.email", "*header.cookie"]);
    never_leaves(&compiled(|options| options.remove_attributes = open), secret, true);
    never_leaves(
        &compiled(|options| options.hash_attributes = texts(&KEYS)),
        secret,
        true,
    );
    let all = |options: &mut EgressOptions| {
        options.remove_attributes = texts(&KEYS[..1]);
        options.hash_attributes = texts(&KEYS[1..]);
        options.hash_key = Secret::new("key");
        options.redact = texts(&["zz+"]);
        options.truncate = 10;
        options.set_resource = vec![("service.name".into(), "x".into())];
    };
    never_leaves(&compiled(all), secret, true);
}

#[test]
fn a_hashed_value_never_leaves_however_often_and_whatever_else_is_given_for_it() {
    let secret = "the planted value";
    let policy = compiled(|options| options.hash_attributes = texts(&["k"]));
    let wrapped = |number: u32, inner: &[u8]| {
        let mut out = Vec::new();
        put_bytes(&mut out, number, inner);
        out
    };
    let text = wrapped(1, secret.as_bytes());
    // A reference into a dictionary, which nobody can resolve in a trace request: such a value counts as none.
    let nothing: &[u8] = &[0x40, 7];
    let both = [&text, nothing].concat();
    let ways: [&[&[u8]]; 7] = [
        &[&text],
        &[&text, b""],
        &[b"", &text],
        &[&text, nothing],
        &[nothing, &text],
        &[&both],
        &[b"", &both, b""],
    ];
    for values in ways {
        let mut entry = wrapped(1, b"k");
        values.iter().for_each(|value| put_bytes(&mut entry, 2, value));
        // An attribute of a resource.
        let body = Bytes::from(wrapped(1, &wrapped(1, &wrapped(1, &entry))));
        let left = applied(&policy, Signal::Traces, &body).unwrap();
        assert!(!holds(&left, secret), "{values:?}");
        let left = ExportTraceServiceRequest::decode(left).unwrap();
        let value = &left.resource_spans[0].resource.as_ref().unwrap().attributes[0].value;
        let Some(any_value::Value::StringValue(digest)) = value.as_ref().and_then(|value| value.value.as_ref()) else {
            panic!("{values:?} left {value:?}");
        };
        assert_eq!(digest.len(), 64, "{values:?}");
    }
    let mut entry = wrapped(1, b"k");
    [b"", b""].iter().for_each(|value| put_bytes(&mut entry, 2, *value));
    let body = Bytes::from(wrapped(1, &wrapped(1, &wrapped(1, &entry))));
    assert_eq!(
        applied(&policy, Signal::Traces, &body).unwrap(),
        body,
        "of nothing there is no digest"
    );
}

#[test]
fn an_attribute_that_is_not_kept_never_leaves() {
    // Bodies of logs and maps within kept values are no attributes; here no attribute is kept.
    let policy = compiled(|options| options.keep_attributes = texts(&["service.name"]));
    let mut planted = 0;
    for seed in 0..SEEDS {
        let mut generator = Generator::new(seed);
        generator.keys = texts(&KEYS);
        generator.planted = Some(Planted {
            text: "the planted value".to_owned(),
            only_within_keys: true,
        });
        let mut requests = requests(&mut generator);
        requests.retain(|(signal, _)| *signal != Signal::Logs);
        for (signal, body) in requests {
            planted += usize::from(holds(&body, "the planted value"));
            let left = applied(&policy, signal, &body).unwrap();
            assert!(!holds(&left, "the planted value"), "seed {seed}, {signal}");
        }
    }
    assert!(planted > 100, "planted in {planted} requests only");
}
