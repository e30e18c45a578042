//! The page in a real browser: what a person does there, and what the accessibility check says of it.

use crate::common::eventually;
use crate::common::http::{self, Http};
use crate::common::program::{Program, Setup};
use crate::common::sink::Sink;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Waits until every row that can be made of what was received is written.
async fn caught_up(program: &Program) {
    let url = program.url("api", "/api/v1/pipeline").await;
    eventually("the ledger has written everything", || async {
        let answer: Value = serde_json::from_slice(&http::get(&url).await?.body).map_err(|error| error.to_string())?;
        let readers = answer["data"]["journal"]["readers"].as_array().unwrap().clone();
        let ledger = readers.iter().find(|reader| reader["name"] == "ledger").unwrap();
        if ledger["lagRecords"] == 0 {
            Ok(())
        } else {
            Err(ledger.to_string())
        }
    })
    .await;
}

/// Runs the script to its end; every step of it has a time limit of its own.
async fn drive(arguments: [String; 4]) {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser"));
    assert!(
        directory.join("node_modules/playwright-core").exists(),
        "playwright-core is not there: scripts/test.sh --install-only installs it"
    );
    let mut command = Command::new("node");
    command.arg(directory.join("page.mjs")).args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    println!("{said}");
    assert!(done.status.success(), "a step in the browser failed:\n{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_does_in_a_real_browser_what_people_expect_of_it() {
    let sink = Sink::start().await;
    let long = format!("^{}$", "(very|long|pattern)".repeat(12));
    let setup = Setup::forwarding_to(sink.url())
        .set("exporters.otlp.drop_spans", json!([{"name": "runtime.execute_tool"}]))
        .set("exporters.otlp.hash_attributes", json!(["user.id"]))
        .set("exporters.otlp.redact", json!([long, "builtin"]))
        .set(
            "exporters.otlp.set_resource",
            json!({"deployment.environment.name": "<b>test</b>"}),
        )
        .set("api.signoz_url", "https://signoz.example")
        .set("prices.runtimes.e2b.execution", 0.002)
        .set("prices.runtimes.vm2.vcpu_second", 0.000_011);
    let program = setup.start().await;
    let otlp = program.url("otlp_grpc", "").await;
    let sent = setup.command(&[
        "demo",
        "--endpoint",
        &otlp,
        "--rate",
        "100",
        "--duration",
        "5s",
        "--seed",
        "7",
    ]);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    caught_up(&program).await;

    let tokens = json!(["page-test"]);
    let behind_tokens = Setup::new().set("api.auth.bearer_tokens", tokens);
    let locked = behind_tokens.start().await;
    let refused = Http::new()
        .get(&locked.url("api", "/api/v1/code-exec-logs").await)
        .await;
    assert_eq!(refused.unwrap().status, 401);

    let (page, otlp) = (program.url("api", "").await, program.url("otlp_http", "").await);
    drive([page, otlp, locked.url("api", "").await, "page-test".to_owned()]).await;
}
