//! What the clients have yet to take.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use bytes::Bytes;

use crate::api::query::row::Execution;

/// The most that all rows hold.
pub(super) const BACKLOG_BYTES: usize = 8 << 20;

/// A row with its event, made once for all clients.
pub(super) struct LiveRow {
    pub(super) row: Execution,
    pub(super) event: Bytes,
}

impl LiveRow {
    /// Bytes of memory: the event says what the row holds once more.
    pub(super) fn held(&self) -> usize {
        size_of::<LiveRow>() + 2 * self.event.len()
    }
}

/// A row until it is given up, because there is too much that some client did not take.
pub(super) type Kept = RwLock<Option<LiveRow>>;

/// Rows that some client has yet to take, oldest first, with what they hold.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) rows: VecDeque<(Weak<Kept>, usize)>,
    pub(super) held: usize,
}

impl Backlog {
    /// Keeps a row, and gives up the oldest ones where these were too much: they are of clients that do not keep up.
    pub(super) fn keep(&mut self, row: LiveRow) -> Arc<Kept> {
        let held = row.held();
        let row = Arc::new(RwLock::new(Some(row)));
        self.held += held;
        self.rows.push_back((Arc::downgrade(&row), held));
        while let Some((oldest, held)) = self.rows.front()
            && (self.held > BACKLOG_BYTES || oldest.strong_count() == 0)
        {
            if let Some(oldest) = oldest.upgrade() {
                oldest.write().unwrap_or_else(PoisonError::into_inner).take();
            }
            self.held -= held;
            self.rows.pop_front();
        }
        row
    }
}
