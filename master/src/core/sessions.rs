//! Sessions: how they begin, continue and end. A worker has one session. [`super::admission`] decides which agents are
//! accepted.

use super::admission::{AdmissionDecision, Credential};
use super::event::{Effect, Level};
use super::lease::millis;
use super::plan::{Digest, WorkerPlan};
use super::record::{Host, HostState, Record, Session};
use super::timers::Timer;
use super::{Core, Live, Timestamp};
use rouse_shared::message::{AttemptReport, Heartbeat, Hello, ToAgent, ToMaster, Vitals, Welcome};
use rouse_shared::{HostId, Nonce, SessionId, WorkerName};
use std::sync::Arc;
use std::time::Duration;

/// Without a lease, an agent kills its builds if its link has been down for this long.
pub(super) const LINK_PATIENCE: Duration = Duration::from_secs(600);

/// Lease, grace and keepalive interval for the agent of a worker that is no longer in the configuration: the defaults.
const WINDING_UP_LEASE: Duration = Duration::from_secs(60);
const WINDING_UP_GRACE: Duration = Duration::from_secs(600);
pub(super) const WINDING_UP_KEEPALIVE: Duration = Duration::from_secs(10);
/// Number of previous runs of an agent that a session remembers.
const REPLACED_LIVES: usize = 4;
/// Number of running attempts in a hello whose reports are taken up: more than any machine runs, and little enough that
/// the answers leave room for those to other agents.
const HELLO_REPORTS: usize = 256;
/// Why an attempt is lost that its agent does not list.
const CAME_WITHOUT: &str = "its agent came back without this attempt";

/// What an agent has proven at the beginning of its session, besides its credential.
#[derive(Default)]
struct Proven {
    /// Session secrets that it has.
    secrets: Vec<Digest>,
    /// The previous runs of the agent.
    replaced: Vec<Nonce>,
    /// The password that an earlier run has presented, if this one has only the session secret.
    password: Option<Digest>,
}

/// What is known about agent and attempts when a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EndReason {
    /// Nothing. The attempts may still run.
    Unknown,
    /// No attempt runs, because the supervisors have kept the lease's deadline. The agent may come back with the logs
    /// of attempts that have ended.
    Stopped,
    /// The agent and everything that it kept are gone.
    Gone,
}

impl Core {
    pub(super) fn session_id(&self, worker: &WorkerName) -> Option<SessionId> {
        self.session_of(worker).map(|l| l.session.id.clone())
    }

    pub(super) fn on_agent(&mut self, now: Timestamp, worker: WorkerName, message: ToMaster) {
        if self.is_impostor(&worker) && !matches!(message, ToMaster::Hello(_)) {
            return self.on_impostor(now, &worker, &message);
        }
        match message {
            ToMaster::Hello(hello) => self.on_hello(now, &worker, *hello),
            ToMaster::Heartbeat(heartbeat) => self.on_heartbeat(now, &worker, &heartbeat),
            ToMaster::Report(report) => {
                if self.session_id(&worker).as_ref() == Some(&report.session) {
                    self.on_report(now, &worker, report.attempt);
                }
            }
            ToMaster::Drained { session, drain } => self.on_drained(now, &worker, &session, drain),
            ToMaster::Leaving { session } => {
                if let Some(live) = self.live_mut(&worker, &session) {
                    live.leaving = true;
                    self.touch_worker(&worker);
                }
            }
            ToMaster::Goodbye { session } => {
                if self.live_mut(&worker, &session).is_some() {
                    self.on_goodbye(now, &worker);
                }
            }
            ToMaster::Notice { session, notice } => self.on_notice(now, &worker, &session, notice),
        }
    }

    pub(super) fn live_mut(&mut self, worker: &WorkerName, session: &SessionId) -> Option<&mut Live> {
        self.workers.get_mut(worker)?.session.as_mut().filter(|l| l.session.id == *session)
    }

