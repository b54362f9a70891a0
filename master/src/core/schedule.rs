//! Assigns waiting builds to free workers, and starts hosts for the other builds.

use super::build::Requirement;
use super::event::{Change, Effect, WorkerState};
use super::host::LiveHost;
use super::images::ImageBudget;
use super::places::PlaceBudget;
use super::plan::{AmongEquals, LatentPlan, WorkerPlan};
use super::queue;
use super::record::{DesiredState, HostState};
use super::sessions::EndReason;
use super::timers::Timer;
use super::{Core, Timestamp, Worker};
use rouse_shared::message::ToAgent;
use rouse_shared::{BuildId, HostId, WorkerName};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// How many more hosts may be started, within one event.
#[derive(Default)]
struct Budget {
    images: ImageBudget,
    places: PlaceBudget,
}

impl Core {
    /// Updates the workers that the event has changed: which are free, which may be woken, which are idle, and what to
    /// publish.
    pub(super) fn refresh_workers(&mut self, now: Timestamp) -> BTreeSet<WorkerName> {
        let touched = std::mem::take(&mut self.pending.workers);
        for name in &touched {
            self.end_idle_session(now, name);
            let Some(worker) = self.workers.get(name) else { continue };
            if worker.removed && worker.session.is_none() && worker.host.is_none() && worker.attempts.is_empty() {
                self.forget_worker(name);
                continue;
            }
            if self.is_free(worker) {
                self.free.insert(name.clone());
                self.pending.freed.insert(name.clone());
            } else {
                self.free.remove(name);
            }
            let free = worker.host.is_none() || self.suspended_host_of(name).is_some();
            if free && is_wakeable(worker, now) {
                self.pending.wake |= self.wakeable.insert(name.clone());
            } else {
                self.wakeable.remove(name);
            }
            self.announce_worker(now, name);
        }
        touched
    }

    /// Ends the session of an agent whose machine the master did not start, if nothing runs on it and its worker is no
    /// longer a standing worker of the configuration, or has another password than the agent. Whoever has stolen a
    /// password does not keep the worker once the password has changed, and no build is lost.
    fn end_idle_session(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get(name) else { return };
        // An impostor's session lasts until its lease ends.
        if worker.session.is_none() || worker.host.is_some() || !worker.attempts.is_empty() || worker.is_impostor() {
            return;
        }
        if worker.removed {
            self.end_session(now, name, "its worker is no longer in the configuration", EndReason::Gone);
        } else if worker.plan.as_ref().is_some_and(|p| p.latent.is_some()) {
            self.end_session(now, name, "its worker is latent now", EndReason::Gone);
        } else if worker.has_old_password() {
            let reason = "the password of this worker has changed".to_owned();
            self.send(name, ToAgent::Refused { reason, power_off: false });
            self.end_session(now, name, "the password of its worker has changed", EndReason::Gone);
        }
    }

    fn announce_worker(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get(name) else { return };
        let state = self.worker_state(worker, now);
        if state == worker.state {
            return;
        }
        if let Some(worker) = self.workers.get_mut(name) {
            worker.state = state;
            worker.since = now;
        }
        self.out.push(Effect::Publish(Change::Worker { name: name.clone(), state, at: now }));
    }

    fn is_free(&self, worker: &Worker) -> bool {
        let (Some(plan), Some(live)) = (&worker.plan, worker.attached()) else { return false };
        let room = plan.max_builds.is_none_or(|most| worker.attempts.len() < most as usize);
        room && !worker.removed
            && worker.record.desired == DesiredState::Work
            && live.drain.is_none()
            && !live.leaving
            && !worker.has_old_password()
            && !live.held_until_message
            && worker.unfit().is_none()
            && match (&worker.host, &plan.latent) {
                (None, None) => true,
                (Some(host), Some(latent)) => self.hosts.get(host).is_some_and(|l| {
                    l.host.state == HostState::Ready
                        && (latent.max_uses == 0 || l.host.uses < latent.max_uses)
                        && l.host.fingerprint == latent.fingerprint
                }),
                // A reload has turned a standing worker into a latent one, or the other way round.
                (None, Some(_)) | (Some(_), None) => false,
            }
    }

