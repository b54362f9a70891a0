//! Workers: their states, and the commands of operators about them and their hosts.

use super::Core;
use super::event::{Effect, Operation, Reply, RequestId};
use super::plan::LatentPlan;
use super::record::{DesiredState, HostState, Record};
use super::timers::Timer;
use rouse_shared::{HostId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The states of a worker that scripts and people see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Standing, and not attached.
    Offline,
    /// Latent, without a host.
    Asleep,
    /// Its host is being started.
    Starting,
    /// Attached, runs nothing.
    Idle,
    /// Attached, runs something.
    Busy,
    /// Its host is being drained or terminated.
    Draining,
    /// An operator wants no new builds on it.
    Paused,
    /// Detached for longer than its `missing_timeout`.
    Missing,
    /// Its last host failed, or its place pauses; the next try is later.
    Backoff,
}

impl WorkerState {
    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Asleep => "asleep",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Paused => "paused",
            Self::Missing => "missing",
            Self::Backoff => "backoff",
        }
    }
}

impl Core {
    pub(super) fn on_operate(&mut self, now: Timestamp, request: RequestId, name: &WorkerName, operation: Operation) {
        let Some(worker) = self.workers.get_mut(name).filter(|w| !w.removed) else {
            let reason = format!("there is no worker {name}; `rouse workers` lists them");
            return self.reply(request, Reply::NotFound(reason));
        };
        worker.record.desired = match operation {
            Operation::Pause => DesiredState::Pause,
            Operation::Resume => DesiredState::Work,
            Operation::Drain => DesiredState::Drain,
        };
        let host = worker.host.clone();
        match operation {
            Operation::Pause => {}
            Operation::Resume => self.lift(now, name),
            // A standing worker's machine is not ours to terminate: draining it is pausing it.
            Operation::Drain => {
                if let Some(id) = &host {
                    self.wind_down(now, id, "an operator asked for it");
                }
            }
        }
        self.save_worker(name);
        self.reply(request, Reply::Done);
    }

    /// Terminates a host now. The attempts that run on it use up no retry, and its worker stays in use.
    pub(super) fn on_operate_host(&mut self, now: Timestamp, request: RequestId, id: &HostId) {
        let Some(live) = self.hosts.get(id).filter(|l| l.host.state != HostState::Terminated) else {
            let reason = format!("there is no host {id}; `rouse hosts` lists them");
            return self.reply(request, Reply::NotFound(reason));
        };
        // A host that is already terminating does not lose its attempts because of this command.
        if live.host.state != HostState::Terminating {
            let worker = self.workers.get(&live.host.worker);
            let attempts: Vec<_> = worker.into_iter().flat_map(|w| w.attempts.iter().copied()).collect();
            for attempt in attempts {
                self.excuse_attempt(attempt, id);
            }
        }
        self.terminate_host(now, id, "an operator terminated it");
        self.reply(request, Reply::Done);
    }

    /// Makes a worker work again: its backoff is over, and its image and its place are probed.
    fn lift(&mut self, now: Timestamp, name: &WorkerName) {
        self.pending.wake = true;
        self.lift_image(name);
        self.probe_place_now(now, name);
        self.timers.clear(&Timer::Backoff(name.clone()));
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.record.failures = 0;
        worker.record.faults = 0;
        worker.record.backoff_until = None;
        worker.record.rejected = false;
    }

    pub(super) fn latent_of(&self, worker: &WorkerName) -> Option<LatentPlan> {
        self.workers.get(worker)?.plan.as_ref()?.latent.clone()
    }

    pub(super) fn save_worker(&mut self, name: &WorkerName) {
        if let Some(w) = self.workers.get(name) {
            self.out.push(Effect::Save(Record::Worker(name.clone(), w.record.clone())));
        }
        self.touch_worker(name);
    }
}
