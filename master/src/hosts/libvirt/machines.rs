//! The calls to libvirt that create a host's domain, end it, and find domains and disks of this master.
//!
//! A lock for each host ensures that only one operation on the host runs at a time. The operation is completed even if
//! the caller stops waiting.

mod find;

pub use find::Listing;

use super::boot_file::BootFile;
use super::disk::{self, Base, NewDisk};
use super::domain::OwnerTag;
use super::events::LifecycleEvent;
use super::link::{Link, LinkError};
use super::look::{end_domain, is_starting, look};
use super::places::{Connections, Evidence};
use super::spec::{Boot, Spec};
use super::{Observer, Workers, console, faults, kvm};
use crate::clock;
use crate::config::LibvirtConfig;
use crate::config::hosts::connection_is_local;
use crate::core::event::{StartError, Termination};
use crate::core::record::Host;
use crate::files;
use crate::sync::lock;
use rouse_shared::{HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};
use virt::connect::Connect;
use virt::domain::Domain;

/// How long a guest on a user's own disk may take to shut down before its power is cut.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);

/// What was created for a host beside its domain. The paths are those of the launch spec in the ledger, or follow from
/// the configuration and the host's id. They are never those that a domain's metadata name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Made {
    /// Its disk.
    disk: Option<PathBuf>,
    /// The base of that disk, and its `Base::change` when the disk was created.
    base: Option<(PathBuf, String)>,
    /// The file with its console output.
    console: Option<PathBuf>,
    /// The file with its boot data.
    boot: Option<BootFile>,
}

/// A host whose end is watched.
struct Known {
    uri: String,
    tag: OwnerTag,
    made: Made,
    /// When it was asked to shut down.
    asked: Option<Timestamp>,
}

/// The state of the provider, shared with the threads that call libvirt.
pub struct Inner {
    /// The master's name and id.
    pub owner: String,
    dir: PathBuf,
    observer: Option<Observer>,
    workers: Mutex<Workers>,
    connections: Mutex<Connections>,
    links: Mutex<BTreeMap<String, Arc<Link>>>,
    lives: mpsc::Sender<(String, LifecycleEvent)>,
    known: Mutex<BTreeMap<String, Known>>,
    locks: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    evidence: Mutex<Evidence>,
    kvm: Mutex<BTreeMap<String, Arc<Mutex<Option<bool>>>>>,
    warned: Mutex<BTreeSet<PathBuf>>,
    /// Images that were found complete, with their `Base::change`.
    whole: Mutex<BTreeMap<PathBuf, String>>,
}

impl Inner {
    pub fn new(
        dir: PathBuf,
        owner: &str,
        observer: Option<Observer>,
        lives: mpsc::Sender<(String, LifecycleEvent)>,
    ) -> io::Result<Self> {
        // QEMU, as its own user, must be able to pass through to the file with the boot data. Nobody can list it.
        files::make_dir(&dir, 0o711)?;
        Ok(Self {
            owner: owner.to_owned(),
            observer,
            workers: Mutex::default(),
            connections: Mutex::new(Connections::read(dir.join("connections"))?),
            dir,
            links: Mutex::default(),
            lives,
            known: Mutex::default(),
            locks: Mutex::default(),
            evidence: Mutex::default(),
            kvm: Mutex::default(),
            warned: Mutex::default(),
            whole: Mutex::default(),
        })
    }

    /// Applies the workers of a configuration, and opens their connections.
    pub fn configure(&self, workers: Workers) {
        let uris: BTreeSet<String> = workers.values().map(|w| w.connection.clone()).collect();
        *lock(&self.workers) = workers;
        for uri in uris {
            if let Err(error) = self.link(&uri) {
                warn!("libvirt at {uri} cannot be used: {error}");
            }
        }
    }

    pub fn worker(&self, name: &WorkerName) -> Option<LibvirtConfig> {
        lock(&self.workers).get(name).cloned()
    }

    pub fn console_path(&self, host: &HostId) -> PathBuf {
        self.dir.join(format!("{host}.console"))
    }

    fn local_boot_file(&self, host: &HostId) -> BootFile {
        BootFile { path: self.dir.join(format!("{host}.boot")), pool: None }
    }

    /// The file for the boot data of a host.
    pub async fn boot_file(&self, link: &Link, config: &LibvirtConfig, host: &HostId) -> Result<BootFile, StartError> {
        if connection_is_local(&config.connection) {
            return Ok(self.local_boot_file(host));
        }
        let (uri, host, disk) = (config.connection.clone(), host.0.clone(), config.hd_image.clone());
        link.call(move |connect| {
            BootFile::elsewhere(connect, &uri, &host, disk.as_deref())
                .map_err(|error| StartError::Rejected(error.to_string()))
        })
        .await
    }

