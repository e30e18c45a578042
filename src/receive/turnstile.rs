//! How much requests may do before what reads the journal has its turn.
//!
//! Every connection with a request is a task; meter, ledger and an exporter are a few. A thread that lets each task run in
//! turn gives sixty-four connections sixty-four shares and the meter one: what is taken in is not kept up with, although
//! there would be time for it, and has to be read from files again until the journal is full. Therefore requests pass
//! here, in the order in which they came, and after so much work the next one first lets everything else run that is
//! ready.
//!
//! # Invariants
//!
//! * After each stretch of [`STRETCH`] one of the threads runs whatever else is ready; so each does after as much work of
//!   its own, on average.
//! * Nobody waits while nothing else is ready: without other work a thread does nothing but this.
//! * Who goes away while it waits leaves nothing behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The work of requests at a stretch. A request of 512 spans takes 0.1 ms, and the meter about as long for it, which gives
/// way after a millisecond.
const STRETCH: Duration = Duration::from_micros(500);

pub(super) struct Turnstile {
    /// One for each thread: what passes is work without a pause, so that more at once would be of no use.
    places: Semaphore,
    stretch: u64,
    /// Nanoseconds of work since somebody let the others run.
    spent: AtomicU64,
}

impl Turnstile {
    pub(super) fn new(threads: usize) -> Turnstile {
        Turnstile {
            places: Semaphore::new(threads),
            stretch: STRETCH.as_nanos() as u64,
            spent: AtomicU64::new(0),
        }
    }

    /// Does the work of one request when it is its turn.
    pub(super) async fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        // An error would say that it is closed, which it never is.
        let _place = self.places.acquire().await;
        if self.spent.load(Ordering::Relaxed) >= self.stretch {
            self.spent.store(0, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        let since = Instant::now();
        let outcome = work();
        let took = since.elapsed().as_nanos() as u64;
        self.spent.fetch_add(took, Ordering::Relaxed);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    fn turnstile(stretch: Duration) -> Arc<Turnstile> {
        Arc::new(Turnstile {
            stretch: stretch.as_nanos() as u64,
            ..Turnstile::new(1)
        })
    }

    /// How often another task had its turn when the last of 64 requests was done, which all came at once.
    async fn turns_of_others(turnstile: Arc<Turnstile>) -> usize {
        let turns = Arc::new(AtomicUsize::new(0));
        let requests: Vec<_> = (0..64)
            .map(|_| {
                let (turnstile, turns) = (turnstile.clone(), turns.clone());
                tokio::spawn(async move { turnstile.pass(|| turns.load(Ordering::Relaxed)).await })
            })
            .collect();
        let other = tokio::spawn({
            let turns = turns.clone();
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut seen = Vec::new();
        for request in requests {
            seen.push(request.await.unwrap());
        }
        other.abort();
        assert!(seen.is_sorted(), "in the order in which they came: {seen:?}");
        seen[63]
    }

    #[tokio::test]
    async fn others_have_a_turn_after_each_stretch_of_requests() {
        assert!(turns_of_others(turnstile(Duration::ZERO)).await >= 63);
    }

    #[tokio::test]
    async fn requests_that_take_little_do_not_wait_for_others() {
        assert_eq!(turns_of_others(turnstile(Duration::from_secs(3600))).await, 0);
    }

    #[tokio::test]
    async fn who_goes_away_while_it_waits_keeps_nobody_else() {
        let turnstile = turnstile(Duration::ZERO);
        let mut leaving = Box::pin(turnstile.pass(|| ()));
        assert!(futures_util::poll!(&mut leaving).is_pending(), "others have their turn");
        let mut behind = Box::pin(turnstile.pass(|| ()));
        assert!(futures_util::poll!(&mut behind).is_pending());
        drop(leaving);
        behind.await;
        assert_eq!(turnstile.places.available_permits(), 1);
    }
}
