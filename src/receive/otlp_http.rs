//! OTLP/HTTP: protobuf and JSON over HTTP/1.1 and HTTP/2.
//!
//! Every answer has the content type of its request, also errors: a sender that speaks JSON gets its `google.rpc.Status`
//! in JSON. When the request's own type is unknown, `Accept` decides, and protobuf is the rest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use hyper::body::Incoming;

use super::collect::{SizeLimit, whole_body};
use super::cors::Cors;
use super::intake::{Intake, Received, Taken};
use super::meters::Protocol;
use super::options::HttpOptions;
use super::refusal::{Reason, Refusal};
use super::{HOP_HEADER, rejected_spans_message};
use crate::listen::{self, Body, NotAdmitted, Peer};
use crate::otlp::{Encoding, Signal, status};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// How long the rest of a refused body is read and thrown away, so that its sender gets to read the answer.
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// Answers OTLP/HTTP requests.
pub(super) struct HttpService {
    intake: Intake,
    limit: SizeLimit,
    read_timeout: Duration,
    cors: Cors,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Protobuf,
    Json,
}

impl HttpService {
    pub(super) fn new(intake: Intake, options: &HttpOptions) -> HttpService {
        HttpService {
            intake,
            limit: SizeLimit {
                bytes: options.max_request_body_size,
                key: "receivers.otlp.protocols.http.max_request_body_size",
            },
            read_timeout: options.read_timeout,
            cors: Cors::new(&options.cors),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let began = Instant::now();
        let (mut head, mut body) = request.into_parts();
        let signal = Signal::ALL.into_iter().find(|signal| signal.path() == head.uri.path());
        if signal.is_some() && Cors::is_preflight(&head) {
            return self.preflight(&head, signal);
        }
        detach(&mut head);
        let mut response = match self.take(&head, &mut body, signal, peer).await {
            Ok((form, signal, taken)) => {
                self.intake.meters().of(form.protocol(), signal).answered(began);
                success(form, signal, taken)
            }
            Err(refusal) => {
                let form = answer_form(&head.headers);
                self.intake.meters().refused(form.protocol(), signal, &refusal);
                if head.version <= Version::HTTP_11 {
                    listen::discard(&head.headers, &mut body, self.limit.bytes, DISCARD_FOR).await;
                }
                refused(form, &refusal)
            }
        };
        self.cors.expose(&head.headers, response.headers_mut());
        response
    }

    fn preflight(&self, head: &Parts, signal: Option<Signal>) -> Response<Body> {
        self.cors.preflight(head).unwrap_or_else(|| {
            let form = answer_form(&head.headers);
            let refusal = foreign_origin();
            self.intake.meters().refused(form.protocol(), signal, &refusal);
            let mut response = refused(form, &refusal);
            Cors::vary(response.headers_mut());
            response
        })
    }

    /// gRPC needs HTTP/2, and this was not: there is nothing but HTTP in which that can be said.
    pub(super) fn grpc_over_http1(&self) -> Response<Body> {
        let refusal = Refusal::new(Reason::HttpVersion, "gRPC needs HTTP/2");
        self.intake.meters().refused(Protocol::Grpc, None, &refusal);
        refused(Form::Protobuf, &refusal)
    }

    /// The answer to a request that the listener did not admit.
    pub(super) fn not_admitted(&self, request: &HeaderMap, refused_as: &NotAdmitted) -> Response<Body> {
        let form = answer_form(request);
        let refusal = Refusal::from(refused_as);
        self.intake.meters().refused(form.protocol(), None, &refusal);
        let mut response = refused(form, &refusal);
        if let NotAdmitted::Unreadable { status } = refused_as {
            *response.status_mut() = *status;
        }
        self.cors.expose(request, response.headers_mut());
        response
    }

    async fn take(
        &self,
        head: &Parts,
        body: &mut Incoming,
        signal: Option<Signal>,
        peer: Peer,
    ) -> Result<(Form, Signal, Taken), Refusal> {
        let signal = signal.ok_or_else(unknown_path)?;
        if head.method != Method::POST {
            return Err(Refusal::new(Reason::Method, "OTLP requests are sent with POST"));
        }
        self.intake.check_hops(&head.headers.get_all(HOP_HEADER))?;
        let form = request_form(&head.headers).ok_or_else(unknown_type)?;
        let encoding = request_encoding(&head.headers).ok_or_else(unknown_encoding)?;
        let mut room = self.intake.room(peer);
        let collected = whole_body(body, self.limit, &mut room);
        let body = tokio::time::timeout(self.read_timeout, collected)
            .await
            .map_err(|_| slow_body())??;
        let received = Received {
            signal,
            protocol: form.protocol(),
            encoding,
            body,
            limit: self.limit,
            room,
        };
        let taken = self.intake.take(received).await?;
        Ok((form, signal, taken))
    }
}

impl Form {
    fn protocol(self) -> Protocol {
        match self {
            Form::Protobuf => Protocol::HttpProtobuf,
            Form::Json => Protocol::HttpJson,
        }
    }

