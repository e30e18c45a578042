//! `spanledger healthcheck`: for a container without a shell.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// A probe that takes longer is a failure; orchestrators give one a few seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// More of an answer is not read.
const MOST: usize = 64 << 10;

/// Asks `/readyz` below `base` and gives the answer; an error when the program is not ready or cannot be asked.
pub(super) async fn ask(base: &str) -> anyhow::Result<String> {
    let url = format!("{}/readyz", base.trim_end_matches('/'));
    tokio::time::timeout(PATIENCE, get(&url))
        .await
        .with_context(|| format!("{url}: no answer within {PATIENCE:?}"))?
}

async fn get(url: &str) -> anyhow::Result<String> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .context("cannot set up TLS")?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let request = Request::get(url)
        .body(Empty::new())
        .with_context(|| format!("--endpoint {url}: not a URL"))?;
    let response = client
        .request(request)
        .await
        .with_context(|| format!("{url}: cannot be asked"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?;
    let body = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
    if !status.is_success() {
        bail!("not ready ({status}): {body}");
    }
    Ok(body)
}

/// The address to ask when the listener is bound to `endpoint`: a wildcard is asked on loopback.
pub(super) fn url_of(endpoint: &str) -> String {
    let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, "13133"));
    let host = match host {
        "" | "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    format!("http://{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_asked_on_loopback() {
        assert_eq!(url_of("0.0.0.0:13133"), "http://127.0.0.1:13133");
        assert_eq!(url_of("[::]:13133"), "http://[::1]:13133");
        assert_eq!(url_of(":13133"), "http://127.0.0.1:13133");
        assert_eq!(url_of("10.0.0.7:13133"), "http://10.0.0.7:13133");
    }
}
