//! Materialises exactly one right row per execution in SQL.
//!
//! What an execution is made of is spread over several spans that are not each other's parents, may be in different
//! traces, and arrive in any order, batch, and sidecar. This room follows the journal, takes out what matters, and keeps
//! the rows of `code_exec_logs` the best that can be known.
//!
//! * [`facts`]: what a span tells, compact and owned. [`extract`] takes it out of requests, and sets all other spans aside
//!   cheaply; [`ahead`] does so for as many as one transaction may have, while the one before is written.
//! * [`world`], [`assemble`]: which facts belong together, and the row they make. Pure functions.
//! * [`plan`], [`commit`]: what a batch changes, and the transaction that does it, the reader's position included.
//! * [`quarantine`]: rows that the database refuses.
//! * [`records`]: spans that become rows of further tables, where they are wanted.
//! * [`store`]: SQLite and PostgreSQL. [`table`]: the tables, declared once for both,
//!   and the mapping from spans to them.
//! * [`standalone`]: rows of runtimes that nobody executed. [`stage`]: the loop. [`pace`]: how much of a backlog in one
//!   transaction. [`upkeep`]: what waits too long is forgotten, old rows are deleted.
//! * [`packing`]: hours that are over are packed for statistics.
//!
//! # Exactly one row
//!
//! The id of a row is made of its trace and span, and rows that are there are not inserted again; the position is saved
//! in the transaction of the rows. So a crash, a restart, an unknown outcome of COMMIT, a database that was restored to
//! an older state, and the same span from two sidecars all come to the same: what is repeated changes nothing.
//!
//! # Memory
//!
//! At most [`stage::READ_BYTES`] of request bodies or the largest body, the facts of a batch and a quarter (see
//! [`store::Store::DECODED_BYTES`]) however much a request tells, and 20,000 waiting spans that were loaded for them, of 16 MiB
//! as they are stored: 100 MiB in the worst case, 25 MiB with the traffic that executors send. SQLite's cache of pages takes up
//! to 16 MiB more. Where its transactions have many batches, these
//! are a quarter as large, and their rows take 10 MiB until they are written.

mod ahead;
pub mod assemble;
mod commit;
pub mod extract;
pub mod facts;
mod meters;
mod pace;
mod packing;
mod plan;
mod quarantine;
pub mod records;
pub mod row;
mod seen;
mod semantics;
mod stage;
mod standalone;
mod store;
mod table;
mod upkeep;
pub mod world;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::unix_nanos;
use crate::journal::{ReadError, Reader};
use crate::redact::{PatternError, Patterns};
use crate::rules::prices::Prices;
use crate::telemetry::{Heartbeat, StageStatus};
use extract::Extractor;
use store::postgres::PostgresStore;
use store::sqlite::SqliteStore;
use store::{Names, Settings, Store};

pub use store::StoreError;
pub use table::Quarantined;

/// The most memory that the ledger takes, in bytes, when so many spans may wait; see the module.
pub fn memory_bound(max_pending: u64) -> usize {
    let waiting = usize::try_from(max_pending).unwrap_or(usize::MAX);
    ((100 + 16) << 20) + waiting.saturating_mul(store::sqlite::BYTES_OF_WAITING)
}

/// The settings under `database`. `Debug` does not show the URL, which may hold a password.
#[derive(Clone, PartialEq)]
pub struct LedgerOptions {
    /// `sqlite:PATH` or `postgres://...`.
    pub url: String,
    /// PostgreSQL schema of the table and of our own tables; `None`: the first of the user's search path.
    pub schema: Option<String>,
    /// The table of the rows.
    pub table: String,
    /// Whether to make the tables that are missing. If not, they are used as they are.
    pub migrate: bool,
    /// How long rows that this program wrote are kept; 0 keeps them. `None`: 90 days in SQLite, for ever in PostgreSQL.
    pub retention: Option<Duration>,
    /// How long context waits for its execution, and an execution for context.
    pub assembly_window: Duration,
    /// How many spans may wait.
    pub max_pending: u64,
    /// Whether runtime spans without an execution become rows.
    pub standalone: bool,
    /// What is cut from error messages; see [`Patterns::compile`].
    pub redact: Vec<String>,
    /// What executions are estimated to cost where their spans do not say it: the settings under `prices`.
    pub prices: Arc<Prices>,
    /// Further tables that are written, by name: see [`further_tables`].
    pub tables: Vec<String>,
    /// How long PostgreSQL may work on one statement.
    pub statement_timeout: Duration,
}

