//! After a refusal of AWS, only those wait whom it concerns: an instance type, an account, or nobody.

use crate::fixture::{Ec2Fixture, provider_in};
use rouse_master::core::event::StartError;
use rouse_master::hosts::Provider as _;
use rouse_tests::contract::{OWNER, boot_data};
use rouse_tests::ec2::{LIMIT, refusal};
use rouse_tests::proxy::Fault;
use std::collections::BTreeSet;
use tokio::sync::mpsc;

const SPOT: &str = "instance_type = [\"m5.large\", \"c5.large\"]\nspot_instance = true\non_demand_fallback = true\n";

#[tokio::test(flavor = "multi_thread")]
async fn another_word_for_no_room_leads_to_the_next_type_and_then_on_demand() {
    let fixture = Ec2Fixture::new(SPOT).await;
    let mut tried = Vec::new();
    let mut host = fixture.host();
    for number in 0..4 {
        fixture.prepare(&mut host, number).await.unwrap();
        let order = host.launch.clone().unwrap();
        assert_eq!((order.number, order.more), (number, number < 3));
        tried.push(order.alternative);
        fixture.cloud.fail("RunInstances", 0, 99, refusal(400, "UnfulfillableCapacity"));
        let refused = fixture.start(&mut host).await;
        fixture.cloud.proxy.heal();
        assert!(
            matches!(&refused, Err(StartError::Capacity(why)) if why.contains("UnfulfillableCapacity")),
            "{refused:?}"
        );
    }
    let names = [
        "m5.large in us-west-2, spot",
        "c5.large in us-west-2, spot",
        "m5.large in us-west-2",
        "c5.large in us-west-2",
    ];
    assert_eq!(tried, names);
    assert!(fixture.cloud.alive().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_is_not_asked_for() {
    let fixture = Ec2Fixture::new(SPOT).await;
    let host = fixture.host();
    let prepare = async |number, resting: &[&str]| {
        let resting: BTreeSet<String> = resting.iter().map(|one| (*one).to_owned()).collect();
        fixture.provider.prepare(&host, number, &resting, boot_data(&host)).await
    };
    let order = prepare(0, &["m5.large in us-west-2, spot", "c5.large in us-west-2, spot"]).await.unwrap();
    assert_eq!((order.number, order.alternative.as_str()), (2, "m5.large in us-west-2"));
    let none = prepare(3, &["c5.large in us-west-2"]).await;
    assert!(matches!(&none, Err(StartError::Capacity(why)) if why.contains("c5.large")), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_told_with_the_refusal() {
    let fixture = Ec2Fixture::new("").await;
    let Fault::Refuse { status, body, .. } = refusal(400, "RequestExpired") else { panic!("it is a refusal") };
    let head = "Date: Tue, 15 Nov 1994 08:12:31 GMT";
    fixture.cloud.fail("DescribeImages", 0, 99, Fault::Refuse { status, head, body });
    let mut host = fixture.host();
    let refused = fixture.prepare(&mut host, 0).await.unwrap_err();
    let StartError::Place(why) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("this machine's clock is ") && why.ends_with("s ahead of the cloud's"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_html_page_where_xml_was_due_blames_the_place_and_makes_nothing_twice() {
    let fixture = Ec2Fixture::new("").await;
    let page = |status| Fault::Refuse { status, head: "X-Proxy: 1", body: "<html><h1>Sorry</h1></html>" };
    let mut host = fixture.host();
    for status in [200, 404, 502] {
        fixture.cloud.fail("DescribeImages", 0, 99, page(status));
        let refused = fixture.prepare(&mut host, 0).await;
        assert!(matches!(&refused, Err(StartError::Place(_))), "{status}: {refused:?}");
        fixture.cloud.proxy.heal();
    }
    fixture.prepare(&mut host, 0).await.unwrap();
    for status in [200, 404, 502] {
        fixture.cloud.fail("RunInstances", 0, 99, page(status));
        let unclear = fixture.start(&mut host).await;
        assert!(matches!(&unclear, Err(StartError::Unknown(_))), "{status}: {unclear:?}");
        fixture.cloud.proxy.heal();
    }
    fixture.start(&mut host).await.unwrap();
    assert_eq!(fixture.cloud.alive().len(), 1);
    fixture.gone(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_instance_is_named_with_what_to_do() {
    let fixture = Ec2Fixture::new("").await;
    let (host, _) = fixture.started().await;
    fixture.cloud.fail("TerminateInstances", 0, 99, refusal(400, "OperationNotPermitted"));
    let why = fixture.provider.terminate(&host).await.unwrap_err();
    for part in [host.handle.as_deref().unwrap(), "DisableApiTermination", "--no-disable-api-termination"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    fixture.cloud.proxy.heal();
    fixture.gone(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_aws_takes_back_is_told_as_taken_back() {
    let fixture = Ec2Fixture::new("").await;
    for (reason, reclaimed) in [
        ("Server.SpotInstanceTermination", true),
        ("Server.InsufficientInstanceCapacity", true),
        ("Client.VolumeLimitExceeded", true),
        ("Client.InstanceInitiatedShutdown", false),
        ("Client.InvalidSnapshot.NotFound", false),
    ] {
        let (deaths, mut heard) = mpsc::channel(8);
        let provider = provider_in(fixture.dir.path(), OWNER, &fixture.config, deaths);
        let mut host = fixture.host();
        fixture.prepare(&mut host, 0).await.unwrap();
        host.handle = Some(provider.start(&host).await.unwrap().handle);
        fixture.cloud.kill(host.handle.as_deref().unwrap());
        let as_told = Fault::Replace("Client.UserInitiatedShutdown", reason);
        fixture.cloud.fail("DescribeInstances", 0, 99, as_told);
        let death = tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
        fixture.cloud.proxy.heal();
        assert_eq!((death.host, death.reclaimed), (host.id, reclaimed), "{reason}: {}", death.why);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn console_output_that_cannot_be_read_is_no_silence() {
    let fixture = Ec2Fixture::new("").await;
    let (host, _) = fixture.started().await;
    fixture.cloud.fail("GetConsoleOutput", 0, 99, refusal(403, "UnauthorizedOperation"));
    let told = fixture.provider.console(&host).await.unwrap_or_default();
    assert!(told.contains("cannot read the console") && told.contains("do not allow it"), "{told}");
    fixture.cloud.proxy.heal();
    fixture.gone(&host).await;
}
