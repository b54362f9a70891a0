//! The commands and their options, as clap reads them.

use clap::{Args, Parser, Subcommand};
use rouse_shared::duration;
use std::path::PathBuf;
use std::time::Duration;

const CODES: &str = "\
Exit codes: 0 success, 1 the build failed or an audit found something, 2 bad usage or configuration, 3 the master cannot be reached, 4 no such thing \
or refused, 5 the build was lost, 6 cancelled, 130 interrupted while following (the build goes on).

The token for changes is ROUSE_TOKEN, else the content of the file ROUSE_TOKEN_FILE, else that of \
/var/lib/rouse/api-token.";

/// Starts hosts when builds wait, hands the builds out, and lets the hosts go.
#[derive(Parser, Debug)]
#[command(name = "rouse", version, after_help = CODES, max_term_width = 100)]
pub struct Cli {
    /// The master to talk to.
    #[arg(long, global = true, env = "ROUSE_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8090")]
    pub(super) server: String,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Run the master. SIGHUP reloads its configuration, SIGTERM ends it cleanly; hosts stay as they are.
    Master {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say everything that is wrong with a configuration; ends with 0 or 2.
    Check {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Ask the clouds too: credentials, images, networks. Changes nothing.
        #[arg(long)]
        online: bool,
    },
    /// Print the libvirt network that gives each libvirt worker of a configuration its name, as XML.
    LibvirtNetwork {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Which network; needed only where the workers are on several.
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
    },
    /// The whole thing on this machine, without configuration: runs a real build on a host that wakes for it.
    Demo {
        /// The program to build; absent: this repository, or a small program that the binary carries.
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
    },
    /// Submit a build and follow it; ends with the build's exit code.
    Build(BuildArgs),
    /// Print a build's log, to the byte.
    Log {
        /// The build's number.
        build: String,
        /// Only this step, from 1; absent: all of them.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        step: Option<u32>,
        /// Of this attempt, from 1; absent: the last one.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        attempt: Option<u32>,
        /// Go on until the steps have ended; waits for them to begin.
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel a build.
    Cancel {
        /// The build's number.
        build: String,
    },
    /// Say in one sentence why a build has not started, and when the next try is.
    Why {
        /// The build's number.
        build: String,
    },
    /// List builds, newest first.
    Builds {
        /// Only those in this state.
        #[arg(long, value_name = "STATE", value_parser = ["queued", "starting", "running", "success", "failure", "cancelled", "lost"])]
        state: Option<String>,
        /// So many at most.
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
    /// List the hosts that are not gone.
    Hosts {
        #[command(flatten)]
        output: Output,
    },
    /// Hold the ledger against what the clouds list, now; ends with 1 where something differs.
    Audit {
        /// Terminate orphans, and take hosts for gone that no list has any more.
        #[arg(long)]
        fix: bool,
        /// Terminate machines that bear the master's name and another id too: after a lost state directory.
        #[arg(long, requires = "fix")]
        adopt: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give a worker no new builds.
    Pause(Worker),
    /// Let a worker work again; lifts backoff and quarantine too.
    Resume(Worker),
    /// Give a worker no new builds, and terminate its host when it is idle.
    Drain(Worker),
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of rouse and its commands, for `make build` and packagers.
    #[command(hide = true)]
    Man {
        /// The directory, which is created if it is missing.
        dir: PathBuf,
    },
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit) if limit >= 1 => Ok(limit),
        Ok(_) | Err(_) => Err("a whole number from 1 on".to_owned()),
    }
}

#[derive(Args, Debug)]
pub(super) struct Output {
    /// Print one array of JSON objects.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct Worker {
    /// The worker's name.
    pub(super) worker: String,
}

/// What to build. Options go before what the file says.
#[derive(Args, Debug)]
pub(super) struct BuildArgs {
    /// Run it on this worker.
    #[arg(long, value_name = "NAME", conflicts_with = "properties")]
    pub(super) worker: Option<String>,
    /// Run it on a worker with this property; may be given several times.
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) properties: Vec<(String, String)>,
    /// Read the build from this file.
    #[arg(long, value_name = "FILE", required_unless_present = "command")]
    pub(super) file: Option<PathBuf>,
    /// What people call it.
    #[arg(long, value_name = "TEXT")]
    pub(super) name: Option<String>,
    /// Higher first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) priority: Option<i32>,
    /// Attempts that may be lost under it before it is lost itself.
    #[arg(long, value_name = "N")]
    pub(super) retries: Option<u32>,
    /// Add to every step's environment; may be given several times.
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(super) env: Vec<(String, String)>,
    /// Limit of the whole build: seconds, or with a unit (20m, 1h30m).
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,
    /// Do not follow: print the build's number and end.
    #[arg(long)]
    pub(super) detach: bool,
    /// Print the build as one JSON object, at its end or with --detach at once, and no log.
    #[arg(long)]
    pub(super) json: bool,
    /// The command to run, as the build's only step.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("it is written KEY=VALUE".to_owned()),
    }
}
