//! The identity of an agent, from every source.
#![allow(clippy::unwrap_used)]

use super::firmware::tests::{BOOT_FILE, machine};
use super::*;
use crate::fake_metadata::Metadata as Fake;
use std::os::unix::fs::PermissionsExt as _;

const BOOT: &str =
    "name = \"w7\"\nhost = \"h0123456789abcdef\"\nbroker = \"amqp://127.0.0.1:5672\"\ntoken = \"hush\"\n";

fn config(text: &str) -> AgentConfig {
    AgentConfig::parse(text, "x", &Vec::new()).unwrap()
}

/// By boot data in the firmware of a machine with these files.
async fn identity(text: &str, files: &[(&str, &[u8])]) -> Result<Identity, IdentityError> {
    let dir = machine(files);
    identify_below(&config(text), dir.path()).await
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// With a file that holds the boot data, on this very machine.
async fn boot(text: &str) -> Result<Identity, IdentityError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot.toml");
    write_private(&path, text);
    identify(&config(&format!("boot_data = {path:?}"))).await
}

fn block(toml: &str) -> String {
    rouse_shared::boot::comment_block(toml)
}

const EC2: (&str, &[u8]) = ("sys/class/dmi/id/sys_vendor", b"Amazon EC2\n");
const NOVA: (&str, &[u8]) = ("sys/class/dmi/id/product_name", b"OpenStack Nova\n");
const UUID: (&str, &[u8]) = ("sys/class/dmi/id/product_uuid", b"4C4C4544-0042-3510-8052-B4C04F4E4D31\n");
const OWN: &str = "uuid:4c4c4544-0042-3510-8052-b4c04f4e4d31";
const BAKED: &str = "broker = \"amqp://mq.example.org\"\nname = \"w1\"\npassword = \"hush\"\n";
const LATENT: &str = "power_off = \"latent\"\n";

#[tokio::test]
async fn boot_data_say_it_all() {
    let identity = boot(&format!("{BOOT}identity = \"process:7\"\npower_off_after = 90\nfuture = 1\n")).await.unwrap();
    assert_eq!(identity.worker.as_str(), "w7");
    assert_eq!((identity.host.as_str(), identity.password.as_str()), ("process:7", "hush"));
    assert_eq!(identity.broker, "amqp://127.0.0.1:5672");
    assert_eq!(identity.user, "h0123456789abcdef");
    assert_eq!(identity.power_off_after, Some(Duration::from_secs(90)));
    assert!(!boot(BOOT).await.unwrap().host.is_empty(), "the machine's own");
}

#[tokio::test]
async fn errors_in_boot_data_do_not_contain_the_token() {
    for bad in ["name = \"w7\"", "token = \"hush\" oops", &BOOT.replace("amqp:", "http:"), &BOOT.replace("w7", "W7")] {
        let error = boot(bad).await.err().unwrap().to_string();
        assert!(error.contains("boot.toml") && !error.contains("hush"), "{error}");
    }
    for missing in ["boot_data = \"/nonexistent/boot.toml\"", "boot_data = \"/dev/zero\""] {
        assert!(matches!(identify(&config(missing)).await.err().unwrap(), IdentityError::Unreadable(..)));
    }
}

#[tokio::test]
async fn boot_data_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot.toml");
    write_private(&path, BOOT);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = identify(&config(&format!("boot_data = {path:?}"))).await.err().unwrap().to_string();
    assert!(error.ends_with(&format!("(mode 0644), which has a secret in it: run `chmod 640 {}`", path.display())));
}

#[tokio::test]
async fn the_firmwares_boot_data_need_no_configuration_and_no_network() {
    let data = format!("{BOOT}identity = \"uuid:of-another\"\n");
    let data = (BOOT_FILE, data.as_bytes());
    // On a cloud's machine and with a name in the image, too.
    for text in ["", "identity = \"boot-data\"", &format!("{BAKED}{LATENT}"), BAKED] {
        let found = identity(text, &[data, EC2, UUID]).await.unwrap();
        assert_eq!((found.worker.as_str(), found.password.as_str()), ("w7", "hush"));
        // A copy of the definition on another machine must not pass for the original.
        assert_eq!(found.host, OWN);
    }
    let blind = identity("", &[data, ("etc/machine-id", b"0123")]).await.unwrap();
    assert_eq!(blind.host, "uuid:of-another", "a machine without a UUID of its own is who it is said to be");
    assert!(identity("identity = \"boot-data\"", &[UUID]).await.is_err());
}

