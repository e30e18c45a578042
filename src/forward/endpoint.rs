//! Where an exporter sends: the rules for its URL, and the check that it is not ourselves.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

use super::{ForwardError, Protocol};
use crate::otlp::Signal;

/// An `endpoint` as it is configured. Some services want a key in its query: `Debug` shows neither that nor credentials.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EndpointUrl(String);

impl<T: Into<String>> From<T> for EndpointUrl {
    fn from(url: T) -> EndpointUrl {
        EndpointUrl(url.into())
    }
}

impl std::ops::Deref for EndpointUrl {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for EndpointUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(without_credentials(&self.0), formatter)
    }
}

/// A parsed `endpoint`. It is shown without its query.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Scheme,
    /// Host and, if it was given, port.
    authority: http::uri::Authority,
    /// Without a trailing slash, without `/v1/<signal>`.
    base: String,
    query: Option<String>,
    protocol: Protocol,
}

impl Endpoint {
    /// Reads an endpoint: `http://host:4318`, `https://host/base`, `https://host/v1/traces`, or `host:4317`, which
    /// means https unless `insecure` (`tls.insecure`) says otherwise. A scheme that is given overrides `insecure`.
    ///
    /// A base path is kept and `/v1/traces` is appended to it, whether or not it ends in a slash. An endpoint that ends
    /// in `/v1/traces` already is used as it is; the other signals go beside it.
    pub fn parse(endpoint: &str, protocol: Protocol, insecure: bool) -> Result<Endpoint, ForwardError> {
        let mistake = |what: &str| ForwardError::Endpoint {
            endpoint: without_credentials(endpoint).to_owned(),
            what: what.to_owned(),
        };
        let trimmed = endpoint.trim();
        if trimmed.is_empty() {
            return Err(mistake("it is empty"));
        }
        let with_scheme = match trimmed.contains("://") {
            true => trimmed.to_owned(),
            false => format!("{}://{trimmed}", if insecure { "http" } else { "https" }),
        };
        let parts = with_scheme
            .parse::<Uri>()
            .map_err(|error| mistake(&error.to_string()))?
            .into_parts();
        let scheme = parts
            .scheme
            .filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let scheme = scheme.ok_or_else(|| mistake("the scheme is neither http nor https"))?;
        let authority = parts.authority.ok_or_else(|| mistake("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(mistake(
                "credentials belong into `headers` (authorization), not into the URL",
            ));
        }
        if authority.host().is_empty() {
            return Err(mistake("it names no host"));
        }
        let has_port = authority.as_str().len() > authority.host().len();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(mistake("the port is not a number from 1 to 65535"));
        }
        let path = parts
            .path_and_query
            .as_ref()
            .map_or("", PathAndQuery::path)
            .trim_end_matches('/');
        let base = Signal::ALL
            .iter()
            .find_map(|signal| path.strip_suffix(signal.path()))
            .unwrap_or(path);
        let query = parts
            .path_and_query
            .as_ref()
            .and_then(PathAndQuery::query)
            .map(str::to_owned);
        if protocol == Protocol::Grpc && (!path.is_empty() || query.is_some()) {
            return Err(mistake("with `protocol: grpc` it has no path"));
        }
        Ok(Endpoint {
            scheme,
            authority,
            base: base.trim_end_matches('/').to_owned(),
            query,
            protocol,
        })
    }

    /// The URL that requests of `signal` go to.
    pub fn uri(&self, signal: Signal) -> Result<Uri, http::Error> {
        let path = match self.protocol {
            Protocol::Grpc => signal.grpc_path().to_owned(),
            Protocol::HttpProtobuf => {
                let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
                format!("{}{}{query}", self.base, signal.path())
            }
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, which may be that of the scheme.
    pub fn port(&self) -> u16 {
        let of_scheme = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(of_scheme)
    }

    /// Whether requests sent here would arrive at one of `listeners`: the forwarder would feed itself for ever.
    ///
    /// Resolves the host's name, so it may wait for DNS; a name that is not known now is not ours.
    pub fn is_own_listener(&self, listeners: &[SocketAddr]) -> bool {
        if !listeners.iter().any(|listener| listener.port() == self.port()) {
            return false;
        }
        let resolved = (self.host(), self.port())
            .to_socket_addrs()
            .map(Vec::from_iter)
            .unwrap_or_default();
        resolved
            .iter()
            .any(|target| listeners.iter().any(|listener| reaches(*target, *listener)))
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}://{}{}", self.scheme, self.authority, self.base)
    }
}

/// What a mistake may show of an endpoint: not what stands before an `@`, and not its query.
fn without_credentials(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once('@').map_or(endpoint, |(_, host)| host);
    host.split('?').next().unwrap_or_default()
}

