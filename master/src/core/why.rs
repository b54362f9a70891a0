//! Explains each build in one sentence: why it has not started, what it does, or how it ended.

use super::build::{Attempt, Build, BuildEnd, BuildStatus, Requirement};
use super::event::WorkerState;
use super::queue;
use super::record::HostState;
use super::view::Why;
use super::views::describe;
use super::{Core, Timestamp, Worker};
use rouse_shared::{BuildId, WorkerName};
use std::collections::BTreeMap;

impl Core {
    /// Why a build that has not ended has not started, or what it is doing.
    pub fn why(&self, now: Timestamp, id: BuildId) -> Option<Why> {
        let build = self.builds.get(&id)?;
        if let Some(sentence) = of_status(&build.status) {
            return Some(Why { sentence, next_try: None });
        }
        if let Some(attempt) = build.status.live_attempt() {
            return Some(Why { sentence: self.of_attempt(now, build, attempt), next_try: None });
        }
        if let Some(live) = self.queue.host_of(id).and_then(|host| self.hosts.get(host)) {
            let host = &live.host;
            let what = match host.state {
                HostState::Ordered => "is being started for this build",
                HostState::Resuming => "is being resumed for this build",
                HostState::Booting => "is booting for this build",
                HostState::Ready => "is about to run this build",
                HostState::Suspending | HostState::Suspended => "is being suspended and will be resumed for this build",
                HostState::Draining | HostState::Terminating | HostState::Terminated => {
                    "did not start and is being terminated"
                }
            };
            let age = now.since(host.begun()).as_secs();
            let begun = if host.resumed.is_some() { "resumed" } else { "ordered" };
            let mut sentence = format!(
                "host {} of worker {} {what} ({begun} {age} s ago, {})",
                host.id,
                host.worker,
                host.provider.as_str()
            );
            if let Some(chosen) = &live.chosen {
                sentence.push_str(&format!("; chosen by {chosen}"));
            }
            let trouble = live.phase.trouble();
            if let Some(trouble) = trouble.filter(|_| host.state == HostState::Ordered) {
                sentence.push_str(&format!(
                    "; it is not known whether it was started, and the start is retried: {trouble}"
                ));
            } else if let Some(trouble) = trouble.filter(|_| host.state == HostState::Resuming) {
                sentence.push_str(&format!("; resuming it failed and is retried: {trouble}"));
            }
            if matches!(host.state, HostState::Ordered | HostState::Resuming | HostState::Booting) {
                sentence.extend(self.refusal_of(now, &host.worker));
                let failure = self.workers.get(&host.worker).and_then(|w| w.record.last_failure.as_ref());
                sentence.extend(failure.map(|failure| format!("; the last host failed: {failure}")));
            }
            return Some(Why { sentence, next_try: None });
        }
        Some(self.of_waiting(now, build))
    }

    /// What to add if an agent was refused under a worker's name.
    fn refusal_of(&self, now: Timestamp, name: &WorkerName) -> Option<String> {
        let refusal = self.workers.get(name)?.refusal(now)?;
        let (machine, reason, age) = (&refusal.identity, &refusal.reason, now.since(refusal.at).as_secs());
        Some(format!("; an agent that claims to be {name} on {machine} was refused {age} s ago: {reason}"))
    }

    fn of_attempt(&self, now: Timestamp, build: &Build, attempt: &Attempt) -> String {
        let worker = &attempt.worker;
        let attached = self.workers.get(worker).is_some_and(|w| w.attached().is_some());
        let place = match (attached, self.alarm()) {
            // Nobody knows of an agent whether it is there.
            (_, Some(why)) => {
                format!("; at the moment the broker accepts no messages ({why}), so nothing is heard of it")
            }
            (true, None) => String::new(),
            (false, None) => match attempt.host.as_ref().and_then(|host| self.hosts.get(host)) {
                Some(live) if live.host.state == HostState::Terminating => {
                    let stays = live.stays(now).map(|text| format!("; {text}")).unwrap_or_default();
                    format!(", whose host is being terminated; the build is retried once the machine is gone{stays}")
                }
                Some(_) | None => {
                    ", whose agent has stopped responding; the build is retried once its lease expires".to_owned()
                }
            },
        };
        let place = match &attempt.unenforced {
            Some(unenforced) => format!("{place}; {unenforced}"),
            None => place,
        };
        match (attempt.started, &attempt.outcome) {
            (_, Some(_)) => format!("it has ended on worker {worker}; the rest of its log is being fetched"),
            (None, None) => format!("it was assigned to worker {worker}, which has not started it yet{place}"),
            (Some(_), None) => {
                let step = attempt.steps.len().max(1);
                let name = build.spec.steps.get(step - 1).map_or("", |s| s.name.as_str());
                let total = build.spec.steps.len();
                format!("it is running on worker {worker}, step {step} of {total} ({name}){place}")
            }
        }
    }

