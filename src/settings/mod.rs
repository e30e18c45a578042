//! Which setting means what: binds the configuration to the options of the rooms.
//!
//! Each key is named here once, with its default and its meaning. The same calls check a user's files, and make
//! `config.example.yaml`, `docs/configuration.md` and `print-config`.

mod database;
mod egress;
mod exporters;
mod journal;
mod listeners;
mod live;
mod prices;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::config::expand::{Environment, Notes};
use crate::config::section::{KeyRecord, RecordOf};
use crate::config::{Layer, Location, Mistake, Mistakes, Node, Reader, Section, load, render};
use crate::forward::{Endpoint, ExporterOptions};
use crate::ledger::LedgerOptions;
use crate::listen::{self, ListenOptions};
use crate::receive::ReceiveOptions;
use crate::rules::prices::Prices;
use crate::telemetry::{LogFormat, LogOptions};

pub use listeners::{ApiSettings, MetricsSettings};
pub use live::{LIVE, LIVE_API_CREDENTIALS, Live};

/// Everything that can be configured.
#[derive(Clone)]
pub struct Settings {
    /// `receivers`.
    pub receivers: ReceiveOptions,
    /// `journal`; the readers are named by who builds the program.
    pub journal: crate::journal::Options,
    /// `exporters`, by name.
    pub exporters: Vec<(String, ExporterOptions)>,
    /// `database`.
    pub database: LedgerOptions,
    /// `metrics`.
    pub metrics: MetricsSettings,
    /// `prices`, of executions and models; `database` has them too.
    pub prices: Arc<Prices>,
    /// `api`.
    pub api: ApiSettings,
    /// `health`.
    pub health: ListenOptions,
    /// `telemetry.logs`.
    pub logs: LogOptions,
    /// How long the destinations are tried after SIGTERM.
    pub shutdown_timeout: Duration,
}

/// Settings that were read, with the record of every key.
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Every key with its value, in order.
    pub records: Vec<KeyRecord>,
    /// Variables that are referred to, are not set, and have no default.
    pub unset_variables: Vec<String>,
}

/// Public list prices of some runtimes, dated; the demo has them.
const EXAMPLE_PRICES: &str = include_str!("../../prices.example.yaml");

/// What lies below a user's files when there is demo traffic: prices, so that there are costs to look at.
pub fn demo_layer() -> Layer {
    Layer::File {
        name: "prices.example.yaml".to_owned(),
        text: EXAMPLE_PRICES.to_owned(),
    }
}

/// Reads the settings from files and `--set` options, over what `below` says.
///
/// # Errors
///
/// Every mistake, with its place.
pub fn read(
    below: Option<Layer>,
    files: &[PathBuf],
    set: &[String],
    environment: &dyn Environment,
) -> Result<Loaded, Mistakes> {
    let mut layers: Vec<Layer> = below.into_iter().collect();
    for file in files {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| {
            let at = Location {
                file: name.as_str().into(),
                line: 0,
                column: 0,
            };
            Mistakes(vec![Mistake {
                at: Some(at),
                path: String::new(),
                message: format!("cannot read: {error}"),
            }])
        })?;
        layers.push(Layer::File { name, text });
    }
    layers.extend(set.iter().cloned().map(Layer::Set));
    let mut notes = Notes::default();
    let root = load(&layers, environment, &mut notes)?;
    let reader = Reader::new(environment);
    let settings = reader.read(&root, bind);
    let records = reader.finish().map_err(|mut mistakes| {
        // Those in files of rules are told in the same run.
        if let Err(Mistakes(more)) = settings.metrics.catalogue() {
            mistakes.0.extend(more);
        }
        mistakes
    })?;
    Ok(Loaded {
        settings,
        records,
        unset_variables: notes.unset,
    })
}

impl Loaded {
    /// Everything that can be found wrong without starting, of settings that were read without a mistake.
    ///
    /// # Errors
    ///
    /// All mistakes in files of rules, and exporters that lead to a listener of this very program.
    pub fn check(&self) -> Result<(), Mistakes> {
        let mut mistakes = match self.settings.metrics.catalogue() {
            Ok(_) => Vec::new(),
            Err(Mistakes(mistakes)) => mistakes,
        };
        mistakes.extend(self.loops());
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(Mistakes(mistakes))
        }
    }

    /// Resolves names, so it may wait for DNS. A running program knows the addresses that it listens on; here a port 0
    /// is nobody's.
    fn loops(&self) -> impl Iterator<Item = Mistake> {
        let own = self.settings.own_addresses();
        let leads_back = move |options: &ExporterOptions| {
            Endpoint::parse(&options.endpoint, options.protocol, options.tls.insecure)
                .is_ok_and(|endpoint| endpoint.is_own_listener(&own))
        };
        let exporters = self.settings.exporters.iter();
        exporters
            .filter(move |(_, options)| leads_back(options))
            .map(|(name, _)| {
                let path = ["exporters", name.as_str(), "endpoint"];
                Mistake {
                    at: self.given_at(&path),
                    path: path.join("."),
                    message: "is one of our own listeners; what is forwarded would go round for ever".to_owned(),
                }
            })
    }

    /// Where a key is given a value.
    fn given_at(&self, path: &[&str]) -> Option<Location> {
        let record = self.records.iter().find(|record| record.path == path)?;
        match &record.of {
            RecordOf::Setting { value, .. } => Some(value.at.clone()),
            RecordOf::Section => None,
        }
    }
}

