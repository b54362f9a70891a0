//! The agent's program: `rouse-agent [-c FILE] [--check]`.

use rouse_agent::config::{AgentConfig, Environment};
use rouse_agent::core::Level;
use rouse_agent::driver::{self, Ended};
use rouse_agent::{log, runner};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

const USAGE: &str = "\
usage: rouse-agent [-c FILE] [--check]

  -c, --config FILE  the configuration; without it /etc/rouse/agent.toml, if there is one
      --check        say what is wrong with the configuration, or what it comes to, and end
      --version      print the version
      --help         print this

Every key of the configuration can also be given as ROUSE_AGENT_KEY in the environment, which then counts.
SIGTERM: take nothing new and end when the builds have ended; twice: end them now.
Exit codes: 0 ended as asked, 2 bad usage or configuration, or the agent could not begin.";

/// This program, rather than its path, where an upgrade may have put another one meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// Bad usage or configuration.
const WRONG: u8 = 2;

/// What the command line asks for.
#[derive(PartialEq, Eq, Debug)]
enum Command {
    Run { config: Option<PathBuf>, check: bool },
    Version,
    Help,
}

fn main() -> ExitCode {
    runner::zygote_main_if_asked();
    let (config, check) = match parse(std::env::args().skip(1)) {
        Ok(Command::Run { config, check }) => (config, check),
        Ok(Command::Version) => {
            println!("rouse-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("rouse-agent: {why}\n\n{USAGE}");
            return ExitCode::from(WRONG);
        }
    };
    let env: Environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let config = match AgentConfig::load(config.as_deref(), &env) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("rouse-agent: {error}");
            return ExitCode::from(WRONG);
        }
    };
    if check {
        // Whether this user may change to it is asked at the start: it need not be this user who starts the agent.
        if let Some(Err(why)) = config.run_as.as_deref().map(runner::users::lookup) {
            eprintln!("rouse-agent: run_as: {why}");
            return ExitCode::from(WRONG);
        }
        print!("{}", config.describe());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = log::start() {
        log::line(Level::Error, &format!("failed to start a thread for the log, which may hold the agent up: {error}"));
    }
    let code = match start(config) {
        Ok(Ended::ForGood) => ExitCode::SUCCESS,
        Ok(Ended::ToRestart) => {
            log::finish();
            // The same process for whoever supervises it; nothing of this life but its arguments and environment stays.
            let error = process::Command::new(PROGRAM).args(std::env::args_os().skip(1)).exec();
            log::line(Level::Error, &format!("failed to begin anew: {error}"));
            ExitCode::from(WRONG)
        }
        Err(why) => {
            log::line(Level::Error, &why);
            ExitCode::from(WRONG)
        }
    };
    log::finish();
    code
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let (mut config, mut check) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-c" | "--config" => {
                config = Some(arguments.next().ok_or_else(|| format!("{argument} needs a file"))?.into());
            }
            "--check" => check = true,
            "--version" | "-V" => return Ok(Command::Version),
            "--help" | "-h" => return Ok(Command::Help),
            other => return Err(format!("there is no argument {other:?}")),
        }
    }
    Ok(Command::Run { config, check })
}

fn start(config: AgentConfig) -> Result<Ended, String> {
    // One thread, beside the log's: an agent is idle most of its life, and small is what it has to be.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("failed to start its runtime: {e}"))?;
    runtime.block_on(async {
        let (asked, terminate) = mpsc::channel(4);
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind).map_err(|e| format!("failed to listen for signals: {e}"))?;
            let asked = asked.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // Full: it has been asked often enough.
                    if let Err(mpsc::error::TrySendError::Closed(())) = asked.try_send(()) {
                        return;
                    }
                }
            });
        }
        driver::run(config, PathBuf::from(PROGRAM), terminate).await.map_err(|error| error.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_is_what_the_help_says() {
        assert_eq!(words(""), Ok(Command::Run { config: None, check: false }));
        assert_eq!(words("-c a.toml --check"), Ok(Command::Run { config: Some("a.toml".into()), check: true }));
        assert_eq!(words("--version"), Ok(Command::Version));
        assert_eq!(words("--check --help"), Ok(Command::Help));
        assert!(words("-c").is_err() && words("serve").is_err());
    }
}
