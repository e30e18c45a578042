//! Derived metrics: series store, checkpoint, exposition.

mod exposition;
mod index;
mod store;

pub use exposition::ExpositionFormat;

#[cfg(test)]
mod contract_tests;
