//! A bucket of S3, or of a store that is compatible with it.

use super::StoreError;
use crate::aws::{self, Account};
use crate::clock;
use crate::config::BlobsConfig;
use crate::proxy::Proxies;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use object_store::aws::{AmazonS3Builder, AwsCredential, Checksum};
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, CredentialProvider, ObjectStore, RetryConfig};
use rouse_shared::Timestamp;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::Mutex;

/// Time limit of one request. A part of an upload has 5 MiB, and may go over a slow line.
const REQUEST: Duration = Duration::from_secs(120);
/// Time limit of a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a request is repeated at once. After that, the master makes a pause.
const RETRIES: usize = 2;
/// How long a request is repeated.
const RETRY_LIMIT: Duration = Duration::from_secs(15);
/// How long credentials are used before the chain is asked again.
const KEEP: Duration = Duration::from_secs(300);
/// They are not used so shortly before they expire.
const MARGIN: Duration = Duration::from_secs(120);

/// Opens the bucket. Nothing is asked of it yet, but the region may be asked of this machine's metadata service.
pub(super) async fn open(config: &BlobsConfig, bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // Another part of the program may have installed a provider already, which is as good.
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread has installed a TLS provider");
    }
    let http = aws::http();
    let (account, secret) = Account::of(config.credentials.as_ref(), config.profile.as_deref());
    let own_endpoint = config.endpoint_url.is_some();
    let region = account.region(config.region.as_deref(), own_endpoint, &http).await;
    let chain = account.credentials(secret.as_ref(), own_endpoint, &region, &http).await;
    let in_clear = config.endpoint_url.as_deref().is_some_and(|url| url.starts_with("http:"));
    let mut options = ClientOptions::new()
        .with_timeout(REQUEST)
        .with_connect_timeout(CONNECT)
        .with_allow_http(in_clear)
        .with_http1_only();
    let proxies = Proxies::from_env();
    if let Some(proxy) = if in_clear { proxies.http } else { proxies.https } {
        options = options.with_proxy_url(proxy).with_proxy_excludes(proxies.except);
    }
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.to_string())
        .with_credentials(Arc::new(Chain { chain, kept: Mutex::default() }))
        // S3 compares it with what it has received, and refuses what was damaged on its way.
        .with_checksum_algorithm(Checksum::SHA256)
        // Not every store has the call that deletes many.
        .with_disable_bulk_delete(true)
        .with_retry(retry)
        .with_client_options(options);
    if let Some(endpoint) = &config.endpoint_url {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    let store = builder.build().map_err(|error| StoreError(format!("{} cannot be used: {error}", config.url)))?;
    Ok(if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, Key::from(prefix))) })
}

/// Credentials from AWS's own chain, kept for a while: each request needs them.
#[derive(Debug)]
struct Chain {
    chain: SharedCredentialsProvider,
    kept: Mutex<Option<(Arc<AwsCredential>, Timestamp)>>,
}

#[async_trait::async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().await;
        let now = clock::now();
        if let Some((credential, until)) = &*kept
            && now < *until
        {
            return Ok(credential.clone());
        }
        let found = self.chain.provide_credentials().await.map_err(|error| object_store::Error::Unauthenticated {
            path: String::new(),
            source: format!("there are no credentials: {}", rouse_shared::error::Chain(&error)).into(),
        })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        let expires = found.expiry().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| Timestamp(0) + at);
        // By the wall clock of this machine, as AWS counts.
        let left = expires.map_or(KEEP, |at| at.since(clock::wall()).saturating_sub(MARGIN).min(KEEP));
        *kept = Some((credential.clone(), now + left));
        Ok(credential)
    }
}
