//! Admission: how many bytes of requests may be in memory at once.
//!
//! Bytes are counted as they arrive, not as they are announced, so that a peer that promises 64 MiB and sends nothing
//! takes nothing from the others. What does not fit is refused at once: the sender has a retry policy, and a request
//! waiting for memory would hold the memory it already has. One peer gets at most three quarters, so that there is
//! always room for another one's requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::Gauge;

use crate::listen::Peer;

/// The bytes that requests may hold together.
pub(super) struct Admission {
    limit: usize,
    of_one_peer: usize,
    used: AtomicUsize,
    gauge: Gauge,
}

/// Why further bytes are not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no room now.
    NoRoom,
    /// There is not enough room for this request even when nothing else is there.
    NeverFits {
        /// The bytes that one request may hold.
        limit: usize,
    },
}

/// The bytes that one request holds, given back when dropped.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    peer: Peer,
    bytes: usize,
}

impl Admission {
    pub(super) fn new(limit: usize, gauge: Gauge) -> Arc<Admission> {
        Arc::new(Admission {
            limit,
            of_one_peer: limit - limit / 4,
            used: AtomicUsize::new(0),
            gauge,
        })
    }

    /// A reservation of nothing yet.
    pub(super) fn begin(self: &Arc<Admission>, peer: Peer) -> Reservation {
        Reservation {
            admission: self.clone(),
            peer,
            bytes: 0,
        }
    }

    fn moved(&self, used: usize) {
        self.gauge.set(used as f64);
    }
}

impl Reservation {
    /// Whose request it is.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Takes room for further bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refused> {
        let admission = &self.admission;
        let limit = admission.of_one_peer;
        if self.bytes.saturating_add(bytes) > limit {
            return Err(Refused::NeverFits { limit });
        }
        take(self.peer.held(), bytes, limit)?;
        match take(&admission.used, bytes, admission.limit) {
            Ok(used) => admission.moved(used),
            Err(refused) => {
                self.peer.held().fetch_sub(bytes, Ordering::Relaxed);
                return Err(refused);
            }
        }
        self.bytes += bytes;
        Ok(())
    }
}

/// Adds to a counter unless it would be more than `limit` then.
fn take(counter: &AtomicUsize, bytes: usize, limit: usize) -> Result<usize, Refused> {
    let fits = |held: usize| held.checked_add(bytes).filter(|&held| held <= limit);
    let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
    before.map(|before| before + bytes).map_err(|_| Refused::NoRoom)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.peer.held().fetch_sub(self.bytes, Ordering::Relaxed);
            let before = self.admission.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.admission.moved(before - self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_dropped_reservations_make_room() {
        let admission = Admission::new(100, Gauge::noop());
        let mut first = admission.begin(Peer::new(None));
        let mut second = admission.begin(Peer::new(None));
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(41), Err(Refused::NoRoom));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(second.grow(usize::MAX), Err(Refused::NeverFits { limit: 75 }));
        drop(first);
        assert_eq!(second.grow(35), Ok(()));
        drop(second);
        assert_eq!(admission.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_requests_of_one_peer_together_leave_a_quarter_to_the_others() {
        let admission = Admission::new(100, Gauge::noop());
        let greedy = Peer::new(None);
        let mut first = admission.begin(greedy.clone());
        let mut second = admission.begin(greedy.clone());
        assert_eq!(first.grow(70), Ok(()));
        assert_eq!(second.grow(6), Err(Refused::NoRoom));
        assert_eq!(second.grow(5), Ok(()));
        let mut modest = admission.begin(Peer::new(None));
        assert_eq!(modest.grow(25), Ok(()));
        assert_eq!(modest.grow(1), Err(Refused::NoRoom));
        assert_eq!(
            modest.peer.held().load(Ordering::Relaxed),
            25,
            "a refusal leaves the counts as they were"
        );
        drop((first, second));
        assert_eq!(greedy.held().load(Ordering::Relaxed), 0);
    }
}
