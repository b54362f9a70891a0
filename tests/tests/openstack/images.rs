//! images/openstack: turns a disk into an image of Glance.

use super::fixture::OpenstackFixture;
use rouse_tests::harness::{Process, Said, scratch};
use rouse_tests::openstack::{Cloud, PROJECT, USER};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn give(cloud: &Cloud, dir: &Path, password: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new(&cloud.python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/openstack")).args(arguments).current_dir(dir);
    command.env_clear().env("HOME", dir).env("OS_AUTH_URL", cloud.url("identity")).env("OS_USERNAME", USER.0);
    command.env("OS_PASSWORD", password).env("OS_PROJECT_NAME", PROJECT);
    command.env("OS_USER_DOMAIN_ID", "default").env("OS_PROJECT_DOMAIN_ID", "default");
    Process::start(command, dir, "give").wait(Duration::from_secs(60))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_given_to_glance_and_booted() {
    let cloud = Cloud::shared();
    let dir = scratch("openstack-image");
    std::fs::write(dir.join("disk.raw"), vec![7; 3 << 20]).unwrap();
    let said = tokio::task::block_in_place(|| {
        assert!(give(cloud, &dir, "wrong", &["disk.raw"]).ended(1).err.contains("401"));
        assert!(give(cloud, &dir, USER.1, &["none.raw"]).ended(1).err.contains("none.raw is not a file"));
        give(cloud, &dir, USER.1, &["disk.raw", "--name", "given-1", "--property", "rouse_agent=0.3.0"]).ended(0)
    });
    let id = said.text().trim().to_owned();
    let fixture = OpenstackFixture::new("image = { name_regex = \"given-.*\" }").await;
    let path = format!("/v2/images/{id}");
    let (_, image) = fixture.user.ask("GET", "image", &path, None).await;
    let shown = ["name", "status", "size", "disk_format", "rouse_agent", "visibility"].map(|key| image[key].clone());
    assert_eq!(json!(shown), json!(["given-1", "active", 3 << 20, "raw", "0.3.0", "shared"]), "{image}");
    let host = fixture.started().await;
    assert_eq!(host.launch.as_ref().unwrap().image, id);
    fixture.terminate(&host).await;
    assert_eq!(fixture.user.ask("DELETE", "image", &path, None).await.0, 204);
}
