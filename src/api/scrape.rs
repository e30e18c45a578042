//! `/metrics`: the derived metrics and the program's own in one answer.
//!
//! Until everything that was in the journal at the start has been counted the answer is 503: a scrape in between would
//! show series that are behind what was scraped before a crash, which Prometheus takes for a reset.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::listen::Body;
use crate::meter::{ExpositionFormat, MeterHandle, Rendering, SCRAPES_AT_ONCE};
use crate::telemetry::OwnMetrics;

/// How long one scrape may take.
const TURN: Duration = Duration::from_secs(60);

/// Bytes of text that are made at a time, for a tenth of a millisecond.
const PIECE: usize = 64 << 10;

/// Seconds after which a scrape that came too early may come again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// How long a scrape waits for its turn: half of what Prometheus waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers scrapes; cheap to clone.
#[derive(Clone)]
pub struct ScrapeEndpoint {
    meter: MeterHandle,
    own: OwnMetrics,
    turns: Arc<Semaphore>,
}

impl ScrapeEndpoint {
    /// Answers with what `meter` derived and the program's `own` metrics.
    pub fn new(meter: MeterHandle, own: OwnMetrics) -> Self {
        Self {
            meter,
            own,
            turns: Arc::new(Semaphore::new(SCRAPES_AT_ONCE)),
        }
    }

    /// The answer to a request. Its body is made while it is sent, so that it takes no more memory than the values.
    pub async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
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
            return later("what was in the journal at the start is still being counted\n");
        }
        let format = ExpositionFormat::negotiate(joined(headers, header::ACCEPT).as_deref());
        let is_compressed = accepts_gzip(headers);
        let body = match *method {
            Method::HEAD => Body::empty(),
            _ => match tokio::time::timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await {
                Ok(Ok(turn)) => Body::ready(Exposition {
                    rendering: self.meter.rendering(format, self.own.render()),
                    // The fastest level: Prometheus sits in the same network, and scrapes shall not disturb ingest.
                    gzip: is_compressed.then(|| GzEncoder::new(Vec::new(), Compression::fast())),
                    until: Instant::now() + TURN,
                    _turn: turn,
                }),
                _ => return later("other scrapes are under way, and are not taken by who asked for them\n"),
            },
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        if is_compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// What of a scrape was not sent yet.
struct Exposition {
    rendering: Rendering,
    gzip: Option<GzEncoder<Vec<u8>>>,
    /// Whoever takes it more slowly keeps others waiting.
    until: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Exposition {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let text = self.rendering.next_piece(PIECE);
            let Some(gzip) = &mut self.gzip else {
                return Ok(text.map(Bytes::from));
            };
            let Some(text) = text else {
                return self.gzip.take().map(|gzip| gzip.finish().map(Bytes::from)).transpose();
            };
            gzip.write_all(text.as_bytes())?;
            // It holds back what may still be compressed better.
            let compressed = std::mem::take(gzip.get_mut());
            if !compressed.is_empty() {
                return Ok(Some(Bytes::from(compressed)));
            }
        }
    }
}

impl http_body::Body for Exposition {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if Instant::now() >= self.until {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        Poll::Ready(self.next_piece().map(|piece| piece.map(Frame::data)).transpose())
    }
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

fn later(reason: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, reason);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

fn text(status: StatusCode, message: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(message));
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
