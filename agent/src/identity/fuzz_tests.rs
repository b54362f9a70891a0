//! Everything that the agent reads before it knows its master, corrupted at random. The agent must not panic, and must
//! not use more memory than a limit. This input comes from whoever controls the network, the firmware or a disk.

use super::firmware::tests::machine;
use super::*;
use crate::core::random::SplitMix64;
use crate::fake_metadata::Metadata as Fake;
use crate::meter;
use rouse_shared::boot::comment_block;
use std::io::Cursor;
use std::net::IpAddr;

/// Number of corrupted copies of each input.
const COPIES: u64 = 1_000;

struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.below(bound as u64)).unwrap_or(0)
    }

    /// A copy that is corrupted in one to four places.
    fn broken(&mut self, whole: &[u8]) -> Vec<u8> {
        const PIECES: [&[u8]; 12] = [
            b"\0",
            b"\xff\xff\xff\xff",
            b"\"",
            b"{",
            b"[[[[[[[[",
            b"\n",
            b"\r\n",
            b"99999999999999999999",
            b"-1",
            b"# ",
            b"}",
            "\u{202e}é".as_bytes(),
        ];
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(20)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                3 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap_or(0),
                4 => {
                    let again = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, again.repeat(1 + self.below(50))));
                }
                _ => drop(bytes.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied())),
            }
        }
        bytes
    }
}

/// Reads corrupted copies of `whole`, none of which may allocate more than `limit` bytes in addition to itself.
fn break_it(what: &str, whole: &[u8], limit: usize, mut read: impl FnMut(&[u8])) {
    read(whole);
    for seed in 0..COPIES {
        let bytes = Random(SplitMix64(seed)).broken(whole);
        let peak = meter::peak(|| read(&bytes));
        assert!(
            peak <= limit,
            "{what}: {peak} bytes for {} of seed {seed}: {:?}",
            bytes.len(),
            String::from_utf8_lossy(&bytes)
        );
    }
}

const BOOT: &str = "name = \"w7\"\nhost = \"h0123456789abcdef\"\nbroker = \"amqp://127.0.0.1:5672,b.example.org/rouse\"\n\
    ca = \"\"\"\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n\"\"\"\ntoken = \"t0\"\n\
    identity = \"uuid:1\"\npower_off_after = 1200\n";

fn config() -> AgentConfig {
    AgentConfig::parse("", "x", &Vec::new()).expect("an empty one will do")
}

#[test]
fn boot_data_in_every_form() {
    let (config, nowhere) = (config(), Path::new("/nonexistent"));
    let mut taken = 0;
    let mut take = |boot: Option<BootText>| {
        let Some(found) = boot.map(|boot| boot.identity(&config, nowhere, Machine::default())) else { return };
        match found {
            Ok(_) => taken += 1,
            // The error fits into a line or two of a log.
            Err(error) => assert!(error.to_string().len() < 1_000, "{error}"),
        }
    };
    break_it("user data", format!("#!/bin/sh\n{}", comment_block(BOOT)).as_bytes(), 256 << 10, |bytes| {
        take(BootText::in_user_data("user data", bytes));
    });
    break_it("boot data", BOOT.as_bytes(), 256 << 10, |bytes| {
        let toml = String::from_utf8_lossy(bytes).into_owned();
        take(Some(BootText { source: "a file".to_owned(), toml: Ok(toml), of_a_process: true }));
    });
    for deep in ["[".repeat(60_000), "{a=".repeat(20_000), "a.".repeat(30_000)] {
        let toml = format!("{BOOT}deep = {deep}");
        take(BootText::in_user_data("user data", comment_block(&toml).as_bytes()));
        take(BootText::in_user_data("user data", comment_block(&format!("{BOOT}{deep}")).as_bytes()));
    }
    assert!(taken > 50, "some are still whole: {taken}");
}

#[test]
fn config_drives_of_fat() {
    let whole = fat::tests::image(12, "config-2", &[("meta_data.json", b"{\"uuid\": \"a0\"}"), ("user_data", b"x")]);
    // Boot sector, table, directories and files; the rest is zero.
    let (head, rest) = whole.split_at(10_000);
    break_it("a FAT config drive", head, 4 << 20, |bytes| {
        let device = [bytes, rest].concat();
        let Ok(Some(mut fat)) = fat::Fat::open(Cursor::new(&device)) else { return };
        drop(fat.label());
        for name in ["meta_data.json", "user_data"] {
            drop(fat.read(&["openstack", "latest", name], openstack::MAX_META_DATA as u32));
        }
    });
}

