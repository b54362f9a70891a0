//! The agent's program: `rouse-agent [-c FILE] [--check]`.

use rouse_agent::config::{AgentConfig, Environment};
use rouse_agent::core::Level;
use rouse_agent::diagnostics::{self, log};
use rouse_agent::driver::{self, Ended, StartError};
use rouse_agent::runner;
use rouse_shared::error::Chain;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

const USAGE: &str = "\
usage: rouse-agent [-c FILE] [--check]

  -c, --config FILE  configuration file (default: /etc/rouse/agent.toml, if it exists)
      --check        check the configuration, print it with its defaults, and exit
      --version      print the version and exit
      --help         print this help and exit

The environment variable ROUSE_AGENT_KEY overrides the KEY of the configuration file.
SIGTERM: accept no new builds, and exit when the running builds have ended. A second SIGTERM kills them.
Exit codes: 0 ended as requested, 2 bad usage or configuration, or the agent could not start.";

/// This very program. An upgrade may have put another one at its path.
const PROGRAM: &str = "/proc/self/exe";

/// Exit code for bad usage or configuration, or an agent that could not start.
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
        // Only whether the user exists: the agent may be started by another user than runs this check.
        if let Some(Err(error)) = config.run_as.as_deref().map(runner::users::lookup) {
            eprintln!("rouse-agent: run_as: {}", Chain(&error));
            return ExitCode::from(WRONG);
        }
        print!("{}", config.describe());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = diagnostics::start() {
        log(Level::Error, &format!("no thread can be started for the log, so a slow log may delay the agent: {error}"));
    }
    let code = match start(config) {
        Ok(Ended::ForGood) => ExitCode::SUCCESS,
        Ok(Ended::ToRestart) => {
            diagnostics::finish();
            // For its supervisor it stays the same process; only its arguments and environment are kept.
            let error = process::Command::new(PROGRAM).args(std::env::args_os().skip(1)).exec();
            log(Level::Error, &format!("cannot restart: {error}"));
            ExitCode::from(WRONG)
        }
        Err(error) => {
            log(Level::Error, &format!("cannot start: {}", Chain(&error)));
            ExitCode::from(WRONG)
        }
    };
    diagnostics::finish();
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
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Command::Run { config, check })
}

fn start(config: AgentConfig) -> Result<Ended, StartError> {
    // A single thread, besides that of the log: an agent is idle most of the time, and has to be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let (asked, terminate) = mpsc::channel(4);
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind).map_err(StartError::Signals)?;
            let asked = asked.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // If the channel is full, enough requests wait already.
                    if let Err(mpsc::error::TrySendError::Closed(())) = asked.try_send(()) {
                        return;
                    }
                }
            });
        }
        driver::run(config, PathBuf::from(PROGRAM), terminate).await
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
