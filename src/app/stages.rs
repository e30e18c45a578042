//! The readers of the journal as running tasks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{LEDGER, METER, StartError};
use crate::egress::Policy;
use crate::forward::{self, Forwarder, refused_directory};
use crate::journal::Journal;
use crate::ledger::{Ledger, LedgerError};
use crate::meter::{Meter, MeterHandle, MeterOptions};
use crate::rules::Catalogue;
use crate::settings::Settings;
use crate::telemetry::Health;

/// How long stages have to save their positions at the end.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How often a drain looks whether the readers have caught up.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How long the start waits for the database to say whether its tables fit.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// Directory of the meter's checkpoint.
pub const METER_STATE: &str = "meter";

/// Directory of what backends refused.
pub const REFUSED_STATE: &str = "refused";

/// Directory of the exporters' positions.
pub const POSITIONS_STATE: &str = "positions";

/// The running readers.
pub(super) struct Stages {
    tasks: JoinSet<String>,
    stop: Stop,
    meter: MeterHandle,
    /// The rules of each exporter for what leaves.
    policies: Vec<(String, Arc<Policy>)>,
}

/// Tells readers to save their positions and end.
#[derive(Clone, Default)]
struct Stop {
    /// Exporters deliver what is left by themselves, for as long as `shutdown_timeout` allows.
    exporters: CancellationToken,
    /// The meter and the ledger are stopped when they have caught up.
    local: CancellationToken,
}

impl Stages {
    /// Starts the meter, the ledger and every exporter.
    ///
    /// # Errors
    ///
    /// What keeps one of them from starting; an unreachable database or backend does not.
    pub(super) async fn start(
        settings: Settings,
        catalogue: Catalogue,
        journal: &Journal,
        health: &Health,
    ) -> Result<Self, StartError> {
        let stop = Stop::default();
        let mut tasks = JoinSet::new();

        let options = MeterOptions {
            directory: state_directory(&settings, METER_STATE),
            max_series_per_metric: settings.metrics.max_series_per_metric,
        };
        let (meter, handle) = Meter::open(options, catalogue, journal.reader(METER)?, journal.end_at_open())?;
        tasks.spawn(ended(
            METER.to_owned(),
            meter.run(stop.local.clone(), health.stage(METER)),
        ));

        let ledger = Ledger::new(settings.database.clone())?;
        refuse_misfit(&ledger).await?;
        let (reader, heartbeat, stopped) = (journal.reader(LEDGER)?, health.stage(LEDGER), stop.local.clone());
        let status = heartbeat.status();
        let run = async move { ledger.run(reader, stopped, heartbeat, status).await };
        tasks.spawn(ended(LEDGER.to_owned(), run));

        let mut policies = Vec::new();
        for (name, options) in &settings.exporters {
            let setup = forward::Setup {
                name: name.clone(),
                options: options.clone(),
                journal: journal.id(),
                positions: state_directory(&settings, POSITIONS_STATE),
                refused: refused_directory(&state_directory(&settings, REFUSED_STATE), name),
                shutdown_timeout: settings.shutdown_timeout,
            };
            let forwarder = Forwarder::new(setup, journal.reader(name)?).map_err(|source| StartError::Exporter {
                name: name.clone(),
                source,
            })?;
            policies.push((name.clone(), forwarder.policy()));
            let heartbeat = health.stage(format!("exporter {name}"));
            let status = heartbeat.status();
            tasks.spawn(ended(
                name.clone(),
                forwarder.run(stop.exporters.clone(), heartbeat, status),
            ));
        }
        Ok(Self {
            tasks,
            stop,
            meter: handle,
            policies,
        })
    }

    /// What the scrape asks.
    pub(super) fn meter(&self) -> MeterHandle {
        self.meter.clone()
    }

    /// The rules of each exporter for what leaves, with what they counted.
    pub(super) fn policies(&self) -> Vec<(String, Arc<Policy>)> {
        self.policies.clone()
    }

    /// The next stage that ended; never, if there is none.
    pub(super) async fn next_end(&mut self) -> Result<String, JoinError> {
        match self.tasks.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Lets the readers catch up for `patience`, then has them save their positions and end.
    pub(super) async fn drain(mut self, journal: &Journal, patience: Duration) {
        self.stop.exporters.cancel();
        let deadline = Instant::now() + patience;
        let behind = |journal: &Journal| {
            let local = |name: &str| name == METER || name == LEDGER;
            journal
                .status()
                .readers
                .iter()
                .any(|reader| local(&reader.name) && reader.lag_records > 0)
        };
        while Instant::now() < deadline && behind(journal) {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.stop.local.cancel();
        // Exporters have until the deadline, however early the others have caught up.
        let patience = (deadline + LAST_PATIENCE).saturating_duration_since(Instant::now());
        if tokio::time::timeout(patience, self.all_ended()).await.is_err() {
            // Positions are saved with what they stand behind, so a stage can be left anywhere.
            tracing::warn!("a stage does not end, most likely for a destination that hangs; it is left behind");
            self.tasks.abort_all();
        }
        for reader in journal.status().readers.iter().filter(|reader| reader.lag_records > 0) {
            let (name, records) = (reader.name.as_str(), reader.lag_records);
            tracing::warn!(
                reader = name,
                records,
                "not everything was delivered; the rest waits in the journal"
            );
        }
    }

    async fn all_ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(reason = %error, "a stage died while stopping");
            }
        }
    }
}

/// Tables that do not fit are told at the start; a database that is away, or slow to answer, is waited for later.
async fn refuse_misfit(ledger: &Ledger) -> Result<(), LedgerError> {
    match tokio::time::timeout(CHECK_PATIENCE, ledger.check()).await {
        Ok(Err(error)) if !error.is_retryable() => Err(error),
        _ => Ok(()),
    }
}

/// Where state that belongs to this journal lies: within its directory, so that they are wiped together.
pub fn state_directory(settings: &Settings, name: &str) -> PathBuf {
    settings.journal.directory.join(name)
}

/// Names a stage when it ends.
async fn ended(name: String, stage: impl Future<Output = ()>) -> String {
    stage.await;
    name
}
