//! Gathers what HTTP/2 writes, so that one system call takes many frames.
//!
//! An HTTP/2 connection writes and flushes each frame by itself, and servers take frames of 16 KiB: a request of some hundred
//! kilobytes would leave in a score of system calls and TCP segments, each of which wakes the reader at the other end. A
//! flush is therefore put off until the connection's task runs next, for which it is woken at once: by then all frames are
//! written that can be. They are copied together, which costs a fraction of what the system calls cost. TLS lies below, so
//! that its handshake and its alerts are not put off.
//!
//! # Invariants
//!
//! * What was written leaves in its order, and nothing of it is kept back: whoever flushes is woken, and whoever is woken
//!   reads first, as hyper and h2 do; that is where it leaves. If the socket takes no more, a flush is what it is
//!   elsewhere: pending until the socket is ready. Waking oneself then would be a loop that never rests.
//! * At most `limit` bytes are held; with a limit of 0 none are, and everything passes as it comes.
//! * What can be read is read, also if what is held cannot be written: a server that refuses a request before it has read
//!   all of it closes the connection behind its answer.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

/// What is held for a connection at most, in bytes: a request of 512 spans is one write.
pub(super) const LIMIT: usize = 384 << 10;

/// Connects as `C` does; what is written to its connections is gathered.
#[derive(Clone)]
pub(super) struct Gather<C> {
    pub(super) connector: C,
    /// Bytes that a connection may hold.
    pub(super) limit: usize,
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
        let limit = self.limit;
        Box::pin(async move { Ok(Gathered::new(connecting.await?, limit)) })
    }
}

/// A connection on which writes are gathered.
pub(super) struct Gathered<T> {
    inner: T,
    limit: usize,
    /// Written to us and not to `inner` yet, from `begin` on.
    held: Vec<u8>,
    begin: usize,
    /// Something that was held is written to `inner` and not flushed there yet.
    is_unflushed: bool,
    /// `inner` took no more when it was last tried.
    is_blocked: bool,
}

impl<T> Gathered<T> {
    fn new(inner: T, limit: usize) -> Gathered<T> {
        Gathered {
            inner,
            limit,
            held: Vec::new(),
            begin: 0,
            is_unflushed: false,
            is_blocked: false,
        }
    }

    fn is_holding(&self) -> bool {
        !self.held.is_empty() || self.is_unflushed
    }

    /// Holds these bytes too. The memory is kept as long as the connection: the next request needs it again.
    fn hold(&mut self, bytes: &[u8]) {
        if self.held.capacity() < self.limit {
            self.held.reserve_exact(self.limit - self.held.len());
        }
        self.held.extend_from_slice(bytes);
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
        while self.begin < self.held.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.held[self.begin..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begin += written;
            self.is_unflushed = true;
        }
        self.held.clear();
        self.begin = 0;
        if self.is_unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for `length` bytes. False if they are to be written past what is held, which is nothing then.
    fn poll_room(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        if self.held.len() + length > self.limit {
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
        (Gathered::new(counted, limit), theirs, writes)
    }

    /// One turn of a connection's task, as h2 takes it: it reads, and then writes and flushes each frame by itself.
    /// Ready when all frames are written.
    fn turn(io: &mut Gathered<Counted>, context: &mut Context<'_>, frames: &mut Vec<Vec<u8>>) -> Poll<io::Result<()>> {
        let mut space = [0; 8];
        let mut buffer = ReadBuf::new(&mut space);
        let _nothing_comes = Pin::new(&mut *io).poll_read(context, buffer.unfilled())?;
        while let Some(frame) = frames.first_mut() {
            while !frame.is_empty() {
                let (head, payload) = frame.split_at(frame.len().min(9));
                let pieces = [IoSlice::new(head), IoSlice::new(payload)];
                let written = ready!(Pin::new(&mut *io).poll_write_vectored(context, &pieces))?;
                frame.drain(..written);
            }
            frames.remove(0);
            ready!(Pin::new(&mut *io).poll_flush(context))?;
        }
        Poll::Ready(Ok(()))
    }

    #[tokio::test]
    async fn all_frames_of_a_turn_leave_in_one_write() {
        let (mut io, mut theirs, writes) = connection(1 << 20, LIMIT);
        let mut frames = vec![vec![b'x'; 16_393]; 18];
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
        let mut frames = vec![b"frame".to_vec()];
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
        let mut frames = vec![vec![b'x'; 100]];
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
        assert!(turn(&mut io, &mut context, &mut vec![b"frame".to_vec()]).is_ready());
        io.inner.is_broken = true;
        theirs.write_all(b"too large").await.unwrap();
        assert!(matches!(read(&mut io, &mut context), Poll::Ready(Ok(answer)) if answer == b"too large"));
        let Poll::Ready(Err(error)) = read(&mut io, &mut context) else {
            panic!("what is held can never be written");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn whatever_the_sizes_are_all_bytes_arrive_in_their_order() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = random.choice([0, 1, 100, 1_000, LIMIT]).unwrap();
            let (mut io, mut theirs, _) = connection(random.usize(1..2_000), limit);
            let mut frames: Vec<Vec<u8>> = (0..random.usize(1..40))
                .map(|_| (0..random.usize(1..600)).map(|_| random.u8(..)).collect())
                .collect();
            let expected = frames.concat();
            let sender = tokio::spawn(async move {
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
