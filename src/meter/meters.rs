//! The meter's own metrics.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::store::Store;

/// Handles, since the macros hash the labels at every call.
pub(super) struct Meters {
    pub(super) checkpoints: Counter,
    pub(super) checkpoint_failures: Counter,
    pub(super) checkpoint_seconds: Histogram,
    pub(super) unreadable_checkpoints: Counter,
    pub(super) unreadable_records: Counter,
    series: Gauge,
    overflowed: Vec<Counter>,
}

impl Meters {
    pub(super) fn new(store: &Store) -> Self {
        describe_gauge!("spanledger_meter_series", "Series of derived metrics that are held.");
        describe_counter!(
            "spanledger_meter_overflowed_total",
            "Observations that went to the overflow series of a metric (metrics.max_series_per_metric)."
        );
        describe_counter!(
            "spanledger_meter_checkpoints_total",
            "Checkpoints of the derived metrics."
        );
        describe_histogram!("spanledger_meter_checkpoint_seconds", "How long a checkpoint takes.");
        describe_counter!(
            "spanledger_meter_unreadable_checkpoints_total",
            "Checkpoints that could not be read, so that all derived metrics started anew."
        );
        describe_counter!(
            "spanledger_meter_unreadable_records_total",
            "Records of the journal that could not be counted."
        );
        let overflowed = |family: &super::store::Family| counter!("spanledger_meter_overflowed_total", "metric" => family.description.name.clone());
        Self {
            checkpoints: counter!("spanledger_meter_checkpoints_total", "result" => "saved"),
            checkpoint_failures: counter!("spanledger_meter_checkpoints_total", "result" => "failed"),
            checkpoint_seconds: histogram!("spanledger_meter_checkpoint_seconds"),
            unreadable_checkpoints: counter!("spanledger_meter_unreadable_checkpoints_total"),
            unreadable_records: counter!("spanledger_meter_unreadable_records_total"),
            series: gauge!("spanledger_meter_series"),
            overflowed: store.families.iter().map(overflowed).collect(),
        }
    }

    /// Takes over what the store counts itself.
    pub(super) fn publish(&self, store: &Store) {
        self.series.set(store.series() as f64);
        for (counter, family) in self.overflowed.iter().zip(&store.families) {
            counter.absolute(family.overflowed);
        }
    }
}
