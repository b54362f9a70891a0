//! The workers. Each `[[worker]]`, or each name of a template, becomes a plan for the core and a way to create its
//! hosts.

use super::document::{Member, Table, Value, substitute};
use super::general::{self, property_name};
use super::hosts::{self, DomainXml, HostConfig, domain_xml};
use super::keys;
use super::{AVAILABLE, BrokerConfig, LibvirtConfig, template};
use crate::core::plan::{Digest, LatentPlan, ProviderKind, WorkerPlan};
use rouse_shared::limits::{LEAST_MEMORY, MOST_PIDS};
use rouse_shared::message::Limits;
use rouse_shared::{WorkerName, duration};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(10);
const LEAST_DEFAULT_LEASE: Duration = Duration::from_secs(60);
/// A password with fewer characters is short enough to be guessed by trying: the broker takes hundreds of them a second.
const SHORT_PASSWORD: usize = 12;
const DEFAULT_GRACE: Duration = Duration::from_secs(600);
const DEFAULT_MISSING: Duration = Duration::from_secs(3600);
const DEFAULT_MISSING_LATENT: Duration = Duration::from_secs(1200);
const DEFAULT_BUILD_WAIT: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

/// Every provider, by the name of its section.
const PROVIDERS: [ProviderKind; 4] =
    [ProviderKind::Ec2, ProviderKind::Libvirt, ProviderKind::Openstack, ProviderKind::Process];

/// All workers of a file.
#[derive(Default)]
pub(super) struct Workers {
    pub(super) plans: BTreeMap<WorkerName, Arc<WorkerPlan>>,
    pub(super) hosts: BTreeMap<WorkerName, HostConfig>,
    /// The line of each name.
    given: BTreeMap<WorkerName, usize>,
    /// The worker that uses each disk image, by connection and path.
    disks: BTreeMap<(String, PathBuf), WorkerName>,
    /// Whose machine has what only one can have, by connection, kind and value.
    fixed: BTreeMap<(String, &'static str, String), WorkerName>,
    /// Whether the operator runs the broker.
    own_broker: bool,
}

/// Reads every `[[worker]]`.
pub(super) fn read(root: &Table<'_>, broker: &BrokerConfig) -> Workers {
    let mut workers = Workers { own_broker: broker.url.is_some(), ..Workers::default() };
    let sections = root.optional("worker", |v| v.items("a list of sections: write [[worker]], with two brackets"));
    let unreachable = general::unreachable(broker);
    for section in sections.unwrap_or_default() {
        let Some(mut table) = section.table("a section: write [[worker]]", &keys::WORKER) else { continue };
        // Sections of an array have the same path, so the line distinguishes them.
        table.path = "worker".to_owned();
        workers.section(&table, unreachable);
    }
    workers
}

impl Workers {
    /// One section, which has one worker or, as a template, many.
    fn section(&mut self, table: &Table<'_>, unreachable: Option<&str>) {
        let written = table.required("name", "name = \"…\"", |v| Some((v.clone(), v.text()?)));
        let names = written.as_ref().and_then(|(v, text)| template::expand(text).map_or_else(|e| v.error(e), Some));
        if let (Some((value, _)), Some(names)) = (&written, &names) {
            self.claim(value, names);
            if self.own_broker && names.iter().any(|name| name.as_str() == "guest") {
                value.warn(
                    "RabbitMQ has an administrator of this name unless you have deleted it, and asks the master only about \
                     other users: choose another name",
                );
            }
        }
        let template = written.map(|(_, text)| text).unwrap_or_default();
        let Some(names) = names else {
            // Also checks the rest.
            read_worker(table, None, &template, unreachable);
            return;
        };
        for name in &names {
            let before = table.notes.errors();
            let member = Member { name: name.as_str(), of: names.len() };
            if let Some((plan, host)) = read_worker(table, Some((name, member)), &template, unreachable) {
                if let Some(HostConfig::Libvirt(host)) = &host {
                    self.claim_disk(table, name, host);
                    self.claim_fixed(table, member, name, host);
                }
                self.plans.insert(name.clone(), Arc::new(plan));
                self.hosts.extend(host.map(|host| (name.clone(), host)));
            }
            // An error in one member is an error in the others, or shows once this one is corrected.
            if table.notes.errors() > before {
                break;
            }
        }
    }

