//! A client of one cloud: a token that is renewed in time, the catalogue, and calls that respect the cloud's rate
//! limits.

use super::account::Account;
use super::error::{Answer, CloudError};
use super::keystone::{self, Session};
use crate::clock;
use crate::proxy::Proxies;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use rouse_shared::certificate;
use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::Mutex;

/// Time limit for a connection. A cloud that does not even answer a SYN is away.
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit for one complete answer. A call to a provider has [`crate::hosts::CALL_LIMIT`] and consists of several
/// requests.
const ANSWER: Duration = Duration::from_secs(25);
/// Largest number of tries of one request. It is only tried again if it changes nothing, or has certainly not been
/// carried out.
const TRIES: u32 = 4;
/// Longest time that one request waits because the cloud requests it. If it should wait longer, it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// First pause between tries if the cloud does not request one. Doubled with each try.
const PAUSE: Duration = Duration::from_millis(500);
/// Largest number of pages of one list. A page has at least a hundred items, so no project has that many.
const PAGES: usize = 1_000;
/// Largest answer, bytes. A page of Nova's list of servers has up to a thousand of some kilobytes. What answers may be a
/// proxy, or the cloud may be broken.
const LARGEST: usize = 32 << 20;
/// The version of Nova's API for which this is written (2017, Pike): networks are given or "auto" (2.37), and the owner
/// of an action can read its events (2.51).
pub(super) const COMPUTE_VERSION: &str = "2.53";

/// Which of the cloud's services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Nova.
    Compute,
    /// Glance.
    Image,
    /// Neutron.
    Network,
    /// Cinder.
    Volume,
}

impl Service {
    /// The types that it may have in the catalogue.
    pub(super) fn types(self) -> &'static [&'static str] {
        match self {
            Self::Compute => &["compute"],
            Self::Image => &["image"],
            Self::Network => &["network"],
            Self::Volume => &["block-storage", "volumev3"],
        }
    }

    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Compute => "Nova",
            Self::Image => "Glance",
            Self::Network => "Neutron",
            Self::Volume => "Cinder",
        }
    }

    /// The base of its API. Some catalogues include the version, some do not.
    pub(super) fn base(self, endpoint: &str) -> String {
        let endpoint = endpoint.trim_end_matches('/');
        let bare = |versions: &[&str]| versions.iter().find_map(|v| endpoint.strip_suffix(v)).unwrap_or(endpoint);
        match self {
            Self::Compute | Self::Volume => endpoint.to_owned(),
            Self::Image => format!("{}/v2", bare(&["/v2", "/v1"])),
            Self::Network => format!("{}/v2.0", bare(&["/v2.0"])),
        }
    }
}

/// How the end of a list is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// A page has no link to another.
    NoLink,
    /// No following page has anything new, whatever the links say. Nova assembles its list of servers from two sources.
    /// A server that is in both takes the place of another one, and a page that is short by one has no link.
    NothingNew,
}

/// What was read of a list.
pub(super) struct Pages {
    pub(super) items: Vec<Value>,
    /// Number of pages, without those at the end that had nothing new.
    pub(super) count: usize,
    /// Why the list could not be read to its end.
    pub(super) broken: Option<CloudError>,
}

/// One account of one cloud, with a token.
pub struct Cloud {
    /// The account that it logs in with.
    pub account: Account,
    http: reqwest::Client,
    session: Mutex<Option<Session>>,
    place: OnceLock<String>,
}

