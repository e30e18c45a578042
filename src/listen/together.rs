//! Answers over HTTP/2 that are ready at once leave together.
//!
//! A sync of the journal answers many requests. Each answer wakes its connection, whose task would write it before the next
//! answer is made: a system call and a segment for each. Here a write waits until the connection's task has had one more
//! turn, behind what its thread has to do already; by then what else there is to write has come to the same buffer.
//!
//! Invariant: nobody waits without being woken. The turn that a write waits for is asked for by the write itself, and a
//! write that the socket does not take waits for the socket, as without this.

use std::task::Context;

use super::connection::Activity;

/// When the writes of one connection are due; those of HTTP/1.1 always are.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// The turn of the connection's task after which it may be written.
    asked: Option<u64>,
    /// The last turn in which it might.
    due: u64,
}

impl Together {
    /// Whether to write now; if not, the task is woken to try again.
    pub(super) fn is_due(&mut self, activity: &Activity, context: &Context<'_>) -> bool {
        let turn = activity.turn();
        // All that is written in one turn has waited for it.
        if self.due == turn || !activity.is_http2() {
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
    pub(super) fn wait_for_socket(&mut self, activity: &Activity) {
        self.asked = Some(activity.turn());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Poll, Wake, Waker};

    use tokio::io::AsyncWrite;
    use tokio_util::sync::CancellationToken;

    use super::super::connection::Watched;
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

    fn stream(first_bytes: &[u8], room: usize) -> Watched<Socket> {
        let activity = Activity::new(CancellationToken::new());
        activity.heard(first_bytes);
        let written = Vec::new();
        Watched::new(Socket { room, written }, activity)
    }

    /// In the present turn, writes until it is pending or all is written, as HTTP/2 does; then flushes.
    fn write(stream: &mut Watched<Socket>, mut bytes: &[u8], wakes: &Arc<Wakes>) -> bool {
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
