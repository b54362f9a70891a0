//! Orders and starts hosts. First the host is committed, then its launch spec, and only then does the driver call the
//! provider to start it.

use super::LiveHost;
use super::failure::Fault;
use super::phase::{HostEvent, Phase, StartOutcome};
use super::repeat_pause;
use crate::core::audit::ORPHAN_AGE;
use crate::core::event::{Effect, Level, StartError, Started};
use crate::core::places::{Cause, PlaceKey};
use crate::core::plan::ProviderKind;
use crate::core::record::{Host, HostState, LaunchSpec};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::{BuildId, HostId, WorkerName};
use std::time::Duration;

impl LiveHost {
    /// What a failed start proves about the machine.
    fn outcome_of(&self, now: Timestamp, error: &StartError) -> StartOutcome {
        let why = error.text().to_owned();
        let another = self.host.launch.as_ref().filter(|o| o.more).map(|o| o.number + 1);
        match error {
            StartError::Unknown(_) => StartOutcome::Unclear { why },
            _ if self.may_still_be_made(now) => StartOutcome::Unclear { why },
            // Of an earlier call it is not known whether it made the machine: that this one has not proves nothing.
            StartError::Transient(_) | StartError::Place(_)
                if matches!(self.phase, Phase::Launching { tries: 1.., .. }) =>
            {
                StartOutcome::Unclear { why }
            }
            StartError::Capacity(_) | StartError::Quota(_) => {
                another.map_or(StartOutcome::NotMade, |next| StartOutcome::NoCapacity { next })
            }
            StartError::Rejected(_) | StartError::Transient(_) | StartError::Place(_) => StartOutcome::NotMade,
        }
    }
}

impl Core {
    /// Orders a host for a worker that has none. It is committed before the provider is called.
    pub(in crate::core) fn order_host(
        &mut self,
        now: Timestamp,
        worker: &WorkerName,
        started_for: Option<BuildId>,
    ) -> HostId {
        let id = HostId(format!("h{}", self.random_hex(8)));
        let token = self.random_hex(24);
        let plan = self.workers.get(worker).and_then(|w| w.plan.clone());
        let latent = plan.as_ref().and_then(|p| p.latent.as_ref());
        let provider = latent.map_or(ProviderKind::Process, |l| l.provider);
        let host = Host {
            id: id.clone(),
            worker: worker.clone(),
            provider,
            place: latent.map_or_else(String::new, |l| l.place.to_string()),
            handle: None,
            state: HostState::Ordered,
            image: latent.map_or_else(String::new, |l| l.image.to_string()),
            launch: None,
            token,
            identity: None,
            nonce: None,
            token_spent: false,
            fingerprint: latent.map_or(0, |l| l.fingerprint),
            created: now,
            booted: None,
            attached: None,
            suspended: None,
            resumed: None,
            paid: 0.0,
            terminated: None,
            forgotten: None,
            terminating: None,
            lingering_notified: None,
            uses: 0,
            started_for,
            why: None,
            console: None,
            cost: None,
        };
        let patience = plan.map_or(Duration::from_secs(1_200), |p| p.missing_timeout);
        self.timers.set(Timer::Boot(id.clone()), now + patience);
        let live = LiveHost {
            host,
            phase: Phase::Preparing { number: 0 },
            earlier_call_until: None,
            missing_from_lists: 0,
            reclaimed: false,
            not_terminated: None,
            chosen: None,
            published: None,
        };
        self.hosts.insert(id.clone(), live);
        self.prepare_host(now, &id, 0);
        if let Some(w) = self.workers.get_mut(worker) {
            w.host = Some(id.clone());
        }
        self.touch_host(&id);
        self.touch_worker(worker);
        id
    }

    /// Requests the computation of the launch spec, beginning with this alternative.
    pub(super) fn prepare_host(&mut self, now: Timestamp, id: &HostId, number: u32) {
        let Some(live) = self.hosts.get(id) else { return };
        let resting = self.resting(now, &live.host);
        self.out.push(Effect::PrepareHost { host: Box::new(live.host.clone()), number, resting });
    }

    /// The launch spec is known: it is committed, and then the machine is ordered.
    pub(in crate::core) fn on_prepared(
        &mut self,
        now: Timestamp,
        id: &HostId,
        number: u32,
        result: Result<LaunchSpec, StartError>,
    ) {
        let Some(live) = self.hosts.get(id) else { return };
        let (awaited, host) = (live.phase == Phase::Preparing { number }, live.host.clone());
        match result {
            Ok(order) if awaited && !self.image_admits(&host, &order.image) => {
                let why = format!(
                    "image {} is new: the start waits until one of the image's first hosts has attached",
                    order.image
                );
                let builds = self.queue.release(id);
                builds.into_iter().for_each(|build| self.touch_build(build));
                if let Some(before) = self.advance(id, &HostEvent::NotPrepared) {
                    self.host_went(now, id, &before, &why);
                }
            }
            Ok(order) => {
                if self.advance(id, &HostEvent::Prepared { number }).is_none() || !awaited {
                    return;
                }
                if let (Some(latent), Some(price)) = (self.latent_of(&host.worker), order.price) {
                    self.prices.insert(latent.template, price);
                }
                let Some(live) = self.hosts.get_mut(id) else { return };
                live.host.identity.clone_from(&order.identity);
                live.host.launch = Some(order);
                self.call(now, id);
            }
            Err(error) if awaited => {
                if let Some(before) = self.advance(id, &HostEvent::NotPrepared) {
                    self.start_failed(now, id, &before, &error);
                }
            }
            // A repeated or late answer.
            Err(_) => return,
        }
        self.touch_host(id);
    }

