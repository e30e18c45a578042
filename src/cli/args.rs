//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::Setting as _;

/// A sidecar that turns OTLP execution spans into exact metrics, exactly one SQL row per execution, and durably
/// forwarded traces.
#[derive(Debug, Parser)]
#[command(name = "spanledger", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command; none: `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`, for the bare command.
    #[command(flatten)]
    pub run: RunArgs,
}

impl Cli {
    /// Whether it is the main job, which goes on until it is told to stop.
    pub fn runs(&self) -> bool {
        matches!(self.command, None | Some(Command::Run(_)))
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive, keep, count, write rows, forward (the main job)
    Run(RunArgs),
    /// Send realistic executor spans to an OTLP/gRPC endpoint
    Demo(DemoArgs),
    /// Check configuration files; exit 2 with every mistake
    Validate(ConfigArgs),
    /// Print the effective configuration as YAML, secrets redacted
    PrintConfig {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// Print the metric rules in force instead
        #[arg(long)]
        rules: bool,
    },
    /// Tell what would happen to a span, and why: metrics, rows, rules for what leaves
    Explain {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// A file with OTLP/JSON: a trace request, or a single span
        #[arg(long, value_name = "FILE")]
        span: PathBuf,
    },
    /// Exit 0 when the program at the endpoint is ready
    Healthcheck {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// Base URL of the health listener; default: from the configuration
        #[arg(long, value_name = "URL")]
        endpoint: Option<String>,
    },
    /// Create or check the database tables, then exit
    Migrate(ConfigArgs),
    /// Look into the journal of a program that does not run
    Journal {
        /// What to look for.
        #[command(subcommand)]
        command: JournalCommand,
    },
    /// Work with rows that were set aside
    Rows {
        /// What to do with them.
        #[command(subcommand)]
        command: RowsCommand,
    },
    /// Work with derived metrics
    Metrics {
        /// What to do with them.
        #[command(subcommand)]
        command: MetricsCommand,
    },
    /// Dashboards and alerts for SigNoz, Grafana and Prometheus
    Dashboards {
        /// What to do with them.
        #[command(subcommand)]
        command: DashboardsCommand,
    },
    /// Work with requests that a backend refused
    Refused {
        /// What to do with them.
        #[command(subcommand)]
        command: RefusedCommand,
    },
}

/// `spanledger journal …`
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// What the journal holds and how far each exporter is
    Status(ConfigArgs),
    /// Check every record; exit 1 when something is damaged
    Verify(ConfigArgs),
}

/// `spanledger rows …`
#[derive(Debug, Subcommand)]
pub enum RowsCommand {
    /// List rows that the database refused
    Quarantine(ConfigArgs),
    /// Write the rows in quarantine again
    Retry(ConfigArgs),
    /// Make rows anew from what the journal still holds, while the program does not run
    Rebuild(ConfigArgs),
}

/// `spanledger metrics …`
#[derive(Debug, Subcommand)]
pub enum MetricsCommand {
    /// Let a metric start anew at the next start
    Reset {
        /// Name of the metric.
        name: String,
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// `spanledger dashboards …`
#[derive(Debug, Subcommand)]
pub enum DashboardsCommand {
    /// List the files
    List,
    /// Print a file
    Print {
        /// Its name, as `list` shows it.
        name: String,
    },
    /// Put files into a SigNoz or Grafana; what is there already stays as it is
    Import(ImportArgs),
}

/// Options of `dashboards import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Base URL of SigNoz or Grafana
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Key of an editor: SigNoz's API key, or a token of a Grafana service account [default: $SIGNOZ_API_KEY or $GRAFANA_TOKEN]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Without names: the SigNoz files that need this signal
    #[arg(long, value_name = "SIGNAL", value_parser = ["traces", "metrics"], default_value = "traces")]
    pub from: String,
    /// Files to import [default: SigNoz's dashboard and alert rules]
    pub names: Vec<String>,
}

/// `spanledger refused …`
#[derive(Debug, Subcommand)]
pub enum RefusedCommand {
    /// List refused requests
    List(ConfigArgs),
    /// Send refused requests again
    Retry(ConfigArgs),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// A configuration file; may be given several times, later ones win [default: config.yaml if there is one]
    #[arg(long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One setting, such as journal.max_size=4GiB; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Options of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Send demo traffic to itself; only into a SQLite database that --demo made
    #[arg(long)]
    pub demo: bool,
}

/// Options of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Address of an OTLP/gRPC receiver
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4317")]
    pub endpoint: String,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// How long, such as 30s [default: until stopped]
    #[arg(long, value_name = "D", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Seed of the traffic; the same seed sends the same ids, which make no second row [default: another each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::config::yaml::parse("--duration", text)
        .map_err(|mistakes| mistakes.to_string())
        .and_then(|node| Duration::from_node(&node))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_bare_command_takes_the_options_of_run() {
        let cli = Cli::try_parse_from(["spanledger", "--config", "a.yaml", "--set", "a.b=1", "--demo"]).unwrap();
        assert!(cli.command.is_none());
        assert!(cli.run.demo);
        assert_eq!(cli.run.config.files, [PathBuf::from("a.yaml")]);
        assert_eq!(cli.run.config.set, ["a.b=1"]);
    }

    #[test]
    fn a_duration_is_written_as_in_the_configuration() {
        let cli = Cli::try_parse_from(["spanledger", "demo", "--duration", "1m30s"]).unwrap();
        let Some(Command::Demo(demo)) = cli.command else {
            panic!("not demo")
        };
        assert_eq!(demo.duration, Some(Duration::from_secs(90)));
    }
}
