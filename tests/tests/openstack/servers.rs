//! What a section specifies, and the server that Nova creates for it.

use super::fixture::{LIMIT, OpenstackFixture};
use rouse_master::core::event::StartError;
use rouse_tests::openstack::SMALL;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;

#[tokio::test]
async fn a_server_is_tagged_in_the_call_that_creates_it() {
    let fixture = OpenstackFixture::new("meta = { team = \"ci\", rouse-host = \"lie\" }\nprice_per_hour = 0.5").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    let order = host.launch.clone().unwrap();
    assert_eq!((order.number, order.more, order.price), (0, false, Some(0.5)));
    fixture.start(&mut host).await.unwrap();
    let made = fixture.proxy.take_seen().into_iter().find(|r| r.is("POST", "/servers")).unwrap();
    assert_eq!(made.status, 202);
    let server = fixture.until_status(&host, "ACTIVE").await;
    let metadata = json!({
        "team": "ci", "rouse-master": fixture.master, "rouse-master-id": "id1", "rouse-host": host.id, "rouse-name": "w1",
    });
    assert_eq!((&server["metadata"], server["image"]["id"].as_str()), (&metadata, Some(order.image.as_str())));
    assert_eq!(host.identity, Some(format!("uuid:{}", server["id"].as_str().unwrap())));
    assert_eq!(server["flavor"]["original_name"], "m1.small");
    assert!(!format!("{server}").contains(&host.token), "the token is in no part of it that everyone may read");
    fixture.terminate(&host).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
}

/// The name of the image that a section chooses.
async fn chosen(image: &str) -> Result<String, StartError> {
    let fixture = OpenstackFixture::new(&format!("image = {image}")).await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await?;
    let id = host.launch.unwrap().image;
    let (status, json) = fixture.user.ask("GET", "image", &format!("/v2/images/{id}"), None).await;
    assert_eq!(status, 200);
    Ok(json["name"].as_str().unwrap().to_owned())
}

