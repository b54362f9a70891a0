//! What of ours there is, and what has ended: the list, and the deaths that libvirt tells of.

use super::super::disk;
use super::super::domain::OwnerTag;
use super::super::events::LifecycleEvent;
use super::super::link::LinkError;
use super::super::look::{end_domain, look, stamps};
use super::Inner;
use crate::config::LibvirtConfig;
use crate::config::hosts::connection_is_local;
use crate::core::event::{Termination, UnlistedPlace};
use crate::hosts::Death;
use crate::hosts::libvirt::console;
use crate::sync::lock;
use futures_util::future::join_all;
use rouse_shared::HostId;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};
use virt::connect::Connect;
use virt::sys;

/// Everything that bears our master's name.
pub struct Listing {
    /// Domains that run: UUID and stamp.
    pub domains: Vec<(String, OwnerTag)>,
    /// Disks of a foreign's hosts that have no domain any more.
    pub leftovers: Vec<(PathBuf, disk::Owner)>,
    /// The connections that could not be listed. Of leftovers nothing is known if one of them is of this machine.
    pub unlisted: Vec<UnlistedPlace>,
}

/// How long the list of one connection may take, so that those of the others are told in time for an audit.
const CONNECTION: Duration = Duration::from_secs(20);

impl Inner {
    /// Nobody wants to hear of a connection any more, unless the configuration has it.
    pub fn forget_connection(&self, uri: &str) {
        if self.is_configured(uri) {
            return;
        }
        lock(&self.connections).remove(uri);
        lock(&self.links).remove(uri);
        lock(&self.kvm).remove(uri);
        lock(&self.known).retain(|_, known| known.uri != uri);
    }

    /// Every connection that may have hosts of ours.
    fn uris(&self) -> BTreeSet<String> {
        let configured: BTreeSet<String> = lock(&self.workers).values().map(|w| w.connection.clone()).collect();
        configured.into_iter().chain(lock(&self.connections).all()).collect()
    }

    /// All marks beside the disks of the configuration.
    fn marks(&self) -> Result<Vec<(PathBuf, disk::Owner)>, String> {
        let parent = |w: &LibvirtConfig| w.hd_image.as_ref().and_then(|p| p.parent()).map(Path::to_owned);
        let dirs: BTreeSet<PathBuf> = lock(&self.workers)
            .values()
            .filter(|w| w.base_image.is_some() && connection_is_local(&w.connection))
            .filter_map(parent)
            .collect();
        let mut all = Vec::new();
        for dir in dirs {
            all.extend(disk::marks_in(&dir).map_err(|e| format!("cannot read {}: {e}", dir.display()))?);
        }
        Ok(all)
    }

    /// Everything that bears our master's name, on all connections that answer.
    pub async fn list(self: &Arc<Self>) -> Result<Listing, String> {
        let uris = self.uris();
        let lists = uris.iter().map(|uri| async move {
            let late = || format!("no answer within {} s", CONNECTION.as_secs());
            let list = tokio::time::timeout(CONNECTION, self.domains(uri)).await;
            list.unwrap_or_else(|_| Err(LinkError::Unreachable(late())))
        });
        let lists = join_all(lists).await;
        let mut domains: Vec<(String, OwnerTag)> = Vec::new();
        let mut unlisted = Vec::new();
        for (uri, list) in uris.iter().zip(lists) {
            let list = match list {
                Ok(list) => list,
                Err(failed) => {
                    unlisted.push(UnlistedPlace { place: Some(uri.clone()), why: failed.to_string() });
                    continue;
                }
            };
            for uuid in self.missed(uri, &list.iter().map(|stamp| stamp.uuid.clone()).collect()) {
                let life = LifecycleEvent::Stopped(uuid, "it ended and nobody told");
                // Looked at once more there, under the host's lock.
                drop(self.lives.try_send((uri.clone(), life)));
            }
            if list.iter().all(|stamp| !self.is_ours(stamp)) && !self.is_configured(uri) {
                lock(&self.connections).remove(uri);
            }
            domains.extend(list.into_iter().filter(|s| s.master == self.name()).map(|s| (s.uuid.clone(), s)));
        }
        self.warn_of_changed_bases();
        // A disk of ours on this machine may be that of a domain which could not be listed. One of another machine has its
        // disks there.
        if unlisted.iter().any(|one| one.place.as_deref().is_none_or(connection_is_local)) {
            return Ok(Listing { domains, leftovers: Vec::new(), unlisted });
        }
        let live: BTreeSet<String> = domains.iter().map(|(_, stamp)| stamp.host.clone()).collect();
        let inner = self.clone();
        let leftovers = beside(move || inner.tidy(&live)).await?;
        Ok(Listing { domains, leftovers, unlisted })
    }

