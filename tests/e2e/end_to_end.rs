//! The main job: spans come in, rows, metrics and forwarded requests come out, value by value.

use crate::common::http::Http;
use crate::common::program::{Program, Setup};
use crate::common::prometheus::Scrape;
use crate::common::scenario::{Ids, Scenario};
use crate::common::script::parse_metrics;
use crate::common::send::{Outcome, Prepared, ROUTES, Route, Sender};
use crate::common::sink::{Delivery, Sink};
use crate::common::{random, rows, spans};
use bytes::Bytes;
use http::Request;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use serde_json::json;
use sqlx::Row as _;
use std::io::Write;
use std::process::{Command, Stdio};

/// Waits until rows and metrics are there, and compares every value of both.
pub async fn check(setup: &Setup, program: &Program, scenario: &Scenario, sent: &[Ids]) {
    let mut expected: Vec<rows::Row> = sent.iter().flat_map(|ids| scenario.rows(ids)).collect();
    expected.sort();
    let found = rows::wait(&setup.database(), expected.len()).await;
    let wrong = rows::difference(&found, &expected);
    assert!(
        wrong.is_empty(),
        "{} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );

    let series = scenario.series(sent.len());
    program
        .scrape_until("every derived metric with its labels and value", |scrape| {
            let wrong = scrape.derived().difference(&series);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(format!("{} differences:\n{}", wrong.len(), wrong.join("\n")))
            }
        })
        .await;
}

/// The ids of all spans in what was delivered, sorted, with repetitions.
pub fn delivered_spans(deliveries: &[Delivery]) -> Vec<String> {
    let requests: Vec<ExportTraceServiceRequest> = deliveries.iter().map(Delivery::request).collect();
    let mut ids: Vec<String> = requests.iter().flat_map(spans::spans).map(spans::id).collect();
    ids.sort();
    ids
}

