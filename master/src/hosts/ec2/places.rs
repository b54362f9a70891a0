//! The places where hosts can be: those of the configuration, and those where hosts were created under an earlier one.
//! A host must be found and terminated even if its section is gone.

use super::client::{Client, Http, Login, Place};
use crate::clock;
use crate::core::event::UnlistedPlace;
use crate::sync::lock;
use futures_util::future::join_all;
use rouse_shared::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a place that is no longer in the configuration is listed after the last start there. By then everything
/// that was created is listed.
const MEMORY: Duration = Duration::from_secs(3_600);
/// Time limit for finding out the region of a login if the section does not name it, so that other places do not wait
/// for it.
const REGION: Duration = Duration::from_secs(10);

struct Entry {
    login: Login,
    client: Arc<OnceCell<Client>>,
    /// Whether it is in the configuration now.
    current: bool,
}

impl Entry {
    /// Whether it is known to lead to this place.
    fn leads_to(&self, place: &Place) -> bool {
        self.client.get().is_some_and(|client| client.place == *place)
    }
}

/// All places.
pub struct Places {
    http: Http,
    /// Stores [`State::used`] over restarts; created when it is first needed.
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Places where hosts were created.
    used: BTreeMap<Place, Used>,
}

/// A place where hosts were created.
#[derive(Clone)]
struct Used {
    /// When this process last created one there, or read of the place.
    last: Timestamp,
    /// Its names in the configurations of that time, which hosts in the ledger have as their place.
    names: BTreeSet<String>,
}

/// An entry of the file.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    place: Place,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    names: BTreeSet<String>,
}

/// A place to be listed.
pub struct Target {
    /// Its client.
    pub client: Client,
    /// Whether it is in the configuration now.
    pub current: bool,
    /// Its names in this configuration, and in those in which hosts were created there.
    pub names: BTreeSet<String>,
}

impl Target {
    /// The place as one that could not be listed, under each of its names.
    pub fn unlisted(&self, why: &str) -> impl Iterator<Item = UnlistedPlace> {
        unlisted(&self.names, why)
    }
}

fn unlisted(names: &BTreeSet<String>, why: &str) -> impl Iterator<Item = UnlistedPlace> {
    names.iter().map(move |name| UnlistedPlace { place: Some(name.clone()), why: why.to_owned() })
}

/// The client of a place: of a login of the configuration, otherwise of an earlier one, otherwise of the key that has
/// replaced the place's key.
fn reach(targets: &[Target], place: &Place) -> Option<Client> {
    let same = |t: &&Target| t.client.place == *place;
    let next = |t: &&Target| t.client.place.endpoint == place.endpoint && t.client.place.region == place.region;
    let found = targets.iter().find(|t| t.current && same(t)).or_else(|| targets.iter().find(same));
    found.or_else(|| targets.iter().find(|t| t.current && next(t))).map(|target| target.client.clone())
}

