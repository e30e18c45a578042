//! OTLP/gRPC: the unary `Export` methods and the health check, framed by hand on hyper's HTTP/2.
//!
//! A unary call is one message of five bytes of prefix and the rest; the answer is a message and trailers, or trailers
//! alone when the call fails. That little does not need a gRPC framework, and so the message's bytes reach the journal
//! without being copied through one.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use prost::Message as _;

use super::collect::{Message, SizeLimit, one_message};
use super::intake::{Intake, Received, Taken};
use super::meters::Protocol;
use super::options::GrpcOptions;
use super::refusal::{Reason, Refusal};
use super::{HOP_HEADER, otlp_http, rejected_spans_message};
use crate::listen::{Body, Peer, Unauthorized};
use crate::otlp::{Encoding, Signal, status};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const OK: HeaderValue = HeaderValue::from_static("0");

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The longest error text in a header; peers bound the size of headers.
const MAX_MESSAGE: usize = 1024;

/// A message of no bytes: full success of every signal.
static EMPTY_MESSAGE: &[u8] = &[0; 5];

/// Answers OTLP/gRPC requests.
pub(super) struct GrpcService {
    intake: Intake,
    limit: SizeLimit,
    read_timeout: Duration,
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
    pub(super) fn new(intake: Intake, options: &GrpcOptions, read_timeout: Duration) -> GrpcService {
        let limit = SizeLimit {
            bytes: options.max_recv_msg_size,
            key: "receivers.otlp.protocols.grpc.max_recv_msg_size_mib",
        };
        GrpcService {
            intake,
            limit,
            read_timeout,
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let began = Instant::now();
        if request.version() < Version::HTTP_2 {
            return otlp_http::plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2\n");
        }
        let (head, mut body) = request.into_parts();
        let signal = Signal::ALL
            .into_iter()
            .find(|signal| signal.grpc_path() == head.uri.path());
        let work = async {
            match signal {
                Some(signal) => {
                    let taken = self.export(signal, &head, &mut body, peer).await?;
                    self.intake.meters().of(Protocol::Grpc, signal).answered(began);
                    Ok(success(signal, taken))
                }
                None if head.uri.path() == HEALTH_CHECK => self.health_check(&mut body, peer).await,
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

    /// The answer to a request without valid credentials.
    pub(super) fn unauthorized(&self, refused_as: &Unauthorized) -> Response<Body> {
        let refusal = Refusal::from(refused_as);
        self.intake.meters().refused(Protocol::Grpc, None, &refusal);
        refused(&refusal)
    }

    async fn export(&self, signal: Signal, head: &Parts, body: &mut Incoming, peer: Peer) -> Result<Taken, Refusal> {
        if head.method != Method::POST {
            return Err(Refusal::new(Reason::Method, "gRPC calls are sent with POST"));
        }
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

    /// `grpc.health.v1.Health/Check`: serving while the journal takes requests.
    async fn health_check(&self, body: &mut Incoming, peer: Peer) -> Result<Response<Body>, Refusal> {
        let limit = SizeLimit {
            bytes: 4096,
            key: "of grpc.health.v1",
        };
        let mut room = self.intake.room(peer);
        let message = one_message(body, limit, &mut room);
        let message = tokio::time::timeout(self.read_timeout, message)
            .await
            .map_err(|_| slow_message())??;
        let request = HealthCheckRequest::decode(message.bytes).map_err(Refusal::malformed)?;
        let known = |signal: Signal| signal.grpc_path().trim_start_matches('/').split('/').next();
        let is_known = request.service.is_empty()
            || Signal::ALL
                .into_iter()
                .any(|signal| known(signal) == Some(request.service.as_str()));
        if !is_known {
            return Err(Refusal::new(
                Reason::UnknownService,
                format!("no service {} here", request.service),
            ));
        }
        let status = if self.intake.is_serving() {
            HealthCheckResponse::SERVING
        } else {
            HealthCheckResponse::NOT_SERVING
        };
        Ok(message_response(prefixed(
            &HealthCheckResponse { status }.encode_to_vec(),
        )))
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl HealthCheckResponse {
    const SERVING: i32 = 1;
    const NOT_SERVING: i32 = 2;
}

fn message_encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let Some(value) = headers.get(GRPC_ENCODING) else {
        return Ok(Encoding::Identity);
    };
    let known = value.to_str().ok().and_then(Encoding::from_token);
    known.ok_or_else(|| {
        Refusal::new(
            Reason::UnknownEncoding,
            "grpc-encoding must be one of identity, gzip, zstd and deflate",
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

fn prefixed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

/// Trailers alone: the head of the answer carries the status and ends the stream.
fn refused(refusal: &Refusal) -> Response<Body> {
    let rejection = refusal.rejection();
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, GRPC);
    headers.insert(GRPC_STATUS, HeaderValue::from(rejection.code as u16));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&rejection.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if let Ok(details) = HeaderValue::try_from(STANDARD_NO_PAD.encode(rejection.to_protobuf())) {
        headers.insert(GRPC_DETAILS, details);
    }
    if refusal.reason == Reason::UnknownEncoding {
        headers.insert(
            GRPC_ACCEPT_ENCODING,
            HeaderValue::from_static("identity,gzip,zstd,deflate"),
        );
    }
    response
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
    Refusal::new(Reason::SlowBody, "the request message did not arrive in time")
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
