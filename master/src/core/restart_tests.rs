//! What the master must not forget when it is restarted or gets a new configuration.
#![allow(clippy::unwrap_used)]

use super::build::{BuildSpec, Requirement};
use super::event::{Command, Effect, Event, RequestId, StartError, Started};
use super::journal::Caller;
use super::plan::{AmongEquals, Digest, LatentPlan, Plan, ProviderKind, WorkerPlan};
use super::record::{Host, HostState, LaunchSpec, Ledger, Record, Session};
use super::{Core, Start};
use rouse_shared::limits::{KILL_MARGIN, PROTOCOL};
use rouse_shared::message::{Facts, Heartbeat, Hello, Step, ToAgent, ToMaster, Vitals, Welcome};
use rouse_shared::{BuildId, HostId, MasterId, Nonce, Timestamp, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn name() -> WorkerName {
    "w1".parse().unwrap()
}

fn worker(latent: bool, lease: u64) -> WorkerPlan {
    let latent = latent.then(|| LatentPlan {
        provider: ProviderKind::Process,
        place: "here".into(),
        build_wait_timeout: Some(600 * SECOND),
        max_uses: 0,
        template: "w1".to_owned(),
        prefer: 0,
        price: None,
        min_idle: 0,
        suspend: None,
        image: "image".into(),
        fingerprint: 1,
    });
    WorkerPlan {
        name: name(),
        template: "w1".to_owned(),
        password: Digest::of("password"),
        max_builds: Some(1),
        keepalive: 10 * SECOND,
        lease: Some(Duration::from_secs(lease)),
        grace: 600 * SECOND,
        missing_timeout: 1_200 * SECOND,
        notify_on_missing: Vec::new(),
        properties: BTreeMap::new(),
        run_as: None,
        limits: Default::default(),
        latent,
    }
}

fn plan(workers: Vec<WorkerPlan>) -> Arc<Plan> {
    Arc::new(Plan {
        outlives_alarms: true,
        workers: workers.into_iter().map(|w| (w.name.clone(), Arc::new(w))).collect(),
        max_hosts: None,
        max_spend_per_day: None,
        mail_after_failed_starts: 3,
        max_log_size: 256_000_000,
        queue_timeout: None,
        retention: Default::default(),
        among_equals: AmongEquals::Pack,
        audit_interval: 120 * SECOND,
        stop_orphans: true,
        restart_lease: 600 * SECOND,
        mail: super::plan::MailPlan::default(),
    })
}

/// A core, and what it has committed.
/// The provider's answer to what it is asked to work out.
fn prepared(effect: &Effect) -> Option<Event> {
    let Effect::PrepareHost { host, number, .. } = effect else { return None };
    let (number, host) = (*number, host.id.clone());
    let identity = Some(host.0.clone());
    let order = LaunchSpec {
        number,
        alternative: String::new(),
        image: "image".to_owned(),
        spec: String::new(),
        more: false,
        fresh: false,
        identity,
        price: None,
        spot: false,
    };
    Some(Event::Prepared { host, number, result: Ok(order) })
}

fn started() -> Result<Started, StartError> {
    Ok(Started { handle: "1".to_owned(), identity: None })
}

struct Master {
    core: Core,
    now: Timestamp,
    builds: BTreeMap<BuildId, (Arc<BuildSpec>, super::build::BuildStatus)>,
    hosts: BTreeMap<HostId, Host>,
    session: Option<Session>,
    leases_extended: Option<Duration>,
}

impl Master {
    fn new(plan: Arc<Plan>) -> Self {
        let (now, ledger) = (Timestamp(1_000_000), Ledger::default());
        let start = Start { master: MasterId("m".to_owned()), plan, ledger, seed: [7; 32] };
        let (core, _) = Core::new(now, start);
        let mut this =
            Self { core, now, builds: BTreeMap::new(), hosts: BTreeMap::new(), session: None, leases_extended: None };
        this.handle(Event::BrokerUp);
        this
    }

    fn keep(&mut self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Save(record) = effect else { continue };
            match record.clone() {
                Record::NewBuild { id, spec, status, .. } => drop(self.builds.insert(id, (spec, status))),
                Record::Build(id, status) => self.builds.get_mut(&id).unwrap().1 = status,
                Record::Host(host) => drop(self.hosts.insert(host.id.clone(), host)),
                Record::Session(session) => self.session = Some(session),
                Record::SessionOver(_) => self.session = None,
                Record::Spent(_) => {}
                Record::LogsMeasured(..) | Record::LogsExpired(..) => {}
                Record::LogsDeleted(_) | Record::LogsUploaded(..) | Record::BuildDeleted(_) => {}
                Record::Worker(..)
                | Record::Image(..)
                | Record::Place(..)
                | Record::News(_)
                | Record::NewsOver(_)
                | Record::Mail(_) => {}
                Record::MailOver(_) | Record::MailPause(..) | Record::OrphanReported(..) | Record::OrphanOver(..) => {}
                Record::AlarmTold(_) | Record::Entry(_) => {}
                Record::LeasesExtended(by) => self.leases_extended = by,
            }
        }
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.core.handle(self.now, event);
        self.keep(&effects);
        let prepared: Vec<_> = effects.iter().filter_map(prepared).collect();
        for event in prepared {
            effects.extend(self.handle(event));
        }
        effects
    }

    fn after(&mut self, pause: Duration) -> Vec<Effect> {
        self.now = self.now + pause;
        self.handle(Event::Tick)
    }

    /// Another master takes over from the ledger.
    fn restart(&mut self, plan: Arc<Plan>) -> Vec<Effect> {
        let live = self.builds.iter().filter(|(_, (_, status))| status.end.is_none());
        let builds = live
            .map(|(id, (spec, status))| super::build::Build {
                id: *id,
                spec: spec.clone(),
                status: status.clone(),
                logs_deleted: None,
                logs_store: None,
            })
            .collect();
        let ledger = Ledger {
            builds,
            hosts: self.hosts.values().filter(|h| h.state != HostState::Terminated).cloned().collect(),
            sessions: self.session.clone().into_iter().collect(),
            workers: Vec::new(),
            images: Vec::new(),
            last_build: self.builds.len() as u64,
            leases_extended: self.leases_extended,
            ..Ledger::default()
        };
        let start = Start { master: MasterId("m".to_owned()), plan, ledger, seed: [8; 32] };
        let (core, mut effects) = Core::new(self.now, start);
        self.core = core;
        self.keep(&effects);
        effects.extend(self.handle(Event::BrokerUp));
        effects
    }

    fn hello(&mut self, credential: &str, identity: &str, connection: u64) -> Welcome {
        let hello = Hello {
            protocol: PROTOCOL,
            version: "1".to_owned(),
            connection,
            queue: format!("q{connection}"),
            identity: identity.to_owned(),
            nonce: Nonce("n".to_owned()),
            credential: credential.to_owned(),
            master: None,
            attempts: Vec::new(),
            facts: Facts::default(),
            leaving: false,
            proof: Default::default(),
        };
        let effects = self.handle(Event::Agent { worker: name(), message: ToMaster::Hello(Box::new(hello)) });
        sent(&effects)
            .find_map(|m| match m {
                ToAgent::Welcome(welcome) => Some((**welcome).clone()),
                _ => None,
            })
            .unwrap()
    }

    fn heartbeat(&mut self, seq: u64) -> Vec<Effect> {
        let session = self.session.as_ref().unwrap().id.clone();
        let heartbeat = Heartbeat { session, seq, vitals: Vitals::default(), unclean: None };
        self.handle(Event::Agent { worker: name(), message: ToMaster::Heartbeat(heartbeat) })
    }

    fn submit(&mut self) -> Vec<Effect> {
        let step = Step {
            name: "a".into(),
            run: vec!["true".into()],
            workdir: String::new(),
            env: BTreeMap::new(),
            timeout_ms: None,
            silence_ms: None,
            always: false,
            limits: Default::default(),
        };
        let spec = BuildSpec {
            name: "b".into(),
            requirement: Requirement::Where(BTreeMap::new()),
            priority: 0,
            retries: 0,
            timeout_ms: None,
            queue_timeout_ms: None,
            keep: false,
            env: BTreeMap::new(),
            limits: Default::default(),
            steps: vec![step],
        };
        self.handle(Event::Command {
            request: RequestId(1),
            by: Caller::signal("test"),
            command: Command::Submit { spec: Arc::new(spec), message_id: None },
        })
    }

    fn host(&self) -> &Host {
        self.hosts.values().next().unwrap()
    }
}

