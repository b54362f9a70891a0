//! The command line. All commands except `master`, `check`, `libvirt-network` and `demo` send requests to a master over
//! HTTP, through its socket on this machine or over the network.

mod args;
mod audit;
mod cancel;
mod client;
mod error;
mod exit;
mod fleet;
mod follow;
mod forget;
mod journal;
mod new_token;
mod output;
mod rotate;
mod server;
mod show;
mod submit;
mod terminate;
mod token;
mod wait;
mod watch;

use crate::api;
use crate::core::event::Operation;
pub use args::Cli;
use args::{Command, StoreCommand, TokenCommand, WorkerCommand};
use clap::CommandFactory as _;
use client::Client;
use error::CliError;
use exit::Exit;
use rouse_shared::Timestamp;
use std::path::Path;
use std::process::ExitCode;

/// The answer to `rouse stop`, which no longer exists.
const STOP: &str = "there is no command 'stop': `rouse terminate HOST` ends a host now, `rouse drain WORKER` gives a worker \
    no new builds and lets its host go when it is idle";

/// The answer to `--token`.
const TOKEN_IN_ARGUMENTS: &str = "a token in the arguments can be read by every user of this machine: put it into the variable \
    ROUSE_TOKEN, or into a file that only you can read, and name that with ROUSE_TOKEN_FILE. Replace this token, because it \
    may have been read";

/// What the program does without a master's API.
pub trait Local {
    /// Runs the master.
    fn master(&self, config: &Path) -> ExitCode;
    /// Checks a configuration.
    fn check(&self, config: &Path, online: bool) -> ExitCode;
    /// Copies the ledger into the database of a configuration.
    fn migrate(&self, config: &Path) -> ExitCode;
    /// Prints the hosts in the ledger of a configuration.
    fn live_hosts(&self, config: &Path) -> ExitCode;
    /// Runs the demo.
    fn demo(&self, source: Option<&Path>) -> ExitCode;
    /// The time since the Unix epoch.
    fn now(&self) -> Timestamp;
}

/// Runs the command. If the usage is wrong, clap has already exited with code 2.
pub fn run(cli: &Cli, local: &dyn Local) -> ExitCode {
    if cli.token.is_some() {
        return CliError::Usage(TOKEN_IN_ARGUMENTS.to_owned()).report().into();
    }
    match &cli.command {
        Command::Master { config } => local.master(config),
        Command::Check { config, online } => local.check(config, *online),
        Command::Store(StoreCommand::Migrate { config }) => local.migrate(config),
        Command::Store(StoreCommand::Hosts { config }) => local.live_hosts(config),
        Command::Demo { source } => local.demo(source.as_deref()),
        Command::LibvirtNetwork { config, network } => libvirt_network(config, network.as_deref()),
        Command::Completions { shell } => completions(*shell),
        Command::Man { dir } => manual(dir),
        Command::LaunchHost => launch_host(),
        remote => match client_command(cli, remote, local) {
            Ok(exit) => exit.into(),
            Err(error) => error.report().into(),
        },
    }
}

fn client_command(cli: &Cli, command: &Command, local: &dyn Local) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Usage(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(async {
        if let Command::Token(TokenCommand::New(args)) = command {
            return new_token::run(args, cli.server.as_deref(), cli.ca.as_deref()).await;
        }
        let client = Client::new(cli.server.as_deref(), cli.ca.as_deref()).await?;
        remote(&client, command, local.now()).await
    });
    // A name lookup that is still running must not delay the exit.
    runtime.shutdown_background();
    ended
}

