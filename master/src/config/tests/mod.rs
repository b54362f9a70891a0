//! The configuration from text to plan, and the messages about its errors.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::access::{NamedToken, Right, Rights, TokenHash};
use crate::core::plan::{Digest, Retention};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use rouse_shared::message::Limits;
use std::os::unix::fs::PermissionsExt as _;

mod access;
mod encryption;
mod sections;

const EXAMPLE: &str = include_str!("example.toml");
const MASTER: &str = "[master]\nname = \"ci\"\n";

fn env(name: &str) -> Option<String> {
    (name == "OS_PASSWORD").then(|| "from the environment".to_owned())
}

fn reading(text: &str) -> Reading {
    read_text(text, Path::new("rouse.toml"), None, &env)
}

/// The configuration in a text that has no error.
fn good(text: &str) -> Config {
    let reading = reading(text);
    assert_eq!(reading.errors, [], "{text}");
    reading.config.unwrap()
}

/// The errors of a text, as they are printed.
fn errors(text: &str) -> Vec<String> {
    reading(text).errors.iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    good(text).warnings.iter().map(ToString::to_string).collect()
}

fn worker<'c>(config: &'c Config, name: &str) -> &'c crate::core::plan::WorkerPlan {
    &config.plan.workers[&name.parse().unwrap()]
}

fn host<'c>(config: &'c Config, name: &str) -> &'c HostConfig {
    &config.hosts[&name.parse().unwrap()]
}

/// A standing worker with these lines.
fn standing(lines: &str) -> String {
    format!("[[worker]]\nname = \"w\"\npassword = \"x\"\nrun_as = \"build\"\n{lines}\n")
}

fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether a file that the example names has a secret in it.
fn is_secret(file: &str) -> bool {
    ["api-token", "linux.secret", "aws-secret", "s3-secret"].contains(&file)
}

const DATABASES: &str = "db1.example.org:5432,db2.example.org:5433";

/// The example in a directory of its own, with the files that it names.
fn example() -> (tempfile::TempDir, PathBuf, Reading) {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "api-token",
        "linux.secret",
        "aws-secret",
        "s3-secret",
        "aws-certs.pem",
        "base.qcow2",
        "minion1.xml",
        "cloud-ca.pem",
    ];
    for file in files {
        write(&dir.path().join(file), format!("{file}!\n"), if is_secret(file) { 0o600 } else { 0o644 });
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
    write(&dir.path().join("key.pem"), key.serialize_pem(), 0o600);
    let path = dir.path().join("rouse.toml");
    let text = EXAMPLE.replace("DIR", dir.path().to_str().unwrap());
    write(&path, &text, 0o600);
    let reading = read_text(&text, &path, None, &env);
    (dir, path, reading)
}

