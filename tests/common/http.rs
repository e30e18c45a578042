//! A small HTTP client: one value is one pool of connections.

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A request's body.
pub type Body = BoxBody<Bytes, Infallible>;

/// A client of HTTP/1.1, or of HTTP/2 without TLS.
#[derive(Clone)]
pub struct Http(Client<HttpConnector, Body>);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Trailers, where gRPC puts its status.
    pub trailers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, whatever it is.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header or trailer, `""` when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .or_else(|| self.trailers.get(name))
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

/// A body of known length.
pub fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// A body whose length is not announced, in pieces: what Node.js sends.
pub fn chunked(body: &Bytes) -> Body {
    // About five pieces, whatever the size, so that a small body is cut too.
    let size = (body.len() / 5).max(1);
    let pieces: Vec<_> = (0..body.len())
        .step_by(size)
        .map(|at| body.slice(at..(at + size).min(body.len())))
        .collect();
    BodyExt::boxed(Pieces(pieces.into_iter()))
}

/// The pieces of a chunked body, all there at once. It leaves `size_hint` unknown, which is the point of it.
struct Pieces(std::vec::IntoIter<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }
}

impl Http {
    /// HTTP/1.1 with its own connections.
    pub fn new() -> Http {
        Http(Client::builder(TokioExecutor::new()).build_http())
    }

    /// HTTP/2 without TLS, as gRPC speaks it.
    pub fn h2() -> Http {
        Http(Client::builder(TokioExecutor::new()).http2_only(true).build_http())
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, String> {
        let exchange = async {
            let answer = self.0.request(request).await.map_err(|error| format!("{error:?}"))?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                trailers,
                body: body.to_bytes(),
            })
        };
        super::in_time(exchange).await.ok_or("no answer")?
    }

    /// GET.
    pub async fn get(&self, url: &str) -> Result<Answer, String> {
        self.send(Request::get(url).body(whole("")).unwrap()).await
    }

    /// POST with a content type.
    pub async fn post(&self, url: &str, content_type: &str, body: impl Into<Bytes>) -> Result<Answer, String> {
        self.send(
            Request::post(url)
                .header("content-type", content_type)
                .body(whole(body))
                .unwrap(),
        )
        .await
    }
}

/// GET over a connection of its own that is closed afterwards.
pub async fn get(url: &str) -> Result<Answer, String> {
    Http::new().get(url).await
}

/// Sends bytes as they are over a fresh connection and returns whatever comes back until it is closed.
pub async fn raw(address: std::net::SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// What hyper needs to serve or use a tokio stream.
pub fn io(stream: tokio::net::TcpStream) -> TokioIo<tokio::net::TcpStream> {
    TokioIo::new(stream)
}
