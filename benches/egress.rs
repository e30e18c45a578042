//! What the rules for what leaves cost: spans per second of one processor, for each kind of rule.
//!
//! `cargo bench --bench egress`. The spans are those of the demo, a few of them with a secret.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use spanledger::demo::Scenarios;
use spanledger::egress::{EgressOptions, Glob, Outcome, Policy, SpanCondition, SpanRule, Threshold, Workspace};
use spanledger::otlp::{Signal, TraceRequest};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOADS: usize = 32;
const SPANS: usize = 512;
const RUNS: usize = 9;
const RUN: Duration = Duration::from_millis(150);

fn main() {
    // `cargo test --all-targets` runs benchmarks too, without this argument; there they only have to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let clean: Vec<Bytes> = (0..PAYLOADS as u64).map(|seed| body(seed, 0)).collect();
    let dirty: Vec<Bytes> = (0..PAYLOADS as u64).map(|seed| body(seed, 20)).collect();
    let spans: usize = clean.iter().map(count).sum();
    println!(
        "bytes per span: {}",
        clean.iter().map(Bytes::len).sum::<usize>() / spans
    );
    println!(
        "{:<44} {:>14} {:>9} {:>8}",
        "thousand spans per processor second", "median", "slowest", "fastest"
    );
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    // Without a rule the bytes are not looked at: this is what the question costs.
    measure("no rule: pass-through", &clean, |_| {});
    measure("remove_attributes, absent", &clean, |options| {
        options.remove_attributes = texts(&["no.such.key", "password", "user.email"]);
    });
    measure("remove_attributes, two of every span", &clean, |options| {
        options.remove_attributes = texts(&["workflow.execution_id", "node.id", "code.language"]);
    });
    measure("remove_attributes with *", &clean, |options| {
        options.remove_attributes = texts(&["workflow.*", "*.secret", "http.request.header.*"]);
    });
    measure("keep_attributes", &clean, |options| {
        options.keep_attributes = texts(&["code.*", "node.*", "workflow.*", "service.*"]);
    });
    measure("hash_attributes, one of every span", &clean, |options| {
        options.hash_attributes = texts(&["workflow.execution_id"]);
    });
    for (name, bodies) in [("no secrets", &clean), ("a secret in 5 % of spans", &dirty)] {
        measure(&format!("redact: [builtin], {name}"), bodies, |options| {
            options.redact = texts(&["builtin"]);
        });
        measure(&format!("redact: email and tokens, {name}"), bodies, |options| {
            options.redact = texts(&["builtin:email", "builtin:tokens"]);
        });
        measure(&format!("redact: [\\d{{16}}], {name}"), bodies, |options| {
            options.redact = texts(&[r"\b\d{16}\b"]);
        });
    }
    measure("truncate: 20", &clean, |options| options.truncate = 20);
    measure("set_resource", &clean, |options| {
        options.set_resource = vec![("deployment.environment.name".into(), "production".into())];
    });
    measure("drop_spans: health_checks", &clean, |options| {
        options.drop_spans = vec![SpanRule {
            any_of: SpanCondition::health_checks(),
            says: String::new(),
        }];
    });
    measure("drop_spans by name", &clean, |options| {
        options.drop_spans = vec![SpanRule {
            any_of: vec![SpanCondition {
                names: vec![Glob::new("llm.*")],
                ..SpanCondition::default()
            }],
            says: String::new(),
        }];
    });
    measure("sample.ratio: 0.1", &clean, |options| {
        options.ratio = Threshold::from_ratio(0.1).unwrap();
    });
    measure("sample.ratio: 0.9", &clean, |options| {
        options.ratio = Threshold::from_ratio(0.9).unwrap();
    });
    measure("all of it, a secret in 5 % of spans", &dirty, |options| {
        options.remove_attributes = texts(&["code.language", "node.id"]);
        options.hash_attributes = texts(&["workflow.execution_id"]);
        options.redact = texts(&["builtin"]);
        options.truncate = 4096;
        options.set_resource = vec![("deployment.environment.name".into(), "production".into())];
    });
}

fn count(body: &Bytes) -> usize {
    TraceRequest::trusted(body.clone()).span_count()
}

/// A request of the demo's spans; a share of them, in percent, says a secret.
fn body(seed: u64, every: usize) -> Bytes {
    let mut scenario = Scenarios::new(seed);
    let mut request = ExportTraceServiceRequest::default();
    let mut spans = 0;
    while spans < SPANS {
        let next = scenario.next_request(1_700_000_000_000_000_000 + spans as u64);
        spans += next
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .map(|scope| scope.spans.len())
            .sum::<usize>();
        request.resource_spans.extend(next.resource_spans);
    }
    let all = request
        .resource_spans
        .iter_mut()
        .flat_map(|resource| &mut resource.scope_spans);
    for (index, span) in all.flat_map(|scope| &mut scope.spans).enumerate() {
        if every > 0 && index.is_multiple_of(every) {
            let texts = span
                .attributes
                .iter_mut()
                .filter_map(|entry| entry.value.as_mut()?.value.as_mut());
            let text = texts.filter_map(|value| match value {
                Value::StringValue(text) => Some(text),
                _ => None,
            });
            text.take(1)
                .for_each(|text| *text = format!("{text} of alice@example.com"));
        }
    }
    request.encode_to_vec().into()
}

fn measure(what: &str, bodies: &[Bytes], change: impl FnOnce(&mut EgressOptions)) {
    let mut options = EgressOptions::default();
    change(&mut options);
    let policy = Policy::compile(&options).unwrap();
    let mut workspace = Workspace::default();
    let total: usize = bodies.iter().map(count).sum();
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let (begin, before) = (Instant::now(), processor_time());
            let mut spans = 0;
            while begin.elapsed() < RUN {
                for body in bodies {
                    let outcome = match policy.is_for(Signal::Traces) {
                        true => policy.apply(Signal::Traces, black_box(body), &mut workspace).unwrap(),
                        false => Outcome::Unchanged,
                    };
                    black_box(outcome);
                }
                spans += total;
            }
            let spent = match (before, processor_time()) {
                (Some(before), Some(after)) => after - before,
                _ => begin.elapsed(),
            };
            spans as f64 / spent.as_secs_f64() / 1000.0
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!(
        "{what:<44} {:>14.0} {:>9.0} {:>8.0}",
        runs[RUNS / 2],
        runs[0],
        runs[RUNS - 1]
    );
}

/// What this thread has spent on a processor, so that a busy machine does not count. Linux only.
fn processor_time() -> Option<Duration> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(schedstat.split_whitespace().next()?.parse().ok()?))
}
