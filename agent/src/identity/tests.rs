//! Who an agent takes itself for.
#![allow(clippy::unwrap_used)]

use super::*;

const BOOT: &str = "name = \"w7\"\nhost = \"h0123456789abcdef\"\nbroker = \"amqp://127.0.0.1:5672\"\ntoken = \"t0\"\n";

fn config(text: &str) -> AgentConfig {
    AgentConfig::parse(text, "x", &Vec::new()).unwrap()
}

/// With a directory whose `boot.toml` holds the text.
fn boot(text: &str) -> Result<Identity, IdentityError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot.toml");
    std::fs::write(&path, text).unwrap();
    from_boot_data(&config(&format!("boot_data = {path:?}")))
}

#[test]
fn boot_data_say_it_all() {
    let identity = boot(&format!("{BOOT}identity = \"process:7\"\npower_off_after = 90\nfuture = 1\n")).unwrap();
    assert_eq!(identity.worker.as_str(), "w7");
    assert_eq!((identity.host.as_str(), identity.password.as_str()), ("process:7", "t0"));
    assert_eq!(identity.broker, "amqp://127.0.0.1:5672");
    assert_eq!(identity.power_off_after, Some(Duration::from_secs(90)));
    assert!(!boot(BOOT).unwrap().host.is_empty(), "the machine's own");
}

#[test]
fn wrong_boot_data_are_told_without_the_token() {
    for bad in ["name = \"w7\"", "token = \"t0\" oops", &BOOT.replace("amqp:", "http:"), &BOOT.replace("w7", "W7")] {
        let error = boot(bad).err().unwrap().to_string();
        assert!(error.contains("boot.toml") && !error.contains("t0"), "{error}");
    }
    let missing = from_boot_data(&config("boot_data = \"/nonexistent/boot.toml\"")).err().unwrap();
    assert!(matches!(missing, IdentityError::Unreadable(..)));
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
    for (name, worker) in [("minion1", "minion1"), ("Minion1.vm.example.org", "minion1"), ("w-1\n", "w-1")] {
        assert_eq!(hostname::accept(name, &refused).unwrap().as_str(), worker);
    }
    for bad in
        ["", "localhost", "localhost.localdomain", "(none)", "DEBIAN", "ubuntu.example.org", "golden", "a_b", "-"]
    {
        assert!(hostname::accept(bad, &refused).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn a_lease_may_have_the_name() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(hostname::leased_name(dir.path(), &[]), None);
    assert_eq!(hostname::leased_name(&dir.path().join("none"), &[]), None);
    std::fs::write(dir.path().join("2"), "ADDRESS=192.0.2.1\nHOSTNAME=localhost\n").unwrap();
    std::fs::write(dir.path().join("3"), "ADDRESS=192.0.2.2\nHOSTNAME=minion1\n").unwrap();
    assert_eq!(hostname::leased_name(dir.path(), &[]).unwrap().as_str(), "minion1");
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
