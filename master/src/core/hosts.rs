//! The life of a host: `Ordered -> Booting -> Awake -> Draining -> Stopping -> Gone`, and what sleeps
//! ([`super::sleep`]). Nothing is ever left running: stopping repeats until the provider says gone, and
//! [`super::audit`] finds what the ledger does not know.

use super::audit::ORPHAN_AGE;
use super::build::FailedHost;
use super::event::{Effect, Level, StartError, Started, Stopped};
use super::plan::{LatentPlan, ProviderKind};
use super::record::{Host, HostState, Order, Record, Wish};
use super::timers::Timer;
use super::{Core, LiveHost, Timestamp};
use rouse_shared::{BuildId, HostId, WorkerName};
use std::time::Duration;

/// First pause after a failed start; doubled with each further one in a row, up to [`BACKOFF_MOST`].
pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(15);
/// Longest pause between failed starts.
pub(super) const BACKOFF_MOST: Duration = Duration::from_secs(1_800);
/// First pause before a start with an unknown result, or a stop that failed, is repeated; doubled up to a minute.
const REPEAT_FIRST: Duration = Duration::from_secs(2);
/// Longest pause before a call is repeated.
const REPEAT_MOST: Duration = Duration::from_secs(60);
/// How often an idle host that is kept for `min_idle` is looked at again: another may have become idle meanwhile.
const SPARE_AGAIN: Duration = Duration::from_secs(10);
/// How long what a host printed is waited for before the host is stopped without it.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(20);

/// `first`, doubled so many times, `most` at most.
pub(super) fn doubled(first: Duration, most: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// The pause before a call that was made so many times is repeated.
pub(super) fn repeat_pause(tries: u32) -> Duration {
    doubled(REPEAT_FIRST, REPEAT_MOST, tries.min(8))
}

/// The longest pause that so many failures in a row lead to, jitter included.
pub(super) fn longest_pause(failures: u32) -> Duration {
    doubled(BACKOFF_FIRST, BACKOFF_MOST, failures.saturating_sub(1)).mul_f64(1.2)
}

impl LiveHost {
    fn in_doubt(&self, now: Timestamp) -> bool {
        self.host.handle.is_none() && self.doubt.is_some_and(|until| until > now)
    }
}

/// Whose fault a failed start is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Its image's, its worker's or its configuration's: it counts for quarantine, and against the builds that waited.
    Host,
    /// The provider's, for now: no capacity, no answer.
    Passing,
    /// Ours: the master or the broker was away.
    Outage,
}

