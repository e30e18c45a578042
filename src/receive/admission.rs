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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use metrics::Gauge;

use crate::listen::Peer;

/// The bytes that requests may hold together.
pub(super) struct Admission {
    limit: usize,
    of_one_peer: usize,
    of_one_request: usize,
    shared: AtomicUsize,
    /// Whether a request goes alone now.
    is_one_alone: AtomicBool,
    /// What it holds.
    alone: AtomicUsize,
    gauge: Gauge,
}

/// There is no room for further bytes now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The bytes that one request holds, given back when dropped.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    peer: Peer,
    bytes: usize,
    is_alone: bool,
}

impl Admission {
    pub(super) fn new(limit: usize, gauge: Gauge) -> Arc<Admission> {
        Arc::new(Admission {
            limit,
            of_one_peer: limit - limit / 4,
            of_one_request: limit / 4,
            shared: AtomicUsize::new(0),
            is_one_alone: AtomicBool::new(false),
            alone: AtomicUsize::new(0),
            gauge,
        })
    }

    /// A reservation of nothing yet.
    pub(super) fn begin(self: &Arc<Admission>, peer: Peer) -> Reservation {
        Reservation {
            admission: self.clone(),
            peer,
            bytes: 0,
            is_alone: false,
        }
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

    /// Takes room for further bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if self.is_alone {
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

    /// What it may still hold beside the others.
    pub(super) fn shareable(&self) -> usize {
        self.admission.of_one_request.saturating_sub(self.bytes)
    }

    /// Goes alone from now on, before it is known how many bytes it takes.
    pub(super) fn alone(&mut self) -> Result<(), NoRoom> {
        if self.is_alone { Ok(()) } else { self.go_alone(0) }
    }

    fn share(&self, bytes: usize) -> Result<(), NoRoom> {
        let admission = &self.admission;
        take(self.peer.held(), bytes, admission.of_one_peer)?;
        take(&admission.shared, bytes, admission.limit).inspect_err(|NoRoom| {
            self.peer.held().fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    fn go_alone(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if self.admission.is_one_alone.swap(true, Ordering::Acquire) {
            return Err(NoRoom);
        }
        self.give_back();
        self.is_alone = true;
        self.admission.alone.store(self.bytes + bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self) {
        if self.is_alone {
            self.admission.alone.store(0, Ordering::Relaxed);
            self.admission.is_one_alone.store(false, Ordering::Release);
        } else {
            self.peer.held().fetch_sub(self.bytes, Ordering::Relaxed);
            self.admission.shared.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Adds to a counter unless it would be more than `limit` then.
fn take(counter: &AtomicUsize, bytes: usize, limit: usize) -> Result<(), NoRoom> {
    let fits = |held: usize| held.checked_add(bytes).filter(|&held| held <= limit);
    let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
    before.map(|_| ()).map_err(|_| NoRoom)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 || self.is_alone {
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
        assert!(!admission.is_one_alone.load(Ordering::Relaxed));
    }
}
