//! What went wrong in a handshake, in words that name the remedy. "It" is the other side; who that is stands before.
//!
//! The words hold nothing that varies from try to try, not even the hour: a reason is said once (`notices.rs`).

use std::time::Duration;

use der::DateTime;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertRevocationListError, CertificateError, Error, PeerIncompatible};

/// Object identifiers of signatures that can be forged (RFC 3279): sha1WithRSAEncryption, md5WithRSAEncryption,
/// ecdsa-with-SHA1.
const BROKEN: [(&[u8], &str); 3] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], "SHA-1"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], "MD5"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], "SHA-1"),
];
const OTHER_TLS: &str = "it speaks no version of TLS that is spoken here: 1.3, and 1.2 only with tls_min = \"1.2\"";

/// Why a handshake failed.
#[must_use]
pub fn handshake(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => said(*alert),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => OTHER_TLS.into(),
        Error::PeerIncompatible(what) => format!("it speaks a TLS that does not fit: {what:?}"),
        Error::InvalidMessage(_) => "what it says is not TLS: is this its port for TLS, and is it a broker?".into(),
        Error::PeerMisbehaved(what) => format!("it breaks the rules of TLS: {what:?}"),
        Error::InvalidCertRevocationList(error) => list(error),
        Error::InconsistentKeys(_) => "`cert` and `key` are not a pair".into(),
        other => other.to_string(),
    }
}

/// Why a certificate is refused.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired on {}: it must be renewed, or this machine's clock is wrong, which says {}",
            date(*not_after),
            date(*time)
        ),
        CertificateError::Expired => "its certificate has expired, or ends before it begins".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid before {}: is this machine's clock right, which says {}?",
            date(*not_before),
            date(*time)
        ),
        CertificateError::Revoked => "its certificate is revoked, as `crl` says".into(),
        CertificateError::UnknownIssuer => {
            "its certificate is signed by no authority in `ca`: add the right authority's; a server must show all \
             certificates between that and its own"
                .into()
        }
        CertificateError::UnknownRevocationStatus => {
            "`crl` holds no list of the authority that signed a certificate of it, so nobody knows whether that is revoked: \
             add the list of each authority of its chain"
                .into()
        }
        CertificateError::BadSignature => {
            "a signature of it does not hold: its certificate or key is forged, damaged, or too weak (RSA below 2,048 bits)"
                .into()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. } => {
            let broken = BROKEN.iter().find(|(id, _)| signature_algorithm_id.windows(id.len()).any(|part| part == *id));
            let how = broken.map_or("in a way that is not trusted", |(_, name)| match *name {
                "MD5" => "with MD5, which can be forged",
                _ => "with SHA-1, which can be forged",
            });
            format!("its certificate is signed {how}: SHA-256 with RSA, ECDSA or Ed25519 would do")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            match presented.len() {
                0 => format!(
                    "its certificate names no host in its subjectAltName (a CN is not looked at): it must name {expected}"
                ),
                _ => format!("its certificate is for {}, not for {expected}", presented.join(", ")),
            }
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            "its certificate is not for this purpose: a server's must allow serverAuth (extended key usage), a client's \
             clientAuth"
                .into()
        }
        CertificateError::BadEncoding => "its certificate cannot be read: it is damaged".into(),
        CertificateError::Other(error) => match error.to_string().as_str() {
            "EndEntityUsedAsCa" => {
                "its certificate is signed by one that is no authority's: a certificate of a host signs nothing".into()
            }
            "CaUsedAsEndEntity" => "it shows an authority's certificate as its own (self-signed?): it needs one of its own \
                                    that an authority in `ca` has signed"
                .into(),
            other => format!("its certificate is refused: {other}"),
        },
        other => format!("its certificate is refused: {other}"),
    }
}

/// Why a revocation list cannot be used.
fn list(error: &CertRevocationListError) -> String {
    match error {
        CertRevocationListError::BadSignature => {
            "crl: a list in it is not signed by the authority that it names".into()
        }
        CertRevocationListError::ParseError => "crl: a list in it cannot be read".into(),
        other => format!("crl: a list in it cannot be used: {other:?}"),
    }
}

/// What the other side says of us.
fn said(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "it wants a certificate of this agent: set `cert` and `key`; `tributary enroll` makes them".into()
        }
        AlertDescription::CertificateExpired => {
            "it says that this agent's certificate has expired: `tributary enroll` asks for a new one".into()
        }
        AlertDescription::CertificateRevoked => "it says that this agent's certificate is revoked".into(),
        AlertDescription::UnknownCA => "it does not know the authority that signed this agent's certificate".into(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => format!("it refuses this agent's certificate ({alert:?})"),
        AlertDescription::ProtocolVersion => OTHER_TLS.into(),
        AlertDescription::HandshakeFailure => {
            "it finds no cipher that both know, or wants a certificate of this agent (HandshakeFailure)".into()
        }
        other => format!("it ends the handshake ({other:?})"),
    }
}

/// The day, as in `2026-11-30`.
#[must_use]
pub fn date(time: UnixTime) -> String {
    let day = DateTime::from_unix_duration(Duration::from_secs(time.as_secs()));
    day.map_or("a day after 9999".into(), |day| format!("{:04}-{:02}-{:02}", day.year(), day.month(), day.day()))
}
