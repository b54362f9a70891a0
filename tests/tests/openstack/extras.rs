//! What belongs to a server (ports, a boot volume and an address), and when it is left over.

use super::fixture::{OpenstackFixture, parsed};
use rouse_master::core::event::{ListedHost, Listing, Owner, Termination, UnlistedPlace};
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_shared::HostId;
use rouse_tests::contract::Looks;
use rouse_tests::openstack::{Cloud, section};
use rouse_tests::proxy::Fault;
use serde_json::{Value, json};

const SECTION: &str = "floating_ip_pool = \"public\"\nboot_volume_gb = 3";

/// What of a kind has the label of a host, or belongs to its server.
async fn things(fixture: &OpenstackFixture, path: &str, key: &str, host: &HostId) -> Vec<Value> {
    let service = if key == "volumes" { "volume" } else { "network" };
    let all = fixture.user.list(service, path, key).await;
    all.into_iter().filter(|item| item.to_string().contains(host.as_str())).collect()
}

const KINDS: [(&str, &str); 3] =
    [("/v2.0/ports", "ports"), ("/v2.0/floatingips", "floatingips"), ("/volumes/detail", "volumes")];

/// Waits until a host has one of each, with our label.
async fn until_labelled(fixture: &OpenstackFixture, host: &HostId) {
    for (path, key) in KINDS {
        let mut looks = Looks::default();
        let found = loop {
            let found = things(fixture, path, key, host).await;
            // An address is there before its server, and takes a port of it then.
            if found.iter().any(|item| key != "floatingips" || item["port_id"].is_string()) || !looks.again().await {
                break found;
            }
        };
        assert_eq!(found.len(), 1, "one of {key}: {found:?}");
    }
}

#[tokio::test]
async fn what_a_server_leaves_behind_is_found_and_ended() {
    let fixture = OpenstackFixture::new(SECTION).await;
    let host = fixture.started().await;
    until_labelled(&fixture, &host.id).await;
    let port = &things(&fixture, "/v2.0/ports", "ports", &host.id).await[0];
    let address = &things(&fixture, "/v2.0/floatingips", "floatingips", &host.id).await[0];
    assert_eq!((&address["port_id"], &address["status"]), (&port["id"], &Value::from("ACTIVE")));
    assert_eq!(fixture.list().await.unwrap().len(), 1, "as long as the server is there nothing is left over");
    fixture.terminate(&host).await;
    for (path, key) in KINDS {
        assert_eq!(things(&fixture, path, key, &host.id).await, [] as [Value; 0], "of {key} nothing stays");
    }
    // As it would be after a failure of the cloud's: each of them without its server.
    let id = &host.id;
    let label = format!("rouse {}/id1 {id}", fixture.master);
    let ask = |service: &'static str, path: &'static str, body: Value| {
        let user = &fixture.user;
        async move {
            let (status, json) = user.ask("POST", service, path, Some(body)).await;
            assert!(status < 300, "{json}");
        }
    };
    let networks = fixture.user.list("network", "/v2.0/networks", "networks").await;
    let network = |name: &str| networks.iter().find(|n| n["name"] == name).unwrap()["id"].clone();
    let port = json!({ "port": { "network_id": network("private"), "description": label } });
    ask("network", "/v2.0/ports", port).await;
    let address = json!({ "floatingip": { "floating_network_id": network("public"), "description": label } });
    ask("network", "/v2.0/floatingips", address).await;
    let metadata = json!({ "rouse-master": fixture.master, "rouse-master-id": "id1", "rouse-host": id });
    ask("volume", "/volumes", json!({ "volume": { "size": 1, "metadata": metadata } })).await;
    let left = fixture.list().await.unwrap();
    let kinds: Vec<&str> = left.iter().map(|l| l.handle.split(':').next().unwrap()).collect();
    assert_eq!(kinds, ["port", "address", "volume"]);
    for machine in &left {
        assert_ne!(machine.host, host.id, "the host itself is gone");
        fixture.provider.terminate_listed(machine).await.unwrap();
    }
    assert_eq!(fixture.list().await.unwrap(), []);
}

/// The things of a host as a list would have them if they were left over.
async fn as_left_over(fixture: &OpenstackFixture, host: &Host) -> Vec<ListedHost> {
    let mut all = Vec::new();
    for ((path, key), prefix) in KINDS.into_iter().zip(["port:", "address:", "volume:"]) {
        for item in things(fixture, path, key, &host.id).await {
            let handle = format!("{prefix}{}", item["id"].as_str().unwrap());
            let host = HostId(format!("{}.{key}", host.id));
            all.push(ListedHost { host, handle, identity: None, owner: Owner::Ours, suspended: false });
        }
    }
    all
}

/// A list of servers in which there is none.
const NONE: Fault = Fault::Refuse { status: 200, head: "X-Proxy: by the proxy", body: "{\"servers\": []}" };

