//! Gathers what HTTP/2 writes, so that one system call takes many frames.
//!
//! An HTTP/2 connection writes and flushes each frame by itself, and servers take frames of 16 KiB: a request of some hundred
//! kilobytes would leave in a score of system calls and TCP segments, each of which wakes the reader at the other end. A
//! flush is therefore put off until the connection's task runs next, for which it is woken at once: by then all frames are
//! written that can be. What they carry stays where it is, as far as it is a part of a body that was lent ([`Lent`]): whoever
//! writes shows bytes and does not hand them over, but who finds them within a body has a share in that. All else, heads of
//! frames mostly, is copied together. TLS lies below, so that its handshake and its alerts are not put off.
//!
//! # Invariants
//!
//! * What was written leaves in its order, and nothing of it is kept back: whoever flushes is woken, and whoever is woken
//!   reads first, as hyper and h2 do; that is where it leaves. If the socket takes no more, a flush is what it is
//!   elsewhere: pending until the socket is ready. Waking oneself then would be a loop that never rests.
//! * At most `limit` bytes are held; with a limit of 0 none are, and everything passes as it comes. A body of which a part is
//!   held stays in memory until that has left or the connection is closed.
//! * What can be read is read, also if what is held cannot be written: a server that refuses a request before it has read
//!   all of it closes the connection behind its answer.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

/// What is held for a connection at most, in bytes: a request of 512 spans is one write.
pub(super) const LIMIT: usize = 384 << 10;

/// Smaller pieces are copied: that is cheaper than to find them.
const LEAST: usize = 1 << 10;
/// Bytes of heads of frames that are allocated at once.
const HEADS: usize = 1 << 10;
/// Pieces in one system call at most; Linux takes 1,024.
const AT_ONCE: usize = 64;

/// The bodies that are being sent. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Lent(Arc<Mutex<Vec<Bytes>>>);

/// As long as this is there, connections find the body.
pub(super) struct Loan {
    lent: Lent,
    pieces: Vec<Bytes>,
}

impl Lent {
    /// Lends a body that is going to be written.
    pub(super) fn lend(&self, body: &[Bytes]) -> Loan {
        let pieces: Vec<Bytes> = body.iter().filter(|piece| piece.len() >= LEAST).cloned().collect();
        self.bodies().extend_from_slice(&pieces);
        let lent = self.clone();
        Loan { lent, pieces }
    }

    /// A share in the body that these bytes are a part of.
    fn share(&self, bytes: &[u8]) -> Option<Bytes> {
        if bytes.len() < LEAST {
            return None;
        }
        let range = bytes.as_ptr_range();
        let has = |body: &&Bytes| {
            let body = body.as_ptr_range();
            body.start <= range.start && range.end <= body.end
        };
        self.bodies().iter().find(has).map(|body| body.slice_ref(bytes))
    }

    fn bodies(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut bodies = self.lent.bodies();
        for piece in &self.pieces {
            // The same body may be lent twice, to be sent to two places: each takes back its own.
            if let Some(index) = bodies
                .iter()
                .position(|body| body.as_ptr_range() == piece.as_ptr_range())
            {
                bodies.swap_remove(index);
            }
        }
    }
}

/// Connects as `C` does; what is written to its connections is gathered.
#[derive(Clone)]
pub(super) struct Gather<C> {
    pub(super) connector: C,
    /// Bytes that a connection may hold.
    pub(super) limit: usize,
    pub(super) lent: Lent,
}

impl<C> Service<Uri> for Gather<C>
where
    C: Service<Uri, Future: Send + 'static>,
{
    type Response = Gathered<C::Response>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.connector.call(uri);
        let (limit, lent) = (self.limit, self.lent.clone());
        Box::pin(async move { Ok(Gathered::new(connecting.await?, limit, lent)) })
    }
}

/// A connection on which writes are gathered.
pub(super) struct Gathered<T> {
    inner: T,
    limit: usize,
    lent: Lent,
    /// Written to us and not to `inner` yet.
    held: VecDeque<Bytes>,
    /// The same, behind that.
    copied: BytesMut,
    /// Bytes in both.
    length: usize,
    /// Something that was held is written to `inner` and not flushed there yet.
    is_unflushed: bool,
    /// `inner` took no more when it was last tried.
    is_blocked: bool,
}

impl<T> Gathered<T> {
    fn new(inner: T, limit: usize, lent: Lent) -> Gathered<T> {
        Gathered {
            inner,
            limit,
            lent,
            held: VecDeque::new(),
            copied: BytesMut::with_capacity(HEADS),
            length: 0,
            is_unflushed: false,
            is_blocked: false,
        }
    }

    fn is_holding(&self) -> bool {
        self.length > 0 || self.is_unflushed
    }

