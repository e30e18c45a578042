//! Collecting request bodies: never more than the limit and one frame in memory.
//!
//! The journal keeps the collected bytes for a while. A slice of the connection's read buffer would keep that whole
//! buffer, which may be a thousand times larger than the slice, and the connection would need a new one; therefore bodies
//! are copied into memory of their own size, from [`mod@crate::buffers`].

use std::sync::Arc;

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;

use super::admission::Reservation;
use super::refusal::{Reason, Refusal};
use crate::buffers::{Buffer, Buffers};

/// Of an announced length, room is made at first for this many times what has come of it: who promises much and sends
/// little costs little, and who sends is soon believed.
const TRUST: usize = 16;

/// Bodies grow to double their size up to here, and by a quarter beyond: what is made room for counts as in flight, as it may
/// lie in large pages, which are there as soon as anything is in them.
const DOUBLE_UP_TO: usize = 1024 * 1024;

/// The bytes before each gRPC message: a flag and the length.
const GRPC_PREFIX: usize = 5;

/// How large a body may be, and which configuration key says so.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizeLimit {
    pub(super) bytes: usize,
    pub(super) key: &'static str,
}

impl SizeLimit {
    pub(super) fn check(self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes {
            Err(self.exceeded())
        } else {
            Ok(())
        }
    }

    pub(super) fn exceeded(self) -> Refusal {
        Refusal::too_large(self.bytes, self.key)
    }
}

/// One gRPC message, without its prefix.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) compressed: bool,
    pub(super) bytes: Bytes,
}

/// The whole body of an HTTP request.
pub(super) async fn whole_body<B>(body: &mut B, limit: SizeLimit, room: &mut Reservation) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let announced = body
        .size_hint()
        .exact()
        .map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    limit.check(announced.unwrap_or(0))?;
    room.expect(announced.unwrap_or(0)).await?;
    let mut collected = Collected::of_length(announced, room.buffers());
    while let Some(frame) = next_in_time(body, collected.length(), room).await? {
        limit.check(collected.length().saturating_add(frame.len()))?;
        collected.push(frame, room)?;
    }
    Ok(collected.finish())
}

/// The one message of a unary gRPC request.
pub(super) async fn one_message<B>(body: &mut B, limit: SizeLimit, room: &mut Reservation) -> Result<Message, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut prefix = [0; GRPC_PREFIX];
    let mut prefix_read = 0;
    let mut message: Option<(usize, Collected)> = None;
    loop {
        let arrived = message.as_ref().map_or(0, |(_, collected)| collected.length());
        let Some(mut frame) = next_in_time(body, arrived, room).await? else {
            break;
        };
        let (length, collected) = match &mut message {
            Some(message) => message,
            None => {
                let take = frame.len().min(GRPC_PREFIX - prefix_read);
                prefix[prefix_read..prefix_read + take].copy_from_slice(&frame[..take]);
                frame.advance(take);
                prefix_read += take;
                if prefix_read < GRPC_PREFIX {
                    continue;
                }
                if prefix[0] > 1 {
                    return Err(Refusal::malformed(
                        "the first byte of a gRPC message is neither 0 nor 1",
                    ));
                }
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                limit.check(length)?;
                room.expect(length).await?;
                message.insert((length, Collected::of_length(Some(length), room.buffers())))
            }
        };
        if collected.length() + frame.len() > *length {
            return Err(Refusal::malformed(
                "a unary gRPC request has one message, and this one goes on after it",
            ));
        }
        if !frame.is_empty() {
            collected.push(frame, room)?;
        }
    }
    match message {
        Some((length, collected)) if collected.length() == length => Ok(Message {
            compressed: prefix[0] == 1,
            bytes: collected.finish(),
        }),
        Some((length, collected)) => Err(Refusal::malformed(format!(
            "the gRPC message ends after {} of {length} bytes",
            collected.length()
        ))),
        None => Err(Refusal::malformed("the gRPC request has no message")),
    }
}

/// The next piece of a body of which so much has arrived. A request that goes alone has less time than others.
async fn next_in_time<B>(body: &mut B, arrived: usize, room: &Reservation) -> Result<Option<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    tokio::select! {
        biased;
        piece = next_data(body) => piece,
        () = room.dawdles(arrived) => Err(Refusal::slow_body("a request of this size must arrive faster: others wait for it (receivers.otlp.max_in_flight_size)")),
    }
}

/// The next piece of the body; trailers of requests mean nothing here.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    while !body.is_end_stream() {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(Refusal::new(
                    Reason::Aborted,
                    format!("the request body did not arrive whole: {error}"),
                ));
            }
        }
    }
    Ok(None)
}

