//! Mails to a real relay: aiosmtpd, with and without TLS and login, and with various faults.
#![allow(clippy::unwrap_used)]

use rouse_master::config::{Config, MailConfig};
use rouse_master::core::mail::{DeliveryResult, Item, Mail, MailError, MailId, RecipientAnswer, What};
use rouse_master::mail::{Patience, check, hand_over};
use rouse_shared::Timestamp;
use rouse_tests::harness::{Protection, Relay, TakenMail, holds_within, make_certificates, scratch};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Long enough for a busy machine.
const PATIENCE: Patience = Patience { command: Duration::from_secs(30), data: Duration::from_secs(30) };
/// For a relay that never answers.
const SHORT: Patience = Patience { command: Duration::from_secs(2), data: Duration::from_secs(2) };

fn settings(mail: &str) -> MailConfig {
    Config::parse(&format!("[mail]\nfrom = \"rouse@example.org\"\n{mail}"), Path::new("rouse.toml")).unwrap().mail
}

fn through(relay: &str) -> MailConfig {
    settings(&format!("relay = \"{relay}\""))
}

/// Through a relay whose certificate `dir/ca.pem` has signed.
fn trusting(relay: &str, dir: &Path) -> MailConfig {
    settings(&format!("relay = \"{relay}\"\nca = \"{}\"", dir.join("ca.pem").display()))
}

fn mail(to: &[&str]) -> Mail {
    let to: Vec<String> = to.iter().map(|to| format!("{to}@example.org")).collect();
    let what = What::Missing { worker: "bot1".parse().unwrap(), why: "not attached for 300 s".to_owned() };
    Mail {
        id: MailId("a1b2@example.org".to_owned()),
        created: Timestamp(1_795_435_200_000),
        waiting: to.iter().cloned().collect(),
        to,
        items: vec![Item { at: Timestamp(1_795_435_140_000), what }],
        tries: 0,
        not_before: Timestamp(0),
        taken: false,
        error: None,
    }
}

async fn hand(config: &MailConfig, to: &[&str]) -> DeliveryResult {
    hand_over(config, "ci", &mail(to), PATIENCE).await
}

fn began(name: &str, protection: Protection, login: Option<&str>) -> Relay {
    let mut relay = Relay::new(name, protection, login);
    relay.begin();
    relay
}

fn yes(to: &[&str]) -> DeliveryResult {
    Ok(to.iter().map(|to| (format!("{to}@example.org"), RecipientAnswer::Accepted)).collect())
}

/// Nothing was taken, since the relay does not serve us; what is said of it has all of `words`.
#[track_caller]
fn not_served(handed: &DeliveryResult, words: &[&str]) {
    let Err(MailError::Relay(why)) = handed else { panic!("{handed:?}") };
    assert!(words.iter().all(|word| why.contains(word)), "{why}");
}

#[track_caller]
fn only(relay: &Relay) -> TakenMail {
    let mut mails = relay.mails();
    assert_eq!(mails.len(), 1, "{mails:?}");
    mails.remove(0)
}

