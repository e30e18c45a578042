//! Sends one request and reads its answer, over HTTP/1.1 or as unary gRPC over HTTP/2.
//!
//! * gRPC's framing is written here (five bytes before the message), so that a body that came in compressed goes out
//!   as the same bytes. The HTTP machinery is hyper's.
//! * A 2xx over HTTP counts from its head on: whatever happens to the rest of the answer, the backend has the data. Over
//!   gRPC nothing counts but gRPC's own status.
//! * At most [`ANSWER_LIMIT`] bytes of an answer are kept.
//! * A connection that ends without an answer is tried a second time at once. Keep-alive connections are closed by
//!   servers whenever they like, often at the very moment of the next request; that is no failure worth a pause.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, TE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, GrpcAnswer, HttpAnswer, Verdict, classify_grpc, classify_http, classify_http_for_grpc};
use super::gather::{self, Gather, Lent};
use super::per_signal::PerSignal;
use super::{Endpoint, ExporterOptions, ForwardError, HOP_HEADER, Protocol, tls};
use crate::otlp::{Encoding, Signal};

/// OTLP recommends to accept answers up to this size; the rest is read and dropped.
const ANSWER_LIMIT: usize = 4 << 20;

/// Connecting takes at most this part of the time-out, so that a host that is away is told from a request that is slow.
const CONNECT_SHARE: u32 = 2;

const GRPC_PREFIX: usize = 5;

const GRPC_STATUS: &str = "grpc-status";

/// Speaks to one backend.
pub(super) struct Client {
    endpoint: Endpoint,
    protocol: Protocol,
    uris: PerSignal<Uri>,
    headers: HeaderMap,
    timeout: Duration,
    tls: super::TlsOptions,
    lent: Lent,
    /// Replaced when certificates are read anew.
    pool: RwLock<Pool<Connector, Outgoing>>,
}

type Connector = Gather<HttpsConnector<HttpConnector>>;

/// Why there is no answer.
enum Failure {
    TimedOut,
    Unreachable(String),
    Untrusted(String),
    Disconnected(String),
}