/// What has arrived so far.
struct Collected {
    bytes: Buffer,
    /// How much the peer announced.
    expected: Option<usize>,
    /// How much was admitted.
    admitted: usize,
}

impl Collected {
    fn of_length(expected: Option<usize>, buffers: &Arc<Buffers>) -> Collected {
        Collected {
            bytes: buffers.take(0),
            expected,
            admitted: 0,
        }
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn push(&mut self, frame: Bytes, room: &mut Reservation) -> Result<(), Refusal> {
        let needed = self.bytes.len() + frame.len();
        self.admit(needed, room)?;
        if needed > self.bytes.capacity() {
            let announced = self.expected.unwrap_or(usize::MAX);
            let target = if self.bytes.is_empty() {
                self.expected.unwrap_or(0).min(frame.len().saturating_mul(TRUST))
            } else {
                let more = if needed < DOUBLE_UP_TO { needed } else { needed / 4 };
                // Never beyond what the peer announced.
                (needed + more).min(announced)
            };
            let target = target.max(needed);
            self.admit(target, room)?;
            self.bytes.grow(target);
        }
        self.bytes.extend_from_slice(&frame);
        Ok(())
    }

    fn admit(&mut self, bytes: usize, room: &mut Reservation) -> Result<(), Refusal> {
        room.grow(bytes.saturating_sub(self.admitted))?;
        self.admitted = self.admitted.max(bytes);
        Ok(())
    }

    fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::Admission;
    use super::*;
    use crate::listen::Peer;

    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::{Frame, SizeHint};

    /// A body of given frames, with or without an announced length.
    struct Frames {
        frames: VecDeque<Bytes>,
        announced: Option<u64>,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.frames.pop_front().map(|frame| Ok(Frame::data(frame))))
        }

