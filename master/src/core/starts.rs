//! Orders hosts and starts them: the intent is committed, then the order, and only then is the provider called.

use super::audit::ORPHAN_AGE;
use super::event::{Effect, Level, StartError, Started};
use super::hosts::{Fault, repeat_pause};
use super::plan::ProviderKind;
use super::record::{Host, HostState, LaunchSpec};
use super::timers::Timer;
use super::{Core, LiveHost, Timestamp};
use rouse_shared::{BuildId, HostId, WorkerName};
use std::time::Duration;

impl LiveHost {
    pub(super) fn in_doubt(&self, now: Timestamp) -> bool {
        self.host.handle.is_none() && self.doubt.is_some_and(|until| until > now)
    }
}

impl Core {
    /// Orders a host for a worker that has none. The intent is committed before the provider hears of it.
    pub(super) fn order_host(&mut self, now: Timestamp, worker: &WorkerName, started_for: Option<BuildId>) -> HostId {
        let id = HostId(format!("h{}", self.random_hex(8)));
        let token = self.random_hex(24);
        let plan = self.workers.get(worker).and_then(|w| w.plan.clone());
        let latent = plan.as_ref().and_then(|p| p.latent.as_ref());
        let provider = latent.map_or(ProviderKind::Process, |l| l.provider);
        let host = Host {
            id: id.clone(),
            worker: worker.clone(),
            provider,
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
            uses: 0,
            started_for,
            why: None,
            console: None,
            cost: None,
        };
        self.out.push(Effect::PrepareHost { host: Box::new(host.clone()), number: 0 });
        let patience = plan.map_or(Duration::from_secs(1_200), |p| p.missing_timeout);
        self.timers.set(Timer::Boot(id.clone()), now + patience);
        let live = LiveHost {
            host,
            preparing: Some(0),
            starting: false,
            suspending: false,
            start_tries: 0,
            trouble: None,
            doubt: None,
            terminate_tries: 0,
            given_up: false,
            absent: 0,
            announced: None,
        };
        self.hosts.insert(id.clone(), live);
        if let Some(w) = self.workers.get_mut(worker) {
            w.host = Some(id.clone());
        }
        self.touch_host(&id);
        self.touch_worker(worker);
        id
    }

    /// What is to be ordered is known: it is committed, and then ordered.
    pub(super) fn on_prepared(
        &mut self,
        now: Timestamp,
        id: &HostId,
        number: u32,
        result: Result<LaunchSpec, StartError>,
    ) {
        let Some(live) = self.hosts.get_mut(id).filter(|l| l.preparing == Some(number)) else { return };
        live.preparing = None;
        if live.host.state != HostState::Ordered {
            return;
        }
        let host = live.host.clone();
        match result {
            Ok(order) if !self.image_admits(&host, &order.image) => {
                let why = format!("image {} is new: it waits until one of its first hosts has attached", order.image);
                let builds = self.queue.release(id);
                builds.into_iter().for_each(|build| self.touch_build(build));
                self.host_is_gone(now, id, &why);
            }
            Ok(order) => {
                let Some(live) = self.hosts.get_mut(id) else { return };
                live.host.identity.clone_from(&order.identity);
                live.host.launch = Some(order);
                live.start_tries = 0;
                live.trouble = None;
                live.starting = true;
                self.out.push(Effect::StartHost(Box::new(live.host.clone())));
            }
            Err(error) => self.start_failed(now, id, &error),
        }
        self.touch_host(id);
    }

    /// The provider was not able to make the machine, and that is certain.
    fn start_failed(&mut self, now: Timestamp, id: &HostId, error: &StartError) {
        let why = format!("the host could not be started: {}", error.text());
        let fault = match error {
            StartError::Rejected(_) | StartError::Auth(_) => Fault::Host,
            StartError::Capacity(_) | StartError::Transient(_) | StartError::Unknown(_) => Fault::Passing,
        };
        self.host_failed(now, id, &why, fault, None);
        self.host_is_gone(now, id, &why);
    }

