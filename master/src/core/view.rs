//! The core's state as people see it: plain data for lists and pages.

use super::build::{Build, BuildState, Requirement};
use super::event::WorkerState;
use super::plan::ProviderKind;
use super::record::{DesiredState, Host};
use rouse_shared::message::{Facts, Vitals};
use rouse_shared::{BuildId, HostId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A build as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct BuildView {
    /// The build.
    pub build: Build,
    /// Its state, including whether a host is being started for it.
    pub state: BuildState,
    /// Why its logs are not in the blob store yet, if that is away. Only for a single build that has ended.
    pub upload_trouble: Option<String>,
}

/// Selects builds: those that meet all of its conditions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BuildFilter {
    /// Only those in this state.
    pub state: Option<BuildState>,
    /// Only those whose last attempt was assigned to this worker.
    pub worker: Option<WorkerName>,
    /// Only those with this name, which is not empty. `*` stands for any text, and `?` for one character.
    pub name: Option<String>,
    /// Only those that require all of these properties.
    pub properties: Vec<(String, String)>,
    /// Only those that are older than this one.
    pub before: Option<BuildId>,
    /// Only those that were accepted at this time or later.
    pub since: Option<Timestamp>,
    /// Only those that were accepted before this time.
    pub until: Option<Timestamp>,
    /// Maximum number.
    pub limit: usize,
}

impl BuildFilter {
    /// Whether a build meets the conditions, apart from `limit`.
    pub fn matches(&self, build: &Build, state: BuildState) -> bool {
        let worker = || build.status.attempts.last().map(|attempt| &attempt.worker);
        let requires = |(key, value): &(String, String)| match &build.spec.requirement {
            Requirement::Where(wanted) => wanted.get(key) == Some(value),
            Requirement::Worker(_) => false,
        };
        self.before.is_none_or(|before| build.id < before)
            && self.state.is_none_or(|wanted| wanted == state)
            && self.worker.as_ref().is_none_or(|wanted| worker() == Some(wanted))
            && self.since.is_none_or(|since| build.status.created >= since)
            && self.until.is_none_or(|until| build.status.created < until)
            && self.name.as_ref().is_none_or(|pattern| fits(pattern, &build.spec.name))
            && self.properties.iter().all(requires)
    }
}

/// Whether a name fits a pattern, in which `*` stands for any text, and `?` for one character.
fn fits(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether the pattern so far fits the first so many characters of the name.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for wanted in pattern.chars() {
        if wanted == '*' {
            let first = fits.iter().position(|fits| *fits).unwrap_or(fits.len());
            fits[first..].fill(true);
        } else {
            for at in (1..fits.len()).rev() {
                fits[at] = fits[at - 1] && (wanted == '?' || wanted == name[at - 1]);
            }
            fits[0] = false;
        }
    }
    fits.last() == Some(&true)
}

/// A worker as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerView {
    /// Its name.
    pub name: WorkerName,
    /// [`super::plan::WorkerPlan::template`]; absent if it is no longer in the configuration.
    pub template: Option<String>,
    /// The provider of its hosts; absent for a standing worker.
    pub provider: Option<ProviderKind>,
    /// Its state.
    pub state: WorkerState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Number of assigned attempts that have not ended.
    pub running: u32,
    /// Largest number of builds at the same time.
    pub max_builds: Option<u32>,
    /// Its host, while there is one.
    pub host: Option<HostId>,
    /// Version of its agent, while one is attached.
    pub agent_version: Option<String>,
    /// Its agent's machine, while one is attached.
    pub facts: Option<Facts>,
    /// Why it takes no builds although its agent is attached and nobody has asked for that, in a sentence.
    pub unfit: Option<String>,
    /// The load of its machine at the last heartbeat.
    pub vitals: Option<Vitals>,
    /// When its agent last sent a hello or a heartbeat; absent after a restart of the master until the next one.
    pub last_heard: Option<Timestamp>,
    /// The agent that was last refused under its name, within the last ten minutes and since the master started.
    pub refused: Option<Refusal>,
    /// What an operator has requested.
    pub wish: DesiredState,
    /// Properties for `where`.
    pub properties: BTreeMap<String, String>,
    /// Why its last host failed, until one succeeds.
    pub last_failure: Option<String>,
    /// When the next start is tried after failures.
    pub next_try: Option<Timestamp>,
}

/// The state of a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaceState {
    /// It answers, and creates hosts.
    Healthy,
    /// It has refused to start a host, or could not be queried. No host is started there until the next probe.
    Pausing,
    /// It has not answered since the master started.
    Unknown,
}

impl PlaceState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Pausing, Self::Unknown];

    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Pausing => "pausing",
            Self::Unknown => "unknown",
        }
    }
}

/// A place as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlaceView {
    /// Its id in commands and in the API.
    pub id: String,
    /// The provider of the hosts there.
    pub provider: ProviderKind,
    /// Its name in the configuration.
    pub name: String,
    /// Its state.
    pub state: PlaceState,
    /// This master's hosts there that are not gone.
    pub hosts: usize,
    /// Why it pauses: its newest refusal, in a sentence.
    pub reason: Option<String>,
    /// When its pause began.
    pub since: Option<Timestamp>,
    /// When the master probes it next.
    pub next_probe: Option<Timestamp>,
}

/// An agent under a worker's name that the master has refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// When it was last refused.
    pub at: Timestamp,
    /// The machine that it claims to be on, at most 100 characters.
    pub identity: String,
    /// The reason, at most 300 characters.
    pub reason: String,
}

/// A host as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct HostView {
    /// The host.
    pub host: Host,
    /// The builds that run on it now.
    pub builds: Vec<BuildId>,
}

/// Why a build has not started, or what it is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// One sentence.
    pub sentence: String,
    /// When the next try is, if there will be one.
    pub next_try: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_pattern_fits_the_whole_name() {
        for (pattern, name) in [
            ("a", "a"),
            ("*", ""),
            ("*", "a b"),
            ("a*", "a"),
            ("*-arm?", "nightly-arm7"),
            ("a*b*c", "a-b-b-c"),
            ("ä?", "äö"),
            ("[a]", "[a]"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a", "ab"),
            ("?", ""),
            ("b*", "ab"),
            ("*b", "ba"),
            ("a*b*c", "a-c-b"),
            ("[ab]", "a"),
            ("A", "a"),
            ("a", ""),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
