//! The listener as a whole, over real sockets.

use super::*;

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

const KEY: &str = "receivers.otlp.protocols.http";

/// A listener that is being served.
struct Served {
    address: Address,
    shutdown: CancellationToken,
    reloader: Option<TlsReloader>,
    task: JoinHandle<()>,
}

impl Served {
    fn tcp(&self) -> std::net::SocketAddr {
        self.address.tcp().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn options() -> ListenOptions {
    ListenOptions::new("127.0.0.1:0", KEY)
}

fn serve<S, F, B>(options: ListenOptions, service: S) -> Served
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Into<Body> + Send + 'static,
{
    let listener = Listener::bind("otlp_http", options).unwrap();
    let (address, reloader) = (listener.local_addr().clone(), listener.tls_reloader());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(listener.serve(service, shutdown.clone()));
    Served {
        address,
        shutdown,
        reloader,
        task,
    }
}

/// Answers with the version of HTTP that was spoken.
async fn version(request: Request<Incoming>) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(format!("{:?}", request.version()))))
}

fn http1() -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

fn http2() -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn http1_and_http2_are_served_on_one_port_and_http1_clients_are_told_when_the_connection_is_closed() {
    let served = serve(options(), version);
    let answer = http1().get(served.url().parse().unwrap()).await.unwrap();
    assert_eq!(answer.headers()["keep-alive"], "timeout=600");
    assert_eq!(text(answer).await, "HTTP/1.1");
    let answer = http2().get(served.url().parse().unwrap()).await.unwrap();
    assert!(!answer.headers().contains_key("keep-alive"));
    assert_eq!(text(answer).await, "HTTP/2.0");
    served.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_the_key_and_the_cure() {
    let first = Listener::bind("otlp_http", options()).unwrap();
    let taken = ListenOptions::new(first.local_addr().to_string(), KEY);
    let error = Listener::bind("otlp_http", taken).err().unwrap().to_string();
    assert!(error.contains("receivers.otlp.protocols.http.endpoint"), "{error}");
    assert!(error.contains("in use") && error.contains("free port"), "{error}");
}

#[tokio::test]
async fn endpoints_that_are_no_addresses_are_errors_that_show_what_to_write() {
    for endpoint in [
        "",
        "4318",
        "127.0.0.1",
        "127.0.0.1:port",
        "http://127.0.0.1:4318",
        "unix://relative",
    ] {
        let error = Listener::bind("otlp_http", ListenOptions::new(endpoint, KEY))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(KEY) && error.contains("`host:port` or `unix:///path`"),
            "{endpoint}: {error}"
        );
    }
    let foreign = Listener::bind("otlp_http", ListenOptions::new("203.0.113.7:0", KEY))
        .err()
        .unwrap();
    assert!(
        foreign.to_string().contains("this machine has no address 203.0.113.7"),
        "{foreign}"
    );
}

#[tokio::test]
async fn localhost_and_an_empty_host_are_addresses() {
    let localhost = Listener::bind("otlp_http", ListenOptions::new("localhost:0", KEY)).unwrap();
    assert!(localhost.local_addr().is_local());
    let everywhere = Listener::bind("otlp_http", ListenOptions::new(":0", KEY)).unwrap();
    assert!(!everywhere.local_addr().is_local());
}

