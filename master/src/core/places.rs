//! Places. A place is where hosts may all fail for the same reason: one region with one account, one hypervisor, one
//! cloud. A place that refuses all orders, or that cannot be queried, **pauses**: no host is started there until the
//! next probe. Terminations, lists and audits continue. A pause does not count as a failure of a build, a worker or an
//! image, and it ends by itself.
//!
//! A probe is a list, and one start if a build waits for the place.

use super::event::{Effect, Level, UnlistedPlace};
use super::host::doubled;
use super::mail::What;
use super::plan::{ProviderKind, WorkerPlan};
use super::record::{Host, HostState, Record};
use super::timers::Timer;
use super::view::{PlaceState, PlaceView};
use super::{Core, Timestamp, Worker};
use rouse_shared::WorkerName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Before the first probe of a place that has just begun to refuse; doubled with each probe that fails.
const PROBE_FIRST: Duration = Duration::from_secs(5);
/// Longest time between two probes.
const PROBE_MOST: Duration = Duration::from_secs(300);
/// If a pause has lasted this long, the master sends a mail.
const MAIL_AFTER: Duration = Duration::from_secs(120);

/// A place: its provider, and its name in the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PlaceKey {
    /// The provider of the hosts there.
    pub provider: ProviderKind,
    /// [`super::plan::LatentPlan::place`].
    pub name: Arc<str>,
}

impl std::fmt::Display for PlaceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.provider.as_str())
    }
}

/// The pause of a place. Its default is a place that does not pause.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PlaceRecord {
    /// Refusals in a row: the first, and each probe since.
    pub failures: u32,
    /// When the pause began.
    pub since: Option<Timestamp>,
    /// The next probe.
    pub until: Option<Timestamp>,
    /// The newest refusal, in a sentence.
    pub reason: Option<String>,
    /// Whether the place could not be listed during this pause: then a list proves that it is over.
    pub unlisted: bool,
    /// Whether it pauses because each of its workers was refused a host. Then another such refusal proves nothing.
    pub all_rejected: bool,
    /// Who was notified of the pause, and is notified of its end too; absent until it has lasted for two minutes.
    pub notified: Option<BTreeSet<String>>,
}

/// Why a place is paused, or remains paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// A call to start or resume a host.
    Start,
    /// It could not be listed.
    List,
    /// Each of its workers is refused a host.
    AllRejected,
}

/// How many more hosts may be started in each place, within one event.
#[derive(Default)]
pub(super) struct PlaceBudget(BTreeMap<PlaceKey, usize>);

impl PlaceKey {
    /// Its id in commands and in the API: a provider, and eight hexadecimal digits that are computed from its name.
    pub fn id(&self) -> String {
        let hash: [u8; 32] = Sha256::digest(self.name.as_bytes()).into();
        format!("{}-{}", self.provider.as_str(), hex::encode(&hash[..4]))
    }

    fn of_plan(plan: &WorkerPlan) -> Option<Self> {
        let latent = plan.latent.as_ref()?;
        Some(Self { provider: latent.provider, name: latent.place.clone() })
    }

    pub(super) fn of_host(host: &Host) -> Self {
        Self { provider: host.provider, name: host.place.as_str().into() }
    }
}

impl Core {
    pub(super) fn place_of(&self, worker: &WorkerName) -> Option<PlaceKey> {
        PlaceKey::of_plan(self.plan_of(worker)?)
    }

    /// Every place that a host of this master may be in, according to configuration and ledger.
    pub(super) fn all_places(&self) -> BTreeSet<PlaceKey> {
        let configured = self.plan.workers.values().filter_map(|plan| PlaceKey::of_plan(plan));
        let hosts = self.hosts.values().map(|live| PlaceKey::of_host(&live.host));
        configured.chain(hosts).chain(self.places.keys().cloned()).collect()
    }

    /// Hosts in a place whose call to start or to resume them is not answered.
    fn starting_in(&self, key: &PlaceKey) -> usize {
        let starts = |host: &&Host| {
            matches!(host.state, HostState::Ordered | HostState::Resuming)
                && host.provider == key.provider
                && *host.place == *key.name
        };
        self.hosts.values().map(|live| &live.host).filter(starts).count()
    }

    /// Whether one more host may be started in the place of a worker now. While the place is paused, only one at a time
    /// may be started, as a probe.
    pub(super) fn place_may_start(&self, now: Timestamp, worker: &WorkerName, budget: &mut PlaceBudget) -> bool {
        let Some(key) = self.place_of(worker) else { return true };
        let left = budget.0.entry(key).or_insert_with_key(|key| match self.places.get(key) {
            None => usize::MAX,
            Some(record) if record.until.is_some_and(|until| until > now) => 0,
            Some(_) => 1_usize.saturating_sub(self.starting_in(key)),
        });
        *left > 0
    }