    /// Assigns what can be assigned, and updates the hosts of the `touched` workers.
    pub(super) fn schedule(&mut self, now: Timestamp, touched: BTreeSet<WorkerName>) {
        let mut looked_at = touched;
        while let Some(name) = self.pending.freed.pop_first() {
            looked_at.insert(name.clone());
            self.fill(now, &name);
        }
        for requirement in std::mem::take(&mut self.pending.wanted) {
            while self.queue.classes.contains_key(&requirement) {
                let fits = |name: &&WorkerName| self.plan_of(name).is_some_and(|p| queue::matches(&requirement, p));
                let Some(name) = self.free.iter().find(fits).cloned() else { break };
                looked_at.insert(name.clone());
                // The worker takes a build or is no longer free, so this loop ends.
                self.fill(now, &name);
            }
        }
        if std::mem::take(&mut self.pending.wake) {
            self.wake(now);
        }
        looked_at.extend(self.pending.workers.iter().cloned());
        for name in &looked_at {
            self.watch_idle(now, name);
        }
        // Including the workers for which a host was ordered just now.
        looked_at.extend(self.pending.workers.iter().cloned());
        for name in looked_at {
            self.announce_worker(now, &name);
        }
    }

    /// Assigns builds to a worker until it is full or no build matches.
    fn fill(&mut self, now: Timestamp, name: &WorkerName) {
        loop {
            let Some(worker) = self.workers.get(name).filter(|w| self.is_free(w)) else {
                self.free.remove(name);
                return;
            };
            let Some(plan) = worker.plan.clone() else { return };
            let Some((requirement, rank)) = self.queue.best_for(&plan, worker.host.as_ref()) else { return };
            // Another starting host may have been kept for it: that one can be kept for the next.
            self.pending.wake |= self.queue.host_of(rank.1).is_some();
            self.assign(now, name, &requirement, rank);
        }
    }

    /// Reserves starting hosts for waiting builds, and starts more if there are not enough.
    fn wake(&mut self, now: Timestamp) {
        // While the broker is away no agent could attach, so a host would only cost money.
        if !self.broker_up {
            return;
        }
        let mut budget = Budget::default();
        let classes: Vec<_> = self.queue.classes.keys().cloned().collect();
        for requirement in classes {
            while let Some(rank) = self.queue.classes.get(&requirement).and_then(|c| c.unreserved.first().copied()) {
                let kept = self.starting_with_room(&requirement);
                let host = match kept {
                    Some(host) => host,
                    None => {
                        let Some((name, chosen)) = self.choose(now, &requirement, &mut budget) else { break };
                        if !self.may_start_one() || !self.may_spend_or_wait(now) {
                            break;
                        }
                        let host = self.wake_or_order(now, &name, Some(rank.1), &mut budget);
                        if let Some(live) = self.hosts.get_mut(&host) {
                            live.chosen = chosen;
                        }
                        host
                    }
                };
                self.queue.reserve(&requirement, rank, &host);
                self.touch_build(rank.1);
            }
        }
        self.keep_idle(now);
    }

    /// The worker to be woken for a requirement, and why it rather than one of another template. One whose last host
    /// failed is only tried if nobody else is left.
    fn choose(
        &self,
        now: Timestamp,
        requirement: &Requirement,
        budget: &mut Budget,
    ) -> Option<(WorkerName, Option<String>)> {
        let among = self.plan.among_equals;
        let mut best: Option<(_, &WorkerName, &LatentPlan)> = None;
        let (mut templates, mut preferences) = (BTreeSet::new(), BTreeSet::new());
        for name in &self.wakeable {
            let Some(plan) = self.plan_of(name).filter(|plan| queue::matches(requirement, plan)) else { continue };
            let Some(latent) = plan.latent.as_ref() else { continue };
            if !self.may_wake(now, name, budget) {
                continue;
            }
            templates.insert(&latent.template);
            preferences.insert(latent.prefer);
            let failures = self.workers.get(name).map_or(0, |worker| worker.record.failures);
            let hosts = || self.hosts_of(&latent.template);
            let order = match among {
                AmongEquals::Pack => u64::MAX - hosts(),
                AmongEquals::Spread => hosts(),
                AmongEquals::Cheapest => self.price_of(latent),
            };
            let suspended = self.suspended_host_of(name).is_some();
            let key = (failures > 0, Reverse(latent.prefer), !suspended, failures, order);
            if best.as_ref().is_none_or(|(least, _, _)| key < *least) {
                best = Some((key, name, latent));
            }
        }
        let (_, name, latent) = best?;
        let chosen = match (templates.len(), preferences.len()) {
            (..=1, _) => None,
            (_, ..=1) => Some(format!("among_equals = \"{}\"", among.as_str())),
            (_, _) => Some(format!("prefer = {}", latent.prefer)),
        };
        Some((name.clone(), chosen))
    }

