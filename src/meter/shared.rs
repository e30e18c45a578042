//! The store between the one who counts and those who read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::store::Store;

/// A store behind a lock that readers get soon.
///
/// Counting takes the lock for every record and gives it back only to take it again, which would leave a reader
/// waiting for as long as there are records. So whoever wants the lock first takes the gate, and keeps it until he has
/// the lock: once a reader holds the gate, the next record waits for him.
#[derive(Debug)]
pub(super) struct SharedStore {
    gate: Mutex<()>,
    store: Mutex<Store>,
}

impl SharedStore {
    pub(super) fn new(store: Store) -> Self {
        Self {
            gate: Mutex::new(()),
            store: Mutex::new(store),
        }
    }

    /// Waits at most for the record that is being counted.
    pub(super) fn lock(&self) -> MutexGuard<'_, Store> {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        // The store is nowhere left half-changed: counting does not panic.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
