//! The meter on a real journal: restarts, crashes, damage, new and changed rules.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::reset::reset;
use super::stage::{Meter, MeterHandle, MeterOptions};
use super::{ExpositionFormat, MeterError};
use crate::journal::{Entry, Journal, Options};
use crate::otlp::{Encoding, Signal, TraceRequest, compress};
use crate::rules::testing::{TestSpan, request, span};
use crate::rules::{Catalogue, RuleFile};
use crate::telemetry::{Health, Heartbeat};

/// A journal and a meter on it, which can be killed and started again.
struct Bench {
    directory: tempfile::TempDir,
    journal: Option<Journal>,
    meter: Option<(Meter, MeterHandle)>,
    heartbeat: Heartbeat,
    appended: u64,
    began: u64,
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
}

fn open_journal(directory: &Path) -> Journal {
    let options = Options {
        max_size: 16 << 20,
        free_disk_floor: 0,
        readers: vec!["meter".to_owned()],
        ..Options::new(directory.join("journal"))
    };
    Journal::open(options).unwrap().0
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            directory: tempfile::tempdir().unwrap(),
            journal: None,
            meter: None,
            heartbeat: Health::default().stage("meter"),
            appended: 0,
            began: now() - 60_000_000_000,
        };
        bench.start(Catalogue::built_in());
        bench
    }

    fn meter_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("meter")
    }

    fn start(&mut self, catalogue: Catalogue) {
        self.start_with(catalogue, 2000);
    }

    fn start_with(&mut self, catalogue: Catalogue, max_series_per_metric: usize) {
        self.try_start(catalogue, max_series_per_metric).unwrap();
    }

    fn try_start(&mut self, catalogue: Catalogue, max_series_per_metric: usize) -> Result<(), MeterError> {
        let journal = open_journal(self.directory.path());
        let options = MeterOptions {
            directory: self.meter_directory(),
            max_series_per_metric,
        };
        let reader = journal.reader("meter").unwrap();
        self.meter = Some(Meter::open(options, catalogue, reader, journal.end_at_open())?);
        self.journal = Some(journal);
        Ok(())
    }

    /// One that counted a call of the tool `a`, saved that, and was killed.
    async fn killed_after_a_checkpoint() -> Bench {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        bench.save().await;
        bench.kill();
        bench
    }

    /// What a kill -9 leaves: the files.
    fn kill(&mut self) {
        self.meter = None;
        self.journal = None;
    }

    fn restart(&mut self) {
        self.kill();
        self.start(Catalogue::built_in());
    }

    async fn append(&mut self, request: &TraceRequest) {
        self.append_as(Signal::Traces, Encoding::Identity, request.bytes().clone())
            .await;
    }

    async fn append_as(&mut self, signal: Signal, encoding: Encoding, plain: Bytes) {
        let entry = Entry {
            signal,
            encoding,
            received_at: self.began + self.appended * 1_000_000,
            items: 1,
            rejected: 0,
            digest: None,
            body: compress(encoding, &plain),
            decoded: plain,
            noted: None,
        };
        self.appended += 1;
        self.journal
            .as_ref()
            .unwrap()
            .append(entry)
            .unwrap()
            .durable
            .await
            .unwrap();
    }

    fn count(&mut self) {
        self.meter.as_mut().unwrap().0.count_available();
    }

    async fn save(&mut self) {
        self.meter.as_mut().unwrap().0.save(&self.heartbeat).await;
    }

    fn handle(&self) -> &MeterHandle {
        &self.meter.as_ref().unwrap().1
    }

    fn scrape(&self) -> String {
        self.handle()
            .rendering(ExpositionFormat::OpenMetrics, String::new())
            .rest()
    }

    fn value(&self, series: &str) -> Option<f64> {
        values(&self.scrape()).get(series).copied()
    }
}

/// Samples of a scrape: series to value.
fn values(scrape: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let line = line.split(" # ").next().unwrap();
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    };
    scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(sample)
        .collect()
}

fn tool(name: &str) -> TestSpan {
    span("runtime.execute_tool")
        .with("tool_id", name)
        .with("outcome", "timeout")
}

