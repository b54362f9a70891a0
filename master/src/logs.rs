//! Build logs on disk: each chunk is written at its offset and acknowledged after the write.
//!
//! A chunk that comes twice changes nothing; one that does not join on to what is there is dropped and the missing
//! bytes are asked for again. File names are made of numbers of ours alone, never of what a peer sent.

use crate::sync::lock;
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, WorkerName};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What became of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is there now, or was before.
    Yes,
    /// Bytes before it are missing; the first of them.
    Gap(u64),
    /// No such attempt runs, or it is another worker's, or there is no such step: dropped.
    Unexpected,
}

/// All logs of a state directory.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    open: Mutex<HashMap<AttemptId, Arc<Attempt>>>,
    /// The lengths that logs should have, of attempts that have ended.
    expected: Mutex<HashMap<AttemptId, Vec<u64>>>,
    unexpected: AtomicU64,
}

struct Attempt {
    worker: WorkerName,
    steps: Mutex<HashMap<u32, Arc<Step>>>,
}

/// Its length can be asked for while the disk is slow to take what is written.
struct Step {
    /// Open once there is something to write.
    file: Mutex<Option<File>>,
    length: watch::Sender<u64>,
}

impl Logs {
    /// Logs below `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new(dir: &Path) -> io::Result<Self> {
        // What builds print is for those who may use the API.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let inner = Inner {
            dir: dir.to_owned(),
            open: Mutex::default(),
            expected: Mutex::default(),
            unexpected: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The highest number of a build that has a log here; 0 where none has.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn highest_build(&self) -> io::Result<u64> {
        let Some(thousand) = highest_name(&self.inner.dir)? else { return Ok(0) };
        Ok(highest_name(&self.inner.dir.join(thousand.to_string()))?.unwrap_or(thousand * 1000))
    }

    /// Where a step's log is; there is no file while it has no bytes.
    pub fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.dir(attempt).join(format!("{step}.log"))
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        // A thousand builds a folder: listing one stays quick.
        let build = attempt.build.0;
        self.inner.dir.join(format!("{}", build / 1000)).join(format!("{build}")).join(format!("{}", attempt.number))
    }

    /// Takes chunks of this attempt from this worker from now on.
    pub fn open(&self, attempt: AttemptId, worker: WorkerName) {
        let fresh = || Arc::new(Attempt { worker, steps: Mutex::default() });
        lock(&self.inner.open).entry(attempt).or_insert_with(fresh);
    }

    /// Takes no more chunks of this attempt.
    pub fn close(&self, attempt: AttemptId) {
        lock(&self.inner.open).remove(&attempt);
        lock(&self.inner.expected).remove(&attempt);
    }

    /// The attempt has ended and its logs should have these lengths, a step each: [`Logs::became_whole`] tells when.
    pub fn expect(&self, attempt: AttemptId, lengths: Vec<u64>) {
        lock(&self.inner.expected).insert(attempt, lengths);
    }

    /// Whether an attempt's logs have the lengths that are expected of them; true once.
    pub fn became_whole(&self, attempt: AttemptId) -> bool {
        let mut expected = lock(&self.inner.expected);
        let whole = expected.get(&attempt).is_some_and(|lengths| self.missing(attempt, lengths).is_none());
        whole && expected.remove(&attempt).is_some()
    }

    /// Chunks that were dropped since they belong to nothing that runs.
    pub fn unexpected(&self) -> u64 {
        self.inner.unexpected.load(Ordering::Relaxed)
    }

    /// How many bytes of a step's log are there; changes as chunks are written. Once the attempt is closed it stays.
    pub fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64> {
        let known = lock(&self.inner.open).get(&attempt).cloned();
        match known {
            Some(known) => self.step(attempt, &known, step).length.subscribe(),
            None => watch::channel(self.length_on_disk(attempt, step)).1,
        }
    }

    fn length_on_disk(&self, attempt: AttemptId, step: u32) -> u64 {
        fs::metadata(self.path(attempt, step)).map_or(0, |m| m.len())
    }

    fn step(&self, id: AttemptId, attempt: &Attempt, number: u32) -> Arc<Step> {
        let fresh = || {
            // Chunks join on to each other, so what a master before this one wrote has no holes.
            let (length, _) = watch::channel(self.length_on_disk(id, number));
            Arc::new(Step { file: Mutex::default(), length })
        };
        lock(&attempt.steps).entry(number).or_insert_with(fresh).clone()
    }

    /// Writes one chunk that this worker sent. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Where the disk does not take it: the chunk must not be acknowledged.
    pub fn write(&self, worker: &WorkerName, chunk: &LogChunk) -> io::Result<Written> {
        let known = lock(&self.inner.open).get(&chunk.attempt).cloned();
        let unexpected = || {
            self.inner.unexpected.fetch_add(1, Ordering::Relaxed);
            Ok(Written::Unexpected)
        };
        let Some(known) = known else { return unexpected() };
        let most_steps = u32::try_from(rouse_shared::limits::MAX_STEPS).unwrap_or(u32::MAX);
        if known.worker != *worker || chunk.step >= most_steps {
            return unexpected();
        }
        let step = self.step(chunk.attempt, &known, chunk.step);
        // Held until the length says what was written: two writers at once would each think the other's bytes missing.
        let mut file = lock(&step.file);
        let there = *step.length.borrow();
        if chunk.offset > there {
            return Ok(Written::Gap(there));
        }
        let known_bytes = usize::try_from(there - chunk.offset).unwrap_or(usize::MAX);
        if let Some(new) = chunk.bytes.get(known_bytes..).filter(|new| !new.is_empty()) {
            let file = match &mut *file {
                Some(file) => file,
                closed => {
                    fs::create_dir_all(self.dir(chunk.attempt))?;
                    let path = self.path(chunk.attempt, chunk.step);
                    closed.insert(File::options().create(true).write(true).truncate(false).open(path)?)
                }
            };
            file.write_all_at(new, there)?;
            step.length.send_replace(there + new.len() as u64);
        }
        Ok(Written::Yes)
    }

    /// The first step whose log lacks bytes up to these lengths, and the first byte that it lacks.
    pub fn missing(&self, attempt: AttemptId, lengths: &[u64]) -> Option<(u32, u64)> {
        lengths.iter().zip(0_u32..).find_map(|(length, step)| {
            // A step that printed nothing has no file to look for.
            let there = if *length == 0 { 0 } else { *self.watch(attempt, step).borrow() };
            (there < *length).then_some((step, there))
        })
    }
}

