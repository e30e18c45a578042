//! The receiver that is measured: one started here, or another one by its addresses.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use spanledger::otlp::{Encoding, compress, decompress};

use crate::fixture::{self, Answer, Fixture, GRPC_TRACES, JSON, PROTOBUF, Status};

/// The outcome of one requirement over each protocol that it applies to.
pub type Outcomes = Vec<(&'static str, Outcome)>;

/// No receiver needs that long for a check.
const PATIENCE: Duration = Duration::from_secs(30);

/// A check of one requirement.
pub type Check = for<'a> fn(&'a Target) -> Pin<Box<dyn Future<Output = Outcomes> + 'a>>;

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Met,
    Deviates(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Met => f.write_str("yes"),
            Outcome::Deviates(how) => write!(f, "no: {how}"),
        }
    }
}

/// The outcome of a comparison.
pub fn expect<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        Outcome::Met
    } else {
        Outcome::Deviates(format!("{what} is {found:?}, not {expected:?}"))
    }
}

/// Met if all are; else the first that is not.
pub fn all(outcomes: impl IntoIterator<Item = Outcome>) -> Outcome {
    outcomes
        .into_iter()
        .find(|outcome| *outcome != Outcome::Met)
        .unwrap_or(Outcome::Met)
}

pub struct Target {
    grpc: SocketAddr,
    http: SocketAddr,
    _own: Option<Fixture>,
}

/// The three ways to send traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

pub const ALL: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];
pub const HTTP: [Protocol; 2] = [Protocol::HttpProtobuf, Protocol::HttpJson];

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Grpc => "gRPC",
            Protocol::HttpProtobuf => "HTTP/protobuf",
            Protocol::HttpJson => "HTTP/JSON",
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Protocol::Grpc => "application/grpc",
            Protocol::HttpProtobuf => PROTOBUF,
            Protocol::HttpJson => JSON,
        }
    }

    /// A request as the body or message of this protocol.
    pub fn encode(self, request: &ExportTraceServiceRequest) -> Bytes {
        match self {
            Protocol::HttpJson => Bytes::from(serde_json::to_vec(request).unwrap()),
            Protocol::Grpc | Protocol::HttpProtobuf => Bytes::from(request.encode_to_vec()),
        }
    }
}

/// What the answer means, in whatever protocol it came.
#[derive(Debug, PartialEq)]
pub enum Meaning {
    /// Success; how many spans were rejected, if the answer says.
    Success(Option<i64>),
    /// Not what an OTLP receiver may say.
    Nonsense(String),
    /// Refused: HTTP status (gRPC code), and what the status message holds.
    Refused { code: u16, status: Result<Status, String> },
}

impl Target {
    pub fn is_foreign() -> bool {
        std::env::var_os("OTLP_TARGET_GRPC").is_some()
    }

    pub fn start() -> Target {
        let foreign = |name| {
            std::env::var(name)
                .ok()
                .map(|address| address.parse().expect("an address and port"))
        };
        match (foreign("OTLP_TARGET_GRPC"), foreign("OTLP_TARGET_HTTP")) {
            (Some(grpc), Some(http)) => Target { grpc, http, _own: None },
            _ => {
                let own = Fixture::start();
                Target {
                    grpc: own.grpc,
                    http: own.http,
                    _own: Some(own),
                }
            }
        }
    }

    /// Sends traces with further headers.
    pub async fn send(&self, protocol: Protocol, encoding: Encoding, body: &[u8]) -> Answer {
        let body = compress(encoding, body);
        let headers: &[(&str, &str)] = match (protocol, encoding) {
            (_, Encoding::Identity) => &[],
            (Protocol::Grpc, _) => &[("grpc-encoding", encoding.token())],
            (_, _) => &[("content-encoding", encoding.token())],
        };
        match protocol {
            Protocol::Grpc => {
                let flag = u8::from(encoding != Encoding::Identity);
                self.call(self.grpc, GRPC_TRACES, headers, fixture::framed(flag, &body))
                    .await
            }
            _ => self.http(protocol, Method::POST, "/v1/traces", headers, body).await,
        }
    }

    /// Sends something over HTTP in the content type of the protocol.
    pub async fn http(
        &self,
        protocol: Protocol,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let mut all = vec![("content-type", protocol.content_type())];
        all.extend(headers);
        let client = Client::builder(TokioExecutor::new()).build_http();
        fixture::send(client, fixture::request(method, self.http, path, &all, body)).await
    }

    pub async fn call(&self, to: SocketAddr, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
        all.extend(headers);
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        fixture::send(client, fixture::request(Method::POST, to, path, &all, body)).await
    }

    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Sends a request of this protocol and says what the answer means.
    pub async fn ask(&self, protocol: Protocol, body: &[u8]) -> Meaning {
        meaning(protocol, &self.send(protocol, Encoding::Identity, body).await)
    }
}

