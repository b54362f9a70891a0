//! `rouse build`: makes a submission from file and options, submits it, and follows the build.

use super::args::{BuildArgs, Following};
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::follow::Follower;
use super::output;
use super::watch::ProgressReporter;
use crate::api::{self, Run, Seconds, Submission, SubmittedStep};
use crate::submission;

/// Submits, and follows unless detached. Returns the exit code.
pub(super) async fn build(client: &Client, args: &BuildArgs) -> Result<Exit, CliError> {
    let build = put_together(args)?;
    let api::AcceptedBuild { id } = client.post_json("/api/builds", &build).await?;
    follow(client, id, args.following).await
}

/// Submits a build again, and follows it unless detached. Returns the exit code.
pub(super) async fn rerun(
    client: &Client,
    build: u64,
    worker: Option<String>,
    following: Following,
) -> Result<Exit, CliError> {
    let request = api::RerunRequest { worker };
    let api::AcceptedBuild { id } = client.post_json(&format!("/api/builds/{build}/rerun"), &request).await?;
    follow(client, id, following).await
}

async fn follow(client: &Client, id: api::Id, args: Following) -> Result<Exit, CliError> {
    if args.detach {
        if args.json {
            output::json(&client.get::<api::BuildInFull>(&format!("/api/builds/{id}")).await?)?;
        } else {
            output::line(&id.to_string())?;
        }
        return Ok(Exit::Success);
    }
    let mut progress = ProgressReporter::new();
    progress.say(&format!("build {id} is accepted"));
    let followed = {
        let mut follower = Follower::new(client, id.0.0, &mut progress, !args.json);
        tokio::select! {
            followed = follower.build() => Some(followed),
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    progress.quiet();
    let Some(followed) = followed else {
        progress.say(&format!(
            "build {id} continues; `rouse cancel {id}` cancels it, `rouse log {id} --follow` follows it again"
        ));
        return Ok(Exit::Interrupted);
    };
    let (exit, build) = followed?;
    if args.json {
        output::json(&build)?;
    }
    Ok(exit)
}

/// The submission: the file, overridden by the options.
fn put_together(args: &BuildArgs) -> Result<Submission, CliError> {
    let mut build = match &args.file {
        Some(path) => {
            let in_file = |wrong: &dyn std::fmt::Display| CliError::Usage(format!("{}: {wrong}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| in_file(&error))?;
            let build = submission::read_toml(&text).map_err(|invalid| in_file(&invalid))?;
            if args.command.is_empty() {
                // The file must be a valid build by itself, so that errors in it are reported for the file.
                submission::check(build.clone()).map_err(|invalid| in_file(&invalid))?;
            }
            build
        }
        None => Submission::default(),
    };
    build.name = args.name.clone().or(build.name);
    build.priority = args.priority.map(i64::from).or(build.priority);
    build.retries = args.retries.map(i64::from).or(build.retries);
    build.timeout = args.timeout.map(Seconds).or(build.timeout);
    build.keep = args.keep.then_some(true).or(build.keep);
    if !args.command.is_empty() {
        build.step =
            Some(vec![SubmittedStep { run: Some(Run::Words(args.command.clone())), ..SubmittedStep::default() }]);
    }
    // Worker and properties exclude each other, so either of them in the options replaces both in the file.
    if args.worker.is_some() {
        (build.worker, build.r#where) = (args.worker.clone(), None);
    } else if !args.properties.is_empty() {
        (build.worker, build.r#where) = (None, Some(args.properties.iter().cloned().collect()));
    }
    if !args.env.is_empty() {
        build.env.get_or_insert_default().extend(args.env.iter().cloned());
    }
    submission::check(build.clone()).map_err(|invalid| CliError::Usage(invalid.to_string()))?;
    Ok(build)
}
