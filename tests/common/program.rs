//! The real program as a process: its configuration, its listeners, its log, its end.

use super::http::{self, Answer};
use super::prometheus::Scrape;
use super::{DEADLINE, Patience, eventually, in_time};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::sync::watch;

/// A configuration and the directory its data lives in. Programs come and go; the data stays until this is dropped, and for
/// whoever looks into it when the test failed.
pub struct Setup {
    directory: TempDir,
    settings: Value,
}

impl Setup {
    /// Every listener on a free port, everything else in a fresh directory, the log as JSON, nothing forwarded.
    pub fn new() -> Setup {
        let directory = TempDir::with_prefix("spanledger-test-").unwrap();
        let mut setup = Setup {
            directory,
            settings: Value::Object(Map::new()),
        };
        for key in [
            "receivers.otlp.protocols.grpc.endpoint",
            "receivers.otlp.protocols.http.endpoint",
            "metrics.endpoint",
            "api.endpoint",
            "health.endpoint",
        ] {
            setup.put(key, "127.0.0.1:0");
        }
        let data = setup.directory.path().to_owned();
        setup.put("journal.directory", data.join("journal").to_str().unwrap());
        setup.put("database.url", format!("sqlite:{}", setup.database().display()));
        setup.put("telemetry.logs.format", "json");
        setup
    }

    /// The same with all traces forwarded, retried quickly enough for a test.
    pub fn forwarding_to(url: impl Into<String>) -> Setup {
        Setup::new().forwards_to(url)
    }

    /// With all traces forwarded.
    pub fn forwards_to(self, url: impl Into<String>) -> Setup {
        self.set("exporters.otlp.endpoint", url.into())
            .set("exporters.otlp.retry_on_failure.initial_interval", "50ms")
            .set("exporters.otlp.retry_on_failure.max_interval", "200ms")
    }

    /// Sets one key, given as a path with dots.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Setup {
        self.put(key, value);
        self
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        let mut at = &mut self.settings;
        for part in key.split('.') {
            at = at
                .as_object_mut()
                .unwrap()
                .entry(part)
                .or_insert_with(|| Value::Object(Map::new()));
        }
        *at = value.into();
    }

    /// A path in the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The SQLite file.
    pub fn database(&self) -> PathBuf {
        self.path("executions.db")
    }

    /// Writes the configuration file and returns its path.
    pub fn config(&self) -> PathBuf {
        let mut text = String::new();
        write_yaml(&self.settings, 0, &mut text);
        self.write("config.yaml", &text)
    }

    /// Writes a file into the data directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts `run` with this configuration, without waiting for anything.
    pub fn spawn(&self) -> Program {
        let config = self.config();
        Program::spawn(&["run", "--config", config.to_str().unwrap()], self.directory.path())
    }

    /// The same with a commit point armed: the program kills itself there (see `spanledger::failpoint`).
    pub fn spawn_armed(&self, failpoint: &str) -> Program {
        self.spawn_with(&[("SPANLEDGER_FAILPOINT", failpoint)])
    }

    /// The same with variables in its environment.
    pub fn spawn_with(&self, variables: &[(&str, &str)]) -> Program {
        let config = self.config();
        let arguments = ["run", "--config", config.to_str().unwrap()];
        Program::start(binary(&arguments, self.directory.path()).envs(variables.iter().copied()))
    }

    /// Starts `run` with this configuration and waits until it is ready for traffic and for being scraped.
    pub async fn start(&self) -> Program {
        let program = self.spawn();
        program.ready().await;
        program
    }

    /// Runs a command to its end in the data directory.
    pub fn command(&self, arguments: &[&str]) -> Output {
        binary(arguments, self.directory.path()).output().unwrap()
    }
}

fn write_yaml(value: &Value, depth: usize, out: &mut String) {
    for (key, value) in value.as_object().unwrap() {
        out.push_str(&"  ".repeat(depth));
        // A JSON string is a YAML string.
        out.push_str(&Value::String(key.clone()).to_string());
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push_str(":\n");
                write_yaml(value, depth + 1, out);
            }
            plain => out.push_str(&format!(": {plain}\n")),
        }
    }
}

