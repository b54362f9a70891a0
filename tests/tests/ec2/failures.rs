//! Failures: each error has its kind, and whatever is lost, one launch spec creates one machine, which is terminated.

use crate::fixture::Ec2Fixture;
use rouse_master::core::event::{Owner, StartError, Termination};
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_master::hosts::ec2::Options;
use rouse_tests::ec2::{Cloud, KEY, config, refusal};
use rouse_tests::proxy::Fault;
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_kind() {
    let fixture = Ec2Fixture::new("").await;
    // Code, status, what it is, and words of ours for a person.
    let table = [
        ("InsufficientInstanceCapacity", 500, "capacity", "no capacity"),
        ("InstanceLimitExceeded", 400, "quota", "limit of instances"),
        ("VcpuLimitExceeded", 400, "quota", "limit of instances"),
        ("MaxSpotInstanceCountExceeded", 400, "quota", "limit of spot instances"),
        ("UnfulfillableCapacity", 400, "capacity", "UnfulfillableCapacity"),
        ("Unsupported", 400, "rejected", "this zone does not offer it"),
        ("InvalidAMIID.NotFound", 400, "rejected", "the image is gone"),
        ("InvalidParameterValue", 400, "rejected", "InvalidParameterValue"),
        ("UnauthorizedOperation", 403, "place", "do not allow"),
        ("AuthFailure", 401, "place", "does not know the credentials"),
        ("RequestLimitExceeded", 503, "place", "too many calls"),
        ("InternalError", 500, "unknown", "InternalError"),
        ("Unavailable", 503, "unknown", "Unavailable"),
    ];
    for (code, status, kind, words) in table {
        let mut host = fixture.host();
        fixture.prepare(&mut host, 0).await.unwrap();
        fixture.cloud.fail("RunInstances", 0, 99, refusal(status, code));
        let error = fixture.start(&mut host).await.unwrap_err();
        fixture.cloud.proxy.heal();
        let found = match &error {
            StartError::Capacity(_) => "capacity",
            StartError::Rejected(_) => "rejected",
            StartError::Quota(_) => "quota",
            StartError::Place(_) => "place",
            StartError::Transient(_) => "transient",
            StartError::Unknown(_) => "unknown",
        };
        assert_eq!(found, kind, "{code}: {error:?}");
        assert!(error.text().contains(words) && error.text().contains("m5.large in us-west-2"), "{code}: {error:?}");
        // Nothing was made: a stop finds nothing.
        assert_eq!(fixture.provider.terminate(&host).await, Ok(Termination::Gone), "{code}");
    }
    // Throttled now and then, the SDK tries again by itself.
    fixture.cloud.fail("RunInstances", 0, 2, refusal(503, "RequestLimitExceeded"));
    let (host, _) = fixture.started().await;
    fixture.gone(&host).await;
    // An image that is gone, and a key that is none, before anything is ordered.
    fixture.provider.configure(&config(&fixture.cloud.endpoint(), "ami = \"ami-0000dead\""));
    let mut host = fixture.host();
    let error = fixture.prepare(&mut host, 0).await.unwrap_err();
    assert!(matches!(&error, StartError::Rejected(text) if text.contains("the image is gone")), "{error:?}");
    fixture.provider.configure(&fixture.config);
    fixture.cloud.set(&json!({ "key": "AKIAANOTHER" }));
    let error = fixture.prepare(&mut host, 0).await.unwrap_err();
    assert!(matches!(&error, StartError::Place(text) if text.contains("does not know the credentials")), "{error:?}");
    assert!(fixture.list().await.unwrap_err().contains(KEY), "a list that fails is no empty list");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_buys_nothing_twice() {
    let mut fixture = Ec2Fixture::new("").await;
    for (fault, times) in [
        (Fault::LoseReply, 1),
        (Fault::LoseReply, 99),
        (Fault::LoseRequest, 2),
        (Fault::Garble(500), 1),
        (Fault::Garble(200), 9),
    ] {
        let mut host = fixture.host();
        fixture.prepare(&mut host, 0).await.unwrap();
        fixture.cloud.fail("RunInstances", 0, times, fault.clone());
        let first = fixture.start(&mut host).await;
        assert!(matches!(first, Ok(_) | Err(StartError::Unknown(_))), "{fault:?}: {first:?}");
        fixture.cloud.proxy.heal();
        // The core asks again, perhaps after a restart, word for word.
        fixture.restart();
        fixture.start(&mut host).await.unwrap();
        assert_eq!(fixture.cloud.alive(), [host.handle.clone().unwrap()], "{fault:?}");
        fixture.gone(&host).await;
        assert!(fixture.cloud.alive().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_made_without_our_hearing_of_it_is_ended() {
    let fixture = Ec2Fixture::new("").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host, 0).await.unwrap();
    fixture.cloud.fail("RunInstances", 0, 99, Fault::LoseReply);
    assert!(matches!(fixture.start(&mut host).await, Err(StartError::Unknown(_))));
    assert!(host.handle.is_none() && fixture.cloud.alive().len() == 1);
    fixture.gone(&host).await;
    assert!(fixture.cloud.alive().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_late_is_not_taken_for_gone() {
    let cloud = Cloud::start().await;
    let config = config(&cloud.endpoint(), "");
    let mut fixture = Ec2Fixture::with(cloud, config);
    fixture.cloud.set(&json!({ "lag": 3600 }));
    fixture.provider = crate::fixture::provider_in(
        fixture.dir.path(),
        rouse_tests::contract::OWNER,
        &fixture.config,
        crate::fixture::nobody(),
    )
    .with_options(Options { list_delay: rouse_tests::ec2::LIMIT });
    let mut host = fixture.host();
    fixture.prepare(&mut host, 0).await.unwrap();
    fixture.cloud.fail("RunInstances", 0, 99, Fault::LoseReply);
    assert!(matches!(fixture.start(&mut host).await, Err(StartError::Unknown(_))));
    assert_eq!(fixture.list().await, Ok(Vec::new()), "AWS does not list it yet");
    assert_eq!(fixture.provider.terminate(&host).await, Ok(Termination::Requested));
    // Before the provider's patience is over AWS lists it.
    fixture.cloud.set(&json!({ "lag": 0 }));
    fixture.gone(&host).await;
    assert!(fixture.cloud.alive().is_empty(), "and still it was ended");
}

/// Each call of a start and of a stop in turn: the master is lost before the call reaches AWS, and after AWS has carried it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_lost_between_any_two_calls_leaves_nothing() {
    let more = "spot_instance = true\nmax_spot_price = 0.09\n";
    let mut fixture = Ec2Fixture::new(more).await;
    // The first makes key pair and group, which the others find; each call of it is one to be lost at too.
    for lost in [Fault::Hang, Fault::HangAfter] {
        let mut calls = 0;
        for at in 0.. {
            let mut host = fixture.host();
            // The core's way: prepare, commit, start, commit, stop; what is committed outlives the master.
            let life = async {
                fixture.prepare(&mut host, 0).await.unwrap();
                fixture.start(&mut host).await.unwrap();
                fixture.gone(&host).await;
            };
            if !fixture.dies_at(at, &lost, life).await {
                break;
            }
            calls = at + 1;
            fixture.restart();
            after_the_crash(&fixture, &mut host).await;
            assert!(fixture.cloud.alive().is_empty(), "{lost:?} at call {at}");
        }
        assert!(calls >= 7, "only {calls} calls were lost at");
    }
}

/// What the core does with a host that it finds in its ledger: if it was ordered it is started again, word for word,
/// and then stopped; where not, there is nothing to be stopped.
async fn after_the_crash(fixture: &Ec2Fixture, host: &mut Host) {
    if host.launch.is_some() {
        let handle = host.handle.clone();
        // A stop that was under way goes on; a start that was is repeated, and finds what was made.
        if handle.is_none() {
            fixture.start(host).await.unwrap();
            let made = fixture.cloud.alive();
            assert!(made.len() <= 1, "one try bought {made:?}");
        }
    }
    fixture.gone(host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_that_may_have_hosts_is_audited() {
    let cloud = Cloud::start().await;
    let two = |first: &str, second: &str| {
        let section =
            |region: &str| rouse_tests::ec2::with_defaults(&cloud.endpoint(), &format!("region = \"{region}\"\n"));
        let text = format!(
            "[[worker]]\nname = \"a\"\npassword = \"x\"\n[worker.ec2]\n{}\n[[worker]]\nname = \"b\"\npassword = \"x\"\n[worker.ec2]\n{}\n",
            section(first),
            section(second)
        );
        rouse_master::config::Config::parse(&text, std::path::Path::new("rouse.toml")).unwrap()
    };
    let both = two("us-west-2", "eu-west-1");
    let one = two("us-west-2", "us-west-2");
    // moto has the images in every region.
    let mut fixture = Ec2Fixture::with(cloud, both);
    let mut hosts = Vec::new();
    for worker in ["a", "b"] {
        let mut host = fixture.host();
        host.worker = worker.parse().unwrap();
        fixture.prepare(&mut host, 0).await.unwrap();
        fixture.start(&mut host).await.unwrap();
        hosts.push(host);
    }
    let listed = fixture.list().await.unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().all(|l| l.owner == Owner::Ours));
    // The region leaves the configuration, and the master is started again: its host is still seen, and ended.
    fixture.config = one;
    fixture.restart();
    assert_eq!(fixture.list().await.unwrap().len(), 2);
    fixture.gone(&hosts[1]).await;
    assert_eq!(fixture.list().await.unwrap().len(), 1);
    // An orphan is ended where it is.
    let orphan = fixture.list().await.unwrap().remove(0);
    while fixture.provider.terminate_listed(&orphan).await.unwrap() != Termination::Gone {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(fixture.cloud.alive().is_empty());
    // One region that does not answer makes no list at all.
    fixture.cloud.proxy.fail(0, 99, Fault::LoseRequest, |_| true);
    assert!(fixture.list().await.is_err());
}
