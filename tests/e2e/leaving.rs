//! What leaves: secrets never do, and what is not forwarded still counts.

use std::collections::BTreeSet;

use crate::common::http::{Http, whole};
use crate::common::load::Load;
use crate::common::program::{Program, Setup};
use crate::common::send::{Route, Sender, gzip};
use crate::common::sink::Sink;
use crate::common::{random, spans};
use crate::end_to_end::delivered_spans;
use crate::flow::counted_exactly;
use http::Request;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, KeyValueList, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde_json::json;

/// Ways in that carry everything a span has.
const PLAIN_AND_PACKED: [Route; 5] = [
    Route::Grpc,
    Route::GrpcGzip,
    Route::Http,
    Route::HttpGzip,
    Route::HttpZstd,
];

#[tokio::test(flavor = "multi_thread")]
async fn sampling_and_dropping_change_neither_metrics_nor_rows_and_two_sidecars_keep_the_same_traces() {
    const REQUESTS: u64 = 60;
    let mut random = random("sampling_and_dropping_change_neither_metrics_nor_rows");
    let load = Load::new(&mut random);
    let mut planned: Vec<_> = (0..REQUESTS).map(|number| load.request(number)).collect();
    let mut wanted = BTreeSet::new();
    let mut tools = 0;
    let all = planned.iter_mut().flat_map(|each| &mut each.request.resource_spans);
    for scope in all.flat_map(|each| &mut each.scope_spans) {
        let is_dropped = scope
            .scope
            .as_ref()
            .is_some_and(|scope| scope.name == "compozy.runtime");
        for span in &mut scope.spans {
            let randomness = random.u64(..1 << 56);
            span.trace_state = format!("ot=rv:{randomness:014x}");
            tools += u64::from(is_dropped);
            // The threshold of 0.3 is b333.
            if randomness >= 0xb333 << 40 && !is_dropped {
                wanted.insert(spans::id(span));
            }
        }
    }
    let tool_names: BTreeSet<&str> = planned
        .iter()
        .flat_map(|each| &each.request.resource_spans)
        .flat_map(|each| &each.scope_spans)
        .filter(|scope| {
            scope
                .scope
                .as_ref()
                .is_some_and(|scope| scope.name == "compozy.runtime")
        })
        .flat_map(|scope| &scope.spans)
        .map(|span| span.name.as_str())
        .collect();
    let drop = json!([{"name": tool_names.iter().collect::<Vec<_>>()}]);

    // The second one decides over whole traces, none of which has a reason to be kept.
    for decides_over_traces in [false, true] {
        let sink = Sink::start().await;
        let mut setup = Setup::forwarding_to(sink.url())
            .set("exporters.otlp.sample.ratio", 0.3)
            .set("exporters.otlp.drop_spans", drop.clone());
        if decides_over_traces {
            setup = setup
                .set("exporters.otlp.sample.keep", json!([{"name": "no such span"}]))
                .set("exporters.otlp.sample.wait", "1s");
        }
        let program = setup.start().await;
        let sender = Sender::to(&program).await;
        for (each, route) in planned.iter().zip(PLAIN_AND_PACKED.into_iter().cycle()) {
            sender.accepted(route, &each.request).await;
        }
        counted_exactly(&setup.database(), &program, &planned).await;
        let delivered = sink
            .wait("the share of the spans", |deliveries| {
                let delivered = delivered_spans(deliveries);
                (delivered.len() >= wanted.len()).then_some(deliveries.to_vec())
            })
            .await;
        assert_eq!(delivered_spans(&delivered).into_iter().collect::<BTreeSet<_>>(), wanted);
        let states = delivered.iter().map(|delivery| delivery.request());
        for request in states {
            for span in spans::spans(&request) {
                assert!(span.trace_state.starts_with("ot=th:b333;rv:"), "{}", span.trace_state);
            }
        }
        let text = program.get("api", "/api/v1/pipeline").await.text();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rules = &report["data"]["exporters"][0]["rules"];
        assert_eq!(rules[0]["rule"], "drop_spans[0]", "{report}");
        assert_eq!(rules[0]["count"], tools, "{report}");
        let spans: usize = planned.iter().map(|each| each.spans.len()).sum();
        assert_eq!(
            rules[1]["count"],
            spans as u64 - tools - wanted.len() as u64,
            "{report}"
        );
        program.terminate().await;
    }
}

const SECRETS: [&str; 4] = [
    "alice@example.com",
    "sk-proj-abcdefghijklmnop0123456789",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "the value of card.number",
];

