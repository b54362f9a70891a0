//! The audit: compares the machines that the providers list under the master's name with the ledger.
//!
//! The periodic audit runs at the start and every `audit.interval`. It terminates machines that have been unknown for
//! longer than any call takes. An audit for a user requests several lists: a difference counts only if two lists in a
//! row show it, so a change during a list is not reported as a difference. If that audit is to fix differences, it
//! continues until none is left that it may fix, or until its time limit.

use super::event::{Effect, Level, ListedHost, Listing, Owner, Reply, RequestId, UnlistedPlace};
use super::host::LiveHost;
use super::orphans::Orphan;
use super::plan::ProviderKind;
use super::record::{Host, HostState};
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::HostId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use utoipa::ToSchema;

/// Longer than any call of a provider takes. A machine that has been listed and unknown for this long belongs to no
/// call.
pub(super) const ORPHAN_AGE: Duration = Duration::from_secs(90);
/// Lists in a row that must lack a host before it counts as gone: providers list with delay. A host whose agent is
/// heard of, from the machine that was started for it, is there, whatever they say: a cloud of which a part is down
/// leaves out what is in that part.
const ABSENT_LISTS: u32 = 2;
/// Time limit of an audit for a user. The API and the commands wait a little longer.
pub const AUDIT_LIMIT: Duration = Duration::from_secs(45);
/// Pause between the first two rounds. Doubled with each further round, up to [`ROUND_MOST`].
const ROUND_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between two rounds.
const ROUND_MOST: Duration = Duration::from_secs(8);
/// Largest number of audits for users at the same time. Each of them lists every cloud.
const AUDITS: usize = 8;

/// What an audit does about differences.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditMode {
    /// Reports the differences.
    Look,
    /// Terminates orphans, suspends hosts that should be suspended, and records hosts as gone that no list has any
    /// more.
    Fix,
    /// Also terminates foreign machines, for example those of a state directory that was lost.
    Adopt,
}

/// The result of an audit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditReport {
    /// The differences, both fixed and not.
    pub differences: Vec<Difference>,
    /// Hosts in the ledger that are not gone.
    pub hosts: usize,
    /// Machines that the providers list under the master's name, whatever their id. Providers that could not be asked
    /// are not included.
    pub listed: usize,
}

impl AuditReport {
    /// Whether there is no difference that has not been fixed.
    pub fn clean(&self) -> bool {
        self.differences.iter().all(|difference| difference.done)
    }
}

/// The kinds of differences between the ledger and the providers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// A machine with our name and id that the ledger does not know.
    Orphan,
    /// A machine with our name and another id.
    Foreign,
    /// A host of the ledger that its provider does not list.
    Missing,
    /// A host that is suspended by the ledger, and whose machine runs.
    Running,
    /// A provider could not be asked, or not all of it: nothing is known of what it has not listed.
    ListFailed,
}

impl DifferenceKind {
    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "orphan",
            Self::Foreign => "foreign",
            Self::Missing => "missing",
            Self::Running => "running",
            Self::ListFailed => "list_failed",
        }
    }
}

/// One thing that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// In which way.
    pub kind: DifferenceKind,
    /// Where.
    pub provider: ProviderKind,
    /// The host.
    pub host: Option<HostId>,
    /// The provider's name for the machine.
    pub handle: Option<String>,
    /// The id in the owner tag of a foreign machine.
    pub owner: Option<String>,
    /// Why it is a difference, in a sentence.
    pub why: String,
    /// Whether this audit has fixed it.
    pub done: bool,
}

type Key = (DifferenceKind, ProviderKind, String);
type List = Result<Listing, String>;

impl Difference {
    fn of_machine(kind: DifferenceKind, provider: ProviderKind, machine: &ListedHost, why: &str) -> Self {
        let owner = match &machine.owner {
            Owner::Ours => None,
            Owner::Foreign(id) => Some(id.clone()),
        };
        Self {
            kind,
            provider,
            host: Some(machine.host.clone()),
            handle: Some(machine.handle.clone()),
            owner,
            why: why.to_owned(),
            done: false,
        }
    }

    fn key(&self) -> Key {
        let name = match self.kind {
            DifferenceKind::Orphan | DifferenceKind::Foreign => self.handle.clone(),
            DifferenceKind::Missing | DifferenceKind::Running => self.host.as_ref().map(|host| host.0.clone()),
            DifferenceKind::ListFailed => Some(self.why.clone()),
        };
        (self.kind, self.provider, name.unwrap_or_default())
    }

    /// Whether an audit in this mode may fix it.
    fn is_ours_to_fix(&self, mode: AuditMode) -> bool {
        match (self.kind, mode) {
            (_, AuditMode::Look) | (DifferenceKind::ListFailed, _) => false,
            (DifferenceKind::Foreign, mode) => mode == AuditMode::Adopt,
            (DifferenceKind::Orphan | DifferenceKind::Missing | DifferenceKind::Running, _) => true,
        }
    }
}

