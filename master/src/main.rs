//! The program `rouse`: the master, and the commands that talk to one.

use clap::Parser as _;
use rouse_master::driver::Failure;
use rouse_master::{broker, cli, clock, config, demo, driver, hosts};
use rouse_shared::Timestamp;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

/// Bad usage or configuration, or the master cannot run.
const WRONG: u8 = 2;

/// What this program does without asking a master.
struct Program;

impl cli::Local for Program {
    fn master(&self, path: &Path) -> ExitCode {
        let config = match config::load(path) {
            Ok(config) => config,
            Err(faults) => {
                eprintln!("{faults}");
                return ExitCode::from(WRONG);
            }
        };
        let log = start_log("info");
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let result = block_on(driver::run(path, config));
        // Before the last word, which is not the log's.
        drop(log);
        end(result.map(|()| true))
    }

    fn check(&self, path: &Path, online: bool) -> ExitCode {
        let look = |config: &config::Config| {
            let found = block_on(async { Ok(hosts::online::check(config).await) });
            match found {
                Ok(found) => found.into_iter().map(|(worker, f)| (f.good, format!("{worker}: {}", f.text))).collect(),
                Err(failure) => vec![(false, failure.to_string())],
            }
        };
        let code = config::check(path, online.then_some(&look), &mut std::io::stdout());
        ExitCode::from(u8::try_from(code).unwrap_or(WRONG))
    }

    fn demo(&self, source: Option<&Path>) -> ExitCode {
        let log = start_log("warn");
        let result = demo::run(source);
        drop(log);
        end(result)
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }
}

/// Lines that wait for standard error, at most; what finds no room is left out.
const LINES: usize = 10_000;

/// A thread writes the lines: a pipe that nobody reads, or a log service that hangs with its disk, must not keep the
/// master from its hosts. Dropped, what is given writes the last ones, for about a second at most.
fn start_log(level: &str) -> WorkerGuard {
    let default = format!("{level},{}", broker::LOG_FILTER);
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROUSE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    guard
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start", &e))?;
    let result = runtime.block_on(work);
    // Calls that are still under way must not keep the program.
    runtime.shutdown_background();
    result
}

fn end(result: Result<bool, Failure>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("rouse: {failure}");
            ExitCode::from(WRONG)
        }
    }
}

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse(), &Program)
}
