//! Hosts that are domains of a libvirt connection: virtual machines that are created from a base image for one boot.
//!
//! The call that creates a domain writes the owner tag into its metadata, and gives it a UUID that is computed from the
//! host's id. Therefore a repeated start finds the domain, and the guest's firmware reports the UUID. The disk is an
//! overlay that is created for the boot and removed afterwards. Domains and disks without this master's owner tag are
//! never changed.
//!
//! `link` keeps a connection open. `machines` uses it to create, find and end hosts.

mod boot_file;
mod console;
mod disk;
mod domain;
mod events;
mod faults;
mod kvm;
mod link;
mod look;
mod machines;
mod network;
mod online;
mod places;
mod spec;
mod xml;

#[cfg(test)]
mod tests;

use super::{Death, Provider};
use crate::config::{Config, LibvirtConfig};
use crate::core::event::{ListedHost, Listing, Owner, StartError, Started, Termination};
use crate::core::record::{Host, LaunchSpec};
use crate::hosts::libvirt_network::mac_of;
use async_trait::async_trait;
use disk::{Base, Format, NewDisk};
use domain::{Disk, Machine, Wanted};
use events::LifecycleEvent;
use machines::Inner;
use network::Apart;
pub use online::check;
use rouse_shared::boot::BootData;
use rouse_shared::{HostId, WorkerName};
use sha2::{Digest as _, Sha256};
use spec::{Boot, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::config::hosts::{DomainXml, connection_is_local};

/// The section of each worker.
type Workers = BTreeMap<WorkerName, LibvirtConfig>;

/// Capacity of the channel of libvirt's events: more than a machine has domains. The next audit finds what is lost
/// beyond that.
const LIVES: usize = 1_024;

/// Called after each step of a start and of a termination.
pub type Observer = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Options for tests.
#[derive(Clone, Default)]
pub struct Options {
    /// Sees each step.
    pub observer: Option<Observer>,
}

/// The provider.
pub struct Libvirt {
    inner: Arc<Inner>,
}

impl Libvirt {
    /// The provider of `owner`, a master's name and id, keeping what it must in `dir`. Must be called within a runtime.
    ///
    /// # Errors
    /// If that directory cannot be created.
    pub fn new(dir: PathBuf, owner: &str, config: &Config, deaths: mpsc::Sender<Death>) -> io::Result<Self> {
        Self::with_options(dir, owner, config, deaths, Options::default())
    }

    /// As [`Self::new`], with options of tests.
    ///
    /// # Errors
    /// As there.
    pub fn with_options(
        dir: PathBuf,
        owner: &str,
        config: &Config,
        deaths: mpsc::Sender<Death>,
        options: Options,
    ) -> io::Result<Self> {
        let (lives, receiver) = mpsc::channel(LIVES);
        let inner = Arc::new(Inner::new(dir, owner, options.observer, lives)?);
        inner.configure(sections(config));
        tokio::spawn(listen(Arc::downgrade(&inner), receiver, deaths));
        Ok(Self { inner })
    }

    /// Applies the workers of a new configuration.
    pub fn configure(&self, config: &Config) {
        self.inner.configure(sections(config));
    }
}

/// The sections of a configuration.
fn sections(config: &Config) -> Workers {
    config.sections::<LibvirtConfig>().map(|(worker, section)| (worker.clone(), section.clone())).collect()
}

/// The disk that the configuration wants, over this base image if it has one.
fn disk_of<'a>(config: &'a LibvirtConfig, base: &Option<Base>) -> Disk<'a> {
    match (&config.hd_image, &config.base_image) {
        (Some(path), Some(_)) => Disk::Fresh(path, base.as_ref().is_some_and(|base| base.format == "raw")),
        (Some(path), None) => Disk::Own(path, disk::format_of_own(path)),
        (None, _) => Disk::AsDescribed,
    }
}

