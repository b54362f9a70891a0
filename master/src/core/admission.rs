//! Decides which agents are accepted. When an agent connects, the master checks only its credential. At hello, the
//! master checks everything that it knows.

use super::event::Effect;
use super::plan::Digest;
use super::record::{Host, HostState};
use super::view::Refusal;
use super::{Core, Timestamp, Worker};
use rouse_shared::limits::PROTOCOL;
use rouse_shared::message::{Hello, NEEDS_RUN_AS, ToAgent};
use rouse_shared::{HostId, WorkerName};
use std::time::Duration;

/// The reason for refusing an agent that is on another machine than the host.
pub(super) const WRONG_MACHINE: &str = "it is not on the machine that was started for this worker";

/// The kinds of valid credentials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Credential {
    /// The worker's password.
    Password,
    /// The boot token of the worker's host, usable by this run of the agent.
    Token(HostId),
    /// The boot token of a host whose agent has a session secret instead.
    SpentToken,
    /// The secret of the worker's session.
    Secret,
}

/// As whom an agent may connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admitted {
    /// As the agent of the worker's session, whose secret it has.
    Agent,
    /// With a credential that others may have as well: its hello decides.
    Anybody,
}

/// How long a refused agent is shown. This is longer than an agent's longest pause, which is a minute. So an agent that
/// keeps trying is always shown, and one that has stopped is forgotten.
const REFUSAL_SHOWN: Duration = Duration::from_secs(600);
/// Longest part of a machine identity that is shown, in characters.
const IDENTITY_SHOWN: usize = 100;
/// Longest part of a reason that is shown, in characters. A reason may contain the identity twice.
const REASON_SHOWN: usize = 300;

