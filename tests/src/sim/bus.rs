//! The fake broker: connections of agents, messages on their way, and messages that wait for a master that is away.

use super::alarm::{Alarm, DETECTION};
use super::breaks::Break;
use super::machine::Pace;
use super::master::{Delivery, Input};
use super::world::World;
use rouse_agent::core::Event;
use rouse_master::core::event::Event as MasterEvent;
use rouse_shared::WorkerName;
use rouse_shared::message::{LogChunk, ToAgent, ToMaster};
use std::collections::{BTreeMap, VecDeque};

/// A connection as the broker sees it.
pub(super) struct Conn {
    pub machine: usize,
    pub life: u64,
    /// The agent's number for it.
    pub number: u64,
    pub worker: WorkerName,
    pub queue: String,
    /// When the last message of each direction arrives: they keep their order.
    up_at: u64,
    down_at: u64,
    logs_at: u64,
    /// Whether an alarm keeps what the agent publishes back, and whether the agent was told so.
    pub blocked: bool,
    pub told: bool,
    pub waiting: Vec<ToMaster>,
}

#[derive(Default)]
pub(super) struct Bus {
    pub up: bool,
    /// Which life of the broker.
    pub life: u64,
    pub conns: BTreeMap<u64, Conn>,
    pub queues: BTreeMap<String, u64>,
    /// What waits for the master, oldest first.
    pub held: VecDeque<Delivery>,
    pub alarm: Alarm,
    last: u64,
}

