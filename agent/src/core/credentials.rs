//! Which password the agent shows: the one that it was given at its start, or its session's secret.

use rouse_shared::SessionId;

/// The master's own refusals of a session secret before it is forgotten.
const SECRET_REFUSALS: u32 = 2;

/// The secret, and how showing it has gone so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    pub(super) secret: Option<String>,
    /// Whether the next connection uses the secret, where there is one.
    pub(super) prefer_secret: bool,
    /// Whether this connection uses it.
    pub(super) used_secret: bool,
    refusals: u32,
    /// Refusals of whatever credential by the master since the last welcome, for the backoff.
    pub(super) master_refusals: u32,
    /// The last session and its heartbeats, which go on counting if it is given again.
    pub(super) last: Option<(SessionId, u64)>,
}

/// What has become of the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// It is as it was.
    None,
    /// It is another, which has to be kept.
    New(String),
    /// It is of no more use.
    Forgotten,
}

impl Credentials {
    pub(super) fn new(secret: Option<String>) -> Self {
        Self { secret, prefer_secret: true, used_secret: false, refusals: 0, master_refusals: 0, last: None }
    }

    /// What a new connection is made with.
    pub(super) fn for_connection(&mut self, password: &str) -> String {
        self.used_secret = self.prefer_secret && self.secret.is_some();
        self.shown(password)
    }

    /// What this connection was made with.
    pub(super) fn shown(&self, password: &str) -> String {
        let secret = self.secret.as_deref().filter(|_| self.used_secret);
        secret.unwrap_or(password).to_owned()
    }

    /// A welcome with what the master wants to be shown the next time.
    pub(super) fn welcomed(&mut self, secret: Option<String>) -> Change {
        self.refusals = 0;
        self.prefer_secret = true;
        match secret {
            Some(secret) if self.secret.as_ref() == Some(&secret) => Change::None,
            Some(secret) => {
                self.secret = Some(secret.clone());
                Change::New(secret)
            }
            // What was used goes on: the password, and then the secret is of no use.
            None if !self.used_secret && self.secret.take().is_some() => Change::Forgotten,
            None => Change::None,
        }
    }

    /// The broker has refused it, outside a session. Whether the other one was not tried yet, and comes next.
    pub(super) fn denied(&mut self) -> bool {
        self.prefer_secret = !self.used_secret;
        // The password after the kept secret is not the same try again.
        !self.prefer_secret
    }

    /// The master has refused it.
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

    /// Whether it is the best that there is: a spent boot token is refused while the secret would be let in.
    pub(super) fn used_best(&self) -> bool {
        self.used_secret || self.secret.is_none()
    }
}