/// An audit for a user.
pub(super) struct Audit {
    mode: AuditMode,
    /// Number of the round, from 1.
    round: u32,
    /// The lists of this round; absent until the provider has answered.
    lists: BTreeMap<ProviderKind, Option<List>>,
    /// What the previous round has found.
    before: BTreeSet<Key>,
    /// The differences that this audit has tried to fix.
    acted: BTreeMap<Key, Difference>,
}

impl Core {
    /// Providers that can have hosts of this master: those in the configuration, and those of hosts that are not gone.
    pub(super) fn providers(&self) -> BTreeSet<ProviderKind> {
        self.configured_providers().chain(self.hosts.values().map(|l| l.host.provider)).collect()
    }

    pub(super) fn configured_providers(&self) -> impl Iterator<Item = ProviderKind> {
        self.plan.workers.values().filter_map(|w| w.latent.as_ref().map(|l| l.provider))
    }

    pub(super) fn start_audit(&mut self, now: Timestamp, provider: ProviderKind) {
        self.list_hosts(provider);
        self.timers.set(Timer::Audit(provider), now + self.plan.audit_interval);
    }

    pub(super) fn list_hosts(&mut self, provider: ProviderKind) {
        self.listing.insert(provider);
        self.out.push(Effect::ListHosts(provider));
    }

    /// Compares what a provider lists with the ledger. A partial list says nothing about what is missing from it.
    pub(super) fn on_listed(&mut self, now: Timestamp, provider: ProviderKind, result: List) {
        let Listing { machines, unlisted } = result.unwrap_or_else(Listing::of_nobody);
        let whole = unlisted.is_empty();
        self.listing.remove(&provider);
        self.hear_places(now, provider, &unlisted);
        let (listed, foreign_machines): (Vec<_>, Vec<_>) = machines.into_iter().partition(|m| m.owner == Owner::Ours);
        self.note_foreign_machines(provider, &foreign_machines, whole);
        for machine in &listed {
            if let Some(live) = self.hosts.get_mut(&machine.host) {
                live.missing_from_lists = 0;
                if live.host.handle.is_none() {
                    live.host.handle = Some(machine.handle.clone());
                    self.touch_host(&machine.host);
                    self.learn_identity(now, &machine.host, machine.identity.clone());
                }
                if self.is_running_unexpectedly(machine) {
                    self.suspend_anew(now, &machine.host);
                }
                continue;
            }
            let key = (provider, machine.handle.clone());
            let first = self.orphans.entry(key).or_insert_with(|| Orphan::new(now, machine.clone())).first;
            if now.since(first) >= ORPHAN_AGE {
                let text = format!("{} of {} has our name and is not in the ledger", machine.handle, provider.as_str());
                self.report_orphan(now, provider, machine, self.plan.stop_orphans);
                if self.plan.stop_orphans {
                    self.note(Level::Warn, format!("orphan: {text}; terminating it"));
                    self.terminate_orphan(now, provider, machine.clone());
                } else {
                    self.note(
                        Level::Warn,
                        format!("orphan: {text}; it is left running, because audit.on_orphan is \"report\""),
                    );
                }
            }
        }
        if whole {
            self.forget_orphans(now, provider, &listed);
        }
        let mut gone = Vec::new();
        for (id, live) in &mut self.hosts {
            let hidden = hides(&unlisted, &live.host.place);
            if live.should_be_listed(now, provider) && !hidden && !listed.iter().any(|m| m.host == *id) {
                let worker = self.workers.get(&live.host.worker);
                if worker.is_some_and(|worker| worker.has_live_agent(&live.host, now)) {
                    live.missing_from_lists = 0;
                    continue;
                }
                live.missing_from_lists += 1;
                if live.missing_from_lists >= ABSENT_LISTS {
                    gone.push(id.clone());
                }
            }
        }
        for id in gone {
            self.on_host_gone(now, &id, "its provider no longer lists it", false);
        }
    }

    /// Logs each foreign machine once. Foreign machines are never changed.
    fn note_foreign_machines(&mut self, provider: ProviderKind, machines: &[ListedHost], whole: bool) {
        for machine in machines {
            let Owner::Foreign(id) = &machine.owner else { continue };
            if self.foreign_machines.insert((provider, machine.handle.clone())) {
                let text = format!(
                    "{} of {} has our name and the id {id}, which is not ours: it is left alone. Two masters need different \
                     names; after the loss of a state directory, `rouse audit --fix --adopt` terminates what it left",
                    machine.handle,
                    provider.as_str()
                );
                self.note(Level::Warn, text);
            }
        }
        if whole {
            self.foreign_machines
                .retain(|(of, handle)| *of != provider || machines.iter().any(|m| m.handle == *handle));
        }
    }