#[tokio::test]
async fn a_unix_socket_is_served_replaces_one_left_over_and_is_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("otlp.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(
        path.exists(),
        "the standard library leaves the file, as a killed process does"
    );

    let endpoint = format!("unix://{}", path.display());
    let served = serve(ListenOptions::new(&endpoint, KEY), version);
    assert_eq!(served.address.to_string(), endpoint);
    let stream = UnixStream::connect(&path).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap();
    assert_eq!(text(answer).await, "HTTP/1.1");

    let taken = Listener::bind("otlp_http", ListenOptions::new(&endpoint, KEY))
        .err()
        .unwrap();
    assert!(matches!(taken, ListenError::InUse { .. }), "{taken}");
    served.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn requests_without_a_valid_token_are_refused_before_the_service_sees_them() {
    let mut with_auth = options();
    with_auth.auth = Auth::bearer(["secret"]);
    let served = serve(with_auth, |request: Request<Incoming>| async move {
        assert_eq!(request.extensions().get::<Caller>(), Some(&Caller::Token(0)));
        version(request).await
    });
    let refused = http1().get(served.url().parse().unwrap()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        refused.headers()[header::WWW_AUTHENTICATE],
        "Bearer realm=\"spanledger\""
    );
    assert!(text(refused).await.contains("`Bearer <token>`"));
    let request = Request::get(served.url())
        .header(header::AUTHORIZATION, "Bearer secret")
        .body(Empty::new())
        .unwrap();
    assert_eq!(http2().request(request).await.unwrap().status(), StatusCode::OK);
    served.stop().await;
}

