//! Waiting builds, by what they require. A free worker looks at the first build of each requirement instead of at every
//! build.

use super::build::Requirement;
use super::plan::WorkerPlan;
use rouse_shared::{BuildId, HostId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Position among waiting builds: by priority, then by age.
pub type Place = (Reverse<i32>, BuildId);

/// The waiting builds with the same requirement.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// All of them.
    pub waiting: BTreeSet<Place>,
    /// Those for which no starting host is reserved.
    pub unreserved: BTreeSet<Place>,
}

/// All waiting builds.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// The classes by requirement; none is empty.
    pub classes: BTreeMap<Requirement, Class>,
    /// The builds for which a starting host is reserved.
    reserved: BTreeMap<BuildId, (HostId, Requirement, Place)>,
    by_host: BTreeMap<HostId, BTreeSet<(Place, Requirement)>>,
}

impl Queue {
    /// Adds a build.
    pub fn push(&mut self, requirement: &Requirement, place: Place) {
        let class = self.classes.entry(requirement.clone()).or_default();
        class.waiting.insert(place);
        class.unreserved.insert(place);
    }

    /// Removes a build that has been assigned or has ended.
    pub fn remove(&mut self, requirement: &Requirement, place: Place) {
        self.unreserve(place.1);
        if let Some(class) = self.classes.get_mut(requirement) {
            class.waiting.remove(&place);
            class.unreserved.remove(&place);
            if class.waiting.is_empty() {
                self.classes.remove(requirement);
            }
        }
    }

    /// Reserves a starting host for a waiting build.
    pub fn reserve(&mut self, requirement: &Requirement, place: Place, host: &HostId) {
        if let Some(class) = self.classes.get_mut(requirement) {
            class.unreserved.remove(&place);
            self.reserved.insert(place.1, (host.clone(), requirement.clone(), place));
            self.by_host.entry(host.clone()).or_default().insert((place, requirement.clone()));
        }
    }

    fn unreserve(&mut self, build: BuildId) {
        let Some((host, requirement, place)) = self.reserved.remove(&build) else { return };
        if let Some(held) = self.by_host.get_mut(&host) {
            held.remove(&(place, requirement.clone()));
            if held.is_empty() {
                self.by_host.remove(&host);
            }
        }
        if let Some(class) = self.classes.get_mut(&requirement) {
            class.unreserved.insert(place);
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

    /// The next build for a free worker: the first for which its host was started, else the first without a reserved
    /// host, else the first of all. The last choice frees a build from waiting for its own machine to boot.
    pub fn best_for(&self, worker: &WorkerPlan, host: Option<&HostId>) -> Option<(Requirement, Place)> {
        let own = host.and_then(|h| self.by_host.get(h)).and_then(BTreeSet::first);
        if let Some((place, requirement)) = own {
            return Some((requirement.clone(), *place));
        }
        let matching = || self.classes.iter().filter(|(requirement, _)| matches(requirement, worker));
        let head = |set: fn(&Class) -> &BTreeSet<Place>| {
            matching()
                .filter_map(|(requirement, class)| set(class).first().map(|place| (place, requirement)))
                .min()
                .map(|(place, requirement)| (requirement.clone(), *place))
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