    pub(super) fn use_place_budget(&self, worker: &WorkerName, budget: &mut PlaceBudget) {
        if let Some(left) = self.place_of(worker).and_then(|key| budget.0.get_mut(&key)) {
            *left = left.saturating_sub(1);
        }
    }

    /// The pause of a worker's place.
    pub(super) fn pause_of(&self, worker: &Worker) -> Option<(&PlaceKey, &PlaceRecord)> {
        let key = PlaceKey::of_plan(worker.plan.as_deref()?)?;
        self.places.get_key_value(&key)
    }

    /// Until when the place of a worker starts nothing.
    pub(super) fn place_until(&self, worker: &Worker, now: Timestamp) -> Option<Timestamp> {
        self.pause_of(worker)?.1.until.filter(|until| *until > now)
    }

    /// A place has refused a call, or could not be queried. Calls that were under way when the pause began prove
    /// nothing new.
    pub(super) fn place_failed(&mut self, now: Timestamp, key: &PlaceKey, why: &str, cause: Cause) {
        let jitter = self.jitter();
        let before = self.places.get(key).cloned();
        let record = self.places.entry(key.clone()).or_default();
        record.unlisted |= cause == Cause::List;
        record.all_rejected = cause == Cause::AllRejected;
        record.reason = Some(why.to_owned());
        let since = *record.since.get_or_insert(now);
        if record.until.is_none_or(|until| until <= now) {
            let pause = doubled(PROBE_FIRST, PROBE_MOST, record.failures).mul_f64(jitter).min(PROBE_MOST);
            record.failures = record.failures.saturating_add(1);
            record.until = Some(now + pause);
            self.timers.set(Timer::Place(key.clone()), now + pause);
        }
        if record.notified.is_none() {
            self.timers.set_once(Timer::PlaceMail(key.clone()), since + MAIL_AFTER);
        }
        self.heard_places.insert(key.clone());
        if before.is_none() {
            self.note(Level::Warn, format!("no hosts are started in {key} for now: {why}"));
        }
        if self.places.get(key) != before.as_ref() {
            self.touch_workers_in(key);
            self.save_place(key);
        }
    }

    /// A place has been listed completely.
    pub(super) fn place_listed(&mut self, now: Timestamp, key: &PlaceKey) {
        self.heard_places.insert(key.clone());
        if self.places.get(key).is_some_and(|record| record.unlisted) {
            self.place_recovered(now, key);
        }
    }

    /// A place has created or resumed a host, or has refused only this one.
    pub(super) fn place_serves(&mut self, now: Timestamp, key: &PlaceKey) {
        self.heard_places.insert(key.clone());
        if self.places.contains_key(key) {
            self.place_recovered(now, key);
        }
    }

    /// A provider has listed its places, except `unlisted`.
    pub(super) fn hear_places(&mut self, now: Timestamp, provider: ProviderKind, unlisted: &[UnlistedPlace]) {
        let named = unlisted.iter().filter_map(|place| Some((place.place.as_deref()?, &place.why)));
        let of = |name: &str| PlaceKey { provider, name: name.into() };
        for (key, why) in named.clone().map(|(name, why)| (of(name), why)) {
            let why = format!("its hosts could not be listed: {why}");
            self.place_failed(now, &key, &why, Cause::List);
        }
        let any = unlisted.iter().find(|place| place.place.is_none());
        let others: Vec<PlaceKey> = self
            .all_places()
            .into_iter()
            .filter(|key| key.provider == provider && named.clone().all(|(name, _)| name != &*key.name))
            .collect();
        for key in others {
            match any {
                None => self.place_listed(now, &key),
                Some(UnlistedPlace { why, .. }) => {
                    let why = format!("its hosts could not be listed: {why}");
                    self.place_failed(now, &key, &why, Cause::List);
                }
            }
        }
    }

    fn place_recovered(&mut self, now: Timestamp, key: &PlaceKey) {
        let Some(record) = self.places.remove(key) else { return };
        self.timers.clear(&Timer::Place(key.clone()));
        self.timers.clear(&Timer::PlaceMail(key.clone()));
        let since = record.since.unwrap_or(now);
        self.note(Level::Info, format!("hosts are started in {key} again, after {} s", now.since(since).as_secs()));
        if let Some(to) = record.notified {
            let what = What::PlaceBack { provider: key.provider, place: key.name.to_string(), since };
            self.report(now, to, what);
        }
        self.pending.wake = true;
        self.save_place(key);
        self.touch_workers_in(key);
    }

    /// The next probe of a place is due.
    pub(super) fn on_place(&mut self, now: Timestamp, key: &PlaceKey) {
        let Some(record) = self.places.get(key) else { return };
        let overdue = record.until.is_none_or(|until| now.since(until) >= PROBE_MOST);
        // Lists have worked all the time, and nobody has needed a host since the last probe was due.
        if !record.unlisted && overdue && self.starting_in(key) == 0 {
            return self.place_recovered(now, key);
        }
        self.timers.set(Timer::Place(key.clone()), now + PROBE_MOST);
        if !self.listing.contains(&key.provider) {
            self.list_hosts(key.provider);
        }
        self.pending.wake = true;
        self.touch_workers_in(key);
    }

