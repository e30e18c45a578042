//! A real Prometheus scrapes the real program, loads the rules that are shipped for it, and answers the questions of a
//! dashboard with what was sent.

use crate::common::http::{self, Http};
use crate::common::program::{Program, Setup};
use crate::common::scenario::Scenario;
use crate::common::send::{Route, Sender};
use crate::common::{eventually, fixed_port, random, spans, unix_ms_ago};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

/// A Prometheus with its own data directory.
struct Prometheus {
    url: String,
    process: Program,
}

impl Prometheus {
    /// Starts one that scrapes a target every second and has the rules of `dashboards/prometheus`.
    async fn start(setup: &Setup, target: &str) -> Prometheus {
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/prometheus/*.rules.yaml");
        let configuration = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "spanledger", "static_configs": [{"targets": [target]}]}],
        });
        // JSON is YAML.
        let file = setup.write("prometheus.yaml", &configuration.to_string());
        let address = format!("127.0.0.1:{}", fixed_port());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", setup.path("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage");
        let prometheus = Prometheus {
            url: format!("http://{address}"),
            process: Program::start(&mut command),
        };
        eventually("Prometheus is ready", || async {
            let answer = http::get(&format!("{}/-/ready", prometheus.url)).await?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(answer.text())
            }
        })
        .await;
        prometheus
    }

    /// `data` of an answer of its API.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encoded(value)))
            .collect();
        let url = format!("{}/api/v1/{path}?{}", self.url, query.join("&"));
        let answer = Http::new().get(&url).await.unwrap();
        assert_eq!(
            answer.status,
            200,
            "{parameters:?}: {}\n{}",
            answer.text(),
            self.process.log()
        );
        let mut answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        answer["data"].take()
    }

    /// The instant vector of a PromQL expression, by labels.
    async fn query(&self, expression: &str, time: &str) -> BTreeMap<String, f64> {
        let data = self.ask("query", &[("query", expression), ("time", time)]).await;
        assert_eq!(data["resultType"], "vector", "{expression}");
        let series = data["result"].as_array().unwrap().iter();
        series
            .map(|series| {
                let labels: Vec<String> = series["metric"]
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.as_str().unwrap()))
                    .collect();
                (labels.join(","), series["value"][1].as_str().unwrap().parse().unwrap())
            })
            .collect()
    }

    /// Waits until a scrape has seen so many tool runs; the time at which that scrape can be asked for.
    async fn has_scraped_runs(&self, runs: f64) -> String {
        eventually(&format!("Prometheus has scraped {runs} runs"), || async {
            let now = format!("{:.3}", unix_ms_ago(Duration::ZERO) as f64 / 1000.0);
            let found = self.query("sum(runtime_tool_execute_seconds_count)", &now).await;
            match found.get("") {
                Some(count) if *count == runs => Ok(now),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// The expression of a recording rule, as Prometheus has understood it.
    async fn recorded(&self, name: &str) -> String {
        let groups = self.ask("rules", &[("type", "record")]).await;
        let rules = groups["groups"].as_array().unwrap().iter();
        let mut rules = rules.flat_map(|group| group["rules"].as_array().unwrap());
        let rule = rules.find(|rule| rule["name"] == name);
        rule.unwrap_or_else(|| panic!("there is no recording rule {name}"))["query"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Runs of one kind.
struct Runs {
    count: usize,
    tool: &'static str,
    milliseconds: u64,
    attributes: Value,
    failed: bool,
}

/// One round of traffic. The same is sent twice, since `rate` needs two values of each series; both rounds being equal,
/// Prometheus extrapolates every series by the same factor, so that shares and quantiles are exact.
fn round() -> Vec<Runs> {
    let runs = |count, tool, milliseconds, attributes| Runs {
        count,
        tool,
        milliseconds,
        failed: attributes != json!({"exit_code": 0}),
        attributes,
    };
    vec![
        runs(10, "calc", 4, json!({"exit_code": 0})),
        runs(8, "calc", 20, json!({"exit_code": 0})),
        runs(2, "calc", 300, json!({"exit_code": 1, "error_kind": "parse"})),
        runs(12, "fetch", 30, json!({"exit_code": 0})),
        runs(5, "fetch", 700, json!({"exit_code": 2, "error_kind": "stderr"})),
        runs(
            3,
            "fetch",
            9000,
            json!({"signal": "SIGKILL", "error_kind": "timeout", "outcome": "timeout"}),
        ),
    ]
}

fn request(random: &mut fastrand::Rng) -> ExportTraceServiceRequest {
    let end = unix_ms_ago(Duration::from_secs(1)) * 1_000_000;
    let mut all = Vec::new();
    for runs in round() {
        for _ in 0..runs.count {
            let mut attributes = Map::from_iter([("tool_id".to_owned(), json!(runs.tool))]);
            attributes.extend(runs.attributes.as_object().unwrap().clone());
            let span = Span {
                trace_id: random.u128(1..).to_be_bytes().to_vec(),
                span_id: random.u64(1..).to_be_bytes().to_vec(),
                name: "runtime.execute_tool".to_owned(),
                start_time_unix_nano: end - runs.milliseconds * 1_000_000,
                end_time_unix_nano: end,
                attributes: spans::attributes(&Value::Object(attributes)),
                status: Some(Status {
                    code: if runs.failed { 2 } else { 1 },
                    ..Default::default()
                }),
                ..Default::default()
            };
            all.push(("sos-runtime".to_owned(), span));
        }
    }
    spans::request(Vec::new(), all)
}

/// How many runs of the round are so.
fn count(which: impl Fn(&Runs) -> bool) -> f64 {
    let runs = round();
    let counts = runs.iter().filter(|runs| which(runs)).map(|runs| runs.count);
    counts.sum::<usize>() as f64
}

/// What `histogram_quantile` says of the durations of a tool: linear within the bucket that holds the rank.
fn quantile_seconds(tool: &str, quantile: f64) -> f64 {
    let bounds = [0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    let up_to = |bound: f64| count(|runs| runs.tool == tool && runs.milliseconds as f64 / 1000.0 <= bound);
    let rank = quantile * up_to(f64::INFINITY);
    let above = bounds.iter().position(|bound| up_to(*bound) >= rank).unwrap();
    let (low, high) = (bounds[above - 1], bounds[above]);
    low + (high - low) * (rank - up_to(low)) / (up_to(high) - up_to(low))
}

fn assert_near(found: &BTreeMap<String, f64>, expected: &[(&str, f64)]) {
    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let wanted: BTreeSet<&str> = expected.iter().map(|(labels, _)| *labels).collect();
    assert_eq!(names, wanted);
    for (labels, value) in expected {
        assert!(
            (found[*labels] - value).abs() < 1e-9,
            "{labels}: {} instead of {value}",
            found[*labels]
        );
    }
}

/// Every query of the Grafana dashboard with its panel, as Grafana would ask it.
fn grafana_queries() -> Vec<(String, String)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/grafana/spanledger.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            // All values of each variable; five minutes are more than this test lasts.
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "5m").replace("$__range", "5m");
            let expression = ["$job", "$runtime", "$language", "$tool"]
                .iter()
                .fold(expression, |expression, variable| expression.replace(variable, ".*"));
            assert!(!expression.contains('$'), "{expression}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    queries
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_grafana_dashboard_has_an_answer_from_a_real_prometheus() {
    let mut random = random("every_query_of_the_grafana_dashboard_has_an_answer_from_a_real_prometheus");
    let setup = Setup::new().set("prices.runtimes.vm2", json!({"execution": 0.5}));
    let program = setup.start().await;
    let target = program.address("metrics").await.to_string();
    let prometheus = Prometheus::start(&setup, &target).await;
    let sender = Sender::to(&program).await;
    // Everything that executors send, twice: a rate needs two values of each series.
    for round in 1..=2 {
        let (requests, _) = Scenario::read().requests(&mut random);
        for request in &requests {
            sender.accepted(Route::Grpc, request).await;
        }
        // Requests are counted in order, and the last one has the retrieval.
        let counted = program
            .scrape_until("the round is counted", |scrape| {
                let total = |name: &str| {
                    let series = scrape.0.iter().filter(|(series, _)| series.name == name);
                    series.map(|(_, value)| value).sum::<f64>()
                };
                let retrievals = total("rag_requests_total");
                if retrievals == f64::from(round) {
                    Ok(total("code_executions_total"))
                } else {
                    Err(format!("{retrievals} retrievals in round {round}"))
                }
            })
            .await;
        eventually(&format!("Prometheus has scraped round {round}"), || async {
            let now = format!("{:.3}", unix_ms_ago(Duration::ZERO) as f64 / 1000.0);
            let found = prometheus.query("sum(code_executions_total)", &now).await;
            if found.get("") == Some(&counted) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
    }
    let now = format!("{:.3}", unix_ms_ago(Duration::ZERO) as f64 / 1000.0);
    let queries = grafana_queries();
    assert!(queries.len() > 30, "{}", queries.len());
    for (panel, expression) in queries {
        let found = prometheus.query(&expression, &now).await;
        assert!(!found.is_empty(), "{panel}: no answer to {expression}");
        let is_number = found.values().all(|value| value.is_finite());
        assert!(is_number, "{panel}: {found:?} to {expression}");
    }
    // And one of them by its value: both rounds had as many executions, of which the second is the increase.
    let cost = prometheus
        .query(
            "sum(code_cost_usd_total{runtime=\"vm2\"}) / sum(code_executions_total{runtime=\"vm2\"})",
            &now,
        )
        .await;
    assert_near(&cost, &[("", 0.5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_the_program_and_answers_the_questions_of_a_dashboard_with_what_was_sent() {
    let mut random =
        random("prometheus_scrapes_the_program_and_answers_the_questions_of_a_dashboard_with_what_was_sent");
    let setup = Setup::new();
    let program = setup.start().await;
    let target = program.address("metrics").await.to_string();
    let prometheus = Prometheus::start(&setup, &target).await;
    let sender = Sender::to(&program).await;
    // Each round is one request: a scrape sees all of it or nothing.
    let runs = count(|_| true);
    let first = request(&mut random);
    sender.accepted(Route::HttpJson, &first).await;
    prometheus.has_scraped_runs(runs).await;
    let second = request(&mut random);
    sender.accepted(Route::Grpc, &second).await;
    let now = prometheus.has_scraped_runs(2.0 * runs).await;

    // The questions of the dashboard, in the PromQL that is shipped. First: the 95th percentile by tool.
    let question = prometheus.recorded("tool_id:runtime_tool_execute_seconds:p95_5m").await;
    assert_near(
        &prometheus.query(&question, &now).await,
        &[
            ("tool_id=calc", quantile_seconds("calc", 0.95)),
            ("tool_id=fetch", quantile_seconds("fetch", 0.95)),
        ],
    );

    // The error rate by kind; per run, because a rate per second depends on when exactly was scraped.
    let question = prometheus
        .recorded("tool_id_error_kind:runtime_tool_errors:rate5m")
        .await;
    let per_run = format!("({question}) / scalar(sum(rate(runtime_tool_execute_seconds_count[5m])))");
    assert_near(
        &prometheus.query(&per_run, &now).await,
        &[
            ("error_kind=parse,tool_id=calc", 2.0 / runs),
            ("error_kind=stderr,tool_id=fetch", 5.0 / runs),
            ("error_kind=timeout,tool_id=fetch", 3.0 / runs),
        ],
    );

    // The share of time-outs. A tool that never timed out has no such series, and so no share.
    let question = prometheus.recorded("tool_id:runtime_tool_timeouts:ratio_rate5m").await;
    let fetches = count(|runs| runs.tool == "fetch");
    assert_near(
        &prometheus.query(&question, &now).await,
        &[("tool_id=fetch", 3.0 / fetches)],
    );

    // Exit codes.
    let question = prometheus
        .recorded("status_code_signal:runtime_bun_process_exits:rate5m")
        .await;
    let per_run = format!("({question}) / scalar(sum(rate(runtime_tool_execute_seconds_count[5m])))");
    assert_near(
        &prometheus.query(&per_run, &now).await,
        &[
            ("code=0,status=exit", 30.0 / runs),
            ("code=1,status=exit", 2.0 / runs),
            ("code=2,status=exit", 5.0 / runs),
            ("signal=SIGKILL,status=signal", 3.0 / runs),
        ],
    );
    // The counters themselves are exact to the last one.
    assert_near(
        &prometheus
            .query("sum by (code) (runtime_bun_process_exits_total)", &now)
            .await,
        &[("", 6.0), ("code=0", 60.0), ("code=1", 4.0), ("code=2", 10.0)],
    );

    // Each is what it says it is, and every exemplar leads to a trace that was sent.
    let metadata = prometheus.ask("metadata", &[]).await;
    for (name, kind) in [
        ("runtime_tool_execute_seconds", "histogram"),
        ("runtime_tool_errors", "counter"),
        ("spanledger_build_info", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
    ] {
        assert_eq!(metadata[name][0]["type"], kind, "{name}: {metadata}");
    }
    let exemplars = prometheus
        .ask(
            "query_exemplars",
            &[
                ("query", "runtime_tool_execute_seconds_bucket"),
                ("start", "0"),
                ("end", &format!("{}", unix_ms_ago(Duration::ZERO) / 1000 + 60)),
            ],
        )
        .await;
    let sent: BTreeSet<String> = [&first, &second]
        .into_iter()
        .flat_map(spans::spans)
        .map(spans::id)
        .collect();
    let found: Vec<&Value> = exemplars
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|series| series["exemplars"].as_array().unwrap())
        .collect();
    assert!(!found.is_empty(), "no exemplars: {exemplars}");
    for exemplar in found {
        let id = |name: &str| exemplar["labels"][name].as_str().unwrap();
        assert!(
            sent.contains(&format!("{}-{}", id("trace_id"), id("span_id"))),
            "{exemplar}"
        );
    }

    // Every rule and alert that is shipped evaluates.
    eventually("every rule is evaluated", || async {
        let data = prometheus.ask("rules", &[]).await;
        let rules = data["groups"].as_array().unwrap().iter();
        let rules: Vec<&Value> = rules.flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert!(rules.len() > 20, "{data}");
        let waiting = rules.iter().filter(|rule| rule["health"] == "unknown").count();
        let wrong: Vec<_> = rules.iter().filter(|rule| rule["health"] == "err").collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        if waiting == 0 {
            Ok(())
        } else {
            Err(format!("{waiting} are not"))
        }
    })
    .await;
    let targets = prometheus.ask("targets", &[]).await;
    assert_eq!(targets["activeTargets"][0]["lastError"], "", "{targets}");
}