impl Core {
    /// Orders a host for a worker that has none. The intent is committed before the provider hears of it.
    pub(super) fn order_host(&mut self, now: Timestamp, worker: &WorkerName, woken_for: Option<BuildId>) -> HostId {
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
            order: None,
            token,
            identity: None,
            nonce: None,
            token_spent: false,
            fingerprint: latent.map_or(0, |l| l.fingerprint),
            created: now,
            booted: None,
            attached: None,
            asleep: None,
            woken: None,
            paid: 0.0,
            gone: None,
            uses: 0,
            woken_for,
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
            stop_tries: 0,
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
    pub(super) fn on_prepared(&mut self, now: Timestamp, id: &HostId, number: u32, result: Result<Order, StartError>) {
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
                live.host.order = Some(order);
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
        if live.host.order.as_ref().map(|o| o.number) != Some(number) && result.is_err() {
            return;
        }
        live.starting = false;
        let (worker, state) = (live.host.worker.clone(), live.host.state);
        let another = live.host.order.as_ref().filter(|o| o.more).map(|o| o.number + 1);
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
            (Ok(()), HostState::Booting | HostState::Awake | HostState::Draining) => {
                live.host.booted.get_or_insert(now);
            }
            // The answer to a start that was repeated and has slept since.
            (_, HostState::Suspending | HostState::Stopped | HostState::Waking) => {}
            (Ok(()), HostState::Stopping) => self.stop_again(now, id),
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
            // A repeated start of a host that has attached meanwhile, or that is being stopped anyway.
            (Err(_), HostState::Booting | HostState::Awake | HostState::Draining) => {}
            (Err(_), HostState::Stopping) => self.stop_again(now, id),
            (_, HostState::Gone) => {}
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

    /// The host has not attached within `missing_timeout`.
    pub(super) fn on_boot_overdue(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id) else { return };
        if !live.host.state.is_starting() {
            return;
        }
        if !self.broker_up {
            // It could not have attached: our outage, not its fault.
            self.timers.set(Timer::Boot(id.clone()), now + Duration::from_secs(60));
            return;
        }
        let worker = live.host.worker.clone();
        let waited = now.since(live.host.begun()).as_secs();
        let why = format!("its agent did not attach within {waited} s");
        if !self.is_excused(now, &live.host.clone()) {
            self.worker_lost(now, &worker, &format!("host {id}: {why}"));
        }
        self.give_up_host(now, id, &why);
    }

    /// A host that never attached is given up: its evidence is fetched, then it is stopped.
    fn give_up_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.state = HostState::Stopping;
        live.host.why = Some(why.to_owned());
        live.given_up = true;
        let host = live.host.clone();
        self.timers.clear(&Timer::Boot(id.clone()));
        self.timers.set(Timer::Console(id.clone()), now + CONSOLE_PATIENCE);
        self.out.push(Effect::FetchConsole(Box::new(host.clone())));
        self.note(Level::Warn, format!("host {id} of {} is given up: {why}", host.worker));
        self.touch_host(id);
        self.touch_worker(&host.worker);
    }

    /// What a host that is given up had printed has come, or is waited for no longer.
    pub(super) fn on_console(&mut self, now: Timestamp, id: &HostId, text: Option<String>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        if !std::mem::take(&mut live.given_up) || live.host.state != HostState::Stopping {
            return;
        }
        live.host.console.clone_from(&text);
        let why = live.host.why.clone().unwrap_or_default();
        self.timers.clear(&Timer::Console(id.clone()));
        self.host_failed(now, id, &why, self.fault_of_silence(now, id), text);
        self.stop_again(now, id);
        self.touch_host(id);
    }

    /// Counts a failed start against the worker and its image, and tells the builds that waited for it.
    fn host_failed(&mut self, now: Timestamp, id: &HostId, why: &str, fault: Fault, console: Option<String>) {
        let Some(host) = self.hosts.get(id).map(|l| l.host.clone()) else { return };
        let mut builds = self.queue.release(id);
        builds.extend(host.woken_for.filter(|b| !builds.contains(b) && self.is_waiting(*b)));
        self.pending.wake = true;
        match fault {
            // Nobody is to blame, and nothing is to be learned from it.
            Fault::Outage => return,
            Fault::Passing => {}
            Fault::Host => {
                let worker = host.worker.clone();
                let failed = FailedHost { host: id.clone(), worker, at: now, why: why.to_owned(), console };
                self.count_failed_host(now, builds, &failed);
            }
        }
        let jitter = 0.8 + 0.4 * f64::from(u16::from_str_radix(&self.random_hex(2), 16).unwrap_or(0)) / 65_536.0;
        self.image_failed(now, &host, why, jitter);
        let limit = self.plan.quarantine_after;
        if let Some(w) = self.workers.get_mut(&host.worker) {
            let pause = doubled(BACKOFF_FIRST, BACKOFF_MOST, w.record.failures).mul_f64(jitter);
            w.record.failures += 1;
            w.record.backoff_until = Some(now + pause);
            w.record.last_failure = Some(why.to_owned());
            self.timers.set(Timer::Backoff(host.worker.clone()), now + pause);
            if fault == Fault::Host {
                w.record.faults += 1;
                if w.record.faults >= limit {
                    w.record.quarantined = Some(why.to_owned());
                    let text = format!("quarantined after {limit} failed starts: {why}");
                    self.note(Level::Warn, format!("worker {} is {text}", host.worker));
                    self.worker_lost(now, &host.worker, &text);
                }
            }
        }
        self.save_worker(&host.worker);
    }

