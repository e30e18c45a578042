//! The executors: requests over HTTP/1.1 or gRPC, as many in flight as wanted, or so many a second.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::traffic::{Form, Traffic};

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    Http,
}

/// Who sends what, and for how long.
#[derive(Clone)]
pub struct Load {
    pub protocol: Protocol,
    pub address: SocketAddr,
    pub connections: usize,
    /// On all connections together.
    pub in_flight: usize,
    /// The largest frame: without it as large as the receiver allows.
    pub frame: Option<usize>,
    pub form: Form,
    pub traffic: Arc<Traffic>,
    /// Requests per second; none: as fast as they are answered.
    pub rate: Option<f64>,
    pub until: Until,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    After(Duration),
    Spans(u64),
}

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Acknowledged.
    pub spans: u64,
    pub executions: u64,
    pub bytes: u64,
    pub requests: u64,
    pub refused: u64,
    pub seconds: f64,
    /// Of each acknowledged request, from when it was due until its answer; microseconds.
    pub latencies: Vec<u32>,
}

impl Sent {
    /// Milliseconds that this part of the requests did not exceed.
    pub fn latency(&self, part: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
        sorted
            .get(index)
            .map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
    }
}

/// No two requests of one run of the benchmark have the same number.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Sends until the end.
pub fn run(load: &Load) -> Sent {
    if NUMBER.load(Ordering::Relaxed) == 0 {
        // Nor of two runs that use the same database.
        let seconds = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        NUMBER.store(seconds << 24, Ordering::Relaxed);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // One of HTTP/1.1 carries one request at a time.
        let connections = match load.protocol {
            Protocol::Grpc => load.connections.min(load.in_flight),
            Protocol::Http => load.in_flight,
        };
        let mut opened = Vec::new();
        for _ in 0..connections {
            opened.push(Connection::open(load).await);
        }
        let shared: Vec<_> = (opened.iter().filter_map(Connection::share)).collect();
        let mut senders = opened;
        for index in connections..load.in_flight {
            senders.push(Connection::Http2(shared[index % connections].clone()));
        }
        let began = Instant::now();
        let taken = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = senders
            .into_iter()
            .map(|connection| tokio::spawn(worker(connection, load.clone(), began, taken.clone())))
            .collect();
        let mut sent = Sent::default();
        for task in tasks {
            let part = task.await.unwrap();
            sent.spans += part.spans;
            sent.executions += part.executions;
            sent.bytes += part.bytes;
            sent.requests += part.requests;
            sent.refused += part.refused;
            sent.latencies.extend(part.latencies);
        }
        sent.seconds = began.elapsed().as_secs_f64();
        sent
    })
}

async fn worker(mut connection: Connection, load: Load, began: Instant, taken: Arc<AtomicU64>) -> Sent {
    let mut sent = Sent::default();
    let uri = match load.protocol {
        Protocol::Grpc => format!(
            "http://{}/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            load.address
        ),
        Protocol::Http => "/v1/traces".to_owned(),
    };
    loop {
        let turn = taken.fetch_add(1, Ordering::Relaxed);
        let due = match load.rate {
            Some(rate) => began + Duration::from_secs_f64(turn as f64 / rate),
            None => Instant::now(),
        };
        let body = load
            .traffic
            .body(NUMBER.fetch_add(1, Ordering::Relaxed), load.protocol == Protocol::Grpc);
        let is_over = match load.until {
            Until::After(time) => due.duration_since(began) >= time,
            Until::Spans(spans) => turn * body.spans as u64 >= spans,
        };
        if is_over {
            return sent;
        }
        if load.rate.is_some() {
            tokio::time::sleep_until(due.into()).await;
        }
        let from = if load.rate.is_some() { due } else { Instant::now() };
        let length = body.bytes.len() as u64;
        let request = request(&load, &uri, body.bytes);
        if connection.send(request).await {
            sent.spans += body.spans as u64;
            sent.executions += body.executions as u64;
            sent.bytes += length;
            sent.requests += 1;
            sent.latencies.push(from.elapsed().as_micros() as u32);
        } else {
            sent.refused += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn request(load: &Load, uri: &str, body: Bytes) -> Request<Pieces> {
    let builder = Request::post(uri);
    let builder = match (load.protocol, load.form) {
        (Protocol::Grpc, form) => {
            let builder = builder
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            match form {
                Form::Gzip => builder.header("grpc-encoding", "gzip"),
                _ => builder,
            }
        }
        (Protocol::Http, form) => {
            let builder = builder.header("host", "localhost").header(
                "content-type",
                match form {
                    Form::Json => "application/json",
                    _ => "application/x-protobuf",
                },
            );
            match form {
                Form::Gzip => builder.header("content-encoding", "gzip"),
                _ => builder,
            }
        }
    };
    let piece = load.frame.unwrap_or(usize::MAX);
    builder.body(Pieces { rest: body, piece }).unwrap()
}

/// A body that is handed over in pieces of so many bytes.
struct Pieces {
    rest: Bytes,
    piece: usize,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.rest.len().min(self.piece);
        let piece = self.rest.split_to(length);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

enum Connection {
    Http1(http1::SendRequest<Pieces>),
    Http2(http2::SendRequest<Pieces>),
}

impl Connection {
    async fn open(load: &Load) -> Connection {
        let stream = TcpStream::connect(load.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = TokioIo::new(stream);
        match load.protocol {
            Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tokio::spawn(connection);
                Connection::Http2(sender)
            }
            Protocol::Http => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                Connection::Http1(sender)
            }
        }
    }

    /// The same connection for a further request at a time.
    fn share(&self) -> Option<http2::SendRequest<Pieces>> {
        match self {
            Connection::Http1(_) => None,
            Connection::Http2(sender) => Some(sender.clone()),
        }
    }

    /// Whether it was acknowledged.
    async fn send(&mut self, request: Request<Pieces>) -> bool {
        match self {
            Connection::Http1(sender) => {
                if sender.ready().await.is_err() {
                    return false;
                }
                match sender.send_request(request).await {
                    Ok(response) => {
                        let is_ok = response.status().is_success();
                        response.into_body().collect().await.is_ok() && is_ok
                    }
                    Err(_) => false,
                }
            }
            Connection::Http2(sender) => match sender.send_request(request).await {
                Ok(response) => grpc_status(response).await.as_deref() == Some("0"),
                Err(_) => false,
            },
        }
    }
}

async fn grpc_status(response: Response<Incoming>) -> Option<String> {
    let text = |headers: &http::HeaderMap| Some(headers.get("grpc-status")?.to_str().ok()?.to_owned());
    if let Some(status) = text(response.headers()) {
        return Some(status);
    }
    let collected = response.into_body().collect().await.ok()?;
    text(collected.trailers()?)
}
