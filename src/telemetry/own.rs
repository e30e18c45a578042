//! The program's own metrics: the recorder behind the [`metrics`] facade.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// The recorder keeps every observation of a histogram until upkeep folds it into buckets.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Buckets of histograms of our own that count things.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// Buckets of histograms of our own that measure seconds.
const SECONDS: [f64; 15] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// The own metrics of the process.
#[derive(Clone)]
pub struct OwnMetrics {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

/// Why the own metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OwnMetricsError {
    /// The buckets are invalid.
    #[error("cannot set up the program's own metrics: {0}")]
    Build(#[from] BuildError),
    /// A recorder is installed already.
    #[error("cannot set up the program's own metrics: {0}")]
    Install(String),
}

impl OwnMetrics {
    /// Installs the recorder of this process.
    ///
    /// # Errors
    ///
    /// When the process has a recorder already.
    pub fn install() -> Result<Self, OwnMetricsError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_records".into()), &COUNTS)?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| OwnMetricsError::Install(error.to_string()))?;
        let process = metrics_process::Collector::default();
        process.describe();
        metrics::describe_counter!(
            "spanledger_log_lines_dropped_total",
            "Log lines that were dropped because nobody reads standard error."
        );
        metrics::describe_gauge!("spanledger_build_info", "Version of the running program.");
        metrics::gauge!("spanledger_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self { handle, process })
    }

    /// Folds what was observed since the last call; to be called every [`UPKEEP_EVERY`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The metrics in the Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        self.process.collect();
        self.handle.render()
    }
}
