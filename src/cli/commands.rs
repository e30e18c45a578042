//! What each command does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use tokio::runtime::Runtime;

use super::args::{
    Cli, Command, ConfigArgs, DashboardsCommand, DemoArgs, JournalCommand, MetricsCommand, RefusedCommand, RowsCommand,
    RunArgs,
};
use super::demo_guard::{self, DemoEnvironment};
use super::{dashboards, explain, healthcheck, journal_report, refused};
use crate::app::{LEDGER, METER_STATE, Program, REFUSED_STATE, StartError, open_journal, state_directory};
use crate::config::expand::{Environment, ProcessEnvironment};
use crate::config::{Layer, Mistakes, render};
use crate::demo::{self, DemoOptions};
use crate::journal::JournalError;
use crate::ledger::{self, Ledger};
use crate::meter::{self, ResetRequest};
use crate::settings::{self, Loaded};
use crate::telemetry::{LogOptions, OwnMetrics, logs};

/// Exit code for mistakes in the configuration.
const EXIT_MISTAKES: u8 = 2;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "config.yaml";

/// Executes what the command line says.
///
/// # Errors
///
/// What made the command fail; mistakes in the configuration are printed and give exit code 2.
pub fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let outcome = match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run(&args),
        Command::Demo(args) => demo(&args),
        Command::Validate(args) => validate(&args),
        Command::PrintConfig { config, rules } => print_config(&config, rules),
        Command::Explain { config, span } => explain_span(&config, &span),
        Command::Healthcheck { config, endpoint } => check_health(&config, endpoint),
        Command::Migrate(args) => migrate(&args),
        Command::Journal { command } => journal(&command),
        Command::Rows { command } => rows(&command),
        Command::Metrics {
            command: MetricsCommand::Reset { name, config },
        } => reset_metric(&config, &name),
        Command::Refused { command } => refused_requests(&command),
        Command::Dashboards { command } => show_dashboards(&command),
    };
    match outcome {
        Err(error) if error.is::<Mistakes>() => {
            eprintln!("{error}");
            Ok(ExitCode::from(EXIT_MISTAKES))
        }
        outcome => outcome,
    }
}

fn load(args: &ConfigArgs, environment: &dyn Environment) -> Result<Loaded, Mistakes> {
    load_over(None, args, environment)
}

fn load_demo(args: &ConfigArgs) -> Result<Loaded, Mistakes> {
    load_over(Some(settings::demo_layer()), args, &DemoEnvironment)
}

fn load_over(below: Option<Layer>, args: &ConfigArgs, environment: &dyn Environment) -> Result<Loaded, Mistakes> {
    let default = PathBuf::from(DEFAULT_FILE);
    let files = match args.files.as_slice() {
        [] if matches!(default.try_exists(), Ok(true)) => vec![default],
        files => files.to_vec(),
    };
    settings::read(below, &files, &args.set, environment)
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let loaded = if args.demo {
        load_demo(&args.config)?
    } else {
        load(&args.config, &ProcessEnvironment)?
    };
    let log = logs::start(loaded.settings.logs);
    for name in &loaded.unset_variables {
        tracing::warn!(
            name,
            "the configuration refers to a variable that is not set; it counts as empty"
        );
    }
    if args.demo {
        demo_guard::prepare(&loaded.settings)?;
    }
    let own = OwnMetrics::install()?;
    let reload = {
        let (args, demo) = (args.config.clone(), args.demo);
        move || {
            if demo {
                load_demo(&args)
            } else {
                load(&args, &ProcessEnvironment)
            }
        }
    };
    let control = log.clone();
    runtime()?.block_on(async { Program::start(loaded, own, control).await?.run(args.demo, reload).await })?;
    Ok(ExitCode::SUCCESS)
}

fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let _log = logs::start(LogOptions::default());
    let options = DemoOptions {
        endpoint: args.endpoint.clone(),
        rate: args.rate,
        duration: args.duration,
        seed: args.seed.unwrap_or_else(demo::any_seed),
    };
    let report = runtime()?.block_on(async {
        tokio::select! {
            report = demo::send(&options) => report.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
        }
    })?;
    let Some(report) = report else {
        return Ok(ExitCode::SUCCESS);
    };
    say(&format!(
        "{} requests acknowledged, {} failed",
        report.acknowledged, report.failed
    ));
    Ok(if report.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn validate(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    load(args, &ProcessEnvironment)?.check()?;
    say("the configuration is valid");
    Ok(ExitCode::SUCCESS)
}

fn print_config(args: &ConfigArgs, rules: bool) -> anyhow::Result<ExitCode> {
    let loaded = load(args, &ProcessEnvironment)?;
    let text = match rules {
        true => loaded.settings.metrics.catalogue()?.to_yaml(),
        false => render::effective(&loaded.records),
    };
    say(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn explain_span(args: &ConfigArgs, span: &Path) -> anyhow::Result<ExitCode> {
    let settings = load(args, &ProcessEnvironment)?.settings;
    say(explain::explain(&settings, span)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn check_health(args: &ConfigArgs, endpoint: Option<String>) -> anyhow::Result<ExitCode> {
    let url = match endpoint {
        Some(endpoint) => endpoint,
        None => {
            let health = load(args, &ProcessEnvironment)?.settings.health;
            if health.tls.is_some() || health.auth.is_required() || health.endpoint.starts_with("unix:") {
                bail!("health: this command asks by plain HTTP and without a token; leave health without tls and auth");
            }
            healthcheck::url_of(&health.endpoint)
        }
    };
    say(&runtime()?.block_on(healthcheck::ask(&url))?);
    Ok(ExitCode::SUCCESS)
}

fn reset_metric(args: &ConfigArgs, name: &str) -> anyhow::Result<ExitCode> {
    let settings = load(args, &ProcessEnvironment)?.settings;
    let directory = state_directory(&settings, METER_STATE);
    let catalogue = settings.metrics.catalogue()?;
    // A running program would write its own state over a change of the file; it holds the journal's lock.
    match open_journal(&settings) {
        Ok(journal) => {
            meter::reset(&directory, &catalogue, name)?;
            journal.close();
        }
        Err(StartError::Journal(JournalError::Locked { .. })) => {
            let request = meter::request_reset(&directory, &catalogue, name)?;
            wait_for_reset(request, name)?;
        }
        Err(error) => return Err(error.into()),
    }
    say(&format!("{name} starts anew"));
    Ok(ExitCode::SUCCESS)
}

/// Waits until the running program has reset a metric.
fn wait_for_reset(request: ResetRequest, name: &str) -> anyhow::Result<()> {
    /// It looks every few seconds.
    const PATIENCE: Duration = Duration::from_secs(30);
    let asked = Instant::now();
    while !request.is_done() {
        if asked.elapsed() > PATIENCE {
            request.withdraw();
            bail!("the running program did not reset {name} within {PATIENCE:?}; its log may say why");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn refused_requests(command: &RefusedCommand) -> anyhow::Result<ExitCode> {
    let (RefusedCommand::List(args) | RefusedCommand::Retry(args)) = command;
    let settings = load(args, &ProcessEnvironment)?.settings;
    let directory = state_directory(&settings, REFUSED_STATE);
    match command {
        RefusedCommand::List(_) => refused::list(&directory, &settings.exporters),
        RefusedCommand::Retry(_) => runtime()?.block_on(refused::retry(&directory, &settings.exporters)),
    }
}

fn show_dashboards(command: &DashboardsCommand) -> anyhow::Result<ExitCode> {
    match command {
        DashboardsCommand::List => say(&dashboards::list()),
        DashboardsCommand::Print { name } => say(dashboards::named(name)?.text.trim_end()),
        DashboardsCommand::Import(args) => return runtime()?.block_on(dashboards::import(args)),
    }
    Ok(ExitCode::SUCCESS)
}

fn migrate(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(args, &ProcessEnvironment)?;
    let _log = logs::start(loaded.settings.logs);
    runtime()?.block_on(ledger::migrate(loaded.settings.database))?;
    say("the tables are there and fit");
    Ok(ExitCode::SUCCESS)
}

fn journal(command: &JournalCommand) -> anyhow::Result<ExitCode> {
    let (JournalCommand::Status(args) | JournalCommand::Verify(args)) = command;
    let settings = load(args, &ProcessEnvironment)?.settings;
    match command {
        JournalCommand::Status(_) => journal_report::status(&settings),
        JournalCommand::Verify(_) => journal_report::verify_all(&settings),
    }
}

fn rows(command: &RowsCommand) -> anyhow::Result<ExitCode> {
    /// More than fits a terminal, and little enough for memory.
    const AT_ONCE: u32 = 10_000;
    let (RowsCommand::Quarantine(args) | RowsCommand::Retry(args) | RowsCommand::Rebuild(args)) = command;
    let settings = load(args, &ProcessEnvironment)?.settings;
    let ledger = Ledger::new(settings.database.clone())?;
    match command {
        RowsCommand::Quarantine(_) => {
            for row in runtime()?.block_on(ledger.quarantine(AT_ONCE))? {
                say(&format!("{} {}: {}\n  {}", row.table, row.id, row.reason, row.row));
            }
        }
        RowsCommand::Retry(_) => {
            let (written, refused) = runtime()?.block_on(ledger.retry_quarantine(AT_ONCE))?;
            say(&format!("{written} rows written, {refused} still refused"));
        }
        RowsCommand::Rebuild(_) => {
            let journal = open_journal(&settings)?;
            let rebuilt = runtime()?.block_on(ledger.rebuild(journal.reader(LEDGER)?))?;
            journal.close();
            let since = rebuilt.since.map_or_else(
                || "the journal holds nothing".to_owned(),
                |since| {
                    let since = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_nanos(since));
                    format!("the journal reaches back to {since}; older rows are as they were")
                },
            );
            say(&format!(
                "{} rows made anew, {} refused; {since}",
                rebuilt.rows, rebuilt.quarantined
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output, which is what these commands are for. A closed pipe is no error: `| head` is usual.
pub(super) fn say(text: &str) {
    use std::io::Write as _;
    let _closed_pipe = writeln!(std::io::stdout(), "{text}");
}
