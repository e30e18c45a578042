//! The receiver's own metrics.

use crate::fixture::*;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use spanledger::otlp::{Encoding, compress};

/// A recorder that only this test's thread, and so its runtime, reports to.
pub fn recorder() -> (PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// The value of a sample, by its name and all of its labels in order.
pub fn sample(handle: &PrometheusHandle, sample: &str) -> Option<f64> {
    let exposition = handle.render();
    let line = exposition
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ').map(str::to_owned))?;
    Some(line.parse().unwrap())
}

#[tokio::test]
async fn requests_items_and_bytes_are_counted_by_protocol_signal_and_outcome() {
    let (recorder, handle) = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let fixture = Fixture::start();

    let mut bad = span("bad", 2);
    bad.trace_id.clear();
    let body = prost::Message::encode_to_vec(&traces_of(vec![span("good", 1), bad]));
    let gzip = compress(Encoding::Gzip, &body);
    for _ in 0..3 {
        fixture.call(GRPC_TRACES, &[("grpc-encoding", "gzip")], 1, &gzip).await;
    }
    fixture.post("/v1/traces", &[("content-type", JSON)], JSON_TRACES).await;
    fixture.post("/v1/logs", &[("content-type", PROTOBUF)], "\u{ff}").await;

    let grpc = r#"{protocol="grpc",signal="traces"}"#;
    let counted = |name: &str, labels: &str| sample(&handle, &format!("spanledger_receiver_{name}{labels}"));
    let size = gzip.len() as f64;
    assert_eq!(counted("requests_accepted_total", grpc), Some(1.0));
    assert_eq!(counted("items_accepted_total", grpc), Some(1.0));
    assert_eq!(counted("items_rejected_total", grpc), Some(1.0));
    assert_eq!(counted("bytes_accepted_total", grpc), Some(size));
    assert_eq!(counted("requests_duplicate_total", grpc), Some(2.0));
    assert_eq!(counted("bytes_duplicate_total", grpc), Some(2.0 * size));
    assert_eq!(counted("requests_unanswered_total", grpc), Some(0.0));
    assert_eq!(counted("request_duration_seconds_count", grpc), Some(3.0));
    let json = r#"{protocol="http/json",signal="traces"}"#;
    assert_eq!(counted("requests_accepted_total", json), Some(1.0));
    assert_eq!(counted("bytes_accepted_total", json), Some(JSON_TRACES.len() as f64));
    let refused = r#"{protocol="http/protobuf",signal="logs",reason="malformed"}"#;
    assert_eq!(counted("requests_refused_total", refused), Some(1.0));
    assert_eq!(counted("bytes_refused_total", refused), Some(2.0));
    assert_eq!(counted("in_flight_bytes", ""), Some(0.0));
    let connections = r#"{listener="otlp_grpc"}"#;
    assert_eq!(
        sample(
            &handle,
            &format!("spanledger_listener_connections_accepted_total{connections}")
        ),
        Some(3.0)
    );
}
