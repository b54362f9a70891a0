//! Switching the machine off.

use crate::core::Level;
use crate::log;
use std::process::Command;
use std::time::Duration;

/// After a command that failed, or that came back without the machine being off.
const AGAIN: Duration = Duration::from_secs(30);

/// Runs the command until the machine is off; comes back only where there is no command, so that the agent ends.
pub(super) async fn off(command: &[String]) {
    let Some((program, arguments)) = command.split_first() else { return };
    loop {
        let mut command = Command::new(program);
        command.args(arguments);
        let program = program.clone();
        let text = match tokio::task::spawn_blocking(move || command.status()).await {
            Ok(Ok(status)) if status.success() => "the machine is told to power off".to_owned(),
            Ok(Ok(status)) => format!("{program:?} did not power off the machine: {status}"),
            Ok(Err(error)) => format!("{program:?} did not power off the machine: {error}"),
            Err(error) => format!("{program:?} was not run: {error}"),
        };
        log::line(Level::Warn, &text);
        // The bill runs on until it works.
        tokio::time::sleep(AGAIN).await;
    }
}
