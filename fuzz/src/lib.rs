//! What is fuzzed: each module takes one input and panics when something that must hold does not.
//!
//! `fuzz_targets` runs them under libFuzzer; `tests/fuzz_smoke.rs` of the program runs them for a moment with every test.
//! How long each was run: `SECURITY.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

pub mod configuration;
pub mod encoding;
pub mod exposition;
pub mod grpc;
pub mod http;
pub mod journal;
pub mod json;
pub mod server;
pub mod walk;
