//! Hosts on Amazon EC2, or on a compatible cloud: on-demand and spot instances.
//!
//! [`Ec2::prepare`] computes the complete launch spec. The master keeps it in the ledger and sends it to AWS unchanged
//! with its client token. Therefore one launch spec never creates two machines. The call that creates the machine also
//! tags it with the master's name and id and the host's id. Termination is repeated until AWS reports the instance as
//! terminated.

mod attach;
mod client;
mod codes;
mod console;
mod error;
mod identity;
mod image;
mod list;
mod online;
mod order;
mod places;
mod setup;
mod spot;
mod suspend;
mod terminate;
mod watch;

use super::alternatives::{self, Chosen};
use super::overdue::Overdue;
use super::{Death, Provider, user_data};
use crate::config::{Config, Ec2Config};
use crate::core::event::{ListedHost, Listing, StartError, Started, Suspension, Termination};
use crate::core::record::{Host, LaunchSpec};
use crate::sync::lock;
use async_trait::async_trait;
use attach::Attachments;
use client::{Client, Login, Place};
use error::{CallError, Kind, call_error};
use identity::Certificates;
use image::ImageError;
pub use online::check;
use order::{Found, Spec};
use places::Places;
use rouse_shared::boot::BootData;
use rouse_shared::message::Hello;
use rouse_shared::{HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use watch::Watch;

/// How long AWS may take to list what it has created. Until then an empty answer proves nothing.
const LIST_DELAY: Duration = Duration::from_secs(60);
/// Pause and number of retries of a start if a new key pair or security group is not known everywhere yet.
const FRESH_PAUSE: Duration = Duration::from_secs(2);
const FRESH_TRIES: u32 = 8;

/// What tests set otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the cloud may take to list what it has created.
    pub list_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { list_delay: LIST_DELAY }
    }
}

/// The provider.
pub struct Ec2 {
    owner: String,
    dir: PathBuf,
    list_delay: Duration,
    places: Places,
    workers: Mutex<BTreeMap<WorkerName, Worker>>,
    /// The place of each machine in the last lists, by its handle.
    seen: Mutex<BTreeMap<String, Place>>,
    /// Hosts that AWS was asked to terminate and that have not ended.
    overdue: Overdue,
    /// Hosts that the master terminates and that were not found, and since when.
    unseen: Mutex<BTreeMap<HostId, Timestamp>>,
    watch: Arc<Watch>,
    /// Instances whose address and volumes are being attached.
    attaching: Arc<Mutex<BTreeSet<String>>>,
}

/// The certificates that verify identity documents, or why there are none; absent if no document is required.
type Signers = Option<Arc<Result<Certificates, String>>>;

/// A worker of the configuration.
struct Worker {
    section: Arc<Ec2Config>,
    certificates: Signers,
}