impl Cloud {
    /// A client, which has sent no request yet.
    ///
    /// # Errors
    /// If the certificate file cannot be used.
    pub fn new(account: Account) -> Result<Self, String> {
        // Another part of the program may have installed a provider already, which is as good.
        if rustls::crypto::CryptoProvider::get_default().is_none()
            && rustls::crypto::ring::default_provider().install_default().is_err()
        {
            tracing::debug!("another thread has installed a TLS provider");
        }
        let url = Url::parse(&account.auth_url)
            .map_err(|e| format!("os_auth_url {:?} is not usable: {e}", account.auth_url))?;
        let builder = || {
            let http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER).tcp_nodelay(true);
            // A token is for the host that it was asked of, not for where an answer points.
            Proxies::from_env().apply(http.redirect(reqwest::redirect::Policy::none()))
        };
        let mut http = builder();
        if let Some(path) = &account.ca {
            let shown = path.display();
            let pem = std::fs::read(path).map_err(|e| format!("cannot read os_cacert {shown}: {e}"))?;
            let all = reqwest::Certificate::from_pem_bundle(&pem).ok().filter(|all| !all.is_empty());
            let all = all.ok_or_else(|| format!("os_cacert {shown} has no certificate in PEM form"))?;
            http = http.tls_certs_merge(all);
        }
        let http = match http.build() {
            // A machine without certificate authorities must do if Keystone needs none. The catalogue may name services
            // that do: then their certificates are refused.
            Err(_) if account.ca.is_none() && url.scheme() == "http" => builder().tls_certs_only([]).build(),
            made => made,
        };
        let http = http.map_err(|e| format!("cannot set up HTTP: {}", chain(&e)))?;
        Ok(Self { account, http, session: Mutex::new(None), place: OnceLock::new() })
    }

    /// The project and the region, which are stored in each launch spec. Requested once.
    ///
    /// # Errors
    /// If the login fails.
    pub async fn place(&self) -> Result<String, CloudError> {
        if let Some(known) = self.known_place() {
            return Ok(known.to_owned());
        }
        let place = self.session(None).await?.place(&self.account)?;
        Ok(self.place.get_or_init(|| place).clone())
    }

    /// The same, if there has been a login.
    pub fn known_place(&self) -> Option<&str> {
        self.place.get().map(String::as_str)
    }

    /// Whether the catalogue has a service for this account.
    ///
    /// # Errors
    /// If the login fails.
    pub async fn offers(&self, service: Service) -> Result<bool, CloudError> {
        Ok(self.session(None).await?.endpoint(service, &self.account).is_ok())
    }

    /// Gets `path` below the service's base.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn get(&self, service: Service, path: &str) -> Result<Value, CloudError> {
        let response = self.send(Method::GET, service, path, None).await?;
        body(response).await
    }

    /// Posts a request.
    ///
    /// # Errors
    /// If there is no good answer. [`CloudError::leaves_doubt`] is whether it may have been carried out nevertheless.
    pub async fn post(&self, service: Service, path: &str, what: &Value) -> Result<Value, CloudError> {
        let response = self.send(Method::POST, service, path, Some(what)).await?;
        body(response).await
    }

    /// Changes what is there.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub async fn put(&self, service: Service, path: &str, what: &Value) -> Result<Value, CloudError> {
        let response = self.send(Method::PUT, service, path, Some(what)).await?;
        body(response).await
    }

    /// Deletes something. `false` if it does not exist.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn delete(&self, service: Service, path: &str) -> Result<bool, CloudError> {
        match self.send(Method::DELETE, service, path, None).await {
            Ok(_) => Ok(true),
            Err(problem) if problem.is_missing() => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// All pages of a list: the items under `key`.
    ///
    /// # Errors
    /// If any page has no good answer. A list is complete or an error.
    pub async fn list(&self, service: Service, path: &str, key: &str) -> Result<Vec<Value>, CloudError> {
        match self.read(service, path, key, End::NoLink).await? {
            Pages { items, broken: None, .. } => Ok(items),
            Pages { broken: Some(why), .. } => Err(why),
        }
    }

    /// Reads a list once, page by page. Each page begins after an item that may have moved or gone since.
    ///
    /// # Errors
    /// If a page has no good answer.
    pub(super) async fn read(&self, service: Service, path: &str, key: &str, end: End) -> Result<Pages, CloudError> {
        let (place, asked) = path.split_once('?').unwrap_or((path, ""));
        let mut query = asked.to_owned();
        let unfit = |what: &str| CloudError::Misconfigured(format!("cannot list {key} of {}: {what}", service.name()));
        let (mut seen, mut known) = (BTreeSet::new(), BTreeSet::new());
        let mut promised = true;
        let mut pages = Pages { items: Vec::new(), count: 0, broken: None };
        for _ in 0..PAGES {
            let path = if query.is_empty() { place.to_owned() } else { format!("{place}?{query}") };
            let mut page = match self.get(service, &path).await {
                Err(gone @ CloudError::Refused { status: 400 | 404, .. }) if pages.count > 0 => {
                    return Ok(Pages { broken: Some(gone), ..pages });
                }
                other => other?,
            };
            let items = match page[key].take() {
                Value::Array(items) => items,
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                    return Err(unfit("the answer has no list"));
                }
            };
            let ids: Vec<String> = items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect();
            let last = ids.last().cloned();
            let before = known.len();
            known.extend(ids);
            let is_new = known.len() > before;
            pages.count += usize::from(promised || is_new);
            pages.items.extend(items);
            let next = next_page(&page, key);
            promised = next.is_some();
            query = match (next, last) {
                (Some(next), _) => {
                    // Only the query of the link is used, because proxies often change the rest of it.
                    let Some((_, next)) = next.split_once('?') else { return Err(unfit("the next page has no place")) };
                    next.to_owned()
                }
                (None, Some(last)) if end == End::NothingNew && is_new => {
                    let and = if asked.is_empty() { "" } else { "&" };
                    format!("{asked}{and}marker={last}")
                }
                (None, _) => return Ok(pages),
            };
            if !seen.insert(query.clone()) {
                return Ok(Pages { broken: Some(unfit("the pages go round in a circle")), ..pages });
            }
        }
        Err(unfit("there are too many pages"))
    }

    /// The present session, unless it ends soon or is the one that was refused. Otherwise a new one.
    async fn session(&self, refused: Option<&str>) -> Result<Session, CloudError> {
        let mut slot = self.session.lock().await;
        if let Some(session) = &*slot
            && refused != Some(session.token.as_str())
            && clock::now() < session.renew_at
        {
            return Ok(session.clone());
        }
        *slot = None;
        let session = keystone::login(&self.http, &self.account).await?;
        *slot = Some(session.clone());
        Ok(session)
    }

    async fn send(
        &self,
        method: Method,
        service: Service,
        path: &str,
        what: Option<&Value>,
    ) -> Result<Response, CloudError> {
        let mut session = self.session(None).await?;
        let changes_nothing = method == Method::GET;
        let mut renewed = false;
        let mut waited = Duration::ZERO;
        let mut pause = PAUSE;
        for tried in 1.. {
            let base = session.endpoint(service, &self.account)?;
            let mut request = self.http.request(method.clone(), format!("{base}{path}"));
            request = request.header("X-Auth-Token", &session.token).header("Accept", "application/json");
            if service == Service::Compute {
                request = request.header("OpenStack-API-Version", format!("compute {COMPUTE_VERSION}"));
            }
            if let Some(what) = what {
                request = request.json(what);
            }
            let last = tried >= TRIES;
            let (problem, asked) = match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !renewed => {
                    // A refused request was not carried out. The token was revoked or ended early.
                    renewed = true;
                    session = self.session(Some(&session.token)).await?;
                    continue;
                }
                Ok(response) => {
                    let asked = retry_after(response.headers());
                    (refusal(service, response).await, asked)
                }
                Err(error) => (silence(service.name(), &error), None),
            };
            let again = match &problem {
                // Both answers to a rate limit come before anything is done.
                CloudError::Refused { status: 429, .. } => true,
                CloudError::Refused { status: 413, .. } => asked.is_some(),
                CloudError::Refused { status: 500 | 502..=504, .. } | CloudError::Lost(_) => changes_nothing,
                CloudError::Unreachable(_) => changes_nothing && tried == 1,
                CloudError::Refused { .. }
                | CloudError::Auth(_)
                | CloudError::NotReady(_)
                | CloudError::Misconfigured(_) => false,
            };
            let wait = asked.unwrap_or(pause);
            if last || !again || waited.saturating_add(wait) > PATIENCE {
                return Err(problem);
            }
            tokio::time::sleep(wait).await;
            waited += wait;
            pause *= 2;
        }
        Err(CloudError::Misconfigured("too many tries".to_owned()))
    }
}