    fn on_hello(&mut self, now: Timestamp, name: &WorkerName, hello: Hello) {
        let credential = self.classify(name, &Digest::of(&hello.credential));
        let decision = self.admit_hello(name, &hello, credential.as_ref());
        let secret_used = credential == Some(Credential::Secret);
        match decision {
            AdmissionDecision::Refuse { reason, power_off } => {
                let power_off = power_off && !self.is_suspending_or_resuming(name);
                self.refuse(now, name, hello, reason, power_off);
            }
            AdmissionDecision::Resume => self.resume(now, name, hello, secret_used),
            AdmissionDecision::Replace => {
                let last = self.session_of(name).map(|live| live.session.clone());
                let password = last.as_ref().and_then(|last| last.password);
                let replaced = last.map(|last| std::iter::once(last.nonce).chain(last.replaced));
                self.end_session(now, name, "its agent was started again", EndReason::Gone);
                // If the welcome is lost and this run ends, the next run has no other secret.
                let known = vec![Digest::of(&hello.credential)];
                let replaced = replaced.into_iter().flatten().take(REPLACED_LIVES).collect();
                self.begin(now, name, hello, Proven { secrets: known, replaced, password });
            }
            AdmissionDecision::Begin => self.begin(now, name, hello, Proven::default()),
        }
    }

    fn begin(&mut self, now: Timestamp, name: &WorkerName, hello: Hello, proven: Proven) {
        let Proven { secrets, replaced, password } = proven;
        let reported = self.reported_attempts(&hello);
        let id = SessionId(self.random_hex(16));
        self.forget_refusal(name, &hello.identity);
        let may_be_old = self.hello_may_be_old(now);
        let Some(worker) = self.workers.get_mut(name) else { return };
        let host = worker.host.clone();
        let known = || worker.plan.as_ref().filter(|_| host.is_none()).map(|plan| plan.password);
        let password = password.or_else(known);
        let session = Session {
            id,
            worker: name.clone(),
            host: host.clone(),
            nonce: hello.nonce.clone(),
            identity: hello.identity,
            version: hello.version,
            facts: hello.facts,
            connection: hello.connection,
            queue: hello.queue,
            secrets,
            lease_ms: None,
            since: now,
            impostor: false,
            blocked_lease: None,
            replaced,
            password,
        };
        worker.session = Some(Live {
            session,
            attached: true,
            vitals: None,
            last_seq: 0,
            repeated: None,
            drain: None,
            leaving: hello.leaving,
            held_until_message: may_be_old,
            notice: None,
            unclean: None,
        });
        if let Some(host) = &host {
            if let Some(live) = self.hosts.get_mut(host) {
                live.host.nonce = Some(hello.nonce);
                self.touch_host(host);
            }
            self.host_attached(now, host);
        }
        self.worker_is_back(now, name);
        self.welcome(name, true);
        self.renew(now, name);
        self.extend_hello(now, name);
        self.drain_on(name);
        self.touch_worker(name);
        // The agent keeps ended attempts of its previous session until they are settled.
        let ended: Vec<_> = reported.into_iter().filter(|report| report.outcome.is_some()).collect();
        let given: Vec<_> = self.workers.get(name).map(|w| w.attempts.iter().copied().collect()).unwrap_or_default();
        for id in given.into_iter().filter(|id| ended.iter().all(|report| report.attempt != *id)) {
            if self.attempt_with_outcome(id).is_some() {
                self.lose_attempt(now, id, CAME_WITHOUT);
            }
        }
        self.apply_ended(now, name, ended);
    }

    /// Takes up the ended attempts that an agent lists in its hello. Log chunks that it has sent may have been lost
    /// with the broker without its knowledge, so missing bytes are requested at once.
    fn apply_ended(&mut self, now: Timestamp, name: &WorkerName, ended: Vec<AttemptReport>) {
        let given = self.workers.get(name).map(|worker| &worker.attempts);
        let (known, unknown): (Vec<_>, Vec<_>) =
            ended.into_iter().partition(|report| given.is_some_and(|given| given.contains(&report.attempt)));
        // Those have ended for the master as well.
        let attempts: Vec<_> = unknown.into_iter().map(|report| report.attempt).collect();
        if !attempts.is_empty()
            && let Some(session) = self.session_id(name)
        {
            self.send(name, ToAgent::Settled { session, attempts });
        }
        for report in known {
            let id = report.attempt;
            self.on_report(now, name, report);
            self.ask_for_logs(id);
        }
    }

