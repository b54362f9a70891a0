//! Transcripts of the core: each event with its exact effects. Log lines are left out.
#![allow(clippy::unwrap_used)]

mod attempts;
mod blocked;
mod ending;
mod lease;
mod random;

use super::*;
use rouse_shared::message::*;
use rouse_shared::{BuildId, SessionId};

/// A core and its transcript.
struct Agent {
    core: Core,
}

fn settings() -> Settings {
    Settings {
        worker: "w1".parse().unwrap(),
        identity: "uuid:1".to_owned(),
        proof: Proof::default(),
        version: "0".to_owned(),
        facts: Facts::default(),
        password: "hush".to_owned(),
        secret: None,
        latent: false,
        started: Timestamp(0),
        power_off_after: Duration::from_secs(1_200),
        run_as: None,
    }
}

fn welcome() -> Welcome {
    Welcome {
        session: SessionId("s1".to_owned()),
        master: MasterId("m1".to_owned()),
        secret: None,
        keepalive_ms: 10_000,
        lease_ms: Some(60_000),
        link_patience_ms: None,
        blocked_lease_ms: None,
        standing: true,
        grace_ms: 600_000,
    }
}

fn s1() -> SessionId {
    SessionId("s1".to_owned())
}

/// `12.1` as an attempt.
fn id(text: &str) -> AttemptId {
    let (build, number) = text.split_once('.').unwrap();
    AttemptId { build: BuildId(build.parse().unwrap()), number: number.parse().unwrap() }
}

fn step(name: &str) -> Step {
    Step {
        name: name.to_owned(),
        run: vec![name.to_owned()],
        workdir: String::new(),
        env: BTreeMap::new(),
        timeout_ms: None,
        silence_ms: None,
        always: false,
        limits: Limits::default(),
    }
}

fn order(attempt: &str, steps: Vec<Step>) -> ToAgent {
    ToAgent::RunAttempt(Box::new(RunAttempt {
        session: s1(),
        attempt: id(attempt),
        env: BTreeMap::new(),
        run_as: None,
        timeout_ms: None,
        limits: Limits::default(),
        steps,
    }))
}

fn started(attempt: &str, step: u32) -> Event {
    Event::StepStarted { attempt: id(attempt), step }
}

fn ended(attempt: &str, step: u32, state: StepState) -> Event {
    let took = Duration::from_millis(1_000);
    Event::StepEnded { attempt: id(attempt), step, state, log_length: 3, log_cut: 0, took, usage: None, unclean: false }
}

impl Agent {
    fn new(settings: Settings) -> Self {
        Self { core: Core::new(settings, Nonce("n".to_owned())) }
    }

    /// An agent that has been attached since 1,000 ms, when it sent its hello.
    fn attached(settings: Settings, welcome: Welcome) -> Self {
        let mut agent = Self::new(settings);
        agent.at(0, Event::Start);
        agent.at(1_000, Event::LinkUp { connection: 1 });
        agent.receives(1_000, ToAgent::Welcome(Box::new(welcome)));
        assert!(agent.core.attached());
        agent
    }

    fn at(&mut self, ms: u64, event: Event) -> Vec<String> {
        self.core.handle(Timestamp(ms), event).iter().filter_map(shown).collect()
    }

    /// Delivers a message of the master on the newest connection.
    fn receives(&mut self, ms: u64, message: ToAgent) -> Vec<String> {
        let connection = self.core.connection;
        self.at(ms, Event::FromMaster { connection, message: Box::new(message) })
    }

    fn breaks(&mut self, ms: u64) -> Vec<String> {
        let connection = self.core.connection;
        self.at(ms, Event::LinkDown { connection, refused: false, why: "cut".to_owned() })
    }

    /// Ticks whenever the core asks for it, until and including that time; `answered` says whether heartbeats are
    /// answered.
    fn until(&mut self, ms: u64, answered: bool) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let Some(next) = self.core.next_wakeup().filter(|at| at.0 <= ms) else { return all };
            for effect in self.core.handle(next, Event::Tick) {
                all.extend(shown(&effect).map(|text| format!("{} {text}", next.0)));
                if let (Effect::Send(message), true) = (&effect, answered)
                    && let ToMaster::Heartbeat(Heartbeat { session, seq, .. }) = &**message
                {
                    let renewed = ToAgent::Renewed { session: session.clone(), seq: *seq, lease_ms: None };
                    all.extend(self.receives(next.0, renewed).into_iter().map(|text| format!("{} {text}", next.0)));
                }
            }
        }
        panic!("the core asks to be woken without end: {all:?}");
    }
}

/// An effect in short; empty for log lines.
fn shown(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Connect { connection, queue, credential } => {
            assert_eq!(*queue, format!("rouse.agent.w1.n.{connection}"));
            format!("connect {connection} with {credential}")
        }
        Effect::Disconnect { connection } => format!("disconnect {connection}"),
        Effect::Send(message) => said(message),
        Effect::RunStep(step) => format!("run {}/{} {}", step.attempt, step.step, step.run.join(" ")),
        Effect::StopAttempt(attempt) => format!("stop {attempt}"),
        Effect::KillAttempt(attempt) => format!("kill {attempt}"),
        Effect::SetDeadline(None) => "no deadline".to_owned(),
        Effect::SetDeadline(Some(at)) => format!("deadline {}", at.0),
        Effect::StoreSecret(secret) => format!("store {secret}"),
        Effect::ForgetSecret => "forget secret".to_owned(),
        Effect::RemoveAttempt(attempt) => format!("remove {attempt}"),
        Effect::SendLogFrom { attempt, step, offset } => format!("log {attempt}/{step} from {offset}"),
        Effect::PowerOff { .. } => "power off".to_owned(),
        Effect::Exit { .. } => "exit".to_owned(),
        Effect::Restart { .. } => "restart".to_owned(),
        Effect::Log(..) => return None,
    })
}

fn said(message: &ToMaster) -> String {
    match message {
        ToMaster::Hello(hello) => {
            let attempts: Vec<_> = hello.attempts.iter().map(picture).collect();
            let master = hello.master.as_ref().map_or("-", |m| m.as_str());
            format!("hello {} with {} of {master} [{}]", hello.connection, hello.credential, attempts.join(", "))
        }
        ToMaster::Heartbeat(heartbeat) => format!("heartbeat {}", heartbeat.seq),
        ToMaster::Report(report) => format!("report {}", picture(&report.attempt)),
        ToMaster::Drained { drain, .. } => format!("drained {drain}"),
        ToMaster::Leaving { .. } => "leaving".to_owned(),
        ToMaster::Goodbye { .. } => "goodbye".to_owned(),
        ToMaster::Notice { notice: CloudNotice::Rebalance { at }, .. } => format!("rebalance {at}"),
        ToMaster::Notice { notice: CloudNotice::Interruption { action, at }, .. } => format!("{action} at {at}"),
    }
}

/// `12.1 r2: Exited(0), Running` and the outcome, if there is one.
fn picture(report: &AttemptReport) -> String {
    let steps: Vec<_> = report.steps.iter().map(|s| format!("{:?}", s.state)).collect();
    let mut text = format!("{} r{}: {}", report.attempt, report.revision, steps.join(", "));
    if let Some(outcome) = &report.outcome {
        text.push_str(&format!(" => {outcome:?}"));
    }
    text
}
