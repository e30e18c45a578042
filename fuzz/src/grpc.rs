//! Any bytes as the messages of a gRPC call, in frames of any size, and any bytes after the preface of HTTP/2: every call
//! has a status, every connection ends, and what is accepted is whole.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::server::{PATIENCE, Server, exclusive};

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

const METHODS: [&str; 8] = [
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/none",
];
const ENCODINGS: [&str; 8] = ["identity", "gzip", "zstd", "deflate", "snappy", "lz4", "br", ""];

/// A peer that sends more frames of next to nothing than this may be sent away instead of being answered.
const FRAMES: usize = 64;

/// A body in frames.
struct Frames(VecDeque<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// One input. The first byte says what it is.
pub fn run(data: &[u8]) {
    let Some((&[how, kind, size], rest)) = data.split_first_chunk() else {
        return;
    };
    let _turn = exclusive();
    let server = &*SERVER;
    if how % 3 == 0 {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend(rest);
        server.runtime.block_on(Server::exchange(server.grpc, &bytes, true));
    } else {
        let mut body = Vec::new();
        if how % 3 == 1 {
            // A prefix that tells the truth, so that the message is looked into.
            body.push(u8::from(kind >> 3 & 7 != 0));
            body.extend((rest.len() as u32).to_be_bytes());
        }
        body.extend(rest);
        let size = (usize::from(size) + 1).max(body.len().div_ceil(FRAMES));
        let frames = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let call = call(
            server,
            METHODS[usize::from(kind & 7)],
            ENCODINGS[usize::from(kind >> 3 & 7)],
            frames,
        );
        let status = server.runtime.block_on(async {
            let call = tokio::time::timeout(PATIENCE, call);
            call.await.expect("the call does not end")
        });
        let status: u8 = status.parse().expect("a status");
        assert!(!matches!(status, 2 | 13 | 15), "status {status}");
    }
    server.check_journal();
}

async fn call(server: &Server, method: &str, encoding: &str, frames: VecDeque<Bytes>) -> String {
    let stream = TcpStream::connect(server.grpc).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{}{method}", server.grpc))
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .body(Frames(frames))
        .unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let status = |headers: &HeaderMap| Some(headers.get("grpc-status")?.to_str().unwrap().to_owned());
    drop(sender);
    connection.abort();
    status(&head.headers).or_else(|| status(&trailers)).expect("a status")
}