impl World {
    pub(super) fn connect(&mut self, id: usize, life: u64, number: u64, queue: String, credential: String) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.link = Some((number, None));
        }
        let delay = self.delay(5, 400);
        self.after(delay, move |w| {
            let Some(machine) = w.machines.get(&id).filter(|m| m.on && m.life == life) else { return };
            if machine.link != Some((number, None)) {
                return;
            }
            let worker = machine.worker.clone();
            let refused = if !w.bus.up || machine.partitioned {
                Some(false)
            } else {
                (!w.admits(&worker, &credential)).then_some(true)
            };
            if let Some(refused) = refused {
                if let Some(machine) = w.machines.get_mut(&id) {
                    machine.link = None;
                }
                let why = if refused { "refused" } else { "no route" }.to_owned();
                return w.agent_event(id, life, Event::LinkDown { connection: number, refused, why });
            }
            w.bus.last += 1;
            let conn = w.bus.last;
            w.bus.queues.insert(queue.clone(), conn);
            let now = w.now;
            w.bus.conns.insert(
                conn,
                Conn {
                    machine: id,
                    life,
                    number,
                    worker,
                    queue,
                    up_at: now,
                    down_at: now,
                    logs_at: now,
                    blocked: false,
                    told: false,
                    waiting: Vec::new(),
                },
            );
            w.check_connections(id);
            if let Some(machine) = w.machines.get_mut(&id) {
                machine.link = Some((number, Some(conn)));
            }
            w.say(|| format!("bus: machine {id} has connection {number} ({conn})"));
            w.agent_event(id, life, Event::LinkUp { connection: number });
        });
    }

    /// The agent closes its connection, after what it has sent.
    pub(super) fn disconnect(&mut self, id: usize, number: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some((_, conn)) = machine.link.filter(|(n, _)| *n == number) else { return };
        machine.link = None;
        let Some(conn) = conn else { return };
        let at = self.bus.conns.get(&conn).map_or(0, |c| c.up_at) + 1;
        self.at(at, move |w| w.conn_lost(conn, false));
    }

    /// The broker drops a connection and its queue.
    pub(super) fn conn_lost(&mut self, conn: u64, notify_agent: bool) {
        // While it is blocked the broker reads nothing from it, and does not miss its heartbeats.
        if self.bus.alarm.on.is_some() && self.bus.conns.get(&conn).is_some_and(|c| c.blocked) {
            return;
        }
        let Some(gone) = self.bus.conns.remove(&conn) else { return };
        self.bus.queues.remove(&gone.queue);
        let (id, life, number) = (gone.machine, gone.life, gone.number);
        self.say(|| format!("bus: connection {conn} of machine {id} is gone"));
        if notify_agent {
            let delay = self.delay(1, 2_000);
            self.after(delay, move |w| w.agent_link_down(id, life, number));
        }
        if self.bus.up && self.chance.permille(500) {
            let delay = self.delay(1, 500);
            self.master_event_in(delay, MasterEvent::Detached { worker: gone.worker, queue: None });
        }
    }

    fn agent_link_down(&mut self, id: usize, life: u64, number: u64) {
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.life == life) else { return };
        if machine.link.is_some_and(|(n, _)| n == number) {
            machine.link = None;
        }
        let why = "connection reset".to_owned();
        self.agent_event(id, life, Event::LinkDown { connection: number, refused: false, why });
    }

    /// An agent publishes for the master.
    pub(super) fn publish(&mut self, id: usize, message: ToMaster) {
        let Some(machine) = self.machines.get(&id) else { return };
        let Some((_, Some(conn))) = machine.link else { return };
        if machine.partitioned || !self.bus.up {
            return;
        }
        if self.bus.alarm.on.is_some() {
            return self.hold_back(conn, message);
        }
        self.publish_on(conn, message);
    }

    pub(super) fn publish_on(&mut self, conn: u64, message: ToMaster) {
        if self.mishap(self.faults.loss) {
            return;
        }
        let copies = if self.mishap(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let reorder = self.mishap(self.faults.reorder);
            let delay = if reorder { self.delay(0, 20_000) } else { self.delay(0, 30) };
            let arrives = self.now + delay;
            let Some(conn) = self.bus.conns.get_mut(&conn) else { return };
            let at = if reorder { arrives } else { arrives.max(conn.up_at) };
            if !reorder {
                conn.up_at = at;
            }
            let delivery = Delivery::Agent { worker: conn.worker.clone(), message: message.clone() };
            let life = self.bus.life;
            self.at(at, move |w| w.for_master(life, delivery));
        }
    }

    pub(super) fn log_chunk(&mut self, conn: u64, worker: WorkerName, chunk: LogChunk) {
        let delay = self.delay(0, 200);
        let at = self.now + delay;
        let Some(conn) = self.bus.conns.get_mut(&conn) else { return };
        conn.logs_at = conn.logs_at.max(at);
        let (at, life) = (conn.logs_at, self.bus.life);
        self.at(at, move |w| w.for_master(life, Delivery::Log { worker, chunk }));
    }

    fn for_master(&mut self, life: u64, delivery: Delivery) {
        if life != self.bus.life {
            return;
        }
        if self.master.core.is_some() && self.master.linked {
            self.master_receives(Input::Delivery(delivery));
        } else {
            self.bus.held.push_back(delivery);
        }
    }

    /// The master sends to an agent's queue.
    pub(super) fn send_to_agent(&mut self, queue: String, message: ToAgent) {
        if !self.bus.up || !self.master.linked {
            return;
        }
        if self.bus.alarm.on.is_some() {
            return self.hold_back_of_master(queue, message);
        }
        self.deliver_to_agent(queue, message);
    }

    pub(super) fn deliver_to_agent(&mut self, queue: String, message: ToAgent) {
        if self.mishap(self.faults.loss) {
            return;
        }
        let Some(number) = self.bus.queues.get(&queue).copied() else {
            let worker = queue.strip_prefix("rouse.agent.").and_then(|rest| rest.split('.').next());
            if let Some(worker) = worker.and_then(|w| w.parse().ok()) {
                let delay = self.delay(1, 100);
                self.master_event_in(delay, MasterEvent::Detached { worker, queue: Some(queue) });
            }
            return;
        };
        let copies = if self.mishap(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay(0, 30);
            let at = self.now + delay;
            let Some(conn) = self.bus.conns.get_mut(&number) else { return };
            conn.down_at = conn.down_at.max(at);
            let (at, id, life, connection) = (conn.down_at, conn.machine, conn.life, conn.number);
            let message = Box::new(message.clone());
            self.at(at, move |w| {
                let there = w.bus.conns.contains_key(&number);
                if there && w.machines.get(&id).is_some_and(|m| !m.partitioned) {
                    w.agent_event(id, life, Event::FromMaster { connection, message });
                }
            });
        }
    }

    /// The broker ends, and is back after a while.
    pub(super) fn restart_broker(&mut self, away: u64) {
        if !self.bus.up {
            return;
        }
        self.say(|| format!("bus: the broker is away for {away} ms"));
        self.bus.up = false;
        self.bus.life += 1;
        self.drop_alarm();
        let conns: Vec<u64> = self.bus.conns.keys().copied().collect();
        for conn in conns {
            self.conn_lost(conn, true);
        }
        // What was not persisted is gone.
        self.bus.held.retain(|d| matches!(d, Delivery::Submit(_)));
        self.master_unlinked();
        self.after(away, |w| w.broker_up());
    }

    pub(super) fn broker_up(&mut self) {
        if self.bus.up || self.abandoned {
            return;
        }
        self.bus.up = true;
        self.say(|| "bus: the broker is back".to_owned());
        let delay = self.delay(10, 3_000);
        self.after(delay, |w| w.master_linked());
    }

    /// A machine is cut off the network for a while.
    pub(super) fn partition(&mut self, id: usize, for_ms: u64) {
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on && !m.partitioned) else { return };
        machine.partitioned = true;
        let (life, link) = (machine.life, machine.link);
        self.say(|| format!("machine {id}: cut off for {for_ms} ms"));
        if let Some((number, Some(conn))) = link {
            // Each end finds out in its own time, or not at all if the cut is short.
            let (mut agent, broker) = (self.delay(1_000, 60_000), self.delay(5_000, 60_000));
            if self.bus.conns.get(&conn).is_some_and(|c| c.told) {
                // A blocked connection is watched, since a lease depends on it.
                agent = if self.broken == Some(Break::DeadLinkUnnoticed) { u64::MAX } else { agent.min(DETECTION) };
            }
            if agent < for_ms {
                self.after(agent, move |w| w.agent_link_down(id, life, number));
            }
            if broker < for_ms {
                self.after(broker, move |w| w.conn_lost(conn, true));
            }
        }
        self.after(for_ms, move |w| w.heal(id));
    }

    pub(super) fn heal(&mut self, id: usize) {
        if let Some(machine) = self.machines.get_mut(&id).filter(|m| m.partitioned) {
            machine.partitioned = false;
            self.say(|| format!("machine {id}: reachable again"));
        }
    }

    /// Whether steps on a machine count as running: one that sleeps runs nothing, and its clock goes on.
    pub(super) fn runs_there(&self, id: usize) -> bool {
        self.machines.get(&id).is_some_and(|m| m.on && (m.pace != Pace::Suspended || m.host.is_some()))
    }
}
