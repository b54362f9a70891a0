//! `[worker.process]`: the latent host is a child process of the master.

use crate::config::document::Table;
use std::path::PathBuf;

/// How a process host is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessConfig {
    /// The agent's program: a path, or a bare name that is looked for in `PATH` at start.
    pub agent: PathBuf,
}

/// Keys that do not shape a new host.
pub(super) const NOT_OF_THE_HOST: &[&str] = &[];

pub(super) fn read(table: &Table<'_>) -> Option<ProcessConfig> {
    Some(ProcessConfig { agent: table.or("agent", PathBuf::from("rouse-agent"), |v| v.program()) })
}
