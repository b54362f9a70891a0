//! Uploads the logs of ended builds to the blob store, if there is one, and removes them from the disk after that.
//!
//! For each build: the ledger records that something may be in the store, the logs are uploaded, the store confirms their
//! sizes, the ledger records that they are there, and only then the files are removed. Each step may be repeated. A store
//! that is away is tried with pauses, one build at a time, and nobody else waits for it: the logs are on the disk until
//! then, and are read from there.

use crate::blobs::{Blobs, UploadError, address};
use crate::clock;
use crate::core::blobs::Upload;
use crate::core::build::{Attempt, Build};
use crate::core::event::Event;
use crate::logs::Logs;
use crate::store::Database;
use crate::sync::lock;
use crate::web;
use rouse_shared::error::Chain;
use rouse_shared::{BuildId, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Builds whose logs are uploaded at the same time. Each has at most one part in memory.
const PARALLEL: usize = 4;
/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Pause if a build's last chunk is still being written, or if retention looks at its logs.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// Pause if nothing waits. Whatever is added interrupts it.
const IDLE: Duration = Duration::from_secs(3_600);

/// Passes builds to the uploads, and knows how they are.
#[derive(Clone)]
pub(super) struct Uploads(Arc<Inner>);

struct Inner {
    logs: Logs,
    blobs: Arc<Blobs>,
    ledger: Database,
    events: mpsc::Sender<Event>,
    state: Mutex<State>,
    wake: Notify,
}

/// Bytes of the logs of an ended build, as the ledger has them.
fn printed(build: &Build) -> u64 {
    let of_attempt = |attempt: &Attempt| {
        let there = |step: u32| attempt.cut_logs.iter().find(|(cut, _)| *cut == step).map(|(_, bytes)| *bytes);
        (0..).zip(&attempt.steps).map(|(number, step)| there(number).unwrap_or(step.log_length)).sum::<u64>()
    };
    build.status.attempts.iter().map(of_attempt).sum()
}

#[derive(Default)]
struct State {
    /// Ended builds whose logs are not in the store, or are not known to be there.
    waiting: BTreeMap<BuildId, Waiting>,
    /// The sum of their sizes.
    bytes: u64,
    /// Who waits until the ledger has a record of a build.
    recorded: HashMap<BuildId, oneshot::Sender<()>>,
    down: Option<Down>,
    uploaded: u64,
    failed: u64,
    /// Whether the ledger has to be searched for builds: after a start, and once another store is configured.
    search: bool,
}

/// A build whose logs wait.
#[derive(Clone, Default)]
struct Waiting {
    bytes: u64,
    /// Another store that may have something of them.
    former: Option<String>,
    failures: u32,
    not_before: Timestamp,
    running: bool,
}

/// The store is away.
#[derive(Clone)]
struct Down {
    since: Timestamp,
    why: String,
    failures: u32,
    next_try: Timestamp,
}

/// How the uploads are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Figures {
    /// Builds whose logs wait.
    pub waiting: u64,
    /// Bytes of these logs.
    pub bytes: u64,
    /// Builds whose logs were uploaded since this master was started.
    pub uploaded: u64,
    /// Tries that failed since then.
    pub failed: u64,
    /// Whether the last try has failed.
    pub down: bool,
}

/// Why a build's logs were not uploaded.
enum Failure {
    /// The store or the file.
    Upload(UploadError),
    /// Somebody else uses the files.
    Busy,
    /// The master is ending.
    Ending,
}

impl Uploads {
    /// Uploads as long as the runtime lives.
    pub(super) fn start(logs: Logs, blobs: Arc<Blobs>, ledger: Database, events: mpsc::Sender<Event>) -> Self {
        let state = State { search: true, ..State::default() };
        let inner = Inner { logs, blobs, ledger, events, state: Mutex::new(state), wake: Notify::new() };
        let uploads = Self(Arc::new(inner));
        tokio::spawn(uploads.clone().run());
        uploads
    }

    #[cfg(test)]
    pub(super) fn unused(logs: Logs, blobs: Arc<Blobs>) -> Self {
        let (ledger, events) = (Database::file(""), mpsc::channel(1).0);
        Self(Arc::new(Inner { logs, blobs, ledger, events, state: Mutex::default(), wake: Notify::new() }))
    }

    /// A build has ended, and the ledger knows.
    pub(super) fn add(&self, build: BuildId) {
        if self.0.blobs.current().is_some() {
            lock(&self.0.state).waiting.entry(build).or_default();
            self.0.wake.notify_one();
        }
    }

    /// The configuration may name another store.
    pub(super) fn configured(&self) {
        let mut state = lock(&self.0.state);
        // What runs goes on, and is recorded with the store that it goes to.
        let recorded = std::mem::take(&mut state.recorded);
        let (uploaded, failed) = (state.uploaded, state.failed);
        *state = State { recorded, uploaded, failed, search: true, ..State::default() };
        self.0.wake.notify_one();
    }

    /// The last record of a build's upload is in the ledger.
    pub(super) fn recorded(&self, build: BuildId) {
        if let Some(waits) = lock(&self.0.state).recorded.remove(&build) {
            // It may have ended since.
            waits.send(()).unwrap_or_default();
        }
    }

