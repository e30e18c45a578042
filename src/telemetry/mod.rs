//! The program's own metrics, logs and health.
//!
//! Own metrics go through the [`metrics`] facade under names that begin with `spanledger_`; rooms keep their handles in
//! a struct, because the macros hash the labels at every call.

pub mod health;
pub mod logs;
pub mod own;

pub use health::{Health, Heartbeat, StageStatus, Working};
pub use logs::{LogControl, LogFormat, LogOptions};
pub use own::OwnMetrics;
