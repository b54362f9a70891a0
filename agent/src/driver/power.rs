//! Switching the machine off.

use crate::config::USUAL_POWER_OFF;
use crate::core::Level;
use crate::log;
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the parts of a power-off may take.
struct Pace {
    /// Pauses after tries that failed; the last one is repeated. What is busy at first may not be a little later.
    again: [Duration; 4],
    /// After a command that came back well without the machine being off: going down in good order takes its time.
    going_down: Duration,
    /// Longest run of the command; what hangs is killed and run again. It only asks for the end, which takes no time.
    longest: Duration,
}

/// The pace of a machine.
const USUAL_PACE: Pace = Pace {
    again: [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(30)],
    going_down: Duration::from_secs(120),
    longest: Duration::from_secs(60),
};
/// Tries of the usual command before rougher ones have their turn.
const PATIENT_TRIES: usize = 2;
/// What follows the usual command where that does not bring the machine down: without waiting for services, then without
/// asking systemd, then without systemd being there at all; all of these write to the disks first, and where a disk does
/// not answer any more they hang at that, so the last does not. A command of the configuration's own is never replaced.
const ROUGHER: [&[&str]; 4] = [
    &["systemctl", "poweroff", "--force"],
    &["systemctl", "poweroff", "--force", "--force"],
    &["poweroff", "-f"],
    &["poweroff", "-f", "-n"],
];
/// How long a command that was killed may take to be gone. One that waits for a disk in the kernel never is, and must not
/// keep the next from its turn.
const DEATH: Duration = Duration::from_secs(2);
/// Between looks whether the command has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command again and again until the machine is off. Comes back where there is no command, and at a SIGTERM:
/// that is how a service manager ends us on the way down, and it would keep the machine on for as long as it waits.
pub(super) async fn off(command: &[String], terminate: &mut mpsc::Receiver<()>) {
    off_at(&USUAL_PACE, command, terminate).await;
}

async fn off_at(pace: &Pace, command: &[String], terminate: &mut mpsc::Receiver<()>) {
    if command.is_empty() {
        return;
    }
    let until_off = async {
        for number in 0.. {
            let pause = match run(&try_of(command, number), pace.longest).await {
                Ok(()) => {
                    log::line(Level::Warn, "the machine is told to power off");
                    pace.going_down
                }
                Err(why) => {
                    log::line(Level::Error, &format!("failed to power off: {why}"));
                    pace.again[number.min(pace.again.len() - 1)]
                }
            };
            // The bill runs on until it works.
            tokio::time::sleep(pause).await;
        }
    };
    // In this order: the command is run at least once, whatever was asked before.
    tokio::select! {
        biased;
        () = until_off => {}
        _ = terminate.recv() => log::line(Level::Info, "asked to end while powering off"),
    }
}

/// The command of a try, from 0.
fn try_of(command: &[String], number: usize) -> Vec<String> {
    match number.checked_sub(PATIENT_TRIES) {
        Some(rough) if command == USUAL_POWER_OFF => {
            ROUGHER[rough % ROUGHER.len()].iter().map(|word| (*word).to_owned()).collect()
        }
        Some(_) | None => command.to_vec(),
    }
}

/// Runs the command; why it has not done its work, in words. It goes on where nobody waits for it any more.
async fn run(command: &[String], longest: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let spawned = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    let mut child = spawned.map_err(|error| format!("run {program:?}: {error}"))?;
    match tokio::time::timeout(longest, end_of(&mut child)).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{command:?} ended with {status}")),
        Ok(Err(error)) => Err(format!("wait for {program:?}: {error}")),
        Err(_) => {
            let killed = match child.kill() {
                Ok(()) => {
                    tokio::time::timeout(DEATH, end_of(&mut child)).await.map_or("does not even die", |_| "was killed")
                }
                Err(_) => "cannot be killed",
            };
            Err(format!("{command:?} has hung for {} s and {killed}", longest.as_secs()))
        }
    }
}

/// Looks until it has ended: it is waited for without holding up the loop, which may be asked to end meanwhile.
async fn end_of(child: &mut Child) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_usual_command_gives_way_to_rougher_ones() {
        let usual = words("systemctl poweroff");
        let tries: Vec<_> = (0..7).map(|n| try_of(&usual, n).join(" ")).collect();
        assert_eq!(tries[..2], ["systemctl poweroff", "systemctl poweroff"]);
        assert_eq!(tries[2], "systemctl poweroff --force");
        assert_eq!(tries[3], "systemctl poweroff --force --force");
        assert_eq!(tries[4..], ["poweroff -f", "poweroff -f -n", "systemctl poweroff --force"]);
        let own = words("/opt/off now");
        assert!((0..9).all(|n| try_of(&own, n) == own));
    }

    #[tokio::test]
    async fn what_fails_or_hangs_or_is_not_there_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let ran = dir.path().join("ran");
        // The third time it works; the second time it hangs.
        let script = format!(
            "echo x >> {0}; case $(wc -l < {0}) in 1) exit 1;; 2) exec sleep 1000;; 3) touch {0}.done;; esac",
            ran.display()
        );
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
        // In real time, since the commands are: long enough for what works on a busy machine.
        let pace = Pace { again: [LOOK; 4], going_down: Duration::from_secs(60), longest: Duration::from_secs(3) };
        let (_asked, mut terminate) = mpsc::channel(1);
        tokio::select! {
            () = off_at(&pace, &command, &mut terminate) => panic!("it gave up"),
            () = async { while !ran.with_extension("done").exists() { tokio::time::sleep(LOOK).await } } => {}
        }
        let error = run(&words("/nonexistent/off now"), pace.longest).await.expect_err("not there");
        assert!(error.starts_with("run \"/nonexistent/off\": "), "{error}");
    }

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