#[test]
fn config_drives() {
    let whole =
        iso9660::tests::image("config-2", &[("meta_data.json", b"{\"uuid\": \"a0\"}"), ("user_data", b"x")], true);
    // Only the part that is not zero.
    let (head, said) = whole.split_at(16 * 2_048);
    break_it("a config drive", &said[..7 * 2_048], 3 << 20, |bytes| {
        let device = [head, bytes, &said[7 * 2_048..]].concat();
        let Ok(Some(mut iso)) = iso9660::Iso::open(Cursor::new(&device)) else { return };
        for name in ["meta_data.json", "user_data", "none"] {
            drop(iso.read(&["openstack", "latest", name], openstack::MAX_META_DATA as u32));
        }
    });
}

#[test]
fn metadata_and_leases() {
    let meta_data = b"{\"uuid\": \"8ac9d4a4-5e03-48b0-acde-77a0345a9ab1\", \"keys\": [{\"a\": [1, 2.5e3, null]}], \"n\": \"\\u00e9\"}";
    break_it("meta_data.json", meta_data, 64 << 10, |bytes| drop(openstack::machine(bytes, None)));
    let deep = "[".repeat(500_000);
    assert!(openstack::machine(format!("{{\"uuid\": \"a0\", \"x\": {deep}").as_bytes(), None).is_err());
    let address: IpAddr = "192.0.2.7".parse().expect("an address");
    for (path, text) in [
        (
            "var/lib/dhcp/dhclient.leases",
            "lease {\n  fixed-address 192.0.2.7;\n  option host-name \"w1\";\n}\n".repeat(3),
        ),
        ("run/systemd/netif/leases/2", "# x\nADDRESS=192.0.2.7\nHOSTNAME=w1\nDOMAINNAME=example.org\n".to_owned()),
    ] {
        let dir = machine(&[(path, text.as_bytes())]);
        break_it("leases", text.as_bytes(), 512 << 10, |bytes| {
            std::fs::write(dir.path().join(path), bytes).expect("written");
            for name in leases::names(dir.path(), &[address]) {
                drop(hostname::accept(&name, &[]));
            }
        });
    }
}

#[test]
fn configurations() {
    let text = "broker = \"amqps://mq.example.org\"\nidentity = \"static\"\nname = \"w1\"\npassword = { env = \"X\" }\n\
        power_off = \"latent\"\npower_off_after = \"1h30m\"\nmax_log_size = \"64MB\"\ndefault_hostnames = [\"a\", \"b\"]\n\
        metadata = \"http://[::1]:80\"\n";
    break_it("agent.toml", text.as_bytes(), 256 << 10, |bytes| {
        if let Err(error) = AgentConfig::parse(&String::from_utf8_lossy(bytes), "x", &Vec::new()) {
            assert!(error.to_string().starts_with("x:"), "{error}");
        }
    });
}

/// A service that answers with arbitrary data over a real socket: the agent waits, and accepts nothing invalid.
#[tokio::test]
async fn a_metadata_service_gone_mad() {
    let pages = ["/latest/meta-data/instance-id", "/latest/user-data", "/latest/dynamic/instance-identity/document"];
    let bodies =
        ["i-0123456789abcdef0".to_owned(), comment_block(BOOT), "{\"instanceId\": \"i-0123456789abcdef0\"}".to_owned()];
    let fake = Fake::ec2("i-0");
    let mut service = ec2::Metadata::new(crate::http::Server::parse(&fake.url()).expect("its address"));
    let (mut whole, mut broken) = (0, 0);
    for seed in 0..300 {
        let mut random = Random(SplitMix64(seed));
        for (path, body) in pages.iter().zip(&bodies) {
            let bytes = if random.below(3) == 0 { body.as_bytes().to_vec() } else { random.broken(body.as_bytes()) };
            fake.state().pages.insert((*path).to_owned(), bytes);
        }
        match ec2::look(&mut service).await {
            Ok(machine) => {
                let host = machine.host.expect("an instance id");
                assert!(host.len() < 70 && host.bytes().all(|b| b.is_ascii_graphic()), "{host:?}");
                whole += 1;
            }
            Err(trouble) => {
                assert!(trouble.to_string().len() < 300, "{trouble}");
                broken += 1;
            }
        }
    }
    assert!(whole > 30 && broken > 30, "{whole} {broken}");
}
