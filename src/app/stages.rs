//! The readers of the journal as running tasks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{LEDGER, METER, StartError};
use crate::egress::Policy;
use crate::forward::{self, Endpoint, ExporterOptions, Forwarder, refused_directory};
use crate::journal::{Journal, JournalId};
use crate::ledger::{Ledger, LedgerError, LedgerOptions};
use crate::meter::{Meter, MeterHandle, MeterOptions};
use crate::rules::Catalogue;
use crate::rules::prices::Prices;
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

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the readers of the journal are made of. Understood and checked; nothing is connected or opened yet.
pub(super) struct Plan {
    meter: MeterPlan,
    ledger: LedgerOptions,
    exporters: BTreeMap<String, forward::Setup>,
}

#[derive(Clone, PartialEq)]
struct MeterPlan {
    options: MeterOptions,
    catalogue: Catalogue,
}

impl Plan {
    /// What the settings say about the readers.
    ///
    /// # Errors
    ///
    /// What would keep the meter or the ledger from starting.
    pub(super) fn of(settings: &Settings, journal: JournalId) -> Result<Self, StartError> {
        let meter = MeterPlan {
            options: MeterOptions {
                directory: state_directory(settings, METER_STATE),
                max_series_per_metric: settings.metrics.max_series_per_metric,
            },
            catalogue: settings
                .metrics
                .catalogue()?
                .with_prices(Prices::clone(&settings.prices)),
        };
        Ledger::new(settings.database.clone())?;
        let setup = |(name, options): &(String, ExporterOptions)| {
            let setup = forward::Setup {
                name: name.clone(),
                options: options.clone(),
                journal,
                positions: state_directory(settings, POSITIONS_STATE),
                refused: refused_directory(&state_directory(settings, REFUSED_STATE), name),
                shutdown_timeout: settings.shutdown_timeout,
            };
            (name.clone(), setup)
        };
        Ok(Self {
            meter,
            ledger: settings.database.clone(),
            exporters: settings.exporters.iter().map(setup).collect(),
        })
    }

    /// Exporters must not lead to one of the addresses that are our `own`. Reads their certificates, and waits for DNS.
    ///
    /// # Errors
    ///
    /// What would keep one of them from starting.
    pub(super) fn check_exporters(&self, own: &[SocketAddr]) -> Result<(), StartError> {
        for (name, setup) in &self.exporters {
            let failed = |source| StartError::Exporter {
                name: name.clone(),
                source,
            };
            let options = &setup.options;
            let endpoint =
                Endpoint::parse(&options.endpoint, options.protocol, options.tls.insecure).map_err(failed)?;
            if endpoint.is_own_listener(own) {
                return Err(StartError::Loop(name.clone()));
            }
            setup.check().map_err(failed)?;
        }
        Ok(())
    }
}

/// The running readers.
pub(super) struct Stages {
    tasks: JoinSet<String>,
    stop: Stop,
    meter: MeterHandle,
    policies: Policies,
    wanted: Wanted,
}

/// The rules of each exporter for what leaves, as they are in force; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Policies(Arc<Mutex<BTreeMap<String, Arc<Policy>>>>);

impl Policies {
    /// Those in force now, by exporter.
    pub(super) fn current(&self) -> BTreeMap<String, Arc<Policy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, exporter: &str, policy: Arc<Policy>) {
        let mut policies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        policies.insert(exporter.to_owned(), policy);
    }
}

/// Where each stage hears of what it shall be made of from now on.
struct Wanted {
    meter: watch::Sender<MeterPlan>,
    ledger: watch::Sender<LedgerOptions>,
    exporters: BTreeMap<String, watch::Sender<forward::Setup>>,
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
    pub(super) async fn start(plan: Plan, journal: &Journal, health: &Health) -> Result<Self, StartError> {
        let stop = Stop::default();
        let mut tasks = JoinSet::new();

        let MeterPlan { options, catalogue } = plan.meter.clone();
        let (meter, handle) = Meter::open(options, catalogue, journal.reader(METER)?, journal.end_at_open())?;
        let (meter_wanted, plans) = watch::channel(plan.meter);
        let run = run_meter(meter, handle.clone(), journal.clone(), health.clone());
        tasks.spawn(ended(METER.to_owned(), run_anew(plans, stop.local.clone(), run)));

        let (tell, connected) = oneshot::channel();
        let (ledger_wanted, plans) = watch::channel(plan.ledger);
        let run = run_ledger(journal.clone(), health.clone(), tell);
        tasks.spawn(ended(LEDGER.to_owned(), run_anew(plans, stop.local.clone(), run)));
        refuse_misfit(connected).await?;

        let policies = Policies::default();
        let mut exporters = BTreeMap::new();
        for (name, setup) in plan.exporters {
            let (wanted, plans) = watch::channel(setup);
            let run = run_exporter(journal.clone(), health.clone(), policies.clone());
            tasks.spawn(ended(name.clone(), run_anew(plans, stop.exporters.clone(), run)));
            exporters.insert(name, wanted);
        }
        Ok(Self {
            tasks,
            stop,
            meter: handle,
            policies,
            wanted: Wanted {
                meter: meter_wanted,
                ledger: ledger_wanted,
                exporters,
            },
        })
    }

