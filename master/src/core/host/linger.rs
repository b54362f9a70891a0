//! Hosts that stay although they were asked to end: a cloud protects the machine, has lost it, or accepts the call and
//! does nothing. They cost money, so people are notified.

use super::LiveHost;
use crate::core::event::Level;
use crate::core::mail::What;
use crate::core::places::PlaceKey;
use crate::core::record::{Host, HostState};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::HostId;
use std::time::Duration;

/// How long a termination may take before people are notified. Longer than the providers wait before they give the
/// reason why an accepted termination has not happened, and than the longest pause between two calls after that.
pub(in crate::core) const PATIENCE: Duration = Duration::from_secs(420);
/// What is known if the provider accepts each call to terminate the machine.
pub(in crate::core) const ACCEPTED: &str = "its provider has accepted the termination, and the machine is still there";

impl Core {
    /// A call of the host's phase is about to be made. Watches it if that is one that terminates the host.
    pub(super) fn watch_termination(&mut self, now: Timestamp, id: &HostId) {
        let terminating = |live: &&mut LiveHost| live.host.state == HostState::Terminating;
        let Some(live) = self.hosts.get_mut(id).filter(terminating) else { return };
        let begun = live.host.terminating.is_none();
        let since = *live.host.terminating.get_or_insert(now);
        // After a notification the timer would fire at once, at each call.
        if live.host.lingering_notified.is_none() {
            self.timers.set_once(Timer::Lingering(id.clone()), since + PATIENCE);
        }
        if begun {
            self.touch_host(id);
        }
    }

    /// The host should have been terminated by now. Notifies people once for each host.
    pub(in crate::core) fn on_lingering(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id).filter(|live| live.host.state == HostState::Terminating) else { return };
        // An operator who has given it up knows that it may still cost money.
        if live.host.forgotten.is_some() || live.host.lingering_notified.is_some() {
            return;
        }
        let host = live.host.clone();
        let since = host.terminating.unwrap_or(now);
        let why = live.not_terminated.clone().unwrap_or_else(|| ACCEPTED.to_owned());
        let minutes = now.since(since).as_secs() / 60;
        let text = format!(
            "{} of {} could not be terminated for {minutes} minutes and may cost money: {why}",
            named(&host),
            host.worker
        );
        self.note(Level::Warn, text);
        let to = self.recipients_of(&PlaceKey::of_host(&host));
        if let Some(live) = self.hosts.get_mut(id) {
            live.host.lingering_notified = Some(to.clone());
        }
        let machine = host.handle.clone().unwrap_or_else(|| id.to_string());
        self.report(now, to, What::Lingering { provider: host.provider, host: host.id, machine, why, since });
        self.touch_host(id);
    }

    /// The machine of this host is gone. Those who were notified that it stays are notified of this too.
    pub(super) fn lingering_is_over(&mut self, now: Timestamp, host: &Host) {
        self.timers.clear(&Timer::Lingering(host.id.clone()));
        let Some(to) = host.lingering_notified.clone() else { return };
        let since = host.terminating.unwrap_or(now);
        let took = now.since(since).as_secs() / 60;
        // A host that an operator has given up may still be there.
        if host.forgotten.is_some() {
            return;
        }
        self.note(Level::Info, format!("{} of {} is gone, after {took} minutes", named(host), host.worker));
        let machine = host.handle.clone().unwrap_or_else(|| host.id.to_string());
        let (provider, host) = (host.provider, host.id.clone());
        self.report(now, to, What::LingeringOver { provider, host, machine, since });
    }
}

impl LiveHost {
    /// Why it is being terminated, for people, and why it is still there if a call has failed.
    pub(in crate::core) fn why(&self) -> Option<String> {
        let refusal = self.not_terminated.as_ref().filter(|_| self.host.state == HostState::Terminating);
        match (&self.host.why, refusal) {
            (Some(why), Some(refusal)) => Some(format!("{why}; it could not be terminated yet: {refusal}")),
            (None, Some(refusal)) => Some(format!("it could not be terminated yet: {refusal}")),
            (why, None) => why.clone(),
        }
    }

    /// What to say of it to those who wait for its worker or its place in `max_hosts`, if it stays although it was asked
    /// to end.
    pub(in crate::core) fn stays(&self, now: Timestamp) -> Option<String> {
        let since = self.host.terminating.filter(|_| self.host.state == HostState::Terminating)?;
        let notified = self.host.lingering_notified.is_some();
        let why = self.not_terminated.as_deref().or(notified.then_some(ACCEPTED))?;
        let taken = now.since(since).as_secs();
        Some(format!("{} of worker {} was asked to end {taken} s ago: {why}", named(&self.host), self.host.worker))
    }
}

/// A host by its id and by what its provider calls it.
fn named(host: &Host) -> String {
    match &host.handle {
        Some(handle) => format!("host {} ({handle} of {})", host.id, host.provider.as_str()),
        None => format!("host {} ({})", host.id, host.provider.as_str()),
    }
}
