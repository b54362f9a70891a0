//! Providers: the things that make hosts. A new one is a module here, a section in `config/hosts/`, a field of [`Hosts`] with
//! its line in [`Hosts::provider`], and one line in the contract suite. Retries, caps, timeouts, mail and naming are the
//! core's business.

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
#[cfg(any(feature = "ec2", feature = "openstack"))]
mod proxy;
pub mod user_data;

use crate::config::Config;
use crate::core::event::{ListedHost, PartialList, StartError, Started, Suspension, Termination};
use crate::core::plan::ProviderKind;
use crate::core::record::{Host, HostState, LaunchSpec};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use rouse_shared::boot::BootData;
use rouse_shared::message::Hello;
use rouse_shared::{HostId, WorkerName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// What every provider can do. Each call has a deadline of its own and may be repeated.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Works out what [`Self::start`] is to order for a host: resolves its image and takes the alternative of this `number`,
    /// from 0; a later one is asked for only if the order before it said that there are more. Makes nothing, so every error
    /// is certain.
    async fn prepare(&self, host: &Host, number: u32, boot: BootData) -> Result<LaunchSpec, StartError>;
    /// Makes the machine exactly as the host's order says, or finds the one that an earlier call has made.
    async fn start(&self, host: &Host) -> Result<Started, StartError>;
    /// Terminates the host's machine. `Gone` only if the provider itself says that there is none, or if none was ordered.
    async fn terminate(&self, host: &Host) -> Result<Termination, String>;
    /// Suspends the host's machine, which stops running and can be resumed. `Suspended` only if the provider itself says so.
    async fn suspend(&self, _host: &Host) -> Result<Suspension, String> {
        Ok(Suspension::Unable("this provider's machines cannot be suspended".to_owned()))
    }
    /// Resumes the machine of a suspended host with these boot data. Does nothing if it runs already.
    async fn resume(&self, _host: &Host, _boot: BootData) -> Result<(), StartError> {
        Err(StartError::Rejected("this provider's machines cannot be suspended".to_owned()))
    }
    /// All machines whose owner tag has our master's name, with its id or another one.
    ///
    /// # Errors
    /// If part of the provider cannot be asked; the error holds what the rest has listed.
    async fn list(&self) -> Result<Vec<ListedHost>, PartialList>;
    /// Takes the hosts that a master which has just started finds in its ledger, and whose machines were made. A provider
    /// that reports deaths reports now which of them have ended in the meantime.
    fn expect(&self, _hosts: &[&Host]) {}
    /// Terminates a machine that [`Self::list`] has listed and that the ledger does not know, or one of another master of our
    /// name. Its handle says where it is.
    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String>;
    /// The end of what the machine printed, if the provider keeps it.
    async fn console(&self, host: &Host) -> Option<String>;
    /// Checks an agent's proof that it runs on the machine that it names, before its hello is handled: at once, without a
    /// call. A provider that has no such proof accepts every agent.
    ///
    /// # Errors
    /// What is wrong with it, for our log and the agent's.
    fn attest(&self, _worker: &WorkerName, _hello: &Hello) -> Result<(), String> {
        Ok(())
    }
}

/// Why a provider has no result for a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnansweredError {
    /// This program was built without it.
    #[error("this build of rouse has no provider {}", .0.as_str())]
    Absent(ProviderKind),
    /// It did not answer within [`CALL_LIMIT`]; whether the call is carried out is unknown.
    #[error("no answer within {} s", CALL_LIMIT.as_secs())]
    Timeout,
}

impl UnansweredError {
    /// As the error of a start; `timeout` says what a timeout means for it.
    pub fn into_start(self, timeout: fn(String) -> StartError) -> StartError {
        match self {
            Self::Absent(_) => StartError::Rejected(self.to_string()),
            Self::Timeout => timeout(self.to_string()),
        }
    }
}

impl From<UnansweredError> for String {
    fn from(error: UnansweredError) -> Self {
        error.to_string()
    }
}

impl From<UnansweredError> for PartialList {
    fn from(error: UnansweredError) -> Self {
        error.to_string().into()
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
    /// All providers. They keep their files in `dir` and tag their hosts with `owner`, the master's name and generated id as
    /// `name/id`. They report deaths through `deaths`. Must be called within a runtime.
    ///
    /// # Errors
    /// If `dir` cannot be used.
    pub fn new(dir: PathBuf, owner: String, config: &Config, deaths: mpsc::Sender<Death>) -> std::io::Result<Self> {
        #[cfg(feature = "ec2")]
        let ec2 = ec2::Ec2::new(dir.join("ec2"), owner.clone(), config, deaths.clone())?;
        #[cfg(feature = "libvirt")]
        let libvirt = libvirt::Libvirt::new(dir.join("libvirt"), &owner, config, deaths.clone())?;
        #[cfg(feature = "openstack")]
        let openstack = openstack::Servers::new(dir.join("openstack"), &owner, config, deaths.clone())?;
        Ok(Self {
            process: process::Processes::new(dir, owner, config, deaths)?,
            #[cfg(feature = "ec2")]
            ec2,
            #[cfg(feature = "libvirt")]
            libvirt,
            #[cfg(feature = "openstack")]
            openstack,
        })
    }

    /// The provider of a kind, if this build has it.
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

    /// Calls a provider, for [`CALL_LIMIT`] at most.
    ///
    /// # Errors
    /// If this build does not have the provider, or it does not answer in time.
    pub async fn call<'a, T>(
        &'a self,
        kind: ProviderKind,
        call: impl FnOnce(&'a dyn Provider) -> BoxFuture<'a, T>,
    ) -> Result<T, UnansweredError> {
        let provider = self.provider(kind).ok_or(UnansweredError::Absent(kind))?;
        tokio::time::timeout(CALL_LIMIT, call(provider)).await.map_err(|_| UnansweredError::Timeout)
    }

    /// Passes to the providers the hosts that are in the ledger when the master starts.
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