    /// How the uploads are; nothing if logs stay on the master's disk.
    pub(super) fn figures(&self) -> Option<Figures> {
        self.0.blobs.current()?;
        let state = lock(&self.0.state);
        Some(Figures {
            waiting: state.waiting.len() as u64,
            bytes: state.bytes,
            uploaded: state.uploaded,
            failed: state.failed,
            down: state.down.is_some(),
        })
    }

    /// Why the logs of an ended build are not in the store, if they wait for a store that is away.
    pub(super) fn trouble(&self, build: BuildId) -> Option<String> {
        let state = lock(&self.0.state);
        let own = state.waiting.get(&build)?;
        let down = state.down.as_ref()?;
        let trouble = down.explain(clock::now(), own.not_before.max(down.next_try));
        Some(format!("its logs are still on the master's disk: {trouble}"))
    }

    /// How the uploads are, for people.
    pub(super) fn view(&self) -> web::Uploads {
        let Some(store) = self.0.blobs.current() else { return web::Uploads::default() };
        let state = lock(&self.0.state);
        web::Uploads {
            store: Some(store.url),
            waiting: state.waiting.len() as u64,
            waiting_bytes: state.bytes,
            trouble: state.down.as_ref().map(|down| down.explain(clock::now(), down.next_try)),
        }
    }

