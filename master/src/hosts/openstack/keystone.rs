//! Keystone: logs in to an account, and gets a token and the catalogue.

use super::account::{Account, Login, Named};
use super::cloud::{Service, content, silence};
use super::error::{CloudError, words};
use crate::clock;
use crate::hosts::clock_skew;
use reqwest::header::DATE;
use reqwest::{StatusCode, Url};
use rouse_shared::Timestamp;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// How long before its end a token is renewed, at most. A call that starts with it must be able to end in time.
const BEFORE_END: Duration = Duration::from_secs(120);
/// How long a token is used that has no expiry time.
const WITHOUT_EXPIRY: Duration = Duration::from_secs(900);

/// A token and what came with it.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) token: String,
    /// When to ask for another.
    pub(super) renew_at: Timestamp,
    /// The id of the project that it is for.
    project: String,
    catalogue: Value,
}

impl Session {
    /// The place of its servers: project and region. The same for all accounts and addresses of Keystone that lead
    /// there.
    pub(super) fn place(&self, account: &Account) -> Result<String, CloudError> {
        let (_, region) = self.located(Service::Compute, account)?;
        Ok(format!("{} {region}", self.project))
    }

    /// Where a service's API is.
    pub(super) fn endpoint(&self, service: Service, account: &Account) -> Result<String, CloudError> {
        Ok(service.base(&self.located(service, account)?.0))
    }

    /// The address of a service in the catalogue, and its region.
    fn located(&self, service: Service, account: &Account) -> Result<(String, String), CloudError> {
        let interface = account.interface.as_str();
        let unfit = |what: String| {
            CloudError::Misconfigured(format!("cannot use {} of the cloud's catalogue: {what}", service.name()))
        };
        let of_type = |kind: &&str| {
            let all = self.catalogue.as_array().map(Vec::as_slice).unwrap_or_default();
            let services = all.iter().filter(move |s| s["type"] == **kind);
            let endpoints = services.flat_map(|s| s["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default());
            let found: Vec<&Value> = endpoints.filter(|e| e["interface"] == interface).collect();
            (!found.is_empty()).then_some(found)
        };
        let Some(offered) = service.types().iter().find_map(of_type) else {
            return Err(unfit(format!("it has no {interface} endpoint")));
        };
        let region = |endpoint: &Value| {
            let region = endpoint["region_id"].as_str().or_else(|| endpoint["region"].as_str());
            region.unwrap_or_default().to_owned()
        };
        let mut regions: Vec<String> = offered.iter().map(|e| region(e)).collect();
        regions.sort();
        regions.dedup();
        let wanted = match &account.region {
            Some(wanted) => wanted.clone(),
            None if regions.len() == 1 => regions.first().cloned().unwrap_or_default(),
            None => return Err(unfit(format!("it is in the regions {}: set os_region_name", regions.join(", ")))),
        };
        let endpoint = offered.into_iter().find(|e| region(e) == wanted).and_then(|e| e["url"].as_str());
        let url = endpoint.ok_or_else(|| {
            unfit(format!("it is in no region {wanted:?} (os_region_name), but in {}", regions.join(", ")))
        })?;
        Ok((url.to_owned(), wanted))
    }
}

/// Requests a token.
pub(super) async fn login(http: &reqwest::Client, account: &Account) -> Result<Session, CloudError> {
    let base = find_v3(http, &account.auth_url).await?;
    let asked = clock::now();
    let request = http.post(format!("{base}/auth/tokens")).json(&request(&account.login));
    let response = request.send().await.map_err(|error| not_asked(&error))?;
    let status = response.status();
    let token = response.headers().get("X-Subject-Token").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let bytes = content(response).await.map_err(|why| unreadable(&why))?;
    if status != StatusCode::CREATED {
        let message = words(&bytes).unwrap_or_else(|| status.to_string());
        let text = format!("cannot log in to Keystone at {base}: it answered {}: {message}", status.as_u16());
        return Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                CloudError::Auth(text + &clock_skew::remark(date.as_deref()))
            }
            // A login leaves nothing behind, so a failed one can be repeated. An answer that is not JSON is a proxy's.
            status if is_passing(status) || serde_json::from_slice::<Value>(&bytes).is_err() => {
                CloudError::Unreachable(text)
            }
            _ => CloudError::Misconfigured(text),
        });
    }
    let unfit = |what: &str| {
        CloudError::Misconfigured(format!("cannot log in to Keystone at {base}: the answer has no {what}"))
    };
    let mut body: Value =
        serde_json::from_slice(&bytes).map_err(|_| CloudError::Unreachable(unfit("JSON").to_string()))?;
    let mut json = body["token"].take();
    let time = |key: &str| json[key].as_str().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
    let life = lifetime(time("issued_at"), time("expires_at"));
    let Some(project) = json["project"]["id"].as_str().map(str::to_owned) else {
        let why = "the user has no default project; set os_tenant_name";
        return Err(CloudError::Misconfigured(why.to_owned()));
    };
    Ok(Session {
        token: token.ok_or_else(|| unfit("token"))?,
        // By the local clock: the cloud's may differ.
        renew_at: asked + life.saturating_sub(BEFORE_END.min(life / 4)),
        project,
        catalogue: json["catalog"].take(),
    })
}