    pub(super) fn on_audit(&mut self, now: Timestamp, request: RequestId, mode: AuditMode) {
        if self.audits.len() >= AUDITS {
            let reason = format!("{AUDITS} audits are already running; try again when one has finished");
            return self.reply(request, Reply::Refused { field: None, reason });
        }
        let lists = self.providers().into_iter().map(|provider| (provider, None)).collect();
        let audit = Audit { mode, round: 0, lists, before: BTreeSet::new(), acted: BTreeMap::new() };
        if audit.lists.is_empty() {
            return self.answer_audit(request, &audit, BTreeMap::new());
        }
        self.audits.insert(request, audit);
        self.timers.set(Timer::AuditOver(request), now + AUDIT_LIMIT);
        self.next_round(request);
    }

    /// Lists every provider again.
    pub(super) fn next_round(&mut self, request: RequestId) {
        let Some(audit) = self.audits.get_mut(&request) else { return };
        audit.round += 1;
        for (provider, list) in &mut audit.lists {
            *list = None;
            self.out.push(Effect::ListForAudit { request, round: audit.round, provider: *provider });
        }
    }

    pub(super) fn on_listed_for_audit(
        &mut self,
        now: Timestamp,
        request: RequestId,
        round: u32,
        provider: ProviderKind,
        result: List,
    ) {
        let Some(audit) = self.audits.get_mut(&request).filter(|a| a.round == round) else { return };
        let Some(list) = audit.lists.get_mut(&provider).filter(|list| list.is_none()) else { return };
        *list = Some(result);
        if audit.lists.values().all(Option::is_some)
            && let Some(audit) = self.audits.remove(&request)
        {
            self.round_ended(now, request, audit);
        }
    }

    fn round_ended(&mut self, now: Timestamp, request: RequestId, mut audit: Audit) {
        let mut found = self.compare(now, &audit.lists);
        let open = found.values().any(|difference| difference.is_ours_to_fix(audit.mode));
        if found.is_empty() || (audit.round > 1 && !open) {
            found.retain(|key, _| key.0 == DifferenceKind::ListFailed || audit.before.contains(key));
            return self.answer_audit(request, &audit, found);
        }
        let seen_twice = found.iter().filter(|(key, _)| audit.before.contains(key));
        for (key, difference) in seen_twice.filter(|(_, d)| d.is_ours_to_fix(audit.mode)) {
            self.put_right(now, difference);
            audit.acted.insert(key.clone(), difference.clone());
        }
        let pause = ROUND_FIRST.saturating_mul(1 << audit.round.saturating_sub(1).min(8)).min(ROUND_MOST);
        self.timers.set(Timer::AuditRound(request), now + pause);
        audit.before = found.into_keys().collect();
        self.audits.insert(request, audit);
    }

    /// The audit's time is over. A provider that has not answered by now counts as failed.
    pub(super) fn on_audit_over(&mut self, now: Timestamp, request: RequestId) {
        let Some(mut audit) = self.audits.remove(&request) else { return };
        for list in audit.lists.values_mut() {
            let silent = || format!("no answer within the {} s of an audit", AUDIT_LIMIT.as_secs());
            list.get_or_insert_with(|| Err(silent()));
        }
        let found = self.compare(now, &audit.lists);
        self.answer_audit(request, &audit, found);
    }

