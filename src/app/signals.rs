//! What the operating system tells the program.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the program knows.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// A peer that has gone away is an error of one write, whatever this process was begun with.
    _pipe: Signal,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGTERM or SIGINT: drain and exit.
    Stop,
    /// SIGHUP: read configuration and certificates again.
    Reload,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(super) fn watch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            _pipe: signal(SignalKind::pipe())?,
        })
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::Reload,
        }
    }
}
