//! Hosts that are servers of OpenStack Nova.
//!
//! Nova has no client token, so the provider looks for a server with the host's name before it creates one. If a call
//! to create a server was not answered, the server may still appear, so the provider creates nothing for a while. If a
//! host has two servers nevertheless, the older one counts and the other is deleted.

mod account;
mod cloud;
mod clouds;
mod clouds_yaml;
mod error;
mod extras;
mod images;
mod keystone;
mod listing;
mod online;
mod order;
mod servers;

use super::overdue::Overdue;
use super::{CALL_LIMIT, Death, Provider};
use crate::clock;
use crate::config::{Config, OpenstackConfig};
use crate::core::event::{ListedHost, Listing, StartError, Started, Termination};
use crate::core::record::{Host, LaunchSpec};
use crate::sync::lock;
use account::Account;
use async_trait::async_trait;
use cloud::{Cloud, Service};
use clouds::Clouds;
use error::{Cause, CloudError};
pub use online::check;
use order::Spec;
use rouse_shared::boot::BootData;
use rouse_shared::{HostId, Timestamp, WorkerName};
use serde_json::json;
use servers::{OwnerTag, Server, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;

/// After this time a call has either created a visible server or never will: Nova stores a server before it answers,
/// and no gateway holds a call for this long.
const PROPAGATION_DELAY: Duration = Duration::from_secs(15);
/// Interval of the checks of a server that is being created.
const LOOK: Duration = Duration::from_millis(500);
/// Number of checks until Nova has placed a server. After that its start counts as successful nevertheless.
const PLACING_LOOKS: u32 = 40;
/// Number of checks until a server runs: half an hour, with pauses that grow to [`SLOW_LOOK`].
const RUNNING_LOOKS: u32 = 180;
/// The longest pause between them.
const SLOW_LOOK: Duration = Duration::from_secs(10);
/// How long to wait until a server in error has gone.
const ENDING: Duration = Duration::from_secs(20);

/// A worker's section, and the cloud that it is in.
#[derive(Clone)]
struct Section {
    config: Arc<OpenstackConfig>,
    cloud: Result<Arc<Cloud>, String>,
}

/// What tests set otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call may take to create a visible server.
    pub propagation_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { propagation_delay: PROPAGATION_DELAY }
    }
}

/// The provider.
#[derive(Clone)]
pub struct Servers {
    shared: Arc<Shared>,
}

struct Shared {
    tag: OwnerTag,
    deaths: mpsc::Sender<Death>,
    /// When this process started. An earlier order may have been sent by another process.
    born: Timestamp,
    propagation_delay: Duration,
    clouds: Clouds,
    /// Servers that Nova was asked to delete and that are still there.
    overdue: Overdue,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sections: BTreeMap<WorkerName, Section>,
    /// Hosts with a call whose result is unknown, and until when it may still create a server.
    doubts: BTreeMap<HostId, Timestamp>,
    /// Servers that are watched until they run.
    watched: BTreeSet<String>,
    /// Servers that run and are completely labelled.
    labelled: BTreeSet<String>,
}

impl Servers {
    /// The provider, with the sections of a configuration. `owner` is `name/id` of the master. `dir` stores where hosts
    /// were created.
    ///
    /// # Errors
    /// If that cannot be read.
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
        let (tag, clouds) = (OwnerTag::of(owner), Clouds::new(dir.join("places"))?);
        let shared = Shared {
            tag,
            deaths,
            born: clock::now(),
            propagation_delay: options.propagation_delay,
            clouds,
            overdue: Overdue::default(),
            state: Mutex::default(),
        };
        let new = Self { shared: Arc::new(shared) };
        new.configure(config);
        Ok(new)
    }

    /// Applies the sections of a new configuration.
    pub fn configure(&self, config: &Config) {
        let mut sections = BTreeMap::new();
        let (mut whose, mut accounts) = (Vec::new(), Vec::new());
        for (worker, section) in config.sections::<OpenstackConfig>() {
            let section = Section { config: Arc::new(section.clone()), cloud: Err(String::new()) };
            match Account::of(&section.config, &|name| std::env::var(name).ok()) {
                Ok(account) => {
                    accounts.push((section.config.place(), account));
                    whose.push((worker.clone(), section));
                }
                Err(why) => drop(sections.insert(worker.clone(), Section { cloud: Err(why), ..section })),
            }
        }
        for ((worker, section), cloud) in whose.into_iter().zip(self.shared.clouds.configure(accounts)) {
            sections.insert(worker, Section { cloud, ..section });
        }
        self.shared.state().sections = sections;
    }
}

