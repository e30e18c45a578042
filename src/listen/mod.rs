//! Listeners, shared by every server of this program: sockets, TLS, authentication, limits, graceful drain.
//!
//! A [`Listener`] is bound first ([`Listener::bind`], which fails with an error that names the configuration key) and
//! serves later ([`Listener::serve`]), so that the program knows that all of its addresses are its own before it begins.
//! The service behind it is a plain function from request to response; HTTP/1.1 and HTTP/2 (prior knowledge or ALPN)
//! are told apart by the first bytes of the connection.
//!
//! # Invariants
//!
//! * Every connection ends: it has begun a request within `header_timeout`, is closed after `idle_timeout` without one,
//!   and is cut when its peer does not read an answer for `write_timeout`. (The time to read a body is the service's.)
//! * At most `max_connections` are open, and of one peer `max_connections_of_one_peer`. A further one takes the place of the one that was idle longest; when none is
//!   idle it is closed at once. Running out of file descriptors never spins.
//! * `TCP_NODELAY` is set on every accepted socket; without it small answers wait up to 40 ms for delayed
//!   acknowledgements.
//! * A request is given to the service only when [`Auth`] admits it, CORS preflights excepted: they never carry
//!   credentials.
//! * When the shutdown token is cancelled nothing is accepted any more, begun requests are answered, and
//!   [`Listener::serve`] returns within `drain_timeout`.

mod ahead;
mod auth;
mod body;
mod connection;
mod open;
mod peer;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod together;
mod unreadable;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

pub use auth::{Auth, Caller, Unauthorized};
pub(crate) use body::discard;
pub use body::{Body, BoxError};
pub use peer::Peer;
pub(crate) use peer::Peers;
pub use socket::{Address, ListenError, address_of};
pub use tls::{TlsError, TlsOptions, TlsReloader};

use socket::Socket;
use tls::Tls;

/// Where and how one listener listens.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// `host:port` (port 0 picks a free one, no host means every interface) or `unix:///path/of/socket`.
    pub endpoint: String,
    /// The configuration section that this listener comes from, such as `receivers.otlp.protocols.grpc`; errors name it.
    pub key: &'static str,
    /// Serve TLS with these files; without them the listener speaks plain text.
    pub tls: Option<TlsOptions>,
    /// Who may send requests; by default everybody who can connect.
    pub auth: Auth,
    /// What one peer may cost.
    pub limits: Limits,
}

impl ListenOptions {
    /// Plain text, no authentication, default limits.
    pub fn new(endpoint: impl Into<String>, key: &'static str) -> ListenOptions {
        ListenOptions {
            endpoint: endpoint.into(),
            key,
            tls: None,
            auth: Auth::default(),
            limits: Limits::default(),
        }
    }
}

/// What one peer, and all of them together, may cost a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections.
    pub max_connections: usize,
    /// Open connections of one peer (see [`Peer`]), so that none can take all.
    pub max_connections_of_one_peer: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the head of a request: from the first byte of a connection, or of a further request, to its last.
    pub header_timeout: Duration,
    /// How long a connection may be kept without a request. HTTP/1.1 clients are told by `Keep-Alive: timeout`, because
    /// a client that sends just when the server closes loses that request.
    pub idle_timeout: Duration,
    /// How long a peer may leave an answer unread.
    pub write_timeout: Duration,
    /// How old a connection may become, give or take a tenth, before its peer is told to open another one; behind a balancer
    /// senders are so spread anew. `None`: any age.
    pub max_connection_age: Option<Duration>,
    /// How long requests may go on on a connection that is too old. `None`: until they are answered.
    pub max_connection_age_grace: Option<Duration>,
    /// How often an HTTP/2 peer is asked whether it is still there. `None`: never, which leaves a peer that vanished to
    /// `idle_timeout`.
    pub ping_interval: Option<Duration>,
    /// How long it may take to answer that.
    pub ping_timeout: Duration,
    /// Bytes of one request's head. What is far beyond it is refused by the HTTP machinery; over HTTP/2 without words.
    pub max_header_bytes: u32,
    /// Header fields of one HTTP/1.1 request.
    pub max_headers: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub max_streams: u32,
    /// Time for begun requests to be answered after the shutdown began.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            max_connections_of_one_peer: 768,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            write_timeout: Duration::from_secs(30),
            max_connection_age: None,
            max_connection_age_grace: None,
            ping_interval: None,
            ping_timeout: Duration::from_secs(20),
            max_header_bytes: 32 * 1024,
            max_headers: 100,
            max_streams: 256,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// How long a connection may be left to itself before it is looked at again: nothing is to be found out later than twice
    /// its time.
    fn shortest_wait(&self) -> Duration {
        let age = self.max_connection_age.map(|age| age / 10);
        let grace = self.max_connection_age_grace.filter(|_| age.is_some());
        [Some(self.header_timeout), Some(self.write_timeout), age, grace]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.header_timeout)
            .max(Duration::from_millis(1))
    }
}