    /// The provider has definitely not created the machine.
    fn start_failed(&mut self, now: Timestamp, id: &HostId, before: &Phase, error: &StartError) {
        let why = format!("the host could not be started: {}", error.text());
        let fault = match error {
            StartError::Rejected(_) => Fault::Rejected,
            StartError::Capacity(_) => Fault::NoRoom { quota: false },
            StartError::Quota(_) => Fault::NoRoom { quota: true },
            StartError::Place(_) | StartError::Unknown(_) => Fault::Place,
            StartError::Transient(_) => Fault::Passing,
        };
        self.host_failed(now, id, &why, fault, None);
        self.host_went(now, id, before, &why);
    }

    pub(in crate::core) fn on_start_ended(
        &mut self,
        now: Timestamp,
        id: &HostId,
        number: u32,
        result: Result<Started, StartError>,
    ) {
        let Some(live) = self.hosts.get_mut(id) else {
            // The master has given the host up, and the machine was created nevertheless.
            if let Ok(started) = result {
                let text = format!(
                    "host {id} was started after it was given up (as {}); the audit terminates it",
                    started.handle
                );
                self.note(Level::Warn, text);
            }
            return;
        };
        // A repeated answer about an alternative without capacity, which another alternative has replaced.
        if live.host.launch.as_ref().map(|o| o.number) != Some(number) && result.is_err() {
            return;
        }
        let (worker, mut identity) = (live.host.worker.clone(), None);
        let (outcome, error) = match result {
            Ok(started) => {
                live.host.handle = Some(started.handle);
                live.earlier_call_until = None;
                identity = started.identity;
                (StartOutcome::Made, None)
            }
            Err(error) => {
                if let StartError::Unknown(_) = error {
                    live.earlier_call_until = Some(now + ORPHAN_AGE);
                }
                (live.outcome_of(now, &error), Some(error))
            }
        };
        let host = live.host.clone();
        let unclear = matches!(outcome, StartOutcome::Unclear { .. });
        let Some(before) = self.advance(id, &HostEvent::StartEnded(outcome)) else { return };
        self.learn_from_start(now, &host, error.as_ref(), unclear);
        self.start_advanced(now, id, &before, error);
        self.learn_identity(now, id, identity);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Applies what the answer to a start proves about its place and the alternative that was tried.
    fn learn_from_start(&mut self, now: Timestamp, host: &Host, error: Option<&StartError>, unclear: bool) {
        let place = PlaceKey::of_host(host);
        match error {
            None => {
                self.had_room(host);
                self.place_serves(now, &place);
            }
            // An earlier call may have made it all the same: this answer is about that one, if about any.
            Some(StartError::Capacity(_) | StartError::Quota(_)) if unclear => {}
            Some(StartError::Capacity(_)) => {
                self.no_room(now, host, false);
                self.place_serves(now, &place);
            }
            Some(StartError::Quota(_)) => self.no_room(now, host, true),
            Some(StartError::Unknown(why) | StartError::Place(why)) => {
                self.place_failed(now, &place, why, Cause::Start)
            }
            Some(StartError::Rejected(_)) => self.place_rejected(now, &place),
            Some(StartError::Transient(_)) => {}
        }
    }

    /// A call to start the host was answered, by `error` or with the machine, and has led here.
    fn start_advanced(&mut self, now: Timestamp, id: &HostId, before: &Phase, error: Option<StartError>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        let worker = &live.host.worker;
        match (&live.phase, error) {
            (Phase::Booting { .. } | Phase::Ready { .. } | Phase::Draining { .. }, None) => {
                live.host.booted.get_or_insert(now);
                // The place may have answered nothing for longer than an agent needs to attach.
                if matches!(before, Phase::Launching { tries: 1.., .. }) && matches!(live.phase, Phase::Booting { .. })
                {
                    let worker = worker.clone();
                    self.timers.set(Timer::Boot(id.clone()), now + self.boot_patience(&worker));
                }
            }
            (Phase::Launching { call: false, tries, .. }, Some(error)) => {
                let text =
                    format!("it is not known whether host {id} of {worker} was started: {}; retrying", error.text());
                self.timers.set(Timer::CallAgain(id.clone()), now + repeat_pause(*tries));
                self.note(Level::Warn, text);
            }
            (Phase::Preparing { number }, Some(error)) if matches!(before, Phase::Launching { .. }) => {
                let text = format!("no capacity for host {id} of {worker}: {}; trying an alternative", error.text());
                let number = *number;
                self.prepare_host(now, id, number);
                self.note(Level::Info, text);
            }
            (Phase::Terminated, Some(error)) if *before != Phase::Terminated => {
                self.start_failed(now, id, before, &error);
            }
            (Phase::Terminating { .. }, _) => self.terminate_after_call(now, id, before),
            // A repeated answer, or an answer for a host that has attached in the meantime.
            (Phase::Preparing { .. } | Phase::Launching { .. } | Phase::Booting { .. }, _) => {}
            (Phase::Ready { .. } | Phase::Draining { .. }, Some(_)) => {}
            (Phase::Suspending { .. } | Phase::Suspended | Phase::Resuming { .. } | Phase::Terminated, _) => {}
        }
    }
}
