//! Finds domains and leftovers of this master, and hosts that have ended.

use super::super::disk;
use super::super::domain::OwnerTag;
use super::super::events::LifecycleEvent;
use super::super::link::LinkError;
use super::super::look::{end_domain, look, tags};
use super::{Inner, Known, Made};
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

/// Everything with this master's name.
pub struct Listing {
    /// Domains that run: UUID and owner tag.
    pub domains: Vec<(String, OwnerTag)>,
    /// Disks of a foreign's hosts that have no domain any more.
    pub leftovers: Vec<(PathBuf, disk::Owner)>,
    /// The connections that could not be listed. If one of them is to this machine, leftovers are unknown.
    pub unlisted: Vec<UnlistedPlace>,
}

/// Time limit for the list of one connection, so that an audit gets the lists of the others in time.
const CONNECTION: Duration = Duration::from_secs(20);

impl Inner {
    /// Forgets a connection that was given up, unless the configuration has it.
    pub fn forget_connection(&self, uri: &str) {
        if self.is_configured(uri) {
            return;
        }
        lock(&self.connections).remove(uri);
        lock(&self.links).remove(uri);
        lock(&self.kvm).remove(uri);
        lock(&self.known).retain(|_, known| known.uri != uri);
    }

    /// Every connection that may have hosts of this master.
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

