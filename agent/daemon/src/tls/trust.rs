//! The uplink's certificates and key as they are in force, and what replaces them while the agent runs.
//!
//! ```text
//! files ──changed, then still for a second──▶ read ──a good pair, good authorities──▶ in force: one reconnect
//!                                               └────anything else──▶ trouble; what was in force stays
//! ```
//!
//! The files are looked at once a second, by what the file system says of them (inode, length, times: four calls of `stat`);
//! they are read only when that has changed and stood still, so a replacement in several steps within a second is one.
//! Steps further apart are safe as well: a certificate without its key is no pair, and what was in force stays until there
//! is one. Notification by the kernel was turned down: it misses renames over network file systems and bind mounts.
//!
//! In trouble the files are read again at each look, for what is wrong may be the clock, or a mode.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use sha2::{Digest, Sha256};
use tributary_protocols::time::{Mono, Wall};

use super::certificate::Certificate;
use super::{Files, Material};
use crate::config::{TlsVersion, UplinkConfig};
use crate::status::{Identity, IdentityState};

/// Files must have stood still for so long.
const STILL: Duration = Duration::from_millis(900);

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Other certificates or another key are in force: connect anew.
    Renewed(String),
    /// What is in the files cannot be used.
    Trouble(String),
    /// The files are again what is in force.
    Mended,
    /// A third of the certificate's life is left, or less.
    Due(String),
    /// The certificate has expired.
    Expired(String),
}

impl News {
    /// As an event is named to the centre.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Renewed(_) => "identity.renewed",
            Self::Trouble(_) => "identity.trouble",
            Self::Mended => "identity.mended",
            Self::Due(_) => "identity.due",
            Self::Expired(_) => "identity.expired",
        }
    }
}

impl std::fmt::Display for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Renewed(what) | Self::Trouble(what) | Self::Due(what) | Self::Expired(what) => f.write_str(what),
            Self::Mended => Ok(()),
        }
    }
}

/// What the file system says of a file: device, inode, length, times of content and of inode.
type Seen = Vec<Option<(u64, u64, u64, (i64, i64), (i64, i64))>>;

struct Force {
    config: Arc<ClientConfig>,
    digest: [u8; 32],
    /// Of the client, if it has one.
    certificate: Option<Certificate>,
}

/// The uplink's files.
pub struct Trust {
    ca: PathBuf,
    client: Option<(PathBuf, PathBuf)>,
    crl: Option<PathBuf>,
    least: TlsVersion,
    /// As the files were when they were read last.
    read: Option<Seen>,
    /// As they were at the last look, and since when.
    seen: Option<(Seen, Mono)>,
    force: Option<Force>,
    trouble: Option<String>,
    /// Whether it was said that the certificate is due, and that it has expired.
    said: (bool, bool),
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("ca", &self.ca).field("client", &self.client).finish_non_exhaustive()
    }
}

impl Trust {
    /// Of an uplink that has TLS.
    #[must_use]
    pub fn new(uplink: &UplinkConfig) -> Option<Self> {
        let tls = uplink.endpoint().is_some_and(|endpoint| endpoint.tls);
        let ca = uplink.ca.as_ref().filter(|_| tls)?.path().to_path_buf();
        let client = uplink.cert.as_ref().zip(uplink.key.as_ref());
        Some(Self {
            ca,
            client: client.map(|(cert, key)| (cert.path().to_path_buf(), key.path().to_path_buf())),
            crl: uplink.crl.as_ref().map(|crl| crl.path().to_path_buf()),
            least: uplink.tls_min,
            read: None,
            seen: None,
            force: None,
            trouble: None,
            said: (false, false),
        })
    }

