//! Performs the master's effects, and passes deliveries to its core.

use super::Break;
use super::master::Delivery;
use super::world::World;
use rouse_master::core::event::{Effect, Event};
use rouse_master::core::show;
use rouse_shared::message::{Hello, LogChunk, Outcome, ToAgent, ToMaster};
use rouse_shared::{AttemptId, WorkerName};

impl World {
    /// What a delivery is for the core. Chunks are written before they are acknowledged.
    pub(super) fn delivered(&mut self, delivery: Delivery) -> Option<Event> {
        match delivery {
            Delivery::Agent { worker, message } => {
                let message = self.misheard(&worker, message);
                Some(Event::Agent { worker, message })
            }
            Delivery::Submit(index) => Some(self.submission(index)),
            Delivery::Log { worker, chunk } => self.write_log(&worker, &chunk),
        }
    }

    /// What an agent has said, or what a broken core takes it for.
    fn misheard(&self, worker: &WorkerName, message: ToMaster) -> ToMaster {
        match (self.broken, message) {
            (Some(Break::ReuseToken | Break::NoFence), ToMaster::Hello(hello)) => {
                ToMaster::Hello(Box::new(self.mistaken(worker, *hello)))
            }
            (Some(Break::LostIsSuccess), ToMaster::Report(mut report)) => {
                if let Some(outcome @ Outcome::Lost(_)) = &mut report.attempt.outcome {
                    *outcome = Outcome::Success;
                }
                ToMaster::Report(report)
            }
            (_, message) => message,
        }
    }

    /// The hello as that of the agent that has the session.
    fn mistaken(&self, worker: &WorkerName, mut hello: Hello) -> Hello {
        let token = self.disk.hosts.values().any(|h| h.worker == *worker && h.token == hello.credential);
        let taken = match self.broken {
            Some(Break::ReuseToken) => token,
            Some(Break::NoFence) => !token,
            Some(_) | None => false,
        };
        if let Some(session) = self.disk.sessions.get(worker).filter(|s| taken && s.nonce != hello.nonce) {
            hello.nonce = session.nonce.clone();
            hello.connection = hello.connection.max(session.connection + 1);
        }
        hello
    }

    fn write_log(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Option<Event> {
        let attempt = chunk.attempt;
        if self.master.open_logs.get(&attempt) != Some(&(worker.clone(), chunk.session.clone())) {
            return None;
        }
        let key = (attempt, chunk.step);
        let there = self.disk.logs.entry(key).or_default();
        if chunk.offset > *there {
            let offset = *there;
            let news = self.master.reported_gaps.insert(key, offset) != Some(offset);
            return news.then_some(Event::LogGap { attempt, step: chunk.step, offset });
        }
        *there = (*there).max(chunk.offset + chunk.bytes.len() as u64);
        self.became_whole(attempt).then_some(Event::LogsWhole { attempt })
    }

    fn missing(&self, attempt: AttemptId, lengths: &[u64]) -> Option<(u32, u64)> {
        lengths.iter().zip(0..).find_map(|(length, step)| {
            let there = self.disk.logs.get(&(attempt, step)).copied().unwrap_or(0);
            (there < *length).then_some((step, there))
        })
    }

    fn became_whole(&mut self, attempt: AttemptId) -> bool {
        let lie = self.broken == Some(Break::LogsLie);
        let whole = self.master.expected.get(&attempt).is_some_and(|l| lie || self.missing(attempt, l).is_none());
        whole && self.master.expected.remove(&attempt).is_some()
    }

    /// Performs one effect; what follows from it at once is returned.
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Event> {
        if !matches!(effect, Effect::Send { message: ToAgent::Renewed { .. }, .. }) {
            let now = self.time();
            self.say(|| format!("  master -> {}", show::effect(&effect, now)));
        }
        match effect {
            Effect::Save(_) | Effect::Publish(_) | Effect::Log(..) | Effect::LogRefused { .. } => {}
            Effect::Send { queue, message } => self.send(queue, message),
            Effect::Reply { request, reply } => self.answered(request, reply),
            Effect::PrepareHost { host, number, resting } => self.prepare_host(&host, number, &resting),
            Effect::StartHost(host) => self.start_host(*host),
            Effect::TerminateHost(host) => self.terminate_host(*host),
            Effect::SuspendHost(host) => self.sleep_host(&host),
            Effect::ResumeHost(host) => self.resume_host(&host),
            Effect::TerminateOrphan { provider, listed } => self.stop_orphan(provider, listed),
            Effect::ForgetPlace { .. } => {}
            Effect::FetchConsole(host) => self.fetch_console(&host),
            Effect::ListHosts(provider) => self.list_hosts(provider, None),
            Effect::ListForAudit { request, round, provider } => self.list_hosts(provider, Some((request, round))),
            Effect::OpenLogs { attempt, worker, session, .. } => {
                self.master.open_logs.insert(attempt, (worker, session));
            }
            Effect::CheckLogs { attempt, lengths, overdue } => {
                self.master.expected.insert(attempt, lengths.clone());
                if self.became_whole(attempt) {
                    return Some(Event::LogsWhole { attempt });
                }
                let missing = self.missing(attempt, &lengths).filter(|_| overdue);
                return missing.map(|(step, offset)| Event::LogGap { attempt, step, offset });
            }
            Effect::SendMail(mail) => self.send_mail(*mail),
            Effect::FindExpired(scan) => self.find_expired(scan),
            Effect::DeleteLogs(builds) => self.delete_logs(builds),
            Effect::UploadRecorded(_) => {}
            Effect::CloseLogs { attempt } => {
                self.master.open_logs.remove(&attempt);
                self.master.expected.remove(&attempt);
            }
        }
        None
    }

    fn send(&mut self, queue: String, mut message: ToAgent) {
        match (self.broken, &mut message) {
            (Some(Break::ForgetDrain), ToAgent::Drain { .. }) => self.stop_drained(&queue),
            (Some(Break::LongLease), ToAgent::Welcome(welcome)) => {
                welcome.lease_ms = welcome.lease_ms.map(|lease| 2 * lease);
            }
            (Some(_) | None, _) => {}
        }
        if matches!(message, ToAgent::Refused { .. }) {
            self.summary.turned_away += 1;
        }
        self.send_to_agent(queue, message);
    }

    /// [`Break::ForgetDrain`]: the host goes without being asked.
    fn stop_drained(&mut self, queue: &str) {
        let host = self.disk.hosts.values().find(|h| queue.starts_with(&format!("rouse.agent.{}.", h.worker)));
        if let Some(host) = host.cloned() {
            self.terminate_host(host);
        }
    }
}