    /// Hosts of a template that are not gone.
    fn hosts_of(&self, template: &str) -> u64 {
        let of = |live: &&LiveHost| {
            self.plan_of(&live.host.worker).and_then(|p| p.latent.as_ref()).is_some_and(|l| l.template == *template)
        };
        self.hosts.values().filter(of).count() as u64
    }

    /// Price in millionths of a USD per hour: the last one that the provider reported, otherwise the one in the
    /// configuration. What is not known is dear.
    fn price_of(&self, latent: &LatentPlan) -> u64 {
        let price = self.prices.get(&latent.template).copied().or(latent.price);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is above zero, and saturates")]
        price.map_or(u64::MAX, |price| (price.max(0.0) * 1e6) as u64)
    }

    /// Whether a host of the worker can be had now: one that is suspended, or a new one of its image.
    fn may_wake(&self, now: Timestamp, name: &WorkerName, budget: &mut Budget) -> bool {
        self.place_may_start(now, name, &mut budget.places)
            && (self.suspended_host_of(name).is_some() || self.image_may_start(now, name, &mut budget.images))
    }

    fn wake_or_order(
        &mut self,
        now: Timestamp,
        name: &WorkerName,
        started_for: Option<BuildId>,
        budget: &mut Budget,
    ) -> HostId {
        self.wakeable.remove(name);
        self.use_place_budget(name, &mut budget.places);
        if let Some(id) = self.suspended_host_of(name) {
            self.resume_host(now, &id, started_for);
            return id;
        }
        self.use_image_budget(name, &mut budget.images);
        self.order_host(now, name, started_for)
    }

    fn starting_with_room(&self, requirement: &Requirement) -> Option<HostId> {
        self.starting().find_map(|(id, plan)| {
            let room = plan.max_builds.is_none_or(|most| self.queue.reserved_on(id) < most as usize)
                && plan
                    .latent
                    .as_ref()
                    .is_some_and(|l| l.max_uses == 0 || self.queue.reserved_on(id) < l.max_uses as usize);
            (room && queue::matches(requirement, plan)).then(|| id.clone())
        })
    }

    fn starting(&self) -> impl Iterator<Item = (&HostId, &WorkerPlan)> {
        self.hosts.iter().filter_map(|(id, live)| {
            let starts = live.host.state.is_starting();
            let worker =
                self.workers.get(&live.host.worker).filter(|w| w.record.desired == DesiredState::Work && !w.removed)?;
            let plan = worker.plan.as_deref()?;
            starts.then_some((id, plan))
        })
    }

    /// Whether `limits.max_hosts` leaves room for one more. Every host counts until its provider reports that it is
    /// gone or suspended (suspended hosts must not keep the builds of other workers waiting). The ledger knows each
    /// before it is made, so nobody has to be asked.
    pub(super) fn may_start_one(&self) -> bool {
        let Some(most) = self.plan.max_hosts else { return true };
        // Hosts that this event found to be gone are removed only at its end.
        let rests = |l: &&LiveHost| l.host.state == HostState::Terminated || l.host.suspended.is_some();
        self.hosts.values().filter(|l| !rests(l)).count() < most as usize
    }

    /// Starts hosts until each template has its `min_idle`.
    fn keep_idle(&mut self, now: Timestamp) {
        if !self.broker_up {
            return;
        }
        let wanted: BTreeSet<(String, u32)> = self
            .plan
            .workers
            .values()
            .filter_map(|w| w.latent.as_ref())
            .filter(|l| l.min_idle > 0)
            .map(|l| (l.template.clone(), l.min_idle))
            .collect();
        let mut budget = Budget::default();
        for (template, min_idle) in wanted {
            while self.idle_of(&template) < min_idle && self.may_start_one() && self.may_spend_or_wait(now) {
                let of = |name: &&WorkerName| {
                    self.plan_of(name).and_then(|p| p.latent.as_ref()).is_some_and(|l| l.template == template)
                };
                let mut may = |name: &&WorkerName| of(name) && self.may_wake(now, name, &mut budget);
                let awake = |name: &&WorkerName| self.suspended_host_of(name).is_none();
                let Some(name) = self.wakeable.iter().filter(|n| may(n)).min_by_key(awake).cloned() else { break };
                self.wake_or_order(now, &name, None, &mut budget);
            }
        }
    }

