//! OTLP/gRPC: the unary `Export` methods, health and reflection, framed by hand on hyper's HTTP/2.
//!
//! A unary call is one message of five bytes of prefix and the rest; the answer is a message and trailers, or trailers
//! alone when the call fails. That little does not need a gRPC framework, and so the message's bytes reach the journal
//! without being copied through one.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::collect::{Message, SizeLimit, one_message};
use super::grpc_health::{self, Watch};
use super::grpc_reflection::{self, Asking};
use super::grpc_stream::{Messages, Replies, Streams};
use super::intake::{Intake, Received, Taken};
use super::meters::Protocol;
use super::options::GrpcOptions;
use super::refusal::{Reason, Refusal};
use super::{HOP_HEADER, rejected_spans_message};
use crate::listen::{Body, NotAdmitted, Peer};
use crate::otlp::{Encoding, Signal, status};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The longest error text in a header; peers bound the size of headers.
const MAX_MESSAGE: usize = 1024;

/// A message of no bytes: full success of every signal.
static EMPTY_MESSAGE: &[u8] = &[0; 5];

/// Answers OTLP/gRPC requests.
pub(super) struct GrpcService {
    intake: Intake,
    limit: SizeLimit,
    read_timeout: Duration,
    streams: Streams,
}

/// Whether a request is gRPC: `application/grpc`, alone or with a codec, but not gRPC-Web.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let rest = content_type.split_at_checked(b"application/grpc".len());
    rest.is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

impl GrpcService {
    pub(super) fn new(intake: Intake, options: &GrpcOptions) -> GrpcService {
        let limit = SizeLimit {
            bytes: options.max_recv_msg_size,
            key: "receivers.otlp.protocols.grpc.max_recv_msg_size_mib",
        };
        GrpcService {
            intake,
            limit,
            read_timeout: options.read_timeout,
            streams: Streams::new(),
        }
    }

    /// Streams that are open when `shutdown` is cancelled end then.
    pub(super) fn streams_end_with(&self, shutdown: &CancellationToken) {
        self.streams.end_with(shutdown);
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let began = Instant::now();
        let (head, mut body) = request.into_parts();
        let signal = Signal::ALL
            .into_iter()
            .find(|signal| signal.grpc_path() == head.uri.path());
        let work = async {
            // Before anything else: what looks like the preflight of a browser was let in without credentials.
            if head.method != Method::POST {
                return Err(Refusal::new(Reason::Method, "gRPC calls are sent with POST"));
            }
            match signal {
                Some(signal) => {
                    let taken = self.export(signal, &head, &mut body, peer).await?;
                    self.intake.meters().of(Protocol::Grpc, signal).answered(began);
                    Ok(success(signal, taken))
                }
                None if is_about_ourselves(head.uri.path()) => {
                    self.answer_about_ourselves(head.uri.path(), body, peer).await
                }
                None => Err(Refusal::new(
                    Reason::UnknownPath,
                    format!("no method {} here", head.uri.path()),
                )),
            }
        };
        let outcome = match deadline(&head.headers) {
            None => work.await,
            Some(within) => tokio::time::timeout(within, work)
                .await
                .unwrap_or_else(|_| Err(deadline_passed())),
        };
        outcome.unwrap_or_else(|refusal| {
            self.intake.meters().refused(Protocol::Grpc, signal, &refusal);
            refused(&refusal)
        })
    }

    /// The answer to a request that the listener did not admit.
    pub(super) fn not_admitted(&self, refused_as: &NotAdmitted) -> Response<Body> {
        let refusal = Refusal::from(refused_as);
        self.intake.meters().refused(Protocol::Grpc, None, &refusal);
        refused(&refusal)
    }

    async fn export(&self, signal: Signal, head: &Parts, body: &mut Incoming, peer: Peer) -> Result<Taken, Refusal> {
        self.intake.check_hops(&head.headers.get_all(HOP_HEADER))?;
        let encoding = message_encoding(&head.headers)?;
        let mut room = self.intake.room(peer);
        let message = one_message(body, self.limit, &mut room);
        let Message { compressed, bytes } = tokio::time::timeout(self.read_timeout, message)
            .await
            .map_err(|_| slow_message())??;
        let encoding = match (compressed, encoding) {
            (false, _) => Encoding::Identity,
            (true, Encoding::Identity) => {
                return Err(Refusal::malformed(
                    "the message is flagged as compressed, but grpc-encoding names nothing",
                ));
            }
            (true, encoding) => encoding,
        };
        let received = Received {
            signal,
            protocol: Protocol::Grpc,
            encoding,
            body: bytes,
            limit: self.limit,
            room,
        };
        self.intake.take(received).await
    }

