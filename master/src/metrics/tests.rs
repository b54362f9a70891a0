//! What is counted, and that the table and the documentation have it.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::core::build::Attempt;
use crate::core::plan::{AmongEquals, Digest, LatentPlan, MailPlan, WorkerPlan};
use crate::core::record::LaunchSpec;
use crate::core::tally::FailedStart;
use rouse_shared::SessionId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const SECOND: Duration = Duration::from_secs(1);
const START: Timestamp = Timestamp(1_000_000);

fn after(seconds: u32) -> Timestamp {
    START + SECOND * seconds
}

fn name(name: &str) -> WorkerName {
    name.parse().unwrap()
}

/// Two workers of the template `w-{1..2}`, and the standing worker `s`.
fn plan() -> Plan {
    let latent = LatentPlan {
        provider: ProviderKind::Ec2,
        place: "region".into(),
        build_wait_timeout: None,
        max_uses: 0,
        prefer: 0,
        price: None,
        template: "w-{1..2}".to_owned(),
        suspend: None,
        min_idle: 0,
        image: "image".into(),
        fingerprint: 1,
    };
    let worker = |worker: &str, template: &str, latent: Option<LatentPlan>| WorkerPlan {
        name: name(worker),
        template: template.to_owned(),
        password: Digest::of("password"),
        max_builds: Some(1),
        keepalive: SECOND * 10,
        lease: Some(SECOND * 60),
        grace: SECOND * 60,
        missing_timeout: SECOND * 60,
        notify_on_missing: Vec::new(),
        properties: BTreeMap::new(),
        run_as: None,
        limits: Default::default(),
        latent,
    };
    let workers = [
        worker("w-1", "w-{1..2}", Some(latent.clone())),
        worker("w-2", "w-{1..2}", Some(latent)),
        worker("s", "s", None),
    ];
    Plan {
        workers: workers.into_iter().map(|worker| (worker.name.clone(), Arc::new(worker))).collect(),
        max_hosts: None,
        max_spend_per_day: None,
        mail_after_failed_starts: 3,
        retention: Default::default(),
        queue_timeout: None,
        max_log_size: 1_000,
        among_equals: AmongEquals::Pack,
        audit_interval: SECOND,
        stop_orphans: true,
        restart_lease: SECOND,
        outlives_alarms: false,
        mail: MailPlan { extra_recipients: BTreeSet::new(), domain: "example.org".to_owned() },
    }
}

fn meters() -> Meters {
    Meters::new(START, &plan())
}

fn text(meters: &mut Meters) -> String {
    meters.text(&Tally::default(), std::iter::empty())
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
}

fn change(id: &str, worker: &str, state: HostState, at: Timestamp) -> Change {
    Change::Host { id: HostId(id.to_owned()), worker: name(worker), state, why: None, at }
}

fn attempt(number: u32, worker: &str, started: Option<Timestamp>) -> Attempt {
    Attempt {
        number,
        worker: name(worker),
        host: None,
        session: SessionId("s".to_owned()),
        ordered: START,
        started,
        ended: None,
        revision: 0,
        steps: Vec::new(),
        outcome: None,
        cut_logs: Vec::new(),
        excused: false,
        unenforced: None,
    }
}

fn host(id: &str, state: HostState, cost: Option<f64>, spot: bool) -> Host {
    let launch = LaunchSpec {
        number: 0,
        alternative: String::new(),
        image: "image".to_owned(),
        spec: String::new(),
        more: false,
        fresh: false,
        identity: None,
        price: Some(1.0),
        spot,
    };
    Host {
        id: HostId(id.to_owned()),
        worker: name("w-1"),
        provider: ProviderKind::Ec2,
        place: "region".to_owned(),
        handle: None,
        state,
        image: "image".to_owned(),
        launch: Some(launch),
        token: String::new(),
        identity: None,
        nonce: None,
        token_spent: false,
        fingerprint: 1,
        created: START,
        booted: None,
        attached: None,
        suspended: None,
        resumed: None,
        paid: 0.0,
        terminated: None,
        uses: 0,
        forgotten: None,
        terminating: None,
        lingering_notified: None,
        started_for: None,
        why: None,
        console: None,
        cost,
    }
}