/// The error of a search for a server: whether there is one is unknown.
fn unseen(problem: CloudError) -> StartError {
    match problem {
        CloudError::Auth(text) => StartError::Place(text),
        // A rate limit, a 5xx or no answer concerns all hosts of the place.
        other if !matches!(other, CloudError::Misconfigured(_)) => StartError::Place(other.to_string()),
        other => StartError::Transient(other.to_string()),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether an earlier call may still create a server: a call of this master or of the previous one.
    fn is_in_doubt(&self, host: &Host) -> bool {
        let now = clock::now();
        let inherited = host.created < self.born && now.since(self.born) < self.propagation_delay;
        inherited || self.state().doubts.get(&host.id).is_some_and(|until| now < *until)
    }

    /// A server exists that an uncertain call may have created. Any other follows soon.
    fn has_come(&self, host: &Host) {
        if let Some(until) = self.state().doubts.get_mut(&host.id) {
            *until = (*until).min(clock::now() + self.propagation_delay);
        }
    }

    /// Whether no requested server can still appear.
    fn is_settled(&self) -> bool {
        clock::now().since(self.born) >= self.propagation_delay && self.state().doubts.is_empty()
    }

    /// The host's server, if there is one. If there are two, deletes the newer one.
    async fn look(&self, cloud: &Cloud, spec: &Spec, host: &Host) -> Result<Option<Server>, CloudError> {
        let mut found = servers::of_host(cloud, &self.tag, &spec.name, &host.id).await?.into_iter();
        let first = found.next();
        for extra in found {
            tracing::warn!("host {} has a second server, {}; deleting it", host.id, extra.id);
            servers::delete(cloud, &self.tag, &extra.id).await?;
        }
        Ok(first)
    }

    /// Creates the server, after the floating address that it needs.
    async fn make(&self, cloud: &Cloud, spec: &Spec, host: &Host) -> Result<String, StartError> {
        let noted = self.clouds.note(&spec.cloud, &host.place);
        noted.map_err(|error| StartError::Transient(format!("cannot save where servers are created: {error}")))?;
        let Some(pool) = spec.pool() else { return self.make_server(cloud, spec, host).await };
        // Before the server: without the address that it needs, its agent would never attach, and the image would be
        // blamed.
        extras::reserve(cloud, &self.tag, pool, &host.id).await.map_err(CloudError::before_start)?;
        let made = self.make_server(cloud, spec, host).await;
        if let Err(error) = &made
            && !matches!(error, StartError::Unknown(_))
            && let Err(problem) = extras::release(cloud, &self.tag, &self.tag.id, &host.id).await
        {
            tracing::warn!("the address of host {} was not released; the audit will release it: {problem}", host.id);
        }
        made
    }

    /// Creates the server. The call counts as uncertain from its beginning, because its caller may stop waiting.
    async fn make_server(&self, cloud: &Cloud, spec: &Spec, host: &Host) -> Result<String, StartError> {
        let doubted =
            self.state().doubts.insert(host.id.clone(), clock::now() + CALL_LIMIT + self.propagation_delay).is_some();
        let problem = match cloud.post(Service::Compute, "/servers", &json!({ "server": spec.server })).await {
            Ok(json) => match json["server"]["id"].as_str() {
                Some(id) => {
                    self.state().doubts.remove(&host.id);
                    if !doubted {
                        return Ok(id.to_owned());
                    }
                    // An earlier call may have just been carried out. Of two servers the older one counts.
                    let seen = self.look(cloud, spec, host).await.ok().flatten();
                    return Ok(seen.map_or_else(|| id.to_owned(), |server| server.id));
                }
                None => CloudError::Lost("Nova's answer to the order of a server has no id".to_owned()),
            },
            Err(problem) => problem,
        };
        if problem.leaves_doubt() {
            self.state().doubts.insert(host.id.clone(), clock::now() + self.propagation_delay);
            return Err(StartError::Unknown(problem.to_string()));
        }
        self.state().doubts.remove(&host.id);
        let text = problem.to_string();
        Err(match problem {
            // Nova's status for an exhausted quota, perhaps with a translated message, and for what a policy forbids.
            CloudError::Refused { status: 403, cause: Cause::Other, .. } => {
                let flavor = spec.server["flavorRef"].as_str().unwrap_or_default();
                match servers::lacks_quota(cloud, flavor).await {
                    Ok(true) => StartError::Quota(text),
                    Ok(false) | Err(_) => StartError::Place(text),
                }
            }
            // More than one network to choose from, an address in use: it is not the time that makes it wrong.
            CloudError::Refused { status: 409, cause: Cause::Other, .. } => StartError::Rejected(text),
            other => other.before_start(),
        })
    }

    /// Nova was asked to delete a server that still exists. An error if this takes too long.
    fn still_there(&self, server: &Server) -> Result<Termination, CloudError> {
        let Some(taken) = self.overdue.still_there(clock::now(), &server.id) else { return Ok(Termination::Requested) };
        let task = if server.task.is_empty() { "none" } else { &server.task };
        let fault = server.fault.as_ref().map_or_else(String::new, |fault| format!(", its fault: {fault}"));
        Err(CloudError::Misconfigured(format!(
            "Nova has not deleted server {} within {} s (its task: {task}{fault}), which costs money; ask the operators of \
             the cloud to reset its state",
            server.id,
            taken.as_secs()
        )))
    }

    /// Waits until Nova has found a hypervisor for the server. Deletes a server that has failed, and returns its fault.
    async fn wait_until_placed(&self, cloud: &Cloud, id: &str) -> Result<(), StartError> {
        for _ in 0..PLACING_LOOKS {
            match servers::one(cloud, &self.tag, id).await {
                Ok(Some(server)) if server.status == Status::Error && !server.launched => {
                    let error = servers::failure(cloud, &server).await;
                    return match servers::end(cloud, &self.tag, id, ENDING).await {
                        Ok(true) => Err(error),
                        // While the server exists, the host does too. The next try continues here.
                        Ok(false) => Err(StartError::Unknown(error.text().to_owned())),
                        Err(problem) => Err(StartError::Unknown(format!("{}; {problem}", error.text()))),
                    };
                }
                Ok(Some(server)) if server.is_placed() => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => {
                    return Err(StartError::Transient(format!("server {id} was deleted while it was being created")));
                }
                // The server was created. That it cannot be read now is no reason to create another.
                Err(problem) => tracing::debug!("server {id} could not be queried: {problem}"),
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Watches a server until it runs, labels its parts, and reports its failure.
    fn watch(self: &Arc<Self>, cloud: &Arc<Cloud>, id: &str) {
        if !self.state().watched.insert(id.to_owned()) {
            return;
        }
        let (shared, cloud, id) = (self.clone(), cloud.clone(), id.to_owned());
        tokio::spawn(async move {
            shared.watch_until_it_runs(&cloud, &id).await;
            shared.state().watched.remove(&id);
        });
    }

    async fn watch_until_it_runs(&self, cloud: &Arc<Cloud>, id: &str) {
        let mut pause = LOOK;
        for _ in 0..RUNNING_LOOKS {
            // The place was given up.
            if !self.clouds.knows(cloud) {
                return;
            }
            match servers::one(cloud, &self.tag, id).await {
                // It was deleted: by a termination, or by somebody else, which the audit finds.
                Ok(None) => return,
                Ok(Some(server)) => match server.status {
                    Status::Building => {}
                    Status::Error => return self.report_failure(cloud, &server).await,
                    Status::SoftDeleted => return,
                    Status::There => match extras::dress(cloud, &self.tag, &server).await {
                        Ok(()) => {
                            self.state().labelled.insert(server.id);
                            return;
                        }
                        Err(problem) => tracing::warn!("server {id} does not have all that it needs yet: {problem}"),
                    },
                },
                Err(problem) => tracing::debug!("server {id} could not be queried: {problem}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause + LOOK).min(SLOW_LOOK);
        }
    }

    /// A server in error runs nothing. If it never ran, it is terminated by the core once its console output was
    /// fetched. If it did run, it is deleted here, because its death proves that its builds have ended.
    async fn report_failure(&self, cloud: &Cloud, server: &Server) {
        let error = servers::failure(cloud, server).await;
        if server.launched {
            match servers::end(cloud, &self.tag, &server.id, ENDING).await {
                // Nobody else will delete it. The audit finds an address that is left.
                Ok(true) if server.pool.is_some() => {
                    if let Err(problem) = extras::release(cloud, &self.tag, &server.master, &server.host).await {
                        tracing::warn!("server {} is gone, but its address was not released: {problem}", server.id);
                    }
                }
                Ok(true) => {}
                Ok(false) => return tracing::warn!("server {} is in error and Nova does not delete it", server.id),
                Err(problem) => return tracing::warn!("server {} is in error: {problem}", server.id),
            }
        }
        // A master that ends takes no more news; the next one looks for itself.
        let reclaimed = !matches!(error, StartError::Rejected(_));
        let death = Death { host: server.host.clone(), why: error.text().to_owned(), reclaimed };
        if self.deaths.send(death).await.is_err() {
            tracing::debug!("nobody was there to hear that host {} has failed", server.host);
        }
    }
}

#[async_trait]
impl Provider for Servers {
    async fn prepare(
        &self,
        host: &Host,
        number: u32,
        resting: &BTreeSet<String>,
        boot: BootData,
    ) -> Result<LaunchSpec, StartError> {
        let section = self.shared.state().sections.get(&host.worker).cloned();
        let Some(Section { config, cloud }) = section else {
            return Err(StartError::Rejected(format!("worker {} has no [worker.openstack] any more", host.worker)));
        };
        let cloud = cloud.map_err(StartError::Place)?;
        order::prepare(&cloud, &config, &self.shared.tag, host, (number, resting), &boot).await
    }

    async fn start(&self, host: &Host) -> Result<Started, StartError> {
        let spec = Spec::of(host).and_then(|spec| spec.ok_or_else(|| format!("host {} was never ordered", host.id)));
        let spec = spec.map_err(StartError::Rejected)?;
        let cloud = self.shared.clouds.at(&spec.cloud).await.map_err(CloudError::before_start)?;
        let found = loop {
            let found = self.shared.look(&cloud, &spec, host).await.map_err(unseen)?;
            // Waits for what an earlier call may still create, however often this is called.
            if found.is_some() || !self.shared.is_in_doubt(host) {
                break found;
            }
            tokio::time::sleep(LOOK).await;
        };
        let server = match found {
            Some(server) => {
                // Everything that was requested exists.
                self.shared.state().doubts.remove(&host.id);
                server.id
            }
            None => self.shared.make(&cloud, &spec, host).await?,
        };
        self.shared.wait_until_placed(&cloud, &server).await?;
        self.shared.watch(&cloud, &server);
        // A server learns its id from the metadata service, and from the firmware of most hypervisors.
        let identity = Some(identity_of(&server));
        Ok(Started { handle: server, identity })
    }

    async fn terminate(&self, host: &Host) -> Result<Termination, String> {
        // Without a launch spec nothing was created.
        let Some(spec) = Spec::of(host)? else { return Ok(Termination::Gone) };
        let cloud = self.shared.clouds.at(&spec.cloud).await.map_err(|problem| problem.to_string())?;
        let shared = &self.shared;
        let stop = async {
            if let Some(id) = &host.handle
                && let Some(server) = servers::one(&cloud, &shared.tag, id).await?
                && server.master == shared.tag.id
                && servers::delete(&cloud, &shared.tag, id).await? == Termination::Requested
            {
                return shared.still_there(&server);
            }
            let others = servers::of_host(&cloud, &shared.tag, &spec.name, &host.id).await?;
            for server in &others {
                servers::delete(&cloud, &shared.tag, &server.id).await?;
            }
            if let Some(first) = others.first() {
                shared.has_come(host);
                return shared.still_there(first);
            }
            if host.handle.is_none() && shared.is_in_doubt(host) {
                return Ok(Termination::Requested);
            }
            if spec.pool().is_some() {
                extras::release(&cloud, &shared.tag, &shared.tag.id, &host.id).await?;
            }
            shared.state().doubts.remove(&host.id);
            shared.overdue.gone(host.handle.as_deref().unwrap_or_default());
            Ok(Termination::Gone)
        };
        stop.await.map_err(|problem: CloudError| problem.to_string())
    }

    async fn list(&self) -> Result<Listing, String> {
        Ok(self.list_clouds().await)
    }

    fn forget_place(&self, place: &str) {
        let sections = self.shared.state().sections.clone();
        if sections.values().all(|section| section.config.place() != place) {
            self.shared.clouds.give_up(place);
        }
    }

    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String> {
        self.terminate_by_handle(listed).await
    }

    async fn console(&self, host: &Host) -> Option<String> {
        let spec = Spec::of(host).ok().flatten()?;
        let cloud = match self.shared.clouds.at(&spec.cloud).await {
            Ok(cloud) => cloud,
            Err(error) => return Some(format!("(the console output cannot be read: {error})")),
        };
        servers::console(&cloud, host.handle.as_deref()?).await
    }
}

/// The host identity that the agent on a server reports.
fn identity_of(handle: &str) -> String {
    format!("uuid:{}", handle.to_ascii_lowercase())
}
