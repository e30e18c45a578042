//! What has arrived is read at once, also when less is asked for.
//!
//! HTTP/2 reads 8 KiB at a time until it knows the length of a frame, and then the rest of that frame. Small requests, and
//! large ones in frames of 16 KiB, as gRPC for Go and Node.js sends, then take two system calls for each frame. Here a read for
//! less than [`AT_ONCE`] takes as much as that from the socket and keeps the rest for the next ones. Copying it costs less
//! than the calls; reads for more go past this.
//!
//! Invariants: nothing is reordered or lost; a connection holds [`AT_ONCE`] at most for this, and nothing while it waits for
//! what is to come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that are read from the socket at least, if they are there: three requests of 16 spans, or two frames of 16 KiB.
const AT_ONCE: usize = 32 * 1024;

/// What was read from one connection and not asked for yet.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    bytes: BytesMut,
}

impl Ahead {
    /// Reads from `stream`, behind what was read from it before.
    pub(super) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        stream: &mut T,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            if buffer.remaining() >= AT_ONCE {
                return Pin::new(stream).poll_read(context, buffer);
            }
            self.bytes.reserve(AT_ONCE);
            let polled = poll_read_buf(Pin::new(stream), context, &mut self.bytes);
            if polled.is_pending() {
                self.bytes = BytesMut::new();
            }
            ready!(polled)?;
        }
        let taken = self.bytes.len().min(buffer.remaining());
        buffer.put_slice(&self.bytes[..taken]);
        self.bytes.advance(taken);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::task::Waker;

    /// A socket to which bytes have come, and which the peer has closed or not.
    struct Socket {
        arrived: Vec<u8>,
        is_closed: bool,
        reads: usize,
    }

    impl AsyncRead for Socket {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.reads += 1;
            let taken = self.arrived.len().min(buffer.remaining());
            if taken == 0 && !self.is_closed {
                return Poll::Pending;
            }
            buffer.put_slice(&self.arrived[..taken]);
            self.arrived.drain(..taken);
            Poll::Ready(Ok(()))
        }
    }

    fn socket(bytes: usize, is_closed: bool) -> Socket {
        Socket {
            arrived: (0..bytes).map(|index| (index % 251) as u8).collect(),
            is_closed,
            reads: 0,
        }
    }

    /// What a read for so many bytes gives; `None`: it is pending.
    fn read(ahead: &mut Ahead, socket: &mut Socket, most: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; most];
        let mut buffer = ReadBuf::new(&mut bytes);
        let polled = ahead.poll_read(socket, &mut Context::from_waker(Waker::noop()), &mut buffer);
        match polled {
            Poll::Ready(outcome) => outcome.unwrap(),
            Poll::Pending => return None,
        }
        Some(buffer.filled().to_vec())
    }

    #[test]
    fn small_reads_share_a_read_of_the_socket_and_large_ones_go_past() {
        let mut socket = socket(100_000, true);
        let expected = socket.arrived.clone();
        let mut ahead = Ahead::default();
        let mut all = Vec::new();
        let mut reads = Vec::new();
        for most in [1, 8192, 20_000, 20_000, 40_000, 10_000, 60_000, 60_000] {
            all.extend(read(&mut ahead, &mut socket, most).unwrap());
            reads.push(socket.reads);
        }
        // The fourth and the seventh find a rest; the fifth takes all that it asks for, and the last one finds the end.
        assert_eq!(reads, [1, 1, 1, 1, 2, 3, 3, 4]);
        assert_eq!(all, expected);
        assert_eq!(read(&mut ahead, &mut socket, 8192), Some(Vec::new()), "the end");
    }

    #[test]
    fn a_connection_that_waits_holds_nothing() {
        let mut socket = socket(10, false);
        let mut ahead = Ahead::default();
        assert_eq!(read(&mut ahead, &mut socket, 4).unwrap().len(), 4);
        assert_eq!(read(&mut ahead, &mut socket, 100).unwrap().len(), 6);
        assert!(ahead.bytes.capacity() > 0);
        assert_eq!(read(&mut ahead, &mut socket, 100), None);
        assert_eq!(ahead.bytes.capacity(), 0);
        socket.arrived = vec![7; 3];
        assert_eq!(read(&mut ahead, &mut socket, 100), Some(vec![7; 3]));
    }
}
