//! What the provider keeps for itself: which connections it has used, and what dead hosts had printed.

/// The connections that hosts were ordered on.
pub use crate::hosts::persisted_set::PersistedSet as Connections;
use rouse_shared::HostId;
use std::collections::VecDeque;

/// Dead hosts whose last words are kept until they are asked for; more than may die at once.
const EVIDENCE: usize = 64;

/// What dead hosts had printed.
#[derive(Default)]
pub struct Evidence(VecDeque<(HostId, String)>);

impl Evidence {
    /// Keeps it; the oldest goes where there is too much.
    pub fn keep(&mut self, host: HostId, text: String) {
        self.0.truncate(EVIDENCE - 1);
        self.0.push_front((host, text));
    }

    /// A host's.
    pub fn of(&self, host: &HostId) -> Option<String> {
        self.0.iter().find(|(of, _)| of == host).map(|(_, text)| text.clone())
    }
}
