//! Everything that the program listens on, bound together and served together.

use std::net::IpAddr;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::health::HealthEndpoint;
use crate::api::query::QueryApi;
use crate::api::scrape::ScrapeEndpoint;
use crate::journal::Journal;
use crate::listen::{Address, Listener, TlsReloader};
use crate::receive::Receivers;
use crate::settings::Settings;
use crate::telemetry::Health;

use super::StartError;

/// Bound listeners.
pub(super) struct Listeners {
    receivers: Receivers,
    metrics: Listener,
    health: Listener,
    /// None when it would be open to everybody.
    api: Option<Listener>,
}

impl Listeners {
    /// Binds all of them; the first that cannot be bound ends it.
    pub(super) fn bind(settings: &Settings, journal: &Journal) -> Result<Self, StartError> {
        Ok(Self {
            receivers: Receivers::bind(&settings.receivers, journal.clone())?,
            metrics: Listener::bind("metrics", settings.metrics.listen.clone())?,
            health: Listener::bind("health", settings.health.clone())?,
            api: bind_api(settings)?,
        })
    }

    /// Every address that is our own.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let receivers = self.receivers.addresses().map(|(_, address)| address);
        receivers
            .chain(self.others().map(Listener::local_addr))
            .cloned()
            .collect()
    }

    /// What listens beside the receivers.
    fn others(&self) -> impl Iterator<Item = &Listener> {
        [&self.metrics, &self.health].into_iter().chain(&self.api)
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
        let others = self.others().filter_map(Listener::tls_reloader);
        self.receivers.tls_reloaders().into_iter().chain(others).collect()
    }

    /// Serves the receivers until `receiving` is cancelled and the others until `serving` is; health is to be asked to
    /// the last.
    pub(super) fn serve(
        self,
        Endpoints { health, scrape, query }: Endpoints,
        stages: &Health,
        receiving: CancellationToken,
        serving: CancellationToken,
    ) -> Serving {
        let Self {
            receivers,
            metrics,
            health: health_listener,
            api,
        } = self;
        let mut others = JoinSet::new();
        let answer = move |request: Request<Incoming>| {
            let scrape = scrape.clone();
            async move {
                let (method, path) = (request.method(), request.uri().path());
                scrape.answer(method, path, request.headers()).await
            }
        };
        others.spawn(alive(stages, "metrics", metrics.serve(answer, serving.clone())));
        let answer = move |request: Request<Incoming>| {
            let answer: Response<String> = health.answer(request.method(), request.uri().path());
            async move { answer }
        };
        others.spawn(alive(stages, "health", health_listener.serve(answer, serving.clone())));
        if let Some(api) = api {
            let answer = move |request: Request<Incoming>| {
                let query = query.clone();
                async move { query.answer(&request).await }
            };
            others.spawn(alive(stages, "api", api.serve(answer, serving)));
        }
        let mut receiver_tasks = JoinSet::new();
        receiver_tasks.spawn(alive(stages, "receivers", receivers.serve(receiving)));
        Serving {
            receivers: receiver_tasks,
            others,
        }
    }
}

/// A listener is a stage like the others: one that dies makes the process not alive.
fn alive<T>(
    stages: &Health,
    name: &str,
    serving: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    T: Send,
{
    let heartbeat = stages.stage(format!("listener {name}"));
    async move {
        heartbeat.while_waiting(serving).await;
        heartbeat.finish();
    }
}

/// Off loopback the API opens only to those who have a token, or when the operator insists; executions name users and
/// carry error texts.
fn bind_api(settings: &Settings) -> Result<Option<Listener>, StartError> {
    let api = &settings.api;
    let guarded = !api.query.tokens.is_empty() || !api.query.users.is_empty();
    if !guarded && !is_loopback(&api.listen.endpoint) {
        let endpoint = api.listen.endpoint.as_str();
        if !api.query.insecure {
            tracing::error!(
                endpoint,
                "the API stays closed: off loopback it needs api.auth.bearer_tokens or basic_users, or api.auth.insecure: true"
            );
            return Ok(None);
        }
        tracing::warn!(
            endpoint,
            "the API is open to everybody who can connect (api.auth.insecure)"
        );
    }
    Ok(Some(Listener::bind("api", api.listen.clone())?))
}

/// Whether only this machine can connect. A name other than localhost counts as not.
fn is_loopback(endpoint: &str) -> bool {
    if endpoint.starts_with("unix:") {
        return true;
    }
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What answers at the listeners beside the receivers.
pub(super) struct Endpoints {
    pub(super) health: HealthEndpoint,
    pub(super) scrape: ScrapeEndpoint,
    pub(super) query: QueryApi,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_addresses_that_others_can_reach() {
        for local in [
            "127.0.0.1:8890",
            "[::1]:8890",
            "localhost:0",
            "unix:///run/api",
            "127.8.0.1:1",
        ] {
            assert!(is_loopback(local), "{local}");
        }
        for open in [
            "0.0.0.0:8890",
            "[::]:8890",
            ":8890",
            "10.0.0.7:8890",
            "api.internal:8890",
        ] {
            assert!(!is_loopback(open), "{open}");
        }
    }
}
