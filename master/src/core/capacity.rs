//! Alternatives (type, zone, market, size) without capacity. Each is not used for a while, longer each time in a row,
//! and meanwhile the next alternative is tried. A lack of capacity does not count as a failure of a build, a worker or
//! an image.

use super::host::BACKOFF_FIRST;
use super::places::{Cause, PlaceKey};
use super::record::Host;
use super::timers::Timer;
use super::{Core, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long an alternative rests that has no room, by how often in a row it had none.
const RESTS: [Duration; 3] = [Duration::from_secs(120), Duration::from_secs(900), Duration::from_secs(1_800)];

/// An alternative of a place that had no room.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Rest {
    /// Times in a row.
    times: usize,
    /// It is not taken before then.
    until: Timestamp,
    /// Whether a quota of the account is in the way.
    quota: bool,
}

impl Core {
    /// The alternatives that a new host in the place is not to take.
    pub(super) fn resting(&self, now: Timestamp, host: &Host) -> BTreeSet<String> {
        let key = PlaceKey::of_host(host);
        let rests = self.rests.iter().filter(|((place, _), rest)| *place == key && rest.until > now);
        rests.map(|((_, alternative), _)| alternative.clone()).collect()
    }

    /// The alternative of a host's order has no room.
    pub(super) fn no_room(&mut self, now: Timestamp, host: &Host, quota: bool) {
        let Some(launch) = host.launch.as_ref().filter(|launch| !launch.alternative.is_empty()) else { return };
        let key = (PlaceKey::of_host(host), launch.alternative.clone());
        let times = self.rests.get(&key).map_or(0, |rest| rest.times);
        // Hosts that were ordered together fail together.
        if self.rests.get(&key).is_some_and(|rest| rest.until > now) {
            return;
        }
        let until = now + RESTS[times.min(RESTS.len() - 1)];
        self.rests.insert(key, Rest { times: times + 1, until, quota });
    }

    /// The alternative of a host's order had room.
    pub(super) fn had_room(&mut self, host: &Host) {
        if let Some(launch) = &host.launch {
            self.rests.remove(&(PlaceKey::of_host(host), launch.alternative.clone()));
        }
    }

    /// No alternative of the host's worker has room: the workers of its template wait until one has rested. If it is a
    /// quota that is in the way everywhere, the place pauses.
    pub(super) fn no_room_at_all(&mut self, now: Timestamp, host: &Host, why: &str, quota: bool) {
        let place = PlaceKey::of_host(host);
        let rests = self.rests.iter().filter(|((of, _), rest)| *of == place && rest.until > now);
        let (untils, quotas): (Vec<Timestamp>, Vec<bool>) = rests.map(|(_, rest)| (rest.until, rest.quota)).unzip();
        let only_quota = if quotas.is_empty() { quota } else { quotas.iter().all(|quota| *quota) };
        if only_quota {
            self.place_failed(now, &place, why, Cause::Start);
        }
        let until = untils.into_iter().min().unwrap_or(now + RESTS[0]).max(now + BACKOFF_FIRST);
        let template = self.latent_of(&host.worker).map(|latent| latent.template);
        let of = |plan: &super::WorkerPlan| plan.latent.as_ref().map(|latent| &latent.template) == template.as_ref();
        let names: Vec<_> = self
            .workers
            .iter()
            .filter(|(name, w)| **name == host.worker || (template.is_some() && w.plan.as_deref().is_some_and(of)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(worker) = self.workers.get_mut(&name) else { continue };
            // It may have a longer one already.
            let until = worker.record.backoff_until.map_or(until, |before| before.max(until));
            worker.record.backoff_until = Some(until);
            worker.record.last_failure = Some(why.to_owned());
            self.timers.set(Timer::Backoff(name.clone()), until);
            self.save_worker(&name);
        }
    }
}