    /// The connection to an address, shared by all who use it.
    pub fn link(&self, uri: &str) -> io::Result<Arc<Link>> {
        let mut links = lock(&self.links);
        if let Some(link) = links.get(uri) {
            return Ok(link.clone());
        }
        let link = Arc::new(Link::open(uri, self.lives.clone())?);
        links.insert(uri.to_owned(), link.clone());
        Ok(link)
    }

    /// Whether the processor's virtualisation works there; tested once.
    pub async fn kvm(self: &Arc<Self>, link: &Link, uri: &str) -> Result<bool, LinkError> {
        let cell = lock(&self.kvm).entry(uri.to_owned()).or_default().clone();
        let (uri, name) = (uri.to_owned(), format!("rouse-test-{}", self.id()));
        let work = move |connect: &Connect| {
            let mut cell = lock(&cell);
            if let Some(known) = *cell {
                return Ok(known);
            }
            let works = kvm::works(connect, &name);
            if works {
                info!("libvirt at {uri}: built-in machines use hardware virtualisation");
            } else {
                warn!(
                    "libvirt at {uri}: hardware virtualisation does not work: built-in machines are emulated, and slow"
                );
            }
            *cell = Some(works);
            Ok(works)
        };
        link.call(work).await
    }

    /// Examines the base image of a worker, or checks whether its own disk exists. None if it has no base image.
    pub async fn look_at_image(self: &Arc<Self>, config: &LibvirtConfig) -> Result<Option<Base>, StartError> {
        let Some(path) = local_image(config) else { return Ok(None) };
        let (inner, is_base) = (self.clone(), config.base_image.is_some());
        let look = move || {
            if !is_base {
                return disk::find_own(&path).map(|()| None);
            }
            let found = disk::look_at(&path)?;
            if lock(&inner.whole).get(&path) != Some(&found.change) {
                disk::check(&path, found.format)?;
                lock(&inner.whole).insert(path, found.change.clone());
            }
            Ok(Some(found))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|error| Err(StartError::Transient(error.to_string())))
    }

    fn name(&self) -> &str {
        self.owner.rsplit_once('/').map_or(&self.owner, |(name, _)| name)
    }

    fn id(&self) -> &str {
        self.owner.rsplit_once('/').map_or("", |(_, id)| id)
    }

    fn passed(&self, step: &'static str) {
        if let Some(observer) = &self.observer {
            observer(step);
        }
    }

    fn host_lock(&self, host: &str) -> Arc<Mutex<()>> {
        lock(&self.locks).entry(host.to_owned()).or_default().clone()
    }

    /// Watches a host of the ledger.
    fn know(&self, uri: &str, tag: OwnerTag, made: Made) {
        let mut known = lock(&self.known);
        // A domain that only claimed to be this host's.
        known.retain(|uuid, other| other.tag.host != tag.host || *uuid == tag.uuid);
        let asked = known.get(&tag.uuid).and_then(|known| known.asked);
        known.insert(tag.uuid.clone(), Known { uri: uri.to_owned(), tag, made, asked });
    }