    /// The attempts in a hello, if they are this master's. Those of another master have the same numbers.
    fn reported_attempts(&self, hello: &Hello) -> Vec<AttemptReport> {
        if hello.master.as_ref() == Some(&self.master) { hello.attempts.clone() } else { Vec::new() }
    }

    /// A drain outlasts its session: the next session, and the next master, continue it.
    pub(super) fn drain_on(&mut self, name: &WorkerName) {
        let Some(worker) = self.workers.get(name) else { return };
        if self.host_of(worker).is_some_and(|live| live.host.state == HostState::Draining) {
            self.drain_agent(name);
        }
    }

    /// The same run of the agent has a new connection. Its builds continue. Requests and cancels are computed again
    /// from the ledger and the hello.
    fn resume(&mut self, now: Timestamp, name: &WorkerName, hello: Hello, secret_used: bool) {
        let reported = self.reported_attempts(&hello);
        self.forget_refusal(name, &hello.identity);
        let Some(live) = self.workers.get_mut(name).and_then(|w| w.session.as_mut()) else { return };
        if hello.connection < live.session.connection {
            return;
        }
        // Even if that connection has been lost since, the list of attempts in this hello is old.
        let again = hello.connection == live.session.connection;
        live.session.connection = hello.connection;
        live.session.queue = hello.queue;
        live.session.version = hello.version;
        live.session.facts = hello.facts;
        live.attached = true;
        live.leaving |= hello.leaving;
        live.held_until_message &= again;
        // The agent counts its lease from this hello, which has number 0.
        live.last_seq = 0;
        let (host, drain) = (live.session.host.clone(), live.drain);
        let session = live.session.id.clone();
        if secret_used {
            self.spend_token(host.as_ref());
        }
        self.worker_is_back(now, name);
        self.welcome(name, !secret_used);
        self.renew(now, name);
        self.extend_hello(now, name);
        self.touch_worker(name);
        if again {
            return;
        }
        let listed: Vec<_> = reported.iter().map(|c| c.attempt).collect();
        let (running, ended): (Vec<_>, Vec<_>) = reported.into_iter().partition(|report| report.outcome.is_none());
        // Unknown ones are cancelled, each by a message of its own. The agent is told of the others when it reports them.
        for report in running.into_iter().take(HELLO_REPORTS) {
            self.on_report(now, name, report);
        }
        self.apply_ended(now, name, ended);
        let given: Vec<_> = self.workers.get(name).map(|w| w.attempts.iter().copied().collect()).unwrap_or_default();
        for id in given {
            let Some(build) = self.builds.get(&id.build) else { continue };
            let Some(attempt) = build.status.live_attempt().filter(|a| a.session == session) else { continue };
            let (begun, cancelled) = (attempt.started.is_some(), build.status.cancelled);
            match (listed.contains(&id), begun) {
                (true, _) if cancelled => self.send_cancel(name, id),
                (true, _) => {}
                (false, true) => self.lose_attempt(now, id, CAME_WITHOUT),
                (false, false) if cancelled => self.send_cancel(name, id),
                (false, false) => self.send_order(id),
            }
        }
        if let Some(drain) = drain {
            self.send_drain(name, session, drain);
        }
    }

    fn welcome(&mut self, name: &WorkerName, new_secret: bool) {
        let secret = new_secret.then(|| self.random_hex(32));
        let (master, Some(worker)) = (self.master.clone(), self.workers.get_mut(name)) else { return };
        let (standing, plan) = (worker.host.is_none() && worker.standing(), worker.plan.clone());
        // A worker that is no longer in the configuration winds up as it was welcomed before.
        let lease_ms = plan.as_ref().map(|plan| plan.lease.map(millis));
        let lease_ms = lease_ms.unwrap_or_else(|| {
            let before = worker.session.as_ref().and_then(|live| live.session.lease_ms);
            // Without a lease its machine would never power itself off if this master went away for good.
            before.or_else(|| worker.host.is_some().then(|| millis(WINDING_UP_LEASE)))
        });
        let blocked = self.blocked_lease(lease_ms);
        let Some(worker) = self.workers.get_mut(name) else { return };
        let Some(live) = &mut worker.session else { return };
        if let Some(secret) = &secret {
            live.session.secrets.insert(0, Digest::of(secret));
            live.session.secrets.truncate(2);
        }
        live.session.lease_ms = lease_ms;
        let before = live.session.blocked_lease;
        live.session.blocked_lease = blocked.map(|blocked| blocked.or_longer(before)).or(before);
        let grace = plan.as_ref().map_or(WINDING_UP_GRACE, |p| p.grace);
        let keepalive = plan.as_ref().map_or(WINDING_UP_KEEPALIVE, |p| p.keepalive);
        let message = ToAgent::Welcome(Box::new(Welcome {
            session: live.session.id.clone(),
            master,
            secret,
            keepalive_ms: millis(keepalive),
            lease_ms,
            link_patience_ms: lease_ms.is_none().then(|| millis(LINK_PATIENCE)),
            blocked_lease_ms: blocked.map(|blocked| blocked.more_ms),
            standing,
            grace_ms: millis(grace),
        }));
        self.out.push(Effect::Save(Record::Session(live.session.clone())));
        self.send(name, message);
    }

