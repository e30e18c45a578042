//! Request bodies, made once. Before each sending the ids in a copy are replaced, so that no body comes twice, and the times
//! moved, so that its spans began within the last second. Inside of gzip nothing is replaced.
//!
//! A request has [`Shape::spans`] spans of about 560 bytes: a quarter of the space is executions (14 attributes) or,
//! without executions, database calls of the same size; a quarter nodes; 10 % tools; 15 % workflows, 13 % calls of
//! models, the rest HTTP (10 to 12 attributes each). 4 % failed and have an exception event.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compression, GzBuilder};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;
use spanledger::clock::unix_nanos;

/// What the requests of a scenario are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    pub spans: usize,
    pub form: Form,
    pub content: Content,
    /// Values of the label that makes series.
    pub tools: usize,
}

/// How a request is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    Protobuf,
    Gzip,
    Json,
}

/// What the ledger has to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing: no span is an execution, and none tells anything about one.
    NoRows,
    /// Executions that tell everything themselves.
    Executions,
    /// Each execution lies inside a node that knows its tenant, as the executors send them.
    WithNodes,
}

/// Templates of one shape.
pub struct Traffic {
    templates: Vec<Template>,
    form: Form,
}

struct Template {
    body: Vec<u8>,
    /// What is replaced where.
    places: Vec<(usize, Place)>,
    /// Before which no span begins, and a second after it none does; Unix nanoseconds.
    began: u64,
    spans: usize,
    executions: usize,
}

#[derive(Clone, Copy)]
enum Place {
    /// Eight bytes by the request's number with this index.
    Bytes(u64),
    /// The same as 16 hexadecimal digits.
    Hex(u64),
    /// A time that was this one, in eight bytes.
    Time(u64),
    /// The same as 19 digits.
    Digits(u64),
    /// The time in the header of a gzip body: what is inside stays the same.
    GzipTime,
}

/// A body to send.
pub struct Body {
    pub bytes: Bytes,
    pub spans: usize,
    pub executions: usize,
}

/// Stands in the text of a template where an execution's id will be: the number of the span follows.
const EXECUTION_MARK: u64 = 0xabcd_0123_0000_0000;
const TEMPLATES: usize = 64;
const SPANS_IN_MEMORY: usize = 64 * 512;

impl Traffic {
    pub fn new(shape: Shape) -> Traffic {
        let count = (SPANS_IN_MEMORY / shape.spans).clamp(4, TEMPLATES);
        Traffic::of_templates(shape, count)
    }

    /// Of so many templates. Making one takes as long as sending hundreds of them.
    pub fn of_templates(shape: Shape, count: usize) -> Traffic {
        Traffic {
            templates: (0..count as u64).map(|seed| template(shape, seed)).collect(),
            form: shape.form,
        }
    }

    /// The body of a request number; with gRPC's prefix if wanted.
    pub fn body(&self, number: u64, grpc: bool) -> Body {
        let template = &self.templates[number as usize % self.templates.len()];
        let offset = if grpc { 5 } else { 0 };
        let mut bytes = BytesMut::with_capacity(template.body.len() + offset);
        if grpc {
            bytes.put_u8(u8::from(self.form == Form::Gzip));
            bytes.put_u32(template.body.len() as u32);
        }
        bytes.extend_from_slice(&template.body);
        let seed = mixed(number);
        let later = (unix_nanos() - 1_000_000_000).saturating_sub(template.began);
        for &(place, what) in &template.places {
            let place = offset + place;
            match what {
                Place::Bytes(index) => bytes[place..place + 8].copy_from_slice(&mixed(seed ^ index).to_be_bytes()),
                Place::Hex(index) => hex(mixed(seed ^ index), &mut bytes[place..place + 16]),
                Place::Time(time) => bytes[place..place + 8].copy_from_slice(&(time + later).to_le_bytes()),
                Place::Digits(time) => digits(time + later, &mut bytes[place..place + 19]),
                Place::GzipTime => bytes[place..place + 4].copy_from_slice(&(number as u32).to_le_bytes()),
            }
        }
        Body {
            bytes: bytes.freeze(),
            spans: template.spans,
            executions: template.executions,
        }
    }

