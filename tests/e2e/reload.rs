//! SIGHUP: what can be applied is applied to the running program, the rest is named, a broken file changes nothing. And
//! what happens to the counts when rules change or a metric is reset.

use crate::common::http::{Http, whole};
use crate::common::program::{Program, Setup};
use crate::common::prometheus::Scrape;
use crate::common::sink::Sink;
use crate::common::{eventually, random, rows, spans, unix_ms_ago};
use http::Request;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use prost::Message;
use rustix::process::Signal;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// One execution that failed, with this error and number of tokens.
fn execution(random: &mut fastrand::Rng, error: &str, tokens: i64) -> ExportTraceServiceRequest {
    let end = unix_ms_ago(Duration::from_secs(1)) * 1_000_000;
    let attributes =
        json!({"code.runtime": "vm2", "code.language": "python", "code.success": false, "code.tokens_used": tokens});
    let span = Span {
        trace_id: random.u128(1..).to_be_bytes().to_vec(),
        span_id: random.u64(1..).to_be_bytes().to_vec(),
        name: "code.execute".to_owned(),
        start_time_unix_nano: end - 5_000_000,
        end_time_unix_nano: end,
        attributes: spans::attributes(&attributes),
        status: Some(Status {
            code: 2,
            message: error.to_owned(),
        }),
        ..Default::default()
    };
    let resource = json!({"service.name": "sos"});
    spans::request(spans::attributes(&resource), [("sos".to_owned(), span)])
}

/// Sends over HTTP with a bearer token; the status of the answer.
async fn send(program: &Program, token: &str, request: &ExportTraceServiceRequest) -> u16 {
    let request = Request::post(program.url("otlp_http", "/v1/traces").await)
        .header("content-type", "application/x-protobuf")
        .header("authorization", format!("Bearer {token}"))
        .body(whole(request.encode_to_vec()));
    Http::new().send(request.unwrap()).await.unwrap().status
}

async fn api(program: &Program, token: &str) -> u16 {
    let request = Request::get(program.url("api", "/api/v1/pipeline").await)
        .header("authorization", format!("Bearer {token}"))
        .body(whole(""));
    Http::new().send(request.unwrap()).await.unwrap().status
}

/// Sends SIGHUP and waits until the log has so many lines with these words.
pub async fn reloaded(program: &Program, words: &str, times: usize) {
    program.signal(Signal::HUP);
    eventually(&format!("the log says {words:?}"), || async {
        let found = program.log().matches(words).count();
        if found >= times {
            Ok(())
        } else {
            Err(format!("{found} times"))
        }
    })
    .await;
}

/// What the log says when everything was read again.
pub const READ_AGAIN: &str = "configuration, rules and certificates were read again";
const REFUSED: &str = "the configuration was not read again; the old one stays";

/// A rule file with one further metric, and one built-in metric with other labels.
const RULES: &str = "metrics:
  - name: failures_by_text_total
    type: counter
    help: Failed executions by language.
    when: {and: [execution_span, {execution_outcome: error}]}
    labels: {language: span.code.language}
  - name: code_tokens_used_total
    type: counter
    help: Tokens by language alone.
    when: execution_span
    value: span.code.tokens_used
    labels: {language: span.code.language}
";