    /// Health and reflection.
    async fn answer_about_ourselves(
        &self,
        path: &str,
        mut body: Incoming,
        peer: Peer,
    ) -> Result<Response<Body>, Refusal> {
        if grpc_reflection::METHODS.contains(&path) {
            let asking = Asking::new(Messages::of(body), self.streams.open(peer)?);
            return Ok(stream_response(Replies::new(asking, Asking::turn, trailers)));
        }
        let limit = SizeLimit {
            bytes: 4096,
            key: "of grpc.health.v1",
        };
        let mut room = self.intake.room(peer.clone());
        let message = one_message(&mut body, limit, &mut room);
        let message = tokio::time::timeout(self.read_timeout, message)
            .await
            .map_err(|_| slow_message())??;
        match path {
            grpc_health::CHECK => grpc_health::check(&self.intake, message.bytes).map(message_response),
            grpc_health::LIST => Ok(message_response(grpc_health::list(&self.intake))),
            _ => {
                let watch = Watch::new(self.intake.clone(), message.bytes, self.streams.open(peer)?)?;
                Ok(stream_response(Replies::new(watch, Watch::turn, trailers)))
            }
        }
    }
}

/// Whether a method is about the server itself.
fn is_about_ourselves(path: &str) -> bool {
    matches!(path, grpc_health::CHECK | grpc_health::LIST | grpc_health::WATCH)
        || grpc_reflection::METHODS.contains(&path)
}

fn message_encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let Some(value) = headers.get(GRPC_ENCODING) else {
        return Ok(Encoding::Identity);
    };
    let known = value.to_str().ok().and_then(Encoding::from_token);
    known.ok_or_else(|| {
        Refusal::new(
            Reason::UnknownEncoding,
            format!("grpc-encoding must be identity or one of {}", Encoding::ACCEPTED),
        )
    })
}

/// The time that the sender gives the call: up to eight digits and a unit. Anything else is as good as absent.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn success(signal: Signal, taken: Taken) -> Response<Body> {
    let message = match taken.rejected {
        0 => Bytes::from_static(EMPTY_MESSAGE),
        rejected => prefixed(&status::success_protobuf(
            signal,
            rejected,
            &rejected_spans_message(rejected),
        )),
    };
    message_response(message)
}

fn message_response(message: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, OK);
    let mut response = Response::new(Body::with_trailers(message, trailers));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

fn stream_response<B>(replies: B) -> Response<Body>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut response = Response::new(Body::stream(replies));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

/// The end of a stream.
fn trailers(outcome: Result<(), &Refusal>) -> HeaderMap {
    match outcome {
        Ok(()) => HeaderMap::from_iter([(GRPC_STATUS, OK)]),
        Err(refusal) => status_headers(refusal),
    }
}

pub(super) fn prefixed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

/// Trailers alone: the head of the answer carries the status and ends the stream.
fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    *headers = status_headers(refusal);
    headers.insert(header::CONTENT_TYPE, GRPC);
    if refusal.reason == Reason::UnknownEncoding {
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(Encoding::ACCEPTED));
    }
    response
}

/// `grpc-status` and what explains it.
fn status_headers(refusal: &Refusal) -> HeaderMap {
    let rejection = refusal.rejection();
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(GRPC_STATUS, HeaderValue::from(rejection.code as u16));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&rejection.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if let Ok(details) = HeaderValue::try_from(STANDARD_NO_PAD.encode(rejection.to_protobuf())) {
        headers.insert(GRPC_DETAILS, details);
    }
    headers
}

/// Printable ASCII as it is, the rest as `%XX` (gRPC over HTTP/2, "Percent-Encoded"), cut to [`MAX_MESSAGE`].
fn percent_encoded(message: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if encoded.len() >= MAX_MESSAGE {
            break;
        }
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

fn deadline_passed() -> Refusal {
    Refusal::new(
        Reason::Deadline,
        "the sender's deadline passed before the request was durable",
    )
}

fn slow_message() -> Refusal {
    Refusal::slow_body("the request message did not arrive in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_content_type_and_grpc_web_is_not_grpc() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(is_grpc(&headers), expected, "{content_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_read_in_every_unit_and_nonsense_is_ignored() {
        let read =
            |value: &'static str| deadline(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(value))]));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("10S"), Some(Duration::from_secs(10)));
        assert_eq!(read("9999999m"), Some(Duration::from_millis(9_999_999)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for nonsense in ["", "S", "10", "10s", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn messages_are_percent_encoded_and_bounded() {
        assert_eq!(percent_encoded("50% of “this”\n"), "50%25 of %E2%80%9Cthis%E2%80%9D%0A");
        assert!(percent_encoded(&"é".repeat(10_000)).len() <= MAX_MESSAGE + 2);
    }
}
