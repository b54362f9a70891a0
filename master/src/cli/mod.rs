//! The command line: everything but `master`, `check`, `libvirt-network` and `demo` talks to a master over HTTP.

mod args;
mod audit;
mod client;
mod fleet;
mod follow;
mod output;
mod show;
mod submit;
mod watch;

pub use args::Cli;
use args::Command;
use clap::CommandFactory as _;
use client::Client;
use rouse_shared::Timestamp;
use std::path::Path;
use std::process::ExitCode;

/// What the program does without asking a master.
pub trait Local {
    /// Runs the master.
    fn master(&self, config: &Path) -> ExitCode;
    /// Checks a configuration.
    fn check(&self, config: &Path, online: bool) -> ExitCode;
    /// Shows the whole thing.
    fn demo(&self, source: Option<&Path>) -> ExitCode;
    /// What time it is, from the Unix epoch on.
    fn now(&self) -> Timestamp;
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failed {
    /// Bad usage, or a bad file: 2.
    Usage(String),
    /// The master cannot be reached: 3.
    Away(String),
    /// There is no such thing, or the master refuses: 4.
    Refused(String),
    /// Whoever read our output has closed it: nothing more to do, and nothing to say.
    Closed,
    /// Our output cannot be written.
    Output(std::io::Error),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Output(error) }
    }
}

impl Failed {
    fn tell(self) -> u8 {
        let (code, text) = match self {
            Self::Closed => return 0,
            Self::Usage(text) => (2, text),
            Self::Away(text) => (3, text),
            Self::Refused(text) => (4, text),
            Self::Output(error) => (1, format!("cannot write the output: {error}")),
        };
        output::say(&text);
        code
    }
}

/// Does what the command line asks. Bad usage has ended the program before, with code 2 (clap's own).
pub fn run(cli: &Cli, local: &dyn Local) -> ExitCode {
    match &cli.command {
        Command::Master { config } => local.master(config),
        Command::Check { config, online } => local.check(config, *online),
        Command::Demo { source } => local.demo(source.as_deref()),
        Command::LibvirtNetwork { config, network } => libvirt_network(config, network.as_deref()),
        Command::Completions { shell } => completions(*shell),
        Command::Man { dir } => manual(dir),
        remote => match client_command(&cli.server, remote, local) {
            Ok(code) => ExitCode::from(code),
            Err(failed) => ExitCode::from(failed.tell()),
        },
    }
}

fn client_command(server: &str, command: &Command, local: &dyn Local) -> Result<u8, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::Usage(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(async {
        let client = Client::new(server)?;
        remote(&client, command, local.now()).await
    });
    // A name that is still being looked up must not keep the program.
    runtime.shutdown_background();
    ended
}

async fn remote(client: &Client, command: &Command, now: Timestamp) -> Result<u8, Failed> {
    match command {
        Command::Build(args) => return submit::build(client, args).await,
        Command::Log { build, step, attempt, follow } => {
            follow::log(client, number(build)?, *step, *attempt, *follow).await?;
        }
        Command::Cancel { build } => {
            let id = number(build)?;
            client.post(&format!("/api/builds/{id}/cancel"), None).await?;
            output::say(&format!("build {id} is being cancelled"));
        }
        Command::Why { build } => show::why(&client.get(&format!("/api/builds/{}/why", number(build)?)).await?)?,
        Command::Builds { state, limit, output } => {
            fleet::builds(client, state.as_deref(), *limit, output.json, now).await?;
        }
        Command::Show { build, json } => {
            let build = client.get(&format!("/api/builds/{}", number(build)?)).await?;
            if *json { output::json(&build)? } else { show::build(&build, now)? }
        }
        Command::Workers { output } => fleet::workers(client, output.json, now).await?,
        Command::Hosts { output } => fleet::hosts(client, output.json, now).await?,
        Command::Audit { fix, adopt, json } => return audit::run(client, *fix, *adopt, *json).await,
        Command::Pause(worker) => fleet::operate(client, &worker.worker, "pause").await?,
        Command::Resume(worker) => fleet::operate(client, &worker.worker, "resume").await?,
        Command::Drain(worker) => fleet::operate(client, &worker.worker, "drain").await?,
        Command::Master { .. }
        | Command::Check { .. }
        | Command::LibvirtNetwork { .. }
        | Command::Demo { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => {
            return Err(Failed::Usage("this command needs no master".to_owned()));
        }
    }
    Ok(0)
}

/// The number of a build as it is written; nothing else gets into a path.
fn number(text: &str) -> Result<u64, Failed> {
    text.parse().map_err(|_| Failed::Refused(format!("there is no build {text:?}: builds have numbers")))
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rouse", &mut script);
    match output::bytes(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(Failed::from(error).tell()),
    }
}

fn manual(dir: &Path) -> ExitCode {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(
            Failed::Usage(format!("manual pages cannot be written to {}: {error}", dir.display())).tell(),
        ),
    }
}

fn libvirt_network(config: &Path, name: Option<&str>) -> ExitCode {
    let loaded = crate::config::load(config).map_err(|faults| faults.to_string());
    let text = loaded.and_then(|config| crate::hosts::libvirt_network::network(&config, name));
    match text.map_err(Failed::Usage).and_then(|text| Ok(output::bytes(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => ExitCode::from(failed.tell()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What a page shows, without the marks of its typesetting.
    fn plain(page: &str) -> String {
        ["\\fB", "\\fI", "\\fR"].iter().fold(page.to_owned(), |text, mark| text.replace(mark, "")).replace("\\-", "-")
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
        }
        let mut found: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(manual(&dir.path().join("rouse.1")), ExitCode::from(2), "a file is no directory");
    }
}
