//! The accept loop: connections in, connections out, drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics::{Counter, Gauge};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::body::discard;
use super::connection::{Watched, drive};
use super::open::{Open, Place};
use super::peer::{Peer, identity};
use super::socket::Stream;
use super::unreadable::Outspoken;
use super::{Auth, Body, Limits, Listener, NotAdmitted, Refuse};

/// How often the certificate files are looked at.
const LOOK_AT_CERTIFICATES_EVERY: Duration = Duration::from_secs(10);

/// The pause after an accept that failed for want of resources.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// How often a lasting shortage is logged.
const LOG_SHORTAGE_EVERY: Duration = Duration::from_secs(10);

/// How much of an unauthorized request's body is read, and for how long, so that its sender gets to read the answer.
const DISCARD: usize = 1024 * 1024;
const DISCARD_FOR: Duration = Duration::from_secs(2);

/// What an HTTP/1.1 connection reads at once. A head that does not fit is refused by hyper, to which [`Outspoken`] lends words.
const HTTP1_BUFFER: usize = 128 * 1024;

/// So many times the limit of a head HTTP/2 takes, so that we are asked what to answer.
const HTTP2_HEAD: u32 = 2;

/// Windows of HTTP/2 flow control: large enough to keep a sender with 64 MiB requests busy, small enough to bound what
/// a connection can make us hold before the service reads it. A request of 512 spans fits in a stream's window, and one
/// stream leaves room for others.
const STREAM_WINDOW: u32 = 384 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// The largest frame of HTTP/2, of which a part may have come beside what the windows allow. What comes in one frame is
/// not put together from pieces, which saves a copy.
const MAX_FRAME: u32 = STREAM_WINDOW;

/// Streams that a peer may open and reset again before it is cut off (rapid reset).
const MAX_RESET_STREAMS: usize = 64;

pub(super) async fn serve<S, F, B>(listener: Listener, service: S, shutdown: CancellationToken)
where
    S: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Into<Body> + 'static,
{
    let Listener {
        name,
        socket,
        address: _,
        tls,
        auth,
        limits,
        refuse,
        peers,
    } = listener;
    let meters = Meters::new(name);
    let server = Arc::new(Server {
        service,
        http: http_builder(&limits),
        keep_alive: keep_alive_hint(limits.idle_timeout),
        auth,
        refuse,
        open: Open::new(&limits, peers, meters.open.clone()),
        meters,
        limits,
    });
    let reloader = tls.as_ref().map(super::Tls::reloader);
    let mut certificates = tokio::time::interval(LOOK_AT_CERTIFICATES_EVERY);
    certificates.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shortage_logged: Option<Instant> = None;
    let mut connections = JoinSet::new();

    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = socket.accept() => match accepted {
                Ok((stream, peer)) => match server.open.place(peer.map(identity), &shutdown) {
                    Some(place) => {
                        server.meters.accepted.increment(1);
                        let acceptor = tls.as_ref().map(super::Tls::acceptor);
                        connections.spawn(server.clone().connection(stream, acceptor, place));
                    }
                    None => server.meters.refused.increment(1),
                },
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(listener = name, %error, "a connection ended before it was accepted");
                }
                Err(error) => {
                    // Out of file descriptors or memory: make room, and do not spin on a socket that stays readable.
                    server.meters.shortages.increment(1);
                    server.open.make_room();
                    if shortage_logged.is_none_or(|at| at.elapsed() >= LOG_SHORTAGE_EVERY) {
                        shortage_logged = Some(Instant::now());
                        tracing::warn!(listener = name, %error, "cannot accept connections; raise the limit of open files");
                    }
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            },
            _ = certificates.tick(), if reloader.is_some() => {
                if let Some(reloader) = &reloader {
                    reloader.reload_if_changed();
                }
            }
        }
    }

    // Connections listen to children of the shutdown token: they are closing already.
    drop(socket);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(server.limits.drain_timeout, drained)
        .await
        .is_err()
    {
        tracing::warn!(
            listener = name,
            connections = connections.len(),
            "requests not answered in time are cut off"
        );
        connections.shutdown().await;
    }
}

struct Server<S> {
    service: S,
    http: auto::Builder<TokioExecutor>,
    keep_alive: HeaderValue,
    auth: Auth,
    refuse: Refuse,
    limits: Limits,
    meters: Meters,
    open: Arc<Open>,
}

