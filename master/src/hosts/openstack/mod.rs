//! Hosts that are servers of OpenStack Nova.
//!
//! Nova has no client token, so a server is looked for by its name before it is made. After a call that may have been
//! carried out unseen nothing is made for a while, and where two servers of one host turn up all the same, the older one
//! counts and the other is ended.

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

use super::{CALL_LIMIT, Death, Provider};
use crate::clock;
use crate::config::{Config, OpenstackConfig};
use crate::core::event::{ListedHost, PartialList, StartError, Started, Termination};
use crate::core::record::{Host, LaunchSpec};
use crate::sync::lock;
use account::Account;
use async_trait::async_trait;
use cloud::{Cloud, Service};
use clouds::Clouds;
use error::CloudError;
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

/// After this a call that was given has either shown its server or never will: Nova writes a server down before it
/// answers, and no gateway holds a call for so long.
const PROPAGATION_DELAY: Duration = Duration::from_secs(15);
/// Between two looks at a server that is being made.
const LOOK: Duration = Duration::from_millis(500);
/// Looks until Nova has found a place for a server, before its start counts as taken all the same.
const PLACING_LOOKS: u32 = 40;
/// Looks at a server until it runs: half an hour, with pauses that grow to [`SLOW_LOOK`].
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
    /// How long a call that was made may take to show its server.
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
    stamp: OwnerTag,
    deaths: mpsc::Sender<Death>,
    /// When this process began to start hosts: an order from before may have been given by another.
    born: Timestamp,
    propagation_delay: Duration,
    clouds: Clouds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sections: BTreeMap<WorkerName, Section>,
    /// Hosts that a call was given for whose outcome is not known, and until when it may still show.
    doubts: BTreeMap<HostId, Timestamp>,
    /// Servers that are looked at until they run.
    watched: BTreeSet<String>,
    /// Servers that run and have all that they are to have.
    labelled: BTreeSet<String>,
}

