//! A broker that accepts nothing for a while: RabbitMQ has too little memory or disk space, and has reported this on
//! the connection. Nothing that the agent sends arrives, and a new connection would be blocked in the same way.
//!
//! Therefore the agent keeps the connection, and its builds continue past the end of the lease, for as long as the
//! master has promised to wait ([`rouse_shared::message::Welcome::blocked_lease_ms`]). The master counts from the end
//! of the alarm. Therefore an extended lease must never end later than one lease after the last moment at which the
//! alarm was on. The agent knows this moment only with a delay: it notices a dead connection within
//! [`BLOCKED_DETECTION`].

use super::link::Link;
use super::{Core, Level};
use rouse_shared::Timestamp;
use rouse_shared::limits::BLOCKED_DETECTION;
use std::time::Duration;

/// A core that was not called for so long has been frozen or suspended, and so was whatever watches the connection.
const STALL: Duration = Duration::from_secs(5);
/// Time between two extensions of the lease.
const LOOK: Duration = Duration::from_secs(1);

/// The broker has said that it accepts nothing on the connection that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blocked {
    /// When the core was called last.
    seen: Timestamp,
    /// Since when it has been called without a stall.
    steady: Timestamp,
}

impl Core {
    pub(super) fn link_blocked(&mut self, now: Timestamp, connection: u64, why: &str) {
        let up = matches!(self.link, Link::Greeting { .. } | Link::Attached { .. });
        if connection != self.connection || !up || self.blocked.is_some() {
            return;
        }
        self.blocked = Some(Blocked { seen: now, steady: now });
        let why = super::words::cut(why.to_owned());
        self.log(Level::Warn, format!("the broker accepts no messages at present ({why}); waiting until it does"));
    }

    pub(super) fn link_unblocked(&mut self, now: Timestamp, connection: u64) {
        if connection != self.connection || self.blocked.take().is_none() {
            return;
        }
        self.log(Level::Info, "the broker accepts messages again");
        let patience = self.hello_patience();
        match &mut self.link {
            Link::Attached { answered } => {
                *answered = now;
                if let Some(session) = &mut self.session {
                    session.next_heartbeat = now;
                }
            }
            Link::Stale => {
                self.drop_link();
                self.wait_to_reconnect(now, false);
            }
            // The hello has waited for too long, and not for the master.
            Link::Greeting { sent } if *sent + patience <= now => {
                self.drop_link();
                self.wait_to_reconnect(now, false);
            }
            Link::Greeting { .. } | Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } => {}
        }
    }

    /// Whether the broker accepts nothing on the connection that is up.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// When the lease is to be extended again.
    pub(super) fn blocked_wakeup(&self) -> Option<Timestamp> {
        let session = self.session.as_ref()?;
        session.blocked_lease?;
        Some(self.blocked?.seen + LOOK)
    }

    /// Called with every event, so that stalls are noticed. Extends the lease if the alarm was on a moment ago for sure.
    pub(super) fn extend_blocked(&mut self, now: Timestamp) {
        let Some(blocked) = &mut self.blocked else { return };
        if now.since(blocked.seen) > STALL {
            blocked.steady = now;
        }
        blocked.seen = now;
        if now.since(blocked.steady) < BLOCKED_DETECTION {
            return;
        }
        let Some(session) = &mut self.session else { return };
        let (Some(lease), Some(more)) = (session.lease, session.blocked_lease) else { return };
        let most = session.renewed_from + lease + more;
        // What is known is that the alarm was on at `now - BLOCKED_DETECTION`, and one lease from then is as good as any.
        if let Some(from) = lease.checked_sub(BLOCKED_DETECTION) {
            session.held_until = session.held_until.max(Some((now + from).min(most)));
        }
    }
}
