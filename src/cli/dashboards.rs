//! `spanledger dashboards`: the files of `dashboards/` are inside the binary, so that whoever has it has them.
//!
//! Importing adds; it never changes or deletes. A dashboard or rule of the same name stays as it is, since somebody may
//! have made it theirs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::args::ImportArgs;
use super::commands::say;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// More of an answer is not read.
const MOST: usize = 16 << 20;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    SigNozDashboard,
    SigNozRule,
    Grafana,
    Prometheus,
}

impl Kind {
    fn meaning(self) -> &'static str {
        match self {
            Kind::SigNozDashboard => "SigNoz dashboard (schema v6)",
            Kind::SigNozRule => "SigNoz alert rule (v2alpha1)",
            Kind::Grafana => "Grafana dashboard (classic)",
            Kind::Prometheus => "Prometheus rules",
        }
    }
}

/// A file inside the binary.
#[derive(Debug)]
pub(super) struct File {
    kind: Kind,
    /// Its path below `dashboards/`.
    path: &'static str,
    /// Its content.
    pub(super) text: &'static str,
}

impl File {
    /// The path without the end that all files of its kind have.
    fn name(&self) -> &'static str {
        let name = self.path.strip_suffix(".json").unwrap_or(self.path);
        name.strip_suffix(".rules.yaml").unwrap_or(name)
    }

    /// Whether it shows what comes by this signal.
    fn is_from(&self, signal: &str) -> bool {
        self.name()
            .strip_suffix(signal)
            .is_some_and(|rest| rest.ends_with(['.', '-']))
    }
}

macro_rules! file {
    ($kind:ident, $path:literal) => {
        File {
            kind: Kind::$kind,
            path: $path,
            text: include_str!(concat!("../../dashboards/", $path)),
        }
    };
}

static FILES: &[File] = &[
    file!(SigNozDashboard, "signoz/executions-from-traces.json"),
    file!(SigNozDashboard, "signoz/executions-from-metrics.json"),
    file!(SigNozRule, "signoz/rules/code-cost-per-day.metrics.json"),
    file!(SigNozRule, "signoz/rules/error-rate-by-runtime.metrics.json"),
    file!(SigNozRule, "signoz/rules/error-rate-by-runtime.traces.json"),
    file!(SigNozRule, "signoz/rules/llm-cost-per-day.metrics.json"),
    file!(SigNozRule, "signoz/rules/llm-cost-per-day.traces.json"),
    file!(SigNozRule, "signoz/rules/no-executions.metrics.json"),
    file!(SigNozRule, "signoz/rules/no-executions.traces.json"),
    file!(SigNozRule, "signoz/rules/slow-tools.metrics.json"),
    file!(SigNozRule, "signoz/rules/slow-tools.traces.json"),
    file!(SigNozRule, "signoz/rules/slow-workflows.metrics.json"),
    file!(SigNozRule, "signoz/rules/slow-workflows.traces.json"),
    file!(SigNozRule, "signoz/rules/tool-error-rate.metrics.json"),
    file!(SigNozRule, "signoz/rules/tool-error-rate.traces.json"),
    file!(SigNozRule, "signoz/rules/tool-time-out-spike.metrics.json"),
    file!(SigNozRule, "signoz/rules/tool-time-out-spike.traces.json"),
    file!(Grafana, "grafana/spanledger.json"),
    file!(Prometheus, "prometheus/alerts.rules.yaml"),
    file!(Prometheus, "prometheus/recording.rules.yaml"),
];

/// The file of this name.
pub(super) fn named(name: &str) -> anyhow::Result<&'static File> {
    let found = FILES.iter().find(|file| name == file.name() || name == file.path);
    found.with_context(|| {
        let known: Vec<String> = FILES.iter().map(|file| file.name().to_owned()).collect();
        match crate::config::section::nearest(name, &known) {
            Some(nearest) => format!("there is no {name}; did you mean {nearest}?"),
            None => format!("there is no {name}; `spanledger dashboards list` names all"),
        }
    })
}