#[tokio::test]
async fn a_shutdown_answers_what_was_begun_and_accepts_nothing_more() {
    let begun = Arc::new(Notify::new());
    let (release, released) = oneshot::channel::<()>();
    let released = Arc::new(tokio::sync::Mutex::new(Some(released)));
    let served = serve(options(), {
        let begun = begun.clone();
        move |request| {
            let (begun, released) = (begun.clone(), released.clone());
            async move {
                begun.notify_one();
                let released = released.lock().await.take().unwrap();
                released.await.unwrap();
                version(request).await
            }
        }
    });
    let address = served.tcp();
    let answer = tokio::spawn(http1().get(served.url().parse().unwrap()));
    begun.notified().await;
    served.shutdown.cancel();
    // The listening socket is closed as soon as the accept loop has seen the shutdown.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    assert_eq!(text(answer.await.unwrap().unwrap()).await, "HTTP/1.1");
    served.task.await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_never_answered_does_not_hold_the_shutdown_longer_than_the_drain_timeout() {
    let begun = Arc::new(Notify::new());
    let mut impatient = options();
    impatient.limits.drain_timeout = Duration::from_millis(20);
    let served = serve(impatient, {
        let begun = begun.clone();
        move |_| {
            begun.notify_one();
            std::future::pending::<Response<Full<Bytes>>>()
        }
    });
    let answer = tokio::spawn(http1().get(served.url().parse().unwrap()));
    begun.notified().await;
    served.stop().await;
    assert!(answer.await.unwrap().is_err());
}

#[tokio::test]
async fn connections_that_say_nothing_or_half_a_head_are_cut() {
    let mut impatient = options();
    impatient.limits.header_timeout = Duration::from_millis(20);
    let served = serve(impatient, version);
    for beginning in [
        "",
        "P",
        "PRI",
        "POST /v1/traces HTT",
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\n",
    ] {
        let mut stream = TcpStream::connect(served.tcp()).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"", "{beginning:?}");
    }
    served.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_takes_the_place_of_the_one_that_was_idle_longest() {
    let mut few = options();
    few.limits.max_connections = 2;
    let served = serve(few, version);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(served.tcp()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        streams.push(stream);
    }
    let mut rest = Vec::new();
    streams[0].read_to_end(&mut rest).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn when_every_connection_is_busy_a_further_one_is_closed_at_once() {
    let mut few = options();
    few.limits.max_connections = 1;
    few.limits.drain_timeout = Duration::ZERO;
    let begun = Arc::new(Notify::new());
    let served = serve(few, {
        let begun = begun.clone();
        move |_| {
            begun.notify_one();
            std::future::pending::<Response<Full<Bytes>>>()
        }
    });
    let mut busy = TcpStream::connect(served.tcp()).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    begun.notified().await;
    let mut further = TcpStream::connect(served.tcp()).await.unwrap();
    assert_eq!(further.read(&mut [0; 1]).await.unwrap_or(0), 0);
    served.stop().await;
}

#[tokio::test]
async fn an_old_connection_is_told_to_end_and_its_peer_loses_no_request() {
    let mut aging = options();
    aging.limits.max_connection_age = Some(Duration::from_millis(30));
    let served = serve(aging, version);
    for client in [http1(), http2()] {
        for _ in 0..3 {
            let answer = client.get(served.url().parse().unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            text(answer).await;
            // One that is kept open comes to its end.
            let mut kept = TcpStream::connect(served.tcp()).await.unwrap();
            kept.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut said = String::new();
            kept.read_to_string(&mut said).await.unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn an_http2_peer_that_vanished_is_found_out_by_a_ping() {
    let mut asking = options();
    asking.limits.ping_interval = Some(Duration::from_millis(20));
    asking.limits.ping_timeout = Duration::from_millis(20);
    let served = serve(asking, version);
    let mut silent = TcpStream::connect(served.tcp()).await.unwrap();
    silent
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // It reads and says nothing more.
    let mut said = Vec::new();
    drop(silent.read_to_end(&mut said).await);
    assert!(
        said.windows(9).any(|head| head[..4] == [0, 0, 8, 6]),
        "no ping: {said:?}"
    );
    served.stop().await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answer_is_cut() {
    let mut impatient = options();
    impatient.limits.write_timeout = Duration::from_millis(20);
    impatient.limits.header_timeout = Duration::from_millis(20);
    impatient.limits.max_connections = 1;
    let served = serve(impatient, |_| async {
        Response::new(Full::new(Bytes::from(vec![0; 64 << 20])))
    });
    let mut silent = TcpStream::connect(served.tcp()).await.unwrap();
    silent.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    silent.read_exact(&mut [0; 15]).await.unwrap();
    // The only place is free again when the silent one is cut.
    while http1().get(served.url().parse().unwrap()).await.is_err() {}
    let mut rest = Vec::new();
    assert!(silent.read_to_end(&mut rest).await.is_err() || rest.len() < 64 << 20);
    served.stop().await;
}

/// More than any window, made while it is sent.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}

#[tokio::test]
async fn a_peer_over_http2_that_opens_no_window_for_an_answer_that_is_ready_is_cut() {
    let mut impatient = options();
    impatient.limits.write_timeout = Duration::from_millis(20);
    impatient.limits.header_timeout = Duration::from_millis(20);
    let served = serve(impatient, |_| async { Response::new(Body::ready(Endless)) });
    let stream = TcpStream::connect(served.tcp()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get(served.url()).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    // Its socket takes everything, and it reads nothing of the body.
    drop(connection.await);
    assert_eq!(answer.status(), 200);
    served.stop().await;
}

#[tokio::test]
async fn a_peer_whose_head_cannot_be_read_gets_the_answer_although_it_goes_on_sending_and_is_cut_in_time() {
    let mut impatient = options();
    impatient.limits.header_timeout = Duration::from_millis(20);
    impatient.limits.max_connections = 1;
    let served = serve(impatient, version);
    let mut peer = TcpStream::connect(served.tcp()).await.unwrap();
    peer.write_all(b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n")
        .await
        .unwrap();
    peer.write_all(&[b'x'; 500_000]).await.unwrap();
    let mut said = String::new();
    peer.read_to_string(&mut said).await.unwrap();
    assert!(
        said.starts_with("HTTP/1.1 400 Bad Request\r\n") && said.ends_with("is wrong\n"),
        "{said}"
    );
    // It does not close. The only place is free again when it is cut.
    while http1().get(served.url().parse().unwrap()).await.is_err() {}
    served.stop().await;
}

/// An authority and the files of one server certificate signed by it.
struct Certificates {
    directory: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    fn new() -> Certificates {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap();
        let certificates = Certificates {
            directory: tempfile::tempdir().unwrap(),
            authority,
        };
        std::fs::write(certificates.path("ca.pem"), certificates.authority.pem()).unwrap();
        certificates.issue("server", "localhost");
        certificates
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn issue(&self, file: &str, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn options(&self, client_ca: bool) -> TlsOptions {
        TlsOptions {
            cert_file: self.path("server.pem"),
            key_file: self.path("server.key"),
            client_ca_file: client_ca.then(|| self.path("ca.pem")),
        }
    }

    fn connector(&self, identity: Option<&str>, alpn: &[&[u8]]) -> tokio_rustls::TlsConnector {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let path = self.path(&format!("{file}.pem"));
                let certificate = rustls::pki_types::CertificateDer::from_pem_file(path).unwrap();
                let key = rustls::pki_types::PrivateKeyDer::from_pem_file(self.path(&format!("{file}.key"))).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config).into()
    }
}

/// One request over TLS; an error where the handshake or the request fails.
async fn over_tls(
    served: &Served,
    connector: &tokio_rustls::TlsConnector,
    name: &'static str,
) -> Result<String, Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(served.tcp()).await?;
    let stream = connector.connect(name.try_into()?, stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = Request::get("https://localhost/").body(Empty::<Bytes>::new())?;
    let io = TokioIo::new(stream);
    let answer = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    Ok(text(answer).await)
}

fn with_tls(tls: TlsOptions) -> ListenOptions {
    ListenOptions {
        tls: Some(tls),
        ..options()
    }
}

#[tokio::test]
async fn tls_serves_http2_and_http1_as_the_client_negotiates() {
    let certificates = Certificates::new();
    let served = serve(with_tls(certificates.options(false)), version);
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (alpn, spoken) in [(both, "HTTP/2.0"), (&both[1..], "HTTP/1.1"), (&[], "HTTP/1.1")] {
        let connector = certificates.connector(None, alpn);
        assert_eq!(over_tls(&served, &connector, "localhost").await.unwrap(), spoken);
    }
    served.stop().await;
}

#[tokio::test]
async fn mutual_tls_serves_only_clients_with_a_certificate_of_the_authority() {
    let certificates = Certificates::new();
    certificates.issue("client", "executor");
    let served = serve(with_tls(certificates.options(true)), version);
    assert!(
        over_tls(&served, &certificates.connector(None, &[]), "localhost")
            .await
            .is_err()
    );
    let stranger = Certificates::new();
    std::fs::copy(stranger.path("server.pem"), certificates.path("stranger.pem")).unwrap();
    std::fs::copy(stranger.path("server.key"), certificates.path("stranger.key")).unwrap();
    assert!(
        over_tls(&served, &certificates.connector(Some("stranger"), &[]), "localhost")
            .await
            .is_err()
    );
    let known = certificates.connector(Some("client"), &[]);
    assert_eq!(over_tls(&served, &known, "localhost").await.unwrap(), "HTTP/1.1");
    served.stop().await;
}

#[tokio::test]
async fn certificates_are_re_read_on_request_and_broken_ones_leave_the_old_in_use() {
    let certificates = Certificates::new();
    let served = serve(with_tls(certificates.options(false)), version);
    let reloader = served.reloader.clone().unwrap();
    let connector = certificates.connector(None, &[]);
    assert!(over_tls(&served, &connector, "renewed.example").await.is_err());

    certificates.issue("server", "renewed.example");
    reloader.reload_if_changed();
    assert!(over_tls(&served, &connector, "renewed.example").await.is_ok());

    std::fs::write(certificates.path("server.pem"), "not a certificate").unwrap();
    let error = reloader.reload().unwrap_err().to_string();
    assert!(error.contains("receivers.otlp.protocols.http.tls.cert_file"), "{error}");
    assert!(over_tls(&served, &connector, "renewed.example").await.is_ok());
    served.stop().await;
}

#[tokio::test]
async fn unusable_certificate_files_are_errors_that_name_the_key_and_the_file() {
    let certificates = Certificates::new();
    let mut missing = certificates.options(false);
    missing.key_file = certificates.path("missing.key");
    let error = Listener::bind("otlp_http", with_tls(missing))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("tls.key_file") && error.contains("missing.key"),
        "{error}"
    );

    let mut foreign = certificates.options(false);
    certificates.issue("other", "other");
    foreign.key_file = certificates.path("other.key");
    let error = Listener::bind("otlp_http", with_tls(foreign))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("check that key_file belongs to cert_file"), "{error}");
}
