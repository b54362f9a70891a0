//! Writes the logs of builds on a separate thread, because a slow disk must not delay heartbeats.

use super::WAITING;
use super::disk_space::DiskSpace;
use super::error::MasterError;
use crate::broker::LogDelivery;
use crate::clock;
use crate::core::event::Event;
use crate::logs::{Logs, Written};
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, Timestamp, WorkerName};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::error;

/// Pause between two tries to write a chunk.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// The free space is checked again after this many bytes of logs and after this much time, because other programs use
/// the disk too.
const CHECK_BYTES: u64 = 1 << 20;
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread. It ends when the channel of chunks is closed or nobody receives its events.
pub(super) fn spawn(
    logs: Logs,
    space: DiskSpace,
    chunks: mpsc::Receiver<LogDelivery>,
    events: mpsc::Sender<Event>,
) -> Result<(), MasterError> {
    let writer = Writer { logs, space, checked: None, unchecked: 0, reported: HashMap::new() };
    let thread = std::thread::Builder::new().name("logs".to_owned()).spawn(move || writer.run(chunks, &events));
    thread.map(drop).map_err(|e| MasterError::new("cannot start a thread", &e))
}

struct Writer {
    logs: Logs,
    space: DiskSpace,
    /// When there was last enough free space.
    checked: Option<Timestamp>,
    /// Bytes written since then.
    unchecked: u64,
    /// The last reported gap of each step. A gap is reported once, however many chunks follow it.
    reported: HashMap<(AttemptId, u32), u64>,
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
        }
    }

    /// Writes a chunk, however long the disk takes.
    fn write_at_last(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Written {
        let mut blocked = false;
        loop {
            match self.write(worker, chunk) {
                Ok(written) => return written,
                Err(why) => {
                    self.checked = None;
                    if !std::mem::replace(&mut blocked, true) {
                        error!("the log of attempt {} cannot be written: {why}; retrying", chunk.attempt);
                    }
                    std::thread::sleep(DISK_PAUSE);
                }
            }
        }
    }

    fn write(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Result<Written, String> {
        let now = clock::now();
        if self.unchecked >= CHECK_BYTES || self.checked.is_none_or(|at| now.since(at) >= CHECK_PAUSE) {
            self.space.for_logs()?;
            (self.checked, self.unchecked) = (Some(now), 0);
        }
        let written = self.logs.write(worker, chunk).map_err(|error| error.to_string())?;
        self.unchecked = self.unchecked.saturating_add(chunk.bytes.len() as u64);
        Ok(written)
    }

    /// The event for the core that a chunk causes.
    fn event(&mut self, chunk: &LogChunk, written: Written) -> Option<Event> {
        let (attempt, step) = (chunk.attempt, chunk.step);
        match written {
            Written::Yes => {
                self.reported.remove(&(attempt, step));
                self.logs.became_whole(attempt).then_some(Event::LogsWhole { attempt })
            }
            Written::Gap(offset) => (self.reported.insert((attempt, step), offset) != Some(offset))
                .then_some(Event::LogGap { attempt, step, offset }),
            Written::Unexpected => None,
        }
    }
}