    async fn run(self) {
        let mut running = JoinSet::new();
        loop {
            let current = self.0.blobs.current().map(|location| location.to_text());
            if current.is_some() && std::mem::take(&mut lock(&self.0.state).search) {
                let search = self.clone();
                tokio::task::spawn_blocking(move || search.search());
            }
            let (builds, pause) = match &current {
                Some(_) => self.next(clock::now(), PARALLEL - running.len()),
                None => (Vec::new(), IDLE),
            };
            for (build, former) in builds {
                let (uploads, store) = (self.clone(), Arc::from(current.as_deref().unwrap_or_default()));
                running.spawn(async move { uploads.one(build, store, former).await });
            }
            tokio::select! {
                Some(done) = running.join_next() => if matches!(done, Ok(false)) { return },
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Searches the ledger for ended builds whose logs are on the disk, and removes the files of the others: an earlier
    /// master may have been killed before it did so.
    fn search(&self) {
        if let Err(why) = self.search_ledger() {
            warn!("the ledger cannot be searched for logs to upload: {why}; they are uploaded after the next start");
        }
    }

    fn search_ledger(&self) -> Result<(), String> {
        let unreadable = |error: crate::store::StoreError| Chain(&error).to_string();
        let failed = |error: io::Error| error.to_string();
        let store = self.0.ledger.reader().map_err(unreadable)?;
        let logs = &self.0.logs;
        for thousand in logs.builds().map_err(failed)? {
            for build in thousand.map_err(failed)? {
                let Some(_claim) = logs.claim(build) else { continue };
                if store.logs_at(build).map_err(unreadable)?.is_some_and(|at| at.complete) {
                    logs.delete(build).map_err(failed)?;
                }
            }
        }
        let mut after = BuildId(0);
        loop {
            let page = store.not_uploaded(after).map_err(unreadable)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = *last;
            for (build, former) in page {
                let bytes = logs.size(build).map_err(failed)?;
                // Another master may have written the logs, on its own disk. It uploads them when it is active again.
                if self.0.ledger.is_shared()
                    && bytes < store.build(build).map_err(unreadable)?.map_or(0, |b| printed(&b))
                {
                    continue;
                }
                let mut state = lock(&self.0.state);
                let mut fresh = 0;
                state.waiting.entry(build).or_insert_with(|| {
                    fresh = bytes;
                    Waiting { bytes, former, ..Waiting::default() }
                });
                state.bytes += fresh;
            }
            self.0.wake.notify_one();
        }
    }

    /// The builds to upload now, at most so many, and how long to wait otherwise.
    fn next(&self, now: Timestamp, free: usize) -> (Vec<(BuildId, Option<String>)>, Duration) {
        let mut state = lock(&self.0.state);
        let mut free = free;
        if let Some(down) = &state.down {
            if now < down.next_try {
                return (Vec::new(), down.next_try.since(now));
            }
            // One build tries whether the store is back.
            free = free.min(usize::from(!state.waiting.values().any(|waiting| waiting.running)));
        }
        let mut pause = IDLE;
        let mut found = Vec::new();
        for (build, waiting) in state.waiting.iter_mut().filter(|(_, waiting)| !waiting.running) {
            if found.len() >= free {
                break;
            }
            if waiting.not_before > now {
                pause = pause.min(waiting.not_before.since(now));
                continue;
            }
            waiting.running = true;
            found.push((*build, waiting.former.clone()));
        }
        (found, pause)
    }

    /// Uploads the logs of one build. Returns false if the master is ending.
    async fn one(&self, build: BuildId, store: Arc<str>, former: Option<String>) -> bool {
        let result = self.upload(build, &store, former).await;
        let now = clock::now();
        let mut state = lock(&self.0.state);
        match result {
            Ok(files) => {
                let bytes = state.waiting.remove(&build).map_or(0, |waiting| waiting.bytes);
                state.bytes = state.bytes.saturating_sub(bytes);
                state.uploaded += u64::from(files > 0);
                // Without a file, nothing was asked of the store.
                if files > 0
                    && let Some(down) = state.down.take()
                {
                    let away = now.since(down.since).as_secs();
                    info!("{} takes logs again, after {away} s; {} builds wait", address(&store), state.waiting.len());
                }
            }
            Err(Failure::Busy) => {
                if let Some(waiting) = state.waiting.get_mut(&build) {
                    (waiting.running, waiting.not_before) = (false, now + SHORT_PAUSE);
                }
            }
            Err(Failure::Ending) => return false,
            Err(Failure::Upload(error)) => {
                state.failed += 1;
                let failures = state.waiting.get_mut(&build).map_or(1, |waiting| {
                    waiting.running = false;
                    waiting.failures += 1;
                    waiting.not_before = now + pause_after(waiting.failures);
                    waiting.failures
                });
                match error {
                    UploadError::File(_) if failures > 1 => {}
                    UploadError::File(_) => {
                        warn!("a log of build {build} cannot be uploaded: {}; retrying", Chain(&error));
                    }
                    UploadError::Store(why) => state.store_failed(now, why.to_string()),
                }
            }
        }
        true
    }

    async fn upload(&self, build: BuildId, store: &Arc<str>, former: Option<String>) -> Result<usize, Failure> {
        let Inner { logs, blobs, .. } = &*self.0;
        let (Some(_claim), false) = (logs.claim(build), logs.is_open(build)) else { return Err(Failure::Busy) };
        if let Some(former) = former.filter(|former| address(former) != address(store))
            && let Err(why) = blobs.delete(&former, build).await
        {
            warn!(
                "what was uploaded of the logs of build {build} may stay in a store that is not used any more: {why}"
            );
        }
        let files = self.files(build).await?;
        let bytes = files.iter().map(|file| file.length).sum();
        self.measured(build, bytes);
        if !files.is_empty() {
            self.record(build, store, Upload::Begun).await?;
        }
        for file in &files {
            let upload = blobs.upload(store, (file.attempt, file.step), &file.path, file.length);
            upload.await.map_err(Failure::Upload)?;
        }
        if self.files(build).await? != files {
            return Err(Failure::Busy);
        }
        self.record(build, store, Upload::Complete(bytes)).await?;
        let own = logs.clone();
        if let Err(error) = blocking(move || own.delete(build)).await {
            warn!("the logs of build {build} are uploaded, but stay on the disk until the next start: {error}");
        }
        Ok(files.len())
    }

    async fn files(&self, build: BuildId) -> Result<Vec<crate::logs::LogFile>, Failure> {
        let logs = self.0.logs.clone();
        blocking(move || logs.files(build)).await.map_err(|error| Failure::Upload(UploadError::File(error)))
    }

    /// A build that has ended while the master runs is measured when its turn comes.
    fn measured(&self, build: BuildId, bytes: u64) {
        let mut state = lock(&self.0.state);
        if let Some(waiting) = state.waiting.get_mut(&build) {
            let before = std::mem::replace(&mut waiting.bytes, bytes);
            state.bytes = state.bytes.saturating_sub(before) + bytes;
        }
    }

    /// Waits until the ledger has the record.
    async fn record(&self, build: BuildId, store: &Arc<str>, upload: Upload) -> Result<(), Failure> {
        let (waits, recorded) = oneshot::channel();
        lock(&self.0.state).recorded.insert(build, waits);
        let event = Event::Upload { build, store: store.clone(), upload };
        self.0.events.send(event).await.map_err(|_| Failure::Ending)?;
        recorded.await.map_err(|_| Failure::Ending)
    }
}

impl Down {
    fn explain(&self, now: Timestamp, next: Timestamp) -> String {
        let (since, next) = (now.since(self.since).as_secs(), next.since(now).as_secs());
        format!("for {since} s, {}; the next try is in {next} s", self.why)
    }
}

impl State {
    fn store_failed(&mut self, now: Timestamp, why: String) {
        if let Some(down) = &mut self.down
            && now < down.next_try
        {
            // Another upload that ran at the same time.
            down.why = why;
            return;
        }
        let before = self.down.take();
        if before.is_none() {
            warn!("{why}; logs stay on the master's disk, and their upload is retried");
        }
        let failures = before.as_ref().map_or(1, |down| down.failures + 1);
        let since = before.map_or(now, |down| down.since);
        self.down = Some(Down { since, why, failures, next_try: now + pause_after(failures) });
    }
}

/// The pause after so many failures in a row: doubled each time, and varied, so that what failed together is not retried
/// together.
fn pause_after(failures: u32) -> Duration {
    let mut random = [0_u8; 1];
    // Without random numbers, the pause is as good as another.
    getrandom::fill(&mut random).unwrap_or_default();
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.mul_f64(0.8 + 0.4 * f64::from(random[0]) / 255.0).min(LONGEST_PAUSE)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "uploads_tests.rs"]
mod tests;
