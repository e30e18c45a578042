//! What the ledger says of itself. The handles are made once: the macros hash their labels at every call.

use metrics::{Counter, Gauge, Histogram};

use super::ahead::Noticed;
use super::commit::Applied;

/// The handles.
pub(super) struct Meters {
    written: Counter,
    merged: Counter,
    duplicates: Counter,
    quarantined: Counter,
    records: Counter,
    refused: Counter,
    expired: Counter,
    deleted: Counter,
    nulled: Counter,
    clamped: Counter,
    cut: Counter,
    end_times: Counter,
    nul: Counter,
    impossible: Counter,
    unreadable: Counter,
    failures: Counter,
    waiting: Gauge,
    out_of_window: Counter,
    over_limit: Counter,
    transaction: Histogram,
}

impl Meters {
    pub(super) fn new() -> Meters {
        use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
        describe_counter!("spanledger_rows_written_total", "Rows written, one per execution.");
        describe_counter!(
            "spanledger_rows_merged_total",
            "Rows completed or corrected by spans that came later."
        );
        describe_counter!("spanledger_rows_duplicate_total", "Executions that had a row already.");
        describe_counter!("spanledger_rows_quarantined_total", "Rows the database refused.");
        describe_counter!(
            "spanledger_further_rows_written_total",
            "Rows written to the tables of database.tables."
        );
        describe_counter!(
            "spanledger_row_values_refused_total",
            "Values that came after their row and that the database refused."
        );
        describe_counter!(
            "spanledger_rows_expired_total",
            "Executions not written: older than database.retention."
        );
        describe_counter!(
            "spanledger_rows_deleted_total",
            "Rows deleted, of all tables and of the quarantine: older than database.retention."
        );
        describe_counter!(
            "spanledger_row_values_nulled_total",
            "Values that a foreign key refused."
        );
        describe_counter!(
            "spanledger_row_values_bent_total",
            "Values that did not fit their column as they were."
        );
        describe_counter!(
            "spanledger_ledger_unreadable_records_total",
            "Records that could not be decoded."
        );
        describe_counter!(
            "spanledger_ledger_failures_total",
            "Transactions or connections that failed."
        );
        describe_gauge!(
            "spanledger_context_waiting",
            "Spans waiting for others of their execution."
        );
        describe_counter!(
            "spanledger_context_fallen_out_total",
            "Spans that no longer wait, by reason."
        );
        describe_histogram!("spanledger_ledger_transaction_seconds", "Time of one transaction.");
        let bent = |what: &'static str| counter!("spanledger_row_values_bent_total", "what" => what);
        Meters {
            written: counter!("spanledger_rows_written_total"),
            merged: counter!("spanledger_rows_merged_total"),
            duplicates: counter!("spanledger_rows_duplicate_total"),
            quarantined: counter!("spanledger_rows_quarantined_total"),
            records: counter!("spanledger_further_rows_written_total"),
            refused: counter!("spanledger_row_values_refused_total"),
            expired: counter!("spanledger_rows_expired_total"),
            deleted: counter!("spanledger_rows_deleted_total"),
            nulled: counter!("spanledger_row_values_nulled_total"),
            clamped: bent("clamped"),
            cut: bent("cut"),
            end_times: bent("end_time"),
            nul: bent("nul"),
            impossible: bent("impossible"),
            unreadable: counter!("spanledger_ledger_unreadable_records_total"),
            failures: counter!("spanledger_ledger_failures_total"),
            waiting: gauge!("spanledger_context_waiting"),
            out_of_window: counter!("spanledger_context_fallen_out_total", "reason" => "window"),
            over_limit: counter!("spanledger_context_fallen_out_total", "reason" => "max_pending"),
            transaction: histogram!("spanledger_ledger_transaction_seconds"),
        }
    }

    pub(super) fn transaction(&self, applied: &Applied, seconds: f64) {
        self.applied(applied);
        self.transaction.record(seconds);
    }

    pub(super) fn applied(&self, applied: &Applied) {
        self.written.increment(applied.written);
        self.merged.increment(applied.merged + applied.taken_over);
        self.duplicates.increment(applied.duplicates);
        self.quarantined.increment(applied.quarantined);
        self.records.increment(applied.records);
        self.refused.increment(applied.refused);
        self.expired.increment(applied.expired);
        self.nulled.increment(applied.nulled);
        let Noticed { oddities, unreadable } = applied.noticed;
        self.unreadable.increment(unreadable);
        self.clamped.increment(oddities.clamped);
        self.cut.increment(oddities.cut);
        self.end_times.increment(oddities.end_times);
        self.nul.increment(oddities.nul);
        self.impossible.increment(oddities.impossible);
    }

    pub(super) fn failed(&self) {
        self.failures.increment(1);
    }

    pub(super) fn waiting(&self, spans: i64) {
        self.waiting.set(spans as f64);
    }

    pub(super) fn fell_out_of_window(&self, spans: u64) {
        self.out_of_window.increment(spans);
    }

    pub(super) fn fell_over_limit(&self, spans: u64) {
        self.over_limit.increment(spans);
    }

    pub(super) fn deleted(&self, rows: u64) {
        self.deleted.increment(rows);
    }
}
