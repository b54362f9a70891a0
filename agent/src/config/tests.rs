//! Valid configurations and their defaults, and the errors of invalid ones.
#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::fs::PermissionsExt as _;

const STANDING: &str = "broker = \"amqps://mq.example.org/rouse\"\nname = \"bot-solaris\"\npassword = \"hush\"\n";

fn parse(text: &str) -> Result<AgentConfig, String> {
    AgentConfig::parse(text, "agent.toml", &Vec::new()).map_err(|e| e.to_string())
}

fn env(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn defaults_are_filled_in() {
    let config = parse(STANDING).unwrap();
    assert_eq!(config.identity, IdentityKind::Auto);
    assert_eq!(config.work_dir, Path::new("/var/lib/rouse/work"));
    assert_eq!((config.max_log_size, config.latent), (64_000_000, false));
    assert_eq!(config.power_off_after, Duration::from_secs(1_200));
    assert_eq!(config.power_off_command, ["systemctl", "poweroff"]);
}

#[test]
fn every_key_counts() {
    let text = "
        broker = 'amqp://a.example.org,b.example.org'
        identity = 'static'
        name = 'w1'
        password = { env = 'SECRET' }
        work_dir = '/srv/work'
        run_as = 'build'
        max_log_size = '1GiB'
        power_off = 'latent'
        power_off_after = '1h30m'
        power_off_command = []
        ca = '/etc/rouse/ca.pem'
        default_hostnames = ['golden']
        metadata = 'http://127.0.0.1:8080'
    ";
    let config = AgentConfig::parse(text, "x", &env(&[("SECRET", "hush")])).unwrap();
    assert_eq!(
        config,
        AgentConfig {
            broker: Some("amqp://a.example.org,b.example.org".to_owned()),
            identity: IdentityKind::Static,
            name: Some("w1".parse().unwrap()),
            password: Some("hush".to_owned()),
            work_dir: "/srv/work".into(),
            run_as: Some("build".to_owned()),
            max_log_size: 1 << 30,
            latent: true,
            power_off_after: Duration::from_secs(5_400),
            power_off_command: Vec::new(),
            ca: Some("/etc/rouse/ca.pem".into()),
            fingerprint: None,
            boot_data: None,
            default_hostnames: vec!["golden".to_owned()],
            metadata: Server::parse("http://127.0.0.1:8080").unwrap(),
        }
    );
    // What --check prints is a configuration again, but for the secret.
    let said = config.describe();
    assert!(!said.contains("hush") && !format!("{config:?}").contains("hush"), "{said}");
    let again = parse(&said).unwrap();
    assert_eq!(again.power_off_after, config.power_off_after);
}

#[test]
fn the_environment_wins() {
    let vars = env(&[
        ("ROUSE_AGENT_NAME", "w2"),
        ("ROUSE_AGENT_POWER_OFF_COMMAND", "/sbin/poweroff -f"),
        ("ROUSE_AGENT_DEFAULT_HOSTNAMES", "[\"a b\", \"c\"]"),
        ("ROUSE_AGENT_MAX_LOG_SIZE", "5kB"),
        ("HOME", "/root"),
    ]);
    let config = AgentConfig::parse(STANDING, "x", &vars).unwrap();
    assert_eq!(config.name.unwrap().as_str(), "w2");
    assert_eq!(config.power_off_command, ["/sbin/poweroff", "-f"]);
    assert_eq!(config.default_hostnames, ["a b", "c"]);
    assert_eq!(config.max_log_size, 5_000);
    for (variable, value, part) in [
        ("ROUSE_AGENT_NMAE", "w2", "unknown key \"nmae\""),
        ("ROUSE_AGENT_NAME", "W_2", "is not a worker name"),
        ("ROUSE_AGENT_POWER_OFF_AFTER", "soon", "is not a duration"),
        ("ROUSE_AGENT_POWER_OFF_COMMAND", "[1]", "expected a string"),
    ] {
        let error = AgentConfig::parse(STANDING, "x", &env(&[(variable, value)])).unwrap_err().to_string();
        assert!(error.starts_with(&format!("${variable}: ")) && error.contains(part), "{error}");
    }
}

#[test]
fn boot_data_bring_the_rest() {
    for identity in ["auto", "ec2", "openstack", "config-drive", "boot-data"] {
        let config = parse(&format!("identity = \"{identity}\"")).unwrap();
        assert_eq!((config.identity.as_str(), config.broker, config.password), (identity, None, None));
    }
    // A name is for testing the image.
    assert!(parse("name = \"w1\"\npower_off = \"latent\"").is_ok());
    assert!(parse("name = \"w1\"\nboot_data = \"/run/rouse/boot.toml\"").is_ok());
}

#[test]
fn errors_say_where_and_what() {
    for (text, place, part) in [
        ("broker = 5", "agent.toml:1:10: broker: ", "expected a string"),
        ("\nbrokr = \"x\"", "agent.toml:2:1: ", "unknown field `brokr`"),
        ("name = \"W1\"", "agent.toml:1:8: name: ", "is not a worker name"),
        ("max_log_size = \"64XB\"", "agent.toml:1:16: max_log_size: ", "is not a size"),
        ("max_log_size = -1", "agent.toml:1:16: max_log_size: ", "below 0"),
        ("power_off_after = \"30m1h\"", "agent.toml:1:19: power_off_after: ", "is not a duration"),
        ("password = { fil = \"x\" }", "agent.toml:1:", "unknown field `fil`"),
        ("password = 7", "agent.toml:1:12: password: ", "{ file = \"path\" }"),
        ("power_off = [", "agent.toml:1:", "array"),
        ("power_off = \"always\"", "agent.toml: power_off: ", "neither"),
        ("metadata = \"https://x\"", "agent.toml: metadata: ", "does not begin with http://"),
        ("identity = \"magic\"", "agent.toml: identity: ", "is not one of auto"),
        ("identity = \"static\"", "agent.toml: name: ", "missing"),
        ("identity = \"hostname\"", "agent.toml: broker: ", "missing"),
        ("name = \"w1\"\npassword = \"x\"", "agent.toml: broker: ", "missing"),
        ("name = \"w1\"\nbroker = \"amqp://mq.example.org\"", "agent.toml: password: ", "missing"),
        ("broker = \"mq.example.org\"", "agent.toml: broker: ", "must begin with amqp"),
        (
            "password = { file = \"/nonexistent/secret\" }",
            "agent.toml: password: ",
            "/nonexistent/secret cannot be read",
        ),
        ("password = { env = \"NO_SUCH\" }", "agent.toml: password: ", "$NO_SUCH is not set"),
        ("password = \"\"", "agent.toml: password: ", "the password is empty"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(part), "{text}: {error}");
    }
    let relative = format!("{STANDING}work_dir = \"work\"");
    assert!(parse(&relative).unwrap_err().contains("work_dir: work is not an absolute path"));
    let at_once = format!("{STANDING}power_off = \"latent\"\npower_off_after = 0");
    assert!(parse(&at_once).unwrap_err().contains("power_off_after: 0"));
}

#[test]
fn sizes() {
    for (text, bytes) in
        [("7", 7), ("7B", 7), ("64MB", 64_000_000), ("64 MiB", 64 << 20), ("2kB", 2_000), ("1GB", 1_000_000_000)]
    {
        assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
    }
    for bad in ["", "MB", "1.5MB", "-1", "99999999999GB", "1 M B"] {
        assert!(bad.parse::<Size>().is_err(), "{bad:?} was taken");
    }
}

#[test]
fn a_secret_in_a_file_ends_at_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    write(&path, "hush hush\r\n", 0o600);
    let secret = SecretSource::File(path);
    assert_eq!(secret.reveal(&|_| None).unwrap(), "hush hush");
    assert!(!format!("{:?}", SecretSource::Text(Secret::new("hush"))).contains("hush"));
}