const TIMEOUTS: &str = "runtime_tool_timeouts_total{tool_id=\"a\"}";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn random_request(dice: &mut Dice) -> TraceRequest {
    let spans = (0..dice.below(4)).map(|_| match dice.below(4) {
        0 => tool(["a", "b", "c"][dice.below(3) as usize]).lasting(dice.below(1 << 36)),
        1 => span("code.execute")
            .with("code.runtime", "vm2")
            .with("code.memory_mb", dice.below(1 << 40) as f64 / 7e6)
            .with("code.success", dice.below(2) == 0),
        2 => span("llm.generate").with("llm.cost_usd", dice.below(1000) as f64 / 997.0),
        _ => span("GET /"),
    });
    request(spans.collect::<Vec<_>>())
}

#[test]
fn whenever_it_is_killed_the_series_are_those_of_a_run_without_interruption() {
    // Each seed costs dozens of syncs; `SEEDS` asks for more of them.
    let seeds = std::env::var("SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(8);
    for seed in 0..seeds {
        eprintln!("seed {seed}");
        runtime().block_on(interrupted(seed));
    }
}

async fn interrupted(seed: u64) {
    let mut dice = Dice(seed);
    let mut bench = Bench::new();
    let mut requests = Vec::new();
    let mut scraped = BTreeMap::new();
    for _ in 0..40 {
        match dice.below(10) {
            0..5 => {
                let request = random_request(&mut dice);
                bench.append(&request).await;
                requests.push(request);
            }
            5..7 => bench.count(),
            7 => bench.save().await,
            _ => bench.restart(),
        }
        if bench.handle().is_caught_up() {
            let now = values(&bench.scrape());
            for (series, value) in &scraped {
                assert!(
                    now.get(series).is_some_and(|now| now >= value),
                    "seed {seed}: {series} fell from {value}"
                );
            }
            scraped = now;
        }
    }
    bench.restart();
    bench.count();
    let mut reference = Bench {
        began: bench.began,
        ..Bench::new()
    };
    for request in &requests {
        reference.append(request).await;
    }
    reference.count();
    assert_eq!(bench.scrape(), reference.scrape(), "seed {seed}");
}

#[test]
fn a_scrape_is_ready_when_everything_that_was_there_at_the_start_is_counted() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        assert!(bench.handle().is_caught_up(), "an empty journal has nothing to count");
        for _ in 0..3 {
            bench.append(&request(vec![tool("a")])).await;
        }
        bench.restart();
        assert!(!bench.handle().is_caught_up());
        bench.count();
        assert!(bench.handle().is_caught_up());
        assert_eq!(bench.value(TIMEOUTS), Some(3.0));
        bench.save().await;
        bench.restart();
        assert!(bench.handle().is_caught_up(), "the checkpoint has counted all of it");
        assert_eq!(bench.value(TIMEOUTS), Some(3.0));
    });
}

#[test]
fn metrics_and_logs_are_passed_over_and_compressed_requests_are_counted() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        let body = request(vec![tool("a")]).bytes().clone();
        bench.append_as(Signal::Logs, Encoding::Identity, body.clone()).await;
        bench.append_as(Signal::Metrics, Encoding::Identity, body.clone()).await;
        bench.append_as(Signal::Traces, Encoding::Gzip, body.clone()).await;
        bench.append_as(Signal::Traces, Encoding::Zstd, body).await;
        // After a restart the records come from files, without the decoded bodies.
        bench.restart();
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(2.0));
    });
}

#[test]
fn the_reader_has_passed_only_what_a_durable_checkpoint_counts() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        let lag = |bench: &Bench| bench.journal.as_ref().unwrap().status().readers[0].lag_records;
        assert_eq!(lag(&bench), 1);
        bench.save().await;
        assert_eq!(lag(&bench), 0);
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        // A directory in the place of the temporary file: saving must fail.
        let blocker = bench.meter_directory().join("checkpoint.tmp");
        std::fs::create_dir(&blocker).unwrap();
        bench.save().await;
        assert_eq!(lag(&bench), 1);
        std::fs::remove_dir(&blocker).unwrap();
        bench.save().await;
        assert_eq!(lag(&bench), 0);
    });
}

#[test]
fn a_damaged_checkpoint_starts_all_metrics_anew_with_a_new_created_time_and_is_kept_aside() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        let created = bench.value("runtime_tool_timeouts_created{tool_id=\"a\"}").unwrap();
        bench.save().await;
        bench.kill();
        let path = bench.meter_directory().join("checkpoint");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        bench.start(Catalogue::built_in());
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(1.0), "what the journal holds is counted");
        assert!(bench.value("runtime_tool_timeouts_created{tool_id=\"a\"}").unwrap() > created);
        assert!(bench.meter_directory().join("checkpoint.damaged").exists());
    });
}

