//! Derived metrics: series store, checkpoint, exposition.
