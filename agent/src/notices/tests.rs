//! Each notice is passed on once, whatever the service answers in between.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::fake_metadata::Metadata as Fake;

const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";

fn interruption(time: &str) -> String {
    format!("{{\"action\": \"terminate\", \"time\": \"{time}\"}}")
}

#[tokio::test]
async fn the_gravest_notice_counts_and_odd_ones_do_not() {
    let fake = Fake::ec2("i-0123");
    let mut service = Metadata::new(Server::parse(&fake.url()).unwrap());
    assert_eq!(look(&mut service).await.unwrap(), None);
    fake.put(REBALANCE, "{\"noticeTime\": \"2026-01-02T03:04:05Z\"}");
    let rebalance = CloudNotice::Rebalance { at: "2026-01-02T03:04:05Z".to_owned() };
    assert_eq!(look(&mut service).await.unwrap(), Some(rebalance));
    fake.put(ACTION, &interruption("2026-01-02T03:06:05Z"));
    let end = CloudNotice::Interruption { action: "terminate".to_owned(), at: "2026-01-02T03:06:05Z".to_owned() };
    assert_eq!(look(&mut service).await.unwrap(), Some(end.clone()));
    for odd in ["", "terminate", "{\"action\": 5, \"time\": \"x\"}", "{\"time\": \"x\"}", &interruption("a b")] {
        fake.put(ACTION, odd);
        assert!(matches!(look(&mut service).await, Err(CloudError::Odd(_))), "{odd:?}");
    }
    fake.put(ACTION, &interruption(&"x".repeat(5_000)));
    assert!(matches!(look(&mut service).await, Err(CloudError::Http(_))));
    // One token was used for all requests; when it expires, another one is.
    assert_eq!(fake.state().made, 1);
    fake.put(ACTION, &interruption("2026-01-02T03:06:05Z"));
    fake.state().tokens.clear();
    assert_eq!(look(&mut service).await.unwrap(), Some(end));
    assert_eq!(fake.state().made, 2);
}

#[tokio::test]
async fn the_watch_goes_on_through_failures_and_ends_with_its_listener() {
    let fake = Fake::ec2("i-0123");
    fake.state().statuses.insert(ACTION.to_owned(), 500);
    let (sender, mut notices) = mpsc::channel(1);
    let watch = tokio::spawn(watch(Server::parse(&fake.url()).unwrap(), sender));
    while !fake.state().asked.contains(&format!("GET {ACTION}")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.state().statuses.clear();
    fake.put(ACTION, &interruption("t1"));
    let said = tokio::time::timeout(EVERY * 4, notices.recv()).await.unwrap().unwrap();
    assert_eq!(said, CloudNotice::Interruption { action: "terminate".to_owned(), at: "t1".to_owned() });
    drop(notices);
    tokio::time::timeout(EVERY * 4, watch).await.unwrap().unwrap();
}
