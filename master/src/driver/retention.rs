//! Searches the ledger for what retention deletes, and deletes log files: on a separate thread, because both may take
//! long. The core decides what is deleted.

use super::error::MasterError;
use crate::blobs::{Blobs, StoreError};
use crate::core::event::Event;
use crate::core::retention::{BATCH, Expired, Scan};
use crate::logs::Logs;
use crate::store::Store;
use rouse_shared::BuildId;
use rouse_shared::error::Chain;
use std::io;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Work for the thread. The core waits for the answer to one before it requests another.
pub(super) enum Job {
    /// Answered by [`Event::Expired`].
    Find(Scan),
    /// Answered by [`Event::LogsDeleted`].
    Delete(Vec<BuildId>),
}

/// Passes work to the thread.
#[derive(Clone)]
pub(super) struct Sweeper(mpsc::Sender<Job>);

impl Sweeper {
    /// Starts the thread. It ends when nobody can give it work any more, or nobody receives its events.
    pub(super) fn spawn(
        store: Store,
        logs: Logs,
        blobs: Arc<Blobs>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, MasterError> {
        let (jobs, mut waiting) = mpsc::channel(1);
        let runtime = Handle::current();
        let body = move || {
            let mut swept = false;
            while let Some(job) = waiting.blocking_recv() {
                let event = match job {
                    Job::Find(scan) => {
                        if !std::mem::replace(&mut swept, true) {
                            sweep(&store, &logs);
                        }
                        Event::Expired(find(&store, &logs, scan))
                    }
                    Job::Delete(builds) => {
                        delete(&store, &logs, &|store, build| runtime.block_on(blobs.delete(store, build)), builds)
                    }
                };
                if events.blocking_send(event).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("retention".to_owned()).spawn(body);
        thread.map(|_| Self(jobs)).map_err(|e| MasterError::new("cannot start a thread", &e))
    }

    pub(super) fn request(&self, job: Job) {
        // There is room: the thread has taken the job before this one, because the core has its answer.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.0.try_send(job) {
            warn!("retention was given two jobs at once; please report this");
        }
    }

    #[cfg(test)]
    pub(super) fn unused() -> Self {
        Self(mpsc::channel(1).0)
    }
}

/// Once after the start: deletes the logs of builds for which the ledger says that they have none. After a power failure,
/// the file system may have files again whose removal it had not written.
fn sweep(store: &Store, logs: &Logs) {
    let mut count = 0_u64;
    let mut delete_all = || -> io::Result<()> {
        for thousand in logs.builds()? {
            for id in store.without_logs(thousand?).map_err(io::Error::other)? {
                if logs.size(id)? > 0 {
                    count += 1;
                }
                logs.delete(id)?;
            }
        }
        Ok(())
    };
    if let Err(error) = delete_all() {
        warn!("the logs of deleted builds cannot be looked for: {}", Chain(&error));
    }
    if count > 0 {
        info!("the logs of {count} builds that retention had deleted were still there, and are deleted now");
    }
}

fn find(store: &Store, logs: &Logs, scan: Scan) -> Result<Expired, String> {
    let read = |error: crate::store::StoreError| Chain(&error).to_string();
    let mut found = store.expired(scan).map_err(read)?;
    // What expires by its age need not be measured.
    if scan.sizes && found.logs.len() < BATCH {
        for (id, uploaded) in store.unmeasured(scan).map_err(read)? {
            // Its files may be removed while they are measured; after that, the ledger knows their size.
            let Some(_claim) = logs.claim(id) else { continue };
            if uploaded.is_none() && store.logs_at(id).map_err(read)?.is_none_or(|at| at.complete) {
                continue;
            }
            let on_disk =
                || logs.size(id).map_err(|error| format!("the logs of build {id} cannot be measured: {error}"));
            found.measured.push((id, uploaded.map_or_else(on_disk, Ok)?));
        }
    }
    Ok(found)
}

/// Deletes the files of all builds that let it, and what is in blob stores. If a store fails, no more is asked of it this
/// time; the files on the disk do not wait for it.
pub(super) fn delete(store: &Store, logs: &Logs, from_blobs: FromBlobs<'_>, mut builds: Vec<BuildId>) -> Event {
    let mut failed = None;
    let mut away = None;
    builds.retain(|id| {
        // Its logs are being uploaded. It is found again.
        let Some(_claim) = logs.claim(*id) else { return false };
        let deleted = logs.delete(*id).map_err(|error| error.to_string()).and_then(|()| {
            let at = store.logs_at(*id).map_err(|error| Chain(&error).to_string())?;
            let Some(location) = at.and_then(|at| at.store) else { return Ok(()) };
            if away.as_ref() == Some(&location) {
                return Err("its store has failed before".to_owned());
            }
            from_blobs(&location, *id).map_err(|error| {
                away = Some(location);
                error.to_string()
            })
        });
        let ok = deleted.is_ok();
        if let Err(error) = deleted {
            failed.get_or_insert_with(|| format!("build {id}: {error}"));
        }
        ok
    });
    Event::LogsDeleted { builds, failed }
}

/// Deletes the logs of a build from a blob store.
pub(super) type FromBlobs<'a> = &'a dyn Fn(&str, BuildId) -> Result<(), StoreError>;