impl Client {
    /// `hop` is the value of [`HOP_HEADER`].
    pub(super) fn new(options: &ExporterOptions, hop: &str) -> Result<Client, ForwardError> {
        let endpoint = Endpoint::parse(&options.endpoint, options.protocol, options.tls.insecure)?;
        let mistake = |error: &dyn std::fmt::Display| ForwardError::Endpoint {
            endpoint: endpoint.to_string(),
            what: error.to_string(),
        };
        let uris = PerSignal::new(|signal| endpoint.uri(signal).map_err(|error| mistake(&error))).transpose()?;
        let mut headers = HeaderMap::new();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("spanledger/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, value) in options.headers.as_map() {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(HOP_HEADER, HeaderValue::from_str(hop).map_err(|error| mistake(&error))?);
        match options.protocol {
            Protocol::HttpProtobuf => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            }
            Protocol::Grpc => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(TE, HeaderValue::from_static("trailers"));
                let timeout = grpc_timeout(options.timeout);
                headers.insert(
                    "grpc-timeout",
                    HeaderValue::from_str(&timeout).map_err(|error| mistake(&error))?,
                );
            }
        }
        let lent = Lent::default();
        Ok(Client {
            pool: RwLock::new(pool(options.protocol, options.timeout, &options.tls, &lent)?),
            lent,
            endpoint,
            protocol: options.protocol,
            uris,
            headers,
            timeout: options.timeout,
            tls: options.tls.clone(),
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Reads the certificate files again and connects anew: they may have been replaced because they expired.
    pub(super) fn reload_certificates(&self) -> Result<(), ForwardError> {
        let fresh = pool(self.protocol, self.timeout, &self.tls, &self.lent)?;
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Sends `body`, which is encoded in `encoding` and given in pieces, and says what came of it. `attempted` is told of
    /// each attempt, and how long it took.
    pub(super) async fn send(
        &self,
        signal: Signal,
        encoding: Encoding,
        body: Vec<Bytes>,
        attempted: impl Fn(Verdict, Duration),
    ) -> Answer {
        let mut began = Instant::now();
        let deadline = began + self.timeout;
        // Over HTTP/1.1 a request is one write anyway.
        let _loan = (self.protocol == Protocol::Grpc).then(|| self.lent.lend(&body));
        let mut outcome = self.exchange(signal, encoding, body.clone(), deadline).await;
        if let Err(Failure::Disconnected(reason)) = outcome {
            attempted(Answer::disconnected(reason).verdict, began.elapsed());
            began = Instant::now();
            outcome = self.exchange(signal, encoding, body, deadline).await;
        }
        let answer = match outcome {
            Ok(answer) => answer,
            Err(Failure::TimedOut) => Answer::timed_out(self.timeout),
            Err(Failure::Unreachable(reason)) => Answer::unreachable(reason),
            Err(Failure::Untrusted(reason)) => Answer::untrusted(reason),
            Err(Failure::Disconnected(reason)) => Answer::disconnected(reason),
        };
        attempted(answer.verdict, began.elapsed());
        answer
    }

    async fn exchange(
        &self,
        signal: Signal,
        encoding: Encoding,
        body: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let request = self.request(signal, encoding, body);
        let sending = self
            .pool
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .request(request);
        let response = timeout_at(deadline, sending).await.map_err(|_| Failure::TimedOut)?;
        let response = response.map_err(|error| Failure::of(&error))?;
        match self.protocol {
            Protocol::HttpProtobuf => Ok(http_answer(response, deadline, classify_http).await),
            Protocol::Grpc if is_grpc(&response) => grpc_answer(response, deadline).await,
            Protocol::Grpc => Ok(http_answer(response, deadline, classify_http_for_grpc).await),
        }
    }

    fn request(&self, signal: Signal, encoding: Encoding, body: Vec<Bytes>) -> Request<Outgoing> {
        const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
        let length = body.iter().map(Bytes::len).sum();
        let mut request = Request::new(Outgoing {
            prefix: (self.protocol == Protocol::Grpc).then(|| grpc_prefix(encoding, length)),
            pieces: body.into_iter(),
            left: length as u64,
            is_sized: self.protocol == Protocol::HttpProtobuf,
        });
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uris[signal].clone();
        *request.headers_mut() = self.headers.clone();
        if encoding != Encoding::Identity {
            let name = if self.protocol == Protocol::Grpc {
                GRPC_ENCODING
            } else {
                CONTENT_ENCODING
            };
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static(encoding.token()));
        }
        request
    }
}

fn pool(
    protocol: Protocol,
    timeout: Duration,
    tls: &super::TlsOptions,
    lent: &Lent,
) -> Result<Pool<Connector, Outgoing>, ForwardError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout / CONNECT_SHARE));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    // A peer that vanished without a word would otherwise hold an HTTP/2 connection, and with it every request, for
    // the quarter of an hour in which the kernel repeats itself.
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(timeout));
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls::client_config(tls)?)
        .https_or_http();
    let gather = |connector, limit| Gather {
        connector,
        limit,
        lent: lent.clone(),
    };
    let mut pool = Pool::builder(TokioExecutor::new());
    pool.pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60));
    Ok(match protocol {
        // A request is one write anyway.
        Protocol::HttpProtobuf => pool.build(gather(builder.enable_http1().wrap_connector(tcp), 0)),
        Protocol::Grpc => pool
            .http2_only(true)
            .build(gather(builder.enable_http2().wrap_connector(tcp), gather::LIMIT)),
    })
}

/// Whether who answers speaks gRPC: proxies answer with a status of HTTP alone.
fn is_grpc(response: &Response<Incoming>) -> bool {
    let is_other_content = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| !value.as_bytes().starts_with(b"application/grpc"));
    response.headers().contains_key(GRPC_STATUS) || (response.status() == http::StatusCode::OK && !is_other_content)
}