    /// Starts or clears the worker's idle timer, and drains a host that is not to be used again.
    fn watch_idle(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get(name) else { return };
        let Some(live) = self.host_of(worker) else { return };
        let id = live.host.id.clone();
        if live.host.state != HostState::Ready {
            return;
        }
        if !worker.attempts.is_empty() {
            return self.timers.clear(&Timer::Idle(id));
        }
        let Some(latent) = worker.plan.as_ref().and_then(|p| p.latent.clone()) else {
            return self.drain_host(&id, "its worker is no longer latent");
        };
        if worker.removed {
            self.drain_host(&id, "its worker is no longer in the configuration");
        } else if worker.record.desired == DesiredState::Drain {
            self.drain_host(&id, "an operator asked for it");
        } else if latent.max_uses > 0 && live.host.uses >= latent.max_uses {
            self.drain_host(&id, "it has had its max_uses builds");
        } else if live.host.fingerprint != latent.fingerprint {
            self.drain_host(&id, "it was started with an older configuration");
        } else if let Some(timeout) = latent.build_wait_timeout {
            self.timers.set_once(Timer::Idle(id), now + timeout);
        } else {
            self.timers.clear(&Timer::Idle(id));
        }
        // The worker was idle and now works, so it no longer counts for `min_idle`.
        if latent.min_idle > 0 {
            self.keep_idle(now);
        }
    }

    /// The state of a worker, for people.
    pub(super) fn worker_state(&self, worker: &Worker, now: Timestamp) -> WorkerState {
        let record = &worker.record;
        let busy = !worker.attempts.is_empty();
        let host = self.host_of(worker).map(|l| l.host.state);
        let attached = || match (record.desired, busy) {
            (DesiredState::Drain, true) => WorkerState::Draining,
            (DesiredState::Work, true) | (DesiredState::Pause, true) => WorkerState::Busy,
            (DesiredState::Work, false) => WorkerState::Idle,
            (DesiredState::Pause | DesiredState::Drain, false) => WorkerState::Paused,
        };
        match host {
            Some(HostState::Ordered | HostState::Resuming | HostState::Booting) => WorkerState::Starting,
            Some(HostState::Draining | HostState::Suspending | HostState::Terminating | HostState::Terminated) => {
                WorkerState::Draining
            }
            Some(HostState::Ready) if worker.attached().is_some() => attached(),
            Some(HostState::Ready) => WorkerState::Offline,
            None | Some(HostState::Suspended) if worker.attached().is_some() => attached(),
            None | Some(HostState::Suspended) if record.backoff_until.is_some_and(|until| until > now) => {
                WorkerState::Backoff
            }
            None | Some(HostState::Suspended) if self.image_until(worker, now).is_some() => WorkerState::Backoff,
            None | Some(HostState::Suspended) if self.place_until(worker, now).is_some() => WorkerState::Backoff,
            None | Some(HostState::Suspended) if record.missing_since.is_some() => WorkerState::Missing,
            None | Some(HostState::Suspended) if record.desired != DesiredState::Work => WorkerState::Paused,
            None | Some(HostState::Suspended) if worker.standing() => WorkerState::Offline,
            None | Some(HostState::Suspended) => WorkerState::Asleep,
        }
    }
}

/// Whether a host may be started for the worker now: it has none, or only a suspended one.
fn is_wakeable(worker: &Worker, now: Timestamp) -> bool {
    let latent = worker.plan.as_ref().is_some_and(|p| p.latent.is_some());
    latent
        && !worker.removed
        && worker.session.is_none()
        && worker.attempts.is_empty()
        && worker.record.desired == DesiredState::Work
        && worker.record.backoff_until.is_none_or(|until| until <= now)
}
