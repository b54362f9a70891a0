//! Writes the logs of builds on a separate thread, because a slow disk must not delay heartbeats.

use super::WAITING;
use super::disk_space::DiskSpace;
use super::error::MasterError;
use super::log_sync::LogSync;
use crate::broker::LogDelivery;
use crate::clock;
use crate::core::event::Event;
use crate::logs::{Logs, Written};
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, Timestamp, WorkerName};
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::error;

/// Pause between two tries to write a chunk.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// How often a chunk is tried while there is space. After that the others go on, and the agent is asked for it again.
const TRIES: u32 = 10;
/// The free space is checked again after this many bytes of logs and after this much time, because other programs use
/// the disk too.
const CHECK_BYTES: u64 = 1 << 20;
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread. It ends when the channel of chunks is closed or nobody receives its events.
pub(super) fn spawn(
    logs: Logs,
    sync: LogSync,
    space: DiskSpace,
    chunks: mpsc::Receiver<LogDelivery>,
    events: mpsc::Sender<Event>,
) -> Result<(), MasterError> {
    let writer =
        Writer { logs, sync, space, checked: None, unchecked: 0, reported: HashMap::new(), unwritable: HashSet::new() };
    let thread = std::thread::Builder::new().name("logs".to_owned()).spawn(move || writer.run(chunks, &events));
    thread.map(drop).map_err(|e| MasterError::new("cannot start a thread", &e))
}

struct Writer {
    logs: Logs,
    /// Syncs the logs of attempts that have all of them.
    sync: LogSync,
    space: DiskSpace,
    /// When there was last enough free space.
    checked: Option<Timestamp>,
    /// Bytes written since then.
    unchecked: u64,
    /// The last reported gap of each step. A gap is reported once, however many chunks follow it.
    reported: HashMap<(AttemptId, u32), u64>,
    /// Attempts whose logs cannot be written, for another reason than a lack of space.
    unwritable: HashSet<AttemptId>,
}

/// Why a chunk is not written.
enum Trouble {
    /// There is too little space: for this log and for all others.
    Space(String),
    /// Something else, perhaps with this log alone.
    Other(String),
}

impl Writer {
    fn run(mut self, mut chunks: mpsc::Receiver<LogDelivery>, events: &mpsc::Sender<Event>) {
        while let Some(LogDelivery { worker, chunk, receipt }) = chunks.blocking_recv() {
            let written = self.write_at_last(&worker, &chunk);
            receipt.ack();
            if let Some(event) = self.event(&chunk, written)
                && events.blocking_send(event).is_err()
            {
                return;
            }
            if self.reported.len() > WAITING {
                self.reported.clear();
            }
            if self.unwritable.len() > WAITING {
                self.unwritable.clear();
            }
        }
    }

    /// Writes a chunk, however long the disk has no space for it. If something else is in the way, of this log perhaps
    /// alone, the chunk is missing in the end.
    fn write_at_last(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Written {
        let attempt = chunk.attempt;
        let mut said = self.unwritable.contains(&attempt);
        let mut tries = if said { TRIES } else { 1 };
        loop {
            let (why, space) = match self.write(worker, chunk) {
                Ok(written) => {
                    self.unwritable.remove(&attempt);
                    return written;
                }
                Err(Trouble::Space(why)) => (why, true),
                Err(Trouble::Other(why)) => (why, false),
            };
            self.checked = None;
            if !std::mem::replace(&mut said, true) {
                error!("the log of attempt {attempt} cannot be written: {why}; retrying");
            }
            if !space && tries >= TRIES {
                self.unwritable.insert(attempt);
                return Written::Gap(self.logs.length(attempt, chunk.step));
            }
            tries += u32::from(!space);
            std::thread::sleep(DISK_PAUSE);
        }
    }

    fn write(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Result<Written, Trouble> {
        let now = clock::now();
        if self.unchecked >= CHECK_BYTES || self.checked.is_none_or(|at| now.since(at) >= CHECK_PAUSE) {
            self.space.for_logs().map_err(Trouble::Space)?;
            (self.checked, self.unchecked) = (Some(now), 0);
        }
        let written = self.logs.write(worker, chunk).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Space(error.to_string()),
            _ => Trouble::Other(error.to_string()),
        })?;
        self.unchecked = self.unchecked.saturating_add(chunk.bytes.len() as u64);
        Ok(written)
    }

    /// The event for the core that a chunk causes.
    fn event(&mut self, chunk: &LogChunk, written: Written) -> Option<Event> {
        let (attempt, step) = (chunk.attempt, chunk.step);
        match written {
            Written::Yes => {
                self.reported.remove(&(attempt, step));
                if self.logs.became_whole(attempt) {
                    self.sync.nudge();
                }
                None
            }
            Written::Gap(offset) => (self.reported.insert((attempt, step), offset) != Some(offset))
                .then_some(Event::LogGap { attempt, step, offset }),
            Written::Unexpected => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::logs::Source;
    use rouse_shared::{BuildId, SessionId};

    /// A file where the directory of one attempt should be stands for what may be wrong with a single log.
    #[test]
    fn a_log_that_cannot_be_written_does_not_keep_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path(), 1_000).unwrap();
        let id = |build| AttemptId { build: BuildId(build), number: 1 };
        let (worker, session) = ("w1".parse::<WorkerName>().unwrap(), SessionId("s".to_owned()));
        for build in [1, 2] {
            logs.open(id(build), Source { worker: worker.clone(), session: session.clone(), steps: 1 });
        }
        std::fs::create_dir_all(dir.path().join("0")).unwrap();
        std::fs::write(dir.path().join("0/1"), "").unwrap();
        let space = DiskSpace::new(dir.path());
        let mut writer = Writer {
            logs: logs.clone(),
            sync: LogSync::unused(),
            space,
            checked: None,
            unchecked: 0,
            reported: HashMap::new(),
            unwritable: HashSet::from([id(1)]),
        };
        let chunk = |build| {
            let (session, bytes) = (session.clone(), b"line\n".to_vec());
            LogChunk { session, attempt: id(build), step: 0, offset: 0, bytes }
        };
        assert_eq!(writer.write_at_last(&worker, &chunk(1)), Written::Gap(0));
        assert_eq!(writer.write_at_last(&worker, &chunk(2)), Written::Yes);
        std::fs::remove_file(dir.path().join("0/1")).unwrap();
        assert_eq!(writer.write_at_last(&worker, &chunk(1)), Written::Yes);
        assert!(writer.unwritable.is_empty());
    }
}
