//! A key made on this device, and the request (PKCS #10, RFC 2986) for a certificate of it.
//!
//! P-256 with SHA-256: every broker and authority knows it, and handshakes are cheap on small boards. The request names the
//! agent as common name and as subjectAltName, and asks for what it is for, clientAuth. ring makes the key and signs;
//! x509-cert writes. The key leaves this module as PEM for its file, and is in no other text.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use x509_cert::attr::Attributes;
use x509_cert::der::asn1::{Any, BitString, Ia5String, ObjectIdentifier, OctetString};
use x509_cert::der::pem::{LineEnding, encode_string};
use x509_cert::der::{self, Decode, DecodePem, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use x509_cert::spki::{AlgorithmIdentifier, SubjectPublicKeyInfoOwned};

/// id-ecPublicKey and secp256r1 (RFC 5480).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// ecdsa-with-SHA256 (RFC 5758).
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// id-ce-subjectAltName and id-ce-extKeyUsage (RFC 5280).
const ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
/// id-kp-clientAuth (RFC 5280).
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// Why there is no key or request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The system gives no chance, or the key is none.
    #[error("the key cannot be made or used: it must be P-256 in PKCS #8, as `tributary enroll` makes it")]
    Key,
    /// The name cannot stand in a certificate.
    #[error("the request cannot be written: {0}")]
    Write(#[from] der::Error),
}

/// A new private key, PKCS #8 as PEM.
///
/// # Errors
/// The system gives no random numbers.
pub fn new_key() -> Result<String, RequestError> {
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    let key = made.map_err(|_| RequestError::Key)?;
    encode_string("PRIVATE KEY", LineEnding::LF, key.as_ref()).map_err(|_| RequestError::Key)
}

/// The request of `id` for a certificate of this key, as PEM.
///
/// # Errors
/// The key is none of ours; see [`RequestError`].
pub fn request(pkcs8: &[u8], id: &str) -> Result<String, RequestError> {
    let random = SystemRandom::new();
    let pair = pair(pkcs8, &random)?;
    let alt_names = SubjectAltName(vec![GeneralName::DnsName(Ia5String::new(id)?)]);
    let usage = ExtendedKeyUsage(vec![CLIENT_AUTH]);
    let wished = ExtensionReq(vec![extension(ALT_NAME, &alt_names)?, extension(KEY_USAGE, &usage)?]);
    let mut attributes = Attributes::default();
    attributes.insert(wished.try_into()?)?;
    let info = CertReqInfo {
        version: Version::V1,
        subject: format!("CN={id}").parse()?,
        public_key: public_key(&pair)?,
        attributes,
    };
    let signature = pair.sign(&random, &info.to_der()?).map_err(|_| RequestError::Key)?;
    let request = CertReq {
        info,
        algorithm: AlgorithmIdentifier { oid: ECDSA_SHA256, parameters: None },
        signature: BitString::from_bytes(signature.as_ref())?,
    };
    Ok(encode_string("CERTIFICATE REQUEST", LineEnding::LF, &request.to_der()?).map_err(der::Error::from)?)
}

/// Whether a PEM text is a request of `id` for this key.
#[must_use]
pub fn is_of(text: &str, pkcs8: &[u8], id: &str) -> bool {
    let wanted = pair(pkcs8, &SystemRandom::new()).ok().and_then(|pair| public_key(&pair).ok());
    let Ok(request) = CertReq::from_pem(text) else { return false };
    wanted.is_some_and(|key| key == request.info.public_key) && request.info.subject.to_string() == format!("CN={id}")
}

fn pair(pkcs8: &[u8], random: &SystemRandom) -> Result<EcdsaKeyPair, RequestError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, random).map_err(|_| RequestError::Key)
}

fn public_key(pair: &EcdsaKeyPair) -> der::Result<SubjectPublicKeyInfoOwned> {
    let curve = Any::from_der(&P256.to_der()?)?;
    let algorithm = AlgorithmIdentifier { oid: EC, parameters: Some(curve) };
    Ok(SubjectPublicKeyInfoOwned { algorithm, subject_public_key: BitString::from_bytes(pair.public_key().as_ref())? })
}

fn extension(extn_id: ObjectIdentifier, value: &impl Encode) -> der::Result<Extension> {
    Ok(Extension { extn_id, critical: false, extn_value: OctetString::new(value.to_der()?)? })
}