/// Waits until as many spans were delivered as there are in these requests.
async fn wait_for_spans(sink: &Sink, requests: &[ExportTraceServiceRequest]) -> Vec<Delivery> {
    let count = requests.iter().flat_map(spans::spans).count();
    sink.wait(&format!("{count} spans"), |deliveries| {
        (delivered_spans(deliveries).len() >= count).then(|| deliveries.to_vec())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_become_rows_metrics_and_forwarded_requests_value_by_value() {
    let mut random = random("spans_become_rows_metrics_and_forwarded_requests_value_by_value");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let scenario = Scenario::read();
    let (requests, ids) = scenario.requests(&mut random);

    // tonic's own client, as a Rust executor would have it.
    let mut client = TraceServiceClient::connect(format!("http://{}", program.address("otlp_grpc").await))
        .await
        .unwrap();
    for request in &requests {
        let answer = client.export(request.clone()).await.unwrap().into_inner();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        assert_eq!(rejected, 0);
    }
    check(&setup, &program, &scenario, &[ids]).await;

    // Forwarded once, in order, byte for byte: joined requests are the concatenation of what came in.
    let deliveries = wait_for_spans(&sink, &requests).await;
    let delivered: Vec<u8> = deliveries.iter().flat_map(|delivery| delivery.body.to_vec()).collect();
    let sent: Vec<u8> = requests.iter().flat_map(Message::encode_to_vec).collect();
    assert_eq!(Bytes::from(delivered), Bytes::from(sent));
    for delivery in &deliveries {
        assert_eq!(delivery.path, "/v1/traces");
        assert_eq!(delivery.headers["content-type"], "application/x-protobuf");
        assert_eq!(
            delivery.headers["spanledger-hop"].to_str().unwrap().len(),
            32,
            "the journal's id"
        );
    }
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(
        sink.deliveries().len(),
        deliveries.len(),
        "nothing is sent twice in a calm run"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_and_encoding_leads_to_the_same_rows_metrics_and_forwarded_spans() {
    let mut random = random("every_protocol_and_encoding_leads_to_the_same_rows_metrics_and_forwarded_spans");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let scenario = Scenario::read();
    let sender = Sender::to(&program).await;
    let mut sent = Vec::new();
    let mut all = Vec::new();
    for route in ROUTES {
        let (requests, ids) = scenario.requests(&mut random);
        for request in &requests {
            sender.accepted(route, request).await;
        }
        sent.push(ids);
        all.extend(requests);
    }
    check(&setup, &program, &scenario, &sent).await;

    // What came as JSON is forwarded as the equal protobuf, what was compressed arrives as it was inside.
    let deliveries = wait_for_spans(&sink, &all).await;
    let delivered: Vec<_> = deliveries
        .iter()
        .flat_map(|delivery| delivery.request().resource_spans)
        .collect();
    let expected: Vec<_> = all.into_iter().flat_map(|request| request.resource_spans).collect();
    assert_eq!(delivered.len(), expected.len());
    for (delivered, expected) in delivered.iter().zip(&expected) {
        assert_eq!(delivered, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_no_schema_knows_are_forwarded_as_they_came() {
    let mut random = random("fields_that_no_schema_knows_are_forwarded_as_they_came");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let (requests, ids) = Scenario::read().requests(&mut random);
    let mut message = requests[0].encode_to_vec();
    // Field 999, a string; field 1000, a varint written longer than needed.
    message.extend_from_slice(&[0xba, 0x3e, 4, b'n', b'e', b'w', b'!', 0xc0, 0x3e, 0x81, 0x00]);
    let sender = Sender::to(&program).await;
    let outcome = sender
        .deliver(&Prepared::encoded(Route::HttpGzip, message.clone().into()))
        .await;
    assert!(outcome.is_acknowledged(), "{outcome:?}");
    let deliveries = wait_for_spans(&sink, &requests[..1]).await;
    assert_eq!(deliveries[0].body, Bytes::from(message));
    assert!(!ids.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_with_wrong_ids_is_rejected_alone_and_cut_out_of_what_is_forwarded() {
    let mut random = random("a_span_with_wrong_ids_is_rejected_alone_and_cut_out_of_what_is_forwarded");
    for route in ROUTES {
        let sink = Sink::start().await;
        let setup = Setup::forwarding_to(sink.url());
        let program = setup.start().await;
        let (requests, _) = Scenario::read().requests(&mut random);
        let good = requests[0].clone();
        let count = i64::try_from(spans::spans(&good).count()).unwrap();
        let mut mixed = good.clone();
        let list = &mut mixed.resource_spans[0].scope_spans[0].spans;
        for (trace_id, span_id) in [
            (vec![0; 16], vec![1; 8]),
            (vec![1; 16], vec![0; 8]),
            (vec![1; 15], vec![1; 8]),
        ] {
            let mut bad = list[0].clone();
            (bad.trace_id, bad.span_id) = (trace_id, span_id);
            list.insert(random.usize(..=list.len()), bad);
        }
        let outcome = Sender::to(&program).await.send(route, &mixed).await;
        let Outcome::Accepted(3, message) = &outcome else {
            panic!("{route:?}: {outcome:?}")
        };
        assert!(!message.is_empty(), "the answer says why");
        let deliveries = wait_for_spans(&sink, std::slice::from_ref(&good)).await;
        assert_eq!(deliveries[0].request(), good, "{route:?}");
        let wrong = "code_executions_total";
        program
            .scrape_until("only the good ones are counted", |scrape| {
                let counted: f64 = scrape
                    .0
                    .iter()
                    .filter(|(series, _)| series.name == wrong)
                    .map(|(_, n)| n)
                    .sum();
                if counted == count as f64 {
                    Ok(())
                } else {
                    Err(format!("{counted} of {count}"))
                }
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_spans_is_answered_with_success() {
    let setup = Setup::new();
    let program = setup.start().await;
    let url = program.url("otlp_http", "/v1/traces").await;
    for (content_type, body) in [
        ("application/json", "{\"resourceSpans\":[]}"),
        ("application/json", "{}"),
        (
            "application/json; charset=utf-8",
            "{\"resourceSpans\":[{\"scopeSpans\":[]}]}",
        ),
        ("application/x-protobuf", ""),
    ] {
        let answer = Http::new().post(&url, content_type, body).await.unwrap();
        assert_eq!(answer.status, 200, "{content_type} {body}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_logs_are_forwarded_untouched() {
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let metrics = json!({"resourceMetrics": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "sos-backend"}}]},
        "scopeMetrics": [{"scope": {"name": "app"}, "metrics": [
            {"name": "requests", "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [
                {"asInt": "7", "startTimeUnixNano": "1764000000000000000", "timeUnixNano": "1764000060000000000"}]}},
            {"name": "load", "gauge": {"dataPoints": [{"asDouble": 0.5, "timeUnixNano": "1764000060000000000"}]}}]}]}]});
    let logs = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [
        {"timeUnixNano": "1764000000000000000", "severityNumber": 9, "body": {"stringValue": "started"}}]}]}]});
    let metrics: ExportMetricsServiceRequest = serde_json::from_value(metrics).unwrap();
    let logs: ExportLogsServiceRequest = serde_json::from_value(logs).unwrap();
    for (path, body) in [
        ("/v1/metrics", metrics.encode_to_vec()),
        ("/v1/logs", logs.encode_to_vec()),
    ] {
        let url = program.url("otlp_http", path).await;
        let answer = Http::new()
            .post(&url, "application/x-protobuf", body.clone())
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let delivered = sink
            .wait(&format!("request on {path}"), |all| {
                all.iter().find(|each| each.path == path).cloned()
            })
            .await;
        assert_eq!(delivered.body, Bytes::from(body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_no_row_and_no_series() {
    let mut random = random("a_restart_changes_no_row_and_no_series");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let scenario = Scenario::read();
    let (requests, ids) = scenario.requests(&mut random);
    let program = setup.start().await;
    for request in &requests {
        Sender::to(&program).await.accepted(Route::Http, request).await;
    }
    check(&setup, &program, &scenario, std::slice::from_ref(&ids)).await;
    wait_for_spans(&sink, &requests).await;
    let before = program.scrape().await.derived();
    let deliveries = sink.attempts();
    program.terminate().await;

    let program = setup.start().await;
    let after = program.scrape().await.derived();
    assert_eq!(after, before, "the first scrape after a restart");
    check(&setup, &program, &scenario, &[ids]).await;
    assert_eq!(
        sink.attempts(),
        deliveries,
        "nothing is sent again after an orderly stop"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_has_exactly_the_documented_columns_and_indexes() {
    let setup = Setup::new();
    let program = setup.start().await;
    rows::wait(&setup.database(), 0).await;
    let mut connection = rows::open(&setup.database()).await.unwrap();
    let columns = sqlx::query(
        "SELECT name, lower(type) AS type, \"notnull\" AS required, pk FROM pragma_table_info('code_exec_logs')",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let names: Vec<String> = columns.iter().map(|row| row.get("name")).collect();
    assert_eq!(names, rows::COLUMNS);
    for column in &columns {
        let (name, kind): (String, String) = (column.get("name"), column.get("type"));
        let expected = match name.as_str() {
            "duration_ms" | "memory_mb" | "exit_code" | "tokens_used" => "integer",
            "success" | "validation_passed" => "boolean",
            "created_at" => "timestamp",
            _ => "text",
        };
        assert!(
            kind == expected || (name == "created_at" && kind == "datetime"),
            "{name} is {kind}"
        );
        let required = ["runtime", "language", "success", "created_at"].contains(&name.as_str());
        assert_eq!(
            column.get::<bool, _>("required") || column.get::<bool, _>("pk"),
            required || name == "id",
            "{name}"
        );
        assert_eq!(column.get::<bool, _>("pk"), name == "id");
    }
    let indexed = sqlx::query(
        "SELECT DISTINCT info.name FROM pragma_index_list('code_exec_logs') AS list, pragma_index_info(list.name) AS info",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut indexed: Vec<String> = indexed.iter().map(|row| row.get(0)).collect();
    indexed.retain(|column| column != "id");
    indexed.sort();
    let expected = [
        "code_agent_id",
        "created_at",
        "language",
        "runtime",
        "success",
        "workflow_execution_id",
    ];
    assert_eq!(indexed, expected);
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_valid_in_both_formats_and_links_to_traces() {
    let mut random = random("a_scrape_is_valid_in_both_formats_and_links_to_traces");
    let setup = Setup::new();
    let program = setup.start().await;
    let scenario = Scenario::read();
    let (requests, ids) = scenario.requests(&mut random);
    for request in &requests {
        Sender::to(&program)
            .await
            .accepted(Route::HttpJsonChunked, request)
            .await;
    }
    check(&setup, &program, &scenario, std::slice::from_ref(&ids)).await;

    let plain = program.get("metrics", "/metrics").await;
    assert!(
        plain.header("content-type").starts_with("text/plain; version=0.0.4"),
        "{}",
        plain.header("content-type")
    );
    let names: Vec<String> = Scrape::parse(&plain.text())
        .0
        .into_keys()
        .map(|series| series.name)
        .collect();
    for own in [
        "spanledger_build_info",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ] {
        assert!(names.iter().any(|name| name == own), "{own} is missing");
    }
    promtool_accepts(&plain.text());

    let url = program.url("metrics", "/metrics").await;
    let request = Request::get(url).header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let open = Http::new()
        .send(request.body(crate::common::http::whole("")).unwrap())
        .await
        .unwrap();
    assert!(
        open.header("content-type").starts_with("application/openmetrics-text"),
        "{:?}",
        open.headers
    );
    let text = open.text();
    assert_eq!(text.matches("# EOF").count(), 1);
    assert!(text.ends_with("# EOF\n"));
    assert!(
        text.lines().any(|line| line.starts_with("code_executions_created{")),
        "no _created"
    );
    let known: Vec<&str> = ids.values().map(|id| id.split('-').next().unwrap()).collect();
    let exemplars: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" # ").map(|(_, exemplar)| exemplar))
        .collect();
    assert!(!exemplars.is_empty(), "no exemplars");
    for exemplar in exemplars {
        let trace = exemplar.split_once("trace_id=\"").unwrap().1.split('"').next().unwrap();
        assert!(known.contains(&trace), "{exemplar}");
        assert!(exemplar.contains("span_id=\""), "{exemplar}");
    }

    // The official client's parsers accept all of it, the program's own metrics included, and read the same numbers.
    for (format, text) in [("openmetrics", &text), ("text", &plain.text())] {
        let families = parse_metrics(format, text);
        let kind = |name: &str| {
            let family = families.iter().find(|family| family["name"] == name);
            family.unwrap_or_else(|| panic!("{format}: no family {name}"))["type"].clone()
        };
        // In OpenMetrics a counter's family is named without `_total`; this parser does the same with the older format.
        assert_eq!(kind("code_executions"), "counter", "{format}");
        assert_eq!(kind("code_duration_ms"), "histogram", "{format}");
        assert_eq!(kind("process_cpu_seconds"), "counter", "{format}");
        assert_eq!(kind("process_resident_memory_bytes"), "gauge", "{format}");
        let mut read = Scrape::default();
        for sample in families.iter().flat_map(|family| family["samples"].as_array().unwrap()) {
            let labels = sample[1].as_object().unwrap().iter();
            let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
            read.insert(
                sample[0].as_str().unwrap(),
                labels.collect(),
                sample[2].as_str().unwrap().parse().unwrap(),
            );
        }
        let mut read = read.derived();
        read.0.retain(|series, _| !series.name.ends_with("_created"));
        let wrong = read.difference(&scenario.series(1));
        assert!(wrong.is_empty(), "{format}:\n{}", wrong.join("\n"));
    }
}

/// `promtool check metrics`, which must find nothing but the units that the prescribed names have.
fn promtool_accepts(scrape: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: scripts/test.sh --install-only installs it");
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let prescribed = |line: &&str| {
        let unit = line.contains("use base unit") || line.contains("abbreviated units");
        unit && (line.contains("_ms") || line.contains("_mb"))
    };
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| !line.is_empty() && !prescribed(line))
        .collect();
    assert!(
        complaints.is_empty(),
        "promtool check metrics:\n{}",
        complaints.join("\n")
    );
}
