//! `images/ec2`: turns a disk into an image, with the AWS command line. moto keeps blocks and snapshots as AWS does,
//! but little of what an image is registered with. Therefore the test checks the call itself.

use rouse_tests::ec2::{Cloud, KEY, REGION, action, refusal};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What AWS takes at once, bytes.
const BLOCK: u64 = 512 << 10;

/// The directory of the AWS command line: that of the Python that the server runs with.
fn programs() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("venv");
    let python = Command::new(venv).arg("ec2").output().unwrap();
    let python = PathBuf::from(String::from_utf8(python.stdout).unwrap().trim());
    python.parent().unwrap().to_owned()
}

/// A command of somebody who is logged in there.
fn logged_in(program: &Path, cloud: &Cloud) -> Command {
    let mut command = Command::new(program);
    let path = format!("{}:/usr/bin:/bin", programs().display());
    command.env_clear().env("PATH", path).env("AWS_ENDPOINT_URL", cloud.endpoint()).env("AWS_DEFAULT_REGION", REGION);
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", "secret").env("AWS_MAX_ATTEMPTS", "1");
    command
}

fn make(cloud: &Cloud, disk: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/ec2");
    logged_in(&script, cloud).args(["--name", "rouse-worker-7"]).arg(disk).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_becomes_an_image() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    // Five blocks, of which two are not all zeros.
    let mut file = File::create(&disk).unwrap();
    file.set_len(5 * BLOCK - 4_096).unwrap();
    file.write_all(b"the first").unwrap();
    file.seek(SeekFrom::Start(3 * BLOCK)).unwrap();
    file.write_all(b"the fourth").unwrap();
    drop(file);
    tokio::task::block_in_place(|| {
        let made = make(&cloud, &disk);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let ami = String::from_utf8(made.stdout).unwrap();
        assert!(ami.starts_with("ami-") && ami.lines().count() == 1, "the id alone: {ami}");
        let images = cloud.call("DescribeImages", &[("ImageId.1", ami.trim())]);
        assert!(images.contains("<name>rouse-worker-7</name>"), "{images}");

        let seen = cloud.proxy.take_seen();
        let register = seen.iter().find(|request| action(request) == "RegisterImage").unwrap();
        let has = |part: &str| assert!(register.body.contains(part), "{part}: {}", register.body);
        let key = "BlockDeviceMapping.1.Ebs.SnapshotId=";
        has(key);
        let snapshot = register.body.split_once(key).unwrap().1.split('&').next().unwrap();
        for part in ["EnaSupport=true", "ImdsSupport=v2.0", "Architecture=x86_64", "RootDeviceName=%2Fdev%2Fxvda"] {
            has(part);
        }
        let aws = programs().join("aws");
        let ebs = |arguments: &[&str]| {
            let said = logged_in(&aws, &cloud).arg("ebs").args(arguments).output().unwrap();
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            String::from_utf8(said.stdout).unwrap()
        };
        let query = ["--query", "Blocks[].[BlockIndex,BlockToken]", "--output", "text"];
        let blocks = ebs(&[&["list-snapshot-blocks", "--snapshot-id", snapshot][..], &query].concat());
        let mut blocks: Vec<_> = blocks.lines().filter_map(|line| line.split_once('\t')).collect();
        // They are sent side by side.
        blocks.sort();
        let indices: Vec<&str> = blocks.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, ["0", "3"], "zeros are not sent");
        let out = dir.path().join("block").display().to_string();
        let (index, token) = blocks[1];
        let block = ["--block-index", index, "--block-token", token, &out];
        ebs(&[&["get-snapshot-block", "--snapshot-id", snapshot][..], &block].concat());
        let block = std::fs::read(&out).unwrap();
        assert!(block.len() as u64 == BLOCK && block.starts_with(b"the fourth"));

        // If it is refused the reason is said, and what was begun is named.
        cloud.fail("RegisterImage", 0, 9, refusal(403, "UnauthorizedOperation"));
        let refused = make(&cloud, &disk);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(
            said.contains("UnauthorizedOperation") && said.contains("delete-snapshot --snapshot-id snap-"),
            "{said}"
        );
        assert!(refused.stdout.is_empty());
    });
}
