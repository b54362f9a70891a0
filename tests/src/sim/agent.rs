//! Performs an agent's effects: its link, its runner with supervisors, its logs.

use super::Break;
use super::machine::{Pace, Run, Spool};
use super::show;
use super::world::World;
use rouse_agent::core::{Effect, Event, RunStep};
use rouse_shared::message::{LogChunk, StepState};
use rouse_shared::{AttemptId, Timestamp};
use std::time::Duration;

impl World {
    /// Something happens to an agent, in its own time.
    pub(super) fn agent_event(&mut self, id: usize, life: u64, event: Event) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on && m.life == life) else { return };
        match machine.pace {
            Pace::Going => {}
            Pace::Frozen => return machine.backlog.push(event),
            Pace::Suspended => {
                machine.postponed.push(Box::new(move |w| w.agent_event(id, life, event)));
                return;
            }
        }
        let clock = machine.clock(now);
        let shown = (self.loud() && event != Event::Tick).then(|| show::agent_event(&event));
        let Some(core) = self.machines.get_mut(&id).and_then(|m| m.agent.as_mut()) else { return };
        let effects = core.handle(clock, event);
        if let Some(shown) = shown {
            self.say(|| format!("  machine {id} <- {shown}"));
        }
        for effect in effects {
            // An effect may have ended this life.
            if self.machines.get(&id).is_none_or(|m| m.life != life) {
                return;
            }
            self.agent_effect(id, life, effect);
        }
        self.note_attached(id, life);
        self.arm_tick(id, life);
    }

    fn note_attached(&mut self, id: usize, life: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.life == life) else { return };
        let attached = machine.agent.as_ref().is_some_and(|agent| agent.attached());
        machine.disarmed = machine.agent.as_ref().and_then(|agent| agent.standing()).unwrap_or(machine.disarmed);
        if attached && !std::mem::replace(&mut machine.attached, attached) {
            (machine.attached_since, machine.armed) = (now, false);
            self.welcomed.extend(machine.nonce.clone());
            self.check_attached(id);
        } else {
            machine.attached = attached;
        }
    }

    fn arm_tick(&mut self, id: usize, life: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.life == life) else { return };
        let Some(wakeup) = machine.agent.as_ref().and_then(|a| a.next_wakeup()) else { return };
        let at = now + wakeup.0.saturating_sub(machine.clock(now).0).max(1);
        if machine.tick_at.is_some_and(|before| before <= at && before > now) {
            return;
        }
        machine.tick_at = Some(at);
        self.at(at, move |w| {
            if let Some(machine) = w.machines.get_mut(&id).filter(|m| m.tick_at == Some(at) && m.life == life) {
                machine.tick_at = None;
                // One that is frozen is ticked when it thaws.
                if machine.pace == Pace::Going {
                    w.agent_event(id, life, Event::Tick);
                }
            }
        });
    }

    fn agent_effect(&mut self, id: usize, life: u64, effect: Effect) {
        if !matches!(effect, Effect::Connect { .. }) {
            self.say(|| format!("    machine {id} -> {}", show::agent_effect(&effect)));
        }
        match effect {
            Effect::Connect { connection, queue, credential } => self.connect(id, life, connection, queue, credential),
            Effect::Disconnect { connection } => self.disconnect(id, connection),
            Effect::Send(message) => self.publish(id, *message),
            Effect::RunStep(step) => self.run_step(id, life, *step),
            Effect::StopAttempt(attempt) => {
                let delay = self.delay(1, 5_000);
                self.end_run_after(id, attempt, delay, StepState::Stopped);
            }
            Effect::KillAttempt(attempt) => {
                let delay = self.delay(1, 200);
                self.end_run_after(id, attempt, delay, StepState::Signalled(9));
            }
            Effect::SetDeadline(deadline) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.deadline = deadline;
                }
                self.watch_deadline(id, life);
            }
            Effect::StoreSecret(secret) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.secret = Some(secret);
                }
            }
            Effect::ForgetSecret => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.secret = None;
                }
            }
            Effect::RemoveAttempt(attempt) => {
                if self.machines.get(&id).is_some_and(|m| m.runs.contains_key(&attempt)) {
                    self.violated(format!("machine {id} removes the files of {attempt}, which runs"));
                }
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.spools.retain(|(of, _), _| *of != attempt);
                }
            }
            Effect::SendLogFrom { attempt, step, offset } => {
                if let Some(machine) = self.machines.get_mut(&id)
                    && let Some((_, Some(conn))) = machine.link
                    && let Some(spool) = machine.spools.get_mut(&(attempt, step))
                {
                    let from = if self.broken == Some(Break::SendLogsOnce) { spool.sent } else { offset };
                    spool.next = Some((from, conn));
                }
                self.pump(id, life, attempt, step);
            }
            Effect::PowerOff { .. } => self.agent_ends(id, true),
            Effect::Exit { .. } => self.agent_ends(id, false),
            Effect::Restart { .. } => {
                self.agent_dies(id, true);
                let delay = self.delay(10, 500);
                self.after(delay, move |w| w.start_agent(id));
            }
            Effect::Log(..) => {}
        }
    }

    fn agent_ends(&mut self, id: usize, power_off: bool) {
        if power_off {
            self.check_powered_off(id);
        }
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.ended = true;
        machine.left = !power_off;
        let host = machine.host.clone();
        match host {
            Some(host) if power_off && self.broken != Some(Break::NoDeadMan) => {
                self.vm_ends(&host, "powered itself off");
            }
            None if power_off => self.machine_off(id),
            // The last messages leave, then the socket is closed.
            Some(_) | None => self.agent_dies(id, true),
        }
    }

    fn run_step(&mut self, id: usize, life: u64, step: RunStep) {
        let attempt = step.attempt;
        self.check_run(id, attempt, step.step);
        let number = self.chance.draw();
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if self.chance.permille(5) && step.step == 0 && !self.quiet && self.faults.kill {
            self.after(5, move |w| {
                w.agent_event(id, life, Event::PrepareFailed { attempt, why: "the disk is full".to_owned() });
            });
            return;
        }
        self.ran.insert((attempt, step.step), None);
        machine.runs.insert(attempt, Run { step: step.step, number, began: now, started: false });
        let spool = Spool::of(step.session.clone());
        machine.spools.insert((attempt, step.step), spool);
        // Long enough for an alarm to outlast the lease, if there are any.
        let often = if self.faults.alarm { 500 } else { 150 };
        let long = !self.quiet && self.chance.permille(often);
        let mut lasts = if long { self.delay(60_000, 500_000) } else { self.delay(50, 20_000) };
        let mut state = StepState::Exited(if self.chance.permille(850) { 0 } else { 1 });
        if let Some(limit) = step.timeout.map(|t| t.as_millis() as u64).filter(|limit| *limit < lasts) {
            (lasts, state) = (limit, StepState::TimedOut);
        }
        let begins = self.delay(5, 300);
        self.step_in(begins, id, life, attempt, number, move |w| {
            if let Some(run) = w.machines.get_mut(&id).and_then(|m| m.runs.get_mut(&attempt)) {
                run.started = true;
            }
            w.print(id, attempt, step.step, false);
            w.agent_event(id, life, Event::StepStarted { attempt, step: step.step });
        });
        self.step_in(begins + lasts, id, life, attempt, number, move |w| w.run_over(id, life, attempt, state));
    }

    /// Does something later, if that step still runs then; while the machine is suspended it waits.
    fn step_in(
        &mut self,
        delay: u64,
        id: usize,
        life: u64,
        attempt: AttemptId,
        number: u64,
        act: impl FnOnce(&mut World) + 'static,
    ) {
        self.after(delay, move |w| {
            let Some(machine) = w.machines.get_mut(&id).filter(|m| m.on && m.life == life) else { return };
            if machine.runs.get(&attempt).is_none_or(|run| run.number != number) {
                return;
            }
            if machine.pace == Pace::Suspended {
                machine.postponed.push(Box::new(move |w| {
                    let still = w.machines.get(&id).and_then(|m| m.runs.get(&attempt));
                    if still.is_some_and(|run| run.number == number) {
                        act(w);
                    }
                }));
                return;
            }
            act(w);
        });
    }

    fn end_run_after(&mut self, id: usize, attempt: AttemptId, delay: u64, state: StepState) {
        let Some(machine) = self.machines.get(&id) else { return };
        let life = machine.life;
        let Some(number) = machine.runs.get(&attempt).map(|run| run.number) else { return };
        self.step_in(delay, id, life, attempt, number, move |w| w.run_over(id, life, attempt, state));
    }

    /// Nothing of the step runs any more, and the agent gets the event.
    fn run_over(&mut self, id: usize, life: u64, attempt: AttemptId, state: StepState) {
        let now = self.now;
        let Some(run) = self.machines.get_mut(&id).and_then(|m| m.runs.remove(&attempt)) else { return };
        self.say(|| format!("  machine {id}: step {} of {attempt} is over: {state:?}", run.step));
        self.print(id, attempt, run.step, true);
        self.ran.insert((attempt, run.step), Some(state.clone()));
        self.ran_on.insert(attempt, (id, life));
        let log_length =
            self.machines.get(&id).and_then(|m| m.spools.get(&(attempt, run.step))).map_or(0, |s| s.length);
        let took = Duration::from_millis(now - run.began);
        self.agent_event(
            id,
            life,
            Event::StepEnded {
                attempt,
                step: run.step,
                state,
                log_length,
                log_cut: 0,
                took,
                usage: None,
                unclean: false,
            },
        );
        self.pump(id, life, attempt, run.step);
    }

    fn watch_deadline(&mut self, id: usize, life: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get(&id).filter(|m| m.life == life) else { return };
        let Some(deadline) = machine.deadline else { return };
        let at = now + deadline.0.saturating_sub(machine.clock(now).0);
        self.at(at, move |w| w.enforce_deadline(id, life, false));
    }

    /// The supervisors end what runs past the deadline, whatever the agent does.
    pub(super) fn enforce_deadline(&mut self, id: usize, life: u64, at_once: bool) {
        if self.broken == Some(Break::NoDeadline) {
            return;
        }
        let now = self.now;
        let Some(machine) = self.machines.get(&id).filter(|m| m.on && m.life == life) else { return };
        let past = |deadline: Timestamp| deadline <= machine.clock(now);
        if machine.pace == Pace::Suspended || !machine.deadline.is_some_and(past) {
            return;
        }
        let running: Vec<AttemptId> = machine.runs.keys().copied().collect();
        if self.broken == Some(Break::ForgetLogs)
            && let Some(machine) = self.machines.get_mut(&id)
        {
            machine.spools.retain(|(attempt, _), _| running.contains(attempt));
        }
        for attempt in running {
            let state = StepState::Lost("the lease is over".to_owned());
            if at_once {
                self.run_over(id, life, attempt, state);
            } else {
                let delay = if self.chance.permille(50) { self.delay(1_000, 4_500) } else { self.delay(1, 500) };
                self.end_run_after(id, attempt, delay, state);
            }
        }
    }

    /// The step prints something.
    fn print(&mut self, id: usize, attempt: AttemptId, step: u32, ended: bool) {
        let more = if self.chance.permille(300) { 0 } else { self.delay(1, 150) };
        if let Some(spool) = self.machines.get_mut(&id).and_then(|m| m.spools.get_mut(&(attempt, step))) {
            spool.length += more;
            spool.ended = ended;
        }
    }

    /// Sends the log's next chunk, if there is one.
    fn pump(&mut self, id: usize, life: u64, attempt: AttemptId, step: u32) {
        if self.bus.alarm.on.is_some() {
            return self.after(1_000, move |w| w.pump(id, life, attempt, step));
        }
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on && m.life == life) else { return };
        let up = machine.link.and_then(|(_, conn)| conn);
        let worker = machine.worker.clone();
        let (pace, partitioned) = (machine.pace, machine.partitioned);
        let Some(spool) = machine.spools.get_mut(&(attempt, step)) else { return };
        let Some((offset, conn)) = spool.next else { return };
        if up != Some(conn) || offset >= spool.length || spool.pumping || pace != Pace::Going {
            return;
        }
        let size = (spool.length - offset).min(64);
        spool.next = Some((offset + size, conn));
        spool.sent = spool.sent.max(offset + size);
        spool.pumping = true;
        let session = spool.session.clone();
        let lost = self.bus.up && self.mishap(self.faults.log_loss);
        let bytes = vec![b'x'; size as usize];
        let sent = self.bus.up && !partitioned;
        if sent && !lost {
            self.log_chunk(conn, worker, LogChunk { session, attempt, step, offset, bytes });
        }
        let delay = self.delay(2, 60);
        self.after(delay, move |w| {
            let Some(machine) = w.machines.get_mut(&id).filter(|m| m.life == life) else { return };
            if let Some(spool) = machine.spools.get_mut(&(attempt, step)) {
                spool.pumping = false;
            }
            if sent {
                w.agent_event(id, life, Event::LogSent { attempt, step, offset: offset + size });
                w.pump(id, life, attempt, step);
            }
        });
    }
}