#[test]
fn nothing_is_wrong_with_the_example() {
    let (dir, _, reading) = example();
    assert_eq!(reading.errors, []);
    let config = reading.config.unwrap();
    let missing = |w: &&Problem| !w.message.contains("this build of rouse");
    assert_eq!(config.warnings.iter().filter(missing).collect::<Vec<_>>(), Vec::<&Problem>::new());
    let sections = [(ProviderKind::Ec2, 2), (ProviderKind::Libvirt, 1), (ProviderKind::Openstack, 3)];
    let absent = sections.iter().filter(|(kind, _)| !AVAILABLE.contains(kind)).map(|(_, sections)| sections);
    let absent = absent.sum::<usize>() + usize::from(!cfg!(feature = "postgres"));
    assert_eq!(config.warnings.len(), absent, "one for each section of a provider that is not there");

    assert_eq!(config.plan.workers.len(), 1 + 20 + 1 + 1 + 3 + 4);
    assert_eq!(config.hosts.len(), 29);
    assert_eq!(config.master.api_token.as_ref().unwrap().expose(), "api-token!");
    assert_eq!(config.plan.max_spend_per_day, Some(25.0));
    assert_eq!(config.plan.max_hosts, Some(50));
    let days = |days: u64| Some(Duration::from_secs(86_400 * days));
    let retention = Retention { builds: days(180), logs: days(30), max_size: Some(200_000_000_000) };
    assert_eq!(config.plan.retention, retention);

    let database = config.store.as_ref().unwrap();
    assert_eq!((database.place().as_str(), database.ssl_mode), (DATABASES, SslMode::VerifyFull));

    let blobs = config.blobs.as_ref().unwrap();
    let store = StoreUrl::S3 { bucket: "bucket".into(), prefix: "prefix".into() };
    assert_eq!((&blobs.store, blobs.region.as_deref(), &blobs.profile), (&store, Some("eu-west-1"), &None));
    assert_eq!(blobs.credentials.as_ref().unwrap().1.expose(), "s3-secret!");

    let token = |name: &str, text: &str, may: &[Right]| NamedToken {
        name: name.to_owned(),
        hash: TokenHash::of(text),
        may: Rights::of(may.iter().copied()),
    };
    let (bot, ops) =
        (token("ci-bot", "password", &[Right::Build]), token("ops.2", "secret", &[Right::Build, Right::Operate]));
    assert_eq!(config.access.tokens, [bot, ops]);
    let remote = config.access.remote_user.as_ref().unwrap();
    assert_eq!((remote.trusted_proxies.len(), remote.may), (2, Rights::of([Right::Read])));

    let solaris = worker(&config, "bot-solaris");
    assert_eq!((solaris.max_builds, solaris.lease), (Some(2), Some(Duration::from_secs(60))));
    assert_eq!(solaris.notify_on_missing, ["bob@example.com", "alice@example.org"]);
    assert_eq!((solaris.run_as.as_deref(), &solaris.latent), (Some("build"), &None));
    let limits = Limits { memory: Some(8 << 30), pids: Some(4_096), cpu_millis: Some(1_500) };
    assert_eq!((solaris.limits, worker(&config, "linux-07").limits), (limits, Limits::default()));

    let seven = worker(&config, "linux-07");
    assert_eq!(seven.password, Digest::of("linux.secret!"));
    assert_eq!(seven.properties["me"], "linux-07");
    assert_eq!(seven.missing_timeout, Duration::from_secs(1200));
    let latent = seven.latent.as_ref().unwrap();
    assert_eq!((&*latent.template, latent.provider), ("linux-{01..20}", ProviderKind::Ec2));
    assert_eq!(latent.build_wait_timeout, Some(Duration::from_secs(600)));
    let HostConfig::Ec2(ec2) = host(&config, "linux-07") else { panic!() };
    assert_eq!(ec2.credentials.as_ref().unwrap().1.expose(), "aws-secret!");
    assert_eq!((&ec2.subnet_id, &ec2.endpoint_url, &ec2.elastic_ip), (&None, &None, &None));
    assert_eq!(ec2.spot.as_ref().unwrap().multiplier, Some(1.15));

    assert_eq!(worker(&config, "ec2-single").latent.as_ref().unwrap().build_wait_timeout, None);
    let HostConfig::Ec2(ec2) = host(&config, "ec2-single") else { panic!() };
    let (owners, location) =
        (vec!["111111111111".into(), "022222222222".into()], r"^(?:rouse-.*-(\d+)/image.manifest.xml)");
    assert_eq!(ec2.image, hosts::Ec2Image::Last { owners, location: Some(location.into()) });
    assert_eq!((ec2.spot.is_none(), ec2.volumes[0].device.as_str()), (true, "/dev/sdf"));

    let HostConfig::Libvirt(libvirt) = host(&config, "minion1") else { panic!() };
    assert_eq!(libvirt.xml, hosts::DomainXml::Text("minion1.xml!\n".into()));
    assert_eq!(libvirt.hd_image, Some(dir.path().join("minion1.qcow2")));
    assert_eq!(worker(&config, "minion1").latent.as_ref().unwrap().build_wait_timeout, Some(Duration::ZERO));

    let HostConfig::Openstack(nova) = host(&config, "bot2") else { panic!() };
    assert_eq!(nova.os_password.as_ref().unwrap().expose(), "from the environment");
    assert_eq!((nova.boot_volume_gb, &nova.key_name, nova.price_per_hour), (None, &None, Some(0.0)));
    let HostConfig::Openstack(nova) = host(&config, "bot4") else { panic!() };
    let program = dir.path().join("./find-image").to_str().unwrap().to_owned();
    assert_eq!(nova.image, hosts::OpenstackImage::Command(vec![program, "--newest".into()]));

    let HostConfig::Process(process) = host(&config, "local-4") else { panic!() };
    assert_eq!(process.agent, Path::new("rouse-agent"));
}

