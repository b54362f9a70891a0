//! TLS of the private broker and of the API: certificates, and whom agents are told to trust.

use super::error::MasterError;
use crate::broker::authority::is_outdated;
use crate::broker::{Authority, NodeTls};
use crate::config::{BrokerTls, Config};
use crate::http_server::Encryption;
use crate::{clock, mail, tls};
use rouse_shared::error::Chain;
use rouse_shared::{BrokerUrl, Timestamp};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info};

/// How long the name service may take to tell the machine's full name.
const NAME_SERVICE: Duration = Duration::from_secs(5);
/// How often the master checks whether its certificate is outdated. If the clock was wrong at the start, agents refuse the
/// certificate until then.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);
/// Pause after a renewal that has failed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(3_600);

/// TLS of the API, if `master.tls` is set.
pub fn of_page(config: &Config) -> Result<Option<Arc<Encryption>>, MasterError> {
    let Some(files) = &config.master.tls else { return Ok(None) };
    let settings = files.server_config().map_err(|e| MasterError::new("cannot use master.tls", &e))?;
    Ok(Some(Arc::new(Encryption::new(settings))))
}

/// TLS of the private broker, if it has any. Its certificate is renewed for as long as the master runs.
pub async fn of_broker(config: &Config) -> Result<Option<NodeTls>, MasterError> {
    let broker = &config.broker;
    if broker.encrypted.is_empty() {
        return Ok(None);
    }
    let listen = broker.encrypted.clone();
    if let BrokerTls::Files(files) = &broker.tls {
        return Ok(Some(NodeTls { listen, files: files.clone() }));
    }
    let unusable = |e| MasterError::new("cannot encrypt the private broker", &e);
    let authority = Authority::open(&config.master.authority()).map_err(unusable)?;
    let names = tokio::time::timeout(NAME_SERVICE, tokio::task::spawn_blocking(mail::full_name)).await;
    let hosts = hosts(config, names.ok().and_then(Result::ok).flatten());
    let now = clock::wall();
    authority.issue(&hosts, now).map_err(unusable)?;
    if let Some(fingerprint) = tls::fingerprints(&authority.certificate()).unwrap_or_default().first() {
        info!("the private broker speaks TLS; the fingerprint of its authority is {fingerprint}");
    }
    let files = authority.issued();
    tokio::spawn(renew(authority, hosts, now));
    Ok(Some(NodeTls { listen, files }))
}

/// Makes the certificate again whenever it is outdated. `made` is when it was made last.
async fn renew(authority: Authority, hosts: Vec<String>, mut made: Timestamp) {
    loop {
        tokio::time::sleep(RENEWAL_CHECK).await;
        let now = clock::wall();
        if !is_outdated(made, now) {
            continue;
        }
        match authority.issue(&hosts, now) {
            Ok(()) => {
                made = now;
                info!("the certificate of the private broker was renewed");
            }
            Err(why) => {
                error!("the certificate of the private broker was not renewed: {}; retrying", Chain(&why));
                tokio::time::sleep(RENEWAL_PAUSE).await;
            }
        }
    }
}

/// The names and addresses that agents may dial.
fn hosts(config: &Config, full_name: Option<String>) -> Vec<String> {
    let broker = &config.broker;
    let mut hosts: BTreeSet<String> = BTreeSet::from(["localhost".to_owned()]);
    hosts.extend(std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_lowercase()));
    hosts.extend(full_name.map(|name| name.to_lowercase()));
    for ip in broker.encrypted.iter().map(|address| address.ip()) {
        if ip.is_unspecified() {
            let local = if_addrs::get_if_addrs().unwrap_or_default();
            hosts.extend(local.iter().map(|interface| interface.ip().to_string()));
            hosts.extend(
                [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)].map(|ip| ip.to_string()),
            );
        }
        hosts.insert(ip.to_string());
    }
    let agent_url = broker.agent_url.as_ref().and_then(|url| BrokerUrl::parse(url).ok());
    hosts.extend(agent_url.into_iter().flat_map(|url| url.hosts).map(|(host, _)| host));
    hosts.into_iter().collect()
}

/// The certificates of the authorities that agents are told to trust, in PEM.
pub fn for_agents(config: &Config) -> Result<Option<String>, MasterError> {
    let read = |path: &Path, key: &str| {
        let text = std::fs::read_to_string(path);
        text.map_err(|e| MasterError::new(format!("cannot read {} ({key})", path.display()), &e))
    };
    let mut trusted = String::new();
    if let Some(path) = &config.broker.ca {
        trusted += &read(path, "broker.ca")?;
    }
    if !config.broker.encrypted.is_empty() && !matches!(config.broker.tls, BrokerTls::Files(_)) {
        if !trusted.is_empty() && !trusted.ends_with('\n') {
            trusted.push('\n');
        }
        trusted += &read(&tls::authority_in(&config.master.authority()), "the authority of the private broker")?;
    }
    Ok((!trusted.is_empty()).then_some(trusted))
}