    /// The hosts that we listen for on a connection and that are not among those that run there.
    fn missed(&self, uri: &str, runs: &BTreeSet<String>) -> Vec<String> {
        let known = lock(&self.known);
        let missed = known.iter().filter(|(uuid, known)| known.uri == uri && !runs.contains(*uuid));
        missed.map(|(uuid, _)| uuid.clone()).collect()
    }

    fn is_configured(&self, uri: &str) -> bool {
        lock(&self.workers).values().any(|w| w.connection == uri)
    }

    fn warn_of_changed_bases(&self) {
        let bases: BTreeSet<_> = lock(&self.known).values().filter_map(|known| known.stamp.base.clone()).collect();
        let mut warned = lock(&self.warned);
        for (base, change) in bases {
            match disk::changed_in_place(&base, &change) {
                Some(why) if warned.insert(base.clone()) => warn!("{why}"),
                Some(_) => {}
                None => drop(warned.remove(&base)),
            }
        }
    }

    /// Removes what hosts of ours have left that have no domain and are not being started. A foreign's is told of.
    fn tidy(&self, live: &BTreeSet<String>) -> Result<Vec<(PathBuf, disk::Owner)>, String> {
        let mut leftovers = Vec::new();
        let idle = |host: &str| !live.contains(host) && !self.is_live(host);
        for (path, owner) in self.marks()? {
            if owner.master != self.name() || live.contains(&owner.host) {
                continue;
            }
            if owner.id != self.id() {
                leftovers.push((path, owner));
                continue;
            }
            let host_lock = self.host_lock(&owner.host);
            // One that is held belongs to a host that is being started or stopped.
            let Ok(_held) = host_lock.try_lock() else { continue };
            if idle(&owner.host) {
                disk::remove(&path, &owner).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
                info!("{} was left by host {}, which has no domain any more: removed", path.display(), owner.host);
                lock(&self.locks).remove(&owner.host);
            }
        }
        let entries = fs::read_dir(&self.dir).map_err(|e| format!("cannot read {}: {e}", self.dir.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((host, _)) = name.split_once(".console") else { continue };
            let host_lock = self.host_lock(host);
            let Ok(_held) = host_lock.try_lock() else { continue };
            if idle(host) {
                disk::unlink(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
                lock(&self.locks).remove(host);
            }
        }
        Ok(leftovers)
    }

    /// All stamped domains that run on a connection. Ours are listened for from now on.
    async fn domains(self: &Arc<Self>, uri: &str) -> Result<Vec<OwnerTag>, LinkError> {
        let link = self.link(uri).map_err(|e| LinkError::Unreachable(e.to_string()))?;
        let list: Vec<OwnerTag> = link.call(stamps).await?;
        for stamp in list.iter().filter(|stamp| self.is_ours(stamp)) {
            self.know(uri, stamp.clone());
        }
        Ok(list)
    }

    /// The deaths that come of what libvirt has told.
    pub async fn on_lifecycle(self: &Arc<Self>, uri: &str, life: LifecycleEvent) -> Vec<Death> {
        match life {
            LifecycleEvent::Stopped(uuid, why) => self.ended(uri, &uuid, why, false).await.into_iter().collect(),
            LifecycleEvent::Stuck(uuid, why) => self.ended(uri, &uuid, why, true).await.into_iter().collect(),
            LifecycleEvent::Connected => {
                let Ok(list) = self.domains(uri).await else { return Vec::new() };
                let runs = list.into_iter().map(|stamp| stamp.uuid).collect();
                let missed = self.missed(uri, &runs);
                let why = "it ended while libvirt could not be heard";
                join_all(missed.iter().map(|uuid| self.ended(uri, uuid, why, false)))
                    .await
                    .into_iter()
                    .flatten()
                    .collect()
            }
        }
    }

    /// Looks whether a host has ended, or ends it where it is stuck. Nothing where it runs, or is being seen to anyway.
    async fn ended(self: &Arc<Self>, uri: &str, uuid: &str, why: &'static str, stuck: bool) -> Option<Death> {
        if !lock(&self.known).contains_key(uuid) {
            return None;
        }
        let link = self.link(uri).ok()?;
        let (inner, uuid) = (self.clone(), uuid.to_owned());
        let work = move |connect: &Connect| -> Result<_, LinkError> { inner.ended_on(connect, &uuid, why, stuck) };
        // Without an answer it is looked at again when the connection is back, or by the next audit.
        link.call(work).await.ok().flatten()
    }

    fn ended_on(&self, connect: &Connect, uuid: &str, why: &str, stuck: bool) -> Result<Option<Death>, LinkError> {
        let stamp_of = || lock(&self.known).get(uuid).map(|known| known.stamp.clone());
        let Some(stamp) = stamp_of() else { return Ok(None) };
        let host_lock = self.host_lock(&stamp.host);
        let _held = lock(&host_lock);
        // While the lock was waited for it may have been stopped.
        if stamp_of().as_ref() != Some(&stamp) {
            return Ok(None);
        }
        if let Some((domain, Some(found))) = look(connect, uuid)?
            && self.owner_of(&found) == self.owner_of(&stamp)
        {
            let (state, _) = domain.state()?;
            let stands = [sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_CRASHED].contains(&state.to_raw());
            if !stuck || !stands || end_domain(&domain).is_err() {
                return Ok(None);
            }
        }
        let host = HostId(stamp.host.clone());
        if let Some(text) = stamp.console.as_deref().and_then(console::tail) {
            lock(&self.evidence).keep(host.clone(), text);
        }
        if let Err(why) = self.clean(&stamp) {
            warn!("{why}");
        }
        self.forget(uuid, &stamp.host);
        Ok(Some(Death { host, why: why.to_owned(), reclaimed: false }))
    }

    /// Ends what a listing has told of.
    pub async fn terminate_listed(self: &Arc<Self>, id: &str, host: &HostId) -> Result<Termination, String> {
        let wanted = disk::Owner { master: self.name().to_owned(), id: id.to_owned(), host: host.0.clone() };
        let uris = self.uris();
        let ends = join_all(uris.iter().map(|uri| self.terminate_at(uri, &wanted))).await;
        // It is on one of them, and the others need not be heard for that.
        let mut failed = None;
        for end in ends {
            match end {
                Ok(Some(stopped)) => return Ok(stopped),
                Ok(None) => {}
                Err(why) => failed = Some(why),
            }
        }
        // On one that did not answer it may run, with its disk.
        if let Some(why) = failed {
            return Err(why);
        }
        let inner = self.clone();
        beside(move || {
            let host_lock = inner.host_lock(&wanted.host);
            let _held = lock(&host_lock);
            for (path, _) in inner.marks()?.into_iter().filter(|(_, owner)| *owner == wanted) {
                disk::remove(&path, &wanted).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
            }
            Ok(())
        })
        .await?;
        Ok(Termination::Gone)
    }

    /// Ends it where it runs on this connection; none where it does not.
    async fn terminate_at(self: &Arc<Self>, uri: &str, wanted: &disk::Owner) -> Result<Option<Termination>, String> {
        let link = self.link(uri).map_err(|e| e.to_string())?;
        let (inner, uri, wanted) = (self.clone(), uri.to_owned(), wanted.clone());
        let work = move |connect: &Connect| -> Result<_, LinkError> {
            let stamp = stamps(connect)?.into_iter().find(|stamp| inner.owner_of(stamp) == wanted);
            Ok(stamp.map(|stamp| inner.stop_on(connect, &uri, &stamp)).transpose())
        };
        link.call(work).await.map_err(|failed| failed.to_string())?
    }
}

/// Does what blocks on a thread for such things.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}
