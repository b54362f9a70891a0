//! Transcripts of audits.

use super::super::audit::{AUDIT_LIMIT, AuditMode};
use super::super::event::{Command, Event, ListedHost, Listing, Owner, RequestId, UnlistedPlace};
use super::super::journal::Caller;
use super::super::plan::ProviderKind;
use super::{Bench, latent, on, plan, secs};
use rouse_shared::{HostId, Timestamp};

const PROVIDER: ProviderKind = ProviderKind::Ec2;
const REQUEST: RequestId = RequestId(7);

fn machine(number: u32, owner: Owner) -> ListedHost {
    let (host, handle) = (HostId(format!("h{number}")), format!("i-{number}"));
    ListedHost { host, handle, identity: None, owner, suspended: false }
}

fn foreign(number: u32) -> ListedHost {
    machine(number, Owner::Foreign("other".to_owned()))
}

impl Bench {
    fn audit(&mut self, mode: AuditMode) {
        self.event(
            &format!("audit: {mode:?}"),
            Event::Command { request: REQUEST, by: Caller::signal("test"), command: Command::Audit(mode) },
        );
    }

    fn listed(&mut self, round: u32, result: Result<Listing, String>) {
        let names = |machines: &[ListedHost]| machines.iter().map(|m| m.handle.clone()).collect::<Vec<_>>().join(" ");
        let what = match &result {
            Ok(Listing { machines, unlisted }) if unlisted.is_empty() => names(machines),
            Ok(Listing { machines, .. }) if !machines.is_empty() => format!("error, and {}", names(machines)),
            Ok(_) | Err(_) => "error".to_owned(),
        };
        let event = Event::ListedForAudit { request: REQUEST, round, provider: PROVIDER, result };
        self.event(&format!("listed for round {round}: {what}"), event);
    }
}

#[test]
fn a_foreign_machine_is_reported_once_and_never_changed() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    for _ in 0..3 {
        bench.event("listed: i-1", Event::Listed { provider: PROVIDER, result: Ok(vec![foreign(1)].into()) });
        bench.pass(91);
    }
    bench.check("foreign");
}

#[test]
fn an_audit_that_only_looks_changes_nothing() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.audit(AuditMode::Look);
    bench.listed(1, Ok(vec![].into()));
    bench.audit(AuditMode::Look);
    bench.listed(1, Ok(vec![machine(1, Owner::Ours), machine(2, Owner::Ours), foreign(3)].into()));
    // The second is gone by now: it was on its way out.
    bench.pass(2);
    bench.listed(1, Ok(vec![].into()));
    bench.listed(2, Ok(vec![machine(1, Owner::Ours), foreign(3)].into()));
    bench.audit(AuditMode::Look);
    bench.listed(1, Err("no such key".to_owned()));
    bench.pass(2);
    bench.listed(2, Err("no such key".to_owned()));
    bench.check("audit_look");
}

#[test]
fn an_audit_that_fixes_terminates_orphans_and_one_that_adopts_foreign_machines() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    let both = || Ok(vec![machine(1, Owner::Ours), foreign(2)].into());
    bench.audit(AuditMode::Fix);
    bench.listed(1, both());
    bench.pass(2);
    bench.listed(2, both());
    bench.pass(3);
    bench.listed(3, both());
    bench.pass(5);
    bench.listed(4, Ok(vec![foreign(2)].into()));
    bench.audit(AuditMode::Adopt);
    bench.listed(1, Ok(vec![foreign(2)].into()));
    bench.pass(2);
    bench.listed(2, Ok(vec![foreign(2)].into()));
    bench.pass(3);
    bench.listed(3, Ok(vec![].into()));
    bench.check("audit_fix");
}

#[test]
fn a_host_that_two_lists_lack_is_gone_where_it_is_to_be_fixed() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.wake("l");
    bench.hush();
    bench.pass(20);
    bench.audit(AuditMode::Fix);
    // Too young to have to be listed.
    bench.listed(1, Ok(vec![].into()));
    bench.hush();
    for beat in 1..=8 {
        bench.pass(10);
        bench.heartbeat("l", beat);
    }
    // Its agent has just sent a message.
    bench.hush();
    bench.audit(AuditMode::Fix);
    bench.listed(1, Ok(vec![].into()));
    bench.pass(20);
    bench.audit(AuditMode::Fix);
    bench.listed(1, Ok(vec![].into()));
    bench.pass(2);
    bench.listed(2, Ok(vec![].into()));
    bench.pass(3);
    bench.listed(3, Ok(vec![].into()));
    bench.check("audit_missing");
}

#[test]
fn a_host_is_missed_although_the_clock_was_set_back_by_an_hour() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.now = bench.now + secs(7_200);
    bench.submit(on("l"));
    bench.wake("l");
    bench.now = Timestamp(bench.now.0 - 3_600_000);
    bench.restart();
    for beat in 1..=10 {
        bench.pass(10);
        bench.heartbeat("l", beat);
    }
    bench.pass(20);
    bench.hush();
    for _ in 0..3 {
        bench.event("listed", Event::Listed { provider: PROVIDER, result: Ok(vec![].into()) });
    }
    bench.check("audit_missing_clock");
}

#[test]
fn a_partial_list_proves_what_exists_and_not_what_is_gone() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    let partly = |machines: Vec<ListedHost>| {
        let unlisted = vec![UnlistedPlace { place: None, why: "one of two did not answer".to_owned() }];
        Ok(Listing { machines, unlisted })
    };
    let (stray, other) = (machine(1, Owner::Ours), machine(2, Owner::Ours));
    let provider = PROVIDER;
    bench.submit(on("l"));
    bench.wake("l");
    for beat in 1..=9 {
        bench.pass(10);
        bench.heartbeat("l", beat);
    }
    bench.hush();
    bench.event("listed: i-1 i-2", Event::Listed { provider, result: Ok(vec![stray.clone(), other].into()) });
    // Neither the host nor the second orphan is known to be gone; the first is there, and old enough.
    for beat in 10..=18 {
        bench.pass(10);
        bench.heartbeat("l", beat);
    }
    bench.hush();
    for _ in 0..3 {
        bench.event("listed: error, and i-1", Event::Listed { provider, result: partly(vec![stray.clone()]) });
    }
    bench.text.push_str(&format!("        foreign_counts: {:?}\n", bench.core.foreign_counts()));
    bench.audit(AuditMode::Fix);
    bench.listed(1, partly(vec![stray.clone()]));
    bench.pass(2);
    bench.listed(2, partly(vec![stray]));
    bench.pass(3);
    bench.listed(3, partly(vec![]));
    bench.check("audit_partly");
}

#[test]
fn an_audit_is_answered_in_time_and_so_many_at_once_are_refused() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.audit(AuditMode::Fix);
    bench.listed(1, Ok(vec![machine(1, Owner::Ours)].into()));
    bench.pass(2);
    bench.listed(2, Ok(vec![machine(1, Owner::Ours)].into()));
    bench.hush();
    bench.pass(AUDIT_LIMIT.as_secs());
    bench.listed(3, Ok(vec![].into()));
    for number in 10..=18 {
        bench.event(
            "audit",
            Event::Command {
                request: RequestId(number),
                by: Caller::signal("test"),
                command: Command::Audit(AuditMode::Look),
            },
        );
    }
    bench.check("audit_limits");
}
