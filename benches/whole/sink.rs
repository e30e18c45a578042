//! The backend: takes OTLP over HTTP/1.1 and gRPC on one port, counts, and answers at once. Frames of HTTP/2 are of
//! 16 KiB, which is what most backends ask for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use spanledger::otlp::TraceRequest;

/// A listening backend, on a thread of its own.
pub struct Sink {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    spans: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Of uncompressed requests.
    pub spans: u64,
    /// Of all bodies, as they came.
    pub bytes: u64,
    pub requests: u64,
}

impl Sink {
    /// Listens on an address.
    pub fn start(address: SocketAddr) -> Sink {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let counting = counts.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(listener, counting));
        });
        Sink { address, counts }
    }

    pub fn received(&self) -> Received {
        Received {
            spans: self.counts.spans.load(Ordering::Relaxed),
            bytes: self.counts.bytes.load(Ordering::Relaxed),
            requests: self.counts.requests.load(Ordering::Relaxed),
        }
    }
}

async fn serve(listener: std::net::TcpListener, counts: Arc<Counts>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let counts = counts.clone();
        tokio::spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().max_buf_size(1 << 20);
            builder
                .http2()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20);
            let service = hyper::service::service_fn(move |request| answer(request, counts.clone()));
            // A connection that breaks shows in the counts.
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    counts: Arc<Counts>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let is_grpc =
        (head.headers.get("content-type")).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let mut collected = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            collected.extend_from_slice(&data);
        }
    }
    let collected = collected.freeze();
    let is_plain = match is_grpc {
        true => collected.first() == Some(&0),
        false => !head.headers.contains_key("content-encoding"),
    };
    let message = if is_grpc {
        collected.slice(5.min(collected.len())..)
    } else {
        collected
    };
    counts.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
    counts.requests.fetch_add(1, Ordering::Relaxed);
    if is_plain {
        let spans = TraceRequest::trusted(message).span_count();
        counts.spans.fetch_add(spans as u64, Ordering::Relaxed);
    }
    let mut response = Response::new(if is_grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Full::new(Bytes::from_static(&[0; 5]))
            .with_trailers(std::future::ready(Some(Ok(trailers))))
            .boxed()
    } else {
        Full::default().boxed()
    });
    response.headers_mut().insert(
        "content-type",
        HeaderValue::from_static(if is_grpc {
            "application/grpc"
        } else {
            "application/x-protobuf"
        }),
    );
    Ok(response)
}
