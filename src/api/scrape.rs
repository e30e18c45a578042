//! `/metrics`: the derived metrics and the program's own in one answer.
//!
//! Until everything that was in the journal at the start has been counted the answer is 503: a scrape in between would
//! show series that are behind what was scraped before a crash, which Prometheus takes for a reset.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::meter::{ExpositionFormat, MeterHandle};
use crate::telemetry::OwnMetrics;

/// Seconds after which a scrape that came too early may come again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Answers scrapes; cheap to clone.
#[derive(Clone)]
pub struct ScrapeEndpoint {
    meter: MeterHandle,
    own: OwnMetrics,
}

impl ScrapeEndpoint {
    /// Answers with what `meter` derived and the program's `own` metrics.
    pub fn new(meter: MeterHandle, own: OwnMetrics) -> Self {
        Self { meter, own }
    }

    /// The answer to a request.
    pub fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Bytes> {
        if path != "/metrics" {
            return text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
        }
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if !self.meter.is_caught_up() {
            let reason = "what was in the journal at the start is still being counted\n";
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, reason);
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
            return response;
        }
        let format = ExpositionFormat::negotiate(joined(headers, header::ACCEPT).as_deref());
        let body = self.meter.exposition(format, &self.own.render());
        exposition(format, body, accepts_gzip(headers))
    }
}

fn exposition(format: ExpositionFormat, body: String, gzip: bool) -> Response<Bytes> {
    let compressed = if gzip { compress(body.as_bytes()) } else { None };
    let is_compressed = compressed.is_some();
    let mut response = Response::new(compressed.unwrap_or_else(|| Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if is_compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Writing into memory does not fail; if it did, the plain answer would be as good.
fn compress(body: &[u8]) -> Option<Bytes> {
    // The fastest level: Prometheus sits in the same network, and scrapes shall not disturb ingest.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// A header that may stand in several lines, as one list.
fn joined(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect::<Vec<_>>();
    (!values.is_empty()).then(|| values.join(","))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = joined(headers, header::ACCEPT_ENCODING).unwrap_or_default();
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        (name.eq_ignore_ascii_case("gzip") || name == "*") && !refused
    })
}

fn text(status: StatusCode, message: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(message.as_bytes()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        accepts_gzip(&headers)
    }

    #[test]
    fn gzip_is_used_when_it_is_accepted_and_not_refused() {
        assert!(accepting("gzip"));
        assert!(accepting("deflate, GZIP;q=0.5"));
        assert!(accepting("*"));
        assert!(!accepting("gzip;q=0"));
        assert!(!accepting("br"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