/// The UUID of a host's domain, which follows from the host's id.
fn uuid_of(owner: &str, host: &HostId) -> String {
    let hash: [u8; 32] = Sha256::digest(format!("rouse host {owner} {host}").as_bytes()).into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    // Version 8 is for custom schemes (RFC 9562).
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// Turns libvirt's events into deaths of hosts.
async fn listen(
    inner: std::sync::Weak<Inner>,
    mut receiver: mpsc::Receiver<(String, LifecycleEvent)>,
    deaths: mpsc::Sender<Death>,
) {
    while let Some((uri, life)) = receiver.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let deaths = deaths.clone();
        // In a separate task: waiting for one connection must not delay the events of the others.
        tokio::spawn(async move {
            for death in inner.on_lifecycle(&uri, life).await {
                // A master that is ending receives no more events. The next one checks for itself.
                if deaths.send(death).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[async_trait]
impl Provider for Libvirt {
    async fn prepare(
        &self,
        host: &Host,
        number: u32,
        _resting: &BTreeSet<String>,
        boot: BootData,
    ) -> Result<LaunchSpec, StartError> {
        let rejected = |text: String| StartError::Rejected(text);
        let config = self.inner.worker(&host.worker);
        let config =
            config.ok_or_else(|| rejected(format!("worker {} has no [worker.libvirt] any more", host.worker)))?;
        let link = self.inner.link(&config.connection).map_err(|e| StartError::Transient(e.to_string()))?;
        let (mut uuid, mut base_uuid) = (Some(uuid_of(&self.inner.owner, &host.id)), None);
        let mut memory_mb = u64::from(config.memory_mb);
        let mut described = match &config.xml {
            DomainXml::Builtin => {
                let kvm = self.inner.kvm(&link, &config.connection).await.map_err(faults::before)?;
                let LibvirtConfig { memory_mb, cpus, network, .. } = &config;
                let apart = Apart::of(&link, network, &mac_of(&host.worker)).await.map_err(faults::before)?;
                domain::builtin(&Machine { kvm, memory_mb: *memory_mb, cpus: *cpus, network, apart: &apart })
            }
            DomainXml::Text(text) => {
                xml::parse(text).map_err(|e| rejected(format!("its XML is not well formed: {e}")))?
            }
            DomainXml::Defined => {
                let text = look::definition(&link, host.worker.as_str()).await?;
                let described = xml::parse(&text).map_err(|e| rejected(format!("its XML is not well formed: {e}")))?;
                // The user's own domain keeps its UUID, and its definition stays as it is: this is for one run.
                base_uuid = xml::text_of(&described, "uuid");
                uuid = None;
                described
            }
        };
        if config.xml != DomainXml::Builtin {
            memory_mb = look::memory_of(&described);
        }
        let uuid_text = uuid.clone().or(base_uuid).ok_or_else(|| rejected("its domain has no UUID".to_owned()))?;
        let base = self.inner.look_at_image(&config).await?;
        let disk = disk_of(&config, &base);
        let fresh = config.base_image.as_ref().and(config.hd_image.clone());
        let console = connection_is_local(&config.connection).then(|| self.inner.console_path(&host.id));
        let disk_spec = fresh.zip(config.base_image.clone()).zip(base).map(|((path, base), about)| NewDisk {
            path,
            base,
            base_format: about.format.to_owned(),
            change: about.change,
            form: Format::Overlay,
        });
        let mut spec = Spec {
            connection: config.connection.clone(),
            uuid: uuid_text,
            xml: String::new(),
            boot: None,
            memory_mb,
            disk: disk_spec,
            console,
        };
        let toml = toml::to_string(&boot).map_err(|e| rejected(format!("its boot data cannot be written: {e}")))?;
        let boot_file = self.inner.boot_file(&link, &config, &host.id).await?;
        let wanted = Wanted {
            name: host.worker.as_str(),
            uuid: uuid.as_deref(),
            mac: &mac_of(&host.worker),
            tag: &spec.tag(&self.inner.owner, &host.id),
            boot_file: &boot_file.path,
            console: spec.console.as_deref(),
            disk,
        };
        let form = domain::patch(&mut described, &wanted).map_err(StartError::Rejected)?;
        spec.xml = xml::to_text(&described);
        spec.boot = Some(Boot { toml, file: boot_file });
        if let Some(fresh) = &mut spec.disk {
            fresh.form = form;
        }
        let image = match (&spec.disk, &config.hd_image) {
            (Some(fresh), _) => format!("{} ({})", fresh.base.display(), fresh.change),
            (None, Some(own)) => own.display().to_string(),
            (None, None) => format!("the disks of the domain {}", host.worker),
        };
        let identity = Some(format!("uuid:{}", spec.uuid));
        Ok(LaunchSpec {
            number,
            alternative: String::new(),
            image,
            spec: spec.to_text(),
            more: false,
            fresh: spec.disk.is_some(),
            identity,
            price: None,
            spot: false,
        })
    }

    async fn start(&self, host: &Host) -> Result<Started, StartError> {
        let order = host.launch.as_ref();
        let order = order.ok_or_else(|| StartError::Rejected("the host was never ordered".to_owned()))?;
        let spec = Spec::parse(&order.spec).map_err(StartError::Rejected)?;
        let handle = self.inner.start(&host.id, spec).await?;
        Ok(Started { handle, identity: order.identity.clone() })
    }

    async fn terminate(&self, host: &Host) -> Result<Termination, String> {
        let Some(order) = &host.launch else { return Ok(Termination::Gone) };
        self.inner.terminate(&host.id, Spec::parse(&order.spec)?).await
    }

    async fn list(&self) -> Result<Listing, String> {
        let listing = self.inner.list().await?;
        let our_id = self.inner.owner.rsplit_once('/').map_or("", |(_, id)| id);
        let owner = |id: &str| if id == our_id { Owner::Ours } else { Owner::Foreign(id.to_owned()) };
        let machines::Listing { domains, leftovers, unlisted } = listing;
        let mut listed: Vec<ListedHost> = domains
            .into_iter()
            .map(|(uuid, tag)| ListedHost {
                host: HostId(tag.host),
                identity: Some(format!("uuid:{uuid}")),
                handle: uuid,
                owner: owner(&tag.id),
                suspended: false,
            })
            .collect();
        listed.extend(leftovers.into_iter().map(|(path, of)| ListedHost {
            host: HostId(of.host),
            handle: path.display().to_string(),
            identity: None,
            owner: owner(&of.id),
            suspended: false,
        }));
        Ok(Listing { machines: listed, unlisted })
    }

    fn forget_place(&self, place: &str) {
        self.inner.forget_connection(place);
    }

    fn expect(&self, hosts: &[&Host]) {
        let orders = hosts.iter().filter_map(|host| Some((&host.id, Spec::parse(&host.launch.as_ref()?.spec).ok()?)));
        self.inner.expect(orders);
    }

    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String> {
        let our_id = self.inner.owner.rsplit_once('/').map_or("", |(_, id)| id);
        let id = match &listed.owner {
            Owner::Ours => our_id,
            Owner::Foreign(id) => id,
        };
        self.inner.terminate_listed(id, &listed.host).await
    }

    async fn console(&self, host: &Host) -> Option<String> {
        self.inner.console(host).await
    }
}
