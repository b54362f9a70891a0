//! The master's own certificate authority, which signs the certificate of the private broker and nothing else.
//!
//! The authority is made once, because agents have its certificate or its fingerprint. The broker's certificate is made
//! anew at every start of the master, from time to time, and if the clock of the machine was set, so that it is always
//! valid. RabbitMQ reads it again by itself. Connections that exist are not concerned.

use crate::files;
use crate::tls::{self, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rouse_shared::Timestamp;
use rouse_shared::error::Chain;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a certificate of the broker is valid.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long before it is made a certificate begins to be valid, for agents whose clock is slow.
const SLOW_CLOCKS: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a new certificate is made while the master runs: several times within the [`LIFETIME`], so that one that
/// cannot be written is only reported.
const RENEWAL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How much the clock may be set back without a new certificate.
const SET_BACK: Duration = Duration::from_secs(60 * 60);

/// The name of every such authority. Two of the same name are told apart by their keys.
const NAME: &str = "authority of a private broker of rouse";

/// Whether a certificate that was made at the time `made` is to be made again: it is due, or the clock was wrong then. A
/// machine without a clock of its own may start decades too early.
pub fn is_outdated(made: Timestamp, now: Timestamp) -> bool {
    now >= made + RENEWAL || made > now + SET_BACK
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file or directory cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The authority's certificate or key is gone or damaged.
    #[error(
        "the authority of the private broker is damaged: {why}; restore its files, or remove the directory {} and give \
         the fingerprint of the new authority to the standing agents",
        dir.display()
    )]
    Damaged {
        /// What is wrong.
        why: String,
        /// The directory.
        dir: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

/// An authority in a directory of its own.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// The authority in this directory. It is made if there is none.
    ///
    /// # Errors
    /// If the directory cannot be used, or has only a part of an authority.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let unusable = |source| AuthorityError::File { path: dir.to_owned(), source };
        files::make_dir(dir, 0o700).map_err(unusable)?;
        let authority = Self { dir: dir.to_owned() };
        // The key is written first, so that a certificate without its key is never what a crash has left.
        if !authority.certificate().exists() {
            let key = KeyPair::generate()?;
            let certificate = issuer_params().self_signed(&key)?;
            authority.write(&authority.key(), &key.serialize_pem())?;
            authority.write(&authority.certificate(), &certificate.pem())?;
        }
        let files = TlsFiles { cert: authority.certificate(), key: authority.key() };
        files.load().map_err(|why| AuthorityError::Damaged { why: Chain(&why).to_string(), dir: dir.to_owned() })?;
        Ok(authority)
    }

    /// The file with its certificate.
    pub fn certificate(&self) -> PathBuf {
        tls::authority_in(&self.dir)
    }

    /// The files of the broker's certificate, which [`Self::issue`] writes. It is one file, so that nobody ever reads a
    /// certificate and the key of another one.
    pub fn issued(&self) -> TlsFiles {
        let both = self.dir.join("broker.pem");
        TlsFiles { cert: both.clone(), key: both }
    }

    fn key(&self) -> PathBuf {
        self.dir.join("authority.key")
    }

    /// Makes a certificate of the broker, for these names and addresses, with a new key. Names that no certificate can
    /// have are left out.
    ///
    /// # Errors
    /// If the authority cannot be read, or the certificate cannot be made or written.
    pub fn issue(&self, hosts: &[String], now: Timestamp) -> Result<(), AuthorityError> {
        let read =
            |path: PathBuf| std::fs::read_to_string(&path).map_err(|source| AuthorityError::File { path, source });
        let authority = read(self.certificate())?;
        let issuer = Issuer::new(issuer_params(), KeyPair::from_pem(&read(self.key())?)?);
        let fits = |host: &&String| rustls::pki_types::ServerName::try_from(host.as_str()).is_ok();
        let mut params = CertificateParams::new(hosts.iter().filter(fits).cloned().collect::<Vec<_>>())?;
        params.distinguished_name = called("private broker of rouse");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let at = |time: Timestamp| date_time_ymd(1970, 1, 1) + time.since(Timestamp(0));
        params.not_before = at(now - SLOW_CLOCKS);
        params.not_after = at(now + LIFETIME);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        self.write(&self.issued().cert, &[certificate.pem(), authority, key.serialize_pem()].concat())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), AuthorityError> {
        files::replace(path, text.as_bytes()).map_err(|source| AuthorityError::File { path: path.to_owned(), source })
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// What an authority's certificate says, but for its key. It never expires, because every agent would need the next one.
fn issuer_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustls::pki_types::UnixTime;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn later(time: Duration) -> UnixTime {
        UnixTime::since_unix_epoch((NOW + time).since(Timestamp(0)))
    }

    #[test]
    fn it_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let authority = Authority::open(&dir).unwrap();
        let first = tls::fingerprints(&authority.certificate()).unwrap();
        authority.issue(&["localhost".to_owned()], NOW).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(tls::fingerprints(&Authority::open(&dir).unwrap().certificate()).unwrap(), first);
        // A crash before its certificate was written has left a key.
        fs::remove_file(authority.certificate()).unwrap();
        let again = Authority::open(&dir).unwrap();
        assert_ne!(tls::fingerprints(&again.certificate()).unwrap(), first);
        fs::remove_file(again.key()).unwrap();
        assert!(matches!(Authority::open(&dir), Err(AuthorityError::Damaged { .. })));
        fs::write(again.key(), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Authority::open(&dir).unwrap_err().to_string();
        assert!(error.contains("is not that of the certificate") && error.contains("remove the directory"), "{error}");
    }

    #[test]
    fn a_certificate_is_made_again_when_it_is_due_and_when_the_clock_was_wrong() {
        assert!(!is_outdated(NOW, NOW) && !is_outdated(NOW, NOW + RENEWAL / 2) && is_outdated(NOW, NOW + RENEWAL));
        assert!(is_outdated(Timestamp(0), NOW), "before the clock was set");
        assert!(!is_outdated(NOW + SET_BACK, NOW) && is_outdated(NOW + RENEWAL, NOW), "the clock was fast");
    }

    #[test]
    fn a_certificate_is_for_its_names_and_for_a_year() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let hosts = ["mq.example.org", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let odd = ["", "two words", "é", "[::1]"].map(str::to_owned);
        authority.issue(&[&hosts[..], &odd].concat(), NOW).unwrap();
        let issued = authority.issued();
        assert_eq!(issued.faults(&hosts, later(Duration::ZERO)).unwrap(), [""; 0]);
        assert_eq!(issued.faults(&hosts, later(RENEWAL * 2)).unwrap(), [""; 0]);
        assert_eq!(issued.faults(&hosts, later(LIFETIME * 2)).unwrap().len(), 1);
        assert_eq!(issued.faults(&["mq2.example.org".to_owned()], later(Duration::ZERO)).unwrap().len(), 1);
        let before = tls::fingerprints(&issued.cert).unwrap();
        authority.issue(&hosts, NOW).unwrap();
        let after = tls::fingerprints(&issued.cert).unwrap();
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1..], after[1..], "the authority is the same");
        assert_eq!(after[1..], tls::fingerprints(&authority.certificate()).unwrap());
    }
}
