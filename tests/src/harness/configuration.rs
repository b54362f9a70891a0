//! Configurations of masters, and what builds leave behind.

use super::{PASSWORD, program};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes a file with secrets in it. rouse refuses one that others can read.
///
/// # Panics
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("the file can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// Runs `rouse check --online` on this configuration, written into `dir`, which is also its home, with no environment
/// but this one. Its exit code, and what it says.
///
/// # Panics
/// If it cannot be run.
pub fn check_online(dir: &Path, text: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let path = dir.join("rouse.toml");
    write_private(&path, text);
    let mut command = Command::new(program("rouse"));
    command.args(["check", "--online", "-c"]).arg(&path).env_clear().env("HOME", dir).envs(env.iter().copied());
    let output = command.output().expect("rouse can be run");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file that builds append a line to when they begin and when they end.
pub struct Trace(pub(super) PathBuf);

impl Trace {
    /// Its path, for scripts.
    pub fn path(&self) -> String {
        self.0.display().to_string()
    }

    /// Its lines up to now.
    pub fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// A JSON string's content, or the JSON text of anything else.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Sections of workers whose builds may run as root if that is who runs the tests: the agents are then root too, and run
/// builds as root only if that is written. Sections that name a user stay as they are.
pub fn run_as_root(workers: &str) -> String {
    if !rustix::process::geteuid().is_root() {
        return workers.to_owned();
    }
    let sections = workers.split("[[worker]]").enumerate().map(|(number, section)| match number {
        0 => section.to_owned(),
        _ if section.contains("run_as = ") => format!("[[worker]]{section}"),
        _ => format!("[[worker]]\nrun_as = \"root\"{section}"),
    });
    sections.collect()
}

/// A standing worker's section, with these further lines.
pub fn standing(name: &str, more: &str) -> String {
    format!("[[worker]]\nname = \"{name}\"\npassword = \"{PASSWORD}\"\n{more}\n")
}

/// The section of a latent worker whose hosts are processes, with these further lines.
pub fn latent(name: &str, more: &str) -> String {
    let agent = program("rouse-agent");
    // Its hosts look after themselves, should this test run be killed.
    format!("{}grace = 20\n[worker.process]\nagent = \"{}\"\n", standing(name, more), agent.display())
}