    /// Holds these bytes too.
    fn hold(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        match self.lent.share(bytes) {
            Some(share) => {
                self.close_copied();
                self.held.push_back(share);
            }
            None => self.copied.extend_from_slice(bytes),
        }
    }

    /// What was copied becomes a piece.
    fn close_copied(&mut self) {
        if !self.copied.is_empty() {
            self.held.push_back(self.copied.split().freeze());
        }
    }
}

impl<T: Write + Unpin> Gathered<T> {
    /// Writes what is held, and flushes it.
    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let released = self.poll_write_held(context);
        self.is_blocked = released.is_pending();
        released
    }

    fn poll_write_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close_copied();
        while self.length > 0 {
            let mut pieces = [IoSlice::new(&[]); AT_ONCE];
            let count = self.held.len().min(AT_ONCE);
            for (slice, piece) in pieces.iter_mut().zip(&self.held) {
                *slice = IoSlice::new(piece);
            }
            let inner = Pin::new(&mut self.inner);
            let written = ready!(inner.poll_write_vectored(context, &pieces[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.length -= written;
            self.is_unflushed = true;
            self.forget(written);
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// So many bytes at the front were written.
    fn forget(&mut self, mut written: usize) {
        while let Some(piece) = self.held.front_mut() {
            if written < piece.len() {
                return piece.advance(written);
            }
            written -= piece.len();
            self.held.pop_front();
        }
    }

    /// Makes room for `length` bytes. False if they are to be written past what is held, which is nothing then.
    fn poll_room(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        if self.length + length > self.limit {
            ready!(self.poll_release(context))?;
        }
        Poll::Ready(Ok(length <= self.limit))
    }
}

impl<T: Write + Unpin> Write for Gathered<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_room(context, bytes.len()))? {
            return Pin::new(&mut self.inner).poll_write(context, bytes);
        }
        self.hold(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if !ready!(self.poll_room(context, length))? {
            return Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        }
        for piece in pieces {
            self.hold(piece);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_holding() {
            return Pin::new(&mut self.inner).poll_flush(context);
        }
        if self.is_blocked {
            return self.poll_release(context);
        }
        context.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: Read + Write + Unpin> Read for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let released = self.poll_release(context);
        match (Pin::new(&mut self.inner).poll_read(context, buffer), released) {
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (read, _) => read,
        }
    }
}

impl<T: Connection> Connection for Gathered<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use hyper::rt::ReadBuf;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Counts what the connection is asked to write.
    struct Counted {
        stream: TokioIo<DuplexStream>,
        writes: Arc<AtomicUsize>,
        is_broken: bool,
    }

    impl Write for Counted {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_broken {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.stream).poll_write(context, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            self.as_mut().poll_write(context, &all)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(context)
        }
    }

    impl Read for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        }
    }

    /// Both ends of a connection that takes `capacity` bytes before somebody reads.
    fn connection(capacity: usize, limit: usize) -> (Gathered<Counted>, DuplexStream, Arc<AtomicUsize>) {
        let (ours, theirs) = duplex(capacity);
        let writes = Arc::default();
        let counted = Counted {
            stream: TokioIo::new(ours),
            writes: Arc::clone(&writes),
            is_broken: false,
        };
        (Gathered::new(counted, limit, Lent::default()), theirs, writes)
    }

    /// One turn of a connection's task, as h2 takes it: it reads, and then writes and flushes each frame by itself.
    /// Ready when all frames are written.
    fn turn(io: &mut Gathered<Counted>, context: &mut Context<'_>, frames: &mut Vec<Bytes>) -> Poll<io::Result<()>> {
        let mut space = [0; 8];
        let mut buffer = ReadBuf::new(&mut space);
        let _nothing_comes = Pin::new(&mut *io).poll_read(context, buffer.unfilled())?;
        while let Some(frame) = frames.first_mut() {
            while !frame.is_empty() {
                let (head, payload) = frame.split_at(frame.len().min(9));
                let pieces = [IoSlice::new(head), IoSlice::new(payload)];
                let written = ready!(Pin::new(&mut *io).poll_write_vectored(context, &pieces))?;
                frame.advance(written);
            }
            frames.remove(0);
            ready!(Pin::new(&mut *io).poll_flush(context))?;
        }
        Poll::Ready(Ok(()))
    }

    #[tokio::test]
    async fn all_frames_of_a_turn_leave_in_one_write() {
        let (mut io, mut theirs, writes) = connection(1 << 20, LIMIT);
        let mut frames = vec![Bytes::from(vec![b'x'; 16_393]); 18];
        let _loan = io.lent.lend(&frames);
        poll_fn(|context| turn(&mut io, context, &mut frames)).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 0, "until the task runs again");
        poll_fn(|context| turn(&mut io, context, &mut frames)).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 1);
        let mut received = vec![0; 18 * 16_393];
        theirs.read_exact(&mut received).await.unwrap();
    }

    /// How often a task was woken.
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Waker, Arc<Woken>) {
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        (Waker::from(Arc::clone(&woken)), woken)
    }

    #[test]
    fn whoever_flushes_is_woken_as_long_as_something_is_held() {
        let (waker, woken) = waker();
        let mut context = Context::from_waker(&waker);
        let (mut io, _theirs, _) = connection(64, LIMIT);
        let mut frames = vec![Bytes::from_static(b"frame")];
        assert!(turn(&mut io, &mut context, &mut frames).is_ready());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(turn(&mut io, &mut context, &mut frames).is_ready());
        assert!(Pin::new(&mut io).poll_flush(&mut context).is_ready());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "nothing is held any more");
    }

    #[tokio::test]
    async fn who_flushes_while_the_socket_takes_no_more_waits_for_the_socket() {
        let (waker, woken) = waker();
        let mut context = Context::from_waker(&waker);
        let (mut io, mut theirs, _) = connection(64, LIMIT);
        let mut frames = vec![Bytes::from(vec![b'x'; 100])];
        assert!(turn(&mut io, &mut context, &mut frames).is_ready());
        assert!(turn(&mut io, &mut context, &mut frames).is_ready());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(Pin::new(&mut io).poll_flush(&mut context).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it would never rest");
        theirs.read_exact(&mut [0; 64]).await.unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(Pin::new(&mut io).poll_flush(&mut context).is_ready());
        theirs.read_exact(&mut [0; 36]).await.unwrap();
    }

    /// What a read gives.
    fn read(io: &mut Gathered<Counted>, context: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        let mut space = [0; 64];
        let mut buffer = ReadBuf::new(&mut space);
        ready!(Pin::new(io).poll_read(context, buffer.unfilled()))?;
        Poll::Ready(Ok(buffer.filled().to_vec()))
    }

    #[tokio::test]
    async fn an_answer_is_read_before_it_is_told_that_the_request_can_no_longer_be_written() {
        let (waker, _) = waker();
        let mut context = Context::from_waker(&waker);
        let (mut io, mut theirs, _) = connection(64, LIMIT);
        assert!(turn(&mut io, &mut context, &mut vec![Bytes::from_static(b"frame")]).is_ready());
        io.inner.is_broken = true;
        theirs.write_all(b"too large").await.unwrap();
        assert!(matches!(read(&mut io, &mut context), Poll::Ready(Ok(answer)) if answer == b"too large"));
        let Poll::Ready(Err(error)) = read(&mut io, &mut context) else {
            panic!("what is held can never be written");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_part_of_a_body_that_is_lent_is_not_copied() {
        let (waker, _) = waker();
        let mut context = Context::from_waker(&waker);
        let (mut io, _theirs, _) = connection(64, LIMIT);
        let body = Bytes::from(vec![b'x'; 3 * LEAST]);
        let loan = io.lent.lend(&[Bytes::from_static(b"too small"), body.clone()]);
        let another = io.lent.lend(std::slice::from_ref(&body));
        let part = &body[100..100 + LEAST];
        let pieces = [IoSlice::new(b"head"), IoSlice::new(part), IoSlice::new(b"head")];
        let written = Pin::new(&mut io).poll_write_vectored(&mut context, &pieces);
        assert!(matches!(written, Poll::Ready(Ok(length)) if length == LEAST + 8));
        assert_eq!(io.held.len(), 2);
        assert_eq!(io.held[1].as_ptr(), part.as_ptr());
        drop(loan);
        assert!(io.lent.share(part).is_some(), "somebody else lends it still");
        drop(another);
        assert!(io.lent.share(part).is_none());
        assert_eq!(io.held[1], part, "what is held stays");
    }

    #[tokio::test]
    async fn whatever_the_sizes_are_all_bytes_arrive_in_their_order() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = random.choice([0, 1, 100, 1_000, 10_000, LIMIT]).unwrap();
            let (mut io, mut theirs, _) = connection(random.usize(1..20_000), limit);
            let mut frames: Vec<Bytes> = (0..random.usize(1..40))
                .map(|_| (0..random.usize(1..6_000)).map(|_| random.u8(..)).collect())
                .collect();
            let expected = frames.concat();
            let some: Vec<Bytes> = frames.iter().filter(|_| random.bool()).cloned().collect();
            let loan = io.lent.lend(&some);
            let sender = tokio::spawn(async move {
                let _loan = loan;
                poll_fn(|context| turn(&mut io, context, &mut frames)).await?;
                poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await
            });
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            sender.await.unwrap().unwrap();
            assert_eq!(received, expected, "seed {seed}, limit {limit}");
        }
    }
}
