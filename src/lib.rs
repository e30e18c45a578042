//! spanledger: a sidecar that receives OTLP, keeps it in a durable journal, and turns the journal into
//! forwarded traces, Prometheus metrics and SQL rows.
//!
//! Every request is validated, written to the journal and only then acknowledged. Three kinds of readers, each with a
//! position of its own, follow the journal: [`forward`], [`meter`] and [`ledger`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
pub mod app;
mod buffers;
mod checksum;
pub mod cli;
pub mod clock;
pub mod columns;
pub mod config;
pub mod demo;
pub mod egress;
pub mod failpoint;
pub mod forward;
mod hex;
pub mod journal;
pub mod ledger;
pub mod listen;
pub mod meter;
pub mod otlp;
pub mod receive;
pub mod redact;
pub mod rules;
pub mod settings;
pub mod telemetry;
