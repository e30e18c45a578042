//! The journal's own metrics, with handles kept so that counting costs an addition.

use metrics::{Counter, Gauge, Histogram};

pub(super) struct Meters {
    pub(super) appended: Counter,
    pub(super) appended_bytes: Counter,
    pub(super) refused: Counter,
    pub(super) failed_writes: Counter,
    pub(super) failed_syncs: Counter,
    pub(super) sync_seconds: Histogram,
    pub(super) batch_records: Histogram,
    pub(super) recycled: Counter,
    pub(super) removed: Counter,
    pub(super) dedup_hits: Counter,
    pub(super) dedup_evicted: Counter,
    pub(super) lost: Counter,
    pub(super) bytes: Gauge,
    pub(super) records: Gauge,
    pub(super) seconds_until_full: Gauge,
    pub(super) writable: Gauge,
    pub(super) readers: Vec<ReaderMeters>,
}

pub(super) struct ReaderMeters {
    pub(super) lag_records: Gauge,
    pub(super) lag_bytes: Gauge,
    pub(super) lag_seconds: Gauge,
    pub(super) skipped: Counter,
    pub(super) damaged: Counter,
    pub(super) position_lost: Counter,
}

impl Meters {
    pub(super) fn new(readers: &[String]) -> Self {
        describe();
        Self {
            appended: metrics::counter!("spanledger_journal_appended_total"),
            appended_bytes: metrics::counter!("spanledger_journal_appended_bytes_total"),
            refused: metrics::counter!("spanledger_journal_refused_total"),
            failed_writes: metrics::counter!("spanledger_journal_failed_total", "operation" => "write"),
            failed_syncs: metrics::counter!("spanledger_journal_failed_total", "operation" => "sync"),
            sync_seconds: metrics::histogram!("spanledger_journal_fsync_seconds"),
            batch_records: metrics::histogram!("spanledger_journal_batch_records"),
            recycled: metrics::counter!("spanledger_journal_segments_recycled_total"),
            removed: metrics::counter!("spanledger_journal_segments_removed_total"),
            dedup_hits: metrics::counter!("spanledger_journal_dedup_hits_total"),
            dedup_evicted: metrics::counter!("spanledger_journal_dedup_evicted_early_total"),
            lost: metrics::counter!("spanledger_journal_lost_records_total"),
            bytes: metrics::gauge!("spanledger_journal_bytes"),
            records: metrics::gauge!("spanledger_journal_records"),
            seconds_until_full: metrics::gauge!("spanledger_journal_seconds_until_full"),
            writable: metrics::gauge!("spanledger_journal_writable"),
            readers: readers.iter().map(|name| ReaderMeters::new(name)).collect(),
        }
    }
}

impl ReaderMeters {
    fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            lag_records: metrics::gauge!("spanledger_reader_lag_records", "reader" => name.clone()),
            lag_bytes: metrics::gauge!("spanledger_reader_lag_bytes", "reader" => name.clone()),
            lag_seconds: metrics::gauge!("spanledger_reader_lag_seconds", "reader" => name.clone()),
            skipped: metrics::counter!("spanledger_reader_skipped_records_total", "reader" => name.clone()),
            damaged: metrics::counter!("spanledger_reader_damaged_records_total", "reader" => name.clone()),
            position_lost: metrics::counter!("spanledger_reader_position_lost_total", "reader" => name),
        }
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("spanledger_journal_appended_total", "Requests made durable.");
    describe_counter!(
        "spanledger_journal_appended_bytes_total",
        Unit::Bytes,
        "Bytes of requests made durable."
    );
    describe_counter!(
        "spanledger_journal_refused_total",
        "Requests refused because the disk failed or was full."
    );
    describe_counter!(
        "spanledger_journal_failed_total",
        "Failed writes and syncs; each gives a segment up. With journal.fsync: always writing is a part of a sync."
    );
    describe_histogram!(
        "spanledger_journal_fsync_seconds",
        Unit::Seconds,
        "Time of one sync of the journal, the writing before it included."
    );
    describe_histogram!("spanledger_journal_batch_records", "Requests answered by one sync.");
    describe_counter!(
        "spanledger_journal_segments_recycled_total",
        "Segment files written over."
    );
    describe_counter!("spanledger_journal_segments_removed_total", "Segment files removed.");
    describe_counter!(
        "spanledger_journal_dedup_hits_total",
        "Requests that had been received before."
    );
    describe_counter!(
        "spanledger_journal_dedup_evicted_early_total",
        "Requests forgotten before journal.dedup.max_age."
    );
    describe_counter!(
        "spanledger_journal_lost_records_total",
        "Records found damaged or missing when the journal was opened."
    );
    describe_gauge!("spanledger_journal_bytes", Unit::Bytes, "Size of the journal's files.");
    describe_gauge!("spanledger_journal_records", "Records in the journal.");
    describe_gauge!(
        "spanledger_journal_seconds_until_full",
        Unit::Seconds,
        "At the present rate, with readers where they are."
    );
    describe_gauge!("spanledger_journal_writable", "1 when requests can be appended.");
    describe_gauge!("spanledger_reader_lag_records", "Records the reader has not passed.");
    describe_gauge!(
        "spanledger_reader_lag_bytes",
        Unit::Bytes,
        "Bytes the reader has not passed."
    );
    describe_gauge!(
        "spanledger_reader_lag_seconds",
        Unit::Seconds,
        "Age of the oldest record the reader has not passed."
    );
    describe_counter!(
        "spanledger_reader_skipped_records_total",
        "Records given up for this reader (journal.when_full)."
    );
    describe_counter!(
        "spanledger_reader_damaged_records_total",
        "Records this reader could not read because they are damaged."
    );
    describe_counter!(
        "spanledger_reader_position_lost_total",
        "Times the reader's position was of no use and it began at the oldest record."
    );
}
