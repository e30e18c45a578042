//! The TLS configuration of the client side.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{ForwardError, TlsOptions};

/// Reads the certificate files of `options`.
pub(super) fn client_config(options: &TlsOptions) -> Result<ClientConfig, ForwardError> {
    // The provider is named, because no process-wide one is installed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ForwardError::Tls(format!("tls: {error}")))?;
    let builder = match &options.ca_file {
        None => builder.with_webpki_roots(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("tls.ca_file", file)? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable("tls.ca_file", file, &error))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    match (&options.cert_file, &options.key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert_file), Some(key_file)) => {
            let chain = certificates("tls.cert_file", cert_file)?;
            let key =
                PrivateKeyDer::from_pem_file(key_file).map_err(|error| unusable("tls.key_file", key_file, &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("tls.key_file", key_file, &error))
        }
        _ => Err(ForwardError::Tls(
            "tls.cert_file and tls.key_file are needed together".to_owned(),
        )),
    }
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ForwardError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).and_then(|certificates| certificates.collect());
    let certificates = certificates.map_err(|error| unusable(key, file, &error))?;
    match certificates.is_empty() {
        true => Err(unusable(key, file, &"it holds no certificate")),
        false => Ok(certificates),
    }
}

fn unusable(key: &str, file: &Path, error: &dyn std::fmt::Display) -> ForwardError {
    ForwardError::Tls(format!("{key}: {} cannot be used: {error}", file.display()))
}
