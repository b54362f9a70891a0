//! Clients of the EC2 API: one for each endpoint, region and account of the configuration, created at first use.

use crate::config::hosts::ec2_place_name;
use crate::config::{Ec2Config, Secret};
use crate::hosts::proxy::Proxies;
use aws_config::environment::credentials::EnvironmentVariableCredentialsProvider;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The variable in which AWS's own tools look for another endpoint of EC2. Unlike `endpoint_url`, it changes nothing
/// else.
const ENDPOINT: &str = "AWS_ENDPOINT_URL_EC2";
/// The region if nothing names one.
const FALLBACK_REGION: &str = "us-east-1";
/// Time limits of one exchange with AWS, and of a call with all its retries. Below [`crate::hosts::CALL_LIMIT`], so
/// that AWS's own error is reported first.
const EXCHANGE: Duration = Duration::from_secs(15);
const CALL: Duration = Duration::from_secs(40);
const CONNECT: Duration = Duration::from_secs(5);

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

/// Where hosts are created, and with which account. Each has its own client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Place {
    /// An EC2-compatible cloud; absent for AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Such as `us-west-2`.
    pub region: String,
    /// The account and its credentials.
    pub account: Account,
}

impl Account {
    /// The name of a place with this account.
    fn place_name(&self, endpoint: Option<&str>, region: Option<&str>) -> String {
        let (key, profile) = match self {
            Self::Key(id) => (Some(id.as_str()), None),
            Self::Profile(name) => (None, Some(name.as_str())),
            Self::Chain => (None, None),
        };
        ec2_place_name(endpoint, region, key, profile)
    }
}

/// The place's name in a configuration whose section names the region.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.account.place_name(self.endpoint.as_deref(), Some(&self.region)))
    }
}

/// A client for one place.
#[derive(Clone, Debug)]
pub struct Client {
    /// The region and endpoint that it talks to.
    pub place: Place,
    /// AWS's own client.
    pub ec2: aws_sdk_ec2::Client,
}

/// How to log in to the account of a section.
#[derive(Clone, PartialEq, Debug)]
pub struct Login {
    endpoint: Option<String>,
    region: Option<String>,
    account: Account,
    secret: Option<Secret>,
}

impl Login {
    /// Of a worker's section.
    pub fn of(config: &Ec2Config) -> Self {
        let (account, secret) = match (&config.credentials, &config.profile) {
            (Some((id, secret)), _) => (Account::Key(id.clone()), Some(secret.clone())),
            (None, Some(profile)) => (Account::Profile(profile.clone()), None),
            (None, None) => (Account::Chain, None),
        };
        Self { endpoint: config.endpoint_url.clone(), region: config.region.clone(), account, secret }
    }

    /// The name of its place: [`Ec2Config::place`].
    pub fn name(&self) -> String {
        self.account.place_name(self.endpoint.as_deref(), self.region.as_deref())
    }

    /// Whether `other` is the same login with another secret.
    pub fn is_replaced_by(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.region == other.region && self.account == other.account
    }

    /// The same login in the region of a place, if the place has the same account.
    pub fn elsewhere(&self, place: &Place) -> Option<Self> {
        let same = self.endpoint == place.endpoint && self.account == place.account;
        same.then(|| Self { region: Some(place.region.clone()), ..self.clone() })
    }

    /// A login for a place that is no longer in the configuration; none if its secret was in there.
    pub fn again(place: &Place) -> Option<Self> {
        match place.account {
            Account::Key(_) => None,
            Account::Profile(_) | Account::Chain => Some(Self {
                endpoint: place.endpoint.clone(),
                region: Some(place.region.clone()),
                account: place.account.clone(),
                secret: None,
            }),
        }
    }

    /// Makes the client. Asks the instance's metadata if neither the section nor the environment names a region; with
    /// an endpoint of the user's own nothing else is ever asked.
    pub async fn client(&self, http: &Http) -> Client {
        let moved = || std::env::var(ENDPOINT).ok().filter(|url| !url.is_empty());
        let endpoint = self.endpoint.clone().or_else(moved);
        let calls =
            if endpoint.as_deref().is_some_and(|url| url.starts_with("http:")) { &http.plain } else { &http.tls };
        let http = &http.tls;
        let region = self.find_region(http).await;
        let here = ProviderConfig::without_region().with_http_client(http.clone()).with_region(Some(region.clone()));
        let credentials = match (&self.account, &self.secret) {
            (Account::Key(id), secret) => {
                let secret = secret.as_ref().map_or("", Secret::expose);
                SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "rouse.toml"))
            }
            (Account::Profile(name), _) => SharedCredentialsProvider::new(
                ProfileFileCredentialsProvider::builder().configure(&here).profile_name(name).build(),
            ),
            (Account::Chain, _) if self.endpoint.is_some() => SharedCredentialsProvider::new(
                CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
                    .or_else("Profile", ProfileFileCredentialsProvider::builder().configure(&here).build()),
            ),
            (Account::Chain, _) => SharedCredentialsProvider::new(
                aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
                    .configure(here)
                    .region(region.clone())
                    .build()
                    .await,
            ),
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(EXCHANGE)
            .operation_timeout(CALL)
            .build();
        let mut config = aws_sdk_ec2::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .http_client(calls.clone())
            .region(region.clone())
            .credentials_provider(credentials)
            .retry_config(RetryConfig::standard())
            .timeout_config(timeouts);
        config.set_endpoint_url(endpoint);
        let place =
            Place { endpoint: self.endpoint.clone(), region: region.to_string(), account: self.account.clone() };
        Client { place, ec2: aws_sdk_ec2::Client::from_conf(config.build()) }
    }

    async fn find_region(&self, http: &SharedHttpClient) -> Region {
        if let Some(region) = &self.region {
            return Region::new(region.clone());
        }
        let here = ProviderConfig::without_region().with_http_client(http.clone());
        let mut profile = ProfileFileRegionProvider::builder().configure(&here);
        if let Account::Profile(name) = &self.account {
            profile = profile.profile_name(name);
        }
        let mut chain =
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
        if self.endpoint.is_none() {
            chain = chain.or_else(aws_config::imds::region::ImdsRegionProvider::builder().configure(&here).build());
        }
        chain.region().await.unwrap_or_else(|| Region::from_static(FALLBACK_REGION))
    }
}

/// Connections for all clients.
#[derive(Clone, Debug)]
pub struct Http {
    /// To where `https://` leads, and to this machine's own link.
    tls: SharedHttpClient,
    /// To where `http://` leads: AWS's client can be told one proxy.
    plain: SharedHttpClient,
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