    /// Mean bytes of a span.
    pub fn bytes_per_span(&self) -> f64 {
        let bytes: usize = self.templates.iter().map(|template| template.body.len()).sum();
        let spans: usize = self.templates.iter().map(|template| template.spans).sum();
        bytes as f64 / spans as f64
    }
}

/// A number that looks like chance; never the same for two numbers.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (number ^ (number >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
}

fn hex(number: u64, out: &mut [u8]) {
    for (index, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * index)) as usize & 15];
    }
}

fn digits(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn template(shape: Shape, seed: u64) -> Template {
    let began = unix_nanos() - 60_000_000_000;
    let request = request(shape, seed, began);
    let spans = &request.resource_spans[0].scope_spans[0].spans;
    let executions = spans.iter().filter(|span| span.name == "code.execute").count();
    let mut body = match shape.form {
        Form::Json => javascript(serde_json::to_string(&request).unwrap()),
        _ => request.encode_to_vec(),
    };
    let mut places = Vec::new();
    if shape.form == Form::Gzip {
        let mut encoder = GzBuilder::new().mtime(1).write(Vec::new(), Compression::new(6));
        encoder.write_all(&body).unwrap();
        body = encoder.finish().unwrap();
        places.push((4, Place::GzipTime));
    } else {
        let mut from = 0;
        for (index, span) in spans.iter().enumerate() {
            let index = index as u64;
            let id = &span.trace_id[..8];
            let (id, place) = match shape.form {
                Form::Json => (hex_text(id), Place::Hex(index)),
                _ => (id.to_vec(), Place::Bytes(index)),
            };
            from += find(&body[from..], &id).unwrap();
            places.push((from, place));
            let mut at = from;
            for time in [span.start_time_unix_nano, span.end_time_unix_nano] {
                let (written, place) = match shape.form {
                    Form::Json => (time.to_string().into_bytes(), Place::Digits(time)),
                    _ => (time.to_le_bytes().to_vec(), Place::Time(time)),
                };
                at += find(&body[at..], &written).unwrap();
                places.push((at, place));
            }
        }
        let mut from = 0;
        while let Some(found) = find(&body[from..], b"cmabcd01230000") {
            from += found + 2;
            let number = std::str::from_utf8(&body[from..from + 16]).unwrap();
            let number = u64::from_str_radix(number, 16).unwrap();
            places.push((from, Place::Hex(number)));
        }
    }
    Template {
        body,
        places,
        began,
        spans: shape.spans,
        executions,
    }
}

fn hex_text(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect()
}

fn find(body: &[u8], what: &[u8]) -> Option<usize> {
    body.windows(what.len()).position(|window| window == what)
}

fn request(shape: Shape, seed: u64, began: u64) -> ExportTraceServiceRequest {
    let mut random = fastrand::Rng::with_seed(seed + 1);
    let spans = (0..shape.spans)
        .map(|index| span(&mut random, shape, index, began))
        .collect();
    let resource = Resource {
        attributes: vec![
            text("service.name", "sos-backend"),
            text("service.version", "1.14.2"),
            text("deployment.environment.name", "production"),
            text("host.name", "backend-7d9f8b6c5-x2x4z"),
            attribute("process.pid", Value::IntValue(4711)),
            text("telemetry.sdk.language", "nodejs"),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "sos-code-executor".into(),
        version: "1.0.0".into(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn span(random: &mut fastrand::Rng, shape: Shape, index: usize, began: u64) -> Span {
    // Executions and the nodes around them alternate, so that the n-th execution is inside the n-th node.
    let pair = index / 4;
    let execution_id = format!("cm{:016x}", EXECUTION_MARK | pair as u64);
    let start = began + random.u64(0..1_000_000_000);
    let (name, attributes, duration) = match index % 4 {
        0 if shape.content == Content::NoRows => ("SELECT workflow_executions", database(random), 3),
        0 => ("code.execute", execution(random, pair, &execution_id, shape.content), 7),
        1 => (
            "node.execute.action.code",
            node(random, pair, &execution_id, shape.content),
            3_000,
        ),
        _ => match index % 40 {
            2 | 3 | 6 | 7 => ("runtime.execute_tool", tool(random, shape.tools), 45),
            10 | 11 | 14 | 15 | 18 | 19 => ("workflow.execute", workflow(random), 900),
            22 | 23 | 26 | 27 | 30 => ("llm.generate", model(random), 700),
            _ => ("POST /api/v1/executions/execute", http(random), 20),
        },
    };
    let (start, end) = match (shape.content, index % 4) {
        // A node lies around its execution.
        (Content::WithNodes, 0) => (began + 5_000_000, began + 12_000_000),
        (Content::WithNodes, 1) => (began, began + 20_000_000),
        _ => (start, start + duration * 1_000_000 + random.u64(0..1_000_000)),
    };
    let failed = random.u8(0..25) == 0;
    let exception = span::Event {
        time_unix_nano: end,
        name: "exception".into(),
        attributes: vec![
            text("exception.type", "ReferenceError"),
            text("exception.message", "total is not defined"),
        ],
        ..span::Event::default()
    };
    Span {
        trace_id: random.u128(1..).to_be_bytes().to_vec(),
        span_id: random.u64(1..).to_be_bytes().to_vec(),
        parent_span_id: random.u64(1..).to_be_bytes().to_vec(),
        trace_state: "es=s:1.0,congo=t61rcWkgMzE,rojo=00f067aa0ba902b7,vendor=production-a1b2c3".into(),
        name: name.into(),
        kind: 1,
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes,
        events: if failed { vec![exception] } else { Vec::new() },
        status: Some(Status {
            message: if failed {
                "total is not defined".into()
            } else {
                String::new()
            },
            code: if failed { 2 } else { 1 },
        }),
        flags: 0x101,
        ..Span::default()
    }
}

fn execution(random: &mut fastrand::Rng, pair: usize, execution_id: &str, content: Content) -> Vec<KeyValue> {
    let runtime = ["vm2", "subprocess", "e2b", "wasmedge"][random.usize(..4)];
    let language = ["javascript", "python", "typescript", "bash"][random.usize(..4)];
    let namespace = format!("org-{:04}", random.u32(0..40));
    let mut attributes = vec![
        text("code.language", language),
        text("code.runtime", runtime),
        attribute("code.has_input_schema", Value::BoolValue(false)),
        attribute("code.timeout_ms", Value::IntValue(30_000)),
        text("security.namespace", &namespace),
        text("node.id", &format!("node_{}", pair % 12)),
        text("workflow.id", &format!("wf_{:06}", random.u32(0..400))),
        text("workflow.execution_id", execution_id),
        attribute("code.success", Value::BoolValue(true)),
        attribute("code.has_error", Value::BoolValue(false)),
        attribute("code.duration_ms", Value::IntValue(random.i64(1..5_000))),
        attribute("code.memory_mb", Value::DoubleValue(random.f64() * 100.0)),
        attribute("code.exit_code", Value::IntValue(0)),
    ];
    attributes.push(match content {
        Content::WithNodes => text("code.routing_reason", "auto"),
        _ => text("user.id", &format!("user_{:06}", random.u32(0..500))),
    });
    attributes
}

fn node(random: &mut fastrand::Rng, pair: usize, execution_id: &str, content: Content) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("node.id", &format!("node_{}", pair % 12)),
        text("node.type", "action.code"),
        text("workflow.id", &format!("wf_{:06}", random.u32(0..400))),
        text("workflow.execution_id", execution_id),
        attribute("node.retry.max_attempts", Value::IntValue(3)),
        attribute("node.attempts", Value::IntValue(1)),
        attribute("node.latency_ms", Value::IntValue(random.i64(1..9_000))),
        text("node.status", "completed"),
    ];
    if content == Content::WithNodes {
        attributes.push(text("organization.id", &format!("org-{:04}", random.u32(0..40))));
        attributes.push(text("workspace.id", &format!("ws-{:04}", random.u32(0..80))));
        attributes.push(text("user.id", &format!("user_{:06}", random.u32(0..500))));
    } else {
        attributes.push(text("code.function.name", "executeNode"));
        attributes.push(text("code.file.path", "/app/dist/services/nodeExecutor.js"));
        attributes.push(attribute("code.line.number", Value::IntValue(536)));
    }
    attributes
}

fn tool(random: &mut fastrand::Rng, tools: usize) -> Vec<KeyValue> {
    let failed = random.u8(0..20) == 0;
    let mut attributes = vec![
        text("tool_id", &format!("tool-{:05}", random.usize(0..tools))),
        text("compozy.component", "runtime"),
        text("compozy.operation", "execute_tool"),
        attribute("exit_code", Value::IntValue(i64::from(failed))),
        attribute("output_bytes", Value::IntValue(random.i64(10..1_000_000))),
        attribute("timeout_ms", Value::IntValue(60_000)),
        text("server.version", "0.9.4"),
        text("thread.name", "bun-runtime-worker-3"),
        attribute("input_bytes", Value::IntValue(random.i64(10..10_000))),
        text("request.id", &format!("{:032x}", random.u128(..))),
    ];
    attributes.push(match failed {
        true => text("error_kind", "wait"),
        false => text("signal", ""),
    });
    attributes
}

fn workflow(random: &mut fastrand::Rng) -> Vec<KeyValue> {
    vec![
        text("workflow.id", &format!("wf_{:06}", random.u32(0..400))),
        text("workflow.execution_id", &format!("{:032x}", random.u128(..))),
        attribute("workflow.step_mode", Value::BoolValue(false)),
        attribute("workflow.node_count", Value::IntValue(random.i64(1..40))),
        attribute("workflow.edge_count", Value::IntValue(random.i64(1..60))),
        text("workflow.status", "completed"),
        text("workflow.trigger", "webhook"),
        text("workflow.version", "2026-11-20T08:00:00Z"),
        text("queue.name", "workflow-executions"),
        text("request.id", &format!("{:032x}", random.u128(..))),
    ]
}

fn model(random: &mut fastrand::Rng) -> Vec<KeyValue> {
    let (provider, model) = [
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-sonnet"),
        ("google", "gemini-flash"),
    ][random.usize(..3)];
    vec![
        text("llm.provider", provider),
        text("llm.model", model),
        text("workflow.id", &format!("wf_{:06}", random.u32(0..400))),
        text("workflow.execution_id", &format!("{:032x}", random.u128(..))),
        attribute("llm.input_tokens", Value::IntValue(random.i64(10..4_000))),
        attribute("llm.output_tokens", Value::IntValue(random.i64(10..1_000))),
        attribute("llm.cost_usd", Value::DoubleValue(random.f64() / 100.0)),
        attribute("llm.latency_ms", Value::IntValue(random.i64(100..5_000))),
        text("llm.status", "success"),
        attribute("llm.tokens_per_second", Value::DoubleValue(random.f64() * 100.0)),
        text("guardrails.similarity_check", "passed"),
    ]
}

fn http(random: &mut fastrand::Rng) -> Vec<KeyValue> {
    vec![
        text("http.request.method", "POST"),
        text("http.route", "/api/v1/executions/execute"),
        text("url.path", "/api/v1/executions/execute"),
        text("url.scheme", "https"),
        attribute("http.response.status_code", Value::IntValue(200)),
        text("server.address", "backend.production.svc"),
        attribute("server.port", Value::IntValue(3001)),
        text("client.address", &format!("10.0.{}.{}", random.u8(..), random.u8(..))),
        text("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
        text("network.protocol.version", "1.1"),
    ]
}

fn database(random: &mut fastrand::Rng) -> Vec<KeyValue> {
    vec![
        text("db.system.name", "postgresql"),
        text("db.namespace", "production"),
        text("db.operation.name", "SELECT"),
        text("db.collection.name", "workflow_executions"),
        text("db.query.summary", "SELECT workflow_executions"),
        text("server.address", "db.production.svc"),
        attribute("server.port", Value::IntValue(5432)),
        attribute("db.response.returned_rows", Value::IntValue(random.i64(0..100))),
        attribute("db.client.connection.count", Value::IntValue(random.i64(1..20))),
        text("network.transport", "tcp"),
        attribute("network.peer.port", Value::IntValue(5432)),
        attribute("db.pool.wait_ms", Value::DoubleValue(random.f64())),
        attribute("db.transaction", Value::BoolValue(false)),
        text("request.id", &format!("{:032x}", random.u128(..))),
    ]
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
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
