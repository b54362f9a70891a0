//! Places that refuse all orders for a while, and invariants about what the master assumes about them.

use super::world::World;
use rouse_master::core::build::{BuildState, Requirement};
use rouse_master::core::event::{Listing, StartError, WorkerState};
use rouse_master::core::plan::{ProviderKind, WorkerPlan};
use rouse_master::core::record::{Host, HostState};
use rouse_master::core::view::{BuildFilter, PlaceState};
use rouse_shared::BuildId;
use std::collections::BTreeMap;

/// Longest that a place may pause after its last refusal: a probe is due within 5 minutes, and if nobody needs a host it
/// is over when another 5 have passed; a call takes a minute, and one that is on its way puts the probe off once more.
const PAUSE_MOST: u64 = 1_020_000;
/// Looks in a row at which a build waits for a worker that could be woken.
const LOOKS: u32 = 5;

impl World {
    /// A place of the configuration refuses everybody, for minutes to hours.
    pub(super) fn outage(&mut self) {
        let places: Vec<_> = self
            .script
            .plan
            .workers
            .values()
            .filter_map(|w| w.latent.as_ref().map(|l| (l.provider, l.place.to_string())))
            .collect();
        if places.is_empty() {
            return;
        }
        let place = self.chance.pick(&places);
        let length = self.chance.pick(&[60_000, 300_000, 1_200_000, 7_200_000]);
        self.say(|| format!("cloud: {} of {} refuses everybody for {} s", place.1, place.0.as_str(), length / 1000));
        self.cloud.refusing.insert(place.clone());
        self.after(length, move |w| {
            w.cloud.refusing.remove(&place);
        });
    }

    /// Whether the place of a host refuses everybody.
    pub(super) fn refuses(&self, host: &Host) -> bool {
        self.cloud.refusing.contains(&(host.provider, host.place.clone()))
    }

    /// What a place says about a host: whether that is a refusal by the place.
    pub(super) fn said(&mut self, host: &Host, error: Option<&StartError>) {
        match error {
            None | Some(StartError::Capacity(_) | StartError::Transient(_)) => {}
            // Of a place whose workers are all refused so, it is the place's.
            Some(StartError::Rejected(_) | StartError::Quota(_) | StartError::Place(_) | StartError::Unknown(_)) => {
                self.cloud.refused.insert((host.provider, host.place.clone()), self.now);
            }
        }
    }

    /// How a call to start or resume a host fails now; none if it does not.
    pub(super) fn fault_of(&mut self, host: &Host, fails: bool) -> Option<StartError> {
        if self.refuses(host) {
            return Some(StartError::Place("503 Service Unavailable".to_owned()));
        }
        fails.then(|| self.start_error())
    }

    /// Which places a list is a refusal of.
    pub(super) fn note_unlisted(&mut self, provider: ProviderKind, result: &Result<Listing, String>) {
        let now = self.now;
        let unlisted = result
            .as_ref()
            .map_or_else(|_| vec![None], |listing| listing.unlisted.iter().map(|place| place.place.clone()).collect());
        for place in unlisted {
            let places = place.map_or_else(|| vec!["here".to_owned(), "there".to_owned()], |place| vec![place]);
            for place in places {
                self.cloud.refused.insert((provider, place), now);
            }
        }
    }

    /// A place does not pause for the faults of another, nor for longer than its probes are apart.
    pub(super) fn check_places(&mut self) {
        let Some(core) = self.master.core.as_ref() else { return };
        let since = self.master.started;
        let pausing = core.place_views().into_iter().filter(|view| view.state == PlaceState::Pausing);
        let late = pausing.into_iter().find(|view| {
            let refused = self.cloud.refused.get(&(view.provider, view.name.clone())).copied().unwrap_or(0);
            self.now > refused.max(since) + PAUSE_MOST
        });
        if let Some(view) = late {
            let (name, provider) = (&view.name, view.provider.as_str());
            self.violated(format!("{name} of {provider} pauses for what it has long stopped doing: {:?}", view.reason));
        }
    }

    /// No build waits while a worker that could be woken for it sleeps in a place that serves.
    pub(super) fn check_waiting(&mut self) {
        let mut waits = std::mem::take(&mut self.waits);
        let now: Vec<BuildId> = self.waiting_beside_sleepers();
        waits.retain(|id, _| now.contains(id));
        for id in now {
            let looks = waits.entry(id).or_default();
            *looks += 1;
            if *looks > LOOKS {
                let why = self.master.core.as_ref().and_then(|core| core.why(self.time(), id));
                self.violated(format!("build {id} waits although a worker could be woken for it: {why:?}"));
            }
        }
        self.waits = waits;
    }

    fn waiting_beside_sleepers(&self) -> Vec<BuildId> {
        let Some(core) = self
            .master
            .core
            .as_ref()
            .filter(|_| self.master.linked && self.bus.up && self.bus.alarm.on.is_none() && !self.disk.full)
        else {
            return Vec::new();
        };
        let plan = &self.master.plan;
        let starting = |provider: ProviderKind| {
            self.disk.hosts.values().any(|h| {
                h.provider == provider
                    && matches!(h.state, HostState::Ordered | HostState::Booting | HostState::Resuming)
            })
        };
        let room = plan.max_hosts.is_none_or(|most| self.hosts_alive() < most as usize);
        let views = core.worker_views(self.time());
        let sleeps = |worker: &WorkerPlan| {
            let idle = views.iter().any(|view| view.name == worker.name && view.state == WorkerState::Asleep);
            let latent = worker.latent.as_ref();
            idle && room
                && latent.is_some_and(|l| !starting(l.provider))
                && !self.disk.sessions.contains_key(&worker.name)
                && !self.disk.hosts.values().any(|host| host.worker == worker.name)
        };
        let fits = |worker: &WorkerPlan, requirement: &Requirement| match requirement {
            Requirement::Worker(name) => *name == worker.name,
            Requirement::Where(wanted) => wanted.iter().all(|(k, v)| worker.properties.get(k) == Some(v)),
        };
        let held: BTreeMap<_, _> =
            self.disk.builds.values().filter_map(|b| Some((b.status.live_attempt()?.worker.clone(), ()))).collect();
        let queued = BuildFilter { state: Some(BuildState::Queued), limit: usize::MAX, ..BuildFilter::default() };
        let beside = core.live_builds(&queued).into_iter().filter(|view| {
            let requirement = &view.build.spec.requirement;
            plan.workers.values().any(|w| fits(w, requirement) && sleeps(w) && !held.contains_key(&w.name))
        });
        beside.map(|view| view.build.id).collect()
    }
}
