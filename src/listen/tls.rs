//! TLS for listeners: certificate, key, optional client certificates; re-read on request and when the files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// The files of a TLS listener, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The certificate, followed by its intermediates.
    pub cert_file: PathBuf,
    /// The private key of the certificate.
    pub key_file: PathBuf,
    /// Ask clients for a certificate that one of these authorities has signed (mutual TLS).
    pub client_ca_file: Option<PathBuf>,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("{key}: {path}: {reason}", path = path.display())]
    File {
        /// The configuration key of the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files are readable but cannot be used together.
    #[error("{key}.tls: {reason}; check that key_file belongs to cert_file")]
    Unusable {
        /// The configuration section of the listener.
        key: &'static str,
        /// What the TLS library has against them.
        reason: String,
    },
}

/// The current TLS configuration of one listener.
pub(super) struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsOptions,
    key: &'static str,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// The stamps of the files when they were last read, whether that succeeded or not.
    stamps: Vec<Stamp>,
}

type Stamp = Option<(SystemTime, u64)>;

/// Re-reads the certificates of one listener.
#[derive(Clone)]
pub struct TlsReloader {
    shared: Arc<Shared>,
}

impl TlsReloader {
    /// Reads the files again; new connections use them. On an error the present certificates stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let stamps = self.shared.stamps();
        let loaded = load(&self.shared.files, self.shared.key);
        let mut current = self.shared.lock();
        current.stamps = stamps;
        current.config = loaded?;
        drop(current);
        tracing::info!(section = self.shared.key, "certificates re-read");
        Ok(())
    }

    /// Reads the files again if they changed. A failure is logged once per change.
    pub(super) fn reload_if_changed(&self) {
        let unchanged = self.shared.lock().stamps == self.shared.stamps();
        if !unchanged && let Err(error) = self.reload() {
            tracing::warn!(%error, "changed certificates cannot be used; the old ones stay in use");
        }
    }
}

impl Tls {
    pub(super) fn load(files: &TlsOptions, key: &'static str) -> Result<Tls, TlsError> {
        let config = load(files, key)?;
        let shared = Shared {
            files: files.clone(),
            key,
            current: Mutex::new(Current {
                config,
                stamps: stamps_of(files),
            }),
        };
        Ok(Tls {
            shared: Arc::new(shared),
        })
    }

    pub(super) fn reloader(&self) -> TlsReloader {
        TlsReloader {
            shared: self.shared.clone(),
        }
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.shared.lock().config.clone().into()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamps(&self) -> Vec<Stamp> {
        stamps_of(&self.files)
    }
}

fn stamps_of(files: &TlsOptions) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    [
        Some(&files.cert_file),
        Some(&files.key_file),
        files.client_ca_file.as_ref(),
    ]
    .into_iter()
    .flatten()
    .map(stamp)
    .collect()
}

fn load(files: &TlsOptions, key: &'static str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable {
        key,
        reason: error.to_string(),
    };

    let certificates = certificates(&files.cert_file, format!("{key}.tls.cert_file"))?;
    let private_key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| TlsError::File {
        key: format!("{key}.tls.key_file"),
        path: files.key_file.clone(),
        reason: error.to_string(),
    })?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let builder = match &files.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let ca_key = format!("{key}.tls.client_ca_file");
            let mut roots = rustls::RootCertStore::empty();
            for certificate in self::certificates(path, ca_key.clone())? {
                roots.add(certificate).map_err(|error| TlsError::File {
                    key: ca_key.clone(),
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unusable(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates, private_key)
        .map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path, key: String) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let reason = match read() {
        Ok(certificates) if certificates.is_empty() => "holds no certificate in PEM form".to_owned(),
        Ok(certificates) => return Ok(certificates),
        Err(error) => error.to_string(),
    };
    Err(TlsError::File {
        key,
        path: path.to_owned(),
        reason,
    })
}