/// Whether a connection to `target` is accepted by `listener`.
fn reaches(target: SocketAddr, listener: SocketAddr) -> bool {
    let target_ip = target.ip().to_canonical();
    let listener_ip = listener.ip().to_canonical();
    target.port() == listener.port()
        && (target_ip == listener_ip
            || (listener_ip.is_unspecified() && is_of_this_machine(target_ip))
            // A connection to the unspecified address goes to this machine.
            || (target_ip.is_unspecified() && listener_ip.is_loopback()))
}

/// A datagram socket can be bound to the addresses of this machine and to no others; nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(endpoint: &str) -> Endpoint {
        Endpoint::parse(endpoint, Protocol::HttpProtobuf, false).unwrap()
    }

    fn traces(endpoint: &str) -> String {
        http(endpoint).uri(Signal::Traces).unwrap().to_string()
    }

    #[test]
    fn the_path_of_the_signal_is_appended_once_and_without_a_trailing_slash() {
        for (endpoint, expected) in [
            ("http://signoz:4318", "http://signoz:4318/v1/traces"),
            ("http://signoz:4318/", "http://signoz:4318/v1/traces"),
            (
                "https://ingest.eu.signoz.cloud:443",
                "https://ingest.eu.signoz.cloud:443/v1/traces",
            ),
            ("https://host/otlp", "https://host/otlp/v1/traces"),
            ("https://host/otlp//", "https://host/otlp/v1/traces"),
            ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
            ("https://host/v1/traces/", "https://host/v1/traces"),
            ("https://host/otlp?tenant=a", "https://host/otlp/v1/traces?tenant=a"),
            ("signoz:4318", "https://signoz:4318/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(traces(endpoint), expected);
        }
        let metrics = http("https://host/otlp/v1/traces").uri(Signal::Metrics).unwrap();
        assert_eq!(metrics.to_string(), "https://host/otlp/v1/metrics");
    }

    #[test]
    fn grpc_uses_the_path_of_the_service_and_a_scheme_overrides_insecure() {
        let plain = Endpoint::parse("signoz:4317", Protocol::Grpc, true).unwrap();
        let expected = "http://signoz:4317/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        assert_eq!(plain.uri(Signal::Traces).unwrap().to_string(), expected);
        let https = Endpoint::parse("https://signoz:4317/", Protocol::Grpc, true).unwrap();
        assert!(
            https
                .uri(Signal::Logs)
                .unwrap()
                .to_string()
                .starts_with("https://signoz:4317/opentel")
        );
    }

    #[test]
    fn a_mistake_shows_no_credentials() {
        for endpoint in [
            "http://user:s3cr3t@host:4318",
            "http://s3cr3t@host",
            "user:s3cr3t@host:4317",
            "http://user:s3cr3t @host",
            "http://host:port?key=s3cr3t",
        ] {
            let error = Endpoint::parse(endpoint, Protocol::HttpProtobuf, false).unwrap_err();
            assert!(!error.to_string().contains("s3cr3t"), "{error}");
            assert!(error.to_string().contains("host"), "{error}");
        }
    }

    #[test]
    fn endpoints_that_cannot_be_meant_are_mistakes_that_name_the_key() {
        for endpoint in [
            "",
            "ftp://host",
            "http://",
            "http://user:secret@host",
            "http://host:99999",
            "http://host:",
        ] {
            let error = Endpoint::parse(endpoint, Protocol::HttpProtobuf, false)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("endpoint"), "{endpoint}: {error}");
        }
        assert!(Endpoint::parse("http://host/path", Protocol::Grpc, false).is_err());
    }

    #[test]
    fn an_endpoint_that_is_one_of_our_listeners_is_recognised() {
        let on = |address: &str| -> Vec<SocketAddr> { vec![address.parse().unwrap()] };
        for (endpoint, listener) in [
            ("http://127.0.0.1:4318", "127.0.0.1:4318"),
            ("http://127.0.0.1:4318", "0.0.0.0:4318"),
            ("http://localhost:4318", "0.0.0.0:4318"),
            ("http://[::1]:4318", "[::]:4318"),
            ("http://0.0.0.0:4318", "0.0.0.0:4318"),
            ("http://0.0.0.0:4318", "127.0.0.1:4318"),
            ("http://[::ffff:127.0.0.1]:4318", "127.0.0.1:4318"),
        ] {
            assert!(http(endpoint).is_own_listener(&on(listener)), "{endpoint} {listener}");
        }
        for (endpoint, listener) in [
            ("http://127.0.0.1:4319", "127.0.0.1:4318"),
            ("http://192.0.2.7:4318", "0.0.0.0:4318"),
            ("http://127.0.0.2:4318", "127.0.0.1:4318"),
            ("http://no-such-host.invalid:4318", "0.0.0.0:4318"),
        ] {
            assert!(!http(endpoint).is_own_listener(&on(listener)), "{endpoint} {listener}");
        }
    }
}
