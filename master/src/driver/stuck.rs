//! While the ledger cannot be written: a batch waits, and nothing of it is performed. Questions are answered from what the
//! core knows, which is ahead of the ledger by that batch; new wishes are refused; leases go on. Nobody new is let in, so for
//! the core the broker is away: nobody goes missing for our disk.

use super::event_loop::{EventLoop, Inputs, TURN, Waiting};
use crate::broker::{Admission, Inbound};
use crate::clock;
use crate::core::event::{Effect, Event, Reply};
use crate::web::Request;
use rouse_shared::error::Chain;
use rouse_shared::message::{ToAgent, ToMaster};
use std::time::Duration;
use tracing::error;

/// Between two tries to commit what the disk did not take.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

impl EventLoop {
    /// Commits the records of a batch, however long the disk takes.
    pub(super) async fn commit(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) {
        while let Err(error) = self.store.commit(&self.batch.records) {
            let text = Chain(&error).to_string();
            if self.commit_error.as_ref() != Some(&text) {
                error!("{text}; nothing new is taken until it can be written");
            }
            self.commit_error = Some(text);
            if self.linked && !std::mem::replace(&mut self.shut, true) {
                self.handle(Event::BrokerDown);
            }
            for query in std::mem::take(&mut self.queries) {
                self.answer(query);
            }
            // Its end is the pause's end.
            drop(tokio::time::timeout(COMMIT_PAUSE, self.serve_while_blocked(inputs, waiting)).await);
        }
        if self.commit_error.take().is_some() {
            tracing::info!("the ledger can be written again");
        }
    }

    async fn serve_while_blocked(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) {
        loop {
            // What is kept for later is bounded; beyond it the broker, and its senders, wait.
            tokio::select! {
                Some(request) = inputs.requests.recv() => self.request_meanwhile(request),
                Some(admission) = inputs.admissions.recv() => self.admit(admission),
                Some(message) = inputs.inbound.recv(), if waiting.inbound.len() < TURN => {
                    self.inbound_meanwhile(message, &mut waiting.inbound);
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// Answers what can be answered without the ledger, and refuses the rest.
    fn request_meanwhile(&mut self, request: Request) {
        match request {
            Request::Query(query) => self.answer(query),
            Request::Command { reply, .. } => {
                let why = self.commit_error.as_deref().unwrap_or("the ledger cannot be written");
                let reason = format!("{why}; try again when it can be written");
                drop(reply.send(Reply::Unavailable(reason)));
            }
        }
    }

    /// A heartbeat is answered at once, so that no agent gives up its builds for our disk: the answer promises nothing
    /// that the ledger would have to know. All else that it brings about waits behind the batch.
    fn inbound_meanwhile(&mut self, message: Inbound, later: &mut Vec<Inbound>) {
        match message {
            Inbound::Agent { worker, message: ToMaster::Heartbeat(heartbeat), receipt } => {
                let message = ToMaster::Heartbeat(heartbeat);
                for effect in self.core.handle(clock::now(), Event::Agent { worker, message }) {
                    match effect {
                        renewal @ Effect::Send { message: ToAgent::Renewed { .. }, .. } => {
                            // Nothing follows from a message at once.
                            self.doer.perform(renewal, &self.config);
                        }
                        other => self.batch.take(vec![other]),
                    }
                }
                // Else the broker would soon bring no more of them. One that is lost is followed by the next.
                receipt.ack();
            }
            other => later.push(other),
        }
    }

    pub(super) fn admit(&self, Admission { worker, password, reply }: Admission) {
        // The asker has its own deadline and may be gone.
        drop(reply.send(self.core.admit(worker.as_str(), &password)));
    }
}
