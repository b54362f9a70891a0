//! Logs get to the store once, and from there they are read, wherever the master is killed and whatever the store does.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{BlobsConfig, StoreUrl};
use crate::core::build::{BuildEnd, BuildSpec, BuildStatus, Requirement};
use crate::core::record::Record;
use crate::logs::Source;
use crate::store::{Database, Store};
use futures_util::stream::{BoxStream, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, SessionId};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A store that is away when the test says so.
#[derive(Debug, Default)]
struct Fragile {
    store: InMemory,
    away: AtomicBool,
    puts: AtomicUsize,
}

impl std::fmt::Display for Fragile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a fragile store")
    }
}

impl Fragile {
    fn check(&self) -> object_store::Result<()> {
        let gone = || object_store::Error::Generic { store: "test", source: "connection refused".into() };
        if self.away.load(Ordering::Relaxed) { Err(gone()) } else { Ok(()) }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Fragile {
    async fn put_opts(&self, at: &Key, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.check()?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.store.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.check()?;
        self.store.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        match self.check() {
            Ok(()) => self.store.delete_stream(keys),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.check() {
            Ok(()) => self.store.list(prefix),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.check()?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.check()?;
        self.store.copy_opts(from, to, options).await
    }
}

const STORE: &str = "s3://bucket/a";
const MASTER: &str = "0123abcd";

fn config(url: &str) -> BlobsConfig {
    BlobsConfig {
        url: url.to_owned(),
        store: StoreUrl::parse(url).unwrap(),
        region: None,
        endpoint_url: None,
        credentials: None,
        profile: None,
    }
}

/// A master's disk and its store, which both outlive the master.
struct World {
    dir: tempfile::TempDir,
    ledger: Store,
    remote: Arc<Fragile>,
}

/// A running master, as far as uploads need one.
struct Running {
    logs: Logs,
    blobs: Arc<Blobs>,
    uploads: Uploads,
    events: mpsc::Receiver<Event>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Database::file(dir.path().join("ledger")).open().unwrap();
        Self { dir, ledger, remote: Arc::default() }
    }

    fn start(&self) -> Running {
        let logs = Logs::new(&self.dir.path().join("logs"), 1 << 30).unwrap();
        let blobs = Arc::new(Blobs::new(MASTER, Some(config(STORE))));
        blobs.put_in_place(STORE, self.remote.clone());
        let (events, receiver) = mpsc::channel(16);
        let uploads =
            Uploads::start(logs.clone(), blobs.clone(), Database::file(self.dir.path().join("ledger")), events);
        Running { logs, blobs, uploads, events: receiver }
    }

    /// A build that has ended, with one log for each text.
    fn end_build(&mut self, id: u64, texts: &[&[u8]]) -> BuildId {
        let spec = Arc::new(BuildSpec {
            name: "b".to_owned(),
            requirement: Requirement::Where(BTreeMap::new()),
            priority: 0,
            retries: 0,
            timeout_ms: None,
            queue_timeout_ms: None,
            env: BTreeMap::new(),
            limits: Default::default(),
            keep: false,
            steps: Vec::new(),
        });
        let mut status = BuildStatus::new(Timestamp(1));
        (status.end, status.finished) = (Some(BuildEnd::Success), Some(Timestamp(2)));
        let build = BuildId(id);
        let logs = Logs::new(&self.dir.path().join("logs"), 1 << 30).unwrap();
        let attempt = AttemptId { build, number: 1 };
        let (worker, session): (rouse_shared::WorkerName, _) = ("w1".parse().unwrap(), SessionId("s".to_owned()));
        logs.open(attempt, Source { worker: worker.clone(), session: session.clone(), steps: texts.len() });
        for (step, text) in (0..).zip(texts) {
            let session = session.clone();
            logs.write(&worker, &LogChunk { session, attempt, step, offset: 0, bytes: text.to_vec() }).unwrap();
        }
        logs.close(attempt);
        self.ledger.commit(&[Record::NewBuild { id: build, spec, message_id: None, status }]).unwrap();
        build
    }

    async fn objects(&self) -> Vec<String> {
        let listed = self.remote.store.list(None).map(|object| object.unwrap().location.to_string());
        let mut all = listed.collect::<Vec<_>>().await;
        all.sort();
        all
    }
}

impl Running {
    /// What the loop does with the next event, unless it is killed before.
    async fn commit(&mut self, ledger: &mut Store) -> Upload {
        let Some(Event::Upload { build, store, upload }) = self.events.recv().await else { panic!("no upload") };
        ledger.commit(&[Record::LogsUploaded(build, store, upload)]).unwrap();
        self.uploads.recorded(build);
        upload
    }

    async fn until(&self, condition: impl Fn(&Figures) -> bool) {
        while !condition(&self.uploads.figures().unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn read(&self, build: BuildId, step: u32) -> Vec<u8> {
        let attempt = AttemptId { build, number: 1 };
        let length = self.blobs.length(STORE, attempt, step).await.unwrap();
        if length == 0 { Vec::new() } else { self.blobs.read(STORE, attempt, step, 0..length).await.unwrap().to_vec() }
    }
}

#[tokio::test]
async fn logs_go_to_the_store_and_then_from_the_disk() {
    let mut world = World::new();
    let large = vec![7; 11 << 20];
    let build = world.end_build(3, &[b"hello", b"", &large]);
    let silent = world.end_build(2, &[]);
    let newest = world.end_build(4, &[b"x"]);
    let mut master = world.start();
    let mut records = Vec::new();
    while records.len() < 5 {
        records.push(master.commit(&mut world.ledger).await);
    }
    // Nothing is sent for the build that has printed nothing.
    assert_eq!(records.iter().filter(|upload| **upload == Upload::Begun).count(), 2, "{records:?}");
    for bytes in [0, 1, 5 + large.len() as u64] {
        assert!(records.contains(&Upload::Complete(bytes)), "{records:?}");
    }
    master.until(|figures| figures.waiting == 0).await;
    assert_eq!(master.logs.files(build).unwrap(), []);
    let keys = ["0123abcd/logs/0/3/1/0.log", "0123abcd/logs/0/3/1/2.log", "0123abcd/logs/0/4/1/0.log"];
    assert_eq!(world.objects().await, keys);
    assert_eq!((master.read(build, 0).await, master.read(build, 1).await), (b"hello".to_vec(), Vec::new()));
    assert!(master.read(build, 2).await == large, "parts in their order");
    for build in [build, silent, newest] {
        assert_eq!(world.ledger.build(build).unwrap().unwrap().logs_store.as_deref(), Some(STORE));
    }
    assert_eq!(master.uploads.figures().unwrap(), Figures { uploaded: 2, ..Figures::default() });
    assert_eq!(master.logs.highest_build().unwrap(), newest.0, "its number is not given again");
}

/// Kills the master before and after each commit, and has the next one go on.
#[tokio::test]
async fn a_master_that_is_killed_between_two_steps_loses_nothing() {
    for committed in 0..=2 {
        for answered in [false, true] {
            let mut world = World::new();
            let build = world.end_build(3, &[b"hello"]);
            world.end_build(4, &[]);
            let mut first = world.start();
            let mut left = committed;
            while left > 0 || !answered {
                let Some(Event::Upload { build: of, store, upload }) = first.events.recv().await else { panic!() };
                if of != build {
                    continue;
                }
                if left == 0 {
                    break;
                }
                left -= 1;
                world.ledger.commit(&[Record::LogsUploaded(of, store, upload)]).unwrap();
                if left > 0 || answered {
                    first.uploads.recorded(of);
                }
                if left == 0 {
                    break;
                }
            }
            drop(first);
            let stored = world.ledger.build(build).unwrap().unwrap().logs_store.is_some();
            assert_eq!(stored, committed == 2);
            let on_disk = !Logs::new(&world.dir.path().join("logs"), 1).unwrap().files(build).unwrap().is_empty();
            assert!(on_disk || stored, "it is nowhere");
            let mut next = world.start();
            let uploads = next.uploads.clone();
            let committing = async {
                loop {
                    next.commit(&mut world.ledger).await;
                }
            };
            let ended = async {
                let logs = Logs::new(&world.dir.path().join("logs"), 1).unwrap();
                let done = || uploads.figures().unwrap().waiting == 0 && logs.files(build).unwrap().is_empty();
                // Once the search has added them, or has found nothing to add.
                while !done() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! { () = committing => {}, () = ended => {} }
            assert_eq!(next.read(build, 0).await, b"hello", "killed after {committed} commits");
            assert!(world.ledger.build(build).unwrap().unwrap().logs_store.is_some());
        }
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_tried_by_one_build_until_it_is_back() {
    let mut world = World::new();
    let builds: Vec<_> = (1..=9).map(|id| world.end_build(id, &[b"hello"])).collect();
    world.remote.away.store(true, Ordering::Relaxed);
    let mut master = world.start();
    let uploads = master.uploads.clone();
    let until = async |condition: fn(&Figures) -> bool| {
        while !condition(&uploads.figures().unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut begun = 0;
    loop {
        tokio::select! {
            _ = master.commit(&mut world.ledger) => begun += 1,
            () = until(|figures| figures.down && figures.failed >= 1 && figures.waiting == 9) => break,
        }
    }
    assert!(begun <= PARALLEL, "{begun} builds try at the same time");
    let trouble = master.uploads.trouble(builds[8]).unwrap();
    assert!(trouble.contains("s3://bucket/a cannot be used: connection refused"), "{trouble}");
    assert!(trouble.contains("the next try is in "), "{trouble}");
    assert_eq!(master.logs.files(builds[0]).unwrap().len(), 1, "it stays on the disk");
    assert_eq!(master.uploads.figures().unwrap().bytes, 9 * 5);
    assert_eq!(master.uploads.next(clock::now(), PARALLEL).0, [], "before the pause is over");
    while lock(&master.uploads.0.state).waiting.values().any(|waiting| waiting.running) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let later = clock::now() + Duration::from_secs(60);
    assert_eq!(master.uploads.next(later, PARALLEL).0.len(), 1, "one build tries");
    assert_eq!(master.uploads.next(later, PARALLEL).0, [], "as long as it does");

    world.remote.away.store(false, Ordering::Relaxed);
    {
        let mut state = lock(&master.uploads.0.state);
        state.down.as_mut().unwrap().next_try = Timestamp(0);
        for waiting in state.waiting.values_mut() {
            (waiting.running, waiting.not_before) = (false, Timestamp(0));
        }
    }
    master.uploads.0.wake.notify_one();
    loop {
        tokio::select! {
            _ = master.commit(&mut world.ledger) => {}
            () = until(|figures| figures.waiting == 0) => break,
        }
    }
    assert_eq!(world.objects().await.len(), 9);
    let figures = master.uploads.figures().unwrap();
    assert_eq!((figures.down, figures.bytes, figures.uploaded), (false, 0, 9));
    assert_eq!(master.uploads.trouble(builds[8]), None);
}

#[test]
fn pauses_double_up_to_five_minutes() {
    for (failures, from, to) in [(1, 4, 6), (2, 8, 12), (4, 32, 48), (7, 256, 300), (40, 300, 300)] {
        let pause = pause_after(failures);
        assert!((Duration::from_secs(from)..=Duration::from_secs(to)).contains(&pause), "{failures}: {pause:?}");
    }
}

#[tokio::test]
async fn what_another_store_may_have_is_deleted_before_the_new_one_gets_it() {
    let mut world = World::new();
    let build = world.end_build(3, &[b"hello"]);
    let former = Arc::new(InMemory::new());
    let key = Key::from("0123abcd/logs/0/3/1/0.log");
    former.put_opts(&key, PutPayload::from_static(b"hel"), PutOptions::default()).await.unwrap();
    world.ledger.commit(&[Record::LogsUploaded(build, "s3://former".into(), Upload::Begun)]).unwrap();
    let mut master = world.start();
    master.blobs.put_in_place("s3://former", former.clone());
    while master.commit(&mut world.ledger).await == Upload::Begun {}
    assert_eq!(former.list(None).count().await, 0);
    assert_eq!(world.objects().await, [key.to_string()]);
}

#[tokio::test]
async fn uploads_leave_to_others_what_they_use() {
    let mut world = World::new();
    let build = world.end_build(3, &[b"hello"]);
    let master = world.start();
    let claim = master.logs.claim(build).unwrap();
    assert!(master.logs.claim(build).is_none());
    let upload = master.uploads.upload(build, &STORE.into(), None).await;
    assert!(matches!(upload, Err(Failure::Busy)));
    drop(claim);
    let attempt = AttemptId { build, number: 2 };
    let source = Source { worker: "w1".parse().unwrap(), session: SessionId("s".to_owned()), steps: 1 };
    master.logs.open(attempt, source);
    let upload = master.uploads.upload(build, &STORE.into(), None).await;
    assert!(matches!(upload, Err(Failure::Busy)));
    assert_eq!(world.remote.puts.load(Ordering::Relaxed), 0);
}

#[test]
fn retention_deletes_from_the_disk_and_from_the_store() {
    use super::super::retention::delete;
    use crate::blobs::StoreError;
    let mut world = World::new();
    let builds: Vec<_> = (1..=6).map(|id| world.end_build(id, &[b"hello"])).collect();
    let stored = |n: usize, store: &str, upload| Record::LogsUploaded(builds[n], store.into(), upload);
    world
        .ledger
        .commit(&[
            stored(1, STORE, Upload::Complete(5)),
            stored(2, "s3://away", Upload::Begun),
            stored(3, "s3://away", Upload::Complete(5)),
            stored(4, STORE, Upload::Complete(5)),
        ])
        .unwrap();
    let logs = Logs::new(&world.dir.path().join("logs"), 1 << 30).unwrap();
    let asked = Mutex::new(Vec::new());
    let from_blobs = |store: &str, build: BuildId| {
        asked.lock().unwrap().push((store.to_owned(), build));
        if store == STORE { Ok(()) } else { Err(StoreError("it is away".to_owned())) }
    };
    // The last one is being uploaded.
    let claim = logs.claim(builds[5]).unwrap();
    let deleted = delete(&world.ledger, &logs, &from_blobs, builds.clone());
    let done = vec![builds[0], builds[1], builds[4]];
    assert_eq!(deleted, Event::LogsDeleted { builds: done, failed: Some("build 3: it is away".to_owned()) });
    let expected = [(STORE, builds[1]), ("s3://away", builds[2]), (STORE, builds[4])];
    assert_eq!(*asked.lock().unwrap(), expected.map(|(store, build)| (store.to_owned(), build)), "the store once");
    let left = |build: &BuildId| !logs.files(*build).unwrap().is_empty();
    assert_eq!(
        builds.iter().filter(|build| left(build)).collect::<Vec<_>>(),
        [&builds[5]],
        "the disk waits for nobody"
    );
    drop(claim);
    let deleted = delete(&world.ledger, &logs, &from_blobs, vec![builds[5]]);
    assert_eq!(deleted, Event::LogsDeleted { builds: vec![builds[5]], failed: None });
}
