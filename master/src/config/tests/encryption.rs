//! Which addresses of the private broker speak TLS, and what is said of connections in clear.

use super::*;
use crate::clock;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

fn dialled(broker: &str) -> String {
    good(broker).broker.agents_dial().unwrap()
}

#[test]
fn agents_dial_the_address_that_check_accepts() {
    for (broker, expected) in [
        ("", "amqp://127.0.0.1/rouse"),
        ("broker.listen = [\"127.0.0.1:5672\", \"192.0.2.1:5673\"]", "amqps://192.0.2.1:5673/rouse"),
        ("broker.listen = [\"0.0.0.0:5672\", \"[2001:db8::1]:5671\"]", "amqps://[2001:db8::1]/rouse"),
        ("broker.listen = [\"192.0.2.1:5671\", \"192.0.2.2:5671\"]", "amqps://192.0.2.1/rouse"),
        ("broker.listen = [\"127.0.0.1:5674\", \"[::1]:5674\"]", "amqp://127.0.0.1:5674/rouse"),
        ("broker.url = \"amqps://a:b@mq.example.org/v\"", "amqps://mq.example.org/v"),
        ("broker.listen = \"192.0.2.1:5671\"\nbroker.agent_url = \"amqps://mq/v\"", "amqps://mq/v"),
        ("broker.listen = \"192.0.2.1:5672\"\nbroker.tls = \"off\"", "amqp://192.0.2.1/rouse"),
        ("broker.listen = \"127.0.0.1:5672\"\nbroker.tls = \"on\"", "amqp://127.0.0.1/rouse"),
    ] {
        assert_eq!(dialled(broker), expected, "{broker}");
    }
}

#[test]
fn a_broker_that_agents_dial_in_clear_is_never_switched_silently() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let text = |broker: &str| format!("[master]\nstate_dir = {state:?}\n[broker]\n{broker}");
    let before = |conf: &str| {
        std::fs::create_dir_all(state.join("broker")).unwrap();
        std::fs::write(state.join("broker/rabbitmq.conf"), conf).unwrap();
    };
    let listen = "listen = [\"127.0.0.1:5672\", \"0.0.0.0:5673\"]\n";
    assert_eq!(good(&text(listen)).broker.encrypted, ["0.0.0.0:5673".parse().unwrap()]);
    before("listeners.tcp.1 = 127.0.0.1:5672\nlisteners.tcp.2 = 0.0.0.0:5673\ntcp_listen_options.backlog = 1024\n");
    let error = errors(&text(listen)).join("\n");
    assert!(error.starts_with("rouse.toml:4:10: broker.listen: agents have dialled 0.0.0.0:5673 in clear"), "{error}");
    assert!(error.contains("tls = \"on\"") && error.contains("tls = { cert, key }") && error.contains("tls = \"off\""));
    // An address of the same port that was covered before. The interface of this one may not be up.
    let error = errors(&text("listen = \"192.0.2.1:5673\"")).join("\n");
    assert!(error.contains("192.0.2.1:5673 in clear") && error.contains("bring the bridge up"), "{error}");
    assert_eq!(good(&text("listen = \"192.0.2.1:5674\"")).broker.encrypted.len(), 1);
    assert_eq!(good(&text("")).broker.encrypted, []);
    assert_eq!(good(&text(&format!("{listen}tls = \"on\""))).broker.encrypted.len(), 1);
    assert_eq!(good(&text(&format!("{listen}tls = \"off\""))).broker.encrypted, []);
    before("listeners.tcp.1 = 127.0.0.1:5672\nlisteners.ssl.1 = 0.0.0.0:5673\n");
    assert_eq!(good(&text(listen)).broker.encrypted.len(), 1);
    // The URL that is given to agents follows.
    let error = errors(&text("listen = \"0.0.0.0:5672\"\nagent_url = \"amqp://mq/rouse\"")).join("\n");
    assert!(error.contains("broker.agent_url: begins with amqp://, and the broker speaks TLS"), "{error}");
    assert!(dialled(&text("listen = \"0.0.0.0:5671\"\nagent_url = \"amqp://127.0.0.1/rouse\"")).starts_with("amqp://"));
}

