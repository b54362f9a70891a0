//! `rouse check --online` with a cloud, and the sources of credentials.

use rouse_master::core::event::StartError;
use rouse_tests::ec2::{Cloud, KEY, config_of, with_defaults};
use rouse_tests::harness::check_online;
use serde_json::json;
use std::path::Path;

fn check(dir: &Path, section: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    // The same text as a configuration that can be read.
    config_of("w", section);
    let text = format!("[[worker]]\nname = \"w\"\npassword = \"x\"\nrun_as = \"build\"\n[worker.ec2]\n{section}\n");
    check_online(dir, &text, env)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_would_be_bought_and_makes_nothing() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    cloud.set(&json!({ "spot_prices": { "m5.large": ["0.04", "0.06"] }, "key": KEY }));
    let spot = "valid_ami_location_regex = '.*/rouse-worker-(\\d+)/.*'\nspot_instance = true\nmax_spot_price = 0.09\n\
                price_multiplier = 1.2\n";
    let section = |more: &str| with_defaults(&cloud.endpoint(), more);
    let (code, said) = check(dir.path(), &section(spot), &[]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["boots ami-0b0b0010", "would bid 0.06 USD", "its current price is 0.06", "will be made"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let calls = cloud.calls();
    let looks = |call: &String| call.starts_with("Describe") || call == "RunInstances";
    assert!(calls.iter().all(looks) && cloud.instances().is_empty(), "{calls:?}");
    // What is wrong is a fault: no image, a key that AWS does not know.
    let (code, said) = check(dir.path(), &section("ami = \"ami-0000dead\"\n"), &[]);
    assert!(code == Some(2) && said.contains("the image is gone"), "{said}");
    let wrong = "identifier = \"AKIAWRONG\"\nsecret_identifier = \"x\"\n";
    let (code, said) = check(dir.path(), &section(wrong), &[]);
    assert!(code == Some(2) && said.contains("does not know the credentials"), "{said}");
    // Without keys in the section: from the environment, from the credentials file, from a profile of it.
    let bare = section("").lines().filter(|l| !l.contains("identifier")).collect::<Vec<_>>().join("\n") + "\n";
    let (code, said) = check(dir.path(), &bare, &[]);
    assert!(code == Some(2) && said.contains("cannot query the image"), "no credentials anywhere: {said}");
    let env = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "secret")];
    assert_eq!(check(dir.path(), &bare, &env).0, Some(0));
    std::fs::create_dir(dir.path().join(".aws")).unwrap();
    let file = format!(
        "[default]\naws_access_key_id = {KEY}\naws_secret_access_key = secret\n[ci]\naws_access_key_id = AKIACI\naws_secret_access_key = secret\n"
    );
    std::fs::write(dir.path().join(".aws/credentials"), file).unwrap();
    assert_eq!(check(dir.path(), &bare, &[]).0, Some(0));
    cloud.set(&json!({ "key": "AKIACI" }));
    assert_eq!(
        check(dir.path(), &(bare.clone() + "profile = \"ci\"\n"), &env).0,
        Some(0),
        "a profile that is named is taken"
    );
    assert_eq!(check(dir.path(), &bare, &[]).0, Some(2), "and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_disk_and_security_group_are_those_of_image_and_network() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let value =
        |text: &str, tag: &str| text.split_once(&format!("<{tag}>")).unwrap().1.split('<').next().unwrap().to_owned();
    let other = value(&cloud.call("CreateVpc", &[("CidrBlock", "10.9.0.0/16")]), "vpcId");
    let subnet = value(&cloud.call("CreateSubnet", &[("VpcId", &other), ("CidrBlock", "10.9.1.0/24")]), "subnetId");
    let group = [("GroupName", "builders"), ("GroupDescription", "ours"), ("VpcId", &*other)];
    let group = value(&cloud.call("CreateSecurityGroup", &group), "groupId");
    let checked = |more: &str| check(dir.path(), &with_defaults(&cloud.endpoint(), more), &[]);
    let (code, said) = checked("block_devices = [{ device = \"/dev/sda1\", size_gb = 100 }]\n");
    assert!(code == Some(2) && said.contains("/dev/sda1") && said.contains("/dev/xvda"), "{said}");
    assert_eq!(checked("block_devices = [{ device = \"/dev/xvda\", size_gb = 100 }]\n").0, Some(0));
    for by in ["security_name = \"builders\"\n".to_owned(), format!("security_group_ids = \"{group}\"\n")] {
        let (code, said) = checked(&by);
        assert!(code == Some(2) && said.contains(&other), "{by}: {said}");
        let (code, said) = checked(&format!("{by}subnet_id = \"{subnet}\"\n"));
        assert_eq!(code, Some(0), "{by}: {said}");
    }
    let (code, said) = checked("security_group_ids = \"sg-0123\"\n");
    assert!(code == Some(2) && said.contains("sg-0123 not found"), "{said}");
    // What a start says is what `rouse why` shows.
    for (more, word) in [
        ("security_name = \"builders\"\n", &*other),
        ("block_devices = [{ device = \"/dev/sda1\", size_gb = 100 }]\n", "/dev/xvda"),
    ] {
        let fixture =
            crate::fixture::Ec2Fixture::with(Cloud::start().await, rouse_tests::ec2::config(&cloud.endpoint(), more));
        let refused = fixture.prepare(&mut fixture.host(), 0).await;
        assert!(matches!(&refused, Err(StartError::Rejected(text)) if text.contains(word)), "{refused:?}");
    }
    assert!(cloud.instances().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_logs_in_with_its_role() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    cloud.set(&json!({ "key": "ASIAROLE" }));
    let keys = json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        "AccessKeyId": "ASIAROLE", "SecretAccessKey": "secret", "Token": "of the session",
    });
    let imds = cloud.metadata(&json!({
        "meta-data/iam/security-credentials": "rouse-master",
        "meta-data/iam/security-credentials/rouse-master": keys.to_string(),
        "meta-data/placement/region": "us-west-2",
    }));
    // Neither keys nor a region nor an endpoint of a user's own: all of it is AWS's to say.
    let all = with_defaults(&cloud.endpoint(), "");
    let ours = |line: &&str| {
        !["identifier", "secret_identifier", "region", "endpoint_url"].iter().any(|key| line.starts_with(key))
    };
    let bare = all.lines().filter(ours).collect::<Vec<_>>().join("\n") + "\n";
    let endpoint = cloud.endpoint();
    let env = [("AWS_ENDPOINT_URL_EC2", endpoint.as_str()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.as_str())];
    let (code, said) = check(dir.path(), &bare, &env);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("us-west-2"), "{said}");
    // A role that AWS does not know any more; and with an endpoint in the section nobody asks the metadata service.
    cloud.set(&json!({ "key": "ASIAANOTHER" }));
    let (code, said) = check(dir.path(), &bare, &env);
    assert!(code == Some(2) && said.contains("does not know the credentials"), "{said}");
    cloud.set(&json!({ "key": "ASIAROLE" }));
    let own = format!("{bare}endpoint_url = \"{endpoint}\"\n");
    assert_eq!(check(dir.path(), &own, &env).0, Some(2));
}