    /// Makes those stages anew that are to be made of something else now. Which exporters there are stays as it is.
    pub(super) fn replace(&self, plan: Plan) {
        replace(&self.wanted.meter, plan.meter);
        replace(&self.wanted.ledger, plan.ledger);
        for (name, setup) in plan.exporters {
            if let Some(wanted) = self.wanted.exporters.get(&name) {
                replace(wanted, setup);
            }
        }
    }

    /// What the scrape asks.
    pub(super) fn meter(&self) -> MeterHandle {
        self.meter.clone()
    }

    /// The rules of each exporter for what leaves, with what they counted.
    pub(super) fn policies(&self) -> Policies {
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

fn replace<T: PartialEq>(wanted: &watch::Sender<T>, with: T) {
    wanted.send_if_modified(|current| {
        let is_other = *current != with;
        if is_other {
            *current = with;
        }
        is_other
    });
}

/// Runs a stage until `stop`, and anew whenever it is to be made of something else. What runs first comes to its end as
/// at a shutdown: its position is saved, and the next one goes on from there.
async fn run_anew<T, F>(
    mut wanted: watch::Receiver<T>,
    stop: CancellationToken,
    mut run: impl FnMut(T, CancellationToken) -> F,
) where
    T: Clone,
    F: Future<Output = ()>,
{
    loop {
        let made_of = wanted.borrow_and_update().clone();
        let end = stop.child_token();
        let mut running = pin!(run(made_of, end.clone()));
        tokio::select! {
            () = &mut running => return,
            Ok(()) = wanted.changed() => {
                end.cancel();
                running.await;
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

/// The first meter is open already, since its start may fail; later ones take its place behind `handle`.
fn run_meter(
    first: Meter,
    handle: MeterHandle,
    journal: Journal,
    health: Health,
) -> impl FnMut(MeterPlan, CancellationToken) -> BoxFuture {
    let mut first = Some(first);
    move |plan, end| {
        let heartbeat = health.stage(METER);
        let meter = match first.take() {
            Some(meter) => Ok(meter),
            None => reopen(plan, &handle, &journal),
        };
        Box::pin(async move {
            match meter {
                Ok(meter) => meter.run(end, heartbeat).await,
                // The heartbeat ends unfinished: the process is no longer alive.
                Err(error) => tracing::error!(%error, "metrics are no longer derived"),
            }
        })
    }
}

fn reopen(plan: MeterPlan, handle: &MeterHandle, journal: &Journal) -> Result<Meter, StartError> {
    let (meter, next) = Meter::open(plan.options, plan.catalogue, journal.reader(METER)?, journal.end())?;
    handle.replace(&next);
    Ok(meter)
}

/// Tells what came of connecting the first time.
fn run_ledger(
    journal: Journal,
    health: Health,
    tell: oneshot::Sender<Result<(), LedgerError>>,
) -> impl FnMut(LedgerOptions, CancellationToken) -> BoxFuture {
    let mut tell = Some(tell);
    move |options, end| {
        let tell = tell.take();
        let heartbeat = health.stage(LEDGER);
        let made = || -> Result<_, StartError> { Ok((Ledger::new(options)?, journal.reader(LEDGER)?)) };
        let made = made();
        Box::pin(async move {
            let status = heartbeat.status();
            match made {
                Ok((ledger, reader)) => {
                    // Nobody asks any more when the start took too long.
                    let tell = |connected| drop(tell.map(|tell| tell.send(connected)));
                    ledger.run_and_tell(reader, end, heartbeat, status, tell).await;
                }
                Err(error) => tracing::error!(%error, "rows are no longer written"),
            }
        })
    }
}

fn run_exporter(
    journal: Journal,
    health: Health,
    policies: Policies,
) -> impl FnMut(forward::Setup, CancellationToken) -> BoxFuture {
    move |setup, end| {
        let name = setup.name.clone();
        let heartbeat = health.stage(format!("exporter {name}"));
        let made = || -> Result<_, StartError> {
            let reader = journal.reader(&name)?;
            Forwarder::new(setup, reader).map_err(|source| StartError::Exporter {
                name: name.clone(),
                source,
            })
        };
        let made = made().inspect(|forwarder| policies.set(&name, forwarder.policy()));
        Box::pin(async move {
            let status = heartbeat.status();
            match made {
                Ok(forwarder) => forwarder.run(end, heartbeat, status).await,
                Err(error) => tracing::error!(%error, "nothing more is forwarded there"),
            }
        })
    }
}

/// Tables that do not fit are told at the start; a database that is away, or slow to answer, is waited for later.
async fn refuse_misfit(connected: oneshot::Receiver<Result<(), LedgerError>>) -> Result<(), LedgerError> {
    match tokio::time::timeout(CHECK_PATIENCE, connected).await {
        Ok(Ok(Err(error))) if !error.is_retryable() => Err(error),
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
