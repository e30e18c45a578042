//! The official SDKs as senders, and the official protobuf package as a sink: the scripts under `tests/sdk`.

use super::DEADLINE;
use super::program::Program;
use super::scenario::{self, Ids, Scenario};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

fn installed(path: &str) -> PathBuf {
    let path = Path::new(SDK).join(path);
    assert!(
        path.exists(),
        "{} is not there: scripts/test.sh --install-only installs it",
        path.display()
    );
    path
}

fn python(script: &str) -> Command {
    let mut command = Command::new(installed(".venv/bin/python"));
    command.arg(Path::new(SDK).join(script));
    command
}

/// An official SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    Go,
    Java,
    Node,
    Python,
    Rust,
}

impl Sdk {
    /// Why the SDK cannot be used here, if `scripts/test.sh` could not install its toolchain.
    pub fn unavailable(self) -> Option<String> {
        let of = match self {
            Sdk::Go => "go",
            Sdk::Java => "java",
            Sdk::Node | Sdk::Python | Sdk::Rust => return None,
        };
        std::fs::read_to_string(Path::new(SDK).join(of).join("unavailable")).ok()
    }

    fn command(self) -> Command {
        match self {
            Sdk::Go => Command::new(installed("go/send")),
            Sdk::Java => {
                let mut command = Command::new("java");
                let classes = installed("java/target/classes");
                let jars = installed("java/target/lib").join("*");
                // The shortest way to a short run: no second compiler.
                command.args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"]);
                command.arg(format!("{}:{}", classes.display(), jars.display()));
                command.arg("Send");
                command
            }
            Sdk::Node => {
                installed("node/node_modules/@opentelemetry/exporter-trace-otlp-http");
                let mut command = Command::new("node");
                command.arg(Path::new(SDK).join("node/send.mjs"));
                command
            }
            Sdk::Python => python("send.py"),
            Sdk::Rust => Command::new(installed("rust/target/debug/send")),
        }
    }
}

/// Emits the scenario through an SDK: `grpc`, `http/protobuf` or `http/json`, with `none` or `gzip`.
pub async fn send_from(sdk: Sdk, scenario: &Scenario, protocol: &str, compression: &str, endpoint: &str) -> Ids {
    let mut command = sdk.command();
    let base = scenario.base_unix_ms.to_string();
    command.args([protocol, compression, endpoint, scenario::FILE, &base]);
    send(command, scenario).await
}

/// What the official gRPC clients for Go read from the health and reflection services at an address.
pub async fn probe_from_go(address: &str) -> Value {
    let mut command = Sdk::Go.command();
    command.args(["probe", address]);
    let (status, output) = Program::start(&mut command).ended().await;
    assert!(status.success(), "{output}");
    serde_json::from_str(output.trim()).unwrap()
}

/// Loads a page in headless Chromium and returns its document when the page has come to rest.
pub async fn browse(url: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--virtual-time-budget=20000",
    ]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.args(["--dump-dom", url]);
    let (status, output) = Program::start(&mut command).ended().await;
    assert!(status.success(), "{output}");
    output
}

async fn send(mut command: Command, scenario: &Scenario) -> Ids {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_") || name.ends_with("_proxy")) {
        command.env_remove(name);
    }
    let (status, output) = Program::start(&mut command).ended().await;
    assert!(
        status.success(),
        "the SDK was not told that everything was accepted:\n{output}"
    );
    let ids: Ids = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            (text("key"), format!("{}-{}", text("trace_id"), text("span_id")))
        })
        .collect();
    assert_eq!(ids.len(), scenario.span_count(), "{output}");
    ids
}

/// What the parsers of the official Prometheus client read from a scrape (`openmetrics` or `text`): one object for each
/// family. Panics when they do not accept it.
pub fn parse_metrics(format: &str, scrape: &str) -> Vec<Value> {
    let mut parser = python("parse_metrics.py")
        .arg(format)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, scrape) = (parser.stdin.take().unwrap(), scrape.to_owned());
    // Beside the reading: a parser that gives up early closes its input, and its output may fill a pipe.
    let writing = std::thread::spawn(move || input.write_all(scrape.as_bytes()).ok());
    let output = parser.wait_with_output().unwrap();
    writing.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the parser for {format} does not accept it:\n{said}"
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A sink in a process of its own, written with the official protobuf package.
pub struct PythonSink {
    process: Option<Program>,
    port: u16,
    record: PathBuf,
}

/// A request as the Python sink saw it.
pub struct Seen {
    /// Headers, with lower-case names.
    pub headers: Value,
    /// The body without its content encoding.
    pub body: Bytes,
    /// Every ResourceSpans, encoded again by the official package.
    pub resource_spans: Vec<Bytes>,
    /// `<trace id>-<span id>` of every span.
    pub spans: Vec<String>,
}

impl PythonSink {
    /// A sink that is not there yet, and the file it will write to.
    pub fn away(record: PathBuf) -> PythonSink {
        PythonSink {
            process: None,
            port: super::fixed_port(),
            record,
        }
    }

    /// What an exporter is configured with.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts the process and waits until it accepts connections.
    pub async fn come_back(&mut self) {
        let mut command = python("sink.py");
        command.args([
            "--port",
            &self.port.to_string(),
            "--record",
            self.record.to_str().unwrap(),
        ]);
        let process = Program::start(&mut command);
        process
            .output("the word `ready`", |line| (line == "ready").then_some(()))
            .await;
        self.process = Some(process);
    }

    /// Kills the process.
    pub fn go_away(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Everything it has recorded so far; panics when something was no trace request.
    pub fn seen(&self) -> Vec<Seen> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        // The last line may be half written by a sink that was killed: its sender has no answer and sends again.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let bytes = |value: &Value| Bytes::from(BASE64.decode(value.as_str().unwrap()).unwrap());
        whole
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|line| {
                assert_eq!(
                    line["error"],
                    Value::Null,
                    "the Python sink got something else than a trace request"
                );
                Seen {
                    headers: line["headers"].clone(),
                    body: bytes(&line["body"]),
                    resource_spans: line["resource_spans"].as_array().unwrap().iter().map(bytes).collect(),
                    spans: line["spans"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|span| format!("{}-{}", span[0].as_str().unwrap(), span[1].as_str().unwrap()))
                        .collect(),
                }
            })
            .collect()
    }

    /// Waits until all these spans were seen at least once.
    pub async fn wait_for_spans(&self, ids: &[String]) {
        let began = std::time::Instant::now();
        loop {
            let seen: std::collections::BTreeSet<String> =
                self.seen().into_iter().flat_map(|each| each.spans).collect();
            let missing: Vec<&String> = ids.iter().filter(|id| !seen.contains(*id)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(
                began.elapsed() < DEADLINE,
                "the Python sink has not seen {} spans: {missing:?}",
                missing.len()
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