async fn http_answer(
    response: Response<Incoming>,
    deadline: Instant,
    classify: fn(HttpAnswer<'_>, SystemTime) -> Answer,
) -> Answer {
    let (head, body) = response.into_parts();
    let (body, _) = read(body, deadline).await;
    let text = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let answer = HttpAnswer {
        status: head.status.as_u16(),
        content_type: text(CONTENT_TYPE).unwrap_or_default(),
        retry_after: text(RETRY_AFTER),
        body: &body,
    };
    let answer = classify(answer, SystemTime::now());
    match head
        .headers
        .get(http::header::LOCATION)
        .and_then(|value| value.to_str().ok())
    {
        Some(location) if head.status.is_redirection() => Answer {
            reason: format!("{} to {location}", answer.reason),
            ..answer
        },
        _ => answer,
    }
}

async fn grpc_answer(response: Response<Incoming>, deadline: Instant) -> Result<Answer, Failure> {
    let (head, body) = response.into_parts();
    let classify = |headers: &HeaderMap, body: &[u8]| {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text(GRPC_STATUS)?.parse().unwrap_or(u16::MAX);
        let (message, details) = (
            text("grpc-message").unwrap_or_default(),
            text("grpc-status-details-bin"),
        );
        // No encoding was offered, so a compressed message would be one we cannot read.
        let message_body = body
            .get(GRPC_PREFIX..)
            .filter(|_| body.first() == Some(&0))
            .unwrap_or_default();
        Some(classify_grpc(GrpcAnswer {
            code,
            message,
            details,
            body: message_body,
        }))
    };
    if let Some(answer) = classify(&head.headers, b"") {
        return Ok(answer);
    }
    let (body, end) = read(body, deadline).await;
    match end {
        End::Trailers(trailers) => match classify(&trailers, &body) {
            Some(answer) => Ok(answer),
            None => Ok(Answer::new(Verdict::Transient, "the answer has no grpc-status")),
        },
        End::Complete => Ok(Answer::new(Verdict::Transient, "the answer has no grpc-status")),
        End::Broken(reason) => Err(Failure::Disconnected(reason)),
        End::TimedOut => Err(Failure::TimedOut),
    }
}

enum End {
    Complete,
    Trailers(HeaderMap),
    Broken(String),
    TimedOut,
}

/// Reads a body to its end, because trailers may follow, and keeps the first [`ANSWER_LIMIT`] bytes.
async fn read(mut body: Incoming, deadline: Instant) -> (Bytes, End) {
    let mut kept = BytesMut::new();
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return (kept.freeze(), End::TimedOut),
            Ok(None) => return (kept.freeze(), End::Complete),
            Ok(Some(Err(error))) => return (kept.freeze(), End::Broken(deepest(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => kept.extend_from_slice(&data[..data.len().min(ANSWER_LIMIT - kept.len())]),
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return (kept.freeze(), End::Trailers(trailers));
                }
            }
        }
    }
}

fn grpc_prefix(encoding: Encoding, length: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(GRPC_PREFIX);
    prefix.put_u8(u8::from(encoding != Encoding::Identity));
    prefix.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    prefix.freeze()
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> String {
    match timeout.as_millis() {
        millis @ ..100_000_000 => format!("{millis}m"),
        _ => format!("{}S", timeout.as_secs().min(99_999_999)),
    }
}

impl Failure {
    fn of(error: &legacy::Error) -> Failure {
        if let Some(reason) = distrust(error) {
            return Failure::Untrusted(reason);
        }
        match error.is_connect() {
            true => Failure::Unreachable(format!("cannot connect: {}", deepest(error))),
            false => Failure::Disconnected(format!("no answer: {}", deepest(error))),
        }
    }
}

/// If TLS is why there is no connection: what to tell.
fn distrust(error: &(dyn StdError + 'static)) -> Option<String> {
    causes(error).find_map(|cause| match cause.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidMessage(_) => Some("the backend does not speak TLS on this port".to_owned()),
        other => Some(format!("TLS: {other}")),
    })
}

fn deepest(error: &(dyn StdError + 'static)) -> String {
    causes(error)
        .last()
        .map_or_else(|| error.to_string(), |cause| cause.to_string())
}

/// An error and everything below it. An `io::Error` hides what it wraps from `source`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped
            .map(|inner| inner as &(dyn StdError + 'static))
            .or_else(|| error.source())
    })
}

/// The body of a request: as it is, or behind gRPC's prefix.
struct Outgoing {
    prefix: Option<Bytes>,
    pieces: std::vec::IntoIter<Bytes>,
    /// Bytes in the pieces that were not taken yet.
    left: u64,
    /// HTTP tells the length in a header, gRPC in the prefix.
    is_sized: bool,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(prefix) = self.prefix.take() {
            return Poll::Ready(Some(Ok(Frame::data(prefix))));
        }
        let next = self.pieces.find(|piece| !piece.is_empty());
        self.left -= next.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(next.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_none() && self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        match self.is_sized {
            true => SizeHint::with_exact(self.left),
            false => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_at_most_eight_digits() {
        assert_eq!(grpc_timeout(Duration::from_secs(10)), "10000m");
        assert_eq!(grpc_timeout(Duration::from_millis(99_999_999)), "99999999m");
        assert_eq!(grpc_timeout(Duration::from_secs(100_000)), "100000S");
        assert_eq!(grpc_timeout(Duration::MAX), "99999999S");
    }

    #[test]
    fn the_prefix_of_a_grpc_message_tells_compression_and_length() {
        assert_eq!(grpc_prefix(Encoding::Identity, 3)[..], [0, 0, 0, 0, 3]);
        assert_eq!(grpc_prefix(Encoding::Gzip, 260)[..], [1, 0, 0, 1, 4]);
    }
}
