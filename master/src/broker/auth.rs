//! The HTTP server that RabbitMQ asks who may connect, and who may use which queue and routing key.
//!
//! The core decides whether a password is right, through [`Admission`]. [`rules`] decides everything else, and denies
//! requests that it does not know. The broker caches the answers, so the master checks again at hello what must take
//! effect at once.

mod askers;
mod form;
mod pauses;
pub mod rules;

pub use askers::Askers;

use super::limits::{ADMISSION_TIMEOUT, AUTH_BODY, AUTH_CONNECTIONS};
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use crate::core::Admitted;
use crate::http_server::{self, Client, Ends};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use form::Form;
use pauses::Pauses;
use rouse_shared::WorkerName;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::warn;

/// Asks whether a worker may connect with a password.
pub struct Admission {
    /// The worker's name.
    pub worker: WorkerName,
    /// The password, which may be the worker's own, a boot token or a session's secret.
    pub password: String,
    /// As whom, or why not, for the master's log only. If it is dropped, the broker gets an error, which it does not
    /// cache.
    pub reply: oneshot::Sender<Result<Admitted, String>>,
}

/// Without the password.
impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The running server. Dropping it ends the server.
pub struct AuthServer {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Another program has the address.
    #[error("{0} is already in use; stop what uses it or change broker.auth_listen")]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}, which broker.auth_listen names")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The kernel does not say where it listens.
    #[error("cannot find out where the server for the broker listens")]
    NoAddress(#[source] std::io::Error),
}

struct Shared {
    askers: Askers,
    vhost: String,
    answers: Answers,
}

/// What the answers depend on, and who hears of them.
struct Answers {
    admissions: mpsc::Sender<Admission>,
    refusals: Refusals,
    conduct: RateLimiter,
    pauses: Pauses,
}

type Answer = (StatusCode, &'static str);

/// Whom the log names if it is not a worker that is refused.
const OWN_ADDRESS: &str = "broker.auth_listen";

const ALLOW: Answer = (StatusCode::OK, "allow");
const DENY: Answer = (StatusCode::OK, "deny");
/// For whoever is not the broker, or does not know the secret.
const NOT_THE_BROKER: Answer = (StatusCode::FORBIDDEN, "only the broker may ask");
/// The broker does not cache an error as it would cache a denial. The agent tries again.
const ASK_AGAIN: Answer = (StatusCode::SERVICE_UNAVAILABLE, "the master is busy or ending");

impl AuthServer {
    /// Listens on an address (port 0: any).
    ///
    /// # Errors
    /// If the master cannot listen on it.
    pub async fn listen(address: SocketAddr) -> Result<TcpListener, AuthError> {
        TcpListener::bind(address).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => AuthError::AddressInUse(address),
            _ => AuthError::Listen { address, source },
        })
    }