impl std::fmt::Debug for LedgerOptions {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = out.debug_struct("LedgerOptions");
        shown.field("schema", &self.schema).field("table", &self.table);
        shown.finish_non_exhaustive()
    }
}

impl Default for LedgerOptions {
    fn default() -> LedgerOptions {
        LedgerOptions {
            url: "sqlite:./spanledger-data/executions.db".to_owned(),
            schema: None,
            table: "code_exec_logs".to_owned(),
            migrate: true,
            retention: None,
            assembly_window: Duration::from_secs(3_600),
            max_pending: 200_000,
            standalone: false,
            redact: Vec::new(),
            prices: Arc::default(),
            tables: Vec::new(),
            statement_timeout: Duration::from_secs(60),
        }
    }
}

/// The names that [`LedgerOptions::tables`] may hold.
pub fn further_tables() -> impl Iterator<Item = &'static str> {
    table::DESTINATIONS[1..].iter().map(|destination| destination.name)
}

/// Why the ledger cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database's part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An expression that is none.
    #[error("database.redact: {0}")]
    Redact(#[from] PatternError),
    /// The journal's part.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// A table that is none.
    #[error("database.tables: there is no table `{0}`")]
    Table(String),
    /// A URL of no database that is known.
    #[error("database.url: expected sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Url,
}

impl LedgerError {
    /// Whether doing the same again can succeed without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, LedgerError::Store(error) if error.is_retryable())
    }
}

/// What [`Ledger::rebuild`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// When the oldest record that the journal still has was received, Unix nanoseconds. Rows from before are as they
    /// were.
    pub since: Option<u64>,
    /// Rows that were written anew.
    pub rows: u64,
    /// Rows that the database refused.
    pub quarantined: u64,
}

/// Which database a URL means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

/// The room: options that were understood. Nothing is connected yet.
#[derive(Debug, Clone)]
pub struct Ledger {
    kind: Kind,
    settings: Settings,
    redact: Patterns,
    limits: Limits,
    standalone: bool,
    prices: Arc<Prices>,
}

/// How long and how much is kept.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// `None`: for ever.
    retention: Option<Duration>,
    window: Duration,
    max_pending: u64,
}

impl Limits {
    fn window_nanos(&self) -> u64 {
        u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Executions that ended before are not written, and deleted.
    fn oldest(&self, now: u64) -> u64 {
        self.retention.map_or(0, |kept| {
            now.saturating_sub(u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX))
        })
    }
}

/// Runs the same code on the store that the URL means.
macro_rules! with_store {
    ($self:expr, $store:ident => $body:expr) => {
        match $self.kind {
            Kind::Sqlite => {
                type $store = SqliteStore;
                $body
            }
            Kind::Postgres => {
                type $store = PostgresStore;
                $body
            }
        }
    };
}

