//! Files that the configuration names: certificates, keys, password files. Secrets are places, never values.
//!
//! A place is a path, relative to the configuration's folder, or `credential:NAME`, which systemd hands over in
//! `$CREDENTIALS_DIRECTORY`: the one thing that is taken from the environment.
//!
//! Whoever runs is only warned of what is wrong with the uplink's files: a certificate that is half replaced when the power
//! comes back must not keep a gateway from polling. `tls/trust.rs` looks at them again until they are right.

use std::fmt;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tributary_protocols::time::Clock;

use super::{Check, Occasion, UplinkConfig};
use crate::clock::SystemClock;
use crate::tls::certificate::Certificate;
use crate::tls::{self, TlsError};

/// A place as the configuration names it, and where that is.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "String", into = "String")]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct FileRef {
    given: String,
    path: PathBuf,
}

impl FileRef {
    /// Where it is. Before the configuration was checked this is what was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the credential of systemd, if it is one.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        self.given.strip_prefix("credential:")
    }
}

impl From<String> for FileRef {
    fn from(given: String) -> Self {
        let path = PathBuf::from(&given);
        Self { given, path }
    }
}

impl From<FileRef> for String {
    fn from(file: FileRef) -> Self {
        file.given
    }
}

impl fmt::Debug for FileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.given, f)
    }
}

/// As much of a file as is read to see what it is.
const LOOK: u64 = 64 * 1024;

/// How a secret is open to others than its reader, and what to do.
#[derive(Debug)]
pub(crate) struct Exposure {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// Whether a secret is open to others than the user who reads it; who that is may be unknown.
///
/// A file of the reader must be closed to everyone else. One of root may be readable by a group: so a service reads what
/// only root may change (PostgreSQL has the same rule, and systemd hands out credentials so). One of anybody else is
/// anybody else's secret.
pub(crate) fn exposure(meta: &Metadata, reader: Option<u32>) -> Option<Exposure> {
    let (mode, owner) = (meta.mode() & 0o777, meta.uid());
    let closed = if owner == 0 { 0o037 } else { 0o077 };
    let exposure = |what: String, remedy: &str| Some(Exposure { what, remedy: remedy.to_owned() });
    if mode & 0o007 != 0 {
        exposure(format!("is a secret open to everyone (mode {mode:04o})"), "chmod 0600")
    } else if mode & closed != 0 {
        exposure(format!("is a secret open to a group (mode {mode:04o})"), "chmod 0600")
    } else if owner != 0 && reader.is_some_and(|reader| reader != owner) {
        exposure(format!("is a secret of another user (uid {owner})"), "give it to the agent's user, or to root: chown")
    } else {
        None
    }
}

impl Check<'_, '_> {
    /// Finds the place of `file`, the value of `key`, and looks whether it can be used: it is there, it holds `mark`,
    /// and, if it is a `secret`, nobody else may read it.
    pub(super) fn file(&mut self, key: &str, file: Option<&mut FileRef>, mark: &str, secret: bool) {
        let Some(file) = file else { return };
        if let Some(name) = file.credential() {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return self.error(
                    key,
                    format!("{name:?} is no name of a credential"),
                    "as in \"credential:client.key\"",
                );
            }
            match (self.credentials.clone(), self.occasion) {
                (Some(dir), _) => file.path = dir.join(name),
                (None, Occasion::Run) => {
                    return self.error(
                        key,
                        format!("systemd has handed over no credential {name:?}"),
                        format!("add LoadCredential={name}:PATH to the unit"),
                    );
                }
                (None, Occasion::Check | Occasion::Beside) => {
                    return self.warning(
                        key,
                        format!("the credential {name:?} cannot be looked at outside its unit"),
                        format!("the unit needs LoadCredential={name}:PATH"),
                    );
                }
            }
        } else {
            file.path = self.resolve(&file.path);
        }
        let path = file.path.clone();
        if self.occasion != Occasion::Beside {
            self.look(key, &path, mark, secret);
        }
    }

