//! The program `rouse`: the master, and the commands that talk to one.

use clap::Parser as _;
use rouse_master::driver::MasterError;
use rouse_master::{blobs, broker, cli, clock, config, demo, driver, hosts, mail};
use rouse_shared::{Secret, Timestamp};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};

/// Bad usage or configuration, or the master cannot run.
const WRONG: u8 = 2;

/// What this program does without asking a master.
struct Program;

impl cli::Local for Program {
    fn master(&self, path: &Path) -> ExitCode {
        // Before there are other threads.
        let inherited = match driver::Inherited::take() {
            Ok(inherited) => inherited,
            Err(failure) => {
                eprintln!("rouse: {failure}");
                return ExitCode::from(WRONG);
            }
        };
        let config = match config::load(path) {
            Ok(config) => config,
            Err(errors) => {
                eprintln!("{errors}");
                return ExitCode::from(WRONG);
            }
        };
        let log = start_log("info");
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let lost = log.lost.clone();
        let result = block_on(async {
            tokio::spawn(report_lost_lines(lost));
            driver::run(path, config, inherited).await
        });
        match result {
            Ok(driver::Ended::Deposed) => {
                write_last(log, None);
                eprintln!("rouse: {}", driver::begin_anew());
                ExitCode::from(WRONG)
            }
            Ok(driver::Ended::AsAsked) => end(log, Ok(true)),
            Err(failure) => end(log, Err(failure)),
        }
    }

    fn check(&self, path: &Path, online: bool) -> ExitCode {
        let look = |config: &config::Config| {
            let found = block_on(async {
                let mut found = mail::check(config, mail::Patience::default()).await;
                if let Some(url) = &config.broker.url {
                    let broker = &config.broker;
                    let settings = broker::online::Settings {
                        url: url.expose(),
                        ca: broker.ca.as_deref(),
                        auth_listen: broker.auth_listen,
                        askers: broker::Askers::own_broker(broker.auth_secret.clone()),
                        management: broker.management_url.as_ref().map(Secret::expose),
                        hurried: hurried(config),
                    };
                    found.extend(broker::online::check(settings).await);
                }
                found.extend(look_at_store(config).await);
                if let Some(store) = &config.blobs {
                    found.push(match blobs::probe(store).await {
                        Ok(()) => {
                            (true, format!("blobs: a small object was written to {}, read and deleted", store.url))
                        }
                        Err(why) => (false, format!("blobs: {why}")),
                    });
                }
                let sections = hosts::online::check(config).await;
                found.extend(sections.into_iter().map(|(worker, f)| (f.good, format!("{worker}: {}", f.text))));
                Ok(found)
            });
            match found {
                Ok(found) => found,
                Err(failure) => vec![(false, failure.to_string())],
            }
        };
        let code = config::check(path, online.then_some(&look), &mut std::io::stdout());
        ExitCode::from(u8::try_from(code).unwrap_or(WRONG))
    }

    fn migrate(&self, path: &Path) -> ExitCode {
        with_config(path, |config| migrate(config).map(|()| true))
    }

    fn live_hosts(&self, path: &Path) -> ExitCode {
        with_config(path, |config| driver::live_hosts(config, &mut std::io::stdout()))
    }

    fn demo(&self, source: Option<&Path>) -> ExitCode {
        let log = start_log("warn");
        let result = demo::run(source);
        end(log, result)
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }
}

/// Does what needs a configuration, but neither a runtime nor a log. False is exit code 1.
fn with_config(path: &Path, work: impl FnOnce(&config::Config) -> Result<bool, MasterError>) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(WRONG);
        }
    };
    match work(&config) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("rouse: {failure}");
            ExitCode::from(WRONG)
        }
    }
}

#[cfg(feature = "postgres")]
fn migrate(config: &config::Config) -> Result<(), MasterError> {
    driver::migrate(config, &mut std::io::stdout())
}

#[cfg(not(feature = "postgres"))]
fn migrate(_: &config::Config) -> Result<(), MasterError> {
    Err(MasterError::from("this build of rouse lacks the feature postgres".to_owned()))
}

#[cfg(feature = "postgres")]
async fn look_at_store(config: &config::Config) -> Option<(bool, String)> {
    let found = rouse_master::store::look(config.store.as_ref()?, &config.master.name).await;
    Some(found.map_or_else(
        |why| (false, format!("store: {}", rouse_shared::error::Chain(&why))),
        |fine| (true, format!("store: {fine}")),
    ))
}

#[cfg(not(feature = "postgres"))]
async fn look_at_store(_: &config::Config) -> Option<(bool, String)> {
    None
}

/// The worker whose lease leaves the least time after a heartbeat.
fn hurried(config: &config::Config) -> Option<broker::online::Hurried> {
    let workers = config.plan.workers.iter();
    let leases = workers.filter_map(|(name, worker)| Some((worker.lease?, worker.keepalive, name)));
    let (lease, keepalive, name) = leases.min_by_key(|(lease, keepalive, _)| lease.saturating_sub(*keepalive))?;
    Some(broker::online::Hurried { worker: name.to_string(), lease, keepalive })
}

/// Lines that wait for standard error, at most; more are dropped.
const LINES: usize = 10_000;
/// Between two checks for dropped lines.
const LOST: Duration = Duration::from_secs(60);
/// How long the last lines and the last word may take.
const LAST: Duration = Duration::from_secs(2);

/// The log, which a thread writes: a pipe that nobody reads, or a log service that hangs, must not keep the master from
/// its hosts.
struct Log {
    /// Dropped, it waits for the last lines.
    writer: WorkerGuard,
    lost: ErrorCounter,
}

fn start_log(level: &str) -> Log {
    // The library logs each try; the master logs when a store is away and when it is back.
    let default = format!("{level},object_store=warn,{}", broker::LOG_FILTER);
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROUSE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let (lines, writer) = NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(std::io::stderr());
    let lost = lines.error_counter();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    // The usual hook writes to standard error itself, and would wait there.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    Log { writer, lost }
}

/// Reports how many lines were dropped, each time that there are more.
async fn report_lost_lines(lost: ErrorCounter) {
    let mut reported = 0;
    loop {
        tokio::time::sleep(LOST).await;
        let now = lost.dropped_lines();
        if now > reported {
            tracing::error!("{} lines of the log could not be written and are lost", now - reported);
            reported = now;
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, MasterError>>) -> Result<T, MasterError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| MasterError::new("cannot start", &e))?;
    let result = runtime.block_on(work);
    // Calls that are still under way must not keep the program.
    runtime.shutdown_background();
    result
}

/// Ends the program with the last lines of the log, and then the error.
fn end(log: Log, result: Result<bool, MasterError>) -> ExitCode {
    let (code, failure) = match result {
        Ok(true) => (ExitCode::SUCCESS, None),
        Ok(false) => (ExitCode::FAILURE, None),
        Err(failure) => (ExitCode::from(WRONG), Some(failure)),
    };
    write_last(log, failure);
    code
}

/// Writes the last lines of the log, and then the error. Returns even if nobody reads them.
fn write_last(log: Log, failure: Option<MasterError>) {
    let (done, ended) = sync_channel(1);
    std::thread::spawn(move || {
        drop(log.writer);
        if let Some(failure) = failure {
            eprintln!("rouse: {failure}");
        }
        done.send(())
    });
    ended.recv_timeout(LAST).ok();
}

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse(), &Program)
}
