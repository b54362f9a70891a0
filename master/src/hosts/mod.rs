//! Providers: the things that make hosts. A new one is one file here, one line in [`Hosts::provider`], and one line in
//! the contract suite. Retries, caps, timeouts, mail and naming are the core's business.

#[cfg(feature = "ec2")]
pub mod ec2;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod libvirt_network;
pub mod online;
#[cfg(feature = "openstack")]
pub mod openstack;
#[cfg(any(feature = "libvirt", feature = "openstack"))]
mod persisted_set;
pub mod process;
pub mod user_data;

use crate::config::Config;
use crate::core::event::{ListedHost, PartialList, StartError, Started, Suspension, Termination};
use crate::core::plan::ProviderKind;
use crate::core::record::{Host, HostState, LaunchSpec};
use rouse_shared::boot::BootData;
use rouse_shared::message::Hello;
use rouse_shared::{HostId, WorkerName};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// A provider's answer, some time later.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What every provider can do. Each call has a deadline of its own and may be repeated.
pub trait Provider: Send + Sync {
    /// Works out what [`Self::start`] is to order for a host: resolves its image, takes the alternative of this `number`
    /// (from 0; it is asked for only where the order before it said that there are more). Makes nothing, so every error
    /// is certain.
    fn prepare<'a>(
        &'a self,
        host: &'a Host,
        number: u32,
        boot: BootData,
    ) -> BoxFuture<'a, Result<LaunchSpec, StartError>>;
    /// Makes the machine of the host's order, word for word, or finds the one that an earlier call has made.
    fn start<'a>(&'a self, host: &'a Host) -> BoxFuture<'a, Result<Started, StartError>>;
    /// Ends the host's machine. `Gone` only when the provider itself says that there is none, or where none was ordered.
    fn terminate<'a>(&'a self, host: &'a Host) -> BoxFuture<'a, Result<Termination, String>>;
    /// Puts the host's machine to sleep: it runs no more and can be resumed. `Asleep` only when the provider itself says so.
    fn suspend<'a>(&'a self, _host: &'a Host) -> BoxFuture<'a, Result<Suspension, String>> {
        Box::pin(async { Ok(Suspension::Unable("this provider's machines cannot be suspended".to_owned())) })
    }
    /// Resumes the machine of a suspended host, and has it find these boot data; nothing where it runs already.
    fn resume<'a>(&'a self, _host: &'a Host, _boot: BootData) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async { Err(StartError::Rejected("this provider's machines cannot be suspended".to_owned())) })
    }
    /// All machines that bear our master's name, with its id or another; whole, or an error, which has what was heard
    /// from those that could be asked.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedHost>, PartialList>>;
    /// Hosts that a master which has just started finds in its ledger, and whose machines were made. Of those that have ended
    /// while nobody was there to hear it a provider that tells of deaths tells now.
    fn expect(&self, _hosts: &[&Host]) {}
    /// Ends a machine that [`Self::list`] has told of and that the ledger does not know; where its owner is a foreign,
    /// that one's. Its handle says where it is.
    fn terminate_listed<'a>(&'a self, listed: &'a ListedHost) -> BoxFuture<'a, Result<Termination, String>>;
    /// The last of what the machine printed, where that is kept.
    fn console<'a>(&'a self, host: &'a Host) -> BoxFuture<'a, Option<String>>;
    /// Whether what an agent shows for being on the machine that it names is worth something: looked at before its hello
    /// is heard, at once and without asking anybody. Where a provider has no such papers, nothing is asked for.
    ///
    /// # Errors
    /// A sentence, for our log and for the agent's.
    fn attest(&self, _worker: &WorkerName, _hello: &Hello) -> Result<(), String> {
        Ok(())
    }
}

/// Longest that a call to a provider may take before its result counts as unknown.
pub const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Proof of a host's death that came without being asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    /// The host.
    pub host: HostId,
    /// How it ended, in a sentence.
    pub why: String,
}

/// What providers need to know besides the configuration.
pub struct Settings {
    /// Where they keep what they must keep: `hosts` in the state directory.
    pub dir: PathBuf,
    /// The master's name and generated id, as `name/id`: what is stamped on its hosts.
    pub owner: String,
}

/// The providers of this build of rouse.
pub struct Hosts {
    process: process::Processes,
    #[cfg(feature = "ec2")]
    ec2: ec2::Ec2,
    #[cfg(feature = "libvirt")]
    libvirt: libvirt::Libvirt,
    #[cfg(feature = "openstack")]
    openstack: openstack::Servers,
}

impl Hosts {
    /// All providers. Deaths that they learn of are told through `deaths`. Must be called within a runtime.
    ///
    /// # Errors
    /// Where the state directory cannot be used.
    pub fn new(settings: Settings, config: &Config, deaths: mpsc::Sender<Death>) -> std::io::Result<Self> {
        #[cfg(feature = "ec2")]
        let ec2 = ec2::Ec2::new(settings.dir.join("ec2"), settings.owner.clone(), config, deaths.clone())?;
        #[cfg(feature = "libvirt")]
        let libvirt = libvirt::Libvirt::new(settings.dir.join("libvirt"), &settings.owner, config, deaths.clone())?;
        #[cfg(feature = "openstack")]
        let openstack =
            openstack::Servers::new(settings.dir.join("openstack"), &settings.owner, config, deaths.clone())?;
        Ok(Self {
            process: process::Processes::new(settings.dir, settings.owner, config, deaths)?,
            #[cfg(feature = "ec2")]
            ec2,
            #[cfg(feature = "libvirt")]
            libvirt,
            #[cfg(feature = "openstack")]
            openstack,
        })
    }

    /// The provider of a kind; none where this build has it not.
    pub fn provider(&self, kind: ProviderKind) -> Option<&dyn Provider> {
        match kind {
            ProviderKind::Process => Some(&self.process),
            #[cfg(feature = "ec2")]
            ProviderKind::Ec2 => Some(&self.ec2),
            #[cfg(not(feature = "ec2"))]
            ProviderKind::Ec2 => None,
            #[cfg(feature = "libvirt")]
            ProviderKind::Libvirt => Some(&self.libvirt),
            #[cfg(not(feature = "libvirt"))]
            ProviderKind::Libvirt => None,
            #[cfg(feature = "openstack")]
            ProviderKind::Openstack => Some(&self.openstack),
            #[cfg(not(feature = "openstack"))]
            ProviderKind::Openstack => None,
        }
    }

    /// Tells the providers of the hosts that are in the ledger when the master starts.
    pub fn expect(&self, hosts: &[Host]) {
        let mut made: BTreeMap<ProviderKind, Vec<&Host>> = BTreeMap::new();
        // One that is ordered may be made yet.
        for host in hosts.iter().filter(|h| !matches!(h.state, HostState::Ordered | HostState::Terminated)) {
            made.entry(host.provider).or_default().push(host);
        }
        for (kind, hosts) in made {
            if let Some(provider) = self.provider(kind) {
                provider.expect(&hosts);
            }
        }
    }

    /// Takes the workers' sections of a new configuration. Hosts that were ordered before are still stopped and listed.
    pub fn configure(&self, config: &Config) {
        self.process.configure(config);
        #[cfg(feature = "ec2")]
        self.ec2.configure(config);
        #[cfg(feature = "libvirt")]
        self.libvirt.configure(config);
        #[cfg(feature = "openstack")]
        self.openstack.configure(config);
    }
}
