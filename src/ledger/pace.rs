//! How long to wait after a failure ([`Backoff`]); whether a backlog is written many batches in one transaction, how long one
//! takes more of them, and when others have a turn.
//!
//! Nobody else can write to the file of an SQLite database meanwhile: other processes try for five seconds, as a rule, every
//! tenth of one.

use std::time::{Duration, Instant};

const FIRST_WAIT: Duration = Duration::from_millis(200);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// How long to wait before the next connection: longer and longer, until something was achieved on one.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
}

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff { wait: FIRST_WAIT }
    }

    /// After a failure; `achieved`: something was committed before it.
    pub(super) fn after(&mut self, achieved: bool) -> Duration {
        self.wait = if achieved {
            FIRST_WAIT
        } else {
            (self.wait * 2).min(LONGEST_WAIT)
        };
        self.wait
    }
}

/// Whether somebody is told of a failure after which is waited for so long; all of them would be too many.
pub(super) fn is_worth_telling(wait: Duration) -> bool {
    wait <= FIRST_WAIT * 2
}

/// How long such a transaction is to take in all.
const WHOLE: Duration = Duration::from_millis(1_500);

/// One takes batches for as long at least: a few.
const SHORTEST: Duration = Duration::from_millis(50);

/// After so long of transactions that follow each other, others have a turn: with one more they have not waited five seconds.
const BUSY: Duration = Duration::from_millis(2_500);

/// How long: more than it takes them to try again.
pub(super) const TURN_OF_OTHERS: Duration = Duration::from_millis(110);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// How long a transaction takes batches, so that with writing their rows it is as long as [`WHOLE`].
    taking: Duration,
    /// Since when such transactions, and those of full batches, follow each other.
    busy_since: Option<Instant>,
    /// When the last one of them was over.
    ended: Option<Instant>,
    /// Records before this one are written batch by batch.
    one_by_one_until: u64,
    /// How many transactions in a row were refused.
    refusals: u32,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            taking: WHOLE,
            busy_since: None,
            ended: None,
            one_by_one_until: 0,
            refusals: 0,
        }
    }

    /// Whether a transaction that begins with this record may have many batches.
    pub(super) fn may_have_many(&self, next: u64) -> bool {
        next >= self.one_by_one_until
    }

    /// How long a transaction takes batches.
    pub(super) fn taking(&self) -> Duration {
        self.taking
    }

    /// A transaction begins, of many batches or of one full one.
    pub(super) fn begin(&mut self, now: Instant) {
        let had_turn = |ended| now.duration_since(ended) >= TURN_OF_OTHERS;
        if self.ended.is_none_or(had_turn) {
            self.busy_since = Some(now);
        }
    }

    /// It is over; whether others are to have a turn.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        self.ended = Some(now);
        self.busy_since.is_some_and(|since| now.duration_since(since) >= BUSY)
    }

    /// One of many batches was written, took batches for so long, and as long in all.
    pub(super) fn written(&mut self, taking: Duration, whole: Duration) {
        self.refusals = 0;
        let share = taking.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE);
        self.taking = WHOLE.mul_f64(share.min(1.0)).max(SHORTEST);
    }

    /// One that had these records was refused. They are written batch by batch, and where that happens again and again, ever
    /// more behind them: all of it was for nothing.
    pub(super) fn refused(&mut self, records: std::ops::Range<u64>) {
        let length = records.end.saturating_sub(records.start);
        self.one_by_one_until = records
            .end
            .saturating_add(length.saturating_mul((1 << self.refusals) - 1));
        self.refusals = (self.refusals + 1).min(6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_wait_after_a_failure_grows_until_something_is_committed() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..8).map(|_| backoff.after(false).as_millis()).collect();
        assert_eq!(waits, [400, 800, 1_600, 3_200, 6_400, 12_800, 15_000, 15_000]);
        assert_eq!(backoff.after(true), FIRST_WAIT);
        assert_eq!(backoff.after(false), FIRST_WAIT * 2);
    }

    #[test]
    fn a_transaction_takes_batches_for_as_long_as_leaves_time_to_write_their_rows() {
        let mut pace = Pace::new();
        assert_eq!(pace.taking(), WHOLE);
        // Writing the rows takes twice as long as taking them in.
        for _ in 0..3 {
            let taking = pace.taking();
            pace.written(taking, taking * 3);
        }
        assert_eq!(pace.taking().as_millis(), WHOLE.as_millis() / 3);
        pace.written(MS, 10_000 * MS);
        assert_eq!(pace.taking(), SHORTEST);
        pace.written(400 * MS, 500 * MS);
        assert_eq!(pace.taking().as_millis(), WHOLE.as_millis() * 4 / 5);
        pace.written(Duration::ZERO, Duration::ZERO);
        assert_eq!(pace.taking(), SHORTEST);
    }

    #[test]
    fn others_have_a_turn_before_they_have_waited_five_seconds() {
        let (mut pace, mut now) = (Pace::new(), Instant::now());
        let mut held = Duration::ZERO;
        let mut turns = 0;
        for number in 0..100 {
            // Small ones between them, and however long each takes.
            now += MS * 20;
            pace.begin(now);
            let whole = WHOLE * (number % 3 + 1) / 2;
            (now, held) = (now + whole, held + 20 * MS + whole);
            assert!(held < Duration::from_secs(5), "{held:?}");
            if pace.end(now) {
                (now, held, turns) = (now + TURN_OF_OTHERS, Duration::ZERO, turns + 1);
            }
        }
        assert!(turns > 20, "{turns}");
        // Who was idle begins anew.
        pace.begin(now + BUSY);
        assert!(!pace.end(now + BUSY + WHOLE));
    }

    #[test]
    fn what_is_refused_again_and_again_is_written_one_by_one_for_longer_and_longer() {
        let mut pace = Pace::new();
        assert!(pace.may_have_many(0));
        pace.refused(100..200);
        assert!(!pace.may_have_many(199) && pace.may_have_many(200));
        pace.refused(200..300);
        assert!(!pace.may_have_many(399) && pace.may_have_many(400));
        pace.refused(400..500);
        assert!(!pace.may_have_many(799) && pace.may_have_many(800));
        (0..100).for_each(|_| pace.refused(800..900));
        assert!(pace.may_have_many(900 + 100 * 63));
        pace.written(MS, MS);
        pace.refused(9_000..9_100);
        assert!(pace.may_have_many(9_100));
        pace.refused(u64::MAX - 5..u64::MAX);
    }
}