/// The words of a refusal.
fn rejected(result: Result<String, StartError>) -> String {
    match result {
        Err(StartError::Rejected(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_image_is_chosen_by_id_name_or_expression() {
    let fixture = OpenstackFixture::new("").await;
    let images = fixture.user.list("image", "/v2/images", "images").await;
    let id = images.iter().find(|image| image["name"] == "rouse-base-2").unwrap()["id"].as_str().unwrap();
    assert_eq!(chosen(&format!("\"{id}\"")).await.unwrap(), "rouse-base-2");
    assert_eq!(chosen("\"something-else\"").await.unwrap(), "something-else");
    assert_eq!(chosen("{ name_regex = \"rouse-base-.*\" }").await.unwrap(), "rouse-base-2");
    assert_eq!(chosen("{ name_regex = \"rouse-base-.*\", pick = \"oldest\" }").await.unwrap(), "rouse-base-1");
    for (image, expected) in [
        ("\"00000000-0000-4000-8000-000000000000\"", "there is none"),
        ("\"rouse-base\"", "no image of that name"),
        ("{ name_regex = \"base\" }", "has a name that matches"),
    ] {
        let why = rejected(chosen(image).await);
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn a_program_chooses_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("{{ command = [\"{}\", \"0.2.0\"] }}", path.display())
    };
    let find = "#!/usr/bin/env python3\nimport json, sys\nfor image in json.load(sys.stdin):\n    \
                assert image['status'] == 'active' and image['size'] == 1024 and image['created'], image\n    \
                if image['metadata'].get('rouse_agent') == sys.argv[1]: print(image['id'])\n";
    assert_eq!(chosen(&script("find", find)).await.unwrap(), "rouse-base-2");
    for (name, text, expected) in [
        ("none", "#!/bin/sh\necho there is no image yet >&2; exit 3\n", "exit status: 3: there is no image yet"),
        ("lie", "#!/bin/sh\necho 8ac9d4a4-5e03-48b0-acde-77a0345a9ab1\n", "not the id of an available image"),
    ] {
        let why = rejected(chosen(&script(name, text)).await);
        assert!(why.contains(expected) && why.contains(name), "{why}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    for (more, expected) in [
        ("flavor = \"m1.tiny\"", "\"m1.tiny\""),
        ("networks = [\"nowhere\"]", "\"nowhere\""),
        ("floating_ip_pool = \"private\"", "pool of floating addresses \"private\""),
        ("os_region_name = \"Elsewhere\"", "RegionOne"),
        ("key_name = \"nobody\"", "key_name"),
        ("security_groups = [\"nobody\"]", "nobody"),
        ("availability_zone = \"moon\"", "availability zone"),
    ] {
        let fixture = OpenstackFixture::new(more).await;
        let mut host = fixture.host();
        let why = match fixture.start(&mut host).await {
            Err(StartError::Rejected(why)) => why,
            other => panic!("{more}: {other:?}"),
        };
        assert!(why.contains(expected), "{why}");
        assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
    }
}

#[tokio::test]
async fn everything_that_a_server_may_have() {
    let fixture = OpenstackFixture::new("flavor = \"m1.medium\"\nnetworks = \"private\"\nsecurity_groups = [\"builders\"]\nkey_name = \"k1\"\nconfig_drive = true\navailability_zone = \"nova\"\nuser_data = \"#!/bin/sh\\necho hello\"").await;
    let key = json!({ "keypair": { "name": "k1" } });
    let (status, json) = fixture.user.ask("POST", "compute", "/os-keypairs", Some(key)).await;
    assert!(status == 200 || status == 201, "{json}");
    let host = fixture.started().await;
    let server = fixture.until_status(&host, "ACTIVE").await;
    assert_eq!((&server["flavor"]["original_name"], &server["key_name"]), (&json!("m1.medium"), &json!("k1")));
    assert_eq!((&server["config_drive"], &server["OS-EXT-AZ:availability_zone"]), (&json!("True"), &json!("nova")));
    let path = format!("/v2.0/ports?device_id={}", server["id"].as_str().unwrap());
    let ports = fixture.user.list("network", &path, "ports").await;
    assert_eq!(ports.len(), 1);
    fixture.terminate(&host).await;
    fixture.user.ask("DELETE", "compute", "/os-keypairs/k1", None).await;
}

#[tokio::test]
async fn a_lack_of_capacity_is_distinguished_from_an_error() {
    // No hypervisor is so large: Nova takes the server, and finds no place for it.
    let fixture = OpenstackFixture::new("flavor = \"m1.huge\"").await;
    let mut host = fixture.host();
    match fixture.start(&mut host).await {
        Err(StartError::Capacity(why)) => assert!(why.contains("No valid host"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0], "what is in error is deleted");
    // The project is full: Nova takes nothing.
    let fixture = OpenstackFixture::new(&format!("os_tenant_name = \"{SMALL}\"")).await;
    let first = fixture.started().await;
    let mut second = fixture.host();
    match fixture.start(&mut second).await {
        Err(StartError::Quota(why)) => assert!(why.contains("403"), "{why}"),
        other => panic!("{other:?}"),
    }
    fixture.terminate(&first).await;
    // The quota follows the database with a delay of Nova's own making: none here.
    fixture.start(&mut second).await.unwrap();
    fixture.terminate(&second).await;
}

#[tokio::test]
async fn a_server_that_fails_to_boot_leaves_a_reason() {
    let mut fixture =
        OpenstackFixture::new("meta = { fake_spawn_error = \"the disk is on fire\", fake_spawn_delay = \"1\" }").await;
    let mut host = fixture.host();
    let why = match fixture.start(&mut host).await {
        // It was placed, and failed later.
        Ok(()) => {
            let death = tokio::time::timeout(LIMIT, fixture.deaths.recv()).await.unwrap().unwrap();
            assert_eq!(death.host, host.id);
            death.why
        }
        Err(StartError::Rejected(why)) => why,
        Err(other) => panic!("{other:?}"),
    };
    assert!(why.contains("the disk is on fire"), "{why}");
    fixture.terminate(&host).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_list_reports_failures_from_before_the_start() {
    let mut fixture = OpenstackFixture::new("meta = { fake_spawn_error = \"late\", fake_spawn_delay = \"2\" }").await;
    let mut host = fixture.host();
    fixture.start(&mut host).await.unwrap();
    fixture.next();
    fixture.until_status(&host, "ERROR").await;
    assert_eq!(fixture.list().await.unwrap().len(), 1, "it is there until it is stopped");
    let death = tokio::time::timeout(LIMIT, fixture.deaths.recv()).await.unwrap().unwrap();
    assert!(death.host == host.id && death.why.contains("late"), "{death:?}");
    fixture.terminate(&host).await;
}