#[test]
fn all_errors_at_once() {
    let here = std::path::absolute("rouse.toml").unwrap();
    let here = here.parent().unwrap().to_str().unwrap().to_owned();
    let found = errors(include_str!("faulty.toml")).join("\n").replace(&here, "HERE") + "\n";
    if std::env::var_os("ROUSE_ACCEPT").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/tests/faulty.expected"), &found).unwrap();
    }
    assert_eq!(
        found,
        include_str!("faulty.expected"),
        "accept with ROUSE_ACCEPT=1 cargo test -p rouse-master all_errors"
    );
    assert!(!found.contains("hunter2"), "a password was printed");
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let mut config = good("");
    config.path = PathBuf::new();
    assert_eq!(config, Config::without_file("/var/lib/rouse".into()));
    let config = good(&standing(""));
    let worker = worker(&config, "w");
    let times = (worker.keepalive, worker.lease.unwrap(), worker.grace, worker.missing_timeout);
    assert_eq!(
        times,
        (Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600))
    );
}

#[test]
fn leases() {
    let lease = |lines| worker(&good(&standing(lines)), "w").lease;
    assert_eq!(lease("keepalive_interval = 5"), Some(Duration::from_secs(60)));
    assert_eq!(lease("keepalive_interval = \"1m\""), Some(Duration::from_secs(360)));
    assert_eq!(lease("keepalive_interval = 30\nlease = 60"), Some(Duration::from_secs(60)));
    assert_eq!(lease("keepalive_interval = \"none\""), None);
    let error = errors(&standing("keepalive_interval = \"none\"\nlease = 60"));
    assert_eq!(error.len(), 1, "{error:?}");
    assert!(error[0].starts_with("rouse.toml:6:9: worker.lease: there is no lease"), "{error:?}");
    let error = errors(&standing("keepalive_interval = 31\nlease = 60"));
    assert!(error[0].contains("worker.lease: must be at least two keepalive intervals, 1m2s"), "{error:?}");
}

#[test]
fn syntax_errors_have_their_place() {
    assert_eq!(
        errors("[master]\nname = \n"),
        ["rouse.toml:2:8: not TOML: string values must be quoted, expected literal string"]
    );
    assert_eq!(errors("a = 1\na = 2\nb = 1\nb = 2\n").len(), 2);
}