#[tokio::test]
async fn a_mail_is_one_message_for_all_of_its_recipients() {
    let relay = began("plain", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    assert_eq!(hand(&config, &["ann", "bob"]).await, yes(&["ann", "bob"]));
    let taken = only(&relay);
    assert_eq!((taken.from.as_str(), taken.tls, &taken.login), ("rouse@example.org", false, &None));
    assert_eq!(taken.to, ["ann@example.org", "bob@example.org"]);
    assert_eq!(taken.id(), "<a1b2@example.org>");
    assert!(taken.text.contains("Subject: [rouse ci] missing: bot1\n"), "{}", taken.text);
    assert!(taken.text.contains("\n  bot1\n      not attached for 300 s"), "{}", taken.text);
}

#[tokio::test]
async fn starttls_is_used_where_it_is_offered_whoever_signed() {
    let relay = began("offered", Protection::StartTls, None);
    assert_eq!(hand(&through(&format!("smtp://127.0.0.1:{}", relay.port)), &["ann"]).await, yes(&["ann"]));
    assert!(only(&relay).tls);
    // And not if it is not wanted.
    let never = through(&format!("smtp://127.0.0.1:{}?tls=none", relay.port));
    assert_eq!(hand(&never, &["ann"]).await, yes(&["ann"]));
    assert!(!relay.mails()[1].tls);
}

#[tokio::test]
async fn a_certificate_that_is_checked_has_to_be_right() {
    let relay = began("checked", Protection::StartTls, None);
    let port = relay.port;
    let config = trusting(&format!("smtp://localhost:{port}?tls=required"), &relay.dir);
    assert_eq!(hand(&config, &["ann"]).await, yes(&["ann"]));
    assert!(only(&relay).tls);

    let other = scratch("relay-other-authority");
    make_certificates(&other);
    let stranger = trusting(&format!("smtp://localhost:{port}?tls=required"), &other);
    not_served(&hand(&stranger, &["ann"]).await, &["certificate"]);
    // Signed by the right one, for another name.
    let elsewhere = trusting(&format!("smtp://127.0.0.1:{port}?tls=required"), &relay.dir);
    not_served(&hand(&elsewhere, &["ann"]).await, &["certificate"]);
    // Another machine than this one, as far as anybody can tell: an authority of nobody's does not do.
    not_served(&hand(&through(&format!("smtp://0.0.0.0:{port}?tls=required")), &["ann"]).await, &["certificate"]);
    assert_eq!(relay.mails().len(), 1);
    std::fs::remove_dir_all(other).unwrap();
}

/// A relay with the certificate that these commands of openssl make, and a configuration that has it as the authority.
fn with_certificate(name: &str, commands: &[&str]) -> (Relay, MailConfig) {
    let mut relay = Relay::new(name, Protection::StartTls, None);
    for command in commands {
        let words = command.split_whitespace();
        let output = std::process::Command::new("openssl").args(words).current_dir(&relay.dir).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::copy(relay.dir.join("server.pem"), relay.dir.join("ca.pem")).unwrap();
    relay.begin();
    let config = trusting(&format!("smtp://localhost:{}?tls=required", relay.port), &relay.dir);
    (relay, config)
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_explained_and_the_one_of_the_recipe_taken() {
    let request = "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr";
    let sign = "x509 -req -in server.csr -signkey server.key -out server.pem";
    let own = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.pem";
    let (_relay, authority) = with_certificate("authority", &[&format!("{own} -addext subjectAltName=DNS:localhost")]);
    let handed = hand(&authority, &["ann"]).await;
    not_served(&handed, &["CA:TRUE", "openssl req -x509"]);
    let nameless = format!("{own} -addext basicConstraints=critical,CA:FALSE");
    let (_relay, nameless) = with_certificate("nameless", &[&nameless]);
    not_served(&hand(&nameless, &["ann"]).await, &["no subjectAltName"]);
    let (_relay, first) = with_certificate("first", &[request, &format!("{sign} -days 2")]);
    not_served(&hand(&first, &["ann"]).await, &["version 1 of X.509"]);
    // server.ext is there already, with the name alone.
    let expired = format!("{sign} -days -1 -extfile server.ext");
    let (_relay, expired) = with_certificate("expired", &[request, &expired]);
    not_served(&hand(&expired, &["ann"]).await, &["expired"]);
    // What the explanation says to do.
    let Err(MailError::Relay(why)) = handed else { unreachable!() };
    let recipe = why.split("`openssl ").nth(1).unwrap().split('`').next().unwrap();
    let recipe = recipe.replace("key.pem", "server.key").replace("cert.pem", "server.pem");
    let (relay, right) = with_certificate("recipe", &[&recipe]);
    assert_eq!(hand(&right, &["ann"]).await, yes(&["ann"]));
    assert!(only(&relay).tls);
}

#[tokio::test]
async fn tls_that_is_required_and_not_offered_sends_nothing() {
    let relay = began("bare", Protection::None, Some("bb:secret"));
    let port = relay.port;
    not_served(&hand(&through(&format!("smtp://127.0.0.1:{port}?tls=required")), &["ann"]).await, &["STARTTLS"]);
    // A password goes to another machine only as it says in the address.
    let careful = hand(&through(&format!("smtp://bb:secret@0.0.0.0:{port}")), &["ann"]).await;
    not_served(&careful, &["STARTTLS", "tls=none"]);
    assert!(relay.mails().is_empty());
    let told_to = hand(&through(&format!("smtp://bb:secret@0.0.0.0:{port}?tls=none")), &["ann"]).await;
    assert_eq!(told_to, yes(&["ann"]));
    // On this machine nobody listens in.
    assert_eq!(hand(&through(&format!("smtp://bb:secret@127.0.0.1:{port}")), &["ann"]).await, yes(&["ann"]));
    assert_eq!(relay.mails()[1].login.as_deref(), Some("bb"));
}

#[tokio::test]
async fn tls_from_the_first_byte_with_a_login() {
    let relay = began("implicit", Protection::Implicit, Some("bb:s@cret/"));
    let config = trusting(&format!("smtps://bb:s%40cret%2F@localhost:{}", relay.port), &relay.dir);
    assert_eq!(hand(&config, &["ann"]).await, yes(&["ann"]));
    let taken = only(&relay);
    assert_eq!((taken.tls, taken.login.as_deref()), (true, Some("bb")));
}

#[tokio::test]
async fn a_login_that_is_refused_or_missing_is_the_relays_matter_and_no_mails() {
    let relay = began("login", Protection::StartTls, Some("bb:secret"));
    let port = relay.port;
    let wrong = hand(&trusting(&format!("smtp://bb:guess@localhost:{port}"), &relay.dir), &["ann"]).await;
    not_served(&wrong, &["login", "535"]);
    let Err(MailError::Relay(why)) = wrong else { unreachable!() };
    assert!(!why.contains("guess"), "{why}");
    assert_eq!(relay.count("refused"), 1);
    not_served(&hand(&through(&format!("smtp://localhost:{port}")), &["ann"]).await, &["530"]);
    let right = trusting(&format!("smtp://bb:secret@localhost:{port}"), &relay.dir);
    assert_eq!(hand(&right, &["ann"]).await, yes(&["ann"]));
    assert_eq!(only(&relay).login.as_deref(), Some("bb"));
}

#[tokio::test]
async fn each_recipient_has_an_answer_of_its_own() {
    let relay = began("recipients", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    let rules = json!({ "rcpt": { "bob@example.org": "550 5.1.1 no such user", "cyd@example.org": "451 try later" } });
    relay.rules(&rules);
    let answers = hand(&config, &["ann", "bob", "cyd", "dan"]).await.unwrap();
    let of = |who: &str| answers.iter().find(|(to, _)| to == &format!("{who}@example.org")).unwrap().1.clone();
    assert_eq!((of("ann"), of("dan")), (RecipientAnswer::Accepted, RecipientAnswer::Accepted));
    assert!(matches!(of("bob"), RecipientAnswer::Refused(why) if why.contains("550") && why.contains("no such user")));
    assert!(matches!(of("cyd"), RecipientAnswer::Later(why) if why.contains("451")));
    assert_eq!(only(&relay).to, ["ann@example.org", "dan@example.org"]);
    // If it takes nobody, the message stays here.
    let answers = hand(&config, &["bob", "cyd"]).await.unwrap();
    assert!(answers.iter().all(|(_, taken)| *taken != RecipientAnswer::Accepted));
    assert_eq!(relay.mails().len(), 1);
}

#[tokio::test]
async fn a_sender_or_a_message_that_is_refused() {
    let relay = began("refused", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    for (rules, later) in [
        (json!({ "mail": "550 no such sender" }), false),
        (json!({ "mail": "451 busy" }), true),
        (json!({ "data": "554 looks like spam" }), false),
        (json!({ "data": "452 no room" }), true),
    ] {
        relay.rules(&rules);
        let handed = hand(&config, &["ann"]).await;
        let as_expected = match &handed {
            Err(MailError::Later(_)) => later,
            Err(MailError::Refused(_)) => !later,
            Err(MailError::Relay(_)) | Ok(_) => false,
        };
        assert!(as_expected, "{rules}: {handed:?}");
    }
    // It closes: nothing about this mail.
    relay.rules(&json!({ "mail": "421 shutting down" }));
    not_served(&hand(&config, &["ann"]).await, &["421"]);
    assert!(relay.mails().is_empty());
    relay.rules(&json!({}));
    assert_eq!(hand(&config, &["ann"]).await, yes(&["ann"]));
}

#[tokio::test]
async fn the_relay_is_greeted_with_a_full_name() {
    let relay = began("names", Protection::None, None);
    let address = format!("smtp://127.0.0.1:{}", relay.port);
    relay.rules(&json!({ "full_names": true }));
    // The machine's own name, otherwise the domain of the sender: either has a dot.
    assert_eq!(hand(&through(&address), &["ann"]).await, yes(&["ann"]));
    let set = settings(&format!("relay = \"{address}\"\nhello_name = \"ci.example.net\""));
    assert_eq!(hand(&set, &["ann"]).await, yes(&["ann"]));
    assert_eq!(relay.mails()[1].hello, "ci.example.net");
    let bare = settings(&format!("relay = \"{address}\"\nhello_name = \"ci\""));
    let answers = hand(&bare, &["ann"]).await.unwrap();
    assert!(matches!(&answers[..], [(_, RecipientAnswer::Refused(why))] if why.contains("504")), "{answers:?}");
}

#[tokio::test]
async fn auth_login_is_spoken_whatever_the_prompts_are() {
    let relay = began("prompts", Protection::None, Some("bb:secret"));
    let right = through(&format!("smtp://bb:secret@127.0.0.1:{}", relay.port));
    for (auth, prompts) in [
        ("AUTH LOGIN", ["334 ", "334 "]),
        ("AUTH LOGIN", ["334", "334"]),
        ("AUTH LOGIN", ["334 QmVudXR6ZXJuYW1lOg==", "334 UGFzc3dvcnQ6"]),
        ("AUTH LOGIN", ["334 user name please", "334 dXNlcm5hbWU="]),
        ("AUTH=LOGIN", ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"]),
        ("auth login cram-md5", ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"]),
    ] {
        relay.rules(&json!({ "auth": auth, "prompts": prompts }));
        assert_eq!(hand(&right, &["ann"]).await, yes(&["ann"]), "{auth} {prompts:?}");
    }
    assert!(relay.mails().iter().all(|mail| mail.login.as_deref() == Some("bb")));
    let wrong = through(&format!("smtp://bb:guess@127.0.0.1:{}", relay.port));
    not_served(&hand(&wrong, &["ann"]).await, &["login", "535"]);
    relay.rules(&json!({ "auth": "AUTH CRAM-MD5" }));
    not_served(&hand(&right, &["ann"]).await, &["login", "CRAM-MD5"]);
}

/// What `rouse check --online` says of the relay.
async fn checked(mail: &str) -> Vec<(bool, String)> {
    let text = format!(
        "[mail]\nfrom = \"rouse@example.org\"\nhello_name = \"ci\"\n{mail}\n[[worker]]\nname = \"w\"\npassword = \"p\"\nnotify_on_missing = \"ann@example.org\"\n"
    );
    check(&Config::parse(&text, Path::new("rouse.toml")).unwrap(), PATIENCE).await
}

#[tokio::test]
async fn an_online_check_goes_as_far_as_the_recipients_and_sends_nothing() {
    let relay = began("online", Protection::None, Some("bb:secret"));
    let text = format!("relay = \"smtp://bb:secret@127.0.0.1:{}\"\nextra_recipients = \"bob@example.org\"", relay.port);
    let found = checked(&text).await;
    let [(true, said)] = &found[..] else { panic!("{found:?}") };
    for part in ["greeted as ci", "without TLS", "as bb", "ann@example.org, bob@example.org"] {
        assert!(said.contains(part), "{said}");
    }
    relay.rules(&json!({ "rcpt": { "bob@example.org": "550 5.1.1 no such user" } }));
    let found = checked(&text).await;
    let [(true, ann), (false, bob)] = &found[..] else { panic!("{found:?}") };
    assert!(ann.contains("to ann@") && bob.contains("to bob@") && bob.contains("550 5.1.1 no such user"), "{found:?}");
    relay.rules(&json!({ "full_names": true }));
    let found = checked(&text).await;
    assert!(
        found.len() == 2 && found.iter().all(|(good, said)| !good && said.contains("504") && said.contains("as ci"))
    );
    relay.rules(&json!({ "mail": "550 no such sender" }));
    let found = checked(&text).await;
    assert!(matches!(&found[..], [(false, said)] if said.contains("550 no such sender")), "{found:?}");
    let found = checked(&text.replace(":secret", ":guess")).await;
    assert!(matches!(&found[..], [(false, said)] if said.contains("535") && !said.contains("guess")), "{found:?}");
    let found = checked("relay = \"smtp://relay.invalid\"").await;
    assert!(matches!(&found[..], [(false, said)] if said.contains("relay.invalid:25")), "{found:?}");
    assert!(relay.mails().is_empty());
    // If nobody is told anything there is nothing to look at.
    assert_eq!(check(&Config::parse("", Path::new("rouse.toml")).unwrap(), PATIENCE).await, []);
}

#[tokio::test]
async fn a_relay_that_is_down_is_told_and_serves_when_it_is_up() {
    let mut relay = Relay::new("down", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    not_served(&hand(&config, &["ann"]).await, &[&relay.port.to_string(), "refused"]);
    relay.begin();
    assert_eq!(hand(&config, &["ann"]).await, yes(&["ann"]));
    not_served(&hand(&through("smtp://relay.invalid"), &["ann"]).await, &["relay.invalid:25"]);
}

#[tokio::test]
async fn a_relay_that_hangs_is_given_up_wherever_it_does() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    for address in [format!("smtp://127.0.0.1:{port}"), format!("smtps://127.0.0.1:{port}")] {
        not_served(&hand_over(&through(&address), "ci", &mail(&["ann"]), SHORT).await, &["no answer within 2 s"]);
    }
    let relay = began("hangs", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    for rules in
        [json!({ "mail": "hang" }), json!({ "rcpt": { "ann@example.org": "hang" } }), json!({ "data": "hang" })]
    {
        relay.rules(&rules);
        not_served(&hand_over(&config, "ci", &mail(&["ann"]), SHORT).await, &["no answer within 2 s"]);
    }
    assert!(relay.mails().is_empty());
}

#[tokio::test]
async fn what_is_sent_again_for_want_of_an_answer_is_the_same_to_the_byte() {
    let relay = began("again", Protection::None, None);
    let config = through(&format!("smtp://127.0.0.1:{}", relay.port));
    relay.rules(&json!({ "data": "cut" }));
    not_served(&hand(&config, &["ann"]).await, &[]);
    relay.rules(&json!({ "data": "mute" }));
    not_served(&hand_over(&config, "ci", &mail(&["ann"]), SHORT).await, &["no answer"]);
    relay.rules(&json!({}));
    assert_eq!(hand(&config, &["ann"]).await, yes(&["ann"]));
    assert!(holds_within(Duration::from_secs(5), || relay.mails().len() == 3));
    assert!(relay.mails().iter().all(|mail| *mail == relay.mails()[0]), "{:?}", relay.mails());
}
