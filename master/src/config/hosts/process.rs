//! `[worker.process]`: the latent host is a child process of the master.

use std::path::PathBuf;

/// How a process host is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessConfig {
    /// The agent's program: a path, or a bare name that is looked for in `PATH` at start.
    pub agent: PathBuf,
}
