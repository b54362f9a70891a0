//! Images that fail: a pause for all workers of an image, a few hosts at once until one of it has attached, and one
//! probe at a time after several failures in a row. Keyed by provider and image, as the configuration names it.

use super::event::{Effect, Level};
use super::host::{BACKOFF_FIRST, BACKOFF_MOST, doubled};
use super::plan::ProviderKind;
use super::record::{Host, HostState, Record};
use super::timers::Timer;
use super::{Core, Timestamp, Worker};
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Hosts that may be starting at once of an image of which none has attached yet: enough to tell a broken image from a
/// broken host, and few enough to be cheap.
const UNPROVEN: usize = 3;
/// Failed rounds in a row after which only one host at a time is tried.
const PROBE_AFTER: u32 = 3;

/// An image: its provider, and what the configuration calls it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ImageKey {
    /// What makes hosts of it.
    pub provider: ProviderKind,
    /// [`super::plan::LatentPlan::image`].
    pub image: Arc<str>,
}

/// What has become of an image's hosts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What it was resolved to for the last host that has attached: that is known to work.
    pub proven: Option<String>,
    /// Rounds of hosts in a row that failed.
    pub failures: u32,
    /// When the last of these rounds failed: a host that was ordered by then belongs to it.
    pub failed_at: Option<Timestamp>,
    /// No host of it is ordered before then.
    pub until: Option<Timestamp>,
    /// How its last host failed.
    pub last_failure: Option<String>,
}

impl ImageRecord {
    /// How many of its hosts may be starting at once; absent: no limit.
    fn at_once(&self) -> Option<usize> {
        match (self.failures, &self.proven) {
            (0, Some(_)) => None,
            (failures, _) if failures < PROBE_AFTER => Some(UNPROVEN),
            _ => Some(1),
        }
    }
}

/// How many more hosts may be ordered of each image, within one event.
#[derive(Default)]
pub(super) struct ImageBudget(BTreeMap<ImageKey, usize>);

impl Core {
    pub(super) fn image_of(&self, worker: &WorkerName) -> Option<ImageKey> {
        let latent = self.plan_of(worker)?.latent.as_ref()?;
        Some(ImageKey { provider: latent.provider, image: latent.image.clone() })
    }

    fn image_of_host(host: &Host) -> ImageKey {
        ImageKey { provider: host.provider, image: host.image.as_str().into() }
    }

    /// Hosts of the image that are being started, but for `except`.
    fn starting_of(&self, key: &ImageKey, except: Option<&HostId>) -> usize {
        let starts = |host: &&Host| {
            matches!(host.state, HostState::Ordered | HostState::Booting)
                && Some(&host.id) != except
                && host.provider == key.provider
                && *host.image == *key.image
        };
        self.hosts.values().map(|live| &live.host).filter(starts).count()
    }

    /// Whether the image of a worker lets one more host be ordered now; what is ordered is taken from the room.
    pub(super) fn image_has_room(&self, now: Timestamp, worker: &WorkerName, room: &mut ImageBudget) -> bool {
        let Some(key) = self.image_of(worker) else { return true };
        let left = room.0.entry(key).or_insert_with_key(|key| match self.images.get(key) {
            Some(record) if record.until.is_some_and(|until| until > now) => 0,
            record => {
                let most = record.map_or(Some(UNPROVEN), ImageRecord::at_once);
                most.map_or(usize::MAX, |most| most.saturating_sub(self.starting_of(key, None)))
            }
        });
        *left > 0
    }

    pub(super) fn take_room(&self, worker: &WorkerName, room: &mut ImageBudget) {
        let left = self.image_of(worker).and_then(|key| room.0.get_mut(&key));
        if let Some(left) = left {
            *left = left.saturating_sub(1);
        }
    }

    /// Until when the image of a worker is left alone.
    pub(super) fn image_until(&self, worker: &Worker, now: Timestamp) -> Option<Timestamp> {
        let latent = worker.plan.as_ref()?.latent.as_ref()?;
        let key = ImageKey { provider: latent.provider, image: latent.image.clone() };
        self.images.get(&key)?.until.filter(|until| *until > now)
    }

