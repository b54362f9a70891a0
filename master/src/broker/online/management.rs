//! What the management API shows of a broker: its nodes, and the policies of the queues that rouse uses.

use super::super::limits::{CONNECT_TIMEOUT, CONTROL_QUEUE_BYTES, CONTROL_QUEUE_LENGTH, LOG_QUEUE_BYTES};
use super::super::link::Endpoints;
use super::{Hurried, versions};
use reqwest::{Certificate, Client, StatusCode, Url, redirect};
use rouse_shared::error::Chain;
use rouse_shared::names::{BUILDS, CONTROL, LOGS};
use rouse_shared::{Secret, broker_url};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// The plugins that each node needs.
const PLUGINS: [&str; 3] = ["rabbitmq_auth_backend_http", "rabbitmq_auth_backend_cache", "rabbitmq_event_exchange"];
/// AMQP heartbeats notice a node that is cut off within this time, and an agent logs in again within the other.
const NOTICED: Duration = Duration::from_secs(25);
const BACK: Duration = Duration::from_secs(5);
/// How long the API may take to show the policies of a queue, or what a node that has just started says of itself: it
/// collects both every five seconds.
const SHOWN: Duration = Duration::from_secs(20);
/// Fewest messages, and fewest bytes, that an agent's queue must hold.
const AGENT_QUEUE: (i64, i64) = (1_000, 16 << 20);

/// The API, and what its answers are compared with.
pub(super) struct Api<'a> {
    /// `broker.management_url`
    pub(super) url: &'a str,
    pub(super) ca: Option<&'a Path>,
    pub(super) broker: &'a Endpoints,
    /// A queue as that of an agent.
    pub(super) probe: Option<&'a str>,
    pub(super) hurried: Option<&'a Hurried>,
}

/// Sentences, and whether each is good news.
type Found = Vec<(bool, String)>;

impl Api<'_> {
    /// Asks for everything.
    pub(super) async fn check(&self) -> Found {
        let http = match self.client() {
            Ok(http) => http,
            Err(why) => return vec![(false, why)],
        };
        let nodes = match self.nodes(&http).await {
            Ok(Some(nodes)) => nodes,
            Ok(None) => return vec![(false, "is not the management API of RabbitMQ: HTTP 404".to_owned())],
            Err(why) => return vec![(false, why)],
        };
        let mut found = judge_nodes(&nodes, self.broker.uris().len(), self.hurried);
        let mut absent = Vec::new();
        for queue in [CONTROL, LOGS, BUILDS].into_iter().chain(self.probe) {
            match self.queue(&http, queue).await {
                Ok(Some(answer)) => found.extend(judge_queue(queue, &answer, nodes.len())),
                Ok(None) => absent.push(queue),
                Err(why) => found.push((false, why)),
            }
        }
        if !absent.is_empty() {
            let why = "which the API does not show: the master declares its queues when it starts";
            found.push((true, format!("not checked: the policies of {}, {why}", absent.join(", "))));
        }
        if found.iter().all(|(good, _)| *good) {
            found.insert(0, (true, format!("nothing is wrong with {}", count(nodes.len(), "node"))));
        }
        found
    }

    fn client(&self) -> Result<Client, String> {
        // Another part of the program may have installed a provider already, which is as good.
        if rustls::crypto::CryptoProvider::get_default().is_none()
            && rustls::crypto::ring::default_provider().install_default().is_err()
        {
            tracing::debug!("another thread has installed a TLS provider");
        }
        // A password is for this host, not for where an answer points.
        let mut builder = Client::builder().timeout(CONNECT_TIMEOUT).redirect(redirect::Policy::none());
        if let Some(path) = self.ca {
            let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let all = Certificate::from_pem_bundle(&pem).map_err(|error| Chain(&error).to_string())?;
            builder = builder.tls_certs_merge(all);
        }
        builder.build().map_err(|error| Chain(&error).to_string())
    }

    /// The nodes, once each that runs has said something of itself, or has had time enough; absent if this is not the API.
    async fn nodes(&self, http: &Client) -> Result<Option<Vec<Value>>, String> {
        let mut left = SHOWN.as_secs();
        loop {
            let Some(answer) = self.get(http, &["nodes"]).await? else { return Ok(None) };
            let nodes = answer.as_array().cloned().unwrap_or_default();
            if left == 0 || nodes.iter().all(|node| node["running"] == false || node["enabled_plugins"].is_array()) {
                return Ok(Some(nodes));
            }
            left -= 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The answer about a queue; absent if there is none. The policies of a new queue are shown only after some seconds.
    async fn queue(&self, http: &Client, queue: &str) -> Result<Option<Value>, String> {
        let mut left = SHOWN.as_secs();
        loop {
            let answer = self.get(http, &["queues", self.broker.vhost(), queue]).await?;
            let shown = |answer: &Value| answer.get("effective_policy_definition").is_some();
            if left == 0 || answer.as_ref().is_none_or(shown) {
                return Ok(answer.filter(shown));
            }
            left -= 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The answer about this path; absent if there is nothing.
    async fn get(&self, http: &Client, path: &[&str]) -> Result<Option<Value>, String> {
        let mut url = Url::parse(self.url).map_err(|error| error.to_string())?;
        let login = broker_url::login_of(&url).map_err(|error| error.to_string())?;
        let ours = self.broker.uris().first().map(|uri| &uri.authority.userinfo);
        let ours = ours.map(|ours| (ours.username.clone(), Secret::new(ours.password.clone())));
        let (user, password) = login.or(ours).ok_or("no user is known")?;
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| "it has no host")?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("api").extend(path);
        }
        let request = http.get(url).basic_auth(&user, Some(password.expose()));
        let answer = request.send().await.map_err(|error| Chain(&error.without_url()).to_string())?;
        match answer.status() {
            StatusCode::OK => {
                let answer = answer.json().await.map_err(|error| Chain(&error.without_url()).to_string())?;
                Ok(Some(answer))
            }
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "{user} may not read it: run `rabbitmqctl set_user_tags {user} monitoring`, or write the user and \
                 password of another account into the URL"
            )),
            other => Err(format!("the management API answers HTTP {other}")),
        }
    }
}

