//! One connection: what it is doing, and when it has to end.
//!
//! hyper's own header time-out also runs between requests, so it cannot tell a slow attacker from an exporter that
//! sends once a minute over a kept connection. Here the stream itself notes when bytes arrive and when a write is not
//! taken, requests note when they begin and end, and one timer per connection judges from that. A request costs two
//! clock readings and no timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::ahead::Ahead;
use super::together::Together;

/// How long a peer may take to close after it was told to.
const CLOSING_GRACE: Duration = Duration::from_secs(5);

/// The first bytes of an HTTP/2 connection.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection is doing. Times are milliseconds since it began; 0 means never.
pub(super) struct Activity {
    began: Instant,
    /// Cancelled to have the connection closed when its begun requests are answered.
    pub(super) close: CancellationToken,
    /// A number in 0..1 that tells connections that began together apart.
    spread: f64,
    in_flight: AtomicUsize,
    /// When the last request ended, or the connection began.
    quiet_since: AtomicU64,
    /// When the first byte since then arrived.
    heard_at: AtomicU64,
    /// Since when the socket has not taken what is written to it.
    write_stalled_at: AtomicU64,
    /// Answers that are made and not sent yet.
    unsent: AtomicUsize,
    /// When the first of them was made, or one was sent since. Over HTTP/2 an answer waits for the peer's flow control,
    /// while the socket takes everything.
    sent_at: AtomicU64,
    /// How many of its first bytes are those of HTTP/2; they may come one by one.
    preface: AtomicUsize,
    /// The service was asked, and what it answered is not all taken by the socket.
    owes_answer: AtomicBool,
    /// How often its task has driven it on.
    turns: AtomicU64,
}

/// Counts one request as in flight while it lives.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    is_answered: bool,
}

/// What is to be done with a connection now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; judge again after this time.
    Leave(Duration),
    /// It was idle for long: say goodbye.
    Close,
    /// The peer misbehaves: cut.
    Cut,
}

impl Activity {
    pub(super) fn new(close: CancellationToken) -> Arc<Activity> {
        Arc::new(Activity {
            began: Instant::now(),
            close,
            spread: fastrand::f64(),
            in_flight: AtomicUsize::new(0),
            quiet_since: AtomicU64::new(0),
            heard_at: AtomicU64::new(0),
            write_stalled_at: AtomicU64::new(0),
            unsent: AtomicUsize::new(0),
            sent_at: AtomicU64::new(0),
            preface: AtomicUsize::new(0),
            owes_answer: AtomicBool::new(false),
            turns: AtomicU64::new(0),
        })
    }

    /// A request has begun.
    pub(super) fn begin(self: &Arc<Activity>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.owes_answer.store(true, Ordering::Relaxed);
        InFlight {
            activity: self.clone(),
            is_answered: false,
        }
    }

    /// Whether what is written may come from the service.
    pub(super) fn owes_answer(&self) -> bool {
        self.owes_answer.load(Ordering::Relaxed)
    }

    /// Everything that was written is taken by the socket.
    pub(super) fn flushed(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            self.owes_answer.store(false, Ordering::Relaxed);
        }
    }

    /// Its task drives it on.
    pub(super) fn take_turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of the present turn.
    pub(super) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.preface.load(Ordering::Relaxed) == HTTP2_PREFACE.len()
    }

    /// A request is in flight, or an answer is not taken by the socket yet.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 || self.write_stalled_at.load(Ordering::Relaxed) != 0
    }

    /// Since when no request is in flight, for the choice of a connection to close; `None` while one is.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let since = Duration::from_millis(self.quiet_since.load(Ordering::Relaxed));
        (!self.is_busy()).then(|| self.began + since)
    }

    pub(super) fn judge(&self, limits: &Limits) -> Verdict {
        self.judge_at(self.now(), limits)
    }

    fn judge_at(&self, now: u64, limits: &Limits) -> Verdict {
        let passed = |since: u64| Duration::from_millis(now.saturating_sub(since));
        let write_stalled_at = self.write_stalled_at.load(Ordering::Relaxed);
        if write_stalled_at != 0 && passed(write_stalled_at) >= limits.write_timeout {
            return Verdict::Cut;
        }
        let is_unsent = self.unsent.load(Ordering::Relaxed) > 0;
        if is_unsent && passed(self.sent_at.load(Ordering::Relaxed)) >= limits.write_timeout {
            return Verdict::Cut;
        }
        if let Some(age) = limits.max_connection_age {
            let age = age.mul_f64(0.9 + 0.2 * self.spread);
            let over = Duration::from_millis(now).checked_sub(age);
            let grace = limits.max_connection_age_grace.unwrap_or(Duration::MAX);
            if over.is_some_and(|over| over >= grace) {
                return Verdict::Cut;
            }
            if over.is_some() && !self.close.is_cancelled() {
                return Verdict::Close;
            }
        }
        if self.is_busy() {
            return Verdict::Leave(limits.shortest_wait());
        }
        let quiet_since = self.quiet_since.load(Ordering::Relaxed);
        let heard_at = self.heard_at.load(Ordering::Relaxed);
        // Over HTTP/2, bytes without a request are pings and window updates; a partial head is bounded by its size.
        let head_began = if heard_at != 0 && !self.is_http2() {
            Some(heard_at)
        } else if quiet_since == 0 && heard_at == 0 {
            Some(0)
        } else {
            None
        };
        if head_began.is_some_and(|began| passed(began) >= limits.header_timeout) {
            return Verdict::Cut;
        }
        let idle = passed(quiet_since);
        if idle >= limits.idle_timeout {
            return Verdict::Close;
        }
        Verdict::Leave(
            (limits.idle_timeout - idle)
                .min(limits.shortest_wait())
                .max(Duration::from_millis(1)),
        )
    }

    /// Milliseconds since the beginning, never 0.
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    pub(super) fn heard(&self, bytes: &[u8]) {
        let preface = self.preface.load(Ordering::Relaxed);
        if let Some(expected) = HTTP2_PREFACE.get(preface..).filter(|rest| !rest.is_empty()) {
            let expected = &expected[..expected.len().min(bytes.len())];
            let is_preface = bytes.starts_with(expected);
            let preface = if is_preface {
                preface + expected.len()
            } else {
                usize::MAX
            };
            self.preface.store(preface, Ordering::Relaxed);
        }
        if self.heard_at.load(Ordering::Relaxed) != 0 {
            return;
        }
        self.heard_at.store(self.now(), Ordering::Relaxed);
    }

    fn wrote(&self, taken: bool) {
        let stalled = self.write_stalled_at.load(Ordering::Relaxed) != 0;
        if taken == stalled {
            self.write_stalled_at
                .store(if taken { 0 } else { self.now() }, Ordering::Relaxed);
        }
    }
}

