//! The contract of the providers: tests, with the real service, what the core relies on. Each provider has a fixture,
//! which defines how the provider is made, how its machines are seen without it, and what else may exist.

use rouse_master::clock;
use rouse_master::core::event::{ListedHost, Listing, Owner, StartError, Started, Termination, UnlistedPlace};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{Host, HostState};
use rouse_master::hosts::{Death, Provider};
use rouse_shared::boot::BootData;
use rouse_shared::{HostId, WorkerName};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The master's name and id in the contract's tests.
pub const OWNER: &str = "contract/0123456789abcdef0123456789abcdef";
/// Another master of the same name.
pub const FOREIGN_OWNER: &str = "contract/fedcba9876543210fedcba9876543210";

/// Pauses between looks at a service. They grow from 0.1 to 1 s, because each answer of an emulated cloud costs
/// processor time that what is waited for may need.
#[derive(Default)]
pub struct Looks(Duration);

impl Looks {
    /// Pauses, and returns true; or returns false if the pauses have lasted for a minute.
    pub async fn again(&mut self) -> bool {
        if self.0 >= LIMIT {
            return false;
        }
        let pause = (self.0 / 5).clamp(Duration::from_millis(100), Duration::from_secs(1));
        tokio::time::sleep(pause).await;
        self.0 += pause;
        true
    }
}

/// What a provider is tried on.
pub trait ProviderFixture {
    /// What its hosts are called in the ledger.
    fn kind(&self) -> ProviderKind;
    /// Two workers that it can make hosts for.
    fn workers(&self) -> [WorkerName; 2];
    /// The provider as a master with this name and id has it when it starts.
    fn provider(&self, owner: &str, deaths: mpsc::Sender<Death>) -> Box<dyn Provider>;
    /// Machines that run now, seen past the provider; those that were there before included. What tells one from another.
    fn machines(&self) -> BTreeSet<String>;
    /// Ends a host's machine past the provider, as an accident would.
    fn kill(&self, host: &Host);
    /// Whether what a machine prints is kept.
    fn keeps_console(&self) -> bool;
    /// Whether the provider reports deaths without being asked.
    fn tells_of_deaths(&self) -> bool;
    /// What hosts leave beside their machines, such as disks; seen past the provider.
    fn leftovers(&self) -> BTreeSet<String>;
}

/// A host, as the core orders it.
pub fn host(fixture: &dyn ProviderFixture, worker: &WorkerName) -> Host {
    host_of(fixture.kind(), worker)
}

