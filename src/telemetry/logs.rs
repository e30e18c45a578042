//! Structured logs on standard error.
//!
//! Libraries speak from `warn` on: at `debug` an operator wants this program's decisions, not HTTP/2 frames.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, reload};

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, fields at its top level.
    Json,
}

/// `telemetry.logs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// The least important level that is written.
    pub level: LevelFilter,
    /// How lines are written.
    pub format: LogFormat,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            level: LevelFilter::INFO,
            format: LogFormat::Text,
        }
    }
}

/// Changes the level of a running program.
#[derive(Clone)]
pub struct LogControl {
    filter: reload::Handle<Targets, Registry>,
}

impl LogControl {
    /// Writes from `level` on.
    pub fn set_level(&self, level: LevelFilter) {
        if let Err(error) = self.filter.reload(targets(level)) {
            tracing::warn!(reason = %error, "the log level could not be changed");
        }
    }
}

/// Starts logging. A second call in one process changes nothing but gives a handle that does nothing useful.
pub fn start(options: LogOptions) -> LogControl {
    let (filter, handle) = reload::Layer::new(targets(options.level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match options.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    // Only a second start in one process fails here (tests); the first one's settings then stay.
    let _already_started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LogControl { filter: handle }
}

fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("spanledger", level)
}