/// Attributes with every secret, on the surface and deep down.
fn telling() -> Vec<KeyValue> {
    let text = |text: String| AnyValue {
        value: Some(Value::StringValue(text)),
    };
    let entry = |key: &str, value: AnyValue| KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    };
    let map = |values| AnyValue {
        value: Some(Value::KvlistValue(KeyValueList { values })),
    };
    let mut told: Vec<KeyValue> = SECRETS[..3]
        .iter()
        .map(|secret| entry("note", text(format!("it is {secret}, he said"))))
        .collect();
    let card = || entry("card.number", text(SECRETS[3].to_owned()));
    told.push(card());
    told.push(entry("nested", map(vec![card(), entry("deeper", map(told.clone()))])));
    told
}

async fn post(program: &Program, path: &str, body: Vec<u8>, is_packed: bool) {
    let mut request =
        Request::post(program.url("otlp_http", path).await).header("content-type", "application/x-protobuf");
    let body = match is_packed {
        true => {
            request = request.header("content-encoding", "gzip");
            gzip(&body)
        }
        false => body.into(),
    };
    let answer = Http::new().send(request.body(whole(body)).unwrap()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_leave_in_no_signal_and_no_encoding() {
    let mut random = random("planted_secrets_leave_in_no_signal_and_no_encoding");
    let load = Load::new(&mut random);
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url())
        .set("exporters.otlp.redact", json!(["builtin"]))
        .set("exporters.otlp.remove_attributes", json!(["card.*"]));
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let mut ids = BTreeSet::new();
    for (number, route) in PLAIN_AND_PACKED.into_iter().enumerate() {
        let mut request = load.request(number as u64).request;
        for resource in &mut request.resource_spans {
            resource.resource.as_mut().unwrap().attributes.extend(telling());
            for span in resource.scope_spans.iter_mut().flat_map(|scope| &mut scope.spans) {
                ids.insert(spans::id(span));
                span.attributes.extend(telling());
            }
        }
        sender.accepted(route, &request).await;
    }
    let resource = || {
        Some(Resource {
            attributes: telling(),
            ..Resource::default()
        })
    };
    let record = LogRecord {
        body: telling().pop().and_then(|entry| entry.value),
        attributes: telling(),
        ..LogRecord::default()
    };
    let logs = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: resource(),
            scope_logs: vec![ScopeLogs {
                log_records: vec![record],
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    };
    let point = NumberDataPoint {
        attributes: telling(),
        ..NumberDataPoint::default()
    };
    let metrics = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: resource(),
            scope_metrics: vec![ScopeMetrics {
                metrics: vec![Metric {
                    name: "m".into(),
                    metadata: telling(),
                    data: Some(metric::Data::Gauge(Gauge {
                        data_points: vec![point],
                    })),
                    ..Metric::default()
                }],
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    };
    for is_packed in [false, true] {
        // Another body each time: the same one would be known already.
        let mut logs = logs.clone();
        logs.resource_logs[0].schema_url = format!("urn:{is_packed}");
        post(&program, "/v1/logs", logs.encode_to_vec(), is_packed).await;
        let mut metrics = metrics.clone();
        metrics.resource_metrics[0].schema_url = format!("urn:{is_packed}");
        post(&program, "/v1/metrics", metrics.encode_to_vec(), is_packed).await;
    }
    let deliveries = sink
        .wait("all of it", |deliveries| {
            let of = |path: &str| {
                deliveries
                    .iter()
                    .filter(|delivery| delivery.path == path)
                    .cloned()
                    .collect::<Vec<_>>()
            };
            let arrived: BTreeSet<String> = delivered_spans(&of("/v1/traces")).into_iter().collect();
            let others: Vec<_> = [of("/v1/logs"), of("/v1/metrics")].concat();
            let both = |path: &str| {
                let text = |body: &[u8], what: &str| body.windows(what.len()).any(|window| window == what.as_bytes());
                let of = of(path);
                ["urn:true", "urn:false"]
                    .iter()
                    .all(|urn| of.iter().any(|each| text(&each.body, urn)))
            };
            let is_complete = arrived == ids && !others.is_empty() && both("/v1/logs") && both("/v1/metrics");
            is_complete.then(|| deliveries.to_vec())
        })
        .await;
    for delivery in &deliveries {
        for secret in SECRETS {
            let found = delivery
                .body
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} left by {}", delivery.path);
        }
        let redacted = b"it is [redacted], he said";
        assert!(delivery.body.windows(redacted.len()).any(|window| window == redacted));
    }
}

/// One span of a trace.
fn traced(trace: u64, part: u64, is_failed: bool) -> opentelemetry_proto::tonic::trace::v1::Span {
    opentelemetry_proto::tonic::trace::v1::Span {
        trace_id: (u128::from(trace) << 64 | 1).to_be_bytes().to_vec(),
        span_id: (trace << 8 | part | 1 << 40).to_be_bytes().to_vec(),
        name: "step".into(),
        start_time_unix_nano: crate::common::unix_ms_ago(std::time::Duration::from_secs(60)) * 1_000_000,
        end_time_unix_nano: crate::common::unix_ms_ago(std::time::Duration::from_secs(59)) * 1_000_000,
        status: is_failed.then(|| opentelemetry_proto::tonic::trace::v1::Status {
            code: 2,
            message: "boom".into(),
        }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_while_traces_wait_lose_no_kept_trace_and_send_no_other() {
    const KILLS: u64 = 5;
    let mut random = random("kills_while_traces_wait_lose_no_kept_trace_and_send_no_other");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url())
        .set("exporters.otlp.sample.ratio", 0)
        .set("exporters.otlp.sample.keep", json!(["errors"]))
        .set("exporters.otlp.sample.wait", "10s");
    let (mut kept, mut others) = (BTreeSet::new(), BTreeSet::new());
    // Traces whose last part is still to be sent.
    let mut open: Vec<u64> = Vec::new();
    let mut program = setup.start().await;
    for kill in 0..=KILLS {
        let sender = Sender::to(&program).await;
        let mut batch: Vec<_> = open
            .drain(..)
            .map(|trace| traced(trace, 2, trace.is_multiple_of(3)))
            .collect();
        for number in 0..30 {
            let trace = kill * 100 + number + 1;
            batch.push(traced(trace, 0, false));
            batch.push(traced(trace, 1, false));
            let ids = (0..3).map(|part| spans::id(&traced(trace, part, false)));
            if trace.is_multiple_of(3) {
                kept.extend(ids)
            } else {
                others.extend(ids)
            }
            open.push(trace);
        }
        random.shuffle(&mut batch);
        for part in batch.chunks(7) {
            let request = spans::request(vec![], part.iter().map(|span| ("test".to_owned(), span.clone())));
            sender.accepted(Route::HttpGzip, &request).await;
        }
        if kill == KILLS {
            let last = open
                .drain(..)
                .map(|trace| ("test".to_owned(), traced(trace, 2, trace.is_multiple_of(3))));
            sender.accepted(Route::Grpc, &spans::request(vec![], last)).await;
        } else {
            program.kill();
            program = setup.start().await;
        }
    }
    let delivered = sink
        .wait("every trace with an error, whole", |deliveries| {
            let delivered: BTreeSet<String> = delivered_spans(deliveries).into_iter().collect();
            kept.is_subset(&delivered).then_some(delivered)
        })
        .await;
    assert!(delivered.is_disjoint(&others), "what no rule keeps is not sent");
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_what_would_happen_to_a_span_and_why() {
    let setup = Setup::forwarding_to("http://127.0.0.1:1")
        .set("exporters.otlp.drop_spans", json!([{"name": "noise"}]))
        .set("exporters.otlp.remove_attributes", json!(["secret.*"]));
    let span = |name: &str| {
        json!({
            "traceId": "0102030405060708090a0b0c0d0e0f10", "spanId": "0102030405060708", "name": name,
            "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001000000000",
            "attributes": [
                {"key": "code.runtime", "value": {"stringValue": "vm2"}},
                {"key": "code.success", "value": {"boolValue": true}},
                {"key": "secret.prompt", "value": {"stringValue": "whisper"}},
            ],
        })
        .to_string()
    };
    let explain = |name: &str| {
        let (config, file) = (setup.config(), setup.write("span.json", &span(name)));
        let output = setup.command(&[
            "explain",
            "--config",
            config.to_str().unwrap(),
            "--span",
            file.to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kept = explain("code.execute");
    for expected in [
        r#"code_executions_total{runtime="vm2",language="unknown",outcome="success"} grows by 1"#,
        "an execution, the row 0102030405060708090a0b0c0d0e0f10-0102030405060708 of code_exec_logs",
        "runtime = \"vm2\"",
        "forwarded, changed",
        "because of remove_attributes[0] (secret.*): 1 values",
    ] {
        assert!(kept.contains(expected), "{expected}\n{kept}");
    }
    assert!(!kept.contains("whisper"));
    let dropped = explain("noise");
    assert!(
        dropped.contains("not forwarded") && dropped.contains("because of drop_spans[0] (name: noise)"),
        "{dropped}"
    );
    assert!(
        dropped.contains("code_executions_total"),
        "metrics are made of it all the same\n{dropped}"
    );
}
