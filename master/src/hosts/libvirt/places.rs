//! What the provider stores: the connections that it has used, and the console output of dead hosts.

/// The connections that hosts were ordered on.
pub use crate::hosts::persisted_set::PersistedSet as Connections;
use rouse_shared::HostId;
use std::collections::VecDeque;

/// Number of dead hosts whose console output is kept until it is requested. More may die at once.
const EVIDENCE: usize = 64;

/// What dead hosts had printed.
#[derive(Default)]
pub struct Evidence(VecDeque<(HostId, String)>);

impl Evidence {
    /// Keeps a host's output. If there is too much, the oldest is dropped.
    pub fn keep(&mut self, host: HostId, text: String) {
        self.0.truncate(EVIDENCE - 1);
        self.0.push_front((host, text));
    }

    /// The output of a host.
    pub fn of(&self, host: &HostId) -> Option<String> {
        self.0.iter().find(|(of, _)| of == host).map(|(_, text)| text.clone())
    }
}