    /// Looks into the uplink's certificates, as the agent will before it connects: whether they can be used, and until when.
    pub(super) fn certificates(&mut self, uplink: &UplinkConfig) {
        const KEYS: [&str; 4] = ["uplink.ca", "uplink.crl", "uplink.cert", "uplink.key"];
        let said = self.report.errors.iter().chain(&self.report.warnings).any(|said| KEYS.contains(&&*said.key));
        let (UplinkConfig { ca: Some(ca), cert, key, crl, tls_min, .. }, false) = (uplink, said) else { return };
        if self.occasion != Occasion::Check {
            return;
        }
        let client = cert.as_ref().zip(key.as_ref()).map(|(cert, key)| (cert.path(), key.path()));
        let crl = crl.as_ref().map(FileRef::path);
        match tls::config(tls::Files { ca: ca.path(), client, crl }, *tls_min) {
            Ok(_) => {}
            Err(TlsError::File { key, path, reason }) => {
                return self.error(&format!("uplink.{key}"), format!("{path} {reason}"), "put a right one there");
            }
            Err(TlsError::NoPair { cert, key }) => {
                let message = format!("{cert} is not the certificate of the key in {key}");
                return self.error("uplink.cert", message, "name the two of one pair; `tributary enroll` makes one");
            }
            Err(error) => {
                let help = "`ca` and `crl` must hold what an authority made, `cert` and `key` a pair for this agent";
                return self.error("uplink.ca", error.to_string(), help);
            }
        }
        let chain = client.and_then(|(cert, _)| tls::certificates("cert", cert).ok());
        let own = chain.as_deref().and_then(<[_]>::first).and_then(Certificate::read);
        let now = u64::try_from(SystemClock::new().wall().0 / 1000).unwrap_or(0);
        let Some(own) = own else { return };
        if own.is_due(now) {
            self.warning(
                "uplink.cert",
                own.ends(now),
                "`tributary enroll` asks for a new one; the running agent takes it",
            );
        } else if now < own.not_before {
            let message = format!("the certificate {} is not valid before {}", own.subject, own.first_day());
            self.warning("uplink.cert", message, "look at this machine's clock");
        }
    }

    fn look(&mut self, key: &str, path: &Path, mark: &str, secret: bool) {
        let name = path.display();
        let meta = match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return self.unusable(key, format!("{name} is not a file"), "name the file itself"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let help = match key {
                    "uplink.cert" | "uplink.key" => {
                        "`tributary enroll -c FILE` makes the key, and takes the certificate"
                    }
                    _ => "put the file there, or name the right one",
                };
                return self.unusable(key, format!("{name} does not exist"), help);
            }
            Err(error) => return self.unreadable(key, path, &error),
        };
        // Who checks need not be who runs.
        let reader = (self.occasion == Occasion::Run).then(|| rustix::process::geteuid().as_raw());
        if secret && let Some(Exposure { what, remedy }) = exposure(&meta, reader) {
            self.unusable(key, format!("{name} {what}"), format!("{remedy} {name}"));
        }
        let mut head = Vec::new();
        match std::fs::File::open(path).and_then(|file| file.take(LOOK).read_to_end(&mut head)) {
            Ok(0) => self.unusable(key, format!("{name} is empty"), "put its content there"),
            Ok(_) if !String::from_utf8_lossy(&head).contains(mark) => {
                self.unusable(key, format!("{name} holds no {mark:?}"), "it must be PEM, not DER");
            }
            Ok(_) => {}
            Err(error) => self.unreadable(key, path, &error),
        }
    }

    fn unusable(&mut self, key: &str, message: String, help: impl Into<String>) {
        if self.occasion == Occasion::Run && key.starts_with("uplink.") {
            self.warning(key, message, help);
        } else {
            self.error(key, message, help);
        }
    }

    /// Who checks may be another user than who runs: only the runner must be able to read.
    fn unreadable(&mut self, key: &str, path: &Path, error: &std::io::Error) {
        let message = format!("{} cannot be read: {error}", path.display());
        let help = "the agent's user must be able to read it";
        if error.kind() == std::io::ErrorKind::PermissionDenied && self.occasion == Occasion::Check {
            self.warning(key, message, help);
        } else {
            self.unusable(key, message, help);
        }
    }
}