    /// The pause has lasted long enough to be reported to people.
    pub(super) fn on_place_mail(&mut self, now: Timestamp, key: &PlaceKey) {
        let to = self.recipients_of(key);
        let Some(record) = self.places.get_mut(key).filter(|record| record.notified.is_none()) else { return };
        record.notified = Some(to.clone());
        let what = What::PlacePaused {
            provider: key.provider,
            place: key.name.to_string(),
            why: record.reason.clone().unwrap_or_default(),
            since: record.since.unwrap_or(now),
        };
        self.report(now, to, what);
        self.save_place(key);
    }

    /// The recipients of all mail; if there are none, those of mail about the workers of the place.
    pub(super) fn recipients_of(&self, key: &PlaceKey) -> BTreeSet<String> {
        let to = self.plan.mail.extra_recipients.clone();
        if !to.is_empty() {
            return to;
        }
        let there = |plan: &&Arc<WorkerPlan>| PlaceKey::of_plan(plan).as_ref() == Some(key);
        self.plan.workers.values().filter(there).flat_map(|plan| plan.notify_on_missing.iter().cloned()).collect()
    }

    /// A place has rejected the order of a host, so the place itself answers.
    pub(super) fn place_rejected(&mut self, now: Timestamp, key: &PlaceKey) {
        if self.places.get(key).is_none_or(|record| !record.all_rejected) {
            self.place_serves(now, key);
        }
    }

    /// An operator has resumed a worker: its place is probed at once.
    pub(super) fn probe_place_now(&mut self, now: Timestamp, worker: &WorkerName) {
        let Some(key) = self.place_of(worker) else { return };
        let Some(record) = self.places.get_mut(&key) else { return };
        record.until = Some(now);
        self.save_place(&key);
        self.on_place(now, &key);
    }

    /// The place is no longer to be reported.
    pub(super) fn forget_place(&mut self, key: &PlaceKey) {
        if self.places.remove(key).is_some() {
            self.timers.clear(&Timer::Place(key.clone()));
            self.timers.clear(&Timer::PlaceMail(key.clone()));
            self.save_place(key);
        }
        self.heard_places.remove(key);
    }

    /// Ends the pause of a place that is neither in the configuration nor has hosts.
    pub(super) fn forget_unused_places(&mut self) {
        let configured = self.plan.workers.values().filter_map(|plan| PlaceKey::of_plan(plan));
        let hosts = self.hosts.values().map(|live| PlaceKey::of_host(&live.host));
        let used: BTreeSet<PlaceKey> = configured.chain(hosts).collect();
        let unused: Vec<PlaceKey> = self.places.keys().filter(|key| !used.contains(key)).cloned().collect();
        unused.iter().for_each(|key| self.forget_place(key));
    }

    pub(super) fn restore_places(&mut self, now: Timestamp, places: Vec<(PlaceKey, PlaceRecord)>) {
        for (key, mut record) in places {
            // The clock may have been set back since.
            let until = record.until.map_or(now, |until| until.min(now + PROBE_MOST));
            record.until = Some(until);
            let since = record.since.map_or(now, |since| since.min(now));
            record.since = Some(since);
            self.timers.set(Timer::Place(key.clone()), until);
            if record.notified.is_none() {
                self.timers.set(Timer::PlaceMail(key.clone()), since + MAIL_AFTER);
            }
            self.places.insert(key, record);
        }
    }

    fn save_place(&mut self, key: &PlaceKey) {
        let record = self.places.get(key).cloned().unwrap_or_default();
        self.out.push(Effect::Save(Record::Place(key.clone(), record)));
    }

    fn touch_workers_in(&mut self, key: &PlaceKey) {
        let there = |worker: &Worker| worker.plan.as_deref().and_then(PlaceKey::of_plan).as_ref() == Some(key);
        let names = self.workers.iter().filter(|(_, worker)| there(worker)).map(|(name, _)| name.clone());
        self.pending.workers.extend(names);
    }

    /// Every place, by provider and name.
    pub fn place_views(&self) -> Vec<PlaceView> {
        let all = self.all_places().into_iter();
        all.map(|key| {
            let record = self.places.get(&key);
            let state = match record {
                Some(_) => PlaceState::Pausing,
                None if self.heard_places.contains(&key) => PlaceState::Healthy,
                None => PlaceState::Unknown,
            };
            PlaceView {
                id: key.id(),
                state,
                hosts: self.hosts.values().filter(|live| PlaceKey::of_host(&live.host) == key).count(),
                reason: record.and_then(|r| r.reason.clone()),
                since: record.and_then(|r| r.since),
                next_probe: record.and_then(|r| r.until),
                provider: key.provider,
                name: key.name.to_string(),
            }
        })
        .collect()
    }
}
