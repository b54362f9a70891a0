//! What a running master can be asked from outside.

use super::event_loop;
use crate::config::Config;
use crate::core::event::Change;
use std::net::SocketAddr;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::warn;

/// What a running master can be asked from outside: by signals, or by the demo.
pub struct Control {
    pub(super) orders: mpsc::Sender<event_loop::Control>,
    /// Where the API is served.
    pub address: SocketAddr,
    /// The API's token.
    pub token: String,
    /// Every change, as the API tells it.
    pub changes: broadcast::Sender<Change>,
    /// Who owns the hosts: the master's name and id.
    pub owner: String,
}

impl Control {
    /// Takes a new configuration; what it does not touch goes on.
    pub async fn configure(&self, config: Config) {
        if self.orders.send(event_loop::Control::Configure(Box::new(config))).await.is_err() {
            warn!("the master is ending and takes no configuration");
        }
    }

    /// Gives every agent the lease that the configuration has for a restart; returns once they have been told.
    pub async fn extend_leases(&self) {
        let (told, done) = oneshot::channel();
        // Where the loop is gone there is nobody to extend a lease for.
        if self.orders.send(event_loop::Control::Shutdown(told)).await.is_ok() && done.await.is_err() {
            warn!("the leases could not be extended");
        }
    }
}