/// One line for each file.
pub(super) fn list() -> String {
    let line = |file: &File| format!("{:<46} {}", file.name(), file.kind.meaning());
    FILES.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Puts files into a SigNoz or Grafana.
pub(super) async fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let files = if args.names.is_empty() {
        let is_for_signoz = |file: &&File| matches!(file.kind, Kind::SigNozDashboard | Kind::SigNozRule);
        FILES
            .iter()
            .filter(is_for_signoz)
            .filter(|file| file.is_from(&args.from))
            .collect()
    } else {
        let named = |name: &String| named(name);
        args.names.iter().map(named).collect::<anyhow::Result<Vec<_>>>()?
    };
    if let Some(file) = files.iter().find(|file| file.kind == Kind::Prometheus) {
        bail!(
            "Prometheus reads rules from files: spanledger dashboards print {} > /etc/prometheus/{}",
            file.name(),
            file.path.rsplit('/').next().unwrap_or(file.path)
        );
    }
    let target = Target::new(args)?;
    let mut failed = false;
    for file in files {
        match target.import(file).await {
            Ok(done) => say(&format!("{}: {done}", file.name())),
            Err(error) => {
                failed = true;
                say(&format!("{}: {error:#}", file.name()));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where files are imported to.
struct Target {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    key: Option<String>,
}

impl Target {
    fn new(args: &ImportArgs) -> anyhow::Result<Target> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .context("cannot set up TLS")?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Target {
            client: Client::builder(TokioExecutor::new()).build(connector),
            base: args.url.trim_end_matches('/').to_owned(),
            key: args.api_key.clone(),
        })
    }

    async fn import(&self, file: &File) -> anyhow::Result<&'static str> {
        let content: Value = serde_json::from_str(file.text).context("the file is not JSON")?;
        let (lists, path, mark, body) = match file.kind {
            Kind::SigNozDashboard => ("/api/v2/dashboards", "/api/v2/dashboards", "name", content),
            Kind::SigNozRule => ("/api/v3/rules", "/api/v2/rules", "alert", content),
            Kind::Grafana => {
                let import =
                    json!({"dashboard": content, "overwrite": false, "message": "spanledger dashboards import"});
                return match self
                    .ask(file.kind, Method::POST, "/api/dashboards/db", Some(&import))
                    .await?
                {
                    (StatusCode::PRECONDITION_FAILED, _) => Ok("is there already"),
                    answer => created(answer),
                };
            }
            Kind::Prometheus => bail!("Prometheus reads rules from files"),
        };
        // A list that cannot be read is no reason not to try: what follows says what is wrong.
        let there = self.ask(file.kind, Method::GET, lists, None).await.ok();
        let there = there.filter(|(status, _)| status.is_success()).map(|(_, there)| there);
        if there.is_some_and(|there| mentions(&there, mark, &body[mark])) {
            return Ok("is there already");
        }
        match self.ask(file.kind, Method::POST, path, Some(&body)).await? {
            (StatusCode::CONFLICT, _) => Ok("is there already"),
            answer => created(answer),
        }
    }

    async fn ask(
        &self,
        kind: Kind,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::ACCEPT, "application/json");
        let (variable, name, scheme) = match kind {
            Kind::Grafana => ("GRAFANA_TOKEN", "authorization", "Bearer "),
            _ => ("SIGNOZ_API_KEY", "signoz-api-key", ""),
        };
        if let Some(key) = self.key.clone().or_else(|| std::env::var(variable).ok()) {
            request = request.header(name, format!("{scheme}{key}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .with_context(|| format!("--url {url}: not a URL"))?;
        let answer = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            let text = || Value::String(String::from_utf8_lossy(&body).trim().to_owned());
            Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .with_context(|| format!("{url}: no answer within {PATIENCE:?}"))?
            .map_err(|error: anyhow::Error| error.context(format!("{url}: cannot be asked")))
    }
}

fn created((status, answer): (StatusCode, Value)) -> anyhow::Result<&'static str> {
    match status {
        status if status.is_success() => Ok("imported"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            bail!("refused ({status}): --api-key needs the rights of an editor")
        }
        status => bail!("refused ({status}): {answer}"),
    }
}

/// Whether an object anywhere in `value` has this value under this key: lists differ between versions in what is
/// around their items.
fn mentions(value: &Value, key: &str, wanted: &Value) -> bool {
    match value {
        Value::Object(object) => {
            object.get(key) == Some(wanted) || object.values().any(|value| mentions(value, key, wanted))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, key, wanted)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_for_users_is_inside_the_binary() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards"));
        let mut there = Vec::new();
        for directory in ["signoz", "signoz/rules", "grafana", "prometheus"] {
            for entry in std::fs::read_dir(root.join(directory)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    there.push(format!("{directory}/{}", entry.file_name().into_string().unwrap()));
                }
            }
        }
        let mut inside: Vec<&str> = FILES.iter().map(|file| file.path).collect();
        there.sort_unstable();
        inside.sort_unstable();
        assert_eq!(inside, there);
    }

    #[test]
    fn each_signal_has_a_dashboard_and_an_alert_for_all_that_it_tells() {
        let of = |signal: &str, kind| -> Vec<String> {
            let files = FILES.iter().filter(|file| file.kind == kind && file.is_from(signal));
            files.map(|file| file.path.replace(signal, "SIGNAL")).collect()
        };
        assert_eq!(of("traces", Kind::SigNozDashboard).len(), 1);
        assert_eq!(of("metrics", Kind::SigNozDashboard).len(), 1);
        let from_traces = of("traces", Kind::SigNozRule);
        assert_eq!(from_traces.len(), 7);
        // What an execution is estimated to cost is in no span.
        let mut from_metrics = of("metrics", Kind::SigNozRule);
        from_metrics.retain(|path| !path.ends_with("/code-cost-per-day.SIGNAL.json"));
        assert_eq!(from_metrics, from_traces);
    }

    #[test]
    fn a_name_that_is_mistyped_is_answered_with_the_nearest() {
        assert_eq!(named("grafana/spanledger").unwrap().path, "grafana/spanledger.json");
        assert_eq!(
            named("prometheus/alerts.rules.yaml").unwrap().name(),
            "prometheus/alerts"
        );
        let error = named("grafana/spanleger").unwrap_err().to_string();
        assert!(error.contains("did you mean grafana/spanledger?"), "{error}");
    }
}