/// The highest of the names in a directory that are numbers.
fn highest_name(dir: &Path) -> io::Result<Option<u64>> {
    let mut highest = None;
    for entry in fs::read_dir(dir)? {
        highest = highest.max(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rouse_shared::BuildId;

    const ATTEMPT: AttemptId = AttemptId { build: BuildId(7), number: 1 };

    fn chunk(offset: u64, bytes: &str) -> LogChunk {
        LogChunk { attempt: ATTEMPT, step: 0, offset, bytes: bytes.as_bytes().to_vec() }
    }

    #[test]
    fn chunks_join_whatever_comes_twice_or_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let worker: WorkerName = "w1".parse().unwrap();
        let logs = Logs::new(dir.path()).unwrap();
        assert_eq!(logs.write(&worker, &chunk(0, "early")).unwrap(), Written::Unexpected);
        logs.open(ATTEMPT, worker.clone());
        assert_eq!(logs.write(&"w2".parse().unwrap(), &chunk(0, "a liar")).unwrap(), Written::Unexpected);
        for (offset, bytes, expected) in [
            (0, "hello ", Written::Yes),
            (0, "hello ", Written::Yes),
            (9, "late", Written::Gap(6)),
            (3, "lo world", Written::Yes),
            (11, "!", Written::Yes),
        ] {
            assert_eq!(logs.write(&worker, &chunk(offset, bytes)).unwrap(), expected, "{offset} {bytes}");
        }
        assert_eq!(fs::read(logs.path(ATTEMPT, 0)).unwrap(), b"hello world!");
        assert_eq!(logs.missing(ATTEMPT, &[12]), None);
        assert_eq!(logs.missing(ATTEMPT, &[13, 2]), Some((0, 12)));
        assert_eq!(logs.missing(ATTEMPT, &[12, 2]), Some((1, 0)));
        assert!(!logs.path(ATTEMPT, 1).exists(), "asking makes no file");
        // A new master goes on where the file ends.
        let logs = Logs::new(dir.path()).unwrap();
        logs.open(ATTEMPT, worker.clone());
        assert_eq!(logs.write(&worker, &chunk(12, "!")).unwrap(), Written::Yes);
        logs.close(ATTEMPT);
        assert_eq!(logs.highest_build().unwrap(), 7);
        fs::create_dir_all(dir.path().join("2/2003")).unwrap();
        assert_eq!(logs.highest_build().unwrap(), 2003);
        assert_eq!(*logs.watch(ATTEMPT, 0).borrow(), 13);
        assert_eq!(logs.unexpected(), 0);
    }
}
