//! Providers, which create hosts. A new provider needs a module here, a section in `config/hosts/`, a field of
//! [`Hosts`] with its line in [`Hosts::provider`], and a line in the contract suite. The core does everything else:
//! retries, limits, timeouts, mail and naming.

#[cfg(any(feature = "ec2", feature = "openstack"))]
mod alternatives;
#[cfg(any(feature = "ec2", feature = "openstack"))]
mod clock_skew;
#[cfg(feature = "ec2")]
pub mod ec2;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod libvirt_network;
pub mod online;
#[cfg(feature = "openstack")]
pub mod openstack;
mod overdue;
#[cfg(any(feature = "libvirt", feature = "openstack"))]
mod persisted_set;
pub mod process;
pub mod user_data;

use crate::config::Config;
use crate::core::event::{ListedHost, Listing, StartError, Started, Suspension, Termination};
use crate::core::plan::ProviderKind;
use crate::core::record::{Host, HostState, LaunchSpec};
use crate::files;
use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rouse_shared::boot::BootData;
use rouse_shared::message::Hello;
use rouse_shared::{HostId, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// What every provider can do. Each call has its own deadline and may be repeated.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Computes what [`Self::start`] is to order for a host: looks up its image and selects the first alternative from
    /// `number` on, counted from 0, that is not `resting`. A later one is asked for only if the order before it said
    /// that there are more. [`StartError::Capacity`] if none of the rest can be used. Creates nothing, so every error
    /// is certain.
    async fn prepare(
        &self,
        host: &Host,
        number: u32,
        resting: &BTreeSet<String>,
        boot: BootData,
    ) -> Result<LaunchSpec, StartError>;
    /// Creates the machine exactly as in the host's launch spec, or finds the one that an earlier call has created.
    async fn start(&self, host: &Host) -> Result<Started, StartError>;
    /// Terminates the host's machine. `Gone` only if the provider reports that there is none, or if none was started.
    async fn terminate(&self, host: &Host) -> Result<Termination, String>;
    /// Suspends the host's machine, which stops running and can be resumed. `Suspended` only if the provider reports
    /// it.
    async fn suspend(&self, _host: &Host) -> Result<Suspension, String> {
        Ok(Suspension::Unable("this provider's machines cannot be suspended".to_owned()))
    }
    /// Resumes the machine of a suspended host with these boot data. Does nothing if it runs already.
    async fn resume(&self, _host: &Host, _boot: BootData) -> Result<(), StartError> {
        Err(StartError::Rejected("this provider's machines cannot be suspended".to_owned()))
    }
    /// All machines whose owner tag has our master's name, with its id or another one, of every place that the
    /// configuration names and of those where hosts were created before.
    ///
    /// # Errors
    /// If none of the places can be asked. A single place that cannot be is part of the listing.
    async fn list(&self) -> Result<Listing, String>;
    /// Takes the hosts that a master which has just started finds in its ledger, and whose machines were made. A
    /// provider that reports deaths reports now which of them have ended in the meantime.
    fn expect(&self, _hosts: &[&Host]) {}
    /// Terminates a machine that [`Self::list`] has listed: one that is not in the ledger, or a foreign one. Its handle
    /// says where it is.
    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String>;
    /// Forgets a place that an operator has given up, so that it is no longer listed. Does nothing if the configuration
    /// has a place of this name ([`Host::place`]).
    fn forget_place(&self, _place: &str) {}
    /// The end of the machine's console output, if the provider keeps it.
    async fn console(&self, host: &Host) -> Option<String>;
    /// Checks an agent's proof that it runs on the machine that it names, before its hello is handled: at once, without
    /// a call. A provider that has no such proof accepts every agent.
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
    /// A bug in rouse interrupted the call. Whether it was carried out is unknown.
    #[error("an error in rouse interrupted it; the master's log has the details")]
    Panicked,
}

impl UnansweredError {
    /// As the error of [`Provider::prepare`], which creates nothing and may be repeated.
    pub fn of_prepare(self) -> StartError {
        match self {
            Self::Absent(_) => StartError::Rejected(self.to_string()),
            Self::Timeout => StartError::Place(self.to_string()),
            Self::Panicked => StartError::Transient(self.to_string()),
        }
    }

    /// As the error of [`Provider::start`] and of [`Provider::resume`].
    pub fn of_start(self) -> StartError {
        match self {
            Self::Absent(_) => StartError::Rejected(self.to_string()),
            Self::Timeout | Self::Panicked => StartError::Unknown(self.to_string()),
        }
    }
}

impl From<UnansweredError> for String {
    fn from(error: UnansweredError) -> Self {
        error.to_string()
    }
}

/// Longest that a call to a provider may take before its result counts as unknown.
pub const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A host's death that the provider reports without being asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    /// The host.
    pub host: HostId,
    /// How it ended, in a sentence.
    pub why: String,
    /// Whether the cloud took it back for lack of capacity.
    pub reclaimed: bool,
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
    /// Replaces all of them in tests, with its own time limit.
    #[cfg(test)]
    stand_in: Option<(Box<dyn Provider>, Duration)>,
}