#[test]
fn a_checkpoint_that_is_whole_but_cannot_be_read_now_keeps_the_metrics_and_the_program_from_starting() {
    runtime().block_on(async {
        let mut bench = Bench::killed_after_a_checkpoint().await;
        let path = bench.meter_directory().join("checkpoint");
        let whole = std::fs::read(&path).unwrap();
        let mut newer = whole.clone();
        newer[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let content = newer.len() - 4;
        let crc = crate::checksum::crc32c(&newer[..content]);
        newer[content..].copy_from_slice(&crc.to_le_bytes());
        // Whoever the test runs as, a directory cannot be read as a file.
        for replace in [
            (|path, newer| std::fs::write(path, newer)) as fn(&std::path::Path, &[u8]) -> std::io::Result<()>,
            |path, _| std::fs::remove_file(path).and_then(|()| std::fs::create_dir(path)),
        ] {
            replace(&path, &newer).unwrap();
            let error = bench.try_start(Catalogue::built_in(), 2000).unwrap_err().to_string();
            assert!(
                error.contains(&path.display().to_string()) && error.contains("removed"),
                "{error}"
            );
        }
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, whole).unwrap();
        bench.start(Catalogue::built_in());
        assert_eq!(bench.value(TIMEOUTS), Some(1.0));
    });
}

fn with_rule(rule: &str) -> Catalogue {
    let file = RuleFile {
        name: "t.yaml".to_owned(),
        text: format!("metrics:\n  - {rule}\n"),
    };
    Catalogue::load(&[file], &[], &[]).unwrap()
}

#[test]
fn a_new_metric_counts_what_the_journal_holds_and_the_others_count_nothing_twice() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a"), tool("b")])).await;
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        bench.save().await;
        bench.kill();
        bench.start(with_rule(
            "{name: mine_total, type: counter, help: Mine., when: tool_span}",
        ));
        assert!(
            !bench.handle().is_caught_up(),
            "the new metric has not counted the journal yet"
        );
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        assert_eq!(bench.value("mine_total"), Some(4.0));
        assert_eq!(bench.value(TIMEOUTS), Some(3.0));
        // Also when the back-fill itself is interrupted after a checkpoint.
        bench.save().await;
        bench.kill();
        bench.start(with_rule(
            "{name: mine_total, type: counter, help: Mine., when: tool_span}",
        ));
        bench.count();
        assert_eq!(bench.value("mine_total"), Some(4.0));
        assert_eq!(bench.value(TIMEOUTS), Some(3.0));
    });
}

#[test]
fn a_metric_whose_rule_has_changed_starts_anew_and_counts_only_what_comes() {
    runtime().block_on(async {
        let mut bench = Bench::killed_after_a_checkpoint().await;
        let rule = "{name: runtime_tool_timeouts_total, type: counter, help: Mine., when: tool_span}";
        bench.start(with_rule(rule));
        assert_eq!(bench.value("runtime_tool_timeouts_total"), None);
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        assert_eq!(bench.value("runtime_tool_timeouts_total"), Some(1.0));
        assert_eq!(
            bench.value("runtime_tool_errors_total{tool_id=\"a\",error_kind=\"timeout\"}"),
            Some(2.0),
            "the others go on"
        );
    });
}

#[test]
fn a_help_text_may_change_and_a_lower_cap_keeps_the_series_that_are_there() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a"), tool("b")])).await;
        bench.count();
        bench.save().await;
        bench.kill();
        bench.start_with(Catalogue::built_in(), 1);
        bench.append(&request(vec![tool("a"), tool("c"), tool("d")])).await;
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(2.0));
        assert_eq!(bench.value("runtime_tool_timeouts_total{tool_id=\"b\"}"), Some(1.0));
        assert_eq!(
            bench.value("runtime_tool_timeouts_total{otel_metric_overflow=\"true\"}"),
            Some(2.0)
        );
    });
}

#[test]
fn beside_another_journal_the_series_go_on_and_all_of_the_new_journal_is_counted() {
    runtime().block_on(async {
        let mut bench = Bench::killed_after_a_checkpoint().await;
        std::fs::remove_dir_all(bench.directory.path().join("journal")).unwrap();
        bench.start(Catalogue::built_in());
        assert_eq!(bench.value(TIMEOUTS), Some(1.0));
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(2.0));
    });
}

