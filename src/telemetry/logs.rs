//! Structured logs on standard error.
//!
//! Libraries speak from `warn` on: at `debug` an operator wants this program's decisions, not HTTP/2 frames.
//!
//! Whoever logs never waits: a thread of its own writes the lines. When nobody reads the other end of the pipe, some
//! lines wait, further ones are dropped and counted, and requests are answered all the same.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, reload};

/// Lines that wait to be written.
const WAITING_LINES: usize = 1_024;

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

/// Changes the level of a running program. What was logged is written at the latest when the last clone goes, if
/// somebody reads it.
#[derive(Clone)]
#[must_use = "without it nothing is logged"]
pub struct LogControl {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
    _writer: Arc<WorkerGuard>,
}

impl LogControl {
    /// Sets the metric of the lines that nobody could read.
    pub fn publish(&self) {
        metrics::counter!("spanledger_log_lines_dropped_total").absolute(self.dropped.dropped_lines() as u64);
    }

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
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("spanledger-log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
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
    LogControl {
        filter: handle,
        dropped,
        _writer: Arc::new(guard),
    }
}

fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // It shows the values of what it does not know in the URL of a database, and such a value may be a password.
        .with_target("sqlx_postgres::options", LevelFilter::OFF)
        .with_target("spanledger", level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_heard_from_warnings_on_except_where_they_show_passwords() {
        let targets = targets(LevelFilter::TRACE);
        let heard = |target, level| targets.would_enable(target, &level);
        assert!(heard("spanledger::journal", tracing::Level::TRACE));
        assert!(heard("sqlx::query", tracing::Level::WARN) && !heard("sqlx::query", tracing::Level::INFO));
        assert!(!heard("sqlx_postgres::options::parse", tracing::Level::WARN));
    }
}