#[test]
fn likely_slips_are_warned_of() {
    let bare = "[[worker]]\nname = \"w\"\npassword = \"long enough, is it not\"\n";
    let run_as = "worker.run_as: builds run as the agent's own user; if that is root and its agent.toml has no run_as \
                  either, they wait until you write run_as = \"…\" (\"root\" if they are to run as root)";
    assert_eq!(warnings(bare), [format!("rouse.toml:1:1: {run_as}")]);

    let short = |password: &str| warnings(&bare.replace("long enough, is it not", password)).len() - 1;
    assert_eq!(["sekrit", "eleven char", "twelve chars", "ééééééééééé"].map(short), [1, 1, 0, 1]);
    let shared = "[[worker]]\nname = \"w{1..9}\"\npassword = \"sekrit\"\nrun_as = \"b\"\n";
    let guessed = "worker.password: has fewer than 12 characters, so whoever reaches the broker can guess it: make one with \
                   `openssl rand -hex 16`";
    assert_eq!(warnings(shared), [format!("rouse.toml:3:12: {guessed}")], "once for all");

    let libvirt = standing("[worker.libvirt]\nconnection = \"qemu+ssh://h.example.org/system\"\nhd_image = \"d\"");
    let unreachable = "its host could not reach the broker";
    let unreachable_warnings =
        |broker: &str| warnings(&format!("{broker}\n{libvirt}")).iter().filter(|w| w.contains(unreachable)).count();
    assert_eq!(unreachable_warnings(""), 1);
    assert_eq!(unreachable_warnings("broker.listen = [\"127.0.0.1:5672\", \"192.0.2.1:5672\"]"), 0);
    assert_eq!(unreachable_warnings("broker.listen = \"0.0.0.0:5672\""), 1);
    assert_eq!(unreachable_warnings("broker.agent_url = \"amqp://192.0.2.1\""), 0);
    assert_eq!(unreachable_warnings("broker.agent_url = \"amqp://127.0.0.1\""), 1);
    assert_eq!(unreachable_warnings("broker.url = \"amqp://a:b@localhost:5672,[::1]/v\""), 1);
    assert_eq!(unreachable_warnings("broker.url = \"amqp://a:b@mq.example.org/v\""), 0);

    let broker = |text: &str| warnings(&format!("[broker]\n{text}\n{bare}run_as = \"b\""));
    let over_ipv6 = "auth_listen = \"[fd00::1]:8091\"";
    assert_eq!(broker(over_ipv6), [""; 0]);
    assert!(broker(&format!("url = \"amqps://a:b@mq/v\"\n{over_ipv6}"))[0].contains("RabbitMQ asks over IPv4 only"));

    assert!(errors("[broker]\nlisten = \"[fe80::1]:5672\"")[0].contains("link-local"));

    let process = |name, idle| {
        warnings(&format!(
            "[[worker]]\nname = \"{name}\"\npassword = \"long enough, is it not\"\nrun_as = \"b\"\nmin_idle = {idle}\n[worker.process]"
        ))
    };
    assert_eq!(process("w{1..3}", 3), [""; 0]);
    assert_eq!(process("w{1..3}", 4), ["rouse.toml:5:12: worker.min_idle: more than the 3 workers of this section"]);
}

#[test]
fn builds_outlive_the_alarms_of_one_node() {
    for (broker, outlives) in [
        ("", true),
        ("broker.url = \"amqp://a:b@mq.example.org/v\"", true),
        ("broker.url = \"amqp://a:b@mq.example.org/v?heartbeat=10\"", true),
        ("broker.url = \"amqp://a:b@mq.example.org/v?heartbeat=30\"", false),
        ("broker.url = \"amqp://a:b@mq.example.org/v?heartbeat=0\"", false),
        ("broker.url = \"amqp://a:b@mq1,mq2/v\"", false),
    ] {
        assert_eq!(good(broker).plan.outlives_alarms, outlives, "{broker}");
    }
}

#[test]
fn names_clash_across_templates() {
    let two = |a: &str, b: &str| {
        let section = |name| format!("[[worker]]\nname = \"{name}\"\npassword = \"x\"\n");
        errors(&format!("{}{}", section(a), section(b)))
    };
    assert_eq!(two("w{1..3}", "w4"), [""; 0]);
    assert_eq!(
        two("w{1..3}", "w2"),
        ["rouse.toml:5:8: worker.name: a worker named w2 is given on line 2 already: names are unique"]
    );
    assert_eq!(two("w{1..9}", "w{9..11}").len(), 1);
    assert_eq!(two("w{01..09}", "w{1..9}").len(), 0);
}

