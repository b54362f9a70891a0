//! Clouds and accounts: one that refuses, hangs or is gone for good hides only its own hosts.

use super::fixture::{OpenstackFixture, parsed};
use rouse_master::core::event::Listing;
use rouse_master::hosts::Provider as _;
use rouse_tests::openstack::{Cloud, OTHER, section};
use rouse_tests::proxy::{Fault, Proxy};
use std::time::Duration;

fn handles(listing: &Listing) -> Vec<Option<&str>> {
    listing.machines.iter().map(|machine| Some(machine.handle.as_str())).collect()
}

fn unlisted(listing: &Listing) -> Vec<Option<&str>> {
    listing.unlisted.iter().map(|one| one.place.as_deref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_hangs_or_is_gone_hides_only_itself_until_it_is_given_up() {
    let mut fixture = OpenstackFixture::new("").await;
    // Another cloud, as far as rouse knows: the same one by another address, and in another project.
    let cloud = Cloud::shared();
    let proxy = Proxy::start(&cloud.addresses()).await;
    let identity = cloud.address("identity");
    let other = cloud.url("identity").replace(&identity.to_string(), &proxy.front(identity).to_string());
    let worker = |name: &str, section: String| format!("[[worker]]\nname = \"{name}\"\npassword = \"p\"\n{section}");
    let here = worker("w1", section(cloud.url("identity"), ""));
    let there = worker("w2", section(&other, &format!("os_tenant_name = \"{OTHER}\"")));
    let master = "[master]\nname = \"m\"\n";
    fixture.config = parsed(&format!("{master}{here}{there}"));
    fixture.next();
    let mut hosts = vec![fixture.host(), fixture.host()];
    hosts[1].worker = "w2".parse().unwrap();
    for host in &mut hosts {
        host.place = fixture.config.plan.workers[&host.worker].latent.as_ref().unwrap().place.to_string();
        fixture.start(host).await.unwrap();
    }
    let [near, far] = hosts.as_slice() else { panic!("there are two") };
    assert_eq!(far.place, format!("{other}, user ci, project {OTHER}"));
    for (fault, path) in [
        (Fault::Hang, "/servers/detail"),
        (Fault::Refuse { status: 403, head: "X-Told: no", body: "{}" }, "/servers/detail"),
        (Fault::Hang, "/ports"),
    ] {
        let name = format!("{fault:?} {path}");
        proxy.fail(0, 99, fault, move |r| r.is("GET", path));
        let begin = rouse_master::clock::now();
        let listing = fixture.provider.list().await.unwrap();
        let taken = rouse_master::clock::now().since(begin);
        assert!(handles(&listing).contains(&near.handle.as_deref()), "{name}: {listing:?}");
        assert_eq!(unlisted(&listing), [Some(far.place.as_str())], "{name}: {listing:?}");
        assert!(taken < Duration::from_secs(40), "{name}: an audit has no more time: {taken:?}");
        proxy.heal();
    }
    assert_eq!(fixture.list().await.unwrap().len(), 2);
    // It is gone, and its section with it: it stays known by the name that its host has in the ledger.
    let kept = std::mem::replace(&mut fixture.config, parsed(&format!("{master}{here}")));
    for _ in 0..2 {
        fixture.next();
        let listing = fixture.provider.list().await.unwrap();
        assert_eq!(
            (unlisted(&listing), handles(&listing)),
            (vec![Some(far.place.as_str())], vec![near.handle.as_deref()])
        );
    }
    fixture.provider.forget_place(&near.place);
    fixture.provider.forget_place(&far.place);
    for _ in 0..2 {
        let listing = fixture.provider.list().await.unwrap();
        assert_eq!((unlisted(&listing), handles(&listing)), (Vec::new(), vec![near.handle.as_deref()]));
        fixture.next();
    }
    // Seen again, it is listed again.
    fixture.config = kept;
    fixture.next();
    assert_eq!(fixture.list().await.unwrap().len(), 2);
    for host in &hosts {
        fixture.terminate(host).await;
    }
}
