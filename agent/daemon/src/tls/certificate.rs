//! Whose a certificate is, and until when. rustls verifies certificates and tells none of it.
//!
//! Only these fields are read (RFC 5280 4.1), by `der`: a library for the whole of a certificate is 0.4 MB of code.

use der::asn1::{AnyRef, GeneralizedTime, ObjectIdentifier, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, TagNumber};
use rustls::pki_types::{CertificateDer, UnixTime};

/// Attributes of a name and their short words (RFC 4514 3, emailAddress from RFC 2985).
const ATTRIBUTES: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.5", "serialNumber"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

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
    /// Reads one; `None` if it is none.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        Self::parse(der).ok()
    }

    fn parse(der: &[u8]) -> der::Result<Self> {
        let mut fields = inside(inside(AnyRef::from_der(der)?)?.decode()?)?;
        let version = TagNumber(0).context_specific(true);
        // version if any, serialNumber, signature, issuer
        for _ in 0..if Tag::peek(&fields)? == version { 4 } else { 3 } {
            fields.decode::<AnyRef<'_>>()?;
        }
        let mut validity = inside(fields.decode()?)?;
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let attributes = attributes(fields.decode()?)?;
        // The most particular is written last and named first (RFC 4514 2.1).
        let named = attributes.iter().rev().map(|(key, value)| format!("{key}={value}"));
        Ok(Self {
            subject: named.collect::<Vec<_>>().join(","),
            common_name: attributes.iter().rev().find(|(key, _)| key == "CN").map(|(_, value)| value.clone()),
            not_before,
            not_after,
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

    /// Whose ends when, or did, in words.
    #[must_use]
    pub fn ends(&self, now: u64) -> String {
        let verb = if now > self.not_after { "expired" } else { "expires" };
        format!("the certificate {} {verb} on {}", self.subject, self.last_day())
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

/// What is inside a value of several.
fn inside(any: AnyRef<'_>) -> der::Result<SliceReader<'_>> {
    SliceReader::new(any.value())
}

/// A time (RFC 5280 4.1.2.5) in seconds since 1970.
fn time(fields: &mut SliceReader<'_>) -> der::Result<u64> {
    let since_1970 = match Tag::peek(fields)? {
        Tag::UtcTime => fields.decode::<UtcTime>()?.to_unix_duration(),
        _ => fields.decode::<GeneralizedTime>()?.to_unix_duration(),
    };
    Ok(since_1970.as_secs())
}

/// The attributes of a name and their values, in the order written.
fn attributes(name: AnyRef<'_>) -> der::Result<Vec<(String, String)>> {
    let (mut sets, mut attributes) = (inside(name)?, Vec::new());
    while !sets.is_finished() {
        let mut set = inside(sets.decode()?)?;
        while !set.is_finished() {
            let mut attribute = inside(set.decode()?)?;
            let (key, value) = (attribute.decode::<ObjectIdentifier>()?.to_string(), attribute.decode::<AnyRef<'_>>()?);
            let short = ATTRIBUTES.iter().find(|(oid, _)| *oid == key).map(|(_, short)| (*short).to_owned());
            attributes.push((short.unwrap_or(key), String::from_utf8_lossy(value.value()).into_owned()));
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn says_whose_it_is_and_until_when() {
        let der = made(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Plant, North");
            let name = DnValue::PrintableString("gw-017".try_into().unwrap());
            params.distinguished_name.push(DnType::CommonName, name);
            // Written as UTCTime and, from 2050 on, as GeneralizedTime.
            params.not_before = rcgen::date_time_ymd(1999, 12, 31);
            params.not_after = rcgen::date_time_ymd(2050, 1, 1);
        });
        let read = Certificate::read(&der).unwrap();
        assert_eq!((read.subject.as_str(), read.common_name.as_deref()), ("CN=gw-017,O=Plant, North", Some("gw-017")));
        assert_eq!((read.not_before, read.not_after), (946_598_400, 2_524_608_000));
        assert_eq!((read.first_day(), read.last_day()), ("1999-12-31".into(), "2050-01-01".into()));
    }

    #[test]
    fn no_bytes_bring_it_down() {
        let whole = made(|params| params.distinguished_name.push(DnType::CommonName, "gw-017"));
        for cut in 0..whole.len() {
            assert_eq!(Certificate::read(&CertificateDer::from(&whole[..cut])), None, "{cut} bytes");
        }
        let seed = std::env::var("TRIBUTARY_SEED").map_or(1, |seed| seed.parse().unwrap());
        println!("TRIBUTARY_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let _ = Certificate::read(&CertificateDer::from(bytes));
        }
    }
}
