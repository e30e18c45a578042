//! What a meter begins with: the checkpoint, as far as it can be used, and the place in the journal to read on from.

use crate::journal::Position;
use crate::rules::matcher::Matcher;

use super::checkpoint::Checkpoint;
use super::store::Store;

/// What became of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Restored {
    /// Where the reader resumes; `None`: at the oldest record.
    pub(super) from: Option<Position>,
    /// Metrics that were not in the checkpoint: they count what the journal still holds.
    pub(super) added: Vec<String>,
    /// Metrics whose rule is another one now: they start anew behind what the old rule counted.
    pub(super) changed: Vec<String>,
    /// The checkpoint belongs to another journal: all of the present one is counted.
    pub(super) other_journal: bool,
    /// The checkpoint counted more than the journal holds (the journal was restored from a copy).
    pub(super) beyond_end: bool,
}

/// Fills `store` from a checkpoint. `end` is behind the last record of the journal.
pub(super) fn restore(
    checkpoint: Checkpoint,
    store: &mut Store,
    matcher: &Matcher,
    end: Position,
    now: u64,
) -> Restored {
    let mut restored = Restored {
        other_journal: checkpoint.journal != end.journal,
        ..Restored::default()
    };
    let mut saved = checkpoint.families;
    for family in &mut store.families {
        let name = family.description.name.clone();
        let Some(index) = saved.iter().position(|saved| saved.name == name) else {
            restored.added.push(name);
            continue;
        };
        let saved = saved.swap_remove(index);
        if saved.digest == family.description.digest && saved.stride == family.description.stride() {
            saved.restore(family, |key| matcher.hash(key));
        } else {
            family.next = saved.next;
            family.reset(now);
            restored.changed.push(name);
        }
        if restored.other_journal {
            // Sequences of another journal mean nothing here.
            family.next = 0;
        } else if family.next > end.next {
            // What the journal holds was counted, or else the position could not be behind it. New records will have
            // sequences from the end on.
            family.next = end.next;
            restored.beyond_end = true;
        }
    }
    if !restored.other_journal && restored.added.is_empty() {
        restored.from = Some(Position {
            next: store.next(),
            ..end
        });
    }
    restored
}
