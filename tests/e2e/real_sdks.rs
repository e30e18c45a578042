//! The official OpenTelemetry SDKs as senders. What they emit is in `tests/sdk/scenario.json`, with the rows and metrics
//! beside it.

use crate::common::program::Setup;
use crate::common::scenario::Scenario;
use crate::common::script::{send_from_node, send_from_python};
use crate::common::sink::Sink;
use crate::end_to_end::{check, delivered_spans};

/// Sends the scenario through one SDK and checks rows, metrics and what is forwarded.
async fn emit(send: impl AsyncFnOnce(&Scenario, &str, &str) -> crate::common::scenario::Ids) {
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let scenario = Scenario::read();
    let (grpc, http) = (program.url("otlp_grpc", "").await, program.url("otlp_http", "").await);
    let ids = send(&scenario, &grpc, &http).await;
    check(&setup, &program, &scenario, std::slice::from_ref(&ids)).await;

    let mut expected: Vec<String> = ids.values().cloned().collect();
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
async fn the_python_sdk_sends_over_grpc() {
    emit(async |scenario, grpc, _| send_from_python(scenario, "grpc", grpc, "none").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_sends_over_grpc_with_gzip() {
    emit(async |scenario, grpc, _| send_from_python(scenario, "grpc", grpc, "gzip").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_sends_protobuf_over_http_with_gzip() {
    emit(async |scenario, _, http| send_from_python(scenario, "http/protobuf", http, "gzip").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdk_of_the_executors_sends_json() {
    emit(async |scenario, _, http| send_from_node(scenario, http).await).await;
}
