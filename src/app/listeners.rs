//! Everything that the program listens on, bound together and served together.

use http::Response;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::health::HealthEndpoint;
use crate::api::scrape::ScrapeEndpoint;
use crate::journal::Journal;
use crate::listen::{Address, Listener, TlsReloader};
use crate::receive::Receivers;
use crate::settings::Settings;

use super::StartError;

/// Bound listeners.
pub(super) struct Listeners {
    receivers: Receivers,
    metrics: Listener,
    health: Listener,
}

impl Listeners {
    /// Binds all of them; the first that cannot be bound ends it.
    pub(super) fn bind(settings: &Settings, journal: &Journal) -> Result<Self, StartError> {
        Ok(Self {
            receivers: Receivers::bind(&settings.receivers, journal.clone())?,
            metrics: Listener::bind("metrics", settings.metrics.listen.clone())?,
            health: Listener::bind("health", settings.health.clone())?,
        })
    }

    /// Every address that is our own.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let receivers = self.receivers.addresses().map(|(_, address)| address);
        receivers
            .chain([self.metrics.local_addr(), self.health.local_addr()])
            .cloned()
            .collect()
    }

    /// The address of the gRPC receiver, for demo traffic.
    pub(super) fn grpc_address(&self) -> Option<Address> {
        self.receivers
            .addresses()
            .find(|(name, _)| *name == "otlp_grpc")
            .map(|(_, address)| address.clone())
    }

    /// What re-reads certificates.
    pub(super) fn tls_reloaders(&self) -> Vec<TlsReloader> {
        let others = [&self.metrics, &self.health]
            .into_iter()
            .filter_map(Listener::tls_reloader);
        self.receivers.tls_reloaders().into_iter().chain(others).collect()
    }

    /// Serves the receivers until `receiving` is cancelled and the others until `serving` is; health is to be asked to
    /// the last.
    pub(super) fn serve(
        self,
        health: HealthEndpoint,
        scrape: ScrapeEndpoint,
        receiving: CancellationToken,
        serving: CancellationToken,
    ) -> Serving {
        let Self {
            receivers,
            metrics,
            health: health_listener,
        } = self;
        let mut others = JoinSet::new();
        others.spawn(metrics.serve(
            move |request| {
                let scrape = scrape.clone();
                async move { scrape.answer(request.method(), request.uri().path(), request.headers()) }
            },
            serving.clone(),
        ));
        others.spawn(health_listener.serve(
            move |request| {
                let answer: Response<String> = health.answer(request.method(), request.uri().path());
                async move { answer }
            },
            serving,
        ));
        let mut receiver_tasks = JoinSet::new();
        receiver_tasks.spawn(receivers.serve(receiving));
        Serving {
            receivers: receiver_tasks,
            others,
        }
    }
}

/// Listeners that serve.
pub(super) struct Serving {
    receivers: JoinSet<()>,
    others: JoinSet<()>,
}

impl Serving {
    /// Waits until the receivers have answered what they took; their token must be cancelled.
    pub(super) async fn receivers_drained(&mut self) {
        while self.receivers.join_next().await.is_some() {}
    }

    /// Waits until the others have ended; their token must be cancelled.
    pub(super) async fn ended(mut self) {
        while self.others.join_next().await.is_some() {}
    }
}
