//! Build logs on disk. Each chunk is written at its offset and acknowledged after that.
//!
//! A repeated chunk changes nothing. A chunk that does not continue the log is dropped, and the missing bytes are
//! requested again. File names consist of the master's own numbers, never of text from an agent.
//!
//! A chunk is acknowledged while the operating system still holds it in memory: the agent keeps its spool until the
//! attempt is settled. Therefore the logs of an attempt are synced before that, once.

use crate::sync::lock;
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, BuildId, SessionId, WorkerName};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What happened to a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is written, now or before, or the log has reached its largest size and the chunk was dropped.
    Yes,
    /// Bytes before it are missing; the first missing byte.
    Gap(u64),
    /// It was dropped: no such attempt runs, it belongs to another worker or session, or there is no such step.
    Unexpected,
}

/// More files than this are synced with one call for the whole file system. It costs about as much as the files of a few
/// builds, but it also waits for what other programs have written.
const SINGLE_SYNCS: usize = 8;

/// Brings files to the disk. Tests record it, or let it fail.
pub trait Disk: Send + Sync {
    /// Brings the content of a file to the disk.
    ///
    /// # Errors
    /// If the disk has not taken it. What the file contains is unknown then.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Brings everything on the file system of this directory to the disk.
    ///
    /// # Errors
    /// If the disk has not taken everything.
    fn sync_all(&self, dir: &Path) -> io::Result<()>;
}

/// The disk of the machine.
struct OwnDisk;

impl Disk for OwnDisk {
    fn sync_file(&self, path: &Path) -> io::Result<()> {
        // The journals of the usual file systems take the entries of a new file's directories to the disk with it.
        File::open(path)?.sync_data()
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(dir)?)?)
    }
}

/// An attempt whose logs are complete, after the disk was asked to take them.
#[derive(Debug)]
pub struct Synced {
    /// The attempt.
    pub attempt: AttemptId,
    /// The first step whose log the disk did not take, and why. That log is empty again.
    pub failed: Option<(u32, io::Error)>,
}

/// All logs of a state directory.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    open: Mutex<HashMap<AttemptId, Arc<Attempt>>>,
    /// Attempts that have ended and are not settled.
    expected: Mutex<HashMap<AttemptId, Expected>>,
    /// Ended builds whose files somebody uploads or deletes.
    claimed: Mutex<HashSet<BuildId>>,
    unexpected: AtomicU64,
    /// The highest number of a build that has, or had, a directory.
    highest: AtomicU64,
    /// Largest log of a step, bytes.
    max_size: AtomicU64,
    disk: Box<dyn Disk>,
}

/// What is known of the logs of an attempt that has ended.
#[derive(Default)]
struct Expected {
    /// Their final lengths.
    lengths: Vec<u64>,
    /// Whether they have reached them, and wait to be synced.
    whole: bool,
}

/// Who may write the logs of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The worker that runs it.
    pub worker: WorkerName,
    /// The session that it belongs to, which only the worker's agent knows.
    pub session: SessionId,
    /// The number of its steps.
    pub steps: usize,
}

struct Attempt {
    source: Source,
    steps: Mutex<HashMap<u32, Arc<Step>>>,
    /// The file of the step that was written last. Steps run one after another, so one open file is enough, and an agent
    /// cannot use up the master's.
    file: Mutex<Option<(u32, File)>>,
}

/// A step's log. Its length can be read while the disk is slow to write.
struct Step {
    length: watch::Sender<u64>,
    /// Whether some of it may not be on the disk.
    unsynced: AtomicBool,
}

/// A step's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFile {
    /// The attempt.
    pub attempt: AttemptId,
    /// The step, from 0.
    pub step: u32,
    /// Its length in bytes.
    pub length: u64,
    /// Its file.
    pub path: PathBuf,
}

/// See [`Logs::claim`].
pub struct Claim {
    logs: Logs,
    build: BuildId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.logs.inner.claimed).remove(&self.build);
    }
}