impl Places {
    /// With the places that an earlier master has stored in `file`.
    ///
    /// # Errors
    /// If the file exists and cannot be read. Without it a host might be forgotten.
    pub fn new(http: Http, file: PathBuf) -> io::Result<Self> {
        let kept: Vec<Kept> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let last = clock::now();
        let used = kept.into_iter().map(|Kept { place, names }| (place, Used { last, names })).collect();
        Ok(Self { http, file, state: Mutex::new(State { entries: Vec::new(), used }) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Applies the logins of a new configuration. Clients that are still used keep their connections.
    pub fn configure(&self, logins: Vec<Login>) {
        let mut state = self.state();
        for entry in &mut state.entries {
            entry.current = logins.contains(&entry.login);
        }
        for login in logins {
            if !state.entries.iter().any(|entry| entry.login == login) {
                // A new secret of the same key replaces the old one.
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

    /// The client of a place, with any login of the present or of an earlier configuration that leads there.
    pub async fn at(&self, place: &Place) -> Result<Client, String> {
        // Without a call if possible, so that this place does not wait for the region of another.
        let made = {
            let state = self.state();
            let here = state.entries.iter().find(|entry| entry.current && entry.leads_to(place));
            here.and_then(|entry| entry.client.get().cloned())
        };
        if let Some(client) = made {
            return Ok(client);
        }
        let (targets, _) = self.known().await;
        self.at_one_of(&targets, place).await
    }

    async fn at_one_of(&self, targets: &[Target], place: &Place) -> Result<Client, String> {
        if let Some(client) = reach(targets, place) {
            return Ok(client);
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

    /// The place of every login, and the names of those whose region could not be found out in time.
    async fn known(&self) -> (Vec<Target>, BTreeSet<String>) {
        let entries: Vec<(Login, Arc<OnceCell<Client>>, bool)> = {
            let state = self.state();
            state.entries.iter().map(|e| (e.login.clone(), e.client.clone(), e.current)).collect()
        };
        let clients = entries.iter().map(|(login, cell, _)| async move {
            let client = cell.get_or_init(|| login.client(&self.http));
            tokio::time::timeout(REGION, client).await.ok().cloned()
        });
        let clients = join_all(clients).await;
        let (mut targets, mut late) = (Vec::new(), BTreeSet::new());
        for ((login, _, current), client) in entries.iter().zip(clients) {
            let name = login.name();
            match client {
                Some(client) => targets.push(Target { client, current: *current, names: BTreeSet::from([name]) }),
                None if *current => drop(late.insert(name)),
                None => {}
            }
        }
        (targets, late)
    }

    /// Every place where a host may be, each once, and the places that cannot be reached.
    pub async fn all(&self) -> (Vec<Target>, Vec<UnlistedPlace>) {
        let (known, late) = self.known().await;
        let why = format!("its region could not be determined within {} s", REGION.as_secs());
        let mut unreached: Vec<UnlistedPlace> = unlisted(&late, &why).collect();
        let used = self.state().used.clone();
        let mut left = Vec::new();
        for (place, Used { names, .. }) in used {
            let names = if names.is_empty() { BTreeSet::from([place.to_string()]) } else { names };
            match self.at_one_of(&known, &place).await {
                Ok(client) => left.push(Target { client, current: false, names }),
                Err(why) => unreached.extend(unlisted(&names, &why)),
            }
        }
        let mut targets: Vec<Target> = Vec::new();
        for target in known.into_iter().filter(|target| target.current).chain(left) {
            match targets.iter_mut().find(|known| known.client.place == target.client.place) {
                Some(known) => known.names.extend(target.names),
                None => targets.push(target),
            }
        }
        (targets, unreached)
    }

    /// Stores that hosts are created in this place, which the configuration calls `name`, before the first one is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember(&self, place: &Place, name: &str) -> io::Result<()> {
        let last = clock::now();
        let mut state = self.state();
        let mut used = state.used.clone();
        let entry = used.entry(place.clone()).or_insert_with(|| Used { last, names: BTreeSet::new() });
        entry.last = last;
        let is_new = !name.is_empty() && entry.names.insert(name.to_owned());
        if is_new || !state.used.contains_key(place) {
            self.write(&used)?;
        }
        state.used = used;
        Ok(())
    }

    /// Forgets a place that is not in the configuration and has no machines of this master.
    pub fn forget(&self, place: &Place) {
        let mut state = self.state();
        let old = state.used.get(place).is_some_and(|used| clock::now().since(used.last) >= MEMORY);
        if old && state.used.remove(place).is_some() {
            state.entries.retain(|entry| entry.current || !entry.leads_to(place));
            self.write_or_warn(&state.used);
        }
    }

    /// Forgets the places of this name, and returns those that no login of the configuration leads to. Does nothing if
    /// the configuration has this name.
    pub fn give_up(&self, name: &str) -> Vec<Place> {
        let mut state = self.state();
        if state.entries.iter().any(|entry| entry.current && entry.login.name() == name) {
            return Vec::new();
        }
        let mut gone = Vec::new();
        for (place, used) in &mut state.used {
            let is_named = used.names.remove(name) || (used.names.is_empty() && place.to_string() == name);
            if is_named && used.names.is_empty() {
                gone.push(place.clone());
            }
        }
        state.used.retain(|place, _| !gone.contains(place));
        self.write_or_warn(&state.used);
        // A login of the configuration may lead there under another name.
        gone.retain(|place| !state.entries.iter().any(|entry| entry.current && entry.leads_to(place)));
        state.entries.retain(|entry| entry.current || !gone.iter().any(|place| entry.leads_to(place)));
        gone
    }

    fn write_or_warn(&self, used: &BTreeMap<Place, Used>) {
        if let Err(error) = self.write(used) {
            tracing::warn!("{} could not be written: {error}", self.file.display());
        }
    }

    fn write(&self, used: &BTreeMap<Place, Used>) -> io::Result<()> {
        let keep = |(place, used): (&Place, &Used)| Kept { place: place.clone(), names: used.names.clone() };
        let places: Vec<Kept> = used.iter().map(keep).collect();
        if let Some(dir) = self.file.parent() {
            super::make_dir(dir)?;
        }
        crate::files::replace(&self.file, &serde_json::to_vec(&places).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Ec2Config};
    use crate::hosts::ec2::client;
    use std::path::Path;

    fn section(more: &str) -> Ec2Config {
        let text = format!(
            "[[worker]]\nname = \"w\"\npassword = \"x\"\n[worker.ec2]\ninstance_type = \"t\"\nami = \"ami-1\"\n{more}\n"
        );
        let config = Config::parse(&text, Path::new("rouse.toml")).unwrap();
        let (_, section) = config.sections::<Ec2Config>().next().unwrap();
        section.clone()
    }

    const KEY: &str = "identifier = \"AKIA1\"\nsecret_identifier = \"s\"\n";

    #[test]
    fn a_place_has_one_name() {
        for (more, name) in [
            ("", "the default region"),
            ("region = \"eu-west-1\"", "eu-west-1"),
            ("region = \"eu-west-1\"\nprofile = \"ci\"", "eu-west-1 with profile ci"),
            (KEY, "the default region with key AKIA1"),
            ("endpoint_url = \"http://127.0.0.1:1\"\nregion = \"r\"", "http://127.0.0.1:1, r"),
        ] {
            let section = section(more);
            assert_eq!((section.place().as_str(), Login::of(&section).name().as_str()), (name, name));
        }
    }

    fn place(region: &str) -> Place {
        Place { endpoint: None, region: region.to_owned(), account: client::Account::Key("AKIA1".to_owned()) }
    }

    #[tokio::test]
    async fn a_place_of_before_is_told_by_the_names_that_hosts_know_it_by() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ec2/places.json");
        let open = || Places::new(client::http(), file.clone()).unwrap();
        let (north, south) = (place("north"), place("south"));
        let places = open();
        places.remember(&north, "the default region with key AKIA1").unwrap();
        places.remember(&south, "").unwrap();
        drop(places);
        // After a restart, with a configuration that no longer has the secret.
        let places = open();
        let (targets, unreached) = places.all().await;
        assert!(targets.is_empty());
        let names: Vec<_> = unreached.iter().map(|one| one.place.as_deref().unwrap()).collect();
        assert_eq!(names, ["the default region with key AKIA1", "south with key AKIA1"]);
        assert!(unreached[0].why.contains("no longer has its secret"), "{unreached:?}");
        // A place is given up by its name, unless the configuration has it. This is stored.
        assert_eq!(places.give_up("south with key AKIA1"), [south]);
        assert_eq!(places.give_up("nowhere"), []);
        let places = open();
        places.configure(vec![Login::of(&section(&format!("{KEY}region = \"north\"")))]);
        let (targets, unreached) = places.all().await;
        assert_eq!((targets.len(), unreached), (1, Vec::new()));
        let names: Vec<_> = targets[0].names.iter().map(String::as_str).collect();
        assert_eq!(names, ["north with key AKIA1", "the default region with key AKIA1"], "both lead there");
        assert_eq!(places.give_up("north with key AKIA1"), []);
        assert_eq!(places.give_up("the default region with key AKIA1"), [], "the configuration leads there");
        let (targets, _) = open().all().await;
        assert!(targets.is_empty(), "what was given up is not remembered");
    }
}