        fn size_hint(&self) -> SizeHint {
            self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    const LIMIT: SizeLimit = SizeLimit {
        bytes: 200_000,
        key: "a.key",
    };

    fn room(bytes: usize) -> Reservation {
        Admission::new(bytes, metrics::Gauge::noop()).begin(Peer::new(None))
    }

    fn frames(pieces: &[&[u8]], announced: Option<u64>) -> Frames {
        Frames {
            frames: pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect(),
            announced,
        }
    }

    async fn http(mut body: Frames) -> Result<Bytes, Refusal> {
        whole_body(&mut body, LIMIT, &mut room(usize::MAX)).await
    }

    async fn grpc(pieces: &[&[u8]]) -> Result<Message, Refusal> {
        one_message(&mut frames(pieces, None), LIMIT, &mut room(usize::MAX)).await
    }

    fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    #[tokio::test]
    async fn bodies_arrive_whole_with_and_without_a_length() {
        assert_eq!(http(frames(&[], None)).await.unwrap(), Bytes::new());
        assert_eq!(http(frames(&[b"ab", b"", b"c"], None)).await.unwrap(), "abc");
        assert_eq!(http(frames(&[b"ab", b"c"], Some(3))).await.unwrap(), "abc");
        let large = vec![7; 100_000];
        assert_eq!(http(frames(&[&large, &large], None)).await.unwrap().len(), 200_000);
    }

    #[tokio::test]
    async fn frames_are_copied_into_memory_of_the_bodys_own_size() {
        let frame = Bytes::from(vec![1; 1 << 20]);
        for length in [100, 70_000] {
            let piece = frame.slice(..length);
            let body = Frames {
                frames: VecDeque::from([piece.clone()]),
                announced: Some(length as u64),
            };
            let collected = http(body).await.unwrap();
            assert_eq!(collected, piece);
            assert_ne!(collected.as_ptr(), piece.as_ptr(), "or it would hold the whole frame");
        }
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_ends_up_in_memory_of_its_own_size() {
        let mut room = room(usize::MAX);
        let mut body = frames(&[&[7; 50_000], &[8; 50_000], &[9; 1]], None);
        let collected = whole_body(&mut body, LIMIT, &mut room).await.unwrap();
        assert_eq!(collected.len(), 100_001);
        drop(collected);
        assert!(room.buffers().take(100_001).capacity() < 126_000);
    }

    #[test]
    fn who_promises_much_and_sends_little_costs_little() {
        let mut room = room(usize::MAX);
        let mut collected = Collected::of_length(Some(60 << 20), room.buffers());
        let capacity = |collected: &Collected| collected.bytes.capacity();
        collected.push(Bytes::from_static(b"a"), &mut room).unwrap();
        assert!(capacity(&collected) <= 64, "{}", capacity(&collected));
        for _ in 0..500 {
            collected.push(Bytes::from(vec![0; 16 << 10]), &mut room).unwrap();
        }
        let (length, capacity) = (collected.length(), capacity(&collected));
        assert!(capacity <= (length + length / 4) / 4 * 5, "{capacity} for {length}");
    }

    #[test]
    fn what_is_made_room_for_is_admitted_before() {
        for (expected, frame) in [
            (Some(160_000), 20_000),
            (Some(1_000_000), 10_000),
            (None, 20_000),
            (None, 1_000),
        ] {
            let mut room = room(usize::MAX);
            let mut collected = Collected::of_length(expected, room.buffers());
            for _ in 0..160_000 / frame {
                collected.push(Bytes::from(vec![0; frame]), &mut room).unwrap();
                let capacity = collected.bytes.capacity();
                assert!(
                    capacity <= collected.admitted / 4 * 5 && collected.length() <= collected.admitted,
                    "{capacity}, {}",
                    collected.admitted
                );
            }
        }
    }

    #[tokio::test]
    async fn too_large_is_seen_from_the_announcement_or_as_soon_as_it_arrives() {
        let announced = http(frames(&[], Some(200_001))).await.unwrap_err();
        assert_eq!(announced.reason, Reason::TooLarge);
        assert!(
            announced.message.contains("200000 bytes (a.key)"),
            "{}",
            announced.message
        );
        let piece = vec![0; 150_000];
        assert_eq!(
            http(frames(&[&piece, &piece], None)).await.unwrap_err().reason,
            Reason::TooLarge
        );
        let message = prefixed(0, &vec![0; 200_001]);
        assert_eq!(grpc(&[&message[..5]]).await.unwrap_err().reason, Reason::TooLarge);
    }

    #[tokio::test]
    async fn bytes_are_admitted_as_they_arrive() {
        let mut body = frames(&[&[0; 60], &[0; 60]], Some(120));
        let admission = Admission::new(200, metrics::Gauge::noop());
        let mut other = admission.begin(Peer::new(None));
        other.grow(100).unwrap();
        let refused = whole_body(&mut body, LIMIT, &mut admission.begin(Peer::new(None)))
            .await
            .unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(refused.retry_after.is_some());
    }

    #[tokio::test]
    async fn a_large_request_that_dawdles_gives_its_turn_to_the_next_one() {
        /// Sends a little and then nothing more.
        struct Stalled(Option<Bytes>);

        impl Body for Stalled {
            type Data = Bytes;
            type Error = Infallible;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                self.0
                    .take()
                    .map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes)))))
            }

            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(150_000)
            }
        }

        let admission = Admission::impatient(200_000, std::time::Duration::from_millis(20));
        let mut slow = admission.begin(Peer::new(None));
        let mut body = Stalled(Some(Bytes::from_static(b"a")));
        let refused = whole_body(&mut body, LIMIT, &mut slow).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SlowBody);
        drop(slow);
        let large = vec![0; 150_000];
        let mut body = frames(&[&large], Some(150_000));
        let taken = whole_body(&mut body, LIMIT, &mut admission.begin(Peer::new(None))).await;
        assert_eq!(taken.unwrap().len(), 150_000);
    }

    #[tokio::test]
    async fn a_grpc_message_is_read_however_it_is_cut_into_frames() {
        let bytes = prefixed(1, b"message");
        for cut in 0..=bytes.len() {
            let message = grpc(&[&bytes[..cut], &bytes[cut..]]).await.unwrap();
            assert!(message.compressed);
            assert_eq!(message.bytes, "message", "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(grpc(&single).await.unwrap().bytes, "message");
        assert_eq!(grpc(&[&prefixed(0, b"")]).await.unwrap().bytes, "");
    }

    #[tokio::test]
    async fn broken_grpc_framing_is_malformed() {
        let bytes = prefixed(0, b"message");
        let mut two = bytes.clone();
        two.extend(&bytes);
        let cases: [(&[u8], &str); 5] = [
            (b"", "no message"),
            (&bytes[..4], "no message"),
            (&bytes[..9], "4 of 7 bytes"),
            (&two, "one message"),
            (&prefixed(2, b"message"), "neither 0 nor 1"),
        ];
        for (bytes, expected) in cases {
            let refusal = grpc(&[bytes]).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::Malformed);
            assert!(refusal.message.contains(expected), "{}", refusal.message);
        }
    }
}
