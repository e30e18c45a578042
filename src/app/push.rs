//! Metric push: what a scrape shows, put into our own journal as a metrics request every so often. From there it goes the
//! way of every other request: each exporter that takes metrics delivers it, however long its backend is away.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::journal::{Durable, Journal};
use crate::meter::MeterHandle;

/// Pushes every `interval`, and once more at the end.
pub(super) async fn run(meter: MeterHandle, journal: Journal, interval: Duration, stop: CancellationToken) {
    let instance = journal.id().to_string();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            _ = ticks.tick() => false,
        };
        // Before that, values would be behind those that were pushed in an earlier life.
        if meter.is_caught_up() {
            let (meter, journal, instance) = (meter.clone(), journal.clone(), instance.clone());
            // Rendering all series takes a while, and appending may wait for the disk.
            let pushed = tokio::task::spawn_blocking(move || append(&meter, &journal, &instance)).await;
            // Exporters see what is durable: at the end, they have it before they are told to stop.
            match pushed {
                Ok(Some(durable)) => {
                    if let Err(error) = durable.await {
                        tracing::warn!(reason = %error, "the derived metrics are not pushed this time");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!(reason = %error, "the derived metrics were not pushed"),
            }
        }
        if stopping {
            return;
        }
    }
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
