//! The official OpenTelemetry SDKs as senders, over each protocol that they speak, with and without gzip. What they emit is
//! in `tests/sdk/scenario.json`, with the rows and metrics beside it.

use crate::common::program::Setup;
use crate::common::scenario::{Ids, Scenario};
use crate::common::script::{Sdk, browse, probe_from_go, send_from};
use crate::common::sink::Sink;
use crate::end_to_end::{check, delivered_spans};
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use tokio::net::TcpListener;

const GRPC: &str = "grpc";
const PROTOBUF: &str = "http/protobuf";
const JSON: &str = "http/json";

/// Sends the scenario over every protocol in turn, and checks rows, metrics and what is forwarded.
async fn emit(sdk: Sdk, protocols: &[&str]) {
    if let Some(why) = sdk.unavailable() {
        println!("SKIPPED, the SDK for {sdk:?} is not tested here: {why}");
        return;
    }
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let scenario = Scenario::read();
    let (grpc, http) = (program.url("otlp_grpc", "").await, program.url("otlp_http", "").await);
    let mut sent: Vec<Ids> = Vec::new();
    for protocol in protocols {
        let endpoint = if *protocol == GRPC { &grpc } else { &http };
        for compression in ["none", "gzip"] {
            sent.push(send_from(sdk, &scenario, protocol, compression, endpoint).await);
        }
    }
    check(&setup, &program, &scenario, &sent).await;

    let mut expected: Vec<String> = sent.iter().flat_map(|ids| ids.values().cloned()).collect();
    expected.sort();
    let count = expected.len();
    let deliveries = sink
        .wait("every span", |all| {
            (delivered_spans(all).len() >= count).then(|| all.to_vec())
        })
        .await;
    assert_eq!(delivered_spans(&deliveries), expected, "each span is forwarded once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_sends_over_each_protocol() {
    emit(Sdk::Python, &[GRPC, PROTOBUF]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdk_of_the_executors_sends_over_each_protocol() {
    emit(Sdk::Node, &[GRPC, PROTOBUF, JSON]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_sdk_sends_over_each_protocol() {
    emit(Sdk::Go, &[GRPC, PROTOBUF]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_sdk_sends_over_each_protocol() {
    emit(Sdk::Java, &[GRPC, PROTOBUF]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_sends_over_each_protocol() {
    emit(Sdk::Rust, &[GRPC, PROTOBUF, JSON]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn official_grpc_clients_read_health_and_reflection() {
    if let Some(why) = Sdk::Go.unavailable() {
        println!("SKIPPED, the gRPC clients for Go are not tested here: {why}");
        return;
    }
    let setup = Setup::new();
    let program = setup.start().await;
    let found = probe_from_go(&program.address("otlp_grpc").await.to_string()).await;
    assert_eq!(
        (
            found["check"].as_str(),
            found["watch"].as_str(),
            found["services"].as_i64()
        ),
        (Some("SERVING"), Some("SERVING"), Some(4))
    );
    let methods: Vec<&str> = found["methods"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it.as_str())
        .collect();
    for method in [
        "opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "grpc.health.v1.Health/Watch",
    ] {
        assert!(methods.contains(&method), "{method} in {methods:?}");
    }
}

/// A page that posts JSON to another origin, with and without gzip, and writes down what its script gets to know.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><pre id="said">nothing yet</pre><script type="module">
const span = (id) => JSON.stringify({resourceSpans: [{resource: {attributes: [{key: "service.name", value: {stringValue: "page"}}]},
  scopeSpans: [{spans: [{traceId: "5b8efff798038103d269b633813fc60c", spanId: id, name: "click",
    startTimeUnixNano: "1700000000000000000", endTimeUnixNano: "1700000000007000000"}]}]}]});
const gzip = (text) => new Response(new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
const post = (headers, body) => fetch("RECEIVER/v1/traces", {method: "POST", headers: {"content-type": "application/json", ...headers}, body})
  .then(async (answer) => `${answer.status} ${await answer.text()}`, (error) => error.name);
const said = [
  await post({}, span("eee19b7ec3c1b174")),
  await post({"content-encoding": "gzip"}, await gzip(span("eee19b7ec3c1b175"))),
  await post({}, "no json"),
];
document.getElementById("said").textContent = said.join(" | ");
</script>"#;

/// Serves the page, whatever is asked for, and returns its address.
async fn serve_page(receiver: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = PAGE.replace("RECEIVER", receiver);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let page = page.clone();
            let service = service_fn(move |_| {
                let body = Full::new(bytes::Bytes::from(page.clone()));
                let answer = Response::builder()
                    .header("content-type", "text/html")
                    .body(body)
                    .unwrap();
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_posts_json_across_origins_if_it_is_allowed_to_and_only_then() {
    let sink = Sink::start().await;
    for (allowed, expected) in [
        ("http://127.0.0.1:*", "200 {} | 200 {} | 400 {"),
        ("https://elsewhere.example", "TypeError | TypeError | TypeError"),
    ] {
        let setup = Setup::forwarding_to(sink.url()).set(
            "receivers.otlp.protocols.http.cors.allowed_origins",
            serde_json::json!([allowed]),
        );
        let program = setup.start().await;
        let page = serve_page(&program.url("otlp_http", "").await).await;
        let document = browse(&page).await;
        assert!(document.contains(expected), "{allowed}: {document}");
    }
    let deliveries = sink
        .wait("both spans", |all| {
            (delivered_spans(all).len() >= 2).then(|| all.to_vec())
        })
        .await;
    let trace = "5b8efff798038103d269b633813fc60c";
    assert_eq!(
        delivered_spans(&deliveries),
        [format!("{trace}-eee19b7ec3c1b174"), format!("{trace}-eee19b7ec3c1b175")]
    );
}