    /// Watches hosts of an earlier master, and checks whether they have ended already.
    pub fn expect<'a>(&self, hosts: impl Iterator<Item = (&'a HostId, Spec)>) {
        let mut uris = BTreeSet::new();
        for (host, spec) in hosts {
            self.know(&spec.connection, self.tag(host, &spec), self.made(host, &spec));
            uris.insert(spec.connection);
        }
        for uri in uris {
            // As if the connection had just come up, which it may have done before. If it is not up yet, its own event
            // follows.
            drop(self.lives.try_send((uri, LifecycleEvent::Connected)));
        }
    }

    fn forget(&self, uuid: &str, host: &str) {
        lock(&self.known).remove(uuid);
        lock(&self.locks).remove(host);
    }

    fn owner_of(&self, tag: &OwnerTag) -> disk::Owner {
        disk::Owner { master: tag.master.clone(), id: tag.id.clone(), host: tag.host.clone() }
    }

    fn is_ours(&self, tag: &OwnerTag) -> bool {
        (tag.master.as_str(), tag.id.as_str()) == (self.name(), self.id())
    }

    fn tag(&self, host: &HostId, spec: &Spec) -> OwnerTag {
        spec.tag(&self.owner, host)
    }

    fn made(&self, host: &HostId, spec: &Spec) -> Made {
        Made {
            disk: spec.disk.as_ref().map(|fresh| fresh.path.clone()),
            base: spec.disk.as_ref().map(|fresh| (fresh.base.clone(), fresh.change.clone())),
            console: spec.console.as_ref().map(|_| self.console_path(host)),
            boot: spec.boot.as_ref().map(|boot| boot.file.clone()),
        }
    }

    /// Removes what was created for a host in addition to its domain.
    fn clean(&self, connect: &Connect, tag: &OwnerTag, made: &Made) -> Result<(), String> {
        if let Some(boot) = &made.boot {
            boot.remove(connect).map_err(|error| error.to_string())?;
        }
        if let Some(path) = &made.disk {
            disk::remove(path, &self.owner_of(tag)).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
            self.passed("disk removed");
        }
        if let Some(console) = &made.console {
            remove_console(console).map_err(|e| format!("cannot remove {}: {e}", console.display()))?;
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------ starting

    /// Carries out a launch spec: finds what an earlier call has created, or creates it.
    pub async fn start(self: &Arc<Self>, host: &HostId, spec: Spec) -> Result<String, StartError> {
        let link = self.link(&spec.connection).map_err(|e| StartError::Transient(e.to_string()))?;
        let (inner, host) = (self.clone(), host.clone());
        let work = move |connect: &Connect| {
            // Only once the connection has answered: one that never does has no hosts of this master.
            let used = lock(&inner.connections).add(&spec.connection);
            used.map_err(|e| {
                StartError::Transient(format!("cannot save the connection in {}: {e}", inner.dir.display()))
            })?;
            inner.start_on(connect, &host, &spec)
        };
        link.call(work).await
    }

    fn start_on(&self, connect: &Connect, host: &HostId, spec: &Spec) -> Result<String, StartError> {
        let host_lock = self.host_lock(&host.0);
        let _held = lock(&host_lock);
        let (tag, made) = (self.tag(host, spec), self.made(host, spec));
        let hide = || {
            if let Some(Err(error)) = made.boot.as_ref().map(|boot| boot.empty(connect)) {
                warn!("{error}");
            }
        };
        if let Some(domain) = self.running(connect, &tag)? {
            self.know(&spec.connection, tag, made.clone());
            if is_starting(&domain).map_err(LinkError::from)? {
                // QEMU may not have read its boot data yet.
                return Err(StartError::Unknown("libvirt is still starting its domain".to_owned()));
            }
            hide();
            return Ok(spec.uuid.clone());
        }
        let Err(error) = self.make(connect, &tag, &made, spec) else {
            // QEMU has read them before it started the guest.
            hide();
            self.passed("boot data removed");
            return Ok(spec.uuid.clone());
        };
        if !matches!(error, StartError::Unknown(_)) {
            if let Err(why) = self.clean(connect, &tag, &made) {
                warn!("{why}");
            }
            self.forget(&spec.uuid, &host.0);
        }
        Err(error)
    }

    /// The host's domain, if it runs.
    fn running(&self, connect: &Connect, tag: &OwnerTag) -> Result<Option<Domain>, StartError> {
        match look(connect, &tag.uuid)? {
            None => Ok(None),
            Some((domain, Some(found))) if self.is_ours(&found) && found.host == tag.host => Ok(Some(domain)),
            Some((domain, _)) => {
                let name = domain.name().unwrap_or_else(|_| tag.uuid.clone());
                let why = format!("the domain {name} is already running, and this host has not started it");
                Err(StartError::Transient(why))
            }
        }
    }

    fn make(&self, connect: &Connect, tag: &OwnerTag, made: &Made, spec: &Spec) -> Result<(), StartError> {
        if let Some(fresh) = &spec.disk {
            self.check_base(fresh)?;
            disk::make(fresh, &self.owner_of(tag), &|host| self.is_live(host), &|| self.passed("disk marked"))?;
            self.passed("disk made");
        }
        if let Some(console) = &made.console {
            remove_console(console)
                .and_then(|()| disk::create_private(console))
                .map_err(|e| StartError::Transient(format!("make {}: {e}", console.display())))?;
            self.passed("console made");
        }
        if let Some(Boot { toml, file }) = &spec.boot {
            file.write(connect, toml).map_err(|error| StartError::Transient(error.to_string()))?;
            self.passed("boot data written");
        }
        // Before the call, because the domain's end may be reported before its start.
        self.know(&spec.connection, tag.clone(), made.clone());
        let Err(error) = connect.create_domain_xml(&spec.xml, 0) else {
            self.passed("domain made");
            return Ok(());
        };
        if let Ok(Some(domain)) = self.running(connect, tag) {
            return match is_starting(&domain) {
                Ok(false) => Ok(()),
                Ok(true) | Err(_) => Err(StartError::Unknown(error.message().to_owned())),
            };
        }
        Err(explained(faults::create(connect, &spec.connection, spec.memory_mb, &error), spec))
    }

    fn is_live(&self, host: &str) -> bool {
        lock(&self.known).values().any(|known| known.tag.host == host)
    }

    /// Refuses a new disk on a base that was changed while another disk uses it. That disk is broken, and the new one
    /// may be too.
    fn check_base(&self, fresh: &NewDisk) -> Result<(), StartError> {
        let bases: Vec<String> = lock(&self.known)
            .values()
            .filter_map(|known| known.made.base.clone())
            .filter(|(base, _)| *base == fresh.base)
            .map(|(_, change)| change)
            .collect();
        let changed = bases.iter().find_map(|change| disk::changed_in_place(&fresh.base, change));
        changed.map_or(Ok(()), |why| Err(StartError::Rejected(why)))
    }

    // ------------------------------------------------------------------------------------------------------- ending

    /// Ends a host's domain and removes its disk.
    pub async fn terminate(self: &Arc<Self>, host: &HostId, spec: Spec) -> Result<Termination, String> {
        let link = self.link(&spec.connection).map_err(|e| e.to_string())?;
        let (inner, host) = (self.clone(), host.clone());
        let work = move |connect: &Connect| -> Result<_, LinkError> {
            let (tag, made) = (inner.tag(&host, &spec), inner.made(&host, &spec));
            Ok(inner.stop_on(connect, &spec.connection, &tag, &made))
        };
        link.call(work).await.map_err(|failed| failed.to_string())?
    }

    fn stop_on(&self, connect: &Connect, uri: &str, tag: &OwnerTag, made: &Made) -> Result<Termination, String> {
        let host_lock = self.host_lock(&tag.host);
        let _held = lock(&host_lock);
        let same = |found: &OwnerTag| (&found.master, &found.id, &found.host) == (&tag.master, &tag.id, &tag.host);
        if let Some((domain, Some(found))) = look(connect, &tag.uuid).map_err(|e| e.to_string())?
            && same(&found)
        {
            if !tag.has_disk {
                if self.may_shut_down(&domain, uri, tag, made) {
                    return Ok(Termination::Requested);
                }
                let patience = SHUTDOWN_PATIENCE.as_secs();
                warn!("host {}: it has not shut down within {patience} s, so it is powered off", tag.host);
            }
            end_domain(&domain)?;
            self.passed("domain ended");
        }
        self.clean(connect, tag, made)?;
        self.forget(&tag.uuid, &tag.host);
        Ok(Termination::Gone)
    }

    /// Asks a guest on a user's own disk to shut down, and returns whether it still has time for it.
    fn may_shut_down(&self, domain: &Domain, uri: &str, tag: &OwnerTag, made: &Made) -> bool {
        self.know(uri, tag.clone(), made.clone());
        let mut known = lock(&self.known);
        let Some(known) = known.get_mut(&tag.uuid) else { return false };
        match known.asked {
            Some(asked) => clock::now().since(asked) < SHUTDOWN_PATIENCE,
            None => {
                known.asked = Some(clock::now());
                domain.shutdown().is_ok()
            }
        }
    }

    /// The last part of a host's console output.
    pub async fn console(&self, host: &Host) -> Option<String> {
        if let Some(text) = lock(&self.evidence).of(&host.id) {
            return Some(text);
        }
        let spec = Spec::parse(&host.launch.as_ref()?.spec).ok()?;
        let path = self.made(&host.id, &spec).console?;
        tokio::task::spawn_blocking(move || console::tail(&path)).await.ok()?
    }
}

/// The image of a worker: its base, or its own disk. None if it is on another machine or only the domain's description
/// has it.
pub fn local_image(config: &LibvirtConfig) -> Option<PathBuf> {
    let image = config.base_image.as_ref().or(config.hd_image.as_ref());
    image.filter(|_| connection_is_local(&config.connection)).cloned()
}

/// The error of a start, with what may be its cause: libvirt passes on only QEMU's words.
fn explained(error: StartError, spec: &Spec) -> StartError {
    let closed = spec.boot.as_ref().and_then(|boot| boot.file.closed_directory());
    match (error, closed) {
        (StartError::Rejected(why), Some(dir)) => StartError::Rejected(format!(
            "{why} (the user that QEMU runs as may have to pass through {}, which is closed to other users: chmod o+x)",
            dir.display()
        )),
        (error, _) => error,
    }
}

/// Removes a console file, and the files that virtlogd has rotated.
fn remove_console(path: &Path) -> io::Result<()> {
    disk::unlink(path)?;
    for number in 0..10 {
        let mut rotated = path.as_os_str().to_owned();
        rotated.push(format!(".{number}"));
        disk::unlink(Path::new(&rotated))?;
    }
    Ok(())
}