/// A host of such a provider.
pub fn host_of(provider: ProviderKind, worker: &WorkerName) -> Host {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Host {
        forgotten: None,
        terminating: None,
        lingering_notified: None,
        id: HostId(format!("h{:08x}{number:08x}", std::process::id())),
        worker: worker.clone(),
        provider,
        place: "here".to_owned(),
        launch: None,
        image: String::new(),
        handle: None,
        state: HostState::Ordered,
        token: format!("token-{number}"),
        identity: None,
        nonce: None,
        token_spent: false,
        fingerprint: 0,
        created: clock::now(),
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

/// Its boot data: nobody listens there.
pub fn boot_data(host: &Host) -> BootData {
    BootData {
        name: host.worker.clone(),
        host: host.id.clone(),
        broker: "amqp://127.0.0.1:1/rouse".to_owned(),
        ca: None,
        token: host.token.clone(),
        identity: host.identity.clone(),
        power_off_after: Some(600),
    }
}

/// Orders it, which makes nothing.
///
/// # Errors
/// As the provider says.
pub async fn order(provider: &dyn Provider, host: &mut Host) -> Result<(), StartError> {
    host.launch = Some(provider.prepare(host, 0, &BTreeSet::new(), boot_data(host)).await?);
    Ok(())
}

/// Orders and starts it.
///
/// # Panics
/// If that fails.
pub async fn started(provider: &dyn Provider, host: &mut Host) {
    order(provider, host).await.expect("it can be ordered");
    let Started { handle, identity } = provider.start(host).await.expect("it can be started");
    (host.handle, host.identity) = (Some(handle), identity);
}

/// Stops it until it is gone.
///
/// # Panics
/// If it does not go.
pub async fn gone(provider: &dyn Provider, host: &Host) {
    let mut looks = Looks::default();
    while provider.terminate(host).await.expect("it can be stopped") != Termination::Gone {
        assert!(looks.again().await, "host {} does not go", host.id);
    }
}

/// What it lists, if it has heard of every place.
///
/// # Errors
/// The places that it has not heard of, and why.
pub async fn whole_list(provider: &dyn Provider) -> Result<Vec<ListedHost>, String> {
    let Listing { machines, unlisted } = provider.list().await?;
    let said = |UnlistedPlace { place, why }: &UnlistedPlace| match place {
        Some(place) => format!("{place}: {why}"),
        None => why.clone(),
    };
    match unlisted.as_slice() {
        [] => Ok(machines),
        unlisted => Err(unlisted.iter().map(said).collect::<Vec<_>>().join("; ")),
    }
}

async fn listed(provider: &dyn Provider, host: &Host) -> Option<ListedHost> {
    whole_list(provider).await.expect("a list").into_iter().find(|listed| listed.host == host.id)
}

/// Waits for what holds at last.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let mut looks = Looks::default();
    while !holds() {
        assert!(looks.again().await, "not in time: {what}");
    }
}

/// All of it.
///
/// # Panics
/// If the provider breaks the contract.
pub async fn holds(fixture: &dyn ProviderFixture) {
    let (machines, leftovers) = (fixture.machines(), fixture.leftovers());
    let (deaths, mut heard) = mpsc::channel(64);
    let provider = fixture.provider(OWNER, deaths);
    one_try_makes_one_machine(fixture, provider.as_ref()).await;
    a_stop_repeats_and_ends_one_only(fixture, provider.as_ref()).await;
    owner_tags_distinguish_our_machines_from_others(fixture, provider.as_ref()).await;
    a_death_is_noticed(fixture, provider.as_ref(), &mut heard).await;
    until("nothing of this master is left", || fixture.machines() == machines).await;
    assert_eq!(fixture.leftovers(), leftovers, "nothing of this master is left except machines");
}

async fn one_try_makes_one_machine(fixture: &dyn ProviderFixture, provider: &dyn Provider) {
    let before = fixture.machines();
    let [worker, _] = fixture.workers();
    let mut host = host(fixture, &worker);
    order(provider, &mut host).await.expect("it can be ordered");
    assert_eq!(fixture.machines(), before, "an order makes nothing");
    assert!(listed(provider, &host).await.is_none(), "an order is no host");
    let made = provider.start(&host).await.expect("it can be started");
    let ordered = host.launch.as_ref().and_then(|order| order.identity.clone());
    assert!(ordered.is_none() || ordered == made.identity, "it is the one that was expected");
    let one_more = fixture.machines();
    assert_eq!(one_more.len(), before.len() + 1, "one machine: {one_more:?}");
    assert_eq!(provider.start(&host).await.as_ref(), Ok(&made), "the same order finds the same machine");
    // A master that lost the reply and was started again.
    let (deaths, _heard) = mpsc::channel(64);
    let next = fixture.provider(OWNER, deaths);
    assert_eq!(next.start(&host).await.as_ref(), Ok(&made), "the next master finds it too");
    assert_eq!(fixture.machines(), one_more, "and none makes another");
    let found = listed(next.as_ref(), &host).await.expect("it is listed");
    assert_eq!((&found.handle, &found.owner), (&made.handle, &Owner::Ours));
    host.handle = Some(made.handle);
    if fixture.keeps_console() {
        let mut said = provider.console(&host).await;
        let mut looks = Looks::default();
        while said.is_none() && looks.again().await {
            said = provider.console(&host).await;
        }
        assert!(said.is_some_and(|said| !said.trim().is_empty()), "what it printed can be had while it runs");
    }
    gone(provider, &host).await;
    assert_eq!(fixture.machines(), before);
}

async fn a_stop_repeats_and_ends_one_only(fixture: &dyn ProviderFixture, provider: &dyn Provider) {
    let [first, second] = fixture.workers();
    let (mut one, mut other) = (host(fixture, &first), host(fixture, &second));
    assert_eq!(provider.terminate(&one).await, Ok(Termination::Gone), "what was never ordered is gone");
    order(provider, &mut one).await.expect("it can be ordered");
    assert_eq!(provider.terminate(&one).await, Ok(Termination::Gone), "what was never started is gone");
    let before = fixture.machines();
    started(provider, &mut one).await;
    started(provider, &mut other).await;
    let both = fixture.machines();
    assert_eq!(both.len(), before.len() + 2);
    gone(provider, &one).await;
    assert!(listed(provider, &other).await.is_some(), "the other one continues");
    assert_eq!(fixture.machines().len(), before.len() + 1);
    for _ in 0..2 {
        assert_eq!(provider.terminate(&one).await, Ok(Termination::Gone), "a stop may be repeated");
    }
    gone(provider, &other).await;
}

async fn owner_tags_distinguish_our_machines_from_others(fixture: &dyn ProviderFixture, provider: &dyn Provider) {
    let [worker, _] = fixture.workers();
    let (deaths, _heard) = mpsc::channel(64);
    let foreign = fixture.provider(FOREIGN_OWNER, deaths);
    let mut theirs = host(fixture, &worker);
    started(foreign.as_ref(), &mut theirs).await;
    let with_theirs = fixture.machines();
    let id = FOREIGN_OWNER.rsplit_once('/').expect("a name and an id").1;
    let found = listed(provider, &theirs).await.expect("a foreign machine is listed");
    assert_eq!(found.owner, Owner::Foreign(id.to_owned()));
    assert_eq!(provider.terminate(&theirs).await, Ok(Termination::Gone), "it is none of ours");
    assert_eq!(fixture.machines(), with_theirs, "and it is not changed");
    let (deaths, _heard) = mpsc::channel(64);
    let stranger = fixture.provider("another/0123456789abcdef0123456789abcdef", deaths);
    assert!(listed(stranger.as_ref(), &theirs).await.is_none(), "a master of another name does not list it");
    // Only if a user says so.
    let mut looks = Looks::default();
    while provider.terminate_listed(&found).await.expect("it can be ended") != Termination::Gone {
        assert!(looks.again().await, "the foreign machine does not go");
    }
    assert!(listed(foreign.as_ref(), &theirs).await.is_none());
}

async fn a_death_is_noticed(fixture: &dyn ProviderFixture, provider: &dyn Provider, heard: &mut mpsc::Receiver<Death>) {
    let [worker, _] = fixture.workers();
    let mut host = host(fixture, &worker);
    started(provider, &mut host).await;
    // Deaths of earlier hosts.
    while heard.try_recv().is_ok() {}
    fixture.kill(&host);
    if fixture.tells_of_deaths() {
        let death = tokio::time::timeout(LIMIT, heard.recv()).await.expect("its death is reported").expect("a death");
        assert_eq!(death.host, host.id);
        assert!(!death.why.is_empty());
    }
    let mut looks = Looks::default();
    while listed(provider, &host).await.is_some() {
        assert!(looks.again().await, "a dead host is not listed");
    }
    gone(provider, &host).await;
}
