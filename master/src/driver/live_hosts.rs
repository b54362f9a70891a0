//! `rouse store hosts`: the hosts that the ledger has, without a master.

use super::error::MasterError;
use super::master::{ledger_file, ledger_of};
use crate::config::Config;
use crate::core::record::{Host, HostState};
use std::io::{self, Write};

/// Prints the hosts of the ledger that are not terminated, one on each line: id, worker, provider, handle and state.
/// Returns whether there are none. Changes nothing, so a master may run meanwhile. Must not be called inside of a runtime.
///
/// # Errors
/// If the ledger cannot be read, or the lines cannot be written. A ledger that was never made has no hosts.
pub fn live_hosts(config: &Config, to: &mut dyn Write) -> Result<bool, MasterError> {
    if config.store.is_none() && !ledger_file(config).exists() {
        return Ok(true);
    }
    let failed = |e: &dyn std::error::Error| MasterError::new("cannot tell which hosts there are", e);
    let ledger = ledger_of(config).and_then(|database| database.reader()?.load()).map_err(|e| failed(&e))?;
    let live: Vec<_> = ledger.hosts.iter().filter(|host| host.state != HostState::Terminated).collect();
    print(&live, to).map_err(|e| failed(&e))?;
    Ok(live.is_empty())
}

fn print(hosts: &[&Host], to: &mut dyn Write) -> io::Result<()> {
    for host in hosts {
        let handle = host.handle.as_deref().unwrap_or("-");
        writeln!(to, "{}  {}  {}  {handle}  {}", host.id, host.worker, host.provider.as_str(), host.state.as_str())?;
    }
    to.flush()
}
