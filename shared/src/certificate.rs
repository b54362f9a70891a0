//! Explains what is wrong with a certificate that TLS refuses, and how to create a correct one.
//!
//! rustls is stricter than the programs that many certificates are made for, and its messages name the rule but not the
//! remedy. Both programs use this module to explain failed connections to the broker, the mail relay, OpenStack and the
//! API.

use crate::fingerprint::WrongFingerprint;
use rustls::CertificateError;
use std::error::Error;
use std::io;
use std::net::IpAddr;

/// The text of an error, with the explanation if a certificate is the cause of it.
pub fn with_explanation(text: String, error: &(dyn Error + 'static), host: &str) -> String {
    match explain(error, host) {
        Some(explanation) => format!("{text}: {explanation}"),
        None => text,
    }
}

/// What is wrong with the certificate of `host`, if that is what an error or one of its causes is about.
pub fn explain(error: &(dyn Error + 'static), host: &str) -> Option<String> {
    let rustls::Error::InvalidCertificate(error) = find::<rustls::Error>(error)? else { return None };
    let host = host.trim_matches(['[', ']']);
    let what = match error {
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            let days = time.as_secs().saturating_sub(not_after.as_secs()) / 86_400;
            format!("it expired {days} days ago, by this machine's clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            return Some(format!("the certificate of {host} is not valid yet, by this machine's clock"));
        }
        CertificateError::UnknownIssuer => {
            return Some(format!(
                "no authority that is trusted here has signed the certificate of {host}; if it has signed itself, or its \
                 authority is your own, configure that certificate as the authority"
            ));
        }
        CertificateError::NotValidForName => format!("it is for another name than {host}"),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "it has no subjectAltName, and its common name (CN) does not count".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("it is for {} and not for {host}", presented.join(", "))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extendedKeyUsage has no serverAuth".to_owned()
        }
        // Also what an authority that was made again under the same name leads to.
        CertificateError::BadSignature => {
            return Some(format!(
                "no authority that is trusted here has signed the certificate of {host}: one of the same name has another \
                 key, or a key is too weak (RSA below 2048 bits); configure the authority that has signed it"
            ));
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it, or its authority, is signed with an algorithm that is too weak (SHA-1, MD5)".to_owned()
        }
        CertificateError::BadEncoding => "it is malformed".to_owned(),
        CertificateError::Other(other) if other.0.is::<WrongFingerprint>() => {
            return Some(format!(
                "the certificate of {host} is not the one that is trusted: {}; `rouse check` prints what to write",
                other.0
            ));
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>()? {
            webpki::Error::CaUsedAsEndEntity => {
                "it is that of an authority (CA:TRUE), and a server needs one of its own".to_owned()
            }
            webpki::Error::EndEntityUsedAsCa => {
                "it is signed by a certificate that is not that of an authority (CA:FALSE)".to_owned()
            }
            webpki::Error::UnsupportedCertVersion => {
                "it is of version 1 of X.509, and has to be of version 3".to_owned()
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(format!("the certificate of {host} is refused: {what}; create a correct one with {}", recipe(host)))
}

/// The command that makes a certificate which is accepted, and which is its own authority.
fn recipe(host: &str) -> String {
    let kind = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "`openssl req -x509 -newkey rsa:2048 -nodes -days 825 -subj /CN={host} -addext subjectAltName={kind}:{host} -addext \
         basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem`, and configure cert.pem as the authority"
    )
}

/// The first cause of this type. An I/O error hides what it was made of from its sources.
fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::OtherError;
    use std::sync::Arc;

    fn explained(error: CertificateError, host: &str) -> Option<String> {
        // As TLS libraries hand it on.
        let inner = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error));
        explain(&io::Error::other(inner), host)
    }

    #[test]
    fn every_common_fault_is_named_with_its_remedy() {
        let other = |error| CertificateError::Other(OtherError(Arc::new(error)));
        for (error, word) in [
            (other(webpki::Error::CaUsedAsEndEntity), "CA:TRUE"),
            (other(webpki::Error::UnsupportedCertVersion), "version 1"),
            (CertificateError::Expired, "expired"),
            (CertificateError::NotValidForName, "another name"),
            (CertificateError::InvalidPurpose, "serverAuth"),
        ] {
            let told = explained(error, "mq.example.org").expect("it is explained");
            assert!(told.contains(word) && told.contains("subjectAltName=DNS:mq.example.org"), "{told}");
        }
        let told = explained(CertificateError::Expired, "[fd00::1]").expect("it is explained");
        assert!(told.contains("subjectAltName=IP:fd00::1"), "{told}");
        let told = explained(CertificateError::BadSignature, "mq").expect("it is explained");
        assert!(told.contains("another key"), "{told}");
        let told = explained(CertificateError::UnknownIssuer, "mq").expect("it is explained");
        assert!(told.contains("authority") && !told.contains("openssl"), "{told}");
    }

    #[test]
    fn what_is_about_no_certificate_is_left_as_it_is() {
        assert_eq!(explained(CertificateError::ApplicationVerificationFailure, "mq"), None);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(with_explanation("refused".to_owned(), &refused, "mq"), "refused");
    }
}
