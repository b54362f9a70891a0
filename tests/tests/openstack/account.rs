//! Who we are: what Keystone takes, and what is said where it does not.

use super::stand::Stand;
use rouse_master::core::event::StartError;
use rouse_master::hosts::Provider as _;
use rouse_tests::openstack::Cloud;
use rouse_tests::proxy::Fault;
use serde_json::json;

/// Whether a list can be had with this section; else why not.
async fn list(more: &str) -> Result<(), String> {
    Stand::new(more).await.provider.list().await.map(|listed| assert!(listed.is_empty()))
}

/// A line with Keystone's address in another form.
fn auth_url(replace: &str, by: &str) -> String {
    format!("os_auth_url = \"{}\"", Cloud::shared().url("identity").replace(replace, by))
}

#[tokio::test]
async fn version_3_is_found_from_any_address_of_keystone() {
    for (replace, by) in [("/v3", "/v3/"), ("/v3", "/v2.0"), ("/v3", "/v2.0/"), ("/v3", ""), ("/v3", "/")] {
        list(&auth_url(replace, by)).await.unwrap_or_else(|why| panic!("{by}: {why}"));
    }
    let why = list(&auth_url("/v3", "/elsewhere")).await.unwrap_err();
    assert!(why.contains("there is no Keystone"), "{why}");
}

#[tokio::test]
async fn a_keystone_without_version_3_is_told_of() {
    let old = "{\"versions\": {\"values\": [{\"id\": \"v2.0\", \"status\": \"stable\"}]}}";
    let stand = Stand::new("").await;
    let identity = Cloud::shared().address("identity");
    let front = format!("os_auth_url = \"http://{}/v2.0\"", stand.proxy.front(identity));
    stand.proxy.fail(0, 1, Fault::Refuse { status: 300, head: "X-Keystone: old", body: old }, |r| r.path == "/");
    let why = list(&front).await.unwrap_err();
    assert!(why.contains("version 3") && why.contains("v2.0"), "{why}");
    stand.proxy.heal();
    list(&front).await.unwrap();
}

#[tokio::test]
async fn region_and_domains_are_used() {
    list("os_region_name = \"RegionOne\"\nos_user_domain = \"Default\"\nos_project_domain = \"default\"")
        .await
        .unwrap();
    let why = list("os_region_name = \"RegionTwo\"").await.unwrap_err();
    assert!(why.contains("RegionTwo") && why.contains("RegionOne"), "{why}");
    let why = list("os_user_domain = \"nowhere\"").await.unwrap_err();
    assert!(why.contains("401"), "{why}");
}

#[tokio::test]
async fn wrong_credentials_are_told_as_such() {
    for more in ["os_password = \"wrong\"", "os_username = \"nobody\"", "os_project_domain = \"nowhere\""] {
        let stand = Stand::new(more).await;
        let mut host = stand.host();
        match stand.prepare(&mut host).await {
            Err(StartError::Auth(why)) => assert!(why.contains("401") && !why.contains("wrong"), "{why}"),
            other => panic!("{more}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_application_credential_does_as_well() {
    let cloud = Cloud::shared();
    let user = cloud.user("rouse").await;
    let body = json!({ "application_credential": { "name": format!("tests-{}", std::process::id()) } });
    let path = format!("/users/{}/application_credentials", user.id);
    let (status, told) = user.ask("POST", "identity", &path, Some(body)).await;
    assert_eq!(status, 201, "{told}");
    let text = |key: &str| told["application_credential"][key].as_str().unwrap().to_owned();
    let section = |secret: &str| {
        format!("os_application_credential_id = \"{}\"\nos_application_credential_secret = \"{secret}\"", text("id"))
    };
    let stand = Stand::new(&section(&text("secret"))).await;
    let host = stand.started().await;
    stand.stop(&host).await;
    let why = list(&section("wrong")).await.unwrap_err();
    assert!(why.contains("401"), "{why}");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let stand = Stand::new("").await;
    let host = stand.started().await;
    stand.proxy.take_seen();
    let refusal = Fault::Refuse { status: 401, head: "X-Token: old", body: "{}" };
    stand.proxy.fail(0, 1, refusal.clone(), |r| r.is("GET", "/servers/detail"));
    assert_eq!(stand.provider.list().await.unwrap().len(), 1);
    let logins = |seen: Vec<rouse_tests::proxy::Request>| seen.iter().filter(|r| r.is("POST", "/auth/tokens")).count();
    assert_eq!(logins(stand.proxy.take_seen()), 1);
    // Nova no longer takes any: it is not asked for ever.
    stand.proxy.fail(0, 100, refusal, |r| r.is("GET", "/servers/detail"));
    let why = stand.provider.list().await.unwrap_err();
    assert!(why.contains("401"), "{why}");
    assert_eq!(logins(stand.proxy.take_seen()), 1);
    stand.proxy.heal();
    stand.stop(&host).await;
}

#[tokio::test]
async fn a_token_serves_many_calls() {
    let stand = Stand::new("").await;
    for _ in 0..3 {
        stand.provider.list().await.unwrap();
    }
    let seen = stand.proxy.take_seen();
    assert_eq!(seen.iter().filter(|r| r.is("POST", "/auth/tokens")).count(), 1);
}
