//! The journal: what is written into it, and with what it is committed.

use super::*;
use crate::core::audit::AuditMode;
use crate::core::journal::{Action, Entry, Principal, PrincipalKind};

impl Bench {
    /// Gives a command; returns the records of its batch, and the entry among them.
    fn commanded(&mut self, command: Command) -> (usize, Option<Entry>) {
        let principal = Principal { name: "ann".to_owned(), kind: PrincipalKind::Proxy };
        let by = Caller { principal, from: "192.0.2.1".to_owned(), note: Some("why".to_owned()) };
        let effects = self.core.handle(self.now, Event::Command { request: RequestId(7), by, command });
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::Save(record) => Some(record.clone()),
            _ => None,
        });
        let records: Vec<_> = records.collect();
        effects.iter().for_each(|effect| self.learn(effect));
        let mut entries = records.iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry.clone()),
            _ => None,
        });
        (records.len(), entries.next())
    }
}

#[test]
fn what_is_done_is_recorded_with_it_and_what_is_refused_is_not() {
    let mut bench = Bench::quietly(plan(vec![standing("w1")]));
    bench.submit(Requirement::Where(BTreeMap::new()));
    let build = BuildId(1);
    let submitter = bench.core.build(build).unwrap().build.status.submitter;
    assert_eq!(submitter, Some(Caller::signal("test").principal));

    let operate = |operation| Command::Operate { worker: name("w1"), operation };
    let entry = |entry: Option<Entry>| {
        let Entry { id, action, target, principal, from, note, .. } = entry.unwrap();
        assert_eq!((&*principal.name, &*from, note.as_deref()), ("ann", "192.0.2.1", Some("why")));
        (id, action, target.unwrap_or_default())
    };
    let (records, paused) = bench.commanded(operate(Operation::Pause));
    assert_eq!((records, entry(paused)), (2, (1, Action::Pause, "w1".to_owned())));
    let (records, cancelled) = bench.commanded(Command::CancelBuild(build));
    assert_eq!((records, entry(cancelled)), (2, (2, Action::Cancel, "1".to_owned())));
    for refused in [
        Command::CancelBuild(build),
        Command::CancelBuild(BuildId(9)),
        Command::TerminateHost(HostId("h9".to_owned())),
        Command::ForgetPlace("nowhere".to_owned()),
        Command::Operate { worker: name("w9"), operation: Operation::Drain },
        Command::Audit(AuditMode::Look),
    ] {
        assert_eq!(bench.commanded(refused.clone()), (0, None), "{refused:?}");
    }
    bench.restart();
    for (number, (command, action)) in (3..).zip([
        (operate(Operation::Resume), Action::Resume),
        (Command::Audit(AuditMode::Fix), Action::AuditFix),
        (Command::Record(Action::Reload), Action::Reload),
    ]) {
        let (id, recorded, _) = entry(bench.commanded(command).1);
        assert_eq!((id, recorded), (number, action), "numbers go on after a restart");
    }
}