#[test]
fn secrets_are_read_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rouse.toml");
    let read = |content: &[u8]| {
        write(&dir.path().join("w.secret"), content, 0o600);
        let text = standing("").replace("\"x\"", "{ file = \"{name}.secret\" }");
        let reading = read_text(&text, &path, None, &env);
        (reading.config.map(|c| worker(&c, "w").password), reading.errors.len())
    };
    assert_eq!(read(b"one\n"), (Some(Digest::of("one")), 0));
    assert_eq!(read(b" two \r\n"), (Some(Digest::of(" two ")), 0));
    assert_eq!(read(b"a\nb\n\n"), (Some(Digest::of("a\nb\n")), 0));
    for bad in [&b""[..], b"\n", b"a\0b", b"\xff"] {
        assert_eq!(read(bad), (None, 1), "{bad:?}");
    }
    let secret = Secret::new("hunter2");
    assert_eq!(format!("{secret} {secret:?}"), "(secret) (secret)");
    let config = good(&format!(
        "{MASTER}api_token = \"hunter2\"\n[broker]\nurl = \"amqp://u:hunter2@h.example.org\"\n[mail]\nrelay = \"smtp://u:hunter2@h.example.org\""
    ));
    assert!(!format!("{config:?}").contains("hunter2"));
    for (bad, expected) in [
        ("{ file = \"a\", env = \"B\" }", "has both file and env"),
        ("{}", "expected a string, { file"),
        ("{ path = \"a\" }", "unknown key"),
        ("7", "found an integer"),
        ("{ env = \"NOPE\" }", "the environment has no NOPE"),
    ] {
        let found = errors(&standing("").replace("\"x\"", bad)).join("\n");
        assert!(found.contains(expected), "{bad}: {found}");
    }
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let (dir, path, _) = example();
    let read = || read_file(&path).errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let set = |name: &str, mode| {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Only OS_PASSWORD is missing from the environment here.
    let before = read();
    for (name, key) in [
        ("rouse.toml", "worker.password"),
        ("api-token", "master.api_token.file"),
        ("linux.secret", "worker.password.file"),
        ("aws-secret", "worker.ec2.secret_identifier.file"),
        ("s3-secret", "blobs.secret_identifier.file"),
    ] {
        set(name, 0o644);
        let found: Vec<_> = read().into_iter().filter(|error| !before.contains(error)).collect();
        let [error] = &found[..] else { panic!("{name}: {found:?}") };
        let file = dir.path().join(name);
        let expected = format!(
            "{key}: all users of the machine have access to {0} (mode 0644), which has a secret in it: run `chmod 640 {0}`",
            file.display()
        );
        assert!(error.ends_with(&expected), "{name}: {error}");
        set(name, 0o640);
        assert_eq!(read(), before, "{name}: its own group may");
        set(name, 0o600);
    }
    for (text, harmless) in [
        ("[master]\nname = \"ci\"\n", true),
        ("[broker]\nurl = \"amqp://mq.example.org\"\n", true),
        ("[mail]\nrelay = \"smtp://smtp.example.org\"\n", true),
        ("[mail]\nrelay = \"smtps://u:p@smtp.example.org\"\n", false),
        ("[broker]\nurl = \"amqp://u:p@mq.example.org\"\n", false),
        ("[master]\napi_token = \"x\"\n", false),
        (&standing(""), false),
        (&standing("").replace("\"x\"", "{ file = \"linux.secret\" }"), true),
    ] {
        write(&path, text, 0o644);
        assert_eq!(read().is_empty(), harmless, "{text}: {:?}", read());
    }
}

#[test]
fn relays_and_addresses() {
    let relay = |text: &str| good(&format!("[mail]\nrelay = \"{text}\"")).mail.relay;
    let login = Some(("us/er".to_owned(), Secret::new("p@ss")));
    let expect = |host: &str, port, tls, login| Relay { host: host.into(), port, tls, login };
    assert_eq!(relay("smtp://h.example.org"), expect("h.example.org", 25, RelayTls::Opportunistic, None));
    assert_eq!(relay("smtps://us%2fer:p%40ss@h"), expect("h", 465, RelayTls::Implicit, login.clone()));
    assert_eq!(relay("smtp://us%2Fer:p@ss@h:587?tls=required"), expect("h", 587, RelayTls::Required, login));
    assert_eq!(relay("smtp://[::1]:2525/"), expect("::1", 2525, RelayTls::Opportunistic, None));
    for bad in [
        "h",
        "http://h",
        "smtp://",
        "smtp://h:x",
        "smtp://h:0",
        "smtp://u@h",
        "smtp://h?tls=maybe",
        "smtp://a,b",
        "smtps://h?tls=required",
        "smtp://[::1",
        "smtp://u:%zz@h",
        "smtp://h/x",
        "smtp://a b",
    ] {
        assert_eq!(errors(&format!("[mail]\nrelay = \"{bad}\"")).len(), 1, "{bad}");
    }
    for ok in ["amqps://rouse:secret@mq1.example.org,mq2.example.org/rouse", "amqp://h:5672", "amqp://[::1]:5672/%2f"] {
        assert_eq!(good(&format!("[broker]\nurl = \"{ok}\"")).broker.url.unwrap().expose(), ok);
    }
    for bad in ["amqp://", "amqp://a,,b", "amqp://h/a/b", "http://h", "amqp://h:99999", "amqp://h!"] {
        assert_eq!(errors(&format!("[broker]\nurl = \"{bad}\"")).len(), 1, "{bad}");
    }
}