impl Ledger {
    /// Understands the options; connects to nothing.
    pub fn new(options: LedgerOptions) -> Result<Ledger, LedgerError> {
        let kind = match options.url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Kind::Sqlite,
            Some("postgres" | "postgresql") => Kind::Postgres,
            _ => return Err(LedgerError::Url),
        };
        let default_retention = match kind {
            Kind::Sqlite => Duration::from_secs(90 * 86_400),
            Kind::Postgres => Duration::ZERO,
        };
        let retention = Some(options.retention.unwrap_or(default_retention)).filter(|kept| !kept.is_zero());
        let redact = Patterns::compile(&options.redact)?;
        let mut destinations = vec![table::EXECUTIONS];
        for name in options.tables {
            let further = table::further(&name).ok_or(LedgerError::Table(name))?;
            if !destinations.contains(&further) {
                destinations.push(further);
            }
        }
        Ok(Ledger {
            kind,
            settings: Settings {
                url: options.url,
                names: Names {
                    schema: options.schema,
                    table: options.table,
                },
                migrate: options.migrate,
                statement_timeout: options.statement_timeout,
                destinations,
            },
            redact,
            limits: Limits {
                retention,
                window: options.assembly_window,
                max_pending: options.max_pending,
            },
            standalone: options.standalone,
            prices: options.prices,
        })
    }

    fn extractor(&self) -> Extractor {
        Extractor {
            redact: self.redact.clone(),
            standalone: self.standalone,
            // The first is the executions'.
            tables: self.settings.destinations[1..].to_vec(),
            ..Extractor::default()
        }
    }

    /// Whether the program may start: an error that is not [retryable](LedgerError::is_retryable) is a misfit of tables
    /// that are to be used as they are. A database that is away is no reason not to start.
    pub async fn check(&self) -> Result<(), LedgerError> {
        with_store!(self, S => drop(S::connect(&self.settings).await?));
        Ok(())
    }

    /// Follows the journal until `shutdown`, and then until everything that is in it is written. Reconnects for ever;
    /// a database that is away, or that does not fit, stops nothing else.
    pub async fn run(self, reader: Reader, shutdown: CancellationToken, heartbeat: Heartbeat, status: StageStatus) {
        self.run_and_tell(reader, shutdown, heartbeat, status, |_| ()).await;
    }

    /// As [`Ledger::run`], and tells what came of connecting the first time: what [`Ledger::check`] would have said.
    pub async fn run_and_tell(
        self,
        reader: Reader,
        shutdown: CancellationToken,
        heartbeat: Heartbeat,
        status: StageStatus,
        tell: impl FnOnce(Result<(), LedgerError>) + Send,
    ) {
        with_store!(self, S => stage::run::<S>(&self, reader, shutdown, &heartbeat, &status, tell).await);
        heartbeat.finish();
    }

    /// Writes the rows of everything that is still in the journal anew, and takes over the position of `reader`. Only
    /// while no sidecar writes rows from this journal.
    pub async fn rebuild(&self, reader: Reader) -> Result<Rebuilt, LedgerError> {
        with_store!(self, S => stage::rebuild::<S>(self, reader).await)
    }

    /// Packs every hour that is over, for statistics. While the program runs this is done a little at a time.
    pub async fn pack(&self) -> Result<(), LedgerError> {
        with_store!(self, S => {
            let mut store = S::connect(&self.settings).await?;
            let (mut packing, meters) = (packing::Packing::default(), meters::Meters::new());
            while packing.turn(&mut store, self.limits.oldest(unix_nanos()), unix_nanos(), &meters).await? {}
        });
        Ok(())
    }

    /// The rows that the database refused, oldest first.
    pub async fn quarantine(&self, limit: u32) -> Result<Vec<Quarantined>, LedgerError> {
        Ok(with_store!(self, S => {
            let mut store = S::connect(&self.settings).await?;
            store.begin().await?;
            let rows = store.quarantined(i64::from(limit)).await?;
            store.commit().await?;
            rows
        }))
    }

    /// Tries the rows in quarantine again: how many are rows now, and how many are still refused.
    pub async fn retry_quarantine(&self, limit: u32) -> Result<(u64, u64), LedgerError> {
        Ok(with_store!(self, S => {
            let mut store = S::connect(&self.settings).await?;
            let (window, limit) = (self.limits.window_nanos(), i64::from(limit));
            let destinations = &self.settings.destinations;
            quarantine::retry_quarantined(&mut store, destinations, window, limit, unix_nanos(), &self.prices).await?
        }))
    }
}

/// Makes the tables that are missing if `options.migrate` is set, and checks that all of them fit.
pub async fn migrate(options: LedgerOptions) -> Result<(), LedgerError> {
    Ledger::new(options)?.check().await
}
