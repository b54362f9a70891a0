//! The system of a seed: its workers, its limits, and the faults that happen in it.

use super::relay::NOBODY;
use crate::chance::Chance;
use rouse_master::core::plan::{AmongEquals, Digest, LatentPlan, MailPlan, Plan, ProviderKind, Suspend, WorkerPlan};
use rouse_shared::WorkerName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often what goes wrong, of a thousand; nought: never in this seed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The master dies after a turn, or in its middle.
    pub crash: u64,
    /// Messages to or from the master are lost.
    pub loss: u64,
    /// Pieces of logs that the broker has confirmed are lost.
    pub log_loss: u64,
    pub duplicate: u64,
    pub reorder: u64,
    /// Calls to a provider fail.
    pub call_fails: u64,
    /// The reply of a call to a provider is lost.
    pub reply_lost: u64,
    pub slow_cloud: u64,
    /// The relay does not take a mail, or its answer is lost.
    pub relay: u64,
    /// A machine is made whose agent never attaches.
    pub half_born: u64,
    /// A machine is taken back by its cloud before its agent attaches.
    pub reclaimed: u64,
    /// Whether places refuse everybody for minutes to hours.
    pub outages: bool,
    /// Whether the broker is restarted.
    pub broker: bool,
    /// Whether the broker has alarms.
    pub alarm: bool,
    /// Whether agents are killed.
    pub kill: bool,
    /// Whether agents are frozen or their machines suspended.
    pub freeze: bool,
    /// Whether machines are cut off the network.
    pub partition: bool,
    /// Whether machines die.
    pub death: bool,
    /// Whether the master stays away for longer than leases hold.
    pub long_outage: bool,
    /// Whether the master is asked to end, and is then away for minutes.
    pub upgrade: bool,
    /// Whether another master stands by, and the active one is stopped.
    pub standby: bool,
    /// Whether the master's disk is full for a while.
    pub disk_full: bool,
    /// Whether the master's wall clock is stepped while it is away.
    pub clock: bool,
    /// Whether operators work.
    pub operators: bool,
    /// Whether the configuration changes.
    pub reload: bool,
    /// Whether somebody ends agents by SIGTERM.
    pub terminate: bool,
    /// Whether others have a worker's credential: a second machine of a name, a boot token that was stolen.
    pub foreign_counts: bool,
    /// Whether copies of images, with the password in them, attach as a host before the cloud has said which machine it
    /// is.
    pub copies: bool,
    /// Machines that are ours and that the ledger has never known.
    pub orphans: u64,
    /// Whether the master, and perhaps the broker, is gone for so long that every host has to end by itself.
    pub abandon: bool,
}

impl Faults {
    /// Whether nothing happens that a build may be lost under.
    pub(super) fn agents_behave(&self) -> bool {
        let misbehaves = self.kill || self.freeze || self.partition || self.death || self.terminate || self.abandon;
        let away = self.long_outage || self.disk_full || self.standby;
        !misbehaves
            && !away
            && !self.reload
            && !self.copies
            && self.half_born == 0
            && self.loss == 0
            // A message may be late by more than a lease.
            && self.reorder == 0
            && self.call_fails == 0
    }
}

pub(super) fn password(name: &WorkerName) -> String {
    format!("password-of-{name}")
}

pub(super) fn worker_name(text: &str) -> WorkerName {
    text.parse().expect("the simulation's names are names")
}

pub(super) fn standing(chance: &mut Chance, name: &str) -> WorkerPlan {
    let name = worker_name(name);
    let keepalive = chance.pick(&[5, 10, 10]);
    let os = chance.pick(&["linux", "linux", "solaris"]);
    WorkerPlan {
        password: Digest::of(&password(&name)),
        template: name.to_string(),
        name,
        max_builds: chance.pick(&[Some(1), Some(1), Some(2), None]),
        keepalive: Duration::from_secs(keepalive),
        lease: (!chance.permille(70)).then(|| Duration::from_secs(3 * keepalive)),
        grace: Duration::from_secs(120),
        missing_timeout: Duration::from_secs(chance.range(60, 300)),
        notify_on_missing: chance
            .pick(&[vec![], vec!["ann"], vec!["ann", "bob"], vec!["bob", "nobody"]])
            .iter()
            .map(|to| format!("{to}@example.org"))
            .collect(),
        properties: BTreeMap::from([("os".to_owned(), os.to_owned())]),
        run_as: None,
        limits: Default::default(),
        latent: None,
    }
}

pub(super) fn template(chance: &mut Chance, name: &str) -> LatentPlan {
    let timeout = chance.pick(&[Some(0), Some(20), Some(60), Some(180), None]);
    LatentPlan {
        provider: chance.pick(&[
            ProviderKind::Ec2,
            ProviderKind::Openstack,
            ProviderKind::Process,
            ProviderKind::Libvirt,
        ]),
        place: chance.pick(&["here", "there"]).into(),
        build_wait_timeout: timeout.map(Duration::from_secs),
        max_uses: chance.pick(&[0, 0, 0, 1, 2]),
        template: name.to_owned(),
        prefer: chance.pick(&[0, 0, 1]),
        price: None,
        min_idle: chance.pick(&[0, 0, 0, 1, 2]),
        suspend: chance
            .pick(&[None, None, Some(900), Some(2_400)])
            .map(|s| Suspend { max_age: Duration::from_secs(s) }),
        image: "image".into(),
        fingerprint: chance.draw(),
    }
}

