//! TLS to PostgreSQL, as `sslmode` has it.

use crate::config::{PostgresUrl, SslMode};
use crate::store::StoreError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Makes the connections to a database secure. Its files are read anew each time.
///
/// # Errors
/// If `sslrootcert` cannot be used.
pub(super) fn connector(url: &PostgresUrl) -> Result<MakeRustlsConnect, StoreError> {
    let provider = Arc::new(ring::default_provider());
    let broken = |error: Error| StoreError::Postgres(format!("TLS to PostgreSQL cannot be set up: {error}"));
    let trust = match url.ssl_mode {
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Trust::Any,
        mode @ (SslMode::VerifyCa | SslMode::VerifyFull) => {
            let roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(url)?), provider.clone()).build();
            let roots = roots.map_err(|error| StoreError::Postgres(format!("no certificate authority: {error}")))?;
            if mode == SslMode::VerifyCa { Trust::Authority(roots) } else { Trust::Full(roots) }
        }
    };
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(broken)?.dangerous();
    let verifier = Arc::new(Verifier { trust, provider });
    Ok(MakeRustlsConnect::new(config.with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

fn roots(url: &PostgresUrl) -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    match &url.root_cert {
        Some(file) => {
            let unusable = |why: String| StoreError::Postgres(format!("sslrootcert {}: {why}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))? {
                let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
                roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(unusable("has no certificate in the format PEM".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

#[derive(Debug)]
enum Trust {
    /// Whoever answers: the connection is only hidden from those who listen.
    Any,
    /// Whoever has a certificate of the authority's, for any name.
    Authority(Arc<WebPkiServerVerifier>),
    /// Whoever has a certificate of the authority's for the name.
    Full(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Any => Ok(ServerCertVerified::assertion()),
            Trust::Full(roots) => roots.verify_server_cert(own, others, server, ocsp, now),
            // The name is compared last, when everything else is right.
            Trust::Authority(roots) => match roots.verify_server_cert(own, others, server, ocsp, now) {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                result => result,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
