//! The clouds that hosts may be in: those of the configuration, and those of earlier ones until nothing of ours is there.

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

/// For the login to one of several clouds: the others are listed all the same, in time for an audit.
const LOGIN: Duration = Duration::from_secs(10);
/// Between a place and its name, in a line of what is kept over restarts.
const NAMED: char = '\t';

/// All of them.
pub(super) struct Clouds(Mutex<State>);

struct State {
    /// Those of the configuration first.
    known: Vec<Known>,
    /// Where hosts were made: lines of [`Cloud::place`] and, after [`NAMED`], what the configuration called it then.
    used: PersistedSet,
    /// How many servers this process has asked for.
    asked: u64,
}

impl State {
    /// Where hosts were made, and by which names those know it.
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
    /// Whether the configuration has it now.
    current: bool,
    /// What the sections that lead there call it: [`crate::config::OpenstackConfig::place`].
    names: BTreeSet<String>,
}

/// A place to be listed.
pub(super) struct Target {
    pub(super) cloud: Arc<Cloud>,
    /// [`Cloud::place`].
    pub(super) place: String,
    /// What it is called, by this configuration and by those that hosts were made under.
    names: BTreeSet<String>,
    /// [`State::asked`] before it is listed.
    asked: u64,
}

impl Target {
    /// That it could not be listed.
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
    /// What can be reached, each once.
    pub(super) reached: Vec<Target>,
    /// What cannot, by its names.
    pub(super) unlisted: Vec<UnlistedPlace>,
    /// Projects in which hosts were made where nobody can be reached.
    pub(super) hidden: BTreeSet<String>,
}

fn unlisted(names: &BTreeSet<String>, why: &str) -> impl Iterator<Item = UnlistedPlace> {
    names.iter().map(move |name| UnlistedPlace { place: Some(name.clone()), why: why.to_owned() })
}

impl Clouds {
    /// With the places that an earlier master has noted in `file`.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub(super) fn new(file: PathBuf) -> io::Result<Self> {
        Ok(Self(Mutex::new(State { known: Vec::new(), used: PersistedSet::read(file)?, asked: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Takes the accounts of a new configuration, with the names of their places; the cloud of each. An account that it
    /// still has keeps its token.
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

    /// Whether somebody may have hosts in a cloud.
    pub(super) fn knows(&self, cloud: &Arc<Cloud>) -> bool {
        self.state().known.iter().any(|known| Arc::ptr_eq(&known.cloud, cloud))
    }

    /// The cloud at a place, by whatever account of the configuration, or of an earlier one, leads there. An account whose
    /// place is not known yet, and whose Keystone does not answer, delays only what nobody else leads to.
    ///
    /// # Errors
    /// Where none does, or it cannot be found out which.
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
            CloudError::Misconfigured(format!(
                "cannot reach {}: no worker's section leads there any more",
                shown(place)
            ))
        };
        Err(unclear.unwrap_or_else(none))
    }

    /// Every place where a host may be.
    pub(super) async fn places(&self) -> Places {
        let (known, asked, used) = {
            let state = self.state();
            (state.known.clone(), state.asked, state.places())
        };
        // Nobody has ever logged in with one of an earlier configuration: nothing was made with it.
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
            let why =
                format!("hosts were made there, in {shown}, and no worker's section leads there any more");
            places.unlisted.extend(unlisted(&names.difference(&silent).cloned().collect(), &why));
        }
        places
    }

    /// Notes, over restarts too, that hosts are made at a place, which the configuration calls `name`; before one is.
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub(super) fn note(&self, place: &str, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.asked += 1;
        match name.replace([NAMED, '\n', '\r'], " ") {
            name if name.is_empty() => state.used.add(place),
            name => state.used.add(&format!("{place}{NAMED}{name}")),
        }
    }

    /// Nothing of ours was there when it was listed. A server that was asked for since then keeps it in mind.
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

    /// Nobody wants to hear any more of what is in a place of this name, unless the configuration has it.
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

/// What to say of a cloud that does not answer within a time.
pub(super) fn late(cloud: &Cloud, limit: Duration) -> CloudError {
    CloudError::Lost(format!("the cloud at {} did not answer within {} s", cloud.account.auth_url, limit.as_secs()))
}

fn project_of(place: &str) -> &str {
    place.split(' ').next().unwrap_or_default()
}

/// As a person would say it.
fn shown(place: &str) -> String {
    let (project, region) = place.split_once(' ').unwrap_or((place, ""));
    format!("the project {project} in the region {region}")
}

#[cfg(test)]
#[path = "clouds_tests.rs"]
mod tests;
