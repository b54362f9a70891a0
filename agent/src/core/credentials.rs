//! Which credential the agent uses: the password that it had at its start, or the session secret.

use rouse_shared::SessionId;

/// Number of refusals by the master after which a session secret is forgotten.
const SECRET_REFUSALS: u32 = 2;

/// The secret, and the results of using it so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    pub(super) secret: Option<String>,
    /// Whether the next connection uses the secret, if there is one.
    pub(super) prefer_secret: bool,
    /// Whether this connection uses it.
    pub(super) used_secret: bool,
    refusals: u32,
    /// Refusals by the master of any credential since the last welcome, for the backoff.
    pub(super) master_refusals: u32,
    /// The last session and the number of its last heartbeat, where counting continues if a welcome continues the
    /// session.
    pub(super) last: Option<(SessionId, u64)>,
}

/// A change of the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// It has not changed.
    None,
    /// There is a new one, which has to be kept.
    New(String),
    /// It is no longer valid.
    Forgotten,
}

impl Credentials {
    pub(super) fn new(secret: Option<String>) -> Self {
        Self { secret, prefer_secret: true, used_secret: false, refusals: 0, master_refusals: 0, last: None }
    }

    /// The credential of a new connection.
    pub(super) fn for_connection(&mut self, password: &str) -> String {
        self.used_secret = self.prefer_secret && self.secret.is_some();
        self.shown(password)
    }

    /// The credential of the current connection.
    pub(super) fn shown(&self, password: &str) -> String {
        let secret = self.secret.as_deref().filter(|_| self.used_secret);
        secret.unwrap_or(password).to_owned()
    }

    /// Handles a welcome, with the credential that the master expects from now on.
    pub(super) fn welcomed(&mut self, secret: Option<String>) -> Change {
        self.refusals = 0;
        self.prefer_secret = true;
        match secret {
            Some(secret) if self.secret.as_ref() == Some(&secret) => Change::None,
            Some(secret) => {
                self.secret = Some(secret.clone());
                Change::New(secret)
            }
            // The credential that was used stays valid. If it is the password, the secret is not.
            None if !self.used_secret && self.secret.take().is_some() => Change::Forgotten,
            None => Change::None,
        }
    }

    /// Handles a refusal by the broker without a session. True if the other credential is to be tried next.
    pub(super) fn denied(&mut self) -> bool {
        self.prefer_secret = !self.used_secret;
        // The password after the secret has not been tried yet.
        !self.prefer_secret
    }

    /// Handles a refusal by the master.
    pub(super) fn refused(&mut self) -> Change {
        self.master_refusals = self.master_refusals.saturating_add(1);
        if !self.used_secret {
            self.prefer_secret = true;
            return Change::None;
        }
        self.refusals += 1;
        self.prefer_secret = false;
        if self.refusals < SECRET_REFUSALS {
            return Change::None;
        }
        self.secret = None;
        Change::Forgotten
    }

    /// Whether the best credential was used: a spent boot token is refused even if the secret would be accepted.
    pub(super) fn used_best(&self) -> bool {
        self.used_secret || self.secret.is_none()
    }
}
