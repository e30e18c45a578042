//! OTLP receivers over gRPC and HTTP.
//!
//! Two listeners, one [`Intake`]. Requests are told apart by their content type and not by the port they came to, so
//! that a sender that mixes up 4317 and 4318 is served all the same.
//!
//! # Invariants
//!
//! * A success answer means that the request is durable in the journal, or that there was nothing in it to keep.
//! * Every refusal says what is wrong, in the form of the sender's own protocol, and whether to send again: only what
//!   may succeed later gets a code that senders repeat.
//! * The bytes of all requests in memory are bounded together ([`ReceiveOptions::max_in_flight_bytes`]), and each one
//!   is bounded in size before and after decompression, in time, and in the work it makes before it is journalled.
//! * A sender that goes away before the answer changes nothing: what was appended stays, what was not is forgotten.

mod admission;
mod collect;
mod cors;
mod grpc_health;
mod grpc_reflection;
mod grpc_stream;
mod intake;
mod meters;
mod options;
mod otlp_grpc;
mod otlp_http;
mod refusal;
mod turnstile;

use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Request, Response, Version};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

pub use intake::Intake;
pub use options::{CorsOptions, GrpcOptions, HttpOptions, ReceiveOptions};

use crate::journal::Journal;
use crate::listen::{Address, Body, ListenError, ListenOptions, Listener, NotAdmitted, Peer, Peers, TlsReloader};
use otlp_grpc::{GrpcService, is_grpc};
use otlp_http::HttpService;

/// The header, or gRPC metadata, by which forwarded requests name the journals they have been through.
pub const HOP_HEADER: HeaderName = HeaderName::from_static("spanledger-hop");

/// The OTLP receivers, bound and not yet serving.
pub struct Receivers {
    listeners: Vec<Listener>,
    service: Arc<Service>,
    intake: Intake,
}

/// A request that is being answered.
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Both protocols behind one door.
struct Service {
    grpc: GrpcService,
    http: HttpService,
}

impl Receivers {
    /// Binds the configured listeners, named `otlp_grpc` and `otlp_http`. Must be called within a runtime.
    pub fn bind(options: &ReceiveOptions, journal: Journal) -> Result<Receivers, ListenError> {
        let intake = Intake::new(journal, options.max_in_flight_bytes);
        let grpc = options.grpc.clone().unwrap_or_default();
        let http = options.http.clone().unwrap_or_default();
        let service = Arc::new(Service {
            grpc: GrpcService::new(intake.clone(), &grpc),
            http: HttpService::new(intake.clone(), &http),
        });
        let listen = |key, endpoint, tls, limits| ListenOptions {
            endpoint,
            key,
            tls,
            auth: options.auth.clone(),
            limits,
        };
        let wanted = [
            options.grpc.is_some().then(|| {
                let key = "receivers.otlp.protocols.grpc";
                ("otlp_grpc", listen(key, grpc.endpoint, grpc.tls, grpc.limits))
            }),
            options.http.is_some().then(|| {
                let key = "receivers.otlp.protocols.http";
                ("otlp_http", listen(key, http.endpoint, http.tls, http.limits))
            }),
        ];
        // Both listeners share one intake.
        let peers = Peers::default();
        let mut listeners = Vec::new();
        for (name, listen) in wanted.into_iter().flatten() {
            let listener = Listener::bind(name, listen)?.with_peers(peers.clone());
            let service = service.clone();
            listeners.push(listener.refusing_with(move |headers, refusal| service.refuse(headers, refusal)));
        }
        Ok(Receivers {
            listeners,
            service,
            intake,
        })
    }

    /// Name and address of each listener.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, &Address)> {
        self.listeners
            .iter()
            .map(|listener| (listener.name(), listener.local_addr()))
    }

    /// Handles to re-read the certificates of the listeners with TLS.
    pub fn tls_reloaders(&self) -> Vec<TlsReloader> {
        self.listeners.iter().filter_map(Listener::tls_reloader).collect()
    }

    /// Serves until `shutdown` is cancelled and what was begun is answered.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Receivers {
            listeners,
            service,
            intake,
        } = self;
        service.grpc.streams_end_with(&shutdown);
        let mut serving = tokio::task::JoinSet::new();
        for listener in listeners {
            let service = service.clone();
            let answer = move |request, peer| service.clone().answer(request, peer);
            serving.spawn(listener.serve_peers(answer, shutdown.clone()));
        }
        tokio::select! {
            _ = serving.join_all() => {}
            () = intake.give_up_unneeded() => {}
        }
    }
}

impl Service {
    /// The future is boxed: the HTTP machinery moves it several times before it is first polled, which costs more than
    /// the box.
    fn answer(self: Arc<Service>, request: Request<Incoming>, peer: Peer) -> Answering {
        if is_grpc(request.headers()) && request.version() < Version::HTTP_2 {
            Box::pin(async move { self.http.grpc_over_http1() })
        } else if is_grpc(request.headers()) {
            Box::pin(async move { self.grpc.answer(request, peer).await })
        } else {
            Box::pin(async move { self.http.answer(request, peer).await })
        }
    }

    fn refuse(&self, headers: &HeaderMap, refusal: &NotAdmitted) -> Response<Body> {
        // What cannot be read is HTTP/1.1, and so not gRPC, whatever it says.
        let is_unreadable = matches!(refusal, NotAdmitted::Unreadable { .. });
        if is_grpc(headers) && !is_unreadable {
            self.grpc.not_admitted(refusal)
        } else {
            self.http.not_admitted(headers, refusal)
        }
    }
}

/// What senders are told of spans that were cut out.
fn rejected_spans_message(rejected: u32) -> String {
    format!(
        "{rejected} spans were not stored: their trace id is not 16 bytes or their span id not 8 bytes, or one is all zero"
    )
}
