//! What an operator does: check a configuration, start, look, stop, try the demo.

use crate::common::http::{Http, whole};
use crate::common::load::Load;
use crate::common::program::{Program, Setup, binary, sum};
use crate::common::prometheus::Expected;
use crate::common::send::{Outcome, Prepared, ROUTES, Sender};
use crate::common::sink::{Mode, Sink};
use crate::common::{eventually, fixed_port, random, rows};
use crate::end_to_end::delivered_spans;
use http::Request;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn validate_accepts_a_good_configuration_and_the_example() {
    let setup = Setup::forwarding_to("http://127.0.0.1:1");
    let config = setup.config();
    let output = setup.command(&["validate", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.yaml");
    let output = setup.command(&["validate", "--config", example]);
    assert_eq!(output.status.code(), Some(0), "config.example.yaml: {}", text(&output));
}

#[test]
fn validate_names_file_line_key_and_nearest_key_of_every_mistake_and_exits_with_2() {
    let setup = Setup::new();
    let yaml = "journal:\n  directory: ./journal\n  retian: 1h\n  max_size: soon\nmetrics:\n  endpoint: 127.0.0.1:0\n  max_serie_per_metric: 10\nreciever: {}\n";
    let rules = setup.write("rules.yaml", "metrics:\n  - name: my_total\n    type: countr\n");
    let rules = format!("metrics.rules=[{}]", rules.display());
    let config = setup.write("wrong.yaml", yaml);
    let output = setup.command(&["validate", "--config", config.to_str().unwrap(), "--set", &rules]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for (place, words) in [
        ("wrong.yaml:3", ["journal.retian", "retain"]),
        ("wrong.yaml:4", ["journal.max_size", "soon"]),
        (
            "wrong.yaml:7",
            ["metrics.max_serie_per_metric", "max_series_per_metric"],
        ),
        ("wrong.yaml:8", ["reciever", "receivers"]),
        ("rules.yaml:3", ["type", "countr"]),
    ] {
        let found = text
            .lines()
            .any(|said| said.contains(place) && words.iter().all(|word| said.contains(word)));
        assert!(found, "no line with {place} and {words:?}:\n{text}");
    }
}

#[test]
fn validate_finds_an_exporter_that_leads_back_to_one_of_our_own_listeners() {
    let setup = Setup::new();
    let yaml = "exporters:\n  otlp:\n    endpoint: http://localhost:4318\n";
    let config = setup.write("loop.yaml", yaml);
    let output = setup.command(&["validate", "--config", config.to_str().unwrap()]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("loop.yaml:3:15: exporters.otlp.endpoint: is one of our own listeners"),
        "{text}"
    );
}

#[test]
fn print_config_shows_the_effective_configuration_without_secrets() {
    let setup = Setup::forwarding_to("http://127.0.0.1:1")
        .set(
            "exporters.otlp.headers",
            serde_json::json!({"signoz-ingestion-key": "s3cret-key"}),
        )
        .set("receivers.otlp.auth.bearer_tokens", serde_json::json!(["s3cret-token"]))
        .set("database.url", "postgres://ledger:s3cret-password@db.example:5432/sos");
    let config = setup.config();
    let output = setup.command(&["print-config", "--config", config.to_str().unwrap()]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    for shown in [
        "max_series_per_metric: 2000",
        "http://127.0.0.1:1",
        "db.example",
        "shutdown_timeout: 10s",
    ] {
        assert!(text.contains(shown), "{shown:?} is not shown:\n{text}");
    }
}

#[test]
fn environment_variables_are_substituted_with_defaults() {
    let setup = Setup::new();
    let config = setup.write(
        "environment.yaml",
        "metrics:\n  endpoint: \"${env:WHERE:-127.0.0.1}:9999\"\n  const_labels: {cost: \"5$$\"}\n",
    );
    let arguments = ["print-config", "--config", config.to_str().unwrap()];
    for (value, expected) in [(None, "127.0.0.1:9999"), (Some("0.0.0.0"), "0.0.0.0:9999")] {
        let mut command = binary(&arguments, &setup.path(""));
        command.env_remove("WHERE").envs(value.map(|value| ("WHERE", value)));
        let output = command.output().unwrap();
        let text = text(&output);
        assert!(
            output.status.success() && text.contains(expected) && text.contains("5$"),
            "{text}"
        );
    }
}

#[test]
fn version_and_help_name_the_program_and_its_commands() {
    let setup = Setup::new();
    let version = setup.command(&["--version"]);
    assert_eq!(
        text(&version).trim(),
        format!("spanledger {}", env!("CARGO_PKG_VERSION"))
    );
    let help = text(&setup.command(&["--help"]));
    for command in ["run", "demo", "validate", "print-config", "healthcheck"] {
        assert!(help.contains(command), "{command} is not in --help:\n{help}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_by_url_and_by_command() {
    let setup = Setup::new();
    let program = setup.start().await;
    for path in ["/", "/healthz", "/readyz"] {
        let answer = program.get("health", path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let url = program.url("health", "").await;
    let output = setup.command(&["healthcheck", "--endpoint", &url]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    program.kill();
    let output = setup.command(&["healthcheck", "--endpoint", &url]);
    assert_ne!(output.status.code(), Some(0), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_traffic_exits_with_0_and_loses_nothing() {
    let mut random = random("sigterm_under_traffic_exits_with_0_and_loses_nothing");
    let load = Load::new(&mut random);
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let answers = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..4_u64 {
        let sender = Sender::to(&program).await;
        let answers = answers.clone();
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in (connection..).step_by(4) {
                let prepared = Prepared::new(
                    ROUTES[number as usize / 4 % ROUTES.len()],
                    &load.request(number).request,
                );
                match sender.deliver(&prepared).await {
                    Outcome::Accepted(0, _) => acknowledged.push(number),
                    // Refused connections and requests for later are what a stopping program answers.
                    Outcome::Unknown(_) | Outcome::Refused(_, true) => break,
                    other => panic!("{other:?}"),
                }
                answers.fetch_add(1, Ordering::Relaxed);
            }
            acknowledged
        });
    }
    eventually("some answers", || async {
        let count = answers.load(Ordering::Relaxed);
        if count > 100 { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
    let mut acknowledged = Vec::new();
    while let Some(done) = tasks.join_next().await {
        acknowledged.extend(done.unwrap());
    }
    let planned: Vec<_> = acknowledged.iter().map(|number| load.request(*number)).collect();
    let expected: BTreeSet<String> = planned.iter().flat_map(|each| each.spans.clone()).collect();

    // Everything was delivered before the end: the sink was there, and there was time.
    let delivered: Vec<String> = delivered_spans(&sink.deliveries());
    let unique: BTreeSet<String> = delivered.iter().cloned().collect();
    let missing: Vec<_> = expected.difference(&unique).collect();
    assert!(
        missing.is_empty(),
        "{} spans were left in the journal: {missing:?}",
        missing.len()
    );
    // A request whose answer was lost with its connection may be there as well; none is there twice.
    assert_eq!(delivered.len(), unique.len(), "spans were forwarded twice");

    let program = setup.start().await;
    let found = rows::read(&setup.database()).await.unwrap();
    let present: BTreeSet<&str> = found.iter().map(|row| row.id.as_str()).collect();
    for row in planned.iter().flat_map(|each| &each.rows) {
        assert!(present.contains(row.id.as_str()), "no row {}", row.id);
    }
    // Metrics: as the rows say, whichever requests lost their answer.
    let mut expected = Expected::default();
    let last = acknowledged.iter().max().copied().unwrap_or_default() + 16;
    let arrived = (0..last)
        .map(|number| load.request(number))
        .filter(|each| present.contains(each.rows[0].id.as_str()));
    arrived.for_each(|each| expected.merge(&each.series));
    let wrong = program.scrape().await.derived().difference(&expected.series());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_longer_than_it_may_for_a_backend_that_never_answers() {
    let mut random = random("sigterm_does_not_wait_longer_than_it_may_for_a_backend_that_never_answers");
    let planned = Load::new(&mut random).request(0);
    let sink = Sink::start().await;
    sink.set(Mode::Silent);
    let setup = Setup::forwarding_to(sink.url()).set("shutdown_timeout", "1s");
    let program = setup.start().await;
    Sender::to(&program).await.accepted(ROUTES[0], &planned.request).await;
    sink.wait_attempts(1).await;
    let began = std::time::Instant::now();
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(began.elapsed().as_secs() < 10, "took {:?}", began.elapsed());
    // What was left stays in the journal.
    sink.set(Mode::Willing);
    let _program = setup.start().await;
    let delivered = sink.wait("the request", |all| all.first().cloned()).await;
    assert_eq!(delivered.request(), planned.request);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_an_operator_can_cure_hold_the_queue_until_they_are_cured() {
    let mut random = random("refusals_that_an_operator_can_cure_hold_the_queue_until_they_are_cured");
    let load = Load::new(&mut random);
    for status in [401, 403, 404, 429, 503] {
        let sink = Sink::start().await;
        sink.set(Mode::Unwilling(status, Vec::new()));
        let setup = Setup::forwarding_to(sink.url());
        let program = setup.start().await;
        let planned: Vec<_> = (0..3)
            .map(|number| load.request(u64::from(status) * 10 + number))
            .collect();
        for each in &planned {
            Sender::to(&program).await.accepted(ROUTES[0], &each.request).await;
        }
        sink.wait_attempts(3).await;
        sink.set(Mode::Willing);
        let spans: usize = planned.iter().map(|each| each.spans.len()).sum();
        let delivered = sink
            .wait(&format!("everything that {status} held back"), |all| {
                Some(delivered_spans(all)).filter(|delivered| delivered.len() >= spans)
            })
            .await;
        let mut expected: Vec<String> = planned.iter().flat_map(|each| each.spans.clone()).collect();
        expected.sort();
        assert_eq!(delivered, expected, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_content_is_set_aside_and_what_follows_is_delivered() {
    let mut random = random("a_refusal_of_the_content_is_set_aside_and_what_follows_is_delivered");
    let load = Load::new(&mut random);
    let sink = Sink::start().await;
    sink.set(Mode::Unwilling(400, Vec::new()));
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let refused = load.request(0);
    Sender::to(&program).await.accepted(ROUTES[0], &refused.request).await;
    sink.wait_attempts(1).await;
    // Set aside at once, not tried again for ever: as soon as a file of it is there, the backend may recover.
    eventually("a file under refused/", || async {
        let found = walk(&setup.path("")).into_iter().any(|path| path.contains("/refused/"));
        if found { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
    sink.set(Mode::Willing);
    let good = load.request(1);
    Sender::to(&program).await.accepted(ROUTES[0], &good.request).await;
    let delivered = sink.wait("the next request", |all| all.first().cloned()).await;
    assert_eq!(delivered.request(), good.request);
}

/// All files below a directory.
fn walk(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_tokens_are_asked_for_when_configured() {
    let mut random = random("bearer_tokens_are_asked_for_when_configured");
    let planned = Load::new(&mut random).request(0);
    let setup = Setup::new().set("receivers.otlp.auth.bearer_tokens", serde_json::json!(["let-me-in"]));
    let program = setup.start().await;
    for route in ROUTES {
        let outcome = Sender::to(&program).await.send(route, &planned.request).await;
        let Outcome::Refused(reason, false) = &outcome else {
            panic!("{route:?}: {outcome:?}")
        };
        assert!(reason.contains("401") || reason.contains("grpc-status 16"), "{reason}");
    }
    let url = program.url("otlp_http", "/v1/traces").await;
    let request = http::Request::post(url)
        .header("content-type", "application/json")
        .header("authorization", "Bearer let-me-in")
        .body(crate::common::http::whole("{}"))
        .unwrap();
    assert_eq!(
        crate::common::http::Http::new().send(request).await.unwrap().status,
        200
    );
}

/// Arguments that put every listener of a program without a configuration file on a free port.
const FREE_PORTS: [&str; 12] = [
    "--set",
    "receivers.otlp.protocols.grpc.endpoint=127.0.0.1:0",
    "--set",
    "receivers.otlp.protocols.http.endpoint=127.0.0.1:0",
    "--set",
    "metrics.endpoint=127.0.0.1:0",
    "--set",
    "health.endpoint=127.0.0.1:0",
    "--set",
    "api.endpoint=127.0.0.1:0",
    "--set",
    "telemetry.logs.format=json",
];

async fn executions(program: &Program) -> f64 {
    sum(&program.scrape().await, "code_executions_total", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn run_demo_shows_moving_metrics_and_rows_with_no_configuration_and_no_other_service() {
    let directory = tempfile::tempdir().unwrap();
    let arguments: Vec<&str> = ["run", "--demo"].into_iter().chain(FREE_PORTS).collect();
    let program = Program::spawn(&arguments, directory.path());
    program.ready().await;
    let mut last = 0.0;
    for _ in 0..3 {
        let before = last;
        last = eventually("metrics move", || async {
            let now = executions(&program).await;
            if now > before { Ok(now) } else { Err(format!("{now}")) }
        })
        .await;
    }
    let files = walk(directory.path());
    let database = files
        .iter()
        .find(|path| path.ends_with("/executions.db"))
        .expect("the demo's database");
    let found = rows::wait(Path::new(database), 5).await;
    assert!(found.iter().any(|row| row.success));
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");

    // A second demo may use what the first one made.
    let program = Program::spawn(&arguments, directory.path());
    program.ready().await;
    assert!(
        executions(&program).await >= last,
        "the demo's metrics survive a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_demo_refuses_a_database_that_it_did_not_make() {
    let setup = Setup::new();
    let program = setup.start().await;
    rows::wait(&setup.database(), 0).await;
    program.terminate().await;
    let config = setup.config();
    let output = setup.command(&["run", "--demo", "--config", config.to_str().unwrap()]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("database.url"), "the message names the key: {said}");

    let setup = Setup::new().set("database.url", "postgres://nobody@127.0.0.1:1/nothing");
    let config = setup.config();
    let output = setup.command(&["run", "--demo", "--config", config.to_str().unwrap()]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("database.url"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_command_sends_executions_of_all_runtimes() {
    let setup = Setup::new();
    let program = setup.start().await;
    let url = program.url("otlp_grpc", "").await;
    let output = setup.command(&["demo", "--endpoint", &url, "--rate", "500", "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    program
        .scrape_until("executions of every runtime, failures and tools", |scrape| {
            let runtimes: BTreeSet<&str> = scrape
                .0
                .keys()
                .filter(|series| series.name == "code_executions_total")
                .filter_map(|series| series.labels.get("runtime").map(String::as_str))
                .collect();
            let outcomes: BTreeSet<&str> = scrape
                .0
                .keys()
                .filter(|series| series.name == "code_executions_total")
                .filter_map(|series| series.labels.get("outcome").map(String::as_str))
                .collect();
            let tools = sum(scrape, "runtime_tool_execute_seconds_count", &[]);
            let enough = runtimes.len() >= 3 && outcomes.len() == 3 && tools > 0.0;
            if enough {
                Ok(())
            } else {
                Err(format!("{runtimes:?} {outcomes:?} {tools} tool runs"))
            }
        })
        .await;
    assert!(!rows::wait(&setup.database(), 10).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_command_says_when_nobody_listens() {
    let setup = Setup::new();
    let url = format!("http://127.0.0.1:{}", fixed_port());
    let output = setup.command(&["demo", "--endpoint", &url, "--rate", "10", "--duration", "1s"]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&url[7..]) || said.contains("--endpoint"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_printed() {
    const SECRET: &str = "Tr0ub4dor";
    let sink = Sink::start().await;
    sink.set(Mode::Unwilling(401, Vec::new()));
    let setup = Setup::forwarding_to(sink.url())
        .set(
            "exporters.otlp.headers",
            serde_json::json!({"signoz-ingestion-key": SECRET}),
        )
        .set("receivers.otlp.auth.bearer_tokens", serde_json::json!([SECRET]))
        .set("receivers.otlp.auth.basic_users", serde_json::json!({"ann": SECRET}))
        .set("metrics.auth.basic_users", serde_json::json!({"prometheus": SECRET}))
        .set("health.auth.bearer_tokens", serde_json::json!([SECRET]))
        .set(
            "api.auth.bearer_tokens",
            serde_json::json!([{"token": SECRET, "organization": "o"}]),
        )
        .set("api.auth.basic_users", serde_json::json!({"bob": SECRET}))
        .set("telemetry.logs.level", "trace");
    let config = setup.config();
    let config = config.to_str().unwrap();
    let hidden = |what: &str, text: &str| assert!(!text.contains(SECRET), "{what} shows the secret:\n{text}");
    for arguments in [
        &["print-config", "--config", config][..],
        &["validate", "--config", config],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "receivers.otlp.auth.bearer_tokens={a: Tr0ub4dor}",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "receivers.otlp.auth.basic_users=Tr0ub4dor",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "api.auth.bearer_tokens=[{token: [Tr0ub4dor]}]",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "exporters.otlp.headers=Tr0ub4dor",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "database.url=postgres://u:Tr0ub4dor@h:port/d",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "exporters.otlp.endpoint=http://u:Tr0ub4dor@h:4318",
        ],
        &[
            "validate",
            "--config",
            config,
            "--set",
            "api.signoz_url=http://u:Tr0ub4dor@h",
        ],
    ] {
        let output = setup.command(arguments);
        let what = arguments.join(" ");
        hidden(&what, &String::from_utf8_lossy(&output.stdout));
        hidden(&what, &String::from_utf8_lossy(&output.stderr));
    }
    let program = setup.spawn();
    let http = program.url("otlp_http", "/v1/traces").await;
    for authorization in [
        "Bearer Tr0ub4dor",
        "Bearer wrong-Tr0ub4dor",
        "Basic YW5uOlRyMHViNGRvcg==",
    ] {
        let request = Request::post(&http)
            .header("authorization", authorization)
            .header("content-type", "application/json")
            .body(whole(one_span()))
            .unwrap();
        Http::new().send(request).await.unwrap();
    }
    program
        .output("the refusal of the backend", |line| line.contains("401").then_some(()))
        .await;
    let (_, log) = program.terminate().await;
    hidden("the log", &log);
}

/// One span, as JSON.
fn one_span() -> &'static str {
    r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"x"}]}]}]}"#
}
