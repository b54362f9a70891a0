//! Runs the master until a signal ends it.

use super::control::Control;
use super::error::MasterError;
use super::listeners::Inherited;
use super::master::{Failure, Master};
use crate::config::{self, Config};
use crate::core::journal::Caller;
use crate::web::{Reload, Reloaded};
use std::path::Path;
use tracing::{error, info, warn};

/// Why a master has ended in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// A signal has asked for it.
    AsAsked,
    /// Another master has the ledger, and this one must begin anew to stand by: see [`super::begin_anew`].
    Deposed,
}

/// Runs a master until a signal ends it, on the sockets that it has inherited or its own. SIGHUP reloads the
/// configuration, SIGTERM and Ctrl-C end the master.
///
/// # Errors
/// If it cannot start, or cannot continue.
pub async fn run(path: &Path, config: Config, inherited: Inherited) -> Result<Ended, MasterError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|e| MasterError::new("cannot listen for signals", &e));
    let mut hangup = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut running = config.clone();
    let anew = inherited.is_empty();
    let mut master = tokio::select! {
        started = Master::start(config, inherited) => started?,
        _ = terminate.recv() => return Ok(Ended::AsAsked),
        _ = interrupt.recv() => return Ok(Ended::AsAsked),
    };
    let mut reloads = master.reloads();
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // Every error is in the log.
                drop(reload(path, &mut running, &master.control, Caller::signal("SIGHUP")).await);
            }
            Some(Reload { by, reply }) = reloads.recv() => {
                // The client may have gone away. The configuration is in effect all the same.
                drop(reply.send(reload(path, &mut running, &master.control, by).await));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            failure = master.failed() => match failure {
                Failure { why, deposed: true } if anew => {
                    warn!("{why}: this master stands by now");
                    return Ok(Ended::Deposed);
                }
                // systemd, which has passed the sockets, starts it again.
                Failure { why, .. } => return Err(MasterError::from(format!("the master cannot continue: {why}"))),
            },
        }
    }
    info!("ending; hosts stay as they are");
    tokio::select! {
        () = master.stop() => {}
        // A second signal ends it at once.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(Ended::AsAsked)
}

/// Reads the configuration again. An error in it is logged and returned, and then nothing changes.
async fn reload(path: &Path, running: &mut Config, control: &Control, by: Caller) -> Result<Reloaded, String> {
    match config::load(path) {
        Err(errors) => {
            let text = format!("{} is not used; the old configuration stays in effect:\n{errors}", path.display());
            error!("{text}");
            Err(text)
        }
        Ok(new) => {
            for warning in &new.warnings {
                warn!("{warning}");
            }
            let needs_restart = config::changes_needing_restart(running, &new);
            for key in &needs_restart {
                warn!("{key} has changed and takes effect when the master is restarted");
            }
            let warnings = new.warnings.iter().map(ToString::to_string).collect();
            control.configure(new.clone(), by).await;
            *running = new;
            info!("{} is in effect", path.display());
            Ok(Reloaded { needs_restart, warnings })
        }
    }
}