    fn content_type(self) -> HeaderValue {
        match self {
            Form::Protobuf => PROTOBUF,
            Form::Json => JSON,
        }
    }
}

/// Copies what was read of the head out of the read buffer of an HTTP/1.1 connection. As long as a piece of that is
/// held, which is until the request is answered, the connection would need a new one for the body.
fn detach(head: &mut Parts) {
    if head.version > Version::HTTP_11 {
        return;
    }
    head.uri = Uri::default();
    let copied = head.headers.iter().map(|(name, value)| {
        // Both were valid before, so that nothing is left as it is.
        let copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone());
        (name, copy)
    });
    head.headers = copied.collect();
}

/// What the request is, by its content type without parameters.
fn request_form(headers: &HeaderMap) -> Option<Form> {
    let content_type = headers.get(header::CONTENT_TYPE)?.as_bytes();
    let media_type = content_type.split(|&byte| byte == b';').next()?.trim_ascii();
    if media_type.eq_ignore_ascii_case(b"application/x-protobuf") {
        Some(Form::Protobuf)
    } else if media_type.eq_ignore_ascii_case(b"application/json") {
        Some(Form::Json)
    } else {
        None
    }
}

/// The form of an error, also where the request's own form is unknown.
fn answer_form(headers: &HeaderMap) -> Form {
    let mentions_json = |name: HeaderName| {
        headers
            .get(name)
            .is_some_and(|value| value.as_bytes().to_ascii_lowercase().windows(4).any(|it| it == b"json"))
    };
    request_form(headers).unwrap_or_else(|| {
        if mentions_json(header::CONTENT_TYPE) || mentions_json(header::ACCEPT) {
            Form::Json
        } else {
            Form::Protobuf
        }
    })
}

fn request_encoding(headers: &HeaderMap) -> Option<Encoding> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(encoding) = encodings.next() else {
        return Some(Encoding::Identity);
    };
    if encodings.next().is_some() {
        return None;
    }
    Encoding::from_token(encoding.to_str().ok()?)
}

fn success(form: Form, signal: Signal, taken: Taken) -> Response<Body> {
    let body = match (form, taken.rejected) {
        (Form::Protobuf, 0) => Bytes::new(),
        (Form::Json, 0) => Bytes::from_static(b"{}"),
        (Form::Protobuf, rejected) => status::success_protobuf(signal, rejected, &rejected_spans_message(rejected)),
        (Form::Json, rejected) => status::success_json(signal, rejected, &rejected_spans_message(rejected)),
    };
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
    response
}

fn refused(form: Form, refusal: &Refusal) -> Response<Body> {
    let rejection = refusal.rejection();
    let body = match form {
        Form::Protobuf => rejection.to_protobuf(),
        Form::Json => rejection.to_json(),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = refusal.reason.http_status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, form.content_type());
    if let Some(seconds) = rejection.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match refusal.reason {
        Reason::Method => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
        }
        Reason::UnknownEncoding => {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(Encoding::ACCEPTED));
        }
        _ => {}
    }
    response
}

fn unknown_path() -> Refusal {
    Refusal::new(
        Reason::UnknownPath,
        "nothing is served here; OTLP goes to /v1/traces, /v1/metrics and /v1/logs",
    )
}

fn unknown_type() -> Refusal {
    Refusal::new(
        Reason::UnknownType,
        "content-type must be application/x-protobuf or application/json",
    )
}

fn unknown_encoding() -> Refusal {
    Refusal::new(
        Reason::UnknownEncoding,
        format!("content-encoding must be identity or one of {}", Encoding::ACCEPTED),
    )
}

fn foreign_origin() -> Refusal {
    Refusal::new(
        Reason::Origin,
        "pages of this origin may not send (receivers.otlp.protocols.http.cors.allowed_origins)",
    )
}

fn slow_body() -> Refusal {
    Refusal::slow_body("the request body did not arrive in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_head_says_the_same_and_keeps_nothing_of_the_read_buffer() {
        let buffer = Bytes::from(b"x-own-name own value application/json a b".to_vec());
        let value = |range| HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
        let mut request = Request::new(());
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, value(21..37));
        headers.append(header::CONTENT_ENCODING, value(38..39));
        headers.append(header::CONTENT_ENCODING, value(40..41));
        headers.insert(HeaderName::from_bytes(&buffer[..10]).unwrap(), value(11..20));
        let before: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect();
        let (mut head, ()) = request.into_parts();
        assert!(!buffer.is_unique());
        detach(&mut head);
        assert!(buffer.is_unique());
        let after: Vec<_> = (head.headers.iter())
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect();
        assert_eq!(after, before);
    }
}