    /// Why the image of a worker lets no more hosts be ordered, where that is for want of one that has attached.
    pub(super) fn image_waits(&self, worker: &WorkerName) -> Option<String> {
        let key = self.image_of(worker)?;
        let most = self.images.get(&key).map_or(Some(UNPROVEN), ImageRecord::at_once)?;
        let starting = self.starting_of(&key, None);
        (starting >= most).then(|| {
            format!(
                "{starting} hosts of image {} are starting, and no more are started until one of them attaches",
                key.image
            )
        })
    }

    /// A host has failed. Those that were ordered by the last failure belong to the same round, and count once.
    pub(super) fn image_failed(&mut self, now: Timestamp, host: &Host, why: &str, jitter: f64) {
        let key = Self::image_of_host(host);
        let record = self.images.entry(key.clone()).or_default();
        record.last_failure = Some(why.to_owned());
        if record.failed_at.is_none_or(|at| host.begun() > at) {
            let until = now + doubled(BACKOFF_FIRST, BACKOFF_MOST, record.failures).mul_f64(jitter);
            record.failures += 1;
            record.failed_at = Some(now);
            record.until = Some(until);
            if record.failures == PROBE_AFTER {
                let text = format!(
                    "{PROBE_AFTER} rounds of hosts of image {} ({}) have failed: from now on one host is started at a time",
                    key.image,
                    key.provider.as_str()
                );
                self.note(Level::Warn, text);
            }
            self.timers.set(Timer::Image(key.clone()), until);
        }
        self.save_image(&key);
        self.touch_workers_of(&key);
    }

    /// A host has attached: its image works.
    pub(super) fn image_works(&mut self, host: &Host) {
        let key = Self::image_of_host(host);
        let works = ImageRecord { proven: host.launch.as_ref().map(|o| o.image.clone()), ..ImageRecord::default() };
        if self.images.get(&key) != Some(&works) {
            self.images.insert(key.clone(), works);
            self.timers.clear(&Timer::Image(key.clone()));
            self.pending.wake = true;
            self.save_image(&key);
            self.touch_workers_of(&key);
        }
    }

    /// What a host is to boot is known. Where that is another image than the one that works, only a few may try it
    /// before one has attached; says whether this host may.
    pub(super) fn image_admits(&mut self, host: &Host, resolved: &str) -> bool {
        let key = Self::image_of_host(host);
        let record = self.images.entry(key.clone()).or_default();
        if record.proven.as_deref().is_some_and(|proven| proven != resolved) {
            record.proven = None;
            self.save_image(&key);
        }
        let Some(most) = self.images.get(&key).and_then(ImageRecord::at_once) else { return true };
        // Those before it have their order already.
        let ordered = |other: &&Host| {
            matches!(other.state, HostState::Ordered | HostState::Booting)
                && other.id != host.id
                && other.launch.is_some()
                && Self::image_of_host(other) == key
        };
        self.hosts.values().map(|live| &live.host).filter(ordered).count() < most
    }

    /// The pause of an image is over.
    pub(super) fn on_image(&mut self, key: &ImageKey) {
        self.pending.wake = true;
        self.touch_workers_of(key);
    }

    /// An operator says that the worker is to be tried again: so is its image.
    pub(super) fn lift_image(&mut self, worker: &WorkerName) {
        let Some(key) = self.image_of(worker) else { return };
        let Some(record) = self.images.get_mut(&key) else { return };
        if record.failures > 0 {
            *record = ImageRecord { proven: record.proven.take(), ..ImageRecord::default() };
            self.timers.clear(&Timer::Image(key.clone()));
            self.save_image(&key);
            self.touch_workers_of(&key);
        }
    }

    pub(super) fn restore_images(&mut self, images: Vec<(ImageKey, ImageRecord)>) {
        for (key, record) in images {
            if let Some(until) = record.until {
                self.timers.set(Timer::Image(key.clone()), until);
            }
            self.images.insert(key, record);
        }
    }

    fn save_image(&mut self, key: &ImageKey) {
        if let Some(record) = self.images.get(key) {
            self.out.push(Effect::Save(Record::Image(key.clone(), record.clone())));
        }
    }

    fn touch_workers_of(&mut self, key: &ImageKey) {
        let of = |plan: &super::plan::WorkerPlan| {
            plan.latent.as_ref().is_some_and(|l| l.provider == key.provider && l.image == key.image)
        };
        let names = self.workers.iter().filter(|(_, w)| w.plan.as_deref().is_some_and(of)).map(|(n, _)| n.clone());
        self.pending.workers.extend(names);
    }
}
