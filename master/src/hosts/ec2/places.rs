//! Where hosts may be: the places of the configuration, and those where hosts were made under an earlier one. A host must
//! be found and ended also when its section has gone since.

use super::client::{Client, Http, Login, Place};
use crate::clock;
use crate::sync::lock;
use rouse_shared::Timestamp;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a place that the configuration has no more is looked at after the last start there: what was made in the
/// meantime shows itself by then.
const MEMORY: Duration = Duration::from_secs(3_600);

struct Entry {
    login: Login,
    client: Arc<OnceCell<Client>>,
    /// Whether the configuration has it now.
    current: bool,
}

/// All places.
pub struct Places {
    http: Http,
    /// Keeps [`State::used`] over restarts; made when it is first needed.
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Places where hosts were made, and when this process last did so or learnt of it.
    used: BTreeMap<Place, Timestamp>,
}

/// A place to be listed.
pub struct Target {
    /// Its client.
    pub client: Client,
    /// Whether the configuration has it now.
    pub current: bool,
}

impl Places {
    /// With what an earlier master has kept in `file`.
    ///
    /// # Errors
    /// Where the file is there and cannot be read: without it a host might be forgotten.
    pub fn new(http: Http, file: PathBuf) -> io::Result<Self> {
        let kept: Vec<Place> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let now = clock::now();
        let state = State { entries: Vec::new(), used: kept.into_iter().map(|place| (place, now)).collect() };
        Ok(Self { http, file, state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes the logins of a new configuration. Clients that it still has are kept, with their connections.
    pub fn configure(&self, logins: Vec<Login>) {
        let mut state = self.state();
        for entry in &mut state.entries {
            entry.current = logins.contains(&entry.login);
        }
        for login in logins {
            if !state.entries.iter().any(|entry| entry.login == login) {
                // Another secret of the same key replaces the old one.
                state.entries.retain(|entry| !entry.login.is_replaced_by(&login));
                state.entries.push(Entry { login, client: Arc::default(), current: true });
            }
        }
    }

    /// The client of a section.
    pub async fn client(&self, login: &Login) -> Client {
        let known = {
            let state = self.state();
            state.entries.iter().find(|entry| entry.login == *login).map(|entry| entry.client.clone())
        };
        let cell = known.unwrap_or_default();
        cell.get_or_init(|| login.client(&self.http)).await.clone()
    }

    /// The client of a place, by whatever login of the configuration, or of an earlier one, leads there.
    pub async fn at(&self, place: &Place) -> Result<Client, String> {
        let targets = self.configured().await;
        let same = |t: &&Target| t.client.place == *place;
        // A key that was replaced leaves its hosts to its successor.
        let next = |t: &&Target| t.client.place.endpoint == place.endpoint && t.client.place.region == place.region;
        let found = targets.iter().find(|t| t.current && same(t)).or_else(|| targets.iter().find(same));
        let found = found.or_else(|| targets.iter().find(|t| t.current && next(t)));
        if let Some(target) = found {
            return Ok(target.client.clone());
        }
        let known = self.state().entries.iter().find_map(|entry| entry.login.elsewhere(place));
        match known.or_else(|| Login::again(place)) {
            Some(login) => {
                let client = login.client(&self.http).await;
                let mut state = self.state();
                state.entries.push(Entry {
                    login,
                    client: Arc::new(OnceCell::new_with(Some(client.clone()))),
                    current: false,
                });
                Ok(client)
            }
            None => Err(format!("cannot reach the hosts in {place}: the configuration no longer has its secret")),
        }
    }

    async fn configured(&self) -> Vec<Target> {
        let entries: Vec<(Login, Arc<OnceCell<Client>>, bool)> = {
            let state = self.state();
            state.entries.iter().map(|e| (e.login.clone(), e.client.clone(), e.current)).collect()
        };
        let mut targets = Vec::new();
        for (login, cell, current) in entries {
            let client = cell.get_or_init(|| login.client(&self.http)).await.clone();
            targets.push(Target { client, current });
        }
        targets
    }

    /// Every place where a host may be, each once.
    ///
    /// # Errors
    /// Where one of them cannot be reached any more.
    pub async fn all(&self) -> Result<Vec<Target>, String> {
        let mut targets: Vec<Target> = Vec::new();
        for target in self.configured().await {
            if target.current && !targets.iter().any(|t| t.client.place == target.client.place) {
                targets.push(target);
            }
        }
        let used: Vec<Place> = self.state().used.keys().cloned().collect();
        for place in used {
            if !targets.iter().any(|t| t.client.place == place) {
                let client = self.at(&place).await?;
                if !targets.iter().any(|t| t.client.place == client.place) {
                    targets.push(Target { client, current: false });
                }
            }
        }
        Ok(targets)
    }

    /// Keeps in mind, over restarts too, that hosts are made here; before the first one is.
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub fn remember(&self, place: &Place) -> io::Result<()> {
        let now = clock::now();
        let mut state = self.state();
        if state.used.insert(place.clone(), now).is_some() {
            return Ok(());
        }
        let written = self.write(&state.used);
        if written.is_err() {
            state.used.remove(place);
        }
        written
    }

    /// Nothing of ours is left there, and the configuration has it no more.
    pub fn forget(&self, place: &Place) {
        let mut state = self.state();
        let old = state.used.get(place).is_some_and(|used| clock::now().since(*used) >= MEMORY);
        if old && state.used.remove(place).is_some() {
            state.entries.retain(|entry| entry.current || entry.client.get().is_none_or(|c| c.place != *place));
            if let Err(error) = self.write(&state.used) {
                tracing::warn!("{} could not be written: {error}", self.file.display());
            }
        }
    }

    fn write(&self, used: &BTreeMap<Place, Timestamp>) -> io::Result<()> {
        let places: Vec<&Place> = used.keys().collect();
        if let Some(dir) = self.file.parent() {
            super::make_dir(dir)?;
        }
        crate::files::replace(&self.file, &serde_json::to_vec(&places).map_err(io::Error::other)?)
    }
}
