//! A meter without a journal: rules and series, and nothing else.
//!
//! What the stage does to every record, for tests, benchmarks and trying rules out.

use crate::otlp::TraceRequest;
use crate::rules::Catalogue;
use crate::rules::matcher::{Matcher, Workspace};

use super::exposition::{ExpositionFormat, Rendering};
use super::store::{RecordTime, Store};

/// Counts trace requests in memory.
#[derive(Debug)]
pub struct Tally {
    matcher: Matcher,
    workspace: Workspace,
    store: Store,
    sequence: u64,
}

impl Tally {
    /// Empty metrics of a catalogue.
    pub fn new(catalogue: &Catalogue, max_series_per_metric: usize) -> Self {
        Self {
            // No sender can try for collisions here.
            matcher: Matcher::new(catalogue, 0),
            workspace: Workspace::default(),
            store: Store::new(catalogue, max_series_per_metric),
            sequence: 0,
        }
    }

    /// Counts a request. Allocates nothing, unless it holds series that were not there before.
    pub fn count(&mut self, request: &TraceRequest, received_at: u64) {
        let record = RecordTime {
            sequence: self.sequence,
            received_at,
        };
        self.sequence += 1;
        self.store.count(&self.matcher, &mut self.workspace, request, record);
    }

    /// Series held, of all metrics.
    pub fn series(&self) -> usize {
        self.store.series()
    }

    /// The metrics, without `# EOF`.
    pub fn exposition(&self, format: ExpositionFormat) -> String {
        let families = self.store.snapshot(format == ExpositionFormat::OpenMetrics);
        Rendering::new(families, None, format).rest()
    }
}
