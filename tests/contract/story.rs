//! Spans that tell of one execution, or of a few that have to do with each other, and the rows they must become.

use crate::common::rows::{COLUMNS, Row};
use crate::common::{spans, unix_ms_ago};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// A span with its resource and tracer.
#[derive(Debug, Clone)]
pub struct Sent {
    pub resource: Value,
    pub tracer: String,
    pub span: Span,
}

/// A span that is still being described. Times are milliseconds since the beginning of its story.
#[derive(Debug, Clone)]
pub struct Draft {
    name: String,
    tracer: String,
    start_ms: i64,
    end_ms: i64,
    attributes: Map<String, Value>,
    status: Status,
    exception: Option<(String, String)>,
    resource: Value,
    trace: Trace,
}

/// The trace of a span.
#[derive(Debug, Clone)]
enum Trace {
    /// That of its story, or one of its own, as the story likes it.
    AsItComes,
    /// One that the story's spans share.
    Shared(u8),
    /// One that no other span is in.
    Own,
}

impl Draft {
    pub fn new(tracer: &str, name: &str, start_ms: i64, end_ms: i64) -> Draft {
        Draft {
            name: name.to_owned(),
            tracer: tracer.to_owned(),
            start_ms,
            end_ms,
            attributes: Map::new(),
            status: Status::default(),
            exception: None,
            resource: resource(),
            trace: Trace::AsItComes,
        }
    }

    /// Sets attributes; null leaves what there is, as `setAttribute` of the SDK for JavaScript does.
    pub fn with(mut self, attributes: Value) -> Draft {
        let Value::Object(attributes) = attributes else {
            panic!("attributes are an object")
        };
        self.attributes
            .extend(attributes.into_iter().filter(|(_, value)| !value.is_null()));
        self
    }

    /// Takes attributes away.
    pub fn without(mut self, keys: &[&str]) -> Draft {
        for key in keys {
            self.attributes.remove(*key);
        }
        self
    }

    pub fn named(mut self, name: &str) -> Draft {
        self.name = name.to_owned();
        self
    }

    /// Status OK.
    pub fn ok(mut self) -> Draft {
        self.status = Status {
            code: 1,
            ..Status::default()
        };
        self
    }

    /// Status ERROR; `""` is without a message.
    pub fn failed(mut self, message: &str) -> Draft {
        self.status = Status {
            code: 2,
            message: message.to_owned(),
        };
        self
    }

    /// An exception event, nothing else.
    pub fn exception(mut self, kind: &str, message: &str) -> Draft {
        self.exception = Some((kind.to_owned(), message.to_owned()));
        self
    }

    /// Attributes of the resource.
    pub fn resource(mut self, attributes: Value) -> Draft {
        let Value::Object(attributes) = attributes else {
            panic!("attributes are an object")
        };
        self.resource.as_object_mut().unwrap().extend(attributes);
        self
    }

    /// In a trace with all other spans of the story that are in the trace of this number.
    pub fn in_trace(mut self, number: u8) -> Draft {
        self.trace = Trace::Shared(number);
        self
    }

    /// In a trace of its own.
    pub fn alone(mut self) -> Draft {
        self.trace = Trace::Own;
        self
    }
}

/// The resource of the backend, as its SDK sends it.
pub fn resource() -> Value {
    json!({
        "service.name": "sos-backend", "service.version": "1.0.0", "deployment.environment": "production",
        "service.namespace": "sos", "service.instance.id": "unknown", "process.pid": 4711,
        "process.command_args": ["/usr/bin/node", "dist/index.js"], "host.name": "backend-1", "host.arch": "amd64",
    })
}

/// One story; the ids in it are its own.
pub struct Story {
    /// What makes its ids its own.
    pub tag: String,
    /// When it begins.
    pub base_unix_ms: i64,
    /// Whether its spans share a trace, as inside an instrumented HTTP request, or have one each, as in a worker.
    pub one_trace: bool,
    random: fastrand::Rng,
    traces: Vec<u128>,
    pub sent: Vec<Sent>,
    pub rows: Vec<Row>,
}

