//! Which servers a fingerprint accepts. The certificates are made here, and both sides of each handshake are in memory.

use super::*;
use crate::certificate;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// All have the same name, as those of masters that were installed anew.
fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Authority { issuer: Issuer::new(params, key), certificate }
}

impl Authority {
    /// The certificate of a server, with its key.
    fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::new(["mq.example.org".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

/// Connects to a server that presents this chain; the error, with its explanation.
fn connect(pin: Fingerprint, name: &str, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<(), String> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let host = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client_config(vec![pin]).unwrap()), host).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        server.read_tls(&mut flight.as_slice()).unwrap();
        server.process_new_packets().map_err(|error| format!("the server: {error}"))?;
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() {
            client.read_tls(&mut flight).unwrap();
            let done = client.process_new_packets();
            done.map_err(|error| certificate::with_explanation(error.to_string(), &error, name))?;
        }
    }
    Ok(())
}

#[test]
fn what_the_authority_has_signed_for_the_name_is_accepted() {
    let ours = authority();
    let pin = Fingerprint::of(&ours.certificate);
    for name in ["mq.example.org", "192.0.2.1"] {
        let (certificate, key) = ours.server(|_| {});
        connect(pin, name, vec![certificate, ours.certificate.clone()], &key).unwrap();
    }
    // Also after it was renewed, and also if it is the server's own that is expected.
    let (certificate, key) = ours.server(|_| {});
    connect(Fingerprint::of(&certificate), "192.0.2.77", vec![certificate], &key).unwrap();
}

#[test]
fn everything_else_is_refused_with_its_reason() {
    let (ours, other) = (authority(), authority());
    let pin = Fingerprint::of(&ours.certificate);
    let (good, key) = ours.server(|_| {});
    let refused = |name, chain: &[&CertificateDer<'static>], key: &KeyPair, word: &str| {
        let chain = chain.iter().map(|certificate| (*certificate).clone()).collect();
        let why = connect(pin, name, chain, key).expect_err(word);
        assert!(why.contains(word), "{why}");
    };
    let (theirs, their_key) = other.server(|_| {});
    let seen = Fingerprint::of(&other.certificate).to_string();
    refused("mq.example.org", &[&theirs, &other.certificate], &their_key, &seen);
    refused("mq.example.org", &[&theirs, &other.certificate], &their_key, &pin.to_string());
    // One that shows the right authority, which has not signed its certificate.
    refused("mq.example.org", &[&theirs, &ours.certificate], &their_key, "another key");
    refused("mq.example.org", &[&good], &key, "fingerprint");
    refused("mq2.example.org", &[&good, &ours.certificate], &key, "not for mq2.example.org");
    let (old, old_key) = ours.server(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    refused("mq.example.org", &[&old, &ours.certificate], &old_key, "expired");
}

#[test]
fn a_fingerprint_is_written_as_it_is_read() {
    let text = Fingerprint::of(b"certificate").to_string();
    assert_eq!(text.parse(), Ok(Fingerprint::of(b"certificate")));
    let (_, digits) = text.split_once(':').unwrap();
    let pairs: Vec<_> = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
    let as_openssl = format!("sha256:{}", pairs.join(":").to_uppercase());
    assert_eq!(as_openssl.parse(), Ok(Fingerprint::of(b"certificate")));
    for bad in ["", "sha256:", &digits[..64], &text[..70], &format!("{text}0"), &text.replace('1', "é"), "md5:00"] {
        if bad != text {
            assert_eq!(bad.parse::<Fingerprint>(), Err(FingerprintError), "{bad}");
        }
    }
}
