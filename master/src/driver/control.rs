//! The handle of a running master, for signals and the demo.

use super::event_loop;
use crate::access::Access;
use crate::api_token::ApiToken;
use crate::config::Config;
use crate::core::event::Change;
use crate::core::journal::Caller;
use crate::http_server::Encryption;
use crate::store::Claim;
use rouse_shared::error::Chain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{error, warn};

/// The handle of a running master, for signals and the demo.
pub struct Control {
    pub(super) controls: mpsc::Sender<event_loop::Control>,
    /// Where the API is served.
    pub address: SocketAddr,
    pub(super) api_token: ApiToken,
    /// Every change, as the API publishes it.
    pub changes: broadcast::Sender<Change>,
    /// Who owns the hosts: the master's name and id.
    pub owner: String,
    /// Who else may use the API.
    pub(super) access: Access,
    /// Whether the API asks those who only read for its token.
    pub(super) read_needs_token: Arc<AtomicBool>,
    /// TLS of the API, if it has any.
    pub(super) encryption: Option<Arc<Encryption>>,
    /// If other masters may share the ledger.
    pub(super) claim: Option<Claim>,
}

impl Control {
    /// The API's token, as it is now. Not for logs or messages.
    pub fn token(&self) -> Arc<str> {
        self.api_token.expose()
    }

    /// Applies a new configuration, which somebody has requested. Everything that has not changed continues.
    pub async fn configure(&self, config: Config, by: Caller) {
        self.access.configure(config.access.clone());
        self.read_needs_token.store(config.read_needs_token(), Ordering::Relaxed);
        self.describe(&config);
        if let Err(error) = self.api_token.configure(config.master.api_token.as_ref()) {
            warn!("the API token stays as it was, because the file with it cannot be used: {error}");
        }
        // The files may have changed even if their names have not.
        if let (Some(encryption), Some(files)) = (&self.encryption, &config.master.tls) {
            match files.server_config() {
                Ok(new) => encryption.replace(new),
                Err(why) => error!("the page keeps its certificate: {}", Chain(&why)),
            }
        }
        if self.controls.send(event_loop::Control::Configure(Box::new(config), by)).await.is_err() {
            warn!("the new configuration is not used: the master is ending");
        }
    }

    /// Gives every agent the lease that the configuration has for a restart. Returns once the messages have been passed
    /// to the link.
    pub async fn extend_leases(&self) {
        let (performed, done) = oneshot::channel();
        // If the loop has ended, no lease can be extended.
        if self.controls.send(event_loop::Control::Shutdown(performed)).await.is_ok() && done.await.is_err() {
            warn!("the leases could not be extended");
        }
    }
}
