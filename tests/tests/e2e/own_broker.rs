//! A RabbitMQ that the operator runs, with and without the settings in contrib/rabbitmq.

use rouse_tests::harness::{DEADLINE, Master, OwnBroker, check_online, free_address, holds_within, scratch, standing};
use std::fs;

const CONFIGURATION: &str = include_str!("../../../contrib/rabbitmq/rabbitmq.conf");
const PLUGINS: &str = include_str!("../../../contrib/rabbitmq/enabled_plugins");

#[test]
fn a_broker_that_was_set_up_from_our_files_tells_of_a_killed_agent() {
    let auth = free_address();
    let secret = "0123456789abcdefghij";
    let configuration = CONFIGURATION.replace("127.0.0.1:8091/auth", &format!("{auth}/auth/{secret}"));
    let broker = OwnBroker::start("own-broker", &configuration, PLUGINS);
    let lines = format!("auth_secret = \"{secret}\"\nurl = \"{}\"\n", broker.url());

    let dir = scratch("own-broker-check");
    let text = format!("[broker]\nauth_listen = \"{auth}\"\n{lines}");
    let (code, said) = check_online(&dir, &text, &[]);
    assert!(code == Some(0) && said.contains("broker.url: ") && said.contains("the master can use it"), "{said}");

    // Far longer than this test may take: only an event of the broker can tell in time.
    let workers = standing("w", "keepalive_interval = 60\nlease = 3600");
    let url = format!("amqp://{}/rouse", broker.address);
    let master = Master::start_with("own", &lines, &url, auth, &workers);
    let mut agent = master.agent("w");
    agent.kill();
    master.until_worker("w", "offline");
    assert!(!master.log().contains("no events from the broker"), "{}", master.log());

    // While the master runs, it is the one who answers.
    let (code, said) = check_online(&dir, &text, &[]);
    assert!(code == Some(0) && said.contains("in use, probably by the master"), "{said}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_a_broker_lacks_is_said() {
    let api = free_address();
    let configuration = format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}", api.port());
    let bare = OwnBroker::start("bare-broker", &configuration, "[rabbitmq_event_exchange,rabbitmq_management].");
    let dir = scratch("bare-broker-check");
    let auth = free_address();
    let (code, said) =
        check_online(&dir, &format!("[broker]\nauth_listen = \"{auth}\"\nurl = \"{}\"\n", bare.url()), &[]);
    assert_eq!(code, Some(2), "{said}");
    for wanted in [
        "publishes no events in the virtual host rouse",
        "set event_exchange.vhost = rouse",
        &format!("auth_http in rabbitmq.conf must point to http://{auth}"),
    ] {
        assert!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
    assert!(said.contains("not checked, because broker.management_url is not set: policies of queues"), "{said}");

    bare.rabbitmqctl(0, &["set_policy", "-p", "rouse", "theirs", "^rouse.agent", r#"{"message-ttl": 1000}"#]);
    let with_api = |url: &str| {
        let text =
            format!("[broker]\nauth_listen = \"{auth}\"\nurl = \"{}\"\nmanagement_url = \"{url}\"\n", bare.url());
        check_online(&dir, &text, &[]).1
    };
    // A node that has just started collects its first figures a few seconds later.
    let mut said = String::new();
    let is_known = || {
        said = with_api(&format!("http://{api}"));
        !said.contains("says nothing of itself")
    };
    assert!(holds_within(DEADLINE, is_known), "{said}");
    for wanted in [
        "broker.management_url: a policy (theirs) sets message-ttl of the queues of agents: it drops messages that wait",
        "lacks plugins: run `rabbitmq-plugins enable rabbitmq_auth_backend_http rabbitmq_auth_backend_cache` on it",
        "not checked: the policies of rouse.control, rouse.logs, rouse.builds, which the API does not show",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
    let said = with_api(&format!("http://rouse_master:wrong@{api}"));
    assert!(
        said.contains("rouse_master may not read it: run `rabbitmqctl set_user_tags rouse_master monitoring`"),
        "{said}"
    );
    assert!(!said.contains("wrong"), "no password is shown: {said}");

    let other = OwnBroker::start("other-broker", "", "[].");
    let both = format!("{},{}/rouse", bare.url().strip_suffix("/rouse").unwrap(), other.address);
    let (_, said) = check_online(&dir, &format!("[broker]\nauth_listen = \"{auth}\"\nurl = \"{both}\"\n"), &[]);
    let apart = format!("{}/rouse: it is not in the same cluster as amqp://{}/rouse", other.address, bare.address);
    assert!(said.contains(&apart), "{apart:?} is not in {said}");

    let wrong = bare.url().replace("the-masters-own", "wrong");
    let (code, said) = check_online(&dir, &format!("[broker]\nauth_listen = \"{auth}\"\nurl = \"{wrong}\"\n"), &[]);
    assert!(code == Some(2) && said.contains("the master cannot log in"), "{said}");
    assert!(!said.contains("wrong"), "no password is shown: {said}");
    fs::remove_dir_all(dir).unwrap();
}