#[tokio::test]
async fn on_ec2_the_user_data_say_who_it_is() {
    let fake = Fake::ec2("i-0123456789abcdef0");
    let text = format!("identity = \"ec2\"\nmetadata = {:?}\n", fake.url());
    fake.put("/latest/user-data", &format!("#!/bin/sh\necho hello\n\n{}", block(BOOT)));
    fake.put("/latest/dynamic/instance-identity/document", "{\"instanceId\": \"i-0123456789abcdef0\"}");
    fake.put("/latest/dynamic/instance-identity/signature", "c2ln");
    let found = identity(&text, &[UUID]).await.unwrap();
    assert_eq!((found.worker.as_str(), found.host.as_str()), ("w7", "ec2:i-0123456789abcdef0"));
    assert_eq!((found.password.as_str(), found.is_ec2), ("hush", true));
    let (document, signature) = (found.proof.document.unwrap(), found.proof.signature.unwrap());
    assert_eq!((document.as_str(), signature.as_str()), ("{\"instanceId\": \"i-0123456789abcdef0\"}", "c2ln"));
    assert_eq!(found.proof.rsa2048, None);
    // Nothing was asked without a token, and one was enough.
    let asked = fake.state().asked.clone();
    assert_eq!(asked[0], "PUT /latest/api/token");
    assert_eq!(asked.iter().filter(|a| a.starts_with("PUT")).count(), 1);

    // A document that is far too long is left out; half a block is an error.
    fake.put("/latest/dynamic/instance-identity/rsa2048", &"x".repeat(100_000));
    assert_eq!(identity(&text, &[]).await.unwrap().proof.rsa2048, None);
    let cut = block(BOOT);
    fake.put("/latest/user-data", &cut[..cut.len() - 9]);
    let error = identity(&text, &[]).await.err().unwrap().to_string();
    assert!(error.contains("user data cannot be used: incomplete"), "{error}");
}

#[tokio::test]
async fn an_image_is_tried_as_a_standing_worker_on_ec2_first() {
    let fake = Fake::ec2("i-0123456789abcdef0");
    for kind in ["ec2", "auto"] {
        let text = format!("{BAKED}{LATENT}identity = \"{kind}\"\nmetadata = {:?}\n", fake.url());
        let found = identity(&text, &[EC2, UUID]).await.unwrap();
        assert_eq!((found.worker.as_str(), found.password.as_str()), ("w1", "hush"));
        assert_eq!(found.host, "ec2:i-0123456789abcdef0");
        assert_eq!(found.power_off_after, None);
    }
    let text = format!("identity = \"ec2\"\nmetadata = {:?}\n", fake.url());
    assert!(matches!(identity(&text, &[]).await.err().unwrap(), IdentityError::NoBootData("name")));
}

#[tokio::test]
async fn auto_waits_for_the_cloud_rather_than_guess() {
    // A latent EC2 instance whose metadata service is not up at first, and later fails once.
    let address = Fake::ec2("gone").address;
    let text = format!("{BAKED}{LATENT}metadata = \"http://{address}\"\n");
    let waiting = identity(&text, &[EC2]);
    let coming = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let fake = Fake::at(address);
        fake.state().tokens_wanted = true;
        fake.state().statuses.insert("/latest/user-data".to_owned(), 500);
        fake.put("/latest/meta-data/instance-id", "i-0123");
        while !fake.state().asked.contains(&"GET /latest/user-data".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fake.put("/latest/user-data", &block(BOOT));
        fake.state().statuses.clear();
        fake
    };
    let (found, _fake) = tokio::join!(waiting, coming);
    assert_eq!(found.unwrap().worker.as_str(), "w7");
}

#[tokio::test]
async fn auto_sends_no_request_without_a_sign_of_a_cloud() {
    let fake = Fake::ec2("i-0123");
    let metadata = format!("metadata = {:?}\n", fake.url());
    for (text, files) in [
        (format!("{BAKED}{metadata}"), &[UUID][..]),
        (format!("{BAKED}{metadata}{LATENT}"), &[UUID]),
        // A standing worker that happens to run on a cloud keeps its identity.
        (format!("{BAKED}{metadata}"), &[EC2, UUID]),
        (format!("{BAKED}{metadata}"), &[NOVA, UUID]),
    ] {
        let found = identity(&text, files).await.unwrap();
        assert_eq!((found.worker.as_str(), found.host.as_str()), ("w1", OWN));
    }
    let nothing = identity(&metadata, &[UUID]).await.err().unwrap();
    assert!(matches!(nothing, IdentityError::NoBootData("password")), "{nothing}");
    assert!(fake.state().asked.is_empty());
    // A disabled service is an answer.
    fake.state().statuses.insert("/latest/api/token".to_owned(), 403);
    let found = identity(&format!("{BAKED}{metadata}{LATENT}"), &[EC2, UUID]).await.unwrap();
    assert_eq!((found.worker.as_str(), found.host.as_str(), found.is_ec2), ("w1", OWN, false));
}

