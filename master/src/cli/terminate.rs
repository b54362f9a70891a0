//! `rouse terminate`: explains the consequences, and then terminates a host.

use super::args::Note;
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output::{plain, say};
use crate::api;
use std::io::{IsTerminal as _, Write as _, stderr, stdin};

/// Terminates a host if the user agrees.
pub(super) async fn host(client: &Client, id: &str, note: &Note, yes: bool) -> Result<Exit, CliError> {
    let hosts: Vec<api::Host> = client.get("/api/hosts").await?;
    let host = hosts.iter().find(|host| host.id.0 == id);
    let host = host.ok_or_else(|| CliError::Refused(format!("there is no host {id}; `rouse hosts` lists them")))?;
    say(&plain(&consequences(host)));
    if !yes && !confirmed("terminate")? {
        say("nothing was done");
        return Ok(Exit::Failure);
    }
    let terminated: api::TerminatedHost =
        client.post(&note.added_to(&format!("/api/hosts/{}/terminate", host.id))).await?;
    say(&format!("host {} is being terminated", terminated.id));
    Ok(Exit::Success)
}

fn consequences(host: &api::Host) -> String {
    let machine = host.handle.as_ref().map_or_else(String::new, |handle| format!(" {handle}"));
    let builds = match host.builds.as_slice() {
        [] => "no build runs on it".to_owned(),
        [build] => {
            format!("build {build} runs on it and is retried elsewhere (this does not count as one of its retries)")
        }
        builds => {
            let numbers: Vec<_> = builds.iter().map(ToString::to_string).collect();
            format!(
                "builds {} run on it and are retried elsewhere (this does not count as one of their retries)",
                numbers.join(", ")
            )
        }
    };
    format!(
        "terminating host {} of worker {} ({}{machine}, {}): {builds}; the worker stays in use",
        host.id,
        host.worker,
        host.provider.as_str(),
        host.state.as_str(),
    )
}

/// Asks the user at the terminal.
pub(super) fn confirmed(verb: &str) -> Result<bool, CliError> {
    if !stdin().is_terminal() {
        return Err(CliError::Usage("there is no terminal to confirm this on; nothing was done; use --yes".to_owned()));
    }
    agreed(&format!("{verb} it?"))
}

/// Whether the user at the terminal answers yes.
pub(super) fn agreed(question: &str) -> Result<bool, CliError> {
    write!(stderr(), "rouse: {question} [y/N] ")?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::plan::ProviderKind;
    use crate::core::record::HostState;
    use rouse_shared::{BuildId, HostId, Timestamp};

    #[test]
    fn the_consequences_are_explained_in_full() {
        let mut host = api::Host {
            id: HostId("h1".to_owned()),
            worker: "w1".parse().expect("a name"),
            provider: ProviderKind::Ec2,
            handle: Some("i-0123".to_owned()),
            state: HostState::Ready,
            created: api::Time(Timestamp(0)),
            booted: None,
            attached: None,
            uses: 1,
            build: None,
            builds: Vec::new(),
            suspended_since: None,
            why: None,
            cost: None,
        };
        let head = "terminating host h1 of worker w1 (ec2 i-0123, ready)";
        let tail = "the worker stays in use";
        assert_eq!(consequences(&host), format!("{head}: no build runs on it; {tail}"));
        host.builds = [7, 9].map(|id| api::Id(BuildId(id))).to_vec();
        let builds = "builds 7, 9 run on it and are retried elsewhere (this does not count as one of their retries)";
        assert_eq!(consequences(&host), format!("{head}: {builds}; {tail}"));
    }
}