pub(super) fn latent(chance: &mut Chance, name: &str, template: &LatentPlan) -> WorkerPlan {
    let mut plan = standing(chance, name);
    plan.missing_timeout = Duration::from_secs(chance.range(120, 300));
    // Without a lease only proof counts, and a host whose agent has ended unheard gives none.
    plan.lease = Some(3 * plan.keepalive);
    plan.latent = Some(template.clone());
    plan
}

pub(super) fn make(chance: &mut Chance) -> (Plan, Faults) {
    let mut workers = Vec::new();
    for i in 0..chance.range(0, 2) {
        workers.push(standing(chance, &format!("s{i}")));
    }
    for t in 0..chance.range(1, 2) {
        let template = template(chance, &format!("t{t}"));
        for i in 0..chance.range(1, 3) {
            workers.push(latent(chance, &format!("t{t}-{i}"), &template));
        }
    }
    let faults = faults(chance);
    if faults.alarm {
        // With a lease that an alarm may outlast.
        for worker in &mut workers {
            worker.lease = worker.lease.map(|_| chance.pick(&[Duration::from_secs(45), Duration::from_secs(60)]));
        }
    }
    let mut plan = Plan {
        workers: workers.into_iter().map(|w| (w.name.clone(), Arc::new(w))).collect(),
        max_hosts: chance.pick(&[None, None, Some(1), Some(2), Some(3)]),
        max_spend_per_day: None,
        max_log_size: 256_000_000,
        queue_timeout: None,
        retention: Default::default(),
        among_equals: chance.pick(&[AmongEquals::Pack, AmongEquals::Spread, AmongEquals::Cheapest]),
        mail_after_failed_starts: u32::try_from(chance.range(1, 5)).unwrap_or(5),
        audit_interval: Duration::from_secs(chance.range(60, 300)),
        stop_orphans: !chance.permille(100),
        restart_lease: Duration::from_secs(300),
        outlives_alarms: true,
        mail: MailPlan {
            extra_recipients: chance
                .pick(&[None, Some("bob@example.org"), Some(NOBODY)])
                .map(str::to_owned)
                .into_iter()
                .collect(),
            domain: "example.org".to_owned(),
        },
    };
    leave_room(&mut plan);
    (plan, faults)
}

/// Hosts that are kept forever may leave a build of another worker no room, and that is then what was asked for: such
/// a plan gets room for all.
pub(super) fn leave_room(plan: &mut Plan) {
    let latent = || plan.workers.values().filter_map(|w| w.latent.as_ref());
    let mut room = 0;
    if latent().any(|l| l.min_idle > 0 || l.build_wait_timeout.is_none()) {
        room = u32::try_from(latent().count()).unwrap_or(u32::MAX);
    }
    plan.max_hosts = plan.max_hosts.map(|most| most.max(room));
}

fn faults(chance: &mut Chance) -> Faults {
    let calm = chance.permille(100);
    let tame = calm || chance.permille(200);
    let mut sometimes = |of: u64, most: u64| if !calm && chance.permille(of) { chance.range(1, most) } else { 0 };
    let mut faults = Faults {
        crash: sometimes(600, 40),
        loss: sometimes(300, 60),
        log_loss: sometimes(300, 60),
        duplicate: sometimes(400, 80),
        reorder: sometimes(300, 80),
        call_fails: sometimes(400, 400),
        reply_lost: sometimes(400, 300),
        slow_cloud: sometimes(400, 300),
        half_born: sometimes(300, 300),
        reclaimed: sometimes(300, 300),
        relay: sometimes(500, 300),
        orphans: sometimes(200, 3),
        ..Faults::default()
    };
    faults.broker = !calm && chance.permille(400);
    faults.operators = chance.permille(500);
    faults.upgrade = !calm && chance.permille(300);
    faults.clock = chance.permille(300);
    faults.foreign_counts = chance.permille(300);
    faults.outages = !calm && chance.permille(400);
    faults.alarm = !calm && chance.permille(250);
    if tame {
        // Only what no build may be lost under.
        (faults.loss, faults.call_fails, faults.half_born) = (0, 0, 0);
        if faults.upgrade {
            // A master that is asked to end notifies the agents that it knows.
            (faults.crash, faults.broker) = (0, false);
        }
    } else {
        faults.kill = chance.permille(400);
        faults.freeze = chance.permille(400);
        faults.partition = chance.permille(400);
        faults.death = chance.permille(400);
        faults.long_outage = chance.permille(300);
        faults.disk_full = chance.permille(300);
        faults.reload = chance.permille(400);
        faults.terminate = chance.permille(300);
        faults.copies = chance.permille(300);
        faults.abandon = chance.permille(150);
    }
    faults
}