/// The beginning of a text from an agent, made safe to show.
fn legible(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

impl Worker {
    /// The agent that was last refused under this worker's name, unless it was too long ago.
    pub(super) fn refusal(&self, now: Timestamp) -> Option<&Refusal> {
        self.refused.as_ref().filter(|refusal| now.since(refusal.at) < REFUSAL_SHOWN)
    }
}

/// The answer to a hello.
pub(super) enum AdmissionDecision {
    /// The session continues.
    Resume,
    /// A new session begins.
    Begin,
    /// The previous session's agent is proven dead. A new session begins.
    Replace,
    /// The agent is refused.
    Refuse {
        /// Why, in a sentence.
        reason: String,
        /// Whether the host is useless and is to power itself off.
        power_off: bool,
    },
}

impl Core {
    /// Whether an agent may connect with this name and password. The broker asks.
    ///
    /// # Errors
    /// The reason, for the master's log. The agent does not get it.
    pub fn admit(&self, worker: &str, password: &str) -> Result<Admitted, String> {
        let name: WorkerName = worker.parse().map_err(|error| format!("{error}"))?;
        match self.classify(&name, &Digest::of(password)) {
            Some(Credential::Secret) => Ok(Admitted::Agent),
            Some(Credential::Password | Credential::Token(_)) => Ok(Admitted::Anybody),
            // Builds on its machine may have read it.
            Some(Credential::SpentToken) => Err(format!("the boot token of worker {name} was used before")),
            None if self.workers.contains_key(&name) => Err(format!("wrong password for worker {name}")),
            None => Err(format!("there is no worker {name}")),
        }
    }

    pub(super) fn classify(&self, name: &WorkerName, digest: &Digest) -> Option<Credential> {
        let worker = self.workers.get(name)?;
        if worker.session.as_ref().is_some_and(|l| l.session.secrets.contains(digest)) {
            return Some(Credential::Secret);
        }
        if let Some(live) = self.host_of(worker)
            && Digest::of(&live.host.token) == *digest
        {
            let spent = live.host.token_spent;
            return Some(if spent { Credential::SpentToken } else { Credential::Token(live.host.id.clone()) });
        }
        worker.plan.as_ref().filter(|p| p.password == *digest).map(|_| Credential::Password)
    }

    /// The proof of its machine in a hello is invalid.
    pub(super) fn on_unproven(&mut self, now: Timestamp, name: &WorkerName, hello: Hello, why: String) {
        let latent = self.workers.get(name).is_some_and(|worker| !worker.standing());
        self.refuse(now, name, hello, why, latent);
    }

    pub(super) fn refuse(&mut self, now: Timestamp, name: &WorkerName, hello: Hello, reason: String, power_off: bool) {
        let identity = self.keep_refusal(now, name, &hello.identity, &reason);
        self.out.push(Effect::LogRefused { worker: name.clone(), identity, reason: reason.clone() });
        // There is no session, and none must seem to exist to a later message, so the answer goes to the queue
        // directly.
        self.out.push(Effect::Send { queue: hello.queue, message: ToAgent::Refused { reason, power_off } });
    }

    /// The agent on this machine was accepted, so its refusal is no longer shown.
    pub(super) fn forget_refusal(&mut self, name: &WorkerName, identity: &str) {
        if let Some(worker) = self.workers.get_mut(name) {
            let identity = legible(identity, IDENTITY_SHOWN);
            worker.refused.take_if(|refusal| refusal.identity == identity);
        }
    }

    /// Keeps the refusal of an agent for the page and the API. The identity is what the agent claims.
    pub(super) fn keep_refusal(&mut self, now: Timestamp, name: &WorkerName, identity: &str, reason: &str) -> String {
        let identity = legible(identity, IDENTITY_SHOWN);
        if let Some(worker) = self.workers.get_mut(name) {
            let reason = legible(reason, REASON_SHOWN);
            worker.refused = Some(Refusal { at: now, identity: identity.clone(), reason });
        }
        identity
    }

    /// Decides on a hello.
    pub(super) fn admit_hello(
        &self,
        name: &WorkerName,
        hello: &Hello,
        credential: Option<&Credential>,
    ) -> AdmissionDecision {
        let Some(worker) = self.workers.get(name) else { return refuse("there is no such worker", false) };
        let latent = !worker.standing();
        if hello.protocol != PROTOCOL {
            let reason = format!(
                "it speaks protocol {}, and this master speaks {PROTOCOL}; install a matching agent",
                hello.protocol
            );
            return AdmissionDecision::Refuse { reason, power_off: latent };
        }
        let Some(credential) = credential else {
            return refuse("wrong or outdated password for this worker", latent);
        };
        if let Some(live) = &worker.session {
            let same_life = live.session.nonce == hello.nonce;
            if live.session.impostor && (same_life || *credential == Credential::Secret) {
                let gone = "the host of this worker is gone";
                return refuse(if worker.host.is_some() { WRONG_MACHINE } else { gone }, true);
            }
            if same_life {
                return AdmissionDecision::Resume;
            }
            // The hello is late, or comes from a copy of machine and disk. Two agents would replace each other for
            // ever.
            if live.session.replaced.contains(&hello.nonce) {
                return refuse("a newer agent was started on its machine", false);
            }
            // A copy of the machine's disk has the secret too, so the secret alone does not identify the machine.
            if *credential == Credential::Secret && live.session.identity == hello.identity {
                return AdmissionDecision::Replace;
            }
        }
        // Not before: an agent that runs builds already goes on, and gets no more of them.
        if hello.facts.needs_run_as && worker.plan.as_ref().is_some_and(|plan| plan.run_as.is_none()) {
            return refuse(NEEDS_RUN_AS, latent);
        }
        if latent {
            return self.admit_latent(worker, hello, credential);
        }
        if worker.host.is_some() {
            // A reload has turned a latent worker into a standing one. An agent with the worker's password is not on
            // the host that the latent worker had.
            return match credential {
                Credential::Password => refuse("the previous host of this worker still exists", false),
                Credential::Token(_) | Credential::SpentToken | Credential::Secret => {
                    self.admit_latent(worker, hello, credential)
                }
            };
        }
        match &worker.session {
            Some(live) => {
                let reason = format!(
                    "another agent ({:.100}) holds the lease of this worker; stop it, or wait until its lease has expired",
                    live.session.identity
                );
                AdmissionDecision::Refuse { reason, power_off: false }
            }
            None => AdmissionDecision::Begin,
        }
    }

    /// A latent worker's agent is accepted only on the host that the ledger expects.
    fn admit_latent(&self, worker: &Worker, hello: &Hello, credential: &Credential) -> AdmissionDecision {
        let Some(host) = self.host_of(worker).map(|l| &l.host) else {
            return refuse("no host of this worker is expected now", true);
        };
        match host.state {
            HostState::Terminating | HostState::Terminated => return refuse("its host is being terminated", true),
            HostState::Suspending | HostState::Suspended => return refuse("its host is being suspended", true),
            HostState::Ordered | HostState::Resuming | HostState::Booting | HostState::Ready | HostState::Draining => {}
        }
        if host.launch.is_none() {
            return refuse("the host of this worker has not been started yet", true);
        }
        if host.identity.as_ref().is_some_and(|identity| *identity != hello.identity) {
            return refuse(WRONG_MACHINE, true);
        }
        if let Some(of) = hello.proof.disk.as_ref().filter(|of| !is_own_mark(host, of)) {
            let text = "its disk is not fresh: it was first used for";
            let reason = format!("{text} {of:.80}, so it is an old disk or the base image itself");
            return AdmissionDecision::Refuse { reason, power_off: true };
        }
        // The agent may be on the right machine as long as the provider has not named the machine, or an impostor's
        // lease has not ended. It is to try again. If nobody lets it in, its dead-man timer ends the machine.
        let unsettled = host.identity.is_none() && host.handle.is_none();
        let power_off = !unsettled && !worker.is_impostor();
        let same_life = host.nonce.as_ref().is_none_or(|nonce| *nonce == hello.nonce);
        match credential {
            Credential::SpentToken => refuse("its boot token was used before", power_off),
            Credential::Token(_) if !same_life => refuse("its boot token was used by another agent", power_off),
            Credential::Password if host.identity.is_none() && !same_life => {
                refuse("another agent has attached as this worker's host", power_off)
            }
            Credential::Token(_) | Credential::Password | Credential::Secret if worker.is_impostor() => {
                refuse("an agent on another machine holds the lease of this worker until it ends", power_off)
            }
            Credential::Token(_) | Credential::Password | Credential::Secret if worker.session.is_some() => {
                refuse("another agent holds the lease of this worker", power_off)
            }
            Credential::Token(_) | Credential::Password | Credential::Secret => AdmissionDecision::Begin,
        }
    }
}

fn refuse(reason: &str, power_off: bool) -> AdmissionDecision {
    AdmissionDecision::Refuse { reason: reason.to_owned(), power_off }
}

/// Whether the mark on a host's disk belongs to the host: it is from the boot data's host, or from the machine if there
/// were no boot data. A disk that was not made for one host may have any mark.
fn is_own_mark(host: &Host, mark: &str) -> bool {
    let fresh = host.launch.as_ref().is_some_and(|order| order.fresh);
    !fresh || mark == host.id.as_str() || host.identity.as_deref() == Some(mark)
}