fn sent(effects: &[Effect]) -> impl Iterator<Item = &ToAgent> {
    effects.iter().filter_map(|e| match e {
        Effect::Send { message, .. } => Some(message),
        _ => None,
    })
}

#[test]
fn a_lease_that_was_promised_holds_through_a_reload_and_a_restart() {
    let mut master = Master::new(plan(vec![worker(false, 300)]));
    assert_eq!(master.hello("password", "here", 1).lease_ms, Some(300_000));
    // The agent still counts with 300 s.
    master.handle(Event::Configure(plan(vec![worker(false, 60)])));
    master.heartbeat(1);
    master.after(300 * SECOND);
    assert!(master.session.is_some());
    master.after(KILL_MARGIN);
    assert!(master.session.is_none());

    let mut master = Master::new(plan(vec![worker(false, 60)]));
    master.hello("password", "here", 1);
    master.handle(Event::Shutdown);
    master.now = master.now + 3 * SECOND;
    let effects = master.heartbeat(1);
    let extended = |m: &ToAgent| matches!(m, ToAgent::Renewed { lease_ms: Some(600_000), .. });
    assert!(sent(&effects).any(extended), "a heartbeat's answer must not take the longer lease back");
    master.restart(plan(vec![worker(false, 60)]));
    // The welcome may be lost on its way.
    master.hello("password", "here", 2);
    master.after(600 * SECOND);
    assert!(master.session.is_some());
    master.after(KILL_MARGIN);
    assert!(master.session.is_none());
}

