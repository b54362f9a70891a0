//! Orphans: machines with the master's name and id that are not in the ledger. Those that stay although they were asked
//! to end are reported like hosts that do.

use super::event::{Effect, Level, ListedHost, Termination};
use super::host::linger::{ACCEPTED, PATIENCE};
use super::mail::What;
use super::plan::ProviderKind;
use super::timers::Timer;
use super::{Core, Timestamp};
use std::collections::BTreeSet;

/// What is known of an orphan. Not in the ledger: a master that starts finds it again.
pub(super) struct Orphan {
    /// When it was first listed.
    pub first: Timestamp,
    /// When the master first asked for its termination.
    asked: Option<Timestamp>,
    /// Why the last call to terminate it failed, if it did.
    refusal: Option<String>,
    /// Who was notified that it stays.
    notified: Option<BTreeSet<String>>,
    /// The machine.
    listed: ListedHost,
}

impl Orphan {
    pub(super) fn new(first: Timestamp, listed: ListedHost) -> Self {
        Self { first, asked: None, refusal: None, notified: None, listed }
    }
}

impl Core {
    /// Those who are told of everything, or else those who look after the workers of the provider.
    pub(super) fn recipients_for(&self, provider: ProviderKind) -> BTreeSet<String> {
        let to = self.plan.mail.extra_recipients.clone();
        if !to.is_empty() {
            return to;
        }
        let of = |w: &&std::sync::Arc<super::WorkerPlan>| w.latent.as_ref().is_some_and(|l| l.provider == provider);
        self.plan.workers.values().filter(of).flat_map(|w| w.notify_on_missing.iter().cloned()).collect()
    }

    /// Asks for the termination of a machine that is not in the ledger, and looks again in some minutes.
    pub(super) fn terminate_orphan(&mut self, now: Timestamp, provider: ProviderKind, listed: ListedHost) {
        if let Some(orphan) = self.orphans.get_mut(&(provider, listed.handle.clone())) {
            let since = *orphan.asked.get_or_insert(now);
            if now.since(since) >= PATIENCE && orphan.notified.is_none() {
                let why = orphan.refusal.clone().unwrap_or_else(|| ACCEPTED.to_owned());
                let to = self.recipients_for(provider);
                if let Some(orphan) = self.orphans.get_mut(&(provider, listed.handle.clone())) {
                    orphan.notified = Some(to.clone());
                }
                let minutes = now.since(since).as_secs() / 60;
                let (host, machine) = (listed.host.clone(), listed.handle.clone());
                let text = format!(
                    "orphan: {machine} of {} could not be terminated for {minutes} minutes and may cost money: {why}",
                    provider.as_str()
                );
                self.note(Level::Warn, text);
                self.report(now, to, What::Lingering { provider, host, machine, why, since });
            }
            self.timers.set_once(Timer::Orphans(provider), now + PATIENCE);
        }
        self.out.push(Effect::TerminateOrphan { provider, listed });
    }

    /// A call to terminate an orphan was answered. Only a list proves that the machine is gone.
    pub(super) fn on_orphan_terminate_ended(
        &mut self,
        provider: ProviderKind,
        handle: &str,
        result: Result<Termination, String>,
    ) {
        let orphan = self.orphans.get_mut(&(provider, handle.to_owned()));
        let said = orphan.and_then(|o| std::mem::replace(&mut o.refusal, result.as_ref().err().cloned()));
        if let Err(why) = result
            && said.as_ref() != Some(&why)
        {
            self.note(Level::Warn, format!("orphan {handle} could not be terminated: {why}; retrying"));
        }
    }

    /// Number of hosts and orphans that people were notified of because they stay.
    pub fn lingering_count(&self) -> usize {
        let hosts = self.hosts.values().filter(|live| live.host.lingering_notified.is_some()).count();
        hosts + self.orphans.values().filter(|orphan| orphan.notified.is_some()).count()
    }

    /// The provider's whole list has these machines: other orphans of it are gone.
    pub(super) fn forget_orphans(&mut self, now: Timestamp, provider: ProviderKind, listed: &[ListedHost]) {
        let there = |handle: &str| listed.iter().any(|machine| machine.handle == handle);
        let gone: Vec<_> =
            self.orphans.keys().filter(|(of, handle)| *of == provider && !there(handle)).cloned().collect();
        for key in gone {
            let Some(Orphan { asked, notified: Some(to), listed, .. }) = self.orphans.remove(&key) else { continue };
            let (host, machine, since) = (listed.host, listed.handle, asked.unwrap_or(now));
            self.note(Level::Info, format!("orphan: {machine} of {} is gone", provider.as_str()));
            self.report(now, to, What::LingeringOver { provider, host, machine, since });
        }
        self.forget_reported_orphans(provider, there);
    }
}