/// The link to the next page. Nova, Neutron and Cinder have links beside the list, Glance has one of its own.
fn next_page(page: &Value, key: &str) -> Option<String> {
    let links = page[format!("{key}_links")].as_array();
    let link = links.and_then(|links| links.iter().find(|link| link["rel"] == "next"));
    link.map(|link| &link["href"]).or_else(|| page.get("next")).and_then(Value::as_str).map(str::to_owned)
}

/// How long the cloud asks us to wait: a number of seconds, or a date, which is compared with the cloud's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now = headers.get(DATE).and_then(|value| value.to_str().ok()).and_then(date);
    date(text)?.duration_since(now?).ok()
}

/// The whole content of an answer, or why it cannot be read.
pub(super) async fn content(mut response: Response) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| chain(&error))? {
        if content.len() + piece.len() > LARGEST {
            return Err(format!("the answer has more than {LARGEST} bytes"));
        }
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

async fn body(response: Response) -> Result<Value, CloudError> {
    let place = response.url().path().to_owned();
    let bytes = content(response).await.map_err(|why| CloudError::Lost(format!("cannot read {place}: {why}")))?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| CloudError::Lost(format!("cannot read {place}: {error}")))
}

/// The error in an answer.
async fn refusal(service: Service, response: Response) -> CloudError {
    let (status, path) = (response.status().as_u16(), response.url().path().to_owned());
    let asks_to_wait = response.headers().contains_key(RETRY_AFTER);
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = content(response).await.unwrap_or_default();
    CloudError::of_answer(&Answer { service, status, date: date.as_deref(), asks_to_wait, path: &path, body: &body })
}

/// The error if no answer came.
pub(super) fn silence(name: &str, error: &reqwest::Error) -> CloudError {
    let place = error.url().map_or_else(String::new, |url| format!(" at {}", url.origin().ascii_serialization()));
    let text = format!("cannot reach {name}{place}: {}", error.source().map_or_else(|| error.to_string(), chain));
    let host = error.url().and_then(|url| url.host_str()).unwrap_or(name);
    let text = certificate::with_explanation(text, error, host);
    if error.is_connect() { CloudError::Unreachable(text) } else { CloudError::Lost(text) }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "cloud_tests.rs"]
mod tests;