#[test]
fn a_worker_that_was_removed_while_the_master_was_away_winds_up() {
    let mut master = Master::new(plan(vec![worker(true, 60)]));
    master.submit();
    let (id, token) = (master.host().id.clone(), master.host().token.clone());
    master.handle(Event::StartEnded { host: id.clone(), number: 0, result: started() });
    master.hello(&token, &id.0, 1);
    assert_eq!(master.host().uses, 1);

    master.restart(plan(Vec::new()));
    let welcome = master.hello(&token, &id.0, 2);
    assert_eq!((welcome.lease_ms, welcome.grace_ms), (Some(60_000), 600_000));
    // Its agent never sends another message.
    let effects = master.after(60 * SECOND + KILL_MARGIN);
    assert!(effects.iter().any(|e| matches!(e, Effect::TerminateHost(_))), "{effects:?}");
}

#[test]
fn a_standing_worker_that_is_latent_now_lets_its_agent_go() {
    let mut master = Master::new(plan(vec![worker(false, 60)]));
    master.hello("password", "here", 1);
    master.handle(Event::Configure(plan(vec![worker(true, 60)])));
    assert!(master.session.is_none());
    let effects = master.submit();
    assert!(effects.iter().any(|e| matches!(e, Effect::StartHost(_))));
}

#[test]
fn a_start_that_may_have_been_given_before_is_given_until_its_result_is_known() {
    let mut master = Master::new(plan(vec![worker(true, 60)]));
    master.submit();
    let id = master.host().id.clone();
    let effects = master.restart(plan(vec![worker(true, 60)]));
    assert!(effects.iter().any(|e| matches!(e, Effect::StartHost(_))));
    let failed = Err(StartError::Place("no route".to_owned()));
    master.handle(Event::StartEnded { host: id.clone(), number: 0, result: failed.clone() });
    assert_eq!(master.host().state, HostState::Ordered);
    assert!(master.after(60 * SECOND).iter().any(|e| matches!(e, Effect::StartHost(_))));

    // The first one of all proves that nothing was made.
    let mut master = Master::new(plan(vec![worker(true, 60)]));
    master.submit();
    let id = master.host().id.clone();
    master.handle(Event::StartEnded { host: id, number: 0, result: failed });
    assert_eq!(master.host().state, HostState::Terminated);
}

#[test]
fn a_host_that_goes_while_its_evidence_is_fetched_has_failed_once() {
    let mut master = Master::new(plan(vec![worker(true, 60)]));
    master.submit();
    let id = master.host().id.clone();
    master.handle(Event::StartEnded { host: id.clone(), number: 0, result: started() });
    master.after(1_200 * SECOND);
    assert_eq!(master.host().state, HostState::Terminating);
    master.handle(Event::HostGone { host: id.clone(), why: "it ended".to_owned(), reclaimed: false });
    master.handle(Event::Console { host: id, text: Some("late".to_owned()) });
    assert_eq!(master.builds[&BuildId(1)].1.failed_hosts.len(), 1);
    assert_eq!(master.hosts.len(), 1, "the next try comes after a pause");
}
