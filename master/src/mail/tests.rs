//! The message is the same, byte for byte, each time.

use super::*;
use crate::config::Config;
use crate::core::mail::{Item, MailId, What};
use crate::core::plan::ProviderKind;
use rouse_shared::{HostId, Timestamp};
use std::path::Path;

/// 2026-11-23T12:00:00Z
const NOON: u64 = 1_795_435_200_000;

fn settings(mail: &str) -> MailConfig {
    Config::parse(&format!("[mail]\n{mail}"), Path::new("rouse.toml")).unwrap().mail
}

fn item(minutes: u64, what: What) -> Item {
    Item { at: Timestamp(NOON + minutes * 60_000), what }
}

fn missing(worker: &str, why: &str) -> Item {
    item(0, What::Missing { worker: worker.parse().unwrap(), why: why.to_owned() })
}

fn mail(to: &[&str], items: Vec<Item>) -> Mail {
    Mail {
        id: MailId("5f0c@example.org".to_owned()),
        created: Timestamp(NOON + 120_000),
        to: to.iter().map(|to| (*to).to_owned()).collect(),
        waiting: to.iter().map(|to| (*to).to_owned()).collect(),
        items,
        tries: 0,
        not_before: Timestamp(0),
        taken: false,
        error: None,
    }
}

#[test]
fn a_mail_has_all_news_in_plain_words() {
    let back = What::Back { worker: "linux-07".parse().unwrap(), missing_since: Timestamp(NOON) };
    let orphan = |handle: &str, terminated| {
        let handle = handle.to_owned();
        item(2, What::Orphan { provider: ProviderKind::Ec2, host: HostId("h12".to_owned()), handle, terminated })
    };
    let items = vec![
        missing("bot1", "not attached for 300 s"),
        missing("bot2", "3 of its hosts in a row did not start; the last one: it was said\r\n\r\n.\r\nQUIT"),
        item(1, back),
        orphan("i-1", true),
        orphan("i-2", false),
        item(
            9,
            What::Lingering {
                provider: ProviderKind::Ec2,
                host: HostId("h13".to_owned()),
                machine: "i-3".to_owned(),
                why: "OperationNotPermitted: it is protected".to_owned(),
                since: Timestamp(NOON),
            },
        ),
        item(
            9,
            What::LingeringOver {
                provider: ProviderKind::Openstack,
                host: HostId("h14".to_owned()),
                machine: "7b1c".to_owned(),
                since: Timestamp(NOON),
            },
        ),
    ];
    let config = settings("from = \"rouse@example.org\"");
    let text =
        String::from_utf8(message(&config, "ci", &mail(&["ann@example.org", "bob@example.org"], items)).unwrap())
            .unwrap();
    let expected = "From: rouse@example.org
Subject: [rouse ci] missing: bot1, bot2; back: linux-07; orphan: i-1, i-2;
 not terminated: i-3; terminated at last: 7b1c
Message-ID: <5f0c@example.org>
Date: Mon, 23 Nov 2026 12:02:00 +0000
Auto-Submitted: auto-generated
To: ann@example.org, bob@example.org
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 7bit

Workers that are missing:
  bot1
      not attached for 300 s (at 2026-11-23T12:00:00Z)
  bot2
      3 of its hosts in a row did not start; the last one: it was said .
      QUIT (at 2026-11-23T12:00:00Z)

Workers that are back:
  linux-07
      since 2026-11-23T12:01:00Z; it was missing from 2026-11-23T12:00:00Z

Machines of this master that are not in the ledger (orphans):
  i-1
      a machine of ec2 with the owner tag of h12, found at
      2026-11-23T12:02:00Z; it is being terminated
  i-2
      a machine of ec2 with the owner tag of h12, found at
      2026-11-23T12:02:00Z; it is left running, because audit.on_orphan is
      \"report\"

Machines that could not be terminated, and may cost money:
  i-3
      ec2, host h13, asked to end at 2026-11-23T12:00:00Z:
      OperationNotPermitted: it is protected

Machines that are gone now:
  7b1c
      openstack, host h14, since 2026-11-23T12:09:00Z; it was first asked
      to end at 2026-11-23T12:00:00Z

Reported by the rouse master ci.
`rouse workers`, `rouse hosts` and `rouse places` show the current state.

";
    assert_eq!(text.replace("\r\n", "\n"), expected);
}

#[test]
fn a_mail_names_every_loss_and_its_subject_stays_short() {
    let items: Vec<Item> = (0..500).map(|n| missing(&format!("w{n}"), "not attached for 300 s")).collect();
    let mail = mail(&["ann@example.org"], items.clone());
    let text = String::from_utf8(message(&settings(""), "ci", &mail).unwrap()).unwrap();
    assert!(text.contains("Subject: [rouse ci] missing: w0 and 499 more\r\n"), "{text}");
    assert!((0..500).all(|n| text.contains(&format!("  w{n}\r\n      not attached"))));
    assert!(text.lines().all(|line| line.len() < 998), "RFC 5322, 2.1.1");
}

#[test]
fn what_a_cloud_calls_a_machine_adds_no_header() {
    let handle = "i-1\r\nBcc: eve@example.org\r\n\r\nnews".to_owned();
    let what = What::Orphan { provider: ProviderKind::Ec2, host: HostId("h1".to_owned()), handle, terminated: true };
    let text = message(&settings(""), "ci", &mail(&["ann@example.org"], vec![item(0, what)])).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("\nBcc") && text.split("\r\n\r\n").next().unwrap().contains("Message-ID"), "{text}");
}

#[test]
fn a_mail_with_long_lines_and_letters_of_all_kinds_is_encoded() {
    let why = "é".repeat(3_000);
    let text = message(&settings(""), "ci", &mail(&["ann@example.org"], vec![missing("w1", &why)])).unwrap();
    assert!(text.is_ascii() && String::from_utf8(text).unwrap().lines().all(|line| line.len() < 998));
}

#[test]
fn the_name_for_the_greeting_has_a_domain() {
    for (machine, from, expected) in [
        (Some("ci.example.net"), "rouse@example.org", "ci.example.net"),
        (Some("ci.example.net."), "rouse@example.org", "ci.example.net"),
        (Some("ci"), "rouse@example.org", "example.org"),
        (Some("localhost.localdomain"), "rouse@example.org", "example.org"),
        (Some("not a name.org"), "rouse@example.org", "example.org"),
        (None, "rouse@bücher.example", "xn--bcher-kva.example"),
        (None, "rouse@localhost", "localhost"),
    ] {
        assert_eq!(connection::choose_name(machine, from), expected, "{machine:?} {from}");
    }
}

#[test]
fn tls_is_as_strict_as_there_is_something_to_protect() {
    // Whether nothing is sent without, and whether the certificate has to be right.
    for (relay, needs_tls, verifies) in [
        ("smtp://localhost", false, false),
        ("smtp://mail.example.org", false, false),
        ("smtp://u:p@mail.example.org", true, true),
        ("smtp://u:p@mail.example.org?tls=none", false, false),
        ("smtp://u:p@127.0.0.1", false, false),
        ("smtp://mail.example.org?tls=required", true, true),
        ("smtps://u:p@mail.example.org", true, true),
        ("smtps://[::1]", true, false),
    ] {
        let config = settings(&format!("relay = \"{relay}\""));
        assert_eq!((config.needs_tls(), config.verifies()), (needs_tls, verifies), "{relay}");
    }
    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    assert!(settings(&format!("ca = \"{ca}\"")).verifies());
}
