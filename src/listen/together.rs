//! Answers over HTTP/2 that are ready at once leave together.
//!
//! A sync of the journal answers many requests. Each answer wakes its connection, whose task would write it before the next
//! answer is made: a system call and a segment for each. Here a write waits until the connection's task has had one more
//! turn, behind what its thread has to do already; by then what else there is to write has come to the same buffer.
//!
//! Invariant: nobody waits without being woken. The turn that a write waits for is asked for by the write itself, and a
//! write that the socket does not take waits for the socket, as without this.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Activity;

/// A stream whose writes wait for each other, if its connection speaks HTTP/2.
pub(super) struct Together<T> {
    stream: T,
    activity: Arc<Activity>,
    /// The turn of the connection's task after which it may be written.
    asked: Option<u64>,
    /// The last turn in which it might.
    due: u64,
}

impl<T> Together<T> {
    pub(super) fn new(stream: T, activity: Arc<Activity>) -> Together<T> {
        Together {
            stream,
            activity,
            asked: None,
            due: 0,
        }
    }

    /// Whether to write now; if not, the task is woken to try again.
    fn is_due(&mut self, context: &Context<'_>) -> bool {
        let turn = self.activity.turn();
        // All that is written in one turn has waited for it.
        if self.due == turn || !self.activity.is_http2() {
            return true;
        }
        match self.asked {
            None => {
                self.asked = Some(turn);
                // Puts the task behind those that are ready already.
                context.waker().wake_by_ref();
                false
            }
            // HTTP/2 tries more than once in a turn.
            Some(asked) if asked == turn => false,
            Some(_) => {
                self.asked = None;
                self.due = turn;
                true
            }
        }
    }

    /// What the socket did not take has its turn when the socket does.
    fn note_write<R>(&mut self, written: Poll<R>) -> Poll<R> {
        if written.is_pending() {
            self.asked = Some(self.activity.turn());
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Together<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Together<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_due(context) {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.is_due(context) {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A socket that takes so many bytes.
    struct Socket {
        room: usize,
        written: Vec<u8>,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = self.room.min(bytes.len());
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.written.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn stream(first_bytes: &[u8], room: usize) -> Together<Socket> {
        let activity = Activity::new(CancellationToken::new());
        activity.heard(first_bytes);
        let written = Vec::new();
        Together::new(Socket { room, written }, activity)
    }

    /// In the present turn, writes until it is pending or all is written, as HTTP/2 does; then flushes.
    fn write(stream: &mut Together<Socket>, mut bytes: &[u8], wakes: &Arc<Wakes>) -> bool {
        let waker = Waker::from(wakes.clone());
        let mut context = Context::from_waker(&waker);
        while !bytes.is_empty() {
            match Pin::new(&mut *stream).poll_write(&mut context, bytes) {
                Poll::Ready(written) => bytes = &bytes[written.unwrap()..],
                Poll::Pending => return false,
            }
        }
        Pin::new(stream).poll_flush(&mut context).is_ready()
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[test]
    fn over_http2_what_is_written_waits_for_one_more_turn_and_asks_for_it_once() {
        let wakes = Arc::new(Wakes::default());
        let mut stream = stream(PREFACE, 100);
        stream.activity.take_turn();
        assert!(!write(&mut stream, b"one", &wakes));
        assert!(!write(&mut stream, b"one", &wakes), "in the same turn");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        stream.activity.take_turn();
        assert!(write(&mut stream, b"one and two", &wakes));
        assert!(write(&mut stream, b", in one turn", &wakes));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        stream.activity.take_turn();
        assert!(!write(&mut stream, b"; three", &wakes), "the next ones wait again");
        stream.activity.take_turn();
        assert!(write(&mut stream, b"; three", &wakes));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert_eq!(stream.stream.written, b"one and two, in one turn; three");
    }

    #[test]
    fn what_a_full_socket_does_not_take_waits_for_the_socket_and_for_nothing_else() {
        let wakes = Arc::new(Wakes::default());
        let mut stream = stream(PREFACE, 4);
        stream.activity.take_turn();
        assert!(!write(&mut stream, b"sixteen bytes...", &wakes));
        for _ in 0..3 {
            stream.activity.take_turn();
            let rest = &b"sixteen bytes..."[stream.stream.written.len()..];
            assert!(!write(&mut stream, rest, &wakes));
        }
        assert_eq!(
            wakes.0.load(Ordering::Relaxed),
            1,
            "a full socket must not keep the task busy"
        );
        stream.stream.room = 100;
        stream.activity.take_turn();
        assert!(write(&mut stream, b"een bytes...", &wakes));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(stream.stream.written, b"sixteen bytes...");
    }

    #[test]
    fn over_http1_nothing_waits() {
        let wakes = Arc::new(Wakes::default());
        let mut stream = stream(b"POST /v1/traces HTTP/1.1\r\n", 100);
        stream.activity.take_turn();
        assert!(write(&mut stream, b"answer", &wakes));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }
}
