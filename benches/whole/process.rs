//! What is measured: a process, by its process id.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The core of the process that is measured.
pub const SUBJECT_CORE: usize = 0;
/// The core of everything else.
pub const OTHER_CORE: usize = 1;

/// Lets this process, and whatever it starts, run on [`OTHER_CORE`] only.
pub fn stay_on_the_other_core() {
    let (core, pid) = (OTHER_CORE.to_string(), std::process::id().to_string());
    let mut moved = Command::new("taskset");
    moved.args(["--all-tasks", "--cpu-list", "--pid", &core, &pid]);
    if !moved
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("taskset does not work here: without cores of their own the figures are not comparable");
    }
}

/// A program that will run on [`SUBJECT_CORE`] only.
fn on_the_subjects_core(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &SUBJECT_CORE.to_string()]).arg(program);
    command
}

/// A process whose use of the machine can be read.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    fn read(self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0)).unwrap_or_default()
    }

    /// CPU time of all its threads, user and kernel.
    pub fn cpu(self) -> Duration {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0))
            .into_iter()
            .flatten()
        {
            let path = task.unwrap().path().join("schedstat");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        }
        // Threads that have ended are in the sum for the process only, which is exact to a tick.
        let stat = self.read("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse().ok()).unwrap_or(0);
        let whole = Duration::from_millis(10 * (ticks(11) + ticks(12)));
        let threads = Duration::from_nanos(nanos);
        if whole > threads + Duration::from_millis(30) {
            whole
        } else {
            threads
        }
    }

    fn field(self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Bytes that it had written to the disk.
    pub fn written(self) -> u64 {
        self.field("io", "write_bytes")
    }

    /// The most memory it had, in KiB.
    pub fn peak_kib(self) -> u64 {
        self.field("status", "VmHWM")
    }

    /// The memory it has, in KiB.
    pub fn resident_kib(self) -> u64 {
        self.field("status", "VmRSS")
    }
}

/// The program, running in a directory of its own.
pub struct Spanledger {
    child: Child,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
    pub api: SocketAddr,
    /// From being started until it was ready.
    pub ready_after: Duration,
}

/// What a scenario changes of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where to forward to, and how.
    pub exporter: Option<(SocketAddr, &'static str)>,
    /// None: SQLite in the directory.
    pub database: Option<String>,
    pub journal_max_size: Option<&'static str>,
    pub max_series: Option<usize>,
}

impl Spanledger {
    /// Starts it on [`SUBJECT_CORE`] and waits until it is ready.
    pub fn start(program: &Path, directory: &Path, settings: &Settings) -> Spanledger {
        std::fs::create_dir_all(directory).unwrap();
        let config = directory.join("config.yaml");
        std::fs::write(&config, yaml(directory, settings)).unwrap();
        let log = directory.join("log");
        let began = Instant::now();
        let mut child = on_the_subjects_core(program)
            .args(["run", "--config"])
            .arg(&config)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut addresses = std::collections::HashMap::new();
        let mut kept = std::fs::File::create(&log).unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line).unwrap() == 0 {
                panic!("the program ended instead of becoming ready: see {}", log.display());
            }
            kept.write_all(line.as_bytes()).unwrap();
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(listener), Some(address)) = (entry["listener"].as_str(), entry["address"].as_str())
                && let Ok(address) = address.parse::<SocketAddr>()
            {
                addresses.insert(listener.to_owned(), address);
            }
            if entry["message"] == "ready" {
                break;
            }
        }
        let ready_after = began.elapsed();
        std::thread::spawn(move || std::io::copy(&mut lines, &mut kept));
        Spanledger {
            child,
            grpc: addresses["otlp_grpc"],
            http: addresses["otlp_http"],
            metrics: addresses["metrics"],
            api: addresses["api"],
            ready_after,
        }
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Records that the slowest of these readers has not passed; of all readers when none is named.
    pub fn lag(&self, readers: &[&str]) -> u64 {
        let answer: serde_json::Value = serde_json::from_str(&get(self.api, "/api/v1/pipeline")).unwrap_or_default();
        let all = answer["data"]["journal"]["readers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let named =
            |reader: &&serde_json::Value| readers.is_empty() || readers.iter().any(|name| reader["name"] == *name);
        let lags = all
            .iter()
            .filter(named)
            .map(|reader| reader["lagRecords"].as_u64().unwrap());
        lags.max().unwrap_or(u64::MAX)
    }

    /// Waits until nothing is left to do; false if that takes too long.
    pub fn settle(&self, patience: Duration) -> bool {
        let began = Instant::now();
        while self.lag(&[]) > 0 {
            if began.elapsed() > patience {
                return false;
            }
            // To answer costs the program time that is not the work's.
            let pause = (began.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_millis(100));
            std::thread::sleep(pause);
        }
        true
    }

    /// The whole scrape.
    pub fn scrape(&self) -> String {
        get(self.metrics, "/metrics")
    }

    /// The sum of a metric over its series, those with `labels` in them.
    pub fn metric(scrape: &str, name: &str, labels: &str) -> f64 {
        let lines = scrape.lines().filter(|line| line.contains(labels));
        let of_name = lines.filter_map(|line| line.strip_prefix(name));
        let values = of_name.filter(|rest| rest.starts_with(['{', ' ']));
        values
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Ends it as an operator would.
    pub fn stop(mut self) {
        drop(Command::new("kill").arg(self.child.id().to_string()).status());
        drop(self.child.wait());
    }
}

impl Drop for Spanledger {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn yaml(directory: &Path, settings: &Settings) -> String {
    let data = directory.display();
    let database = settings
        .database
        .clone()
        .unwrap_or(format!("sqlite:{data}/executions.db"));
    let max_size = settings.journal_max_size.unwrap_or("2GiB");
    let max_series = settings.max_series.unwrap_or(2_000);
    let mut text = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:0'}}, http: {{endpoint: '127.0.0.1:0'}}}}}}}}\n\
         metrics: {{endpoint: '127.0.0.1:0', max_series_per_metric: {max_series}}}\n\
         api: {{endpoint: '127.0.0.1:0'}}\n\
         health: {{endpoint: '127.0.0.1:0'}}\n\
         journal: {{directory: '{data}/journal', max_size: {max_size}}}\n\
         database: {{url: '{database}'}}\n\
         telemetry: {{logs: {{format: json}}}}\n"
    );
    if let Some((address, protocol)) = settings.exporter {
        text.push_str(&format!(
            "exporters: {{otlp: {{endpoint: 'http://{address}', protocol: {protocol}}}}}\n"
        ));
    }
    text
}

/// The floor's process, and its address.
pub struct Floor {
    child: Child,
    pub address: SocketAddr,
}

impl Floor {
    pub fn start() -> Floor {
        let mut child = on_the_subjects_core(std::env::current_exe().unwrap())
            .arg(super::FLOOR)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Floor {
            child,
            address: line.trim().parse().unwrap(),
        }
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The body of an answer; empty if there is none.
pub fn get(address: SocketAddr, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().unwrap_or_default();
    answer
        .split_once("\r\n\r\n")
        .map_or_else(String::new, |(_, body)| body.to_owned())
}
