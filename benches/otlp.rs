//! What reading OTLP costs per span, against prost on the same bytes.
//!
//! `cargo bench --bench otlp`, or `-- JSON` for the lines that contain the word. No framework: each line is the median of several runs over payloads that together exceed
//! the second-level cache, with the smallest and largest run beside it to show how quiet the machine was.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;
use spanledger::otlp::json::transcode;
use spanledger::otlp::{self, Encoding, Signal, TraceRequest, compress, decompress};

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
    let requests: Vec<_> = (0..PAYLOADS as u64).map(request).collect();
    let bodies: Vec<Bytes> = requests.iter().map(|request| request.encode_to_vec().into()).collect();
    let texts: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| javascript(serde_json::to_string(request).unwrap()))
        .collect();
    let mean = |sizes: usize| sizes / (PAYLOADS * SPANS);
    println!("bytes per span: {} protobuf", mean(bodies.iter().map(Bytes::len).sum()));
    println!("                {} JSON", mean(texts.iter().map(Vec::len).sum()));
    println!("{:<52} {:>8} {:>8} {:>8}", "ns per span", "median", "min", "max");

    measure("copy the bytes", &bodies, |body| body.to_vec().len());
    measure("walk: count spans", &bodies, |body| {
        TraceRequest::trusted(body.clone()).span_count()
    });
    measure("walk: decode spans, look at their names", &bodies, |body| {
        walk(body, |_| false)
    });
    measure("walk: 8 attributes of code.execute spans", &bodies, |body| {
        walk(body, |span| span.name() == "code.execute")
    });
    measure("walk: all spans, all keys, 8 values", &bodies, |body| {
        walk(body, |_| true)
    });
    measure("parse: check everything", &bodies, |body| {
        TraceRequest::parse(body.clone()).unwrap().spans as usize
    });
    measure("parse, then walk all", &bodies, |body| {
        walk(TraceRequest::parse(body.clone()).unwrap().request.bytes(), |_| true)
    });
    measure("prost: decode", &bodies, |body| decode(body).resource_spans.len());
    measure("prost: decode and encode", &bodies, |body| {
        decode(body).encode_to_vec().len()
    });

    measure("JSON: transcode", &texts, |text| {
        transcode(Signal::Traces, text).unwrap().len()
    });
    measure("JSON: transcode and parse", &texts, |text| {
        TraceRequest::parse(transcode(Signal::Traces, text).unwrap())
            .unwrap()
            .spans as usize
    });
    measure("JSON: serde_json and prost encode", &texts, |text| {
        serde_json::from_slice::<ExportTraceServiceRequest>(text)
            .unwrap()
            .encode_to_vec()
            .len()
    });

    for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate] {
        let packed: Vec<Bytes> = bodies.iter().map(|body| compress(encoding, body)).collect();
        let ratio =
            bodies.iter().map(Bytes::len).sum::<usize>() as f64 / packed.iter().map(Bytes::len).sum::<usize>() as f64;
        measure(&format!("{encoding}: decompress (ratio {ratio:.1})"), &packed, |body| {
            decompress(encoding, body, 64 << 20).unwrap().len()
        });
        measure(&format!("{encoding}: compress"), &bodies, |body| {
            compress(encoding, body).len()
        });
    }
}

