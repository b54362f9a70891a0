//! While the ledger cannot be written: a batch waits, and nothing of it is performed. Questions are answered from what the
//! core knows, which is ahead of the ledger by that batch; new wishes are refused; leases go on. Nobody new is let in, so for
//! the core the broker is away: nobody goes missing for our disk.

use super::event_loop::{EventLoop, Inputs, TURN, Waiting};
use crate::broker::{Admission, Inbound};
use crate::clock;
use crate::core::event::{Effect, Event, Reply};
use crate::web::Call;
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
            for question in std::mem::take(&mut self.queries) {
                self.answer(question);
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
                Some(call) = inputs.calls.recv() => self.call_meanwhile(call),
                Some(admission) = inputs.admissions.recv() => self.admit(admission),
                Some(message) = inputs.inbound.recv(), if waiting.inbound.len() < TURN => {
                    self.inbound_meanwhile(message, &mut waiting.inbound);
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// Answers what can be answered without the ledger, and refuses the rest.
    fn call_meanwhile(&mut self, call: Call) {
        let Some(why) = self.commit_error.clone() else { return };
        let refusal = || Reply::Unavailable(format!("the master failed to {why}; try again when it can be written"));
        match call {
            Call::Submit { reply, .. }
            | Call::Cancel { reply, .. }
            | Call::Operate { reply, .. }
            | Call::Audit { reply, .. } => drop(reply.send(refusal())),
            question => self.answer(question),
        }
    }

    /// A heartbeat is answered at once, so that no agent gives up its builds for our disk: the answer promises nothing
    /// that the ledger would have to know. All else that it brings about waits behind the batch.
    fn inbound_meanwhile(&mut self, message: Inbound, later: &mut Vec<Inbound>) {
        match message {
            Inbound::Agent { worker, message: ToMaster::Heartbeat(heartbeat), receipt } => {
                let Some(core) = &mut self.core else { return };
                let message = ToMaster::Heartbeat(heartbeat);
                for effect in core.handle(clock::now(), Event::Agent { worker, message }) {
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
        let admitted = self.core.as_ref().map(|core| core.admit(worker.as_str(), &password));
        // The asker has its own deadline and may be gone.
        drop(admitted.map(|answer| reply.send(answer)));
    }
}
