//! The running program: builds the rooms from the settings, runs them, and drains them.
//!
//! # Order
//!
//! Start: journal, readers, listeners bound (so that every own address is known), stages, listeners served, ready.
//! Stop: not ready, receivers stop accepting and answer what they took, readers get `shutdown_timeout` to catch up,
//! each saves its position, the journal is closed. What is left waits in the journal.

mod bounds;
mod listeners;
mod push;
mod reload;
mod signals;
mod stages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::health::HealthEndpoint;
use crate::api::query::{ExporterRules, PipelineReport, QueryApi, QueryError, QueryOptions};
use crate::api::scrape::ScrapeEndpoint;
use crate::config::Mistakes;
use crate::demo::{self, DemoOptions};
use crate::egress::Policy;
use crate::forward::ForwardError;
use crate::journal::{self, Journal, JournalError};
use crate::ledger::LedgerError;
use crate::listen::{Address, ListenError};
use crate::meter::MeterError;
use crate::settings::{Loaded, Settings};
use crate::telemetry::{Health, LogControl, OwnMetrics, own};
use bounds::MemoryBounds;
use listeners::{Endpoints, Listeners};
use reload::Reloader;
use signals::{Signals, Told};
use stages::{Plan, Stages};

pub use stages::{METER_STATE, POSITIONS_STATE, REFUSED_STATE, state_directory};

/// Names of the readers of the journal; exporters have their own.
const METER: &str = "meter";
/// The reader that writes rows.
pub const LEDGER: &str = "ledger";

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] Mistakes),
    /// The meter's state.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The rows.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// An exporter.
    #[error("exporters.{name}: {source}")]
    Exporter {
        /// Its name.
        name: String,
        /// What is wrong.
        source: ForwardError,
    },
    /// The query API.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// An exporter that would send to this very program.
    #[error("exporters.{0}.endpoint is one of our own listeners; traces would go round for ever")]
    Loop(String),
    /// The operating system.
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

/// A program that is built and bound, and receives nothing yet.
pub struct Program {
    signals: Signals,
    journal: Journal,
    listeners: Listeners,
    stages: Stages,
    health: Health,
    own: OwnMetrics,
    log: LogControl,
    query: QueryOptions,
    reloader: Reloader,
    shutdown_timeout: Duration,
    push: watch::Receiver<Option<push::Pace>>,
}

impl Program {
    /// Opens the journal, binds every listener and starts the readers.
    ///
    /// # Errors
    ///
    /// What keeps the program from starting; each names the setting to change. A database or a backend that is away
    /// does not.
    pub async fn start(loaded: Loaded, own: OwnMetrics, log: LogControl) -> Result<Self, StartError> {
        let Loaded { settings, records, .. } = loaded;
        // First of all: as the first process of a container a signal without a handler is ignored.
        let signals = Signals::watch().map_err(StartError::Signals)?;
        let health = Health::default();
        // Mistakes in the rules are told before anything is opened.
        MemoryBounds::of(&settings, &settings.metrics.catalogue()?).log();
        let journal = open_journal(&settings)?;
        journal.watch(health.stage("journal"));
        let listeners = Listeners::bind(&settings, &journal)?;
        let own_addresses: Vec<_> = listeners.addresses().iter().filter_map(Address::tcp).collect();
        let plan = Plan::of(&settings, journal.id())?;
        plan.check_exporters(&own_addresses)?;
        let (wanted_pace, push) = watch::channel(push::Pace::of(&settings));
        let reloader = Reloader::new(
            records,
            log.clone(),
            listeners.tls_reloaders(),
            &settings,
            own_addresses,
            wanted_pace,
        );
        let shutdown_timeout = settings.shutdown_timeout;
        let query = QueryOptions {
            url: settings.database.url.clone(),
            schema: settings.database.schema.clone(),
            table: settings.database.table.clone(),
            ..settings.api.query.clone()
        };
        let stages = Stages::start(plan, &journal, &health).await?;
        Ok(Self {
            signals,
            journal,
            listeners,
            stages,
            health,
            own,
            log,
            query,
            reloader,
            shutdown_timeout,
            push,
        })
    }

