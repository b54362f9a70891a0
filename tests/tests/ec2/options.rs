//! The master orders what the section of the configuration specifies.

use crate::fixture::Ec2Fixture;
use rouse_master::core::event::StartError;
use rouse_shared::boot::find_block;
use rouse_tests::contract::boot_data;
use rouse_tests::ec2::{Cloud, IMAGE, LIMIT, action, config, config_of, with_defaults};
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    text.split_once(begin).unwrap_or_else(|| panic!("no {begin} in {text}")).1.split(end).next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_section_is_in_the_call_that_creates() {
    let cloud = Cloud::start().await;
    let subnets =
        cloud.call("DescribeSubnets", &[("Filter.1.Name", "availability-zone"), ("Filter.1.Value.1", "us-west-2b")]);
    let subnet = between(&subnets, "<subnetId>", "<");
    let more = format!(
        "placement = \"b\"\nsubnet_id = \"{subnet}\"\nkeypair_name = \"my/key\"\nsecurity_name = \"my group\"\n\
         user_data = \"#!/bin/sh\\necho hello\\n\"\ntags = {{ SomeTag = \"foo\", Name = \"mine\", rouse-host = \"forged\" }}\n\
         block_devices = [{{ device = \"/dev/xvda\", size_gb = 40, type = \"gp3\" }}]\nprice_per_hour = 0.096\n"
    );
    let config = config(&cloud.endpoint(), &more);
    let fixture = Ec2Fixture::with(cloud, config);
    let (host, made) = fixture.started().await;
    let order = host.launch.as_ref().unwrap();
    assert_eq!((order.image.as_str(), order.price, order.more), (IMAGE, Some(0.096), false));
    assert_eq!((made["type"].as_str(), made["image"].as_str()), (Some("m5.large"), Some(IMAGE)));
    assert_eq!(made["zone"], "us-west-2b");
    assert_eq!(made["shutdown"], "terminate", "a shutdown from inside ends it");
    assert_eq!(made["http_tokens"], "required", "IMDSv2 only");
    assert_eq!(made["key"], "my/key");
    let tags = &made["tags"];
    assert_eq!((tags["SomeTag"].as_str(), tags["Name"].as_str()), (Some("foo"), Some("mine")));
    assert_eq!(tags["rouse-host"], host.id.as_str(), "the tag of rouse is not replaced");
    assert_eq!((tags["rouse-master"].as_str(), tags["rouse-worker"].as_str()), (Some("contract"), Some("w-1")));
    let user_data = made["user_data"].as_str().unwrap();
    assert!(user_data.contains("#!/bin/sh\necho hello\n"), "{user_data}");
    let boot: rouse_shared::boot::BootData = toml::from_str(&find_block(user_data).unwrap()).unwrap();
    assert_eq!(boot, boot_data(&host));
    let volumes = fixture.cloud.call("DescribeVolumes", &[]);
    assert!(volumes.contains("<size>40</size>") && volumes.contains("<volumeType>gp3<"), "{volumes}");
    assert!(volumes.contains(&format!("<value>{}</value>", host.id)), "volumes are tagged too: {volumes}");
    // What was made besides, once: the key's private half is kept for root only.
    let groups = fixture
        .cloud
        .call("DescribeSecurityGroups", &[("Filter.1.Name", "group-name"), ("Filter.1.Value.1", "my+group")]);
    assert_eq!(groups.matches("<groupName>my group<").count(), 1);
    let pem = fixture.dir.path().join("ec2/my_key.pem");
    assert!(std::fs::read_to_string(&pem).unwrap().contains("PRIVATE KEY"));
    assert_eq!(pem.metadata().unwrap().mode() & 0o777, 0o600);
    fixture.gone(&host).await;
    fixture.cloud.calls();
    let (second, _) = fixture.started().await;
    assert!(
        !fixture.cloud.calls().iter().any(|call| call.starts_with("Create")),
        "the second finds what the first has made"
    );
    fixture.gone(&second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_is_picked_up_without_a_restart() {
    let fixture =
        Ec2Fixture::new("valid_ami_location_regex = '123456789012/rouse-worker-(\\d+)/image.manifest.xml'").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host, 0).await.unwrap();
    assert_eq!(host.launch.as_ref().unwrap().image, "ami-0b0b0010", "10 is more than 2");
    fixture.cloud.add_image("ami-0b0b0011", "123456789012/rouse-worker-11/image.manifest.xml");
    fixture.cloud.add_image("ami-0b0b0099", "123456789012/other-worker-99/image.manifest.xml");
    fixture.prepare(&mut host, 0).await.unwrap();
    assert_eq!(host.launch.as_ref().unwrap().image, "ami-0b0b0011");
    // Owners alone, and both; and nothing that passes.
    let endpoint = fixture.cloud.endpoint();
    for (more, expected) in [
        ("valid_ami_owners = [999988887777]", Some("ami-0b0b0002")),
        ("valid_ami_owners = 123456789012\nvalid_ami_location_regex = '.*/rouse-worker-(.*)/.*'", Some("ami-0b0b0011")),
        ("valid_ami_owners = 111111111111", None),
    ] {
        fixture.provider.configure(&config(&endpoint, more));
        match (fixture.prepare(&mut host, 0).await, expected) {
            (Ok(()), Some(image)) => assert_eq!(host.launch.as_ref().unwrap().image, image, "{more}"),
            (Err(StartError::Rejected(text)), None) => assert!(text.contains("111111111111"), "{text}"),
            (other, _) => panic!("{more}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_address_and_volumes_are_lent() {
    let cloud = Cloud::start().await;
    cloud.set(&json!({ "delay": { "pending": 1.5 } }));
    let address = cloud.call("AllocateAddress", &[("Domain", "vpc")]);
    let address = between(&address, "<publicIp>", "<").to_owned();
    let zone = [("AvailabilityZone", "us-west-2b"), ("Size", "1")];
    let volume = between(&cloud.call("CreateVolume", &zone), "<volumeId>", "<").to_owned();
    let section = with_defaults(
        &cloud.endpoint(),
        &format!("placement = \"b\"\nelastic_ip = \"{address}\"\nvolumes = [[\"{volume}\", \"/dev/sdf\"]]\n"),
    );
    let fixture = Ec2Fixture::with(cloud, config_of("solo", &section));
    let (host, _) = fixture.started().await;
    let instance = host.handle.clone().unwrap();
    let borne = || {
        let addresses = fixture.cloud.call("DescribeAddresses", &[]);
        let volumes = fixture.cloud.call("DescribeVolumes", &[("VolumeId.1", &volume)]);
        (addresses.contains(&instance), volumes.contains(&instance))
    };
    let bears = |both: bool| {
        let borne = &borne;
        async move {
            for _ in 0..LIMIT.as_millis() / 100 {
                if borne() == (both, both) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("address and volume: {:?} and not {both}", borne());
        }
    };
    bears(true).await;
    // What was taken off by somebody else is put on again by the next audit.
    fixture.cloud.call("DetachVolume", &[("VolumeId", &volume), ("InstanceId", &instance)]);
    fixture.cloud.call("DisassociateAddress", &[("PublicIp", &address)]);
    bears(false).await;
    fixture.list().await.unwrap();
    bears(true).await;
    fixture.gone(&host).await;
    bears(false).await;
    assert!(fixture.cloud.call("DescribeAddresses", &[]).contains(&address), "never released");
    assert!(fixture.cloud.call("DescribeVolumes", &[]).contains(&volume), "never deleted");
    // One that goes before it has them, and what another has.
    let other = fixture.cloud.call(
        "RunInstances",
        &[
            ("ImageId", IMAGE),
            ("InstanceType", "m5.large"),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("KeyName", "latent_rouse_worker"),
            ("Placement.AvailabilityZone", "us-west-2b"),
        ],
    );
    let other = between(&other, "<instanceId>", "<").to_owned();
    fixture.cloud.call("AttachVolume", &[("VolumeId", &volume), ("InstanceId", &other), ("Device", "/dev/sdg")]);
    fixture.cloud.calls();
    let (host, _) = fixture.started().await;
    // It looks who has the volume, and leaves it there.
    let looked =
        || fixture.cloud.proxy.has_seen(|request| action(request) == "DescribeVolumes" && request.status == 200);
    for _ in 0..LIMIT.as_millis() / 100 {
        if looked() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(looked(), "it does not look at the volume");
    fixture.gone(&host).await;
    assert!(!fixture.cloud.calls().iter().any(|call| call == "AttachVolume" || call == "DetachVolume"));
    let volumes = fixture.cloud.call("DescribeVolumes", &[("VolumeId.1", &volume)]);
    assert!(volumes.contains(&other), "volumes of another machine stay attached to it: {volumes}");
}
