//! Emits the spans of a scenario file through the official OpenTelemetry SDK for Rust.
//!
//!     send grpc|http/protobuf|http/json none|gzip ENDPOINT SCENARIO BASE_UNIX_MS
//!
//! Prints one JSON line for each span: its key in the scenario, its trace id and its span id. Exits 1 unless the exporter
//! was told that everything was accepted.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Array, Context, KeyValue, Value};
use opentelemetry_otlp::{Compression, Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData};
use serde_json::Value as Json;

/// Passes batches on and remembers whether one of them failed: the SDK itself only logs that.
#[derive(Debug)]
struct Noting {
    inner: SpanExporter,
    failed: Arc<AtomicBool>,
}

impl opentelemetry_sdk::trace::SpanExporter for Noting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        if let Err(error) = &result {
            eprintln!("{error}");
            self.failed.store(true, Ordering::SeqCst);
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

fn exporter(protocol: &str, gzip: bool, endpoint: &str) -> SpanExporter {
    let builder = SpanExporter::builder();
    if protocol == "grpc" {
        let mut builder = builder.with_tonic().with_endpoint(endpoint);
        if gzip {
            builder = builder.with_compression(Compression::Gzip);
        }
        return builder.build().unwrap();
    }
    let chosen = if protocol == "http/json" {
        Protocol::HttpJson
    } else {
        Protocol::HttpBinary
    };
    let mut builder = builder
        .with_http()
        .with_protocol(chosen)
        .with_endpoint(format!("{endpoint}/v1/traces"));
    if gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    builder.build().unwrap()
}

fn attributes(of: &Json) -> Vec<KeyValue> {
    let value = |json: &Json| -> Value {
        match json {
            Json::String(text) => text.clone().into(),
            Json::Bool(value) => (*value).into(),
            Json::Number(number) => number
                .as_i64()
                .map_or_else(|| number.as_f64().unwrap().into(), Value::I64),
            Json::Array(texts) => {
                let texts = texts
                    .iter()
                    .map(|text| text.as_str().unwrap().to_owned().into())
                    .collect();
                Value::Array(Array::String(texts))
            }
            other => panic!("{other}"),
        }
    };
    let entries = of.as_object().into_iter().flatten();
    entries
        .map(|(key, json)| KeyValue::new(key.clone(), value(json)))
        .collect()
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, compression, endpoint, file, base] = &given[..] else {
        panic!("see the head of this file")
    };
    let scenario: Json = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let base: u64 = base.parse().unwrap();
    let at = |offset: &Json| -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(base * 1_000_000 + (offset.as_f64().unwrap() * 1e6).round() as u64)
    };
    // The gRPC exporter is made and used within a runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let entered = (protocol == "grpc").then(|| runtime.enter());
    let failed = Arc::new(AtomicBool::new(false));
    let noting = Noting {
        inner: exporter(protocol, compression == "gzip", endpoint),
        failed: failed.clone(),
    };
    let batches = BatchConfigBuilder::default().with_max_export_batch_size(10).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(noting).with_batch_config(batches).build())
        .with_resource(
            Resource::builder_empty()
                .with_attributes(attributes(&scenario["resource"]))
                .build(),
        )
        .build();
    for wanted in scenario["spans"].as_array().unwrap() {
        let text = |key: &str| wanted[key].as_str().unwrap().to_owned();
        let mut all = attributes(&scenario["attribute_sets"][wanted["with"].as_str().unwrap_or("")]);
        // Of an attribute that is given twice the later one counts.
        let own = attributes(&wanted["attributes"]);
        all.retain(|one| own.iter().all(|other| other.key != one.key));
        all.extend(own);
        let kind = match wanted["kind"].as_str() {
            Some("CLIENT") => SpanKind::Client,
            Some("SERVER") => SpanKind::Server,
            Some("PRODUCER") => SpanKind::Producer,
            Some("CONSUMER") => SpanKind::Consumer,
            _ => SpanKind::Internal,
        };
        let tracer = provider.tracer(text("tracer"));
        let builder = tracer
            .span_builder(text("name"))
            .with_kind(kind)
            .with_start_time(at(&wanted["start_ms"]))
            .with_attributes(all);
        let mut span = tracer.build_with_context(builder, &Context::new());
        let end = at(&wanted["end_ms"]);
        if let Some(exception) = wanted["exception"].as_object() {
            let of_event = exception
                .iter()
                .map(|(name, text)| KeyValue::new(format!("exception.{name}"), text.as_str().unwrap().to_owned()))
                .collect();
            let Event {
                name,
                timestamp,
                attributes,
                ..
            } = Event::new("exception", end, of_event, 0);
            span.add_event_with_timestamp(name, timestamp, attributes);
        }
        if let Some(code) = wanted["status"]["code"].as_str() {
            let message = wanted["status"]["message"].as_str().unwrap_or("").to_owned();
            span.set_status(match code {
                "OK" => Status::Ok,
                "ERROR" => Status::error(message),
                _ => Status::Unset,
            });
        }
        span.end_with_timestamp(end);
        let ids = span.span_context();
        let line = serde_json::json!({
            "key": text("key"), "trace_id": ids.trace_id().to_string(), "span_id": ids.span_id().to_string(),
        });
        println!("{line}");
    }
    let flushed = provider.force_flush().and(provider.shutdown());
    drop(entered);
    if let Err(error) = &flushed {
        eprintln!("{error}");
    }
    ExitCode::from(u8::from(flushed.is_err() || failed.load(Ordering::SeqCst)))
}
