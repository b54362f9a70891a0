//! The clouds where hosts may exist: those of the configuration, and those of earlier configurations until no machine
//! of this master is left there.

use super::account::Account;
use super::cloud::Cloud;
use super::error::CloudError;
use crate::core::event::UnlistedPlace;
use crate::hosts::persisted_set::PersistedSet;
use crate::sync::lock;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Time limit for the login to one of several clouds, so that an audit gets the lists of the others in time.
const LOGIN: Duration = Duration::from_secs(10);
/// Separates a place from its name in a line of the file.
const NAMED: char = '\t';

/// All of them.
pub(super) struct Clouds(Mutex<State>);

struct State {
    /// The clouds, those of the configuration first.
    known: Vec<Known>,
    /// The places where hosts were created, see [`Cloud::place`].
    used: PersistedSet,
    /// Number of servers that this process has requested.
    asked: u64,
}

impl State {
    /// The places where hosts were created, each with the names that the hosts in the ledger have for it.
    fn places(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in self.used.all() {
            let (place, name) = line.split_once(NAMED).unwrap_or((&line, ""));
            let names = all.entry(place.to_owned()).or_default();
            if !name.is_empty() {
                names.insert(name.to_owned());
            }
        }
        for (place, names) in &mut all {
            if names.is_empty() {
                names.insert(shown(place));
            }
        }
        all
    }
}

#[derive(Clone)]
struct Known {
    cloud: Arc<Cloud>,
    /// Whether it is in the configuration now.
    current: bool,
    /// Its names in the configuration: [`crate::config::OpenstackConfig::place`].
    names: BTreeSet<String>,
}

/// A place to be listed.
pub(super) struct Target {
    pub(super) cloud: Arc<Cloud>,
    /// [`Cloud::place`].
    pub(super) place: String,
    /// Its names in this configuration, and in those in which hosts were created there.
    names: BTreeSet<String>,
    /// [`State::asked`] before the place was listed.
    asked: u64,
}

impl Target {
    /// The place as one that could not be listed, under each of its names.
    pub(super) fn unlisted(&self, why: &str) -> impl Iterator<Item = UnlistedPlace> {
        unlisted(&self.names, why)
    }

    /// The id of the project.
    pub(super) fn project(&self) -> &str {
        project_of(&self.place)
    }
}

/// Where hosts may be.
pub(super) struct Places {
    /// The places that can be reached, each once.
    pub(super) reached: Vec<Target>,
    /// The places that cannot, under each of their names.
    pub(super) unlisted: Vec<UnlistedPlace>,
    /// Projects of places where hosts were created and that cannot be reached.
    pub(super) hidden: BTreeSet<String>,
}

fn unlisted(names: &BTreeSet<String>, why: &str) -> impl Iterator<Item = UnlistedPlace> {
    names.iter().map(move |name| UnlistedPlace { place: Some(name.clone()), why: why.to_owned() })
}