impl Hosts {
    /// All providers. They keep their files in `dir` and tag their hosts with `owner`, the master's name and generated
    /// id as `name/id`. They report deaths through `deaths`. Must be called within a runtime.
    ///
    /// # Errors
    /// If `dir` cannot be used.
    pub fn new(dir: PathBuf, owner: String, config: &Config, deaths: mpsc::Sender<Death>) -> std::io::Result<Self> {
        // Before the providers, whose own directories are below it. Builds with `run_as` pass through it; nobody lists it.
        files::make_dir(&dir, 0o711)?;
        #[cfg(feature = "ec2")]
        let ec2 = ec2::Ec2::new(dir.join("ec2"), owner.clone(), config, deaths.clone())?;
        #[cfg(feature = "libvirt")]
        let libvirt = libvirt::Libvirt::new(dir.join("libvirt"), &owner, config, deaths.clone())?;
        #[cfg(feature = "openstack")]
        files::make_dir(&dir.join("openstack"), 0o700)?;
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
            #[cfg(test)]
            stand_in: None,
        })
    }

    /// Replaces all providers by one, whose calls may take `limit`.
    #[cfg(test)]
    pub(crate) fn with_stand_in(self, stand_in: Box<dyn Provider>, limit: Duration) -> Self {
        Self { stand_in: Some((stand_in, limit)), ..self }
    }

    fn limit(&self) -> Duration {
        #[cfg(test)]
        if let Some((_, limit)) = &self.stand_in {
            return *limit;
        }
        CALL_LIMIT
    }

    /// The provider of a kind, if this build has it.
    pub fn provider(&self, kind: ProviderKind) -> Option<&dyn Provider> {
        #[cfg(test)]
        if let Some((stand_in, _)) = &self.stand_in {
            return Some(stand_in.as_ref());
        }
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

    /// Calls a provider, for [`CALL_LIMIT`] at most. Always returns, because the core waits for each answer.
    ///
    /// # Errors
    /// If this build does not have the provider, if it does not answer in time, or if it panics.
    pub async fn call<'a, T>(
        &'a self,
        kind: ProviderKind,
        call: impl FnOnce(&'a dyn Provider) -> BoxFuture<'a, T>,
    ) -> Result<T, UnansweredError> {
        let provider = self.provider(kind).ok_or(UnansweredError::Absent(kind))?;
        guarded(self.limit(), async { call(provider).await }).await
    }

    /// Calls [`Provider::attest`]. If it panics, the agent is refused.
    ///
    /// # Errors
    /// What is wrong with the proof.
    pub fn attest(&self, kind: ProviderKind, worker: &WorkerName, hello: &Hello) -> Result<(), String> {
        let Some(provider) = self.provider(kind) else { return Ok(()) };
        let checked = catch_unwind(AssertUnwindSafe(|| provider.attest(worker, hello)));
        checked.unwrap_or_else(|_| Err(UnansweredError::Panicked.to_string()))
    }

    /// Calls [`Provider::forget_place`].
    pub fn forget_place(&self, kind: ProviderKind, place: &str) {
        if let Some(provider) = self.provider(kind) {
            shielded(kind, || provider.forget_place(place));
        }
    }

    /// Passes to the providers the hosts that are in the ledger when the master starts.
    pub fn expect(&self, hosts: &[Host]) {
        let mut made: BTreeMap<ProviderKind, Vec<&Host>> = BTreeMap::new();
        // The machine of an ordered host may still be created.
        for host in hosts.iter().filter(|h| !matches!(h.state, HostState::Ordered | HostState::Terminated)) {
            made.entry(host.provider).or_default().push(host);
        }
        for (kind, hosts) in made {
            if let Some(provider) = self.provider(kind) {
                shielded(kind, || provider.expect(&hosts));
            }
        }
    }

    /// Applies the workers' sections of a new configuration. Hosts that were ordered before can still be terminated and
    /// listed.
    pub fn configure(&self, config: &Config) {
        shielded(ProviderKind::Process, || self.process.configure(config));
        #[cfg(feature = "ec2")]
        shielded(ProviderKind::Ec2, || self.ec2.configure(config));
        #[cfg(feature = "libvirt")]
        shielded(ProviderKind::Libvirt, || self.libvirt.configure(config));
        #[cfg(feature = "openstack")]
        shielded(ProviderKind::Openstack, || self.openstack.configure(config));
    }
}

/// Waits for a call until it returns, its time is over, or it panics.
async fn guarded<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, UnansweredError> {
    match tokio::time::timeout(limit, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(answer)) => Ok(answer),
        // The panic hook has logged it.
        Ok(Err(_)) => Err(UnansweredError::Panicked),
        Err(_) => Err(UnansweredError::Timeout),
    }
}

/// Makes a call that returns nothing. A panic of one provider must not end the event loop, which the others need.
fn shielded(kind: ProviderKind, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!("an error in rouse: provider {} panicked and missed a notification", kind.as_str());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn no_other_user_can_list_hosts() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("hosts");
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // The second time as an earlier version has left it.
        for _ in 0..2 {
            let config = Config::without_file(state.path().to_owned());
            Hosts::new(dir.clone(), "ci/0123".to_owned(), &config, mpsc::channel(1).0).unwrap();
            assert_eq!(mode(&dir), 0o711);
            for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
                // QEMU reads a guest's boot data as its own user.
                let expected = if entry.ends_with("libvirt") { 0o711 } else { 0o700 };
                assert_eq!(mode(&entry), expected, "{}", entry.display());
                fs::set_permissions(&entry, fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
