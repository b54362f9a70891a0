//! Random events in any order: no panic, and the invariants hold after each.

use super::*;
use crate::core::random::SplitMix64;

struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn attempt(&mut self) -> AttemptId {
        AttemptId { build: BuildId(self.below(4)), number: 1 }
    }

    fn session(&mut self) -> SessionId {
        SessionId(if self.below(8) == 0 { "s2" } else { "s1" }.to_owned())
    }

    fn state(&mut self) -> StepState {
        match self.below(6) {
            0 => StepState::Exited(1),
            1 => StepState::Stopped,
            2 => StepState::Lost("gone".to_owned()),
            3 => StepState::Running,
            _ => StepState::Exited(0),
        }
    }

    fn message(&mut self) -> ToAgent {
        let session = self.session();
        match self.below(16) {
            0..=3 => ToAgent::Welcome(Box::new(Welcome {
                session,
                standing: self.below(2) == 0,
                lease_ms: (self.below(4) > 0).then_some(60_000),
                link_patience_ms: Some(100_000),
                blocked_lease_ms: (self.below(2) == 0).then_some(100_000),
                ..welcome()
            })),
            4 => ToAgent::Refused { reason: "no".to_owned(), power_off: self.below(30) == 0 },
            5 => ToAgent::Renewed { session, seq: self.below(6), lease_ms: None },
            6..=9 => {
                let steps = (0..self.below(4)).map(|_| step("a")).collect();
                let ToAgent::RunAttempt(mut order) = order("1.1", steps) else { unreachable!() };
                order.attempt = self.attempt();
                order.timeout_ms = (self.below(3) == 0).then_some(20_000);
                order.session = session;
                ToAgent::RunAttempt(order)
            }
            10 => ToAgent::Cancel { session, attempt: self.attempt() },
            11 | 12 => ToAgent::Settled { session, attempts: vec![self.attempt(), self.attempt()] },
            13 => ToAgent::Resend { session, attempt: self.attempt(), step: 0, offset: self.below(9) },
            14 => ToAgent::Drain { session, drain: self.below(3), suspend: self.below(2) == 0 },
            _ => ToAgent::Undrain { session },
        }
    }

    fn event(&mut self, connection: u64) -> Event {
        // Now and then of an old connection.
        let connection = connection.saturating_sub(u64::from(self.below(10) == 0));
        let (attempt, step) = (self.attempt(), u32::try_from(self.below(3)).unwrap());
        match self.below(200) {
            0..=29 => Event::LinkUp { connection },
            30..=33 => Event::LinkDown { connection, refused: self.below(2) == 0, why: String::new() },
            34..=119 => Event::FromMaster { connection, message: Box::new(self.message()) },
            120..=144 => Event::StepStarted { attempt, step },
            145..=169 => {
                let (state, took) = (self.state(), Duration::from_secs(1));
                Event::StepEnded { attempt, step, state, log_length: 5, log_cut: 0, took, usage: None, unclean: false }
            }
            170 => Event::PrepareFailed { attempt, why: "no".to_owned() },
            171..=180 => Event::LogSent { attempt, step, offset: self.below(9) },
            181 if self.below(20) == 0 => Event::Terminate,
            182 => Event::Notice(CloudNotice::Rebalance { at: "t1".to_owned() }),
            183 => {
                let (action, at) = ("terminate".to_owned(), format!("t{}", self.below(3)));
                Event::Notice(CloudNotice::Interruption { action, at })
            }
            184 => Event::Resumed(Duration::from_secs(self.below(100))),
            185..=187 => Event::NetworkChanged,
            188 | 189 => Event::LinkBlocked { connection, why: String::new() },
            190 => Event::LinkUnblocked { connection },
            _ => Event::Tick,
        }
    }
}

/// The running steps, by the effects and events so far.
#[derive(Default)]
struct Runs(BTreeMap<AttemptId, u32>);