    pub(super) fn on_start_ended(
        &mut self,
        now: Timestamp,
        id: &HostId,
        number: u32,
        result: Result<Started, StartError>,
    ) {
        let Some(live) = self.hosts.get_mut(id) else {
            // We gave it up, and it came all the same.
            if let Ok(started) = result {
                let text =
                    format!("host {id} was made after it was given up (as {}); the audit ends it", started.handle);
                self.note(Level::Warn, text);
            }
            return;
        };
        // Told twice, of an order that had no capacity and that another has taken the place of.
        if live.host.launch.as_ref().map(|o| o.number) != Some(number) && result.is_err() {
            return;
        }
        live.starting = false;
        let (worker, state) = (live.host.worker.clone(), live.host.state);
        let another = live.host.launch.as_ref().filter(|o| o.more).map(|o| o.number + 1);
        let mut identity = None;
        let result = result.map(|started: Started| {
            live.host.handle = Some(started.handle);
            live.doubt = None;
            identity = started.identity;
        });
        match (result, state) {
            (Ok(()), HostState::Ordered) => {
                live.host.state = HostState::Booting;
                live.host.booted = Some(now);
            }
            (Ok(()), HostState::Booting | HostState::Ready | HostState::Draining) => {
                live.host.booted.get_or_insert(now);
            }
            // The answer to a start that was repeated and has been suspended since.
            (_, HostState::Suspending | HostState::Suspended | HostState::Resuming) => {}
            (Ok(()), HostState::Terminating) => self.terminate_again(now, id),
            (Err(StartError::Unknown(why)), HostState::Ordered) => {
                live.doubt = Some(now + ORPHAN_AGE);
                self.ask_again(now, id, &worker, &why);
            }
            (Err(error), HostState::Ordered) if live.in_doubt(now) => self.ask_again(now, id, &worker, error.text()),
            // Of an earlier try it is not known whether it made the machine: that this one has not proves nothing.
            (Err(StartError::Transient(why) | StartError::Auth(why)), HostState::Ordered) if live.start_tries > 0 => {
                self.ask_again(now, id, &worker, &why);
            }
            (Err(StartError::Capacity(why)), HostState::Ordered) if another.is_some() => {
                live.preparing = another;
                let (host, number) = (Box::new(live.host.clone()), another.unwrap_or_default());
                self.out.push(Effect::PrepareHost { host, number });
                self.note(Level::Info, format!("no capacity for host {id} of {worker}: {why}; trying an alternative"));
            }
            (Err(error), HostState::Ordered) => self.start_failed(now, id, &error),
            // A repeated start of a host that has attached meanwhile, or that is being terminated anyway.
            (Err(_), HostState::Booting | HostState::Ready | HostState::Draining) => {}
            (Err(_), HostState::Terminating) => self.terminate_again(now, id),
            (_, HostState::Terminated) => {}
        }
        self.learn_identity(now, id, identity);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Whether the machine was made is not known: the same start is given again, word for word.
    fn ask_again(&mut self, now: Timestamp, id: &HostId, worker: &WorkerName, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.start_tries += 1;
        live.trouble = Some(why.to_owned());
        let pause = repeat_pause(live.start_tries);
        self.timers.set(Timer::StartRetry(id.clone()), now + pause);
        let text = format!("whether host {id} of {worker} was started is not known: {why}; asking again");
        self.note(Level::Warn, text);
    }

    pub(super) fn start_again(&mut self, id: &HostId) {
        let idle = |l: &&mut LiveHost| l.host.state == HostState::Ordered && !l.starting && l.preparing.is_none();
        if let Some(live) = self.hosts.get_mut(id).filter(idle) {
            live.starting = true;
            self.out.push(Effect::StartHost(Box::new(live.host.clone())));
        }
    }
}