impl<S, F, B> Server<S>
where
    S: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Into<Body> + 'static,
{
    async fn connection(self: Arc<Self>, stream: Stream, tls: Option<TlsAcceptor>, place: Place) {
        let stream = match tls {
            None => stream,
            Some(acceptor) => match self.handshake(stream, acceptor, &place).await {
                Some(stream) => stream,
                None => return self.meters.failed_handshakes.increment(1),
            },
        };
        let activity = &place.activity;
        let stream = Watched::new(stream, activity.clone());
        let io = TokioIo::new(Outspoken::new(stream, activity.clone(), self.refuse.clone()));
        let service = service_fn(|request| self.answer(request, &place));
        let connection = self.http.serve_connection(io, service);
        let outcome = drive(connection, |it| it.graceful_shutdown(), activity, &self.limits).await;
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(listener = self.meters.name, %error, "connection failed"),
            None => self.meters.cut.increment(1),
        }
    }

    async fn handshake(&self, stream: Stream, acceptor: TlsAcceptor, place: &Place) -> Option<Stream> {
        let handshake = tokio::time::timeout(self.limits.handshake_timeout, acceptor.accept(stream));
        let outcome = tokio::select! {
            outcome = handshake => outcome,
            () = place.activity.close.cancelled() => return None,
        };
        match outcome {
            Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(listener = self.meters.name, %error, "TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
        place: &Place,
    ) -> impl Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send + use<S, F, B> {
        let in_flight = place.activity.begin();
        let keep_alive = (request.version() == Version::HTTP_11).then(|| self.keep_alive.clone());
        let admitted = check_head(&request, self.limits.max_header_bytes)
            .and_then(|()| self.auth.admit(&request).map_err(NotAdmitted::from));
        let answer = match admitted {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Ok((self.service)(request, place.peer.clone()))
            }
            Err(refusal) => {
                let mut response = (self.refuse)(request.headers(), &refusal);
                if let NotAdmitted::Unauthorized(_) = refusal {
                    self.meters.unauthorized.increment(1);
                    self.auth.challenge(&mut response);
                }
                // Boxed, because it would make the future of every request larger.
                Err(Box::new((response, request)))
            }
        };
        async move {
            let (mut head, body) = match answer {
                Ok(answer) => {
                    let (head, body) = answer.await.into_parts();
                    (head, body.into())
                }
                Err(refused) => {
                    let (refusal, request) = *refused;
                    let (head, mut body) = request.into_parts();
                    if head.version <= Version::HTTP_11 {
                        discard(&head.headers, &mut body, DISCARD, DISCARD_FOR).await;
                    }
                    refusal.into_parts()
                }
            };
            if let Some(keep_alive) = keep_alive {
                head.headers.insert("keep-alive", keep_alive);
            }
            Ok(Response::from_parts(head, body.holding(in_flight)))
        }
    }
}

/// Bounds a head by what HTTP/2 counts: path, names and values, and 32 bytes for each field.
fn check_head<B>(request: &Request<B>, limit: u32) -> Result<(), NotAdmitted> {
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let fields = request.headers().iter();
    let bytes = path
        + fields
            .map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum::<usize>();
    match bytes > limit as usize {
        true => Err(NotAdmitted::HeadTooLarge { bytes, limit }),
        false => Ok(()),
    }
}

fn http_builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No header time-out of hyper's own: it would also run between requests. `Activity` does better.
    builder
        .http1()
        .max_buf_size(HTTP1_BUFFER)
        .header_read_timeout(None)
        .max_headers(limits.max_headers);
    builder
        .http2()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.max_header_bytes.saturating_mul(HTTP2_HEAD))
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_RESET_STREAMS)
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout);
    builder
}

fn keep_alive_hint(idle_timeout: Duration) -> HeaderValue {
    HeaderValue::try_from(format!("timeout={}", idle_timeout.as_secs().max(1)))
        .unwrap_or_else(|_| HeaderValue::from_static("timeout=1"))
}

/// Whether accept failed because of the connection that was to be accepted, so that the next one may well succeed.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, InvalidInput, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | InvalidInput | NotConnected
    )
}

struct Meters {
    name: &'static str,
    open: Gauge,
    accepted: Counter,
    refused: Counter,
    cut: Counter,
    shortages: Counter,
    failed_handshakes: Counter,
    unauthorized: Counter,
}

impl Meters {
    fn new(name: &'static str) -> Meters {
        metrics::describe_gauge!("spanledger_listener_connections", "Open connections.");
        metrics::describe_counter!(
            "spanledger_listener_connections_accepted_total",
            "Connections accepted."
        );
        metrics::describe_counter!(
            "spanledger_listener_connections_failed_total",
            "Connections that were not served to their end, by reason."
        );
        metrics::describe_counter!(
            "spanledger_listener_unauthorized_total",
            "Requests without valid credentials."
        );
        let failed = |reason: &'static str| metrics::counter!("spanledger_listener_connections_failed_total", "listener" => name, "reason" => reason);
        Meters {
            name,
            open: metrics::gauge!("spanledger_listener_connections", "listener" => name),
            accepted: metrics::counter!("spanledger_listener_connections_accepted_total", "listener" => name),
            refused: failed("too_many"),
            cut: failed("timeout"),
            shortages: failed("shortage"),
            failed_handshakes: failed("tls_handshake"),
            unauthorized: metrics::counter!("spanledger_listener_unauthorized_total", "listener" => name),
        }
    }
}
