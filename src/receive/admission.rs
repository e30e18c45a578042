//! Admission: how many bytes of requests may be in memory at once.
//!
//! Bytes are counted as they arrive, not as they are announced, so that a peer that promises 64 MiB and sends nothing
//! takes nothing from the others. What does not fit is refused at once: the sender has a retry policy, and a request
//! waiting for memory would hold the memory it already has.
//!
//! # Invariants
//!
//! * Requests share `limit` bytes. One of them gets at most a quarter, and one peer three quarters, so that there is
//!   always room for another one's requests.
//! * A request that is larger than its quarter goes alone: beside the others, one at a time, whoever sends it. The
//!   receivers' size limits bound it. So the usual limit can be small, and the largest request still fits.
//! * A request that says beforehand that it is so large waits for its turn before it is read. What has come of it by then is
//!   in memory without being counted, a frame of HTTP/2 and the window of its stream; therefore few may wait so, and of one
//!   connection one: two would take the whole window from the one that goes alone.
//! * One of which it turns out when it is decoded that it is so large waits with what it holds, which is counted. One whose
//!   size was not told is refused when another one goes alone.
//! * Turns go round between peers: each has at most one request in the queue.
//! * Who goes alone must not dawdle, and least of all while another peer waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::Gauge;
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::buffers::Buffers;
use crate::listen::Peer;

/// How long a large request waits for its turn before its sender is told to try again.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// How long the body of a request may take to arrive once it goes alone.
const ALONE_WITHIN: Duration = Duration::from_secs(20);

/// While another peer waits, the body has to arrive with this many bytes a second, after the first second.
const PRESSED_RATE: usize = 2 * 1024 * 1024;

/// Requests that wait for their turn before they are read: of one connection, of one peer, and of all.
const MOST_UNREAD_OF_ONE_CONNECTION: usize = 1;
const MOST_UNREAD_OF_ONE_PEER: usize = 4;
const MOST_UNREAD: usize = 8;

/// Bytes of buffers that wait for the next requests.
pub(super) const BUFFERS: usize = 8 << 20;

/// The bytes that requests may hold together.
pub(super) struct Admission {
    limit: usize,
    of_one_peer: usize,
    of_one_request: usize,
    shared: AtomicUsize,
    /// One permit: to go alone.
    turn: Arc<Semaphore>,
    /// Requests of other peers that wait for that.
    waiting: AtomicUsize,
    /// Requests that wait for it before they are read.
    unread: AtomicUsize,
    /// Told when one begins to wait.
    pressed: Notify,
    /// What the one that goes alone holds.
    alone: AtomicUsize,
    turn_wait: Duration,
    alone_within: Duration,
    gauge: Gauge,
    buffers: Arc<Buffers>,
}

/// There is no room for further bytes now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The bytes that one request holds, given back when dropped.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    peer: Peer,
    bytes: usize,
    alone: Option<Alone>,
}

/// Of a request that goes alone.
struct Alone {
    since: Instant,
    _turn: Turn,
}

/// The right to go alone: that of the peer, and that of all.
type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Counts one that waits while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request that waits before it is read, while it lives.
struct Unread {
    admission: Arc<Admission>,
    peer: Peer,
}

impl Unread {
    fn begin(admission: &Arc<Admission>, peer: &Peer) -> Result<Unread, NoRoom> {
        let unread = Unread {
            admission: admission.clone(),
            peer: peer.clone(),
        };
        let places =
            unread
                .counts()
                .into_iter()
                .zip([MOST_UNREAD, MOST_UNREAD_OF_ONE_PEER, MOST_UNREAD_OF_ONE_CONNECTION]);
        let is_free = places.fold(true, |is_free, (count, most)| {
            count.fetch_add(1, Ordering::Relaxed) < most && is_free
        });
        // Otherwise it gives the places back.
        is_free.then_some(unread).ok_or(NoRoom)
    }