/// What an answer means. An empty partial success is as good as none.
pub fn meaning(protocol: Protocol, answer: &Answer) -> Meaning {
    let is_success = match protocol {
        Protocol::Grpc => answer.grpc_status() == "0",
        Protocol::HttpProtobuf | Protocol::HttpJson => answer.status.is_success(),
    };
    if is_success {
        return match response(protocol, answer) {
            Ok(response) => {
                let partial = response.partial_success.filter(|it| *it != Default::default());
                Meaning::Success(partial.map(|it| it.rejected_spans))
            }
            Err(error) => Meaning::Nonsense(format!("not a response message: {error}")),
        };
    }
    if protocol != Protocol::Grpc {
        return Meaning::Refused {
            code: answer.status.as_u16(),
            status: http_status(protocol, answer),
        };
    }
    let code = answer.grpc_status();
    let status = answer.any_grpc_details().ok_or("no grpc-status-details-bin".to_owned());
    match code.parse() {
        Ok(code) => Meaning::Refused { code, status },
        Err(_) => Meaning::Nonsense(format!("grpc-status is {code:?}")),
    }
}

/// The message of a success.
pub fn response(protocol: Protocol, answer: &Answer) -> Result<ExportTraceServiceResponse, String> {
    match protocol {
        Protocol::Grpc => {
            let Some((&[flag, ..], message)) = answer.body.split_first_chunk::<5>() else {
                return Err("no message".to_owned());
            };
            let encoding = match flag {
                0 => Encoding::Identity,
                _ => {
                    let token = answer.headers.get("grpc-encoding").and_then(|it| it.to_str().ok());
                    token.and_then(Encoding::from_token).ok_or("an unknown compression")?
                }
            };
            let message = Bytes::copy_from_slice(message);
            let plain = decompress(encoding, &message, 1 << 20).map_err(|error| error.to_string())?;
            ExportTraceServiceResponse::decode(plain).map_err(|error| error.to_string())
        }
        Protocol::HttpProtobuf => {
            ExportTraceServiceResponse::decode(answer.body.clone()).map_err(|error| error.to_string())
        }
        Protocol::HttpJson => {
            let json: serde_json::Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
            let partial_success = json.get("partialSuccess").map(|partial| {
                let rejected = &partial["rejectedSpans"];
                let rejected = rejected.as_str().map_or(rejected.as_i64(), |it| it.parse().ok());
                ExportTracePartialSuccess {
                    rejected_spans: rejected.unwrap_or(0),
                    error_message: partial["errorMessage"].as_str().unwrap_or("").to_owned(),
                }
            });
            Ok(ExportTraceServiceResponse { partial_success })
        }
    }
}

/// The `google.rpc.Status` in an HTTP error, if its content type and its body are as they must be.
pub fn http_status(protocol: Protocol, answer: &Answer) -> Result<Status, String> {
    let content_type = answer
        .headers
        .get("content-type")
        .and_then(|it| it.to_str().ok())
        .unwrap_or("");
    if content_type != protocol.content_type() {
        return Err(format!("the content type is {content_type:?}"));
    }
    if protocol == Protocol::HttpProtobuf {
        return Status::decode(answer.body.clone()).map_err(|error| error.to_string());
    }
    let json: serde_json::Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    let details = json["details"].as_array().cloned().unwrap_or_default();
    Ok(Status {
        code: json["code"].as_i64().unwrap_or(0) as i32,
        message: json["message"].as_str().ok_or("no message")?.to_owned(),
        details: details
            .iter()
            .map(|detail| fixture::Any {
                type_url: detail["@type"].as_str().unwrap_or("").to_owned(),
                value: Vec::new(),
            })
            .collect(),
    })
}

/// A check that is made over several protocols alike.
pub async fn over<F: Future<Output = Outcome>>(protocols: &[Protocol], check: impl Fn(Protocol) -> F) -> Outcomes {
    let mut outcomes = Vec::new();
    for protocol in protocols {
        let outcome = met_or_panicked(check(*protocol)).await;
        outcomes.push((protocol.name(), outcome.unwrap_or_else(Outcome::Deviates)));
    }
    outcomes
}

/// What comes of a check, or what it panicked with: another receiver may do anything, such as not to answer at all.
pub async fn met_or_panicked<T>(check: impl Future<Output = T>) -> Result<T, String> {
    let mut check = std::pin::pin!(check);
    let outcome = std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| check.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Poll::Ready(Err(text.unwrap_or_default().replace('\n', " ")))
            }
        }
    });
    let outcome = tokio::time::timeout(PATIENCE, outcome).await;
    outcome.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}