#[test]
fn every_series_of_a_counter_begins_at_zero() {
    let text = text(&mut meters());
    has(&text, r#"rouse_builds_ended_total{outcome="lost",template="s"} 0"#);
    has(&text, r#"rouse_builds_ended_total{outcome="lost",template=""} 0"#);
    has(&text, r#"rouse_host_starts_total{provider="ec2",template="w-{1..2}"} 0"#);
    has(&text, r#"rouse_spent_usd_total{provider="ec2",template="w-{1..2}",market="spot"} 0.0"#);
    let place = PlaceKey { provider: ProviderKind::Ec2, name: "region".into() }.id();
    has(&text, &format!(r#"rouse_host_start_failures_total{{place="{place}",template="w-{{1..2}}",kind="silent"}} 0"#));
}

#[test]
fn a_build_counts_once_for_each_attempt_and_each_end() {
    let mut meters = meters();
    let mut status = BuildStatus::new(START);
    status.attempts.push(attempt(1, "w-1", Some(after(4))));
    status.started = Some(after(4));
    meters.committed(&Record::Build(BuildId(1), status.clone()));
    meters.committed(&Record::Build(BuildId(1), status.clone()));
    has(&text(&mut meters), r#"rouse_build_wait_seconds_sum{template="w-{1..2}"} 4.0"#);
    // The attempt is lost, and another worker runs the build.
    (status.requeued, status.started) = (Some(after(10)), Some(after(11)));
    status.attempts.push(attempt(2, "s", Some(after(11))));
    (status.finished, status.end) = (Some(after(31)), Some(BuildEnd::Failure(String::new())));
    meters.committed(&Record::Build(BuildId(1), status));
    let text = text(&mut meters);
    has(&text, r#"rouse_build_wait_seconds_count{template="w-{1..2}"} 1"#);
    has(&text, r#"rouse_build_wait_seconds_sum{template="s"} 1.0"#);
    has(&text, r#"rouse_builds_ended_total{outcome="failure",template="s"} 1"#);
    has(&text, r#"rouse_build_duration_seconds_sum{outcome="failure",template="s"} 20.0"#);
    assert!(meters.started.is_empty(), "nothing is kept of a build that has ended");
}

#[test]
fn a_build_that_an_earlier_master_started_has_no_wait() {
    let mut meters = meters();
    let mut status = BuildStatus::new(Timestamp(0));
    status.attempts.push(attempt(1, "s", Some(Timestamp(5))));
    meters.committed(&Record::Build(BuildId(1), status));
    assert!(!text(&mut meters).contains("rouse_build_wait_seconds_count"));
}

#[test]
fn the_phases_of_a_host_are_measured() {
    let mut meters = meters();
    for (state, at) in [
        (HostState::Ordered, 0),
        (HostState::Booting, 3),
        (HostState::Ready, 23),
        (HostState::Terminating, 50),
        (HostState::Terminated, 57),
    ] {
        meters.changed(&change("h", "w-2", state, after(at)));
    }
    // Of an earlier master: its time in the phase is unknown.
    meters.changed(&change("old", "w-1", HostState::Ready, after(60)));
    let text = text(&mut meters);
    for (phase, took) in [("ordered", 3), ("booting", 20), ("ready", 27), ("terminating", 7)] {
        let labels = format!(r#"provider="ec2",template="w-{{1..2}}",phase="{phase}""#);
        has(&text, &format!("rouse_host_phase_seconds_sum{{{labels}}} {took}.0"));
    }
    has(&text, r#"rouse_host_starts_total{provider="ec2",template="w-{1..2}"} 1"#);
    assert_eq!(meters.hosts.len(), 1, "nothing is kept of a host that is gone");
}

#[test]
fn money_is_counted_once_also_across_masters() {
    let mut meters = meters();
    let (old, new) = (host("old", HostState::Ready, None, false), host("new", HostState::Ready, None, true));
    meters.adopt([(&old, 5.0)].into_iter());
    meters.text(&Tally::default(), [(&old, 6.0), (&new, 1.5)].into_iter());
    meters.committed(&Record::Host(host("old", HostState::Terminated, Some(7.0), false)));
    let text = meters.text(&Tally::default(), [(&new, 2.0)].into_iter());
    has(&text, r#"rouse_spent_usd_total{provider="ec2",template="w-{1..2}",market="on-demand"} 2.0"#);
    has(&text, r#"rouse_spent_usd_total{provider="ec2",template="w-{1..2}",market="spot"} 2.0"#);
    assert_eq!(meters.paid.len(), 1);
}

#[test]
fn failed_starts_are_those_of_the_core() {
    let mut meters = meters();
    let start = FailedStart { place: "p".to_owned(), template: "t".to_owned(), kind: FailureKind::Quota };
    let tally = Tally { failed_starts: BTreeMap::from([(start, 3)]), ..Tally::default() };
    meters.text(&tally, std::iter::empty());
    let text = meters.text(&tally, std::iter::empty());
    has(&text, r#"rouse_host_start_failures_total{place="p",template="t",kind="quota"} 3"#);
}

#[test]
fn calls_are_counted_by_outcome() {
    let meters = meters();
    let host = HostId("h".to_owned());
    let failed = Event::StartEnded { host: host.clone(), number: 0, result: Err(StartError::Capacity(String::new())) };
    meters.calls().ended(ProviderKind::Ec2, &failed, SECOND * 2);
    meters.calls().ended(ProviderKind::Ec2, &Event::TerminateEnded { host, result: Ok(Termination::Gone) }, SECOND);
    meters.calls().ended(ProviderKind::Ec2, &Event::Tick, SECOND);
    let text = text(&mut { meters });
    has(&text, r#"rouse_provider_call_seconds_sum{provider="ec2",call="start",outcome="capacity"} 2.0"#);
    has(&text, r#"rouse_provider_call_seconds_count{provider="ec2",call="terminate",outcome="ok"} 1"#);
    assert_eq!(text.matches("rouse_provider_call_seconds_count{").count(), 2);
}

#[test]
fn the_table_has_every_metric_once_and_in_the_shape_of_the_field() {
    let names: BTreeSet<&str> = table::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), table::ALL.len(), "a name twice");
    for metric in table::ALL {
        let name = metric.name;
        assert_eq!(metric.kind == table::Kind::Counter, name.ends_with("_total"), "{name}");
        assert!(metric.kind != table::Kind::Histogram || name.ends_with("_seconds"), "{name}");
        assert!(metric.help.ends_with('.'), "{name}");
    }
    // What the code sends is what the table has.
    let sources = [include_str!("mod.rs"), include_str!("../web/metrics.rs"), include_str!("../driver/figures.rs")];
    let used: BTreeSet<&str> = sources.iter().flat_map(|source| strings(source)).collect();
    assert_eq!(used, names);
}

/// The names of metrics in a source file, without those of its tests.
fn strings(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let strings = code.split('"').filter(|text| text.starts_with("rouse_"));
    strings.filter(|text| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

const BEGIN: &str = "<!-- The table is made from master/src/metrics/table.rs. -->\n";
const END: &str = "<!-- End of the table. -->\n";

#[test]
fn the_documentation_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let mut lines = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for table::Description { name, kind, labels, help } in table::ALL {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        lines += &format!("| `{name}` | {} | {} | {help} |\n", kind.as_str(), labels.join(", "));
    }
    let now = format!("{head}{BEGIN}{lines}{END}{tail}");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap() == now,
        "docs/metrics.md is out of date: run this test with ROUSE_BLESS=1"
    );
}
