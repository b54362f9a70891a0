//! Limits for images whose hosts fail. All workers of the image pause. Until a host has attached, only a few hosts of
//! the image start at once, and only one at a time after several failures in a row. An image is identified by its
//! provider and its name in the configuration.

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

/// Largest number of hosts that start at once from an image of which no host has attached yet. Three show whether the
/// image or one host is broken, and cost little.
const UNPROVEN: usize = 3;
/// Number of failed rounds in a row after which only one host starts at a time.
const PROBE_AFTER: u32 = 3;

/// An image: its provider, and its name in the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ImageKey {
    /// The provider of its hosts.
    pub provider: ProviderKind,
    /// See [`super::plan::LatentPlan::image`].
    pub image: Arc<str>,
}

/// What the master knows about an image.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image that the name referred to when a host last attached. That image works.
    pub proven: Option<String>,
    /// Number of failed rounds in a row.
    pub failures: u32,
    /// When the last round failed. A host that was ordered before that belongs to the same round.
    pub failed_at: Option<Timestamp>,
    /// No host is ordered before this time.
    pub until: Option<Timestamp>,
    /// Why its last host failed.
    pub last_failure: Option<String>,
}

impl ImageRecord {
    /// How many of its hosts may start at once; absent if there is no limit.
    fn at_once(&self) -> Option<usize> {
        match (self.failures, &self.proven) {
            (0, Some(_)) => None,
            (failures, _) if failures < PROBE_AFTER => Some(UNPROVEN),
            _ => Some(1),
        }
    }
}

/// How many more hosts of each image may be ordered while one event is handled.
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

    /// The number of hosts of the image that are starting, without `except`.
    fn starting_of(&self, key: &ImageKey, except: Option<&HostId>) -> usize {
        let starts = |host: &&Host| {
            matches!(host.state, HostState::Ordered | HostState::Booting)
                && Some(&host.id) != except
                && host.provider == key.provider
                && *host.image == *key.image
        };
        self.hosts.values().map(|live| &live.host).filter(starts).count()
    }

    /// Whether one more host of the worker's image may be ordered now. The caller subtracts what it orders, with
    /// [`Core::use_image_budget`].
    pub(super) fn image_may_start(&self, now: Timestamp, worker: &WorkerName, budget: &mut ImageBudget) -> bool {
        let Some(key) = self.image_of(worker) else { return true };
        let left = budget.0.entry(key).or_insert_with_key(|key| match self.images.get(key) {
            Some(record) if record.until.is_some_and(|until| until > now) => 0,
            record => {
                let most = record.map_or(Some(UNPROVEN), ImageRecord::at_once);
                most.map_or(usize::MAX, |most| most.saturating_sub(self.starting_of(key, None)))
            }
        });
        *left > 0
    }

    pub(super) fn use_image_budget(&self, worker: &WorkerName, budget: &mut ImageBudget) {
        let left = self.image_of(worker).and_then(|key| budget.0.get_mut(&key));
        if let Some(left) = left {
            *left = left.saturating_sub(1);
        }
    }

    /// The end of the pause of the worker's image.
    pub(super) fn image_until(&self, worker: &Worker, now: Timestamp) -> Option<Timestamp> {
        let latent = worker.plan.as_ref()?.latent.as_ref()?;
        let key = ImageKey { provider: latent.provider, image: latent.image.clone() };
        self.images.get(&key)?.until.filter(|until| *until > now)
    }

    /// Why no more hosts of the worker's image may be ordered, if the reason is that none has attached yet.
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

    /// Counts the failure of a host. Hosts that were ordered before the last failure belong to the same round, which
    /// counts once.
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

    /// A host has attached, so its image works.
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

    /// The image that a host is to boot has been resolved. If it is another image than the one that works, only a few
    /// hosts may start until one has attached. Returns whether this host may.
    pub(super) fn image_admits(&mut self, host: &Host, resolved: &str) -> bool {
        let key = Self::image_of_host(host);
        let record = self.images.entry(key.clone()).or_default();
        if record.proven.as_deref().is_some_and(|proven| proven != resolved) {
            record.proven = None;
            self.save_image(&key);
        }
        let Some(most) = self.images.get(&key).and_then(ImageRecord::at_once) else { return true };
        // Hosts that already have a launch spec came first.
        let ordered = |other: &&Host| {
            matches!(other.state, HostState::Ordered | HostState::Booting)
                && other.id != host.id
                && other.launch.is_some()
                && Self::image_of_host(other) == key
        };
        self.hosts.values().map(|live| &live.host).filter(ordered).count() < most
    }

    /// The pause of an image has ended.
    pub(super) fn on_image(&mut self, key: &ImageKey) {
        self.pending.wake = true;
        self.touch_workers_of(key);
    }

    /// An operator wants the worker tried again. This ends the pause of its image too.
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