impl Servers {
    /// The provider, with the sections of a configuration. `owner` is `name/id` of the master; in `dir` is noted where hosts
    /// were made.
    ///
    /// # Errors
    /// Where that cannot be read.
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
        let (stamp, clouds) = (OwnerTag::of(owner), Clouds::new(dir.join("places"))?);
        let shared = Shared {
            stamp,
            deaths,
            born: clock::now(),
            propagation_delay: options.propagation_delay,
            clouds,
            state: Mutex::default(),
        };
        let new = Self { shared: Arc::new(shared) };
        new.configure(config);
        Ok(new)
    }

    /// Takes the sections of a new configuration.
    pub fn configure(&self, config: &Config) {
        let mut sections = BTreeMap::new();
        let (mut whose, mut accounts) = (Vec::new(), Vec::new());
        for (worker, section) in config.sections::<OpenstackConfig>() {
            let section = Section { config: Arc::new(section.clone()), cloud: Err(String::new()) };
            match Account::of(&section.config, &|name| std::env::var(name).ok()) {
                Ok(account) => {
                    accounts.push(account);
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

/// An error of looking for a server: whether there is one is not known.
fn unseen(problem: CloudError) -> StartError {
    match problem {
        CloudError::Auth(text) => StartError::Auth(text),
        other => StartError::Transient(other.to_string()),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether a server may still appear that an earlier call has asked for: one of ours, or of the master before.
    fn is_in_doubt(&self, host: &Host) -> bool {
        let now = clock::now();
        let inherited = host.created < self.born && now.since(self.born) < self.propagation_delay;
        inherited || self.state().doubts.get(&host.id).is_some_and(|until| now < *until)
    }

    /// A server has come that a call in doubt may have made: what else may still come does so soon.
    fn has_come(&self, host: &Host) {
        if let Some(until) = self.state().doubts.get_mut(&host.id) {
            *until = (*until).min(clock::now() + self.propagation_delay);
        }
    }

    /// Whether no server may still appear that was asked for.
    fn is_settled(&self) -> bool {
        clock::now().since(self.born) >= self.propagation_delay && self.state().doubts.is_empty()
    }

    /// The host's server, where there is one. Of two only the older one stays.
    async fn look(&self, cloud: &Cloud, spec: &Spec, host: &Host) -> Result<Option<Server>, CloudError> {
        let mut found = servers::of_host(cloud, &self.stamp, &spec.name, &host.id).await?.into_iter();
        let first = found.next();
        for extra in found {
            tracing::warn!("host {} has a second server, {}; deleting it", host.id, extra.id);
            servers::delete(cloud, &self.stamp, &extra.id).await?;
        }
        Ok(first)
    }

    /// Asks for the server. What becomes of the call when nobody waits for it any more is in doubt from its beginning.
    async fn make(&self, cloud: &Cloud, spec: &Spec, host: &Host) -> Result<String, StartError> {
        let noted = self.clouds.note(&spec.cloud);
        noted.map_err(|error| StartError::Transient(format!("cannot save where servers are made: {error}")))?;
        let doubted =
            self.state().doubts.insert(host.id.clone(), clock::now() + CALL_LIMIT + self.propagation_delay).is_some();
        let problem = match cloud.post(Service::Compute, "/servers", &json!({ "server": spec.server })).await {
            Ok(told) => match told["server"]["id"].as_str() {
                Some(id) => {
                    self.state().doubts.remove(&host.id);
                    if !doubted {
                        return Ok(id.to_owned());
                    }
                    // An earlier call may have been carried out just now: of two servers the older one counts.
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
            // Nova's word for a lack of quota, and for what a policy forbids.
            CloudError::Refused { status: 403, .. } => {
                let flavor = spec.server["flavorRef"].as_str().unwrap_or_default();
                match servers::lacks_quota(cloud, flavor).await {
                    Ok(true) => StartError::Capacity(text),
                    Ok(false) => StartError::Auth(text),
                    Err(_) => StartError::Transient(text),
                }
            }
            // Without a time to come back older clouds mean the quota by it.
            CloudError::Refused { status: 413, .. } => StartError::Capacity(text),
            // More than one network to choose from, an address in use: it is not the time that makes it wrong.
            CloudError::Refused { status: 409, .. } => StartError::Rejected(text),
            other => other.before_start(),
        })
    }

    /// Waits until Nova has found a place for the server. One that has failed is ended, and its fault told.
    async fn see_placed(&self, cloud: &Cloud, id: &str) -> Result<(), StartError> {
        for _ in 0..PLACING_LOOKS {
            match servers::one(cloud, &self.stamp, id).await {
                Ok(Some(server)) if server.status == Status::Error && !server.launched => {
                    let error = servers::failure(cloud, &server).await;
                    return match servers::end(cloud, &self.stamp, id, ENDING).await {
                        Ok(true) => Err(error),
                        // As long as it is there the host is, too: the next try goes on here.
                        Ok(false) => Err(StartError::Unknown(error.text().to_owned())),
                        Err(problem) => Err(StartError::Unknown(format!("{}; {problem}", error.text()))),
                    };
                }
                Ok(Some(server)) if server.is_placed() => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(StartError::Transient(format!("server {id} was deleted while it was made"))),
                // It was made: that it cannot be looked at now is no reason to make another.
                Err(problem) => tracing::debug!("server {id} could not be looked at: {problem}"),
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Looks at a server until it runs, labels what it has, and tells where it fails.
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

    async fn watch_until_it_runs(&self, cloud: &Cloud, id: &str) {
        let mut pause = LOOK;
        for _ in 0..RUNNING_LOOKS {
            match servers::one(cloud, &self.stamp, id).await {
                // It was deleted: by a stop, or by somebody else, which the audit finds.
                Ok(None) => return,
                Ok(Some(server)) => match server.status {
                    Status::Building => {}
                    Status::Error => return self.tell_of_failure(cloud, &server).await,
                    Status::SoftDeleted => return,
                    Status::There => match extras::dress(cloud, &self.stamp, &server).await {
                        Ok(()) => {
                            self.state().labelled.insert(server.id);
                            return;
                        }
                        Err(problem) => tracing::warn!("server {id} does not have all that it needs yet: {problem}"),
                    },
                },
                Err(problem) => tracing::debug!("server {id} could not be looked at: {problem}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause + LOOK).min(SLOW_LOOK);
        }
    }

    /// A server in error runs nothing. One that never ran is left to be stopped, once its console was fetched; one that
    /// did is ended here, since its death is proof that its builds have ended.
    async fn tell_of_failure(&self, cloud: &Cloud, server: &Server) {
        let error = servers::failure(cloud, server).await;
        if server.launched {
            match servers::end(cloud, &self.stamp, &server.id, ENDING).await {
                // Nobody will stop it any more. An address that stays all the same the audit finds.
                Ok(true) if server.pool.is_some() => {
                    if let Err(problem) = extras::release(cloud, &self.stamp, &server.master, &server.host).await {
                        tracing::warn!("server {} is gone and its address is not: {problem}", server.id);
                    }
                }
                Ok(true) => {}
                Ok(false) => return tracing::warn!("server {} is in error and Nova does not delete it", server.id),
                Err(problem) => return tracing::warn!("server {} is in error: {problem}", server.id),
            }
        }
        // A master that ends takes no more news; the next one looks for itself.
        if self.deaths.send(Death { host: server.host.clone(), why: error.text().to_owned() }).await.is_err() {
            tracing::debug!("nobody was there to hear that host {} has failed", server.host);
        }
    }
}

#[async_trait]
impl Provider for Servers {
    async fn prepare(&self, host: &Host, _number: u32, boot: BootData) -> Result<LaunchSpec, StartError> {
        let section = self.shared.state().sections.get(&host.worker).cloned();
        let Some(Section { config, cloud }) = section else {
            return Err(StartError::Rejected(format!("worker {} has no [worker.openstack] any more", host.worker)));
        };
        let cloud = cloud.map_err(StartError::Auth)?;
        order::prepare(&cloud, &config, &self.shared.stamp, host, &boot).await
    }

    async fn start(&self, host: &Host) -> Result<Started, StartError> {
        let spec = Spec::of(host).and_then(|spec| spec.ok_or_else(|| format!("host {} was never ordered", host.id)));
        let spec = spec.map_err(StartError::Rejected)?;
        let cloud = self.shared.clouds.at(&spec.cloud).await.map_err(CloudError::before_start)?;
        let found = loop {
            let found = self.shared.look(&cloud, &spec, host).await.map_err(unseen)?;
            // What an earlier call may still make is waited for, however often this is asked.
            if found.is_some() || !self.shared.is_in_doubt(host) {
                break found;
            }
            tokio::time::sleep(LOOK).await;
        };
        let server = match found {
            Some(server) => {
                // Whatever was asked for has come.
                self.shared.state().doubts.remove(&host.id);
                server.id
            }
            None => self.shared.make(&cloud, &spec, host).await?,
        };
        self.shared.see_placed(&cloud, &server).await?;
        self.shared.watch(&cloud, &server);
        // The metadata service tells a server its id, as does the firmware of most hypervisors.
        let identity = Some(identity_of(&server));
        Ok(Started { handle: server, identity })
    }

    async fn terminate(&self, host: &Host) -> Result<Termination, String> {
        // What was never ordered was never made.
        let Some(spec) = Spec::of(host)? else { return Ok(Termination::Gone) };
        let cloud = self.shared.clouds.at(&spec.cloud).await.map_err(|problem| problem.to_string())?;
        let shared = &self.shared;
        let stop = async {
            if let Some(id) = &host.handle
                && let Some(server) = servers::one(&cloud, &shared.stamp, id).await?
                && server.master == shared.stamp.id
                && servers::delete(&cloud, &shared.stamp, id).await? == Termination::Requested
            {
                return Ok(Termination::Requested);
            }
            let others = servers::of_host(&cloud, &shared.stamp, &spec.name, &host.id).await?;
            for server in &others {
                servers::delete(&cloud, &shared.stamp, &server.id).await?;
            }
            if !others.is_empty() {
                shared.has_come(host);
                return Ok(Termination::Requested);
            }
            if host.handle.is_none() && shared.is_in_doubt(host) {
                return Ok(Termination::Requested);
            }
            if spec.pool().is_some() {
                extras::release(&cloud, &shared.stamp, &shared.stamp.id, &host.id).await?;
            }
            shared.state().doubts.remove(&host.id);
            Ok(Termination::Gone)
        };
        stop.await.map_err(|problem: CloudError| problem.to_string())
    }

    async fn list(&self) -> Result<Vec<ListedHost>, PartialList> {
        self.list_clouds().await
    }

    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String> {
        self.terminate_by_handle(listed).await
    }

    async fn console(&self, host: &Host) -> Option<String> {
        let spec = Spec::of(host).ok().flatten()?;
        let cloud = self.shared.clouds.at(&spec.cloud).await.ok()?;
        servers::console(&cloud, host.handle.as_deref()?).await
    }
}

/// What the agent on a server gives for its host identity.
fn identity_of(handle: &str) -> String {
    format!("uuid:{}", handle.to_ascii_lowercase())
}
