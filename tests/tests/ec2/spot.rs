//! The spot market. tests/ec2/server.py decides whether a bid is high enough, in the form of AWS and as we understand
//! its documentation. Other behaviour of the real market cannot be tested here.

use crate::fixture::Ec2Fixture;
use rouse_master::core::event::StartError;
use rouse_master::hosts::Provider as _;
use rouse_tests::ec2::{Cloud, refusal};
use serde_json::json;

const MANUAL: &str = "placement = \"b\"\nspot_instance = true\nmax_spot_price = 0.09\nprice_multiplier = 1.15\n";

fn requests(cloud: &Cloud) -> String {
    cloud.call("DescribeSpotInstanceRequests", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bid_is_the_days_average_times_the_factor() {
    let fixture = Ec2Fixture::new(MANUAL).await;
    fixture.cloud.set(&json!({ "spot_prices": { "m5.large": ["0.04", "0.05", "0.06", "0.05"] } }));
    let (host, made) = fixture.started().await;
    let order = host.launch.as_ref().unwrap();
    assert_eq!(order.price, Some(0.05), "the market's price is paid, not the bid");
    assert!(order.spec.contains("\"most\":\"0.0575\""), "{}", order.spec);
    assert_eq!((made["spot"].as_bool(), made["zone"].as_str()), (Some(true), Some("us-west-2b")));
    let asked = requests(&fixture.cloud);
    assert!(asked.contains("<spotPrice>0.0575") && asked.contains(&host.id.0), "tagged and priced: {asked}");
    fixture.gone(&host).await;
    assert!(!requests(&fixture.cloud).contains("<state>active"), "the request ends with it");
    // Never above the maximum, even if that is not enough: refused, reported, and cancelled.
    fixture.cloud.set(&json!({ "spot_prices": { "m5.large": ["0.2"] } }));
    let mut host = fixture.host();
    fixture.prepare(&mut host, 0).await.unwrap();
    let Err(StartError::Capacity(text)) = fixture.start(&mut host).await else {
        panic!("its price is above the maximum")
    };
    for part in ["below the spot price", "price-too-low", "bid 0.09", "m5.large in us-west-2b"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!requests(&fixture.cloud).contains("<state>open"), "it is given up");
    assert!(fixture.cloud.alive().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_spot_capacity_the_next_type_and_then_on_demand() {
    let more = "instance_type = [\"m5.large\", \"c5.large\"]\nplacement = [\"a\", \"b\"]\nspot_instance = true\n\
                on_demand_fallback = true\nprice_per_hour = 0.1\n";
    let fixture = Ec2Fixture::new(more).await;
    fixture.cloud.set(&json!({ "spot_status": "capacity-not-available" }));
    let mut host = fixture.host();
    let mut tokens = Vec::new();
    let mut tried = Vec::new();
    for number in 0.. {
        fixture.prepare(&mut host, number).await.unwrap();
        let order = host.launch.clone().unwrap();
        let spec: serde_json::Value = serde_json::from_str(&order.spec).unwrap();
        tokens.push(spec["token"].to_string());
        tried.push(format!(
            "{} {} {}",
            spec["kind"].as_str().unwrap(),
            spec["zone"].as_str().unwrap(),
            !spec["spot"].is_null()
        ));
        assert_eq!(order.more, number < 7);
        match fixture.start(&mut host).await {
            Ok(_) => break,
            Err(StartError::Capacity(text)) => assert!(text.contains("no capacity"), "{text}"),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(
        tried,
        [
            "m5.large us-west-2a true",
            "m5.large us-west-2b true",
            "c5.large us-west-2a true",
            "c5.large us-west-2b true",
            "m5.large us-west-2a false"
        ]
    );
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 5, "each its own token");
    assert_eq!((fixture.made(&host)["spot"].as_bool(), host.launch.as_ref().unwrap().price), (Some(false), Some(0.1)));
    fixture.gone(&host).await;
    assert!(matches!(fixture.prepare(&mut host, 8).await, Err(StartError::Capacity(_))), "there is no ninth");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_left_behind_is_found_by_the_audit() {
    let fixture = Ec2Fixture::new(MANUAL).await;
    fixture.cloud.set(&json!({ "spot_status": "capacity-not-available" }));
    fixture.cloud.fail("CancelSpotInstanceRequests", 0, 1, refusal(400, "UnauthorizedOperation"));
    let mut host = fixture.host();
    fixture.prepare(&mut host, 0).await.unwrap();
    assert!(matches!(fixture.start(&mut host).await, Err(StartError::Capacity(_))));
    let listed = fixture.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].handle.starts_with("sir-") && listed[0].host == host.id, "{listed:?}");
    fixture.provider.terminate_listed(&listed[0]).await.unwrap();
    assert_eq!(fixture.list().await.unwrap(), []);
}
