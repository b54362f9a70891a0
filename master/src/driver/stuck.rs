//! What the master still does while the ledger cannot be written. It answers queries from the core, which is ahead of
//! the ledger by one batch. It answers heartbeats, so leases continue. It refuses commands, and all other messages
//! wait. No agent can attach, so the driver reports to the core that the broker is away: no worker counts as missing
//! because of the master's disk.

use super::event_loop::{EventLoop, Inputs, TURN, Waiting};
use crate::broker::Inbound;
use crate::clock;
use crate::core::event::{Effect, Event, Reply};
use crate::web::Request;
use rouse_shared::message::{ToAgent, ToMaster};

impl EventLoop {
    /// Serves what needs no ledger. Does not return; the caller limits the time.
    pub(super) async fn serve_while_blocked(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) {
        loop {
            // At most a turn's messages are kept for later. The rest stays in the channel and then with the broker.
            tokio::select! {
                Some(request) = inputs.requests.recv() => self.request_while_blocked(request),
                Some(admission) = inputs.admissions.recv() => self.admit(admission),
                Some(message) = inputs.inbound.recv(), if waiting.inbound.len() < TURN => {
                    self.inbound_while_blocked(message, &mut waiting.inbound);
                }
                else => return std::future::pending().await,
            }
        }
    }

    fn request_while_blocked(&mut self, request: Request) {
        match request {
            Request::Query(query) => self.answer(query),
            Request::Command { reply, .. } => {
                let why = self.commit_error.as_deref().unwrap_or("the ledger cannot be written");
                let reason = format!("{why}; try again when it can be written");
                drop(reply.send(Reply::Unavailable(reason)));
            }
        }
    }

    /// Answers a heartbeat at once, so that no agent kills its builds because of the master's disk. The answer promises
    /// nothing that the ledger would have to record. All other effects of the heartbeat wait with the batch, and all
    /// other messages are kept for later.
    fn inbound_while_blocked(&mut self, message: Inbound, later: &mut Vec<Inbound>) {
        match message {
            Inbound::Agent { worker, message: ToMaster::Heartbeat(heartbeat), receipt } => {
                let message = ToMaster::Heartbeat(heartbeat);
                for effect in self.core.handle(clock::now(), Event::Agent { worker, message }) {
                    match effect {
                        renewal @ Effect::Send { message: ToAgent::Renewed { .. }, .. }
                            if self.store.over().is_none() =>
                        {
                            // Sending a message causes no event.
                            self.executor.perform(renewal, &self.config);
                        }
                        other => self.batch.take(vec![other]),
                    }
                }
                // Without acknowledgements the broker would soon deliver no more. A lost heartbeat does no harm: the next
                // one follows.
                receipt.ack();
            }
            other => later.push(other),
        }
    }
}
