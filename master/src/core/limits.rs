//! What an agent can and cannot do with builds on its machine: enforce limits, run them as another user, and end what
//! they start.

use super::build::BuildSpec;
use super::event::Level;
use super::{Core, Live, Timestamp, Worker};
use rouse_shared::WorkerName;
use rouse_shared::message::{Facts, Limits, NEEDS_RUN_AS};

/// Longest reason of an agent that is shown, characters.
const REASON_SHOWN: usize = 300;

/// Which limits of the steps of a build a machine does not enforce, and why, in a sentence.
pub(super) fn unenforced(worker: Limits, spec: &BuildSpec, facts: &Facts) -> Option<String> {
    let all = spec.steps.iter().fold(worker.narrowed(spec.limits), |all, step| all.narrowed(step.limits));
    let missing = all.unenforced(facts.cgroups);
    if missing.is_empty() {
        return None;
    }
    let why = match (&facts.cgroups, &facts.no_cgroups) {
        (Some(_), _) => "the cgroup of its agent lacks these controllers".to_owned(),
        (None, Some(why)) => format!("its agent has no cgroups for steps ({})", shown(why)),
        (None, None) => "its agent is too old for it".to_owned(),
    };
    Some(format!("limits of {} are not enforced: {why}", missing.join(", ")))
}

/// What an agent says, as it is shown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_SHOWN).collect()
}

impl Worker {
    /// Why a worker whose agent is attached takes no builds although nobody has asked for that, in a sentence.
    pub(super) fn unfit(&self) -> Option<String> {
        let live = self.attached()?;
        if let Some(why) = &live.unclean {
            return Some(format!(
                "its machine is not clean, and takes no builds until its agent is started again: {why}"
            ));
        }
        let nobody = self.plan.as_ref().is_some_and(|plan| plan.run_as.is_none());
        (nobody && live.session.facts.needs_run_as).then(|| NEEDS_RUN_AS.to_owned())
    }
}

impl Live {
    /// Takes up what a heartbeat says of its machine. True if the machine was clean before. The first reason counts, so
    /// that an agent with ever other ones does not fill the log.
    pub(super) fn take_unclean(&mut self, unclean: Option<&String>) -> bool {
        let new = self.unclean.is_none() && unclean.is_some();
        if new {
            self.unclean = unclean.map(|why| shown(why));
        }
        new
    }
}

impl Core {
    /// Processes of a step run on, and cannot be ended. Whatever runs there next would meet them.
    pub(super) fn retire_unclean(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get(name) else { return };
        let Some(why) = worker.session.as_ref().and_then(|live| live.unclean.clone()) else { return };
        let host = worker.host.clone();
        self.note(Level::Warn, format!("the machine of worker {name} is not clean: {why}"));
        if let Some(host) = host {
            self.wind_down(now, &host, "processes of a step that is over still run on it");
        }
        self.touch_worker(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::message::Cgroups;

    #[test]
    fn limits_that_nobody_enforces_are_named() {
        let spec = |limits| BuildSpec {
            name: String::new(),
            requirement: super::super::build::Requirement::Where(Default::default()),
            priority: 0,
            retries: 0,
            timeout_ms: None,
            queue_timeout_ms: None,
            keep: false,
            env: Default::default(),
            limits,
            steps: Vec::new(),
        };
        let some = Limits { memory: Some(1 << 30), pids: None, cpu_millis: Some(500) };
        let with = |cgroups| Facts { cgroups, ..Facts::default() };
        let whole = Some(Cgroups { memory: true, pids: true, cpu: true });
        let part = Some(Cgroups { memory: true, pids: true, cpu: false });
        let says = |worker, build, facts: &Facts| unenforced(worker, &spec(build), facts);
        assert_eq!(says(Limits::default(), Limits::default(), &with(None)), None);
        assert_eq!(says(some, some, &with(whole)), None);
        let cpus = "limits of cpus are not enforced: the cgroup of its agent lacks these controllers";
        assert_eq!(says(some, Limits::default(), &with(part)).as_deref(), Some(cpus));
        let old = "limits of memory, cpus are not enforced: its agent is too old for it";
        assert_eq!(says(Limits::default(), some, &with(None)).as_deref(), Some(old));
        let facts = Facts { no_cgroups: Some("no\u{1b}ne".to_owned()), ..Facts::default() };
        let none = "limits of memory, cpus are not enforced: its agent has no cgroups for steps (none)";
        assert_eq!(says(some, Limits::default(), &facts).as_deref(), Some(none));
    }

    #[test]
    fn the_narrower_limit_counts() {
        let wide = Limits { memory: Some(8), pids: Some(3), cpu_millis: None };
        let narrow = Limits { memory: Some(4), pids: Some(5), cpu_millis: Some(1) };
        let both = Limits { memory: Some(4), pids: Some(3), cpu_millis: Some(1) };
        assert_eq!((wide.narrowed(narrow), narrow.narrowed(wide)), (both, both));
    }
}
