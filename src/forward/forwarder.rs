//! One exporter: what it is made of, and its start.
//!
//! The position and what is kept are read before anything is sent, and for as long as it takes: an exporter that cannot
//! read its own files says so and waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::refused::RefusedStore;
use super::report::Report;
use super::run::Run;
use super::{AFTER_ERROR, ExporterOptions, ForwardError, rethrow};
use crate::egress::Policy;
use crate::journal::{JournalId, Position, Reader, load_position};
use crate::telemetry::{Heartbeat, StageStatus};

/// What a [`Forwarder`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// `otlp` or `otlp/<name>`: the key below `exporters`, and the name of the journal reader.
    pub name: String,
    /// The configuration.
    pub options: ExporterOptions,
    /// The id that [`super::HOP_HEADER`] carries.
    pub journal: JournalId,
    /// Where the position is saved.
    pub positions: PathBuf,
    /// The exporter's own directory for refused requests, see [`super::refused_directory`].
    pub refused: PathBuf,
    /// How long a shutdown may try to deliver the rest.
    pub shutdown_timeout: Duration,
}

/// One exporter, ready to run.
pub struct Forwarder {
    pub(super) setup: Setup,
    pub(super) reader: Reader,
    pub(super) client: Arc<Client>,
    pub(super) policy: Arc<Policy>,
}

impl Setup {
    /// Whether a [`Forwarder`] can be made of it. Reads the certificates, connects to nothing.
    pub fn check(&self) -> Result<(), ForwardError> {
        Policy::compile(&self.options.egress)?;
        Client::new(&self.options, &self.journal.to_string()).map(drop)
    }
}

impl Forwarder {
    /// Checks the options and reads the certificates. Connects to nothing.
    pub fn new(setup: Setup, reader: Reader) -> Result<Forwarder, ForwardError> {
        let client = Arc::new(Client::new(&setup.options, &setup.journal.to_string())?);
        let policy = Arc::new(Policy::compile(&setup.options.egress)?);
        Ok(Forwarder {
            setup,
            reader,
            client,
            policy,
        })
    }

    /// The rules for what leaves, with what they counted.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }

    /// Forwards until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken, heartbeat: Heartbeat, status: StageStatus) {
        self.reader.watch(status.clone());
        let mut report = Report::new(self.setup.name.clone(), self.client.endpoint().to_string(), status);
        let opened = open(&self.setup, &mut report, &heartbeat, &shutdown).await;
        if let Some((position, refused)) = opened {
            let mut run = Run::resume(self, position, refused, report);
            while run.step(&shutdown, &heartbeat).await {}
            heartbeat.while_waiting(run.finish()).await;
        }
        heartbeat.finish();
    }
}

/// Loads the position and what is kept, for as long as it takes. `None` if the shutdown came first.
async fn open(
    setup: &Setup,
    report: &mut Report,
    heartbeat: &Heartbeat,
    shutdown: &CancellationToken,
) -> Option<(Option<Position>, RefusedStore)> {
    loop {
        let (setup, working) = (setup.clone(), report.stage().working());
        let opening = tokio::task::spawn_blocking(move || {
            let _working = working;
            let refused = RefusedStore::open(setup.refused, &setup.name, setup.options.refused)?;
            Ok((load_position(&setup.positions, &setup.name), refused))
        });
        let opened: Result<std::io::Result<_>, _> = heartbeat.while_waiting(opening).await;
        let error = match opened.unwrap_or_else(|panic| rethrow(panic)) {
            Ok((Ok(position), refused)) => return Some((position, refused)),
            Ok((Err(error), refused)) if error.kind() == std::io::ErrorKind::InvalidData => {
                report.position_damaged(&error);
                return Some((None, refused));
            }
            Ok((Err(error), _)) | Err(error) => error,
        };
        report.cannot_start(&error);
        let pause = async { tokio::time::timeout(AFTER_ERROR, shutdown.cancelled()).await.is_ok() };
        if heartbeat.while_waiting(pause).await {
            return None;
        }
    }
}
