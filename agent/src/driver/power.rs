//! Switching the machine off.

use crate::core::Level;
use crate::log;
use std::process::Command;
use std::time::Duration;
use tokio::sync::mpsc;

/// After a command that failed, or that came back without the machine being off.
const AGAIN: Duration = Duration::from_secs(30);
/// Longest run of the command; what hangs is killed and run again.
const LONGEST: Duration = Duration::from_secs(300);
/// Between looks whether the command has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command again and again until the machine is off. Comes back where there is no command, and at a SIGTERM:
/// that is how a service manager ends us on the way down, and it would keep the machine on for as long as it waits.
pub(super) async fn off(command: &[String], terminate: &mut mpsc::Receiver<()>) {
    let Some((program, arguments)) = command.split_first() else { return };
    let until_off = async {
        loop {
            log::line(Level::Warn, &run(program, arguments).await);
            // The bill runs on until it works.
            tokio::time::sleep(AGAIN).await;
        }
    };
    // In this order: the command is run at least once, whatever was asked before.
    tokio::select! {
        biased;
        () = until_off => {}
        _ = terminate.recv() => log::line(Level::Info, "asked to end while powering off"),
    }
}

/// Runs the command and says what came of it. It goes on where nobody waits for it any more.
async fn run(program: &str, arguments: &[String]) -> String {
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => return format!("{program:?} did not power off the machine: {error}"),
    };
    let ended = async {
        loop {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(LOOK).await,
                Ok(Some(status)) if status.success() => return "the machine is told to power off".to_owned(),
                Ok(Some(status)) => return format!("{program:?} did not power off the machine: {status}"),
                Err(error) => return format!("{program:?} was not waited for: {error}"),
            }
        }
    };
    match tokio::time::timeout(LONGEST, ended).await {
        Ok(text) => text,
        Err(_) => match child.kill().and_then(|()| child.wait()) {
            Ok(_) => format!("{program:?} has hung for {} s and was killed", LONGEST.as_secs()),
            Err(error) => format!("{program:?} has hung for {} s and was not killed: {error}", LONGEST.as_secs()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sigterm_ends_a_power_off_whose_command_hangs_or_has_done_its_work() {
        let dir = tempfile::tempdir().expect("a directory");
        for (number, tail) in ["exec sleep 30", "true", "false"].into_iter().enumerate() {
            let ran = dir.path().join(number.to_string());
            let script = format!("echo x > {}; {tail}", ran.display());
            let command = ["/bin/sh".to_owned(), "-c".to_owned(), script];
            let (asked, mut terminate) = mpsc::channel(1);
            let asking = async {
                while std::fs::read_to_string(&ran).map_or(true, |text| text.is_empty()) {
                    tokio::time::sleep(LOOK / 10).await;
                }
                asked.send(()).await.expect("it listens");
                // Held open: a closed channel is not a SIGTERM.
                std::future::pending::<()>().await;
            };
            let both = async {
                tokio::select! {
                    () = off(&command, &mut terminate) => {}
                    () = asking => {}
                }
            };
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("it came back");
        }
    }
}
