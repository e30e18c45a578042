//! Places where a test can kill, break or hold the whole process: each commit point of each room.
//!
//! `SPANLEDGER_FAILPOINT=after_sync:17` kills the process with SIGKILL when a thread comes by the point for the 17th
//! time; `after_sync:17:panic` panics there, `after_sync:17:stall` holds the thread for ever. Only builds with debug
//! assertions know the variable, which are those that the tests run: nothing of this is left in a release.

/// A commit point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Journal: a place is reserved, nothing is written.
    BeforeWrite,
    /// Journal: the record is written, not synced.
    AfterWrite,
    /// Journal: about to sync.
    BeforeSync,
    /// Journal: synced, and nobody knows.
    AfterSync,
    /// Journal: readers may see the records, senders have no answer.
    BeforeAnswer,
    /// Journal: senders have their answers.
    AfterAnswer,
    /// Journal: the first of the two headers that begin a segment's life is on the disk.
    BetweenHeaders,
    /// Journal: the segment's life has begun, and nothing is in it.
    AfterHeaders,
    /// Meter: about to write a checkpoint.
    BeforeCheckpoint,
    /// Meter: the new checkpoint is on the disk beside the old one.
    BeforeCheckpointRename,
    /// Meter: the new checkpoint is in force, and the journal does not know.
    AfterCheckpoint,
    /// Journal: a small file (a position, digests, the identity) is on the disk beside the one it shall replace.
    BeforeReplace,
    /// Forward: about to save a position.
    BeforePositionSave,
    /// Forward: the new position is in force, and the journal does not know.
    AfterPositionSave,
    /// Ledger: rows and position are sent, not committed.
    BeforeCommit,
    /// Ledger: the database has committed, and the journal does not know.
    AfterCommit,
}

impl Point {
    /// Every point.
    pub const ALL: [Point; 16] = [
        Point::BeforeWrite,
        Point::AfterWrite,
        Point::BeforeSync,
        Point::AfterSync,
        Point::BeforeAnswer,
        Point::AfterAnswer,
        Point::BetweenHeaders,
        Point::AfterHeaders,
        Point::BeforeCheckpoint,
        Point::BeforeCheckpointRename,
        Point::AfterCheckpoint,
        Point::BeforeReplace,
        Point::BeforePositionSave,
        Point::AfterPositionSave,
        Point::BeforeCommit,
        Point::AfterCommit,
    ];

    /// Its name in `SPANLEDGER_FAILPOINT`.
    pub const fn name(self) -> &'static str {
        match self {
            Point::BeforeWrite => "before_write",
            Point::AfterWrite => "after_write",
            Point::BeforeSync => "before_sync",
            Point::AfterSync => "after_sync",
            Point::BeforeAnswer => "before_answer",
            Point::AfterAnswer => "after_answer",
            Point::BetweenHeaders => "between_headers",
            Point::AfterHeaders => "after_headers",
            Point::BeforeCheckpoint => "before_checkpoint",
            Point::BeforeCheckpointRename => "before_checkpoint_rename",
            Point::AfterCheckpoint => "after_checkpoint",
            Point::BeforePositionSave => "before_position_save",
            Point::BeforeReplace => "before_replace",
            Point::AfterPositionSave => "after_position_save",
            Point::BeforeCommit => "before_commit",
            Point::AfterCommit => "after_commit",
        }
    }
}

/// The thread comes by.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn hit(_point: Point) {}

/// The thread comes by.
#[cfg(debug_assertions)]
pub(crate) fn hit(point: Point) {
    armed::hit(point);
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    const VARIABLE: &str = "SPANLEDGER_FAILPOINT";

    struct Armed {
        point: Point,
        left: AtomicI64,
        action: Action,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Kill,
        Panic,
        Stall,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn hit(point: Point) {
        let armed = ARMED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
        let Some(armed) = armed.as_ref().filter(|armed| armed.point == point) else {
            return;
        };
        if armed.left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        match armed.action {
            Action::Kill => {
                let killed = kill_process(getpid(), Signal::KILL);
                panic!("the process outlived SIGKILL: {killed:?}");
            }
            Action::Panic => panic!("{VARIABLE}"),
            Action::Stall => loop {
                std::thread::park();
            },
        }
    }

    fn parse(text: &str) -> Option<Armed> {
        let mut words = text.split(':');
        let name = words.next()?;
        let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
        let left = words.next().unwrap_or("1").parse().ok()?;
        let action = match words.next() {
            None => Action::Kill,
            Some("panic") => Action::Panic,
            Some("stall") => Action::Stall,
            Some(_) => return None,
        };
        Some(Armed {
            point,
            left: AtomicI64::new(left),
            action,
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_point_can_be_armed_by_its_name() {
            for point in Point::ALL {
                let armed = parse(&format!("{}:3:panic", point.name())).unwrap();
                assert_eq!((armed.point, armed.action), (point, Action::Panic));
                assert_eq!(armed.left.into_inner(), 3);
                assert_eq!(parse(point.name()).unwrap().action, Action::Kill);
            }
            assert!(parse("nowhere:1").is_none());
        }
    }
}
