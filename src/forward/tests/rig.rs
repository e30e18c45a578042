//! A backend that answers as it is told, and a journal with a forwarder in front of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::forward::{ExporterOptions, Forwarder, RetryOptions, Setup, refused_directory};
use crate::journal::{Entry, Journal, Options, Position, load_position};
use crate::otlp::{Encoding, Signal, compress, decompress};
use crate::telemetry::Health;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the backend received.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Without gRPC's prefix.
    pub(super) body: Bytes,
    pub(super) is_compressed_message: bool,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn decoded(&self) -> Bytes {
        let token = [self.header("content-encoding"), self.header("grpc-encoding")].concat();
        decompress(Encoding::from_token(&token).unwrap(), &self.body, 1 << 30).unwrap()
    }

    /// The names of the spans.
    pub(super) fn names(&self) -> Vec<String> {
        names(&self.decoded())
    }
}

/// What the backend answers.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Http {
        status: u16,
        headers: Vec<(&'static str, &'static str)>,
        body: Bytes,
    },
    Grpc {
        code: u16,
        message: &'static str,
        details: Vec<u8>,
    },
    /// Only headers, no message.
    GrpcHeaders { code: u16, message: &'static str },
    /// The connection (gRPC: the stream) is closed without an answer.
    Reset,
    /// No answer, ever.
    Silence,
}

impl Reply {
    pub(super) fn status(status: u16) -> Reply {
        Reply::Http {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    pub(super) fn grpc(code: u16, message: &'static str) -> Reply {
        Reply::Grpc {
            code,
            message,
            details: Vec::new(),
        }
    }
}

type Answers = dyn Fn(usize, &Received) -> Reply + Send + Sync;

/// A backend.
pub(super) struct Sink {
    pub(super) address: SocketAddr,
    received: mpsc::Receiver<Received>,
    server: JoinHandle<()>,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Sink {
    /// `answers` is asked with the number of the request (0 is the first) and the request.
    pub(super) async fn start(answers: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Sink {
        Sink::start_at("127.0.0.1:0", None, answers).await
    }

    pub(super) async fn start_at(
        address: &str,
        tls: Option<TlsAcceptor>,
        answers: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static,
    ) -> Sink {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, received) = mpsc::channel(100_000);
        let answers: Arc<Answers> = Arc::new(answers);
        let count = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, answers, count) = (sender.clone(), Arc::clone(&answers), Arc::clone(&count));
                let service = move |request| answer(request, sender.clone(), Arc::clone(&answers), Arc::clone(&count));
                connections.spawn(serve(stream, tls.clone(), service));
            }
        });
        Sink {
            address,
            received,
            server,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for the next request.
    pub(super) async fn next(&mut self) -> Received {
        let next = tokio::time::timeout(PATIENCE, self.received.recv());
        next.await.expect("a request arrives in time").unwrap()
    }

    /// Waits until so many different spans have arrived; returns all names in the order of arrival.
    pub(super) async fn next_spans(&mut self, count: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        while names.iter().collect::<std::collections::HashSet<_>>().len() < count {
            names.extend(self.next().await.names());
        }
        names
    }

    /// What has arrived and was not taken yet.
    pub(super) fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn serve<S, F>(stream: TcpStream, tls: Option<TlsAcceptor>, service: S)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error>> + Send + 'static,
{
    stream.set_nodelay(true).unwrap();
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(service);
    // A connection that ends badly is what many tests ask for.
    match tls {
        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    sender: mpsc::Sender<Received>,
    answers: Arc<Answers>,
    count: Arc<AtomicUsize>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Err(std::io::Error::other("cut off"));
    };
    let mut body = body.to_bytes();
    let mut is_compressed_message = false;
    if head
        .headers
        .get("content-type")
        .is_some_and(|value| value == "application/grpc")
    {
        let prefix = body.split_to(5);
        is_compressed_message = prefix[0] == 1;
        assert_eq!(u32::from_be_bytes(*prefix.last_chunk().unwrap()) as usize, body.len());
    }
    let received = Received {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body,
        is_compressed_message,
    };
    let reply = answers(count.fetch_add(1, Ordering::SeqCst), &received);
    sender.send(received).await.unwrap();
    let full = |body: Bytes| BoxBody::new(Full::new(body));
    let grpc_headers = |code: u16, message: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from(code));
        headers.insert("grpc-message", HeaderValue::from_static(message));
        headers
    };
    let mut response = Response::new(full(Bytes::new()));
    match reply {
        Reply::Http { status, headers, body } => {
            *response.status_mut() = status.try_into().unwrap();
            for (name, value) in headers {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            *response.body_mut() = full(body);
        }
        Reply::Grpc { code, message, details } => {
            let mut trailers = grpc_headers(code, message);
            if !details.is_empty() {
                use base64::Engine;
                let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(details);
                trailers.insert("grpc-status-details-bin", HeaderValue::from_str(&details).unwrap());
            }
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            let message = if code == 0 {
                Bytes::from_static(&[0; 5])
            } else {
                Bytes::new()
            };
            *response.body_mut() = Full::new(message)
                .with_trailers(async move { Some(Ok(trailers)) })
                .boxed();
        }
        Reply::GrpcHeaders { code, message } => {
            *response.headers_mut() = grpc_headers(code, message);
        }
        Reply::Reset => return Err(std::io::Error::other("reset")),
        Reply::Silence => std::future::pending().await,
    }
    Ok(response)
}

/// A request with one span for each name.
pub(super) fn request<'a>(names: impl IntoIterator<Item = &'a str>) -> Bytes {
    let span = |name: &str| Span {
        name: name.to_owned(),
        trace_id: vec![7; 16],
        span_id: vec![9; 8],
        ..Span::default()
    };
    let spans = names.into_iter().map(span).collect();
    let scope_spans = vec![ScopeSpans {
        spans,
        schema_url: "urn:scope".into(),
        ..ScopeSpans::default()
    }];
    let resource_spans = vec![ResourceSpans {
        scope_spans,
        ..ResourceSpans::default()
    }];
    Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec())
}

