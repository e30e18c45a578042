//! `spanledger dashboards`: the files that come out, and what is sent where they are imported.

use crate::common::program::Setup;
use crate::common::sink::{Mode, Sink};
use serde_json::{Value, json};

#[test]
fn files_are_listed_and_printed_as_they_are() {
    let setup = Setup::new();
    let list = String::from_utf8(setup.command(&["dashboards", "list"]).stdout).unwrap();
    assert_eq!(list.lines().count(), 20, "{list}");
    for line in list.lines() {
        let name = line.split_whitespace().next().unwrap();
        let printed = setup.command(&["dashboards", "print", name]);
        assert!(printed.status.success() && printed.stdout.len() > 500, "{name}");
    }
    let printed = setup.command(&["dashboards", "print", "grafana/spanledger"]).stdout;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/grafana/spanledger.json");
    assert_eq!(
        String::from_utf8(printed).unwrap().trim(),
        std::fs::read_to_string(file).unwrap().trim()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_sends_the_files_of_one_signal_with_the_key_and_says_what_was_refused() {
    let (setup, backend) = (Setup::new(), Sink::start().await);
    let url = format!("{}/", backend.url());
    let import = |more: &[&str]| {
        let arguments = [&["dashboards", "import", "--url", &url, "--api-key", "k-1"], more].concat();
        let done = setup.command(&arguments);
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, said) = import(&[]);
    assert_eq!(code, Some(0), "{said}");
    let posts = |backend: &Sink| -> Vec<(String, Value)> {
        let posted = backend.deliveries().into_iter().filter(|one| !one.body.is_empty());
        posted
            .map(|one| (one.path, serde_json::from_slice(&one.body).unwrap()))
            .collect()
    };
    let sent = posts(&backend);
    assert_eq!(sent.len(), 8, "{said}");
    assert_eq!(
        (sent[0].0.as_str(), &sent[0].1["name"]),
        ("/api/v2/dashboards", &json!("spanledger-traces"))
    );
    assert!(
        sent[1..]
            .iter()
            .all(|(path, rule)| path == "/api/v2/rules" && rule["alert"].is_string())
    );
    assert!(
        backend
            .deliveries()
            .iter()
            .all(|one| one.headers["signoz-api-key"] == "k-1")
    );

    let (code, _) = import(&["grafana/spanledger"]);
    assert_eq!(code, Some(0));
    let (path, sent) = posts(&backend).pop().unwrap();
    assert_eq!(
        (path.as_str(), &sent["dashboard"]["uid"]),
        ("/api/dashboards/db", &json!("spanledger"))
    );
    assert_eq!(
        backend.deliveries().pop().unwrap().headers["authorization"],
        "Bearer k-1"
    );

    backend.set(Mode::Unwilling(403, Vec::new()));
    let (code, said) = import(&["signoz/executions-from-metrics"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("signoz/executions-from-metrics: refused (403 Forbidden): --api-key needs"),
        "{said}"
    );
    let rules = setup.command(&["dashboards", "import", "--url", &url, "prometheus/alerts"]);
    assert!(
        String::from_utf8(rules.stderr)
            .unwrap()
            .contains("dashboards print prometheus/alerts")
    );
}
