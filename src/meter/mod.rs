//! Derived metrics: series store, checkpoint, exposition.
//!
//! The meter follows the journal, runs the rules over every trace request and keeps the series of the metrics. It counts
//! every request exactly once, across restarts and kill -9: series and position are saved together.
//!
//! * `store` and `index`: the series; sans-io.
//! * `checkpoint` and `resume`: what is saved, and what a restart makes of it.
//! * `reset`: a metric that starts anew on demand.
//! * `exposition`: the text of a scrape; `push`: the same as OTLP.
//! * [`Tally`]: the same without a journal.
//! * [`stage`]: the running meter; `shared`, `meters`: its store behind a lock, and its own metrics.

mod checkpoint;
mod exposition;
mod index;
mod meters;
mod push;
mod reset;
mod resume;
mod shared;
pub mod stage;
mod store;
mod tally;

pub use exposition::{ExpositionFormat, Rendering};
pub use reset::{ResetRequest, request_reset, reset};
pub use stage::{Meter, MeterError, MeterHandle, MeterOptions};
pub use tally::Tally;

use crate::rules::Catalogue;

/// How many scrapes may be under way: each has its own values of all series. Others wait for their turn.
pub const SCRAPES_AT_ONCE: usize = 2;

/// The most memory that the series take, when every metric has as many as it may: once more while they are saved, and
/// once more for each scrape.
pub fn memory_bound(catalogue: &Catalogue, max_series_per_metric: usize) -> usize {
    (2 + SCRAPES_AT_ONCE) * store::Store::new(catalogue, max_series_per_metric).memory_bound()
}

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod measure;
#[cfg(test)]
mod stage_tests;
#[cfg(test)]
mod store_tests;
