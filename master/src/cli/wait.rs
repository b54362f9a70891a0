//! `rouse wait`: waits until builds have ended.

use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::follow::Follower;
use super::output;
use super::watch::ProgressReporter;

/// Waits for each of the builds. Returns the exit code of the first that did not succeed.
pub(super) async fn run(client: &Client, builds: &[u64], as_json: bool) -> Result<Exit, CliError> {
    let mut progress = ProgressReporter::new();
    let mut exit = Exit::Success;
    let mut ended = Vec::new();
    for id in builds {
        let waited = tokio::select! {
            waited = async { Follower::new(client, *id, &mut progress, false).end().await } => Some(waited),
            _ = tokio::signal::ctrl_c() => None,
        };
        progress.quiet();
        let Some(waited) = waited else { return Ok(Exit::Interrupted) };
        let (of_build, build) = waited?;
        if exit == Exit::Success {
            exit = of_build;
        }
        ended.push(build.build);
    }
    if as_json {
        output::json(&ended)?;
    }
    Ok(exit)
}
