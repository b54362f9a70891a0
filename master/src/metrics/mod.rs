//! Metrics that grow while the master runs: histograms and counters with labels. They are fed with what the loop
//! commits and publishes. Label values come from the configuration or from closed lists, so nobody can make series by
//! what they submit.

pub mod table;
#[cfg(test)]
mod tests;

use crate::core::build::{BuildEnd, BuildStatus};
use crate::core::event::{Change, Event, StartError, Suspension, Termination};
use crate::core::places::PlaceKey;
use crate::core::plan::{Plan, ProviderKind};
use crate::core::record::{Host, HostState, Record};
use crate::core::tally::{FailureKind, Tally};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use rouse_shared::{BuildId, HostId, Timestamp, WorkerName};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Seconds that a build waits or runs: from a hundredth to four hours.
const OF_BUILDS: [f64; 16] =
    [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0];
/// Seconds of a host's phase: up to half an hour.
const OF_PHASES: [f64; 13] = [0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0];
/// Seconds of a call, which ends after [`crate::hosts::CALL_LIMIT`].
const OF_CALLS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// Seconds of a turn of the loop, or of a commit.
const OF_TURNS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

fn of_builds() -> Histogram {
    Histogram::new(OF_BUILDS)
}
fn of_phases() -> Histogram {
    Histogram::new(OF_PHASES)
}
fn of_calls() -> Histogram {
    Histogram::new(OF_CALLS)
}

