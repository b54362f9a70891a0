//! Accounts: which credentials Keystone accepts, and what the master reports if it does not accept them.

use super::fixture::{LIMIT, LOOK, OpenstackFixture, parsed};
use rouse_master::core::event::StartError;
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_tests::harness::{make_certificates, scratch};
use rouse_tests::openstack::{Cloud, OTHER, PROJECT, section};
use rouse_tests::proxy::{Fault, Proxy};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Whether a list can be had with this section; else why not.
async fn list(more: &str) -> Result<(), String> {
    OpenstackFixture::new(more).await.list().await.map(|listed| assert!(listed.is_empty()))
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
async fn a_keystone_without_version_3_is_reported() {
    let old = "{\"versions\": {\"values\": [{\"id\": \"v2.0\", \"status\": \"stable\"}]}}";
    let fixture = OpenstackFixture::new("").await;
    let identity = Cloud::shared().address("identity");
    let front = format!("os_auth_url = \"http://{}/v2.0\"", fixture.proxy.front(identity));
    fixture.proxy.fail(0, 1, Fault::Refuse { status: 300, head: "X-Keystone: old", body: old }, |r| r.path == "/");
    let why = list(&front).await.unwrap_err();
    assert!(why.contains("version 3") && why.contains("v2.0"), "{why}");
    fixture.proxy.heal();
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
async fn wrong_credentials_are_reported_as_such() {
    for more in ["os_password = \"wrong\"", "os_username = \"nobody\"", "os_project_domain = \"nowhere\""] {
        let fixture = OpenstackFixture::new(more).await;
        let mut host = fixture.host();
        match fixture.prepare(&mut host).await {
            Err(StartError::Place(why)) => assert!(why.contains("401") && !why.contains("wrong"), "{why}"),
            other => panic!("{more}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_application_credential_does_as_well() {
    let (id, secret) = application_credential(PROJECT, "one").await;
    let fixture = OpenstackFixture::new(&lines_of(&id, &secret)).await;
    let host = fixture.started().await;
    fixture.terminate(&host).await;
    let why = list(&lines_of(&id, "wrong")).await.unwrap_err();
    assert!(why.contains("401"), "{why}");
}

/// An application credential for a project: its id and secret.
async fn application_credential(project: &str, name: &str) -> (String, String) {
    let user = Cloud::shared().user(project).await;
    let body = json!({ "application_credential": { "name": format!("{name}-{}", std::process::id()) } });
    let path = format!("/users/{}/application_credentials", user.id);
    let (status, json) = user.ask("POST", "identity", &path, Some(body)).await;
    assert_eq!(status, 201, "{json}");
    let text = |key: &str| json["application_credential"][key].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

fn lines_of(id: &str, secret: &str) -> String {
    format!("os_application_credential_id = \"{id}\"\nos_application_credential_secret = \"{secret}\"")
}

async fn listed(fixture: &OpenstackFixture) -> Result<BTreeSet<String>, String> {
    let listed = fixture.list().await;
    listed.map(|all| all.into_iter().map(|machine| machine.handle).collect())
}

#[tokio::test]
async fn a_project_that_left_the_configuration_is_not_forgotten() {
    // Only the credentials distinguish their projects.
    let (one, other) = (application_credential(PROJECT, "a").await, application_credential(OTHER, "b").await);
    let of = |name: &str, (id, secret): &(String, String)| {
        let section = section(Cloud::shared().url("identity"), &lines_of(id, secret));
        format!("[[worker]]\nname = \"{name}\"\npassword = \"p\"\n{section}")
    };
    let both = parsed(&(of("w1", &one) + &of("w2", &other)));
    let alone = parsed(&of("w1", &one));
    let mut fixture = OpenstackFixture::unhurried("").await;
    fixture.config = both.clone();
    fixture.next();
    let mut hosts: Vec<Host> = vec![fixture.host(), fixture.host()];
    hosts[1].worker = "w2".parse().unwrap();
    for host in &mut hosts {
        fixture.start(host).await.unwrap();
    }
    let all: BTreeSet<_> = hosts.iter().map(|host| host.handle.clone().unwrap()).collect();
    assert_eq!(listed(&fixture).await.unwrap(), all);
    let here = fixture.servers(&hosts[0]).await;
    assert_eq!((here.len(), fixture.servers(&hosts[1]).await), (1, Vec::<Value>::new()), "each in its own project");
    // A reload takes the second out: its server is still seen.
    fixture.provider.configure(&alone);
    assert_eq!(listed(&fixture).await.unwrap(), all);
    // A restart too, and nobody has the account any more: no list is system, and a stop is not done.
    fixture.config = alone;
    fixture.next();
    let why = listed(&fixture).await.unwrap_err();
    assert!(why.contains("no worker's section names it"), "{why}");
    let why = fixture.provider.terminate(&hosts[1]).await.unwrap_err();
    assert!(why.contains("no worker's section names it"), "{why}");
    // Back again, with the account: it is found, ended, and forgotten once nothing is left.
    fixture.config = both;
    fixture.next();
    for host in &hosts {
        fixture.terminate(host).await;
    }
    assert_eq!(listed(&fixture).await.unwrap(), BTreeSet::new());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(listed(&fixture).await.unwrap(), BTreeSet::new());
    fixture.config = parsed(&of("w1", &one));
    fixture.next();
    assert_eq!(listed(&fixture).await.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named() {
    let cloud = Cloud::shared();
    let (dir, strange) = (scratch("openstack-ca"), scratch("openstack-ca-of-others"));
    make_certificates(&dir);
    make_certificates(&strange);
    let proxy = Proxy::start_tls(&cloud.addresses(), &dir).await;
    let url = format!("os_auth_url = \"https://localhost:{}/v3\"", proxy.front(cloud.address("identity")).port());
    let with = |dir: &std::path::Path| format!("{url}\nos_cacert = {:?}", dir.join("ca.pem"));
    let fixture = OpenstackFixture::new(&with(&dir)).await;
    let host = fixture.started().await;
    // All of it goes this way, the labels of its ports as well: every service has a certificate of this authority.
    let services = ["/auth/tokens", "/images", "/servers", "/ports"];
    let mut seen = Vec::new();
    for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
        seen.extend(proxy.take_seen().into_iter().map(|request| request.path));
        if services.iter().all(|path| seen.iter().any(|one| one.contains(path))) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    for path in services {
        assert!(seen.iter().any(|one| one.contains(path)), "{path}: {seen:?}");
    }
    fixture.terminate(&host).await;
    for wrong in [with(&strange), url.clone()] {
        let why = list(&wrong).await.unwrap_err();
        assert!(why.contains("certificate"), "{why}");
    }
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let fixture = OpenstackFixture::new("").await;
    let host = fixture.started().await;
    fixture.proxy.take_seen();
    let refusal = Fault::Refuse { status: 401, head: "X-Token: old", body: "{}" };
    fixture.proxy.fail(0, 1, refusal.clone(), |r| r.is("GET", "/servers/detail"));
    assert_eq!(fixture.list().await.unwrap().len(), 1);
    let logins = |seen: Vec<rouse_tests::proxy::Request>| seen.iter().filter(|r| r.is("POST", "/auth/tokens")).count();
    assert_eq!(logins(fixture.proxy.take_seen()), 1);
    // Nova no longer takes any: it is not asked forever.
    fixture.proxy.fail(0, 100, refusal, |r| r.is("GET", "/servers/detail"));
    let why = fixture.list().await.unwrap_err();
    assert!(why.contains("401"), "{why}");
    assert_eq!(logins(fixture.proxy.take_seen()), 1);
    fixture.proxy.heal();
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn a_token_serves_many_calls() {
    let fixture = OpenstackFixture::new("").await;
    for _ in 0..3 {
        fixture.list().await.unwrap();
    }
    let seen = fixture.proxy.take_seen();
    assert_eq!(seen.iter().filter(|r| r.is("POST", "/auth/tokens")).count(), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let fixture = OpenstackFixture::new("").await;
    // As if it were good for four seconds, of which the last is kept for calls that are under way.
    let short = "\"issued_at\": \"2026-01-01T00:00:00Z\", \"expires_at\": \"2026-01-01T00:00:04Z\", \"was_issued_at\":";
    fixture.proxy.fail(0, 1, Fault::Replace("\"issued_at\":", short), |r| r.is("POST", "/auth/tokens"));
    let begin = rouse_master::clock::now();
    fixture.list().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    fixture.list().await.unwrap();
    fixture.list().await.unwrap();
    let seen = fixture.proxy.take_seen();
    let logins = seen.iter().filter(|r| r.is("POST", "/auth/tokens")).count();
    let refused = seen.iter().filter(|r| r.status == 401).count();
    assert_eq!((logins, refused), (2, 0), "within {:?}", rouse_master::clock::now().since(begin));
}