    /// For the next handshake.
    ///
    /// # Errors
    /// Nothing is in force yet: why.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        match (&self.force, &self.trouble) {
            (Some(force), _) => Ok(Arc::clone(&force.config)),
            (None, Some(trouble)) => Err(trouble.clone()),
            (None, None) => Err("the certificates were not read yet".into()),
        }
    }

    /// Looks whether something has changed.
    pub fn look(&mut self, mono: Mono, wall: Wall) -> Vec<News> {
        let mut news: Vec<News> = self.look_at_files(mono, wall).into_iter().collect();
        let certificate = self.force.as_ref().and_then(|force| force.certificate.as_ref());
        if let Some(certificate) = certificate {
            let now = secs(wall);
            let (due, expired) = (certificate.is_due(now), now > certificate.not_after);
            if due && !expired && !self.said.0 {
                news.push(News::Due(certificate.ends(now)));
            }
            if expired && !self.said.1 {
                news.push(News::Expired(certificate.ends(now)));
            }
            self.said = (due, expired);
        }
        news
    }

    fn look_at_files(&mut self, mono: Mono, wall: Wall) -> Option<News> {
        let now = self.stat();
        // At the first look there is nothing that could stay in force meanwhile.
        if self.read.is_some() {
            if self.read.as_ref() == Some(&now) && self.trouble.is_none() {
                return None;
            }
            match &self.seen {
                Some((seen, since)) if *seen == now => {
                    if mono.since(*since) < STILL {
                        return None;
                    }
                }
                _ => {
                    self.seen = Some((now, mono));
                    return None;
                }
            }
        }
        self.read = Some(now);
        let trouble = match self.load(wall) {
            Ok(loaded) => {
                let mended = self.trouble.take().is_some();
                if self.force.as_ref().is_some_and(|force| force.digest == loaded.digest) {
                    return mended.then_some(News::Mended);
                }
                let whose = loaded.certificate.as_ref().map_or("no certificate of this agent".into(), |certificate| {
                    format!("{}, valid until {}", certificate.subject, certificate.last_day())
                });
                self.force = Some(loaded);
                self.said = (false, false);
                // What the first look finds is no news.
                return self.seen.is_some().then_some(News::Renewed(whose));
            }
            Err(trouble) => trouble,
        };
        if self.trouble.as_ref() == Some(&trouble) {
            return None;
        }
        self.trouble = Some(trouble.clone());
        Some(News::Trouble(trouble))
    }

    fn files(&self) -> Files<'_> {
        Files {
            ca: &self.ca,
            client: self.client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path())),
            crl: self.crl.as_deref(),
        }
    }

    fn stat(&self) -> Seen {
        let client = self.client.iter().flat_map(|(cert, key)| [cert, key]);
        let files = [&self.ca].into_iter().chain(client).chain(&self.crl);
        files
            .map(|file| {
                let meta = std::fs::metadata(file).ok()?;
                let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
                Some((meta.dev(), meta.ino(), meta.len(), times.0, times.1))
            })
            .collect()
    }

    /// Reads the files, and judges whether they are better than what is in force.
    fn load(&self, wall: Wall) -> Result<Force, String> {
        let material = Material::read(self.files()).map_err(|error| error.to_string())?;
        let config = super::build(&material, self.least).map_err(|error| error.to_string())?;
        let chain = material.client.as_ref().map(|pair| pair.cert.as_slice()).unwrap_or_default();
        let certificate = chain.first().and_then(Certificate::read);
        let old = self.force.as_ref().and_then(|force| force.certificate.as_ref());
        let now = secs(wall);
        if let Some((new, old)) = certificate.as_ref().zip(old)
            && !new.is_valid(now)
            && old.is_valid(now)
        {
            let when = format!("valid from {} to {}", new.first_day(), new.last_day());
            return Err(format!("cert: the new certificate {} is {when}, which is not now", new.subject));
        }
        let lists = material.crls.iter().map(|crl| crl.as_ref());
        let mut digest = Sha256::new();
        for der in material.roots.iter().chain(chain).map(|certificate| certificate.as_ref()).chain(lists) {
            digest.update((der.len() as u64).to_be_bytes());
            digest.update(der);
        }
        // The key is the one of the certificate: it has changed only if that has.
        Ok(Force { config, digest: digest.finalize().into(), certificate })
    }

    /// For the status.
    #[must_use]
    pub fn status(&self, wall: Wall) -> Identity {
        let certificate = self.force.as_ref().and_then(|force| force.certificate.as_ref());
        let now = secs(wall);
        let state = match certificate {
            _ if self.trouble.is_some() => IdentityState::Trouble,
            Some(certificate) if now > certificate.not_after => IdentityState::Expired,
            Some(certificate) if certificate.is_due(now) => IdentityState::RenewSoon,
            _ => IdentityState::Ok,
        };
        Identity {
            state,
            subject: certificate.map(|certificate| certificate.subject.clone()),
            not_after: certificate.map(Certificate::last_day),
            days_left: certificate.map(|certificate| certificate.not_after.saturating_sub(now) / 86_400),
            trouble: self.trouble.clone(),
        }
    }
}

