//! The name of a store in the ledger.

use crate::config::{BlobsConfig, StoreUrl};

/// A store without its credentials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// Its address, as the configuration has or had it.
    pub url: String,
    /// The same, parsed.
    pub store: StoreUrl,
    /// The region that the configuration named.
    pub region: Option<String>,
    /// The endpoint that the configuration named.
    pub endpoint_url: Option<String>,
}

impl Location {
    /// The location of a configured store.
    pub fn of(config: &BlobsConfig) -> Self {
        Self {
            url: config.url.clone(),
            store: config.store.clone(),
            region: config.region.clone(),
            endpoint_url: config.endpoint_url.clone(),
        }
    }

    /// Reads what [`Location::to_text`] has written.
    ///
    /// # Errors
    /// If it is not the address of a store.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (url, query) = text.split_once('?').unwrap_or((text, ""));
        let find = |key: &str| {
            form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == key).map(|(_, value)| value.into_owned())
        };
        let store = StoreUrl::parse(url)?;
        Ok(Self { url: url.to_owned(), store, region: find("region"), endpoint_url: find("endpoint_url") })
    }

    /// Its name in the ledger: the address, with the region and the endpoint as its query.
    pub fn to_text(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (key, value) in [("region", &self.region), ("endpoint_url", &self.endpoint_url)] {
            if let Some(value) = value {
                query.append_pair(key, value);
            }
        }
        match query.finish() {
            query if query.is_empty() => self.url.clone(),
            query => format!("{}?{query}", self.url),
        }
    }
}

/// The address in a name of the ledger, as people see it.
pub fn address(location: &str) -> &str {
    location.split('?').next().unwrap_or(location)
}