/// Whether the same request may succeed soon.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

fn lifetime(issued: Option<SystemTime>, expires: Option<SystemTime>) -> Duration {
    issued.zip(expires).and_then(|(from, to)| to.duration_since(from).ok()).unwrap_or(WITHOUT_EXPIRY)
}

/// A login leaves nothing behind, so it may be repeated whatever the error was.
fn not_asked(error: &reqwest::Error) -> CloudError {
    CloudError::Unreachable(silence("Keystone", error).to_string())
}

fn unreadable(why: &str) -> CloudError {
    CloudError::Unreachable(format!("cannot read what Keystone answers: {why}"))
}

fn named(what: &Named, domain: Option<&Named>) -> Value {
    match (what, domain) {
        (Named::Id(id), _) => json!({ "id": id }),
        (Named::Name(name), None) => json!({ "name": name }),
        (Named::Name(name), Some(domain)) => json!({ "name": name, "domain": named(domain, None) }),
    }
}

fn request(login: &Login) -> Value {
    match login {
        Login::Application { id, secret } => json!({ "auth": { "identity": {
            "methods": ["application_credential"],
            "application_credential": { "id": id, "secret": secret.expose() },
        } } }),
        Login::Password { user, user_domain, password, project, project_domain } => {
            let mut user = named(user, Some(user_domain));
            user["password"] = password.expose().into();
            let mut auth = json!({ "identity": { "methods": ["password"], "password": { "user": user } } });
            if let Some(project) = project {
                auth["scope"] = json!({ "project": named(project, Some(project_domain)) });
            }
            json!({ "auth": auth })
        }
    }
}

/// The address of version 3 of the API, from the address of any version or of the list of versions.
async fn find_v3(http: &reqwest::Client, auth_url: &str) -> Result<String, CloudError> {
    let unfit = |what: &str| CloudError::Misconfigured(format!("os_auth_url {auth_url} is not usable: {what}"));
    let url = Url::parse(auth_url).map_err(|error| unfit(&error.to_string()))?;
    let segments: Vec<&str> = url.path_segments().into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let above = match segments.last() {
        Some(&"v3") => return Ok(auth_url.to_owned()),
        Some(last) if last.starts_with("v2") => &segments[..segments.len() - 1],
        Some(_) | None => &segments[..],
    };
    let root = format!("{}/{}", url.origin().ascii_serialization(), above.join("/"));
    let root = root.trim_end_matches('/');
    let response = http.get(format!("{root}/")).header("Accept", "application/json").send().await;
    let response = response.map_err(|error| not_asked(&error))?;
    let status = response.status();
    let bytes = content(response).await.map_err(|why| unreadable(&why))?;
    let json: Option<Value> = serde_json::from_slice(&bytes).ok();
    let is_own = json.is_some() && !is_passing(status);
    let versions = versions(&json.unwrap_or_default());
    if versions.iter().any(|version| version.starts_with("v3")) {
        // The links in these lists often have a host name that cannot be reached.
        return Ok(format!("{root}/v3"));
    }
    if versions.is_empty() {
        // There is no list. Perhaps only the version itself can be reached.
        let direct = http.get(format!("{root}/v3")).header("Accept", "application/json").send().await;
        if direct.map_err(|error| not_asked(&error))?.status().is_success() {
            return Ok(format!("{root}/v3"));
        }
        let none = unfit("there is no Keystone");
        return Err(if is_own { none } else { CloudError::Unreachable(none.to_string()) });
    }
    Err(unfit(&format!("version 3 of the identity API is needed, and this Keystone offers {}", versions.join(", "))))
}

/// The versions in a list of versions, or in the description of one version.
fn versions(json: &Value) -> Vec<String> {
    let lists = [&json["versions"]["values"], &json["versions"]];
    let many = lists.into_iter().filter_map(Value::as_array).flatten();
    let ids = many.chain([&json["version"]]).filter_map(|version| version["id"].as_str());
    ids.map(str::to_owned).collect()
}

#[cfg(test)]
#[path = "keystone_tests.rs"]
mod tests;