#[tokio::test]
async fn on_openstack_the_drive_counts_before_the_service() {
    let fake = Fake::openstack("8AC9D4A4-5e03-48b0-acde-77a0345a9ab1");
    let metadata = format!("metadata = {:?}\n", fake.url());
    let image = |uuid: &str, user_data: &str| {
        let meta_data = format!("{{\"uuid\": \"{uuid}\", \"random_seed\": \"x\"}}");
        iso9660::tests::image(
            "config-2",
            &[("meta_data.json", meta_data.as_bytes()), ("user_data", user_data.as_bytes())],
            true,
        )
    };
    let from_service = BOOT.replace("w7", "w8");
    fake.put("/openstack/latest/user_data", &block(&from_service));
    for kind in ["openstack", "auto"] {
        let found = identity(&format!("{metadata}identity = \"{kind}\""), &[NOVA]).await.unwrap();
        assert_eq!((found.worker.as_str(), found.host.as_str()), ("w8", "uuid:8ac9d4a4-5e03-48b0-acde-77a0345a9ab1"));
    }
    let drive = image("aa00", &block(BOOT));
    let other = iso9660::tests::image("Debian 12", &[], false);
    let disks = [("dev/sda", &[][..]), ("dev/sr0", &drive), ("dev/vda", &other)];
    let named = ["sda", "sr0", "vda", "loop0"].map(|name| format!("sys/class/block/{name}/size"));
    let mut files: Vec<(&str, &[u8])> = disks.to_vec();
    files.extend(named.iter().map(|path| (path.as_str(), &b"1"[..])));
    // On any machine with a config drive, without a request to a service.
    fake.state().asked.clear();
    for text in ["identity = \"openstack\"", "identity = \"config-drive\"", "", LATENT] {
        let found = identity(&format!("{metadata}{text}"), &files).await.unwrap();
        assert_eq!((found.worker.as_str(), found.host.as_str()), ("w7", "uuid:aa00"), "{text}");
    }
    assert!(fake.state().asked.is_empty());
}

#[tokio::test]
async fn a_drive_that_makes_no_sense_is_not_taken() {
    let of = |files: &[(&str, &[u8])]| iso9660::tests::image("config-2", files, true);
    for (drive, part) in [
        (fat::tests::image(12, "config-2", &[]), "has no openstack/latest/meta_data.json"),
        (of(&[]), "has no openstack/latest/meta_data.json"),
        (of(&[("meta_data.json", b"{}")]), "malformed"),
        (of(&[("meta_data.json", b"{\"uuid\": \"../x\"}")]), "an invalid uuid"),
    ] {
        let dir = machine(&[("dev/vdb", &drive), ("sys/class/block/vdb/size", b"1")]);
        let trouble = config_drive::look(dir.path()).await.unwrap_err().to_string();
        assert!(trouble.contains(part), "{trouble}");
    }
    assert!(matches!(config_drive::look(machine(&[]).path()).await, Err(CloudError::NoDrive)));
}

#[tokio::test]
async fn a_config_drive_may_be_fat_and_no_other_fat_disk_is_taken_for_one() {
    let fake = Fake::openstack("bb00");
    let metadata = format!("metadata = {:?}\n", fake.url());
    fake.put("/openstack/latest/user_data", &block(&BOOT.replace("w7", "w8")));
    let drive = |bits, label: &str| {
        let files: [(&str, &[u8]); 2] =
            [("meta_data.json", b"{\"uuid\": \"aa00\"}"), ("user_data", &block(BOOT).into_bytes())];
        fat::tests::image(bits, label, &files)
    };
    for (image, worker, host) in [
        (drive(12, "config-2"), "w7", "uuid:aa00"),
        (drive(16, "CONFIG-2"), "w7", "uuid:aa00"),
        (drive(32, "config-2"), "w7", "uuid:aa00"),
        // An EFI partition, or a stick that happens to have such files, is nobody's word.
        (drive(32, "EFI"), "w8", "uuid:bb00"),
        // A drive that is empty does not hide the service.
        (fat::tests::image(12, "config-2", &[]), "w8", "uuid:bb00"),
    ] {
        let files = [("dev/vdb", &image[..]), ("sys/class/block/vdb/size", b"1")];
        let found = identity(&format!("{metadata}identity = \"openstack\""), &files).await.unwrap();
        assert_eq!((found.worker.as_str(), found.host.as_str()), (worker, host));
    }
}

