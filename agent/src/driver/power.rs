//! Powers the machine off.

use crate::config::USUAL_POWER_OFF;
use crate::core::Level;
use crate::diagnostics::log;
use rouse_shared::error::Chain;
use rustix::system::{RebootCommand, reboot};
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// How long the parts of a power-off may take.
struct Pace {
    /// Pauses after failed tries; the last one is repeated.
    again: [Duration; 4],
    /// Pause after a command that succeeded: an orderly shutdown takes its time.
    going_down: Duration,
    /// Longest run of the command, which only requests the shutdown; if it hangs it is killed.
    longest: Duration,
}

/// The pace of a real machine.
const USUAL_PACE: Pace = Pace {
    again: [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(30)],
    going_down: Duration::from_secs(120),
    longest: Duration::from_secs(60),
};
/// Tries of the usual command before rougher ones are tried.
const PATIENT_TRIES: usize = 2;
/// Commands to try in turn if the usual one does not power the machine off: without waiting for services, without
/// asking systemd, without systemd running at all. If a disk no longer answers, they cannot be loaded from it, or hang
/// when they write to it; so the last resort (`None`) is the kernel itself. A command from the configuration is never
/// replaced.
const ROUGHER: [Option<&[&str]>; 4] = [
    Some(&["systemctl", "poweroff", "--force"]),
    Some(&["systemctl", "poweroff", "--force", "--force"]),
    Some(&["poweroff", "-f"]),
    None,
];
/// How long to wait for the end of a command that was killed. One that waits for a disk in the kernel never ends, and
/// must not delay the next.
const DEATH: Duration = Duration::from_secs(2);
/// Time between checks whether the command has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Why a try to power the machine off has failed.
#[derive(Debug, Error)]
enum PowerOffError {
    #[error("{0:?} cannot be run")]
    Run(Vec<String>, #[source] io::Error),
    #[error("{0:?} has not started within {1} s")]
    NotStarted(Vec<String>, u64),
    #[error("{0:?} ended with {1}")]
    Ended(Vec<String>, ExitStatus),
    #[error("{0:?} cannot be waited for")]
    Wait(Vec<String>, #[source] io::Error),
    #[error("{0:?} has hung for {1} s and {2}")]
    Hung(Vec<String>, u64, &'static str),
    #[error("the kernel refuses to power the machine off")]
    Kernel(#[source] io::Error),
    #[error("the kernel has not powered the machine off within {0} s")]
    KernelHung(u64),
}

/// Runs the command again and again until the machine is off. Returns if there is no command, and on SIGTERM: a service
/// manager sends it during the shutdown, and would keep the machine on for as long as it waits for the agent.
pub(super) async fn off(command: &[String], terminate: &mut mpsc::Receiver<()>) {
    off_at(&USUAL_PACE, command, terminate).await;
}

async fn off_at(pace: &Pace, command: &[String], terminate: &mut mpsc::Receiver<()>) {
    if command.is_empty() {
        return;
    }
    // Before SIGTERM is handled, so that the command is started at least once. It is started on a thread, which would
    // end with this program.
    let mut begun = begin(command, 0, pace.longest).await;
    let until_off = async {
        for number in 0.. {
            let done = match begun {
                Ok(Some(child)) => end(child, pace.longest).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            let pause = match done {
                Ok(()) => {
                    log(Level::Warn, "the power-off is under way");
                    pace.going_down
                }
                Err(error) => {
                    log(Level::Error, &format!("cannot power off: {}", Chain(&error)));
                    pace.again[number.min(pace.again.len() - 1)]
                }
            };
            // The machine costs money until it is off.
            tokio::time::sleep(pause).await;
            begun = begin(command, number + 1, pace.longest).await;
        }
    };
    tokio::select! {
        () = until_off => {}
        _ = terminate.recv() => log(Level::Info, "SIGTERM while powering off: exiting"),
    }
}

/// The command of a try, counted from 0; `None` stands for the kernel itself.
fn try_of(command: &[String], number: usize) -> Option<Vec<String>> {
    match number.checked_sub(PATIENT_TRIES) {
        Some(rough) if command == USUAL_POWER_OFF => {
            ROUGHER[rough % ROUGHER.len()].map(|words| words.iter().map(|word| (*word).to_owned()).collect())
        }
        Some(_) | None => Some(command.to_vec()),
    }
}

/// Does the work on a thread of its own, which may hang forever if the kernel waits for a disk.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("power".to_owned()).spawn(move || done.send(work()).ok())?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
}

/// A running command.
struct Running {
    child: Child,
    command: Vec<String>,
}

/// Starts a try, counted from 0. Returns the command that now runs, or `None` if the kernel was asked.
async fn begin(command: &[String], number: usize, longest: Duration) -> Result<Option<Running>, PowerOffError> {
    let Some(command) = try_of(command, number) else { return ask_kernel(longest).await.map(|()| None) };
    let mut words = command.iter();
    let mut ready = Command::new(words.next().map_or("", String::as_str));
    ready.args(words).stdin(Stdio::null());
    // Its output may explain a failure, but a command hangs if nobody reads its output any more.
    if number >= PATIENT_TRIES {
        ready.stdout(Stdio::null()).stderr(Stdio::null());
    }
    match tokio::time::timeout(longest, on_thread(move || ready.spawn())).await {
        Ok(Ok(child)) => Ok(Some(Running { child, command })),
        Ok(Err(error)) => Err(PowerOffError::Run(command, error)),
        Err(_) => Err(PowerOffError::NotStarted(command, longest.as_secs())),
    }
}

/// Waits for the end of the command, and kills it if it takes longer than `longest`.
async fn end(Running { mut child, command }: Running, longest: Duration) -> Result<(), PowerOffError> {
    match tokio::time::timeout(longest, end_of(&mut child)).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(PowerOffError::Ended(command, status)),
        Ok(Err(error)) => Err(PowerOffError::Wait(command, error)),
        Err(_) => {
            let killed = match child.kill() {
                Ok(()) => {
                    tokio::time::timeout(DEATH, end_of(&mut child)).await.map_or("survives SIGKILL", |_| "was killed")
                }
                Err(_) => "cannot be killed",
            };
            Err(PowerOffError::Hung(command, longest.as_secs(), killed))
        }
    }
}

/// Has the kernel power the machine off, whatever has not been written to its disks yet.
async fn ask_kernel(longest: Duration) -> Result<(), PowerOffError> {
    let ask = || reboot(RebootCommand::PowerOff).map_err(io::Error::from);
    let asked = tokio::time::timeout(longest, on_thread(ask)).await;
    asked.map_err(|_| PowerOffError::KernelHung(longest.as_secs()))?.map_err(PowerOffError::Kernel)
}

/// Waits for the end of a command without blocking the loop, which SIGTERM may end meanwhile.
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
        assert!(Chain(&error).to_string().starts_with("[\"/nonexistent/off\", \"now\"] cannot be run: "), "{error}");
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
            let script = format!("echo $$ > {}; {tail}", ran.display());
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
        // The command that hangs goes on after the agent's end.
        let hung = std::fs::read_to_string(dir.path().join("0")).expect("it has run");
        let hung = rustix::process::Pid::from_raw(hung.trim().parse().expect("a number")).expect("a process");
        rustix::process::kill_process(hung, rustix::process::Signal::KILL).expect("it still runs");
    }
}
