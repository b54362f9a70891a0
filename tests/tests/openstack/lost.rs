//! The master is lost between any two calls to the cloud: in this process, on the host that the ledger has.

use super::stand::{LIMIT, LOOK, Stand};
use rouse_master::hosts::Provider as _;
use rouse_tests::proxy::Fault;
use serde_json::Value;
use std::future::Future;

/// The most calls that one start or stop consists of, what is done beside it included.
const CALLS: usize = 24;
/// Masters that are lost at once: more, and SQLite below Nova is what takes the time.
const AT_ONCE: usize = 4;

/// Lets `work` go on until the proxy leaves a request hanging: then the master is gone. Its result, where it was not.
async fn until_lost<T>(stand: &Stand, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
        if let Ok(result) = tokio::time::timeout(LOOK, &mut work).await {
            return Some(result);
        }
        if stand.proxy.hanging() > 0 {
            return None;
        }
    }
    panic!("neither done nor lost in time");
}

/// The master is lost at the `n`th call of a start: the next one makes no second server. Whether there was such a call.
async fn lost_in_start(n: usize, fault: Fault) -> bool {
    let mut stand = Stand::new("floating_ip_pool = \"public\"").await;
    let mut host = stand.host();
    stand.prepare(&mut host).await.unwrap();
    stand.proxy.fail(n, 1, fault.clone(), |_| true);
    let lost = until_lost(&stand, stand.provider.start(&host)).await.is_none();
    stand.proxy.heal();
    stand.next();
    stand.start(&mut host).await.unwrap_or_else(|error| panic!("{fault:?} at call {n}: {error:?}"));
    assert_eq!(stand.servers(&host).await.len(), 1, "{fault:?} at call {n}");
    let listed = stand.provider.list().await.unwrap();
    assert!(listed.iter().all(|machine| machine.host == host.id), "{fault:?} at call {n}: {listed:?}");
    stand.stop(&host).await;
    nothing_is_left(&stand, &host, &format!("{fault:?} at call {n} of a start")).await;
    lost
}

/// The same in a stop.
async fn lost_in_stop(n: usize, fault: Fault) -> bool {
    let mut stand = Stand::new("floating_ip_pool = \"public\"").await;
    let host = stand.started().await;
    for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
        if stand.user.list("network", "/v2.0/floatingips", "floatingips").await.iter().any(|a| of(a, &host)) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    stand.proxy.fail(n, 1, fault.clone(), |_| true);
    let lost = until_lost(&stand, stand.stop(&host)).await.is_none();
    stand.proxy.heal();
    stand.next();
    stand.stop(&host).await;
    nothing_is_left(&stand, &host, &format!("{fault:?} at call {n} of a stop")).await;
    lost
}

fn of(item: &Value, host: &rouse_master::core::record::Host) -> bool {
    item.to_string().contains(host.id.as_str())
}

async fn nothing_is_left(stand: &Stand, host: &rouse_master::core::record::Host, when: &str) {
    assert_eq!(stand.servers(host).await, [] as [Value; 0], "{when}");
    for (path, key) in [("/v2.0/ports", "ports"), ("/v2.0/floatingips", "floatingips")] {
        let left = stand.user.list("network", path, key).await;
        assert!(!left.iter().any(|item| of(item, host)), "{when}: {left:?}");
    }
    assert_eq!(stand.provider.list().await.unwrap(), [], "{when}");
}

/// Some calls at once, since most of the time passes with waiting, until there are no more. How many there are.
async fn at_every_call<F: Future<Output = bool> + Send + 'static>(lost: fn(usize, Fault) -> F) -> usize {
    let mut calls = 0;
    for first in (0..CALLS).step_by(AT_ONCE) {
        let before = calls;
        for fault in [Fault::Hang, Fault::HangAfter] {
            let tasks: Vec<_> = (first..first + AT_ONCE).map(|n| tokio::spawn(lost(n, fault.clone()))).collect();
            for (n, task) in (first..).zip(tasks) {
                if task.await.unwrap() {
                    calls = calls.max(n + 1);
                }
            }
        }
        if calls == before {
            return calls;
        }
    }
    panic!("a start or stop of more than {CALLS} calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_is_lost_while_it_starts_a_host() {
    let calls = at_every_call(lost_in_start).await;
    assert!(calls >= 4, "look, make, look at it: {calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_is_lost_while_it_stops_a_host() {
    let calls = at_every_call(lost_in_stop).await;
    assert!(calls >= 4, "look, delete, look whether it is gone, give back the address: {calls}");
}
