//! Makes lists for people from the core's state.

use super::Core;
use super::build::{BuildState, Requirement};
use super::event::WorkerState;
use super::host::LiveHost;
use super::record::Host;
use super::tally::Tally;
use super::view::{BuildFilter, BuildView, HostView, WorkerView};
use rouse_shared::{BuildId, Timestamp, WorkerName};
use std::collections::BTreeMap;

impl Core {
    /// A build that has not ended.
    pub fn build(&self, id: BuildId) -> Option<BuildView> {
        self.builds.get(&id).map(|build| BuildView {
            build: build.clone(),
            state: self.state_of(build),
            upload_trouble: None,
        })
    }

    /// Builds that have not ended, newest first.
    pub fn live_builds(&self, filter: &BuildFilter) -> Vec<BuildView> {
        if filter.state.is_some_and(BuildState::is_final) {
            return Vec::new();
        }
        let older = self.builds.range(..filter.before.unwrap_or(BuildId(u64::MAX))).rev();
        let states = older.map(|(_, build)| (build, self.state_of(build)));
        let matching = states.filter(|(build, state)| filter.matches(build, *state)).take(filter.limit);
        matching.map(|(build, state)| BuildView { build: build.clone(), state, upload_trouble: None }).collect()
    }

    /// The workers of the configuration, and removed workers that still end what they run, by name.
    pub fn worker_views(&self, now: Timestamp) -> Vec<WorkerView> {
        self.workers
            .iter()
            .map(|(name, worker)| WorkerView {
                name: name.clone(),
                template: worker.plan.as_ref().map(|p| p.template.clone()),
                provider: worker.plan.as_ref().and_then(|p| p.latent.as_ref()).map(|l| l.provider),
                state: worker.state,
                since: worker.since,
                running: u32::try_from(worker.attempts.len()).unwrap_or(u32::MAX),
                max_builds: worker.plan.as_ref().and_then(|p| p.max_builds),
                host: worker.host.clone(),
                agent_version: worker.attached().map(|l| l.session.version.clone()),
                facts: worker.attached().map(|l| l.session.facts.clone()),
                unfit: worker.unfit(),
                vitals: worker.attached().and_then(|l| l.vitals),
                last_heard: worker.last_message,
                refused: worker.refusal(now).cloned(),
                wish: worker.record.desired,
                properties: worker.plan.as_ref().map(|p| p.properties.clone()).unwrap_or_default(),
                last_failure: worker.record.last_failure.clone(),
                next_try: worker.record.backoff_until.max(self.image_until(worker, now)),
            })
            .collect()
    }

    /// Hosts that are not gone, oldest first.
    pub fn host_views(&self, now: Timestamp) -> Vec<HostView> {
        let view = |live: &LiveHost| {
            let (cost, why) = (super::spend::cost(&live.host, now), live.why());
            HostView { host: Host { cost, why, ..live.host.clone() }, builds: self.builds_on(&live.host) }
        };
        let mut hosts: Vec<_> = self.hosts.values().map(view).collect();
        hosts.sort_by(|a, b| (a.host.created, &a.host.id).cmp(&(b.host.created, &b.host.id)));
        hosts
    }

    /// The builds that run on a host now.
    fn builds_on(&self, host: &Host) -> Vec<BuildId> {
        let attempts = self.workers.get(&host.worker).into_iter().flat_map(|worker| &worker.attempts);
        let runs_here = |id: &BuildId| {
            let live = self.builds.get(id).and_then(|build| build.status.live_attempt());
            live.is_some_and(|attempt| attempt.host.as_ref() == Some(&host.id))
        };
        attempts.map(|attempt| attempt.build).filter(runs_here).collect()
    }

    /// How many builds, workers and hosts there are in each state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for build in self.builds.values() {
            *counts.builds.entry(self.state_of(build)).or_default() += 1;
        }
        for worker in self.workers.values() {
            *counts.workers.entry(worker.state).or_default() += 1;
            if let (WorkerState::Idle, Some(plan)) = (worker.state, &worker.plan) {
                *counts.idle.entry(plan.template.clone()).or_default() += 1;
            }
        }
        let queued = self.builds.values().filter(|build| build.is_queued());
        counts.oldest_queued = queued.map(|build| build.status.queued_at()).min();
        for live in self.hosts.values() {
            *counts.hosts.entry(live.host.state).or_default() += 1;
        }
        counts.broker_up = self.broker_up;
        counts
    }

    /// What no record keeps.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What each host that is not gone has cost until now, USD. Without hosts that have no price.
    pub fn costs(&self, now: Timestamp) -> impl Iterator<Item = (&Host, f64)> {
        self.hosts.values().filter_map(move |live| Some((&live.host, super::spend::cost(&live.host, now)?)))
    }

    /// Whether the configuration has this worker.
    pub fn has_worker(&self, name: &WorkerName) -> bool {
        self.plan.workers.contains_key(name)
    }
}

/// Counts for the metrics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Builds that have not ended.
    pub builds: BTreeMap<BuildState, u64>,
    /// Workers.
    pub workers: BTreeMap<WorkerState, u64>,
    /// Hosts that are not gone.
    pub hosts: BTreeMap<super::record::HostState, u64>,
    /// Idle workers by template. A template without any is absent.
    pub idle: BTreeMap<String, u64>,
    /// Since when the build that has waited longest has waited.
    pub oldest_queued: Option<Timestamp>,
    /// Whether the master is connected to the broker.
    pub broker_up: bool,
}

/// A requirement as users write it.
pub(super) fn describe(requirement: &Requirement) -> String {
    match requirement {
        Requirement::Worker(name) => format!("worker {name}"),
        Requirement::Where(wanted) if wanted.is_empty() => "any worker".to_owned(),
        Requirement::Where(wanted) => {
            let pairs: Vec<_> = wanted.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            format!("a worker with {}", pairs.join(", "))
        }
    }
}
