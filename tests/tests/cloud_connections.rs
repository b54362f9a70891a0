//! How the master and agents reach clouds of every kind and the broker: proxies in the environment, and certificates.
//! The tests need no cloud: a proxy records the requests, and Keystone is a fixed answer.
#![allow(clippy::unwrap_used)]

use rouse_tests::harness::{
    DEADLINE, PASSWORD, Process, REFUSED_CERTIFICATES, check_online, holds_within, make_certificates,
    make_own_certificate, program, scratch, tls_server,
};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// An HTTP server that gives every request the same answer; the first lines of what it was asked.
fn server(answer: String) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let heard = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let (mut first, mut length) = (String::new(), 0);
            reader.read_line(&mut first).ok();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    let field = line.to_ascii_lowercase();
                    length = field.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().unwrap());
                } else {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok();
            heard.lock().unwrap().push(first.trim().to_owned());
            (&stream).write_all(answer.as_bytes()).ok();
        }
    });
    (address, asked)
}

fn openstack(auth_url: &str) -> String {
    format!(
        "[worker.openstack]\nflavor = \"1\"\nimage = \"i\"\nos_username = \"u\"\nos_password = \"p\"\nos_tenant_name = \"t\"\n\
         os_auth_url = \"{auth_url}\"\n"
    )
}

fn ec2(endpoint: &str) -> String {
    format!(
        "[worker.ec2]\ninstance_type = \"m5.large\"\nami = \"ami-1\"\nregion = \"us-west-2\"\nidentifier = \"AKIA\"\n\
         secret_identifier = \"s\"\nendpoint_url = \"{endpoint}\"\n"
    )
}

fn check(dir: &Path, section: &str, env: &[(&str, &str)]) -> String {
    let head = "[[worker]]\nname = \"w\"\npassword = \"x\"\nrun_as = \"build\"\n";
    check_online(dir, &format!("{head}{section}"), env).1
}

#[test]
fn proxies_of_the_environment_are_used_by_all_clouds_alike() {
    let (proxy, asked) =
        server("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned());
    let proxy = format!("http://{proxy}");
    let dir = tempfile::tempdir().unwrap();
    let seen = |section: &str, no_proxy: &str| {
        let env = [("HTTPS_PROXY", proxy.as_str()), ("http_proxy", &proxy), ("NO_PROXY", no_proxy)];
        check(dir.path(), section, &env);
        let seen = std::mem::take(&mut *asked.lock().unwrap());
        seen.first().cloned().unwrap_or_default()
    };
    for (section, expected) in [
        (openstack("https://keystone.invalid/v3"), "CONNECT keystone.invalid:443 "),
        (openstack("http://keystone.invalid:5000/v3"), "POST http://keystone.invalid:5000/v3/auth/tokens "),
        (ec2("https://ec2.invalid"), "CONNECT ec2.invalid:443 "),
        (ec2("http://ec2.invalid"), "POST http://ec2.invalid/ "),
    ] {
        let first = seen(&section, "");
        assert!(first.starts_with(expected), "{section}: {first:?}");
        assert_eq!(seen(&section, "example.org,.invalid"), "", "{section}");
    }
    // This machine is not asked for through a proxy, unless that is asked for.
    for section in [openstack("http://127.0.0.1:1/v3"), openstack("https://localhost:1/v3"), ec2("http://127.0.0.1:1")]
    {
        assert_eq!(seen(&section, ""), "", "{section}");
        assert_ne!(seen(&section, "<-loopback>"), "", "{section}");
    }
    // A link's own addresses never are.
    for address in ["[fe80::a9fe:a9fe]", "[fd00:ec2::254]", "169.254.169.254"] {
        assert_eq!(seen(&openstack(&format!("http://{address}/v3")), "<-loopback>"), "", "{address}");
    }
}

#[test]
fn services_behind_tls_are_verified_though_keystone_is_not() {
    let (dir, other) = (scratch("cloud-tls"), scratch("cloud-tls-other"));
    make_certificates(&dir);
    make_certificates(&other);
    let (_tls, address) = tls_server(&dir);
    let endpoint =
        json!([{ "interface": "public", "region": "R", "url": format!("https://localhost:{}", address.port()) }]);
    let services = ["compute", "image", "network"].map(|kind| json!({ "type": kind, "endpoints": endpoint }));
    let body = json!({ "token": { "project": { "id": "p" }, "catalog": services } }).to_string();
    let length = body.len();
    let head =
        format!("HTTP/1.1 201 Created\r\nX-Subject-Token: t\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let (keystone, _) = server(head + &body);
    let section = openstack(&format!("http://{keystone}/v3"));
    let said = |authorities: &Path| {
        let authorities = authorities.join("ca.pem").display().to_string();
        check(&dir, &section, &[("SSL_CERT_FILE", &authorities)])
    };
    // It is no Glance, and says so in HTML: the connection is what counts.
    let trusted = said(&dir);
    assert!(trusted.contains("cannot read /") && !trusted.contains("certificate"), "{trusted}");
    let untrusted = said(&other);
    assert!(untrusted.contains("no authority that is trusted here has signed"), "{untrusted}");
    for dir in [dir, other] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// As for the mail relay (`mail.rs`): by the master, for its broker and for a cloud, and by the agent.
#[test]
fn a_certificate_that_is_refused_is_explained_with_the_command_that_makes_a_right_one() {
    for (commands, words) in REFUSED_CERTIFICATES {
        let dir = scratch("refused-certificate");
        make_own_certificate(&dir, commands);
        let (_tls, address) = tls_server(&dir);
        let (port, authority) = (address.port(), dir.join("ca.pem").display().to_string());
        let explained = |said: &str| said.contains(words) && said.contains("openssl req -x509");

        let cloud = openstack(&format!("https://localhost:{port}/v3")) + &format!("os_cacert = \"{authority}\"\n");
        let said = check(&dir, &cloud, &[]);
        assert!(explained(&said), "OpenStack, {words}: {said}");

        let url = format!("amqps://rouse:secret@localhost:{port}/rouse");
        let broker = format!("[broker]\nurl = \"{url}\"\nca = \"{authority}\"\n");
        let said = check_online(&dir, &broker, &[]).1;
        assert!(explained(&said), "the broker, {words}: {said}");

        let mut agent = Command::new(program("rouse-agent"));
        agent.env_clear().env("ROUSE_AGENT_IDENTITY", "static").env("ROUSE_AGENT_NAME", "w");
        agent.env("ROUSE_AGENT_PASSWORD", PASSWORD).env("ROUSE_AGENT_WORK_DIR", dir.join("work"));
        agent.env("ROUSE_AGENT_BROKER", format!("amqps://localhost:{port}/rouse")).env("ROUSE_AGENT_CA", &authority);
        let agent = Process::start(agent, &dir, "agent");
        assert!(holds_within(DEADLINE, || explained(&agent.err())), "the agent, {words}: {}", agent.err());
        drop(agent);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
