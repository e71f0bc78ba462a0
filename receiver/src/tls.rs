//! TLS to the broker: rustls with ring, PEM files, read anew at each connection so that a renewed certificate needs only a
//! reconnect.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::{ConfigError, Tls};

/// The client's side of a handshake.
///
/// # Errors
/// If a file is not the PEM it should be, or certificate and key do not fit.
pub(crate) fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, ConfigError> {
    let wrong =
        |key: &str, path: &Path, message: String| ConfigError::new(format!("{key}: {}", path.display()), message);
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &tls.ca)? {
        roots.add(certificate).map_err(|error| wrong("ca", &tls.ca, error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("ca", &tls.ca, error.to_string()))?
        .with_root_certificates(roots);
    let Some((cert, key)) = &tls.client else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain = certificates("cert", cert)?;
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, format!("no private key: {error}")))?;
    let config =
        builder.with_client_auth_cert(chain, secret).map_err(|error| wrong("cert", cert, error.to_string()))?;
    Ok(Arc::new(config))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let wrong = |message: String| ConfigError::new(format!("{key}: {}", path.display()), message);
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("no certificate in it; must be PEM".into())) } else { Ok(found) }
}
