//! `rouse store migrate`: moves the ledger from SQLite to PostgreSQL.

use super::belongings;
use super::error::MasterError;
use super::master::{ledger_file, ledger_of, place_of_ledger};
use super::state::Locked;
use crate::config::Config;
use std::io::Write;

/// Copies the ledger and what belongs to the master from the state directory into the database of `store.url`, and says
/// what it has done. The master must not run. Must not be called inside of a runtime.
///
/// # Errors
/// If the master runs, there is no ledger, the database has one already, or either fails. Nothing is copied then.
pub fn migrate(config: &Config, to: &mut dyn Write) -> Result<(), MasterError> {
    if config.store.is_none() {
        return Err(MasterError::from(
            "store.url is not set: let it name the database of PostgreSQL that the ledger is to be in".to_owned(),
        ));
    }
    let failed = |e: &dyn std::error::Error| MasterError::new("the ledger was not copied", e);
    let _locked = Locked::new(&config.master.state_dir).map_err(|e| failed(&e))?;
    let file = ledger_file(config);
    if !file.exists() {
        return Err(MasterError::from(format!("there is no ledger to copy: {} does not exist", file.display())));
    }
    let store = ledger_of(config).and_then(|database| database.open()).map_err(|e| failed(&e))?;
    let belongings = belongings::to_copy(config, &store)?;
    let copied = store.copy_from(&file, &belongings).map_err(|e| failed(&e))?;
    let lines = copied.iter().map(|(table, rows)| format!("{table}: {rows} rows\n")).collect::<String>();
    let names: Vec<_> = belongings.iter().map(|(name, _)| *name).collect();
    let said = writeln!(
        to,
        "{lines}copied to {}, with {}\n{} is as it was. rouse does not use it any more: keep it as a backup, or remove it",
        place_of_ledger(config),
        names.join(", "),
        file.display()
    );
    said.map_err(|e| MasterError::new("the ledger was copied, but this cannot be said", &e))
}
