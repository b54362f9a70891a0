//! Workers go missing while the relay is down, the master is killed while the relay has a mail and has not answered,
//! and each recipient gets all news once.

use rouse_tests::harness::{DEADLINE, Master, Protection, Relay, TakenMail, latent, scratch, standing};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// News are gathered for a minute.
const GATHERED: Duration = Duration::from_secs(150);

fn figure(master: &Master, name: &str) -> u64 {
    let metrics = String::from_utf8(master.get("/metrics").body).unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// A program that runs and never attaches.
fn mute_agent(dir: &Path) -> String {
    let path = dir.join("agent");
    std::fs::write(&path, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn workers(relay: &Relay, mute: &str) -> String {
    let mail = format!(
        "[mail]\nfrom = \"rouse@example.org\"\nrelay = \"smtp://bb:secret@localhost:{}\"\nca = \"{}\"\n\
         extra_recipients = [\"ops@example.org\"]\n",
        relay.port,
        relay.dir.join("ca.pem").display()
    );
    let quick = "keepalive_interval = 1\nlease = 4";
    let by_recipient = |who: &str, timeout: u32| {
        format!("{quick}\nmissing_timeout = {timeout}\nnotify_on_missing = \"{who}@example.org\"\n")
    };
    // The first loss begins the minute; the agents of the other two are killed before it is over.
    mail + &standing("killed-a", &by_recipient("ann", 30))
        + &standing("killed-b", &by_recipient("bob", 30))
        + &standing("never", &by_recipient("ann", 15))
        + &standing("works", "keepalive_interval = 2\nlease = 60")
        + &standing("mute", &format!("{}min_idle = 1\n[worker.process]\nagent = \"{mute}\"", by_recipient("bob", 15)))
        + &latent("sleeps", "build_wait_timeout = 1")
}

/// The message ids of the mails, by recipient and news.
fn by_recipient(mails: &[TakenMail]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut by_recipient: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for mail in mails {
        let mut head = "";
        for line in mail.text.lines() {
            if let Some(of) = line.strip_prefix("Workers that are ") {
                head = of;
            } else if let Some(name) = line.strip_prefix("  ").filter(|name| !name.starts_with(' ')) {
                for to in &mail.to {
                    by_recipient
                        .entry((to.clone(), format!("{head} {name}")))
                        .or_default()
                        .insert(mail.id().to_owned());
                }
            }
        }
    }
    by_recipient
}

#[test]
fn each_recipient_gets_all_news_once_whatever_relay_and_master_do() {
    let mut relay = Relay::new("e2e", Protection::StartTls, Some("bb:secret"));
    let mute_dir = scratch("mail-mute");
    let master = Master::start("mail", &workers(&relay, &mute_agent(&mute_dir)));
    for name in ["killed-a", "killed-b"] {
        drop(master.agent(name));
    }
    let _works = master.agent("works");
    master.until_within(GATHERED, "mails wait", || figure(&master, "rouse_mails_waiting") == 3);
    master.until("the relay was tried", || figure(&master, "rouse_mail_tries_failed_total") > 0);
    for name in ["killed-a", "killed-b", "never"] {
        assert_eq!(master.worker(name)["state"], "missing", "{name}");
    }
    let said = master.rouse(&["workers"]).ended(0).err;
    assert!(said.contains("3 mails have been waiting for the relay") && said.contains("refused"), "{said}");
    // Nobody waits for the mail.
    for worker in ["works", "sleeps"] {
        master.rouse(&["build", "--worker", worker, "--", "true"]).ended(0);
    }
    assert_eq!(master.get("/healthz").status, 200);
    let _back = master.agent("killed-a");

    // The relay is up, takes a mail, and does not say so.
    relay.rules(&json!({ "data": "mute" }));
    relay.begin();
    master.until("the relay has a mail", || relay.mails().len() == 1);
    master.kill();
    relay.rules(&json!({}));
    master.begin();
    master.until("the relay has all", || figure(&master, "rouse_mails_waiting") == 0);
    // If all of this takes a minute, the next mail is there already.
    let mails: Vec<_> =
        relay.mails().into_iter().filter(|mail| mail.text.contains("Workers that are missing")).collect();
    assert_eq!(mails.len(), 4, "{mails:?}");
    let again: Vec<_> = mails[1..].iter().filter(|mail| mail.id() == mails[0].id()).collect();
    assert_eq!(again, [&mails[0]], "the same mail, once more");

    master.until_within(GATHERED, "one is back", || relay.mails().len() == 5);
    let mails = relay.mails();
    assert!(mails.iter().all(|mail| mail.tls && mail.login.as_deref() == Some("bb")), "{mails:?}");
    assert!(mails.iter().all(|mail| mail.from == "rouse@example.org"), "{mails:?}");
    let by_recipient = by_recipient(&mails);
    let expected: Vec<(String, String)> = [
        ("ann", "back: killed-a"),
        ("ann", "missing: killed-a"),
        ("ann", "missing: never"),
        ("bob", "missing: killed-b"),
        ("bob", "missing: mute"),
        ("ops", "back: killed-a"),
        ("ops", "missing: killed-a"),
        ("ops", "missing: killed-b"),
        ("ops", "missing: mute"),
        ("ops", "missing: never"),
    ]
    .map(|(who, what)| (format!("{who}@example.org"), what.to_owned()))
    .into();
    assert_eq!(by_recipient.keys().cloned().collect::<Vec<_>>(), expected);
    assert!(by_recipient.values().all(|mails| mails.len() == 1), "{by_recipient:#?}");
    master.until_within(DEADLINE, "nothing waits", || figure(&master, "rouse_mails_waiting") == 0);
    std::fs::remove_dir_all(mute_dir).unwrap();
}