    /// Answers those who may ask, for the virtual host `vhost`.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn start(
        listener: TcpListener,
        askers: Askers,
        vhost: impl Into<String>,
        admissions: mpsc::Sender<Admission>,
        refusals: Refusals,
        conduct: RateLimiter,
    ) -> Result<Self, AuthError> {
        Self::start_with(listener, askers, vhost, Answers { admissions, refusals, conduct, pauses: Pauses::default() })
    }

    fn start_with(
        listener: TcpListener,
        askers: Askers,
        vhost: impl Into<String>,
        answers: Answers,
    ) -> Result<Self, AuthError> {
        let address = listener.local_addr().map_err(AuthError::NoAddress)?;
        let refusals = answers.refusals.clone();
        let shared = Arc::new(Shared { askers: askers.clone(), vhost: vhost.into(), answers });
        let router = Router::new()
            .route(&askers.path("user"), post(user))
            .route(&askers.path("vhost"), post(vhost_access))
            .route(&askers.path("resource"), post(resource))
            .route(&askers.path("topic"), post(topic))
            .fallback(other_path)
            .layer(DefaultBodyLimit::max(AUTH_BODY))
            .layer(middleware::from_fn_with_state(Arc::clone(&shared), check_asker))
            .with_state(shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Held as long as the server runs.
            let (_open, closing) = watch::channel(false);
            http_server::serve(listener, router, http_server::Limits::of(AUTH_CONNECTIONS), None, closing).await;
        });
        tasks.spawn(refusals.keep_minutes());
        Ok(Self { address, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Answers only connections of the broker, and keeps those if there are too many.
async fn check_asker(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let ends = request.extensions().get::<Ends>();
    match ends.and_then(|ends| shared.askers.stranger(ends.theirs, ends.ours)) {
        None => {
            let client = request.extensions().get::<Client>().cloned();
            let answer = next.run(request).await;
            // Who knows the path: there may be a secret in it.
            if let Some(client) = client.filter(|_| answer.status() != StatusCode::FORBIDDEN) {
                client.entitle();
            }
            answer
        }
        Some(who) => {
            shared.answers.refusals.refused(
                OWN_ADDRESS,
                &format!("{who} has asked who may connect, which only the broker may; see broker.auth_secret"),
            );
            turned_away()
        }
    }
}

/// Ends the connection too: whoever is turned away must not keep those of the broker.
fn turned_away() -> Response {
    let (status, text) = NOT_THE_BROKER;
    (status, [(header::CONNECTION, "close")], text).into_response()
}

/// Also what a broker of the operator's own asks if it does not know the secret.
async fn other_path(State(shared): State<Arc<Shared>>) -> Response {
    shared.answers.refusals.refused(
        OWN_ADDRESS,
        "somebody has asked there without the secret in the path (auth_http in rabbitmq.conf, broker.auth_secret)",
    );
    turned_away()
}

async fn user(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let form = Form::parse(&body);
    let name = form.text("username");
    let (Ok(worker), Some(password)) = (name.parse::<WorkerName>(), form.get("password")) else {
        shared.answers.refusals.refused(name, "not the name of a worker, or no password");
        return DENY;
    };
    if shared.answers.conduct.is_blocked(name) {
        return DENY;
    }
    let (reply, answer) = oneshot::channel();
    let admission = Admission { worker, password: password.to_owned(), reply };
    let asked = async {
        shared.answers.admissions.send(admission).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ADMISSION_TIMEOUT, asked).await {
        // Nobody else has the secret.
        Ok(Some(Ok(Admitted::Agent))) => ALLOW,
        Ok(Some(Ok(Admitted::Anybody))) if shared.answers.conduct.strangers_blocked(name) => DENY,
        Ok(Some(Ok(Admitted::Anybody))) => ALLOW,
        Ok(Some(Err(reason))) => {
            shared.answers.refusals.refused(name, &reason);
            shared.answers.pauses.wrong(name).await;
            DENY
        }
        Ok(None) => ASK_AGAIN,
        Err(_elapsed) => {
            warn!(
                user = name,
                "the master did not decide in time whether this worker may connect; the agent will retry"
            );
            ASK_AGAIN
        }
    }
}

async fn vhost_access(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let form = Form::parse(&body);
    let address = form.text("ip").to_owned();
    settle(&shared, &form, Some(&address), rules::vhost(form.text("username"), form.text("vhost"), &shared.vhost))
}

async fn resource(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let form = Form::parse(&body);
    let rule = rules::vhost(form.text("username"), form.text("vhost"), &shared.vhost).and_then(|()| {
        rules::resource(form.text("username"), form.text("resource"), form.text("name"), form.text("permission"))
    });
    // The broker asks once for each new name, and does not ask whether there are too many.
    let declares = rule.is_ok() && form.text("permission") == "configure";
    if declares && form.text("username").parse().is_ok_and(|worker| !shared.answers.conduct.declares(&worker)) {
        return DENY;
    }
    settle(&shared, &form, None, rule)
}

async fn topic(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let form = Form::parse(&body);
    let rule = rules::vhost(form.text("username"), form.text("vhost"), &shared.vhost).and_then(|()| {
        rules::topic(form.text("username"), form.text("name"), form.text("permission"), form.text("routing_key"))
    });
    settle(&shared, &form, None, rule)
}

fn settle(shared: &Shared, form: &Form, address: Option<&str>, rule: Result<(), rules::DeniedError>) -> Answer {
    match rule {
        // Once the broker has forgotten its earlier answers, after 30 s, a blocked agent can open nothing new.
        Ok(()) if shared.answers.conduct.is_blocked(form.text("username")) => DENY,
        Ok(()) => ALLOW,
        Err(denied) => {
            let reason = match address {
                Some(address) => format!("{denied} (from {address})"),
                None => denied.to_string(),
            };
            shared.answers.refusals.refused(form.text("username"), &reason);
            DENY
        }
    }
}

#[cfg(test)]
mod tests;
