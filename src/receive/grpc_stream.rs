//! Streaming gRPC calls: small messages in, answers one by one. Only health and reflection have them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::refusal::{Reason, Refusal};
use crate::listen::Peer;

/// Streams of all peers together. Each keeps a connection from being closed as idle.
const STREAMS: usize = 128;

/// Streams of one peer, so that the others get some.
const STREAMS_OF_ONE_PEER: usize = STREAMS - STREAMS / 4;

/// How long a stream may live. Clients begin a new one; a peer that is gone without a word is not kept for ever.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);

/// The largest message of a stream, in bytes.
const LARGEST_MESSAGE: usize = 4096;

/// The bytes before each gRPC message: a flag and the length.
const PREFIX: usize = 5;

/// The streams that are open.
pub(super) struct Streams {
    free: Arc<Semaphore>,
    shutdown: OnceLock<CancellationToken>,
}

/// The place of one stream.
pub(super) struct StreamPlace {
    /// Cancelled when the stream has to end.
    pub(super) shutdown: CancellationToken,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub(super) fn new() -> Streams {
        Streams {
            free: Arc::new(Semaphore::new(STREAMS)),
            shutdown: OnceLock::new(),
        }
    }

    /// All streams end when `shutdown` is cancelled; otherwise they would hold up the drain.
    pub(super) fn end_with(&self, shutdown: &CancellationToken) {
        // Set once, when the listeners begin to serve.
        self.shutdown.get_or_init(|| shutdown.clone());
    }

    pub(super) fn open(&self, peer: Peer) -> Result<StreamPlace, Refusal> {
        let permit = self.free.clone().try_acquire_owned().map_err(|_| too_many())?;
        // Counted by the place, which takes it back also when it is one too many.
        let before = peer.streams().fetch_add(1, Ordering::Relaxed);
        let place = StreamPlace {
            shutdown: self.shutdown.get().cloned().unwrap_or_default(),
            peer,
            _permit: permit,
        };
        if before < STREAMS_OF_ONE_PEER {
            Ok(place)
        } else {
            Err(too_many())
        }
    }
}

fn too_many() -> Refusal {
    Refusal::new(
        Reason::Overloaded,
        "there are as many streams as are served; ask with unary calls",
    )
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.peer.streams().fetch_sub(1, Ordering::Relaxed);
    }
}

/// The messages of a request, as they come.
pub(super) struct Messages {
    body: Incoming,
    unread: BytesMut,
}

impl Messages {
    pub(super) fn of(body: Incoming) -> Messages {
        Messages {
            body,
            unread: BytesMut::new(),
        }
    }

    /// The next message; `None` when the peer has no more.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if let Some((&[compressed, a, b, c, d], _)) = self.unread.split_first_chunk::<PREFIX>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if compressed != 0 {
                    return Err(Refusal::new(
                        Reason::UnknownEncoding,
                        "messages of this method are not compressed",
                    ));
                }
                if length > LARGEST_MESSAGE {
                    return Err(Refusal::too_large(LARGEST_MESSAGE, "of this method"));
                }
                if self.unread.len() >= PREFIX + length {
                    self.unread.advance(PREFIX);
                    return Ok(Some(self.unread.split_to(length).freeze()));
                }
            }
            match self.body.frame().await {
                None if self.unread.is_empty() => return Ok(None),
                None => return Err(Refusal::malformed("the request ends inside a message")),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.unread.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Refusal::new(
                        Reason::Aborted,
                        format!("the request did not arrive whole: {error}"),
                    ));
                }
            }
        }
    }
}

/// What one turn of a stream has come to: the next message, its end, or a failure.
pub(super) type Turn = Result<Option<Bytes>, Refusal>;

type Turning<S> = Pin<Box<dyn Future<Output = (S, Turn)> + Send>>;

/// An answer of several messages: `make` makes one after the other out of a state that it hands on.
pub(super) struct Replies<S, F> {
    make: F,
    turning: Option<Turning<S>>,
    trailers: fn(Result<(), &Refusal>) -> HeaderMap,
}

impl<S, F, T> Replies<S, F>
where
    F: Fn(S) -> T,
    T: Future<Output = (S, Turn)> + Send + 'static,
{
    pub(super) fn new(state: S, make: F, trailers: fn(Result<(), &Refusal>) -> HeaderMap) -> Replies<S, F> {
        Replies {
            turning: Some(Box::pin(make(state))),
            make,
            trailers,
        }
    }
}

impl<S, F, T> http_body::Body for Replies<S, F>
where
    S: Unpin,
    F: Fn(S) -> T + Unpin,
    T: Future<Output = (S, Turn)> + Send + 'static,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(turning) = &mut self.turning else {
            return Poll::Ready(None);
        };
        let Poll::Ready((state, turn)) = turning.as_mut().poll(context) else {
            return Poll::Pending;
        };
        let frame = match turn {
            Ok(Some(message)) => {
                self.turning = Some(Box::pin((self.make)(state)));
                Frame::data(message)
            }
            end => {
                self.turning = None;
                Frame::trailers((self.trailers)(end.as_ref().map(drop)))
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}
