//! TLS for both sides: rustls with ring, PEM files read anew at each connection, so that a renewed certificate needs only
//! a reconnect.
//!
//! TLS 1.3 unless the configuration asks for 1.2. Roots are the configured authority alone. Verification is never
//! skipped: a certificate that cannot be read is an error of that connection, and the spool keeps filling.

use std::path::Path;
use std::sync::Arc;

use rumqttc::TlsConfiguration;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::config::TlsVersion;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, or not the PEM it should be.
    #[error("{key}: {path}: {reason}")]
    File {
        /// Its key in the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not fit, or none is trusted.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

/// Files of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The authority that signed the server's certificate.
    pub ca: &'a Path,
    /// The client's certificate and key.
    pub client: Option<(&'a Path, &'a Path)>,
}

/// The client's side of a handshake, for rumqttc.
///
/// # Errors
/// See [`TlsError`].
pub fn client(files: Files<'_>, least: TlsVersion) -> Result<TlsConfiguration, TlsError> {
    config(files, least).map(TlsConfiguration::Rustls)
}

/// The client's side of a handshake.
///
/// # Errors
/// See [`TlsError`].
pub fn config(files: Files<'_>, least: TlsVersion) -> Result<Arc<ClientConfig>, TlsError> {
    let versions: &[&SupportedProtocolVersion] = match least {
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", files.ca)? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)?
        .with_root_certificates(roots);
    let config = match files.client {
        Some((cert, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, &error))?;
            builder.with_client_auth_cert(certificates("cert", cert)?, secret)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(key, path, &error))?;
    if found.is_empty() { Err(wrong(key, path, &"no certificate in it; must be PEM")) } else { Ok(found) }
}

fn wrong(key: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { key, path: path.display().to_string(), reason: reason.to_string() }
}

/// The password in a file: its first line.
///
/// # Errors
/// It cannot be read.
pub fn password(path: &Path) -> Result<String, TlsError> {
    let text = std::fs::read_to_string(path).map_err(|error| wrong("password_file", path, &error))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