#[test]
fn random_events_break_nothing() {
    for seed in 0..3_000 {
        let mut random = Random(SplitMix64(seed));
        let mut core = Core::new(Settings { latent: seed % 2 == 0, ..settings() }, Nonce(format!("{seed}")));
        let (mut now, mut runs, mut log) = (0, Runs::default(), Vec::new());
        core.handle(Timestamp(0), Event::Start);
        for _ in 0..150 {
            now += random.below(2_000);
            let event = random.event(core.connection);
            let mut just_ended = None;
            match &event {
                // Only a running step can end.
                Event::StepEnded { attempt, step, .. } if runs.0.get(attempt) != Some(step) => continue,
                Event::StepStarted { attempt, step } if runs.0.get(attempt) != Some(step) => continue,
                Event::PrepareFailed { attempt, .. } if !runs.0.contains_key(attempt) => continue,
                Event::StepEnded { attempt, .. } | Event::PrepareFailed { attempt, .. } => {
                    runs.0.remove(attempt);
                    just_ended = Some(*attempt);
                }
                _ => {}
            }
            let effects = core.handle(Timestamp(now), event.clone());
            log.push(format!("{now} {event:?} -> {effects:?}"));
            for effect in &effects {
                let sane = match effect {
                    Effect::RunStep(run) => runs.0.insert(run.attempt, run.step).is_none(),
                    Effect::RemoveAttempt(attempt) => !runs.0.contains_key(attempt),
                    // A step's own end may cross what ends it.
                    Effect::KillAttempt(attempt) | Effect::StopAttempt(attempt) => {
                        runs.0.contains_key(attempt) || just_ended == Some(*attempt)
                    }
                    Effect::Send(message) => match &**message {
                        ToMaster::Drained { .. } | ToMaster::Goodbye { .. } => runs.0.is_empty(),
                        ToMaster::Report(_)
                        | ToMaster::Heartbeat(_)
                        | ToMaster::Leaving { .. }
                        | ToMaster::Notice { .. } => {
                            // Until it disconnects at its end, the agent is attached when it sends.
                            core.attached() || core.ended() || core.session.is_none() || effects.len() > 1
                        }
                        ToMaster::Hello(_) => true,
                    },
                    _ => true,
                };
                assert!(sane, "seed {seed}: {effect:?}\n{}", log.join("\n"));
            }
            // The end of what was killed is an event of its own, and so is that of an alarm.
            let waits = core.next_wakeup().is_some() || !core.dying.is_empty() || core.blocked.is_some();
            assert!(core.ended() || waits, "seed {seed}: nothing is waited for");
            let alive = |a: &AttemptId| core.attempts.contains_key(a) || core.dying.contains(a);
            assert!(core.ended() || runs.0.keys().all(alive), "seed {seed}: forgotten\n{}", log.join("\n"));
            if core.session.is_none() {
                let running = core.attempts.values().any(Attempt::runs);
                assert!(!running, "seed {seed}: attempts that run without a session");
            }
        }
    }
}

#[test]
fn the_core_is_never_woken_for_nothing() {
    for seed in 0..300 {
        let mut random = Random(SplitMix64(seed));
        let mut agent = Agent::new(Settings { latent: seed % 2 == 0, ..settings() });
        agent.at(0, Event::Start);
        let mut now = 0;
        for _ in 0..40 {
            now += random.below(30_000);
            let event = random.event(agent.core.connection);
            if !matches!(event, Event::StepEnded { .. } | Event::StepStarted { .. } | Event::PrepareFailed { .. }) {
                agent.at(now, event);
            }
            // At most a handful of ticks for an instant: the next wakeup moves on.
            for _ in 0..8 {
                if agent.core.next_wakeup().is_none_or(|at| at.0 > now) {
                    break;
                }
                agent.at(now, Event::Tick);
            }
            let moved = agent.core.next_wakeup().is_none_or(|at| at.0 > now);
            assert!(moved, "seed {seed}: stuck at {now}: {:?}", agent.core);
        }
    }
}
