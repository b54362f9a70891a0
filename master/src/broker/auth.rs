//! The HTTP server that RabbitMQ asks who may connect, and who may use which queue and routing key.
//!
//! The core decides whether a password is right, through [`Admission`]. [`rules`] decides everything else, and denies
//! requests that it does not know. The broker caches the answers, so the master checks again at hello what must take
//! effect at once.

mod form;
pub mod rules;

use super::limits::{ADMISSION_TIMEOUT, AUTH_BODY, AUTH_CONNECTIONS};
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use crate::core::Admitted;
use crate::http_server;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use form::Form;
use rouse_shared::WorkerName;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
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
}

struct Shared {
    vhost: String,
    admissions: mpsc::Sender<Admission>,
    refusals: Refusals,
    conduct: RateLimiter,
}

type Answer = (StatusCode, &'static str);

const ALLOW: Answer = (StatusCode::OK, "allow");
const DENY: Answer = (StatusCode::OK, "deny");
/// The broker does not cache an error as it would cache a denial. The agent tries again.
const ASK_AGAIN: Answer = (StatusCode::SERVICE_UNAVAILABLE, "the master is busy or ending");

impl AuthServer {
    /// Listens on `listen` (port 0: any) and answers for the virtual host `vhost`.
    ///
    /// # Errors
    /// If the master cannot listen on the address.
    pub async fn start(
        listen: SocketAddr,
        vhost: impl Into<String>,
        admissions: mpsc::Sender<Admission>,
        refusals: Refusals,
        conduct: RateLimiter,
    ) -> Result<Self, AuthError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => AuthError::AddressInUse(listen),
            _ => AuthError::Listen { address: listen, source },
        };
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared { vhost: vhost.into(), admissions, refusals: refusals.clone(), conduct });
        let router = Router::new()
            .route("/auth/user", post(user))
            .route("/auth/vhost", post(vhost_access))
            .route("/auth/resource", post(resource))
            .route("/auth/topic", post(topic))
            .layer(DefaultBodyLimit::max(AUTH_BODY))
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

async fn user(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let form = Form::parse(&body);
    let name = form.text("username");
    let (Ok(worker), Some(password)) = (name.parse::<WorkerName>(), form.get("password")) else {
        shared.refusals.refused(name, "not the name of a worker, or no password");
        return DENY;
    };
    if shared.conduct.is_blocked(name) {
        return DENY;
    }
    let (reply, answer) = oneshot::channel();
    let admission = Admission { worker, password: password.to_owned(), reply };
    let asked = async {
        shared.admissions.send(admission).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ADMISSION_TIMEOUT, asked).await {
        // Nobody else has the secret.
        Ok(Some(Ok(Admitted::Agent))) => ALLOW,
        Ok(Some(Ok(Admitted::Anybody))) if shared.conduct.strangers_blocked(name) => DENY,
        Ok(Some(Ok(Admitted::Anybody))) => ALLOW,
        Ok(Some(Err(reason))) => {
            shared.refusals.refused(name, &reason);
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
        Ok(()) if shared.conduct.is_blocked(form.text("username")) => DENY,
        Ok(()) => ALLOW,
        Err(denied) => {
            let reason = match address {
                Some(address) => format!("{denied} (from {address})"),
                None => denied.to_string(),
            };
            shared.refusals.refused(form.text("username"), &reason);
            DENY
        }
    }
}