    fn of_waiting(&self, now: Timestamp, build: &Build) -> Why {
        let requirement = &build.spec.requirement;
        let wanted = describe(requirement);
        if let Requirement::Worker(name) = requirement
            && !self.plan.workers.contains_key(name)
        {
            let sentence = format!("it is waiting for worker {name}, which is no longer in the configuration");
            return Why { sentence, next_try: None };
        }
        if !self.someone_matches(requirement) {
            let sentence = format!("it is waiting for {wanted}, but none is configured");
            return Why { sentence, next_try: None };
        }
        let matching: Vec<&Worker> = self
            .workers
            .values()
            .filter(|w| !w.removed && w.plan.as_ref().is_some_and(|p| queue::matches(requirement, p)))
            .collect();
        if let Some(trouble) = self.broker_trouble() {
            let sentence = format!("it is waiting for {wanted}: {trouble}");
            return Why { sentence, next_try: None };
        }
        // A latent worker that is missing is woken like one that is asleep.
        let sleeps = |w: &&Worker| !w.standing() && matches!(w.state, WorkerState::Asleep | WorkerState::Missing);
        let asleep = matching.iter().any(sleeps);
        if asleep && !self.may_start_one() {
            let most = self.plan.max_hosts.unwrap_or_default();
            let reason = match most {
                1 => "the one host that limits.max_hosts allows is in use".to_owned(),
                _ => format!("all {most} hosts that limits.max_hosts allows are in use"),
            };
            let mut sentence = format!("it is waiting for {wanted}: {reason}");
            let stays = self.hosts.values().find_map(|live| live.stays(now));
            sentence.extend(stays.map(|text| format!("; {text}")));
            return Why { sentence, next_try: None };
        }
        if asleep && let Err((limit, tomorrow)) = self.may_spend(now) {
            let sentence = format!("it is waiting for {wanted}: {limit}");
            return Why { sentence, next_try: Some(tomorrow) };
        }
        let next_try = matching
            .iter()
            .filter_map(|w| {
                let own = w.record.backoff_until.filter(|until| *until > now);
                own.max(self.image_until(w, now)).max(self.place_until(w, now))
            })
            .min();
        let mut states: Vec<String> = Vec::new();
        for state in [
            WorkerState::Busy,
            WorkerState::Idle,
            WorkerState::Starting,
            WorkerState::Asleep,
            WorkerState::Draining,
            WorkerState::Paused,
            WorkerState::Offline,
            WorkerState::Missing,
            WorkerState::Backoff,
        ] {
            let count = matching.iter().filter(|w| w.state == state).count();
            if count > 0 {
                states.push(format!("{count} {}", state.as_str()));
            }
        }
        let sleeper = matching.iter().filter_map(|w| w.host.as_ref()).find_map(|id| {
            let live = self.hosts.get(id)?;
            let host = &live.host;
            let words = match host.state {
                HostState::Suspending => "is being suspended and can be resumed after that",
                HostState::Suspended => "is suspended and will be resumed",
                HostState::Ordered
                | HostState::Booting
                | HostState::Ready
                | HostState::Draining
                | HostState::Resuming
                | HostState::Terminated => return None,
                HostState::Terminating => return live.stays(now),
            };
            Some(format!("host {id} of worker {} {words}", host.worker))
        });
        let failure = matching.iter().find_map(|w| w.record.last_failure.as_ref());
        let mut sentence = format!("it is waiting for {wanted} ({})", states.join(", "));
        if let Some(failure) = failure.filter(|_| !matching.iter().any(|w| w.state == WorkerState::Busy)) {
            sentence.push_str(&format!("; the last host failed: {failure}"));
        }
        let pauses: BTreeMap<_, _> = matching.iter().filter_map(|w| self.pause_of(w)).collect();
        for (place, pause) in pauses {
            let since = pause.since.map_or(0, |since| now.since(since).as_secs());
            let reason = pause.reason.as_deref().unwrap_or_default();
            sentence.push_str(&format!("; no hosts have been started in {place} for {since} s: {reason}"));
        }
        if let Some(text) = sleeper {
            sentence.push_str(&format!("; {text}"));
        }
        let away =
            |w: &&&Worker| matches!(w.state, WorkerState::Offline | WorkerState::Missing | WorkerState::Starting);
        let mut refused = matching.iter().filter(away).filter_map(|w| w.plan.as_ref());
        sentence.extend(refused.find_map(|plan| self.refusal_of(now, &plan.name)));
        let image_waits = matching.iter().filter(|w| sleeps(w));
        let image_waits = image_waits.filter_map(|w| w.plan.as_ref()).find_map(|p| self.image_waits(&p.name));
        if let Some(text) = image_waits {
            sentence.push_str(&format!("; {text}"));
        }
        let unfit = matching.iter().find_map(|w| Some((w.plan.as_ref()?, w.unfit()?)));
        if let Some((plan, why)) = unfit {
            sentence.push_str(&format!("; worker {} takes no builds: {why}", plan.name));
        }
        let named = |state: WorkerState| matching.iter().find(|w| w.state == state).and_then(|w| w.plan.as_ref());
        if let Some(plan) = named(WorkerState::Paused) {
            sentence.push_str(&format!("; `rouse resume {}` takes that worker back into use", plan.name));
        }
        if let Some(at) = next_try {
            sentence.push_str(&format!("; the next start is in {} s", at.since(now).as_secs()));
        }
        Why { sentence, next_try }
    }
}

/// The sentence about a build that has ended, from its record alone.
pub fn of_status(status: &BuildStatus) -> Option<String> {
    let worker = status.attempts.last().map(|a| format!(" on worker {}", a.worker)).unwrap_or_default();
    Some(match status.end.as_ref()? {
        BuildEnd::Success => format!("it succeeded{worker}"),
        BuildEnd::Failure(why) => format!("it failed{worker}: {why}"),
        BuildEnd::Cancelled => "it was cancelled".to_owned(),
        BuildEnd::Lost(why) if status.attempts.is_empty() => format!("it was lost: {why}"),
        BuildEnd::Lost(why) => format!("it was lost after {} attempts: {why}", status.attempts.len()),
    })
}
