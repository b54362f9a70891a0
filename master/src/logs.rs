//! Build logs on disk. Each chunk is written at its offset and acknowledged after that.
//!
//! A repeated chunk changes nothing. A chunk that does not continue the log is dropped, and the missing bytes are
//! requested again. File names consist of the master's own numbers, never of text from an agent.

use crate::sync::lock;
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, SessionId, WorkerName};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
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

/// All logs of a state directory.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    open: Mutex<HashMap<AttemptId, Arc<Attempt>>>,
    /// The final lengths of the logs of attempts that have ended.
    expected: Mutex<HashMap<AttemptId, Vec<u64>>>,
    unexpected: AtomicU64,
    /// Largest log of a step, bytes.
    max_size: AtomicU64,
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
}

impl Logs {
    /// Logs below `dir`, which is created if it does not exist. No log of a step becomes larger than `max_size` bytes.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new(dir: &Path, max_size: u64) -> io::Result<Self> {
        // Only users of the API may read what builds print.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let inner = Inner {
            dir: dir.to_owned(),
            open: Mutex::default(),
            expected: Mutex::default(),
            unexpected: AtomicU64::new(0),
            max_size: AtomicU64::new(max_size),
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
        let Some(thousand) = highest_name(&self.inner.dir)? else { return Ok(0) };
        Ok(highest_name(&self.inner.dir.join(thousand.to_string()))?.unwrap_or(thousand * 1000))
    }

    /// The path of a step's log. The file does not exist as long as the log is empty.
    pub fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.dir(attempt).join(format!("{step}.log"))
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        // A thousand builds for each directory, which can be listed quickly.
        let build = attempt.build.0;
        self.inner.dir.join(format!("{}", build / 1000)).join(format!("{build}")).join(format!("{}", attempt.number))
    }

    /// Accepts chunks of this attempt from this source from now on.
    pub fn open(&self, attempt: AttemptId, source: Source) {
        let fresh = || Arc::new(Attempt { source, steps: Mutex::default(), file: Mutex::default() });
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
        lock(&self.inner.expected).insert(attempt, lengths);
    }

    /// Whether an attempt's logs have reached their final lengths. Returns true once.
    pub fn became_whole(&self, attempt: AttemptId) -> bool {
        let mut expected = lock(&self.inner.expected);
        let whole = expected.get(&attempt).is_some_and(|lengths| self.missing(attempt, lengths).is_none());
        whole && expected.remove(&attempt).is_some()
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
            let (length, _) = watch::channel(self.length_on_disk(id, number));
            Arc::new(Step { length })
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

/// The highest number among the names in a directory.
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

    fn session(id: &str) -> SessionId {
        SessionId(id.to_owned())
    }

    fn source() -> Source {
        Source { worker: "w1".parse().unwrap(), session: session("s"), steps: 2 }
    }

    fn chunk(offset: u64, bytes: &str) -> LogChunk {
        LogChunk { session: session("s"), attempt: ATTEMPT, step: 0, offset, bytes: bytes.as_bytes().to_vec() }
    }

    #[test]
    fn chunks_join_whatever_comes_twice_or_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let worker: WorkerName = "w1".parse().unwrap();
        let logs = Logs::new(dir.path(), 1_000).unwrap();
        assert_eq!(logs.write(&worker, &chunk(0, "early")).unwrap(), Written::Unexpected);
        logs.open(ATTEMPT, source());
        assert_eq!(logs.write(&"w2".parse().unwrap(), &chunk(0, "a liar")).unwrap(), Written::Unexpected);
        // Whoever else has the worker's password.
        let forged = LogChunk { session: session("another"), ..chunk(0, "a lie") };
        assert_eq!(logs.write(&worker, &forged).unwrap(), Written::Unexpected);
        let beyond = LogChunk { step: 2, ..chunk(0, "a step that the build does not have") };
        assert_eq!(logs.write(&worker, &beyond).unwrap(), Written::Unexpected);
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
        let logs = Logs::new(dir.path(), 1_000).unwrap();
        logs.open(ATTEMPT, source());
        assert_eq!(logs.write(&worker, &chunk(12, "!")).unwrap(), Written::Yes);
        logs.close(ATTEMPT);
        assert_eq!(logs.highest_build().unwrap(), 7);
        fs::create_dir_all(dir.path().join("2/2003")).unwrap();
        assert_eq!(logs.highest_build().unwrap(), 2003);
        assert_eq!(*logs.watch(ATTEMPT, 0).borrow(), 13);
        assert_eq!(logs.unexpected(), 0);
    }

    #[test]
    fn an_endless_log_is_cut_and_the_attempt_ends_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let worker: WorkerName = "w1".parse().unwrap();
        let logs = Logs::new(dir.path(), 10).unwrap();
        logs.open(ATTEMPT, source());
        for offset in (0..100).step_by(4) {
            assert_eq!(logs.write(&worker, &chunk(offset, "abcd")).unwrap(), Written::Yes, "{offset}");
        }
        assert_eq!(fs::read(logs.path(ATTEMPT, 0)).unwrap(), b"abcdabcdab");
        logs.expect(ATTEMPT, vec![100]);
        assert!(logs.became_whole(ATTEMPT));
        // A larger limit: the agent sends the rest.
        logs.set_max_size(1_000);
        assert_eq!(logs.write(&worker, &chunk(100, "more")).unwrap(), Written::Gap(10));
    }

    #[test]
    fn the_logs_of_many_steps_take_one_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let worker: WorkerName = "w1".parse().unwrap();
        let logs = Logs::new(dir.path(), 1_000).unwrap();
        logs.open(ATTEMPT, Source { steps: 1_000, ..source() });
        for step in (0..1_000).chain(0..1_000) {
            let offset = logs.length_on_disk(ATTEMPT, step);
            assert_eq!(logs.write(&worker, &LogChunk { step, ..chunk(offset, "line\n") }).unwrap(), Written::Yes);
        }
        assert!((0..1_000).all(|step| fs::read(logs.path(ATTEMPT, step)).unwrap() == b"line\nline\n"));
        let own = format!("{}/", dir.path().display());
        let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        assert_eq!(open.filter(|path| path.to_string_lossy().starts_with(&own)).count(), 1);
    }
}