/// The names of the spans in a request.
pub(super) fn names(body: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
}

/// A journal on disk and the settings of a forwarder.
pub(super) struct Rig {
    pub(super) directory: tempfile::TempDir,
    pub(super) journal: Journal,
    pub(super) options: ExporterOptions,
    pub(super) shutdown_timeout: Duration,
    pub(super) health: Health,
}

/// A forwarder that runs.
pub(super) struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Shuts it down as SIGTERM would, and waits for its end.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the forwarder ends in time")
            .unwrap();
    }

    /// Ends it as SIGKILL would.
    pub(super) async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

impl Rig {
    /// Tries again after 10 ms, at most every 50 ms.
    pub(super) fn new(endpoint: &str) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::new(directory.path().join("journal"));
        options.readers = vec!["otlp".to_owned(), "otlp/second".to_owned()];
        options.max_size = 256 << 20;
        let (journal, _) = Journal::open(options).unwrap();
        let retry_on_failure = RetryOptions {
            initial_interval: Duration::from_millis(10),
            max_interval: Duration::from_millis(50),
            ..RetryOptions::default()
        };
        let options = ExporterOptions {
            endpoint: endpoint.into(),
            retry_on_failure,
            ..ExporterOptions::default()
        };
        Rig {
            directory,
            journal,
            options,
            shutdown_timeout: Duration::from_secs(10),
            health: Health::default(),
        }
    }

    pub(super) async fn append(&self, signal: Signal, encoding: Encoding, decoded: Bytes) -> Bytes {
        let body = if encoding == Encoding::Identity {
            decoded.clone()
        } else {
            compress(encoding, &decoded)
        };
        let items = if signal == Signal::Traces {
            names(&decoded).len() as u32
        } else {
            1
        };
        let entry = Entry {
            signal,
            encoding,
            received_at: 1_700_000_000_000_000_000,
            items,
            rejected: 0,
            digest: None,
            body: body.clone(),
            decoded,
            noted: None,
        };
        self.journal.append(entry).unwrap().durable.await.unwrap();
        body
    }

    /// Appends one item that may be anything.
    pub(super) async fn append_unchecked(&self, signal: Signal, body: Bytes) {
        let entry = Entry {
            signal,
            encoding: Encoding::Identity,
            received_at: 1_700_000_000_000_000_000,
            items: 1,
            rejected: 0,
            digest: None,
            body: body.clone(),
            decoded: body,
            noted: None,
        };
        self.journal.append(entry).unwrap().durable.await.unwrap();
    }

    /// Appends an uncompressed trace request.
    pub(super) async fn spans<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        self.append(Signal::Traces, Encoding::Identity, request(names)).await;
    }

    pub(super) fn start(&self) -> Running {
        self.start_as("otlp", &self.options)
    }

    pub(super) fn start_as(&self, name: &str, options: &ExporterOptions) -> Running {
        let setup = Setup {
            name: name.to_owned(),
            options: options.clone(),
            journal: self.journal.id(),
            positions: self.positions(),
            refused: refused_directory(&self.directory.path().join("refused"), name),
            shutdown_timeout: self.shutdown_timeout,
        };
        let forwarder = Forwarder::new(setup, self.journal.reader(name).unwrap()).unwrap();
        let shutdown = CancellationToken::new();
        let heartbeat = self.health.stage(name);
        let status = heartbeat.status();
        let task = tokio::spawn(forwarder.run(shutdown.clone(), heartbeat, status));
        Running { shutdown, task }
    }

    pub(super) fn positions(&self) -> PathBuf {
        self.directory.path().join("positions")
    }

    pub(super) fn refused(&self) -> PathBuf {
        refused_directory(&self.directory.path().join("refused"), "otlp")
    }

    /// The sequence that the saved position stands before.
    pub(super) fn saved(&self) -> Option<u64> {
        load_position(&self.positions(), "otlp")
            .unwrap()
            .map(|position: Position| position.next)
    }

    /// The sequence behind the last record.
    pub(super) fn end(&self) -> u64 {
        self.journal.status().next
    }

    pub(super) fn degraded(&self) -> Option<String> {
        self.health
            .report(std::time::Instant::now())
            .last()
            .and_then(|stage| stage.degraded.clone())
    }

    pub(super) fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}