impl Story {
    pub fn new(random: &mut fastrand::Rng) -> Story {
        let mut random = random.fork();
        Story {
            tag: format!("{:012x}", random.u64(..) >> 16),
            base_unix_ms: unix_ms_ago(Duration::from_secs(3_000)) as i64 + random.i64(0..60_000),
            one_trace: true,
            traces: (0..8).map(|_| random.u128(1..)).collect(),
            random,
            sent: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// An id that is this story's own.
    pub fn id(&self, what: &str) -> String {
        format!("{what}-{}", self.tag)
    }

    /// Adds a span; the id that its row would have.
    pub fn send(&mut self, draft: Draft) -> String {
        let trace = match draft.trace {
            Trace::Shared(number) => self.traces[usize::from(number)],
            Trace::AsItComes if self.one_trace => self.traces[0],
            Trace::AsItComes | Trace::Own => self.random.u128(1..),
        };
        let nanos = |ms: i64| u64::try_from((self.base_unix_ms + ms) * 1_000_000).unwrap();
        let events = draft.exception.map(|(kind, message)| Event {
            name: "exception".to_owned(),
            time_unix_nano: nanos(draft.end_ms),
            attributes: spans::attributes(&json!({
                "exception.type": kind, "exception.message": message,
                "exception.stacktrace": format!("{kind}: {message}\n    at run (/app/dist/code.js:1:1)"),
            })),
            ..Event::default()
        });
        let span = Span {
            trace_id: trace.to_be_bytes().to_vec(),
            span_id: self.random.u64(1..).to_be_bytes().to_vec(),
            flags: 0x101,
            name: draft.name,
            kind: 1,
            start_time_unix_nano: nanos(draft.start_ms),
            end_time_unix_nano: nanos(draft.end_ms),
            attributes: spans::attributes(&Value::Object(draft.attributes)),
            events: events.into_iter().collect(),
            status: Some(draft.status),
            ..Span::default()
        };
        let id = spans::id(&span);
        self.sent.push(Sent {
            resource: draft.resource,
            tracer: draft.tracer,
            span,
        });
        id
    }

    /// Expects a row for a span: its columns that are not NULL, except for the id and `created_at`, the end of the span.
    pub fn expect(&mut self, id: &str, columns: impl Into<Columns>) {
        let Columns(columns) = columns.into();
        let unknown = columns.keys().find(|key| !COLUMNS.contains(&key.as_str()));
        assert_eq!(unknown, None, "no column of that name");
        let span = &self.sent.iter().find(|sent| spans::id(&sent.span) == id).unwrap().span;
        let text = |column: &str| columns.get(column).map(|value| value.as_str().unwrap().to_owned());
        let integer = |column: &str| columns.get(column).map(|value| value.as_i64().unwrap());
        let boolean = |column: &str| columns.get(column).map(|value| value.as_bool().unwrap());
        self.rows.push(Row {
            id: id.to_owned(),
            code_agent_id: text("code_agent_id"),
            workflow_execution_id: text("workflow_execution_id"),
            node_id: text("node_id"),
            runtime: text("runtime").expect("runtime"),
            language: text("language").expect("language"),
            duration_ms: integer("duration_ms"),
            memory_mb: integer("memory_mb"),
            exit_code: integer("exit_code"),
            success: boolean("success").expect("success"),
            error_message: text("error_message"),
            tokens_used: integer("tokens_used"),
            validation_passed: boolean("validation_passed"),
            organization_id: text("organization_id"),
            workspace_id: text("workspace_id"),
            user_id: text("user_id"),
            created_at: integer("created_at").unwrap_or((span.end_time_unix_nano / 1_000) as i64),
        });
    }

    /// The span of an id, to be given what no draft can say.
    pub fn span(&mut self, id: &str) -> &mut Span {
        &mut self
            .sent
            .iter_mut()
            .find(|sent| spans::id(&sent.span) == id)
            .unwrap()
            .span
    }
}

/// Columns of an expected row that are not NULL.
pub struct Columns(pub Map<String, Value>);

impl From<Value> for Columns {
    fn from(value: Value) -> Columns {
        let Value::Object(columns) = value else {
            panic!("columns are an object")
        };
        Columns(columns.into_iter().filter(|(_, value)| !value.is_null()).collect())
    }
}

impl<const N: usize> From<[Value; N]> for Columns {
    /// Later ones win.
    fn from(parts: [Value; N]) -> Columns {
        let mut all = Map::new();
        for part in parts {
            let Value::Object(part) = part else {
                panic!("columns are an object")
            };
            all.extend(part);
        }
        Columns::from(Value::Object(all))
    }
}

/// One request with spans in exactly this order: neighbours of one resource and tracer share them.
pub fn request<'a>(sent: impl IntoIterator<Item = &'a Sent>) -> ExportTraceServiceRequest {
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    let mut before: Option<&Sent> = None;
    for each in sent {
        if before.is_none_or(|before| before.resource != each.resource) {
            resource_spans.push(ResourceSpans {
                resource: Some(Resource {
                    attributes: spans::attributes(&each.resource),
                    ..Resource::default()
                }),
                ..ResourceSpans::default()
            });
        }
        let scopes = &mut resource_spans.last_mut().unwrap().scope_spans;
        if scopes
            .last()
            .is_none_or(|scope| scope.scope.as_ref().unwrap().name != each.tracer)
        {
            let scope = InstrumentationScope {
                name: each.tracer.clone(),
                ..InstrumentationScope::default()
            };
            scopes.push(ScopeSpans {
                scope: Some(scope),
                ..ScopeSpans::default()
            });
        }
        scopes.last_mut().unwrap().spans.push(each.span.clone());
        before = Some(each);
    }
    ExportTraceServiceRequest { resource_spans }
}