    /// Whose fault it is that an agent has not attached.
    fn fault_of_silence(&self, now: Timestamp, id: &HostId) -> Fault {
        let excused = self.hosts.get(id).is_some_and(|live| self.is_excused(now, &live.host));
        if excused { Fault::Outage } else { Fault::Host }
    }

    fn is_waiting(&self, build: BuildId) -> bool {
        self.builds.get(&build).is_some_and(|b| b.status.end.is_none() && b.status.live_attempt().is_none())
    }

    /// Its host's agent has attached: the start has succeeded.
    pub(super) fn host_attached(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        if !live.host.state.is_starting() {
            return;
        }
        live.host.state = HostState::Awake;
        live.host.attached.get_or_insert(now);
        let host = live.host.clone();
        let worker = host.worker.clone();
        self.timers.clear(&Timer::Boot(id.clone()));
        self.timers.clear(&Timer::StartRetry(id.clone()));
        if let Some(w) = self.workers.get_mut(&worker) {
            w.record.failures = 0;
            w.record.faults = 0;
            w.record.backoff_until = None;
            w.record.last_failure = None;
        }
        self.image_works(&host);
        self.save_worker(&worker);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// The host has been idle for its `build_wait_timeout`.
    pub(super) fn on_idle(&mut self, now: Timestamp, id: &HostId) {
        let Some(worker) = self.hosts.get(id).map(|l| l.host.worker.clone()) else { return };
        let Some(latent) = self.latent_of(&worker) else { return };
        if latent.min_idle > 0 && self.idle_of(&latent.template) <= latent.min_idle {
            return self.timers.set(Timer::Idle(id.clone()), now + SPARE_AGAIN);
        }
        self.drain_host(id, "it was idle");
    }

    pub(super) fn latent_of(&self, worker: &WorkerName) -> Option<LatentPlan> {
        self.workers.get(worker)?.plan.as_ref()?.latent.clone()
    }

    /// Asks the agent to take nothing new and to say when nothing runs; only its answer stops the host.
    pub(super) fn drain_host(&mut self, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get_mut(id).filter(|l| l.host.state == HostState::Awake) else { return };
        live.host.state = HostState::Draining;
        live.host.why = Some(why.to_owned());
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::Idle(id.clone()));
        self.touch_host(id);
        self.drain_agent(&worker);
    }

    /// Sends the worker's agent a drain.
    pub(super) fn drain_agent(&mut self, worker: &WorkerName) {
        let Some(live) = self.workers.get_mut(worker).and_then(|w| w.session.as_mut()) else { return };
        let drain = live.drain.unwrap_or(0) + 1;
        live.drain = Some(drain);
        let session = live.session.id.clone();
        self.send_drain(worker, session, drain);
        self.touch_worker(worker);
    }

