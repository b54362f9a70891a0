//! The commands and their options, as clap reads them.

use super::exit::Exit;
use crate::access::Right;
use crate::api;
use crate::core::build::BuildState;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand};
use rouse_shared::{Timestamp, WorkerName, duration};
use std::path::PathBuf;
use std::time::Duration;

/// Starts hosts when builds are waiting, runs the builds on them, and terminates the hosts afterwards.
#[derive(Parser, Debug)]
#[command(name = "rouse", version, after_help = Exit::help(), max_term_width = 100)]
pub struct Cli {
    /// The URL of the master, or `unix:` and the path of its socket [default: unix:/var/lib/rouse/rouse.sock if you may
    /// use it, otherwise http://127.0.0.1:8090]
    #[arg(long, global = true, env = "ROUSE_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,
    /// PEM file with the certificate authority of an https:// server. Default: those that this machine trusts.
    #[arg(long, global = true, env = "ROUSE_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Refused: every user of this machine can read it.
    #[arg(long, global = true, hide = true, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Run the master. SIGHUP reloads the configuration. SIGTERM ends the master; hosts and builds continue.
    Master {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration and report every error. Exits with 0 or 2.
    Check {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Also query the providers about credentials, images and networks, and try the blob store. Nothing stays changed.
        #[arg(long)]
        online: bool,
    },
    /// Work on the ledger of a master that does not run.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print the libvirt network that gives each libvirt worker of a configuration its name, as XML.
    LibvirtNetwork {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The network to print; needed only if the workers are on several networks.
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
    },
    /// Try rouse on this machine without a configuration: starts a host for a real build and runs it.
    Demo {
        /// A clone of rouse to build. Default: the clone that contains the current directory, otherwise a small
        /// built-in program.
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
    },
    /// Submit a build and follow it. Exits with the build's exit code.
    Build(BuildArgs),
    /// Print the log of a build, byte for byte.
    Log {
        /// The build's number.
        build: String,
        /// Print only this step, counted from 1. Default: all steps.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        step: Option<u32>,
        /// Print this attempt, counted from 1. Default: the last attempt.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        attempt: Option<u32>,
        /// Wait for the steps to start, and print their output until they have ended.
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel builds: those that you name, or those that meet all conditions.
    Cancel {
        /// The builds' numbers.
        #[arg(value_name = "BUILD", required_unless_present_any = ["state", "worker", "properties", "name"])]
        builds: Vec<String>,
        #[command(flatten)]
        filter: CancelFilter,
        #[command(flatten)]
        note: Note,
        /// Do not ask for confirmation.
        #[arg(long, short)]
        yes: bool,
    },
    /// Submit a build again, with the same settings, and follow it. Exits with the new build's exit code.
    Rerun {
        /// The number of the build to repeat.
        build: String,
        /// Run the new build on this worker. Default: wherever the old build could run.
        #[arg(long, value_name = "WORKER")]
        on: Option<String>,
        #[command(flatten)]
        following: Following,
    },
    /// Wait until builds have ended. Exits with the exit code of the first of them that did not succeed.
    Wait {
        /// The builds' numbers.
        #[arg(value_name = "BUILD", required = true)]
        builds: Vec<String>,
        /// Print the builds as one array of JSON objects.
        #[arg(long)]
        json: bool,
    },
    /// Explain in one sentence why a build has not started, what it is doing, or how it ended.
    Why {
        /// The build's number.
        build: String,
    },
    /// List builds, newest first.
    Builds {
        #[command(flatten)]
        filter: Filter,
        /// Maximum number of results.
        #[arg(long, default_value_t = 50, value_name = "N", value_parser = limit)]
        limit: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Show one build: steps, attempts, hosts, times, evidence.
    Show {
        /// The build's number.
        build: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List the workers.
    Workers {
        #[command(flatten)]
        output: Output,
    },
    /// List the hosts that are not terminated.
    Hosts {
        #[command(flatten)]
        output: Output,
    },
    /// List the places: where hosts may all fail for the same reason, such as one region with one account.
    Places {
        #[command(flatten)]
        output: Output,
    },
    /// List the masters that share the ledger in PostgreSQL: which one is active, and which stand by.
    Masters {
        #[command(flatten)]
        output: Output,
    },
    /// Compare the ledger with what each provider lists. Exits with 1 if they differ.
    Audit {
        /// Terminate orphans, and mark hosts that no provider lists any more as terminated.
        #[arg(long)]
        fix: bool,
        /// Also terminate machines with the master's name but another id; for use if the state directory was lost.
        #[arg(long, requires = "fix")]
        adopt: bool,
        #[command(flatten)]
        note: Note,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give a worker no new builds.
    Pause(WorkerOperation),
    /// Take a worker back into use: ends pause, drain and backoff, and probes its place at once.
    Resume(WorkerOperation),
    /// Give a worker no new builds, and terminate its host when it is idle.
    Drain(WorkerOperation),
    /// Terminate a host at once. Its builds are retried elsewhere; this does not count as one of their retries.
    Terminate {
        /// The host's id.
        host: String,
        #[command(flatten)]
        note: Note,
        /// Do not ask for confirmation.
        #[arg(long, short)]
        yes: bool,
    },
    /// Give up a host, or a place with all its hosts, that is gone for good.
    Forget {
        /// The host's id, or the place's id or name.
        target: String,
        #[command(flatten)]
        note: Note,
        /// Do not ask for confirmation.
        #[arg(long, short)]
        yes: bool,
    },
    /// List what people have done with workers, hosts, builds and the master, newest first.
    Journal {
        /// Only what was done at this time or later: an age (90m, 1d12h), or a time in UTC (2026-11-23,
        /// 2026-11-23T12:00:00Z).
        #[arg(long, value_name = "WHEN", value_parser = When::parse)]
        since: Option<When>,
        /// Only what was done with this worker, host, place or build.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// Maximum number of results.
        #[arg(long, default_value_t = 50, value_name = "N", value_parser = limit)]
        limit: usize,
        #[command(flatten)]
        output: Output,
    },
    /// The tokens of the API.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The passwords of workers.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Not a command: prints which commands to use instead.
    #[command(hide = true)]
    Stop {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Become the agent that a master orders over standard input. Only for rouse-host@.service.
    #[command(hide = true)]
    LaunchHost,
    /// Write the manual pages of rouse and its commands, for `make build` and packagers.
    #[command(hide = true)]
    Man {
        /// The directory, which is created if it is missing.
        dir: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum TokenCommand {
    /// Make a token with a name and rights. Prints its section for the configuration, and on the last line the token.
    New(NewToken),
    /// Replace the master's own token. The old one is no longer valid.
    Rotate(Note),
}

#[derive(Subcommand, Debug)]
pub(super) enum WorkerCommand {
    /// Print a new password for a worker, and where to write it so that no build is lost. Changes nothing.
    Rotate(Worker),
}

/// One of the states that clap has let through.
fn state(text: String) -> BuildState {
    BuildState::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(BuildState::Queued)
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit) if limit >= 1 => Ok(limit),
        Ok(_) | Err(_) => Err("expected an integer of at least 1".to_owned()),
    }
}

#[derive(Args, Debug)]
pub(super) struct Output {
    /// Print one array of JSON objects.
    #[arg(long)]
    pub(super) json: bool,
}

/// Why something is done.
#[derive(Args, Debug)]
pub(super) struct Note {
    /// Why, for the journal.
    #[arg(long, value_name = "TEXT")]
    pub(super) note: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct WorkerOperation {
    /// The worker's name.
    pub(super) worker: String,
    #[command(flatten)]
    pub(super) note: Note,
}

/// A token to make.
#[derive(Args, Debug)]
pub(super) struct NewToken {
    /// A name for the token, which builds and the journal show.
    pub(super) name: String,
    /// What its holder may do: read, build, operate or admin; can be given several times.
    #[arg(long, value_name = "RIGHT", required = true, value_delimiter = ',', value_parser = PossibleValuesParser::new(Right::ALL.map(Right::as_str)).map(right))]
    pub(super) may: Vec<Right>,
    /// The configuration of the master.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/rouse/rouse.toml")]
    pub(super) config: PathBuf,
    /// Append the section to the configuration and reload the master, without asking.
    #[arg(long)]
    pub(super) write: bool,
}

/// One of the rights that clap has let through.
fn right(text: String) -> Right {
    Right::ALL.into_iter().find(|right| right.as_str() == text).unwrap_or(Right::Read)
}

#[derive(Args, Debug)]
pub(super) struct Worker {
    /// The worker's name.
    pub(super) worker: String,
}

/// Which builds to list: those that meet all of these conditions.
#[derive(Args, Debug)]
pub(super) struct Filter {
    /// Only builds in this state.
    #[arg(long, value_name = "STATE", conflicts_with = "outcome", value_parser = PossibleValuesParser::new(BuildState::ALL.map(BuildState::as_str)).map(state))]
    pub(super) state: Option<BuildState>,
    /// Only builds whose last attempt was assigned to this worker.
    #[arg(long, value_name = "NAME")]
    pub(super) worker: Option<WorkerName>,
    /// Only builds that require this property of their worker; can be given several times.
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) properties: Vec<(String, String)>,
    /// Only builds with this name. `*` stands for any text, `?` for one character.
    #[arg(long, value_name = "GLOB")]
    pub(super) name: Option<String>,
    /// Only builds that have ended like this.
    #[arg(long, value_name = "OUTCOME", value_parser = PossibleValuesParser::new(words(true)).map(state))]
    pub(super) outcome: Option<BuildState>,
    /// Only builds that were accepted at this time or later: an age (90m, 1d12h), or a time in UTC (2026-11-23,
    /// 2026-11-23T12:00:00Z).
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub(super) since: Option<When>,
    /// Only builds that were accepted before this time.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub(super) until: Option<When>,
    /// Only builds that are older than this one.
    #[arg(long, value_name = "BUILD")]
    pub(super) before: Option<u64>,
}

/// Which builds to cancel: those that meet all of these conditions.
#[derive(Args, Debug)]
pub(super) struct CancelFilter {
    /// All builds in this state.
    #[arg(long, value_name = "STATE", conflicts_with = "builds", value_parser = PossibleValuesParser::new(words(false)).map(state))]
    pub(super) state: Option<BuildState>,
    /// All builds whose last attempt was assigned to this worker.
    #[arg(long, value_name = "NAME", conflicts_with = "builds")]
    pub(super) worker: Option<WorkerName>,
    /// All builds that require this property of their worker; can be given several times.
    #[arg(long = "where", value_name = "KEY=VALUE", conflicts_with = "builds", value_parser = pair)]
    pub(super) properties: Vec<(String, String)>,
    /// All builds with this name. `*` stands for any text, `?` for one character.
    #[arg(long, value_name = "GLOB", conflicts_with = "builds")]
    pub(super) name: Option<String>,
}

/// How a build is followed.
#[derive(Args, Debug, Clone, Copy)]
pub(super) struct Following {
    /// Do not follow: print the build's number and exit.
    #[arg(long)]
    pub(super) detach: bool,
    /// Print the build as one JSON object instead of its log: when it has ended, or at once with --detach.
    #[arg(long)]
    pub(super) json: bool,
}

/// The names of the states that are final, or of those that are not.
fn words(are_final: bool) -> Vec<&'static str> {
    BuildState::ALL.into_iter().filter(|state| state.is_final() == are_final).map(BuildState::as_str).collect()
}

/// A moment, as people write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    /// So long ago.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        // A number alone would be seconds elsewhere, and is as likely meant as a year.
        let age = || text.contains(|c: char| c.is_ascii_alphabetic()).then(|| duration::parse(text).ok()).flatten();
        let day = || api::Time::parse(&format!("{text}T00:00:00Z"));
        let time = api::Time::parse(text).or_else(|_| day()).map(|time| Self::At(time.0));
        time.or_else(|_| age().map(Self::Ago).ok_or(())).map_err(|()| {
            "expected an age (90m, 1d12h), or a time in UTC (2026-11-23, 2026-11-23T12:00:00Z)".to_owned()
        })
    }

    /// The moment itself.
    pub(super) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(age) => now - age,
            Self::At(at) => at,
        }
    }
}

/// What to build. Options override the file.
#[derive(Args, Debug)]
pub(super) struct BuildArgs {
    /// Run the build on this worker.
    #[arg(long, value_name = "NAME", conflicts_with = "properties")]
    pub(super) worker: Option<String>,
    /// Run the build on a worker with this property; can be given several times.
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) properties: Vec<(String, String)>,
    /// Read the build from this file.
    #[arg(long, value_name = "FILE", required_unless_present = "command")]
    pub(super) file: Option<PathBuf>,
    /// Name of the build.
    #[arg(long, value_name = "TEXT")]
    pub(super) name: Option<String>,
    /// Builds with a higher priority run first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) priority: Option<i32>,
    /// How many lost attempts are retried.
    #[arg(long, value_name = "N")]
    pub(super) retries: Option<u32>,
    /// Add a variable to the environment of every step; can be given several times.
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(super) env: Vec<(String, String)>,
    /// Time limit of the whole build: seconds, or numbers with units (20m, 1h30m).
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,
    /// Never delete the build and its logs, whatever `[retention]` of the master says.
    #[arg(long)]
    pub(super) keep: bool,
    #[command(flatten)]
    pub(super) following: Following,
    /// The command to run, as the build's only step.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE".to_owned()),
    }
}

/// `rouse store`
#[derive(Subcommand, Debug)]
pub(super) enum StoreCommand {
    /// Copy the ledger from SQLite in the state directory into the database of PostgreSQL that store.url names, in one
    /// transaction. The database must have no ledger yet. The file stays as it is. Exits with 0 or 2.
    Migrate {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// List the hosts in the ledger that are not terminated, without asking a master, which may run or not. Exits with 0
    /// if there are none, with 1 if there are any, and with 2 if the ledger cannot be read.
    Hosts {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}