    fn compare(&self, now: Timestamp, lists: &BTreeMap<ProviderKind, Option<List>>) -> BTreeMap<Key, Difference> {
        let mut found = Vec::new();
        for (&provider, list) in lists {
            let Some(list) = list else { continue };
            let nobody = list.as_ref().err().map(|why| Listing::of_nobody(why.clone()));
            let Some(Listing { machines, unlisted }) = nobody.as_ref().or(list.as_ref().ok()) else { continue };
            found.extend(unlisted.iter().map(|UnlistedPlace { place, why }| Difference {
                kind: DifferenceKind::ListFailed,
                provider,
                host: None,
                handle: None,
                owner: None,
                why: match place {
                    Some(place) => format!("its hosts in {place} could not be listed: {why}"),
                    None => format!("its hosts could not be listed: {why}"),
                },
                done: false,
            }));
            found.extend(machines.iter().filter_map(|machine| match &machine.owner {
                Owner::Ours if self.is_running_unexpectedly(machine) => {
                    let why = "it should be suspended, but its machine is running";
                    Some(Difference::of_machine(DifferenceKind::Running, provider, machine, why))
                }
                Owner::Ours if self.hosts.contains_key(&machine.host) => None,
                Owner::Ours => {
                    let why = "it has our name and id and is not in the ledger";
                    Some(Difference::of_machine(DifferenceKind::Orphan, provider, machine, why))
                }
                Owner::Foreign(_) => {
                    let why = "it has our name and an id that is not ours";
                    Some(Difference::of_machine(DifferenceKind::Foreign, provider, machine, why))
                }
            }));
            let ours = |id: &HostId| machines.iter().any(|m| m.owner == Owner::Ours && m.host == *id);
            // One that is being terminated is on its way out already.
            let heard = |host: &Host| self.workers.get(&host.worker).is_some_and(|w| w.has_live_agent(host, now));
            let lost = self.hosts.iter().filter(|(id, live)| {
                let should_be = live.should_be_listed(now, provider) && !heard(&live.host);
                should_be
                    && !hides(unlisted, &live.host.place)
                    && live.host.state != HostState::Terminating
                    && !ours(id)
            });
            found.extend(lost.map(|(id, live)| Difference {
                kind: DifferenceKind::Missing,
                provider,
                host: Some(id.clone()),
                handle: live.host.handle.clone(),
                owner: None,
                why: format!("it is in the ledger ({}) and its provider does not list it", live.host.state.as_str()),
                done: false,
            }));
        }
        found.into_iter().map(|difference| (difference.key(), difference)).collect()
    }

    fn put_right(&mut self, now: Timestamp, difference: &Difference) {
        let Difference { kind, provider, host, handle, owner, why, .. } = difference;
        let Some(host) = host else { return };
        let named = handle.as_deref().unwrap_or(host.as_str());
        match (kind, handle) {
            (DifferenceKind::Orphan | DifferenceKind::Foreign, Some(handle)) => {
                self.note(Level::Warn, format!("audit: {named} of {}: {why}; terminating it", provider.as_str()));
                let owner = owner.clone().map_or(Owner::Ours, Owner::Foreign);
                let (host, handle) = (host.clone(), handle.clone());
                let listed = ListedHost { host, handle, identity: None, owner, suspended: false };
                if *kind == DifferenceKind::Orphan {
                    self.report_orphan(now, *provider, &listed, true);
                }
                self.terminate_orphan(now, *provider, listed);
            }
            (DifferenceKind::Missing, _) => {
                self.note(Level::Warn, format!("audit: host {host} ({named} of {}): {why}", provider.as_str()));
                self.on_host_gone(now, host, "its provider no longer lists it", false);
            }
            (DifferenceKind::Running, _) => self.suspend_anew(now, host),
            (DifferenceKind::Orphan | DifferenceKind::Foreign, None) | (DifferenceKind::ListFailed, _) => {}
        }
    }

    fn answer_audit(&mut self, request: RequestId, audit: &Audit, found: BTreeMap<Key, Difference>) {
        self.timers.clear(&Timer::AuditRound(request));
        self.timers.clear(&Timer::AuditOver(request));
        let whole = |provider: &ProviderKind| matches!(audit.lists.get(provider), Some(Some(Ok(listing))) if listing.unlisted.is_empty());
        let acted = audit.acted.iter().filter(|(key, _)| !found.contains_key(key));
        // If the last list failed, the state of the difference is unknown.
        let mut differences: Vec<_> =
            acted.map(|(_, d)| Difference { done: whole(&d.provider), ..d.clone() }).collect();
        differences.extend(found.into_iter().map(|(key, mut difference)| {
            if audit.acted.contains_key(&key) {
                difference.why.push_str("; it is being terminated and is still there");
            }
            difference
        }));
        differences.sort_by_key(Difference::key);
        let machines = |list: &List| list.as_ref().map_or(0, |listing| listing.machines.len());
        let listed = audit.lists.values().flatten().map(machines).sum();
        let report = AuditReport { differences, hosts: self.hosts.len(), listed };
        self.reply(request, Reply::Audit(Box::new(report)));
    }

    /// The numbers of orphans and of foreign machines, as they were last listed.
    pub fn foreign_counts(&self) -> (usize, usize) {
        (self.orphans.len(), self.foreign_machines.len())
    }
}

/// Whether nothing is known of what is in this place.
fn hides(unlisted: &[UnlistedPlace], place: &str) -> bool {
    unlisted.iter().any(|other| other.place.as_deref().is_none_or(|name| name == place))
}

impl LiveHost {
    /// Whether every list of this provider must have the host by now.
    fn should_be_listed(&self, now: Timestamp, provider: ProviderKind) -> bool {
        // If the start was never answered, the attached agent proves that the machine exists.
        let there = self.host.booted.or(self.host.attached);
        let old = there.is_some_and(|since| now.since(since) >= ORPHAN_AGE);
        self.host.provider == provider && !self.phase.may_be_starting() && old
    }
}