    /// Stops the host, now and again until it is gone.
    pub(super) fn stop_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        if live.host.state == HostState::Stopping {
            return;
        }
        live.host.state = HostState::Stopping;
        live.host.why.get_or_insert_with(|| why.to_owned());
        // Those before were to put it to sleep: its end must not be asked for as seldom.
        live.stop_tries = 0;
        let worker = live.host.worker.clone();
        for timer in
            [Timer::Idle(id.clone()), Timer::Boot(id.clone()), Timer::StartRetry(id.clone()), Timer::Asleep(id.clone())]
        {
            self.timers.clear(&timer);
        }
        self.queue.release(id);
        self.pending.wake = true;
        self.touch_host(id);
        self.touch_worker(&worker);
        self.stop_again(now, id);
    }

    pub(super) fn stop_again(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get_mut(id).filter(|l| l.host.state == HostState::Stopping) else { return };
        // A start under way could make the machine after it was found to be gone; its end comes back here.
        if live.starting {
            return;
        }
        live.stop_tries += 1;
        let pause = repeat_pause(live.stop_tries);
        self.out.push(Effect::StopHost(Box::new(live.host.clone())));
        self.timers.set(Timer::StopRetry(id.clone()), now + pause);
    }

    pub(super) fn on_stop_ended(&mut self, now: Timestamp, id: &HostId, result: Result<Stopped, String>) {
        let Some(live) = self.hosts.get(id) else { return };
        if live.host.state != HostState::Stopping || live.starting {
            return;
        }
        match result {
            // Asked again until an earlier start can make nothing any more.
            Ok(Stopped::Gone) if live.in_doubt(now) => {}
            Ok(Stopped::Gone) => self.host_is_gone(now, id, ""),
            Ok(Stopped::Requested) => {}
            Err(why) => self.note(Level::Warn, format!("host {id} could not be stopped: {why}; trying again")),
        }
    }

    /// The provider has proof that the machine is gone.
    pub(super) fn on_host_gone(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get(id) else { return };
        match live.host.state {
            HostState::Ordered | HostState::Booting | HostState::Waking => {
                // It went before it attached: the console may still be had, the machine is gone either way.
                self.give_up_host(now, id, &format!("it ended before its agent attached: {why}"));
            }
            HostState::Awake
            | HostState::Draining
            | HostState::Suspending
            | HostState::Stopped
            | HostState::Stopping => self.host_is_gone(now, id, why),
            HostState::Gone => {}
        }
    }

    /// Proof that nothing of the host runs: its session is over, what ran on it may be tried elsewhere at once.
    fn host_is_gone(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if self.hosts.get_mut(id).is_some_and(|live| std::mem::take(&mut live.given_up)) {
            // It went while what it printed was waited for: a failed start all the same.
            let given = self.hosts.get(id).and_then(|live| live.host.why.clone()).unwrap_or_default();
            self.host_failed(now, id, &given, self.fault_of_silence(now, id), None);
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        let expected = matches!(live.host.state, HostState::Stopping);
        live.host.state = HostState::Gone;
        live.host.gone = Some(now);
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        if !why.is_empty() {
            live.host.why.get_or_insert_with(|| why.to_owned());
        }
        let worker = live.host.worker.clone();
        let reason = live.host.why.clone().unwrap_or_default();
        for timer in [
            Timer::Idle(id.clone()),
            Timer::Boot(id.clone()),
            Timer::StartRetry(id.clone()),
            Timer::StopRetry(id.clone()),
            Timer::Asleep(id.clone()),
            Timer::Console(id.clone()),
            Timer::Reclaim(id.clone()),
        ] {
            self.timers.clear(&timer);
        }
        self.queue.release(id);
        self.pending.wake = true;
        if !expected {
            self.note(Level::Warn, format!("host {id} of {worker} is gone: {reason}"));
        }
        if let Some(w) = self.workers.get_mut(&worker).filter(|w| w.host.as_ref() == Some(id)) {
            w.host = None;
        }
        self.end_with_host(now, id, &worker, &format!("its host {id} is gone ({reason})"));
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Hosts of a template that are awake or being started, without work and without a build that waits for them.
    pub(super) fn idle_of(&self, template: &str) -> u32 {
        let idle = self.hosts.values().filter(|live| {
            let worker = self.workers.get(&live.host.worker);
            let of = worker.and_then(|w| w.plan.as_ref()).and_then(|p| p.latent.as_ref());
            of.is_some_and(|l| l.template == template)
                && (live.host.state.is_starting() || live.host.state == HostState::Awake)
                && self.queue.reserved_on(&live.host.id) == 0
                && worker.is_some_and(|w| w.attempts.is_empty() && w.record.wish == Wish::Work)
        });
        u32::try_from(idle.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn save_worker(&mut self, name: &WorkerName) {
        if let Some(w) = self.workers.get(name) {
            self.out.push(Effect::Save(Record::Worker(name.clone(), w.record.clone())));
        }
        self.touch_worker(name);
    }
}
