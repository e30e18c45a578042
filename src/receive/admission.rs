//! Admission: how many bytes of requests may be in memory at once.
//!
//! Bytes are counted as they arrive, not as they are announced, so that a peer that promises 64 MiB and sends nothing
//! takes nothing from the others. What does not fit is refused at once: the sender has a retry policy, and a request
//! waiting for memory would hold the memory it already has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::Gauge;

/// The bytes that requests may hold together.
pub(super) struct Admission {
    limit: usize,
    used: AtomicUsize,
    gauge: Gauge,
}

/// No room for further bytes now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The bytes that one request holds, given back when dropped.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Admission {
    pub(super) fn new(limit: usize, gauge: Gauge) -> Arc<Admission> {
        Arc::new(Admission {
            limit,
            used: AtomicUsize::new(0),
            gauge,
        })
    }

    /// A reservation of nothing yet.
    pub(super) fn begin(self: &Arc<Admission>) -> Reservation {
        Reservation {
            admission: self.clone(),
            bytes: 0,
        }
    }

    fn moved(&self, used: usize) {
        self.gauge.set(used as f64);
    }
}

impl Reservation {
    /// Takes room for further bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let admission = &self.admission;
        let fits = |used: usize| used.checked_add(bytes).filter(|&used| used <= admission.limit);
        let before = admission
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| NoRoom)?;
        self.bytes += bytes;
        admission.moved(before + bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
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
        let mut first = admission.begin();
        let mut second = admission.begin();
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(41), Err(NoRoom));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(second.grow(usize::MAX), Err(NoRoom));
        drop(first);
        assert_eq!(second.grow(60), Ok(()));
        drop(second);
        assert_eq!(admission.used.load(Ordering::Relaxed), 0);
    }
}