#[test]
fn what_crosses_a_network_in_clear_is_warned_of() {
    let worker = "\n[[worker]]\nname = \"w\"\npassword = \"x\"\nrun_as = \"b\"\n";
    let ec2 =
        |url: &str| format!("{worker}[worker.ec2]\ninstance_type = \"m\"\nami = \"ami-1\"\nendpoint_url = \"{url}\"");
    let nova = |url: &str| {
        format!(
            "{worker}[worker.openstack]\nflavor = \"1\"\nimage = \"i\"\nos_auth_url = \"{url}\"\nos_username = \"u\""
        )
    };
    let relay = |url: &str| format!("[mail]\nrelay = \"{url}\"");
    let url = |url: &str| format!("[broker]\nurl = \"{url}\"");
    let agent_url = |url: &str| format!("[broker]\nagent_url = \"{url}\"");
    let count = |text: &str| warnings(text).iter().filter(|warning| warning.contains("in clear")).count();
    for (text, expected) in [
        (url("amqp://a:b@mq.example.org/v"), 1),
        (url("amqp://a:b@localhost,192.0.2.1/v"), 1),
        (url("amqps://a:b@mq.example.org/v"), 0),
        (url("amqp://a:b@localhost,127.0.0.1,[::1]/v"), 0),
        (agent_url("amqp://mq.example.org/v"), 1),
        (agent_url("amqps://mq.example.org/v"), 0),
        ("[broker]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:2\", \"192.0.2.1:3\"]\ntls = \"off\"".to_owned(), 2),
        ("[broker]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:2\", \"192.0.2.1:3\"]".to_owned(), 0),
        ("[master]\nlisten = \"0.0.0.0:8090\"".to_owned(), 1),
        ("[master]\nlisten = \"127.0.0.1:80\"".to_owned(), 0),
        (ec2("http://cloud.example.org"), 1),
        (ec2("https://cloud.example.org"), 0),
        (ec2("http://127.0.0.1:4566"), 0),
        (nova("http://192.0.2.1:5000/v3"), 1),
        (nova("https://192.0.2.1:5000/v3"), 0),
        (relay("smtp://u:p@h.example.org?tls=none"), 1),
        (relay("smtp://u:p@localhost?tls=none"), 0),
        (relay("smtp://h.example.org?tls=none"), 0),
        (relay("smtp://u:p@h.example.org"), 0),
    ] {
        assert_eq!(count(&text), expected, "{text}: {:?}", warnings(&text));
    }
    let guest = |broker: &str| {
        let text = format!("{broker}{}", worker.replace("\"w\"", "\"guest\""));
        warnings(&text).iter().filter(|warning| warning.contains("RabbitMQ has an administrator of this name")).count()
    };
    assert_eq!((guest(&url("amqps://a:b@mq.example.org/v")), guest("")), (1, 0));
    for idle in ["[broker]\ntls = \"on\"", "[broker]\nurl = \"amqps://a:b@mq\"\ntls = \"off\""] {
        assert!(warnings(idle)[0].contains("broker.tls: has no effect"), "{idle}");
    }
}

#[test]
fn certificates_are_read_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rouse.toml");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["mq.example.org".to_owned()]).unwrap();
    std::fs::write(dir.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    params.not_after = date_time_ymd(2020, 1, 1);
    std::fs::write(dir.path().join("old.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    write(&dir.path().join("key.pem"), key.serialize_pem(), 0o600);
    write(&dir.path().join("other.pem"), KeyPair::generate().unwrap().serialize_pem(), 0o600);
    let read = |cert: &str, key: &str, broker: &str| {
        let tls = format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}");
        let text = format!("[master]\n{tls}\n[broker]\nlisten = \"0.0.0.0:5671\"\n{tls}\n{broker}");
        read_text(&text, &path, None, &env)
    };
    let named = "agent_url = \"amqps://mq.example.org/rouse\"";
    let reading = read("cert.pem", "key.pem", named);
    assert_eq!((&reading.errors[..], &reading.warnings[..]), (&[][..], &[][..]));
    let config = reading.config.unwrap();
    let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    assert_eq!((config.master.tls, &config.broker.tls), (Some(files.clone()), &BrokerTls::Files(files)));
    assert_eq!(config.broker.encrypted.len(), 1);
    let errors = |cert: &str, key: &str| {
        let errors = read(cert, key, named).errors;
        assert_eq!(errors.len(), 2, "one for the page and one for the broker: {errors:?}");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(errors("cert.pem", "other.pem").contains("other.pem is not that of the certificate"));
    write(&dir.path().join("open.pem"), key.serialize_pem(), 0o644);
    assert!(errors("cert.pem", "open.pem").contains("open.pem (mode 0644), which has a secret in it"));
    assert!(errors("none.pem", "key.pem").contains("broker.tls: cannot read"));
    assert!(errors("key.pem", "key.pem").contains("key.pem has no certificate"));
    let warnings = |cert: &str, broker: &str| read(cert, "key.pem", broker).warnings;
    let expired = warnings("old.pem", named);
    assert!(expired.len() == 2 && expired[1].message.contains("has expired"), "{expired:?}");
    let other = warnings("cert.pem", "agent_url = \"amqps://mq2.example.org/rouse\"");
    assert!(other.len() == 1 && other[0].message.contains("for another name than mq2.example.org"), "{other:?}");
    let text = "[broker]\ntls = { cert = \"cert.pem\" }";
    let missing = read_text(text, &path, None, &env).errors;
    assert!(missing.len() == 1 && missing[0].to_string().contains("broker.tls.key: missing"), "{missing:?}");
}

#[test]
fn check_prints_what_standing_agents_need() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rouse.toml");
    let state = dir.path().join("state");
    let check = |lines: &str| {
        std::fs::write(&path, format!("[master]\nstate_dir = {state:?}\n[broker]\n{lines}")).unwrap();
        let mut out = Vec::new();
        assert_eq!(super::check(&path, None, &mut out), 0);
        String::from_utf8(out).unwrap()
    };
    let listen = "listen = \"192.0.2.1:5671\"";
    assert!(check(listen).contains("once the master has been started"));
    let authority = crate::broker::Authority::open(&state.join("tls")).unwrap();
    let fingerprint = crate::tls::fingerprints(&authority.certificate()).unwrap()[0].to_string();
    let expected = format!("broker = \"amqps://192.0.2.1/rouse\", fingerprint = \"{fingerprint}\"");
    assert!(check(listen).contains(&expected), "{}", check(listen));
    assert!(!check("").contains("agent.toml"));
    let issued = "tls/broker.pem";
    authority.issue(&["192.0.2.1".to_owned()], clock::wall()).unwrap();
    let files =
        format!("tls = {{ cert = {0:?}, key = {0:?} }}\nca = {1:?}", state.join(issued), authority.certificate());
    let told = check(&format!("{listen}\n{files}"));
    assert!(told.contains("broker = \"amqps://192.0.2.1/rouse\", ca = the path of a copy of"), "{told}");
}
