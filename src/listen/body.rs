//! The one response body of all listeners.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;

use super::connection::InFlight;

/// The error of streamed bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response body: nothing, bytes, bytes and trailers (gRPC), or a stream (server-sent events).
///
/// It keeps its request counted as in flight until it is sent or dropped.
#[derive(Default)]
pub struct Body {
    content: Content,
    /// It never waits for what is to be sent.
    is_ready: bool,
    in_flight: Option<InFlight>,
}

#[derive(Default)]
enum Content {
    #[default]
    End,
    Bytes(Bytes, Option<Box<HeaderMap>>),
    Trailers(Box<HeaderMap>),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// No body: over HTTP/2 the head ends the stream.
    pub fn empty() -> Body {
        Body::default()
    }

    /// Bytes followed by trailers.
    pub fn with_trailers(bytes: Bytes, trailers: HeaderMap) -> Body {
        Body {
            content: Content::Bytes(bytes, Some(Box::new(trailers))),
            ..Body::default()
        }
    }

    /// A body that is there already, and only made while it is sent: a peer that does not take it is cut.
    pub fn ready<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Body {
            is_ready: true,
            ..Body::stream(body)
        }
    }

    /// A body that comes into being while it is sent.
    pub fn stream<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Body {
            content: Content::Stream(body.map_err(Into::into).boxed_unsync()),
            ..Body::default()
        }
    }

    /// The bytes, of a body that is made of nothing else.
    pub(super) fn into_bytes(self) -> Bytes {
        match self.content {
            Content::Bytes(bytes, _) => bytes,
            Content::End | Content::Trailers(_) | Content::Stream(_) => Bytes::new(),
        }
    }

    /// Counts the request as in flight until this body is sent.
    pub(super) fn holding(mut self, mut in_flight: InFlight) -> Body {
        // A stream may wait for what is to be sent; only its stalled writes count against the peer.
        if self.is_ready || !matches!(self.content, Content::Stream(_)) {
            in_flight.answered();
        }
        self.in_flight = Some(in_flight);
        self
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        let content = if bytes.is_empty() {
            Content::End
        } else {
            Content::Bytes(bytes, None)
        };
        Body {
            content,
            ..Body::default()
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::from(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<Full<Bytes>> for Body {
    fn from(mut full: Full<Bytes>) -> Body {
        // A full body is always ready, so that it can be taken out without a box.
        let mut context = Context::from_waker(Waker::noop());
        match http_body::Body::poll_frame(Pin::new(&mut full), &mut context) {
            Poll::Ready(Some(Ok(frame))) => Body::from(frame.into_data().unwrap_or_default()),
            _ => Body::empty(),
        }
    }
}

impl From<Empty<Bytes>> for Body {
    fn from(_: Empty<Bytes>) -> Body {
        Body::empty()
    }
}

impl<E: Into<BoxError> + 'static> From<UnsyncBoxBody<Bytes, E>> for Body {
    fn from(body: UnsyncBoxBody<Bytes, E>) -> Body {
        Body::stream(body)
    }
}

impl<E: Into<BoxError> + 'static> From<http_body_util::combinators::BoxBody<Bytes, E>> for Body {
    fn from(body: http_body_util::combinators::BoxBody<Bytes, E>) -> Body {
        Body::stream(body)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_ready
            && let Some(in_flight) = &self.in_flight
        {
            // What came before was taken.
            in_flight.goes_on();
        }
        if let Content::Stream(stream) = &mut self.content {
            return Pin::new(stream).poll_frame(context);
        }
        let frame = match std::mem::take(&mut self.content) {
            Content::Bytes(bytes, trailers) => {
                self.content = trailers.map_or(Content::End, Content::Trailers);
                Some(Ok(Frame::data(bytes)))
            }
            Content::Trailers(trailers) => Some(Ok(Frame::trailers(*trailers))),
            Content::End | Content::Stream(_) => None,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::End => true,
            Content::Bytes(..) | Content::Trailers(_) => false,
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::End | Content::Trailers(_) => SizeHint::with_exact(0),
            Content::Bytes(bytes, None) => SizeHint::with_exact(bytes.len() as u64),
            // An exact size becomes a `content-length`, which gRPC has no use for.
            Content::Bytes(_, Some(_)) => SizeHint::default(),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}

/// How long a pause in a body counts as "nothing is under way".
const PAUSE: Duration = Duration::from_millis(250);

/// Reads and throws away what a peer is still sending of a request's body: up to `most` bytes, for at most `within`, and
/// not beyond a pause.
///
/// A refusal over HTTP/1.1 that comes while the peer is still sending is lost otherwise: the connection would be closed
/// with unread bytes in it, the peer sees a reset, and that drops the answer and invites it to send all of it again.
pub(crate) async fn discard(request: &HeaderMap, body: &mut Incoming, most: usize, within: Duration) {
    // A peer that asked whether to send at all is not sending.
    if http_body::Body::is_end_stream(body) || request.contains_key(http::header::EXPECT) {
        return;
    }
    let rest = async {
        let mut read = 0;
        while read <= most
            && let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whether it ends or the time does, there is nothing left to do.
    drop(tokio::time::timeout(within, rest).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    #[tokio::test]
    async fn bytes_then_trailers_then_the_end() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let body = Body::with_trailers(Bytes::from_static(b"abc"), trailers.clone());
        assert_eq!(body.size_hint().exact(), None, "it would be sent as a content-length");
        assert!(!body.is_end_stream());
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), Bytes::from_static(b"abc"));
    }

    #[tokio::test]
    async fn an_empty_body_ends_with_the_head_however_it_was_made() {
        for body in [
            Body::empty(),
            Body::from(""),
            Body::from(Bytes::new()),
            Body::from(Empty::new()),
        ] {
            assert!(body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(0));
        }
        let full = Body::from(Full::new(Bytes::from_static(b"text")));
        assert_eq!(full.size_hint().exact(), Some(4));
        assert_eq!(full.collect().await.unwrap().to_bytes(), Bytes::from_static(b"text"));
    }
}
