//! The tasks of one exporter that send a request, or set one aside. Each reports back; nothing is shared between them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::{JoinError, JoinSet};

use super::answer::Answer;
use super::client::Client;
use super::counters::Counters;
use super::lane::Ticket;
use super::parcel::Parcel;
use super::refused::{Keeping, Refused, RefusedStore};
use super::{MAX_BYTES_IN_FLIGHT, rethrow};
use crate::clock::unix_nanos;
use crate::egress::Fingerprint;
use crate::telemetry::StageStatus;

/// What a task reports.
pub(super) struct Returned {
    pub(super) parcel: Parcel,
    pub(super) ticket: Ticket,
    pub(super) event: Event,
}

pub(super) enum Event {
    /// An answer to so many bytes.
    Answered(Answer, usize),
    /// Set aside.
    Kept(std::io::Result<Keeping>),
}

/// What is under way.
pub(super) struct Sending {
    client: Arc<Client>,
    counters: Arc<Counters>,
    refused: Arc<Mutex<RefusedStore>>,
    /// Of the rules for what leaves.
    rules: Fingerprint,
    /// Whose health it is that setting aside ends.
    stage: StageStatus,
    under_way: JoinSet<Returned>,
    bytes: usize,
}

impl Sending {
    pub(super) fn new(
        client: Arc<Client>,
        counters: Arc<Counters>,
        refused: RefusedStore,
        rules: Fingerprint,
        stage: StageStatus,
    ) -> Sending {
        Sending {
            client,
            counters,
            refused: Arc::new(Mutex::new(refused)),
            rules,
            stage,
            under_way: JoinSet::new(),
            bytes: 0,
        }
    }

    /// Nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether one more of so many bytes may start, of at most so many at once.
    pub(super) fn has_room(&self, bytes: usize, most: usize) -> bool {
        let fits = self.bytes + bytes <= MAX_BYTES_IN_FLIGHT;
        self.is_empty() || (fits && self.under_way.len() < most)
    }

    /// Requests and bytes under way.
    pub(super) fn under_way(&self) -> (usize, usize) {
        (self.under_way.len(), self.bytes)
    }

    /// The certificate files may have changed.
    pub(super) fn reload_certificates(&self) -> Result<(), super::ForwardError> {
        self.client.reload_certificates()
    }

    /// Sends a parcel; or sets it aside if it was refused.
    pub(super) fn start(&mut self, parcel: Parcel, ticket: Ticket) {
        self.bytes += parcel.held();
        match parcel.history.refused {
            None => self.send(parcel, ticket),
            Some(_) => self.keep(parcel, ticket),
        }
    }

    fn send(&mut self, parcel: Parcel, ticket: Ticket) {
        let (client, counters) = (Arc::clone(&self.client), Arc::clone(&self.counters));
        self.under_way.spawn(async move {
            let (parcel, body) = if parcel.is_costly_to_encode() {
                let encoding = tokio::task::spawn_blocking(move || {
                    let body = parcel.wire_body();
                    (parcel, body)
                });
                encoding.await.unwrap_or_else(|panic| rethrow(panic))
            } else {
                let body = parcel.wire_body();
                (parcel, body)
            };
            let length = body.iter().map(Bytes::len).sum();
            let attempted = |verdict, took| counters.attempted(verdict, took);
            let answer = client.send(parcel.signal, parcel.encoding, body, attempted).await;
            Returned {
                parcel,
                ticket,
                event: Event::Answered(answer, length),
            }
        });
    }

    fn keep(&mut self, parcel: Parcel, ticket: Ticket) {
        let store = Arc::clone(&self.refused);
        let went_through = (!parcel.is_unruled).then(|| self.rules.clone());
        let working = self.stage.working();
        self.under_way.spawn_blocking(move || {
            let _working = working;
            let kept = keep(&store, &parcel, went_through);
            Returned {
                parcel,
                ticket,
                event: Event::Kept(kept),
            }
        });
    }

    /// The next report. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<Returned, JoinError>> {
        let returned = self.under_way.join_next().await?;
        if let Ok(returned) = &returned {
            self.bytes -= returned.parcel.held();
        }
        Some(returned)
    }

    /// What is still under way is left: the journal has it.
    pub(super) fn abort(&mut self) {
        self.under_way.abort_all();
    }
}

fn keep(store: &Mutex<RefusedStore>, parcel: &Parcel, went_through: Option<Fingerprint>) -> std::io::Result<Keeping> {
    let first = parcel.parts.first();
    let refused = Refused {
        signal: parcel.signal,
        encoding: parcel.held_encoding(),
        items: parcel.items(),
        reason: parcel.history.refused.as_deref().unwrap_or_default(),
        refused_at: unix_nanos(),
        received_at: first.map_or(0, |part| part.received_at),
        sequence: first.map_or(0, |part| part.sequence),
        went_through,
        body: &parcel.joined(),
    };
    store.lock().unwrap_or_else(PoisonError::into_inner).keep(&refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::lane::Lane;
    use crate::forward::load::Load;
    use crate::forward::{ExporterOptions, RefusedLimits};
    use crate::otlp::Encoding;
    use crate::telemetry::Health;

    #[tokio::test]
    async fn what_is_under_way_is_never_more_than_its_limit_unless_it_is_a_single_request() {
        let options = ExporterOptions {
            endpoint: "http://127.0.0.1:1".into(),
            ..ExporterOptions::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let mut sending = Sending::new(
            Arc::new(Client::new(&options, "hop").unwrap()),
            Arc::new(Counters::new("otlp")),
            RefusedStore::open(directory.path().to_owned(), "otlp", RefusedLimits::default()).unwrap(),
            options.egress.fingerprint(),
            Health::default().stage("otlp").status(),
        );
        assert!(sending.has_room(2 * MAX_BYTES_IN_FLIGHT, 1));
        let mut lane = Lane::new(&options);
        let body = Bytes::from(vec![0; MAX_BYTES_IN_FLIGHT - 100]);
        lane.push(Load::uncompressed(0, Encoding::Identity, body));
        let (parcel, ticket) = lane.next(std::time::Instant::now()).unwrap();
        sending.start(parcel, ticket);
        assert!(sending.has_room(100, 2));
        assert!(!sending.has_room(100, 1));
        assert!(!sending.has_room(101, 2));
    }
}
