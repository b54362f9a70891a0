//! Regions and accounts: one that refuses, hangs or is gone for good hides only its own hosts.

use crate::fixture::{Ec2Fixture, provider_in};
use rouse_master::config::Config;
use rouse_master::core::event::{Listing, Owner, Termination};
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_tests::contract::OWNER;
use rouse_tests::ec2::{Cloud, KEY, is_in, refusal, with_defaults};
use rouse_tests::proxy::Fault;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Workers `a`, `b`, … in these regions.
fn in_regions(cloud: &Cloud, regions: &[&str]) -> Config {
    let mut text = String::new();
    for (name, region) in ["a", "b"].iter().zip(regions) {
        let section = with_defaults(&cloud.endpoint(), &format!("region = \"{region}\"\n"));
        text.push_str(&format!("[[worker]]\nname = \"{name}\"\npassword = \"x\"\n[worker.ec2]\n{section}\n"));
    }
    Config::parse(&text, Path::new("rouse.toml")).unwrap()
}

/// A fixture with a host in each of two regions, as the ledger has them.
async fn in_two_regions() -> (Ec2Fixture, Vec<Host>) {
    let cloud = Cloud::start().await;
    let config = in_regions(&cloud, &["us-west-2", "eu-west-1"]);
    let fixture = Ec2Fixture::with(cloud, config);
    let mut hosts = Vec::new();
    for (worker, plan) in &fixture.config.plan.workers {
        let mut host = fixture.host();
        host.worker = worker.clone();
        host.place = plan.latent.as_ref().unwrap().place.to_string();
        fixture.prepare(&mut host, 0).await.unwrap();
        fixture.start(&mut host).await.unwrap();
        hosts.push(host);
    }
    (fixture, hosts)
}

fn handles(listing: &Listing) -> Vec<Option<&str>> {
    listing.machines.iter().map(|machine| Some(machine.handle.as_str())).collect()
}

fn unlisted(listing: &Listing) -> Vec<Option<&str>> {
    listing.unlisted.iter().map(|one| one.place.as_deref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_refuses_or_hangs_hides_only_itself() {
    let (fixture, hosts) = in_two_regions().await;
    let [there, lost] = hosts.as_slice() else { panic!("there are two") };
    for fault in [refusal(401, "AuthFailure"), refusal(403, "OptInRequired"), Fault::Hang] {
        let name = format!("{fault:?}");
        fixture.cloud.proxy.fail(0, 99, fault, |request| is_in(request, "eu-west-1"));
        let begin = rouse_master::clock::now();
        let listing = fixture.provider.list().await.unwrap();
        assert_eq!(handles(&listing), [there.handle.as_deref()], "{name}");
        assert_eq!(unlisted(&listing), [Some(lost.place.as_str())], "{name}: {listing:?}");
        let taken = rouse_master::clock::now().since(begin);
        assert!(taken < Duration::from_secs(40), "{name}: an audit has no more time: {taken:?}");
        // What is an orphan there is ended, whatever the other one does.
        assert_eq!(listing.machines[0].owner, Owner::Ours);
        fixture.cloud.proxy.heal();
    }
    fixture.cloud.proxy.fail(0, 999, refusal(401, "AuthFailure"), |request| is_in(request, "eu-west-1"));
    let orphan = fixture.provider.list().await.unwrap().machines.remove(0);
    while fixture.provider.terminate_listed(&orphan).await.unwrap() != Termination::Gone {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Of one that no list has, nobody says that it is gone as long as a place cannot be listed.
    let mut elsewhere = orphan;
    elsewhere.handle = "i-0000000000000dead".to_owned();
    let why = fixture.provider.terminate_listed(&elsewhere).await.unwrap_err();
    assert!(why.contains(&lost.place), "{why}");
    fixture.cloud.proxy.heal();
    assert_eq!(handles(&fixture.provider.list().await.unwrap()), [lost.handle.as_deref()]);
    fixture.gone(lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_was_given_up_is_listed_no_more() {
    let (mut fixture, hosts) = in_two_regions().await;
    let [there, lost] = hosts.as_slice() else { panic!("there are two") };
    assert_eq!(lost.place, format!("{}, eu-west-1 with key {KEY}", fixture.cloud.endpoint()));
    // The account leaves the configuration, with its key: the master is started again, and cannot reach it any more.
    let other = with_defaults(&fixture.cloud.endpoint(), "identifier = \"AKIAOTHER\"\nsecret_identifier = \"s\"\n");
    let text = format!("[[worker]]\nname = \"a\"\npassword = \"x\"\n[worker.ec2]\n{other}\n");
    fixture.config = Config::parse(&text, Path::new("rouse.toml")).unwrap();
    fixture.restart();
    let listing = fixture.provider.list().await.unwrap();
    assert_eq!(unlisted(&listing), [Some(lost.place.as_str())], "the other region has a successor");
    assert!(listing.unlisted[0].why.contains("no longer has its secret"), "{listing:?}");
    assert_eq!(handles(&listing), [there.handle.as_deref()]);
    // Given up, over restarts too; what the configuration has stays.
    fixture.provider.forget_place(&lost.place);
    fixture.provider.forget_place(&format!("{}, us-west-2 with key AKIAOTHER", fixture.cloud.endpoint()));
    for _ in 0..2 {
        let listing = fixture.provider.list().await.unwrap();
        assert_eq!((unlisted(&listing), handles(&listing)), (Vec::new(), vec![there.handle.as_deref()]));
        fixture.restart();
    }
    // With the account back it is an orphan, and ended as one.
    let both = in_regions(&fixture.cloud, &["us-west-2", "eu-west-1"]);
    let again = provider_in(fixture.dir.path(), OWNER, &both, mpsc::channel(8).0);
    assert_eq!(handles(&again.list().await.unwrap()).len(), 2);
}
