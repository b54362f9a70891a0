//! `rouse token rotate` and `rouse worker rotate`: new secrets instead of old ones, without a lost build.

use super::args::Note;
use super::client::Client;
use super::error::CliError;
use super::output::{bytes, plain, say};
use crate::api;
use crate::files;

/// Replaces the API token.
pub(super) async fn token(client: &Client, note: &Note) -> Result<(), CliError> {
    let rotated: api::RotatedToken = client.post(&note.added_to("/api/token/rotate")).await?;
    say(&plain(&format!(
        "the token has been replaced; the new one is in {} on the machine of the master",
        rotated.file
    )));
    Ok(())
}

/// Prints a new password on stdout, and what to do with it on stderr. The master has no part in it: the password is in its
/// configuration, which only an operator writes.
pub(super) async fn worker(client: &Client, name: &str) -> Result<(), CliError> {
    let workers: Vec<api::Worker> = client.get("/api/workers").await?;
    let worker = workers.iter().find(|worker| worker.name.as_str() == name);
    let worker =
        worker.ok_or_else(|| CliError::Refused(format!("there is no worker {name:?}; `rouse workers` lists them")))?;
    let password = files::random_hex()?;
    bytes(format!("{password}\n").as_bytes())?;
    say(&instructions(worker));
    Ok(())
}

fn instructions(worker: &api::Worker) -> String {
    let name = &worker.name;
    let first = format!(
        "this is a new password; nothing has changed yet\n\
         1. write it where the section of worker {name} in rouse.toml has the password, and run `systemctl reload rouse`; the \
         workers of one template share a password"
    );
    match worker.kind {
        api::WorkerKind::Standing => format!(
            "{first}\n\
             2. write it into agent.toml on the machine of the worker, and run `systemctl restart rouse-agent` there\n\
             between the two, the agent finishes the builds that it runs, and gets no new ones"
        ),
        api::WorkerKind::Latent => format!(
            "{first}\n\
             2. if images have the password in agent.toml, build them again; hosts that get boot data do not need it"
        ),
    }
}