/// Why a listener answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Its sender is not known.
    #[error(transparent)]
    Unauthorized(#[from] Unauthorized),
    /// The path and the header fields take too much.
    #[error("the path and header fields of the request take {bytes} bytes, and at most {limit} are taken")]
    HeadTooLarge {
        /// Their bytes, and 32 for each field, as HTTP/2 counts them.
        bytes: usize,
        /// [`Limits::max_header_bytes`].
        limit: u32,
    },
    /// The HTTP machinery cannot make anything of it, and gave it this status.
    #[error("{}", unreadable_because(*status))]
    Unreadable {
        /// 400, 414 or 431.
        status: StatusCode,
    },
}

fn unreadable_because(status: StatusCode) -> &'static str {
    match status {
        StatusCode::URI_TOO_LONG => "the path of the request is too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "the request has too many header fields, or too long ones",
        _ => {
            "this is not a request of HTTP/1.1: its request line, a header field, content-length or transfer-encoding is wrong"
        }
    }
}

/// Makes the answer to a request with these fields that is not admitted, in the form of the listener's protocol.
type Refuse = Arc<dyn Fn(&HeaderMap, &NotAdmitted) -> Response<Body> + Send + Sync>;

/// A bound listener.
pub struct Listener {
    name: &'static str,
    socket: Socket,
    address: Address,
    tls: Option<Tls>,
    auth: Auth,
    limits: Limits,
    refuse: Refuse,
    peers: Peers,
}

impl Listener {
    /// Binds the address, reads the certificates, and logs `listener` and `address`. Must be called within a runtime.
    pub fn bind(name: &'static str, options: ListenOptions) -> Result<Listener, ListenError> {
        let tls = match &options.tls {
            Some(files) => Some(Tls::load(files, options.key).map_err(ListenError::Tls)?),
            None => None,
        };
        let (socket, address) = Socket::bind(&options.endpoint, options.key)?;
        tracing::info!(listener = name, address = %address, tls = tls.is_some(), "listening");
        Ok(Listener {
            name,
            socket,
            address,
            tls,
            auth: options.auth,
            limits: options.limits,
            refuse: Arc::new(|_, refusal| plain_refusal(refusal)),
            peers: Peers::default(),
        })
    }

    /// Answers requests that are not admitted by `refuse` instead of plain text.
    pub fn refusing_with(
        mut self,
        refuse: impl Fn(&HeaderMap, &NotAdmitted) -> Response<Body> + Send + Sync + 'static,
    ) -> Listener {
        self.refuse = Arc::new(refuse);
        self
    }

    /// Takes whoever comes to several listeners with the same `peers` for one [`Peer`].
    pub(crate) fn with_peers(mut self, peers: Peers) -> Listener {
        self.peers = peers;
        self
    }

    /// The name under which the listener is logged and measured.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The address that was really bound.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// Re-reads the certificates on request (SIGHUP); `None` without TLS. Changed files are also noticed by themselves.
    pub fn tls_reloader(&self) -> Option<TlsReloader> {
        self.tls.as_ref().map(Tls::reloader)
    }

    /// Serves until `shutdown` is cancelled and every begun request is answered, or `drain_timeout` has passed.
    /// Dropping the future cuts all connections.
    pub async fn serve<S, F, B>(self, service: S, shutdown: CancellationToken)
    where
        S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Into<Body> + 'static,
    {
        self.serve_peers(move |request, _| service(request), shutdown).await;
    }

    /// Like [`Listener::serve`], for a service that rations something between its peers.
    pub async fn serve_peers<S, F, B>(self, service: S, shutdown: CancellationToken)
    where
        S: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Into<Body> + 'static,
    {
        server::serve(self, service, shutdown).await;
    }
}

/// The refusal of listeners whose protocol has no form of its own for errors.
fn plain_refusal(refusal: &NotAdmitted) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{refusal}\n")));
    *response.status_mut() = match refusal {
        NotAdmitted::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        NotAdmitted::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        NotAdmitted::Unreadable { status } => *status,
    };
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
