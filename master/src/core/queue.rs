//! Waiting builds, grouped by their requirements. A free worker is compared with the first build of each group instead
//! of with every build.

use super::build::Requirement;
use super::plan::WorkerPlan;
use rouse_shared::{BuildId, HostId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The order of waiting: priority, then age.
pub type Rank = (Reverse<i32>, BuildId);

/// The waiting builds with the same requirement.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// All of them.
    pub waiting: BTreeSet<Rank>,
    /// Those that no starting host is kept for.
    pub unreserved: BTreeSet<Rank>,
}

/// All waiting builds.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// The classes by requirement; none is empty.
    pub classes: BTreeMap<Requirement, Class>,
    /// The starting hosts that builds have been promised.
    reserved: BTreeMap<BuildId, (HostId, Requirement, Rank)>,
    by_host: BTreeMap<HostId, BTreeSet<(Rank, Requirement)>>,
}

impl Queue {
    /// A build waits.
    pub fn push(&mut self, requirement: &Requirement, rank: Rank) {
        let class = self.classes.entry(requirement.clone()).or_default();
        class.waiting.insert(rank);
        class.unreserved.insert(rank);
    }

    /// A build no longer waits: it was assigned, or has ended.
    pub fn remove(&mut self, requirement: &Requirement, rank: Rank) {
        self.unreserve(rank.1);
        if let Some(class) = self.classes.get_mut(requirement) {
            class.waiting.remove(&rank);
            class.unreserved.remove(&rank);
            if class.waiting.is_empty() {
                self.classes.remove(requirement);
            }
        }
    }

    /// A starting host is kept for a build that waits.
    pub fn reserve(&mut self, requirement: &Requirement, rank: Rank, host: &HostId) {
        if let Some(class) = self.classes.get_mut(requirement) {
            class.unreserved.remove(&rank);
            self.reserved.insert(rank.1, (host.clone(), requirement.clone(), rank));
            self.by_host.entry(host.clone()).or_default().insert((rank, requirement.clone()));
        }
    }

    fn unreserve(&mut self, build: BuildId) {
        let Some((host, requirement, rank)) = self.reserved.remove(&build) else { return };
        if let Some(held) = self.by_host.get_mut(&host) {
            held.remove(&(rank, requirement.clone()));
            if held.is_empty() {
                self.by_host.remove(&host);
            }
        }
        if let Some(class) = self.classes.get_mut(&requirement) {
            class.unreserved.insert(rank);
        }
    }

    /// Cancels the reservations of a host that will not attach, and returns their builds. They wait for other workers.
    pub fn release(&mut self, host: &HostId) -> Vec<BuildId> {
        let builds: Vec<BuildId> = self.by_host.get(host).into_iter().flatten().map(|((_, id), _)| *id).collect();
        for build in &builds {
            self.unreserve(*build);
        }
        builds
    }

    /// The number of builds for which the host is reserved.
    pub fn reserved_on(&self, host: &HostId) -> usize {
        self.by_host.get(host).map_or(0, BTreeSet::len)
    }

    /// The starting host that is reserved for a build.
    pub fn host_of(&self, build: BuildId) -> Option<&HostId> {
        self.reserved.get(&build).map(|(host, _, _)| host)
    }

    /// The build that a free worker takes next: what its host was started for, otherwise the first that no starting
    /// host is kept for, otherwise the first at all, since running now is better than waiting for a machine to boot.
    pub fn best_for(&self, worker: &WorkerPlan, host: Option<&HostId>) -> Option<(Requirement, Rank)> {
        let own = host.and_then(|h| self.by_host.get(h)).and_then(BTreeSet::first);
        if let Some((rank, requirement)) = own {
            return Some((requirement.clone(), *rank));
        }
        let matching = || self.classes.iter().filter(|(requirement, _)| matches(requirement, worker));
        let head = |set: fn(&Class) -> &BTreeSet<Rank>| {
            matching()
                .filter_map(|(requirement, class)| set(class).first().map(|rank| (rank, requirement)))
                .min()
                .map(|(rank, requirement)| (requirement.clone(), *rank))
        };
        head(|c| &c.unreserved).or_else(|| head(|c| &c.waiting))
    }
}

/// Whether a worker meets a requirement.
pub fn matches(requirement: &Requirement, worker: &WorkerPlan) -> bool {
    match requirement {
        Requirement::Worker(name) => *name == worker.name,
        Requirement::Where(wanted) => wanted.iter().all(|(key, value)| worker.properties.get(key) == Some(value)),
    }
}
