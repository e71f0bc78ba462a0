//! How this agent gets its certificate: the key is made here and never leaves, the request goes out, the certificate comes in.
//!
//! ```text
//! ask    KEY.new made (0600), KEY.csr written        the old pair is in force
//! take   the certificate checked against KEY.new, the authority, the clock and the agent's id
//!        1. CERT.new written    2. KEY.new becomes KEY    3. CERT.new becomes CERT
//! ```
//!
//! Whatever ends it in between leaves a pair that loads: until 2 the old one, after it KEY with CERT.new (`tls.rs` looks
//! there). Each step is synced before the next. Asking again before the certificate came gives the same request; taking
//! again changes nothing. A certificate that fails a check leaves everything as it was.
//!
//! Root may do this for the agent: the files are given to the owner of the state folder, who is the agent's user.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use tributary_protocols::time::Wall;

use crate::tls::certificate::Certificate;
use crate::tls::{self, TlsError, beside, request};

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Disk {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The key or the request cannot be made.
    #[error("{0}")]
    Request(#[from] request::RequestError),
    /// A file that is read is not what it must be.
    #[error("{0}")]
    File(#[from] TlsError),
    /// The certificate is not the one that was asked for.
    #[error("the certificate is not taken, and nothing was changed: {0}")]
    Refused(String),
}

/// Where key and certificate are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The key in force.
    pub key: PathBuf,
    /// The certificate in force.
    pub cert: PathBuf,
    /// Who the files are for, if it is not who writes them.
    pub owner: Option<(u32, u32)>,
}

/// What came of a request.
#[derive(Debug)]
pub struct Asked {
    /// The request, PEM.
    pub text: String,
    /// Its file.
    pub file: PathBuf,
    /// The new key's file.
    pub key: PathBuf,
}

impl Places {
    /// The owner of the state folder, if root writes for another.
    #[must_use]
    pub fn owner_of(state_dir: &Path) -> Option<(u32, u32)> {
        let meta = fs::metadata(state_dir).ok()?;
        (rustix::process::geteuid().is_root() && meta.uid() != 0).then(|| (meta.uid(), meta.gid()))
    }

    fn fresh_key(&self) -> PathBuf {
        beside(&self.key, "new")
    }

    fn fresh_cert(&self) -> PathBuf {
        beside(&self.cert, "new")
    }

    fn request(&self) -> PathBuf {
        beside(&self.key, "csr")
    }

    /// Makes a key, unless one waits for its certificate, and the request of `id` for a certificate of it.
    ///
    /// # Errors
    /// See [`EnrollError`].
    pub fn ask(&self, id: &str) -> Result<Asked, EnrollError> {
        let (key, file) = (self.fresh_key(), self.request());
        if !key.exists() {
            self.write(&key, &request::new_key()?, 0o600)?;
        }
        let secret = tls::secret_key(&key)?;
        let waiting = fs::read_to_string(&file).unwrap_or_default();
        if request::is_of(&waiting, secret.secret_der(), id) {
            return Ok(Asked { text: waiting, file, key });
        }
        let text = request::request(secret.secret_der(), id)?;
        self.write(&file, &text, 0o644)?;
        Ok(Asked { text, file, key })
    }

    /// Takes a certificate with its chain: for the key that waits for it, or, if none does, for the one in force.
    ///
    /// # Errors
    /// See [`EnrollError`]; then nothing was changed.
    pub fn take(&self, id: &str, chain: &Path, authorities: &Path, now: Wall) -> Result<Certificate, EnrollError> {
        let chain = tls::certificates("certificate", chain)?;
        let key = if self.fresh_key().exists() { self.fresh_key() } else { self.key.clone() };
        let certificate = self.check(id, &chain, &key, authorities, now)?;
        let text = chain.iter().map(|der| pem(der)).collect::<Result<String, _>>()?;
        self.write(&self.fresh_cert(), &text, 0o644)?;
        if key != self.key {
            rename(&key, &self.key)?;
        }
        rename(&self.fresh_cert(), &self.cert)?;
        // A request that is answered is of no use; one that stays does no harm.
        let _ = fs::remove_file(self.request());
        Ok(certificate)
    }

    fn check(
        &self,
        id: &str,
        chain: &[CertificateDer<'static>],
        key: &Path,
        authorities: &Path,
        now: Wall,
    ) -> Result<Certificate, EnrollError> {
        let refused = |why: String| EnrollError::Refused(why);
        let (first, above) = chain.split_first().ok_or_else(|| refused("there is none".into()))?;
        let secret = tls::secret_key(key)?;
        if CertifiedKey::from_der(chain.to_vec(), secret, &ring::default_provider()).is_err() {
            let key = key.display();
            return Err(refused(format!(
                "it is not of the key in {key}; send the request beside that key, and take its answer"
            )));
        }
        let said = Certificate::read(first).ok_or_else(|| refused("it breaks the rules of RFC 5280".into()))?;
        let provider = Arc::new(ring::default_provider());
        let roots = tls::roots(&tls::certificates("ca", authorities)?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(now.0).unwrap_or(0)));
        verifier.verify_client_cert(first, above, now).map_err(|error| refused(tls::handshake(&error)))?;
        match said.common_name.as_deref() {
            Some(name) if name == id => Ok(said),
            name => Err(refused(format!("it names {:?}, and this agent is {id:?}", name.unwrap_or_default()))),
        }
    }

    /// The pair is not this machine's: away with it, and with what was asked for.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&self) -> Result<(), EnrollError> {
        for file in [&self.key, &self.cert, &self.fresh_key(), &self.fresh_cert(), &self.request()] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(file, error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), EnrollError> {
        replace(path, text.as_bytes(), mode, self.owner).map_err(|error| disk(path, error))
    }
}

fn disk(path: &Path, source: io::Error) -> EnrollError {
    EnrollError::Disk { path: path.display().to_string(), source }
}

fn pem(certificate: &[u8]) -> Result<String, request::RequestError> {
    use der::pem::{LineEnding, encode_string};
    Ok(encode_string("CERTIFICATE", LineEnding::LF, certificate).map_err(der::Error::from)?)
}

fn rename(from: &Path, to: &Path) -> Result<(), EnrollError> {
    fs::rename(from, to).and_then(|()| sync_folder(to)).map_err(|error| disk(to, error))
}

/// Writes a file whole or not at all, for an owner if it is not who writes: beside it, synced, then by rename.
///
/// # Errors
/// The disk refuses.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let part = beside(path, "part");
    // One that was left half written may have another mode.
    let _ = fs::remove_file(&part);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    if let Some((user, group)) = owner {
        chown(&part, Some(user), Some(group))?;
    }
    file.sync_all()?;
    fs::rename(&part, path)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
