//! Demo traffic: realistic executor spans, sent by OTLP like any executor sends them.

mod scenario;
mod spans;

use std::time::Duration;

use crate::clock::unix_nanos;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::time::MissedTickBehavior;
use tonic::transport::Endpoint;

pub use scenario::Scenarios;

/// What to send, and where to.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// An OTLP/gRPC endpoint.
    pub endpoint: String,
    /// Requests per second.
    pub rate: u32,
    /// For how long; none: until stopped.
    pub duration: Option<Duration>,
    /// Seed of the traffic.
    pub seed: u64,
}

/// How a demo ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DemoReport {
    /// Requests that were acknowledged.
    pub acknowledged: u64,
    /// Requests that failed; the demo goes on after them.
    pub failed: u64,
}

/// Why a demo cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("--endpoint {endpoint}: not an address of an OTLP/gRPC receiver, such as http://127.0.0.1:4317")]
pub struct DemoError {
    endpoint: String,
}

/// Sends demo traffic until its duration is over.
///
/// # Errors
///
/// An endpoint that is no address. Refused requests are counted in the report: a receiver that restarts does not end
/// the demo.
pub async fn send(options: &DemoOptions) -> Result<DemoReport, DemoError> {
    let endpoint = Endpoint::from_shared(options.endpoint.clone())
        .map_err(|_| DemoError {
            endpoint: options.endpoint.clone(),
        })?
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(10));
    let mut client = TraceServiceClient::new(endpoint.connect_lazy());
    let mut scenarios = Scenarios::new(options.seed);
    let mut report = DemoReport::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = options.duration.map(|duration| tokio::time::Instant::now() + duration);
    loop {
        let tick = ticks.tick().await;
        if end.is_some_and(|end| tick >= end) {
            return Ok(report);
        }
        match client.export(scenarios.next_request(unix_nanos())).await {
            Ok(_) => report.acknowledged += 1,
            Err(status) => {
                if report.failed == 0 {
                    tracing::warn!(endpoint = options.endpoint, reason = %status, "demo request failed; the demo goes on");
                }
                report.failed += 1;
            }
        }
    }
}

/// A seed that differs each time.
pub fn any_seed() -> u64 {
    getrandom::u64().unwrap_or(1)
}