impl Logs {
    /// Logs below `dir`, which is created if it does not exist. No log of a step becomes larger than `max_size` bytes.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new(dir: &Path, max_size: u64) -> io::Result<Self> {
        Self::with_disk(dir, max_size, Box::new(OwnDisk))
    }

    /// The same with another disk.
    ///
    /// # Errors
    /// As [`Logs::new`].
    pub fn with_disk(dir: &Path, max_size: u64, disk: Box<dyn Disk>) -> io::Result<Self> {
        // Only users of the API may read what builds print.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let inner = Inner {
            dir: dir.to_owned(),
            open: Mutex::default(),
            expected: Mutex::default(),
            claimed: Mutex::default(),
            unexpected: AtomicU64::new(0),
            highest: AtomicU64::new(highest_build(dir)?),
            max_size: AtomicU64::new(max_size),
            disk,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sets the largest log of a step, bytes. Longer ones stay as they are.
    pub fn set_max_size(&self, max_size: u64) {
        self.inner.max_size.store(max_size, Ordering::Relaxed);
    }

    /// The highest number of a build that has a log; 0 if none has.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn highest_build(&self) -> io::Result<u64> {
        highest_build(&self.inner.dir)
    }

    /// The numbers of all builds that have a directory of logs, from an iterator that reads a thousand at a time.
    ///
    /// # Errors
    /// If the directory cannot be read; the iterator fails if a directory below it cannot.
    pub fn builds(&self) -> io::Result<impl Iterator<Item = io::Result<Vec<BuildId>>>> {
        let thousands = numbers(&self.inner.dir)?;
        let dir = self.inner.dir.clone();
        Ok(thousands
            .into_iter()
            .map(move |thousand| Ok(numbers(&dir.join(thousand.to_string()))?.into_iter().map(BuildId).collect())))
    }

    /// The bytes of all logs of a build.
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn size(&self, build: BuildId) -> io::Result<u64> {
        let mut sum = 0;
        for attempt in entries(&self.build_dir(build))? {
            for log in entries(&attempt.path())? {
                sum += log.metadata().map(|found| found.len()).or_else(missing_is(0))?;
            }
        }
        Ok(sum)
    }

    /// Deletes all logs of a build that has ended. May be repeated. The directory of the newest build stays: see
    /// [`Logs::highest_build`].
    ///
    /// # Errors
    /// If a file or directory cannot be removed. The others may be gone.
    pub fn delete(&self, build: BuildId) -> io::Result<()> {
        let dir = self.build_dir(build);
        if build.0 < self.inner.highest.load(Ordering::Relaxed) {
            fs::remove_dir_all(&dir).or_else(missing_is(()))?;
            // Only if no other build of the thousand has logs.
            return match dir.parent().map(fs::remove_dir) {
                Some(Err(error)) if error.kind() != io::ErrorKind::DirectoryNotEmpty => missing_is(())(error),
                Some(_) | None => Ok(()),
            };
        }
        for attempt in entries(&dir)? {
            fs::remove_dir_all(attempt.path()).or_else(missing_is(()))?;
        }
        Ok(())
    }

    /// Keeps others from uploading or deleting the logs of an ended build, as long as the result lives; nothing if
    /// somebody does so already.
    pub fn claim(&self, build: BuildId) -> Option<Claim> {
        lock(&self.inner.claimed).insert(build).then(|| Claim { logs: self.clone(), build })
    }

    /// Whether chunks of any attempt of a build are still accepted.
    pub fn is_open(&self, build: BuildId) -> bool {
        lock(&self.inner.open).keys().any(|attempt| attempt.build == build)
    }

    /// The logs of a build that are not empty, with their lengths in bytes.
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn files(&self, build: BuildId) -> io::Result<Vec<LogFile>> {
        let mut found = Vec::new();
        for number in numbers(&self.build_dir(build))? {
            let Ok(number) = u32::try_from(number) else { continue };
            let attempt = AttemptId { build, number };
            for entry in entries(&self.dir(attempt))? {
                let name = entry.file_name();
                let step = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse().ok());
                let length = entry.metadata().map(|found| found.len()).or_else(missing_is(0))?;
                if let Some(step) = step.filter(|_| length > 0) {
                    found.push(LogFile { attempt, step, length, path: entry.path() });
                }
            }
        }
        found.sort_by_key(|file| (file.attempt, file.step));
        Ok(found)
    }

    /// The path of a step's log. The file does not exist as long as the log is empty.
    pub fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.dir(attempt).join(format!("{step}.log"))
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        self.build_dir(attempt.build).join(format!("{}", attempt.number))
    }

    fn build_dir(&self, BuildId(build): BuildId) -> PathBuf {
        // A thousand builds for each directory, which can be listed quickly.
        self.inner.dir.join(format!("{}", build / 1000)).join(format!("{build}"))
    }

    /// Accepts chunks of this attempt from this source from now on.
    pub fn open(&self, attempt: AttemptId, source: Source) {
        let fresh = || Arc::new(Attempt { source, steps: Mutex::default(), file: Mutex::default() });
        self.inner.highest.fetch_max(attempt.build.0, Ordering::Relaxed);
        lock(&self.inner.open).entry(attempt).or_insert_with(fresh);
    }

    /// Accepts no more chunks of this attempt.
    pub fn close(&self, attempt: AttemptId) {
        lock(&self.inner.open).remove(&attempt);
        lock(&self.inner.expected).remove(&attempt);
    }

    /// Sets the final lengths of an attempt's logs, one for each step. [`Logs::became_whole`] reports when they are
    /// reached.
    pub fn expect(&self, attempt: AttemptId, lengths: Vec<u64>) {
        lock(&self.inner.expected).entry(attempt).or_default().lengths = lengths;
    }

    /// Whether an attempt's logs have reached their final lengths. Returns true once; [`Logs::sync_whole`] does the rest.
    pub fn became_whole(&self, attempt: AttemptId) -> bool {
        let mut all = lock(&self.inner.expected);
        let Some(expected) = all.get_mut(&attempt).filter(|expected| !expected.whole) else { return false };
        expected.whole = self.missing(attempt, &expected.lengths).is_none();
        expected.whole
    }

    /// Brings the logs of all attempts that have become whole to the disk. Blocks as long as the disk takes.
    ///
    /// A log that the disk does not take is emptied, because nobody knows what is left of it, and the kernel reports such
    /// an error only once. The agent still has it.
    pub fn sync_whole(&self) -> Vec<Synced> {
        let whole = lock(&self.inner.expected).iter().filter(|(_, e)| e.whole).map(|(id, _)| *id).collect::<Vec<_>>();
        let mut batch = Vec::new();
        for id in whole {
            let Some(attempt) = lock(&self.inner.open).get(&id).cloned() else { continue };
            let steps = lock(&attempt.steps).iter().map(|(number, step)| (*number, step.clone())).collect::<Vec<_>>();
            let unsynced = steps.into_iter().filter(|(_, step)| step.unsynced.swap(false, Ordering::Relaxed));
            batch.push((id, attempt, unsynced.collect::<Vec<_>>()));
        }
        let files = batch.iter().map(|(_, _, steps)| steps.len()).sum::<usize>();
        let done = files > SINGLE_SYNCS && self.inner.disk.sync_all(&self.inner.dir).is_ok();
        let mut all = Vec::new();
        for (id, attempt, steps) in batch {
            let mut failed = None;
            for (number, step) in steps.into_iter().filter(|_| !done) {
                if let Err(error) = self.inner.disk.sync_file(&self.path(id, number)) {
                    self.empty(id, &attempt, number, &step);
                    failed.get_or_insert((number, error));
                }
            }
            match (&failed, lock(&self.inner.expected).entry(id)) {
                (None, Entry::Occupied(expected)) => drop(expected.remove()),
                (Some(_), Entry::Occupied(mut expected)) => expected.get_mut().whole = false,
                (_, Entry::Vacant(_)) => {}
            }
            all.push(Synced { attempt: id, failed });
        }
        all
    }

    fn empty(&self, id: AttemptId, attempt: &Attempt, number: u32, step: &Step) {
        let mut file = lock(&attempt.file);
        *file = None;
        // If even this fails, the bytes stay in the file, and the same bytes are written over them.
        drop(fs::remove_file(self.path(id, number)));
        step.length.send_replace(0);
    }

    /// Number of chunks that were dropped because they belong to no running attempt.
    pub fn unexpected(&self) -> u64 {
        self.inner.unexpected.load(Ordering::Relaxed)
    }

    /// The number of bytes of a step's log that are available. Changes as chunks are written, until the attempt is
    /// closed.
    pub fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64> {
        let known = lock(&self.inner.open).get(&attempt).cloned();
        match known {
            Some(known) => self.step(attempt, &known, step).length.subscribe(),
            None => watch::channel(self.length_on_disk(attempt, step)).1,
        }
    }

    /// The number of bytes of a step's log that are written.
    pub fn length(&self, attempt: AttemptId, step: u32) -> u64 {
        *self.watch(attempt, step).borrow()
    }

    fn length_on_disk(&self, attempt: AttemptId, step: u32) -> u64 {
        fs::metadata(self.path(attempt, step)).map_or(0, |m| m.len())
    }

    fn step(&self, id: AttemptId, attempt: &Attempt, number: u32) -> Arc<Step> {
        let fresh = || {
            // Chunks are only written if they join, so the log of an earlier master has no holes.
            let there = self.length_on_disk(id, number);
            // An earlier master may not have synced it.
            Arc::new(Step { length: watch::channel(there).0, unsynced: AtomicBool::new(there > 0) })
        };
        lock(&attempt.steps).entry(number).or_insert_with(fresh).clone()
    }

    /// Writes a chunk from this worker. Blocks as long as the disk takes.
    ///
    /// # Errors
    /// If the disk fails. Then the chunk must not be acknowledged.
    pub fn write(&self, worker: &WorkerName, chunk: &LogChunk) -> io::Result<Written> {
        let known = lock(&self.inner.open).get(&chunk.attempt).cloned();
        let unexpected = || {
            self.inner.unexpected.fetch_add(1, Ordering::Relaxed);
            Ok(Written::Unexpected)
        };
        let Some(known) = known else { return unexpected() };
        let source = &known.source;
        let one_of_its_steps = usize::try_from(chunk.step).is_ok_and(|step| step < source.steps);
        if source.worker != *worker || source.session != chunk.session || !one_of_its_steps {
            return unexpected();
        }
        let step = self.step(chunk.attempt, &known, chunk.step);
        // Locked until the length is updated: otherwise two writers would each report the other's bytes as missing.
        let mut file = lock(&known.file);
        let there = *step.length.borrow();
        let room = self.inner.max_size.load(Ordering::Relaxed).saturating_sub(there);
        if room == 0 {
            return Ok(Written::Yes);
        }
        if chunk.offset > there {
            return Ok(Written::Gap(there));
        }
        let known_bytes = usize::try_from(there - chunk.offset).unwrap_or(usize::MAX);
        if let Some(new) = chunk.bytes.get(known_bytes..).filter(|new| !new.is_empty()) {
            let new = &new[..new.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
            let file = match &mut *file {
                Some((number, file)) if *number == chunk.step => file,
                other => {
                    fs::create_dir_all(self.dir(chunk.attempt))?;
                    let path = self.path(chunk.attempt, chunk.step);
                    let opened = File::options().create(true).write(true).truncate(false).open(path)?;
                    &mut other.insert((chunk.step, opened)).1
                }
            };
            step.unsynced.store(true, Ordering::Relaxed);
            file.write_all_at(new, there)?;
            step.length.send_replace(there + new.len() as u64);
        }
        Ok(Written::Yes)
    }

    /// The first step whose log is shorter than its final length, and the first missing byte.
    pub fn missing(&self, attempt: AttemptId, lengths: &[u64]) -> Option<(u32, u64)> {
        lengths.iter().zip(0_u32..).find_map(|(length, step)| {
            // A step that printed nothing has no file to look for.
            let there = if *length == 0 { 0 } else { *self.watch(attempt, step).borrow() };
            let whole = (*length).min(self.inner.max_size.load(Ordering::Relaxed));
            (there < whole).then_some((step, there))
        })
    }
}

fn highest_build(dir: &Path) -> io::Result<u64> {
    let Some(thousand) = numbers(dir)?.into_iter().max() else { return Ok(0) };
    Ok(numbers(&dir.join(thousand.to_string()))?.into_iter().max().unwrap_or(thousand * 1000))
}

/// The numbers among the names in a directory; none if it does not exist.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    Ok(entries(dir)?.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// What is in a directory; nothing if it does not exist.
fn entries(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) => missing_is(Vec::new())(error),
    }
}

/// The result if a file or directory does not exist; another error stays one.
fn missing_is<T>(result: T) -> impl FnOnce(io::Error) -> io::Result<T> {
    move |error| if error.kind() == io::ErrorKind::NotFound { Ok(result) } else { Err(error) }
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
