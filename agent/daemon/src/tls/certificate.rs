//! Whose a certificate is, and until when. rustls verifies certificates and tells none of it.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use x509_cert::der::Decode;

/// What a certificate says of itself; nothing of it is verified here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject, as in `CN=gw-017,O=Plant`.
    pub subject: String,
    /// The common name of the subject.
    pub common_name: Option<String>,
    /// Seconds since 1970 from which it is valid.
    pub not_before: u64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: u64,
}

impl Certificate {
    /// Reads one; `None` if it is none, or says what RFC 5280 forbids.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let certificate = x509_cert::Certificate::from_der(der).ok()?;
        let tbs = certificate.tbs_certificate();
        let common_name = tbs.subject().common_name().ok().flatten();
        Some(Self {
            subject: tbs.subject().to_string(),
            common_name: common_name.map(|name| name.value().into_owned()),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
        })
    }

    /// Whether the time is within its validity.
    #[must_use]
    pub fn is_valid(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether a third of its life or less is left.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        let life = self.not_after.saturating_sub(self.not_before);
        self.not_after.saturating_sub(now) <= life / 3
    }

    /// Its last day, as in `2026-11-30`.
    #[must_use]
    pub fn last_day(&self) -> String {
        super::date(day(self.not_after))
    }

    /// Its first day.
    #[must_use]
    pub fn first_day(&self) -> String {
        super::date(day(self.not_before))
    }
}

fn day(secs: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs))
}
