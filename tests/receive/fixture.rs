//! A running receiver on a journal of its own, senders, and requests to send.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use spanledger::journal::{Journal, Options, Reader, Record};
use spanledger::receive::{ReceiveOptions, Receivers};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const GRPC_TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
pub const PROTOBUF: &str = "application/x-protobuf";
pub const JSON: &str = "application/json";

/// A running receiver.
pub struct Fixture {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub journal: Journal,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
    reader: Reader,
    _directory: TempDir,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

/// `google.rpc.Status` as it is on the wire.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Fixture {
    pub fn start() -> Fixture {
        Fixture::with(|_, _| {})
    }

    /// Starts after `change` of the options.
    pub fn with(change: impl FnOnce(&mut ReceiveOptions, &mut Options)) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let mut journal_options = Options::new(directory.path().join("journal"));
        journal_options.max_size = 512 << 20;
        journal_options.segment_size = Some(4 << 20);
        journal_options.readers = vec!["test".to_owned()];
        let mut options = ReceiveOptions::default();
        options.grpc.as_mut().unwrap().endpoint = "127.0.0.1:0".to_owned();
        options.http.as_mut().unwrap().endpoint = "127.0.0.1:0".to_owned();
        change(&mut options, &mut journal_options);

        let (journal, _) = Journal::open(journal_options).unwrap();
        let mut reader = journal.reader("test").unwrap();
        reader.resume(None);
        let receivers = Receivers::bind(&options, journal.clone()).unwrap();
        let addresses: HashMap<_, _> = receivers
            .addresses()
            .map(|(name, address)| (name, address.tcp().unwrap()))
            .collect();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(receivers.serve(shutdown.clone()));
        Fixture {
            grpc: addresses["otlp_grpc"],
            http: addresses["otlp_http"],
            journal,
            shutdown,
            serving,
            reader,
            _directory: directory,
        }
    }

    /// Every record that was not asked for yet.
    pub fn journalled(&mut self) -> Vec<Record> {
        self.reader.try_next_batch(usize::MAX, usize::MAX).unwrap()
    }

    /// Sends over HTTP/1.1 to the HTTP port.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.request(Method::POST, path, headers, body).await
    }

    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        send(client, request(method, self.http, path, headers, body.into())).await
    }

    /// Sends one message by gRPC to the gRPC port.
    pub async fn call(&self, path: &str, headers: &[(&str, &str)], flag: u8, message: &[u8]) -> Answer {
        self.call_raw(path, headers, framed(flag, message)).await
    }

    /// Sends a body as it is as the body of a gRPC call.
    pub async fn call_raw(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
        all.extend(headers);
        send(client, request(Method::POST, self.grpc, path, &all, body)).await
    }
}

pub fn request(
    method: Method,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body)).unwrap()
}

pub async fn send(client: Client<HttpConnector, Full<Bytes>>, request: Request<Full<Bytes>>) -> Answer {
    Answer::from(client.request(request).await.unwrap()).await
}

/// Sends bytes as they are, and reads one answer of HTTP/1.1 and the end of the connection.
pub async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut received = Vec::new();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), stream.read_to_end(&mut received));
    ended.await.expect("the connection does not end").unwrap();
    Answer::parse(&received)
}

/// A gRPC message with its prefix.
pub fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut body = vec![flag];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    Bytes::from(body)
}

impl Answer {
    pub async fn from(response: Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Answer {
            status: head.status,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        }
    }

