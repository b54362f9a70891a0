//! `rouse check`: reports all errors of a configuration.

use super::{BrokerTls, Config, HostConfig, read_file};
use crate::core::plan::WorkerPlan;
use crate::tls::{self, TlsError};
use rouse_shared::error::Chain;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Checks a configuration's clouds. Returns sentences, and whether each is good news.
pub type Look<'a> = &'a dyn Fn(&Config) -> Vec<(bool, String)>;

/// Writes every error and every warning of the file at `path` to `out`, one per line, and a summary. With `online` it
/// also checks in the clouds whether hosts could be started. Changes nothing.
///
/// The exit code is 0 if there is no error, otherwise 2. It is also 2 if `out` cannot be written to.
pub fn check(path: &Path, online: Option<Look<'_>>, out: &mut impl Write) -> i32 {
    match write_findings(path, online, out) {
        Ok(true) => 0,
        Ok(false) | Err(_) => 2,
    }
}

fn write_findings(path: &Path, online: Option<Look<'_>>, out: &mut impl Write) -> io::Result<bool> {
    let reading = read_file(path);
    let mut errors: Vec<String> = reading.errors.iter().map(ToString::to_string).collect();
    let mut warnings: Vec<String> =
        reading.warnings.iter().map(|warning| format!("{}: warning: {}", warning.place(), warning.text())).collect();
    let mut seen = Vec::new();
    if let Some(config) = &reading.config {
        let missing = missing_agents(config);
        match online {
            Some(look) => {
                errors.extend(missing.into_iter().map(|text| format!("{}: {text}", path.display())));
                for (good, text) in look(config) {
                    let list = if good { &mut seen } else { &mut errors };
                    list.push(format!("{}: {text}", path.display()));
                }
            }
            // The user who checks may not be the one who runs the master.
            None => warnings.extend(missing.into_iter().map(|text| format!("{}: warning: {text}", path.display()))),
        }
        if !rustix::process::geteuid().is_root() {
            warnings.extend(other_users(config).map(|text| format!("{}: warning: {text}", path.display())));
        }
    }
    if let Some(config) = &reading.config {
        seen.extend(for_agents(config).map(|text| format!("{}: {text}", path.display())));
    }
    for error in &errors {
        writeln!(out, "{error}")?;
    }
    for line in &seen {
        writeln!(out, "{line}")?;
    }
    for warning in &warnings {
        writeln!(out, "{warning}")?;
    }
    let warnings = match warnings.len() {
        0 => String::new(),
        n => format!(", {}", count(n, "warning")),
    };
    match (&reading.config, errors.len()) {
        (Some(config), 0) => {
            let (workers, latent) = (config.plan.workers.len(), config.hosts.len());
            let workers = format!("{}, {latent} of them latent", count(workers, "worker"));
            writeln!(out, "{}: nothing is wrong: {workers}{warnings}", path.display())?;
        }
        (_, n) => writeln!(out, "{}: {}{warnings}", path.display(), count(n, "error"))?,
    }
    out.flush()?;
    Ok(errors.is_empty())
}

/// What to write into the agent.toml of standing agents on other machines, if the private broker speaks TLS.
fn for_agents(config: &Config) -> Option<String> {
    let broker = &config.broker;
    if broker.encrypted.is_empty() {
        return None;
    }
    let url = broker.agents_dial().ok()?;
    let told = |trust: &str| {
        format!("broker.tls: in agent.toml of standing workers on other machines: broker = \"{url}\"{trust}")
    };
    if let BrokerTls::Files(_) = &broker.tls {
        let ca = broker.ca.as_ref().map(|path| format!(", ca = the path of a copy of {}", path.display()));
        return Some(told(&ca.unwrap_or_default()));
    }
    let certificate = tls::authority_in(&config.master.authority());
    let fingerprint = match tls::fingerprints(&certificate) {
        Ok(found) => found.first().map(|fingerprint| format!(", fingerprint = \"{fingerprint}\""))?,
        Err(TlsError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            ", fingerprint = the one that this command prints once the master has been started".to_owned()
        }
        Err(why) => format!(", fingerprint = unknown ({})", Chain(&why)),
    };
    Some(told(&fingerprint))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The agent programs of process workers that do not exist, each once.
fn missing_agents(config: &Config) -> BTreeSet<String> {
    let agents = config.hosts.values().filter_map(|host| match host {
        HostConfig::Process(process) => Some(process.agent.as_path()),
        HostConfig::Ec2(_) | HostConfig::Libvirt(_) | HostConfig::Openstack(_) => None,
    });
    agents.filter_map(|agent| find_program(agent).err()).map(|why| format!("worker.process.agent: {why}")).collect()
}

/// What would fail if a master without privileges runs builds as other users.
fn other_users(config: &Config) -> impl Iterator<Item = String> {
    let of_process = |worker: &&Arc<WorkerPlan>| matches!(config.hosts.get(&worker.name), Some(HostConfig::Process(_)));
    let workers = config.plan.workers.values().filter(of_process);
    let users: BTreeSet<_> = workers.filter_map(|worker| worker.run_as.as_deref()).collect();
    let own = std::env::var("USER").unwrap_or_default();
    users.into_iter().filter(move |user| *user != own).map(|user| {
        format!("worker.run_as: builds of [worker.process] run as {user} only if the master is root; otherwise they are lost")
    })
}

/// The path of the agent program. A bare name is searched in `PATH`.
fn find_program(agent: &Path) -> Result<PathBuf, String> {
    let bare = agent.components().count() == 1 && !agent.is_absolute();
    let path = if bare { std::env::var_os("PATH").unwrap_or_default() } else { Default::default() };
    // A host's start also searches the directory of this program before `PATH`.
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let places: Vec<PathBuf> = if bare {
        own.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(agent)).collect()
    } else {
        vec![agent.to_owned()]
    };
    let is_program = |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    places.into_iter().find(is_program).ok_or_else(|| {
        let place = if bare { "found in PATH" } else { "there, or not a program" };
        format!("{} is not {place}: give the path of rouse-agent", agent.display())
    })
}