/// The program under test with nothing in its environment that a user's machine might have set for it. For
/// measurements, `SPANLEDGER_PROGRAM` names another build of it.
pub fn binary(arguments: &[&str], directory: &Path) -> Command {
    let other = std::env::var_os("SPANLEDGER_PROGRAM");
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_spanledger").into()));
    command
        .args(arguments)
        .current_dir(directory)
        .env("RUST_BACKTRACE", "1");
    for (name, _) in std::env::vars() {
        if name.starts_with("SPANLEDGER_") || name.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A running process. Dropped while it runs, it is killed; in a failing test the end of its log is shown.
pub struct Program {
    child: Child,
    log: Log,
}

/// What a process has written to standard output and standard error, line by line.
#[derive(Clone)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    grown: watch::Receiver<()>,
}

impl Program {
    /// Starts the program under test.
    pub fn spawn(arguments: &[&str], directory: &Path) -> Program {
        Program::start(&mut binary(arguments, directory))
    }

    /// Starts any command.
    pub fn start(command: &mut Command) -> Program {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (grow, grown) = watch::channel(());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let grow = Arc::new(grow);
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for output in outputs {
            let (lines, grow) = (lines.clone(), grow.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                    grow.send_replace(());
                }
            });
        }
        Program {
            child,
            log: Log { lines, grown },
        }
    }

    /// Everything written so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap().join("\n")
    }

    /// Waits for a line of output of which something can be made.
    pub async fn output<T>(&self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let Log { lines, mut grown } = self.log.clone();
        let mut seen = 0;
        let search = async {
            loop {
                grown.borrow_and_update();
                let new: Vec<String> = lines.lock().unwrap()[seen..].to_vec();
                seen += new.len();
                if let Some(found) = new.iter().find_map(|line| find(line)) {
                    return Some(found);
                }
                // The sender is gone when both outputs are closed: the process has ended.
                if grown.changed().await.is_err() && lines.lock().unwrap().len() == seen {
                    return None;
                }
            }
        };
        match in_time(search).await {
            Some(Some(found)) => found,
            Some(None) => panic!("the process ended before there was {what}; its output:\n{}", self.log()),
            None => panic!("no {what} within {DEADLINE:?}; the output:\n{}", self.log()),
        }
    }

    /// Where a listener listens, as the log says.
    pub async fn address(&self, listener: &str) -> SocketAddr {
        let what = format!("a log line of the listener {listener}");
        self.output(&what, |line| listener_address(line, listener)).await
    }

    /// The address of something a listener serves.
    pub async fn url(&self, listener: &str, path: &str) -> String {
        format!("http://{}{path}", self.address(listener).await)
    }

    /// Waits until `/readyz` is 200 and `/metrics` shows everything that was in the journal at start.
    pub async fn ready(&self) {
        for (listener, path) in [("health", "/readyz"), ("metrics", "/metrics")] {
            let url = self.url(listener, path).await;
            eventually(&format!("{path} is 200"), || async {
                let answer = http::get(&url).await?;
                if answer.status == 200 {
                    Ok(())
                } else {
                    Err(format!("{} {}", answer.status, answer.text()))
                }
            })
            .await;
        }
    }

    /// GET from a listener.
    pub async fn get(&self, listener: &str, path: &str) -> Answer {
        let url = self.url(listener, path).await;
        http::get(&url)
            .await
            .unwrap_or_else(|error| panic!("GET {url}: {error}"))
    }

    /// One scrape.
    pub async fn scrape(&self) -> Scrape {
        let answer = self.get("metrics", "/metrics").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Scrape::parse(&answer.text())
    }

    /// Waits until a scrape is as it should be.
    pub async fn scrape_until<T>(&self, what: &str, check: impl Fn(&Scrape) -> Result<T, String>) -> T {
        let url = self.url("metrics", "/metrics").await;
        eventually(what, || async {
            let answer = http::get(&url).await?;
            if answer.status != 200 {
                return Err(format!("{} {}", answer.status, answer.text()));
            }
            check(&Scrape::parse(&answer.text()))
        })
        .await
    }

    /// The same for a program that may be killed before: whether it became ready.
    pub async fn ready_unless_killed(&mut self) -> bool {
        let mut patience = Patience::new();
        loop {
            if self.is_killed() {
                return false;
            }
            let mut ready = true;
            for (listener, path) in [("health", "/readyz"), ("metrics", "/metrics")] {
                let Some(address) = self.address_so_far(listener) else {
                    ready = false;
                    break;
                };
                let answer = http::get(&format!("http://{address}{path}")).await;
                ready &= answer.is_ok_and(|answer| answer.status == 200);
            }
            if ready {
                return true;
            }
            assert!(!patience.is_over(), "not ready: {}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn address_so_far(&self, listener: &str) -> Option<SocketAddr> {
        let lines = self.log.lines.lock().unwrap();
        lines.iter().find_map(|line| listener_address(line, listener))
    }

    /// Whether the process has been killed by SIGKILL; panics when it has ended in any other way.
    pub fn is_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let Some(status) = self.child.try_wait().unwrap() else {
            return false;
        };
        assert_eq!(status.signal(), Some(9), "{status}: {}", self.log());
        true
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that the process has had resident, and what of it is its own now (not the binary), in bytes.
    pub fn resident(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            let kibibytes = line.split_whitespace().nth(1).unwrap();
            kibibytes.parse::<u64>().unwrap() * 1024
        };
        (field("VmHWM:"), field("RssAnon:"))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(self) -> (ExitStatus, String) {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await
    }

    /// Waits until the process has ended by itself; returns how, and all it wrote.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let mut patience = Patience::new();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                !patience.is_over(),
                "does not end within {DEADLINE:?}; its output:\n{}",
                self.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        // The outputs are closed by now or as soon as their readers have seen the end.
        let mut grown = self.log.grown.clone();
        while grown.changed().await.is_ok() {}
        (status, self.log())
    }
}

/// The address in a log line that names this listener.
fn listener_address(line: &str, listener: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    (fields.get("listener")?.as_str()? == listener).then_some(())?;
    let address = fields.get("address")?.as_str()?;
    Some(address.parse().expect("`address` is an address with a port"))
}

impl Drop for Setup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!("the data is left in {}", self.directory.path().display());
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let running = matches!(self.child.try_wait(), Ok(None));
        if running {
            // Both can only fail when the process has just ended by itself.
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "--- end of the log of process {} ---\n{}\n---",
                self.child.id(),
                end.join("\n")
            );
        }
    }
}

/// All labels of own metrics with this name and these labels, summed: for counters whose other labels do not matter.
pub fn sum(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: BTreeMap<_, _> = labels.iter().copied().collect();
    scrape
        .0
        .iter()
        .filter(|(series, _)| {
            series.name == name
                && wanted
                    .iter()
                    .all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
        })
        .map(|(_, value)| value)
        .sum()
}