    fn claim(&mut self, value: &Value<'_>, names: &[WorkerName]) {
        if let Some((name, at)) = names.iter().find_map(|n| self.given.get_key_value(n)) {
            let line = value.notes.line(*at);
            value.error::<()>(format!("a worker named {name} is given on line {line} already: names are unique"));
        }
        for name in names {
            self.given.entry(name.clone()).or_insert(value.at);
        }
    }

    /// Two machines that write to one disk destroy it.
    fn claim_disk(&mut self, table: &Table<'_>, name: &WorkerName, host: &LibvirtConfig) {
        let Some(path) = &host.hd_image else { return };
        let disk = (host.connection.clone(), path.clone());
        if let Some(other) = self.disks.insert(disk, name.clone()) {
            let message = format!(
                "{} would be the disk of {other} and of {name}: give each its own, such as one with {{name}} in it",
                path.display()
            );
            let at = table.map.get("libvirt").and_then(|v| v.get_ref().as_table()?.get("hd_image"));
            let at = at.map_or(table.at, |v| v.span().start);
            table.notes.error(at, "worker.libvirt.hd_image", message);
        }
    }

    /// Machines that share an address, a port or a file disturb each other, or the second does not start.
    fn claim_fixed(&mut self, table: &Table<'_>, member: Member<'_>, name: &WorkerName, host: &LibvirtConfig) {
        let DomainXml::Text(xml) = &host.xml else { return };
        let section = table.map.get("libvirt").and_then(|v| v.get_ref().as_table());
        let file = section.and_then(|s| s.get("xml")?.get_ref().as_table()?.get("file"));
        let at = file.map_or(table.at, |v| v.span().start);
        let file = substitute(file.and_then(|v| v.get_ref().as_str()).unwrap_or_default(), Some(member));
        let disk = host.hd_image.as_ref().map(|path| path.to_string_lossy());
        let mut claimed = Vec::new();
        for fixed in domain_xml::fixed(xml, disk.as_deref()) {
            let key = (host.connection.clone(), fixed.what, fixed.value.clone());
            match self.fixed.get(&key) {
                Some(other) => {
                    let message = format!(
                        "{file}:{}: {} {} would be that of {other} and of {name}: leave it out of what several workers use, \
                         so that libvirt chooses one for each",
                        fixed.line, fixed.what, fixed.value
                    );
                    table.notes.error(at, "worker.libvirt.xml", message);
                }
                None => claimed.push(key),
            }
        }
        self.fixed.extend(claimed.into_iter().map(|key| (key, name.clone())));
    }
}

/// One worker. None if something is missing without which there is no plan; that is already recorded.
fn read_worker(
    section: &Table<'_>,
    member: Option<(&WorkerName, Member<'_>)>,
    template: &str,
    unreachable: Option<&str>,
) -> Option<(WorkerPlan, Option<HostConfig>)> {
    let table = Table::member(section, member.map(|(_, m)| m));
    // Known, and read already.
    table.get("name");
    let host = provider(&table);
    let kind = host.as_ref().map(|(_, kind, _)| *kind);

    let password = table.required("password", "password = \"…\" or password = { file = \"…\" }", |v| {
        let password = v.secret()?;
        if password.expose().chars().count() < SHORT_PASSWORD {
            v.warn(format!(
                "has fewer than {SHORT_PASSWORD} characters, so whoever reaches the broker can guess it: make one with \
                 `openssl rand -hex 16`"
            ));
        }
        Some(password)
    });
    let keepalive =
        table.get("keepalive_interval").map_or(Some(Keepalive::Every(DEFAULT_KEEPALIVE)), |v| keepalive(&v));
    let lease = lease(&table, keepalive);
    let default_missing = if kind.is_some() { DEFAULT_MISSING_LATENT } else { DEFAULT_MISSING };
    let max_builds = table.optional("max_builds", |v| v.whole(1));
    let grace = table.or("grace", DEFAULT_GRACE, |v| v.duration(Duration::ZERO));
    let missing_timeout = table.or("missing_timeout", default_missing, |v| v.duration(SECOND));
    let notify_on_missing = table.or("notify_on_missing", Vec::new(), |v| v.one_or_list(|v| v.email()));
    let properties = table.or("properties", BTreeMap::new(), |v| v.texts(property_name));
    let run_as = table.optional("run_as", |v| {
        let user = v.word()?;
        if user.contains([' ', ':', '/']) { v.error("must be the name of a user") } else { Some(user) }
    });
    let limits = table.or("limits", Limits::default(), step_limits);
    if !table.map.contains_key("run_as") {
        let who = if kind == Some(ProviderKind::Process) {
            "builds run as the master's own user and can read its secrets; if the master is root, they wait until you write \
             run_as = \"…\" (\"root\" if they are to run as root)"
        } else {
            "builds run as the agent's own user; if that is root and its agent.toml has no run_as either, they wait until \
             you write run_as = \"…\" (\"root\" if they are to run as root)"
        };
        table.notes.warn(table.at, "worker.run_as", who);
    }
    let image = host.as_ref().and_then(|(host, _, _)| host.as_ref()).map(HostConfig::image).unwrap_or_default();
    let fingerprint = host.as_ref().map_or(0, |(_, _, fingerprint)| *fingerprint);
    let suspend = host.as_ref().and_then(|(host, _, _)| host.as_ref()).and_then(HostConfig::suspend);
    let price = host.as_ref().and_then(|(host, _, _)| host.as_ref()).and_then(HostConfig::price);
    let place: Arc<str> =
        host.as_ref().and_then(|(host, _, _)| host.as_ref()).map(HostConfig::place).unwrap_or_default().into();
    let latent = latent(&table, kind, template, fingerprint, &image);
    let latent = latent.map(|latent| LatentPlan { suspend, place, price, ..latent });
    if let Some(kind) = kind {
        warn_of_provider(&table, kind, unreachable);
    }
    table.finish();

    let (name, password, keepalive) = (member?.0, password?, keepalive?);
    let host = host.and_then(|(host, _, _)| host);
    if kind.is_some() && host.is_none() {
        return None;
    }
    let plan = WorkerPlan {
        name: name.clone(),
        template: template.to_owned(),
        password: Digest::of(password.expose()),
        max_builds,
        keepalive: keepalive.interval(),
        lease,
        grace,
        missing_timeout,
        notify_on_missing,
        properties,
        run_as,
        limits,
        latent,
    };
    Some((plan, host))
}

/// What each step may use.
fn step_limits(value: &Value<'_>) -> Option<Limits> {
    let table = value.table("limits, such as { memory = \"8G\", pids = 4096, cpus = 2 }", &keys::STEP_LIMITS)?;
    let memory = table.optional("memory", |v| v.size(LEAST_MEMORY));
    let pids = table.optional("pids", |v| match v.whole(1)?.into() {
        pids if pids > MOST_PIDS => v.error(format!("must be at most {MOST_PIDS}")),
        pids => Some(pids),
    });
    let cpu_millis = table.optional("cpus", |v| Limits::millis_of(v.number()?).or_else(|| v.error("must be above 0")));
    table.finish();
    Some(Limits { memory, pids, cpu_millis })
}

#[derive(Clone, Copy)]
enum Keepalive {
    Every(Duration),
    /// `"none"`: heartbeats only carry vitals.
    WithoutLease,
}

impl Keepalive {
    fn interval(self) -> Duration {
        match self {
            Self::Every(interval) => interval,
            Self::WithoutLease => DEFAULT_KEEPALIVE,
        }
    }
}

fn keepalive(value: &Value<'_>) -> Option<Keepalive> {
    if value.is_text() && value.text()? == "none" {
        return Some(Keepalive::WithoutLease);
    }
    let interval = value.duration(Duration::ZERO)?;
    if interval < SECOND {
        return value.error("must be at least 1s; to do without a lease write \"none\"");
    }
    Some(Keepalive::Every(interval))
}

fn lease(table: &Table<'_>, keepalive: Option<Keepalive>) -> Option<Duration> {
    let value = table.get("lease");
    match (keepalive, value) {
        (Some(Keepalive::Every(interval)), Some(value)) => {
            let lease = value.duration(SECOND)?;
            if lease < interval * 2 {
                let least = duration::exact(interval * 2);
                return value.error(format!(
                    "must be at least two keepalive intervals, {least}, because a single heartbeat can get lost"
                ));
            }
            Some(lease)
        }
        (Some(Keepalive::Every(interval)), None) => Some((interval * 6).max(LEAST_DEFAULT_LEASE)),
        (Some(Keepalive::WithoutLease), Some(value)) => {
            value.error("there is no lease if keepalive_interval = \"none\": leave one of them out")
        }
        (None, Some(value)) => value.duration(SECOND),
        (Some(Keepalive::WithoutLease) | None, None) => None,
    }
}

/// The keys of latent workers, which are refused for a standing one.
fn latent(
    table: &Table<'_>,
    kind: Option<ProviderKind>,
    template: &str,
    fingerprint: u64,
    image: &str,
) -> Option<LatentPlan> {
    let default_wait = if kind == Some(ProviderKind::Libvirt) { Duration::ZERO } else { DEFAULT_BUILD_WAIT };
    let build_wait_timeout = table.or("build_wait_timeout", Some(default_wait), |v| v.duration_or_never());
    let max_uses = table.or("max_uses", 0, |v| v.whole(0));
    let min_idle = table.or("min_idle", 0, |v| v.whole(0));
    let prefer = table.or("prefer", 0, |v| v.signed());
    let Some(provider) = kind else {
        for key in ["build_wait_timeout", "max_uses", "min_idle", "prefer"] {
            if let Some(value) = table.get(key) {
                value.error::<()>(
                    "only for latent workers: add a section such as [worker.ec2], or leave the key out, \
                     since somebody else starts this worker's machine",
                );
            }
        }
        return None;
    };
    let of = table.member.map_or(1, |m| m.of);
    if let Some(value) = table.get("min_idle").filter(|_| u64::from(min_idle) > of as u64) {
        value.warn(format!("more than the {of} workers of this section"));
    }
    let (template, image) = (template.to_owned(), image.into());
    Some(LatentPlan {
        provider,
        place: Arc::default(),
        build_wait_timeout,
        max_uses,
        prefer,
        price: None,
        template,
        min_idle,
        suspend: None,
        image,
        fingerprint,
    })
}

/// The one provider section: what it makes (nothing if it is faulty), whose it is, and its fingerprint.
fn provider(table: &Table<'_>) -> Option<(Option<HostConfig>, ProviderKind, u64)> {
    let mut sections: Vec<_> = PROVIDERS.iter().filter_map(|kind| Some((table.get(kind.as_str())?, *kind))).collect();
    sections.sort_by_key(|(value, _)| value.at);
    let mut chosen = None;
    for (value, kind) in sections {
        let name = kind.as_str();
        let Some(section) = value.table(&format!("a section: write [worker.{name}]"), hosts::keys_of(kind)) else {
            continue;
        };
        let (host, fingerprint) = hosts::read(kind, &section);
        match &chosen {
            None => chosen = Some((host, kind, fingerprint)),
            Some((_, other, _)) => {
                let other = other.as_str();
                value.error::<()>(format!("a worker has one provider, and this one has [worker.{other}] already"));
            }
        }
    }
    chosen
}

fn warn_of_provider(table: &Table<'_>, kind: ProviderKind, unreachable: Option<&str>) {
    let at = table.get(kind.as_str()).map_or(table.at, |v| v.at);
    let path = format!("worker.{}", kind.as_str());
    if !AVAILABLE.contains(&kind) {
        table.notes.warn(at, &path, "this build of rouse has no such provider, so its hosts cannot be started");
    }
    let elsewhere = match kind {
        ProviderKind::Process => false,
        ProviderKind::Ec2 | ProviderKind::Libvirt | ProviderKind::Openstack => true,
    };
    if let Some(why) = unreachable.filter(|_| elsewhere) {
        table.notes.warn(at, &path, format!("its host could not reach the broker: {why}"));
    }
}