#[test]
fn the_broker_is_trusted_by_its_authority_or_by_a_fingerprint() {
    let fingerprint = Fingerprint::of(b"certificate");
    let line = format!("fingerprint = \"{fingerprint}\"\n");
    let config = parse(&format!("{STANDING}{line}")).unwrap();
    assert_eq!(config.fingerprint, Some(fingerprint));
    assert_eq!(parse(&config.describe().replace('…', "hush")).unwrap(), config);
    let given = env(&[("ROUSE_AGENT_FINGERPRINT", &fingerprint.to_string())]);
    assert_eq!(AgentConfig::parse(STANDING, "x", &given).unwrap().fingerprint, Some(fingerprint));
    for (text, word) in [
        (format!("{STANDING}{line}ca = \"/etc/rouse/ca.pem\""), "fingerprint: set together with ca"),
        (format!("{STANDING}{line}").replace("amqps", "amqp"), "amqps://"),
        (format!("{STANDING}fingerprint = \"sha256:12\""), "fingerprint: not a fingerprint"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, secret) = (dir.path().join("agent.toml"), dir.path().join("agent.secret"));
    let named = STANDING.replace("\"hush\"", &format!("{{ file = {secret:?} }}"));
    assert_ne!(named, STANDING);
    for (text, own, other, refused) in [
        (STANDING, 0o600, 0o644, None),
        (STANDING, 0o640, 0o644, None),
        (STANDING, 0o644, 0o600, Some(&config)),
        (STANDING, 0o604, 0o600, Some(&config)),
        (&named, 0o644, 0o600, None),
        (&named, 0o600, 0o644, Some(&secret)),
        (&named, 0o600, 0o666, Some(&secret)),
    ] {
        write(&config, text, own);
        write(&secret, "hush\n", other);
        let read = AgentConfig::load(Some(&config), &Vec::new()).map_err(|e| e.to_string());
        match (refused, read) {
            (None, Ok(config)) => assert_eq!(config.password.as_deref(), Some("hush")),
            (Some(file), Err(why)) => {
                assert!(why.contains(" password: all users of the machine have access to "), "{why}");
                assert!(
                    why.ends_with(&format!("run `chmod {} {}`", if own == 0o604 { 600 } else { 640 }, file.display())),
                    "{why}"
                );
            }
            (_, read) => panic!("{own:o} {other:o}: {read:?}"),
        }
    }
    // No secret is in it, so everybody may read it.
    write(&config, "broker = \"amqp://mq.example.org\"\n", 0o644);
    AgentConfig::load(Some(&config), &Vec::new()).unwrap();
}
