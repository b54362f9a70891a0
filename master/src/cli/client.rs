//! The client of the HTTP API.

use super::error::CliError;
use super::server::{self, Server};
use super::token::{self, Token};
use crate::{api, tls};
use reqwest::{Method, Response, StatusCode};
use rouse_shared::certificate;
use rouse_shared::error::Chain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// If the master does not accept the connection within this time, it counts as away.
const CONNECT: Duration = Duration::from_secs(10);
/// If the master sends nothing for this long, it counts as away. Event streams have a comment every 15 seconds; a
/// followed log is requested again.
const SILENCE: Duration = Duration::from_secs(60);

/// The certificates in a PEM file.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, CliError> {
    let found = tls::certificates(path).map_err(|error| CliError::Usage(format!("--ca: {}", Chain(&error))))?;
    let found = found.iter().map(|certificate| reqwest::Certificate::from_der(certificate));
    found.collect::<Result<_, _>>().map_err(|error| CliError::Usage(format!("--ca {}: {error}", path.display())))
}

/// A client of one master.
pub(super) struct Client {
    http: reqwest::Client,
    /// What every URL begins with.
    base: String,
    server: Server,
    token: Option<Token>,
    /// Makes a client for another address, with the same certificates.
    ca: Option<PathBuf>,
}

/// The settings of each client. A master that stands by sends commands on to the active one. The token goes there only
/// if the active one is to get it, so that is not left to the library.
fn settings() -> reqwest::ClientBuilder {
    let redirects = reqwest::redirect::Policy::none();
    reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).tcp_nodelay(true).redirect(redirects)
}

impl Client {
    /// A client of the master at this address; without one, of the master on this machine.
    ///
    /// # Errors
    /// If the address, the certificates or the token are invalid.
    pub(super) async fn new(address: Option<&str>, ca: Option<&Path>) -> Result<Self, CliError> {
        let server = server::find(address).await?;
        // Another part of the program may have installed a provider already, which is as good.
        if rustls::crypto::CryptoProvider::get_default().is_none()
            && rustls::crypto::ring::default_provider().install_default().is_err()
        {
            tracing::debug!("another thread has installed a TLS provider");
        }
        let mut http = settings();
        let (base, token, encrypted) = match &server {
            Server::Socket(path) => {
                http = http.unix_socket(path.as_path());
                // Who may write to the socket needs no token.
                ("http://localhost".to_owned(), None, false)
            }
            Server::Url(text, url) => {
                if token::is_loopback(url) {
                    // A proxy in the environment would have another loopback.
                    http = http.no_proxy();
                }
                (text.clone(), token::find(url)?, url.scheme() != "http")
            }
        };
        if !encrypted {
            // No certificate authorities are needed.
            http = http.tls_certs_only([]);
        } else if let Some(path) = ca {
            http = http.tls_certs_only(authorities(path)?);
        }
        let http = http.build().map_err(|error| CliError::Usage(format!("cannot set up HTTP: {}", Chain(&error))))?;
        Ok(Self { http, base, server, token, ca: ca.map(Path::to_owned) })
    }

    /// Sends a request. If the master stands by, sends it to the active one.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, CliError> {
        let again = request.try_clone();
        let response = request.send().await.map_err(|error| self.unreachable_error(&error))?;
        let location = response.headers().get("location").and_then(|to| to.to_str().ok()).map(str::to_owned);
        match (response.status(), location, again) {
            (StatusCode::TEMPORARY_REDIRECT, Some(location), Some(again)) => self.send_to(&location, again).await,
            _ => Ok(response),
        }
    }

    async fn send_to(&self, location: &str, request: reqwest::RequestBuilder) -> Result<Response, CliError> {
        let wrong =
            |why: &dyn std::fmt::Display| CliError::Unreachable(format!("{} sent to {location}: {why}", self.server));
        let url = reqwest::Url::parse(location).map_err(|error| wrong(&error))?;
        let mut http = settings();
        if token::is_loopback(&url) {
            http = http.no_proxy();
        }
        if url.scheme() == "http" {
            http = http.tls_certs_only([]);
        } else if let Some(path) = &self.ca {
            http = http.tls_certs_only(authorities(path)?);
        }
        let http = http.build().map_err(|error| wrong(&Chain(&error)))?;
        let mut request = request.build().map_err(|error| wrong(&Chain(&error)))?;
        // Those who share a ledger share the token.
        let token = match &self.token {
            Some(token) => Some(token.text.clone()),
            None => token::of_fellow(&url)?.map(|token| token.text),
        };
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().map_err(|_| wrong(&"the token is not text"))?;
            request.headers_mut().insert("authorization", value);
        }
        *request.url_mut() = url;
        http.execute(request).await.map_err(|error| self.unreachable_error(&error))
    }

    /// Sends a GET request.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Sends a POST request.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.json(self.request(Method::POST, path)).await
    }

    /// Sends a POST request with a body.
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// Requests a log from `offset`. None if the log has nothing there yet.
    pub(super) async fn log(&self, path: &str, offset: u64) -> Result<Option<Response>, CliError> {
        let mut request = self.request(Method::GET, path);
        if offset > 0 {
            request = request.header("range", format!("bytes={offset}-"));
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
            StatusCode::OK if offset > 0 => Err(CliError::Refused(format!(
                "{} does not send a log from the middle: is it a rouse master?",
                self.server
            ))),
            _ => Ok(Some(self.checked(response).await?)),
        }
    }

    /// The stream of changes.
    pub(super) async fn events(&self) -> Result<Response, CliError> {
        let response = self.send(self.request(Method::GET, "/api/events")).await?;
        self.checked(response).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(&token.text),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, CliError> {
        let response = self.send(request).await?;
        let body = self.checked(response).await?.bytes().await.map_err(|error| self.unreachable_error(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::Refused(format!(
                "{} did not answer as a master of version {} does ({error}): is it a rouse master?",
                self.server,
                env!("CARGO_PKG_VERSION")
            ))
        })
    }

    /// The response, or its error.
    async fn checked(&self, response: Response) -> Result<Response, CliError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            return Err(CliError::Refused(self.unauthorized()));
        }
        let reason = match serde_json::from_slice(&body) {
            Ok(api::Error { error, field: Some(field) }) => format!("{field}: {error}"),
            Ok(api::Error { error, field: None }) => error,
            Err(_) => format!("{} answered {status}", self.server),
        };
        if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE {
            Err(CliError::Unreachable(reason))
        } else {
            Err(CliError::Refused(reason))
        }
    }

    /// The error if the token is wrong or missing.
    fn unauthorized(&self) -> String {
        match &self.token {
            Some(token) => format!("{} is not the token of the master at {}", token.source, self.server),
            None => {
                let why = token::why_not_the_default();
                format!(
                    "this needs the master's token: set ROUSE_TOKEN, or ROUSE_TOKEN_FILE to the path of its \
                     api-token{why}{}",
                    server::why_not_the_socket()
                )
            }
        }
    }

    /// The error if no answer came. If there was no connection at all, it says what to do.
    pub(super) fn unreachable_error(&self, error: &reqwest::Error) -> CliError {
        let cause =
            std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| Chain(cause).to_string());
        let host = error.url().and_then(|url| url.host_str()).unwrap_or_default();
        let cause = certificate::with_explanation(cause, error, host);
        let advice = if error.is_connect() {
            "; start it with `rouse master`, or name another address with --server or ROUSE_SERVER"
        } else {
            ""
        };
        CliError::Unreachable(format!("cannot reach the master at {}: {cause}{advice}", self.server))
    }
}