impl InFlight {
    /// The answer is made; what is left is to send it.
    pub(super) fn answered(&mut self) {
        let activity = &self.activity;
        self.is_answered = true;
        if activity.unsent.fetch_add(1, Ordering::Relaxed) == 0 {
            activity.sent_at.store(activity.now(), Ordering::Relaxed);
        }
    }

    /// A part of the answer was sent.
    pub(super) fn goes_on(&self) {
        self.activity.sent_at.store(self.activity.now(), Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.activity;
        let now = activity.now();
        if self.is_answered {
            activity.sent_at.store(now, Ordering::Relaxed);
            activity.unsent.fetch_sub(1, Ordering::Relaxed);
        }
        if activity.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            activity.heard_at.store(0, Ordering::Relaxed);
            activity.quiet_since.store(now, Ordering::Relaxed);
        }
    }
}

/// A stream that notes in its connection's [`Activity`] what happens on it, from which is read [`Ahead`], and on which what is
/// written leaves [`Together`].
pub(super) struct Watched<T> {
    pub(super) stream: T,
    pub(super) activity: Arc<Activity>,
    ahead: Ahead,
    together: Together,
}

impl<T> Watched<T> {
    pub(super) fn new(stream: T, activity: Arc<Activity>) -> Watched<T> {
        Watched {
            stream,
            activity,
            ahead: Ahead::default(),
            together: Together::default(),
        }
    }

    fn is_due(&mut self, context: &Context<'_>) -> bool {
        self.together.is_due(&self.activity, context)
    }

    fn note_write<R>(&mut self, written: Poll<R>) -> Poll<R> {
        if written.is_pending() {
            self.together.wait_for_socket(&self.activity);
        }
        self.note_progress(written)
    }