/// Seconds since 1970; a clock before that is at 1970.
fn secs(wall: Wall) -> u64 {
    u64::try_from(wall.0 / 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of rcgen's making, so many seconds long from 1,000,000 on.
    fn pair(trust: &Trust, name: &str, from: u64, until: u64) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(from);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(until);
        let text = params.self_signed(&key).unwrap().pem();
        let (cert, secret) = trust.client.as_ref().unwrap();
        std::fs::write(&trust.ca, &text).unwrap();
        std::fs::write(cert, text).unwrap();
        std::fs::write(secret, key.serialize_pem()).unwrap();
        std::fs::set_permissions(secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn at(secs: i64) -> (Mono, Wall) {
        (Mono::from_millis(secs.unsigned_abs() * 1_000), Wall(secs * 1_000))
    }

    fn trust(folder: &std::path::Path) -> Trust {
        let place = |name: &str| Some(crate::config::FileRef::from(folder.join(name).display().to_string()));
        let uplink = UplinkConfig {
            url: "mqtts://localhost".into(),
            ca: place("ca"),
            cert: place("cert"),
            key: place("key"),
            ..UplinkConfig::default()
        };
        Trust::new(&uplink).unwrap()
    }

    #[test]
    fn it_warns_from_a_third_of_its_life_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut trust = trust(folder.path());
        let mut look = |secs: i64| {
            let (mono, wall) = at(secs);
            (trust.look(mono, wall), trust.status(wall).state)
        };
        assert!(matches!(&look(1).0[..], [News::Trouble(_)]), "there are no files");
        pair(&self::trust(folder.path()), "a", 1_000_000, 1_300_000);
        assert_eq!(look(2), (vec![], IdentityState::Trouble));
        let (news, state) = look(3);
        assert!(
            matches!(&news[..], [News::Renewed(whose)] if whose.starts_with("CN=a, valid until 1970-01-16")),
            "{news:?}"
        );
        assert_eq!(state, IdentityState::Ok, "a clock of 1970 is none to complain by");
        assert_eq!(look(1_199_999), (vec![], IdentityState::Ok));
        let (news, state) = look(1_200_000);
        assert!(matches!(&news[..], [News::Due(_)]) && state == IdentityState::RenewSoon, "{news:?}");
        assert_eq!(look(1_300_000), (vec![], IdentityState::RenewSoon));
        let (news, state) = look(1_300_001);
        assert!(matches!(&news[..], [News::Expired(_)]) && state == IdentityState::Expired, "{news:?}");
        assert_eq!(look(1_300_002), (vec![], IdentityState::Expired), "said once");
    }

    #[test]
    fn a_pair_that_is_not_valid_now_waits() {
        let folder = tempfile::tempdir().unwrap();
        let mut trust = trust(folder.path());
        pair(&trust, "old", 1_000, 9_000);
        let mut look = |secs: i64| {
            let (mono, wall) = at(secs);
            let news = trust.look(mono, wall);
            (news, trust.status(wall).subject.unwrap_or_default())
        };
        assert_eq!(look(2_000), (vec![], "CN=old".into()));
        pair(&self::trust(folder.path()), "new", 5_000, 20_000);
        assert_eq!(look(2_001), (vec![], "CN=old".into()), "it must stand still first");
        let (news, subject) = look(2_002);
        assert!(matches!(&news[..], [News::Trouble(why)] if why.contains("which is not now")), "{news:?}");
        assert_eq!(subject, "CN=old");
        assert_eq!(look(4_999), (vec![], "CN=old".into()), "said once");
        let (news, subject) = look(5_000);
        assert!(matches!(&news[..], [News::Renewed(_)]) && subject == "CN=new", "{news:?}");
        // With a clock that is wrong for both, the files are what the owner wants.
        pair(&self::trust(folder.path()), "newest", 5_000, 30_000);
        assert_eq!(look(90_000).0, [News::Expired("the certificate CN=new expired on 1970-01-01".into())]);
        assert_eq!(look(90_001).1, "CN=newest");
    }

    #[test]
    fn the_same_in_other_files_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let mut trust = trust(folder.path());
        pair(&trust, "a", 1_000, 900_000);
        let cert = trust.client.clone().unwrap().0;
        let mut look = |secs: i64| trust.look(at(secs).0, at(secs).1);
        assert_eq!(look(2_000), []);
        let text = std::fs::read_to_string(&cert).unwrap();
        std::fs::write(&cert, format!("a comment\n{text}")).unwrap();
        assert_eq!([look(2_001), look(2_002), look(2_003)], [[], [], []]);
        std::fs::write(&cert, &text[..40]).unwrap();
        assert_eq!(look(2_004), []);
        assert!(matches!(&look(2_005)[..], [News::Trouble(why)] if why.contains("half written")));
        std::fs::write(&cert, &text).unwrap();
        assert_eq!(look(2_006), []);
        assert_eq!(look(2_007), [News::Mended]);
    }
}