    /// An agent that attaches while the master is about to end gets the same extension as the others.
    fn extend_hello(&mut self, now: Timestamp, name: &WorkerName) {
        if let Some(lease_ms) = self.extend_again(now, name)
            && let Some(session) = self.session_id(name)
        {
            self.send(name, ToAgent::Renewed { session, seq: 0, lease_ms: Some(lease_ms) });
        }
    }

    fn on_heartbeat(&mut self, now: Timestamp, name: &WorkerName, heartbeat: &Heartbeat) {
        let Some(live) = self.live_mut(name, &heartbeat.session) else { return };
        let changed = !std::mem::replace(&mut live.attached, true) | std::mem::take(&mut live.held_until_message);
        live.vitals = Some(plausible(heartbeat.vitals));
        live.last_seq = live.last_seq.max(heartbeat.seq);
        let unclean = live.take_unclean(heartbeat.unclean.as_ref());
        let drain = live.drain;
        let session = heartbeat.session.clone();
        self.spend_token_of(name);
        self.renew(now, name);
        let lease_ms = self.extend_again(now, name);
        self.send(name, ToAgent::Renewed { session: session.clone(), seq: heartbeat.seq, lease_ms });
        if changed {
            self.worker_is_back(now, name);
            self.touch_worker(name);
        }
        if unclean {
            self.retire_unclean(now, name);
        }
        // Sends again what may have been lost, but not more often than honest agents ask for it.
        let Some(worker) = self.workers.get_mut(name) else { return };
        let keepalive = worker.keepalive();
        let Some(live) = &mut worker.session else { return };
        if live.repeated.is_some_and(|last| now.since(last) < keepalive / 2) {
            return;
        }
        live.repeated = Some(now);
        let Some(worker) = self.workers.get(name) else { return };
        let due: Vec<_> = worker
            .attempts
            .iter()
            .filter_map(|id| {
                let build = self.builds.get(&id.build)?;
                let attempt = build.status.live_attempt().filter(|a| a.number == id.number && a.session == session)?;
                let unconfirmed =
                    attempt.started.is_none() && now.since(attempt.ordered) >= keepalive.saturating_mul(2);
                let cancel = build.status.cancelled && attempt.outcome.is_none();
                (unconfirmed || cancel).then_some((*id, cancel))
            })
            .collect();
        for (id, cancel) in due {
            if cancel { self.send_cancel(name, id) } else { self.send_order(id) }
        }
        if let Some(drain) = drain {
            self.send_drain(name, session, drain);
        }
    }

    /// The agent of this host has the secret of its session, so only others could use the boot token.
    fn spend_token(&mut self, host: Option<&HostId>) {
        let Some(live) = host.and_then(|id| self.hosts.get_mut(id)).filter(|live| !live.host.token_spent) else {
            return;
        };
        live.host.token_spent = true;
        let id = live.host.id.clone();
        self.touch_host(&id);
    }

    /// The worker's agent knows its session, and so the secret that came with it. It is on the machine that the provider
    /// has named: until then, the host's own agent may be another one, and must be heard.
    fn spend_token_of(&mut self, name: &WorkerName) {
        let Some(session) = self.session_of(name).map(|live| &live.session) else { return };
        let host = session.host.as_ref().and_then(|id| self.hosts.get(id)).map(|live| &live.host);
        let proven = |host: &&Host| !host.token_spent && host.identity.as_ref() == Some(&session.identity);
        let host = host.filter(proven).map(|host| host.id.clone());
        self.spend_token(host.as_ref());
    }

