//! Derived metrics: series store, checkpoint, exposition.
//!
//! The meter follows the journal, runs the rules over every trace request and keeps the series of the metrics. It counts
//! every request exactly once, across restarts and kill -9: series and position are saved together.
//!
//! * `store` and `index`: the series; sans-io.
//! * `checkpoint` and `resume`: what is saved, and what a restart makes of it.
//! * `exposition`: the text of a scrape.
//! * [`stage`]: the running meter; `shared`, `meters`: its store behind a lock, and its own metrics.

mod checkpoint;
mod exposition;
mod index;
mod meters;
mod resume;
mod shared;
pub mod stage;
mod store;

pub use exposition::ExpositionFormat;
pub use stage::{Meter, MeterError, MeterHandle, MeterOptions, reset};

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod stage_tests;
