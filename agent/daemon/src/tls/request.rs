//! A key made on this device, and the request (PKCS #10, RFC 2986) for a certificate of it.
//!
//! P-256 with SHA-256: every broker and authority knows it, and handshakes are cheap on small boards. The request names the
//! agent as common name and as subjectAltName, and asks for what it is for, clientAuth. ring makes the key and signs;
//! `der` writes. The key leaves this module as PEM for its file, and is in no other text.

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use der::pem::{LineEnding, encode_string};
use der::{Decode, Encode, Reader, SliceReader, Tag, TagNumber};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

/// id-ecPublicKey and secp256r1 (RFC 5480).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// ecdsa-with-SHA256 (RFC 5758).
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// id-at-commonName, id-ce-subjectAltName and id-ce-extKeyUsage (RFC 5280).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
/// id-kp-clientAuth (RFC 5280).
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
/// extensionRequest (RFC 2985).
const EXTENSIONS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");

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
    // dNSName is [2] IMPLICIT IA5String (RFC 5280 4.2.1.6).
    let alt_name = value(TagNumber(2).context_specific(false), &[id.as_bytes()])?;
    let wished = sequence(&[
        &extension(ALT_NAME, &sequence(&[&alt_name])?)?,
        &extension(KEY_USAGE, &sequence(&[&CLIENT_AUTH.to_der()?])?)?,
    ])?;
    let attribute = sequence(&[&EXTENSIONS.to_der()?, &value(Tag::Set, &[&wished])?])?;
    // version is v1, and attributes [0] IMPLICIT SET (RFC 2986 4.1).
    let attributes = value(TagNumber(0).context_specific(true), &[&attribute])?;
    let info = sequence(&[&0u8.to_der()?, &subject(id)?, &public_key(&pair)?, &attributes])?;
    let signature = pair.sign(&random, &info).map_err(|_| RequestError::Key)?;
    let algorithm = sequence(&[&ECDSA_SHA256.to_der()?])?;
    let request = sequence(&[&info, &algorithm, &BitStringRef::from_bytes(signature.as_ref())?.to_der()?])?;
    Ok(encode_string("CERTIFICATE REQUEST", LineEnding::LF, &request).map_err(der::Error::from)?)
}

/// Whether a PEM text is a request of `id` for this key.
#[must_use]
pub fn is_of(text: &str, pkcs8: &[u8], id: &str) -> bool {
    let of = || {
        let (label, request) = der::pem::decode_vec(text.as_bytes()).ok()?;
        let info = SliceReader::new(AnyRef::from_der(&request).ok()?.value()).ok()?.decode::<AnyRef<'_>>().ok()?;
        let mut fields = SliceReader::new(info.value()).ok()?;
        fields.tlv_bytes().ok()?;
        let (whose, key) = (fields.tlv_bytes().ok()?, fields.tlv_bytes().ok()?);
        let wanted = public_key(&pair(pkcs8, &SystemRandom::new()).ok()?).ok()?;
        Some(label == "CERTIFICATE REQUEST" && key == wanted && whose == subject(id).ok()?)
    };
    of().unwrap_or(false)
}

fn pair(pkcs8: &[u8], random: &SystemRandom) -> Result<EcdsaKeyPair, RequestError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, random).map_err(|_| RequestError::Key)
}

/// A name of one attribute (RFC 5280 4.1.2.4).
fn subject(id: &str) -> der::Result<Vec<u8>> {
    let attribute = sequence(&[&COMMON_NAME.to_der()?, &value(Tag::Utf8String, &[id.as_bytes()])?])?;
    sequence(&[&value(Tag::Set, &[&attribute])?])
}

/// SubjectPublicKeyInfo (RFC 5480 2).
fn public_key(pair: &EcdsaKeyPair) -> der::Result<Vec<u8>> {
    let algorithm = sequence(&[&EC.to_der()?, &P256.to_der()?])?;
    sequence(&[&algorithm, &BitStringRef::from_bytes(pair.public_key().as_ref())?.to_der()?])
}

/// One that is not critical (RFC 5280 4.1).
fn extension(id: ObjectIdentifier, content: &[u8]) -> der::Result<Vec<u8>> {
    sequence(&[&id.to_der()?, &value(Tag::OctetString, &[content])?])
}

fn sequence(parts: &[&[u8]]) -> der::Result<Vec<u8>> {
    value(Tag::Sequence, parts)
}

fn value(tag: Tag, parts: &[&[u8]]) -> der::Result<Vec<u8>> {
    AnyRef::new(tag, &parts.concat())?.to_der()
}
