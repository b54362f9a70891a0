//! EC2's signed identity document, with which an agent proves which instance it runs on. The signature is PKCS #7 with
//! RSA and SHA-256. AWS has a certificate for each region.

mod ber;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ber::{BITS, Element, OCTETS, OID, SEQUENCE, SET};
use ring::digest;
use ring::signature::{self, UnparsedPublicKey};
use serde::Deserialize;
use std::path::Path;

/// `signedData`, 1.2.840.113549.1.7.2.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// `messageDigest`, 1.2.840.113549.1.9.4.
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// SHA-256, 2.16.840.1.101.3.4.2.1.
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// Explicit tags.
const TAG_0: u8 = 0xa0;
/// The longest document that is looked at, characters; AWS's have about 2,000.
const LONGEST: usize = 16_384;

/// The facts about an instance in AWS's document that the master uses.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Such as `i-0123`.
    pub instance_id: String,
    /// Such as `us-west-2`.
    pub region: String,
}

/// Keys that documents may be signed with.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// RSA public keys as PKCS #1 has them.
    keys: Vec<Vec<u8>>,
}

impl Certificates {
    /// Those of a PEM file of the user's.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        Self::parse(&text).ok_or_else(|| format!("{} contains no usable certificates", path.display()))
    }

    /// AWS's own, as its documentation publishes them: one for each region.
    pub fn of_aws() -> Self {
        Self::parse(include_str!("aws.pem")).unwrap_or(Self { keys: Vec::new() })
    }

    fn parse(pem: &str) -> Option<Self> {
        let mut keys = Vec::new();
        for block in pem.split("-----BEGIN CERTIFICATE-----").skip(1) {
            let (base64, _) = block.split_once("-----END CERTIFICATE-----")?;
            keys.push(key_of(&Element::read(&decoded(base64)?)?)?);
        }
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// The document that one of these keys has signed: within the signature, or `beside` it.
    ///
    /// # Errors
    /// A sentence.
    pub fn verify(&self, pkcs7: &str, beside: Option<&str>) -> Result<Document, String> {
        if pkcs7.len() > LONGEST {
            return Err("its identity document is too long".to_owned());
        }
        let signed = decoded(pkcs7).and_then(|bytes| Signed::read(&Element::read(&bytes)?, beside));
        let signed = signed.ok_or("its identity document is not in the form that AWS signs in")?;
        let good = |key: &Vec<u8>| {
            let key = UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key);
            key.verify(&signed.message, &signed.signature).is_ok()
        };
        if !self.keys.iter().any(good) {
            return Err("its identity document is not signed by a certificate that is trusted here".to_owned());
        }
        serde_json::from_slice(&signed.document).map_err(|_| "its identity document names no instance".to_owned())
    }
}

fn decoded(base64: &str) -> Option<Vec<u8>> {
    let plain: String = base64.split_ascii_whitespace().collect();
    STANDARD.decode(plain).ok()
}

/// The RSA key of a certificate.
fn key_of(certificate: &Element) -> Option<Vec<u8>> {
    let inside = certificate.elements(SEQUENCE)?.first()?.elements(SEQUENCE)?;
    // The version is left out in the oldest kind.
    let inside = if inside.first()?.tag == TAG_0 { inside.get(1..)? } else { inside };
    // Serial number, algorithm, issuer, validity, subject, key.
    let key = inside.get(5)?.elements(SEQUENCE)?.get(1)?.bytes(BITS)?;
    // The first byte counts bits that are left over; a key has none.
    key.strip_prefix(&[0]).map(<[u8]>::to_vec)
}

struct Signed {
    document: Vec<u8>,
    /// What is signed: the attributes if there are any, which hold the document's digest, otherwise the document.
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// None if it is something else, or if its digest is not the document's.
    fn read(content_info: &Element, beside: Option<&str>) -> Option<Self> {
        let [kind, data] = content_info.elements(SEQUENCE)? else { return None };
        let [data] = data.elements(TAG_0)? else { return None };
        if kind.bytes(OID)? != SIGNED_DATA {
            return None;
        }
        let data = data.elements(SEQUENCE)?;
        // Version, digest algorithms, what is signed, certificates and lists that nobody asked for, and who has signed.
        let document = match data.get(2)?.elements(SEQUENCE)? {
            [_, document] => document.elements(TAG_0)?.first()?.bytes(OCTETS)?,
            _ => beside?.as_bytes().to_vec(),
        };
        let [signer] = data.last()?.elements(SET)? else { return None };
        // Version, issuer and number, digest algorithm, attributes perhaps, signature algorithm, signature.
        let signer = signer.elements(SEQUENCE)?;
        if signer.get(2)?.elements(SEQUENCE)?.first()?.bytes(OID)? != SHA256 {
            return None;
        }
        let attributes = signer.get(3).filter(|element| element.tag == TAG_0);
        let signature = signer.get(if attributes.is_some() { 5 } else { 4 })?.bytes(OCTETS)?;
        let message = match attributes {
            None => document.clone(),
            Some(attributes) => {
                let digest = attributes.elements(TAG_0)?.iter().find_map(message_digest)?;
                if digest != digest::digest(&digest::SHA256, &document).as_ref() {
                    return None;
                }
                // Signed as the set that they are, not under the tag that they travel with.
                Element { tag: SET, content: attributes.content.clone() }.der()
            }
        };
        Some(Self { document, message, signature })
    }
}

fn message_digest(attribute: &Element) -> Option<Vec<u8>> {
    let [kind, values] = attribute.elements(SEQUENCE)? else { return None };
    if kind.bytes(OID)? != MESSAGE_DIGEST {
        return None;
    }
    values.elements(SET)?.first()?.bytes(OCTETS)
}

#[cfg(test)]
mod tests;