#[tokio::test(flavor = "multi_thread")]
async fn sighup_applies_what_it_can_to_the_running_program_and_names_what_takes_a_restart() {
    let mut random = random("sighup_applies_what_it_can_to_the_running_program_and_names_what_takes_a_restart");
    let (sink, other_sink) = (Sink::start().await, Sink::start().await);
    let setup = Setup::forwarding_to(sink.url())
        .set("receivers.otlp.auth.bearer_tokens", json!(["first"]))
        .set("api.auth.bearer_tokens", json!(["first"]))
        .set("exporters.otlp.headers", json!({"x-key": "first"}));
    let program = setup.start().await;
    assert_eq!(
        send(&program, "first", &execution(&mut random, "secret-1 leaked", 10)).await,
        200
    );
    assert_eq!(send(&program, "second", &execution(&mut random, "never", 0)).await, 401);
    let delivered = sink.wait("the first request", |all| all.first().cloned()).await;
    assert_eq!(delivered.headers["x-key"], "first");

    let rules = setup.write("rules.yaml", RULES);
    let elsewhere = rules.with_file_name("elsewhere");
    let setup = setup
        .set("receivers.otlp.auth.bearer_tokens", json!(["second"]))
        .set("api.auth.bearer_tokens", json!(["second"]))
        .set("exporters.otlp.headers", json!({"x-key": "second"}))
        .set("exporters.otlp.endpoint", other_sink.url())
        .set("database.redact", json!(["secret-\\d+"]))
        .set("metrics.rules", json!([rules.to_str().unwrap()]))
        .set("metrics.const_labels", json!({"zone": "eu"}))
        .set("telemetry.logs.level", "debug")
        .set("journal.retain", "2h")
        .set("journal.directory", elsewhere.to_str().unwrap())
        .set("exporters.otlp/new.endpoint", other_sink.url());
    setup.config();
    reloaded(&program, READ_AGAIN, 1).await;
    // What was in work comes to its end first.
    for started_again in ["writing rows", "\"forwarding\""] {
        eventually(started_again, || async {
            let times = program.log().matches(started_again).count();
            if times == 2 {
                Ok(())
            } else {
                Err(format!("{times} times"))
            }
        })
        .await;
    }
    let log = program.log();
    for key in ["journal.retain", "journal.directory", "exporters.otlp/new.endpoint"] {
        let named = log
            .lines()
            .any(|line| line.contains("takes effect after a restart") && line.contains(&format!("\"{key}\"")));
        assert!(named, "{key} is not named:\n{log}");
    }
    for secret in ["\"first\"", "\"second\""] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(!elsewhere.exists(), "what takes a restart stays where it is");

    // Tokens.
    assert_eq!(send(&program, "first", &execution(&mut random, "never", 0)).await, 401);
    assert_eq!(
        send(&program, "second", &execution(&mut random, "secret-2 leaked", 7)).await,
        200
    );
    assert_eq!(
        (api(&program, "first").await, api(&program, "second").await),
        (401, 200)
    );
    // The exporter: what came before was delivered by the old one, what came after by the new one, nothing twice.
    let delivered = other_sink.wait("the second request", |all| all.first().cloned()).await;
    assert_eq!(delivered.headers["x-key"], "second");
    assert_eq!((sink.attempts(), other_sink.attempts()), (1, 1));
    // Rules: the new metric also counts what came before it was there, and the log says how far back that is; the one
    // that counts something else starts anew; constant labels are on every series.
    program
        .scrape_until("the metrics of the new rules", |scrape| {
            let all = |name: &str, labels: &[(&str, &str)]| scrape.get(name, &[labels, &[("zone", "eu")]].concat());
            let found = (
                all("failures_by_text_total", &[("language", "python")]),
                all("code_tokens_used_total", &[("language", "python")]),
                all(
                    "code_executions_total",
                    &[("runtime", "vm2"), ("language", "python"), ("outcome", "error")],
                ),
            );
            let expected = (Some(2.0), Some(7.0), Some(2.0));
            if found == expected {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
    let told = program.log();
    let told = told
        .lines()
        .find(|line| line.contains("new metrics count what the journal holds"));
    let told: serde_json::Value = serde_json::from_str(told.expect("how far back it counts is told")).unwrap();
    assert_eq!(told["metrics"], "failures_by_text_total");
    assert!(told["seconds"].as_u64().unwrap() < 60, "{told}");
    // Rows.
    let found = rows::wait(&setup.database(), 2).await;
    let mut errors: Vec<&str> = found.iter().filter_map(|row| row.error_message.as_deref()).collect();
    errors.sort_unstable();
    assert!(errors.contains(&"secret-1 leaked"), "{errors:?}");
    assert!(errors.iter().all(|error| !error.contains("secret-2")), "{errors:?}");
    // All is well, and stays so after the restart that the rest needs.
    let answer = program.get("health", "/healthz").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = program.scrape().await.derived();
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
    let journal = setup.path("journal");
    let setup = setup.set("journal.directory", journal.to_str().unwrap());
    let program = setup.start().await;
    assert_eq!(program.scrape().await.derived(), before);
    assert_eq!(rows::read(&setup.database()).await.unwrap(), found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_broken_anywhere_is_refused_and_the_old_configuration_stays_as_a_whole() {
    let mut random = random("a_file_that_is_broken_anywhere_is_refused_and_the_old_configuration_stays_as_a_whole");
    let setup = Setup::new().set("receivers.otlp.auth.bearer_tokens", json!(["first"]));
    let program = setup.start().await;
    let own = program.url("otlp_http", "").await;
    let good = std::fs::read_to_string(setup.config())
        .unwrap()
        .replace("\"first\"", "\"second\"");
    let bad_rules = setup.write("rules.yaml", "metrics:\n  - name: x_total\n    typ: counter\n");
    let broken = [
        // YAML, an unknown key, a value, a file of rules, a certificate, an exporter that sends to ourselves, an expression.
        ("\n  : [".to_owned(), "config.yaml"),
        ("\n\"jornal\": {}\n".to_owned(), "did you mean `journal`?"),
        ("\n\"shutdown_timeout\": soon\n".to_owned(), "shutdown_timeout"),
        (
            format!("\n\"metrics\": {{\"rules\": [{:?}]}}\n", bad_rules.to_str().unwrap()),
            "did you mean `type`?",
        ),
        (
            "\n\"exporters\": {\"otlp\": {\"endpoint\": \"https://x:1\", \"tls\": {\"ca_file\": \"/nowhere.pem\"}}}\n"
                .to_owned(),
            "/nowhere.pem",
        ),
        (
            format!("\n\"exporters\": {{\"otlp\": {{\"endpoint\": {own:?}}}}}\n"),
            "exporters.otlp.endpoint is one of our own listeners",
        ),
    ];
    for (addition, said) in &broken {
        // A key that stands there already would be told as given twice.
        let text = match addition.contains("metrics") {
            true => good.replace("\"metrics\":\n  \"endpoint\": \"127.0.0.1:0\"", ""),
            false => good.clone(),
        };
        setup.write("config.yaml", &format!("{text}{addition}"));
        program.signal(Signal::HUP);
        eventually(&format!("{said:?} is told"), || async {
            let log = program.log();
            let told = log.lines().any(|line| line.contains(REFUSED) && line.contains(said));
            if told { Ok(()) } else { Err(log) }
        })
        .await;
        assert_eq!(
            send(&program, "second", &execution(&mut random, "no", 1)).await,
            401,
            "{addition}"
        );
        assert_eq!(
            send(&program, "first", &execution(&mut random, "yes", 1)).await,
            200,
            "{addition}"
        );
    }
    setup.write("config.yaml", &good);
    reloaded(&program, READ_AGAIN, 1).await;
    assert_eq!(send(&program, "second", &execution(&mut random, "yes", 1)).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_were_replaced_are_used_after_sighup_and_unusable_ones_are_not() {
    let setup = Setup::new();
    let new_certificate = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = setup.write("certificate.pem", &made.cert.pem());
        let key = setup.write("key.pem", &made.signing_key.serialize_pem());
        (made.cert.der().clone(), certificate, key)
    };
    let (first, certificate, key) = new_certificate();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let section = "receivers.otlp.protocols.http.tls";
    let setup_with_tls = Setup::new()
        .set(&format!("{section}.cert_file"), path(&certificate))
        .set(&format!("{section}.key_file"), path(&key));
    let program = setup_with_tls.start().await;
    let address = program.address("otlp_http").await;
    // Whether a client that trusts only this certificate is served.
    let is_served_to = async |trusted: &rustls::pki_types::CertificateDer<'static>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
        connecting.await.is_ok()
    };
    assert!(is_served_to(&first).await);
    let (second, _, _) = new_certificate();
    reloaded(&program, READ_AGAIN, 1).await;
    assert!(is_served_to(&second).await);
    assert!(!is_served_to(&first).await);
    setup.write("key.pem", "not a key");
    reloaded(&program, "certificates were not read again", 1).await;
    assert!(is_served_to(&second).await, "the last good ones stay");
}

fn tokens(scrape: &Scrape) -> Option<f64> {
    scrape.get("code_tokens_used_total", &[("runtime", "vm2"), ("language", "python")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_is_reset_from_the_command_line_while_the_program_runs_and_while_it_does_not() {
    let mut random = random("a_metric_is_reset_from_the_command_line_while_the_program_runs_and_while_it_does_not");
    let setup = Setup::new();
    let config = setup.config();
    let reset = |name: &str| {
        let output = setup.command(&["metrics", "reset", name, "--config", config.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    };
    let other = [("runtime", "vm2"), ("language", "python"), ("outcome", "error")];
    let counted = async |program: &Program, expected: Option<f64>, executions: f64| {
        program
            .scrape_until(&format!("{expected:?} tokens"), |scrape| {
                let found = (tokens(scrape), scrape.get("code_executions_total", &other));
                if found == (expected, Some(executions)) {
                    Ok(())
                } else {
                    Err(format!("{found:?}"))
                }
            })
            .await;
    };
    let program = setup.start().await;
    assert_eq!(send(&program, "", &execution(&mut random, "x", 10)).await, 200);
    counted(&program, Some(10.0), 1.0).await;
    let (done, said) = reset("code_tokens_use_total");
    assert!(!done && said.contains("did you mean code_tokens_used_total?"), "{said}");
    let (done, said) = reset("code_tokens_used_total");
    assert!(done, "{said}");
    counted(&program, None, 1.0).await;
    // It is durable at once, and what comes later counts.
    program.kill();
    let program = setup.start().await;
    counted(&program, None, 1.0).await;
    assert_eq!(send(&program, "", &execution(&mut random, "x", 3)).await, 200);
    counted(&program, Some(3.0), 2.0).await;
    program.terminate().await;

    let (done, said) = reset("code_tokens_used_total");
    assert!(done, "{said}");
    let program = setup.start().await;
    counted(&program, None, 2.0).await;
    assert_eq!(send(&program, "", &execution(&mut random, "x", 5)).await, 200);
    counted(&program, Some(5.0), 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_series_are_scraped_in_both_formats_compressed_or_not() {
    let mut random = random("twenty_thousand_series_are_scraped_in_both_formats_compressed_or_not");
    // A tool that times out has 17 series: 13 buckets, sum and count, an error, a time-out.
    const TOOLS: usize = 1_200;
    let setup = Setup::new();
    let program = setup.start().await;
    let end = unix_ms_ago(Duration::from_secs(1)) * 1_000_000;
    for batch in 0..2 {
        let all = (0..TOOLS / 2).map(|number| {
            let tool = format!("tool-{}", batch * TOOLS / 2 + number);
            let span = Span {
                trace_id: random.u128(1..).to_be_bytes().to_vec(),
                span_id: random.u64(1..).to_be_bytes().to_vec(),
                name: "runtime.execute_tool".to_owned(),
                start_time_unix_nano: end - 1_000_000,
                end_time_unix_nano: end,
                attributes: spans::attributes(&json!({"tool_id": tool, "outcome": "timeout"})),
                ..Default::default()
            };
            ("sos".to_owned(), span)
        });
        let request = spans::request(Vec::new(), all.collect::<Vec<_>>());
        assert_eq!(send(&program, "", &request).await, 200);
    }
    let url = program.url("metrics", "/metrics").await;
    program
        .scrape_until("20,000 series", |scrape| {
            let found = scrape.derived().0.len();
            if found == TOOLS * 17 {
                Ok(())
            } else {
                Err(found.to_string())
            }
        })
        .await;
    let mut read = Vec::new();
    for (format, gzip) in [
        ("text/plain;version=0.0.4", false),
        ("text/plain;version=0.0.4", true),
        ("application/openmetrics-text;version=1.0.0", false),
        ("application/openmetrics-text;version=1.0.0", true),
    ] {
        let mut request = Request::get(&url).header("accept", format);
        if gzip {
            request = request.header("accept-encoding", "gzip");
        }
        let answer = Http::new().send(request.body(whole("")).unwrap()).await.unwrap();
        assert_eq!(answer.status, 200);
        let text = match answer.header("content-encoding") {
            "gzip" => {
                assert!(gzip);
                std::io::read_to_string(flate2::read::GzDecoder::new(&answer.body[..])).unwrap()
            }
            _ => {
                assert!(!gzip);
                answer.text()
            }
        };
        assert_eq!(text.ends_with("# EOF\n"), format.contains("openmetrics"));
        let mut scrape = Scrape::parse(&text).derived();
        scrape.0.retain(|series, _| !series.name.ends_with("_created"));
        assert!(scrape.0.len() >= 20_000, "{} series", scrape.0.len());
        read.push(scrape);
    }
    assert!(read.iter().all(|scrape| *scrape == read[0]));
}
