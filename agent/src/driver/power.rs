//! Switching the machine off.

use crate::config::USUAL_POWER_OFF;
use crate::core::Level;
use crate::diagnostics::log;
use rustix::system::{RebootCommand, reboot};
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

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
/// asking systemd, then without systemd being there at all. Where a disk does not answer any more, these cannot be read
/// from it, or hang at writing to it: the kernel itself is asked last. A command of the configuration's own is never
/// replaced.
const ROUGHER: [Option<&[&str]>; 4] = [
    Some(&["systemctl", "poweroff", "--force"]),
    Some(&["systemctl", "poweroff", "--force", "--force"]),
    Some(&["poweroff", "-f"]),
    None,
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
    // Before anything else is heard: the command is run at least once, whatever was asked before. It begins on a thread
    // that would go with this program.
    let mut begun = begin(command, 0, pace.longest).await;
    let until_off = async {
        for number in 0.. {
            let done = match begun {
                Ok(Some(child)) => end(child, pace.longest).await,
                Ok(None) => Ok(()),
                Err(why) => Err(why),
            };
            let pause = match done {
                Ok(()) => {
                    log(Level::Warn, "the machine is told to power off");
                    pace.going_down
                }
                Err(why) => {
                    log(Level::Error, &format!("failed to power off: {why}"));
                    pace.again[number.min(pace.again.len() - 1)]
                }
            };
            // The bill runs on until it works.
            tokio::time::sleep(pause).await;
            begun = begin(command, number + 1, pace.longest).await;
        }
    };
    tokio::select! {
        () = until_off => {}
        _ = terminate.recv() => log(Level::Info, "asked to end while powering off"),
    }
}

/// The command of a try, from 0; none: the kernel is asked.
fn try_of(command: &[String], number: usize) -> Option<Vec<String>> {
    match number.checked_sub(PATIENT_TRIES) {
        Some(rough) if command == USUAL_POWER_OFF => {
            ROUGHER[rough % ROUGHER.len()].map(|words| words.iter().map(|word| (*word).to_owned()).collect())
        }
        Some(_) | None => Some(command.to_vec()),
    }
}

/// Does it on a thread of its own: what waits for a disk in the kernel takes as long as it likes, and comes back to nobody.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("power".to_owned()).spawn(move || done.send(work()).ok())?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
}

/// A command that runs, and how it is called.
struct Running {
    child: Child,
    command: Vec<String>,
}

/// Begins a try, from 0: the command that then runs, or none where the kernel was asked; or why not, in words.
async fn begin(command: &[String], number: usize, longest: Duration) -> Result<Option<Running>, String> {
    let Some(command) = try_of(command, number) else { return ask_kernel(longest).await.map(|()| None) };
    let (program, arguments) = command.split_first().ok_or("there is no command")?;
    let mut ready = Command::new(program);
    ready.args(arguments).stdin(Stdio::null());
    // What it says may be why it fails; but it may hang at saying it, where nobody reads that any more.
    if number >= PATIENT_TRIES {
        ready.stdout(Stdio::null()).stderr(Stdio::null());
    }
    let spawned = tokio::time::timeout(longest, beside(move || ready.spawn())).await;
    let child = spawned
        .map_err(|_| format!("{command:?} has not begun within {} s", longest.as_secs()))?
        .map_err(|error| format!("run {program:?}: {error}"))?;
    Ok(Some(Running { child, command }))
}

/// Waits for its end; why it has not done its work, in words. It goes on where nobody waits for it any more.
async fn end(Running { mut child, command }: Running, longest: Duration) -> Result<(), String> {
    match tokio::time::timeout(longest, end_of(&mut child)).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{command:?} ended with {status}")),
        Ok(Err(error)) => Err(format!("wait for {command:?}: {error}")),
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

/// Has the kernel switch the machine off, without a look at what is not on its disks yet.
async fn ask_kernel(longest: Duration) -> Result<(), String> {
    let ask = || reboot(RebootCommand::PowerOff).map_err(io::Error::from);
    let asked = tokio::time::timeout(longest, beside(ask)).await;
    asked
        .map_err(|_| format!("the kernel has not switched the machine off within {} s", longest.as_secs()))?
        .map_err(|error| format!("have the kernel switch the machine off: {error}"))
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
    use std::os::unix::process::ExitStatusExt;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_usual_command_gives_way_to_rougher_ones() {
        let usual = words("systemctl poweroff");
        let tries: Vec<_> =
            (0..7).map(|n| try_of(&usual, n).map_or("the kernel".to_owned(), |words| words.join(" "))).collect();
        assert_eq!(tries[..2], ["systemctl poweroff", "systemctl poweroff"]);
        assert_eq!(tries[2], "systemctl poweroff --force");
        assert_eq!(tries[3], "systemctl poweroff --force --force");
        assert_eq!(tries[4..], ["poweroff -f", "the kernel", "systemctl poweroff --force"]);
        let own = words("/opt/off now");
        assert!((0..9).all(|n| try_of(&own, n).as_ref() == Some(&own)));
    }

    #[tokio::test]
    async fn what_fails_or_hangs_or_is_not_there_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let ran = dir.path().join("ran");
        // The third time it works; the second time it hangs.
        let script = format!(
            "readlink /proc/$$/fd/2 >> {0}; case $(wc -l < {0}) in 1) exit 1;; 2) exec sleep 1000;; 3) touch {0}.done;; esac",
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
        let errors = std::fs::read_to_string(&ran).expect("where its standard error went");
        let silent: Vec<bool> = errors.lines().map(|place| place == "/dev/null").collect();
        assert_eq!(silent, [false, false, true], "{errors}");
        let begun = begin(&words("/nonexistent/off now"), 0, pace.longest).await;
        let error = begun.err().expect("not there");
        assert!(error.starts_with("run \"/nonexistent/off\": "), "{error}");
    }

    const FIRST_OF_NAMESPACE: &str = "ROUSE_TEST_ASK_KERNEL";

    /// The kernel ends a namespace of processes in place of the machine: its first process by SIGINT (reboot(2)).
    #[test]
    fn the_kernel_is_asked() {
        if std::env::var_os(FIRST_OF_NAMESPACE).is_some() {
            assert_eq!(std::process::id(), 1, "else it would switch this machine off");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            return runtime.block_on(async { ask_kernel(USUAL_PACE.longest).await.expect("it may") });
        }
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "not root: CI must be");
            return eprintln!("not tested: only root may have a namespace of processes");
        }
        let mut own = Command::new("unshare");
        own.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().expect("this program"));
        own.args(["--exact", "driver::power::tests::the_kernel_is_asked"]).env(FIRST_OF_NAMESPACE, "1");
        let status = own.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("unshare runs");
        // unshare ends as its child did.
        assert!(status.signal() == Some(libc::SIGINT) || status.code() == Some(128 + libc::SIGINT), "{status}");
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
