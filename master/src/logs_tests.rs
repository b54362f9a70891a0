//! Chunks that join, limits, and when a log is on the disk.

#![allow(clippy::unwrap_used)]
use super::*;
use rouse_shared::BuildId;
use std::collections::BTreeSet;

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

/// Records what is synced, and may fail.
#[derive(Clone, Default)]
struct Recorder {
    synced: Arc<Mutex<Vec<String>>>,
    broken: Arc<AtomicBool>,
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.synced))
    }

    fn record(&self, path: &Path) -> io::Result<()> {
        let name = path.iter().rev().take(3).map(|part| part.to_str().unwrap()).collect::<Vec<_>>();
        lock(&self.synced).push(name.into_iter().rev().collect::<Vec<_>>().join("/"));
        if self.broken.load(Ordering::Relaxed) { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl Disk for Recorder {
    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.record(path)
    }

    fn sync_all(&self, _: &Path) -> io::Result<()> {
        self.record(Path::new("everything"))
    }
}

#[test]
fn logs_are_synced_once_when_they_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let worker: WorkerName = "w1".parse().unwrap();
    let disk = Recorder::default();
    let logs = Logs::with_disk(dir.path(), 1_000, Box::new(disk.clone())).unwrap();
    logs.open(ATTEMPT, source());
    for (offset, bytes) in [(0, "hello "), (6, "world"), (6, "world")] {
        logs.write(&worker, &chunk(offset, bytes)).unwrap();
        assert!(!logs.became_whole(ATTEMPT), "its length is not known");
    }
    logs.expect(ATTEMPT, vec![12, 0]);
    assert!(!logs.became_whole(ATTEMPT) && logs.sync_whole().is_empty());
    logs.write(&worker, &chunk(11, "!")).unwrap();
    assert!(logs.became_whole(ATTEMPT) && !logs.became_whole(ATTEMPT));
    assert_eq!(disk.take(), [""; 0], "a chunk is acknowledged without a sync");
    let synced = logs.sync_whole();
    assert!(synced.iter().all(|s| s.attempt == ATTEMPT && s.failed.is_none()) && synced.len() == 1, "{synced:?}");
    assert_eq!(disk.take(), ["7/1/0.log"]);
    assert!(logs.sync_whole().is_empty());
    // Asked again, because the agent has reported once more.
    logs.expect(ATTEMPT, vec![12, 0]);
    assert!(logs.became_whole(ATTEMPT));
    assert_eq!((logs.sync_whole().len(), disk.take()), (1, Vec::new()), "nothing has changed since");
    // The next master does not know what the disk has of it.
    let logs = Logs::with_disk(dir.path(), 1_000, Box::new(disk.clone())).unwrap();
    logs.open(ATTEMPT, source());
    logs.expect(ATTEMPT, vec![12, 0]);
    assert!(logs.became_whole(ATTEMPT));
    assert_eq!((logs.sync_whole().len(), disk.take()), (1, vec!["7/1/0.log".to_owned()]));
}

#[test]
fn a_log_that_the_disk_does_not_take_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let worker: WorkerName = "w1".parse().unwrap();
    let disk = Recorder::default();
    let logs = Logs::with_disk(dir.path(), 1_000, Box::new(disk.clone())).unwrap();
    logs.open(ATTEMPT, source());
    logs.expect(ATTEMPT, vec![5]);
    logs.write(&worker, &chunk(0, "hello")).unwrap();
    disk.broken.store(true, Ordering::Relaxed);
    assert!(logs.became_whole(ATTEMPT));
    let synced = logs.sync_whole();
    assert_eq!(synced[0].failed.as_ref().map(|(step, _)| *step), Some(0));
    assert_eq!((logs.length(ATTEMPT, 0), logs.missing(ATTEMPT, &[5])), (0, Some((0, 0))));
    assert!(!logs.became_whole(ATTEMPT) && logs.sync_whole().is_empty());
    disk.broken.store(false, Ordering::Relaxed);
    assert_eq!(logs.write(&worker, &chunk(0, "hello")).unwrap(), Written::Yes);
    assert!(logs.became_whole(ATTEMPT));
    assert!(logs.sync_whole()[0].failed.is_none());
    assert_eq!(fs::read(logs.path(ATTEMPT, 0)).unwrap(), b"hello");
}

#[test]
fn many_files_are_synced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let worker: WorkerName = "w1".parse().unwrap();
    let disk = Recorder::default();
    let logs = Logs::with_disk(dir.path(), 1_000, Box::new(disk.clone())).unwrap();
    let attempts = (0..20).map(|build| AttemptId { build: BuildId(build), number: 1 });
    for attempt in attempts.clone() {
        logs.open(attempt, source());
        logs.write(&worker, &LogChunk { attempt, ..chunk(0, "hello") }).unwrap();
        logs.expect(attempt, vec![5]);
        assert!(logs.became_whole(attempt));
    }
    assert_eq!((logs.sync_whole().len(), disk.take()), (20, vec!["everything".to_owned()]));
    // If that fails, each file shows whether it is the one.
    for attempt in attempts {
        logs.write(&worker, &LogChunk { attempt, ..chunk(5, " you") }).unwrap();
        logs.expect(attempt, vec![9]);
        assert!(logs.became_whole(attempt));
    }
    disk.broken.store(true, Ordering::Relaxed);
    assert!(logs.sync_whole().iter().all(|synced| synced.failed.is_some()));
    assert_eq!(disk.take().len(), 21);
}

#[test]
fn the_logs_of_a_build_are_measured_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let worker: WorkerName = "w1".parse().unwrap();
    let logs = Logs::new(dir.path(), 1_000).unwrap();
    let id = |build, number| AttemptId { build: BuildId(build), number };
    for (build, number) in [(7, 1), (7, 2), (8, 1), (1_009, 1)] {
        logs.open(id(build, number), source());
        for step in 0..2 {
            let chunk = LogChunk { attempt: id(build, number), step, ..chunk(0, "line\n") };
            assert_eq!(logs.write(&worker, &chunk).unwrap(), Written::Yes);
        }
        logs.close(id(build, number));
    }
    assert_eq!((logs.size(BuildId(7)).unwrap(), logs.size(BuildId(9)).unwrap()), (20, 0));
    let builds = |logs: &Logs| logs.builds().unwrap().flat_map(|thousand| thousand.unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(builds(&logs), [7, 8, 1_009].map(BuildId).into());
    // Also if a part of it is gone already, or all.
    fs::remove_file(logs.path(id(7, 1), 0)).unwrap();
    for _ in 0..2 {
        logs.delete(BuildId(7)).unwrap();
    }
    assert_eq!((logs.size(BuildId(7)).unwrap(), logs.size(BuildId(8)).unwrap()), (0, 10));
    assert!(!dir.path().join("0/7").exists());
    logs.delete(BuildId(8)).unwrap();
    assert!(!dir.path().join("0").exists(), "the directory of a thousand builds without logs");
    // A new master, whose ledger is lost: no number is given again.
    let logs = Logs::new(dir.path(), 1_000).unwrap();
    logs.delete(BuildId(1_009)).unwrap();
    assert_eq!((logs.size(BuildId(1_009)).unwrap(), logs.highest_build().unwrap()), (0, 1_009));
    assert_eq!(Logs::new(dir.path(), 1_000).unwrap().highest_build().unwrap(), 1_009);
}
