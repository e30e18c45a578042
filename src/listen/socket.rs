//! Listening sockets: TCP and Unix, bound with errors that say what to change.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::tls::TlsError;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Why a listener could not be set up. Nothing of it is cured by waiting.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The endpoint is not an address.
    #[error("{key}.endpoint: `{endpoint}` is not an address: {reason}; write `host:port` or `unix:///path`")]
    Endpoint {
        /// The configuration section of the listener.
        key: &'static str,
        /// What was configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else listens there.
    #[error(
        "{key}.endpoint: {address} is in use by another process; stop it, or set {key}.endpoint to a free port (0 picks one)"
    )]
    InUse {
        /// The configuration section of the listener.
        key: &'static str,
        /// The address that was asked for.
        address: Address,
    },
    /// The operating system does not let this user listen there.
    #[error("{key}.endpoint: not permitted to listen on {address}; {advice}")]
    NotPermitted {
        /// The configuration section of the listener.
        key: &'static str,
        /// The address that was asked for.
        address: Address,
        /// What would be permitted.
        advice: &'static str,
    },
    /// The address is not one of this machine's.
    #[error("{key}.endpoint: this machine has no address {address}; use 127.0.0.1, 0.0.0.0 or an address of its own")]
    NotOurs {
        /// The configuration section of the listener.
        key: &'static str,
        /// The address that was asked for.
        address: Address,
    },
    /// Anything else that the operating system has against it.
    #[error("{key}.endpoint: cannot listen on {address}: {source}")]
    Other {
        /// The configuration section of the listener.
        key: &'static str,
        /// The address that was asked for.
        address: Address,
        /// What the operating system says.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ListenError {
    fn of(error: io::Error, key: &'static str, address: Address) -> ListenError {
        match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { key, address },
            io::ErrorKind::AddrNotAvailable => ListenError::NotOurs { key, address },
            io::ErrorKind::PermissionDenied => {
                let advice = match address {
                    Address::Tcp(_) => "use a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
                    Address::Unix(_) => "use a directory that this user may write",
                };
                ListenError::NotPermitted { key, address, advice }
            }
            _ => ListenError::Other {
                key,
                address,
                source: error,
            },
        }
    }
}

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The TCP address, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// Whether only this machine can connect.
    pub fn is_local(&self) -> bool {
        self.tcp().is_none_or(|address| address.ip().is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A listening socket. A Unix socket's file is removed with it.
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Socket {
    pub(super) fn bind(endpoint: &str, key: &'static str) -> Result<(Socket, Address), ListenError> {
        match endpoint.strip_prefix("unix://") {
            Some(path) => bind_unix(Path::new(path), endpoint, key),
            None => bind_tcp(endpoint, key),
        }
    }

    /// The next connection and, over TCP, the address of its peer.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Some(peer.ip())))
            }
            Socket::Unix(listener, _) => Ok((Stream::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(&*path)
        {
            tracing::debug!(path = %path.display(), %error, "could not remove the socket file");
        }
    }
}

/// The address that an endpoint other than a Unix socket is bound to, or why it is none.
pub fn address_of(endpoint: &str) -> Result<SocketAddr, String> {
    if endpoint.contains("://") {
        return Err("it has a scheme other than unix://".to_owned());
    }
    let host_and_port = match endpoint.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => endpoint.to_owned(),
    };
    let addresses = host_and_port.to_socket_addrs().map_err(|error| error.to_string())?;
    // `localhost` may resolve to ::1 first, while clients that are told 127.0.0.1 are the common case.
    let preferred = addresses.min_by_key(SocketAddr::is_ipv6);
    preferred.ok_or_else(|| "the name has no address".to_owned())
}

fn bind_tcp(endpoint: &str, key: &'static str) -> Result<(Socket, Address), ListenError> {
    let wrong = |reason: String| ListenError::Endpoint {
        key,
        endpoint: endpoint.to_owned(),
        reason,
    };
    let address = address_of(endpoint).map_err(wrong)?;
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((Socket::Tcp(listener), Address::Tcp(bound)))
    };
    listen().map_err(|error| ListenError::of(error, key, Address::Tcp(address)))
}

fn bind_unix(path: &Path, endpoint: &str, key: &'static str) -> Result<(Socket, Address), ListenError> {
    if !path.is_absolute() {
        let reason = "the path of a Unix socket begins with `/`".to_owned();
        return Err(ListenError::Endpoint {
            key,
            endpoint: endpoint.to_owned(),
            reason,
        });
    }
    let address = Address::Unix(path.to_owned());
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        bound => bound,
    };
    match bound {
        Ok(listener) => Ok((Socket::Unix(listener, path.to_owned()), address)),
        Err(error) => Err(ListenError::of(error, key, address)),
    }
}

/// Whether the path is a socket on which nobody listens any more (the process was killed).
fn is_left_over(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// An accepted connection. One type for all kinds, so that the HTTP machinery is compiled once per service.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::server::TlsStream<Stream>>),
}

/// Calls the same method on whatever kind of stream it is.
macro_rules! on_stream {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Stream::Unix(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Stream::Tls(inner) => {
                let $stream = Pin::new(inner.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_shutdown(context))
    }
}
