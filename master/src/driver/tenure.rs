//! What a master that shares its ledger owes to the others: it says who it is, and stops acting when its lease is over.

use super::error::MasterError;
use super::master::ledger_of;
use crate::broker::LinkHandle;
use crate::clock;
use crate::config::Config;
use crate::files;
use crate::store::{Claim, Database, StoreError};
use rouse_shared::Timestamp;
use rouse_shared::error::Chain;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::process::CommandExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// The file with the name of this installation.
const INSTANCE: &str = "instance";
/// How often the lease is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a master that has lost the broker keeps the lease if another one reaches it; longer after a start, because a
/// former master's connections may still be open.
const UNLINKED: Duration = Duration::from_secs(10);
const UNLINKED_AT_START: Duration = Duration::from_secs(60);
/// Pause between two questions for such a master.
const ASK: Duration = Duration::from_secs(2);
/// Another master counts if it was heard of so lately.
const LATELY: Duration = Duration::from_secs(10);

/// The ledger, with the claim of this master if others may share it: the ledger is in PostgreSQL, and the broker belongs
/// to the user. The state directory is locked.
pub(super) fn ledger(config: &Config) -> Result<(Database, Option<Claim>), MasterError> {
    let unusable = |e: StoreError| MasterError::new("cannot start", &e);
    let (Some(_), Some(_)) = (&config.store, &config.broker.url) else {
        return ledger_of(config).map(|database| (database, None)).map_err(unusable);
    };
    let path = config.master.state_dir.join(INSTANCE);
    let instance =
        files::kept_hex(&path).map_err(|e| MasterError::new(format!("cannot use {}", path.display()), &e))?;
    let claim = Claim {
        instance,
        address: address(config),
        broker: Arc::new(AtomicBool::new(false)),
        configuration: Arc::new(Mutex::new(fingerprints(config))),
    };
    shared(config, claim.clone()).map(|database| (database, Some(claim))).map_err(unusable)
}

#[cfg(feature = "postgres")]
fn shared(config: &Config, claim: Claim) -> Result<Database, StoreError> {
    match &config.store {
        Some(url) => Database::shared(url, &config.master.name, claim),
        None => ledger_of(config),
    }
}

#[cfg(not(feature = "postgres"))]
fn shared(config: &Config, _: Claim) -> Result<Database, StoreError> {
    ledger_of(config)
}

/// Where others reach the API.
fn address(config: &Config) -> String {
    let scheme = if config.master.tls.is_some() { "https" } else { "http" };
    let listen = config.master.listen;
    if listen.ip().is_unspecified() {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        return format!("{scheme}://{}:{}", host.trim(), listen.port());
    }
    format!("{scheme}://{listen}")
}

/// A fingerprint of each worker and of the limits, as JSON. It tells whether two configurations differ, and in what.
pub(super) fn fingerprints(config: &Config) -> String {
    let of = |what: &dyn Debug| hex::encode(&Sha256::digest(format!("{what:?}"))[..6]);
    let mut all: BTreeMap<String, String> = config
        .plan
        .workers
        .iter()
        .map(|(name, worker)| (format!("worker {name}"), of(&(worker, config.hosts.get(name)))))
        .collect();
    let limits = (config.plan.restart_lease, config.plan.max_log_size);
    all.insert("restart_lease or max_log_size".to_owned(), of(&limits));
    all.insert("token or remote_user".to_owned(), of(&config.access));
    serde_json::to_string(&all).unwrap_or_default()
}

/// The names of what differs between two such texts.
pub(super) fn differences(own: &str, other: &str) -> Vec<String> {
    let parse = |text| serde_json::from_str::<BTreeMap<String, String>>(text).unwrap_or_default();
    let (own, other) = (parse(own), parse(other));
    let names: std::collections::BTreeSet<_> = own.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| own.get(*name) != other.get(*name)).cloned().collect()
}

/// Returns when this master must not act any more, with the reason. Gives the lease up if this master has lost the broker
/// and another one reaches it.
pub(super) async fn over(database: Database, claim: Claim, link: watch::Receiver<Option<Arc<LinkHandle>>>) -> String {
    let mut linked = clock::since_boot();
    let mut patience = UNLINKED_AT_START;
    let mut asked = linked;
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(why) = database.over() {
            return why;
        }
        let now = clock::since_boot();
        let up = link.borrow().as_ref().is_some_and(|link| link.is_up());
        claim.broker.store(up, Ordering::Relaxed);
        if up {
            (linked, patience) = (now, UNLINKED);
        }
        if now.saturating_sub(linked) < patience || now.saturating_sub(asked) < ASK {
            continue;
        }
        asked = now;
        let (database, instance) = (database.clone(), claim.instance.clone());
        let gave_up = tokio::task::spawn_blocking(move || give_up_for_another(&database, &instance)).await;
        match gave_up {
            Ok(Ok(Some(other))) => return format!("it has lost the broker, which {other} reaches"),
            Ok(Err(error)) => warn!("cannot ask whether another master reaches the broker: {}", Chain(&error)),
            Ok(Ok(None)) | Err(_) => {}
        }
    }
}

fn give_up_for_another(database: &Database, instance: &str) -> Result<Option<String>, StoreError> {
    let fellows = database.fellows()?;
    let now = fellows.iter().map(|fellow| fellow.seen).max().unwrap_or(Timestamp(0));
    let fit = |fellow: &&crate::store::Fellow| {
        fellow.instance != instance && fellow.broker && now.since(fellow.seen) < LATELY
    };
    let Some(other) = fellows.iter().find(fit) else { return Ok(None) };
    database.give_up()?;
    Ok(Some(other.holder.clone()))
}

/// Starts this program anew, in the same process: a master that another one has replaced stands by then. All connections
/// end, and nothing that was begun goes on. Returns only if that fails.
pub fn begin_anew() -> MasterError {
    let mut command = std::process::Command::new("/proc/self/exe");
    let error = command.args(std::env::args_os().skip(1)).exec();
    MasterError::new("cannot start anew to stand by", &error)
}
