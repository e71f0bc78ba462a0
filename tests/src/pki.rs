//! A certification authority of the test's own: good certificates, and each wrong kind of them. P-256 throughout; what
//! rcgen does not make (RSA, SHA-1) comes from the command `openssl`.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;

const DAY: i64 = 86_400;

/// Somebody who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
    /// Those between it and a root, its own first; empty for a root.
    pub chain: String,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The common name.
    pub name: &'a str,
    /// The organization: tells one certificate of a name from the next.
    pub organization: &'a str,
    /// The subject's other names.
    pub hosts: &'a [&'a str],
    /// Days from now that it is valid from and to.
    pub days: (i64, i64),
    /// What it is for.
    pub purpose: ExtendedKeyUsagePurpose,
    /// Its serial number.
    pub serial: u64,
}

impl<'a> Wanted<'a> {
    /// Of a server, from yesterday for a month.
    #[must_use]
    pub fn server(hosts: &'a [&'a str]) -> Self {
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        Self { name: "broker", organization: "plant", hosts, days: (-1, 30), purpose, serial: 7 }
    }

    /// Of an agent, from yesterday for a month.
    #[must_use]
    pub fn client(name: &'a str) -> Self {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        Self { name, organization: "plant", hosts: &[], days: (-1, 30), purpose, serial: 8 }
    }
}

/// A certificate with its chain, and its key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Its own certificate first.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
}

impl Authority {
    /// A root.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = authority(name);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem, chain: String::new() }
    }

    /// One below it.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = authority(name);
        let pem = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), chain: format!("{pem}{}", self.chain), pem }
    }

    /// Signs what is wanted.
    #[must_use]
    pub fn issue(&self, wanted: &Wanted<'_>) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(wanted).signed_by(&key, &self.issuer).expect("signed");
        Issued { chain: format!("{}{}", certificate.pem(), self.chain), key: key.serialize_pem() }
    }

    /// What a host's certificate signs, which is no authority.
    #[must_use]
    pub fn issue_by_leaf(&self, leaf: &Wanted<'_>, wanted: &Wanted<'_>) -> Issued {
        let leaf_key = KeyPair::generate().expect("a key");
        let leaf_params = params(leaf);
        let above = leaf_params.signed_by(&leaf_key, &self.issuer).expect("signed");
        let key = KeyPair::generate().expect("a key");
        let certificate = params(wanted).signed_by(&key, &Issuer::new(leaf_params, leaf_key)).expect("signed");
        Issued { chain: format!("{}{}", certificate.pem(), above.pem()), key: key.serialize_pem() }
    }

    /// The list of what it has revoked.
    #[must_use]
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(1970, 1, 1) + at(-1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + at(-1),
            next_update: date_time_ymd(1970, 1, 1) + at(7),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }
}

/// Signed by its own key: as an authority, or as a host.
#[must_use]
pub fn self_signed(wanted: &Wanted<'_>, as_authority: bool) -> Issued {
    let key = KeyPair::generate().expect("a key");
    let mut params = params(wanted);
    if as_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    Issued { chain: params.self_signed(&key).expect("signed").pem(), key: key.serialize_pem() }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date_time_ymd(1970, 1, 1) + at(-400), date_time_ymd(1970, 1, 1) + at(400));
    params
}

fn params(wanted: &Wanted<'_>) -> CertificateParams {
    let hosts: Vec<String> = wanted.hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names of hosts");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, wanted.organization);
    params.distinguished_name.push(DnType::CommonName, wanted.name);
    params.extended_key_usages = vec![wanted.purpose.clone()];
    params.serial_number = Some(SerialNumber::from(wanted.serial));
    (params.not_before, params.not_after) =
        (date_time_ymd(1970, 1, 1) + at(wanted.days.0), date_time_ymd(1970, 1, 1) + at(wanted.days.1));
    params
}

/// So many days from now, since 1970.
fn at(days: i64) -> Duration {
    let now = u64::try_from(SystemClock::new().wall().0 / 1_000).expect("a time after 1970");
    Duration::from_secs(now.saturating_add_signed(days * DAY))
}