type Template = Arc<str>;
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
type Money = Counter<f64, AtomicU64>;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfTemplate {
    template: Template,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfEnd {
    outcome: &'static str,
    template: Template,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfStart {
    provider: &'static str,
    template: Template,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfFailure {
    place: String,
    template: String,
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfPhase {
    provider: &'static str,
    template: Template,
    phase: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfCall {
    provider: &'static str,
    call: &'static str,
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfMoney {
    provider: &'static str,
    template: Template,
    market: &'static str,
}

/// The outcomes of builds.
const OUTCOMES: [&str; 4] = ["success", "failure", "cancelled", "lost"];
/// The markets that hosts are bought on.
const MARKETS: [&str; 2] = ["on-demand", "spot"];

fn market(host: &Host) -> &'static str {
    if host.launch.as_ref().is_some_and(|launch| launch.spot) { "spot" } else { "on-demand" }
}

/// Measures the calls to providers. Cheap to clone.
#[derive(Clone)]
pub struct Calls(Histograms<OfCall>);

impl Default for Calls {
    fn default() -> Self {
        Self(Family::new_with_constructor(of_calls))
    }
}

impl Calls {
    /// A call to this provider has ended with this event after this time.
    pub fn ended(&self, provider: ProviderKind, event: &Event, took: Duration) {
        if let Some((call, outcome)) = call_and_outcome(event) {
            let labels = OfCall { provider: provider.as_str(), call, outcome };
            self.0.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }
}

/// The call that an event is the answer to, and its outcome.
fn call_and_outcome(event: &Event) -> Option<(&'static str, &'static str)> {
    fn of_start<T>(result: &Result<T, StartError>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(StartError::Capacity(_)) => "capacity",
            Err(StartError::Quota(_)) => "quota",
            Err(StartError::Rejected(_)) => "rejected",
            Err(StartError::Place(_)) => "place",
            Err(StartError::Transient(_)) => "transient",
            Err(StartError::Unknown(_)) => "unknown",
        }
    }
    fn of_end(result: &Result<Termination, String>) -> &'static str {
        match result {
            Ok(Termination::Requested) => "requested",
            Ok(Termination::Gone) => "ok",
            Err(_) => "error",
        }
    }
    Some(match event {
        Event::Prepared { result, .. } => ("prepare", of_start(result)),
        Event::StartEnded { result, .. } => ("start", of_start(result)),
        Event::ResumeEnded { result, .. } => ("resume", of_start(result)),
        Event::TerminateEnded { result, .. } | Event::OrphanTerminateEnded { result, .. } => {
            ("terminate", of_end(result))
        }
        Event::SuspendEnded { result, .. } => (
            "suspend",
            match result {
                Ok(Suspension::Requested) => "requested",
                Ok(Suspension::Suspended) => "ok",
                Ok(Suspension::Unable(_)) | Err(_) => "error",
            },
        ),
        Event::Listed { result, .. } | Event::ListedForAudit { result, .. } => (
            "list",
            match result {
                Ok(listing) if listing.unlisted.is_empty() => "ok",
                Ok(_) => "partly",
                Err(_) => "error",
            },
        ),
        Event::Console { .. } => ("console", "ok"),
        _ => return None,
    })
}

/// The metrics.
pub struct Meters {
    registry: Registry,
    waits: Histograms<OfTemplate>,
    durations: Histograms<OfEnd>,
    ends: Family<OfEnd, Counter>,
    starts: Family<OfStart, Counter>,
    failures: Family<OfFailure, Counter>,
    phases: Histograms<OfPhase>,
    calls: Calls,
    money: Family<OfMoney, Money>,
    turns: Histogram,
    commits: Histogram,
    /// The template and the provider of each worker.
    workers: HashMap<WorkerName, (Template, Option<ProviderKind>)>,
    /// Starts of attempts before this are those of an earlier master.
    since: Timestamp,
    /// The attempt of each running build whose wait was counted.
    started: HashMap<BuildId, u32>,
    /// The state of each host, and since when it is in that state.
    hosts: HashMap<HostId, (HostState, Timestamp)>,
    /// What was counted of the cost of each host, USD.
    paid: HashMap<HostId, f64>,
}

impl Meters {
    /// Metrics without values.
    pub fn new(now: Timestamp, plan: &Plan) -> Self {
        let mut registry = Registry::default();
        let mut new = Self {
            waits: add(&mut registry, "rouse_build_wait_seconds", Family::new_with_constructor(of_builds)),
            durations: add(&mut registry, "rouse_build_duration_seconds", Family::new_with_constructor(of_builds)),
            ends: add(&mut registry, "rouse_builds_ended_total", Family::default()),
            starts: add(&mut registry, "rouse_host_starts_total", Family::default()),
            failures: add(&mut registry, "rouse_host_start_failures_total", Family::default()),
            phases: add(&mut registry, "rouse_host_phase_seconds", Family::new_with_constructor(of_phases)),
            calls: Calls(add(&mut registry, "rouse_provider_call_seconds", Calls::default().0)),
            money: add(&mut registry, "rouse_spent_usd_total", Family::default()),
            turns: add(&mut registry, "rouse_loop_turn_seconds", Histogram::new(OF_TURNS)),
            commits: add(&mut registry, "rouse_commit_seconds", Histogram::new(OF_TURNS)),
            registry,
            workers: HashMap::new(),
            since: now,
            started: HashMap::new(),
            hosts: HashMap::new(),
            paid: HashMap::new(),
        };
        new.configure(plan);
        new
    }

    /// The hosts that an earlier master has left, with their cost until now, which that master has counted.
    pub fn adopt<'a>(&mut self, hosts: impl Iterator<Item = (&'a Host, f64)>) {
        self.paid.extend(hosts.map(|(host, cost)| (host.id.clone(), cost)));
    }

    /// Takes the labels from a new configuration. Each series of counters exists from the beginning, so that an alert
    /// sees its first increase.
    pub fn configure(&mut self, plan: &Plan) {
        let mut templates: HashMap<&str, Template> = HashMap::new();
        self.workers.clear();
        for worker in plan.workers.values() {
            let template = templates.entry(&worker.template).or_insert_with(|| worker.template.as_str().into()).clone();
            let latent = worker.latent.as_ref();
            self.workers.insert(worker.name.clone(), (template.clone(), latent.map(|latent| latent.provider)));
            for outcome in OUTCOMES {
                drop(self.ends.get_or_create(&OfEnd { outcome, template: template.clone() }));
            }
            let Some(latent) = latent else { continue };
            let provider = latent.provider.as_str();
            drop(self.starts.get_or_create(&OfStart { provider, template: template.clone() }));
            let place = PlaceKey { provider: latent.provider, name: latent.place.clone() }.id();
            for kind in FailureKind::ALL {
                let (place, template, kind) = (place.clone(), worker.template.clone(), kind.as_str());
                drop(self.failures.get_or_create(&OfFailure { place, template, kind }));
            }
            for market in MARKETS {
                drop(self.money.get_or_create(&OfMoney { provider, template: template.clone(), market }));
            }
        }
        // Of builds that no worker was assigned to.
        for outcome in OUTCOMES {
            drop(self.ends.get_or_create(&OfEnd { outcome, template: "".into() }));
        }
    }

    /// What measures the calls to providers.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// A turn of the loop has taken this long.
    pub fn turn(&self, took: Duration) {
        self.turns.observe(took.as_secs_f64());
    }

    /// A commit has taken this long.
    pub fn commit(&self, took: Duration) {
        self.commits.observe(took.as_secs_f64());
    }

    /// A record was committed.
    pub fn committed(&mut self, record: &Record) {
        match record {
            Record::Build(id, status) | Record::NewBuild { id, status, .. } => self.build(*id, status),
            Record::Host(host) if host.state == HostState::Terminated => {
                if let Some(cost) = host.cost {
                    self.spent(host, cost);
                }
                self.paid.remove(&host.id);
            }
            _ => {}
        }
    }

    fn template(&self, worker: &WorkerName) -> Template {
        self.workers.get(worker).map_or_else(|| "".into(), |(template, _)| template.clone())
    }

    fn build(&mut self, id: BuildId, status: &BuildStatus) {
        let attempt = status.attempts.last();
        if let Some(attempt) = attempt
            && let Some(started) = attempt.started.filter(|started| *started >= self.since)
            && self.started.insert(id, attempt.number) != Some(attempt.number)
        {
            let template = self.template(&attempt.worker);
            let waited = started.since(status.queued_at()).as_secs_f64();
            self.waits.get_or_create(&OfTemplate { template }).observe(waited);
        }
        let Some(end) = &status.end else { return };
        self.started.remove(&id);
        let outcome = match end {
            BuildEnd::Success => "success",
            BuildEnd::Failure(_) => "failure",
            BuildEnd::Cancelled => "cancelled",
            BuildEnd::Lost(_) => "lost",
        };
        let template = attempt.map_or_else(|| "".into(), |attempt| self.template(&attempt.worker));
        let labels = OfEnd { outcome, template };
        self.ends.get_or_create(&labels).inc();
        if let (Some(started), Some(finished)) = (status.started, status.finished) {
            self.durations.get_or_create(&labels).observe(finished.since(started).as_secs_f64());
        }
    }

    /// A change was published, after its commit.
    pub fn changed(&mut self, change: &Change) {
        let Change::Host { id, worker, state, at, .. } = change else { return };
        let before = match state {
            HostState::Terminated => self.hosts.remove(id),
            _ => self.hosts.insert(id.clone(), (*state, *at)),
        };
        let Some((template, Some(provider))) = self.workers.get(worker) else { return };
        let (template, provider) = (template.clone(), provider.as_str());
        match before {
            Some((phase, since)) => {
                let labels = OfPhase { provider, template, phase: phase.as_str() };
                self.phases.get_or_create(&labels).observe(at.since(since).as_secs_f64());
            }
            None if *state == HostState::Ordered => {
                self.starts.get_or_create(&OfStart { provider, template }).inc();
            }
            // A host of an earlier master.
            None => {}
        }
    }

    fn spent(&mut self, host: &Host, cost: f64) {
        let new = cost - self.paid.insert(host.id.clone(), cost).unwrap_or(0.0);
        if new > 0.0 {
            let (provider, template) = (host.provider.as_str(), self.template(&host.worker));
            self.money.get_or_create(&OfMoney { provider, template, market: market(host) }).inc_by(new);
        }
    }

    /// All values, in the text format of Prometheus. `costs` are those of the hosts that are not gone.
    pub fn text<'a>(&mut self, tally: &Tally, costs: impl Iterator<Item = (&'a Host, f64)>) -> String {
        for (host, cost) in costs {
            self.spent(host, cost);
        }
        for (start, count) in &tally.failed_starts {
            let (place, template) = (start.place.clone(), start.template.clone());
            let labels = OfFailure { place, template, kind: start.kind.as_str() };
            let counter = self.failures.get_or_create(&labels);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

/// Registers a metric of the table under its name.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &'static str, metric: M) -> M {
    let description = table::of(name);
    // The registry adds the end of a counter's name, and the full stop.
    let (name, help) = (name.trim_end_matches("_total"), description.help.trim_end_matches('.'));
    registry.register(name, help, metric.clone());
    metric
}