#[test]
fn the_fingerprint_follows_what_shapes_a_host() {
    let (_dir, _, reading) = example();
    let text_of = |c: &Config, name: &str| worker(c, name).latent.as_ref().unwrap().fingerprint;
    let base = reading.config.unwrap();
    let changed = |from: &str, to: &str, name: &str| {
        let (dir, path, _) = example();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace(dir.path().to_str().unwrap(), _dir.path().to_str().unwrap());
        assert!(text.contains(from), "{from}");
        let reading = read_text(&text.replacen(from, to, 1), &_dir.path().join("rouse.toml"), None, &env);
        assert_eq!(reading.errors, []);
        text_of(&reading.config.unwrap(), name) != text_of(&base, name)
    };
    assert!(changed("ami-12345", "ami-54321", "linux-01"));
    assert!(changed("{ SomeTag = \"foo\" }", "{ SomeTag = \"{name}\" }", "linux-01"));
    assert!(changed("cpus = 2", "cpus = 4", "minion1"));
    assert!(!changed("cpus = 2", "cpus = 0x2 # two", "minion1"));
    assert!(!changed("price_per_hour = 0.096", "price_per_hour = 0.1", "linux-01"));
    assert!(!changed("AKIAEXAMPLE", "AKIAOTHER", "linux-01"));
    assert!(!changed("max_uses = 0", "max_uses = 5", "linux-01"));
    std::fs::write(_dir.path().join("minion1.xml"), "another").unwrap();
    assert!(changed("cpus = 2", "cpus = 2", "minion1"));
}

#[test]
fn what_a_reload_cannot_change_is_named() {
    let (old, new) = (
        good(MASTER),
        good(&format!(
            "{MASTER}listen = \"127.0.0.1:1\"\n[broker]\nagent_url = \"amqp://192.0.2.1\"\n[limits]\nmax_hosts = 3"
        )),
    );
    assert_eq!(changes_needing_restart(&old, &old), [""; 0]);
    assert_eq!(changes_needing_restart(&old, &new), ["master.listen", "broker.agent_url"]);
}

#[test]
fn check_prints_faults_and_sums_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rouse.toml");
    let run = |text: &str, online: bool| {
        write(&path, text, 0o600);
        let mut out = Vec::new();
        let look: Look<'_> = &|_| Vec::new();
        let code = check(&path, online.then_some(look), &mut out);
        (code, String::from_utf8(out).unwrap().replace(dir.path().to_str().unwrap(), "D"))
    };
    assert_eq!(run(MASTER, false), (0, "D/rouse.toml: nothing is wrong: 0 workers, 0 of them latent\n".into()));
    let bare = "[[worker]]\nname = \"w\"\npassword = \"long enough, is it not\"\n";
    let (code, text) = run(bare, false);
    assert_eq!(
        (code, text.lines().last()),
        (0, Some("D/rouse.toml: nothing is wrong: 1 worker, 0 of them latent, 1 warning"))
    );
    assert!(text.starts_with("D/rouse.toml:1:1: warning: worker.run_as: "), "{text}");
    let (code, text) = run("[master]\nname = 7\nx = 1\n", false);
    let expected = "D/rouse.toml:2:8: master.name: expected a string, found an integer\nD/rouse.toml:3:1: master.x: unknown key; known here are `api_token`, `listen`, `name`, `read_token`, `restart_lease`, `state_dir`, `tls`\nD/rouse.toml: 2 errors\n";
    assert_eq!((code, &*text), (2, expected));

    let process = |agent: &str| standing(&format!("[worker.process]\nagent = \"{agent}\""));
    assert_eq!(run(&process("./no-such-agent"), false).0, 0);
    let (code, text) = run(&process("./no-such-agent"), true);
    assert_eq!(
        (code, text.lines().next()),
        (
            2,
            Some(
                "D/rouse.toml: worker.process.agent: D/./no-such-agent is not there, or not a program: give the path of rouse-agent"
            )
        )
    );
    assert_eq!(run(&process("sh"), true).0, 0);

    let mut out = Vec::new();
    assert_eq!(check(&dir.path().join("none.toml"), None, &mut out), 2);
    assert!(String::from_utf8(out).unwrap().contains("none.toml: cannot be read: "));
}