    fn note_progress<R>(&self, written: Poll<R>) -> Poll<R> {
        self.activity.wrote(written.is_ready());
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let watched = &mut *self;
        let polled = watched.ahead.poll_read(&mut watched.stream, context, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            self.activity.heard(&buffer.filled()[before..]);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
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
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.note_progress(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Drives a connection to its end: its own, or (`None`) the one that its [`Activity`] and `limits` demand.
/// `close` has it begin no further request and end when the begun ones are answered.
pub(super) async fn drive<C: Future>(
    connection: C,
    close: impl Fn(Pin<&mut C>),
    activity: &Activity,
    limits: &Limits,
) -> Option<C::Output> {
    let mut connection = std::pin::pin!(connection);
    let mut timer = std::pin::pin!(tokio::time::sleep(limits.shortest_wait().min(limits.idle_timeout)));
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            outcome = std::future::poll_fn(|context| {
                activity.take_turn();
                connection.as_mut().poll(context)
            }) => return Some(outcome),
            () = activity.close.cancelled(), if !closing => {
                closing = true;
                close(connection.as_mut());
                timer.as_mut().reset(Instant::now() + CLOSING_GRACE);
            }
            () = timer.as_mut() => match activity.judge(limits) {
                Verdict::Cut => return None,
                // The peer was told to close and has nothing in flight.
                _ if closing && !activity.is_busy() => return None,
                Verdict::Close => activity.close.cancel(),
                Verdict::Leave(pause) => timer.as_mut().reset(Instant::now() + pause),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    fn activity() -> Arc<Activity> {
        Activity::new(CancellationToken::new())
    }

    fn limits() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            write_timeout: Duration::from_secs(30),
            ..Limits::default()
        }
    }

    fn verdict(activity: &Activity, second: u64) -> Verdict {
        activity.judge_at(second * SECOND, &limits())
    }

    #[test]
    fn a_connection_that_never_says_anything_is_cut_after_the_header_timeout() {
        let activity = activity();
        assert!(matches!(verdict(&activity, 9), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 10), Verdict::Cut);
    }

    #[test]
    fn a_head_that_does_not_end_is_cut_counted_from_its_own_first_byte() {
        let activity = activity();
        drop(activity.begin());
        assert!(matches!(verdict(&activity, 300), Verdict::Leave(_)));
        activity.heard_at.store(300 * SECOND, Ordering::Relaxed);
        assert!(matches!(verdict(&activity, 309), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 310), Verdict::Cut);
    }

    #[test]
    fn a_kept_connection_without_requests_is_closed_after_the_idle_timeout_not_the_header_timeout() {
        let activity = activity();
        activity.heard(b"POST /v1/traces HTTP/1.1\r\n");
        drop(activity.begin());
        assert!(matches!(verdict(&activity, 599), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 601), Verdict::Close);
    }

    #[test]
    fn an_http2_connection_may_be_idle_from_its_beginning_and_pings_do_not_count_as_heads() {
        let activity = activity();
        activity.heard(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(matches!(verdict(&activity, 300), Verdict::Leave(_)));
        drop(activity.begin());
        activity.heard(b"a ping");
        assert!(matches!(verdict(&activity, 300), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 601), Verdict::Close);
    }

    #[test]
    fn http2_is_known_however_its_first_bytes_are_cut_up_and_only_by_its_first_bytes() {
        for (reads, expected) in [
            (&[HTTP2_PREFACE][..], true),
            (&[HTTP2_PREFACE, b"a frame"], true),
            (&[b"P", b"R", b"I", b" ", &HTTP2_PREFACE[4..]], true),
            (&[b"PR", b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n a frame"], true),
            (&[b"PRI * HTTP/2.0\r\n"], false),
            (&[b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n"], false),
            (&[b"P", b"OST / HTTP/1.1"], false),
            (&[b"POST / HTTP/1.1", HTTP2_PREFACE], false),
        ] {
            let activity = activity();
            reads.iter().for_each(|read| activity.heard(read));
            assert_eq!(activity.is_http2(), expected, "{reads:?}");
        }
    }

    #[test]
    fn an_old_connection_is_closed_whatever_it_does_and_cut_after_its_grace() {
        let activity = activity();
        let limits = Limits {
            max_connection_age: Some(Duration::from_secs(100)),
            max_connection_age_grace: Some(Duration::from_secs(50)),
            ..limits()
        };
        let verdict = |second: u64| activity.judge_at(second * SECOND, &limits);
        let request = activity.begin();
        assert!(matches!(verdict(89), Verdict::Leave(_)));
        assert_eq!(verdict(110), Verdict::Close);
        activity.close.cancel();
        assert!(matches!(verdict(110), Verdict::Leave(_)), "it is closing already");
        assert!(matches!(verdict(139), Verdict::Leave(_)));
        assert_eq!(verdict(160), Verdict::Cut);
        drop(request);
    }

    #[test]
    fn connections_that_began_together_do_not_grow_old_together() {
        let limits = Limits {
            max_connection_age: Some(Duration::from_secs(100)),
            ..limits()
        };
        let old = (0..200).filter(|_| activity().judge_at(100 * SECOND, &limits) == Verdict::Close);
        assert!((1..200).contains(&old.count()));
    }

    #[test]
    fn a_busy_connection_is_left_alone_unless_its_peer_does_not_read() {
        let activity = activity();
        let request = activity.begin();
        assert!(matches!(verdict(&activity, 10_000), Verdict::Leave(_)));
        assert_eq!(activity.quiet_since(), None);
        activity.wrote(false);
        assert!(matches!(verdict(&activity, 29), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 31), Verdict::Cut);
        activity.wrote(true);
        assert!(matches!(verdict(&activity, 31), Verdict::Leave(_)));
        drop(request);
        assert!(activity.quiet_since().is_some());
    }

    #[test]
    fn a_peer_whose_flow_control_lets_no_answer_through_is_cut_and_one_that_takes_some_is_not() {
        let activity = activity();
        let mut requests: Vec<InFlight> = (0..3).map(|_| activity.begin()).collect();
        assert!(
            matches!(verdict(&activity, 10_000), Verdict::Leave(_)),
            "the service may take its time"
        );
        requests.iter_mut().for_each(InFlight::answered);
        assert!(matches!(verdict(&activity, 29), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 31), Verdict::Cut);
        drop(requests.pop());
        activity.sent_at.store(20 * SECOND, Ordering::Relaxed);
        assert!(matches!(verdict(&activity, 49), Verdict::Leave(_)));
        assert_eq!(verdict(&activity, 50), Verdict::Cut);
        drop(requests);
        assert!(matches!(verdict(&activity, 50), Verdict::Leave(_)));
    }
}