fn measure<T>(what: &str, payloads: &[T], work: impl Fn(&T) -> usize) {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if wanted.is_some_and(|wanted| !what.contains(&wanted)) {
        return;
    }
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let (begin, processor_time) = (Instant::now(), processor_time());
            let mut spans = 0;
            while begin.elapsed() < RUN {
                for payload in payloads {
                    black_box(work(black_box(payload)));
                    spans += SPANS;
                }
            }
            let spent = match (processor_time, self::processor_time()) {
                (Some(before), Some(after)) => after - before,
                _ => begin.elapsed(),
            };
            spent.as_nanos() as f64 / spans as f64
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!(
        "{what:<52} {:>8.1} {:>8.1} {:>8.1}",
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

fn decode(body: &Bytes) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(&body[..]).unwrap()
}

/// Looks at every span, and reads eight values of those that are of interest.
fn walk(body: &Bytes, is_of_interest: impl Fn(&otlp::Span<'_>) -> bool) -> usize {
    let request = TraceRequest::trusted(body.clone());
    let mut sum = 0;
    for resource in request.resource_spans() {
        for scope in resource.scope_spans() {
            for span in scope.spans() {
                sum += span.trace_id().len() + span.end_unix_nano() as usize;
                if !is_of_interest(&span) {
                    continue;
                }
                for entry in span.attributes().entries() {
                    sum += match entry.key().as_bytes() {
                        b"code.runtime" | b"code.language" | b"node.id" | b"workflow.execution_id" => {
                            entry.value().as_str().map_or(0, str::len)
                        }
                        b"code.success" => usize::from(entry.value().as_bool() == Some(true)),
                        b"code.exit_code" | b"code.tokens_used" => entry.value().as_i64().unwrap_or(0) as usize,
                        b"code.duration_ms" => entry.value().as_f64().unwrap_or(0.0) as usize,
                        _ => 1,
                    };
                }
            }
        }
    }
    sum
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn request(seed: u64) -> ExportTraceServiceRequest {
    let mut rng = fastrand::Rng::with_seed(seed);
    let spans = (0..SPANS).map(|index| span(&mut rng, index)).collect();
    let resource = Resource {
        attributes: vec![
            text("service.name", "backend"),
            text("service.version", "1.0.0"),
            text("deployment.environment", "production"),
            attribute("process.pid", Value::IntValue(4711)),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "code-execution".into(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans {
        scope: Some(scope),
        spans,
        schema_url: String::new(),
    }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans,
            schema_url: String::new(),
        }],
    }
}

fn span(rng: &mut fastrand::Rng, index: usize) -> Span {
    let start = 1_700_000_000_000_000_000 + rng.u64(0..1 << 40);
    let is_execution = index.is_multiple_of(4);
    let (name, mut attributes) = match index % 4 {
        0 => ("code.execute", execution(rng)),
        1 => ("node.execute", other(rng, "node")),
        2 => ("POST /api/workflows/execute", other(rng, "http.request")),
        _ => ("llm.generate", other(rng, "gen_ai.usage")),
    };
    let wanted = 10 + rng.usize(0..5);
    while attributes.len() < wanted {
        attributes.push(text("security.namespace", "organization-0042"));
    }
    let events = match rng.u8(0..20) {
        0 => vec![span::Event {
            time_unix_nano: start,
            name: "exception".into(),
            attributes: vec![text("exception.message", "ReferenceError: x is not defined")],
            dropped_attributes_count: 0,
        }],
        _ => Vec::new(),
    };
    Span {
        trace_id: rng.u128(1..).to_be_bytes().to_vec(),
        span_id: rng.u64(1..).to_be_bytes().to_vec(),
        parent_span_id: if is_execution {
            Vec::new()
        } else {
            rng.u64(1..).to_be_bytes().to_vec()
        },
        name: name.into(),
        kind: 1,
        start_time_unix_nano: start,
        end_time_unix_nano: start + rng.u64(0..1 << 32),
        attributes,
        events,
        status: Some(Status {
            message: String::new(),
            code: 1,
        }),
        flags: 0x101,
        ..Span::default()
    }
}

fn execution(rng: &mut fastrand::Rng) -> Vec<KeyValue> {
    vec![
        text("code.language", "javascript"),
        text("code.runtime", "vm2"),
        attribute("code.has_input_schema", Value::BoolValue(false)),
        attribute("code.timeout_ms", Value::IntValue(30_000)),
        text("node.id", format!("code-node-{}", rng.u32(0..1000))),
        text("workflow.id", format!("workflow-{}", rng.u32(0..1000))),
        text("workflow.execution_id", format!("{:032x}", rng.u128(..))),
        attribute("code.success", Value::BoolValue(true)),
        attribute("code.duration_ms", Value::IntValue(rng.i64(1..5000))),
        attribute("code.memory_mb", Value::DoubleValue(rng.f64() * 100.0)),
        attribute("code.exit_code", Value::IntValue(0)),
        attribute("code.tokens_used", Value::IntValue(rng.i64(0..10_000))),
    ]
}

fn other(rng: &mut fastrand::Rng, prefix: &str) -> Vec<KeyValue> {
    let mut attributes: Vec<_> = (0..6)
        .map(|index| {
            text(
                &format!("{prefix}.attribute_{index}"),
                format!("value-{:012x}", rng.u64(0..1 << 48)),
            )
        })
        .collect();
    attributes.push(text("workflow.execution_id", format!("{:032x}", rng.u128(..))));
    attributes.push(text("node.status", "completed"));
    attributes.push(attribute("node.latency_ms", Value::IntValue(rng.i64(0..100_000))));
    attributes.push(attribute("node.cost_usd", Value::DoubleValue(rng.f64())));
    attributes
}

/// The JavaScript SDK writes integers of attributes as numbers, not as strings.
fn javascript(json: String) -> Vec<u8> {
    let mut written = String::with_capacity(json.len());
    let mut rest = json.as_str();
    while let Some((before, behind)) = rest.split_once(r#""intValue":""#) {
        let (digits, behind) = behind.split_once('"').unwrap();
        written.extend([before, r#""intValue":"#, digits]);
        rest = behind;
    }
    written.push_str(rest);
    written.into_bytes()
}
