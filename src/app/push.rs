//! Metric push: what a scrape shows, put into our own journal as a metrics request every so often. From there it goes the
//! way of every other request: each exporter that takes metrics delivers it, however long its backend is away.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::journal::{Durable, Journal, Status};
use crate::meter::MeterHandle;
use crate::otlp::Signal;
use crate::settings::Settings;
use crate::telemetry::Heartbeat;

/// How often is pushed, and for whom.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pace {
    every: Duration,
    /// The exporters that take metrics.
    takers: Vec<String>,
}

impl Pace {
    /// By the settings in force, whose exporters are those that run: a reader of another name would never have read a push.
    /// None: nothing is pushed, because it is not wanted or nobody would take it.
    pub(super) fn of(settings: &Settings) -> Option<Pace> {
        let every = settings.metrics.push_interval?;
        let exporters = settings.exporters.iter();
        let takers = exporters.filter(|(_, options)| options.signals.contains(&Signal::Metrics));
        let takers: Vec<String> = takers.map(|(name, _)| name.clone()).collect();
        if takers.is_empty() {
            tracing::warn!("metrics.push_interval has no effect: no exporter takes metrics");
            return None;
        }
        Some(Pace { every, takers })
    }
}

/// Pushes at a pace that may change, and once more at the end.
pub(super) async fn run(
    meter: MeterHandle,
    journal: Journal,
    mut pace: watch::Receiver<Option<Pace>>,
    stop: CancellationToken,
    heartbeat: Heartbeat,
) {
    metrics::describe_counter!(
        "spanledger_metric_pushes_total",
        "Times that the derived metrics were put into the journal for the exporters, or were not: the last ones are \
         unread, the journal is half full, or they could not be stored."
    );
    let count = |result: &'static str| metrics::counter!("spanledger_metric_pushes_total", "result" => result);
    let (pushed_count, skipped, failed) = (count("pushed"), count("skipped"), count("failed"));
    let instance = journal.id().to_string();
    let mut last_push = None;
    let mut last_turn = Instant::now();
    loop {
        let current = pace.borrow_and_update().clone();
        let next = async {
            let due = async {
                match &current {
                    Some(pace) => tokio::time::sleep_until(last_turn + pace.every).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => Some(true),
                () = due => Some(false),
                Ok(()) = pace.changed() => None,
            }
        };
        let Some(stopping) = heartbeat.while_waiting(next).await else {
            continue;
        };
        let Some(Pace { takers, .. }) = current else {
            // Without a pace there is no other turn than the end.
            return heartbeat.finish();
        };
        last_turn = Instant::now();
        if !is_wanted(&journal.status(), &takers, last_push) {
            skipped.increment(1);
        // Before that, values would be behind those that were pushed in an earlier life.
        } else if meter.is_caught_up() {
            let (meter, appending, instance) = (meter.clone(), journal.clone(), instance.clone());
            // Rendering all series takes a while, and appending may wait for the disk.
            let pushed = tokio::task::spawn_blocking(move || append(&meter, &appending, &instance)).await;
            // Exporters see what is durable: at the end, they have it before they are told to stop.
            let durable = match pushed {
                Ok(Some(durable)) => durable.await.map_err(|error| error.to_string()),
                Ok(None) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            match durable {
                Ok(()) => {
                    last_push = Some(journal.end().next);
                    pushed_count.increment(1);
                }
                Err(reason) => {
                    failed.increment(1);
                    tracing::warn!(reason, "the derived metrics are not pushed this time");
                }
            }
        }
        if stopping {
            return heartbeat.finish();
        }
    }
}

/// Whether it is worth saying all of it again: each push stands for those before it. While nobody has read the last one,
/// or when requests may soon find no room, further ones would only fill the journal.
fn is_wanted(journal: &Status, takers: &[String], last_push: Option<u64>) -> bool {
    let has_read = |end: u64| {
        let takers = journal.readers.iter().filter(|reader| takers.contains(&reader.name));
        takers.filter_map(|reader| reader.next).any(|next| next >= end)
    };
    journal.pinned_bytes <= journal.max_bytes / 2 && last_push.is_none_or(has_read)
}

/// Appends all series; what becomes of the last request, which is durable after those before it.
fn append(meter: &MeterHandle, journal: &Journal, instance: &str) -> Option<Durable> {
    let mut last = None;
    for entry in meter.otlp(instance) {
        match journal.append(entry) {
            Ok(appended) => last = Some(appended.durable),
            Err(error) => {
                // Nothing is lost: the next push says all of it again.
                tracing::warn!(reason = %error, "the derived metrics are not pushed this time");
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{JournalId, ReaderStatus};

    #[test]
    fn while_nobody_has_read_the_last_push_or_the_journal_is_half_full_nothing_is_pushed() {
        let reader = |name: &str, next| ReaderStatus {
            name: name.to_owned(),
            next,
            lag_records: 0,
            lag_bytes: 0,
            lag_seconds: 0.0,
        };
        let status = |pinned_bytes, one, other| Status {
            journal: JournalId([1; 16]),
            bytes: 1000,
            pinned_bytes,
            max_bytes: 1000,
            records: 0,
            segments: 1,
            oldest: 1,
            next: 100,
            remembered: 0,
            seconds_until_full: None,
            not_writable: None,
            readers: vec![reader("meter", Some(100)), reader("otlp", one), reader("otlp/b", other)],
        };
        let takers = ["otlp".to_owned(), "otlp/b".to_owned()];
        assert!(is_wanted(&status(500, None, None), &takers, None), "the first");
        assert!(!is_wanted(&status(501, None, None), &takers, None), "half full");
        assert!(!is_wanted(&status(0, Some(49), None), &takers, Some(50)), "unread");
        assert!(is_wanted(&status(0, Some(50), None), &takers, Some(50)), "read by one");
        assert!(is_wanted(&status(0, None, Some(60)), &takers, Some(50)), "by the other");
    }
}
