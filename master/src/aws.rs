//! The credentials and the region of an account of AWS, from the configuration or from where AWS's own tools find them.
//! The same for EC2 and S3.

use crate::config::Secret;
use crate::proxy::Proxies;
use aws_config::Region;
use aws_config::environment::credentials::EnvironmentVariableCredentialsProvider;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use serde::{Deserialize, Serialize};

/// The region if nothing names one.
const FALLBACK_REGION: &str = "us-east-1";

/// The account, as the configuration identifies it. Contains no secret, because it is stored in the ledger.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Account {
    /// An access key of the configuration, by its id.
    Key(String),
    /// A profile of the credentials file.
    Profile(String),
    /// From the environment, the credentials file or the instance's role.
    Chain,
}

impl Account {
    /// The account of a section, and the secret of its key.
    pub fn of(credentials: Option<&(String, Secret)>, profile: Option<&str>) -> (Self, Option<Secret>) {
        match (credentials, profile) {
            (Some((id, secret)), _) => (Self::Key(id.clone()), Some(secret.clone())),
            (None, Some(profile)) => (Self::Profile(profile.to_owned()), None),
            (None, None) => (Self::Chain, None),
        }
    }

    /// Its credentials. With an endpoint of the user's own, nothing else is ever asked.
    pub async fn credentials(
        &self,
        secret: Option<&Secret>,
        own_endpoint: bool,
        region: &Region,
        http: &Http,
    ) -> SharedCredentialsProvider {
        let here =
            ProviderConfig::without_region().with_http_client(http.tls.clone()).with_region(Some(region.clone()));
        match self {
            Self::Key(id) => {
                let secret = secret.map_or("", Secret::expose);
                SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "rouse.toml"))
            }
            Self::Profile(name) => SharedCredentialsProvider::new(
                ProfileFileCredentialsProvider::builder().configure(&here).profile_name(name).build(),
            ),
            Self::Chain if own_endpoint => SharedCredentialsProvider::new(
                CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
                    .or_else("Profile", ProfileFileCredentialsProvider::builder().configure(&here).build()),
            ),
            Self::Chain => SharedCredentialsProvider::new(
                aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
                    .configure(here)
                    .region(region.clone())
                    .build()
                    .await,
            ),
        }
    }

    /// The region: the named one, or the one that is found where AWS's own tools look. Asks the instance's metadata if
    /// neither the section nor the environment names one, unless there is an endpoint of the user's own.
    pub async fn region(&self, named: Option<&str>, own_endpoint: bool, http: &Http) -> Region {
        if let Some(region) = named {
            return Region::new(region.to_owned());
        }
        let here = ProviderConfig::without_region().with_http_client(http.tls.clone());
        let mut profile = ProfileFileRegionProvider::builder().configure(&here);
        if let Self::Profile(name) = self {
            profile = profile.profile_name(name);
        }
        let mut chain =
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
        if !own_endpoint {
            chain = chain.or_else(aws_config::imds::region::ImdsRegionProvider::builder().configure(&here).build());
        }
        chain.region().await.unwrap_or_else(|| Region::from_static(FALLBACK_REGION))
    }
}

/// Connections of AWS's own clients.
#[derive(Clone, Debug)]
pub struct Http {
    /// To where `https://` leads, and to this machine's own link.
    pub tls: SharedHttpClient,
    /// To where `http://` leads: AWS's client can be told one proxy.
    #[cfg_attr(
        not(feature = "ec2"),
        expect(dead_code, reason = "S3 has its own client; only credentials are asked for")
    )]
    pub plain: SharedHttpClient,
}

/// One set of connections for all clients, through the proxies of the environment.
pub fn http() -> Http {
    let Proxies { http, https, except } = Proxies::from_env();
    // The addresses were looked at when they were read.
    let tls = https.and_then(|url| ProxyConfig::https(url).ok()).map(|proxy| proxy.no_proxy(&except));
    let plain = http.and_then(|url| ProxyConfig::http(url).ok()).map(|proxy| proxy.no_proxy(&except));
    Http { tls: connections(tls), plain: connections(plain) }
}

fn connections(proxy: Option<ProxyConfig>) -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let mut connector = Connector::builder().tls_provider(ring);
        connector.set_proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.build()
    })
}
