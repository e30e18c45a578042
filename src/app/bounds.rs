//! What each room may hold in memory at most, for the log at start. Beside it there are the program itself, what its
//! connections have not read yet, and one request of the largest size while it passes through.

use crate::api::query;
use crate::forward::ExporterOptions;
use crate::ledger;
use crate::meter;
use crate::rules::Catalogue;
use crate::settings::Settings;

/// The bounds, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryBounds {
    receive: usize,
    journal: usize,
    meter: usize,
    ledger: usize,
    exporters: usize,
    api: usize,
}

impl MemoryBounds {
    pub(super) fn of(settings: &Settings, catalogue: &Catalogue) -> Self {
        let exporters = settings.exporters.iter();
        Self {
            receive: settings.receivers.memory_bound(),
            journal: settings.journal.memory_bound(),
            meter: meter::memory_bound(catalogue, settings.metrics.max_series_per_metric),
            ledger: ledger::memory_bound(settings.database.max_pending),
            exporters: exporters
                .map(|(_, options)| ExporterOptions::memory_bound(options))
                .sum(),
            api: query::memory_bound(),
        }
    }

    pub(super) fn log(&self) {
        let Self {
            receive,
            journal,
            meter,
            ledger,
            exporters,
            api,
        } = *self;
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        tracing::info!(
            receive = mebibytes(receive),
            journal = mebibytes(journal),
            meter = mebibytes(meter),
            ledger = mebibytes(ledger),
            exporters = mebibytes(exporters),
            api = mebibytes(api),
            sum = mebibytes(receive + journal + meter + ledger + exporters + api),
            "most memory that each room may take, in MiB"
        );
    }
}