#[tokio::test]
async fn what_a_server_has_is_never_left_over() {
    let fixture = OpenstackFixture::new(SECTION).await;
    let host = fixture.started().await;
    until_labelled(&fixture, &host.id).await;
    let all = as_left_over(&fixture, &host).await;
    assert_eq!(all.len(), 3);
    // Whether Nova's list has the server, or lacks it, as it does if the server was made after the list was read.
    for lacks in [false, true] {
        if lacks {
            fixture.proxy.fail(0, 100, NONE, |r| r.is("GET", "/servers/detail"));
        }
        let listed = fixture.list().await.unwrap();
        assert!(listed.iter().all(|one| Some(&one.handle) == host.handle.as_ref()), "{listed:?}");
        for one in &all {
            let why = fixture.provider.terminate_listed(one).await.unwrap_err();
            assert!(why.contains("has a server"), "{why}");
        }
    }
    fixture.proxy.heal();
    assert_eq!(as_left_over(&fixture, &host).await, all, "everything still exists");
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn what_an_administrator_sees_of_other_projects_is_not_left_over() {
    let mut fixture = OpenstackFixture::new("").await;
    let url = Cloud::shared().url("identity");
    let admin = "os_username = \"admin\"\nos_password = \"secret\"\nos_tenant_name = \"admin\"";
    let of =
        |name: &str, more: &str| format!("[[worker]]\nname = \"{name}\"\npassword = \"p\"\n{}", section(url, more));
    fixture.config = parsed(&(of("w2", admin) + &of("w1", SECTION)));
    fixture.next();
    let host = fixture.started().await;
    until_labelled(&fixture, &host.id).await;
    let listed = fixture.list().await.unwrap();
    assert_eq!(listed.iter().map(|one| &one.handle).collect::<Vec<_>>(), [host.handle.as_ref().unwrap()]);
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn the_end_of_a_second_server_leaves_the_address_to_the_first() {
    let fixture = OpenstackFixture::new(SECTION).await;
    let host = fixture.started().await;
    until_labelled(&fixture, &host.id).await;
    // Which of two is older Nova tells in system seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let order: Value = serde_json::from_str(&host.launch.as_ref().unwrap().spec).unwrap();
    let body = json!({ "server": order["server"] });
    let (status, json) = fixture.user.ask("POST", "compute", "/servers", Some(body)).await;
    assert_eq!(status, 202, "{json}");
    let listed = fixture.list().await.unwrap();
    let (first, second): (Vec<_>, Vec<_>) = listed.iter().partition(|one| one.host == host.id);
    assert_eq!((first.len(), second.len()), (1, 1), "{listed:?}");
    assert_eq!(second[0].handle, json["server"]["id"].as_str().unwrap());
    let mut looks = Looks::default();
    while fixture.provider.terminate_listed(second[0]).await != Ok(Termination::Gone) {
        assert!(looks.again().await, "it does not end");
    }
    assert_eq!(things(&fixture, "/v2.0/floatingips", "floatingips", &host.id).await.len(), 1);
    fixture.terminate(&host).await;
    assert_eq!(things(&fixture, "/v2.0/floatingips", "floatingips", &host.id).await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_list_has_what_answered_if_something_did_not() {
    let mut fixture = OpenstackFixture::new("").await;
    let host = fixture.started().await;
    let handle = host.handle.clone().unwrap();
    let partial_list = |listed: Result<Listing, String>, words: &str| {
        let Listing { machines, unlisted } = listed.unwrap();
        let told = |one: &UnlistedPlace| one.place.is_some() && one.why.contains(words);
        assert!(!unlisted.is_empty() && unlisted.iter().all(told), "{unlisted:?}");
        assert_eq!(machines.iter().map(|one| one.handle.as_str()).collect::<Vec<_>>(), [&handle], "{words}");
        machines
    };
    // A service that may have something left over.
    fixture
        .proxy
        .fail(0, 100, Fault::Refuse { status: 403, head: "X-Proxy: no", body: "{}" }, |r| r.is("GET", "/ports"));
    partial_list(fixture.provider.list().await, "403");
    fixture.proxy.heal();
    // Another account, which is wrong, or cannot even be used.
    let url = Cloud::shared().url("identity");
    let of =
        |name: &str, more: &str| format!("[[worker]]\nname = \"{name}\"\npassword = \"p\"\n{}", section(url, more));
    let mut json = Vec::new();
    for (more, words) in [("os_password = \"wrong\"", "401"), ("cloud = \"nowhere\"", "clouds.yaml")] {
        fixture.config = parsed(&(of("w2", more) + &of("w1", "")));
        fixture.next();
        json = partial_list(fixture.provider.list().await, words);
    }
    // What is an orphan among them is ended; whether it is in the other cloud, too, nobody knows.
    assert_eq!(fixture.provider.terminate_listed(&json[0]).await, Ok(Termination::Requested));
    let mut looks = Looks::default();
    while !fixture.servers(&host).await.is_empty() {
        assert!(looks.again().await, "it does not end");
    }
    let why = fixture.provider.terminate_listed(&json[0]).await.unwrap_err();
    assert!(why.contains("clouds.yaml"), "{why}");
}
