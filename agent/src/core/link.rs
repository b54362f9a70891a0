//! The link to the broker: when to connect, how long to wait, and when to retry.

use super::ending::FinalAction;
use super::{Core, Effect, Ending, Level};
use rouse_shared::{Timestamp, names};
use std::time::Duration;

/// First and longest pause before the next connection: a broker that is up again is found within two seconds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));
/// The same after the broker has refused an agent without a session: either its password is wrong, or the master, which
/// the broker asks, is down.
const DENIED_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The same after the master itself has refused.
const REFUSED_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Delay from a change of the network to a retry: a DHCP client adds the route after the address.
pub(crate) const NETWORK_DEBOUNCE: Duration = Duration::from_millis(25);
/// Longest time for [`Effect::Connect`]; the driver normally gives up earlier.
const CONNECT_PATIENCE: Duration = Duration::from_secs(300);
/// First and longest wait for the answer to a hello. The master may be down, or the hello may have reached no queue. But
/// a master that thousands of agents ask at once may also be late. Another connection would be more work for it, so the
/// agent waits twice as long each time.
const HELLO_PATIENCE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(120));
/// The pause before the next connection after hellos that were not answered: agents that have asked at the same time
/// come back at different times.
const UNANSWERED_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// A link is taken to be half open after three unanswered heartbeats, but not before this time.
const HALF_OPEN_AT_LEAST: Duration = Duration::from_secs(15);
/// Number of consecutive failures that are logged one by one: more than a restart of the broker causes.
const LOGGED_FAILURES: u32 = 10;

/// The link to the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// Before [`super::Event::Start`].
    Unstarted,
    /// No connection until then. After a refusal (`refused`) a change of the network does not shorten the pause.
    Waiting { until: Timestamp, refused: bool },
    /// [`Effect::Connect`] was returned.
    Connecting { since: Timestamp },
    /// The link is up, and a hello was sent at this time.
    Greeting { sent: Timestamp },
    /// A welcome was received. `answered` is when the master last answered a heartbeat or a hello or, without a lease,
    /// was last asked whether the session still exists.
    Attached { answered: Timestamp },
    /// The link is up and blocked, and what was said on it no longer holds: the session has ended meanwhile. It is kept
    /// until the broker unblocks it, because a new one would be blocked as well.
    Stale,
}

impl Core {
    pub(super) fn link_wakeup(&self) -> Option<Timestamp> {
        match &self.link {
            Link::Unstarted => None,
            // Killed steps must have ended before the next connection, whatever the time.
            Link::Waiting { until, .. } => {
                Some(*until).filter(|_| self.dying.is_empty() && !matches!(self.ending, Ending::Killing { .. }))
            }
            Link::Connecting { since } => Some(*since + CONNECT_PATIENCE),
            // What was sent waits, and so does its answer.
            Link::Greeting { .. } | Link::Attached { .. } if self.is_blocked() => None,
            Link::Stale => None,
            Link::Greeting { sent } => Some(*sent + self.hello_patience()),
            Link::Attached { answered } => {
                let session = self.session.as_ref()?;
                Some(session.next_heartbeat.min(*answered + half_open_after(session.keepalive)))
            }
        }
    }

    pub(super) fn start(&mut self, now: Timestamp) {
        if self.link == Link::Unstarted && self.ending == Ending::No {
            self.connect(now);
        }
    }

    fn connect(&mut self, now: Timestamp) {
        self.connection += 1;
        self.link = Link::Connecting { since: now };
        let queue = names::agent_queue(&self.settings.worker, &self.nonce, self.connection);
        let credential = self.credentials.for_connection(&self.settings.password);
        self.emit(Effect::Connect { connection: self.connection, queue, credential });
    }

    pub(super) fn link_up(&mut self, now: Timestamp, connection: u64) {
        if connection != self.connection || !matches!(self.link, Link::Connecting { .. }) {
            return;
        }
        if !self.dying.is_empty() {
            // The lease has ended meanwhile. A hello that does not list these attempts would say that they do not run.
            self.drop_link();
            self.wait_to_reconnect(now, false);
            return;
        }
        self.link = Link::Greeting { sent: now };
        self.say_hello();
    }

    pub(super) fn link_down(&mut self, now: Timestamp, connection: u64, refused: bool, why: &str) {
        if connection != self.connection || matches!(self.link, Link::Unstarted | Link::Waiting { .. }) {
            return;
        }
        // During a session its credential is right, and the broker may only be unable to ask the master.
        let another =
            refused && self.session.is_none() && self.credentials.secret.is_some() && self.credentials.denied();
        let first = self.failures == 0;
        let denied = refused && !another && self.session.is_none();
        self.denials += u32::from(denied);
        let mut pause = self.wait_to_reconnect(now, denied);
        // An agent that said goodbye before its restart starts with a spent secret, so the password is tried at once.
        if another && first {
            pause = Duration::ZERO;
            self.link = Link::Waiting { until: now, refused };
        }
        self.log_failure(format!("no link to the broker: {why}; retrying in {} ms", pause.as_millis()));
    }