    /// One answer of HTTP/1.1 with nothing behind it.
    pub fn parse(received: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(received);
        let end = received.windows(4).position(|it| it == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer of HTTP/1.1: {text:?}"));
        let mut lines = text[..end].split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5));
        let status = status.unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let body = Bytes::copy_from_slice(&received[end + 4..]);
        if let Some(length) = headers.get("content-length") {
            assert_eq!(length, &body.len().to_string(), "{text:?}");
        }
        let trailers = HeaderMap::new();
        Answer {
            status,
            headers,
            body,
            trailers,
        }
    }

    pub fn content_type(&self) -> &str {
        self.headers["content-type"].to_str().unwrap()
    }

    /// The `google.rpc.Status` of an HTTP error in protobuf.
    pub fn protobuf_status(&self) -> Status {
        assert_eq!(self.content_type(), PROTOBUF);
        Status::decode(self.body.clone()).unwrap()
    }

    /// The `google.rpc.Status` of an HTTP error in JSON.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.content_type(), JSON);
        serde_json::from_slice(&self.body).unwrap()
    }

    /// `grpc-status`, wherever it stands.
    pub fn grpc_status(&self) -> &str {
        assert_eq!(self.status, StatusCode::OK, "gRPC errors are not HTTP errors");
        assert_eq!(self.content_type(), "application/grpc");
        self.headers
            .get("grpc-status")
            .or(self.trailers.get("grpc-status"))
            .unwrap()
            .to_str()
            .unwrap()
    }

    pub fn grpc_message(&self) -> &str {
        self.headers["grpc-message"].to_str().unwrap()
    }

    /// `grpc-status-details-bin`.
    pub fn grpc_details(&self) -> Status {
        self.any_grpc_details().expect("grpc-status-details-bin")
    }

    /// The same, wherever it stands and if it is there.
    pub fn any_grpc_details(&self) -> Option<Status> {
        use base64::Engine;
        const NAME: &str = "grpc-status-details-bin";
        let text = self.headers.get(NAME).or(self.trailers.get(NAME))?;
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text.as_bytes());
        Some(Status::decode(Bytes::from(bytes.unwrap())).unwrap())
    }
}

impl Status {
    pub fn detail_types(&self) -> Vec<&str> {
        self.details
            .iter()
            .map(|any| any.type_url.rsplit('.').next().unwrap())
            .collect()
    }
}

pub fn span(name: &str, id: u8) -> Span {
    Span {
        trace_id: vec![id; 16],
        span_id: vec![id; 8],
        name: name.to_owned(),
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_007_000_000,
        attributes: vec![KeyValue {
            key: "code.runtime".to_owned(),
            value: Some(AnyValue {
                value: Some(Value::StringValue("vm2".to_owned())),
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn traces_of(spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans,
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

/// A trace request of one span.
pub fn traces(id: u8) -> ExportTraceServiceRequest {
    traces_of(vec![span("code.execute", id)])
}

pub fn traces_bytes(id: u8) -> Vec<u8> {
    traces(id).encode_to_vec()
}

pub fn metrics() -> ExportMetricsServiceRequest {
    let gauge = Gauge {
        data_points: vec![NumberDataPoint::default(), NumberDataPoint::default()],
    };
    let metric = Metric {
        name: "process.cpu".to_owned(),
        data: Some(Data::Gauge(gauge)),
        ..Default::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            scope_metrics: vec![ScopeMetrics {
                metrics: vec![metric],
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

pub fn logs() -> ExportLogsServiceRequest {
    let record = LogRecord {
        severity_text: "INFO".to_owned(),
        ..Default::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records: vec![record; 3],
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

/// What the JavaScript exporter sends for one span.
pub const JSON_TRACES: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"process.command_args","value":{"arrayValue":{"values":[{"stringValue":"node"}]}}}],"droppedAttributesCount":0},"scopeSpans":[{"scope":{"name":"sos"},"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"code.execute","kind":1,"startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000007000000","attributes":[{"key":"code.duration_ms","value":{"intValue":7}},{"key":"code.memory_mb","value":{"doubleValue":null}},{"key":"code.runtime","value":{"stringValue":"vm2"}}],"droppedAttributesCount":0,"events":[],"droppedEventsCount":0,"status":{"code":1},"links":[],"droppedLinksCount":0,"flags":257}]}]}]}"#;
