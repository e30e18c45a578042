//! Differential tests against prost and opentelemetry-proto, the common way to read OTLP in Rust.
//!
//! Every test draws from seeds that are the same in each run; `SPANLEDGER_TEST_SEED` moves on to others, and a failure
//! names the seed of its case.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cut;
pub(crate) mod generate;
mod robust;
mod transcode;
mod walk;

use generate::Generator;

/// Runs a test with many seeds.
pub(crate) fn for_seeds(count: u64, test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let first = std::env::var("SPANLEDGER_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0u64);
    for seed in first..first + count {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!("failed with SPANLEDGER_TEST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