    fn on_drained(&mut self, now: Timestamp, name: &WorkerName, session: &SessionId, drain: u64) {
        let Some(live) = self.live_mut(name, session) else { return };
        if live.drain != Some(drain) {
            return;
        }
        let Some(worker) = self.workers.get(name).filter(|w| w.attempts.is_empty()) else { return };
        if let Some(host) = worker.host.clone()
            && self.hosts.get(&host).is_some_and(|l| l.host.state == HostState::Draining)
        {
            self.host_drained(now, &host);
        }
    }

    /// The agent ends by itself, and none of its builds runs.
    fn on_goodbye(&mut self, now: Timestamp, name: &WorkerName) {
        self.end_session(now, name, "its agent was stopped", EndReason::Gone);
        if let Some(host) = self.workers.get(name).and_then(|worker| worker.host.clone()) {
            self.terminate_host(now, &host, "its agent ended");
        }
    }

    /// The lease has ended without a heartbeat. A standing worker's supervisors have ended its builds. A latent host is
    /// terminated and its builds are retried once it is gone, because the clock of a paused machine proves nothing.
    pub(super) fn on_lease_over(&mut self, now: Timestamp, name: &WorkerName) {
        if let Some(until) = self.held_by_broker(now, name) {
            return self.timers.set(Timer::Lease(name.clone()), until);
        }
        let Some(worker) = self.workers.get(name).filter(|w| w.session.is_some()) else { return };
        self.tally.expired_leases += 1;
        if worker.is_impostor() {
            return self.on_impostor_over(now, name);
        }
        let host = worker.host.clone();
        self.note(Level::Warn, format!("the lease of worker {name} has expired: nothing was heard from its agent"));
        let reason = if host.is_none() { EndReason::Stopped } else { EndReason::Unknown };
        self.end_session(now, name, "nothing was heard from its agent before its lease expired", reason);
        if let Some(host) = host {
            self.terminate_host(now, &host, "nothing was heard from its agent before its lease expired");
        }
    }

    /// Ends a session.
    pub(super) fn end_session(&mut self, now: Timestamp, name: &WorkerName, why: &str, reason: EndReason) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        if worker.session.take().is_some() {
            self.out.push(Effect::Save(Record::SessionOver(name.clone())));
        }
        self.timers.clear(&Timer::Lease(name.clone()));
        let attempts: Vec<_> = worker.attempts.iter().copied().collect();
        for id in attempts {
            let lost = match reason {
                EndReason::Unknown => false,
                EndReason::Stopped => self.attempt_with_outcome(id).is_none(),
                EndReason::Gone => true,
            };
            if lost {
                self.lose_attempt(now, id, why);
            }
        }
        self.arm_missing(now, name);
        self.touch_worker(name);
    }

    pub(super) fn on_detached(&mut self, now: Timestamp, name: &WorkerName, queue: Option<String>) {
        let Some(live) = self.workers.get_mut(name).and_then(|w| w.session.as_mut()) else { return };
        match queue {
            Some(queue) if queue == live.session.queue && live.attached => {
                live.attached = false;
                self.arm_missing(now, name);
                self.touch_worker(name);
            }
            Some(_) => {}
            // One of the worker's connections has closed, but perhaps not this one. The probe shows it: the message is
            // returned if the queue is gone.
            None => {
                let message = ToAgent::Renewed { session: live.session.id.clone(), seq: 0, lease_ms: None };
                self.send(name, message);
            }
        }
    }

    /// The plan of a worker, while the configuration has it.
    pub(super) fn plan_of(&self, name: &WorkerName) -> Option<&Arc<WorkerPlan>> {
        self.workers.get(name)?.plan.as_ref()
    }
}

/// JSON has no numbers that are infinite or none at all.
fn plausible(vitals: Vitals) -> Vitals {
    Vitals { load: if vitals.load.is_finite() { vitals.load } else { 0.0 }, ..vitals }
}
