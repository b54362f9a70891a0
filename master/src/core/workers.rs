//! What operators do to workers.

use super::Core;
use super::event::{Answer, Operation, RequestId};
use super::record::{HostState, Wish};
use super::timers::Timer;
use rouse_shared::message::ToAgent;
use rouse_shared::{Timestamp, WorkerName};

impl Core {
    pub(super) fn on_operate(&mut self, now: Timestamp, request: RequestId, name: &WorkerName, operation: Operation) {
        let Some(worker) = self.workers.get_mut(name).filter(|w| !w.removed) else {
            let reason = format!("there is no worker {name}; `rouse workers` lists them");
            return self.reply(request, Answer::NotFound(reason));
        };
        worker.record.wish = match operation {
            Operation::Pause => Wish::Pause,
            Operation::Resume => Wish::Work,
            Operation::Drain => Wish::Drain,
            Operation::Stop => Wish::Stop,
        };
        let host = worker.host.clone();
        match operation {
            Operation::Pause => {}
            Operation::Resume => self.lift(name),
            Operation::Drain | Operation::Stop => match &host {
                Some(id) => self.wind_down(now, id, "an operator asked for it"),
                None if operation == Operation::Stop => self.drain_agent(name),
                // A standing worker's machine is not ours to stop: draining it is pausing it.
                None => {}
            },
        }
        self.save_worker(name);
        self.reply(request, Answer::Done);
    }

    /// Ends a host as soon as nothing runs on it.
    pub(super) fn wind_down(&mut self, now: Timestamp, id: &rouse_shared::HostId, why: &str) {
        match self.hosts.get(id).map(|l| l.host.state) {
            Some(HostState::Awake) => self.drain_host(id, why),
            Some(
                HostState::Ordered
                | HostState::Booting
                | HostState::Suspending
                | HostState::Stopped
                | HostState::Waking,
            ) => self.stop_host(now, id, why),
            Some(HostState::Draining | HostState::Stopping | HostState::Gone) | None => {}
        }
    }

    /// Makes a worker work again: backoff, quarantine and a drain of a standing agent are over.
    fn lift(&mut self, name: &WorkerName) {
        self.pending.wake = true;
        self.lift_image(name);
        self.timers.clear(&Timer::Backoff(name.clone()));
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.record.failures = 0;
        worker.record.faults = 0;
        worker.record.backoff_until = None;
        worker.record.quarantined = None;
        let standing = worker.host.is_none();
        if let Some(live) = worker.session.as_mut().filter(|l| standing && l.drain.is_some()) {
            live.drain = None;
            let session = live.session.id.clone();
            self.send(name, ToAgent::Undrain { session });
        }
    }
}
