//! Sends trace requests over every protocol and encoding the program takes.

use super::http::{Answer, Body, Http, chunked, whole};
use super::program::Program;
use super::spans;
use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Request;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use std::io::Write;
use std::net::SocketAddr;

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Grpc,
    GrpcGzip,
    Http,
    HttpGzip,
    HttpZstd,
    HttpJson,
    HttpJsonGzip,
    HttpJsonChunked,
}

/// All of them.
pub const ROUTES: [Route; 8] = [
    Route::Grpc,
    Route::GrpcGzip,
    Route::Http,
    Route::HttpGzip,
    Route::HttpZstd,
    Route::HttpJson,
    Route::HttpJsonGzip,
    Route::HttpJsonChunked,
];

/// What became of a request, as far as its sender can know.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Acknowledged, with so many spans rejected and the message that says why.
    Accepted(i64, String),
    /// Refused: what the status and the message were, and whether sending it again is asked for.
    Refused(String, bool),
    /// No answer: it may or may not have arrived.
    Unknown(String),
}

impl Outcome {
    /// Whether it was acknowledged as a whole.
    pub fn is_acknowledged(&self) -> bool {
        matches!(self, Outcome::Accepted(0, _))
    }
}

/// A body in the form and encoding in which a route carries it. Kept by a sender that sends again: the bytes must be the
/// same ones.
#[derive(Debug, Clone)]
pub struct Prepared {
    route: Route,
    pub body: Bytes,
}

impl Prepared {
    /// Encodes a request for a route.
    pub fn new(route: Route, request: &ExportTraceServiceRequest) -> Prepared {
        match route {
            Route::HttpJson | Route::HttpJsonGzip | Route::HttpJsonChunked => {
                Prepared::encoded(route, spans::json(request).into())
            }
            _ => Prepared::encoded(route, request.encode_to_vec().into()),
        }
    }

    /// Takes a message as it is and only compresses it if the route does.
    pub fn encoded(route: Route, message: Bytes) -> Prepared {
        let body = match route {
            Route::GrpcGzip | Route::HttpGzip | Route::HttpJsonGzip => gzip(&message),
            Route::HttpZstd => zstd::encode_all(&message[..], 1).unwrap().into(),
            _ => message,
        };
        Prepared { route, body }
    }
}

/// Compresses.
pub fn gzip(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap().into()
}

/// One executor's connections to the program.
pub struct Sender {
    grpc: SocketAddr,
    http: SocketAddr,
    http1: Http,
    http2: Http,
}

impl Sender {
    /// A sender with connections of its own.
    pub async fn to(program: &Program) -> Sender {
        let (grpc, http) = (program.address("otlp_grpc").await, program.address("otlp_http").await);
        Sender {
            grpc,
            http,
            http1: Http::new(),
            http2: Http::h2(),
        }
    }

    /// Encodes and sends.
    pub async fn send(&self, route: Route, request: &ExportTraceServiceRequest) -> Outcome {
        self.deliver(&Prepared::new(route, request)).await
    }

    /// Sends, and panics unless all of it is acknowledged.
    pub async fn accepted(&self, route: Route, request: &ExportTraceServiceRequest) {
        let outcome = self.send(route, request).await;
        assert!(outcome.is_acknowledged(), "{route:?}: {outcome:?}");
    }

    /// Sends what was encoded before.
    pub async fn deliver(&self, prepared: &Prepared) -> Outcome {
        let body = prepared.body.clone();
        match prepared.route {
            Route::Grpc => self.grpc(body, None).await,
            Route::GrpcGzip => self.grpc(body, Some("gzip")).await,
            Route::Http => self.http("application/x-protobuf", None, whole(body)).await,
            Route::HttpGzip => self.http("application/x-protobuf", Some("gzip"), whole(body)).await,
            Route::HttpZstd => self.http("application/x-protobuf", Some("zstd"), whole(body)).await,
            Route::HttpJson => self.http("application/json", None, whole(body)).await,
            Route::HttpJsonGzip => self.http("application/json", Some("gzip"), whole(body)).await,
            Route::HttpJsonChunked => self.http("application/json", None, chunked(&body)).await,
        }
    }

    async fn http(&self, content_type: &str, encoding: Option<&str>, body: Body) -> Outcome {
        let mut request = Request::post(format!("http://{}/v1/traces", self.http)).header("content-type", content_type);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let answer = match self.http1.send(request.body(body).unwrap()).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Unknown(error),
        };
        if answer.status != 200 {
            let again = [429, 502, 503, 504].contains(&answer.status);
            return Outcome::Refused(format!("{} {}", answer.status, answer.text()), again);
        }
        assert_eq!(
            answer.header("content-type"),
            content_type,
            "an answer is in the form of its request"
        );
        if content_type == "application/json" {
            let answer: serde_json::Value = serde_json::from_slice(&answer.body).expect("a JSON answer");
            let partial = &answer["partialSuccess"];
            let rejected = match &partial["rejectedSpans"] {
                serde_json::Value::String(text) => text.parse().unwrap(),
                other => other.as_i64().unwrap_or(0),
            };
            return Outcome::Accepted(
                rejected,
                partial["errorMessage"].as_str().unwrap_or_default().to_owned(),
            );
        }
        accepted(answer.body)
    }

    async fn grpc(&self, body: Bytes, encoding: Option<&str>) -> Outcome {
        let answer = match grpc_call(&self.http2, self.grpc, &body, encoding).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Unknown(error),
        };
        match answer.header("grpc-status") {
            "0" => accepted(answer.body.slice(5..)),
            "" => Outcome::Unknown("no grpc-status".to_owned()),
            // As OTLP has it: UNAVAILABLE and some others, and RESOURCE_EXHAUSTED when it says when to come back.
            status => {
                let has_details = !answer.header("grpc-status-details-bin").is_empty();
                let again = ["1", "4", "10", "11", "14", "15"].contains(&status) || (status == "8" && has_details);
                Outcome::Refused(format!("grpc-status {status} {}", answer.header("grpc-message")), again)
            }
        }
    }
}

fn accepted(body: Bytes) -> Outcome {
    let answer = ExportTraceServiceResponse::decode(body).expect("an ExportTraceServiceResponse");
    let partial = answer.partial_success.unwrap_or_default();
    Outcome::Accepted(partial.rejected_spans, partial.error_message)
}

/// One gRPC call of the trace service with any bytes as its message.
pub async fn grpc_call(
    client: &Http,
    address: SocketAddr,
    message: &[u8],
    encoding: Option<&str>,
) -> Result<Answer, String> {
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    grpc_call_to(client, address, path, message, encoding).await
}

/// One gRPC call of any method.
pub async fn grpc_call_to(
    client: &Http,
    address: SocketAddr,
    path: &str,
    message: &[u8],
    encoding: Option<&str>,
) -> Result<Answer, String> {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(u8::from(encoding.is_some()));
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    let mut request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    client.send(request.body(whole(frame.freeze())).unwrap()).await
}
