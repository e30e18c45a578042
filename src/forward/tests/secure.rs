//! TLS between the forwarder and a backend.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::rig::{Reply, Rig, Sink};
use crate::forward::{ForwardError, Protocol, TlsOptions};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    fn acceptor(&self, demands_certificate: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if demands_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = self.issue("localhost");
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder
            .with_single_cert(vec![CertificateDer::from(certificate)], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn backend(authority: &Authority, demands_certificate: bool) -> (Sink, String) {
    let acceptor = authority.acceptor(demands_certificate);
    let sink = Sink::start_at("127.0.0.1:0", Some(acceptor), |_, received| {
        match received.path.starts_with("/v1") {
            true => Reply::status(200),
            false => Reply::grpc(0, ""),
        }
    });
    let sink = sink.await;
    let url = format!("https://localhost:{}", sink.address.port());
    (sink, url)
}

#[tokio::test]
async fn a_backend_with_a_certificate_of_our_authority_is_trusted_over_both_protocols() {
    let authority = Authority::new();
    for protocol in [Protocol::HttpProtobuf, Protocol::Grpc] {
        let (mut sink, url) = backend(&authority, false).await;
        let mut rig = Rig::new(&url);
        rig.options.protocol = protocol;
        rig.options.tls.ca_file = Some(rig.write("ca.pem", &authority.0.pem()));
        rig.spans(["a"]).await;
        let running = rig.start();
        assert_eq!(sink.next().await.names(), ["a"]);
        running.stop().await;
        assert_eq!(rig.saved(), Some(rig.end()));
    }
}

#[tokio::test]
async fn a_backend_that_demands_a_certificate_gets_ours() {
    let authority = Authority::new();
    let (mut sink, url) = backend(&authority, true).await;
    let mut rig = Rig::new(&url);
    let (certificate, key) = authority.issue("sidecar");
    rig.options.tls = TlsOptions {
        insecure: false,
        ca_file: Some(rig.write("ca.pem", &authority.0.pem())),
        cert_file: Some(rig.write("cert.pem", &certificate.pem())),
        key_file: Some(rig.write("key.pem", &key.serialize_pem())),
    };
    rig.spans(["a"]).await;
    let running = rig.start();
    assert_eq!(sink.next().await.names(), ["a"]);
    running.stop().await;
}

#[tokio::test]
async fn a_backend_that_is_not_trusted_holds_the_queue_until_the_file_is_replaced() {
    let authority = Authority::new();
    let (mut sink, url) = backend(&authority, false).await;
    let mut rig = Rig::new(&url);
    let ca_file = rig.write("ca.pem", &Authority::new().0.pem());
    rig.options.tls.ca_file = Some(ca_file.clone());
    rig.spans(["a"]).await;
    let running = rig.start();
    let degraded = loop {
        match rig.degraded() {
            Some(degraded) => break degraded,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(
        degraded.contains("TLS") && degraded.contains("exporters.otlp.tls"),
        "{degraded}"
    );
    std::fs::write(ca_file, authority.0.pem()).unwrap();
    assert_eq!(sink.next().await.names(), ["a"]);
    running.stop().await;
}

#[tokio::test]
async fn certificate_files_that_cannot_be_used_are_named_with_their_key() {
    let rig = Rig::new("https://localhost:1");
    let empty = rig.write("empty.pem", "");
    let missing = rig.path().join("missing.pem");
    let cases = [
        (
            TlsOptions {
                ca_file: Some(missing.clone()),
                ..TlsOptions::default()
            },
            "tls.ca_file",
        ),
        (
            TlsOptions {
                ca_file: Some(empty.clone()),
                ..TlsOptions::default()
            },
            "tls.ca_file",
        ),
        (
            TlsOptions {
                cert_file: Some(missing.clone()),
                ..TlsOptions::default()
            },
            "needed together",
        ),
        (
            TlsOptions {
                cert_file: Some(empty),
                key_file: Some(missing),
                ..TlsOptions::default()
            },
            "tls.cert_file",
        ),
    ];
    for (options, expected) in cases {
        let Err(ForwardError::Tls(message)) = super::super::tls::client_config(&options) else {
            panic!("accepted")
        };
        assert!(message.contains(expected), "{message}");
    }
}
