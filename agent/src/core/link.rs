//! The link to the broker: when to connect, how long to wait for what, and when to try again.

use super::ending::FinalAction;
use super::{Core, Effect, Ending, Level};
use rouse_shared::{Timestamp, names};
use std::time::Duration;

/// First and longest pause before the next connection: a broker that is back is found within two seconds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));
/// The same where the broker says no to an agent without a session: either its password is wrong, or the master that
/// the broker asks is away.
const DENIED_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The same after the master itself has refused.
const REFUSED_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Between a change of the network and what is worth trying then: a client of DHCP adds the route after the address.
pub(crate) const NETWORK_DEBOUNCE: Duration = Duration::from_millis(25);
/// Longest time for connecting; the adapter gives up earlier by itself.
const CONNECT_PATIENCE: Duration = Duration::from_secs(90);
/// Longest time until a hello is answered. The master may be away, or the hello may have met no queue.
const HELLO_PATIENCE: Duration = Duration::from_secs(15);
/// A link on which no heartbeat is answered is half open after three of them, but not before this.
const HALF_OPEN_AT_LEAST: Duration = Duration::from_secs(15);
/// Failures in a row that are logged one by one: a broker that is restarted is away for no longer.
const LOGGED_FAILURES: u32 = 10;

/// The link to the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// Before [`super::Event::Start`].
    Unstarted,
    /// No connection until then; `refused` where the pause is one of those after a refusal, which no network shortens.
    Waiting { until: Timestamp, refused: bool },
    /// [`Effect::Connect`] was given.
    Connecting { since: Timestamp },
    /// Up, and hello was sent then.
    Greeting { sent: Timestamp },
    /// Welcome came; `answered` is when the master last said something that it says only to the living, or, without a
    /// lease, was last asked after the session.
    Attached { answered: Timestamp },
}

impl Core {
    pub(super) fn link_wakeup(&self) -> Option<Timestamp> {
        match &self.link {
            Link::Unstarted => None,
            // While something dies its end is waited for, not a moment.
            Link::Waiting { until, .. } => {
                Some(*until).filter(|_| self.dying.is_empty() && !matches!(self.ending, Ending::Killing { .. }))
            }
            Link::Connecting { since } => Some(*since + CONNECT_PATIENCE),
            Link::Greeting { sent } => Some(*sent + HELLO_PATIENCE),
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
            // The lease ended on the way: a hello that does not list them says that nothing of them runs.
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
        // Within a session its own credential is right, and the broker may just be unable to ask.
        let another =
            refused && self.session.is_none() && self.credentials.secret.is_some() && self.credentials.denied();
        let first = self.failures == 0;
        let denied = refused && !another && self.session.is_none();
        self.denials += u32::from(denied);
        let mut pause = self.wait_to_reconnect(now, denied);
        // An agent that took leave in its last life begins with a secret that is spent: no reason to wait.
        if another && first {
            pause = Duration::ZERO;
            self.link = Link::Waiting { until: now, refused };
        }
        self.log_failure(format!("no link to the broker: {why}; trying again in {} ms", pause.as_millis()));
    }

    /// Says why there is no link. A broker that is away all night would fill a disk: after some lines in a row, one each
    /// time that their number has doubled.
    fn log_failure(&mut self, text: String) {
        if self.failures <= LOGGED_FAILURES || self.failures.is_power_of_two() {
            let times =
                if self.failures > LOGGED_FAILURES { format!(" (try {})", self.failures) } else { String::new() };
            self.log(Level::Warn, format!("{text}{times}"));
        }
    }

    /// The link is gone: the next try comes after a pause that grows with each failure; `denied`: the broker said no.
    pub(super) fn wait_to_reconnect(&mut self, now: Timestamp, denied: bool) -> Duration {
        if self.attached() {
            self.detached_since = now;
        }
        let backoff = if denied { DENIED_BACKOFF } else { BACKOFF };
        let pause = self.jittered(grown(backoff, self.failures_here));
        self.failures = self.failures.saturating_add(1);
        self.failures_here = self.failures_here.saturating_add(1);
        self.link = Link::Waiting { until: now + pause, refused: denied };
        pause
    }

    /// The same after the master itself has refused; `master_refusals`: how often it had before.
    pub(super) fn wait_after_refusal(&mut self, now: Timestamp, master_refusals: u32) -> Duration {
        self.wait_to_reconnect(now, false);
        let pause = self.jittered(grown(REFUSED_BACKOFF, master_refusals));
        self.link = Link::Waiting { until: now + pause, refused: true };
        pause
    }

    /// What nobody has answered may have met no network: it is tried anew, and the pauses begin anew.
    pub(super) fn network_changed(&mut self, now: Timestamp) {
        match &mut self.link {
            Link::Waiting { until, refused: false } => *until = (*until).min(now + NETWORK_DEBOUNCE),
            // Perhaps in vain, since it has begun before.
            Link::Connecting { .. } => {}
            Link::Waiting { refused: true, .. } | Link::Unstarted | Link::Greeting { .. } | Link::Attached { .. } => {
                return;
            }
        }
        self.failures_here = 0;
    }

    /// Closes the connection, if there is one or may yet be one.
    pub(super) fn drop_link(&mut self) {
        match self.link {
            Link::Unstarted | Link::Waiting { .. } => {}
            Link::Connecting { .. } | Link::Greeting { .. } | Link::Attached { .. } => {
                self.emit(Effect::Disconnect { connection: self.connection });
            }
        }
    }

    pub(super) fn expire_link(&mut self, now: Timestamp) {
        let why = match (&self.link, &self.session) {
            (Link::Unstarted, _) => return,
            (Link::Waiting { until, .. }, _) => {
                let ends = matches!(self.ending, Ending::Killing { .. } | Ending::Done);
                if *until > now || !self.dying.is_empty() || ends {
                    return;
                }
                if self.may_have_stale_boot_data() {
                    let why = "refused with what it was told at its start, which may be told it anew";
                    return self.kill_and_end(now, FinalAction::Restart, why.to_owned());
                }
                return self.connect(now);
            }
            (Link::Connecting { since }, _) if *since + CONNECT_PATIENCE <= now => "connecting takes too long",
            (Link::Greeting { sent }, _) if *sent + HELLO_PATIENCE <= now => "no master has answered the hello",
            (Link::Attached { answered }, Some(session)) if *answered + half_open_after(session.keepalive) <= now => {
                if session.lease.is_none() {
                    return self.ask_for_session(now);
                }
                "no heartbeat is answered"
            }
            (Link::Connecting { .. } | Link::Greeting { .. } | Link::Attached { .. }, _) => return,
        };
        self.drop_link();
        let pause = self.wait_to_reconnect(now, false);
        self.log_failure(format!("{why}; connecting anew in {} ms", pause.as_millis()));
    }
}

fn half_open_after(keepalive: Duration) -> Duration {
    (keepalive * 3).max(HALF_OPEN_AT_LEAST)
}

/// The first pause doubled for each failure, up to the longest.
fn grown((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(longest)
}
