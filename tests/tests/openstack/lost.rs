//! The master is lost at each kind of call of a start and a termination: before the cloud receives the call, and after
//! it has carried it out. The next master has the same ledger, creates no second server, and leaves nothing over.

use super::fixture::{LIMIT, LOOK, OpenstackFixture};
use rouse_master::core::record::Host;
use rouse_tests::proxy::{Fault, Request};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SECTION: &str = "floating_ip_pool = \"public\"";
/// Masters that are lost at once: with more it is SQLite below Nova that takes the time.
const AT_ONCE: usize = 4;

/// A kind of call: whether it is part of the stop, its method, and its path without what differs from host to host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Kind {
    stop: bool,
    method: String,
    path: String,
}

impl Kind {
    fn of(request: &Request, stop: bool) -> Self {
        let is_id = |part: &&str| part.len() >= 32 && part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let path = request.path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').map(|part| if is_id(&part) { "ID" } else { part }).collect();
        Self { stop, method: request.method.clone(), path: parts.join("/") }
    }

    /// How it is lost: what changes nothing may as well not have been asked for when the answer does not come.
    fn faults(&self) -> Vec<Fault> {
        if self.method == "GET" { vec![Fault::Hang] } else { vec![Fault::Hang, Fault::HangAfter] }
    }
}

/// Starts a host, until it has its address too.
async fn wake(fixture: &OpenstackFixture, host: &mut Host) {
    fixture.start(host).await.unwrap();
    while !fixture.proxy.has_seen(|r| r.is("PUT", "/floatingips/") && r.status == 200) {
        tokio::time::sleep(LOOK).await;
    }
}

/// The kinds of calls of a life in which nothing goes wrong, in the order in which they come first.
async fn kinds() -> Vec<Kind> {
    let fixture = OpenstackFixture::unhurried(SECTION).await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    fixture.proxy.take_seen();
    let mut all = Vec::new();
    for stop in [false, true] {
        match stop {
            false => wake(&fixture, &mut host).await,
            true => fixture.terminate(&host).await,
        }
        let mut known = BTreeSet::new();
        all.extend(
            fixture.proxy.take_seen().iter().map(|r| Kind::of(r, stop)).filter(|kind| known.insert(kind.clone())),
        );
    }
    all
}

async fn lost_at(kind: Kind, fault: Fault) {
    let when = format!("{fault:?} at {kind:?}");
    let mut fixture = OpenstackFixture::unhurried(SECTION).await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    fixture.proxy.take_seen();
    let stopping = Arc::new(AtomicBool::new(false));
    let phase = stopping.clone();
    fixture.proxy.fail(0, 1, fault, move |r| Kind::of(r, phase.load(Ordering::Relaxed)) == kind);
    // It has a runtime of its own, with which all ends that it does beside its calls.
    tokio::task::block_in_place(|| {
        let master = tokio::runtime::Runtime::new().unwrap();
        master.block_on(async {
            let life = async {
                wake(&fixture, &mut host).await;
                stopping.store(true, Ordering::Relaxed);
                fixture.terminate(&host).await;
            };
            tokio::select! {
                () = life => panic!("it outlived {when}"),
                () = async { while fixture.proxy.hanging() == 0 { tokio::time::sleep(LOOK).await } } => {}
                () = tokio::time::sleep(LIMIT) => panic!("not in time: {when}"),
            }
        });
        master.shutdown_background();
    });
    fixture.proxy.heal();
    fixture.next();
    if !stopping.load(Ordering::Relaxed) {
        fixture.start(&mut host).await.unwrap_or_else(|error| panic!("{when}: {error:?}"));
        let listed = fixture.list().await.unwrap();
        assert!(listed.iter().all(|machine| machine.host == host.id), "{when}: {listed:?}");
        assert_eq!(fixture.servers(&host).await.len(), 1, "{when}");
    }
    fixture.terminate(&host).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0], "{when}");
    for (path, key) in [("/v2.0/ports", "ports"), ("/v2.0/floatingips", "floatingips")] {
        let mut left = fixture.user.list("network", path, key).await;
        left.retain(|item| item.to_string().contains(host.id.as_str()));
        assert_eq!(left, [] as [Value; 0], "{when}");
    }
    assert_eq!(fixture.list().await.unwrap(), [], "{when}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_master_lost_at_any_call_leaves_nothing() {
    let kinds = kinds().await;
    let calls = |method: &str, path: &str| kinds.iter().any(|k| k.method == method && k.path.ends_with(path));
    let known =
        [("POST", "/servers"), ("DELETE", "/servers/ID"), ("POST", "/floatingips"), ("DELETE", "/floatingips/ID")];
    assert!(known.iter().all(|(method, path)| calls(method, path)) && kinds.len() >= 10, "{kinds:?}");
    let all: Vec<_> = kinds.iter().flat_map(|kind| kind.faults().into_iter().map(|f| (kind.clone(), f))).collect();
    for some in all.chunks(AT_ONCE) {
        let tasks: Vec<_> = some.iter().cloned().map(|(kind, fault)| tokio::spawn(lost_at(kind, fault))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}