/// The certificates for a section's hosts. A cloud that is only compatible with EC2 has no key of AWS's.
fn certificates_of(section: &Ec2Config) -> Option<Result<Certificates, String>> {
    match &section.identity_certificates {
        Some(path) => Some(Certificates::load(path)),
        None if section.endpoint_url.is_some() => None,
        None => Some(Ok(Certificates::of_aws())),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl Ec2 {
    /// The provider. It stores in `dir` the key pairs that it has created, and where it has created hosts. `owner`
    /// becomes the owner tag of what it creates. It reports deaths through `deaths`. Must be called within a runtime.
    ///
    /// # Errors
    /// If the files of an earlier master cannot be read.
    pub fn new(dir: PathBuf, owner: String, config: &Config, deaths: mpsc::Sender<Death>) -> io::Result<Self> {
        let new = Self {
            owner,
            list_delay: LIST_DELAY,
            places: Places::new(client::http(), dir.join("places.json"))?,
            dir,
            workers: Mutex::default(),
            seen: Mutex::default(),
            overdue: Overdue::default(),
            unseen: Mutex::default(),
            watch: Watch::start(deaths),
            attaching: Arc::default(),
        };
        new.configure(config);
        Ok(new)
    }

    /// The provider with options of tests.
    #[must_use]
    pub fn with_options(self, options: Options) -> Self {
        Self { list_delay: options.list_delay, ..self }
    }

    /// Applies the sections of a configuration.
    pub fn configure(&self, config: &Config) {
        let mut logins: Vec<Login> = Vec::new();
        let mut workers = BTreeMap::new();
        // The workers of one template share their certificates.
        let mut known: Vec<(Option<PathBuf>, Signers)> = Vec::new();
        for (name, section) in config.sections::<Ec2Config>() {
            let login = Login::of(section);
            if !logins.contains(&login) {
                logins.push(login);
            }
            let path = &section.identity_certificates;
            let before = known.iter().find(|(of, _)| path.is_some() && of == path).map(|(_, found)| found.clone());
            let certificates = before.unwrap_or_else(|| certificates_of(section).map(Arc::new));
            if let Some(Err(why)) = certificates.as_deref() {
                tracing::warn!("agents of {name} will be refused: worker.ec2.identity_certificates: {why}");
            }
            known.push((path.clone(), certificates.clone()));
            workers.insert(name.clone(), Worker { section: Arc::new(section.clone()), certificates });
        }
        self.places.configure(logins);
        *lock(&self.workers) = workers;
    }

    fn section(&self, worker: &WorkerName) -> Option<Arc<Ec2Config>> {
        lock(&self.workers).get(worker).map(|worker| worker.section.clone())
    }

    /// Handles a start that AWS has refused.
    async fn refused(
        &self,
        client: &Client,
        host: &Host,
        spec: &Spec,
        more: bool,
        mut error: CallError,
    ) -> Result<String, StartError> {
        if error.kind == Kind::Mismatch {
            // This token has created something. A newer version of rouse may send the same call in another form.
            let found = terminate::instances_of(client, &host.id).await.map_err(|e| StartError::Unknown(e.text))?;
            return found.into_iter().next().map(|i| i.id).ok_or_else(|| error.of_start(more));
        }
        if spec.spot.is_some() && matches!(error.kind, Kind::Capacity | Kind::Quota | Kind::NotHere) {
            match terminate::give_up_requests(client, &host.id).await {
                Ok(Some(status)) => error.text = format!("{}; the spot request: {status}", error.text),
                Ok(None) => {}
                // The audit finds what is left of it.
                Err(other) => {
                    tracing::warn!("the spot request of host {} could not be checked: {}", host.id, other.text)
                }
            }
        }
        if let Some(bid) = spec.spot.as_ref().and_then(|bid| bid.most.as_ref())
            && error.kind == Kind::Capacity
        {
            error.text = format!("{} (bid {bid} USD an hour)", error.text);
        }
        let zone = spec.zone.as_deref().unwrap_or(&spec.place.region);
        error.text = format!("{} ({} in {zone})", error.text, spec.kind);
        tracing::warn!("host {} of {}: {}", host.id, host.worker, error.text);
        Err(error.of_start(more))
    }

    /// Attaches an instance's address and volumes, in a separate task.
    fn attach_extras(&self, client: &Client, instance: &str, attachments: Attachments) {
        if attachments.is_empty() || !lock(&self.attaching).insert(instance.to_owned()) {
            return;
        }
        let (client, instance, attaching) = (client.clone(), instance.to_owned(), self.attaching.clone());
        tokio::spawn(async move {
            attach::put_on(&client, &instance, &attachments).await;
            lock(&attaching).remove(&instance);
        });
    }
}

fn started(instance: String) -> Started {
    let identity = Some(format!("ec2:{instance}"));
    Started { handle: instance, identity }
}

/// The call in a launch spec.
fn read(order: &LaunchSpec) -> Result<Spec, String> {
    serde_json::from_str(&order.spec)
        .map_err(|error| format!("the host's order in the ledger is not readable: {error}"))
}

impl ImageError {
    fn into_start(self) -> StartError {
        match self {
            Self::Call(error) => error.before_start(),
            Self::None(text) => StartError::Rejected(text),
        }
    }
}

#[async_trait]
impl Provider for Ec2 {
    async fn prepare(
        &self,
        host: &Host,
        number: u32,
        resting: &BTreeSet<String>,
        boot: BootData,
    ) -> Result<LaunchSpec, StartError> {
        let section = self.section(&host.worker);
        let section = section.ok_or_else(|| StartError::Rejected("the worker has no [worker.ec2] any more".into()))?;
        let all = order::alternatives(&section);
        let user_data = user_data::compose(&boot, section.user_data.as_deref(), order::USER_DATA_LIMIT)
            .map_err(|error| StartError::Rejected(error.to_string()))?;
        let client = self.places.client(&Login::of(&section)).await;
        let Chosen { number, name, alternative, more } =
            alternatives::choose(&all, number, resting, |one| one.name(&client.place.region))?;
        let image = image::resolve(&client, &section.image).await.map_err(ImageError::into_start)?;
        if let Some(why) = image.another_root(&section.block_devices) {
            return Err(StartError::Rejected(why));
        }
        let zone = alternative.zone.as_ref().map(|letter| format!("{}{letter}", client.place.region));
        let market = match alternative.spot {
            true => Some(
                spot::look(&client, &alternative.kind, zone.as_deref(), &image.platform)
                    .await
                    .map_err(CallError::before_start)?,
            ),
            false => None,
        };
        let ready = setup::ensure(&client, &section, &self.dir, true).await.map_err(CallError::before_start)?;
        let price = match market {
            // The price is that of the market, not the bid.
            Some(market) => market.newest.or(section.price_per_hour),
            None => section.price_per_hour,
        };
        let image_id = image.id.clone();
        let found = Found { image, market, groups: ready.groups, fresh: ready.fresh, user_data };
        let spot = alternative.spot;
        let spec = Spec::new(&section, &client.place, &self.owner, host, number, alternative, found);
        let text = serde_json::to_string(&spec)
            .map_err(|e| StartError::Rejected(format!("cannot serialize the order: {e}")))?;
        Ok(LaunchSpec {
            number,
            alternative: name,
            image: image_id,
            spec: text,
            more,
            fresh: false,
            identity: None,
            price,
            spot,
        })
    }

    async fn start(&self, host: &Host) -> Result<Started, StartError> {
        let order = host.launch.as_ref().ok_or_else(|| StartError::Rejected("the host was never prepared".into()))?;
        let spec = read(order).map_err(StartError::Rejected)?;
        let client = self.places.at(&spec.place).await.map_err(StartError::Place)?;
        self.places
            .remember(&client.place, &host.place)
            .map_err(|error| StartError::Transient(format!("cannot save where hosts are: {error}")))?;
        let mut tries = 0;
        let instance = loop {
            tries += 1;
            match spec.call(&client.ec2).send().await {
                Ok(answer) => {
                    let made = answer.instances().first().and_then(|i| i.instance_id()).map(str::to_owned);
                    break made.ok_or_else(|| StartError::Unknown("AWS's answer names no instance".into()))?;
                }
                Err(error) => {
                    let error = call_error("start the instance", &error);
                    if error.kind == Kind::NotYet && spec.fresh && tries < FRESH_TRIES {
                        tokio::time::sleep(FRESH_PAUSE).await;
                        continue;
                    }
                    return self.refused(&client, host, &spec, order.more, error).await.map(started);
                }
            }
        };
        lock(&self.unseen).remove(&host.id);
        self.watch.add(&instance, &host.id, &client);
        self.attach_extras(&client, &instance, Attachments { elastic_ip: spec.elastic_ip, volumes: spec.volumes });
        Ok(started(instance))
    }

    async fn terminate(&self, host: &Host) -> Result<Termination, String> {
        self.terminate_instances(host).await
    }

    async fn suspend(&self, host: &Host) -> Result<Suspension, String> {
        self.suspend_instance(host).await
    }

    async fn resume(&self, host: &Host, boot: BootData) -> Result<(), StartError> {
        self.resume_instance(host, &boot).await
    }

    async fn list(&self) -> Result<Listing, String> {
        Ok(self.list_places().await)
    }

    fn forget_place(&self, place: &str) {
        for place in self.places.give_up(place) {
            self.watch.forget(&place);
            lock(&self.seen).retain(|_, at| *at != place);
        }
    }

    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String> {
        self.terminate_by_handle(listed).await
    }

    async fn console(&self, host: &Host) -> Option<String> {
        self.state_and_output(host).await
    }

    fn attest(&self, worker: &WorkerName, hello: &Hello) -> Result<(), String> {
        let certificates = lock(&self.workers).get(worker).and_then(|worker| worker.certificates.clone());
        let Some(certificates) = certificates else { return Ok(()) };
        let certificates =
            certificates.as_ref().as_ref().map_err(|why| format!("no identity document can be verified: {why}"))?;
        let named = hello.identity.strip_prefix("ec2:").ok_or("it does not name an EC2 instance as its host")?;
        let signed = hello.proof.rsa2048.as_deref().ok_or("it has sent no signed identity document")?;
        let document = certificates.verify(signed, hello.proof.document.as_deref())?;
        if document.instance_id != named {
            return Err(format!("its identity document is that of another instance, {}", document.instance_id));
        }
        Ok(())
    }
}
