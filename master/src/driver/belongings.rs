//! What belongs to the master and not to its machine: the generated id, which makes hosts its own, the API token, and the
//! authority of a private broker. With SQLite it is in the state directory alone. With PostgreSQL the database has it,
//! and the state directory a copy, so that a master on another machine is the same master.

use super::error::MasterError;
use super::state::{API_TOKEN, IDENTITY};
use crate::config::{Config, PostgresUrl};
use crate::files;
use crate::store::{Store, StoreError};
use crate::tls;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name in the database, and the file.
fn belongings(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let (dir, authority) = (&config.master.state_dir, config.master.authority());
    let mut all = vec![
        (ID, dir.join(IDENTITY)),
        ("authority_key", authority.join("authority.key")),
        ("authority", tls::authority_in(&authority)),
    ];
    if config.master.api_token.is_none() {
        all.push((TOKEN, dir.join(API_TOKEN)));
    }
    all
}

/// The name of the generated id in the database.
const ID: &str = "id";
/// The name of the API's token in the database.
pub(super) const TOKEN: &str = "api_token";

/// Makes the state directory and the database have the same. What one of them lacks, it gets from the other; the token
/// and the authority of the database replace those of the directory. Does nothing with SQLite.
///
/// # Errors
/// If both have an id and not the same: then the hosts of one of them would be foreign machines.
pub(super) fn share(config: &Config, store: &Store) -> Result<(), MasterError> {
    let Some(url) = &config.store else { return Ok(()) };
    let unusable = |e: StoreError| MasterError::new("cannot start", &e);
    for (name, file) in belongings(config) {
        let failed = |e: io::Error| MasterError::new(format!("cannot use {}", file.display()), &e);
        let own = read(&file).map_err(failed)?;
        match (store.kept(name).map_err(unusable)?, own) {
            (Some(kept), Some(own)) if kept.trim() == own.trim() => {}
            (Some(kept), Some(own)) if name == ID => return Err(two_masters(&file, &own, url, &kept)),
            (Some(kept), _) => write(&file, &kept).map_err(failed)?,
            (None, Some(own)) => store.keep(name, &own).map_err(unusable)?,
            (None, None) if matches!(name, ID | TOKEN) => {
                let made = files::random_hex().map_err(failed)?;
                store.keep(name, &made).map_err(unusable)?;
                write(&file, &made).map_err(failed)?;
            }
            // The authority is made when it is needed.
            (None, None) => {}
        }
    }
    Ok(())
}

/// For a master that stands by: copies from the database what another master has put there. Returns false if there is no
/// id yet.
///
/// # Errors
/// As [`share`].
pub(super) fn copy(config: &Config, store: &Store) -> Result<bool, MasterError> {
    let Some(url) = &config.store else { return Ok(true) };
    let unusable = |e: StoreError| MasterError::new("cannot stand by", &e);
    let mut complete = false;
    for (name, file) in belongings(config) {
        let failed = |e: io::Error| MasterError::new(format!("cannot use {}", file.display()), &e);
        let Some(kept) = store.kept(name).map_err(unusable)? else { continue };
        match read(&file).map_err(failed)? {
            Some(own) if kept.trim() == own.trim() => {}
            Some(own) if name == ID => return Err(two_masters(&file, &own, url, &kept)),
            _ => write(&file, &kept).map_err(failed)?,
        }
        complete |= name == ID;
    }
    Ok(complete)
}

/// What is in the state directory, for a copy in the database.
///
/// # Errors
/// As [`share`].
#[cfg(feature = "postgres")]
pub(super) fn to_copy(config: &Config, store: &Store) -> Result<Vec<(&'static str, String)>, MasterError> {
    let mut found = Vec::new();
    for (name, file) in belongings(config) {
        let own = read(&file).map_err(|e| MasterError::new(format!("cannot use {}", file.display()), &e))?;
        let Some(own) = own else { continue };
        let kept = store.kept(name).map_err(|e| MasterError::new("the ledger was not copied", &e))?;
        if let (ID, Some(kept), Some(url)) = (name, kept, &config.store)
            && kept.trim() != own.trim()
        {
            return Err(two_masters(&file, &own, url, &kept));
        }
        found.push((name, own));
    }
    Ok(found)
}

fn two_masters(file: &Path, own: &str, url: &PostgresUrl, kept: &str) -> MasterError {
    MasterError::from(format!(
        "{} has the id {}, and the database {} at {} has {}: these are two masters, each with hosts of its own. To continue as \
         the master of the database, whose hosts are in its ledger, remove the file",
        file.display(),
        own.trim(),
        url.database,
        url.place(),
        kept.trim()
    ))
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = file.parent()
        && !dir.exists()
    {
        files::make_dir(dir, 0o700)?;
    }
    files::replace(file, format!("{}\n", text.trim_end()).as_bytes())
}
