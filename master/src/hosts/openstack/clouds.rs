//! The clouds where hosts can be: those of the configuration, and those of earlier configurations until they have no
//! machines of this master.

use super::account::Account;
use super::cloud::Cloud;
use super::error::CloudError;
use crate::hosts::persisted_set::PersistedSet;
use crate::sync::lock;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Time limit for the login to one of several clouds, so that the others are listed within
/// [`crate::hosts::CALL_LIMIT`].
const LOGIN: Duration = Duration::from_secs(20);

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

#[derive(Clone)]
struct Known {
    cloud: Arc<Cloud>,
    /// Whether it is in the configuration now.
    current: bool,
}

/// A place to be listed.
pub(super) struct Target {
    pub(super) cloud: Arc<Cloud>,
    /// [`Cloud::place`].
    pub(super) place: String,
    /// [`State::asked`] before the place was listed.
    asked: u64,
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

    /// Applies the accounts of a new configuration, and returns the cloud of each. An account that is still used keeps
    /// its token.
    pub(super) fn configure(&self, accounts: Vec<Account>) -> Vec<Result<Arc<Cloud>, String>> {
        let mut state = self.state();
        for known in &mut state.known {
            known.current = accounts.contains(&known.cloud.account);
        }
        let mut all = Vec::new();
        for account in accounts {
            let known =
                state.known.iter().find(|known| known.cloud.account == account).map(|known| known.cloud.clone());
            all.push(known.map_or_else(|| Cloud::new(account).map(Arc::new), Ok));
            if let Some(Ok(cloud)) = all.last()
                && !state.known.iter().any(|known| known.cloud.account == cloud.account)
            {
                state.known.push(Known { cloud: cloud.clone(), current: true });
            }
        }
        state.known.sort_by_key(|known| !known.current);
        all
    }

    /// The cloud at a place, with any account of the present or of an earlier configuration that leads there.
    ///
    /// # Errors
    /// If none does, or it cannot be determined.
    pub(super) async fn at(&self, place: &str) -> Result<Arc<Cloud>, CloudError> {
        let known = self.state().known.clone();
        let mut unclear = None;
        for Known { cloud, .. } in known {
            match cloud.place().await {
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

    /// Every place where a host may be, each once, if it can be reached; and why the others cannot.
    pub(super) async fn targets(&self) -> (Vec<Target>, Vec<String>) {
        let (known, asked) = {
            let state = self.state();
            (state.known.clone(), state.asked)
        };
        // If nobody has logged in with an account of an earlier configuration, it has created nothing.
        let known = known.into_iter().filter(|known| known.current || known.cloud.known_place().is_some());
        let (mut targets, mut unreached): (Vec<Target>, Vec<String>) = (Vec::new(), Vec::new());
        let places = known.map(|Known { cloud, .. }| async move {
            let place = tokio::time::timeout(LOGIN, cloud.place()).await;
            (place.unwrap_or_else(|_| Err(late(&cloud, LOGIN))), cloud)
        });
        for (place, cloud) in join_all(places).await {
            match place {
                Ok(place) if targets.iter().any(|target| target.place == place) => {}
                Ok(place) => targets.push(Target { cloud, place, asked }),
                Err(problem) => unreached.push(problem.to_string()),
            }
        }
        let reached: BTreeSet<&str> = targets.iter().map(|target| target.place.as_str()).collect();
        // The remaining places may be those to which the login failed.
        if unreached.is_empty() {
            let used = self.state().used.all();
            unreached.extend(used.iter().filter(|place| !reached.contains(place.as_str())).map(|place| {
                let place = shown(place);
                format!(
                    "list the servers of {place}: hosts were made there, and no worker's section leads there any more"
                )
            }));
        }
        (targets, unreached)
    }

    /// Stores that hosts are created in this place, before the first one is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn note(&self, place: &str) -> io::Result<()> {
        let mut state = self.state();
        state.asked += 1;
        state.used.add(place)
    }

    /// The list of this place had nothing of this master. Forgets it, unless a server was requested since then.
    pub(super) fn forget(&self, target: &Target) {
        let mut state = self.state();
        if state.asked == target.asked {
            state.used.remove(&target.place);
            state.known.retain(|known| known.current || known.cloud.known_place() != Some(target.place.as_str()));
        }
    }
}

/// The error if a cloud does not answer in time.
pub(super) fn late(cloud: &Cloud, limit: Duration) -> CloudError {
    CloudError::Lost(format!("the cloud at {} did not answer within {} s", cloud.account.auth_url, limit.as_secs()))
}

/// The place for people.
fn shown(place: &str) -> String {
    let (project, region) = place.split_once(' ').unwrap_or((place, ""));
    format!("the project {project} in the region {region}")
}