    /// Everything with this master's name, on all connections that answer.
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
            for uuid in self.missed(uri, &list.iter().map(|tag| tag.uuid.clone()).collect()) {
                let life = LifecycleEvent::Stopped(uuid, "it ended without an event of libvirt's");
                // It is checked once more there, under the host's lock.
                drop(self.lives.try_send((uri.clone(), life)));
            }
            if list.iter().all(|tag| !self.is_ours(tag)) && !self.is_configured(uri) {
                lock(&self.connections).remove(uri);
            }
            domains.extend(list.into_iter().filter(|s| s.master == self.name()).map(|s| (s.uuid.clone(), s)));
        }
        self.warn_of_changed_bases();
        // A disk on this machine may belong to a domain that could not be listed. The disks of a remote connection are on
        // the remote machine.
        if unlisted.iter().any(|one| one.place.as_deref().is_none_or(connection_is_local)) {
            return Ok(Listing { domains, leftovers: Vec::new(), unlisted });
        }
        let live: BTreeSet<String> = domains.iter().map(|(_, tag)| tag.host.clone()).collect();
        let inner = self.clone();
        let leftovers = beside(move || inner.tidy(&live)).await?;
        Ok(Listing { domains, leftovers, unlisted })
    }

    /// Known hosts on a connection that are not among those that run there.
    fn missed(&self, uri: &str, runs: &BTreeSet<String>) -> Vec<String> {
        let known = lock(&self.known);
        let missed = known.iter().filter(|(uuid, known)| known.uri == uri && !runs.contains(*uuid));
        missed.map(|(uuid, _)| uuid.clone()).collect()
    }

    fn is_configured(&self, uri: &str) -> bool {
        lock(&self.workers).values().any(|w| w.connection == uri)
    }

    fn warn_of_changed_bases(&self) {
        let bases: BTreeSet<_> = lock(&self.known).values().filter_map(|known| known.made.base.clone()).collect();
        let mut warned = lock(&self.warned);
        for (base, change) in bases {
            match disk::changed_in_place(&base, &change) {
                Some(why) if warned.insert(base.clone()) => warn!("{why}"),
                Some(_) => {}
                None => drop(warned.remove(&base)),
            }
        }
    }

    /// Removes what this master's hosts have left that have no domain and are not being started. Returns what foreign
    /// hosts have left.
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
            // A locked host is being started or terminated.
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
            let Some((host, _)) = name.split_once(".console").or(name.split_once(".boot")) else { continue };
            let host_lock = self.host_lock(host);
            let Ok(_held) = host_lock.try_lock() else { continue };
            if idle(host) {
                disk::unlink(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
                lock(&self.locks).remove(host);
            }
        }
        Ok(leftovers)
    }

    /// All tagged domains that run on a connection. The master watches its own from now on.
    async fn domains(self: &Arc<Self>, uri: &str) -> Result<Vec<OwnerTag>, LinkError> {
        let link = self.link(uri).map_err(|e| LinkError::Unreachable(e.to_string()))?;
        let list: Vec<OwnerTag> = link.call(tags).await?;
        for tag in list.iter().filter(|tag| self.is_ours(tag)) {
            self.know_listed(uri, tag);
        }
        Ok(list)
    }

    /// Watches a host that a list has, unless another domain is known as this host's.
    fn know_listed(&self, uri: &str, tag: &OwnerTag) {
        let is_known = |known: &Known| known.tag.host == tag.host || known.tag.uuid == tag.uuid;
        if lock(&self.known).values().any(is_known) {
            return;
        }
        // What is not found now, a later list tidies up.
        let made = self.made_for(uri, tag).unwrap_or_default();
        let mut known = lock(&self.known);
        if !known.values().any(is_known) {
            known.insert(tag.uuid.clone(), Known { uri: uri.to_owned(), tag: tag.clone(), made, asked: None });
        }
    }

    /// What was created for the host of a domain: the disk with its mark in a directory of the configuration, and files
    /// whose names follow from the host's id. A domain on another machine has nothing here.
    fn made_for(&self, uri: &str, tag: &OwnerTag) -> Result<Made, String> {
        if !connection_is_local(uri) {
            return Ok(Made::default());
        }
        let (owner, host) = (self.owner_of(tag), HostId(tag.host.clone()));
        let disk = self.marks()?.into_iter().find(|(_, of)| *of == owner).map(|(path, _)| path);
        let boot = Some(self.local_boot_file(&host));
        Ok(Made { disk, base: None, console: Some(self.console_path(&host)), boot })
    }

    /// The deaths that follow from libvirt's event.
    pub async fn on_lifecycle(self: &Arc<Self>, uri: &str, life: LifecycleEvent) -> Vec<Death> {
        match life {
            LifecycleEvent::Stopped(uuid, why) => self.ended(uri, &uuid, why, false).await.into_iter().collect(),
            LifecycleEvent::Stuck(uuid, why) => self.ended(uri, &uuid, why, true).await.into_iter().collect(),
            LifecycleEvent::Connected => {
                let Ok(list) = self.domains(uri).await else { return Vec::new() };
                let runs = list.into_iter().map(|tag| tag.uuid).collect();
                let missed = self.missed(uri, &runs);
                let why = "it ended while there was no connection to libvirt";
                join_all(missed.iter().map(|uuid| self.ended(uri, uuid, why, false)))
                    .await
                    .into_iter()
                    .flatten()
                    .collect()
            }
        }
    }

    /// Checks whether a host has ended, or ends it if it is stuck. Does nothing if the host runs, or is already being
    /// handled.
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
        let known = || lock(&self.known).get(uuid).map(|known| (known.tag.clone(), known.made.clone()));
        let Some((tag, made)) = known() else { return Ok(None) };
        let host_lock = self.host_lock(&tag.host);
        let _held = lock(&host_lock);
        // It may have been terminated while this waited for the lock.
        if known().is_none_or(|(now, _)| now != tag) {
            return Ok(None);
        }
        if let Some((domain, Some(found))) = look(connect, uuid)?
            && self.owner_of(&found) == self.owner_of(&tag)
        {
            let (state, _) = domain.state()?;
            let stands = [sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_CRASHED].contains(&state.to_raw());
            if !stuck || !stands || end_domain(&domain).is_err() {
                return Ok(None);
            }
        }
        let host = HostId(tag.host.clone());
        if let Some(text) = made.console.as_deref().and_then(console::tail) {
            lock(&self.evidence).keep(host.clone(), text);
        }
        if let Err(why) = self.clean(connect, &tag, &made) {
            warn!("{why}");
        }
        self.forget(uuid, &tag.host);
        Ok(Some(Death { host, why: why.to_owned(), reclaimed: false }))
    }

    /// Ends a machine of a list.
    pub async fn terminate_listed(self: &Arc<Self>, id: &str, host: &HostId) -> Result<Termination, String> {
        let wanted = disk::Owner { master: self.name().to_owned(), id: id.to_owned(), host: host.0.clone() };
        let uris = self.uris();
        let ends = join_all(uris.iter().map(|uri| self.terminate_at(uri, &wanted))).await;
        // It is on one of the connections; the others need not answer.
        let mut failed = None;
        for end in ends {
            match end {
                Ok(Some(stopped)) => return Ok(stopped),
                Ok(None) => {}
                Err(why) => failed = Some(why),
            }
        }
        // On a connection that did not answer it may still run, with its disk.
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

    /// Ends it if it runs on this connection; none if it does not.
    async fn terminate_at(self: &Arc<Self>, uri: &str, wanted: &disk::Owner) -> Result<Option<Termination>, String> {
        let link = self.link(uri).map_err(|e| e.to_string())?;
        let (inner, uri, wanted) = (self.clone(), uri.to_owned(), wanted.clone());
        let work = move |connect: &Connect| -> Result<_, LinkError> {
            let tag = tags(connect)?.into_iter().find(|tag| inner.owner_of(tag) == wanted);
            let Some(tag) = tag else { return Ok(Ok(None)) };
            Ok(inner.made_for(&uri, &tag).and_then(|made| inner.stop_on(connect, &uri, &tag, &made)).map(Some))
        };
        link.call(work).await.map_err(|failed| failed.to_string())?
    }
}

/// Runs blocking work on a separate thread.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}
