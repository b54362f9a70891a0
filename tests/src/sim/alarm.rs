//! Alarms of the fake broker. Like RabbitMQ, it accepts nothing that is published: it blocks a connection at the
//! connection's next message, reports this on the connection, and reads nothing more from it, not even its end. It
//! continues to deliver messages.

use super::breaks::Break;
use super::bus::Conn;
use super::master::Input;
use super::world::World;
use rouse_agent::core::Event;
use rouse_master::core::event::Event as MasterEvent;
use rouse_shared::message::{ToAgent, ToMaster};

/// Longest time until a connection that is blocked and dead is noticed to be dead.
pub(super) const DETECTION: u64 = 24_000;
/// Connections of one life of an agent in one alarm, at most: it makes a new one only if the network takes the old one.
const CONNECTIONS: usize = 6;

/// An alarm, and what waits for its end.
#[derive(Default)]
pub(super) struct Alarm {
    /// Its number while it is on.
    pub on: Option<u64>,
    last: u64,
    /// Whether the master was told.
    told: bool,
    /// What the master has sent.
    waiting: Vec<(String, ToAgent)>,
}

impl World {
    pub(super) fn start_alarm(&mut self, length: u64) {
        if !self.bus.up || self.bus.alarm.on.is_some() || self.abandoned || self.quiet {
            return;
        }
        self.bus.alarm.last += 1;
        let number = self.bus.alarm.last;
        self.bus.alarm.on = Some(number);
        self.say(|| format!("bus: an alarm for {length} ms"));
        self.tell_master_soon();
        self.after(length, move |w| w.end_alarm(number));
    }

    /// The master finds out when it publishes something, which it does every few seconds.
    pub(super) fn tell_master_soon(&mut self) {
        let delay = self.delay(1, 3_500);
        self.after(delay, |w| {
            if w.bus.alarm.on.is_none() || !w.master.linked || std::mem::replace(&mut w.bus.alarm.told, true) {
                return;
            }
            if w.broken != Some(Break::AlarmUnheard) {
                w.master_receives(Input::Event(MasterEvent::BrokerBlocked { why: "low on memory".to_owned() }));
            }
        });
    }

    /// The master's link is gone, and with it what it was told there.
    pub(super) fn master_forgets_alarm(&mut self) {
        if std::mem::take(&mut self.bus.alarm.told) {
            self.master_receives(Input::Event(MasterEvent::BrokerUnblocked));
        }
    }

    /// The machines whose agents were told that the broker accepts nothing.
    pub(super) fn told_of_alarm(&self) -> Vec<usize> {
        let told = |conn: Option<u64>| conn.and_then(|conn| self.bus.conns.get(&conn)).is_some_and(|conn| conn.told);
        let links = self.machines.iter().filter_map(|(id, machine)| Some((*id, machine.link?.1)));
        links.filter(|(_, conn)| told(*conn)).map(|(id, _)| id).collect()
    }

    /// The broker is gone.
    pub(super) fn drop_alarm(&mut self) {
        self.bus.alarm.on = None;
        self.bus.alarm.waiting.clear();
    }

    pub(super) fn end_alarm(&mut self, number: u64) {
        if self.bus.alarm.on != Some(number) {
            return;
        }
        self.say(|| "bus: the alarm is over".to_owned());
        self.bus.alarm.on = None;
        self.idle.clear();
        self.impostors.clear();
        if std::mem::take(&mut self.bus.alarm.told) {
            self.relay.linked_at = self.now;
            self.master_receives(Input::Event(MasterEvent::BrokerUnblocked));
        }
        // Also what a master has sent that is dead by now: it was in the broker's buffers.
        for (queue, message) in std::mem::take(&mut self.bus.alarm.waiting) {
            self.deliver_to_agent(queue, message);
        }
        let conns: Vec<u64> = self.bus.conns.keys().copied().collect();
        for number in conns {
            let Some(conn) = self.bus.conns.get_mut(&number) else { continue };
            let (was, waiting) = (std::mem::take(&mut conn.blocked), std::mem::take(&mut conn.waiting));
            let (machine, of_agent) = (conn.machine, conn.number);
            if !was {
                continue;
            }
            for message in waiting {
                self.publish_on(number, message);
            }
            self.tell_blocked(number);
            // Only now it is read that the other end is gone.
            let link = self.machines.get(&machine).and_then(|m| m.link);
            if link != Some((of_agent, Some(number))) {
                let delay = self.delay(1, 10_000);
                self.after(delay, move |w| w.conn_lost(number, false));
            }
        }
    }

    /// An agent publishes in an alarm.
    pub(super) fn hold_back(&mut self, number: u64, message: ToMaster) {
        let Some(conn) = self.bus.conns.get_mut(&number) else { return };
        conn.waiting.push(message);
        if !std::mem::replace(&mut conn.blocked, true) {
            self.tell_blocked(number);
        }
    }

    /// The master publishes in an alarm.
    pub(super) fn hold_back_of_master(&mut self, queue: String, message: ToAgent) {
        self.bus.alarm.waiting.push((queue, message));
    }

    /// The agent is told how it stands with its connection, when the network lets that through.
    fn tell_blocked(&mut self, number: u64) {
        let delay = self.delay(1, 50);
        self.after(delay, move |w| w.told_blocked(number));
    }

    fn told_blocked(&mut self, number: u64) {
        let Some(conn) = self.bus.conns.get_mut(&number).filter(|c| c.told != c.blocked) else { return };
        let (id, life, connection, blocked) = (conn.machine, conn.life, conn.number, conn.blocked);
        if self.machines.get(&id).is_some_and(|m| m.partitioned) {
            return self.after(1_000, move |w| w.told_blocked(number));
        }
        conn.told = blocked;
        let event = match blocked {
            true => Event::LinkBlocked { connection, why: "low on memory".to_owned() },
            false => Event::LinkUnblocked { connection },
        };
        self.agent_event(id, life, event);
    }

    /// Connections do not pile up.
    pub(super) fn check_connections(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id).filter(|_| self.bus.alarm.on.is_some()) else { return };
        let of_it = |conn: &&Conn| conn.machine == id && conn.life == machine.life;
        let count = self.bus.conns.values().filter(of_it).count();
        if count > CONNECTIONS {
            self.violated(format!("machine {id} has {count} connections in an alarm"));
        }
    }
}