    fn counts(&self) -> [&AtomicUsize; 3] {
        let [of_peer, of_connection] = self.peer.large_unread();
        [&self.admission.unread, of_peer, of_connection]
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        for count in self.counts() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Admission {
    pub(super) fn new(limit: usize, gauge: Gauge) -> Arc<Admission> {
        Arc::new(Admission {
            limit,
            of_one_peer: limit - limit / 4,
            of_one_request: limit / 4,
            shared: AtomicUsize::new(0),
            turn: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            pressed: Notify::new(),
            alone: AtomicUsize::new(0),
            turn_wait: TURN_WAIT,
            alone_within: ALONE_WITHIN,
            gauge,
            buffers: Buffers::new(BUFFERS),
        })
    }

    /// One that waits no longer than this for a turn, and for the body of a request that has it.
    #[cfg(test)]
    pub(super) fn impatient(limit: usize, patience: Duration) -> Arc<Admission> {
        let mut admission = Admission::new(limit, Gauge::noop());
        if let Some(admission) = Arc::get_mut(&mut admission) {
            (admission.turn_wait, admission.alone_within) = (patience, patience);
        }
        admission
    }

    /// Where memory for bodies comes from.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// A reservation of nothing yet.
    pub(super) fn begin(self: &Arc<Admission>, peer: Peer) -> Reservation {
        Reservation {
            admission: self.clone(),
            peer,
            bytes: 0,
            alone: None,
        }
    }

    /// The turn of this peer, when all that wait before it had theirs.
    async fn turn(&self, peer: &Peer) -> Result<Turn, AcquireError> {
        let of_peer = peer.large_turn().clone().acquire_owned().await?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.pressed.notify_one();
        Ok((of_peer, self.turn.clone().acquire_owned().await?))
    }

    fn publish(&self) {
        let held = self.shared.load(Ordering::Relaxed) + self.alone.load(Ordering::Relaxed);
        self.gauge.set(held as f64);
    }
}

impl Reservation {
    /// Whose request it is.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Where memory for bodies comes from.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        self.admission.buffers()
    }

    /// Takes room for further bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if self.alone.is_some() {
            self.admission.alone.fetch_add(bytes, Ordering::Relaxed);
        } else if self.bytes.saturating_add(bytes) <= self.admission.of_one_request {
            self.share(bytes)?;
        } else {
            self.go_alone(bytes)?;
        }
        self.bytes += bytes;
        self.admission.publish();
        Ok(())
    }

    /// What it may still hold without waiting.
    pub(super) fn shareable(&self) -> usize {
        match self.alone {
            Some(_) => usize::MAX,
            None => self.admission.of_one_request.saturating_sub(self.bytes),
        }
    }

    /// Waits for its turn if it is going to hold more than it may beside the others. For a request that is not read yet.
    pub(super) async fn expect(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if bytes <= self.admission.of_one_request || self.go_alone(0).is_ok() {
            return Ok(());
        }
        let _unread = Unread::begin(&self.admission, &self.peer)?;
        self.wait_alone().await
    }

    /// Waits for its turn with what it holds.
    pub(super) async fn wait_alone(&mut self) -> Result<(), NoRoom> {
        if self.alone.is_some() {
            return Ok(());
        }
        let turn = self.admission.turn(&self.peer);
        match tokio::time::timeout(self.admission.turn_wait, turn).await {
            Ok(Ok(turn)) => {
                self.begin_alone(turn, 0);
                Ok(())
            }
            // The semaphores are never closed.
            Ok(Err(_)) | Err(_) => Err(NoRoom),
        }
    }

    /// Returns when the rest of a body of which so much has arrived has been waited for long enough, which is never if it does
    /// not go alone.
    pub(super) async fn dawdles(&self, arrived: usize) {
        let Some(alone) = &self.alone else {
            return std::future::pending().await;
        };
        let admission = &self.admission;
        loop {
            let is_pressed = admission.waiting.load(Ordering::Relaxed) > 0;
            let until = alone.since + time_for(arrived, is_pressed, admission.alone_within);
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    // Who pressed may be gone.
                    if !is_pressed || admission.waiting.load(Ordering::Relaxed) > 0 {
                        return;
                    }
                }
                () = admission.pressed.notified() => {}
            }
        }
    }

    fn share(&self, bytes: usize) -> Result<(), NoRoom> {
        let admission = &self.admission;
        take(self.peer.held(), bytes, admission.of_one_peer)?;
        take(&admission.shared, bytes, admission.limit).inspect_err(|NoRoom| {
            self.peer.held().fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    fn go_alone(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let of_peer = self.peer.large_turn().clone().try_acquire_owned().map_err(|_| NoRoom)?;
        let of_all = self.admission.turn.clone().try_acquire_owned().map_err(|_| NoRoom)?;
        self.begin_alone((of_peer, of_all), bytes);
        Ok(())
    }

    fn begin_alone(&mut self, turn: Turn, bytes: usize) {
        self.give_back();
        self.alone = Some(Alone {
            since: Instant::now(),
            _turn: turn,
        });
        self.admission.alone.store(self.bytes + bytes, Ordering::Relaxed);
    }

    fn give_back(&self) {
        if self.alone.is_some() {
            self.admission.alone.store(0, Ordering::Relaxed);
        } else {
            self.peer.held().fetch_sub(self.bytes, Ordering::Relaxed);
            self.admission.shared.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// How long a body may take to arrive, alone, of which so much has arrived.
fn time_for(bytes: usize, is_pressed: bool, most: Duration) -> Duration {
    let pressed = Duration::from_secs(1).mul_f64(1.0 + bytes as f64 / PRESSED_RATE as f64);
    if is_pressed { pressed.min(most) } else { most }
}

/// Adds to a counter unless it would be more than `limit` then.
fn take(counter: &AtomicUsize, bytes: usize, limit: usize) -> Result<(), NoRoom> {
    let fits = |held: usize| held.checked_add(bytes).filter(|&held| held <= limit);
    let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
    before.map(|_| ()).map_err(|_| NoRoom)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 || self.alone.is_some() {
            // Before the turn ends.
            self.give_back();
            self.admission.publish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_dropped_reservations_make_room() {
        let admission = Admission::new(100, Gauge::noop());
        let mut held: Vec<Reservation> = (0..4).map(|_| admission.begin(Peer::new(None))).collect();
        for reservation in &mut held {
            assert_eq!(reservation.grow(24), Ok(()));
        }
        let mut another = admission.begin(Peer::new(None));
        assert_eq!(another.grow(5), Err(NoRoom));
        assert_eq!(another.grow(4), Ok(()));
        held.pop();
        assert_eq!(another.grow(20), Ok(()));
        drop((held, another));
        assert_eq!(admission.shared.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_requests_of_one_peer_together_leave_a_quarter_to_the_others() {
        let admission = Admission::new(100, Gauge::noop());
        let greedy = Peer::new(None);
        let mut held: Vec<Reservation> = (0..3).map(|_| admission.begin(greedy.clone())).collect();
        for reservation in &mut held {
            assert_eq!(reservation.grow(24), Ok(()));
        }
        let mut further = admission.begin(greedy.clone());
        assert_eq!(further.grow(4), Err(NoRoom));
        assert_eq!(further.grow(3), Ok(()));
        let mut modest = admission.begin(Peer::new(None));
        assert_eq!(modest.grow(25), Ok(()));
        assert_eq!(
            (
                modest.peer.held().load(Ordering::Relaxed),
                greedy.held().load(Ordering::Relaxed)
            ),
            (25, 75),
            "a refusal leaves the counts as they were"
        );
        drop((held, further));
        assert_eq!(greedy.held().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_request_beyond_a_quarter_goes_alone_and_takes_nothing_from_the_others() {
        let admission = Admission::new(100, Gauge::noop());
        let mut large = admission.begin(Peer::new(None));
        assert_eq!(large.grow(20), Ok(()));
        assert_eq!(large.grow(500), Ok(()));
        assert_eq!(admission.shared.load(Ordering::Relaxed), 0);
        assert_eq!(admission.alone.load(Ordering::Relaxed), 520);
        let mut second = admission.begin(Peer::new(None));
        assert_eq!(second.grow(26), Err(NoRoom), "one at a time");
        assert_eq!(second.grow(25), Ok(()));
        drop(large);
        assert_eq!(second.grow(1), Ok(()));
        assert_eq!(admission.shared.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(admission.alone.load(Ordering::Relaxed), 0);
        assert_eq!(admission.turn.available_permits(), 1);
    }

    #[tokio::test]
    async fn turns_go_round_between_peers() {
        let admission = Admission::new(100, Gauge::noop());
        let (greedy, modest) = (Peer::new(None), Peer::new(None));
        let waits = |peer: &Peer| {
            let mut reservation = admission.begin(peer.clone());
            tokio::spawn(async move { reservation.wait_alone().await.map(|()| reservation) })
        };
        let first = waits(&greedy).await.unwrap().unwrap();
        let others: Vec<_> = (0..9).map(|_| waits(&greedy)).collect();
        tokio::task::yield_now().await;
        let of_modest = waits(&modest);
        tokio::task::yield_now().await;
        drop(first);
        assert!(of_modest.await.unwrap().is_ok());
        let mut served = 0;
        for other in others {
            served += usize::from(other.await.unwrap().is_ok());
        }
        assert_eq!(served, 9);
    }

    #[tokio::test]
    async fn few_large_requests_wait_before_they_are_read_and_of_one_connection_one() {
        let admission = Admission::new(100, Gauge::noop());
        let mut alone = admission.begin(Peer::new(None));
        alone.expect(500).await.unwrap();
        let waits = |peer: &Peer| {
            let mut reservation = admission.begin(peer.clone());
            tokio::spawn(async move { reservation.expect(500).await })
        };
        let (greedy, modest) = (Peer::new(None), Peer::new(None));
        let mut waiting: Vec<_> = (0..MOST_UNREAD_OF_ONE_PEER)
            .map(|_| waits(&greedy.on_another_connection()))
            .collect();
        tokio::task::yield_now().await;
        let further = waits(&greedy.on_another_connection());
        assert_eq!(further.await.unwrap(), Err(NoRoom), "too many of one peer");
        waiting.push(waits(&modest));
        tokio::task::yield_now().await;
        assert_eq!(waits(&modest).await.unwrap(), Err(NoRoom), "two of one connection");
        waiting.extend((waiting.len()..MOST_UNREAD).map(|_| waits(&Peer::new(None))));
        tokio::task::yield_now().await;
        assert_eq!(waits(&Peer::new(None)).await.unwrap(), Err(NoRoom), "too many");
        let left = waiting.remove(0);
        left.abort();
        assert!(left.await.err().is_some_and(|error| error.is_cancelled()));
        waiting.push(waits(&greedy.on_another_connection()));
        drop(alone);
        for waiting in waiting {
            assert!(waiting.await.unwrap().is_ok());
        }
        assert_eq!(admission.unread.load(Ordering::Relaxed), 0);
        assert_eq!(greedy.large_unread()[0].load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_goes_alone_may_take_its_time_until_another_peer_waits() {
        let admission = Admission::new(100, Gauge::noop());
        let greedy = Peer::new(None);
        let mut slow = admission.begin(greedy.clone());
        slow.expect(500).await.unwrap();
        let of_its_own = tokio::spawn({
            let mut further = admission.begin(greedy);
            async move { further.expect(500).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(admission.waiting.load(Ordering::Relaxed), 0);
        let pressing = tokio::spawn({
            let mut other = admission.begin(Peer::new(None));
            async move { other.expect(500).await }
        });
        slow.dawdles(0).await;
        assert!(!pressing.is_finished(), "it waits long enough for that");
        drop(slow);
        assert_eq!(pressing.await.unwrap(), Ok(()));
        assert_eq!(of_its_own.await.unwrap(), Ok(()));
        assert_eq!(admission.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn while_another_peer_waits_the_body_has_to_come_with_a_certain_speed() {
        let mebibyte = 1 << 20;
        for (bytes, is_pressed, milliseconds) in [
            (0, false, 20_000),
            (64 * mebibyte, false, 20_000),
            (0, true, 1_000),
            (mebibyte, true, 1_500),
            (8 * mebibyte, true, 5_000),
            (64 * mebibyte, true, 20_000),
        ] {
            let time = time_for(bytes, is_pressed, ALONE_WITHIN);
            assert_eq!(time, Duration::from_millis(milliseconds), "{bytes} {is_pressed}");
        }
    }

    #[tokio::test]
    async fn a_large_request_does_not_wait_for_ever() {
        let admission = Admission::impatient(100, Duration::from_millis(10));
        let mut first = admission.begin(Peer::new(None));
        assert_eq!(first.expect(500).await, Ok(()));
        let mut second = admission.begin(Peer::new(None));
        assert_eq!(second.expect(500).await, Err(NoRoom));
        assert_eq!(second.expect(25).await, Ok(()), "a small one needs no turn");
    }

    #[tokio::test]
    async fn a_request_that_says_that_it_is_large_waits_for_its_turn_and_takes_no_room_meanwhile() {
        let admission = Admission::new(100, Gauge::noop());
        let mut first = admission.begin(Peer::new(None));
        first.expect(500).await.unwrap();
        first.grow(500).unwrap();
        let mut second = admission.begin(Peer::new(None));
        let waiting = tokio::spawn(async move {
            let outcome = second.expect(500).await;
            (second, outcome)
        });
        tokio::task::yield_now().await;
        assert_eq!(admission.shared.load(Ordering::Relaxed), 0);
        drop(first);
        let (second, outcome) = waiting.await.unwrap();
        assert_eq!(outcome, Ok(()));
        assert!(second.alone.is_some());
    }
}