impl Settings {
    /// The addresses that the listeners are configured to have.
    fn own_addresses(&self) -> Vec<SocketAddr> {
        let grpc = self.receivers.grpc.as_ref().map(|grpc| &grpc.endpoint);
        let http = self.receivers.http.as_ref().map(|http| &http.endpoint);
        let others = [&self.metrics.listen, &self.api.listen, &self.health];
        let endpoints = grpc
            .into_iter()
            .chain(http)
            .chain(others.map(|listen| &listen.endpoint));
        endpoints
            .filter_map(|endpoint| listen::address_of(endpoint).ok())
            .collect()
    }
}

/// The built-in files: what a user would write to get the defaults.
pub struct Reference {
    records: Vec<KeyRecord>,
}

impl Reference {
    /// Describes every key.
    pub fn new(environment: &dyn Environment) -> Self {
        let reader = Reader::describing(environment);
        reader.read(
            &Node::null(Location {
                file: "reference".into(),
                line: 0,
                column: 0,
            }),
            bind,
        );
        // The described exporter has no endpoint, which is a mistake in a user's file only.
        Self {
            records: reader.records(),
        }
    }

    /// `config.example.yaml`.
    pub fn example(&self) -> String {
        let header = "# Every setting of spanledger with its default. What is not set has the value shown here.\n\
            # ${env:NAME}, ${env:NAME:-default} and ${file:PATH} are substituted in values; $$ is a dollar.\n\
            # Durations: 500ms, 10s, 1h30m, 90d. Sizes: 64MiB, 1.5GB, or a number of bytes.\n";
        render::example(header, &self.records, &["exporters", "prices"])
    }

    /// `docs/configuration.md`.
    pub fn document(&self) -> String {
        let header = "# Configuration\n\n\
            Files are YAML; several `--config` are merged, later ones win, and `--set key=value` wins over files.\n\
            `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}` are substituted in values, `$$` is a dollar.\n\
            An unknown key is a mistake. `spanledger validate --config FILE` names every mistake with its line;\n\
            `spanledger print-config` shows the values in force. Exporters are named `otlp` or `otlp/<name>`.\n";
        let keys = |all: &[Live]| {
            all.iter()
                .map(|live| format!("`{}`", live.key))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let live = format!(
            "\n## Changing a running program\n\n\
            SIGHUP (`systemctl reload`) reads files, rules and certificates again. These settings take effect as soon as what is in work is done: {},\n\
            everything of an exporter that is there, and {} as long as there are credentials before and after.\n\
            An exporter, the rows and the metrics go on from where they were; nothing is lost, sent twice or counted twice.\n\
            All others take a restart; the log names those that were changed. With any mistake in files, rules or\n\
            certificates of exporters everything stays as it was, and the log names the mistake.\n",
            keys(&LIVE),
            keys(&LIVE_API_CREDENTIALS)
        );
        format!("{header}{live}{}", render::reference(&self.records))
    }
}

fn bind(root: &Section<'_>) -> Settings {
    let mut settings = sections(root);
    settings.database.prices = Arc::clone(&settings.prices);
    settings
}

fn sections(root: &Section<'_>) -> Settings {
    Settings {
        receivers: root.section("receivers", "What is received.", listeners::receivers),
        journal: root.section(
            "journal",
            "The durable journal that every request goes through.",
            journal::bind,
        ),
        exporters: exporters::bind(root),
        database: root.section("database", "Where the rows of `code_exec_logs` go.", database::bind),
        metrics: root.section("metrics", "Derived metrics and their exposition.", listeners::metrics),
        prices: Arc::new(root.section(
            "prices",
            "What executions and models cost, for estimates. Public list prices: prices.example.yaml.",
            prices::bind,
        )),
        api: root.section("api", "Query API and page.", listeners::api),
        health: root.section("health", "Health and readiness.", listeners::health),
        logs: root.section("telemetry", "The program's own telemetry.", |telemetry| {
            telemetry.section("logs", "Logs, on standard error.", logs)
        }),
        shutdown_timeout: root.get(
            "shutdown_timeout",
            "10s",
            "How long destinations are tried after SIGTERM.",
        ),
    }
}

fn logs(section: &Section<'_>) -> LogOptions {
    let levels = [
        ("error", Level(LevelFilter::ERROR)),
        ("warn", Level(LevelFilter::WARN)),
        ("info", Level(LevelFilter::INFO)),
        ("debug", Level(LevelFilter::DEBUG)),
        ("trace", Level(LevelFilter::TRACE)),
    ];
    LogOptions {
        level: section
            .choice("level", "info", "The least important level that is written.", &levels)
            .0,
        format: section.choice(
            "format",
            "text",
            "How lines are written.",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        ),
    }
}

#[derive(Clone, Copy)]
struct Level(LevelFilter);

impl Default for Level {
    fn default() -> Self {
        Self(LevelFilter::INFO)
    }
}

#[cfg(test)]
mod tests;