impl Clouds {
    /// With the places that an earlier master has stored in `file`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn new(file: PathBuf) -> io::Result<Self> {
        Ok(Self(Mutex::new(State { known: Vec::new(), used: PersistedSet::read(file)?, asked: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Applies the accounts of a new configuration, with the names of their places, and returns the cloud of each. An
    /// account that is still used keeps its token.
    pub(super) fn configure(&self, accounts: Vec<(String, Account)>) -> Vec<Result<Arc<Cloud>, String>> {
        let mut state = self.state();
        for known in &mut state.known {
            known.current = accounts.iter().any(|(_, account)| *account == known.cloud.account);
            if known.current {
                known.names.clear();
            }
        }
        let mut all = Vec::new();
        for (name, account) in accounts {
            let index = state.known.iter().position(|known| known.cloud.account == account);
            let cloud = match index.and_then(|index| state.known.get_mut(index)) {
                Some(known) => {
                    known.names.insert(name);
                    Ok(known.cloud.clone())
                }
                None => Cloud::new(account).map(Arc::new).inspect(|cloud| {
                    let known = Known { cloud: cloud.clone(), current: true, names: BTreeSet::from([name]) };
                    state.known.push(known);
                }),
            };
            all.push(cloud);
        }
        state.known.sort_by_key(|known| !known.current);
        all
    }

    /// Whether a cloud has not been given up.
    pub(super) fn knows(&self, cloud: &Arc<Cloud>) -> bool {
        self.state().known.iter().any(|known| Arc::ptr_eq(&known.cloud, cloud))
    }

    /// The cloud of a place, with any account of this configuration or an earlier one that leads there. If the Keystone
    /// of another account does not answer, this does not delay the call.
    ///
    /// # Errors
    /// If none does, or it cannot be determined.
    pub(super) async fn at(&self, place: &str) -> Result<Arc<Cloud>, CloudError> {
        let known = self.state().known.clone();
        if let Some(known) = known.iter().find(|known| known.cloud.known_place() == Some(place)) {
            return Ok(known.cloud.clone());
        }
        let unknown = known.into_iter().filter(|known| known.cloud.known_place().is_none());
        let mut asked: FuturesUnordered<_> = unknown.map(|known| place_of(known.cloud)).collect();
        let mut unclear = None;
        while let Some((there, cloud)) = asked.next().await {
            match there {
                Ok(there) if there == place => return Ok(cloud),
                Ok(_) => {}
                Err(problem) => unclear = Some(problem),
            }
        }
        let none = || {
            CloudError::Misconfigured(format!("cannot reach {}: no worker's section names it any more", shown(place)))
        };
        Err(unclear.unwrap_or_else(none))
    }

    /// Every place where a host may be.
    pub(super) async fn places(&self) -> Places {
        let (known, asked, used) = {
            let state = self.state();
            (state.known.clone(), state.asked, state.places())
        };
        // If nobody has logged in with an account of an earlier configuration, it has created nothing.
        let known = known.into_iter().filter(|known| known.current || known.cloud.known_place().is_some());
        let asking = known.map(|Known { cloud, names, .. }| async move { (place_of(cloud).await, names) });
        let mut places = Places { reached: Vec::new(), unlisted: Vec::new(), hidden: BTreeSet::new() };
        let mut silent: BTreeSet<String> = BTreeSet::new();
        for ((place, cloud), names) in join_all(asking).await {
            match place {
                Ok(place) => match places.reached.iter_mut().find(|target| target.place == place) {
                    Some(target) => target.names.extend(names),
                    None => places.reached.push(Target { cloud, place, names, asked }),
                },
                Err(problem) => {
                    let new: BTreeSet<String> = names.difference(&silent).cloned().collect();
                    places.unlisted.extend(unlisted(&new, &problem.to_string()));
                    silent.extend(new);
                }
            }
        }
        for (place, names) in used {
            if let Some(target) = places.reached.iter_mut().find(|target| target.place == place) {
                target.names.extend(names);
                continue;
            }
            places.hidden.insert(project_of(&place).to_owned());
            let shown = shown(&place);
            let why = format!("hosts were created there, in {shown}, but no worker's section names it any more");
            places.unlisted.extend(unlisted(&names.difference(&silent).cloned().collect(), &why));
        }
        places
    }

    /// Stores that hosts are created in a place, which the configuration calls `name`, before the first one is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn note(&self, place: &str, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.asked += 1;
        match name.replace([NAMED, '\n', '\r'], " ") {
            name if name.is_empty() => state.used.add(place),
            name => state.used.add(&format!("{place}{NAMED}{name}")),
        }
    }

    /// The list of this place had nothing of this master. Forgets it, unless a server was requested since then.
    pub(super) fn forget(&self, target: &Target) {
        let mut state = self.state();
        if state.asked == target.asked {
            let is_there = |line: &String| line.split(NAMED).next() == Some(target.place.as_str());
            for line in state.used.all().iter().filter(|line| is_there(line)) {
                state.used.remove(line);
            }
            state.known.retain(|known| known.current || known.cloud.known_place() != Some(target.place.as_str()));
        }
    }

    /// Forgets the places of this name, unless the configuration has it.
    pub(super) fn give_up(&self, name: &str) {
        let mut state = self.state();
        if state.known.iter().any(|known| known.current && known.names.contains(name)) {
            return;
        }
        for line in state.used.all() {
            let is_named = match line.split_once(NAMED) {
                Some((_, of)) => of == name,
                None => shown(&line) == name,
            };
            if is_named {
                state.used.remove(&line);
            }
        }
        let left = state.places();
        let is_used = |cloud: &Cloud| cloud.known_place().is_some_and(|place| left.contains_key(place));
        state.known.retain(|known| known.current || is_used(&known.cloud));
    }
}

async fn place_of(cloud: Arc<Cloud>) -> (Result<String, CloudError>, Arc<Cloud>) {
    let place = tokio::time::timeout(LOGIN, cloud.place()).await;
    (place.unwrap_or_else(|_| Err(late(&cloud, LOGIN))), cloud)
}

/// The error if a cloud does not answer in time.
pub(super) fn late(cloud: &Cloud, limit: Duration) -> CloudError {
    CloudError::Lost(format!("the cloud at {} did not answer within {} s", cloud.account.auth_url, limit.as_secs()))
}

fn project_of(place: &str) -> &str {
    place.split(' ').next().unwrap_or_default()
}

/// The text for people.
fn shown(place: &str) -> String {
    let (project, region) = place.split_once(' ').unwrap_or((place, ""));
    format!("the project {project} in the region {region}")
}

#[cfg(test)]
#[path = "clouds_tests.rs"]
mod tests;