#[test]
fn beside_an_older_copy_of_the_journal_nothing_is_counted_twice_and_new_records_are_counted() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a")])).await;
        bench.kill();
        let copy = |from: &str, to: &str| {
            let (from, to) = (bench.directory.path().join(from), bench.directory.path().join(to));
            std::fs::create_dir_all(&to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        };
        copy("journal", "older");
        bench.start(Catalogue::built_in());
        bench.append(&request(vec![tool("a")])).await;
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        bench.save().await;
        bench.kill();
        std::fs::remove_dir_all(bench.directory.path().join("journal")).unwrap();
        let copy = |from: &str, to: &str| {
            std::fs::rename(bench.directory.path().join(from), bench.directory.path().join(to)).unwrap();
        };
        copy("older", "journal");
        bench.start(Catalogue::built_in());
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(3.0));
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(4.0));
    });
}

#[test]
fn a_metric_can_be_reset_while_the_program_runs_and_while_it_does_not() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        let created = "runtime_tool_timeouts_created{tool_id=\"a\"}";
        let before = bench.value(created).unwrap();
        bench
            .meter
            .as_ref()
            .unwrap()
            .0
            .reset("runtime_tool_timeouts_total")
            .unwrap();
        assert_eq!(bench.value(TIMEOUTS), None);
        bench.save().await;
        bench.restart();
        bench.append(&request(vec![tool("a")])).await;
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), Some(1.0));
        assert!(bench.value(created).unwrap() > before);
        bench.save().await;
        bench.kill();
        reset(
            &bench.meter_directory(),
            &Catalogue::built_in(),
            "runtime_tool_timeouts_total",
        )
        .unwrap();
        let mistyped = reset(
            &bench.meter_directory(),
            &Catalogue::built_in(),
            "runtime_tool_timeout_total",
        )
        .unwrap_err();
        assert!(matches!(&mistyped, MeterError::UnknownMetric { .. }));
        let message = "there is no metric runtime_tool_timeout_total; did you mean runtime_tool_timeouts_total?";
        assert_eq!(mistyped.to_string(), message);
        bench.start(Catalogue::built_in());
        bench.count();
        assert_eq!(bench.value(TIMEOUTS), None);
        assert_eq!(
            bench.value("runtime_tool_errors_total{tool_id=\"a\",error_kind=\"timeout\"}"),
            Some(2.0)
        );
    });
}

#[test]
fn a_running_meter_counts_saves_and_ends_when_told() {
    runtime().block_on(async {
        let mut bench = Bench::new();
        for _ in 0..5 {
            bench.append(&request(vec![tool("a")])).await;
        }
        let (meter, handle) = bench.meter.take().unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        let health = Health::default();
        let running = tokio::spawn(meter.run(shutdown.clone(), health.stage("meter")));
        let journal = bench.journal.clone().unwrap();
        while journal.status().readers[0].lag_records > 0 {
            tokio::task::yield_now().await;
        }
        drop(journal);
        assert_eq!(
            values(&handle.rendering(ExpositionFormat::OpenMetrics, String::new()).rest()).get(TIMEOUTS),
            Some(&5.0)
        );
        shutdown.cancel();
        running.await.unwrap();
        assert!(health.is_alive(std::time::Instant::now()));
        bench.restart();
        assert!(bench.handle().is_caught_up());
        assert_eq!(bench.value(TIMEOUTS), Some(5.0));
    });
}

#[test]
fn the_own_metrics_follow_the_derived_ones_and_open_metrics_ends_once() {
    let bench = Bench::new();
    let own = "# TYPE spanledger_x_total counter\nspanledger_x_total 1\n";
    let open_metrics = bench
        .handle()
        .rendering(ExpositionFormat::OpenMetrics, own.to_owned())
        .rest();
    assert!(open_metrics.ends_with("# TYPE spanledger_x counter\nspanledger_x_total 1\n# EOF\n"));
    assert_eq!(open_metrics.matches("# EOF").count(), 1);
    let text = bench.handle().rendering(ExpositionFormat::Text, own.to_owned()).rest();
    assert!(text.ends_with(own));
    assert!(!text.contains("# EOF"));
}