#[tokio::test]
async fn auto_takes_the_name_that_is_given() {
    let text = "broker = \"amqp://mq.example.org\"\nname = \"w1\"\npassword = \"hush\"";
    let identity = identify(&config(text)).await.unwrap();
    assert_eq!((identity.worker.as_str(), identity.password.as_str()), ("w1", "hush"));
}

#[test]
fn a_host_name_is_its_own_machines() {
    let refused = ["golden".to_owned()];
    for (name, worker) in [
        ("minion1", "minion1"),
        ("Minion1.vm.example.org", "minion1"),
        ("w-1\n", "w-1"),
        ("i-9", "i-9"),
        ("ip-7", "ip-7"),
    ] {
        assert_eq!(hostname::accept(name, &refused).unwrap().as_str(), worker);
    }
    for bad in [
        "",
        "localhost",
        "localhost.localdomain",
        "(none)",
        "DEBIAN",
        "ubuntu.example.org",
        "golden",
        "a_b",
        "-",
        "ip-10-0-0-1.us-west-2.compute.internal",
        "host-192-168-0-5.openstacklocal",
        "i-0123456789abcdef0",
    ] {
        assert!(hostname::accept(bad, &refused).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn a_name_is_taken_when_it_is_settled() {
    use hostname::{Debouncer, Observation};
    let observation = |kernel: &str, written: &str, leased: &[&str]| Observation {
        kernel: kernel.to_owned(),
        written: written.to_owned(),
        leased: leased.iter().map(|name| (*name).to_owned()).collect(),
    };
    // The number of observations until a name is accepted, and the name.
    let taken = |latent: bool, sights: &[Observation]| {
        let mut debouncer = Debouncer::new(&[], latent);
        let looks = sights.iter().chain(std::iter::repeat(sights.last().unwrap())).take(300);
        looks
            .enumerate()
            .find_map(|(n, observation)| debouncer.look(observation).ok().map(|w| (n + 1, w.as_str().to_owned())))
    };
    let at = |look: usize, name: &str| Some((look, name.to_owned()));
    let booting = observation("(none)", "", &[]);
    for (latent, sights, expected) in [
        (false, vec![observation("w1", "w1\n", &[])], at(1, "w1")),
        (false, vec![observation("w1", "w1", &["dhcp-7"])], at(1, "w1")),
        (true, vec![observation("golden", "golden", &[]), observation("golden", "golden", &["w1"])], at(2, "w1")),
        (true, vec![observation("golden", "golden", &[]), observation("w1", "golden", &[])], at(3, "w1")),
        (true, vec![observation("w1", "w1", &[])], at(100, "w1")),
        (true, vec![booting.clone(), observation("w1", "", &[])], at(3, "w1")),
        (false, vec![booting.clone(), observation("w1", "debian", &[])], at(3, "w1")),
        (true, vec![booting.clone(), observation("w9", "", &[]), observation("w1", "", &[])], at(4, "w1")),
        (true, vec![booting.clone(), observation("localhost", "localhost", &["localhost", "w1"])], at(2, "w1")),
        (true, vec![booting.clone(), observation("ip-10-0-0-1", "", &[])], None),
        (true, vec![booting], None),
    ] {
        assert_eq!(taken(latent, &sights), expected, "{latent} {sights:?}");
    }
}

#[tokio::test]
async fn a_lease_may_have_the_name() {
    // For an address that every machine has.
    let lease = b"ADDRESS=127.0.0.1\nHOSTNAME=minion1.example.org\n";
    let files: [(&str, &[u8]); 3] = [
        ("run/systemd/netif/leases/2", lease),
        ("proc/sys/kernel/hostname", b"localhost\n"),
        ("etc/hostname", b"# by hand\nlocalhost\n"),
    ];
    for kind in ["hostname", "auto"] {
        let text = format!("identity = \"{kind}\"\nbroker = \"amqp://mq.example.org\"\npassword = \"hush\"");
        let found = identity(&text, &files).await.unwrap();
        assert_eq!((found.worker.as_str(), found.password.as_str()), ("minion1", "hush"));
    }
}

#[test]
fn a_machine_is_known_by_its_firmware_then_by_its_system() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    assert_eq!(host::identity(dir.path()), None);
    write("etc/machine-id", "uninitialized\n");
    assert_eq!(host::identity(dir.path()), None);
    write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    assert_eq!(host::identity(dir.path()).unwrap(), "machine:0123456789abcdef0123456789abcdef");
    write("sys/class/dmi/id/product_uuid", "00000000-0000-0000-0000-000000000000\n");
    assert!(host::identity(dir.path()).unwrap().starts_with("machine:"));
    write("sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8052-B4C04F4E4D31\n");
    assert_eq!(host::identity(dir.path()).unwrap(), "uuid:4c4c4544-0042-3510-8052-b4c04f4e4d31");
}