    /// Logs why there is no link. So that a broker that is down all night does not fill a disk, after some lines only
    /// those are logged at which the number of failures has doubled.
    fn log_failure(&mut self, text: String) {
        if self.failures <= LOGGED_FAILURES || self.failures.is_power_of_two() {
            let times =
                if self.failures > LOGGED_FAILURES { format!(" (try {})", self.failures) } else { String::new() };
            self.log(Level::Warn, format!("{text}{times}"));
        }
    }

    /// The link is down: the next attempt follows after a pause that grows with each failure. `denied` if the broker
    /// has refused the credential.
    pub(super) fn wait_to_reconnect(&mut self, now: Timestamp, denied: bool) -> Duration {
        if self.attached() {
            self.detached_since = now;
        }
        self.blocked = None;
        let backoff = if denied { DENIED_BACKOFF } else { BACKOFF };
        let pause = self.jittered(grown(backoff, self.failures_here));
        self.failures = self.failures.saturating_add(1);
        self.failures_here = self.failures_here.saturating_add(1);
        self.link = Link::Waiting { until: now + pause, refused: denied };
        pause
    }

    /// The same after a refusal by the master; `master_refusals` counts the earlier ones.
    pub(super) fn wait_after_refusal(&mut self, now: Timestamp, master_refusals: u32) -> Duration {
        self.wait_to_reconnect(now, false);
        let pause = self.jittered(grown(REFUSED_BACKOFF, master_refusals));
        self.link = Link::Waiting { until: now + pause, refused: true };
        pause
    }

    /// Whatever failed without an answer may have failed for lack of a network: retry, with the shortest pauses again.
    pub(super) fn network_changed(&mut self, now: Timestamp) {
        match &mut self.link {
            Link::Waiting { until, refused: false } => *until = (*until).min(now + NETWORK_DEBOUNCE),
            // It may fail, because it was started before.
            Link::Connecting { .. } => {}
            Link::Waiting { refused: true, .. }
            | Link::Unstarted
            | Link::Greeting { .. }
            | Link::Attached { .. }
            | Link::Stale => return,
        }
        self.failures_here = 0;
    }

    /// Closes the connection, if there is one or one is being made.
    pub(super) fn drop_link(&mut self) {
        match self.link {
            Link::Unstarted | Link::Waiting { .. } => {}
            Link::Connecting { .. } | Link::Greeting { .. } | Link::Attached { .. } | Link::Stale => {
                self.emit(Effect::Disconnect { connection: self.connection });
            }
        }
    }

    pub(super) fn expire_link(&mut self, now: Timestamp) {
        let mut unanswered = false;
        let why = match (&self.link, &self.session) {
            (Link::Unstarted, _) => return,
            (Link::Waiting { until, .. }, _) => {
                let ends = matches!(self.ending, Ending::Killing { .. } | Ending::Done);
                if *until > now || !self.dying.is_empty() || ends {
                    return;
                }
                if self.may_have_stale_boot_data() {
                    let why = "refused, and its boot data may have changed since its start";
                    return self.kill_and_end(now, FinalAction::Restart, why.to_owned());
                }
                return self.connect(now);
            }
            (Link::Greeting { .. } | Link::Attached { .. } | Link::Stale, _) if self.is_blocked() => return,
            (Link::Connecting { since }, _) if *since + CONNECT_PATIENCE <= now => "connecting takes too long",
            (Link::Greeting { sent }, _) if *sent + self.hello_patience() <= now => {
                unanswered = true;
                "no master has answered the hello"
            }
            (Link::Attached { answered }, Some(session)) if *answered + half_open_after(session.keepalive) <= now => {
                if session.lease.is_none() {
                    return self.ask_for_session(now);
                }
                "heartbeats are not answered"
            }
            (Link::Connecting { .. } | Link::Greeting { .. } | Link::Attached { .. } | Link::Stale, _) => return,
        };
        self.drop_link();
        let mut pause = self.wait_to_reconnect(now, false);
        if unanswered {
            pause = self.jittered(grown(UNANSWERED_BACKOFF, self.unanswered_hellos));
            self.link = Link::Waiting { until: now + pause, refused: false };
            self.unanswered_hellos = self.unanswered_hellos.saturating_add(1);
        }
        self.log_failure(format!("{why}; reconnecting in {} ms", pause.as_millis()));
    }

    pub(super) fn hello_patience(&self) -> Duration {
        grown(HELLO_PATIENCE, self.unanswered_hellos)
    }
}

fn half_open_after(keepalive: Duration) -> Duration {
    (keepalive * 3).max(HALF_OPEN_AT_LEAST)
}

/// The first pause doubled for each failure, up to the longest.
fn grown((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(longest)
}
