//! Places where tests of the whole process can kill it. Nothing is left of this without the feature `failpoints`.

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    BeforeWrite,
    AfterWrite,
    AfterSync,
    BeforeAnswer,
}

/// The thread comes by.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(super) fn hit(_point: Point) {}

#[cfg(feature = "failpoints")]
pub(super) use armed::{arm_from, hit};

#[cfg(feature = "failpoints")]
mod armed {
    use std::path::Path;
    use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

    use super::Point;

    static ARMED: AtomicU8 = AtomicU8::new(u8::MAX);
    static LEFT: AtomicI64 = AtomicI64::new(0);

    /// Reads the file `failpoint` in the journal's directory, e.g. `after_write 17`: abort at the 17th time.
    pub(in super::super) fn arm_from(directory: &Path) {
        let Ok(text) = std::fs::read_to_string(directory.join("failpoint")) else {
            return;
        };
        let mut words = text.split_whitespace();
        let point = match words.next() {
            Some("before_write") => Point::BeforeWrite,
            Some("after_write") => Point::AfterWrite,
            Some("after_sync") => Point::AfterSync,
            Some("before_answer") => Point::BeforeAnswer,
            _ => return,
        };
        LEFT.store(
            words.next().and_then(|count| count.parse().ok()).unwrap_or(1),
            Ordering::SeqCst,
        );
        ARMED.store(point as u8, Ordering::SeqCst);
    }

    pub(in super::super) fn hit(point: Point) {
        if ARMED.load(Ordering::Relaxed) == point as u8 && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}
