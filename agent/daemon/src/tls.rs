//! TLS for all sides of the agent: rustls with ring, and the PEM files that the configuration names.
//!
//! TLS 1.3 unless the configuration asks for 1.2. Roots are the configured authority alone; the name in the certificate
//! (subjectAltName, never CN), its purpose, its validity and the configured revocation lists are checked at each
//! connection, which is why sessions are never resumed. Verification is never skipped: a certificate that cannot be read
//! is an error of that connection, and the spool keeps filling.
//!
//! | file | holds |
//! |---|---|
//! | `tls/words.rs` | what went wrong in a handshake, for people |
//! | `tls/certificate.rs` | whose a certificate is, and until when |
//! | `tls/request.rs` | a key, and the request for a certificate of it |
//! | `tls/trust.rs` | the uplink's files in force, and their rotation |
//!
//! Revocation: every certificate of the broker's chain needs a list of its issuer in `crl`; one without is refused. A list
//! past its date is still believed: what it revokes stays revoked, and a gateway that gets no new list is not cut off.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rumqttc::TlsConfiguration;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, SupportedProtocolVersion};

use crate::config::{TlsVersion, exposure};

pub mod certificate;
pub mod request;
pub mod trust;
mod words;

pub use words::{date, handshake};

/// Longest file that is read: a thousand certificates; revocation lists of large authorities are longer than that.
const LONGEST: u64 = 4 << 20;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, open to others, or not the PEM it should be.
    #[error("{key}: {path}: {reason}")]
    File {
        /// Its key in the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key are not a pair.
    #[error("cert: {cert}: is not the certificate of the key in {key}; the two must be a pair")]
    NoPair {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
    },
    /// What is in them cannot be used.
    #[error("{}", words::handshake(.0))]
    Rustls(#[from] rustls::Error),
}

/// Files of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The authorities that sign the server's certificate.
    pub ca: &'a Path,
    /// The client's certificate and key.
    pub client: Option<(&'a Path, &'a Path)>,
    /// What these authorities have revoked.
    pub crl: Option<&'a Path>,
}

/// What was in them.
pub(crate) struct Material {
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) client: Option<Arc<CertifiedKey>>,
    pub(crate) crls: Vec<CertificateRevocationListDer<'static>>,
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
    build(&Material::read(files)?, least)
}

impl Material {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn read(files: Files<'_>) -> Result<Self, TlsError> {
        let client = files.client.map(|(cert, key)| pair(cert, key)).transpose()?;
        let crls = match files.crl {
            None => Vec::new(),
            Some(path) => pem("crl", path, "X509 CRL")?,
        };
        Ok(Self { roots: certificates("ca", files.ca)?, client: client.map(Arc::new), crls })
    }
}

/// The client's side of a handshake with what was in the files.
///
/// # Errors
/// An authority or a list is none that can be used.
pub(crate) fn build(material: &Material, least: TlsVersion) -> Result<Arc<ClientConfig>, TlsError> {
    let versions: &[&SupportedProtocolVersion] = match least {
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&material.roots)?, Arc::clone(&provider))
        .with_crls(material.crls.iter().cloned())
        .build()
        .map_err(|error| rustls::Error::General(format!("ca, crl: {error}")))?;
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?.with_webpki_verifier(verifier);
    let mut config = match &material.client {
        Some(pair) => {
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(pair))))
        }
        None => builder.with_no_client_auth(),
    };
    // A resumed session would not look at the certificate again.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Authorities as rustls takes them.
///
/// # Errors
/// One is no certificate.
pub(crate) fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate.clone())?;
    }
    Ok(Arc::new(roots))
}

/// A certificate, or its chain, and its key.
///
/// `tributary enroll` puts key and certificate in their places one after the other; what a power cut in between leaves
/// is the new key beside the old certificate, and the new certificate beside that as [`beside`]`(cert, "new")`.
fn pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let secret = secret_key(key)?;
    let provider = ring::default_provider();
    let fits = |path: &Path| match CertifiedKey::from_der(certificates("cert", path)?, secret.clone_key(), &provider) {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::NoPair { cert: path.display().to_string(), key: key.display().to_string() })
        }
        pair => Ok(pair?),
    };
    fits(cert).or_else(|error| fits(&beside(cert, "new")).map_err(|_| error))
}

/// The file's name with an ending more.
#[must_use]
pub(crate) fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// A private key, in a file that nobody else can read.
///
/// # Errors
/// See [`TlsError::File`].
pub(crate) fn secret_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read("key", path, true)?).map_err(|error| wrong("key", path, &not_pem(&error)))
}

/// The certificates in a file, at least one.
///
/// # Errors
/// See [`TlsError::File`].
pub(crate) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem(key, path, "CERTIFICATE")
}

fn pem<T: PemObject>(key: &'static str, path: &Path, what: &str) -> Result<Vec<T>, TlsError> {
    let text = read(key, path, false)?;
    let found = T::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match found.map_err(|error| wrong(key, path, &not_pem(&error)))? {
        found if found.is_empty() => Err(wrong(key, path, &format!("holds no {what:?}; must be PEM, not DER"))),
        found => Ok(found),
    }
}

/// What is wrong with a PEM text; never what is in it.
fn not_pem(error: &rustls::pki_types::pem::Error) -> &'static str {
    use rustls::pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "ends in the middle: it is half written",
        Error::NoItemsFound => "holds no PEM of the kind it must",
        _ => "is damaged, or no PEM",
    }
}

/// A file's content.
fn read(key: &'static str, path: &Path, secret: bool) -> Result<Vec<u8>, TlsError> {
    let opened = std::fs::File::open(path).and_then(|file| file.metadata().map(|meta| (file, meta)));
    let (file, meta) = opened.map_err(|error| wrong(key, path, &error))?;
    // Root enrols for the agent's user, and may read what is another's.
    let user = Some(rustix::process::geteuid().as_raw()).filter(|user| *user != 0);
    if secret && let Some(exposure) = exposure(&meta, user) {
        return Err(wrong(key, path, &format!("{}: {} it", exposure.what, exposure.remedy)));
    }
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content).map_err(|error| wrong(key, path, &error))?;
    if content.len() as u64 > LONGEST {
        return Err(wrong(key, path, &format!("is longer than {LONGEST} bytes")));
    }
    Ok(content)
}

fn wrong(key: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { key, path: path.display().to_string(), reason: reason.to_string() }
}

/// The password in a file that nobody else can read: its first line.
///
/// # Errors
/// See [`TlsError::File`].
pub fn password(path: &Path) -> Result<String, TlsError> {
    let text = read("password_file", path, true)?;
    let text = String::from_utf8(text).map_err(|_| wrong("password_file", path, &"is no UTF-8 text"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
