//! Brings the logs of ended attempts to the disk before the attempts are settled, on a separate thread: a sync may take
//! long, and must delay neither heartbeats nor the logs of other builds. What becomes whole during a sync waits for the
//! next one, so that many attempts share one when many of them end.

use super::error::MasterError;
use crate::core::event::Event;
use crate::logs::{Logs, Synced};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::error;

/// Pause after a failed sync. The agent sends the log again after that.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Wakes the thread.
#[derive(Clone)]
pub(super) struct LogSync(mpsc::Sender<()>);

/// Starts the thread. It ends when nobody can wake it any more, or nobody receives its events.
pub(super) fn spawn(logs: Logs, events: mpsc::Sender<Event>) -> Result<LogSync, MasterError> {
    let (nudge, nudges) = mpsc::channel(1);
    let thread = std::thread::Builder::new().name("log-sync".to_owned());
    thread.spawn(move || run(&logs, nudges, &events)).map_err(|e| MasterError::new("cannot start a thread", &e))?;
    Ok(LogSync(nudge))
}

impl LogSync {
    /// Informs the thread that the logs of an attempt have become whole.
    pub(super) fn nudge(&self) {
        // If one waits already, the thread has yet to look.
        self.0.try_send(()).unwrap_or_default();
    }

    #[cfg(test)]
    pub(super) fn unused() -> Self {
        Self(mpsc::channel(1).0)
    }
}

fn run(logs: &Logs, mut nudges: mpsc::Receiver<()>, events: &mpsc::Sender<Event>) {
    while nudges.blocking_recv().is_some() {
        for Synced { attempt, failed } in logs.sync_whole() {
            let event = match failed {
                None => Event::LogsWhole { attempt },
                Some((step, error)) => {
                    error!("the disk has not taken a log of attempt {attempt}: {error}; the agent sends it again");
                    std::thread::sleep(DISK_PAUSE);
                    Event::LogGap { attempt, step, offset: 0 }
                }
            };
            if events.blocking_send(event).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::logs::{Disk, Source};
    use rouse_shared::message::LogChunk;
    use rouse_shared::{AttemptId, BuildId, SessionId};
    use std::io;
    use std::path::Path;
    use std::sync::mpsc as blocking;

    /// A disk that takes a file only when the test permits it.
    struct Slow(std::sync::Mutex<blocking::Receiver<bool>>);

    impl Disk for Slow {
        fn sync_file(&self, _: &Path) -> io::Result<()> {
            let taken = self.0.lock().unwrap().recv().unwrap();
            if taken { Ok(()) } else { Err(io::Error::other("the disk is broken")) }
        }

        fn sync_all(&self, _: &Path) -> io::Result<()> {
            unreachable!("there is one file")
        }
    }

    #[test]
    fn logs_are_whole_for_the_core_only_when_the_disk_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let (permit, permits) = blocking::sync_channel(2);
        let logs = Logs::with_disk(dir.path(), 1_000, Box::new(Slow(permits.into()))).unwrap();
        let (events, mut heard) = mpsc::channel(4);
        let sync = spawn(logs.clone(), events).unwrap();
        let attempt = AttemptId { build: BuildId(1), number: 1 };
        let (worker, session) = ("w1".parse().unwrap(), SessionId("s".to_owned()));
        logs.open(attempt, Source { worker, session: session.clone(), steps: 1 });
        logs.expect(attempt, vec![5]);
        let chunk = LogChunk { session, attempt, step: 0, offset: 0, bytes: b"hello".to_vec() };
        for (taken, expected) in
            [(false, Event::LogGap { attempt, step: 0, offset: 0 }), (true, Event::LogsWhole { attempt })]
        {
            logs.write(&"w1".parse().unwrap(), &chunk).unwrap();
            assert!(logs.became_whole(attempt));
            sync.nudge();
            sync.nudge();
            assert!(heard.try_recv().is_err(), "the disk has nothing yet");
            permit.send(taken).unwrap();
            assert_eq!(heard.blocking_recv(), Some(expected));
        }
    }
}