/// What is wrong with the nodes of `/api/nodes`. `hosts` are in `broker.url`.
fn judge_nodes(nodes: &[Value], hosts: usize, hurried: Option<&Hurried>) -> Found {
    let mut found = Vec::new();
    let mut versions = Vec::new();
    let mut slowest = None;
    for node in nodes {
        let name = node["name"].as_str().unwrap_or("?");
        if node["running"] == false {
            found.push((false, format!("the node {name} is down")));
            continue;
        }
        let partitions = texts(&node["partitions"]);
        if !partitions.is_empty() {
            let others = partitions.join(", ");
            found.push((false, format!("the node {name} was cut off from {others}: restart one side")));
        }
        for (key, what) in [("mem_alarm", "memory"), ("disk_free_alarm", "disk space")] {
            if node[key] == true {
                found.push((false, format!("the node {name} accepts no messages: it has too little {what}")));
            }
        }
        // Nodes whose plugin for management is off list nothing.
        if node["enabled_plugins"].is_array() {
            let enabled = texts(&node["enabled_plugins"]);
            let lacking: Vec<&str> = PLUGINS.into_iter().filter(|plugin| !enabled.contains(plugin)).collect();
            if !lacking.is_empty() {
                let lacking = lacking.join(" ");
                found.push((
                    false,
                    format!("the node {name} lacks plugins: run `rabbitmq-plugins enable {lacking}` on it"),
                ));
            }
        } else {
            let why = "run `rabbitmq-plugins enable rabbitmq_management_agent` on it";
            found.push((false, format!("the node {name} says nothing of itself: {why}")));
        }
        let applications = node["applications"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rabbit = applications.iter().find(|application| application["name"] == "rabbit");
        if let Some(version) = rabbit.and_then(|rabbit| rabbit["version"].as_str()) {
            versions.push((name.to_owned(), version.to_owned()));
        }
        slowest = slowest.max(node["net_ticktime"].as_u64().map(|ticks| (ticks, name)));
    }
    found.extend(versions::mixed(&versions).map(|why| (false, why)));
    if nodes.len() < 2 {
        return found;
    }
    if let (Some((ticks, node)), Some(hurried)) = (slowest, hurried) {
        let noticed = Duration::from_secs(ticks + ticks.div_ceil(4));
        let needed = noticed.max(NOTICED) + BACK + hurried.keepalive;
        if needed > hurried.lease {
            found.push((
                false,
                format!(
                    "net_ticktime of the node {node} is {ticks} s, so a node that is cut off is noticed only after up to \
                     {} s, and builds of {} end when the lease of {} s expires: set net_ticktime as in \
                     contrib/rabbitmq/advanced.config, or a lease of {} s or more",
                    noticed.as_secs(),
                    hurried.worker,
                    hurried.lease.as_secs(),
                    needed.as_secs()
                ),
            ));
        }
    }
    if nodes.len() == 2 {
        let why = "with two nodes, either both stop when they are cut off from each other, or both go on alone";
        found.push((true, format!("{why}: a third node prevents both")));
    }
    if hosts == 1 {
        let why = "unless that is a load balancer, nobody goes to another node if it is down";
        found.push((true, format!("the cluster has {} nodes, and broker.url names one host: {why}", nodes.len())));
    }
    found.push((
        true,
        "not checked, because no API shows it: cluster_partition_handling. `rabbitmqctl eval \
         'application:get_env(rabbit, cluster_partition_handling).'` must print {ok,pause_minority} on each node"
            .to_owned(),
    ));
    found
}

/// What is wrong with a queue of `/api/queues`, in a cluster of so many nodes.
fn judge_queue(queue: &str, answer: &Value, nodes: usize) -> Found {
    let mut found = Vec::new();
    let shown = if matches!(queue, CONTROL | LOGS | BUILDS) { queue } else { "the queues of agents" };
    let empty = serde_json::Map::new();
    for (key, value) in answer["effective_policy_definition"].as_object().unwrap_or(&empty) {
        if let Some(harm) = harm(queue, key, value, answer) {
            let policies = [&answer["policy"], &answer["operator_policy"]];
            let policies: Vec<&str> =
                policies.into_iter().filter_map(Value::as_str).filter(|p| !p.is_empty()).collect();
            let policies = policies.join(", ");
            found.push((
                false,
                format!(
                    "a policy ({policies}) sets {key} of {shown}: {harm}; give it a pattern that does not match them"
                ),
            ));
        }
    }
    let members = answer["members"].as_array().map(Vec::len);
    if let Some(members) = members.filter(|members| queue == BUILDS && *members < nodes.min(3)) {
        found.push((
            false,
            format!(
                "{BUILDS} has {} in a cluster of {nodes}, so it stops when one is down: run `rabbitmq-queues grow NODE \
                 all` for each of the others",
                count(members, "member")
            ),
        ));
    }
    found
}

/// What a key of a policy does to a queue of rouse, if it does harm.
fn harm(queue: &str, key: &str, value: &Value, answer: &Value) -> Option<&'static str> {
    let below = |least: i64| value.as_i64().is_some_and(|value| value < least);
    let (messages, bytes) = match queue {
        CONTROL => (CONTROL_QUEUE_LENGTH, CONTROL_QUEUE_BYTES),
        LOGS => (0, LOG_QUEUE_BYTES),
        // Whoever submits is told if the queue takes no more.
        BUILDS if answer["effective_policy_definition"]["overflow"] == "reject-publish" => (0, 0),
        BUILDS => (i64::MAX, i64::MAX),
        _ => AGENT_QUEUE,
    };
    match key {
        "message-ttl" => Some("it drops messages that wait"),
        "expires" => Some("it deletes them while nobody reads"),
        "max-length" if below(messages) || (queue == LOGS && value.is_number()) => {
            Some("it drops messages, or refuses them, earlier than rouse expects")
        }
        "max-length-bytes" if below(bytes) => Some("it drops messages, or refuses them, earlier than rouse expects"),
        "overflow" if queue == CONTROL && value != "drop-head" => {
            Some("agents wait for the master, instead of the oldest messages being dropped")
        }
        "ha-mode" => Some("it mirrors them, which costs speed, and which RabbitMQ 4 refuses"),
        _ => None,
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, more: &Value) -> Value {
        let mut node = json!({
            "name": name, "running": true, "partitions": [], "mem_alarm": false, "disk_free_alarm": false,
            "enabled_plugins": PLUGINS, "net_ticktime": 10,
            "applications": [{ "name": "rabbit", "version": "3.12.1" }],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            node[key] = value.clone();
        }
        node
    }

    fn faults(found: Found) -> Vec<String> {
        found.into_iter().filter(|(good, _)| !good).map(|(_, text)| text).collect()
    }

    #[test]
    fn faults_of_nodes_are_named() {
        let hurried = |lease| Hurried {
            worker: "w".to_owned(),
            lease: Duration::from_secs(lease),
            keepalive: Duration::from_secs(10),
        };
        let three = |more: &Value| [node("a", &json!({})), node("b", &json!({})), node("c", more)];
        assert!(faults(judge_nodes(&three(&json!({})), 3, Some(&hurried(60)))).is_empty());
        for (more, wanted) in [
            (json!({ "running": false }), "the node c is down"),
            (json!({ "partitions": ["a", "b"] }), "the node c was cut off from a, b"),
            (json!({ "disk_free_alarm": true }), "the node c accepts no messages: it has too little disk space"),
            (
                json!({ "enabled_plugins": ["rabbitmq_auth_backend_http"] }),
                "`rabbitmq-plugins enable rabbitmq_auth_backend_cache rabbitmq_event_exchange`",
            ),
            (json!({ "enabled_plugins": null }), "the node c says nothing of itself"),
            (json!({ "applications": [{ "name": "rabbit", "version": "3.13.7" }] }), "a: 3.12.1, b: 3.12.1, c: 3.13.7"),
            (json!({ "net_ticktime": 60 }), "after up to 75 s, and builds of w end when the lease of 60 s expires"),
        ] {
            let said = faults(judge_nodes(&three(&more), 3, Some(&hurried(60))));
            assert!(said.len() == 1 && said[0].contains(wanted), "{wanted:?} is not all of {said:?}");
        }
        // 75 s, 5 s to log in again, and 10 s since the last heartbeat.
        for (lease, enough) in [(89, false), (90, true)] {
            let said = faults(judge_nodes(&three(&json!({ "net_ticktime": 60 })), 3, Some(&hurried(lease))));
            assert_eq!(said.is_empty(), enough, "{said:?}");
        }
        // One node waits for no other.
        assert!(judge_nodes(&[node("a", &json!({ "net_ticktime": 60 }))], 1, Some(&hurried(60))).is_empty());
    }

    #[test]
    fn policies_that_do_harm_are_named() {
        let agent = "rouse.agent.w.0.1";
        let policed = |definition: Value| json!({ "policy": "theirs", "operator_policy": null, "effective_policy_definition": definition });
        for (queue, definition, harmful) in [
            (CONTROL, json!({}), false),
            (CONTROL, json!({ "message-ttl": 1_000 }), true),
            (CONTROL, json!({ "max-length": 1_000 }), true),
            (CONTROL, json!({ "max-length": 1_000_000 }), false),
            (LOGS, json!({ "max-length": 1_000_000 }), true),
            (LOGS, json!({ "max-length-bytes": 1_i64 << 30 }), false),
            (BUILDS, json!({ "delivery-limit": 1_000_000 }), false),
            (BUILDS, json!({ "max-length": 1_000_000 }), true),
            (BUILDS, json!({ "max-length": 1_000_000, "overflow": "reject-publish" }), false),
            (agent, json!({ "expires": 1_000 }), true),
            (agent, json!({ "max-length-bytes": 1 << 30 }), false),
            (agent, json!({ "ha-mode": "all" }), true),
        ] {
            let said = faults(judge_queue(queue, &policed(definition.clone()), 1));
            assert_eq!(said.len(), usize::from(harmful), "{queue} {definition}: {said:?}");
            assert!(said.iter().all(|said| said.contains("a policy (theirs) sets ")), "{said:?}");
        }
    }

    #[test]
    fn a_submission_queue_on_one_node_of_a_cluster_is_named() {
        let on = |members: &[&str]| json!({ "members": members });
        assert!(judge_queue(BUILDS, &on(&["a"]), 1).is_empty());
        assert!(judge_queue(BUILDS, &on(&["a", "b", "c"]), 5).is_empty());
        let said = faults(judge_queue(BUILDS, &on(&["a"]), 3));
        assert!(said.len() == 1 && said[0].contains("1 member in a cluster of 3"), "{said:?}");
    }
}