    /// Receives until it is told to stop, then drains. `reread` reads the configuration again, on SIGHUP.
    ///
    /// # Errors
    ///
    /// When the query API cannot read the URL of the database.
    pub async fn run(mut self, demo: bool, reread: impl Fn() -> Result<Loaded, Mistakes>) -> Result<(), StartError> {
        let (receiving, serving) = (CancellationToken::new(), CancellationToken::new());
        let journal = self.journal.clone();
        let health = HealthEndpoint::new(self.health.clone(), move || journal.is_writable().err());
        let scrape = ScrapeEndpoint::new(self.stages.meter(), self.own.clone());
        let query = self.query_api(serving.clone())?;
        let endpoints = Endpoints {
            health: health.clone(),
            scrape,
            query: query.clone(),
        };
        let demo = demo.then(|| self.listeners.grpc_address()).flatten().map(demo_to);
        let mut listeners = self
            .listeners
            .serve(endpoints, &self.health, receiving.clone(), serving.clone());
        health.set_serving(true);
        tracing::info!("ready");
        let upkeep = tokio::spawn(upkeep(self.own.clone(), self.log.clone()));
        let stop_push = CancellationToken::new();
        let push = tokio::spawn(push::run(
            self.stages.meter(),
            self.journal.clone(),
            self.push,
            stop_push.clone(),
            self.health.stage("metrics push"),
        ));
        let demo = demo.map(|options| tokio::spawn(async move { demo::send(&options).await }));
        loop {
            tokio::select! {
                told = self.signals.next() => match told {
                    Told::Stop => break,
                    Told::Reload => self.reloader.reload(&reread, self.journal.id(), &self.stages, &query),
                },
                ended = self.stages.next_end() => report_end(ended),
            }
        }
        tracing::info!("stopping: what was accepted is answered, then the destinations are tried");
        health.set_serving(false);
        if let Some(demo) = demo {
            demo.abort();
        }
        receiving.cancel();
        listeners.receivers_drained().await;
        stop_push.cancel();
        if let Err(error) = push.await {
            tracing::error!(reason = %error, "the derived metrics are no longer pushed");
        }
        self.stages.drain(&self.journal, self.shutdown_timeout).await;
        self.journal.close();
        serving.cancel();
        listeners.ended().await;
        upkeep.abort();
        tracing::info!("stopped");
        Ok(())
    }

    fn query_api(&self, shutdown: CancellationToken) -> Result<QueryApi, QueryError> {
        let (health, journal) = (self.health.clone(), self.journal.clone());
        let policies = self.stages.policies();
        QueryApi::new(
            self.query.clone(),
            move || PipelineReport::of(&health, Some(journal.status()), rules_of(&policies.current())),
            shutdown,
        )
    }
}

/// What the rules for what leaves did, for the API.
fn rules_of(policies: &BTreeMap<String, Arc<Policy>>) -> Vec<ExporterRules> {
    let rules = |policy: &Policy| policy.counted().map(|(rule, count)| (rule.clone(), count)).collect();
    let with_rules = policies.iter().filter(|(_, policy)| !policy.is_empty());
    with_rules
        .map(|(name, policy)| ExporterRules {
            name: name.clone(),
            rules: rules(policy),
        })
        .collect()
}

/// The options of the journal, with every reader that the settings name.
pub fn journal_options(settings: &Settings) -> journal::Options {
    let exporters = settings
        .exporters
        .iter()
        .map(|(name, _)| name.clone())
        .collect::<Vec<_>>();
    let local = [METER, LEDGER].map(str::to_owned);
    let readers = local.into_iter().chain(exporters.iter().cloned()).collect();
    journal::Options {
        readers,
        may_skip: exporters,
        max_unsynced: settings.receivers.most_admitted(),
        ..settings.journal.clone()
    }
}

/// Opens the journal with every reader that the settings name.
///
/// # Errors
///
/// What keeps it from being opened, such as another process that has it open.
pub fn open_journal(settings: &Settings) -> Result<Journal, StartError> {
    let (journal, recovery) = Journal::open(journal_options(settings))?;
    let id = journal.id();
    let (records, segments, unfinished) = (recovery.records, recovery.segments, recovery.unfinished_records);
    tracing::info!(journal = %id, is_new = recovery.is_new, records, segments, unfinished, "the journal is open");
    for note in &recovery.notes {
        tracing::warn!(note, "found while opening the journal");
    }
    if recovery.lost_records > 0 {
        tracing::error!(
            records = recovery.lost_records,
            "acknowledged records are damaged or missing"
        );
    }
    Ok(journal)
}

/// Demo traffic to our own receiver.
fn demo_to(address: Address) -> DemoOptions {
    DemoOptions {
        endpoint: format!("http://{address}"),
        rate: 20,
        duration: None,
        // Another one each time: the same ids again would be the same executions again.
        seed: demo::any_seed(),
    }
}

/// Stages end when they are told to; anything else is a fault, which the health listener tells from now on.
fn report_end(ended: Result<String, tokio::task::JoinError>) {
    match ended {
        Ok(stage) => tracing::error!(stage, "a stage ended by itself; the process is no longer alive"),
        Err(error) => tracing::error!(reason = %error, "a stage died; the process is no longer alive"),
    }
}

/// Folds the program's own observations, so that they do not pile up between scrapes.
async fn upkeep(own: OwnMetrics, log: LogControl) {
    let mut ticks = tokio::time::interval(own::UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        own.upkeep();
        log.publish();
    }
}
