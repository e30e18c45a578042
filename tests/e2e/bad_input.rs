//! Bad input gets a clear answer that names what to change, and good input beside it is not harmed.

use crate::common::http::{Answer, Http, raw, whole};
use crate::common::load::Load;
use crate::common::program::{Program, Setup, sum};
use crate::common::send::{ROUTES, Route, Sender, grpc_call, gzip};
use crate::common::sink::Sink;
use crate::common::{eventually, fixed_port, random, rows};
use bytes::Bytes;
use http::{Method, Request};
use prost::Message;
use serde_json::Value;
use std::process::Output;

/// One POST to the traces path.
async fn post(program: &Program, content_type: &str, encoding: Option<&str>, body: impl Into<Bytes>) -> Answer {
    let url = program.url("otlp_http", "/v1/traces").await;
    let mut request = Request::post(url).header("content-type", content_type);
    if let Some(encoding) = encoding {
        request = request.header("content-encoding", encoding);
    }
    Http::new().send(request.body(whole(body)).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_broken_request_is_refused_with_a_reason_and_good_ones_beside_it_are_not_harmed() {
    let mut random = random("every_kind_of_broken_request_is_refused");
    let load = Load::new(&mut random);
    let setup = Setup::new();
    let program = setup.start().await;
    let message = load.request(1_000).request.encode_to_vec();
    let cut = &message[..message.len() - 3];
    let mut broken_gzip = gzip(&message).to_vec();
    let middle = broken_gzip.len() / 2;
    broken_gzip[middle..middle + 8].fill(0xff);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));

    // Content type, content encoding, body; status, and words of the answer that say what is wrong.
    const PROTOBUF: &str = "application/x-protobuf";
    const JSON: &str = "application/json";
    type Case<'a> = (&'a str, Option<&'a str>, Bytes, u16, &'a [&'a str]);
    let cases: Vec<Case> = vec![
        (
            "text/plain",
            None,
            message.clone().into(),
            415,
            &["application/json", PROTOBUF],
        ),
        ("", None, message.clone().into(), 415, &["application/json", PROTOBUF]),
        (PROTOBUF, Some("br"), message.clone().into(), 415, &["gzip", "zstd"]),
        (PROTOBUF, None, cut.to_vec().into(), 400, &[]),
        (
            PROTOBUF,
            None,
            Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            400,
            &[],
        ),
        (PROTOBUF, Some("gzip"), broken_gzip.into(), 400, &["gzip"]),
        (PROTOBUF, Some("gzip"), message.clone().into(), 400, &["gzip"]),
        (PROTOBUF, Some("zstd"), message.clone().into(), 400, &["zstd"]),
        (JSON, None, "{\"resourceSpans\":[{\"scopeSpans\":[{".into(), 400, &[]),
        (JSON, None, "[]".into(), 400, &[]),
        (JSON, None, "{\"resourceSpans\":7}".into(), 400, &["resourceSpans"]),
        (JSON, None, deep.into(), 400, &[]),
        (
            JSON,
            None,
            Bytes::from_static(b"{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"traceId\":\"xyz\"}]}]}]}"),
            400,
            &["traceId"],
        ),
        (JSON, Some("gzip"), "{}".into(), 400, &["gzip"]),
    ];
    let mut wrong = Vec::new();
    for (index, (content_type, encoding, body, status, words)) in cases.iter().enumerate() {
        let answer = post(&program, content_type, *encoding, body.clone()).await;
        let text = answer.text();
        let named = words.iter().all(|word| text.contains(word));
        // The reason comes in the form of the request: google.rpc.Status as JSON or as protobuf.
        let status_json: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = status_json["message"].as_str().unwrap_or_default();
        let form = *content_type != JSON || !message.is_empty();
        if answer.status != *status || text.is_empty() || !named || !form {
            wrong.push(format!(
                "case {index}, {content_type:?} {encoding:?}: expected {status} and words {words:?}, found {} {text}",
                answer.status
            ));
        }
        // A good one after each bad one, another way each time.
        let good = load.request(index as u64);
        Sender::to(&program)
            .await
            .accepted(ROUTES[index % ROUTES.len()], &good.request)
            .await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The same over gRPC: broken message, broken compression, unknown compression.
    let address = program.address("otlp_grpc").await;
    let client = Http::h2();
    for (body, encoding, status) in [
        (cut.to_vec(), None, "3"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), None, "3"),
        (message.clone(), Some("gzip"), "3"),
        (message.clone(), Some("br"), "12"),
    ] {
        let answer = grpc_call(&client, address, &body, encoding).await.unwrap();
        let found = (answer.header("grpc-status"), answer.header("grpc-message"));
        // A broken encoding is INVALID_ARGUMENT or, in other servers' eyes, INTERNAL; neither is ever retried.
        let fits = found.0 == status || (encoding == Some("gzip") && found.0 == "13");
        assert!(
            fits && !found.1.is_empty(),
            "{encoding:?}: expected grpc-status {status}, found {found:?}"
        );
    }
    // Neither OTLP nor HTTP.
    let nonsense = raw(
        program.address("otlp_http").await,
        b"\x16\x03\x01\x00\xa5 hello\r\n\r\n",
    )
    .await;
    assert!(nonsense.is_err() || !nonsense.unwrap().starts_with(b"HTTP/1.1 200"));

    let expected: Vec<rows::Row> = (0..cases.len() as u64)
        .flat_map(|number| load.request(number).rows)
        .collect();
    let found = rows::wait(&setup.database(), expected.len()).await;
    let wrong = rows::difference(&found, &expected);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    program
        .scrape_until("refused requests are counted by reason", |scrape| {
            let refused: f64 = scrape
                .0
                .iter()
                .filter(|(series, _)| series.name.starts_with("spanledger_") && series.name.contains("refused"))
                .filter(|(series, _)| series.labels.contains_key("reason"))
                .map(|(_, value)| value)
                .sum();
            let all = cases.len() as f64 + 4.0;
            if refused >= all {
                Ok(())
            } else {
                Err(format!("{refused} of {all}"))
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_paths_and_methods_are_told_apart() {
    let setup = Setup::new();
    let program = setup.start().await;
    for (method, path, status) in [
        (Method::GET, "/v1/traces", 405),
        (Method::PUT, "/v1/traces", 405),
        (Method::POST, "/v1/trace", 404),
        (Method::POST, "/", 404),
    ] {
        let url = program.url("otlp_http", path).await;
        let request = Request::builder()
            .method(method.clone())
            .uri(url)
            .header("content-type", "application/json");
        let answer = Http::new().send(request.body(whole("{}")).unwrap()).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_and_a_bomb_is_not_unpacked() {
    let mut random = random("a_body_over_the_limit_is_refused_and_a_bomb_is_not_unpacked");
    let setup = Setup::new().set("receivers.otlp.protocols.http.max_request_body_size", "1MiB");
    let program = setup.start().await;
    let before = sum(&program.scrape().await, "process_resident_memory_bytes", &[]);
    let large = vec![b' '; 3 << 20];
    let answer = post(&program, "application/json", None, large).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(
        answer.text().contains("max_request_body_size"),
        "the answer names the key: {}",
        answer.text()
    );
    // 256 MiB of zeros in a quarter of a megabyte.
    let bomb = gzip(&vec![0; 256 << 20]);
    assert!(bomb.len() < 1 << 20);
    let answer = post(&program, "application/x-protobuf", Some("gzip"), bomb).await;
    assert!(
        [400, 413].contains(&answer.status),
        "{} {}",
        answer.status,
        answer.text()
    );
    let after = sum(&program.scrape().await, "process_resident_memory_bytes", &[]);
    assert!(after - before < 64e6, "grew by {} bytes", after - before);
    Sender::to(&program)
        .await
        .accepted(Route::Http, &Load::new(&mut random).request(0).request)
        .await;
}

/// What a command that failed has written, and its exit code.
fn failure(output: Output) -> (i32, String) {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success(), "it should have failed:\n{text}");
    (output.status.code().expect("an exit code, not a signal"), text)
}

/// Runs `run` with this configuration, which must refuse to start, and checks that it says why.
fn refuses_to_start(setup: &Setup, words: &[&str]) {
    let config = setup.config();
    let (code, text) = failure(setup.command(&["run", "--config", config.to_str().unwrap()]));
    assert_ne!(code, 101, "a panic:\n{text}");
    for word in words {
        assert!(text.contains(word), "the message does not name {word:?}:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_configuration_key_stops_the_start_and_is_named_with_its_neighbour() {
    refuses_to_start(
        &Setup::new().set("journal.directroy", "x"),
        &["config.yaml", "journal.directroy", "directory"],
    );
    refuses_to_start(
        &Setup::new().set("journal.max_size", "much"),
        &["journal.max_size", "much"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_the_key_that_sets_it() {
    let port = fixed_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let address = format!("127.0.0.1:{port}");
    for key in [
        "receivers.otlp.protocols.grpc.endpoint",
        "receivers.otlp.protocols.http.endpoint",
        "metrics.endpoint",
        "health.endpoint",
    ] {
        refuses_to_start(&Setup::new().set(key, address.clone()), &[key, &address]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_directory_that_cannot_be_written_is_named_with_its_key() {
    // Below a file: this refuses root too, whom no permission stops.
    let setup = Setup::new();
    let file = setup.write("file", "");
    let below = file.join("journal");
    refuses_to_start(
        &setup.set("journal.directory", below.to_str().unwrap()),
        &["journal.directory", below.to_str().unwrap()],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_program_on_the_same_journal_refuses_to_start_and_does_not_disturb_the_first() {
    let mut random = random("a_second_program_on_the_same_journal_refuses_to_start");
    let setup = Setup::new();
    let program = setup.start().await;
    refuses_to_start(&setup, &["journal.directory"]);
    let planned = Load::new(&mut random).request(0);
    Sender::to(&program).await.accepted(Route::Grpc, &planned.request).await;
    assert_eq!(rows::wait(&setup.database(), planned.rows.len()).await, planned.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_points_at_ourselves_is_a_configuration_error() {
    let address = format!("127.0.0.1:{}", fixed_port());
    let setup = Setup::new()
        .set("receivers.otlp.protocols.http.endpoint", address.clone())
        .set("exporters.otlp.endpoint", format!("http://{address}"));
    refuses_to_start(&setup, &["exporters.otlp.endpoint", &address]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_backend_is_named_and_nothing_is_lost() {
    let mut random = random("an_unreachable_backend_is_named_and_nothing_is_lost");
    let mut sink = Sink::away();
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let planned = Load::new(&mut random).request(0);
    Sender::to(&program)
        .await
        .accepted(Route::HttpJson, &planned.request)
        .await;
    // Rows do not wait for the backend.
    assert_eq!(rows::wait(&setup.database(), planned.rows.len()).await, planned.rows);
    degraded(&program, "exporters.otlp").await;
    program
        .output("a log line that names the backend", |line| {
            line.contains(&sink.url()[7..]).then_some(())
        })
        .await;
    sink.come_back().await;
    let delivered = sink.wait("the request", |all| all.first().cloned()).await;
    assert_eq!(delivered.request(), planned.request);
    healed(&program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_database_is_named_and_stops_nothing_else() {
    let mut random = random("an_unreachable_database_is_named_and_stops_nothing_else");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let file = setup.write("not-a-directory", "");
    let url = format!("sqlite:{}", file.join("executions.db").display());
    let setup = setup.set("database.url", url);
    let program = setup.start().await;
    let planned = Load::new(&mut random).request(0);
    Sender::to(&program).await.accepted(Route::Grpc, &planned.request).await;
    let delivered = sink.wait("the request", |all| all.first().cloned()).await;
    assert_eq!(delivered.request(), planned.request);
    program
        .scrape_until("metrics are counted", |scrape| {
            let wrong = scrape.derived().difference(&planned.series.series());
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
    degraded(&program, "database").await;
    // It becomes reachable: the row is written, without a restart.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(
        rows::wait(&file.join("executions.db"), planned.rows.len()).await,
        planned.rows
    );
    healed(&program).await;
}

/// Waits until `/readyz`, still 200, names a destination as degraded.
async fn degraded(program: &Program, name: &str) {
    eventually(&format!("/readyz names {name} as degraded"), || async {
        let answer = program.get("health", "/readyz").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        if text.contains("degraded") && text.contains(name) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

/// Waits until `/readyz` names nothing as degraded any more.
async fn healed(program: &Program) {
    let names_degraded = |text: &str| match serde_json::from_str::<Value>(text) {
        Ok(body) => ![Value::Null, serde_json::json!([]), serde_json::json!({})].contains(&body["degraded"]),
        Err(_) => text.contains("degraded"),
    };
    eventually("/readyz names nothing as degraded", || async {
        let text = program.get("health", "/readyz").await.text();
        if names_degraded(&text) { Err(text) } else { Ok(()) }
    })
    .await;
}
