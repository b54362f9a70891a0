//! A certificate with its key, from two files: for the private broker and for the page. Says what is wrong with them.

use rouse_shared::Fingerprint;
use rouse_shared::broker_url::bracketed;
use rustls::crypto::ring;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use webpki::{EndEntityCert, Error as CertificateError, KeyUsage};

/// Largest file of certificates or of a key, bytes.
const MAX_FILE: u64 = 1 << 20;

/// `tls = { cert, key }`: PEM files. The first certificate is the server's own; those that have signed it may follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificates.
    pub cert: PathBuf,
    /// The private key of the first one, without a password.
    pub key: PathBuf,
}

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file is not PEM, or has nothing of the kind in it.
    #[error("{} has no {what} in the format PEM", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The key has a password.
    #[error("the key in {} has a password: remove it with `openssl pkey`", .0.display())]
    Encrypted(PathBuf),
    /// The key is of a kind that TLS does not use.
    #[error("the key in {} cannot be used: give one of RSA or ECDSA", .0.display())]
    Unusable(PathBuf),
    /// The certificate is malformed.
    #[error("the certificate in {} cannot be used: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate is for another key.
    #[error("the key in {} is not that of the certificate in {}", .0.key.display(), .0.cert.display())]
    OtherKey(TlsFiles),
}

/// The certificate of the master's own authority, in the authority's directory.
pub fn authority_in(dir: &Path) -> PathBuf {
    dir.join("authority.pem")
}

/// The certificates in a PEM file.
///
/// # Errors
/// If it cannot be read, or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let absent = || TlsError::Absent { path: path.to_owned(), what: "certificate" };
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, PemError>>().map_err(|_| absent())?;
    if found.is_empty() { Err(absent()) } else { Ok(found) }
}

/// The fingerprints of the certificates in a PEM file.
///
/// # Errors
/// As [`certificates`].
pub fn fingerprints(path: &Path) -> Result<Vec<Fingerprint>, TlsError> {
    Ok(certificates(path)?.iter().map(|certificate| Fingerprint::of(certificate)).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(source) => Err(TlsError::Unreadable { path: path.to_owned(), source }),
    }
}

impl TlsFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// If one cannot be read or used, or they do not belong together.
    pub fn load(&self) -> Result<CertifiedKey, TlsError> {
        let chain = certificates(&self.cert)?;
        let pem = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            if pem.windows(9).any(|word| word == b"ENCRYPTED") {
                TlsError::Encrypted(self.key.clone())
            } else {
                TlsError::Absent { path: self.key.clone(), what: "private key" }
            }
        })?;
        let key = ring::sign::any_supported_type(&key).map_err(|_| TlsError::Unusable(self.key.clone()))?;
        let pair = CertifiedKey::new(chain, key);
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::OtherKey(self.clone())),
            Err(error) => Err(TlsError::Malformed { path: self.cert.clone(), why: error.to_string() }),
        }
    }

    /// The settings of an HTTP server.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let pair = Arc::new(self.load()?);
        let unusable = |error: rustls::Error| TlsError::Malformed { path: self.cert.clone(), why: error.to_string() };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Always(pair)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Why clients that dial one of `hosts` refuse the certificate, although it belongs to the key.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn faults(&self, hosts: &[String], now: UnixTime) -> Result<Vec<String>, TlsError> {
        let pair = self.load()?;
        let malformed = |why: String| TlsError::Malformed { path: self.cert.clone(), why };
        let own = pair.end_entity_cert().map_err(|error| malformed(error.to_string()))?;
        let parsed = EndEntityCert::try_from(own).map_err(|error| malformed(error.to_string()))?;
        let algorithms = ring::default_provider().signature_verification_algorithms.all;
        let place = self.cert.display();
        let mut faults = Vec::new();
        // Without any authority this always fails. Who has signed it is not known here; the rest is.
        match parsed.verify_for_usage(algorithms, &[], &[], now, KeyUsage::server_auth(), None, None) {
            Err(CertificateError::CertExpired { .. }) => faults.push(format!("the certificate in {place} has expired")),
            Err(CertificateError::CertNotValidYet { .. }) => {
                faults.push(format!("the certificate in {place} is not valid yet, by this machine's clock"));
            }
            Err(CertificateError::CaUsedAsEndEntity) => faults.push(format!(
                "the certificate in {place} is that of an authority (CA:TRUE), and a server needs one of its own"
            )),
            Err(CertificateError::RequiredEkuNotFoundContext(_)) => {
                faults.push(format!("the extendedKeyUsage of the certificate in {place} has no serverAuth"));
            }
            Ok(_) | Err(_) => {}
        }
        let parsed = ParsedCertificate::try_from(own).map_err(|error| malformed(error.to_string()))?;
        for host in hosts {
            let Ok(name) = ServerName::try_from(host.as_str()) else { continue };
            if rustls::client::verify_server_name(&parsed, &name).is_err() {
                faults.push(format!(
                    "the certificate in {place} is for another name than {}: add it as subjectAltName",
                    bracketed(host)
                ));
            }
        }
        Ok(faults)
    }
}

/// Presents one certificate to everybody.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::time::Duration;

    const HOUR: u64 = 3_600;

    fn write(dir: &Path, params: CertificateParams) -> (TlsFiles, KeyPair) {
        let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        let key = KeyPair::generate().unwrap();
        std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        (files, key)
    }

    fn params() -> CertificateParams {
        CertificateParams::new(["mq.example.org".to_owned(), "192.0.2.1".to_owned()]).unwrap()
    }

    #[test]
    fn what_clients_would_refuse_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(500_000 * HOUR));
        let faults = |params, hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            write(dir.path(), params).0.faults(&hosts, now).unwrap().join("; ")
        };
        assert_eq!(faults(params(), &["mq.example.org", "192.0.2.1"]), "");
        let other = faults(params(), &["mq2.example.org", "2001:db8::1"]);
        assert!(other.contains("than mq2.example.org") && other.contains("than [2001:db8::1]"), "{other}");
        let mut old = params();
        old.not_after = date_time_ymd(2020, 1, 1);
        assert!(faults(old, &[]).contains("has expired"));
        let mut early = params();
        early.not_before = date_time_ymd(2090, 1, 1);
        assert!(faults(early, &[]).contains("not valid yet"));
        let mut authority = params();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert!(faults(authority, &[]).contains("CA:TRUE"));
        let mut client = params();
        client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        assert!(faults(client, &[]).contains("serverAuth"));
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (files, key) = write(dir.path(), params());
        files.server_config().unwrap();
        let refused = |file: &Path, content: &[u8], word: &str| {
            let before = std::fs::read(file).unwrap();
            std::fs::write(file, content).unwrap();
            let error = files.server_config().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(file.to_str().unwrap()), "{error}");
            std::fs::write(file, before).unwrap();
        };
        let other = KeyPair::generate().unwrap();
        refused(&files.key, other.serialize_pem().as_bytes(), "is not that of the certificate");
        refused(&files.key, b"", "has no private key");
        refused(
            &files.key,
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "password",
        );
        refused(&files.key, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be used");
        refused(&files.cert, b"no certificate", "has no certificate");
        refused(&files.cert, key.serialize_pem().as_bytes(), "has no certificate");
        refused(&files.cert, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used");
        std::fs::remove_file(&files.key).unwrap();
        assert!(matches!(files.load(), Err(TlsError::Unreadable { path, .. }) if path == files.key));
    }
}