async fn remote(client: &Client, command: &Command, now: Timestamp) -> Result<Exit, CliError> {
    match command {
        Command::Build(args) => return submit::build(client, args).await,
        Command::Log { build, step, attempt, follow } => {
            follow::log(client, number(build)?, *step, *attempt, *follow).await?;
        }
        Command::Cancel { builds, filter, note, yes } => {
            let builds = builds.iter().map(|build| number(build)).collect::<Result<Vec<_>, _>>()?;
            return cancel::run(client, &builds, filter, note, *yes).await;
        }
        Command::Rerun { build, on, following } => {
            return submit::rerun(client, number(build)?, on.clone(), *following).await;
        }
        Command::Wait { builds, json } => {
            let builds = builds.iter().map(|build| number(build)).collect::<Result<Vec<_>, _>>()?;
            return wait::run(client, &builds, *json).await;
        }
        Command::Why { build } => {
            let why: api::Why = client.get(&format!("/api/builds/{}/why", number(build)?)).await?;
            show::why(&why)?;
        }
        Command::Builds { filter, limit, output } => {
            fleet::builds(client, filter, *limit, output.json, now).await?;
        }
        Command::Show { build, json } => {
            let build: api::BuildInFull = client.get(&format!("/api/builds/{}", number(build)?)).await?;
            if *json { output::json(&build)? } else { show::build(&build, now)? }
        }
        Command::Workers { output } => fleet::workers(client, output.json, now).await?,
        Command::Hosts { output } => fleet::hosts(client, output.json, now).await?,
        Command::Audit { fix, adopt, note, json } => return audit::run(client, (*fix, *adopt), note, *json).await,
        Command::Pause(worker) => fleet::operate(client, worker, Operation::Pause).await?,
        Command::Resume(worker) => fleet::operate(client, worker, Operation::Resume).await?,
        Command::Drain(worker) => fleet::operate(client, worker, Operation::Drain).await?,
        Command::Places { output } => fleet::places(client, output.json, now).await?,
        Command::Masters { output } => fleet::masters(client, output.json, now).await?,
        Command::Forget { target, note, yes } => return forget::run(client, target, note, *yes).await,
        Command::Terminate { host, note, yes } => return terminate::host(client, host, note, *yes).await,
        Command::Journal { since, target, limit, output } => {
            journal::run(client, (*since, target.as_deref()), *limit, output.json, now).await?;
        }
        Command::Token(TokenCommand::Rotate(note)) => rotate::token(client, note).await?,
        Command::Worker(WorkerCommand::Rotate(worker)) => rotate::worker(client, &worker.worker).await?,
        Command::Stop { .. } => return Err(CliError::Usage(STOP.to_owned())),
        Command::Master { .. }
        | Command::Check { .. }
        | Command::Store(_)
        | Command::LibvirtNetwork { .. }
        | Command::Demo { .. }
        | Command::Completions { .. }
        | Command::LaunchHost
        | Command::Token(TokenCommand::New(_))
        | Command::Man { .. } => {
            return Err(CliError::Usage("this command needs no master".to_owned()));
        }
    }
    Ok(Exit::Success)
}

/// The number of a build. Nothing else becomes part of a path.
fn number(text: &str) -> Result<u64, CliError> {
    text.parse().map_err(|_| CliError::Refused(format!("there is no build {text:?}: builds have numbers")))
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    match output::bytes(&script_for(shell)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => CliError::from(error).report().into(),
    }
}

fn script_for(shell: clap_complete::Shell) -> Vec<u8> {
    let full = Cli::command();
    // The generators offer hidden commands too, and clap has no way to take a command away.
    let shown = full.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut offered = clap::Command::new("rouse").version(env!("CARGO_PKG_VERSION"));
    offered = offered.args(full.get_arguments().filter(|argument| !argument.is_hide_set()).cloned()).subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut offered, "rouse", &mut script);
    script
}

fn manual(dir: &Path) -> ExitCode {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            CliError::Usage(format!("manual pages cannot be written to {}: {error}", dir.display())).report().into()
        }
    }
}

fn launch_host() -> ExitCode {
    match crate::hosts::process::launch() {
        Ok(never) => match never {},
        Err(error) => CliError::Usage(format!("the agent cannot be started: {error}")).report().into(),
    }
}

fn libvirt_network(config: &Path, name: Option<&str>) -> ExitCode {
    let loaded = crate::config::load(config).map_err(|errors| errors.to_string());
    let text = loaded.and_then(|config| crate::hosts::libvirt_network::network(&config, name));
    match text.map_err(CliError::Usage).and_then(|text| Ok(output::bytes(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report().into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    /// A manual page without its formatting.
    fn plain(page: &str) -> String {
        ["\\fB", "\\fI", "\\fR"].iter().fold(page.to_owned(), |text, mark| text.replace(mark, "")).replace("\\-", "-")
    }

    #[test]
    fn completions_offer_every_command_but_the_hidden_ones() {
        let (hidden, shown): (Vec<_>, Vec<_>) =
            Cli::command().get_subcommands().cloned().partition(|c| c.is_hide_set());
        assert!(hidden.len() > 1);
        for shell in clap_complete::Shell::value_variants() {
            let script = String::from_utf8(script_for(*shell)).unwrap();
            let mentions = |command: &clap::Command| {
                let word = |c: char| c.is_alphanumeric() || c == '-';
                script.split(|c| !word(c)).any(|found| found == command.get_name())
            };
            for command in &hidden {
                assert!(!mentions(command), "the completions for {shell} offer {}", command.get_name());
            }
            for command in &shown {
                assert!(mentions(command), "the completions for {shell} lack {}", command.get_name());
            }
            // As `-l server` in fish.
            assert!(script.contains("server") && script.contains("version"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_manual_page_with_its_options() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(manual(dir.path()), ExitCode::SUCCESS);
        let mut expected = vec!["rouse.1".to_owned()];
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("rouse-{}.1", command.get_name());
            let page = plain(&std::fs::read_to_string(dir.path().join(&name)).unwrap());
            for option in command.get_arguments().filter_map(|option| option.get_long()) {
                assert!(page.contains(&format!("--{option}")), "{name} does not mention --{option}");
            }
            expected.push(name);
            expected.extend(
                command.get_subcommands().map(|of| format!("rouse-{}-{}.1", command.get_name(), of.get_name())),
            );
        }
        let mut found: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(manual(&dir.path().join("rouse.1")), ExitCode::from(2), "a file is no directory");
    }
}
