//! Clients of the EC2 API: one for each endpoint, region and account of the configuration, created at first use.

pub use crate::aws::{Account, Http, http};
use crate::config::hosts::ec2_place_name;
use crate::config::{Ec2Config, Secret};
use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The variable in which AWS's own tools look for another endpoint of EC2. Unlike `endpoint_url`, it changes nothing
/// else.
const ENDPOINT: &str = "AWS_ENDPOINT_URL_EC2";
/// Time limits of one exchange with AWS, and of a call with all its retries. Below [`crate::hosts::CALL_LIMIT`], so
/// that AWS's own error is reported first.
const EXCHANGE: Duration = Duration::from_secs(15);
const CALL: Duration = Duration::from_secs(40);
const CONNECT: Duration = Duration::from_secs(5);

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

/// The name of a place with this account.
fn place_name(account: &Account, endpoint: Option<&str>, region: Option<&str>) -> String {
    let (key, profile) = match account {
        Account::Key(id) => (Some(id.as_str()), None),
        Account::Profile(name) => (None, Some(name.as_str())),
        Account::Chain => (None, None),
    };
    ec2_place_name(endpoint, region, key, profile)
}

/// The place's name in a configuration whose section names the region.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&place_name(&self.account, self.endpoint.as_deref(), Some(&self.region)))
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
        let (account, secret) = Account::of(config.credentials.as_ref(), config.profile.as_deref());
        Self { endpoint: config.endpoint_url.clone(), region: config.region.clone(), account, secret }
    }

    /// The name of its place: [`Ec2Config::place`].
    pub fn name(&self) -> String {
        place_name(&self.account, self.endpoint.as_deref(), self.region.as_deref())
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
        let own = self.endpoint.is_some();
        let region = self.account.region(self.region.as_deref(), own, http).await;
        let credentials = self.account.credentials(self.secret.as_ref(), own, &region, http).await;
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
}