#[test]
fn a_file_of_another_type_gives_a_few_errors() {
    assert_eq!(reading(&"name = \"ci\"\r".repeat(1_000)).errors.len(), 1);
    assert_eq!(reading(&"\u{1}%PDF\n".repeat(1_000)).errors.len(), 20);
}

#[test]
fn no_text_makes_it_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let scraps: Vec<&str> = EXAMPLE.split_inclusive(['\n', '=', ' ', '"', '{', '}', '[', ']', ',']).collect();
    let odd =
        ["é", "\0", "{name}", "{1..3}", "-", "9999999999999999999999", "0x", "'", "\"\"\"", "\n", "nan", "1.5", "true"];
    for _ in 0..1500 {
        let mut text = String::new();
        for _ in 0..random.next_u32() % 60 {
            let from = if random.next_u32().is_multiple_of(6) { &odd[..] } else { &scraps[..] };
            text.push_str(from[random.next_u32() as usize % from.len()]);
        }
        let reading = reading(&text);
        assert_eq!(reading.config.is_none(), !reading.errors.is_empty(), "{text:?}");
    }
    // And each line of the example left out or doubled, which gets past the parser.
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for i in 0..lines.len() {
        let without = [&lines[..i], &lines[i + 1..]].concat().join("\n");
        reading(&without);
        let odd = odd[i % odd.len()];
        let changed = lines[i].split_once('=').map(|(key, _)| format!("{key}= {odd}")).unwrap_or_default();
        reading(&[&lines[..i], &[changed.as_str()], &lines[i + 1..]].concat().join("\n"));
    }
    reading(&"[".repeat(100_000));
    reading(&format!("a = {}", "[".repeat(100_000)));
}

#[test]
fn hosts_of_ec2_sleep_where_they_can() {
    let ec2 = |lines: &str| standing(&format!("[worker.ec2]\ninstance_type = \"m5.large\"\nami = \"ami-1\"\n{lines}"));
    let suspend = |lines: &str| worker(&good(&ec2(lines)), "w").latent.as_ref().unwrap().suspend.map(|s| s.max_age);
    let days = |days: u64| std::time::Duration::from_secs(days * 86_400);
    assert_eq!(suspend(""), None);
    assert_eq!(suspend("on_idle = \"terminate\"\nmax_age = \"1d\""), None);
    assert_eq!(suspend("on_idle = \"stop\""), Some(days(7)));
    assert_eq!(suspend("on_idle = \"hibernate\"\nmax_age = \"2d\""), Some(days(2)));
    let refused = errors(&ec2("spot_instance = true\non_idle = \"stop\""));
    assert!(refused.len() == 1 && refused[0].contains("worker.ec2.on_idle: not for spot instances"), "{refused:?}");
    let other = errors(&standing("[worker.process]\nagent = \"rouse-agent\"\non_idle = \"stop\""));
    assert!(other.len() == 1 && other[0].contains("on_idle"), "{other:?}");
    // What becomes of an idle host does not shape a new one: those that run go on.
    let print = |lines: &str| worker(&good(&ec2(lines)), "w").latent.as_ref().unwrap().fingerprint;
    assert_eq!(print("on_idle = \"stop\"\nmax_age = \"1d\""), print(""));
}
