//! `rouse check --online` with a cloud.

use rouse_tests::harness::check_online;
use rouse_tests::openstack::{Cloud, OTHER, USER, section};
use std::path::Path;

fn check(dir: &Path, section: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let text = format!("[[worker]]\nname = \"w-{{1..3}}\"\npassword = \"x\"\nrun_as = \"build\"\n{section}\n");
    check_online(dir, &text, env)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_would_be_booted_and_what_is_missing() {
    let cloud = Cloud::shared();
    let user = cloud.user(OTHER).await;
    let dir = tempfile::tempdir().unwrap();
    let ours = format!("os_tenant_name = \"{OTHER}\"\n");
    let of = |more: &str| section(cloud.url("identity"), &(ours.clone() + more));
    let images = user.list("image", "/v2/images", "images").await;
    let id = |name: &str| images.iter().find(|i| i["name"] == name).unwrap()["id"].as_str().unwrap().to_owned();
    let all = "image = { name_regex = \"rouse-base-.*\" }\nnetworks = \"private\"\nfloating_ip_pool = \"public\"\n\
               security_groups = [\"builders\"]\navailability_zone = \"nova\"\nboot_volume_gb = 3";
    let (code, said) = check(dir.path(), &of(all), &[]);
    let boots = format!("w-{{1..3}}: boots {} (rouse-base-2) as 1\n", id("rouse-base-2"));
    assert!(code == Some(0) && said.contains(&boots), "{said}");
    assert_eq!(said.matches("boots").count(), 1, "once for the template: {said}");
    for (more, expected) in [
        ("flavor = \"m1.tiny\"", "\"m1.tiny\""),
        ("image = \"rouse-base\"", "no image of that name"),
        ("networks = \"nowhere\"", "network \"nowhere\""),
        ("floating_ip_pool = \"private\"", "pool of floating addresses \"private\""),
        ("key_name = \"nobody\"", "key pair \"nobody\""),
        ("security_groups = [\"builders\", \"nobody\"]", "security group \"nobody\""),
        ("availability_zone = \"moon\"", "availability zone \"moon\""),
        ("os_password = \"wrong\"", "401"),
        ("os_region_name = \"Elsewhere\"", "RegionOne"),
        ("cloud = \"none\"", "clouds.yaml"),
    ] {
        let (code, said) = check(dir.path(), &of(more), &[]);
        assert!(code == Some(2) && said.contains(expected), "{more}: {said}");
    }
    // Without a room for one more it is said, and is no fault: its own hosts may be in there.
    let (code, said) = check(dir.path(), &of("flavor = \"m1.huge\""), &[]);
    assert!(code == Some(0) && said.contains("no room for another"), "{said}");
    // The account from the environment, and from a file; never from both.
    let bare = "[worker.openstack]\nflavor = \"m1.small\"\nimage = \"something-else\"\n";
    let (code, said) = check(dir.path(), bare, &[]);
    assert!(code == Some(2) && said.contains("os_username"), "{said}");
    let url = cloud.url("identity");
    let env = [("OS_AUTH_URL", url), ("OS_USERNAME", USER.0), ("OS_PASSWORD", USER.1), ("OS_PROJECT_NAME", OTHER)];
    assert_eq!(check(dir.path(), bare, &env).0, Some(0));
    let yaml = format!(
        "clouds:\n  ours:\n    auth: {{auth_url: '{url}', username: {}, password: {}, project_name: {OTHER}}}\n",
        USER.0, USER.1
    );
    std::fs::create_dir_all(dir.path().join(".config/openstack")).unwrap();
    std::fs::write(dir.path().join(".config/openstack/clouds.yaml"), yaml).unwrap();
    assert_eq!(check(dir.path(), &format!("{bare}cloud = \"ours\"\n"), &[]).0, Some(0));
    assert_eq!(check(dir.path(), bare, &[("OS_CLOUD", "ours")]).0, Some(0));
    assert!(user.servers("w-").await.is_empty(), "nothing was made");
}
