//! Each effect is answered by its event, whatever the provider does.

use super::*;
use crate::core::event::{ListedHost, Owner, StartError, Started, Suspension, Termination};
use crate::core::record::{HostState, LaunchSpec};
use crate::hosts::Provider;
use async_trait::async_trait;
use rouse_shared::message::Hello;
use rouse_shared::{HostId, Timestamp, WorkerName};
use std::path::Path;
use std::time::Duration;

/// How a provider goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Panics,
    /// Before it returns a future.
    PanicsAtOnce,
    Hangs,
}

struct Wrong(Way);

impl Wrong {
    async fn go<T>(&self) -> T {
        match self.0 {
            Way::Panics | Way::PanicsAtOnce => panic!("a provider panics, as it should in this test"),
            Way::Hangs => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Provider for Wrong {
    async fn prepare(&self, _: &Host, _: u32, _: &BTreeSet<String>, _: BootData) -> Result<LaunchSpec, StartError> {
        self.go().await
    }

    async fn start(&self, _: &Host) -> Result<Started, StartError> {
        self.go().await
    }

    fn terminate<'a: 'c, 'b: 'c, 'c>(
        &'a self,
        _: &'b Host,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Termination, String>> + Send + 'c>>
    where
        Self: 'c,
    {
        assert_ne!(self.0, Way::PanicsAtOnce, "a provider panics, as it should in this test");
        Box::pin(self.go())
    }

    async fn suspend(&self, _: &Host) -> Result<Suspension, String> {
        self.go().await
    }

    async fn resume(&self, _: &Host, _: BootData) -> Result<(), StartError> {
        self.go().await
    }

    async fn list(&self) -> Result<Listing, String> {
        self.go().await
    }

    fn expect(&self, _: &[&Host]) {
        panic!("a provider panics, as it should in this test");
    }

    fn forget_place(&self, _: &str) {
        panic!("a provider panics, as it should in this test");
    }

    async fn terminate_listed(&self, _: &ListedHost) -> Result<Termination, String> {
        self.go().await
    }

    async fn console(&self, _: &Host) -> Option<String> {
        self.go().await
    }

    fn attest(&self, _: &WorkerName, _: &Hello) -> Result<(), String> {
        panic!("a provider panics, as it should in this test");
    }
}

fn host() -> Host {
    Host {
        forgotten: None,
        terminating: None,
        lingering_notified: None,
        id: HostId("h1".to_owned()),
        worker: "w".parse().unwrap(),
        provider: ProviderKind::Process,
        place: "this machine".to_owned(),
        handle: None,
        state: HostState::Booting,
        image: String::new(),
        launch: None,
        token: "t".to_owned(),
        identity: None,
        nonce: None,
        token_spent: false,
        fingerprint: 0,
        created: Timestamp(0),
        booted: None,
        attached: None,
        suspended: None,
        resumed: None,
        paid: 0.0,
        terminated: None,
        uses: 0,
        started_for: None,
        why: None,
        console: None,
        cost: None,
    }
}

fn executor(dir: &Path, config: &Config, way: Way) -> (Executor, mpsc::Receiver<Event>) {
    let (events, heard) = mpsc::channel(16);
    let hosts = Hosts::new(dir.join("hosts"), "m/1".to_owned(), config, mpsc::channel(1).0).unwrap();
    let hosts = hosts.with_stand_in(Box::new(Wrong(way)), Duration::from_millis(20));
    let logs = Logs::new(&dir.join("logs"), 1 << 30).unwrap();
    let blobs = Arc::new(Blobs::new("1", None));
    let executor = Executor {
        runtime: tokio::runtime::Handle::current(),
        events,
        hosts: Arc::new(hosts),
        uploads: Uploads::unused(logs.clone(), blobs.clone()),
        logs,
        blobs,
        log_sync: LogSync::unused(),
        sweeper: Sweeper::unused(),
        changes: broadcast::channel(1).0,
        link: watch::channel(None).1,
        refusals: Refusals::default(),
        boot: Boot { broker: "amqp://localhost/rouse".to_owned(), ca: None },
        pending: PendingRequests::default(),
        calls: Default::default(),
        fence: Arc::new(|| None),
    };
    (executor, heard)
}

#[tokio::test]
async fn a_call_that_panics_or_hangs_comes_back_as_its_event() {
    let config = Config::parse("[master]\nname = \"m\"\n", Path::new("rouse.toml")).unwrap();
    for way in [Way::Panics, Way::PanicsAtOnce, Way::Hangs] {
        let dir = tempfile::tempdir().unwrap();
        let (mut executor, mut heard) = executor(dir.path(), &config, way);
        let boxed = || Box::new(host());
        let (request, provider) = (RequestId(1), ProviderKind::Process);
        let unclear = match way {
            Way::Panics | Way::PanicsAtOnce => "an error in rouse",
            Way::Hangs => "no answer within",
        };
        let listed = ListedHost {
            host: HostId("h2".to_owned()),
            handle: "x".to_owned(),
            identity: None,
            owner: Owner::Ours,
            suspended: false,
        };
        let effects = [
            Effect::PrepareHost { host: boxed(), number: 0, resting: BTreeSet::new() },
            Effect::StartHost(boxed()),
            Effect::TerminateHost(boxed()),
            Effect::SuspendHost(boxed()),
            Effect::ResumeHost(boxed()),
            Effect::FetchConsole(boxed()),
            Effect::TerminateOrphan { provider, listed },
            Effect::ListHosts(provider),
            Effect::ListForAudit { request, round: 1, provider },
        ];
        for effect in effects {
            let asked = format!("{way:?}: {effect:?}");
            assert_eq!(executor.perform(effect, &config), None, "{asked}");
            let event = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("no event: {asked}")).unwrap();
            let why = match &event {
                Event::Prepared { result: Err(StartError::Transient(why)), .. } if way != Way::Hangs => why,
                Event::Prepared { result: Err(StartError::Place(why)), .. } if way == Way::Hangs => why,
                // The machine may exist, so the same start is repeated.
                Event::StartEnded { result: Err(StartError::Unknown(why)), .. }
                | Event::ResumeEnded { result: Err(StartError::Unknown(why)), .. } => why,
                Event::TerminateEnded { result: Err(why), .. }
                | Event::OrphanTerminateEnded { result: Err(why), .. }
                | Event::SuspendEnded { result: Err(why), .. }
                | Event::Listed { result: Err(why), .. }
                | Event::ListedForAudit { result: Err(why), .. } => why,
                // It is no proof that the machine was silent.
                Event::Console { text: Some(text), .. } => text,
                other => panic!("{asked}: {other:?}"),
            };
            assert!(why.contains(unclear), "{asked}: {why}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_panics_over_news_takes_nobody_with_it() {
    let config = Config::parse("[master]\nname = \"m\"\n", Path::new("rouse.toml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (executor, _heard) = executor(dir.path(), &config, Way::Panics);
    executor.hosts.expect(&[host()]);
    executor.hosts.forget_place(ProviderKind::Process, "this machine");
    executor.hosts.configure(&config);
}

/// The process may have been stopped between the commit and the call, for longer than its lease.
#[tokio::test]
async fn a_master_that_another_has_replaced_calls_no_provider() {
    let config = Config::parse("[master]\nname = \"m\"\n", Path::new("rouse.toml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (executor, mut heard) = executor(dir.path(), &config, Way::Panics);
    let mut executor = Executor { fence: Arc::new(|| Some("another master has the ledger".to_owned())), ..executor };
    assert_eq!(executor.perform(Effect::StartHost(Box::new(host())), &config), None);
    drop(executor);
    // Every operation has ended, and none has called: the panic would have come back as an event.
    assert_eq!(heard.recv().await, None);
}
